"""New rows are usually the newest. A page behind a cursor is limited to rows until some time, so a listing that is created now is not on it.

The journal keeps the latest limit of all entries. A write passes the times of the rows that it creates, and has one tag more if a row is not newer than that
limit. T1 and T2 are processes, each with its own connections.
"""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Coalesce, Now
from django.db.models.lookups import GreaterThan, LessThan, LessThanOrEqual
from django.test import Client

from housing.freshness import RowValue, outbox
from housing.freshness.dependencies import recorded
from housing.freshness.journal import journal
from housing.freshness.tracking import microseconds, tables
from housing.models import Property
from tests.exploration.schedules import Actor, Stage
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.responses import ask
from tests.fixtures.rows import NEW_YEAR, a_property, ids

pytest_plugins = ["tests.fixtures.no_timeouts"]

STALE = "fwd=stale; stored"
SCOPES = {"all": {}, "a status": {"status": "available"}, "a city": {"city": "Springfield"}, "an agent": {"agent": 1}}


@pytest.fixture(params=SCOPES)
def second(request, twenty_properties, warm, read):
    """The address of the second page of a list, which is cached as the first one is."""
    given = SCOPES[request.param] | ({"agent": twenty_properties[0].agent_id} if request.param == "an agent" else {})
    Property.objects.update(agent=twenty_properties[0].agent)
    clear_the_cache()
    warm(**given, page_size=2)
    second = "cached" + read("cached", **given, page_size=2).json["next"]
    warm(second)
    return second


@pytest.fixture
def new(twenty_properties):
    """`new(age)`: an unsaved listing that is older than the newest by these minutes."""
    home = twenty_properties[0]
    return lambda age, **fields: a_property(age, location=home.location, agent=home.agent, **fields)


def test_a_new_listing_leaves_the_pages_behind_a_cursor_warm(second, new, read):
    """A portal's new listings are on its first pages only."""
    new(-1).save()
    assert read(second).came_from == "hit"
    assert read("cached", page_size=2).rows[0]["title"] == "Home -1"


def test_new_listings_of_a_bulk_create_leave_the_pages_behind_a_cursor_warm(second, new, read):
    """All of them are newer."""
    Property.objects.bulk_create([new(-1), new(-2)])
    assert read(second).came_from == "hit"


@pytest.mark.parametrize("rows", [[1.5], [-1, 1.5], [1]], ids=["an older one", "a newer and an older one", "one at the cursor"])
def test_a_created_listing_that_is_not_the_newest_is_on_the_page_of_its_time(second, new, read, rows):
    """An import brings old listings. The oldest row of a write decides."""
    before = read(second).rows
    with transaction.atomic():
        for age in rows:
            new(0, created_at=NEW_YEAR - timedelta(minutes=age) - timedelta(microseconds=1)).save()

    assert read(second).came_from == STALE
    assert read(second).rows == ask(Client(), second.replace("cached", "optimized")).rows != before


def test_the_oldest_row_of_an_insert_decides(second, new, read):
    """A statement may create rows of any age."""
    Property.objects.bulk_create([new(-1), new(1.5), new(-2)])
    assert read(second).came_from == STALE


def test_a_time_that_is_not_known_counts_as_old(second, new, read):
    """The database computes the value of an expression."""
    Property.objects.bulk_create([new(0, created_at=Now())])
    assert read(second).came_from == STALE


def test_a_listing_that_becomes_older_is_on_the_page_of_its_time(second, new, read):
    """The column is written after the row was created as the newest, in the same transaction."""
    with transaction.atomic():
        row = new(-1)
        row.save()
        Property.objects.filter(pk=row.pk).update(created_at=NEW_YEAR - timedelta(minutes=1, seconds=30))
    assert read(second).rows[0]["id"] == row.pk


