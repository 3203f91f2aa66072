"""Upserts: `bulk_create()` with update_conflicts or ignore_conflicts. The statement returns the rows that it created or updated, and what these held before.

PostgreSQL 18 returns the old values itself. An older server keeps them in a setting of the transaction, and SQLite passes them to a function of the engine. A
newer server runs the older statement, too. T1 and T2 are processes, each with its own connections.
"""

import sqlite3
from contextlib import contextmanager
from decimal import Decimal
from functools import partial

import pytest
from django.db import connection, transaction
from django.db.models import Value
from django.db.models.functions import Lower
from django.test import Client
from django.test.utils import CaptureQueriesContext

from housing.freshness import ours
from housing.freshness.tracking import MANY_ROWS
from housing.models import Location, Property, PropertyImage
from tests.exploration.schedules import Actor, Stage
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.responses import ask
from tests.fixtures.rows import a_property, ids, put

pytest_plugins = ["tests.fixtures.kinds", "tests.fixtures.no_timeouts"]

STALE = "fwd=stale; stored"


@pytest.fixture(params=["this server", pytest.param("PostgreSQL 15", marks=pytest.mark.only("real"))], autouse=True)
def server(request, monkeypatch):
    """The statement of this server, and on PostgreSQL that of an older one, too."""
    if request.param != "this server":
        monkeypatch.delitem(vars(ours()), "pg_version", raising=False)
        monkeypatch.setattr(type(ours()), "pg_version", 150_000)


def upsert(*rows, update_fields=("price",), unique_fields=("id",)):
    """Insert rows, or update these fields of those that are there."""
    return Property.objects.bulk_create(rows, update_conflicts=True, unique_fields=unique_fields, update_fields=update_fields)


def changed(home, **values):
    """An unsaved copy of a property with other values."""
    fields = {field.attname: getattr(home, field.attname) for field in Property._meta.concrete_fields}
    return Property(**fields | values)


@pytest.fixture
def place(twenty_properties):
    """A location in another city."""
    return Location.objects.create(city="Shelbyville")


@pytest.fixture
def new(twenty_properties):
    """`new(age)`: an unsaved listing that is older than the newest by these minutes."""
    home = twenty_properties[0]
    return lambda age, **fields: a_property(age, **{"location": home.location, "agent": home.agent} | fields)


# Rows that are updated


def test_an_upsert_tags_only_the_columns_whose_stored_values_differ(home, warm, read):
    """An import writes every column again. Pages that filter by unchanged columns stay warm."""
    warm(search="castle")
    warm(max_price=5)

    upsert(changed(home, price=5), update_fields=["title", "status", "price", "bedrooms", "agent", "location"])

    assert read("cached", search="castle").came_from == "hit"
    assert [row["price"] for row in read("cached", max_price=5).rows] == ["5.00"]


def test_an_upsert_leaves_the_pages_of_other_rows_warm(twenty_properties, warm, read):
    """It returns the keys of its rows, whatever the columns are by which they conflict."""
    home, other = twenty_properties[0], twenty_properties[10]
    put(home, record_hash="one")
    warm(f"cached/{home.pk}")
    warm(f"cached/{other.pk}")

    upsert(changed(home, pk=None, record_hash="one", description="Renovated"), update_fields=["description"], unique_fields=["record_hash"])

    assert read(f"cached/{other.pk}").came_from == "hit"
    assert read(f"cached/{home.pk}").json["description"] == "Renovated"


@pytest.mark.parametrize("way", ["status", "city"])
def test_an_upsert_that_moves_a_row_to_another_scope_is_in_both_lists(home, place, warm, read, way):
    """It returns the values before and after, and the city of its location."""
    values, mine, other, third = {
        "status": ({"status": "sold"}, {"status": "available"}, {"status": "sold"}, {"status": "withdrawn"}),
        "city": ({"location_id": place.pk}, {"city": "Springfield"}, {"city": "Shelbyville"}, {"city": "elsewhere"}),
    }[way]
    for page in (mine, other, third):
        warm(**page, page_size=100)

    upsert(changed(home, **values), update_fields=["status", "location"])

    assert [row["id"] for row in read("cached", **other, page_size=100).rows] == [home.pk]
    assert home.pk not in [row["id"] for row in read("cached", **mine, page_size=100).rows]
    assert read("cached", **third, page_size=100).came_from == "hit"


