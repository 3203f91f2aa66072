"""The fixtures: data (a property, twenty of them, a blog) and actions (read, warm, write elsewhere)."""

from __future__ import annotations

import datetime
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from _pytest._code.code import ExceptionRepr
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.management.color import no_style
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import QueryDict
from django.test import Client
from django.test.client import ClientHandler
from django_redis import get_redis_connection
from pytest_django import DjangoDbBlocker

from housing import settings as service
from housing.freshness import ours, watchman
from housing.freshness.identity import _known
from housing.freshness.journal import journal
from housing.models import Agent, Location, Office, Property, PropertyImage
from housing.views import select_of
from tests import blogs, stacks
from tests.blogs import Blog
from tests.instruments import CONTROL

VARIANTS = {"naive": "/api/properties/live/naive/", "optimized": "/api/properties/live/optimized/", "cached": "/api/properties/cached/"}
"""The three endpoints that return the same rows."""

ROOT = Path(__file__).resolve().parent

NEW_YEAR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Give the specs their own database. On SQLite it is a file, because an in-memory one locks its readers out while a write is open."""
    name = connection.settings_dict["NAME"]
    connection.settings_dict["TEST"]["NAME"] = f"{name}.specs" if connection.vendor == "sqlite" else f"{name}_specs_{secrets.token_hex(4)}"


@pytest.fixture(scope="session", autouse=True)
def own_keys_are_deleted() -> Iterator[None]:
    """Delete the specs' keys from Redis after the run."""
    yield
    flush()


@pytest.fixture
def transactional_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Commit writes, as pytest-django's fixture does, but empty the tables afterwards without creating Django's permissions again each time."""
    with django_db_blocker.unblock():
        verify()
        yield
        connection.close()
        kept = {model._meta.db_table for model in (ContentType, Permission)}
        emptied = [table for table in connection.introspection.django_table_names() if table not in kept]
        connection.ensure_connection()
        for statement in ("BEGIN", *connection.ops.sql_flush(no_style(), emptied, allow_cascade=False), "DELETE FROM freshness_outbox", "COMMIT"):
            connection.connection.execute(statement)  # bypasses the journal, because the next spec begins with a new one


@pytest.fixture(autouse=True)
def a_cold_cache(request: pytest.FixtureRequest) -> None:
    """Start each spec with an empty cache and a journal without open leases."""
    RESPONSES.clear()
    select_of.cache_clear()  # otherwise this spec would not reach the code that compiles a query
    clear_the_cache()


def flush() -> None:
    """Delete the specs' keys alone, because others may use the same server."""
    client = get_redis_connection("default")
    client.delete(cache.make_key("journal"), *client.scan_iter(cache.make_key("*")))


def clear_the_cache() -> None:
    """Empty the cache, and begin a new journal."""
    flush()
    begin_journal()


def begin_journal() -> None:
    """Begin a new journal that is verified for each known database, as a watchman does within milliseconds. In the specs no watchman runs."""
    journal.begin()
    for database in {"", *(identity for identity, _ in _known.values())}:
        if verification := journal.begin_verification(database):
            journal.end_verification(verification, ())


def verify() -> None:
    """Verify the journal for the specs' database at once, as a watchman does as soon as a third of the bound has passed."""
    connection.ensure_connection()
    get_redis_connection("default").zrem(cache.make_key("journal"), f"|begun:{ours().identity}")
    watchman.verify(ours())


# Data


def a_property(number: int = 0, **fields: Any) -> Property:
    """An unsaved property with its own location, agent and office. `number` is in its title and price, and is its age in minutes."""
    facts: dict[str, Any] = {
        "title": f"Home {number}",
        "description": "Two floors, one garden.",
        "price": Decimal(300_000 + 1_000 * number),
        "bedrooms": 3,
        "bathrooms": Decimal("1.75"),
        "created_at": NEW_YEAR - datetime.timedelta(minutes=number),
        "location": Location(city="Springfield", state="IL", zip_code=f"{62700 + number}", latitude=Decimal("39.7817"), longitude=Decimal("-89.6501")),
        "agent": Agent(name=f"Agent {number}", email=f"agent{number}@example.com", office=Office(name=f"Office {number}", city="Springfield")),
    }
    return Property(**facts | fields)


def saved(*homes: Property) -> list[Property]:
    """Save these properties with their locations, agents and offices, and return them."""
    with transaction.atomic():
        for model, rows in (
            (Office, [home.agent.office for home in homes]),
            (Agent, [home.agent for home in homes]),
            (Location, [home.location for home in homes]),
            (Property, homes),
        ):
            model.objects.bulk_create({id(row): row for row in rows if row.pk is None}.values())
    return list(homes)


def make_properties(count: int) -> list[Property]:
    """Save `count` properties, newest first. The first two have images. The cache is empty afterwards."""
    with transaction.atomic():
        homes = saved(*map(a_property, range(count)))
        make_images(*homes[:2])
    clear_the_cache()
    return homes


def make_images(*homes: Property) -> None:
    """Save two images for each of these properties."""
    PropertyImage.objects.bulk_create(
        PropertyImage(property=home, url=f"https://images.example.com/{home.pk}/{position}.jpg", position=position) for home in homes for position in range(2)
    )


@pytest.fixture
def twenty_properties(transactional_db: None) -> list[Property]:
    """One full page, newest first. Each has its own location, agent and office, and the first two have images."""
    return make_properties(20)


