"""What a query depends on, read off the query itself.

While a response is filled, a recorder notes each SELECT of Django's: which tables it joins, which rows it shows, and which columns select and order
them. Nothing is listed by hand. An inner query is taken whole, and what cannot be read keeps the response out of the cache.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.db.models import ForeignKey, ForeignObjectRel, QuerySet
from django.db.models.expressions import Col, ColPairs, Func, RawSQL, Window
from django.db.models.fields.tuple_lookups import TupleIn
from django.db.models.lookups import Exact, In
from django.db.models.sql.constants import INNER
from django.db.models.sql.query import Query
from django.db.models.sql.where import ExtraWhere, NothingNode

from .tracking import MANY_ROWS, Table, Text, label_of, tables

Row = Sequence[Any]

SELECT = re.compile(r"\bselect\b", re.IGNORECASE)

Columns = defaultdict[str, set[str]]
"""alias → columns."""


class Unreadable(Exception):
    """A query whose dependencies cannot be read; the message says which part of it, and what to do."""


@dataclass(frozen=True)
class Pin:
    """A table of which only the rows with these primary keys are asked for."""

    position: int
    text: Text
    wanted: frozenset[str]
    missing: str
    """The tag on which an entry depends that found fewer: one of them may be created."""


@dataclass(frozen=True)
class Reading:
    """What the response to one query depends on."""

    static: frozenset[str] = frozenset()
    """The tags that depend on the query alone."""
    rows: tuple[tuple[int, str, Text], ...] = ()
    """Of each table whose rows can be told apart: where in a row of the result its primary key stands, and how it becomes a tag."""
    hidden: frozenset[str] = frozenset()
    """The tags in addition where not all rows that were read are shown: a deleted one moves the others."""
    pins: tuple[Pin, ...] = ()

    def tags(self, shown: Collection[Row], *, read: int | None = None) -> set[str]:
        """The tags of a response that shows these rows, of so many that were read."""
        found = set(self.static)
        for position, prefix, text in self.rows:
            if text is str:  # without a call for each row
                found.update([f"{prefix}{row[position]}" for row in shown if row[position] is not None])
            else:
                found.update([f"{prefix}{text(row[position])}" for row in shown if row[position] is not None])
        for pin in self.pins:
            if not pin.wanted <= {pin.text(row[pin.position]) for row in shown if row[pin.position] is not None}:
                found.add(pin.missing)
        if read is not None and read > len(shown):
            found |= self.hidden
        return found


class Recorder:
    """What a response depends on, noted while it is filled."""

    def __init__(self) -> None:
        self.tags: set[str] = set()
        self.queries = 0
        self.unreadable: str | None = None

    def note(self, reading: Reading, shown: Collection[Row], *, read: int | None = None) -> None:
        """One query that was read off."""
        self.queries += 1
        self.tags |= reading.tags(shown, read=read)

    def refuse(self, why: str) -> None:
        """Something whose dependencies are not known."""
        self.unreadable = self.unreadable or why

    @property
    def complaint(self) -> str | None:
        """Why what was recorded is not enough to store the response; None if it is."""
        if self.unreadable is None and not self.queries:
            return "No query was seen. A response that depends on no query would never be invalidated."
        return self.unreadable


_recorder: ContextVar[Recorder | None] = ContextVar("freshness_recorder", default=None)

recorder: Callable[[], Recorder | None] = _recorder.get
"""The recorder of the fill in progress, if there is one. It goes where the context goes, and so not into threads that a view starts by itself."""


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Note what is read within."""
    token = _recorder.set(found := Recorder())
    try:
        yield found
    finally:
        _recorder.reset(token)


