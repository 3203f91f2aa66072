"""Baselines for latency: applications without Django, the cheapest possible views, plain DRF and `cache_page()` behind the same middleware, and a save without
tags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.cache import cache
from django.db import connections, transaction
from django.db.migrations.loader import MigrationLoader
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.cache import cache_page
from django_redis import get_redis_connection
from rest_framework.generics import ListAPIView

from housing import queries
from housing.freshness.postgresql import triggers
from housing.models import Property
from housing.urls import urlpatterns as housing
from housing.views import PropertyListView

JSON = "application/json"


def baseline_key() -> str:
    """The key of the bytes that `one_get` serves."""
    return str(cache.make_key("baseline"))


def nothing(request: HttpRequest) -> HttpResponse:
    """An empty response, which costs only what Django itself costs."""
    return HttpResponse(b"", content_type=JSON)


def one_get(request: HttpRequest) -> HttpResponse:
    """The bytes of one Redis GET, without any validation."""
    return HttpResponse(get_redis_connection("default").get(baseline_key()), content_type=JSON)


def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A WSGI application without Django, which responds with the same bytes to every request."""
    start_response("200 OK", [("Content-Type", JSON)])
    return [b"{}"]


def bare_get(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A WSGI application without Django's middleware, which responds with the bytes of one Redis GET."""
    body = get_redis_connection("default").get(baseline_key())
    start_response("200 OK", [("Content-Type", JSON)])
    return [body]


class PlainList(ListAPIView[Property]):
    """DRF's usual list view, with `select_related()`."""

    queryset = queries.joined()
    serializer_class = PropertyListView.serializer_class
    filter_backends = PropertyListView.filter_backends
    filterset_class = PropertyListView.filterset_class
    pagination_class = PropertyListView.pagination_class


urlpatterns = [
    *housing,
    path("baselines/nothing/", nothing),
    path("baselines/one-get/", one_get),
    path("baselines/plain/", PlainList.as_view()),
    path("baselines/cache-page/", cache_page(600)(PlainList.as_view())),
]


def as_ours(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
    """Execute a statement with the mark of this application, so that no trigger writes the outbox for the baseline."""
    connection = rest[-1]["connection"]
    mark = triggers.mark(connection.connection.pgconn.parameter_status(b"application_name"), frozenset({"housing_property"}))
    return execute(mark + sql, *rest)


class PlainSave:
    """A context manager whose `save()` sends the same UPDATE of the same row, without the cache engine.

    It uses Django's own backend and a model that is not tracked, in a transaction, between two round trips to Redis.
    """

    def __enter__(self) -> PlainSave:
        ours = connections["default"]
        connections.databases["plain"] = ours.settings_dict | {"ENGINE": "django.db.backends.postgresql"}
        plain: Any = MigrationLoader(ours).project_state().apps.get_model("housing", "Property")
        self.row = plain.objects.using("plain").latest("id")
        return self

    def save(self) -> None:
        """Make one round trip, one transaction and one more round trip."""
        client = get_redis_connection("default")
        client.ping()
        with connections["plain"].execute_wrapper(as_ours), transaction.atomic(using="plain"):
            self.row.save()
        client.ping()

    def __exit__(self, *_: object) -> None:
        connections["plain"].close()
        del connections["plain"], connections.databases["plain"]
