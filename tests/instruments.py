"""Instruments for any Django project. They count work, explain a failure, and leave what they watch as it is.

Copy this file into `tests/`, load it with `pytest_plugins = ["tests.instruments"]` in the `conftest.py` beside `manage.py`, and write in a test:

    with queries.exactly(1, because="one SELECT joins location, agent and office"):
        client.get("/api/properties/")

`queries` counts SQL on every database, `redis_commands` counts what redis-py sends, `python_calls` counts calls of Python functions, and `latency`
compares two functions in one run. A promise needs its reason: it is a TypeError to leave `because` out.

The work of a block is what its own code does, in async views and tests, too. If another thread does some, the block fails, unless `threads=True` counts it
or `threads=False` ignores it. A count of zero fails if there is nothing that could have been counted.

No instrument sees other processes, or what happens after the block, such as the query of a QuerySet that is evaluated later.

- `queries` does not count transaction control, FETCH from a cursor on the server, and what opens a connection. Below Django's cursor it watches sqlite3 and
  psycopg 3, and no other driver. It does not see `PGconn`, and sqlite3's `backup()`, `blobopen()`, `serialize()` and `deserialize()`. It does not see a
  connection that sqlite3 lets only another thread use, if it was opened before the block. It replaces the trace callback of each connection of sqlite3, with
  which a statement counts once more for each statement of a trigger. `rows` are those of Django's cursor, and not those of COPY.
- `redis_commands` does not see other clients than redis-py, or a subclass that is defined in the block and sends without `super()`. It reads `received` from
  the socket. A fake server has none, so the size of its replies is computed.
- `python_calls` does not see functions written in C, or threads that were started before.
- `latency` judges nothing while pytest-benchmark is disabled, as it is by `--benchmark-disable` and by pytest-xdist. pytest keeps no line of the log meanwhile.

The licence is at the end.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import random
import re
import socket
import sqlite3
import ssl
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from operator import eq, le
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models.sql.compiler import SQLCompiler

COMMENTS = r"(?:[\s;]|--[^\r\n]*(?:\r?\n|\Z)|/\*(?!!).*?\*/)*+"
CONTROL = re.compile(
    COMMENTS + r"(BEGIN|START\s+TRANSACTION|SET\s+TRANSACTION|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|END|ABORT|PREPARE\s+TRANSACTION)\b[^;]*+;?\s*+\Z",
    re.IGNORECASE | re.DOTALL,
)
"""Transaction control reads nothing and writes nothing, so it is not counted as a query. A text that goes on after it is."""

LEAD = re.compile(COMMENTS, re.DOTALL)
LITERAL = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b|%s")
LIST = re.compile(r"\((?:\?(?:, )?)+\)")
COLUMNS = re.compile(r"^(SELECT) .{80,}? (FROM) ", re.DOTALL)

LIBRARIES = sys.stdlib_module_names | {"asgiref", "django", "django_redis", "fakeredis", "psycopg", "psycopg_pool", "redis"}
"""The packages that send for others, and the standard library. The place in a failure is that of the others."""

DJANGOS = (CursorWrapper, BaseDatabaseWrapper, SQLCompiler)
"""Classes whose methods send for others, too, if a package subclasses them."""


@pytest.fixture
def queries() -> Queries:
    """Counts SQL statements: `with queries.exactly(1, because="…"):`."""
    return Queries()


@pytest.fixture
def redis_commands() -> RedisCommands:
    """Counts round trips to Redis: `with redis_commands.exactly(1, because="…"):`."""
    return RedisCommands()


@pytest.fixture
def python_calls() -> PythonCalls:
    """Counts calls of Python functions: `python_calls.at_most(900, act, because="…")`."""
    return PythonCalls()


@pytest.fixture
def latency() -> Latency:
    """Compares a function with a baseline: `latency.interleaved(benchmark, warm, baseline=naive).at_most(0.2, because="…")`."""
    return Latency()


# Blocks


class Sent(str):
    """The text of a statement, or the names of commands, with the place of the code that sent it, its thread, and what else is known of it."""

    place = thread = ""
    below = False
    size = 0


class Seen(list[Sent]):
    """The statements or commands that a block has sent."""

    place = ""
    threads: bool | None = None
    replied = 0
    """The rows or the bytes that came back."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[Sent] = []  # by other threads


