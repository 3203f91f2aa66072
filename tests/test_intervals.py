"""The comparison of places in the journal. Some tags of an entry matter only for rows in an interval, and a write has such a tag and the places of its rows.

The table is `t`, with two columns that have places. T1, T2, … are processes.
"""

import pytest
from django.core.cache import cache
from django_redis import get_redis_connection

from housing.freshness import journal as module
from housing.freshness.journal import Hit, Lease, Miss, Verification, journal
from tests.fixtures.cache import durations

PAGE = cache.make_key("page")
WITHIN = "|in:t|0:10:20"
MOST = 200
"""As in journal.lua."""


@pytest.fixture(autouse=True)
def _journal(transactional_db):
    """The journal is new for each spec."""


def store(interval=WITHIN, miss=None):
    """Store the entry. Its tag `t:+` matters only for rows in the interval."""
    return journal.store(PAGE, miss or journal.lookup(PAGE), {"t:*", "t:+"}, '"e"', b"e", cost=1.0, within={interval: {"t:+"}})


def write(*places, tags=("t", "t:+")):
    """Commit a write of rows with these places."""
    journal.close(journal.lease(tags, places=[f"|at:t|{place}" for place in places]))


def is_fresh():
    """Whether the entry is."""
    return not isinstance(journal.lookup(PAGE), Miss)


def verified():
    """Let hits be given."""
    assert journal.end_verification(journal.begin_verification("", at_once=True), ())


def drop():
    """Commit a write whose close drops what is too old to be compared."""
    journal.close(Lease("0", ("u",)))


def closes():
    """How many closes the journal keeps for comparisons."""
    return get_redis_connection("default").zcount(cache.make_key("journal"), "-inf", -4e15)


# Places and intervals


@pytest.mark.parametrize(
    ("place", "interval", "fresh"),
    [
        ("9", "0:10:20", True),
        ("21", "0:10:20", True),
        ("10", "0:10:20", False),
        ("20", "0:10:20", False),
        ("-9", "0:-10:-5", False),
        ("-11", "0:-10:-5", True),
        ("9", "0:10:", True),
        ("99999999999", "0:10:", False),
        ("21", "0::20", True),
        ("-99999999999", "0::20", False),
        ("", "0:10:20", False),
        ("|5", "0:10:20", False),
        ("5|", "0:10:20", True),
        ("1:9", "0:10:20", True),
        ("1:10", "0:10:20", False),
        ("20:30", "0:10:20", False),
        ("1:30", "0:10:20", False),
        ("21:30", "0:10:20", True),
        ("15|5", "0:10:20|1:6:", True),
        ("15|6", "0:10:20|1:6:", False),
        ("9|6", "0:10:20|1:6:", True),
        ("5|15", "1:10:20", False),
        ("15|5", "1:10:20", True),
        ("7|15", "1:15,7:", False),
        ("6|15", "1:15,7:", True),
        ("6|16", "1:15,7:", False),
        ("7|15", "1::15,7", False),
        ("8|15", "1::15,7", True),
        ("8|14", "1::15,7", False),
        ("|15", "1::15,7", False),
        ("1:9|1:15", "1:15,7:", False),
        ("1:6|1:15", "1:15,7:", True),
        ("8:9|15:16", "1::15,7", True),
        ("9007199254740990", "0:9007199254740991:", True),
        ("9007199254740991", "0:9007199254740991:", False),
    ],
)
def test_a_place_is_inside_if_it_is_between_the_ends_of_each_column(place, interval, fresh):
    """A value at an end counts as inside, and so does an unknown one. Of several rows the smallest and the largest are known."""
    store(f"|in:t|{interval}")
    write(place)
    assert is_fresh() is fresh


def test_one_row_inside_is_enough():
    """A transaction writes several rows."""
    store()
    write("9", "21", "30")
    assert is_fresh()
    write("9", "15", "30")
    assert not is_fresh()


def test_a_tag_that_matters_anywhere_is_not_compared():
    """The rows of the entry, for example, may change without moving."""
    store()
    write("9", tags=("t", "t:*"))
    assert not is_fresh()


def test_another_tag_of_a_row_inside_does_not_matter():
    """The row is in another scope."""
    store()
    write("9")
    write("15", tags=("t", "t.status=sold+"))
    assert is_fresh()


