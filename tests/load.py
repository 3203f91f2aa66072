"""`make load`: readers by the dozen, and an editor who changes prices. No read may be stale.

Starts what it needs, on loopback alone, and ends it: gunicorn as it is deployed, and PostgreSQL and Redis unless DATABASE_URL and REDIS_URL name
some. Prints a table, and writes figures and a plot to `reports/`. Exits with 1 where a reader was shown a price after a newer one was saved.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import stacks

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"

PATHS = {
    "warm": "/api/properties/cached/",
    "cold": "/api/properties/cached/?min_price={unique}",
    "optimized": "/api/properties/live/optimized/",
    "naive": "/api/properties/live/naive/",
}
"""What a reader asks for. A cold page is one that nobody asked for before."""

PAUSE, BETWEEN = 0.02, 0.1
"""Seconds between two edits, and between two reads of each reader while prices change."""

PREPARE = [sys.executable, "-c", "import json, sys; from housing.run import prepare; prepare(json.loads(sys.argv[1]))"]
CROWD = [sys.executable, "-m", "tests.load", "--crowd"]
EDITOR = [sys.executable, "-m", "tests.load", "--editor"]
"""Processes of their own: who makes the data; who reads, for Locust replaces the standard library's sockets; who writes, as the service would."""

TO_BEAT = {"warm": (4, 10), "cold": (20, 40), "naive": (500, 1500)}
"""Milliseconds that others report with fifty users, each of whom waits a second between two reads."""


# Was a read stale?


@dataclass(frozen=True)
class Edit:
    """A price that was saved: of which property, and the instant at which `save()` had returned."""

    property: int
    price: float
    saved: float


@dataclass(frozen=True)
class Seen:
    """What one read was shown: the prices on the page by property, and the instant at which it was asked for."""

    began: float
    prices: dict[int, float]


@dataclass(frozen=True)
class Stale:
    """A read that was shown an older price than one saved before it began."""

    read: Seen
    edit: Edit


def stale_reads(edits: Sequence[Edit], reads: Sequence[Seen]) -> list[Stale]:
    """The reads that were shown less than what was saved before they began. Prices only rise, so less is older. Instants are of one clock."""
    found, latest, ahead = [], {}, iter(sorted(edits, key=lambda edit: edit.saved))
    coming = next(ahead, None)
    for read in sorted(reads, key=lambda read: read.began):
        while coming and coming.saved < read.began:
            latest[coming.property], coming = coming, next(ahead, None)
        found += [Stale(read, latest[key]) for key, price in read.prices.items() if key in latest and price < latest[key].price]
    return found


# Who reads, and who writes


@dataclass(frozen=True)
class Crowd:
    """Who reads: so many at once, each of whom waits so many seconds between two reads, for so many seconds in all, of which the first tenth is not counted.

    What is read is a path; `{unique}` in it is a number that no other read has. Prices of the properties in `watched` are noted.
    """

    path: str
    users: int
    wait: float
    seconds: float
    watched: Sequence[int] = ()


