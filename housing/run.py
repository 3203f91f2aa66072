"""`make run`: prepare a fresh folder, then serve.

A missing secret key, tables, data and an admin user are created; existing ones are kept. The fakeredis server runs in this process and the
service in a child process, so a code reload does not empty the cache. The admin's password is shown once, and stored only as a hash.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import OperationalError, connection
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

ROOT = Path(__file__).resolve().parent.parent
ENV_FILE = ROOT / ".env"
HOST = "127.0.0.1"

CHANGED = 3
"""The exit code with which Django's server asks for a restart."""

ENV = """\
# Written once by `make run`; edit it as you like. Every manage.py command reads it. Environment variables take precedence.
DJANGO_SECRET_KEY={secret}
DJANGO_DEBUG=true
DATABASE_URL=sqlite:///{database}
# `make run` starts this fakeredis server. Replace the URL with a redis:// URL to use a real one.
REDIS_URL=fakeredis://{host}:{port}/0
"""

GREETING = """
  Housing  {url}/

  61 queries    {url}/api/properties/live/naive/
  1 query       {url}/api/properties/live/optimized/
  1, then 0     {url}/api/properties/cached/
  Docs          {url}/api/docs/
  Admin         {url}/admin/
                {login}

  Change the first price from a second terminal, then reload the cached list:

    {python} manage.py shell -v 0 -c "home = Property.objects.latest('created_at', 'id'); home.price += 1000; home.save()"
"""


class Refused(Exception):
    """The service cannot start. The message is one line, and says what to do."""


def main() -> None:
    """Serve until Ctrl-C or SIGTERM, with exit code 0. An error is one line on stderr, with exit code 1."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    parser = argparse.ArgumentParser(prog="python -m housing.run", description="Prepare the folder, and serve.", exit_on_error=False)
    parser.add_argument("--port", type=port, default=8000, help=f"serve at http://{HOST}:PORT/ (default: %(default)s)")
    parser.add_argument("--properties", type=int, metavar="N", help="seed an empty database with N properties (default: that of `manage.py seed`)")
    try:
        options = parser.parse_args()
        sys.exit(run(options.port, options.properties))
    except (argparse.ArgumentError, ImproperlyConfigured, OperationalError, Refused) as why:
        sys.exit(f"Not started: {' '.join(str(why).split())}")


def end(*_: Any) -> NoReturn:
    """Exit, and ignore further signals: `make` forwards a signal that the terminal has already sent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def port(text: str) -> int:
    """Parse a port. Raises ArgumentTypeError if it is invalid."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port. Use a number from 1 to 65535.")
    return int(text)


def run(port: int, properties: int | None) -> int:
    """Prepare the folder, then serve. Returns the exit code of the service."""
    write_env_file()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "housing.settings")
    with cache_server():
        refuse_taken(port)
        password = prepare(properties)
        print(greeting(f"http://{HOST}:{port}", password), flush=True)  # noqa: T201  # output for a terminal
        return serve(port)


def write_env_file() -> None:
    """Write a missing `.env` atomically, readable by its owner only."""
    with socket.create_server((HOST, 0)) as free:
        values = {"secret": secrets.token_urlsafe(50), "database": quote(f"{ROOT}/db.sqlite3"), "host": HOST, "port": free.getsockname()[1]}
    with tempfile.NamedTemporaryFile("w", dir=ROOT, prefix=".env.", encoding="utf-8") as draft:  # its mode is 0600
        draft.write(ENV.format(**values))
        draft.flush()
        os.fsync(draft.fileno())
        with suppress(FileExistsError):  # it exists, and a link does not overwrite it as a rename would
            os.link(draft.name, ENV_FILE)


def cache_server() -> AbstractContextManager[None]:
    """Return a context with a fakeredis server at REDIS_URL, or an empty one for a real Redis. Raises Refused if the server cannot listen."""
    return fakeredis_at(cache_address(settings.REDIS_URL)) if settings.EMBEDDED else nullcontext()


@contextmanager
def fakeredis_at(address: tuple[str, int]) -> Iterator[None]:
    """Run a fakeredis server during the body. Raises Refused if it cannot listen."""
    from fakeredis import TcpFakeServer

    try:
        server = TcpFakeServer(address)
    except OSError as error:
        raise Refused(
            f"the fakeredis server cannot listen at {address[0]}:{address[1]} ({error.strerror}). "
            "Stop another `make run` of this folder, or change the port of REDIS_URL in .env."
        ) from error
    with server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def cache_address(url: str) -> tuple[str, int]:
    """Return the host and port of a fakeredis:// URL. Raises Refused if it has none."""
    parts = urlsplit(url)
    with suppress(ValueError):  # the port is not a number
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise Refused(f"REDIS_URL is a fakeredis inside one process, which others cannot share. Add a host and a port, such as fakeredis://{HOST}:6380/0.")


