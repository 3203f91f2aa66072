"""The test instruments: their counts and their failure messages. The reader of a message may not know the code."""

import ast
import gc
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django_redis import get_redis_connection

from conftest import ROOT
from housing.models import Office, Property
from tests import compare, spec
from tests.instruments import Latency, Timings, bytes_of, command_names, interval_of, shape_of


def failure(broken):
    """The message of a broken promise."""
    with pytest.raises(pytest.fail.Exception) as raised:
        broken()
    return str(raised.value)


# SQL


def test_the_message_for_an_n_plus_1_shows_the_repeated_query_and_its_fix(twenty_properties, queries):
    def names_of_offices():
        with queries.exactly(1, because="one SELECT joins the office"):
            for home in Property.objects.select_related("agent")[:3]:
                assert home.agent.office.name

    message = failure(names_of_offices)

    assert message.splitlines() == [
        "promised: exactly 1 query, because one SELECT joins the office",
        "happened: 4 queries",
        '     3 × SELECT "housing_office"."id", "housing_office"."name", "housing_office"."city" FROM "housing_office" '
        'WHERE "housing_office"."id" = ? LIMIT ?   ← N+1: repeated once per row',
        '     1 × SELECT … FROM "housing_property" INNER JOIN "housing_agent" ON ("housing_property"."agent_id" = "housing_agent"."id") LIMIT ?',
        "to do:    load related rows with one query: select_related() for a foreign key, prefetch_related() for a set.",
    ]
    shortened = message.replace('"housing_office"."name", "housing_office"."city"', "…")
    assert shortened in (ROOT / "README.md").read_text(encoding="utf-8"), "README.md shows another message"


def test_the_message_for_an_unexpected_query_points_to_the_cache(home, queries):
    def reads():
        with queries.exactly(0, because="the page is cached"):
            Office.objects.count()

    assert failure(reads).splitlines() == [
        "promised: exactly 0 queries, because the page is cached",
        "happened: 1 query",
        '     1 × SELECT COUNT(*) AS "__count" FROM "housing_office"',
        "to do:    no query was expected. If a cache should have answered, check whether the value was never stored or was invalidated.",
    ]


def test_an_extra_query_is_shown(home, queries):
    def counts_twice():
        with queries.exactly(1, because="a count is one query"):
            Office.objects.count()
            Property.objects.count()

    assert failure(counts_twice).endswith("to do:    find the new statement. Remove it, or update the promised count and its `because`.")


def test_fewer_queries_than_promised_also_fail(queries):
    """The response may be incomplete."""

    def reads_nothing():
        with queries.exactly(1, because="a page is one query"):
            pass

    assert failure(reads_nothing).splitlines() == [
        "promised: exactly 1 query, because a page is one query",
        "happened: 0 queries",
        "to do:    check that the response is complete. If it is, lower the promised count and update its `because`.",
    ]


def test_a_promise_without_a_reason_raises_a_type_error(queries, redis_commands):
    """Nobody dares to change a number without a known reason."""
    with pytest.raises(TypeError, match="because"):
        queries.exactly(1)
    with pytest.raises(TypeError, match="because"):
        redis_commands.exactly(1)
    with pytest.raises(TypeError, match="because"):
        Timings([1], [1]).at_most(1)


def test_transaction_control_is_not_counted(home, queries):
    with queries.exactly(1, because="BEGIN, SAVEPOINT, RELEASE and COMMIT read and write no rows"), transaction.atomic(), transaction.atomic():
        Office.objects.count()


def test_an_exception_in_the_block_takes_precedence_over_the_count(queries):
    """The exception is the reason for the wrong count, so it is what a developer needs to see."""
    with pytest.raises(ZeroDivisionError), queries.exactly(3, because="the block raises before its first query"):
        raise ZeroDivisionError


def test_the_counted_statements_can_be_inspected(home, queries):
    with queries.exactly(1, because="a count is one query") as seen:
        Office.objects.count()

    assert seen == ['SELECT COUNT(*) AS "__count" FROM "housing_office"']


def test_counting_changes_nothing(home, read, queries, redis_commands):
    """The page stays cached, the connection is as before, and nothing is counted outside the block."""
    read("cached")
    with queries.exactly(0, because="the page is cached"), redis_commands.exactly(1, because="a hit runs one script"):
        assert read("cached").came_from == "hit"

    assert read("cached").came_from == "hit"
    assert connection.execute_wrappers == []
    assert connection.force_debug_cursor is False


