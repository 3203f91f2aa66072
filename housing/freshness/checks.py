"""Django system checks of the settings, servers and views on which freshness depends.

An error means that responses may be stale, or never cached. A warning means that they are fresh at a cost. Redis is queried only under `check --deploy`, and a
database only under `check --database`. All other checks read settings and metadata, because `check` and `runserver` must not wait for a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.core.exceptions import EmptyResultSet
from django.db import OperationalError, connections, router
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Model, Prefetch, QuerySet
from django.urls import URLResolver, get_resolver
from django_redis import get_redis_connection
from django_redis.cache import RedisCache
from redis.sentinel import SentinelConnectionPool

from . import private
from .breaker import Unreachable
from .connection import ConnectionMixin
from .fingerprint import settings_without_text
from .identity import IdentifiedMixin, Unidentified
from .journal import Refused, journal
from .settings import SETTINGS, conf
from .tracking import tables, tracked
from .views import CachedView

ENGINE = __name__.rpartition(".")[0]
"""The dotted path of this package."""

Found = list[checks.CheckMessage]


def connect() -> None:
    """Register the checks."""
    checks.register(databases_have_the_engines_backend, checks.Tags.models)
    checks.register(reads_go_where_writes_go, checks.Tags.models)
    checks.register(database_is_primary, checks.Tags.database)
    checks.register(database_has_an_identity, checks.Tags.database)
    checks.register(database_sees_other_programs, checks.Tags.database)
    checks.register(cache_is_redis, checks.Tags.caches)
    checks.register(cache_is_one_server, checks.Tags.caches)
    checks.register(redis_is_a_primary_that_keeps_the_journal, checks.Tags.caches, deploy=True)
    checks.register(cached_views_are_outside_transactions, checks.Tags.urls)
    checks.register(cached_views_read_what_is_tracked, checks.Tags.urls)
    checks.register(django_is_as_the_engine_knows_it, checks.Tags.compatibility)
    checks.register(settings_have_a_text)
    checks.register(seconds_are_positive)


# The database


def _tracked_databases() -> list[str]:
    """The aliases of the databases that hold tracked tables."""
    return sorted({alias for alias in connections for model in tracked() if router.allow_migrate_model(alias, model)})


def databases_have_the_engines_backend(app_configs: Any, **_: Any) -> Found:
    """Every database with tracked tables opens a lease before COMMIT."""
    return [
        checks.Error(
            f"The database '{alias}' bypasses the cache: its engine is {connections[alias].settings_dict['ENGINE']}.",
            hint=f"Use {ENGINE}.postgresql or {ENGINE}.sqlite3, or keep the tracked tables out of this database with a database router.",
            id="freshness.E001",
        )
        for alias in _tracked_databases()
        if not isinstance(connections[alias], ConnectionMixin)
    ]


def reads_go_where_writes_go(app_configs: Any, **_: Any) -> Found:
    """A replica may lag behind a committed write, and a fill that reads from it would be cached as fresh."""
    return [
        checks.Error(
            f"{model.__name__} is read from the database '{router.db_for_read(model)}' and written to '{router.db_for_write(model)}'.",
            hint="A replica lags behind. Let the database router send reads and writes of tracked models to one primary.",
            id="freshness.E003",
        )
        for model in tracked()
        if router.db_for_read(model) != router.db_for_write(model)
    ]


def database_is_primary(app_configs: Any, databases: Iterable[str] | None = None, **_: Any) -> Found:
    """A replica lags behind, even if reads and writes have the same address. Queries only the databases of `check --database`."""
    return [message for alias in databases or () if alias in _tracked_databases() and connections[alias].vendor == "postgresql" for message in _recovery(alias)]


def _recovery(alias: str) -> Iterator[checks.CheckMessage]:
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            [is_replica] = cursor.fetchone()
    except OperationalError as error:
        yield checks.Warning(
            f"Could not query the database '{alias}' for its role ({' '.join(str(error).split())}).",
            hint="Run the check again from a host that can reach the database.",
            id="freshness.W008",
        )
    else:
        if is_replica:
            yield checks.Error(
                f"The database '{alias}' is a replica. It lags behind its primary, and accepts no writes.",
                hint="Connect to the primary.",
                id="freshness.E004",
            )


def database_sees_other_programs(app_configs: Any, databases: Iterable[str] | None = None, **_: Any) -> Found:
    """A write by another program is seen by a trigger. This is a warning, because an error would stop `migrate`, which creates the triggers."""
    ours = [connection for alias in databases or () if isinstance(connection := connections[alias], ConnectionMixin)]
    return [message for connection in ours for message in _unwatched_in(connection)]


def _unwatched_in(connection: ConnectionMixin) -> Iterator[checks.CheckMessage]:
    with suppress(OperationalError):  # unreachable, which other checks report
        if missing := connection.unwatched():
            yield checks.Warning(
                f"Writes by other programs are not seen in the database '{connection.alias}': a trigger is missing, disabled or outdated "
                f"on {', '.join(missing)}.",
                hint="Run `manage.py migrate` as the owner of these tables.",
                id="freshness.W009",
            )


# Redis


def cache_is_redis(app_configs: Any, **_: Any) -> Found:
    """The journal is a script in Redis."""
    if _has_redis():
        return []
    return [checks.Error(f"The cache '{conf.CACHE}' is not django-redis's.", hint="Set its BACKEND to django_redis.cache.RedisCache.", id="freshness.E002")]


def _has_redis() -> bool:
    return isinstance(caches[conf.CACHE], RedisCache)


def cache_is_one_server(app_configs: Any, **_: Any) -> Found:
    """Django-redis treats the first of several servers as the primary, and the others as its replicas."""
    location = settings.CACHES[conf.CACHE].get("LOCATION", "")
    servers = location.split(",") if isinstance(location, str) else location
    if not _has_redis() or len(servers) == 1:
        return []
    return [
        checks.Warning(
            f"The cache '{conf.CACHE}' has {len(servers)} servers. The journal and the entries use only the first one, because replicas lag behind.",
            hint="List only the primary in LOCATION.",
            id="freshness.W001",
        )
    ]


def redis_is_a_primary_that_keeps_the_journal(app_configs: Any, **_: Any) -> Found:
    """Only the server knows its role and eviction policy. The check sends only INFO, which the journal needs, too, so no other permission is required."""
    if not _has_redis():
        return []
    try:
        info = journal.inspect_server()
        return [*_eviction(info), *_failover(info)]
    except Refused as refused:
        return [checks.Error(refused.reason, hint=refused.remedy, id="freshness.E005")]
    except Unreachable as error:
        return [
            checks.Warning(
                f"Could not query Redis for its role and eviction policy ({error.__cause__}).",
                hint="Run the check again from a host that can reach Redis.",
                id="freshness.W002",
            )
        ]


def _eviction(info: dict[str, str]) -> Iterator[checks.CheckMessage]:
    policy, hint = info.get("maxmemory_policy", ""), "Set maxmemory-policy to volatile-lru: entries have a TTL, the journal has none."
    if info.get("maxmemory", "0") == "0":
        yield checks.Warning(
            "Redis has no limit of its memory (maxmemory is 0), so entries may take all of the machine's.",
            hint="Set maxmemory to what the entries may take, some 15 kB each, and maxmemory-policy to volatile-lru.",
            id="freshness.W011",
        )
        return  # without a limit it evicts nothing
    if policy.startswith("allkeys-"):
        yield checks.Warning(
            f"Redis may evict the journal ({policy}). No response becomes stale, but all entries are invalidated, and nothing is cached for {conf.LEASE:g} s.",
            hint=hint,
            id="freshness.W003",
        )
    elif policy == "noeviction":
        yield checks.Warning(
            "Redis evicts nothing (noeviction). When it is full, writes leave their tags in the outbox.",
            hint=hint,
            id="freshness.W004",
        )


def _failover(info: dict[str, str]) -> Iterator[checks.CheckMessage]:
    """With Sentinel there may be two primaries for a while. INFO has this field only if the server refuses writes without a replica."""
    if isinstance(get_redis_connection(conf.CACHE).connection_pool, SentinelConnectionPool) and "min_slaves_good_slaves" not in info:
        yield checks.Warning(
            "A primary that Sentinel has replaced may continue to accept writes. A process that still reaches it would serve stale responses.",
            hint="Set min-replicas-to-write to 1 on every server that Sentinel watches, and min-replicas-max-lag below down-after-milliseconds.",
            id="freshness.W010",
        )


# The views


def cached_views_are_outside_transactions(app_configs: Any, **_: Any) -> Found:
    """A transaction bypasses the cache, so with ATOMIC_REQUESTS a cached view would never be a hit."""
    return [
        checks.Error(
            f"{route} runs inside a transaction, which bypasses the cache. The database '{alias}' has ATOMIC_REQUESTS.",
            hint=f"Decorate the result of {view.cls.__name__}.as_view() with django.db.transaction.non_atomic_requests, as CachedView does.",
            id="freshness.E008",
        )
        for alias in _tracked_databases()
        if connections[alias].settings_dict["ATOMIC_REQUESTS"]
        for route, view in _routes(get_resolver())
        if issubclass(getattr(view, "cls", object), CachedView) and alias not in getattr(view, "_non_atomic_requests", ())
    ]


def _routes(resolver: URLResolver, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every route with its view, including those of included URLconfs."""
    for pattern in resolver.url_patterns:
        route = above + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern, route)
        else:
            yield f"/{route}", pattern.callback


