"""Instruments for any Django project. They count work, explain a failure, and change nothing.

Copy this file, add `-p tests.instruments` to pytest's `addopts`, and write in a test:

    with queries.exactly(1, because="one SELECT joins location, agent and office"):
        client.get("/api/properties/")

`queries` counts SQL on every database connection of the test's thread, `redis_commands` counts what redis-py sends, `python_calls` counts calls of
Python functions, and `latency` compares two functions in one run. A promise needs its reason: it is a TypeError to leave `because` out.
"""

from __future__ import annotations

import gc
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
"""Transaction control reads nothing and writes nothing, so it is not counted as a query."""

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
    """Compares a function with a baseline: `latency.interleaved(benchmark, warm, baseline=naive).at_most(0.2, because="…")`."""
    return Latency()


# SQL


@dataclass
class Queries:
    """Counts SQL statements, without transaction control."""

    @contextmanager
    def exactly(self, promised: int, *, because: str) -> Iterator[Statements]:
        """Fail unless the block sends `promised` statements. Yields their list, which also counts the fetched rows."""
        seen = Statements()
        with ExitStack() as stack:
            for connection in connections.all():
                stack.enter_context(connection.execute_wrapper(_recorder(seen)))
            stack.enter_context(_counting_rows(seen))
            yield seen
        if len(seen) != promised:
            pytest.fail(_queries_broken(promised, because, seen), pytrace=False)


class Statements(list[str]):
    """SQL texts, and the number of rows that were fetched."""

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
    """A statement without its values and without a long list of columns. An N+1 repeats the same shape."""
    shape = LIST.sub("(?…)", LITERAL.sub("?", " ".join(sql.split())))
    return COLUMNS.sub(r"\1 … \2 ", shape)


def _queries_broken(promised: int, because: str, seen: list[str]) -> str:
    shapes = Counter(map(shape_of, seen))
    repeated = any(count > 1 and _is_select(shape) for shape, count in shapes.items())
    lines = [
        f"promised: exactly {_many(promised, 'query', 'queries')}, because {because}",
        f"happened: {_many(len(seen), 'query', 'queries')}",
        *(f"  {count:>4} × {shape}{'   ← N+1: repeated once per row' if count > 1 and _is_select(shape) else ''}" for shape, count in shapes.most_common()),
    ]
    if len(seen) < promised:
        advice = "check that the response is complete. If it is, lower the promised count and update its `because`."
    elif repeated:
        advice = "load related rows with one query: select_related() for a foreign key, prefetch_related() for a set."
    elif promised == 0:
        advice = "no query was expected. If a cache should have answered, check whether the value was never stored or was invalidated."
    else:
        advice = "find the new statement. Remove it, or update the promised count and its `because`."
    return "\n".join([*lines, f"to do:    {advice}"])


def _is_select(shape: str) -> bool:
    return shape.upper().startswith("SELECT")


def _many(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# Redis


class Traffic(list[str]):
    """The traffic with Redis: the command names of each round trip, and the number of bytes sent and received, in RESP."""

    sent = 0
    received = 0


@dataclass
class RedisCommands:
    """Counts round trips to Redis. A pipeline is one round trip."""

    @contextmanager
    def exactly(self, promised: int, *, because: str) -> Iterator[Traffic]:
        """Fail unless the block makes `promised` round trips. Yields their list, which also counts the bytes."""
        seen = Traffic()
        with _watching(seen):
            yield seen
        if len(seen) != promised:
            pytest.fail(_round_trips_broken(promised, because, seen), pytrace=False)


@contextmanager
def _watching(seen: Traffic) -> Iterator[None]:
    from redis.connection import Connection  # only this instrument needs redis-py

    with ExitStack() as stack:
        for name, watch in (("send_packed_command", _noting), ("read_response", _weighing)):
            methods = {getattr(kind, name): kind for kind in (*Connection.__subclasses__(), Connection)}  # a fake server may have its own
            for method, kind in methods.items():
                stack.enter_context(patch.object(kind, name, watch(seen, method)))
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
    """The number of bytes of a reply in RESP. A reply consists of strings, numbers, lists and null."""
    if isinstance(response, list):
        return len(f"*{len(response)}\r\n") + sum(map(bytes_of, response))
    if isinstance(response, bytes):
        return len(f"${len(response)}\r\n\r\n") + len(response)
    return len("$-1\r\n") if response is None else len(f":{response}\r\n")


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


def _round_trips_broken(promised: int, because: str, seen: list[str]) -> str:
    return "\n".join(
        [
            f"promised: exactly {_many(promised, 'round trip', 'round trips')} to Redis, because {because}",
            f"happened: {_many(len(seen), 'round trip', 'round trips')}",
            *(f"  {place:>4}. {names}" for place, names in enumerate(seen, 1)),
            "to do:    HELLO and CLIENT open a new connection: send any command before you count. Otherwise combine the commands in one script or pipeline.",
        ]
    )


# Python


@dataclass
class PythonCalls:
    """Counts calls of Python functions with the interpreter's profiler. The count does not depend on how busy the machine is.

    Calls made within the packages in `without` are not counted, because a fake server's work is not the caller's.
    """

    without: tuple[str, ...] = ("fakeredis",)

    def of(self, act: Callable[[], Any], prepare: Callable[[], Any] = bool) -> Counter[str]:
        """The functions that `act` calls when it runs for the third time, by file and name. `prepare` runs before each time."""
        for _ in range(2):
            prepare()
            act()
        prepare()
        seen: Counter[str] = Counter()
        before, collecting = sys.getprofile(), gc.isenabled()
        gc.collect()
        gc.disable()  # otherwise the callbacks of other code's garbage would be counted
        sys.setprofile(self.watcher(seen))
        try:
            act()
        finally:
            sys.setprofile(before)
            (gc.enable if collecting else gc.disable)()
        return +seen

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

    def at_most(self, promised: int, act: Callable[[], Any], *, prepare: Callable[[], Any] = bool, because: str) -> None:
        """Fail if `act` makes more calls than `promised`."""
        seen = self.of(act, prepare)
        if seen.total() > promised:
            pytest.fail(_calls_broken(promised, because, seen), pytrace=False)


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
            baseline()
            baselines.append(self.clock() - started)
            prepare()

        benchmark.pedantic(this, setup=setup, rounds=rounds, warmup_rounds=2)
        if not benchmark.stats:
            return Timings([], [])
        timings = Timings(benchmark.stats.stats.data, baselines[-rounds:], benchmark.extra_info)
        low, high = timings.interval
        benchmark.stats.name += f": {timings.ratio:.3f} ({low:.3f} to {high:.3f}) × the baseline"
        benchmark.extra_info |= {"ratio": timings.ratio, "interval": [low, high]}
        return timings
