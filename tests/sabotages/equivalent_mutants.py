"""Equivalent mutants: those that no spec can notice, with the reason. `make mutants` fails for any other surviving mutant, and for an outdated row here.

mutmut run                                      make the mutants, and run the specs that reach each; continue where it was stopped
python -m tests.sabotages.equivalent_mutants    print the share that was noticed, list surviving mutants that are not listed here, and rows without a mutant
python -m tests.sabotages.equivalent_mutants --stack=real    judge the mutants of PostgreSQL's code on the servers that `pytest --stack=real` would use
python -m tests.sabotages.equivalent_mutants --sample N [--seed S]    run and judge N mutants that this seed draws, where all of them would take too long
mutmut show NAME                                show one mutant; after you have improved a spec, `mutmut run NAME` runs it again
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from tests import ROOT
from tests.stacks import STACKS

EQUIVALENT: dict[str, str] = {
    r"cast\(None, ": "Only mypy reads the type in a cast.",
    r"os\.urandom\(\d\)": "The number of random bytes only changes how likely a collision is, and no spec can depend on that.",
    r'entry: str = "XXXX"': "A command that is not about an entry gets a key because it must, and ignores it.",
    r"len\(tags\) < MANY_ROWS": "Both branches give the same tags at this length. The shorter one saves each write a count.",
    r'"evalsha"': "Redis accepts command names in lower case, too.",
    r"_sha(: str \| None)? = \"\"": "No script has an empty SHA, and none has None.",
    r"super\(\).__init__\(\*args, \)": "Only PostgreSQL's `_nodb_cursor` passes `alias=`, and mutmut runs the specs on the embedded stack.",
    r"create_function\(PROBE, 0, None\)": "While a statement is pending, SQLite refuses to remove a function, just as it refuses to change it.",
    r'normalize\(\), "F"\)': "`f` and `F` format a finite number in the same way.",
}
"""A regular expression for the lines of a surviving mutant → why no spec can tell it from the original line. At most ten rows."""

NOTICED = ("killed", "timeout", "segfault")
"""mutmut's words for a mutant that was noticed. A module that can no longer be imported counts as a timeout."""

NOT_RUN = "not checked"
"""mutmut's word for a mutant that was not run yet."""

POSTGRESQL = "housing.freshness.postgresql."
"""The beginning of the names of mutants that the embedded stack does not run."""

Ask = Callable[..., str]
"""A function that runs `mutmut` with these arguments and returns its output."""


def mutmut(*arguments: str) -> str:
    """Run mutmut and return its output. Raises CalledProcessError if it fails."""
    return subprocess.run([Path(sys.executable).with_name("mutmut"), *arguments], check=True, capture_output=True, text=True).stdout


def verdicts(results: str) -> dict[str, str]:
    """The verdict of each mutant, from the output of `mutmut results --all true`."""
    found = (line.strip().rpartition(": ") for line in results.splitlines())
    return {name: verdict for name, colon, verdict in found if colon and "__mutmut_" in name}


def is_noticed_by_any(name: str, stack: str = "embedded") -> bool:
    """Whether any spec notices this mutant. mutmut runs only those that reach its function: not in a process, and not in a memory that was filled before.

    PostgreSQL's code runs on this stack, and all other code on the embedded one. Raises CalledProcessError if pytest cannot run.
    """
    return any(_is_noticed_as(each, stack) for each in names_of(name))


def names_of(name: str) -> Iterator[str]:
    """The names of a mutant: its own, that in a program that `python -m` runs, and that in the copy of the engine in another project."""
    yield name
    module, _, rest = name.rpartition(".")
    source = (ROOT / Path(*module.split("."))).with_suffix(".py")
    if source.is_file() and 'if __name__ == "__main__"' in source.read_text(encoding="utf-8"):
        yield f"__main__.{rest}"
    if name.startswith("housing.freshness."):
        yield name.removeprefix("housing.")


