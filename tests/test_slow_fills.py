"""A reader that fills an entry slowly, or fails. The others wait as long as it gives signs of life, and one takes over if it dies, hangs or fails.

T1, T2, … are processes. Below each table are the steps that its specs take, as they were recorded.
"""

import threading
from contextlib import contextmanager
from threading import Event, Semaphore

import pytest
from django.core.cache import cache
from django.db import OperationalError, connection
from django.http import HttpResponse
from django_redis import get_redis_connection

from housing.freshness import Busy, cold_reads, ours
from housing.freshness.entries import PAUSES, respond
from housing.freshness.fills import PER_TIMEOUT, Fills, fills
from housing.freshness.journal import Filling, Journal, Miss, journal
from housing.freshness.settings import conf
from housing.freshness.views import NotCached
from tests.fixtures.trace import playing
from tests.stacks import TIMEOUT

PAGE = cache.make_key("page")


# Signs of life


@pytest.fixture
def beat(redis_clock, monkeypatch):
    """`beat()`: the time between two signs of life passes, and the fills of this process give one."""
    monkeypatch.setattr("housing.freshness.fills.monotonic", redis_clock.time)

    def beat():
        redis_clock.now += conf.WAIT_TIMEOUT / PER_TIMEOUT
        with playing("the thread of the fills"):
            fills.renew()

    return beat


@pytest.fixture
def while_it_waits(home, waiting, redis_clock, monkeypatch):
    """`while_it_waits(act)`: `act` happens during each pause of a reader, with the seconds that it has waited. Redis's clock advances by its pauses, too."""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)

    def while_it_waits(act):
        def pause(seconds):
            waiting.seconds += seconds
            redis_clock.now += seconds
            with playing("another reader"):
                act(waiting.seconds)

        monkeypatch.setattr("housing.freshness.entries.sleep", pause)

    return while_it_waits


