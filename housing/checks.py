"""The troubleshooting list, as Django system checks: settings under which the promises cannot be kept.

An error is a promise broken, a warning one that is kept at a price. What asks a server does so only where it is wanted: Redis under
`check --deploy`, PostgreSQL under `check --database`. All others read settings and metadata, for `check` and `runserver` wait for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.db import OperationalError, connections, router
from django.db.models import ForeignObjectRel, Model, Prefetch, QuerySet
from django.urls import URLResolver, get_resolver
from django_redis.cache import RedisCache
from rest_framework.relations import RelatedField
from rest_framework.serializers import Field, Serializer

from housing.freshness import CachedView
from housing.freshness.connection import ConnectionMixin
from housing.freshness.journal import Refused, Unreachable, journal
from housing.freshness.settings import conf
from housing.freshness.tracking import tracked
from housing.settings import gateways

TOOLBAR = "debug_toolbar.middleware.DebugToolbarMiddleware"

THIS_MACHINE = {"127.0.0.1", "localhost", ".localhost", "[::1]"}

CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""What Docker and Podman leave in every container."""

Found = list[checks.CheckMessage]


def connect() -> None:
    """Register them."""
    checks.register(database_backend_is_ours, checks.Tags.database)
    checks.register(reads_go_where_writes_go, checks.Tags.database)
    checks.register(database_is_primary, checks.Tags.database)
    checks.register(cache_is_redis, checks.Tags.caches)
    checks.register(cache_is_one_server, checks.Tags.caches)
    checks.register(cache_is_shared, checks.Tags.caches, deploy=True)
    checks.register(redis_is_a_primary_that_keeps_the_journal, checks.Tags.caches, deploy=True)
    checks.register(cached_views_are_outside_transactions, checks.Tags.urls)
    checks.register(serializers_read_what_is_joined, checks.Tags.models)
    checks.register(toolbar_sees_everything)
    checks.register(toolbar_is_shown_through_the_gateway)
    checks.register(debug_is_for_this_machine, checks.Tags.security)


# The database


def _ours() -> list[str]:
    """The aliases of the databases to which our tables go."""
    return sorted({alias for alias in connections for model in tracked() if router.allow_migrate_model(alias, model)})


def database_backend_is_ours(app_configs: Any, **_: Any) -> Found:
    """Every database to which our tables go has our COMMIT."""
    return [
        checks.Error(
            f"The database '{alias}' commits past the cache: its engine is {connections[alias].settings_dict['ENGINE']}.",
            hint="Use housing.freshness.postgresql or housing.freshness.sqlite3, or keep the tables of `housing` away from it with a database router.",
            id="housing.E001",
        )
        for alias in _ours()
        if not isinstance(connections[alias], ConnectionMixin)
    ]


def reads_go_where_writes_go(app_configs: Any, **_: Any) -> Found:
    """A replica may not have yet what was committed, and a fill that reads there would be remembered as fresh."""
    return [
        checks.Error(
            f"{model.__name__} is read from the database '{router.db_for_read(model)}' and written to '{router.db_for_write(model)}'.",
            hint="A replica lags behind. Let the database router send reads and writes of `housing` to one primary.",
            id="housing.E003",
        )
        for model in tracked()
        if router.db_for_read(model) != router.db_for_write(model)
    ]


def database_is_primary(app_configs: Any, databases: Iterable[str] | None = None, **_: Any) -> Found:
    """The same where the address itself is a replica's. Asks the databases that are named, and those alone."""
    return [message for alias in databases or () if alias in _ours() and connections[alias].vendor == "postgresql" for message in _recovery(alias)]


def _recovery(alias: str) -> Iterator[checks.CheckMessage]:
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            [is_replica] = cursor.fetchone()
    except OperationalError as error:
        yield checks.Warning(
            f"The database '{alias}' could not be asked whether it is a primary ({' '.join(str(error).split())}).",
            hint="Check again where DATABASE_URL can be reached.",
            id="housing.W008",
        )
    else:
        if is_replica:
            yield checks.Error(
                f"The database '{alias}' is a replica, which follows another server: it lags behind, and takes no writes.",
                hint="Set DATABASE_URL to the primary's address.",
                id="housing.E004",
            )


# Redis


