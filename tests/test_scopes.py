"""Scopes. An entry that is selected by an equality, such as `agent=3`, depends on what happens within that scope: rows that are created or deleted in it, that
enter or leave it, and the columns of its rows that select and order. A write knows the scopes of its rows before and after.

T1 and T2 are processes, each with its own connections.
"""

from enum import Enum
from functools import partial
from itertools import combinations
from urllib.parse import urlencode

import pytest
from django.db import connection, transaction
from django.db.models import Case, F, Value, When

from housing.freshness.dependencies import Select, recorded
from housing.freshness.tracking import MANY_ROWS, MANY_SCOPED, tables
from housing.models import Agent, Location, Property, PropertyImage
from tests.fixtures.rows import a_property, ids, put, saved

pytest_plugins = ["tests.fixtures.kinds"]

STALE = "fwd=stale; stored"

SCOPES = {
    "agent": (lambda home: home.agent_id, lambda home: Agent.objects.create(name="Other", office=home.agent.office).pk, "agent_id"),
    "status": (lambda home: "available", lambda home: "sold", "status"),
    "property_type": (lambda home: "house", lambda home: "land", "property_type"),
}
"""Query parameter → the value that the newest property has, another value, and the column."""


@pytest.fixture(params=SCOPES)
def scope(request, twenty_properties):
    """The query parameters of the newest property's scope, those of another scope, and a function that moves a property to the other one."""
    home = twenty_properties[0]
    mine, other, column = SCOPES[request.param]
    value = other(home)
    return {request.param: mine(home)}, {request.param: value}, lambda row, way=put: way(row, **{column: value})


# Pages of two scopes


@pytest.fixture(params=[1, 20], ids=["page_size=1", "all rows on one page"])
def pages(request, home):
    """The query parameters of each page that is limited to two of the scopes of the newest property."""
    mine = {"agent": home.agent_id, "office": home.agent.office_id, "city": home.location.city, "status": "available", "property_type": "house"}
    return [{"page_size": request.param, one: mine[one], other: mine[other]} for one, other in combinations(mine, 2)]


def assert_only_changed_pages_are_stale(pages, read, warm, write):
    """Each page is read before and after the write. If its bytes stay the same, it is a hit."""
    before = [warm(**page) for page in pages]
    write()
    after = [read("cached", **page) for page in pages]
    current = [read("optimized", **page).body for page in pages]
    assert [response.body for response in after] == current
    names = [urlencode(page) for page in pages]
    states = ["hit" if now == then else STALE for now, then in zip(current, before, strict=True)]
    assert dict(zip(names, [response.came_from for response in after], strict=True)) == dict(zip(names, states, strict=True))


@pytest.mark.parametrize("first", range(4))
def test_a_row_that_enters_one_scope_after_another_is_on_a_page_of_two_when_it_is_in_both(pages, home, read, warm, first):
    """The tags of an entry are those of one of its scopes. Each write of a row that enters the page names the other one, too."""
    row = a_property(-1, status="sold", property_type="land", location=Location(city="Shelbyville"))
    saved(row)
    moves = [{"location": home.location}, {"status": "available"}, {"property_type": "house"}, {"agent": home.agent}]

    for move in moves[first:] + moves[:first]:
        assert_only_changed_pages_are_stale(pages, read, warm, partial(put, row, **move))


def test_a_new_row_leaves_the_pages_of_two_scopes_warm_if_it_is_in_one_of_them(pages, home, read, warm):
    """A new listing of an agent is not among the sold ones of this agent."""
    mine, other = {"location": home.location, "agent": home.agent}, a_property(-1, location=Location(city="Shelbyville"))
    saved(other)
    for number, differs in enumerate([{}, {"status": "sold"}, {"property_type": "land"}, {"location": other.location}, {"agent": other.agent}], 2):
        assert_only_changed_pages_are_stale(pages, read, warm, a_property(-number, **mine | differs).save)


def test_rows_of_unknown_cities_are_on_the_page_of_an_agent_and_a_city(home, read, warm):
    """A bulk_create of more than a hundred rows does not ask for their cities."""
    page = {"agent": home.agent_id, "city": home.location.city}
    warm(**page)
    Property.objects.bulk_create([a_property(-number, agent=home.agent, location=home.location) for number in range(1, MANY_ROWS + 2)])
    assert read("cached", **page).rows[0]["title"] == f"Home -{MANY_ROWS + 1}"


