"""What happens at once. Readers and writers step between each other, processes die, Redis forgets: slower, never stale.

T1, T2, … are processes. Each spec is one story, its steps in order.
"""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from threading import Barrier, Event

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection
from redis.exceptions import ConnectionError as RedisConnectionError

from conftest import Killed, ask, die, entries, flush
from housing.freshness.entries import ATTEMPTS, PAUSES, draws
from housing.freshness.journal import Filling, Hit, Miss, journal, script
from housing.freshness.management.commands.leases import Command
from housing.freshness.settings import conf
from housing.models import Property, PropertyImage

SELECT = Property.objects.order_by("pk")


def an_iterator():
    """One that has rows left."""
    rows = SELECT.iterator(chunk_size=2)
    next(rows)
    return rows


def a_cursor():
    """The same of a cursor."""
    cursor = connection.cursor()
    cursor.execute("SELECT id FROM housing_property")
    cursor.fetchone()
    return cursor


PAGE, ANOTHER = cache.make_key("page"), cache.make_key("another page")


@pytest.fixture
def reprice(home):
    """Give the newest property a price, as any process would."""

    def reprice(price):
        mine = Property.objects.get(pk=home.pk)
        mine.price = price
        mine.save(update_fields=["price"])

    return reprice


@pytest.fixture
def price(read):
    """The price that a reader is shown, and where the answer came from."""

    def price():
        response = read("cached")
        return response.rows[0]["price"], response.came_from

    return price


# A read is raced by a write


def test_a_write_between_select_and_store(reprice, price, meanwhile):
    """The oldest race of all: what T1 read is already old when it would remember it."""
    with meanwhile(lambda: reprice(1)):  # T1 misses, SELECTs the old price · T2 leases, COMMITs, closes
        assert price() == ("1.00", "fwd=miss; stored")  # T1 may not store what it read, and reads again
    assert price() == ("1.00", "hit")


def test_a_write_between_select_and_store_every_time(reprice, price, meanwhile):
    """A reader does not try for ever; it answers with what it read last, which was true when it read it."""
    prices = iter(range(1, 9))
    with meanwhile(lambda: reprice(next(prices)), times=ATTEMPTS):
        assert price() == (f"{ATTEMPTS - 1}.00", "fwd=miss; detail=raced")
    assert price() == (f"{ATTEMPTS}.00", "fwd=miss; stored")


def test_a_write_that_is_rolled_back_between_select_and_store(home, price, meanwhile):
    """Nothing was said to Redis, so nothing is read again."""

    def change_your_mind():
        with transaction.atomic():
            Property.objects.filter(pk=home.pk).update(price=1)
            transaction.set_rollback(True)

    with meanwhile(change_your_mind):
        assert price() == ("300000.00", "fwd=miss; stored")


def test_a_write_to_something_else_between_select_and_store(twenty_properties, read, meanwhile, queries):
    home, other = twenty_properties[:2]
    with queries.exactly(2, because="the property and its images are read once"), meanwhile(other.save):
        assert read(f"cached/{home.pk}").came_from == "fwd=miss; stored"


def test_a_title_and_images_of_two_states_are_never_one_answer(home, read, meanwhile):
    """The detail asks twice. Both see one state, whoever writes in between, however often."""

    def rename_and_strip():
        with transaction.atomic():
            mine = Property.objects.get(pk=home.pk)
            count = mine.images.count()
            mine.title = f"{count + 1} images"
            mine.save()
            PropertyImage.objects.create(property=mine, url="https://images.example.com/one-more.jpg")

    rename_and_strip()
    with meanwhile(rename_and_strip, times=ATTEMPTS):
        response = read(f"cached/{home.pk}")

    assert response.came_from == "fwd=miss; detail=raced"
    assert response.json["title"] == f"{len(response.json['images'])} images"


# A read steps between the steps of a write


def test_a_read_between_lease_and_commit(reprice, price, around_commit):
    """T2 reads the old price, which is still true; but it may not be remembered, for COMMIT may come before the store."""
    seen = []
    with around_commit(before=lambda: seen.append(price())):  # T1 leases · T2 reads · T1 COMMITs, closes
        reprice(1)
    assert seen == [("300000.00", "fwd=miss; detail=leased")]
    assert price() == ("1.00", "fwd=miss; stored")


def test_a_read_between_commit_and_close(reprice, price, around_commit):
    """T2 sees the new price, and nobody after it sees the old one: a page that was warm is not trusted either."""
    price()
    seen = []
    with around_commit(after=lambda: seen.extend([price(), price()])):  # T1 leases, COMMITs · T2 reads, reads · T1 closes
        reprice(1)
    assert seen == [("1.00", "fwd=miss; detail=leased")] * 2
    assert price() == ("1.00", "fwd=stale; stored")


