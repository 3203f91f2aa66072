"""Saves the results of a run: a table in the terminal, and JSON in `reports/` for `make report`. A pytest plugin, loaded by `addopts`.

`pytest --benchmark-only` writes `reports/bench.json`, in pytest-benchmark's format. `pytest --metrics` writes `reports/counts.json`, with the results
that specs gave to their fixture `metric`. A time or a count above its budget is saved, too. The previous files remain if a result is missing, or after Ctrl-C.
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

from tests import ROOT

REPORTS = ROOT / "reports"
"""The folder with the results. git ignores it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--metrics`."""
    parser.getgroup("housing").addoption("--metrics", action="store_true", help="run only the counts that `make report` shows, into reports/counts.json")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest-benchmark where to write, before it reads its options."""
    if config.option.benchmark_only and not config.option.benchmark_json:
        REPORTS.mkdir(exist_ok=True)
        config.option.benchmark_json = part_of(REPORTS / "bench.json")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect specs that measure nothing, if an option selects measurements only."""
    for fixture, selected in (("benchmark", config.option.benchmark_only), ("metric", config.option.metrics)):
        if selected:
            config.hook.pytest_deselected(items=[item for item in items if fixture not in item.fixturenames])
            items[:] = [item for item in items if fixture in item.fixturenames]


@pytest.fixture
def metric(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Saves one result: `metric("queries", way="naive", queries=61)`."""

    def metric(kind: str, **row: object) -> None:
        record_property("metric", [kind, row])

    return metric


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Save which servers were measured."""
    output_json["stack"] = config.option.stack


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """After Ctrl-C keep pytest-benchmark from writing, because it fails for a benchmark that was interrupted in its first round."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        benchmarks: Any = session.config.pluginmanager.get_plugin("pytest-benchmark")
        benchmarks.benchmarks.clear()
        benchmarks.json = None
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Show the times, and save the results."""
    if config.option.benchmark_only:
        written = Path(config.option.benchmark_json)
        if written.exists():
            for line in table(benchmarks_of(json.loads(written.read_text(encoding="utf-8")))):
                terminalreporter.write_line(line)
        keep(REPORTS / "bench.json", exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
    if config.option.metrics:
        REPORTS.mkdir(exist_ok=True)
        failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
        found = counted([*terminalreporter.getreports("passed"), *failed], config)
        complete = exitstatus == pytest.ExitCode.OK or (exitstatus == pytest.ExitCode.TESTS_FAILED and all(map(metrics_of, failed)))
        part_of(REPORTS / "counts.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        keep(REPORTS / "counts.json", complete)


def part_of(file: Path) -> Path:
    """The name of this file until it is complete."""
    return file.with_name(f"{file.name}.part")


def keep(file: Path, complete: bool) -> None:
    """Replace the previous file, if the new one is complete."""
    part = part_of(file)
    if complete and part.exists():
        part.replace(file)
    part.unlink(missing_ok=True)


def counted(reports: Sequence[pytest.TestReport], config: pytest.Config) -> dict[str, Any]:
    """The results that specs gave to `metric`, by kind, with the time, the stack and the commit."""
    kinds: dict[str, Any] = {}
    for kind, row in (value for report in reports for value in metrics_of(report)):
        kinds.setdefault(kind, []).append(row)
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    return {"datetime": datetime.now(UTC).isoformat(), "commit_info": commit, "stack": config.option.stack} | kinds


def metrics_of(report: pytest.TestReport) -> list[Any]:
    """The results that one spec gave to `metric`."""
    return [value for name, value in report.user_properties if name == "metric"]


# The times


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its median in milliseconds, its ratio to the baseline with its interval, and the budgets of both."""

    group: str
    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    rounds: int
    at_most: float | None = None
    within: float | None = None

    def __str__(self) -> str:
        return f"{self.milliseconds:7.2f} ms  {self.ratio:6.3f}  ({self.low:.3f} to {self.high:.3f})  {self.rounds:5} rounds"

    @property
    def this(self) -> str:
        """`cold` of "cold to naive"."""
        return self.name.partition(" to ")[0]

    @property
    def baseline(self) -> str:
        """`naive` of "cold to naive"."""
        return self.name.partition(" to ")[2]


ORDER = ("naive", "optimized", "cold", "warm", "baselines", "write")
"""The groups, in the order of the report."""


def benchmarks_of(bench: dict[str, Any]) -> list[Benchmark]:
    """The benchmarks that pytest-benchmark wrote, by group and ratio."""
    benchmarks = [
        Benchmark(
            row["group"],
            row["name"].partition(": ")[0],
            row["stats"]["median"] * 1000,
            row["extra_info"]["ratio"],
            *row["extra_info"]["interval"],
            row["stats"]["rounds"],
            row["extra_info"].get("at most"),
            row["extra_info"].get("within"),
        )
        for row in bench["benchmarks"]
    ]
    return sorted(benchmarks, key=lambda each: (ORDER.index(each.group), each.ratio))


def table(benchmarks: Sequence[Benchmark]) -> Iterator[str]:
    """The lines of a table for a terminal."""
    width = max(len(each.name) for each in benchmarks) + 2
    yield f"\n{'':{width}}  {'median':>10}  × the baseline (99% interval)"
    for group, rows in groupby(benchmarks, attrgetter("group")):
        yield group
        yield from (f"  {each.name:{width - 2}}  {each}" for each in rows)
