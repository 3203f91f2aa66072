"""The dependencies of a response, read off its queries.

While a response is filled, a recorder notes each SELECT: which tables it joins, which rows it shows, and which columns filter and order them.
Nothing is listed by hand. A subquery depends on every write to its tables. A response with an unreadable query is not stored.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import BooleanField, DateTimeField, ForeignKey, ForeignObjectRel, QuerySet
from django.db.models.expressions import Col, ColPairs, Func, RawSQL, Ref, Value, Window
from django.db.models.fields.tuple_lookups import TupleIn
from django.db.models.lookups import Exact, GreaterThan, GreaterThanOrEqual, In, LessThan, LessThanOrEqual
from django.db.models.sql.constants import INNER
from django.db.models.sql.query import Query
from django.db.models.sql.where import ExtraWhere, NothingNode

from .places import WHOLE, Bound, End, Interval, Order
from .statements import NOTHING
from .tracking import MANY_ROWS, Table, Text, label_of, tables

Row = Sequence[Any]

SELECT = re.compile(r"\bselect\b", re.IGNORECASE)

Columns = defaultdict[str, set[str]]
"""alias → columns."""


class Unreadable(Exception):
    """A query whose dependencies cannot be read. The message names the part, and what to do."""


@dataclass(frozen=True)
class Pin:
    """A table that is filtered by these primary keys."""

    position: int
    text: Text
    wanted: frozenset[str]
    missing: str
    """The tag of an entry that found fewer rows, because a missing one may be created."""


@dataclass(frozen=True)
class Reading:
    """The dependencies of one query."""

    static: frozenset[str] = frozenset()
    """The tags that do not depend on the rows."""
    rows: tuple[tuple[int, str, Text], ...] = ()
    """For each table with a primary key in the result: its position, the prefix of its tags, and the text of a key."""
    leaving: tuple[tuple[int, str, Text, str], ...] = ()
    """The same for the tables whose rows may leave the result although no other row changes, with the end of the tag."""
    hidden: frozenset[str] = frozenset()
    """Additional tags if not all rows are shown, because their order decides which."""
    pins: tuple[Pin, ...] = ()
    entering: frozenset[str] = frozenset()
    """Those of the static tags by which a row enters the result. They matter only if its place is in the interval."""
    interval: Interval | None = None

    def tags(self, shown: Collection[Row], beyond: Collection[Row] = (), *, is_part: bool = False) -> set[str]:
        """Return the tags of a response that shows these rows. Of the rows `beyond` it shows only that they are there. `is_part` is whether there may be more.

        A row that was not read matters only if it enters the result. One that was read may also leave it.
        """
        found = set(self.static)
        for position, prefix, text in self.rows:
            if text is str:  # saves a call for each row
                found.update([f"{prefix}{row[position]}" for row in shown if row[position] is not None])
            else:
                found.update([f"{prefix}{text(row[position])}" for row in shown if row[position] is not None])
        for pin in self.pins:
            if not pin.wanted <= {pin.text(row[pin.position]) for row in shown if row[pin.position] is not None}:
                found.add(pin.missing)
        if beyond or is_part:
            found |= self.hidden
        for position, prefix, text, end in self.leaving if beyond else ():
            found.update([f"{prefix}{text(row[position])}{end}" for row in beyond if row[position] is not None])
        return found

    def with_text(self, old: str, new: str) -> Reading:
        """Return the dependencies with another text in the place of this one."""
        static, hidden, entering = [frozenset([tag.replace(old, new) for tag in tags]) for tags in (self.static, self.hidden, self.entering)]
        pins = [Pin(pin.position, pin.text, frozenset([key.replace(old, new) for key in pin.wanted]), pin.missing) for pin in self.pins]
        return Reading(static, self.rows, self.leaving, hidden, tuple(pins), entering, self.interval and self.interval.with_text(old, new))


class Recorder:
    """Collects the dependencies of a response while it is filled."""

    def __init__(self) -> None:
        self.tags: set[str] = set()
        self.queries = 0
        self._anywhere: set[str] = set()
        """The tags that matter wherever the rows are."""
        self._within: dict[str, frozenset[str]] = {}
        self.unreadable: str | None = None

    def note(self, reading: Reading, shown: Sequence[Row], beyond: Sequence[Row] = (), *, is_part: bool = False) -> None:
        """Add the dependencies of one query."""
        self.queries += 1
        tags = reading.tags(shown, beyond, is_part=is_part)
        self.tags |= tags
        if reading.interval and (lines := reading.interval.lines(shown, beyond)):
            self._within[lines] = self._within.get(lines, frozenset()) | reading.entering
            tags -= reading.entering
        self._anywhere |= tags

    @property
    def within(self) -> dict[str, set[str]]:
        """The lines of each interval → the tags that matter only for rows in it. A tag of two intervals matters anywhere."""
        found = {lines: set(tags - self._anywhere) for lines, tags in self._within.items()}
        if len(found) > 1:
            every = Counter(chain.from_iterable(found.values()))
            found = {lines: {tag for tag in tags if every[tag] == 1} for lines, tags in found.items()}
        return found

    def refuse(self, why: str) -> None:
        """Refuse to store the response, because a dependency is unknown."""
        self.unreadable = self.unreadable or why

    @property
    def complaint(self) -> str | None:
        """Why the response cannot be stored; None if it can."""
        if self.unreadable is None and not self.queries:
            return "It runs no query, so it would never be invalidated."
        return self.unreadable


_recorder: ContextVar[Recorder | None] = ContextVar("freshness_recorder", default=None)

recorder: Callable[[], Recorder | None] = _recorder.get
"""The recorder of the current fill, if there is one. It belongs to the context, so threads that a view starts do not have it."""


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Record the queries in the body."""
    token = _recorder.set(found := Recorder())
    try:
        yield found
    finally:
        _recorder.reset(token)


