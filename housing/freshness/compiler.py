"""Django's query compilers, which record what they read and tag what they write.

Every way to write through Django's models ends here: `save()`, `update()`, `bulk_create()`, the deletion collector, many-to-many managers, a
migration's models. The compiler knows the table, the columns and often the rows, so a write tags them before its COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet
from django.db import NotSupportedError
from django.db.models import Field
from django.db.models.constants import OnConflict
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import MULTI, ROW_COUNT

from .dependencies import Recorder, Unreadable, columns_of, pinned, read_off, recorder
from .statements import NOTHING
from .tracking import MANY_ROWS, Table, cascades, tables


class Reads(SQLCompiler if TYPE_CHECKING else object):  # type: ignore[misc]  # its base counts as Any, because the stubs lack what it overrides
    """A compiler of SELECTs. It records the dependencies of a response, and the values of locked rows."""

    ordering: Any = None
    joined: list[str] | None = None
    is_empty = False

    def pre_sql_setup(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the joins and the ordering of the query."""
        found = super().pre_sql_setup(*args, **kwargs)
        _, self.ordering, _ = found
        self.joined = [alias for alias, references in self.query.alias_refcount.items() if references]  # Django drops them after it has made the SQL
        return found

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Record a query that needs no SQL because no row can match."""
        try:
            return super().as_sql(*args, **kwargs)
        except EmptyResultSet:
            self.is_empty = True
            raise

    def execute_sql(self, result_type: Any = MULTI, *args: Any, **kwargs: Any) -> Any:
        """Execute the query, and record its dependencies."""
        connection = self.connection
        connection.ensure_connection()  # receivers of `connection_created` may execute SQL
        connection.announced = NOTHING
        try:
            result = super().execute_sql(result_type, *args, **kwargs)
        finally:
            connection.announced = None
        if (recording := recorder()) is not None:
            result = self._record(recording, result_type, result)
        if self.query.select_for_update and isinstance(result, list) and connection.holds_locks:
            self._hold(result)
        return result

    def _record(self, recording: Recorder, result_type: Any, result: Any) -> Any:
        if self.is_empty:
            recording.queries += 1
            return result
        try:
            reading = read_off(self)
        except Unreadable as why:
            recording.refuse(f"A query on {self.query.model._meta.label} cannot be read: {why}")
            return result
        if result_type != MULTI:
            recording.note(reading, [] if result is None or not reading.rows else [result])
            return result
        if isinstance(result, list):
            recording.note(reading, [row for chunk in result for row in chunk])
            return result
        return _each_noted(recording, reading, result)

    def _hold(self, chunks: list[list[Any]]) -> None:
        """Keep the values of rows that were read FOR UPDATE. While they are locked, only this transaction can change them."""
        of = self.query.select_for_update_of
        table = tables().get(self.query.get_meta().db_table)
        if table is None or table.pk is None or (of and "self" not in of):
            return
        alias = self.query.get_initial_alias()
        places = {column.target.column: place for place, column in columns_of(each for each, *_ in self.select) if column.alias == alias}
        if table.pk not in places:
            return
        converters = self.get_converters([each for each, *_ in self.select])
        for row in self.apply_converters([list(row) for chunk in chunks for row in chunk], converters):
            self.connection.hold(table, row[places[table.pk]], {column: row[place] for column, place in places.items()})


def _each_noted(recording: Recorder, reading: Any, chunks: Iterable[Any]) -> Iterable[Any]:
    """Yield the rows of an iterator, and record them as they are read."""
    recording.note(reading, [], read=1)  # the caller may stop early
    for chunk in chunks:
        recording.note(reading, chunk)
        yield chunk


class Writes(SQLCompiler if TYPE_CHECKING else object):  # type: ignore[misc]  # its base counts as Any, because the stubs lack what it overrides
    """A compiler of INSERT, UPDATE or DELETE. It tags the write in its transaction, and opens one in autocommit."""

    verb: str
    _touched: frozenset[str] = NOTHING
    """The tables that the statement tags while it is being executed."""

    def _write(self, send: Callable[[], Any]) -> Any:
        opts = self.query.get_meta()
        name = opts.db_table
        if recorder() is not None:
            raise NotSupportedError(
                f"A cached view writes {opts.label} during a GET. The write would not happen when the response is cached. "
                "Write in another request, or do not cache the view."
            )
        if self._touched or not (name in tables() or name in cascades() or not opts.managed):
            return self._announce(send)
        if self.connection.in_transaction:
            return self._write_in_transaction(send, name)
        with self.connection.own_transaction():
            return self._write_in_transaction(send, name)

    def _write_in_transaction(self, send: Callable[[], Any], name: str) -> Any:
        table = tables().get(name)
        is_table = table.managed if table else self.query.get_meta().managed  # otherwise it may be a view of any table
        self._touched = frozenset({name, *cascades().get(name, ())} & tables().keys() if is_table else tables())
        try:
            result = self._announce(send)
            if is_table:
                self._tag(table, result)
            else:
                self._tag_all(self._touched)
        except BaseException:  # the statement may have been executed
            self._tag_all(self._touched)
            raise
        finally:
            self._touched = NOTHING
        return result

    def _announce(self, send: Callable[[], Any]) -> Any:
        """Execute the statement without the cursor's analysis of its text."""
        connection = self.connection
        connection.ensure_connection()  # receivers of `connection_created` may execute SQL
        connection.announced = self._touched
        try:
            return send()
        finally:
            connection.announced = None

    def _tag(self, table: Table | None, result: Any) -> None:
        """Tag the write."""
        raise NotImplementedError

    def _tag_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.connection.tag(name, tables()[name].all)

    def _say(self, table: Table, keys: Collection[Any], tags: set[str]) -> None:
        """Tag the write, with a sentence for the log."""
        self.connection.tag(table.name, tags, f"[ORM] {table.label} {', '.join(map(str, keys)) or '(rows unknown)'} {self.verb}.")


