"""Many readers of one entry. One of them fills it, and the others wait while it is alive. They wait for a dead one no longer than the wait timeout.

T1, T2, … are processes. Below each table are the steps that its specs take, as they were recorded.
"""

import random
from contextlib import ExitStack
from itertools import count

import pytest
from django.core.cache import cache
from django.db import connection
from django_redis import get_redis_connection

from housing.freshness.entries import ATTEMPTS, PAUSES, draws
from housing.freshness.journal import Filling, Hit, Miss, journal
from housing.freshness.settings import conf

PAGE = cache.make_key("page")


# Single flight


def test_only_one_of_fifty_cold_readers_queries_the_database(fifty_readers, an_hour_to_wait):
    """Without this, all readers of a popular page would query the database at once whenever the page is not cached."""
    queried, responses = fifty_readers(bool)

    assert len(queried) == 1
    assert responses == ["fwd=miss; collapsed"] * 49 + ["fwd=miss; stored"]


def test_a_waiting_reader_never_gets_a_response_older_than_its_own_request(home, an_hour_to_wait):
    """A write came before its request, so the response that it waited for is not stored, and it queries the database itself."""
    miss = journal.lookup(PAGE)
    journal.close(journal.lease({"t"}))
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)


def test_a_stale_entry_is_not_served_while_it_is_refilled(home, an_hour_to_wait):
    """A reader that does not wait gets the rows from the database."""
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "stored"
    journal.close(journal.lease({"t"}))
    assert journal.lookup(PAGE).stale
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    assert journal.lookup(PAGE).stale


def test_the_mark_of_a_fill_expires_after_the_wait_timeout(home, settings):
    """Otherwise requests for IDs that do not exist could fill Redis with marks, because there is no end of such IDs."""
    journal.lookup(PAGE)
    assert 0 < get_redis_connection("default").pttl(PAGE) <= conf.WAIT_TIMEOUT * 1000


def test_a_reader_stops_waiting_for_a_killed_reader_at_the_wait_timeout(home, read, waiting, a_killed_reader):
    """Then it queries the database itself."""
    a_killed_reader()

    assert read("cached").came_from == "fwd=miss; stored"
    assert conf.WAIT_TIMEOUT <= waiting.seconds < conf.WAIT_TIMEOUT + PAUSES[-1]


def test_a_reader_that_is_raced_waits_no_longer_than_one_wait_timeout_in_all(home, read, waiting, a_killed_reader, reprice, meanwhile):
    """T1 is killed · T2 waits, reads · T3 writes and T4 is killed · T2 reads again at once. Otherwise three killed readers would cost 1.5 s."""
    a_killed_reader()
    prices = iter(range(1, 9))

    def write_and_kill_another_reader():
        reprice(next(prices))
        journal.lookup(PAGE)

    with meanwhile(write_and_kill_another_reader, times=ATTEMPTS):
        assert read("cached").came_from == "fwd=miss; detail=raced"
    assert conf.WAIT_TIMEOUT <= waiting.seconds < conf.WAIT_TIMEOUT + PAUSES[-1]


def test_a_waiting_reader_looks_again_less_and_less_often(home, read, waiting, a_killed_reader, monkeypatch):
    """It doubles its pause after each look, up to the longest pause."""
    paused = []
    monkeypatch.setattr("housing.freshness.entries.sleep", lambda seconds: paused.append(seconds) or waiting.sleep(seconds))
    a_killed_reader()

    read("cached")

    assert tuple(paused[: len(PAUSES)]) == PAUSES
    assert set(paused[len(PAUSES) :]) == {PAUSES[-1]}


@pytest.mark.only("embedded")
@pytest.mark.parametrize("before", ["no entry", "a stale entry"])
def test_another_reader_takes_over_the_fill_of_a_killed_reader(home, redis_clock, settings, before):
    """One reader fills the entry and the others wait. Otherwise all of them would query the database at once. (Embedded only: the spec sets Redis's clock.)"""
    if before == "a stale entry":  # it does not expire with its fill
        journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"old"', b"old")
        journal.close(journal.lease({"t"}))
    journal.lookup(PAGE)
    redis_clock.seconds += conf.WAIT_TIMEOUT + 0.001
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)


def test_no_reader_waits_for_a_fill_that_ended_in_404(transactional_db, read, waiting):
    """A 404 is not cached. If its fill stayed marked, the next readers of the same ID would wait in vain, one after another."""
    for _ in range(3):
        assert read("cached/1").status == 404
    assert waiting.seconds == 0


def test_a_failed_fill_that_cannot_be_reported_to_redis_is_logged(transactional_db, read, redis_unreachable, caplog):
    """Redis becomes unreachable during the fill. Other readers may wait for it, so the log says for how long."""
    with ExitStack() as away:

        def cut(execute, *statement):
            away.enter_context(redis_unreachable())
            return execute(*statement)

        with connection.execute_wrapper(cut):
            assert read("cached/1").status == 404
    assert caplog.messages[0].startswith("The fill failed and could not be reported, so other readers may wait up to FRESHNESS_WAIT_TIMEOUT: Redis at ")