def read_off(compiler: Any) -> Reading:
    """Return the dependencies of the query that this compiler has just turned into SQL. Raises Unreadable."""
    query = compiler.query
    reader = _Reader(query, compiler.joined or (), compiler.connection)
    if query.combinator or hasattr(query, "inner_query") or query.explain_info:
        reader.take_whole(query)
        return Reading(frozenset(reader.tags))
    select = [expression for expression, *_ in compiler.select]
    ordering = [expression for expression, *_ in compiler.ordering or ()]
    reader.read(select, ordering)
    return reader.reading(select, ordering)


def columns_of(select: Iterable[Any]) -> Iterator[tuple[int, Col]]:
    """Yield the plain columns of a SELECT with their positions in a row. A composite primary key has a position for each of its columns."""
    place = 0
    for expression in select:
        if isinstance(expression, Col):
            yield place, expression
        place += len(expression) if isinstance(expression, ColPairs) else 1


def pinned(query: Query, alias: str, column: str, text: Text) -> frozenset[str] | None:
    """Return the values that a query's conditions allow for this column, as texts of tags; None if there is no such condition."""
    for lookup in _conditions(query):
        found = _constants(lookup, alias, column, text)
        if found is not None:
            return found
    return None


def _conditions(query: Query) -> Iterator[Any]:
    """Yield the conditions that are joined by AND."""
    where: Any = query.where
    if where.connector == "AND" and not where.negated:
        for child in where.children:
            if getattr(child, "connector", None) == "AND" and not getattr(child, "negated", True):
                yield from child.children
            else:
                yield child


def _constants(lookup: Any, alias: str, column: str, text: Text) -> frozenset[str] | None:
    if not isinstance(lookup, Exact | In | TupleIn) or not type(lookup).__module__.startswith("django.db."):
        return None
    left, right = lookup.lhs, lookup.rhs
    if isinstance(lookup, TupleIn):
        sources = left.get_source_expressions()
        if len(sources) != 1 or hasattr(right, "as_sql"):
            return None
        left, right = sources[0], [value[0] for value in right]
    while isinstance(left, Copy):
        [left] = left.get_source_expressions()
    if type(right) is Value and isinstance(left, Col):
        try:
            right = left.target.get_prep_value(right.value)
        except (TypeError, ValueError):
            return None
    if not (isinstance(left, Col) and left.alias == alias and left.target.column == column) or hasattr(right, "as_sql"):
        return None
    values = [right] if isinstance(lookup, Exact) else list(right)
    if len(values) > MANY_ROWS or any(hasattr(value, "as_sql") for value in values):
        return None
    return frozenset(text(value) for value in values if value is not None)


