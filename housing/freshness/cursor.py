"""A cursor that passes every statement to `connection.statement()`. Other methods of the driver's cursor are on a list, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from django.db import NotSupportedError
from django.db.backends.utils import CursorWrapper

from .statements import NOTHING, text_of


class MethodRefused(NotSupportedError, AttributeError):
    """A method of the driver's cursor may execute SQL that the cache does not see. It is an AttributeError, so `hasattr()` is false."""


class CursorMixin(CursorWrapper):
    """A mixin for Django's plain and debug cursor wrappers. No write bypasses the journal.

    Methods of the driver that return its cursor return this one instead.
    """

    db: Any
    written: frozenset[str] = NOTHING
    """The tables that the statement that is being executed may write. They are tagged."""
    sends_no_sql: ClassVar[frozenset[str]] = frozenset(
        {
            *("arraysize", "close", "description", "fetchall", "fetchmany", "fetchone"),
            *("lastrowid", "nextset", "row_factory", "rowcount", "setinputsizes", "setoutputsize"),
        }
    )
    """The attributes of the driver's cursor that execute no SQL. A new method of a driver is refused until it is added here."""

    def __getattr__(self, name: str) -> Any:
        if name not in self.sends_no_sql:
            raise MethodRefused(
                f"cursor.{name} is refused, because it may execute SQL that the cache does not see. Use execute(), executemany() or callproc(). "
                f"If it executes no SQL, add its name to sends_no_sql in {self.db.cursor_mixin.__module__}."
            )
        found = getattr(self.cursor, name)
        return self.db.wrap_database_errors(found) if name in CursorWrapper.WRAP_ERROR_ATTRS else found

    def execute(self, sql: Any, params: Any = None) -> Any:
        """Execute one statement. A compiler that announced it records or tags it itself."""
        if (announced := self.db.announced) is not None:
            self.db.announced = None  # for this statement only: a wrapper may execute others
            return self._execute_judged(sql, params, announced)
        with self.db.statement(sql if type(sql) is str else text_of(sql, self.db)) as tables:
            return self._execute_judged(sql, params, tables)

    def _execute_judged(self, sql: Any, params: Any, tables: frozenset[str]) -> Any:
        before, self.written = self.written, tables
        try:
            if wrappers := self.db.execute_wrappers:
                wrappers.append(partial(_judged_again, sql))
                try:
                    found = super().execute(sql, params)
                finally:
                    wrappers.pop()
            else:
                found = super().execute(sql, params)
        finally:
            self.written = before
        return self if found is self.cursor else found

    def executemany(self, sql: Any, param_list: Any) -> Any:
        """Execute one statement with each set of parameters."""
        with (
            self.db.statement(text_of(sql, self.db)) as tables,
            self.writing(tables),
            self.db.execute_wrapper(partial(_judged_again, sql)),
        ):
            found = super().executemany(sql, param_list)
        return self if found is self.cursor else found

    def callproc(self, procname: str, params: Any = None, kparams: Any = None) -> Any:
        """Call a procedure, which may write anything."""
        with self.db.statement("CALL procedure()"):
            return super().callproc(procname, params, kparams)

    @contextmanager
    def writing(self, tables: frozenset[str]) -> Iterator[None]:
        """In this block the statement may write these tables, whose tags it has."""
        before, self.written = self.written, tables
        try:
            yield
        finally:
            self.written = before


def _judged_again(judged: Any, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """The innermost execute wrapper. An outer wrapper may have replaced the statement after it was analysed."""
    if sql is judged:
        return execute(sql, params, many, context)
    connection = context["connection"]
    with connection.statement(text_of(sql, connection)) as tables, context["cursor"].writing(tables):
        return execute(sql, params, many, context)


def mixed(mixin: type[CursorMixin], wrapper: type[CursorWrapper]) -> Any:
    """Return Django's plain or debug wrapper with the mixin."""
    if (mixin, wrapper) not in _mixtures:
        _mixtures[mixin, wrapper] = type(mixin.__name__, (mixin, wrapper), {})
    return _mixtures[mixin, wrapper]


_mixtures: dict[Any, Any] = {}