@pytest.mark.only("embedded")
def test_only_one_of_fifty_readers_queries_the_database_even_if_it_takes_long(fifty_readers, beat, settings):
    """It may only be slow because they cannot all run, and 49 queries more would slow it down further. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_COLD_READS = 50
    queried, responses = fifty_readers(*[beat] * 2 * PER_TIMEOUT)

    assert len(queried) == 1
    assert responses == ["fwd=miss; collapsed"] * 49 + ["fwd=miss; stored"]


@pytest.mark.only("embedded")
def test_a_reader_waits_for_another_as_long_as_it_gives_signs_of_life(read, while_it_waits):
    """Its response costs one query, however many wait for it. (Embedded only: the spec sets Redis's clock.)"""
    slow = journal.lookup(PAGE)

    def live(seconds):
        assert journal.renew(PAGE, slow)
        assert len(cold_reads._begun) == (seconds > conf.WAIT_TIMEOUT + PAUSES[-1])
        if seconds > 4 * conf.WAIT_TIMEOUT:
            journal.store(PAGE, slow, {"t"}, '"1"', b"1")

    while_it_waits(live)
    assert read("cached").came_from == "fwd=miss; collapsed"


@pytest.mark.only("embedded")
def test_a_reader_that_waits_for_one_that_dies_waits_for_its_successor(read, while_it_waits, redis_clock):
    """T1 gives signs of life, is killed · T2 waits for it · T3 takes over, stores · T2 hits. Otherwise all that waited for T1 would query the database at once.
    (Embedded only: the spec sets Redis's clock.)
    """
    slow, successors = journal.lookup(PAGE), []

    def die_and_be_succeeded(seconds):
        if seconds < 2 * conf.WAIT_TIMEOUT:
            journal.renew(PAGE, slow)
        elif not successors:
            redis_clock.now += conf.WAIT_TIMEOUT
            successors.append(journal.lookup(PAGE, may_wait=True))
        elif seconds > 2.8 * conf.WAIT_TIMEOUT:
            journal.store(PAGE, successors[0], {"t"}, '"1"', b"1")

    while_it_waits(die_and_be_succeeded)
    assert read("cached").came_from == "fwd=miss; collapsed"
    assert isinstance(successors[0], Miss)


@pytest.mark.only("embedded")
def test_one_reader_takes_over_from_one_that_hangs_while_the_others_wait(redis_clock):
    """It lives, but its fill may never end. After half of the longest wait it is given up. (Embedded only: the spec sets Redis's clock.)"""
    hanging = journal.lookup(PAGE)
    while redis_clock.seconds < int(hanging.read_at) / 1e6 + conf.LONGEST_WAIT / 2 - 0.1:
        assert journal.renew(PAGE, hanging)
        assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
        redis_clock.now += 0.1
    assert journal.renew(PAGE, hanging)
    redis_clock.now += 0.1
    assert not journal.renew(PAGE, hanging)
    looks = [journal.lookup(PAGE, may_wait=True) for _ in range(50)]
    assert list(map(type, looks)) == [Miss] + [Filling] * 49


def test_no_reader_waits_longer_than_the_longest_wait(home, read, waiting, a_killed_reader):
    """Its place and its thread are then needed, whatever the other readers do. Here one never ends, and always seems to be alive."""
    hanging = a_killed_reader()

    def seem_alive():
        assert waiting.seconds < 2 * conf.LONGEST_WAIT
        with playing("a reader that hangs"):
            journal.renew(PAGE, hanging)

    type(waiting).begun = seem_alive
    assert read("cached").came_from == "fwd=miss; stored"
    assert conf.LONGEST_WAIT <= waiting.seconds < conf.LONGEST_WAIT + PAUSES[-1]


@pytest.mark.parametrize("end", ["it stored", "it failed", "another took over", "Redis lost its data"])
def test_a_fill_that_nobody_waits_for_gives_no_sign_of_life(home, an_hour_to_wait, end):
    """Its mark is gone, or is another's. A sign would keep readers waiting in vain."""
    miss = journal.lookup(PAGE)
    if end == "it stored":
        journal.store(PAGE, miss, {"t"}, '"1"', b"1")
    elif end == "it failed":
        journal.abandon(PAGE, miss)
    else:
        get_redis_connection("default").delete(PAGE)
    if end == "another took over":
        journal.lookup(PAGE)
    before = get_redis_connection("default").hgetall(PAGE)

    assert not journal.renew(PAGE, miss)
    assert get_redis_connection("default").hgetall(PAGE) == before


def test_a_sign_of_life_keeps_the_mark_of_a_fill(home, an_hour_to_wait):
    """A mark without an entry expires in Redis by itself. An entry expires when it would without a fill."""
    client, miss = get_redis_connection("default"), journal.lookup(PAGE)
    client.pexpire(PAGE, 60_000)
    assert journal.renew(PAGE, miss)
    assert 60_000 < client.pttl(PAGE) <= conf.WAIT_TIMEOUT * 1000

    journal.store(PAGE, miss, {"t"}, '"1"', b"1")
    journal.close(journal.lease({"t"}))
    assert journal.renew(PAGE, journal.lookup(PAGE))
    assert client.pttl(PAGE) > conf.WAIT_TIMEOUT * 1000


@pytest.mark.only("embedded")
def test_a_quick_fill_gives_no_sign_of_life(home, beat, redis_commands):
    """So it costs no command more than its two. (Embedded only: the spec sets Redis's clock.)"""
    beat()
    fill = fills.begin(PAGE, journal.lookup(PAGE))
    with redis_commands.exactly(0, because="no time has passed"):
        fills.renew()
    fills.end(fill)
    with redis_commands.exactly(0, because="the fill has ended"):
        beat()


@pytest.mark.only("embedded")
@pytest.mark.parametrize("reads", ["cached", "cached/1"])
def test_a_fill_is_reported_until_it_ends_with_or_without_a_response(twenty_properties, read, beat, monkeypatch, reads):
    """A fill that was left behind would be reported until the process ends. (Embedded only: the spec sets Redis's clock.)"""
    reported = []
    monkeypatch.setattr(journal, "renew", lambda entry, miss: reported.append(entry) or True)

    def take_long(execute, *statement):
        if not reported:
            beat()
        return execute(*statement)

    with connection.execute_wrapper(take_long):
        read(reads)
    beat()
    assert len(reported) == 1


@pytest.mark.only("embedded")
def test_a_fill_that_nobody_waits_for_is_reported_once_more(home, beat, redis_commands):
    """The reply says so. A fill that never ends would cost eight commands a second. (Embedded only: the spec sets Redis's clock.)"""
    fill = fills.begin(PAGE, journal.lookup(PAGE))
    journal.abandon(PAGE, fill.miss)
    beat()
    with redis_commands.exactly(0, because="nobody waits for it"):
        beat()


# Threads


@pytest.mark.only("embedded")
def test_a_reader_that_finds_no_place_gets_503_instead_of_waiting_for_a_slow_fill(read, while_it_waits, waiting, redis_clock, queries, settings):
    """Each wait keeps a thread, as a read of the database does, and hits need one, too. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_COLD_READS = 0
    slow = journal.lookup(PAGE)
    for _ in range(PER_TIMEOUT + 1):
        redis_clock.now += conf.WAIT_TIMEOUT / PER_TIMEOUT
        journal.renew(PAGE, slow)
    with queries.exactly(0, because="another reader fills the page"):
        assert read("cached").status == 503
    assert waiting.seconds == 0


@pytest.mark.only("embedded")
def test_a_reader_that_finds_no_place_waits_for_many_quick_fills_no_longer_than_the_wait_timeout(read, while_it_waits, waiting, settings):
    """Writes race one reader after another, so no fill is slow. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_COLD_READS = 0
    fills = [journal.lookup(PAGE)]

    def race(seconds):
        journal.close(journal.lease({"t"}))
        assert journal.store(PAGE, fills[-1], {"t"}, '"1"', b"1") == "raced"
        fills.append(journal.lookup(PAGE))

    while_it_waits(race)
    assert read("cached").status == 503
    assert conf.WAIT_TIMEOUT <= waiting.seconds < conf.WAIT_TIMEOUT + PAUSES[-1]


# A fill that fails


class Broken(Exception):
    """A bug of a view."""


@pytest.mark.only("embedded")
@pytest.mark.parametrize(
    ("error", "looks"),
    [
        pytest.param(OperationalError("terminating connection"), [Miss, Filling, Filling], id="the database ends its connection"),
        pytest.param(Busy(), [Miss, Filling, Filling], id="its process has no place for it"),
        pytest.param(SystemExit(), [Miss, Filling, Filling], id="its worker is stopped"),
        pytest.param(Broken(), [Miss, Miss, Miss], id="a bug"),
        pytest.param(NotCached(HttpResponse(status=404)), [Miss, Miss, Miss], id="a 404"),
    ],
)
def test_one_reader_takes_over_a_failed_fill_if_it_may_succeed(transactional_db, redis_clock, error, looks):
    """After a 404 or a bug, each of the others would get the same, so nobody waits. (Embedded only: the spec sets Redis's clock.)"""

    def fail():
        raise error

    with pytest.raises(type(error)):
        respond(lambda _: PAGE, (), fail, ours())
    assert [type(journal.lookup(PAGE, may_wait=True)) for _ in looks] == looks


@pytest.mark.only("embedded")
def test_nobody_waits_after_two_failures_in_a_row(home, redis_clock):
    """The database is probably unavailable. If readers waited for a third, they would get their errors one after another. (Embedded only: the spec sets
    Redis's clock.)
    """
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"old"', b"old")
    journal.close(journal.lease({"t"}))
    journal.abandon(PAGE, journal.lookup(PAGE), another=True)
    second = journal.lookup(PAGE, may_wait=True)
    for _ in range(PER_TIMEOUT):  # it fails slowly
        redis_clock.now += conf.WAIT_TIMEOUT / 2
        journal.renew(PAGE, second)
    journal.abandon(PAGE, second, another=True)
    assert [type(journal.lookup(PAGE, may_wait=True)) for _ in range(3)] == [Miss] * 3
    redis_clock.seconds += conf.WAIT_TIMEOUT + 0.001
    journal.abandon(PAGE, journal.lookup(PAGE), another=True)
    assert [type(journal.lookup(PAGE, may_wait=True)) for _ in range(3)] == [Miss, Filling, Filling]


def test_one_reader_takes_over_a_fill_that_was_raced(home, an_hour_to_wait):
    """T1 misses, SELECTs · T2 writes · T1 may not store · T3 fills the entry and T4 waits for it."""
    miss = journal.lookup(PAGE)
    journal.close(journal.lease({"t"}))
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"
    assert [type(journal.lookup(PAGE, may_wait=True)) for _ in range(3)] == [Miss, Filling, Filling]


# The thread that reports fills


def threads():
    return {thread for thread in threading.enumerate() if thread.name == "freshness-fills"}


class Begun(Event):
    """The event for which the thread waits while there is no fill. `rested` counts how often it does."""

    def __init__(self):
        super().__init__()
        self.rested = Semaphore(0)

    def wait(self, timeout=None):
        self.rested.release()
        return super().wait(timeout)


@pytest.fixture
def new_fills(settings, monkeypatch):
    """The fills of a new process, with a thread. `new_fills.pauses` has the seconds of each of its pauses, which ends as soon as `new_fills.go` is released."""
    settings.FRESHNESS_WATCHMAN = True
    new = Fills()
    new._begun = Begun()
    new.pauses, new.paused, new.go, new.others = [], Semaphore(0), Semaphore(0), threads()

    def pause(seconds):
        new.pauses.append(seconds)
        new.paused.release()
        assert new.go.acquire(timeout=TIMEOUT)

    monkeypatch.setattr("housing.freshness.fills.sleep", pause)
    monkeypatch.setattr("housing.freshness.fills.monotonic", lambda: len(new.pauses) * 3600.0)
    yield new
    assert not new._going
    new.go.release(1000)


def test_a_thread_reports_slow_fills_four_times_in_a_wait_timeout(home, an_hour_to_wait, new_fills):
    """It starts with the first fill, and pauses only while a fill goes on."""
    signs = []
    for rests in (2, 1):  # it also rests when it starts
        fill = new_fills.begin(PAGE, journal.lookup(PAGE))
        for _ in range(2):
            assert new_fills.paused.acquire(timeout=TIMEOUT)
            signs.append(journal.lookup(PAGE, may_wait=True).sign)
            new_fills.go.release()
        assert new_fills.paused.acquire(timeout=TIMEOUT)
        new_fills.end(fill)
        journal.abandon(PAGE, fill.miss, another=True)
        new_fills.go.release()
        for _ in range(rests):
            assert new_fills._begun.rested.acquire(timeout=TIMEOUT)
    assert len(set(signs)) == 4
    assert new_fills.pauses == [conf.WAIT_TIMEOUT / 4] * 6
    assert [thread.daemon for thread in threads() - new_fills.others] == [True]


def report_after(fault, new_fills):
    """Let a thread report a fill once during this fault, and once after it. The second report must arrive."""
    before = journal.lookup(PAGE)
    fill = new_fills.begin(PAGE, before)
    assert new_fills.paused.acquire(timeout=TIMEOUT)
    with fault:
        new_fills.go.release()
        assert new_fills.paused.acquire(timeout=TIMEOUT)
    new_fills.go.release()
    assert new_fills.paused.acquire(timeout=TIMEOUT)
    assert journal.lookup(PAGE, may_wait=True).sign != before.read_at
    new_fills.end(fill)


def test_a_thread_goes_on_reporting_when_redis_is_back(home, an_hour_to_wait, new_fills, redis_unreachable, settings):
    """Until then the readers whose Redis is reachable wait no longer than for a dead one."""
    settings.FRESHNESS_RETRY = 0

    report_after(redis_unreachable(), new_fills)


def test_a_thread_goes_on_reporting_after_an_unexpected_error(home, an_hour_to_wait, new_fills, monkeypatch, caplog):
    """A thread that has ended would report no fill of the process any more, and nobody would see why cold pages are queried more often."""

    @contextmanager
    def broken():
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "renew", lambda *_: {}["broken"])
            yield

    report_after(broken(), new_fills)

    assert [(record.levelname, record.exc_info[0]) for record in caplog.records] == [("ERROR", KeyError)]


def test_a_forked_process_reports_only_its_own_fills(home, new_fills):
    """The reader and the thread of the parent do not exist in it."""
    new_fills.begin(PAGE, journal.lookup(PAGE))
    assert new_fills.paused.acquire(timeout=TIMEOUT)
    new_fills.forget()
    assert (new_fills._going, new_fills.thread, new_fills._begun.is_set()) == (set(), None, False)


@pytest.mark.parametrize("off", [{"FRESHNESS_WATCHMAN": False}, {"FRESHNESS_WAIT_TIMEOUT": 0.0}], ids=str)
def test_a_process_without_a_watchman_or_without_waits_starts_no_thread_for_its_fills(home, new_fills, settings, off):
    """In specs, no thread works while they count. A thread that pauses for no time would keep a processor busy."""
    for name, value in off.items():
        setattr(settings, name, value)
    new_fills.end(new_fills.begin(PAGE, Miss(False, b"1", b"1")))
    assert new_fills.thread is None
