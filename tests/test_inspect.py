"""Inspecting. A command looks at a file of listings and writes a first mapping for it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable

import pytest
from django.core.management import CommandError

from housing.models import Property
from tests.fixtures.commands import HEADER, run


@pytest.fixture
def inspected(tmp_path, csv_file) -> Callable[..., dict]:
    """`inspected({"Price": ["$1", …]})`: the mapping that the command writes for a file with these columns, with its text."""

    def act(columns: dict[str, list[str]]) -> dict:
        text = run("inspect_listings", csv_file(*zip(*columns.values(), strict=True), header=list(columns)))
        return tomllib.loads(text) | {"text": text}

    return act


def test_the_mapping_that_is_written_imports_the_file(db, tmp_path, import_file):
    """A user starts with something that works, and improves it."""
    columns = "Listing ID;Titel;Town;Postcode;Lat;Agency;Agent;Type;State of sale;Asking price;Beds;Living area;Listed on;Photos\r\n"
    row = "{};Home;Örebro;01234;59,27;ACME;Ann;{};sold;€ 1.250.{}00,-;{} beds;180 m²;28.11.2026;https://example.org/1.jpg\r\n"
    rows = "".join(row.format(number, ["house", "flat"][number % 2], number, number) for number in range(1, 9))
    (tmp_path / "listings.csv").write_text("Our listings\r\n" + columns + rows, encoding="cp1252")

    (tmp_path / "mapping.toml").write_text(run("inspect_listings", tmp_path / "listings.csv"), encoding="utf-8")
    said = import_file(tmp_path / "listings.csv", by=tmp_path / "mapping.toml")

    assert said == "8 rows read: 8 imported, 0 already there, 0 refused.\n"
    home = Property.objects.get(source_id="3")
    assert (home.price, home.bedrooms, home.area, home.property_type, home.status) == (1_250_300, 3, 180, "apartment", "sold")
    assert (home.location.city, home.location.zip_code, home.agent.office.name, home.created_at.month) == ("Örebro", "01234", "ACME", 11)
    assert [image.url for image in home.images.all()] == ["https://example.org/1.jpg"]


def test_a_required_field_without_a_column_has_a_default_with_a_comment(db, tmp_path, csv_file, import_file):
    """The mapping is valid without it, and the user sees what to look for."""
    file = csv_file(["100"], ["200"], header=["Price"])
    (tmp_path / "mapping.toml").write_text(text := run("inspect_listings", file), encoding="utf-8")

    assert import_file(file, by=tmp_path / "mapping.toml").startswith("2 rows read: 2 imported")
    lines = [line for line in text.splitlines() if line.endswith("# the file has no such column")]
    assert [line.partition(" ")[0].removesuffix(".default") for line in lines] == ["name", "name", "city", "title", "property_type", "status", "created_at"]


def test_a_file_without_a_price_needs_one_line_more(db, tmp_path, csv_file, import_file):
    """There is no default for a price. The error of the import says what to write."""
    file = csv_file(["Bath"], header=["City"])
    (tmp_path / "mapping.toml").write_text(run("inspect_listings", file), encoding="utf-8")

    with pytest.raises(CommandError, match=r"property\.price is required\. Write price\.column = "):
        import_file(file, by=tmp_path / "mapping.toml")


@pytest.mark.parametrize(
    ("column", "cells", "rule"),
    [
        ("Price", ["1250", "1.5"], {}),
        ("Price", ["$1,250", "$900.50"], {"number": {"thousands": ",", "strip": ["$"]}}),
        ("Price", ["1.250,00 EUR", "900,5 EUR"], {"number": {"thousands": ".", "decimal": ",", "strip": ["EUR"]}}),
        ("Price", ["KSh 220 000", "KSh 80 000"], {"number": {"thousands": " ", "decimal": ",", "strip": ["KSh"]}}),
        ("Price", ["1’250’000", "900"], {"number": {"thousands": "'"}}),
        ("Price", ["$1.2M", "$450k"], {"number": {"strip": ["$"], "units": {"M": 1_000_000, "k": 1_000}}}),
        ("Beds", ["1 bed", "3+ beds"], {"number": {"strip": ["bed", "beds"], "range": "low"}}),
        ("Sq ft", ["1200", "2100 - 2850", "34 Sq. Meter"], {"number": {"units": {"Sq. Meter": 10.76391042}, "range": "low"}, "factor": 0.09290304}),
        ("Area", ["180 m2", "2 acres"], {"number": {"units": {"acres": 4046.85642240, "m2": 1}}}),
        ("Date", ["2026-11-28", "2026-11-01T10:00:00+01:00"], {"date": "iso"}),
        ("Date", ["28/11/2026", "1/2/2026"], {"date": "%d/%m/%Y"}),
        ("Date", ["11/28/2026", "1/2/2026"], {"date": "%m/%d/%Y"}),
        ("Date", ["28.11.2026 10:00", "1.2.2026 9:30"], {"date": "%d.%m.%Y %H:%M"}),
        ("Date", ["1/2/2026", "3/4/2026"], {"date": ["%d/%m/%Y", "%m/%d/%Y"]}),
        ("Date", ["1st of May 2026", "2nd of May 2026"], {"date": "…"}),
    ],
)
def test_the_format_of_a_column_is_read_off_its_cells(inspected, column, cells, rule):
    """Most of the work of a mapping is to find out how each column is written."""
    written = inspected({column: cells, "City": ["Bath"] * len(cells)})["property"]
    field = {"Price": "price", "Beds": "bedrooms", "Sq ft": "area", "Area": "area", "Date": "created_at"}[column]
    assert written[field] == {"column": column} | rule


@pytest.mark.parametrize(
    ("column", "cells", "remark"),
    [
        ("Date", ["1/2/2026", "3/4/2026"], "the sample can be read in both ways: keep one"),
        ("Price", ["1,250", "2,300"], 'or decimal = ",": the sample can be read in two ways'),
        ("Date", ["1st of May 2026"], "no known format; use those of Python's strptime"),
        ("Area sqft", ["1200"], "square feet"),
    ],
)
def test_a_guess_has_a_comment(inspected, column, cells, remark):
    """A user trusts a line without a comment."""
    [line] = [line for line in inspected({column: cells})["text"].splitlines() if column in line and "=" in line]
    assert line.endswith(f"  # {remark}")


def test_values_are_listed_with_their_counts_and_unknown_ones_are_left_to_the_user(inspected):
    """A wrong guess would be imported without an error. A value that is commented out is refused, with its count."""
    written = inspected({"Type": ["Detached house", "Condo", "Condo", "Castle"], "Price": ["1"] * 4})

    assert written["property"]["property_type"] == {"column": "Type", "values": {"Condo": "apartment", "Detached house": "house"}}
    assert '"Condo" = "apartment"  # 2 rows' in written["text"]
    assert '# "Castle" = "…"  # 1 rows' in written["text"]


def test_texts_of_missing_cells_and_unused_columns_are_shown(inspected):
    """A column without a line in the mapping is easily forgotten."""
    written = inspected({"Price": ["1", "N/A"], "Broadband": ["", "fast"]})
    assert written["missing"] == ["", "N/A"]
    assert written["text"].endswith('# Columns that this mapping does not use, with their first values:\n#   "Broadband": "fast"\n')


def test_an_id_that_repeats_is_not_taken_for_that_of_the_source(inspected):
    """Two rows with one id cannot both be imported."""
    assert "source_id" not in inspected({"ID": ["1", "1"], "Price": ["1", "2"]})["property"]
    assert inspected({"ID": ["1", "2"], "Price": ["1", "2"]})["property"]["source_id"] == {"column": "ID"}


def test_a_title_is_made_of_rooms_and_place_if_the_file_has_none(inspected):
    """Each property needs a title."""
    assert inspected({"Beds": ["1"], "City": ["Bath"]})["property"]["title"] == {"template": "{Beds} bedrooms in {City}"}


def test_inspecting_reads_the_beginning_of_a_file_and_no_database(tmp_path):
    """A large file, or one that is being downloaded, need not be read to its end."""
    (tmp_path / "listings.csv").write_text(",".join(HEADER) + "\n" + "Bath,3,100,1/1/2026\n" * 1_500, encoding="utf-8")
    assert "from its first 1,000 rows" in run("inspect_listings", tmp_path / "listings.csv")


@pytest.mark.parametrize(("content", "complaint"), [(b"", "is empty"), (b"[{}]", "is JSON. Convert it to CSV"), (b"a,b\n\x81,1\n", "is not CP1252: byte 0x81")])
def test_a_file_that_cannot_be_inspected_is_one_clear_error(tmp_path, content, complaint):
    """The errors are those of the import."""
    (file := tmp_path / "listings.csv").write_bytes(content)
    with pytest.raises(CommandError, match=complaint):
        run("inspect_listings", file)