def test_a_detail_between_lease_and_commit(home, reprice, read, around_commit):
    """It has a transaction of its own, which ends while the other is about to."""
    seen = []
    with around_commit(before=lambda: seen.append(read(f"cached/{home.pk}"))):
        reprice(1)
    assert [(response.json["price"], response.came_from) for response in seen] == [("300000.00", "fwd=miss; detail=leased")]
    assert read(f"cached/{home.pk}").json["price"] == "1.00"


@pytest.mark.only("embedded")
def test_a_writer_after_a_detail_takes_its_lock_at_once(home, read):
    """The detail's own transaction takes none; what comes after it on the connection does, or could fail half way. (SQLite alone has two ways.)"""
    read(f"cached/{home.pk}")
    with CaptureQueriesContext(connection) as statements, transaction.atomic():
        pass
    assert statements[0]["sql"] == "BEGIN IMMEDIATE"


def test_a_read_that_began_before_the_lease_and_ends_before_the_close(reprice, price, around_commit, meanwhile):
    seen = []

    def read_while_it_commits():
        seen.append(price())

    with around_commit(before=read_while_it_commits, after=read_while_it_commits):
        reprice(1)
    assert [came_from for _, came_from in seen] == ["fwd=miss; detail=leased"] * 2
    assert price() == ("1.00", "fwd=miss; stored")


def test_pages_that_a_write_does_not_touch_stay_warm_while_it_commits(twenty_properties, warm, read, around_commit):
    home, other = twenty_properties[:2]
    warm(f"cached/{other.pk}")
    seen = []
    with around_commit(before=lambda: seen.append(read(f"cached/{other.pk}").came_from)):
        home.save()
    assert seen == ["hit"]


def test_the_close_of_one_writer_ends_no_lease_of_another(home, reprice, price):
    """T1 and T2 write the same row; T1 has leased and is about to COMMIT when T2 closes."""
    price()
    lease = journal.lease({f"housing_property:{home.pk}"})  # T1 leases
    reprice(2)  # T2 leases, COMMITs, closes
    assert price() == ("2.00", "fwd=miss; detail=leased")  # T1 might have committed by now
    journal.close(lease)
    assert price() == ("2.00", "fwd=stale; stored")


def test_of_two_leases_on_the_same_tags_a_close_ends_one():
    """T1 and T2 write the same columns of the same row: what each has leased looks alike."""
    first, second = journal.lease({"t"}), journal.lease({"t"})
    journal.close(second)
    assert list(journal.leases()) == [first]


def test_a_slow_reader_does_not_overwrite_a_fast_one(home, price):
    """T1 misses · T2 misses, stores · T1 stores: what T2 read is newer."""
    slow = journal.lookup(PAGE)
    fast = journal.lookup(PAGE)
    assert journal.store(PAGE, fast, {"t"}, '"new"', b"new") == "stored"
    assert journal.store(PAGE, slow, {"t"}, '"old"', b"old") == "raced"
    assert journal.lookup(PAGE) == Hit('"new"', b"new")


# Many readers of one page


@pytest.fixture
def endless_patience(settings):
    """However slow the machine is."""
    settings.FRESHNESS_WAIT_TIMEOUT = 3600.0
    journal.forget_server()  # the setting is in the script's text
    yield
    journal.forget_server()


def test_of_fifty_cold_readers_one_asks_the_database(twenty_properties, handler, waiting, endless_patience):
    """The others have its answer: they looked it up when it was there."""
    everybody_waits, it_is_there, asked = Barrier(50), Event(), []

    def wait_for_the_others():
        everybody_waits.wait(timeout=30)
        it_is_there.wait(timeout=30)

    def read_alone(_):
        client = Client()
        client.handler = handler
        try:
            with connection.execute_wrapper(take_your_time):
                return ask(client).came_from
        finally:
            it_is_there.set()
            connection.close()

    def take_your_time(execute, *statement):
        asked.append(statement[0])
        everybody_waits.wait(timeout=30)
        return execute(*statement)

    type(waiting).begun = wait_for_the_others
    with ThreadPoolExecutor(50) as readers:
        responses = list(readers.map(read_alone, range(50)))

    assert len(asked) == 1
    assert sorted(responses) == ["fwd=miss; collapsed"] * 49 + ["fwd=miss; stored"]


def test_who_waits_gets_no_response_older_than_its_own_start(home):
    """T1 misses, SELECTs · T2 writes · T3 begins, and waits for T1 · T1 may not store · T3 asks the database itself."""
    miss = journal.lookup(PAGE)
    journal.close(journal.lease({"t"}))
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)


def test_while_one_reads_anew_nobody_is_given_what_is_stale(home):
    """Neither who waits, nor who does not."""
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "stored"
    journal.close(journal.lease({"t"}))
    assert journal.lookup(PAGE).stale
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    assert journal.lookup(PAGE).stale


