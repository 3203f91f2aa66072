"""The identity of the database behind a connection. It stands in every key, so two databases never share an entry.

A database restored from a backup, or another one at the same address, has other rows. Its identity is read once for each new physical
connection with the driver's own cursor, and remembered for each alias: a hit needs no connection. The newest connection of a process decides.

A part of it is the random id in the one row of the table `freshness_database`, which the first migration of this app makes. The table has no
model, so `dumpdata` and `flush` leave it alone.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper


class Unidentified(Exception):
    """The database does not tell which one it is; the message says why, and what to do."""


_known: dict[str, tuple[str, Any]] = {}
"""alias → the identity that the newest connection of this process found, and its place."""


class IdentifiedMixin(BaseDatabaseWrapper if TYPE_CHECKING else object):  # type: ignore[misc]  # mypy wants one base, not a choice
    """For a subclass of Django's `DatabaseWrapper`."""

    identity: str | None = None
    """The identity that was read when this connection was made."""
    why_unidentified = ""

    def facts(self) -> list[Any]:
        """The rows that tell one database from every other. Raises the driver's Error where they cannot be read."""
        raise NotImplementedError

    def place(self) -> Any:
        """Where the database is now, if moving it can be seen from outside."""
        return None

    def connect(self) -> None:
        """Reads the identity, too."""
        place = self.place()
        super().connect()
        self._identify(place)

    def database_identity(self) -> str:
        """The identity of the database that this connection reads, or would read. Asks nobody if this process knows.

        Raises Unidentified, and OperationalError where the database is unreachable.
        """
        identity, place = _known.get(self.alias, (None, None))
        if identity and self.place() in (None, place) and (self.connection is None or self.identity == identity):
            return identity
        return self._ask_anew()

    def _ask_anew(self) -> str:
        self.close()  # it may lead to a database that is no longer at this address
        if self.connection is None:
            self.ensure_connection()
        else:  # in memory: Django keeps this connection open
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
            with suppress(self.Database.Error):  # the transaction that reading began, with the snapshot that it may have
                self.connection.rollback()
        if place != self.place():
            facts, why = [], "Its file was replaced while a connection to it was made."
        self.identity = hashlib.sha256(repr((place, facts)).encode()).hexdigest()[:16] if facts else None
        if self.identity:
            _known[self.alias] = self.identity, place
        else:
            _known.pop(self.alias, None)
            what_to_do = "Run `manage.py migrate`, and let the role of the service SELECT from the table."
            self.why_unidentified = f"The identity of the database '{self.alias}' cannot be read: {why} {what_to_do}"