def test_the_first_page_and_the_pages_before_a_cursor_depend_on_each_new_listing(twenty_properties, new, warm, read):
    """They are not limited to rows until some time."""
    warm(page_size=2)
    before = "cached" + read("cached" + read("cached", page_size=2).json["next"]).json["previous"]
    warm(before)
    new(-1).save()
    assert read("cached", page_size=2).came_from == read(before).came_from == STALE


# The limits of a query


YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def compared(lookup, time=Value(YEAR), column="created_at"):
    """The condition of a page behind a cursor, or a similar one."""
    return lookup(RowValue(F(column) if isinstance(column, str) else column, F("id")), RowValue(time, Value(7)))


QUERIES = {
    "(created_at, id) < a position": (lambda found: found.filter(compared(LessThan)), YEAR),
    "(created_at, id) <= a position": (lambda found: found.filter(compared(LessThanOrEqual)), YEAR),
    "(created_at, id) > a position": (lambda found: found.filter(compared(GreaterThan)), None),
    "NOT (created_at, id) < a position": (lambda found: found.exclude(compared(LessThan)), None),
    "(created_at, id) < a position, OR": (lambda found: found.filter(Q(compared(LessThan)) | Q(price=1)), None),
    "(created_at, id) < other columns": (lambda found: found.filter(compared(LessThan, F("updated_at"))), None),
    "(created_at, id) < a text": (lambda found: found.filter(compared(LessThan, Value("2026-01-01 00:00:00"))), None),
    "a column without an index": (lambda found: found.filter(compared(LessThan, column="updated_at")), None),
    "an expression": (lambda found: found.filter(compared(LessThan, column=Coalesce(F("created_at"), F("updated_at")))), None),
    "created_at < a time": (lambda found: found.filter(created_at__lt=Value(YEAR)), None),
    "created_at <= a time": (lambda found: found.filter(created_at__lte=YEAR), None),
}
"""Query → the limit of its rows. A time alone limits nothing. A view may take it from the clock, and the next request would allow more."""


@pytest.mark.parametrize(("query", "limit"), QUERIES.values(), ids=QUERIES)
def test_an_entry_is_limited_by_a_condition_on_a_position_in_time(db, query, limit):
    """An entry without such a limit depends on each created row, as long as it lives."""
    with recorded() as recording:
        list(query(Property.objects.order_by("-created_at"))[:2])
    if limit is None:
        assert recording.limits == (set(), set())
        assert "housing_property:+" in recording.tags
    else:
        assert recording.limits == ({"housing_property:+"}, {("housing_property.created_at", microseconds(limit))})
        assert "housing_property:<" in recording.tags
        assert "housing_property:+" not in recording.tags


def test_a_time_without_a_time_zone_is_not_compared():
    """The database decides what it means."""
    assert microseconds(datetime(2026, 1, 1)) is microseconds("2026-01-01") is microseconds(None) is None  # noqa: DTZ001  # it has no time zone on purpose
    assert microseconds(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)) == -1_000_000
    assert tables()["housing_property"].times == {"created_at"}


# The limit in the journal


COLUMN = ("t", "c")


def entry(name, *limits):
    """Store an entry that is limited to rows until these times."""
    return journal.store(name, journal.lookup(name), {"t:<"}, '"e"', b"e", limits=({"t:+"}, {("t.c", limit) for limit in limits}))


def is_stale(name):
    """Whether the entry is stale."""
    return journal.lookup(name).__class__.__name__ == "Miss"


@pytest.mark.parametrize(("time", "stale"), [(9, True), (10, True), (11, False)])
def test_a_row_is_the_newest_if_it_is_newer_than_all_limits_of_entries(transactional_db, time, stale):
    """The latest limit counts, also after entries with earlier ones."""
    assert entry("later", 10) == entry("earlier", 5) == "stored"
    lease = journal.lease({"t:+"}, oldest={COLUMN: time})
    assert lease.tags == (("t:+", "t:<") if stale else ("t:+",))
    journal.close(lease)
    assert is_stale("later") is stale


