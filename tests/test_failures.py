"""Failures and races. A failed spec of the cache shows the write, the page, the values, the tags and the lines. SPEC.md shows the steps of each race.

The first specs break the service and fail on purpose.
"""

import re
from collections import deque

import pytest
from django.db import transaction

from housing.freshness import connection
from housing.freshness.journal import journal
from housing.models import Property
from tests import ROOT, spec
from tests.fixtures import failures, trace
from tests.fixtures.trace import TRACE


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
    monkeypatch.setattr(connection.ConnectionMixin, "tag", lambda self, table, tags, *more: tag(self, table, set(filter(wanted, tags)), *more[:1]))


def test_the_failure_for_a_stale_page_shows_write_page_values_tags_and_lines(home, warm, read, monkeypatch, message):
    """The write does not tag its row, so the message shows a write and an entry without a tag in common."""
    drop(monkeypatch, lambda tag: not tag.endswith(f":{home.pk}") and "=" not in tag)
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


def test_a_failure_shows_a_few_of_many_differences(home, warm, read, monkeypatch, message):
    """A page of twenty has hundreds of values."""
    drop(monkeypatch, lambda tag: False)
    warm()

    def fail():
        Property.objects.update(price=8)
        assert read("cached").rows[0]["price"] == "8.00"

    lines = message(fail)

    assert len([line for line in lines if line.startswith("value ")]) == failures.SHOWN
    assert f"and {20 - failures.SHOWN} more differences" in lines


def test_a_step_that_no_spec_took_has_no_line():
    """A server's thread, for example, reads without a spec below it."""
    assert trace.Step(None, None, "GET /").line == "outside the specs"


def test_the_failure_for_a_stale_entry_that_was_trusted_names_the_tags_in_common(home, warm, read, monkeypatch, message):
    """The write was tagged well, so the fault is in the comparison. A missing tag need not be searched for."""
    warm()
    monkeypatch.setattr(journal, "close", lambda lease, late: journal.withdraw(lease))

    def fail():
        home.price = 7
        home.save(update_fields=["price"])
        assert read("cached").came_from == "fwd=stale; stored"

    lines = message(fail)

    assert f"of these the entry has: housing_property:{home.pk}" in lines
    assert lines[-2].startswith("to do:    a write touched tags of the entry, but the entry counted as fresh.")


@pytest.mark.parametrize("broken", [False, True], ids=["it touched a tag", "it touched none"])
def test_the_failure_for_an_over_invalidated_page_says_which_tag_the_write_touched(home, warm, read, monkeypatch, message, broken):
    """No page shows the hash, so a write of it changes no bytes. If it touched no tag of the entry, there is another reason."""
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
    monkeypatch.setattr("tests.fixtures.failures.read_again", lambda step: 1 / 0)

    def fail():
        assert read("cached").came_from == "hit"

    assert "It could not be read again, so it is not compared with the database: ZeroDivisionError('division by zero')" in message(fail)


def test_a_failure_without_a_cached_page_gets_no_explanation(home, read, message):
    """There is nothing to explain about the cache."""

    def fail():
        assert read("optimized").status == 201

    assert message(fail) == []


# The steps of a race in SPEC.md


@pytest.fixture
def steps_file(monkeypatch, tmp_path):
    """An empty file of steps."""
    monkeypatch.setattr(trace, "STEPS", tmp_path / "steps.json")


def test_the_steps_of_a_race_are_recorded_while_it_runs(home, reprice, read, meanwhile, request):
    """SPEC.md cannot show other steps than those that ran, because nobody writes them by hand."""
    with meanwhile(lambda: reprice(1)):
        read("cached")

    reads = "SELECT … FROM housing_property, " * {"postgresql": 1, "sqlite": 2}[connection.ours().vendor]  # SQLite reads the old values first
    assert trace.lines_of(request.node.stash[TRACE]) == [
        "T1  lookup: miss, SELECT … FROM housing_property",
        f"T2  {reads}UPDATE housing_property SET price, lease, COMMIT, close",
        "T1  store: raced, lookup: miss, SELECT … FROM housing_property, store: stored",
    ]


def test_a_reader_that_a_spec_plays_by_itself_is_a_process_too(home, request):
    """A miss and its store belong together, and so do a lease and its close."""
    miss, lease = journal.lookup("page"), journal.lease({"t"})
    journal.close(lease)
    journal.store("page", miss, {"t"}, '"1"', b"1")

    assert trace.lines_of(request.node.stash[TRACE]) == ["T1  lookup: miss", "T2  lease, close", "T1  store: raced"]


def test_a_lease_that_a_spec_opens_by_itself_is_no_part_of_what_its_fixtures_read(home, request):
    """The processes of a race would otherwise depend on the last statement of a fixture."""
    home.refresh_from_db()
    request.node.stash[TRACE].begin()
    for tag in ("t", "u"):
        journal.close(journal.lease({tag}))

    assert trace.lines_of(request.node.stash[TRACE]) == ["T1  lease, close", "T2  lease, close"]


class WriteOnly(deque):
    """A deque that cannot be read, like one to which another thread appends at this moment."""

    __iter__ = __reversed__ = None


