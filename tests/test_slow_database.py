"""A slow database: each wait has a timeout, and reads beyond a bound get 503, so that hits and health checks always have a thread.

T1, T2, … are requests.
"""

import runpy
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError, ProgrammingError, close_old_connections, connection
from django.test import Client

from housing.freshness import ours
from housing.freshness.postgresql import base as postgresql
from housing.freshness.settings import SETTINGS
from housing.freshness.slots import cold_reads
from housing.models import Property
from tests import ROOT
from tests.fixtures.cache import clear_the_cache, expect_no_read
from tests.fixtures.processes import python
from tests.fixtures.proxy import Fault, proxying
from tests.fixtures.responses import VARIANTS, ask, ask_elsewhere, new_handler
from tests.stacks import TIMEOUT, wait_for


class Clock:
    """A stopped clock. `clock.seconds += 1` advances it."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


# A bound on cold reads


@pytest.fixture
def slots(monkeypatch, settings, transactional_db):
    """The clock by which a read is slow. Two reads of this process may use the database at once."""
    clock = Clock()
    monkeypatch.setattr("housing.freshness.slots.monotonic", clock)
    settings.FRESHNESS_COLD_READS = 2
    yield clock
    cold_reads.forget()


@pytest.fixture
def stuck(slots, warm, twenty_properties):
    """The first page is warm, and two other reads wait for the database for longer than a page takes."""
    warm()
    for _ in range(2):
        cold_reads.enter()
    slots.seconds += SETTINGS["WAIT_TIMEOUT"].default


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_read_beyond_the_bound_gets_503_at_once_while_the_database_is_slow(stuck, read, variant, accept):
    """It would keep a thread that hits need. `Retry-After` says when to come back."""
    response = read(variant, city="Springfield", headers={"Accept": accept})

    assert (response.status, response.headers["Content-Type"].partition(";")[0]) == (503, accept)
    assert int(response.headers["Retry-After"]) > 0
    if accept == "application/json":
        assert response.json == {"detail": "Too many requests are waiting for the database. Try again later."}


def test_hits_and_health_checks_respond_while_the_database_is_slow(stuck, read, queries):
    """They wait for nobody."""
    with queries.exactly(0, because="the page is cached"):
        assert read("cached").came_from == "hit"
    assert read("/health/live/").status == read("/health/ready/").status == 200


def test_an_entry_that_is_refused_keeps_no_other_reader_waiting(stuck, read, waiting):
    """T1 misses, is refused · T2 misses, and does not wait for T1's fill."""
    for _ in range(2):
        assert read("cached", city="Springfield").status == 503
    assert waiting.seconds == 0


def test_a_read_beyond_the_bound_waits_for_its_turn_while_the_database_is_quick(slots, home, warm, monkeypatch, settings):
    """T1 SELECTs · T2 waits · T1 responds · T2 SELECTs, responds. A burst of cold pages gets no errors."""
    settings.FRESHNESS_COLD_READS, settings.FRESHNESS_WAIT_TIMEOUT = 1, 30.0
    waits, threads = threading.Event(), ThreadPoolExecutor(1)
    patience = cold_reads._patience

    def note_the_wait():
        if cold_reads._begun:
            waits.set()
        return patience()

    monkeypatch.setattr(cold_reads, "_patience", note_the_wait)
    second = []

    def begin_t2(execute, *statement):
        second.append(threads.submit(ask_elsewhere, city="Springfield"))
        assert waits.wait(TIMEOUT)
        return execute(*statement)

    with threads, connection.execute_wrapper(begin_t2):
        assert ask(Client()).status == 200
        assert second[0].result(30).status == 200


def test_no_read_waits_after_a_slow_one_until_one_is_quick_again(slots, twenty_properties, read):
    """Otherwise every thread would wait again each time that a stuck read ends with its timeout."""
    first = cold_reads.enter()
    slots.seconds += 1
    second = cold_reads.enter()
    cold_reads.leave(first)
    assert cold_reads._patience() == 0
    assert read("optimized").status == 200
    assert cold_reads._patience() > 0
    cold_reads.leave(second)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_failed_read_gives_its_place_back(slots, twenty_properties, read, database_unreachable, variant):
    """Otherwise two errors would end all cold reads of the process."""
    for _ in range(3):
        assert read(f"{variant}/{10**9}").status == 404
        with database_unreachable():
            assert read(variant).status == 503
    assert read(variant).status == 200
    assert cold_reads._begun == []


