"""Hits and misses. A response is cached for every client that sends the same parameters, and never returned for others."""

import datetime
import os
import re
from contextlib import ExitStack

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone
from django_redis import get_redis_connection
from redis import exceptions as refusals

from housing.freshness.copies import OVERHEAD, copies
from housing.freshness.entries import etag_of
from housing.freshness.journal import Hit, journal
from housing.freshness.keys import LONG, entry_key
from housing.freshness.settings import conf
from housing.models import Property
from tests.fixtures.cache import clear_the_cache, entries
from tests.fixtures.responses import VARIANTS
from tests.fixtures.rows import make_images

# Cached responses


def test_a_hit_returns_the_bytes_in_redis(twenty_properties, warm, read, tamper_with_the_entry):
    """A count of zero queries could be a broken counter. A body that exists only in Redis cannot come from the database."""
    warm()
    body = tamper_with_the_entry()

    assert read("cached").body == body


def test_a_copy_of_a_body_is_used_only_if_redis_confirms_its_etag(home, warm, read, reprice):
    """Another process may have stored another body under the same key."""
    old = warm()
    reprice(1)
    new = warm()
    assert old != new

    [key] = copies.newer
    copies.keep(key, Hit(etag_of(old), old))

    for _ in range(2):
        assert (read("cached").body, read("cached").came_from) == (new, "hit")
    assert read("cached", headers={"If-None-Match": etag_of(new)}).status == 304
    assert read("cached", headers={"If-None-Match": "*"}).status == 304
    assert read("cached", headers={"If-None-Match": etag_of(old)}).body == new


@pytest.mark.parametrize(("most", "kept"), [(0, 0), (4 * (10_000 + OVERHEAD), 4)])
def test_copies_are_bounded_in_bytes(settings, most, kept):
    """A process that serves many pages keeps only those of its last hits. FRESHNESS_COPIES=0 keeps none."""
    settings.FRESHNESS_COPIES = most

    for number in range(9):
        copies.keep(f"page {number}", Hit('"an etag"', b"x" * 10_000))
        copies.get("page 0")

    found = [number for number in range(9) if copies.get(f"page {number}")]
    assert len(copies.newer | copies.older) <= kept
    assert not kept or {0, 8} <= set(found)


def test_a_copy_that_is_kept_again_is_counted_once(settings):
    """Otherwise the copies of a page that changes often would displace those of all others."""
    settings.FRESHNESS_COPIES = 4 * OVERHEAD

    for key in ("a", "a", "b"):
        copies.keep(key, Hit('"an etag"', b""))

    assert set(copies.newer) == {"a", "b"}


NOT_PROMISED = {
    "A body that somebody replaces in Redis without its ETag is in the next hit": "A process with a copy of it asks only for the ETag, which is a "
    "hash of the bytes. `manage.py cache verify` finds such an entry.",
}


def test_a_response_shows_whether_it_was_a_hit_a_miss_or_stale(home, read):
    """The Cache-Status header (RFC 9211) shows in any browser or log what the cache did."""
    assert read("cached").came_from == "fwd=miss; stored"
    assert read("cached").came_from == "hit"
    home.save()
    assert read("cached").came_from == "fwd=stale; stored"
    assert read("cached").came_from == "hit"


def test_an_empty_page_is_cached_too(transactional_db, warm, read, queries):
    """Otherwise every search without results would query the database each time."""
    assert warm(city="Nowhere") == b'{"next":null,"previous":null,"results":[]}'

    with queries.exactly(0, because="the empty page is cached"):
        read("cached", city="Nowhere")


def test_a_404_is_never_cached(transactional_db, read, queries):
    """There is no limit to unknown ids, and each would be an entry."""
    for _ in range(2):
        with queries.exactly(1, because="each read looks for the property"):
            missing = read("cached/1")
        assert (missing.status, missing.came_from) == (404, None)
    assert entries() == []


def test_a_refused_request_is_never_cached(transactional_db, read):
    """There is no limit to invalid parameters, and each would be an entry."""
    refused = read("cached", min_price="abc")

    assert (refused.status, refused.came_from) == (400, None)
    assert entries() == []


