"""`make load`: a load test with many virtual users and a writer that changes prices. No read may be stale.

Starts all servers on loopback, and ends them: the service as it is deployed, and PostgreSQL and Redis unless DATABASE_URL and REDIS_URL are set.
Prints a table, and writes the results and a plot to `reports/`. Exits with 1 if a user was shown a price after a newer one was saved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import random
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import ROOT, stacks

REPORTS = ROOT / "reports"

PATHS = {
    "warm": "/api/properties/cached/",
    "cold": "/api/properties/cached/?min_price={unique}",
    "optimized": "/api/properties/live/optimized/",
    "naive": "/api/properties/live/naive/",
}
"""The paths that virtual users request. A cold page has a query string that no other request has."""

PAUSE, WAIT = 0.02, 0.1
"""Seconds between two writes, and between two reads of each user while prices change."""

DEPLOYED = ("gunicorn", "housing.wsgi", "--bind", "{host}:{port}")
"""The server as the image starts it, which finds gunicorn.conf.py."""

PREPARE = [sys.executable, "-c", "import json, sys; from housing.run import prepare; prepare(json.loads(sys.argv[1]))"]
USERS = [sys.executable, "-m", "tests.measurements.load", "--read"]
WRITER = [sys.executable, "-m", "tests.measurements.load", "--write"]
"""Separate processes prepare the data, read and write. Locust, which reads, replaces the standard library's sockets."""

TO_BEAT = {"warm": (4, 10), "cold": (20, 40), "naive": (500, 1500)}
"""Milliseconds reported elsewhere for fifty users who each wait a second between two reads."""


# Stale reads


@dataclass(frozen=True)
class Write:
    """A saved price of a property, and the instant at which `save()` returned."""

    property: int
    price: float
    saved: float


@dataclass(frozen=True)
class Read:
    """The prices of one response by property, and the instant at which the request was sent."""

    began: float
    prices: dict[int, float]


@dataclass(frozen=True)
class Stale:
    """A read that was shown an older price than the one that had been saved before it began."""

    read: Read
    write: Write


def stale_reads(writes: Sequence[Write], reads: Sequence[Read]) -> list[Stale]:
    """The stale ones of these reads. Prices only rise, so a lower price is an older one. All instants are from the same clock."""
    found, latest, ahead = [], {}, iter(sorted(writes, key=lambda write: write.saved))
    coming = next(ahead, None)
    for read in sorted(reads, key=lambda read: read.began):
        while coming and coming.saved < read.began:
            latest[coming.property], coming = coming, next(ahead, None)
        found += [Stale(read, latest[key]) for key, price in read.prices.items() if key in latest and price < latest[key].price]
    return found


def compared(writes: Sequence[Write], reads: Sequence[Read]) -> list[Read]:
    """The reads that could have been stale: those that began after a write, and show its property."""
    first = {write.property: write.saved for write in sorted(writes, key=lambda write: write.saved, reverse=True)}
    return [read for read in reads if any(first.get(key, math.inf) < read.began for key in read.prices)]


# Virtual users and the writer


@dataclass(frozen=True)
class Users:
    """The virtual users of one load test: their number, the seconds that each waits between two reads, and the duration in seconds.

    The first tenth of the duration is not counted. `{unique}` in the path becomes a number that no other read has. The prices of the properties in
    `watched` are recorded.
    """

    path: str
    count: int
    wait: float
    seconds: float
    watched: Sequence[int] = ()


