"""Another cache behind the same middleware, in a process of its own, because django-cacheops changes all querysets and signals of its process.

The process reads a line with the servers and then a path in each line, and writes a line about each request. It measures the seconds itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any
from wsgiref.util import setup_testing_defaults

from django.core.cache import cache
from django.db import connection
from django_redis import get_redis_connection

from tests import ROOT
from tests.fixtures.processes import clean, killed_after
from tests.stacks import TIMEOUT

CACHEOPS = "/peers/cacheops/"
"""The path of DRF's usual list view with `cached_view_as()`, which is the quickest way of cacheops: it caches the response."""


class Peer:
    """The process. `seconds` is its clock, which advances only while it handles a request."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.seconds = process, 0.0
        self._tell({"database": {name: connection.settings_dict[name] for name in ("NAME", "HOST", "PORT", "USER", "PASSWORD")}} | _redis())

    def _tell(self, line: Any) -> None:
        assert self.process.stdin
        print(json.dumps(line), file=self.process.stdin, flush=True)

    def get(self, path: str) -> dict[str, Any]:
        """The status, the digest of the body, and the number of queries."""
        self._tell(path)
        assert self.process.stdout
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.seconds += found.pop("seconds")
        return found


def _redis() -> dict[str, Any]:
    where = get_redis_connection("default").connection_pool.connection_kwargs
    return {"redis": {name: where[name] for name in ("host", "port", "db", "username", "password") if where.get(name) is not None}, "prefix": cache.key_prefix}


@contextmanager
def cacheops() -> Iterator[Peer]:
    """The process while the block runs."""
    command = [sys.executable, "-m", "tests.measurements.peers"]
    environment = clean() | {
        "DATABASE_URL": "postgres://any@any/any",
        "REDIS_URL": "redis://any",
        "DJANGO_SECRET_KEY": "any",
        "DJANGO_ALLOWED_HOSTS": "testserver",
    }
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process,
        killed_after(TIMEOUT, process),
    ):
        yield Peer(process)
        process.communicate()


# In the process


def configured(told: dict[str, Any]) -> Callable[..., Any]:
    """The service with cacheops. Its keys have the prefix of the specs, which delete them."""
    from housing import settings

    settings.DATABASES["default"] |= told["database"]
    settings.CACHES["default"] |= {"KEY_PREFIX": told["prefix"], "LOCATION": "redis://{host}:{port}/{db}".format(**{"db": 0} | told["redis"])}
    changed: dict[str, Any] = {
        "INSTALLED_APPS": [*settings.INSTALLED_APPS, "cacheops"],
        "CACHEOPS_REDIS": told["redis"],
        "CACHEOPS_PREFIX": lambda _: f"{told['prefix']}:1:cacheops:",
        "CACHEOPS": {"housing.*": {"ops": (), "timeout": 600}},
        "FRESHNESS_WATCHMAN": False,
        "ROOT_URLCONF": "tests.measurements.baselines",
    }
    vars(settings).update(changed)
    from housing.wsgi import application

    add_the_view()
    return application


def add_the_view() -> None:
    """Add the view at `CACHEOPS` to the URLs of the baselines. It becomes stale with a write to any model that it shows."""
    from cacheops import cached_view_as
    from django.urls import path

    from housing.models import Agent, Location, Office, Property
    from tests.measurements import baselines

    view = cached_view_as(Property, Location, Agent, Office, timeout=600)(baselines.PlainList.as_view())
    baselines.urlpatterns.append(path(CACHEOPS[1:], view))


def handle(application: Callable[..., Any], path: str) -> dict[str, Any]:
    """Handle a request as a WSGI server does."""
    environ = {"PATH_INFO": path, "HTTP_HOST": "testserver", "HTTP_ACCEPT": "application/json"}
    setup_testing_defaults(environ)
    queries: list[str] = []
    status: list[str] = []

    def count(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        queries.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(count):
        began = time.perf_counter()
        response = application(environ, lambda line, _: status.append(line))
        body = b"".join(response)
        response.close()
        seconds = time.perf_counter() - began
    return {"status": status[0], "digest": sha256(body).hexdigest(), "queries": len(queries), "seconds": seconds}


def main() -> None:
    """Handle each request three times, and answer with the last. A processor that has waited for a pipe is slower at first."""
    application = configured(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        *_, last = [handle(application, json.loads(line)) for _ in range(3)]
        sys.stdout.write(f"{json.dumps(last)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
