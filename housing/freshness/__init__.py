"""A cache of whole responses that is never older than the last committed write.

The engine knows Django, Redis and SQL, and no model of your project. This module is its public API.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .breaker import Unreachable
    from .connection import NotLeased, ours
    from .dependencies import Copy, RowValue, Select, SelectFor
    from .entries import Read
    from .fast_path import FastPath
    from .journal import Refused, begin_journal, inspect_server
    from .metrics import serve_metrics
    from .slots import Busy, cold_reads
    from .statements import CONTROL
    from .views import CachedView
    from .watchman import state_of_the_cache, verify

__all__ = [
    "CONTROL",
    "Busy",
    "CachedView",
    "Copy",
    "FastPath",
    "NotLeased",
    "Read",
    "Refused",
    "RowValue",
    "Select",
    "SelectFor",
    "Unreachable",
    "begin_journal",
    "cold_reads",
    "inspect_server",
    "ours",
    "serve_metrics",
    "state_of_the_cache",
    "verify",
]

_HOMES = {
    "slots": ("Busy", "cold_reads"),
    "connection": ("NotLeased", "ours"),
    "dependencies": ("Copy", "RowValue", "Select", "SelectFor"),
    "entries": ("Read",),
    "fast_path": ("FastPath",),
    "breaker": ("Unreachable",),
    "journal": ("Refused", "begin_journal", "inspect_server"),
    "metrics": ("serve_metrics",),
    "statements": ("CONTROL",),
    "views": ("CachedView",),
    "watchman": ("state_of_the_cache", "verify"),
}


def __getattr__(name: str) -> Any:
    """Import a name on first access, because Django imports an app before its models may be imported."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
