"""Importing. A command imports listings from a CSV file with the help of a mapping, and lists the rows that it refuses."""

from __future__ import annotations

import datetime
import gzip
import io
import sys
from collections.abc import Callable
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from housing.management.commands import import_listings as command
from housing.models import Agent, Location, Office, Property
from tests import ROOT
from tests.fixtures.commands import HEADER, everything, interrupted, run

MAPPINGS = ROOT / "housing" / "mappings"


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


# Importing


def test_a_row_becomes_a_property_with_its_location_agent_and_office(db, csv_file, import_file, mapping):
    """A CSV row is flat. A value in the wrong table or of the wrong type would give a wrong listing."""
    by = mapping(('city.column = "City"', 'city.column = "City"\nlatitude.column = "Lat"'), ("[agent]", 'city.default = "Capital"\n[agent]'))

    said = import_file(csv_file(["Örebro", 3, "1.225e+006", "3/09/2016", "59.2753"], header=[*HEADER, "Lat"]), by=by)

    home = Property.objects.select_related("location", "agent__office").get()
    assert said == "1 rows read: 1 imported, 0 already there, 0 refused.\n"
    assert (home.title, home.price, home.bedrooms, home.status, home.area) == ("3 rooms in Örebro", 1_225_000, 3, "sold", None)
    assert home.created_at == datetime.datetime(2016, 9, 3, tzinfo=datetime.UTC)
    assert (home.location.city, home.location.latitude, home.location.longitude) == ("Örebro", Decimal("59.275300"), None)
    assert (home.agent.name, home.agent.office.name, home.agent.office.city) == ("Ann", "Town", "Capital")


def test_imported_listings_are_in_the_next_read(transactional_db, csv_file, import_file, read):
    """`bulk_create()` sends no signals, but a cached page must show the new listings all the same."""
    assert read().json["results"] == []

    import_file(csv_file(["Bath", 3, 100, "1/1/2026"]))

    assert [home["title"] for home in read().json["results"]] == ["3 rooms in Bath"]


def test_a_second_import_adds_nothing_and_leaves_pages_warm(transactional_db, csv_file, import_file, read):
    """An import may be repeated after an error or by a timer. Duplicates would appear in the API, and needless writes would make pages stale."""
    file = csv_file(["Bath", 3, 100, "1/1/2026"], ["Wells", 2, 90, "2/1/2026"])
    import_file(file)
    before = everything()
    read()

    assert import_file(file) == "2 rows read: 0 imported, 2 already there, 0 refused.\n"

    assert everything() == before
    assert read().came_from == "hit"


def test_duplicate_rows_become_separate_properties_and_are_recognized_in_the_next_import(db, csv_file, import_file, monkeypatch):
    """Two flats of a house may have equal rows. This also holds if they are in different batches."""
    monkeypatch.setattr(command, "BATCH", 2)
    row = ["Bath", 3, 100, "1/1/2026"]
    file = csv_file(row, row, ["Wells", 2, 90, "2/1/2026"], row)

    assert import_file(file).startswith("4 rows read: 4 imported")
    assert import_file(file).startswith("4 rows read: 0 imported, 4 already there")
    assert import_file(csv_file(row, row, row, row)).startswith("4 rows read: 1 imported, 3 already there")
    assert import_file(csv_file(*[row] * 12)).startswith("12 rows read: 8 imported, 4 already there"), "the eleventh is not the first"


def test_a_row_is_recognized_in_another_file(db, csv_file, import_file, tmp_path):
    """Its line, the order of columns, quotes, line ends and compression do not matter."""
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"], ["Wells", 2, 90, "2/1/2026"]))
    same = tmp_path / "same.csv.gz"
    same.write_bytes(gzip.compress(b'"Price","City","Date","Rooms"\n90,Wells,2/1/2026,"2"\n100,Bath,1/1/2026,3\n'))

    assert import_file(same) == "2 rows read: 0 imported, 2 already there, 0 refused.\n"


