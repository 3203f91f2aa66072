"""A process of the service as it is deployed. No thread waits for a slow client, and no header passes for another one."""

import gc
import http.client
import itertools
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from gunicorn.config import Config
from gunicorn.errors import ConfigError
from gunicorn.glogging import Logger

from housing import worker
from housing.worker import Granian, threads_of_granian
from housing.wsgi import Service
from tests.fixtures.hostile import METHODS, headers, send
from tests.fixtures.processes import any_free_port, gunicorn
from tests.fixtures.responses import VARIANTS
from tests.fixtures.workers import HOST, Served, idle_process, process, running, serving, until, watcher_of
from tests.stacks import TIMEOUT, wait_for

LIST = VARIANTS["cached"]
SLOW_HEAD, SLOW_FORM = b"GET / HTTP/1.1\r\nX-Slow: x", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\nx"
"""The beginnings of requests whose end does not come: of one in its headers, and of a form."""


@pytest.fixture(autouse=True)
def quick_end(monkeypatch):
    """No spec waits for the end of a process longer than it must."""
    monkeypatch.setattr(worker, "DRAIN", 0.0)
    monkeypatch.setattr(worker, "BEAT", 0.01)


def nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """An application that responds with 204."""


# Slow clients


@pytest.mark.parametrize("beginning", [SLOW_HEAD, SLOW_FORM], ids=["headers", "a form"])
def test_64_clients_that_never_finish_a_request_keep_no_thread(beginning):
    """Each would keep one behind gunicorn's own worker, and the process would answer nobody. Here the only thread is free."""
    with serving(nothing, threads=1) as served, ExitStack() as clients:
        for _ in range(64):
            clients.enter_context(served.connected()).sendall(beginning)
        assert [served.get().status for _ in range(10)] == [204] * 10


@pytest.mark.only("embedded")
@pytest.mark.slow
def test_hits_and_logins_are_answered_beside_64_slow_clients(twenty_properties):
    """The service as it is deployed, with one process of four threads. Half of the clients are slow with their headers, and half with a form.
    (Embedded only: nothing here depends on the servers.)
    """
    served = Served(None, any_free_port())
    database = {"DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}", "REDIS_URL": "fakeredis://"}
    environment = database | {"DJANGO_SECRET_KEY": "any", "DJANGO_ALLOWED_HOSTS": "127.0.0.1", "WEB_CONCURRENCY": "1"}
    with gunicorn(served.port, **environment), ExitStack() as clients:
        wait_for(lambda: served.connected().close(), ConnectionRefusedError)

        def hit() -> None:
            assert served.get(LIST).headers["Cache-Status"].endswith("; hit")

        wait_for(hit, AssertionError)
        for beginning in (SLOW_HEAD, SLOW_FORM) * 32:
            clients.enter_context(served.connected()).sendall(beginning)
        for _ in range(20):
            hit()
        assert served.get("/health/ready/").status == 200
        assert served.get("/admin/login/").status == 200
        login = b"POST /admin/login/ HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 1\r\n\r\na"
        assert served.ask(login).startswith(b"HTTP/1.1 403 ")  # the form reached Django, which misses its token


def test_a_client_that_does_not_send_its_body_gets_408_and_a_closed_connection(monkeypatch):
    """Its connection is one of a bounded number."""
    monkeypatch.setattr(worker, "PATIENCE", 0.01)
    with serving(nothing) as served:
        assert served.ask(SLOW_FORM).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert served.environs == []


def test_a_client_that_does_not_send_its_headers_is_disconnected():
    """As long as a connection may be idle, it may be slow."""
    with serving(nothing, keepalive=1) as served:
        assert served.ask(SLOW_HEAD) == b""


def test_the_bodies_that_a_process_reads_at_once_are_bounded(monkeypatch):
    """Each may take megabytes of memory. A request without a body is answered beside them."""
    monkeypatch.setattr(worker, "FORMS", 2)
    with serving(nothing) as served, ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(served.connected()).sendall(SLOW_FORM)
        until(lambda: served.worker.forms == 2)
        refused = served.ask(SLOW_FORM)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in refused
        assert served.get().status == 204
    assert served.worker.forms == 0


def test_half_a_form_does_not_reach_the_application():
    """A client that has gone sends no more of it."""
    with serving(nothing) as served:
        with served.connected() as client:
            client.sendall(SLOW_FORM)
            until(lambda: served.worker.forms)
        until(lambda: not served.worker.forms)
        assert served.environs == []


