"""The cost of reads and writes. A page of twenty properties shows sixty related rows."""

import os
from collections import Counter

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection

from housing.freshness.copies import copies
from housing.freshness.journal import journal
from tests.fixtures.cache import clear_the_cache, entries
from tests.fixtures.rows import make_images, make_properties
from tests.instruments import bytes_of


def test_a_naive_page_costs_61_queries(twenty_properties, read_the_list, queries):
    """This is the N+1 problem, and the baseline for the other two variants."""
    with queries.exactly(61, because="1 page + 20 × (location, agent, office)"):
        assert len(read_the_list("naive")) == 20


def test_an_optimized_page_costs_one_query(twenty_properties, read_the_list, queries):
    """`select_related` solves the N+1 problem, and the cache is not involved."""
    with queries.exactly(1, because="one SELECT joins location, agent and office"):
        assert len(read_the_list("optimized")) == 20


def test_a_cold_read_costs_one_query(twenty_properties, read_the_list, queries):
    """Caching does not make a miss more expensive."""
    with queries.exactly(1, because="one SELECT joins location, agent and office"):
        assert len(read_the_list()) == 20


def test_a_warm_read_costs_no_query(twenty_properties, read, queries):
    """An empty response would be cheap, too, so the spec compares the bytes of a full page."""
    cold = read("cached")

    with queries.exactly(0, because="the page is cached, and nothing was written"):
        warm = read("cached")

    assert warm.body == cold.body
    assert len(warm.rows) == 20


def test_a_naive_detail_costs_five_queries(home, read, queries):
    with queries.exactly(5, because="one each for property, location, agent, office and images"):
        assert len(read(f"naive/{home.pk}").json["images"]) == 2


def test_an_optimized_detail_costs_two_queries(home, read, queries):
    with queries.exactly(2, because="one SELECT for the property with its joins, one for its images"):
        assert len(read(f"optimized/{home.pk}").json["images"]) == 2


def test_a_cached_detail_costs_two_queries_cold_and_none_warm(home, read, queries):
    with queries.exactly(2, because="one SELECT for the property with its joins, one for its images"):
        cold = read(f"cached/{home.pk}")
    with queries.exactly(0, because="the property is cached, and nothing was written"):
        warm = read(f"cached/{home.pk}")

    assert warm.body == cold.body
    assert len(warm.json["images"]) == 2


@pytest.mark.parametrize("page_size", [1, 20, 100])
def test_a_larger_naive_page_costs_three_more_queries_for_each_row(transactional_db, read_the_list, queries, metric, page_size):
    """With one row, an N+1 goes unnoticed."""
    make_properties(page_size + 1)

    with queries.exactly(1 + 3 * page_size, because="1 page + one query per row for each of location, agent and office") as sql:
        assert len(read_the_list("naive", page_size=page_size)) == page_size
        metric("queries", way="naive", page_size=page_size, queries=len(sql), budget=1 + 3 * page_size)


@pytest.mark.parametrize("page_size", [1, 20, 100])
@pytest.mark.parametrize(("variant", "because"), [("optimized", "joins do not grow with the page"), ("cached", "a fill is one SELECT with the same joins")])
def test_a_larger_optimized_or_cold_page_costs_no_more_queries(transactional_db, read_the_list, queries, metric, variant, because, page_size):
    """An N+1 is invisible with one row, and obvious with a hundred."""
    make_properties(page_size + 1)

    with queries.exactly(1, because=because) as sql:
        assert len(read_the_list(variant, page_size=page_size)) == page_size
        metric("queries", way={"cached": "cold"}.get(variant, variant), page_size=page_size, queries=len(sql), budget=1)


@pytest.mark.parametrize("page_size", [1, 20, 100])
def test_a_larger_warm_page_costs_no_query_either(transactional_db, warm, read_the_list, queries, metric, page_size):
    make_properties(page_size)
    warm(page_size=page_size)

    with queries.exactly(0, because="a page of any size is one entry") as sql:
        assert len(read_the_list(page_size=page_size)) == page_size
        metric("queries", way="warm", page_size=page_size, queries=len(sql), budget=0)


@pytest.mark.parametrize(
    ("variant", "counted", "because"),
    [
        ("naive", 61, "1 page + 20 × (location, agent, office), again"),
        ("optimized", 1, "one SELECT joins location, agent and office, again"),
        ("cached", 0, "the page is cached, and nothing was written"),
    ],
    ids=["naive", "optimized", "cached"],
)
def test_a_second_read_is_free_only_with_the_cached_variant(twenty_properties, read_the_list, queries, metric, variant, counted, because):
    read_the_list(variant)

    with queries.exactly(counted, because=because) as sql:
        assert len(read_the_list(variant)) == 20
    metric("second read", variant=variant, queries=len(sql))


