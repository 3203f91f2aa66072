"""The set-up: one command on a fresh machine, and no start that is half configured."""

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
from contextlib import contextmanager, suppress
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
OURS = ("DATABASE_URL", "REDIS_URL", "DJANGO_SECRET_KEY", "DJANGO_DEBUG", "DJANGO_ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE")
"""What the environment may say to the service."""

NOBODY = "127.0.0.1:1"
"""Where nobody listens."""

TIMEOUT = 60
"""Seconds after which a process that has not said what is waited for is killed, and the spec fails. None takes a tenth of it."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    said: str
    complained: str


def python(*arguments: str, folder: Path = ROOT, **environment: str) -> Ended:
    """Run Python in `folder`, in an environment that says nothing to the service but `environment`."""
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, env=clean() | environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OURS}


# What it refuses to start with. An empty variable of the environment goes before what a developer's own .env says.


def test_without_debug_it_does_not_start_without_a_secret_key() -> None:
    """A key that everybody can read in the code signs nobody's session."""
    check = python("manage.py", "check", DJANGO_SECRET_KEY="", DJANGO_DEBUG="")

    assert check.code == 1
    assert check.complained.startswith("DJANGO_SECRET_KEY is not set. Set it to")
    assert len(check.complained.splitlines()) == 1


def test_a_database_that_cannot_keep_the_promises_is_refused_in_one_line() -> None:
    check = python("manage.py", "check", DJANGO_SECRET_KEY="any", DATABASE_URL="mysql://127.0.0.1/housing")

    assert check.code == 1
    assert check.complained == "DATABASE_URL has an unsupported engine: 'mysql'. Use postgres://USER:PASSWORD@HOST:PORT/NAME, or sqlite:///PATH.\n"


# Debug, or no trace of it.


def test_without_debug_there_is_no_trace_of_the_toolbar(client: Any) -> None:
    """It shows settings and SQL to whoever asks."""
    assert not settings.DEBUG
    assert not [name for name in settings.INSTALLED_APPS + settings.MIDDLEWARE if "debug" in name]
    assert client.get("/__debug__/").status_code == 404
    assert client.get("/__debug__/render_panel/").status_code == 404


def test_with_debug_the_toolbar_is_the_first_middleware() -> None:
    """What stands before it, it does not see."""
    asked = python("-c", "from housing import settings; print(settings.MIDDLEWARE[0])", DJANGO_DEBUG="true", DJANGO_SECRET_KEY="any")

    assert asked.said == "debug_toolbar.middleware.DebugToolbarMiddleware\n"


ROUTES = """\
Iface Destination Gateway  Flags RefCnt Use Metric Mask     MTU Window IRTT
eth0  00000000    {gateway} 0003  0      0   0      00000000 0   0      0
eth1  00000000    00000000 0001  0      0   0      00000000 0   0      0
eth1  {network}    {gateway} 0003  0      0   0      0000FFFF 0   0      0
eth0  {network}    00000000 0001  0      0   0      0000FFFF 0   0      0
"""


def test_the_toolbar_is_shown_to_whom_the_gateway_of_a_container_stands_for(tmp_path: Path) -> None:
    """What a browser beside the engine asks comes from there. A default route without a gateway, and a network's own, say nothing."""
    routes = tmp_path / "route"
    gateway, network = (f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}" for address in ("172.21.0.1", "172.21.0.0"))
    routes.write_text(ROUTES.format(gateway=gateway, network=network))

    assert gateways(routes) == ["172.21.0.1"]
    assert gateways(tmp_path / "no Linux") == []


@pytest.mark.parametrize(("debug", "shown_to"), [("true", ["127.0.0.1", "::1", *gateways()]), ("false", ["127.0.0.1", "::1"])])
def test_only_with_debug_is_the_gateway_trusted(debug: str, shown_to: list[str]) -> None:
    """Elsewhere than in a container it is a router."""
    asked = python("-c", "import json; from housing import settings; print(json.dumps(settings.INTERNAL_IPS))", DJANGO_DEBUG=debug, DJANGO_SECRET_KEY="any")

    assert json.loads(asked.said) == shown_to


# What the image is made of.


