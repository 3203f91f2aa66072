"""Compares the speed of this tree with another one. Both run alternately, round by round, in one job, on SQLite and fakeredis.

    python -m tests.measurements.compare BASE              compare this tree with a commit, branch or tag; exit with 1 if this tree is slower
    python -m tests.measurements.compare --proof [N]       compare this tree 2 N times with itself, and N times with a slowdown of 10% (N: 100)

The comparison measures processor time, because wall-clock time varies too much on a shared machine. It does not see time spent waiting, but code that
waits more sends more statements or commands, and `tests/test_cost.py` counts these.

An operation counts as slower only if the whole interval of its ratio is above `TOLERANCE`. Two processes of the same code differ by a percent or two,
depending on their memory layout (Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", ASPLOS 2009). So each comparison
starts several processes, and a slowdown is reported only if a second comparison confirms it. On a noisy machine an interval may hold both `TOLERANCE` and a
slowdown of 10%. Such a comparison goes on with more processes until it is decided (sequential analysis, Wald 1945), or until there were `MOST` pairs.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tests.instruments import Timings

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]

TIMES = {"warm": 4, "cold": 1, "write": 2}
"""Each operation, and how often it runs in one round: for some milliseconds, which is long enough to measure and seldom interrupted."""

STARTS, ROUNDS, MOST = 3, 30, 15
"""The number of pairs of processes and of rounds of each pair, and the number of pairs after which an undecided comparison ends."""

TOLERANCE, CONFIDENCE = 1.02, 0.95
"""The ratio above which an operation is slower, and the confidence of its interval. At 1.03 and 0.99, 2 of 17 slowdowns of 10% were missed."""

WAIT = 60
"""Seconds until the first hit at most."""

SLOWDOWN = 0.10
"""The slowdown that a comparison has to find. The proof adds it."""


class Broken(Exception):
    """The trees cannot be compared. The message says why."""


def say(*lines: str) -> None:
    """Print these lines."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


# One tree, in a process of its own


def serve(responses: IO[str], slower: dict[str, float]) -> None:
    """Run the operation of each line of stdin as often as it says, and print the seconds it took. `slower` has the slowdown of an operation, as a fraction."""
    import django
    from django.conf import settings

    gc.disable()  # otherwise a few rounds would pay for the garbage of all of them
    settings.FRESHNESS_MAX_STALENESS = 3600.0  # so that hits need no further verification, which would be measured
    django.setup()
    from django.core.handlers.wsgi import WSGIHandler

    from housing.freshness.journal import journal
    from housing.models import Property

    application, home = WSGIHandler(), Property.objects.latest("created_at", "id")

    def read() -> str:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/properties/cached/", "QUERY_STRING": "", "HTTP_HOST": "127.0.0.1"}
        environ |= {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO()}
        head: list[Any] = []
        response = application(environ, lambda status, headers: head.extend((status, dict(headers).get("Cache-Status", "none"))))
        body = b"".join(response)
        response.close()
        assert (head[0], body[:1]) == ("200 OK", b"{"), head
        return str(head[1])

    def expect(came_from: str) -> None:
        assert (found := read()) == f"housing; {came_from}", f"a read was expected to be “{came_from}”, but was “{found}”"

    hit, stale = partial(expect, "hit"), partial(expect, "fwd=stale; stored")
    operations = {"warm": (bool, hit, hit), "cold": (home.save, stale, hit), "write": (bool, home.save, stale)}
    journal.begin()  # one that Redis has lost would store nothing for the five seconds of a lease
    read()
    _wait_until(lambda: read() == "housing; hit")
    for line in sys.stdin:
        operation, times = line.split()
        prepare, act, check = operations[operation]
        hit()  # the first read after the other process's turn is slower
        responses.write(f"{sum(_seconds(prepare, act, slower.get(operation, 0.0)) for _ in range(int(times)))}\n")
        responses.flush()
        check()


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < deadline, f"no read was a hit within {WAIT} s"
        time.sleep(0.01)


def _seconds(prepare: Callable[[], Any], act: Callable[[], Any], slower: float) -> float:
    prepare()
    started = time.process_time()
    act()
    took = time.process_time() - started
    while time.process_time() - started < took * (1 + slower):
        pass
    return time.process_time() - started


SEED = """
import django
from django.core.management import call_command
django.setup()
call_command("migrate", verbosity=0)
call_command("seed", properties=100, verbosity=0)
"""


