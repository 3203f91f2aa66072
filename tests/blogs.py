"""A new blog with the engine in it, and the process that runs the code of a spec in it.

`tests/blog/` holds the parts that are not about caching, and more views. The settings and the cached views come from the README.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import stacks
from tests.test_setup import ROOT, TIMEOUT, clean, killed_after, python

PROJECT = "mysite"

BLOG = ROOT / "tests" / "blog"


def readme() -> str:
    """The section "Take the cache home" of the README."""
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("## Take the cache home\n")[2].partition("\n## ")[0]


def steps() -> dict[str, str]:
    """The blocks of Python in that section: the file in the first line of a block → the text of the block."""
    return dict(re.findall(r"```python\n# (\S+)\n(.*?)```", readme(), re.DOTALL))


SERVERS = """
import environ

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
ROOT_URLCONF = "posts.urls"
DATABASES["default"] |= environ.Env.db_url_config({database!r}) | {{"ENGINE": {engine!r}}}
CACHES["default"] |= {cache!r}
FRESHNESS_WATCHMAN, FRESHNESS_MAX_STALENESS = False, 1e9
"""
"""The settings that this run adds to those of the README: its servers, the URLs of the blog, and no watchman, so that nothing depends on the time."""

FAKEREDIS = """
from fakeredis import FakeRedisConnection

CACHES["default"]["OPTIONS"] = {"CONNECTION_POOL_KWARGS": {"connection_class": FakeRedisConnection}}
FRESHNESS_RUN_ID = "fakeredis"  # fakeredis has no run_id, and always starts empty
"""


def new_blog(folder: Path, database: str, cache: str) -> None:
    """Start a project, and add the blog, the folder of the engine, the code of the README and the servers of this run."""
    started = python("-m", "django", "startproject", PROJECT, ".", folder=folder)
    assert started.code == 0, started.complained
    shutil.copytree(ROOT / "housing" / "freshness", folder / "freshness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(BLOG, folder / "posts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.move(folder / "posts" / "shell.py", folder)
    engine = "freshness.sqlite3" if database.startswith("sqlite:") else "freshness.postgresql"
    server = {"LOCATION": "redis://in-process:6379/0" if cache == "fakeredis://" else cache, "KEY_PREFIX": f"blog-{secrets.token_hex(4)}"}
    servers = SERVERS.format(database=database, engine=engine, cache=server) + (FAKEREDIS if cache == "fakeredis://" else "")
    for name, text in [*steps().items(), (f"{PROJECT}/settings.py", servers)]:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)


@dataclass(frozen=True)
class Response:
    """A response of the blog. `came_from` is Cache-Status without its first word, and `queries` is the SQL of the request."""

    status: int
    came_from: str
    queries: list[str]
    body: str
    json: Any


@dataclass(frozen=True)
class After:
    """The responses of the blog after a write, each already compared with the database."""

    pages: dict[str, Response]

    def __getitem__(self, page: str) -> Any:
        """The JSON of a page after the write."""
        return self.pages[page].json

    @property
    def warm(self) -> set[str]:
        """The pages that are still served from the cache."""
        return {page for page, response in self.pages.items() if response.came_from == "hit"}


@dataclass
class Blog:
    """The process of the blog."""

    process: subprocess.Popen[str]
    folder: Path

    def run(self, source: str) -> Any:
        """Run this code in the blog and return the value of its last expression. Raises AssertionError with the traceback if the code raises."""
        assert self.process.stdin
        assert self.process.stdout
        with killed_after(TIMEOUT, self.process):
            self.process.stdin.write(json.dumps(source) + "\n")
            self.process.stdin.flush()
            reply = json.loads(self.process.stdout.readline())
        assert "error" not in reply, f"{source}\n{reply['error']}"
        return reply["value"]

    def error(self, source: str) -> str:
        """Run this code, which must raise, and return the message of the error."""
        return str(self.run(f"def it():\n{_indented(source)}\nmessage_of(it)"))

    def read(self, path: str, **headers: str) -> Response:
        """Send a GET request for JSON."""
        return Response(**self.run(f"read({path!r}, **{headers!r})"))

    @property
    def logged(self) -> list[str]:
        """The messages that the engine has logged since the spec began."""
        return list(self.run("logged"))

    def costs(self, path: str, queries: int, *, because: str) -> None:
        """Fail unless a cold read of this path costs this number of queries, and the next read costs none and has the same body."""
        cold, warm = self.read(path), self.read(path)
        assert (cold.status, cold.came_from) == (200, "fwd=miss; stored"), cold
        assert len(cold.queries) == queries, f"promised: {queries}, because {because}\nhappened: {len(cold.queries)}\n" + "\n".join(cold.queries)
        assert (warm.came_from, warm.queries) == ("hit", []), warm
        assert warm.body == cold.body

    def after(self, write: str, pages: tuple[str, ...]) -> After:
        """Warm these pages, run a write, and read them again. Fail unless each page equals the database."""
        seen = {}
        for page, responses in self.run(f"after({write!r}, {pages!r})").items():
            cold, seen[page], true = (Response(**response) for response in responses)
            assert cold.came_from == "fwd=miss; stored", f"{page} was not stored: {cold}"
            assert true.came_from in ("fwd=bypass; detail=transaction", ""), f"{page} was not read from the database: {true}"
            assert (seen[page].queries == []) is (seen[page].came_from == "hit"), seen[page]
            stale = f"{page} is stale after: {write}\n{seen[page].came_from}: {seen[page].body}\nin the database: {true.body}"
            assert (seen[page].status, seen[page].body) == (true.status, true.body), stale
        return After(seen)


def _indented(source: str) -> str:
    return textwrap.indent(textwrap.dedent(source), "    ")


@contextmanager
def running(folder: Path) -> Iterator[Blog]:
    """Start the process of the blog, which migrates first, and end it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "shell.py", PROJECT],
        cwd=folder,
        env=clean(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    blog = Blog(process, folder)
    try:
        yield blog
    finally:
        blog.run("cache.delete_pattern('*')")
        with killed_after(TIMEOUT, process):
            process.communicate()


@contextmanager
def started(folder: Path) -> Iterator[Blog]:
    """Start a new blog in this folder, with its own process, database and prefix of keys."""
    database, cache = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
    with ExitStack() as servers:
        if database.startswith("sqlite:"):
            database = f"sqlite:///{Path(database.removeprefix('sqlite:///')).with_name(f'blog-{secrets.token_hex(4)}.sqlite3')}"
        else:
            database = stacks.own_database(servers, database)
        new_blog(folder, database, cache)
        with running(folder) as blog:
            if cache == "fakeredis://":
                blog.run(f"from typing import Any\n{inspect.getsource(stacks.compile_scripts_once)}\ncompile_scripts_once()")
            yield blog
