"""The test instruments: their counts and their failure messages. The reader of a message may not know the code."""

import gc
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, transaction
from django_redis import get_redis_connection
from fakeredis import TcpFakeServer

from housing.models import Office, Property
from tests import ROOT
from tests.fixtures.failures import failure
from tests.instruments import Latency, Timings, command_names, interval_of, shape_of

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
        "         tests/test_instruments.py:… (3 times)",
        '     1 × SELECT … FROM "housing_property" INNER JOIN "housing_agent" ON ("housing_property"."agent_id" = "housing_agent"."id") LIMIT ?',
        "         tests/test_instruments.py:…",
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
        "         tests/test_instruments.py:…",
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


@pytest.mark.parametrize(
    ("write", "mark", "advice"),
    [
        (lambda: [Office.objects.create(name=name) for name in "ab"], "one row each", "insert the rows with one statement: bulk_create()."),
        (
            lambda: [User.objects.filter(username=name).update(first_name=name) for name in "ab"],
            "one row each",
            "update the rows with one statement: update() if all get the same value, otherwise bulk_update().",
        ),
        (
            lambda: [User.objects.filter(username=name)._raw_delete("default") for name in "ab"],
            "one row each",
            "delete the rows with one statement: filter(pk__in=…).delete().",
        ),
    ],
    ids=["INSERT", "UPDATE", "DELETE"],
)
def test_repeated_writes_lead_to_the_statement_that_writes_all_rows(transactional_db, queries, write, mark, advice):
    """An INSERT is not avoided by select_related()."""

    def writes():
        with queries.exactly(1, because="one statement writes both rows"):
            write()

    lines = failure(writes).splitlines()
    assert lines[2].startswith("     2 × ")
    assert lines[2].endswith(f"   ← repeated: {mark}")
    assert lines[-1] == f"to do:    {advice}"


def test_at_most_allows_fewer_queries_and_fails_for_more(home, queries):
    """For a page whose number of queries depends on its data."""
    with queries.at_most(2, because="one counts, and one reads the office if there is one") as seen:
        Office.objects.count()
    assert len(seen) == 1

    def counts_twice():
        with queries.at_most(1, because="a count is one query"):
            Office.objects.count()
            Property.objects.count()

    assert failure(counts_twice).splitlines()[:2] == ["promised: at most 1 query, because a count is one query", "happened: 2 queries"]


def test_a_failure_names_the_line_of_a_package_and_that_of_the_project(twenty_properties, read, queries):
    """The first frame outside of Django may be in DRF, which was called for a page of the project."""

    def reads_a_naive_page():
        with queries.exactly(1, because="the page is naive"):
            read("naive", page_size=2)

    assert re.search(r"\n         rest_framework/\w+\.py:\d+, called by (housing|tests)/\S+\.py:\d+ \(2 times\)\n", failure(reads_a_naive_page))


def test_a_failure_does_not_name_the_standard_library(home, queries):
    """`random.choice()` evaluates the QuerySet, and its line helps nobody."""

    def chooses():
        with queries.exactly(0, because="nothing is read"):
            random.choice(Office.objects.all())

    assert re.findall(r"^         (\S+)$", failure(chooses), re.MULTILINE) == ["tests/test_instruments.py:…"]


def test_a_promise_without_a_reason_raises_a_type_error(queries, redis_commands):
    """Nobody dares to change a number without a known reason."""
    for promise in (queries.exactly, queries.at_most, redis_commands.exactly, redis_commands.at_most):
        with pytest.raises(TypeError, match="because"):
            promise(1)
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
        "happened: 2 round trips to Redis",
        "     1. GET   tests/test_instruments.py:…",
        "     2. GET TTL   tests/test_instruments.py:…",
        "to do:    HELLO and CLIENT open a new connection: send any command before you count. Otherwise combine the commands in one script or pipeline.",
    ]


