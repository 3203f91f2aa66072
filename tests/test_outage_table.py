"""Each fault of Redis, of PostgreSQL and of the network between them and the service: what a hundred reads lose, whether writes succeed, and how old a
response may be. The service runs as it is deployed: gunicorn with two processes of four threads.

[docs/faults.md](docs/faults.md) has the table. (Real only: embedded servers have no process and no network.)
"""

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fixtures.faults import FAULTS
from tests.fixtures.processes import clean
from tests.measurements import faults


def others_of_this_run():
    """The processes of the other workers of xdist, and those that they started. There are none without xdist."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid for pid, parent in parents.items() if parent == os.getppid() and pid != os.getpid() and "PYTEST_XDIST_WORKER" in os.environ}
    for _ in range(4):  # a worker's server has processes of its own
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


@pytest.fixture
def before_the_other_specs():
    """The specs of the other workers get only what is left of the processors. Otherwise a read of the table may wait for them for a quarter of a second."""
    for pid in others_of_this_run():
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 10)


@pytest.mark.slow
@pytest.mark.only("real")
def test_reads_are_answered_and_never_older_than_the_bound_during_and_after_each_fault(before_the_other_specs):
    """Only the first reads wait. Without Redis each read has a page, and each write succeeds. (Real only: embedded servers have no process and no network.)"""
    results = faults.measure_all(FAULTS)
    print(faults.table(results))  # noqa: T201  # for a reader of a failure
    assert {result.fault.name: result.broken() for result in results if result.broken()} == {}


def test_the_table_has_the_current_promises():
    """`make faults` writes it, with a measured value in bold where a promise is broken."""
    rows = [faults.row([fault.name, *faults.promised(fault.promise)]) for fault in FAULTS]
    assert faults.DOCUMENT.read_text(encoding="utf-8") == faults.document(rows)


def test_a_comparison_of_no_entry_is_a_failure(transactional_db, tmp_path):
    """After a fault, entries that nobody could compare prove nothing."""
    servers = {"DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3", "REDIS_URL": "fakeredis://"}
    world = SimpleNamespace(environment=clean() | {"DJANGO_SECRET_KEY": "any", "DJANGO_DEBUG": "false"} | servers)
    with pytest.raises(faults.Failed, match=rf"After the fault '{FAULTS[0].name}', `manage\.py cache verify` printed:"):
        faults.compare_entries(world, FAULTS[0])


@pytest.mark.parametrize(
    ("error", "message"),
    [(KeyboardInterrupt(), "Interrupted. Nothing is left behind."), (faults.Failed("The pages do\nnot become warm."), "The pages do not become warm.")],
    ids=["Ctrl-C", "an error"],
)
def test_an_interrupted_or_failed_run_is_one_line_and_writes_nothing(error, message, monkeypatch, tmp_path):
    """A person reads the reason, and the table of the last whole run stays."""
    monkeypatch.setattr(faults, "DOCUMENT", tmp_path / "faults.md")
    monkeypatch.setattr(faults.signal, "signal", lambda *_: None)

    def fail(_):
        raise error

    monkeypatch.setattr(faults, "measure_all", fail)
    with pytest.raises(SystemExit, match=f"^{message}$"):
        faults.main([])
    assert not faults.DOCUMENT.exists()


@pytest.mark.parametrize(("words", "is_written"), [([], True), (["FLUSHALL"], False)])
def test_only_a_run_of_all_faults_writes_the_document(words, is_written, monkeypatch, tmp_path, capsys):
    """A run of some faults would drop the others from it."""
    monkeypatch.setattr(faults, "DOCUMENT", tmp_path / "faults.md")
    monkeypatch.setattr(faults.signal, "signal", lambda *_: None)
    monkeypatch.setattr(faults, "measure_all", lambda _: [])
    with pytest.raises(SystemExit) as ended:
        faults.main(words)
    assert not ended.value.code
    assert faults.DOCUMENT.exists() == is_written
    assert "slowest read loses" in capsys.readouterr().out


def test_a_read_without_a_response_breaks_the_promise_and_the_failure_shows_it():
    """It is the worst that a fault can do to a client."""
    lost = faults.get(SimpleNamespace(address="127.0.0.1:1"), "/", faults.UNCHANGED)
    assert not lost.is_answered

    usual = dict.fromkeys((*faults.KINDS, faults.WORK), 0.5)
    found = faults.Read(faults.UNCHANGED, 0, 0.01, 200, False, "housing; hit")
    result = faults.Result(FAULTS[0], usual, [*[found] * 99, lost], [found], [0.5] * 10, found, [], [], 0, [found])
    first, *_, last = result.broken()
    assert first == "reads: 200 is promised, 99 of 100 was measured"
    assert last.startswith(f"{faults.UNCHANGED}: no response after ")


@pytest.mark.parametrize(("cold", "pause"), [(0.005, 0.025), (0.05, 0.2)], ids=["on a quick machine", "on a slow one"])
def test_a_slow_machine_gets_fewer_reads_a_second(cold, pause, monkeypatch):
    """During a fault, a read keeps a thread for several replies. At 40 a second, a busy machine measured how long they queued for one."""
    slept, sent = [], []
    monkeypatch.setattr(faults.time, "sleep", slept.append)
    faults.read_at_a_pace(SimpleNamespace(path=str), SimpleNamespace(submit=lambda *read: sent.append(read)), {faults.COLD: cold})
    assert len(sent) == faults.READS
    assert slept == pytest.approx([pause] * faults.READS)


def test_nothing_is_measured_while_the_pages_are_cold():
    """The latency before the fault is the baseline, so it must be that of hits."""
    cold = faults.Read("cold", 0, 1, 200, False, "housing; fwd=miss; detail=recovering", {})
    with pytest.raises(faults.Failed, match="recovering"):
        faults.expect_a_hit(cold)