def test_a_row_that_was_read_and_is_not_shown_counts_as_inside():
    """If it leaves the result, there may be no next page. Its new place does not matter, but whether it left does."""
    store(f"{WITHIN}\n|row:t:7")
    write("9", tags=("t", "t:70", "t:+"))
    write("9", tags=("t", "t:7", "t.title"))
    assert is_fresh()
    write("9", tags=("t", "t:7", "t:+"))
    assert not is_fresh()


SCOPED = f"{WITHIN}\n|and:t.b=1|t.b=2|t:?"


@pytest.mark.parametrize(
    ("tags", "fresh"),
    [
        ([], True),
        (["t.b=1+"], False),
        (["t.b=2"], False),
        (["t.b=1.price"], False),
        (["t:?"], False),
        (["t.b=1-"], True),
        (["t.b=10+"], True),
        (["t.b=1-", "t.b=1.price"], False),
        (["u.t.b=1+"], True),
    ],
)
def test_a_row_outside_of_a_further_scope_counts_as_outside_of_the_interval(tags, fresh):
    """The write of a row that enters the page names each scope in which it is then, or the tag of unknown ones."""
    store(SCOPED)
    write("9")
    write("15", tags=("t", "t:+", *tags))
    assert is_fresh() == fresh


def test_a_row_is_inside_only_if_it_is_in_each_further_scope(transactional_db):
    """So it is for an open lease, too."""
    store(f"{SCOPED}\n|and:t.c=1|t:?")
    write("15", tags=("t", "t:+", "t.b=1+"))
    write("9", tags=("t", "t:+", "t.b=1+", "t.c=1+"))
    assert is_fresh()
    lease = journal.lease(("t", "t:+", "t.b=1+", "t.c=1+"), places=["|at:t|15"])
    assert not is_fresh()
    journal.withdraw(lease)


def test_a_row_that_was_read_and_leaves_a_further_scope_counts_as_inside():
    """It is not in the scope afterwards."""
    store(f"{SCOPED}\n|row:t:7")
    write("9", tags=("t", "t:7", "t:+"))
    assert not is_fresh()


@pytest.mark.parametrize("lines", [[], ["|at:u|5"], ["|at:tt|5"]], ids=["no places", "of another table", "of a table with a longer name"])
def test_a_write_without_places_of_the_table_may_be_anywhere(lines):
    """It is a write of raw SQL, of an operator or of another program."""
    store()
    write("9")
    journal.close(journal.lease(("t", "t:+"), places=lines))
    assert not is_fresh()


def test_a_write_that_a_verification_finds_may_be_anywhere():
    """The outbox has no places."""
    store()
    write("9")
    verification = journal.begin_verification("", at_once=True)
    assert journal.end_verification(Verification("", verification.epoch, verification.instant), {"t", "t:+"})
    assert not is_fresh()


def test_a_long_write_counts_as_one_of_everything():
    """The journal keeps no texts of megabytes."""
    store()
    write("9", tags=("t", "t:+", *(f"t.name={number}" for number in range(2000))))
    assert not is_fresh()


def test_two_intervals_are_compared_each_with_its_own_tags():
    """A response may have two lists."""
    journal.store(PAGE, journal.lookup(PAGE), {"t:+", "u:+"}, '"e"', b"e", within={WITHIN: {"t:+"}, "|in:u|0:30:40": {"u:+"}})
    journal.close(journal.lease(("t:+", "u:+"), places=["|at:t|35", "|at:u|15"]))
    assert is_fresh()
    journal.close(journal.lease(("t:+", "u:+"), places=["|at:t|35", "|at:u|35"]))
    assert not is_fresh()


# Leases


@pytest.mark.parametrize(("place", "verdict"), [("9", "stored"), ("15", "leased")])
def test_an_open_lease_is_compared_as_its_close_will_be(place, verdict):
    """T1 leases · T2 reads. The row is outside whether T1 has committed it or not."""
    store()
    lease = journal.lease(("t", "t:+"), places=[f"|at:t|{place}"])
    assert is_fresh() is (verdict == "stored")
    get_redis_connection("default").delete(PAGE)
    assert store() == verdict
    journal.close(lease)
    assert is_fresh() is (verdict == "stored")


@pytest.mark.parametrize(("place", "verdict"), [("9", "stored"), ("15", "raced")])
def test_a_write_that_overtakes_a_fill_is_compared(place, verdict):
    """T1 misses · T2 commits · T1 stores."""
    miss = journal.lookup(PAGE)
    write(place)
    assert store(miss=miss) == verdict


