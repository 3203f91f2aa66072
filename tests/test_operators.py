"""Operators. `manage.py cache` shows the state of the cache, invalidates a row, a model or everything, and compares entries with the database. A page of
the admin shows the state and single entries.

T1, T2, … are processes, X is another program. Their steps are in order, separated by dots.
"""

import argparse
import json
import re
from contextlib import contextmanager
from io import StringIO
from random import Random

import pytest
from django.core.cache import cache
from django.db import connection
from django_redis import get_redis_connection
from redis import exceptions as refusals

from housing.filters import PropertyFilter
from housing.freshness import outbox
from housing.freshness.comparison import compare, difference, sample
from housing.freshness.connection import ConnectionMixin, ours
from housing.freshness.journal import Miss, journal
from housing.freshness.management.commands.cache import Command, duration, size
from housing.freshness.operations import keys, tags_of_row
from housing.freshness.tracking import tracked
from housing.models import Property
from tests.fixtures.cache import entries
from tests.fixtures.rows import commit_outside

PAGE = cache.make_key("page")


class Terminal(StringIO):
    """A standard stream that is a terminal, or is not."""

    def __init__(self, is_terminal=False):
        super().__init__()
        self.isatty = lambda: is_terminal


class Ended:
    """A command that has ended, with its exit code and what it printed."""

    def __init__(self, *arguments, is_terminal=False):
        streams = Terminal(), Terminal(is_terminal)
        try:
            Command(*streams, no_color=True).run_from_argv(["manage.py", "cache", *arguments])
            self.code = 0
        except SystemExit as ended:
            self.code = ended.code
        self.out, self.err = (stream.getvalue() for stream in streams)


@pytest.fixture
def manage(transactional_db):
    """`manage("status")`: run `manage.py cache status` as a shell does."""
    return Ended


@contextmanager
def before_the_select(act):
    """Within this, `act` runs once, before the first SELECT of a property."""
    left = [act]

    def race(execute, sql, *rest):
        if "housing_property" in sql and left:
            left.pop()()
        return execute(sql, *rest)

    with connection.execute_wrapper(race):
        yield


# The command


def parsers():
    """The parser of the command, and that of each subcommand, by name."""
    parser = Command().create_parser("manage.py", "cache")
    [choices] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {"": parser, **choices.choices}


SUBCOMMANDS = sorted(parsers().keys() - {""})


@pytest.mark.parametrize("subcommand", parsers())
def test_every_subcommand_explains_itself_and_each_of_its_arguments(manage, subcommand, capsys):
    """`--help` is all that an operator has at night."""
    assert manage(*filter(None, [subcommand]), "--help").code == 0
    printed = capsys.readouterr().out

    assert parsers()[subcommand].description.rstrip().endswith(".")
    for action in parsers()[subcommand]._actions:
        assert action.help or action.dest == "subcommand"
        assert all(option in printed for option in action.option_strings)
    assert subcommand or all(f"  {name} " in printed for name in SUBCOMMANDS)


@pytest.mark.parametrize(
    "arguments", [(), ("forget",), ("verify", "--sample", "0"), ("verify", "--sample", "some"), ("verify", "--sample", "3", "--path", "/")]
)
def test_wrong_arguments_end_with_2_and_a_usage_message(manage, arguments, capsys):
    """A scheduled job can distinguish a mistyped command, which is 2, from a failed verification, which is 1."""
    assert manage(*arguments).code == 2
    assert "usage: manage.py cache" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("status",), ("invalidate", "--all"), ("invalidate", "housing.Property"), ("verify",)])
def test_without_redis_every_subcommand_ends_with_1_and_one_line(manage, redis_unreachable, arguments):
    """A script that invalidates must know that it did not."""
    journal.forget_server()
    with redis_unreachable():
        ended = manage(*arguments)

    assert (ended.code, ended.out) == (1, "")
    assert re.fullmatch(r"CommandError: Redis .*is unreachable \(connection refused\)\.\n", ended.err)


# status

SECONDS = (int, float)
SCHEMA = {
    "server": str,
    "journal": {"seconds_since_last_instant": SECONDS, "seconds_recorded": SECONDS},
    "leases": [{"id": str, "tags": [str], "seconds_left": SECONDS}],
    "databases": [{"alias": str, "seconds_since_verified": SECONDS, "outbox_rows": int, "error": type(None)}],
    "memory": (dict, type(None)),
    "entries": {"count": int, "is_all": bool, "error": type(None)},
}
"""The JSON of `status`, with the type of each value while a lease is open."""


