"""`make scale`: the cost of a page with 1,000 and with 1,000,000 properties.

Seeds a separate PostgreSQL database and removes it afterwards. It is on the server of DATABASE_URL if that is set, otherwise in a container. Prints the
cost of the most expensive page of each filter and order: the first page, and one from the middle of the list, read forward and backward.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import resource
import secrets
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
import pytest
from django.core.management import CommandError
from django.db import DatabaseError
from tqdm import tqdm

from tests import stacks

if TYPE_CHECKING:
    from housing.filters import Page

ORDERS = ("created_at", "-created_at", "price", "-price")

FILTERS: dict[str, dict[str, str]] = {
    "the list": {},
    "status, frequent": {"status": "available"},
    "status, rare": {"status": "withdrawn"},
    "property_type, frequent": {"property_type": "house"},
    "property_type, rare": {"property_type": "land"},
    "agent": {"agent": "{agent}"},
    "agent, nobody": {"agent": "9000000000"},
    "office": {"office": "{office}"},
    "office, none": {"office": "9000000000"},
    "city": {"city": "Boise"},
    "city, unknown": {"city": "Atlantis"},
    "min_price, frequent": {"min_price": "200000"},
    "min_price, few": {"min_price": "{upper}"},
    "min_price, rare": {"min_price": "{dear}"},
    "max_price, frequent": {"max_price": "900000"},
    "max_price, rare": {"max_price": "{cheap}"},
    "min_bedrooms, frequent": {"min_bedrooms": "3"},
    "min_bedrooms, rare": {"min_bedrooms": "6"},
    "min_bedrooms, none": {"min_bedrooms": "20"},
    "search, frequent": {"search": "kitchen"},
    "search, rare": {"search": "sunny 6-bedroom townhouse on foundry row, b"},
    "search, none": {"search": "moat"},
}
"""Filter → its query parameters. A value in braces is taken from the data."""


@dataclass(frozen=True)
class Plan:
    """The execution plan of a page."""

    read: int | None
    """The rows of properties that it read, or None if the database does not count them."""
    sorted: float
    """The rows that it sorted. If the database does not count them, it is infinity for a sort."""
    full_scan: bool
    """Whether it read the whole table."""
    shape: str
    """The indexes and the steps of the plan."""


@dataclass(frozen=True)
class Reading:
    """The cost of one page: its order, its position, its plan and its time."""

    order: str
    position: str
    plan: Plan
    milliseconds: float


# The pages


def looked_up() -> dict[str, Any]:
    """The values in `FILTERS` that depend on the data: some agent and office, a price below the top ten, the top 200th, and above the lowest ten."""
    from housing.models import Property

    some = Property.objects.order_by("id").values("agent_id", "agent__office_id")[0]
    prices = Property.objects.order_by("price", "id").values_list("price", flat=True)
    last = Property.objects.count() - 1
    return {
        "agent": some["agent_id"],
        "office": some["agent__office_id"],
        "cheap": prices[min(9, last)],
        "upper": prices[last - last // 200],
        "dear": prices[max(0, last - 9)],
    }


def pages(filters: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each page with these filters: its order, its position, and its query string."""
    from housing.filters import Cursor, Query
    from housing.queries import properties

    for order in ORDERS:
        parameters = filters | {"ordering": order}
        yield order, "first", urlencode(parameters)
        column = order.lstrip("-")
        query = Query(_parameters(urlencode(filters)))
        found = query.filter(properties()).order_by(column, "id")
        middle = found[found.count() // 2 :].first() or properties().order_by(column, "id")[0]
        for backward, position in ((False, "deep"), (True, "deep, back")):
            cursor = Cursor(order, backward).after(middle, backward, getattr)
            yield order, position, urlencode(parameters | {"cursor": cursor.encode()})


def _parameters(text: str) -> Any:
    from django.http import QueryDict

    return QueryDict(text)


def page_of(text: str) -> Page:
    """The page of this query string, as the cached endpoint reads it."""
    from housing.filters import Query
    from housing.views import COLUMNS, select_of

    query = Query(_parameters(text))
    return query.page(select_of(query).rows(), COLUMNS.pick)


# The cost


def plan_of(text: str) -> Plan:
    """The plan of the SQL with which the cached endpoint reads this page."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        page_of(text)
    [select] = captured
    return {"postgresql": _plan_of_postgresql, "sqlite": _plan_of_sqlite}[connection.vendor](select["sql"])


def _plan_of_postgresql(sql: str) -> Plan:
    from django.db import connection, transaction

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL track_io_timing = off")
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}")
        transaction.set_rollback(True)  # the cursor cannot know that EXPLAIN ANALYZE wrote nothing
        [[[found]]] = cursor.fetchall()
    nodes = list(_nodes(found["Plan"]))
    ours = [node for node in nodes if node.get("Relation Name") == "housing_property"]
    return Plan(
        read=sum(_rows_read(node) for node in ours),
        sorted=max((_rows(node["Plans"][0]) for node in nodes if "Sort" in node["Node Type"]), default=0),
        full_scan=any("Seq Scan" in node["Node Type"] for node in ours),
        shape=" ← ".join(dict.fromkeys(_shape(nodes))),
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows(node: dict[str, Any]) -> int:
    return round(node["Actual Rows"] * node["Actual Loops"])


def _rows_read(node: dict[str, Any]) -> int:
    removed = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return round((node["Actual Rows"] + removed) * node["Actual Loops"])


def _shape(nodes: list[dict[str, Any]]) -> Iterator[str]:
    for node in nodes:
        if "Sort" in node["Node Type"]:
            yield node["Node Type"].lower()
        elif "Index Name" in node:
            if not node["Index Name"].endswith("_pkey"):
                yield node["Index Name"]
        elif "Seq Scan" in node["Node Type"]:
            yield f"all of {node['Relation Name']}"


def _plan_of_sqlite(sql: str) -> Plan:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        steps = [row[-1] for row in cursor.fetchall()]
    return Plan(
        read=None,
        sorted=math.inf if any("TEMP B-TREE" in step for step in steps) else 0,
        full_scan=any(step.startswith("SCAN housing_property") and "USING INDEX" not in step for step in steps),
        shape=" ← ".join(step for step in steps if "PRIMARY KEY" not in step),
    )


def readings(filters: dict[str, str], times: int) -> list[Reading]:
    """The cost of every page with these filters. The time is the median of this many reads, or of as many as take one second."""
    return [Reading(order, position, plan_of(text), _milliseconds(text, times)) for order, position, text in pages(filters)]


def _milliseconds(text: str, times: int) -> float:
    taken: list[float] = []
    while len(taken) < times and sum(taken) < 1000:
        started = time.perf_counter()
        page_of(text)
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def filters() -> dict[str, dict[str, str]]:
    """`FILTERS` with the values of this database."""
    values = looked_up()
    return {name: {key: value.format_map(values) for key, value in parameters.items()} for name, parameters in FILTERS.items()}


# The output


@dataclass(frozen=True)
class Row:
    """A row of the table: the most expensive page of one filter, in the orders by one column."""

    name: str
    column: str
    milliseconds: float
    read: int
    sorted: float
    shapes: tuple[str, ...]


def measure(times: int) -> Iterator[Row]:
    """Measure every filter in every order on this database."""
    for name, parameters in tqdm(filters().items(), desc="Reading", unit=" filters", disable=None, leave=False):
        found = readings(parameters, times)
        for column in ("created_at", "price"):
            by = [reading for reading in found if reading.order.lstrip("-") == column]
            plans = [reading.plan for reading in by]
            yield Row(
                name,
                column,
                max(reading.milliseconds for reading in by),
                max(plan.read or 0 for plan in plans),
                max(plan.sorted for plan in plans),
                tuple(dict.fromkeys(plan.shape for plan in plans)),
            )


def seed(properties: int) -> None:
    """Replace all properties by this many, and update the statistics as autovacuum does."""
    from django.core.management import call_command
    from django.db import connection

    call_command("seed", properties=properties, replace=True, stdout=sys.stderr)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def table(sizes: Sequence[int], measured: Sequence[Sequence[Row]]) -> str:
    """A Markdown table of the milliseconds at each size. Rows and plans are those of the last size."""
    lines = [
        "| filter | order by | " + " | ".join(f"ms at {size:,}" for size in sizes) + " | rows read | rows sorted | plan |",
        "| --- | --- " + "| --: " * len(sizes) + "| --: | --: | --- |",
    ]
    for rows in zip(*measured, strict=True):
        last = rows[-1]
        milliseconds = " | ".join(f"{row.milliseconds:.1f}" for row in rows)
        lines.append(f"| {last.name} | {last.column} | {milliseconds} | {last.read:,} | {last.sorted:,} | {'; '.join(last.shapes)} |")
    return "\n".join(lines)


def run(sizes: Sequence[int], times: int) -> str:
    """Seed a database of each size in turn and measure it. Returns the table and the cost of seeding. Raises UsageError if no server is available."""
    with ExitStack() as servers:
        url = os.environ.get("DATABASE_URL")
        os.environ |= {
            "DATABASE_URL": stacks.own_database(servers, url) if url else stacks.start_postgres(servers),
            "REDIS_URL": "fakeredis://",
            "DJANGO_SETTINGS_MODULE": "housing.settings",
            "DJANGO_SECRET_KEY": secrets.token_hex(16),
            "DJANGO_DEBUG": "false",
        }
        _set_up(servers)
        measured, seeded = [], []
        for size in sizes:
            started = time.monotonic()
            seed(size)
            seeded.append(f"{size:,} properties seeded in {time.monotonic() - started:.0f} s, with {_peak():.0f} MB of memory.")
            measured.append(list(measure(times)))
        return "\n".join([table(sizes, measured), "", *seeded])


def _set_up(servers: ExitStack) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from housing.freshness.journal import journal

    servers.callback(connections.close_all)
    logging.getLogger("housing").setLevel(logging.WARNING)  # seeding logs that it invalidates everything
    journal.begin()
    call_command("migrate", verbosity=0)


def _peak() -> float:
    """The peak memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table. An error is one line on stderr, with exit code 1. Ctrl-C and SIGTERM leave nothing behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.measurements.scale", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--properties", type=int, default=1_000_000, metavar="N", help="number of properties, in addition to 1,000 (default: %(default)s)")
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how often each page is read, for the median (default: %(default)s)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(run([1_000, options.properties], options.times))  # noqa: T201  # for a person at a terminal
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing is left behind.")
    except (pytest.UsageError, psycopg.Error, DatabaseError, CommandError) as why:
        sys.exit(" ".join(str(why).split()))


if __name__ == "__main__":
    main()
