"""The freshness journal records when each tag was last written, by Redis's own clock.

A reader that misses gets an instant, `read_at`, before it queries the database. A writer leases its tags before COMMIT and
closes the lease after it. An entry is fresh if and only if no close and no lease of any of its tags is at or after its
`read_at`. This way nothing is ever deleted to invalidate it, and a write costs the same however much is cached.

Leases against the race of a fill with a write come from Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section
3.2.1. Here the writer takes them. The script is `journal.lua`: every verb is one round trip, and may run twice.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import finalize

from django.core.cache import caches
from django_redis import get_redis_connection
from hiredis import pack_command
from redis import ConnectionPool, Redis
from redis import exceptions as refusals
from redis.sentinel import SentinelConnectionPool

from . import joined
from .breaker import Breaker, Unreachable
from .fingerprint import version
from .places import PLACE
from .servers import SCRIPTED, Objection, objection, parsed, permission_objection, server_name
from .settings import conf
from .tracking import TRUST

logger = logging.getLogger(__name__)

Seen = tuple[bytes, bytes]
"""The epoch of a journal, and one of its instants."""

Late = Callable[[refusals.RedisError, bool], Any]
"""Takes an error as the reply that was not awaited, and whether this thread may send a command."""

NOTHING: tuple[Any, ...] = ()

SCRIPT = Path(__file__).with_name("journal.lua").read_text(encoding="utf-8")


REPLIES: dict[type[refusals.RedisError], str] = {
    refusals.OutOfMemoryError: "it is full",
    refusals.AuthenticationError: "it does not accept the user or the password",
    refusals.BusyLoadingError: "it is loading its data",
    refusals.ResponseError: "it refuses the script of the journal, or writes",
}
"""The meaning of each error that the server sends. The most general is last."""

OTHERS = "anything by another version of the code"
"""The write that an operator is shown if an entry is stale because versions of the code do not know each other's tags."""


class Refused(Unreachable):
    """Redis is reachable but cannot keep the promise, so it is not used. `reason` says which server and why, `remedy` what to do."""

    def __init__(self, where: str, why: Objection) -> None:
        self.why = why
        self.reason, self.remedy = f"{why.server} at {where} cannot keep the promise: {why.reason}", why.remedy
        super().__init__(f"{self.reason} {self.remedy}")


@dataclass(frozen=True)
class Lease:
    """Tags that cannot be trusted while their transaction commits."""

    id: str
    tags: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    """Those under which the tags are all (see joined.py)."""
    places: tuple[str, ...] = ()
    """Those of its rows, as lines (see places.py)."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Its id, its tags, this version of the code, and its conditions if there are any, as the script takes them."""
        parts = self.id, "\n".join((*self.places, *self.tags)), version()
        return (*parts, "\n".join(self.conditions)) if self.conditions else parts


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


@dataclass(frozen=True)
class Filling:
    """No entry yet, because another reader is filling it. Look again later. Its fill is slow if it began FRESHNESS_WAIT_TIMEOUT seconds ago."""

    sign: bytes
    """The instant of the other reader's last sign of life."""
    is_slow: bool


class Unverified:
    """An entry that is fresh as far as the journal knows. A write that did not come through it may be missing, so it is not used."""


