"""A cache of whole responses that is never older than the last committed write.

The engine knows Django, Redis and SQL, and no model of yours. What it offers is here; the rest is its own affair.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connection import NotLeased, ours
    from .dependencies import Select
    from .journal import Unreachable
    from .views import CachedView

__all__ = ["CachedView", "NotLeased", "Select", "Unreachable", "ours"]

_HOMES = {"CachedView": "views", "NotLeased": "connection", "Select": "dependencies", "Unreachable": "journal", "ours": "connection"}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: Django imports an app before its models may be imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
