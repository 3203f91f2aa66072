"""A mixin for Django's database backends: a lease on what a transaction wrote before its COMMIT, a close after it.

Compilers and, for SQL as text, the cursor *tag* what they write, in the scope of the innermost savepoint. A rollback drops the scope. COMMIT takes
what is left to the journal, before and after.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, NotSupportedError, OperationalError, connections, transaction

from . import statements
from .cursor import CursorMixin, mixed
from .dependencies import recorder
from .identity import IdentifiedMixin
from .journal import Lease, Unreachable, journal
from .tracking import MANY_ROWS, Table, tables

logger = logging.getLogger(__name__)

JSON = (bool, dict, list)
"""Types of JSON whose values Python compares by another rule than a database."""


class NotLeased(OperationalError):
    """A transaction was not committed, because its readers could not be told first."""


@dataclass(eq=False)
class Scope:
    """What was written under one savepoint, or under the transaction itself (`sid` None)."""

    sid: str | None = None
    tags: dict[str, set[str]] = field(default_factory=dict)
    """table → tags."""
    changes: dict[tuple[str, tuple[str, ...]], None] = field(default_factory=dict)
    """A sentence for the log and the tags that it names, in order, and each once."""
    held: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """A row that was read FOR UPDATE here, as its table and the text of its primary key → column → value."""


def ours(alias: str = DEFAULT_DB_ALIAS) -> ConnectionMixin:
    """The connection of this thread to one of our databases. Raises ImproperlyConfigured where the backend is not the engine's."""
    connection = connections[alias]
    if not isinstance(connection, ConnectionMixin):
        raise ImproperlyConfigured(
            f"The database '{alias}' has the engine {connection.settings_dict['ENGINE']}, whose writes the cache does not see. "
            f"Set ENGINE to {__package__}.postgresql or {__package__}.sqlite3."
        )
    return connection


def _differ_in_json(one: Any, other: Any) -> bool:
    """Whether two values that Python calls equal are two in JSON: `True` and `1`, or what contains them."""
    return isinstance(one, JSON) is not isinstance(other, JSON) or (isinstance(one, JSON) and repr(one) != repr(other))


