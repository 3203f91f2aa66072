"""Draws the results in `reports/`: `bench.svg`, and `report.html`, one page that loads nothing from elsewhere.

It measures nothing itself. For missing results the page names the command that makes them. `make report` first runs those that take a minute at most.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from django.conf import settings
from django.template import Context, Engine
from django.utils.safestring import mark_safe

from tests.measurements.metrics import REPORTS, Benchmark, benchmarks_of, part_of
from tests.stacks import STACKS

TEMPLATE = Path(__file__).with_suffix(".html")
"""It is not among the service's templates, because the service does not serve it."""

MADE_BY = {"bench": "make bench", "counts": "make report", "load": "make load"}
"""The files that are read, and the command that makes each."""

VARIANTS = {"naive": ("naive", "naive"), "optimized": ("optimized", "optimized"), "cached": ("cold", "warm")}
"""Variant → the names of its cold and of its warm read. Those of an uncached variant are the same."""

WAYS = [name for names in VARIANTS.values() for name in names]

UNKNOWN = "—"

Metrics = dict[str, Any]
"""The content of a file in `reports/`. It is empty if there is no such file."""


# Plots


@dataclass(frozen=True)
class Bar:
    """A row of a plot: its label, its result in a few words, the length of each part, and the interval of its end.

    `exact` is the complete result, for the table below the plot.
    """

    label: str
    text: str
    parts: Mapping[str, float]
    interval: tuple[float, float] | None = None
    exact: str = ""


@dataclass(frozen=True)
class Plot:
    """Horizontal bars to scale, in groups. `legend` names the kinds of parts, and a vertical line shows the value `mark`.

    A logarithmic scale has no zero, so the length of a bar would mean nothing. It has dots instead, with a line for the interval.
    """

    title: str
    note: str
    groups: Mapping[str, Sequence[Bar]]
    legend: Mapping[str, str] = field(default_factory=dict)
    logarithmic: bool = False
    mark: float | None = None

    @property
    def svg(self) -> str:
        """The drawing for the page, where the title is a heading."""
        return mark_safe(draw(self))


WIDTH, LEFT, LINE = 360, 8, 40
"""In units of the drawing. A letter is about seven wide. The drawing is narrow, so that its text is readable on a phone."""

STYLE = """
.plot{font:14px system-ui,sans-serif;--ink:#1b1f24;--paper:#fff;--line:#c9d1d9;--bar:#2f6fb3;--stale:#b4371f;--over:#d9a514;--warm:#c3d9c6}
@media(prefers-color-scheme:dark){.plot{--ink:#e6e8eb;--paper:#14171a;--line:#4a525b;--bar:#6ea8e0;--stale:#f0785f;--over:#c99a1c;--warm:#35543b}}
.plot .paper{fill:var(--paper)}.plot text{fill:var(--ink);stroke:var(--paper);stroke-width:4px;paint-order:stroke}
.plot .title,.plot .group{font-weight:600}.plot .title{font-size:16px}
.plot .grid{stroke:var(--line)}.plot .interval{stroke:var(--ink);stroke-width:2}
.plot .bar{fill:var(--bar)}.plot .stale{fill:var(--stale)}.plot .over{fill:var(--over)}.plot .warm{fill:var(--warm)}
"""


def draw(plot: Plot, titled: bool = False) -> str:
    """The plot as SVG, light or dark, and readable at a width of 320 pixels."""
    bars = [bar for group in plot.groups.values() for bar in group]
    ends = [end for bar in bars for end in (sum(bar.parts.values()), *(bar.interval or ()))]
    low, high = (math.floor(math.log10(min(ends))), math.ceil(math.log10(max(ends)) + 1e-9)) if plot.logarithmic else (0, max(ends))

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - 2 * LEFT) * ((math.log10(value) if plot.logarithmic else value) - low) / (high - low), 1)

    top = 30 if titled else 0
    parts, y = list(_legend(plot, top)), top + 22 * len(plot.legend)
    for name, group in plot.groups.items():
        y += 24
        parts.append(f'<text class="group" x="{LEFT}" y="{y}">{escape(name)}</text>')
        for bar in group:
            parts.append(f'<text x="{LEFT}" y="{y + 22}">{escape(bar.label)}</text>')
            parts.append(f'<text x="{WIDTH - LEFT}" y="{y + 22}" text-anchor="end">{escape(bar.text)}</text>')
            parts += _logarithmic(bar, y + 34, x) if plot.logarithmic else _linear(bar, y + 34, x)
            y += LINE
    height = y + (32 if plot.logarithmic else 16)
    mark = [f'<path class="grid" d="M{x(plot.mark)} {top + 32}V{y + 8}"/>'] if plot.mark else []
    grid = [
        f'<path class="grid" d="M{x(10**power)} {top + 32}V{y + 8}"/><text x="{x(10**power)}" y="{y + 24}" text-anchor="{anchor}">{_time(10**power)}</text>'
        for power in (range(low, high + 1) if plot.logarithmic else ())
        for anchor in [{low: "start", high: "end"}.get(power, "middle")]
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
            f"<title>{escape(plot.title)}</title><style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            *([f'<text class="title" x="{LEFT}" y="24">{escape(plot.title)}</text>'] if titled else []),
            *mark,
            *grid,
            *parts,
            "</svg>\n",
        ]
    )


