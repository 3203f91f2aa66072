"""Places in an order. A page covers an interval of its order, and a row outside of it leaves the page as it is.

A write lists the places of its rows beside its tags. If a tag of rows that an entry has not read was written since, the lookup compares these places with the
interval of the entry. T1 and T2 are processes, each with its own connections.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection, connections, models, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Coalesce, Now
from django.db.models.lookups import GreaterThan, LessThan, LessThanOrEqual
from django.test import Client

from housing.freshness import RowValue
from housing.freshness.dependencies import recorded
from housing.freshness.places import EXACT, MANY_PLACES, microseconds, place_of
from housing.freshness.tracking import tables
from housing.models import Property, PropertyImage
from tests.exploration.schedules import Actor, Stage
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.responses import ask
from tests.fixtures.rows import NEW_YEAR, a_property, ids

pytest_plugins = ["tests.fixtures.no_timeouts"]

STALE = "fwd=stale; stored"
SCOPES = {"all": {}, "a status": {"status": "available"}, "a city": {"city": "Springfield"}, "an agent": {"agent": 1}}


@pytest.fixture(params=SCOPES)
def given(request, twenty_properties):
    """The filter of a list, which all listings match. Their prices are 300,000, 300,001 and so on, the newest first."""
    with transaction.atomic():
        for number, home in enumerate(twenty_properties):
            Property.objects.filter(pk=home.pk).update(agent=twenty_properties[0].agent, price=300_000 + number)
    clear_the_cache()
    return SCOPES[request.param] | ({"agent": twenty_properties[0].agent_id} if request.param == "an agent" else {})


@pytest.fixture
def second_of(given, warm, read):
    """`second_of(ordering)`: the address of the second page of the list in this order, which is cached as the first one is."""

    def second_of(ordering):
        asked = given | {"ordering": ordering, "page_size": 2}
        warm(**asked)
        second = "cached" + read("cached", **asked).json["next"]
        warm(second)
        return second

    return second_of


@pytest.fixture
def second(second_of):
    """The address of the second page, the newest first."""
    return second_of("-created_at")


@pytest.fixture
def new(twenty_properties):
    """`new(age)`: an unsaved listing that is older than the newest by these minutes."""
    home = twenty_properties[0]
    return lambda age, **fields: a_property(age, location=home.location, agent=home.agent, **fields)


# New rows


def test_a_new_listing_leaves_the_pages_behind_a_cursor_warm(second, given, new, read):
    """A portal's new listings are on its first pages only."""
    new(-1).save()
    assert read(second).came_from == "hit"
    assert read("cached", **given, page_size=2).rows[0]["title"] == "Home -1"


def test_new_listings_of_a_bulk_create_leave_the_pages_behind_a_cursor_warm(second, new, read):
    """All of them are newer."""
    Property.objects.bulk_create([new(-number) for number in range(1, 50)])
    assert read(second).came_from == "hit"


@pytest.mark.parametrize("rows", [[1.5], [-1, 1.5], [1]], ids=["an older one", "a newer and an older one", "one at the cursor"])
def test_a_created_listing_that_is_not_the_newest_is_on_the_page_of_its_time(second, new, read, rows):
    """An import brings old listings."""
    before = read(second).rows
    with transaction.atomic():
        for age in rows:
            new(0, created_at=NEW_YEAR - timedelta(minutes=age) - timedelta(microseconds=1)).save()

    assert read(second).came_from == STALE
    assert read(second).rows == ask(Client(), second.replace("cached", "optimized")).rows != before


def test_the_rows_between_the_oldest_and_the_newest_of_an_insert_count(second, new, read):
    """A statement may create rows of any age."""
    Property.objects.bulk_create([new(-1), new(30)])
    assert read(second).came_from == STALE


def test_a_time_that_is_not_known_may_be_any(second, new, read):
    """The database computes the value of an expression."""
    Property.objects.bulk_create([new(0, created_at=Now())])
    assert read(second).came_from == STALE


def test_an_insert_with_one_unknown_time_may_be_anywhere(second, new, read):
    """The places of its other rows do not say where this one is."""
    Property.objects.bulk_create([new(-1), new(0, created_at=Value(NEW_YEAR - timedelta(minutes=2, seconds=30)))])
    assert read(second).came_from == STALE


