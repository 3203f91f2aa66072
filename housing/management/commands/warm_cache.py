"""`manage.py warm_cache`: read pages before anybody asks for them."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.http import HttpRequest, QueryDict
from rest_framework.exceptions import ValidationError
from tqdm import tqdm

from housing.filters import Query
from housing.views import CachedPropertyListView

ORDERINGS = tuple(f"ordering={name}" for name, _ in Query.filters.filters["ordering"].extra["choices"])
"""What is warmed where nothing is named: the first page, in each order."""


class Command(BaseCommand):
    """The command; see `help`."""

    help = (
        "Read the first pages of the cached list, so that nobody finds them cold. It reads as any reader does: a page that is warm costs one look, "
        "and a page that is written meanwhile is not remembered."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """As Django's."""
        parser.add_argument(
            "queries", nargs="*", metavar="QUERY", help="what is asked of the list, as in its address: city=Springfield&ordering=price (default: each ordering)"
        )
        parser.add_argument("--pages", type=int, default=1, metavar="N", help="how many pages of each, from the first on (default: 1)")

    def handle(self, *, queries: list[str], pages: int, verbosity: int, **_: Any) -> None:
        """Read, and say where the pages came from. Raises CommandError for a bad query before anything is read, and where Redis is away."""
        if pages < 1:
            raise CommandError(f"--pages is {pages}. It takes a whole number from 1 on.")
        asked = [_parameters(query) for query in queries or ORDERINGS]
        came_from: Counter[str] = Counter()
        with tqdm(total=len(asked) * pages, desc="Warming", unit=" pages", disable=None if verbosity else True) as bar:
            for parameters in asked:
                for status in _warm(parameters, pages):
                    if status.endswith("unreachable"):
                        raise CommandError("Redis is out of reach, and nothing is remembered. See REDIS_URL.")
                    came_from[status] += 1
                    bar.update()
        if verbosity:
            filled = sum(count for status, count in came_from.items() if status.endswith("stored"))
            warm = came_from["housing; hit"] + came_from["housing; fwd=miss; collapsed"]
            self.stdout.write(f"{filled} pages filled, {warm} were warm, {came_from.total() - filled - warm} were written meanwhile and are not remembered.")


def _parameters(query: str) -> QueryDict:
    """The parameters of a query. Raises CommandError for one that the list would refuse, or ignore."""
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
    """Read so many pages, as far as there are any; where each came from."""
    view, request = CachedPropertyListView(), HttpRequest()
    for _ in range(pages):
        request.META["QUERY_STRING"] = parameters.urlencode()
        try:
            page = view.cached(request, ())
        except DatabaseError as error:
            raise CommandError(f"The database says: {error}") from error
        yield page.status
        following = json.loads(page.body or b"")["next"]
        if following is None:
            return
        parameters = QueryDict(following.removeprefix("?"))
