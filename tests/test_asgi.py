"""The service behind an ASGI server. It keeps the same promises, with a bounded number of threads and of connections to PostgreSQL."""

import asyncio
import http.client
import io
import itertools
import re
import runpy
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from housing import asgi, wsgi
from housing.asgi import THREADS, Bridge
from housing.worker import FORM_THREADS
from housing.wsgi import Application, Service
from tests import ROOT
from tests.fixtures.asgi import Here, Server, request, scope_of
from tests.fixtures.hostile import METHODS, addresses, headers, send
from tests.fixtures.processes import clean
from tests.fixtures.responses import VARIANTS
from tests.measurements import load
from tests.stacks import TIMEOUT, wait_for

LIST = VARIANTS["cached"]


def server_of(application):
    """A server of a WSGI application through the bridge."""
    here = Here()
    return Server(Bridge(application, here), here)


@pytest.fixture
def server(twenty_properties):
    """The service with twenty properties, as an ASGI server has it."""
    return server_of(Service())


def compared(answer):
    """A response without what differs in each: times, and tokens in pages for people."""
    fields = {name.lower(): re.sub(r"dur=[\d.]+", "dur=…", value) for name, value in answer.headers.items()}
    fields = {name: re.sub(r"=[^;]+", "=…", value) if name == "set-cookie" else "…" if name == "expires" else value for name, value in fields.items()}
    is_a_page = fields.get("content-type", "").startswith("text/html")
    return answer.status, list(fields.items()), len(answer.body) if is_a_page else answer.body


# The promises of the read


def test_a_miss_costs_one_query_and_a_hit_costs_one_command_and_no_query(server, queries, redis_commands, monkeypatch):
    """The event loop and the threads add none."""
    monkeypatch.setitem(connection.settings_dict, "CONN_HEALTH_CHECKS", False)  # on PostgreSQL, a server's request checks its kept connection by a query
    connection.close()
    with queries.exactly(1, because="the page is cold"):
        cold = send(server, LIST)
    for _ in range(4):  # until the process knows the response
        send(server, LIST)
    with queries.exactly(0, because="it is a hit"), redis_commands.exactly(1, because="the lookup is one script"):
        warm = send(server, LIST)

    assert (cold.headers["cache-status"], warm.headers["cache-status"]) == ("housing; fwd=miss; stored", "housing; hit")
    assert warm.body == cold.body == send(server, VARIANTS["optimized"]).body
    assert {"x-frame-options", "x-content-type-options", "referrer-policy", "cross-origin-opener-policy"} < warm.headers.keys()


def test_a_saved_price_is_in_the_next_read_of_an_asgi_server(home, server):
    """A hit is looked up for each request, and neither the event loop nor a thread keeps a response."""
    for _ in range(5):
        assert b'"price":"395000.00"' not in send(server, LIST).body

    home.price = 395_000
    home.save()

    changed = send(server, LIST)
    assert b'"price":"395000.00"' in changed.body
    assert changed.headers["cache-status"] == "housing; fwd=stale; stored"


def test_a_client_of_an_asgi_server_that_has_the_page_gets_304(server):
    """The headers of a condition reach the lookup."""
    etag = send(server, LIST).headers["etag"]

    answer = send(server, LIST, HTTP_IF_NONE_MATCH=etag)

    assert (answer.status, answer.body, answer.headers["cache-status"]) == (304, b"", "housing; hit")


def test_head_of_an_asgi_server_returns_the_same_headers_as_get_and_no_body(server):
    """Not every server cuts off the body itself."""
    for path in (LIST, VARIANTS["optimized"], "/", "/api/unknown/", "/static/home.css"):
        send(server, path)  # so that a page of the cache is warm
        get, head = (compared(send(server, path, method, HTTP_X_REQUEST_ID="an-id")) for method in ("GET", "HEAD"))
        assert head[:2] == get[:2], path
        assert server.sent[-1]["body"] == b"", path


# The same response

IMPOSSIBLE = ("SCRIPT_NAME", "SERVER_PORT")
"""No client of an ASGI server chooses these."""


