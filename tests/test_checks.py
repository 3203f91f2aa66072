"""System checks. `manage.py check` reports settings, servers and views with which responses could be stale or never cached, and says what to do."""

from functools import partial

import pytest
from django.contrib.auth.models import Group
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
from housing.freshness.checks import MAY_BE_ZERO, seconds_are_positive
from housing.freshness.journal import Unreachable, journal
from housing.freshness.settings import SETTINGS
from housing.models import Agent, Office, Property, PropertyImage
from housing.queries import joined, properties
from housing.serializers import OfficeSerializer, PropertyImageSerializer, PropertySerializer
from housing.views import CachedPropertyListView, OptimizedPropertyDetailView, OptimizedPropertyListView, PropertyListView

NOBODY = "redis://127.0.0.1:1/0"
"""An address at which no server listens."""


def reported(number, deploy=False, databases=None):
    """(message, hint) of each report with this number from `manage.py check`, `check --deploy` or `check --database`."""
    ours = [check for check in registry.get_checks(deploy) if check.__module__ in (checks.__name__, engine.__name__)]
    found = [message for check in ours for message in check(app_configs=None, databases=databases)]
    return [(message.msg, message.hint) for message in found if message.id == (number if "." in number else f"freshness.{number}")]


@pytest.mark.parametrize(("beginning", "tag"), [("cache_", "caches"), ("redis_", "caches"), ("database_", "database"), ("cached_views_", "urls")])
def test_a_check_has_the_tag_of_what_it_checks(beginning, tag):
    """`check --tag caches` asks no database."""
    ours = [check for check in registry.get_checks(include_deployment_checks=True) if check.__module__ in (checks.__name__, engine.__name__)]
    found = [check for check in ours if check.__name__.startswith(beginning)]

    assert found
    assert [check.__name__ for check in found if tag not in check.tags] == []


def test_a_check_leaves_the_querysets_of_the_views_as_they_are(monkeypatch):
    """A view reads with the same query, which would have joins that no request asked for."""
    queryset = joined()
    monkeypatch.setattr(CachedPropertyListView, "queryset", queryset)
    before = {**queryset.query.alias_map}
    run_checks()

    assert queryset.query.alias_map == before


def test_the_settings_of_the_specs_pass_every_check():
    """Otherwise a check that always reports would go unnoticed."""
    assert run_checks() == []


@pytest.mark.django_db
def test_the_checks_at_every_start_query_no_server(queries, redis_commands):
    """While an image is built there is no server, and `runserver` runs the checks at each reload."""
    reason = "the checks read only settings and metadata"
    with queries.exactly(0, because=reason), redis_commands.exactly(0, because=reason):
        assert run_checks() == []


# The database


@pytest.fixture
def a_plain_database(monkeypatch):
    """A second database, with Django's own backend."""
    monkeypatch.setitem(connections.settings, "plain", connections.settings["default"] | {"ENGINE": "django.db.backends.sqlite3"})
    yield connections["plain"]
    del connections["plain"]


class KeptOut:
    """A router that keeps our tables out of the second database."""

    def allow_migrate(self, db, app_label, **hints):
        return db != "plain" or app_label != "housing"


class Lagging(KeptOut):
    """A router that nevertheless reads offices from it, as from a replica."""

    def db_for_read(self, model, **hints):
        return "plain" if model is Office else None


def test_tracked_tables_on_another_database_backend_are_refused(a_plain_database):
    """Its COMMIT would open no lease, so a write would invalidate nothing."""
    with pytest.raises(SystemCheckError) as refused:
        call_command("check")

    assert "(freshness.E001) The database 'plain' bypasses the cache: its engine is django.db.backends.sqlite3." in str(refused.value)
    assert "Use housing.freshness.postgresql or housing.freshness.sqlite3, or keep the tracked tables out of this database with a database router." in str(
        refused.value
    )
    assert "'default'" not in str(refused.value)


def test_a_database_without_tracked_tables_may_have_any_backend(a_plain_database, settings):
    """No cached response depends on it."""
    settings.DATABASE_ROUTERS = ["tests.test_checks.KeptOut"]

    assert run_checks() == []