def test_that_somebody_asked_is_soon_forgotten(home, settings):
    """There is no end of addresses at which nothing is."""
    journal.lookup(PAGE)
    assert 0 < get_redis_connection("default").pttl(PAGE) <= conf.WAIT_TIMEOUT * 1000


def test_who_waits_for_a_reader_that_died_does_not_wait_longer_than_its_patience(home, read, waiting, settings, monkeypatch):
    """T1 misses, is killed · T2 waits, then asks the database."""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)
    journal.lookup(PAGE)

    assert read("cached").came_from == "fwd=miss; stored"
    assert conf.WAIT_TIMEOUT <= waiting.seconds < conf.WAIT_TIMEOUT + PAUSES[-1]


def test_who_waits_looks_again_less_and_less_often(home, read, waiting, monkeypatch):
    """T1 misses, is killed · T2 pauses twice as long each time, and then as long as before."""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)
    paused = []
    monkeypatch.setattr("housing.freshness.entries.sleep", lambda seconds: paused.append(seconds) or waiting.sleep(seconds))
    journal.lookup(PAGE)

    read("cached")

    assert tuple(paused[: len(PAUSES)]) == PAUSES
    assert set(paused[len(PAUSES) :]) == {PAUSES[-1]}


@pytest.mark.only("embedded")
def test_what_a_reader_that_died_was_filling_is_another_ones_after_a_while(home, redis_clock, settings):
    """And others wait for that one. (Only where the clock can be turned.)"""
    journal.lookup(PAGE)
    redis_clock.seconds += conf.WAIT_TIMEOUT + 0.001
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)


def test_nobody_waits_for_a_reader_that_found_nothing(transactional_db, read, waiting):
    """An id that is not there is not remembered: whoever asks for it at once would wait in vain, one after another."""
    for _ in range(3):
        assert read("cached/1").status == 404
    assert waiting.seconds == 0


def test_a_reader_that_found_nothing_and_cannot_say_so_is_in_the_log(transactional_db, read, redis_away, caplog):
    """Redis goes away while it asks the database."""
    with ExitStack() as away:

        def cut(execute, *statement):
            away.enter_context(redis_away())
            return execute(*statement)

        with connection.execute_wrapper(cut):
            assert read("cached/1").status == 404
    assert caplog.messages[0].startswith("Not answered, and others may wait for it until their patience is at its end: Redis at ")


@pytest.mark.only("embedded")
def test_nobody_waits_for_a_reader_that_failed_until_it_is_long_ago(home, redis_clock, settings):
    """T1 misses, fails · T2, T3 ask at once · later T4 asks, and T5 waits for it. (Only where the clock can be turned.)"""
    journal.abandon(PAGE, journal.lookup(PAGE))
    for _ in range(2):
        assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    redis_clock.seconds += conf.WAIT_TIMEOUT + 0.001
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)


def test_who_comes_too_late_to_fill_ends_nobody_elses_fill(home):
    """T1 misses, T2 is impatient · T2 fails, or stores too late: T3 still waits for T1, and gets what T1 stored."""
    first, second = journal.lookup(PAGE), journal.lookup(PAGE)
    journal.abandon(PAGE, second)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    journal.close(journal.lease({"u"}))
    assert journal.store(PAGE, second, {"u"}, '"2"', b"2") == "raced"
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)
    assert journal.store(PAGE, first, {"t"}, '"1"', b"1") == "stored"
    assert journal.lookup(PAGE, may_wait=True) == Hit('"1"', b"1")


def test_where_a_lease_is_open_nobody_waits(home):
    """What is read cannot be remembered. T1 finds that out for those who come after it; when the lease is over they wait again."""
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "leased"
    for _ in range(2):
        assert journal.lookup(PAGE, may_wait=True).stale is False
    journal.close(lease)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    assert isinstance(journal.lookup(PAGE, may_wait=True), Filling)


def test_what_could_not_be_remembered_is_no_response_once_its_lease_is_withdrawn(home):
    """Only its tags were."""
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "leased"
    journal.withdraw(lease)
    assert isinstance(journal.lookup(PAGE), Miss)


def test_a_page_that_was_warm_is_warm_again_when_a_lease_is_withdrawn(home):
    """What was read meanwhile, and could not be remembered, did not put it out."""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1")
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"2"', b"2") == "leased"
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)
    journal.withdraw(lease)
    assert journal.lookup(PAGE) == Hit('"1"', b"1")


def test_what_is_stale_stays_stale_when_a_lease_is_withdrawn(home):
    """What was read meanwhile, and could not be remembered, did not make it look younger."""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1")
    journal.close(journal.lease({"t"}))
    lease = journal.lease({"t"})
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"2"', b"2") == "leased"
    journal.withdraw(lease)
    assert journal.lookup(PAGE).stale


