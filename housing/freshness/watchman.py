"""The watchman: one thread in each serving process, which verifies that no committed write is missing in the journal.

A hit is given only while the last verification is at most FRESHNESS_MAX_STALENESS old, so the read itself enforces the bound. If every watchman is dead
or cut off, responses come from the database. The journal tells all watchmen but one that they are not needed.

A verification takes an instant first, then reads the outbox, then closes the tags that it found, and deletes the rows last. Each step is as it is
because of a failure: the specs in `tests/test_verification.py` show one for each.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from contextlib import suppress
from time import monotonic
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from . import outbox
from .breaker import Unreachable
from .connection import ConnectionMixin, ours
from .identity import known_identity
from .journal import journal
from .settings import conf

logger = logging.getLogger(__name__)

PER_BOUND = 3
"""Verifications in FRESHNESS_MAX_STALENESS seconds, so that two may be late or fail before hits stop. See `begin_verification` in journal.lua."""

FIRST = 0.25
"""Seconds that the reader that starts the watchman waits at most for its first verification."""

REMINDER = 60.0
"""Seconds between two log lines of a failure that lasts."""


def verify(connection: ConnectionMixin, *, at_once: bool = False) -> bool:
    """Close the tags of the writes that are missing in the journal. Returns False if another process is doing so, unless `at_once`, or if the database or the
    journal changed.

    Raises Unidentified, Unreachable, or DatabaseError.
    """
    database = connection.database_identity()
    verification = journal.begin_verification(database, at_once=at_once)
    if verification is None or connection.reads_the_past:
        return False
    rows = outbox.read(connection)
    if connection.identity != database or not journal.end_verification(verification, outbox.tags_of(rows, connection.trigger_forms())):
        return False
    outbox.delete(connection, rows)
    return True


class Watchman:
    """The thread of this process. It starts with the first read of a cached view, after any fork, and ends with the process."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget the thread, which does not exist in a forked process."""
        self.watched: set[str] = set()
        """The aliases of the databases that it verifies."""
        self.thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stop = threading.Event()
        self._first = threading.Event()
        self._failing: dict[str, tuple[float, float]] = {}
        """alias → when its verification began to fail, and when that was logged."""

    def watch(self, alias: str) -> None:
        """Verify this database from now on. Waits a moment for the first verification, so that the next read can be a hit."""
        with self._starting:
            if alias in self.watched:
                return
            self.watched.add(alias)
            if not conf.WATCHMAN:
                return
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="freshness-watchman", daemon=True)
                self.thread.start()
        self._first.wait(FIRST)

    def stop(self) -> None:
        """End the thread, and wait a moment until it has closed its connections."""
        self._stop.set()
        if self.thread is not None:
            self.thread.join(timeout=1)

    def _run(self) -> None:
        try:
            while True:
                for alias in list(self.watched):
                    self._verify(alias)
                self._first.set()
                if self._stop.wait(conf.MAX_STALENESS / PER_BOUND):
                    return
        finally:
            connections.close_all()

    def _verify(self, alias: str) -> None:
        try:
            verify(ours(alias))
        except Exception as error:  # noqa: BLE001  # whatever it is, readers use the database, and the next verification may succeed
            self._report(alias, error)
            with suppress(Exception):
                connections[alias].close()
        else:
            if alias in self._failing:
                since, _ = self._failing.pop(alias)
                logger.info("The database '%s' is verified again after %.0f s.", alias, monotonic() - since)

    def _report(self, alias: str, error: Exception) -> None:
        now = monotonic()
        since, logged = self._failing.get(alias, (now, -REMINDER))
        if now - logged >= REMINDER:
            logged = now
            logger.warning("The database '%s' cannot be verified, so cached responses are not served: %s", alias, " ".join(str(error).split()))
        self._failing[alias] = since, logged

    def state(self, alias: str) -> str:
        """Whether it verifies this database: "running", "failing", "not running", or "off" if FRESHNESS_WATCHMAN is."""
        if not conf.WATCHMAN:
            return "off"
        if alias in self._failing:
            return "failing"
        return "running" if alias in self.watched and self.thread and self.thread.is_alive() else "not running"


watchman = Watchman()


def state_of_the_cache(alias: str = DEFAULT_DB_ALIAS) -> dict[str, Any]:
    """How the cache is, for a health check, without a query: the server, the breaker, the watchman, and `lag`, the seconds since the last verification.

    `hits` is whether hits are given and entries stored. `lag` is None if nothing was verified.
    """
    cache, lag = journal.state(), None
    with suppress(Unreachable):
        lag = journal.verified(known_identity(alias) or "")
    breaker = "open" if journal.breaker.opened else "closed"
    hits = (cache, breaker) == ("ok", "closed") and lag is not None and 0 <= lag <= conf.MAX_STALENESS
    return {"cache": cache, "breaker": breaker, "watchman": watchman.state(alias), "lag": lag, "hits": hits}


atexit.register(watchman.stop)
os.register_at_fork(after_in_child=watchman.forget)
