"""Is this tree slower than another? Both serve in turn, round by round, in one job, on SQLite and fakeredis.

    python -m tests.compare BASE              this tree with a commit, branch or tag; exits with 1 where it is slower
    python -m tests.compare --proof [N]       2 N comparisons with itself, and N with a slowdown of 10 % put in (N: 100)

What is compared is the processor's time: of the wall's a shared machine takes its part, and a percent of nothing can be told. Whoever waits more than
before sends more statements or commands, and these are counted (`tests/test_cost.py`).

A way counts as slower only where the whole interval of its ratio is beyond `TOLERANCE`: two processes of the same code differ by a percent or two,
by where their memory lies (Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", ASPLOS 2009), so each comparison starts
several of them, and what is found slower is compared once more before anybody hears of it.
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
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tests.instruments import Timings

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent

TIMES = {"warm": 4, "cold": 1, "write": 2}
"""What is compared, and how often it is done in one round: some milliseconds' worth, which a clock can tell and a busy machine seldom interrupts."""

STARTS, ROUNDS = 3, 30
"""So many pairs of processes, and so many rounds of each."""

TOLERANCE, CONFIDENCE = 1.02, 0.95
"""From where on a ratio is a slowdown, and how wide its interval is. At 1.03 and 99 of 100, 2 of 17 slowdowns of a tenth were missed."""

SLOWDOWN = 0.10
"""What the proof puts in."""


class Broken(Exception):
    """A tree that cannot be compared; the message says why."""


