"""The fixtures: data (a property, twenty of them, a blog) and actions (read, warm, write elsewhere)."""

from __future__ import annotations

import csv
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
from _pytest._code.code import ExceptionRepr
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.management.color import no_style
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client
from django.test.client import ClientHandler
from django_redis import get_redis_connection
from pytest_django import DjangoDbBlocker

from housing import settings as service
from housing.freshness import ours
from housing.freshness.identity import known_identity
from housing.freshness.journal import Miss, journal
from housing.freshness.settings import SETTINGS
from housing.models import Property
from housing.redis_url import redis_cache
from tests import stacks
from tests.fixtures import blogs, fast_client
from tests.fixtures.blogs import Blog
from tests.fixtures.cache import begin_journal, clear_the_cache, expect_no_read, flush, replace_the_entry, start_cold, verify
from tests.fixtures.commands import HEADER, MINIMAL, run
from tests.fixtures.failures import explanation
from tests.fixtures.processes import Killed, python
from tests.fixtures.responses import HANDLERS, Response, ask, new_handler
from tests.fixtures.rows import a_page_of_properties
from tests.fixtures.stampede import read_by_fifty
from tests.fixtures.trace import CURRENT, RACES, TRACE, Trace, compare, lines_of, renew
from tests.instruments import CONTROL, Latency
from tests.stacks import OwnRedis

if TYPE_CHECKING:
    from tests.fixtures.served import Served

PASSED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Give the specs their own database. On SQLite it is a file, because an in-memory one locks its readers out while a write is open."""
    name = connection.settings_dict["NAME"]
    connection.settings_dict["TEST"]["NAME"] = f"{name}.specs" if connection.vendor == "sqlite" else f"{name}_specs_{secrets.token_hex(4)}"


COLOURED = ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "PYTHON_COLORS", "PYTEST_ADDOPTS")
"""The variables that force colours. The run itself has read them before, so its own output keeps its colours."""


@pytest.fixture(scope="session", autouse=True)
def processes_print_plain_text() -> Iterator[None]:
    """Let the processes that specs start print what they print without a terminal, whatever the person who runs the specs prefers."""
    with pytest.MonkeyPatch.context() as environment:
        for name in COLOURED:
            environment.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_keys_are_deleted() -> Iterator[None]:
    """Delete the specs' keys from Redis after the run."""
    yield
    flush()


@pytest.fixture
def transactional_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Commit writes, as pytest-django's fixture does, but empty the tables afterwards without creating Django's permissions again each time."""
    with django_db_blocker.unblock():
        known = known_identity(DEFAULT_DB_ALIAS)
        connection.close_if_health_check_failed()  # the kept one is checked now. In the spec, the check would be counted as a query
        connection.ensure_connection()
        if not known or ours().identity != known:  # `a_cold_cache` has verified the journal for each database that it knew
            verify()
        yield
        connection.close_if_unusable_or_obsolete()  # a new connection to PostgreSQL takes as long as all of the following
        kept = {model._meta.db_table for model in (ContentType, Permission)}
        emptied = [table for table in connection.introspection.django_table_names() if table not in kept]
        connection.ensure_connection()
        for statement in ("BEGIN", *connection.ops.sql_flush(no_style(), emptied, allow_cascade=False), "DELETE FROM freshness_outbox", "COMMIT"):
            connection.connection.execute(statement)  # bypasses the journal, because the next spec begins with a new one


@pytest.fixture(autouse=True)
def trace(request: pytest.FixtureRequest) -> Iterator[Trace]:
    """The trace of this spec, with the steps after its fixtures. It would be counted and timed, so a spec that counts calls or measures has none."""
    trace = request.node.stash[TRACE] = Trace()
    if {"python_calls", "benchmark"} & set(request.fixturenames):
        yield trace
    else:
        with trace.recording():
            yield trace
    del request.node.stash[TRACE]  # pytest keeps each spec until the end, and a trace keeps the responses
    if request.node.stash.get(PASSED, False) and has_steps(request.node):
        # After the spec this is an error and no failure, so no sabotage counts as noticed because of its steps.
        (renew if request.config.option.renew_steps else compare)(request.node.name, lines_of(trace))


def has_steps(item: pytest.Item) -> bool:
    """Whether SPEC.md shows the steps of this spec. The real stack takes others, a drawn schedule is another each time, and long specs have the short ones'."""
    drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False) or item.config.option.schedule or item.get_closest_marker("races")
    is_race = item.path.stem.removeprefix("test_") in RACES
    return is_race and item.config.option.stack == "embedded" and not drawn and "MUTANT_UNDER_TEST" not in os.environ


