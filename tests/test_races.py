"""Races of readers and writers. A response that a write raced is never stored, so no later reader gets it.

T1, T2, … are processes. Below each table are the steps that its specs take, as they were recorded.
"""

from functools import partial

import pytest
from django.core.cache import cache
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from housing.freshness.entries import ATTEMPTS
from housing.freshness.journal import Hit, journal
from housing.models import Property, PropertyImage

PAGE = cache.make_key("page")
SELECT = Property.objects.order_by("pk")


def an_open_iterator():
    """An iterator that has rows left."""
    rows = SELECT.iterator(chunk_size=2)
    next(rows)
    return rows


def an_open_cursor():
    """A cursor that has rows left."""
    cursor = connection.cursor()
    cursor.execute("SELECT id FROM housing_property")
    cursor.fetchone()
    return cursor


# A write races a read


def test_a_read_that_a_write_raced_is_repeated_before_it_is_stored(reprice, price, meanwhile):
    """The first attempt read the old price. Without a second one nothing would be stored, and the next request would query the database again."""
    with meanwhile(lambda: reprice(1)):
        assert price() == ("1.00", "fwd=miss; stored")
    assert price() == ("1.00", "hit")


def test_a_reader_that_is_raced_every_time_responds_and_stores_nothing(reprice, price, meanwhile):
    """After its last attempt the reader returns what it read last, which was current when it read it."""
    prices = iter(range(1, 9))
    with meanwhile(lambda: reprice(next(prices)), times=ATTEMPTS):
        assert price() == (f"{ATTEMPTS - 1}.00", "fwd=miss; detail=raced")
    assert price() == (f"{ATTEMPTS}.00", "fwd=miss; stored")


def test_a_write_that_rolls_back_does_not_race_a_read(home, price, meanwhile):
    """A transaction that rolls back sends nothing to Redis, so the reader need not read again."""

    def roll_back():
        with transaction.atomic():
            Property.objects.filter(pk=home.pk).update(price=1)
            transaction.set_rollback(True)

    with meanwhile(roll_back):
        assert price() == ("300000.00", "fwd=miss; stored")


def test_a_write_to_another_row_does_not_race_a_read(twenty_properties, read, meanwhile, queries):
    home, other = twenty_properties[:2]
    with queries.exactly(2, because="the property and its images are read once", threads=False), meanwhile(other.save):
        assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"


def test_a_detail_never_combines_two_states_of_the_database(home, read, meanwhile):
    """Both queries read one snapshot, even if the read is raced every time."""

    def rename_and_add_an_image():
        with transaction.atomic():
            mine = Property.objects.get(pk=home.pk)
            count = mine.images.count()
            mine.title = f"{count + 1} images"
            mine.save()
            PropertyImage.objects.create(property=mine, url="https://images.example.com/one-more.jpg")

    rename_and_add_an_image()
    with meanwhile(rename_and_add_an_image, times=ATTEMPTS):
        response = read(f"cached/{home.pk}")

    assert response.came_from == "fwd=miss; detail=raced"
    assert response.json["title"] == f"{len(response.json['images'])} images"


# A read runs between the steps of a write


def test_a_read_between_lease_and_commit_is_not_stored(reprice, price, around_commit):
    """The old price is still current when it is read, but the COMMIT may come before the store."""
    seen = []
    with around_commit(before=lambda: seen.append(price())):
        reprice(1)
    assert seen == [("300000.00", "fwd=miss; detail=leased")]
    assert price() == ("1.00", "fwd=miss; stored")


def test_a_read_between_commit_and_close_returns_the_new_price(reprice, price, around_commit):
    """The page was warm, but its entry is not trusted while a lease on its tags is open."""
    price()
    seen = []
    with around_commit(after=lambda: seen.extend([price(), price()])):
        reprice(1)
    assert seen == [("1.00", "fwd=miss; detail=leased")] * 2
    assert price() == ("1.00", "fwd=stale; stored")


def test_a_detail_between_lease_and_commit_is_not_stored(home, reprice, read, around_commit):
    """A detail reads in a transaction, unlike a list. If it were stored, the old price would stay in the cache after the COMMIT."""
    seen = []
    with around_commit(before=lambda: seen.append(read(f"cached/{home.pk}"))):
        reprice(1)
    assert [(response.json["price"], response.came_from) for response in seen] == [("300000.00", "fwd=miss; detail=leased")]
    assert read(f"cached/{home.pk}").json["price"] == "1.00"


