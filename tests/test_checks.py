"""Settings under which the promises cannot be kept: `manage.py check` names each, and what to do."""

from functools import partial

import pytest
from django.core.checks import run_checks
from django.core.checks.registry import registry
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections, transaction
from django.db.models import Prefetch
from django.http import HttpResponse
from django.urls import include, path
from django_redis import get_redis_connection
from rest_framework import serializers

from housing import checks
from housing.freshness import checks as engine
from housing.freshness import private
from housing.freshness.journal import Unreachable, journal
from housing.models import Agent, Office, Property, PropertyImage
from housing.queries import joined, properties
from housing.serializers import OfficeSerializer, PropertyImageSerializer, PropertySerializer
from housing.views import CachedPropertyListView, OptimizedPropertyDetailView, OptimizedPropertyListView, PropertyListView

NOBODY = "redis://127.0.0.1:1/0"
"""Where nobody listens."""


def said(number, deploy=False, databases=None):
    """What our check of this number says and hints: as `manage.py check` asks it, or `check --deploy`, or `check --database`."""
    ours = [check for check in registry.get_checks(deploy) if check.__module__ in (checks.__name__, engine.__name__)]
    found = [message for check in ours for message in check(app_configs=None, databases=databases)]
    return [(message.msg, message.hint) for message in found if message.id == (number if "." in number else f"freshness.{number}")]


def test_the_settings_of_the_specs_keep_every_promise():
    assert run_checks() == []


@pytest.mark.django_db
def test_what_is_checked_at_every_start_asks_no_server(queries, redis_commands):
    """Where an image is built there is none, and `runserver` checks again at each reload."""
    reason = "settings and metadata say it"
    with queries.exactly(0, because=reason), redis_commands.exactly(0, because=reason):
        assert run_checks() == []


# The database


@pytest.fixture
def a_plain_database(monkeypatch):
    """A second database, with Django's own engine."""
    monkeypatch.setitem(connections.settings, "plain", connections.settings["default"] | {"ENGINE": "django.db.backends.sqlite3"})
    yield connections["plain"]
    del connections["plain"]


class Elsewhere:
    """A router that keeps our tables away from it."""

    def allow_migrate(self, db, app_label, **hints):
        return db != "plain" or app_label != "housing"


class Lagging(Elsewhere):
    """A router that reads offices there all the same, as from a replica."""

    def db_for_read(self, model, **hints):
        return "plain" if model is Office else None


def test_our_tables_on_an_engine_that_is_not_ours_are_refused(a_plain_database):
    """Its COMMIT would pass the lease by, and no read would know of the write."""
    with pytest.raises(SystemCheckError) as refused:
        call_command("check")

    assert "(freshness.E001) The database 'plain' commits past the cache: its engine is django.db.backends.sqlite3." in str(refused.value)
    assert "Use housing.freshness.postgresql or housing.freshness.sqlite3, or keep the tracked tables away from it with a database router." in str(
        refused.value
    )
    assert "'default'" not in str(refused.value)


def test_a_database_without_our_tables_may_have_any_engine(a_plain_database, settings):
    settings.DATABASE_ROUTERS = ["tests.test_checks.Elsewhere"]

    assert run_checks() == []


def test_reads_that_go_to_a_replica_are_refused(a_plain_database, settings):
    """What it does not have yet would be remembered as fresh."""
    settings.DATABASE_ROUTERS = ["tests.test_checks.Lagging"]

    assert said("E003") == [
        (
            "Office is read from the database 'plain' and written to 'default'.",
            "A replica lags behind. Let the database router send reads and writes of tracked models to one primary.",
        )
    ]