def conforms(value, schema):
    """Whether a JSON value has these names and types."""
    if isinstance(schema, dict):
        return value.keys() == schema.keys() and all(conforms(value[name], schema[name]) for name in schema)
    if isinstance(schema, list):
        return bool(value) and all(conforms(each, schema[0]) for each in value)
    return isinstance(value, schema)


def test_the_json_of_status_keeps_its_names_and_types(home, warm, verify, manage):
    """Scripts read it."""
    warm()
    verify()
    journal.lease({"t"})
    state = json.loads(manage("status", "--json").out)

    assert conforms(state, SCHEMA)
    assert state["entries"]["count"] == 1
    assert state["leases"][0]["tags"] == ["t"]


def test_status_shows_the_state_in_a_few_lines(home, warm, verify, manage):
    """A lease has its tags and its time, the database has the lag of its verification and the rows in its outbox."""
    warm()
    verify()
    journal.lease({"housing_agent", "housing_agent:1"})
    outbox.write(connection, {"t"})
    ended = manage("status")

    assert ended.code == 0
    assert re.search(r"^journal       its last instant was [\d.]+ s ago, and it has the writes of the last [\d.]+ s$", ended.out, re.MULTILINE)
    assert re.search(r"^leases        1 open\n +[0-9a-f]{16}  [\d.]+ s left  housing_agent, housing_agent:1$", ended.out, re.MULTILINE)
    assert re.search(r"^database      default: verified [\d.]+ s ago, 1 row in the outbox$", ended.out, re.MULTILINE)
    assert re.search(r"^entries       1$", ended.out, re.MULTILINE)
    assert re.search(r"^memory        (\d+ .B used by the server|not known, because the server has no INFO)", ended.out, re.MULTILINE)


def test_status_of_an_empty_redis_says_what_there_is_not(manage):
    """It creates nothing, not even a journal."""
    get_redis_connection("default").delete(cache.make_key("journal"))
    printed = manage("status").out

    assert "journal       none yet; the first read or write creates it\n" in printed
    assert "leases        none open\n" in printed
    assert "database      default: never verified, so nothing is served from the cache, 0 rows in the outbox\n" in printed
    assert "entries       0\n" in printed
    assert not get_redis_connection("default").exists(cache.make_key("journal"))


def test_status_of_a_database_without_an_outbox_names_the_command_that_creates_it(manage):
    """This is the state between a deploy and its `migrate`."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE freshness_outbox RENAME TO freshness_outbox_elsewhere")
    try:
        ended = manage("status")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE freshness_outbox_elsewhere RENAME TO freshness_outbox")

    assert ended.code == 0
    assert re.search(r"^database      default: .*freshness_outbox.* If a table is missing, run `manage.py migrate`\.$", ended.out, re.MULTILINE)


def test_status_says_if_the_user_of_redis_may_not_list_keys(manage, monkeypatch):
    """The service needs no SCAN, so its user may lack it. All other lines are shown."""

    def refuse(*_, **__):
        raise refusals.NoPermissionError("User app has no permissions to run the 'scan' command")

    monkeypatch.setattr("redis.Redis.scan_iter", refuse)
    listing = "The user of Redis may not list keys. Allow it +scan, or look at one URL at a time."

    assert f"entries       {listing}\n" in manage("status").out
    assert json.loads(manage("status", "--json").out)["entries"] == {"count": None, "is_all": False, "error": listing}
    assert (manage("verify").code, manage("verify").err) == (1, f"CommandError: {listing}\n")


def test_status_counts_no_more_keys_than_it_can_list_soon(warm, manage, twenty_properties, monkeypatch):
    """A count of millions of keys would take minutes, and an operator needs the status during an incident."""
    monkeypatch.setattr("housing.freshness.operations.MANY_KEYS", 2)
    for query in ("", "?page_size=1", "?page_size=2"):
        warm(f"cached{query}")

    assert "entries       more than 2\n" in manage("status").out


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.2 s"), (119, "119.0 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 d")])
def test_a_duration_has_the_unit_that_fits(seconds, text):
    """An operator understands `2 d` at once, but has to convert 172,800 seconds."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(1, "1 B"), (2048, "2 kB"), (3 << 20, "3 MB"), (5 << 30, "5.0 GB")])
def test_a_size_has_the_unit_that_fits(count, text):
    """A number of bytes has too many digits to be compared at a glance."""
    assert size(count) == text


# invalidate