@pytest.mark.parametrize(("one", "other"), [(["1", "12"], ["11", "2"]), (["", "12"], ["12", ""]), (['1", "', ""], ["", '1", "'])], ids=repr)
def test_two_rows_with_the_same_text_in_other_cells_are_two_properties(db, csv_file, import_file, mapping, one, other):
    """The cells are hashed with their names and borders. Joined, "1" and "12" would be "11" and "2", and the second row would be lost."""
    by = mapping(('template = "{Rooms} rooms in {City}"', 'column = "City"'), ('bedrooms.column = "Rooms"', ""))
    header = ["City", "Price", "Date", "Unit 1", "Unit 2"]

    files = [csv_file(["Bath", 100, "1/1/2026", *cells], header=header, name=f"{number}.csv") for number, cells in enumerate((one, other))]
    for known in (0, 1):
        for file in files:
            assert import_file(file, by=by).startswith(f"1 rows read: {1 - known} imported, {known} already")


def test_a_row_with_a_changed_cell_is_a_new_property(db, csv_file, import_file):
    """Without an id of the source, a changed row cannot be matched with the older property."""
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"]))
    assert import_file(csv_file(["Bath", 3, 101, "1/1/2026"])).startswith("1 rows read: 1 imported")


def test_offices_agents_and_locations_are_shared(db, csv_file, import_file, monkeypatch):
    """This holds in a batch, between batches and between imports."""
    monkeypatch.setattr(command, "BATCH", 2)
    import_file(csv_file(*[["Bath", 3, price, "1/1/2026"] for price in range(5)]))
    import_file(csv_file(*[["Bath", 3, price, "1/1/2027"] for price in range(5)]))

    assert [model.objects.count() for model in (Property, Location, Agent, Office)] == [10, 1, 1, 1]


def test_the_oldest_of_equal_locations_is_used(db, csv_file, import_file):
    """A location may have been entered twice in the admin."""
    oldest, _ = (Location.objects.create(city="Bath") for _ in range(2))
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"]))

    assert Property.objects.get().location == oldest


def test_the_same_name_in_another_office_is_another_agent(db, csv_file, import_file, mapping):
    """Agents of two offices may have the same name. If they were merged, one of them would be shown with the wrong office."""
    by = mapping(('name.default = "Town"', 'name.column = "City"'))
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"], ["Wells", 3, 100, "1/1/2026"]), by=by)

    assert sorted(Agent.objects.values_list("name", "office__name")) == [("Ann", "Bath"), ("Ann", "Wells")]


def test_locations_are_equal_only_if_all_fields_are_equal(db, csv_file, import_file, mapping):
    """A location with a missing or different field may be another place. A wrong match would show a property at the wrong address."""
    by = mapping(
        ('city.column = "City"', 'city.default = "Bath"\nzip_code.column = "City"\nlatitude.column = "Rooms"'),
        ('title.template = "{Rooms} rooms in {City}"', 'title.default = "Home"'),
    )
    import_file(csv_file(["01", 1, 1, "1/1/2026"], ["01", "", 1, "1/1/2026"], ["", 1, 1, "1/1/2026"], ["1", 1, 1, "1/1/2026"]), by=by)

    assert set(Location.objects.values_list("zip_code", "latitude")) == {("01", 1), ("01", None), (None, 1), ("1", 1)}


def test_names_that_differ_only_in_case_are_merged_with_the_first_spelling(db, csv_file, import_file, mapping):
    """The first spelling is that of the database, or otherwise that of the file. Case includes letters such as Ö."""
    by = mapping(('name.default = "Town"', 'name = { column = "City", fold = true }\ncity = { column = "Nowhere", fold = true }'))
    Office.objects.create(name="McÖRN")
    header = [*HEADER, "Nowhere"]
    import_file(csv_file(*[[name, 3, 100, "1/1/2026", ""] for name in ("mcörn", "OBrien", "Obrien", "MCÖRN")], header=header), by=by)

    assert set(Office.objects.values_list("name", flat=True)) == {"McÖRN", "OBrien"}
    assert Agent.objects.count() == 2


