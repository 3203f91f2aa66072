"""The stacks. The same specs run on SQLite and fakeredis, and on PostgreSQL and Redis. An unavailable server fails the run with one line, and a run
leaves nothing behind.
"""

import re
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import psycopg
import pytest
import redis
from django.db import connection, transaction
from django.forms import model_to_dict
from django.test.utils import CaptureQueriesContext

from housing.freshness.tracking import tracked
from housing.models import Location, Office, Property
from tests import stacks
from tests.fixtures import rows
from tests.fixtures.processes import python
from tests.fixtures.rows import a_page_of_properties

ONE_SPEC = "tests/test_cost.py::test_a_cold_read_costs_one_query"


def run_specs(*arguments, **environment):
    """Run pytest in its own process, whose environment has no server URLs except those in `environment`."""
    return python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, **environment)


NOBODY = "127.0.0.1:1"
"""An address at which no server listens."""


def test_a_real_stack_without_a_docker_engine_fails_with_one_line():
    """If the specs were skipped, a green run would claim promises that were not tried."""
    ended = run_specs("--stack=real", ONE_SPEC, DOCKER_HOST="unix:///nowhere/docker.sock")

    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert ended.stdout == ""
    assert re.fullmatch(r"ERROR: --stack=real needs a Docker engine, or both DATABASE_URL and REDIS_URL: .*\n\n", ended.stderr)


HALF = "only one server is set. Set both DATABASE_URL and REDIS_URL, or neither to start servers with Testcontainers."


@pytest.mark.parametrize(
    ("database", "cache", "line"),
    [
        (f"postgres://{NOBODY}/x", "", HALF),
        ("", f"redis://{NOBODY}/0", HALF),
        (f"postgres://{NOBODY}/x", f"redis://{NOBODY}/0", "the server of DATABASE_URL is unreachable: "),
        ("nonsense", f"redis://{NOBODY}/0", "the server of DATABASE_URL is unreachable: "),
    ],
    ids=["only a database", "only a Redis", "unreachable", "an invalid URL"],
)
def test_the_error_says_which_server_is_missing(monkeypatch, database, cache, line):
    """Both URLs, or neither, must be set."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", cache)

    with ExitStack() as servers, pytest.raises(pytest.UsageError) as refused:
        stacks.real(servers)

    assert re.fullmatch(f"--stack=real: {re.escape(line)}.*", str(refused.value)), "the message is longer than one line"


def test_a_missing_browser_fails_with_one_line():
    """The error says what to install."""
    ended = run_specs("--browser", ONE_SPEC, CHROMIUM="/nowhere/chromium")

    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert ended.stderr == "ERROR: --browser needs Chromium. Install it (Debian: apt install chromium), or set CHROMIUM to its path.\n\n"


def test_the_environment_selects_the_browser(monkeypatch):
    """Chromium has another name or path on other systems."""
    monkeypatch.setenv("CHROMIUM", sys.executable)

    assert stacks.chromium() == sys.executable


def test_an_unknown_stack_is_refused():
    """A typo must not select the default stack."""
    ended = run_specs("--stack=imaginary")

    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert "invalid choice: 'imaginary' (choose from" in ended.stderr


def test_waiting_for_an_unreachable_server_ends_after_the_timeout(monkeypatch):
    """The server's last error is raised."""
    monkeypatch.setattr(stacks, "TIMEOUT", 0)
    errors = iter([OSError("not yet"), OSError("still not")])

    def connect():
        raise next(errors)

    with pytest.raises(OSError, match="not"):
        stacks.wait_for(connect, OSError)


