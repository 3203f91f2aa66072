"""Scopes through a join. The list of a city depends on what happens to listings in this city, although the city is a column of their locations.

A write to a listing reads the city of its location in the same statement. T1 moves the row to which T2's row refers, while T2 has not committed yet. They are
processes, each with its own connections.
"""

from functools import partial

import pytest
from django.apps import apps
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from housing.freshness import ours, outbox
from housing.freshness.joined import broken, trusting, watched
from housing.freshness.journal import journal
from housing.freshness.settings import conf
from housing.freshness.tracking import MANY_ROWS, TRUST, forget, tables
from housing.models import Agent, Location, Office, Property, PropertyImage
from tests.exploration.schedules import Actor, Stage
from tests.fixtures.cache import another_version, clear_the_cache
from tests.fixtures.responses import ask
from tests.fixtures.rows import a_property, ids, put

pytest_plugins = ["tests.fixtures.kinds", "tests.fixtures.no_timeouts"]

STALE = "fwd=stale; stored"
MOVED = {"housing_property-7.status"}
"""The tags of a property that gets another status."""


def condition_of(key=7):
    """The condition of a write to an image of the property with this key."""
    table = tables()["housing_propertyimage"]
    joined = next(joined for joined in table.joined if joined.column == "status")
    return trusting(table, joined, str(key))


# Cities and offices


@pytest.fixture
def place(twenty_properties):
    """Another city with a location, and another office with an agent."""
    agent = Agent.objects.create(name="Other", office=Office.objects.create(name="Other"))
    return Location.objects.create(city="Shelbyville"), agent


@pytest.fixture(params=["city", "office", pytest.param("city without a copy", marks=pytest.mark.only("real"))])
def lists(request, home, place, monkeypatch):
    """The query parameters of the newest property's list and of the other one, and a function that moves a property to the other one."""
    location, agent = place
    if request.param == "city without a copy":
        monkeypatch.setattr(ours(), "copies", frozenset())
    if request.param != "office":
        return {"city": home.location.city}, {"city": location.city}, partial(put, location=location)
    return {"office": home.agent.office_id}, {"office": agent.office_id}, partial(put, agent=agent)


def test_a_new_listing_in_one_city_leaves_the_pages_of_another_warm(lists, home, warm, read):
    """A portal with a new listing each minute would never be warm otherwise."""
    mine, other, _ = lists
    warm(**mine)
    warm(**other)

    new = a_property(-1, location=home.location, agent=home.agent)
    new.save()

    assert read("cached", **other).came_from == "hit"
    assert read("cached", **mine).rows[0]["id"] == new.pk


def test_new_listings_of_a_bulk_create_leave_the_pages_of_another_city_warm(lists, home, warm, read):
    """Each row has its own city."""
    mine, other, _ = lists
    warm(**mine)
    warm(**other)

    Property.objects.bulk_create([a_property(-number, location=home.location, agent=home.agent) for number in (1, 2)])
    assert read("cached", **other).came_from == "hit"
    assert read("cached", **mine).came_from == STALE


@pytest.mark.only("real")
def test_very_many_new_listings_invalidate_the_pages_of_each_city(lists, home, warm, read):
    """Reading the city of each would take longer than the INSERT. (Real only: SQLite takes fewer rows in a statement.)"""
    _, other, _ = lists
    warm(**other)
    Property.objects.bulk_create([a_property(-number, location=home.location, agent=home.agent) for number in range(MANY_ROWS)])
    assert read("cached", **other).came_from == STALE


