"""The bound: a response is at most FRESHNESS_MAX_STALENESS old after a write that the journal does not know, because another program made it or Redis was
unreachable. The read itself enforces this: without a recent verification there is no hit.

T1, T2, … are processes. Below each table are the steps that its specs take, as they were recorded.
"""

import json
import logging
import threading
from contextlib import contextmanager

import pytest
from django.core.cache import cache
from django.db import connection, transaction
from django.test import Client
from django_redis import get_redis_connection

from housing.freshness import outbox, watchman
from housing.freshness.connection import NotLeased, ours
from housing.freshness.fingerprint import version
from housing.freshness.journal import Hit, Unreachable, Unverified, journal
from housing.freshness.watchman import Watchman
from housing.models import Office, Property
from tests.fixtures.processes import Killed, die, python
from tests.fixtures.rows import commit_outside
from tests.fixtures.trace import another_program

PAGE = cache.make_key("page")
BOUND = 1.0
embedded = pytest.mark.only("embedded")


@pytest.fixture
def clock(redis_clock, settings, twenty_properties, verify):
    """Redis's clock, stopped, and a bound of one second."""
    settings.FRESHNESS_MAX_STALENESS = BOUND
    journal.forget_server()
    verify()
    yield redis_clock
    journal.forget_server()


@pytest.fixture
def from_outside(home):
    """`from_outside(price)`: another program sets the price of the newest property. Its row in the outbox comes from a trigger on PostgreSQL only."""

    def from_outside(price):
        tags = f"housing_property\nhousing_property:{home.pk}\n|version:{version()}"
        rows = [f"INSERT INTO freshness_outbox (tags) VALUES ('{tags}')"] if connection.vendor == "sqlite" else []
        commit_outside(f"UPDATE housing_property SET price = {price} WHERE id = {home.pk}", *rows)
        another_program("UPDATE housing_property SET price", "INSERT INTO freshness_outbox (its trigger)", "COMMIT")

    return from_outside


@pytest.fixture
def waiting_rows():
    """`waiting_rows()`: the rows of the outbox."""
    return lambda: [*connection.connection.execute("SELECT id, tags FROM freshness_outbox").fetchall()]


@pytest.fixture
def during_the_select(elsewhere):
    """`with during_the_select(act):` V takes its instant and SELECTs the outbox, then `act` runs elsewhere, then V continues."""

    def during_the_select(act):
        def race(execute, sql, *rest):
            found = execute(sql, *rest)
            if sql.startswith("SELECT id, tags FROM freshness_outbox"):
                elsewhere(act)
            return found

        return connection.execute_wrapper(race)

    return during_the_select


# The bound


@embedded
def test_a_response_is_at_most_the_bound_old_even_if_every_watchman_is_dead(price, clock, from_outside):
    """Within the bound a reader may get the old price. After it there is no hit. (Embedded only: the spec sets Redis's clock.)"""
    price()
    from_outside(1)
    clock.seconds += BOUND
    assert price() == ("300000.00", "hit")
    clock.seconds += 0.001
    assert price() == ("1.00", "fwd=bypass; detail=unverified")


@embedded
def test_a_write_by_another_program_is_in_the_reads_after_the_next_verification(price, clock, from_outside, verify, waiting_rows):
    """The verification closes the tags of the row that a trigger left. (Embedded only: the spec sets Redis's clock.)"""
    price()
    from_outside(1)
    verify()
    assert price() == ("1.00", "fwd=stale; stored")
    assert price() == ("1.00", "hit")
    assert waiting_rows() == []


def test_a_page_that_another_program_does_not_change_stays_warm(twenty_properties, warm, read, from_outside, verify):
    """The row in the outbox has the tags of the write, so other pages need not be read again."""
    home, other, *_ = twenty_properties
    warm("cached", agent=home.agent_id)
    warm("cached", agent=other.agent_id)
    from_outside(1)
    verify()
    assert read("cached", agent=home.agent_id).came_from == "fwd=stale; stored"
    assert read("cached", agent=other.agent_id).came_from == "hit"