@pytest.fixture
def in_recovery(transactional_db):
    """A PostgreSQL that says it follows another."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
        cursor.execute("SET search_path = public, pg_catalog")
        yield
        cursor.execute("DROP FUNCTION public.pg_is_in_recovery()")
        cursor.execute("RESET search_path")


@pytest.mark.only("real")
def test_a_database_that_is_a_replica_is_refused_where_it_may_be_asked(in_recovery):
    """Only PostgreSQL has them. `check --database default` asks; `check` alone does not."""
    assert said("E004", databases=["default"]) == [
        (
            "The database 'default' is a replica, which follows another server: it lags behind, and takes no writes.",
            "Connect to the primary's address.",
        )
    ]
    assert said("E004") == []


@pytest.mark.django_db(transaction=True)
def test_a_primary_may_be_asked():
    assert run_checks(databases=["default"]) == []


@pytest.mark.only("real")
@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_is_not_an_error_of_the_settings(monkeypatch):
    """Only where it is a server."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "PORT", 1)

    [(message, hint)] = said("W008", databases=["default"])

    assert message.startswith("The database 'default' could not be asked whether it is a primary (connection failed: ")
    assert hint == "Check again where the database can be reached."


# Redis


def test_a_cache_that_is_not_redis_is_refused(settings):
    """The journal is a script that runs there."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "one, two"}}

    with pytest.raises(SystemCheckError) as refused:
        call_command("check")

    assert "(freshness.E002) The cache 'default' is not django-redis's." in str(refused.value)
    assert "Set its BACKEND to django_redis.cache.RedisCache." in str(refused.value)
    assert said("W001") == said("W002", deploy=True) == []


def through(settings, location):
    """The default cache, at this address."""
    settings.CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}}


@pytest.mark.parametrize("location", [f"{NOBODY},{NOBODY}", [NOBODY, NOBODY]], ids=["a text", "a list"])
def test_replicas_of_redis_are_named_as_not_asked(settings, location):
    """They lag behind the primary, so the journal never reads there."""
    through(settings, location)

    assert said("W001") == [
        (
            "The cache 'default' has 2 servers. The journal and the entries are on the first alone, because replicas lag behind.",
            "Name only the primary in LOCATION.",
        )
    ]


def test_replicas_of_redis_are_not_asked(settings, home, warm, read):
    """What the check says of them is so, and it asks none itself."""
    own = settings.CACHES["default"]
    settings.CACHES = {"default": own | {"LOCATION": [own["LOCATION"], "redis://127.0.0.1:2/0"]}}
    warm()
    assert "refused" not in str(said("W002", deploy=True))
    settings.CACHES = {"default": own}

    assert read("cached").came_from == "hit"


def test_redis_that_is_away_is_not_an_error_of_the_settings(settings):
    through(settings, NOBODY)

    [(message, hint)] = said("W002", deploy=True)

    assert message.startswith("Redis could not be asked whether it is a primary and what it evicts (Error 111 connecting to 127.0.0.1:1.")
    assert hint == "Check again where Redis can be reached."


@pytest.mark.only("embedded")
def test_fakeredis_is_not_asked_which_server_it_is():
    """It has no INFO. FRESHNESS_RUN_ID says so; a server without INFO that it is not set for is refused (test_servers.py)."""
    assert said("E005", deploy=True) == said("W002", deploy=True) == []


@pytest.fixture
def deployed(settings, new_redis):
    """A Redis of this spec's own, as the service's cache."""
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": new_redis().url}}
    journal.forget_server()
    yield get_redis_connection("default")
    journal.forget_server()


VOLATILE = "Set maxmemory-policy to volatile-lru: entries have a TTL, the journal has none."


@pytest.mark.only("real")
def test_an_eviction_policy_that_does_not_keep_the_journal_is_named_with_its_price(deployed):
    """Only a real Redis evicts. Without a limit it does not, and volatile-* takes nothing but entries.

    What the loss of the journal costs, test_races.py knows; what a full server does, this spec tries.
    """
    seen = {}
    for limit in ("100mb", "0"):
        for policy in ("allkeys-lru", "allkeys-random", "noeviction", "volatile-lru", "volatile-ttl"):
            deployed.config_set("maxmemory", limit)
            deployed.config_set("maxmemory-policy", policy)
            seen[limit, policy] = said("W003", deploy=True) + said("W004", deploy=True)

    price = "Redis may evict the journal ({}). No answer is stale then, but every entry is disowned, and none stored for 5 s."
    assert {key: found for key, found in seen.items() if found} == {
        ("100mb", "allkeys-lru"): [(price.format("allkeys-lru"), VOLATILE)],
        ("100mb", "allkeys-random"): [(price.format("allkeys-random"), VOLATILE)],
        ("100mb", "noeviction"): [("Redis evicts nothing (noeviction). Once it is full, it takes no lease, and a write without one fails.", VOLATILE)],
    }
    journal.begin()
    deployed.config_set("maxmemory-policy", "noeviction")
    deployed.config_set("maxmemory", 1)
    with pytest.raises(Unreachable, match="maxmemory"):
        journal.lease({"t"})


@pytest.mark.only("real")
def test_a_redis_that_is_a_replica_is_refused(deployed):
    """Only a real Redis can be one. It follows a server that nobody answers at, which is enough."""
    assert said("E005", deploy=True) == []

    deployed.replicaof("127.0.0.1", 1)

    [(message, hint)] = said("E005", deploy=True)
    assert message.endswith(" cannot keep the promise: it is a replica, which lags behind another server and takes no lease.")
    assert hint == "Use the primary's address."
    with pytest.raises(Unreachable, match="it is a replica"):
        journal.lease({"t"})


def test_a_cache_that_no_other_process_shares_is_refused_in_production(settings):
    """The specs run in one process; several workers would each believe their own."""
    settings.REDIS_URL = "fakeredis://"

    assert said("housing.E006") == []
    assert said("housing.E006", deploy=True) == [
        (
            "The cache is a fakeredis in this process: every other process has one of its own, and does not see what is written here.",
            "Set REDIS_URL to redis://HOST:PORT/0.",
        )
    ]
    settings.REDIS_URL = "fakeredis://127.0.0.1:6380/0"
    assert said("housing.E006", deploy=True) == []


# What a write makes stale


# What is asked


def decorated():
    """The cached list, as a decorator leaves it that forgot what non_atomic_requests said."""
    view = partial(HttpResponse)
    view.cls = CachedPropertyListView
    return view


class Routes:
    """The cached list: as it is, decorated, and opted out again; and a view that is no business of the cache."""

    urlpatterns = [
        path("as-it-is/", CachedPropertyListView.as_view()),
        path("live/", PropertyListView.as_view()),
        path("v2/", include([path("decorated/", decorated()), path("again/", transaction.non_atomic_requests(decorated()))])),
    ]


@pytest.fixture
def atomic_requests(monkeypatch):
    """Every request in a transaction."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