def test_the_lines_of_an_interval_have_every_tag_by_which_a_row_is_in_a_further_scope(home):
    """`status__in` names two scopes. A write may not know the scopes of its rows, or not their cities."""
    homes = Property.objects.filter(agent=home.agent, status__in=["sold", "available"], location__city="Springfield").order_by("pk")
    with recorded() as recording:
        Select(homes.values_list("pk", "location_id")).rows()
    [lines] = recording.within
    assert lines.splitlines()[1:] == [
        "|and:housing_property.status=available|housing_property.status=sold|housing_property:?",
        "|and:housing_property.location_id>city=Springfield|housing_property:?|housing_property:>",
    ]


# Rows that are created and deleted


def test_a_new_listing_in_one_scope_leaves_the_pages_of_another_warm(scope, home, warm, read):
    """A portal with a new listing each minute would never be warm otherwise."""
    mine, other, _ = scope
    warm(**mine)
    warm(**other)

    new = a_property(-1, location=home.location, agent=home.agent)
    new.save()

    assert read("cached", **other).came_from == "hit"
    assert read("cached", **mine).rows[0]["id"] == new.pk


def test_a_deleted_listing_leaves_the_pages_of_another_scope_warm(scope, home, warm, read):
    """The DELETE returns the scopes that its rows had. The page does not show the row, and only has a `next` because of it."""
    mine, other, _ = scope
    Property.objects.exclude(pk=home.pk).delete()
    last = a_property(1, location=home.location, agent=home.agent)
    last.save()
    warm(**mine, page_size=1)
    assert read("cached", **mine, page_size=1).json["next"]
    warm(**other)

    Property.objects.filter(title=last.title)._raw_delete("default")

    assert read("cached", **other).came_from == "hit"
    assert read("cached", **mine, page_size=1).json["next"] is None


LEAVES = {
    "it is deleted": lambda home, move: Property.objects.filter(pk=home.pk).delete(),
    "it moves to another scope": lambda home, move: move(home),
}
"""Ways to leave a scope."""


@pytest.mark.parametrize("way", LEAVES)
def test_a_listing_that_leaves_a_scope_leaves_its_pages_warm_that_did_not_read_it(scope, twenty_properties, warm, read, way):
    """A page reads its rows and one more. Without any other row it would be the same, and without that one it would have no `next`."""
    mine, _, move = scope
    home, following, third = twenty_properties[:3]
    Property.objects.filter(pk__in=[following.pk, third.pk]).update(agent=home.agent)
    Property.objects.exclude(pk__in=[home.pk, following.pk, third.pk]).delete()
    warm(**mine, page_size=1)

    LEAVES[way](third, move)
    assert read("cached", **mine, page_size=1).came_from == "hit"

    LEAVES[way](following, move)
    assert read("cached", **mine, page_size=1).json["next"] is None


@pytest.mark.parametrize("way", LEAVES)
def test_a_number_of_rows_in_a_scope_depends_on_each_row_that_leaves_it(scope, home, fresh, way):
    """A query that does not return keys does not know which rows it read."""
    mine, _, move = scope

    fresh(lambda: Property.objects.filter(**mine).count(), lambda: LEAVES[way](home, move), home.save)


def test_a_number_of_all_rows_depends_on_each_deleted_one(twenty_properties, fresh):
    """It has no scope, and does not know which rows it read."""
    *_, last = twenty_properties
    fresh(Property.objects.count, lambda: Property.objects.filter(pk=last.pk)._raw_delete("default"), last.save)


# Rows that move


def bulk_updated(row, **values):
    """Write with bulk_update()."""
    for name, value in values.items():
        setattr(row, name, value)
    Property.objects.bulk_update([row], [Property._meta.get_field(name.removesuffix("_id")).name for name in values])


def locked(row, **values):
    """Save after select_for_update()."""
    with transaction.atomic():
        put(Property.objects.select_for_update().get(pk=row.pk), **values)


WAYS = {
    "save()": put,
    "update()": lambda row, **values: Property.objects.filter(pk=row.pk).update(**values),
    "update() by a condition": lambda row, **values: Property.objects.filter(title=row.title).update(**values),
    "update() with an expression": lambda row, **values: Property.objects.filter(pk=row.pk).update(
        **{name: Case(When(pk=row.pk, then=Value(value)), default=F(name), output_field=Property._meta.get_field(name)) for name, value in values.items()}
    ),
    "bulk_update()": bulk_updated,
    "save() after a lock": locked,
}
"""Ways to write a column of a row."""


