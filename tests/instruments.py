"""Instruments for any Django project: they count, and explain themselves. They observe, and alter nothing.

Copy this file, add `-p tests.instruments` to pytest's `addopts`, and a test may say

    with queries.exactly(1, because="one SELECT joins location, agent and office"):
        client.get("/api/properties/")

`queries` counts SQL on every database connection of the test's thread, `redis_commands` what redis-py sends, `python_calls` what the interpreter
is called for, and `latency` compares ways to do the same in one run. A promise needs its reason: leaving `because` out is a TypeError.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from django.db import connections
from django.db.backends.utils import CursorWrapper

if TYPE_CHECKING:
    from redis.connection import AbstractConnection

CONTROL = re.compile(r"\s*(BEGIN|START TRANSACTION|SET TRANSACTION|SAVEPOINT|RELEASE|ROLLBACK|COMMIT)\b", re.IGNORECASE)
"""Transaction control asks nothing and writes nothing: it is no query."""

LITERAL = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b|%s")
LIST = re.compile(r"\((?:\?(?:, )?)+\)")
COLUMNS = re.compile(r"^(SELECT) .{80,}? (FROM) ", re.DOTALL)


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
    """Compares two ways to do the same: `latency.interleaved(benchmark, warm, to=naive).at_most(0.2, because="…")`."""
    return Latency()


# SQL


@dataclass
class Queries:
    """SQL statements; transaction control is not counted."""

    @contextmanager
    def exactly(self, promised: int, *, because: str) -> Iterator[Statements]:
        """Fail unless the block sends `promised` statements. Gives the list of them, which fills as they are sent, and knows the rows that came back."""
        seen = Statements()
        with ExitStack() as stack:
            for connection in connections.all():
                stack.enter_context(connection.execute_wrapper(_recorder(seen)))
            stack.enter_context(_counting_rows(seen))
            yield seen
        if len(seen) != promised:
            pytest.fail(_queries_broken(promised, because, seen), pytrace=False)


class Statements(list[str]):
    """SQL texts, and how many rows were fetched."""

    rows = 0


@contextmanager
def _counting_rows(seen: Statements) -> Iterator[None]:
    def counting(name: str) -> Callable[..., Any]:
        def fetch(cursor: CursorWrapper, *args: Any) -> Any:
            found = CursorWrapper.__getattr__(cursor, name)(*args)
            seen.rows += len(found) if name != "fetchone" else found is not None
            return found

        return fetch

    fetches = {name: counting(name) for name in ("fetchone", "fetchmany", "fetchall")}
    with patch.multiple(CursorWrapper, create=True, **fetches):
        yield


def _recorder(seen: list[str]) -> Callable[..., Any]:
    def record(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if not CONTROL.match(sql):
            seen.append(sql)
        return execute(sql, params, many, context)

    return record


def shape_of(sql: str) -> str:
    """A statement without its values and, where they are many, its columns: what an N+1 repeats."""
    shape = LIST.sub("(?…)", LITERAL.sub("?", " ".join(sql.split())))
    return COLUMNS.sub(r"\1 … \2 ", shape)


def _queries_broken(promised: int, because: str, seen: list[str]) -> str:
    shapes = Counter(map(shape_of, seen))
    repeated = any(count > 1 for count in shapes.values())
    lines = [
        f"promised: exactly {_many(promised, 'query', 'queries')}, because {because}",
        f"happened: {_many(len(seen), 'query', 'queries')}",
        *(f"  {count:>4} × {shape}{'   ← N+1: the same once more for each row' if count > 1 else ''}" for shape, count in shapes.most_common()),
    ]
    if len(seen) < promised:
        advice = "it got cheaper, or it was not asked at all. See that the answer is whole; then promise the new count, with its reason."
    elif repeated:
        advice = "ask once for all rows: select_related() for a foreign key, prefetch_related() for many."
    elif promised == 0:
        advice = "it was to come from the cache. See its Cache-Status: was it never stored, or made stale?"
    else:
        advice = "see which statement is new, and either do without it or promise it, with its reason."
    return "\n".join([*lines, f"to do:    {advice}"])


def _many(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# Redis


class Traffic(list[str]):
    """What went to Redis and back: each round trip as the names of its commands, and how many bytes in all, as RESP writes them."""

    sent = 0
    received = 0


@dataclass
class RedisCommands:
    """Round trips: what redis-py sends before it waits for an answer; a pipeline is one."""

    @contextmanager
    def exactly(self, promised: int, *, because: str) -> Iterator[Traffic]:
        """Fail unless the block makes `promised` round trips. Gives the list of them, which knows their bytes, too."""
        seen = Traffic()
        with _watching(seen):
            yield seen
        if len(seen) != promised:
            pytest.fail(_round_trips_broken(promised, because, seen), pytrace=False)


@contextmanager
def _watching(seen: Traffic) -> Iterator[None]:
    from redis.connection import Connection  # who counts SQL alone need not have redis-py

    with ExitStack() as stack:
        for name, watch in (("send_packed_command", _noting), ("read_response", _weighing)):
            ways = {getattr(kind, name): kind for kind in (*Connection.__subclasses__(), Connection)}  # a stand-in may have a way of its own
            for way, kind in ways.items():
                stack.enter_context(patch.object(kind, name, watch(seen, way)))
        yield


def _noting(seen: Traffic, send: Callable[..., Any]) -> Callable[..., Any]:
    def note(connection: AbstractConnection, command: Any, *args: Any, **kwargs: Any) -> Any:
        wire = command if isinstance(command, bytes) else b"".join(command)
        seen.append(" ".join(command_names(wire)))
        seen.sent += len(wire)
        return send(connection, command, *args, **kwargs)

    return note


def _weighing(seen: Traffic, receive: Callable[..., Any]) -> Callable[..., Any]:
    def weigh(connection: AbstractConnection, *args: Any, **kwargs: Any) -> Any:
        response = receive(connection, *args, **kwargs)
        seen.received += bytes_of(response)
        return response

    return weigh


def bytes_of(response: Any) -> int:
    """How many bytes of RESP an answer of strings, numbers, lists and nothing came in."""
    if isinstance(response, list):
        return len(f"*{len(response)}\r\n") + sum(map(bytes_of, response))
    if isinstance(response, bytes):
        return len(f"${len(response)}\r\n\r\n") + len(response)
    return len("$-1\r\n") if response is None else len(f":{response}\r\n")


def command_names(wire: bytes) -> list[str]:
    """The names of the commands in what redis-py is about to send: each is `*arguments`, then `$length`, name, …."""
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


def _round_trips_broken(promised: int, because: str, seen: list[str]) -> str:
    return "\n".join(
        [
            f"promised: exactly {_many(promised, 'round trip', 'round trips')} to Redis, because {because}",
            f"happened: {_many(len(seen), 'round trip', 'round trips')}",
            *(f"  {place:>4}. {names}" for place, names in enumerate(seen, 1)),
            "to do:    HELLO and CLIENT are a new connection: prime it first. Otherwise put into one script or pipeline what is asked together.",
        ]
    )


# Python


@dataclass
class PythonCalls:
    """Calls of functions that are written in Python, as the interpreter's own profiler sees them: work that a busy machine does not make more.

    What a stand-in for a server does is not the caller's work: calls from within the packages in `without` are not counted.
    """

    without: tuple[str, ...] = ("fakeredis",)

    def of(self, act: Callable[[], Any], prepare: Callable[[], Any] = bool) -> Counter[str]:
        """What `act` calls when it is called for the third time, by file and function. `prepare` goes before each."""
        for _ in range(2):
            prepare()
            act()
        prepare()
        seen: Counter[str] = Counter()
        before = sys.getprofile()
        sys.setprofile(self.watcher(seen))
        try:
            act()
        finally:
            sys.setprofile(before)
        return +seen

    def watcher(self, seen: Counter[str]) -> Callable[[FrameType, str, Any], None]:
        """What the interpreter is to tell of each call and return, for `sys.setprofile`."""
        inside = 0

        def watch(frame: FrameType, event: str, _: Any) -> None:
            nonlocal inside
            foreign = any(f"/{package}/" in frame.f_code.co_filename for package in self.without)
            if event == "call":
                inside += foreign
                seen[f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}"] += not inside
            elif event == "return":
                inside -= foreign

        return watch

    def at_most(self, promised: int, act: Callable[[], Any], *, prepare: Callable[[], Any] = bool, because: str) -> None:
        """Fail if `act` makes more calls than `promised`."""
        seen = self.of(act, prepare)
        if seen.total() > promised:
            pytest.fail(_calls_broken(promised, because, seen), pytrace=False)


def _calls_broken(promised: int, because: str, seen: Counter[str]) -> str:
    return "\n".join(
        [
            f"promised: at most {promised} calls of Python functions, because {because}",
            f"happened: {seen.total()} calls",
            *(f"  {count:>4} × {name}" for name, count in seen.most_common(10)),
            "to do:    compare with what the lock's versions called before; a call is 50 ns at the least, and what it does comes on top.",
        ]
    )


# Time


@dataclass(frozen=True)
class Timings:
    """Seconds, round by round, of one way (`this`) and of another to hold it against (`to`)."""

    this: Sequence[float]
    to: Sequence[float]

    @property
    def milliseconds(self) -> float:
        """The median of `this`."""
        return statistics.median(self.this) * 1000

    @property
    def ratios(self) -> list[float]:
        """How many times `to` it takes, round by round: both were timed within moments, so a busy machine was busy for both."""
        return [this / to for this, to in zip(self.this, self.to, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Between these the median would lie in 99 of 100 such runs: see `interval_of`."""
        return interval_of(self.ratios)

    def at_most(self, budget: float, *, because: str) -> None:
        """Fail if `this` takes more than `budget` times what `to` takes, for certain: the whole interval is beyond. Without rounds nothing is judged."""
        if self.this and self.interval[0] > budget:
            low, high = self.interval
            other = statistics.median(self.to) * 1000
            happened = f"{self.ratio:.3f} × ({low:.3f} to {high:.3f}; {self.milliseconds:.2f} ms to {other:.2f} ms)"
            pytest.fail(_too_slow(f"{budget:g} × the other", because, happened, self), pytrace=False)

    def within(self, milliseconds: float, *, because: str) -> None:
        """Fail if the median of `this` is above. Without rounds nothing is judged."""
        if self.this and self.milliseconds > milliseconds:
            pytest.fail(_too_slow(f"{milliseconds:g} ms", because, f"{self.milliseconds:.2f} ms", self), pytrace=False)


