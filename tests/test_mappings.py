"""Mappings. A mapping says how a file writes its numbers, dates and other values; a value that has two readings is refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal

import pytest
from django.core.management import CommandError

from housing.models import Location, Property
from tests.fixtures.commands import HEADER, everything, run


@pytest.fixture
def price(csv_file, import_file, mapping) -> Callable[[str, str], Decimal | str]:
    """`price("$1,250", '{ strip = ["$"] }')`: import a price in this format. Return it, or what the summary says about a refused one."""

    def act(text: str, number: str) -> Decimal | str:
        by = mapping(('price.column = "Price"', f'price = {{ column = "Price", number = {number} }}'))
        said = import_file(csv_file(["Bath", 3, text, "1/1/2026"]), by=by)
        home = Property.objects.first()
        return home.price if home else said.partition("expected ")[2].partition("\n")[0]

    return act


@pytest.fixture
def moment(csv_file, import_file, mapping) -> Callable[[str, str], datetime.datetime | str]:
    """`moment("1/2/2026", 'date = "%d/%m/%Y"')`: import a date in this format. Return the instant, or what the summary says about a refused one."""

    def act(text: str, keys: str) -> datetime.datetime | str:
        said = import_file(csv_file(["Bath", 3, 100, text]), by=mapping(('date = "%d/%m/%Y"', keys)))
        home = Property.objects.first()
        return home.created_at if home else said.partition("expected ")[2].partition("\n")[0]

    return act


# Numbers


NUMBERS = {
    "a currency sign before": ('{ strip = ["$"] }', "$1250", 1250),
    "a currency code after": ('{ strip = ["EUR"] }', "1250 EUR", 1250),
    "a currency sign and a code": ('{ strip = ["$", "AUD"] }', "AUD $1250", 1250),
    "a currency in small letters": ('{ strip = ["CHF"] }', "chf1250.-", "a number such as 1250.50"),
    "Swiss francs": ('{ thousands = "\'", strip = ["CHF", ".-"] }', "CHF 1’250’000.-", 1250000),
    "thousands by comma": ('{ thousands = "," }', "1,250,000.50", "1250000.50"),
    "thousands by point and a decimal comma": ('{ thousands = ".", decimal = "," }', "1.250.000,50", "1250000.50"),
    "thousands by space": ('{ thousands = " ", decimal = "," }', "1 250 000,50", "1250000.50"),
    "thousands by no-break space": ('{ thousands = " " }', "1\u00a0250\u00a0000", 1250000),
    "thousands by narrow no-break space": ('{ thousands = " ", strip = ["€"] }', "1\u202f250\u00a0€", 1250),
    "thousands by apostrophe": ('{ thousands = "\'" }', "1'250", 1250),
    "Indian groups": ('{ thousands = "," }', "12,50,000", 1250000),
    "no separator where the format has one": ('{ thousands = "," }', "1250.50", "1250.50"),
    "a number with an exponent": ('{ thousands = "," }', "1.25e+006", 1250000),
    "a unit": ('{ units = { "m²" = 1 } }', "180 m²", 180),
    "a unit with a digit": ('{ strip = ["m2"] }', "75 m2", 75),
    "a unit of another size": ('{ units = { "m²" = 1, sqft = 0.09290304 }, thousands = "," }', "1,250 sqft", "116.13"),
    "thousands written as k": ('{ units = { k = 1_000, m = 1_000_000 }, strip = ["$"] }', "$450K", 450000),
    "millions written as m": ('{ units = { k = 1_000, m = 1_000_000 }, strip = ["USD"] }', "1.25m USD", 1250000),
    "a negative number in parentheses": ('{ parentheses = "negative", strip = ["$"] }', "$(1250)", "a value greater than or equal to 0"),
    "a remark in parentheses": ('{ parentheses = "drop" }', "1250 (fixed)", 1250),
    "the low end of a range": ('{ range = "low" }', "1200 - 1300", 1200),
    "the high end of a range": ('{ range = "high", thousands = "," }', "1,200–1,300", 1300),
    "the middle of a range": ('{ range = "middle" }', "1200 to 1301", "1250.50"),
    "a unit that ends like another": ('{ units = { m = 1_000_000, "sq m" = 1 } }', "180 sq m", 180),
    "a unit that ends like another, which is earlier in the alphabet": ('{ units = { m = 1_000_000, "are m" = 1 } }', "180 are m", 180),
    "a range with a unit after it": ('{ range = "high", units = { k = 1_000 } }', "300-350k", 350000),
    "a range with a unit after it, its low end": ('{ range = "low", units = { k = 1_000 } }', "300-350k", 300000),
    "a range with a unit and a currency at both ends": ('{ range = "low", units = { k = 1_000 }, strip = ["$"] }', "$300k - $350k", 300000),
    "an open range": ('{ range = "low" }', "3+", 3),
}
"""Kind → the number format of a mapping, the cell, and the value, or what is expected instead of it."""


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_is_read_in_the_format_that_the_mapping_declares(db, price, kind):
    """Portals write numbers for people, and each in its own way."""
    number, text, value = NUMBERS[kind]
    assert price(text, number) == (value if isinstance(value, str) and value.startswith("a ") else Decimal(value))


TWO_READINGS = {
    "a point that is not before three digits": ('{ thousands = ".", decimal = "," }', "1.25", "a number such as 1.250,50"),
    "a comma that is not before three digits": ('{ thousands = "," }', "1,25", "a number such as 1,250.50"),
    "a comma without a meaning": ("{}", "1,250", "a number such as 1250.50"),
    "two formats with different values": ('[{ thousands = "," }, { decimal = "," }]', "1,250", "one reading, but it could be 1250 or 1.250"),
    "two currencies, of which one is declared": ('{ strip = ["$"] }', "€1250", "a number such as 1250.50"),
    "a unit that ends like one that is declared": ('{ strip = ["m"], units = { k = 1_000 } }', "4km", "a number such as 1250.50"),
    "a unit that is not declared": ('{ units = { "m²" = 1 } }', "180 acres", "a number such as 1250.50"),
    "a unit inside a word": ('{ units = { m = 1_000_000 }, strip = ["sq"] }', "3 sqm", "a number such as 1250.50"),
    "two units": ("{ units = { k = 1_000, m = 1_000_000 } }", "3 k m", "a number such as 1250.50"),
    "parentheses": ("{}", "(1250)", 'a number such as 1250.50 without parentheses (parentheses = "negative" or "drop" reads them)'),
    "a range": ("{}", "2-3", 'a number such as 1250.50 and no range (range = "low", "high" or "middle" reads one)'),
    "the high end of an open range": ('{ range = "high" }', "3+", "a range with an upper end"),
    "a range that falls": ('{ range = "low" }', "3-2", "a range from a lower to a higher number"),
    "a range of words": ('{ range = "low" }', "2 big - 3", "a number such as 1250.50"),
    "a range with a unit at the low end only": ('{ range = "low", units = { k = 1_000 } }', "300k - 350", "a range with its unit at the upper end"),
    "two numbers": ('{ thousands = "," }', "1,250 1,300", "a number such as 1,250.50"),
    "more than a hundred characters": ("{}", "0" * 100 + "5", "a number such as 1250.50"),
    "digits of another script": ("{}", "١٢٥٠", "a number such as 1250.50"),
}
"""Kind → the number format, the cell, and what is expected instead."""


@pytest.mark.parametrize("kind", TWO_READINGS)
def test_a_number_that_could_be_read_in_two_ways_is_refused(db, price, kind):
    """A guess would be wrong for some rows, and nobody would notice which."""
    number, text, expected = TWO_READINGS[kind]
    assert price(text, number) == expected


def test_two_formats_of_one_column_are_both_read_if_they_agree(db, price):
    """A file may be put together from several sources. Its cells are read if only one format fits, or if all that fit mean the same."""
    both = '[{ thousands = "," }, { thousands = ".", decimal = "," }]'
    assert price("1.250,50", both) == Decimal("1250.50")
    Property.objects.all().delete()
    assert price("12500", both) == 12500


def test_a_number_format_at_the_top_is_that_of_every_field_which_may_add_to_it(db, csv_file, import_file, mapping):
    """A file usually has one decimal separator, and each column its own unit."""
    by = mapping(('bedrooms.column = "Rooms"', 'bedrooms = { column = "Rooms", number = { strip = ["beds"] } }\narea = { column = "Area", factor = 0.5 }'))
    by.write_text('number = { thousands = ".", decimal = "," }\n' + by.read_text(encoding="utf-8"), encoding="utf-8")
    import_file(csv_file(["Bath", "3 beds", "1.250,50", "1/1/2026", "80,5"], header=[*HEADER, "Area"]), by=by)

    home = Property.objects.get()
    assert (home.price, home.bedrooms, home.area) == (Decimal("1250.50"), 3, Decimal("40.25"))


def test_a_word_may_stand_for_a_number(db, csv_file, import_file, mapping):
    """A studio has no bedroom. The words of a mapping are plain numbers, whatever the format of the column is."""
    by = mapping(('bedrooms.column = "Rooms"', 'bedrooms = { column = "Rooms", values = { Studio = 0 }, number = { strip = ["beds"] } }'))
    said = import_file(csv_file(*[["Bath", rooms, 1, "1/1/2026"] for rooms in ("Studio", "2 beds", "Loft")]), by=by)

    assert sorted(Property.objects.values_list("bedrooms", flat=True)) == [0, 2]
    assert "1 × property.bedrooms, column 'Rooms': expected a number such as 1250.50\n    1 × 'Loft' (line 4)" in said


# Dates


DATES = {
    "an offset": ("2026-02-01 10:00:00+11:00", 'date = "%Y-%m-%d %H:%M:%S%z"', "2026-01-31T23:00:00"),
    "ISO 8601 with an offset": ("2026-02-01T10:00:00+11:00", 'date = "iso"', "2026-01-31T23:00:00"),
    "ISO 8601 in UTC": ("2026-02-01T10:00:00.5Z", 'date = "iso"', "2026-02-01T10:00:00.5"),
    "ISO 8601, the day alone": ("2026-02-01", 'date = "iso"', "2026-02-01T00:00:00"),
    "no zone": ("1/2/2026 10:00", 'date = "%d/%m/%Y %H:%M"', "2026-02-01T10:00:00"),
    "a named zone, in summer": ("1/2/2026 10:00", 'date = "%d/%m/%Y %H:%M", zone = "Australia/Melbourne"', "2026-01-31T23:00:00"),
    "a named zone, in winter": ("1/7/2026 10:00", 'date = "%d/%m/%Y %H:%M", zone = "Australia/Melbourne"', "2026-07-01T00:00:00"),
    "a day in a named zone": ("1/2/2026", 'date = "%d/%m/%Y", zone = "Australia/Melbourne"', "2026-01-31T13:00:00"),
    "an offset in a file with a named zone": ("2026-02-01T10:00:00+00:00", 'date = "iso", zone = "Australia/Melbourne"', "2026-02-01T10:00:00"),
    "a zone's short name": ("Wed May 21 00:00:00 EDT 2008", 'date = "%a %b %d %H:%M:%S EDT %Y", zone = "America/New_York"', "2008-05-21T04:00:00"),
    "Z as text": ("20260201T100000Z", 'date = "%Y%m%dT%H%M%SZ"', "2026-02-01T10:00:00"),
    "a day that begins at one o'clock": ("6/9/2026", 'date = "%d/%m/%Y", zone = "America/Santiago"', "2026-09-06T04:00:00"),
    "one of two formats": ("31/1/2026", 'date = ["%d/%m/%Y", "%m/%d/%Y"]', "2026-01-31T00:00:00"),
    "two formats that agree": ("1/1/2026", 'date = ["%d/%m/%Y", "%m/%d/%Y"]', "2026-01-01T00:00:00"),
}
"""Kind → the cell, the keys of the mapping, and the instant in UTC."""


@pytest.mark.parametrize("kind", DATES)
def test_a_date_is_the_instant_that_its_offset_or_zone_tells(db, moment, kind):
    """A time of another zone, taken for UTC, would be hours wrong, and would put listings in the wrong order."""
    text, keys, instant = DATES[kind]
    assert moment(text, keys) == datetime.datetime.fromisoformat(instant).replace(tzinfo=datetime.UTC)


NO_INSTANT = {
    "two formats with different days": (
        "3/9/2026",
        'date = ["%d/%m/%Y", "%m/%d/%Y"]',
        "one reading, but it could be 2026-09-03 00:00:00+00:00 or 2026-03-09 00:00:00+00:00",
    ),
    "a time that the clocks repeat": (
        "25/10/2026 02:30",
        'date = "%d/%m/%Y %H:%M", zone = "Europe/Paris"',
        "a time that occurs once in Europe/Paris, whose clocks",
    ),
    "a time that the clocks skip": (
        "29/3/2026 02:30",
        'date = "%d/%m/%Y %H:%M", zone = "Europe/Paris"',
        "a time that occurs once in Europe/Paris, whose clocks",
    ),
    "a date that is not ISO 8601": ("1/2/2026", 'date = "iso"', "a date in ISO 8601, such as 2026-11-28T15:30:00+01:00"),
    "an offset that the format does not have": ("1/2/2026 +11:00", 'date = "%d/%m/%Y"', "a date in the format %d/%m/%Y"),
    "no offset where the format has one": ("1/2/2026", 'date = "%d/%m/%Y%z"', "a date in the format %d/%m/%Y%z"),
    "a year before the first": ("0001-01-01T00:00:00+11:00", 'date = "iso"', "a date in ISO 8601, such as 2026-11-28T15:30:00+01:00"),
    "neither of two formats": ("31/31/2026", 'date = ["%d/%m/%Y", "%m/%d/%Y"]', "a date in the format %d/%m/%Y or a date in the format %m/%d/%Y"),
}
"""Kind → the cell, the keys of the mapping, and how the summary begins to say what was expected."""


@pytest.mark.parametrize("kind", NO_INSTANT)
def test_a_date_that_could_be_two_instants_or_none_is_refused(db, moment, kind):
    """`3/9/2026` is in September or in March. Where the clocks go back, 02:30 occurs twice."""
    text, keys, expected = NO_INSTANT[kind]
    assert str(moment(text, keys)).startswith(expected)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ('date = "%Y-%m-%dT%H:%M:%S+11:00"', "property.created_at.date is '%Y-%m-%dT%H:%M:%S+11:00'. +11:00 as text would be ignored. Write %z."),
        ('date = "%d/%m/%Y %H:%M AEDT"', "AEDT as text is ignored. Write zone = "),
        ('date = "%Y%m%dT%H%M%SZ", zone = "Europe/Paris"', "Z as text is ignored. Write zone = "),
        ('date = "%d/%m/%Y %Z"', "Names of zones have several meanings. Write %z for offsets such as +01:00, or the name as text and zone = "),
        ('date = "%d/%m/%Y %I:%M"', "A time of 12 hours (%I) has two readings without %p."),
        ('date = "%d/%m/%Y", zone = "Melbourne"', "property.created_at.zone is 'Melbourne'. It must be a name of the IANA time zone database, such as "),
        ('date = "%d/%m/%Y", zone = "Europe"', "property.created_at.zone is 'Europe'. It must be a name"),
        ("date = []", "property.created_at.date is []. It must be a format"),
        ('date = ["iso", "%d/%m"]', "property.created_at.date is '%d/%m'. It must be a format"),
    ],
)
def test_a_date_format_that_would_store_a_wrong_instant_is_refused(db, csv_file, import_file, mapping, keys, complaint):
    """strptime compares text such as `+11:00` and does not use it, so each instant would be eleven hours wrong."""
    with pytest.raises(CommandError, match=r"Nothing was imported\. .*mapping\.toml") as refused:
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=mapping(('date = "%d/%m/%Y"', keys)))
    assert complaint in str(refused.value)


# Other values


def test_otherwise_is_the_value_of_all_that_are_not_listed(db, csv_file, import_file, mapping):
    """A portal has dozens of kinds of houses, and a mapping needs only the others."""
    by = mapping(('property_type.default = "house"', 'property_type = { column = "City", values = { flat = "apartment" }, otherwise = "house" }'))
    assert "2 imported" in import_file(csv_file(["flat", 1, 1, "1/1/2026"], ["chalet", 1, 2, "1/1/2026"]), by=by)

    assert list(Property.objects.order_by("price").values_list("property_type", flat=True)) == ["apartment", "house"]


def test_a_field_may_have_missing_texts_of_its_own(db, csv_file, import_file, mapping):
    """`0` is a missing year, and a number of bedrooms."""
    by = mapping(('bedrooms.column = "Rooms"', 'bedrooms = { column = "Rooms", missing = ["?"] }'))
    import_file(csv_file(["?", "?", 1, "1/1/2026"]), by=by)

    assert (Property.objects.get().bedrooms, Location.objects.get().city) == (None, "?")


@pytest.mark.parametrize("name", ["Rooms: all", "Rooms!", "Rooms[0]", "a.b", "0", ""])
def test_a_template_may_have_a_column_with_any_name(db, csv_file, import_file, mapping, name):
    """Python's format strings give `:`, `!`, `[` and `.` a meaning. In the names of columns they are letters."""
    by = mapping(("{Rooms} rooms in {City}", f"{{{{{name}}}}} {{{name}}}"), ('bedrooms.column = "Rooms"', ""))
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"], header=["City", name, "Price", "Date"]), by=by)

    assert Property.objects.get().title == f"{{{name}}} 3"


