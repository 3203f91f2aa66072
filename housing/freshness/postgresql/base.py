"""The PostgreSQL backend. Django imports this module for the dotted name of the folder in `ENGINE`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from django.db import transaction
from django.db.backends.postgresql import base, operations
from psycopg import Error, OperationalError
from psycopg import sql as composed
from psycopg.pq import TransactionStatus

from ..compiler import OperationsMixin
from ..connection import ConnectionMixin
from ..cursor import CursorMixin
from ..statements import text_of
from . import triggers

DATABASE = """
SELECT t.id::text, t.tableoid::text, t.xmin::text, d.oid::text, d.datname, current_user, current_schemas(false)::text, current_setting('server_version_num')
FROM freshness_database t, pg_database d WHERE d.datname = current_database()
"""
"""`pg_restore` creates the table or its row again, with another `tableoid` or `xmin`. A new database has another `oid`, even if this one was its
template. The user and the schemas decide which tables and rows are visible."""

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
        mark = triggers.mark(self.db.connection.info.parameter_status("application_name"), tables)
        if isinstance(sql, bytes):
            return mark.encode() + sql
        return (mark if isinstance(sql, str) else composed.SQL(mark) if isinstance(sql, composed.Composable) else type(sql)(mark)) + sql


def bound_replies(connection: Any, seconds: float) -> None:
    """Close the connection and raise OperationalError if the server sends no reply within these seconds.

    libpq has no such timeout. statement_timeout is the server's own, which a server that hangs does not enforce, and its kernel keeps the connection alive.
    """
    wait = connection.wait

    def bounded(reply: Any) -> Generator[Any, Any, Any]:
        end = monotonic() + seconds
        try:
            state = next(reply)
            while True:
                is_ready = yield state
                if not is_ready and monotonic() > end:
                    connection.pgconn.finish()
                    raise OperationalError(f"the server has sent no reply for {seconds:g} s")
                state = reply.send(is_ready)
        except StopIteration as ended:
            return ended.value

    connection.wait = lambda reply, *args, **kwargs: wait(bounded(reply), *args, **kwargs)


class DatabaseOperations(OperationsMixin, operations.DatabaseOperations):
    """Django's operations with the engine's compilers."""

    def last_executed_query(self, cursor: Any, sql: Any, params: Any) -> Any:
        """Return the statement for the log of queries, without its mark."""
        found = super().last_executed_query(cursor, sql, params)
        return triggers.unmarked(found) if found else found


class DatabaseWrapper(ConnectionMixin, base.DatabaseWrapper):
    """Django's backend with leases around COMMIT."""

    cursor_mixin = Cursor
    ops_class = DatabaseOperations
    why_cluster_unknown = ""
    """Why the identity lacks the cluster, if this role may not read it."""

    def get_new_connection(self, conn_params: Any) -> Any:
        """Connect. With REPLY_TIMEOUT in the settings of the database, no reply is awaited for more than these seconds."""
        connection = super().get_new_connection(conn_params)
        if (seconds := self.settings_dict.get("REPLY_TIMEOUT")) and "wait" not in vars(connection):  # a pool lends a connection again
            bound_replies(connection, float(seconds))
        return connection

    def facts(self) -> list[Any]:
        """Return facts about the database, and about its cluster if this role may read them."""
        found: list[Any] = self.connection.execute(DATABASE).fetchall()
        self.why_cluster_unknown = ""
        try:
            return [*found, *self.connection.execute(CLUSTER).fetchall()] if found else []
        except Error as error:
            self.why_cluster_unknown = " ".join(str(error).split())
            return found

    @property
    def begun(self) -> bool:
        """Whether the driver is in a transaction."""
        return self.connection is not None and self.connection.info.transaction_status != TransactionStatus.IDLE

    def text_of(self, sql: Any) -> str | None:
        """Return the text of psycopg's `sql` objects and of template strings."""
        return composed.as_string(sql, self.connection) if isinstance(sql, STATEMENTS) else None

    def watch_other_programs(self) -> None:
        """Install the triggers."""
        triggers.install(self)

    def unwatched(self) -> list[str]:
        """Return the tables that lack a trigger."""
        return triggers.unwatched(self)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Open a transaction whose SELECTs all see the same state."""
        with transaction.atomic(using=self.alias, durable=True):
            with self.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
