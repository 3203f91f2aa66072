"""Scripts that fail half way. Redis keeps what a script wrote before it failed, so every verb is safe after each of its commands.

T1, T2, … are processes. A verb that fails raises an error, so its caller reads from the database, or rolls back.
"""

import re
from contextlib import contextmanager

import hiredis
import pytest
from django.core.cache import cache
from django_redis import get_redis_connection

from housing.freshness import journal as module
from housing.freshness.journal import Hit, Unreachable, journal
from tests.fixtures.cache import clear_the_cache, durations

PAGE, ANOTHER = cache.make_key("page"), cache.make_key("another page")
MANY = [f"row:{number:05}" for number in range(2_500)]
"""Tags that sort before "t", so that "t" is in the last part of a list that is split."""


@contextmanager
def failing_after(commands, monkeypatch):
    """Within this, the script raises an error after this many commands."""
    counting = f"""
        local made = 0
        local function call(...)
          made = made + 1
          if made > {commands} then error('fails on purpose') end
          return redis.call(...)
        end"""
    assert module.SCRIPT.count("local call = redis.call\n") == 1
    with monkeypatch.context() as patched:
        patched.setattr(module, "SCRIPT", module.SCRIPT.replace("local call = redis.call\n", f"{counting}\n"))
        journal.forget_server()
        yield
    journal.forget_server()


def failing_at_every_command(act, prepare, monkeypatch):
    """Prepare, and let `act` fail after its first command, its second, and so on. Yields what was prepared, each time, until `act` succeeds."""
    commands = -1
    while True:
        commands += 1
        prepared = prepare()
        with failing_after(commands, monkeypatch):
            try:
                act(*prepared)
            except Unreachable as error:
                assert "fails on purpose" in str(error), error
            else:
                assert commands > 0, "act ran no command"
                return
        yield prepared


VERBS = {
    "lookup": lambda fill, lease: journal.lookup(PAGE),
    "store": lambda fill, lease: journal.store(PAGE, fill, {"t"}, '"old"', b"old"),
    "renew": lambda fill, lease: journal.renew(PAGE, fill),
    "abandon": lambda fill, lease: journal.abandon(PAGE, fill),
    "lease": lambda fill, lease: journal.lease({*MANY, "t"}),
    "close": lambda fill, lease: journal.close(lease),
    "withdraw": lambda fill, lease: journal.withdraw(module.Lease("another's", ("t",))),
    "begin": lambda fill, lease: journal.begin(),
    "leases": lambda fill, lease: journal.leases(),
    "begin_verification": lambda fill, lease: journal.begin_verification(""),
    "end_verification": lambda fill, lease: journal.end_verification(module.Verification("", fill.epoch, fill.read_at), {*MANY, "t"}),
    "verified": lambda fill, lease: journal.verified(""),
    "not_known_to_be_stale": lambda fill, lease: journal.not_known_to_be_stale(PAGE, 1e9),
    "probe": lambda fill, lease: journal._run("probe"),
    "ages": lambda fill, lease: journal.ages(),
    "inspect": lambda fill, lease: journal.inspect(PAGE),
    "invalidate_everything": lambda fill, lease: journal.invalidate_everything(),
    "invalidate_entry": lambda fill, lease: journal.invalidate_entry(PAGE),
    "forbidden": lambda fill, lease: journal._run("forbidden", "time", 0),
}
"""Calls of every verb. `fill` is the miss of a reader of the old value, and `lease` is that of the writer of the new value."""

COMMANDLESS = {"forbidden"}
"""The verbs that run no Redis command."""


def test_every_command_of_the_journal_is_made_to_fail_by_these_specs():
    """A command is a verb of journal.lua. A new one must be added here."""
    assert set(re.findall(r"function verbs\.(\w+)", module.SCRIPT)) == VERBS.keys()


@pytest.fixture(params=["a lease is open", "a lease ran out", "the journal was lost"])
def prepare(request):
    """T1 stores the old value · T2 misses, SELECTs it for the same entry · T3 leases its tag and thousands of others · what the parameter says."""

    def prepare():
        clear_the_cache()
        assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"old"', b"old", cost=1.0) == "stored"
        fill = journal.lookup(PAGE, draw=1e12)
        if request.param == "a lease ran out":
            with durations(FRESHNESS_LEASE=0.000_001):
                lease = journal.lease({*MANY, "t"})
        else:
            lease = journal.lease({*MANY, "t"})
        if request.param == "the journal was lost":
            get_redis_connection("default").delete(cache.make_key("journal"))
        return fill, lease

    return prepare


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - COMMANDLESS))
def test_a_script_that_fails_at_any_command_never_makes_an_old_value_a_hit(verb, prepare, monkeypatch):
    """T1 stores · T2 misses, SELECTs · T3 leases, COMMITs · a verb of T3 or T4 fails · T5 does not hit T1's entry · T2 may not store."""
    for fill, _ in failing_at_every_command(VERBS[verb], prepare, monkeypatch):
        assert not isinstance(journal.lookup(PAGE), Hit)
        assert journal.store(PAGE, fill, {"t"}, '"old"', b"old") != "stored"
        assert not isinstance(journal.lookup(PAGE), Hit)