def say(*lines: str) -> None:
    """Print."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


# One tree, in a process of its own


def serve(responses: IO[str], slower: dict[str, float]) -> None:
    """Do what each line of stdin names, so many times, and say how many seconds that took. `slower` is the part by which a way is slowed down."""
    import django

    gc.disable()  # else one in some rounds pays for what all have left
    django.setup()
    from django.core.handlers.wsgi import WSGIHandler

    from housing.freshness.journal import journal
    from housing.models import Property

    application, home = WSGIHandler(), Property.objects.latest("id")

    def read() -> None:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/properties/cached/", "QUERY_STRING": "", "HTTP_HOST": "127.0.0.1"}
        environ |= {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO()}
        said: list[str] = []
        response = application(environ, lambda status, _: said.append(status))
        body = b"".join(response)
        response.close()
        assert (said, body[:1]) == (["200 OK"], b"{"), said

    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {"warm": (bool, read), "cold": (journal.begin, read), "write": (bool, home.save)}
    journal.begin()
    for line in sys.stdin:
        way, times = line.split()
        prepare, act = ways[way]
        read()
        responses.write(f"{sum(_seconds(prepare, act, slower.get(way, 0.0)) for _ in range(int(times)))}\n")
        responses.flush()


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
    """A checked out tree, the Python with its packages, and a database that it has seeded."""

    folder: Path
    python: str
    database: Path

    @property
    def environment(self) -> dict[str, str]:
        """All that is said to it."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder),
            "PYTHONHASHSEED": "0",
            "DJANGO_SETTINGS_MODULE": "housing.settings",
            "DJANGO_SECRET_KEY": "of a comparison",
            "DJANGO_DEBUG": "false",
            "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
            "REDIS_URL": "fakeredis://",
        }

    def seed(self) -> None:
        """Make the database. Raises Broken."""
        made = subprocess.run(
            [self.python, "-c", SEED],
            cwd=self.folder,
            env=self.environment | {"DATABASE_URL": f"sqlite:///{self.database}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise Broken(f"{self.folder} cannot be seeded: {(made.stderr.strip().splitlines() or ['it said nothing'])[-1]}")

    @contextmanager
    def served(self, slower: dict[str, float]) -> Iterator[Callable[[str], float]]:
        """A process that serves it: `took("warm")` is how many seconds one time of it took. Raises Broken."""
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

            asks, responses = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

            def took(way: str) -> float:
                asks.write(f"{way} {TIMES[way]}\n")
                asks.flush()
                if not (response := responses.readline()):
                    complaints.seek(0)
                    raise Broken(f"{self.folder} does not serve: {(complaints.read().strip().splitlines() or ['it said nothing'])[-1]}")
                return float(response) / TIMES[way]

            try:
                yield took
            finally:
                process.kill()
                process.communicate()


# Two trees


@dataclass(frozen=True)
class Verdict:
    """How one way of head (`this`) compares with base (`to`)."""

    way: str
    timings: Timings

    @property
    def interval(self) -> tuple[float, float]:
        """Between these the median ratio would lie in so many runs as `CONFIDENCE` says."""
        from tests.instruments import interval_of  # not above: a base that has none serves, too

        return interval_of(self.timings.ratios, CONFIDENCE)

    @property
    def slower(self) -> bool:
        """Whether head is slower for certain."""
        return self.interval[0] > TOLERANCE

    def __str__(self) -> str:
        low, high = self.interval
        base, head = (statistics.median(seconds) * 1000 for seconds in (self.timings.to, self.timings.this))
        said = "slower" if self.slower else "faster" if high < 1 / TOLERANCE else "as fast"
        return f"{self.way:<6} {base:8.2f} ms {head:8.2f} ms {self.timings.ratio:8.3f}   {low:.3f} to {high:.3f}   {said}"


HEADING = f"{'':<6} {'base':>11} {'head':>11} {'head ÷ base':>11} interval"


def compare(base: Tree, head: Tree, slower: dict[str, float] | None = None, starts: int = STARTS, rounds: int = ROUNDS) -> list[Verdict]:
    """A verdict for each way. Who is first in a round is drawn. Raises Broken."""
    from tests.instruments import Timings  # not above: a base that has none serves, too

    seconds: dict[tuple[str, str], list[float]] = {(side, way): [] for side in ("base", "head") for way in TIMES}
    draw = random.Random(starts)
    for _ in range(starts):
        with ExitStack() as stack:
            took = {"base": stack.enter_context(base.served({})), "head": stack.enter_context(head.served(slower or {}))}
            for number in range(rounds + 2):
                for way in TIMES:
                    for side in draw.sample(("base", "head"), 2):
                        spent = took[side](way)
                        if number > 1:  # the first two warm up
                            seconds[side, way].append(spent)
    return [Verdict(way, Timings(this=seconds["head", way], to=seconds["base", way])) for way in TIMES]


def judge(base: Tree, head: Tree, slower: dict[str, float] | None = None) -> list[Verdict]:
    """As `compare`; but where a way is slower all are compared once more, by other processes, and of each the milder verdict stands. Raises Broken."""
    verdicts = compare(base, head, slower)
    if any(verdict.slower for verdict in verdicts):
        verdicts = [min(pair, key=lambda verdict: verdict.interval[0]) for pair in zip(verdicts, compare(base, head, slower), strict=True)]
    return verdicts


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Tree]:
    """The tree of a commit, with packages of its own where its lock is another. Raises Broken."""
    tree = folder / "base"
    archived = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        raise Broken(f"“{commit}” is no commit, branch or tag of this repository. Name one: make bench-compare BASE=main.")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(tree, filter="data")
    python = sys.executable
    if (tree / "requirements.lock").read_bytes() != (ROOT / "requirements.lock").read_bytes():
        say("The lock is another: installing what base has …")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = str(folder / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement", "requirements.lock"]
        if subprocess.run(install, cwd=tree, check=False).returncode:
            raise Broken(f"What {commit} has in its lock cannot be installed; pip says why.")
    yield seeded(tree, python, folder / "base.sqlite3")


def seeded(folder: Path, python: str, database: Path) -> Tree:
    """A tree with its database."""
    tree = Tree(folder, python, database)
    tree.seed()
    return tree


def compare_with(commit: str) -> int:
    """Print how this tree compares; 1 where it is slower."""
    with tempfile.TemporaryDirectory(prefix="housing-compare-") as folder, checked_out(commit, Path(folder)) as base:
        verdicts = judge(base, seeded(ROOT, sys.executable, Path(folder, "head.sqlite3")))
    say(HEADING, *map(str, verdicts))
    if found := [verdict.way for verdict in verdicts if verdict.slower]:
        say(
            f"\nSlower than {commit}: {', '.join(found)}. Twice, of {STARTS} × {ROUNDS} rounds the whole interval is beyond {TOLERANCE}.",
            "Counts say whether it does more (pytest tests/test_cost.py tests/test_latency.py), a profile what takes longer.",
        )
    return int(bool(found))


# Its proof


def prove(count: int) -> int:
    """Compare this tree with itself, twice as often without a slowdown as with one, on each core at a time; 1 if the alarms are not as promised."""
    from tqdm import tqdm

    slowed = [list(TIMES)[number // 3 % len(TIMES)] if number % 3 == 2 else None for number in range(3 * count)]
    false, found = 0, 0
    with tempfile.TemporaryDirectory(prefix="housing-compare-") as folder, ThreadPoolExecutor(os.cpu_count()) as cores:
        tree = seeded(ROOT, sys.executable, Path(folder, "tree.sqlite3"))
        compared = [cores.submit(judge, tree, tree, {way: SLOWDOWN} if way else {}) for way in slowed]
        try:
            with tqdm(zip(slowed, compared, strict=True), total=3 * count, unit=" comparisons", disable=None) as progress:
                for way, verdicts in progress:
                    slower = {verdict.way for verdict in verdicts.result() if verdict.slower}
                    found += way in slower
                    false += not way and bool(slower)
                    progress.set_postfix_str(f"{false} false alarms, {found} found")
        finally:
            cores.shutdown(cancel_futures=True)
    say(f"{2 * count} comparisons of the same code: {false} alarms. {count} with a slowdown of {SLOWDOWN:.0%}: {found} found.")
    return int(false > max(1, count // 100) or found < 0.95 * count)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.compare", description="Is this tree slower than another?")
    parser.add_argument("base", nargs="?", help="a commit, branch or tag to compare with")
    parser.add_argument("--proof", nargs="?", type=int, const=100, metavar="N", help="how often it cries wolf, and how often it misses one")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    try:
        if asked.proof:
            return prove(asked.proof)
        if not asked.base:
            parser.error("name a commit, branch or tag to compare with: make bench-compare BASE=main")
        return compare_with(asked.base)
    except Broken as broken:
        sys.stderr.write(f"Not compared: {broken}\n")
        return 2


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.stdout, json.loads(sys.argv[2]))
    else:
        sys.exit(main())
