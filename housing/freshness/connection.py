"""A mixin for Django's database backends. It opens a lease on the tags of a transaction before COMMIT, and closes it afterwards.

Compilers, and the cursor for raw SQL, *tag* their writes in the scope of the innermost savepoint. A rollback drops the scope. COMMIT sends the
remaining tags to the journal.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, NotSupportedError, OperationalError, connections, transaction

from . import outbox, statements
from .breaker import Unreachable
from .changes import Copied, Image, Statement, Upsert, Values
from .cursor import CursorMixin, mixed
from .dependencies import recorder
from .identity import IdentifiedMixin
from .joined import divided
from .journal import Lease, Seen, journal
from .places import MANY_PLACES, Span, covering, line_of
from .settings import conf
from .tracking import MANY_ROWS, MANY_SCOPED, Table, tables

logger = logging.getLogger(__name__)

JSON = (bool, dict, list)
"""Types of JSON values that Python and databases compare differently."""

NO_REPLY = (
    *map(os.strerror, (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ENOENT)),
    "failed to resolve host",
    "timeout expired",
)
"""Texts of errors of a connection attempt to which no server replied: those of the operating system, of psycopg and of libpq."""


class NotLeased(OperationalError):
    """A transaction was rolled back, because its tags could be written neither to Redis nor to the outbox."""


@dataclass(eq=False)
class Scope:
    """The writes under one savepoint, or under the transaction itself (`sid` None)."""

    sid: str | None = None
    tags: dict[str, set[str]] = field(default_factory=dict)
    """table → tags."""
    changes: dict[tuple[str, tuple[str, ...]], None] = field(default_factory=dict)
    """Sentences for the log with their tags, in order and without repeats. After `MANY_ROWS` none are added."""
    held: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(table, primary key) of a row that was read FOR UPDATE → column → value."""
    places: dict[str, list[Sequence[Span]]] = field(default_factory=dict)
    """Name of a table with its places → the places of its rows, of which it has at most `MANY_PLACES`."""
    since: Seen | None = None
    """An instant before the transaction began, if Django began it."""


def ours(alias: str = DEFAULT_DB_ALIAS) -> ConnectionMixin:
    """Return this thread's connection to a database. Raises ImproperlyConfigured if its backend is not the engine's."""
    connection = connections[alias]
    if not isinstance(connection, ConnectionMixin):
        raise ImproperlyConfigured(
            f"The database '{alias}' has the engine {connection.settings_dict['ENGINE']}, whose writes do not invalidate the cache. "
            f"Set ENGINE to {__package__}.postgresql or {__package__}.sqlite3."
        )
    return connection


def _is_no_reply(error: Exception) -> bool:
    """Whether the text of a driver's error says that nobody replied. Neither psycopg nor libpq has a code for it."""
    return any(text in str(error) for text in NO_REPLY)


def _not_closed(away: Unreachable) -> None:
    logger.warning("Committed, but the lease could not be closed: %s Readers query the database until it expires.", away)


def _differ_in_json(one: Any, other: Any) -> bool:
    """Whether two values that are equal in Python differ in JSON, such as `True` and `1`."""
    return isinstance(one, JSON) is not isinstance(other, JSON) or (isinstance(one, JSON) and repr(one) != repr(other))


def _shortened(name: str, tags: set[str]) -> set[str]:
    """Replace many tags of a table by that of all its scopes, or by that of the whole table."""
    table = tables().get(name)
    scoped = table.in_scopes(tags) if table else set()
    if f"{name}:*" in tags or len(tags) - len(scoped) > MANY_ROWS:
        return {name, f"{name}:*"}
    return tags - scoped | {f"{name}:?"} if len(scoped) > MANY_SCOPED or f"{name}:?" in tags else tags


