"""The freshness journal records when each tag was last written, by Redis's own clock.

A reader that misses gets an instant, `read_at`, before it queries the database. A writer leases its tags before COMMIT and
closes the lease after it. An entry is fresh if and only if no close and no lease of any of its tags is at or after its
`read_at`. This way nothing is ever deleted to invalidate it, and a write costs the same however much is cached.

Leases against the race of a fill with a write come from Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section
3.2.1. Here the writer takes them. The script is `journal.lua`: every verb is one round trip, and may run twice.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import finalize

from django.core.cache import caches
from django_redis import get_redis_connection
from redis import ConnectionPool, Redis
from redis import exceptions as refusals
from redis.sentinel import SentinelConnectionPool

from .fingerprint import version
from .servers import SCRIPTED, Objection, objection, parsed, permission_objection, server_name
from .settings import conf

SCRIPT = Path(__file__).with_name("journal.lua").read_text(encoding="utf-8")


REFUSED_FOR = 1.0
"""Seconds until a refused server is checked again. A check takes a new connection, so not every read should make one."""


class Unreachable(Exception):
    """Redis sent no reply, or an error. The message says which server it was, and the error."""


class Refused(Unreachable):
    """Redis is reachable but cannot keep the promise, so it is not used. `reason` says which server and why, `remedy` what to do."""

    def __init__(self, where: str, why: Objection) -> None:
        self.reason, self.remedy = f"{why.server} at {where} cannot keep the promise: {why.reason}", why.remedy
        super().__init__(f"{self.reason} {self.remedy}")


@dataclass(frozen=True)
class Lease:
    """Tags that cannot be trusted while their transaction commits."""

    id: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A fresh entry. `body` is None if the reader has these bytes already."""

    etag: str
    body: bytes | None


@dataclass(frozen=True)
class Miss:
    """No fresh entry. `stale` says whether there is a stale one. The new response is stored with `read_at` and `epoch`."""

    stale: bool
    epoch: bytes
    read_at: bytes


class Filling:
    """No entry yet, because another reader is filling it. Look again later."""


class Unverified:
    """An entry that is fresh as far as the journal knows. A write that did not come through it may be missing, so it is not used."""


@dataclass(frozen=True)
class Verification:
    """A check that no write is missing in the journal. `instant` is Redis's clock before it looked, in microseconds."""

    database: str
    epoch: bytes
    instant: bytes