@dataclass(frozen=True)
class Inspected:
    """An entry, as an operator sees it."""

    verdict: str
    """"fresh"; "unverified" if nothing was written and no verification is recent enough; or why it is stale: "raced" (a write was committed), "leased" (a
    write is being committed), "recovering" (the journal is new), "dropped" (it is older than the journal's records), "lost" (it is from another journal)."""
    which: str
    """The tag that was written, or the tags that are leased."""
    etag: str
    body: bytes
    tags: tuple[str, ...]
    address: str
    read_at: bytes
    age: float
    """Seconds since it was read."""
    left: float
    """Seconds until it expires."""

    @property
    def is_trusted(self) -> bool:
        """Whether no write is known that makes it stale, so it is served as soon as the journal is verified."""
        return self.verdict in ("fresh", "unverified")


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
        self._line = ThreadConnection()
        self.breaker = Breaker()
        self.seen: Seen | None = None
        """The last instant of which this process knows."""

    def lookup(self, entry: str, etags: Iterable[str] = (), *, draw: float = 0, may_wait: bool = False) -> Hit | Miss | Filling | Unverified:
        """The entry under this key if it is fresh. Its body is left out if its ETag is one of the reader's `etags`.

        The entry expires early by `draw`, from the exponential distribution, times the seconds that it cost. With `may_wait` the result is
        Filling while another reader fills the entry. It is Unverified if its database was not verified for FRESHNESS_MAX_STALENESS seconds.
        """
        verdict, *rest = self._run("lookup", int(may_wait), f"{draw:.3f}", version(), *etags, entry=entry)
        if verdict == b"hit":
            return Hit(rest[0].decode(), rest[1] if len(rest) > 1 else None)
        if verdict == b"filling":
            return Filling(rest[0], is_slow=len(rest) > 1)
        if verdict == b"unverified":
            return Unverified()
        self.seen = (rest[0], rest[1])
        return Miss(verdict == b"stale", *rest)

    def store(
        self,
        entry: str,
        miss: Miss,
        tags: Collection[str],
        etag: str,
        body: bytes,
        cost: float = 0,
        database: str = "",
        address: str = "",
        is_linked: bool = True,
        within: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> str:
        """Store what was read from this database after `miss` in `cost` seconds. Returns "stored", or the reason why not: "raced", "leased" or "recovering".

        An operator can ask for it again at `address`. If no link leads to it, such entries have at most FRESHNESS_UNLINKED bytes together.
        `within` are the lines of intervals, and those of the tags that matter only for rows in each of them.
        """
        parts = sorted({*tags, f"|others:{version()}"}.difference(*within.values()))
        for interval, entering in within.items():
            parts += interval, *sorted(entering)
        args = (miss.epoch, miss.read_at, "\n".join(parts), etag, body, round(cost * 1_000_000), database, address)
        return bytes(self._run("store", *args, *(() if is_linked else (max(conf.UNLINKED, 1),)), entry=entry)).decode()

    def renew(self, entry: str, miss: Miss) -> bool:
        """Report that the fill after `miss` goes on, so that others wait for it. Returns False if nobody waits for it any longer."""
        return bool(self._run("renew", miss.read_at, entry=entry) == b"1")

    def abandon(self, entry: str, miss: Miss, *, another: bool = False) -> None:
        """Report that nothing will be stored after `miss`, so that nobody waits for it. If another reader may succeed, the next one takes over."""
        self._run("abandon", miss.read_at, int(another), entry=entry)

    def lease(self, tags: Collection[str], since: Seen | None = None, places: Iterable[str] = ()) -> Lease:
        """Let no read of these tags be trusted until the lease is closed, or runs out after `FRESHNESS_LEASE` seconds.

        The conditions among the tags hold if nothing has broken them `since` an instant that was known before the transaction began. `places` are those of
        the rows that it changed. Without those of a table, its rows may be anywhere.
        """
        plain, conditions, terms = tuple(sorted(tags)), NOTHING, NOTHING
        text = "\n".join(plain)
        if TRUST in text:
            plain, conditions = joined.divided(tags, is_known=since is not None)
            text = "\n".join(plain)
            terms = ("\n".join(conditions), "\n".join(joined.watched(conditions)), *(since or ()))
        identity, placed = os.urandom(8).hex(), tuple(places)
        broken = "\n".join(joined.broken(text))
        epoch, instant, hold, *more = self._run("lease", identity, "\n".join((*placed, text)), version(), broken, *terms)
        self.seen = (epoch, instant)
        return Lease(identity, (*plain, *[tag.decode() for tag in more]), conditions if hold == b"1" else (), placed)

    def close(self, lease: Lease, late: Callable[[Unreachable], Any] | None = None) -> None:
        """Report that the leased write is committed: reads of its tags that began before now are stale, later ones are fresh.

        With `late` the reply is not awaited, which saves a tenth of a write. No read is stale meanwhile, because the lease is open until the server has run
        the close. The reply is read before the thread's next command, or when the thread ends. After an error the close is sent again, and if that fails,
        or if no reply came in time, `late` is called.
        """
        self._run("close", *lease.parts, late=partial(self._close_again, lease, late) if late else None)

    def _close_again(self, lease: Lease, late: Callable[[Unreachable], Any], error: refusals.RedisError, may_ask: bool) -> None:
        """Take an error as the late reply to a close. The thread of another connection may not ask, because it may be in the middle of a command."""
        try:
            if not may_ask:
                raise Unreachable(f"Redis did not confirm it ({error}).")
            if isinstance(error, refusals.TimeoutError):  # a second close would wait as long
                raise self._failed(get_redis_connection(conf.CACHE), error)
            self.close(lease)
        except Unreachable as away:
            late(away)

    def withdraw(self, lease: Lease) -> None:
        """Report that the leased write did not happen, so nothing becomes stale."""
        self._run("withdraw", *lease.parts)

    def begin_verification(self, database: str, *, at_once: bool = False) -> Verification | None:
        """Begin to look for writes to this database that are missing in the journal. None if another process began a moment ago, unless `at_once`."""
        begun = self._run("begin_verification", database, int(at_once))
        return Verification(database, *begun) if begun else None

    def end_verification(self, verification: Verification, tags: Collection[str]) -> bool:
        """Close the tags of the missing writes ("*" for everything), and allow hits for FRESHNESS_MAX_STALENESS seconds from its instant on.

        Returns False, and does nothing, if this is not the journal in which the verification began.
        """
        text = "\n".join(sorted(tags))
        broken = "\n".join(joined.broken(text))
        return bool(self._run("end_verification", verification.database, verification.epoch, verification.instant, text, broken) == b"1")

    def verified(self, database: str) -> float | None:
        """The seconds since the instant up to which this database is verified, or None if it never was."""
        age = self._run("verified", database)
        return None if age is None else int(age) / 1_000_000

    def not_known_to_be_stale(self, entry: str, seconds: float) -> tuple[tuple[str, bytes], float] | None:
        """The ETag and the body under this key, and the seconds since they were certainly current, if those are fewer than `seconds`.

        None if there is no entry, or if a write of its tags is closed or leased since it was read.
        """
        found = self._run("not_known_to_be_stale", round(seconds * 1_000_000), entry=entry)
        return ((found[0].decode(), found[1]), int(found[2]) / 1_000_000) if found else None

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
            lines = tags.splitlines()
            places, conditions = [tuple(line for line in lines if line.startswith(prefix)) for prefix in (PLACE, TRUST)]
            plain = tuple(lines[len(places) : len(lines) - len(conditions)])
            leases[Lease(lease, plain, conditions, places)] = int(next(listed)) / 1_000_000
        return leases

    def ages(self) -> tuple[float, float] | None:
        """The seconds since the journal's last instant and since its low-water mark, or None if there is no journal."""
        ages = self._run("ages")
        return (int(ages[0]) / 1_000_000, int(ages[1]) / 1_000_000) if ages else None

    def inspect(self, entry: str) -> Inspected | None:
        """The entry under this key, with its freshness, or None if it is not cached. Changes nothing."""
        found = [bytes(part) for part in self._run("inspect", entry=entry)]
        if not found:
            return None
        verdict, which, etag, body, tags, address, read_at, age, left = found
        written = which.decode().partition("|")[2] if verdict == b"leased" else which.decode()
        reason = ", ".join(_own(written)) or (OTHERS if written else "")
        seconds = int(age) / 1_000_000, int(left) / 1_000_000
        return Inspected(verdict.decode(), reason, etag.decode(), body, _own(tags.decode()), address.decode(), read_at, *seconds)

    def invalidate_everything(self) -> None:
        """Make every response stale that was read before now."""
        self._run("invalidate_everything")

    def invalidate_entry(self, entry: str) -> None:
        """Make the response under this key stale if it was read before now, whether it is stored already or not."""
        self._run("invalidate_entry", entry=entry)

    def inspect_server(self) -> dict[str, str]:
        """Check whether the server can keep the promise, and load the script. Returns its INFO, or {} if FRESHNESS_RUN_ID replaces it.

        Raises Refused if it cannot. The first call of any verb does the same, and so does the next call after an error.
        After a failure the breaker lets one call through each FRESHNESS_RETRY seconds, but this method asks at once.
        """
        client: Redis = get_redis_connection(conf.CACHE)
        try:
            info = self._load(client)[1]
        except refusals.RedisError as error:
            raise self._failed(client, error) from error
        self.breaker.close()
        return info

    def state(self) -> str:
        """Whether the server does what the journal needs, writes included: "ok", or why not, in words that show neither its address nor its users."""
        try:
            self.inspect_server()
            self._run("probe")
        except Refused as refused:
            return f"refused: {refused.why.reason.partition(' (')[0].rstrip('.')}"
        except Unreachable as error:
            return next((f"refused: {why}" for kind, why in REPLIES.items() if isinstance(error.__cause__, kind)), "unreachable")
        return "ok"

    def forget_server(self) -> None:
        """Ask the server what it is at the next call. A forked process does so, too."""
        self._sha = None
        self.breaker = Breaker()

    def _run(self, verb: str, *args: Any, entry: str = "", late: Late | None = None) -> Any:
        """The reply to this verb. With `late` it is not awaited, and an error is passed to `late` afterwards."""
        if self._line.unread:
            self._line.read_late()
        client = self._line.key_of if late else None  # a close follows its lease
        if client is None:
            cache: Any = caches[conf.CACHE]
            client = cache.client.get_client()  # as get_redis_connection() does, which imports and checks at each call
        if self.breaker.opened is None:
            return self._send(client, verb, args, entry, late)
        with self.breaker.probing(server_address(client)):  # which needs the reply
            return self._send(client, verb, args, entry)

    def _send(self, client: Redis, verb: str, args: Iterable[Any], entry: str, late: Late | None = None) -> Any:
        nonce = str(int.from_bytes(os.urandom(6)) + 1)
        try:
            try:
                return self._evaluate(client, verb, entry, nonce, args, late)
            except (refusals.NoScriptError, refusals.ConnectionError):  # the server restarted, or the address leads to another: try once more
                self._sha = None
                return self._evaluate(client, verb, entry, nonce, args)
        except refusals.RedisError as error:  # unreachable, full, read-only, or another type of value under the journal's key
            raise self._failed(client, error) from error

    def _evaluate(self, client: Redis, verb: str, entry: str, nonce: str, args: Iterable[Any], late: Late | None = None) -> Any:
        sha, line = self._sha or self._load(client)[0], self._line
        if line.key_of is not client:
            line.key, line.key_of = caches[conf.CACHE].make_key("journal"), client
        keys = (2, line.key, entry) if entry else (1, line.key)
        return line.ask(client, "EVALSHA", sha, *keys, verb, nonce, *args, late=late)

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
                connection.send_command("EVALSHA", sha, 1, caches[conf.CACHE].make_key("journal"), "forbidden", "", *chain(*SCRIPTED.items()))
            connection.read_response()
            if info and (forbidden := connection.read_response()):
                raise refusals.NoPermissionError(f"it may not run {b', '.join(forbidden).decode()}")
        except BaseException:  # the next command would read the reply to this one, and the address may lead to another server by then
            self._sha = None
            connection.disconnect()
            raise
        self._sha = sha
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

    def _refuse(self, client: Redis, why: Objection) -> Unreachable:
        """Open the breaker. Returns the error to raise."""
        address = server_address(client)
        return self.breaker.open(address, partial(Refused, address, why))

    def _failed(self, client: Redis, error: refusals.RedisError) -> Unreachable:
        """The error to raise for an error of redis-py. The address may lead to another server now, so the next call asks, unless the server is only full.

        The breaker opens if there was no reply, or if the server cannot be used. Other errors concern one call only.
        """
        if not isinstance(error, refusals.OutOfMemoryError):
            self._sha = None
            self._line.disconnect()
        if isinstance(error, refusals.NoPermissionError) or "ACL failure" in str(error):
            return self._refuse(client, permission_objection(self._server, str(error), caches[conf.CACHE].make_key("*")))
        address = server_address(client)
        failed = partial(Unreachable, f"Redis at {address} is unreachable ({error}).")
        return self.breaker.open(address, failed) if isinstance(error, refusals.ConnectionError | refusals.TimeoutError) else failed()


def _own(tags: str) -> tuple[str, ...]:
    """The tags of the models, without that of the versions of the code."""
    return tuple(tag for tag in tags.splitlines() if not tag.startswith("|"))


def server_address(client: Redis) -> str:
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
    key_of: Redis | None = None
    key = ""
    """The key of the journal, which the cache of this client makes."""
    process = 0
    connection: Any = None
    give_back: Callable[[], Any] = bool

    def __init__(self) -> None:
        self.unread: list[Late] = []
        """The function that takes an error as the reply that was not awaited, if there is one."""

    def ask(self, client: Redis, *command: Any, late: Late | None = None) -> Any:
        """The reply to one command. If there is no reply, the connection ends, and the next command opens a new one.

        With `late` the reply is not awaited. Call `read_late` before the next command.
        """
        if self.pool is not client.connection_pool or self.process != os.getpid():  # another server, or a forked process, which must not share a socket
            self.borrow(client.connection_pool)
        try:
            self.connection.send_packed_command([pack_command(command)])  # redis-py's own packing takes three times as long
            if late is None:
                return self.connection.read_response()
            self.unread.append(late)
        except refusals.ResponseError:
            raise
        except BaseException:  # the next command would read the reply to this one
            self.connection.disconnect()
            raise

    def read_late(self) -> None:
        """Read the reply that was not awaited, if there is one and it is this process's."""
        if self.unread and self.process == os.getpid():
            _read_late(self.connection, self.unread, may_ask=True)

    def disconnect(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection.disconnect()

    def borrow(self, pool: ConnectionPool) -> Any:
        """Borrow a connection from the pool, which checks that it is alive, and return the thread's previous one."""
        self.read_late()
        self.give_back()
        self.pool = self.connection = None  # another thread may have it by now, even if this one gets no other
        try:
            self.connection = pool.get_connection()
        except refusals.MaxConnectionsError:  # each thread keeps its connection, so this one would never get any
            logger.warning("max_connections of the cache is less than one connection for each thread, so the journal opens another one.")
            self.connection = pool.connection_class(**pool.connection_kwargs)
            give_back: Callable[[], Any] = self.connection.disconnect
        else:
            give_back = partial(pool.release, self.connection)
        self.pool, self.process, self.unread = pool, os.getpid(), []
        self.give_back = finalize(threading.current_thread(), _give_back, self.connection, self.unread, self.process, give_back)
        return self.connection


def _read_late(connection: Any, unread: list[Late], *, may_ask: bool) -> None:
    late = unread.pop()
    try:
        connection.read_response()
    except refusals.RedisError as error:
        if not isinstance(error, refusals.ResponseError):
            connection.disconnect()
        late(error, may_ask)
    except BaseException:
        connection.disconnect()
        raise


def _give_back(connection: Any, unread: list[Late], process: int, give_back: Callable[[], Any]) -> None:
    """Give back the connection of a thread that has ended. The next thread must not read the reply that was not awaited."""
    try:
        if unread and process == os.getpid():
            _read_late(connection, unread, may_ask=False)
    finally:
        give_back()


def script(run: str) -> str:
    """The text of `journal.lua` for one run of a server. The settings are in seconds, the script's instants in microseconds."""
    text = SCRIPT.replace("@RUN@", run)
    for name in ("LEASE", "TTL", "WAIT_TIMEOUT", "LONGEST_WAIT", "MAX_STALENESS"):
        text = text.replace(f"@{name}@", str(round(getattr(conf, name) * 1_000_000)))
    return text


journal = Journal()

begin_journal, inspect_server = journal.begin, journal.inspect_server

os.register_at_fork(after_in_child=journal.forget_server)