@embedded
def test_hits_return_with_the_next_verification(price, clock, verify):
    """Nothing was written meanwhile, so the entry is still fresh. (Embedded only: the spec sets Redis's clock.)"""
    price()
    clock.seconds += 10 * BOUND
    assert price() == ("300000.00", "fwd=bypass; detail=unverified")
    verify()
    assert price() == ("300000.00", "hit")


@embedded
def test_a_cold_page_is_stored_while_nothing_is_verified(price, clock, verify):
    """It is ready for the readers after the next verification. (Embedded only: the spec sets Redis's clock.)"""
    clock.seconds += 10 * BOUND
    assert price() == ("300000.00", "fwd=miss; stored")
    assert price() == ("300000.00", "fwd=bypass; detail=unverified")
    verify()
    assert price() == ("300000.00", "hit")


@embedded
def test_a_clock_that_steps_back_ends_hits_until_the_next_verification(price, clock, verify):
    """The last verification seems to be in the future, so its age is unknown. (Embedded only: the spec sets Redis's clock.)"""
    price()
    clock.seconds -= 0.5
    assert price() == ("300000.00", "fwd=bypass; detail=unverified")
    verify()
    assert price() == ("300000.00", "hit")


def test_the_verification_of_one_database_allows_no_hit_of_another(transactional_db):
    """Each database has an outbox of its own."""
    for database in ("a", "b"):
        entry = f"{PAGE}:{database}"
        miss = journal.lookup(entry)
        assert journal.store(entry, miss, {"t"}, '"e"', b"e", database=database) == "stored"
    assert journal.end_verification(journal.begin_verification("a"), ())

    assert isinstance(journal.lookup(f"{PAGE}:a"), Hit)
    assert isinstance(journal.lookup(f"{PAGE}:b"), Unverified)
    assert journal.verified("a") < 1e6
    assert journal.verified("b") is None


# The order of its steps


@embedded
def test_a_write_after_the_select_of_a_verification_is_not_counted_as_verified(price, clock, from_outside, during_the_select, verify):
    """The verification records its instant from before the SELECT, and not that of its end. (Embedded only: the spec sets Redis's clock.)"""

    def write_and_wait():
        from_outside(1)
        clock.seconds += BOUND + 0.001

    price()
    with during_the_select(write_and_wait):
        verify()
    assert price() == ("1.00", "fwd=bypass; detail=unverified")


def test_the_row_of_a_write_that_was_committed_after_the_select_is_kept(price, from_outside, during_the_select, verify, waiting_rows):
    """A verification deletes only the rows that it has seen. The next one closes the rest."""
    price()
    from_outside(2)
    with during_the_select(lambda: from_outside(1)):
        verify()
    assert len(waiting_rows()) == 1
    verify()
    assert price() == ("1.00", "fwd=stale; stored")
    assert waiting_rows() == []


def test_a_watchman_that_dies_before_it_closes_deletes_nothing(price, from_outside, verify, waiting_rows, monkeypatch):
    """If rows were deleted first, nobody would ever close their tags."""

    def die(*_):
        raise Unreachable("V1 is killed")

    price()
    from_outside(1)
    with monkeypatch.context() as patched, pytest.raises(Unreachable):
        patched.setattr(journal, "end_verification", die)
        verify()
    assert len(waiting_rows()) == 1
    verify()
    assert price() == ("1.00", "fwd=stale; stored")


def test_rows_that_were_closed_and_not_deleted_are_closed_again(price, from_outside, verify, waiting_rows, monkeypatch):
    """The watchman may die in between. Closing twice may only over-invalidate."""
    price()
    from_outside(1)
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "delete", lambda *_: None)
        verify()
    assert price() == ("1.00", "fwd=stale; stored")
    assert len(waiting_rows()) == 1
    verify()
    assert price() == ("1.00", "fwd=stale; stored")
    assert waiting_rows() == []


@embedded
def test_a_verification_of_a_lost_journal_counts_for_nothing(price, clock, from_outside, during_the_select, verify):
    """Its instant may be in the future of the new journal's clock, and would allow hits until then. (Embedded only: the spec sets Redis's clock.)"""

    def lose_the_journal():
        get_redis_connection("default").delete(cache.make_key("journal"))
        clock.seconds -= 100
        journal.begin()
        Client().get("/api/properties/cached/")
        from_outside(1)

    with during_the_select(lose_the_journal):
        verify()
    clock.seconds += 100.5
    assert price() == ("1.00", "fwd=bypass; detail=unverified")


