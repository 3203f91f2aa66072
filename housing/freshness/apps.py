"""The Django app of the engine."""

from __future__ import annotations

from django.apps import AppConfig


class FreshnessConfig(AppConfig):
    """Wherever the folder stands, its label is `freshness`."""

    name = __name__.rpartition(".")[0]
    label = "freshness"
    default_auto_field = "django.db.models.BigAutoField"
