"""How a read comes by its answer: remembered and fresh, or read from the database and remembered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from housing.cache.journal import Hit, Unreachable, journal
from housing.db.commit import CommitMixin

logger = logging.getLogger("housing.cache")

ATTEMPTS = 3
"""How often an answer is read again because a write overtook it; then it is given as it is, and not remembered."""

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


def answer(key: str, etags: Collection[str], read: Read, connection: CommitMixin) -> Answer:
    """The answer under `key`, never older than the last write that was complete when this began.

    `etags` are those that the reader has. Raises what `read` raises, and then remembers nothing.
    """
    if connection.reads_the_past:  # its snapshot may be older than any instant of ours, and hold writes nobody else sees
        return _without_cache(read, etags, "transaction")
    for _ in range(ATTEMPTS):
        try:
            found = journal.lookup(key, etags)
        except Unreachable as away:
            logger.warning("Answered from the database: %s", away)
            return _without_cache(read, etags, "unreachable")
        if isinstance(found, Hit):
            return Answer(found.etag, found.body, "housing; hit")
        body, tags = read()
        etag = etag_of(body)
        try:
            verdict = journal.store(key, found, tags, etag, body)
        except Unreachable as away:
            logger.warning("Answered, but not remembered: %s", away)
            return _given(body, etags, "housing; fwd=bypass; detail=unreachable")
        if verdict == "stored":
            return _given(body, etags, f"housing; fwd={'stale' if found.stale else 'miss'}; stored")
        if verdict != "overtaken":
            break
    return _given(body, etags, f"housing; fwd=miss; detail={verdict}")


def _without_cache(read: Read, etags: Collection[str], why: str) -> Answer:
    body, _ = read()
    return _given(body, etags, f"housing; fwd=bypass; detail={why}")


def _given(body: bytes, etags: Collection[str], status: str) -> Answer:
    etag = etag_of(body)
    return Answer(etag, None if etag in etags or "*" in etags else body, status)