@pytest.mark.slow
def test_each_hostile_request_gets_the_response_of_wsgi(home, server):
    """Both have one copy of the rules. No request gets 500 from either."""
    service, turns = Service(), itertools.cycle(METHODS)
    hostile = {name: parts for name, parts in headers().items() if not set(IMPOSSIBLE) & parts.keys()}
    pages = itertools.product((LIST, f"{LIST}{home.pk}/"), hostile.items())
    others = zip(itertools.cycle(addresses(home.pk)), hostile.items(), strict=False)
    for path, (name, parts) in (*pages, *others):
        method, sent = next(turns), {"HTTP_X_REQUEST_ID": "an-id"} | parts
        send(service, path, method, **sent)  # so that a page of the cache is warm
        expected, answer = (compared(send(application, path, method, **sent)) for application in (service, server))
        assert answer[:2] == expected[:2], (method, path, name)
        assert method == "HEAD" or answer[2] == expected[2], (method, path, name)
        assert answer[0] < 500, (method, path, name)
    assert len(hostile) > 50


def test_each_address_of_an_asgi_server_gets_the_response_of_wsgi(home, server):
    """Static files and pages for people, too. The path is decoded once."""
    django = Application()
    for path in (*addresses(home.pk), "/static/home.css", f"{LIST}%41/", "/\u00e9/", "/a%2Fb/", "/%2e%2e/", "/\xff/"):
        if path.startswith("/health/"):  # whose body has a time
            continue
        sent = {"HTTP_ACCEPT": "text/html" if path.startswith("/admin/") else "application/json", "HTTP_X_REQUEST_ID": "an-id"}
        send(django, path, **sent)
        assert compared(send(server, path, **sent)) == compared(send(django, path, **sent)), path


def test_an_admin_logs_in_through_an_asgi_server(server):
    """The body of a form reaches Django, in as many parts as it comes."""
    User.objects.create_superuser("admin", password="of the spec")
    page = send(server, "/admin/login/")
    token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.body.decode())[1]
    cookie = page.headers["set-cookie"].partition(";")[0]
    form = f"csrfmiddlewaretoken={token}&username=admin&password=of+the+spec&next=/admin/"

    parts = {"CONTENT_TYPE": "application/x-www-form-urlencoded", "HTTP_COOKIE": cookie, "HTTP_ORIGIN": "http://testserver"}
    assert send(server, "/admin/login/", "POST", body=form, **parts).status == 302
    assert send(server, "/admin/login/", "POST", body=form.replace("of+the", "of+no"), **parts).status == 200


# Requests as clients send them


@pytest.fixture
def seen():
    """A server whose application returns nothing, and keeps the environment of its requests: `seen.environs`."""

    def application(environ, start_response):
        environs.append(environ | {"body": environ["wsgi.input"].read()})
        start_response("204 No Content", [])
        return []

    environs: list[dict[str, Any]] = []
    server = server_of(application)
    server.environs = environs
    return server


GET = {"PATH_INFO": "/", "REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "a", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}


@pytest.mark.parametrize("name", [b"x_forwarded_proto", b"x-forwarded_proto", b"content_length"])
def test_a_header_with_an_underscore_is_left_out(seen, name):
    """A proxy that removes `X-Forwarded-Proto` does not know it under another name. gunicorn leaves it out, too."""
    seen.exchange(scope_of(GET) | {"headers": [(b"host", b"a"), (name, b"9")]}, iter([request(b"", False)]))

    [environ] = seen.environs
    assert [each for each in environ if each.startswith(("HTTP_", "CONTENT_"))] == ["HTTP_HOST"]


def test_a_repeated_header_is_joined(seen):
    """Cookies with a semicolon, and all others with a comma, so that two hosts are no host."""
    sent = [(b"cookie", b"a=1"), (b"host", b"a"), (b"cookie", b"b=2"), (b"host", b"b"), (b"content-length", b"1"), (b"content-length", b"1")]
    seen.exchange(scope_of(GET) | {"headers": sent}, iter([]))

    [environ] = seen.environs
    assert {name: environ[name] for name in ("HTTP_COOKIE", "HTTP_HOST", "CONTENT_LENGTH", "body")} == {
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_HOST": "a,b",
        "CONTENT_LENGTH": "1,1",
        "body": b"",
    }


@pytest.mark.parametrize("length", [None, "", "0", "x", "-1", "+1", "\u0661", "9" * 5000, str(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)])
def test_a_body_that_django_does_not_read_is_not_read(seen, length):
    """Otherwise it would fill the memory of the process."""
    sent = [(b"content-length", length.encode())] if length is not None else [(b"transfer-encoding", b"chunked")]
    seen.exchange(scope_of(GET) | {"headers": sent}, iter([request(b"1", False)]))

    assert (seen.environs[0]["body"], seen.received) == (b"", 0)


def test_a_request_whose_client_has_gone_is_not_answered(seen):
    """Half a form must not be taken for the whole one."""
    seen.exchange(scope_of(GET) | {"headers": [(b"content-length", b"2")]}, iter([request(b"1", True)]))

    assert (seen.environs, seen.sent) == ([], [])


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"raw_path": b"/%ff%2541", "path": "/"}, {"PATH_INFO": "/\xff%41"}),
        ({"raw_path": None, "path": "/\u00e9"}, {"PATH_INFO": "/\xc3\xa9"}),
        ({"raw_path": b"/root/a", "root_path": "/root"}, {"PATH_INFO": "/a", "SCRIPT_NAME": "/root"}),
        ({"server": None, "client": None}, {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "REMOTE_ADDR": ""}),
        ({"server": ("/run/service.sock", None)}, {"SERVER_NAME": "/run/service.sock", "SERVER_PORT": "80"}),
        ({"scheme": "https"}, {"wsgi.url_scheme": "https"}),
    ],
    ids=["bytes in the path", "no raw path", "a root path", "a Unix socket", "the name of a Unix socket", "HTTPS"],
)
def test_a_request_is_described_as_far_as_its_server_knows_it(seen, scope, expected):
    """Servers differ in what they know."""
    seen.exchange(scope_of(GET) | scope, iter([]))

    [environ] = seen.environs
    assert {name: environ[name] for name in expected} == expected


