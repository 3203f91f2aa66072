"""`manage.py inspect_listings FILE`: look at a file of listings, and write a first mapping."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from housing.formats import ISO, LONGEST_NUMBER, DateFormat, NumberFormat, Unreadable
from housing.models import Property
from housing.tables import STDIN, Columns, Layout, Unusable, rows

SAMPLE = 1000
"""How many rows are looked at."""

FALLBACK = "cp1252"
"""The encoding that is proposed for a file that is not UTF-8: that of Excel in western Europe and America."""

MISSING = {"", "-", "n/a", "na", "nan", "null", "none", "#n/a", "unknown", "?"}
"""Texts, in small letters, that are taken for missing cells."""

WORDS = {
    "office.name": ("office", "agency", "brokerage", "company", "firm", "seller g", "host name"),
    "agent.name": ("agent", "agent name", "contact", "realtor", "seller g", "host name"),
    "agent.email": ("email", "agent email"),
    "location.city": ("city", "town", "suburb", "municipality", "location", "place", "neighbourhood", "neighborhood"),
    "location.state": ("state", "province", "county", "region"),
    "location.zip_code": ("zip", "zip code", "zipcode", "postcode", "postal code", "post code", "plz"),
    "location.latitude": ("latitude", "lat", "lattitude"),
    "location.longitude": ("longitude", "long", "lon", "lng", "longtitude"),
    "property.source_id": ("listing id", "property id", "mls", "id", "reference", "ref", "listing number"),
    "property.title": ("title", "headline", "address", "street", "name"),
    "property.description": ("description", "remarks", "details", "text"),
    "property.property_type": ("property type", "type", "kind", "category"),
    "property.status": ("status", "method", "state of sale"),
    "property.price": ("price", "sale price", "asking price", "list price", "amount", "rent", "cost"),
    "property.bedrooms": ("bedrooms", "beds", "bedroom", "bedroom2", "rooms", "size"),
    "property.bathrooms": ("bathrooms", "baths", "bathroom", "bath"),
    "property.area": ("area", "living area", "sqft living", "building area", "floor area", "sqft", "sq ft", "sq m", "m2", "surface", "total sqft"),
    "property.created_at": ("date", "listed", "sale date", "list date", "created", "published", "last scraped", "timestamp"),
    "image.url": ("image", "photo", "picture", "picture url", "image url", "images", "photos", "thumbnail"),
}
"""Field → the names that its column often has, the most certain first."""

MEANINGS = {
    "property.property_type": {
        "house": "house detached villa bungalow h single family residential home",
        "apartment": "apartment flat unit u condo condominium studio maisonette",
        "townhouse": "townhouse terrace terraced t row duplex",
        "land": "land lot plot acreage site",
    },
    "property.status": {
        "available": "available active for sale listed new",
        "pending": "pending reserved under contract offer",
        "sold": "sold s closed completed",
        "withdrawn": "withdrawn expired cancelled w off market",
    },
}
"""Field → its values, with the words that stand for each in a file."""

DEFAULTS = {
    "office.name": "Unknown",
    "agent.name": "Unknown",
    "location.city": "Unknown",
    "property.property_type": Property.Type.HOUSE.value,
    "property.status": Property.Status.AVAILABLE.value,
}
"""Required field → its value if the file has no column for it."""

SEPARATORS = (("", "."), (",", "."), (".", ","), (" ", ","), ("'", "."), ("", ","))
"""The separators of thousands and of decimals that are tried."""

NUMBERS = {"price", "bedrooms", "bathrooms", "area", "latitude", "longitude"}

MANY = 40
"""How many values a table of values lists."""

UNITS = {"k": Decimal(1_000), **dict.fromkeys(("m", "mio", "million"), Decimal(1_000_000))}

SQUARE_FOOT = Decimal("0.09290304")

AREAS = {
    **dict.fromkeys(("m²", "m2", "sqm", "sq m", "sq. m", "sq. meter", "qm"), Decimal(1)),
    **dict.fromkeys(("sqft", "sq ft", "sq. ft", "sq.ft.", "square feet", "ft²", "ft2"), SQUARE_FOOT),
    **dict.fromkeys(("sq. yards", "sq yd", "yd²"), 9 * SQUARE_FOOT),
    **dict.fromkeys(("acre", "acres"), 43_560 * SQUARE_FOOT),
    **dict.fromkeys(("ha", "hectare", "hectares"), Decimal(10_000)),
}
"""Unit of area, in small letters → square metres."""

DIGITS = r"\d(?:[\d\s.,'’]*\d)?"
NUMBER = re.compile(rf"(\D*?)[+-]?{DIGITS}((?:\s*[-–]\s*|\s+to\s+)\D{{0,3}}{DIGITS}|\s*\+)?\s*(.*)")
"""Text before a number, the end of a range, and text behind it."""

DAYS = (
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%Y/%m/%d",
    "%d/%m/%y",
    "%m/%d/%y",
    "%d %b %Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d-%b-%y",
)
DATES = (ISO, "%Y%m%dT%H%M%S", *DAYS, *(f"{day} {time}" for day in DAYS for time in ("%H:%M", "%H:%M:%S", "%I:%M %p")), "%a %b %d %H:%M:%S %Y")
"""The formats of dates that are tried."""


@dataclass
class Column:
    """The cells of a column in the sample."""

    name: str
    cells: Counter[str] = field(default_factory=Counter)
    missing: set[str] = field(default_factory=set)

    @property
    def words(self) -> str:
        """The words of its name, in small letters: `SellerG` is `seller g`."""
        return " ".join(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", self.name).lower()))

    def add(self, cell: str) -> None:
        """Count a cell."""
        if cell.casefold() in MISSING:
            self.missing.add(cell)
        else:
            self.cells[cell] += 1


def looked_at(path: Path) -> tuple[Layout, list[Column], int]:
    """Return the encoding, the columns, and the number of rows that were read. Raises Unusable."""
    try:
        return _looked_at(path, Layout())
    except Unusable as unusable:
        if path == STDIN or not isinstance(unusable.__cause__, UnicodeDecodeError):
            raise
        return _looked_at(path, Layout(encoding=FALLBACK))


def _looked_at(path: Path, layout: Layout) -> tuple[Layout, list[Column], int]:
    with closing(rows(path, layout)) as found:
        columns = [Column(name) for name in Columns(next(found).cells).names]
        count = 0
        for row in islice(found, SAMPLE):
            count += 1
            for column, cell in zip(columns, row.cells, strict=False):
                column.add(cell.strip())
    return layout, columns, count


def assigned(columns: list[Column]) -> dict[str, Column]:
    """Return field → column, by the columns' names. A number needs digits, so a text column is not taken for one."""
    found: dict[str, Column] = {}
    for name, words in WORDS.items():
        able = [column for column in columns if column.cells and column.name and _suits(name, column)]
        exact = [column for word in words for column in able if column.words == word]
        partly = [column for word in words if len(word) > 3 for column in able if f" {word} " in f" {column.words} "]
        if candidates := exact or partly:
            found[name] = candidates[0]
    return found