@pytest.mark.parametrize("images", [0, 1, 9])
def test_more_images_cost_no_more_queries(home, read, queries, images):
    """`prefetch_related` loads the images of any number of rows together."""
    home.images.all().delete()
    for _ in range(images):
        make_images(home)
    clear_the_cache()

    with queries.exactly(2, because="one SELECT for the property with its joins, one for all its images"):
        assert len(read(f"cached/{home.pk}").json["images"]) == 2 * images


@pytest.mark.parametrize(
    "parameters",
    [
        {"city": "Springfield"},
        {"status": "available", "property_type": "house"},
        {"min_price": "1", "max_price": "999999", "min_bedrooms": "1"},
        {"search": "home"},
        {"ordering": "price"},
        {"ordering": "-price", "page_size": "20"},
    ],
    ids="&".join,
)
def test_filters_and_orderings_cost_no_more_queries(twenty_properties, read_the_list, queries, parameters):
    with queries.exactly(1, because="a filter is a condition of the one SELECT"):
        assert len(read_the_list(**parameters)) == 20


def test_a_page_filtered_by_agent_or_office_costs_one_query(home, read_the_list, queries):
    """A filter by foreign key does not first check whether the agent or office exists."""
    with queries.exactly(2, because="one page by agent, one by office"):
        assert read_the_list("optimized", agent=home.agent_id) == read_the_list("optimized", office=home.agent.office_id)


@pytest.mark.parametrize("page_size", [1, 20])
def test_a_cold_page_fetches_its_rows_and_one_more(transactional_db, read_the_list, queries, page_size):
    """The extra row shows whether there is a next page, and is not in the response."""
    make_properties(25)

    with queries.exactly(1, because="one SELECT joins location, agent and office") as sql:
        assert len(read_the_list(page_size=page_size)) == page_size
    assert sql.rows == page_size + 1


def test_a_deep_page_costs_the_same_as_the_first(twenty_properties, read, queries):
    """There is no COUNT, and no OFFSET, which would read all earlier rows."""
    page = read("optimized", page_size=5)
    for _ in range(3):
        with queries.exactly(1, because="a cursor is a condition of the one SELECT") as sql:
            page = read("optimized" + page.json["next"])
        assert len(page.rows) == 5
        assert "COUNT" not in sql[0]
        assert "OFFSET" not in sql[0]


@pytest.mark.only("embedded")
@pytest.mark.parametrize(("ordering", "index"), [("created_at", "property_newest"), ("-price", "property_price")])
def test_a_page_is_read_in_the_order_of_an_index(twenty_properties, read, ordering, index):
    """Otherwise each page would sort the whole table. (PostgreSQL does not use an index for twenty rows.)"""
    link = read("optimized", ordering=ordering, page_size=5).json["next"]
    with CaptureQueriesContext(connection) as captured:
        read(f"optimized{link}")

    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + captured[0]["sql"])
        plan = " / ".join(row[-1] for row in cursor.fetchall())
    assert index in plan
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


def test_a_hit_costs_one_round_trip(twenty_properties, warm, read, redis_commands):
    """The entry and its freshness are read together. A second round trip would double the time, and a write could happen between the two."""
    warm()

    with redis_commands.exactly(1, because="one script reads the entry and the journal"):
        assert read("cached").came_from == "hit"


def test_a_process_receives_each_body_once_and_a_304_needs_none(twenty_properties, warm, read, redis_commands):
    """Besides the body, a hit sends only the script's hash, two keys and its arguments, and receives only the word `hit` and the ETag.

    Of its last hits, a process has copies. Redis still decides at each hit whether the entry is fresh, and confirms the ETag.
    """
    body = warm()
    etag = read("cached").headers["ETag"]
    copies.forget()

    with redis_commands.exactly(1, because="one script reads the entry and the journal") as hit:
        assert read("cached").body == body
    assert hit.received == bytes_of([b"hit", etag.encode(), body])
    assert hit.sent < 250

    with redis_commands.exactly(1, because="one script compares the ETag of the copy") as again:
        assert read("cached").body == body
    assert again.received == bytes_of([b"hit", etag.encode()])
    assert again.sent < 250 + len(f"$34\r\n{etag}\r\n")

    with redis_commands.exactly(1, because="the script compares the ETag") as not_modified:
        assert read("cached", headers={"If-None-Match": etag}).status == 304
    assert not_modified.received == bytes_of([b"hit", etag.encode()])


