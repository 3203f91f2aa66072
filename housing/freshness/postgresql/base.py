"""The module that Django looks for in `ENGINE`: the name of this folder, with dots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import transaction
from django.db.backends.postgresql import base, operations
from psycopg import Error
from psycopg import sql as composed
from psycopg.pq import TransactionStatus

from ..compiler import OperationsMixin
from ..connection import ConnectionMixin
from ..cursor import CursorMixin
from ..statements import text_of

DATABASE = """
SELECT t.id::text, t.tableoid::text, t.xmin::text, d.oid::text, d.datname, current_user, current_schemas(false)::text, current_setting('server_version_num')
FROM freshness_database t, pg_database d WHERE d.datname = current_database()
"""
"""`pg_restore` into a database makes the table or its row anew, with another `tableoid` or `xmin`. A new database has another `oid`, even where
it was copied from this one as its template. The user and the schemas decide which tables and rows are seen."""

CLUSTER = """
SELECT system_identifier::text, CASE
    WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint())
    ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
END FROM pg_control_system()
"""
"""The timeline is another one after a promotion and after a restore to a point in time. (`pg_control_checkpoint` tells it only some time later.)
Every role may call these functions unless somebody has revoked it."""

try:
    from string.templatelib import Template  # type: ignore[import-not-found,unused-ignore]  # from Python 3.14 on
except ImportError:
    STATEMENTS: tuple[type, ...] = (composed.Composable,)
else:
    STATEMENTS = (composed.Composable, Template)
"""What psycopg takes for a statement besides str and bytes."""


class Cursor(CursorMixin):
    """The cursor of Django's wrapper, which has two more ways to write on PostgreSQL."""

    sends_no_sql = CursorMixin.sends_no_sql | {
        *("adapters", "closed", "format", "itersize", "mogrify", "name", "pgresult", "rownumber", "scroll", "scrollable", "statusmessage", "withhold"),
        "connection",  # Django's own mogrify() of a debug cursor takes the driver's connection from here
    }

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Copy rows in or out; a COPY in autocommit is committed when the block ends."""
        self.db.validate_no_broken_transaction()
        with self.db.statement(text_of(statement, self.db)), self.db.wrap_database_errors, self.cursor.copy(statement, *args, **kwargs) as copy:
            yield copy

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """Iterate over rows as they arrive; a write in autocommit is committed after the last.

        A write whose rows are not read to their end is committed, too: the server carries it out before it sends the first.
        """
        self.db.validate_no_broken_transaction()
        text = text_of(query, self.db)
        with self.db.statement(text), self.db.wrap_database_errors, suppress(GeneratorExit):
            yield from self.cursor.stream(query, params, **options)


class DatabaseOperations(OperationsMixin, operations.DatabaseOperations):
    """Django's, whose compilers note what they do."""


class DatabaseWrapper(ConnectionMixin, base.DatabaseWrapper):
    """Django's, with leases around COMMIT."""

    cursor_mixin = Cursor
    ops_class = DatabaseOperations
    why_cluster_unknown = ""
    """Why the identity says nothing about the cluster, where this role may not ask."""

    def facts(self) -> list[Any]:
        """The database, and the cluster that it is in, if this role may know."""
        found: list[Any] = self.connection.execute(DATABASE).fetchall()
        self.why_cluster_unknown = ""
        try:
            return [*found, *self.connection.execute(CLUSTER).fetchall()] if found else []
        except Error as error:
            self.why_cluster_unknown = " ".join(str(error).split())
            return found

    @property
    def begun(self) -> bool:
        """Whether the driver is inside a transaction."""
        return self.connection is not None and self.connection.info.transaction_status != TransactionStatus.IDLE

    def text_of(self, sql: Any) -> str | None:
        """The text of psycopg's `sql` objects, and of template strings."""
        return composed.as_string(sql, self.connection) if isinstance(sql, STATEMENTS) else None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction whose SELECTs all see one state."""
        with transaction.atomic(using=self.alias, durable=True):
            with self.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