def _suits(name: str, column: Column) -> bool:
    share = sum(count for cell, count in column.cells.items() if re.search(r"\d", cell)) / column.cells.total()
    if name.split(".")[1] in {*NUMBERS, "created_at"}:
        return share > 0.5
    if name == "property.source_id":
        return max(column.cells.values()) == 1
    return name != "image.url" or "://" in next(iter(column.cells))


# The lines of the mapping


def quoted(text: str) -> str:
    """Return a text as TOML has it."""
    return json.dumps(text, ensure_ascii=False)


def number_keys(column: Column, *, area: bool) -> tuple[list[str], str]:
    """Return the `number` and the `factor` of a column as TOML, and a remark."""
    parts = [part for cell in column.cells if len(cell) <= LONGEST_NUMBER and (part := NUMBER.fullmatch(cell))]
    before, after = ({part[group].strip() for part in parts} - {"", "-"} for group in (1, 3))
    feet = area and re.search(r"sq.*ft|feet", column.words) is not None
    known = {unit: factor / (SQUARE_FOOT if feet else 1) for unit, factor in AREAS.items()} if area else UNITS
    units = {word: round(known[word.casefold()], 8).normalize() for word in sorted(after) if word.casefold() in known}
    strip = tuple(word for word in sorted(before | (set() if area else after - units.keys())) if not re.search(r"^\d|[\d(]", word))[:MANY]
    number = NumberFormat(strip=strip, units=units, range="low" if any(part[2] for part in parts) else "")
    read = {pair: _read(column, replace(number, thousands=pair[0], decimal=pair[1])) for pair in SEPARATORS}
    fitting = [pair for pair, values in read.items() if len(values) == max(map(len, read.values()))]
    remark = next((f"  # or decimal = {quoted(pair[1])}: the sample can be read in two ways" for pair in fitting if read[pair] != read[fitting[0]]), "")
    keys = _number_as_toml(replace(number, thousands=fitting[0][0], decimal=fitting[0][1]))
    return [*keys, *([f"factor = {SQUARE_FOOT}"] if feet else [])], remark or ("  # square feet" if feet else "")


def _number_as_toml(number: NumberFormat) -> list[str]:
    units = ", ".join(f"{quoted(unit)} = {factor:f}" for unit, factor in number.units.items())
    keys = {
        "thousands": quoted(number.thousands) if number.thousands else "",
        "decimal": quoted(number.decimal) if number.decimal != "." else "",
        "strip": json.dumps(number.strip, ensure_ascii=False) if number.strip else "",
        "units": f"{{ {units} }}" if units else "",
        "range": quoted(number.range) if number.range else "",
    }
    written = ", ".join(f"{key} = {value}" for key, value in keys.items() if value)
    return [f"number = {{ {written} }}"] if written else []