def test_in_a_recovering_journal_nobody_waits(home):
    """T1 finds out that nothing can be remembered yet."""
    evict_the_journal()
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1") == "recovering"
    for _ in range(2):
        assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)


# An answer's time is nearly up


@pytest.fixture
def costing(monkeypatch):
    """Every answer takes a second to read."""
    monkeypatch.setattr("housing.freshness.entries.perf_counter", count().__next__)


@pytest.mark.only("embedded")
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_a_response_is_read_again_early_as_often_as_the_formula_says(transactional_db, read, redis_clock, settings, costing, beta):
    """XFetch: where cost × β × -ln(random) reaches the time that is left. (Only where the clock can be turned.)"""
    settings.FRESHNESS_BETA = beta
    draws.seed(7)
    read("cached")
    formula = random.Random(7)
    formula.expovariate(1.0)
    seen, expected = [], []
    for _ in range(20):
        redis_clock.seconds += conf.TTL - 1.5
        seen.append(read("cached").came_from)
        expected.append("fwd=stale; stored" if 1.0 * beta * formula.expovariate(1.0) >= 1.5 else "hit")
        journal.begin()
        read("cached")
        formula.expovariate(1.0)

    assert seen == expected
    assert seen.count("fwd=stale; stored") == {0.0: 0, 1.0: 3, 3.0: 9}[beta]


@pytest.mark.parametrize(("said", "kept"), [({}, b"0"), ({"cost": 1.5}, b"1500000")])
def test_what_a_response_cost_is_kept_in_microseconds(said, kept):
    """As all times of the journal are; whoever does not say it is never early."""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1", **said)

    assert get_redis_connection("default").hget(PAGE, "cost") == kept


@pytest.mark.only("embedded")
def test_while_one_reads_early_the_others_have_the_response_that_is_there(home, redis_clock, settings):
    """Nobody waits, and nobody joins in. (Only where the clock can be turned.)"""
    journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"1"', b"1", cost=1.0)
    redis_clock.seconds += conf.TTL - 0.5
    assert journal.lookup(PAGE) == Hit('"1"', b"1")  # who draws nothing is never early
    early = journal.lookup(PAGE, draw=0.6)
    assert early.stale
    assert journal.lookup(PAGE, draw=0.6, may_wait=True) == Hit('"1"', b"1")
    assert journal.store(PAGE, early, {"t"}, '"2"', b"2") == "stored"
    assert journal.lookup(PAGE, draw=0.6) == Hit('"2"', b"2")


@pytest.mark.only("embedded")
def test_a_response_whose_time_is_up_is_read_again(home, read, redis_clock, settings):
    """Whatever is drawn. (Only where the clock can be turned.)"""
    settings.FRESHNESS_BETA = 0.0
    read("cached")
    redis_clock.seconds += conf.TTL
    assert read("cached").came_from == "fwd=stale; stored"
    assert read("cached").came_from == "hit"


# A process dies


@pytest.mark.only("embedded")
def test_killed_between_lease_and_commit(reprice, price, around_commit, redis_clock, settings):
    """Nothing was written. Readers cannot know, and ask the database until the lease has run out. (Only where the clock can be turned.)"""
    price()
    with pytest.raises(Killed), around_commit(before=die):
        reprice(1)
    assert price() == ("300000.00", "fwd=miss; detail=leased")
    redis_clock.seconds += conf.LEASE + 1
    assert price() == ("300000.00", "fwd=stale; stored")
    assert price() == ("300000.00", "hit")


@pytest.mark.only("embedded")
def test_killed_between_commit_and_close(reprice, price, around_commit, redis_clock, settings):
    """It was written, and nobody was told: the lease, taken before, tells it. (Only where the clock can be turned.)"""
    price()
    with pytest.raises(Killed), around_commit(after=die):
        reprice(1)
    assert price() == ("1.00", "fwd=miss; detail=leased")
    redis_clock.seconds += conf.LEASE + 1
    assert price() == ("1.00", "fwd=stale; stored")
    assert price() == ("1.00", "hit")


def test_a_fill_between_lease_and_commit_is_not_served_when_the_writer_dies_after_commit(reprice, price, around_commit):
    """T1 leases · T2 misses, SELECTs the old price, may not store it · T1 COMMITs, is killed before its close · T3 reads the new price."""
    filled = []
    with pytest.raises(Killed), around_commit(before=lambda: filled.append(price()), after=die):
        reprice(1)
    assert filled == [("300000.00", "fwd=miss; detail=leased")]
    assert [price() for _ in range(2)] == [("1.00", "fwd=miss; detail=leased")] * 2


