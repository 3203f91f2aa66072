"""What only real servers do: die for real, restart, evict, wait for each other's locks. Slower, never stale.

T1, T2, … are connections or processes. Whatever breaks Redis here breaks one of its own. Embedded servers die with the process, restart
empty and know no locks: all of this is of the real stack alone.
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

from conftest import ROOT, a_property, saved
from housing.models import Office, Property
from tests.stacks import wait_for

SOON = 2_000
"""How many reads a page may take to be warm again once its lease has run out."""


@pytest.fixture
def price(read, home):
    """The price of the newest property, and where the answer came from."""

    def price():
        response = read("cached")
        return response.rows[0]["price"], response.came_from

    return price


@pytest.fixture
def reprice(home):
    """Give the newest property a price, as any process would."""

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

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Dies(type(commit.journal)):
    close = die

commit.journal.__class__ = Dies
if where == "before":
    BaseDatabaseWrapper._commit = die
Property.objects.filter(pk=pk).update(price=1)
"""
"""A process that writes a price, and is killed before COMMIT or after it."""


@pytest.mark.only("real")
@pytest.mark.parametrize(("where", "expected"), [("before", "300000.00"), ("after", "1.00")], ids=["before COMMIT", "after COMMIT"])
def test_a_process_killed_with_sigkill(home, price, where, expected):
    """T1 leases, (COMMITs,) is killed · T2 reads what is true, again and again, and after the lease from the cache."""
    price()
    url = "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(connection.settings_dict)
    killed = subprocess.run(
        [sys.executable, "-c", DIES, service.CACHES["default"]["KEY_PREFIX"], str(home.pk), where],
        cwd=ROOT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "housing.settings", "DATABASE_URL": url},
        timeout=60,
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
def test_redis_restarts_from_an_old_dump(own_redis, price, reprice):
    """Its dump holds the page of before the write, and a journal that knows nothing of it: the run id is another, so both are disowned."""
    server = own_redis()
    price()
    get_redis_connection("default").save()
    reprice(1)
    assert price() == ("1.00", "fwd=stale; stored")

    server.restart()

    assert cache.make_key("journal").encode() in set(redis.Redis.from_url(server.url).scan_iter()), "the dump was not loaded"
    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("real")
def test_redis_restarts_empty(own_redis, price, reprice):
    server = own_redis()
    price()
    reprice(1)

    server.restart()

    assert price() == ("1.00", "fwd=miss; detail=recovering")


@pytest.mark.only("real")
def test_redis_restarts_while_a_write_commits(own_redis, price, reprice, around_commit):
    """T1 leases · Redis restarts from a dump of before the lease · T2 reads, and its answer is not kept · T1 COMMITs, closes."""
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
def test_flushall_while_a_write_commits(own_redis, price, reprice, around_commit):
    """T1 leases · FLUSHALL takes the lease away · T2 reads, and its answer is not kept · T1 COMMITs, closes."""
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
def test_redis_evicts_whatever_it_likes(twenty_properties, own_redis, read, policy):
    """`volatile-*` evicts entries; `allkeys-*` the journal too, and then everything begins cold. Each answer is the database's."""
    own_redis("--maxmemory-policy", policy, "--latency-tracking", "no", "--slowlog-log-slower-than", "-1")  # which take memory, too, and keep it
    client = get_redis_connection("default")
    twenty_properties[0].save()
    read("cached")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 200_000)
    for number in range(100):
        asked = {"max_price": 400_000 + number % 40}
        if number % 10 == 0:
            twenty_properties[number % 20].save()
        assert read("cached", **asked).body == read("optimized", **asked).body

    assert client.info("stats")["evicted_keys"] > 0


# Connections are cut


def cut_redis():
    """Every connection to Redis but this one, cut by the server."""
    get_redis_connection("default").client_kill_filter(_type="normal", skipme=True)


