"""`make servers`: the same application behind gunicorn, granian and uvicorn. Prints the responses per second, the memory, and how many requests are lost.

Needs wrk. Starts all servers on loopback, with PostgreSQL and Redis as `make load` does, and ends them. The servers take turns in each round, and each ratio
is from one round. The range of six rounds contains the median with a probability of 97 %.
"""

from __future__ import annotations

import argparse
import http.client
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import psycopg
import pytest
import redis

from tests import stacks
from tests.fixtures.bare import KEY
from tests.measurements.compare import Broken, checked_out
from tests.measurements.load import DEPLOYED, PATHS, PREPARE, Failed, Service, free_address, prepare, say, serve

BIND = ("--host", "{host}", "--port", "{port}", "--workers", "2")

ASGI = "housing.asgi:application"

COMMANDS: dict[str, tuple[str, ...]] = {
    "gunicorn": (*DEPLOYED, "--worker-class", "gthread"),
    "granian": DEPLOYED,
    "granian, ASGI": ("granian", "--interface", "asgi", *BIND, "--respawn-failed-workers", "--access-log", ASGI),
    "uvicorn": ("uvicorn", *BIND, "--no-proxy-headers", ASGI),
}
"""Each writes a line for each request to a file. The first is gunicorn's own worker, and the second the service as it is deployed. Each has two processes."""

BARE = {
    "housing.wsgi": "tests.fixtures.bare",
    "housing.asgi:application": "tests.fixtures.bare:asgi",
}
"""The application → the same server's floor."""

CONSTANT, GET, HIT, DJANGO, COLD = KINDS = "constant bytes", "bytes of one GET of Redis", "hit before Django", "hit through Django", "cold"

BASE = "hit of the base"

APPLICATION = {CONSTANT: CONSTANT, GET: CONSTANT, HIT: HIT, DJANGO: DJANGO, COLD: HIT, BASE: BASE}
"""Kind of request → the application that responds to it, by another kind."""

CONNECTIONS = (1, 10, 50)

TARGETS = (
    ("a hit / one GET, on the deployed server", GET, "granian", 0.7),
    ("a hit / a hit through Django on gunicorn", DJANGO, "gunicorn", 3.0),
    ("a hit / a hit of the base on gunicorn", BASE, "gunicorn", 3.0),
)
"""Each with the request and the server to compare a hit of the deployed server with, and the least ratio of the responses per second. The last needs a base."""

SLOW = 64
"""Clients that send a byte a second."""

COMPARED = tuple((kind, server) for server in COMMANDS for kind in KINDS)
PROMISED = ((HIT, "granian"), *((kind, server) for _, kind, server, _ in TARGETS if kind != BASE))
"""The kinds of requests, each with the server that responds to it."""

UNIQUE = """
local number = {first}
request = function()
    number = number + 1
    return wrk.format("GET", "/api/properties/cached/?min_price=" .. number .. ".01")
end
"""
"""For wrk: each request is for a page that nobody has read."""

firsts = count(1, 50_000)


@dataclass(frozen=True)
class Row:
    """The counts of wrk: responses, responses per second, the milliseconds of a response at the median and at p99, and failed requests.

    `cpu` is how many microseconds of a processor's time the server took for each response, however busy the machine was.
    """

    answered: int
    per_second: float
    p50: float
    p99: float
    failed: int
    cpu: float = 0.0

    @classmethod
    def of(cls, output: str) -> Row:
        """Read the output of wrk."""
        units = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
        p50, p99 = [float(value) * units[unit] for at in (50, 99) for value, unit in re.findall(rf" {at}%\s+([\d.]+)(\w+)", output)]
        failures = re.findall(r"(?:connect|read|write|timeout|Non-2xx or 3xx responses:?) (\d+)", output)
        [answered], [per_second] = re.findall(r"(\d+) requests in", output), re.findall(r"Requests/sec:\s+([\d.]+)", output)
        return cls(int(answered), float(per_second), p50, p99, sum(map(int, failures)))


def wrk(url: str, connections: int, seconds: float, script: str | None = None) -> Row:
    """Send requests on this number of connections. On each, a request follows the response to the last one."""
    command = ["wrk", "--latency", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:g}s", url]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        if script:
            file.write(script)
            file.flush()
            command[1:1] = ["--script", file.name]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=stacks.TIMEOUT, check=False)
    if ended.returncode:
        raise Failed(f"wrk exited with {ended.returncode}: {ended.stderr.strip()}")
    return Row.of(ended.stdout)


