"""The trace of a spec: its requests, SQL statements, COMMITs and scripts in Redis, each with the process that took the step and the line of the spec.

A failure explains a stale or over-invalidated page with it. SPEC.md shows the steps of each race with it.
"""

from __future__ import annotations

import itertools
import json
import linecache
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.test.client import ClientHandler

from housing.freshness.journal import Journal

ROOT = Path(__file__).resolve().parent.parent

LONGEST = 20
"""A race with more lines is a loop, and nobody would read them."""

KEPT = 2_000
"""How many of the newest steps of a spec are kept."""

CONTROL = re.compile(r"\s*(BEGIN|START TRANSACTION|SET TRANSACTION|PRAGMA|RELEASE|SAVEPOINT)\b", re.IGNORECASE)
"""Statements that SPEC.md does not show, because they differ between the databases or change nothing."""

CURRENT: list[Trace] = []
"""The trace of the spec that runs, if it has one."""

UNDONE = "ROLLBACK TO SAVEPOINT"

READS = re.compile(r"\s*(SELECT|EXPLAIN|ROLLBACK|WITH)\b", re.IGNORECASE)


@dataclass(eq=False)
class Step:
    """One step. `actor` is the process, `operation` the request or transaction that it belongs to, and `what` the step in a few words."""

    actor: Any
    operation: Any
    what: str
    place: tuple[str, int] | None = None
    sql: str = ""
    tags: frozenset[str] = frozenset()
    entry: str = ""
    response: Any = None

    @property
    def line(self) -> str:
        """The file and line of the spec, with its text."""
        if self.place is None:
            return "outside the specs"
        file, number = self.place
        return f"{Path(file).relative_to(ROOT)}:{number}  {linecache.getline(file, number).strip()}"

    @property
    def is_write(self) -> bool:
        """Whether it is a statement that may write."""
        return bool(self.sql) and not READS.match(self.sql) and not CONTROL.match(self.sql)


