"""The one app."""

from django.apps import AppConfig
from django.conf import settings


class HousingConfig(AppConfig):
    """Registers the checks."""

    name = "housing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Once every model is there."""
        from housing import checks

        checks.connect()
        if settings.DEBUG:
            from debug_toolbar.panels import Panel

            # Else the toolbar puts its Server-Timing in the place of what our views say of themselves.
            Panel.get_server_timing_stats = lambda panel: {}  # type: ignore[method-assign]  # the toolbar has no setting for it
