"""What a write makes stale, and what stays warm. A committed write is in the very next read, and pages it does not touch stay warm."""

import logging
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import cache as cache_once
from functools import partial

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.management import call_command
from django.core.serializers import deserialize, serialize
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.models import F, Value
from django.db.models.signals import post_save, pre_delete, pre_save
from django.http import HttpResponse
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from django_redis import get_redis_connection

from conftest import VARIANTS, a_property, make_images, saved
from housing import urls
from housing.freshness.connection import NotLeased
from housing.freshness.settings import conf
from housing.freshness.tracking import MANY_ROWS
from housing.models import Agent, Location, Office, Property, PropertyImage


def test_a_saved_price_is_in_the_very_next_read(twenty_properties, read_the_list, queries):
    """Not after a timeout: after the commit. Nobody is shown the old price twice."""
    read_the_list()
    home = twenty_properties[0]

    home.price = 395_000
    home.save()

    with queries.exactly(1, because="the commit made the page stale"):
        assert read_the_list()[0]["price"] == "395000.00"
    with queries.exactly(0, because="the fresh page is remembered again"):
        assert read_the_list()[0]["price"] == "395000.00"


@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_edits_one_after_another_are_each_in_the_very_next_read_of_every_variant(twenty_properties, edits_in_the_next_read, metric, variant):
    """The two that remember nothing are what the third is measured against."""
    fresh = edits_in_the_next_read(variant)

    metric("freshness", variant=variant, edits=10, fresh=fresh)
    assert fresh == 10


def test_a_page_that_is_remembered_for_a_time_shows_none_of_ten_edits(twenty_properties, edits_in_the_next_read, settings, metric):
    """Django's `cache_page`: every reader is shown the old price until the time is up. It tells, too, that the edits above could have been missed."""
    settings.ROOT_URLCONF = "tests.baselines"
    fresh = edits_in_the_next_read("/baselines/cache-page/")

    metric("freshness", variant="cache_page", edits=10, fresh=fresh)
    assert fresh == 0


@pytest.fixture
def edits_in_the_next_read(twenty_properties, read):
    """`edits_in_the_next_read(door)`: save ten prices, read after each; how many of those reads showed the new price."""

    def edits_in_the_next_read(variant):
        fresh, _ = 0, read(variant)
        for home in twenty_properties[:10]:
            home.price += 1
            home.save()
            fresh += {row["id"]: row["price"] for row in read(variant).rows}[home.pk] == f"{home.price:.2f}"
        return fresh

    return edits_in_the_next_read


def test_the_new_name_of_an_office_two_joins_away_is_in_the_very_next_read(home, warm, read_the_list, read):
    """The page shows it, so the page depends on it."""
    warm()
    warm(f"cached/{home.pk}")

    home.agent.office.name = "Harbour & Sons"
    home.agent.office.save()

    assert read_the_list()[0]["agent"]["office"]["name"] == "Harbour & Sons"
    assert read(f"cached/{home.pk}").json["agent"]["office"]["name"] == "Harbour & Sons"


@pytest.mark.parametrize("number", [0, 19], ids=["with images", "without"])
def test_a_deleted_property_is_gone_from_the_very_next_read(twenty_properties, warm, read_the_list, read, number):
    home = twenty_properties[number]
    warm()
    warm(f"cached/{home.pk}")
    was = home.pk

    home.delete()

    assert was not in [row["id"] for row in read_the_list()]
    assert read(f"cached/{was}").status == 404


def test_a_created_property_is_first_in_the_very_next_read(home, warm, read_the_list):
    warm()

    new = Property.objects.create(title="New", price=1, location=home.location, agent=home.agent)

    assert read_the_list()[0]["id"] == new.pk


# Where a row goes when it is written


@pytest.mark.parametrize(
    ("column", "value", "asked"),
    [
        ("title", "A lighthouse", "search=lighthouse"),
        ("description", "By the lighthouse.", "search=lighthouse"),
        ("property_type", "land", "property_type=land"),
        ("status", "sold", "status=sold"),
        ("price", 9, "max_price=9"),
        ("price", 900_000, "min_price=900000"),
        ("bedrooms", 9, "min_bedrooms=9"),
    ],
)
def test_a_row_enters_and_leaves_a_filtered_page(home, warm, read_the_list, column, value, asked):
    """The page did not show the row, so no row tells it: the column that it was selected by does."""
    before = getattr(home, column)
    assert b'"results":[]' in warm(f"cached?{asked}")

    setattr(home, column, value)
    home.save(update_fields=[column])
    assert [row["id"] for row in read_the_list(f"cached?{asked}")] == [home.pk]

    setattr(home, column, before)
    home.save(update_fields=[column])
    assert read_the_list(f"cached?{asked}") == []


@pytest.mark.parametrize(("ordering", "number", "price"), [("price", 19, 1), ("-price", 0, 999_999)])
def test_a_price_moves_a_row_to_another_page(twenty_properties, warm, read_the_list, ordering, number, price):
    """The first page showed five others."""
    warm(ordering=ordering, page_size=5)

    twenty_properties[number].price = price
    twenty_properties[number].save(update_fields=["price"])

    assert read_the_list(ordering=ordering, page_size=5)[0]["id"] == twenty_properties[number].pk


@pytest.mark.parametrize("way", ["agent", "agent_id"])
def test_a_property_moves_to_another_agent(twenty_properties, warm, read_the_list, way):
    """Both agents' pages, and both offices', know at once."""
    home, other = twenty_properties[:2]
    pages = [{"agent": home.agent_id}, {"agent": other.agent_id}, {"office": home.agent.office_id}, {"office": other.agent.office_id}]
    for page in pages:
        warm(**page)

    home.agent = other.agent
    home.save(update_fields=[way])

    assert [len(read_the_list(**page)) for page in pages] == [0, 2, 0, 2]


def test_an_agent_moves_to_another_office(twenty_properties, warm, read_the_list):
    home, other = twenty_properties[:2]
    pages = [{"office": home.agent.office_id}, {"office": other.agent.office_id}]
    for page in pages:
        warm(**page)

    home.agent.office = other.agent.office
    home.agent.save(update_fields=["office"])

    assert [len(read_the_list(**page)) for page in pages] == [0, 2]


def test_a_location_moves_to_another_city(home, warm, read_the_list):
    warm(city="Springfield")
    warm(city="Shelbyville")

    home.location.city = "Shelbyville"
    home.location.save(update_fields=["city"])

    assert (len(read_the_list(city="Springfield")), len(read_the_list(city="Shelbyville"))) == (19, 1)


@pytest.mark.parametrize("loaded", ["before it was moved", "after"])
def test_an_image_leaves_its_old_owner(twenty_properties, warm, read, loaded):
    """Whoever saves it may not know whose it was: only the database does."""
    first, second = twenty_properties[:2]
    image = first.images.first()
    if loaded == "before it was moved":
        PropertyImage.objects.filter(pk=image.pk).update(property=second)
        first, second = second, first
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    image.property = second
    image.save()

    assert image.pk not in [shown["id"] for shown in read(f"cached/{first.pk}").json["images"]]
    assert image.pk in [shown["id"] for shown in read(f"cached/{second.pk}").json["images"]]


