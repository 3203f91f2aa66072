"""`make scale`: what a page costs at 1,000 properties, and at 1,000,000.

Seeds a database of its own, of PostgreSQL, which it removes: on the server of DATABASE_URL where that is set, else in a container. Prints for
each filter and order what the dearest of its pages takes: the first, and one from the middle of the list, read forward and backward.
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

ASKED: dict[str, dict[str, str]] = {
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
"""What is asked → its parameters; what is in braces is looked up in the data."""


@dataclass(frozen=True)
class Plan:
    """How the database came by a page."""

    read: int | None
    """Rows of properties that it looked at, or None where the database does not count them."""
    sorted: float
    """Rows that it had to sort; of the database that does not count them, infinity for any."""
    walked: bool
    """Whether it read the table from end to end."""
    shape: str
    """By which indexes, and what it did with them."""


@dataclass(frozen=True)
class Reading:
    """One page: of which order, where in it, and what it cost."""

    order: str
    where: str
    plan: Plan
    milliseconds: float


# What is asked


def looked_up() -> dict[str, Any]:
    """The values that `ASKED` leaves to the data: an agent and an office like any other; prices that ten are above, one in 200, and that ten are below."""
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


def pages(asked: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each page of this question: its order, where it is in it, and the query string to read it by."""
    from housing.filters import Cursor, Query
    from housing.queries import properties

    for order in ORDERS:
        parameters = asked | {"ordering": order}
        yield order, "first", urlencode(parameters)
        column = order.lstrip("-")
        query = Query(_parameters(urlencode(asked)))
        found = query.filter(properties()).order_by(column, "id")
        middle = found[found.count() // 2 :].first() or properties().order_by(column, "id")[0]
        for backward, where in ((False, "deep"), (True, "deep, back")):
            cursor = Cursor(order, backward).after(middle, backward, getattr)
            yield order, where, urlencode(parameters | {"cursor": cursor.encode()})


def _parameters(text: str) -> Any:
    from django.http import QueryDict

    return QueryDict(text)


def page_of(text: str) -> Page:
    """The page of this query string, as the cached door reads it."""
    from housing.filters import Query
    from housing.views import COLUMNS, select_of

    query = Query(_parameters(text))
    return query.page(select_of(query).rows(), COLUMNS.pick)


# What it costs


def plan_of(text: str) -> Plan:
    """How the database comes by this page: of the very SQL that the page is read by."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        page_of(text)
    [asked] = captured
    return {"postgresql": _plan_of_postgresql, "sqlite": _plan_of_sqlite}[connection.vendor](asked["sql"])


def _plan_of_postgresql(sql: str) -> Plan:
    from django.db import connection, transaction

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL track_io_timing = off")
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}")
        transaction.set_rollback(True)  # EXPLAIN ANALYZE could have written, for all that the cursor knows
        [[[found]]] = cursor.fetchall()
    nodes = list(_nodes(found["Plan"]))
    ours = [node for node in nodes if node.get("Relation Name") == "housing_property"]
    return Plan(
        read=sum(_looked_at(node) for node in ours),
        sorted=max((_rows(node["Plans"][0]) for node in nodes if "Sort" in node["Node Type"]), default=0),
        walked=any("Seq Scan" in node["Node Type"] for node in ours),
        shape=" ← ".join(dict.fromkeys(_shape(nodes))),
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows(node: dict[str, Any]) -> int:
    return round(node["Actual Rows"] * node["Actual Loops"])


def _looked_at(node: dict[str, Any]) -> int:
    passed_by = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return round((node["Actual Rows"] + passed_by) * node["Actual Loops"])


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
        walked=any(step.startswith("SCAN housing_property") and "USING INDEX" not in step for step in steps),
        shape=" ← ".join(step for step in steps if "PRIMARY KEY" not in step),
    )


def readings(asked: dict[str, str], times: int) -> list[Reading]:
    """Every page of this question: its plan, and the median of its milliseconds, of so many readings or what a second has time for."""
    return [Reading(order, where, plan_of(text), _milliseconds(text, times)) for order, where, text in pages(asked)]


def _milliseconds(text: str, times: int) -> float:
    taken: list[float] = []
    while len(taken) < times and sum(taken) < 1000:
        started = time.perf_counter()
        page_of(text)
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def questions() -> dict[str, dict[str, str]]:
    """`ASKED`, with the values of this database."""
    values = looked_up()
    return {name: {key: value.format_map(values) for key, value in parameters.items()} for name, parameters in ASKED.items()}


# What is told


@dataclass(frozen=True)
class Row:
    """A row of the table: the dearest of the pages of one question in the orders by one column."""

    question: str
    column: str
    milliseconds: float
    read: int
    sorted: float
    shapes: tuple[str, ...]


def measure(times: int) -> Iterator[Row]:
    """Every question of every order to this database."""
    for question, asked in tqdm(questions().items(), desc="Reading", unit=" questions", disable=None, leave=False):
        found = readings(asked, times)
        for column in ("created_at", "price"):
            by = [reading for reading in found if reading.order.lstrip("-") == column]
            plans = [reading.plan for reading in by]
            yield Row(
                question,
                column,
                max(reading.milliseconds for reading in by),
                max(plan.read or 0 for plan in plans),
                max(plan.sorted for plan in plans),
                tuple(dict.fromkeys(plan.shape for plan in plans)),
            )


def seed(properties: int) -> None:
    """So many properties in place of what is there, and statistics of them, as autovacuum makes them."""
    from django.core.management import call_command
    from django.db import connection

    call_command("seed", properties=properties, replace=True, stdout=sys.stderr)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def table(sizes: Sequence[int], measured: Sequence[Sequence[Row]]) -> str:
    """Markdown: what each question takes at each size; rows and plans are those of the last."""
    lines = [
        "| asked | by | " + " | ".join(f"ms at {size:,}" for size in sizes) + " | rows read | rows sorted | plan |",
        "| --- | --- " + "| --: " * len(sizes) + "| --: | --: | --- |",
    ]
    for rows in zip(*measured, strict=True):
        last = rows[-1]
        milliseconds = " | ".join(f"{row.milliseconds:.1f}" for row in rows)
        lines.append(f"| {last.question} | {last.column} | {milliseconds} | {last.read:,} | {last.sorted:,} | {'; '.join(last.shapes)} |")
    return "\n".join(lines)


def run(sizes: Sequence[int], times: int) -> str:
    """Seed a database of each size, one after another, and ask it; the table, and what seeding took. Raises UsageError where no server can be had."""
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
        measured, told = [], []
        for size in sizes:
            started = time.monotonic()
            seed(size)
            told.append(f"{size:,} properties seeded in {time.monotonic() - started:.0f} s, in {_peak():.0f} MB.")
            measured.append(list(measure(times)))
        return "\n".join([table(sizes, measured), "", *told])


def _set_up(servers: ExitStack) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from housing.freshness.journal import journal

    servers.callback(connections.close_all)
    logging.getLogger("housing").setLevel(logging.WARNING)  # that everything became stale is no news
    journal.begin()
    call_command("migrate", verbosity=0)


def _peak() -> float:
    """The most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table. What prevents it is one line on stderr, and exit code 1; Ctrl-C and SIGTERM leave nothing behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--properties", type=int, default=1_000_000, metavar="N", help="how many, beside 1,000 (default: %(default)s)")
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how often a quick page is read, for the median (default: %(default)s)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(run([1_000, options.properties], options.times))  # noqa: T201  # this is what a person at a terminal reads
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing is left behind.")
    except (pytest.UsageError, psycopg.Error, DatabaseError, CommandError) as why:
        sys.exit(" ".join(str(why).split()))


if __name__ == "__main__":
    main()