# Cached views


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        (["housing.Property", "housing.Agent", "housing.Office", "housing.PropertyImage"], "Location"),
        (["housing.Property", "housing.Location", "housing.Agent", "housing.PropertyImage"], "Office"),
    ],
    ids=["joined", "joined twice"],
)
def test_a_cached_view_that_shows_rows_of_a_model_that_is_not_tracked_is_refused(settings, models, shown):
    """Its responses would be right, and never be stored."""
    settings.FRESHNESS_MODELS = models

    assert (
        f"/api/properties/cached/ is cached and shows rows of housing.{shown}, whose writes are not tracked: it would never be stored.",
        f'Add "housing.{shown}" to FRESHNESS_MODELS.',
    ) in said("E009")


@pytest.mark.parametrize("lookup", ["images", Prefetch("images", queryset=PropertyImage.objects.all())], ids=["by name", "as a Prefetch"])
def test_a_cached_view_that_prefetches_a_model_that_is_not_tracked_is_refused(settings, monkeypatch, lookup):
    settings.FRESHNESS_MODELS = ["housing.Property"]
    monkeypatch.setattr(CachedPropertyListView, "queryset", Property.objects.prefetch_related(lookup))

    assert [message.split(" shows rows of ")[1].split(",")[0] for message, _ in said("E009") if "/cached/ " in message] == ["housing.PropertyImage"]


