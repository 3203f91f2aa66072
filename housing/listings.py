"""Reads listings from a CSV file, row by row, with a mapping of columns to fields.

A mapping is a TOML file; `mappings/` has two examples. This module does not use the database.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import re
import string
import tomllib
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, DecimalException
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.operations import BaseDatabaseOperations

from housing.models import Agent, Location, Office, Property

MODELS: dict[str, type[models.Model]] = {"office": Office, "agent": Agent, "location": Location, "property": Property}
"""The tables of a mapping, and the model of each."""

OURS = {"id", "updated_at", "record_hash"}
"""Fields that are never imported."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""Numbers such as `1.225e+006`. Python's own parser also accepts `nan` and `1_000`."""

Record = dict[str, str]
"""A row of the file: column → cell."""

Listing = dict[type[models.Model], dict[str, Any]]
"""A validated row: model → field → value."""


class Unusable(Exception):
    """The file or the mapping is invalid. The message says which, why, and what to do."""


class Refused(Exception):
    """A row is refused. The message is about this row; rows of one `kind` are refused for the same reason."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# The file


class Row(NamedTuple):
    """A row with its first line number and the byte position after it."""

    line: int
    cells: list[str]
    position: int


def rows(path: Path) -> Generator[Row, None, None]:
    """Yield the rows of a CSV file (UTF-8, plain or gzip): the header, then at least one more. Blank lines are skipped.

    The file is streamed. Raises Unusable at the first position that cannot be read.
    """
    line = count = 0
    try:
        with path.open("rb") as file, _text(path, file) as text:
            reader = csv.reader(text, strict=True)
            for cells in reader:
                if any("\0" in cell for cell in cells):
                    raise Unusable(f"{path} has a NUL byte in line {line + 1}, so it is not UTF-8 text.")
                if cells:
                    count += 1
                    yield Row(line + 1, cells, file.tell())
                line = reader.line_num
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} is not UTF-8: byte {error.object[error.start]:#04x} after line {line}. Convert it to UTF-8, for example with iconv.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable(f"{path} is damaged or truncated after line {line} ({error}). Download it again.") from error
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise Unusable(f"{path} is not valid CSV from line {line + 1} on ({error}). Look there for a quote that is not closed or not doubled.") from error
    if count == 0:
        raise Unusable(f"{path} is empty.")
    if count == 1:
        raise Unusable(f"{path} has a header and no rows.")


def _text(path: Path, file: io.BufferedReader) -> io.TextIOWrapper:
    """Return the text of a plain or gzip file. The content decides, but a file named .gz must be gzip."""
    zipped = file.peek(2).startswith(b"\x1f\x8b")
    if path.suffix == ".gz" and not zipped:
        raise Unusable(f"{path} has the suffix .gz but is not gzip. Compress it, or rename it to .csv.")
    return io.TextIOWrapper(gzip.GzipFile(fileobj=file) if zipped else file, encoding="utf-8-sig", newline="")


def record(header: list[str], cells: list[str]) -> Record:
    """Return a row by column. Raises Refused if it does not have one cell for each column."""
    if len(cells) != len(header):
        which = "fewer" if len(cells) < len(header) else "more"
        raise Refused(which, f"{which} cells than columns: {len(cells)} instead of {len(header)}")
    return dict(zip(header, cells, strict=True))


# The mapping


@dataclass(frozen=True)
class Rule:
    """The rule that fills one field. The attributes after `missing` are the keys of a mapping."""

    name: str
    field: models.Field[Any, Any]
    missing: frozenset[str] = frozenset()
    column: str | None = None
    template: str | None = None
    default: str | None = None
    values: dict[str, str] | None = None
    factor: Decimal | None = None
    date: str | None = None
    fold: bool = False
    required: bool = False

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """The parts of its text: literal text and the column that follows it, if there is one."""
        if self.template is None:
            return [] if self.column is None else [("", self.column)]
        return [(before, column) for before, column, *_ in string.Formatter().parse(self.template)]

    @cached_property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return [column for _, column in self.parts if column is not None]

    def value(self, record: Record) -> Any:
        """Return the value of the field for a row; None if the cell is missing. Raises Refused."""
        cells = {column: record[column].strip() for column in self.columns}
        if not cells or not self.missing.isdisjoint(cells.values()):
            return self._value_of_missing()
        text = "".join(before + cells.get(column or "", "") for before, column in self.parts)
        if self.values is None:
            return self.convert(text, self.factor)
        if text not in self.values:
            raise Refused(f"{self.name} unlisted", f"{self.name}: {text!r} is not in the mapping's values")
        return self.convert(self.values[text])

    def _value_of_missing(self) -> Any:
        if self.default is not None:
            return self.convert(self.default)
        if self.required or not self.field.null:
            raise Refused(f"{self.name} missing", f"{self.name}: {' or '.join(self.columns)} is missing")
        return None

    def convert(self, text: str, factor: Decimal | None = None) -> Any:
        """Return a text as a valid value of the field. A number is multiplied by `factor`. Raises Refused."""
        try:
            return self.field.clean(self._typed(text, factor or Decimal(1)), None)
        except ValidationError as error:
            raise self._refused(text, str(error.error_list[0].code), " ".join(error.messages)) from None

    def _typed(self, text: str, factor: Decimal) -> Any:
        match self.field:
            case models.DecimalField(decimal_places=places):
                return self._decimal(text, factor, places)
            case models.IntegerField():
                return self._whole(text)
            case models.DateTimeField():
                return self._moment(text)
        return text

    def _number(self, text: str) -> Decimal:
        if not NUMBER.fullmatch(text):
            raise self._refused(text, "number", "not a number")
        return Decimal(text)

    def _decimal(self, text: str, factor: Decimal, places: int) -> Decimal:
        try:
            return (self._number(text) * factor).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
        except DecimalException:
            raise self._refused(text, "range", "too many digits") from None

    def _whole(self, text: str) -> int:
        low, high = BaseDatabaseOperations.integer_field_ranges[self.field.get_internal_type()]  # PostgreSQL's; SQLite has none
        number = self._number(text)
        if not low <= number <= high:
            raise self._refused(text, "range", f"not between {low} and {high}")
        if number % 1:
            raise self._refused(text, "whole", "not a whole number")
        return int(number)

    def _moment(self, text: str) -> datetime.datetime:
        try:
            return datetime.datetime.strptime(text, self.date or "").replace(tzinfo=datetime.UTC)
        except ValueError:
            raise self._refused(text, "date", f"not a date in the format {self.date}") from None

    def _refused(self, text: str, kind: str, what: str) -> Refused:
        return Refused(f"{self.name} {kind}", f"{self.name} {text!r}: {what}")


ANY_FIELD: dict[str, type | tuple[type, ...]] = {"column": str, "default": (str, int, Decimal), "required": bool}
TEXT_FIELD = ANY_FIELD | {"template": str, "values": dict}
SHARED_TEXT_FIELD = TEXT_FIELD | {"fold": bool}
DECIMAL_FIELD = ANY_FIELD | {"factor": (int, Decimal)}
DATE_FIELD = ANY_FIELD | {"date": str}


def keys_for(field: models.Field[Any, Any]) -> dict[str, type | tuple[type, ...]]:
    """Return the keys that a mapping may have for a field, and the types of their values."""
    match field:
        case models.DecimalField():
            return DECIMAL_FIELD
        case models.IntegerField():
            return ANY_FIELD
        case models.DateTimeField():
            return DATE_FIELD
    return TEXT_FIELD if field.model is Property else SHARED_TEXT_FIELD


@dataclass(frozen=True)
class Mapping:
    """The rules of a mapping, by model and field. A field without a rule becomes None."""

    path: Path
    rules: dict[type[models.Model], dict[str, Rule]]

    @classmethod
    def load(cls, path: Path) -> Mapping:
        """Read a mapping. Raises Unusable if it is invalid."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
        except OSError as error:
            raise Unusable(f"{path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Unusable(f"{path} is not valid TOML: {error}.") from error
        try:
            return cls(path, _rules(tables))
        except Unusable as error:
            raise Unusable(f"{path}: {error}") from None

    def check(self, header: list[str]) -> None:
        """Raise Unusable unless the header has each column of the mapping, and no column twice."""
        if twice := sorted({column for column in header if header.count(column) > 1}):
            raise Unusable(f"The file has two columns named {twice[0]!r}. Rename one.")
        for rule in (rule for rules in self.rules.values() for rule in rules.values()):
            for column in rule.columns:
                if column not in header:
                    raise Unusable(f"{self.path}: {rule.name} needs the column {column!r}, but the file has {', '.join(header)}.")

    def listing(self, record: Record) -> Listing:
        """Return the validated row. Raises Refused at the first invalid field."""
        return {model: {name: rule.value(record) for name, rule in rules.items()} for model, rules in self.rules.items()}


def _rules(tables: dict[str, Any]) -> dict[type[models.Model], dict[str, Rule]]:
    if unknown := sorted(tables.keys() - MODELS.keys() - {"missing"}):
        raise Unusable(f"there is no table {unknown[0]!r}. Use missing, {', '.join(MODELS)}.")
    missing = tables.get("missing", [""])
    if not isinstance(missing, list) or not all(isinstance(marker, str) for marker in missing):
        raise Unusable('missing must be a list of texts, such as missing = ["", "n/a"].')
    return {model: _rules_of_model(label, model, tables.get(label, {}), frozenset(missing)) for label, model in MODELS.items()}


def _rules_of_model(label: str, model: type[models.Model], table: Any, missing: frozenset[str]) -> dict[str, Rule]:
    if not isinstance(table, dict):
        raise Unusable(f"{label} is not a table. Write [{label}] with its fields below.")
    fields = {field.name: field for field in model._meta.concrete_fields if not (field.is_relation or field.name in OURS)}
    if unknown := sorted(table.keys() - fields.keys()):
        raise Unusable(f"[{label}] has no field {unknown[0]!r}. Its fields are {', '.join(fields)}.")
    if gap := [name for name, field in fields.items() if not field.null and name not in table]:
        raise Unusable(f'{label}.{gap[0]} is required. Write {gap[0]}.column = "…", or {gap[0]}.default = "…" if the file has no such column.')
    return {name: _rule(f"{label}.{name}", field, table[name], missing) if name in table else Rule(f"{label}.{name}", field) for name, field in fields.items()}


def _rule(name: str, field: models.Field[Any, Any], table: Any, missing: frozenset[str]) -> Rule:
    allowed = keys_for(field)
    if not isinstance(table, dict):
        raise Unusable(f'{name} is {table!r}. Write {name}.column = "…" for a column, or {name}.default = "…" for the same value in every row.')
    if unknown := sorted(table.keys() - allowed.keys()):
        raise Unusable(f"{name} has no key {unknown[0]!r}. Its keys are {', '.join(allowed)}.")
    if wrong := [key for key, value in table.items() if not _fits(value, allowed[key])]:
        raise Unusable(f"{name}.{wrong[0]} cannot be {table[wrong[0]]!r}.")
    if "default" in table:
        table = table | {"default": str(table["default"])}
    rule = Rule(name, field, missing, **table)
    _check(rule)
    return rule


def _fits(value: Any, kind: type | tuple[type, ...]) -> bool:
    if isinstance(value, dict):
        return kind is dict and all(isinstance(text, str) for text in value.values())
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))  # in Python, True is a number, too


