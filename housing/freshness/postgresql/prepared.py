"""SELECTs that the server plans once for each connection. To plan a page's four joined tables takes it longer than to read the page.

A prepared statement belongs to one connection of the server. A pooler such as PgBouncer may send the next statement over another one. So nothing is prepared
unless the connection is direct: the server's process has the number that it announced when the connection was opened. A pooler announces a number of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from psycopg import ClientCursor, errors
from psycopg import Cursor as DriverCursor
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from .base import DatabaseWrapper

AFTER = 2
"""How often a connection executes a SELECT before the server prepares it."""

MOST = 20
"""How many statements of a connection are prepared, each in some 150 kB of the server's memory. The one that is unused for the longest time is forgotten."""


def use_own_names(connection: Any) -> None:
    """Let the statements of this connection have names that no other program uses. Otherwise it could get another one's statement through a pooler."""
    connection.prepared_max = MOST
    connection._prepared._prepared_idx = int.from_bytes(os.urandom(7))


class Cursor(DriverCursor[Any]):
    """A cursor for SELECTs that are executed again and again. Their text includes the values, as that of Django's cursors does."""

    def __init__(self, wrapper: DatabaseWrapper) -> None:
        self.wrapper = wrapper
        super().__init__(wrapper.connection)

    def execute(self, query: Any, params: Any = None, **_: Any) -> Any:
        """Execute a SELECT. If the server no longer has its prepared statement, or can no longer use it, it is executed as any other."""
        connection: Any = self.connection
        text = query if params is None or "%" not in query else ClientCursor(connection).mogrify(query, params)
        connection.prepare_threshold = AFTER
        try:
            return super().execute(text)
        except errors.FeatureNotSupported:  # the type of a column has changed
            connection.execute("DEALLOCATE ALL")
        except (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement):  # there is a pooler, or another program has deallocated it
            self.wrapper.is_direct = False
        finally:
            connection.prepare_threshold = None
        return super().execute(text)


def is_idle(connection: Any) -> bool:
    """Whether the connection is outside any transaction, so that a statement may fail and be executed again."""
    return bool(connection.autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE)