def test_a_fill_that_began_between_lease_and_commit_and_ends_after_the_writer_died(home, reprice, price, around_commit, monkeypatch):
    """T1 leases · T2 misses, SELECTs the old price · T1 COMMITs, is killed before its close · T2 may not store it · T3 reads the new price."""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)
    fills = []
    with pytest.raises(Killed), around_commit(before=lambda: fills.append(journal.lookup(PAGE)), after=die):
        reprice(1)
    [fill] = fills
    assert journal.store(PAGE, fill, {f"housing_property:{home.pk}"}, '"old"', b"old") == "leased"
    assert price() == ("1.00", "fwd=miss; detail=leased")


@pytest.mark.only("embedded")
def test_a_fill_between_lease_and_commit_is_not_served_once_the_lease_of_the_dead_writer_has_run_out(
    home, reprice, price, around_commit, redis_clock, monkeypatch
):
    """As before, and T2 stores after the lease is over. (Only where the clock can be turned.)"""
    monkeypatch.setattr("housing.freshness.views.entry_key", lambda *_: PAGE)
    fills = []
    with pytest.raises(Killed), around_commit(before=lambda: fills.append(journal.lookup(PAGE)), after=die):
        reprice(1)
    redis_clock.seconds += conf.LEASE + 1
    [fill] = fills
    assert journal.store(PAGE, fill, {f"housing_property:{home.pk}"}, '"old"', b"old") == "leased"
    assert price()[0] == "1.00"
    assert journal.store(PAGE, fill, {f"housing_property:{home.pk}"}, '"old"', b"old") == "raced"
    assert price()[0] == "1.00"


@pytest.mark.only("embedded")
def test_an_entry_read_under_a_lease_that_ran_out_is_not_trusted_afterwards(home, redis_clock, settings):
    """T1 leases, dies · T2 reads before T1's COMMIT could have been seen, stores after the lease is over. (Only where the clock can be turned.)"""
    journal.lease({"t"})
    miss = journal.lookup(PAGE)
    redis_clock.seconds += conf.LEASE + 1
    journal.lookup(ANOTHER)
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"new"', b"new") == "stored"


@pytest.mark.only("embedded")
@pytest.mark.parametrize("begin", [lambda: journal.lease({"t"}), lambda: evict_the_journal() or journal.lookup(ANOTHER)], ids=["a lease", "a recovering lease"])
def test_a_read_at_the_very_instant_at_which_a_lease_runs_out_is_not_trusted(home, redis_clock, settings, begin):
    """A COMMIT may be of that instant too: ties are stale, while the lease is there and once it is settled. (Only where the clock can be turned.)"""
    redis_clock.seconds = round(redis_clock.seconds) + 1
    begin()
    redis_clock.seconds += conf.LEASE
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") in ("leased", "recovering")
    for settle in (lambda: journal.lookup(ANOTHER), lambda: journal.close(journal.lease({"u"}))):
        settle()
        assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "raced"
    assert journal.store(PAGE, journal.lookup(PAGE), {"t"}, '"e"', b"e") == "stored"


@pytest.mark.only("embedded")
def test_a_lease_that_ran_out_does_not_hide_a_later_close(home, redis_clock, settings):
    """T1 leases, dies · the lease runs out · T2 closes later: T2's close counts, not T1's expiry. (Only where the clock can be turned.)"""
    journal.lease({"t"})
    redis_clock.seconds += conf.LEASE + 1
    journal.close(journal.lease({"t"}))
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "stored"
    journal.close(journal.lease({"t"}))
    journal.lease({"u"})
    redis_clock.seconds += conf.LEASE + 1
    assert isinstance(journal.lookup(PAGE), Miss)


@pytest.fixture
def leases(capsys):
    """What `manage.py leases` shows."""

    def leases():
        call_command("leases")
        return capsys.readouterr().out.splitlines()

    return leases


def test_the_leases_that_are_open_can_be_looked_at(leases):
    """Whoever asks why a page is not remembered sees whose COMMIT it waits for."""
    assert leases() == ["No lease is open."]
    first, second = journal.lease({"agent:1", "agent.office"}), journal.lease({"office:2"})
    assert [line.split()[0] for line in leases()] == [first.id, second.id]
    assert leases()[0].endswith(" s left  agent.office, agent:1")
    journal.close(first)
    assert [line.split()[0] for line in leases()] == [second.id]
    journal.withdraw(second)
    assert leases() == ["No lease is open."]


def test_to_look_at_leases_changes_nothing(leases):
    """Not even by an instant: who looks is no reader."""
    journal.lease({"t"})
    key = cache.make_key("journal")
    before = get_redis_connection("default").dump(key)
    leases()
    assert get_redis_connection("default").dump(key) == before
    evict_the_journal()
    assert leases() == ["No lease is open."]
    assert get_redis_connection("default").exists(key) == 0


@pytest.mark.only("embedded")
def test_how_long_a_lease_stays_open_is_told_to_the_microsecond(redis_clock, settings):
    """Only where the clock can be stopped."""
    redis_clock.seconds += 1  # since the journal was born
    lease = journal.lease({"t", "u"})
    redis_clock.seconds += 2
    assert journal.leases() == {lease: conf.LEASE - 2}


