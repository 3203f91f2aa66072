"""Django system checks of the example, in addition to those of the engine (`freshness/checks.py`).

All of them read only settings and metadata, because `check` and `runserver` must not wait for a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks
from django.db.models import ForeignObjectRel, Model, Prefetch, QuerySet
from rest_framework.relations import RelatedField
from rest_framework.serializers import Field, Serializer

from housing.settings import gateways

TOOLBAR = "debug_toolbar.middleware.DebugToolbarMiddleware"

THIS_MACHINE = {"127.0.0.1", "localhost", ".localhost", "[::1]"}

CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""The files that Docker and Podman create in every container."""

Found = list[checks.CheckMessage]


def connect() -> None:
    """Register the checks."""
    checks.register(cache_is_shared, checks.Tags.caches, deploy=True)
    checks.register(serializers_read_what_is_joined, checks.Tags.models)
    checks.register(toolbar_sees_everything)
    checks.register(toolbar_is_shown_through_the_gateway)
    checks.register(debug_is_for_this_machine, checks.Tags.security)


# The cache


def cache_is_shared(app_configs: Any, **_: Any) -> Found:
    """With a fakeredis in each process, a write in one process does not invalidate the entries of another."""
    if settings.REDIS_URL.rstrip("/") != "fakeredis:":
        return []
    return [
        checks.Error(
            "The cache is a fakeredis inside this process. Every process has its own, so a write does not invalidate the entries of other processes.",
            hint="Set REDIS_URL to redis://HOST:PORT/0.",
            id="housing.E006",
        )
    ]


# Serializers


def serializers_read_what_is_joined(app_configs: Any, **_: Any) -> Found:
    """A relation that is not joined costs one more query for each row (N+1). Computed fields (`source="*"`) are not checked."""
    from housing.views import OptimizedPropertyDetailView, OptimizedPropertyListView

    return [
        checks.Error(
            f"{view.serializer_class.__name__}.{field} reads {'.'.join(relation)}, which the query of {view.__name__} does not join.",
            hint="Join it in housing/queries.py with select_related(), or prefetch_related() if it leads to many rows.",
            id="housing.E009",
        )
        for view in (OptimizedPropertyListView, OptimizedPropertyDetailView)
        for field, relation in _relations_read(view.serializer_class(), view.queryset.model)
        if relation not in _relations_joined(view.queryset)
    ]


def _relations_read(serializer: Any, model: type[Model], above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each field's name, with the path of each relation that it follows."""
    for name, field in serializer.fields.items():
        target, path = model, above
        for step in _steps(field):
            relation = _relations(target).get(step)
            if relation is None:
                break  # a column or a property, not a relation
            target, path = relation, (*path, step)
            yield name, path
        else:
            nested = getattr(field, "child", field)
            if isinstance(nested, Serializer):
                yield from ((f"{name}.{inner}", relation) for inner, relation in _relations_read(nested, target, path))


def _steps(field: Field[Any, Any, Any, Any]) -> list[str]:
    """The attributes that a field follows. A foreign key that is shown as an id is a column."""
    only_id = isinstance(field, RelatedField) and field.use_pk_only_optimization()
    return field.source_attrs[:-1] if only_id else field.source_attrs


def _relations(model: type[Model]) -> dict[str | None, type[Model]]:
    """The relations of a model: attribute → related model."""
    return {
        field.get_accessor_name() if isinstance(field, ForeignObjectRel) else field.name: field.related_model
        for field in model._meta.get_fields()
        if field.related_model
    }


def _relations_joined(found: QuerySet[Any]) -> set[tuple[str, ...]]:
    """The relations that a queryset joins or prefetches, including those that its Prefetch objects join."""
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
    """The toolbar neither times nor counts the middleware before it."""
    if TOOLBAR not in settings.MIDDLEWARE[1:]:
        return []
    return [
        checks.Warning(
            f"The debug toolbar is not the first middleware, so it does not measure {settings.MIDDLEWARE[0]}.",
            hint=f"Put {TOOLBAR} first in MIDDLEWARE.",
            id="housing.W005",
        )
    ]


def toolbar_is_shown_through_the_gateway(app_configs: Any, **_: Any) -> Found:
    """Requests from a browser on the host reach the container from its gateway."""
    if not settings.DEBUG or TOOLBAR not in settings.MIDDLEWARE or not any(mark.exists() for mark in CONTAINER):
        return []
    return [
        checks.Warning(
            f"The gateway {gateway} of this container is not in INTERNAL_IPS, so the toolbar is hidden from browsers on the host.",
            hint="Add gateways() to INTERNAL_IPS if DEBUG is on, as housing/settings.py does.",
            id="housing.W006",
        )
        for gateway in gateways()
        if gateway not in settings.INTERNAL_IPS
    ]


def debug_is_for_this_machine(app_configs: Any, **_: Any) -> Found:
    """With hosts other than this machine, the service is in production. Django's security.W018 covers `check --deploy`."""
    others = [host for host in settings.ALLOWED_HOSTS if host not in THIS_MACHINE]
    if not settings.DEBUG or not others:
        return []
    return [
        checks.Warning(
            f"DEBUG is on, and ALLOWED_HOSTS allows {', '.join(others)}. Error pages expose settings and SQL to anyone.",
            hint="Set DJANGO_DEBUG=false, or allow only 127.0.0.1 and localhost.",
            id="housing.W007",
        )
    ]