# Mappings


def test_each_text_of_a_missing_cell_leaves_an_optional_field_empty(db, csv_file, import_file, mapping):
    """Data sets write missing cells in several ways. A text such as `#N/A` must not be stored, and the row is still useful."""
    by = mapping(
        (
            'bedrooms.column = "Rooms"',
            'bedrooms.column = "Rooms"\ndescription.template = "{Rooms} and a bath"\nbathrooms = { column = "Rooms", default = 1.5 }',
        ),
        ('title.template = "{Rooms} rooms in {City}"', 'title.column = "City"'),
    )
    by.write_text('missing = ["", "#N/A"]\n' + by.read_text(encoding="utf-8"), encoding="utf-8")
    import_file(csv_file(["Bath", "", 1, "1/1/2026"], ["Bath", "#N/A", 2, "1/1/2026"], ["Bath", " 3 ", 3, "1/1/2026"]), by=by)

    found = Property.objects.order_by("price").values_list("bedrooms", "description", "bathrooms")
    assert list(found) == [(None, None, Decimal("1.50")), (None, None, Decimal("1.50")), (3, "3 and a bath", 3)]


def test_listed_values_are_translated_and_others_refused(db, csv_file, import_file, mapping):
    """A data set has codes of its own, and an unknown code in the database would match no filter."""
    by = mapping(('property_type.default = "house"', 'property_type = { column = "City", values = { h = "house", u = "apartment" } }'))
    said = import_file(csv_file(["h", 1, 1, "1/1/2026"], ["u", 1, 2, "1/1/2026"], ["x", 1, 3, "1/1/2026"]), by=by)

    assert list(Property.objects.order_by("price").values_list("property_type", flat=True)) == ["house", "apartment"]
    assert "1 × property.property_type, column 'City': expected one of the mapping's values\n    1 × 'x' (line 4)\n" in said


def test_a_factor_changes_the_unit_and_numbers_are_rounded_half_up(db, csv_file, import_file, mapping):
    """A data set may use square feet. Python rounds halves to even, so a user who checks a row would find another number."""
    by = mapping(('bedrooms.column = "Rooms"', 'area = { column = "Rooms", factor = 0.09290304 }\nbathrooms.column = "Baths"'))
    import_file(csv_file(["Bath", 1180, 1, "1/1/2026", "2.245"], header=[*HEADER, "Baths"]), by=by)

    home = Property.objects.get()
    assert (home.area, home.bathrooms) == (Decimal("109.63"), Decimal("2.25"))


def test_a_row_without_a_required_value_is_refused(db, csv_file, import_file, mapping):
    """A user may need a value that the database does not require."""
    by = mapping(('bedrooms.column = "Rooms"', 'bedrooms = { column = "Rooms", required = true }'), ("{Rooms} rooms in {City}", "A home in {City}"))
    assert "property.bedrooms, column 'Rooms': expected a value\n    1 × nothing (line 2)\n" in import_file(csv_file(["Bath", "", 100, "1/1/2026"]), by=by)


# Refused rows


