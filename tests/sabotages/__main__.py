"""Changes one line of `housing` at a time, and runs the spec that has to fail for it.

    python -m tests.sabotages            run all of them; exit with 1 if a spec still passes, or a sabotage no longer fits the code
    python -m tests.sabotages WORDS      run those whose description or file contains these words
    python -m tests.sabotages --stack=real   run those whose specs need PostgreSQL, on the servers that `pytest --stack=real` would use
    python -m tests.sabotages --part=1/4     run every fourth, from the first

Each sabotage runs in a copy of the tree, in a temporary folder. The tree itself is never changed. `make sabotages` runs them, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from tests import ROOT
from tests.sabotages import Sabotage
from tests.sabotages.asgi import ASGI
from tests.sabotages.commit import COMMIT
from tests.sabotages.connections import CONNECTIONS
from tests.sabotages.dependencies import DEPENDENCIES
from tests.sabotages.environment import ENVIRONMENT
from tests.sabotages.example import EXAMPLE
from tests.sabotages.fast_path import FAST_PATH
from tests.sabotages.importing import IMPORTING
from tests.sabotages.instruments import INSTRUMENTS
from tests.sabotages.joined import JOINED
from tests.sabotages.journal import JOURNAL
from tests.sabotages.keys import KEYS
from tests.sabotages.operators import OPERATORS
from tests.sabotages.other_writers import OTHER_WRITERS
from tests.sabotages.outages import OUTAGES
from tests.sabotages.places import PLACES
from tests.sabotages.production import PRODUCTION
from tests.sabotages.reads import FILLS, READS
from tests.sabotages.requests import REQUESTS
from tests.sabotages.safety import SAFETY
from tests.sabotages.schema import RUN, SCHEMA
from tests.sabotages.selects import SELECTS
from tests.sabotages.servers import SERVERS
from tests.sabotages.slow_fills import SLOW_FILLS
from tests.sabotages.statements import STATEMENTS
from tests.sabotages.upserts import UPSERTS
from tests.sabotages.verification import DEPLOYS, VERIFICATION
from tests.sabotages.views import VIEWS
from tests.sabotages.worker import WORKER
from tests.stacks import STACKS

COPIED = (
    *("housing", "tests", "conftest.py", "pytest.ini", "manage.py", "images.env", "README.md", "requirements-run.lock"),
    *("docs", "gunicorn.conf.py", "docker-compose.yml", "Dockerfile", ".github", ".ci", "Makefile", "requirements.lock", "requirements-image.lock"),
    ".gitignore",
)
"""The parts of the tree that the specs need."""

TIMEOUT = 120
"""Seconds until a spec counts as hung. It can wait three times, 30 seconds each, for an event that the sabotage prevents."""

SABOTAGES = (
    *JOURNAL,
    *SERVERS,
    *REQUESTS,
    *CONNECTIONS,
    *DEPENDENCIES,
    *JOINED,
    *PLACES,
    *SELECTS,
    *COMMIT,
    *STATEMENTS,
    *READS,
    *FAST_PATH,
    *FILLS,
    *SLOW_FILLS,
    *EXAMPLE,
    *IMPORTING,
    *KEYS,
    *VIEWS,
    *UPSERTS,
    *VERIFICATION,
    *DEPLOYS,
    *SCHEMA,
    *RUN,
    *OPERATORS,
    *OUTAGES,
    *OTHER_WRITERS,
    *ENVIRONMENT,
    *PRODUCTION,
    *WORKER,
    *ASGI,
    *INSTRUMENTS,
    *SAFETY,
)
"""The rows of all tables."""


class Misfit(Exception):
    """The old text of a sabotage is not in its file exactly once."""


def carry_out(sabotage: Sabotage, tree: Path) -> None:
    """Apply a sabotage to `tree`. Raises Misfit, and changes nothing, if it does not fit."""
    file = tree / "housing" / sabotage.file
    text = file.read_text(encoding="utf-8")
    if (times := text.count(sabotage.old)) != 1:
        raise Misfit(f"its old text is {times} times in housing/{sabotage.file} instead of once: update tests/sabotages/")
    file.write_text(text.replace(sabotage.old, sabotage.new), encoding="utf-8")


@contextmanager
def a_copy(root: Path) -> Iterator[Path]:
    """A temporary copy of the parts of the tree that are needed."""
    with tempfile.TemporaryDirectory(prefix="housing-sabotage-") as folder:
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, Path(folder, name))
            else:
                shutil.copy2(root / name, folder)
        yield Path(folder)


def outcome(tree: Path, spec: str, timeout: int, *options: str) -> str:
    """The last line that pytest prints about this spec in this tree: "1 failed in 0.12s". Raises TimeoutExpired."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *options, f"tests/{spec}"]
    environment = os.environ | {"SPECS_TIMEOUT": "30"}
    ended = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
    return (ended.stdout.strip().splitlines() or ["nothing"])[-1]