def date_keys(column: Column) -> tuple[str, str]:
    """Return the `date` of a column as TOML, and a remark. Two formats that read all dates are both kept, so that a date with two readings is refused."""
    read = {written: _read(column, DateFormat(written)) for written in DATES}
    most = max(len(values) for values in read.values())
    if not most:
        return 'date = "…"', "  # no known format; use those of Python's strptime"
    fitting = [written for written, values in read.items() if len(values) == most]
    different = [written for number, written in enumerate(fitting) if all(read[written] != read[other] for other in fitting[:number])]
    if len(different) > 1:
        return f"date = {json.dumps(different)}", "  # the sample can be read in both ways: keep one"
    return f"date = {quoted(fitting[0])}", ""


def _read(column: Column, one: NumberFormat | DateFormat) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for cell in column.cells:
        try:
            values[cell] = one.read(cell)
        except Unreadable:
            continue
    return values


def lines(path: Path, layout: Layout, columns: list[Column], count: int) -> Iterator[str]:
    """Yield the lines of a first mapping."""
    found = assigned(columns)
    yield f"# A first mapping for {path.name}, from its first {count:,} rows. Check each line, then run import_listings with --dry-run."
    yield f"missing = [{', '.join(quoted(text) for text in sorted({''}.union(*(column.missing for column in columns))))}]"
    if layout.encoding:
        yield from ("", "[file]", f'encoding = "{layout.encoding}"  # the file is not UTF-8, and this is a guess: check the letters with accents')
    for table in dict.fromkeys(name.split(".")[0] for name in WORDS):
        names = [name for name in WORDS if name.startswith(f"{table}.")]
        listed = [name for name in names if name in MEANINGS and name in found]
        if body := [line for name in names if name not in listed for line in _line(name, found)]:
            yield from ("", f"[{table}]", *body)
        for name in listed:
            yield from _choices(name, found[name])
    used = {column.name for column in found.values()}
    yield from ("", "# Columns that this mapping does not use, with their first values:")
    yield from (f"#   {quoted(column.name)}: {', '.join(map(quoted, list(column.cells)[:3]))}" for column in columns if column.name not in used)


def _line(name: str, found: dict[str, Column]) -> Iterator[str]:
    """Yield the line of a field. A required field has one without a column, too."""
    field = name.split(".")[1]
    if name in found:
        keys, remark = _keys(field, found[name])
        yield f"{field} = {{ {', '.join([f'column = {quoted(found[name].name)}', *keys])} }}{remark}"
    elif field == "title":
        shown = [f"{{{found[part].name}}}" for part in ("property.bedrooms", "location.city") if part in found]
        yield f"{field}.template = {quoted(' bedrooms in '.join(shown))}" if len(shown) == 2 else f'{field}.default = "Home"  # the file has no such column'
    elif field == "created_at":
        yield f'{field} = {{ default = "{timezone.now():%Y-%m-%d}", date = "iso" }}  # the file has no such column'
    elif field == "price":
        yield f'# {field}.column = "…"  # required, and no column has a name for it'
    elif name in DEFAULTS:
        yield f"{field}.default = {quoted(DEFAULTS[name])}  # the file has no such column"


def _keys(field: str, column: Column) -> tuple[list[str], str]:
    """Return the keys of a field beside its column, and a remark."""
    if field == "created_at":
        date, remark = date_keys(column)
        return [date], remark
    if field in NUMBERS:
        return number_keys(column, area=field == "area")
    return (["fold = true"] if field in {"name", "city"} else []), ""


def _choices(name: str, column: Column) -> Iterator[str]:
    """Yield a table of values, the most frequent first. A value without a known word is a comment, and its rows are refused until somebody decides."""
    yield from ("", f"[{name}]", f"column = {quoted(column.name)}", "", f"[{name}.values]")
    for value, count in column.cells.most_common(MANY):
        words = set(re.findall(r"[a-z]+", value.lower()))
        known = next((ours for ours, theirs in MEANINGS[name].items() if words & set(theirs.split())), None)
        yield f"{quoted(value)} = {quoted(known)}  # {count:,} rows" if known else f'# {quoted(value)} = "…"  # {count:,} rows'


class Command(BaseCommand):
    """Inspects a file; see `help`."""

    help = (
        "Look at the first rows of a file of listings, and print a first mapping for import_listings. It recognizes columns by their names, and the formats of "
        "numbers and dates by their values. Each guess has a comment. The database is neither read nor written."
    )
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the file."""
        parser.add_argument("file", type=Path, metavar="FILE", help="listings, .csv, .csv.gz or .zip; - for standard input")

    def handle(self, *, file: Path, **_: Any) -> None:
        """Print the mapping. Raises CommandError if the file cannot be read."""
        try:
            self.stdout.write("\n".join(lines(file, *looked_at(file))))
        except Unusable as error:
            raise CommandError(str(error)) from error