@pytest.mark.parametrize("way", ["save()", "update()", "update() by a condition", "save() after a lock"])
def test_a_listing_that_moves_to_another_city_is_in_its_list(lists, home, warm, read, way):
    """The statement returns the city to which it moves. The list that it leaves shows it."""
    mine, other, move = lists
    warm(**mine)
    warm(**other)

    values = move.keywords
    {
        "save()": lambda: saved_with(home, **values),
        "update()": lambda: Property.objects.filter(pk=home.pk).update(**values),
        "update() by a condition": lambda: Property.objects.filter(title=home.title).update(**values),
        "save() after a lock": lambda: locked(home, **values),
    }[way]()

    assert [row["id"] for row in read("cached", **other).rows] == [home.pk]
    assert home.pk not in [row["id"] for row in read("cached", **mine).rows]


def saved_with(row, **values):
    """Save a row with these values."""
    for name, value in values.items():
        setattr(row, name, value)
    row.save()


def locked(row, **values):
    """Save after select_for_update()."""
    with transaction.atomic():
        saved_with(Property.objects.select_for_update().get(pk=row.pk), **values)


def test_a_save_after_a_lock_whose_images_are_unknown_counts_in_every_city(lists, home, warm, read, monkeypatch):
    """A locked row has its location, and not the city of the location. (SQLite returns no images if the transaction has no write lock yet.)"""
    _, other, move = lists
    warm(**other)
    monkeypatch.setattr(type(ours()), "has_images", False)
    locked(home, **move.keywords)
    assert [row["id"] for row in read("cached", **other).rows] == [home.pk]


@pytest.mark.parametrize("write", [put, saved_with, locked], ids=["update()", "save()", "save() after a lock"])
def test_a_new_price_in_one_city_leaves_the_sorted_pages_of_another_warm(lists, twenty_properties, warm, read, write):
    """The order of the rows in another city is the same. The row is not shown before it becomes the cheapest."""
    mine, other, move = lists
    move(twenty_properties[2])
    put(twenty_properties[5], location=twenty_properties[0].location, agent=twenty_properties[0].agent)
    warm(**mine, ordering="price", page_size=1)
    warm(**other, ordering="price", page_size=1)

    write(Property.objects.get(pk=twenty_properties[5].pk), price=1)

    assert read("cached", **other, ordering="price", page_size=1).came_from == "hit"
    assert read("cached", **mine, ordering="price", page_size=1).rows[0]["price"] == "1.00"


def test_a_city_that_moves_takes_its_listings_with_it(lists, home, place, warm, read):
    """The row to which the listings refer is in a scope of its own. Neither page shows the listing if it did not before."""
    mine, other, _ = lists
    warm(**mine)
    warm(**other)

    if "city" in mine:
        put(home.location, city=other["city"])
    else:
        put(home.agent, office_id=other["office"])

    assert home.pk in [row["id"] for row in read("cached", **other).rows]
    assert home.pk not in [row["id"] for row in read("cached", **mine, page_size=100).rows]


def test_a_new_location_in_a_city_leaves_its_lists_warm(place, warm, read):
    """No listing refers to it yet. A list that shows listings without their locations would be the same."""
    warm(city="Shelbyville")
    Location.objects.create(city="Shelbyville")
    assert read("cached", city="Shelbyville").came_from == "hit"


def test_a_listing_by_city_and_status_depends_on_the_status_within_the_city(home, place, warm, read):
    """The city is the smaller scope of the two."""
    warm(city="Shelbyville", status="sold")
    warm(city="Springfield", status="sold")

    put(home, status="sold")

    assert read("cached", city="Shelbyville", status="sold").came_from == "hit"
    assert [row["id"] for row in read("cached", city="Springfield", status="sold").rows] == [home.pk]


def test_a_number_of_listings_in_a_city_depends_on_the_whole_list(home, place, page):
    """A query without keys would have to know which rows leave the city."""
    put(home, location=place[0])
    number = page(Property.objects.filter(location__city="Shelbyville").count)
    clear_the_cache()
    assert [number().json, number().came_from] == [1, "hit"]

    put(home, location_id=Property.objects.exclude(pk=home.pk)[0].location_id)

    assert number().json == 0