class Inserts(Writes):
    """The compiler of INSERT."""

    verb = "created"
    returned: Any = None

    def execute_sql(self, returning_fields: Any = None) -> Any:
        """Execute it, and read the returned rows before autocommit commits."""
        return self._write(lambda: super(Inserts, self).execute_sql(returning_fields))

    def _tag(self, table: Table | None, result: Any) -> None:
        if table is None:
            return None
        if self.query.on_conflict == OnConflict.UPDATE:
            return self._say(table, (), table.all)
        objs = self.query.objs
        tags = {table.name, f"{table.name}:+"}
        written = {field.column: field for field in self.query.fields}
        for column, text in table.references.items():
            if column not in written:
                return self._say(table, (), table.all)  # the value is a default of the database, and unknown here
            for obj in objs:
                value = getattr(obj, written[column].attname)
                if hasattr(value, "resolve_expression"):
                    return self._say(table, (), table.all)
                if value is not None:
                    tags.add(f"{table.name}.{column}={text(_prepared(written[column], value))}")
        keys = [row[0] for row in result or ()] if self.returning_fields and self.returning_fields[0].primary_key else [obj.pk for obj in objs if obj.pk]
        if self.connection.has_tagged(table.name, f"{table.name}:-") and self._is_again(table, keys):
            return self._say(table, (), table.all)
        return self._say(table, keys if len(keys) < MANY_ROWS else (), tags)

    def _is_again(self, table: Table, keys: Iterable[Any]) -> bool:
        """Whether a row has the key of a row that this transaction deleted. References to the key stay the same, although the row has changed."""
        text, field = table.pk_text, self.query.get_meta().pk
        return text is None or any(self.connection.has_tagged(table.name, f"{table.name}:{text(_prepared(field, key))}") for key in keys)


