"""The module that Django looks for in `ENGINE`: the name of this folder, with dots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from django.db.backends.postgresql import base, operations
from psycopg import Error
from psycopg.pq import TransactionStatus

from ..compiler import OperationsMixin
from ..connection import ConnectionMixin, CursorMixin

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


class Cursor(CursorMixin):
    """The cursor of Django's wrapper, which has one more way to write on PostgreSQL."""

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As psycopg's."""
        with self.db.statement(str(statement)), self.cursor.copy(statement, *args, **kwargs) as copy:
            yield copy


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

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction whose SELECTs all see one state."""
        with transaction.atomic(using=self.alias, durable=True):
            with self.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