def test_reads_from_a_replica_are_refused(a_plain_database, settings):
    """Rows that the replica has not updated yet would be cached as fresh."""
    settings.DATABASE_ROUTERS = ["tests.test_checks.Lagging"]

    assert reported("E003") == [
        (
            "Office is read from the database 'plain' and written to 'default'.",
            "A replica lags behind. Let the database router send reads and writes of tracked models to one primary.",
        )
    ]


@pytest.fixture
def in_recovery(transactional_db):
    """A PostgreSQL that reports that it is in recovery, as a replica does."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
        cursor.execute("SET search_path = public, pg_catalog")
        yield
        cursor.execute("DROP FUNCTION public.pg_is_in_recovery()")
        cursor.execute("RESET search_path")


@pytest.mark.only("real")
def test_a_replica_of_the_database_is_refused_by_check_database(in_recovery):
    """`check --database default` queries the database, and `check` alone does not. (Only PostgreSQL has replicas.)"""
    assert reported("E004", databases=["default"]) == [
        (
            "The database 'default' is a replica. It lags behind its primary, and accepts no writes.",
            "Connect to the primary.",
        )
    ]
    assert reported("E004") == []


@pytest.mark.django_db(transaction=True)
def test_a_primary_passes_check_database():
    """The check must report only replicas."""
    assert run_checks(databases=["default"]) == []


@pytest.mark.only("real")
@pytest.mark.django_db(transaction=True)
def test_an_unreachable_database_is_a_warning(monkeypatch):
    """The check warns, because it cannot see the role. (Only PostgreSQL is a server.)"""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "PORT", 1)

    [(message, hint)] = reported("W008", databases=["default"])

    assert message.startswith("Could not query the database 'default' for its role (connection failed: ")
    assert hint == "Run the check again from a host that can reach the database."


# Redis


def test_a_cache_that_is_not_redis_is_refused(settings):
    """The journal is a Lua script in Redis."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "one, two"}}

    with pytest.raises(SystemCheckError) as refused:
        call_command("check")

    assert "(freshness.E002) The cache 'default' is not django-redis's." in str(refused.value)
    assert "Set its BACKEND to django_redis.cache.RedisCache." in str(refused.value)
    assert reported("W001") == reported("W002", deploy=True) == []


def through(settings, location):
    """Set the LOCATION of the default cache."""
    settings.CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}}


@pytest.mark.parametrize("location", [f"{NOBODY},{NOBODY}", [NOBODY, NOBODY]], ids=["a string", "a list"])
def test_replicas_of_redis_are_reported_as_unused(settings, location):
    """Replicas lag behind the primary, so the journal never reads from them."""
    through(settings, location)

    assert reported("W001") == [
        (
            "The cache 'default' has 2 servers. The journal and the entries use only the first one, because replicas lag behind.",
            "List only the primary in LOCATION.",
        )
    ]


def test_replicas_of_redis_are_never_queried(settings, home, warm, read):
    """An unreachable replica affects neither the cache nor the check."""
    own = settings.CACHES["default"]
    settings.CACHES = {"default": own | {"LOCATION": [own["LOCATION"], "redis://127.0.0.1:2/0"]}}
    warm()
    assert "refused" not in str(reported("W002", deploy=True))
    settings.CACHES = {"default": own}

    assert read("cached").came_from == "hit"


def test_an_unreachable_redis_is_a_warning(settings):
    """The settings may be correct, and `check --deploy` may run where Redis is unreachable."""
    through(settings, NOBODY)

    [(message, hint)] = reported("W002", deploy=True)

    assert message.startswith("Could not query Redis for its role and eviction policy (Error 111 connecting to 127.0.0.1:1.")
    assert hint == "Run the check again from a host that can reach Redis."


@pytest.mark.only("embedded")
def test_the_role_of_fakeredis_is_not_checked():
    """Fakeredis has no INFO, so FRESHNESS_RUN_ID replaces it. A server without INFO is refused if that setting is missing (test_servers.py)."""
    assert reported("E005", deploy=True) == reported("W002", deploy=True) == []


@pytest.fixture
def deployed(settings, new_redis):
    """A Redis for this spec alone, as the service's cache."""
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": new_redis().url}}
    journal.forget_server()
    yield get_redis_connection("default")
    journal.forget_server()


