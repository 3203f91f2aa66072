"""The failure of a spec of the cache. It shows the write, the page, the values, the tags and the lines, so that nobody has to search for them.

Each spec here breaks the service, fails on purpose, and reads the message as somebody would who has not read the code.
"""

import re

import pytest
from django.db import transaction

from conftest import ROOT
from housing.freshness import connection
from housing.freshness.journal import journal
from housing.models import Property


@pytest.fixture
def message(request):
    """`message(fail)`: the lines that the failure of `fail` adds to pytest's own. Each `promised`, `happened`, … begins one."""

    def message(fail):
        call = pytest.CallInfo.from_call(fail, when="call")
        assert call.excinfo is not None, "it did not fail"
        report = request.node.ihook.pytest_runtest_makereport(item=request.node, call=call)
        return [line.strip() for line in report.longreprtext.partition("promised: ")[2].splitlines()]

    return message


def here(text):
    """How a failure shows the only line of this file that contains this text."""
    lines = (ROOT / "tests/test_failures.py").read_text(encoding="utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if text in line and "here(" not in line and "value " not in line]
    return f"tests/test_failures.py:{number}  {lines[number - 1].strip()}"


def drop(monkeypatch, wanted):
    """Break the service: only the tags that are `wanted` reach the journal."""
    tag = connection.ConnectionMixin.tag
    monkeypatch.setattr(connection.ConnectionMixin, "tag", lambda self, table, tags, change=None: tag(self, table, set(filter(wanted, tags)), change))


def test_the_failure_for_a_stale_page_shows_write_page_values_tags_and_lines(home, warm, read, monkeypatch, message):
    """The write does not tag its row, so the message shows a write and an entry without a tag in common."""
    drop(monkeypatch, lambda tag: not tag.endswith(f":{home.pk}"))
    warm("cached?page_size=1")

    def fail():
        Property.objects.filter(pk=home.pk).update(price=7)
        assert read("cached?page_size=1").rows[0]["price"] == "7.00"

    lines = message(fail)

    served = lines.index("page    GET /api/properties/cached/?page_size=1: 200, Cache-Status: housing; hit")
    assert lines[served + 1] == "read at " + here('"7.00"')
    assert lines[served + 2] == 'value   results[0].price: "300000.00" was served, "7.00" is in the database'
    [entry] = [line for line in lines if line.startswith("entry   has the tags: ")]
    assert f"housing_property:{home.pk}, " in entry
    written = lines.index(f"""write   UPDATE "housing_property" SET "price" = '7' WHERE "housing_property"."id" = {home.pk}""")
    assert lines[written + 1 : written + 4] == [
        f"sent at {here('update(price=7)')}",
        "COMMIT, with the tags: housing_property, housing_property.price",
        "of these the entry has: none",
    ]
    assert lines[-2].startswith("to do:    the write and the entry have no tag in common, so the write did not make the entry stale. Find the missing tag")


def test_the_failure_for_a_write_without_a_lease_says_so(home, warm, read, monkeypatch, message):
    """A transaction that lost its tags with a savepoint, for example, never opens a lease."""
    warm()
    monkeypatch.setattr(connection.ConnectionMixin, "uncommitted", False)

    def fail():
        with transaction.atomic():
            home.save()
            with transaction.atomic():
                transaction.set_rollback(True)
        assert read("cached").came_from == "fwd=stale; stored"

    lines = message(fail)

    assert any(line.startswith("write   ROLLBACK TO SAVEPOINT ") for line in lines)
    assert "COMMIT, with the tags: none, because no lease was opened" in lines
    assert lines[-2].startswith("to do:    no write opened a lease, so the journal in Redis knows of none.")


def test_the_failure_for_a_stale_entry_that_was_trusted_names_the_tags_in_common(home, warm, read, monkeypatch, message):
    """The write was tagged well, so the fault is in the comparison. A missing tag need not be searched for."""
    warm()
    monkeypatch.setattr(journal, "close", journal.withdraw)

    def fail():
        home.price = 7
        home.save(update_fields=["price"])
        assert read("cached").came_from == "fwd=stale; stored"

    lines = message(fail)

    assert f"of these the entry has: housing_property:{home.pk}" in lines
    assert lines[-2].startswith("to do:    a write touched tags of the entry, but the entry counted as fresh.")


@pytest.mark.parametrize("broken", [False, True], ids=["it touched a tag", "it touched none"])
def test_the_failure_for_an_over_invalidated_page_says_which_tag_the_write_touched(home, warm, read, monkeypatch, message, broken):
    """No page shows the hash, so a write of it changes no bytes. If it touched no tag of the entry, something else made the entry stale."""
    warm()

    def fail():
        if broken:
            journal.begin()
        Property.objects.filter(pk=home.pk if not broken else 0).update(record_hash="another")
        assert read("cached").came_from == "hit"

    lines = message(fail)

    assert "value   the bytes are the same as before, so the entry could have stayed warm" in lines
    assert (f"of these the entry has: housing_property:{home.pk}" in lines) is not broken
    advice = (
        "no write touched a tag of the entry, but the entry counted as stale."
        if broken
        else "a write touched tags of the entry, but the page has the same bytes."
    )
    assert lines[-2].startswith(f"to do:    {advice}")


def test_the_failure_for_a_response_that_was_not_stored_explains_the_detail(home, read, message):
    """The open lease is among the steps, with the line that opened it."""

    def fail():
        journal.lease({f"housing_property:{home.pk}"})
        assert read("cached").came_from == "hit"

    lines = message(fail)

    assert "value   the response was not stored: leased" in lines
    assert re.sub(" +", " ", "\n".join(lines)).count(f"lease {here('lease({f')}".replace("  ", " ")) == 1
    assert lines[-2].startswith("to do:    the detail in Cache-Status says why: leased (the lease of a COMMIT on one of its tags was open)")


def test_the_failure_for_a_page_that_is_right_now_shows_the_steps(home, read, message):
    """The expectation may be wrong, or an earlier response was."""

    def fail():
        assert read("cached").came_from == "fwd=miss; stored"
        assert read("cached").came_from == "hit"
        assert read("cached").came_from == "fwd=stale; stored"

    lines = message(fail)

    assert [re.sub(r"  +.*", "", line) for line in lines if line.startswith("GET ")] == [
        f"GET /api/properties/cached/: 200, Cache-Status: housing; {status}" for status in ("fwd=miss; stored", "hit", "hit")
    ]
    assert lines[-2].startswith("to do:    no page is wrong now.")


def test_a_page_that_cannot_be_read_again_does_not_hide_the_failure(home, read, message, monkeypatch):
    """The database may be what is broken."""
    monkeypatch.setattr("tests.failures.read_again", lambda step: 1 / 0)

    def fail():
        assert read("cached").came_from == "hit"

    assert "It could not be read again, so it is not compared with the database: ZeroDivisionError('division by zero')" in message(fail)


def test_a_failure_without_a_cached_page_gets_no_explanation(home, read, message):
    """There is nothing to explain about the cache."""

    def fail():
        assert read("optimized").status == 201

    assert message(fail) == []