def interval_of(values: Sequence[float], confidence: float = 0.99, resamples: int = 1000) -> tuple[float, float]:
    """Between which values their median lies with this confidence: the bootstrap's percentiles (Efron, "Bootstrap Methods", Annals of Statistics 1979).

    The draws are the same for the same number of values, so that the same values give the same interval.
    """
    draw = random.Random(len(values))
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    beyond = round((1 - confidence) / 2 * resamples)
    return medians[beyond], medians[-1 - beyond]


def _too_slow(promised: str, because: str, happened: str, timings: Timings) -> str:
    return "\n".join(
        [
            f"promised: at most {promised}, because {because}",
            f"happened: {happened}, the median of {len(timings.this)} interleaved rounds",
            "to do:    see first that it does the work it is promised to do, for queries and round trips are counted; then profile it.",
        ]
    )


@dataclass
class Latency:
    """Compares two ways in one run, so that a busy machine is busy for both."""

    clock: Callable[[], float] = time.perf_counter

    def interleaved(
        self,
        benchmark: Any,
        this: Callable[[], Any],
        *,
        to: Callable[[], Any],
        before: Callable[[], Any] = bool,
        prepare: Callable[[], Any] = bool,
        rounds: int = 60,
    ) -> Timings:
        """Each round calls `before`, times `to`, calls `prepare`, and times `this` with pytest-benchmark's fixture, whose row then says the ratio.

        Where benchmarks are off, each runs once, and the timings have no rounds.
        """
        others: list[float] = []

        def setup() -> None:
            before()
            started = self.clock()
            to()
            others.append(self.clock() - started)
            prepare()

        benchmark.pedantic(this, setup=setup, rounds=rounds, warmup_rounds=2)
        if not benchmark.stats:
            return Timings([], [])
        timings = Timings(benchmark.stats.stats.data, others[-rounds:])
        low, high = timings.interval
        benchmark.stats.name += f": {timings.ratio:.3f} ({low:.3f} to {high:.3f}) × the other"
        benchmark.extra_info |= {"ratio": timings.ratio, "interval": [low, high]}
        return timings