def cache_is_redis(app_configs: Any, **_: Any) -> Found:
    """The journal is a script in Redis."""
    if _has_redis():
        return []
    return [checks.Error("The default cache is not django-redis's.", hint="Set BACKEND to django_redis.cache.RedisCache.", id="housing.E002")]


def _has_redis() -> bool:
    return isinstance(caches["default"], RedisCache)


def cache_is_one_server(app_configs: Any, **_: Any) -> Found:
    """Of several, django-redis takes the first for the primary and the others for its replicas."""
    location = settings.CACHES["default"].get("LOCATION", "")
    servers = location.split(",") if isinstance(location, str) else location
    if not _has_redis() or len(servers) == 1:
        return []
    return [
        checks.Warning(
            f"The default cache has {len(servers)} servers. The journal and the entries are on the first alone: replicas lag behind, so they are not asked.",
            hint="Name only the primary in LOCATION (REDIS_URL).",
            id="housing.W001",
        )
    ]


def cache_is_shared(app_configs: Any, **_: Any) -> Found:
    """What one process writes, the journal of another does not hear of."""
    if settings.REDIS_URL.rstrip("/") != "fakeredis:":
        return []
    return [
        checks.Error(
            "The cache is a fakeredis in this process: every other process has one of its own, and does not see what is written here.",
            hint="Set REDIS_URL to redis://HOST:PORT/0.",
            id="housing.E006",
        )
    ]


def redis_is_a_primary_that_keeps_the_journal(app_configs: Any, **_: Any) -> Found:
    """What only the server can say. INFO says all of it, and the journal needs INFO too, so nothing else has to be allowed."""
    if not _has_redis():
        return []
    try:
        return list(_eviction(journal.inspect_server()))
    except Refused as refused:
        return [checks.Error(refused.reason, hint=refused.remedy, id="housing.E005")]
    except Unreachable as error:
        return [
            checks.Warning(
                f"Redis could not be asked whether it is a primary and what it evicts ({error.__cause__}).",
                hint="Check again where REDIS_URL can be reached.",
                id="housing.W002",
            )
        ]


def _eviction(info: dict[str, str]) -> Iterator[checks.CheckMessage]:
    policy, hint = info.get("maxmemory_policy", ""), "Set maxmemory-policy to volatile-lru: entries have a TTL, the journal has none."
    if info.get("maxmemory", "0") == "0":
        return  # without a limit it evicts nothing
    if policy.startswith("allkeys-"):
        yield checks.Warning(
            f"Redis may evict the journal ({policy}). No answer is stale then, but every entry is disowned, and none stored for {conf.LEASE:g} s.",
            hint=hint,
            id="housing.W003",
        )
    elif policy == "noeviction":
        yield checks.Warning(
            "Redis evicts nothing (noeviction). Once it is full, it takes no lease, and a write without one fails.", hint=hint, id="housing.W004"
        )


# What is asked


def cached_views_are_outside_transactions(app_configs: Any, **_: Any) -> Found:
    """Inside a transaction the cache is passed by, so under ATOMIC_REQUESTS a cached view would never be warm."""
    return [
        checks.Error(
            f"{route} is answered inside a transaction, which passes the cache by: the database '{alias}' has ATOMIC_REQUESTS.",
            hint=f"Decorate what {view.view_class.__name__}.as_view() returns with django.db.transaction.non_atomic_requests, as CachedView does.",
            id="housing.E008",
        )
        for alias in _ours()
        if connections[alias].settings_dict["ATOMIC_REQUESTS"]
        for route, view in _routes(get_resolver())
        if issubclass(getattr(view, "view_class", object), CachedView) and alias not in getattr(view, "_non_atomic_requests", ())
    ]


