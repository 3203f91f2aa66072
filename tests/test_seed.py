"""Seeding. A command generates listings that read like real ones, and are the same every time."""

from __future__ import annotations

import hashlib

import pytest
from django.core.management import CommandError
from django.db import connection
from django.db.models import Count, Max, Min

from housing.management.commands import seed as seeding
from housing.models import Agent, Location, Office, Property, PropertyImage
from tests.fixtures.commands import everything, interrupted, run


def test_a_thousand_properties_come_with_forty_locations_twenty_five_agents_and_five_offices(db):
    """It takes several offices to show that renaming one of them leaves the listings of the others cached."""
    said = run("seed")

    assert [model.objects.count() for model in (Property, PropertyImage, Location, Agent, Office)] == [1000, 2000, 40, 25, 5]
    assert said == "Created 1,000 properties, 2,000 images, 40 locations, 25 agents, 5 offices.\n"


@pytest.mark.parametrize(("number", "rest"), [(1, [2, 1, 1, 1]), (25, [50, 1, 1, 1]), (201, [402, 9, 6, 2])])
def test_the_rest_grows_with_the_number_of_properties(db, number, rest):
    """If all listings shared a few offices, renaming one office would invalidate a large part of a large database."""
    run("seed", "--properties", number)

    assert Property.objects.count() == number
    assert [model.objects.count() for model in (PropertyImage, Location, Agent, Office)] == rest


SHOWN = (
    *("title", "description", "property_type", "status", "price", "bedrooms", "bathrooms", "area", "created_at", "updated_at"),
    *("location__city", "location__state", "location__zip_code", "location__latitude", "location__longitude"),
    *("agent__name", "agent__email", "agent__office__name", "agent__office__city"),
)


def listings() -> list[str]:
    """Return the seeded properties, and their images, as texts without ids."""
    images = PropertyImage.objects.order_by("pk").values_list("url", "caption", "position")
    return [", ".join(map(str, row)) for row in (*Property.objects.order_by("pk").values_list(*SHOWN), *images)]


def test_a_seed_is_the_same_every_time(db, monkeypatch):
    """Screenshots, tutorials and bug reports show the same listings, with the same times."""
    monkeypatch.setattr(seeding, "BATCH", 20)
    run("seed", properties=50)
    first = listings()
    run("seed", properties=50, replace=True)

    assert listings() == first


def test_a_seed_is_the_same_in_every_version(db):
    """A tutorial that was written with another version of Python, or on the other stack, shows the same listings."""
    run("seed", properties=400)
    found = listings()

    assert found[0] == (
        "Light-filled 5-bedroom apartment on Park Place, Denver, New roof, new windows, and the original floors. Shown by appointment., apartment, pending, "
        "1002000.00, 5, 5.00, 204.00, 2025-12-23 08:15:00+00:00, 2025-12-23 08:15:00+00:00, Denver, CO, 80257, 39.785191, -104.951677, Priya Dubois, None, "
        "Whitfield Real Estate, Madison"
    )
    assert hashlib.sha256("\n".join(found).encode()).hexdigest()[:16] == "e17365aead70dac9", (
        "The seed writes other listings than before. If that is meant, record their hash."
    )


def test_seeded_listings_read_like_real_ones(db):
    """The first page has valid and varied rows, with gaps as in real files."""
    run("seed", "--properties", 400)

    for home in Property.objects.select_related("agent", "location"):
        home.full_clean()
        home.agent.full_clean()
        home.location.full_clean()
    facts = Property.objects.aggregate(
        titles=Count("title", distinct=True), cities=Count("location__city", distinct=True), low=Min("price"), high=Max("price"), newest=Max("created_at")
    )
    assert facts["titles"] > 350
    assert facts["cities"] > 5
    assert facts["high"] > 10 * facts["low"]
    assert facts["newest"] <= seeding.NEWEST
    assert set(Property.objects.values_list("property_type", flat=True)) == set(Property.Type)
    assert set(Property.objects.values_list("status", flat=True)) == set(Property.Status)
    for gap in ("description", "bedrooms", "bathrooms", "area", "location__latitude", "agent__email"):
        assert 0 < Property.objects.filter(**{gap: None}).count() < 200, gap


def test_each_seeded_property_has_two_images_in_order(db):
    """A single image could not show that a detail returns its images in order."""
    run("seed", "--properties", 3)

    assert [list(home.images.values_list("position", flat=True)) for home in Property.objects.all()] == [[0, 1]] * 3


def test_seed_refuses_a_database_with_properties(transactional_db):
    """It cannot know whether the existing listings may be deleted."""
    run("seed", "--properties", 3)
    before = everything()

    with pytest.raises(CommandError, match=r"There are 3 properties already, so nothing was changed.*seed --replace"):
        run("seed", "--properties", 5)

    assert everything() == before


def test_seed_replace_deletes_existing_listings(transactional_db):
    """A developer can change the size of the demo without creating a new database."""
    run("seed", "--properties", 30)
    run("seed", "--properties", 2, "--replace")

    assert [model.objects.count() for model in (Property, PropertyImage, Location, Agent, Office)] == [2, 4, 1, 1, 1]


@pytest.mark.parametrize("number", ["0", "-3", "abc", "1e3", ""])
def test_an_invalid_number_of_properties_is_refused(db, number):
    """Otherwise a typing error would end in a traceback or, with `--replace`, in an empty database."""
    with pytest.raises(CommandError, match=f"--properties is '{number}'. It must be a whole number, at least 1."):
        run("seed", f"--properties={number}")


def test_an_interrupted_seed_leaves_the_database_as_it_was(transactional_db, monkeypatch):
    """This includes the listings that it was replacing."""
    monkeypatch.setattr(seeding, "BATCH", 2)
    run("seed", "--properties", 4)
    before = everything()

    with interrupted(at=2):
        run("seed", "--properties", 6, "--replace")

    assert everything() == before


@pytest.mark.only("real")
def test_autovacuum_waits_until_the_seed_is_committed(transactional_db, elsewhere):
    """Autovacuum does not see uncommitted rows, so the planner would treat the tables as empty: a million foreign keys took hours."""
    held = []

    def look(execute, sql, *rest):
        if "nextval" in sql:
            held.append(elsewhere(locks))
        return execute(sql, *rest)

    with connection.execute_wrapper(look):
        run("seed", "--properties", 3)

    assert held == [{model._meta.db_table for model in seeding.MODELS}] * 5


def locks():
    """Return the tables that ANALYZE and autovacuum must wait for, seen from another connection."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relation::regclass::text FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE mode = 'ShareUpdateExclusiveLock' AND granted AND datname = current_database()"
        )
        return {table for (table,) in cursor.fetchall() if table.startswith("housing_")}


def test_seeded_listings_are_in_the_next_read(transactional_db, read):
    """Bulk SQL sends no signal, but the cursor tags its tables."""
    assert read().json["results"] == []

    run("seed", "--properties", 3)

    assert len(read().json["results"]) == 3
