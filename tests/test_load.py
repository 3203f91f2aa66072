"""Many readers, and an editor. What `make load` measures on the server that is deployed, and how it tells that a read was stale."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from tests import load
from tests.load import Crowd, Edit, Report, Row, Seen, stale_reads

# Whether a read was stale


def test_a_read_that_shows_less_than_was_saved_before_it_began_is_stale():
    edit = Edit(property=1, price=10.0, saved=2.0)

    [stale] = stale_reads([edit], [Seen(began=2.5, prices={1: 9.0})])

    assert stale == load.Stale(Seen(2.5, {1: 9.0}), edit)


@pytest.mark.parametrize(
    ("began", "price"),
    [(2.5, 10.0), (2.5, 11.0), (1.5, 9.0), (2.0, 9.0)],
    ids=["what was saved", "what is being saved", "before it was saved", "at that instant"],
)
def test_a_read_that_could_not_know_better_is_not_stale(began, price):
    """A write is promised to reads that begin after it has returned; those that overlap it may see either."""
    assert stale_reads([Edit(1, 10.0, saved=2.0)], [Seen(began, {1: price})]) == []


def test_each_property_is_judged_by_its_own_prices_and_the_last_of_them():
    edits = [Edit(1, 12.0, 3.0), Edit(2, 50.0, 1.0), Edit(1, 11.0, 2.0)]
    reads = [Seen(4.0, {1: 11.0, 2: 50.0, 3: 7.0}), Seen(2.5, {1: 11.0, 2: 49.0})]

    assert [(stale.read.began, stale.edit) for stale in stale_reads(edits, reads)] == [(2.5, edits[1]), (4.0, edits[0])]
