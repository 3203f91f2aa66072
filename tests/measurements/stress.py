"""Runs the specs again and again on a machine that is busy and set up differently each time. A spec that depends on the machine fails here.

    python -m tests.measurements.stress            run all environments twice (10 runs); exit with 1 if a run failed
    python -m tests.measurements.stress N          run N times; the environments take turns
    python -m tests.measurements.stress N WORDS    only the environments whose name has these words

Beside the specs, four processes for each core calculate, so a spec gets a fifth of the machine at best. They end with this process. Each run has a
random order. After a failure, `pytest --randomly-seed=` with the printed number repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tests import ROOT
from tests.fixtures.processes import killed_after

LOAD = 4
"""How many processes keep each core busy, beside the specs."""

TIMEOUT = 3600
"""Seconds after which a run is stopped and counts as failed. On two quiet cores it takes three to seven minutes, under the load fifteen to thirty."""

IGNORED = (".git", ".venv", ".env*", "db.sqlite3*", "__pycache__", ".*_cache", ".hypothesis", ".benchmarks", ".coverage*", "mutants", "screenshots", "reports")
"""The files of a working tree that are in no archive."""


@dataclass(frozen=True)
class Environment:
    """A way in which another person's machine differs."""

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    """The name of the folder that an archive of the tree is unpacked into. If it is empty, the specs run in the tree itself."""


ENVIRONMENTS = (
    Environment("colour forced", {"FORCE_COLOR": "1", "PY_COLORS": "1", "PYTEST_ADDOPTS": "--color=yes"}),
    Environment("a folder with spaces, # and %", folder="a folder #1, 100% new"),
    Environment("an archive without .git", folder="housing-main"),
    Environment("TZ=Pacific/Auckland", {"TZ": "Pacific/Auckland"}),
    Environment("LC_ALL=C", {"LC_ALL": "C"}),
)

BUSY = """
import os, sys, time
end = time.monotonic() + float(sys.argv[2])
while os.getppid() == int(sys.argv[1]) and time.monotonic() < end:
    sum(range(1_000_000))
"""


@contextmanager
def busy_cores(processes: int, seconds: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep this many processes calculating while the block runs, but no longer than `seconds`, and no longer than this process."""
    busy = [subprocess.Popen([sys.executable, "-S", "-c", BUSY, str(os.getpid()), str(seconds)]) for _ in range(processes)]
    try:
        yield busy
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextmanager
def tree_for(environment: Environment) -> Iterator[Path]:
    """The folder in which the specs run."""
    if not environment.folder:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="housing-stress-") as parent:
        yield Path(shutil.copytree(ROOT, Path(parent, environment.folder), ignore=shutil.ignore_patterns(*IGNORED)))


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    environment: str
    seed: int
    seconds: float
    passed: bool
    output: str

    @property
    def counts(self) -> str:
        """The counts that pytest printed, such as `1 failed, 2336 passed`. Without counts, its last line."""
        lines = self.output.strip().splitlines() or ["no output"]
        return next((found[0] for line in reversed(lines) if (found := re.search(r"\d+ (passed|failed|error|skipped).*?(?= in |$)", line))), lines[-1])

    @property
    def failures(self) -> list[str]:
        """pytest's line for each failure and each error."""
        return [line for line in self.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}  {self.environment:<30} {self.counts} in {self.seconds:.0f} s, seed {self.seed}"


@contextmanager
def suite(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The specs in a process group of their own, which ends with the block: Ctrl-C leaves no worker behind.

    It is in the session of the load, because Linux divides the cores between sessions first (`sched_autogroup`). Otherwise the specs would get half of them.
    """
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(command, cwd=folder, env=variables, process_group=0, **output) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(environment: Environment, seed: int, progress: Callable[[float], object], options: Sequence[str] = ()) -> Run:
    """Run the specs once in this environment. `progress` gets the share of specs that have ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-rfE", "-p", "no:cacheprovider", f"--randomly-seed={seed}", *options]
    began, output = time.monotonic(), []
    with tree_for(environment) as tree, suite(command, tree, os.environ | environment.variables) as process, killed_after(TIMEOUT, process):
        assert process.stdout
        for line in process.stdout:
            output.append(re.sub(r"\x1b\[[\d;]*m", "", line))
            if percent := re.search(r"\[ *(\d+)%\]", output[-1]):
                progress(int(percent[1]) / 100)
        code = process.wait()
    return Run(environment.name, seed, time.monotonic() - began, code == 0, "".join(output))


def stress(runs: int, environments: Sequence[Environment], options: Sequence[str] = ()) -> list[Run]:
    """Run the specs this often under load, and print a line for each run, with its failures."""
    ended: list[Run] = []
    cores = os.cpu_count() or 1
    with busy_cores(LOAD * cores, runs * TIMEOUT), tqdm(total=runs, unit=" runs", disable=None, bar_format="{l_bar}{bar}| {elapsed}, {remaining} left") as bar:

        def progress(share: float) -> None:
            bar.update(len(ended) + share - bar.n)

        for environment in itertools.islice(itertools.cycle(environments), runs):
            bar.set_description(environment.name)
            ended.append(run(environment, random.randrange(2**32), progress, options))
            progress(0)
            tqdm.write("\n".join([f"{len(ended)} of {runs}  {ended[-1]}", *(f"    {line}" for line in ended[-1].failures)]))
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tests.measurements.stress`. Returns 1 if a run failed, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.measurements.stress", description="Run the specs under load, in various environments.")
    parser.add_argument("runs", nargs="?", type=int, default=2 * len(ENVIRONMENTS), help="how often (default: %(default)s)")
    parser.add_argument("words", nargs="*", help="words in the names of the environments to use (default: all of them)")
    options = parser.parse_args(arguments)
    chosen = [environment for environment in ENVIRONMENTS if all(word in environment.name for word in options.words)]
    if options.runs < 1 or not chosen:
        parser.error(f"pass a number from 1, and words of: {'; '.join(environment.name for environment in ENVIRONMENTS)}")
    ended = stress(options.runs, chosen)
    failed = [each for each in ended if not each.passed]
    tqdm.write(f"{len(ended)} {'run' if len(ended) == 1 else 'runs'} beside {LOAD} busy processes for each of {os.cpu_count()} cores: {len(failed)} failed.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
