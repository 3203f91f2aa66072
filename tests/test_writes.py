"""Every way to write. The ORM, the admin, migrations, fixtures and SQL: each write is in the next read, whether it sends a signal or not."""

from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache as cache_once
from functools import partial

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.core.serializers import deserialize, serialize
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.models import F
from django.db.models.signals import post_save, pre_delete, pre_save
from django.http import HttpResponse
from django.urls import path
from django.utils import timezone

from housing import urls
from housing.freshness import outbox
from housing.models import Agent, Office, Property, PropertyImage
from tests.fixtures.rows import a_property, execute, make_images, saved

# Every way to write


def changed(row, **fields):
    """Set other values on this row without saving it."""
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def newer(home, **fields):
    """The columns of a new property, created one second after this one."""
    return {
        "title": "New",
        "price": 1,
        "location_id": home.location_id,
        "agent_id": home.agent_id,
        "created_at": home.created_at + timedelta(seconds=1),
    } | fields


def without_images(home):
    """This property as a queryset, after its images were deleted."""
    home.images.all()._raw_delete("default")
    return Property.objects.filter(pk=home.pk)


def loaded(row):
    """Save this row from a fixture, as loaddata does."""
    for found in deserialize("json", serialize("json", [row])):
        found.save()


@async_to_sync
async def awaited(act):
    """Await a call, as an asynchronous view does."""
    await act()


def proxy():
    """The proxy model of properties from the fixture `a_proxy`."""
    return apps.get_model("housing", "Bargain")


@cache_once
def history():
    """The models as a migration sees them. They are not the project's classes and have no signal receivers."""
    return MigrationLoader(None).project_state().apps


def historical(name):
    """One of the models as a migration sees it."""
    return history().get_model("housing", name)


def copied(text, *row):
    """Write one row with PostgreSQL's COPY."""
    with connection.cursor() as cursor, cursor.copy(text) as copy:
        copy.write_row(row)


NAME = {"name": "Renamed"}


WAYS = {
    # one row
    "save()": lambda home, _: changed(home, price=1).save(),
    "save() of its location": lambda home, _: changed(home.location, zip_code="Renamed").save(),
    "save() of its agent": lambda home, _: changed(home.agent, **NAME).save(),
    "save() of its office": lambda home, _: changed(home.agent.office, **NAME).save(),
    "save(force_update)": lambda home, _: changed(home, price=1).save(force_update=True),
    "save(force_insert)": lambda home, _: Property(**newer(home)).save(force_insert=True),
    "save_base(raw)": lambda home, _: changed(home, price=1).save_base(raw=True),
    "create()": lambda home, _: Property.objects.create(**newer(home)),
    "delete()": lambda home, _: home.delete(),
    "delete() of its agent": lambda home, _: home.agent.delete(),
    "delete() of its office": lambda home, _: home.agent.office.delete(),
    "delete() of its location": lambda home, _: home.location.delete(),
    "save() with another foreign key": lambda home, other: changed(home, agent=other.agent).save(),
    "get_or_create()": lambda home, _: Property.objects.get_or_create(record_hash=home.pk, defaults=newer(home)),
    "update_or_create()": lambda home, _: Property.objects.update_or_create(pk=home.pk, defaults={"price": 1}),
    "update_or_create() of a new row": lambda home, _: Property.objects.update_or_create(record_hash=home.pk, defaults=newer(home)),
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
    # fixtures, related managers, proxies, migrations, async
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
    "save() of a new row in a migration": lambda home, _: historical("Property")(**newer(home)).save(),  # also in one with `atomic = False`
    "a fixture of a new row": lambda home, _: loaded(Property(**newer(home, updated_at=home.created_at))),
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
    "SQL": lambda home, _: execute("UPDATE housing_property SET price = 3 WHERE id = %s", home.pk),
    "SQL with a comment before it": lambda home, _: execute("/* nightly */ UPDATE housing_property SET price = 3 WHERE id = %s", home.pk),
    "SQL with a CTE": lambda home, _: execute("WITH x AS (SELECT %s AS id) UPDATE housing_property SET price = 3 WHERE id IN (SELECT id FROM x)", home.pk),
    "SQL on agents": lambda home, _: execute("UPDATE housing_agent SET name = 'Another' WHERE id = %s", home.agent_id),
    "SQL on locations": lambda home, _: execute("UPDATE housing_location SET zip_code = 'Renamed' WHERE id = %s", home.location_id),
    "executemany()": lambda home, _: connection.cursor().executemany("UPDATE housing_office SET name = %s WHERE id = %s", [("Renamed", home.agent.office_id)]),
    "an updatable view, with a subquery on a tracked table": lambda home, _: execute(
        "UPDATE legacy_view SET price = 4 WHERE id IN (SELECT property_id FROM housing_propertyimage WHERE property_id = %s)", home.pk
    ),
    "an updatable view": lambda home, _: execute("UPDATE legacy_view SET price = 4 WHERE id = %s", home.pk),
}
"""Name of a way to write a row that the list shows → a function that does it. It gets the newest property and another one."""


