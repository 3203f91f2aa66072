"""The Django app of the engine."""

from __future__ import annotations

from django.apps import AppConfig


class FreshnessConfig(AppConfig):
    """Wherever the folder stands, its label is `freshness`."""

    name = __name__.rpartition(".")[0]
    label = "freshness"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Registers the checks, and reads the code that is in force: a deploy in place may change it before the first request."""
        from . import checks, fingerprint

        fingerprint.code_in_force()
        checks.connect()