class Updates(Writes):
    """The compiler of UPDATE."""

    verb = "changed"

    def execute_sql(self, result_type: Any) -> Any:
        """Execute it."""
        self.result_type = result_type
        return self._write(lambda: super(Updates, self).execute_sql(result_type))

    def execute_returning_sql(self, returning_fields: Any) -> Any:
        """Execute it, and read the returned rows (Django 6.0 and later)."""
        return self._write(lambda: super(Updates, self).execute_returning_sql(returning_fields))

    def _tag(self, table: Table | None, result: Any) -> None:
        if table is None or not self.query.values or self._wrote_nothing(result):
            return None
        keys = table.pk and table.pk_text and pinned(self.query, self.query.get_initial_alias(), table.pk, table.pk_text)
        if not keys:
            return self._say(table, (), table.all) if keys is None or not table.pk else None
        tags = {table.name, *(f"{table.name}:{key}" for key in keys)}
        holds_rows = self.connection.holds_rows
        for field, _, given in self.query.values:
            value = given.prepare_database_save(field) if hasattr(given, "prepare_database_save") else given
            if field.primary_key:
                return self._say(table, (), table.all)
            is_known = not hasattr(value, "resolve_expression")
            if holds_rows and is_known and all(self.connection.is_held(table, key, field.column, value) for key in keys):
                continue
            tags.add(f"{table.name}.{field.column}")
            if text := table.references.get(field.column):
                if not is_known:
                    return self._say(table, (), table.all)
                if value is not None:
                    tags.add(f"{table.name}.{field.column}={text(_prepared(field, value))}")
        return self._say(table, sorted(keys), tags | {f"{table.name}.{column}" for column in table.generated})

    def _wrote_nothing(self, result: Any) -> bool:
        """Whether certainly no row matched."""
        if self.query.related_updates:
            return False
        return bool(result == [] or (result == 0 and self.result_type == ROW_COUNT))


class Deletes(Writes):
    """The compiler of DELETE. It returns the deleted rows, whose references are tagged."""

    verb = "deleted"
    _returned: list[Any] | None = None

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Add RETURNING if a condition bounds the rows and the database supports it."""
        sql, params = super().as_sql(*args, **kwargs)
        table = tables().get(self.query.get_meta().db_table)
        self._columns = self._asked_back(table) if table else []
        if self._columns:
            sql += f" RETURNING {', '.join(map(self.connection.ops.quote_name, self._columns))}"
        return sql, params

    def execute_sql(self, result_type: Any = MULTI, *args: Any, **kwargs: Any) -> Any:
        """Execute it."""
        return self._write(lambda: self._send(result_type, *args, **kwargs))

    def _send(self, result_type: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            sql, params = self.as_sql()
        except EmptyResultSet:  # no row can match
            self._columns, self._returned = [], []
        if not self._columns:
            return super().execute_sql(result_type, *args, **kwargs)
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params)
            self._returned = cursor.fetchall()
        return len(self._returned)

    def _asked_back(self, table: Table) -> list[str]:
        """Return the columns for RETURNING: none if no condition bounds the rows, because the database would send them all."""
        alias = self.query.get_initial_alias()
        pins = {**({table.pk: table.pk_text} if table.pk else {}), **table.references}
        if table.pk is None or not self.connection.features.can_return_rows_from_bulk_insert:
            return []
        if not any(text and pinned(self.query, alias, column, text) is not None for column, text in pins.items()):
            return []
        return list(dict.fromkeys([table.pk, *table.references]))

    def _tag(self, table: Table | None, result: Any) -> None:
        if self._returned == [] or result == 0:
            return
        self._tag_all(cascades().get(self.query.get_meta().db_table, ()))
        if table is None:
            return
        if self._returned is None:
            self._say(table, (), table.all)
            return
        tags = {table.name, f"{table.name}:-"}
        for place, column in enumerate(self._columns):
            values = {row[place] for row in self._returned} - {None}
            if column == table.pk and table.pk_text:
                tags.update(f"{table.name}:{table.pk_text(value)}" for value in values)
            if text := table.references.get(column):
                tags.update(f"{table.name}.{column}={text(value)}" for value in values)
        self._say(table, [row[0] for row in self._returned] if len(self._returned) <= MANY_ROWS else (), tags)


def _prepared(field: Field[Any, Any], value: Any) -> Any:
    """Return a value as the database stores it."""
    return value if type(value) is int else field.get_prep_value(value)


MIXINS = {"SQLCompiler": Reads, "SQLAggregateCompiler": Reads, "SQLInsertCompiler": Inserts, "SQLUpdateCompiler": Updates, "SQLDeleteCompiler": Deletes}
"""Django's compilers, and the mixin of each. Any other compiler is refused, because its writes are unknown."""


@cache
def mixed(name: str, theirs: type) -> type:
    """Return Django's compiler with its mixin."""
    return type(name, (MIXINS[name], theirs), {})


class OperationsMixin:
    """A mixin for Django's `DatabaseOperations`."""

    def compiler(self, compiler_name: str) -> type:
        """Return the compiler of this name, with its mixin."""
        return mixed(compiler_name, super().compiler(compiler_name))  # type: ignore[misc]  # the class that this is mixed into has it
