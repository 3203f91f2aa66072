"""The cost of a page does not grow with the number of properties. A page is read along an index, with a million properties as with a thousand.

The specs check the execution plan of the endpoint's own SQL, for every filter in every order: the first page, and one from the middle of the list,
forward and backward. PostgreSQL chooses its plans by statistics, so it gets 20,000 properties. SQLite has no statistics here and chooses by the indexes.
"""

import importlib
import json
import os
import signal
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from django.core.management.color import no_style
from django.db import connection, transaction

from housing.models import Agent, Location, Office, Property, PropertyImage
from tests import ROOT
from tests.measurements import scale
from tests.measurements.scale import FILTERS, ORDERS, filters, plan_of
from tests.stacks import TIMEOUT

pytestmark = pytest.mark.django_db

MODELS = (Office, Agent, Location, Property, PropertyImage)

PROPERTIES = 20_000
PAGE = 21
"""The rows that a page of 20 reads. One more tells whether there is a next page."""

FEW = "min_price, few"
"""One property in 200. In the order by date the planner may scan the list or sort the matches, because both cost the same."""

COPIED = ("city", "office")
"""Filters on another table. On PostgreSQL the property's row has a copy of the column."""


@pytest.fixture(scope="module")
def many_properties(django_db_setup, django_db_blocker):
    """Enough properties for the planner to choose the same plans as for a million."""
    with django_db_blocker.unblock():
        call_command("seed", properties=PROPERTIES if connection.vendor == "postgresql" else 1_000, verbosity=0)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("VACUUM ANALYZE")
        yield
        tables = [model._meta.db_table for model in MODELS]
        connection.ops.execute_sql_flush(connection.ops.sql_flush(no_style(), tables, allow_cascade=False))


@pytest.fixture
def plans(many_properties):
    """`plans(name, *orders)`: the plan of each page with this filter."""

    def plans(name, *orders):
        return {(order, position): plan_of(text) for order, position, text in scale.pages(filters()[name]) if order in (orders or ORDERS)}

    return plans


# Lists


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.only("real")] * name.startswith(COPIED)) for name in FILTERS if not name.startswith("search") and name != FEW],
)
def test_a_page_reads_no_other_rows_than_its_own(plans, name):
    """For frequent and rare values alike, only the rows of the page are read, and at most these are sorted. (City and office: PostgreSQL only.)"""
    for page, plan in plans(name).items():
        assert (plan.full_scan, plan.sorted <= PAGE, (plan.read or 0) <= PAGE) == (False, True, True), (page, plan)


def test_a_price_range_in_the_order_by_price_reads_no_other_rows(plans):
    """The matching rows are neighbours in the index, whether they are few or many."""
    for page, plan in plans(FEW, "price", "-price").items():
        assert (plan.full_scan, plan.sorted <= PAGE, (plan.read or 0) <= PAGE) == (False, True, True), (page, plan)


@pytest.mark.parametrize("name", [name for name in FILTERS if name.startswith(("search", *COPIED)) or name == FEW])
def test_no_filter_reads_the_whole_table(plans, name):
    """The planner scans the index of the order until a page is full, or sorts the matches of the filter's index, whichever costs less."""
    for page, plan in plans(name).items():
        assert not plan.full_scan, (page, plan)


@pytest.mark.only("real")
def test_the_planner_distinguishes_ten_matching_rows_from_thousands(many_properties):
    """With the default statistics it estimates ten of a million rows as ten thousand, and then scans the whole list for them."""
    [dear] = filters()["min_price, rare"].values()
    [explained] = json.loads(Property.objects.filter(price__gte=dear).explain(format="json"))

    assert explained["Plan"]["Plan Rows"] <= 2 * PROPERTIES / 1_000


# Search


@pytest.mark.only("real")
@pytest.mark.parametrize("name", ["search, rare", "search, none"])
def test_a_search_for_a_rare_text_reads_few_rows(plans, name):
    """The trigram index finds the rows that contain every three letters of the text. SQLite has no such index and scans in order until a page is full."""
    for page, plan in plans(name).items():
        assert (plan.read or 0) <= PAGE, (page, plan)


@pytest.mark.only("real")
def test_a_migration_without_the_permission_to_create_pg_trgm_fails_with_advice(db):
    """The migration fails before it has changed anything."""
    migration = importlib.import_module("housing.migrations.0003_postgresql")
    with connection.cursor() as cursor:
        cursor.execute("DROP EXTENSION pg_trgm CASCADE")
        cursor.execute("CREATE ROLE housing_nobody")
        cursor.execute("SET LOCAL ROLE housing_nobody")

    with pytest.raises(CommandError, match=r"`search` needs .* pg_trgm, .*permission denied .* CREATE EXTENSION pg_trgm"), transaction.atomic():
        migration.Trigrams().database_forwards("housing", connection.schema_editor(), None, None)


# Limits

NOT_PROMISED = {
    "A page of a city or an office costs the same on SQLite": "These columns are in the tables of locations and agents, and no index spans two tables. "
    "Only PostgreSQL keeps a copy of them in the property (migration 0004).",
    "An agent's new office costs the same, however many properties the agent has": "PostgreSQL updates the copy in each property. "
    "A location's new city does the same.",
    "A range in another order costs the same, however many are in it": "No index has both columns. PostgreSQL skips index entries that are out of range, "
    "or it reads and sorts the rows in range if they are few. Both costs grow with the number of entries or rows.",
    "A search for one or two letters has an index": "A trigram has three letters. A frequent text soon fills a page. A text in no title reads all rows.",
    "A long search costs what a short one costs": "The index is read for every three letters of it, even if many titles contain them.",
    "A search has an index on SQLite": "SQLite scans in order until a page is full. For a text in no title it reads all rows.",
}


# The command


@pytest.mark.only("real")
def test_make_scale_prints_the_cost_of_each_filter():
    """A short run with two filters and a hundred properties."""
    few = "from tests.measurements import scale; scale.FILTERS = {name: scale.FILTERS[name] for name in ('the list', 'agent')}; scale.main()"
    ended = run("-c", few, "--properties", "100", "--times", "1")

    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert lines[0].startswith("| filter | order by | ms at 1,000 | ms at 100 |")
    assert [line.split(" | ")[:2] for line in lines[2:6]] == [[f"| {name}", by] for name in ("the list", "agent") for by in ("created_at", "price")]
    assert lines[-1].startswith("100 properties seeded in ")


@pytest.mark.only("real")
def test_an_unavailable_server_is_reported_in_one_line():
    """The line is the server's or the driver's own message. (It brings its own stack, and takes seconds.)"""
    ended = run("-m", "tests.measurements.scale", DATABASE_URL="postgres://127.0.0.1:1/x")

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "refused" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_interrupted_measurement_prints_one_line(monkeypatch):
    """By then its servers and its database are removed."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(scale, "run", interrupt)
    with pytest.raises(SystemExit, match=r"Interrupted\. Nothing is left behind\."):
        scale.main([])


def run(*arguments, **environment):
    """Run this command in a separate process."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
