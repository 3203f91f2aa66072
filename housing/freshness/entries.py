"""Respond to a read, with a fresh entry of the cache or from the database.

If many readers miss the same entry, one of them queries the database (single flight). The others look again until it has stored the response. They wait as
long as it gives signs of life (see fills.py), but not longer than FRESHNESS_LONGEST_WAIT.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from math import ceil
from time import monotonic, perf_counter, sleep
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from .breaker import Unreachable
from .connection import ConnectionMixin
from .copies import copies
from .dependencies import Recorder, recorded
from .fills import fills
from .identity import Unidentified
from .journal import Filling, Hit, Miss, Unverified, journal
from .settings import conf
from .slots import Busy, cold_reads
from .watchman import watchman

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a response is read before a reader gives up because writes raced it every time. The last one is served, and not stored."""

PAUSES = (0.002, 0.004, 0.008, 0.016, 0.032)
"""Seconds that a waiting reader pauses between two looks; the last pause is repeated."""

unreachable: set[str] = set()
"""The aliases of the databases that the last read of this process could not reach."""

draws = random.Random()
"""Draws that decide which reader refills an entry before it expires."""

Read = Callable[[], bytes]
"""Reads a response from the database. Its queries tell what it depends on."""

Found = Hit | Miss | Filling | Unverified

Look = tuple[str, str, Found]
"""The key of an entry, the identity of its database, and what the journal has under the key."""

NOT_VERIFIED = "unverified"
"""The detail in Cache-Status if an entry cannot be used because no verification is recent enough, or if the dependencies of a response are not known."""


@dataclass(frozen=True)
class CachedResponse:
    """The response to a reader. `body` is None if the reader has these bytes already. `status` is the value of Cache-Status (RFC 9211)."""

    etag: str
    body: bytes | None
    status: str
    age: int | None = None
    """The seconds since it was certainly current, if it is served because the database cannot be reached."""
    is_plain_hit: bool = False
    """Whether the first look found it."""


