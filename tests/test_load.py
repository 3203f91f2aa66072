"""Many readers, and an editor. What `make load` measures on the server that is deployed, and how it tells that a read was stale."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import psutil
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


# What is measured


REPORT = Report([3.0, 1.0, 2.0, 10.0], failed=0, seconds=2.0, seen=[Seen(0.5, {7: 1.25})])


def test_a_report_survives_the_way_out_of_its_process():
    assert Report.parse(REPORT.text().encode()) == REPORT


@pytest.mark.parametrize(("hundredths", "milliseconds"), [(1, 1.0), (50, 2.0), (75, 3.0), (95, 10.0), (100, 10.0)])
def test_a_percentile_is_a_time_that_was_measured(hundredths, milliseconds):
    """Of a hundred reads so many took no longer: nearest rank, nothing interpolated."""
    assert REPORT.percentile(hundredths) == milliseconds


def test_the_table_and_the_plot_name_every_crowd():
    rows = [Row.of("warm, 10 at once", REPORT), Row.of("naive, 50 a second apart", REPORT, "naive")]

    for told in (load.table(rows), load.plot(rows)):
        assert all(row.name in told for row in rows)
    assert load.table(rows).splitlines()[1].split()[-5:] == ["2.0", "2.0", "10.0", "10.0", "0"]
    assert load.plot(rows).count('class="beat"') == 1


@pytest.mark.parametrize(
    ("edits", "reads", "stale", "failed", "kept"),
    [(1, 1, 0, 0, True), (0, 1, 0, 0, False), (1, 0, 0, 0, False), (1, 1, 1, 0, False), (1, 1, 0, 1, False)],
    ids=["kept", "nothing was written", "nothing was read", "stale", "failed"],
)
def test_a_promise_is_kept_only_where_it_was_put_to_the_test(edits, reads, stale, failed, kept):
    broken = load.Stale(Seen(2.0015, {7: 9.0}), Edit(7, 10.0, 2.0))
    found = load.Found([Row.of("warm", Report([1.0], failed, 1.0, []))], [57.2], edits, reads, [broken] * stale)

    assert found.kept is kept
    assert found.said()[0] == "Memory of a worker: 57 MB."
    assert found.said()[2:] == ["Property 7 was shown at 9.00, 1.5 ms after 10.00 had been saved."] * stale


# The servers


@pytest.mark.only("real")
def test_no_read_is_stale_while_an_editor_changes_prices(tmp_path):
    """The whole of `make load`, in short: gunicorn as it is deployed, real servers, readers and an editor in processes of their own."""
    command = f"from pathlib import Path; from tests import load; load.REPORTS = Path({str(tmp_path / 'reports')!r}); load.main()"
    ended = run("-c", command, "--seconds", "5", "--users", "5", "--properties", "200")

    assert (ended.returncode, ended.stdout.rpartition("Stale reads: ")[2]) == (0, "0.\n"), ended.stderr
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {"load.json", "load.svg"}


def test_a_server_that_does_not_come_up_says_why(tmp_path):
    """What gunicorn said last, and not a wait without end."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {"DATABASE_URL": "oracle://x"}

    with ExitStack() as servers, pytest.raises(load.Failed, match="gunicorn ended: "):
        load.serve(servers, "127.0.0.1:0", environment)


@pytest.mark.only("real")
def test_a_crowd_that_nobody_answers_is_no_figure():
    """(It needs neither stack, and takes seconds.)"""
    nobody = load.Service("http://127.0.0.1:1", dict(os.environ), psutil.Process())

    with pytest.raises(load.Failed, match=r"warm: nobody was answered, and [1-9]\d* reads failed."):
        nobody.read("warm", Crowd("/", 1, 0.1, 0.2))


@pytest.mark.parametrize(("code", "said"), [("raise SystemExit('Not now.')", "Not now."), ("raise SystemExit(3)", "A process ended with 3.")])
def test_a_process_that_fails_is_told_by_its_last_line(code, said):
    with pytest.raises(load.Failed, match=said):
        load.in_a_process([sys.executable, "-c", code], None, dict(os.environ))


@pytest.mark.parametrize(("why", "said"), [(KeyboardInterrupt(), "Interrupted. Nothing is left behind."), (load.Failed("No\n engine."), "No engine.")])
def test_what_prevents_the_metrics_is_one_line(monkeypatch, why, said):
    def fail(options):
        raise why

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(load, "measure", fail)
    with pytest.raises(SystemExit) as ended:
        load.main([])
    assert ended.value.code == said


SABOTAGED = """
from housing.freshness.journal import Journal
from tests import load
Journal.close = Journal.withdraw
load.main()
"""


@pytest.mark.only("real")
def test_an_editor_who_leaves_no_record_is_found_out(monkeypatch):
    """That there was no stale read means something only if there could have been one."""
    monkeypatch.setattr(load, "EDITOR", [sys.executable, "-c", SABOTAGED, "--editor"])
    with ExitStack() as servers:
        service = load.start(servers, 100)
        edits, report = load.change_prices(service, "sabotaged", Crowd(load.PATHS["warm"], 5, 0.01, 2, service.newest()))

    began = [seen.began for seen in report.seen]
    assert edits[0].saved < min(began) < max(began) < edits[-1].saved, "nobody wrote while they read"
    assert stale_reads(edits, report.seen)


def run(*arguments, **environment):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)
