"""Setup. One command starts the service on a fresh machine, and a half-configured service does not start."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from django.conf import settings
from packaging.utils import canonicalize_name

from housing.run import CHANGED, Refused, cache_address, serve
from housing.settings import gateways
from tests import ROOT
from tests.fixtures.processes import (
    LOCK,
    RUN_LOCK,
    TIMEOUT,
    Clone,
    Ended,
    any_free_port,
    check_ended,
    clean,
    clone_of,
    in_a_second_terminal,
    killed_after,
    new_folder_in,
    python,
    served,
    until_it_serves,
)
from tests.stacks import wait_for

NOBODY = "127.0.0.1:1"
"""An address at which no server listens."""

# Settings that prevent a start


@pytest.mark.parametrize("environment", [{}, {"DJANGO_SECRET_KEY": "", "DJANGO_DEBUG": ""}], ids=["not set", "empty"])
def test_without_debug_the_service_needs_a_secret_key_to_start(tmp_path: Path, environment: dict[str, str]) -> None:
    """With a default key from the public code, anyone could forge a session."""
    check = python("manage.py", "check", folder=new_folder_in(tmp_path), **environment)

    assert check.code == 1
    assert check.stderr.startswith("DJANGO_SECRET_KEY is not set. Set it to")
    assert len(check.stderr.splitlines()) == 1


def test_an_unsupported_database_engine_is_refused_in_one_line() -> None:
    """Only PostgreSQL and SQLite have a backend that opens leases."""
    check = python("manage.py", "check", DJANGO_SECRET_KEY="any", DATABASE_URL="mysql://127.0.0.1/housing")

    assert check.code == 1
    assert check.stderr == "DATABASE_URL does not begin with a supported scheme. Use postgres://USER:PASSWORD@HOST:PORT/NAME, or sqlite:///PATH.\n"


# Debug


def test_without_debug_the_toolbar_is_not_installed(client: Any) -> None:
    """The toolbar shows settings and SQL to every visitor."""
    assert not settings.DEBUG
    assert not [name for name in settings.INSTALLED_APPS + settings.MIDDLEWARE if "debug" in name]
    assert client.get("/__debug__/").status_code == 404
    assert client.get("/__debug__/render_panel/").status_code == 404


def test_with_debug_the_toolbar_is_the_first_middleware() -> None:
    """It neither times nor counts the middleware before it."""
    printed = python("-c", "from housing import settings; print(settings.MIDDLEWARE[0])", DJANGO_DEBUG="true", DJANGO_SECRET_KEY="any")

    assert printed.stdout == "debug_toolbar.middleware.DebugToolbarMiddleware\n"


ROUTES = """\
Iface Destination Gateway  Flags RefCnt Use Metric Mask     MTU Window IRTT
eth0  00000000    {gateway} 0003  0      0   0      00000000 0   0      0
eth1  00000000    00000000 0001  0      0   0      00000000 0   0      0
eth1  {network}    {gateway} 0003  0      0   0      0000FFFF 0   0      0
eth0  {network}    00000000 0001  0      0   0      0000FFFF 0   0      0
"""


def test_the_gateway_of_a_container_is_found_in_its_routes(tmp_path: Path) -> None:
    """Requests from a browser on the host come from the gateway. Default routes without a gateway, and routes to a network, are ignored."""
    routes = tmp_path / "route"
    gateway, network = (f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}" for address in ("172.21.0.1", "172.21.0.0"))
    routes.write_text(ROUTES.format(gateway=gateway, network=network))

    assert gateways(routes) == ["172.21.0.1"]
    assert gateways(tmp_path / "no Linux") == []


@pytest.mark.parametrize(("debug", "shown_to"), [("true", ["127.0.0.1", "::1", *gateways()]), ("false", ["127.0.0.1", "::1"])])
def test_the_gateway_is_trusted_only_with_debug(debug: str, shown_to: list[str]) -> None:
    """Outside a container the default gateway is a router, so trusting it would expose the toolbar."""
    printed = python("-c", "import json; from housing import settings; print(json.dumps(settings.INTERNAL_IPS))", DJANGO_DEBUG=debug, DJANGO_SECRET_KEY="any")

    assert json.loads(printed.stdout) == shown_to


# The image


def test_the_image_installs_only_versions_that_the_specs_have_run_with() -> None:
    """Its lock file leaves out the packages that only specs and linters need, and so does that of `make run`. `make lock` writes all three."""
    image, run, everything = map(locked, ("-image", "-run", ""))

    assert image.keys() >= {"django", "psycopg-binary", "redis"}
    assert run.keys() - image.keys() == {"fakeredis", "lupa", "sortedcontainers"}, "the image has no fakeredis, and `make run` has"
    assert image.keys() - run.keys() == {"granian", "click", "gunicorn"}, "the image has the server, and `make run` has Django's own"
    assert image.items() < everything.items() > run.items()


def locked(part: str) -> dict[str, str]:
    """The versions in a lock file, by package."""
    return dict(re.findall(r"^(\S+)==(\S+)", (ROOT / f"requirements{part}.lock").read_text(), re.MULTILINE))


def test_a_wsgi_server_can_serve_the_application(transactional_db: None) -> None:
    """Production uses `housing.wsgi`, which the test client bypasses."""
    from housing.wsgi import application

    environ = {"PATH_INFO": "/health/", "HTTP_HOST": "testserver"}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(application(environ, lambda status, headers: statuses.append(status)))

    assert (statuses, json.loads(body)["status"]) == (["200 OK"], "ok")


# `make run`


@pytest.fixture
def free_port() -> int:
    return any_free_port()


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    return new_folder_in(tmp_path)


@pytest.fixture
def run(new_folder: Path) -> Callable[..., Ended]:
    """`run(port)`: run a `make run` that is expected to fail before it serves."""

    def run(port: int | str, **environment: str) -> Ended:
        return python("-m", "housing.run", "--port", str(port), folder=new_folder, **environment)

    return run


ONLY_INSTALLED = """
import sys
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {missing}:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
"""
"""Python imports this at its start."""


@pytest.fixture
def only_what_it_installs(tmp_path: Path) -> dict[str, str]:
    """The variables with which Python finds no package that is missing in the lock of `make run`. (Coverage measures child processes, too.)"""
    installed = {canonicalize_name(name) for name in locked("-run")} | {"coverage"}
    missing = {module for module, packages in packages_distributions().items() if not installed & set(map(canonicalize_name, packages))}
    assert missing > {"pytest", "hypothesis", "httpx"}
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(ONLY_INSTALLED.format(missing=missing))
    return {"PYTHONPATH": str(tmp_path / "python")}


@pytest.mark.slow
def test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_the_cache(
    new_folder: Path, free_port: int, only_what_it_installs: dict[str, str]
) -> None:
    """These are the first five minutes of every new user. Only the packages of `make run` can be imported. The second terminal changes every column that
    is shown, because a copy that the first process kept of a row would hear nothing of it.
    """
    with served(new_folder, free_port, **only_what_it_installs) as service:
        assert 'sql;desc="61 queries"' in service.headers("/api/properties/live/naive/")["Server-Timing"], "the toolbar replaced the Server-Timing header"
        assert re.search(r"as admin / \S{16} \(shown only once", service.greeting)
        assert service.first_price()[0] == "housing; fwd=miss; stored"
        assert service.first_price()[0] == "housing; hit"

        in_a_second_terminal(new_folder, NEW_VALUES.replace("URL", f"{service.url}/api/properties/cached/"), **only_what_it_installs)

        assert service.first_price() == ("housing; fwd=stale; stored", "123456.00")

        (new_folder / "housing" / "views.py").touch()
        until_it_serves(service.process)

        assert service.first_price() == ("housing; hit", "123456.00"), "the cache was lost at the reload"

    assert service.process.returncode == 0
    assert (new_folder / "db.sqlite3").exists()
    socket.create_server(("127.0.0.1", free_port)).close()


NEW_VALUES = """
import json
from urllib.request import Request, urlopen
from django.db.models import DecimalField, IntegerField
from housing.serializers import PropertyDetailSerializer, rendered

