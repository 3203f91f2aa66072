"""The cast: every noun and verb that a spec may use."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django_redis import get_redis_connection

from housing.cache.journal import journal
from housing.models import Agent, Location, Office, Property, PropertyImage

DOORS = {"naive": "/api/properties/live/naive/", "optimized": "/api/properties/live/optimized/", "cached": "/api/properties/cached/"}
"""The three ways to the same answer."""

NEW_YEAR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """The database of the specs is a file: one in memory locks its readers out while a write is open."""
    connection.settings_dict["TEST"]["NAME"] = connection.settings_dict["NAME"] + ".specs"


@pytest.fixture(autouse=True)
def a_cold_cache(request: pytest.FixtureRequest) -> None:
    """Nothing is remembered, and the journal knows that nobody else writes."""
    forget_everything()


def forget_everything() -> None:
    """Make the cache cold."""
    client = get_redis_connection("default")
    if keys := list(client.scan_iter(cache.make_key("*"))):
        client.delete(*keys)
    journal.begin()


# Nouns


def make_property(number: int = 0, **fields: Any) -> Property:
    """A property with a location, an agent and an office of its own; `number` says which, and is its age in minutes."""
    fields.setdefault("created_at", NEW_YEAR - datetime.timedelta(minutes=number))
    if "agent" not in fields:
        office = Office.objects.create(name=f"Office {number}", city="Springfield")
        fields["agent"] = Agent.objects.create(name=f"Agent {number}", email=f"agent{number}@example.com", office=office)
    if "location" not in fields:
        fields["location"] = Location.objects.create(
            city="Springfield", state="IL", zip_code=f"{62700 + number}", latitude="39.781700", longitude="-89.650100"
        )
    defaults: dict[str, Any] = {"title": f"Home {number}", "description": "Two floors, one garden.", "price": 300_000 + 1_000 * number, "bedrooms": 3}
    return Property.objects.create(**defaults | fields)


@pytest.fixture
def twenty_properties(transactional_db: None) -> list[Property]:
    """One full page, newest first; each has a location, an agent and an office of its own, and two images."""
    homes = [make_property(number) for number in range(20)]
    PropertyImage.objects.bulk_create(
        PropertyImage(property=home, url=f"https://images.example.com/{home.pk}/{position}.jpg", position=position) for home in homes for position in range(2)
    )
    forget_everything()
    return homes


# Verbs


@dataclass(frozen=True)
class Answer:
    """What a reader got. `came_from` is Cache-Status without its name: `hit`, `fwd=miss; stored`, …"""

    response: HttpResponse

    @property
    def body(self) -> bytes:
        return self.response.content

    @property
    def json(self) -> Any:
        return self.response.json()  # type: ignore[attr-defined]  # the test client adds it

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def came_from(self) -> str | None:
        return self.response.headers.get("Cache-Status", "").removeprefix("housing; ") or None


Read = Callable[..., Answer]


@pytest.fixture
def read(client: Client) -> Read:
    """Ask one of the doors, or any path, as a program does: `read("cached", city="Springfield")`."""

    def read(door: str = "cached", headers: dict[str, str] | None = None, **parameters: Any) -> Answer:
        path, _, rest = door.partition("/")
        return Answer(client.get(DOORS.get(path, path + "/") + rest, parameters, headers=headers))

    return read