def test_whose_an_image_was_is_asked_where_it_is_written(home):
    """`using=` names another database, here the same one by another name: what is written there may not be there to see by any other connection."""
    image = home.images.first()
    connections.databases["another"] = connection.settings_dict
    try:
        with CaptureQueriesContext(connection) as asked_here:
            image.save(using="another")
    finally:
        connections["another"].close()
        del connections["another"], connections.databases["another"]

    assert len(asked_here) == 0


def test_an_image_moves_to_an_owner_whom_a_subquery_chooses(twenty_properties, warm, read):
    """Who that is, nobody knows before the SQL runs: it mentions properties, so all of them are named."""
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    image = first.images.first()
    image.property_id = Property.objects.filter(pk=second.pk).values("pk")
    image.save()

    assert len(read(f"cached/{second.pk}").json["images"]) == 3


def test_images_deleted_by_an_owner_whose_id_is_that_of_an_image(home, warm, read):
    """The deletion of image N is announced; that of the images of property N is not."""
    same = 10**9
    owner = Property.objects.create(pk=same, title="Same", price=1, location=home.location, agent=home.agent)
    PropertyImage.objects.create(property=owner, url="https://images.example.com/owned.jpg")
    image = PropertyImage.objects.create(pk=same, property=home, url="https://images.example.com/other.jpg")
    warm(f"cached/{same}")

    def listener(**_):
        PropertyImage.objects.filter(property__in=[same])._raw_delete("default")

    pre_delete.connect(listener, sender=PropertyImage)
    try:
        image.delete()
    finally:
        pre_delete.disconnect(listener, sender=PropertyImage)

    assert read(f"cached/{same}").json["images"] == []


def test_an_image_deleted_by_who_does_not_know_whose_it_is(twenty_properties, warm, read):
    first, second = twenty_properties[:2]
    image = first.images.first()
    PropertyImage.objects.filter(pk=image.pk).update(property=second)
    warm(f"cached/{second.pk}")

    image.delete()

    assert len(read(f"cached/{second.pk}").json["images"]) == 2


def test_the_21st_row_leaves_and_the_page_has_no_next(twenty_properties, warm, read):
    """It was on no page that is remembered, and yet the page changes."""
    warm(page_size=19)

    twenty_properties[19].delete()

    assert read("cached", page_size=19).json["next"] is None


def test_pages_further_on_know_it_too(twenty_properties, warm, read):
    """A row that comes moves a row over every page boundary behind it; a cursor holds its place."""
    second = read("cached", page_size=5).json["next"]
    third = read(f"cached{second}").json["next"]
    for page in (second, third):
        warm(f"cached{page}")

    twenty_properties[7].delete()

    for page in (second, third):
        assert read(f"cached{page}").body == read(f"optimized{page}").body


# A blind save, and one that knows


def test_a_blind_save_over_a_change_of_others_is_in_the_very_next_read(home, warm, read_the_list):
    """`save()` writes back every column it once read, also those that others have changed since."""
    stale_copy = Property.objects.get(pk=home.pk)
    Property.objects.filter(pk=home.pk).update(status="sold")
    warm(status="available")
    assert len(read_the_list(status="available")) == 19

    stale_copy.save()

    assert len(read_the_list(status="available")) == 20


def test_a_save_after_a_locked_read_names_only_what_differs(home, warm, read):
    """The lock makes certain what the row held, so pages selected by other columns stay warm."""
    warm(city="Shelbyville")
    warm(max_price=5)

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
        locked.price = 5
        locked.save()

    assert read("cached", city="Shelbyville").came_from == "hit"
    assert [row["price"] for row in read("cached", max_price=5).rows] == ["5.00"]


@pytest.fixture
def sold_meanwhile(home, warm, elsewhere):
    """Somebody else sells the newest property, and a page that lacks it now is warm: only the column that was written tells it."""

    def sold_meanwhile():
        elsewhere(lambda: Property.objects.filter(pk=home.pk).update(status="sold"))
        elsewhere(lambda: warm(status="available"))

    return sold_meanwhile


@pytest.mark.only("embedded")
def test_a_locked_read_without_a_transaction_is_certain_of_nothing(home, read_the_list, sold_meanwhile):
    """The lock was gone when the statement was. (PostgreSQL refuses to ask for one.)"""
    locked = Property.objects.select_for_update().filter(pk=home.pk)[0]
    sold_meanwhile()

    locked.save()

    assert len(read_the_list(status="available")) == 20


def test_a_read_without_a_lock_is_certain_of_nothing_in_a_transaction_either(home, warm, read):
    warm(status="sold")

    with transaction.atomic():
        Property.objects.get(pk=home.pk).save()

    assert read("cached", status="sold").came_from == "fwd=stale; stored"


def test_what_counts_is_what_the_row_held_when_it_was_read(home, warm, read_the_list):
    """Going through the same rows again reads nothing."""
    warm(status="sold")

    with transaction.atomic():
        locked = Property.objects.select_for_update().filter(pk=home.pk)
        for mine in locked:
            mine.status = "sold"
        for mine in locked:
            mine.save()

    assert len(read_the_list(status="sold")) == 1


def test_a_locked_read_of_values_is_certain_of_nothing(home, warm, read_the_list):
    """It read no row that could be saved."""
    with transaction.atomic():
        assert list(Property.objects.select_for_update().filter(pk=home.pk).values_list("status", flat=True)) == ["available"]
        mine = Property.objects.get(pk=home.pk)
        mine.status = "sold"
        mine.save()

    assert len(read_the_list(status="sold")) == 1


def test_a_lock_ends_with_its_transaction(home, read_the_list, sold_meanwhile):
    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
    sold_meanwhile()

    locked.save()

    assert len(read_the_list(status="available")) == 20


def test_a_lock_holds_under_a_savepoint_that_is_opened_later(home, warm, read):
    warm(city="Shelbyville")

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
        with transaction.atomic():
            locked.price = 5
            locked.save()

    assert read("cached", city="Shelbyville").came_from == "hit"


def test_a_locked_row_that_is_read_again_is_as_certain_as_before(home, warm, read):
    """The lock is the transaction's, whoever reads the row."""
    warm(status="sold")

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
        locked.refresh_from_db()
        locked.save()

    assert read("cached", status="sold").came_from == "hit"


def test_a_locked_image_is_not_looked_up_again(twenty_properties, queries):
    """What is certain need not be asked."""
    first, second = twenty_properties[:2]
    with transaction.atomic():
        image = PropertyImage.objects.select_for_update().filter(property=first)[0]
        with queries.exactly(1, because="one UPDATE; whose it was is known"):
            image.property = second
            image.save()


def test_a_save_that_changes_nothing_of_a_locked_image_keeps_the_others_warm(twenty_properties, warm, read, queries):
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")
    with transaction.atomic(), queries.exactly(2, because="one SELECT, which leaves the caption out, and one UPDATE"):
        image = PropertyImage.objects.select_for_update().defer("caption").filter(property=first)[0]
        image.save()

    assert read(f"cached/{second.pk}").came_from == "hit"