@pytest.fixture
def home(twenty_properties: list[Property]) -> Property:
    """The newest of twenty properties."""
    return twenty_properties[0]


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


@dataclass(frozen=True)
class Response:
    """The response to one GET. `came_from` is its Cache-Status without the cache's name: `hit`, `fwd=miss; stored`, …"""

    response: Any

    def __repr__(self) -> str:
        return f"<GET {self.response.wsgi_request.get_full_path()}: {self.status}, Cache-Status: {self.headers.get('Cache-Status', 'none')}>"

    @property
    def body(self) -> bytes:
        return self.response.content

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def rows(self) -> list[Any]:
        return self.json["results"]

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    @property
    def came_from(self) -> str | None:
        return self.headers.get("Cache-Status", "").removeprefix("housing; ") or None


RESPONSES: deque[Response] = deque(maxlen=10)
"""The newest responses of this spec, which its failure shows."""


@pytest.fixture(scope="session")
def handler() -> ClientHandler:
    """The service's middleware, loaded once, as on a server."""
    return Client().handler


@pytest.fixture
def client(handler: ClientHandler) -> Client:
    """A client without cookies."""
    client = Client()
    client.handler = handler
    return client


@pytest.fixture
def read(client: Client) -> Callable[..., Response]:
    """GET a variant or any path as JSON: `read("cached", city="Springfield")`, `read("naive/7")`, `read("cached?cursor=…")`."""
    return partial(ask, client)


def ask(client: Client, target: str = "cached", headers: dict[str, str] | None = None, **parameters: Any) -> Response:
    """Send one GET to a variant or any path."""
    path, _, query = target.partition("?")
    variant, _, rest = path.partition("/")
    path = VARIANTS[variant] + (f"{rest}/" if rest else "") if variant in VARIANTS else path
    response = Response(client.get(path, parameters or None, headers=headers, query_params=None if parameters else QueryDict(query)))
    RESPONSES.append(response)
    return response


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
def tamper_with_the_entry() -> Callable[[], bytes]:
    """Replace the body of the only entry in Redis, and return the new body. A response with that body can come only from the cache."""

    def tamper_with_the_entry() -> bytes:
        [entry] = entries()
        body = b'{"next":null,"previous":null,"results":["tampered with"]}'
        get_redis_connection("default").hset(entry, "body", body)
        return body

    return tamper_with_the_entry


def entries() -> list[bytes]:
    """The Redis keys of all entries."""
    client, journal_key = get_redis_connection("default"), cache.make_key("journal").encode()
    return [key for key in client.scan_iter(cache.make_key("*")) if key != journal_key and client.hexists(key, "body")]


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
            return thread.submit(alone).result(timeout=30)

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
                self.close()
                raise

        with monkeypatch.context() as patched:
            patched.setattr(BaseDatabaseWrapper, "_commit", stepwise)
            yield

    return around_commit


class Killed(BaseException):
    """Stands in for SIGKILL: no code of the process runs after it."""


def die() -> None:
    """Raise Killed, as if the process ended here."""
    raise Killed


@pytest.fixture
def redis_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Redis's own clock, stopped. `redis_clock.seconds += 5` advances it."""

    class Clock:
        seconds = time.time()

        def time(self) -> float:
            return self.seconds

    clock = Clock()
    monkeypatch.setattr("fakeredis.commands_mixins.server_mixin.time", clock)
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


@dataclass(frozen=True)
class OwnRedis:
    """A Redis server that one spec started. `restart()` restarts it with the data of its last SAVE."""

    url: str
    restart: Callable[[], None]


@pytest.fixture
def new_redis() -> Iterator[Callable[..., OwnRedis]]:
    """`new_redis(arguments…)`: start a Redis that the spec may break. `variable` selects another image."""
    with ExitStack() as servers:

        def new_redis(*arguments: str, **image: str) -> OwnRedis:
            return OwnRedis(*stacks.start_redis(servers, *arguments, **image))

        yield new_redis


@pytest.fixture
def as_the_cache(settings: Any) -> Iterator[Callable[[OwnRedis], None]]:
    """`as_the_cache(server)`: make this server the service's cache."""

    def as_the_cache(server: OwnRedis) -> None:
        settings.CACHES = {"default": service.CACHES["default"] | {"LOCATION": server.url}}
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


# Reports

EXPLANATION = """\
promised: each response has the rows that were committed before its request
happened: {}
to do:    An old value with "hit": the write touched no tag of that entry, or skipped the lease. Compare the tags
          in the entry's Redis hash with those in the log line of the write.
          A "fwd=…" instead of "hit": the entry was not stored, or a write invalidated it. The detail says which.
          An old value with "fwd=…": it was read from the database. Check that the write was committed."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failed spec of the cache its newest responses, with their Cache-Status, and how to read them."""
    report = yield
    if report.when == "call" and report.failed and isinstance(report.longrepr, ExceptionRepr) and any(response.came_from for response in RESPONSES):
        happened = "\n          ".join(map(repr, RESPONSES))
        report.longrepr.addsection("The newest responses of this spec", EXPLANATION.format(happened))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts that specs recorded with `record_property("counted", …)`."""
    for report in terminalreporter.getreports("passed"):
        for _, counted in filter(lambda recorded: recorded[0] == "counted", report.user_properties):
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {counted}.")