VOLATILE = "Set maxmemory-policy to volatile-lru: entries have a TTL, the journal has none."


@pytest.mark.only("real")
def test_an_eviction_policy_that_may_evict_the_journal_is_reported_with_its_cost(deployed):
    """Without a memory limit Redis evicts nothing, and with volatile-* it evicts only entries. (Only a real Redis evicts.)

    test_races.py shows the cost of an evicted journal. This spec shows that a full server opens no lease.
    """
    seen = {}
    for limit in ("100mb", "0"):
        for policy in ("allkeys-lru", "allkeys-random", "noeviction", "volatile-lru", "volatile-ttl"):
            deployed.config_set("maxmemory", limit)
            deployed.config_set("maxmemory-policy", policy)
            seen[limit, policy] = reported("W003", deploy=True) + reported("W004", deploy=True)

    cost = "Redis may evict the journal ({}). No response becomes stale, but all entries are invalidated, and nothing is cached for 5 s."
    assert {key: found for key, found in seen.items() if found} == {
        ("100mb", "allkeys-lru"): [(cost.format("allkeys-lru"), VOLATILE)],
        ("100mb", "allkeys-random"): [(cost.format("allkeys-random"), VOLATILE)],
        ("100mb", "noeviction"): [("Redis evicts nothing (noeviction). When it is full, writes leave their tags in the outbox.", VOLATILE)],
    }
    [(unlimited, _)] = reported("W011", deploy=True)
    assert "maxmemory is 0" in unlimited
    journal.begin()
    deployed.config_set("maxmemory-policy", "noeviction")
    deployed.config_set("maxmemory", 1)
    with pytest.raises(Unreachable, match="maxmemory"):
        journal.lease({"t"})


@pytest.mark.only("real")
def test_a_replica_of_redis_is_refused(deployed):
    """The server follows an unreachable primary, which is enough to make it a replica. (Only a real Redis can be one.)"""
    assert reported("E005", deploy=True) == []

    deployed.replicaof("127.0.0.1", 1)

    [(message, hint)] = reported("E005", deploy=True)
    assert message.endswith(" cannot keep the promise: it is a replica, which lags behind another server and takes no lease.")
    assert hint == "Use the primary's address."
    with pytest.raises(Unreachable, match="it is a replica"):
        journal.lease({"t"})


def test_a_cache_inside_one_process_is_refused_in_production(settings):
    """Each worker would have its own cache, and keep entries that another worker's write should invalidate."""
    settings.REDIS_URL = "fakeredis://"

    assert reported("housing.E006") == []
    assert reported("housing.E006", deploy=True) == [
        (
            "The cache is a fakeredis inside this process. Every process has its own, so a write does not invalidate the entries of other processes.",
            "Set REDIS_URL to redis://HOST:PORT/0.",
        )
    ]
    settings.REDIS_URL = "fakeredis://127.0.0.1:6380/0"
    assert reported("housing.E006", deploy=True) == []


# Cached views


def decorated():
    """The cached list, wrapped by a decorator that loses the mark of non_atomic_requests."""
    view = partial(HttpResponse)
    view.cls = CachedPropertyListView
    return view


class Routes:
    """The cached list three times: unchanged, decorated, and decorated with the mark restored. The live list is not cached."""

    urlpatterns = [
        path("unchanged/", CachedPropertyListView.as_view()),
        path("live/", PropertyListView.as_view()),
        path("v2/", include([path("decorated/", decorated()), path("restored/", transaction.non_atomic_requests(decorated()))])),
    ]