def test_a_lock_is_of_one_row(twenty_properties, warm, read):
    """Saved under another id, the object overwrites a row of which nobody knows what it held."""
    first, second = twenty_properties[:2]
    Property.objects.filter(pk=second.pk).update(status="sold")
    warm(status="available", page_size=100)

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=first.pk)
        locked.pk = second.pk
        locked.save()

    assert len(read("cached", status="available", page_size=100).rows) == 20


@pytest.mark.parametrize("way", ["save", "delete"])
def test_a_locked_image_under_another_id_is_another_image(twenty_properties, warm, read, way):
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        locked = PropertyImage.objects.select_for_update().filter(property=first)[0]
        locked.pk = second.images.first().pk
        getattr(locked, way)()

    assert len(read(f"cached/{second.pk}").json["images"]) == 1


@pytest.mark.only("embedded")
def test_a_locked_read_with_nothing_behind_it_is_certain_of_nothing(home, warm, read, elsewhere):
    """By hand, SQLite's driver begins no transaction before the first write: so SELECT FOR UPDATE locks nothing. (PostgreSQL's driver begins one.)"""
    transaction.set_autocommit(False)
    try:
        locked = Property.objects.select_for_update().get(pk=home.pk)
        elsewhere(lambda: Property.objects.filter(pk=home.pk).update(status="sold"))
        elsewhere(lambda: warm(status="available", page_size=100))
        locked.save()
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert len(read("cached", status="available", page_size=100).rows) == 20


def test_a_lock_of_a_joined_row_is_none_of_the_row_itself(home, warm, read):
    """`of=("agent",)` locks agents alone; what a property holds may change before it is saved."""
    warm(status="sold")

    with transaction.atomic():
        mine = Property.objects.select_related("agent").select_for_update(of=("agent",)).get(pk=home.pk)
        mine.save()

    assert read("cached", status="sold").came_from == "fwd=stale; stored"


def test_an_update_of_a_row_that_somebody_deleted_creates_it_again(home, warm, read_the_list):
    """Django's save() inserts what it could not update: the list knows, though nobody said that a property was created."""
    ghost = Property.objects.get(pk=home.pk)
    home.delete()
    warm()

    ghost.save()

    assert read_the_list()[0]["id"] == ghost.pk


WRITTEN_OTHERWISE = {"a float": float, "with a zero before it": "0{}".format, "with a space": " {}".format}
"""Ids as files and forms give them: Django makes whole numbers of them, but only in the SQL."""


@pytest.mark.parametrize("way", WRITTEN_OTHERWISE)
def test_an_owner_whose_id_is_written_otherwise(home, warm, read, way):
    warm(f"cached/{home.pk}")

    PropertyImage.objects.create(property_id=WRITTEN_OTHERWISE[way](home.pk), url="https://images.example.com/new.jpg")

    assert len(read(f"cached/{home.pk}").json["images"]) == 3


@pytest.mark.parametrize("way", WRITTEN_OTHERWISE)
def test_a_row_whose_id_is_written_otherwise(home, warm, read, way):
    warm(f"cached/{home.pk}")

    Property(pk=WRITTEN_OTHERWISE[way](home.pk), title="Other", price=1, location=home.location, agent=home.agent).save()

    assert read(f"cached/{home.pk}").json["title"] == "Other"


def test_an_owner_that_only_the_database_can_tell(twenty_properties, warm, read):
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    image = first.images.first()
    image.property_id = Value(second.pk)
    image.save()

    assert len(read(f"cached/{second.pk}").json["images"]) == 3


@pytest.mark.parametrize("update_fields", [["price"], ["price", "agent"]], ids=", ".join)
def test_an_upsert_is_in_the_next_read_of_the_row_that_was_there(home, warm, read, update_fields):
    """Which rows it updates, only the database knows."""
    warm(f"cached/{home.pk}")

    Property.objects.bulk_create([Property(**newer(home, pk=home.pk))], update_conflicts=True, unique_fields=["id"], update_fields=update_fields)

    assert read(f"cached/{home.pk}").json["price"] == "1.00"


def test_a_row_saved_under_an_id_of_its_own_choice(home, warm, read_the_list):
    """It may be an update of a row that exists: nobody knows before it is done."""
    warm()
    warm(city="Shelbyville")

    Property(pk=home.pk, title="Other", price=1, location=Location.objects.create(city="Shelbyville"), agent=home.agent, created_at=timezone.now()).save()

    assert read_the_list()[0]["title"] == "Other"
    assert len(read_the_list(city="Shelbyville")) == 1


def test_created_at_never_changes(home, read):
    """Pages are ordered by it and depend on no tag for it: an update does not write it."""
    before = read(f"optimized/{home.pk}").json["created_at"]

    home.created_at = timezone.now()
    home.save()

    assert read(f"optimized/{home.pk}").json["created_at"] == before
    assert read(f"cached/{home.pk}").json["created_at"] == before


# Ways to write that no signal speaks of: the whole model, conservatively


def sql(text, *parameters):
    """One statement through a cursor."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters)


def changed(row, **fields):
    """This row with other values, not saved yet."""
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def newer(home, **fields):
    """The columns of a property newer than this one."""
    return {
        "title": "New",
        "price": 1,
        "location_id": home.location_id,
        "agent_id": home.agent_id,
        "created_at": home.created_at + timedelta(seconds=1),
    } | fields


def without_images(home):
    """This property, which nothing refers to any longer."""
    home.images.all()._raw_delete("default")
    return Property.objects.filter(pk=home.pk)


def loaded(row):
    """This row through a fixture, as loaddata takes it."""
    for found in deserialize("json", serialize("json", [row])):
        found.save()


@async_to_sync
async def awaited(act):
    """As an asynchronous view does it."""
    await act()


def proxy():
    """Another app's own view of properties: `a_proxy`."""
    return apps.get_model("housing", "Bargain")


@cache_once
def history():
    """The models as a migration sees them: no classes of ours, and nobody listens to them."""
    return MigrationLoader(None).project_state().apps


def historical(name):
    """One of them."""
    return history().get_model("housing", name)


def copied(text, *row):
    """One row through PostgreSQL's COPY."""
    with connection.cursor() as cursor, cursor.copy(text) as copy:
        copy.write_row(row)


NAME = {"name": "Else"}

