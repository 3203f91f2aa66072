"""Outages: Redis or the database is unreachable. Without Redis one read waits, briefly, and the others ask the database at once. Without the database a
request gets 503, or an entry that no known write has made stale, with its age.

T1, T2, … are requests. V is a watchman.
"""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import redis
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import Client
from django.urls import get_resolver, reverse
from django_redis import get_redis_connection

from housing.freshness.breaker import Breaker, Unreachable
from housing.freshness.journal import Miss, journal
from housing.freshness.slots import Busy, cold_reads
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.processes import python
from tests.fixtures.responses import VARIANTS, ask, ask_elsewhere
from tests.fixtures.stub import Stub, info
from tests.stacks import TIMEOUT

embedded = pytest.mark.only("embedded")
BROWSER = {"Accept": "text/html"}
BYPASS = "fwd=bypass; detail=unreachable"


class Clock:
    """A stopped clock. `clock.seconds += 1` advances it."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


# Redis: the circuit breaker


@pytest.fixture
def clock(monkeypatch, settings):
    """The clock of the breaker, which lets one call through each second."""
    clock = Clock()
    settings.FRESHNESS_RETRY = 1.0
    monkeypatch.setattr("housing.freshness.breaker.monotonic", clock)
    yield clock
    journal.forget_server()


class Silent:
    """A server that accepts connections and never replies, like a process that SIGSTOP has stopped."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.connections = []
        self.address = "{}:{}".format(*self.listener.getsockname())

    def attempts(self):
        """The number of connections since the last call."""
        before = len(self.connections)
        while True:
            try:
                self.connections.append(self.listener.accept()[0])
            except BlockingIOError:
                return len(self.connections) - before

    def close(self):
        for each in (self.listener, *self.connections):
            each.close()


@pytest.fixture
def redis_at(settings):
    """`redis_at(address, timeout)`: make the Redis at this address the service's cache."""

    def redis_at(address, timeout=0.05):
        options = {"SOCKET_CONNECT_TIMEOUT": timeout, "SOCKET_TIMEOUT": timeout}
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": f"redis://{address}/0", "OPTIONS": options}}
        journal._sha = None

    yield redis_at
    journal.forget_server()


@pytest.fixture
def silent():
    silent = Silent()
    yield silent
    silent.close()


def test_only_the_first_read_waits_for_a_redis_that_never_replies(twenty_properties, read, clock, silent, redis_at):
    """The breaker opens with its timeout. The next hundred reads do not even connect."""
    redis_at(silent.address)
    assert read("cached").came_from == BYPASS
    assert silent.attempts() == 1

    for _ in range(100):
        assert read("cached").came_from == BYPASS
    assert silent.attempts() == 0


@pytest.fixture
def stub(settings):
    """A server whose replies a spec sets."""
    settings.FRESHNESS_RUN_ID = None
    with Stub() as stub:
        stub.info = info()
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.001})
        thread.start()
        yield stub
        get_redis_connection("default").connection_pool.disconnect()
        stub.shutdown()
        thread.join()


def test_only_one_read_waits_for_a_redis_that_stops_replying(twenty_properties, read, clock, stub, redis_at, monkeypatch):
    """Its connections stay open, so only a timeout shows it."""
    redis_at(stub.address)
    assert isinstance(journal.lookup("housing:any"), Miss)
    stub.commands.clear()
    monkeypatch.setattr(stub, "reply", lambda *command: stub.commands.append(command) or b"")

    for _ in range(100):
        assert read("cached").came_from == BYPASS
    assert len(stub.commands) == 1


@pytest.mark.only("real")
def test_a_real_redis_whose_process_is_stopped_costs_one_read_a_moment(own_redis, home, warm, read, clock, caplog):
    """The engine pauses its container, as SIGSTOP does: the kernel still accepts connections, and nobody replies. (Real only: embedded servers have no
    process.)
    """
    server = own_redis()
    get_redis_connection("default").connection_pool.connection_kwargs["socket_timeout"] = 0.05
    get_redis_connection("default").connection_pool.reset()
    journal._line.pool = None
    warm()
    with paused(server):
        assert {read("cached").came_from for _ in range(100)} == {BYPASS}
        clock.seconds += 1
        assert {read("cached").came_from for _ in range(100)} == {BYPASS}
    clock.seconds += 1
    assert read("cached").came_from == "hit"
    assert len([line for line in caplog.messages if line.startswith("Served from the database")]) == 2, "one for each read that waited"


