"""`make run`: what a fresh folder lacks, and then the service.

Secret, tables, data and an admin are made where they are missing, and kept where they are not. The fakeredis server lives in
this process, and the service in a child of it, so that a reload of the code does not empty the cache. The admin's password is
shown once and stored only as Django's hash.
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
"""With this exit code Django's server asks to be started again."""

ENV = """\
# Written once by `make run`, and yours from then on. Every manage.py reads it; what the environment says goes first.
DJANGO_SECRET_KEY={secret}
DJANGO_DEBUG=true
DATABASE_URL=sqlite:///{database}
# `make run` starts this server. A redis:// URL here is used instead.
REDIS_URL=fakeredis://{host}:{port}/0
"""

GREETING = """
  Housing  {url}/

  61 queries    {url}/api/properties/live/naive/
  1 query       {url}/api/properties/live/optimized/
  1, then none  {url}/api/properties/cached/
  Docs          {url}/api/docs/
  Admin         {url}/admin/
                as admin, {login}

  Change the first price from a second terminal, then reload the cached list:

    {python} manage.py shell -v 0 -c "home = Property.objects.latest('created_at', 'id'); home.price += 1000; home.save()"
"""


class Refused(Exception):
    """Why the service does not start; the message is one line, and says what to do."""


def main() -> None:
    """Serve until Ctrl-C or SIGTERM, which end it with exit code 0. What prevents it is one line on stderr, and exit code 1."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    parser = argparse.ArgumentParser(prog="python -m housing.run", description="Make what is missing, and serve.", exit_on_error=False)
    parser.add_argument("--port", type=port, default=8000, help=f"serve at http://{HOST}:PORT/ (default: %(default)s)")
    parser.add_argument("--properties", type=int, metavar="N", help="fill an empty database with so many (default: as many as `manage.py seed` does)")
    try:
        options = parser.parse_args()
        sys.exit(run(options.port, options.properties))
    except (argparse.ArgumentError, ImproperlyConfigured, OperationalError, Refused) as why:
        sys.exit(f"Not started: {' '.join(str(why).split())}")


def end(*_: Any) -> NoReturn:
    """Leave, and let no second signal interrupt the leaving: `make` passes on what the terminal has sent already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def port(text: str) -> int:
    """A port's number. Raises ArgumentTypeError where it is none."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"'{text}' is no port. A port is a number from 1 to 65535.")
    return int(text)


def run(port: int, properties: int | None) -> int:
    """Make what is missing, then serve; the service's exit code."""
    write_env_file()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "housing.settings")
    with cache_server():
        refuse_taken(port)
        password = prepare(properties)
        print(greeting(f"http://{HOST}:{port}", password), flush=True)  # noqa: T201  # this is what a person at a terminal reads
        return serve(port)


def write_env_file() -> None:
    """Write `.env` if there is none: whole, or not at all, and for the owner's eyes only."""
    with socket.create_server((HOST, 0)) as free:
        values = {"secret": secrets.token_urlsafe(50), "database": quote(f"{ROOT}/db.sqlite3"), "host": HOST, "port": free.getsockname()[1]}
    with tempfile.NamedTemporaryFile("w", dir=ROOT, prefix=".env.", encoding="utf-8") as draft:  # its mode is 0600
        draft.write(ENV.format(**values))
        draft.flush()
        os.fsync(draft.fileno())
        with suppress(FileExistsError):  # there is one, and a link does not overwrite as a rename does
            os.link(draft.name, ENV_FILE)


def cache_server() -> AbstractContextManager[None]:
    """What holds a fakeredis server at REDIS_URL; nothing, where that names a real Redis. Raises Refused where it cannot listen."""
    return fakeredis_at(cache_address(settings.REDIS_URL)) if settings.EMBEDDED else nullcontext()


@contextmanager
def fakeredis_at(address: tuple[str, int]) -> Iterator[None]:
    """A fakeredis server while the body runs. Raises Refused where it cannot listen."""
    from fakeredis import TcpFakeServer

    try:
        server = TcpFakeServer(address)
    except OSError as error:
        raise Refused(
            f"the fakeredis of this folder cannot listen at {address[0]}:{address[1]} ({error.strerror}). "
            "Stop another `make run` of this folder if there is one, else give REDIS_URL in .env another port."
        ) from error
    with server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def cache_address(url: str) -> tuple[str, int]:
    """Host and port of a fakeredis:// URL. Raises Refused where they are not there."""
    parts = urlsplit(url)
    with suppress(ValueError):  # the port is no number
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise Refused(f"REDIS_URL is {url}, which a second process cannot share. Name a host and a port: fakeredis://{HOST}:6380/0.")


def refuse_taken(port: int) -> None:
    """Raise Refused where somebody else serves at this port, or nobody may."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise Refused(f"port {port} cannot be had ({os.strerror(error.errno or 0)}). Name another: make run PORT=8001.") from error


def prepare(properties: int | None) -> str | None:
    """Migrate, seed a database that has no property, add an admin where there is no user; the admin's password, or None."""
    django.setup()
    logging.getLogger("housing").setLevel(logging.WARNING)  # that an empty table became stale is no news
    from housing.freshness import begin_journal
    from housing.models import Property

    if settings.EMBEDDED:
        begin_journal()  # the server has just been born, and nobody writes yet
    call_command("migrate", verbosity=0)
    if not Property.objects.exists():
        call_command("seed", **({} if properties is None else {"properties": properties}))
    password = create_admin()
    connection.close()
    return password


def create_admin() -> str | None:
    """A new user `admin` where there is no user; the password, or None."""
    from django.contrib.auth.models import User

    if User.objects.exists():
        return None
    password = secrets.token_urlsafe(12)
    User.objects.create_superuser("admin", password=password)
    return password


def greeting(url: str, password: str | None) -> str:
    """Where to look, and what to try."""
    python = os.path.relpath(sys.executable, ROOT)
    renew = f"{python} manage.py changepassword admin"
    login = f"password forgotten? {renew}" if password is None else f"password {password}, shown this once. Another: {renew}"
    return GREETING.format(url=url, python=python, login=login)


def serve(port: int) -> int:
    """Serve with Django's reloading server; its exit code. It ends before this returns or raises.

    Of Django's two processes this is the one that starts the other anew: a third would only take as long again to wake.
    """
    code = CHANGED
    while code == CHANGED:
        code = serve_until_the_code_changes(port)
    return code


def serve_until_the_code_changes(port: int) -> int:
    """Serve; the exit code, which is CHANGED where the code has changed."""
    server = subprocess.Popen(  # noqa: S603  # nothing but a port's number comes from outside
        [sys.executable, str(ROOT / "manage.py"), "runserver", f"{HOST}:{port}"],
        env=os.environ | {DJANGO_AUTORELOAD_ENV: "true", "DJANGO_RUNSERVER_HIDE_WARNING": "true"},
    )
    try:
        return server.wait()
    finally:
        server.kill()  # as Django's own parent does: asked to end while it looks through the files, the server may not hear it
        server.wait()


if __name__ == "__main__":
    main()