WAYS = {
    # one row
    "save()": lambda home, _: changed(home, price=1).save(),
    "save() of what it stands at": lambda home, _: changed(home.location, zip_code="Else").save(),
    "save() of who sells it": lambda home, _: changed(home.agent, **NAME).save(),
    "save() of whom they work for": lambda home, _: changed(home.agent.office, **NAME).save(),
    "save(force_update)": lambda home, _: changed(home, price=1).save(force_update=True),
    "save(force_insert)": lambda home, _: Property(**newer(home)).save(force_insert=True),
    "save_base(raw)": lambda home, _: changed(home, price=1).save_base(raw=True),
    "create()": lambda home, _: Property.objects.create(**newer(home)),
    "delete()": lambda home, _: home.delete(),
    "delete() of its agent": lambda home, _: home.agent.delete(),
    "delete() of its office": lambda home, _: home.agent.office.delete(),
    "delete() of its location": lambda home, _: home.location.delete(),
    "a foreign key moved": lambda home, other: changed(home, agent=other.agent).save(),
    "get_or_create()": lambda home, _: Property.objects.get_or_create(record_hash=home.pk, defaults=newer(home)),
    "update_or_create()": lambda home, _: Property.objects.update_or_create(pk=home.pk, defaults={"price": 1}),
    "update_or_create() of a new one": lambda home, _: Property.objects.update_or_create(record_hash=home.pk, defaults=newer(home)),
    # many rows
    "update()": lambda home, _: Property.objects.filter(pk=home.pk).update(price=1),
    "update() with F()": lambda home, _: Property.objects.filter(pk=home.pk).update(price=F("price") + 1),
    "update() across a join": lambda home, _: Property.objects.filter(agent__office=home.agent.office).update(price=1),
    "update() of agents": lambda home, _: Agent.objects.update(**NAME),
    "bulk_create()": lambda home, _: Property.objects.bulk_create([Property(**newer(home))]),
    "bulk_create(update_conflicts)": lambda home, _: Property.objects.bulk_create(
        [Property(**newer(home, pk=home.pk))], update_conflicts=True, unique_fields=["id"], update_fields=["price"]
    ),
    "bulk_create(ignore_conflicts)": lambda home, _: Property.objects.bulk_create(
        [Property(**newer(home, pk=home.pk)), Property(**newer(home))], ignore_conflicts=True
    ),
    "bulk_update()": lambda home, _: Property.objects.bulk_update([Property(**newer(home, pk=home.pk))], ["price"]),
    "delete() of a queryset": lambda home, _: Property.objects.filter(pk=home.pk).delete(),
    "delete() of a queryset of offices": lambda home, _: Office.objects.filter(pk=home.agent.office_id).delete(),
    "_raw_delete()": lambda home, _: without_images(home)._raw_delete("default"),
    "_raw_delete() by ids": lambda home, _: without_images(home).filter(pk__in=[home.pk])._raw_delete("default"),
    # other ways to the same
    "a fixture": lambda home, _: loaded(changed(home, price=1)),
    "a fixture of an office": lambda home, _: loaded(changed(home.agent.office, **NAME)),
    "create() of a related manager": lambda home, _: home.agent.properties.create(**newer(home)),
    "add() of a related manager": lambda home, other: other.agent.properties.add(home),
    "add(bulk=False) of a related manager": lambda home, other: other.agent.properties.add(home, bulk=False),
    "set() of a related manager": lambda home, other: other.agent.properties.set([home]),
    "update() of a related manager": lambda home, _: home.agent.properties.update(price=1),
    "delete() of a related manager": lambda home, _: home.agent.properties.all().delete(),
    "update() of the base manager": lambda home, _: Property._base_manager.filter(pk=home.pk).update(price=1),
    "create() of the base manager": lambda home, _: Property._base_manager.create(**newer(home)),
    "save() of a proxy": lambda home, _: changed(proxy().objects.get(pk=home.pk), price=1).save(),
    "create() of a proxy": lambda home, _: proxy().objects.create(**newer(home)),
    "update() of a proxy": lambda home, _: proxy().objects.filter(pk=home.pk).update(price=1),
    "delete() of a proxy": lambda home, _: proxy().objects.get(pk=home.pk).delete(),
    "save() in a migration": lambda home, _: changed(historical("Property").objects.get(pk=home.pk), price=1).save(),
    "save() of a new row in a migration": lambda home, _: transaction.atomic(historical("Property")(**newer(home)).save)(),  # as it runs in
    "save() of an office in a migration": lambda home, _: changed(historical("Office").objects.get(pk=home.agent.office_id), **NAME).save(),
    "update() in a migration": lambda home, _: historical("Property").objects.filter(pk=home.pk).update(price=1),
    "bulk_create() in a migration": lambda home, _: historical("Property").objects.bulk_create([historical("Property")(**newer(home))]),
    "delete() in a migration": lambda home, _: historical("Office").objects.get(pk=home.agent.office_id).delete(),
    "asave()": lambda home, _: awaited(lambda: changed(home, price=1).asave()),
    "acreate()": lambda home, _: awaited(lambda: Property.objects.acreate(**newer(home))),
    "adelete()": lambda home, _: awaited(home.adelete),
    "aupdate()": lambda home, _: awaited(lambda: Property.objects.filter(pk=home.pk).aupdate(price=1)),
    "abulk_create()": lambda home, _: awaited(lambda: Property.objects.abulk_create([Property(**newer(home))])),
    "aupdate_or_create()": lambda home, _: awaited(lambda: Property.objects.aupdate_or_create(pk=home.pk, defaults={"price": 1})),
    "aadd() of a related manager": lambda home, other: awaited(lambda: other.agent.properties.aadd(home)),
    # SQL
    "SQL": lambda home, _: sql("UPDATE housing_property SET price = 3 WHERE id = %s", home.pk),
    "SQL with a comment before it": lambda home, _: sql("/* nightly */ UPDATE housing_property SET price = 3 WHERE id = %s", home.pk),
    "SQL with a CTE": lambda home, _: sql("WITH x AS (SELECT %s AS id) UPDATE housing_property SET price = 3 WHERE id IN (SELECT id FROM x)", home.pk),
    "SQL on agents": lambda home, _: sql("UPDATE housing_agent SET name = 'Another' WHERE id = %s", home.agent_id),
    "SQL on locations": lambda home, _: sql("UPDATE housing_location SET zip_code = 'Else' WHERE id = %s", home.location_id),
    "executemany()": lambda home, _: connection.cursor().executemany("UPDATE housing_office SET name = %s WHERE id = %s", [("Else", home.agent.office_id)]),
    "an updatable view, chosen by a table of ours": lambda home, _: sql(
        "UPDATE somebodys_view SET price = 4 WHERE id IN (SELECT property_id FROM housing_propertyimage WHERE property_id = %s)", home.pk
    ),
    "an updatable view": lambda home, _: sql("UPDATE somebodys_view SET price = 4 WHERE id = %s", home.pk),
}
"""Way to write what a list shows → how: given the newest property, and another."""

