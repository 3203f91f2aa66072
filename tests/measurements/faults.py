"""`make faults`: inflicts each fault on the running service, and writes what reads and writes cost meanwhile to docs/faults.md.

Starts the service as it is deployed, with a PostgreSQL and a Redis of its own behind proxies, all on loopback, and ends them. Exits with 1 if a promise is
broken. The exact results are printed; the file has the bounds that they keep, so it is the same after each run.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import psycopg
import pytest

from tests import ROOT
from tests.fixtures.faults import BOUND, COLD, FAULTS, LIST, LIVE, UNCHANGED, WRITTEN, Fault, Promise, World, started
from tests.measurements.load import Failed, say

DOCUMENT = ROOT / "docs" / "faults.md"

KINDS = (WRITTEN, UNCHANGED, WRITTEN, UNCHANGED, COLD)
"""Reads of a page that shows the written prices, of one that does not, and of pages that nobody has read. LIVE is `/health/live/`."""

READS, PAUSE = 100, 0.025
"""Reads during a fault, and the seconds between them. None waits for the one before it."""

APART = 4
"""Two reads are at least this number of cold reads apart. At 40 a second, they would queue for a thread of a slow machine, and that would be measured."""

WRITE_PAUSE = 0.1
"""Seconds between two writes of each writer."""

PATIENCE = 15.0
"""Seconds after which a client gives up. The service responds earlier: a read waits for other reads for FRESHNESS_LONGEST_WAIT, 5 s, and then for the database
for REPLY_TIMEOUT, 6 s."""

DELAYED = 4
"""How many of a hundred reads a busy machine may delay. A timeout that is too long, or that each probe of a broken breaker meets, would delay more."""

AT_ONCE = 0.1
"""Seconds that tell a read that waited for Redis, which takes 0.2 s, from one that did not, on a machine that runs everything at once."""

LAST = 3
"""The last reads take at most this many times as long as a cold read before the fault, while nobody wrote. They come from the database, too."""

WORK = "work"
"""The kind of `some_work`."""

HEALTH = 2.0
"""Seconds within which a health check responds. It waits up to 0.5 s for the database and twice 0.2 s for Redis; the rest is for a busy machine."""

QUIET = 1.0
"""Seconds of nothing but hits after which the service has recovered."""

FROM_OUTSIDE = "UPDATE housing_property SET price = %s WHERE id = %s"
"""A write by another program. A trigger leaves its row in the outbox."""

WRITER = [sys.executable, "-m", "tests.measurements.faults", "--write"]


# Reads and writes


@dataclass(frozen=True)
class Read:
    """A response, or none: `status` is 0 if the client gave up. All instants are of the same clock."""

    kind: str
    began: float
    ended: float
    status: int
    retry_after: bool = False
    cache_status: str = ""
    prices: dict[int, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The time that it took."""
        return self.ended - self.began

    @property
    def is_answered(self) -> bool:
        """Whether it has a page, or 503 and the time after which to try again."""
        return self.status == 200 or (self.status == 503 and self.retry_after)


@dataclass(frozen=True)
class Write:
    """An attempt to write a price."""

    property: int
    price: float
    ended: float
    succeeded: bool
    is_leased: bool = False
    """Whether this application could reach Redis."""


def get(world: World, path: str, kind: str = "") -> Read:
    """Send a GET over a connection of its own, so that each worker gets some."""
    connection = http.client.HTTPConnection(world.address, timeout=PATIENCE)
    began = time.monotonic()
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return Read(kind, began, time.monotonic(), 0)
    finally:
        connection.close()
    ended, page = time.monotonic(), json.loads(body)
    rows = page.get("results", [page]) if response.status == 200 and path.startswith(LIST) else []
    prices = {row["id"]: float(row["price"]) for row in rows if row["id"] in world.watched}
    return Read(kind, began, ended, response.status, "Retry-After" in response.headers, response.headers.get("Cache-Status", ""), prices)


