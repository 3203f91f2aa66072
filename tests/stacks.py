"""A pytest plugin that chooses the specs' servers before Django reads its settings.

`addopts` loads it, because a `conftest.py` would be too late. `--stack=real` uses the servers of DATABASE_URL and REDIS_URL if both are set.
Otherwise it starts its own with Testcontainers.
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
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from tests import ROOT

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

STACKS = {"embedded": "SQLite and fakeredis, in process", "real": "PostgreSQL and Redis"}
"""The stacks. SPEC.md has a column for each."""

IMAGES = ROOT / "images.env"
"""The file with the image names that Testcontainers and Compose use. Environment variables take precedence."""

TIMEOUT = int(os.environ.get("SPECS_TIMEOUT", "300"))
"""Seconds after which a spec stops waiting for a server, a process or a thread, and fails. On a quiet machine each takes less than a hundredth of it, and
`make stress` slows everything down by a factor of ten. `make mutants` waits for less, because it often waits for what never happens.
"""

SERVERS = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--stack`, and the options that select long specs."""
    group = parser.getgroup("housing")
    group.addoption("--stack", choices=STACKS, default="embedded", help="the servers to run against (default: %(default)s)")
    group.addoption("--races", action="store_true", help="also run the specs that try hundreds of schedules, which takes minutes")
    group.addoption("--portal", action="store_true", help="also run the portal of 10,000 pages and 1,000 writes, which takes half an hour")
    group.addoption("--fuzz", action="store_true", help="send every combination of hostile requests, which takes minutes")
    group.addoption("--browser", action="store_true", help="also run the specs that use the service in Chromium")
    group.addoption("--fast-path", action="store_true", help="send the requests of the test client through the fast path, which answers hits before Django")
    group.addoption("--operations", type=int, help="the number of operations in the long history (default: 104,000)")
    group.addoption("--renew-calls", action="store_true", help="write the current number of Python calls of each request to tests/measurements/calls.json")
    group.addoption("--renew-steps", action="store_true", help="write the current steps of each race to tests/fixtures/steps.json; not with -n")
    group.addoption("--schedule", help="run only this schedule of a spec, as printed in its failure")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    """Start or find the servers, and set the environment before pytest-django reads the settings."""
    if early_config.known_args_namespace.browser:
        chromium()
    if early_config.known_args_namespace.benchmark_only:  # pytest keeps each log record and formats it several times. A server does not.
        early_config.pluginmanager.unregister(name="logging")
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
    """Give the specs their own key prefix. Only --benchmark-only measures times; otherwise each budget runs once, for its counts."""
    from django.conf import settings

    config.addinivalue_line("markers", "slow: takes seconds, and runs first if there are several workers, so that none waits for it at the end")
    config.addinivalue_line("markers", "races: takes minutes, and runs only with --races")
    config.addinivalue_line("markers", "portal: takes half an hour, and runs only with --portal")
    config.addinivalue_line("markers", "browser: needs Chromium, and runs only with --browser")
    config.addinivalue_line("markers", "only(stack): holds on this stack only; the docstring says why")
    config.option.benchmark_disable = not config.option.benchmark_only
    if config.option.stack == "embedded":  # all of it runs in this process, so other processes on the machine must not count
        config.option.benchmark_timer = "time.process_time"
    settings.FRESHNESS_WATCHMAN, settings.FRESHNESS_MAX_STALENESS = False, 1e9  # no thread and no clock: a spec verifies at a step of its own
    settings.FRESHNESS_RETRY = 0  # a spec that breaks Redis and restores it waits for no probe
    settings.DATABASES["default"]["OPTIONS"].pop("options", None)  # the same for PostgreSQL
    # Django's own hasher takes a third of a second for each login, on purpose. A spec of passwords compares hashes, and not their strength.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    # A machine that is busy with other specs may need a second for a reply. A spec of timeouts sets its own.
    settings.CACHES["default"]["OPTIONS"] |= {"SOCKET_CONNECT_TIMEOUT": 5, "SOCKET_TIMEOUT": 5}
    settings.CACHES["default"]["KEY_PREFIX"] = f"housing-specs-{secrets.token_hex(4)}"
    list_static_files_once()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the specs of the other stack, the long ones and the browser's, so that pytest reports their number."""
    left_out = {"races": not (config.option.races or config.option.schedule), "browser": not config.option.browser, "portal": not config.option.portal}
    deselected = [
        item
        for item in items
        if ((only := item.get_closest_marker("only")) and config.option.stack not in only.args)
        or any(item.get_closest_marker(name) for name, absent in left_out.items() if absent)
        or (config.option.fast_path and item.path.stem in ("test_fast_path", "test_learning"))  # they watch it learn
    ]
    config.hook.pytest_deselected(items=deselected)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.get_closest_marker("slow"))
    items[:] = [item for item in items if item not in deselected]


