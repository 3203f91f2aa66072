"""The app of the example service."""

from django.apps import AppConfig
from django.conf import settings


class HousingConfig(AppConfig):
    """The configuration of the app."""

    name = "housing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks, and keep the views' Server-Timing header."""
        from housing import checks

        checks.connect()
        if settings.DEBUG:
            from debug_toolbar.panels import Panel

            # Otherwise the toolbar's Server-Timing header would replace that of the views.
            Panel.get_server_timing_stats = lambda panel: {}  # type: ignore[method-assign]  # the toolbar has no setting for it