WAYS_WITH_IMAGES = {
    "save() of an image": lambda home, _: changed(home.images.first(), caption="Renamed").save(),
    "an image moved to another property": lambda home, other: changed(home.images.first(), property=other).save(),
    "an image moved to another property by update()": lambda home, other: home.images.update(property=other),
    "an image moved from another property": lambda home, other: changed(other.images.first(), property=home).save(),
    "create() of images": lambda home, _: home.images.create(url="https://images.example.com/new.jpg"),
    "add() of images": lambda home, other: home.images.add(*other.images.all()),
    "set() of images": lambda home, other: other.images.set(home.images.all()),
    "bulk_create() of images": lambda home, _: make_images(home),
    "delete() of an image": lambda home, _: home.images.first().delete(),
    "delete() of images": lambda home, _: home.images.all().delete(),
    "_raw_delete() of images": lambda home, _: home.images.all()._raw_delete("default"),
    "a fixture of an image": lambda home, _: loaded(changed(home.images.first(), caption="Renamed")),
    "save() of an image in a migration": lambda home, _: changed(historical("PropertyImage").objects.get(pk=home.images.first().pk), caption="Renamed").save(),
    "acreate() of images": lambda home, _: awaited(lambda: home.images.acreate(url="https://images.example.com/new.jpg")),
    "SQL on images": lambda home, _: execute("UPDATE housing_propertyimage SET caption = 'Renamed' WHERE property_id = %s", home.pk),
}
"""The same for rows that only the detail shows."""


WAYS_OF_ONE_SERVER = {
    "sqlite": {},
    "postgresql": {
        "callproc()": lambda home, _: connection.cursor().callproc("legacy_function"),
        "CALL": lambda home, _: execute("CALL legacy_procedure()"),
        "DO": lambda home, _: execute("DO $$ BEGIN EXECUTE 'UPDATE housing_' || 'property SET price = 7'; END $$"),
        "COPY": lambda home, _: copied(
            "COPY housing_property (title, property_type, status, price, location_id, agent_id, created_at, updated_at) FROM STDIN",
            *("Copied", "house", "sold", 1, home.location_id, home.agent_id, home.created_at + timedelta(seconds=1), home.created_at),
        ),
    },
}
"""Vendor of the database → ways to write that only this server has."""


SETUP = {
    "sqlite": ["CREATE TRIGGER through INSTEAD OF UPDATE ON legacy_view BEGIN UPDATE housing_property SET price = NEW.price WHERE id = NEW.id; END"],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION legacy_function() RETURNS void LANGUAGE sql AS 'UPDATE housing_property SET price = 5'",
        "CREATE OR REPLACE PROCEDURE legacy_procedure() LANGUAGE sql AS 'UPDATE housing_property SET price = 6'",
    ],
}
"""Vendor of the database → the trigger that makes the view updatable (PostgreSQL needs none), and the functions to call."""


@pytest.fixture
def every_way(transactional_db, read, a_proxy):
    """`every_way(carry_out)` tries each way on a warm page: did the page change, does the next read equal the database, and what is its Cache-Status?"""

    def every_way(carry_out):
        homes = saved(*map(a_property, range(2 * len(ways))))
        make_images(*homes)
        return {way: outcome(way, write, carry_out, home, other) for (way, write), home, other in zip(ways.items(), homes[::2], homes[1::2], strict=True)}

    def outcome(way, write, carry_out, home, other):
        page = f"/{home.pk}" if way in WAYS_WITH_IMAGES else f"?agent={home.agent_id}"
        before = read(f"cached{page}").body
        carry_out(partial(write, home, other))
        after = read(f"cached{page}")
        with transaction.atomic():  # which bypasses the cache
            truth = read(f"cached{page}")
        return truth.body != before, after.body == truth.body, after.came_from

    ways = WAYS | WAYS_WITH_IMAGES | WAYS_OF_ONE_SERVER[connection.vendor]
    for statement in ["CREATE VIEW legacy_view AS SELECT * FROM housing_property", *SETUP[connection.vendor]]:
        execute(statement)
    yield every_way
    execute("DROP VIEW legacy_view")


