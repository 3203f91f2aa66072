"""The report of the results. It shows only results that a run has saved, and marks everything that was not measured."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from django.conf import settings

from tests import ROOT
from tests.measurements import metrics, report
from tests.measurements.metrics import Benchmark
from tests.stacks import TIMEOUT

BUDGETS = {
    "optimized to naive": {"at most": 0.6},
    "cold to naive": {"at most": 0.19, "within": 20},
    "warm to naive": {"at most": 0.04, "within": 0.5},
}
"""Kept, above it but within the interval, and exceeded."""

BENCH = {
    "datetime": "2026-11-23T10:11:36+00:00",
    "commit_info": {"id": "0123456789abcdef", "dirty": True},
    "machine_info": {"cpu": {"count": 2, "brand_raw": "Abacus"}},
    "stack": "embedded",
    "benchmarks": [
        {
            "group": group,
            "name": f"{name}: {ratio} (… to …) × the baseline",
            "stats": {"median": median, "rounds": 60},
            "extra_info": {"ratio": ratio, "interval": [ratio * 0.9, ratio * 1.1]} | BUDGETS.get(name, {}),
        }
        for group, name, median, ratio in (
            ("warm", "warm to naive", 0.0008, 0.05),
            ("cold", "cold to naive", 0.008, 0.2),
            ("naive", "naive to naive", 0.04, 1.0),
            ("baselines", "nothing to one GET", 0.00025, 0.6),
            ("optimized", "optimized to naive", 0.012, 0.3),
        )
    ],
}
COUNTS = {
    "datetime": "2026-11-23T10:18:09+00:00",
    "commit_info": {"id": "0123456789abcdef", "dirty": False},
    "stack": "real",
    "queries": [
        {"way": way, "page_size": size, "queries": queries, "budget": queries}
        for size, counted in ((20, (0, 1, 1, 61)), (1, (0, 1, 1, 4)))
        for way, queries in zip(("warm", "cold", "optimized", "naive"), counted, strict=True)
    ],
    "calls": [{"request": "a write", "calls": 1_000, "budget": 1_000}, {"request": "a hit", "calls": 500, "budget": 400}],
    "second read": [{"variant": "naive", "queries": 62}, {"variant": "optimized", "queries": 2}, {"variant": "cached", "queries": 0}],
    "freshness": [{"variant": "cached", "edits": 10, "fresh": 10}, {"variant": "cache_page", "edits": 10, "fresh": 0}],
    "precision": [
        {"write": "Office.name", "way": "save()", "pages": "A..."},
        {"write": "Office.city", "way": "save()", "pages": "Ab.."},
        {"write": "Agent deleted", "way": "a queryset", "pages": "ABCd"},
    ],
    "portal": [{"pages": 3_000, "writes": 40, "strategy": name, "warm": warm} for name, warm in (("the engine", 99.5), ("cache.clear()", 0.0))],
}
LOAD = {
    "rows": [
        {"name": "warm, 10 users", "p50": 1.5, "p95": 10.4, "beats": ""},
        {"name": "warm, 40 users, 1 s pause", "p50": 4.44, "p95": 43.0, "beats": "warm"},
        {"name": "naive, 40 users, 1 s pause", "p50": 650.0, "p95": 1660.0, "beats": "naive"},
    ],
    "writes": 28,
    "reads": 1161,
    "stale": [{}],
}


@pytest.fixture
def folder(tmp_path):
    """A folder with all results."""
    for name, found in (("bench", BENCH), ("counts", COUNTS), ("load", LOAD)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    return tmp_path


def rows_of(page):
    """The first cell and the other cells of each table row of the page, with no-break spaces as spaces."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page.replace("\N{NO-BREAK SPACE}", " "))
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return [(row[0], row[1:]) for row in cells]


# The page


def test_the_table_shows_the_results_of_each_variant():
    """A reader compares the three variants row by row."""
    assert report.series(BENCH, COUNTS, LOAD) == [
        ("SQL queries, cold", ["61", "1", "1"]),
        ("SQL queries, warm", ["62", "2", "0"]),
        ("Response time, cold", ["40.0\xa0ms", "12.0\xa0ms", "8.0\xa0ms"]),
        ("relative to naive", ["1.00", "0.30", "0.20"]),
        ("Response time, warm", ["40.0\xa0ms", "12.0\xa0ms", "0.80\xa0ms"]),
        ("relative to naive", ["1.00", "0.30", "0.05"]),
        ("New prices in the next read", ["—", "—", "10 of 10"]),
        ("40 users, cold: median, p95", ["650\xa0ms, 1.66\xa0s", "—", "—"]),
        ("40 users, warm: median, p95", ["650\xa0ms, 1.66\xa0s", "—", "4.4\xa0ms, 43.0\xa0ms"]),
        ("Stale reads while prices change", ["—", "—", "1 of 1,161"]),
    ]