def test_everything_can_be_invalidated(home, warm, read, manage):
    """After the restore of a backup any entry may be wrong, and an operator cannot list the rows that differ."""
    warm()
    warm(f"cached/{home.pk}")

    assert manage("invalidate", "--all").out == "Every cached response is stale.\n"

    assert [read(page).came_from for page in ("cached", f"cached/{home.pk}")] == ["fwd=stale; stored"] * 2
    assert read("cached").came_from == "hit"


def test_a_model_can_be_invalidated(home, warm, read, manage):
    """Responses that do not depend on it stay warm."""
    warm()
    warm(f"cached/{home.pk}")

    assert manage("invalidate", "housing.PropertyImage").out == "Every cached response that depends on housing.PropertyImage is stale.\n"

    assert read(f"cached/{home.pk}").came_from == "fwd=stale; stored"
    assert read("cached").came_from == "hit"


@pytest.mark.parametrize("model", tracked(), ids=lambda model: model.__name__)
def test_every_tracked_model_can_be_invalidated(model, home, warm, read, manage):
    """The page of a property with images depends on each of them."""
    warm(f"cached/{home.pk}")

    assert manage("invalidate", model._meta.label).code == 0
    assert read(f"cached/{home.pk}").came_from == "fwd=stale; stored"


def test_a_row_can_be_invalidated(twenty_properties, warm, read, manage):
    """The pages of other rows stay warm, unless they depend on which rows there are."""
    home, other = twenty_properties[0], twenty_properties[9]
    for page in ("cached", f"cached/{home.pk}", f"cached/{other.pk}"):
        warm(page)

    assert manage("invalidate", "housing.Property", str(home.pk)).out == f"Every cached response that depends on housing.Property {home.pk} is stale.\n"

    assert read("cached").came_from == read(f"cached/{home.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{other.pk}").came_from == "hit"


def pages_of(home, other):
    """A page for each query parameter of the list that selects or orders rows, and the details of the two."""
    values = {"city": "Springfield", "status": "sold", "property_type": "land", "agent": other.agent_id, "office": other.agent.office_id}
    values |= {"min_price": 1_000_000, "max_price": 2_000, "min_bedrooms": 9, "search": "castle", "ordering": "price"}
    rest = set(PropertyFilter.get_filters()) - values.keys()
    assert rest == {"page_size", "cursor"}
    return ["cached", "cached?city=Shelbyville", f"cached/{home.pk}", f"cached/{other.pk}", *(f"cached?{name}={value}" for name, value in values.items())]


CHANGES = {
    "a row was changed": "UPDATE housing_property SET title = 'A castle', status = 'sold', property_type = 'land', price = 1000000, bedrooms = 9, "
    "agent_id = {other.agent_id}, location_id = {other.location_id}, created_at = '2027-01-01' WHERE id = {home.pk}",
    "a row was deleted": "DELETE FROM housing_property WHERE id = {third.pk}",
    "a row was inserted": "INSERT INTO housing_property (id, title, status, property_type, price, bedrooms, location_id, agent_id, created_at, updated_at) "
    "VALUES ({third.pk}, 'A castle', 'sold', 'land', 1000000, 9, {other.location_id}, {other.agent_id}, '2027-01-01', '2027-01-01')",
    "a row that others show was changed": "UPDATE housing_agent SET name = 'Another', office_id = {other.agent.office_id} WHERE id = {home.agent_id}",
    "a row by which others are selected was changed": "UPDATE housing_location SET city = 'Shelbyville' WHERE id = {home.location_id}",
}
"""Changes of a row by another program. Only the primary key of the row is known."""


@pytest.mark.parametrize("change", CHANGES)
def test_an_invalidated_row_is_in_the_next_read_whatever_was_done_to_it(twenty_properties, warm, read, manage, change):
    """X changes, deletes or inserts a row · T1 invalidates it · each page is that of the database."""
    home, other, third = twenty_properties[0], twenty_properties[9], twenty_properties[15]
    if change == "a row was inserted":
        Property.objects.filter(pk=third.pk).delete()
    pages = pages_of(home, other)
    for page in pages:
        warm(page)
    commit_outside(CHANGES[change].format(home=home, other=other, third=third))

    model, row = {
        "a row was changed": ("Property", home.pk),
        "a row that others show was changed": ("Agent", home.agent_id),
        "a row by which others are selected was changed": ("Location", home.location_id),
    }.get(change, ("Property", third.pk))
    manage("invalidate", f"housing.{model}", str(row))

    for page in pages:
        assert read(page).body == read(page.replace("cached", "optimized")).body, page