def test_the_image_installs_nothing_that_the_specs_have_not_run_with() -> None:
    """It has a lock of its own, without what only specs and linters need; `make lock` writes both."""
    run, everything = (set(re.findall(r"^\S+==\S+", (ROOT / f"requirements{which}.lock").read_text(), re.MULTILINE)) for which in ("-run", ""))

    assert {name.partition("==")[0] for name in run} >= {"django", "psycopg-binary", "redis", "gunicorn"}
    assert run < everything


def test_a_wsgi_server_serves_it_too(transactional_db: None) -> None:
    from housing.wsgi import application

    environ = {"PATH_INFO": "/health/", "HTTP_HOST": "testserver"}
    setup_testing_defaults(environ)
    said: list[str] = []
    body = b"".join(application(environ, lambda status, headers: said.append(status)))

    assert (said, json.loads(body)) == (["200 OK"], {"database": "ok", "cache": "ok"})


# Health.


@pytest.mark.django_db
def test_health_is_200_while_both_servers_answer(client: Any) -> None:
    response = client.get("/health/")

    assert (response.status_code, response.json()) == (200, {"database": "ok", "cache": "ok"})


@pytest.mark.django_db
def test_health_is_200_without_redis_and_says_so(client: Any, settings: Any) -> None:
    """Every read is still answered, from the database: nobody gains by a restart of this process."""
    settings.CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"redis://{NOBODY}/0"}}

    response = client.get("/health/")

    assert response.status_code == 200
    assert response.json()["database"] == "ok"
    assert response.json()["cache"].startswith("unreachable: ")


@pytest.mark.django_db(transaction=True)
def test_health_is_503_without_the_database(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "NAME", "/nowhere/housing")

    response = client.get("/health/")

    assert response.status_code == 503
    assert response.json()["database"].startswith("unreachable: ")
    assert response.json()["cache"] == "ok"


# `make run`.


@pytest.fixture
def free_port() -> int:
    return any_free_port()


def any_free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    return new_folder_in(tmp_path)


def new_folder_in(parent: Path) -> Path:
    """The project as somebody finds it: no .env, no database. Its name is one that a URL has to quote."""
    folder = parent / "new folder #1"
    folder.mkdir()
    shutil.copytree(ROOT / "housing", folder / "housing")  # with its bytecode, which is not what is tried here
    shutil.copy(ROOT / "manage.py", folder)
    return folder


@dataclass(frozen=True)
class Served:
    """A service that runs."""

    process: subprocess.Popen[str]
    url: str
    greeting: str

    def headers(self, path: str) -> Any:
        """Ask it as a browser does: what it says of the page."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "text/html"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.headers

    def get(self, path: str) -> tuple[str, Any]:
        """Ask it as a program does: Cache-Status, and the JSON."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.headers.get("Cache-Status", ""), json.load(response)

    def first_price(self) -> tuple[str, str]:
        """Read the cached list: where the answer came from, and the price of its first row."""
        came_from, page = self.get("/api/properties/cached/")
        return came_from, page["results"][0]["price"]


@contextmanager
def served(folder: Path, port: int, properties: int = 20, timeout: float = TIMEOUT) -> Iterator[Served]:
    """`make run`, from the moment when it serves until the body ends, for so many seconds at most."""
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
        wait_for(lambda: ended(process), StillThere)


class StillThere(Exception):
    """A process of the group has not ended, or nobody has taken note of its end yet."""


def ended(process: subprocess.Popen[str]) -> None:
    """Raise StillThere while a process of its group is left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        raise StillThere


@contextmanager
def killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill it, and what it started, when the body takes longer."""
    watchdog = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def in_a_second_terminal(folder: Path, script: str, **environment: str) -> None:
    """Run a script of Django's shell; without the toolbar, which takes a third of the time in which Django wakes."""
    shell = python("manage.py", "shell", "-c", script, folder=folder, DJANGO_DEBUG="false", DJANGO_SECRET_KEY="any", **environment)
    assert shell.code == 0, shell.complained


def until_it_serves(process: subprocess.Popen[str]) -> str:
    """Wait for it, at the start and after a reload; what it said until then."""
    assert process.stdout
    said = ""
    while re.search("Starting (WSGI )?development server", said) is None:
        line = process.stdout.readline()
        assert line, f"It ended before it served, and said: {said}"
        said += line
    return said


@pytest.fixture
def run(new_folder: Path) -> Callable[..., Ended]:
    """`make run` where it does not get as far as to serve."""

    def run(port: int | str, **environment: str) -> Ended:
        return python("-m", "housing.run", "--port", str(port), folder=new_folder, **environment)

    return run