def test_a_spec_that_leaves_a_read_behind_fails_itself():
    """Otherwise the specs after it would fail instead, with 503."""
    cold_reads.enter()
    with pytest.raises(AssertionError, match=r"^1 reads of this spec still use the database\. "):
        expect_no_read()
    expect_no_read()


def test_the_middleware_of_the_specs_is_loaded_before_their_first_request():
    """Two first requests at once would load it twice, and each request would take two places and give one back."""
    assert new_handler()._view_middleware


def test_the_bound_leaves_threads_of_gunicorn_free():
    """Half of them can wait for the database while the others give hits and respond to health checks."""
    assert SETTINGS["COLD_READS"].default <= runpy.run_path(str(ROOT / "gunicorn.conf.py"))["threads"] // 2


# Timeouts of PostgreSQL


OPTIONS = "import sys; sys.argv = {argv!r}; from housing import settings; print(settings.DATABASES['default']['OPTIONS'])"


def options(argv, url="postgres://housing:secret@127.0.0.1/housing"):
    """The options with which a process with these arguments connects."""
    ended = python("-c", OPTIONS.format(argv=argv), DJANGO_DEBUG="true", DATABASE_URL=url)
    assert ended.code == 0, ended.stderr
    return eval(ended.stdout)  # the dict that this spec has printed