def read(path):
    with urlopen(Request("URL" + path, headers={"Accept": "application/json"})) as response:
        return json.load(response)

def changed(field, value):
    if field.choices:
        return next(choice for choice, _ in field.choices if choice != value)
    if isinstance(field, (DecimalField, IntegerField)):
        return (value or 0) + 1
    return str(value)[:-2] + "x"

newest = Property.objects.order_by("-created_at", "-id")
home, seen = newest[0], []
for row in (home, home.agent, home.agent.office, home.location, home.images.first()):
    for field in row._meta.concrete_fields:
        if field.editable and not field.primary_key and not field.is_relation:
            setattr(row, field.name, changed(field, getattr(row, field.name)))
            row.save(update_fields=[field.name])
            expected = json.loads(rendered(PropertyDetailSerializer(newest[0]).data))
            detail, first = read(f"{home.pk}/"), read("")["results"][0]
            assert detail == expected, (field, detail, expected)
            assert first | {"images": detail["images"]} == expected, (field, first, expected)
            seen.append(field)
assert len(seen) > 15, seen
home.price = 123456
home.save()
"""
"""Changes every column that a response shows, and reads both kinds of responses after each change."""


@pytest.mark.slow
def test_a_folder_with_existing_settings_and_data_is_served_unchanged(new_folder: Path, free_port: int) -> None:
    """The .env is not overwritten, no seed data and no user are added, and fakeredis does not replace the Redis in REDIS_URL."""
    env = f"DJANGO_DEBUG=true\nREDIS_URL=redis://{NOBODY}/0\n"
    (new_folder / ".env").write_text(env)
    in_a_second_terminal(new_folder, OWN_DATA, REDIS_URL="fakeredis://")

    with served(new_folder, free_port) as service:
        assert "to reset the password" in service.greeting
        came_from, page = service.get("/api/properties/cached/")
        assert came_from == "housing; fwd=bypass; detail=unreachable"
        assert [row["title"] for row in page["results"]] == ["My own"]
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(TIMEOUT) == 0

    assert (new_folder / ".env").read_text() == env


OWN_DATA = """
from django.contrib.auth.models import User
from django.core.management import call_command
call_command("migrate", verbosity=0)
User.objects.create(username="me")
agent = Agent.objects.create(name="Me", office=Office.objects.create(name="Mine"))
Property.objects.create(title="My own", price=1, agent=agent, location=Location.objects.create(city="Here"))
"""


def test_the_command_exits_with_the_code_of_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` exits with the server's code. Only a code change restarts the server."""
    codes = iter([CHANGED, CHANGED, 1])
    monkeypatch.setattr("housing.run.serve_until_the_code_changes", lambda port: next(codes))

    assert serve(8000) == 1