WAYS_WITH_IMAGES = {
    "save() of an image": lambda home, _: changed(home.images.first(), caption="Else").save(),
    "an image moved away": lambda home, other: changed(home.images.first(), property=other).save(),
    "an image moved away by update()": lambda home, other: home.images.update(property=other),
    "an image moved here": lambda home, other: changed(other.images.first(), property=home).save(),
    "create() of images": lambda home, _: home.images.create(url="https://images.example.com/new.jpg"),
    "add() of images": lambda home, other: home.images.add(*other.images.all()),
    "set() of images": lambda home, other: other.images.set(home.images.all()),
    "bulk_create() of images": lambda home, _: make_images(home),
    "delete() of an image": lambda home, _: home.images.first().delete(),
    "delete() of images": lambda home, _: home.images.all().delete(),
    "_raw_delete() of images": lambda home, _: home.images.all()._raw_delete("default"),
    "a fixture of an image": lambda home, _: loaded(changed(home.images.first(), caption="Else")),
    "save() of an image in a migration": lambda home, _: changed(historical("PropertyImage").objects.get(pk=home.images.first().pk), caption="Else").save(),
    "acreate() of images": lambda home, _: awaited(lambda: home.images.acreate(url="https://images.example.com/new.jpg")),
    "SQL on images": lambda home, _: sql("UPDATE housing_propertyimage SET caption = 'Else' WHERE property_id = %s", home.pk),
}
"""The same for what the detail alone shows."""

SERVERS_OWN = {
    "sqlite": {},
    "postgresql": {
        "callproc()": lambda home, _: connection.cursor().callproc("somebodys_function"),
        "CALL": lambda home, _: sql("CALL somebodys_procedure()"),
        "DO": lambda home, _: sql("DO $$ BEGIN EXECUTE 'UPDATE housing_' || 'property SET price = 7'; END $$"),
        "COPY": lambda home, _: copied(
            "COPY housing_property (title, property_type, status, price, location_id, agent_id, created_at, updated_at) FROM STDIN",
            *("Copied", "house", "sold", 1, home.location_id, home.agent_id, home.created_at + timedelta(seconds=1), home.created_at),
        ),
    },
}
"""Ways that only one of the servers has."""

SOMEBODYS = {
    "sqlite": ["CREATE TRIGGER through INSTEAD OF UPDATE ON somebodys_view BEGIN UPDATE housing_property SET price = NEW.price WHERE id = NEW.id; END"],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION somebodys_function() RETURNS void LANGUAGE sql AS 'UPDATE housing_property SET price = 5'",
        "CREATE OR REPLACE PROCEDURE somebodys_procedure() LANGUAGE sql AS 'UPDATE housing_property SET price = 6'",
    ],
}
"""What makes a view of one table updatable (PostgreSQL needs nothing), and what may be called."""


@pytest.fixture
def every_way(transactional_db, read, a_proxy):
    """`every_way(carry_out)`: for each way, whether its page has changed, whether the next answer is the database's, and where that came from."""

    def every_way(carry_out):
        homes = saved(*map(a_property, range(2 * len(ways))))
        make_images(*homes)
        return {way: outcome(way, write, carry_out, home, other) for (way, write), home, other in zip(ways.items(), homes[::2], homes[1::2], strict=True)}

    def outcome(way, write, carry_out, home, other):
        page = f"/{home.pk}" if way in WAYS_WITH_IMAGES else f"?agent={home.agent_id}"
        before = read(f"cached{page}").body
        carry_out(partial(write, home, other))
        after = read(f"cached{page}")
        with transaction.atomic():  # where nothing is remembered
            truth = read(f"cached{page}")
        return truth.body != before, after.body == truth.body, after.came_from

    ways = WAYS | WAYS_WITH_IMAGES | SERVERS_OWN[connection.vendor]
    for statement in ["CREATE VIEW somebodys_view AS SELECT * FROM housing_property", *SOMEBODYS[connection.vendor]]:
        sql(statement)
    yield every_way
    sql("DROP VIEW somebodys_view")


SEEN, UNDONE = (True, True, "fwd=stale; stored"), (False, True, "hit")


@contextmanager
def nested_in_a_durable_one():
    with transaction.atomic(durable=True), transaction.atomic():
        yield


@contextmanager
def rolled_back():
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("within", "outcome"),
    [(nullcontext, SEEN), (nested_in_a_durable_one, SEEN), (rolled_back, UNDONE)],
    ids=["in autocommit", "nested in a durable transaction", "rolled back"],
)
def test_every_way_of_writing_is_in_the_very_next_read(every_way, within, outcome):
    """Who wrote, and how, is nothing that a reader can know. What was rolled back leaves its page warm."""

    def carry_out(write):
        with within():
            write()

    assert {way: seen for way, seen in every_way(carry_out).items() if seen != outcome} == {}


@pytest.mark.slow
def test_every_way_of_writing_in_a_request_with_atomic_requests_is_in_the_very_next_read(every_way, client, settings, monkeypatch):
    """The transaction is the request's, and commits when the view is through."""
    writes = []

    def view(request):
        assert connection.in_atomic_block
        writes.pop()()
        return HttpResponse()

    def carry_out(write):
        writes.append(write)
        assert client.post("/write/").status_code == 200

    settings.ROOT_URLCONF = (path("write/", view), *urls.urlpatterns)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert {way: seen for way, seen in every_way(carry_out).items() if seen != SEEN} == {}


@pytest.mark.parametrize("atomic_requests", [False, True], ids=["a transaction of its own", "ATOMIC_REQUESTS"])
def test_what_the_admin_saves_and_deletes_is_in_the_very_next_read(home, client, warm, read_the_list, monkeypatch, atomic_requests):
    """The chapter of the contract edits prices in its list, and images beside their property."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic_requests)
    client.force_login(User.objects.create_superuser("editor"))
    warm()

    client.post(f"/admin/housing/agent/{home.agent_id}/change/", {"name": "Else", "office": home.agent.office_id})
    assert read_the_list()[0]["agent"]["name"] == "Else"

    client.post("/admin/housing/property/", {"action": "delete_selected", "_selected_action": home.pk, "post": "yes"})
    assert home.pk not in [row["id"] for row in read_the_list()]


def test_a_write_of_images_without_a_signal_is_in_the_very_next_read(home, warm, read):
    warm(f"cached/{home.pk}")
    warm()

    PropertyImage.objects.update(caption="Else")

    assert {image["caption"] for image in read(f"cached/{home.pk}").json["images"]} == {"Else"}
    assert read("cached").came_from == "hit"  # for a list shows none


def test_many_at_once_name_the_model_in_their_text_and_no_other(home, warm, read):
    warm()

    connection.cursor().executemany("UPDATE housing_propertyimage SET caption = %s", [("Else",), ("Other",)])

    assert read("cached").came_from == "hit"


def test_loaddata_is_in_the_very_next_read(home, warm, read_the_list, tmp_path):
    fixture = tmp_path / "offices.json"
    call_command("dumpdata", "housing.office", output=str(fixture), verbosity=0)
    fixture.write_text(fixture.read_text().replace(home.agent.office.name, "Loaded"))
    warm()

    call_command("loaddata", str(fixture), verbosity=0)

    assert read_the_list()[0]["agent"]["office"]["name"] == "Loaded"


def test_the_update_of_a_receiver_is_not_taken_for_the_save_that_it_listens_to(twenty_properties, warm, read_the_list):
    """The save named its row; the receiver wrote another."""
    home, other = twenty_properties[:2]
    warm(status="sold")

    def listener(instance, **_):
        Property.objects.filter(pk=other.pk).update(status="sold")

    for signal in (pre_save, post_save):
        signal.connect(listener, sender=Property)
        try:
            home.save(update_fields=["price"])
        finally:
            signal.disconnect(listener, sender=Property)
        assert [row["id"] for row in read_the_list(status="sold")] == [other.pk]
        Property.objects.update(status="available")


def test_an_update_after_a_save_is_not_taken_for_the_save(home, warm, read_the_list):
    home.save(update_fields=["title"])
    warm()

    Property.objects.filter(pk=home.pk).update(price=5)

    assert read_the_list()[0]["price"] == "5.00"


def test_a_receiver_may_change_what_is_saved(home, warm, read_the_list):
    """It runs after ours, and before the SQL: what counts is what was written."""
    warm(status="sold")

    def sell(instance, **_):
        instance.status = "sold"

    pre_save.connect(sell, sender=Property)
    try:
        with transaction.atomic():
            Property.objects.select_for_update().get(pk=home.pk).save()
    finally:
        pre_save.disconnect(sell, sender=Property)

    assert [row["id"] for row in read_the_list(status="sold")] == [home.pk]


@pytest.mark.parametrize(
    "way",
    [lambda image: image.save(), lambda image: changed(image, pk=None).save(force_insert=True), loaded],
    ids=["save()", "save() of a new one", "a fixture"],
)
def test_a_receiver_may_give_an_image_to_another_property(twenty_properties, warm, read, way):
    """A fixture is saved past our save_base(), and so in no transaction unless it is loaddata's: then its SQL is believed."""
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    def move(instance, **_):
        instance.property = second

    pre_save.connect(move, sender=PropertyImage)
    try:
        way(first.images.first())
    finally:
        pre_save.disconnect(move, sender=PropertyImage)

    assert len(read(f"cached/{second.pk}").json["images"]) == 3