def refuse_taken(port: int) -> None:
    """Raise Refused if the port is taken or not permitted."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise Refused(f"port {port} is not available ({os.strerror(error.errno or 0)}). Use another one: make run PORT=8001.") from error


def prepare(properties: int | None) -> str | None:
    """Migrate, seed a database without properties, and create an admin if there is no user. Returns the new password, or None."""
    django.setup()
    logging.getLogger("housing").setLevel(logging.WARNING)  # seeding an empty database needs no log lines
    from housing.freshness import begin_journal
    from housing.models import Property

    if settings.EMBEDDED:
        begin_journal()  # the server has just started, so nobody writes yet
    keep_private(connection.settings_dict)
    call_command("migrate", verbosity=0)
    if not Property.objects.exists():
        call_command("seed", **({} if properties is None else {"properties": properties}))
    password = create_admin()
    connection.close()
    return password


def keep_private(database: dict[str, Any]) -> None:
    """Let only the owner read a SQLite file, which has the sessions and the hashes of passwords. SQLite gives its other files the same mode."""
    if connection.vendor == "sqlite":
        with suppress(OSError):  # SQLite says why it cannot open the file
            file = Path(database["NAME"])
            file.touch(mode=0o600)
            file.chmod(0o600)


def create_admin() -> str | None:
    """Create the user `admin` if there is no user. Returns the password, or None."""
    from django.contrib.auth.models import User

    if User.objects.exists():
        return None
    password = secrets.token_urlsafe(12)
    User.objects.create_superuser("admin", password=password)
    return password


def greeting(url: str, password: str | None) -> str:
    """Return the URLs, the login and a first command to try."""
    python = os.path.relpath(sys.executable, ROOT)
    renew = f"{python} manage.py changepassword admin"
    login = f"log in as admin; to reset the password: {renew}" if password is None else f"log in as admin / {password} (shown only once; to reset it: {renew})"
    return GREETING.format(url=url, python=python, login=login)


def serve(port: int) -> int:
    """Serve with Django's reloading server, and return its exit code. The server ends before this function does.

    This process restarts the server as Django's own parent process would, which saves a third process.
    """
    code = CHANGED
    while code == CHANGED:
        code = serve_until_the_code_changes(port)
    return code


def serve_until_the_code_changes(port: int) -> int:
    """Serve, and return the exit code: CHANGED if the code has changed."""
    server = subprocess.Popen(  # noqa: S603  # the only input is a port number
        [sys.executable, str(ROOT / "manage.py"), "runserver", f"{HOST}:{port}"],
        env=os.environ | {DJANGO_AUTORELOAD_ENV: "true", "DJANGO_RUNSERVER_HIDE_WARNING": "true"},
    )
    try:
        return server.wait()
    finally:
        server.kill()  # SIGTERM may be lost while the server scans files, so Django's own parent kills it, too
        server.wait()


if __name__ == "__main__":
    main()