def pytest_collection_finish() -> None:
    """Freeze everything that is imported and collected, so that the garbage collector does not scan it repeatedly."""
    if "hypothesis" in sys.modules:  # create its random generator first: from Python 3.14 on it finds no references to a frozen one
        import hypothesis

        hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Freeze what a chapter leaves, too, because the instruments search all other objects for connections. They must find those to Redis, so these are new."""
    if nextitem is None or nextitem.path != item.path:
        from django_redis import get_redis_connection

        from housing.freshness.journal import journal

        gc.freeze()
        pool = get_redis_connection("default").connection_pool
        pool.disconnect()
        pool.reset()
        journal._line.borrow(pool)


def pytest_sessionfinish() -> None:
    """Save what coverage has measured, because xdist kills a worker that takes more than ten seconds to exit."""
    if measured := "coverage" in sys.modules and sys.modules["coverage"].Coverage.current():
        measured.save()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers, and delete the databases and keys of this run."""
    config.stash[SERVERS].close()


def chromium() -> str:
    """The path of Chromium: the program in CHROMIUM, or Debian's. Raises a one-line UsageError if it is missing."""
    found = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    if not found:
        raise pytest.UsageError("--browser needs Chromium. Install it (Debian: apt install chromium), or set CHROMIUM to its path.")
    return found


def program(name: str) -> str:
    """The path of a program that a spec needs. If it is missing, the spec fails with one line, and is not skipped."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return found or pytest.fail(f"{name} is missing. Install it (Debian: apt install {name}).", pytrace=False)


def embedded(servers: ExitStack) -> tuple[str, str]:
    """The URLs of a SQLite file and of fakeredis. The file is in shared memory if possible. Two connections cannot share `:memory:`."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="housing-specs-", dir=memory if os.access(memory, os.W_OK) else None)
    servers.callback(shutil.rmtree, folder)
    compile_scripts_once()
    return f"sqlite:///{folder}/housing.sqlite3", "fakeredis://"


def compile_scripts_once() -> None:
    """Make fakeredis hash and compile each script once, as Redis does, and let Lua refuse global variables, as Redis does.

    Otherwise it compiles the script and collects Lua's garbage at each EVALSHA, which takes half the time of a hit, and lists all globals at each command.
    """
    import hashlib  # imported here, because the blog gets only the source of this function
    from functools import lru_cache
    from types import SimpleNamespace

    from fakeredis.commands_mixins import scripting_mixin

    class Runtime(scripting_mixin.LUA_MODULE.LuaRuntime):  # type: ignore[misc,name-defined]  # a module chosen when it is imported
        def execute(self, script: bytes | str) -> Any:
            if script == "collectgarbage()":
                return None  # Lua collects its garbage itself
            compiled = vars(self).setdefault("compiled", {})
            if not compiled:
                super().execute("setmetatable(_G, {__newindex = function(_, name) error('Script attempted to create global variable ' .. name) end})")
            if script not in compiled:
                compiled[script] = self.compile(script)
            return compiled[script]()

    scripting_mixin.LUA_MODULE.LuaRuntime = Runtime
    scripting_mixin.hashlib = SimpleNamespace(sha1=lru_cache(maxsize=16)(hashlib.sha1))
    scripting_mixin._check_for_lua_globals = lambda *_: None


def list_static_files_once() -> None:
    """Make WhiteNoise list the static files once for all clients. Each has its own middleware, and each would look up hundreds of files."""
    from whitenoise.middleware import WhiteNoiseMiddleware

    add, found = WhiteNoiseMiddleware.add_files_from_finders, {}

    def add_files(middleware: WhiteNoiseMiddleware) -> None:
        if not found:
            add(middleware)
            found.update(middleware.files)
        middleware.files.update(found)

    WhiteNoiseMiddleware.add_files_from_finders = add_files


def real(servers: ExitStack) -> tuple[str, str]:
    """The URLs of the environment, whose servers must be reachable, or those of new servers. Raises a one-line UsageError if both are unavailable."""
    urls = os.environ.get("DATABASE_URL", ""), os.environ.get("REDIS_URL", "")
    if all(urls):
        require("DATABASE_URL", lambda: psycopg.connect(urls[0], connect_timeout=5).close())
        require("REDIS_URL", lambda: redis.Redis.from_url(urls[1], socket_connect_timeout=5).ping())
        return urls
    if any(urls):
        raise pytest.UsageError("--stack=real: only one server is set. Set both DATABASE_URL and REDIS_URL, or neither to start servers with Testcontainers.")
    with ThreadPoolExecutor() as both:
        database, cache = both.submit(start_postgres, servers), both.submit(start_redis, servers)
    return database.result(), cache.result().url


def require(variable: str, connect: Callable[[], Any]) -> None:
    """Raise UsageError if the server of this variable is unreachable."""
    try:
        connect()
    except (psycopg.Error, redis.RedisError, ValueError) as error:
        raise pytest.UsageError(f"--stack=real: the server of {variable} is unreachable: {' '.join(str(error).split())}") from error


