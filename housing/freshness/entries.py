"""How a read comes by its answer: remembered and fresh, or read from the database and remembered.

Of many readers of one answer that is not there one asks the database (single flight); the others look up again until it is there.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter, sleep
from typing import Any

from django.db import connections

from .connection import ConnectionMixin
from .dependencies import Recorder, recorded
from .identity import Unidentified
from .journal import Filling, Hit, Miss, Unreachable, journal
from .settings import conf

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often an answer is read again because a write overtook it; then it is given as it is, and not remembered."""

PAUSES = (0.002, 0.004, 0.008, 0.016, 0.032)
"""Seconds between one look and the next for what another reader is filling; the last is repeated."""

draws = random.Random()
"""Who reads an answer again before its time is up."""

Read = Callable[[], bytes]
"""Reads a response from the database. What it depends on is read off its queries."""

NOT_STORED = "unverified"
"""The verdict on a response whose dependencies are not known: it is served, and never stored."""


@dataclass(frozen=True)
class Answer:
    """`body` is None where the reader has it already. `status` is the value of Cache-Status (RFC 9211)."""

    etag: str
    body: bytes | None
    status: str


def etag_of(body: bytes) -> str:
    """A strong validator: the same bytes, the same text (RFC 9110, section 8.8.3)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def response(key_in: Callable[[str], str], etags: Collection[str], read: Read, connection: ConnectionMixin) -> Answer:
    """The answer under the key that `key_in` makes of the identity of a database, never older than the last write that was complete when this began.

    `etags` are those that the reader has. Raises what `read` raises, and then remembers nothing.
    """
    if connection.reads_the_past:  # its snapshot may be older than any instant of ours, and hold writes nobody else sees
        return _without_cache(read, etags, "transaction")
    deadline = monotonic() + conf.WAIT_TIMEOUT
    for _ in range(ATTEMPTS):
        try:
            database = connection.database_identity()
            key = key_in(database)
            found, waited = _look_up(key, etags, deadline)
        except (Unidentified, Unreachable) as why:
            logger.warning("Answered from the database: %s", why)
            return _without_cache(read, etags, "unreachable" if isinstance(why, Unreachable) else "unverified")
        if isinstance(found, Hit):
            return Answer(found.etag, found.body, f"{conf.NAME}; fwd=miss; collapsed" if waited else f"{conf.NAME}; hit")
        body, recording, seconds = _read_after(found, key, read, connection)
        if recording.complaint:
            _abandon(key, found)
            logger.error("Served, but not stored: %s", recording.complaint)
            return _given(body, etags, f"{conf.NAME}; fwd=bypass; detail={NOT_STORED}")
        if connection.identity != database:  # the connection was made for this read, and leads to another database
            _abandon(key, found)
            verdict = "raced"
            continue
        try:
            verdict = journal.store(key, found, recording.tags, etag_of(body), body, seconds)
        except Unreachable as away:
            logger.warning("Answered, but not remembered: %s", away)
            return _given(body, etags, f"{conf.NAME}; fwd=bypass; detail=unreachable")
        if verdict == "stored":
            return _given(body, etags, f"{conf.NAME}; fwd={'stale' if found.stale else 'miss'}; stored")
        if verdict != "raced":
            break
    return _given(body, etags, f"{conf.NAME}; fwd=miss; detail={verdict}")


def _look_up(key: str, etags: Collection[str], deadline: float) -> tuple[Hit | Miss, bool]:
    """What there is under `key`, and whether another reader was waited for; nobody waits beyond `deadline`."""
    draw = draws.expovariate(1.0) * conf.BETA
    looks = 0
    while isinstance(found := journal.lookup(key, etags, draw=draw, may_wait=monotonic() < deadline), Filling):
        sleep(PAUSES[min(looks, len(PAUSES) - 1)])
        looks += 1
    return found, looks > 0


def _read_after(miss: Miss, key: str, read: Read, connection: ConnectionMixin) -> tuple[bytes, Recorder, float]:
    """What `read` gives, what it depends on, and how many seconds it took. Where it raises, nobody waits for it any longer."""
    started = perf_counter()
    try:
        connection.ensure_connection()  # whose identity belongs to what is read
        with recorded() as recording, watched(recording, connection):
            body = read()
    except BaseException:
        _abandon(key, miss)
        raise
    return body, recording, perf_counter() - started


@contextmanager
def watched(recording: Recorder, connection: ConnectionMixin) -> Iterator[None]:
    """Refuse what is read from a database whose backend is not the engine's: its writes are not seen."""

    def refuse(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        recording.refuse(f"It reads the database '{context['connection'].alias}', whose backend is not the engine's.")
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for alias in connections.settings if len(connections.settings) > 1 else ():
            if not isinstance(connections[alias], ConnectionMixin):
                stack.enter_context(connections[alias].execute_wrapper(refuse))
        yield


def _abandon(key: str, miss: Miss) -> None:
    try:
        journal.abandon(key, miss)
    except Unreachable as away:
        logger.warning("Not answered, and others may wait for it until their patience is at its end: %s", away)


def _without_cache(read: Read, etags: Collection[str], why: str) -> Answer:
    return _given(read(), etags, f"{conf.NAME}; fwd=bypass; detail={why}")


def _given(body: bytes, etags: Collection[str], status: str) -> Answer:
    etag = etag_of(body)
    return Answer(etag, None if etag in etags or "*" in etags else body, status)