@contextmanager
def paused(server):
    """Pause the container that listens at this server's port."""
    import docker

    port = server.url.rpartition(":")[2].partition("/")[0]
    [container] = [each for each in docker.from_env().containers.list() if f"'{port}'" in str(each.ports)]
    container.pause()
    try:
        yield
    finally:
        container.unpause()


def test_the_first_read_loses_at_most_a_quarter_of_a_second():
    """A hit takes less than a millisecond, and a cold page a few. The read connects once, as the spec before this one counts."""
    printed = python("-c", "from housing import settings; print(settings.CACHES['default']['OPTIONS'])", DJANGO_DEBUG="true", REDIS_URL="redis://127.0.0.1/0")

    options = eval(printed.stdout)  # the dict that this spec has printed
    assert max(options["SOCKET_CONNECT_TIMEOUT"], options["SOCKET_TIMEOUT"]) <= 0.25


def test_one_read_at_a_time_tries_redis_again(twenty_properties, clock, silent, redis_at):
    """T1 fails · a second later T2 connects, waits · T3 to T12 ask the database at once."""
    redis_at(silent.address, timeout=30)
    failed = Unreachable("Redis is unreachable.")
    journal.breaker.open(silent.address, lambda: failed)
    clock.seconds += 1
    with ThreadPoolExecutor(1) as thread:
        t2 = thread.submit(ask_elsewhere)
        while not silent.attempts():
            assert not t2.done()
        assert {ask(Client()).came_from for _ in range(10)} == {BYPASS}
        assert silent.attempts() == 0
        silent.close()  # T2's connection is reset
        assert t2.result(30).came_from == BYPASS


def test_redis_is_used_again_after_one_successful_read(twenty_properties, warm, read, clock, redis_unreachable):
    """T1 fails · Redis is back · within a second T2 asks the database · then T3 hits."""
    warm()
    with redis_unreachable():
        assert read("cached").came_from == BYPASS
    clock.seconds += 0.999
    assert read("cached").came_from == BYPASS
    clock.seconds += 0.001
    assert [read("cached").came_from for _ in range(2)] == ["hit", "hit"]


def test_the_breaker_is_logged_once_when_it_opens_and_once_when_it_closes(twenty_properties, warm, read, clock, redis_unreachable, caplog):
    """A line for each read would bury others."""
    caplog.set_level("INFO", "housing.freshness")
    warm()
    with redis_unreachable():
        for _ in range(5):
            read("cached")
            clock.seconds += 1
    read("cached")
    read("cached")

    opened, closed = [line for line in caplog.messages if line.startswith("Redis ") and "used" in line]
    assert opened.startswith("Redis is not used until it replies, and is tried every 1 s: Redis at ")
    assert closed.endswith(" is used again after 5 s.")


def test_a_write_of_another_process_is_in_the_next_read_while_the_breaker_is_open(price, reprice, clock, redis_unreachable):
    """T1 stores · T2's breaker opens · T3, which reaches Redis, COMMITs · T2 reads the new price · T2 uses Redis again, and the old entry is stale."""
    price()
    with redis_unreachable():
        price()
    breaker, journal.breaker = journal.breaker, type(journal.breaker)()
    reprice(1)
    journal.breaker = breaker
    assert price() == ("1.00", BYPASS)
    clock.seconds += 1
    assert price() == ("1.00", "fwd=stale; stored")


def test_a_write_while_the_breaker_is_open_goes_to_the_outbox(price, reprice, clock, redis_unreachable, verify):
    """T1 stores · T2's breaker opens, Redis is back · T2 COMMITs with a row in the outbox · V closes T2's tags · T1 reads the new price."""
    price()
    with redis_unreachable():
        price()
    reprice(1)
    assert price() == ("1.00", BYPASS)
    clock.seconds += 1
    verify()
    assert price() == ("1.00", "fwd=stale; stored")


