"""Health checks: `/health/live/` for the question whether to restart this process, `/health/ready/` whether to send it requests.

They are for everybody, so they show no address. They respond quickly whatever the database and Redis do: the bound on cold reads keeps threads of the server
free, and with HEALTH_BIND the checks have threads of their own, which slow clients cannot use.
"""

import json
import runpy
import socket
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest
from django.db import connection
from django.test import Client
from django_redis import get_redis_connection

from housing import health
from housing.freshness import ours, watchman
from housing.freshness.journal import journal
from housing.freshness.slots import cold_reads
from tests import ROOT
from tests.fixtures.processes import any_free_port, gunicorn
from tests.fixtures.stub import Stub, info
from tests.stacks import TIMEOUT, wait_for

READY = "/health/ready/"


@pytest.fixture
def ready(client, twenty_properties):
    """`ready()`: the status code of the check, and its JSON."""

    def ready():
        response = client.get(READY)
        return response.status_code, response.json()

    return ready


# Every check


@pytest.mark.parametrize("path", health.CHECKS)
def test_a_health_check_is_never_stored_by_a_browser_or_a_proxy(twenty_properties, client, path):
    """An old "ok" would be worse than none."""
    assert "no-store" in client.get(path).headers["Cache-Control"]


@pytest.mark.parametrize("path", health.CHECKS)
def test_a_health_check_responds_to_head_the_same_as_get_and_refuses_other_methods(twenty_properties, client, path):
    """Some load balancers send HEAD."""
    get, head = client.get(path), client.head(path)
    assert (get.status_code, get.headers.keys(), head.content) == (head.status_code, head.headers.keys(), b"")
    assert client.post(path).status_code == 405


@pytest.mark.parametrize("path", health.CHECKS)
def test_a_health_check_accepts_any_host(twenty_properties, client, path):
    """A load balancer sends the address of the process, which is not in ALLOWED_HOSTS."""
    assert client.get(path, headers={"Host": "10.9.8.7:8000"}).status_code == 200


@pytest.mark.parametrize("path", health.CHECKS)
def test_a_health_check_takes_no_place_of_a_cold_read(twenty_properties, client, settings, path):
    """All places are taken by reads that wait for the database."""
    settings.FRESHNESS_COLD_READS = 0
    assert client.get(path).status_code == 200


def test_a_process_is_live_without_database_and_redis(client, transactional_db, database_unreachable, redis_unreachable, settings):
    """Restarting it would not help."""
    settings.FRESHNESS_COLD_READS = 0
    with database_unreachable(), redis_unreachable():
        response = client.get("/health/live/")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


# Ready


def test_a_process_is_ready_while_reads_are_cached(ready):
    """`lag` is the seconds since the last verification, which bound the age of every response."""
    status, state = ready()
    lag = state.pop("lag")
    assert (status, state) == (200, {"status": "ok", "database": "ok", "cache": "ok", "breaker": "closed", "watchman": "off", "hits": True})
    assert 0 <= lag < 60


def test_a_process_is_degraded_and_ready_without_redis(ready, settings, redis_unreachable):
    """Every read is still answered from the database. The breaker is open until a check or a read reaches Redis again."""
    settings.FRESHNESS_RETRY = 3600.0
    with redis_unreachable():
        status, state = ready()
    without = {"database": "ok", "cache": "unreachable", "breaker": "open", "watchman": "off", "lag": None, "hits": False}
    assert (status, state) == (200, {"status": "degraded"} | without)
    assert ready()[1]["status"] == "ok"


@pytest.mark.only("embedded")
def test_a_process_is_degraded_while_nothing_is_verified(ready, settings, redis_clock, verify):
    """Hits are not given then. (Embedded only: the spec sets Redis's clock.)"""
    settings.FRESHNESS_MAX_STALENESS = 1.0
    journal.forget_server()
    verify()
    redis_clock.seconds += 1
    assert ready()[1]["status"] == "ok"
    redis_clock.seconds += 0.1
    status, state = ready()
    assert (status, state["status"], round(state["lag"], 3)) == (200, "degraded", 1.1)
    verify()
    redis_clock.seconds -= 0.5  # the verification seems to be in the future
    assert ready()[1]["status"] == "degraded"
    journal.forget_server()


def test_a_process_is_not_ready_without_the_database(ready, database_unreachable, caplog):
    """A load balancer should send requests to another process. The log has the driver's error."""
    with database_unreachable():
        status, state = ready()
    assert (status, state["status"], state["database"], state["cache"]) == (503, "unavailable", "unreachable", "ok")
    assert caplog.messages == ["The health check cannot reach the database: connection failed: Connection refused"]
    assert ready()[0] == 200


