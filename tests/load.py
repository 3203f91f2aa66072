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
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

from tests import stacks

ROOT = Path(__file__).resolve().parent.parent

PATHS = {"warm": "/api/properties/cached/", "cold": "/api/properties/cached/?min_price={unique}", "naive": "/api/properties/live/naive/"}
"""What a reader asks for. A cold page is one that nobody asked for before."""

CROWD = [sys.executable, "-m", "tests.load", "--crowd"]
EDITOR = [sys.executable, "-m", "tests.load", "--editor"]
"""Processes of their own: readers, for Locust replaces the standard library's sockets; and who writes, as any process of the service would."""

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
    """Who reads: so many at once, each of whom waits so many seconds between two reads, for so many seconds in all, of which the first is not counted.

    What is read is a path; `{unique}` in it is a number that no other read has. Prices of the properties in `watched` are noted.
    """

    path: str
    users: int
    wait: float
    seconds: float
    watched: tuple[int, ...] = ()


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
    import gevent
    from locust import FastHttpUser, constant, task
    from locust.env import Environment

    unique, started = itertools.count(time.time_ns() % 500_000), time.monotonic()
    taken: list[float] = []
    seen: list[Seen] = []
    prices: dict[bytes, dict[int, float]] = {}

    class Reader(FastHttpUser):
        host = url
        wait_time = constant(crowd.wait)

        @task
        def read(self) -> None:
            began = time.monotonic()
            with self.client.get(crowd.path.replace("{unique}", f"{next(unique) / 100:.2f}"), catch_response=True) as answer:
                ended = time.monotonic()
                if answer.status_code != 200:
                    return  # Locust has counted it
                if began - started > 1:
                    taken.append((ended - began) * 1000)
                if crowd.watched:
                    if answer.content not in prices:
                        prices[answer.content] = {row["id"]: float(row["price"]) for row in answer.json()["results"] if row["id"] in crowd.watched}
                    seen.append(Seen(began, prices[answer.content]))

    environment = Environment(user_classes=[Reader], catch_exceptions=False)
    runner = environment.create_local_runner()
    runner.start(crowd.users, spawn_rate=crowd.users)
    gevent.sleep(crowd.seconds)
    runner.quit()
    return Report(taken, environment.stats.total.num_failures, time.monotonic() - started - 1, seen)


def edit(watched: Sequence[int], seconds: float, pause: float) -> list[Edit]:
    """Raise the prices of these properties, one after another and without end, by `save()` and by `update()`; what was saved, and when."""
    import django

    django.setup()
    logging.getLogger("housing").setLevel(logging.WARNING)
    from django.db.models import F

    from housing.models import Property

    edits, end = [], time.monotonic() + seconds
    for number, key in enumerate(itertools.cycle(watched)):
        if time.monotonic() > end:
            return edits
        home = Property.objects.get(pk=key)
        home.price += 1
        if number % 2:
            home.save()
        else:
            Property.objects.filter(pk=key).update(price=F("price") + 1)
        edits.append(Edit(key, float(home.price), time.monotonic()))
        time.sleep(pause)
    raise ValueError("There is nothing to edit.")


# What they need


def serve(servers: ExitStack, environment: dict[str, str]) -> tuple[str, psutil.Process]:
    """Serve as the image does, on a free port of loopback; its URL, and its process. Raises Failed where it does not come to answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    log = servers.enter_context(tempfile.TemporaryFile())
    command = [sys.executable, "-m", "gunicorn", "housing.wsgi", "--bind", url.removeprefix("http://")]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    servers.callback(server.wait)
    servers.callback(server.terminate)

    def ask() -> None:
        if server.poll() is None:
            urllib.request.urlopen(f"{url}/health/", timeout=5).close()

    stacks.wait_for(ask, OSError)
    if server.poll() is not None:
        log.seek(0)
        raise Failed(f"gunicorn ended: {log.read().decode().strip().splitlines()[-1]}")
    return url, psutil.Process(server.pid)


def in_a_process(command: Sequence[str], told: object, environment: dict[str, str]) -> bytes:
    """What a process of ours prints. Raises Failed, with the last line that it said, where it fails; it does not outlive this."""
    process = subprocess.Popen([*command, json.dumps(told)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said, complained = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Failed((complained.decode().strip().splitlines() or [f"{command[-1]} ended with {process.returncode}."])[-1])
    return said


class Failed(Exception):
    """Why there are no figures, in one line."""


# What is measured


@dataclass(frozen=True)
class Row:
    """A row of the table: answers a second, milliseconds by percentile, and how many reads failed."""

    name: str
    per_second: float
    p50: float
    p95: float
    p99: float
    failed: int


def measure(options: argparse.Namespace) -> tuple[list[Row], list[float], list[Stale], int]:
    """The rows, the megabytes of each worker, the stale reads, and how many prices were saved meanwhile. Raises Failed, and UsageError."""
    with ExitStack() as servers:
        database, cache = stacks.real(servers)
        environment = os.environ | {
            "DATABASE_URL": stacks.own_database(servers, database),
            "REDIS_URL": stacks.own_number(servers, cache),
            "DJANGO_SECRET_KEY": secrets.token_hex(16),
            "DJANGO_DEBUG": "false",
            "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
            "DJANGO_SETTINGS_MODULE": "housing.settings",
        }
        say(f"Seeding {options.properties:,} properties …")
        in_a_process([sys.executable, "-c", "import json, sys; from housing.run import prepare; prepare(json.loads(sys.argv[1]))"], options.properties, environment)
        url, server = serve(servers, environment)

        def read(name: str, crowd: Crowd) -> tuple[Row, Report]:
            say(f"{name} …")
            report = Report.parse(in_a_process(CROWD, [asdict(crowd), url], environment))
            return Row(name, report.per_second, *map(report.percentile, (50, 95, 99)), report.failed), report

        seconds = options.seconds / 7
        rows = [read(f"warm, {users} at once", Crowd(PATHS["warm"], users, 0, seconds))[0] for users in (1, 10, 50)]
        rows += [read(f"{name}, {options.users} with a second's wait", Crowd(path, options.users, 1, seconds))[0] for name, path in PATHS.items()]
        memory = [worker.memory_full_info().pss / 2**20 for worker in server.children()]
        with urllib.request.urlopen(url + PATHS["warm"], timeout=5) as page:
            watched = tuple(row["id"] for row in json.load(page)["results"][:5])
        with ThreadPoolExecutor(1) as editor:
            editing = editor.submit(in_a_process, EDITOR, [watched, seconds, 0.02], environment)
            row, report = read(f"warm, {options.users}, while prices change", Crowd(PATHS["warm"], options.users, 0.1, seconds, watched))
            edits = [Edit(*told) for told in json.loads(editing.result())]
        return [*rows, row], memory, stale_reads(edits, report.seen), len(edits)


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


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--crowd"]:
        crowd, url = json.loads(arguments[1])
        print(read_as(Crowd(**crowd), url).text())
        return 0
    if arguments[:1] == ["--editor"]:
        print(json.dumps([list(asdict(e).values()) for e in edit(*json.loads(arguments[1]))]))
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--properties", type=int, default=1000)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=105)
    options = parser.parse_args(arguments)
    rows, memory, stale, edits = measure(options)
    print(table(rows))
    print(memory, len(stale), edits)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
