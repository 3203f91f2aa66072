"""How the service is served: `gunicorn housing.wsgi` finds this file by itself. Chosen with `make load` and `make servers`, on two cores.

With one thread each, ten readers at once had a p95 of 76 to 178 ms; with four, 31 to 59; eight, sixteen, and a third process gained nothing.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # gunicorn adds this folder later

from housing.environment import VARIABLES, ImproperlyConfigured, read
from housing.logs import JSONLine, at

# All of them, so that a wrong one is one line. Loading the settings would show it at the end of a traceback.
try:
    values = {name: read(name) for name in VARIABLES}
except ImproperlyConfigured as wrong:
    raise SystemExit(f"Not started: {wrong}") from None

# A warm read is work for the processor, so more processes than cores only take turns. WEB_CONCURRENCY says how many.
workers = values["WEB_CONCURRENCY"] or os.cpu_count() or 1
# granian's HTTP server, which is faster than gunicorn's own, and needs no thread for a slow client. `--worker-class gthread` is gunicorn's own.
worker_class = "housing.worker.Granian"
# Each is an open file, of which Linux gives a process 1,024 by default. A process needs some more for its other connections.
worker_connections = 900
# While a thread waits for the database or for Redis, another works. More threads would only compete for the interpreter.
threads = 4
# Longer than a client pauses between two requests (one or two seconds): a new connection would take another round trip. A client has as long to send the
# headers of a request.
keepalive = 15
# Loaded once, then forked. Nothing is connected yet.
preload_app = True
# Its socket wants a home to write to.
control_socket_disable = True
# A client could otherwise set the script name, and gunicorn responds with its own 500 if the path does not begin with it.
forwarder_headers = ""
# One line for each request, on stdout. The service's own lines have the same id.
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(B)s %(M)sms %({x-request-id}i)s'


class AccessAsJSON(JSONLine):
    """A line of the access log as a JSON object."""

    def format(self, record: Any) -> str:
        """Return the line."""
        names = {"client": "h", "method": "m", "path": "U", "query": "q", "status": "s", "bytes": "B", "ms": "M", "id": "{x-request-id}i"}
        said = {name: str(record.args[atom]).replace('\\"', '"') for name, atom in names.items()}  # gunicorn has put a backslash before each quote
        return json.dumps({"time": at(record)} | said | {number: int(said[number]) for number in ("status", "bytes", "ms")})


if values["DJANGO_LOG_FORMAT"] == "json":
    logconfig_dict = {
        "root": {"level": "INFO", "handlers": []},
        "formatters": {"line": {"()": JSONLine}, "access": {"()": AccessAsJSON}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "access", "stream": "ext://sys.stdout"},
            "error_console": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"},
        },
    }

# The proxies that may say how they were reached. housing.proxies trusts the same ones.
forwarded_allow_ips = ",".join(values["FORWARDED_ALLOW_IPS"])

# Where each worker also serves the health checks, in threads that no slow client of the service can use: HEALTH_BIND=127.0.0.1:8081, or empty.
health_address = values["HEALTH_BIND"]


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