@dataclass(frozen=True)
class Report:
    """The results of some virtual users: the milliseconds of each read, the failed reads by reason, the duration, and the reads of watched prices."""

    milliseconds: list[float]
    failures: dict[str, int]
    seconds: float
    reads: list[Read]

    @classmethod
    def parse(cls, text: bytes) -> Report:
        """Parse the output of `text`."""
        fields = json.loads(text)
        reads = [Read(began, {int(key): price for key, price in prices.items()}) for began, prices in fields.pop("reads")]
        return cls(**fields, reads=reads)

    def text(self) -> str:
        """JSON for `parse`."""
        return json.dumps(asdict(self) | {"reads": [(read.began, read.prices) for read in self.reads]})

    @property
    def per_second(self) -> float:
        """Responses per second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, percent: int) -> float:
        """The milliseconds that this percentage of the reads did not exceed."""
        return sorted(self.milliseconds)[max(0, -(-len(self.milliseconds) * percent // 100) - 1)]


def read_as(users: Users, url: str) -> Report:
    """Read as these virtual users, in this process."""
    import gevent.event
    from locust import FastHttpUser, constant, task
    from locust.env import Environment

    unique, started, warm_up = itertools.count(time.time_ns() % 500_000), time.monotonic(), users.seconds / 10
    answered = gevent.event.Event()
    taken: list[float] = []
    failures: Counter[str] = Counter()
    reads: list[Read] = []
    prices: dict[bytes, dict[int, float]] = {}

    class User(FastHttpUser):
        host = url
        wait_time = constant(users.wait)

        def on_start(self) -> None:
            gevent.sleep(users.wait * random.random())  # so that they do not all send at the same time

        @task
        def read(self) -> None:
            began = time.monotonic()
            with self.client.get(users.path.replace("{unique}", f"{next(unique) / 100:.2f}"), catch_response=True) as response:
                ended = time.monotonic()
                if response.status_code != 200:
                    answered.set()
                    failures[f"status {response.status_code}" if response.status_code else type(response.error).__name__] += 1
                    return
                if began - started > warm_up:
                    answered.set()
                    taken.append((ended - began) * 1000)
                if users.watched:
                    if response.content not in prices:
                        prices[response.content] = {row["id"]: float(row["price"]) for row in response.json()["results"] if row["id"] in users.watched}
                    reads.append(Read(began, prices[response.content]))

    environment = Environment(user_classes=[User], catch_exceptions=False)
    runner = environment.create_local_runner()
    runner.start(users.count, spawn_rate=users.count)
    gevent.sleep(users.seconds)
    answered.wait(stacks.TIMEOUT)  # a busy machine may need longer for its first response
    runner.quit()
    return Report(taken, dict(failures), time.monotonic() - started - warm_up, reads)


def write_prices(watched: Sequence[int], pause: float) -> list[Write]:
    """Raise the prices of these properties in turn, by `save()` and by `update()`, until standard input ends. Returns the writes.

    Prints a line as soon as the first price is saved.
    """
    import django

    django.setup()
    logging.getLogger("housing").setLevel(logging.WARNING)
    from django.db.models import F

    from housing.models import Property

    saved: list[Write] = []
    while not (saved and select.select([sys.stdin], [], [], pause)[0]):
        key = watched[len(saved) % len(watched)]
        home = Property.objects.get(pk=key)
        home.price += 1
        if len(saved) % 2:
            home.save()
        else:
            Property.objects.filter(pk=key).update(price=F("price") + 1)
        saved.append(Write(key, float(home.price), time.monotonic()))
        if len(saved) == 1:
            _print("started")
    return saved


# Servers and processes


@dataclass(frozen=True)
class Service:
    """The running service: its URL, the environment of all processes that share its database and cache, and gunicorn's process."""

    url: str
    environment: dict[str, str]
    process: psutil.Process

    def read(self, name: str, users: Users) -> Report:
        """Run these virtual users. Raises Failed if no user got a response."""
        say(f"{name} …")
        report = Report.parse(in_a_process(USERS, [asdict(users), self.url], self.environment))
        if not report.milliseconds:
            raise Failed(f"{name}: no user got a response, and {sum(report.failures.values()):,} reads failed. See whether the service is running.")
        return report

    def check_hit(self) -> None:
        """Read the cached list. Raises Failed if it is not a hit."""
        with urllib.request.urlopen(self.url + PATHS["warm"], timeout=30) as page:
            if not page.headers["Cache-Status"].endswith("; hit"):
                raise Failed(f"The cached list is not a hit: {page.headers['Cache-Status']}.")

    def newest(self) -> list[int]:
        """The ids of the newest properties."""
        with urllib.request.urlopen(self.url + PATHS["warm"], timeout=30) as page:
            return [row["id"] for row in json.load(page)["results"][:5]]


def start(servers: ExitStack, properties: int) -> Service:
    """Prepare the data, and serve it as the image does, on a free port of loopback.

    Raises Failed if the server does not start, and UsageError if PostgreSQL or Redis is unavailable.
    """
    environment = prepare(servers, properties)
    service = serve(servers, free_address(), environment)
    stacks.wait_for(service.check_hit, Failed)  # for some seconds a new journal stores nothing, so no read could be stale
    return service


def prepare(servers: ExitStack, properties: int) -> dict[str, str]:
    """Seed a separate database, and return the environment of the processes that use it, with a separate Redis database."""
    database, cache = stacks.real(servers)
    environment = os.environ | {
        "DATABASE_URL": stacks.own_database(servers, database),
        "REDIS_URL": stacks.own_number(servers, cache),
        "DJANGO_SECRET_KEY": secrets.token_hex(16),
        "DJANGO_DEBUG": "false",
        "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
        "DJANGO_SETTINGS_MODULE": "housing.settings",
    }
    say(f"Seeding {properties:,} properties …")
    in_a_process(PREPARE, properties, environment)
    return environment


