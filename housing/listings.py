"""Turns the rows of a file into listings, with a mapping of columns to fields.

A mapping is a TOML file; `mappings/` has two examples, and docs/importing.md all keys. This module does not use the database.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal, DecimalException
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.operations import BaseDatabaseOperations

from housing.formats import DateFormat, NumberFormat, Unreadable, complaint, only_reading
from housing.models import Agent, Location, Office, Property, PropertyImage
from housing.tables import Columns, Layout, Unusable

MODELS: dict[str, type[models.Model]] = {"office": Office, "agent": Agent, "location": Location, "property": Property}
"""The tables of a mapping that fill one row, and the model of each."""

TABLES = ("missing", "number", "file", *MODELS, "image")
"""Everything that a mapping may have at its top."""

OURS = {"id", "updated_at", "record_hash", "position"}
"""Fields that are never imported."""

PLAIN = NumberFormat()
"""The format of numbers in the mapping itself, and of a column without `number`. It reads `1250.00` and `1.225e+006`."""

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
"""In a template: a doubled brace, a column, or a single brace."""

Record = dict[str, str]
"""A row of the file: column → cell."""


class Listing(NamedTuple):
    """A validated row: model → field → value, and the fields of its images."""

    values: dict[type[models.Model], dict[str, Any]]
    images: list[dict[str, Any]]


class Fault(NamedTuple):
    """An unusable cell: its field and column, its value, and what was expected. Faults of one `kind` are counted together."""

    kind: str
    field: str
    column: str
    value: str
    expected: str


class Refused(Exception):
    """A row is refused. It has all faults of the row."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults


# The mapping


@dataclass(frozen=True)
class Rule:
    """The rule that fills one field. The attributes after `field` are the keys of a mapping."""

    name: str
    field: models.Field[Any, Any]
    missing: frozenset[str] = frozenset()
    column: str | None = None
    template: str | None = None
    default: str | None = None
    values: dict[str, str] | None = None
    otherwise: str | None = None
    factor: Decimal | None = None
    number: tuple[NumberFormat, ...] = (PLAIN,)
    date: tuple[DateFormat, ...] = ()
    split: str | None = None
    fold: bool = False
    required: bool = False

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """The parts of its text: literal text and the column that follows it, if there is one."""
        return [] if self.column is None and self.template is None else [("", self.column)] if self.template is None else list(_parts(self.template))

    @property
    def given(self) -> bool:
        """Whether the mapping has this rule."""
        return self.default is not None or bool(self.parts)

    @cached_property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return [column for _, column in self.parts if column is not None]

    def value(self, record: Record) -> Any:
        """Return the value of the field for a row; None if the cell is missing. Raises Refused."""
        text = self.text(record)
        return self._value_of_missing(record) if text is None else self._value(text)

    def texts(self, record: Record) -> list[Any]:
        """Return the values of a cell with several. Raises Refused."""
        text = self.text(record)
        parts = [] if text is None else [text] if self.split is None else text.split(self.split)
        return [self._value(part.strip()) for part in parts if part.strip()]

    def text(self, record: Record) -> str | None:
        """Return the text of its cells; None if one of them is missing."""
        cells = {column: record[column].strip() for column in self.columns}
        if not self.parts or not self.missing.isdisjoint(cells.values()):
            return None
        return "".join(before + ("" if column is None else cells[column]) for before, column in self.parts)

    def _value(self, text: str) -> Any:
        if self.values is None:
            return self.convert(text)
        if (listed := self.values.get(text, self.otherwise)) is not None:
            return self.literal(listed)
        if _is_number(self.field):
            return self.convert(text)
        raise self._refused(text, "unlisted", "one of the mapping's values")

    def _value_of_missing(self, record: Record) -> Any:
        if self.default is not None:
            return self.literal(self.default)
        if self.required or not self.field.null:
            cells = {column: record[column].strip() for column in self.columns}
            raise Refused(
                *(Fault(f"{self.name} {column} missing", self.name, column, text, "a value") for column, text in cells.items() if text in self.missing)
            )
        return None

    def literal(self, text: str) -> Any:
        """Return the value of a text of the mapping itself. Its numbers are plain and need no factor. Raises Refused."""
        return self._converted(text, (PLAIN,), None)

    def convert(self, text: str) -> Any:
        """Return the value of a cell. Raises Refused."""
        return self._converted(text, self.number, self.factor)

    def _converted(self, text: str, number: tuple[NumberFormat, ...], factor: Decimal | None) -> Any:
        try:
            return self.field.clean(self._typed(text, number, factor), None)
        except Unreadable as unreadable:
            raise self._refused(text, unreadable.kind, str(unreadable)) from None
        except ValidationError as error:
            raise self._refused(text, str(error.error_list[0].code), _expected(error, self.field)) from None

    def _typed(self, text: str, number: tuple[NumberFormat, ...], factor: Decimal | None) -> Any:
        match self.field:
            case models.DecimalField(decimal_places=places):
                return _rounded(only_reading(text, number), factor or Decimal(1), places)
            case models.IntegerField():
                return self._whole(only_reading(text, number))
            case models.DateTimeField():
                return only_reading(text, self.date)
        return text

    def _whole(self, number: Decimal) -> int:
        low, high = BaseDatabaseOperations.integer_field_ranges[self.field.get_internal_type()]  # PostgreSQL's; SQLite has none
        if not low <= number <= high:
            raise Unreadable("range", f"a number between {low} and {high}")
        if number % 1:
            raise Unreadable("whole", "a whole number")
        return int(number)

    def _refused(self, text: str, kind: str, expected: str) -> Refused:
        return Refused(Fault(f"{self.name} {kind}", self.name, ", ".join(dict.fromkeys(self.columns)), text, expected))