@pytest.mark.parametrize("way", WAYS)
def test_a_listing_that_moves_leaves_one_scope_and_enters_the_other(scope, twenty_properties, warm, read, way):
    """Neither page shows the row before it moves: the page of its old scope only has a `next` because of it."""
    mine, other, move = scope
    Property.objects.exclude(pk__in=[home.pk for home in twenty_properties[:2]]).delete()
    last = twenty_properties[1]
    Property.objects.filter(pk__in=[home.pk for home in twenty_properties[:2]]).update(agent=twenty_properties[0].agent)
    warm(**mine, page_size=1)
    assert read("cached", **mine, page_size=1).json["next"]
    warm(**other)

    move(last, WAYS[way])

    assert read("cached", **mine, page_size=1).json["next"] is None
    assert [row["id"] for row in read("cached", **other).rows] == [last.pk]


def move_and_roll_back(move, home):
    """Move the listing under a savepoint, and roll back to the savepoint."""
    with transaction.atomic():
        move(home)
        transaction.set_rollback(True)


def test_a_listing_that_moves_again_after_a_rollback_is_in_its_new_scope(scope, home, warm, read):
    """T1 moves it under a savepoint, rolls back, and moves it again. The tags of the second move remain."""
    _, other, move = scope
    warm(**other)
    with transaction.atomic():
        move_and_roll_back(move, home)
        home.refresh_from_db()
        move(home)

    assert [row["id"] for row in read("cached", **other).rows] == [home.pk]


def test_a_move_that_is_rolled_back_to_a_savepoint_leaves_the_other_scope_warm(scope, home, warm, read):
    """The rollback undoes the move, and drops its tags."""
    _, other, move = scope
    warm(**other)
    with transaction.atomic():
        move_and_roll_back(move, home)
        put(Property.objects.get(pk=home.pk), title="Other")

    assert read("cached", **other).came_from == "hit"


# Columns within a scope


@pytest.mark.parametrize("way", WAYS)
def test_a_new_price_in_one_scope_leaves_the_sorted_pages_of_another_warm(scope, twenty_properties, warm, read, way):
    """The order of the rows in another scope is the same. The row is not shown before it becomes the cheapest."""
    mine, other, move = scope
    put(twenty_properties[1], agent=twenty_properties[0].agent)
    move(twenty_properties[2])
    warm(**mine, ordering="price", page_size=1)
    warm(**other, ordering="price", page_size=1)

    WAYS[way](twenty_properties[1], price=1)

    assert read("cached", **other, ordering="price", page_size=1).came_from == "hit"
    assert read("cached", **mine, ordering="price", page_size=1).rows[0]["price"] == "1.00"


def test_a_row_that_moves_and_then_gets_a_new_price_is_in_the_next_read(scope, twenty_properties, warm, read):
    """T1 does both in one transaction. The page of the other scope shows another row first, by its price."""
    _, other, move = scope
    move(twenty_properties[2])
    warm(**other, ordering="price", page_size=1)

    with transaction.atomic():
        move(twenty_properties[0])
        Property.objects.filter(pk=twenty_properties[0].pk).update(price=1)

    assert read("cached", **other, ordering="price", page_size=1).rows[0]["id"] == twenty_properties[0].pk


# Values


@pytest.mark.parametrize("city", ["São Paulo", "a.b=c|d\ne", "%", "", "*"])
def test_a_scope_may_have_any_value(home, fresh, city):
    """Its text is quoted, so it cannot be mistaken for another tag."""
    fresh(lambda: ids(Location.objects.filter(city=city)), lambda: Location.objects.create(city=city), lambda: Location.objects.create(city=city + "!"))


def test_a_scope_may_be_given_as_a_member_of_an_enumeration(home, fresh):
    """The database stores its value, which is not what `str()` returns."""
    chosen = Enum("Chosen", {"SOLD": "sold", "PENDING": "pending"}, type=str)
    assert str(chosen.SOLD) != "sold"

    fresh(
        lambda: ids(Property.objects.filter(status=chosen.SOLD)),
        lambda: put(home, status="sold"),
        lambda: a_property(30, location=home.location, agent=home.agent, status=chosen.PENDING).save(),
    )