@pytest.mark.parametrize("argv", [["/venv/bin/gunicorn", "housing.wsgi"], ["manage.py", "runserver", "8001"], ["any other server"]])
def test_a_server_has_a_timeout_for_everything_that_it_may_wait_for(argv):
    """A statement, a lock, a transaction that was left open, a new connection, and a server that vanished."""
    found = options(argv)
    assert all(f"-c {name}=" in found["options"] for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"))
    assert found["connect_timeout"] <= 5
    assert found["tcp_user_timeout"] <= 60_000
    assert found["keepalives_idle"] + found["keepalives_interval"] * found["keepalives_count"] <= 60


@pytest.mark.parametrize(
    "argv",
    [["manage.py", "migrate"], ["./manage.py", "import_listings", "runserver"], ["/venv/django/__main__.py", "migrate"], ["-c"], ["/srv/housing/run.py"]],
)
def test_a_command_has_no_timeout_for_its_statements(argv):
    """A migration of a large table, an import and `warm_cache` may take minutes. A connection attempt does not."""
    found = options(argv)
    assert "options" not in found
    assert found["connect_timeout"] <= 5


def test_options_of_the_url_win():
    """PostgreSQL uses the last value of a setting that is given twice."""
    found = options(["gunicorn"], "postgres://u:p@h/n?connect_timeout=9&options=-c%20statement_timeout%3D2000")
    assert found["connect_timeout"] == 9
    assert found["options"].endswith(" -c statement_timeout=2000")
    assert "-c lock_timeout=" in found["options"]
    assert options(["gunicorn"], "sqlite:////tmp/any.sqlite3?timeout=7")["timeout"] == 7


@pytest.fixture
def connected_with(monkeypatch):
    """`connected_with(options)`: connect again with these options of PostgreSQL."""

    def connected_with(text):
        patched.setitem(connection.settings_dict["OPTIONS"], "options", text)
        connection.close()

    with monkeypatch.context() as patched:
        yield connected_with
    connection.close()


@contextmanager
def locked(table="housing_property"):
    """Lock a table against every other read and write."""
    with locking() as driver:
        driver.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield driver


@contextmanager
def locking():
    other = connection.copy("another program")
    driver = other.get_new_connection(other.get_connection_params())
    driver.autocommit = False
    try:
        yield driver
    finally:
        driver.close()


@pytest.mark.only("real")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("timeout", ["statement_timeout", "lock_timeout"])
def test_a_read_that_waits_for_a_lock_ends_with_503(twenty_properties, read, connected_with, variant, timeout, caplog):
    """The connection can be used again afterwards. (Real only: a reader of SQLite waits for nobody.)"""
    connected_with(f"-c {timeout}=50ms")
    with locked():
        response = read(variant)
    assert (response.status, response.json) == (503, {"detail": "The database is unavailable. Try again later."})
    assert [line.partition(": canceling")[0] for line in caplog.messages] == [f"503 for {VARIANTS[variant]}: The database is unavailable"]
    assert read(variant).status == 200


@pytest.mark.only("real")
def test_a_transaction_that_is_left_open_is_ended_by_postgresql(home, connected_with, price):
    """T1 UPDATEs a row and hangs · T2 waits for T1's lock until PostgreSQL ends T1. (Real only: SQLite has no such timeout.)"""
    connected_with("-c idle_in_transaction_session_timeout=50ms")
    driver = connection.copy("default").get_new_connection(connection.get_connection_params())
    driver.autocommit = False
    driver.execute("UPDATE housing_property SET price = 5 WHERE id = %s", [home.pk])
    Property.objects.filter(pk=home.pk).update(price=1)
    driver.close()
    assert price() == ("1.00", "fwd=miss; stored")


@pytest.mark.only("real")
def test_a_statement_ends_if_the_server_hangs(transactional_db):
    """Its process is stopped, so it enforces no timeout, and its kernel keeps the connection alive. The connection is closed, and the next one works. (Real
    only: SQLite has no server.)
    """
    with proxying(connection.settings_dict["HOST"], int(connection.settings_dict["PORT"])) as proxy:
        mine = connection.copy()
        mine.settings_dict = mine.settings_dict | {"HOST": "127.0.0.1", "PORT": proxy.port, "REPLY_TIMEOUT": 0.3}
        with mine.cursor() as cursor:
            cursor.execute("SELECT 1")
            with proxy.inflicting(Fault(swallows=True)), pytest.raises(OperationalError, match=r"^the server has sent no reply for 0\.3 s$"):
                cursor.execute("SELECT 2")
        assert mine.connection.closed
        mine.close()
        with mine.cursor() as cursor:
            cursor.execute("SELECT 3")
            assert cursor.fetchone() == (3,)
        mine.close()


@pytest.mark.parametrize(("argv", "seconds"), [(["gunicorn"], "6\n"), (["manage.py", "migrate"], "None\n")])
def test_only_a_server_bounds_the_wait_for_a_reply(argv, seconds):
    """A migration may take minutes. The bound is longer than statement_timeout, because PostgreSQL's own error says more."""
    program = OPTIONS.format(argv=argv).replace("['OPTIONS']", ".get('REPLY_TIMEOUT')")
    assert python("-c", program, DJANGO_DEBUG="true", DATABASE_URL="postgres://housing@127.0.0.1/housing").stdout == seconds


@pytest.mark.only("real")
@pytest.mark.slow
def test_warm_pages_stay_quick_while_sixteen_cold_readers_wait_for_a_lock(twenty_properties, warm, read, settings):
    """Two of them wait, and the others get 503. Each round compares the 99th percentile of hits with that of the same moment, and the quietest round counts,
    because other programs use this machine. (Real only: a reader of SQLite waits for nobody.)
    """
    settings.FRESHNESS_COLD_READS = 2
    warm()
    assert min(ratio_of_the_p99(read) for _ in range(5)) <= 3


def ratio_of_the_p99(read):
    """The 99th percentile of the seconds of a hit while sixteen cold readers meet a locked table, relative to the usual one."""
    clear_the_cache()
    cold_reads.forget()
    read("cached")
    usual = p99_of(read)
    with locked() as lock, ThreadPoolExecutor(16) as threads:
        cold = [threads.submit(ask_elsewhere, city="Springfield", page_size=number + 1) for number in range(16)]
        while sum(each.done() for each in cold) < 14:
            assert read("cached").came_from == "hit"
        while_locked = p99_of(read)
        assert sum(each.done() for each in cold) == 14, "two of them still wait"
        assert {each.result().status for each in cold if each.done()} == {503}
        lock.rollback()
        assert [each.result(30).status for each in cold].count(200) == 2
    return while_locked / usual


def p99_of(read, reads=400):
    """The 99th percentile of the seconds of a hit."""
    seconds = []
    for _ in range(reads):
        started = time.perf_counter()
        assert read("cached").came_from == "hit"
        seconds.append(time.perf_counter() - started)
    return statistics.quantiles(seconds, n=100)[98]


# Whether the server is still there


@pytest.fixture
def next_request(home, read):
    """`next_request()`: the response of a cold page, and the number of replies that PostgreSQL sent for it, with what Django does before each request."""
    read()

    def next_request():
        replies = []
        driver = connection.connection
        wait = driver.wait
        driver.wait = lambda *args, **options: replies.append(wait(*args, **options)) or replies[-1]
        clear_the_cache()
        close_old_connections()
        try:
            return read(), len(replies)
        finally:
            driver.wait = wait

    return next_request


@pytest.mark.only("real")  # SQLite has no server
def test_a_request_sends_postgresql_nothing_but_its_query(next_request):
    """Django checks the connection with `SELECT 1` before the first query of each request, which takes a tenth of a cold page."""
    next_request()

    assert next_request()[1] == 1


@pytest.mark.only("real")
def test_a_connection_is_checked_again_after_five_seconds(next_request, monkeypatch):
    """A server that vanished without a word leaves a silent socket, so silence alone is not trusted for long."""
    next_request()
    checked = connection._checked
    monkeypatch.setattr(postgresql, "monotonic", lambda: checked + postgresql.CHECKED + 0.001)  # a sum of floats may be rounded down

    assert next_request()[1] == 2


def ended_by_the_server(elsewhere):
    """Let PostgreSQL end this connection, as it does when it restarts. Returns the number of the process that served it."""
    process = connection.connection.info.backend_pid
    elsewhere(lambda: connection.cursor().execute("SELECT pg_terminate_backend(%s)", [process]))
    wait_for(lambda: silent_no_longer(connection), AssertionError)
    return process


@pytest.mark.only("real")
def test_a_connection_that_the_server_has_ended_is_replaced_before_the_query(next_request, elsewhere):
    """After a restart of PostgreSQL the next reader gets its page, and not an error."""
    next_request()
    process = ended_by_the_server(elsewhere)

    assert next_request()[0].status == 200
    assert connection.connection.info.backend_pid != process


@pytest.mark.only("real")
def test_a_connection_that_the_server_has_ended_is_replaced_before_a_snapshot(next_request, elsewhere):
    """The new connection has the isolation level of the snapshot. Otherwise the two SELECTs of a detail could see two states of the database."""
    next_request()
    ended_by_the_server(elsewhere)
    close_old_connections()

    with ours().snapshot(), connection.cursor() as cursor:
        assert cursor.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)