@pytest.mark.only("embedded")
def test_no_reader_waits_within_one_wait_timeout_after_a_failed_fill(home, redis_clock, settings):
    """The next fills may fail as well, and each would keep all readers waiting. (Embedded only: the spec sets Redis's clock.)"""
    journal.abandon(PAGE, journal.lookup(PAGE))
    for _ in range(2):
        assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    redis_clock.seconds += conf.WAIT_TIMEOUT + 0.001
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)


def test_a_late_reader_does_not_end_the_fill_of_another(home, an_hour_to_wait):
    """A reader that stopped waiting reads the database, too. Its end says nothing about the fill of the other."""
    first, second = journal.lookup(PAGE), journal.lookup(PAGE)
    journal.abandon(PAGE, second)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    journal.close(journal.lease({"u"}))
    assert journal.store(PAGE, second, {"u"}, '"2"', b"2") == "raced"
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    assert journal.store(PAGE, first, {"t"}, '"1"', b"1") == "stored"
    assert journal.lookup(PAGE, may_wait=True) == Hit('"1"', b"1")


def test_no_reader_waits_while_a_lease_is_open(home, an_hour_to_wait):
    """No fill could be stored while it is open, so waiting would be in vain."""
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "leased"
    for _ in range(2):
        assert journal.lookup(PAGE, may_wait=True).stale is False
    journal.close(lease)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)


def test_a_read_under_a_lease_is_not_served_after_the_lease_is_withdrawn(home):
    """It left its tags in Redis, but no response."""
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "leased"
    journal.withdraw(lease)
    assert isinstance(journal.lookup(PAGE), Miss)


def test_a_warm_entry_is_warm_again_after_a_lease_is_withdrawn(home):
    """A read under the lease did not replace the entry."""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1")
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"2"', b"2") == "leased"
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    journal.withdraw(lease)
    assert journal.lookup(PAGE) == Hit('"1"', b"1")


def test_a_stale_entry_is_still_stale_after_a_lease_is_withdrawn(home):
    """A read under the lease did not make it look newer."""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1")
    journal.close(journal.lease({"t"}))
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"2"', b"2") == "leased"
    journal.withdraw(lease)
    assert journal.lookup(PAGE).stale


def test_no_reader_waits_while_the_journal_is_recovering(home):
    """No fill can be stored yet, so waiting would be in vain."""
    get_redis_connection("default").delete(cache.make_key("journal"))
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "recovering"
    for _ in range(2):
        assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)


# Early expiration


@pytest.fixture
def one_second_reads(monkeypatch):
    """Let every read take one second."""
    monkeypatch.setattr("housing.freshness.entries.perf_counter", count().__next__)


@pytest.mark.only("embedded")
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_an_entry_expires_early_as_often_as_the_xfetch_formula_says(transactional_db, read, redis_clock, settings, one_second_reads, verify, beta):
    """A reader refills an entry early if cost × β × −ln(random) reaches the time that the entry has left. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_BETA = beta
    draws.seed(7)
    read("cached")
    formula = random.Random(7)
    formula.expovariate(1.0)
    seen, expected = [], []
    for _ in range(20):
        redis_clock.seconds += conf.TTL - 1.5
        verify()
        seen.append(read("cached").came_from)
        expected.append("fwd=stale; stored" if 1.0 * beta * formula.expovariate(1.0) >= 1.5 else "hit")
        journal.begin()
        verify()
        read("cached")
        formula.expovariate(1.0)

    assert seen == expected
    assert seen.count("fwd=stale; stored") == {0.0: 0, 1.0: 3, 3.0: 9}[beta]


@pytest.mark.parametrize(("cost", "stored"), [({}, b"0"), ({"cost": 1.5}, b"1500000")], ids=["no cost", "1.5 s"])
def test_the_cost_of_a_response_is_stored_in_microseconds(cost, stored):
    """All times in the journal are in microseconds. An entry without a cost never expires early."""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1", **cost)

    assert get_redis_connection("default").hget(PAGE, "cost") == stored


@pytest.mark.only("embedded")
def test_other_readers_get_the_entry_while_one_refills_it_early(home, redis_clock, settings):
    """The entry is fresh until then, so nobody needs to wait. (Embedded only: the spec sets Redis's clock.)"""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1", cost=1.0)
    redis_clock.seconds += conf.TTL - 0.5
    assert journal.lookup(PAGE) == Hit('"1"', b"1")  # without a draw it never expires early
    early = journal.lookup(PAGE, draw=0.6)
    assert early.stale
    assert journal.lookup(PAGE, draw=0.6, may_wait=True) == Hit('"1"', b"1")
    assert journal.store(PAGE, early, {"t"}, '"2"', b"2") == "stored"
    assert journal.lookup(PAGE, draw=0.6) == Hit('"2"', b"2")


@pytest.mark.only("embedded")
def test_an_entry_is_read_again_when_its_ttl_has_passed(home, read, redis_clock, settings):
    """Early expiration is off in this spec, so nothing but the TTL ends the entry. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_BETA = 0.0
    read("cached")
    redis_clock.seconds += conf.TTL
    assert read("cached").came_from == "fwd=stale; stored"
    assert read("cached").came_from == "hit"