def test_a_django_whose_private_methods_take_something_else_is_refused(monkeypatch):
    """They would be called wrongly, or not at all."""
    monkeypatch.setitem(private.OVERRIDDEN, "django.db.backends.base.base.BaseDatabaseWrapper", {"_commit": "(self, force)"})

    assert said("E007") == [
        (
            "django.db.backends.base.base.BaseDatabaseWrapper._commit is (self) in this Django; the engine overrides (self, force).",
            "Use Django 5.2, 6.0 or 6.1 until the engine knows this one.",
        )
    ]


def test_the_cached_views_opt_out_of_atomic_requests(atomic_requests):
    assert said("E008") == []


def test_a_cached_view_that_does_not_opt_out_is_refused(atomic_requests, settings):
    """It would never be warm."""
    settings.ROOT_URLCONF = Routes

    assert said("E008") == [
        (
            "/v2/decorated/ is answered inside a transaction, which passes the cache by: the database 'default' has ATOMIC_REQUESTS.",
            "Decorate what CachedPropertyListView.as_view() returns with django.db.transaction.non_atomic_requests, as CachedView does.",
        )
    ]


def test_without_atomic_requests_a_cached_view_need_not_opt_out(settings):
    settings.ROOT_URLCONF = Routes

    assert said("E008") == []


# What leaves


def showing(**fields):
    """A serializer of a property that shows these too, and nothing else that is joined."""
    meta = type("Meta", (), {"model": Property, "fields": ["id", "title", *fields]})
    return type("Shown", (serializers.ModelSerializer,), {"Meta": meta, **fields})


class Colleague(serializers.ModelSerializer):
    """Whose office is asked for one row at a time."""

    office = OfficeSerializer()

    class Meta:
        model = Agent
        fields = ["office"]


class Pieces(serializers.Serializer):
    """Of a text, which has no images of a property's, whatever they are called."""

    images = serializers.CharField()


HINT = "Join it in housing/queries.py, by select_related() or, for many, prefetch_related(); and name its rows among the tags there."


@pytest.mark.parametrize(
    ("fields", "unjoined"),
    [
        ({"images": PropertyImageSerializer(many=True)}, {"images": "images"}),
        ({"images": serializers.PrimaryKeyRelatedField(many=True, read_only=True)}, {"images": "images"}),
        ({"town": serializers.SlugRelatedField("title", source="location.properties", many=True, read_only=True)}, {"town": "location.properties"}),
        (
            {"colleagues": Colleague(source="agent.office.agents", many=True)},
            {"colleagues": "agent.office.agents", "colleagues.office": "agent.office.agents.office"},
        ),
        ({"alike": PropertySerializer(source="*")}, {}),
        ({"town": serializers.CharField(source="location.city")}, {}),
        ({"agency": serializers.StringRelatedField(source="agent.office")}, {}),
        ({"photo": serializers.PrimaryKeyRelatedField(source="agent.office", read_only=True)}, {}),
        ({"title": serializers.CharField(source="title.upper")}, {}),
        ({"title": Pieces()}, {}),
        ({"computed": serializers.SerializerMethodField()}, {}),
    ],
    ids=[
        "nested",
        "many ids",
        "through two",
        "nested twice",
        "itself",
        "a column",
        "a text",
        "an id",
        "an attribute of a column",
        "a column in pieces",
        "computed",
    ],
)
def test_a_field_that_reads_a_relation_which_is_not_joined_is_refused(monkeypatch, fields, unjoined):
    """It is the N+1 again, and an entry that does not depend on what it shows."""
    monkeypatch.setattr(OptimizedPropertyListView, "serializer_class", showing(**fields))

    assert said("housing.E009") == [
        (f"Shown.{field} reads {relation}, which the query of OptimizedPropertyListView does not join.", HINT) for field, relation in unjoined.items()
    ]