@pytest.mark.parametrize("limit", [-5 * 10**15, 0, 1])
def test_a_limit_before_1970_counts_as_one_of_1970(transactional_db, limit):
    """The journal keeps it as a negative number, because positive ones are instants and leases, and are dropped after some time."""
    assert entry("entry", limit) == "stored"
    journal.lookup("another")
    journal.close(journal.lease({"t:+"}, oldest={COLUMN: limit}))
    assert is_stale("entry")


def test_a_row_that_is_created_while_a_response_is_read_counts_as_old(transactional_db):
    """The reader may not have seen it, and its limit was not known when the write began."""
    misses = [journal.lookup(name) for name in ("one", "two", "three")]
    fill = {"tags": {"t:<"}, "etag": '"e"', "body": b"e", "limits": ({"t:+"}, {("t.c", 10)})}
    lease = journal.lease({"t:+"}, oldest={COLUMN: 7})
    assert journal.store("one", misses[0], **fill) == "leased"
    journal.close(lease)
    assert journal.store("two", misses[1], **fill) == "raced"
    assert entry("three", 10) == "stored"
    assert not is_stale("three")


def test_an_entry_without_limits_is_not_concerned(transactional_db):
    """No entry is limited in this column, so the write has no tag more."""
    assert journal.lease({"t:+"}, oldest={COLUMN: 7}).tags == ("t:+",)


# Savepoints, and writes that do not come through the journal


def test_the_times_of_a_rolled_back_savepoint_are_dropped(second, new, read):
    """Only rows that are committed count."""
    with transaction.atomic():
        new(-1).save()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            new(5).save()
            raise ZeroDivisionError
    assert read(second).came_from == "hit"


def test_the_times_of_a_released_savepoint_count(second, new, read):
    """They are those of the transaction."""
    with transaction.atomic():
        with transaction.atomic():
            new(5).save()
        with transaction.atomic():
            new(-1).save()
    assert read(second).came_from == STALE


def test_a_row_that_is_created_without_redis_counts_as_old(second, new, redis_unreachable):
    """Nobody compares its time."""
    with redis_unreachable():
        new(-1).save()
    assert "housing_property:<" in outbox.read(connection)[0][1].split("\n")


@pytest.mark.only("real")
def test_a_row_that_another_program_creates_counts_as_old(second):
    """The trigger does not know the limits."""
    columns = ", ".join(field.column for field in Property._meta.concrete_fields if not (field.primary_key or field.unique))
    with connection.connection.cursor() as outside:  # the driver's own cursor sends no mark
        outside.execute(f"INSERT INTO housing_property ({columns}) SELECT {columns} FROM housing_property LIMIT 1")
    assert "housing_property:<" in {tag for _, tags in outbox.read(connection) for tag in tags.split("\n")}


# Races


@pytest.fixture
def stage(transactional_db, handler, second, new, no_timeouts):
    """A stage for T1, who creates an older listing, T2, who creates the newest, and a reader of the second page."""

    def read():
        client = Client()
        client.handler = handler
        return [row["id"] for row in ask(client, second).rows]

    kept = ids(Property.objects.all())

    def begin():
        Property.objects.exclude(pk__in=kept).delete()
        clear_the_cache()
        acts = (lambda: new(1.5).save(), lambda: new(-1).save(), read)
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


@pytest.mark.parametrize("second", ["all"], indirect=True)
@pytest.mark.parametrize(
    ("schedules", "bounds"),
    [
        pytest.param({"embedded": 38, "real": 54}, {"preemptions": 1}, id="one preemption"),
        pytest.param({"embedded": 1138, "real": 4570}, {}, id="all", marks=pytest.mark.races),
    ],
)
def test_a_created_row_is_on_the_page_of_its_time_in_every_order_of_steps(stage, pytestconfig, record_property, schedules, bounds):
    """The page may be stored before, while and after the older listing is created, and the newest one leaves it as it is."""
    with stage(**bounds) as orders:
        tried = sum(1 for _ in orders.every())
    record_property("counted", f"{tried:,} schedules")
    assert tried == schedules[pytestconfig.option.stack]
