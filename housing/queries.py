"""How the database is asked, and which rows an answer shows."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import QuerySet

from housing.models import Agent, Location, Office, Property, PropertyImage, TaggedModel
from housing.signals import LIST, row_tag

MODELS: tuple[type[TaggedModel], ...] = (Property, Location, Agent, Office)
"""Whose rows a property in a list is made of."""


def properties() -> QuerySet[Property]:
    """Properties alone: whoever touches `location`, `agent` or `agent.office` asks again for each."""
    return Property.objects.all()


def joined() -> QuerySet[Property]:
    """Properties with all that a row shows of them, in one SELECT."""
    return properties().select_related("location", "agent__office")


def with_images(found: QuerySet[Property]) -> QuerySet[Property]:
    """The same with their images, in one SELECT more."""
    return found.prefetch_related("images")


def tags_of_rows(shown: Iterable[Property]) -> set[str]:
    """What an answer that shows these properties depends on; they must be `joined()`, or this asks for each."""
    tags = {f"{model.tag}:*" for model in MODELS}
    for home in shown:
        tags |= {row_tag(Property, home.pk), row_tag(Location, home.location_id), row_tag(Agent, home.agent_id), row_tag(Office, home.agent.office_id)}
    return tags


def tags_of_list(shown: Iterable[Property], selected_by: Iterable[str]) -> set[str]:
    """What a page depends on: that no property comes or goes, the rows it shows, and the columns it was selected and ordered by."""
    return {LIST} | tags_of_rows(shown) | set(selected_by)


def tags_of_detail(home: Property) -> set[str]:
    """What one property's answer depends on."""
    return tags_of_rows([home]) | {row_tag(PropertyImage, home.pk), f"{PropertyImage.tag}:*"}