@pytest.mark.parametrize(
    ("query", "unjoined"),
    [
        (properties(), ["location", "agent", "agent.office", "images"]),
        (properties().select_related("location", "agent"), ["agent.office", "images"]),
        (properties().prefetch_related("location", "agent__office"), ["images"]),
        (properties().select_related("location").prefetch_related(Prefetch("agent", Agent.objects.select_related("office")), "images"), []),
        (joined().prefetch_related(Prefetch("images", PropertyImage.objects.all())), []),
    ],
    ids=["nothing", "one step", "prefetched", "prefetched with a join", "a prefetch of one's own"],
)
def test_a_relation_counts_as_joined_however_it_is_joined(monkeypatch, query, unjoined):
    monkeypatch.setattr(OptimizedPropertyDetailView, "queryset", query)

    assert [message for message, _ in said("housing.E009")] == [
        f"PropertyDetailSerializer.{relation} reads {relation}, which the query of OptimizedPropertyDetailView does not join." for relation in unjoined
    ]


def test_an_id_alone_is_read_without_a_join(monkeypatch):
    """It is a column of the row."""
    monkeypatch.setattr(OptimizedPropertyListView, "queryset", properties())
    monkeypatch.setattr(OptimizedPropertyListView, "serializer_class", showing(agent=serializers.PrimaryKeyRelatedField(read_only=True)))

    assert said("housing.E009") == []


# Debug


@pytest.fixture
def debugging(settings):
    """Debug on, the toolbar first, for this machine alone."""
    settings.DEBUG, settings.ALLOWED_HOSTS = True, ["127.0.0.1", "localhost", "[::1]"]
    settings.MIDDLEWARE = [checks.TOOLBAR, *settings.MIDDLEWARE]
    return settings


def test_debug_for_this_machine_is_nobodys_business(debugging):
    assert said("housing.W005") == said("housing.W007") == []


def test_a_toolbar_that_is_not_the_first_middleware_is_named(debugging):
    """What stands before it, it does not see."""
    debugging.MIDDLEWARE = [*debugging.MIDDLEWARE[1:], checks.TOOLBAR]

    assert said("housing.W005") == [
        (
            "The debug toolbar is not the first middleware: it does not see what django.middleware.security.SecurityMiddleware does.",
            "Put debug_toolbar.middleware.DebugToolbarMiddleware first in MIDDLEWARE.",
        )
    ]


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A container, whose gateway is 172.21.0.1."""
    mark = tmp_path / ".dockerenv"
    mark.touch()
    monkeypatch.setattr(checks, "CONTAINER", (tmp_path / "another engine's", mark))
    monkeypatch.setattr(checks, "gateways", lambda: ["172.21.0.1"])
    return mark


def test_a_container_that_hides_the_toolbar_from_its_host_is_named(debugging, container):
    """A browser there comes from the gateway, whatever its own address is."""
    assert said("housing.W006") == [
        (
            "This is a container, and its gateway 172.21.0.1 is not in INTERNAL_IPS: the toolbar is hidden from a browser on the host.",
            "Add gateways() to INTERNAL_IPS while debug is on, as housing/settings.py does.",
        )
    ]


def gateway_known(settings, mark):
    settings.INTERNAL_IPS = ["172.21.0.1"]


def no_container(settings, mark):
    mark.unlink()


def no_toolbar(settings, mark):
    settings.MIDDLEWARE = settings.MIDDLEWARE[1:]


def no_debug(settings, mark):
    settings.DEBUG = False


@pytest.mark.parametrize("change", [gateway_known, no_container, no_toolbar, no_debug])
def test_where_there_is_nothing_to_hide_no_gateway_is_missed(debugging, container, change):
    change(debugging, container)

    assert said("housing.W006") == []


def test_debug_in_production_is_named(debugging):
    """Where others get in, an error would show them settings and SQL. Django's own check says it under --deploy, whoever gets in."""
    debugging.ALLOWED_HOSTS = ["localhost", "homes.example.com", "*"]

    assert said("housing.W007") == [
        (
            "Debug is on, and ALLOWED_HOSTS lets in homes.example.com, *: an error shows its settings and SQL to whoever asks.",
            "Set DJANGO_DEBUG=false, or allow this machine alone: 127.0.0.1, localhost.",
        )
    ]
    debugging.DEBUG = False
    assert said("housing.W007") == []
