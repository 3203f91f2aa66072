"""Setup. One command starts the service on a fresh machine, and a half-configured service does not start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from django.conf import settings
from django.db import connection

from housing.run import CHANGED, Refused, cache_address, serve
from housing.settings import gateways
from tests.stacks import wait_for

ROOT = Path(__file__).resolve().parent.parent
OURS = ("DATABASE_URL", "REDIS_URL", "DJANGO_SECRET_KEY", "DJANGO_DEBUG", "DJANGO_ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE", "FRESHNESS_METRICS_TOKEN")
"""The environment variables that the service reads."""

NOBODY = "127.0.0.1:1"
"""An address at which no server listens."""

TIMEOUT = 60
"""Seconds after which a process without the expected output is killed, and the spec fails. Each usually takes less than a tenth of it."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended, with its exit code and output."""

    code: int
    stdout: str
    stderr: str


def python(*arguments: str, folder: Path = ROOT, **environment: str) -> Ended:
    """Run Python in `folder`. Of the service's variables it sees only those in `environment`; an empty one overrides .env."""
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, env=clean() | environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OURS}


# Settings that prevent a start


def test_without_debug_the_service_needs_a_secret_key_to_start() -> None:
    """With a default key from the public code, anyone could forge a session."""
    check = python("manage.py", "check", DJANGO_SECRET_KEY="", DJANGO_DEBUG="")

    assert check.code == 1
    assert check.stderr.startswith("DJANGO_SECRET_KEY is not set. Set it to")
    assert len(check.stderr.splitlines()) == 1


def test_an_unsupported_database_engine_is_refused_in_one_line() -> None:
    """Only PostgreSQL and SQLite have a backend that opens leases."""
    check = python("manage.py", "check", DJANGO_SECRET_KEY="any", DATABASE_URL="mysql://127.0.0.1/housing")

    assert check.code == 1
    assert check.stderr == "DATABASE_URL has an unsupported engine: 'mysql'. Use postgres://USER:PASSWORD@HOST:PORT/NAME, or sqlite:///PATH.\n"


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
    """Its lock file leaves out the packages that only specs and linters need. `make lock` writes both files."""
    run, everything = (set(re.findall(r"^\S+==\S+", (ROOT / f"requirements{which}.lock").read_text(), re.MULTILINE)) for which in ("-run", ""))

    assert {name.partition("==")[0] for name in run} >= {"django", "psycopg-binary", "redis", "gunicorn"}
    assert run < everything


def test_a_wsgi_server_can_serve_the_application(transactional_db: None) -> None:
    """Production uses `housing.wsgi`, which the test client bypasses."""
    from housing.wsgi import application

    environ = {"PATH_INFO": "/health/", "HTTP_HOST": "testserver"}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(application(environ, lambda status, headers: statuses.append(status)))

    assert (statuses, json.loads(body)) == (["200 OK"], {"database": "ok", "cache": "ok"})


# Health


@pytest.mark.django_db
def test_health_is_200_while_database_and_cache_are_reachable(client: Any) -> None:
    response = client.get("/health/")

    assert (response.status_code, response.json()) == (200, {"database": "ok", "cache": "ok"})


@pytest.mark.django_db
def test_health_is_200_without_redis_and_reports_it(client: Any, settings: Any) -> None:
    """Every read is still answered from the database, so restarting this process would not help."""
    settings.CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"redis://{NOBODY}/0"}}

    response = client.get("/health/")

    assert response.status_code == 200
    assert response.json()["database"] == "ok"
    assert response.json()["cache"].startswith("unreachable: ")