def test_a_body_that_nobody_reads_ends_its_connection():
    """Otherwise each would keep a place among the connections for ever, also when its client has gone."""

    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("403 Forbidden", [("Content-Length", "4")])
        return [b"page"]

    with serving(page) as served:
        assert served.ask(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\nabcd").startswith(b"HTTP/1.1 403 ")


# Requests as clients send them


def header_of(served: Served, *sent: bytes) -> dict[str, str]:
    """The headers of a request as the application has them."""
    served.environs.clear()
    answer = served.ask(b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", b"Connection: close", *sent, b"", b""]))
    assert answer.startswith(b"HTTP/1.1 204 ")
    [environ] = served.environs
    return {name: value for name, value in environ.items() if name.startswith(("HTTP_", "CONTENT_")) and name != "HTTP_CONNECTION"}


def test_no_header_passes_for_another_one():
    """A proxy that removes `X-Forwarded-Proto` does not know it as `X_Forwarded_Proto`. granian's WSGI interface takes one for the other."""
    with serving(nothing) as served:
        assert header_of(served, b"X_Forwarded_Proto: https", b"x-forwarded_for: 10.0.0.1", b"Content_Length: 9") == {"HTTP_HOST": "a"}
        assert header_of(served, b"X-Forwarded-Proto: http", b"X_Forwarded_Proto: https")["HTTP_X_FORWARDED_PROTO"] == "http"


def test_a_header_is_all_that_was_sent():
    """A trusted proxy may send the address of its client in the second of two lines, or after bytes that are no text. granian's other interfaces drop these."""
    with serving(nothing) as served:
        sent = header_of(served, b"X-Forwarded-For: \xff, 10.0.0.1", b"X-Forwarded-For: 10.0.0.2", b"Cookie: a=\xc3\xa9", b"cookie: b=2")
        assert sent["HTTP_X_FORWARDED_FOR"] == "\xff, 10.0.0.1,10.0.0.2"
        assert sent["HTTP_COOKIE"] == "a=\xc3\xa9; b=2"


def test_a_request_has_no_variable_of_the_process(monkeypatch):
    """granian's WSGI interface adds all of them, the secret key, too."""
    monkeypatch.setenv("DJANGO_SECRET_KEY", "of the spec")
    with serving(nothing) as served:
        served.get()
    assert not {"DJANGO_SECRET_KEY", "PATH"} & served.environs[0].keys()


def test_the_body_of_a_form_reaches_the_application_whole():
    """However many parts it comes in."""
    with serving(nothing) as served, served.connected() as client, client.makefile("rb") as response:
        client.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 8\r\n\r\nab=")
        until(lambda: served.worker.forms)
        client.sendall(b"c&d=e")
        assert response.read().startswith(b"HTTP/1.1 204 ")
    assert [environ["body"] for environ in served.environs] == [b"ab=c&d=e"]


REFUSED = {
    "a long path": (b"GET /" + b"x" * 4094 + b" HTTP/1.1\r\n" + HOST, 414),
    "a long query string": (b"GET /?" + b"x" * 4094 + b" HTTP/1.1\r\n" + HOST, 414),
    "a very long path": (b"GET /" + b"x" * 80_000 + b" HTTP/1.1\r\n" + HOST, 431),
    "a long header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 80_000 + b"\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + HOST + b"X: x\r\n" * 100, 431),
    "no slash": (b"GET api HTTP/1.1\r\n" + HOST, 400),
    "a tunnel": (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST, 400),
    "two lengths": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n", 400),
    "a signed length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n", 400),
    "a wrong chunk": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: nonsense\r\n", 400),
    "a folded header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n", 400),
    "a space before the colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n", 400),
}
"""(the beginning of the request, the status). Each connection is closed."""


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_no_client_of_good_will_sends_is_refused_before_the_application(what):
    """Its length is bounded, and a proxy in front cannot understand it otherwise than the service does."""
    sent, status = REFUSED[what]
    with serving(nothing) as served:
        assert served.ask(sent + b"\r\n").startswith(b"HTTP/1.1 %d " % status)
        assert served.environs == []


def test_the_longest_path_is_served():
    """4,094 characters, as with gunicorn's own worker."""
    with serving(nothing) as served:
        assert served.get("/" + "x" * 4093).status == 204