@dataclass(frozen=True)
class Tree:
    """A checked-out tree, the Python with its packages, and its seeded database."""

    folder: Path
    python: str
    database: Path

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of its processes, without the database."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder),
            "PYTHONHASHSEED": "0",
            "DJANGO_SETTINGS_MODULE": "housing.settings",
            "DJANGO_SECRET_KEY": "for a comparison",
            "DJANGO_DEBUG": "false",
            "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
            "REDIS_URL": "fakeredis://",
        }

    def seed(self) -> None:
        """Create and seed the database. Raises Broken."""
        made = subprocess.run(
            [self.python, "-c", SEED],
            cwd=self.folder,
            env=self.environment | {"DATABASE_URL": f"sqlite:///{self.database}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise Broken(f"{self.folder} cannot be seeded: {(made.stderr.strip().splitlines() or ['no error message'])[-1]}")

    @contextmanager
    def served(self, slower: dict[str, float]) -> Iterator[Callable[[str], float]]:
        """A process that serves the tree. `took("warm")` runs the operation and returns the seconds of one run. Raises Broken."""
        with tempfile.TemporaryDirectory(prefix="housing-compare-") as folder, tempfile.TemporaryFile("w+") as complaints:
            database = shutil.copy(self.database, folder)
            process = subprocess.Popen(
                [self.python, "-P", str(HERE), "--serve", json.dumps(slower)],
                env=self.environment | {"DATABASE_URL": f"sqlite:///{database}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )

            orders, responses = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

            def took(operation: str) -> float:
                orders.write(f"{operation} {TIMES[operation]}\n")
                orders.flush()
                if not (response := responses.readline()):
                    complaints.seek(0)
                    raise Broken(f"{self.folder} does not serve: {(complaints.read().strip().splitlines() or ['no error message'])[-1]}")
                return float(response) / TIMES[operation]

            try:
                yield took
            finally:
                process.kill()
                process.communicate()


# Two trees


@dataclass(frozen=True)
class Verdict:
    """How one operation of head compares with base."""

    operation: str
    timings: Timings

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the median ratio, with `CONFIDENCE`."""
        from tests.instruments import interval_of  # imported here, because an older base may not have it

        return interval_of(self.timings.ratios, CONFIDENCE)

    @property
    def slower(self) -> bool:
        """Whether the whole interval is above `TOLERANCE`."""
        return self.interval[0] > TOLERANCE

    @property
    def decided(self) -> bool:
        """Whether the interval excludes either `TOLERANCE` or a slowdown of more than half of `SLOWDOWN`."""
        return self.slower or self.interval[1] < 1 + SLOWDOWN / 2

    def __str__(self) -> str:
        low, high = self.interval
        base, head = (statistics.median(seconds) * 1000 for seconds in (self.timings.baseline, self.timings.this))
        verdict = "slower" if self.slower else "faster" if high < 1 / TOLERANCE else "as fast"
        return f"{self.operation:<6} {base:8.2f} ms {head:8.2f} ms {self.timings.ratio:8.3f}   {low:.3f} to {high:.3f}   {verdict}"


HEADING = f"{'':<6} {'base':>11} {'head':>11} {'head ÷ base':>11} interval"


def compare(base: Tree, head: Tree, slower: dict[str, float] | None = None, starts: int = STARTS, rounds: int = ROUNDS) -> list[Verdict]:
    """A verdict for each operation, from `starts` pairs of processes, and from as many again while one is undecided. Raises Broken."""
    from tests.instruments import Timings  # imported here, because an older base may not have it

    seconds: dict[tuple[str, str], list[float]] = {(side, operation): [] for side in ("base", "head") for operation in TIMES}
    draw = random.Random(starts)
    for start in range(1, MOST + 1):
        _measure(base, head, slower or {}, rounds, draw, seconds)
        if start % starts == 0:
            verdicts = [Verdict(operation, Timings(this=seconds["head", operation], baseline=seconds["base", operation])) for operation in TIMES]
            if all(verdict.decided for verdict in verdicts):
                break
    return verdicts


def _measure(base: Tree, head: Tree, slower: dict[str, float], rounds: int, draw: random.Random, seconds: dict[tuple[str, str], list[float]]) -> None:
    """One pair of processes: adds the seconds of each side and operation. The order within a round is random."""
    with ExitStack() as stack:
        took = {"base": stack.enter_context(base.served({})), "head": stack.enter_context(head.served(slower))}
        for number in range(rounds + 2):
            for operation in TIMES:
                for side in draw.sample(("base", "head"), 2):
                    spent = took[side](operation)
                    if number > 1:  # the first two warm up
                        seconds[side, operation].append(spent)


def judge(base: Tree, head: Tree, slower: dict[str, float] | None = None) -> list[Verdict]:
    """Compare, and if an operation is slower, compare again with new processes. The milder verdict of each operation counts. Raises Broken."""
    verdicts = compare(base, head, slower)
    if any(verdict.slower for verdict in verdicts):
        verdicts = [min(pair, key=lambda verdict: verdict.interval[0]) for pair in zip(verdicts, compare(base, head, slower), strict=True)]
    return verdicts


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Tree]:
    """The tree of a commit, with its own packages if its lock differs. Raises Broken."""
    tree = folder / "base"
    archived = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        raise Broken(f"“{commit}” is not a commit, branch or tag of this repository. Run for example: make bench-compare BASE=main.")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(tree, filter="data")
    python = sys.executable
    if (tree / "requirements.lock").read_bytes() != (ROOT / "requirements.lock").read_bytes():
        say("The base has another lock. Installing its packages …")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = str(folder / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement", "requirements.lock"]
        if subprocess.run(install, cwd=tree, check=False).returncode:
            raise Broken(f"The packages in the lock of {commit} cannot be installed. See the output of pip above.")
    yield seeded(tree, python, folder / "base.sqlite3")


def seeded(folder: Path, python: str, database: Path) -> Tree:
    """A tree with its seeded database."""
    tree = Tree(folder, python, database)
    tree.seed()
    return tree


def compare_with(commit: str) -> int:
    """Print how this tree compares with a commit. Returns 1 if it is slower, otherwise 0."""
    with tempfile.TemporaryDirectory(prefix="housing-compare-") as folder, checked_out(commit, Path(folder)) as base:
        verdicts = judge(base, seeded(ROOT, sys.executable, Path(folder, "head.sqlite3")))
    say(HEADING, *map(str, verdicts))
    if found := [verdict.operation for verdict in verdicts if verdict.slower]:
        say(
            f"\nSlower than {commit}: {', '.join(found)}. In two comparisons of {STARTS} × {ROUNDS} rounds the whole interval is above {TOLERANCE}.",
            "Run pytest tests/test_cost.py tests/test_latency.py to see whether it does more work. If it does not, profile it.",
        )
    return int(bool(found))


# Its proof


def prove(count: int) -> int:
    """Compare this tree with itself, in two of three comparisons without a slowdown, on all cores. Returns 1 if too many verdicts are wrong, otherwise 0."""
    from tqdm import tqdm

    slowed = [list(TIMES)[number // 3 % len(TIMES)] if number % 3 == 2 else None for number in range(3 * count)]
    false, found = 0, 0
    with tempfile.TemporaryDirectory(prefix="housing-compare-") as folder, ThreadPoolExecutor(os.cpu_count()) as cores:
        tree = seeded(ROOT, sys.executable, Path(folder, "tree.sqlite3"))
        compared = [cores.submit(judge, tree, tree, {operation: SLOWDOWN} if operation else {}) for operation in slowed]
        try:
            with tqdm(zip(slowed, compared, strict=True), total=3 * count, unit=" comparisons", disable=None) as progress:
                for operation, verdicts in progress:
                    slower = {verdict.operation for verdict in verdicts.result() if verdict.slower}
                    found += operation in slower
                    false += not operation and bool(slower)
                    progress.set_postfix_str(f"{false} false alarms, {found} found")
                    if slower != ({operation} - {None}):
                        progress.write("\n".join([f"A wrong verdict. {operation or 'Nothing'} was slowed down:", HEADING, *map(str, verdicts.result())]))
        finally:
            cores.shutdown(cancel_futures=True)
    say(f"{2 * count} comparisons of the same code: {false} false alarms. {count} with a slowdown of {SLOWDOWN:.0%}: {found} found.")
    return int(false > max(1, count // 100) or found < 0.95 * count)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tests.measurements.compare`."""
    parser = argparse.ArgumentParser(prog="python -m tests.measurements.compare", description="Compare the speed of this tree with another one.")
    parser.add_argument("base", nargs="?", help="a commit, branch or tag to compare with")
    parser.add_argument("--proof", nargs="?", type=int, const=100, metavar="N", help="measure the false alarms and the missed slowdowns of N comparisons")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.proof:
            return prove(options.proof)
        if not options.base:
            parser.error("pass a commit, branch or tag to compare with, for example: make bench-compare BASE=main")
        return compare_with(options.base)
    except Broken as broken:
        sys.stderr.write(f"Not compared: {broken}\n")
        return 2


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.stdout, json.loads(sys.argv[2]))
    else:
        sys.exit(main())
