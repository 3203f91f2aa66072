"""Django's query compilers, which record what they read and tag what they write.

Every way to write through Django's models ends here: `save()`, `update()`, `bulk_create()`, the deletion collector, many-to-many managers, a
migration's models. The compiler knows the table, the columns and often the rows, so a write tags them before its COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet
from django.db import NotSupportedError
from django.db.models import Field
from django.db.models.constants import OnConflict
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import MULTI, ROW_COUNT

from .changes import Copied, Image, Lookup, Statement, Upsert, tags_of, tags_of_created, tags_through_joins
from .dependencies import Recorder, Unreadable, columns_of, pinned, read_off, recorder
from .joined import trusting
from .places import Place, Span, covering
from .statements import NOTHING
from .tracking import MANY_ROWS, Joined, Table, cascades, tables


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
    recording.note(reading, [], is_part=True)  # the caller may stop early
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

    def _say(
        self,
        table: Table,
        keys: Collection[Any],
        tags: set[str],
        within: Collection[str] = (),
        places: Iterable[Sequence[Span]] | None = None,
        *,
        verb: str = "",
    ) -> None:
        """Tag the write, with a sentence for the log. The log has no tags of columns within scopes, which are many and follow from the others.

        Without `places`, the rows may be anywhere.
        """
        if table.places:
            self.connection.placed(table.placed, [[None] * len(table.places)] if places is None else places)
        self.connection.tag(table.name, tags, f"[ORM] {table.label} {', '.join(map(str, keys)) or '(rows unknown)'} {verb or self.verb}.", within)

    def _places(self, table: Table, images: Iterable[Image] | None) -> list[Sequence[Span]] | None:
        """Return the places of the rows afterwards; None if they are unknown."""
        if images is None:
            return None
        has_zone, find = self.connection.times_have_zones, self._columns.index
        return [[of(after[find(column)], has_zone) for column, of in table.places.items()] for _, after in images if after is not None]


class Inserts(Writes):
    """The compiler of INSERT."""

    verb = "created"
    returning_fields: Any
    _lookups: tuple[Lookup, ...] = ()
    _columns: list[str]
    """The columns of an image."""
    _images: list[Image] | None = None
    """The rows that an upsert created or updated; None if they are unknown or too many."""

    def execute_sql(self, returning_fields: Any = None) -> Any:
        """Execute it, and read the returned rows before autocommit commits."""
        if self.query.on_conflict is not None:
            return self._write(lambda: self._upsert(returning_fields))
        found = self._write(lambda: super(Inserts, self).execute_sql(returning_fields))
        return [row[: len(returning_fields)] for row in found] if self._lookups else found

    def as_sql(self) -> Any:
        """Let the statement also return the values of the rows to which its rows refer. Not for many rows, and only if it returns columns."""
        statements = super().as_sql()
        table = tables().get(self.query.get_meta().db_table)
        is_short = self.returning_fields and len(self.query.objs) < MANY_ROWS and self.query.on_conflict is None
        self._lookups = _lookups(table.name, table.joined, self.connection.copies) if table and is_short and self.connection.returns_rows else ()
        if self._lookups:
            [(sql, params)] = statements
            [quoted] = _quoted(self.query.get_meta().db_table)
            statements = [(f"{sql}, {', '.join([lookup.of(f'{quoted}.{lookup.source}') for lookup in self._lookups])}", params)]
        return statements

    def _upsert(self, returning_fields: Any) -> Any:
        """Execute an INSERT that updates or ignores rows, and keep their images. Django asks for no columns if it ignores them."""
        opts = self.query.get_meta()
        table = tables().get(opts.db_table)
        if table is None or table.pk is None or len(self.query.objs) > MANY_ROWS or not self.connection.returns_rows:
            return super().execute_sql(returning_fields)
        self.returning_fields = None  # the connection adds RETURNING
        [(sql, params)] = super().as_sql()
        self._lookups = _lookups(table.name, table.joined, self.connection.copies)
        self._columns = list(dict.fromkeys([table.pk, *[field.column for field in self.query.update_fields], *table.scopes, *table.places]))
        quoted, returned = _quoted(table.name, *self._columns), _quoted(*[field.column for field in returning_fields or ()])
        updates = self.query.on_conflict == OnConflict.UPDATE
        rows, self._images = self.connection.upsert(Upsert(sql, params, quoted[0], quoted[1:], self._lookups, returned, updates))
        if not returning_fields:
            return []
        converters = self.get_converters([field.get_col(opts.db_table) for field in returning_fields])
        return list(self.apply_converters(rows, converters)) if converters else rows

    def _tag(self, table: Table | None, result: Any) -> None:
        if table is None:
            return None
        if self._images is not None:
            return self._tag_images(table, self._images)
        if self.query.on_conflict == OnConflict.UPDATE:
            return self._say(table, (), table.all)
        objs = self.query.objs
        tags = {table.name, f"{table.name}:+"}
        written = {field.column: field for field in self.query.fields}
        for column, text in table.scopes.items():
            if column not in written:
                return self._say(table, (), table.all)  # the value is a default of the database, and unknown here
            for obj in objs:
                value = getattr(obj, written[column].attname)
                if hasattr(value, "resolve_expression"):
                    return self._say(table, (), table.all)
                if value is not None:
                    tags.add(f"{table.name}.{column}={text(_prepared(written[column], value))}+")
        keys = [row[0] for row in result or ()] if self.returning_fields and self.returning_fields[0].primary_key else [obj.pk for obj in objs if obj.pk]
        if self._is_again(table, keys):
            return self._say(table, (), table.all)
        place = [self._span(written.get(column), of, keys if column == table.pk else None) for column, of in table.places.items()]
        return self._say(table, keys if len(keys) < MANY_ROWS else (), tags, self._tags_through_joins(table, result or ()), [place])

    def _tag_images(self, table: Table, images: list[Image]) -> None:
        """Tag the rows that an upsert updated, and those that it created."""
        updated, created = [image for image in images if image.before], [image for image in images if not image.before]
        if updated:
            tags, within = tags_of(table, self._columns, self._lookups, updated)
            self._say(table, [before[0] for before, _ in updated], tags, within, self._places(table, updated), verb=Updates.verb)
        if not created:
            return
        rows = [after or () for _, after in created]
        keys = [row[0] for row in rows]
        if self._is_again(table, keys):
            self._say(table, (), table.all)
            return
        tags, through_joins = tags_of_created(table, self._columns, self._lookups, rows)
        self._say(table, keys, tags, through_joins, self._places(table, created))

    def _span(self, field: Field[Any, Any] | None, of: Place, keys: Sequence[Any] | None) -> Span:
        """Return the places of the rows in one column. The values of the primary key may be those that the database returned."""
        if keys is None and field is not None:
            keys = [field.get_db_prep_save(getattr(obj, field.attname), self.connection) for obj in self.query.objs]
        is_known = keys is not None and len(keys) == len(self.query.objs)
        return covering([of(value, self.connection.times_have_zones) for value in keys or ()]) if is_known else None

    def _tags_through_joins(self, table: Table, rows: Iterable[Any]) -> set[str]:
        """Return the tags of the scopes through joins that the rows enter, and the conditions under which these are their scopes."""
        tags: set[str] = set()
        if len(self._lookups) < len(table.joined):
            return {table.unjoined}
        found = [row[len(self.returning_fields) :] for row in rows]
        written = {field.column: field for field in self.query.fields}
        for place, (joined, is_copied, *_) in enumerate(self._lookups):
            values = [row[place] for row in found if row[place] is not None]
            references = [value for obj in self.query.objs if (value := getattr(obj, written[joined.reference].attname)) is not None]
            if len(values) < len(references):
                tags.add(table.unjoined)
            tags |= {f"{table.name}.{joined.name}={joined.text(value)}+" for value in values}
            if not is_copied:
                tags |= {trusting(table, joined, joined.key_text(_prepared(written[joined.reference], value))) for value in references}
        return tags

    def _is_again(self, table: Table, keys: Iterable[Any]) -> bool:
        """Whether a row has the key of a row that this transaction deleted. References to the key stay the same, although the row has changed."""
        if not self.connection.has_tagged(table.name, f"{table.name}:-"):
            return False
        text, field = table.pk_text, self.query.get_meta().pk
        return text is None or any(self.connection.has_tagged(table.name, f"{table.name}:{text(_prepared(field, key))}") for key in keys)


class Changes(Writes):
    """The compiler of a statement that changes rows which are there already. It asks the database what they held before and what they hold afterwards."""

    _where: tuple[str, Sequence[Any]] = ("", ())
    """The text of the condition, with its parameters."""
    _columns: list[str]
    """The columns of an image."""
    _images: list[Image] | None = None
    """The rows that it matched; None if they are unknown or too many."""
    _is_held = False
    """Whether all of its rows are locked, so that their old values are known."""
    _lookups: tuple[Lookup, ...] = ()
    """The values that an image has after its columns."""

    def compile(self, node: Any) -> Any:
        """Keep the text of the condition."""
        found = super().compile(node)
        if node is self.query.where:
            self._where = found
        return found

    def _send_for_images(self, table: Table, columns: Iterable[str], is_bounded: Callable[[], bool]) -> int:
        """Execute the statement, and keep the images of its rows. Returns their number. `is_bounded` says whether its condition names few rows."""
        self._columns, self._images = list(dict.fromkeys([str(table.pk), *columns])), []
        if self.query.alias_map.keys() <= {table.name} and not self.query.extra:
            self.quote_cache = _quotes  # a compiler begins with an empty one
        try:
            sql, params = self.as_sql()
        except EmptyResultSet:  # no row can match
            return 0
        quoted = _quoted(table.name, *self._columns)
        where, where_params = self._where
        is_short = where == f"{quoted[0]}.{quoted[1]} = %s" or is_bounded()
        statement = Statement(sql, params, where, tuple(where_params), quoted[0], quoted[1:], self._lookups, is_short, self.verb == Deletes.verb, self._is_held)
        count: int
        count, self._images = self.connection.images(statement)
        return count


class Updates(Changes):
    """The compiler of UPDATE."""

    verb = "changed"

    def execute_sql(self, result_type: Any) -> Any:
        """Execute it."""
        self.result_type = result_type
        return self._write(lambda: self._send(result_type))

    def execute_returning_sql(self, returning_fields: Any) -> Any:
        """Execute it, and read the returned rows (Django 6.0 and later)."""
        return self._write(lambda: super(Updates, self).execute_returning_sql(returning_fields))

    def _send(self, result_type: Any) -> Any:
        table, columns = tables().get(self.query.get_meta().db_table), [field.column for field, *_ in self.query.values]
        if not (table and table.pk and columns) or table.pk in columns or self.query.related_updates or not self.connection.has_images:
            return super().execute_sql(result_type)
        keys = self._keys(table) if self.connection.holds_rows else None
        self._is_held = bool(keys) and all(self.connection.held(table, key) for key in keys or ())
        columns = [joined.reference for joined in table.joined] if self._is_held else [*columns, *table.scopes]
        columns += table.places
        self._lookups = _lookups(table.name, table.joined, self.connection.copies)
        return self._send_for_images(table, columns, lambda: self._keys(table) is not None)

    def _keys(self, table: Table) -> frozenset[str] | None:
        """Return the primary keys to which the condition is limited; None if it is not."""
        return pinned(self.query, self.query.get_initial_alias(), table.pk, table.pk_text) if table.pk and table.pk_text else None

    def _tag(self, table: Table | None, result: Any) -> None:
        if table is None or not self.query.values or self._wrote_nothing(result):
            return
        if self._images and not self._is_held:
            tags, within = tags_of(table, self._columns, self._lookups, self._images)
            self._say(table, [before[0] for before, _ in self._images], tags, within, self._places(table, self._images))
        else:
            self._tag_assigned(table)

    def _tag_assigned(self, table: Table) -> None:
        """Tag the assigned columns, without images. Those of a locked row are left out if they have the value that was read."""
        keys = self._keys(table)
        if not keys:
            return self._say(table, (), table.all) if keys is None or not table.pk else None
        tags = {table.name, *(f"{table.name}:{key}" for key in keys)}
        holds_rows = self.connection.holds_rows
        changed = set(table.generated)
        for field, _, given in self.query.values:
            value = given.prepare_database_save(field) if hasattr(given, "prepare_database_save") else given
            if field.primary_key:
                return self._say(table, (), table.all)
            is_known = not hasattr(value, "resolve_expression")
            if holds_rows and is_known and all(self.connection.is_held(table, key, field.column, value) for key in keys):
                continue
            changed.add(field.column)
            if text := table.scopes.get(field.column):
                if not is_known:
                    return self._say(table, (), table.all)
                if value is not None:
                    tags.add(f"{table.name}.{field.column}={text(_prepared(field, value))}")
        tags |= {f"{table.name}.{column}" for column in changed}
        if self._images is None:
            through_joins = {table.unjoined} if changed and table.joined else set()
        else:
            through_joins = {tag for _, after in self._images for tag in tags_through_joins(table, self._columns, self._lookups, after or (), changed)}
        return self._say(table, sorted(keys), tags | self._in_scopes(table, keys, changed), through_joins, self._places(table, self._images))

    def _in_scopes(self, table: Table, keys: Iterable[str], changed: Collection[str]) -> set[str]:
        """Return the tags of changes in the scopes that locked rows had when they were read."""
        tags: set[str] = set()
        for key in keys if changed else ():
            held = self.connection.held(table, key) or {}
            for column, text in table.scopes.items():
                if column not in held:
                    return {table.unscoped}
                if (value := held[column]) is not None:
                    scope = f"{table.name}.{column}={text(value)}"
                    tags |= {f"{table.name}-{key}.{column}", f"{scope}-"} if column in changed else {f"{scope}.{each}" for each in changed}
        return tags

    def _wrote_nothing(self, result: Any) -> bool:
        """Whether certainly no row matched."""
        if self.query.related_updates:
            return False
        return bool(result == [] or (result == 0 and self.result_type == ROW_COUNT))


class Deletes(Changes):
    """The compiler of DELETE. The references of the deleted rows are tagged."""

    verb = "deleted"

    def execute_sql(self, result_type: Any = MULTI, *args: Any, **kwargs: Any) -> Any:
        """Execute it."""
        return self._write(lambda: self._send(result_type, *args, **kwargs))

    def _send(self, result_type: Any, *args: Any, **kwargs: Any) -> Any:
        table = tables().get(self.query.get_meta().db_table)
        if table is None or table.pk is None or not self.connection.returns_rows:
            return super().execute_sql(result_type, *args, **kwargs)
        alias = self.query.get_initial_alias()
        pins = {table.pk: table.pk_text, **table.references}
        is_bounded = any(text and pinned(self.query, alias, column, text) is not None for column, text in pins.items())
        if not (is_bounded or self.connection.has_images):
            return super().execute_sql(result_type, *args, **kwargs)
        return self._send_for_images(table, table.scopes, lambda: is_bounded)

    def _tag(self, table: Table | None, result: Any) -> None:
        if self._images == [] or result == 0:
            return
        self._tag_all(cascades().get(self.query.get_meta().db_table, ()))
        if table is None:
            return
        if self._images is None:
            self._say(table, (), table.all)
            return
        tags = {table.name, f"{table.name}:-"}
        for place, column in enumerate(self._columns):
            values = {before[place] for before, _ in self._images} - {None}
            if column == table.pk and table.pk_text:
                tags.update(f"{table.name}{sign}{table.pk_text(value)}" for value in values for sign in ":-")
            if text := table.scopes.get(column):
                tags.update(f"{table.name}.{column}={text(value)}-" for value in values)
        self._say(table, [before[0] for before, _ in self._images], tags, places=())  # no row enters a result


_quotes: dict[str, str] = {"*": "*"}
"""Names as Django's compilers quote them in a statement without aliases. To quote them again took a twentieth of the Python calls of a write."""


@lru_cache(maxsize=1024)
def _quoted(*names: str) -> tuple[str, ...]:
    """Return these names as both databases quote them. A `db_table` may be quoted already."""
    return tuple(name if name.startswith('"') and name.endswith('"') else f'"{name}"' for name in names)


@lru_cache(maxsize=256)
def _lookups(name: str, joined: tuple[Joined, ...], copies: frozenset[Copied]) -> tuple[Lookup, ...]:
    """Return the lookups of a table's scopes through joins."""
    copied = {copy[:-1]: copy.copy for copy in copies}
    found = [(each, copied.get((name, each.reference, each.table, each.key, each.column))) for each in joined]
    return tuple(Lookup(each, copy is not None, *_quoted(copy or each.reference, each.table, each.key, each.column)) for each, copy in found)


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