def free_address() -> str:
    """A free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def serve(
    servers: ExitStack, address: str, environment: dict[str, str], command: Sequence[str] = DEPLOYED, *, folder: Path = ROOT, python: str = sys.executable
) -> Service:
    """Start a server and wait until it responds. `{host}` and `{port}` in the command become those of the address. Raises Failed if it exits instead."""
    host, _, port = address.rpartition(":")
    log = servers.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
    filled = [part.format(host=host, port=port) for part in command]
    server = subprocess.Popen([python, "-m", *filled], cwd=folder, env=environment, stdout=log, stderr=log)
    servers.callback(server.wait)
    servers.callback(server.terminate)

    stacks.wait_for(lambda: server.poll() is None and urllib.request.urlopen(f"http://{address}/health/", timeout=5).close(), OSError)
    if server.poll() is not None:
        log.seek(0)
        raise Failed(f"{command[0]} exited: {log.read().decode().strip().splitlines()[-1]}")
    return Service(f"http://{address}", environment, psutil.Process(server.pid))


def in_a_process(command: Sequence[str], argument: object, environment: dict[str, str]) -> bytes:
    """Run a command with this argument as JSON, and return its output. Raises Failed with the last line of stderr if it fails."""
    with a_process(command, argument, environment) as process:
        return output_of(process)


@contextmanager
def a_process(command: Sequence[str], argument: object, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with this argument as JSON. The process is killed at the end of the block."""
    piped = subprocess.PIPE
    with subprocess.Popen([*command, json.dumps(argument)], cwd=ROOT, env=environment, stdin=piped, stdout=piped, stderr=piped) as process:
        try:
            yield process
        finally:
            process.kill()


def output_of(process: subprocess.Popen[bytes]) -> bytes:
    """Close its standard input, and return its output. Raises Failed with the last line of stderr if it fails."""
    output, errors = process.communicate()
    if process.returncode:
        raise Failed([f"A process exited with {process.returncode}.", *errors.decode().strip().splitlines()][-1])
    return output


class Failed(Exception):
    """The load test failed. The message is one line."""


# The measurement


@dataclass(frozen=True)
class Row:
    """A row of the table: responses per second, milliseconds by percentile, the failed reads by reason, and the entry of `TO_BEAT` to compare with."""

    name: str
    per_second: float
    p50: float
    p95: float
    p99: float
    failures: dict[str, int]
    beats: str = ""

    @classmethod
    def of(cls, name: str, report: Report, beats: str = "") -> Row:
        """The row of this report."""
        return cls(name, report.per_second, *map(report.percentile, (50, 95, 99)), report.failures, beats)


@dataclass(frozen=True)
class Found:
    """All results: the memory of each worker in megabytes (PSS), and the numbers of writes and of compared reads of the mixed run."""

    rows: list[Row]
    memory: list[float]
    writes: int
    reads: int
    stale: list[Stale]

    @property
    def kept(self) -> bool:
        """Whether the promise was kept. It only counts as kept if there were both reads and writes."""
        return not self.stale and bool(self.writes and self.reads) and not any(row.failures for row in self.rows)

    def summary(self) -> list[str]:
        """The results that are not in the table."""
        lines = [f"Memory of a worker: {', '.join(f'{megabytes:.0f} MB' for megabytes in self.memory)}."]
        lines.append(f"{self.writes:,} prices were saved. {self.reads:,} reads could have been stale. Stale reads: {len(self.stale)}.")
        lines += [f"{row.name}: {number:,} reads failed with {why}." for row in self.rows for why, number in row.failures.items()]
        for stale in self.stale[:3]:
            write, shown = stale.write, stale.read.prices[stale.write.property]
            after = 1000 * (stale.read.began - write.saved)
            lines.append(f"Property {write.property} was shown at {shown:.2f}, {after:.1f} ms after {write.price:.2f} had been saved.")
        return lines


def measure(options: argparse.Namespace) -> Found:
    """Start the servers, run all load tests, and stop the servers. Raises Failed or UsageError."""
    with ExitStack() as servers:
        service = start(servers, options.properties)
        seconds = options.seconds / 8
        tests = [(f"warm, {count} users", "", Users(PATHS["warm"], count, 0, seconds)) for count in (1, 10, 50)]
        tests += [(f"{kind}, {options.users} users, 1 s pause", kind, Users(path, options.users, 1, seconds)) for kind, path in PATHS.items()]
        rows = [Row.of(name, service.read(name, users), beats) for name, beats, users in tests]
        memory = [worker.memory_full_info().pss / 2**20 for worker in service.process.children()]
        name = f"warm, {options.users} users, prices change"
        writes, report = change_prices(service, name, Users(PATHS["warm"], options.users, WAIT, seconds, service.newest()))
        return Found([*rows, Row.of(name, report)], memory, len(writes), len(compared(writes, report.reads)), stale_reads(writes, report.reads))


