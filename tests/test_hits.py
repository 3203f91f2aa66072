"""What is a hit, and what is never shared. An answer is remembered for everybody who asks the same, and for nobody else."""

import datetime
import gc
import os
import re
import sys
from contextlib import ExitStack
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from django_redis import get_redis_connection
from redis import exceptions as refusals

from conftest import entries, forget_everything, make_images
from housing.freshness.connection import NotLeased
from housing.freshness.journal import journal
from housing.freshness.keys import LONG, entry_key
from housing.freshness.settings import conf
from housing.models import Property

# What is remembered


def test_a_hit_comes_from_the_cache_and_from_nowhere_else(twenty_properties, warm, read, plant_a_mark):
    """A count of zero could be a broken counter. A mark that only the cache holds cannot come from elsewhere."""
    warm()
    mark = plant_a_mark()

    assert read("cached").body == mark


def test_a_response_says_where_it_came_from(home, read):
    assert read("cached").came_from == "fwd=miss; stored"
    assert read("cached").came_from == "hit"
    home.save()
    assert read("cached").came_from == "fwd=stale; stored"
    assert read("cached").came_from == "hit"


def test_an_empty_page_is_remembered_too(transactional_db, warm, read, queries):
    """Nothing found is an answer; looking for it again and again would be a miss that never ends."""
    assert warm(city="Nowhere") == b'{"next":null,"previous":null,"results":[]}'

    with queries.exactly(0, because="the empty page is remembered"):
        read("cached", city="Nowhere")


def test_an_id_that_is_not_there_is_never_remembered(transactional_db, read, queries):
    """Ids that nobody has are endless, and each would be an entry."""
    for _ in range(2):
        with queries.exactly(1, because="the property is looked for each time"):
            missing = read("cached/1")
        assert (missing.status, missing.came_from) == (404, None)
    assert entries() == []


def test_what_is_refused_is_never_remembered(transactional_db, read):
    refused = read("cached", min_price="abc")

    assert (refused.status, refused.came_from) == (400, None)
    assert entries() == []


def test_what_is_remembered_is_bytes_and_no_pickle(twenty_properties, warm, read):
    """Who can write to Redis must not be able to run code here. Of the bytes' SHA-256, 128 bits are the ETag."""
    warm()
    [entry] = entries()
    stored = get_redis_connection("default").hgetall(entry)

    assert stored[b"body"] == read("optimized").body
    assert re.fullmatch(rb'"[0-9a-f]{32}"', stored[b"etag"])
    assert set(stored) == {b"epoch", b"read_at", b"tags", b"etag", b"body", b"cost", b"until"}


def test_an_entry_does_not_live_for_ever(twenty_properties, warm, settings):
    """What nobody asks for any more must leave Redis by itself."""
    warm()
    [entry] = entries()

    assert conf.TTL - 60 < get_redis_connection("default").ttl(entry) <= conf.TTL


def test_a_hit_needs_no_database(twenty_properties, warm, read):
    """Not even a connection to it: what is warm is answered while the database is away."""
    warm()
    connection.close()

    assert read("cached").came_from == "hit"
    assert connection.connection is None


def test_a_new_thread_may_begin_with_a_detail(home, read, elsewhere):
    """Its connection to the database is not open yet."""
    assert elsewhere(lambda: read(f"cached/{home.pk}")).came_from == "fwd=miss; stored"


# One entry for all ways of asking the same


@pytest.mark.parametrize(
    ("asked", "otherwise"),
    [
        ("", "unknown=1&utm_source=mail"),
        ("", "city=&status=&min_price=&cursor=&page_size=&ordering="),
        ("", "ordering=-created_at&page_size=20"),
        ("min_price=100000", "min_price=100000.00"),
        ("min_price=100000", "min_price=1e5"),
        ("min_price=0", "min_price=-0"),
        ("agent=7", "agent=007"),
        ("city=Springfield&status=sold", "status=sold&city=Springfield"),
        ("city=Springfield", "city=%20Springfield%20"),
    ],
)
def test_the_same_asked_otherwise_is_the_same_entry(twenty_properties, warm, read, asked, otherwise):
    body = warm(f"cached?{asked}")

    response = read(f"cached?{otherwise}")

    assert (response.came_from, response.body) == ("hit", body)