def start_postgres(servers: ExitStack) -> str:
    """Start a PostgreSQL that keeps its data in memory, and return its URL."""
    password = secrets.token_hex(8)
    container = new_container("POSTGRES_IMAGE")
    container.with_envs(POSTGRES_USER="housing", POSTGRES_PASSWORD=password, POSTGRES_DB="housing").with_exposed_ports(5432)
    container.with_tmpfs_mount("/var/lib/postgresql/data").with_command("-c fsync=off -c synchronous_commit=off -c full_page_writes=off")
    host, port = run(container, 5432, servers)
    url = f"postgres://housing:{password}@{host}:{port}/housing"
    wait_for(lambda: psycopg.connect(url, connect_timeout=1).close(), psycopg.OperationalError)
    return url


def own_database(servers: ExitStack, url: str) -> str:
    """Create an empty database on the PostgreSQL at this URL, drop it after the run, and return its URL. Other databases are left alone."""
    parts, name = urlsplit(url), f"housing_{secrets.token_hex(4)}"

    def order(statement: str) -> None:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    order(f"CREATE DATABASE {name}")
    servers.callback(order, f"DROP DATABASE {name} WITH (FORCE)")
    return parts._replace(path=f"/{name}").geturl()


def own_number(servers: ExitStack, url: str) -> str:
    """Choose an empty numbered database of the Redis at this URL, flush it after the run, and return its URL. Raises UsageError if all are in use."""
    for number in range(15, -1, -1):
        own = urlsplit(url)._replace(path=f"/{number}").geturl()
        with redis.Redis.from_url(own) as client:
            if not client.dbsize():
                servers.callback(redis.Redis.from_url(own).flushdb)
                return own
    raise pytest.UsageError("All sixteen databases of the Redis at REDIS_URL are in use. Flush one of them, or unset DATABASE_URL and REDIS_URL.")


class OwnRedis(NamedTuple):
    """A started Redis server. `restart()` restarts it at the same URL, with the data of its last SAVE. While it is paused, it sends no reply."""

    url: str
    restart: Callable[[], None]
    pause: Callable[[], Any] = bool
    unpause: Callable[[], Any] = bool


def start_redis(servers: ExitStack, *arguments: str, variable: str = "REDIS_IMAGE") -> OwnRedis:
    """Start a Redis or Valkey that saves nothing by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # a port that the engine chooses would change at a restart
    container = new_container(variable).with_bind_ports(6379, port)
    container.with_command(" ".join(arguments or ("--save", "''", "--appendonly", "no")))
    host, _ = run(container, 6379, servers)
    url, engine = f"redis://{host}:{port}/0", container.get_wrapped_container()

    def wait() -> None:
        with redis.Redis(host, port) as client:
            wait_for(client.ping, redis.ConnectionError)

    def restart() -> None:
        engine.restart(timeout=5)
        wait()

    wait()
    return OwnRedis(url, restart, engine.pause, engine.unpause)


def container_at(url: str) -> Any:
    """The running container, as the Docker SDK has it, whose server has this URL."""
    import docker

    port = str(urlsplit(url).port)
    running = docker.from_env().containers.list()
    [container] = [each for each in running if port in {at["HostPort"] for ports in each.ports.values() for at in ports or () if at["HostIp"] != "::"}]
    return container


def new_container(variable: str) -> DockerContainer:
    """A container of the image in this variable, not started yet. Raises UsageError if no Docker engine is reachable."""
    from docker.errors import DockerException  # this import takes half a second, which the embedded stack can save
    from testcontainers.core.container import DockerContainer

    try:
        return DockerContainer(image(variable))
    except DockerException as error:
        raise pytest.UsageError(f"--stack=real needs a Docker engine, or both DATABASE_URL and REDIS_URL: {' '.join(str(error).split())}") from error


def image(variable: str) -> str:
    """The image in this environment variable, or otherwise in `images.env`."""
    named = dict(line.split("=", 1) for line in IMAGES.read_text(encoding="utf-8").splitlines() if "=" in line and not line.startswith("#"))
    return os.environ.get(variable) or named[variable]


def run(container: DockerContainer, port: int, servers: ExitStack) -> tuple[str, int]:
    """Start a container, stop it after the run, and return the host and number of its port. Raises UsageError if the image is unavailable."""
    start(container, servers)
    return container.get_container_host_ip().replace("localhost", "127.0.0.1"), int(container.get_exposed_port(port))


def start(container: DockerContainer, servers: ExitStack) -> None:
    """Start a container, and stop it after the run. Raises UsageError if the image is unavailable."""
    from docker.errors import DockerException

    servers.callback(container.stop)
    try:
        container.start()
    except DockerException as error:
        raise pytest.UsageError(f"--stack=real: {container.image} cannot be started: {' '.join(str(error).split())}") from error


def wait_for(attempt: Callable[[], Any], not_yet: type[Exception]) -> None:
    """Call `attempt` until it no longer raises `not_yet`. After TIMEOUT seconds, raises the last `not_yet`."""
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            attempt()
        except not_yet:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