def _routes(resolver: URLResolver, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every route with its view, included ones too."""
    for pattern in resolver.url_patterns:
        route = above + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern, route)
        else:
            yield f"/{route}", pattern.callback


# What leaves


def serializers_read_what_is_joined(app_configs: Any, **_: Any) -> Found:
    """One relation that is not joined is one more query for each row: N+1. Computed fields (`source="*"`) tell nobody what they read."""
    from housing.views import OptimizedPropertyDetailView, OptimizedPropertyListView

    return [
        checks.Error(
            f"{view.serializer_class.__name__}.{field} reads {'.'.join(relation)}, which the query of {view.__name__} does not join.",
            hint="Join it in housing/queries.py, by select_related() or, for many, prefetch_related(); and name its rows among the tags there.",
            id="housing.E009",
        )
        for view in (OptimizedPropertyListView, OptimizedPropertyDetailView)
        for field, relation in _relations_read(view.serializer_class(), view.queryset.model)
        if relation not in _relations_joined(view.queryset)
    ]


def _relations_read(serializer: Any, model: type[Model], above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each field's name with each relation that it follows, as the names on the way there."""
    for name, field in serializer.fields.items():
        target, path = model, above
        for step in _steps(field):
            relation = _relations(target).get(step)
            if relation is None:
                break  # a column or a property, which leads no further
            target, path = relation, (*path, step)
            yield name, path
        else:
            nested = getattr(field, "child", field)
            if isinstance(nested, Serializer):
                yield from ((f"{name}.{inner}", relation) for inner, relation in _relations_read(nested, target, path))


def _steps(field: Field[Any, Any, Any, Any]) -> list[str]:
    """The attributes that a field asks for, one of the other; a foreign key shown as an id alone is a column."""
    only_id = isinstance(field, RelatedField) and field.use_pk_only_optimization()
    return field.source_attrs[:-1] if only_id else field.source_attrs


def _relations(model: type[Model]) -> dict[str | None, type[Model]]:
    """What leads from a model to others: attribute → model."""
    return {
        field.get_accessor_name() if isinstance(field, ForeignObjectRel) else field.name: field.related_model
        for field in model._meta.get_fields()
        if field.related_model
    }


def _relations_joined(found: QuerySet[Any]) -> set[tuple[str, ...]]:
    """What comes with the rows: select_related by name, and prefetch_related with what its own queries join."""
    selected = found.query.select_related
    joined = set(_branches(selected if isinstance(selected, dict) else {}))
    for named in found._prefetch_related_lookups:  # type: ignore[attr-defined]  # not in the stubs
        lookup = named if isinstance(named, Prefetch) else Prefetch(named)
        steps = tuple(lookup.prefetch_through.split("__"))
        joined |= {steps[: depth + 1] for depth in range(len(steps))}
        if lookup.queryset is not None:
            joined |= {(*steps, *inner) for inner in _relations_joined(lookup.queryset)}
    return joined


def _branches(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in tree.items():
        yield (*above, name)
        yield from _branches(below, (*above, name))


# Debug


def toolbar_sees_everything(app_configs: Any, **_: Any) -> Found:
    """What stands before it, it neither times nor counts."""
    if TOOLBAR not in settings.MIDDLEWARE[1:]:
        return []
    return [
        checks.Warning(
            f"The debug toolbar is not the first middleware: it does not see what {settings.MIDDLEWARE[0]} does.",
            hint=f"Put {TOOLBAR} first in MIDDLEWARE.",
            id="housing.W005",
        )
    ]


def toolbar_is_shown_through_the_gateway(app_configs: Any, **_: Any) -> Found:
    """What a browser beside the engine asks of a container comes from the container's gateway."""
    if not settings.DEBUG or TOOLBAR not in settings.MIDDLEWARE or not any(mark.exists() for mark in CONTAINER):
        return []
    return [
        checks.Warning(
            f"This is a container, and its gateway {gateway} is not in INTERNAL_IPS: the toolbar is hidden from a browser on the host.",
            hint="Add gateways() to INTERNAL_IPS while debug is on, as housing/settings.py does.",
            id="housing.W006",
        )
        for gateway in gateways()
        if gateway not in settings.INTERNAL_IPS
    ]


def debug_is_for_this_machine(app_configs: Any, **_: Any) -> Found:
    """Production is where others get in. `check --deploy` has Django's own security.W018, wherever that is."""
    others = [host for host in settings.ALLOWED_HOSTS if host not in THIS_MACHINE]
    if not settings.DEBUG or not others:
        return []
    return [
        checks.Warning(
            f"Debug is on, and ALLOWED_HOSTS lets in {', '.join(others)}: an error shows its settings and SQL to whoever asks.",
            hint="Set DJANGO_DEBUG=false, or allow this machine alone: 127.0.0.1, localhost.",
            id="housing.W007",
        )
    ]