def etag_of(body: bytes) -> str:
    """A strong validator: equal bytes have equal ETags (RFC 9110, section 8.8.3)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def respond(
    key_in: Callable[[str], str],
    etags: Collection[str],
    read: Read,
    connection: ConnectionMixin,
    address: Callable[[], str] = str,
    is_linked: Callable[[], bool] = lambda: True,
    first: Callable[[], Look | None] | None = None,
) -> CachedResponse:
    """The response under the key that `key_in` returns for the database's identity. It is never older than the last write that ended before this call.

    `etags` are those that the reader has. `address` returns where an operator can ask for the response again, and `is_linked` whether a link leads
    to it. `first` returns the first look if it was made already. Raises whatever `read` raises, and then stores nothing. Raises Busy if too many reads wait for
    the database.

    If the database cannot be reached, an entry may be served that was verified less than FRESHNESS_STALE_IF_ERROR seconds ago (RFC 5861).
    """
    began = monotonic()
    attempts = 0
    while True:
        attempts += 1
        try:
            deadline = began + (conf.LONGEST_WAIT if attempts == 1 else conf.WAIT_TIMEOUT)
            seen = (first and first()) or look(key_in, etags, connection, deadline)
            if waited := seen is not None and isinstance(seen[2], Filling):
                seen = _wait(seen, partial(look, key_in, etags, connection), began, deadline)
        except (Unidentified, Unreachable) as why:
            return _without_cache(read, etags, _why_not_cached(why))
        if seen is None:
            return _without_cache(read, etags, "transaction")
        key, database, found = seen
        if isinstance(found, Hit):
            status = f"{conf.NAME}; fwd=miss; collapsed" if waited else f"{conf.NAME}; hit"
            return CachedResponse(found.etag, found.body, status, is_plain_hit=not waited)
        try:
            if isinstance(found, Unverified):
                response: CachedResponse | None = _without_cache(read, etags, NOT_VERIFIED)
            else:
                assert isinstance(found, Miss)
                response = _fill(found, key, database, etags, read, connection, address, is_linked, may_repeat=attempts < ATTEMPTS)
        except (Busy, InterfaceError, OperationalError) as error:
            if old := _stale_if_error(key, etags, connection, error):
                return old
            raise
        unreachable.discard(connection.alias)
        if response:
            return response


def _why_not_cached(why: Unidentified | Unreachable) -> str:
    """The detail in Cache-Status, which is logged with its reason. An error that the breaker repeats was logged when it opened."""
    if isinstance(why, Unidentified) or not why.is_repeated:
        logger.warning("Served from the database: %s", why)
    return "unreachable" if isinstance(why, Unreachable) else NOT_VERIFIED


def _fill(
    miss: Miss,
    key: str,
    database: str,
    etags: Collection[str],
    read: Read,
    connection: ConnectionMixin,
    address: Callable[[], str],
    is_linked: Callable[[], bool],
    *,
    may_repeat: bool,
) -> CachedResponse | None:
    """Read a response, and store it if it is fresh. None if a write raced it and it may be read again."""
    body, recording, seconds = _read_after(miss, key, read, connection)
    if recording.complaint:
        abandon(key, miss)
        logger.error("Served, but not stored: %s", recording.complaint)
        return _response(body, etags, f"{conf.NAME}; fwd=bypass; detail={NOT_VERIFIED}")
    try:
        if connection.identity != database:  # the connection was opened for this read, and leads to another database
            abandon(key, miss)
            verdict = "raced"
        else:
            verdict = journal.store(key, miss, recording.tags, etag_of(body), body, seconds, database, address(), is_linked(), recording.within)
    except Unreachable as unreachable:
        logger.warning("Served, but not stored: %s", unreachable)
        return _response(body, etags, f"{conf.NAME}; fwd=bypass; detail=unreachable")
    if verdict == "stored":
        return _response(body, etags, f"{conf.NAME}; fwd={'stale' if miss.stale else 'miss'}; stored")
    if verdict == "raced" and may_repeat:
        return None
    return _response(body, etags, f"{conf.NAME}; fwd=miss; detail={verdict}")


def look(key_in: Callable[[str], str], etags: Collection[str], connection: ConnectionMixin, deadline: float | None = None) -> Look | None:
    """Look an entry up. This decides for every request whether it may be answered from the cache, also before Django (`fast_path.py`).

    It does not wait for another reader after `deadline`, which is that of a new request by default. None if this connection reads the past: its snapshot may
    be older than every instant of the journal, or contain uncommitted writes.
    """
    if connection.reads_the_past:
        return None
    if connection.alias not in watchman.watched:
        watchman.watch(connection.alias)
    if deadline is None:
        deadline = monotonic() + conf.LONGEST_WAIT
    database = connection.database_identity(cold_reads.slot)
    key = key_in(database)
    copy = copies.get(key)
    known = etags if copy is None else (copy.etag, *etags)
    found = journal.lookup(key, known, draw=draws.expovariate(1.0) * conf.BETA, may_wait=monotonic() < deadline)
    if type(found) is Hit:
        if found.body is not None:
            copies.keep(key, found)
        elif copy is not None and copy.etag == found.etag and copy.etag not in etags and "*" not in etags:
            found = copy
    return key, database, found


def _wait(seen: Look | None, again: Callable[[float], Look | None], began: float, deadline: float) -> Look | None:
    """The first look that finds no Filling. The wait ends FRESHNESS_WAIT_TIMEOUT after the last sign of life, and at the deadline. Raises Busy.

    A longer wait than FRESHNESS_WAIT_TIMEOUT keeps a thread just like a read of the database does. So it takes one of the FRESHNESS_COLD_READS places.
    """
    sign, until, is_long = b"", deadline, False
    pauses = chain(PAUSES, repeat(PAUSES[-1]))
    with ExitStack() as place:
        while seen is not None and isinstance(found := seen[2], Filling):
            if not is_long and (found.is_slow or monotonic() - began >= conf.WAIT_TIMEOUT):
                place.enter_context(cold_reads.slot())
                sign, is_long = b"", True
            if found.sign != sign:
                sign, until = found.sign, min(monotonic() + conf.WAIT_TIMEOUT, deadline)
            sleep(next(pauses))
            seen = again(until)
        return seen


def _read_after(miss: Miss, key: str, read: Read, connection: ConnectionMixin) -> tuple[bytes, Recorder, float]:
    """The result of `read`, its dependencies, and the seconds that it took. If `read` raises, no other reader waits for this fill any longer."""
    started, fill = perf_counter(), fills.begin(key, miss)
    try:
        place = cold_reads.enter()  # `slot` costs six Python calls more
        try:
            connection.ensure_connection()  # so that its identity belongs to what is read
            with recorded() as recording, watched(recording, connection):
                body = read()
        finally:
            cold_reads.leave(place)
    except BaseException as error:
        abandon(key, miss, another=isinstance(error, Busy | InterfaceError | OperationalError) or not isinstance(error, Exception))
        raise
    finally:
        fills.end(fill)
    return body, recording, perf_counter() - started


@contextmanager
def watched(recording: Recorder, connection: ConnectionMixin) -> Iterator[None]:
    """Refuse a recording that reads another database than the view's. The key has only the view's database, and only that one is verified for this entry."""

    def refuse(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        recording.refuse(f"It reads the database '{context['connection'].alias}', but the view is cached for '{connection.alias}'.")
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for alias in connections.settings if len(connections.settings) > 1 else ():
            if alias != connection.alias:
                stack.enter_context(connections[alias].execute_wrapper(refuse))
        yield


def abandon(key: str, miss: Miss, *, another: bool = False) -> None:
    """Report that the fill failed. An error of the database or the end of its thread says little of another reader's fill; a 404 or a bug ends all alike."""
    try:
        journal.abandon(key, miss, another=another)
    except Unreachable as unreachable:
        logger.warning("The fill failed and could not be reported, so other readers may wait up to FRESHNESS_WAIT_TIMEOUT: %s", unreachable)


