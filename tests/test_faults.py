"""Faults of real servers. Processes are killed, servers restart, evict keys and wait for locks: responses may be slower, but never stale.

T1, T2, … are connections or processes. A spec that breaks Redis has a Redis of its own. All specs are for the real stack only, because
embedded servers die with the process, restart empty and have no row locks.
"""

import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from django.conf import settings as service
from django.core.cache import cache
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django_redis import get_redis_connection

from housing.models import Office, Property
from tests import ROOT
from tests.fixtures.rows import a_property, saved
from tests.stacks import TIMEOUT, wait_for

SOON = 2_000
"""The number of reads within which a page must be warm again after its writer was killed."""


@pytest.fixture
def reprice(home):
    """Set the price of the newest property with one UPDATE, so that the fault meets the write and no SELECT before it."""

    def reprice(price):
        Property.objects.filter(pk=home.pk).update(price=price)

    return reprice


# A process is killed


DIES = """
import os, signal, sys
from django.conf import settings
settings.CACHES["default"]["KEY_PREFIX"], settings.FRESHNESS_LEASE, pk, where = sys.argv[1], 1.0, int(sys.argv[2]), sys.argv[3]
import django
django.setup()
from django.db.backends.base.base import BaseDatabaseWrapper
from housing.freshness import connection as commit
from housing.models import Property
from tests.stacks import wait_for

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class Dies(type(commit.journal)):
    close = die

commit.journal.__class__ = Dies
if where == "before":
    BaseDatabaseWrapper._commit = die
Property.objects.filter(pk=pk).update(price=1)
"""
"""A process that writes a price, and kills itself before or after its COMMIT."""


@pytest.mark.only("real")
@pytest.mark.parametrize(("where", "expected"), [("before", "300000.00"), ("after", "1.00")], ids=["before COMMIT", "after COMMIT"])
def test_no_response_is_stale_after_a_writer_is_killed_with_sigkill(home, price, where, expected):
    """T1 leases, COMMITs or not, is killed · T2 reads the current price from the database until the lease runs out · T2 reads, stores, hits."""
    price()
    url = "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(connection.settings_dict)
    killed = subprocess.run(
        [sys.executable, "-c", DIES, service.CACHES["default"]["KEY_PREFIX"], str(home.pk), where],
        cwd=ROOT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "housing.settings", "DATABASE_URL": url},
        timeout=TIMEOUT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL

    seen = [price()]
    while seen[-1][1] != "hit" and len(seen) < SOON:
        seen.append(price())

    assert {shown for shown, _ in seen} == {expected}
    assert seen[0][1] == "fwd=miss; detail=leased"
    assert [came_from for _, came_from in seen[-2:]] == ["fwd=stale; stored", "hit"]


# Redis restarts


@pytest.mark.only("real")
def test_a_redis_that_restarts_from_an_old_dump_begins_cold(own_redis, price, reprice):
    """T1 reads, stores · Redis saves its dump · T2 writes · Redis restarts · T3 reads the new price. The dump has the old page and a journal without the
    write, but the run ID has changed, so neither is trusted.
    """
    server = own_redis()
    price()
    get_redis_connection("default").save()
    reprice(1)
    assert price() == ("1.00", "fwd=stale; stored")

    server.restart()

    assert cache.make_key("journal").encode() in set(redis.Redis.from_url(server.url).scan_iter()), "Redis did not load its dump"
    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("real")
def test_a_redis_that_restarts_empty_begins_cold(own_redis, price, reprice):
    """T1 reads, stores · T2 writes · Redis restarts · T3 reads, may not store, because a lease may have been lost."""
    server = own_redis()
    price()
    reprice(1)

    server.restart()

    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("real")
def test_no_read_is_stored_after_redis_restarts_during_a_write(own_redis, price, reprice, around_commit):
    """T1 leases · Redis restarts from a dump from before the lease · T2 reads twice, may not store · T1 COMMITs, closes."""
    server = own_redis()
    price()
    get_redis_connection("default").save()
    seen = []

    def restart_and_read():
        server.restart()
        seen.extend([price(), price()])

    with around_commit(before=restart_and_read):
        reprice(1)

    assert seen == [("300000.00", "fwd=miss; detail=recovering")] * 2
    assert price()[0] == "1.00"