def test_statements_that_differ_only_in_values_have_the_same_shape():
    """An N+1 sends one shape with another value for each row."""
    assert shape_of("SELECT a FROM t WHERE b = 'it''s' AND c IN (1, 2.5, %s)  LIMIT 20") == shape_of("SELECT a FROM t WHERE b = 'x' AND c IN (%s)\nLIMIT 1")
    assert shape_of("SELECT a FROM t") != shape_of("SELECT a FROM u")


# Redis


def test_an_extra_round_trip_is_shown_with_its_commands(queries, redis_commands):
    client = get_redis_connection("default")
    client.ping()

    def reads_twice():
        with redis_commands.exactly(1, because="one script looks up entry and journal"):
            client.get("a")
            with client.pipeline(transaction=False) as pipeline:
                pipeline.get("b")
                pipeline.ttl("b")
                pipeline.execute()

    assert failure(reads_twice).splitlines() == [
        "promised: exactly 1 round trip to Redis, because one script looks up entry and journal",
        "happened: 2 round trips",
        "     1. GET",
        "     2. GET TTL",
        "to do:    HELLO and CLIENT open a new connection: send any command before you count. Otherwise combine the commands in one script or pipeline.",
    ]


def test_a_value_that_looks_like_a_command_is_not_counted_as_one():
    """Commands are parsed from the bytes that redis-py sends, where values stand between them."""
    wire = [b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$14\r\n*1\r\n$4\r\nPING\r\n\r\n", b"*1\r\n$4\r\nPING\r\n"]

    assert command_names(b"".join(wire)) == ["SET", "PING"]


def test_bytes_are_counted_as_they_are_on_the_wire(redis_commands):
    client = get_redis_connection("default")
    client.set("a", b"four")
    with redis_commands.exactly(2, because="each key is read with one GET") as seen:
        client.get("a")
        client.get("nothing")
    client.delete("a")

    assert seen.sent == len(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$7\r\nnothing\r\n")
    assert seen.received == len(b"$4\r\nfour\r\n$-1\r\n")
    assert bytes_of([b"four", 12, [None]]) == len(b"*3\r\n$4\r\nfour\r\n:12\r\n*1\r\n$-1\r\n")


# Python


def test_too_many_calls_are_listed_by_function(python_calls):
    def one():
        pass

    def act():
        one()
        one()

    python_calls.at_most(3, act, because="act() calls one() twice")
    assert failure(lambda: python_calls.at_most(2, act, because="act() calls one() once")).splitlines() == [
        "promised: at most 2 Python function calls, because act() calls one() once",
        "happened: 3 calls",
        "     2 × test_instruments.py: test_too_many_calls_are_listed_by_function.<locals>.one",
        "     1 × test_instruments.py: test_too_many_calls_are_listed_by_function.<locals>.act",
        "to do:    remove the new calls, or update the promised count and its `because`. Another version of a library changes the count, too.",
    ]


def test_calls_are_counted_after_two_warm_up_runs_and_not_within_a_fake_server(python_calls):
    """A first call fills caches and imports modules. The work of a fake server is not the caller's."""
    prepared, done = [], []
    seen = python_calls.of(lambda: done.append(get_redis_connection("default").ping()), prepare=lambda: prepared.append(len(done)))

    assert (prepared, len(done)) == ([0, 1, 2], 3)
    assert not any("Fake" in name for name in seen)
    assert seen["client.py: Redis.execute_command"] == 1


def test_calls_made_by_the_garbage_collector_are_not_counted(python_calls):
    """It runs at any time, and calls back for garbage that other code has left."""

    class Node:
        def __del__(self):
            pass

    def act():
        for _ in range(10_000):
            node = Node()
            node.itself = node

    assert [name for name in python_calls.of(act) if "__del__" in name] == []
    assert gc.isenabled()


def test_calls_made_by_fakeredis_are_not_counted_until_it_returns(python_calls):
    """That includes calls to other libraries. The spec plays the profiler itself, because a profiler cannot observe its own callback."""
    seen = Counter()
    watch = python_calls.watcher(seen)

    def frame(file, name):
        return SimpleNamespace(f_code=SimpleNamespace(co_filename=file, co_qualname=name))

    ours, theirs, json = frame("/housing/views.py", "get"), frame("/lib/fakeredis/_socket.py", "sendall"), frame("/lib/json/__init__.py", "dumps")
    for event, of in [("call", ours), ("call", theirs), ("call", json), ("c_call", json), ("return", json), ("return", theirs), ("call", json)]:
        watch(of, event, None)

    assert +seen == {"views.py: get": 1, "__init__.py: dumps": 1}


# Time


def test_the_message_for_a_ratio_above_its_budget_shows_how_it_was_measured():
    timings = Timings(this=[0.002, 0.004, 0.003], baseline=[0.010, 0.010, 0.010])

    timings.at_most(0.3, because="a hit serializes nothing")
    timings.at_most(0.25, because="the interval begins at 0.2, so the ratio may be below the budget")
    assert failure(lambda: timings.at_most(0.15, because="a hit serializes nothing")).splitlines() == [
        "promised: at most 0.15 × the baseline, because a hit serializes nothing",
        "happened: 0.300 × (0.200 to 0.400; 3.00 ms, baseline 10.00 ms), the median of 3 interleaved rounds",
        "to do:    first check the promises about queries and round trips. If they hold, profile it.",
    ]


def test_milliseconds_above_their_budget_fail_with_the_same_message():
    timings = Timings(this=[0.002, 0.004, 0.003], baseline=[0.010, 0.010, 0.010])

    timings.within(3, because="a person does not notice 3 ms")
    assert failure(lambda: timings.within(2.5, because="a person does not notice 3 ms")).splitlines()[:2] == [
        "promised: at most 2.5 ms, because a person does not notice 3 ms",
        "happened: 3.00 ms, the median of 3 interleaved rounds",
    ]


def test_an_interval_contains_the_median_as_often_as_its_confidence_says():
    """The true median of the 200 samples is 1. At a confidence of 95%, about ten intervals may miss it."""
    draw = random.Random(1)
    intervals = [interval_of([draw.lognormvariate(0, 0.1) for _ in range(40)], confidence=0.95, resamples=300) for _ in range(200)]

    assert 182 <= sum(low <= 1 <= high for low, high in intervals) <= 198
    assert interval_of([2.0] * 9) == (2.0, 2.0)


def test_rounds_alternate_between_a_function_and_its_baseline():
    """A busy minute of the machine then slows down both."""
    ran = []
    ticks = iter(range(100))

    def pedantic(this, *, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            setup()
            this()

    benchmark = SimpleNamespace(pedantic=pedantic, stats=SimpleNamespace(name="warm", stats=SimpleNamespace(data=[4.0, 5.0])), extra_info={})
    timings = Latency(clock=lambda: next(ticks)).interleaved(
        benchmark, lambda: ran.append("this"), baseline=lambda: ran.append("baseline"), prepare=lambda: ran.append("prepare"), rounds=2
    )

    assert ran == ["baseline", "prepare", "this"] * 4
    assert timings == Timings(this=[4.0, 5.0], baseline=[1, 1])
    assert benchmark.stats.name == "warm: 4.500 (4.000 to 5.000) × the baseline"
    assert benchmark.extra_info == {"ratio": 4.5, "interval": [4.0, 5.0]}


def test_without_benchmarks_both_functions_run_once_and_nothing_is_judged(latency):
    ran = []
    benchmark = SimpleNamespace(pedantic=lambda this, *, setup, **_: (setup(), this()), stats=None)

    timings = latency.interleaved(benchmark, lambda: ran.append("this"), baseline=lambda: ran.append("baseline"))

    assert ran == ["baseline", "this"]
    timings.at_most(0, because="there are no rounds")
    timings.within(0, because="there are no rounds")


# In another project

FRONT_PAGE = """
from django.contrib.admin.models import LogEntry
from django.http import HttpResponse
from django.urls import path


def shown(entries):
    return HttpResponse(", ".join(entry.user.username for entry in entries))


urlpatterns = [
    path("", lambda request: shown(LogEntry.objects.select_related("user"))),
    path("n-plus-1/", lambda request: shown(LogEntry.objects.all())),
]
"""
THREE_ENTRIES = """
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User


@pytest.fixture(autouse=True)
def three_entries(db):
    for name in ("Ann", "Ben", "Cem"):
        LogEntry.objects.create(user=User.objects.create(username=name), action_flag=1)
"""
WITHOUT_REDIS = "raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')\n"


@pytest.fixture(scope="module")
def in_another_project(tmp_path_factory):
    """The output of pytest in a new Django project, into which README's section was copied verbatim. It has pytest-django, and no redis-py."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use these instruments in your project")[2].partition("\n## ")[0]
    [ini], [test] = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("ini", "python"))
    project = tmp_path_factory.mktemp("project")
    call_command("startproject", re.search(r"(\w+)\.settings", ini)[1], project)
    (project / "tests").mkdir()
    shutil.copy2(ROOT / "tests" / "instruments.py", project / "tests")
    counts_redis = "def test_redis(redis_commands):\n    with redis_commands.exactly(0, because='nothing is read from it'):\n        pass\n"
    for name, text in {
        "pytest.ini": ini,
        "mysite/urls.py": FRONT_PAGE,
        "conftest.py": THREE_ENTRIES,
        "redis.py": WITHOUT_REDIS,
        "tests/test_front_page.py": test,
        "tests/test_n_plus_1.py": test.replace('"/"', '"/n-plus-1/"'),
        "tests/test_redis.py": counts_redis,
    }.items():
        (project / name).write_text(text, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [Path(sys.executable).with_name("pytest"), "-p", "pytest_django.plugin", "-p", "no:cacheprovider", "-v"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout


def test_in_another_project_the_instruments_work_as_readme_says(in_another_project):
    """One page sends one query, the other one query per row. The project has none of our code, no Redis, and no plugin but pytest-django."""
    output = in_another_project
    [name] = set(re.findall(r"tests/test_front_page\.py::(test_\w+)", output))

    assert f"tests/test_front_page.py::{name} PASSED" in output, output
    assert f"tests/test_n_plus_1.py::{name} FAILED" in output
    message = output[output.index("promised: ") :].splitlines()
    assert message[:2] == ["promised: exactly 1 query, because one SELECT joins the author", "happened: 4 queries"]
    assert re.fullmatch(r"     3 × SELECT … FROM \"auth_user\" WHERE .* LIMIT \?   ← N\+1: repeated once per row", message[2])
    assert message[4] == "to do:    load related rows with one query: select_related() for a foreign key, prefetch_related() for a set."


def test_without_redis_py_only_the_counter_of_redis_commands_fails(in_another_project):
    """A project that only counts SQL does not need redis-py."""
    assert "tests/test_redis.py::test_redis FAILED" in in_another_project
    assert "No module named 'redis'" in in_another_project


# The comparison of two trees


@pytest.fixture
def itself(tmp_path):
    """This tree, with its own database."""
    return compare.seeded(ROOT, sys.executable, tmp_path / "itself.sqlite3")


@pytest.mark.slow
@pytest.mark.only("real")
def test_a_slowdown_is_found_in_the_operation_that_has_it(itself):
    """Twice as slow, so few rounds are enough. `make bench-proof` measures how often 10% is found. (It brings its own stack, and takes seconds.)"""
    verdicts = {verdict.operation: verdict for verdict in compare.compare(itself, itself, {"cold": 1.0}, starts=1, rounds=7)}

    assert verdicts["cold"].slower
    assert max(verdicts, key=lambda operation: verdicts[operation].timings.ratio) == "cold"


def test_a_process_of_a_tree_runs_the_given_operations_and_reports_their_times(twenty_properties, settings, monkeypatch):
    """The spec runs the code of such a process in its own process."""
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("warm 2\ncold 1\nwrite 1\n"))
    monkeypatch.setattr(compare.gc, "disable", bool)
    responses = io.StringIO()

    compare.serve(responses, {"cold": 0.5})

    assert len([float(response) for response in responses.getvalue().splitlines() if float(response) > 0]) == 3


def test_a_verdict_is_one_line():
    """It shows both times, their ratio and its interval, so the output of a comparison is a table."""
    verdict = compare.Verdict("warm", Timings(this=[0.003] * 9, baseline=[0.002] * 9))

    assert str(verdict) == "warm       2.00 ms     3.00 ms    1.500   1.500 to 1.500   slower"
    assert str(compare.Verdict("cold", Timings(this=[0.002] * 9, baseline=[0.003] * 9))).endswith("0.667   0.667 to 0.667   faster")
    assert str(compare.Verdict("cold", Timings(this=[0.00203] * 9, baseline=[0.002] * 9))).endswith("as fast")


def test_a_slower_tree_fails_with_advice(monkeypatch, capsys):
    """CI fails, and its log says how to find the cause."""
    verdicts = [
        compare.Verdict("warm", Timings(this=[0.003] * 9, baseline=[0.002] * 9)),
        compare.Verdict("cold", Timings(this=[0.002] * 9, baseline=[0.002] * 9)),
    ]
    monkeypatch.setattr(compare, "checked_out", lambda commit, folder: nullcontext())
    monkeypatch.setattr(compare, "seeded", lambda *_: None)
    monkeypatch.setattr(compare, "compare", lambda *_: verdicts)

    assert compare.main(["main"]) == 1
    assert "Slower than main: warm. In two comparisons of 3 × 30 rounds" in capsys.readouterr().out

    del verdicts[0]
    assert compare.main(["main"]) == 0


def test_a_slowdown_that_a_second_comparison_does_not_confirm_is_no_alarm(monkeypatch):
    """A shared machine has a slow minute now and then. A real slowdown shows in the second comparison, too."""

    def found(this):
        return [compare.Verdict(operation, Timings(this=[seconds] * 9, baseline=[0.002] * 9)) for operation, seconds in this.items()]

    comparisons = [found({"warm": 0.003, "cold": 0.004}), found({"warm": 0.002, "cold": 0.003})]
    monkeypatch.setattr(compare, "compare", lambda *_: comparisons.pop(0))
    tree = compare.Tree(ROOT, sys.executable, ROOT)

    assert [(verdict.operation, verdict.slower, verdict.timings.ratio) for verdict in compare.judge(tree, tree)] == [("warm", False, 1), ("cold", True, 1.5)]
    assert comparisons == []


def test_a_tree_that_is_as_fast_is_compared_only_once(monkeypatch):
    """The second comparison only confirms a slowdown."""
    comparisons = [[compare.Verdict("warm", Timings(this=[0.002] * 9, baseline=[0.002] * 9))]]
    monkeypatch.setattr(compare, "compare", lambda *_: comparisons.pop(0))

    assert not compare.judge(tree := compare.Tree(ROOT, sys.executable, ROOT), tree)[0].slower


def an_archive_of(lock):
    """The output of `git archive` for a tree that only has this lock."""
    archive, entry = io.BytesIO(), tarfile.TarInfo("requirements.lock")
    entry.size = len(lock)
    with tarfile.open(fileobj=archive, mode="w") as made:
        made.addfile(entry, io.BytesIO(lock))
    return archive.getvalue()


@pytest.mark.parametrize("lock", ["the same lock", "another lock"])
def test_the_base_runs_with_the_packages_of_its_own_lock(tmp_path, monkeypatch, lock):
    """Otherwise a slower version of Django would slow down both trees, and go unnoticed."""
    content, ran = (ROOT / "requirements.lock").read_bytes() if lock == "the same lock" else b"another", []

    def run(command, **_):
        ran.append(command[1:4])
        return SimpleNamespace(returncode=0, stdout=an_archive_of(content))

    monkeypatch.setattr(compare.subprocess, "run", run)
    with compare.checked_out("main", tmp_path) as base:
        assert (base.python == sys.executable) == (lock == "the same lock")
    installs = [["-m", "venv", tmp_path / "venv"], ["-m", "pip", "install"]] if lock == "another lock" else []
    assert ran == [["archive", "main"], *installs, ["-c", compare.SEED]]


def test_a_tree_that_cannot_be_compared_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    """The exit code is 2, so CI can distinguish it from a slowdown."""
    assert compare.main(["no such branch"]) == 2
    assert capsys.readouterr().err.startswith("Not compared: “no such branch” is not a commit, branch or tag of this repository.")

    with pytest.raises(SystemExit):
        compare.main([])
    assert "pass a commit, branch or tag to compare with" in capsys.readouterr().err

    with pytest.raises(compare.Broken, match=r"cannot be seeded: .*No module named 'housing'"):
        compare.seeded(tmp_path, sys.executable, tmp_path / "nothing.sqlite3")
    (tmp_path / "nothing.sqlite3").touch()
    with pytest.raises(compare.Broken, match="does not serve: "), compare.Tree(tmp_path, sys.executable, tmp_path / "nothing.sqlite3").served({}) as took:
        took("warm")

    monkeypatch.setattr(compare.subprocess, "run", lambda command, **_: SimpleNamespace(returncode="pip" in command, stdout=an_archive_of(b"another")))
    with pytest.raises(compare.Broken, match="in the lock of main cannot be installed"):
        compare.checked_out("main", tmp_path / "elsewhere").__enter__()


@pytest.mark.parametrize(("alarms", "found", "code"), [(0, 3, 0), (1, 3, 0), (2, 3, 1), (0, 2, 1)])
def test_the_proof_counts_false_alarms_and_missed_slowdowns(monkeypatch, capsys, alarms, found, code):
    """It accepts one false alarm in 100 comparisons or fewer, and requires that 95 of 100 slowdowns are found."""
    slow, same = iter([True] * found + [False] * 9), iter([True] * alarms + [False] * 9)

    def judged(base, head, slower):
        alarm = next(slow if slower else same)
        return [SimpleNamespace(operation=operation, slower=alarm and operation in (slower or ["warm"])) for operation in compare.TIMES]

    monkeypatch.setattr(compare, "seeded", lambda *_: None)
    monkeypatch.setattr(compare, "judge", judged)

    assert compare.main(["--proof", "3"]) == code
    assert capsys.readouterr().out == f"6 comparisons of the same code: {alarms} false alarms. 3 with a slowdown of 10%: {found} found.\n"


# The specification


def test_spec_md_is_up_to_date(capsys):
    """This fails for a promise that is not written down, and for a written one that no spec keeps any longer."""
    spec.main(["--check"])
    assert capsys.readouterr().out == ""


@pytest.fixture
def two_chapters(tmp_path, monkeypatch):
    """A tree with two chapters, one for each document."""
    (tmp_path / "tests").mkdir()
    for name in ("cost", "tools"):
        (tmp_path / "tests" / f"test_{name}.py").write_text(
            f'"""{name.title()}, and `more` (of it). An introduction."""\n\n\ndef test_a_hit_is_one_redis_command():\n    """Why | not."""\n'
        )
    documents = [spec.Document("SPEC.md", "Promises", "Head.", ("cost",)), spec.Document("SPEC-TOOLS.md", "Tools", "Head.", ("tools",))]
    monkeypatch.setattr(spec, "DOCUMENTS", documents)
    monkeypatch.setattr(spec, "ROOT", tmp_path)
    return tmp_path


def test_an_outdated_spec_md_is_shown_as_a_diff_and_refused(two_chapters, capsys):
    """The diff shows which promise was changed without `make spec`."""
    with pytest.raises(SystemExit, match=r"Out of date: SPEC\.md, SPEC-TOOLS\.md\. Run `make spec`"):
        spec.main(["--check"])
    assert "+| [A hit is one Redis command](tests/test_cost.py#L4) | Why \\| not. | ✓ | ✓ |\n" in capsys.readouterr().out

    spec.main([])
    spec.main(["--check"])
    assert (two_chapters / "SPEC.md").read_text().startswith("# Promises\n")


def test_promises_about_the_tools_are_in_a_file_of_their_own(two_chapters):
    """Most readers only look for the promises of the service."""
    spec.main([])

    product, tools = ((two_chapters / name).read_text() for name in ("SPEC.md", "SPEC-TOOLS.md"))
    assert ("tests/test_cost.py" in product, "tests/test_tools.py" in product) == (True, False)
    assert ("tests/test_cost.py" in tools, "tests/test_tools.py" in tools) == (False, True)


def test_the_contents_lead_to_each_chapter_and_its_heading_to_its_file(two_chapters):
    """A reader gets from a topic to its specs in two clicks."""
    spec.main([])

    lines = (two_chapters / "SPEC.md").read_text().splitlines()
    contents = lines[lines.index("## Contents") + 2 : lines.index("## Glossary") - 1]
    assert contents == ["- [Glossary](#glossary)", "- [Cost, and `more` (of it)](#cost-and-more-of-it)"]
    assert lines[lines.index("## [Cost, and `more` (of it)](tests/test_cost.py)") + 2] == "An introduction."


@pytest.mark.parametrize("document", [document.name for document in spec.DOCUMENTS])
def test_each_row_links_to_the_line_of_its_spec(document):
    """A link to another line would show a reader the wrong spec."""
    links = re.findall(r"^\| \[(.*?)\]\((tests/test_\w+\.py)#L(\d+)\)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    linked = {(path, int(number)): sentence for sentence, path, number in links}

    assert linked == {(path, line): sentence for path in {path for path, _ in linked} for line, sentence in promised_by(path)}
    assert len(linked) > 50


def promised_by(path):
    """The line and the sentence of each spec and each limitation in a chapter."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, spec.sentence_of(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_PROMISED":
            yield from ((key.lineno, key.value) for key in node.value.keys)


def test_each_sentence_of_the_series_names_an_existing_spec():
    """docs/series.md says which spec holds each sentence of the series. A renamed spec would otherwise stay in that table."""
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "series.md").read_text(encoding="utf-8"))
    texts = {name: (ROOT / "tests" / name).read_text(encoding="utf-8") for name, _ in named}

    assert [f"{name}::{sentence}" for name, sentence in named if f"\ndef {sentence}(" not in texts[name]] == []
    assert len(named) > 40


def test_a_chapter_that_is_in_no_document_is_refused(monkeypatch):
    """Otherwise the promises of a new file would be missing from SPEC.md."""
    monkeypatch.setattr(spec, "DOCUMENTS", spec.DOCUMENTS[1:])

    with pytest.raises(SystemExit, match=r"Add or remove: browser, .*writes\."):
        spec.main([])


def test_a_chapter_of_one_stack_says_so_in_each_row():
    """pytest applies a mark of the file to each of its specs, and so does SPEC.md."""
    rows = rows_of('pytestmark = [pytest.mark.browser, pytest.mark.only("embedded")]\n\ndef test_it_is_seen():\n    pass\n')

    assert rows[2:] == ["| [It is seen](#L3) | ✓ | — |"]


def rows_of(source):
    """The lines of the tables that a chapter becomes, without their headings."""
    groups = spec.groups_of(source)
    return [line for group in groups for line in spec.table_of(group.promises, spec.notes_of(groups))]


def test_a_promise_shows_its_reasons_and_its_stacks():
    """Every number has a `because`, and SPEC.md shows it."""
    source = """
# A heading without promises

TEXT = '''
# A line of a text
'''

HELPER = 1

# The cost

OTHER = 1
NOT_PROMISED = {"Wealth": "Out of scope."}

@pytest.mark.only("real")
@pytest.mark.parametrize(("count", "because"), [(1, "one is enough"), (2, "two are more")])
@pytest.mark.parametrize("variant", VARIANTS)
@variants
def test_it_counts(count, because, variant):
    with queries.exactly(1, because="it is a promise"), queries.exactly(1, because=because):
        pass
"""

    assert [group.title for group in spec.groups_of(source)] == ["The cost"]
    assert rows_of(source)[2:] == [
        "| [Wealth](#L13) | Out of scope. | — | — |",
        "| [It counts](#L19) | *Because it is a promise.* *Because one is enough.* *Because two are more.* | — | ✓ |",
    ]


def test_a_table_without_reasons_has_no_column_for_them():
    """An empty column only takes space."""
    rows = rows_of("def test_it_is_seen():\n    pass\n")

    assert rows == ["| promise | embedded | real |", "| --- | :-: | :-: |", "| [It is seen](#L1) | ✓ | ✓ |"]


def test_a_remark_that_several_rows_repeat_is_a_note():
    """The same words in twenty rows would hide the reasons."""
    rows = rows_of('def test_a():\n    """(SQLite alone.)"""\n\ndef test_b():\n    """Why. (SQLite alone.)"""\n\ndef test_c():\n    """(Once.)"""\n')

    assert rows[2:] == ["| [A](#L1) [¹](#notes) |  | ✓ | ✓ |", "| [B](#L4) [¹](#notes) | Why. | ✓ | ✓ |", "| [C](#L7) | (Once.) | ✓ | ✓ |"]
    assert spec.notes_of(spec.groups_of('def test_a():\n    """(Once.)"""\n')) == {}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("test_head_returns_the_same_headers_as_get", "HEAD returns the same headers as GET"),
        ("test_the_engine_s_bytes_are_drfs", "The engine's bytes are DRF's"),
        ("test_an_n_plus_1_of_sqlite", "An N+1 of SQLite"),
        ("test_to_get_a_lock", "To get a lock"),
        ("test_redis_py_raises_a_type_error", "redis-py raises a TypeError"),
    ],
)
def test_titles_keep_case_and_apostrophes(name, sentence):
    """A Python name has neither, so the generator knows the words."""
    assert spec.sentence_of(name) == sentence