def test_a_proxy_model_has_the_scopes_of_its_concrete_model(db):
    """It defines no columns of its own, so it must not count as a second model of the table that has no references."""
    before = tables()["housing_property"].joined

    class Bargain(Property):
        class Meta:
            app_label = "housing"
            proxy = True

    try:
        assert (
            [joined.name for joined in tables()["housing_property"].joined] == [joined.name for joined in before] == ["location_id>city", "agent_id>office_id"]
        )
    finally:
        del apps.all_models["housing"][Bargain._meta.model_name]
        apps.clear_cache()
        forget()


def test_a_write_needs_no_statement_more(home, place):
    """The city and the office are returned by the statement that writes. On SQLite, an UPDATE reads the old values in a statement of its own, as before."""
    with CaptureQueriesContext(connection) as statements:
        new = a_property(-1, location=home.location, agent=home.agent)
        new.save()
        put(new, price=1)
    verbs = [query["sql"].split()[0] for query in statements if "housing_property" in query["sql"]]
    assert verbs in (["INSERT", "UPDATE"], ["INSERT", "SELECT", "UPDATE"], ["INSERT", "WITH"])


# Copies that the database keeps


COPIES = {("location_id", "city", "city"), ("agent_id", "office_id", "office_id")}
"""The reference, the column of the other row, and the column of the property's own row that holds a copy of it (migration 0004)."""


def copies():
    """The copies that the database keeps now."""
    return {(each.reference, each.column, each.copy) for each in ours()._read_copies() if each.key == "id"}


@pytest.mark.only("real")
def test_a_write_takes_the_city_from_the_copy_in_its_own_row(home, place):
    """The write reads no other row and needs no trust, because the foreign key of the copy lets nobody move the location until the write is committed."""
    with CaptureQueriesContext(connection) as statements, transaction.atomic():
        put(home, price=1)
        a_property(-1, location=home.location, agent=home.agent).save()
        tags = connection._collapsed()
    assert {"housing_property.location_id>city=Springfield.price", "housing_property.location_id>city=Springfield+"} <= tags
    assert not [tag for tag in tags if tag.startswith(TRUST) or tag == "housing_property:>"]
    assert not [query["sql"] for query in statements if "housing_location" in query["sql"]]


@pytest.mark.only("real")
def test_a_copy_counts_only_if_a_valid_foreign_key_keeps_it_equal(transactional_db):
    """Without the constraint it may be old, so a write reads the other row."""
    assert copies() == COPIES
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE housing_property DROP CONSTRAINT property_city, DROP CONSTRAINT property_office_id")
        cursor.execute(
            "ALTER TABLE housing_property ADD CONSTRAINT property_city FOREIGN KEY (location_id, city) REFERENCES housing_location (id, city) NOT VALID"
        )
        assert copies() == set()
        cursor.execute("ALTER TABLE housing_property VALIDATE CONSTRAINT property_city")
        assert copies() == {("location_id", "city", "city")}
        transaction.set_rollback(True)