def test_a_lease_whose_reply_was_lost_stays_open(price, reprice, clock, monkeypatch):
    """T1 stores · T2 leases, the reply is lost, T2 COMMITs with a row in the outbox · T1 reads the new price, may not store. The lease of a writer that
    does not know of it runs out like that of a dead one.
    """
    price()
    line = journal._line
    sent = type(line).ask

    def lose_the_reply_to_a_lease(self, client, *command, late):
        assert "lease" in command
        sent(self, client, *command)
        raise redis.TimeoutError("Timeout reading from socket")

    with monkeypatch.context() as patched:
        patched.setattr(type(line), "ask", lose_the_reply_to_a_lease)
        reprice(1)
    clock.seconds += 1
    assert price() == ("1.00", "fwd=miss; detail=leased")


def test_an_error_that_concerns_one_call_does_not_open_the_breaker(twenty_properties, warm, read, clock, monkeypatch):
    """A full Redis refuses a store, and still gives hits."""
    warm()
    line = journal._line
    sent = type(line).ask

    def full(self, client, *command, late):
        if "store" in command:
            raise redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        return sent(self, client, *command)

    monkeypatch.setattr(type(line), "ask", full)
    assert read("cached", city="Springfield").came_from == BYPASS
    assert read("cached").came_from == "hit"


def test_another_address_is_used_at_once(twenty_properties, read, clock, silent, redis_at):
    """The breaker belongs to the server that failed."""
    redis_at(silent.address)
    read("cached")
    assert silent.attempts() == 1
    with closing(Silent()) as another:
        redis_at(another.address)
        read("cached")
        assert another.attempts() == 1


FORKS = """
import os, django
django.setup()
from housing.freshness.breaker import Unreachable
from housing.freshness.journal import journal
from housing.freshness.slots import cold_reads
journal.breaker.open("somewhere", lambda: Unreachable("It is down."))
cold_reads.enter()
if not (child := os.fork()):
    os._exit(bool(journal.breaker.opened or cold_reads._begun))
assert journal.breaker.opened and cold_reads._begun
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_begins_with_a_closed_breaker_and_no_reads():
    """The reads of its parent's threads never end in it."""
    ended = python("-c", FORKS, DJANGO_DEBUG="true", REDIS_URL="fakeredis://", DJANGO_SETTINGS_MODULE="housing.settings")
    assert (ended.stdout, ended.code) == ("0\n", 0), ended.stderr


def test_a_pool_with_fewer_connections_than_threads_recovers(twenty_properties, warm, monkeypatch, caplog):
    """Each thread keeps a connection. One that gets none from the pool opens another one, and the log says which setting to change."""
    warm()
    pool, together = get_redis_connection("default").connection_pool, threading.Barrier(4)
    monkeypatch.setattr(pool, "max_connections", 1)
    monkeypatch.setattr(pool, "_available_connections", [])  # those of earlier threads

    def hits():
        together.wait(TIMEOUT)
        return [ask_elsewhere().came_from for _ in range(3)]

    with ThreadPoolExecutor(4) as threads:
        found = [running.result(30) for running in [threads.submit(hits) for _ in range(4)]]

    assert found == [["hit"] * 3] * 4
    assert "max_connections of the cache is less than one connection for each thread, so the journal opens another one." in caplog.messages


# The database is unreachable


@pytest.fixture
def staff(db):
    client = Client()
    client.force_login(User.objects.create_superuser("staff"))
    return client


def every_address(home):
    """The URL of each route of the service, and of each page of the admin."""
    for pattern in get_resolver().url_patterns:
        if getattr(pattern, "name", None):
            parameters = dict.fromkeys(pattern.pattern.converters, home.pk)
            yield reverse(pattern.name, kwargs=parameters)
    for model in admin.site._registry:
        base = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        yield from (reverse(f"{base}_changelist"), reverse(f"{base}_add"), reverse(f"{base}_change", args=[1]))
    yield from (reverse("admin:index"), reverse("admin:login"))


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_without_the_database_each_address_responds_with_503_or_needs_none(home, staff, queries, database_unreachable, accept, caplog):
    """A request that queries gets 503 with `Retry-After`, as JSON or as a page, and has one line in the log. All others get what they got before."""
    before = {}
    for address in every_address(home):
        clear_the_cache()
        asked = []
        with connection.execute_wrapper(lambda execute, *statement, asked=asked: asked.append(1) or execute(*statement)):
            status = staff.get(address, headers={"Accept": accept}).status_code
        before[address] = 503 if asked or address in ("/health/", "/health/ready/") else status
    assert list(before.values()).count(503) > 20, "few addresses that query were found"

    for address, expected in before.items():
        clear_the_cache()
        caplog.clear()
        with database_unreachable():
            response = staff.get(address, headers={"Accept": accept})
        assert response.status_code == expected, address
        if expected == 503 and not address.startswith("/health/"):
            assert int(response.headers["Retry-After"]) > 0, address
            assert response.headers["Content-Type"].partition(";")[0] == accept, address
            [line] = caplog.messages
            assert line.startswith(f"503 for {address}: The database is unavailable: connection failed"), line