IN_THE_NEXT_READ, UNDONE = (True, True, "fwd=stale; stored"), (False, True, "hit")


@contextmanager
def in_a_durable_transaction():
    """Run the body in `atomic()` inside a durable one."""
    with transaction.atomic(durable=True), transaction.atomic():
        yield


@contextmanager
def rolled_back():
    """Roll back what the body wrote."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("within", "outcome"),
    [(nullcontext, IN_THE_NEXT_READ), (in_a_durable_transaction, IN_THE_NEXT_READ), (rolled_back, UNDONE)],
    ids=["in autocommit", "nested in a durable transaction", "rolled back"],
)
def test_every_way_to_write_is_in_the_next_read(every_way, within, outcome):
    """Readers see every committed write, however it was made. A write that is rolled back leaves its page warm."""

    def carry_out(write):
        with within():
            write()

    assert {way: seen for way, seen in every_way(carry_out).items() if seen != outcome} == {}


@pytest.mark.slow
def test_every_way_to_write_in_a_request_with_atomic_requests_is_in_the_next_read(every_way, client, settings, monkeypatch):
    """The transaction belongs to the request, and commits after the view has returned."""
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

    assert {way: seen for way, seen in every_way(carry_out).items() if seen != IN_THE_NEXT_READ} == {}


@pytest.mark.only("real")
@pytest.mark.slow
def test_no_way_to_write_leaves_a_row_in_the_outbox(every_way):
    """The triggers recognize each statement of this application, which has tagged its rows itself. (SQLite has no such triggers.)"""
    left = []

    def carry_out(write):
        write()
        left.append(outbox.read(connection))

    ways = every_way(carry_out)
    assert {way: rows for way, rows in zip(ways, left, strict=True) if rows} == {}


# Single ways in detail


@pytest.mark.parametrize("atomic_requests", [False, True], ids=["a transaction of its own", "ATOMIC_REQUESTS"])
def test_a_save_and_a_deletion_in_the_admin_are_in_the_next_read(home, client, warm, read_the_list, monkeypatch, atomic_requests):
    """test_contract.py covers the editable list of prices and the inline images."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic_requests)
    client.force_login(User.objects.create_superuser("editor"))
    warm()

    client.post(f"/admin/housing/agent/{home.agent_id}/change/", {"name": "Renamed", "office": home.agent.office_id})
    assert read_the_list()[0]["agent"]["name"] == "Renamed"

    client.post("/admin/housing/property/", {"action": "delete_selected", "_selected_action": home.pk, "post": "yes"})
    assert home.pk not in [row["id"] for row in read_the_list()]


def test_an_update_of_images_is_in_the_next_read_of_the_detail_and_leaves_the_list_warm(home, warm, read):
    """`update()` sends no signal. Only the detail shows images."""
    warm(f"cached/{home.pk}")
    warm()

    PropertyImage.objects.update(caption="Renamed")

    assert {image["caption"] for image in read(f"cached/{home.pk}").json["images"]} == {"Renamed"}
    assert read("cached").came_from == "hit"


def test_a_batch_of_statements_invalidates_only_the_table_that_it_writes(home, warm, read):
    """`executemany()` sends one text with many parameters, and the text shows the table."""
    warm()

    connection.cursor().executemany("UPDATE housing_propertyimage SET caption = %s", [("Renamed",), ("Other",)])

    assert read("cached").came_from == "hit"


def test_a_fixture_loaded_by_loaddata_is_in_the_next_read(home, warm, read_the_list, tmp_path):
    """`loaddata` skips the `save()` of the model."""
    fixture = tmp_path / "offices.json"
    call_command("dumpdata", "housing.office", output=str(fixture), verbosity=0)
    fixture.write_text(fixture.read_text().replace(home.agent.office.name, "Loaded"))
    warm()

    call_command("loaddata", str(fixture), verbosity=0)

    assert read_the_list()[0]["agent"]["office"]["name"] == "Loaded"


@pytest.mark.parametrize("update_fields", [["price"], ["price", "agent"]], ids=", ".join)
def test_an_upsert_is_in_the_next_read_of_the_row_that_it_updates(home, warm, read, update_fields):
    """Only the database knows which rows an upsert updates."""
    warm(f"cached/{home.pk}")

    Property.objects.bulk_create([Property(**newer(home, pk=home.pk))], update_conflicts=True, unique_fields=["id"], update_fields=update_fields)

    assert read(f"cached/{home.pk}").json["price"] == "1.00"


# Signal receivers