@pytest.mark.only("real")
def test_a_copy_of_another_type_does_not_count(transactional_db):
    """Its text may differ, although the database compares the two as equal."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE housing_property DROP CONSTRAINT property_office_id, ALTER office_id TYPE integer")
        cursor.execute("ALTER TABLE housing_property ADD FOREIGN KEY (agent_id, office_id) REFERENCES housing_agent (id, office_id)")
        assert copies() == {("location_id", "city", "city")}
        transaction.set_rollback(True)


@pytest.mark.only("real")
def test_a_location_cannot_move_while_a_write_to_its_listing_is_not_committed(home, place, elsewhere):
    """T2 changes a price · T1 would move the location, and waits. Otherwise T2 would have the tag of the old city."""
    with transaction.atomic():
        put(home, price=1)
        with pytest.raises(OperationalError, match="lock timeout"):
            elsewhere(impatient(partial(put, home.location, city="Shelbyville")))


@pytest.mark.only("real")
def test_a_listing_cannot_come_to_a_location_whose_move_is_not_committed(home, place, elsewhere):
    """T1 moves the location · T2 would create a listing there, and waits. It will have the tag of the new city."""
    with transaction.atomic():
        put(home.location, city="Shelbyville")
        with pytest.raises(OperationalError, match="lock timeout"):
            elsewhere(impatient(a_property(-1, location=home.location, agent=home.agent).save))


def impatient(write):
    """Return a function that writes, and waits for no lock."""

    def writes():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = 1")
            write()

    return writes


@pytest.mark.only("real")
def test_the_copies_are_read_once_in_each_process(transactional_db, elsewhere, monkeypatch):
    """A new connection costs no statement more. A migration in this process may have changed them."""
    monkeypatch.setattr(ours(), "copies", ours().copies)  # afterwards the connection has them again
    monkeypatch.setattr(type(ours()), "_read_copies", lambda self: pytest.fail("they are known"))
    assert {"city", "office_id"} <= {each.copy for each in elsewhere(lambda: ours().ensure_connection() or ours().copies)}
    monkeypatch.setattr(type(ours()), "_read_copies", lambda self: frozenset())
    ours().watch_other_programs()
    assert ours().copies == frozenset()


# Races


@pytest.fixture
def sold(page):
    """`sold()`: the images of sold properties, cached. No copy and no lock keeps the status and the images together."""
    found = page(lambda: ids(PropertyImage.objects.filter(property__status="sold").order_by("pk")))
    clear_the_cache()  # a new view is a new version of the code, and no write is trusted while the other one is there
    return found


def add_an_image(home):
    """Create an image of a property."""
    return PropertyImage.objects.create(property=home, url="https://x/new")


@pytest.mark.only("real")
def test_a_move_that_commits_before_the_lease_of_a_write_is_noticed(home, sold, elsewhere):
    """T2 creates an image of a property that is not sold · T1 sells the property, COMMITs · a reader fills the page without the image · T2 COMMITs."""
    home.images.all().delete()
    sold()
    with transaction.atomic():
        image = add_an_image(home)
        elsewhere(lambda: put(Property.objects.get(pk=home.pk), status="sold"))
        assert elsewhere(sold).json == []

    assert sold().json == [image.pk]


@pytest.mark.only("real")
def test_a_move_that_commits_between_the_lease_and_the_commit_of_a_write_is_noticed(home, sold, elsewhere, around_commit):
    """The same, after T2's lease. T1's lease adds the tag to it."""
    home.images.all().delete()
    sold()

    def move():
        elsewhere(lambda: put(Property.objects.get(pk=home.pk), status="sold"))
        assert elsewhere(sold).json == []

    with around_commit(before=move):
        image = add_an_image(home)

    assert sold().json == [image.pk]


@pytest.mark.only("real")
def test_an_update_is_not_trusted_if_what_it_read_moves(home, page, elsewhere):
    """T2 changes the order of the images of a property that is not sold · T1 sells it, COMMITs · a reader fills the page in the old order · T2 COMMITs."""
    PropertyImage.objects.all().delete()
    images = [add_an_image(home) for _ in range(3)]
    first = page(lambda: [row.pk for row in PropertyImage.objects.filter(property__status="sold").order_by("-position", "pk")[:1]])
    clear_the_cache()
    first()
    with transaction.atomic():
        put(images[2], position=9)
        elsewhere(lambda: put(Property.objects.get(pk=home.pk), status="sold"))
        assert elsewhere(first).json == [images[0].pk]

    assert first().json == [images[2].pk]


@pytest.fixture
def images(sold, home):
    """T1 sells a property, T2 creates an image of it, and a reader reads the images of sold properties."""

    def begin():
        PropertyImage.objects.all().delete()
        put(home, status="available")

    acts = (lambda: put(Property.objects.get(pk=home.pk), status="sold"), lambda: add_an_image(home))
    return begin, acts, sold.args[-1], lambda: ids(PropertyImage.objects.all())


@pytest.fixture
def listings(home):
    """T1 moves a location to another city, T2 creates a listing there, and a reader reads the list of that city."""

    def begin():
        Property.objects.exclude(pk=home.pk).delete()
        put(home.location, city="Springfield")

    def create():
        a_property(-1, location=home.location, agent=home.agent).save()

    acts = (lambda: put(Location.objects.get(pk=home.location_id), city="Shelbyville"), create)
    return begin, acts, "/api/properties/cached/?city=Shelbyville", lambda: ids(Property.objects.order_by("-created_at"))


@pytest.fixture
def stage(transactional_db, handler, no_timeouts):
    """`stage(cast)`: a stage for T1, T2 and a reader. At the end the page is as in the database."""

    def stage(cast, **bounds):
        prepare, acts, address, expected = cast

        def read():
            client = Client()
            client.handler = handler
            found = ask(client, address).json
            return [row["id"] for row in found["results"]] if isinstance(found, dict) else found

        def begin():
            prepare()
            clear_the_cache()
            read()
            return [Actor("fault", act, killable=False) for act in (*acts, read)]

        def afterwards():
            assert read() == expected(), "\n".join(found.lines)
            return []

        found = Stage(begin, afterwards, **bounds)
        return found

    return stage


BOUNDS = [pytest.param({"preemptions": 2}, id="two preemptions"), pytest.param({}, id="all", marks=pytest.mark.races)]
SCHEDULES = {
    "images": {"embedded": {"two preemptions": 173, "all": 276}, "real": {"two preemptions": 254, "all": 6307}},
    "listings": {"embedded": {"two preemptions": 156, "all": 463}, "real": {"two preemptions": 224, "all": 891}},
}


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("cast", SCHEDULES)
def test_a_row_that_moves_while_another_comes_to_refer_to_it_is_read_in_every_order_of_steps(request, stage, pytestconfig, record_property, cast, bounds):
    """On SQLite the two writers come one after the other. On PostgreSQL T2 may have read the old status of the property, and waits for the copy of a city."""
    with stage(request.getfixturevalue(cast), **bounds) as orders:
        tried = sum(1 for _ in orders.every())
    record_property("counted", f"{tried:,} schedules")
    assert tried == SCHEDULES[cast][pytestconfig.option.stack]["two preemptions" if bounds else "all"]


# The trust of a lease


@pytest.fixture
def since(transactional_db):
    """An instant, and an entry that depends on scopes through joins of images."""
    miss = journal.lookup("entry")
    assert journal.store("entry", miss, {"housing_propertyimage:>"}, '"e"', b"e") == "stored"
    return journal.seen


def is_stale():
    """Whether the entry is stale."""
    return journal.lookup("entry").__class__.__name__ == "Miss"


def test_a_write_is_trusted_if_nothing_has_moved(since):
    """Its tags are those of the value that it read, and other scopes stay warm."""
    journal.close(journal.lease({"housing_property-8.status", "housing_property-7.price", "housing_property:7"}))
    lease = journal.lease({"t", condition_of()}, since)
    assert (lease.tags, lease.conditions) == (("t",), (condition_of(),))
    assert list(journal.leases()) == [lease]

    journal.lease({"housing_property-8.status"})
    journal.close(lease)

    assert not is_stale()


BREAKING = {
    "the row leaves a scope": MOVED,
    "the row is deleted": {"housing_property-7"},
    "rows are written, and nobody knows which": {"housing_property:*"},
    "rows leave scopes, and nobody knows which": {"housing_property:?"},
}


@pytest.mark.parametrize("tags", BREAKING.values(), ids=BREAKING)
def test_a_write_is_not_trusted_if_what_it_read_may_have_moved_since(since, tags):
    """T1 has closed its lease, or it is still open."""
    mover = journal.lease(tags)
    for _ in range(2):
        lease = journal.lease({"t", condition_of()}, since)
        assert (lease.tags, lease.conditions) == (("t", "housing_propertyimage:>"), ())
        journal.withdraw(lease)
        journal.close(mover)


@pytest.mark.parametrize("tags", BREAKING.values(), ids=BREAKING)
def test_a_write_is_not_trusted_any_longer_if_what_it_read_may_move_before_its_commit(since, tags):
    """T1's lease adds the tag to T2's, which is also found there if T2 is killed. T2's close repeats it."""
    lease = journal.lease({"t", condition_of()}, since)
    journal.close(journal.lease(tags))
    [held] = journal.leases()
    assert (held.tags, held.conditions) == (("t", "housing_propertyimage:>"), ())

    journal.close(lease)

    assert is_stale()
    assert journal.leases() == {}