def test_the_page_loads_nothing_and_runs_nothing(folder):
    """It is one file, which can be sent to somebody."""
    report.write(folder)
    page = (folder / "report.html").read_text()

    assert re.findall(r"<script|<link|<img|src=|@import|url\(|href=", page) == []
    assert set(re.findall(r"https?://[^\s\"<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_every_plot_has_its_numbers_in_a_table_below_it(folder):
    """A plot alone is useless with a screen reader."""
    report.write(folder)
    page = (folder / "report.html").read_text()
    rows = rows_of(page)

    assert page.count("<svg") == page.count("<details>") == 5
    for row in (
        ("nothing", ["0.600 × (0.540 to 0.660), 0.25 ms"]),
        ("naive", ["61"]),
        ("Office", ["25.0% changed, 12.5% over-invalidation, 62.5% warm"]),
        ("naive, 40 users, 1 s pause", ["median 650 ms, p95 1.66 s"]),
    ):
        assert row in rows
    assert "<code>cache_page</code>: 0 of 10 new prices" in page
    assert "28 prices were saved. 1161 reads could have been stale. Stale reads: 1." in page


def test_the_page_shows_when_and_where_its_results_were_measured():
    """Times depend on the machine, and results on the commit."""
    found = BENCH | {"when": BENCH["datetime"]}

    assert report.source("bench", found) == (
        "reports/bench.json, from make bench: 2026-11-23 10:11 UTC; commit 0123456789 with uncommitted changes; "
        "SQLite and fakeredis, in process; 2 cores of Abacus"
    )
    assert report.source("counts", COUNTS | {"when": COUNTS["datetime"]}).endswith("10:18 UTC; commit 0123456789; PostgreSQL and Redis")


def test_a_file_without_a_timestamp_gets_its_modification_time(folder):
    """Results of an older version have no timestamp."""
    assert re.search(r"from make load: \d{4}-\d\d-\d\d \d\d:\d\d UTC$", report.source("load", report.read(folder, "load")))


def test_missing_results_are_listed_with_the_command_that_makes_them(tmp_path):
    """The page also works before the first run."""
    written = report.write(tmp_path / "reports")
    page = written[0].read_text()

    assert [file.name for file in written] == ["report.html"]
    assert {"—"} == {cell for _, cells in rows_of(page)[1:] for cell in cells}
    for name, made_by in (("bench", "make bench"), ("counts", "make report"), ("load", "make load")):
        assert f"There is no reports/{name}.json yet. Run {made_by}" in page


def test_a_second_report_of_the_same_results_writes_the_same_files_and_no_others(folder):
    """The report depends on the results only."""
    first = {file.name: file.read_text() for file in report.write(folder)}
    second = {file.name: file.read_text() for file in report.write(folder)}

    assert first == second
    assert {file.name for file in folder.iterdir()} == {"bench.json", "counts.json", "load.json", "report.html", "bench.svg"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "bench.json cannot be read ("), ("{}", "are from another version (KeyError('benchmarks')). Delete them, and measure again.")],
    ids=["half a file", "a file of another version"],
)
def test_an_invalid_file_gives_a_one_line_error_and_keeps_the_previous_page(folder, text, message):
    """The message says which file to delete, and the command that makes it again."""
    (folder / "report.html").write_text("previous")
    (folder / "bench.json").write_text(text)

    with pytest.raises(SystemExit) as ended:
        report.write(folder)
    assert message in ended.value.code
    assert len(ended.value.code.splitlines()) == 1
    assert (folder / "report.html").read_text() == "previous"


def test_the_command_prints_the_files_that_it_wrote(folder, monkeypatch, capsys):
    """A person can open them from the terminal."""
    monkeypatch.setattr(report, "REPORTS", folder)

    report.main([])

    assert capsys.readouterr().out.split() == [f"{folder.name}/report.html", f"{folder.name}/bench.svg"]


def test_the_command_needs_no_django_settings(folder):
    """It only draws, and uses no database."""
    assert settings.configured
    code = f"from pathlib import Path; from tests.measurements import report; report.REPORTS = Path({str(folder)!r}); report.main([])"
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    assert (ended.returncode, len(ended.stdout.split())) == (0, 2), ended.stderr