def _legend(plot: Plot, top: int) -> Iterator[str]:
    for line, (kind, words) in enumerate(plot.legend.items()):
        y = top + 4 + 22 * line
        yield f'<rect class="{kind}" x="{LEFT}" y="{y}" width="14" height="14"/><text x="{LEFT + 22}" y="{y + 12}">{escape(words)}</text>'


def _linear(bar: Bar, y: float, x: Any) -> Iterator[str]:
    end = 0.0
    for kind, length in bar.parts.items():
        yield f'<rect class="{kind}" x="{x(end)}" y="{y - 5}" width="{x(end + length) - x(end):.1f}" height="10"/>'
        end += length
    if bar.interval:
        yield f'<path class="interval" d="M{x(bar.interval[0])} {y}H{x(bar.interval[1])}"/>'


def _logarithmic(bar: Bar, y: float, x: Any) -> Iterator[str]:
    if bar.interval:
        yield f'<path class="interval" d="M{x(bar.interval[0])} {y}H{x(bar.interval[1])}"/>'
    yield f'<circle class="bar" cx="{x(sum(bar.parts.values()))}" cy="{y}" r="5"/>'


def how_long(bench: Metrics) -> Plot:
    """The ratio of each benchmark to its baseline."""
    by_baseline = groupby(sorted(benchmarks_of(bench), key=attrgetter("baseline")), attrgetter("baseline"))
    groups = {f"{baseline} = 1": list(map(_timed, benchmarks)) for baseline, benchmarks in by_baseline}
    note = "Each was timed alternately with its baseline, which is 1. The thin line is the 99% confidence interval of the median."
    return Plot("How long it takes", note, dict(sorted(groups.items(), key=lambda named: named[0] != "naive = 1")), mark=1)


def _timed(each: Benchmark) -> Bar:
    took = _time(each.milliseconds)
    exact = f"{each.ratio:.3f} × ({each.low:.3f} to {each.high:.3f}), {took}"
    return Bar(each.this, f"{each.ratio:.2f} ×, {took}", {"bar": each.ratio}, (each.low, each.high), exact)


def how_many_queries(counts: Metrics) -> Plot:
    """The queries of each variant, by the size of the page."""
    rows = sorted(counts["queries"], key=lambda row: (row["page_size"], WAYS.index(row["way"])))
    groups = {
        f"A page of {size}": [Bar(row["way"], str(row["queries"]), {"bar": row["queries"]}) for row in same]
        for size, same in groupby(rows, lambda row: row["page_size"])
    }
    return Plot("SQL queries", "The bars are to scale, so one query is barely visible and zero queries have no bar.", groups)


def what_goes_stale(counts: Metrics) -> Plot:
    """The pages that a write invalidates, by the written model and by how it is written."""
    seen: dict[str, dict[str, str]] = defaultdict(lambda: defaultdict(str))
    for row in counts["precision"]:
        seen[row["way"]][re.split("[. ]", row["write"])[0]] += row["pages"]
    groups = {way: [_outcomes(model, pages) for model, pages in sorted(models.items())] for way, models in sorted(seen.items())}
    legend = {"stale": "stale, and its bytes changed", "over": "over-invalidation: stale, and its bytes did not change", "warm": "stayed warm"}
    pages = len(counts["precision"][0]["pages"])
    note = f"The average over the columns of each model, of {pages} pages. cache.clear() on a signal makes all of them stale every time."
    return Plot("Pages that a write invalidates", note, groups, legend)