@pytest.mark.parametrize(
    "delete",
    [
        lambda image, home: PropertyImage.objects.filter(property=home)._raw_delete("default"),
        lambda image, home: PropertyImage.objects.filter(pk__in=[image.pk, *home.images.values_list("pk", flat=True)])._raw_delete("default"),
        lambda image, home: sql('DELETE FROM "housing_propertyimage" WHERE "housing_propertyimage"."id" IN (%s) OR TRUE', image.pk),
    ],
    ids=["by owner", "by id, with that row", "by that row's id, or any"],
)
def test_the_delete_of_a_receiver_is_not_taken_for_the_deletion_that_it_listens_to(twenty_properties, warm, read, delete):
    first, second = twenty_properties[:2]
    image = first.images.first()
    warm(f"cached/{second.pk}")

    def listener(**_):
        delete(image, second)

    pre_delete.connect(listener, sender=PropertyImage)
    try:
        image.delete()
    finally:
        pre_delete.disconnect(listener, sender=PropertyImage)

    assert read(f"cached/{second.pk}").json["images"] == []


@pytest.mark.parametrize("muted", [pre_save, post_save], ids=["pre_save", "post_save"])
def test_a_save_whose_signals_are_muted_is_in_the_very_next_read(home, warm, read_the_list, muted):
    """Test factories mute signals; so the SQL is believed, not the silence, and neither signal waits for the other."""
    home.save(update_fields=["title"])  # what this one named is over with it
    warm()
    warm(status="sold")
    receivers, muted.receivers = muted.receivers, []
    muted.sender_receivers_cache.clear()
    try:
        home.status = "sold"
        home.save(update_fields=["status"])
        assert len(read_the_list(status="sold")) == 1

        warm()
        Property.objects.create(title="New", price=1, location=home.location, agent=home.agent)
        assert read_the_list()[0]["title"] == "New"
    finally:
        muted.receivers = receivers
        muted.sender_receivers_cache.clear()


def test_a_debug_cursor_sees_it_too(home, warm, read_the_list):
    """Django has another cursor for DEBUG, and for whoever captures queries."""
    warm()

    connection.force_debug_cursor = True
    try:
        Property.objects.filter(pk=home.pk).update(price=5)
    finally:
        connection.force_debug_cursor = False

    assert read_the_list()[0]["price"] == "5.00"


@pytest.fixture
def a_proxy():
    """Another app's own view of properties."""

    class Bargain(Property):
        class Meta:
            app_label = "housing"
            proxy = True

    yield Bargain
    del apps.all_models["housing"]["bargain"]
    apps.clear_cache()