def test_a_check_waits_only_briefly_for_a_database_that_hangs(ready, monkeypatch, caplog):
    """No timeout of a driver covers a server that accepts and never replies. Further checks share the thread that waits, and each 503 is a line in the log."""
    replies, attempts = threading.Event(), []
    connect = type(ours()).get_new_connection

    def hang(self, *arguments):
        attempts.append(threading.current_thread())
        replies.wait(TIMEOUT)
        return connect(self, *arguments)

    monkeypatch.setattr(health, "DEADLINE", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(type(ours()), "get_new_connection", hang)
        for _ in range(3):
            status, state = ready()
            assert (status, state["status"], state["database"]) == (503, "unavailable", "no reply")
        assert len(attempts) == 1
        assert caplog.messages == ["The health check has had no reply from the database for 0.01 s."] * 3
        replies.set()
        attempts[0].join(TIMEOUT)
    monkeypatch.setattr(health, "DEADLINE", 30)
    assert ready()[0] == 200


def test_a_check_leaves_no_connection_open(ready, monkeypatch):
    """It would count against the limit of the server."""
    connect, opened = type(ours()).get_new_connection, []

    def note(self, *arguments):
        opened.append(connect(self, *arguments))
        return opened[-1]

    monkeypatch.setattr(type(ours()), "get_new_connection", note)
    ready()
    [driver] = opened
    with pytest.raises(ours().Database.Error, match="closed"):
        driver.execute("SELECT 1")


@pytest.mark.parametrize(("failing", "state"), [({}, "running"), ({"default": (0.0, 0.0)}, "failing")])
def test_the_state_of_the_watchman_is_shown(ready, settings, monkeypatch, failing, state):
    """Its thread runs from the first read of a cached view on."""
    settings.FRESHNESS_WATCHMAN = True
    monkeypatch.setattr(watchman.watchman, "watched", set())
    assert ready()[1]["watchman"] == "not running"
    monkeypatch.setattr(watchman.watchman, "watched", {"default"})
    monkeypatch.setattr(watchman.watchman, "thread", threading.current_thread())
    monkeypatch.setattr(watchman.watchman, "_failing", failing)
    assert ready()[1]["watchman"] == state


# A Redis that replies to PING, and still does not keep the journal


REFUSALS = {
    "full": ({"probe": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"}, {}, info(), "it is full"),
    "read-only": ({"probe": b"-NOREPLICAS Not enough good replicas to write.\r\n"}, {}, info(), "it refuses the script of the journal, or writes"),
    "without scripts": ({}, {"SCRIPT": b"-ERR unknown command 'SCRIPT'\r\n"}, info(), "it refuses the script of the journal, or writes"),
    "wrong password": ({}, {"INFO": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"}, {}, "it does not accept the user or the password"),
    "loading": ({}, {"INFO": b"-LOADING Redis is loading the dataset in memory\r\n"}, {}, "it is loading its data"),
    "no permission": ({}, {"SCRIPT": b"-NOPERM User alice has no permissions\r\n"}, info(), "its user lacks a permission"),
    "a replica": ({}, {}, info(role="slave"), "it is a replica, which lags behind another server and takes no lease"),
    "too old": ({}, {}, info("6.2.14"), "before Redis 7.0 a script survives a restart and a failover, and an old dump looks like the current data"),
}


@pytest.fixture
def stub(settings):
    """A server whose replies a spec sets, as the service's cache."""
    settings.FRESHNESS_RUN_ID = None
    with Stub() as stub:
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.001})
        thread.start()
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": f"redis://{stub.address}/0", "OPTIONS": {}}}
        journal.forget_server()
        yield stub
        get_redis_connection("default").connection_pool.disconnect()
        journal.forget_server()
        stub.shutdown()
        thread.join()


@pytest.mark.parametrize("name", REFUSALS)
def test_a_process_is_degraded_if_redis_does_not_keep_the_journal(client, transactional_db, stub, name):
    """It replies to PING, and reads come from the database. The check says why, and shows neither the address nor the user."""
    scripts, replies, fields, why = REFUSALS[name]
    stub.info = fields
    stub.replies |= replies
    stub.script_replies |= scripts

    response = client.get(READY)

    assert (response.status_code, response.json()["status"], response.json()["cache"]) == (200, "degraded", f"refused: {why}")
    assert not any(word in response.text for word in (stub.address, "127.0.0.1", "alice"))


@pytest.mark.only("real")
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "refused: it is full"),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), "refused: it refuses the script of the journal, or writes"),
        (("REPLICAOF", "127.0.0.1", "1"), "refused: it is a replica, which lags behind another server and takes no lease"),
        (("CONFIG", "SET", "requirepass", "secret"), "refused: it does not accept the user or the password"),
    ],
    ids=["full", "too few replicas", "a replica", "another password"],
)
def test_a_real_redis_that_does_not_keep_the_journal_is_reported(own_redis, ready, broken, why):
    """It replies to PING in each case. (Real only: fakeredis knows none of this.)"""
    own_redis()
    assert ready()[1]["status"] == "ok"
    client = get_redis_connection("default")
    client.execute_command(*broken)
    client.client_kill_filter(_type="normal", skipme=True)

    status, state = ready()
    assert (status, state["status"], state["cache"]) == (200, "degraded", why)