def cut_postgres():
    """Every connection to this database but this one, cut by the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


@pytest.mark.only("real")
def test_redis_cuts_every_connection_between_select_and_store(own_redis, price, reprice, meanwhile):
    """T1 misses, SELECTs · its connection is cut · the answer is given, whether it is kept or not."""
    own_redis()
    with meanwhile(cut_redis):
        assert price()[0] == "300000.00"
    reprice(1)
    assert price()[0] == "1.00"


@pytest.mark.only("real")
def test_redis_cuts_every_connection_while_a_write_commits(own_redis, price, reprice, around_commit):
    """T1 leases · its connection is cut · T1 COMMITs, and closes over a new one, or leaves the lease to run out."""
    own_redis()
    price()
    with around_commit(before=cut_redis, after=cut_redis):
        reprice(1)
    assert price()[0] == "1.00"


@pytest.mark.only("real")
def test_postgresql_cuts_the_connection_of_a_write_before_its_commit(home, price, elsewhere):
    """Nothing is written, nothing is stale, and the next write has a connection of its own."""
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
def test_postgresql_cuts_the_connection_of_a_commit(price, reprice, around_commit):
    """T1 leases · its connection is cut · COMMIT fails, and nobody knows how it ended: the lease is left to run out."""
    price()
    with pytest.raises(OperationalError), around_commit(before=cut_postgres):
        reprice(1)
    connection.close()
    assert price() == ("300000.00", "fwd=miss; detail=leased")


# Two transactions write one row


@pytest.mark.only("real")
def test_two_overlapping_writes_of_one_row_and_a_reader_between_all_their_steps(home, price, elsewhere):
    """T2 waits for T1's lock. Nobody is shown what is not committed, and nobody the old after the new."""
    seen, t2_writes = [price()], threading.Event()

    def t2():
        try:
            with transaction.atomic():
                Property.objects.filter(pk=home.pk).update(price=2)  # waits for T1
                t2_writes.set()
                seen.append(elsewhere(price))
        finally:
            connections.close_all()

    second = threading.Thread(target=t2)
    with transaction.atomic():
        Property.objects.filter(pk=home.pk).update(price=1)  # T1 writes
        seen.append(elsewhere(price))
        second.start()
        elsewhere(until_somebody_waits_for_a_lock)  # T2 begins, and waits
        seen.append(elsewhere(price))
        assert not t2_writes.is_set()
    # T1 has COMMITted and closed; T2 goes on, is seen by a reader, COMMITs and closes
    second.join(30)
    seen += [price(), price()]

    assert [shown for shown, _ in seen] == ["300000.00", "300000.00", "300000.00", "1.00", "2.00", "2.00"]
    assert [came_from for _, came_from in seen[:3]] == ["fwd=miss; stored", "hit", "hit"]
    assert seen[-1] == ("2.00", "hit")


def until_somebody_waits_for_a_lock():
    """Ask PostgreSQL, again and again, but not for ever."""

    def ask():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
            _waiting, *_ = cursor.fetchall()  # there is one

    wait_for(ask, ValueError)


@pytest.mark.only("real")
def test_a_blind_save_that_waited_for_another_writer(home, warm, read_the_list, elsewhere):
    """T2 loaded the row, T1 changes its status, T2's save waits and then writes the old status back: the page of that status knows."""
    t2_copy = Property.objects.get(pk=home.pk)
    second = threading.Thread(target=lambda: (t2_copy.save(), connections.close_all()))
    with transaction.atomic():
        Property.objects.filter(pk=home.pk).update(status="sold")
        second.start()
        elsewhere(until_somebody_waits_for_a_lock)
    second.join(30)

    assert read_the_list(status="sold") == []
    assert read_the_list(status="available")[0]["id"] == home.pk


# What only PostgreSQL can


@pytest.mark.only("real")
def test_copy_makes_the_whole_model_stale(home, price, warm, read):
    """It writes rows that no statement names."""
    warm()
    with connection.cursor() as cursor, cursor.copy("COPY housing_office (name) FROM STDIN") as copy:
        copy.write_row(["Copied"])

    assert read("cached").came_from == "fwd=stale; stored"
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM housing_office WHERE name = 'Copied'")
        assert cursor.fetchone() == (1,)


