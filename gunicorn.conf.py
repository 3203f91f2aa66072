"""How the service is served: `gunicorn housing.wsgi` finds this file by itself. Chosen with `make load`, on two cores.

With one thread each, ten readers at once had a p95 of 76 to 178 ms; with four, 31 to 59; eight, sixteen, and a third process gained nothing.
"""

import gc
import os
from typing import Any
from urllib.parse import urlsplit

# A warm read is work for the processor, so more processes than cores only take turns. WEB_CONCURRENCY says how many.
workers = int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count() or 1)
# While a thread waits for the database or for Redis, another works. More threads would only compete for the interpreter.
worker_class = "gthread"
threads = 4
# Longer than a client pauses between two requests (one or two seconds): a new connection would take another round trip.
keepalive = 15
# Loaded once, then forked. Nothing is connected yet.
preload_app = True
# Its socket wants a home to write to.
control_socket_disable = True

# Where each worker also serves the health checks, in threads that no slow client of the service can use: HEALTH_BIND=127.0.0.1:8081, or empty.
health_bind = os.environ.get("HEALTH_BIND", "")


def address_of(bind: str) -> tuple[str, int]:
    """Return the host and the port. Raises SystemExit with one line if one of them is missing or invalid."""
    try:
        parts = urlsplit(f"//{bind}")
        if parts.hostname and parts.port and parts.netloc == bind:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise SystemExit(f"HEALTH_BIND={bind!r} is not a host and a port. Write it like 127.0.0.1:8081.")


health_address = address_of(health_bind) if health_bind else None


def post_worker_init(worker: Any) -> None:
    """Serve the health checks at HEALTH_BIND, if it is set."""
    if health_address:
        from housing.health import Listener  # the settings are loaded now

        Listener(health_address)


def pre_fork(server: Any, worker: Any) -> None:
    """Leave what is loaded to the parent's memory: the collector, which would write to every page of it, looks at it no more.

    Together the three processes hold 115 MB so, 147 MB without this, and 137 MB where each worker loads for itself.
    """
    gc.collect()
    gc.freeze()