def _parts(side: Any) -> list[Any]:
    """Return the parts of a position, or the side of a comparison itself."""
    return side.get_source_expressions() if type(side) is RowValue and not side.extra else [side]


class RowValue(Func):
    """The SQL row `(a, b)`. Comparing rows lets an index on both columns seek, instead of scanning all equal values of `a`.

    Use it for positions that are part of the request, such as a cursor. Rows on the other side of the position do not make the response stale.
    """

    template = "(%(expressions)s)"
    output_field = BooleanField()


class Copy(Func):
    """A copy of a column, which the database keeps equal to it. It counts as the column itself."""


class _Reader:
    """Reads one query, alias by alias."""

    def __init__(self, query: Query, joined: Iterable[str], connection: Any) -> None:
        self.query, self.connection = query, connection
        self.tags: set[str] = set()
        self.selecting: Columns = defaultdict(set)
        self.shown: Columns = defaultdict(set)
        self.ordering: Columns = defaultdict(set)
        self.into = self.selecting
        self.joins: dict[str, Any] = {alias: query.alias_map[alias] for alias in joined}
        self.tables = {alias: self._table(join.table_name) for alias, join in self.joins.items()}
        self.scopes: dict[str, tuple[str, set[str]]] = {}
        """alias → the column of its scopes, and their tags."""
        self.by_pk: dict[str, frozenset[str]] = {}
        self.counts_others = bool(query.low_mark)
        """Whether the shown rows depend on how many others there are: before an offset, or in a window."""

    # The query

    def read(self, select: Iterable[Any], ordering: Iterable[Any]) -> None:
        """Note the columns that are shown, and those that filter and order. Raises Unreadable."""
        self._refuse_raw(self.query)
        for expression in select:
            if not self._shows(expression):
                self._walk(expression)
        self._where()
        for each in self.query.group_by if isinstance(self.query.group_by, tuple) else ():
            self._walk(each if hasattr(each, "as_sql") else self.query.resolve_ref(each))
        if not (self.query.is_sliced or self.query.distinct_fields):  # if all rows are shown, the order only decides their positions
            self.into = self.ordering
        for expression in ordering:
            self._walk(expression)
        self.into = self.selecting
        for alias, join in self.joins.items():
            if getattr(join, "parent_alias", None):
                self._join(alias, join)
        for alias in [*self.selecting, *self.scopes, *self.by_pk]:
            self._lead_to(alias)

    def _where(self) -> None:
        """Note the conditions: the rows that they name, and the columns that they filter by."""
        taken = self._pins()
        for child in _conditions(self.query) if taken else [self.query.where]:
            if not any(child is lookup for lookup in taken):
                self._walk(child)

    def _join(self, alias: str, join: Any) -> None:
        """Note the columns of a join that decide which rows are found."""
        if filtered := join.filtered_relation:
            self._walk(filtered.resolved_condition)
        if restriction := join.join_field.get_extra_restriction(alias, join.parent_alias):
            self._walk(restriction)
        forward = _refers(join, forward=True)
        for left, right in join.join_cols:
            if not forward:
                self.selecting[alias].add(right)
            if not forward or (join.join_type == INNER and join.join_field.null):
                self.selecting[join.parent_alias].add(left)

    def reading(self, select: list[Any], ordering: list[Any]) -> Reading:
        """Return the dependencies."""
        rows, leaving, pins, hidden = [], [], [], set[str]()
        entering: dict[str, set[str]] = {}
        for alias in self.joins:
            if self.query.group_by is None and not self.counts_others and self._position(alias, self.tables[alias], select) is not None:
                self._scope_through_a_join(alias)
        interval = self._interval(select, ordering)
        implied = {alias for alias in self.joins if self._is_implied(alias)}
        for alias, table in self.tables.items():
            position = self._position(alias, table, select) if self.query.group_by is None else None
            self.tags.add(f"{table.name}:*")
            of = partial(self._tags_of_column, alias, table)
            columns = set(self.selecting[alias])
            knows_its_rows = position is not None and not self.counts_others
            if position is None:
                columns |= self.shown[alias] | self.ordering[alias] | self._joined_by(alias)
            else:
                assert table.pk_text
                rows.append((position, f"{table.name}:", table.pk_text))
                hidden = hidden.union(*map(of, self.ordering[alias]))
            entering[alias] = enters = set[str]().union(*map(of, columns))
            if alias in self.scopes:
                column, scopes = self.scopes[alias]
                self.tags |= {table.unscoped} | ({table.unjoined} if ">" in column else set())
                enters |= scopes | (set() if alias in implied else {f"{scope}+" for scope in scopes})
                self.tags |= set() if knows_its_rows else {f"{scope}-" for scope in scopes}
            elif alias in self.by_pk and position is not None:
                assert table.pk_text
                pins.append(Pin(position, table.pk_text, self.by_pk[alias], f"{table.name}:+"))
                self.tags |= set() if knows_its_rows else {f"{table.name}:-"}
            elif alias not in implied:
                enters.add(f"{table.name}:+")
                if not knows_its_rows:
                    self.tags.add(f"{table.name}:-")
            self.tags |= enters
            if knows_its_rows and (alias in self.scopes or alias in self.by_pk or alias not in implied):
                ends = ["", f".{self.scopes[alias][0].partition('>')[0]}"] if alias in self.scopes else [""]
                leaving += [(rows[-1][0], f"{table.name}-", rows[-1][2], end) for end in ends]
                hidden.add(table.unscoped)
        return Reading(
            frozenset(self.tags),
            tuple(rows),
            tuple(leaving),
            frozenset(hidden),
            tuple(pins),
            frozenset(entering[str(self.query.get_initial_alias())] if interval else ()),
            interval,
        )

    def _interval(self, select: list[Any], ordering: list[Any]) -> Interval | None:
        """Return the interval of the rows that may be in the result, if it has an end. Only if each row of the first table is known by its key."""
        alias = self.query.get_initial_alias()
        table = self.tables.get(alias)
        is_plain = self.query.group_by is None and not (self.counts_others or self.query.distinct or alias in self.by_pk)
        if table is None or not (table.places and is_plain) or [each.name for each in self.tables.values()].count(table.name) > 1:
            return None
        row = self._position(alias, table, select)
        bounds = tuple(bound for lookup in _conditions(self.query) if (bound := self._bound(lookup, alias, table)))
        order = self._order(alias, table, select, ordering)
        also = "".join([f"\n|and:{'|'.join(tags)}" for tags in self._further_scopes(alias, table)])
        if row is None or table.pk_text is None or not (bounds or order or also):
            return None
        return Interval(table.name, table.placed, bounds, order, row, table.pk_text, self.connection.times_have_zones, also)

    def _further_scopes(self, alias: str, table: Table) -> Iterator[tuple[str, ...]]:
        """Yield the scopes of a table to which the query is limited besides the one that its tags have. A row that enters the result is in all of them.

        The tags of a row name each scope in which it is. If some are unknown, the write has the tag of unknown scopes.
        """
        known, conditions = {self.scopes[alias][0]} if alias in self.scopes else set(), list(_conditions(self.query))
        found = {
            column: values for column, text in table.scopes.items() for lookup in conditions if (values := _constants(lookup, alias, column, text)) is not None
        }
        for column, values in found.items():
            if column not in known and "|" not in column:
                yield (*[f"{table.name}.{column}={value}" for value in sorted(values)], table.unscoped)
        for other, (column, scopes) in self.scopes.items():
            name = self._joined_name(alias, other, column)
            if name in {joined.name for joined in table.joined} - known and "|" not in name:
                prefix = f"{self.tables[other].name}.{column}="
                yield (*[f"{table.name}.{name}={scope.removeprefix(prefix)}" for scope in sorted(scopes)], table.unscoped, table.unjoined)

    def _joined_name(self, alias: str, other: str, column: str) -> str:
        """Return the name of the scopes that a table has through its foreign key to this one; empty if it has none."""
        join = self.joins[other]
        return f"{join.join_cols[0][0]}>{column}" if getattr(join, "parent_alias", None) == alias and _refers(join, forward=True) else ""

    def _bound(self, lookup: Any, alias: str, table: Table) -> Bound | None:
        """Return the bound of a condition on a position, or on a number.

        A plain `published_at <= time` bounds nothing, because the view may take the time from the clock. The next request would allow more.
        """
        is_less, is_greater = isinstance(lookup, LessThan | LessThanOrEqual), isinstance(lookup, GreaterThan | GreaterThanOrEqual)
        if not ((is_less or is_greater) and type(lookup).__module__.startswith("django.db.")):
            return None
        (column, *columns), (value, *values) = _parts(lookup.lhs), _parts(lookup.rhs)
        name = self._placed(column, alias, table)
        if name is None or (type(column.target) is DateTimeField and column is lookup.lhs):
            return None
        if type(value) is Value:
            value = value.value
        if not isinstance(value, datetime if type(column.target) is DateTimeField else int | Decimal):
            return None
        if isinstance(value, datetime):
            value = column.target.get_db_prep_value(value, self.connection)
        place = table.places[name](value, self.connection.times_have_zones)
        if place is None:
            return None
        is_by_key = bool(columns and values) and self._placed(columns[0], alias, table) == table.pk and type(values[0]) is Value
        end = End(place, WHOLE(values[0].value, True) if is_by_key else None)
        return Bound([*table.places].index(name), None, end) if is_less else Bound([*table.places].index(name), end, None)

    def _order(self, alias: str, table: Table, select: list[Any], ordering: list[Any]) -> Order | None:
        """Return the first column of the order, if it is shown and decides which rows are read."""
        limit = self.query.high_mark
        first, *others = [(self._placed(each.expression, alias, table), each.descending) for each in ordering] or [(None, False)]
        name, is_descending = first
        position = next((position for position, shown in columns_of(select) if shown.alias == alias and shown.target.column == name), None)
        if limit is None or name is None or position is None:
            return None
        is_by_key = table.places[str(table.pk)] is WHOLE and others[:1] == [(table.pk, is_descending)]
        return Order([*table.places].index(name), position, table.places[name], is_descending, is_by_key, limit)

    @staticmethod
    def _placed(expression: Any, alias: str, table: Table) -> str | None:
        """Return the column of this expression if it has places."""
        [column] = expression.get_source_expressions() if isinstance(expression, Ref) else [expression]  # an order may name the position of a selected column
        return str(column.target.column) if isinstance(column, Col) and column.alias == alias and column.target.column in table.places else None

    def _tags_of_column(self, alias: str, table: Table, column: str) -> set[str]:
        """Return the tags of changes of a column: in the scopes to which the rows are limited, or anywhere."""
        scoped_by, scopes = self.scopes.get(alias, ("", {table.name}))
        return scopes if column == scoped_by else {f"{scope}.{column}" for scope in scopes}

    def _joined_by(self, alias: str) -> set[str]:
        """Return the columns of a table that are used in joins."""
        columns: set[str] = set()
        for other, join in self.joins.items():
            for left, right in getattr(join, "join_cols", ()):
                columns |= ({left} if join.parent_alias == alias else set()) | ({right} if other == alias else set())
        return columns

    def _table(self, name: str) -> Table:
        try:
            table = tables()[name]
        except KeyError:
            raise Unreadable(f"It reads {name}, which is not tracked. Add {label_of(name)} to FRESHNESS_MODELS.") from None
        if not table.managed:
            self.tags |= tables().keys()
        return table

    def _shows(self, expression: Any) -> bool:
        """Whether this is a plain column."""
        if isinstance(expression, Col) and expression.alias in self.joins:
            self.shown[expression.alias].add(str(expression.target.column))
            return True
        if isinstance(expression, RawSQL) and (named := _column_named(expression.sql)) and named[0] in self.joins and not expression.params:
            self.shown[named[0]].add(named[1])  # Django selects the other end of a many-to-many relation like this
            return True
        return False

    def _pins(self) -> list[Any]:
        """Note the tables that are limited to certain rows, or otherwise to certain scopes, and return these conditions."""
        taken = []
        conditions = list(_conditions(self.query))
        for alias, table in self.tables.items():
            pins: dict[str, Text] = {table.pk: table.pk_text} if table.pk and table.pk_text else {}
            for column, text in [*pins.items(), *table.scopes.items()]:  # a reference has more values than most other columns, and so smaller scopes
                found = [(lookup, values) for lookup in conditions if (values := _constants(lookup, alias, column, text)) is not None]
                if not found:
                    continue
                lookup, values = found[0]
                taken.append(lookup)
                if column in pins:
                    self.by_pk[alias] = values
                else:
                    self.scopes[alias] = column, {f"{table.name}.{column}={value}" for value in values}
                break
        return taken

    def _scope_through_a_join(self, alias: str) -> None:
        """Limit a table to the scopes of a row to which it refers, unless it is limited to rows, or to a reference of its own, which has smaller scopes."""
        own, table = self.scopes.get(alias), self.tables[alias]
        if alias in self.by_pk or (own and own[0] in table.references):
            return
        for other, (column, scopes) in [*self.scopes.items()]:
            name = self._joined_name(alias, other, column)
            if name in [joined.name for joined in table.joined]:
                prefix = f"{self.tables[other].name}.{column}="
                self.scopes[alias] = name, {f"{table.name}.{name}={scope.removeprefix(prefix)}" for scope in scopes}
                self.selecting[alias] |= {own[0]} if own else set()
                return

    def _lead_to(self, alias: str) -> None:
        """Note the columns of the joins on the way, because a changed reference may bring another row into the result."""
        while parent := getattr(self.joins[alias], "parent_alias", None) if alias in self.joins else None:
            join = self.joins[alias]
            self.selecting[parent].update(left for left, _ in join.join_cols)
            alias = parent

    def _is_implied(self, alias: str) -> bool:
        """Whether a row of this table always exists, because another row of the result refers to it by a foreign key."""
        if _refers(self.joins[alias], forward=True):
            return True
        return any(getattr(join, "parent_alias", None) == alias and join.join_type == INNER and _refers(join, forward=False) for join in self.joins.values())

    def _position(self, alias: str, table: Table, select: list[Any]) -> int | None:
        """Return the position of this table's primary key, or of an equal reference, in a row of the result."""
        same = [(alias, table.pk)]
        if table.pk and _refers(join := self.joins[alias], forward=True) and join.join_cols[0][1] == table.pk:
            same.append((join.parent_alias, join.join_cols[0][0]))
        return next((place for place, column in columns_of(select) if (column.alias, column.target.column) in same), None)

    # Expressions

    def _walk(self, expression: Any, *, inner: bool = False) -> None:
        """Note the columns in an expression, and all tables of its subqueries."""
        if isinstance(expression, Col):
            if expression.alias in self.joins:
                self.into[expression.alias].add(str(expression.target.column))
            elif not inner:
                raise Unreadable(f"It has a column of {expression.alias}, which it does not join.")
        elif isinstance(expression, Query):
            self.take_whole(expression)
        elif isinstance(expression, list | tuple | set | frozenset):
            for each in expression:
                if hasattr(each, "as_sql") or isinstance(each, list | tuple):
                    self._walk(each, inner=inner)
        elif expression is not None and not isinstance(expression, NothingNode):
            for part in self._parts(expression):
                self._walk(part, inner=inner)

    def _parts(self, expression: Any) -> Iterator[Any]:
        """Yield the parts of an expression or a condition. Raises Unreadable."""
        if isinstance(expression, RawSQL | ExtraWhere):
            raise Unreadable("It has raw SQL (RawSQL, extra()), whose tables are unknown. Use expressions instead.")
        if isinstance(expression, Func) and (why := _hidden_in(expression)):
            raise Unreadable(why)
        if type(expression).__name__ in ("Now", "TransactionNow"):
            raise Unreadable(f"It depends on the time of day ({type(expression).__name__}), which changes without a write.")
        if type(expression).__name__ in ("Random", "RandomUUID"):
            raise Unreadable("It is random (order_by('?')), and a cached response would not be.")
        self.counts_others = self.counts_others or isinstance(expression, Window)
        if hasattr(expression, "children"):
            yield from expression.children
        elif hasattr(expression, "get_source_expressions"):
            yield from expression.get_source_expressions()
            yield from (inner for name in ("query", "query_object") if isinstance(inner := getattr(expression, name, None), Query))
            yield from (right for right in [getattr(expression, "rhs", None)] if isinstance(right, list | tuple | set | frozenset))
        else:
            raise Unreadable(f"It has a {type(expression).__name__}, whose columns cannot be read.")

    # Subqueries

    def take_whole(self, query: Any) -> None:
        """Depend on every write to each table that this query reads. Raises Unreadable."""
        self._refuse_raw(query)
        if query.select_related:
            raise Unreadable("It is a union() whose parts have select_related(), whose tables are unknown. Use values() instead.")
        for combined in query.combined_queries:
            self.take_whole(combined)
        if isinstance(inner := getattr(query, "inner_query", None), Query):
            self.take_whole(inner)
        for join in query.alias_map.values():
            self.tags.add(self._table(join.table_name).name)
            if filtered := getattr(join, "filtered_relation", None):
                self._walk(filtered.resolved_condition, inner=True)
        expressions = [query.where, *query.annotations.values(), *query.select]
        expressions += [each for each in query.order_by if not isinstance(each, str)]
        for expression in expressions:
            self._walk(expression, inner=True)

    def _refuse_raw(self, query: Any) -> None:
        if query.extra_tables or query.extra_order_by or any(_column_named(text) is None for text, _ in query.extra.values()):
            raise Unreadable("It uses extra(), whose tables are unknown. Use expressions instead.")


