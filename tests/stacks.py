"""Which servers the specs run against, chosen before Django reads its settings.

A pytest plugin, loaded by `addopts`: a `conftest.py` would be too late. `--stack=real` uses the servers of DATABASE_URL and REDIS_URL where
both are set, and else starts its own with Testcontainers.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

STACKS = {"embedded": "SQLite and fakeredis, in process", "real": "PostgreSQL and Redis"}
"""The stacks there are; SPEC.md has a column for each."""

IMAGES = Path(__file__).resolve().parent.parent / "images.env"
"""Where the images are named, for Testcontainers and Compose alike; the environment goes first."""

TIMEOUT = 60
"""Seconds that a server may take to answer for the first time."""

SERVERS = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--stack`, and what bounds the long specs."""
    group = parser.getgroup("housing")
    group.addoption("--stack", choices=STACKS, default="embedded", help="the servers to run against (default: %(default)s)")
    group.addoption("--races", action="store_true", help="also the specs that try hundreds of orders of the steps; minutes")
    group.addoption("--browser", action="store_true", help="also the specs that walk through the service in Chromium")
    group.addoption("--operations", type=int, help="how many the clients of the long history begin (default: 104,000)")
    group.addoption("--renew-calls", action="store_true", help="write down how many calls of Python functions a request makes now (tests/calls.json)")
    group.addoption("--schedule", help="of the orders that a spec tries, this one alone, as its failure named it")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    """Before pytest-django reads the settings."""
    if early_config.known_args_namespace.browser:
        chromium()
    early_config.stash[SERVERS] = servers = ExitStack()
    try:
        database, cache = {"embedded": embedded, "real": real}[early_config.known_args_namespace.stack](servers)
    except BaseException:
        servers.close()
        raise
    os.environ |= {
        "DJANGO_DEBUG": "false",
        "DJANGO_SECRET_KEY": "the specs' own, so that cursors are the same in every run",
        "DATABASE_URL": database,
        "REDIS_URL": cache,
    }
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Keys of their own for the specs. Timings are asked for with --benchmark-only; without, each budget runs once, for its counts."""
    from django.conf import settings

    config.addinivalue_line("markers", "slow: takes seconds, and goes first where there are several workers, so that none waits for it at the end")
    config.addinivalue_line("markers", "races: takes minutes, and runs with --races alone")
    config.addinivalue_line("markers", "browser: needs Chromium, and runs with --browser alone")
    config.addinivalue_line("markers", "only(stack): holds on this stack alone; the docstring says why")
    config.option.benchmark_disable = not config.option.benchmark_only
    settings.CACHES["default"]["KEY_PREFIX"] = f"housing-specs-{secrets.token_hex(4)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the specs of the other stack, the long ones and the browser's, and let pytest say how many."""
    left_out = {"races": not (config.option.races or config.option.schedule), "browser": not config.option.browser}
    elsewhere = [
        item
        for item in items
        if ((only := item.get_closest_marker("only")) and config.option.stack not in only.args)
        or any(item.get_closest_marker(name) for name, absent in left_out.items() if absent)
    ]
    config.hook.pytest_deselected(items=elsewhere)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.get_closest_marker("slow"))
    items[:] = [item for item in items if item not in elsewhere]


def pytest_collection_finish() -> None:
    """What is imported and collected stays until the end: the collector of garbage need not go through it again and again."""
    if "hypothesis" in sys.modules:  # it registers a generator of its own, and from Python 3.14 on it sees nobody refer to one that is frozen
        import hypothesis

        hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_unconfigure(config: pytest.Config) -> None:
    """What the run made goes with it."""
    config.stash[SERVERS].close()


def chromium() -> str:
    """The program of the browser: CHROMIUM, or Debian's. Raises UsageError, in one line, where there is none."""
    found = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    if not found:
        raise pytest.UsageError("--browser needs Chromium. Install it (Debian: apt install chromium), or name its program with CHROMIUM=…")
    return found


def embedded(servers: ExitStack) -> tuple[str, str]:
    """A folder for the database, in memory where the system has one. A file, for two connections must see one database."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="housing-specs-", dir=memory if os.access(memory, os.W_OK) else None)
    servers.callback(shutil.rmtree, folder)
    compile_scripts_once()
    return f"sqlite:///{folder}/housing.sqlite3", "fakeredis://"


def compile_scripts_once() -> None:
    """As a server does. fakeredis compiles a script, and collects all of Lua's garbage, at each EVALSHA: half of what a hit takes there."""
    from fakeredis.commands_mixins.scripting_mixin import LUA_MODULE

    class Runtime(LUA_MODULE.LuaRuntime):  # type: ignore[misc,name-defined]  # a module chosen when it is imported
        def execute(self, script: bytes | str) -> Any:
            if script == "collectgarbage()":
                return None  # Lua sees to it
            compiled = vars(self).setdefault("compiled", {})
            if script not in compiled:
                compiled[script] = self.compile(script)
            return compiled[script]()

    LUA_MODULE.LuaRuntime = Runtime


