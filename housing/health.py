"""Health checks: `/health/live/` says that this process responds, and `/health/ready/` (or `/health/`) whether it can respond to reads correctly.

They are for everybody, so they show no address, no user and no error of a driver; those are in the log. They use neither the thread's connection to the
database nor a place among the bounded reads, and none takes longer than the timeouts of Redis and `DEADLINE` together, whatever the database does. A
`Listener` serves them in threads of its own as well, so that they respond while slow clients use all threads of the server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from socket import AF_INET, AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from django.core.handlers.wsgi import WSGIRequest
from django.db import Error, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from housing.freshness import state_of_the_cache

logger = logging.getLogger(__name__)

DEADLINE = 0.5
"""Seconds that a check waits for the database. Its SELECT takes milliseconds, and probes of load balancers give up after a second by default."""


class DatabaseProbe:
    """One SELECT in a thread with a connection of its own, because no timeout of a driver covers a server that accepts and never replies.

    Checks that come while it waits share it, so that a database that hangs holds one thread and one connection.
    """

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None
        self._state = ""

    def state(self) -> str:
        """Return "ok", "unreachable", or "no reply"."""
        with self._one_at_a_time:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._select, name="health", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(DEADLINE)
        if thread.is_alive():
            logger.warning("The health check has had no reply from the database for %g s.", DEADLINE)
            return "no reply"
        return self._state

    def _select(self) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            self._state = "ok"
        except Error as error:
            self._state = "unreachable"
            logger.warning("The health check cannot reach the database: %s", " ".join(str(error).split()))
        finally:
            connection.close()


database = DatabaseProbe()


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """Return 200, because this process responds. If it does not, restart it."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Return 200 while the database replies, and otherwise 503. The status is "degraded" if responses come from the database instead of the cache."""
    state: dict[str, Any] = {"database": database.state()} | state_of_the_cache()
    status = "unavailable" if state["database"] != "ok" else "ok" if state["hits"] else "degraded"
    response = JsonResponse({"status": status} | state, status=503 if status == "unavailable" else 200)
    response._has_been_logged = True  # type: ignore[attr-defined]  # otherwise Django logs each check as an error, and mails it to ADMINS
    return response


CHECKS: dict[str, Callable[[HttpRequest], HttpResponse]] = {"/health/": ready, "/health/live/": live, "/health/ready/": ready}
"""path → the check."""


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Respond to the health checks alone, without middleware. A WSGI application."""
    request = WSGIRequest(environ)
    check = CHECKS.get(request.path_info)
    response = check(request) if check else JsonResponse({"detail": "Not found.", "paths": list(CHECKS)}, status=404)
    start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
    return [b"" if request.method == "HEAD" else response.content]


class Handler(WSGIRequestHandler):
    """Ends a connection that sends nothing for `timeout` seconds, and logs no requests."""

    timeout = 5

    def log_message(self, *_: Any) -> None:
        """Log nothing, because probes come every few seconds."""


class Listener(ThreadingMixIn, WSGIServer):
    """Serves the health checks at an address of their own, such as `("127.0.0.1", 8081)`, in threads of their own. Several processes may share the address.

    Raises OSError if it cannot listen there. The address is for load balancers and supervisors, and not for the public.
    """

    daemon_threads = True
    allow_reuse_port = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, Handler)
        self.set_app(application)
        threading.Thread(target=self.serve_forever, name="health listener", daemon=True).start()

    def server_bind(self) -> None:
        """Bind without the query for the name of the host, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()