def complaint(sabotage: Sabotage, root: Path = ROOT, timeout: int = TIMEOUT) -> str | None:
    """The complaint about a sabotage, in one clause, or None if its spec fails as it should."""
    with a_copy(root) as tree:
        try:
            carry_out(sabotage, tree)
            result = outcome(tree, sabotage.spec, timeout, *([] if sabotage.stack == "embedded" else [f"--stack={sabotage.stack}"]))
        except Misfit as misfit:
            return str(misfit)
        except subprocess.TimeoutExpired:
            return f"{sabotage.spec} did not finish within {timeout} s"
    if " failed" in result:
        return None
    return f"{sabotage.spec} still passes" if " passed" in result and " error" not in result else f"{sabotage.spec} cannot be run: {result}"


def run(sabotages: Sequence[Sabotage], root: Path = ROOT) -> list[str]:
    """All complaints, one line each, with a progress bar. After Ctrl-C no copy is left."""
    complaints = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers, tqdm(total=len(sabotages), unit="sabotage", smoothing=0) as bar:
        running = {workers.submit(complaint, sabotage, root): sabotage for sabotage in sabotages}
        try:
            for done in as_completed(running):
                if wrong := done.result():
                    complaints.append(f"{running[done].what}: {wrong}")
                    bar.write(complaints[-1])
                bar.update()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    return complaints


def part_of(sabotages: Sequence[Sabotage], part: str) -> Sequence[Sabotage]:
    """Return a part of these sabotages, "1/4" for every fourth from the first. Raises ValueError."""
    number, parts = map(int, part.split("/"))
    if not 1 <= number <= parts:
        raise ValueError
    return sabotages[number - 1 :: parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tests.sabotages`. Returns 0 if every spec fails as it should, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sabotages", description="Change one line of housing/ at a time, in a copy, and check that its spec fails."
    )
    parser.add_argument("words", nargs="*", help="run only sabotages whose description or file contains these words")
    parser.add_argument("--stack", choices=STACKS, default="embedded", help="run only sabotages whose specs need this stack (default: %(default)s)")
    parser.add_argument("--part", default="1/1", metavar="N/M", help="run only every Mth of them, from the Nth (default: %(default)s)")
    options = parser.parse_args(arguments)
    words = " ".join(options.words)
    chosen: Sequence[Sabotage] = [sabotage for sabotage in SABOTAGES if sabotage.stack == options.stack and words in f"{sabotage.file} {sabotage.what}"]
    if not chosen:
        parser.error(f"no sabotage has “{words}” in its description or file")
    try:
        chosen = part_of(chosen, options.part)
    except ValueError:
        parser.error(f"“{options.part}” is not a part: write for example 1/4")
    try:
        complaints = run(chosen)
    except KeyboardInterrupt:
        return 130
    tqdm.write(f"{len(chosen)} {'sabotage' if len(chosen) == 1 else 'sabotages'}, {len(chosen) - len(complaints)} noticed.")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
