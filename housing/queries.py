"""How the database is asked."""

from __future__ import annotations

from django.db.models import QuerySet

from housing.models import Property


def properties() -> QuerySet[Property]:
    """Properties alone: whoever touches `location`, `agent` or `agent.office` asks again for each."""
    return Property.objects.all()


def joined() -> QuerySet[Property]:
    """Properties with all that a row shows of them, in one SELECT."""
    return properties().select_related("location", "agent__office")


def with_images(found: QuerySet[Property]) -> QuerySet[Property]:
    """The same with their images, in one SELECT more."""
    return found.prefetch_related("images")
