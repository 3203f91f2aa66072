"""The service behind an ASGI server: `uvicorn housing.asgi:application --no-proxy-headers`.

It is the WSGI application in a few threads, so each of its rules holds here, too. With Django's own ASGI handler, every request of a synchronous view has a
thread and a connection to PostgreSQL of its own, as many as there are requests. Here no thread waits for a slow client: the event loop reads a request before
a thread gets it, and a thread has made the whole response before it is sent. Passing a request to a thread costs 30 to 50 µs of a processor.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from django.conf import settings

from .environment import read
from .health import Listener
from .wsgi import application as wsgi

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

THREADS = 4
"""How many requests of a process are answered at the same time, and so how many connections to PostgreSQL they use. gunicorn.conf.py has the same number."""


class Disconnected(Exception):
    """The client has gone before it sent the whole request."""


class Bridge:
    """An ASGI application that lets a WSGI application respond in threads."""

    def __init__(self, application: WSGIApplication, threads: Executor) -> None:
        self.application, self.threads = application, threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the life of the process. A WebSocket is refused."""
        if scope["type"] == "lifespan":
            await live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self.respond(scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, let a thread respond, and send its response."""
        environ = environ_of(scope)
        try:
            environ["wsgi.input"] = io.BytesIO(await body_of(environ, receive))
        except Disconnected:
            return
        status, headers, body = await asyncio.get_running_loop().run_in_executor(self.threads, response_of, self.application, environ)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def response_of(application: WSGIApplication, environ: WSGIEnvironment) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the status, the headers and the body of the application's response."""
    begun: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        begun.append((status, headers))

    response: Any = application(environ, start)
    try:
        body = b"".join(response)
    finally:
        getattr(response, "close", bool)()
    status, headers = begun[-1]
    return int(status[:3]), [(lower(name), value.encode("latin-1")) for name, value in headers], body


@lru_cache(maxsize=1024)
def lower(name: str) -> bytes:
    """Return the name of a header as ASGI has it."""
    return name.lower().encode("latin-1")


async def live(receive: Receive, send: Send) -> None:
    """Serve the health checks at HEALTH_BIND, if it is set, while the process lives."""
    await receive()
    if address := read("HEALTH_BIND"):
        Listener(address)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def environ_of(scope: Scope) -> WSGIEnvironment:
    """Return the WSGI environment of a request, as gunicorn makes it. A header with an underscore in its name could pass for another one, so it is left out."""
    path, root = unquote_to_bytes(scope.get("raw_path") or scope["path"].encode()), scope.get("root_path", "").encode()
    server, client = scope.get("server") or ("localhost", None), scope.get("client") or ("", None)
    environ: WSGIEnvironment = SAME | {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.decode("latin-1"),
        "PATH_INFO": path.removeprefix(root).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1] or 80),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.errors": sys.stderr,
    }
    for raw, value in scope["headers"]:
        if name := name_of(raw) if len(raw) < LONG else name_of.__wrapped__(raw):
            text, separator = value.decode("latin-1"), "; " if name == "HTTP_COOKIE" else ","
            environ[name] = f"{environ[name]}{separator}{text}" if name in environ else text
    return environ


SAME = {"wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False}
"""The part of the environment that all requests have."""


LONG = 64
"""Bytes of the name of a header. A longer one is not kept, because a client could fill the memory with such names."""


@lru_cache(maxsize=1024)
def name_of(raw: bytes) -> str:
    """Return the name of a header as WSGI has it; empty if it could pass for another one."""
    name = raw.decode("latin-1").upper()
    if "_" in name:
        return ""
    name = name.replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


async def body_of(environ: WSGIEnvironment, receive: Receive) -> bytes:
    """Read the body of a request. It is empty if it has no valid length, because Django reads none then, or if Django refuses it for its length.

    Raises Disconnected if the client has gone.
    """
    length = environ.get("CONTENT_LENGTH", "")
    if not (length.isdecimal() and length.isascii()) or not 0 < int(length[:20]) <= (settings.DATA_UPLOAD_MAX_MEMORY_SIZE or 0):
        return b""
    body, more = bytearray(), True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Disconnected
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return bytes(body)


application = Bridge(wsgi, ThreadPoolExecutor(THREADS, thread_name_prefix="request"))
