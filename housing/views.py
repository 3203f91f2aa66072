"""A request comes in: the same two answers, three times over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, ClassVar, TypeVar

from django.db import DatabaseError, connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotModified, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.utils.http import parse_etags
from django.views.decorators.cache import never_cache
from django_filters.rest_framework import DjangoFilterBackend
from django_redis import get_redis_connection
from redis.exceptions import RedisError
from rest_framework.exceptions import ValidationError
from rest_framework.generics import GenericAPIView, ListAPIView, RetrieveAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from housing import queries
from housing.filters import REMEMBERED, KeysetPagination, PropertyFilter, Query
from housing.freshness.connection import ours
from housing.freshness.entries import Answer, Read, answer
from housing.freshness.keys import entry_key
from housing.freshness.statements import CONTROL
from housing.models import Property
from housing.serializers import Columns, PropertyDetailSerializer, PropertySerializer, rendered

JSON = "application/json"
KNOWN = 100
"""How many ETags of a reader are looked at: a script takes so many arguments and no more."""
R = TypeVar("R", bound=HttpResponseBase)

COLUMNS, DETAIL = Columns(PropertySerializer()), PropertyDetailSerializer()
ROWS = queries.properties().values_list(*COLUMNS.paths)
"""Kept, for DRF makes a serializer's fields anew for each instance of it, and Django finds out anew what each path joins."""


