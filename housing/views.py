"""A request comes in: the same two answers, three times over."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, wraps
from typing import Any

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.views.decorators.cache import never_cache
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework.generics import GenericAPIView, ListAPIView, RetrieveAPIView

from housing import queries
from housing.filters import REMEMBERED, KeysetPagination, PropertyFilter, Query
from housing.freshness import CONTROL, CachedView, Read, Refused, Select, Unreachable, inspect_server, ours
from housing.models import Property
from housing.serializers import Columns, PropertyDetailSerializer, PropertySerializer, rendered

COLUMNS, DETAIL = Columns(PropertySerializer()), PropertyDetailSerializer()
ROWS = queries.properties().values_list(*COLUMNS.paths)
"""Kept, for DRF makes a serializer's fields anew for each instance of it, and Django finds out anew what each path joins."""


class QueryCounter:
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


class CountedView(GenericAPIView[Property]):
    """Says in `Server-Timing` what an answer cost."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """DRF's, whose response is on the bill."""
        view = super().as_view(**initkwargs)

        @wraps(view)
        def counted(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            counter, started = QueryCounter(), time.perf_counter()
            with connection.execute_wrapper(counter):
                response: HttpResponseBase = view(request, *args, **kwargs)
            total = time.perf_counter() - started
            queries_ = f"{counter.statements} {'query' if counter.statements == 1 else 'queries'}"
            response.headers["Server-Timing"] = f'sql;desc="{queries_}";dur={counter.seconds * 1000:.2f}, total;dur={total * 1000:.2f}'
            return response

        return counted


class PropertyListView(CountedView, ListAPIView[Property]):
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


class PropertyDetailView(CountedView, RetrieveAPIView[Property]):
    """One property, asking for each of its relations when it gets there: 5 queries."""

    queryset = queries.properties()
    serializer_class = PropertyDetailSerializer
    lookup_url_kwarg = "id"


class OptimizedPropertyDetailView(PropertyDetailView):
    """One property in 2 queries: itself with all that is joined to it, and its images."""

    queryset = queries.with_images(queries.joined())


@lru_cache(maxsize=REMEMBERED)
def select_of(query: Query) -> Select:
    """Its SELECT. As it was validated once for all who ask alike, so it is compiled once."""
    return Select(query.walk(query.filter(ROWS)))


class CachedPropertyListView(CachedView, OptimizedPropertyListView):
    """A page in one query when it is cold, and in none while it is fresh."""

    def asked(self, request: HttpRequest) -> tuple[str, str, Read]:
        """The parameters."""
        query = Query.of(request)

        def read() -> bytes:
            page = query.page(select_of(query).rows(shown=query.page_size), COLUMNS.pick)
            return rendered(page.body([COLUMNS.show(row) for row in page.rows]))

        return "list", query.canonical, read


class CachedPropertyDetailView(CachedView, OptimizedPropertyDetailView):
    """One property in two queries when it is cold, which see one state, and in none while it is fresh."""

    def asked(self, request: HttpRequest) -> tuple[str, str, Read]:
        """The id."""

        def read() -> bytes:
            with nullcontext() if ours().in_transaction else ours().snapshot():
                home = get_object_or_404(queries.with_images(queries.joined()), pk=self.kwargs["id"])
                return rendered(DETAIL.to_representation(home))

        return "detail", str(self.kwargs["id"]), read


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
        inspect_server()
    except Refused as refused:
        state["cache"] = f"refused: {refused}"
    except Unreachable as away:
        state["cache"] = f"unreachable: {away}"
    return JsonResponse(state, status=200 if state["database"] == "ok" else 503)