@pytest.mark.parametrize(
    ("row", "where", "expected"),
    [
        (["Bath", 3, "", "1/1/2026"], "property.price, column 'Price'", "a value"),
        (["Bath", 3, "dear", "1/1/2026"], "property.price, column 'Price'", "a number such as 1250.50"),
        (["Bath", 3, "nan", "1/1/2026"], "property.price, column 'Price'", "a number such as 1250.50"),
        (["Bath", 3, "1_000", "1/1/2026"], "property.price, column 'Price'", "a number such as 1250.50"),
        (["Bath", 3, "1e999999", "1/1/2026"], "property.price, column 'Price'", "a number with fewer digits"),
        (["Bath", 3, "1e9999999999999999999", "1/1/2026"], "property.price, column 'Price'", "a number with fewer digits"),
        (["Bath", 3, "12345678901", "1/1/2026"], "property.price, column 'Price'", "no more than 12 digits in total"),
        (["Bath", 3, "-1", "1/1/2026"], "property.price, column 'Price'", "a value greater than or equal to 0"),
        (["Bath", "abc", 100, "1/1/2026"], "property.bedrooms, column 'Rooms'", "a number such as 1250.50"),
        (["Bath", "2.5", 100, "1/1/2026"], "property.bedrooms, column 'Rooms'", "a whole number"),
        (["Bath", "-1", 100, "1/1/2026"], "property.bedrooms, column 'Rooms'", "a number between 0 and 32767"),
        (["Bath", "1e99999", 100, "1/1/2026"], "property.bedrooms, column 'Rooms'", "a number between 0 and 32767"),
        (["Bath", "32768", 100, "1/1/2026"], "property.bedrooms, column 'Rooms'", "a number between 0 and 32767"),
        (["Bath", 3, 100, "31/2/2026"], "property.created_at, column 'Date'", "a date in the format %d/%m/%Y"),
        (["Bath", 3, 100, "12/31/2026"], "property.created_at, column 'Date'", "a date in the format %d/%m/%Y"),
        (["B" * 101, 3, 100, "1/1/2026"], "location.city, column 'City'", "at most 100 characters"),
        (["Bath", 3, 100], "row", "4 cells, one for each column"),
        (["Bath", 3, 100, "1/1/2026", "x"], "row", "4 cells, one for each column"),
    ],
)
def test_an_unusable_cell_is_listed_with_its_line_column_value_and_what_was_expected(db, csv_file, import_file, row, where, expected):
    """The other rows are imported, and of this one not even the location. A value that only SQLite would accept is refused on both stacks."""
    said = import_file(csv_file(["Wells", 3, 100, "1/1/2026"], row))

    assert said.startswith(f"2 rows read: 1 imported, 0 already there, 1 refused:\n  1 × {where}: expected {expected}\n    1 × ")
    value = {"row": f"{len(row)} cells", "location.city, column 'City'": "B" * 99 + "…"}.get(where) or str(row[HEADER.index(where.split("'")[1])])
    assert said.endswith(f"    1 × {repr(value) if value else 'nothing'} (line 3)\n")
    assert [place.city for place in Location.objects.all()] == ["Wells"]


def test_refused_rows_are_counted_by_reason_with_their_first_five_lines(db, csv_file, import_file, monkeypatch):
    """The line number is that of the row's first line, even after cells with line breaks."""
    monkeypatch.setattr(command, "BATCH", 3)
    bad = ["Bath", 3, "", "1/1/2026"]
    said = import_file(csv_file(["Ba\nth", 3, 100, "1/1/2026"], ["Ba\nth", 3, "", "1/1/2026"], bad, ["Bath", "x", 1, "1/1/2026"], *[bad] * 5))

    assert said == (
        "9 rows read: 1 imported, 0 already there, 8 refused:\n"
        "  7 × property.price, column 'Price': expected a value\n"
        "    7 × nothing (lines 4, 6, 8, 9, 10, …)\n"
        "  1 × property.bedrooms, column 'Rooms': expected a number such as 1250.50\n"
        "    1 × 'x' (line 7)\n"
    )


def test_a_dry_run_prints_the_result_and_writes_nothing(transactional_db, csv_file, import_file, read):
    """A user can check a mapping with a large file before anything changes in the database or the cache."""
    import_file(csv_file(["Bath", 3, 100, "1/1/2026"]))
    before = everything()
    read()

    said = import_file(csv_file(["Bath", 3, 100, "1/1/2026"], ["Wells", 3, 100, "1/1/2026"], ["Wells", 3, "", "1/1/2026"]), "--dry-run")

    assert said.startswith("Nothing was written (--dry-run). An import would have this result: 3 rows read: 1 imported, 1 already there, 1 refused:\n")
    assert everything() == before
    assert read().came_from == "hit"


