"""The key of a cached response."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from django.core.cache import caches
from django.core.signals import setting_changed

from .fingerprint import fingerprint
from .settings import conf

LONG = 200
"""Parameters with more characters than this are replaced with their SHA-256, which cannot equal other parameters, because those have names."""


def entry_key(kind: str, asked: str, database: str) -> str:
    """Return the key of an entry, from its kind ("list", "detail"), its canonical parameters and the identity of its database."""
    return _with_prefix(kind, fingerprint(), database, asked)


@lru_cache(maxsize=1024)
def _with_prefix(kind: str, shape: str, database: str, asked: str) -> str:
    if len(asked) > LONG:
        asked = hashlib.sha256(asked.encode()).hexdigest()
    return caches[conf.CACHE].make_key(f"{kind}:{shape}:{database}:{asked}")


def _setting_changed(**_: Any) -> None:
    _with_prefix.cache_clear()


setting_changed.connect(_setting_changed)
