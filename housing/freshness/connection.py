"""One mixin for Django's database backends: a lease on what a transaction wrote before its COMMIT, a close after it.

What moves through here: signals (and, for writes that no signal speaks of, the cursor) *name* tags into the frame of the
innermost savepoint. A rollback drops the frame. COMMIT takes what is left to the journal, before and after.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, DatabaseError, NotSupportedError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from . import statements
from .cursor import CursorMixin, mixed
from .journal import Lease, Unreachable, journal

logger = logging.getLogger(__name__)

MANY_ROWS = 100
"""Beyond so many tags of one model a transaction names the whole model: a lease is one short script, whatever was written."""


class NotLeased(OperationalError):
    """A transaction was not committed, because its readers could not be told first."""


@dataclass(eq=False)
class Frame:
    """What was named under one savepoint, or under the transaction itself (`sid` None)."""

    sid: str | None = None
    tags: set[str] = field(default_factory=set)
    changes: dict[tuple[str, tuple[str, ...]], None] = field(default_factory=dict)  # in order, and each once
    deleted: set[tuple[str, Any]] = field(default_factory=set)


def ours(alias: str = DEFAULT_DB_ALIAS) -> CommitMixin:
    """The connection of this thread to one of our databases."""
    return cast(CommitMixin, connections[alias])


class CommitMixin(BaseDatabaseWrapper if TYPE_CHECKING else object):  # type: ignore[misc]  # mypy wants one base, not a choice
    """For a subclass of Django's `DatabaseWrapper`: see the module."""

    cursor_mixin: ClassVar[type[CursorMixin]] = CursorMixin
    release_may_commit: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frames = [Frame()]
        self.covered: list[str] = []
        self.in_doubt: Lease | None = None

    def text_of(self, sql: Any) -> str | None:
        """The text of a statement that is neither str nor bytes; None where the driver takes none."""
        return None

    def snapshot(self) -> AbstractContextManager[None]:
        """A transaction whose SELECTs all see one state. Each backend has its own way."""
        raise NotImplementedError

    # What was written, by savepoint.

    @property
    def uncommitted(self) -> bool:
        """Whether this connection holds named writes that are not committed."""
        return any(frame.tags for frame in self.frames)

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

    def innermost_frame(self) -> Frame | None:
        """The frame of the innermost savepoint; None in autocommit, where a lock lasts no longer than its statement, and where nothing is locked."""
        return self.frames[-1] if self.managed and self.begun else None

    def holds(self, frame: Frame | None) -> bool:
        """Whether the locks that were taken under `frame` are held for certain."""
        return any(frame is open_frame for open_frame in self.frames)

    def name(self, tags: Iterable[str], change: str | None = None) -> None:
        """Name what the transaction makes stale, should it commit; `change` is a sentence about it for the log."""
        tags = tuple(sorted(tags))
        self.frames[-1].tags.update(tags)
        if change and tags:
            self.frames[-1].changes.setdefault((change, tags))

    def name_deleted(self, table: str, pk: Any) -> None:
        """Note that the tags of this row's deletion are named, so that the DELETE need not name the whole model."""
        self.frames[-1].deleted.add((table, pk))

    @contextmanager
    def named_already(self, table: str) -> Iterator[None]:
        """Within, statements on `table` are a save's own, and its tags are named."""
        self.covered.append(table)
        try:
            yield
        finally:
            self.covered.pop()

    def _savepoint(self, sid: str) -> None:
        super()._savepoint(sid)
        self.frames.append(Frame(sid))

    def _savepoint_rollback(self, sid: str) -> None:
        super()._savepoint_rollback(sid)
        self._cut(sid)
        self.frames.append(Frame(sid))

    def _savepoint_commit(self, sid: str) -> None:
        super()._savepoint_commit(sid)
        for frame in self._cut(sid):
            self.frames[-1].tags |= frame.tags
            self.frames[-1].changes |= frame.changes

    def _cut(self, sid: str) -> list[Frame]:
        at = next(i for i, frame in enumerate(self.frames) if frame.sid == sid)
        self.frames, cut = self.frames[:at], self.frames[at:]
        return cut

    # What the cursor sees.

    def make_cursor(self, cursor: Any) -> Any:
        """As Django's."""
        wrapper = super().make_cursor(cursor)
        return mixed(self.cursor_mixin, type(wrapper))(wrapper.cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """As Django's."""
        wrapper = super().make_debug_cursor(cursor)
        return mixed(self.cursor_mixin, type(wrapper))(wrapper.cursor, self)

    @contextmanager
    def statement(self, sql: str, params: Any = None) -> Iterator[None]:
        """Around one statement: what it writes is named, and there is a COMMIT for it to wait for.

        Raises NotSupportedError where the text itself would end a transaction that holds writes of ours.
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
            yield
        elif self.in_transaction:
            self._name_whole(judged.tables, sql, params)
            yield
        else:
            with self._transaction():
                self._name_whole(judged.tables, sql, params)
                yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
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

    def _name_whole(self, tables: Iterable[str], sql: str, params: Any) -> None:
        for table in tables:
            if table not in self.covered and not self._is_announced_delete(table, sql, params):
                self.name({_tags_by_table()[table]}, f"[SQL] {table} written, no row named.")

    def _is_announced_delete(self, table: str, sql: str, params: Any) -> bool:
        if not statements.DELETES_ROWS.fullmatch(sql):
            return False
        return all((table, pk) in self.frames[-1].deleted for pk in params)

    # The commit.

    def _commit(self) -> None:
        if not self.uncommitted:
            self.frames = [Frame()]
            super()._commit()
            return
        tags = collapse(set().union(*(frame.tags for frame in self.frames)))
        changes = [change for frame in self.frames for change in frame.changes]
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
        self.frames = [Frame()]
        try:
            journal.close(lease)
        except Unreachable as away:
            logger.warning("Committed, but its lease could not be closed: %s Readers ask the database until it runs out.", away)
        for change, stale in changes:
            logger.info("%s Stale: %s.", change, ", ".join(stale))

    def _rollback(self) -> None:
        lease, self.in_doubt = self.in_doubt, None
        self.frames = [Frame()]
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
        self.frames = [Frame()]
        super()._close()


def _tags_by_table() -> dict[str, str]:
    return {model._meta.db_table: f"{model.tag}:*" for model in apps.get_models() if hasattr(model, "tag")}


def collapse(tags: Iterable[str]) -> set[str]:
    """The same tags, with `model:*` in place of more than `MANY_ROWS` rows of one model."""
    tags = set(tags)
    if len(tags) <= MANY_ROWS:
        return tags
    rows = Counter(tag.split(":")[0] for tag in tags)
    whole = {model for model, count in rows.items() if count > MANY_ROWS}
    return {f"{tag.split(':')[0]}:*" if tag.split(":")[0] in whole else tag for tag in tags}