def test_a_price_that_an_upsert_changes_leaves_the_sorted_pages_of_another_city_warm(twenty_properties, place, warm, read):
    """The order of the rows in another city is the same."""
    home = twenty_properties[5]
    put(twenty_properties[2], location=place)
    warm(city="Springfield", ordering="price", page_size=1)
    warm(city="Shelbyville", ordering="price", page_size=1)

    upsert(changed(home, price=1))

    assert read("cached", city="Shelbyville", ordering="price", page_size=1).came_from == "hit"
    assert [row["id"] for row in read("cached", city="Springfield", ordering="price", page_size=1).rows] == [home.pk]


def test_an_upsert_tags_generated_columns(it, fresh):
    """The database computes them from others, so the statement does not name them."""
    node = it.Node.objects.create(word="one", rank=2)
    row = it.Node(pk=node.pk, word="one", rank=4)
    write = partial(it.Node.objects.bulk_create, [row], update_conflicts=True, unique_fields=["id"], update_fields=["rank"])
    fresh(lambda: ids(it.Node.objects.filter(double=8)), write, lambda: it.Label.objects.create(pk="new"))


# Rows that are created


WAYS = {"update_conflicts": {"update_conflicts": True, "unique_fields": ["id"], "update_fields": ["price"]}, "ignore_conflicts": {"ignore_conflicts": True}}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_row_that_an_upsert_creates_leaves_the_pages_of_other_scopes_warm(twenty_properties, place, new, warm, read, how):
    """It counts as an INSERT of this row alone. The other one is there already, with the same price."""
    home, elsewhere = twenty_properties[5], twenty_properties[0]
    put(elsewhere, location=place, status="sold")
    pages = {"city": ("Springfield", "Shelbyville"), "status": ("available", "sold"), "agent": (home.agent_id, elsewhere.agent_id)}
    for name, (mine, other) in pages.items():
        warm(**{name: mine})
        warm(**{name: other})

    Property.objects.bulk_create([changed(home), new(-1, id=10**6, agent=home.agent, location=home.location)], **how)

    for name, (mine, other) in pages.items():
        assert read("cached", **{name: mine}).rows[0]["title"] == "Home -1"
        assert read("cached", **{name: other}).came_from == "hit"


def test_a_number_of_rows_counts_those_that_an_upsert_creates(home, new, page):
    """A row that is created right after another one was updated is not taken for that one."""
    number = page(Property.objects.count)
    assert number().json == 20

    upsert(changed(home, price=1), new(-1, id=10**6))

    assert number().json == 21


def test_a_status_that_is_an_expression_is_known_from_the_row_that_is_created(new, warm, read):
    """The statement returns what is stored, so a page of another status stays warm."""
    warm(status="sold")
    warm(status="pending")

    upsert(new(-1, status=Lower(Value("SOLD"))), unique_fields=["record_hash"])

    assert [row["status"] for row in read("cached", status="sold").rows] == ["sold"]
    assert read("cached", status="pending").came_from == "hit"


@pytest.fixture(params=[{}, {"city": "Springfield"}], ids=["all", "a city"])
def second(request, twenty_properties, warm, read):
    """The address of the second page, which is cached as the first one is."""
    warm(**request.param, page_size=2)
    second = "cached" + read("cached", **request.param, page_size=2).json["next"]
    warm(second)
    return second


@pytest.mark.parametrize(("age", "came_from"), [(-1, "hit"), (2.5, STALE)])
def test_a_new_listing_of_an_upsert_leaves_the_pages_behind_a_cursor_warm(twenty_properties, second, new, read, age, came_from):
    """Only the time of the row that is created counts. The other one was there before the cursor."""
    upsert(changed(twenty_properties[10], price=1), new(age, id=10**6), update_fields=["price"])
    assert read(second).came_from == came_from
    assert read(second).body == read(second.replace("cached", "optimized")).body
    assert read("cached?page_size=2").body == read("optimized?page_size=2").body


def test_a_row_that_an_upsert_creates_has_the_tags_and_the_place_of_an_insert(home, new):
    """An entry depends on created rows, however they are created."""
    written = []
    for write in (Property.save, upsert):
        with transaction.atomic():
            write(new(0, id=10**6))
            written.append([(scope.tags, scope.places) for scope in ours().scopes if scope.tags])
            transaction.set_rollback(True)
    assert written[0] == written[1] != []


def test_rows_that_are_ignored_leave_every_page_warm(twenty_properties, warm, read):
    """Nothing has changed. Adding a many-to-many relation that is there already is such a write."""
    warm()

    assert Property.objects.bulk_create([changed(home, price=1) for home in twenty_properties], ignore_conflicts=True)

    assert read("cached").came_from == "hit"