def test_a_row_that_there_is_not_invalidates_its_whole_table(twenty_properties, warm, read, manage):
    """It was deleted, and the rows to which it referred are not known any more."""
    warm(f"cached/{twenty_properties[9].pk}")
    ended = manage("invalidate", "housing.Property", "1000000")

    assert ended.code == 0
    assert ended.out.startswith("There is no row 1000000, or its tags are not known, so the whole table is invalidated.\n")
    assert read(f"cached/{twenty_properties[9].pk}").came_from == "fwd=stale; stored"


def test_a_row_is_invalidated_with_its_table_while_the_database_is_unreachable(home, monkeypatch):
    """Its references cannot be read."""
    assert tags_of_row(Property, home.pk)
    connection.close()
    with monkeypatch.context() as patched:
        patched.setitem(connection.settings_dict, "NAME", "/nowhere/housing")
        assert tags_of_row(Property, home.pk) is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Name either a model, such as `cache invalidate app_label.Model 7`, or --all."),
        (("housing.Property", "--all"), "Name either a model, such as `cache invalidate app_label.Model 7`, or --all."),
        (("housing",), "There is no model 'housing'. Write it as app_label.Model, such as housing."),
        (("housing.Castle",), "There is no model 'housing.Castle'. Write it as app_label.Model, such as housing."),
        (("auth.User",), "auth.User is not tracked, so no cached response depends on it. FRESHNESS_MODELS lists the tracked models."),
        (("auth.User", "1"), "auth.User is not tracked, so no cached response depends on it. FRESHNESS_MODELS lists the tracked models."),
        (("housing.Property", "seven"), "Not a primary key of housing.Property: “seven” value must be an integer."),
    ],
)
def test_invalid_arguments_of_invalidate_are_refused_with_a_correction(home, warm, read, manage, arguments, complaint):
    """Nothing is invalidated then."""
    warm()
    ended = manage("invalidate", *arguments)

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"CommandError: {complaint}")
    assert read("cached").came_from == "hit"


@pytest.mark.parametrize("what", [("--all",), ("housing.Property",), ("housing.Property", "{home.pk}")], ids=["everything", "a model", "a row"])
def test_a_fill_that_began_before_an_invalidation_is_not_stored(home, read, manage, meanwhile, queries, what):
    """T1 misses, SELECTs · T2 invalidates · T1 may not store what it has read, and reads again. An invalidation is like a write."""
    arguments = [part.format(home=home) for part in what]
    with meanwhile(lambda: manage("invalidate", *arguments)), queries.exactly(2, because="the first read was raced", threads=False):
        assert read("cached").came_from == "fwd=miss; stored"


def test_a_fill_that_began_before_its_entry_was_invalidated_is_not_stored():
    """T1 stores · T2 misses, SELECTs · T3 invalidates the entry · T2 may not store · T4 misses."""
    fill = journal.lookup(PAGE)
    for _ in range(2):
        journal.invalidate_entry(PAGE)
        assert journal.store(PAGE, fill, {"t"}, '"old"', b"old") == "raced"
        fill = journal.lookup(PAGE)
        assert isinstance(fill, Miss)
        assert journal.store(PAGE, fill, {"t"}, '"new"', b"new", cost=1.0) == "stored"
        fill = journal.lookup(PAGE, draw=1e12)


# verify


def test_verify_finds_nothing_while_every_entry_equals_the_database(twenty_properties, warm, manage):
    """A false alarm would teach operators to ignore a real one."""
    for page in ("cached", "cached?city=Springfield", f"cached/{twenty_properties[0].pk}", f"cached?search={'long' * 50}&city=Springfield"):
        warm(page)
    ended = manage("verify")

    assert (ended.code, ended.out, ended.err) == (0, "4 entries: 4 equal.\n", "")


def test_verify_of_an_empty_cache_says_so(manage):
    """An empty list would look like a success."""
    assert (manage("verify").code, manage("verify").out) == (0, "Nothing is cached.\n")


def test_verify_ends_with_1_if_an_entry_was_tampered_with(home, warm, manage, read):
    """It prints what is needed to look for the cause, with the first difference."""
    warm("cached?page_size=2")
    [entry] = entries()
    client = get_redis_connection("default")
    client.hset(entry, "body", client.hget(entry, "body").replace(b"301000.00", b"1.00"))
    ended = manage("verify")

    assert (ended.code, ended.err) == (1, "CommandError: 1 entry: 1 stale.\n")
    etag = read("cached?page_size=2").headers["ETag"]
    assert re.sub(r"[\d.]+ s\n", "… s\n", ended.out) == (
        "STALE  http://testserver/api/properties/cached/?page_size=2 en-us UTC\n"
        f"  key         {entry.decode()}\n"
        "  age         … s\n"
        f"  ETag        {etag} in the cache, {etag} in the database\n"
        '  difference  results[1].price is "1.00" in the cache and "301000.00" in the database\n'
    )


