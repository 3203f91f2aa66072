"""A new blog with the engine in it: how it is made, and the process that runs what a spec types.

`tests/blog/` has what is not about caching, and other views that people build. The settings and the cached views are README's.
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
    """README's "Take the cache home"."""
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("## Take the cache home\n")[2].partition("\n## ")[0]


def steps() -> dict[str, str]:
    """Its blocks of Python: the file that the first line of a block names → its text."""
    return dict(re.findall(r"```python\n# (\S+)\n(.*?)```", readme(), re.DOTALL))


SERVERS = """
import environ

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
ROOT_URLCONF = "posts.urls"
DATABASES["default"] |= environ.Env.db_url_config({database!r}) | {{"ENGINE": {engine!r}}}
CACHES["default"] |= {cache!r}
"""
"""What this run adds to README's settings: its servers, and the addresses of the blog."""

FAKEREDIS = """
from fakeredis import FakeRedisConnection

CACHES["default"]["OPTIONS"] = {"CONNECTION_POOL_KWARGS": {"connection_class": FakeRedisConnection}}
FRESHNESS_RUN_ID = "fakeredis"  # it cannot say which run it is, and always starts empty
"""


def new_blog(folder: Path, database: str, cache: str) -> None:
    """Start a project, and add the blog, the engine's folder, README's lines and this run's servers."""
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
    """What a reader of the blog got. `came_from` is Cache-Status without its first word; `queries` is the SQL that was sent."""

    status: int
    came_from: str
    queries: list[str]
    body: str
    json: Any


@dataclass(frozen=True)
class After:
    """The pages of the blog after a write, each already compared with the database."""

    pages: dict[str, Response]

    def __getitem__(self, page: str) -> Any:
        """What a page says now."""
        return self.pages[page].json

    @property
    def warm(self) -> set[str]:
        """The pages that are still served from the cache."""
        return {page for page, response in self.pages.items() if response.came_from == "hit"}


@dataclass
class Blog:
    """The blog's own process."""

    process: subprocess.Popen[str]
    folder: Path

    def run(self, source: str) -> Any:
        """Type this into its shell; the value, if it ends with an expression. Raises AssertionError with the traceback of what it raises."""
        assert self.process.stdin
        assert self.process.stdout
        with killed_after(TIMEOUT, self.process):
            self.process.stdin.write(json.dumps(source) + "\n")
            self.process.stdin.flush()
            reply = json.loads(self.process.stdout.readline())
        assert "error" not in reply, f"{source}\n{reply['error']}"
        return reply["value"]

    def error(self, source: str) -> str:
        """Type this, which raises; what the error says."""
        return str(self.run(f"def it():\n{_indented(source)}\nmessage_of(it)"))

    def read(self, path: str, **headers: str) -> Response:
        """GET, as a program does."""
        return Response(**self.run(f"read({path!r}, **{headers!r})"))

    @property
    def logged(self) -> list[str]:
        """What the engine logged since the spec began."""
        return list(self.run("logged"))

    def costs(self, path: str, queries: int, *, because: str) -> None:
        """Fail unless a cold read of this path costs so many queries, and the next one none, with the same body."""
        cold, warm = self.read(path), self.read(path)
        assert (cold.status, cold.came_from) == (200, "fwd=miss; stored"), cold
        assert len(cold.queries) == queries, f"promised: {queries}, because {because}\nhappened: {len(cold.queries)}\n" + "\n".join(cold.queries)
        assert (warm.came_from, warm.queries) == ("hit", []), warm
        assert warm.body == cold.body

    def after(self, write: str, pages: tuple[str, ...]) -> After:
        """Warm these pages, type a write, and read them again. Fail unless each says what the database says."""
        seen = {}
        for page, responses in self.run(f"after({write!r}, {pages!r})").items():
            cold, seen[page], true = (Response(**response) for response in responses)
            assert cold.came_from == "fwd=miss; stored", f"{page} was not stored: {cold}"
            assert true.came_from in ("fwd=bypass; detail=transaction", ""), f"{page} was not read from the database: {true}"
            assert (seen[page].queries == []) is (seen[page].came_from == "hit"), seen[page]
            told = f"{page} is stale after: {write}\n{seen[page].came_from}: {seen[page].body}\nin the database: {true.body}"
            assert (seen[page].status, seen[page].body) == (true.status, true.body), told
        return After(seen)


def _indented(source: str) -> str:
    return textwrap.indent(textwrap.dedent(source), "    ")


@contextmanager
def running(folder: Path) -> Iterator[Blog]:
    """The blog's process, from its migrations to the end of the body."""
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
        if process.poll() is None:
            blog.run("cache.delete_pattern('*')")
        with killed_after(TIMEOUT, process):
            process.communicate()


@contextmanager
def started(folder: Path) -> Iterator[Blog]:
    """A new blog in this folder, migrated, in a process of its own, on a database and under keys of its own."""
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