class ConnectionMixin(IdentifiedMixin):
    """For a subclass of Django's `DatabaseWrapper`: see the module."""

    cursor_mixin: ClassVar[type[CursorMixin]] = CursorMixin
    release_may_commit: ClassVar[bool] = False

    is_announced = False
    """Whether a compiler sends the next statement: it knows better than the text what is read or written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scopes = [Scope()]
        self.in_doubt: Lease | None = None

    def text_of(self, sql: Any) -> str | None:
        """The text of a statement that is neither str nor bytes; None where the driver takes none."""
        return None

    def snapshot(self) -> AbstractContextManager[None]:
        """A transaction whose SELECTs all see one state. Each backend has its own way."""
        raise NotImplementedError

    # What was written, by savepoint

    @property
    def uncommitted(self) -> bool:
        """Whether this connection holds tagged writes that are not committed."""
        return any(scope.tags for scope in self.scopes)

    @property
    def managed(self) -> bool:
        """Whether Django holds a transaction open. Asking does not connect."""
        return self.in_atomic_block or (self.connection is not None and not self.autocommit)

    @property
    def in_transaction(self) -> bool:
        """Whether there is a transaction, Django's or one that SQL began. Asking does not connect."""
        return self.managed or self.begun

    @property
    def begun(self) -> bool:
        """Whether the driver is inside a transaction."""
        raise NotImplementedError

    @property
    def reads_the_past(self) -> bool:
        """Whether a SELECT may be answered from a snapshot that began earlier."""
        return self.in_transaction

    @property
    def holds_locks(self) -> bool:
        """Whether a row that is read FOR UPDATE stays locked: in autocommit a lock lasts no longer than its statement."""
        return self.managed and self.begun

    def tag(self, table: str, tags: Iterable[str], change: str | None = None) -> None:
        """Say what the transaction invalidates, should it commit; `change` is a sentence about it for the log."""
        scope = self.scopes[-1]
        scope.tags.setdefault(table, set()).update(tags)
        if change:
            scope.changes.setdefault((change, tuple(sorted(tags))))

    def has_tagged(self, table: str, tag: str) -> bool:
        """Whether this transaction invalidates it already."""
        return any(tag in scope.tags.get(table, ()) for scope in self.scopes)

    def hold(self, table: Table, key: Any, values: dict[str, Any]) -> None:
        """Note what a row holds that was read FOR UPDATE. Beyond `MANY_ROWS` rows nothing is noted, which is slower and as true."""
        held = self.scopes[-1].held
        if table.pk_text and len(held) < MANY_ROWS:
            held[table.name, table.pk_text(key)] = values

    def is_held(self, table: Table, key: str, column: str, value: Any) -> bool:
        """Whether a row is certain to hold this value already. A row that this transaction changed was tagged when it did."""
        for scope in reversed(self.scopes):
            if (table.name, key) in scope.held:
                held = scope.held[table.name, key]
                return column in held and bool(held[column] == value) and not _differ_in_json(held[column], value)
        return False

    def _savepoint(self, sid: str) -> None:
        super()._savepoint(sid)
        self.scopes.append(Scope(sid))

    def _savepoint_rollback(self, sid: str) -> None:
        super()._savepoint_rollback(sid)
        self._cut(sid)
        self.scopes.append(Scope(sid))

    def _savepoint_commit(self, sid: str) -> None:
        super()._savepoint_commit(sid)
        for scope in self._cut(sid):
            for table, tags in scope.tags.items():
                self.scopes[-1].tags.setdefault(table, set()).update(tags)
            self.scopes[-1].changes |= scope.changes
            self.scopes[-1].held |= scope.held

    def _cut(self, sid: str) -> list[Scope]:
        at = next(i for i, scope in enumerate(self.scopes) if scope.sid == sid)
        self.scopes, cut = self.scopes[:at], self.scopes[at:]
        return cut

    # What the cursor sees

    def make_cursor(self, cursor: Any) -> Any:
        """Django's wrapper, mixed with ours."""
        wrapper = super().make_cursor(cursor)
        return mixed(self.cursor_mixin, type(wrapper))(wrapper.cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """The same for DEBUG."""
        wrapper = super().make_debug_cursor(cursor)
        return mixed(self.cursor_mixin, type(wrapper))(wrapper.cursor, self)

    @contextmanager
    def statement(self, sql: str) -> Iterator[None]:
        """Around one statement: what it writes is tagged, and there is a COMMIT for it to wait for.

        Raises NotSupportedError where the text itself would end a transaction that holds writes.
        """
        judged = statements.judge(sql)
        if judged.ends:
            if self.managed or self.uncommitted or not judged.alone:
                raise NotSupportedError(
                    f"{judged.ends} as SQL would pass the cache by. Use transaction.atomic(), or the connection's own commit() and rollback()."
                )
            yield
        elif judged.releases and self.release_may_commit and self.uncommitted and not self.in_atomic_block:
            raise NotSupportedError("RELEASE as SQL could be a COMMIT that passes the cache by. Use transaction.atomic().")
        elif not judged.tables:
            self._read_as_text(sql)
            yield
        else:
            if (recording := recorder()) is not None:
                recording.refuse(f"It writes while it answers a GET: {' '.join(sql.split())[:200]}")
            with nullcontext() if self.in_transaction else self.own_transaction():
                for name in judged.tables:
                    self.tag(name, tables()[name].all, f"[SQL] {name} written, rows not known.")
                yield

    @contextmanager
    def own_transaction(self) -> Iterator[None]:
        """A transaction on this very connection. `atomic` takes the one in `connections`, and this may be a `copy()` of it, or one without an alias."""
        held = connections[self.alias] if self.alias in connections.settings else None
        if held is not self:
            connections[self.alias] = self
        try:
            with transaction.atomic(using=self.alias):
                yield
        finally:
            if held is None:
                del connections[self.alias]
            elif held is not self:
                connections[self.alias] = held

    def _read_as_text(self, sql: str) -> None:
        """Say that a fill read something that nobody can read off."""
        if (recording := recorder()) is not None and not statements.READS_NOTHING.match(sql):
            recording.refuse(f"It sends SQL as text, and nobody knows which tables that reads: {' '.join(sql.split())[:200]}")

    # The commit

    def _commit(self) -> None:
        if not self.uncommitted:
            self.scopes = [Scope()]
            super()._commit()
            return
        tags = self._collapsed()
        changes = [change for scope in self.scopes for change in scope.changes]
        try:
            lease = journal.lease(tags)
        except Unreachable as away:
            raise NotLeased(f"Not committed: {away} What was written could have stayed invisible to readers, so it was rolled back.") from away
        except BaseException:  # Ctrl-C: Django rolls back after errors of the database only, and SQLite would commit with the next statement
            self._rollback()
            raise
        try:
            super()._commit()
        except DatabaseError:
            self.in_doubt = lease
            raise
        self.scopes = [Scope()]
        try:
            journal.close(lease)
        except Unreachable as away:
            logger.warning("Committed, but its lease could not be closed: %s Readers ask the database until it runs out.", away)
        for change, stale in changes:
            logger.info("%s Stale: %s.", change, ", ".join(stale))

    def _collapsed(self) -> set[str]:
        """What the transaction invalidates, with all of a table in place of more than `MANY_ROWS` tags of it."""
        merged: dict[str, set[str]] = {}
        for scope in self.scopes:
            for name, tags in scope.tags.items():
                merged.setdefault(name, set()).update(tags)
        return set().union(*({name, f"{name}:*"} if len(tags) > MANY_ROWS else tags for name, tags in merged.items()))

    def _rollback(self) -> None:
        lease, self.in_doubt = self.in_doubt, None
        self.scopes = [Scope()]
        super()._rollback()
        if lease is not None:
            self._withdraw(lease)

    def _withdraw(self, lease: Lease) -> None:
        try:
            journal.withdraw(lease)
        except Unreachable as away:
            logger.warning("Rolled back, but its lease could not be withdrawn: %s Readers ask the database until it runs out.", away)

    def _close(self) -> None:
        self.in_doubt = None
        self.scopes = [Scope()]
        super()._close()