OWN: ContextVar[tuple[Seen, ...]] = ContextVar("OWN", default=())
"""The blocks that this code is in. asyncio and asgiref hand it on to tasks and to the threads of `sync_to_async`. Other threads begin without it."""


class Instrument:
    """Counts what is sent in the blocks of `exactly()` and `at_most()`. All open blocks share the hooks, which call `note()`."""

    one: ClassVar[str]
    many: ClassVar[str]
    kind: ClassVar[type[Seen]]
    open: ClassVar[list[Seen]]
    hooks: ClassVar[ExitStack]
    lock = threading.RLock()

    def exactly(self, promised: int, *, because: str, threads: bool | None = None) -> AbstractContextManager[Any]:
        """Fail unless the block sends as many as `promised`. Yields what it sent."""
        return self._promise(promised, eq, f"exactly {self._count(promised)}, because {because}", threads)

    def at_most(self, promised: int, *, because: str, threads: bool | None = None) -> AbstractContextManager[Any]:
        """Fail if the block sends more than `promised`. Yields what it sent."""
        return self._promise(promised, le, f"at most {self._count(promised)}, because {because}", threads)

    @contextmanager
    def _promise(self, promised: int, is_kept: Callable[[int, int], bool], promise: str, threads: bool | None) -> Iterator[Seen]:
        seen = self.kind()
        seen.place, seen.threads = place_of(sys._getframe(1)), threads
        with self.lock:
            if not self.open:
                self.attach(self.hooks)
            self.open.append(seen)
        OWN.set((*OWN.get(), seen))
        try:
            yield seen
        finally:
            OWN.set(tuple(each for each in OWN.get() if each is not seen))
            with self.lock:
                self.open[:] = [each for each in self.open if each is not seen]
                if not self.open:
                    self.hooks.close()
        refused = self._refused(seen)
        if refused or not is_kept(len(seen), promised):
            lines = [f"promised: {promise}", f"happened: {self._count(len(seen))}", *self.listed(seen)]
            pytest.fail("\n".join([*lines, *(refused or [f"to do:    {self.advice(seen, promised)}"])]), pytrace=False)

    def _refused(self, seen: Seen) -> list[str]:
        """Lines that say what the count does not show."""
        if seen.elsewhere and seen.threads is None:
            names = ", ".join(sorted({sent.thread for sent in seen.elsewhere}))
            return [
                f"not seen: {self._count(len(seen.elsewhere))} of another thread ({names})",
                *self.listed(seen.elsewhere),
                "to do:    this block used another thread; pass threads=True to count it, or threads=False to ignore it.",
            ]
        return [f"not seen: {why}"] if not seen and not seen.elsewhere and (why := self.unattached()) else []

    def _count(self, count: int) -> str:
        return _many(count, self.one, self.many)

    @classmethod
    def counting(cls) -> list[Seen]:
        """The open blocks that count what is sent here and now."""
        own = OWN.get()
        return [seen for seen in list(cls.open) if seen.threads or any(seen is each for each in own)]

    @classmethod
    def note(cls, text: str, **known: Any) -> None:
        """Add what is sent here and now to the open blocks."""
        sent, counting = Sent(text), cls.counting()
        # A thread of sync_to_async has no frame of the code that awaits it.
        place = place_of(sys._getframe(1)) or "".join(f"in the block of {seen.place}" for seen in counting[-1:])
        vars(sent).update(known, place=place, thread=threading.current_thread().name)
        for seen in list(cls.open):
            (seen if any(seen is each for each in counting) else seen.elsewhere).append(sent)

    @classmethod
    def note_reply(cls, count: int) -> None:
        """Add the rows or the bytes that come back here and now."""
        for seen in cls.counting():
            seen.replied += count