@pytest.mark.django_db(transaction=True)
def test_health_is_503_without_the_database(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the database every miss fails, so a load balancer should stop sending requests."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "NAME", "/nowhere/housing")

    response = client.get("/health/")

    assert response.status_code == 503
    assert response.json()["database"].startswith("unreachable: ")
    assert response.json()["cache"] == "ok"


# `make run`


@pytest.fixture
def free_port() -> int:
    return any_free_port()


def any_free_port() -> int:
    """A free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    return new_folder_in(tmp_path)


def new_folder_in(parent: Path) -> Path:
    """A fresh copy of the project, without .env and database. The folder's name has characters that a URL must quote."""
    folder = parent / "new folder #1"
    folder.mkdir()
    shutil.copytree(ROOT / "housing", folder / "housing")  # with its bytecode, so that it starts sooner
    shutil.copy(ROOT / "manage.py", folder)
    return folder


@dataclass(frozen=True)
class Served:
    """A running service."""

    process: subprocess.Popen[str]
    url: str
    greeting: str

    def headers(self, path: str) -> Any:
        """GET a path as HTML, and return the response's headers."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "text/html"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.headers

    def get(self, path: str) -> tuple[str, Any]:
        """GET a path as JSON, and return Cache-Status and the parsed body."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.headers.get("Cache-Status", ""), json.load(response)

    def first_price(self) -> tuple[str, str]:
        """GET the cached list, and return its Cache-Status and the price of its first row."""
        came_from, page = self.get("/api/properties/cached/")
        return came_from, page["results"][0]["price"]


@contextmanager
def served(folder: Path, port: int, properties: int = 20, timeout: float = TIMEOUT) -> Iterator[Served]:
    """Run `make run` while the block runs, but at most `timeout` seconds. The block starts when the service is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "housing.run", "--port", str(port), "--properties", str(properties)],
        cwd=folder,
        env=clean() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        with killed_after(TIMEOUT, process):
            greeting = until_it_serves(process)
        with killed_after(timeout, process):
            yield Served(process, f"http://127.0.0.1:{port}", greeting)
    finally:
        with killed_after(TIMEOUT, process):
            process.terminate()
            process.wait()
        assert process.stdout
        process.stdout.close()
        wait_for(lambda: check_ended(process), pytest.fail.Exception)


def check_ended(process: subprocess.Popen[str]) -> None:
    """Fail while the process's group has a process that has not been reaped."""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@contextmanager
def killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the process and its children if the block takes longer than `seconds`."""
    watchdog = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def in_a_second_terminal(folder: Path, script: str, **environment: str) -> None:
    """Run a script in `manage.py shell`, without the toolbar, which takes a third of Django's start."""
    shell = python("manage.py", "shell", "-c", script, folder=folder, DJANGO_DEBUG="false", DJANGO_SECRET_KEY="any", **environment)
    assert shell.code == 0, shell.stderr


def until_it_serves(process: subprocess.Popen[str]) -> str:
    """Wait until the server is ready, at its start or after a reload, and return its output until then."""
    assert process.stdout
    output = ""
    while re.search("Starting (WSGI )?development server", output) is None:
        line = process.stdout.readline()
        assert line, f"The server ended before it was ready. Its output: {output}"
        output += line
    return output


@pytest.fixture
def run(new_folder: Path) -> Callable[..., Ended]:
    """`run(port)`: run a `make run` that is expected to fail before it serves."""

    def run(port: int | str, **environment: str) -> Ended:
        return python("-m", "housing.run", "--port", str(port), folder=new_folder, **environment)

    return run


@pytest.mark.slow
def test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_the_cache(new_folder: Path, free_port: int) -> None:
    """These are the first five minutes of every new user."""
    with served(new_folder, free_port) as service:
        assert 'sql;desc="61 queries"' in service.headers("/api/properties/live/naive/")["Server-Timing"], "the toolbar replaced the Server-Timing header"
        assert re.search(r"as admin / \S{16} \(shown only once", service.greeting)
        assert service.first_price()[0] == "housing; fwd=miss; stored"
        assert service.first_price()[0] == "housing; hit"

        in_a_second_terminal(new_folder, NEW_PRICE)

        assert service.first_price() == ("housing; fwd=stale; stored", "123456.00")

        (new_folder / "housing" / "views.py").touch()
        until_it_serves(service.process)

        assert service.first_price() == ("housing; hit", "123456.00"), "the cache was lost at the reload"

    assert service.process.returncode == 0
    assert (new_folder / "db.sqlite3").exists()
    socket.create_server(("127.0.0.1", free_port)).close()


NEW_PRICE = "home = Property.objects.latest('created_at', 'id'); home.price = 123456; home.save()"


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
        ("DATABASE_URL", "mysql://127.0.0.1/housing", "DATABASE_URL has an unsupported engine"),
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
    with pytest.raises(Refused, match=f"REDIS_URL is {url}, .* Add a host and a port"):
        cache_address(url)
