"""The module that Django looks for in `ENGINE`: the name of this folder, with dots."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from django.db import NotSupportedError, transaction
from django.db.backends.sqlite3 import base, operations

from ..compiler import OperationsMixin
from ..connection import ConnectionMixin
from ..cursor import CursorMixin
from ..statements import may_write

PROBE = "freshness_probe"

FACTS = "SELECT id, (SELECT schema_version FROM pragma_schema_version), sqlite_version() FROM freshness_database"
"""SQLite's backup API, which may overwrite the file in place, counts `schema_version` up."""


@lru_cache
def _path(name: str | os.PathLike[str]) -> str:
    name = os.fspath(name)
    return unquote(urlsplit(name).path) if name.startswith("file:") else name


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


class DatabaseOperations(OperationsMixin, operations.DatabaseOperations):
    """Django's, whose compilers note what they do."""


class DatabaseWrapper(ConnectionMixin, base.DatabaseWrapper):
    """Django's, with leases around COMMIT."""

    cursor_mixin = Cursor
    ops_class = DatabaseOperations
    release_may_commit = True

    def get_new_connection(self, conn_params: Any) -> Any:
        """As Django's, with the function that `reads_the_past` asks by."""
        connection = super().get_new_connection(conn_params)
        connection.create_function(PROBE, 0, bool)
        return connection

    def facts(self) -> list[Any]:
        """The id, and what changes when the file is overwritten by way of SQLite."""
        found: list[Any] = self.connection.execute(FACTS).fetchall()
        return found

    def place(self) -> tuple[int, int] | None:
        """The file's device and inode, which another file or a copy does not have. None for a database in memory, and where there is no file."""
        try:
            found = os.stat(_path(self.settings_dict["NAME"]))  # noqa: PTH116  # each hit comes here, and Path.stat() is one more call
        except OSError:
            return None
        return found.st_dev, found.st_ino

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