@embedded
def test_a_verification_whose_database_was_replaced_counts_for_nothing(price, clock, during_the_select, monkeypatch):
    """The rows that it read are those of another database. (Embedded only: the spec sets Redis's clock.)"""
    price()
    clock.seconds += 10 * BOUND
    with during_the_select(bool), monkeypatch.context() as patched:
        patched.setattr(ours(), "database_identity", lambda: "the old one")
        assert watchman.verify(ours()) is False
    assert price() == ("300000.00", "fwd=bypass; detail=unverified")


@embedded
def test_a_verification_in_an_open_transaction_counts_for_nothing(price, clock):
    """Its snapshot may be older than the instant. (Embedded only: the spec sets Redis's clock.)"""
    price()
    clock.seconds += 10 * BOUND
    with ours().own_transaction():
        assert watchman.verify(ours()) is False
    assert price() == ("300000.00", "fwd=bypass; detail=unverified")


def test_more_rows_than_are_read_at_once_make_every_entry_stale(price, waiting_rows, verify, monkeypatch):
    """After hours without Redis it is cheaper to read pages again than to read every row. The rest of the rows is only deleted."""
    monkeypatch.setattr(outbox, "LIMIT", 3)
    price()
    for number in range(4):
        outbox.write(connection, {f"another:{number}"})
    verify()
    assert price() == ("300000.00", "fwd=stale; stored")
    verify()
    assert waiting_rows() == []
    assert price() == ("300000.00", "hit")


@pytest.mark.parametrize("tags", [{"*"}, {"*", "housing_office"}])
def test_the_tag_of_everything_makes_every_entry_stale(price, verify, tags):
    """It is for writes whose tables are unknown."""
    price()
    outbox.write(connection, tags)
    verify()
    assert price() == ("300000.00", "fwd=stale; stored")
    assert price() == ("300000.00", "hit")


# Its cost


@embedded
def test_all_watchmen_together_cost_at_most_four_queries_in_each_bound(clock, from_outside):
    """Two processes look sixteen times in each bound, while another program writes now and then. The journal tells them when they are not needed.
    (Embedded only: the spec sets Redis's clock.)
    """
    sent = []

    def note(execute, sql, *rest):
        sent.append((clock.seconds, sql.split()[0]))
        return execute(sql, *rest)

    with connection.execute_wrapper(note):
        for step in range(10 * 16):
            clock.seconds += BOUND / 16
            if step % 7 == 0:
                from_outside(step)
            watchman.verify(ours())
            watchman.verify(ours())

    assert {verb for _, verb in sent} == {"SELECT", "DELETE"}
    assert max(sum(start <= at < start + BOUND for at, _ in sent) for start, _ in sent) <= 4
    assert outbox.read(connection) == []


def test_a_warm_read_costs_no_query_and_one_round_trip(twenty_properties, warm, read, queries, redis_commands):
    """The script that reads the entry compares the bound, too."""
    warm()
    with queries.exactly(0, because="the page is cached"), redis_commands.exactly(1, because="one script reads the entry and the journal"):
        assert read("cached").came_from == "hit"


# Writes without Redis


def test_a_write_without_redis_is_in_the_reads_after_the_next_verification(home, warm, price, redis_unreachable, verify, caplog):
    """The writer leaves its tags in the outbox, as part of its transaction."""
    warm()

    with redis_unreachable():
        Property.objects.filter(pk=home.pk).update(price=1)
        assert price() == ("1.00", "fwd=bypass; detail=unreachable")

    assert any(line.startswith("Committing without a lease: Redis at ") for line in caplog.messages)
    verify()
    assert price() == ("1.00", "fwd=stale; stored")
    assert price() == ("1.00", "hit")


