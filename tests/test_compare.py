"""The comparison of two trees. `make bench-compare` says whether this tree is slower than another commit, and `make bench-proof` how often it is wrong."""

import io
import sys
import tarfile
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from django.core.handlers.wsgi import WSGIHandler

from housing.freshness.journal import journal
from housing.models import Property
from tests import ROOT
from tests.instruments import Timings
from tests.measurements import compare


@pytest.fixture
def itself(tmp_path):
    """This tree, with its own database."""
    return compare.seeded(ROOT, sys.executable, tmp_path / "itself.sqlite3")


@pytest.mark.slow
@pytest.mark.only("real")
def test_a_slowdown_is_found_in_the_operation_that_has_it(itself):
    """Ten times as slow, so few rounds are enough, even on a busy machine. `make bench-proof` measures how often 10% is found. (It brings its own stack, and
    takes seconds.)
    """
    verdicts = {verdict.operation: verdict for verdict in compare.compare(itself, itself, {"cold": 9.0}, starts=1, rounds=7)}

    assert verdicts["cold"].slower
    assert max(verdicts, key=lambda operation: verdicts[operation].timings.ratio) == "cold"


@pytest.fixture
def here(twenty_properties, settings, monkeypatch):
    """The spec runs the code of a tree's process in its own process, where the journal is verified already."""
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    monkeypatch.setattr(compare.gc, "disable", bool)
    monkeypatch.setattr(journal, "begin", bool)


