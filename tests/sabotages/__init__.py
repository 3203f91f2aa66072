"""Sabotages: wrong lines of `housing` and of the instruments, each with the spec that has to fail for it, in one table for each part of the code.

`python -m tests.sabotages` runs them. `make mutants` also runs generated ones, whose accepted survivors are in `equivalent_mutants.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sabotage:
    """One wrong line of `file` (its path from `housing/`), and the spec (in `tests/`) that has to fail for it."""

    what: str
    file: str
    old: str
    new: str
    spec: str
    stack: str = "embedded"
    """The stack that the spec needs."""