def test_a_strict_import_of_a_file_with_one_bad_row_writes_nothing(transactional_db, csv_file, import_file, monkeypatch):
    """The whole file is read first, so that all reasons are reported."""
    monkeypatch.setattr(command, "BATCH", 2)
    rows = [["Bath", 3, price, "1/1/2026"] for price in (1, "", 3, 4, "dear")]

    with pytest.raises(CommandError, match=r"Nothing was imported \(--strict\).* 5 rows read: 3 imported, 0 already there, 2 refused") as refused:
        import_file(csv_file(*rows), "--strict")

    assert "    1 × nothing (line 3)" in str(refused.value)
    assert "    1 × 'dear' (line 6)" in str(refused.value)
    assert not any(everything())


def test_a_strict_import_of_a_clean_file_is_an_import(db, csv_file, import_file):
    """`--strict` only concerns bad rows, so a user can always set it and needs no second run for a good file."""
    assert import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), "--strict").startswith("1 rows read: 1 imported")


def test_an_interrupted_import_leaves_the_database_as_it_was(transactional_db, csv_file, import_file, monkeypatch):
    """After half an import a user would not know which rows are missing."""
    monkeypatch.setattr(command, "BATCH", 2)
    with interrupted(at=3):
        import_file(csv_file(*[["Bath", 3, price, "1/1/2026"] for price in range(10)]))

    assert not any(everything())


def test_rows_are_written_during_reading_and_rolled_back_if_the_file_is_damaged(transactional_db, tmp_path, import_file, monkeypatch):
    """Memory does not grow with the file, and a truncated file leaves nothing behind."""
    monkeypatch.setattr(command, "BATCH", 2)
    file = tmp_path / "listings.csv"
    file.write_bytes(b"City,Rooms,Price,Date\n" + b"".join(b"Bath,3,%d,1/1/2026\n" % price for price in range(1_000)) + b"Bath,3,\xff,1/1/2026\n")
    written = []

    def count(execute, sql, params, many, context):
        written.extend([sql] * sql.startswith('INSERT INTO "housing_property"'))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count), pytest.raises(CommandError, match="is not UTF-8: byte 0xff after line"):
        import_file(file)

    assert len(written) > 100
    assert not any(everything())


# The two included mappings


MELBOURNE = "Suburb,Address,Rooms,Type,Price,Method,SellerG,Date,Distance,Postcode,Bedroom2,Bathroom,BuildingArea,CouncilArea,Lattitude,Longtitude,Regionname"


def test_the_melbourne_mapping_reads_day_first_dates_two_kinds_of_missing_and_agencies_in_any_case(db, tmp_path, import_file):
    """A wrong reading would swap day and month, refuse good rows, or store one agency twice."""
    file = tmp_path / "melbourne.csv.gz"
    rows = [
        MELBOURNE,
        "Fernhill,1/2 Wattle Gr,3,t,1480000,S,MARLOWE,3/09/2016,7.5,0800,2,1,110.575,Quarry City Council,-37.81234,145.0001,Eastern",
        "fernhill,9 Kelp St,2,u,640000,PI,Marlowe,28/10/2017,7.5,0800,,,,#N/A,,,Eastern",
        "Fernhill,9 Kelp St,2,u,,S,Marlowe,28/10/2017,7.5,0800,,,,#N/A,,,Eastern",
        "Fernhill,9 Kelp St,2,u,640000,W,Marlowe,28/10/2017,#N/A,#N/A,,,,#N/A,,,Eastern",
    ]
    file.write_bytes(gzip.compress("\r\n".join(rows).encode()))

    said = import_file(file, by=MAPPINGS / "melbourne.toml")

    assert said.startswith("4 rows read: 2 imported, 0 already there, 2 refused:")
    assert "1 × location.zip_code, column 'Postcode': expected a value\n    1 × '#N/A' (line 5)\n" in said
    whole, sparse = Property.objects.order_by("created_at")
    assert (whole.title, whole.property_type, whole.status, whole.area) == ("3 rooms at 1/2 Wattle Gr, Fernhill", "townhouse", "sold", Decimal("110.58"))
    assert (whole.created_at.month, whole.created_at.day, whole.bedrooms, whole.location.zip_code) == (9, 3, 2, "0800")
    assert (sparse.property_type, sparse.status, sparse.description, sparse.bedrooms) == ("apartment", "available", None, None)
    assert (sparse.agent, sparse.agent.office.name, sparse.location.city) == (whole.agent, "MARLOWE", "Fernhill")
    assert Location.objects.count() == 2, "with and without coordinates"