def test_verify_notices_an_etag_that_is_not_that_of_the_bytes(home, warm, manage):
    """A browser with that ETag would keep its bytes."""
    warm()
    get_redis_connection("default").hset(entries()[0], "etag", '"another"')

    assert "the bodies are equal, and the ETag is that of other bytes\n" in manage("verify").out


def test_verify_finds_the_entry_of_a_write_whose_tags_were_lost(home, warm, manage, monkeypatch):
    """This is the bug that it is for: a write that touches too few tags."""
    warm()
    with monkeypatch.context() as patched:
        patched.setattr(ConnectionMixin, "tag", lambda *_, **__: None)
        Property.objects.filter(pk=home.pk).update(price=1)
    ended = manage("verify")

    assert ended.code == 1
    assert 'results[0].price is "300000.00" in the cache and "1.00" in the database' in ended.out


@pytest.mark.only("embedded")
def test_verify_finds_the_entry_of_a_row_that_is_gone(home, warm, manage):
    """The response in the database is a 404. (Embedded only: on PostgreSQL a trigger reports the deletion.)"""
    warm(f"cached/{home.pk}")
    commit_outside(f"DELETE FROM housing_propertyimage WHERE property_id = {home.pk}", f"DELETE FROM housing_property WHERE id = {home.pk}")
    ended = manage("verify")

    assert ended.code == 1
    assert "in the cache, none, because the response is not a 200 in the database\n  difference  the database has no such response\n" in ended.out


def test_an_entry_that_would_not_be_served_is_not_stale(home, warm, manage):
    """A write made it stale, so its old bytes are no error."""
    warm()
    home.save()

    assert (manage("verify").code, manage("verify").out) == (0, "1 entry: 1 not served.\n")
    assert re.fullmatch("1 not served: raced housing_property[^ ]+\n1 entry: 1 not served.\n", manage("verify", "--path", "/api/properties/cached/").out)


def test_a_write_during_a_comparison_is_not_reported(home, warm, manage, elsewhere):
    """T1 inspects the entry · T2 COMMITs · T1 SELECTs the new row. The entry is stale by now, and is not served."""
    warm()
    with before_the_select(lambda: elsewhere(lambda: Property.objects.filter(pk=home.pk).update(price=1))):
        assert compare(entries()[0].decode()).outcome == "not served"


def test_a_write_without_redis_during_a_comparison_is_not_reported(home, warm, elsewhere, redis_unreachable):
    """T1 inspects the entry · T2 cannot reach Redis, COMMITs with a row in the outbox · T1 SELECTs the new row, verifies the journal, inspects again."""
    warm()

    def write():
        with redis_unreachable():
            Property.objects.filter(pk=home.pk).update(price=1)

    with before_the_select(lambda: elsewhere(write)):
        assert compare(entries()[0].decode()).outcome == "not served"
    assert outbox.read(connection) == []


def test_an_entry_is_compared_although_no_watchman_runs(home, warm, read, manage, tamper_with_the_entry):
    """In CI no process serves. The entry would be served as soon as one does, so it is compared."""
    warm()
    get_redis_connection("default").zrem(cache.make_key("journal"), f"|verified:{ours().identity}")
    assert read("cached").came_from == "fwd=bypass; detail=unverified"

    assert manage("verify").out == "1 entry: 1 equal.\n"
    tamper_with_the_entry()
    assert manage("verify").code == 1


def test_an_entry_of_another_version_of_the_code_is_unknown(home, warm, manage, settings):
    """This process may not know how to read it. An old process serves it. The exit code is 1 if no entry could be compared."""
    warm()
    settings.LISTINGS_ROUND_PRICES = True

    why, verified = "it belongs to another version of the code or the settings, or to another database", manage("verify")
    assert (verified.code, verified.out, verified.err) == (1, f"1 unknown: {why}.\n", "CommandError: 1 entry: 1 unknown.\n")


def test_an_entry_whose_address_is_too_long_is_unknown(home, warm, manage):
    """The address is cut off, so that it takes little memory."""
    warm(f"cached?unknown={'x' * 3000}&page_size=3")

    assert manage("verify").err.endswith("1 entry: 1 unknown.\n")