def change_prices(service: Service, name: str, users: Users) -> tuple[list[Write], Report]:
    """Run these virtual users while a writer changes prices. The writer starts before them and stops after them."""
    with a_process(WRITER, [users.watched, PAUSE], service.environment) as writer:
        assert writer.stdout
        writer.stdout.readline() or output_of(writer)  # raises Failed if the writer did not start
        report = service.read(name, users)
        return [Write(*fields) for fields in json.loads(output_of(writer))], report


def say(line: str) -> None:
    """Print the progress."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # for a person at a terminal


# The output


def table(rows: Sequence[Row]) -> str:
    """The results as a table for a terminal."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  {'reads/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'failed':>7}"]
    lines += [f"{row.name:{width}}  {row.per_second:8.1f} {row.p50:8.1f} {row.p95:8.1f} {row.p99:8.1f} {sum(row.failures.values()):7}" for row in rows]
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> str:
    """The results as SVG, on a logarithmic scale: for each row a line from p50 to p99, with p95 marked."""
    left, step, top, line = 290, 120, 40, 28
    bottom = top + line * len(rows)

    def x(milliseconds: float) -> float:
        return left + step * max(0.0, math.log10(max(milliseconds, 0.1)) + 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 5 * step + 40} {bottom + 30}" role="img">',
        "<title>Milliseconds per read: from p50 to p99, with p95 marked</title>",
        "<style>svg{font:13px system-ui,sans-serif;background:#fff;fill:#1b1f24;stroke:#1b1f24}text{stroke:none}.grid{stroke:#d5dae0}"
        ".beat{fill:#b8860b;stroke:none;opacity:.25}"
        "@media(prefers-color-scheme:dark){svg{background:#14171a;fill:#e6e8eb;stroke:#e6e8eb}.grid{stroke:#3a4047}}</style>",
    ]
    for power in range(-1, 5):
        at = left + step * (power + 1)
        parts.append(f'<path class="grid" d="M{at} {top - 10}V{bottom}"/><text x="{at}" y="{bottom + 18}" text-anchor="middle">{10.0**power:g} ms</text>')
    for number, row in enumerate(rows):
        y = top + line * number + line / 2
        if band := TO_BEAT.get(row.beats):
            parts.append(f'<rect class="beat" x="{x(band[0]):.1f}" y="{y - 9}" width="{x(band[1]) - x(band[0]):.1f}" height="18"/>')
        parts.append(
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{row.name}</text><path stroke-width="3" d="M{x(row.p50):.1f} {y}H{x(row.p99):.1f}"/>'
        )
        parts += [f'<circle cx="{x(p):.1f}" cy="{y}" r="{r}"/>' for p, r in ((row.p50, 3), (row.p95, 4), (row.p99, 3))]
    return "\n".join([*parts, f'<text x="{left}" y="20">p50, p95, p99; shaded: times reported elsewhere</text>', "</svg>", ""])


def write(folder: Path, found: Found) -> None:
    """Write the results and their plot as `load.json` and `load.svg`."""
    folder.mkdir(exist_ok=True)
    when = {"datetime": datetime.now(UTC).isoformat(), "stack": "real"}
    (folder / "load.json").write_text(json.dumps(when | asdict(found), indent=2) + "\n", encoding="utf-8")
    (folder / "load.svg").write_text(plot(found.rows), encoding="utf-8")


# The command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the load test. Exits with 0 if no read was stale and none failed, otherwise with 1. An error is one line. Ctrl-C leaves nothing behind."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.read:
            users, url = json.loads(options.read)
            _print(read_as(Users(**users), url).text())
        elif options.write:
            _print(json.dumps([list(asdict(write).values()) for write in write_prices(*json.loads(options.write))]))
        else:
            found = measure(options)
            write(REPORTS, found)
            _print("\n".join([table(found.rows), "", *found.summary()]))
            sys.exit(not found.kept)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing is left behind.")
    except (Failed, pytest.UsageError, psycopg.Error) as why:
        sys.exit(" ".join(str(why).split()))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.measurements.load", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--properties", type=int, default=1_000, metavar="N", help="number of properties (default: %(default)s)")
    parser.add_argument("--users", type=int, default=50, metavar="N", help="number of virtual users that pause between reads (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, metavar="S", help="total duration of all load tests (default: %(default)s)")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # for a person, or for the process that started this one


if __name__ == "__main__":
    main()