@pytest.mark.only("real")
def test_a_full_redis_still_gives_hits(own_redis, home, warm, read):
    """A hit writes nothing, so the check says degraded, and readers of warm pages do not notice. (Real only: fakeredis is never full.)"""
    own_redis()
    warm()
    get_redis_connection("default").config_set("maxmemory", 1)
    assert read("cached").came_from == "hit"
    assert read("cached", city="Springfield").came_from == "fwd=bypass; detail=unreachable"
    assert Client().get(READY).json()["status"] == "degraded"
    assert cold_reads._begun == []


# An address of their own


@pytest.fixture(scope="module")
def listener():
    """A listener, as in each process of the server. (One for all specs, because it takes half a second to end.)"""
    with health.Listener(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


def ask(url, method="GET"):
    """The status, the headers and the body of a response."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=TIMEOUT) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.mark.parametrize("path", health.CHECKS)
def test_the_listener_returns_the_same_as_the_service(twenty_properties, client, listener, path):
    """It calls the same views."""
    expected = client.get(path)
    status, headers, body = ask(listener + path)
    state, of_the_service = json.loads(body), expected.json()
    assert state.pop("lag", 0) >= of_the_service.pop("lag", 0)
    assert (status, state) == (expected.status_code, of_the_service)
    del expected.headers["Expires"]  # the second in which it was made
    assert expected.headers.items() <= dict(headers).items() | {("Content-Length", expected.headers.get("Content-Length"))}
    assert ask(listener + path, "HEAD")[2] == b""
    assert ask(listener + path, "POST")[0] == 405


def test_the_listener_serves_only_the_health_checks(listener):
    """It has no middleware. Everybody who reaches the address may read what it serves."""
    status, _, body = ask(f"{listener}/api/properties/cached/")
    assert (status, json.loads(body)["paths"]) == (404, list(health.CHECKS))


def test_a_slow_probe_does_not_delay_another(listener):
    """Each has a thread of its own, and ends after some seconds."""
    address = listener.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert ask(f"{listener}/health/live/")[0] == 200
        slow.sendall(b" any\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.0 404"  # it had not been ended before


def test_a_probe_that_sends_nothing_is_ended(listener, monkeypatch):
    """Otherwise each broken probe would keep a thread for ever. (The spec waits a thousandth of the time.)"""
    monkeypatch.setattr(health.Handler, "timeout", health.Handler.timeout / 1000)
    address = listener.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=TIMEOUT) as silent:
        assert silent.recv(1) == b""


def test_workers_share_the_address(listener):
    """Each of gunicorn's workers listens there. A worker that cannot listen fails to start, and gunicorn exits."""
    address, port = listener.removeprefix("http://").split(":")
    with health.Listener((address, int(port))) as second:
        assert ask(f"{listener}/health/live/")[0] == 200
        second.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        health.Listener(other.getsockname())


@pytest.mark.only("embedded")
def test_a_process_responds_to_health_checks_while_slow_clients_use_all_threads(twenty_properties):
    """A supervisor would restart all processes otherwise. Each thread of gunicorn's own worker, which may be chosen, waits for the rest of a request.
    (Embedded only: nothing here depends on the servers.)
    """
    service, checks = any_free_port(), any_free_port()
    environment = {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "REDIS_URL": "fakeredis://",
        "DJANGO_SECRET_KEY": "any",
        "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
        "WEB_CONCURRENCY": "1",
        "HEALTH_BIND": f"127.0.0.1:{checks}",
        "GUNICORN_CMD_ARGS": "--worker-class gthread",
    }
    with gunicorn(service, **environment), ExitStack() as clients:
        wait_for(lambda: ask(f"http://127.0.0.1:{checks}/health/live/"), urllib.error.URLError)
        for _ in range(2 * runpy.run_path(str(ROOT / "gunicorn.conf.py"))["threads"]):
            clients.enter_context(socket.create_connection(("127.0.0.1", service))).sendall(b"GET / HTTP/1.1\r\nHost:")
        with pytest.raises(TimeoutError):
            while True:  # until the last thread has a slow client
                urllib.request.urlopen(f"http://127.0.0.1:{service}/health/live/", timeout=0.5).close()
        for path in health.CHECKS:
            assert ask(f"http://127.0.0.1:{checks}{path}")[0] == 200, path


@pytest.mark.parametrize("bind", ["8081", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "http://127.0.0.1:8081", ":8081", "a b:8081/"])
def test_an_invalid_address_of_the_health_checks_is_refused_in_one_line(monkeypatch, bind):
    """The server would otherwise start without them."""
    monkeypatch.setenv("HEALTH_BIND", bind)
    with pytest.raises(SystemExit, match=r"^Not started: HEALTH_BIND is not a host and a port\. Write it like 127\.0\.0\.1:8081\.$"):
        runpy.run_path(str(ROOT / "gunicorn.conf.py"))
