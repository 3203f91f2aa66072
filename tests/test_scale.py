"""How many properties there are does not matter. A page is read along an index to where it stands, at a million as at a thousand.

Plans are those of the very SQL that a page is read by: every filter, in every order, the first page and one from the middle, forward and backward.
On PostgreSQL they are chosen by statistics, so there are 20,000 properties to choose for; SQLite, of which nobody asked any, chooses by the indexes alone.
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

from conftest import ROOT
from housing.models import Agent, Location, Office, Property, PropertyImage
from tests import scale
from tests.scale import ASKED, ORDERS, plan_of, questions

pytestmark = pytest.mark.django_db

MODELS = (Office, Agent, Location, Property, PropertyImage)

PROPERTIES = 20_000
PAGE = 21
"""Rows of a page of 20: one more tells whether there is a next."""

FEW = "min_price, few"
"""One in 200: by date the planner may walk the list for them, or sort them, for either costs as much."""

COPIED = ("city", "office")
"""What is asked of another table. PostgreSQL has it in the property's row, too."""


@pytest.fixture(scope="module")
def many_properties(django_db_setup, django_db_blocker):
    """As many as it takes for a planner to choose as it does for a million."""
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
    """`plans(question, *orders)`: how the database comes by each page of it."""

    def plans(question, *orders):
        return {(order, where): plan_of(text) for order, where, text in scale.pages(questions()[question]) if order in (orders or ORDERS)}

    return plans


# Lists


@pytest.mark.parametrize(
    "question",
    [pytest.param(name, marks=[pytest.mark.only("real")] * name.startswith(COPIED)) for name in ASKED if not name.startswith("search") and name != FEW],
)
def test_a_page_is_read_where_it_stands(plans, question):
    """However frequent a value is, or rare: no row is fetched that is not on the page, no more than a page is sorted. (City, office: PostgreSQL alone.)"""
    for page, plan in plans(question).items():
        assert (plan.walked, plan.sorted <= PAGE, (plan.read or 0) <= PAGE) == (False, True, True), (page, plan)


def test_a_range_is_read_along_its_own_order(plans):
    """Few or many: they stand beside each other."""
    for page, plan in plans(FEW, "price", "-price").items():
        assert (plan.walked, plan.sorted <= PAGE, (plan.read or 0) <= PAGE) == (False, True, True), (page, plan)


@pytest.mark.parametrize("question", [name for name in ASKED if name.startswith(("search", *COPIED)) or name == FEW])
def test_no_question_reads_all_properties(plans, question):
    """Along the order, stopping at a full page, or by an index of what is asked, sorting what it gives: the planner knows which is less."""
    for page, plan in plans(question).items():
        assert not plan.walked, (page, plan)


@pytest.mark.only("real")
def test_the_planner_tells_ten_rows_from_thousands(many_properties):
    """Ten of a million, taken for the ten thousand that stand in the last of a hundred sorts, are looked for in the whole list."""
    [dear] = questions()["min_price, rare"].values()
    [told] = json.loads(Property.objects.filter(price__gte=dear).explain(format="json"))

    assert told["Plan"]["Plan Rows"] <= 2 * PROPERTIES / 1_000


# Search


@pytest.mark.only("real")
@pytest.mark.parametrize("question", ["search, rare", "search, none"])
def test_a_search_for_what_is_rare_reads_what_it_may_be_in(plans, question):
    """An index of trigrams finds the rows in which each three letters of it stand; SQLite has none, and reads along the order until a page is full."""
    for page, plan in plans(question).items():
        assert (plan.read or 0) <= PAGE, (page, plan)


@pytest.mark.only("real")
def test_a_user_who_may_not_make_the_extension_is_told_what_to_do(db):
    """The migration ends there, with nothing changed."""
    migration = importlib.import_module("housing.migrations.0003_postgresql")
    with connection.cursor() as cursor:
        cursor.execute("DROP EXTENSION pg_trgm CASCADE")
        cursor.execute("CREATE ROLE housing_nobody")
        cursor.execute("SET LOCAL ROLE housing_nobody")

    with pytest.raises(CommandError, match=r"`search` needs .* pg_trgm, .*permission denied .* CREATE EXTENSION pg_trgm"), transaction.atomic():
        migration.Trigrams().database_forwards("housing", connection.schema_editor(), None, None)


NOT_PROMISED = {
    "A page of a city or an office costs the same on SQLite": "They are the location's and the agent's, no index spans two tables, and only PostgreSQL keeps "
    "a copy of them in the property (migration 0004).",
    "An agent's new office costs the same, however many properties the agent has": "PostgreSQL writes it to each of them, as it writes a location's new city.",
    "A range in another order costs the same, however many are in it": "No index has both. PostgreSQL passes by what is out of range within the index, "
    "fetching none of it, or reads and sorts what is in it, where that is little: as many entries as it takes, or as many rows.",
    "A search for one or two letters has an index": "Trigrams are of three. What is in many titles fills a page soon; for what is in none, all are read.",
    "A long search costs what a short one costs": "Each three letters of it are looked up, however many titles they are in.",
    "A search has an index on SQLite": "It reads along the order until a page is full; for what is in no property, it reads them all.",
}


# The command


@pytest.mark.only("real")
def test_make_scale_prints_what_each_question_costs():
    """In short: two questions, of a hundred properties."""
    few = "from tests import scale; scale.ASKED = {name: scale.ASKED[name] for name in ('the list', 'agent')}; scale.main()"
    ended = run("-c", few, "--properties", "100", "--times", "1")

    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert lines[0].startswith("| asked | by | ms at 1,000 | ms at 100 |")
    assert [line.split(" | ")[:2] for line in lines[2:6]] == [[f"| {name}", by] for name in ("the list", "agent") for by in ("created_at", "price")]
    assert lines[-1].startswith("100 properties seeded in ")


@pytest.mark.only("real")
def test_a_server_that_cannot_be_had_is_one_line():
    """(It brings its own stack, and takes seconds.)"""
    ended = run("-m", "tests.scale", DATABASE_URL="postgres://127.0.0.1:1/x")

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "refused" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_interrupted_measurement_is_one_line(monkeypatch):
    """The servers and the database that it made are gone by then."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(scale, "run", interrupt)
    with pytest.raises(SystemExit, match=r"Interrupted\. Nothing is left behind\."):
        scale.main([])


def run(*arguments, **environment):
    """`make scale`, in a process of its own."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)