def test_the_king_county_mapping_has_defaults_for_missing_columns(db, tmp_path, import_file):
    """The file has no city and no agent, but every property needs both."""
    file = tmp_path / "kc.csv"
    file.write_text(
        "id,date,price,bedrooms,bathrooms,sqft_living,sqft_lot,floors,condition,grade,yr_built,zipcode,lat,long\n"
        '"0012300450","20141103T000000",1.225e+006,33,2.25,1000,5000,"1.5",3,7,1955,"00123",47.5,-122.25\n',
        encoding="utf-8",
    )

    import_file(file, by=MAPPINGS / "king_county.toml")

    home = Property.objects.get()
    assert (home.price, home.bedrooms, home.bathrooms, home.area) == (1_225_000, 33, Decimal("2.25"), Decimal("92.90"))
    assert home.title == "33 bedroom house in 00123, built in 1955"
    assert home.description is not None
    assert "Parcel 0012300450." in home.description
    assert home.created_at == datetime.datetime(2014, 11, 3, tzinfo=datetime.UTC)
    assert (home.property_type, home.status, home.location.city, home.location.zip_code) == ("house", "sold", "King County", "00123")
    assert (home.location.longitude, home.agent.name, home.agent.office.city) == (Decimal("-122.25"), "King County Assessor", "Seattle")


# The output of seed and import


@pytest.fixture
def act(csv_file, import_file) -> dict[str, Callable[..., str]]:
    """Both commands, ready to run."""
    file = csv_file(["Bath", 3, 100, "1/1/2026"])
    return {"seed": lambda **options: run("seed", properties=2, **options), "import_listings": lambda **options: import_file(file, **options)}


@pytest.mark.parametrize("name", ["seed", "import_listings"])
def test_progress_is_shown_on_a_terminal_only(db, act, monkeypatch, name):
    """A log file or a pipe needs the summary, not a hundred progress bars."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    act[name]()
    assert "100%" in terminal.getvalue()


@pytest.mark.parametrize("name", ["seed", "import_listings"])
def test_no_progress_is_written_to_a_pipe(db, act, capfd, name):
    """A script may treat output on stderr as a failure, and a log would be full of progress bars."""
    act[name]()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["seed", "import_listings"])
def test_verbosity_0_is_silent_on_a_terminal(db, act, monkeypatch, name):
    """A script that only checks the exit code needs no text. Django's own commands have the same option."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert act[name](verbosity=0) == ""
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("name", ["seed", "import_listings"])
def test_a_database_error_is_one_clear_error(db, act, name):
    """Examples are a missing table, a lock timeout, and an unreachable Redis."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE housing_property RENAME TO elsewhere")

    with pytest.raises(CommandError, match=r"Nothing was .* Database error: .*housing_property"):
        act[name]()


@pytest.mark.parametrize(("name", "tells"), [("seed", "--replace"), ("seed", "Refuses"), ("import_listings", "--strict"), ("import_listings", "adds nothing")])
def test_help_explains_a_second_run(capsys, name, tells):
    """A user should know before the second run whether it adds, replaces or refuses rows."""
    with pytest.raises(SystemExit):
        call_command(name, "--help")
    assert tells in " ".join(capsys.readouterr().out.split())
