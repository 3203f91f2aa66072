"""The PostgreSQL backend. Django imports this module for the dotted name of the folder in `ENGINE`."""

from __future__ import annotations

import datetime
import re
import select
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from time import monotonic
from typing import Any

from django.db import transaction
from django.db.backends.postgresql import base, operations
from django.db.backends.postgresql.psycopg_any import BaseTzLoader
from psycopg import Error, IsolationLevel, OperationalError, errors
from psycopg import sql as composed
from psycopg.pq import TransactionStatus

from ..changes import Copied, Image, Statement, Upsert, Values, limited
from ..compiler import OperationsMixin
from ..connection import ConnectionMixin
from ..cursor import CursorMixin
from ..statements import text_of
from ..tracking import MANY_ROWS
from . import begin, prepared, triggers

DATABASE = """
SELECT t.id::text, t.tableoid::text, t.xmin::text, d.oid::text, d.datname, current_user, current_schemas(false)::text, current_setting('server_version_num'),
    pg_backend_pid()
FROM freshness_database t, pg_database d WHERE d.datname = current_database()
"""
"""`pg_restore` creates the table or its row again, with another `tableoid` or `xmin`. A new database has another `oid`, even if this one was its
template. The user and the schemas decide which tables and rows are visible. The last value says whether the connection is direct (see prepared.py)."""

COPIES = """
SELECT r.relname, reference.attname, t.relname, key.attname, original.attname, copy.attname FROM pg_constraint c
JOIN pg_class r ON r.oid = c.conrelid JOIN pg_class t ON t.oid = c.confrelid
JOIN pg_attribute reference ON reference.attrelid = r.oid AND reference.attnum = ANY (c.conkey)
JOIN pg_attribute key ON key.attrelid = t.oid AND key.attnum = c.confkey[array_position(c.conkey, reference.attnum)]
JOIN pg_attribute copy ON copy.attrelid = r.oid AND copy.attnum = ANY (c.conkey) AND copy.attnum <> reference.attnum
JOIN pg_attribute original ON original.attrelid = t.oid AND original.attnum = c.confkey[array_position(c.conkey, copy.attnum)]
WHERE c.contype = 'f' AND c.convalidated AND cardinality(c.conkey) = 2 AND pg_table_is_visible(r.oid) AND pg_table_is_visible(t.oid)
    AND (copy.atttypid, copy.attcollation) = (original.atttypid, original.attcollation)
"""
"""Each column that a foreign key of two columns keeps equal to another one (see joined.py). A constraint that is not enforced is not validated, either."""

CLUSTER = """
SELECT system_identifier::text, CASE
    WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint())
    ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
END FROM pg_control_system()
"""
"""The timeline changes with a promotion and with a point-in-time recovery. (`pg_control_checkpoint` shows it later.) Every role may call these
functions by default."""

try:
    from string.templatelib import Template  # type: ignore[import-not-found,unused-ignore]  # Python 3.14 and later
except ImportError:
    STATEMENTS: tuple[type, ...] = (composed.Composable,)
else:
    STATEMENTS = (composed.Composable, Template)
"""The types of statements that psycopg accepts besides str and bytes."""