def test_a_listing_that_becomes_older_is_on_the_page_of_its_time(second, new, read):
    """The column is written after the row was created as the newest, in the same transaction."""
    with transaction.atomic():
        row = new(-1)
        row.save()
        Property.objects.filter(pk=row.pk).update(created_at=NEW_YEAR - timedelta(minutes=1, seconds=30))
    assert read(second).rows[0]["id"] == row.pk


def test_the_first_page_depends_on_each_new_listing(given, second, new, read):
    """It is open where it begins."""
    new(-1).save()
    assert read("cached", **given, page_size=2).came_from == STALE


ORDERINGS = ["price", "-price", "created_at", "-created_at"]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_first_page_ends_at_its_last_row(given, second_of, new, read, ordering):
    """A listing after it is on another page, and there is a next page already."""
    second_of(ordering)
    after = new(*{"-created_at": [5], "created_at": [-5], "price": [0], "-price": [0]}[ordering], price=Decimal("300005.5"))
    after.save()
    assert read("cached", **given, ordering=ordering, page_size=2).came_from == "hit"


@pytest.mark.parametrize("ordering", ["price", "-price"])
def test_a_listing_is_on_the_pages_of_its_price_only(second_of, new, read, ordering):
    """Most changes of a price concern a few pages of the order by price."""
    second = second_of(ordering)
    before = read(second).rows
    for price in ("100000", "400000", "300010.5"):
        new(0, price=Decimal(price)).save()
        assert read(second).came_from == "hit"
    new(0, title="Between", price=Decimal(before[0]["price"]) + (-1 if ordering == "-price" else 1) * Decimal("0.5")).save()
    assert [row["title"] for row in read(second).rows] == [before[0]["title"], "Between"]


def test_the_last_page_is_open_after_its_last_row(given, twenty_properties, warm, read, new):
    """Without a next page, rows after the last one are on it, too."""
    asked = given | {"ordering": "price", "page_size": 100}
    warm(**asked)
    new(0, price=900_000, title="Last").save()
    assert read("cached", **asked).rows[-1]["title"] == "Last"


# Rows that move


def test_a_price_that_stays_outside_leaves_a_page_warm(twenty_properties, second_of, read):
    """The row is in the scope before and after, and on neither page."""
    second, row = second_of("price"), twenty_properties[10]
    row.price = 400_000
    row.save()
    assert read(second).came_from == "hit"


@pytest.mark.parametrize("ordering", ["price", "-price"])
@pytest.mark.parametrize("save", ["save()", "update()", "after select_for_update()", "bulk_create()"])
def test_a_price_that_moves_a_row_onto_a_page_is_in_the_next_read(twenty_properties, second_of, read, ordering, save):
    """The place afterwards counts."""
    second, row = second_of(ordering), twenty_properties[10]
    price = Decimal(read(second).rows[0]["price"]) + (-1 if ordering == "-price" else 1) * Decimal("0.5")
    with transaction.atomic():
        if save == "update()":
            Property.objects.filter(pk=row.pk).update(price=price)
        else:
            row = (Property.objects.select_for_update() if "select" in save else Property.objects).get(pk=row.pk)
            row.price = price
            if save == "bulk_create()":
                Property.objects.bulk_create([row], update_conflicts=True, unique_fields=["id"], update_fields=["price"])
            else:
                row.save()
    assert read(second).rows[1]["id"] == row.pk


def test_a_row_that_enters_the_filter_of_a_page_outside_of_its_interval_leaves_it_warm(twenty_properties, warm, read):
    """A status changes seldom, but each sold listing is on one page of the sold ones only."""
    Property.objects.filter(pk__in=ids(twenty_properties[:10])).update(status="sold")
    warm(status="sold", page_size=2)
    twenty_properties[15].status = "sold"
    twenty_properties[15].save(update_fields=["status"])
    assert read("cached", status="sold", page_size=2).came_from == "hit"
    Property.objects.filter(pk=twenty_properties[1].pk).update(status="pending")
    assert read("cached", status="sold", page_size=2).came_from == STALE