class ConnectionMixin(IdentifiedMixin):
    """A mixin for Django's `DatabaseWrapper`; see the module."""

    cursor_mixin: ClassVar[type[CursorMixin]] = CursorMixin
    release_may_commit: ClassVar[bool] = False
    times_have_zones: ClassVar[bool] = True
    """Whether a time with a time zone has one in its text, too."""

    copies: frozenset[Copied] = frozenset()
    """The copies of columns of other rows that this database keeps."""

    announced: frozenset[str] | None = None
    """The tables that the next statement may write, if it comes from a compiler, which records or tags it itself. None if its text must be analysed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scopes = [Scope()]
        self.in_doubt: Lease | None = None

    def text_of(self, sql: Any) -> str | None:
        """Return the text of a statement that is neither str nor bytes; None if the driver does not accept it."""
        return None

    def is_unreachable(self, error: Exception) -> bool:
        """Whether no connection to the server can be opened, after this error. Tries to open one, unless the error says so already.

        A server that refuses a connection with a reply, such as "too many clients", is reachable: others may be connected, and write.
        """
        if self.connection is None and _is_no_reply(error):
            return True
        self.close()
        try:
            self.ensure_connection()
        except (InterfaceError, OperationalError) as again:
            return _is_no_reply(again)
        return False

    def watch_other_programs(self) -> None:
        """Let the database write the tags of other programs' writes to the outbox, if it can. Called after each `migrate`."""

    def trigger_forms(self) -> frozenset[str]:
        """Return the names of the forms of tags that this version's triggers write to the outbox."""
        return frozenset()

    def unwatched(self) -> list[str]:
        """Return the tables whose writes by other programs are not watched, although this database could."""
        return []

    def snapshot(self) -> AbstractContextManager[None]:
        """Open a transaction whose SELECTs all see the same state."""
        raise NotImplementedError

    # Tags by savepoint

    @property
    def uncommitted(self) -> bool:
        """Whether this connection holds tagged writes that are not committed."""
        return any(scope.tags for scope in self.scopes)

    @property
    def managed(self) -> bool:
        """Whether Django has an open transaction. Does not connect."""
        return self.in_atomic_block or (self.connection is not None and not self.autocommit)

    @property
    def in_transaction(self) -> bool:
        """Whether there is a transaction, begun by Django or by raw SQL. Does not connect."""
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
        """Whether a row that is read FOR UPDATE stays locked. In autocommit a lock ends with its statement."""
        return self.managed and self.begun

    # The images of rows (see changes.py)

    @property
    def returns_rows(self) -> bool:
        """Whether a DELETE can return the rows that it deletes."""
        return bool(self.features.can_return_rows_from_bulk_insert)

    @property
    def has_images(self) -> bool:
        """Whether the database can return what the rows of an UPDATE held before it. No other transaction may write them between the two."""
        raise NotImplementedError

    def images(self, statement: Statement) -> tuple[int, list[Image] | None]:
        """Execute an UPDATE or a DELETE. Returns the number of its rows, and their images; None if they are unknown or more than `MANY_ROWS`."""
        raise NotImplementedError

    def upsert(self, statement: Upsert) -> tuple[list[Values], list[Image] | None]:
        """Execute an upsert. Returns the rows for Django, and the images of the rows that it created or updated; None if they are unknown."""
        raise NotImplementedError

    def tag(self, table: str, tags: Iterable[str], change: str | None = None, not_logged: Iterable[str] = ()) -> None:
        """Add tags that a COMMIT of the transaction will invalidate. `change` is a sentence for the log, which shows the tags after it."""
        scope = self.scopes[-1]
        known = scope.tags.setdefault(table, set())
        known.update(tags, not_logged)
        if len(known) > MANY_ROWS + MANY_SCOPED:  # a transaction of a million writes keeps few
            scope.tags[table] = _shortened(table, known) | known & {f"{table}:-"}  # has_tagged() must know of deletions
        if change and len(scope.changes) < MANY_ROWS:
            tags = set(tags)
            scope.changes.setdefault((change, tuple(sorted(_shortened(table, tags) if len(tags) > MANY_ROWS else tags))))

    def placed(self, name: str, places: Iterable[Sequence[Span]]) -> None:
        """Add the places of rows to which the transaction writes. COMMIT passes them with the tags. `name` is that of the table with its places."""
        known = self.scopes[-1].places.setdefault(name, [])
        known.extend(places)
        if len(known) > MANY_PLACES:
            known[:] = [[covering(column) for column in zip(*known, strict=True)]]

    def has_tagged(self, table: str, tag: str) -> bool:
        """Whether this transaction has this tag."""
        return any(tag in scope.tags.get(table, ()) for scope in self.scopes)

    def hold(self, table: Table, key: Any, values: dict[str, Any]) -> None:
        """Keep the values of a row that was read FOR UPDATE. After `MANY_ROWS` rows none are kept, which may only over-invalidate."""
        held = self.scopes[-1].held
        if table.pk_text and len(held) < MANY_ROWS:
            held[table.name, table.pk_text(key)] = values

    @property
    def holds_rows(self) -> bool:
        """Whether this transaction holds rows that were read FOR UPDATE."""
        return any(scope.held for scope in self.scopes)

    def held(self, table: Table, key: str) -> dict[str, Any] | None:
        """Return the values of a row that this transaction read FOR UPDATE; None if it did not."""
        return next((scope.held[table.name, key] for scope in reversed(self.scopes) if (table.name, key) in scope.held), None)

    def is_held(self, table: Table, key: str, column: str, value: Any) -> bool:
        """Whether a locked row certainly has this value already. Changes by this transaction were tagged when they were made."""
        held = self.held(table, key) or {}
        return column in held and bool(held[column] == value) and not _differ_in_json(held[column], value)

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        """Note an instant before a transaction begins."""
        if self.autocommit and not autocommit:
            self.scopes[0].since = journal.seen
        super().set_autocommit(autocommit, *args, **kwargs)

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
            for name, places in scope.places.items():
                self.placed(name, places)

    def _cut(self, sid: str) -> list[Scope]:
        at = next(i for i, scope in enumerate(self.scopes) if scope.sid == sid)
        self.scopes, cut = self.scopes[:at], self.scopes[at:]
        return cut

    # The cursor

    def make_cursor(self, cursor: Any) -> Any:
        """Return Django's cursor wrapper with the mixin."""
        wrapper = super().make_cursor(cursor)
        return mixed(self.cursor_mixin, type(wrapper))(wrapper.cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """Return Django's debug cursor wrapper with the mixin."""
        wrapper = super().make_debug_cursor(cursor)
        return mixed(self.cursor_mixin, type(wrapper))(wrapper.cursor, self)

    def repeating_cursor(self) -> Any:
        """Return a cursor for a SELECT that is executed again and again."""
        return self.cursor()

    @contextmanager
    def statement(self, sql: str) -> Iterator[frozenset[str]]:
        """Tag the writes of a raw SQL statement, in a transaction. Yields the tables whose tags it has.

        Raises NotSupportedError if the statement would end a transaction that holds writes.
        """
        judged = statements.judge(sql)
        if judged.ends:
            if self.managed or self.uncommitted or not judged.alone:
                raise NotSupportedError(
                    f"Running {judged.ends} as raw SQL would bypass the cache. Use transaction.atomic(), or the connection's commit() and rollback()."
                )
            yield judged.tables
        elif judged.releases and self.release_may_commit and self.uncommitted and not self.in_atomic_block:
            raise NotSupportedError("Running RELEASE as raw SQL may commit and bypass the cache. Use transaction.atomic().")
        elif not judged.tables:
            self._read_as_text(sql)
            yield judged.tables
        else:
            if (recording := recorder()) is not None:
                recording.refuse(f"It writes during a GET: {' '.join(sql.split())[:200]}")
            with nullcontext() if self.in_transaction else self.own_transaction():
                for name in judged.tables:
                    self.tag(name, tables()[name].all, f"[SQL] {name} written (rows unknown).")
                yield judged.tables

    @contextmanager
    def own_transaction(self) -> Iterator[None]:
        """Open a transaction on this connection. `atomic` uses the one in `connections`, and this one may be a `copy()` or have no alias."""
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
        """Refuse to store a response that depends on raw SQL."""
        if (recording := recorder()) is not None and not statements.CONTROL.match(sql):
            recording.refuse(f"It runs raw SQL, whose tables are unknown: {' '.join(sql.split())[:200]}")

    # The commit

    def _commit(self) -> None:
        if not self.uncommitted:
            self.scopes = [Scope()]
            super()._commit()
            return
        tags = self._collapsed()
        changes = [change for scope in self.scopes for change in scope.changes]
        try:
            lease = self._lease(tags)
        except DatabaseError:
            raise
        except BaseException:  # Ctrl-C: Django rolls back after database errors only, and SQLite would commit with the next statement
            self._rollback()
            raise
        try:
            super()._commit()
        except DatabaseError:
            self.in_doubt = lease
            raise
        self.scopes = [Scope()]
        try:
            if lease is not None:
                journal.close(lease, late=_not_closed)
        except Unreachable as away:
            _not_closed(away)
        for change, stale in changes:
            logger.info("%s Stale%s: %s.", change, "" if lease else f" in {conf.MAX_STALENESS:g} s", ", ".join(stale))

    def _lease(self, tags: set[str]) -> Lease | None:
        """Return a lease on these tags. If Redis is unreachable, write them to the outbox and return None.

        Raises NotLeased if that is impossible, too.
        """
        places = [line_of(name, place) for scope in self.scopes for name, places in scope.places.items() for place in places]
        try:
            return journal.lease(tags, self.scopes[0].since, places)
        except Unreachable as away:
            plain, _ = divided(tags, is_known=False)
            try:
                outbox.write(self, plain)
            except DatabaseError as error:
                why = " ".join(str(error).split())
                raise NotLeased(f"Rolled back: {away} The outbox cannot be written, either: {why}. Run `manage.py migrate`.") from away
            logger.warning("Committing without a lease: %s Cached responses are stale for at most %g s after Redis is back.", away, conf.MAX_STALENESS)
            return None

    def _collapsed(self) -> set[str]:
        """Return the tags of the transaction, shortened for each table that has many."""
        merged: dict[str, set[str]] = {}
        for scope in self.scopes:
            for name, tags in scope.tags.items():
                merged.setdefault(name, set()).update(tags)
        return set().union(*(_shortened(name, tags) if len(tags) > MANY_ROWS else tags for name, tags in merged.items()))

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
            logger.warning("Rolled back, but the lease could not be withdrawn: %s Readers query the database until it expires.", away)

    def _close(self) -> None:
        self.in_doubt = None
        self.scopes = [Scope()]
        super()._close()