# Responses per second

Services = dict[tuple[str, str], Service]
"""(application, server) → what runs."""

Rounds = dict[tuple[str, str, int], list[Row]]
"""(kind of request, server, connections) → a row for each round."""


def measure(services: Services, pairs: Sequence[tuple[str, str]], rounds: int, seconds: float) -> Rounds:
    """Let these servers respond to these kinds of requests, in each round."""
    found: Rounds = defaultdict(list)
    for number in range(rounds):
        say(f"Round {number + 1} of {rounds} …")
        for connections, (kind, server) in product(CONNECTIONS, pairs if number % 2 else pairs[::-1]):
            service = services[APPLICATION[kind], server]
            url = service.url + {CONSTANT: "/", GET: "/get"}.get(kind, PATHS["warm"])
            script = UNIQUE.replace("{first}", str(next(firsts))) if kind == COLD else None
            before = processor_time(service)
            row = wrk(url, connections, seconds, script)
            found[kind, server, connections].append(replace(row, cpu=1e6 * (processor_time(service) - before) / max(1, row.answered)))
    return found


def span(values: Sequence[float], form: str = ".2f") -> str:
    """The median and the range of these values."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def ratios(found: Rounds, one: tuple[str, str], other: tuple[str, str], connections: int) -> list[float]:
    """The ratio of two rows in each round."""
    pairs = zip(found[*one, connections], found[*other, connections], strict=True)
    return [first.per_second / second.per_second for first, second in pairs]


def speeds(found: Rounds) -> Iterator[str]:
    """The responses per second, and the ratios, as tables in Markdown."""
    places = [*product(COMMANDS, CONNECTIONS)]

    def medians(kind: str, what: str) -> list[float]:
        return [statistics.median(getattr(row, what) for row in found[kind, *place]) for place in places]

    yield from header("responses/s", places)
    for kind in KINDS:
        yield f"| {kind} | {' | '.join(f'{cell:,.0f}' for cell in medians(kind, 'per_second'))} |"
    for kind in KINDS:
        yield f"| µs of processor time, {kind} | {' | '.join(f'{cell:,.0f}' for cell in medians(kind, 'cpu'))} |"
    for what in ("p50", "p99"):
        yield f"| ms of a hit, {what} | {' | '.join(f'{cell:.1f}' for cell in medians(HIT, what))} |"
    failed = [sum(row.failed for kind in KINDS for row in found[kind, *place]) for place in places]
    yield f"| failed requests | {' | '.join(f'{number:,}' for number in failed)} |"
    yield ""
    yield from header("ratio of responses/s: median and range", places)
    for name, other, on in (("one GET", GET, None), ("through Django", DJANGO, None), ("through Django on gunicorn", DJANGO, "gunicorn")):
        cells = [span(ratios(found, (HIT, server), (other, on or server), connections)) for server, connections in places]
        yield f"| hit before Django / {name} | {' | '.join(cells)} |"


def targets(found: Rounds) -> Iterator[str]:
    """The ratios that are promised, and the processor time, which varies less on a busy machine, as a table for a terminal."""
    yield f"{'responses/s, by connections':58}" + "".join(f"{connections:>20}" for connections in CONNECTIONS) + f"{'target':>10}"
    measured = {(kind, server) for kind, server, _ in found}
    for name, kind, server, least in (target for target in TARGETS if target[1:3] in measured):
        cells = [ratios(found, (HIT, "granian"), (kind, server), connections) for connections in CONNECTIONS]
        missed = sum(statistics.median(cell) < least for cell in cells)
        yield f"{name:58}{''.join(f'{span(cell):>20}' for cell in cells)}{f'≥ {least:g}':>10}  {f'{missed} MISSED' if missed else 'reached'}"
    for kind, server in (pair for pair in (*PROMISED, (BASE, "gunicorn")) if pair in measured):
        cells = [span([row.cpu for row in found[kind, server, connections]], ".0f") for connections in CONNECTIONS]
        yield f"{f'µs of processor time, {kind}, {server}':58}{''.join(f'{cell:>20}' for cell in cells)}"


def header(what: str, places: Sequence[tuple[str, int]]) -> Iterator[str]:
    """The first lines of a table."""
    yield f"| {what} | {' | '.join(f'{server}, {connections}' for server, connections in places)} |"
    yield f"| --- {'| ---: ' * len(places)}|"


# Memory, slow clients, and the ends of processes


@dataclass
class Clients:
    """Clients in threads that read one page after the other. `counts` has the results of their requests."""

    url: str
    ends: float = 0.0

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.address = urlsplit(self.url)

    def read(self) -> None:
        """Read until the end. A request is lost if its connection was accepted, but no whole response came."""
        connection = self.new()
        while time.monotonic() < self.ends:
            try:
                connection.request("GET", self.address.path)
                response = connection.getresponse()
                response.read()
                self.counts["answered" if response.status == 200 else f"status {response.status}"] += 1
            except (OSError, http.client.HTTPException) as error:
                was_refused = isinstance(error, ConnectionRefusedError)
                self.counts["refused" if was_refused else f"lost ({type(error).__name__})"] += 1
                connection.close()
                connection = self.new()
                time.sleep(0.1 * was_refused)
        connection.close()

    def new(self) -> http.client.HTTPConnection:
        """A connection that opens with its first request."""
        return http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=10)


def under_load(service: Service, act: Callable[[], object], seconds: float = 4.0) -> str:
    """Let eight clients read, act in between, and return the counts of their results."""
    clients = Clients(service.url + PATHS["warm"], time.monotonic() + seconds)
    threads = [threading.Thread(target=clients.read) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)
    act()
    for thread in threads:
        thread.join()
    return ", ".join(f"{number:,} {name}" for name, number in sorted(clients.counts.items()))


def processor_time(service: Service) -> float:
    """The seconds that all processes of a server have used a processor."""
    return sum(sum(process.cpu_times()[:2]) for process in [service.process, *service.process.children(recursive=True)])


def workers(service: Service) -> list[psutil.Process]:
    """The processes of a server that respond."""
    children = service.process.children()
    return [child for child in children if not any("resource_tracker" in part for part in child.cmdline())]


def memory(service: Service) -> str:
    """The memory of each worker, and of all processes of the server."""
    each = [worker.memory_full_info().pss / 2**20 for worker in workers(service)]
    every = [service.process, *service.process.children(recursive=True)]
    return f"{' and '.join(f'{megabytes:.0f}' for megabytes in each)} MB, {sum(process.memory_full_info().pss for process in every) / 2**20:.0f} MB in all"


HEAD = f"GET {PATHS['warm']} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
FORM = (
    f"POST /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: csrftoken={'a' * 32}\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\n"
)
"""The beginnings of requests that do not end: of one in its headers, and of a form."""


def with_slow_clients(service: Service, beginning: str) -> str:
    """Let slow clients each send the rest of a request with a byte a second, and read beside them."""
    address, ended = urlsplit(service.url), threading.Event()
    with ExitStack() as clients:
        slow = [clients.enter_context(closing(socket.create_connection((address.hostname, address.port)))) for _ in range(SLOW)]

        def drip() -> None:
            sent = beginning.encode()
            while True:
                for each in slow:
                    with suppress(OSError):
                        each.sendall(sent)
                sent = b"x"
                if ended.wait(1.0):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            time.sleep(2)
            beside = wrk(service.url + PATHS["warm"], 10, 3)
            check = health(service)
        finally:
            ended.set()
            thread.join()
    return f"{beside.per_second:,.0f} responses/s on 10 connections, p99 {beside.p99:.0f} ms, {beside.failed} failed; {check}"


def health(service: Service) -> str:
    """How long a health check takes at the public address."""
    began = time.monotonic()
    try:
        urlopen(f"{service.url}/health/live/", timeout=5).close()
    except OSError as error:
        return f"no health check ({type(error).__name__})"
    return f"health check in {1000 * (time.monotonic() - began):.0f} ms"


def stop(service: Service) -> None:
    """Ask the server to end, as Docker does."""
    service.process.send_signal(signal.SIGTERM)


def behaviour(services: Services) -> Iterator[str]:
    """Measure the servers beyond their speed, as a table in Markdown, and stop them."""
    acts: dict[str, Callable[[Service], str]] = {
        "memory (PSS)": memory,
        f"beside {SLOW} clients with slow headers": lambda service: with_slow_clients(service, HEAD),
        f"beside {SLOW} clients with slow forms": lambda service: with_slow_clients(service, FORM),
        "a worker is killed": lambda service: under_load(service, workers(service)[0].kill, 8.0) + f"; then {len(workers(service))} workers",
        "reload (SIGHUP)": lambda service: under_load(service, lambda: service.process.send_signal(signal.SIGHUP), 12.0),
        "stop (SIGTERM)": lambda service: under_load(service, lambda: stop(service)),
    }
    yield f"| | {' | '.join(COMMANDS)} |"
    yield f"| --- {'| --- ' * len(COMMANDS)}|"
    for name, act in acts.items():
        say(f"{name} …")
        yield f"| {name} | {' | '.join(act(services[HIT, server]) for server in COMMANDS)} |"


# The command


def serve_base(servers: ExitStack, commit: str, properties: int, environment: dict[str, str]) -> Service:
    """Serve the tree of a commit as it was deployed, with its own packages and its own databases. Raises Broken if there is no such commit, or Failed."""
    tree = servers.enter_context(checked_out(commit, Path(servers.enter_context(tempfile.TemporaryDirectory(prefix="housing-servers-")))))
    own = {"DATABASE_URL": stacks.own_database(servers, environment["DATABASE_URL"]), "REDIS_URL": stacks.own_number(servers, environment["REDIS_URL"])}
    environment = environment | own | {"PYTHONPATH": str(tree.folder)}
    say(f"Seeding {properties:,} properties for {commit} …")
    command = [tree.python, *PREPARE[1:], str(properties)]
    prepared = subprocess.run(command, cwd=tree.folder, env=environment, capture_output=True, text=True, check=False)
    if prepared.returncode:
        raise Failed(f"{commit} cannot be seeded: {(prepared.stderr.strip().splitlines() or ['no error message'])[-1]}")
    return serve(servers, free_address(), environment, folder=tree.folder, python=tree.python)


@contextmanager
def running(properties: int, pairs: Sequence[tuple[str, str]], base: str | None = None) -> Iterator[Services]:
    """Start the servers that respond to these kinds of requests: with the floor, with the service, and with the service that answers no hit before Django."""
    with ExitStack() as servers:
        environment = prepare(servers, properties)
        environment["WEB_CONCURRENCY"] = "2"
        services: Services = {}
        wanted = {(APPLICATION[kind], server) for kind, server in pairs}
        for application, server in sorted(wanted):
            if application not in (CONSTANT, BASE):
                more = {"FRESHNESS_FAST_PATH": "false"} if application == DJANGO else {}
                services[application, server] = serve(servers, free_address(), environment | more, COMMANDS[server])
        if base:
            services[BASE, "gunicorn"] = serve_base(servers, base, properties, environment)
        for service in services.values():
            stacks.wait_for(service.check_hit, Failed)
        with urlopen(next(iter(services.values())).url + PATHS["warm"]) as page, redis.Redis.from_url(environment["REDIS_URL"]) as client:
            client.set(KEY, page.read())
        for application, server in sorted(wanted - services.keys()):
            services[application, server] = serve(servers, free_address(), environment, [BARE.get(part, part) for part in COMMANDS[server]])
        yield services


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables. An error is one line."""
    parser = argparse.ArgumentParser(prog="python -m tests.measurements.servers", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="number of rounds (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1, metavar="S", help="duration of each measurement, 60 in a round, 9 or 12 with --targets (default: %(default)s)"
    )
    parser.add_argument("--targets", action="store_true", help="measure only the ratios that are promised")
    parser.add_argument("--base", metavar="COMMIT", help="also compare with the list of this commit, as it was deployed; with --targets")
    parser.add_argument("--properties", type=int, default=1_000, metavar="N", help="number of properties (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.base and not options.targets:
        parser.error("--base needs --targets.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not shutil.which("wrk"):
        sys.exit("wrk is missing. Install it (Debian: apt install wrk).")
    try:
        pairs = (*PROMISED, (BASE, "gunicorn"))[: len(PROMISED) + bool(options.base)] if options.targets else COMPARED
        with running(options.properties, pairs, options.base) as services:
            found = measure(services, pairs, options.rounds, options.seconds)
            for lines in (targets(found),) if options.targets else (speeds(found), targets(found), behaviour(services)):
                print("\n".join(lines), end="\n\n", flush=True)  # noqa: T201  # for a person
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing is left behind.")
    except (Broken, Failed, pytest.UsageError, psycopg.Error) as why:
        sys.exit(" ".join(str(why).split()))


if __name__ == "__main__":
    main()