@pytest.mark.parametrize("prepare", ["a lease is open", "the journal was lost"], indirect=True)
@pytest.mark.parametrize("verb", sorted(VERBS.keys() - COMMANDLESS - {"close", "begin"}))
def test_a_script_that_fails_at_any_command_ends_no_lease(verb, prepare, monkeypatch):
    """T3 leases · a verb of T4 fails · T5 misses, SELECTs the old value · T3 COMMITs, is killed · T5 may not store. (`begin` is left out, because it is for
    times when nobody writes.)
    """
    for _ in failing_at_every_command(VERBS[verb], prepare, monkeypatch):
        fill = journal.lookup(PAGE)
        assert journal.store(PAGE, fill, {"t"}, '"old"', b"old") in ("leased", "recovering")
        assert not isinstance(journal.lookup(PAGE), Hit)


def test_a_store_that_fails_never_leaves_new_bytes_with_old_tags(monkeypatch):
    """T1 stores a response with tag "t" · T2 stores one with tag "u", and fails · T3 writes "u" · T4 does not hit what T2 read."""

    def prepare():
        clear_the_cache()
        journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1", cost=1.0)
        return [journal.lookup(PAGE, draw=1e12)]

    for _ in failing_at_every_command(lambda fill: journal.store(PAGE, fill, {"u"}, '"2"', b"2"), prepare, monkeypatch):
        journal.close(journal.lease({"u"}))
        assert journal.lookup(PAGE) != Hit('"2"', b"2")


def test_a_close_that_fails_drops_no_record_that_is_still_needed(monkeypatch):
    """T1 misses, SELECTs "t" · T2 writes "t" · T3 closes, which drops the records older than the TTL, and fails · T1 may not store."""

    def prepare():
        clear_the_cache()
        fill = journal.lookup(PAGE)
        journal.close(journal.lease({"t"}))
        get_redis_connection("default").zadd(cache.make_key("journal"), {"|low": -1})  # so that the close drops records
        return fill, journal.lease({"u"})

    def close(_, lease):
        with durations(FRESHNESS_TTL=0.000_001):
            journal.close(lease)

    for fill, _ in failing_at_every_command(close, prepare, monkeypatch):
        assert journal.store(PAGE, fill, {"t"}, '"old"', b"old") == "raced"


# Keys


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_passes_only_keys_of_the_cache(verb, monkeypatch):
    """A Redis user with permission only for the keys of the cache may not even pass an empty key."""
    lease, fill = journal.lease({"t"}), journal.lookup(PAGE)
    passed, pack = [], hiredis.pack_command

    def note(command):
        assert command[0] == "EVALSHA"
        passed.extend(command[3 : 3 + command[2]])
        return pack(command)

    monkeypatch.setattr("housing.freshness.journal.pack_command", note)
    VERBS[verb](fill, lease)

    assert passed
    assert all(key.startswith(cache.make_key("")) for key in passed)


# Any number of tags

SIZES = pytest.mark.parametrize("size", [1, 999, 1_000, 1_001, 4_500, 20_000])


def tags(size):
    """This many tags. The last one is "t"."""
    return [f"row:{number:05}" for number in range(size - 1)] + ["t"]


@SIZES
def test_a_transaction_may_have_any_number_of_tags(size):
    """Lua's stack holds a few thousand values. A script that fails on them could remove the lease without recording its tags."""
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"old"', b"old") == "stored"
    assert journal.store(ANOTHER, journal.lookup(ANOTHER), {"another"}, '"1"', b"1") == "stored"
    lease = journal.lease(tags(size))
    assert not isinstance(journal.lookup(PAGE), Hit)
    assert list(journal.leases()) == [lease]
    journal.close(lease)
    assert journal.leases() == {}
    assert journal.lookup(PAGE).stale
    assert journal.lookup(ANOTHER) == Hit('"1"', b"1")
    assert None not in get_redis_connection("default").zmscore(cache.make_key("journal"), tags(size))


@SIZES
def test_a_lease_that_ran_out_may_have_any_number_of_tags(size):
    """T1 leases, is killed, its lease runs out · T2 misses, which records all tags of the lease."""
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"old"', b"old") == "stored"
    with durations(FRESHNESS_LEASE=0.000_001):
        journal.lease(tags(size))
    journal.lookup(ANOTHER)
    assert journal.lookup(PAGE).stale
    assert None not in get_redis_connection("default").zmscore(cache.make_key("journal"), tags(size))


@SIZES
def test_an_entry_may_have_any_number_of_tags(size):
    """The first and the last of them make it stale."""
    for written in (tags(size)[0], "t"):
        assert journal.store(PAGE, journal.lookup(PAGE), tags(size), '"1"', b"1") == "stored"
        journal.close(journal.lease({"another"}))
        assert journal.lookup(PAGE) == Hit('"1"', b"1")
        lease = journal.lease({written})
        assert not isinstance(journal.lookup(PAGE), Hit)
        journal.close(lease)
        assert journal.lookup(PAGE).stale