class Cursor(CursorMixin):
    """Django's cursor wrapper, with the two other ways to write on PostgreSQL. It marks each write as one of this application (see triggers.py)."""

    sends_no_sql = CursorMixin.sends_no_sql | {
        *("adapters", "closed", "format", "itersize", "mogrify", "name", "pgresult", "rownumber", "scroll", "scrollable", "statusmessage", "withhold"),
        "connection",  # mogrify() of Django's debug cursor reads it
    }

    def callproc(self, procname: str, params: Any = None, kparams: Any = None) -> Any:
        """Call a function, which may write anything."""
        if kparams is not None:
            return super().callproc(procname, params, kparams)  # which raises NotSupportedError
        call = composed.SQL("SELECT * FROM {}({})").format(composed.Identifier(procname), composed.SQL(",").join(map(composed.Literal, params or ())))
        with self.db.statement("CALL procedure()") as tables, self.writing(tables):
            self._execute(call, None)
        return params

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Copy rows in or out. In autocommit, a COPY is committed when the block ends."""
        self.db.validate_no_broken_transaction()
        with (
            self.db.statement(text_of(statement, self.db)) as tables,
            self.db.wrap_database_errors,
            self.cursor.copy(self._marked(statement, tables), *args, **kwargs) as copy,
        ):
            yield copy

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """Iterate over rows as they arrive. In autocommit, a write is committed after the last row.

        A write is also committed if the caller stops early, because the server executes it before it sends the first row.
        """
        self.db.validate_no_broken_transaction()
        text = text_of(query, self.db)
        with self.db.statement(text) as tables, self.db.wrap_database_errors, suppress(GeneratorExit):
            yield from self.cursor.stream(self._marked(query, tables), params, **options)

    def _execute(self, sql: Any, params: Any, *context: Any) -> Any:
        """Execute with the mark. This is the innermost place, so execute wrappers do not see it."""
        return super()._execute(self._marked(sql, self.written), params, *context)  # type: ignore[misc]  # not in the stubs

    def _executemany(self, sql: Any, param_list: Any, *context: Any) -> Any:
        return super()._executemany(self._marked(sql, self.written), param_list, *context)  # type: ignore[misc]  # not in the stubs

    def _marked(self, sql: Any, tables: frozenset[str]) -> Any:
        if not tables:
            return sql
        mark = triggers.mark(self.db.connection.pgconn.parameter_status(b"application_name"), tables)
        if isinstance(sql, bytes):
            return mark.encode() + sql
        return (mark if isinstance(sql, str) else composed.SQL(mark) if isinstance(sql, composed.Composable) else type(sql)(mark)) + sql


def bound_replies(connection: Any, seconds: float) -> None:
    """Close the connection and raise OperationalError if the server sends no reply within these seconds.

    libpq has no such timeout. statement_timeout is the server's own, which a server that hangs does not enforce, and its kernel keeps the connection alive.
    """
    wait = connection.wait

    def bounded(reply: Any, *args: Any, **options: Any) -> Any:
        try:
            return wait(reply, *args, **{"timeout": seconds} | options)
        except errors._WaitTimeout:
            connection.pgconn.finish()
            raise OperationalError(f"the server has sent no reply for {seconds:g} s") from None

    connection.wait = bounded


class Instants(BaseTzLoader):  # type: ignore[misc]  # not in the stubs
    """Django's conversion of times for connections in UTC, in a third of its time, which was a fifteenth of a cold page."""

    timezone = datetime.UTC

    def load(self, data: Any) -> Any:
        """Return the time."""
        try:
            time = datetime.datetime.fromisoformat(str(data, "ascii"))
        except ValueError:  # infinity, or another DateStyle
            return super().load(data)
        return time if time.tzinfo is datetime.UTC else super().load(data)


CHECKED = 5.0
"""Seconds after which a connection is checked with a statement again. Until then a silent socket shows that its server is there."""

_copies: dict[str, frozenset[Copied]] = {}
"""The copies of each database to which this process was connected. They are read once, and again after a `migrate` of this process."""

OLD = "freshness.old"
"""The setting in which an upsert keeps the old values of a row before PostgreSQL 18."""

FIELD = re.compile('("[^"]*(?:""[^"]*)*"|[^,"]*)(?:,|$)')
"""A value in the text of a row, and what follows it. (https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX)"""


def row_of(table: str, columns: Iterable[str], more: Iterable[str] = ()) -> str:
    """Return an expression for the text of a row with these columns, and with the values of these expressions."""
    return f"ROW({', '.join([*[f'{table}.{column}' for column in columns], *more])})::text"


def values_of(row: str, number: int) -> list[str | None]:
    """Return the values in the text of a row with this number of columns."""
    fields = FIELD.findall(row, 1, len(row) - 1)[:number]
    return [field[1:-1].replace('""', '"').replace("\\\\", "\\") if field[:1] == '"' else field or None for field in fields]


