"""The stacks: the same specs on SQLite and fakeredis, and on PostgreSQL and Redis. What cannot be had is said in one line, and nothing is left behind."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack

import psycopg
import pytest
import redis

from conftest import ROOT
from tests import stacks

ONE_SPEC = "tests/test_cost.py::test_a_cold_read_costs_one_query"


def run_specs(*arguments, **environment):
    """Run pytest in a process of its own, whose environment names no servers but these."""
    clean = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=120, check=False)


NOBODY = "127.0.0.1:1"


def test_a_real_stack_that_cannot_be_had_is_one_line_and_a_failure():
    """Never a silent skip: green would mean promised."""
    ended = run_specs("--stack=real", ONE_SPEC, DOCKER_HOST="unix:///nowhere/docker.sock")

    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert ended.stdout == ""
    assert re.fullmatch(r"ERROR: --stack=real needs a Docker engine, or both DATABASE_URL and REDIS_URL: .*\n\n", ended.stderr)


HALF = "set both DATABASE_URL and REDIS_URL, or neither for Testcontainers to start servers."


@pytest.mark.parametrize(
    ("database", "cache", "line"),
    [
        (f"postgres://{NOBODY}/x", "", HALF),
        ("", f"redis://{NOBODY}/0", HALF),
        (f"postgres://{NOBODY}/x", f"redis://{NOBODY}/0", "the server of DATABASE_URL does not answer: "),
        ("nonsense", f"redis://{NOBODY}/0", "the server of DATABASE_URL does not answer: "),
    ],
    ids=["only a database", "only a Redis", "nobody there", "no URL"],
)
def test_the_line_says_which_server_is_missing(monkeypatch, database, cache, line):
    """Each ends pytest as the one above does."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", cache)

    with ExitStack() as servers, pytest.raises(pytest.UsageError) as refused:
        stacks.real(servers)

    assert re.fullmatch(f"--stack=real: {re.escape(line)}.*", str(refused.value)), "it is more than a line"


def test_a_browser_that_cannot_be_had_is_one_line_and_a_failure():
    """The line says what to install."""
    ended = run_specs("--browser", ONE_SPEC, CHROMIUM="/nowhere/chromium")

    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert ended.stderr == "ERROR: --browser needs Chromium. Install it (Debian: apt install chromium), or name its program with CHROMIUM=…\n\n"


def test_a_browser_is_the_one_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("CHROMIUM", sys.executable)

    assert stacks.chromium() == sys.executable


def test_a_stack_that_nobody_knows_is_refused():
    ended = run_specs("--stack=imaginary")

    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "invalid choice: 'imaginary' (choose from" in ended.stderr


def test_a_server_that_never_answers_is_not_waited_for_for_ever(monkeypatch):
    """What it says last is what is told."""
    monkeypatch.setattr(stacks, "TIMEOUT", 0)
    responses = iter([OSError("not yet"), OSError("still not")])

    def ask():
        raise next(responses)

    with pytest.raises(OSError, match="not"):
        stacks.wait_for(ask, OSError)


def test_a_server_that_answers_at_last_is_waited_for():
    responses = iter([1, 0])

    stacks.wait_for(lambda: 1 // (1 - next(responses)), ZeroDivisionError)

    assert list(responses) == []


@pytest.mark.only("real")
def test_an_image_that_cannot_be_had_is_one_line_and_a_failure():
    """Only where an engine answers can it say that it has no such image."""
    ended = run_specs("--stack=real", ONE_SPEC, POSTGRES_IMAGE="nobody/has-this:1", REDIS_IMAGE="nobody/has-this:1")

    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert ended.stderr.startswith("ERROR: --stack=real: nobody/has-this:1 cannot be started: ")
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.only("real")
def test_servers_that_were_handed_in_are_left_as_they_were():
    """A database and keys of their own for the specs, gone at the end: whatever else is there is somebody's. (Embedded servers are handed in by nobody.)"""
    with ExitStack() as servers:
        database, (cache, _) = stacks.start_postgres(servers), stacks.start_redis(servers)

        def there():
            with psycopg.connect(database) as asked, redis.Redis.from_url(cache) as client:
                databases = {name for (name,) in asked.execute("SELECT datname FROM pg_database")}
                return databases, {key: client.get(key) for key in client.scan_iter()}

        with redis.Redis.from_url(cache) as client:
            client.set("somebody's", "key")
        before = there()
        ended = run_specs("--stack=real", ONE_SPEC, DATABASE_URL=database, REDIS_URL=cache)

        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert there() == before


def test_specs_of_the_other_stack_are_counted_and_not_skipped():
    """pytest says how many it left out; each says in its docstring why."""
    ended = run_specs("tests/test_faults.py", "tests/test_stacks.py::test_a_server_that_answers_at_last_is_waited_for")

    assert ended.returncode == 0
    assert "1 passed, 30 deselected" in ended.stdout


@pytest.mark.only("real")
def test_a_run_takes_an_empty_database_of_redis_or_none(new_redis):
    """What is in the others is somebody's. (fakeredis is nobody else's.)"""
    url = new_redis().url.removesuffix("/0")
    for number in (15, *range(14)):
        with redis.Redis.from_url(f"{url}/{number}") as client:
            client.set("somebody's", 1)

    with ExitStack() as servers:
        own = stacks.own_number(servers, f"{url}/0")
        with redis.Redis.from_url(own) as client:
            client.set("ours", 1)
            with pytest.raises(pytest.UsageError, match=r"All sixteen databases of the Redis of REDIS_URL are in use\."):
                stacks.own_number(servers, f"{url}/0")

    assert own == f"{url}/14"
    with redis.Redis.from_url(own) as client:
        assert client.dbsize() == 0