def test_an_entry_holds_bytes_and_no_pickle(twenty_properties, warm, read):
    """With a pickle, anyone who can write to Redis could run code in the service. The ETag is 128 bits of the body's SHA-256."""
    warm()
    [entry] = entries()
    stored = get_redis_connection("default").hgetall(entry)

    assert stored[b"body"] == read("optimized").body
    assert re.fullmatch(rb'"[0-9a-f]{32}"', stored[b"etag"])
    assert set(stored) == {b"epoch", b"read_at", b"first", b"tags", b"etag", b"body", b"cost", b"until", b"database", b"address"}


def test_an_entry_expires_after_its_ttl(twenty_properties, warm, settings):
    """Entries that are no longer read must expire by themselves."""
    warm()
    [entry] = entries()

    assert conf.TTL - 60 < get_redis_connection("default").ttl(entry) <= conf.TTL


def test_a_hit_needs_no_database(twenty_properties, warm, read):
    """A hit does not even open a connection, so warm pages are served while the database is unreachable."""
    warm()
    connection.close()

    assert read("cached").came_from == "hit"
    assert connection.connection is None


def test_the_first_read_of_a_thread_may_be_a_detail(home, read, elsewhere):
    """The thread has no open database connection yet."""
    assert elsewhere(lambda: read(f"cached/{home.pk}")).came_from == "fwd=miss; stored"


# Queries that share an entry


@pytest.mark.parametrize(
    ("query", "equivalent"),
    [
        ("", "unknown=1&utm_source=mail"),
        ("", "city=&status=&min_price=&cursor=&page_size=&ordering="),
        ("", "ordering=-created_at&page_size=20"),
        ("min_price=100000", "min_price=100000.00"),
        ("min_price=100000", "min_price=1e5"),
        ("min_price=0", "min_price=-0"),
        ("min_price=0", "min_price=0e1073741823"),
        ("agent=7", "agent=007"),
        ("city=Springfield&status=sold", "status=sold&city=Springfield"),
        ("city=Springfield", "city=%20Springfield%20"),
    ],
)
def test_equivalent_query_strings_share_an_entry(twenty_properties, warm, read, query, equivalent):
    """Otherwise a tracking parameter or another order of the parameters would cost a miss."""
    body = warm(f"cached?{query}")

    response = read(f"cached?{equivalent}")

    assert (response.came_from, response.body) == ("hit", body)


# Separate entries


@pytest.mark.parametrize(
    "query",
    [
        "city=Springfield",
        "city=springfield",
        "status=available",
        "property_type=house",
        "agent=1",
        "office=1",
        "min_price=1",
        "max_price=1",
        "min_bedrooms=1",
        "search=home",
        "ordering=price",
        "ordering=-price",
        "ordering=created_at",
        "page_size=19",
    ],
)
def test_every_parameter_has_its_own_entries(twenty_properties, warm, read, query):
    """Values that select or order other rows must never share an entry."""
    warm()

    response = read(f"cached?{query}")

    assert response.came_from == "fwd=miss; stored"
    assert response.body == read(f"optimized?{query}").body


def test_every_cursor_has_its_own_entry(twenty_properties, warm, read):
    """Otherwise a client that follows `next` would get the same page again."""
    second = read("cached", page_size=5).json["next"]
    third = read(f"cached{second}").json["next"]

    assert read(f"cached{third}").came_from == "fwd=miss; stored"
    assert read(f"cached{third}").body == read(f"optimized{third}").body


def test_two_long_query_strings_never_share_an_entry(transactional_db, warm, read):
    """A long query string is hashed, and the hash must cover all of it."""
    warm(search="x" * (LONG - 1) + "a")

    assert read("cached", search="x" * (LONG - 1) + "b").came_from == "fwd=miss; stored"


def test_a_list_and_a_detail_never_share_an_entry(home, warm, read):
    """Both could have the same parameters, such as `7`."""
    assert entry_key("list", "7", "a database") != entry_key("detail", "7", "a database")
    warm()

    assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"
    assert read(f"cached/{home.pk}").json["id"] == home.pk