@pytest.mark.parametrize(("place", "fresh"), [("9", True), ("15", False)])
def test_a_lease_that_ran_out_is_compared(place, fresh):
    """T1 leases, is killed, its lease runs out · T2 misses another entry, which records it."""
    store()
    with durations(FRESHNESS_LEASE=0.000_001):
        journal.lease(("t", "t:+"), places=[f"|at:t|{place}"])
        journal.lookup("another")
    assert journal.leases() == {}
    assert is_fresh() is fresh


def test_the_end_of_a_lease_that_was_closed_already_is_compared(redis_clock):
    """T1's close is sent again after its lease has run out and T2 has compared the first one."""
    store()
    lease = journal.lease(("t", "t:+"), places=["|at:t|15"])
    journal.close(lease)
    store()
    journal.close(lease)
    assert not is_fresh()


def test_a_listed_lease_can_be_withdrawn():
    """It has the same text, with its places. An operator sees the tags only."""
    lease = journal.lease(("t", "t:+"), places=["|at:t|9"])
    [listed] = journal.leases()
    assert (listed, listed.tags) == (lease, ("t", "t:+"))
    journal.withdraw(listed)
    assert journal.leases() == {}


# Closes are compared once


def test_closes_are_compared_once():
    """A hit pays after a write to its scope only, and all closes until then are done with."""
    store()
    for _ in range(3):
        for _ in range(MOST):
            write("9")
        assert is_fresh()
    write("15")
    assert not is_fresh()


def test_more_closes_than_are_kept_are_not_compared():
    """The entry counts as stale. A lookup must not take long."""
    store()
    for _ in range(MOST + 1):
        write("9")
    assert not is_fresh()


def test_the_journal_keeps_only_the_last_closes():
    """At least one more than are compared, because otherwise nobody would know that some are missing. The others are dropped with one close of sixteen."""
    for _ in range(MOST + 10):
        write("9")
    drop()
    assert closes() == MOST + 1


def test_the_last_closes_are_kept_and_not_the_first():
    """T1 commits many writes, of which the oldest are dropped · T2 stores · T1 commits one more."""
    for _ in range(MOST + 10):
        write("9")
    drop()
    store()
    write("15")
    assert not is_fresh()


@pytest.mark.only("embedded")
def test_an_entry_that_was_compared_keeps_its_age(redis_clock):
    """While the database is unreachable, a response may be served that was verified or read a short time ago. A comparison is neither. (Embedded only: the
    spec sets Redis's clock.)
    """
    store()
    read_at = journal.inspect(PAGE).read_at
    redis_clock.seconds += 100
    write("9")
    assert is_fresh()
    assert int(get_redis_connection("default").hget(PAGE, "read_at")) > int(read_at)
    assert journal.inspect(PAGE).read_at == read_at
    assert journal.inspect(PAGE).age == pytest.approx(100)
    assert journal.not_known_to_be_stale(PAGE, 1e6)[1] == pytest.approx(100)


def test_a_fill_is_stored_although_the_entry_was_compared_after_it_began():
    """The entry is older. A comparison does not read the database."""
    store()
    fill = journal.lookup(PAGE, draw=1e12)
    write("9")
    assert is_fresh()
    assert journal.store(PAGE, fill, {"t:*"}, '"new"', b"new") == "stored"


def test_a_hit_without_a_comparison_writes_nothing():
    """Its instant stays the same after a write to another table."""
    store()
    verified()
    write("15", tags=("u",))
    before = get_redis_connection("default").hget(PAGE, "read_at")
    assert isinstance(journal.lookup(PAGE), Hit)
    assert get_redis_connection("default").hget(PAGE, "read_at") == before


def test_a_server_that_refuses_to_write_still_gives_a_hit(monkeypatch):
    """A full server lets nobody write. The closes are only compared again."""
    store()
    verified()
    write("9")
    command = "('HSET', entry, 'read_at', text(j.last + 1))"
    assert module.SCRIPT.count(command) == 1
    monkeypatch.setattr(module, "SCRIPT", module.SCRIPT.replace(command, "('NO SUCH COMMAND')"))
    journal.forget_server()
    assert isinstance(journal.lookup(PAGE), Hit)
    monkeypatch.undo()
    journal.forget_server()