def cached_views_read_what_is_tracked(app_configs: Any, **_: Any) -> Found:
    """A response with rows of an untracked model is never stored."""
    return [
        checks.Error(
            f"{route} is cached and shows rows of {model._meta.label}, whose writes are not tracked. Its responses would never be stored.",
            hint=f'Add "{model._meta.label}" to FRESHNESS_MODELS.',
            id="freshness.E009",
        )
        for route, view in _routes(get_resolver())
        for queryset in [getattr(getattr(view, "cls", None), "queryset", None)]
        if issubclass(getattr(view, "cls", object), CachedView) and isinstance(queryset, QuerySet)
        for model in sorted(set(_models_of(queryset)), key=lambda model: model._meta.label)
        if model._meta.db_table not in tables()
    ]


def _models_of(queryset: QuerySet[Any]) -> Iterator[type[Model]]:
    """The models whose rows a queryset reads, as far as its query and prefetches show."""
    by_table = {model._meta.db_table: model for model in apps.get_models(include_auto_created=True) if not model._meta.proxy}
    compiler = queryset.query.clone().get_compiler(queryset.db)  # the original would keep its joins, and the view reads with it
    with suppress(EmptyResultSet):  # raised for none(), which joins nothing
        compiler.as_sql()
    yield from (by_table[join.table_name] for join in compiler.query.alias_map.values() if join.table_name in by_table)
    for lookup in queryset._prefetch_related_lookups:  # type: ignore[attr-defined]  # not in the stubs
        named = lookup if isinstance(lookup, Prefetch) else Prefetch(lookup)
        yield from _models_on_path(queryset.model, named.prefetch_through.split("__"))
        if named.queryset is not None:
            yield from _models_of(named.queryset)


