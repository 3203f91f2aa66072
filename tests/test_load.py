"""The load test. `make load` measures the deployed server with many virtual users and a writer, and detects stale reads."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import psutil
import pytest

from tests import ROOT
from tests.measurements import load, servers
from tests.measurements.load import Read, Report, Row, Users, Write, stale_reads
from tests.stacks import TIMEOUT

# Stale reads


def test_a_read_that_shows_an_older_price_than_was_saved_before_it_began_is_stale():
    """Its response is older than its own request."""
    write = Write(property=1, price=10.0, saved=2.0)

    [stale] = stale_reads([write], [Read(began=2.5, prices={1: 9.0})])

    assert stale == load.Stale(Read(2.5, {1: 9.0}), write)


@pytest.mark.parametrize(
    ("began", "price"),
    [(2.5, 10.0), (2.5, 11.0), (1.5, 9.0), (2.0, 9.0)],
    ids=["the saved price", "a price that is being saved", "a read before the write", "a read at the instant of the write"],
)
def test_a_read_that_overlaps_a_write_may_show_either_price(began, price):
    """A write is promised to reads that begin after it has returned."""
    assert stale_reads([Write(1, 10.0, saved=2.0)], [Read(began, {1: price})]) == []


def test_each_read_is_compared_with_the_latest_price_of_the_same_property():
    """One response can be fresh for one property and stale for another."""
    writes = [Write(1, 12.0, 3.0), Write(2, 50.0, 1.0), Write(1, 11.0, 2.0)]
    reads = [Read(4.0, {1: 11.0, 2: 50.0, 3: 7.0}), Read(2.5, {1: 11.0, 2: 49.0})]

    assert [(stale.read.began, stale.write) for stale in stale_reads(writes, reads)] == [(2.5, writes[1]), (4.0, writes[0])]


def test_a_read_is_only_compared_if_it_began_after_a_write_of_a_property_that_it_shows():
    """Otherwise a page that lost the written properties would look as if it were fresh."""
    writes = [Write(1, 10.0, 2.0), Write(1, 11.0, 3.0)]
    reads = [Read(1.5, {1: 9.0}), Read(2.0, {1: 9.0}), Read(2.5, {1: 10.0, 2: 5.0}), Read(9.0, {2: 5.0}), Read(9.0, {})]

    assert load.compared(writes, reads) == [reads[2]]


# The results


REPORT = Report([3.0, 1.0, 2.0, 10.0], failures={}, seconds=2.0, reads=[Read(0.5, {7: 1.25})])


def test_a_report_is_the_same_after_json():
    """The virtual users run in another process, which prints its report as JSON."""
    assert Report.parse(REPORT.text().encode()) == REPORT


@pytest.mark.parametrize(("percent", "milliseconds"), [(1, 1.0), (50, 2.0), (75, 3.0), (95, 10.0), (100, 10.0)])
def test_a_percentile_uses_the_nearest_rank(percent, milliseconds):
    """It is a measured time and not interpolated."""
    assert REPORT.percentile(percent) == milliseconds


def test_the_table_and_the_plot_have_a_row_for_every_load_test():
    """No result is left out of either."""
    rows = [Row.of("warm, 10 users", REPORT), Row.of("naive, 50 users, 1 s pause", REPORT, "naive")]

    for output in (load.table(rows), load.plot(rows)):
        assert all(row.name in output for row in rows)
    assert load.table(rows).splitlines()[1].split()[-5:] == ["2.0", "2.0", "10.0", "10.0", "0"]
    assert load.plot(rows).count('class="beat"') == 1


@pytest.mark.parametrize(
    ("writes", "reads", "stale", "failed", "kept"),
    [(1, 1, 0, {}, True), (0, 1, 0, {}, False), (1, 0, 0, {}, False), (1, 1, 1, {}, False), (1, 1, 0, {"status 503": 7}, False)],
    ids=["kept", "no write", "no read", "a stale read", "a failed read"],
)
def test_the_promise_only_counts_as_kept_if_there_were_reads_and_writes(writes, reads, stale, failed, kept):
    """A run without writes cannot find a stale read."""
    broken = load.Stale(Read(2.0015, {7: 9.0}), Write(7, 10.0, 2.0))
    found = load.Found([Row.of("warm", Report([1.0], failed, 1.0, []))], [57.2], writes, reads, [broken] * stale)

    assert found.kept is kept
    assert found.summary()[0] == "Memory of a worker: 57 MB."
    assert (
        found.summary()[2:]
        == [f"warm: {number} reads failed with {why}." for why, number in failed.items()]
        + ["Property 7 was shown at 9.00, 1.5 ms after 10.00 had been saved."] * stale
    )


# Servers compared

WRK = """\
Running 1s test @ http://127.0.0.1:8000/
  Latency Distribution
     50%  850.00us
     99%    1.20s
  2000 requests in 1.00s, 20.00MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:   1998.50