class Journal:
    """The verbs of `journal.lua`. Each is one round trip, and raises Unreachable if Redis is unreachable."""

    def __init__(self) -> None:
        self._sha: str | None = None
        self._server = "Redis"
        self._refused: tuple[float, str, Objection] | None = None
        self._line = ThreadConnection()

    def lookup(self, entry: str, etags: Iterable[str] = (), *, draw: float = 0, may_wait: bool = False) -> Hit | Miss | Filling | Unverified:
        """The entry under this key if it is fresh. Its body is left out if its ETag is one of the reader's `etags`.

        The entry expires early by `draw`, from the exponential distribution, times the seconds that it cost. With `may_wait` the result is
        Filling while another reader fills the entry. It is Unverified if its database was not verified for FRESHNESS_MAX_STALENESS seconds.
        """
        verdict, *rest = self._run("lookup", int(may_wait), f"{draw:.3f}", version(), *etags, entry=entry)
        if verdict == b"hit":
            return Hit(rest[0].decode(), rest[1] if len(rest) > 1 else None)
        if verdict == b"filling":
            return Filling()
        if verdict == b"unverified":
            return Unverified()
        return Miss(verdict == b"stale", *rest)

    def store(self, entry: str, miss: Miss, tags: Collection[str], etag: str, body: bytes, cost: float = 0, database: str = "") -> str:
        """Store what was read from this database after `miss` in `cost` seconds. Returns "stored", or the reason why not: "raced", "leased" or "recovering"."""
        args = (miss.epoch, miss.read_at, "\n".join(sorted((*tags, f"|others:{version()}"))), etag, body, round(cost * 1_000_000), database)
        return bytes(self._run("store", *args, entry=entry)).decode()

    def abandon(self, entry: str, miss: Miss) -> None:
        """Report that nothing will be stored after `miss`, so that nobody waits for it."""
        self._run("abandon", miss.read_at, entry=entry)

    def lease(self, tags: Collection[str]) -> Lease:
        """Let no read of these tags be trusted until the lease is closed, or runs out after `FRESHNESS_LEASE` seconds."""
        lease = Lease(os.urandom(8).hex(), tuple(sorted(tags)))
        if of_others := self._run("lease", lease.id, "\n".join(lease.tags), version()):
            return Lease(lease.id, (*lease.tags, *(tag.decode() for tag in of_others)))
        return lease

    def close(self, lease: Lease) -> None:
        """Report that the leased write is committed: reads of its tags that began before now are stale, later ones are fresh."""
        self._run("close", lease.id, "\n".join(lease.tags), version())

    def withdraw(self, lease: Lease) -> None:
        """Report that the leased write did not happen, so nothing becomes stale."""
        self._run("withdraw", lease.id, "\n".join(lease.tags))

    def begin_verification(self, database: str) -> Verification | None:
        """Begin to look for writes to this database that are missing in the journal. None if another process began a moment ago."""
        begun = self._run("begin_verification", database)
        return Verification(database, *begun) if begun else None

    def end_verification(self, verification: Verification, tags: Collection[str]) -> bool:
        """Close the tags of the missing writes ("*" for everything), and allow hits for FRESHNESS_MAX_STALENESS seconds from its instant on.

        Returns False, and does nothing, if this is not the journal in which the verification began.
        """
        return bool(self._run("end_verification", verification.database, verification.epoch, verification.instant, "\n".join(sorted(tags))) == b"1")

    def verified(self, database: str) -> float | None:
        """The seconds since the instant up to which this database is verified, or None if it never was."""
        age = self._run("verified", database)
        return None if age is None else int(age) / 1_000_000

    def begin(self) -> None:
        """Begin a new journal without the lease on everything, with which a missing one is created.

        Call it only while nobody writes. No entry of the old journal is trusted afterwards.
        """
        self._run("begin")

    def leases(self) -> dict[Lease, float]:
        """The open leases, each with the seconds until it runs out. The first to run out comes first."""
        listed = iter([bytes(part).decode() for part in self._run("leases")])
        leases = {}
        for held in listed:
            lease, _, tags = held.partition("|")
            leases[Lease(lease, tuple(tags.splitlines()))] = int(next(listed)) / 1_000_000
        return leases

    def inspect_server(self) -> dict[str, str]:
        """Check whether the server can keep the promise, and load the script. Returns its INFO, or {} if FRESHNESS_RUN_ID replaces it.

        Raises Refused if it cannot. The first call of any verb does the same, and so does the next call after an error.
        A refusal lasts for REFUSED_FOR seconds, but this method asks at once.
        """
        client: Redis = get_redis_connection(conf.CACHE)
        try:
            return self._load(client)[1]
        except refusals.RedisError as error:
            raise self._failed(client, error) from error

    def forget_server(self) -> None:
        """Ask the server what it is at the next call."""
        self._sha = self._refused = None

    def _run(self, verb: str, *args: Any, entry: str = "") -> Any:
        client: Redis = get_redis_connection(conf.CACHE)
        nonce = str(int.from_bytes(os.urandom(6)) + 1)
        try:
            try:
                return self._evaluate(client, verb, entry, nonce, args)
            except (refusals.NoScriptError, refusals.ConnectionError):  # the server restarted, or the address leads to another: try once more
                self._sha = None
                return self._evaluate(client, verb, entry, nonce, args)
        except refusals.RedisError as error:  # unreachable, full, read-only, or another type of value under the journal's key
            raise self._failed(client, error) from error

    def _evaluate(self, client: Redis, verb: str, entry: str, nonce: str, args: Iterable[Any]) -> Any:
        sha = self._sha or self._learn(client)
        keys = (2, caches[conf.CACHE].make_key("journal"), entry) if entry else (1, caches[conf.CACHE].make_key("journal"))
        return self._line.ask(client, "EVALSHA", sha, *keys, verb, nonce, *args)

    def _learn(self, client: Redis) -> str:
        """The SHA of the loaded script. Raises Refused, without a round trip, if the server was refused a moment ago."""
        if self._refused and monotonic() < self._refused[0]:
            raise Refused(*self._refused[1:])
        return self._load(client)[0]

    def _load(self, client: Redis) -> tuple[str, dict[str, str]]:
        """Load the script with the server's run ID as a literal in it, so that its SHA changes when the server restarts. Returns the SHA and INFO.

        Both commands go over one connection, which ends with its server, so the run ID is that of the server that loads the script.
        """
        connection = self._line.borrow(client.connection_pool)
        try:
            info = {} if conf.RUN_ID is not None else self._suitable(client, connection)
            text = script(conf.RUN_ID or info["run_id"])
            connection.send_command("SCRIPT", "LOAD", text)
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            if info:  # in the same round trip
                connection.send_command("EVALSHA", sha, 1, caches[conf.CACHE].make_key("journal"), "forbidden", "", *SCRIPTED)
            connection.read_response()
            if info and (forbidden := connection.read_response()):
                raise refusals.NoPermissionError(f"it may not run {b', '.join(forbidden).decode()}")
        except BaseException:  # the next command would read the reply to this one, and the address may lead to another server by then
            self._sha = None
            connection.disconnect()
            raise
        self._sha, self._refused = sha, None
        return sha, info

    def _suitable(self, client: Redis, connection: Any) -> dict[str, str]:
        """The INFO of the server. Raises Refused if it cannot keep the promise."""
        connection.send_command("INFO")
        try:
            info = parsed(connection.read_response().decode())
        except refusals.ResponseError as error:
            if "unknown command" not in str(error):
                raise
            info = {}
        self._server = server_name(info)
        if why := objection(info):
            raise self._refuse(client, why)
        return info

    def _refuse(self, client: Redis, why: Objection) -> Refused:
        """The error to raise now and for the next REFUSED_FOR seconds."""
        self._refused = monotonic() + REFUSED_FOR, _address(client), why
        return Refused(*self._refused[1:])

    def _failed(self, client: Redis, error: refusals.RedisError) -> Unreachable:
        """The error to raise for an error of redis-py. The address may lead to another server now, so the next call asks, unless the server is only full."""
        if not isinstance(error, refusals.OutOfMemoryError):
            self._sha = None
            self._line.disconnect()
        if isinstance(error, refusals.NoPermissionError) or "ACL failure" in str(error):
            return self._refuse(client, permission_objection(self._server, str(error), caches[conf.CACHE].make_key("*")))
        return Unreachable(f"Redis at {_address(client)} is unreachable ({error}).")


