"""A process of the service: granian's HTTP server, which gunicorn starts, watches, replaces and ends. gunicorn.conf.py names this class.

granian is written in Rust. It reads requests and sends responses without a thread of Python, so no thread waits for a slow client. Its own interfaces are not
used: with WSGI it cannot tell `X_Forwarded_Proto` from `X-Forwarded-Proto`, and with ASGI each request goes through an event loop, which takes a third of a
hit. Here its threads call the WSGI application themselves, with the names and values that were sent. Only a body is read by an event loop.

The parts of granian that this needs are not public, so pyproject.toml has an upper bound of its version.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX
from threading import get_ident
from typing import Any, cast

from granian._granian import ASGIWorker, CallbackScheduler, SocketHolder, WorkerSignal
from granian.http import HTTP1Settings
from gunicorn.errors import ConfigError
from gunicorn.workers.base import Worker

LONGEST_HEAD = 32_768
"""Bytes of a request line with all headers. A longer head gets 431."""

FORMS = 100
"""Requests with a body that a process reads at the same time. Each body may take DATA_UPLOAD_MAX_MEMORY_SIZE."""

FORM_THREADS = 2
"""The threads for requests with a body."""

PATIENCE = 15.0
"""Seconds in which a client must have sent a body."""

DRAIN = 1.0
"""Seconds in which a process that ends still accepts requests, and tells each client to open another connection for the next one."""

BEAT = 0.5
"""Seconds between two signs of life for gunicorn, which replaces a process that gives none for its `timeout`. A signal is noticed after as long."""

FOR_EVER = 2_147_483_648
"""Seconds. A thread that ended would take its connection to the database with it."""

LAST_MOMENT = 5.0
"""Seconds for which a process that ends waits for the threads of granian. Before 3.14, Python aborts a process to which one of them returns too late."""


class Scheduler(CallbackScheduler):
    """Calls a function with each request, in one of granian's threads."""

    def __new__(cls, loop: asyncio.AbstractEventLoop, begin: Callable[[Any], None]) -> Scheduler:
        """granian's own one would make a task of the loop."""
        self: Any = cast(Any, super()).__new__(cls, loop, begin, None, None, None)
        self._schedule_fn = begin
        return cast(Scheduler, self)