class Bill:
    """Counts the SQL of one request, and its time in seconds: an execute wrapper of Django's."""

    def __init__(self) -> None:
        self.statements = 0
        self.seconds = 0.0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Send the statement on."""
        started = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            self.seconds += time.perf_counter() - started
            self.statements += not CONTROL.match(sql)


class BilledView(GenericAPIView[Property]):
    """Says in `Server-Timing` what an answer cost."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """As DRF's."""
        bill, started = Bill(), time.perf_counter()
        with connection.execute_wrapper(bill):
            response = self.respond(request, *args, **kwargs)
        total = time.perf_counter() - started
        queries_ = f"{bill.statements} {'query' if bill.statements == 1 else 'queries'}"
        response.headers["Server-Timing"] = f'sql;desc="{queries_}";dur={bill.seconds * 1000:.2f}, total;dur={total * 1000:.2f}'
        return response

    def respond(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """The answer, whose cost is on the bill."""
        return super().dispatch(request, *args, **kwargs)


class PropertyListView(BilledView, ListAPIView[Property]):
    """The bill nobody should pay: nothing is joined, so every row asks for its location, its agent and the agent's office.

    A page of 20 costs 61 queries.
    """

    queryset = queries.properties()
    serializer_class = PropertySerializer
    filter_backends = [DjangoFilterBackend]
    filterset_class = PropertyFilter
    pagination_class = KeysetPagination


class OptimizedPropertyListView(PropertyListView):
    """A page in one query, which joins what the rows show."""

    queryset = queries.joined()


class PropertyDetailView(BilledView, RetrieveAPIView[Property]):
    """One property, asking for each of its relations when it gets there: 5 queries."""

    queryset = queries.properties()
    serializer_class = PropertyDetailSerializer
    lookup_url_kwarg = "id"


class OptimizedPropertyDetailView(PropertyDetailView):
    """One property in 2 queries: itself with all that is joined to it, and its images."""

    queryset = queries.with_images(queries.joined())


class CachedView(BilledView):
    """An answer that is remembered, and never older than the last committed write (`housing/cache/`)."""

    kind: ClassVar[str]
    refused: Exception | None = None

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """As DRF's, outside of ATOMIC_REQUESTS: what a transaction reads may be older than what was written meanwhile."""
        return transaction.non_atomic_requests(super().as_view(**initkwargs))

    def respond(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """The remembered bytes before DRF wakes, where nothing is to be negotiated; what is refused, DRF explains."""
        if request.method in ("GET", "HEAD") and request.META.get("HTTP_ACCEPT", "*/*") in ("*/*", JSON):
            try:
                return self.as_json(request)
            except (ValidationError, Http404) as refused:
                self.refused = refused
        return super().respond(request, *args, **kwargs)

    def get(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """The same bytes after DRF's negotiation; a page around them for a browser; what is neither, from the database."""
        if self.refused:
            raise self.refused
        if request.accepted_renderer.format == "api":
            found = self.remembered(request._request, ())
            return _described(Response(json.loads(found.body or b"null")), found.status)
        if request.accepted_media_type == JSON:
            return self.as_json(request._request)
        past: HttpResponseBase = super().get(request, *args, **kwargs)  # type: ignore[misc]  # of the view that this is mixed into
        return _described(past, "housing; fwd=bypass; detail=accept")

    def as_json(self, request: HttpRequest) -> HttpResponseBase:
        """The remembered bytes, or 304 for who has them."""
        known = request.META.get("HTTP_IF_NONE_MATCH")
        found = self.remembered(request, [etag.removeprefix("W/") for etag in parse_etags(known)[:KNOWN]] if known else ())
        headers = _headers(found.status) | {"ETag": found.etag}
        return HttpResponseNotModified(headers=headers) if found.body is None else HttpResponse(found.body, content_type=JSON, headers=headers)

    def remembered(self, request: HttpRequest, etags: Collection[str]) -> Answer:
        """The answer to this request. Raises DRF's ValidationError, or Http404."""
        asked, read = self.asked(request)
        return answer(partial(entry_key, self.kind, asked), etags, read, ours())

    def asked(self, request: HttpRequest) -> tuple[str, Read]:
        """What is asked, in one canonical text, and how it is read from the database."""
        raise NotImplementedError


def _headers(status: str) -> dict[str, str]:
    """A browser must ask each time: only so is the promise kept to the screen."""
    return {"Cache-Status": status, "Cache-Control": "no-cache", "Vary": "Accept"}


def _described(response: R, status: str) -> R:
    for name, value in _headers(status).items():
        response.headers[name] = value
    return response


@lru_cache(maxsize=REMEMBERED)
def select_of(query: Query) -> queries.Select:
    """Its SELECT. As it was validated once for all who ask alike, so it is compiled once."""
    return queries.Select(query.walk(query.filter(ROWS)))


class CachedPropertyListView(CachedView, OptimizedPropertyListView):  # type: ignore[misc]  # their get() promises a Response of DRF
    """A page in one query when it is cold, and in none while it is fresh."""

    kind = "list"

    def asked(self, request: HttpRequest) -> tuple[str, Read]:
        """The parameters."""
        query = Query.of(request)

        def read() -> tuple[bytes, Collection[str]]:
            page = query.page(select_of(query).rows(), COLUMNS.pick)
            shown = [COLUMNS.show(row) for row in page.rows]
            return rendered(page.body(shown)), queries.tags_of_list(shown, query.selected_by)

        return query.canonical, read


class CachedPropertyDetailView(CachedView, OptimizedPropertyDetailView):  # type: ignore[misc]  # their get() promises a Response of DRF
    """One property in two queries when it is cold, which see one state, and in none while it is fresh."""

    kind = "detail"

    def asked(self, request: HttpRequest) -> tuple[str, Read]:
        """The id."""

        def read() -> tuple[bytes, Collection[str]]:
            with nullcontext() if ours().in_transaction else ours().snapshot():
                home = get_object_or_404(queries.with_images(queries.joined()), pk=self.kwargs["id"])
                shown = DETAIL.to_representation(home)
            return rendered(shown), queries.tags_of_detail(shown)

        return str(self.kwargs["id"]), read


@never_cache
def health(request: HttpRequest) -> JsonResponse:
    """200 while the database answers, for then every read is answered; 503 while it does not. Says how Redis is, too."""
    state = {"database": "ok", "cache": "ok"}
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as away:
        state["database"] = f"unreachable: {away}"
    try:
        get_redis_connection("default").ping()
    except RedisError as away:
        state["cache"] = f"unreachable: {away}"
    return JsonResponse(state, status=200 if state["database"] == "ok" else 503)