def test_a_write_without_redis_leaves_other_pages_warm(home, warm, read, redis_unreachable, verify):
    """The outbox has the same tags that the lease would have had."""
    warm("cached", agent=home.agent_id)
    warm("cached", min_price=319_000, max_price=319_000)

    with redis_unreachable():
        home.agent.name = "Renamed"
        home.agent.save(update_fields=["name"])

    verify()
    assert read("cached", agent=home.agent_id).came_from == "fwd=stale; stored"
    assert read("cached", min_price=319_000, max_price=319_000).came_from == "hit"


@embedded
def test_a_write_without_redis_is_not_lost_if_its_writer_is_killed_after_its_commit(home, price, clock, reprice, around_commit, redis_unreachable, verify):
    """The row is part of the transaction. (Embedded only: the spec sets Redis's clock.)"""
    price()
    with redis_unreachable(), pytest.raises(Killed), around_commit(after=die):
        reprice(1)
    verify()
    assert price() == ("1.00", "fwd=stale; stored")


@embedded
def test_a_write_without_redis_is_within_the_bound_for_readers_who_can_reach_it(price, clock, reprice, redis_unreachable):
    """Only the writer was cut off. (Embedded only: the spec sets Redis's clock.)"""
    price()
    with redis_unreachable():
        reprice(1)
    clock.seconds += BOUND
    assert price() == ("300000.00", "hit")
    clock.seconds += 0.001
    assert price() == ("1.00", "fwd=bypass; detail=unverified")


def test_a_write_without_redis_that_is_rolled_back_leaves_no_row(home, redis_unreachable, waiting_rows):
    """The row is part of the transaction."""
    with redis_unreachable(), pytest.raises(Killed), transaction.atomic():
        home.save()
        raise Killed
    assert waiting_rows() == []


def test_a_write_without_redis_costs_one_query_more(home, redis_unreachable, queries):
    with redis_unreachable(), queries.exactly(2, because="one INSERT, and one into the outbox"):
        Office.objects.create(name="New")


@pytest.fixture
def without_an_outbox():
    """`with without_an_outbox():` the table does not exist, as before the first `migrate` of a new release."""

    @contextmanager
    def without_an_outbox():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE freshness_outbox RENAME TO freshness_outbox_elsewhere")
        try:
            yield
        finally:
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE freshness_outbox_elsewhere RENAME TO freshness_outbox")

    return without_an_outbox


def test_a_write_with_neither_redis_nor_outbox_is_refused_before_it_is_committed(home, warm, read, redis_unreachable, without_an_outbox):
    """Once committed, it would stay invisible to readers until the entries expire."""
    warm()

    with without_an_outbox(), redis_unreachable(), pytest.raises(NotLeased, match=r"Rolled back: Redis at .* is unreachable .* outbox .* `manage.py migrate`"):
        Property.objects.filter(pk=home.pk).update(price=1)

    assert read("optimized").rows[0]["price"] == "300000.00"
    assert read("cached").came_from == "hit"


def test_the_connection_still_works_after_a_write_was_refused(home, redis_unreachable, without_an_outbox):
    """The transaction is rolled back, so the next write begins a new one."""
    with without_an_outbox(), redis_unreachable(), pytest.raises(NotLeased):
        home.save()

    home.save()


def test_ctrl_c_while_the_outbox_is_written_leaves_nothing_written(home, warm, read, redis_unreachable, monkeypatch):
    """Without a row there is no COMMIT, whatever the reason."""
    warm()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, redis_unreachable(), pytest.raises(KeyboardInterrupt):
        patched.setattr(outbox, "write", interrupted)
        Property.objects.filter(pk=home.pk).update(price=1)

    assert read("optimized").rows[0]["price"] == "300000.00"
    assert read("cached").came_from == "hit"


# The thread


@pytest.fixture
def new_watchman(settings, transactional_db):
    """The watchman of a new process, which ends with the spec."""
    settings.FRESHNESS_WATCHMAN, settings.FRESHNESS_MAX_STALENESS = True, 3e6
    journal.forget_server()
    watchman = Watchman()
    yield watchman
    watchman.stop()
    journal.forget_server()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "freshness-watchman"]


