"""Formats of numbers and dates, as a mapping declares them. Texts that have two readings are refused.

The standard library reads both. Libraries guess: Babel 2.18 reads `1,25` as 125 (in its strict mode it refuses `1'250` and Indian groups), and python-dateutil
4.0 and dateparser 1.5 read `3/9/2016` as 9 March. None of them knows units or ranges.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from functools import cached_property
from typing import Protocol, TypeVar

SPACES = re.compile("[\u00a0\u2007\u2009\u202f\\s]+")
"""Spaces of all widths. A file has them between thousands, and before units."""

LIKE = str.maketrans({"’": "'", "−": "-"})
"""Typographic characters, and those of the keyboard."""

OPEN = re.compile(r"(.*\d)\s*\+")
"""A range without an upper end: `3+`."""

RANGE = re.compile(r"(.*?\d.*?)\s*(?:[-–—]|\bto\b)\s*(.*\d.*)", re.IGNORECASE)
"""A range: `2-3`, `2100 - 2850`, `$300k to $350k`."""

ZONE = re.compile(r"[+-]\d\d:?\d\d|\b(?:[A-Z]{2,5}|Z)\b", re.ASCII)
"""An offset, or the short name of a zone."""

LONGEST_NUMBER = 100
"""The characters of a number with its currency and unit. A longer text is prose, on which the patterns of ranges would take minutes."""

ISO = "iso"
"""The name of ISO 8601 as a date format."""


Value_co = TypeVar("Value_co", covariant=True)


class Format(Protocol[Value_co]):
    """A format of numbers or of dates."""

    def read(self, text: str) -> Value_co:
        """Return the value of a text. Raises Unreadable."""


class Unreadable(Exception):
    """A text has no value in this format. The message says what was expected; texts of one `kind` have the same problem."""

    def __init__(self, kind: str, expected: str) -> None:
        super().__init__(expected)
        self.kind = kind


@dataclass(frozen=True)
class NumberFormat:
    """How a column writes its numbers. The attributes are the keys of `number` in a mapping."""

    thousands: str = ""
    decimal: str = "."
    strip: tuple[str, ...] = ()
    units: Mapping[str, Decimal] = field(default_factory=dict)
    parentheses: str = ""
    range: str = ""

    def __str__(self) -> str:
        return f"a number such as 1{self.thousands}250{self.decimal}50"

    @cached_property
    def _digits(self) -> re.Pattern[str]:
        """The number alone. A separator of thousands stands before three digits, as in 1,234,567, or as in India, 12,34,567."""
        mark, point = re.escape(self.thousands), re.escape(self.decimal)
        grouped = rf"|\d{{1,3}}(?:{mark}\d{{3}})+|\d{{1,2}}(?:{mark}\d\d)+{mark}\d{{3}}" if mark else ""
        return re.compile(rf"[+-]?(?:(?:\d+{grouped})(?:{point}\d*)?|{point}\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

    def read(self, text: str) -> Decimal:
        """Return the number. Raises Unreadable."""
        if len(text) > LONGEST_NUMBER:
            raise Unreadable("number", str(self))
        text = SPACES.sub(" ", text.translate(LIKE)).strip()
        if self.parentheses == "drop":
            text = re.sub(r"\([^()]*\)", "", text).strip()
        try:
            return self._value(*self._bare(text))
        except DecimalException:
            raise Unreadable("range", "a number with fewer digits") from None

    def _bare(self, text: str) -> tuple[str, Decimal | None]:
        """Return a text without its currency and its unit, and the factor of the unit."""
        unit = None
        while True:
            for affix in sorted((*self.strip, *(self.units if unit is None else ())), key=len, reverse=True):
                rest = _without_end(text, affix) or (_without_start(text, affix) if affix in self.strip else None)
                if rest is not None:
                    text, unit = rest, unit if affix in self.strip else self.units[affix]
                    break
            else:
                return text, unit

    def _value(self, text: str, unit: Decimal | None) -> Decimal:
        if self._digits.fullmatch(text):
            number = Decimal(text.replace(self.thousands, "").replace(self.decimal, ".") if self.thousands else text.replace(self.decimal, "."))
            return number if unit is None else number * unit
        if text.startswith("(") and text.endswith(")"):
            if self.parentheses == "negative":
                return -self._value(*self._inside(text[1:-1], unit))
            raise Unreadable("parentheses", f'{self} without parentheses (parentheses = "negative" or "drop" reads them)')
        if match := OPEN.fullmatch(text):
            return self._end_of_range(self._value(*self._inside(match[1], unit)), None)
        if match := RANGE.fullmatch(text):
            return self._of_range(match[1], match[2], unit)
        raise Unreadable("number", str(self))

    def _inside(self, text: str, unit: Decimal | None) -> tuple[str, Decimal | None]:
        text, own = self._bare(text)
        return text, own if unit is None else unit

    def _of_range(self, low: str, high: str, unit: Decimal | None) -> Decimal:
        """A unit after the range is that of both ends, unless the first has its own. A unit at the first end only has two readings."""
        (first, first_unit), (last, last_unit) = self._bare(low), self._bare(high)
        last_unit = last_unit if unit is None else unit
        if first_unit is not None and last_unit is None:
            raise Unreadable("ambiguous", "a range with its unit at the upper end")
        return self._end_of_range(self._number(first, last_unit if first_unit is None else first_unit), self._number(last, last_unit))

    def _number(self, text: str, unit: Decimal | None) -> Decimal:
        if not self._digits.fullmatch(text):
            raise Unreadable("number", str(self))
        return self._value(text, unit)

    def _end_of_range(self, low: Decimal, high: Decimal | None) -> Decimal:
        if not self.range:
            raise Unreadable("a range", f'{self} and no range (range = "low", "high" or "middle" reads one)')
        if high is not None and low > high:
            raise Unreadable("order", "a range from a lower to a higher number")
        if self.range == "low":
            return low
        if high is None:
            raise Unreadable("open", "a range with an upper end")
        return high if self.range == "high" else (low + high) / 2


def _without_end(text: str, affix: str) -> str | None:
    """Return a text without an affix, or None if it has another end. A word does not end inside another word."""
    rest = text[: -len(affix)]
    joined = rest[-1:].isalpha() and affix[0].isalpha()
    return rest.rstrip() if text[-len(affix) :].casefold() == affix.casefold() and not joined else None


def _without_start(text: str, affix: str) -> str | None:
    rest = text[len(affix) :]
    joined = rest[:1].isalpha() and affix[-1].isalpha()
    return rest.lstrip() if text[: len(affix)].casefold() == affix.casefold() and not joined else None


@dataclass(frozen=True)
class DateFormat:
    """How a column writes its dates: `iso`, or a format of Python's strptime. A date without an offset is in the zone."""

    written: str
    zone: datetime.tzinfo = datetime.UTC

    def __str__(self) -> str:
        return "a date in ISO 8601, such as 2026-11-28T15:30:00+01:00" if self.written == ISO else f"a date in the format {self.written}"

    def read(self, text: str) -> datetime.datetime:
        """Return the instant, in UTC. Raises Unreadable."""
        try:
            moment = self._parsed(text)
            if moment.tzinfo is None:
                moment = self._in_zone(moment)
            return moment.astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            raise Unreadable("date", str(self)) from None

    def _parsed(self, text: str) -> datetime.datetime:
        if self.written == ISO:
            return datetime.datetime.fromisoformat(text)
        moment = datetime.datetime.strptime(text, self.written)  # noqa: DTZ007  # the zone is added later
        if sys.version_info >= (3, 15) and "%z" in self.written and moment.tzinfo is None:  # its strptime lets an empty offset pass
            raise ValueError
        return moment

    def _in_zone(self, moment: datetime.datetime) -> datetime.datetime:
        """A date alone is the start of the day. A time that the clocks skip or repeat is refused."""
        local = moment.replace(tzinfo=self.zone)
        if moment.time() != datetime.time() and local.utcoffset() != local.replace(fold=1).utcoffset():
            raise Unreadable("clock", f"a time that occurs once in {self.zone}, whose clocks change then (an offset would make it clear)")
        return local