def test_a_body_with_two_lengths_ends_its_connection():
    """The bytes that follow could be a request, and a proxy in front could have taken them for the body."""
    smuggled = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    with serving(nothing) as served:
        assert served.ask(smuggled).count(b"HTTP/1.1 204 ") == 1
    assert [environ["PATH_INFO"] for environ in served.environs] == ["/"]


IMPOSSIBLE = {"SCRIPT_NAME", "REMOTE_ADDR", "SERVER_PORT", "wsgi.url_scheme", "CONTENT_LENGTH"}
"""Parts that no client chooses, or that are among REFUSED."""


@pytest.mark.only("embedded")
@pytest.mark.slow
def test_each_hostile_request_gets_the_response_of_the_application(home):
    """The server changes nothing in what it passes on. No request gets 500. (Embedded only: nothing here depends on the servers.)"""
    service, turns = Service(), itertools.cycle(METHODS[:8])

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            return [b"".join(service(environ, start_response))]
        finally:
            connections.close_all()

    compared = 0
    with serving(application) as served:
        for name, parts in headers().items():
            if IMPOSSIBLE & parts.keys():
                continue
            query, body = parts.get("QUERY_STRING") or "", (parts.get("body") or "").encode("latin-1")
            sent = {key: value for key, value in parts.items() if key.startswith("HTTP_") or key == "CONTENT_TYPE"}
            lines = [b"%s: %s" % (key.removeprefix("HTTP_").replace("_", "-").encode(), value.encode("latin-1")) for key, value in sent.items()]
            method, host = next(turns), [] if "HTTP_HOST" in sent else [b"Host: testserver"]
            head = [f"{method} {LIST}?{query} HTTP/1.1".encode("latin-1"), *host, b"Connection: close", b"Content-Length: %d" % len(body), *lines]
            answer = served.ask(b"\r\n".join([*head, b"", body]))
            status, body = int(answer[9:12]), answer.partition(b"\r\n\r\n")[2]
            assert status < 500, name
            if len(served.environs) > compared:  # it has reached the application
                compared += 1
                expected = send(service, LIST, method, **parts)
                assert (status, body) == (expected.status, b"" if method == "HEAD" else expected.body), name
            else:
                assert status in (400, 408, 414, 431), name
    assert compared > 30


def test_head_has_the_headers_of_get_and_no_body():
    """The application may have sent one."""

    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [("Content-Length", "4"), ("X-Page", "a")])
        return [b"pa", b"ge"]

    with serving(page) as served:
        get, head = (served.ask(b"%s / HTTP/1.1\r\nConnection: close\r\n" % method + HOST + b"\r\n") for method in (b"GET", b"HEAD"))
    assert get.endswith(b"\r\n\r\npage")
    assert head.endswith(b"\r\n\r\n")
    assert b"\r\nx-page: a\r\n" in head
    assert b"\r\ncontent-length: 4\r\n" in head


# Threads


def test_at_most_four_threads_respond_and_they_are_always_the_same():
    """Each has a connection to PostgreSQL of its own, and a thread that ended would close it. The others wait without a thread."""
    allowed, seen, lock = threading.Semaphore(0), [], threading.Lock()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        with lock:
            seen.append(threading.get_ident())
        allowed.acquire(timeout=TIMEOUT)

    with serving(application, threads=4) as served, ThreadPoolExecutor(12) as clients:
        answers = [clients.submit(served.get) for _ in range(12)]
        until(lambda: len(served.worker.busy) == 4)
        assert len(set(seen)) == len(seen) == 4
        allowed.release(12)
        assert [answer.result().status for answer in answers] == [204] * 12
        assert len(set(seen)) == 4
    assert worker.FOR_EVER > 10**9