@pytest.mark.only("embedded")
def test_the_lease_of_a_killed_process_is_shown_until_it_runs_out(reprice, around_commit, leases, redis_clock, settings):
    """T1 leases, dies · nobody reads or writes, so nobody settles it · it is over all the same. (Only where the clock can be turned.)"""
    with pytest.raises(Killed), around_commit(before=die):
        reprice(1)
    redis_clock.seconds += conf.LEASE - 1.5
    [line] = leases()
    assert "  1.5 s left  " in line
    redis_clock.seconds += 1.4
    [line] = leases()
    assert "  0.1 s left  " in line
    redis_clock.seconds -= 1  # it steps back, and the lease is there for longer
    [line] = leases()
    assert "  1.1 s left  " in line
    redis_clock.seconds += 1
    redis_clock.seconds += 0.2
    assert leases() == ["No lease is open."]


@pytest.mark.only("embedded")
def test_a_lease_in_the_journal_of_another_server_is_not_open(leases, run_id):
    """The next reader begins a new journal, with a lease on everything. (Only where the server's run can be chosen.)"""
    journal.lease({"t"})
    assert len(leases()) == 1
    run_id("b")
    journal.lease({"t"})
    run_id("c")
    assert leases() == ["No lease is open."]


@pytest.mark.only("embedded")
def test_the_lease_of_a_new_journal_says_that_it_is_on_everything(leases, redis_clock):
    """Only where the clock can be turned."""
    evict_the_journal()
    journal.lookup(PAGE)
    assert leases() == ["recovering  5.0 s left  everything, because the journal is new and a running writer may not know it"]


def test_without_redis_there_are_no_leases_to_look_at(redis_away, capsys):
    """One line, and an exit code that a script can tell."""
    with redis_away(), pytest.raises(SystemExit) as ended:
        Command().run_from_argv(["manage.py", "leases"])

    assert ended.value.code == 1
    assert re.fullmatch(r"CommandError: Redis at \S+ is out of reach \(.*\)\.\n", capsys.readouterr().err)


# Redis forgets


def evict_the_journal():
    get_redis_connection("default").delete(cache.make_key("journal"))


@pytest.mark.only("embedded")
@pytest.mark.parametrize("forget", [evict_the_journal, flush])
def test_the_journal_is_lost_while_a_write_commits(reprice, price, around_commit, redis_clock, settings, forget):
    """The lease went with it. A new journal begins with one on everything, for as long as it could have lasted. (Only where the clock can be turned.)"""
    price()
    seen = []

    def forget_and_read():
        forget()
        seen.extend([price(), price()])

    with around_commit(before=forget_and_read):  # T1 leases · Redis forgets · T2 reads, reads · T1 COMMITs, closes
        reprice(1)
    assert seen == [("300000.00", "fwd=miss; detail=recovering")] * 2
    assert price() == ("1.00", "fwd=miss; detail=recovering")
    redis_clock.seconds += conf.LEASE + 1
    assert price()[0] == "1.00"
    assert price() == ("1.00", "hit")


@pytest.mark.parametrize("forget", [evict_the_journal, flush])
def test_the_journal_is_lost_after_a_killed_writer(reprice, price, around_commit, forget):
    """T1 is killed between COMMIT and close · the journal is lost, its lease and all · T2 reads: what is in Redis still is disowned."""
    price()
    with pytest.raises(Killed), around_commit(after=die):
        reprice(1)
    forget()
    assert price() == ("1.00", "fwd=miss; detail=recovering")
    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("embedded")
def test_an_entry_of_a_lost_journal_is_disowned_even_if_the_clock_stepped_back(reprice, price, redis_clock, settings):
    """Its instant lies in the new journal's future: only the epoch tells them apart. (Only where the clock can be turned.)"""
    price()
    reprice(1)
    evict_the_journal()
    redis_clock.seconds -= 3 * conf.LEASE
    price()
    redis_clock.seconds += conf.LEASE + 1
    assert price()[0] == "1.00"
    assert price() == ("1.00", "hit")  # and it does not keep its place, though its instant is the later one


@pytest.mark.only("embedded")
def test_a_fill_that_began_in_a_lost_journal_is_not_remembered(home, redis_clock, settings):
    """T1 misses · the journal is lost, and born anew by T2 · T1 stores: nobody knows what was written in between. (Only where the clock can be turned.)"""
    miss = journal.lookup(PAGE)
    evict_the_journal()
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "raced"
    redis_clock.seconds -= 3 * conf.LEASE
    journal.lookup(ANOTHER)
    redis_clock.seconds += conf.LEASE + 1
    journal.lookup(ANOTHER)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "raced"