def test_a_transaction_keeps_the_instant_of_its_beginning(since):
    """Autocommit is switched off again after a later instant. A row that the transaction has read may have moved in between."""
    transaction.set_autocommit(False)
    try:
        began = ours().scopes[0].since
        journal.lookup("another entry")
        transaction.set_autocommit(False)
        assert ours().scopes[0].since == began != journal.seen
    finally:
        transaction.set_autocommit(True)


def test_a_withdrawn_lease_is_gone_even_if_it_is_not_trusted_any_longer(since):
    """A rollback leaves nothing behind."""
    lease = journal.lease({"t", condition_of()}, since)
    journal.withdraw(journal.lease(MOVED))
    journal.withdraw(lease)
    assert journal.leases() == {}
    assert not is_stale()


def test_a_write_of_a_process_that_knows_no_instant_is_not_trusted(since):
    """The first transaction of a process may have begun before a move, and nothing shows when."""
    assert journal.lease({"t", condition_of()}).tags == ("housing_propertyimage:>", "t")


def test_a_write_without_redis_is_not_trusted(home, redis_unreachable, transactional_db):
    """Its lease could not be told of a move."""
    with redis_unreachable():
        add_an_image(home)
    assert any("housing_propertyimage:>" in tags.split() for _, tags in outbox.read(connection))
    assert not any("|if:" in tags for _, tags in outbox.read(connection))


