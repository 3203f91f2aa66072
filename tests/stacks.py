"""Which servers the specs run against, chosen before Django reads its settings.

A pytest plugin, loaded by `addopts`: a `conftest.py` would be too late.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

STACKS = {"embedded": "SQLite and fakeredis, in process"}
"""The stacks there are; SPEC.md has a column for each."""


FOLDER = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--stack`."""
    parser.getgroup("housing").addoption("--stack", choices=STACKS, default="embedded", help="the servers to run against (default: %(default)s)")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    """Before pytest-django reads the settings."""
    early_config.stash[FOLDER] = new_folder()
    os.environ |= {
        "DJANGO_DEBUG": "false",
        "DJANGO_SECRET_KEY": "the specs' own, so that cursors are the same in every run",
        "DATABASE_URL": f"sqlite:///{early_config.stash[FOLDER]}/housing.sqlite3",
        "REDIS_URL": "fakeredis://",
    }
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Timings are asked for with --benchmark-only; without, each budget runs once, for its counts."""
    config.option.benchmark_disable = not config.option.benchmark_only


def pytest_unconfigure(config: pytest.Config) -> None:
    """What the run made goes with it."""
    shutil.rmtree(config.stash[FOLDER])


def new_folder() -> str:
    """A folder for the database, in memory where the system has one. A file, for two connections must see one database."""
    memory = Path("/dev/shm")
    return tempfile.mkdtemp(prefix="housing-specs-", dir=memory if os.access(memory, os.W_OK) else None)