def read_off(compiler: Any) -> Reading:
    """What the query of this compiler, which has just made its SQL, depends on. Raises Unreadable."""
    query = compiler.query
    reader = _Reader(query, compiler.joined or ())
    if query.combinator or hasattr(query, "inner_query") or query.explain_info:
        reader.take_whole(query)
        return Reading(frozenset(reader.tags))
    select = [expression for expression, *_ in compiler.select]
    reader.read(select, [expression for expression, *_ in compiler.ordering or ()])
    return reader.reading(select)


def columns_of(select: Iterable[Any]) -> Iterator[tuple[int, Col]]:
    """The plain columns of a SELECT, and where each stands in a row of the result: a composite primary key takes a place for each of its columns."""
    place = 0
    for expression in select:
        if isinstance(expression, Col):
            yield place, expression
        place += len(expression) if isinstance(expression, ColPairs) else 1


def pinned(query: Query, alias: str, column: str, text: Text) -> frozenset[str] | None:
    """The values, as tags have them, to which a query's conditions bind this column; None if they do not."""
    for lookup in _conditions(query):
        found = _constants(lookup, alias, column, text)
        if found is not None:
            return found
    return None


def _conditions(query: Query) -> Iterator[Any]:
    """The conditions that all must hold."""
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
    if not (isinstance(left, Col) and left.alias == alias and left.target.column == column) or hasattr(right, "as_sql"):
        return None
    values = [right] if isinstance(lookup, Exact) else list(right)
    if len(values) > MANY_ROWS or any(hasattr(value, "as_sql") for value in values):
        return None
    return frozenset(text(value) for value in values if value is not None)


