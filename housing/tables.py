"""Opens a file of listings, and reads its rows: plain or compressed, from a path or a pipe, in the encoding and with the delimiter that it has."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

STDIN = Path("-")
"""The path that stands for standard input."""

DELIMITERS = ",;\t|"
"""The delimiters that are tried. That of the file is the one with which its header has the columns of the mapping."""

HEAD = 30
"""The number of lines among which the header is looked for."""

LONGEST_LINE = 1 << 20
"""The characters of a line. A longer one is no row of a table, and would be kept in memory."""

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks, and the encodings that they prove."""

CSV = "Save its sheet as CSV UTF-8 in Excel or LibreOffice, or run `soffice --headless --convert-to csv FILE`"
JQ = (
    "Convert it to CSV: jq -r '(map(keys) | add | unique) as $k | $k, (.[] | [.[$k[]] "  # plain-words: code
    '| if . == null then "" else tostring end]) | @csv\' FILE; '
    "with one object on each line, jq -rs"
)

OTHERS = {
    rb"\s*(\[\s*[\[{]|\{\s*\"|\[\s*\])": f"is JSON. {JQ}.",
    rb"\xd0\xcf\x11\xe0": f"is an old Excel workbook. {CSV}.",
    rb"(?i)\s*<(!doctype|html|table|\?xml)": f"is HTML or XML, also with a name such as listings.xls. Open it in a spreadsheet program. {CSV}.",
    rb"%PDF": "is a PDF. Ask for the data as CSV.",
    rb"PAR1": "is Parquet. Convert it to CSV, for example with DuckDB.",
    rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": "is compressed in a format that is not read. Unpack it, or pack it as .gz or .zip.",
}
"""Beginning of a file that is not CSV → the advice."""


class Unusable(Exception):
    """The file or the mapping is invalid. The message says which, why, and what to do."""


class Row(NamedTuple):
    """A row with its first line number and the byte position after it (0 in a pipe)."""

    line: int
    cells: list[str]
    position: int


@dataclass(frozen=True)
class Layout:
    """The keys of [file] in a mapping. Without them, the delimiter is recognized, and the encoding is UTF-8."""

    encoding: str | None = None
    delimiter: str | None = None


class Columns:
    """The columns of a header. Columns with the same name are numbered: `Date (1)`, `Date (2)`."""

    def __init__(self, header: Iterable[str]) -> None:
        names = list(header)
        self.times = Counter(name.strip() for name in names)
        numbers: Counter[str] = Counter()
        self.names = []
        for name, stripped in zip(names, map(str.strip, names), strict=True):
            numbers[stripped] += 1
            self.names.append(name if self.times[stripped] == 1 else f"{stripped or 'unnamed'} ({numbers[stripped]})")

    def find(self, wanted: str) -> int | None:
        """Return the position of a column, or None. Case and spaces only count among columns that differ in them alone."""
        if wanted in self.names:
            return self.names.index(wanted)
        if self.times[wanted] > 1:
            raise Unusable(f"The file has two columns named {wanted!r}. Write {wanted + ' (1)'!r} or {wanted + ' (2)'!r} in the mapping.")
        alike = [position for position, name in enumerate(self.names) if _folded(name) == _folded(wanted)]
        if len(alike) > 1:
            raise Unusable(f"The file has no column {wanted!r}, but {' and '.join(repr(self.names[position]) for position in alike)}. Write one of them.")
        return alike[0] if alike else None


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