BEYOND = {
    "deleted": lambda row: row.delete(),
    "moved to another status": lambda row: Property.objects.filter(pk=row.pk).update(status="sold"),
    "moved before the page": lambda row: Property.objects.filter(pk=row.pk).update(price=1),
    "out of the range of a filter": lambda row: Property.objects.filter(pk=row.pk).update(bedrooms=1),
}


@pytest.mark.parametrize("act", BEYOND.values(), ids=BEYOND)
def test_a_page_loses_its_link_with_the_only_row_after_it(twenty_properties, act, warm, read):
    """A page reads one row more to know whether there is a next page. Where that row goes does not matter."""
    Property.objects.exclude(pk__in=ids(twenty_properties[:5])).delete()
    Property.objects.update(status="available", bedrooms=3)
    for number, home in enumerate(twenty_properties[:5]):
        Property.objects.filter(pk=home.pk).update(price=100 + number)
    asked = {"status": "available", "min_bedrooms": 2, "ordering": "price", "page_size": 2}
    clear_the_cache()
    warm(**asked)
    second = "cached" + read("cached", **asked).json["next"]
    warm(second)
    assert read(second).json["next"]
    act(twenty_properties[4])
    assert read(second).json["next"] is None


def test_another_change_of_the_row_after_the_last_one_leaves_a_page_warm(twenty_properties, second_of, read):
    """The page shows only that it is there."""
    second = second_of("-created_at")
    Property.objects.filter(pk=twenty_properties[4].pk).update(title="Else")
    assert read(second).came_from == "hit"


# The interval of a query


YEAR, TIME = datetime(2026, 1, 1, tzinfo=UTC), microseconds(datetime(2026, 1, 1, tzinfo=UTC))


def compared(lookup, time=Value(YEAR), column="created_at"):
    """The condition of a page behind a cursor, or a similar one."""
    return lookup(RowValue(F(column) if isinstance(column, str) else column, F("id")), RowValue(time, Value(7)))


QUERIES = {
    "(created_at, id) < a position": (lambda found: found.filter(compared(LessThan)), f"|3::{TIME},7"),
    "(created_at, id) <= a position": (lambda found: found.filter(compared(LessThanOrEqual)), f"|3::{TIME},7"),
    "(created_at, id) > a position": (lambda found: found.filter(compared(GreaterThan)), f"|3:{TIME},7:"),
    "(price, id) > a position": (lambda found: found.filter(compared(GreaterThan, Value(Decimal("1.5")), "price")), "|1:150,7:"),
    "NOT (created_at, id) < a position": (lambda found: found.exclude(compared(LessThan)), None),
    "(created_at, id) < a position, OR": (lambda found: found.filter(Q(compared(LessThan)) | Q(price=1)), None),
    "(created_at, id) < other columns": (lambda found: found.filter(compared(LessThan, F("updated_at"))), None),
    "(created_at, id) < a text": (lambda found: found.filter(compared(LessThan, Value("2026-01-01 00:00:00"))), None),
    "a column without an index": (lambda found: found.filter(compared(LessThan, column="updated_at")), None),
    "an expression": (lambda found: found.filter(compared(LessThan, column=Coalesce(F("created_at"), F("updated_at")))), None),
    "created_at < a time": (lambda found: found.filter(created_at__lt=Value(YEAR)), None),
    "created_at <= a time": (lambda found: found.filter(created_at__lte=YEAR), None),
    "two prices": (lambda found: found.filter(price__gte=5, price__lte=Decimal("7.25"), price__lt=9), "|1:500:725"),
    "the key": (lambda found: found.filter(pk__gt=7), "|0:7:"),
    "a filter and a position": (lambda found: found.filter(price__gte=1).filter(compared(GreaterThan, Value(Decimal("1.5")), "price")), "|1:150,7:"),
    "a number": (lambda found: found.filter(bedrooms__gte=2), "|2:2:"),
    "a column of another table": (lambda found: found.filter(location__latitude__gte=2), None),
    "the key of another table": (lambda found: found.filter(images__pk__gt=5), None),
    "a row": (lambda found: found.filter(pk=1, price__gte=5), None),
    "groups": (lambda found: found.filter(price__gte=5).values("status").annotate(n=models.Count("id")), None),
    "an offset": (lambda found: found.filter(price__gte=5)[3:], None),
    "distinct rows": (lambda found: found.filter(price__gte=5).distinct(), None),
    "the same table twice": (lambda found: found.filter(price__gte=5, agent__properties__price=7), None),
}
"""Query → the ends of its interval. A time alone is no end. A view may take it from the clock, and the next request would allow more."""