def test_a_test_run_waits_for_a_server_that_is_starting():
    """A new container accepts connections only after some time."""
    responses = iter([1, 0])

    stacks.wait_for(lambda: 1 // (1 - next(responses)), ZeroDivisionError)

    assert list(responses) == []


@pytest.mark.only("real")
def test_an_unavailable_image_fails_with_one_line():
    """Only a reachable Docker engine can report that an image does not exist."""
    ended = run_specs("--stack=real", ONE_SPEC, POSTGRES_IMAGE="nobody/has-this:1", REDIS_IMAGE="nobody/has-this:1")

    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert ended.stderr.startswith("ERROR: --stack=real: nobody/has-this:1 cannot be started: ")
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.only("real")
def test_the_servers_of_the_environment_are_left_unchanged():
    """The specs create their own database and keys, and delete them at the end. Other data on the servers belongs to others. (Only a real server has a URL.)"""
    with ExitStack() as servers:
        database, cache = stacks.start_postgres(servers), stacks.start_redis(servers).url

        def contents():
            with psycopg.connect(database) as server, redis.Redis.from_url(cache) as client:
                databases = {name for (name,) in server.execute("SELECT datname FROM pg_database")}
                return databases, {key: client.get(key) for key in client.scan_iter()}

        with redis.Redis.from_url(cache) as client:
            client.set("another user's", "key")
        before = contents()
        ended = run_specs("--stack=real", ONE_SPEC, DATABASE_URL=database, REDIS_URL=cache)

        assert ended.code == 0, ended.stdout + ended.stderr
        assert contents() == before


def test_specs_of_the_other_stack_are_deselected_and_counted():
    """pytest prints their number. The docstring of each one says why it needs the other stack."""
    ended = run_specs("tests/test_faults.py", "tests/test_stacks.py::test_a_test_run_waits_for_a_server_that_is_starting")

    assert ended.code == 0
    assert "1 passed, 30 deselected" in ended.stdout


@pytest.mark.only("real")
def test_a_run_uses_only_an_empty_database_of_redis(new_redis):
    """The other databases may hold other people's data. (fakeredis is used by one process alone.)"""
    url = new_redis().url.removesuffix("/0")
    for number in (15, *range(14)):
        with redis.Redis.from_url(f"{url}/{number}") as client:
            client.set("another user's", 1)

    with ExitStack() as servers:
        own = stacks.own_number(servers, f"{url}/0")
        with redis.Redis.from_url(own) as client:
            client.set("ours", 1)
            with pytest.raises(pytest.UsageError, match=r"All sixteen databases of the Redis at REDIS_URL are in use\."):
                stacks.own_number(servers, f"{url}/0")

    assert own == f"{url}/14"
    with redis.Redis.from_url(own) as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("measures", [True, False])
def test_coverage_is_saved_when_the_specs_end_and_not_only_when_the_process_does(monkeypatch, measures):
    """xdist kills a worker that takes more than ten seconds to exit, and the lines that only its specs run would count as never run."""
    saved = []
    current = SimpleNamespace(save=lambda: saved.append("saved")) if measures else None
    monkeypatch.setitem(sys.modules, "coverage", SimpleNamespace(Coverage=SimpleNamespace(current=lambda: current)))

    stacks.pytest_sessionfinish()

    assert saved == ["saved"] * measures


def test_a_spec_whose_program_is_missing_fails_with_the_command_that_installs_it():
    """A skipped spec would look like a promise that was kept."""
    with pytest.raises(pytest.fail.Exception, match=r"^nowhere is missing\. Install it \(Debian: apt install nowhere\)\.$"):
        stacks.program("nowhere")


def test_no_row_of_a_spec_has_the_id_of_a_row_of_another_table(transactional_db, monkeypatch):
    """Otherwise no spec would notice that the id of an agent was taken for that of a property. Earlier specs may have created more rows of one table."""
    monkeypatch.setattr(rows, "_a_page", [])
    Location.objects.bulk_create([Location(city="Springfield") for _ in range(50)])
    Location.objects.all().delete()

    for _ in ("the first spec", "a later one"):
        homes = a_page_of_properties()
        ids = [key for model in tracked() for key in model._base_manager.values_list("pk", flat=True)]
        assert len(set(ids)) == len(ids) == 4 * len(homes) + 4
        Location.objects.all().delete()
        Office.objects.all().delete()


def test_the_first_spec_of_a_process_inserts_its_rows_as_each_later_one(transactional_db, monkeypatch):
    """It would otherwise have other steps, so that some specs would fail alone."""
    monkeypatch.setattr(rows, "_a_page", [])
    sent = []
    for _ in ("the first spec", "a later one"):
        with transaction.atomic(), CaptureQueriesContext(connection) as captured:
            a_page_of_properties()
            transaction.set_rollback(True)
        sent.append([query["sql"] for query in captured if "SAVEPOINT" not in query["sql"]])
    assert sent[0][-len(sent[1]) :] == sent[1]
    assert len(sent[0]) > len(sent[1]) > 4


def test_the_rows_of_a_spec_are_as_in_the_database(twenty_properties):
    """Only rows that are saved once in each process are saved with the ORM."""
    for home in twenty_properties:
        for row in (home, home.location, home.agent, home.agent.office):
            assert model_to_dict(row) == model_to_dict(type(row)._base_manager.get(pk=row.pk))
    assert twenty_properties == list(Property.objects.order_by("-created_at"))