def test_a_hit_needs_no_database(warm, read, home, database_unreachable):
    """The entry, its journal and the identity of its database are known without one."""
    body = warm()
    with database_unreachable():
        response = read("cached")
    assert (response.came_from, response.body, "Age" in response.headers) == ("hit", body, False)


@pytest.mark.only("real")
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_database_that_accepts_and_never_replies_is_given_up(home, read, silent, monkeypatch, variant, caplog):
    """`connect_timeout` ends the wait, with libpq's least, two seconds. (Real only: SQLite is a file.)"""
    host, port = silent.address.split(":")
    with monkeypatch.context() as patched:
        for name, value in (("HOST", host), ("PORT", port)):
            patched.setitem(connection.settings_dict, name, value)
        connection.close()
        assert read(variant).status == 503
    assert silent.attempts() == 1
    assert "timeout expired" in caplog.text


# stale-if-error


@pytest.fixture
def unverified(redis_clock, settings, twenty_properties, verify, read):
    """A page was stored and verified, and then nothing was verified for two seconds. Returns its body."""
    settings.FRESHNESS_MAX_STALENESS = 1.0
    journal.forget_server()
    verify()
    body = read("cached").body
    redis_clock.seconds += 2
    yield body
    journal.forget_server()


@embedded
def test_without_the_database_an_unverified_entry_is_served_with_its_age(unverified, read, database_unreachable, caplog):
    """T1 stores · two seconds without a verification · T2 cannot reach the database. No other reader can be shown a newer price, and the response says how old
    it may be (RFC 5861 and RFC 9211). (Embedded only: the spec sets Redis's clock.)
    """
    with database_unreachable():
        response = read("cached")
        again = read("cached", headers={"If-None-Match": response.headers["ETag"]})

    assert (response.status, response.body, response.came_from, response.headers["Age"]) == (200, unverified, "hit; detail=stale-if-error", "2")
    assert (again.status, again.came_from, again.headers["Age"]) == (304, "hit; detail=stale-if-error", "2")
    assert caplog.messages == ["Served from the cache, verified 2.0 s ago, because the database cannot be reached: connection failed: Connection refused"] * 2
    assert read("cached").came_from == "fwd=bypass; detail=unverified"


@embedded
def test_a_page_of_the_browsable_api_has_the_age_too(unverified, read, database_unreachable):
    """A developer who opens the API in a browser must also see how old the data may be. (Embedded only: the spec sets Redis's clock.)"""
    with database_unreachable():
        response = read("cached", headers=BROWSER)
    assert (response.status, response.came_from, response.headers["Age"]) == (200, "hit; detail=stale-if-error", "2")