@pytest.mark.only("real")
def test_no_read_is_stored_after_flushall_during_a_write(own_redis, price, reprice, around_commit):
    """T1 leases · FLUSHALL deletes the lease · T2 reads twice, may not store · T1 COMMITs, closes."""
    own_redis()
    price()
    seen = []

    def flush_and_read():
        get_redis_connection("default").flushall()
        seen.extend([price(), price()])

    with around_commit(before=flush_and_read):
        reprice(1)

    assert seen == [("300000.00", "fwd=miss; detail=recovering")] * 2
    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("real")
@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-random"])
def test_no_response_is_stale_while_redis_evicts_keys(twenty_properties, own_redis, read, policy):
    """A `volatile-*` policy evicts entries. An `allkeys-*` policy evicts the journal, too, and then everything begins cold. Every response equals the
    database's.
    """
    own_redis("--maxmemory-policy", policy, "--latency-tracking", "no", "--slowlog-log-slower-than", "-1")  # which would take memory, too
    client = get_redis_connection("default")
    twenty_properties[0].save()
    read("cached")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 200_000)
    for number in range(100):
        parameters = {"max_price": 400_000 + number % 40}
        if number % 10 == 0:
            twenty_properties[number % 20].save()
        assert read("cached", **parameters).body == read("optimized", **parameters).body

    assert client.info("stats")["evicted_keys"] > 0


# Connections are cut


def cut_redis():
    """Let Redis cut every connection but this one."""
    get_redis_connection("default").client_kill_filter(_type="normal", skipme=True)