def test_a_value_that_looks_like_a_command_is_not_counted_as_one():
    """Commands are parsed from the bytes that redis-py sends, where values stand between them."""
    wire = [b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$14\r\n*1\r\n$4\r\nPING\r\n\r\n", b"*1\r\n$4\r\nPING\r\n"]

    assert command_names(b"".join(wire)) == ["SET", "PING"]


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


def test_a_function_that_has_not_run_is_refused(python_calls, latency):
    """A coroutine that nobody awaits costs nothing."""

    async def act():
        """Do nothing."""

    benchmark = SimpleNamespace(pedantic=lambda this, *, setup, **_: (setup(), this())[1], stats=None)
    for counts in (
        lambda: python_calls.of(act),
        lambda: latency.interleaved(benchmark, act, baseline=bool),
        lambda: latency.interleaved(benchmark, bool, baseline=act),
        lambda: python_calls.of(lambda: (each for each in "ab")),
    ):
        assert re.match(r"not seen: the function returned a (coroutine|generator), which has not run\. Run it: ", failure(counts))


def test_calls_of_another_thread_are_refused_or_counted_or_ignored(python_calls):
    """The interpreter's profiler belongs to a thread."""

    def one():
        pass

    def act():
        thread = threading.Thread(target=one, name="another")
        thread.start()
        thread.join()

    assert failure(lambda: python_calls.of(act)) == (
        "not seen: act() used another thread (another); pass threads=True to count it, or threads=False to ignore it."
    )
    mine = f"{Path(__file__).name}: {one.__qualname__}"
    assert (python_calls.of(act, threads=True)[mine], python_calls.of(act, threads=False)[mine]) == (1, 0)


def test_python_calls_that_are_not_seen_are_refused(python_calls):
    """Another profiler, as that of --benchmark-cprofile, takes the place of the instrument's. A function written in C makes no Python call."""
    for act in (lambda: sys.setprofile(None), dict):
        assert failure(lambda act=act: python_calls.at_most(9, act, because="nothing is called")).startswith("not seen: act() made no Python call, or replaced")


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
    timings.at_most(0.2, because="the interval begins at 0.2, so the ratio may be within the budget")
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


def test_the_round_that_is_profiled_does_not_shift_the_baselines():
    """`--benchmark-cprofile` runs one more round, which is not timed."""
    ticks = iter([0, 10, 0, 10, 0, 1, 0, 2, 0, 10])

    def pedantic(this, *, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds + 1):
            setup()
            this()

    benchmark = SimpleNamespace(pedantic=pedantic, stats=SimpleNamespace(name="warm", stats=SimpleNamespace(data=[4.0, 5.0])), extra_info={})
    timings = Latency(clock=lambda: next(ticks)).interleaved(benchmark, bool, baseline=bool, rounds=2)

    assert timings == Timings(this=[4.0, 5.0], baseline=[1, 2])


def test_log_lines_are_not_formatted_for_pytest_while_they_are_timed(latency, caplog):
    """pytest keeps each line twice for its report, which takes longer than the line itself. A server does not."""
    root = logging.getLogger()
    before, during = list(root.handlers), []
    benchmark = SimpleNamespace(pedantic=lambda this, *, setup, **_: (setup(), this()), stats=None)

    latency.interleaved(benchmark, lambda: during.append(list(root.handlers)), baseline=bool)

    assert caplog.handler in before
    assert not {type(handler).__module__ for handler in during[0]} & {"_pytest.logging"}
    assert {*root.handlers} == {*before}


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
from django.core.cache import cache
from django.http import HttpResponse
from django.urls import path


def shown(entries):
    return HttpResponse(", ".join(entry.user.username for entry in entries))


urlpatterns = [
    path("", lambda request: shown(LogEntry.objects.select_related("user"))),
    path("n-plus-1/", lambda request: shown(LogEntry.objects.all())),
    path("cached/", lambda request: cache.get_or_set("page", lambda: shown(LogEntry.objects.select_related("user")))),
]
"""
THREE_ENTRIES = """

import pytest


@pytest.fixture(autouse=True)
def three_entries(db):
    from django.contrib.admin.models import LogEntry
    from django.contrib.auth.models import User

    for name in ("Ann", "Ben", "Cem"):
        LogEntry.objects.create(user=User.objects.create(username=name), action_flag=1)
"""
ASYNC = """
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User


async def counts():
    await User.objects.acount()


def test_async(db, queries):
    with queries.exactly(1, because="a count is one query"):
        async_to_sync(counts)()
"""
WITHOUT_REDIS = "raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')\n"
PYTEST = os.environ.get("PYTEST_OF_ANOTHER_PROJECT", Path(sys.executable).with_name("pytest"))
"""The pytest that runs another project. `.ci/versions` names one with the oldest versions in README."""


def in_another_project(folder, redis=None, without=""):
    """The output of pytest in a new Django project, into which README's section was copied verbatim. `redis` is a URL; without it, there is no redis-py."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use these instruments in your project")[2].partition("\n## ")[0]
    loads, tests = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    call_command("startproject", "mysite", folder)
    (folder / "tests").mkdir()
    shutil.copy2(ROOT / "tests" / "instruments.py", folder / "tests")
    settings = (folder / "mysite" / "settings.py").read_text(encoding="utf-8")
    if redis:
        settings += f"\nCACHES = {{'default': {{'BACKEND': 'django.core.cache.backends.redis.RedisCache', 'LOCATION': {redis!r}}}}}\n"
    else:
        (folder / "redis.py").write_text(WITHOUT_REDIS, encoding="utf-8")
    for name, text in {
        "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = mysite.settings\n",
        "mysite/settings.py": settings,
        "mysite/urls.py": FRONT_PAGE,
        "conftest.py": loads + THREE_ENTRIES,
        "tests/test_front_page.py": tests,
        "tests/test_n_plus_1.py": tests.replace('client.get("/")', 'client.get("/n-plus-1/")'),
        "tests/test_async.py": ASYNC,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    benchmark = ["-p", "pytest_benchmark.plugin", "--benchmark-disable-gc"] if redis else []
    command = [PYTEST, "-p", "pytest_django.plugin", *benchmark, "-p", "no:cacheprovider", "-v"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout


def test_in_another_project_the_instruments_work_as_readme_says(tmp_path):
    """README's tests pass for a page that sends one query, and the first fails for one with a query per row. The project has none of our code."""
    server = TcpFakeServer(("127.0.0.1", 0))
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        output = in_another_project(tmp_path, redis="redis://{}:{}".format(*server.server_address))
    finally:
        server.shutdown()
        server.server_close()
        serving.join()

    names = re.findall(r"tests/test_front_page\.py::(test_\w+) PASSED", output)
    assert len(names) == len(Counter(names)) == 4, output
    assert "tests/test_async.py::test_async PASSED" in output
    assert f"tests/test_n_plus_1.py::{names[0]} FAILED" in output
    message = output[output.index("promised: ") :].splitlines()
    assert message[:2] == ["promised: exactly 1 query, because one SELECT joins the author", "happened: 4 queries"]
    assert re.fullmatch(r"     3 × SELECT … FROM \"auth_user\" WHERE .* LIMIT \?   ← N\+1: repeated once per row", message[2])
    assert re.fullmatch(r"         mysite/urls\.py:9 \(3 times\)", message[3])
    assert message[6] == "to do:    load related rows with one query: select_related() for a foreign key, prefetch_related() for a set."


def test_in_another_project_without_redis_py_only_its_counter_fails(tmp_path):
    """A project that only counts SQL does not need redis-py, and no plugin but pytest-django."""
    output = in_another_project(tmp_path)

    ended = dict(re.findall(r"tests/test_front_page\.py::(test_\w+) (\w+)", output))
    assert list(ended.values()) == ["PASSED", "FAILED", "PASSED", "ERROR"], output  # the last one needs pytest-benchmark
    assert "No module named 'redis'" in output


def test_the_file_mentions_nothing_of_this_project():
    """Its advice must make sense elsewhere. It imports only what README lists, and carries the whole licence."""
    text = (ROOT / "tests" / "instruments.py").read_text(encoding="utf-8")
    code, _, licence = text.partition("\n# MIT License\n")

    assert re.findall(r"housing|freshness|journal|\blease|Cache-Status|the lock\b", code, re.IGNORECASE) == []
    imported = {name.split(".")[0] for name in re.findall(r"^ *(?:from|import) ([\w.]+)", code, re.MULTILINE)} - sys.stdlib_module_names
    assert imported == {"pytest", "django", "psycopg", "redis"}
    assert ["MIT", "License", *licence.replace("#", "").split()] == (ROOT / "LICENSE").read_text(encoding="utf-8").split()