def test_the_first_read_starts_one_thread_and_waits_for_its_first_verification(new_watchman, verify):
    """So the second read of a new process is a hit. Later reads start nothing."""
    journal.begin()
    readers = [threading.Thread(target=new_watchman.watch, args=("default",)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    new_watchman.watch("another")
    assert len(threads()) == 1


def test_a_watchman_ends_with_its_process_and_closes_its_connection(new_watchman):
    """Otherwise a worker could not exit during a deploy, and the database would keep an unused connection."""
    new_watchman.watch("default")
    [thread] = threads()
    assert thread.daemon  # a process that ends does not wait for it
    new_watchman.stop()
    assert threads() == []


def test_a_watchman_says_once_that_it_fails_and_once_that_it_is_back(new_watchman, redis_unreachable, caplog):
    """A line per second would bury others."""
    caplog.set_level(logging.INFO)
    new_watchman.watched.add("default")
    with redis_unreachable():
        for _ in range(3):
            new_watchman._verify("default")
    for _ in range(3):
        new_watchman._verify("default")

    failed, back = [line for line in caplog.messages if line.startswith("The database 'default'")]
    assert failed.startswith("The database 'default' cannot be verified, so cached responses are not served: Redis at ")
    assert back == "The database 'default' is verified again after 0 s."


def test_a_watchman_survives_every_error(new_watchman, without_an_outbox, caplog):
    """Its next verification may succeed."""
    journal.begin()
    with without_an_outbox():
        new_watchman._verify("default")
    assert "freshness_outbox" in caplog.text
    new_watchman._verify("default")
    assert new_watchman._failing == {}


def test_a_process_without_a_watchman_starts_no_thread(new_watchman, settings):
    """FRESHNESS_WATCHMAN is False in the specs, so that no thread works while they count."""
    settings.FRESHNESS_WATCHMAN = False
    new_watchman.watch("default")
    assert threads() == []


def test_a_forked_process_has_a_watchman_of_its_own(transactional_db):
    """A server may read a page before it forks its workers. The thread of the parent does not exist in them."""
    parent = Watchman()
    parent.watched.add("default")
    parent.thread = threading.Thread()
    parent.forget()
    assert (parent.watched, parent.thread) == (set(), None)


FORKING = """
import json, os, sys, threading
from wsgiref.util import setup_testing_defaults
import housing.settings
housing.settings.FRESHNESS_MAX_STALENESS = 60.0
from housing.wsgi import application

def read(query=""):
    environ = {"PATH_INFO": "/api/properties/cached/", "QUERY_STRING": query}
    setup_testing_defaults(environ)
    response = application(environ, lambda *_: None)
    response.close()
    return response.headers["Cache-Status"]

def ours():
    return [sum(thread.name == name for thread in threading.enumerate()) for name in ("freshness-watchman", "freshness-fills")]

def report(who):
    os.write(1, (json.dumps([who, ours(), [read(), read(f"min_price={os.getpid()}")], ours()]) + "\\n").encode())

report("the parent")
child = os.fork()
if child:
    report("the parent again")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
report("the child")
"""
"""A server that reads a page before it forks. A line: who, its watchmen and threads of fills, the Cache-Status of two reads, and the threads after them."""


@embedded
def test_a_server_has_one_thread_of_each_kind_in_each_of_its_processes_and_ends_with_them(twenty_properties):
    """A thread does not survive a fork, and nobody may wait for one at the end. (Embedded only: nothing here depends on the servers.)"""
    name = f"sqlite:///{connection.settings_dict['NAME']}"
    server = python("-c", FORKING, DATABASE_URL=name, REDIS_URL="fakeredis://", DJANGO_SECRET_KEY="any", DJANGO_ALLOWED_HOSTS="127.0.0.1")

    assert (server.code, server.stderr.count("Traceback")) == (0, 0), server.stderr
    seen = {who: rest for who, *rest in map(json.loads, server.stdout.splitlines())}
    assert {who: (before, after) for who, (before, _, after) in seen.items()} == {
        "the parent": ([0, 0], [1, 1]),
        "the parent again": ([1, 1], [1, 1]),
        "the child": ([0, 0], [1, 1]),
    }


NOT_PROMISED = {
    "Two caches on one database see each other's writes": "The outbox belongs to one journal. Services that share a database must share a Redis, too.",
}
