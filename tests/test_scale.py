"""How many properties there are does not matter. A page is read along an index to where it stands, at a million as at a thousand.

Plans are those of the very SQL that a page is read by: every filter, in every order, the first page and one from the middle, forward and backward.
On PostgreSQL they are chosen by statistics, so there are 20,000 properties to choose for; SQLite, of which nobody asked any, chooses by the indexes alone.
"""

import re
import signal
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from django.core.management.color import no_style
from django.db import connection, migrations
from django.db.migrations.loader import MigrationLoader

from conftest import ROOT
from housing.models import Agent, Location, Office, Property, PropertyImage
from tests import scale
from tests.scale import ASKED, ORDERS, plan_of, questions

pytestmark = pytest.mark.django_db

MODELS = (Office, Agent, Location, Property, PropertyImage)

PAGE = 21
"""Rows of a page of 20: one more tells whether there is a next."""

STANDS = [name for name in ASKED if name.split(",")[0] in ("the list", "status", "property_type", "agent", "min_price", "max_price")]
"""What is answered from one place of one index."""


@pytest.fixture(scope="module")
def many_properties(django_db_setup, django_db_blocker):
    """As many as it takes for a planner to choose as it does for a million."""
    with django_db_blocker.unblock():
        call_command("seed", properties=20_000 if connection.vendor == "postgresql" else 1_000, verbosity=0)
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


@pytest.mark.parametrize("question", [name for name in STANDS if "price" not in name])
def test_a_page_by_an_equal_value_is_read_where_it_stands(plans, question):
    """However frequent the value is, or rare: an index begins with it, goes on with the order, and ends with the id."""
    for page, plan in plans(question).items():
        assert (plan.walked, plan.sorted <= PAGE, (plan.read or 0) <= PAGE) == (False, True, True), (page, plan)


@pytest.mark.parametrize("question", [name for name in STANDS if "price" in name])
def test_a_page_by_price_within_prices_is_read_where_it_stands(plans, question):
    for page, plan in plans(question, "price", "-price").items():
        assert (plan.walked, plan.sorted <= PAGE, (plan.read or 0) <= PAGE) == (False, True, True), (page, plan)


@pytest.mark.parametrize("question", [name for name in ASKED if name != "search, two letters"])
def test_no_question_reads_all_properties(plans, question):
    """The others are answered along the order, stopping at a full page, or by an index of what is asked, sorting what it gives."""
    for page, plan in plans(question).items():
        assert not plan.walked, (page, plan)