@dataclass
class Trace:
    """The steps of one spec, in the order in which they ended."""

    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=KEPT))
    before: list[Step] = field(default_factory=list)
    """The steps of the fixtures."""
    scheduled: list[str] | None = None
    """The steps of the first schedule, if a `Stage` runs the actors."""

    def __post_init__(self) -> None:
        self.here = threading.local()
        self.known: dict[Any, Any] = {}  # the read_at of a miss or the ID of a lease → the actor

    def begin(self) -> None:
        """From now on the steps are those of the spec, and no longer those of its fixtures."""
        self.before = list(self.steps)
        self.steps.clear()

    def happen(self, what: str) -> None:
        """Add something that happens to all processes, as a step of none."""
        self.steps.append(Step(None, object(), what, place()))

    def die(self) -> None:
        """Add that the process of this thread is killed. From now on the thread plays another one."""
        self.steps.append(Step(self._actor, self._operation(closes=True), "is killed", place()))
        self.here.actor = self.here.transaction = None

    @contextmanager
    def recording(self) -> Iterator[Trace]:
        """Record all steps until the block ends. It sends nothing and changes no result."""
        with ExitStack() as patches:
            for kind, name, wrap in (
                (ClientHandler, "__call__", self._request),
                (CursorWrapper, "_execute", self._statement),
                (CursorWrapper, "_executemany", self._statement),
                (BaseDatabaseWrapper, "_commit", partial(self._end, "COMMIT")),
                (BaseDatabaseWrapper, "_rollback", partial(self._end, "ROLLBACK")),
                (Journal, "_run", self._script),
            ):
                patches.enter_context(patch.object(kind, name, wrap(getattr(kind, name))))
            patches.callback(CURRENT.remove, self)
            CURRENT.append(self)
            yield self

    def _operation(self, closes: bool = False) -> Any:
        """The request of this thread, or otherwise its transaction. After COMMIT only the script that closes its lease belongs to a transaction."""
        if request := getattr(self.here, "request", None):
            return request
        if getattr(self.here, "transaction", None) is None or (self.here.ended and not closes):
            self.here.transaction, self.here.ended = object(), False
        return self.here.transaction

    @property
    def _actor(self) -> Any:
        """The process that this thread plays. A later thread may have the same ident, so that is not enough."""
        if getattr(self.here, "actor", None) is None:
            self.here.actor = object()
        return self.here.actor

    def _request(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def request(handler: Any, environ: dict[str, Any]) -> Any:
            self.here.request, self.here.entry = object(), ""
            try:
                response = call(handler, environ)
                status = f"{response.status_code}, Cache-Status: {response.headers.get('Cache-Status', 'none')}"
                what = f"{environ['REQUEST_METHOD']} {response.wsgi_request.get_full_path()}: {status}"
                self.steps.append(Step(self._actor, self.here.request, what, place(), entry=self.here.entry, response=response))
            finally:
                self.here.request = None
            return response

        return request

    def _statement(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(execute)
        def statement(cursor: Any, sql: Any, params: Any, *rest: Any) -> Any:
            found = execute(cursor, sql, params, *rest)
            text = " ".join(str(sql).split())
            self.steps.append(Step(self._actor, self._operation(), short(text), place(), sql=with_values(text, params)))
            return found

        return statement

    def _end(self, what: str, end: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(end)
        def ended(wrapper: Any) -> Any:
            found = end(wrapper)
            self.steps.append(Step(self._actor, self._operation(), what, place()))
            self.here.ended = True
            return found

        return ended

    def _script(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def script(journal: Journal, verb: str, *args: Any, entry: str = "") -> Any:
            actor, operation = self._actor, self._operation(closes=verb in ("close", "withdraw"))
            reply = run(journal, verb, *args, entry=entry) if entry else run(journal, verb, *args)
            self._add_script(actor, operation, verb, args, entry, reply)
            return reply

        return script

    def _add_script(self, actor: Any, operation: Any, verb: str, args: tuple[Any, ...], entry: str, reply: Any) -> None:
        verdict = (reply[0] if isinstance(reply, list) and reply else reply if isinstance(reply, bytes) else b"").decode()
        token = {"store": args[1:2], "abandon": args[:1], "lease": args[:1], "close": args[:1], "withdraw": args[:1]}.get(verb, ())
        direct = getattr(self.here, "request", None) is None
        if verb == "lookup" and direct:  # the spec plays a reader by itself
            actor = operation = object()
            if verdict in ("miss", "stale"):
                self.known[reply[2]] = actor
        elif direct and verb == "lease" and not self._has_written(operation):
            actor = operation = self.known[token] = object()
        elif direct and token:
            own = self.known.get(token, self.known.get(token[0]))
            actor, operation = (own, own) if own else (actor, operation)
        tags = {"store": args[2:3], "lease": args[1:2], "close": args[1:2]}.get(verb, ("",))[0]
        if verb == "lookup":
            self.here.entry = entry
        if verb in ("lookup", "store", "abandon", "lease", "close", "withdraw"):
            what = f"{verb}: {verdict}" if verdict else verb
            self.steps.append(Step(actor, operation, what, place(), tags=frozenset(tags.splitlines()), entry=entry))

    def _has_written(self, operation: Any) -> bool:
        return any(step.operation is operation and step.sql for step in reversed(self.steps))


def place() -> tuple[str, int] | None:
    """The line of the spec that is being executed, or of the fixture, if the spec is not below it."""
    fixture, frame = None, sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/tests/test_"):
            return file, frame.f_lineno
        if fixture is None and file == f"{ROOT}/conftest.py":
            fixture = file, frame.f_lineno
        frame = frame.f_back
    return fixture


def short(sql: str) -> str:
    """A statement without its values: `UPDATE housing_property SET price`, `SELECT … FROM housing_property`."""
    verb = sql.split(maxsplit=1)[0].upper() if sql else ""
    table = re.search(r"\b(?:FROM|INTO|UPDATE) \"?(\w+)", sql)
    if verb == "SELECT":
        return f"SELECT … FROM {table[1]}" if table else "SELECT …"
    if verb == "UPDATE" and table:
        columns = re.findall(r"\"?(\w+)\"? = ", sql.partition(" SET ")[2].partition(" WHERE ")[0])
        return f"UPDATE {table[1]} SET {columns[0] if len(columns) == 1 else '…'}"
    if verb in ("INSERT", "DELETE") and table:
        return f"{verb} {'INTO' if verb == 'INSERT' else 'FROM'} {table[1]}"
    return UNDONE if sql.upper().startswith("ROLLBACK TO") else verb


def with_values(sql: str, params: Any, limit: int = 400) -> str:
    """A statement with its values, for a reader. It is cut after `limit` characters."""
    values = params if isinstance(params, tuple | list) else ()
    text = sql % tuple(map(shown, values)) if values and sql.count("%s") == len(values) == sql.count("%") else sql
    return text if len(text) <= limit else f"{text[:limit]} …"


def shown(value: Any) -> str:
    """A value as SQL shows it."""
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int | float) else f"'{value}'"


# For SPEC.md


def lines_of(trace: Trace) -> list[str]:
    """The steps of a race: `T1  lookup: miss, SELECT … FROM housing_property`. Empty if the spec plays fewer than two processes, or too many.

    Processes are numbered in the order of their first steps. A line is what one process did, within one request or transaction, before another went on.
    """
    if trace.scheduled is not None:
        pairs = [(int(line[1]), 0, line.partition(" ")[2]) for line in trace.scheduled]
    else:
        numbers: dict[Any, int] = {None: 0}
        shown = [step for step in trace.steps if step.response is None and not CONTROL.match(step.what)]
        pairs = [(numbers.setdefault(step.actor, len(numbers)), step.operation, step.what) for step in shown]
    lines = joined(pairs)
    return lines if len({number for number, _, _ in pairs} - {0}) > 1 and len(lines) <= LONGEST else []


def joined(steps: Iterable[tuple[int, Any, str]]) -> list[str]:
    """(number of a process, its operation, its step) → the lines. Equal neighbouring lines of several processes are one."""
    lines = [(key[0], [what for *_, what in group]) for key, group in itertools.groupby(steps, key=lambda step: step[:2])]
    result = []
    for steps_of_one, group in itertools.groupby(lines, key=lambda line: line[1]):
        numbers = [number for number, _ in group]
        if len(steps_of_one) == 1 and len(set(numbers)) > 1:
            numbers.sort()
            result.append(f"T{numbers[0]} {'and' if len(numbers) == 2 else 'to'} T{numbers[-1]}  {steps_of_one[0]}")
        else:
            result += [f"{f'T{number}' if number else '  '}  {_without_repeats(steps_of_one)}" for number in numbers]
    return result


def _without_repeats(steps: Iterable[str]) -> str:
    counted = ((what, len(list(group))) for what, group in itertools.groupby(steps))
    return ", ".join(f"{what} ({times} times)" if times > 2 else ", ".join([what] * times) for what, times in counted)


STEPS = ROOT / "tests/steps.json"
"""The steps of each race on the embedded stack, by the name of its spec. SPEC.md shows them, and each run compares them."""

RACES = ("commit", "journal", "races", "schedules", "waiting")
"""The chapters in which specs take the steps of several processes in a given order."""


def recorded() -> dict[str, list[str]]:
    """The steps in the file."""
    return dict(json.loads(STEPS.read_text(encoding="utf-8"))) if STEPS.exists() else {}


def renew(name: str, lines: list[str]) -> None:
    """Write the steps of one spec into the file."""
    steps = {key: value for key, value in (recorded() | {name: lines}).items() if value}
    STEPS.write_text(json.dumps(dict(sorted(steps.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(name: str, lines: list[str]) -> None:
    """Fail if a spec took other steps than those in the file."""
    if (promised := recorded().get(name, [])) != lines:
        advice = "to do:    check that the new steps are right. If they are, run `make steps`, which writes them into tests/steps.json and SPEC.md."
        shown = ["promised: the steps in SPEC.md", *(f"  {line}" for line in promised), "happened:", *(f"  {line}" for line in lines), advice]
        pytest.fail("\n".join(shown), pytrace=False)