def test_no_step_is_recorded_by_reading_the_others(home, reprice, read, monkeypatch, request):
    """The spec may run further threads, which add steps meanwhile."""
    recording = request.node.stash[TRACE]
    with monkeypatch.context() as patch:
        patch.setattr(recording, "steps", WriteOnly())
        reprice(1)
        read("cached")
        miss, lease = journal.lookup("page"), journal.lease({"t"})
        journal.close(lease)
        journal.store("page", miss, {"t"}, '"1"', b"1")

        assert len(recording.steps) > 8


def test_a_spec_with_one_process_shows_no_steps(home, reprice, read, request):
    """It is no race."""
    reprice(1)
    read("cached")

    assert trace.lines_of(request.node.stash[TRACE]) == []


def test_equal_steps_of_many_processes_and_repeated_steps_are_one_line():
    """Fifty readers would otherwise be fifty lines."""
    steps = [*((number, number, "lookup: filling") for number in (3, 2, 4)), *[(1, 1, "lookup: miss")] * 3, (2, 2, "lease"), (2, 2, "close")]

    assert trace.joined(steps) == ["T2 to T4  lookup: filling", "T1  lookup: miss (3 times)", "T2  lease, close"]


def test_other_steps_than_those_in_spec_md_are_reported(steps_file):
    """The error shows both, and says how to accept the new steps."""
    trace.renew("test_a", ["T1  lease", "T2  lookup: miss"])

    trace.compare("test_a", ["T1  lease", "T2  lookup: miss"])
    with pytest.raises(pytest.fail.Exception) as raised:
        trace.compare("test_a", ["T2  lookup: miss", "T1  lease"])

    assert str(raised.value).splitlines() == [
        "promised: the steps in SPEC.md",
        "  T1  lease",
        "  T2  lookup: miss",
        "happened:",
        "  T2  lookup: miss",
        "  T1  lease",
        "to do:    check that the new steps are right. If they are, run `make steps`, which writes them into tests/fixtures/steps.json and SPEC.md.",
    ]


def test_steps_of_a_spec_that_is_no_race_any_longer_are_removed(steps_file):
    """SPEC.md would otherwise show them for ever."""
    trace.renew("test_a", ["T1  lease", "T2  lookup: miss"])
    trace.renew("test_a", [])

    assert trace.recorded() == {}


def test_examples_with_different_steps_are_shown_one_by_one():
    """Examples with equal steps share them."""
    recorded = {"test_a[list]": ["T1  x"], "test_a[detail]": ["T1  y"], "test_a[head]": ["T1  x"], "test_b": ["T1  z"]}

    assert spec.steps_of("test_a", recorded) == ("With list or head:", "T1  x", "", "With detail:", "T1  y")
    assert spec.steps_of("test_b", recorded) == ("T1  z",)
    assert spec.steps_of("test_c", recorded) == ()


def test_every_recorded_race_is_a_spec_of_a_chapter_of_races():
    """A renamed spec would leave its old steps behind."""
    names = {name for chapter in trace.RACES for name in re.findall(r"^def (test_\w+)", (ROOT / f"tests/test_{chapter}.py").read_text(encoding="utf-8"), re.M)}

    assert {name.partition("[")[0] for name in trace.recorded()} <= names


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ('SELECT "a", "b" FROM "t" INNER JOIN "u"', "SELECT … FROM t"),
        ("SELECT 1", "SELECT …"),
        ('UPDATE "t" SET "a" = %s WHERE "b" = %s', "UPDATE t SET a"),
        ('UPDATE "t" SET "a" = %s, "b" = %s', "UPDATE t SET …"),
        ('INSERT INTO "t" ("a") VALUES (%s)', "INSERT INTO t"),
        ('DELETE FROM "t" WHERE "a" = %s', "DELETE FROM t"),
        ('ROLLBACK TO SAVEPOINT "s1"', "ROLLBACK TO SAVEPOINT"),
        ("COMMIT", "COMMIT"),
        ("", ""),
    ],
)
def test_a_statement_is_shown_without_its_values(sql, shown):
    """A race is about tables and columns."""
    assert trace.short(sql) == shown


def test_a_failure_shows_a_statement_with_its_values():
    """A long one is cut."""
    assert trace.with_values("UPDATE t SET a = %s, b = %s", [1, "x"]) == "UPDATE t SET a = 1, b = 'x'"
    assert trace.with_values("SELECT %s", None) == "SELECT %s"
    assert trace.with_values("SELECT 12345", (), limit=8) == "SELECT 1 …"


def test_rows_that_appear_and_disappear_are_counted():
    """A list of another length has no rows that could be compared one by one."""
    assert list(failures.differences({"results": [1, 2]}, {"results": [1]})) == ["results: 2 rows were served, 1 are in the database"]
    assert list(failures.differences([{"a": 1}], [{"b": 1}])) == ['[0]: {"a": 1} was served, {"b": 1} is in the database']


def test_many_tags_of_one_table_are_put_together():
    """A page of twenty has eighty of them."""
    assert failures.tags_in_words({f"t:{number}" for number in range(1, 21)} | {"t:*", "t.a"}) == "t.a, t:1 to t:20 (20 tags), t:*"
    assert failures.tags_in_words({"t:1", "t:2"}) == "t:1, t:2"
    assert failures.tags_in_words(()) == "none"
