"""`ENGINE = "housing.freshness.sqlite3"`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import NotSupportedError, transaction
from django.db.backends.sqlite3 import base

from ..connection import CommitMixin
from ..cursor import CursorMixin
from ..statements import may_write

PROBE = "housing_probe"


class Cursor(CursorMixin):
    """The cursor of Django's wrapper, which has one more way to write on SQLite."""

    sends_no_sql = CursorMixin.sends_no_sql | {"convert_query"}

    def executescript(self, script: str) -> Any:
        """Execute a script that writes no tracked table. Raises NotSupportedError for another one, because the driver commits by itself, before and after."""
        if self.db.managed or self.db.uncommitted or may_write(script):
            raise NotSupportedError("executescript commits past the cache. Execute the statements one by one, inside transaction.atomic().")
        with self.db.wrap_database_errors:
            self.cursor.executescript(script)
        return self


class DatabaseWrapper(CommitMixin, base.DatabaseWrapper):
    """Django's, with leases around COMMIT."""

    cursor_mixin = Cursor
    release_may_commit = True

    def get_new_connection(self, conn_params: Any) -> Any:
        """As Django's, with the function that `reads_the_past` asks by."""
        connection = super().get_new_connection(conn_params)
        connection.create_function(PROBE, 0, bool)
        return connection

    @property
    def begun(self) -> bool:
        """Whether the driver is inside a transaction."""
        return self.connection is not None and self.connection.in_transaction

    @property
    def reads_the_past(self) -> bool:
        """As the mixin's; and while a SELECT is not read to its end, for every other on the connection sees what it sees."""
        return self.in_transaction or (self.connection is not None and self._has_unfinished())

    def _has_unfinished(self) -> bool:
        try:
            self.connection.create_function(PROBE, 0, bool)
        except sqlite3.OperationalError:  # SQLite changes no function while a statement is pending
            return True
        return False

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction whose SELECTs all see one state, and which takes no write lock."""
        self.ensure_connection()  # which reads the mode from the settings
        mode: Any = self.transaction_mode
        self.transaction_mode: Any = "DEFERRED"
        try:
            with transaction.atomic(using=self.alias, durable=True):
                yield
        finally:
            self.transaction_mode = mode

    def _set_autocommit(self, autocommit: bool) -> None:
        """As Django's. The driver commits an open transaction here, so what it wrote takes the way of every COMMIT first."""
        if autocommit and self.uncommitted:
            self._commit()
        super()._set_autocommit(autocommit)