@pytest.fixture(autouse=True)
def a_cold_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start each spec with an empty cache and a journal without open leases. It must leave no read that still uses the database."""
    start_cold()
    yield
    expect_no_read()


# Data


@pytest.fixture
def twenty_properties(a_cold_cache: None, transactional_db: None) -> list[Property]:
    """One full page, newest first. Each has its own location, agent and office, and the first two have images."""
    return a_page_of_properties()


@pytest.fixture
def home(twenty_properties: list[Property]) -> Property:
    """The newest of twenty properties."""
    return twenty_properties[0]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables, and without rows. Migrating takes half a second."""
    file = tmp_path_factory.mktemp("migrated") / "db.sqlite3"
    ended = python("manage.py", "migrate", DATABASE_URL=f"sqlite:///{file}", REDIS_URL="fakeredis://", DJANGO_SECRET_KEY="any")
    assert ended.code == 0, ended.stderr
    return file


@pytest.fixture
def own_database(migrated: Path, tmp_path: Path) -> str:
    """The URL of a copy, for the processes of one spec."""
    return f"sqlite:///{shutil.copy(migrated, tmp_path / 'db.sqlite3')}"


@pytest.fixture(scope="session")
def new_blog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blog]:
    """Another project that has copied the engine, in its own process."""
    with blogs.started(tmp_path_factory.mktemp("blog")) as blog:
        yield blog


@pytest.fixture
def blog(new_blog: Blog) -> Blog:
    """That project with three posts and an empty cache."""
    new_blog.run("start()")
    return new_blog


# Actions


@pytest.fixture(scope="session", autouse=True)
def through_the_fast_path(pytestconfig: pytest.Config) -> None:
    """With `--fast-path`, let clients have its handler."""
    if pytestconfig.option.fast_path:
        fast_client.learn_at_once()
        HANDLERS.append(fast_client.Handler)


@pytest.fixture(scope="session")
def handler(through_the_fast_path: None) -> ClientHandler:
    """The service's middleware, as on a server."""
    return new_handler()


@pytest.fixture
def client(handler: ClientHandler) -> Client:
    """A client without cookies."""
    client = Client()
    client.handler = handler
    return client