def _check(rule: Rule) -> None:
    """Raise Unusable for a rule that cannot fill its field."""
    if None not in (rule.column, rule.template) or (rule.column, rule.template, rule.default) == (None, None, None):
        raise Unusable(f"{rule.name} needs either a column or a template, or a default.")
    if isinstance(rule.field, models.DateTimeField) and not _tells_the_day(rule.date or ""):
        raise Unusable(f'{rule.name}.date is {rule.date!r}. It must be a format with day, month and year, such as "%d/%m/%Y".')
    try:
        _ = rule.columns
    except ValueError as error:
        raise Unusable(f"{rule.name}.template is {rule.template!r}: {error}.") from None
    try:
        for text in (*(rule.values or {}).values(), rule.default):
            if text is not None:
                rule.convert(text)
    except Refused as refused:
        raise Unusable(f"{refused}.") from None


def _tells_the_day(written: str) -> bool:
    day, years_later = datetime.date(2013, 11, 28), datetime.date(2019, 11, 28)  # the same weekday and the same day of the year
    try:
        if day.strftime(written) == years_later.strftime(written):
            return False  # strptime would guess the year, with a warning since Python 3.13
        if re.search(r"%:?[zZ]", written):
            return False  # a date is kept without a zone; from Python 3.15 on strptime lets an empty one pass
        return datetime.datetime.strptime(day.strftime(written), written).replace(tzinfo=datetime.UTC).date() == day
    except (ValueError, re.error):
        return False
