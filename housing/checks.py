"""The example's own system checks: what the engine's (`freshness/checks.py`) cannot know.

All of them read settings and metadata, because `check` and `runserver` wait for nobody.
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
"""What Docker and Podman leave in every container."""

Found = list[checks.CheckMessage]


def connect() -> None:
    """Register them."""
    checks.register(cache_is_shared, checks.Tags.caches, deploy=True)
    checks.register(serializers_read_what_is_joined, checks.Tags.models)
    checks.register(toolbar_sees_everything)
    checks.register(toolbar_is_shown_through_the_gateway)
    checks.register(debug_is_for_this_machine, checks.Tags.security)


# The cache


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
