"""Settings under which the promises cannot be kept, as Django system checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core import checks
from django.core.cache import cache
from django.db import connections, router
from django_redis.cache import RedisCache

from housing.db.commit import CommitMixin
from housing.signals import TABLE


def connect() -> None:
    """Register them."""
    checks.register(database_backend_is_ours, checks.Tags.database)
    checks.register(cache_is_redis, checks.Tags.caches)


def database_backend_is_ours(app_configs: Any, databases: Iterable[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Every database to which our tables go has our COMMIT."""
    ours = {alias for alias in connections for model in TABLE if router.allow_migrate_model(alias, model)}
    return [
        checks.Error(
            f"The database '{alias}' commits past the cache: its engine is {connections[alias].settings_dict['ENGINE']}.",
            hint="Use housing.db.postgresql or housing.db.sqlite3, or keep the tables of `housing` away from it with a database router.",
            id="housing.E001",
        )
        for alias in sorted(ours)
        if not isinstance(connections[alias], CommitMixin)
    ]


def cache_is_redis(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """The journal is a script in Redis."""
    if isinstance(cache._connections[cache._alias], RedisCache):  # type: ignore[attr-defined]  # the proxy hides its class
        return []
    return [checks.Error("The default cache is not django-redis's.", hint="Set BACKEND to django_redis.cache.RedisCache.", id="housing.E002")]