@pytest.mark.parametrize(("query", "ends"), QUERIES.values(), ids=QUERIES)
def test_an_interval_ends_at_a_position_or_at_a_number(db, query, ends):
    """The rows of a table may be anywhere if the query does not say where they are."""
    with recorded() as recording:
        list(query(Property.objects.order_by("-created_at")))
    if ends is None:
        assert recording.within == {}
    else:
        [(interval, entering)] = recording.within.items()
        assert interval == f"|in:{tables()['housing_property'].placed}{ends}"
        assert entering >= {"housing_property:+"}
        assert entering.isdisjoint({"housing_property:*", "housing_property:?"})


def test_a_slice_ends_at_its_last_row(twenty_properties):
    """All rows after it leave it as it is. Without a full slice there is no last row."""
    ends = {}
    for count in (3, 20, 21):
        with recorded() as recording:
            list(Property.objects.order_by("-created_at")[:count])
        ends[count] = [*recording.within]
    assert ends == {count: [f"|in:{tables()['housing_property'].placed}|3:{time_of(NEW_YEAR, count - 1)}:"] for count in (3, 20)} | {21: []}


def time_of(newest, age):
    """The place of a row that is older than the newest by this number of minutes."""
    return microseconds(newest - timedelta(minutes=age))


@pytest.mark.parametrize("ordering", ["updated_at", F("price") + 1, "location__latitude", None], ids=str)
def test_another_order_has_no_interval(twenty_properties, ordering):
    """The order has to begin with a column whose values are places."""
    with recorded() as recording:
        list(Property.objects.order_by(*([ordering] if ordering else []))[:3])
    assert recording.within == {}


def test_a_response_with_two_intervals_of_a_table_depends_on_rows_anywhere_by_their_common_tags(twenty_properties):
    """A row outside of the first may be inside of the second."""
    with recorded() as recording:
        list(Property.objects.filter(status="sold").order_by("price")[:3])
        list(Property.objects.filter(price__gte=5, status="available"))
        list(Property.objects.filter(price__gte=7, status="available"))
    assert set().union(*recording.within.values()).isdisjoint({"housing_property.status=available+"})


@pytest.mark.parametrize("order", [1, -1], ids=["at first", "at last"])
def test_a_tag_of_a_query_without_an_interval_matters_for_rows_anywhere(twenty_properties, order):
    """Another query of the same response has an interval and the same tag."""
    found = [Property.objects.filter(status="available"), Property.objects.filter(price__gte=7, status="available")]
    with recorded() as recording:
        for each in found[::order]:
            list(each)
    assert set().union(*recording.within.values()).isdisjoint({"housing_property.status=available+"})


# The values of places


def test_only_columns_whose_order_is_certain_have_places():
    """Texts are ordered by a collation, decimals of many digits and floating point numbers are not exact, and a reference is no order."""
    assert [*tables()["housing_property"].places] == ["id", "price", "bedrooms", "created_at"]
    assert place_of(models.DecimalField(max_digits=15, decimal_places=2))
    for field in (models.DecimalField(max_digits=16), models.FloatField(), models.CharField(), models.DateField(), models.BooleanField()):
        assert place_of(field) is None


PRICES = ["0.01", "0.1", "1", "2.5", "9.99", "10", "99.99", "100.5", "250000.29", "1234567890.12", "9999999999.99"]
TIMES = [
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    *(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=each) for each in (0, 1, 10, 100_000, 1_000_000)),
]


def test_places_are_in_the_order_of_the_database(twenty_properties):
    """The values that a write has, those that an UPDATE returns, and those of the rows of a page are the same numbers."""
    table = tables()["housing_property"]
    expected = {"price": [round(Decimal(price) * 100) for price in PRICES], "created_at": [microseconds(time) for time in TIMES]}
    for column, values in {"price": list(map(Decimal, PRICES)), "created_at": TIMES}.items():
        number = [*table.places].index(column)
        with transaction.atomic():
            Property.objects.all().delete()
            rows = [a_property(0, location=twenty_properties[0].location, agent=twenty_properties[0].agent, **{column: value}) for value in values]
            connection.scopes[-1].places.clear()
            for row in rows:
                row.pk = None
                row.save()
            created = [place[number] for place in connection.scopes[-1].places[table.placed]]
            connection.scopes[-1].places.clear()
            Property.objects.update(description="else")
            returned = sorted(place[number] for place in connection.scopes[-1].places[table.placed])
            transaction.set_rollback(True)
        assert created == returned == expected[column]