@pytest.fixture
def atomic_requests(monkeypatch):
    """Run every request in a transaction."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        (["housing.Property", "housing.Agent", "housing.Office", "housing.PropertyImage"], "Location"),
        (["housing.Property", "housing.Location", "housing.Agent", "housing.PropertyImage"], "Office"),
    ],
    ids=["joined", "joined twice"],
)
def test_a_cached_view_that_shows_rows_of_an_untracked_model_is_refused(settings, models, shown):
    """Its responses would be fresh, but never stored."""
    settings.FRESHNESS_MODELS = models

    assert (
        f"/api/properties/cached/ is cached and shows rows of housing.{shown}, whose writes are not tracked. Its responses would never be stored.",
        f'Add "housing.{shown}" to FRESHNESS_MODELS.',
    ) in reported("E009")


@pytest.mark.parametrize(
    ("query", "untracked"),
    [
        (Property.objects.prefetch_related("images"), ["housing.PropertyImage"]),
        (Property.objects.prefetch_related(Prefetch("images", queryset=PropertyImage.objects.all())), ["housing.PropertyImage"]),
        (Group.objects.prefetch_related("user_set"), ["auth.Group", "auth.User", "auth.User_groups"]),
    ],
    ids=["by name", "as a Prefetch", "by Django's own name"],
)
def test_a_cached_view_that_prefetches_an_untracked_model_is_refused(settings, monkeypatch, query, untracked):
    """Prefetched rows are part of the response, too."""
    settings.FRESHNESS_MODELS = ["housing.Property"]
    monkeypatch.setattr(CachedPropertyListView, "queryset", query)

    assert [message.split(" shows rows of ")[1].split(",")[0] for message, _ in reported("E009") if "/cached/ " in message] == untracked


def test_the_cached_views_pass_the_check_of_atomic_requests(atomic_requests):
    """`CachedView.as_view()` does it, so a project can keep ATOMIC_REQUESTS."""
    assert reported("E008") == []


def test_a_cached_view_that_runs_inside_atomic_requests_is_refused(atomic_requests, settings):
    """ATOMIC_REQUESTS opens a transaction, which bypasses the cache, so every read would be a miss."""
    settings.ROOT_URLCONF = Routes

    assert reported("E008") == [
        (
            "/v2/decorated/ runs inside a transaction, which bypasses the cache. The database 'default' has ATOMIC_REQUESTS.",
            "Decorate the result of CachedPropertyListView.as_view() with django.db.transaction.non_atomic_requests, as CachedView does.",
        )
    ]


def test_without_atomic_requests_every_cached_view_passes_the_check(settings):
    """Its requests run outside transactions in any case."""
    settings.ROOT_URLCONF = Routes

    assert reported("E008") == []


# Django


def test_a_django_whose_private_methods_have_other_signatures_is_refused(monkeypatch):
    """The engine's overrides would be called with wrong arguments, or not at all."""
    monkeypatch.setitem(private.OVERRIDDEN, "django.db.backends.base.base.BaseDatabaseWrapper", {"_commit": "(self, force)"})

    assert reported("E007") == [
        (
            "django.db.backends.base.base.BaseDatabaseWrapper._commit is (self) in the installed version; the engine expects (self, force).",
            "Use Django 5.2, 6.0 or 6.1, and psycopg 3.3, until the engine knows this one.",
        )
    ]


# Serializers


def showing(**fields):
    """A serializer of a property with id, title and these fields, and no other relation."""
    meta = type("Meta", (), {"model": Property, "fields": ["id", "title", *fields]})
    return type("Shown", (serializers.ModelSerializer,), {"Meta": meta, **fields})


class Colleague(serializers.ModelSerializer):
    """An agent with its office, which costs one query for each row."""

    office = OfficeSerializer()

    class Meta:
        model = Agent
        fields = ["office"]


class Pieces(serializers.Serializer):
    """The parts of a string. Its `images` is not the relation of a property."""

    images = serializers.CharField()


HINT = "Join it in housing/queries.py with select_related(), or prefetch_related() if it leads to many rows."


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
        "through two relations",
        "nested twice",
        "the row itself",
        "a column",
        "a string",
        "an id",
        "an attribute of a column",
        "the parts of a column",
        "computed",
    ],
)
def test_a_field_that_reads_an_unjoined_relation_is_refused(monkeypatch, fields, unjoined):
    """It would cost one query for each row (N+1), and the entry would not depend on the rows that it shows."""
    monkeypatch.setattr(OptimizedPropertyListView, "serializer_class", showing(**fields))

    assert reported("housing.E009") == [
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
    ids=["nothing", "one step", "prefetched", "prefetched with a join", "with its own Prefetch"],
)
def test_joined_and_prefetched_relations_both_count_as_joined(monkeypatch, query, unjoined):
    """Both `select_related` and `prefetch_related` avoid one query for each row."""
    monkeypatch.setattr(OptimizedPropertyDetailView, "queryset", query)

    assert [message for message, _ in reported("housing.E009")] == [
        f"PropertyDetailSerializer.{relation} reads {relation}, which the query of OptimizedPropertyDetailView does not join." for relation in unjoined
    ]