@dataclass(frozen=True)
class Report:
    """What a crowd found: the milliseconds of each read, how many failed, the time that it took in seconds, and what was seen where prices were watched."""

    milliseconds: list[float]
    failed: int
    seconds: float
    seen: list[Seen]

    @classmethod
    def parse(cls, text: bytes) -> Report:
        """What a crowd wrote."""
        told = json.loads(text)
        seen = [Seen(began, {int(key): price for key, price in prices.items()}) for began, prices in told.pop("seen")]
        return cls(**told, seen=seen)

    def text(self) -> str:
        """For `parse`."""
        return json.dumps(asdict(self) | {"seen": [(seen.began, seen.prices) for seen in self.seen]})

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, hundredths: int) -> float:
        """So many of a hundred reads took no longer than these milliseconds."""
        return sorted(self.milliseconds)[max(0, -(-len(self.milliseconds) * hundredths // 100) - 1)]


def read_as(crowd: Crowd, url: str) -> Report:
    """Be this crowd, in this process."""
    import gevent.event
    from locust import FastHttpUser, constant, task
    from locust.env import Environment

    unique, started, warm_up = itertools.count(time.time_ns() % 500_000), time.monotonic(), crowd.seconds / 10
    told = gevent.event.Event()
    taken: list[float] = []
    seen: list[Seen] = []
    prices: dict[bytes, dict[int, float]] = {}

    class Reader(FastHttpUser):
        host = url
        wait_time = constant(crowd.wait)

        def on_start(self) -> None:
            gevent.sleep(crowd.wait * random.random())  # they do not come all at once, each second anew

        @task
        def read(self) -> None:
            began = time.monotonic()
            with self.client.get(crowd.path.replace("{unique}", f"{next(unique) / 100:.2f}"), catch_response=True) as response:
                ended = time.monotonic()
                if response.status_code != 200:
                    told.set()
                    return  # Locust has counted it
                if began - started > warm_up:
                    told.set()
                    taken.append((ended - began) * 1000)
                if crowd.watched:
                    if response.content not in prices:
                        prices[response.content] = {row["id"]: float(row["price"]) for row in response.json()["results"] if row["id"] in crowd.watched}
                    seen.append(Seen(began, prices[response.content]))

    environment = Environment(user_classes=[Reader], catch_exceptions=False)
    runner = environment.create_local_runner()
    runner.start(crowd.users, spawn_rate=crowd.users)
    gevent.sleep(crowd.seconds)
    told.wait(stacks.TIMEOUT)  # on a machine that is busy elsewhere
    runner.quit()
    return Report(taken, environment.stats.total.num_failures, time.monotonic() - started - warm_up, seen)


def edits(watched: Sequence[int], pause: float) -> list[Edit]:
    """Raise the prices of these properties, one after another until standard input ends, by `save()` and by `update()`; what was saved, and when.

    Says when the first is saved.
    """
    import django

    django.setup()
    logging.getLogger("housing").setLevel(logging.WARNING)
    from django.db.models import F

    from housing.models import Property

    saved: list[Edit] = []
    while not (saved and select.select([sys.stdin], [], [], pause)[0]):
        key = watched[len(saved) % len(watched)]
        home = Property.objects.get(pk=key)
        home.price += 1
        if len(saved) % 2:
            home.save()
        else:
            Property.objects.filter(pk=key).update(price=F("price") + 1)
        saved.append(Edit(key, float(home.price), time.monotonic()))
        if len(saved) == 1:
            _tell("begun")
    return saved


# What they need


@dataclass(frozen=True)
class Service:
    """What is read from: its URL, the environment of every process that shares its database and its cache, and gunicorn's own process."""

    url: str
    environment: dict[str, str]
    process: psutil.Process

    def read(self, name: str, crowd: Crowd) -> Report:
        """Let this crowd read. Raises Failed where nobody was answered."""
        say(f"{name} …")
        report = Report.parse(in_a_process(CROWD, [asdict(crowd), self.url], self.environment))
        if not report.milliseconds:
            raise Failed(f"{name}: nobody was answered, and {report.failed:,} reads failed.")
        return report

    def newest(self) -> list[int]:
        """The properties at the top of the list."""
        with urllib.request.urlopen(self.url + PATHS["warm"], timeout=30) as page:
            return [row["id"] for row in json.load(page)["results"][:5]]


def start(servers: ExitStack, properties: int) -> Service:
    """Seed a database of this run's own, with a Redis of its own, and serve it as the image does, on a free port of loopback.

    Raises Failed where the server does not come to answer, and UsageError where there is no PostgreSQL or no Redis.
    """
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
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = serve(servers, address, environment)
    return Service(f"http://{address}", environment, psutil.Process(server.pid))


def serve(servers: ExitStack, address: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """gunicorn, once it answers. Raises Failed where it ends instead."""
    log = servers.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
    server = subprocess.Popen([sys.executable, "-m", "gunicorn", "housing.wsgi", "--bind", address], cwd=ROOT, env=environment, stdout=log, stderr=log)
    servers.callback(server.wait)
    servers.callback(server.terminate)

    stacks.wait_for(lambda: server.poll() is None and urllib.request.urlopen(f"http://{address}/health/", timeout=5).close(), OSError)
    if server.poll() is not None:
        log.seek(0)
        raise Failed(f"gunicorn ended: {log.read().decode().strip().splitlines()[-1]}")
    return server


def in_a_process(command: Sequence[str], told: object, environment: dict[str, str]) -> bytes:
    """What a process of ours prints. Raises Failed, with the last line that it said, where it fails; it does not outlive this."""
    with a_process(command, told, environment) as process:
        return said_by(process)


@contextmanager
def a_process(command: Sequence[str], told: object, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, which does not outlive the body."""
    piped = subprocess.PIPE
    with subprocess.Popen([*command, json.dumps(told)], cwd=ROOT, env=environment, stdin=piped, stdout=piped, stderr=piped) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(process: subprocess.Popen[bytes]) -> bytes:
    """What it prints, once it is told no more. Raises Failed, with the last line that it said, where it fails."""
    said, complained = process.communicate()
    if process.returncode:
        raise Failed([f"A process ended with {process.returncode}.", *complained.decode().strip().splitlines()][-1])
    return said


class Failed(Exception):
    """Why there are no figures, in one line."""


# What is measured


@dataclass(frozen=True)
class Row:
    """A row of the table: answers a second, milliseconds by percentile, how many reads failed, and which figures it is to beat."""

    name: str
    per_second: float
    p50: float
    p95: float
    p99: float
    failed: int
    beats: str = ""

    @classmethod
    def of(cls, name: str, report: Report, beats: str = "") -> Row:
        """The row of this report."""
        return cls(name, report.per_second, *map(report.percentile, (50, 95, 99)), report.failed, beats)


@dataclass(frozen=True)
class Found:
    """All that was measured: memory is in megabytes (PSS) of each worker; of the mixed run, how many prices were saved and how many pages read."""

    rows: list[Row]
    memory: list[float]
    edits: int
    reads: int
    stale: list[Stale]

    @property
    def kept(self) -> bool:
        """Whether the promise was kept, and put to the test."""
        return not self.stale and bool(self.edits and self.reads) and not any(row.failed for row in self.rows)

    def said(self) -> list[str]:
        """What the table does not say."""
        lines = [f"Memory of a worker: {', '.join(f'{megabytes:.0f} MB' for megabytes in self.memory)}."]
        lines.append(f"{self.edits:,} prices saved while {self.reads:,} pages were read. Stale reads: {len(self.stale)}.")
        for stale in self.stale[:3]:
            edit = stale.edit
            after = 1000 * (stale.read.began - edit.saved)
            lines.append(f"Property {edit.property} was shown at {stale.read.prices[edit.property]:.2f}, {after:.1f} ms after {edit.price:.2f} had been saved.")
        return lines


def measure(options: argparse.Namespace) -> Found:
    """Start what is needed, read, and end it. Raises Failed, and UsageError."""
    with ExitStack() as servers:
        service = start(servers, options.properties)
        seconds = options.seconds / 8
        crowds = [(f"warm, {users} at once", "", Crowd(PATHS["warm"], users, 0, seconds)) for users in (1, 10, 50)]
        crowds += [(f"{kind}, {options.users} a second apart", kind, Crowd(path, options.users, 1, seconds)) for kind, path in PATHS.items()]
        rows = [Row.of(name, service.read(name, crowd), beats) for name, beats, crowd in crowds]
        memory = [worker.memory_full_info().pss / 2**20 for worker in service.process.children()]
        name = f"warm, {options.users} while prices change"
        saved, report = change_prices(service, name, Crowd(PATHS["warm"], options.users, BETWEEN, seconds, service.newest()))
        return Found([*rows, Row.of(name, report)], memory, len(saved), len(report.seen), stale_reads(saved, report.seen))


def change_prices(service: Service, name: str, crowd: Crowd) -> tuple[list[Edit], Report]:
    """What the editor saved while this crowd read, and what it was shown. The editor begins before it and ends after it."""
    with a_process(EDITOR, [crowd.watched, PAUSE], service.environment) as editor:
        assert editor.stdout
        editor.stdout.readline() or said_by(editor)  # why it did not begin
        report = service.read(name, crowd)
        return [Edit(*told) for told in json.loads(said_by(editor))], report


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # this is what a person at a terminal reads


# What is told


def table(rows: Sequence[Row]) -> str:
    """The figures, as a person reads them."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  {'reads/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'failed':>7}"]
    lines += [f"{row.name:{width}}  {row.per_second:8.1f} {row.p50:8.1f} {row.p95:8.1f} {row.p99:8.1f} {row.failed:7}" for row in rows]
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> str:
    """The same as SVG: a line from p50 to p99 for each row, p95 marked, milliseconds to the right, ten times as many each step."""
    left, step, top, line = 290, 120, 40, 28
    bottom = top + line * len(rows)

    def x(milliseconds: float) -> float:
        return left + step * max(0.0, math.log10(max(milliseconds, 0.1)) + 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 5 * step + 40} {bottom + 30}" role="img">',
        "<title>Milliseconds of a read: from p50 to p99, p95 marked</title>",
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
    return "\n".join([*parts, f'<text x="{left}" y="20">p50, p95, p99; shaded: figures to beat</text>', "</svg>", ""])


def write(folder: Path, found: Found) -> None:
    """The figures, and their plot, as `load.json` and `load.svg`."""
    folder.mkdir(exist_ok=True)
    when = {"datetime": datetime.now(UTC).isoformat(), "stack": "real"}
    (folder / "load.json").write_text(json.dumps(when | asdict(found), indent=2) + "\n", encoding="utf-8")
    (folder / "load.svg").write_text(plot(found.rows), encoding="utf-8")


# The command


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with 0 where no read was stale and none failed. What prevents the figures is one line on stderr, and exit code 1; Ctrl-C leaves nothing behind."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.crowd:
            crowd, url = json.loads(options.crowd)
            _tell(read_as(Crowd(**crowd), url).text())
        elif options.editor:
            _tell(json.dumps([list(asdict(edit).values()) for edit in edits(*json.loads(options.editor))]))
        else:
            found = measure(options)
            write(REPORTS, found)
            _tell("\n".join([table(found.rows), "", *found.said()]))
            sys.exit(not found.kept)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing is left behind.")
    except (Failed, pytest.UsageError, psycopg.Error) as why:
        sys.exit(" ".join(str(why).split()))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--properties", type=int, default=1_000, metavar="N", help="how many there are (default: %(default)s)")
    parser.add_argument("--users", type=int, default=50, metavar="N", help="how many read with a pause between (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, metavar="S", help="how long all readings take together (default: %(default)s)")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    parser.add_argument("--editor", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # this is what a person, or a process of ours, reads


if __name__ == "__main__":
    main()
