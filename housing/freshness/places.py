"""Places in an order. A page covers an interval of its order, and a row outside of it does not change the page.

A write lists the *places* of the rows that it creates or changes: the values afterwards of the columns with which an index begins. An entry has the *interval*
of the rows that it may show, for each of these columns by which it is ordered or bounded. A row that the entry has not read matters only if it enters the
result. So the tags of the rows that an entry has not read concern it only if a place of the same write is inside of its interval. `journal.lua` compares.

A place is a whole number, in the order of the database. Equal places count as inside, so rounding may only over-invalidate. Only columns take part whose order
is certain in every database and exact in Lua: whole numbers, decimals of at most 15 digits, and times with a time zone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
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
"""A lease has at most so many places of a table. Those of more rows are replaced by the smallest and the largest of each column."""

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
        return partial(scaled, 10 ** (field.decimal_places or 0))
    return microseconds if type(field) is models.DateTimeField else None


def scaled(scale: int, value: Any, _: bool = True) -> int | None:
    """Return a number as a multiple of 1 / scale."""
    try:
        number = round((Decimal(value) if isinstance(value, str) else value) * scale)
    except (ArithmeticError, TypeError, ValueError):  # NULL, NaN, or infinity
        return None
    return number if -EXACT < number < EXACT else None


WHOLE = partial(scaled, 1)


def microseconds(value: Any, has_zone: bool = True) -> int | None:
    """Return a time as microseconds since 1970. One with another form than expected is unknown, because the database decides what it means."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) and value[10] == " " else value
        is_expected = isinstance(time, datetime) and (time.tzinfo is not None) == has_zone
        number = ((time if has_zone else time.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND if is_expected else EXACT
    except (IndexError, ValueError):
        return None
    return number if -EXACT < number < EXACT else None


# The places of a write


def covering(spans: Iterable[Span]) -> Span:
    """Return the span that covers all of these."""
    ends: list[int] = []
    for span in spans:
        if span is None:
            return None
        ends += span if isinstance(span, tuple) else (span,)
    return (min(ends), max(ends)) if ends else None


def line_of(table: str, spans: Iterable[Span]) -> str:
    """Return a place as a line in a lease."""
    texts = ["" if span is None else f"{span[0]}:{span[1]}" if isinstance(span, tuple) else str(span) for span in spans]
    return f"{PLACE}{table}|{'|'.join(texts)}"


# The interval of an entry


class Order(NamedTuple):
    """The first column by which a query is ordered."""

    number: int
    """Its position among the places of the table."""
    position: int
    """Its position in a row of the result."""
    place: Place
    is_descending: bool
    limit: int
    """How many rows are read at most."""


class Bound(NamedTuple):
    """A condition on a column: the place from which on, or until which, a row may be in the result."""

    number: int
    low: int | None
    high: int | None


class Interval(NamedTuple):
    """The rows of a table that a query may show. It depends on the rows that it has read where the interval ends."""

    table: str
    bounds: tuple[Bound, ...]
    order: Order | None
    row: int
    """The position of the primary key in a row of the result."""
    text: Callable[[Any], str]
    """The text of a primary key."""
    has_zone: bool
    """Whether times that this database returns as texts have a time zone."""

    def lines(self, shown: Sequence[Any], beyond: Sequence[Any]) -> str | None:
        """Return the interval as lines of an entry that shows these rows, and of the rows `beyond` only that they are there. None if it has no end."""
        bounds = list(self.bounds)
        if self.order and shown and len(shown) + len(beyond) >= self.order.limit:  # all rows after the last one shown leave it as it is
            place = self.order.place(shown[-1][self.order.position], self.has_zone)
            bounds.append(Bound(self.order.number, place, None) if self.order.is_descending else Bound(self.order.number, None, place))
        ends: dict[int, tuple[int | None, int | None]] = {}
        for number, low, high in bounds:
            lowest, highest = ends.get(number, (None, None))
            ends[number] = _last(lowest, low, max), _last(highest, high, min)
        texts = [f"|{number}:{'' if low is None else low}:{'' if high is None else high}" for number, (low, high) in sorted(ends.items())]
        if all(end == (None, None) for end in ends.values()):
            return None
        rows = [f"\n|row:{self.table}:{self.text(row[self.row])}" for row in beyond]
        return f"|in:{self.table}{''.join(texts)}{''.join(rows)}"


def _last(one: int | None, other: int | None, which: Callable[[int, int], int]) -> int | None:
    return which(one, other) if one is not None and other is not None else other if one is None else one
