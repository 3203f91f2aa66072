"""BEGIN in the message of a transaction's first statement. Otherwise it would be a round trip of its own, a tenth of a write.

The driver sends BEGIN before the first statement and waits for the reply. Its simple protocol takes both in one message, and sends a result for each.
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT) If the statement is an UPDATE that is executed again and again, the
message has its EXECUTE (see prepared.py). It may fail and be executed again, because nothing was done in the transaction before.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from django.db.backends.postgresql import base
from psycopg import ClientCursor, Error, ProgrammingError
from psycopg.pq import TransactionStatus

from . import triggers
from .prepared import Updates


class Cursor(base.Cursor, ClientCursor[Any]):
    """Django's cursor of the driver. `private.py` lists the methods that it overrides."""

    updates: Updates | None = None
    """The prepared UPDATEs, if the next statement may be one."""
    _begin = b""
    """The BEGIN that the next statement is sent with, and what else stands before it."""
    _before = 0
    """The number of its statements."""

    def _execute_gen(self, query: Any, *args: Any, **options: Any) -> Generator[Any, Any, None]:
        connection = self._conn
        if connection.autocommit or connection.pgconn.transaction_status != TransactionStatus.IDLE or connection._pipeline:
            yield from super()._execute_gen(query, *args, **options)
            return
        sent, before = self.updates.prepare(query) if self.updates else (query, [])
        self._begin = b"; ".join([connection._get_tx_start_command(), *map(str.encode, before), b""])
        self._before = 1 + len(before)
        try:
            yield from super()._execute_gen(sent, *args, **options)
        except Error as error:
            is_idle, is_prepared = connection.pgconn.transaction_status == TransactionStatus.IDLE, bool(before) or sent is not query
            if connection.closed or not (is_idle or (is_prepared and isinstance(error, ProgrammingError))):
                raise
            if self.updates and is_prepared:
                self.updates.give_up()
            if not is_idle:
                yield from connection._exec_command(b"ROLLBACK")
            self._begin = b""  # the row is not written: execute it, or fail, as the driver does
            yield from super()._execute_gen(query, *args, **options)
        finally:
            self._begin = b""

    def _start_query(self, *args: Any) -> Generator[Any, Any, None]:
        connection = self._conn
        if not self._begin:
            yield from super()._start_query(*args)
            return
        connection._autocommit = True  # so that no BEGIN is sent now
        try:
            yield from super()._start_query(*args)
        finally:
            connection._autocommit = False

    def _execute_send(self, query: Any, **options: Any) -> None:
        statement = query.query
        if self._begin:
            query.query = triggers.after_mark(statement, self._begin)
        try:
            super()._execute_send(query, **options)
        finally:
            query.query = statement

    def _set_results(self, results: list[Any]) -> None:
        super()._set_results(results[self._before :] or results if self._begin else results)