def _outcomes(model: str, pages: str) -> Bar:
    """In `pages` a capital letter is stale with changed bytes, a small letter is over-invalidation, and a dot stayed warm."""
    kinds = Counter("warm" if page == "." else "stale" if page.isupper() else "over" for page in pages)
    share = {kind: kinds[kind] / len(pages) for kind in ("stale", "over", "warm")}
    return Bar(
        model, f"{share['warm']:.0%} warm", share, exact=f"{share['stale']:.1%} changed, {share['over']:.1%} over-invalidation, {share['warm']:.1%} warm"
    )


def what_stays_warm(counts: Metrics) -> Plot:
    """The share of the unchanged pages of a portal that stay warm after a write, by the strategy of invalidation."""
    groups = {
        size: [Bar(row["strategy"], f"{row['warm']:.1f} %", {"bar": row["warm"]}) for row in same]
        for size, same in groupby(counts["portal"], lambda row: f"{row['pages']:,} pages, the mean of {row['writes']:,} writes")
    }
    note = "Cached pages over all filters, orders and pages, and random writes. SPEC.md has a run of 10,000 pages and 1,000 writes (make portal)."
    return Plot("Unchanged pages that stay warm after a write", note, groups)


def under_load(load: Metrics) -> Plot:
    """The median of each load test, with a line to its 95th percentile."""
    bars = [
        Bar(row["name"], _time(row["p50"]), {"bar": row["p50"]}, (row["p50"], row["p95"]), f"median {_time(row['p50'])}, p95 {_time(row['p95'])}")
        for row in load["rows"]
    ]
    note = "The scale is logarithmic: each grey line is ten times the one before. The dot is the median, and the line ends at the 95th percentile."
    return Plot("Load test", note, {"median and p95": bars}, logarithmic=True)


def _time(milliseconds: float) -> str:
    """A time with its significant digits, and a no-break space before the unit."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g}\N{NO-BREAK SPACE}s"
    digits = 2 if milliseconds < 1 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}\N{NO-BREAK SPACE}ms"


# The series' table


def series(bench: Metrics, counts: Metrics, load: Metrics) -> list[tuple[str, list[str]]]:
    """The rows of the table, each with a cell for every variant."""
    queries = {row["way"]: str(row["queries"]) for row in counts.get("queries", []) if row["page_size"] == 20}
    again = {row["variant"]: str(row["queries"]) for row in counts.get("second read", [])}
    fresh = {row["variant"]: f"{row['fresh']} of {row['edits']}" for row in counts.get("freshness", [])}
    benchmarks = {each.this: each for each in (benchmarks_of(bench) if bench else []) if each.baseline == "naive"}
    times = {name: _time(each.milliseconds) for name, each in benchmarks.items()}
    ratios = {name: f"{each.ratio:.2f}" for name, each in benchmarks.items()}
    under_load = {row["beats"]: f"{_time(row['p50'])}, {_time(row['p95'])}" for row in load.get("rows", [])}
    stale = {"cached": f"{len(load['stale'])} of {load['reads']:,}"} if load else {}
    users = f"{_users(load)} users"
    rows = [
        ("SQL queries, cold", queries, 0),
        ("SQL queries, warm", again, None),
        ("Response time, cold", times, 0),
        ("relative to naive", ratios, 0),
        ("Response time, warm", times, 1),
        ("relative to naive", ratios, 1),
        ("New prices in the next read", fresh, None),
        (f"{users}, cold: median, p95", under_load, 0),
        (f"{users}, warm: median, p95", under_load, 1),
        ("Stale reads while prices change", stale, None),
    ]
    return [(name, [cells.get(variant if which is None else names[which], UNKNOWN) for variant, names in VARIANTS.items()]) for name, cells, which in rows]


def _users(load: Metrics) -> str:
    names = [row["name"] for row in load.get("rows", []) if row["beats"]]
    return re.findall(r"[0-9]+", names[0])[0] if names else "50"


# Budgets


@dataclass(frozen=True)
class Budget:
    """A result beside its budget. `share` is the part of the budget that is used, and `verdict` says in words if it is exceeded."""

    name: str
    result: str
    budget: str
    share: str
    verdict: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the spec of this budget fails."""
        return self.verdict == OVER


OVER, UNCERTAIN = "over budget", "above it, but within the interval"


def budgets(bench: Metrics, counts: Metrics) -> list[Budget]:
    """Every result that has a budget, counts first."""
    return [*_counted_budgets(counts), *(budget for each in (benchmarks_of(bench) if bench else []) for budget in _timed_budgets(each))]