IGNORES_SIGNALS = """
import shutil
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("Starting development server", flush=True)
while True:
    signal.pause()
"""


def test_a_server_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    """Django's server may ignore SIGTERM while it looks for changed files, and `make run` would never end."""
    (tmp_path / "manage.py").write_text(IGNORES_SIGNALS)
    serving = (
        f"import signal, pathlib; from housing import run; run.ROOT = pathlib.Path({str(tmp_path)!r}); signal.signal(signal.SIGTERM, run.end); run.serve(1)"
    )
    process = subprocess.Popen([sys.executable, "-c", serving], cwd=ROOT, env=clean(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process, killed_after(TIMEOUT, process):
        until_it_serves(process)
        process.terminate()
        assert process.wait() == 0

    wait_for(lambda: check_ended(process), pytest.fail.Exception)


def test_env_is_complete_and_readable_only_by_its_owner(new_folder: Path, run: Callable[..., Ended]) -> None:
    """The file holds the key that signs sessions."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run(port)

    env = new_folder / ".env"
    assert refused == Ended(1, "", f"Not started: port {port} is not available (Address already in use). Use another one: make run PORT=8001.\n")
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert re.findall(r"^(\w+)=.", env.read_text(), re.MULTILINE) == ["DJANGO_SECRET_KEY", "DJANGO_DEBUG", "DATABASE_URL", "REDIS_URL"]
    assert {path.name for path in new_folder.iterdir()} == {".env", "housing", "manage.py"}


@pytest.mark.parametrize("port", ["abc", "", "65536"])
def test_an_invalid_port_is_refused_in_one_line(new_folder: Path, run: Callable[..., Ended], port: str) -> None:
    """The port is checked before .env is written."""
    refused = run(port)

    assert refused == Ended(1, "", f"Not started: argument --port: '{port}' is not a port. Use a number from 1 to 65535.\n")
    assert not (new_folder / ".env").exists()


@pytest.mark.parametrize(
    ("variable", "url", "line"),
    [
        (
            "REDIS_URL",
            "fakeredis://127.0.0.1:{taken}/0",
            "the fakeredis server cannot listen at 127.0.0.1:{taken} .* another `make run` of this folder",
        ),
        ("DATABASE_URL", "sqlite:////nowhere/db.sqlite3", "unable to open database file"),
        ("DATABASE_URL", "mysql://127.0.0.1/housing", "DATABASE_URL does not begin with a supported scheme"),
    ],
)
def test_an_unusable_url_is_refused_in_one_line(run: Callable[..., Ended], free_port: int, variable: str, url: str, line: str) -> None:
    """A traceback would hide which variable to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        refused = run(free_port, **{variable: url.format(taken=number)})

    assert (refused.code, refused.stdout) == (1, "")
    assert re.fullmatch(rf"Not started: {line.format(taken=number)}.*\n", refused.stderr)


@pytest.mark.parametrize("url", ["fakeredis://", "fakeredis://127.0.0.1/0", "fakeredis://127.0.0.1:port/0", "fakeredis://:6380/0"])
def test_a_fakeredis_without_host_and_port_is_refused(url: str) -> None:
    """Each process would get its own cache, so a write in the second terminal would not invalidate the first one's entries."""
    with pytest.raises(Refused, match=r"REDIS_URL is a fakeredis inside one process, .* Add a host and a port"):
        cache_address(url)


# The installation


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return clone_of(tmp_path)


def test_make_run_installs_only_what_it_runs_and_make_test_adds_the_rest(clone: Clone) -> None:
    """The service needs a quarter of it all. Nothing is installed twice, in any order of the two commands."""
    assert clone.actions("run", "run") == ["new", RUN_LOCK, "run", "run"]
    assert clone.actions("test", "run", "test") == [LOCK, "test", "run", "test"]


def test_make_run_takes_an_environment_that_has_everything(clone: Clone) -> None:
    """A smaller environment would replace it, and the next `make test` would install everything again."""
    assert clone.actions("test", "run") == ["new", LOCK, "test", "run"]


@pytest.mark.parametrize(
    ("changed", "targets", "actions"),
    [
        ([LOCK], ["run", "test"], ["run", "new", LOCK, "test"]),
        ([RUN_LOCK, LOCK], ["run", "test"], ["new", RUN_LOCK, "run", LOCK, "test"]),
        ([RUN_LOCK, LOCK], ["test", "run"], ["new", LOCK, "test", "run"]),
    ],
    ids=["a package of the specs", "a package of the service", "a package of the service, specs first"],
)
@pytest.mark.parametrize("before", [["run", "test"], ["test"]], ids=" and ".join)
def test_a_changed_lock_is_installed_into_a_new_environment(
    clone: Clone, before: list[str], changed: list[str], targets: list[str], actions: list[str]
) -> None:
    """The old one may have packages that are no longer locked. A change for the specs alone does not concern `make run`."""
    clone.actions(*before)
    clone.change(*changed)

    assert clone.actions(*targets) == actions


def test_an_installation_says_what_it_installs_and_how_large_and_slow_it_was(clone: Clone) -> None:
    """Without a terminal there are two lines."""
    packages = len(locked("-run"))
    told = rf"Installing the {packages} packages of {RUN_LOCK} into \.venv …\nInstalled in \d+ s: \.venv has \d+ MB\.\n"

    assert re.fullmatch(told, clone.make("run").stdout)
    assert clone.make("run").stdout == ""


def test_an_installation_shows_its_progress_on_a_terminal(clone: Clone) -> None:
    """It takes a minute on a slow connection."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "wb") as screen:
        clone.make("run", stdout=screen, stderr=screen)
        shown = terminal.read(4096).decode()
    packages = len(locked("-run"))

    assert re.search(rf"\r  {packages} of {packages}, \d+ MB\r\nInstalled in", shown)


def test_a_failed_installation_is_shown_and_begun_again(clone: Clone) -> None:
    """Half an environment must not be taken for a whole one."""
    (clone.folder / "fails").write_text("Collecting django\nERROR: No matching distribution found for django\n")
    failed = clone.make("run")

    assert failed.code != 0
    assert failed.stderr.startswith("ERROR: No matching distribution found for django\nNot installed. Remove the cause, and run make again.\n")
    (clone.folder / "fails").unlink()
    assert clone.actions("run") == ["new", RUN_LOCK, "run"]
