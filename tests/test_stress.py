"""The stress test. `make stress` runs the specs on a busy machine, in environments that differ from that of the author."""

import os
import signal
import sys

import pytest

from tests.fixtures.processes import Ended, python
from tests.measurements import stress

TREE = {
    "pytest.ini": "[pytest]\naddopts = --disable-plugin-autoload -p xdist -p pytest_randomly\n",
    "test_it.py": """
import os, pathlib, pytest

@pytest.mark.parametrize(("variable", "value"), {"TZ": "Pacific/Auckland", "LC_ALL": "C", "FORCE_COLOR": "1"}.items())
def test_it(variable, value):
    assert os.environ.get(variable) != value and "#" not in str(pathlib.Path.cwd())
""",
}
"""A tree whose specs depend on the machine."""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """That tree, on a machine that is as busy as it is."""
    folder = tmp_path / "tree"
    (folder / ".git").mkdir(parents=True)
    for name, text in TREE.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(stress, "ROOT", folder)
    monkeypatch.setattr(stress, "LOAD", 0)
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")  # is enough for three specs
    for name in ("TZ", "LC_ALL"):  # this spec may itself run in one of the environments
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.mark.slow
def test_each_run_is_a_line_with_its_failures_and_the_seed_that_repeats_it(tree, capsys):
    """The environments take turns. Somebody who reads the log knows what failed where, and how to see it again."""
    assert stress.main(["5"]) == 1

    lines = capsys.readouterr().out.splitlines()
    runs = [line for line in lines if " of 5  " in line]
    assert [(line.split()[3], environment.name in line) for line, environment in zip(runs, stress.ENVIRONMENTS, strict=True)] == [
        ("FAILED", True),
        ("FAILED", True),
        ("passed", True),
        ("FAILED", True),
        ("FAILED", True),
    ]
    assert all(" in " in line and ", seed " in line for line in runs)
    failed = [line for line in lines if line.startswith("    FAILED ")]
    assert [line.split()[1] for line in failed if "[LC_ALL-C]" in line] == ["test_it.py::test_it[LC_ALL-C]"] * 2, "once in the odd folder, and once with LC_ALL"
    assert lines[-1].startswith("5 runs beside ")
    assert lines[-1].endswith(" cores: 4 failed.")


@pytest.mark.slow
def test_an_environment_is_chosen_by_its_words_and_success_is_exit_code_0(tree, capsys):
    """After a repair, nobody wants to wait for all of them. An archive has neither `.git` nor what the specs wrote."""
    assert stress.main(["1", ".git"]) == 0
    output = capsys.readouterr().out
    assert "3 passed" in output
    assert "\n1 run beside " in output
    with stress.tree_for(next(each for each in stress.ENVIRONMENTS if each.name == "an archive without .git")) as copy:
        assert {path.name for path in copy.iterdir()} == TREE.keys()


@pytest.mark.parametrize("arguments", [["0"], ["1", "no such environment"]])
def test_a_stress_test_of_nothing_is_refused(arguments, capsys):
    """No run at all would have no failure."""
    with pytest.raises(SystemExit):
        stress.main(arguments)
    assert "pass a number from 1, and words of: colour forced; " in capsys.readouterr().err


def test_a_run_that_prints_nothing_is_a_failure_with_its_last_line():
    """pytest may end before it counts anything."""
    assert stress.Run("any", 1, 2.0, False, "").counts == "no output"
    assert stress.Run("any", 1, 2.0, False, "a\nImportError: no module\n").counts == "ImportError: no module"


def test_the_load_ends_with_the_stress_test():
    """Otherwise the machine would be busy after the block, or after a stress test that was killed."""
    with stress.busy_cores(2, 60) as busy:
        assert [process.poll() for process in busy] == [None, None]
    assert all(process.poll() for process in busy)

    with stress.busy_cores(1, 0) as busy:
        assert busy[0].wait() == 0

    assert python("-c", stress.BUSY, "1", "3600") == Ended(0, "", "")


WORKER = """
import os, sys, time
specs, alive = os.getppid(), open(sys.argv[1], "w")
print("began", file=alive, flush=True)
while os.getppid() == specs:
    time.sleep(0.01)
print("outlived the specs", file=alive)
"""
SPECS = f"import signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', {WORKER!r}, sys.argv[1]]); signal.pause()"


def test_an_interrupted_stress_test_leaves_no_process_behind(tmp_path):
    """Ctrl-C ends the specs and their workers."""
    os.mkfifo(fifo := tmp_path / "alive")

    with pytest.raises(KeyboardInterrupt), stress.suite([sys.executable, "-c", SPECS, str(fifo)], tmp_path, {}) as specs:
        worker = fifo.open()
        assert worker.readline() == "began\n"
        raise KeyboardInterrupt

    with worker:
        assert worker.read() == ""
    assert specs.poll() == -signal.SIGKILL


def test_the_specs_get_no_larger_share_of_the_cores_than_each_process_of_the_load(tmp_path):
    """Linux divides the cores between sessions first, so a load in another session would leave them half of the machine. Niceness would do the same."""
    with stress.busy_cores(1, 60) as [busy], stress.suite([sys.executable, "-c", "import signal; signal.pause()"], tmp_path, {}) as specs:
        assert os.getsid(specs.pid) == os.getsid(busy.pid)
        assert os.getpriority(os.PRIO_PROCESS, specs.pid) == os.getpriority(os.PRIO_PROCESS, busy.pid)