# Budgets


def test_each_result_stands_beside_its_budget_with_the_share_that_is_used(folder):
    """A reader sees how much room is left before a budget fails. Counts come first, because they are the same on every machine."""
    report.write(folder)
    rows = rows_of((folder / "report.html").read_text())
    head = rows.index(("", ["result", "budget", "used"]))

    assert rows[head + 1 : head + 12] == [
        ("SQL queries, naive", ["61", "exactly 61", "100%"]),
        ("SQL queries, optimized", ["1", "exactly 1", "100%"]),
        ("SQL queries, cold", ["1", "exactly 1", "100%"]),
        ("SQL queries, warm", ["0", "exactly 0", "—"]),
        ("Python calls, a hit", ["500", "400", "125% <strong>over budget</strong>"]),
        ("Python calls, a write", ["1,000", "1,000", "100%"]),
        ("optimized, relative to naive", ["0.300 ×", "0.6 ×", "50%"]),
        ("cold, relative to naive", ["0.200 ×", "0.19 ×", "105% <strong>above it, but within the interval</strong>"]),
        ("cold, median", ["8.0 ms", "20 ms", "40%"]),
        ("warm, relative to naive", ["0.050 ×", "0.04 ×", "125% <strong>over budget</strong>"]),
        ("warm, median", ["0.80 ms", "0.5 ms", "160% <strong>over budget</strong>"]),
    ]