@pytest.mark.slow
def test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_its_cache(new_folder: Path, free_port: int) -> None:
    """The first five minutes of everybody who comes by."""
    with served(new_folder, free_port) as service:
        assert 'sql;desc="61 queries"' in service.headers("/api/properties/live/naive/")["Server-Timing"], "the toolbar took the header's place"
        assert re.search(r"as admin / \S{16} \(shown only once", service.greeting)
        assert service.first_price()[0] == "housing; fwd=miss; stored"
        assert service.first_price()[0] == "housing; hit"

        in_a_second_terminal(new_folder, NEW_PRICE)

        assert service.first_price() == ("housing; fwd=stale; stored", "123456.00")

        (new_folder / "housing" / "views.py").touch()
        until_it_serves(service.process)

        assert service.first_price() == ("housing; hit", "123456.00"), "the cache did not outlive the reload"

    assert service.process.returncode == 0
    assert (new_folder / "db.sqlite3").exists()
    socket.create_server(("127.0.0.1", free_port)).close()


NEW_PRICE = "home = Property.objects.latest('created_at', 'id'); home.price = 123456; home.save()"


@pytest.mark.slow
def test_a_folder_with_settings_and_data_of_its_own_is_served_as_it_is(new_folder: Path, free_port: int) -> None:
    """No .env is overwritten, no data mixed with the seed's, no user added, and no server stands in for a Redis that is named."""
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


def test_a_server_that_ends_by_itself_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit code. Only one that asks for it is started again."""
    codes = iter([CHANGED, CHANGED, 1])
    monkeypatch.setattr("housing.run.serve_until_the_code_changes", lambda port: next(codes))

    assert serve(8000) == 1


DEAF = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("Starting development server", flush=True)
while True:
    signal.pause()
"""


def test_a_server_that_does_not_hear_is_ended_all_the_same(tmp_path: Path) -> None:
    """Django's may not, while it looks through the files for changes; and `make run` would go on for ever."""
    (tmp_path / "manage.py").write_text(DEAF)
    serving = (
        f"import signal, pathlib; from housing import run; run.ROOT = pathlib.Path({str(tmp_path)!r}); signal.signal(signal.SIGTERM, run.end); run.serve(1)"
    )
    process = subprocess.Popen([sys.executable, "-c", serving], cwd=ROOT, env=clean(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process, killed_after(TIMEOUT, process):
        until_it_serves(process)
        process.terminate()
        assert process.wait() == 0

    wait_for(lambda: ended(process), StillThere)


def test_env_is_written_whole_and_for_its_owner_alone(new_folder: Path, run: Callable[..., Ended]) -> None:
    """It holds the key that signs the sessions."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run(port)

    env = new_folder / ".env"
    assert refused == Ended(1, "", f"Not started: port {port} is not available (Address already in use). Use another one: make run PORT=8001.\n")
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert re.findall(r"^(\w+)=.", env.read_text(), re.MULTILINE) == ["DJANGO_SECRET_KEY", "DJANGO_DEBUG", "DATABASE_URL", "REDIS_URL"]
    assert {path.name for path in new_folder.iterdir()} == {".env", "housing", "manage.py"}


@pytest.mark.parametrize("port", ["abc", "", "65536"])
def test_what_is_no_port_is_refused_in_one_line(new_folder: Path, run: Callable[..., Ended], port: str) -> None:
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
def test_a_url_that_cannot_be_served_is_refused_in_one_line(run: Callable[..., Ended], free_port: int, variable: str, url: str, line: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        refused = run(free_port, **{variable: url.format(taken=number)})

    assert (refused.code, refused.said) == (1, "")
    assert re.fullmatch(rf"Not started: {line.format(taken=number)}.*\n", refused.complained)


@pytest.mark.parametrize("url", ["fakeredis://", "fakeredis://127.0.0.1/0", "fakeredis://127.0.0.1:port/0", "fakeredis://:6380/0"])
def test_a_fakeredis_that_a_second_terminal_could_not_find_is_refused(url: str) -> None:
    """It would be a cache of its own, and what the second terminal writes would never reach it."""
    with pytest.raises(Refused, match=f"REDIS_URL is {url}, .* Add a host and a port"):
        cache_address(url)
