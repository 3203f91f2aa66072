"""The one app."""

from django.apps import AppConfig


class HousingConfig(AppConfig):
    """Connects the signals and registers the checks."""

    name = "housing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Once every model is there."""
        from housing import checks, signals

        signals.connect()
        checks.connect()