def _models_on_path(model: type[Model], names: list[str]) -> Iterator[type[Model]]:
    for name in names:
        fields = {getattr(field, "get_accessor_name", lambda field=field: field.name)(): field for field in model._meta.get_fields()}
        field: Any = fields.get(name)
        if field is None or not field.related_model:
            return  # a generic relation or an attribute, whose model is known only when it is read
        many = field if field.many_to_many and not field.auto_created else getattr(field, "field", None)
        if field.many_to_many and many is not None:
            yield many.remote_field.through
        model = field.related_model
        yield model


# Django


def django_is_as_the_engine_knows_it(app_configs: Any, **_: Any) -> Found:
    """A private method of Django or psycopg whose signature has changed would be called with wrong arguments, or not at all."""
    hint = "Use Django 5.2, 6.0 or 6.1, and psycopg 3.3, until the engine knows this one."
    return [checks.Error(sentence, hint=hint, id="freshness.E007") for sentence in private.changed()]


# Keys


def database_has_an_identity(app_configs: Any, databases: Iterable[str] | None = None, **_: Any) -> Found:
    """Without an identity nothing is cached. A database that was never migrated is not reported, because `migrate` runs the checks first."""
    ours = [connection for alias in databases or () if isinstance(connection := connections[alias], IdentifiedMixin)]
    return [message for connection in ours for message in _identity_of(connection)]


def _identity_of(connection: Any) -> Iterator[checks.CheckMessage]:
    try:
        connection.database_identity()
        if why := getattr(connection, "why_cluster_unknown", ""):
            yield checks.Warning(
                f"The cluster of the database '{connection.alias}' is unknown ({why}). "
                "After a restore from a backup or a promotion, responses that were cached before it would be served.",
                hint="As a superuser, GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() TO the role of the service.",
                id="freshness.W006",
            )
    except Unidentified as why:
        if MigrationRecorder(connection).has_table():
            yield checks.Warning(f"Responses are not cached. {why}", id="freshness.W005")
    except OperationalError:  # unreachable, which other checks report
        return


def settings_have_a_text(app_configs: Any, **_: Any) -> Found:
    """A setting that cannot be compared between processes might change responses, so processes do not share entries."""
    return [
        checks.Warning(
            f"The setting {name} holds a {type(value).__qualname__}, which cannot be compared between processes. Processes do not share cached responses.",
            hint=f"If {name} does not affect responses, add it to FRESHNESS_IGNORED_SETTINGS. Otherwise use a value that can be pickled.",
            id="freshness.W007",
        )
        for name, value in settings_without_text()
    ]


MAY_BE_ZERO = {"RETRY", "STALE_IF_ERROR"}
"""The settings in seconds that 0 turns off."""


def seconds_are_positive(app_configs: Any, **_: Any) -> Iterator[checks.CheckMessage]:
    """A lease, a bound or a timeout of 0 seconds, or a text instead of a number, would keep no promise."""
    for name, setting in SETTINGS.items():
        value = getattr(conf, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN differs from itself
        if setting.unit == "seconds" and not (is_number and (value > 0 or (value == 0 and name in MAY_BE_ZERO))):
            least = "0 or more" if name in MAY_BE_ZERO else "more than 0"
            yield checks.Error(f"FRESHNESS_{name} is {value!r}.", hint=f"Set it to a number of seconds, {least}.", id="freshness.E010")