def _is_number(field: models.Field[Any, Any]) -> bool:
    return isinstance(field, (models.DecimalField, models.IntegerField))


def _rounded(number: Decimal, factor: Decimal, places: int) -> Decimal:
    try:
        return (number * factor).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    except DecimalException:
        raise Unreadable("range", "a number with fewer digits") from None


def _expected(error: ValidationError, field: models.Field[Any, Any]) -> str:
    """Return what a validator expects, in Django's words without the sentence around them."""
    if error.error_list[0].code == "invalid_choice":
        return f"one of {', '.join(value for value, _ in field.flatchoices)}"
    message = re.sub(r"^Ensure (this value has |that there are )|^Enter |( \(it has \d+\))?\.$", "", " ".join(error.messages))
    return message.replace("Ensure this value is", "a value")


def _parts(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield the parts of a template. A column's name may have any characters but braces. Raises ValueError for a single brace."""
    before, end = "", 0
    for found in PLACEHOLDER.finditer(template):
        before, end = before + template[end : found.start()], found.end()
        if found[1] is not None:
            yield before, found[1]
            before = ""
        elif len(found[0]) == 2:
            before += found[0][0]
        else:
            raise ValueError(f"a single {found[0]!r}; write it twice, or close the name of a column")
    yield before + template[end:], None


@dataclass(frozen=True)
class Mapping:
    """The rules of a mapping, by model and field. A field without a rule is None in a new row, and is never changed in an existing one."""

    path: Path
    rules: dict[type[models.Model], dict[str, Rule]]
    images: list[dict[str, Rule]]
    layout: Layout

    @classmethod
    def load(cls, path: Path) -> Mapping:
        """Read a mapping. Raises Unusable with all that is invalid."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=Decimal)
        except OSError as error:
            raise Unusable(f"{path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Unusable(f"{path} is not valid TOML: {error}.") from error
        complaints = Complaints()
        mapping = _mapping(path, tables, complaints)
        if complaints:
            raise Unusable("\n  ".join([f"{path}: {complaints[0]}", *complaints[1:]]))
        return mapping

    @cached_property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        rules = [rule for table in (*self.rules.values(), *self.images) for rule in table.values()]
        return list(dict.fromkeys(column for rule in rules for column in rule.columns))

    def positions(self, columns: Columns) -> dict[str, int]:
        """Return the position of each column of the mapping. Raises Unusable with all that the header does not have."""
        found = {column: columns.find(column) for column in self.columns}
        if missing := [column for column, position in found.items() if position is None]:
            named = ", ".join(f"no column {column!r} ({', '.join(self._readers(column))}{_hint(column, columns)})" for column in missing)
            raise Unusable(f"{self.path}: the file has {named}. Its columns are {', '.join(columns.names)}.")
        return {column: position for column, position in found.items() if position is not None}

    def _readers(self, column: str) -> list[str]:
        return [rule.name for table in (*self.rules.values(), *self.images) for rule in table.values() if column in rule.columns]

    def listing(self, record: Record) -> Listing:
        """Return the validated row. Raises Refused with all its faults."""
        faults: list[Fault] = []
        values: dict[type[models.Model], dict[str, Any]] = {model: {} for model in self.rules}
        for model, rules in self.rules.items():
            for name, rule in rules.items():
                try:
                    values[model][name] = rule.value(record)
                except Refused as refused:
                    faults += refused.faults
        images: list[dict[str, Any]] = []
        for table in self.images:
            try:
                images += _images(table, record)
            except Refused as refused:
                faults += refused.faults
        if faults:
            raise Refused(*faults)
        return Listing(values, [image | {"position": position} for position, image in enumerate(images)])


def _images(table: dict[str, Rule], record: Record) -> list[dict[str, Any]]:
    urls = table["url"].texts(record)
    return [{"url": url, "caption": table["caption"].value(record)} for url in urls]


def _hint(column: str, columns: Columns) -> str:
    name = re.split("[:!]", column)[0]
    return f"; a template has no formats: write {{{name}}}" if name != column and columns.find(name) is not None else ""


# The TOML of a mapping

TEXT: tuple[type, ...] = (str,)
NUMBER: tuple[type, ...] = (int, Decimal)
ANY_FIELD: dict[str, tuple[type, ...]] = {"column": TEXT, "default": (str, *NUMBER), "required": (bool,), "missing": (list,)}
TEXT_FIELD = ANY_FIELD | {"template": TEXT, "values": (dict,), "otherwise": TEXT}
SHARED_TEXT_FIELD = TEXT_FIELD | {"fold": (bool,)}
INTEGER_FIELD = ANY_FIELD | {"number": (dict, list), "values": (dict,)}
DECIMAL_FIELD = INTEGER_FIELD | {"factor": NUMBER}
DATE_FIELD = ANY_FIELD | {"date": (str, list), "zone": TEXT}
URL_FIELD = TEXT_FIELD | {"split": TEXT}

NUMBER_KEYS: dict[str, tuple[Any, ...]] = {
    "thousands": (",", ".", " ", "'"),
    "decimal": (".", ","),
    "parentheses": ("negative", "drop"),
    "range": ("low", "high", "middle"),
}
"""The keys of `number` that have a choice. The others are `strip`, a list of texts, and `units`, a table of numbers."""


def keys_for(field: models.Field[Any, Any]) -> dict[str, tuple[type, ...]]:
    """Return the keys that a mapping may have for a field, and the types of their values."""
    match field:
        case models.DecimalField():
            return DECIMAL_FIELD
        case models.IntegerField():
            return INTEGER_FIELD
        case models.DateTimeField():
            return DATE_FIELD
        case models.URLField():
            return URL_FIELD
    return TEXT_FIELD if field.model in {Property, PropertyImage} else SHARED_TEXT_FIELD


class Complaints(list[str]):
    """The faults of a mapping. All of them are found in one run."""

    def __enter__(self) -> Complaints:
        return self

    def __exit__(self, kind: object, error: object, _: object) -> bool:
        """Keep an Unusable as a complaint."""
        if isinstance(error, Unusable):
            self.append(str(error))
        return isinstance(error, Unusable)


def _mapping(path: Path, tables: dict[str, Any], complaints: Complaints) -> Mapping:
    complaints += [f"there is no table {name!r}. Use {', '.join(TABLES)}." for name in sorted(tables.keys() - set(TABLES))]
    shared = {"missing": tables.get("missing", [""]), "number": tables.get("number", {})}
    layout = Layout()
    for name, check, without in (("missing", _check_missing, [""]), ("number", _numbers, {})):
        with complaints:
            check(name, shared[name])
            continue
        shared[name] = without
    with complaints:
        layout = _layout(tables.get("file", {}))
    rules = {model: _rules(label, model, tables.get(label, {}), shared, complaints) for label, model in MODELS.items()}
    images = tables.get("image", [])
    images = dict(enumerate(images, 1)) if isinstance(images, list) else {"": images}
    return Mapping(path, rules, [_rules(f"image {number}".strip(), PropertyImage, table, shared, complaints) for number, table in images.items()], layout)


def _layout(table: Any) -> Layout:
    keys = list(asdict(Layout()))
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()) or table.keys() - set(keys):
        raise Unusable(f"[file] is {table!r}. It has {' and '.join(keys)}, which are texts.")
    if len(table.get("delimiter", ",")) != 1 or table.get("delimiter") in {'"', "\n", "\r"}:
        raise Unusable(f'file.delimiter is {table["delimiter"]!r}. It must be one character, such as ";" or "\\t".')
    try:
        "".encode(table.get("encoding", "utf-8"))
    except LookupError:
        raise Unusable(f"file.encoding is {table['encoding']!r}. Use utf-8, cp1252, or another of Python's.") from None
    return Layout(**table)


def _check_missing(name: str, markers: Any) -> None:
    if not isinstance(markers, list) or not all(isinstance(marker, str) for marker in markers):
        raise Unusable(f'{name} must be a list of texts, such as missing = ["", "n/a"].')


def _rules(label: str, model: type[models.Model], table: Any, shared: dict[str, Any], complaints: Complaints) -> dict[str, Rule]:
    fields = {field.name: field for field in model._meta.concrete_fields if not (field.is_relation or field.name in OURS)}
    rules = {name: Rule(f"{label}.{name}", field) for name, field in fields.items()}
    if not isinstance(table, dict):
        complaints.append(f"{label} is not a table. Write [{label}] with its fields below.")
        return rules
    complaints += [f"[{label}] has no field {name!r}. Its fields are {', '.join(fields)}." for name in sorted(table.keys() - fields.keys())]
    for name, field in fields.items():
        with complaints:
            if name in table:
                rules[name] = _rule(f"{label}.{name}", field, table[name], shared)
            elif not field.null:
                raise Unusable(f'{label}.{name} is required. Write {name}.column = "…", or {name}.default = "…" if the file has no such column.')
    return rules


def _rule(name: str, field: models.Field[Any, Any], table: Any, shared: dict[str, Any]) -> Rule:
    allowed = keys_for(field)
    if not isinstance(table, dict):
        raise Unusable(f'{name} is {table!r}. Write {name}.column = "…" for a column, or {name}.default = "…" for the same value in every row.')
    if unknown := sorted(table.keys() - allowed.keys()):
        raise Unusable(f"{name} has no key {unknown[0]!r}. Its keys are {', '.join(allowed)}.")
    if wrong := [key for key, value in table.items() if not _fits(key, value, allowed[key], field)]:
        raise Unusable(f"{name}.{wrong[0]} cannot be {table[wrong[0]]!r}.")
    rule = Rule(name, field, **_typed_keys(name, field, table, shared))
    _check(rule)
    return rule


def _fits(key: str, value: Any, kinds: tuple[type, ...], field: models.Field[Any, Any]) -> bool:
    if key == "values":
        return isinstance(value, dict) and all(_fits("default", text, (str, *NUMBER) if _is_number(field) else TEXT, field) for text in value.values())
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))  # in Python, True is a number, too


def _typed_keys(name: str, field: models.Field[Any, Any], table: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a rule as its attributes. Raises Unusable."""
    keys = {key: value for key, value in table.items() if key not in {"zone", "number"}}
    _check_missing(f"{name}.missing", table.get("missing", []))
    keys["missing"] = frozenset([*shared["missing"], *table.get("missing", [])])
    if "default" in keys:
        keys["default"] = str(keys["default"])
    if "values" in keys:
        keys["values"] = {text: str(value) for text, value in keys["values"].items()}
    if _is_number(field):
        own = table.get("number", {})
        keys["number"] = _numbers(f"{name}.number", shared["number"] | own if isinstance(own, dict) and isinstance(shared["number"], dict) else own)
    if isinstance(field, models.DateTimeField):
        keys["date"] = _dates(name, table.get("date"), table.get("zone"))
    return keys


def _numbers(name: str, tables: Any) -> tuple[NumberFormat, ...]:
    """Return the number formats of a table, or of a list of them. Raises Unusable."""
    if tables == [] or not all(isinstance(table, dict) for table in (tables if isinstance(tables, list) else [tables])):
        raise Unusable(f'{name} cannot be {tables!r}. Write a table, such as {{ thousands = ",", strip = ["$"] }}, or a list of them.')
    return tuple(_number(name, table) for table in (tables if isinstance(tables, list) else [tables]))


def _number(name: str, table: dict[str, Any]) -> NumberFormat:
    if unknown := sorted(table.keys() - NUMBER_KEYS.keys() - {"strip", "units"}):
        raise Unusable(f"{name} has no key {unknown[0]!r}. Its keys are {', '.join(NUMBER_KEYS)}, strip, units.")
    for key, choices in NUMBER_KEYS.items():
        if key in table and table[key] not in choices:
            raise Unusable(f"{name}.{key} is {table[key]!r}. It can be {', '.join(map(repr, choices))}.")
    strip, units = table.get("strip", []), table.get("units", {})
    if not isinstance(strip, list) or not all(isinstance(text, str) and re.match(r"\D", text.strip()) for text in strip):
        raise Unusable(f'{name}.strip is {strip!r}. It must be a list of texts that do not begin with a digit, such as ["$", "USD"].')
    if not isinstance(units, dict) or not all(_fits("factor", factor, NUMBER, models.Field()) and re.match(r"\D", unit) for unit, factor in units.items()):
        raise Unusable(f'{name}.units is {units!r}. It must be a table of texts and numbers, such as {{ k = 1000, "m²" = 1 }}.')
    if table.get("thousands", "") == table.get("decimal", "."):
        raise Unusable(f"{name} has {table['thousands']!r} for both thousands and decimal. Write decimal, too.")
    choices_made: dict[str, str] = {key: table[key] for key in NUMBER_KEYS if key in table}
    return NumberFormat(**choices_made, strip=tuple(text.strip() for text in strip), units={unit: Decimal(factor) for unit, factor in units.items()})


def _dates(name: str, formats: Any, zone: str | None) -> tuple[DateFormat, ...]:
    """Return the date formats of a text, or of a list of them. Raises Unusable."""
    for written in formats if isinstance(formats, list) and formats else [formats]:
        if wrong := complaint(written if isinstance(written, str) else "", zone):
            raise Unusable(f"{name}.date is {written!r}. {wrong[0].upper()}{wrong[1:]}.")
    try:
        place = datetime.UTC if zone is None else ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise Unusable(f'{name}.zone is {zone!r}. It must be a name of the IANA time zone database, such as "Europe/Paris".') from None
    return tuple(DateFormat(written, place) for written in (formats if isinstance(formats, list) else [formats]))


def _check(rule: Rule) -> None:
    """Raise Unusable for a rule that cannot fill its field."""
    if None not in (rule.column, rule.template) or (rule.column, rule.template, rule.default) == (None, None, None):
        raise Unusable(f"{rule.name} needs either a column or a template, or a default.")
    if rule.otherwise is not None and rule.values is None:
        raise Unusable(f"{rule.name}.otherwise needs values, because it replaces those that are not listed.")
    if rule.split == "":
        raise Unusable(f'{rule.name}.split is empty. Write what is between two values, such as "|".')
    try:
        _ = rule.columns
    except ValueError as error:
        raise Unusable(f"{rule.name}.template is {rule.template!r}: {error}.") from None
    try:
        for text in (*(rule.values or {}).values(), rule.otherwise, rule.default):
            if text is not None:
                rule.literal(text)
    except Refused as refused:
        [fault] = refused.faults
        raise Unusable(f"{fault.field} {fault.value!r}: expected {fault.expected}.") from None