def test_the_order_of_rows_is_that_of_their_places(twenty_properties):
    """A page begins and ends with the values that the driver returns."""
    for home, price, time in zip(twenty_properties, PRICES, [*TIMES, *TIMES], strict=False):
        Property.objects.filter(pk=home.pk).update(price=price, created_at=time)
    Property.objects.exclude(pk__in=ids(twenty_properties[: len(PRICES)])).delete()
    for column, values in {
        "price": [round(Decimal(price) * 100) for price in PRICES],
        "created_at": sorted([*map(microseconds, TIMES), *map(microseconds, TIMES)]),
    }.items():
        found = []
        for count in range(1, len(PRICES) + 1):
            with recorded() as recording:
                list(Property.objects.order_by(column)[:count])
            [interval] = recording.within
            found.append(int(interval.rpartition(":")[2]))
        assert found == values[: len(found)]


@pytest.mark.parametrize(
    ("value", "has_zone"),
    [
        (datetime(2026, 1, 1), True),  # noqa: DTZ001  # it has no time zone on purpose
        ("2026-01-01 00:00:00", True),
        ("2026-01-01 00:00:00+00", False),
        ("2026-01-01", False),
        ("2026-01-01T00:00:00", False),
        ("2026-01-01 00:00:00.5", False),
        ("infinity", True),
        ("0044-03-15 12:00:00+00 BC", True),
        (None, True),
        (datetime(9999, 1, 1, tzinfo=UTC), True),
    ],
)
def test_a_time_of_another_form_has_no_place(value, has_zone):
    """The database decides what it means, or Lua's numbers are not exact."""
    assert microseconds(value, has_zone) is None


@pytest.mark.parametrize(
    "value",
    [None, "2.5", 2.5, Decimal("2.00000000000000000000000000000000001"), "NaN", float("inf"), Decimal("-Infinity"), "else", EXACT, -EXACT, b"1"],
    ids=repr,
)
def test_a_number_that_is_not_exact_has_no_place(value):
    """It may be anywhere."""
    assert place_of(models.IntegerField())(value, True) is None


# Transactions


def test_the_places_of_a_rolled_back_savepoint_are_dropped(second, new, read):
    """Only rows that are committed count."""
    with transaction.atomic():
        new(-1).save()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            new(2.5).save()
            raise ZeroDivisionError
    assert read(second).came_from == "hit"


def test_the_places_of_a_released_savepoint_count(second, new, read):
    """They are those of the transaction."""
    with transaction.atomic():
        with transaction.atomic():
            new(2.5).save()
        new(-1).save()
    assert read(second).came_from == STALE


def test_many_places_are_replaced_by_the_span_of_all(second, new, read):
    """A lease stays short. Rows on both sides of a page then count as rows on it."""
    with transaction.atomic():
        for number in range(MANY_PLACES + 1):
            new(-number).save()
        assert len(connection.scopes[-1].places[tables()["housing_property"].placed]) == 1
    assert read(second).came_from == "hit"
    with transaction.atomic():
        for number in range(MANY_PLACES + 1):
            new(30 if number else -30).save()
    assert read(second).came_from == STALE


UNKNOWN = {
    "raw SQL": lambda: connection.cursor().execute("UPDATE housing_property SET bedrooms = bedrooms"),
    "an UPDATE of a key": lambda: (
        PropertyImage.objects.all().delete(),
        Property.objects.filter(pk=Property.objects.latest("created_at").pk).update(id=10**6),
    ),
}


@pytest.mark.parametrize("write", UNKNOWN.values(), ids=UNKNOWN)
def test_a_write_to_unknown_rows_is_inside_of_every_interval(second, read, write):
    """Nobody knows their places."""
    write()
    assert read(second).came_from == STALE


