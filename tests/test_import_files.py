"""Files to import. A file is read as a portal exports it: with any delimiter, in any encoding that is declared, compressed, or from a pipe."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.management import CommandError

from housing import tables
from housing.models import Location, Property
from tests.fixtures.commands import HEADER, everything
from tests.fixtures.processes import python

# Unreadable files


UNREADABLE = {
    "an empty file": ("e.csv", b"", "is empty"),
    "an empty gzip file": ("e.csv.gz", gzip.compress(b""), "is empty"),
    "blank lines alone": ("e.csv", b"\r\n\r\n", "is empty"),
    "a header alone": ("h.csv", b"City,Rooms,Price,Date\n", "has a header and no rows"),
    "plain text named .gz": ("n.csv.gz", b"City,Rooms,Price,Date\nBath,3,100,1/1/2026\n", "has the suffix .gz but is not gzip"),
    "Latin-1": ("l.csv", "City,Rooms,Price,Date\nÖrebro,3,100,1/1/2026\n".encode("latin-1"), "is not UTF-8: byte 0xd6 after line 0"),
    "UTF-16 without a byte order mark": ("u.csv", "City,Rooms\nBath,3\n".encode("utf-16-le"), "has a NUL byte in line 1, so it is not text in utf-8"),
    "a NUL byte": ("z.csv", b"City,Rooms,Price,Date\nBath,3,1\x0000,1/1/2026\n", "has a NUL byte in line 2"),
    "gzip cut off": ("t.csv.gz", gzip.compress(b"City,Rooms,Price,Date\n" + b"Bath,3,100,1/1/2026\n" * 9)[:-12], "is damaged or truncated after line"),
    "gzip with other bytes after it": ("g.csv.gz", gzip.compress(b"City,Rooms,Price,Date\nBath,3,100,1/1/2026\n") + b"x", "is damaged or truncated"),
    "gzip that is damaged": ("d.csv.gz", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20, "is damaged or truncated"),
    "a quote left open": ("q.csv", b'City,Rooms,Price,Date\nBath,3,100,1/1/2026\n"Wells,3,100,1/1/2026\n', "is not valid CSV from line 3 on"),
    "a column twice": (
        "c.csv",
        b"City,Rooms,Price,Date,City\nBath,3,100,1/1/2026,Wells\n",
        "The file has two columns named 'City'. Write 'City (1)' or 'City (2)' in the mapping.",
    ),
    "another header": (
        "o.csv",
        b"Town;Rooms\nBath;3\n",
        "the file has no column 'City' (location.city, property.title), no column 'Price' (property.price), no column 'Date' (property.created_at). Its",
    ),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_file_is_one_clear_error(transactional_db, tmp_path, import_file, what):
    """A traceback would not show the user how to repair the file, and an import of its readable part would look complete."""
    name, content, complaint = UNREADABLE[what]
    (tmp_path / name).write_bytes(content)

    with pytest.raises(CommandError, match=r"Nothing was imported\. ") as refused:
        import_file(tmp_path / name)

    assert complaint in str(refused.value)
    assert not any(everything())


def test_a_missing_file_is_one_clear_error(db, tmp_path, import_file):
    """A traceback would hide that only the path is wrong."""
    with pytest.raises(CommandError, match=r"Nothing was imported\. .*none\.csv cannot be read: No such file or directory\."):
        import_file(tmp_path / "none.csv")


def test_a_directory_is_refused(db, tmp_path, import_file):
    """Completion in a shell often ends at the folder. The user then needs a hint and no traceback."""
    with pytest.raises(CommandError, match="cannot be read: Is a directory"):
        import_file(tmp_path)


def test_gzip_is_recognized_by_content(db, csv_file, import_file):
    """A download may be compressed and still be named `.csv`."""
    file = csv_file(["Bath", 3, 100, "1/1/2026"])
    file.write_bytes(gzip.compress(file.read_bytes()))

    assert import_file(file).startswith("1 rows read: 1 imported")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_breaks_in_quoted_cells_and_unicode_letters_are_kept(db, tmp_path, import_file, end):
    """A byte order mark is not part of the first column's name, and blank lines are skipped."""
    file = tmp_path / "listings.csv"
    file.write_bytes(b"\xef\xbb\xbfCity,Rooms,Price,Date" + end + '"San\r\n""José"", 東京 \U0001f3e0",3,100,1/1/2026'.encode() + end + end)

    assert import_file(file).startswith("1 rows read: 1 imported")
    assert Location.objects.get().city == 'San\r\n"José", 東京 \U0001f3e0'


