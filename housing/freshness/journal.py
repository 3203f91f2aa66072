"""The freshness journal: when each tag was last written, as Redis's own clock tells it.

A reader that misses is handed an instant, `read_at`, before it asks the database; a writer leases its tags before COMMIT and
closes the lease after it. An entry is fresh if and only if no close and no lease of any of its tags is at or after its
`read_at`. So nothing is ever deleted to invalidate, and a write costs the same however much is cached.

Leases against the race of a fill with a write: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1;
here it is the writer who takes them. The script is `journal.lua`: every verb is one round trip, and may run twice.
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

from .servers import SCRIPTED, Objection, described, named, objection, permission_objection
from .settings import conf

SCRIPT = Path(__file__).with_name("journal.lua").read_text(encoding="utf-8")


REFUSED_FOR = 1.0
"""Seconds until a server that was refused is asked again: each time takes a new connection, and each read would."""


class Unreachable(Exception):
    """Redis did not answer, or refused; the message says which server, and what it said."""


class Refused(Unreachable):
    """Redis answers but cannot keep the promise, so it is not used. `reason` says which server and why, `remedy` what to do."""

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
    """An entry, fresh. `body` is None where the reader has it already."""

    etag: str
    body: bytes | None


@dataclass(frozen=True)
class Miss:
    """No fresh entry; `stale` says that there is one no longer fresh. `read_at` and `epoch` go with what is stored instead."""

    stale: bool
    epoch: bytes
    read_at: bytes


class Filling:
    """Nothing to be had yet: another reader is asking the database. Look up again, later."""


class Journal:
    """The verbs of `journal.lua`. Each is one round trip, and raises Unreachable where Redis is."""

    def __init__(self) -> None:
        self._sha: str | None = None
        self._server = "Redis"
        self._refused: tuple[float, str, Objection] | None = None
        self._line = Line()

    def lookup(self, entry: str, etags: Iterable[str] = (), *, draw: float = 0, may_wait: bool = False) -> Hit | Miss | Filling:
        """The entry under this key, if it is fresh; without its body if the reader's `etags` name it.

        `draw`, from the exponential distribution, times the seconds that the entry cost: so long before its time is up it counts as over.
        Whoever is `patient` may be told that another is filling it.
        """
        verdict, *rest = self._run("lookup", int(may_wait), repr(draw), *etags, entry=entry)
        if verdict == b"filling":
            return Filling()
        if verdict == b"hit":
            return Hit(rest[0].decode(), rest[1] if len(rest) > 1 else None)
        return Miss(verdict == b"stale", *rest)

    def store(self, entry: str, miss: Miss, tags: Collection[str], etag: str, body: bytes, cost: float = 0) -> str:
        """Remember what was read after `miss`, in `cost` seconds: "stored"; or why not, "raced", "leased" or "recovering"."""
        args = (miss.epoch, miss.read_at, "\n".join(sorted(tags)), etag, body, round(cost * 1_000_000))
        return bytes(self._run("store", *args, entry=entry)).decode()

    def abandon(self, entry: str, miss: Miss) -> None:
        """Say that nothing will be stored after `miss`, so that nobody waits for it."""
        self._run("abandon", miss.read_at, entry=entry)

    def lease(self, tags: Collection[str]) -> Lease:
        """Say that reads of these tags cannot be trusted until the lease is closed or, in `FRESHNESS_LEASE` seconds, runs out."""
        lease = Lease(os.urandom(8).hex(), tuple(sorted(tags)))
        self._run("lease", lease.id, "\n".join(lease.tags))
        return lease

    def close(self, lease: Lease) -> None:
        """Say that what was leased is written: what was read of it before now is stale, what is read from now on is not."""
        self._run("close", lease.id, "\n".join(lease.tags))

    def withdraw(self, lease: Lease) -> None:
        """Say that what was leased was not written after all; nothing becomes stale."""
        self._run("withdraw", lease.id, "\n".join(lease.tags))

    def begin(self) -> None:
        """Begin a new journal, without the lease on everything that one found missing begins with.

        Only for who knows that nobody writes meanwhile. Every entry of the old journal is disowned.
        """
        self._run("begin")

    def leases(self) -> dict[Lease, float]:
        """The leases that are open, each with the seconds until it runs out, the first to run out first."""
        listed = iter([bytes(part).decode() for part in self._run("leases")])
        leases = {}
        for held in listed:
            lease, tags = held.split("|")
            leases[Lease(lease, tuple(tags.splitlines()))] = int(next(listed)) / 1_000_000
        return leases

    def inspect_server(self) -> dict[str, str]:
        """Ask the server whether it can keep the promise, and load the script. → its INFO; nothing where FRESHNESS_RUN_ID stands for it.

        Raises Refused where it cannot. The first call of any verb does this, too, and so does the next one after an error.
        A refusal holds for REFUSED_FOR; this asks at once.
        """
        client: Redis = get_redis_connection(conf.CACHE)
        try:
            return self._load(client)[1]
        except refusals.RedisError as error:
            raise self._failed(client, error) from error

    def forget_server(self) -> None:
        """Learn anew, at the next call, which server this is."""
        self._sha = self._refused = None

    def _run(self, verb: str, *args: Any, entry: str = "") -> Any:
        client: Redis = get_redis_connection(conf.CACHE)
        nonce = str(int.from_bytes(os.urandom(6)) + 1)
        try:
            try:
                return self._evaluate(client, verb, entry, nonce, args)
            except (refusals.NoScriptError, refusals.ConnectionError):  # another incarnation of the server, or of the address: ask which, and once more
                self._sha = None
                return self._evaluate(client, verb, entry, nonce, args)
        except refusals.RedisError as error:  # away, full, read-only, or holding something else under our key
            raise self._failed(client, error) from error

    def _evaluate(self, client: Redis, verb: str, entry: str, nonce: str, args: Iterable[Any]) -> Any:
        sha = self._sha or self._learn(client)
        keys = (2, caches[conf.CACHE].make_key("journal"), entry) if entry else (1, caches[conf.CACHE].make_key("journal"))
        return self._line.ask(client, "EVALSHA", sha, *keys, verb, nonce, *args)

    def _learn(self, client: Redis) -> str:
        """The SHA of the script, loaded. Raises Refused, without asking, where the server was refused a moment ago."""
        if self._refused and monotonic() < self._refused[0]:
            raise Refused(*self._refused[1:])
        return self._load(client)[0]

    def _load(self, client: Redis) -> tuple[str, dict[str, str]]:
        """Load the script with the server's run id as a literal in it, so that its SHA belongs to this incarnation alone. → the SHA, and INFO.

        Over one connection, which ends with the server: the id that was asked for is that of the server that loads.
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
        except BaseException:  # a reply that nobody has read would be taken for the next one, and the address may lead to another server next time
            self._sha = None
            connection.disconnect()
            raise
        self._sha, self._refused = sha, None
        return sha, info

    def _suitable(self, client: Redis, connection: Any) -> dict[str, str]:
        """The INFO of a server that can keep the promise."""
        connection.send_command("INFO")
        try:
            info = described(connection.read_response().decode())
        except refusals.ResponseError as error:
            if "unknown command" not in str(error):
                raise
            info = {}
        self._server = named(info)
        if why := objection(info):
            raise self._refuse(client, why)
        return info

    def _refuse(self, client: Redis, why: Objection) -> Refused:
        """The error to raise, now and for a while."""
        self._refused = monotonic() + REFUSED_FOR, _address(client), why
        return Refused(*self._refused[1:])

    def _failed(self, client: Redis, error: refusals.RedisError) -> Unreachable:
        """The error to raise for one of redis-py's. Except where the server is only full, it may be another one by now: the next call asks."""
        if not isinstance(error, refusals.OutOfMemoryError):
            self._sha = None
            self._line.hang_up()
        if isinstance(error, refusals.NoPermissionError) or "ACL failure" in str(error):
            return self._refuse(client, permission_objection(self._server, str(error), caches[conf.CACHE].make_key("*")))
        return Unreachable(f"Redis at {_address(client)} is out of reach ({error}).")