def _refers(join: Any, *, forward: bool) -> bool:
    """Whether a join follows one enforced foreign key: from its parent to its table (forward), or from its table to its parent."""
    field: Any = getattr(join, "join_field", None)
    if not forward and isinstance(field, ForeignObjectRel):
        field = getattr(field, "field", None)
        ours = True
    else:
        ours = forward
    return ours and isinstance(field, ForeignKey) and getattr(field, "db_constraint", False) and len(join.join_cols) == 1 and not join.filtered_relation


def _hidden_in(function: Func) -> str | None:
    """Return why a function may read more than its arguments, or None if it does not."""
    template = function.extra.get("template", function.template)
    if template and SELECT.search(template):
        return f"It has a SELECT in the template of {type(function).__name__}, whose tables are unknown. Use expressions instead."
    is_djangos = type(function) is not Func and type(function).__module__.startswith("django.")
    if not is_djangos and not function.source_expressions:
        name = function.extra.get("function", function.function)
        return f"It calls {name or type(function).__name__}() without arguments, so its dependencies are unknown. Pass it the columns that it reads."
    return None


def _column_named(sql: str) -> tuple[str, str] | None:
    """Return the two names of `"table"."column"`."""
    parts = sql.split('"')
    return (parts[1], parts[3]) if len(parts) == 5 and (parts[0], parts[2], parts[4]) == ("", ".", "") else None