# Files as portals export them


ROWS = [HEADER, ["Örebro", "3", "100", "1/1/2026"], ["Wells", "2", "90", "2/1/2026"]]
"""A header and two rows."""


def joined(delimiter: str, *above: str, end: str = "\r\n") -> str:
    """The rows as text, below these lines."""
    return end.join([*above, *(delimiter.join(row) for row in ROWS), ""])


def packed(*files: tuple[str, str | bytes]) -> bytes:
    """A zip archive of these files."""
    with zipfile.ZipFile(archive := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in files:
            made.writestr(name, text)
    return archive.getvalue()


EXPORTED = {
    "semicolons": joined(";").encode(),
    "tabs": joined("\t").encode(),
    "bars": joined("|").encode(),
    "Excel's sep=": joined(";", "sep=;").encode(),
    "an unusual delimiter after sep=": joined("^", "sep=^").encode(),
    "UTF-8 with a byte order mark": joined(",").encode("utf-8-sig"),
    "UTF-16 with tabs, Excel's Unicode text": joined("\t").encode("utf-16"),
    "big-endian UTF-16": b"\xfe\xff" + joined(",").encode("utf-16-be"),
    "a title above the header": joined(";", "Listings of January; all prices in euros", "").encode(),
    "a title of several lines": joined(",", "Export", '"Homes, flats', 'and land",,,', ",,,").encode(),
    "old Mac line ends": joined(",", end="\r").encode(),
    "other case and spaces in the header": joined(",").replace("City,Rooms", " CITY ,rooms").encode(),
    "rows of empty cells": joined(",").encode() + b",,,\r\n,,,\r\n",
    "gzip": gzip.compress(joined(";").encode()),
    "a zip archive": packed(("listings.csv", joined(",")), ("__MACOSX/._listings.csv", "x"), ("folder/", "")),
    "a zip archive of UTF-16": packed(("listings.csv", joined(",").encode("utf-16"))),
}
"""Kind → the bytes of a file. All have the same rows."""


@pytest.mark.parametrize("kind", EXPORTED)
def test_a_file_is_read_as_it_was_exported(db, tmp_path, import_file, kind):
    """A user who must convert a file first does so in a spreadsheet program, which changes dates and leading zeros."""
    (tmp_path / "listings.csv").write_bytes(EXPORTED[kind])
    assert import_file(tmp_path / "listings.csv").startswith("2 rows read: 2 imported, 0 already there, 0 refused")

    assert sorted(Property.objects.values_list("location__city", "price")) == [("Wells", 90), ("Örebro", 100)]


def test_a_delimiter_that_is_not_recognized_is_declared(db, tmp_path, import_file, mapping):
    """Only four delimiters are tried. A wrong guess would mistake prose for columns."""
    (tmp_path / "listings.csv").write_text(joined("~"), encoding="utf-8")
    with pytest.raises(CommandError, match="the file has no column 'City'"):
        import_file(tmp_path / "listings.csv")

    assert "2 imported" in import_file(tmp_path / "listings.csv", by=mapping(("[office]", '[file]\ndelimiter = "~"\n[office]')))


def test_an_encoding_is_declared_and_never_guessed(db, tmp_path, import_file, mapping):
    """Every byte is a letter in some encoding, so a wrong guess would store wrong letters and no error."""
    (tmp_path / "listings.csv").write_bytes(joined(";").encode("cp1252"))
    with pytest.raises(CommandError, match=r"is not UTF-8: byte 0xd6 after line 0\. Write its encoding in the mapping"):
        import_file(tmp_path / "listings.csv")

    assert "2 imported" in import_file(tmp_path / "listings.csv", by=mapping(("[office]", '[file]\nencoding = "cp1252"\n[office]')))
    assert Location.objects.filter(city="Örebro").exists()


def test_columns_that_no_field_uses_may_be_unnamed_or_have_the_same_name(db, csv_file, import_file):
    """Spreadsheets have them, and they are part of the row's hash like any other."""
    header = [*HEADER, "", "", "Note", "Note"]
    file = csv_file(["Bath", 3, 100, "1/1/2026", "a", "b", "c", "d"], ["Bath", 3, 100, "1/1/2026", "a", "b", "c", "e"], header=header)

    assert import_file(file).startswith("2 rows read: 2 imported")
    assert import_file(file).startswith("2 rows read: 0 imported, 2 already there")


def test_one_of_two_columns_with_the_same_name_is_used_by_its_number(db, csv_file, import_file, mapping):
    """The file need not be edited first."""
    file = csv_file(["Bath", 3, 100, "1/1/2026", "Wells"], header=[*HEADER, "City"])
    import_file(file, by=mapping(('city.column = "City"', 'city.column = "City (2)"'), ("in {City}", "in {City (1)}")))

    assert Location.objects.get().city == "Wells"
    assert Property.objects.get().title == "3 rooms in Bath"


def test_a_column_is_found_by_its_exact_name_before_one_in_another_case(db, csv_file, import_file):
    """Two columns may differ in case alone. Without an exact one, the mapping must say which is meant."""
    import_file(csv_file(["Bath", 3, 100, "1/1/2026", "no"], header=[*HEADER, "CITY"]))
    assert Location.objects.get().city == "Bath"

    with pytest.raises(CommandError, match=r"The file has no column 'City', but 'CITY' and 'city'\. Write one of them\."):
        import_file(csv_file(["Bath", 3, 100, "1/1/2026", "no"], header=["CITY", *HEADER[1:], "city"]))


@pytest.fixture
def pipe() -> Iterator[Callable[[bytes], Path]]:
    """`pipe(content)`: the path of a pipe with this content, as in `<(iconv …)`."""
    opened: list[int] = []

    def write(content: bytes) -> Path:
        reading, writing = os.pipe()
        opened.append(reading)
        os.write(writing, content)
        os.close(writing)
        return Path(f"/dev/fd/{reading}")

    yield write
    for reading in opened:
        os.close(reading)


@pytest.mark.parametrize("kind", ["semicolons", "gzip", "a zip archive"])
def test_a_pipe_is_read_like_a_file(db, pipe, import_file, kind):
    """A pipe has neither a size nor an end to look at first, but `<(iconv …)` and `curl | …` need no temporary file."""
    assert import_file(pipe(EXPORTED[kind])).startswith("2 rows read: 2 imported")


@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
def test_standard_input_is_read_and_stays_open(db, pipe, import_file, monkeypatch, path):
    """A script may read on after the command."""
    with pipe(EXPORTED["semicolons"]).open("rb") as source:
        kept = os.dup(0)
        os.dup2(source.fileno(), 0)
        try:
            with open(0, encoding="utf-8", closefd=False) as stdin:
                monkeypatch.setattr(sys, "stdin", stdin)
                assert import_file(Path(path)).startswith("2 rows read: 2 imported")
                assert stdin.buffer.read() == b""
        finally:
            os.dup2(kept, 0)
            os.close(kept)


OTHERS = {
    "an Excel workbook": (packed(("[Content_Types].xml", ""), ("xl/workbook.xml", "")), "is a workbook. Save its sheet as CSV UTF-8"),
    "a LibreOffice sheet": (packed(("mimetype", ""), ("content.xml", "")), "is a workbook. Save its sheet as CSV UTF-8"),
    "an old Excel workbook": (b"\xd0\xcf\x11\xe0" + bytes(600), "is an old Excel workbook. Save its sheet as CSV UTF-8"),
    "a JSON array": (b'[\n  {"City": "Bath"}\n]', "is JSON. Convert it to CSV: jq -r"),
    "an object a line": (b'{"City": "Bath"}\n{"City": "Wells"}\n', "is JSON. Convert it to CSV: jq -r"),
    "JSON in gzip": (gzip.compress(b'[{"City": "Bath"}]'), "is JSON. Convert it to CSV: jq -r"),
    "HTML": (b"<html><table>", "is HTML or XML, also with a name such as listings.xls."),
    "a PDF": (b"%PDF-1.7", "is a PDF. Ask for the data as CSV."),
    "Parquet": (b"PAR1", "is Parquet. Convert it to CSV"),
    "bzip2": (b"BZh91AY", "is compressed in a format that is not read. Unpack it"),
    "a zip archive of two files": (packed(("a.csv", "x"), ("b.csv", "x")), "has 2 files: a.csv, b.csv. Unpack it, and import each."),
    "an empty zip archive": (packed(), "has 0 files: . Unpack it"),
    "a damaged zip archive": (packed(("a.csv", joined(",")))[:-9], "is damaged or truncated after line 0 (File is not a zip file)"),
    "a zip archive with a password": (
        packed(("a.csv", "x")).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
        "cannot be unpacked",
    ),
    "a line without end": (b"x" * (tables.LONGEST_LINE + 1), "has more than a million characters in line 1"),
}
"""Kind → the bytes of a file that is not read, and the advice."""


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_is_not_csv_is_recognized_and_the_error_says_what_to_do(db, tmp_path, import_file, kind):
    """Half of the files that portals send are not CSV, in spite of their names. `No column 'City'` would not help."""
    content, advice = OTHERS[kind]
    (tmp_path / "listings.csv").write_bytes(content)
    with pytest.raises(CommandError, match=r"Nothing was imported\. ") as refused:
        import_file(tmp_path / "listings.csv")

    assert advice in str(refused.value)
    assert not any(everything())


# Large files


PEAKS = """
import gc, sys, tracemalloc
from pathlib import Path
import django
django.setup()
from django.core.management import call_command
from housing.management.commands import import_listings
gc.set_threshold(100, 2, 2)
import_listings.BATCH = 10
for rows in (100, 500, 1_000):
    file = Path(sys.argv[1]) / f"{rows}.csv"
    with file.open("w") as written:
        written.write("Ref,City,Rooms,Price,Date,Photo\\n")
        for number in range(rows):
            price = f"x{number}"[number % 10 > 0 :]
            written.write(f"{rows}-{number},City {number % 400},{number % 9},{price},1/1/2026,https://example.org/{number}.jpg\\n")
    gc.freeze()
    gc.collect()
    tracemalloc.start()
    call_command("import_listings", file, mapping=Path(sys.argv[2]), verbosity=0)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""
"""A process that imports three files, and prints the peak of memory of each. The first import also loads what all need. Before
each, everything is frozen, so that the garbage collector finds little, and runs often: a peak has no garbage.
"""


def test_memory_does_not_grow_with_the_file(tmp_path, own_database, mapping):
    """A portal exports a million rows. A tenth of these are unusable, and each in its own way. The specs' own process keeps a trace, so this is another one."""
    by = mapping(("title.template", 'source_id.column = "Ref"\ntitle.template'), added='[image]\nurl.column = "Photo"\n')
    environment = {"DJANGO_SETTINGS_MODULE": "housing.settings", "DJANGO_SECRET_KEY": "any", "DATABASE_URL": own_database, "REDIS_URL": "fakeredis://"}
    said = python("-c", PEAKS, str(tmp_path), str(by), **environment)

    assert said.code == 0, said.stderr
    _, small, large = map(int, said.stdout.split())
    assert large - small < 300 * 500, f"{small:,} bytes for 500 rows, {large:,} for 1,000"  # the journal is in this process, too: 230 bytes a row