def cut_postgres():
    """Let PostgreSQL cut every connection to this database but this one."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


@pytest.mark.only("real")
def test_a_reader_responds_if_redis_cuts_its_connection_between_select_and_store(own_redis, price, reprice, meanwhile):
    """T1 misses, SELECTs · Redis cuts its connection · T1 responds, whether it can store or not."""
    own_redis()
    with meanwhile(cut_redis):
        assert price()[0] == "300000.00"
    reprice(1)
    assert price()[0] == "1.00"


@pytest.mark.only("real")
def test_a_write_is_not_missed_if_redis_cuts_the_connection_of_its_writer(own_redis, price, reprice, around_commit):
    """T1 leases · Redis cuts its connection · T1 COMMITs, closes over a new connection or lets the lease run out · T2 reads the new price."""
    own_redis()
    price()
    with around_commit(before=cut_redis, after=cut_redis):
        reprice(1)
    assert price()[0] == "1.00"


@pytest.mark.only("real")
def test_a_write_whose_connection_postgresql_cuts_makes_nothing_stale(home, price, elsewhere):
    """T1 writes · PostgreSQL cuts its connection before COMMIT · T2 hits. The next write gets a new connection."""
    price()
    with pytest.raises(OperationalError), transaction.atomic():
        home.save()
        elsewhere(cut_postgres)
        Property.objects.count()
    connection.close()
    assert price() == ("300000.00", "hit")

    home.price = 2
    home.save()
    assert price()[0] == "2.00"


@pytest.mark.only("real")
def test_a_commit_whose_outcome_is_unknown_leaves_its_lease_open(price, reprice, around_commit):
    """T1 leases · PostgreSQL cuts its connection · COMMIT fails, and T1 cannot know whether it took effect · T2 reads, may not store until the lease runs
    out.
    """
    price()
    with pytest.raises(OperationalError), around_commit(before=cut_postgres):
        reprice(1)
    connection.close()
    assert price() == ("300000.00", "fwd=miss; detail=leased")


# Two transactions write one row


@pytest.mark.only("real")
def test_two_overlapping_writes_of_one_row_are_seen_in_their_order(home, price, elsewhere):
    """T1 writes · T2 waits for T1's lock · T1 COMMITs, closes · T2 writes, COMMITs, closes. A reader between all these steps sees no uncommitted price, and
    no old price after a new one.
    """
    seen, t2_writes = [price()], threading.Event()

    def t2():
        try:
            with transaction.atomic():
                Property.objects.filter(pk=home.pk).update(price=2)  # waits for T1's lock
                t2_writes.set()
                seen.append(elsewhere(price))
        finally:
            connections.close_all()

    second = threading.Thread(target=t2)
    with transaction.atomic():
        Property.objects.filter(pk=home.pk).update(price=1)  # T1 writes
        seen.append(elsewhere(price))
        second.start()
        elsewhere(wait_until_a_transaction_waits_for_a_lock)  # T2 begins, and waits
        seen.append(elsewhere(price))
        assert not t2_writes.is_set()
    # T1 has COMMITted and closed. T2 goes on, a reader reads, T2 COMMITs and closes.
    second.join(TIMEOUT)
    seen += [price(), price()]

    assert [shown for shown, _ in seen] == ["300000.00", "300000.00", "300000.00", "1.00", "2.00", "2.00"]
    assert [came_from for _, came_from in seen[:3]] == ["fwd=miss; stored", "hit", "hit"]
    assert seen[-1] == ("2.00", "hit")


def wait_until_a_transaction_waits_for_a_lock():
    """Ask PostgreSQL until one does. Raises after some time."""

    def ask():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
            _waiting, *_ = cursor.fetchall()  # there is one

    wait_for(ask, ValueError)


@pytest.mark.only("real")
def test_an_unlocked_save_that_waited_for_another_writer_invalidates_the_page_that_its_row_leaves(home, warm, read_the_list, elsewhere):
    """T2 loads a row · T1 sets another status · T2 saves, waits for T1 · T1 COMMITs, closes · T2 writes the old status back. The row must then leave the
    page of T1's status.
    """
    t2_copy = Property.objects.get(pk=home.pk)
    second = threading.Thread(target=lambda: (t2_copy.save(), connections.close_all()))
    with transaction.atomic():
        Property.objects.filter(pk=home.pk).update(status="sold")
        second.start()
        elsewhere(wait_until_a_transaction_waits_for_a_lock)
    second.join(TIMEOUT)

    assert read_the_list(status="sold") == []
    assert read_the_list(status="available")[0]["id"] == home.pk


# Writes that only PostgreSQL has


@pytest.mark.only("real")
def test_copy_makes_the_whole_model_stale(home, price, warm, read):
    """COPY writes rows that no statement lists."""
    warm()
    with connection.cursor() as cursor, cursor.copy("COPY housing_office (name) FROM STDIN") as copy:
        copy.write_row(["Copied"])

    assert read("cached").came_from == "fwd=stale; stored"
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM housing_office WHERE name = 'Copied'")
        assert cursor.fetchone() == (1,)


@pytest.mark.only("real")
def test_a_do_block_makes_everything_stale(home, price, warm, read):
    """Its text does not show which tables it writes."""
    warm()
    with connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN EXECUTE 'UPDATE housing_' || 'property SET price = 7'; END $$")

    assert read("cached").rows[0]["price"] == "7.00"


@pytest.mark.only("real")
def test_a_procedure_makes_everything_stale(home, warm, read):
    """The name of a procedure does not show which tables it writes."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE FUNCTION nightly() RETURNS void LANGUAGE sql AS 'UPDATE housing_property SET price = 5'")
        warm()
        cursor.callproc("nightly")

    assert read("cached").rows[0]["price"] == "5.00"


# The city and the office that PostgreSQL copies into each property's row