@pytest.mark.parametrize("entry", [0, 1])
def test_an_evicted_entry_is_read_again(home, warm, read, entry):
    """Entries are all alike: any may go at any time."""
    warm()
    warm(f"cached/{home.pk}")
    get_redis_connection("default").delete(sorted(entries())[entry])

    assert sorted(read(page).came_from for page in ("cached", f"cached/{home.pk}")) == ["fwd=miss; stored", "hit"]


@pytest.mark.only("embedded")
def test_records_are_dropped_and_what_was_read_before_them_with_them(home, redis_clock, settings):
    """T1 misses · T2 writes what T1 reads · its record outlives its use and is dropped · T1, very late, stores. (Only where the clock can be turned.)"""
    miss = journal.lookup(PAGE)
    journal.close(journal.lease({"t"}))
    redis_clock.seconds += conf.TTL + 1
    journal.close(journal.lease({"u"}))
    assert get_redis_connection("default").zscore(cache.make_key("journal"), "t") is None
    assert journal.store(PAGE, miss, {"t"}, '"old"', b"old") == "raced"


@pytest.mark.only("embedded")
def test_a_journal_remembers_no_more_than_was_written_within_a_ttl(home, redis_clock, settings):
    """Only where the clock can be turned."""
    for number in range(50):
        lease = journal.lease({f"agent:{number}"})
        if number % 2:  # every other writer dies
            journal.close(lease)
        redis_clock.seconds += conf.TTL / 10

    assert get_redis_connection("default").zcard(cache.make_key("journal")) < 20


# Redis's clock


@pytest.mark.only("embedded")
def test_the_clock_steps_back_a_little(reprice, price, redis_clock):
    """Instants are the clock made monotonic: a write never seems older than a read before it. (Only where the clock can be turned.)"""
    price()
    redis_clock.seconds -= 1
    reprice(1)
    assert price() == ("1.00", "fwd=stale; stored")
    assert price() == ("1.00", "hit")


@pytest.mark.only("embedded")
def test_the_clock_steps_back_by_more_than_a_lease(home, reprice, price, redis_clock, settings):
    """Leases would never run out: the journal is born anew without what it knew, and the next minutes begin cold. (Only where the clock can be turned.)"""
    home.agent.save()
    price()
    redis_clock.seconds -= 3 * conf.LEASE
    reprice(1)
    assert price() == ("1.00", "fwd=miss; detail=recovering")
    redis_clock.seconds += conf.LEASE + 1
    price()
    assert price() == ("1.00", "hit")


@pytest.mark.only("embedded")
def test_a_clock_that_steps_back_keeps_nobody_waiting(home, redis_clock):
    """The reader that asks the database seems to have begun in the future, and could seem to be at it for hours. (Only where the clock can be turned.)"""
    journal.lookup(PAGE)
    redis_clock.seconds -= 3600
    assert isinstance(journal.lookup(PAGE, may_wait=True), Miss)


@pytest.mark.only("embedded")
def test_two_events_of_one_microsecond_are_told_apart(reprice, price, redis_clock):
    """The clock stands still here. (Only where the clock can be turned.)"""
    for new in range(1, 4):
        price()
        reprice(new)
        assert price() == (f"{new}.00", "fwd=stale; stored")
        assert price() == (f"{new}.00", "hit")


# Redis restarts


@pytest.fixture
def run_id(monkeypatch, settings):
    """A server that knows its run: `run_id("b")` is another one, which came up with the data of the one before it.

    With `after_info` it comes up once the one before it has said which run it is. A connection ends with its server.
    """
    from fakeredis import FakeRedisConnection

    send, receive, runs, next_runs = FakeRedisConnection.send_command, FakeRedisConnection.read_response, ["a"], []
    due, told = set(), {}

    def send_command(self, *args, **kwargs):
        if args[0] == "INFO":
            due.add(self)
        elif args[0] == "SCRIPT" and told.get(self, runs[-1]) != runs[-1]:
            raise RedisConnectionError("Connection reset by peer")
        else:
            send(self, *args, **kwargs)

    def read_response(self, *args, **kwargs):
        if self not in due:
            return receive(self, *args, **kwargs)
        due.discard(self)
        told[self] = runs[-1]
        if next_runs:
            restart(next_runs.pop())
        return f"# Server\r\nredis_version:7.0.15\r\nrun_id:{told[self]}\r\n".encode()

    def restart(run, after_info=False):
        if after_info:
            next_runs.append(run)
        else:
            runs.append(run)
            get_redis_connection("default").script_flush()

    monkeypatch.setattr(FakeRedisConnection, "send_command", send_command)
    monkeypatch.setattr(FakeRedisConnection, "read_response", read_response)
    settings.FRESHNESS_RUN_ID = None
    journal.forget_server()
    journal.begin()
    yield restart
    journal.forget_server()