def complaint(written: str, zone: str | None) -> str | None:
    """Return what is wrong with a date format, or None."""
    if written == ISO:
        return None
    literal = re.sub("%.", " ", written)
    if "%Z" in written or "%:z" in written:
        return 'names of zones have several meanings. Write %z for offsets such as +01:00, or the name as text and zone = "Europe/Paris"'
    if found := ZONE.search(literal):
        if found[0][0] in "+-":
            return f"{found[0]} as text would be ignored. Write %z"
        if (found[0] in {"Z", "UTC", "GMT"}) != (zone in {None, "UTC"}):
            return f'{found[0]} as text is ignored. Write zone = "Europe/Paris", or the zone that {found[0]} means'
    if not _tells_the_day(written):
        return 'it must be a format with day, month and year, such as "%d/%m/%Y", or "iso"'
    if re.search("%[Il]", written) and "%p" not in written:
        return "a time of 12 hours (%I) has two readings without %p"
    return None


def _tells_the_day(written: str) -> bool:
    day, years_later = (datetime.datetime(year, 11, 28, tzinfo=datetime.UTC) for year in (2013, 2019))  # the same weekday and the same day of the year
    try:
        if day.strftime(written) == years_later.strftime(written):
            return False  # strptime would guess the year, with a warning since Python 3.13
        return datetime.datetime.strptime(day.strftime(written), written).date() == day.date()  # noqa: DTZ007  # only its date is compared
    except (ValueError, re.error):
        return False


def only_reading(text: str, formats: Sequence[Format[Value_co]]) -> Value_co:
    """Return the value of a text in the formats that read it. Raises Unreadable if none does, or if they read different values."""
    values: list[Value_co] = []
    refusals: list[Unreadable] = []
    for one in formats:
        try:
            values.append(one.read(text))
        except Unreadable as refusal:
            refusals.append(refusal)
    if not values:
        raise Unreadable(refusals[0].kind, " or ".join(dict.fromkeys(map(str, refusals))))
    if any(value != values[0] for value in values):
        raise Unreadable("ambiguous", f"one reading, but it could be {' or '.join(map(str, dict.fromkeys(values)))}")
    return values[0]