def test_a_relation_that_is_added_again_leaves_its_pages_warm(it, page):
    """Django adds it with an INSERT that ignores conflicts."""
    node, label = it.Node.objects.create(word="one", rank=1), it.Label.objects.create(pk="good")
    node.labels.add(label)
    marked = page(lambda: ids(label.marked.all()))
    marked()

    node.labels.add(label)
    assert marked().came_from == "hit"

    other = it.Node.objects.create(word="two", rank=1)
    other.labels.add(label)
    assert marked().json == [node.pk, other.pk]


@pytest.mark.parametrize("how", [{"update_conflicts": True, "unique_fields": ["code"], "update_fields": ["word"]}, WAYS["ignore_conflicts"]], ids=WAYS)
def test_a_key_that_an_upsert_creates_again_is_in_the_next_read(it, furnished, fresh, how):
    """References to the key of a deleted row stay, although the row has changed. The database checks the foreign keys at COMMIT and finds them intact."""

    @transaction.atomic
    def write():
        it.Label.objects.filter(pk=it.strange.pk)._raw_delete("default")
        it.Label.objects.bulk_create([it.Label(pk=it.strange.pk, word="Again")], **how)

    fresh(lambda: ids(it.Node.objects.filter(label__word="Again")), write, lambda: put(it.node, word="Other"))


# Results and costs


@pytest.mark.parametrize("how", ["update", "create", "both", "ignore", "ignore one"])
def test_an_upsert_is_one_statement(twenty_properties, new, queries, how):
    """No old value is read first, on no server."""
    home, fresh = changed(twenty_properties[0], price=1), new(-1, id=10**6, record_hash="new")
    rows = {"update": [home], "create": [fresh], "both": [home, fresh], "ignore": [home], "ignore one": [home, fresh]}[how]
    with transaction.atomic(), queries.exactly(1, because="the INSERT returns what its rows held before"):
        Property.objects.bulk_create(rows, ignore_conflicts=True) if "ignore" in how else upsert(*rows)
    assert Property.objects.filter(price=1).count() == (how in ("update", "both"))


def test_an_upsert_outside_of_a_transaction_costs_two_round_trips(home, new, redis_commands):
    """As any other write."""
    with redis_commands.exactly(2, because="one opens the lease before COMMIT, one closes it afterwards"):
        upsert(changed(home, price=1), new(-1, id=10**6))


def test_an_upsert_gives_django_the_columns_that_it_asks_for(it):
    """The keys of rows that were there already and of new ones, in the order of the objects, and values that are converted as Django does it."""
    homes = upsert(changed(it.home, pk=None, record_hash="new"), changed(it.other, pk=None, record_hash="other"), unique_fields=["record_hash"])
    again = upsert(*(changed(home, pk=None) for home in homes[::-1]), unique_fields=["record_hash"])
    assert [home.pk for home in again] == [home.pk for home in homes[::-1]] == ids(Property.objects.filter(record_hash__gt="").order_by("-pk"))


def test_an_upsert_gives_django_values_that_are_converted(it):
    """Defaults of the database come as the database stores them."""
    rows = [it.Stop(tour=it.Tour.objects.create(name="A"), home=home) for home in (it.home, it.other)]
    made = it.Stop.objects.bulk_create(rows, update_conflicts=True, unique_fields=["id"], update_fields=["minutes"])
    assert [(stop.pk, stop.guide_id, stop.fee) for stop in made] == list(it.Stop.objects.order_by("pk").values_list("pk", "guide_id", "fee"))
    assert {type(stop.fee) for stop in made} == {Decimal}


@pytest.mark.parametrize(("rows", "is_known"), [(MANY_ROWS - 3, True), (MANY_ROWS + 1, False)])
def test_an_upsert_of_more_than_a_hundred_rows_counts_as_a_write_of_all(home, warm, read, rows, is_known):
    """Their tags would make the lease long."""
    images = PropertyImage.objects.bulk_create(PropertyImage(property=home, url=f"https://x/{number}", position=7) for number in range(rows))
    other = Property.objects.create(title="Other", price=1, location=home.location, agent=home.agent)
    warm(f"cached/{other.pk}")
    warm(f"cached/{home.pk}")

    for image in images:
        image.position = 8
    PropertyImage.objects.bulk_create(images, update_conflicts=True, unique_fields=["id"], update_fields=["position"])

    assert read(f"cached/{other.pk}").came_from == ("hit" if is_known else STALE)
    assert [image["position"] for image in read(f"cached/{home.pk}").json["images"][2:]] == [8] * rows