@pytest.mark.only("real")
def test_a_connection_is_checked_after_a_failed_statement(next_request):
    """The server may have ended with it, so its silence proves nothing any more."""
    next_request()
    with pytest.raises(ProgrammingError), connection.cursor() as cursor:
        cursor.execute("SELECT nothing")

    assert next_request()[1] == 2


@pytest.mark.only("real")
def test_a_time_is_read_in_the_zone_of_its_database(home):
    """The engine's own conversion of times is for UTC. In another zone each cursor has Django's."""
    elsewhere = connection.copy()
    elsewhere.settings_dict = connection.settings_dict | {"TIME_ZONE": "Asia/Kathmandu"}
    with closing(elsewhere), elsewhere.cursor() as cursor:
        cursor.execute("SELECT created_at FROM housing_property WHERE id = %s", [home.pk])
        [(created,)] = cursor.fetchall()

    assert (created, created.utcoffset()) == (home.created_at, timedelta(hours=5, minutes=45))


@pytest.mark.only("real")
def test_a_connection_that_the_driver_has_closed_is_replaced(next_request):
    """psycopg closes a connection after some errors."""
    next_request()
    connection.connection.close()
    close_old_connections()

    assert ask(Client()).status == 200


@pytest.mark.only("real")
def test_a_connection_with_a_notification_is_kept(next_request, elsewhere):
    """Its socket is not silent, so it is checked with a statement, and the server replies."""
    next_request()
    process = connection.connection.info.backend_pid
    connection.connection.execute("LISTEN specs")
    elsewhere(lambda: connection.cursor().execute("NOTIFY specs"))
    wait_for(lambda: silent_no_longer(connection), AssertionError)

    assert next_request()[1] == 2
    assert connection.connection.info.backend_pid == process


def silent_no_longer(connection):
    assert not connection._is_silent()
