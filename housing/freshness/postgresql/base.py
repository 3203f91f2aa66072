"""`ENGINE = "housing.freshness.postgresql"`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import transaction
from django.db.backends.postgresql import base
from psycopg import sql as composed
from psycopg.pq import TransactionStatus

from ..connection import CommitMixin
from ..cursor import CursorMixin
from ..statements import text_of

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
        with self.db.statement(text, params), self.db.wrap_database_errors, suppress(GeneratorExit):
            yield from self.cursor.stream(query, params, **options)


class DatabaseWrapper(CommitMixin, base.DatabaseWrapper):
    """Django's, with leases around COMMIT."""

    cursor_mixin = Cursor

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