def test_an_upsert_of_very_many_rows_returns_what_django_asks_for(home):
    """The values of the rows would take longer than the statement, and would not be used."""
    images = [PropertyImage(property=home, url=f"https://x/{number}") for number in range(MANY_ROWS + 1)]
    for how, returned in (({"ignore_conflicts": True}, ""), (WAYS["update_conflicts"] | {"update_fields": ["url"]}, 'RETURNING "housing_propertyimage"."id"')):
        with CaptureQueriesContext(connection) as queries:
            PropertyImage.objects.bulk_create(images[: MANY_ROWS + 1], **how)
        [sql] = [query["sql"] for query in queries if query["sql"].startswith("INSERT")]
        assert sql.partition("RETURNING")[1] + sql.partition("RETURNING")[2] == returned


def test_very_many_rows_of_which_some_are_ignored_are_in_the_next_read(home, warm, read):
    """They count as created, whatever was there already."""
    images = [PropertyImage(property=home, url=f"https://x/{number}", position=7) for number in range(MANY_ROWS + 1)]
    warm(f"cached/{home.pk}")
    PropertyImage.objects.bulk_create([home.images.first(), *images], ignore_conflicts=True)
    assert len(read(f"cached/{home.pk}").json["images"]) == 2 + len(images)


def test_an_upsert_of_a_row_with_a_composite_key_counts_as_a_write_of_all(it, fresh):
    """Its key cannot be part of a tag."""
    row = {"agent_id": it.home.agent_id, "number": 1, "office_id": it.home.agent.office_id}
    it.Membership.objects.create(**row, note="old")
    write = partial(
        it.Membership.objects.bulk_create,
        [it.Membership(**row, note="new")],
        update_conflicts=True,
        unique_fields=["agent_id", "number"],
        update_fields=["note"],
    )
    fresh(lambda: [each.note for each in it.Membership.objects.all()], write)


# Statements one after another


def test_old_values_of_one_upsert_are_not_those_of_the_next(it, furnished, fresh):
    """An upsert updates a row, which is then deleted. Another upsert creates its key again, with another rank, in the same transaction."""
    parent = it.node.parent

    @transaction.atomic
    def write():
        for rank in (parent.rank, 9):
            it.Node.objects.bulk_create(
                [it.Node(pk=parent.pk, word=parent.word, rank=rank)], update_conflicts=True, unique_fields=["id"], update_fields=["word"]
            )
            if rank != 9:
                it.Node.objects.filter(pk=parent.pk)._raw_delete("default")

    fresh(lambda: ids(it.Node.objects.filter(parent__rank=9)), write, lambda: put(it.node, word="Other"))


def test_the_tags_of_an_upsert_under_a_savepoint_are_dropped_with_it(home, warm, read):
    """A rollback to the savepoint restores the old values."""
    warm()
    with transaction.atomic():
        upsert(changed(home, title="Home 0"), update_fields=["title"])
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            upsert(changed(home, price=1))
            raise ZeroDivisionError
        upsert(changed(home, price=2))
    assert read("cached").rows[0]["price"] == "2.00"


def test_an_upsert_that_reverts_another_change_is_in_the_next_read(home, warm, read):
    """The old values are those of the statement, not those that the process has read before."""
    copy = changed(home)
    put(home, status="sold")
    warm(status="available")

    upsert(copy, update_fields=["status"])

    assert len(read("cached", status="available").rows) == 20


def test_the_old_values_of_an_upsert_may_be_any(home, warm, read):
    """Quotes, commas, brackets, a line feed, an empty text and NULL come back as they are. The row of the same values is not changed."""
    odd = """ "a", (b) 'c' \\d\n%s % {} """
    for old in (odd, "", None):
        put(home, description=old, area=None)
        warm(search="Renovated")
        upsert(changed(Property.objects.get(pk=home.pk)), update_fields=["description", "area"])
        assert read("cached", search="Renovated").came_from == "hit"
    upsert(changed(home, description="Renovated"), update_fields=["description", "area"])
    assert [row["id"] for row in read("cached", search="Renovated").rows] == [home.pk]


# SQLite


@pytest.mark.parametrize("server", ["this server"], indirect=True)
@pytest.mark.only("embedded")
def test_an_upsert_needs_no_write_lock_before(home, warm, read):
    """The old values are those of the statement itself, so a deferred transaction knows them, too. (SQLite only.)"""
    warm(status="sold")
    with mode("DEFERRED"):
        upsert(changed(home, price=1), update_fields=["price", "status"])
    assert read("cached", status="sold").came_from == "hit"
    assert read("cached").rows[0]["price"] == "1.00"