def test_a_write_is_not_trusted_while_another_version_of_the_code_is_there(since):
    """It may not know of conditions, so its lease would not break them."""
    with another_version():
        journal.lookup("another")
    assert "housing_propertyimage:>" in journal.lease({"t", condition_of()}, since).tags


def test_a_move_of_another_program_breaks_the_trust_when_it_is_found(since):
    """V finds its tags in the outbox, while T2 has not committed yet."""
    lease = journal.lease({"t", condition_of()}, since)
    journal.end_verification(journal.begin_verification("a database", at_once=True), MOVED)
    journal.close(lease)
    assert is_stale()


def test_a_move_among_very_many_of_other_programs_breaks_the_trust(since):
    """If V found too many rows, nobody knows what has moved."""
    lease = journal.lease({"t", condition_of()}, since)
    journal.end_verification(journal.begin_verification("a database", at_once=True), {"*"})
    [held] = journal.leases()
    assert held.tags == ("t", "housing_propertyimage:>")
    journal.close(lease)


@pytest.mark.only("embedded")
def test_a_write_is_not_trusted_if_its_lease_has_run_out(redis_clock, since):
    """T1's lease cannot add anything to it any more. (Embedded only: the spec sets Redis's clock.)"""
    lease = journal.lease({"t", condition_of()}, since)
    redis_clock.seconds += conf.LEASE + 1
    journal.lookup("another")
    journal.close(lease)
    assert is_stale()


def test_a_key_may_have_dots():
    """The text after the last dot may also be a part of the key."""
    assert broken("housing_property-a.b.status") >= {"|housing_property|a.b|", "|housing_property|a.b.status|"}
    assert "housing_property-a.b.status" in watched({condition_of("a.b")})
