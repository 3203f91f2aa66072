"""How a read comes by its answer: remembered and fresh, or read from the database and remembered.

Of many readers of one answer that is not there one asks the database (single flight); the others look up again until it is there.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import monotonic, perf_counter, sleep

from .connection import CommitMixin
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

Read = Callable[[], tuple[bytes, Collection[str]]]
"""Reads an answer from the database: its bytes, and the tags that they depend on."""


@dataclass(frozen=True)
class Answer:
    """`body` is None where the reader has it already. `status` is the value of Cache-Status (RFC 9211)."""

    etag: str
    body: bytes | None
    status: str


def etag_of(body: bytes) -> str:
    """A strong validator: the same bytes, the same text (RFC 9110, section 8.8.3)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def answer(key_in: Callable[[str], str], etags: Collection[str], read: Read, connection: CommitMixin) -> Answer:
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
        except Unidentified as why:
            logger.warning("Answered from the database: %s", why)
            return _without_cache(read, etags, "unverified")
        except Unreachable as away:
            logger.warning("Answered from the database: %s", away)
            return _without_cache(read, etags, "unreachable")
        if isinstance(found, Hit):
            return Answer(found.etag, found.body, "housing; fwd=miss; collapsed" if waited else "housing; hit")
        body, tags, seconds = _read_after(found, key, read, connection)
        if connection.identity != database:  # the connection was made for this read, and leads to another database
            _abandon(key, found)
            verdict = "raced"
            continue
        try:
            verdict = journal.store(key, found, tags, etag_of(body), body, seconds)
        except Unreachable as away:
            logger.warning("Answered, but not remembered: %s", away)
            return _given(body, etags, "housing; fwd=bypass; detail=unreachable")
        if verdict == "stored":
            return _given(body, etags, f"housing; fwd={'stale' if found.stale else 'miss'}; stored")
        if verdict != "raced":
            break
    return _given(body, etags, f"housing; fwd=miss; detail={verdict}")


def _look_up(key: str, etags: Collection[str], deadline: float) -> tuple[Hit | Miss, bool]:
    """What there is under `key`, and whether another reader was waited for; nobody waits beyond `deadline`."""
    draw = draws.expovariate(1.0) * conf.BETA
    looks = 0
    while isinstance(found := journal.lookup(key, etags, draw=draw, patient=monotonic() < deadline), Filling):
        sleep(PAUSES[min(looks, len(PAUSES) - 1)])
        looks += 1
    return found, looks > 0


def _read_after(miss: Miss, key: str, read: Read, connection: CommitMixin) -> tuple[bytes, Collection[str], float]:
    """What `read` gives, and how many seconds it took. Where it raises, nobody waits for it any longer."""
    started = perf_counter()
    try:
        connection.ensure_connection()  # whose identity belongs to what is read
        body, tags = read()
    except BaseException:
        _abandon(key, miss)
        raise
    return body, tags, perf_counter() - started


def _abandon(key: str, miss: Miss) -> None:
    try:
        journal.abandon(key, miss)
    except Unreachable as away:
        logger.warning("Not answered, and others may wait for it until their patience is at its end: %s", away)


def _without_cache(read: Read, etags: Collection[str], why: str) -> Answer:
    body, _ = read()
    return _given(body, etags, f"housing; fwd=bypass; detail={why}")


def _given(body: bytes, etags: Collection[str], status: str) -> Answer:
    etag = etag_of(body)
    return Answer(etag, None if etag in etags or "*" in etags else body, status)