@pytest.mark.only("embedded")
def test_a_transaction_after_a_detail_still_takes_the_write_lock_when_it_begins(home, read):
    """The detail reads in a transaction without the lock. The next transaction needs it from the start, or its first write could fail. (Embedded only:
    PostgreSQL has no such lock.)
    """
    read(f"cached/{home.pk}")
    with CaptureQueriesContext(connection) as statements, transaction.atomic():
        pass
    assert statements[0]["sql"] == "BEGIN IMMEDIATE"


def test_no_read_between_lease_and_close_is_stored(reprice, price, around_commit):
    """Redis does not know when the COMMIT happens, so any of these reads may have the old price."""
    seen = []

    def read_while_it_commits():
        seen.append(price())

    with around_commit(before=read_while_it_commits, after=read_while_it_commits):
        reprice(1)
    assert [came_from for _, came_from in seen] == ["fwd=miss; detail=leased"] * 2
    assert price() == ("1.00", "fwd=miss; stored")


def test_an_entry_that_a_write_does_not_touch_stays_warm_while_it_commits(twenty_properties, warm, read, around_commit):
    """A lease affects only the entries that have its tags."""
    home, other = twenty_properties[:2]
    warm(f"cached/{other.pk}")
    seen = []
    with around_commit(before=lambda: seen.append(read(f"cached/{other.pk}").came_from)):
        home.save()
    assert seen == ["hit"]


def test_a_close_does_not_end_the_lease_of_another_writer(home, reprice, price):
    """The other writer has not committed yet, so a page that is cached now could miss its change."""
    price()
    lease = journal.lease({f"housing_property:{home.pk}"})
    reprice(2)
    assert price() == ("2.00", "fwd=miss; detail=leased")
    journal.close(lease)
    assert price() == ("2.00", "fwd=stale; stored")


def test_a_close_ends_only_one_of_two_leases_on_the_same_tags():
    """Every lease has an ID, so the other one stays open."""
    first, second = journal.lease({"t"}), journal.lease({"t"})
    journal.close(second)
    assert list(journal.leases()) == [first]


def test_a_slow_reader_does_not_overwrite_a_newer_entry(home, price):
    """The slow reader began first, so its response may be the older one."""
    slow = journal.lookup(PAGE)
    fast = journal.lookup(PAGE)
    assert journal.store(PAGE, fast, {"t"}, '"new"', b"new") == "stored"
    assert journal.store(PAGE, slow, {"t"}, '"old"', b"old") == "raced"
    assert journal.lookup(PAGE) == Hit('"new"', b"new")


# The connection reads an older state


@pytest.mark.only("embedded")
@pytest.mark.parametrize("page", ["cached", "cached/{}"], ids=["a list", "a detail"])
@pytest.mark.parametrize("pin", [an_open_iterator, an_open_cursor], ids=["an iterator", "a cursor"])
def test_a_read_beside_an_unfinished_select_is_not_stored(home, read, reprice, elsewhere, pin, page):
    """On SQLite every SELECT of a connection sees the state of its first unfinished one, which is older than `read_at`. (Embedded only: psycopg fetches every
    result completely.)
    """
    page = page.format(home.pk)
    for price in (1, 2):  # for the connection's first read and for a later one
        unfinished = pin()
        elsewhere(partial(reprice, price))
        read(page)
        unfinished.close()
        assert read(page).body == read(page.replace("cached", "optimized")).body


@pytest.mark.only("embedded")
@pytest.mark.parametrize(("begin", "end"), [("BEGIN", "COMMIT"), ("SAVEPOINT mine", "RELEASE mine")])
@pytest.mark.parametrize("page", ["cached", "cached/{}"], ids=["a list", "a detail"])
def test_a_read_inside_a_transaction_that_raw_sql_began_is_not_stored(home, read, reprice, elsewhere, begin, end, page):
    """Django believes that the connection is in autocommit mode, but the driver knows better. (Embedded only: PostgreSQL allows no SAVEPOINT outside a
    transaction.)
    """
    page = page.format(home.pk)
    with connection.cursor() as cursor:
        cursor.execute(begin)
        try:
            assert SELECT.count() == 20
            elsewhere(lambda: reprice(1))
            read(page)
        finally:
            cursor.execute(end)
    assert read(page).body == read(page.replace("cached", "optimized")).body
