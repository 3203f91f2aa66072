"""`ENGINE = "housing.freshness.postgresql"`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from django.db.backends.postgresql import base, operations
from psycopg.pq import TransactionStatus

from ..compiler import OperationsMixin
from ..connection import ConnectionMixin, CursorMixin


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