def test_a_foreign_key_shown_as_an_id_needs_no_join(monkeypatch):
    """A foreign key's id is a column of the row itself."""
    monkeypatch.setattr(OptimizedPropertyListView, "queryset", properties())
    monkeypatch.setattr(OptimizedPropertyListView, "serializer_class", showing(agent=serializers.PrimaryKeyRelatedField(read_only=True)))

    assert reported("housing.E009") == []


# Debug


@pytest.fixture
def debugging(settings):
    """DEBUG on, the toolbar first, and only this machine in ALLOWED_HOSTS."""
    settings.DEBUG, settings.ALLOWED_HOSTS = True, ["127.0.0.1", "localhost", "[::1]"]
    settings.MIDDLEWARE = [checks.TOOLBAR, *settings.MIDDLEWARE]
    return settings


def test_debug_on_this_machine_alone_is_not_reported(debugging):
    """This is the normal setup of a developer."""
    assert reported("housing.W005") == reported("housing.W007") == []


def test_a_toolbar_that_is_not_the_first_middleware_is_reported(debugging):
    """The toolbar neither times nor counts the middleware before it."""
    debugging.MIDDLEWARE = [*debugging.MIDDLEWARE[1:], checks.TOOLBAR]

    assert reported("housing.W005") == [
        (
            "The debug toolbar is not the first middleware, so it does not measure housing.outages.Outages.",
            "Put debug_toolbar.middleware.DebugToolbarMiddleware first in MIDDLEWARE.",
        )
    ]


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A container whose gateway is 172.21.0.1."""
    mark = tmp_path / ".dockerenv"
    mark.touch()
    monkeypatch.setattr(checks, "CONTAINER", (tmp_path / "another engine's", mark))
    monkeypatch.setattr(checks, "gateways", lambda: ["172.21.0.1"])
    return mark


def test_a_container_that_hides_the_toolbar_from_its_host_is_reported(debugging, container):
    """Requests from a browser on the host come from the gateway."""
    assert reported("housing.W006") == [
        (
            "The gateway 172.21.0.1 of this container is not in INTERNAL_IPS, so the toolbar is hidden from browsers on the host.",
            "Add gateways() to INTERNAL_IPS if DEBUG is on, as housing/settings.py does.",
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
def test_a_gateway_is_not_reported_if_the_toolbar_is_off_or_already_shown(debugging, container, change):
    """The warning would only be noise."""
    change(debugging, container)

    assert reported("housing.W006") == []


def test_debug_in_production_is_reported(debugging):
    """Error pages would expose settings and SQL. Django's own check reports DEBUG only under --deploy."""
    debugging.ALLOWED_HOSTS = ["localhost", "homes.example.com", "*"]

    assert reported("housing.W007") == [
        (
            "DEBUG is on, and ALLOWED_HOSTS allows homes.example.com, *. Error pages expose settings and SQL to anyone.",
            "Set DJANGO_DEBUG=false, or allow only 127.0.0.1 and localhost.",
        )
    ]
    debugging.DEBUG = False
    assert reported("housing.W007") == []


@pytest.mark.parametrize("value", [0, -1, "1", True, None, float("nan")])
@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.unit == "seconds"])
def test_a_setting_in_seconds_that_keeps_no_promise_is_refused(settings, name, value):
    """With a bound of 0 seconds no hit is given, and the watchman would never pause. Two settings may be 0, which turns them off."""
    setattr(settings, f"FRESHNESS_{name}", value)
    is_off = value == 0 and name in MAY_BE_ZERO
    assert [(each.id, each.msg) for each in seconds_are_positive(None)] == ([] if is_off else [("freshness.E010", f"FRESHNESS_{name} is {value!r}.")])