@pytest.mark.only("embedded")
def test_a_server_that_restarts_with_all_its_data_begins_cold(reprice, price, run_id):
    """It may be an old dump: what it remembers may be of before the last write. (Only a server that is told its run id by the spec.)"""
    price()
    assert price() == ("300000.00", "hit")
    run_id("b")
    assert price() == ("300000.00", "fwd=miss; detail=recovering")


@pytest.mark.only("embedded")
def test_a_server_that_only_forgot_its_scripts_goes_on_warm(home, price, run_id):
    """Only a server that is told its run id by the spec."""
    price()
    run_id("a")
    assert price() == ("300000.00", "hit")


@pytest.mark.only("embedded")
def test_the_script_is_loaded_by_the_server_whose_id_is_in_it(run_id, monkeypatch):
    """Over one connection, which would end with the server, and is given back. (Only a server that is told its run id by the spec.)"""
    pool = get_redis_connection("default").connection_pool
    sent, send = [], pool.connection_class.send_command

    def note(self, *command, **options):
        sent.append((self, command))
        send(self, *command, **options)

    monkeypatch.setattr(pool.connection_class, "send_command", note)
    used = len(pool._in_use_connections)

    journal.forget_server()
    journal.begin()

    (first, asked), (second, loaded) = [(connection, command) for connection, command in sent if command[0] in ("INFO", "SCRIPT")]
    assert (asked, loaded) == (("INFO",), ("SCRIPT", "LOAD", script("a")))
    assert first is second
    assert len(pool._in_use_connections) == used


@pytest.mark.only("embedded")
def test_a_restart_takes_no_connection_away(home, price, run_id, monkeypatch):
    """Each would be one less in the pool, and in the end there would be none. A pool with one connection for each thread is enough."""
    monkeypatch.setattr(get_redis_connection("default").connection_pool, "max_connections", 1)
    for number in range(20):
        run_id(f"b{number}")
        assert price() == ("300000.00", "fwd=miss; detail=recovering")


@pytest.mark.only("embedded")
def test_a_server_that_restarts_while_it_is_asked_which_run_it_is(home, price, run_id):
    """The script goes over the connection that asked, which ends with its server: no run is taken for another. (Only where the spec tells the run id.)"""
    price()
    journal.forget_server()  # a new process
    run_id("b", after_info=True)
    assert price() == ("300000.00", "fwd=miss; detail=recovering")


# A connection that still reads


@pytest.mark.only("embedded")
@pytest.mark.parametrize("page", ["cached", "cached/{}"], ids=["a list", "a detail"])
@pytest.mark.parametrize("pin", [an_iterator, a_cursor], ids=["an iterator", "a cursor"])
def test_a_read_while_an_earlier_select_is_not_read_to_its_end(home, read, reprice, elsewhere, pin, page):
    """On SQLite every SELECT of a connection sees what the first unfinished one saw: older than `read_at`. (psycopg reads to the end.)"""
    page = page.format(home.pk)
    for price in (1, 2):  # the connection's first read is no other than its second
        unfinished = pin()
        elsewhere(partial(reprice, price))  # T2 leases, COMMITs, closes
        read(page)  # T1 misses, SELECTs the old price: it may not be stored
        unfinished.close()
        assert read(page).body == read(page.replace("cached", "optimized")).body


@pytest.mark.only("embedded")
@pytest.mark.parametrize(("begin", "end"), [("BEGIN", "COMMIT"), ("SAVEPOINT mine", "RELEASE mine")])
@pytest.mark.parametrize("page", ["cached", "cached/{}"], ids=["a list", "a detail"])
def test_a_read_inside_a_transaction_that_only_sql_began(home, read, reprice, elsewhere, begin, end, page):
    """Django thinks that it is in autocommit; the driver knows better. (PostgreSQL takes no SAVEPOINT there.)"""
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


NOT_PROMISED = {
    "A replica of the database, or of Redis, is fresh": "It is behind by a time that nobody bounds: one primary of each is read.",
    "A failover of Redis loses nothing": "The new primary may lack the last lease, and does not know it.",
    "A COMMIT that outlasts its lease and a crash behind it are survived": "The lease is all that readers have; it is longer than a COMMIT takes on a bad day.",
    "Two versions of the code that overlap in a deploy tell each other all": "Each has the tag table of its own; entries are apart, for their keys carry it.",
}


# A command runs twice


def test_every_command_may_run_twice(home):
    """A client that lost the connection cannot know whether its command ran, and sends it again."""
    lease = journal.lease({"t"})
    journal._run("lease", lease.id, *lease.tags)
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "leased"
    journal.close(lease)
    journal.close(lease)
    miss = journal.lookup(PAGE)
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "stored"
    assert journal.store(PAGE, miss, {"t"}, '"e"', b"e") == "stored"
    journal.withdraw(lease)
    journal.withdraw(lease)
    assert journal.lookup(PAGE) == Hit('"e"', b"e")