@pytest.fixture
def fast_path_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock of the fast path, stopped: `fast_path_clock.seconds += 1` advances it."""

    class Clock:
        seconds = 1000.0

    monkeypatch.setattr("housing.freshness.fast_path.monotonic", lambda: Clock.seconds)
    return Clock


@pytest.fixture
def served(twenty_properties: list[Property], fast_path_clock: Any) -> Served:
    """The service with twenty properties."""
    return new_served()


@pytest.fixture
def served_with(twenty_properties: list[Property], settings: Any, fast_path_clock: Any) -> Callable[[str], Served]:
    """`served_with(name)`: the service with one more middleware, which may be skipped."""

    def served_with(name: str) -> Served:
        added = f"tests.fixtures.middleware.{name}"
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, added]
        settings.FRESHNESS_SKIPPED_MIDDLEWARE = [*settings.FRESHNESS_SKIPPED_MIDDLEWARE, added]
        return new_served()

    return served_with


def new_served() -> Served:
    """Imported late, because `housing.wsgi` sets Django up, which configures the log again."""
    from tests.fixtures.served import Served

    return Served()


@pytest.fixture
def read(client: Client) -> Callable[..., Response]:
    """GET a variant or any path as JSON: `read("cached", city="Springfield")`, `read("naive/7")`, `read("cached?cursor=…")`."""
    return partial(ask, client)


@pytest.fixture
def read_the_list(read: Callable[..., Response]) -> Callable[..., list[Any]]:
    """GET a page, of the cached variant by default, and return its rows."""

    def read_the_list(variant: str = "cached", **parameters: Any) -> list[Any]:
        return read(variant, **parameters).rows

    return read_the_list


@pytest.fixture
def reprice(home: Property) -> Callable[[Any], None]:
    """Set the price of the newest property, as any process would."""

    def reprice(price: Any) -> None:
        mine = Property.objects.get(pk=home.pk)
        mine.price = price
        mine.save(update_fields=["price"])

    return reprice


@pytest.fixture
def price(read: Callable[..., Response], home: Property) -> Callable[[], tuple[str, str | None]]:
    """The price that a reader sees, and its Cache-Status."""

    def price() -> tuple[str, str | None]:
        response = read("cached")
        return response.rows[0]["price"], response.came_from

    return price


@pytest.fixture(name="verify")
def verified() -> Callable[[], None]:
    """`verify()`: let a watchman close what is missing in the journal, and allow hits."""
    return verify


@pytest.fixture
def warm(read: Callable[..., Response]) -> Callable[..., bytes]:
    """Warm a page, check that the next read is a hit, and return its body."""

    def warm(target: str = "cached", **parameters: Any) -> bytes:
        read(target, **parameters)
        response = read(target, **parameters)
        assert response.came_from == "hit"
        return response.body

    return warm


@pytest.fixture
def latency(latency: Latency, pytestconfig: pytest.Config) -> Latency:
    """The instrument, with the clock that `tests/stacks.py` sets for pytest-benchmark."""
    latency.clock = time.process_time if pytestconfig.option.stack == "embedded" else time.perf_counter
    return latency


@pytest.fixture
def tamper_with_the_entry() -> Callable[[], bytes]:
    """Replace the only entry in Redis by one with another body, and return it. A response with that body can come only from the cache."""
    return replace_the_entry


@pytest.fixture
def elsewhere() -> Callable[[Callable[[], Any]], Any]:
    """`elsewhere(act)`: call `act` with its own connections, as another process would, and wait until it returns."""

    def elsewhere(act: Callable[[], Any]) -> Any:
        def alone() -> Any:
            try:
                return act()
            finally:
                connections.close_all()

        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(alone).result(stacks.TIMEOUT)

    return elsewhere


@pytest.fixture
def meanwhile(elsewhere: Callable[..., Any]) -> Callable[..., AbstractContextManager[None]]:
    """`with meanwhile(act):` after the first query of the block has its rows, `act` runs elsewhere, and then the block continues.

    With `times`, this repeats at the first query of each further attempt, which is recognized by its equal SQL.
    """

    @contextmanager
    def meanwhile(act: Callable[[], Any], times: int = 1) -> Iterator[None]:
        first: list[str] = []

        def race(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            found = execute(sql, *rest)
            if not CONTROL.match(sql) and len(first) < times and first[:1] in ([], [sql]):
                first.append(sql)
                elsewhere(act)
            return found

        with connection.execute_wrapper(race):
            yield
        assert len(first) == times, f"the write was to race {times} queries, and raced {len(first)}. Check that the block reads from the database."

    return meanwhile


@pytest.fixture
def around_commit(monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[..., Any]) -> Callable[..., AbstractContextManager[None]]:
    """`with around_commit(before=act, after=act):` run `before` elsewhere between lease and COMMIT, and `after` between COMMIT and close.

    An act that raises Killed ends the writer there.
    """

    @contextmanager
    def around_commit(before: Callable[[], Any] = bool, after: Callable[[], Any] = bool) -> Iterator[None]:
        commit, writer = BaseDatabaseWrapper._commit, threading.get_ident()

        def stepwise(self: BaseDatabaseWrapper) -> None:
            if threading.get_ident() != writer:
                return commit(self)
            try:
                elsewhere(before)
                commit(self)
                elsewhere(after)
            except Killed:
                for trace in CURRENT:
                    trace.die()
                self.close()
                raise

        with monkeypatch.context() as patched:
            patched.setattr(BaseDatabaseWrapper, "_commit", stepwise)
            yield

    return around_commit


@pytest.fixture
def redis_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Redis's own clock, stopped: what TIME replies, and what ends a key's TTL. `redis_clock.seconds += 5` advances it."""

    class Clock:
        now = time.time()

        @property
        def seconds(self) -> float:
            return self.now

        @seconds.setter
        def seconds(self, now: float) -> None:
            for trace in CURRENT:
                trace.happen("time passes" if now > self.now else "Redis's clock steps back")
            self.now = now

        def time(self) -> float:
            return self.seconds

    clock = Clock()
    monkeypatch.setattr("fakeredis.commands_mixins.server_mixin.time", clock)
    monkeypatch.setattr("fakeredis._socket._base.time", clock)
    begin_journal()
    return clock


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock of a reader that waits for another's fill, one for each thread. Only its pauses advance it, and each calls `waiting.begun`."""

    class Waiting(threading.local):
        seconds = 0.0
        begun: Callable[[], Any] = bool

        def sleep(self, seconds: float) -> None:
            self.seconds += seconds
            type(self).begun()

    waiting = Waiting()
    monkeypatch.setattr("housing.freshness.entries.sleep", waiting.sleep)
    monkeypatch.setattr("housing.freshness.entries.monotonic", lambda: waiting.seconds)
    return waiting


@pytest.fixture
def an_hour_to_wait(settings: Any) -> Iterator[None]:
    """Let readers wait longer than any machine needs."""
    settings.FRESHNESS_WAIT_TIMEOUT, settings.FRESHNESS_LONGEST_WAIT = 3600.0, 7200.0
    journal.forget_server()  # the settings are in the script's text
    yield
    journal.forget_server()