@pytest.mark.only("real")
def test_a_do_block_makes_everything_stale(home, price, warm, read):
    warm()
    with connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN EXECUTE 'UPDATE housing_' || 'property SET price = 7'; END $$")

    assert read("cached").rows[0]["price"] == "7.00"


@pytest.mark.only("real")
def test_a_procedure_makes_everything_stale(home, warm, read):
    """What it does, nobody says."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE FUNCTION nightly() RETURNS void LANGUAGE sql AS 'UPDATE housing_property SET price = 5'")
        warm()
        cursor.callproc("nightly")

    assert read("cached").rows[0]["price"] == "5.00"


# A city and an office, which PostgreSQL copies into each property's row


@dataclass(frozen=True)
class Copy:
    """The column of a row that a property refers to by this field."""

    field: str
    column: str
    value: Callable[[str], Any]
    """One of it, by a name."""

    def owner(self, name, **fields):
        """A new row to refer to, not saved yet."""
        return Property._meta.get_field(self.field).related_model(**{self.column: self.value(name)}, **fields)

    def owners(self, **asked):
        return Property._meta.get_field(self.field).related_model.objects.filter(**asked)

    def move(self, home, owner):
        Property.objects.filter(pk=home.pk).update(**{self.field: owner})

    def rename(self, owners, name):
        owners.update(**{self.column: self.value(name)})

    def copies(self):
        """Property → what is in its row."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id, {self.column} FROM housing_property")
            return dict(cursor.fetchall())


COPIES = [Copy("location", "city", str), Copy("agent", "office_id", lambda name: Office.objects.get_or_create(name=name)[0].pk)]


@pytest.fixture(params=COPIES, ids=lambda copy: copy.column)
def copy(request):
    return request.param


@pytest.mark.only("real")
def test_a_property_has_the_city_of_its_location_and_the_office_of_its_agent_however_they_are_written(copy, twenty_properties):
    """PostgreSQL's triggers and foreign keys of two columns see to it; SQLite has no copies."""
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
def test_nobody_can_write_a_property_another_city_or_office_than_its_own(copy, home, other):
    """Not even by SQL."""
    with pytest.raises(IntegrityError, match=f"property_{copy.column}"), connection.cursor() as cursor:
        cursor.execute(f"UPDATE housing_property SET {copy.column} = {other}")


@pytest.mark.only("real")
@pytest.mark.parametrize("moves_first", [False, True], ids=["the city or office changes first", "the property moves first"])
def test_who_moves_a_property_and_who_changes_where_it_goes_wait_for_each_other(copy, home, elsewhere, moves_first):
    """Else the property would have what was there before. SQLite has one writer at a time."""
    there = copy.owner("Old")
    there.save()
    new = copy.value("New")
    writes = [lambda: copy.rename(copy.owners(pk=there.pk), "New"), lambda: copy.move(home, there)]
    first, second = reversed(writes) if moves_first else writes

    def impatiently():
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1ms'")
        second()

    with transaction.atomic():
        first()
        with pytest.raises(OperationalError, match="lock timeout"):
            elsewhere(impatiently)
    elsewhere(impatiently)

    assert copy.copies()[home.pk] == new


@pytest.mark.only("real")
def test_who_changes_a_city_or_an_office_in_an_older_state_is_refused_and_not_misled(copy, home, elsewhere):
    """REPEATABLE READ does not see who has moved there since, and PostgreSQL says so. SQLite has one writer at a time."""
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
def test_what_was_there_before_the_copies_has_them_afterwards(twenty_properties):
    """The migration fills them, and takes them away again. (On SQLite it does nothing.)"""
    migration = importlib.import_module("housing.migrations.0004_city_and_office")
    with transaction.atomic():
        for statements in (migration.BACKWARDS, migration.FORWARDS):
            with connection.schema_editor() as editor:
                migration.on_postgresql(migration.of_each_copy(statements))(None, editor)

        for copy in COPIES:
            assert copy.copies() == dict(Property.objects.values_list("pk", f"{copy.field}__{copy.column}"))
            assert len(copy.copies()) == 20