def _address(client: Redis) -> str:
    """Where the server is, for a message. With Sentinel it is the last primary that a sentinel named."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return "{}:{}".format(*pool.master_address) if pool.master_address else f"the address that the sentinels have for '{pool.service_name}'"
    where = pool.connection_kwargs
    return where.get("path") or f"{where.get('host')}:{where.get('port')}"


class ThreadConnection(threading.local):
    """The thread's own connection, borrowed from the client's pool only once, because the pool checks at every loan whether a connection is alive.

    A command costs half of what it costs through redis-py's client, which also measures and retries.
    """

    pool: ConnectionPool | None = None
    process = 0
    connection: Any = None
    give_back: Callable[[], Any] = bool

    def ask(self, client: Redis, *command: Any) -> Any:
        """The reply to one command. If there is no reply, the connection ends, and the next command opens a new one."""
        if self.pool is not client.connection_pool or self.process != os.getpid():  # another server, or a forked process, which must not share a socket
            self.borrow(client.connection_pool)
        try:
            self.connection.send_command(*command)
            return self.connection.read_response()
        except refusals.ResponseError:
            raise
        except BaseException:  # the next command would read the reply to this one
            self.connection.disconnect()
            raise

    def disconnect(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection.disconnect()

    def borrow(self, pool: ConnectionPool) -> Any:
        """Borrow a connection from the pool, which checks that it is alive, and return the thread's previous one."""
        self.give_back()
        self.pool = self.connection = None  # another thread may have it by now, even if this one gets no other
        self.connection = pool.get_connection()
        self.pool, self.process = pool, os.getpid()
        self.give_back = finalize(threading.current_thread(), pool.release, self.connection)
        return self.connection


def script(run: str) -> str:
    """The text of `journal.lua` for one run of a server. The settings are in seconds, the script's instants in microseconds."""
    text = SCRIPT.replace("@RUN@", run)
    for name in ("LEASE", "TTL", "WAIT_TIMEOUT", "MAX_STALENESS"):
        text = text.replace(f"@{name}@", str(round(getattr(conf, name) * 1_000_000)))
    return text


journal = Journal()

begin_journal, inspect_server = journal.begin, journal.inspect_server
