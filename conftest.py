"""The cast: every noun and verb that a spec may use."""

from __future__ import annotations

import datetime
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
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
from housing.freshness.journal import journal
from housing.models import Agent, Location, Office, Property, PropertyImage
from housing.views import select_of
from tests import blogs, stacks
from tests.blogs import Blog
from tests.instruments import CONTROL

VARIANTS = {"naive": "/api/properties/live/naive/", "optimized": "/api/properties/live/optimized/", "cached": "/api/properties/cached/"}
"""The three ways to the same answer."""

ROOT = Path(__file__).resolve().parent

NEW_YEAR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """A database of their own for the specs; on SQLite a file, for one in memory locks its readers out while a write is open."""
    name = connection.settings_dict["NAME"]
    connection.settings_dict["TEST"]["NAME"] = f"{name}.specs" if connection.vendor == "sqlite" else f"{name}_specs_{secrets.token_hex(4)}"


@pytest.fixture(scope="session", autouse=True)
def own_keys_are_deleted() -> Iterator[None]:
    """What the specs left in Redis goes with them."""
    yield
    flush()


@pytest.fixture
def transactional_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """As pytest-django's, where what is written is committed; and emptied afterwards without making Django's permissions anew each time."""
    with django_db_blocker.unblock():
        yield
        connection.close()
        kept = {model._meta.db_table for model in (ContentType, Permission)}
        emptied = [table for table in connection.introspection.django_table_names() if table not in kept]
        connection.ensure_connection()
        for statement in ("BEGIN", *connection.ops.sql_flush(no_style(), emptied, allow_cascade=False), "COMMIT"):
            connection.connection.execute(statement)  # past the journal, for the next spec begins with a new one


@pytest.fixture(autouse=True)
def a_cold_cache(request: pytest.FixtureRequest) -> None:
    """Nothing is remembered, and the journal knows that nobody else writes."""
    select_of.cache_clear()  # what another spec had compiled, this one would not reach
    clear_the_cache()


def flush() -> None:
    """FLUSHALL, as far as we are concerned: the server may be somebody else's too."""
    client = get_redis_connection("default")
    client.delete(cache.make_key("journal"), *client.scan_iter(cache.make_key("*")))


def clear_the_cache() -> None:
    """Make the cache cold."""
    flush()
    journal.begin()


# The nouns of the cast are facts.


def a_property(number: int = 0, **fields: Any) -> Property:
    """A property not saved yet, with a location, an agent and an office of its own; `number` says which, and is its age in minutes."""
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
    """The same, with what they refer to, in the database."""
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
    """So many, newest first; the first two have images. The cache is cold afterwards."""
    with transaction.atomic():
        homes = saved(*map(a_property, range(count)))
        make_images(*homes[:2])
    clear_the_cache()
    return homes


def make_images(*homes: Property) -> None:
    """Two images for each of these properties."""
    PropertyImage.objects.bulk_create(
        PropertyImage(property=home, url=f"https://images.example.com/{home.pk}/{position}.jpg", position=position) for home in homes for position in range(2)
    )


@pytest.fixture
def twenty_properties(transactional_db: None) -> list[Property]:
    """One full page, newest first: each has a location, an agent and an office of its own; the first two have images."""
    return make_properties(20)


@pytest.fixture
def home(twenty_properties: list[Property]) -> Property:
    """The newest of twenty properties."""
    return twenty_properties[0]


@pytest.fixture(scope="session")
def new_blog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blog]:
    """A project of somebody else's, with the engine in it, in a process of its own."""
    with blogs.started(tmp_path_factory.mktemp("blog")) as blog:
        yield blog


@pytest.fixture
def blog(new_blog: Blog) -> Blog:
    """That blog with three posts, and a cold cache."""
    new_blog.run("start()")
    return new_blog


# The verbs of the cast are acts.


@dataclass(frozen=True)
class Response:
    """What a reader got. `came_from` is Cache-Status without its first word: `hit`, `fwd=miss; stored`, …"""

    response: Any

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


@pytest.fixture(scope="session")
def handler() -> ClientHandler:
    """The service's middleware, loaded once, as a server does."""
    return Client().handler


@pytest.fixture
def client(handler: ClientHandler) -> Client:
    """A reader with no cookies yet."""
    client = Client()
    client.handler = handler
    return client


@pytest.fixture
def read(client: Client) -> Callable[..., Response]:
    """Ask as a program does: a door or any path, `read("cached", city="Springfield")`, `read("naive/7")`, `read("cached?cursor=…")`."""
    return partial(ask, client)


def ask(client: Client, what: str = "cached", headers: dict[str, str] | None = None, **parameters: Any) -> Response:
    """One GET."""
    path, _, query = what.partition("?")
    variant, _, rest = path.partition("/")
    path = VARIANTS[variant] + (f"{rest}/" if rest else "") if variant in VARIANTS else path
    return Response(client.get(path, parameters or None, headers=headers, query_params=None if parameters else QueryDict(query)))