def test_exceeded_budgets_are_listed_in_words(folder):
    """Colour alone would not reach everybody. A ratio whose interval reaches below its budget does not fail."""
    report.write(folder)
    page = " ".join((folder / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ").split())

    assert (
        "<strong>3 of 11 budgets are exceeded:</strong> "
        "Python calls, a hit (500, budget 400); warm, relative to naive (0.050 ×, budget 0.04 ×); warm, median (0.80 ms, budget 0.5 ms).</p>"
    ) in page
    assert page.count('<tr class="over">') == 3


def test_fewer_queries_than_promised_are_over_budget_too():
    """Exactly one query is promised. A page without any would not have been read."""
    counts = {"queries": [{"way": "cold", "page_size": 20, "queries": 0, "budget": 1}]}

    assert [(budget.share, budget.is_over) for budget in report.budgets({}, counts)] == [("0%", True)]


def test_the_page_says_if_no_budget_is_exceeded_or_measured(tmp_path):
    """Files of an older version have no budgets."""
    counts = COUNTS | {"queries": [{"way": "cold", "page_size": 20, "queries": 1, "budget": 1}], "calls": []}
    older = COUNTS | {"queries": [{"way": "cold", "page_size": 20, "queries": 1}], "calls": []}

    assert "<p>None of 1 budget is exceeded.</p>" in report.page({"bench": {}, "counts": counts | {"when": COUNTS["datetime"]}, "load": {}})
    for found in ({}, older | {"when": COUNTS["datetime"]}):
        page = report.page({"bench": {}, "counts": found, "load": {}})
        assert "<p>No result with a budget yet.</p>" in page
        assert 'class="budgets"' not in page


# The plots


def elements(svg, name):
    """The elements of this name, as dictionaries."""
    return [dict(element.attrib, text=element.text) for element in ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{name}")]


def test_the_length_of_a_bar_is_its_value_and_the_line_is_the_interval():
    """Bars start at zero, so a bar of twice the length is twice the value."""
    plot = report.Plot("P", "", {"g": [report.Bar("a", "1", {"bar": 1.0}), report.Bar("b", "4", {"bar": 4.0}, interval=(3.0, 4.0))]}, mark=2)
    short, long = [float(bar["width"]) for bar in elements(plot.svg, "rect") if bar["class"] == "bar"]
    mark, line = elements(plot.svg, "path")

    assert (short, long) == (86.0, 344.0)
    assert mark["d"].startswith("M180.0 ")
    assert line["d"].startswith("M266.0 ")
    assert line["d"].endswith("H352.0")


def test_each_page_is_either_stale_or_over_invalidated_or_warm_and_the_parts_of_a_bar_do_not_overlap():
    """The three parts of a bar add up to all pages."""
    plot = report.what_goes_stale(COUNTS)
    parts = [bar for bar in elements(plot.svg, "rect") if bar.get("height") == "10"]

    assert {way: [dict(bar.parts) for bar in bars] for way, bars in plot.groups.items()} == {
        "a queryset": [{"stale": 0.75, "over": 0.25, "warm": 0}],
        "save()": [{"stale": 0.25, "over": 0.125, "warm": 0.625}],
    }
    assert [(part["class"], part["x"], part["width"]) for part in parts[3:]] == [
        ("stale", "8.0", "86.0"),
        ("over", "94.0", "43.0"),
        ("warm", "137.0", "215.0"),
    ]


def test_the_pages_that_stay_warm_are_compared_with_other_strategies_of_invalidation():
    """Without them, nobody could tell whether 99 % are many."""
    plot = report.what_stays_warm(COUNTS)
    [(title, bars)] = plot.groups.items()

    assert title == "3,000 pages, the mean of 40 writes"
    assert [(bar.label, bar.text) for bar in bars] == [("the engine", "99.5 %"), ("cache.clear()", "0.0 %")]


def test_a_logarithmic_scale_has_dots_and_no_bars():
    """The length of a bar would be misleading there."""
    svg = report.under_load(LOAD).svg
    dots = [float(dot["cx"]) for dot in elements(svg, "circle")]

    assert not [bar for bar in elements(svg, "rect") if bar["class"] == "bar"]
    assert dots == sorted(dots)
    assert [tick for tick in ("1 ms", "10 ms", "100 ms", "1 s", "10 s") if tick not in svg.replace(".0\xa0", " ").replace("\xa0", " ")] == []


def test_a_dot_without_an_interval_has_no_line():
    """A line would suggest a spread that was not measured."""
    plot = report.Plot("P", "", {"g": [report.Bar("a", "1", {"bar": 2.0}), report.Bar("b", "1", {"bar": 20.0})]}, logarithmic=True)

    assert [path["class"] for path in elements(plot.svg, "path")] == ["grid"] * 3


def test_the_separate_plot_has_its_title_and_follows_light_and_dark(folder):
    """README shows this plot as a picture. On the page the title is a heading."""
    report.write(folder)
    svg = (folder / "bench.svg").read_text()

    assert [text["text"] for text in elements(svg, "text") if text.get("class") == "title"] == ["How long it takes"]
    assert "prefers-color-scheme:dark" in svg
    assert not [text for text in elements(report.how_long(BENCH).svg, "text") if text.get("class") == "title"]


# The files of a run


def test_the_benchmarks_are_listed_by_group_from_naive_to_warm():
    """The order is the same in every run, whatever order the specs ran in."""
    assert [(each.name, each.this, each.baseline) for each in metrics.benchmarks_of(BENCH)][:2] == [
        ("naive to naive", "naive", "naive"),
        ("optimized to naive", "optimized", "naive"),
    ]
    assert list(metrics.table([Benchmark("cold", "cold to naive", 8.0, 0.2, 0.18, 0.22, 60)])) == [
        "\n                     median  × the baseline (99% interval)",
        "cold",
        "  cold to naive     8.00 ms   0.200  (0.180 to 0.220)     60 rounds",
    ]


COUNTED, UNCOUNTED = (SimpleNamespace(user_properties=[("metric", ["calls", {}])] * many) for many in (1, 0))


@pytest.mark.parametrize(
    ("option", "exitstatus", "failed", "kept"),
    [
        ("benchmark_only", pytest.ExitCode.TESTS_FAILED, {}, "new"),
        ("benchmark_only", pytest.ExitCode.INTERRUPTED, {}, "old"),
        ("metrics", pytest.ExitCode.TESTS_FAILED, {"failed": [COUNTED]}, "new"),
        ("metrics", pytest.ExitCode.TESTS_FAILED, {"failed": [COUNTED, UNCOUNTED]}, "old"),
        ("metrics", pytest.ExitCode.TESTS_FAILED, {"error": [UNCOUNTED]}, "old"),
        ("metrics", pytest.ExitCode.INTERRUPTED, {}, "old"),
    ],
    ids=["times above their budget", "times, Ctrl-C", "a count above its budget", "a missing count", "an error before the count", "counts, Ctrl-C"],
)
def test_results_above_their_budget_are_saved_and_an_incomplete_run_is_not(tmp_path, monkeypatch, option, exitstatus, failed, kept):
    """Incomplete results would look like complete ones."""
    monkeypatch.setattr(metrics, "REPORTS", tmp_path)
    file = tmp_path / {"benchmark_only": "bench.json", "metrics": "counts.json"}[option]
    file.write_text("old")
    config = configured(option)
    metrics.pytest_configure(config)
    metrics.part_of(tmp_path / "bench.json").write_text(json.dumps(BENCH))

    metrics.pytest_terminal_summary(SimpleNamespace(write_line=str, getreports=lambda outcome: failed.get(outcome, [])), exitstatus, config)

    metrics.part_of(tmp_path / "bench.json").unlink(missing_ok=True)
    assert (file.read_text() == "old") is (kept == "old")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("option", ["benchmark_only", "metrics"])
def test_a_run_of_measurements_saves_its_results(tmp_path, monkeypatch, option):
    """The terminal shows a table, and `make report` reads the JSON."""
    monkeypatch.setattr(metrics, "REPORTS", tmp_path / "reports")
    lines = []
    config = configured(option)
    passed = SimpleNamespace(user_properties=[("counted", "1"), ("metric", ["freshness", {"variant": "naive"}])])
    reporter = SimpleNamespace(write_line=lines.append, getreports=lambda outcome: [passed] * (outcome == "passed"))

    metrics.pytest_configure(config)
    if config.option.benchmark_only:
        metrics.pytest_benchmark_update_json(config, found := dict(BENCH))
        config.option.benchmark_json.write_text(json.dumps(found))
    metrics.pytest_terminal_summary(reporter, 0, config)

    [file] = (tmp_path / "reports").iterdir()
    saved = json.loads(file.read_text())
    assert saved["stack"] == "real"
    assert (file.name, len(lines)) == {"benchmark_only": ("bench.json", 11), "metrics": ("counts.json", 0)}[option]
    assert saved.get("freshness") == (None if option == "benchmark_only" else [{"variant": "naive"}])


INTERRUPTED = """
def test_it(benchmark):
    def press():
        raise KeyboardInterrupt

    benchmark.extra_info |= {"ratio": 1, "interval": [1, 1]}
    benchmark.pedantic(press)
"""


@pytest.mark.only("real")
def test_ctrl_c_during_a_benchmark_writes_nothing_and_shows_no_traceback(tmp_path):
    """pytest-benchmark alone fails with a traceback there. (It needs neither stack, and takes seconds.)"""
    (tmp_path / "test_it.py").write_text(INTERRUPTED)
    command = [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pytest.ini", "--rootdir", tmp_path, "-p", "no:cacheprovider", tmp_path / "test_it.py"]
    options = ["--benchmark-only", "--benchmark-json", tmp_path / "mine.json"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    ended = subprocess.run([*command, *options], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    assert ended.returncode == pytest.ExitCode.INTERRUPTED, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not (tmp_path / "mine.json").exists()


def test_benchmarks_that_never_started_leave_no_file(tmp_path, monkeypatch):
    """An empty file would look like results."""
    monkeypatch.setattr(metrics, "REPORTS", tmp_path)
    config = configured("benchmark_only")

    metrics.pytest_configure(config)
    metrics.pytest_terminal_summary(None, 2, config)

    assert list(tmp_path.iterdir()) == []


def test_the_benchmarks_are_written_to_the_file_of_the_command_line(tmp_path):
    """`--benchmark-json` works as pytest-benchmark documents it."""
    config = configured("benchmark_only", benchmark_json=tmp_path / "mine.json")

    metrics.pytest_configure(config)

    assert config.option.benchmark_json == tmp_path / "mine.json"


@pytest.mark.parametrize(("option", "selected"), [("benchmark_only", ["bench"]), ("metrics", ["count"]), ("", ["bench", "count", "other"])])
def test_in_a_run_of_measurements_the_other_specs_are_deselected_and_not_skipped(option, selected):
    """The output of six measurements would be lost among a thousand skipped specs."""
    items = [SimpleNamespace(name="bench", fixturenames=["benchmark"]), SimpleNamespace(name="count", fixturenames=["metric"])]
    items.append(SimpleNamespace(name="other", fixturenames=[]))
    deselected = []
    config = configured(option)
    config.hook.pytest_deselected = lambda *, items: deselected.extend(items)

    metrics.pytest_collection_modifyitems(config, items)

    assert [item.name for item in items] == selected
    assert len(deselected) == 3 - len(selected)


def configured(option, **options):
    """The configuration of a run with this option on the real stack."""
    options = {"benchmark_only": False, "metrics": False, "benchmark_json": None, "stack": "real"} | {option: True} | options
    hook = SimpleNamespace(pytest_benchmark_generate_commit_info=lambda config: {"id": "0123456789", "dirty": False})
    return SimpleNamespace(option=SimpleNamespace(**options), hook=hook)