def _without_cache(read: Read, etags: Collection[str], why: str) -> CachedResponse:
    with cold_reads.slot():
        body = read()
    return _response(body, etags, f"{conf.NAME}; fwd=bypass; detail={why}")


def _is_unreachable(connection: ConnectionMixin, error: Exception) -> bool:
    """Whether nobody replies at the database's address. A read that was not even tried, because others are waiting, knows it from the one before."""
    if not isinstance(error, Busy):
        with cold_reads.slot():
            if connection.is_unreachable(error):
                unreachable.add(connection.alias)
            else:
                unreachable.discard(connection.alias)
    return connection.alias in unreachable


def _stale_if_error(key: str, etags: Collection[str], connection: ConnectionMixin, error: Exception) -> CachedResponse | None:
    """The entry, if the database cannot be reached and no write is known since the entry was read. None if it may not be served.

    A write that the journal knows was confirmed to its writer, who must not read an older value later. So only an unverified entry is served.
    """
    if not conf.STALE_IF_ERROR or not _is_unreachable(connection, error):
        return None
    try:
        old = journal.not_known_to_be_stale(key, conf.STALE_IF_ERROR)
    except Unreachable:
        return None
    if old is None:
        return None
    (etag, body), age = old
    logger.warning("Served from the cache, verified %.1f s ago, because the database cannot be reached: %s", age, " ".join(str(error).split()))
    return CachedResponse(etag, None if etag in etags or "*" in etags else body, f"{conf.NAME}; hit; detail=stale-if-error", ceil(age))


def _response(body: bytes, etags: Collection[str], status: str) -> CachedResponse:
    etag = etag_of(body)
    return CachedResponse(etag, None if etag in etags or "*" in etags else body, status)