def with_images(statement: Statement, *, has_old: bool) -> tuple[str, tuple[Any, ...]]:
    """Return a statement that also returns the old and the new values of its rows, and its parameters."""
    text, is_where_first = _with_images(statement._replace(params=(), where_params=()), has_old)
    if not is_where_first:
        return text, statement.params
    return text, (*statement.where_params, *statement.params[: len(statement.params) - len(statement.where_params)])


@lru_cache(maxsize=256)
def _with_images(statement: Statement, has_old: bool) -> tuple[str, bool]:  # a key of the cache
    """Return a text that also returns the old values of its rows, and for an UPDATE the new ones, each as the text of a row: two texts cost half as
    much as two for each column. PostgreSQL 18 has the names OLD and NEW.

    An older server reads the old values under a lock in the same statement, and updates the rows that it has locked. The parameters of the condition then come
    first.
    """
    parts: list[str] = []
    sql, reads_first = statement.sql, False
    has_old = has_old and not (statement.deletes or statement.old_is_known)
    new = "n" if has_old else statement.table
    sources = [f"{new}.{lookup.source}" for lookup in statement.lookups]
    found = [lookup.of(source) for lookup, source in zip(statement.lookups, sources, strict=True)] if statement.is_bounded else []
    returned = [row_of(new, statement.columns, found)]
    if has_old:
        returned.insert(0, row_of("o", statement.columns))
    elif not (statement.deletes or statement.old_is_known):
        keys = [f"f{number}" for number in range(len(statement.columns))]
        renamed = ", ".join([f"{column} AS {key}" for column, key in zip(statement.columns, keys, strict=True)])
        parts = [f"freshness_old AS MATERIALIZED (SELECT {renamed} FROM {statement.table}{statement.condition} FOR NO KEY UPDATE)"]  # noqa: S608  # quoted names
        sql = f"{statement.without_condition} FROM freshness_old WHERE {statement.table}.{statement.columns[0]} = freshness_old.f0"
        returned.insert(0, row_of("freshness_old", keys))
        reads_first = True
    sql = f"{sql} RETURNING {'WITH (OLD AS o, NEW AS n) ' if has_old else ''}"
    sql += ", ".join([f"{each} AS c{number}" for number, each in enumerate(returned)])
    if not statement.is_bounded:
        parts.append(f"freshness_changed AS ({sql}{''.join([f', {source} AS s{number}' for number, source in enumerate(sources)])})")
        columns = [f"c{number}" for number in range(len(returned))]
        columns += [row_of("", (), [lookup.of(f"s{number}") for number, lookup in enumerate(statement.lookups)])] if sources else []
        sql = f"SELECT {', '.join(columns)}, (SELECT count(*) FROM freshness_changed) FROM freshness_changed LIMIT {MANY_ROWS + 1}"  # noqa: S608  # quoted names
    return f"WITH {', '.join(parts)} {sql}" if parts else sql, reads_first


def upserting(statement: Upsert, number: int, *, has_old: bool) -> str:
    """Return an upsert that also returns the old values of each row that it updates, and the new ones, each as the text of a row.

    Before PostgreSQL 18 the condition of its UPDATE, which is always true, keeps the old values in a setting of the transaction. The setting is read again for
    each returned row. A created row finds the values of another row there, or those of another upsert, which has another number.
    """
    has_old = has_old and statement.updates
    new = "n" if has_old else statement.table
    after = row_of(new, statement.columns, [lookup.of(f"{new}.{lookup.source}") for lookup in statement.lookups])
    if has_old:
        return f"{statement.sql} RETURNING WITH (OLD AS o, NEW AS n) {statement.returning(row_of('o', statement.columns), after)}"
    if not statement.updates:
        return f"{statement.sql} RETURNING {statement.returning('NULL', after)}"
    keep = f"pg_catalog.set_config('{OLD}', '{number} ' || {row_of(statement.table, statement.columns)}, true) IS NOT NULL"
    kept = f"pg_catalog.current_setting('{OLD}', true)"
    return f"{statement.sql} WHERE {keep} RETURNING {statement.returning(kept, after)}"