def test_an_update_of_many_rows_is_inside_of_every_interval(second, new, read):
    """The database returns at most a hundred rows."""
    Property.objects.bulk_create([new(-number) for number in range(1, 150)])
    Property.objects.filter(created_at__gt=NEW_YEAR).update(price=F("price") + 1)
    assert read(second).came_from == STALE


def test_an_update_whose_images_are_unknown_is_inside_of_every_interval(given, new, warm, read, twenty_properties, monkeypatch):
    """SQLite returns none if its transaction has no write lock yet. The places of the other rows of the transaction are not all."""
    asked, row = given | {"min_price": 300_005}, twenty_properties[0]
    warm(**asked)
    monkeypatch.setattr(type(connections[connection.alias]), "has_images", False)
    with transaction.atomic():
        new(0, price=1).save()
        Property.objects.filter(pk=row.pk).update(price=Decimal("300010.5"))
    assert row.pk in [each["id"] for each in read("cached", **asked).rows]


def test_a_row_that_is_created_without_redis_may_be_anywhere(second, new, read, redis_unreachable, verify):
    """Its place is not in the outbox."""
    with redis_unreachable():
        new(-1).save()
    verify()
    assert read(second).came_from == STALE


@pytest.mark.only("real")
def test_a_row_that_another_program_creates_may_be_anywhere(second, read, verify):
    """The trigger writes no places."""
    columns = ", ".join(field.column for field in Property._meta.concrete_fields if not (field.primary_key or field.unique))
    with connection.connection.cursor() as outside:  # the driver's own cursor sends no mark
        outside.execute(f"INSERT INTO housing_property ({columns}) SELECT {columns} FROM housing_property LIMIT 1")
    verify()
    assert read(second).came_from == STALE


# Races


@pytest.fixture
def stage(transactional_db, handler, second_of, new, twenty_properties, request):
    """A stage for T1, who writes a listing on the second page of an order, T2, who writes one outside of it, and a reader of the page."""
    second = second_of(request.param)

    def read():
        client = Client()
        client.handler = handler
        return [row["id"] for row in ask(client, second).rows]

    kept, moved = ids(Property.objects.all()), [home.pk for home in twenty_properties[9:11]]

    def begin():
        Property.objects.exclude(pk__in=kept).delete()
        for number, key in enumerate(moved, 9):
            Property.objects.filter(pk=key).update(price=300_000 + number)
        clear_the_cache()
        acts = {
            "-created_at": (lambda: new(1.5).save(), lambda: new(-1).save(), read),
            "price": (
                lambda: Property.objects.filter(pk=moved[0]).update(price=Decimal("300002.5")),
                lambda: Property.objects.filter(pk=moved[1]).update(price=400_000),
                read,
            ),
        }[request.param]
        if request.param == "price":
            read()  # the page is warm
        return [Actor("fault", act, killable=False) for act in acts]

    def afterwards():
        client = Client()
        assert read() == [row["id"] for row in ask(client, second.replace("cached", "optimized")).rows], "\n".join(stages[0].lines)
        return []

    stages = []

    def stage(**bounds):
        stages.append(Stage(begin, afterwards, **bounds))
        return stages[0]

    return stage


@pytest.mark.parametrize("given", ["all"], indirect=True)
@pytest.mark.parametrize(
    ("stage", "schedules", "bounds"),
    [
        pytest.param("-created_at", {"embedded": 38, "real": 54}, {"preemptions": 1}, id="created, one preemption"),
        pytest.param("price", {"embedded": 28, "real": 44}, {"preemptions": 1}, id="moved, one preemption"),
        pytest.param("-created_at", {"embedded": 797}, {}, id="created, all", marks=[pytest.mark.races, pytest.mark.only("embedded")]),
        pytest.param("price", {"embedded": 299}, {}, id="moved, all", marks=[pytest.mark.races, pytest.mark.only("embedded")]),
    ],
    indirect=["stage"],
)
def test_a_row_is_on_the_page_of_its_place_in_every_order_of_steps(stage, pytestconfig, record_property, schedules, bounds):
    """The page may be stored or compared before, while and after a row enters it, and another row is written outside of it."""
    with stage(**bounds) as orders:
        tried = sum(1 for _ in orders.every())
    record_property("counted", f"{tried:,} schedules")
    assert tried == schedules[pytestconfig.option.stack]
