"""Places in an order. A page covers an interval of its order, and a row outside of it does not change the page.

A write lists the *places* of the rows that it creates or changes: the values afterwards of the columns with which an index begins. An entry has the *interval*
of the rows that it may show, for each of these columns by which it is ordered or bounded. A row that the entry has not read matters only if it enters the
result. So the tags of the rows that an entry has not read concern it only if a place of the same write is inside of its interval. `journal.lua` compares.

A place is a whole number, in the order of the database. Rows with equal places are ordered by their keys if the query does so. Otherwise they count as inside.
Only columns take part whose order is certain in every database and exact in Lua: whole numbers, decimals of at most 15 digits, and times with a time zone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from hashlib import md5
from typing import Any, NamedTuple

from django.db import models
from django.db.models import Field

Place = Callable[[Any, bool], int | None]
"""Returns the place of a column's value, as the driver returns or takes it; None if it is unknown. Times as texts have a time zone, or no text has."""

Span = int | tuple[int, int] | None
"""The place of a row in one column, or the smallest and the largest of some rows; None if a place is unknown."""

EXACT = 2**53
"""Whole numbers below this are exact as Lua's numbers."""

DIGITS = 15
"""Decimals with more digits may be beyond EXACT. SQLite keeps decimals as floating point numbers, which are different if at most 15 digits are."""

MANY_PLACES = 20
"""The most places of one table in a lease. More are replaced by the smallest and the largest of each column."""

PLACE = "|at:"
"""The beginning of a place in the text of a lease."""

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

WHOLE_NUMBERS = {
    models.AutoField,
    models.BigAutoField,
    models.SmallAutoField,
    models.IntegerField,
    models.BigIntegerField,
    models.SmallIntegerField,
    models.PositiveIntegerField,
    models.PositiveBigIntegerField,
    models.PositiveSmallIntegerField,
}


def place_of(field: Field[Any, Any]) -> Place | None:
    """Return the function that finds the places of this column's values; None if it cannot have any."""
    if type(field) in WHOLE_NUMBERS:
        return WHOLE
    if type(field) is models.DecimalField and field.max_digits and field.max_digits <= DIGITS:
        return decimals(field.decimal_places or 0)
    return microseconds if type(field) is models.DateTimeField else None


def scaled(scale: int, value: Any, _: bool = True) -> int | None:
    """Return a number as a multiple of 1 / scale, if it is one. A rounded one could equal a place from which the database tells it apart."""
    try:
        value = Decimal(value) if isinstance(value, str) else value
        number = round(value * scale)
        is_exact = (number / scale if isinstance(value, float) else Decimal(number) / scale) == value
    except (ArithmeticError, TypeError, ValueError):  # NULL, NaN, or infinity
        return None
    return number if is_exact and -EXACT < number < EXACT else None


def unknown(value: Any, _: bool = True) -> int | None:
    """Return no place, of a key that is not a whole number."""
    return None


@cache
def decimals(digits: int) -> Place:
    """Return the function for numbers with this many digits after the point."""
    return partial(scaled, 10**digits)


WHOLE = decimals(0)


def microseconds(value: Any, has_zone: bool = True) -> int | None:
    """Return a time as microseconds since 1970. One with another form than expected is unknown, because the database decides what it means."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        is_expected = isinstance(time, datetime) and (time.tzinfo is not None) == has_zone and (has_zone or str(time) == str(value))
        number = ((time if has_zone else time.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND if is_expected else EXACT
    except ValueError:
        return None
    return number if -EXACT < number < EXACT else None


def name_of(table: str, places: Mapping[str, Place]) -> str:
    """Return the name of a table with a hash of its places. Processes with other models of the table do not compare with these."""
    text = ",".join([f"{column} {of.args if isinstance(of, partial) else ''}" for column, of in places.items()])
    return f"{table}:{md5(text.encode(), usedforsecurity=False).hexdigest()[:4]}"


# The places of a write


def covering(spans: Iterable[Span]) -> Span:
    """Return the span that covers all of these."""
    ends: list[int] = []
    for span in spans:
        if span is None:
            return None
        ends += span if isinstance(span, tuple) else (span,)
    return (min(ends), max(ends)) if len(set(ends)) > 1 else ends[0] if ends else None


def line_of(name: str, spans: Iterable[Span]) -> str:
    """Return a place as a line in a lease. `name` is that of the table with its places."""
    texts = ["" if span is None else f"{span[0]}:{span[1]}" if isinstance(span, tuple) else str(span) for span in spans]
    return f"{PLACE}{name}|{'|'.join(texts)}"


# The interval of an entry


class End(NamedTuple):
    """A place at which an interval ends, and the key that orders the rows with this place; None if they are all inside."""

    place: int
    key: int | None

    def __str__(self) -> str:
        return f"{self.place}" if self.key is None else f"{self.place},{self.key}"


class Bound(NamedTuple):
    """A condition on a column: the place from which on, or until which, a row may be in the result."""

    number: int
    """The position of the column among the places of the table."""
    low: End | None
    high: End | None


class Order(NamedTuple):
    """The first column by which a query is ordered."""

    number: int
    """Its position among the places of the table."""
    position: int
    """Its position in a row of the result."""
    place: Place
    is_descending: bool
    is_by_key: bool
    """Whether equal values are ordered by the primary key, in the same direction."""
    limit: int
    """How many rows are read at most."""


class Interval(NamedTuple):
    """The rows of a table that a query may show. It depends on the rows that it has read where the interval ends."""

    table: str
    name: str
    """The name of the table with that of its places."""
    bounds: tuple[Bound, ...]
    order: Order | None
    row: int
    """The position of the primary key in a row of the result."""
    text: Callable[[Any], str]
    """The text of a primary key."""
    has_zone: bool
    """Whether times that this database returns as texts have a time zone."""
    also: str = ""
    """A line for each further scope in which a row must be to enter the result, with the tags of which a write of such a row has one."""

    def with_text(self, old: str, new: str) -> Interval:
        """Return the interval with another text in the place of this one."""
        return self._replace(also=self.also.replace(old, new))

    def lines(self, shown: Sequence[Any], beyond: Sequence[Any]) -> str | None:
        """Return the interval as lines of an entry that shows these rows, and of the rows `beyond` only that they are there. None if it has no end."""
        bounds = list(self.bounds)
        if self.order and shown and len(shown) + len(beyond) >= self.order.limit:  # all rows after the last one shown leave it as it is
            bounds.append(self._last(shown[-1], self.order))
        ends: dict[int, tuple[End | None, End | None]] = {}
        for number, low, high in bounds:
            lowest, highest = ends.get(number, (None, None))
            ends[number] = _nearest(max, lowest, low), _nearest(min, highest, high)
        texts = [f"|{number}:{low or ''}:{high or ''}" for number, (low, high) in sorted(ends.items())]
        rows = [f"\n|row:{self.table}:{self.text(row[self.row])}" for row in beyond]
        return f"|in:{self.name}{''.join(texts)}{''.join(rows)}{self.also}" if self.also or any(ends.values()) else None

    def _last(self, row: Any, order: Order) -> Bound:
        """Return the bound at the last row."""
        place = order.place(row[order.position], self.has_zone)
        end = None if place is None else End(place, WHOLE(row[self.row], True) if order.is_by_key else None)
        return Bound(order.number, end, None) if order.is_descending else Bound(order.number, None, end)


def _nearest(which: Callable[..., End], *ends: End | None) -> End | None:
    known = [end for end in ends if end is not None]
    return which(known, key=lambda end: end.place) if known else None