def test_a_form_is_answered_while_every_thread_is_busy():
    """Forms have threads of their own, so neither waits for the other. A profiler shows their name."""
    allowed, threads = threading.Semaphore(0), []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        if environ["REQUEST_METHOD"] == "GET":
            allowed.acquire(timeout=TIMEOUT)
        else:
            threads.append(threading.current_thread().name)

    with serving(application, threads=2) as served, ThreadPoolExecutor(2) as clients:
        pages = [clients.submit(served.get) for _ in range(2)]
        until(lambda: len(served.worker.busy) == 2)
        # One thread of granian has to read the form.
        allowed.release()
        until(lambda: any(page.done() for page in pages))
        assert served.ask(b"POST / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"Content-Length: 1\r\n\r\na").startswith(b"HTTP/1.1 204 ")
        allowed.release()
    assert threads == ["form_0"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Only /proc shows the threads of granian.")
def test_the_first_requests_of_a_process_have_a_thread_each():
    """granian starts a thread if all are busy. One that has just taken a request is not yet, so a second request at that instant would wait for its end."""
    allowed, before = threading.Semaphore(0), threads_of_granian()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        allowed.acquire(timeout=TIMEOUT)

    with serving(application, threads=3) as served, ExitStack() as clients:
        for request in (1, 2, 3):
            clients.enter_context(served.connected()).sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            until(lambda n=request: len(served.worker.busy) == n)
            # Two more threads of granian accept connections and wait for the end.
            until(lambda n=request: len(threads_of_granian() - before) >= 2 + min(n + 1, 3))
        allowed.release(3)


# The life of a process


def test_a_request_that_has_begun_is_answered_when_the_process_ends():
    """And its client learns that the next request needs another connection."""
    allowed = threading.Semaphore(0)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        allowed.acquire(timeout=TIMEOUT)

    with serving(application) as served, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(served.get)
        until(lambda: served.worker.busy)
        served.worker.alive = False
        allowed.release()
        assert answer.result().status == 204
        assert answer.result().headers["connection"] == "close"


def test_a_process_that_ends_still_accepts_requests_for_a_moment(monkeypatch):
    """A client may have sent one when the end began. Its connection is closed after the response, and not before."""
    begun, ended, real = threading.Event(), threading.Event(), worker.asyncio.sleep
    monkeypatch.setattr(worker, "DRAIN", 30.0)

    async def sleep(seconds: float) -> None:
        if seconds == 30.0:
            begun.set()
        await (worker.asyncio.to_thread(ended.wait, TIMEOUT) if seconds == 30.0 else real(seconds))

    monkeypatch.setattr(worker.asyncio, "sleep", sleep)
    with serving(nothing) as served:
        with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=TIMEOUT)) as client:
            client.request("GET", "/")
            kept = client.getresponse()
            kept.read()
            served.worker.alive = False
            assert begun.wait(TIMEOUT)
            client.request("GET", "/")
            last = client.getresponse()
            last.read()
            assert (kept.headers["connection"], last.headers["connection"]) == (None, "close")
        assert served.get().status == 204
        ended.set()


def test_a_process_ends_after_the_threads_of_granian(monkeypatch):
    """Before Python 3.14, one that returns to Python too late aborts the process. gunicorn logs SIGABRT, and exit handlers do not run."""
    threads: list[set[int]] = [{1}, {1, 2, 3}, {1, 3}, {1}]
    monkeypatch.setattr(worker, "threads_of_granian", lambda: threads.pop(0))
    with serving(nothing):
        pass
    assert threads == []


def test_a_process_does_not_wait_long_for_a_thread_of_granian(monkeypatch):
    """gunicorn would end it after 30 seconds."""
    lines: list[str] = []
    monkeypatch.setattr(worker, "LAST_MOMENT", 0.0)
    monkeypatch.setattr(worker, "threads_of_granian", iter([set(), *[{1, 2}] * 9]).__next__)
    with serving(nothing) as served:
        monkeypatch.setattr(served.worker.log.error_log, "handlers", [handler_of(lines)])
    assert lines == ["This process ends before 2 threads of granian. Python may abort it, and gunicorn logs SIGABRT then."]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Only /proc shows the threads of granian.")
def test_a_process_ends_at_once_although_an_old_error_still_exists(monkeypatch):
    """A request keeps granian's threads. Django leaves errors in cycles, for example after a 404, whose traceback leads to the frames that have the request."""
    lines: list[str] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        try:
            raise LookupError
        except LookupError as error:
            cycle = [error]
            cycle.append(cycle)

    gc.disable()
    try:
        with serving(application) as served:
            monkeypatch.setattr(served.worker.log.error_log, "handlers", [handler_of(lines)])
            assert served.get().status == 204
    finally:
        gc.enable()
    assert lines == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Only /proc shows the threads of granian.")
def test_a_process_knows_the_threads_of_granian():
    """Also those that have asked Python for their name, which Python then lists beside its own. They end with the server."""
    before, asked = threads_of_granian(), set()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        threading.current_thread()
        asked.add(threading.get_native_id())

    with serving(application) as served:
        assert served.get().status == 204
        assert asked <= threads_of_granian() - before
    until(lambda: threads_of_granian() <= before)