def place_of(frame: FrameType | None) -> str:
    """The file and line of the innermost code outside of LIBRARIES and of methods of DJANGOS, and of your code that called it if it is a package's."""
    packages = ""
    while frame:
        module, (folder, _, file) = frame.f_globals.get("__name__", ""), frame.f_code.co_filename.rpartition("site-packages/")
        if module != __name__ and module.partition(".")[0] not in LIBRARIES and not isinstance(frame.f_locals.get("self"), DJANGOS):
            if not folder:
                return f"{packages}{file.removeprefix(f'{Path.cwd()}/')}:{frame.f_lineno}"
            packages = packages or f"{file}:{frame.f_lineno}, called by "
        frame = frame.f_back
    return packages.removesuffix(", called by ")


def _many(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# SQL

COVERED: ContextVar[bool] = ContextVar("COVERED", default=False)
"""Whether the driver works for a call of Django that is counted already, or that opens a connection."""

PSYCOPG = {
    **dict.fromkeys(("Cursor", "AsyncCursor"), ("execute", "executemany", "stream", "copy")),
    **dict.fromkeys(("ServerCursor", "AsyncServerCursor"), ("execute",)),
}
"""The methods that send a statement, by psycopg's class of cursor."""


class Statements(Seen):
    """SQL statements, and the number of rows that were fetched."""

    @property
    def rows(self) -> int:
        """The number of rows that were fetched through Django's cursor. Fails if a statement was sent below it, because the rows of that one are not seen."""
        if below := [sent for sent in self if sent.below]:
            pytest.fail("\n".join(["not seen: the rows of statements that were sent below Django's cursor:", *Queries().listed(below)]), pytrace=False)
        return self.replied


class Queries(Instrument):
    """Counts SQL statements, without transaction control."""

    one, many, kind = "query", "queries", Statements
    open: ClassVar[list[Seen]] = []
    hooks = ExitStack()

    @staticmethod
    def attach(hooks: ExitStack) -> None:
        """Watch Django's cursors, and below them the drivers."""
        watched = {name: wrap(vars(CursorWrapper)[name]) for name, wrap in DJANGO.items()}
        watched |= {name: _fetching(name) for name in ("fetchone", "fetchmany", "fetchall")}
        hooks.enter_context(patch.multiple(CursorWrapper, create=True, **watched))
        hooks.enter_context(patch.object(BaseDatabaseWrapper, "ensure_connection", _covered(BaseDatabaseWrapper.ensure_connection)))
        with suppress(ImportError):
            import psycopg

            for kind, names in PSYCOPG.items():
                own = {name: _sending(vars(getattr(psycopg, kind))[name]) for name in names}
                hooks.enter_context(patch.multiple(getattr(psycopg, kind), **own))
        existing = [*gc.get_referrers(sqlite3.Connection), *(each.connection for each in connections.all(initialized_only=True))]
        opened = [each for each in existing if isinstance(each, sqlite3.Connection)]
        _trace(opened, _traced)
        hooks.callback(_trace, opened, None)
        for module in (sqlite3, sqlite3.dbapi2):
            hooks.enter_context(patch.object(module, "connect", partial(_connecting, opened, module.connect)))

    def unattached(self) -> str:
        """Why nothing could have been counted; empty if it could."""
        databases = [connection for connection in connections.all() if connection.vendor != "unknown"]
        if not databases:
            return "settings.DATABASES has no database, so no query could have been counted."
        other = [connection.alias for connection in databases if not isinstance(connection.make_cursor(None), CursorWrapper)]
        return f"the cursors of {', '.join(other)} are not of Django's class CursorWrapper, so their queries are not counted." if other else ""

    def listed(self, seen: Sequence[Sent]) -> Iterator[str]:
        """Each shape of a statement, with the places of its statements."""
        places: dict[str, Counter[str]] = {}
        for sent in seen:
            places.setdefault(shape_of(sent), Counter())[sent.place] += 1
        for shape, found in sorted(places.items(), key=lambda each: -each[1].total()):
            mark, _ = REPEATED.get(_verb(shape), ("", "")) if found.total() > 1 else ("", "")
            yield f"  {found.total():>4} × {shape}{mark}"
            yield from (f"         {place}{f' ({times} times)' if times > 1 else ''}" for place, times in found.most_common(3))

    def advice(self, seen: Sequence[Sent], promised: int) -> str:
        """Advice about the statement that is repeated most often, otherwise about the number."""
        repeated = [shape for shape, count in Counter(map(shape_of, seen)).most_common() if count > 1 and _verb(shape) in REPEATED]
        if len(seen) < promised:
            return "check that the response is complete. If it is, lower the promised count and update its `because`."
        if repeated:
            return REPEATED[_verb(repeated[0])][1]
        if promised == 0:
            return "no query was expected. If a cache should have answered, check whether the value was never stored or was invalidated."
        return "find the new statement. Remove it, or update the promised count and its `because`."


N_PLUS_1 = "   ← N+1: repeated once per row", "load related rows with one query: select_related() for a foreign key, prefetch_related() for a set."
INSERTS = "   ← repeated: one row each", "insert the rows with one statement: bulk_create()."
UPDATES = "   ← repeated: one row each", "update the rows with one statement: update() if all get the same value, otherwise bulk_update()."
DELETES = "   ← repeated: one row each", "delete the rows with one statement: filter(pk__in=…).delete()."
REPEATED = {"SELECT": N_PLUS_1, "WITH": N_PLUS_1, "INSERT": INSERTS, "REPLACE": INSERTS, "UPDATE": UPDATES, "DELETE": DELETES}
"""Verb of a repeated statement → its mark in the list, and what to do."""


def shape_of(sql: str) -> str:
    """A statement without its values, the comments before it, and a long list of columns. An N+1 repeats the same shape."""
    shape = LIST.sub("(?…)", LITERAL.sub("?", " ".join(LEAD.sub("", sql, count=1).split())))
    return COLUMNS.sub(r"\1 … \2 ", shape)


def _verb(shape: str) -> str:
    return shape.lstrip("( ").partition(" ")[0].upper()


def _note_sql(sql: Any, cursor: Any, *, below: bool = False) -> None:
    """Note a statement: str, bytes, or an object of psycopg."""
    text = sql.decode(errors="replace") if isinstance(sql, bytes) else sql.as_string(cursor) if hasattr(sql, "as_string") else str(sql)
    if not LEAD.fullmatch(text) and not CONTROL.match(text):
        Queries.note(text, below=below)


def _covered(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def covered(*args: Any, **kwargs: Any) -> Any:
        before = COVERED.get()
        COVERED.set(True)
        try:
            return call(*args, **kwargs)
        finally:
            COVERED.set(before)

    return covered


def _executing(execute: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(execute)
    def executes(cursor: CursorWrapper, sql: Any, params: Any, many: bool, executor: Callable[..., Any]) -> Any:
        if not COVERED.get():  # pragma: no branch  # a statement may run within another, as in a function of SQLite
            _note_sql(sql, cursor.cursor)
        return execute(cursor, sql, params, many, _covered(executor))

    return executes


def _calling(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def calls(cursor: CursorWrapper, name: str, *args: Any, **kwargs: Any) -> Any:
        _note_sql(f"CALL {name}", cursor.cursor)
        return _covered(call)(cursor, name, *args, **kwargs)

    return calls


def _iterating(iterate: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(iterate)
    def iterates(cursor: CursorWrapper) -> Iterator[Any]:
        for row in iterate(cursor):
            Queries.note_reply(1)
            yield row

    return iterates


DJANGO = {"_execute_with_wrappers": _executing, "callproc": _calling, "__iter__": _iterating}
"""Method of Django's cursor → what watches it."""


def _fetching(name: str) -> Callable[..., Any]:
    def fetches(cursor: CursorWrapper, *args: Any, **kwargs: Any) -> Any:
        found = CursorWrapper.__getattr__(cursor, name)(*args, **kwargs)
        Queries.note_reply(len(found) if name != "fetchone" else found is not None)
        return found

    return fetches


def _sending(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def sends(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        if not COVERED.get():
            _note_sql(next(iter((*args, *kwargs.values())), b""), cursor, below=True)
        return send(cursor, *args, **kwargs)

    return sends


def _traced(sql: str) -> None:
    if not COVERED.get():
        _note_sql(sql, None, below=True)


def _trace(opened: Sequence[sqlite3.Connection], callback: Callable[[str], None] | None) -> None:
    for connection in opened:
        with suppress(sqlite3.ProgrammingError):  # it is closed, or belongs to another thread
            connection.set_trace_callback(callback)


def _connecting(opened: list[sqlite3.Connection], connect: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    opened.append(connect(*args, **kwargs))
    _trace(opened[-1:], _traced)
    return opened[-1]


# Redis


class Traffic(Seen):
    """The traffic with Redis: the command names of each round trip, and the number of bytes sent and received, in RESP."""

    @property
    def received(self) -> int:
        """The number of bytes of all replies."""
        return self.replied

    @property
    def sent(self) -> int:
        """The number of bytes of all commands."""
        return sum(each.size for each in self)


CALL: ContextVar[tuple[Any, ...]] = ContextVar("CALL", default=())
"""The connection of redis-py that is reading, or one that is sending with what it sends. So a method that calls `super()` is counted once."""

STREAMS = {socket.socket: ("recv", "recv_into"), ssl.SSLSocket: ("recv", "recv_into"), asyncio.StreamReader: ("read", "readexactly", "readuntil")}
"""The methods by which redis-py receives bytes."""


class RedisCommands(Instrument):
    """Counts round trips to Redis. A pipeline is one round trip."""

    one, many, kind = "round trip to Redis", "round trips to Redis", Traffic
    open: ClassVar[list[Seen]] = []
    hooks = ExitStack()

    @staticmethod
    def attach(hooks: ExitStack) -> None:
        """Watch every class of connection, and the bytes that it receives."""
        classes = {each for kind in redis_connections() for each in kind.__mro__}
        methods = [(kind, name, wrap) for name, wrap in (("send_packed_command", _noting), ("read_response", _weighing)) for kind in classes]
        for kind, name, wrap in methods + [(kind, name, _reading) for kind, names in STREAMS.items() for name in names]:
            if name in vars(kind) or kind in STREAMS:
                hooks.enter_context(patch.object(kind, name, wrap(getattr(kind, name))))

    def unattached(self) -> str:
        """Why nothing could have been counted; empty if it could."""
        kinds = tuple(redis_connections())
        exists = any(issubclass(type(each), kinds) for each in gc.get_objects())
        return "" if exists else "no connection of redis-py exists, so another client may be in use. Send one command with redis-py before the block."

    def listed(self, seen: Sequence[Sent]) -> Iterator[str]:
        """Each round trip with its place."""
        return (f"  {number:>4}. {names}   {names.place}" for number, names in enumerate(seen, 1))

    def advice(self, *_: Any) -> str:
        """Advice about the number of round trips."""
        return "HELLO and CLIENT open a new connection: send any command before you count. Otherwise combine the commands in one script or pipeline."


def redis_connections() -> set[type]:
    """The classes of redis-py's connections, with their subclasses."""
    from redis.asyncio.connection import AbstractConnection as AsyncConnection  # only this instrument needs redis-py
    from redis.connection import AbstractConnection

    kinds: set[type] = {AbstractConnection, AsyncConnection}
    while more := {each for kind in kinds for each in kind.__subclasses__()} - kinds:
        kinds |= more
    return kinds


def _noting(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def notes(connection: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        if any(command is sent for sent in CALL.get()[1:]):
            return send(connection, command, *args, **kwargs)
        chunks = [command] if isinstance(command, (bytes, str)) else list(command)
        wire = b"".join(chunk.encode() if isinstance(chunk, str) else chunk for chunk in chunks)
        RedisCommands.note(" ".join(command_names(wire)), size=len(wire))
        return _during((connection, chunks), partial(send, connection, chunks, *args, **kwargs))

    return notes


def _weighing(receive: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(receive)
    def weighs(connection: Any, *args: Any, **kwargs: Any) -> Any:
        if CALL.get() == (connection,):
            return receive(connection, *args, **kwargs)
        stream = getattr(connection, "_sock", None) or getattr(connection, "_reader", None)
        then = bool if isinstance(stream, tuple(STREAMS)) else lambda reply: RedisCommands.note_reply(bytes_of(reply, int(connection.protocol)))
        return _during((connection,), partial(receive, connection, *args, **kwargs), then)

    return weighs


def _reading(read: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(read)
    def reads(stream: Any, *args: Any, **kwargs: Any) -> Any:
        if len(CALL.get()) != 1:  # no connection of redis-py is reading
            return read(stream, *args, **kwargs)
        return _during(
            CALL.get(), partial(read, stream, *args, **kwargs), lambda found: RedisCommands.note_reply(found if isinstance(found, int) else len(found))
        )

    return reads


def _during(call: tuple[Any, ...], act: Callable[[], Any], then: Callable[[Any], Any] = bool) -> Any:
    """Return what `act` returns, and pass it to `then`. A coroutine does so when it runs."""

    async def later(running: Any) -> Any:
        before = CALL.get()
        CALL.set(call)
        try:
            found = await running
        finally:
            CALL.set(before)
        then(found)
        return found

    before = CALL.get()
    CALL.set(call)
    try:
        found = act()
    finally:
        CALL.set(before)
    if inspect.iscoroutine(found):
        return later(found)
    then(found)
    return found


def bytes_of(reply: Any, protocol: int = 3) -> int:
    """The number of bytes of a reply in RESP, if each string is sent as a bulk string."""
    if isinstance(reply, dict):
        entries = [part for entry in reply.items() for part in entry]
        return bytes_of(entries, protocol) if protocol == 2 else len(f"%{len(reply)}\r\n") + sum(bytes_of(each, protocol) for each in entries)
    if isinstance(reply, (list, set)):
        return len(f"*{len(reply)}\r\n") + sum(bytes_of(each, protocol) for each in reply)
    if isinstance(reply, (bytes, str)):
        size = len(reply.encode() if isinstance(reply, str) else reply)
        return len(f"${size}\r\n\r\n") + size
    if reply is None or isinstance(reply, bool):
        return len("#t\r\n") if reply is not None else len("_\r\n") if protocol == 3 else len("$-1\r\n")
    return len(f":{reply}\r\n")


def command_names(wire: bytes) -> list[str]:
    """The names of the commands that redis-py is about to send. In RESP each command is `*arguments`, then `$length`, its name, and so on."""
    names, at = [], 0
    while at < len(wire):
        arguments, at = _number(wire, at)
        for place in range(arguments):
            length, at = _number(wire, at)
            if place == 0:
                names.append(wire[at : at + length].decode())
            at += length + 2
    return names


def _number(wire: bytes, at: int) -> tuple[int, int]:
    end = wire.index(b"\r\n", at)
    return int(wire[at + 1 : end]), end + 2


# Python


@dataclass
class PythonCalls:
    """Counts calls of Python functions with the interpreter's profiler. The count does not depend on how busy the machine is.

    Calls made within the packages in `without` are not counted, because a fake server's work is not the caller's.
    """

    without: tuple[str, ...] = ("fakeredis",)

    def of(self, act: Callable[[], Any], prepare: Callable[[], Any] = bool, *, threads: bool | None = None) -> Counter[str]:
        """The functions that `act` calls when it runs for the third time, by file and name. `prepare` runs before each time."""
        for _ in range(2):
            prepare()
            _done(act())
        prepare()
        seen: Counter[str] = Counter()
        others: dict[str, Counter[str]] = {}

        def starting(*event: Any) -> None:  # pragma: no cover  # no profiler's function is traced
            watch = self.watcher(others.setdefault(threading.current_thread().name, Counter()))
            sys.setprofile(watch)
            watch(*event)

        watch, before, collecting = self.watcher(seen), sys.getprofile(), gc.isenabled()
        gc.collect()
        gc.disable()  # otherwise the callbacks of other code's garbage would be counted
        threading.setprofile(starting)
        sys.setprofile(watch)
        try:
            act()
        finally:
            is_attached = sys.getprofile() is watch
            sys.setprofile(before)
            threading.setprofile(before)  # type: ignore[arg-type]  # None is allowed
            (gc.enable if collecting else gc.disable)()
        if not is_attached or not +seen:
            pytest.fail("not seen: act() made no Python call, or replaced the profiler of this instrument (cProfile does). Count it without.", pytrace=False)
        if others and threads is None:
            pytest.fail(
                f"not seen: act() used another thread ({', '.join(others)}); pass threads=True to count it, or threads=False to ignore it.", pytrace=False
            )
        return sum(others.values(), +seen) if threads else +seen

    def watcher(self, seen: Counter[str]) -> Callable[[FrameType, str, Any], None]:
        """A function for `sys.setprofile` that counts calls in `seen`."""
        inside = 0

        def watch(frame: FrameType, event: str, _: Any) -> None:
            nonlocal inside
            in_fake = any(f"/{package}/" in frame.f_code.co_filename for package in self.without)
            if event == "call":
                inside += in_fake
                seen[f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}"] += not inside
            elif event == "return":
                inside -= in_fake

        return watch

    def at_most(self, promised: int, act: Callable[[], Any], *, prepare: Callable[[], Any] = bool, because: str, threads: bool | None = None) -> None:
        """Fail if `act` makes more calls than `promised`."""
        seen = self.of(act, prepare, threads=threads)
        if seen.total() > promised:
            pytest.fail(_calls_broken(promised, because, seen), pytrace=False)


def _done(result: Any) -> None:
    """Fail if a function has returned before it has run."""
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        getattr(result, "close", bool)()  # otherwise Python warns that it was never awaited
        pytest.fail(f"not seen: the function returned a {type(result).__name__}, which has not run. Run it: lambda: asyncio.run(…), or list(…).", pytrace=False)


def _calls_broken(promised: int, because: str, seen: Counter[str]) -> str:
    return "\n".join(
        [
            f"promised: at most {_many(promised, 'Python function call', 'Python function calls')}, because {because}",
            f"happened: {_many(seen.total(), 'call', 'calls')}",
            *(f"  {count:>4} × {name}" for name, count in seen.most_common(10)),
            "to do:    remove the new calls, or update the promised count and its `because`. Another version of a library changes the count, too.",
        ]
    )


# Time


@dataclass(frozen=True)
class Timings:
    """Seconds of each round, of a function (`this`) and of its baseline. Each budget is noted in `notes`, with which pytest-benchmark saves its results."""

    this: Sequence[float]
    baseline: Sequence[float]
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def milliseconds(self) -> float:
        """The median time of `this`."""
        return statistics.median(self.this) * 1000

    @property
    def ratios(self) -> list[float]:
        """The time of `this` divided by its baseline, for each round. Both were timed within moments, so a busy machine was busy for both."""
        return [this / baseline for this, baseline in zip(self.this, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """The 99% confidence interval of the median ratio: see `interval_of`."""
        return interval_of(self.ratios)

    def at_most(self, budget: float, *, because: str) -> None:
        """Fail if the whole interval of the ratio is above `budget`. Without rounds nothing is judged."""
        self.notes["at most"] = budget
        if self.this and self.interval[0] > budget:
            low, high = self.interval
            baseline = statistics.median(self.baseline) * 1000
            happened = f"{self.ratio:.3f} × ({low:.3f} to {high:.3f}; {self.milliseconds:.2f} ms, baseline {baseline:.2f} ms)"
            pytest.fail(_too_slow(f"{budget:g} × the baseline", because, happened, self), pytrace=False)

    def within(self, milliseconds: float, *, because: str) -> None:
        """Fail if the median of `this` is above `milliseconds`. Without rounds nothing is judged."""
        self.notes["within"] = milliseconds
        if self.this and self.milliseconds > milliseconds:
            pytest.fail(_too_slow(f"{milliseconds:g} ms", because, f"{self.milliseconds:.2f} ms", self), pytrace=False)


def interval_of(values: Sequence[float], confidence: float = 0.99, resamples: int = 1000) -> tuple[float, float]:
    """The confidence interval of the median, by the bootstrap's percentiles (Efron, "Bootstrap Methods", Annals of Statistics 1979).

    The random draws depend only on the number of values, so the same values always give the same interval.
    """
    draw = random.Random(len(values))
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    outside = round((1 - confidence) / 2 * resamples)
    return medians[outside], medians[-1 - outside]


def _too_slow(promised: str, because: str, happened: str, timings: Timings) -> str:
    return "\n".join(
        [
            f"promised: at most {promised}, because {because}",
            f"happened: {happened}, the median of {_many(len(timings.this), 'interleaved round', 'interleaved rounds')}",
            "to do:    first check the promises about queries and round trips. If they hold, profile it.",
        ]
    )


WARM_UP = 2
"""The number of rounds that are not measured."""


@contextmanager
def uncaptured_logs() -> Iterator[None]:
    """Take pytest's own handlers of log lines away during the block. They format each line twice more, which would be measured."""
    root = logging.getLogger()
    held = [handler for handler in root.handlers if type(handler).__module__ == "_pytest.logging"]
    for handler in held:
        root.removeHandler(handler)
    try:
        yield
    finally:
        for handler in held:
            root.addHandler(handler)


@dataclass
class Latency:
    """Times a function and its baseline in one run, so that a busy machine is busy for both."""

    clock: Callable[[], float] = time.perf_counter

    def interleaved(
        self,
        benchmark: Any,
        this: Callable[[], Any],
        *,
        baseline: Callable[[], Any],
        before: Callable[[], Any] = bool,
        prepare: Callable[[], Any] = bool,
        rounds: int = 60,
    ) -> Timings:
        """Each round calls `before`, times `baseline`, calls `prepare`, and times `this` with pytest-benchmark's fixture. The benchmark's name shows the ratio.

        Without benchmarks each function runs once, and the timings have no rounds.
        """
        baselines: list[float] = []

        def setup() -> None:
            before()
            started = self.clock()
            result = baseline()
            baselines.append(self.clock() - started)
            _done(result)
            prepare()

        with uncaptured_logs():
            _done(benchmark.pedantic(this, setup=setup, rounds=rounds, warmup_rounds=WARM_UP))
        if not benchmark.stats:
            return Timings([], [])
        measured = baselines[WARM_UP : WARM_UP + rounds]  # --benchmark-cprofile runs one more
        timings = Timings(benchmark.stats.stats.data, measured, benchmark.extra_info)
        low, high = timings.interval
        benchmark.stats.name += f": {timings.ratio:.3f} ({low:.3f} to {high:.3f}) × the baseline"
        benchmark.extra_info |= {"ratio": timings.ratio, "interval": [low, high]}
        return timings


# MIT License
#
# Copyright (c) 2026 The authors of housing
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal
# in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
# copies of the Software, and to permit persons to
# whom the Software is furnished to do so, subject to the following conditions:
#
# The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS
# FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
# WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
