"""Sabotages of the service behind an ASGI server."""

from tests.sabotages import Sabotage

ASGI = (
    Sabotage(
        "asgi: a response is kept",
        "asgi.py",
        "    status, headers = begun[-1]\n",
        "    status, headers, body = SAME.setdefault(environ['PATH_INFO'], (*begun[-1], body))\n",
        "test_asgi.py::test_a_saved_price_is_in_the_next_read_of_an_asgi_server",
    ),
    Sabotage(
        "asgi: HEAD has a body",
        "asgi.py",
        'scope["method"] == "HEAD"',
        'scope["method"] == "TRACE"',
        "test_asgi.py::test_head_of_an_asgi_server_returns_the_same_headers_as_get_and_no_body",
    ),
    Sabotage(
        "asgi: the path is decoded as text",
        "asgi.py",
        'scope.get("raw_path") or scope["path"].encode()',
        'scope["path"].encode()',
        "test_asgi.py::test_a_request_is_described_as_far_as_its_server_knows_it[bytes in the path]",
    ),
    Sabotage(
        "asgi: hits are not answered before Django",
        "asgi.py",
        "application = Bridge(wsgi,",
        "application = Bridge(wsgi.application.application,",
        "test_asgi.py::test_an_asgi_server_has_the_whole_wsgi_application",
    ),
    Sabotage(
        "asgi: an underscore passes for a hyphen",
        "asgi.py",
        'if "_" in name:',
        "if not name:",
        "test_asgi.py::test_a_header_with_an_underscore_is_left_out[x_forwarded_proto]",
    ),
    Sabotage(
        "asgi: the last of two hosts is used",
        "asgi.py",
        "{environ[name]}{separator}{text}",
        "{text}",
        "test_asgi.py::test_a_repeated_header_is_joined",
    ),
    Sabotage(
        "asgi: the first part of a body is all of it",
        "asgi.py",
        'more = event.get("more_body", False)',
        "more = False",
        "test_asgi.py::test_an_admin_logs_in_through_an_asgi_server",
    ),
    Sabotage(
        "asgi: a body of any length is read",
        "asgi.py",
        "<= (settings.DATA_UPLOAD_MAX_MEMORY_SIZE or 0)",
        "< float('inf')",
        "test_asgi.py::test_a_body_that_django_does_not_read_is_not_read[262145]",
    ),
    Sabotage(
        "asgi: half a request is answered",
        "asgi.py",
        "            raise Disconnected",
        "            break",
        "test_asgi.py::test_a_request_whose_client_has_gone_is_not_answered",
    ),
    Sabotage(
        "asgi: a web socket is not refused",
        "asgi.py",
        'await send({"type": "websocket.close"})',
        "pass",
        "test_asgi.py::test_a_web_socket_is_refused",
    ),
    Sabotage(
        "asgi: no process serves the health checks",
        "asgi.py",
        "        Listener(address)",
        "        pass",
        "test_asgi.py::test_an_asgi_server_starts_the_health_checks_of_each_process[127.0.0.1:8081]",
    ),
    Sabotage(
        "asgi: more threads than gunicorn's",
        "asgi.py",
        "ThreadPoolExecutor(THREADS,",
        "ThreadPoolExecutor(THREADS + 1,",
        "test_asgi.py::test_at_most_four_requests_of_a_process_are_answered_at_the_same_time",
    ),
    Sabotage(
        "asgi: a thread waits for the body",
        "asgi.py",
        "await body_of(environ, receive)",
        "await asyncio.get_running_loop().run_in_executor(self.threads, asyncio.run, body_of(environ, receive))",
        "test_asgi.py::test_no_thread_waits_for_the_body_of_a_slow_client",
    ),
)