class OurWriter:
    """A process of this application, which writes one price for each line that it gets."""

    def __init__(self, world: World) -> None:
        self.world = world
        process = subprocess.Popen(WRITER, cwd=ROOT, env=world.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.process = world.servers.enter_context(process)
        world.servers.callback(self.end)

    def end(self) -> None:
        """Let the process end, which it does at the end of its input."""
        assert self.process.stdin
        self.process.stdin.close()

    def write(self, number: int = 0) -> Write:
        """Write the next price of this one of the watched properties, and wait for the result."""
        assert self.process.stdin
        assert self.process.stdout
        key, price = self.world.watched[number], next(self.world.prices)
        print(key, price, file=self.process.stdin, flush=True)  # to a process
        ended, succeeded, is_leased = json.loads(self.process.stdout.readline())
        return Write(key, price, ended, succeeded, is_leased)


def write_as_this_application() -> None:
    """Write a price for each line of standard input, and print when it was written, whether that succeeded, and whether Redis was reachable."""
    import django

    django.setup()
    logging.disable()
    from django.db import DatabaseError, close_old_connections

    from housing.freshness.journal import journal
    from housing.models import Property

    for line in sys.stdin:
        key, price = map(int, line.split())
        close_old_connections()
        try:
            Property.objects.filter(pk=key).update(price=price)
        except DatabaseError:
            succeeded = False
        else:
            succeeded = True
        written = time.monotonic()
        journal._line.read_late()  # so that the writes are as frequent as if each waited for its close, however late Redis is
        print(json.dumps([written, succeeded, journal.breaker.opened is None]), flush=True)  # noqa: T201  # for the process that started this one


def write_as_another_program(world: World) -> Write:
    """Write the next price, as `psql` does. Its trigger leaves a row in the outbox."""
    key, price = world.watched[1], next(world.prices)
    try:
        world.query(FROM_OUTSIDE, price, key)
    except psycopg.Error:
        return Write(key, price, time.monotonic(), succeeded=False)
    return Write(key, price, time.monotonic(), succeeded=True)


@contextmanager
def writing(write: Callable[[], Write], until: threading.Event) -> Iterator[list[Write]]:
    """Write again and again in a thread, from the beginning of the block until the event. The list is complete after the block."""
    written: list[Write] = []

    def go_on() -> None:
        while not until.is_set():
            written.append(write())
            until.wait(WRITE_PAUSE)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield written
    finally:
        until.set()
        thread.join()


# The measurement


COLUMNS = (
    "reads",
    "reads of an unchanged page",
    "slowest read loses",
    "hundredth read",
    "writes",
    "stale after a write of this application",
    "stale after a write of another program",
    "only hits again after",
    "`/health/`",
    "`/health/live/`",
)


def promised(promise: Promise) -> list[str]:
    """The promise in each of the columns."""
    return [
        promise.answers,
        "200" if promise.unchanged else promise.answers,
        f"< {promise.slowest * 1000:g} ms",
        promise.last,
        "need the database" if promise.needs_database else "all succeed",
        f"≤ {promise.own:g} s" if promise.own else "none",
        f"≤ {BOUND:g} s",
        f"< {promise.hits_after:g} s",
        f"< {HEALTH:g} s",
        f"< {HEALTH:g} s",
    ]


class Cell(NamedTuple):
    """A measured value, and whether it keeps the promise."""

    measured: str
    holds: bool

    @classmethod
    def of_age(cls, seconds: float | None, bound: float) -> Cell:
        """The cell of the oldest stale read. Without a read that could have been stale, nothing holds."""
        return cls("no read to compare", False) if seconds is None else cls(f"{seconds:.2f} s", seconds <= bound)


@dataclass(frozen=True)
class Result:
    """The measured cost of one fault."""

    fault: Fault
    usual: dict[str, float]
    """Kind → the median of such reads before the fault, in seconds."""
    during: list[Read]
    live: list[Read]
    """The responses of `/health/live/` during the fault, 20 a second."""
    work: list[float]
    """The seconds that `some_work` took meanwhile."""
    ready: Read
    """The response of `/health/`."""
    ours: list[Write]
    others: list[Write]
    recovered: float
    """The instant at which the fault ended."""
    after: list[Read]

    @property
    def answered(self) -> int:
        """The number of reads with a response during the fault."""
        return sum(read.is_answered for read in self.during)

    @property
    def refused(self) -> int:
        """The number of reads with 503."""
        return sum(read.status == 503 for read in self.during)

    @property
    def slowest(self) -> float:
        """The seconds that the slowest read lost, without the reads that a busy machine may have delayed."""
        return sorted(read.seconds - self.usual[read.kind] for read in self.during if read.is_answered)[-DELAYED - 1]

    @property
    def slowdown(self) -> float:
        """How many times as long `some_work` took during the last ten reads as before the fault, because the machine is busy."""
        return max(1.0, median(self.work[-10:]) / self.usual[WORK])

    @property
    def hundredth(self) -> float:
        """The median time of the last ten reads of the unchanged page."""
        return median([read.seconds for read in self.during if read.kind == UNCHANGED][-10:])

    @property
    def unchanged(self) -> tuple[int, int]:
        """How many reads of the unchanged page had it, and their number."""
        statuses = [read.status for read in self.during if read.kind == UNCHANGED]
        return statuses.count(200), len(statuses)

    @property
    def hits_after(self) -> float:
        """The seconds until every read was a hit again."""
        return max([read.ended - self.recovered for read in self.after if not is_hit(read)], default=0.0)

    def oldest_stale(self, writes: Sequence[Write], reads: Sequence[Read]) -> float | None:
        """The age of the oldest stale read: the seconds between the first write that it lacks and its own beginning. 0 if no read was stale.

        None if no read began after a write of a property that it shows, so that none could be found to be stale.
        """
        committed = [write for write in writes if write.succeeded]
        ages = [
            read.began - write.ended if read.prices[write.property] < write.price else 0.0
            for read in reads
            for write in committed
            if write.property in read.prices and write.ended < read.began
        ]
        return max(ages, default=None)

    @property
    def stale(self) -> tuple[float | None, float | None]:
        """The age of the oldest stale read after a write of this application, and after one of another program.

        During the fault an entry may be served as stale-if-error, which says so.
        """
        reads = [*(read for read in self.during if "stale-if-error" not in read.cache_status), *self.after]
        return self.oldest_stale([write for write in self.ours if write.is_leased or self.fault.promise.own], reads), self.oldest_stale(self.others, reads)

    @property
    def written(self) -> int:
        """The number of successful writes of this application."""
        return sum(write.succeeded for write in self.ours)

    def cells(self) -> list[Cell]:
        """The measured values in the order of `COLUMNS`, and whether each keeps the promise."""
        promise, (own, others), (had, asked) = self.fault.promise, self.stale, self.unchanged
        live = max(read.seconds for read in self.live)
        last, cold = self.hundredth - promise.delay, self.usual[COLD]
        return [
            Cell(f"{self.answered} of {len(self.during)}", self.answered == len(self.during) and (promise.needs_database or not self.refused)),
            Cell(f"{had} of {asked}", had == asked or not promise.unchanged),
            Cell(f"{self.slowest * 1000:.0f} ms", self.slowest < promise.slowest),
            Cell(f"{self.hundredth * 1000:.1f} ms", promise.needs_database or last < max(LAST * cold * self.slowdown, AT_ONCE)),
            Cell(f"{self.written} of {len(self.ours)}", promise.needs_database or self.written == len(self.ours)),
            Cell.of_age(own, promise.own),
            Cell.of_age(others, BOUND),
            Cell(f"{self.hits_after:.1f} s", self.hits_after < promise.hits_after),
            Cell(f"{self.ready.status}, {self.ready.seconds:.2f} s", self.ready.status in {200, 503} and self.ready.seconds < HEALTH),
            Cell(f"{live:.2f} s", live < HEALTH and {read.status for read in self.live} == {200}),
        ]

    def row(self) -> str:
        """The row of the document: the promises, and in bold what was measured instead."""
        pairs = zip(promised(self.fault.promise), self.cells(), strict=True)
        return row([self.fault.name, *(promise if cell.holds else f"**{cell.measured}**" for promise, cell in pairs)])

    def broken(self) -> list[str]:
        """The promises that do not hold, as lines."""
        triples = zip(COLUMNS, promised(self.fault.promise), self.cells(), strict=True)
        lines = [f"{column}: {promise} is promised, {cell.measured} was measured" for column, promise, cell in triples if not cell.holds]
        return lines + [f"{read.kind}: {read.status or 'no response'} after {read.seconds:.2f} s" for read in self.during if lines and not read.is_answered]


def is_hit(read: Read) -> bool:
    """Whether the response came from the cache as usual."""
    return read.cache_status.endswith("; hit")


def settle(world: World, patience: float = 20.0) -> list[Read]:
    """Read the pages in turn until there were only hits for a while. Returns the reads."""
    reads: list[Read] = []
    end, pages = time.monotonic() + patience, itertools.cycle(world.pages)
    while True:
        reads.append(get(world, next(pages)))
        since = next((read.ended for read in reversed(reads) if not is_hit(read)), reads[0].began)
        if reads[-1].ended - since > QUIET or reads[-1].ended > end:
            return reads
        time.sleep(0.01)


def expect_a_hit(read: Read) -> None:
    """Raise Failed if the pages do not become warm before a fault, because nothing could be measured."""
    if not is_hit(read):
        raise Failed(f"The pages do not become warm: {read.cache_status}.")


def measure(world: World, fault: Fault, writer: OurWriter) -> Result:
    """Warm the pages, inflict the fault during a hundred reads and some writes, end it, and read until only hits come back."""
    if fault.prepare:
        settle(world)
        fault.prepare(world)
    before, others_before = [writer.write(number) for number in (0, 2)], [write_as_another_program(world)]
    expect_a_hit(settle(world)[-1])
    with ThreadPoolExecutor(2 * READS) as clients, ExitStack() as inflicted:
        list(clients.map(lambda _: get(world, world.path(COLD)), range(32)))  # so that each thread is connected to the database
        usual = {kind: median([get(world, world.path(kind)).seconds for _ in range(20)]) for kind in set(KINDS)}
        usual[WORK] = median([some_work() for _ in range(20)])
        ended = threading.Event()
        with writing(writer.write, ended) as ours, writing(lambda: write_as_another_program(world), ended) as others:
            reading, checking = clients.submit(read_at_a_pace, world, clients, usual), clients.submit(check_until, world, ended)
            inflicted.enter_context(fault.inflicted(world))
            ready = clients.submit(get, world, "/health/")
            during = reading.result()
            wait([ready, *during], PATIENCE)  # only a timeout of the service ends a read
            ended.set()
            inflicted.close()
            recovered = time.monotonic()
        after = settle(world)
    compare_entries(world, fault)
    return Result(
        fault, usual, [read.result() for read in during], *checking.result(), ready.result(), [*before, *ours], [*others_before, *others], recovered, after
    )


def compare_entries(world: World, fault: Fault) -> None:
    """Compare entries with the database, as an operator does after an outage. Raises Failed if one is stale, or if none could be compared."""
    command = [sys.executable, "manage.py", "cache", "verify", "--sample", "5000"]
    ended = subprocess.run(command, cwd=ROOT, env=world.environment, capture_output=True, text=True, timeout=60, check=False)
    if ended.returncode or " equal" not in ended.stdout:
        raise Failed(f"After the fault '{fault.name}', `manage.py cache verify` printed:\n{ended.stdout}{ended.stderr}")


def read_at_a_pace(world: World, clients: ThreadPoolExecutor, usual: Mapping[str, float]) -> list[Future[Read]]:
    """Start a hundred reads, one after the other, whether or not the ones before have a response. If cold reads are slow here, fewer a second."""
    reads, pause = [], max(PAUSE, APART * usual[COLD])
    for kind in itertools.islice(itertools.cycle(KINDS), READS):
        reads.append(clients.submit(get, world, world.path(kind), kind))
        time.sleep(pause)
    return reads


def check_until(world: World, ended: threading.Event) -> tuple[list[Read], list[float]]:
    """Read `/health/live/` and do some work until the event."""
    checks, work = [get(world, world.path(LIVE), LIVE)], [some_work()]
    while not ended.wait(2 * PAUSE):
        checks.append(get(world, world.path(LIVE), LIVE))
        work.append(some_work())
    return checks, work


def some_work() -> float:
    """Do the same work as each time, of a millisecond or two. Returns the seconds that it took, which say how busy the machine is."""
    began = time.monotonic()
    sum(range(100_000))
    return time.monotonic() - began


# The output


HEAD = """# What fails, and what it costs

`make faults` inflicts each fault on the running service: two processes of four threads, PostgreSQL and Redis. During a fault it sends a
hundred reads, 40 a second, or fewer on a slow machine: one in the time of {apart} cold reads. Two fifths are of a page that shows the written prices, two
fifths of one that does not, and the rest of pages that nobody has read. Meanwhile a process of this application and another program write prices. Then
the fault ends, the writes stop, and all pages are read until only hits come back. At last `manage.py cache verify` compares all entries with the database.

A cell is a bound that the last run kept. **Bold** is a measured value that broke it. `tests/test_outage_table.py` asserts the same.

- *slowest read loses*: compared with a read of the same page before the fault. It is the first one, or one that tried whether the server is back. The
  {delayed} slowest are left to the machine, which runs the service, the servers and the clients.
- *hundredth read*: the median of the last ten of the unchanged page. "No more than a cold read" is at most {last} times what a cold read took before.
- *stale after a write*: how old a response may be, from the COMMIT to the beginning of the read, during the fault and after it. A response that is served
  as stale-if-error says so with `Cache-Status` and `Age`; it counts from the end of the fault on.
- *only hits again after*: from the end of the fault on. A new journal trusts nothing for the five seconds of a lease.
"""


def document(rows: Sequence[str]) -> str:
    """The file, with these rows."""
    return "\n".join([HEAD.format(apart=APART, last=LAST, delayed=DELAYED), row(("fault", *COLUMNS)), row(["---"] * (len(COLUMNS) + 1)), *rows]) + "\n"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(results: Sequence[Result]) -> str:
    """The exact results for a terminal, with a `*` after each that breaks a promise."""
    rows = [["", *COLUMNS]] + [[result.fault.name, *(cell.measured + "*" * (not cell.holds) for cell in result.cells())] for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows)


def measure_all(faults: Sequence[Fault]) -> list[Result]:
    """Start the servers, inflict one fault after the other, and stop the servers. Raises Failed or UsageError."""
    with started() as world:
        writer, results = OurWriter(world), []
        for fault in faults:
            say(f"{fault.name} …")
            results.append(measure(world, fault, writer))
        return results


# The command


def main(arguments: Sequence[str] | None = None) -> None:
    """Inflict the faults, and exit with 0 if all promises were kept, otherwise with 1. An error is one line. Ctrl-C leaves nothing behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.measurements.faults", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("words", nargs="*", metavar="WORD", help="inflict only faults whose name has one of these words, and do not write the file")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.write:
        write_as_this_application()
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = measure_all([fault for fault in FAULTS if not options.words or any(word in fault.name for word in options.words)])
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing is left behind.")
    except (Failed, pytest.UsageError, psycopg.Error) as why:
        sys.exit(" ".join(str(why).split()))
    print(table(results))  # noqa: T201  # for a person
    if not options.words:
        DOCUMENT.write_text(document([result.row() for result in results]), encoding="utf-8")
    sys.exit(any(result.broken() for result in results))


if __name__ == "__main__":
    main()
