"""BEGIN in the message of a transaction's first statement. Otherwise it would be a round trip of its own, a tenth of a write.

The driver sends BEGIN before the first statement and waits for the reply. Its simple protocol takes both in one message, and sends a result for each.
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT)
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from django.db.backends.postgresql import base
from psycopg import ClientCursor, Error
from psycopg.pq import TransactionStatus

from . import triggers


class Cursor(base.Cursor, ClientCursor[Any]):
    """Django's cursor of the driver. `private.py` lists the methods that it overrides."""

    _begin = b""
    """The BEGIN that the next statement is sent with."""

    def _execute_gen(self, *args: Any, **options: Any) -> Generator[Any, Any, None]:
        connection = self._conn
        if connection.autocommit or connection.pgconn.transaction_status != TransactionStatus.IDLE or connection._pipeline:
            yield from super()._execute_gen(*args, **options)
            return
        self._begin = connection._get_tx_start_command()
        try:
            yield from super()._execute_gen(*args, **options)
        except Error:
            if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise
            self._begin = b""  # the message has a syntax error, so nothing in it was executed: fail as the driver does, in a transaction
            yield from super()._execute_gen(*args, **options)
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
            query.query = triggers.after_mark(statement, self._begin + b"; ")
        try:
            super()._execute_send(query, **options)
        finally:
            query.query = statement

    def _set_results(self, results: list[Any]) -> None:
        super()._set_results(results[1:] or results if self._begin else results)