def rows(path: Path, layout: Layout | None = None, wanted: Collection[str] = ()) -> Generator[Row, None, None]:
    """Yield the rows of a CSV file: the header, which has the columns that are `wanted`, then at least one more. Blank lines are skipped.

    The file is streamed. Raises Unusable at the first position that cannot be read.
    """
    layout = layout or Layout()
    done = _Progress()
    try:
        with ExitStack() as stack:
            file = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb"))
            lines = _lines(path, _text(path, file, layout, stack), done)
            yield from _rows(path, lines, layout, wanted, file, done)
    except UnicodeDecodeError as error:
        raise Unusable(_wrong_encoding(path, error, done.line, layout)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise Unusable(f"{path} is damaged or truncated after line {done.line} ({error}). Download it again.") from error
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise Unusable(f"{path} is not valid CSV from line {done.row} on ({error}). Look there for a quote that is not closed or not doubled.") from error


class _Progress:
    """The last line that was read, and the first line of the row after the last one."""

    line = 0
    row = 1


def _rows(path: Path, lines: Iterator[str], layout: Layout, wanted: Collection[str], file: IO[bytes], done: _Progress) -> Iterator[Row]:
    head = list(islice(lines, HEAD))
    delimiters, above = layout.delimiter or DELIMITERS, 0
    if head and (said := re.fullmatch(r'"?sep=(.)"?\s*', head[0])):  # Excel's own line
        delimiters, above = said[1], 1
    delimiter, skipped = _header(head[above:], delimiters, wanted)
    above += skipped
    done.row, count = above + 1, 0
    seekable = file.seekable()
    reader = csv.reader(chain(head[above:], lines), delimiter=delimiter, strict=True)
    for cells in reader:
        if any(cells):
            count += 1
            yield Row(done.row, cells, file.tell() if seekable else 0)
        done.row = above + reader.line_num + 1
    if count == 0:
        raise Unusable(f"{path} is empty.")
    if count == 1:
        raise Unusable(f"{path} has a header and no rows.")


def _header(head: list[str], delimiters: Iterable[str], wanted: Collection[str]) -> tuple[str, int]:
    """Return the delimiter, and the number of lines above the header.

    The header is the row with most of the columns that are wanted. If none are, it is as long as most rows, and has most cells with letters.
    """
    best: tuple[tuple[int, ...], str, int] = ((-1,), ",", 0)
    for delimiter in delimiters:
        found = list(_parsed(head, delimiter))
        lengths = Counter(len(cells) for _, cells in found)
        for above, cells in found:
            named = len({_folded(name) for name in wanted} & {_folded(cell) for cell in cells})
            score = (named, lengths[len(cells)] if len(cells) > 1 else 0, len({cell for cell in cells if re.search("[^\\W\\d_]", cell)}))
            if score > best[0]:
                best = score, delimiter, above
    return best[1:]


def _parsed(head: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with the number of lines above each, up to one that is not CSV or is cut off."""
    reader, above = csv.reader(head, delimiter=delimiter, strict=True), 0
    with suppress(csv.Error):
        for cells in reader:
            yield above, cells
            above = reader.line_num


def _text(path: Path, file: Any, layout: Layout, stack: ExitStack) -> io.TextIOWrapper:
    """Return the text of a file. The content decides what it is, but a file named .gz must be gzip."""
    stream, start = file, file.peek(4)
    if path.suffix == ".gz" and not start.startswith(b"\x1f\x8b"):
        raise Unusable(f"{path} has the suffix .gz but is not gzip. Compress it, or rename it to .csv.")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        stream = _only_member(path, file, stack)
    elif start.startswith(b"\x1f\x8b"):
        stream = stack.enter_context(gzip.GzipFile(fileobj=file))
    start = stream.peek(64)
    if advice := next((advice for pattern, advice in OTHERS.items() if re.match(pattern, start)), None):
        raise Unusable(f"{path} {advice}")
    marked = next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None)
    text = io.TextIOWrapper(stream, encoding=marked or layout.encoding or "utf-8", newline="")
    stack.callback(text.detach)  # otherwise it would close standard input
    return text


def _only_member(path: Path, file: IO[bytes], stack: ExitStack) -> Any:
    """Return the file in a zip archive. A pipe is copied first, because the list of files is at the end."""
    if not file.seekable():
        shutil.copyfileobj(file, copy := tempfile.TemporaryFile())  # noqa: SIM115  # it is entered below
        file = stack.enter_context(copy)
    archive = stack.enter_context(zipfile.ZipFile(file))
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if {"[Content_Types].xml", "mimetype"} & set(names):
        raise Unusable(f"{path} is a workbook. {CSV}.")
    if len(names) != 1:
        raise Unusable(f"{path} has {len(names)} files: {', '.join(names[:5])}. Unpack it, and import each.")
    try:
        return stack.enter_context(archive.open(names[0]))
    except (RuntimeError, NotImplementedError) as error:
        raise Unusable(f"{path} cannot be unpacked: {error}. Unpack it first.") from error


def _lines(path: Path, text: io.TextIOWrapper, done: _Progress) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE):
        if "\0" in line:
            raise Unusable(f"{path} has a NUL byte in line {done.line + 1}, so it is not text in {text.encoding}.")
        if len(line) == LONGEST_LINE:
            raise Unusable(f"{path} has more than a million characters in line {done.line + 1}, so it is not CSV.")
        done.line += 1
        yield line


def _wrong_encoding(path: Path, error: UnicodeDecodeError, line: int, layout: Layout) -> str:
    message = f"{path} is not {(layout.encoding or 'UTF-8').upper()}: byte {error.object[error.start]:#04x} after line {line}."
    return f'{message} Write its encoding in the mapping, such as encoding = "cp1252" in [file]; `manage.py inspect_listings` proposes one.'