def test_every_property_has_its_own_entry(twenty_properties, warm, read):
    """Otherwise a visitor would see the price and the images of another property."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")

    assert read(f"cached/{second.pk}").json["id"] == second.pk


# One entry for all clients


def test_every_user_gets_the_same_bytes(twenty_properties, warm, read, client, queries):
    """The views read no session and authenticate no user, so the bytes cannot depend on a login."""
    body = warm()
    client.force_login(User.objects.create_user("editor", is_staff=True))

    with queries.exactly(0, because="no session and no user is looked up"):
        response = read("cached")

    assert (response.came_from, response.body) == ("hit", body)
    assert "Cookie" not in response.headers["Vary"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_response_does_not_depend_on_the_host(twenty_properties, read, settings, host):
    """Otherwise the first client's Host header would end up in everyone's links."""
    settings.ALLOWED_HOSTS = ["testserver", host]
    body = read("cached?page_size=5", headers={"Host": host}).body

    response = read("cached?page_size=5")

    assert (response.came_from, response.body) == ("hit", body)
    assert host.encode() not in body


def test_the_response_does_not_depend_on_the_active_time_zone(twenty_properties, read):
    """A middleware may activate the user's time zone. Otherwise the first reader's zone would be in everyone's response."""
    with timezone.override(datetime.timezone(datetime.timedelta(hours=9))):
        filled = read("cached").body

    assert filled == read("cached").body
    assert read("cached").rows[0]["created_at"] == "2026-01-01T00:00:00Z"


def test_a_media_type_with_parameters_bypasses_the_cache(twenty_properties, warm, read):
    """With `indent=4` the same rows are other bytes, which must neither be cached nor be answered from the cache."""
    body = warm()
    indented = read("cached", headers={"Accept": "application/json; indent=4"})

    assert indented.came_from == "fwd=bypass; detail=accept"
    assert indented.body.startswith(b"{\n    ")
    assert indented.headers["Cache-Control"] == "no-cache"
    assert read("cached").body == body


@pytest.mark.parametrize(
    "accept",
    [
        *("*/*", "application/json", "application/json, text/plain, */*", "application/*", "text/html;q=0.5, application/json", ""),
        *(
            "application/json;q=0.9",
            "Application/JSON",
            "application/json; charset=utf-8",
            'APPLICATION/json;charset="UTF-8";q=0.1',
            "*/*;q=0.1, text/html;q=0",
        ),
    ],
)
def test_all_requests_that_accept_plain_json_share_an_entry(twenty_properties, warm, read, accept):
    """Browsers, curl and HTTP libraries send different Accept headers for the same bytes."""
    body = warm()

    response = read("cached", headers={"Accept": accept})

    assert (response.came_from, response.body) == ("hit", body)
    assert "Accept" in response.headers["Vary"]


def test_a_browser_gets_a_page_that_shows_the_cached_bytes(twenty_properties, warm, read, queries):
    """The Debug Toolbar needs an HTML page to show 1 query, and then 0."""
    warm()

    with queries.exactly(0, because="the page shows the cached bytes"):
        page = read("cached", headers={"Accept": "text/html"})

    assert page.came_from == "hit"
    assert page.headers["Content-Type"].startswith("text/html")
    assert "ETag" not in page.headers
    assert b"Home 19" in page.body


