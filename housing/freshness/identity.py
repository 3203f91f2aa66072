"""The identity of the database behind a connection. It is part of every key, so two databases never share an entry.

A database restored from a backup, or another one at the same address, has other rows. Its identity is read with the driver's own cursor once for each
new connection, and kept for each alias, so a hit needs no connection. The newest connection of a process decides.

The identity includes the random id in the only row of the table `freshness_database`, which the first migration of this app creates. The table has
no model, so `dumpdata` and `flush` ignore it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper


class Unidentified(Exception):
    """The identity of the database cannot be read. The message says why, and what to do."""


_known: dict[str, tuple[str | None, Any]] = {}
"""alias → the identity that the newest connection of this process read, and the place of the database."""


def known_identity(alias: str) -> str | None:
    """Return the identity that this process read last, without a query."""
    return _known.get(alias, (None, None))[0]


class IdentifiedMixin(BaseDatabaseWrapper if TYPE_CHECKING else object):  # type: ignore[misc]  # its base counts as Any, because the stubs lack what it overrides
    """A mixin for Django's `DatabaseWrapper`."""

    identity: str | None = None
    """The identity that was read when this connection was opened."""
    why_unidentified = ""

    def facts(self) -> list[Any]:
        """Return rows that distinguish this database from every other. Raises the driver's Error if they cannot be read."""
        raise NotImplementedError

    def place(self) -> Any:
        """Return the place of the database, if a move can be seen without a connection."""
        return None

    def connect(self) -> None:
        """Connect, and read the identity."""
        place = self.place()
        super().connect()
        self._identify(place)

    def database_identity(self, while_asking: Callable[[], AbstractContextManager[Any]] = nullcontext) -> str:
        """Return the identity of the database, without a query if this process knows it. Otherwise it is read inside of `while_asking()`.

        Raises Unidentified, and OperationalError if the database is unreachable.
        """
        identity, place = _known.get(self.alias, (None, None))
        if identity and self.place() in (None, place) and (self.connection is None or self.identity == identity):
            return identity
        with while_asking():
            return self._read_again()

    def _read_again(self) -> str:
        self.close()  # it may be connected to a database that has moved
        if self.connection is None:
            self.ensure_connection()
        else:  # an in-memory database: Django keeps this connection open
            self._identify(self.place())
        if self.identity is None:
            raise Unidentified(self.why_unidentified)
        return self.identity

    def _identify(self, place: Any) -> None:
        try:
            facts, why = self.facts(), "The table freshness_database has no row."
        except self.Database.Error as error:
            facts, why = [], f"{' '.join(str(error).split())}."
        if not self.autocommit:
            with suppress(self.Database.Error):  # end the transaction that the SELECT began
                self.connection.rollback()
        if place != self.place():
            facts, why = [], "Its file was replaced while the connection was opened."
        self.identity = hashlib.sha256(repr((place, facts)).encode()).hexdigest()[:16] if facts else None
        if self.identity:
            _known[self.alias] = self.identity, place
        else:
            _known.pop(self.alias, None)
            what_to_do = "Run `manage.py migrate`, and grant SELECT on the table to the role of the service."
            self.why_unidentified = f"The identity of the database '{self.alias}' cannot be read: {why} {what_to_do}"