def real(servers: ExitStack) -> tuple[str, str]:
    """The servers of the two URLs, which must answer; or new ones, side by side. Raises UsageError, in one line, where neither can be had."""
    urls = os.environ.get("DATABASE_URL", ""), os.environ.get("REDIS_URL", "")
    if all(urls):
        responses("DATABASE_URL", lambda: psycopg.connect(urls[0], connect_timeout=5).close())
        responses("REDIS_URL", lambda: redis.Redis.from_url(urls[1], socket_connect_timeout=5).ping())
        return urls
    if any(urls):
        raise pytest.UsageError("--stack=real: set both DATABASE_URL and REDIS_URL, or neither for Testcontainers to start servers.")
    with ThreadPoolExecutor() as both:
        database, cache = both.submit(start_postgres, servers), both.submit(start_redis, servers)
    return database.result(), cache.result()[0]


def responses(variable: str, ask: Callable[[], Any]) -> None:
    """Raise UsageError unless the server of this variable answers."""
    try:
        ask()
    except (psycopg.Error, redis.RedisError, ValueError) as error:
        raise pytest.UsageError(f"--stack=real: the server of {variable} does not answer: {' '.join(str(error).split())}") from error


def start_postgres(servers: ExitStack) -> str:
    """A PostgreSQL that forgets everything when it stops, and so need not wait for a disk; its URL."""
    password = secrets.token_hex(8)
    container = new_container("POSTGRES_IMAGE")
    container.with_envs(POSTGRES_USER="housing", POSTGRES_PASSWORD=password, POSTGRES_DB="housing").with_exposed_ports(5432)
    container.with_tmpfs_mount("/var/lib/postgresql/data").with_command("-c fsync=off -c synchronous_commit=off -c full_page_writes=off")
    host, port = run(container, 5432, servers)
    url = f"postgres://housing:{password}@{host}:{port}/housing"
    wait_for(lambda: psycopg.connect(url, connect_timeout=1).close(), psycopg.OperationalError)
    return url


def own_database(servers: ExitStack, url: str) -> str:
    """A new, empty database on the PostgreSQL of this URL, whatever else it holds, which goes with the run; its URL."""
    parts, name = urlsplit(url), f"housing_{secrets.token_hex(4)}"

    def order(statement: str) -> None:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    order(f"CREATE DATABASE {name}")
    servers.callback(order, f"DROP DATABASE {name} WITH (FORCE)")
    return parts._replace(path=f"/{name}").geturl()


def own_number(servers: ExitStack, url: str) -> str:
    """One of the numbered databases of the Redis of this URL that is empty, and is again after the run; its URL. Raises UsageError where all are in use."""
    for number in range(15, -1, -1):
        own = urlsplit(url)._replace(path=f"/{number}").geturl()
        with redis.Redis.from_url(own) as client:
            if not client.dbsize():
                servers.callback(redis.Redis.from_url(own).flushdb)
                return own
    raise pytest.UsageError("All sixteen databases of the Redis of REDIS_URL are in use. Empty one, or unset DATABASE_URL and REDIS_URL.")


def start_redis(servers: ExitStack, *arguments: str, variable: str = "REDIS_IMAGE") -> tuple[str, Callable[[], None]]:
    """A Redis, or a Valkey, that writes nothing to a disk by itself; its URL, and how it is restarted at that URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # named, for a port that the engine chooses is another after a restart
    container = new_container(variable).with_bind_ports(6379, port)
    container.with_command(" ".join(arguments or ("--save", "''", "--appendonly", "no")))
    host, _ = run(container, 6379, servers)
    url = f"redis://{host}:{port}/0"

    def wait() -> None:
        with redis.Redis(host, port) as client:
            wait_for(client.ping, redis.ConnectionError)

    def restart() -> None:
        container.get_wrapped_container().restart(timeout=5)
        wait()

    wait()
    return url, restart


def new_container(variable: str) -> DockerContainer:
    """A container of the image that this variable names, not started yet. Raises UsageError where no engine answers."""
    from docker.errors import DockerException  # half a second, which the embedded stack need not wait for
    from testcontainers.core.container import DockerContainer

    try:
        return DockerContainer(image(variable))
    except DockerException as error:
        raise pytest.UsageError(f"--stack=real needs a Docker engine, or both DATABASE_URL and REDIS_URL: {' '.join(str(error).split())}") from error


def image(variable: str) -> str:
    """The image that the environment names, or else `images.env`."""
    named = dict(line.split("=", 1) for line in IMAGES.read_text(encoding="utf-8").splitlines() if "=" in line and not line.startswith("#"))
    return os.environ.get(variable) or named[variable]


def run(container: DockerContainer, port: int, servers: ExitStack) -> tuple[str, int]:
    """Start a container that goes with the run; the address of its port. Raises UsageError where its image cannot be had."""
    from docker.errors import DockerException

    servers.callback(container.stop)
    try:
        container.start()
    except DockerException as error:
        raise pytest.UsageError(f"--stack=real: {container.image} cannot be started: {' '.join(str(error).split())}") from error
    return container.get_container_host_ip().replace("localhost", "127.0.0.1"), int(container.get_exposed_port(port))


def wait_for(ask: Callable[[], Any], not_yet: type[Exception]) -> None:
    """Ask until there is an answer. Raises `not_yet` when patience is at its end."""
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            ask()
        except not_yet:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