def test_a_process_without_its_parent_ends():
    """Nobody would stop it."""
    with serving(nothing) as served:
        served.worker.ppid = -1
        until(lambda: not served.worker.alive)


@pytest.fixture
def idle():
    """A worker that has not begun."""
    with idle_process() as made:
        yield made


def test_a_process_whose_threads_all_hang_gives_no_sign_of_life(idle, monkeypatch):
    """gunicorn replaces it after its `timeout`, 30 seconds."""
    now = iter(range(1, 100))
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(now))
    busy: list[dict[int, float]] = [{}, {1: 0.5}, {1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}, {1: 0.5, 2: 99}, {1: 0.5}]
    signs = []
    for each in busy:
        idle.busy = each
        idle.give_a_sign()
        signs.append(idle.signs)

    assert signs == [1, 2, 2, 2, 3, 4], "idle, one is busy, both hang, both hang, one has gone on, one is idle"


def test_head_reaches_granian_without_a_body(idle):
    """An access log would have its length otherwise."""
    idle.wsgi = lambda environ, start_response: start_response("200 OK", []) or [b"page"]
    idle.begin(watcher_of(idle, REQUEST_METHOD="HEAD"))

    assert idle.sent[1]["body"] == b""


def test_granian_learns_that_a_request_is_done(idle):
    """Otherwise it would wait for a body that nobody has read."""
    idle.begin(watcher_of(idle))

    assert idle.sent == [{"type": "http.response.start", "status": 204, "headers": []}, {"type": "http.response.body", "body": b""}, "done"]
    assert idle.busy == {}


def test_an_unexpected_error_is_a_503_and_a_line_in_the_log(idle, monkeypatch):
    """Nobody gets a 500, and nobody waits."""
    lines: list[str] = []
    monkeypatch.setattr(idle.log.error_log, "handlers", [handler_of(lines)])

    def broken(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        raise ValueError("broken")

    idle.wsgi = broken
    idle.begin(watcher_of(idle))

    assert (idle.sent[0]["status"], idle.sent[-1], idle.busy) == (503, "done", {})
    assert lines == ["The server could not respond: ValueError"]


def test_an_unexpected_error_about_a_form_is_a_503_too(monkeypatch):
    """It has a thread of its own."""
    with serving(lambda environ, start_response: 1 / 0) as served:
        monkeypatch.setattr(served.worker.log.error_log, "handlers", [logging.NullHandler()])  # pytest's would keep the error, and with it the request
        assert served.ask(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\na").startswith(b"HTTP/1.1 503 ")


def test_an_error_after_the_response_changes_nothing(idle, monkeypatch):
    """A second response to the same request would be another error."""

    def twice(event: Any) -> None:
        if idle.sent.append(event) or len(idle.sent) > 3:
            raise RuntimeError("Response already started")

    monkeypatch.setattr(idle.log.error_log, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(worker, "atoms_of", lambda *_: 1 / 0)
    monkeypatch.setattr(Logger, "access_log_enabled", True)
    watcher = watcher_of(idle)
    watcher.proto.send = twice
    idle.begin(watcher)

    assert [event["status"] for event in idle.sent if "status" in event] == [204, 503]


def handler_of(lines: list[str]) -> logging.Handler:
    """A handler that keeps the lines."""
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    return handler


# gunicorn's options


@pytest.mark.parametrize("options", [{"bind": ["127.0.0.1:1", "127.0.0.1:2"]}, {"certfile": "/any", "keyfile": "/any"}])
def test_a_second_address_and_tls_are_refused_at_the_start(options):
    """It would otherwise serve one of two addresses, or without TLS."""
    configured = Config()
    Granian.check_config(configured, None)
    for name, value in options.items():
        configured.settings[name].value = value

    with pytest.raises(ConfigError, match=r"^This worker listens at one address, and without TLS\. Use one --bind, and a proxy for TLS\.$"):
        Granian.check_config(configured, None)


def test_the_server_listens_at_a_unix_socket(tmp_path):
    """A proxy on the same machine may use one."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            start_response("204 No Content", [("X-Client", environ["REMOTE_ADDR"])])
            return []

        with process(application, listening) as made, running(made), client.makefile("rb") as response:
            client.connect(str(tmp_path / "socket"))
            client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
            answer = response.read()
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\nx-client: \r\n")
