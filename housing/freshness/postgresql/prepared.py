"""SELECTs and UPDATEs that the server plans once for each connection. Planning a page's four joined tables takes it longer than reading the page.
Parsing and planning the UPDATE of a saved row takes up to half of the server's time for it.

A prepared statement belongs to one connection of the server. A pooler such as PgBouncer may send the next statement over another one. So nothing is prepared
unless the connection is direct: the server's process has the number that it announced when the connection was opened. A pooler announces a number of its own.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from psycopg import ClientCursor, errors
from psycopg import Cursor as DriverCursor
from psycopg.pq import TransactionStatus

from .triggers import MARK

if TYPE_CHECKING:
    from .base import DatabaseWrapper

AFTER = 2
"""How often a connection executes a statement before the server prepares it."""

MOST = 20
"""How many SELECTs of a connection are prepared, each in some 150 kB of the server's memory, and how many UPDATEs. The one that is unused for the longest time
is forgotten."""

UPDATE = re.compile(r'UPDATE "[^"%]+" SET (?:"[^"%]+" = (?:%s|NULL)(?:, | (?=WHERE )))+WHERE "[^"%]+"\."[^"%]+" = %s')
"""An UPDATE of one row that assigns only values. The type of each is that of its column, with EXECUTE as well as in the statement itself."""

GONE = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
"""Errors of a connection that lacks the statements that were prepared on it: there is a pooler, or another program has deallocated them."""


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
            updates_of(connection).forget()
        except GONE:
            self.wrapper.is_direct = False
        finally:
            connection.prepare_threshold = None
        return super().execute(text)


def is_idle(connection: Any) -> bool:
    """Whether the connection is outside any transaction, so that a statement may fail and be executed again."""
    return bool(connection.autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE)


# UPDATEs


@dataclass
class Prepared:
    """A statement that was executed on a connection: how often, and its name and the text of its EXECUTE after it was prepared."""

    times: int = 0
    name: str = ""
    execute: str = ""


class Updates:
    """The UPDATEs of one connection, by their texts with placeholders. They are prepared by SQL, in the message of a transaction's BEGIN (see begin.py)."""

    def __init__(self) -> None:
        self.known: OrderedDict[str, Prepared] = OrderedDict()
        self.names = (f"freshness_{os.urandom(7).hex()}_{number}" for number in count())
        self.may_prepare = True

    def prepare(self, query: str) -> tuple[str, list[str]]:
        """Return the text to execute in place of this one, with the same parameters, and the statements that must be executed before it."""
        if not self.may_prepare:
            return query, []
        before = []
        known = self.known.setdefault(query, Prepared())
        self.known.move_to_end(query)
        known.times += 1
        if len(self.known) > MOST and (oldest := self.known.popitem(last=False)[1].name):
            before.append(f"DEALLOCATE {oldest}")
        if known.times > AFTER and not known.name:
            known.name, mark = next(self.names), MARK.match(query)
            first, *parts = query[mark.end() if mark else 0 :].split("%s")
            known.execute = f"{mark[0] if mark else ''}EXECUTE {known.name} ({', '.join(['%s' for _ in parts])})"
            numbered = [f"${number}{text}" for number, text in enumerate(parts, 1)]
            before.append(f"PREPARE {known.name} AS {first}{''.join(numbered)}")
        return known.execute or query, before

    def forget(self) -> None:
        """Forget the statements, which are deallocated."""
        self.known.clear()

    def give_up(self) -> None:
        """Prepare nothing on this connection any longer."""
        self.forget()
        self.may_prepare = False


_updates: WeakKeyDictionary[Any, Updates] = WeakKeyDictionary()


def updates_of(connection: Any) -> Updates:
    """Return the UPDATEs of a connection of the driver. A pool lends it again."""
    if (found := _updates.get(connection)) is None:
        found = _updates[connection] = Updates()
    return found


@lru_cache(maxsize=256)
def is_plain(sql: str) -> bool:
    """Whether this is an UPDATE of one row that assigns only values."""
    return UPDATE.fullmatch(sql) is not None
