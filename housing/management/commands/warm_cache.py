"""`manage.py warm_cache`: fill the cache before the first request."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.http import HttpRequest, QueryDict
from django.urls import reverse
from rest_framework.exceptions import ValidationError
from tqdm import tqdm

from housing.filters import Query
from housing.views import CachedPropertyListView

ORDERINGS = tuple(f"ordering={name}" for name, _ in Query.filters.filters["ordering"].extra["choices"])
"""The default queries: the first page in each order."""


class Command(BaseCommand):
    """Warms the cache; see `help`."""

    help = (
        "Fill the cache with the first pages of the list. A page that is warm costs one round trip to Redis, "
        "and a page that is written during its fill is not stored."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the queries and the number of pages."""
        parser.add_argument(
            "queries", nargs="*", metavar="QUERY", help="query string of the list, such as city=Springfield&ordering=price (default: each ordering)"
        )
        parser.add_argument("--pages", type=int, default=1, metavar="N", help="pages of each query (default: 1)")

    def handle(self, *, queries: list[str], pages: int, verbosity: int, **_: Any) -> None:
        """Read the pages, and print where they came from. Raises CommandError for an invalid query, and if Redis or the database is unreachable."""
        if pages < 1:
            raise CommandError(f"--pages is {pages}. It must be a whole number, at least 1.")
        asked = [_parameters(query) for query in queries or ORDERINGS]
        came_from: Counter[str] = Counter()
        with tqdm(total=len(asked) * pages, desc="Warming", unit=" pages", disable=None if verbosity else True) as bar:
            for parameters in asked:
                for status in _warm(parameters, pages):
                    if status.endswith("unreachable"):
                        raise CommandError("Redis is unreachable, so nothing was cached. Check REDIS_URL.")
                    came_from[status] += 1
                    bar.update()
        if verbosity:
            filled = sum(count for status, count in came_from.items() if status.endswith("stored"))
            warm = came_from["housing; hit"] + came_from["housing; fwd=miss; collapsed"]
            self.stdout.write(f"{filled} filled, {warm} already warm, {came_from.total() - filled - warm} not stored (written during the fill).")


def _parameters(query: str) -> QueryDict:
    """Return the parameters of a query. Raises CommandError if the list would refuse or ignore one."""
    parameters = QueryDict(query.removeprefix("?"))
    if unknown := set(parameters) - set(Query.filters.filters):
        raise CommandError(f"{query}: the list has no parameter {', '.join(sorted(unknown))}. It has {', '.join(Query.filters.filters)}.")
    try:
        Query(parameters)
    except ValidationError as refused:
        wrong = "; ".join(f"{name}: {' '.join(map(str, why))}" for name, why in cast(dict[str, Any], refused.detail).items())
        raise CommandError(f"{query}: {wrong}") from None
    return parameters


def _warm(parameters: QueryDict, pages: int) -> Iterator[str]:
    """Read up to this many pages, and yield where each came from."""
    view, request = CachedPropertyListView(), HttpRequest()
    request.path = reverse("cached-list")
    for _ in range(pages):
        request.META["QUERY_STRING"] = parameters.urlencode()
        try:
            page = view.cached(request, ())
        except DatabaseError as error:
            raise CommandError(f"Database error: {error}") from error
        yield page.status
        following = json.loads(page.body or b"")["next"]
        if following is None:
            return
        parameters = QueryDict(following.removeprefix("?"))