class Select:
    """The SELECT of a queryset, compiled once and executed often. Django would compile the queryset each time.

    It takes a queryset of `values_list()` or of plain columns. The rows are tuples with Django's conversions.
    """

    def __init__(self, queryset: QuerySet[Any]) -> None:
        compiler: Any = queryset.query.get_compiler(queryset.db)
        self._queryset: QuerySet[Any] | None = queryset
        """None if this is a copy with another number."""
        self._tables = tables()
        self._alias, self._query = queryset.db, queryset.query
        self._sql: str | None = None
        """None if no row can match."""
        self._parameters: tuple[Any, ...] = ()
        self._reading: Reading | str = Reading()
        try:
            self._sql, self._parameters = compiler.as_sql()
        except EmptyResultSet:
            return
        self._columns = [column for column, *_ in compiler.select]
        self._is_converted = bool(compiler.get_converters(self._columns))
        """Whether Django converts any of the values that this database returns. PostgreSQL's driver returns those of most columns as they are."""
        try:
            self._reading = read_off(compiler)
        except Unreadable as why:
            self._reading = f"A query on {queryset.model._meta.label} cannot be read: {why}"

    def rows(self, shown: int | None = None) -> list[Any]:
        """Execute the SELECT, and return its rows. If only the first `shown` rows are shown, changes of the others do not invalidate the response."""
        if self._tables is not tables() and self._queryset is not None:  # the tags of the models have changed
            vars(self).update(vars(Select(self._queryset)))
        connection: Any = connections[self._alias]
        rows = self._fetched(connection) if self._sql else []
        if (recording := recorder()) is not None:
            if isinstance(self._reading, str):
                recording.refuse(self._reading)
            else:
                recording.note(self._reading, rows[:shown], rows[shown:] if shown is not None else ())
        if not rows or not self._is_converted:
            return list(map(list, rows))
        compiler = self._query.get_compiler(self._alias)  # of this thread's connection
        return list(compiler.apply_converters(rows, compiler.get_converters(self._columns)))

    def _fetched(self, connection: Any) -> list[Any]:
        with connection.repeating_cursor() as cursor:
            connection.announced = NOTHING
            try:
                cursor.execute(self._sql, self._parameters)
            finally:
                connection.announced = None
            rows: list[Any] = cursor.fetchall()
            return rows

    # The same with another number

    def equals(self, other: Select) -> bool:
        """Whether both have the same SQL, parameters and dependencies. Those that need no SQL may have different reasons."""
        return self._sql is not None and (self._sql, self._parameters, self._reading) == (other._sql, other._parameters, other._reading)

    def with_number(self, old: int, new: int) -> Select:
        """Return this SELECT with another number in its parameters and in its dependencies."""
        found = object.__new__(Select)
        vars(found).update(vars(self))
        found._queryset = None
        found._parameters = tuple([new if value == old and type(value) is int else value for value in self._parameters])
        if isinstance(self._reading, Reading):
            found._reading = self._reading.with_text(str(old), str(new))
        return found


class SelectFor:
    """The SELECTs of one queryset for different numbers, such as ids, compiled only once: `SelectFor(lambda pk: Home.objects.filter(pk=pk).values_list())`.

    The function must make its queryset in the same way for each number.
    """

    SAMPLE = 1_804_289_383
    """A number of 32 bits that no other part of a query has."""

    LARGEST = (2**63 - 1, 2**31 - 1)
    """The largest numbers of columns of 64 and of 32 bits. Django finds no row with a larger number, and sends no SQL."""

    def __init__(self, queryset_for: Callable[[int], QuerySet[Any]]) -> None:
        self._queryset_for, self._tables = queryset_for, tables()
        self._compiled = Select(queryset_for(self.SAMPLE))
        self._largest = next((most for most in self.LARGEST if self._compiled.with_number(self.SAMPLE, most).equals(Select(queryset_for(most)))), -1)
        """The largest number for which it is certain that only the number differs; -1 if that is certain for none."""

    def number(self, number: int) -> Select:
        """Return the SELECT for this number."""
        if self._tables is not tables():
            vars(self).update(vars(SelectFor(self._queryset_for)))
        if 0 <= number <= self._largest:
            return self._compiled.with_number(self.SAMPLE, number)
        return Select(self._queryset_for(number))