def test_several_values_are_several_scopes(home, fresh):
    """A row in any of them counts."""
    fresh(
        lambda: ids(Property.objects.filter(status__in=["sold", "pending"])),
        lambda: put(home, status="pending"),
        lambda: put(home, status="withdrawn"),
    )


# Writes whose scopes are not known


def test_each_column_with_which_an_index_begins_is_a_scope():
    """A query by it is meant to be fast, so its pages are worth keeping. Columns without an index depend on the list."""
    assert {name: {*table.scopes} for name, table in tables().items() if name.startswith("housing_")} == {
        "housing_office": set(),
        "housing_agent": {"office_id"},
        "housing_location": {"city"},
        "housing_property": {"location_id", "agent_id", "property_type", "status", "bedrooms", "record_hash", "source_id"},
        "housing_propertyimage": {"property_id"},
    }


@pytest.mark.only("embedded")
def test_a_write_to_rows_whose_old_scopes_are_unknown_invalidates_every_scope(scope, home, warm, read):
    """A deferred transaction of SQLite cannot read the old values. Pages without a scope stay warm."""
    mine, other, _ = scope
    warm(**mine)
    warm(**other)
    warm(max_price=1)

    connection.transaction_mode, kept = "DEFERRED", connection.transaction_mode
    try:
        home.save(update_fields=["title"])
    finally:
        connection.transaction_mode = kept

    assert (read("cached", **mine).came_from, read("cached", **other).came_from, read("cached", max_price=1).came_from) == (STALE, STALE, "hit")


def test_a_transaction_that_writes_many_scopes_invalidates_every_scope(home, warm, read, fresh):
    """The lease stays short."""
    count = MANY_SCOPED + 1
    Location.objects.bulk_create(Location(city="New") for _ in range(3))
    with recorded() as recording:
        ids(Location.objects.filter(city="nowhere"))
    with transaction.atomic():
        for number in range(count):
            Location.objects.filter(city="New").update(city="New", state=str(number))
            connection.tag("housing_location", {f"housing_location.city={number}"})
        tags = connection._collapsed()

    assert {"housing_location:?", "housing_location.state"} <= tags
    assert not any("=" in tag for tag in tags)
    assert tags & recording.tags == {"housing_location:?"}


# Two writers


@pytest.mark.only("real")
def test_two_writers_that_move_the_same_listing_invalidate_all_of_its_scopes(home, warm, read, elsewhere):
    """T1 loads the row · T2 moves it, COMMITs · a reader fills the page of T2's scope · T1 moves it on, and returns what T2 wrote as the old value."""
    copy = Property.objects.get(pk=home.pk)
    elsewhere(lambda: put(Property.objects.get(pk=home.pk), status="sold"))
    for status in ("available", "sold", "pending"):
        warm(status=status)

    copy.status = "pending"
    copy.save()

    shown = {status: home.pk in [row["id"] for row in read("cached", status=status).rows] for status in ("available", "sold", "pending")}
    assert shown == {"available": False, "sold": False, "pending": True}


def test_an_image_that_is_created_leaves_other_details_warm(twenty_properties, warm, read):
    """A prefetch is selected by its foreign key, which is a scope."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    PropertyImage.objects.create(property=first, url="https://x/new")

    assert read(f"cached/{second.pk}").came_from == "hit"
    assert len(read(f"cached/{first.pk}").json["images"]) == 3


NOT_PROMISED = {
    "A new listing leaves all pages warm on which it is not": (
        "A page depends on the rows of one scope whose place is within its interval of the order. Another condition of the page may leave them out, such as a "
        "search. docs/decisions/0033 has what that costs."
    ),
}


def test_values_that_are_equal_in_python_have_texts_of_their_own():
    """The texts are kept in a cache, whose keys 1, 1.0 and True are equal. One of them would get the tag of another."""
    text = tables()["housing_property"].scopes["status"]

    assert [text(value) for value in ("1", 1, 1.0, True)] == ["1", "1", "1.0", "True"]


@pytest.mark.only("embedded")
def test_a_value_that_its_column_cannot_hold_is_no_scope(transactional_db):
    """The entry depends on the column in all rows, and the query is not an error of the engine. (Embedded only: PostgreSQL refuses the comparison.)"""
    tags = []
    for agent in (Value("3"), Value("three")):
        with recorded() as recording:
            assert list(Property.objects.filter(agent=agent)) == []
        tags.append(recording.tags)

    assert "housing_property.agent_id=3" in tags[0]
    assert "housing_property.agent_id" in tags[1]