@embedded
@pytest.mark.parametrize(("bound", "status"), [(2.1, 200), (1.9, 503), (0, 503)])
def test_an_entry_is_served_without_the_database_only_for_the_set_time(settings, request, read, database_unreachable, bound, status):
    """It counts from the last verification. 0 turns it off. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_STALE_IF_ERROR = bound
    request.getfixturevalue("unverified")
    with database_unreachable():
        assert read("cached").status == status


@embedded
def test_an_entry_that_a_write_made_stale_is_not_served_without_the_database(unverified, reprice, read, database_unreachable):
    """T1 stores · T2 COMMITs, and knows it · nobody can reach the database. T2 must not see the old price again. (Embedded only: the spec sets Redis's
    clock.)
    """
    reprice(1)
    with database_unreachable():
        assert read("cached").status == 503


@embedded
def test_an_entry_whose_write_may_be_committed_is_not_served_without_the_database(unverified, read, database_unreachable, redis_clock):
    """T1 stores · T2 leases · the database is down before T2 knows whether its COMMIT took effect. Not during the lease, and not after it. (Embedded only:
    the spec sets Redis's clock.)
    """
    journal.lease({"housing_property", "housing_property:*"})
    with database_unreachable():
        assert read("cached").status == 503
        redis_clock.seconds += 6
        assert read("cached").status == 503


@embedded
@pytest.mark.parametrize("reply", ["FATAL: sorry, too many clients already", 'FATAL: password authentication failed for user "housing"'])
def test_no_old_entry_is_served_while_the_database_refuses_only_this_connection(unverified, read, database_unreachable, reply):
    """Others may be connected, and write. (Embedded only: the spec sets Redis's clock.)"""
    with database_unreachable(reply):
        assert read("cached").status == 503


@embedded
def test_no_old_entry_is_served_if_only_a_statement_fails(unverified, read):
    """After a timeout of a statement the database still accepts a connection. (Embedded only: the spec sets Redis's clock.)"""

    def time_out(*_):
        raise OperationalError("canceling statement due to statement timeout")

    with connection.execute_wrapper(time_out):
        assert read("cached").status == 503


@embedded
def test_a_read_beyond_the_bound_gets_the_entry_too_if_the_last_read_found_no_database(unverified, read, database_unreachable, monkeypatch):
    """T1 waits for a connection · T2 and T3, too · T4 need not wait in turn. After a read that succeeds, T5 gets 503 again. (Embedded only: the spec sets
    Redis's clock.)
    """
    with monkeypatch.context() as patched:
        patched.setattr(cold_reads, "enter", busy)
        assert read("cached").status == 503
    with database_unreachable():
        assert read("cached").came_from == "hit; detail=stale-if-error"
        with monkeypatch.context() as patched:
            patched.setattr(cold_reads, "enter", busy)
            response = read("cached")
            assert (response.came_from, response.headers["Age"]) == ("hit; detail=stale-if-error", "2")
    assert read("cached").status == 200
    monkeypatch.setattr(cold_reads, "enter", busy)
    assert read("cached").status == 503


def busy():
    raise Busy


@embedded
def test_an_entry_is_served_if_the_database_goes_away_during_the_read(unverified, read, database_unreachable):
    """The connection fails in its SELECT, and no new one can be opened. (Embedded only: the spec sets Redis's clock.)"""
    away = database_unreachable()

    def go_away(*_):
        away.__enter__()
        raise OperationalError("server closed the connection unexpectedly")

    with connection.execute_wrapper(go_away):
        response = read("cached")
    away.__exit__(None, None, None)
    assert (response.status, response.came_from) == (200, "hit; detail=stale-if-error")


NOT_PROMISED = {
    "Without the database, a response is as fresh as with it": "A write by another program may be missing, or one of a process that could not reach Redis. "
    "`Age` has the seconds since the last verification, and FRESHNESS_STALE_IF_ERROR bounds them.",
}


# One call, one address


def test_the_breaker_of_one_server_lets_calls_to_another_through(clock):
    """The address of the cache may change while the process runs."""
    breaker = Breaker()
    breaker.open("one", lambda: Unreachable("one is unreachable"))
    with breaker.probing("another"):
        assert breaker.opened is None


def test_an_error_that_concerns_one_call_closes_the_breaker(clock):
    """A server that replies is reachable, although it refuses this call, because it is full."""
    breaker = Breaker()
    breaker.open("one", lambda: Unreachable("one is unreachable"))
    clock.seconds += 1
    with pytest.raises(Unreachable, match="full"), breaker.probing("one"):
        raise Unreachable("one is full")
    assert breaker.opened is None


@embedded
def test_a_read_without_database_and_redis_gets_503(unverified, read, database_unreachable, monkeypatch):
    """Nothing says whether a newer price was confirmed to its writer. (Embedded only: the spec sets Redis's clock.)"""

    def fail(*_):
        raise Unreachable("Redis is unreachable")

    monkeypatch.setattr(journal, "not_known_to_be_stale", fail)
    with database_unreachable():
        assert read("cached").status == 503