class _Reader:
    """Walks one query, alias by alias."""

    def __init__(self, query: Query, joined: Iterable[str]) -> None:
        self.query = query
        self.tags: set[str] = set()
        self.selecting: Columns = defaultdict(set)
        self.shown: Columns = defaultdict(set)
        self.ordering: Columns = defaultdict(set)
        self.into = self.selecting
        self.joins: dict[str, Any] = {alias: query.alias_map[alias] for alias in joined}
        self.tables = {alias: self._table(join.table_name) for alias, join in self.joins.items()}
        self.scopes: dict[str, set[str]] = {}
        self.by_pk: dict[str, frozenset[str]] = {}
        self.counts_others = bool(query.low_mark)
        """Whether what is shown depends on how many rows there are that are not: those before an offset, and those in a window."""

    # What the query says.

    def read(self, select: Iterable[Any], ordering: Iterable[Any]) -> None:
        """Note the columns that are shown, and those that select and order. Raises Unreadable."""
        self._refuse_raw(self.query)
        for expression in select:
            if not self._shows(expression):
                self._walk(expression)
        self._where()
        for each in self.query.group_by if isinstance(self.query.group_by, tuple) else ():
            self._walk(each if hasattr(each, "as_sql") else self.query.resolve_ref(each))
        if not (self.query.is_sliced or self.query.distinct_fields):  # of all rows, the order decides only where each is shown
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
        """Note the conditions: which rows are asked for, and by which columns the others are chosen."""
        taken = self._pins()
        for child in _conditions(self.query) if taken else [self.query.where]:
            if not any(child is lookup for lookup in taken):
                self._walk(child)

    def _join(self, alias: str, join: Any) -> None:
        """Note the columns of a join that decide which rows there are."""
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

    def reading(self, select: list[Any]) -> Reading:
        """What follows from it."""
        rows, pins, hidden = [], [], set[str]()
        implied = {alias for alias in self.joins if self._is_implied(alias)}
        for alias, table in self.tables.items():
            position = self._position(alias, table, select) if self.query.group_by is None else None
            self.tags.add(f"{table.name}:*")
            columns = set(self.selecting[alias])
            if position is None:
                columns |= self.shown[alias] | self.ordering[alias] | self._joined_by(alias)
            else:
                assert table.pk_text
                rows.append((position, f"{table.name}:", table.pk_text))
                hidden |= {f"{table.name}.{column}" for column in self.ordering[alias]}
            self.tags |= {f"{table.name}.{column}" for column in columns}
            leaving = {f"{table.name}:-"}
            if alias in self.scopes:
                self.tags |= self.scopes[alias]
                leaving = {tag.partition("=")[0] for tag in self.scopes[alias]}
            elif alias in self.by_pk and position is not None:
                assert table.pk_text
                pins.append(Pin(position, table.pk_text, self.by_pk[alias], f"{table.name}:+"))
            elif alias not in implied:
                self.tags.add(f"{table.name}:+")
            else:
                continue
            (self.tags if position is None or self.counts_others else hidden).update(leaving)
        return Reading(frozenset(self.tags), tuple(rows), frozenset(hidden), tuple(pins))

    def _joined_by(self, alias: str) -> set[str]:
        """The columns of a table that lead to another one, or by which its rows are asked for."""
        columns = {tag.partition("=")[0].rpartition(".")[2] for tag in self.scopes.get(alias, ())}
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
        """Whether this is a column as it is."""
        if isinstance(expression, Col) and expression.alias in self.joins:
            self.shown[expression.alias].add(str(expression.target.column))
            return True
        if isinstance(expression, RawSQL) and (named := _column_named(expression.sql)) and named[0] in self.joins and not expression.params:
            self.shown[named[0]].add(named[1])  # as Django asks for the other end of a many-to-many relation
            return True
        return False

    def _pins(self) -> list[Any]:
        """Note the tables of which only certain rows are asked for, and return the conditions that say so."""
        taken = []
        for lookup in _conditions(self.query):
            for alias, table in self.tables.items():
                if alias in self.scopes or alias in self.by_pk:
                    continue
                if table.pk and table.pk_text and (found := _constants(lookup, alias, table.pk, table.pk_text)) is not None:
                    self.by_pk[alias] = found
                    taken.append(lookup)
                for column, text in table.references.items():
                    if column != table.pk and (found := _constants(lookup, alias, column, text)) is not None:
                        self.scopes[alias] = {f"{table.name}.{column}={value}" for value in found}
                        taken.append(lookup)
        return taken

    def _lead_to(self, alias: str) -> None:
        """A row that is not shown enters if its reference leads to another row: so the columns on the way select, too."""
        while parent := getattr(self.joins[alias], "parent_alias", None) if alias in self.joins else None:
            join = self.joins[alias]
            self.selecting[parent].update(left for left, _ in join.join_cols)
            alias = parent

    def _is_implied(self, alias: str) -> bool:
        """Whether a row of this table is there because another one of the result refers to it: the database sees to that."""
        if _refers(self.joins[alias], forward=True):
            return True
        return any(getattr(join, "parent_alias", None) == alias and join.join_type == INNER and _refers(join, forward=False) for join in self.joins.values())

    def _position(self, alias: str, table: Table, select: list[Any]) -> int | None:
        """Where in a row of the result this table's primary key stands, or a reference that equals it."""
        same = [(alias, table.pk)]
        if table.pk and _refers(join := self.joins[alias], forward=True) and join.join_cols[0][1] == table.pk:
            same.append((join.parent_alias, join.join_cols[0][0]))
        return next((place for place, column in columns_of(select) if (column.alias, column.target.column) in same), None)

    # Expressions

    def _walk(self, expression: Any, *, inner: bool = False) -> None:
        """Note the columns in an expression, and take the queries in it whole."""
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
        """What an expression or a condition is made of. Raises Unreadable."""
        if isinstance(expression, RawSQL | ExtraWhere):
            raise Unreadable("It has SQL as text (RawSQL, extra()), which nobody can read. Write it with expressions.")
        if isinstance(expression, Func) and (why := _hidden_in(expression)):
            raise Unreadable(why)
        if type(expression).__name__ in ("Now", "TransactionNow"):
            raise Unreadable(f"It depends on the time of day ({type(expression).__name__}), which invalidates nothing as it passes.")
        if type(expression).__name__ in ("Random", "RandomUUID"):
            raise Unreadable("It is random (order_by('?')), and would be the same until something is written.")
        self.counts_others = self.counts_others or isinstance(expression, Window)
        if hasattr(expression, "children"):
            yield from expression.children
        elif hasattr(expression, "get_source_expressions"):
            yield from expression.get_source_expressions()
            yield from (inner for name in ("query", "query_object") if isinstance(inner := getattr(expression, name, None), Query))
            yield from (right for right in [getattr(expression, "rhs", None)] if isinstance(right, list | tuple | set | frozenset))
        else:
            raise Unreadable(f"It has a {type(expression).__name__}, whose columns cannot be read.")

    # Queries in it

    def take_whole(self, query: Any) -> None:
        """Depend on every write to each table that this query reads. Raises Unreadable."""
        self._refuse_raw(query)
        if query.select_related:
            raise Unreadable("It is a union() whose parts have select_related(), and the tables that those join are not known. Join them by values().")
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
            raise Unreadable("It uses extra(), whose SQL nobody can read. Write it with expressions.")