@pytest.fixture
def a_killed_reader(an_hour_to_wait: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Miss]:
    """`a_killed_reader()`: a reader of every entry is killed during its fill. Its mark stays in Redis, and others wait as long as they do by default."""
    page = cache.make_key("page")
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: page)

    def a_killed_reader() -> Miss:
        killed = cast(Miss, journal.lookup(page))
        settings.FRESHNESS_WAIT_TIMEOUT, settings.FRESHNESS_LONGEST_WAIT = SETTINGS["WAIT_TIMEOUT"].default, SETTINGS["LONGEST_WAIT"].default
        return killed

    return a_killed_reader


@pytest.fixture
def fifty_readers(twenty_properties: list[Property], handler: ClientHandler, waiting: Any) -> Callable[..., tuple[list[str], list[str | None]]]:
    """`fifty_readers(act, …)`: see `read_by_fifty`."""
    return partial(read_by_fifty, handler, type(waiting))


@pytest.fixture
def new_redis() -> Iterator[Callable[..., OwnRedis]]:
    """`new_redis(arguments…)`: start a Redis that the spec may break. `variable` selects another image."""
    with ExitStack() as servers:

        def new_redis(*arguments: str, **image: str) -> OwnRedis:
            return stacks.start_redis(servers, *arguments, **image)

        yield new_redis


@pytest.fixture
def as_the_cache(settings: Any) -> Iterator[Callable[[OwnRedis], None]]:
    """`as_the_cache(server)`: make this server the service's cache."""

    def as_the_cache(server: OwnRedis) -> None:
        cache = service.CACHES["default"]
        settings.CACHES = {"default": cache | redis_cache(server.url, cache["OPTIONS"]["SOCKET_TIMEOUT"])}
        journal.forget_server()

    yield as_the_cache
    journal.forget_server()


@pytest.fixture
def own_redis(as_the_cache: Callable[[OwnRedis], None], new_redis: Callable[..., OwnRedis]) -> Callable[..., OwnRedis]:
    """`own_redis(arguments…)`: start a Redis for this spec alone, and make it the service's cache."""

    def own_redis(*arguments: str, **image: str) -> OwnRedis:
        server = new_redis(*arguments, **image)
        as_the_cache(server)
        clear_the_cache()
        return server

    return own_redis


@pytest.fixture
def redis_unreachable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """`with redis_unreachable():` close every connection to Redis, and refuse new ones."""

    @contextmanager
    def unreachable() -> Iterator[None]:
        def refuse(*_: Any, **__: Any) -> None:
            raise redis.ConnectionError("connection refused")

        with monkeypatch.context() as patched:
            patched.setattr(redis.connection.AbstractConnection, "connect_check_health", refuse)
            get_redis_connection("default").connection_pool.disconnect()
            yield

    return unreachable


@pytest.fixture
def database_unreachable(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[None]]:
    """`with database_unreachable():` close the connection, and let new ones fail with this text."""

    @contextmanager
    def unreachable(why: str = os.strerror(errno.ECONNREFUSED)) -> Iterator[None]:
        def refuse(self: Any, *_: Any) -> None:
            raise self.Database.OperationalError(f"connection failed: {why}")

        with monkeypatch.context() as patched:
            patched.setattr(type(ours()), "get_new_connection", refuse)
            connection.close()
            yield

    return unreachable


# Reports


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Separate the steps of the spec from those of its fixtures."""
    item.stash[TRACE].begin()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failed spec of the cache which page was wrong, and the write and the tags that explain it."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    if report.when == "call" and report.failed and isinstance(report.longrepr, ExceptionRepr) and (text := explanation(item.stash[TRACE])):
        report.longrepr.addsection("The cache in this spec", text)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts that specs recorded with `record_property("counted", …)`."""
    for report in terminalreporter.getreports("passed"):
        for _, counted in filter(lambda recorded: recorded[0] == "counted", report.user_properties):
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {counted}.")


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV file: `csv_file([...], [...], header=HEADER)`."""

    def write(*rows: list[object], header: list[str] = HEADER, name: str = "listings.csv") -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def mapping(tmp_path: Path) -> Callable[..., Path]:
    """Write the minimal mapping, with replacements."""

    def write(*replaced: tuple[str, str], added: str = "") -> Path:
        text = MINIMAL
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mapping.toml"
        path.write_text(text + added, encoding="utf-8")
        return path

    return write


@pytest.fixture
def import_file(mapping: Callable[..., Path]) -> Callable[..., str]:
    """Import a file with the minimal mapping by default, and return the output."""

    def act(file: Path, *flags: str, by: Path | None = None, **options: object) -> str:
        return run("import_listings", file, "--mapping", by or mapping(), *flags, **options)

    return act
