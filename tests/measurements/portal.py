"""A model of a portal: cached pages over all filters, orders and pages, and a series of writes. How many unchanged pages stay warm after each write?

The engine's journal decides for the engine. Four other strategies are computed beside it, from what they know: `cache.clear()`; one tag for each table; the
conditions of django-cacheops, which compare the old and the new row with the equalities of a query on the row's own table; and, from the rows instead of
tags, the scopes of joined rows with the interval of the ordering that a page covers.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from itertools import product
from typing import Any
from urllib.parse import urlencode

from django.db import connection, transaction
from django.http import QueryDict
from django.utils import timezone

from housing.filters import ORDERINGS, Query
from housing.freshness.dependencies import Select, recorded
from housing.freshness.journal import Miss, journal
from housing.models import Agent, Location, Office, Property
from housing.serializers import rendered
from housing.views import COLUMNS, ROWS

CITIES, OFFICES, AGENTS, LOCATIONS = 20, 20, 100, 200
LISTINGS_PER_PAGE = 0.5
"""A portal of 10,000 pages has 5,000 listings."""

WRITES = {"price": 60, "new": 20, "status": 10, "agent": 5, "deleted": 5}
"""Kind of write → how many of a hundred."""

OWN = {"status": "status", "property_type": "property_type", "agent": "agent_id"}
JOINED = {"city": "location.city", "office": "agent.office_id"}
"""Query parameter of an equality → the path of its value on a property."""

STRATEGIES = ("the engine", "cache.clear()", "tables", "cacheops", "joined scopes and intervals")


@dataclass
class Cached:
    """A page in the cache."""

    given: dict[str, Any]
    query: Query
    select: Select
    body: bytes = b""
    within: dict[str, set[str]] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    shown: frozenset[int] = frozenset()
    interval: tuple[Any, Any] = (None, None)
    """The values of the ordering between which its rows are; None where it is open."""

    @property
    def key(self) -> str:
        """The key of its entry."""
        return f"portal:{self.query.canonical}"

    @property
    def is_stale(self) -> bool:
        """Whether the journal says so."""
        return isinstance(journal.lookup(self.key), Miss)

    def store(self) -> None:
        """Read the page, and store its entry."""
        miss = journal.lookup(self.key)
        assert isinstance(miss, Miss)
        self.body = self.read()
        assert journal.store(self.key, miss, self.tags, "", self.body, within=self.within) == "stored"

    def read(self) -> bytes:
        """Return the page as it is in the database, and keep its tags."""
        with recorded() as recording:
            rows = self.select.rows(shown=self.query.page_size)
        page = self.query.page(list(rows), COLUMNS.pick)
        self.tags, self.within = frozenset(recording.tags), recording.within
        self.shown = frozenset(COLUMNS.pick(row, "id") for row in page.rows)
        column = self.query.ordering.removeprefix("-")
        values = sorted(COLUMNS.pick(row, column) for row in rows)
        position = self.query.cursor and self.query.cursor.position
        values = sorted([*values, position[0]]) if position else values
        is_full = len(rows) > self.query.page_size
        descending = self.query.ordering.startswith("-") != bool(self.query.cursor and self.query.cursor.backward)
        near, far = (values[-1:], values[:1]) if descending else (values[:1], values[-1:])
        ends = near[0] if position and near else None, far[0] if is_full else None
        self.interval = ends[::-1] if descending else ends
        return rendered(page.body(COLUMNS.show(page.rows)))

    def fits(self, row: dict[str, Any], parameters: dict[str, str]) -> bool:
        """Whether a row satisfies those of these equalities that the page has."""
        return all(str(row[path]) == str(self.given[name]) for name, path in parameters.items() if name in self.given)

    def concerns(self, row: dict[str, Any], shown: frozenset[int], interval: tuple[Any, Any]) -> bool:
        """Whether the page shows a row, or the row is in its scopes and its interval."""
        value, (low, high) = row[self.query.ordering.removeprefix("-")], interval
        is_within = (low is None or low <= value) and (high is None or value <= high)
        return row["id"] in shown or (is_within and self.fits(row, OWN | JOINED))


@dataclass
class Result:
    """How many pages of each strategy were made stale by each write although they had not changed, and how many had not changed."""

    pages: int
    unchanged: list[int] = field(default_factory=list)
    lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    kinds: list[str] = field(default_factory=list)

    def warm(self, strategy: str, kind: str | None = None) -> list[float]:
        """The share of the unchanged pages that stays warm after each write, in percent."""
        counted = zip(self.lost[strategy], self.unchanged, self.kinds, strict=True)
        return [100 * (1 - lost / unchanged) for lost, unchanged, each in counted if kind in (None, each)]

    def lines(self) -> Iterator[str]:
        """The result as a table in Markdown."""
        yield f"| {self.pages:,} pages, {len(self.kinds):,} writes | mean | worst | {' | '.join(WRITES)} |"
        yield f"| --- {'| ---: ' * (2 + len(WRITES))}|"
        for strategy in STRATEGIES:
            every = self.warm(strategy)
            means = [statistics.fmean(self.warm(strategy, kind) or [100]) for kind in WRITES]
            yield f"| {strategy} | {' | '.join(f'{value:.1f} %' for value in (statistics.fmean(every), min(every), *means))} |"


def filters(chosen: random.Random) -> Iterator[dict[str, Any]]:
    """Yield the parameters of lists: none, each filter, and pairs of them."""
    values: dict[str, list[Any]] = {
        "city": [f"City {number}" for number in range(CITIES)],
        "status": ["available", "pending", "sold"],
        "property_type": list(Property.Type.values),
        "agent": list(Agent.objects.order_by("pk").values_list("pk", flat=True)),
        "office": list(Office.objects.order_by("pk").values_list("pk", flat=True)),
        "min_price": [200_000, 400_000, 600_000],
        "max_price": [200_000, 400_000, 600_000],
        "min_bedrooms": [2, 4],
        "search": ["Home 1", "Home 22"],
    }
    yield {}
    for name, some in values.items():
        yield from ({name: value} for value in some)
    pairs = [(one, two) for one, two in product(values, values) if one < two and {one, two} != {"min_price", "max_price"}]
    found = [{one: first, two: second} for one, two in pairs for first, second in product(values[one], values[two])]
    yield from chosen.sample(found, len(found))


def fill(pages: int, chosen: random.Random) -> list[Cached]:
    """Read pages: each list in each order, and for each of them some of its pages."""
    found: list[Cached] = []
    for given in filters(chosen):
        for ordering, _ in ORDERINGS:
            following: str | None = "?" + urlencode(given | {"ordering": ordering})
            for _ in range(4 if len(given) > 1 else 12):
                query = Query(QueryDict((following or "?")[1:]))
                cached = Cached(given, query, Select(query.walk(query.filter(ROWS))))
                cached.store()
                found.append(cached)
                following = query.page(list(cached.select.rows()), COLUMNS.pick).next
                if len(found) == pages:
                    return found
                if following is None:
                    break
    return found


def listings(count: int, chosen: random.Random) -> None:
    """Create the rows of the portal."""
    offices = Office.objects.bulk_create([Office(name=f"Office {number}") for number in range(OFFICES)])
    agents = Agent.objects.bulk_create([Agent(name=f"Agent {number}", office=offices[number % OFFICES]) for number in range(AGENTS)])
    places = Location.objects.bulk_create([Location(city=f"City {number % CITIES}") for number in range(LOCATIONS)])
    now = timezone.now()
    Property.objects.bulk_create(
        [
            Property(
                title=f"Home {number}",
                property_type=chosen.choice(Property.Type.values),
                status=chosen.choices(["available", "pending", "sold"], [70, 15, 15])[0],
                price=Decimal(chosen.randrange(100, 900) * 1000 + number % 1000),
                bedrooms=chosen.randrange(1, 6),
                location=chosen.choice(places),
                agent=chosen.choice(agents),
                created_at=now - timedelta(minutes=37 * (count - number)),
            )
            for number in range(count)
        ]
    )


def facts(row: Property) -> dict[str, Any]:
    """Return the values of a row that the strategies compare."""
    own = {name: getattr(row, name) for name in ("id", "status", "property_type", "agent_id", "price", "created_at")}
    return own | {"location.city": row.location.city, "agent.office_id": row.agent.office_id}


def write(kind: str, chosen: random.Random, number: int) -> tuple[list[dict[str, Any]], set[str]]:
    """Carry out a write. Returns the row before and after it, and the tags."""
    every = list(Property.objects.order_by("pk").values_list("pk", flat=True))
    row = Property.objects.select_related("location", "agent").get(pk=chosen.choice(every))
    before = [facts(row)]
    act: Callable[[], Any] = row.save
    if kind == "price":
        row.price = (row.price * Decimal(chosen.choice(["0.95", "0.98", "1.02", "1.05"]))).quantize(Decimal("0.01"))
    elif kind == "status":
        row.status = chosen.choice([value for value in ("available", "pending", "sold") if value != row.status])
    elif kind == "agent":
        row.agent = chosen.choice(list(Agent.objects.exclude(pk=row.agent_id).order_by("pk")))
    elif kind == "new":
        row.pk, row.title, row.created_at, row._state.adding, before = None, f"Home {10**6 + number}", timezone.now(), True, []
    else:
        act = row.delete
    with transaction.atomic():
        act()
        tags = connection._collapsed()  # type: ignore[attr-defined]  # it is the engine's connection
    return before + ([facts(row)] if kind != "deleted" else []), tags


def simulate(pages: int, writes: int, seed: int, check: int = 0) -> Result:
    """Fill the pages, and carry out the writes. After each `check` writes all pages are compared with the database. Raises AssertionError if one is stale."""
    chosen = random.Random(seed)
    listings(round(pages * LISTINGS_PER_PAGE), chosen)
    found = fill(pages, chosen)
    result = Result(len(found))
    for number, kind in enumerate(chosen.choices(list(WRITES), list(WRITES.values()), k=writes), 1):
        rows, tags = write(kind, chosen, number)
        kept = {id(page): (page.shown, page.interval) for page in found}
        stale = [page for page in found if not tags.isdisjoint(page.tags) and page.is_stale]
        changed = set()
        for page in stale:
            body = page.body
            page.store()
            if body != page.body:
                changed.add(id(page))
        if check and number % check == 0:
            assert all(page.read() == page.body for page in found), f"A page is stale after write {number}: {kind} of {rows}"
        result.kinds.append(kind)
        result.unchanged.append(len(found) - len(changed))
        result.lost["the engine"].append(len(stale) - len(changed))
        result.lost["cache.clear()"].append(len(found) - len(changed))
        result.lost["tables"].append(len(found) - len(changed))
        unchanged = [page for page in found if id(page) not in changed]
        result.lost["cacheops"].append(sum(any(page.fits(row, OWN) for row in rows) for page in unchanged))
        result.lost[STRATEGIES[-1]].append(sum(any(page.concerns(row, *kept[id(page)]) for row in rows) for page in unchanged))
    return result