@dataclass(frozen=True)
class Copy:
    """The column of a referenced row that PostgreSQL copies into a property, and the field that refers to this row."""

    field: str
    column: str
    value: Callable[[str], Any]
    """Returns a value of the column, by a name."""

    def owner(self, name, **fields):
        """A new row to refer to, which is not saved yet."""
        return Property._meta.get_field(self.field).related_model(**{self.column: self.value(name)}, **fields)

    def owners(self, **conditions):
        return Property._meta.get_field(self.field).related_model.objects.filter(**conditions)

    def move(self, home, owner):
        Property.objects.filter(pk=home.pk).update(**{self.field: owner})

    def rename(self, owners, name):
        owners.update(**{self.column: self.value(name)})

    def copies(self):
        """The copied value of each property, by its ID."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id, {self.column} FROM housing_property")
            return dict(cursor.fetchall())


COPIES = [Copy("location", "city", str), Copy("agent", "office_id", lambda name: Office.objects.get_or_create(name=name)[0].pk)]


@pytest.fixture(params=COPIES, ids=lambda copy: copy.column)
def copy(request):
    return request.param


@pytest.mark.only("real")
def test_the_copied_city_and_office_of_a_property_follow_every_write(copy, twenty_properties):
    """Triggers and two-column foreign keys in PostgreSQL keep the copies correct. (Real only: SQLite has no copies.)"""
    home, second, *_, last = twenty_properties
    there, late = copy.owner("There"), copy.owner("Late", pk=10_000)
    there.save()
    setattr(home, copy.field, there)
    home.save()
    with transaction.atomic():
        copy.rename(copy.owners().exclude(pk=there.pk), "New")
        copy.move(second, there)
        copy.rename(copy.owners(properties=last), "Newer")
    with transaction.atomic():
        saved(a_property(20, **{copy.field: late}))
        late.save(force_insert=True)

    assert copy.copies() == dict(Property.objects.values_list("pk", f"{copy.field}__{copy.column}"))
    assert set(copy.copies().values()) == set(map(copy.value, ("There", "New", "Newer", "Late")))


@pytest.mark.only("real")
@pytest.mark.parametrize("other", ["'0'", "NULL"])
def test_postgresql_refuses_a_wrong_copy_of_a_city_or_office(copy, home, other):
    """Raw SQL cannot write one either. (Real only: SQLite has no copies.)"""
    with pytest.raises(IntegrityError, match=f"property_{copy.column}"), connection.cursor() as cursor:
        cursor.execute(f"UPDATE housing_property SET {copy.column} = {other}")


@pytest.mark.only("real")
@pytest.mark.parametrize("moves_first", [False, True], ids=["the city or office changes first", "the property moves first"])
def test_moving_a_property_and_changing_its_target_wait_for_each_other(copy, home, elsewhere, moves_first):
    """T1 moves a property to a location or an agent, or changes that row's city or office · T2 does the other, waits for T1 · T1 COMMITs. Otherwise the
    property would keep a copy of the old value. (Real only: SQLite has one writer at a time.)
    """
    there = copy.owner("Old")
    there.save()
    new = copy.value("New")
    writes = [lambda: copy.rename(copy.owners(pk=there.pk), "New"), lambda: copy.move(home, there)]
    first, second = reversed(writes) if moves_first else writes

    def write_with_a_short_timeout():
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1ms'")
        second()

    with transaction.atomic():
        first()
        with pytest.raises(OperationalError, match="lock timeout"):
            elsewhere(write_with_a_short_timeout)
    elsewhere(write_with_a_short_timeout)

    assert copy.copies()[home.pk] == new


@pytest.mark.only("real")
def test_a_change_of_a_city_or_office_in_an_outdated_snapshot_is_refused(copy, home, elsewhere):
    """T1 begins in REPEATABLE READ, SELECTs · T2 moves a property there, COMMITs · T1 changes the city or office. T1 cannot see T2's property, so
    PostgreSQL raises a serialization error. (Real only: SQLite has one writer at a time.)
    """
    there = copy.owner("Old")
    there.save()

    with pytest.raises(OperationalError, match="could not serialize"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert Property.objects.count() == 20
        elsewhere(lambda: copy.move(home, there))
        copy.rename(copy.owners(pk=there.pk), "New")

    assert copy.copies()[home.pk] == copy.value("Old")


@pytest.mark.only("real")
def test_the_migration_adds_the_copies_to_existing_properties(twenty_properties):
    """It runs in both directions here. (Real only: it does nothing on SQLite.)"""
    migration = importlib.import_module("housing.migrations.0004_city_and_office")
    with transaction.atomic():
        for statements in (migration.BACKWARDS, migration.FORWARDS):
            with connection.schema_editor() as editor:
                migration.on_postgresql(migration.of_each_copy(statements))(None, editor)

        for copy in COPIES:
            assert copy.copies() == dict(Property.objects.values_list("pk", f"{copy.field}__{copy.column}"))
            assert len(copy.copies()) == 20
