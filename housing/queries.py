"""The querysets of the API."""

from __future__ import annotations

from django.db.models import QuerySet

from housing.models import Property, PropertyImage


def properties() -> QuerySet[Property]:
    """Return properties without joins: each access to `location`, `agent` or `agent.office` costs a query."""
    return Property.objects.all()


def joined() -> QuerySet[Property]:
    """Return properties with everything that a row shows, in one SELECT."""
    return properties().select_related("location", "agent__office")


def with_images(found: QuerySet[Property]) -> QuerySet[Property]:
    """Add the images, in one more SELECT."""
    return found.prefetch_related("images")


def images() -> QuerySet[PropertyImage]:
    """Return the images of all properties, by their position."""
    return PropertyImage.objects.all()
