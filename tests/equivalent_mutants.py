"""Mutants that no spec can notice, and why. `make mutants` fails for any other, and for a row that excuses none any more.

mutmut run                    makes the mutants, and runs the specs that reach each; stopped, it goes on where it was
python -m tests.equivalent_mutants     what it left: survivors that are not excused here, and excuses without a survivor
mutmut show NAME              one mutant; `mutmut run NAME` tries it again, after a spec was made sharper
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

EXCUSED: dict[str, str] = {
    r"cast\(None, ": "What a cast is told is for mypy alone.",
    r"os\.urandom\(\d\)": "How many random bytes are enough is luck, and no spec depends on it.",
    r'entry: str = "XXXX"': "What is not about an entry is given a key, and does not look at it.",
    r"len\(tags\) < MANY_ROWS": "As many as are kept one by one are kept on either way; the short one saves each write a count.",
    r'"evalsha"': "Redis reads the name of a command in small letters, too.",
    r"_sha(: str \| None)? = \"\"": "No text of a script has an empty SHA, as none has None.",
    r"super\(\).__init__\(\*args, \)": "PostgreSQL's `_nodb_cursor` alone says `alias=`, and mutmut runs the specs on the embedded stack.",
    r"create_function\(PROBE, 0, None\)": "While a statement is pending, SQLite refuses to take a function away as it refuses to change it.",
    r'normalize\(\), "F"\)': "`f` and `F` write a finite number alike.",
}
"""What a surviving mutant's line looks like (a regular expression) → why no spec can tell it from the line as it was. At most ten rows."""

NOTICED = ("killed", "timeout", "segfault")
"""mutmut's words for a mutant that did not get away; a module that cannot be imported any more is a timeout to it."""

Ask = Callable[..., str]
"""Runs `mutmut` with these arguments; what it prints."""


def mutmut(*arguments: str) -> str:
    """What mutmut prints. Raises CalledProcessError where it fails."""
    return subprocess.run([Path(sys.executable).with_name("mutmut"), *arguments], check=True, capture_output=True, text=True).stdout


def left(results: str) -> Iterator[tuple[str, str]]:
    """(name, what became of it) of each mutant that was not noticed, of what `mutmut results` prints."""
    for line in results.splitlines():
        name, found, verdict = line.strip().rpartition(": ")
        if found and verdict not in NOTICED:
            yield name, verdict


def mutated_lines(diff: str) -> str:
    """The lines that a mutant has instead of ours, of what `mutmut show` prints."""
    return "\n".join(line[1:].strip() for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++"))


def complaints(ask: Ask = mutmut) -> list[str]:
    """One line for each mutant that got away without an excuse, and for each excuse that none needs."""
    wrong, needed = [], set()
    for name, verdict in tqdm(list(left(ask("results"))), unit="mutant", leave=False):
        lines = mutated_lines(ask("show", name))
        excuses = [pattern for pattern in EXCUSED if verdict == "survived" and re.search(pattern, lines)]
        needed.update(excuses)
        if not excuses:
            wrong.append(f"{name}: {verdict}: {lines}")
    return wrong + [f"{pattern}: no mutant needs this excuse" for pattern in EXCUSED if pattern not in needed]


def main(ask: Ask = mutmut) -> int:
    """`python -m tests.equivalent_mutants`: 0 if every mutant was noticed, or is excused."""
    wrong = complaints(ask)
    tqdm.write("\n".join(wrong or ["Every mutant is noticed, or excused."]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