# What is never shared


@pytest.mark.parametrize(
    "asked",
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
def test_every_parameter_has_entries_of_its_own(twenty_properties, warm, read, asked):
    warm()

    response = read(f"cached?{asked}")

    assert response.came_from == "fwd=miss; stored"
    assert response.body == read(f"optimized?{asked}").body


def test_every_cursor_has_an_entry_of_its_own(twenty_properties, warm, read):
    second = read("cached", page_size=5).json["next"]
    third = read(f"cached{second}").json["next"]

    assert read(f"cached{third}").came_from == "fwd=miss; stored"
    assert read(f"cached{third}").body == read(f"optimized{third}").body


def test_two_long_questions_never_meet(transactional_db, warm, read):
    warm(search="x" * (LONG - 1) + "a")

    assert read("cached", search="x" * (LONG - 1) + "b").came_from == "fwd=miss; stored"


def test_a_list_and_a_detail_never_meet(home, warm, read):
    assert entry_key("list", "7", "a database") != entry_key("detail", "7", "a database")
    warm()

    assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"
    assert read(f"cached/{home.pk}").json["id"] == home.pk


def test_every_property_has_an_entry_of_its_own(twenty_properties, warm, read):
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")

    assert read(f"cached/{second.pk}").json["id"] == second.pk


def test_everybody_gets_the_same_bytes(twenty_properties, warm, read, client, queries):
    """Logged in or not: the views authenticate nobody, so nothing of a user can reach the bytes, and no session is read."""
    body = warm()
    client.force_login(User.objects.create_user("editor", is_staff=True))

    with queries.exactly(0, because="no session and no user is looked up"):
        response = read("cached")

    assert (response.came_from, response.body) == ("hit", body)
    assert "Cookie" not in response.headers["Vary"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_host_is_no_part_of_the_answer(twenty_properties, read, settings, host):
    """Else whoever sends a Host first decides where everybody's links lead."""
    settings.ALLOWED_HOSTS = ["testserver", host]
    body = read("cached?page_size=5", headers={"Host": host}).body

    response = read("cached?page_size=5")

    assert (response.came_from, response.body) == ("hit", body)
    assert host.encode() not in body


def test_the_time_zone_of_a_reader_is_no_part_of_the_answer(twenty_properties, read):
    """A middleware may activate the reader's own: whoever fills would decide everybody's."""
    with timezone.override(datetime.timezone(datetime.timedelta(hours=9))):
        theirs = read("cached").body

    assert theirs == read("cached").body
    assert read("cached").rows[0]["created_at"] == "2026-01-01T00:00:00Z"


def test_a_media_type_with_parameters_is_answered_past_the_cache(twenty_properties, warm, read):
    """`indent=4` is another text of the same rows: it may neither be remembered nor be given what is."""
    body = warm()
    indented = read("cached", headers={"Accept": "application/json; indent=4"})

    assert indented.came_from == "fwd=bypass; detail=accept"
    assert indented.body.startswith(b"{\n    ")
    assert indented.headers["Cache-Control"] == "no-cache"
    assert read("cached").body == body


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/plain, */*", "application/*", "text/html;q=0.5, application/json"])
def test_all_who_take_plain_json_share_it(twenty_properties, warm, read, accept):
    body = warm()

    response = read("cached", headers={"Accept": accept})

    assert (response.came_from, response.body) == ("hit", body)
    assert "Accept" in response.headers["Vary"]


def test_a_browser_gets_a_page_around_the_remembered_bytes(twenty_properties, warm, read, queries):
    """So that the Debug Toolbar, which lives on a page, can show 1 query and then 0."""
    warm()

    with queries.exactly(0, because="the page shows what is remembered"):
        page = read("cached", headers={"Accept": "text/html"})

    assert page.came_from == "hit"
    assert page.headers["Content-Type"].startswith("text/html")
    assert "ETag" not in page.headers
    assert b"Home 19" in page.body


def test_a_format_that_nobody_has_is_refused(twenty_properties, warm, read):
    warm()

    assert read("cached", headers={"Accept": "image/png"}).status == 406


# Who has it already


def test_who_has_the_bytes_is_not_sent_them_again(twenty_properties, read):
    first = read("cached")

    again = read("cached", headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status, again.body, again.came_from) == (304, b"", "hit")
    assert {name: again.headers[name] for name in ("ETag", "Cache-Control", "Vary")} == {
        name: first.headers[name] for name in ("ETag", "Cache-Control", "Vary")
    }


@pytest.mark.parametrize("known", ["W/{}", '"else", {}', "*"])
def test_etags_are_compared_as_http_says(twenty_properties, read, known):
    """Weakly, one of a list, or any (RFC 9110, section 13.1.2)."""
    etag = read("cached").headers["ETag"]

    assert read("cached", headers={"If-None-Match": known.format(etag)}).status == 304
    assert read("cached", headers={"If-None-Match": '"else"'}).status == 200


def test_any_number_of_etags_may_be_known(twenty_properties, warm, read):
    """What a header can hold, the script must take."""
    warm()

    assert read("cached", headers={"If-None-Match": ", ".join(f'"{number}"' for number in range(9_000))}).status == 200


@pytest.mark.parametrize("known", ["{}", "*"])
def test_a_cold_read_gives_304_too(twenty_properties, read, known):
    """What the reader has is compared with what is true now, wherever that comes from."""
    etag = read("cached").headers["ETag"]
    forget_everything()

    again = read("cached", headers={"If-None-Match": known.format(etag)})
    assert (again.status, again.came_from) == (304, "fwd=miss; stored")


def test_a_changed_page_has_another_etag(home, read):
    etag = read("cached").headers["ETag"]

    home.title = "Another"
    home.save()

    assert read("cached", headers={"If-None-Match": etag}).status == 200


def test_a_browser_must_ask_each_time(twenty_properties, read):
    """`max-age` would keep an old price on a screen after every invalidation on the server."""
    assert read("cached").headers["Cache-Control"] == "no-cache"


def test_the_three_variants_give_the_same_bytes(twenty_properties, read):
    for asked in ("", "?city=Springfield", "?ordering=price&page_size=7", f"/{twenty_properties[0].pk}"):
        assert read(f"naive{asked}").body == read(f"optimized{asked}").body == read(f"cached{asked}").body == read(f"cached{asked}").body


# Past the cache


def test_inside_a_transaction_nothing_is_remembered(home, read):
    """Its snapshot may be older than any write, and hold writes that nobody else may see."""
    with transaction.atomic():
        Property.objects.filter(pk=home.pk).update(price=1)
        inside = read("cached")
        assert inside.rows[0]["price"] == "1.00"
        transaction.set_rollback(True)

    assert inside.came_from == "fwd=bypass; detail=transaction"
    assert entries() == []
    assert read("cached").rows[0]["price"] == "300000.00"


def test_a_detail_inside_a_transaction_sees_that_transaction(home, read):
    with transaction.atomic():
        make_images(home)
        assert len(read(f"cached/{home.pk}").json["images"]) == 4


def test_inside_a_transaction_the_cache_is_not_asked_either(home, warm, read, redis_commands):
    warm()
    with transaction.atomic(), redis_commands.exactly(0, because="a transaction sees its own state, not what others remember"):
        assert read("cached").came_from == "fwd=bypass; detail=transaction"


def test_atomic_requests_leaves_the_cached_variants_out(home, read, monkeypatch):
    """Else every request would be inside a transaction, and nothing would ever be remembered."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert read("cached").came_from == "fwd=miss; stored"
    assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"


def unreachable():
    """What is said of a Redis that is away: which one, and what happened."""
    redis = get_redis_connection("default").connection_pool.connection_kwargs
    return f"Redis at {redis['host']}:{redis['port']} is out of reach (connection refused)."


def test_without_redis_reads_are_answered_from_the_database(twenty_properties, read, redis_away, queries, caplog):
    body = read("optimized").body

    with redis_away(), queries.exactly(1, because="the database is asked once, as if nothing were remembered"):
        response = read("cached")

    assert (response.came_from, response.body) == ("fwd=bypass; detail=unreachable", body)
    assert caplog.messages == [f"Answered from the database: {unreachable()}"]


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
def test_a_redis_that_refuses_is_as_good_as_away(home, read, monkeypatch, refusal):
    """Too slow, full, a replica by now, or without a memory for scripts: it is up, and of no use."""

    def refuse(*_, **__):
        raise refusal

    pool = get_redis_connection("default").connection_pool
    with ExitStack() as afterwards, monkeypatch.context() as patched:
        afterwards.callback(pool.disconnect)  # the answers that nobody has read go with their connections
        patched.setattr(pool.connection_class, "read_response", refuse)
        assert read("cached").came_from == "fwd=bypass; detail=unreachable"
        with pytest.raises(NotLeased, match=str(refusal)):
            home.save()
        assert connection.get_autocommit()  # and no transaction is left open


def test_redis_lost_between_the_query_and_the_store_costs_nothing_but_the_store(twenty_properties, read, redis_away, meanwhile, queries, caplog):
    """The answer is there already; it is not read again."""
    read("optimized")
    with ExitStack() as stack, meanwhile(lambda: stack.enter_context(redis_away())), queries.exactly(1, because="the answer was read already"):
        response = read("cached")

    assert response.came_from == "fwd=bypass; detail=unreachable"
    assert len(response.rows) == 20
    assert caplog.messages == [f"Answered, but not remembered: {unreachable()}"]


# The connection to Redis, of which each thread has one


def test_who_finds_its_connection_dead_asks_once_more(home, warm, read, monkeypatch):
    """A server ends connections that were idle, and all of them when it restarts."""
    warm()
    connections, dead = get_redis_connection("default").connection_pool.connection_class, iter([refusals.ConnectionError("Connection closed by server.")])
    response = connections.read_response

    def die_once(self, *args, **options):
        for death in dead:
            self.disconnect()
            raise death
        return response(self, *args, **options)

    monkeypatch.setattr(connections, "read_response", die_once)
    assert read("cached").came_from == "hit"
    assert list(dead) == []


def test_who_is_interrupted_between_question_and_response_does_not_take_it_for_the_next(twenty_properties, warm, read, monkeypatch):
    """A worker's time limit strikes anywhere. Read by somebody else, the bytes of another page would be as wrong as old ones."""
    warm(page_size=1)
    warm(page_size=2)
    connections = get_redis_connection("default").connection_pool.connection_class

    def strike(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(connections, "read_response", strike)
        read("cached", page_size=1)

    response = read("cached", page_size=2)
    assert (response.came_from, len(response.rows)) == ("hit", 2)


def test_a_fork_has_a_connection_of_its_own(home, warm, read, monkeypatch):
    """On one that two processes share, each would read the other's answers."""
    warm()
    shared = journal._line.connection
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 1)
        assert read("cached").came_from == "hit"
        assert journal._line.connection is not shared


def test_who_turns_to_another_pool_gives_the_first_its_connection_back(home, settings):
    """A pool is told to end what it holds; what is borrowed for ever would outlive it."""
    journal.lookup("an entry")
    pool = get_redis_connection("default").connection_pool
    assert journal._line.connection in pool._in_use_connections

    cache = settings.CACHES["default"]
    settings.CACHES = {"default": cache | {"LOCATION": cache["LOCATION"] + "?health_check_interval=0"}}
    journal.lookup("an entry")

    assert journal._line.pool is not pool
    assert len(pool._in_use_connections) == 0


def test_a_thread_that_ends_gives_its_connection_back(home, read, elsewhere):
    """A server that begins a thread for each request would run out of them."""
    pool = get_redis_connection("default").connection_pool
    used = []

    def act():
        journal.lookup("an entry")
        used.append(len(pool._in_use_connections))

    act()
    elsewhere(act)
    gc.collect()

    assert used == [1, 2]
    assert len(pool._in_use_connections) == 1


# Warming


@pytest.fixture
def warm_cache():
    """`manage.py warm_cache`; what it says."""

    def warm_cache(*arguments, **options):
        said = StringIO()
        call_command("warm_cache", *arguments, stdout=said, **options)
        return said.getvalue()

    return warm_cache


def test_what_was_warmed_is_a_hit_for_its_first_reader(twenty_properties, warm_cache, read):
    """The first page in each order, unless something else is named."""
    assert warm_cache() == "4 filled, 0 already warm, 0 not stored (written during the fill).\n"

    assert {read("cached", ordering=ordering).came_from for ordering in ("created_at", "-created_at", "price", "-price")} == {"hit"}
    assert read("cached").body == read("optimized").body


def test_named_pages_are_warmed_as_far_as_there_are_any(twenty_properties, warm_cache, read):
    said = warm_cache("?city=Springfield&page_size=8", "status=sold", pages=4)
    assert said.startswith("4 filled")
    assert warm_cache("page_size=8", pages=2).startswith("2 filled")

    second = read("cached", city="Springfield", page_size=8).json["next"]
    assert [read(f"cached{page}").came_from for page in ("?city=Springfield&page_size=8", second, "?status=sold", "")] == ["hit"] * 3 + ["fwd=miss; stored"]


def test_warming_again_asks_the_database_nothing(twenty_properties, warm_cache, queries):
    warm_cache()

    with queries.exactly(0, because="a page that is warm costs a look"):
        assert warm_cache() == "0 filled, 4 already warm, 0 not stored (written during the fill).\n"


def test_warming_never_overwrites_newer_data(home, warm_cache, read, meanwhile):
    """It fills as any reader does: what a write overtook is read again."""

    def reprice():
        Property.objects.filter(pk=home.pk).update(price=1)

    with meanwhile(reprice):
        assert warm_cache("status=available").startswith("1 filled")
    assert read("cached", status="available").came_from == "hit"
    assert read("cached", status="available").body == read("optimized", status="available").body


def test_what_cannot_be_remembered_while_it_is_written_is_said(home, warm_cache, around_commit):
    said = []
    with around_commit(before=lambda: said.append(warm_cache("status=available"))):
        home.save()

    assert said == ["0 filled, 0 already warm, 1 not stored (written during the fill).\n"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["status=sold", "citty=Springfield"], "citty=Springfield: the list has no parameter citty. It has city, status, "),
        (["status=gone"], "status=gone: status: Select a valid choice. gone is not one of the available choices."),
        (["--pages=0"], "--pages is 0. It must be a whole number, at least 1."),
    ],
)
def test_a_page_that_cannot_be_asked_for_is_named_before_anything_is_read(twenty_properties, warm_cache, queries, arguments, complaint):
    with queries.exactly(0, because="nothing is half done"), pytest.raises(CommandError, match=f"^{re.escape(complaint)}"):
        warm_cache(*arguments)


def test_warming_says_that_redis_is_away(twenty_properties, warm_cache, redis_away):
    with redis_away(), pytest.raises(CommandError, match=r"^Redis is unreachable, so nothing was cached\. Check REDIS_URL\.$"):
        warm_cache()


def test_warming_says_what_the_database_says(twenty_properties, warm_cache):
    def refuse(*_):
        raise OperationalError("the database is shutting down")

    with connection.execute_wrapper(refuse), pytest.raises(CommandError, match=r"^Database error: the database is shutting down$"):
        warm_cache()


def test_an_interrupted_warming_leaves_what_it_filled_warm_and_nothing_half_filled(twenty_properties, warm_cache, read):
    """Ctrl-C at the third page: who asks for that one next is a reader like any other."""
    asked = 0

    def press(execute, *statement):
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return execute(*statement)

    with connection.execute_wrapper(press), pytest.raises(KeyboardInterrupt):
        warm_cache("page_size=1", "page_size=2", "page_size=3", "page_size=4")

    assert [read("cached", page_size=size).came_from for size in (1, 2, 3, 4)] == ["hit"] * 2 + ["fwd=miss; stored"] * 2


def test_warming_shows_its_progress_to_a_terminal(twenty_properties, warm_cache, monkeypatch):
    """Many pages take a while."""
    monkeypatch.setattr(sys, "stderr", terminal := StringIO())
    terminal.isatty = lambda: True
    warm_cache("page_size=5", pages=4)

    assert "4/4" in terminal.getvalue()


def test_quiet_warming_is_quiet(twenty_properties, warm_cache, capsys):
    assert warm_cache(verbosity=0) == ""
    assert capsys.readouterr() == ("", "")