class Granian(Worker):
    """A worker of gunicorn. `threads`, `keepalive`, `worker_connections` and `limit_request_line` mean what they mean for `gthread`."""

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what this worker does not do."""
        if len(cfg.address) != 1 or cfg.is_ssl:
            raise ConfigError("This worker listens at one address, and without TLS. Use one --bind, and a proxy for TLS.")

    def run(self) -> None:
        """Serve until gunicorn asks for the end."""
        from housing import asgi  # it loads the settings

        self.asgi = asgi
        self.busy: dict[int, float] = {}  # thread → when its request began
        self.known: set[int] = set()  # the threads that have had a request
        self.forms, self.form_threads = 0, ThreadPoolExecutor(FORM_THREADS, thread_name_prefix="form")
        others = threads_of_granian()
        asyncio.run(self.live())
        self.outlive(others)

    async def live(self) -> None:
        """Start to listen, give signs of life, and end when gunicorn has asked for it or has gone."""
        self.loop, ended, stop = asyncio.get_running_loop(), asyncio.Event(), WorkerSignal()
        stop.add_cb(lambda: self.loop.call_soon_threadsafe(ended.set))
        self.listen(stop)
        while self.alive and os.getppid() == self.ppid:
            self.give_a_sign()
            await asyncio.sleep(BEAT)
        self.alive = False
        await asyncio.sleep(DRAIN)
        stop.set()
        await ended.wait()  # gunicorn ends it otherwise, because there are no more signs of life

    def outlive(self, others: set[int]) -> None:
        """Wait for the threads of granian, but not for the others."""
        end = time.monotonic() + LAST_MOMENT
        gc.collect()  # the frames of an old error may be in a cycle, with the request, which keeps a thread
        while left := threads_of_granian() - others:
            if time.monotonic() >= end:
                self.log.warning("This process ends before %s threads of granian. Python may abort it, and gunicorn logs SIGABRT then.", len(left))
                return
            time.sleep(0.001)

    def listen(self, stop: WorkerSignal) -> None:
        """Let granian accept connections at gunicorn's socket."""
        connections, [socket] = self.cfg.worker_connections, self.sockets
        head = HTTP1Settings(header_read_timeout=self.cfg.keepalive * 1000, max_buffer_size=LONGEST_HEAD)
        is_unix, holder, server = socket.family == AF_UNIX, cast(Any, SocketHolder), cast(Any, ASGIWorker)  # granian's stubs are of an older version
        described = holder(os.dup(socket.fileno()), is_unix, *([self.cfg.backlog] if sys.platform == "linux" else []))
        threads = {"py_threads": self.cfg.threads, "py_threads_idle_timeout": FOR_EVER}
        worker = server(self.age, (None, described), None, **threads, backpressure=connections, http1_opts=head)
        (worker.serve_mtr_uds if is_unix else worker.serve_mtr)(Scheduler(self.loop, self.begin), self.loop, stop)

    def give_a_sign(self) -> None:
        """Tell gunicorn that this process lives, unless each of its threads has been busy with one request since the last sign."""
        begun = list(self.busy.values())
        if len(begun) < self.cfg.threads or max(begun) > self.last_sign:
            self.last_sign = time.monotonic()
            self.notify()

    alive: bool
    last_sign = 0.0

    # A request

    def begin(self, watcher: Any) -> None:
        """Respond in this thread of granian. If there is a body, wait for it without a thread, and respond in another one."""
        self.busy[get_ident()] = began = time.monotonic()
        self.known.add(get_ident())
        try:
            environ = self.asgi.environ_of(watcher.scope)
            if refused := self.refusal(watcher.scope, environ):
                self.refuse(watcher, environ, began, *refused)
            elif has_a_body(environ):
                asyncio.run_coroutine_threadsafe(self.receive(watcher, environ, began), self.loop)
            else:
                self.leave_a_thread(watcher)
                self.respond(watcher, environ, began, b"")
        except BaseException as error:  # noqa: BLE001  # granian would let the client wait
            self.fail(watcher, error)
        finally:
            del self.busy[get_ident()]

    def leave_a_thread(self, watcher: Any) -> None:
        """Let granian start a thread for the next request, if this one has taken the last.

        granian looks for a free thread when a request arrives. One that takes a request still counts as free for a moment, and a second request at that moment
        would wait for the first one's response. After this thread has become busy, granian has to look again. It does so for the end of a body, even if empty.
        """
        if len(self.busy) == len(self.known) < self.cfg.threads:
            watcher.proto.receive()

    def refusal(self, scope: dict[str, Any], environ: dict[str, Any]) -> tuple[int, str] | None:
        """The status and the reason if a request does not reach the application."""
        if not scope["raw_path"].startswith((b"/", b"*")):
            return 400, "The path does not begin with a slash."
        if len(scope["raw_path"]) + len(scope["query_string"]) > self.cfg.limit_request_line:
            return 414, f"The path has more than {self.cfg.limit_request_line:,} characters."
        if self.forms >= FORMS and has_a_body(environ):
            return 503, "Too many clients are sending forms. Try again later."
        return None

    async def receive(self, watcher: Any, environ: dict[str, Any], began: float) -> None:
        """Read the body, and let a thread respond."""
        self.forms += 1
        try:
            async with asyncio.timeout(PATIENCE):
                body = await self.asgi.body_of(environ, watcher.proto.receive)
            await self.loop.run_in_executor(self.form_threads, self.respond, watcher, environ, began, body)
        except (self.asgi.Disconnected, TimeoutError):
            self.refuse(watcher, environ, began, 408, "The body did not arrive in time.")
        except BaseException as error:  # noqa: BLE001  # the event loop would only log it, and the client would wait
            self.fail(watcher, error)
        finally:
            self.forms -= 1

    def respond(self, watcher: Any, environ: dict[str, Any], began: float, body: bytes) -> None:
        """Send the response of the application."""
        environ["wsgi.input"] = io.BytesIO(body)
        status, headers, content = self.asgi.response_of(self.wsgi, environ)
        self.send(watcher, environ, began, status, headers, b"" if environ["REQUEST_METHOD"] == "HEAD" else content)

    def refuse(self, watcher: Any, environ: dict[str, Any], began: float, status: int, why: str) -> None:
        """Refuse a request that does not reach the application, and close its connection."""
        self.send(watcher, environ, began, status, [*REFUSED, CLOSE], json.dumps({"detail": why}).encode())

    def send(self, watcher: Any, environ: dict[str, Any], began: float, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a response, and write the line of the access log."""
        if not self.alive:
            headers.append(CLOSE)
        pass_on(watcher, status, headers, body)
        if self.log.access_log_enabled and self.log.access_log.isEnabledFor(logging.INFO):
            atoms = atoms_of(watcher.scope, environ, s=status, B=len(body), M=int(1000 * (time.monotonic() - began)))
            self.log.access_log.handle(record_of(self.log.access_log, self.cfg.access_log_format, atoms))

    def fail(self, watcher: Any, error: BaseException) -> None:
        """Log an error that is not the application's, and respond with 503."""
        self.log.error("The server could not respond: %s", type(error).__name__, exc_info=error)
        with suppress(Exception):  # it has responded already
            pass_on(watcher, 503, [*REFUSED, CLOSE], b'{"detail": "The service could not respond. Try again later."}')


def threads_of_granian() -> set[int]:
    """The ids of the threads that Python has not started. Without /proc, as on macOS, they are unknown, and there are none."""
    tasks = Path("/proc/self/task")
    every = {int(task.name) for task in tasks.iterdir()} if tasks.exists() else set()
    return every - {thread.native_id for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


def has_a_body(environ: dict[str, Any]) -> bool:
    """Whether Django reads a body of this request."""
    return bool(environ.get("CONTENT_LENGTH", "0") != "0")


CLOSE = (b"connection", b"close")

REFUSED = ((b"content-type", b"application/json"), (b"retry-after", b"1"))
"""The headers of a response that the application has not made."""


def pass_on(watcher: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Give a response to granian. Its functions return awaitables, which would only tell an event loop that they are done."""
    watcher.proto.send({"type": "http.response.start", "status": status, "headers": headers})
    watcher.proto.send({"type": "http.response.body", "body": body})
    watcher.done()  # without it, granian waits for ever for a body that nobody has read


# The access log

# A line costs a quarter of a hit if gunicorn and logging make it, and 7 % less of a hit like this.


class Atoms(dict[str, Any]):
    """The parts of a line under gunicorn's names. Names of headers have any case. `-` stands for an unknown part."""

    def __missing__(self, name: str) -> Any:
        """Return what stands for a name that is not here."""
        return self.get(name.lower(), "-") if name.startswith("{") else "-"


def atoms_of(scope: dict[str, Any], environ: dict[str, Any], **measured: int) -> Atoms:
    """The parts of a request, and what was measured. The client's address is the one that a trusted proxy has forwarded. A backslash precedes each quote."""
    method, query, path = environ["REQUEST_METHOD"], quoted(environ["QUERY_STRING"]), quoted(scope["raw_path"].decode("latin-1"))
    line = f"{method} {path}{'?' * bool(query)}{query} {environ['SERVER_PROTOCOL']}"
    client, sent = quoted(environ["REMOTE_ADDR"]), quoted(environ.get("HTTP_X_REQUEST_ID", "-"))
    return Atoms(measured, h=client, r=line, m=method, U=quoted(environ["PATH_INFO"]), q=query, **{"{x-request-id}i": sent})


def quoted(text: str) -> str:
    """A text that does not end the quotes around it."""
    return text.replace('"', r"\"")


FIRST = threading.local()
"""The attributes of a thread's first record. Those of its thread and process are right for the next ones."""


def record_of(log: logging.Logger, line: str, atoms: Atoms) -> logging.LogRecord:
    """A record of the access log. logging would look up the process and the thread for each. A factory of records still makes all of them."""
    custom = logging.getLogRecordFactory() is not logging.LogRecord
    if custom or not vars(FIRST):
        first = log.makeRecord(log.name, logging.INFO, __file__, 0, line, (atoms,), None, "send")
        vars(FIRST).update({} if custom else vars(first))
        return first
    now, record = time.time(), logging.LogRecord.__new__(logging.LogRecord)
    since = 1000 * (now - FIRST.created)
    vars(record).update(vars(FIRST), msg=line, args=atoms, created=now, msecs=now % 1 * 1000 // 1, relativeCreated=FIRST.relativeCreated + since)
    return record