def _is_noticed_as(name: str, stack: str) -> bool:
    selection = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]["pytest_add_cli_args_test_selection"]
    command = [sys.executable, "-m", "pytest", "-q", "--exitfirst", "--failed-first", "--tb=no", "-n", "auto", *selection]
    if name.startswith(POSTGRESQL):
        command.append(f"--stack={stack}")
    ended = subprocess.run(command, check=False, cwd="mutants", env=os.environ | {"MUTANT_UNDER_TEST": name}, capture_output=True, text=True)
    if ended.returncode not in (0, 1, 2):  # 2: a chapter could not even be collected
        raise subprocess.CalledProcessError(ended.returncode, command, ended.stdout, ended.stderr)
    return ended.returncode != 0


def shares(results: str, later: Collection[str] = ()) -> list[str]:
    """One line for each module, and one for all: how many of its mutants were run, and the share that was noticed, some of them `later`, when all specs ran."""
    run, noticed = Counter[str](), Counter[str]()
    for name, verdict in verdicts(results).items():
        for module in ("all", name.rpartition(".")[0]):
            run[module] += verdict != NOT_RUN
            noticed[module] += verdict in NOTICED or name in later
    return [f"{module:<50} {noticed[module]:>5} of {count:>5} {noticed[module] / count:7.1%}" for module, count in sorted(run.items()) if count]


def drawn(number: int, seed: int, ask: Ask) -> list[str]:
    """The names of this many mutants. A seed draws the same ones until the code changes."""
    if not (names := sorted(verdicts(ask("results", "--all", "true")))):
        with suppress(subprocess.CalledProcessError):  # mutmut makes all mutants, and then finds none with this name
            ask("run", "none")
        names = sorted(verdicts(ask("results", "--all", "true")))
    return random.Random(seed).sample(names, min(number, len(names)))


def left(results: str) -> Iterator[tuple[str, str]]:
    """The name and the verdict of each mutant that was not noticed, from the output of `mutmut results`."""
    for line in results.splitlines():
        name, found, verdict = line.strip().rpartition(": ")
        if found and verdict not in NOTICED:
            yield name, verdict


def mutated_lines(diff: str) -> str:
    """The lines that a mutant has instead of ours, from the output of `mutmut show`."""
    return "\n".join(line[1:].strip() for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++"))


def judged(ask: Ask, again: Callable[[str], bool], sample: Collection[str] = ()) -> tuple[list[str], set[str]]:
    """One line for each surviving mutant that is not listed, and for each row without a mutant, and the mutants that a spec notices which mutmut did not run.

    With a sample, only its mutants count, and no rows.
    """
    wrong, matched, later = [], set(), set()
    for name, verdict in tqdm([each for each in left(ask("results")) if not sample or each[0] in sample], unit="mutant", leave=False):
        lines = mutated_lines(ask("show", name))
        patterns = [pattern for pattern in EQUIVALENT if verdict == "survived" and re.search(pattern, lines)]
        matched.update(patterns)
        if not patterns and again(name):
            later.add(name)
        elif not patterns:
            wrong.append(f"{name}: {verdict}: {lines}")
    return wrong + [f"{pattern}: no mutant matches this pattern any more" for pattern in EQUIVALENT if pattern not in matched and not sample], later


def main(ask: Ask = mutmut, arguments: Sequence[str] = (), again: Callable[[str, str], bool] = is_noticed_by_any) -> int:
    """The command `python -m tests.sabotages.equivalent_mutants`. Returns 0 if every mutant was noticed or is listed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.sabotages.equivalent_mutants", description="Judge the mutants that mutmut has run.")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="run N mutants first, and judge only these")
    parser.add_argument("--seed", type=int, default=1, help="which mutants (default: %(default)s)")
    parser.add_argument("--stack", choices=STACKS, default="embedded", help="where specs judge the mutants of PostgreSQL's code (default: %(default)s)")
    options = parser.parse_args(arguments)
    sample = drawn(options.sample, options.seed, ask) if options.sample else []
    if sample:
        ask("run", *sample)
    wrong, later = judged(ask, lambda name: again(name, options.stack), sample)
    tqdm.write("\n".join(shares(ask("results", "--all", "true"), later)))
    tqdm.write("\n".join(wrong or ["Every mutant is noticed, or listed as equivalent."]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(arguments=sys.argv[1:]))
