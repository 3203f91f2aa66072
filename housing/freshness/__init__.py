"""A cache of whole responses that is never older than the last committed write.

The engine knows Django, Redis and SQL, and no model of your project. This module is its public API.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connection import NotLeased, ours
    from .dependencies import Select
    from .entries import Read
    from .journal import Refused, Unreachable, begin_journal, inspect_server
    from .statements import CONTROL
    from .views import CachedView
    from .watchman import verify

__all__ = ["CONTROL", "CachedView", "NotLeased", "Read", "Refused", "Select", "Unreachable", "begin_journal", "inspect_server", "ours", "verify"]

_HOMES = {
    "connection": ("NotLeased", "ours"),
    "dependencies": ("Select",),
    "entries": ("Read",),
    "journal": ("Refused", "Unreachable", "begin_journal", "inspect_server"),
    "statements": ("CONTROL",),
    "views": ("CachedView",),
    "watchman": ("verify",),
}


def __getattr__(name: str) -> Any:
    """Import a name on first access, because Django imports an app before its models may be imported."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