def test_one_url_can_be_verified(twenty_properties, warm, manage):
    """An operator who suspects one page gets a result without a comparison of the whole cache."""
    warm("cached?page_size=3")

    assert manage("verify", "--path", "/api/properties/cached/?page_size=3").out == "1 entry: 1 equal.\n"
    assert manage("verify", "--path", "http://testserver/api/properties/cached/?page_size=3&unknown=1").out == "1 entry: 1 equal.\n"
    assert manage("verify", "--path", "/api/properties/cached/").out.endswith("there is no such entry.\n1 entry: 1 not served.\n")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/nowhere/", "/nowhere/: There is no such URL or time zone."),
        ("/admin/", "/admin/: its view is not a CachedView."),
        ("/api/properties/cached/?min_price=abc", "/api/properties/cached/?min_price=abc: the view refuses it. min_price: Enter a number."),
    ],
)
def test_a_url_that_is_not_cached_is_refused_with_the_reason(manage, path, complaint):
    """A result of 0 differences would look like a success, although nothing was compared."""
    assert (manage("verify", "--path", path).code, manage("verify", "--path", path).err) == (1, f"CommandError: {complaint}\n")


def test_a_sample_has_each_entry_equally_often(twenty_properties, warm, manage):
    """Otherwise some entries would never be compared."""
    for number in range(1, 6):
        warm("cached", page_size=number)
    draws = Random(1)
    drawn = [key for _ in range(500) for key in sample(2, draws)]

    assert {drawn.count(key) // 50 for key in keys()} <= {3, 4}, "each of five keys is in two of five samples, which is 200 times"
    assert manage("verify", "--sample", "2").out == "2 entries: 2 equal.\n"
    assert manage("verify", "--sample", "7").out == "5 entries: 5 equal.\n"


def test_the_progress_is_shown_on_a_terminal_only(home, warm, manage):
    """A log file would be full of it."""
    warm()

    assert manage("verify", is_terminal=True).err == "\r0 of 1 \r\033[K"
    assert manage("verify").err == ""


@pytest.mark.parametrize(
    ("cached", "true", "text"),
    [
        (b'{"a":[1,{"b":1}]}', b'{"a":[1,{"b":2}]}', "a[1].b is 1 in the cache and 2 in the database"),
        (b'{"a":1}', b'{"a":true}', "a is 1 in the cache and true in the database"),
        (b'{"a":1}', b'{"a":1,"b":"\xc3\xbc"}', 'b is missing in the cache and "ü" in the database'),
        (b"[1,2]", b"[1]", "[1] is 2 in the cache and missing in the database"),
        (b"1", b"2", "the body is 1 in the cache and 2 in the database"),
        (b'"' + b"x" * 200 + b'"', b"1", f'the body is "{"x" * 98}… in the cache and 1 in the database'),
        (b'{"a": 1}', b'{"a":1}', "byte 5 differs, and the JSON is equal or invalid"),
        (b"no JSON", b"no jason", "byte 3 differs, and the JSON is equal or invalid"),
        (b"1", None, "the database has no such response"),
    ],
)
def test_the_first_difference_is_shown_with_its_place(cached, true, text):
    """A response may have thousands of values, so an operator could not find the cause if only the URL were reported."""
    assert difference(cached, true) == text


@pytest.mark.parametrize("path", ["/posts/?labels__name=maths", "/posts/3/", "/other/set/", "/other/set/2/", "/other/set/3/label_names/", "/other/cursor/"])
def test_a_view_of_any_kind_is_compared_in_its_own_language_and_at_its_own_host(blog, path):
    """Generic views, viewsets and their extra actions. The key of such an entry has the host, the language and the time zone."""
    blog.run(f"""
        with translation.override('de'), timezone.override('Europe/Vienna'):
            Client().get({path!r}, HTTP_HOST='localhost', HTTP_ACCEPT='application/json')
    """)
    blog.run("from freshness.comparison import compare\nfrom freshness.operations import keys")

    assert blog.run("[compare(key).outcome for key in keys()]") == ["equal"]
    blog.run("""
        from unittest import mock
        from freshness.connection import ConnectionMixin
        with mock.patch.object(ConnectionMixin, 'tag'):
            Post.objects.update(title='Untold')
            Label.objects.update(name='untold')
    """)
    assert blog.run("[compare(key).outcome for key in keys()]") == ["stale"]