def test_an_update_by_a_signal_receiver_is_not_mistaken_for_the_save(twenty_properties, warm, read_the_list):
    """The save tagged its own row, but the receiver wrote another one."""
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


def test_an_update_after_a_save_is_not_mistaken_for_the_save(home, warm, read_the_list):
    """Both are an UPDATE of the same table on the same connection."""
    home.save(update_fields=["title"])
    warm()

    Property.objects.filter(pk=home.pk).update(price=5)

    assert read_the_list()[0]["price"] == "5.00"


def test_a_value_changed_by_a_signal_receiver_is_in_the_next_read(home, warm, read_the_list):
    """The receiver runs after the engine's and before the SQL. The values in the SQL count."""
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
    ids=["save()", "save() of a new row", "a fixture"],
)
def test_an_image_moved_by_a_signal_receiver_is_in_the_next_read_of_its_new_property(twenty_properties, warm, read, way):
    """A fixture skips the engine's save_base(), so it runs in no transaction unless loaddata opens one. Its SQL counts then."""
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
        lambda image, home: execute('DELETE FROM "housing_propertyimage" WHERE "housing_propertyimage"."id" IN (%s) OR TRUE', image.pk),
    ],
    ids=["by property", "by id, together with the announced row", "by the id of the announced row, or any other"],
)
def test_a_deletion_by_a_signal_receiver_is_not_mistaken_for_the_deletion_that_sent_the_signal(twenty_properties, warm, read, delete):
    """The deletion tagged its own row, but the receiver deleted others."""
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


def test_deleting_the_images_of_a_property_is_not_mistaken_for_deleting_the_image_with_its_id(home, warm, read):
    """The signal announces the deletion of image N. Here a receiver deletes the images of property N, whose DELETE has the same parameters."""
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


@pytest.mark.parametrize("muted", [pre_save, post_save], ids=["pre_save", "post_save"])
def test_a_save_with_muted_signals_is_in_the_next_read(home, warm, read_the_list, muted):
    """Test factories mute signals. The SQL counts even without them, and neither signal depends on the other."""
    home.save(update_fields=["title"])  # its tags must not be taken for those of the next save
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


# Cursors, proxies and other tables


def test_a_write_through_a_debug_cursor_is_in_the_next_read(home, warm, read_the_list):
    """Django uses this cursor with DEBUG, and when queries are captured."""
    warm()

    connection.force_debug_cursor = True
    try:
        Property.objects.filter(pk=home.pk).update(price=5)
    finally:
        connection.force_debug_cursor = False

    assert read_the_list()[0]["price"] == "5.00"


@pytest.fixture
def a_proxy():
    """A proxy model of properties, as another app may define one."""

    class Bargain(Property):
        class Meta:
            app_label = "housing"
            proxy = True

    yield Bargain
    del apps.all_models["housing"]["bargain"]
    apps.clear_cache()


def test_a_save_through_a_proxy_model_invalidates_only_the_pages_of_its_row(twenty_properties, warm, read, a_proxy):
    """The proxy class sends the signal, and the row is in the table of its concrete model."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    bargain = a_proxy.objects.get(pk=first.pk)
    bargain.price = 1
    bargain.save()

    assert read(f"cached/{first.pk}").json["price"] == "1.00"
    assert read(f"cached/{second.pk}").came_from == "hit"


@pytest.mark.parametrize(
    "statement",
    [
        lambda: User.objects.create_user("somebody"),
        lambda: Session.objects.create(session_key="x", expire_date=timezone.now()),
        lambda: execute({"sqlite": "PRAGMA optimize", "postgresql": "SET application_name = 'specs'"}[connection.vendor]),
        lambda: execute("ANALYZE"),
        lambda: execute("EXPLAIN SELECT * FROM housing_property"),
        lambda: execute("/* nightly */ SELECT 1"),
        lambda: execute("CREATE TABLE elsewhere (id integer)") or execute("DROP TABLE elsewhere"),
    ],
    ids=["a user", "a session", "a setting", "ANALYZE", "EXPLAIN", "a SELECT after a comment", "another table"],
)
def test_a_statement_that_writes_no_tracked_table_invalidates_nothing(home, warm, read, statement):
    """A login writes a row too, and must not empty the cache."""
    warm()
    warm(f"cached/{home.pk}")

    statement()

    assert read("cached").came_from == "hit"
    assert read(f"cached/{home.pk}").came_from == "hit"


NOT_PROMISED = {
    "`UPDATE … RETURNING` through a cursor works in autocommit on SQLite": (
        "SQLite raises an error, because the engine's COMMIT comes before the rows are fetched. Use `atomic()`."
    ),
}