def test_a_process_of_a_tree_runs_the_given_operations_and_reports_their_times(here, monkeypatch):
    """Each response is the sum of the times of one line."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("warm 2\ncold 1\nwrite 1\n"))
    responses = io.StringIO()

    compare.serve(responses, {"cold": 0.5})

    assert len([float(response) for response in responses.getvalue().splitlines() if float(response) > 0]) == 3


def test_a_read_that_is_not_measured_precedes_each_measurement(here, monkeypatch):
    """The first read after the turn of the other process finds its caches of the processor cold."""
    steps, call = [], WSGIHandler.__call__
    monkeypatch.setattr(WSGIHandler, "__call__", lambda *request: steps.append("read") or call(*request))
    monkeypatch.setattr(compare, "_seconds", lambda prepare, act, slower: steps.append("measured") or prepare() or act() or 1.0)
    monkeypatch.setattr(sys, "stdin", io.StringIO("warm 1\ncold 1\nwrite 1\n"))
    compare.serve(responses := io.StringIO(), {})

    turns = "".join(step[0] for step in steps).split("m")
    assert [len(turn) for turn in turns[1:]] == [3, 3, 1], "the read that is measured, the one that checks it, and the next one that is not measured"
    assert responses.getvalue().split() == ["1.0"] * 3


@pytest.mark.parametrize(("operation", "expected"), [("warm", "hit"), ("cold", "fwd=stale; stored"), ("write", "fwd=stale; stored")])
def test_an_operation_that_does_not_do_what_its_name_says_is_not_compared(here, monkeypatch, operation, expected):
    """A warm page that is read from the database, or a write that changes no page, would hide a slowdown."""

    def lines():
        if operation == "warm":
            type(journal).begin(journal)
        yield f"{operation} 1\n"

    monkeypatch.setattr(Property, "save", bool)
    monkeypatch.setattr(sys, "stdin", lines())

    with pytest.raises(AssertionError, match=f"a read was expected to be “{expected}”, but was “housing; "):
        compare.serve(io.StringIO(), {})


def test_a_comparison_waits_for_a_hit_but_not_forever(monkeypatch):
    """The first verification takes a moment. The message says what is missing."""
    slept = []
    monkeypatch.setattr(compare.time, "sleep", slept.append)
    compare._wait_until(iter([False, True]).__next__)
    assert slept == [0.01]

    monkeypatch.setattr(compare, "WAIT", 0)
    with pytest.raises(AssertionError, match="no read was a hit within 0 s"):
        compare._wait_until(lambda: False)


def test_a_verdict_is_one_line():
    """It shows both times, their ratio and its interval, so the output of a comparison is a table."""
    verdict = compare.Verdict("warm", Timings(this=[0.003] * 9, baseline=[0.002] * 9))

    assert str(verdict) == "warm       2.00 ms     3.00 ms    1.500   1.500 to 1.500   slower"
    assert str(compare.Verdict("cold", Timings(this=[0.002] * 9, baseline=[0.003] * 9))).endswith("0.667   0.667 to 0.667   faster")
    assert str(compare.Verdict("cold", Timings(this=[0.00203] * 9, baseline=[0.002] * 9))).endswith("as fast")


def test_a_slower_tree_fails_with_advice(monkeypatch, capsys):
    """CI fails, and its log says how to find the cause."""
    verdicts = [
        compare.Verdict("warm", Timings(this=[0.003] * 9, baseline=[0.002] * 9)),
        compare.Verdict("cold", Timings(this=[0.002] * 9, baseline=[0.002] * 9)),
    ]
    monkeypatch.setattr(compare, "checked_out", lambda commit, folder: nullcontext())
    monkeypatch.setattr(compare, "seeded", lambda *_: None)
    monkeypatch.setattr(compare, "compare", lambda *_: verdicts)

    assert compare.main(["main"]) == 1
    assert "Slower than main: warm. In two comparisons of 3 × 30 rounds" in capsys.readouterr().out

    del verdicts[0]
    assert compare.main(["main"]) == 0


def test_a_slowdown_that_a_second_comparison_does_not_confirm_is_no_alarm(monkeypatch):
    """A shared machine has a slow minute now and then. A real slowdown shows in the second comparison, too."""

    def found(this):
        return [compare.Verdict(operation, Timings(this=[seconds] * 9, baseline=[0.002] * 9)) for operation, seconds in this.items()]

    comparisons = [found({"warm": 0.003, "cold": 0.004}), found({"warm": 0.002, "cold": 0.003})]
    monkeypatch.setattr(compare, "compare", lambda *_: comparisons.pop(0))
    tree = compare.Tree(ROOT, sys.executable, ROOT)

    assert [(verdict.operation, verdict.slower, verdict.timings.ratio) for verdict in compare.judge(tree, tree)] == [("warm", False, 1), ("cold", True, 1.5)]
    assert comparisons == []


@pytest.mark.parametrize(
    ("ratios", "pairs"),
    [((1.0,), 3), ((1.1,), 3), ((1.0, 1.2), compare.MOST)],
    ids=["as fast in all rounds", "slower in all rounds", "as fast in one half of the rounds and slower in the other"],
)
def test_an_undecided_comparison_goes_on_with_more_processes(monkeypatch, ratios, pairs):
    """Otherwise a slowdown of 10% would be missed on a noisy machine. The number of processes is bounded."""
    measured = []

    def measure(base, head, slower, rounds, draw, seconds):
        measured.append(seconds)
        for operation in compare.TIMES:
            seconds["base", operation] += [0.002] * rounds * len(ratios)
            seconds["head", operation] += [0.002 * ratio for ratio in ratios] * rounds

    monkeypatch.setattr(compare, "_measure", measure)
    compare.compare(tree := compare.Tree(ROOT, sys.executable, ROOT), tree)

    assert len(measured) == pairs


def test_a_tree_that_is_as_fast_is_compared_only_once(monkeypatch):
    """The second comparison only confirms a slowdown."""
    comparisons = [[compare.Verdict("warm", Timings(this=[0.002] * 9, baseline=[0.002] * 9))]]
    monkeypatch.setattr(compare, "compare", lambda *_: comparisons.pop(0))

    assert not compare.judge(tree := compare.Tree(ROOT, sys.executable, ROOT), tree)[0].slower


def an_archive_of(lock):
    """The output of `git archive` for a tree that only has this lock."""
    archive, entry = io.BytesIO(), tarfile.TarInfo("requirements.lock")
    entry.size = len(lock)
    with tarfile.open(fileobj=archive, mode="w") as made:
        made.addfile(entry, io.BytesIO(lock))
    return archive.getvalue()


@pytest.mark.parametrize("lock", ["the same lock", "another lock"])
def test_the_base_runs_with_the_packages_of_its_own_lock(tmp_path, monkeypatch, lock):
    """Otherwise a slower version of Django would slow down both trees, and go unnoticed."""
    content, ran = (ROOT / "requirements.lock").read_bytes() if lock == "the same lock" else b"another", []

    def run(command, **_):
        ran.append(command[1:4])
        return SimpleNamespace(returncode=0, stdout=an_archive_of(content))

    monkeypatch.setattr(compare.subprocess, "run", run)
    with compare.checked_out("main", tmp_path) as base:
        assert (base.python == sys.executable) == (lock == "the same lock")
    installs = [["-m", "venv", tmp_path / "venv"], ["-m", "pip", "install"]] if lock == "another lock" else []
    assert ran == [["archive", "main"], *installs, ["-c", compare.SEED]]


def test_a_tree_that_cannot_be_compared_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    """The exit code is 2, so CI can distinguish it from a slowdown."""
    assert compare.main(["no such branch"]) == 2
    assert capsys.readouterr().err.startswith("Not compared: “no such branch” is not a commit, branch or tag of this repository.")

    with pytest.raises(SystemExit):
        compare.main([])
    assert "pass a commit, branch or tag to compare with" in capsys.readouterr().err

    with pytest.raises(compare.Broken, match=r"cannot be seeded: .*No module named 'housing'"):
        compare.seeded(tmp_path, sys.executable, tmp_path / "nothing.sqlite3")
    (tmp_path / "nothing.sqlite3").touch()
    with pytest.raises(compare.Broken, match="does not serve: "), compare.Tree(tmp_path, sys.executable, tmp_path / "nothing.sqlite3").served({}) as took:
        took("warm")

    monkeypatch.setattr(compare.subprocess, "run", lambda command, **_: SimpleNamespace(returncode="pip" in command, stdout=an_archive_of(b"another")))
    with pytest.raises(compare.Broken, match="in the lock of main cannot be installed"):
        compare.checked_out("main", tmp_path / "elsewhere").__enter__()


@pytest.mark.parametrize(("alarms", "found", "code"), [(0, 3, 0), (1, 3, 0), (2, 3, 1), (0, 2, 1)])
def test_the_proof_counts_false_alarms_and_missed_slowdowns(monkeypatch, capsys, alarms, found, code):
    """It accepts one false alarm in 100 comparisons or fewer, and requires that 95 of 100 slowdowns are found. A wrong verdict is shown with its numbers."""
    slow, same = iter([True] * found + [False] * 9), iter([True] * alarms + [False] * 9)

    def judged(base, head, slower):
        alarm = next(slow if slower else same)
        this = {operation: 0.004 if alarm and operation in (slower or ["warm"]) else 0.002 for operation in compare.TIMES}
        return [compare.Verdict(operation, Timings(this=[this[operation]] * 9, baseline=[0.002] * 9)) for operation in compare.TIMES]

    monkeypatch.setattr(compare, "seeded", lambda *_: None)
    monkeypatch.setattr(compare, "judge", judged)

    assert compare.main(["--proof", "3"]) == code
    shown = capsys.readouterr().out
    assert shown.endswith(f"6 comparisons of the same code: {alarms} false alarms. 3 with a slowdown of 10%: {found} found.\n")
    assert shown.count("A wrong verdict. Nothing was slowed down:") == alarms
    assert shown.count("A wrong verdict.") == alarms + 3 - found