@contextmanager
def mode(chosen):
    """Begin the transactions of this connection in another mode."""
    kept, connection.transaction_mode = connection.transaction_mode, chosen
    try:
        yield
    finally:
        connection.transaction_mode = kept


@pytest.mark.parametrize("server", ["this server"], indirect=True)
@pytest.mark.only("embedded")
def test_an_upsert_on_an_sqlite_without_returning_counts_as_a_write_of_all(home, warm, read, monkeypatch):
    """Before SQLite 3.35 nobody knows its rows. (SQLite only.)"""
    warm(min_bedrooms=9)
    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    upsert(changed(home, price=1))
    assert read("cached", min_bedrooms=9).came_from == STALE
    assert read("cached").rows[0]["price"] == "1.00"


@pytest.mark.parametrize("server", ["this server"], indirect=True)
@pytest.mark.only("embedded")
def test_a_row_that_is_twice_in_an_upsert_counts_as_a_write_of_all(home, warm, read):
    """The old values of the second are the new ones of the first. (SQLite only: PostgreSQL refuses the statement.)"""
    warm(min_bedrooms=9)
    upsert(changed(home, bedrooms=9), changed(home, bedrooms=9, price=1), update_fields=["price", "bedrooms"])
    assert [row["price"] for row in read("cached", min_bedrooms=9).rows] == ["1.00"]


@pytest.mark.parametrize("server", ["this server"], indirect=True)
@pytest.mark.only("embedded")
def test_an_upsert_of_more_columns_than_a_function_takes_counts_as_a_write_of_all(home, warm, read):
    """SQLite limits the number of arguments. (SQLite only.)"""
    warm(min_bedrooms=9)
    warm(f"cached/{home.pk}")
    limit = connection.connection.setlimit(sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 2)
    try:
        upsert(changed(home, price=1))
    finally:
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_FUNCTION_ARG, limit)
    assert read("cached", min_bedrooms=9).came_from == STALE
    assert read(f"cached/{home.pk}").json["price"] == "1.00"


# Races


CASTS = {"a row": ("id", 0), "a new row": ("record_hash", None)}


@pytest.fixture
def stage(twenty_properties, handler, no_timeouts):
    """`stage(unique)`: T1 makes a listing cheap, T2 makes it as expensive as it was, both by an upsert, and a reader reads the expensive ones."""
    kept, home = ids(Property.objects.all()), twenty_properties[0]

    def stage(cast, **bounds):
        unique, key = CASTS[cast]
        row = partial(changed, home, record_hash="new", **({} if key == 0 else {"pk": None}))

        def read():
            client = Client()
            client.handler = handler
            return [row["id"] for row in ask(client, "/api/properties/cached/?min_price=300000&page_size=1").rows]

        def begin():
            Property.objects.exclude(pk__in=kept).delete()
            put(home, price=300_000, record_hash=None)
            clear_the_cache()
            acts = [partial(upsert, row(price=price), unique_fields=[unique]) for price in (5, 300_000)]
            return [Actor("fault", act, killable=False) for act in (*acts, read)]

        def afterwards():
            expected = ids(Property.objects.filter(price__gte=300_000).order_by("-created_at", "-id")[:1])
            assert read() == expected, "\n".join(found.lines)
            return []

        found = Stage(begin, afterwards, **bounds)
        return found

    return stage


SCHEDULES = {
    "a row": {"embedded": {"two preemptions": 185, "all": 948}, "real": {"two preemptions": 325, "all": 2196}},
    "a new row": {"embedded": {"two preemptions": 182, "all": 807}, "real": {"two preemptions": 322, "all": 1903}},
}


@pytest.mark.parametrize("bounds", [pytest.param({"preemptions": 2}, id="two preemptions"), pytest.param({}, id="all", marks=pytest.mark.races)])
@pytest.mark.parametrize("cast", CASTS)
def test_two_upserts_of_a_row_and_a_reader_are_in_order_in_every_order_of_steps(stage, pytestconfig, record_property, cast, bounds):
    """T2 waits for T1's row on PostgreSQL, and then finds T1's values. It says that it changed the price, although it writes the one that T1 had replaced."""
    with stage(cast, **bounds) as orders:
        tried = sum(1 for _ in orders.every())
    record_property("counted", f"{tried:,} schedules")
    assert tried == SCHEDULES[cast][pytestconfig.option.stack]["two preemptions" if bounds else "all"]