def _counted_budgets(counts: Metrics) -> Iterator[Budget]:
    for row in sorted(counts.get("queries", []), key=lambda row: WAYS.index(row["way"])):
        if row["page_size"] == 20 and "budget" in row:  # a file of an older version has none
            exceeded = row["queries"] != row["budget"]
            yield Budget(f"SQL queries, {row['way']}", str(row["queries"]), f"exactly {row['budget']}", _share(row["queries"], row["budget"]), OVER * exceeded)
    for row in sorted(counts.get("calls", []), key=itemgetter("request")):
        exceeded = row["calls"] > row["budget"]
        yield Budget(f"Python calls, {row['request']}", f"{row['calls']:,}", f"{row['budget']:,}", _share(row["calls"], row["budget"]), OVER * exceeded)


def _timed_budgets(each: Benchmark) -> Iterator[Budget]:
    if each.at_most is not None:
        verdict = OVER if each.low > each.at_most else UNCERTAIN if each.ratio > each.at_most else ""
        yield Budget(f"{each.this}, relative to {each.baseline}", f"{each.ratio:.3f} ×", f"{each.at_most:g} ×", _share(each.ratio, each.at_most), verdict)
    if each.within is not None:
        exceeded = each.milliseconds > each.within
        yield Budget(
            f"{each.this}, median", _time(each.milliseconds), f"{each.within:g}\N{NO-BREAK SPACE}ms", _share(each.milliseconds, each.within), OVER * exceeded
        )


def _share(result: float, budget: float) -> str:
    """The part of the budget that is used. Nothing is a part of zero."""
    return f"{result / budget:.0%}" if budget else UNKNOWN


# The page


def read(folder: Path, name: str) -> Metrics:
    """The results in a file of this folder. Raises SystemExit with one line if the file is invalid."""
    file = folder / f"{name}.json"
    try:
        found: Metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SystemExit(f"{file} cannot be read ({error}). Delete it, or make it again: {MADE_BY[name]}") from None
    return found | {"when": found.get("datetime") or datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat()}


def source(name: str, found: Metrics) -> str:
    """The origin of some results, in one line."""
    if not found:
        return f"There is no reports/{name}.json yet. Run {MADE_BY[name]}"
    commit, machine = found.get("commit_info", {}), found.get("machine_info", {}).get("cpu", {})
    facts = [
        datetime.fromisoformat(found["when"]).strftime("%Y-%m-%d %H:%M UTC"),
        f"commit {commit['id'][:10]}{' with uncommitted changes' if commit['dirty'] else ''}" if commit else "",
        STACKS.get(found.get("stack", ""), ""),
        f"{machine['count']} cores of {machine.get('brand_raw', 'a processor')}" if machine else "",
    ]
    return f"reports/{name}.json, from {MADE_BY[name]}: {'; '.join(filter(None, facts))}"


def page(metrics: Mapping[str, Metrics]) -> str:
    """The page as HTML."""
    bench, counts, load = (metrics[name] for name in MADE_BY)
    drawn = ((how_long, bench), (how_many_queries, counts), (what_goes_stale, counts), (what_stays_warm, counts), (under_load, load))
    plots = [plot(found) for plot, found in drawn if found]
    others = [row for row in counts.get("freshness", []) if row["variant"] not in VARIANTS]
    budgeted = budgets(bench, counts)
    context = {
        "budgets": budgeted,
        "over": [budget for budget in budgeted if budget.is_over],
        "variants": list(VARIANTS),
        "rows": series(bench, counts, load),
        "others": others,
        "load": load,
        "plots": plots,
        "sources": [source(name, found) for name, found in metrics.items()],
    }
    return Engine().from_string(TEMPLATE.read_text(encoding="utf-8")).render(Context(context))


def write(folder: Path) -> list[Path]:
    """Draw the results in this folder, and return the files written to it. Raises SystemExit with one line if a file there is invalid."""
    metrics = {name: read(folder, name) for name in MADE_BY}
    try:
        texts = {"report.html": page(metrics)} | ({"bench.svg": draw(how_long(metrics["bench"]), titled=True)} if metrics["bench"] else {})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise SystemExit(f"The results in {folder} are from another version ({error!r}). Delete them, and measure again.") from error
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        part_of(folder / name).write_text(text, encoding="utf-8")
        part_of(folder / name).replace(folder / name)
    return [folder / name for name in texts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files, and print their names."""
    argparse.ArgumentParser(prog="python -m tests.measurements.report", description=__doc__).parse_args(arguments)
    if not settings.configured:
        settings.configure(USE_I18N=False)
    for file in write(REPORTS):
        sys.stdout.write(f"{file.relative_to(REPORTS.parent)}\n")


if __name__ == "__main__":
    main()
