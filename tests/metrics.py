"""What a run measured: a table for people, and JSON in `reports/` for `make report`. A pytest plugin, loaded by `addopts`.

`pytest --benchmark-only` leaves `reports/bench.json`, in pytest-benchmark's format; `pytest --metrics` leaves `reports/counts.json`, which holds what
specs gave to their fixture `figure`. A time above its budget is a figure, too; a count that fails is none. Ctrl-C leaves the files of the run before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

REPORTS = Path(__file__).resolve().parent.parent / "reports"
"""Where what was measured is kept; git ignores it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--metrics`."""
    parser.getgroup("housing").addoption("--metrics", action="store_true", help="only the specs that count what `make report` shows; in reports/counts.json")


def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark looks where to write."""
    if config.option.benchmark_only and not config.option.benchmark_json:
        REPORTS.mkdir(exist_ok=True)
        config.option.benchmark_json = part_of(REPORTS / "bench.json")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what measures nothing, where only measurements are asked for."""
    for fixture, asked in (("benchmark", config.option.benchmark_only), ("metric", config.option.metrics)):
        if asked:
            config.hook.pytest_deselected(items=[item for item in items if fixture not in item.fixturenames])
            items[:] = [item for item in items if fixture in item.fixturenames]


@pytest.fixture
def metric(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`figure("queries", door="naive", queries=61)`: a row that this spec measured."""

    def metric(kind: str, **row: object) -> None:
        record_property("metric", [kind, row])

    return metric


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Say on which servers it was measured."""
    output_json["stack"] = config.option.stack


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """After Ctrl-C, keep pytest-benchmark from writing: it stumbles over a benchmark that was interrupted in its first round."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        benchmarks: Any = session.config.pluginmanager.get_plugin("pytest-benchmark")
        benchmarks.benchmarks.clear()
        benchmarks.json = None
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Show what took how long, and keep what was measured."""
    if config.option.benchmark_only:
        written = Path(config.option.benchmark_json)
        if written.exists():
            for line in table(ways_of(json.loads(written.read_text(encoding="utf-8")))):
                terminalreporter.write_line(line)
        keep(REPORTS / "bench.json", exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
    if config.option.metrics:
        REPORTS.mkdir(exist_ok=True)
        found = counted(terminalreporter.getreports("passed"), config)
        part_of(REPORTS / "counts.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        keep(REPORTS / "counts.json", exitstatus == pytest.ExitCode.OK)


def part_of(file: Path) -> Path:
    """What this file is called until it is whole."""
    return file.with_name(f"{file.name}.part")


def keep(file: Path, whole: bool) -> None:
    """Put what was written in the place of what was there, if it is whole."""
    part = part_of(file)
    if whole and part.exists():
        part.replace(file)
    part.unlink(missing_ok=True)


def counted(reports: Sequence[pytest.TestReport], config: pytest.Config) -> dict[str, Any]:
    """What the specs gave to `figure`, by kind, and when, where and of which commit."""
    kinds: dict[str, Any] = {}
    for kind, row in (told for report in reports for name, told in report.user_properties if name == "metric"):
        kinds.setdefault(kind, []).append(row)
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    return {"datetime": datetime.now(UTC).isoformat(), "commit_info": commit, "stack": config.option.stack} | kinds


# What took how long


@dataclass(frozen=True)
class Way:
    """A row of the benchmarks: the median of one way in milliseconds, and how many times the other it takes, with the interval of that."""

    group: str
    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.milliseconds:7.2f} ms  {self.ratio:6.3f}  ({self.low:.3f} to {self.high:.3f})  {self.rounds:5} rounds"

    @property
    def this(self) -> str:
        """`cold` of "cold to naive"."""
        return self.name.partition(" to ")[0]

    @property
    def other(self) -> str:
        """`naive` of "cold to naive"."""
        return self.name.partition(" to ")[2]


ORDER = ("naive", "optimized", "cold", "warm", "baselines", "write")
"""The groups, as they are read."""


def ways_of(bench: dict[str, Any]) -> list[Way]:
    """The rows of what pytest-benchmark wrote, group by group."""
    ways = [
        Way(
            told["group"],
            told["name"].partition(": ")[0],
            told["stats"]["median"] * 1000,
            told["extra_info"]["ratio"],
            *told["extra_info"]["interval"],
            told["stats"]["rounds"],
        )
        for told in bench["benchmarks"]
    ]
    return sorted(ways, key=lambda way: (ORDER.index(way.group), way.ratio))


def table(ways: Sequence[Way]) -> Iterator[str]:
    """The same for a terminal."""
    width = max(len(way.name) for way in ways) + 2
    yield f"\n{'':{width}}  {'median':>10}  × the other, and between what it lies in 99 of 100 runs"
    for group, rows in groupby(ways, attrgetter("group")):
        yield group
        yield from (f"  {way.name:{width - 2}}  {way}" for way in rows)
