"""The API views: a list and a detail, each in three variants."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, wraps
from typing import Any

from django.core.exceptions import TooManyFieldsSent
from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, connections
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework.generics import GenericAPIView, ListAPIView, RetrieveAPIView

from housing import queries
from housing.filters import KEPT, KeysetPagination, PropertyFilter, Query
from housing.freshness import CONTROL, CachedView, Read, Select, SelectFor, ours
from housing.models import Property
from housing.outages import bounds_its_reads, refusal, without_a_database
from housing.refusals import TOO_MANY
from housing.serializers import Columns, PropertyDetailSerializer, PropertyImageSerializer, PropertySerializer, rendered

COLUMNS, IMAGES = Columns(PropertySerializer()), Columns(PropertyImageSerializer())
ROWS = queries.properties().values_list(*COLUMNS.paths)
"""Made once, because DRF builds the fields of each serializer instance, and Django resolves each path again."""


SERVER_TIMING = 'sql;desc="{} {}";dur={:.2f}, total;dur={:.2f}'
"""The header with the cost of a response: the number of SQL statements, their milliseconds, and those of the whole response."""


class QueryCounter:
    """An execute wrapper that counts the SQL statements of one request and their seconds."""

    statements = 0
    seconds = 0.0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Execute the statement, and count it."""
        started = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            self.seconds += time.perf_counter() - started
            self.statements += not (isinstance(sql, str) and CONTROL.match(sql))


class CountedView(GenericAPIView[Property]):
    """Reports the cost of a response in its `Server-Timing` header."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return DRF's view, which also counts its SQL."""
        view = super().as_view(**initkwargs)

        @wraps(view)
        def counted(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            counter, started = QueryCounter(), time.perf_counter()
            response: HttpResponseBase
            try:
                with connections[DEFAULT_DB_ALIAS].execute_wrapper(counter):
                    response = view(request, *args, **kwargs)
            except TooManyFieldsSent:
                response = refusal(request, TOO_MANY, 400, TOO_MANY)
            except (InterfaceError, OperationalError) as error:
                response = without_a_database(request, error)
            total = time.perf_counter() - started
            response.headers["Server-Timing"] = SERVER_TIMING.format(
                counter.statements, "query" if counter.statements == 1 else "queries", counter.seconds * 1000, total * 1000
            )
            return response

        return bounds_its_reads(counted) if issubclass(cls, CachedView) else counted


class PropertyListView(CountedView, ListAPIView[Property]):
    """A page of properties, deliberately naive: each row costs three more queries for its location, agent and office.

    A page of 20 costs 61 queries.
    """

    queryset = queries.properties()
    serializer_class = PropertySerializer
    filter_backends = [DjangoFilterBackend]
    filterset_class = PropertyFilter
    pagination_class = KeysetPagination


class OptimizedPropertyListView(PropertyListView):
    """A page of properties in one query, with three joins."""

    queryset = queries.joined()


class PropertyDetailView(CountedView, RetrieveAPIView[Property]):
    """One property with its images, deliberately naive: 5 queries, one for each relation."""

    queryset = queries.properties()
    serializer_class = PropertyDetailSerializer
    lookup_url_kwarg = "id"


class OptimizedPropertyDetailView(PropertyDetailView):
    """One property with its images in 2 queries: one with joins, and one for the images."""

    queryset = queries.with_images(queries.joined())


@lru_cache(maxsize=KEPT)
def select_of(query: Query) -> Select:
    """Return the SELECT of a query, which is compiled only once for equal query strings."""
    return Select(query.walk(query.filter(ROWS)))


class CachedPropertyListView(CachedView, OptimizedPropertyListView):
    """A page of properties from the cache: one query when it is cold, none while it is fresh. It is never older than the last committed write."""

    skippable = True

    def asked(self, request: HttpRequest) -> tuple[str, str, Read]:
        """The parameters make the key."""
        query = Query.of(request)

        def read() -> bytes:
            page = query.page(select_of(query).rows(shown=query.page_size), COLUMNS.pick)
            return rendered(page.body(COLUMNS.show(page.rows)))

        return "list", query.canonical, read

    def is_linked(self, request: HttpRequest) -> bool:
        """Whether it is one of the first pages, and no search."""
        return Query.of(request).is_linked


@lru_cache
def selects_of_a_detail() -> tuple[SelectFor, SelectFor]:
    """Return the SELECTs of a property and of its images, which are compiled only once for all ids."""
    images = queries.images().values_list(*IMAGES.paths)
    return SelectFor(lambda key: ROWS.filter(pk=key)), SelectFor(lambda key: images.filter(property=key))


class CachedPropertyDetailView(CachedView, OptimizedPropertyDetailView):
    """One property with its images from the cache: two queries when it is cold, none while it is fresh."""

    skippable = True

    def asked(self, request: HttpRequest) -> tuple[str, str, Read]:
        """The id makes the key."""
        key = self.kwargs["id"]

        def read() -> bytes:
            home, images = [select.number(key) for select in selects_of_a_detail()]
            with nullcontext() if ours().in_transaction else ours().snapshot():
                found = home.rows()
                if not found:
                    get_object_or_404(queries.properties().none())
                pictures = images.rows()
            return rendered(COLUMNS.show(found)[0] | {"images": IMAGES.show(pictures)})

        return "detail", str(key), read

    def is_linked(self, request: HttpRequest) -> bool:
        """Whether a link leads to it, which one does to each property. Its parameters are ignored."""
        return True


def unknown_path(request: HttpRequest) -> JsonResponse:
    """Return 404 for any other path below `/api/`. Django's own response would be HTML for every client."""
    return JsonResponse({"detail": "There is nothing at this path. /api/docs/ has a list of all paths."}, status=404)
