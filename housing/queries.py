"""How the database is asked, and which rows an answer shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import connections
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


class Select:
    """What `values_list()` asks, compiled once, to be read as often as it is asked: Django compiles a queryset each time it is read."""

    def __init__(self, found: QuerySet[Any]) -> None:
        compiler = found.query.get_compiler(found.db)
        self._found = found
        self._sql, self._parameters = compiler.as_sql()
        self._columns = [column for column, *_ in compiler.select]

    def rows(self) -> list[list[Any]]:
        """The rows there are now, in one SELECT."""
        compiler = self._found.query.get_compiler(self._found.db)
        with connections[self._found.db].cursor() as cursor:
            cursor.execute(self._sql, self._parameters)
            return list(compiler.apply_converters(cursor.fetchall(), compiler.get_converters(self._columns)))


def tags_of_rows(shown: Iterable[dict[str, Any]]) -> set[str]:
    """What an answer that shows these properties depends on."""
    tags = {f"{model.tag}:*" for model in MODELS}
    for home in shown:
        agent = home["agent"]
        tags |= {
            row_tag(Property, home["id"]),
            row_tag(Location, home["location"]["id"]),
            row_tag(Agent, agent["id"]),
            row_tag(Office, agent["office"]["id"]),
        }
    return tags


def tags_of_list(shown: Iterable[dict[str, Any]], selected_by: Iterable[str]) -> set[str]:
    """What a page depends on: that no property comes or goes, the rows it shows, and the columns it was selected and ordered by."""
    return {LIST} | tags_of_rows(shown) | set(selected_by)


def tags_of_detail(shown: dict[str, Any]) -> set[str]:
    """What one property's answer depends on."""
    return tags_of_rows([shown]) | {row_tag(PropertyImage, shown["id"]), f"{PropertyImage.tag}:*"}