def test_a_template_may_have_no_column(db, csv_file, import_file, mapping):
    """It is the same text in every row, like a default."""
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=mapping(("{Rooms} rooms in {City}", "A home")))
    assert Property.objects.get().title == "A home"


@pytest.mark.parametrize("template", ["{Price:,.0f}", "{Price!r}"])
def test_a_format_in_a_template_is_refused_by_name(db, csv_file, import_file, mapping, template):
    """It would be silently ignored, or taken for the name of a column."""
    with pytest.raises(CommandError) as refused:
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=mapping(("{Rooms} rooms in {City}", template)))
    assert f"no column {template[1:-1]!r} (property.title; a template has no formats: write {{Price}})." in str(refused.value)


# Invalid mappings


def test_without_a_mapping_the_command_says_that_it_needs_one():
    """No file is read by a guess. `inspect_listings` writes a first mapping."""
    with pytest.raises(CommandError, match="the following arguments are required: --mapping"):
        run("import_listings", "listings.csv")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[office]", "[office", "is not valid TOML"),
        ("[office]", "[offices]", "there is no table 'offices'. Use missing, number, file, office, agent, location, property, image."),
        ("[office]", "missing = 3\n[office]", "missing must be a list of texts"),
        ("[office]", "missing = [3]\n[office]", "missing must be a list of texts"),
        ('[agent]\nname.default = "Ann"', "", "agent.name is required. Write name.column = "),
        ('price.column = "Price"', "", "property.price is required"),
        ('created_at = { column = "Date", date = "%d/%m/%Y" }', "", "property.created_at is required"),
        ('price.column = "Price"', 'prize.column = "Price"', "[property] has no field 'prize'. Its fields are title, description"),
        ('price.column = "Price"', 'price = "Price"', "property.price is 'Price'. Write property.price.column"),
        (
            'price.column = "Price"',
            'price.colum = "Price"',
            "property.price has no key 'colum'. Its keys are column, default, required, missing, number, values, factor.",
        ),
        ('price.column = "Price"', "price.column = 3", "property.price.column cannot be 3."),
        ('price.column = "Price"', 'price = { column = "Price", factor = true }', "property.price.factor cannot be True."),
        ('price.column = "Price"', "price.required = true", "property.price needs either a column or a template, or a default."),
        ('title.template = "{Rooms}', 'title.column = "City"\ntitle.template = "{Rooms}', "property.title needs either a column or a template"),
        ('title.template = "{Rooms}', 'title.template = "{Rooms', "property.title.template is "),
        ('title.template = "{Rooms}', 'title.template = "{Room}', "the file has no column 'Room' (property.title). Its columns are City, Rooms, Price, Date."),
        ('price.column = "Price"', 'price.default = "dear"', "property.price 'dear': expected a number such as 1250.50."),
        ('status.default = "sold"', 'status.default = "gone"', "property.status 'gone': expected one of available, pending, sold, withdrawn."),
        (
            'status.default = "sold"',
            'status = { column = "City", values = { x = "gone" } }',
            "property.status 'gone': expected one of available, pending, sold, withdrawn.",
        ),
        ('status.default = "sold"', 'status = { column = "City", values = { x = 3 } }', "property.status.values cannot be {'x': 3}."),
        (
            'bedrooms.column = "Rooms"',
            'bedrooms = { column = "Rooms", fold = true }',
            "property.bedrooms has no key 'fold'. Its keys are column, default, required, missing, number, values.",
        ),
        ('price.column = "Price"', 'price = { column = "Price", number = 3 }', "property.price.number cannot be 3."),
        ('price.column = "Price"', 'price = { column = "Price", number = [] }', "property.price.number cannot be []. Write a table, such as "),
        ('price.column = "Price"', 'price = { column = "Price", number = { comma = "." } }', "property.price.number has no key 'comma'. Its keys are "),
        ('price.column = "Price"', 'price = { column = "Price", number = { decimal = ";" } }', "property.price.number.decimal is ';'. It can be '.', ','."),
        ('price.column = "Price"', 'price = { column = "Price", number = { thousands = "." } }', "has '.' for both thousands and decimal."),
        ('price.column = "Price"', 'price = { column = "Price", number = { strip = "$" } }', "number.strip is '$'. It must be a list of texts"),
        ('price.column = "Price"', 'price = { column = "Price", number = { strip = ["0"] } }', "number.strip is ['0']. It must be a list of texts"),
        ('price.column = "Price"', 'price = { column = "Price", number = { units = { k = "1000" } } }', "number.units is {'k': '1000'}. It must be a table"),
        ('price.column = "Price"', 'price = { column = "Price", missing = "" }', "property.price.missing cannot be ''."),
        ('price.column = "Price"', 'price = { column = "Price", missing = [3] }', "property.price.missing must be a list of texts"),
        ("[office]", 'number = { decimal = ";" }\n[office]', "number.decimal is ';'. It can be '.', ','."),
        ("[office]", "file = 3\n[office]", "[file] is 3. It has encoding and delimiter, which are texts."),
        ("[office]", '[file]\ndelimiter = ";;"\n[office]', "file.delimiter is ';;'. It must be one character"),
        ("[office]", "[file]\ndelimiter = '\"'\n[office]", "file.delimiter is '\"'. It must be one character"),
        ("[office]", '[file]\nencoding = "klingon"\n[office]', "file.encoding is 'klingon'. Use utf-8, cp1252, or another of Python's."),
        ("[office]", "image = 3\n[office]", "image is not a table. Write [image] with its fields below."),
        ("[office]", "[[image]]\ncaption.column = 'City'\n[office]", "image 1.url is required. Write url.column = "),
        ("[office]", "[image]\nurl = { column = 'City', split = '' }\n[office]", "image.url.split is empty. Write what is between two values"),
        ('status.default = "sold"', 'status = { column = "City", otherwise = "sold" }', "property.status.otherwise needs values"),
        ("title.template", "title.fold = true\ntitle.template", "property.title has no key 'fold'"),
        ('"%d/%m/%Y"', '"%d/%m"', "property.created_at.date is '%d/%m'. It must be a format with day, month and year"),
        ('"%d/%m/%Y"', '"%d/%m/%Y %Q"', "property.created_at.date is '%d/%m/%Y %Q'"),
        ('"%d/%m/%Y"', '"%d%d"', "property.created_at.date is '%d%d'"),
        (', date = "%d/%m/%Y"', "", "property.created_at.date is None"),
    ],
)
def test_an_invalid_mapping_is_one_clear_error(transactional_db, csv_file, import_file, mapping, old, new, complaint):
    """The error comes before the first row, and names the key to fix."""
    with pytest.raises(CommandError, match=r"Nothing was imported\. .*mapping\.toml") as refused:
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=mapping((old, new)))

    assert complaint in str(refused.value)
    assert not any(everything())


