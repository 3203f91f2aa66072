"""Respond to a read, with a fresh entry of the cache or from the database.

If many readers miss the same entry, one of them queries the database (single flight). The others look again until it has stored the response.
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
from .journal import Filling, Hit, Miss, Unreachable, Unverified, journal
from .settings import conf
from .watchman import watchman

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a response is read before a reader gives up because writes raced it every time. The last one is served, and not stored."""

PAUSES = (0.002, 0.004, 0.008, 0.016, 0.032)
"""Seconds that a waiting reader pauses between two looks; the last pause is repeated."""

draws = random.Random()
"""Draws that decide which reader refills an entry before it expires."""

Read = Callable[[], bytes]
"""Reads a response from the database. Its queries tell what it depends on."""

NOT_VERIFIED = "unverified"
"""The detail in Cache-Status if an entry cannot be used because no verification is recent enough, or if the dependencies of a response are not known."""


@dataclass(frozen=True)
class CachedResponse:
    """The response to a reader. `body` is None if the reader has these bytes already. `status` is the value of Cache-Status (RFC 9211)."""

    etag: str
    body: bytes | None
    status: str


def etag_of(body: bytes) -> str:
    """A strong validator: equal bytes have equal ETags (RFC 9110, section 8.8.3)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def respond(key_in: Callable[[str], str], etags: Collection[str], read: Read, connection: ConnectionMixin, address: Callable[[], str] = str) -> CachedResponse:
    """The response under the key that `key_in` returns for the database's identity. It is never older than the last write that ended before this call.

    `etags` are those that the reader has. `address` returns where an operator can ask for the response again.
    Raises whatever `read` raises, and then stores nothing.
    """
    if connection.reads_the_past:  # its snapshot may be older than every instant of the journal, or contain uncommitted writes
        return _without_cache(read, etags, "transaction")
    if connection.alias not in watchman.watched:
        watchman.watch(connection.alias)
    deadline = monotonic() + conf.WAIT_TIMEOUT
    for attempt in range(ATTEMPTS):
        try:
            database = connection.database_identity()
            key = key_in(database)
            found, waited = _look_up(key, etags, deadline)
        except (Unidentified, Unreachable) as why:
            logger.warning("Served from the database: %s", why)
            return _without_cache(read, etags, "unreachable" if isinstance(why, Unreachable) else "unverified")
        if isinstance(found, Hit):
            return CachedResponse(found.etag, found.body, f"{conf.NAME}; fwd=miss; collapsed" if waited else f"{conf.NAME}; hit")
        if isinstance(found, Unverified):
            break
        if filled := _fill(found, key, database, etags, read, connection, address, may_repeat=attempt < ATTEMPTS - 1):
            return filled
    return _without_cache(read, etags, NOT_VERIFIED)


def _fill(
    miss: Miss, key: str, database: str, etags: Collection[str], read: Read, connection: ConnectionMixin, address: Callable[[], str], *, may_repeat: bool
) -> CachedResponse | None:
    """Read a response, and store it if it is fresh. None if a write raced it and it may be read again."""
    body, recording, seconds = _read_after(miss, key, read, connection)
    if recording.complaint:
        _abandon(key, miss)
        logger.error("Served, but not stored: %s", recording.complaint)
        return _response(body, etags, f"{conf.NAME}; fwd=bypass; detail={NOT_VERIFIED}")
    try:
        if connection.identity != database:  # the connection was opened for this read, and leads to another database
            _abandon(key, miss)
            verdict = "raced"
        else:
            verdict = journal.store(key, miss, recording.tags, etag_of(body), body, seconds, database, address())
    except Unreachable as unreachable:
        logger.warning("Served, but not stored: %s", unreachable)
        return _response(body, etags, f"{conf.NAME}; fwd=bypass; detail=unreachable")
    if verdict == "stored":
        return _response(body, etags, f"{conf.NAME}; fwd={'stale' if miss.stale else 'miss'}; stored")
    if verdict == "raced" and may_repeat:
        return None
    return _response(body, etags, f"{conf.NAME}; fwd=miss; detail={verdict}")


def _look_up(key: str, etags: Collection[str], deadline: float) -> tuple[Hit | Miss | Unverified, bool]:
    """The entry under `key`, a miss, or why the entry cannot be used, and whether this waited for another reader. It never waits after `deadline`."""
    draw = draws.expovariate(1.0) * conf.BETA
    looks = 0
    while isinstance(found := journal.lookup(key, etags, draw=draw, may_wait=monotonic() < deadline), Filling):
        sleep(PAUSES[min(looks, len(PAUSES) - 1)])
        looks += 1
    return found, looks > 0


def _read_after(miss: Miss, key: str, read: Read, connection: ConnectionMixin) -> tuple[bytes, Recorder, float]:
    """The result of `read`, its dependencies, and the seconds that it took. If `read` raises, no other reader waits for this fill any longer."""
    started = perf_counter()
    try:
        connection.ensure_connection()  # so that its identity belongs to what is read
        with recorded() as recording, watched(recording, connection):
            body = read()
    except BaseException:
        _abandon(key, miss)
        raise
    return body, recording, perf_counter() - started


@contextmanager
def watched(recording: Recorder, connection: ConnectionMixin) -> Iterator[None]:
    """Refuse a recording that reads a database whose backend is not the engine's, because writes there are not seen."""

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
    except Unreachable as unreachable:
        logger.warning("The fill failed and could not be reported, so other readers may wait up to FRESHNESS_WAIT_TIMEOUT: %s", unreachable)


def _without_cache(read: Read, etags: Collection[str], why: str) -> CachedResponse:
    return _response(read(), etags, f"{conf.NAME}; fwd=bypass; detail={why}")


def _response(body: bytes, etags: Collection[str], status: str) -> CachedResponse:
    etag = etag_of(body)
    return CachedResponse(etag, None if etag in etags or "*" in etags else body, status)