def test_a_web_socket_is_refused(seen):
    """The service has none. A server would report an error of the application otherwise."""
    seen.exchange({"type": "websocket"}, iter([]))

    assert (seen.sent, seen.environs) == ([{"type": "websocket.close"}], [])


@pytest.mark.parametrize("bind", ["", "127.0.0.1:8081"])
def test_an_asgi_server_starts_the_health_checks_of_each_process(seen, monkeypatch, bind):
    """As the deployed server does."""
    listeners: list[Any] = []
    monkeypatch.setattr(asgi, "Listener", listeners.append)
    monkeypatch.setenv("HEALTH_BIND", bind)
    seen.exchange({"type": "lifespan"}, iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]))

    assert [event["type"] for event in seen.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert listeners == ([("127.0.0.1", 8081)] if bind else [])


# Threads and connections


def test_an_asgi_server_has_the_whole_wsgi_application():
    """Its guards, and hits before Django, are the same ones."""
    assert asgi.application.application is wsgi.application


def test_at_most_four_requests_of_a_process_are_answered_at_the_same_time():
    """As many as with gunicorn, so that docs/deploying.md has one number of connections. The others wait without a thread."""
    allowed, started = threading.Semaphore(0), []

    def application(environ, start_response):
        started.append(environ["PATH_INFO"])
        allowed.acquire(timeout=TIMEOUT)
        start_response("200 OK", [])
        return [b""]

    async def run(bridge):
        async def send(event):
            done.append(event)

        never = asyncio.Queue().get  # none has a body
        tasks = [asyncio.create_task(bridge(scope_of(GET | {"PATH_INFO": f"/{number}"}), never, send)) for number in range(3 * THREADS)]
        while len(started) < THREADS:
            await asyncio.sleep(0)
        at_once = len(started)
        allowed.release(len(tasks))
        await asyncio.gather(*tasks)
        return at_once

    done: list[Any] = []
    with ThreadPoolExecutor(asgi.application.threads._max_workers) as threads:
        assert asyncio.run(run(Bridge(application, threads))) == THREADS
    assert len(done) == 2 * len(started) == 6 * THREADS
    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["threads"] == THREADS


def test_no_thread_waits_for_the_body_of_a_slow_client(seen):
    """With gunicorn's own worker, as many slow clients as there are threads stop the process. Here the only thread is free."""

    async def run():
        async def send(event):
            sent.append(event)

        async def receive():
            await asyncio.get_running_loop().run_in_executor(None, over.wait)

        slow = asyncio.create_task(seen.application(scope_of(GET | {"CONTENT_LENGTH": "1"}), receive, send))
        await asyncio.sleep(0)  # so that it waits for the body
        try:
            await asyncio.wait_for(seen.application(scope_of(GET), receive, send), TIMEOUT)
            assert not slow.done()
        finally:
            over.set()
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)

    sent: list[Any] = []
    over = threading.Event()
    seen.here.serve(run())
    assert [event.get("status") for event in sent] == [204, None]