def test_a_save_through_a_proxy_names_its_row_and_no_other(twenty_properties, warm, read, a_proxy):
    """It is sent by the proxy's class, and written to the table of the model behind it."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    bargain = a_proxy.objects.get(pk=first.pk)
    bargain.price = 1
    bargain.save()

    assert read(f"cached/{first.pk}").json["price"] == "1.00"
    assert read(f"cached/{second.pk}").came_from == "hit"


@pytest.mark.parametrize(
    "innocent",
    [
        lambda: User.objects.create_user("somebody"),
        lambda: Session.objects.create(session_key="x", expire_date=timezone.now()),
        lambda: sql({"sqlite": "PRAGMA optimize", "postgresql": "SET application_name = 'specs'"}[connection.vendor]),
        lambda: sql("ANALYZE"),
        lambda: sql("EXPLAIN SELECT * FROM housing_property"),
        lambda: sql("/* who asks */ SELECT 1"),
        lambda: sql("CREATE TABLE elsewhere (id integer)") or sql("DROP TABLE elsewhere"),
    ],
    ids=["a user", "a session", "a setting", "statistics", "a plan", "a SELECT with a comment before it", "another table"],
)
def test_a_write_to_the_table_of_another_app_makes_nothing_stale(home, warm, read, innocent):
    """A login is a write too, and must not empty the cache."""
    warm()
    warm(f"cached/{home.pk}")

    innocent()

    assert read("cached").came_from == "hit"
    assert read(f"cached/{home.pk}").came_from == "hit"


NOT_PROMISED = {
    "`UPDATE … RETURNING` through a cursor works in autocommit on SQLite": "SQLite refuses our COMMIT before the rows are fetched: an error. Use `atomic()`.",
    "A migration with `atomic = False`, or a fixture saved by hand, saves a new row on SQLite": "The same: its INSERT asks for the id. Use `atomic()`.",
    "A write through a function or a trigger is in the very next read": "Neither `SELECT f()` nor the statement before a trigger says what is written.",
    "A write by another program is in the very next read": "Nobody stands before its COMMIT: an entry lives until a write of ours, or its time is up.",
    "A column that a blind save writes back unchanged leaves pages warm": "`save()` cannot know that it is unchanged; a locked read, or `update_fields`, can.",
}


# What a rollback leaves alone

savepoint = getattr(transaction, "savepoint_create", transaction.savepoint)
"""Django 6.1 has another name for it."""


def test_a_rollback_leaves_every_page_as_warm_as_it_was(home, warm, read):
    warm()
    warm(f"cached/{home.pk}")

    with transaction.atomic():
        home.price = 1
        home.save()
        home.agent.delete()
        transaction.set_rollback(True)

    assert read("cached").came_from == "hit"
    assert read(f"cached/{home.pk}").came_from == "hit"


def test_a_rollback_to_a_savepoint_leaves_alone_what_only_it_wrote(twenty_properties, warm, read):
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        first.save()
        with transaction.atomic():
            second.save()
            transaction.set_rollback(True)

    assert read(f"cached/{first.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{second.pk}").came_from == "hit"


def test_a_released_savepoint_counts_as_written(twenty_properties, warm, read):
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    with transaction.atomic(), transaction.atomic():
        first.save()
        with transaction.atomic():
            second.save()

    assert read(f"cached/{first.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{second.pk}").came_from == "fwd=stale; stored"


@pytest.mark.parametrize("released", [True, False], ids=["released by the one around it", "left open"])
def test_a_savepoint_that_nobody_releases_counts_as_written(twenty_properties, warm, read, released):
    """RELEASE takes with it the savepoints inside, and COMMIT all there are."""
    homes = twenty_properties[:3]
    for home in homes:
        warm(f"cached/{home.pk}")

    with transaction.atomic():
        homes[0].save()
        mine = savepoint()
        homes[1].save()
        savepoint()
        homes[2].save()
        if released:
            transaction.savepoint_commit(mine)

    assert [read(f"cached/{home.pk}").came_from for home in homes] == ["fwd=stale; stored"] * 3


def test_what_came_before_a_savepoint_left_empty_counts_as_written(home, warm, read):
    warm()

    with transaction.atomic():
        home.save()
        savepoint()

    assert read("cached").came_from == "fwd=stale; stored"


def test_a_savepoint_rolled_back_to_twice_holds_what_came_between(home, warm, read):
    """ROLLBACK TO keeps the savepoint: what is written after it is written."""
    warm(f"cached/{home.pk}")

    with transaction.atomic():
        mine = savepoint()
        home.agent.save()
        transaction.savepoint_rollback(mine)
        home.save()
        transaction.savepoint_commit(mine)

    assert read(f"cached/{home.pk}").came_from == "fwd=stale; stored"


def test_a_lock_taken_under_a_savepoint_goes_with_its_rollback(home, warm, read):
    """PostgreSQL releases it then; so what the row held is certain no longer."""
    warm(status="sold")

    with transaction.atomic():
        mine = savepoint()
        locked = Property.objects.select_for_update().get(pk=home.pk)
        transaction.savepoint_rollback(mine)
        locked.save()

    assert read("cached", status="sold").came_from == "fwd=stale; stored"


def test_a_write_that_fails_leaves_every_page_warm(home, warm, read):
    warm()

    with pytest.raises(IntegrityError):
        Property.objects.create(pk=home.pk, title="Twice", price=1, location=home.location, agent=home.agent)

    assert read("cached").came_from == "hit"


def test_a_write_that_fails_inside_a_transaction_takes_only_itself_back(twenty_properties, warm, read):
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        first.save()
        with pytest.raises(IntegrityError), transaction.atomic():
            Property(pk=second.pk, title="Twice", price=1, location=second.location, agent=second.agent).save(force_insert=True)

    assert read(f"cached/{first.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{second.pk}").came_from == "hit"


# The commit


def test_what_is_not_committed_is_shown_to_nobody_and_remembered_by_nobody(home, read, elsewhere, client):
    def read_elsewhere():
        return read("cached").rows[0]["price"]

    with transaction.atomic():
        home.price = 1
        home.save()
        assert elsewhere(read_elsewhere) == "300000.00"
        assert elsewhere(read_elsewhere) == "300000.00"

    assert elsewhere(read_elsewhere) == "1.00"


def test_a_raising_hook_of_another_app_changes_nothing(home, warm, read_the_list):
    """`on_commit` hooks behind one that raises are skipped: ours is none of them."""
    warm()

    def fail():
        raise RuntimeError("a mail could not be sent")

    with pytest.raises(RuntimeError), transaction.atomic():
        transaction.on_commit(fail)
        home.price = 2
        home.save()

    assert read_the_list()[0]["price"] == "2.00"


def test_a_commit_that_fails_makes_nothing_stale(home, warm, read):
    """A deferred constraint is checked at COMMIT, when the lease is open: it is withdrawn, and leaves no record."""
    warm()

    with pytest.raises(IntegrityError), transaction.atomic():
        PropertyImage.objects.create(property_id=10**9, url="https://images.example.com/nobody.jpg")
        home.save()

    assert read("cached").came_from == "hit"


@pytest.mark.only("embedded")
def test_a_commit_that_is_tried_again_takes_the_same_way(home, warm, read, elsewhere, redis_clock, settings):
    """By hand, a transaction goes on after a COMMIT that failed: the second COMMIT says again what the first had to say. (PostgreSQL ends the transaction.)"""
    transaction.set_autocommit(False)
    try:
        sql("PRAGMA defer_foreign_keys = ON")
        image = PropertyImage.objects.create(property_id=10**9, url="https://images.example.com/nobody.jpg")
        home.price = 5
        home.save()
        with pytest.raises(IntegrityError):
            transaction.commit()
        redis_clock.seconds += conf.LEASE + 1
        elsewhere(warm)
        image.property = home
        image.save()
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read("cached").rows[0]["price"] == "5.00"


@pytest.fixture
def lost_at_commit(monkeypatch):
    """`with lost_at_commit():` the connection is lost with COMMIT on its way."""

    def lose_the_connection(self):
        self.connection.commit()
        self.connection.close()
        raise OperationalError("server closed the connection unexpectedly")

    @contextmanager
    def lost_at_commit():
        with monkeypatch.context() as patched:
            patched.setattr(BaseDatabaseWrapper, "_commit", lose_the_connection)
            with pytest.raises(OperationalError, match="unexpectedly"):
                yield

    return lost_at_commit


def test_a_commit_with_unknown_outcome_is_not_closed(home, warm, read, lost_at_commit):
    """It may have happened, so readers ask the database until the lease runs out."""
    warm()

    with lost_at_commit():
        home.save()

    assert read("cached").came_from == "fwd=miss; detail=leased"


def test_a_commit_with_unknown_outcome_is_not_taken_back_by_what_the_next_connection_does(home, warm, read, lost_at_commit):
    warm()

    transaction.set_autocommit(False)
    home.save()
    with lost_at_commit():
        transaction.commit()
    connection.close()
    with transaction.atomic():
        transaction.set_rollback(True)

    assert read("cached").came_from == "fwd=miss; detail=leased"


def test_without_redis_a_write_is_refused_before_it_is_committed(home, read, redis_away, warm):
    """Committed, it would stay invisible to readers for as long as entries live."""
    warm()

    with redis_away(), pytest.raises(NotLeased, match=r"Rolled back: Redis at .* is out of reach"):
        Property.objects.filter(pk=home.pk).update(price=1)

    assert read("optimized").rows[0]["price"] == "300000.00"
    assert read("cached").came_from == "hit"


def test_without_redis_a_save_is_refused_and_the_connection_lives_on(home, redis_away):
    with redis_away(), pytest.raises(NotLeased):
        home.save()

    home.save()


def test_ctrl_c_before_the_commit_leaves_nothing_written(home, read, warm, monkeypatch):
    """Not leased is not committed, whatever the reason."""
    warm()

    def interrupted(tags):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("housing.freshness.connection.journal.lease", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Property.objects.filter(pk=home.pk).update(price=1)

    assert read("optimized").rows[0]["price"] == "300000.00"
    assert read("cached").came_from == "hit"


def test_a_close_that_fails_leaves_its_lease_to_run_out(home, warm, read, redis_away, monkeypatch, caplog):
    """The write is committed and its caller is told nothing else; until the lease is over, readers ask the database."""
    warm()
    commit = BaseDatabaseWrapper._commit
    with ExitStack() as stack:
        monkeypatch.setattr(BaseDatabaseWrapper, "_commit", lambda self: (commit(self), stack.enter_context(redis_away())))
        home.price = 3
        home.save()
        monkeypatch.undo()

    said, changed = caplog.messages
    assert said.startswith("Committed, but the lease could not be closed: Redis at ")
    assert said.endswith(" Readers query the database until it expires.")
    assert changed.startswith(f"[ORM] Property {home.pk} changed. Stale: ")
    response = read("cached")
    assert (response.rows[0]["price"], response.came_from) == ("3.00", "fwd=miss; detail=leased")


def test_a_lease_that_cannot_be_withdrawn_is_left_to_run_out(home, warm, read, redis_away, monkeypatch, caplog):
    warm()

    with ExitStack() as stack:

        def fail(self):
            stack.enter_context(redis_away())
            raise IntegrityError("a deferred constraint")

        monkeypatch.setattr(BaseDatabaseWrapper, "_commit", fail)
        with pytest.raises(IntegrityError):
            home.save()
        monkeypatch.undo()

    [said] = caplog.messages
    assert said.startswith("Rolled back, but the lease could not be withdrawn: Redis at ")
    assert said.endswith(" Readers query the database until it expires.")
    assert read("cached").came_from == "fwd=miss; detail=leased"


def test_a_transaction_managed_by_hand_takes_the_same_way(home, warm, read_the_list):
    warm()
    transaction.set_autocommit(False)
    try:
        home.price = 4
        home.save()
        transaction.commit()
        assert connection.in_transaction
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read_the_list()[0]["price"] == "4.00"


@pytest.mark.only("embedded")
def test_switching_autocommit_on_commits_and_so_takes_the_same_way(home, warm, read_the_list):
    """SQLite's driver commits an open transaction then, without a word. (PostgreSQL's refuses.)"""
    warm()
    transaction.set_autocommit(False)
    home.price = 4
    home.save()
    transaction.set_autocommit(True)

    assert read_the_list()[0]["price"] == "4.00"


@pytest.mark.only("embedded")
def test_switching_autocommit_off_again_commits_nothing(home, read):
    """Psycopg refuses to be asked within a transaction."""
    transaction.set_autocommit(False)
    try:
        home.price = 4
        home.save()
        transaction.set_autocommit(False)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read("optimized").rows[0]["price"] == "300000.00"


def test_a_lost_connection_forgets_what_it_had_not_committed(home, warm, read):
    """The database rolled it back."""
    warm()
    transaction.set_autocommit(False)
    home.save()
    connection.close()

    assert not connection.uncommitted
    assert read("cached").came_from == "hit"


# How much is said


@pytest.mark.parametrize(("rows", "stale"), [(MANY_ROWS - 2, "row by row"), (MANY_ROWS - 1, "as a whole")])
def test_a_table_of_which_many_rows_are_written_is_tagged_as_a_whole(transactional_db, caplog, rows, stale):
    """A lease is one short script, whatever was written. Beside its rows an UPDATE has two tags: of the table, and of the column."""
    offices = Office.objects.bulk_create(Office(name=f"Branch {number}") for number in range(rows))

    with transaction.atomic():
        for office in offices:
            office.save(update_fields=["name"])
        tags = connection._collapsed()

    assert tags == {"as a whole": {"housing_office", "housing_office:*"}}.get(
        stale, {"housing_office", "housing_office.name"} | {f"housing_office:{office.pk}" for office in offices}
    )


def test_a_transaction_of_many_rows_is_in_the_very_next_read(twenty_properties, warm, read_the_list):
    warm()

    with transaction.atomic():
        for number in range(MANY_ROWS + 1):
            Office.objects.create(name=f"Branch {number}")
        for office in Office.objects.all():
            office.name = "Merged"
            office.save()

    assert {row["agent"]["office"]["name"] for row in read_the_list()} == {"Merged"}
    assert get_redis_connection("default").zcard(cache.make_key("journal")) < 10


def test_a_change_is_one_line_in_the_log(home, caplog):
    """What changed, and what it made stale; said when it is committed, for before that it is not so."""
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        home.save(update_fields=["price"])
        assert caplog.messages == []

    assert caplog.messages == [f"[ORM] Property {home.pk} changed. Stale: housing_property, housing_property.price, housing_property:{home.pk}."]


def test_a_change_under_a_savepoint_is_said_if_the_savepoint_is_kept(twenty_properties, caplog):
    released, dropped, left_open = twenty_properties[:3]
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        for home in (released, dropped):
            with transaction.atomic():
                home.save(update_fields=["price"])
                transaction.set_rollback(home is dropped)
        savepoint()
        left_open.save(update_fields=["price"])

    assert caplog.messages == [
        f"[ORM] Property {home.pk} changed. Stale: housing_property, housing_property.price, housing_property:{home.pk}." for home in (released, left_open)
    ]


def test_creating_and_deleting_are_one_line_each(home, caplog):
    with caplog.at_level(logging.INFO, "housing"):
        image = PropertyImage.objects.create(property=home, url="https://images.example.com/x.jpg")
        key = image.pk
        image.delete()

    table, owner = "housing_propertyimage", f"housing_propertyimage.property_id={home.pk}"
    assert caplog.messages == [
        f"[ORM] PropertyImage {key} created. Stale: {table}, {owner}, {table}:+.",
        f"[ORM] PropertyImage {key} deleted. Stale: {table}, {owner}, {table}:-, {table}:{key}.",
    ]


def test_what_makes_nothing_stale_is_no_line(home, caplog):
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        home.save(update_fields=["price"])
        User.objects.create_user("somebody")

    assert [message.partition(" changed")[0] for message in caplog.messages] == [f"[ORM] Property {home.pk}"]


def test_a_write_whose_rows_are_not_known_is_a_line_too_and_one_for_many_statements(home, caplog):
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        for price in range(3):
            Property.objects.update(price=price)
            sql("UPDATE housing_property SET price = 3")

    assert caplog.messages == [
        "[ORM] Property (rows unknown) changed. Stale: housing_property, housing_property:*.",
        "[SQL] housing_property written (rows unknown). Stale: housing_property, housing_property:*.",
    ]