def test_all_faults_of_a_mapping_are_in_one_error(db, csv_file, import_file, mapping):
    """A user should not have to run the command once for each of them."""
    by = mapping(('city.column = "City"', "cty = 3"), ('price.column = "Price"', 'price = "Price"'), ('"%d/%m/%Y"', '"%d/%m"'))
    with pytest.raises(CommandError) as refused:
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=by)

    wrong = ("[location] has no field 'cty'", "location.city is required", "property.price is 'Price'", "property.created_at.date is '%d/%m'")
    assert [fault for fault in wrong if fault not in str(refused.value)] == []
    assert len(str(refused.value).splitlines()) == len(wrong)


def test_a_table_that_is_not_a_table_is_one_clear_error(db, csv_file, import_file, mapping):
    """This mistake is easy to make in TOML, and Python's error about it would not show which line to change."""
    by = mapping(('[office]\nname.default = "Town"', 'office = "Town"'))
    with pytest.raises(CommandError, match=r"office is not a table\. Write "):
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=by)


def test_a_missing_mapping_is_one_clear_error(db, csv_file, import_file, tmp_path):
    """The command takes two paths, so the error must show which of them is wrong."""
    with pytest.raises(CommandError, match=r"none\.toml cannot be read: No such file or directory\."):
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=tmp_path / "none.toml")


def test_a_mapping_in_another_encoding_is_one_clear_error(db, csv_file, import_file, mapping):
    """Some editors save text as Latin-1 or UTF-16. A decoder's traceback would not show which file to convert."""
    by = mapping()
    by.write_bytes(by.read_bytes() + b"# \xff")
    with pytest.raises(CommandError, match=r"mapping\.toml is not valid TOML: "):
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), by=by)
