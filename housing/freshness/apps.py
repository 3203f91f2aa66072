"""The Django app of the engine."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate


class FreshnessConfig(AppConfig):
    """The label is `freshness` wherever the folder is."""

    name = __name__.rpartition(".")[0]
    label = "freshness"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks, and fingerprint the code now, because a deploy in place may change the files before the first request."""
        from . import checks, fingerprint

        fingerprint.code_in_force()
        checks.connect()
        post_migrate.connect(_after_migrate, sender=self)


def _after_migrate(using: str, **_: Any) -> None:
    from .connection import ConnectionMixin

    connection = connections[using]
    if isinstance(connection, ConnectionMixin):
        connection.watch_other_programs()
