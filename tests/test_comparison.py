"""Commands for operators while something is in their way: the database is unreachable, or writes race the comparison."""

import itertools
from dataclasses import replace

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django_redis import get_redis_connection

from housing.freshness import comparison, operations, watchman
from housing.freshness.journal import journal
from housing.freshness.tracking import tables
from housing.models import Property
from tests.fixtures.cache import entries


def test_a_comparison_without_the_database_ends_with_one_line(home, warm, database_unreachable):
    """An operator needs the error of the database, and no traceback."""
    warm()
    with database_unreachable(), pytest.raises(CommandError, match=r"^Database error: "):
        call_command("cache", "verify")


def test_a_comparison_that_writes_race_every_time_is_no_finding(home, warm, read, reprice, elsewhere):
    """It is repeated a few times. Then the entry is reported as changed, and not as stale."""
    warm()
    key, prices = entries()[0].decode(), itertools.count(1)

    def write_and_read():
        reprice(next(prices))
        assert read("cached").came_from == "fwd=stale; stored"

    def race(execute, sql, *rest):
        if "housing_property" in sql:
            elsewhere(write_and_read)
        return execute(sql, *rest)

    with connection.execute_wrapper(race):
        compared = comparison.compare(key)
    assert next(prices) == 1 + comparison.ATTEMPTS
    assert compared == comparison.Compared(key, "changed", "writes raced each comparison", journal.inspect(key).address)


@pytest.mark.parametrize("outcome", comparison.OUTCOMES)
def test_verify_fails_if_no_entry_could_be_compared(home, warm, monkeypatch, outcome):
    """In CI, a success that compared nothing would prove nothing. A stale entry fails, too."""
    warm()
    monkeypatch.setattr(comparison, "_compare", lambda key, seen: comparison.Compared(key, outcome))
    if outcome in ("equal", "not served"):
        call_command("cache", "verify")
    else:
        with pytest.raises(CommandError, match=rf"^1 entry: 1 {outcome}\.$"):
            call_command("cache", "verify")


def test_an_entry_whose_journal_changes_during_its_comparison_is_unknown(home, warm, tamper_with_the_entry, monkeypatch):
    """Without a verification, a write in between looks like a stale entry."""
    warm()
    tamper_with_the_entry()
    key = entries()[0].decode()
    monkeypatch.setattr(watchman, "verify", lambda *_, **__: False)
    assert comparison.compare(key).outcome == "unknown"


def test_an_entry_without_an_address_is_unknown(home, warm):
    """Nothing says how to read it from the database."""
    warm()
    key = entries()[0].decode()
    get_redis_connection("default").hset(key, "address", "")
    assert comparison.compare(key).outcome == "unknown"


def test_without_the_database_a_row_is_invalidated_with_its_whole_table(home, database_unreachable):
    """The rows to which it refers are not known."""
    with database_unreachable():
        assert operations.tags_of_row(Property, home.pk) is None


@pytest.mark.parametrize("lacking", [{"references": {}}, {"pk_text": None}], ids=["references", "primary key"])
def test_a_row_whose_keys_have_no_tags_is_invalidated_with_its_whole_table(home, monkeypatch, lacking):
    """A key of another type has no text that is the same everywhere."""
    table = tables()["housing_property"]
    monkeypatch.setattr(operations, "tables", lambda: tables() | {"housing_property": replace(table, **lacking)})
    assert operations.tags_of_row(Property, home.pk) is None