def test_an_error_of_the_application_reaches_the_spec():
    """Otherwise a spec would take a response that was never sent for an empty one."""

    def broken(environ, start_response):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(server_of(broken)(GET | {"wsgi.input": io.BytesIO()}, lambda *_: None))


# A server


BIND = ("--host", "{host}", "--port", "{port}", "housing.asgi:application")
COMMANDS = {"uvicorn": ("uvicorn", "--no-proxy-headers", *BIND), "granian": ("granian", "--interface", "asgi", *BIND)}
"""The commands of docs/deploying.md, for one process."""


def status_line(address, request):
    """Send bytes, and return the first line of the response, or nothing if the server closes the connection."""
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=TIMEOUT) as client, client.makefile("rb") as response:
        client.sendall(request)
        return response.readline().decode("latin-1")


HOST = b"Host: 127.0.0.1\r\n"
RAW = {
    "no version": b"GET /\r\n\r\n",
    "HTTP/1.0 without a host": b"GET /api/properties/cached/ HTTP/1.0\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a whole URL": b"GET http://127.0.0.1/api/properties/cached/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the path": b"GET /\xff\xe9/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the query string": b"GET /api/properties/cached/?city=\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "no absolute path": b"GET api HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method that does not exist": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a chunked body": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "a wrong chunk": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a long path": b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
}
"""Requests that a server reads itself."""


@pytest.mark.only("embedded")
@pytest.mark.parametrize("name", COMMANDS)
def test_each_asgi_server_serves_the_promises_and_no_request_gets_500(twenty_properties, name):
    """A server reads requests in its own way before the service sees them. (Embedded only: nothing here depends on PostgreSQL or Redis.)"""
    database = f"sqlite:///{connection.settings_dict['NAME']}"
    environment = clean() | {"DATABASE_URL": database, "REDIS_URL": "fakeredis://", "DJANGO_SECRET_KEY": "any", "DJANGO_ALLOWED_HOSTS": "127.0.0.1"}
    with ExitStack() as servers:
        service = load.serve(servers, load.free_address(), environment, COMMANDS[name])
        wait_for(service.check_hit, load.Failed)
        address = urlsplit(service.url).netloc
        with closing(http.client.HTTPConnection(address, timeout=TIMEOUT)) as client:
            client.request("HEAD", LIST)
            head = client.getresponse()
            assert (head.status, head.read(), int(head.headers["Content-Length"]) > 1000) == (200, b"", True)
            client.request("GET", LIST, headers={"If-None-Match": head.headers["ETag"]})
            known = client.getresponse()
            assert (known.status, known.read()) == (304, b"")
        for sent in RAW.values():
            assert re.match(r"HTTP/1\.[01] [234]", status_line(address, sent)), sent[:80]
        service.check_hit()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_documented_commands_are_those_of_the_specs(command):
    """With more processes, and an address that others reach."""
    documented = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8").splitlines()
    options = set(" ".join(command).format(host="0.0.0.0", port="8000").split())

    assert [line for line in documented if options <= set(line.split())]


@pytest.mark.only("real")
@pytest.mark.parametrize(("command", "threads"), [(COMMANDS["uvicorn"], THREADS), (load.DEPLOYED, THREADS + FORM_THREADS)], ids=["uvicorn", "as deployed"])
def test_the_connections_of_a_process_to_postgresql_are_bounded(command, threads):
    """One for each thread, the watchman and the health check, as docs/deploying.md says. With Django's own ASGI handler it would be one for each request.
    (Real only: SQLite has no connections to count.)
    """
    with ExitStack() as servers:
        environment = load.prepare(servers, 100) | {"WEB_CONCURRENCY": "1"}
        service = load.serve(servers, load.free_address(), environment, command)

        def read(number):
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{service.url}{VARIANTS['optimized']}?page_size={number}", timeout=TIMEOUT) as page:
                return page.status

        with ThreadPoolExecutor(25) as clients:
            statuses = [*clients.map(read, range(1, 101))]
        with psycopg.connect(environment["DATABASE_URL"]) as counting:
            counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            [connections] = counting.execute(counted).fetchone()

    assert statuses.count(200) > 25
    assert 2 <= connections <= threads + 2
