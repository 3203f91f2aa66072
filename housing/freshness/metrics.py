"""The metrics of this process in Prometheus's format. They need prometheus-client, and the token in FRESHNESS_METRICS_TOKEN.

Responses are counted in each process. If several processes serve one address, set PROMETHEUS_MULTIPROC_DIR, and prometheus-client adds them up.
The state of the journal, the leases and the outbox is read at each scrape.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.http import Http404, HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .breaker import Unreachable
from .settings import conf

if TYPE_CHECKING:
    from prometheus_client import Counter, Metric


@cache
def is_installed() -> bool:
    """Whether prometheus-client is installed."""
    return find_spec("prometheus_client") is not None


@cache
def responses() -> Counter:
    """The counter of responses."""
    from prometheus_client import Counter

    return Counter("freshness_responses", "Responses by the value of their Cache-Status header.", ["outcome", "detail"], registry=None)


@lru_cache(maxsize=64)
def counter_of(status: str) -> Any:
    """The counter of the responses with this Cache-Status: `hit`, `fwd=miss; stored`, `fwd=miss; collapsed`, `fwd=bypass; detail=accept`, …"""
    first, *more = status.split("; ")[1:]
    outcome = "collapsed" if "collapsed" in more else first.removeprefix("fwd=")
    details = [part.removeprefix("detail=") for part in more if part.startswith("detail=")]
    return responses().labels(outcome, *details or [""])


def count(status: str) -> None:
    """Count a response. `status` is the value of its Cache-Status."""
    if is_installed():
        counter_of(status).inc()


class State:
    """The state at the time of a scrape, as gauges."""

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges. Without Redis there is only one."""
        from prometheus_client.metrics_core import GaugeMetricFamily

        from . import operations  # it imports the cached view, which counts its responses here

        try:
            state = operations.status(with_entries=False)
        except Unreachable:
            yield GaugeMetricFamily("freshness_redis_up", "Whether Redis is reachable and can keep the promise.", 0)
            return
        yield GaugeMetricFamily("freshness_redis_up", "Whether Redis is reachable and can keep the promise.", 1)
        yield GaugeMetricFamily("freshness_leases_open", "Leases of transactions that are being committed, or whose process died.", len(state["leases"]))
        lag = GaugeMetricFamily("freshness_verification_lag_seconds", "Seconds since the last verification of the journal.", labels=["database"])
        rows = GaugeMetricFamily("freshness_outbox_rows", "Writes that wait for the next verification.", labels=["database"])
        for database in state["databases"]:
            for family, value in ((lag, database["seconds_since_verified"]), (rows, database["outbox_rows"])):
                if value is not None:
                    family.add_metric([database["alias"]], value)
        yield from (lag, rows)
        if state["memory"]:
            yield GaugeMetricFamily("freshness_redis_memory_bytes", "Memory that the server of Redis uses.", state["memory"]["used"])


@never_cache
@require_safe
def serve_metrics(request: HttpRequest) -> HttpResponse:
    """The metrics in Prometheus's format. Raises Http404 without prometheus-client, without FRESHNESS_METRICS_TOKEN, and for a request without the token."""
    given = request.META.get("HTTP_AUTHORIZATION", "")
    if not (conf.METRICS_TOKEN and is_installed() and constant_time_compare(given, f"Bearer {conf.METRICS_TOKEN}")):
        raise Http404("There are no metrics.")
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # it has no annotations
    else:
        registry.register(responses())
    registry.register(State())
    encode, content_type = choose_encoder(request.META.get("HTTP_ACCEPT", ""))
    return HttpResponse(encode(registry), content_type=content_type)