@pytest.fixture
def read_the_list(read: Callable[..., Response]) -> Callable[..., list[Any]]:
    """The rows of a page, as the cached door gives them unless another is named."""

    def read_the_list(variant: str = "cached", **parameters: Any) -> list[Any]:
        return read(variant, **parameters).rows

    return read_the_list


@pytest.fixture
def warm(read: Callable[..., Response]) -> Callable[..., bytes]:
    """Make a page warm, and see that it is."""

    def warm(what: str = "cached", **parameters: Any) -> bytes:
        read(what, **parameters)
        response = read(what, **parameters)
        assert response.came_from == "hit"
        return response.body

    return warm


@pytest.fixture
def tamper_with_the_entry() -> Callable[[], bytes]:
    """Change what the cache holds in its one entry, behind the service's back: whoever answers with it asked nobody else."""

    def tamper_with_the_entry() -> bytes:
        [entry] = entries()
        mark = b'{"next":null,"previous":null,"results":["planted"]}'
        get_redis_connection("default").hset(entry, "body", mark)
        return mark

    return tamper_with_the_entry


def entries() -> list[bytes]:
    """The keys of all that is remembered."""
    client, journal_key = get_redis_connection("default"), cache.make_key("journal").encode()
    return [key for key in client.scan_iter(cache.make_key("*")) if key != journal_key and client.hexists(key, "body")]


@pytest.fixture
def elsewhere() -> Callable[[Callable[[], Any]], Any]:
    """Do something on another connection, as another process would, and wait until it is done."""

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
    """`with meanwhile(act):` the first query of the block has its answer, then `act` happens elsewhere, then the block goes on.

    With `times`, so does the first query of each further attempt: a query counts as first if it is the same again.
    """

    @contextmanager
    def meanwhile(act: Callable[[], Any], times: int = 1) -> Iterator[None]:
        first: list[str] = []

        def overtake(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            found = execute(sql, *rest)
            if not CONTROL.match(sql) and len(first) < times and first[:1] in ([], [sql]):
                first.append(sql)
                elsewhere(act)
            return found

        with connection.execute_wrapper(overtake):
            yield
        assert len(first) == times, f"{times} queries were to be overtaken, {len(first)} were"

    return meanwhile


@pytest.fixture
def around_commit(monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[..., Any]) -> Callable[..., AbstractContextManager[None]]:
    """`with around_commit(before=act, after=act):` each happens elsewhere, between the lease and COMMIT, and between COMMIT and the close.

    An act that raises is a process that dies there.
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
    """SIGKILL, as far as the code that it hits can tell: nothing after it runs."""


def die() -> None:
    """End this process, here."""
    raise Killed


@pytest.fixture
def redis_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Redis's own clock, stopped: `redis_clock.seconds += 5` turns it."""

    class Clock:
        seconds = time.time()

        def time(self) -> float:
            return self.seconds

    clock = Clock()
    monkeypatch.setattr("fakeredis.commands_mixins.server_mixin.time", clock)
    journal.begin()
    return clock


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock by which a reader waits for another's answer, each its own, which only waiting turns; `waiting.begun` is called in each pause."""

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
    """A server of a spec's own. `restart()` ends it and starts it again, with the data of its last SAVE."""

    url: str
    restart: Callable[[], None]


@pytest.fixture
def new_redis() -> Iterator[Callable[..., OwnRedis]]:
    """`new_redis(arguments…)`: a Redis that a spec may break; `variable` names another image."""
    with ExitStack() as servers:

        def new_redis(*arguments: str, **image: str) -> OwnRedis:
            return OwnRedis(*stacks.start_redis(servers, *arguments, **image))

        yield new_redis


@pytest.fixture
def as_the_cache(settings: Any) -> Iterator[Callable[[OwnRedis], None]]:
    """`as_the_cache(server)`: from now on it is the service's."""

    def as_the_cache(server: OwnRedis) -> None:
        settings.CACHES = {"default": service.CACHES["default"] | {"LOCATION": server.url}}
        journal.forget_server()

    yield as_the_cache
    journal.forget_server()


@pytest.fixture
def own_redis(as_the_cache: Callable[[OwnRedis], None], new_redis: Callable[..., OwnRedis]) -> Callable[..., OwnRedis]:
    """A Redis of this spec's own, as the service's cache: `own_redis(arguments…)`."""

    def own_redis(*arguments: str, **image: str) -> OwnRedis:
        server = new_redis(*arguments, **image)
        as_the_cache(server)
        clear_the_cache()
        return server

    return own_redis


@pytest.fixture
def redis_unreachable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """`with redis_unreachable():` every connection is cut, and no new one can be made."""

    @contextmanager
    def away() -> Iterator[None]:
        def refuse(*_: Any, **__: Any) -> None:
            raise redis.ConnectionError("connection refused")

        with monkeypatch.context() as patched:
            patched.setattr(redis.connection.AbstractConnection, "connect_check_health", refuse)
            get_redis_connection("default").connection_pool.disconnect()
            yield

    return away


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a run of many counted, for whoever quotes it: `record_property("counted", …)`."""
    for report in terminalreporter.getreports("passed"):
        for _, counted in filter(lambda recorded: recorded[0] == "counted", report.user_properties):
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {counted}.")