class DatabaseOperations(OperationsMixin, operations.DatabaseOperations):
    """Django's operations with the engine's compilers."""

    def last_executed_query(self, cursor: Any, sql: Any, params: Any) -> Any:
        """Return the statement for the log of queries, without its mark and as if it were not prepared."""
        found = self.compose_sql(sql, params) if getattr(cursor, "updates", None) else super().last_executed_query(cursor, sql, params)
        return triggers.unmarked(found) if found else found


class DatabaseWrapper(ConnectionMixin, base.DatabaseWrapper):
    """Django's backend with leases around COMMIT."""

    cursor_mixin = Cursor
    ops_class = DatabaseOperations
    _checked = float("-inf")
    """When the server last replied to the check, by this process's clock."""
    _upserts = 0
    """How many upserts this connection has executed."""
    is_direct = False
    """Whether there is certainly no pooler between this process and the server."""
    why_cluster_unknown = ""
    """Why the identity lacks the cluster, if this role may not read it."""

    def get_new_connection(self, conn_params: Any) -> Any:
        """Connect. With REPLY_TIMEOUT in the settings of the database, no reply is awaited for more than these seconds."""
        connection = super().get_new_connection(conn_params)
        if (seconds := self.settings_dict.get("REPLY_TIMEOUT")) and "wait" not in vars(connection):  # a pool lends a connection again
            bound_replies(connection, float(seconds))
        connection.adapters.register_loader("timestamptz", Instants)  # in another zone Django gives each cursor its own
        if connection.cursor_factory is base.Cursor:  # neither server-side binding nor another class in the settings
            connection.cursor_factory = begin.Cursor
        self._checked = float("-inf")
        self.is_direct = False
        if self.may_prepare:
            prepared.use_own_names(connection)
        return connection

    def is_usable(self) -> bool:
        """Whether the server still has this connection. Django checks it with `SELECT 1` before the first query of each request, a tenth of a cold page.

        A server that ends a connection sends something, and so does its kernel. So a silent one that replied in the last `CHECKED` seconds counts as alive,
        unless a statement has failed since. If it has vanished without a word, the query fails, and the next request checks the connection.
        """
        if not self.errors_occurred and monotonic() - self._checked < CHECKED and self._is_silent():
            return True
        if is_usable := bool(super().is_usable()):
            self._checked = monotonic()
        return is_usable

    def _is_silent(self) -> bool:
        try:
            (waiting := select.poll()).register(self.connection.fileno(), select.POLLIN)
        except Error:  # it is closed
            return False
        return not waiting.poll(0)

    def facts(self) -> list[Any]:
        """Return facts about the database, and about its cluster if this role may read them."""
        rows = self.connection.execute(DATABASE).fetchall()
        found: list[Any] = [tuple(facts) for *facts, _ in rows]
        self.is_direct = [pid for *_, pid in rows] == [self.connection.info.backend_pid]
        if (database := str(found)) not in _copies:
            _copies[database] = self._read_copies()
        self.copies = _copies[database]
        self.why_cluster_unknown = ""
        try:
            return [*found, *self.connection.execute(CLUSTER).fetchall()] if found else []
        except Error as error:
            self.why_cluster_unknown = " ".join(str(error).split())
            return found

    def _read_copies(self) -> frozenset[Copied]:
        return frozenset(Copied(*copy) for copy in self.connection.execute(COPIES))

    @property
    def may_prepare(self) -> bool:
        """Whether the settings of the database leave it to the engine which statements are prepared."""
        return {"prepare_threshold", "server_side_binding"}.isdisjoint(self.settings_dict["OPTIONS"])

    def repeating_cursor(self) -> Any:
        """Return a cursor whose SELECTs are prepared, unless that is uncertain to work."""
        self.close_if_health_check_failed()
        self.ensure_connection()
        if not (self.may_prepare and self.is_direct and self.timezone is datetime.UTC and prepared.is_idle(self.connection)):
            return self.cursor()
        with self.wrap_database_errors:
            return self._prepare_cursor(prepared.Cursor(self))

    def _set_autocommit(self, autocommit: bool) -> None:
        """Set it as the driver does, which takes longer although it sends nothing."""
        if self.begun:
            super()._set_autocommit(autocommit)
        else:
            self.connection._autocommit = autocommit

    @property
    def begun(self) -> bool:
        """Whether the driver is in a transaction."""
        return self.connection is not None and self.connection.pgconn.transaction_status != TransactionStatus.IDLE

    def text_of(self, sql: Any) -> str | None:
        """Return the text of psycopg's `sql` objects and of template strings."""
        return composed.as_string(sql, self.connection) if isinstance(sql, STATEMENTS) else None

    @property
    def has_images(self) -> bool:
        """Always: the rows that an UPDATE returns are locked."""
        return True

    def images(self, statement: Statement) -> tuple[int, list[Image] | None]:
        """Execute the statement with RETURNING. If its condition does not bound its rows, the server counts all and sends at most one more than `MANY_ROWS`."""
        with self.cursor() as cursor:
            if self.is_direct and self.may_prepare and prepared.is_plain(statement.sql) and isinstance(cursor.cursor, begin.Cursor):
                cursor.cursor.updates = prepared.updates_of(self.connection)
            cursor.execute(*with_images(statement, has_old=self.pg_version >= 180000))
            rows = cursor.fetchall()
        count = len(rows) if statement.is_bounded else (rows[0][-1] if rows else 0)
        number, more, is_one_text = len(statement.columns), len(statement.lookups), statement.is_bounded
        if statement.deletes:
            return limited(count, [Image(values_of(row[0], number), None) for row in rows])
        new = 0 if statement.old_is_known else 1
        after = [values_of(row[new], number + more * is_one_text) for row in rows]
        if more and not is_one_text:
            after = [values + values_of(row[new + 1], more) for values, row in zip(after, rows, strict=True)]
        return limited(count, [Image(values_of(row[0], number), values) for row, values in zip(rows, after, strict=True)])

    def upsert(self, statement: Upsert) -> tuple[list[Values], list[Image] | None]:
        """Execute it with RETURNING."""
        self._upserts += 1
        has_old = self.pg_version >= 180000
        with self.cursor() as cursor:
            cursor.execute(upserting(statement, self._upserts, has_old=has_old), statement.params)
            rows = cursor.fetchall()
        number, mine, images = len(statement.columns), "" if has_old else f"{self._upserts} ", list[Image]()
        for old, new, *_ in rows:
            before = values_of(old.removeprefix(mine), number) if old and old.startswith(mine) else [None]
            after = values_of(new, number + len(statement.lookups))
            images.append(Image(before if before[0] == after[0] else (), after))
        return [row[2:] for row in rows], images

    def watch_other_programs(self) -> None:
        """Install the triggers, and look which copies there are now."""
        triggers.install(self)
        self.ensure_connection()
        _copies.clear()
        self.copies = self._read_copies()

    def trigger_forms(self) -> frozenset[str]:
        """Return the names of the forms of tags that this version's triggers write."""
        return triggers.forms()

    def unwatched(self) -> list[str]:
        """Return the tables that lack a trigger."""
        return triggers.unwatched(self)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Open a transaction whose SELECTs all see the same state. Its BEGIN says so, because SET TRANSACTION would be a round trip of its own."""
        self.close_if_health_check_failed()  # otherwise `atomic` would replace the connection after this
        self.ensure_connection()
        connection = self.connection
        with self.wrap_database_errors:
            before = connection.isolation_level, connection.read_only
            connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
        try:
            with transaction.atomic(using=self.alias, durable=True):
                yield
        finally:
            try:
                connection.isolation_level, connection.read_only = before
            except Error:  # a connection that is lost must not be used with this level again
                self.close()