@pytest.mark.parametrize("accept", ["image/png", "*/*;q=0", "application/json;q=0", "application/json;q=0.0, text/html;q=0"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_unsupported_format_returns_406(twenty_properties, warm, read, variant, accept):
    """A warm entry must not bypass content negotiation. The weight 0 means that the client does not accept a format."""
    warm()

    assert read(variant, headers={"Accept": accept}).status == 406


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [("text/html, application/json;q=0.9", "text/html"), ("application/json;q=0, */*", "text/html"), ("text/*;q=0.3, application/json;q=0.2", "text/html")],
)
def test_the_format_with_the_greatest_weight_is_chosen(twenty_properties, read, accept, chosen):
    """Browsers send such weights."""
    for variant in VARIANTS:
        assert read(variant, headers={"Accept": accept}).headers["Content-Type"].partition(";")[0] == chosen


def test_the_three_variants_return_the_same_bytes(twenty_properties, read):
    """A comparison of their costs is fair only if their responses are equal."""
    for target in ("", "?city=Springfield", "?ordering=price&page_size=7", f"/{twenty_properties[0].pk}"):
        assert read(f"naive{target}").body == read(f"optimized{target}").body == read(f"cached{target}").body == read(f"cached{target}").body


# Conditional requests


def test_a_known_etag_returns_304_without_a_body(twenty_properties, read):
    """The browser keeps its copy, and the cache still checks that it is fresh."""
    first = read("cached")

    again = read("cached", headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status, again.body, again.came_from) == (304, b"", "hit")
    assert {name: again.headers[name] for name in ("ETag", "Cache-Control", "Vary")} == {
        name: first.headers[name] for name in ("ETag", "Cache-Control", "Vary")
    }


@pytest.mark.parametrize("known", ["W/{}", '"another", {}', "*"])
def test_etags_are_compared_as_in_the_http_standard(twenty_properties, read, known):
    """If-None-Match may have a weak ETag, a list, or `*` (RFC 9110, section 13.1.2)."""
    etag = read("cached").headers["ETag"]

    assert read("cached", headers={"If-None-Match": known.format(etag)}).status == 304
    assert read("cached", headers={"If-None-Match": '"another"'}).status == 200


def test_a_request_may_list_thousands_of_etags(twenty_properties, warm, read):
    """The script must accept every list that fits into a header."""
    warm()

    assert read("cached", headers={"If-None-Match": ", ".join(f'"{number}"' for number in range(9_000))}).status == 200


@pytest.mark.parametrize(("wanted", "status"), [("{}", 200), ('"another", {}', 200), ("*", 200), ('"another"', 412), ("W/{}", 412)])
def test_if_match_is_compared_as_in_the_http_standard(twenty_properties, read, wanted, status):
    """A client that continues with one version gets 412 if there is another one. A weak ETag never matches (RFC 9110, section 13.1.1)."""
    etag = read("cached").headers["ETag"]

    response = read("cached", headers={"If-Match": wanted.format(etag)})

    assert (response.status, response.headers["ETag"], response.came_from) == (status, etag, "hit")
    assert read("cached", headers={"If-Match": wanted.format(etag), "If-None-Match": etag}).status == (304 if status == 200 else 412)


@pytest.mark.parametrize("known", ["{}", "*"])
def test_a_cold_read_returns_304_too(twenty_properties, read, known):
    """The client's ETag is compared with the fresh response, whether it comes from the cache or the database."""
    etag = read("cached").headers["ETag"]
    clear_the_cache()

    again = read("cached", headers={"If-None-Match": known.format(etag)})
    assert (again.status, again.came_from) == (304, "fwd=miss; stored")


def test_a_changed_page_has_another_etag(home, read):
    """Otherwise a browser would keep the old page."""
    etag = read("cached").headers["ETag"]

    home.title = "Another"
    home.save()

    assert read("cached", headers={"If-None-Match": etag}).status == 200


def test_a_browser_must_revalidate_each_time(twenty_properties, read):
    """With `max-age`, a browser would show the old price after an invalidation on the server."""
    assert read("cached").headers["Cache-Control"] == "no-cache"


# Reads that bypass the cache


def test_a_read_inside_a_transaction_is_not_cached(home, read):
    """A transaction's snapshot may be older than a committed write, and may contain its own uncommitted writes."""
    with transaction.atomic():
        Property.objects.filter(pk=home.pk).update(price=1)
        inside = read("cached")
        assert inside.rows[0]["price"] == "1.00"
        transaction.set_rollback(True)

    assert inside.came_from == "fwd=bypass; detail=transaction"
    assert entries() == []
    assert read("cached").rows[0]["price"] == "300000.00"


def test_a_detail_inside_a_transaction_sees_that_transaction(home, read):
    """The detail runs two SELECTs, and both must see the uncommitted writes."""
    with transaction.atomic():
        make_images(home)
        assert len(read(f"cached/{home.pk}").json["images"]) == 4


def test_a_read_inside_a_transaction_does_not_use_the_cache(home, warm, read, redis_commands):
    warm()
    with transaction.atomic(), redis_commands.exactly(0, because="a transaction must see its own state, which the cache does not have"):
        assert read("cached").came_from == "fwd=bypass; detail=transaction"


def test_the_cached_variants_run_outside_atomic_requests(home, read, monkeypatch):
    """Otherwise every request would be inside a transaction, and nothing would be cached."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert read("cached").came_from == "fwd=miss; stored"
    assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"


def unreachable():
    """The log message about an unreachable Redis, with its address and the error."""
    redis = get_redis_connection("default").connection_pool.connection_kwargs
    return f"Redis at {redis['host']}:{redis['port']} is unreachable (connection refused)."


def test_without_redis_reads_are_answered_from_the_database(twenty_properties, read, redis_unreachable, queries, caplog):
    """Redis is a cache for reads, so its failure must cost only time. One log line reports it."""
    body = read("optimized").body

    with redis_unreachable(), queries.exactly(1, because="the read falls back to one SELECT, as in a miss"):
        response = read("cached")

    assert (response.came_from, response.body) == ("fwd=bypass; detail=unreachable", body)
    assert caplog.messages == [f"Served from the database: {unreachable()}"]


@pytest.mark.parametrize(
    "refusal",
    [
        refusals.TimeoutError("Timeout reading from socket"),
        refusals.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        refusals.ReadOnlyError("You can't write against a read only replica."),
        refusals.NoScriptError("No matching script."),
        refusals.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist to disk."),
        refusals.MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
def test_a_redis_that_returns_errors_is_treated_as_unreachable(home, read, monkeypatch, refusal):
    """A Redis that is too slow, full, demoted to a replica, or without scripts is up, but unusable."""

    def refuse(*_, **__):
        raise refusal

    pool = get_redis_connection("default").connection_pool
    with ExitStack() as afterwards, monkeypatch.context() as patched:
        afterwards.callback(pool.disconnect)  # drops the connections with unread replies
        patched.setattr(pool.connection_class, "read_response", refuse)
        assert read("cached").came_from == "fwd=bypass; detail=unreachable"
        home.save()
        assert connection.get_autocommit()  # no transaction is left open


def test_a_response_survives_the_loss_of_redis_before_its_store(twenty_properties, read, redis_unreachable, meanwhile, queries, caplog):
    """The response is complete already, so the database is not read again."""
    read("optimized")
    with (
        ExitStack() as stack,
        meanwhile(lambda: stack.enter_context(redis_unreachable())),
        queries.exactly(1, because="the rows were read already"),
    ):
        response = read("cached")

    assert response.came_from == "fwd=bypass; detail=unreachable"
    assert len(response.rows) == 20
    assert caplog.messages == [f"Served, but not stored: {unreachable()}"]


# Thread-local connections to Redis


def test_a_lookup_on_a_closed_connection_is_retried_once(home, warm, read, monkeypatch):
    """A server closes idle connections, and all of them when it restarts."""
    warm()
    connections, failures = get_redis_connection("default").connection_pool.connection_class, iter([refusals.ConnectionError("Connection closed by server.")])
    response = connections.read_response

    def fail_once(self, *args, **options):
        for failure in failures:
            self.disconnect()
            raise failure
        return response(self, *args, **options)

    monkeypatch.setattr(connections, "read_response", fail_once)
    assert read("cached").came_from == "hit"
    assert list(failures) == []


def test_an_interrupted_lookup_never_leaves_its_reply_to_the_next_one(twenty_properties, warm, read, monkeypatch):
    """A worker's time limit can interrupt it at any point. The next read must not get the unread reply, which is another page."""
    warm(page_size=1)
    warm(page_size=2)
    connections = get_redis_connection("default").connection_pool.connection_class

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(connections, "read_response", interrupt)
        read("cached", page_size=1)

    response = read("cached", page_size=2)
    assert (response.came_from, len(response.rows)) == ("hit", 2)


def test_a_forked_process_opens_its_own_connection(home, warm, read, monkeypatch):
    """If two processes shared a connection, each would read replies to the other."""
    warm()
    shared = journal._line.connection
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 1)
        assert read("cached").came_from == "hit"
        assert journal._line.connection is not shared


def test_a_thread_that_changes_pools_returns_its_connection_to_the_first(home, settings):
    """A pool closes only the connections that it holds, so one that is never returned would leak."""
    journal.lookup("an entry")
    pool = get_redis_connection("default").connection_pool
    connection = journal._line.connection
    assert connection in pool._in_use_connections

    cache = settings.CACHES["default"]
    settings.CACHES = {"default": cache | {"LOCATION": cache["LOCATION"] + "?health_check_interval=0"}}
    journal.lookup("an entry")

    assert journal._line.pool is not pool
    assert connection not in pool._in_use_connections


def test_a_thread_that_ends_returns_its_connection_to_the_pool(home, read, elsewhere):
    """Otherwise a server with a new thread for each request would run out of connections."""
    pool = get_redis_connection("default").connection_pool
    used = []

    def act():
        journal.lookup("an entry")
        used.append(journal._line.connection)
        assert used[-1] in pool._in_use_connections

    act()
    elsewhere(act)

    mine, of_the_thread = used
    assert mine is not of_the_thread
    assert mine in pool._in_use_connections
    assert of_the_thread not in pool._in_use_connections
