"""`manage.py migrate`: Django's command without a log line for each table that a migration writes."""

from __future__ import annotations

import logging
from typing import Any

from django.core.management.commands import migrate


class Command(migrate.Command):
    """Django's command. Its own output names each migration, so the engine's INFO lines are left out."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate while the engine logs warnings only."""
        engine = logging.getLogger("housing.freshness")
        level = engine.level
        engine.setLevel(logging.WARNING)
        try:
            super().handle(*args, **options)
        finally:
            engine.setLevel(level)
