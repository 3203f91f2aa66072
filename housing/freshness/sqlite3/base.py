"""The SQLite backend. Django imports this module for the dotted name of the folder in `ENGINE`."""

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

from ..changes import Image, Statement, Upsert, Values, limited, paired
from ..compiler import OperationsMixin
from ..connection import ConnectionMixin
from ..cursor import CursorMixin
from ..statements import NOTHING, may_write
from ..tracking import MANY_ROWS

PROBE = "freshness_probe"

OLD = "freshness_old"
"""The function to which an upsert passes the old values of each row that it updates."""

FACTS = "SELECT id, (SELECT schema_version FROM pragma_schema_version), sqlite_version() FROM freshness_database"
"""SQLite's backup API, which may overwrite the file in place, increments `schema_version`."""


@lru_cache
def _path(name: str | os.PathLike[str]) -> str:
    name = os.fspath(name)
    return unquote(urlsplit(name).path) if name.startswith("file:") else name


class Cursor(CursorMixin):
    """Django's cursor wrapper, with the other way to write on SQLite."""

    sends_no_sql = CursorMixin.sends_no_sql | {"convert_query"}

    def executescript(self, script: str) -> Any:
        """Execute a script that writes no tracked table. Raises NotSupportedError for other scripts, because the driver commits them without a lease."""
        if self.db.managed or self.db.uncommitted or may_write(script):
            raise NotSupportedError("executescript commits by itself and would bypass the cache. Execute the statements one by one in transaction.atomic().")
        with self.db.wrap_database_errors:
            self.cursor.executescript(script)
        return self


class DatabaseOperations(OperationsMixin, operations.DatabaseOperations):
    """Django's operations with the engine's compilers."""


class DatabaseWrapper(ConnectionMixin, base.DatabaseWrapper):
    """Django's backend with leases around COMMIT."""

    cursor_mixin = Cursor
    ops_class = DatabaseOperations
    release_may_commit = True
    times_have_zones = False

    def get_new_connection(self, conn_params: Any) -> Any:
        """Connect, and add the functions that `reads_the_past` and `upsert()` need."""
        connection = super().get_new_connection(conn_params)
        connection.create_function(PROBE, 0, bool)
        self._old = old = list[Values]()  # the function must not refer to this object, which refers to the connection

        def keep(*values: Any) -> bool:
            old.append(values)
            return True

        connection.create_function(OLD, -1, keep)
        return connection

    def facts(self) -> list[Any]:
        """Return the id, and values that change when SQLite overwrites the file."""
        found: list[Any] = self.connection.execute(FACTS).fetchall()
        return found

    def place(self) -> tuple[int, int] | None:
        """Return the device and inode of the file, which no other file has; None for a database in memory or without a file."""
        try:
            found = os.stat(_path(self.settings_dict["NAME"]))  # noqa: PTH116  # Path.stat() would add a call to each hit
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def begun(self) -> bool:
        """Whether the driver is in a transaction."""
        return self.connection is not None and self.connection.in_transaction

    @property
    def reads_the_past(self) -> bool:
        """Also true while a SELECT is unfinished, because every other SELECT on the connection then sees the same state."""
        return self.in_transaction or (self.connection is not None and self._has_unfinished())

    def _has_unfinished(self) -> bool:
        try:
            self.connection.create_function(PROBE, 0, bool)
        except sqlite3.OperationalError:  # SQLite refuses this while a statement is pending
            return True
        return False

    @property
    def has_images(self) -> bool:
        """Whether this transaction has the write lock already, so that what it reads now is what its UPDATE changes."""
        return self.in_atomic_block and self.transaction_mode in ("IMMEDIATE", "EXCLUSIVE") and self.begun and self.returns_rows

    def images(self, statement: Statement) -> tuple[int, list[Image] | None]:
        """Execute a DELETE with RETURNING, which has the old values, and an UPDATE after a SELECT. The sign `+` keeps the driver from converting values."""
        columns = ", ".join([f"+{column}" for column in statement.columns])
        announced, self.announced = self.announced, NOTHING
        with self.cursor() as cursor:
            before: Any = None
            if not (statement.old_is_known or (statement.deletes and statement.is_bounded)):
                look = f"SELECT {columns} FROM {statement.table}{statement.condition} LIMIT {MANY_ROWS + 1}"  # noqa: S608  # quoted names
                cursor.execute(look, statement.where_params)
                before = cursor.fetchall()
            self.announced = announced
            if before is not None and (statement.deletes or len(before) > MANY_ROWS):
                cursor.execute(statement.sql, statement.params)
                return limited(cursor.rowcount, [Image(row, None) for row in before])
            joined = "".join([f", {lookup.of(f'{statement.table}.{lookup.source}')}" for lookup in statement.lookups])
            cursor.execute(f"{statement.sql} RETURNING {columns}{joined}", statement.params)
            rows = cursor.fetchall()
        return limited(len(rows), [Image(row, row if statement.old_is_known else None) for row in rows] if before is None else paired(before, rows))

    def upsert(self, statement: Upsert) -> tuple[list[Values], list[Image] | None]:
        """Execute it with RETURNING. The condition of its UPDATE is a function, which is always true and keeps the old values."""
        number, sql = len(statement.columns), statement.sql
        is_known = number <= self.connection.getlimit(sqlite3.SQLITE_LIMIT_FUNCTION_ARG)
        if statement.updates and is_known:
            sql += f" WHERE {OLD}({', '.join([f'{statement.table}.{column}' for column in statement.columns])})"
        lookups = [lookup.of(f"{statement.table}.{lookup.source}") for lookup in statement.lookups]
        self._old.clear()
        with self.cursor() as cursor:
            cursor.execute(f"{sql} RETURNING {statement.returning(*[f'+{column}' for column in statement.columns], *lookups)}", statement.params)
            rows = cursor.fetchall()
        more = number + len(lookups)
        before: dict[Any, Values] = {row[0]: row for row in self._old}
        images = [Image(before.get(row[0], ()), row[:more]) for row in rows]
        is_known = is_known and len({row[0] for row in rows}) == len(rows)  # SQLite may write a row twice in one statement
        return [row[more:] for row in rows], images if is_known else None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Open a transaction whose SELECTs all see the same state, without a write lock."""
        self.ensure_connection()  # it reads the mode from the settings
        mode: Any = self.transaction_mode
        self.transaction_mode: Any = "DEFERRED"
        try:
            with transaction.atomic(using=self.alias, durable=True):
                yield
        finally:
            self.transaction_mode = mode

    def _set_autocommit(self, autocommit: bool) -> None:
        """Commit with a lease first, because the driver commits an open transaction here."""
        if autocommit and self.uncommitted:
            self._commit()
        super()._set_autocommit(autocommit)