"""


def test_the_output_of_wrk_is_read_with_its_units_and_all_failures():
    """A server that refuses half of the requests would look fast."""
    assert servers.Row.of(WRK) == servers.Row(answered=2000, per_second=1998.5, p50=0.85, p99=1200.0, failed=15)


def test_servers_are_compared_within_each_round():
    """The machine may be slower in the next one."""
    rows = {speed: servers.Row(0, speed, 0, 0, 0) for speed in (10.0, 20.0, 40.0)}
    found = {("hit", "a", 1): [rows[10.0], rows[40.0]], ("get", "b", 1): [rows[20.0], rows[40.0]]}

    assert servers.ratios(found, ("hit", "a"), ("get", "b"), 1) == [0.5, 1.0]
    assert servers.span([0.5, 1.0]) == "0.75 (0.50–1.00)"


def test_a_target_is_missed_if_the_median_is_below_it_with_any_number_of_connections():
    """The range of all rounds stands beside it, so a reader sees how much the machine varied."""
    [_, kind, server, least], *_ = servers.TARGETS
    found = {}
    for _, other, on, _ in servers.TARGETS:
        for connections in servers.CONNECTIONS:
            found[servers.HIT, "granian", connections] = [servers.Row(0, 100.0, 0, 0, 0)] * 3
            found[other, on, connections] = [servers.Row(0, speed, 0, 0, 0) for speed in (20.0, 25.0, 50.0)]
    header, *lines = [*servers.targets(found)][: 1 + len(servers.TARGETS)]
    assert [line.endswith("  reached") for line in lines] == [True] * len(servers.TARGETS)
    assert header.split()[-4:] == ["1", "10", "50", "target"]
    assert "4.00 (2.00–5.00)" in lines[0]

    found[kind, server, 50] = [servers.Row(0, 101.0 / least, 0, 0, 0)]
    found[servers.HIT, "granian", 50] = [servers.Row(0, 100.0, 0, 0, 0)]
    assert next(line for line in servers.targets(found) if f"≥ {least:g}" in line).endswith("  1 MISSED")


# The servers


@pytest.mark.only("real")
def test_no_read_is_stale_while_a_writer_changes_prices(tmp_path):
    """A short run of `make load`: gunicorn as it is deployed, real servers, and virtual users and a writer in separate processes."""
    command = f"from pathlib import Path; from tests.measurements import load; load.REPORTS = Path({str(tmp_path / 'reports')!r}); load.main()"
    ended = run("-c", command, "--seconds", "5", "--users", "5", "--properties", "200")

    assert (ended.returncode, ended.stdout.rpartition("Stale reads: ")[2]) == (0, "0.\n"), ended.stderr
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {"load.json", "load.svg"}


def test_a_server_that_does_not_start_is_reported_with_its_last_line(tmp_path):
    """The load test does not wait for it any longer."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {"DATABASE_URL": "oracle://x"}

    with ExitStack() as running, pytest.raises(load.Failed, match="gunicorn exited: "):
        load.serve(running, "127.0.0.1:0", environment)


@pytest.mark.only("real")
def test_a_load_test_without_responses_has_no_result():
    """A row of zeros would look like a very fast service. (It needs neither stack, and takes seconds.)"""
    unreachable = load.Service("http://127.0.0.1:1", dict(os.environ), psutil.Process())

    with pytest.raises(load.Failed, match=r"warm: no user got a response, and [1-9]\d* reads failed\."):
        unreachable.read("warm", Users("/", 1, 0.1, 0.2))


@pytest.mark.parametrize(("code", "message"), [("raise SystemExit('Not now.')", "Not now."), ("raise SystemExit(3)", "A process exited with 3.")])
def test_a_process_that_fails_is_reported_with_its_last_line(code, message):
    """The last line of a traceback names the error."""
    with pytest.raises(load.Failed, match=message):
        load.in_a_process([sys.executable, "-c", code], None, dict(os.environ))


@pytest.mark.parametrize(("error", "message"), [(KeyboardInterrupt(), "Interrupted. Nothing is left behind."), (load.Failed("No\n engine."), "No engine.")])
def test_an_error_of_the_load_test_is_one_line(monkeypatch, error, message):
    """Missing servers and Ctrl-C are no reason for a traceback."""

    def fail(options):
        raise error

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(load, "measure", fail)
    with pytest.raises(SystemExit) as ended:
        load.main([])
    assert ended.value.code == message


SABOTAGED = """
from housing.freshness.journal import Journal, Lease
from tests.measurements import load, servers
Journal.lease = lambda self, tags, *_: Lease("none", tuple(tags))
Journal.close = lambda self, lease, late: Journal.withdraw(self, lease)
load.main()
"""


@pytest.mark.only("real")
def test_a_writer_that_leaves_no_record_is_detected(monkeypatch):
    """The absence of stale reads only means something if the load test can detect one. The writer opens no lease, so that on a slow machine, too, a page
    is stored between two of its writes.
    """
    monkeypatch.setattr(load, "WRITER", [sys.executable, "-c", SABOTAGED, "--write"])
    with ExitStack() as running:
        service = load.start(running, 100)
        writes, report = load.change_prices(service, "sabotaged", Users(load.PATHS["warm"], 5, 0.01, 2, service.newest()))

    began = [read.began for read in report.reads]
    assert writes[0].saved < min(began) < max(began) < writes[-1].saved, "the writer did not write during all reads"
    assert stale_reads(writes, report.reads)


def run(*arguments, **environment):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