def _refers(join: Any, *, forward: bool) -> bool:
    """Whether a join follows one foreign key that the database enforces: from its parent to its table (forward), or from its table to its parent."""
    field: Any = getattr(join, "join_field", None)
    if not forward and isinstance(field, ForeignObjectRel):
        field = getattr(field, "field", None)
        ours = True
    else:
        ours = forward
    return ours and isinstance(field, ForeignKey) and getattr(field, "db_constraint", False) and len(join.join_cols) == 1 and not join.filtered_relation


def _hidden_in(function: Func) -> str | None:
    """A sentence about what a function reads beside its arguments; None if it reads nothing else."""
    template = function.extra.get("template", function.template)
    if template and SELECT.search(template):
        return f"It has SQL as text in the template of {type(function).__name__}, which nobody can read. Write it with expressions."
    is_djangos = type(function) is not Func and type(function).__module__.startswith("django.")
    if not is_djangos and not function.source_expressions:
        name = function.extra.get("function", function.function)
        return f"It calls {name or type(function).__name__}() of no column, and nobody knows what that depends on. Give it the columns that it reads."
    return None


def _column_named(sql: str) -> tuple[str, str] | None:
    """`"table"."column"` → its two names."""
    parts = sql.split('"')
    return (parts[1], parts[3]) if len(parts) == 5 and (parts[0], parts[2], parts[4]) == ("", ".", "") else None


class Select:
    """A queryset's SELECT, compiled once, to be read as often as it is asked: Django compiles a queryset each time it is read.

    Of `values_list()` or of plain columns: the rows are tuples as the database gives them, converted as Django does.
    """

    def __init__(self, queryset: QuerySet[Any]) -> None:
        self._compiler: Any = queryset.query.get_compiler(queryset.db)
        self._alias = queryset.db
        self._query = queryset.query
        self._sql, self._parameters = self._compiler.as_sql()
        self._columns = [column for column, *_ in self._compiler.select]
        try:
            self._reading: Reading | str = read_off(self._compiler)
        except Unreadable as why:
            self._reading = f"A query on {queryset.model._meta.label} cannot be read: {why}"

    def rows(self, shown: int | None = None) -> list[Any]:
        """The rows there are now, in one SELECT. Where only the first `shown` are, say so: a change of the others does not matter then."""
        compiler = self._query.get_compiler(self._alias)
        connection = compiler.connection
        with connection.cursor() as cursor:
            connection.is_announced = True
            try:
                cursor.execute(self._sql, self._parameters)
            finally:
                connection.is_announced = False
            rows = cursor.fetchall()
        if (recording := recorder()) is not None:
            if isinstance(self._reading, str):
                recording.refuse(self._reading)
            else:
                recording.note(self._reading, rows[:shown], read=len(rows))
        return list(compiler.apply_converters(rows, compiler.get_converters(self._columns)))