def test_a_304_costs_one_round_trip_and_no_query(twenty_properties, read, queries, redis_commands):
    """A revalidation costs the same as a hit, and sends no body."""
    etag = read("cached").headers["ETag"]

    with queries.exactly(0, because="the page is cached"), redis_commands.exactly(1, because="the script compares the ETag"):
        assert read("cached", headers={"If-None-Match": etag}).status == 304


def test_a_miss_costs_two_round_trips(twenty_properties, read, redis_commands):
    read("optimized")

    with redis_commands.exactly(2, because="one script looks up the entry and returns the instant, one stores the response"):
        assert read("cached").came_from == "fwd=miss; stored"


def test_a_write_costs_two_round_trips_whatever_is_cached(twenty_properties, warm, redis_commands):
    """A write deletes no entries, so it does not have to find them."""
    for size in range(1, 20):
        warm(page_size=size)

    with redis_commands.exactly(2, because="one opens the lease before COMMIT, one closes it afterwards"):
        twenty_properties[0].save()


@pytest.mark.only("real")
@pytest.mark.parametrize("first", [0x00, 0x10], ids=["a close that drops old ones", "any other close"])
def test_a_write_costs_redis_the_same_commands_with_10_or_100_000_cached_pages(home, warm, own_redis, monkeypatch, first):
    """The server counts its commands, including those in scripts. (fakeredis does not.) One close of sixteen drops old ones, by the id of its lease."""
    random_bytes = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: bytes([first]) + random_bytes(size - 1))
    own_redis()
    warm()
    client, [entry] = get_redis_connection("default"), entries()

    def cost():
        before = commands_of(client)
        home.save()
        return commands_of(client) - before

    def fill(numbers):
        with client.pipeline(transaction=False) as pipeline:
            for number in numbers:
                pipeline.copy(entry, f"{entry.decode()}:{number}")
            pipeline.execute()

    fill(range(1, 10))
    at_ten = cost()
    fill(range(10, 100_000))
    assert cost() == at_ten


def commands_of(client):
    """The number of calls of each command, without INFO itself."""
    return Counter({name: stats["calls"] for name, stats in client.info("commandstats").items() if name != "cmdstat_info"})


def test_a_save_costs_one_query_and_on_sqlite_two(home, queries):
    """PostgreSQL returns the old values with the UPDATE. SQLite cannot, so they are read first, under the write lock."""
    statements, because = {"postgresql": (1, "one UPDATE"), "sqlite": (2, "one SELECT of the old values, and one UPDATE")}[connection.vendor]
    with queries.exactly(statements, because=because):
        home.save()
    image = home.images.first()
    with queries.exactly(statements, because=because):
        image.save()


def test_many_writes_in_one_transaction_cost_two_round_trips(twenty_properties, redis_commands):
    with redis_commands.exactly(2, because="a transaction has one lease, whatever the number of rows"), transaction.atomic():
        for home in twenty_properties:
            home.save()
            home.agent.save()


def test_a_read_under_a_lease_costs_the_same_as_a_miss(home, read, queries, redis_commands):
    """The reader neither waits for the writer nor tries again. Its response is fresh, but not cached."""
    journal.lease({f"housing_property:{home.pk}"})

    with (
        queries.exactly(1, because="the page is read once"),
        redis_commands.exactly(2, because="one script looks up the entry, one returns why the response is not stored"),
    ):
        assert read("cached").came_from == "fwd=miss; detail=leased"


def test_a_rollback_costs_no_round_trip(home, redis_commands):
    """Redis is not involved before COMMIT, so there is nothing to undo."""
    with redis_commands.exactly(0, because="a lease is opened only at COMMIT"), transaction.atomic():
        home.save()
        transaction.set_rollback(True)


def test_every_variant_returns_its_number_of_queries(twenty_properties, read):
    """A browser's network panel shows the Server-Timing header."""
    costs = [read(variant).headers["Server-Timing"].partition(";dur")[0] for variant in ("naive", "optimized", "cached", "cached")]

    assert costs == ['sql;desc="61 queries"', 'sql;desc="1 query"', 'sql;desc="1 query"', 'sql;desc="0 queries"']


def test_a_snapshot_does_not_count_as_a_query(home, read):
    """Only the two SELECTs of the detail are counted, and not the BEGIN of its snapshot."""
    assert read(f"cached/{home.pk}").headers["Server-Timing"].startswith('sql;desc="2 queries"')