def _address(client: Redis) -> str:
    where = client.connection_pool.connection_kwargs
    return where.get("path") or f"{where.get('host')}:{where.get('port')}"


class Line(threading.local):
    """This thread's own connection: borrowed from the client's pool once, for the pool looks every time whether a connection is alive.

    Through it a command costs half of what it costs through redis-py's client, which measures and tries again, too.
    """

    pool: ConnectionPool | None = None
    process = 0
    connection: Any = None
    give_back: Callable[[], Any] = bool

    def ask(self, client: Redis, *command: Any) -> Any:
        """The reply to one command. Without a reply the connection ends; the next command makes a new one, to wherever the address leads by then."""
        if self.pool is not client.connection_pool or self.process != os.getpid():  # another server; or a fork, which must not share a socket
            self.borrow(client.connection_pool)
        try:
            self.connection.send_command(*command)
            return self.connection.read_response()
        except refusals.ResponseError:
            raise
        except BaseException:  # a reply that nobody has read would be taken for the next one
            self.connection.disconnect()
            raise

    def hang_up(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection.disconnect()

    def borrow(self, pool: ConnectionPool) -> Any:
        """The connection of this thread to another server, or to the same after the pool has looked whether it is alive."""
        self.give_back()
        self.pool = self.connection = None  # another thread may have it by now, also where this one gets none
        self.connection = pool.get_connection()
        self.pool, self.process = pool, os.getpid()
        self.give_back = finalize(threading.current_thread(), pool.release, self.connection)
        return self.connection


def script(run: str) -> str:
    """The text of `journal.lua` for one incarnation of a server; the settings are in seconds, the script's instants in µs."""
    text = SCRIPT.replace("@RUN@", run)
    for name in ("LEASE", "TTL", "WAIT_TIMEOUT"):
        text = text.replace(f"@{name}@", str(round(getattr(conf, name) * 1_000_000)))
    return text


journal = Journal()

begin_journal, inspect_server = journal.begin, journal.inspect_server
