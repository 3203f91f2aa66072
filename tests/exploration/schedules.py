"""Run the real code in every order in which processes can take their steps.

Each actor runs in a thread of its own, and stops before each step: an SQL statement, a COMMIT, a script in Redis, or another look at an entry that is
being filled. One actor at a time takes a step. A schedule lists which actor took each step, and can be replayed. All schedules are found depth first,
each from a fresh start, as stateless model checkers do (Godefroid, "Model Checking for Programming Languages using VeriSoft", POPL 1997).

If two schedules differ only in the order of neighbouring steps that are independent, one is run (sleep sets: Godefroid, "Partial-Order Methods for the
Verification of Concurrent Systems", LNCS 1032, chapter 5). A SELECT and a script are independent. Two scripts are not, and neither are a SELECT and a
COMMIT, nor the first step of one actor and the last of another, because the check of a history needs to know which operation ended before which began.
All readers are alike, and writers of a kind differ only in the value that they write, so the first of each kind always begins.

An actor that waits for a database lock cannot take a step. An actor that waits for another's fill looks again after a script has run, or stops waiting
at any time. A killed actor takes no further step. Nobody can see when it died, so it is killed right after its last step.

A step takes no time, so a history counts its steps, far fewer than BOUND. Only TIME_PASSES takes longer than BOUND.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from unittest.mock import patch

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from housing.freshness import entries
from housing.freshness.journal import Journal, Unreachable
from tests.exploration.linearizability import Operation, violation
from tests.fixtures.processes import Killed
from tests.fixtures.trace import CURRENT, OF_RACES
from tests.stacks import TIMEOUT

BEGIN, WAITING = "BEGIN", "looks again"

TIME_PASSES, VERIFIES, WRITES_ALONE = "time passes", OF_RACES["begin_verification"], "writes past the journal"
"""Steps of actors that a spec makes: more than the bound passes, a watchman begins, and another program commits a whole transaction."""

BOUND = 1_000.0
"""How long a read may miss a late write, in steps."""

STEP, KILL, TIMED_OUT = "", "†", "…"
"""An option for an actor: it takes its step, is killed, or stops waiting. The name of a schedule is the numbers of the actors, each with one of these."""

Footprint = frozenset[tuple[str, str]]
"""The data that a step touches: ("redis", "w"), ("rows", "r"), …. Two steps are dependent if one writes what the other touches."""


def _footprint(*touched: str) -> Footprint:
    return frozenset((data[:-2], data[-1]) for data in touched)


TOUCHED = {
    **dict.fromkeys((*OF_RACES.values(), WAITING), _footprint("redis:w")),
    "SELECT": _footprint("rows:r"),
    **dict.fromkeys(("UPDATE", "INSERT"), _footprint("locks:w")),  # not visible before its COMMIT
    BEGIN: _footprint("locks:w"),
    "COMMIT": _footprint("rows:w", "locks:w"),
    "DELETE": _footprint("rows:w", "locks:w"),  # in autocommit
    WRITES_ALONE: _footprint("redis:w", "rows:w", "locks:w"),  # it is a whole operation, and the order of operations is visible
}
"""The footprint of each step. Any other step counts as ANYTHING."""

ANYTHING = _footprint("redis:w", "rows:w", "locks:w", "kills:w")

here = threading.local()
"""`here.actor` is the actor of this thread, if there is one."""


@dataclass(eq=False)
class Actor:
    """A process. `act` returns what a reader read, and `writes` is what a writer writes. A watchman and a fault have neither.

    The journal learns of a late write from the outbox. An actor that is cut off cannot reach Redis.
    """

    kind: Literal["read", "write", "verify", "fault"]
    act: Callable[[], Any]
    writes: Any = None
    killable: bool = True
    late: bool = False
    cut_off: bool = False
    at: str | None = None
    blocked: bool = False
    holds_lock: bool = False
    dead: bool = False
    timed_out: bool = False
    looked: int = -1
    fused: bool = False
    backend: int | None = None
    result: str = ""
    began: float = math.inf
    played: Future[None] | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def stand_before(self, step: str) -> None:
        """Wait for the turn to take this step. Raises Killed if the actor is killed instead."""
        if not self.dead:
            self.at = step
            self.back.release()
            self.go.acquire()
        if self.dead:
            connection.close()  # as the end of a process does; otherwise Django would go on using it
            raise Killed


def stand_before(step: str) -> None:
    """Add a step of the spec's own to `act`."""
    here.actor.stand_before(step)


@dataclass(frozen=True)
class Schedule:
    """The steps of one run in order, and the history of what was read and written."""

    name: str
    lines: list[str]
    history: list[Operation]

    def violation(self, initial: Any) -> str | None:
        """None if the responses are linearizable, with late writes within the bound. Otherwise the steps of the schedule, and what is wrong."""
        wrong = violation(self.history, initial, BOUND)
        return wrong and "\n".join([f"Schedule {self.name}:", *self.lines, "", wrong])


Option = tuple[int, str]
"""The number of an actor, from 0, and STEP, KILL or TIMED_OUT."""

Choose = Callable[[int, Sequence[Option]], Option | None]
"""Chooses one of these options at a position, or None to end the schedule there."""


@dataclass
class Node:
    """A position of a schedule with several options, each with its footprint. The options in `asleep` need not be tried."""

    options: dict[Option, Footprint]
    asleep: set[Option]
    taken: Option | None = None

    def go_on(self) -> Option | None:
        """The next option to try, or None after the last."""
        if self.taken:
            self.asleep.add(self.taken)
        self.taken = next((option for option in self.options if option not in self.asleep), None)
        return self.taken

    def asleep_after_it(self) -> set[Option]:
        """The options that were tried here before and are independent of the one taken: after it they would lead to the same."""
        return {option for option in self.asleep if self.taken and are_independent(option, self.options[option], self.taken, self.options[self.taken])}


def are_independent(one: Option, touches: Footprint, other: Option, touched: Footprint) -> bool:
    """Whether two steps of two actors lead to the same result in either order."""
    return one[0] != other[0] and not any(a == b and "w" in (how_a, how_b) for a, how_a in touches for b, how_b in touched)


class Stage:
    """Schedules the steps of actors. `new_actors` makes actors and data for each schedule, and `afterwards` returns what is read when all have ended.

    `kills` limits how many actors are killed. `preemptions` limits how often an actor that could go on has to wait for another (Musuvathi and Qadeer,
    "Iterative Context Bounding for Systematic Testing of Multithreaded Programs", PLDI 2007).
    """

    def __init__(
        self,
        new_actors: Callable[[], Sequence[Actor]],
        afterwards: Callable[[], Sequence[Any]] = list,
        kills: int = 0,
        preemptions: float = math.inf,
        reduced: bool = True,
    ) -> None:
        self.new_actors, self.afterwards, self.kills, self.preemptions = new_actors, afterwards, kills, preemptions
        self.reduced = reduced and preemptions == math.inf  # one of two equivalent schedules may have more preemptions
        self.threads: list[ThreadPoolExecutor] = []
        self.failed: list[BaseException] = []
        self._begin(())

    def _begin(self, actors: Sequence[Actor]) -> None:
        self.actors, self.lines, self.changes, self.preempted, self.killed = actors, [], 0, 0, 0
        self.idle = False  # whether an actor looked again in vain: the schedule without this look leads to the same
        self.last: Actor | None = None
        self.history: list[Operation] = []
        self.passed = 0.0

    @property
    def now(self) -> float:
        """The number of steps, and the time that passed between them."""
        return len(self.lines) + self.passed

    def pass_time(self) -> None:
        """Let more time pass than the bound."""
        self.passed += 2 * BOUND

    def __enter__(self) -> Stage:
        self.patches = ExitStack()
        for trace in CURRENT:
            trace.scheduled = trace.scheduled or []
        for target, name, replacement in (
            (Journal, "_run", self._script(Journal._run)),
            (BaseDatabaseWrapper, "_commit", self._commit(BaseDatabaseWrapper._commit)),
            (entries, "sleep", self._pause),
            (entries, "monotonic", self._clock),
        ):
            self.patches.enter_context(patch.object(target, name, replacement))
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.submit(connections.close_all).result(TIMEOUT)
            thread.shutdown()
        self.patches.close()

    def every(self) -> Iterator[Schedule]:
        """All schedules, each once. If `reduced`, only one of those that are equivalent."""
        path: list[Node] = []

        def choose(position: int, options: Sequence[Option]) -> Option | None:
            if position < len(path):
                return path[position].taken
            if self.reduced and self.idle:
                return None
            asleep = path[-1].asleep_after_it() if path else set()
            node = Node({option: self._touches(option) for option in options}, asleep.intersection(options))
            path.append(node)
            return node.go_on()

        while True:
            if schedule := self.run(choose):
                yield schedule
            while path and not path[-1].go_on():
                path.pop()
            if not path:
                return

    def _touches(self, option: Option) -> Footprint:
        number, kind = option
        actor = self.actors[number]
        if not self.reduced:
            return ANYTHING
        if kind == KILL:
            return _footprint("kills:w", "locks:w")  # no other may be killed now, and another may have waited for its lock
        touched = TOUCHED.get(str(actor.at), ANYTHING)
        ends = actor.cut_off and actor.at == "COMMIT"  # other writers and readers end with a script
        return touched | TOUCHED["lookup"] if actor.began == math.inf or ends else touched

    def replay(self, name: str) -> Schedule:
        """The schedule of this name. Raises ValueError if the code no longer takes these steps."""
        wanted = [(int(number) - 1, kind) for number, kind in re.findall(rf"(\d)([{KILL}{TIMED_OUT}]?)", name)]

        def follow(position: int, options: Sequence[Option]) -> Option:
            if position == len(wanted) or wanted[position] not in options:
                raise ValueError("\n".join([*self.lines, f"schedule {name} cannot be followed from here: the code takes other steps now."]))
            return wanted[position]

        return cast(Schedule, self.run(follow))

    def run(self, choose: Choose) -> Schedule | None:
        """One schedule, chosen step by step, or None if `choose` returned None."""
        self._begin(self.new_actors())
        try:
            schedule = self._perform(choose)
        finally:
            for actor in self.actors:  # still waiting, because of an error or an early end
                actor.dead = True
                actor.go.release()
            going = wait([actor.played for actor in self.actors if actor.played], TIMEOUT).not_done
        if going:  # their ends would be a part of the next schedule
            raise RuntimeError("\n".join([*self.lines, f"{len(going)} of the actors did not end within {TIMEOUT} s after the schedule."]))
        if schedule:
            for trace in CURRENT:
                trace.scheduled = trace.scheduled or list(self.lines)
            for number, value in enumerate(self.afterwards()):
                self.history.append(Operation("afterwards", "read", value, self.now + number, self.now + number + 0.5))
        return schedule

    def _perform(self, choose: Choose) -> Schedule | None:
        name, position = "", 0
        for number, actor in enumerate(self.actors):
            self._enter(number, actor)
        while any(actor.at for actor in self.actors):
            options = self._options()
            if not options:
                raise RuntimeError("\n".join([*self.lines, "no actor can take a step: all of them wait."]))
            taken = choose(position, options)
            if taken is None:
                return None
            number, kind = taken
            name, position = f"{name}{number + 1}{kind}", position + 1
            self._take(number, kind)
        return Schedule(name, self.lines, self.history)

    def _options(self) -> list[Option]:
        able = [actor for actor in self.actors if self._is_able(actor)]
        if self.last in able and self.preempted >= self.preemptions:
            able = [self.last]
        killable = [actor for actor in self.actors if actor is self.last and actor.killable and actor.at and not actor.blocked and self.killed < self.kills]
        waiting = [actor for actor in self.actors if actor.at == WAITING]
        kinds = ((killable, KILL), (able, STEP), (waiting, TIMED_OUT))  # kills first, because they are no option after another actor's step
        return [(self.actors.index(actor), kind) for actors, kind in kinds for actor in actors]

    def _is_able(self, actor: Actor) -> bool:
        if actor.at is None or actor.blocked or (self.reduced and self._is_second_of_two_alike(actor)):
            return False
        if actor.at in (BEGIN, "DELETE", WRITES_ALONE):  # SQLite's one write lock
            return not any(other.holds_lock for other in self.actors if other is not actor)
        return actor.at != WAITING or actor.looked < self.changes

    def _is_second_of_two_alike(self, actor: Actor) -> bool:
        """Of two readers, or two writers, that have not begun, only the first may begin: the other schedule is the same with their names swapped."""
        before = self.actors[: self.actors.index(actor)]
        alike = [other for other in before if (other.kind, other.late, other.cut_off) == (actor.kind, actor.late, actor.cut_off)]
        return actor.kind != "fault" and actor.began == math.inf and any(other.began == math.inf for other in alike)

    def _take(self, number: int, kind: str) -> None:
        actor, before, now = self.actors[number], len(self.lines), self.now
        self.preempted += self.last not in (None, actor) and self._is_able(self.last)
        self.killed += kind == KILL
        self.last = actor
        actor.began = min(actor.began, now)
        actor.dead, actor.timed_out = kind == KILL, actor.timed_out or kind == TIMED_OUT
        self.lines.append("")
        step, actor.result = {KILL: "is killed", TIMED_OUT: "stops waiting"}.get(kind, actor.at), ""
        actor.go.release()
        self._wait_for(actor)
        if step == BEGIN:
            step, actor.result = actor.result, ""
        self.lines[before] = f"T{number + 1} {step}{actor.result and ': '}{actor.result}{' …' if actor.blocked else ''}"
        for other in self.actors:
            if other.blocked:
                self._wait_for(other)

    def _enter(self, number: int, actor: Actor) -> None:
        if number == len(self.threads):
            self.threads.append(ThreadPoolExecutor(1))
        actor.played = self.threads[number].submit(self._play, number, actor)
        self._wait_for(actor)

    def _play(self, number: int, actor: Actor) -> None:
        """Run the actor in its own thread, which keeps its connection to the database, and add the result to the history."""
        read = error = None
        try:
            connection.ensure_connection()
            if connection.vendor == "postgresql":
                actor.backend = connection.connection.info.backend_pid
            with connection.execute_wrapper(self._statement):
                here.actor = actor
                read = actor.act()
        except BaseException as raised:  # noqa: BLE001  # in this thread nobody would see it, so _wait_for raises it
            error = raised
            here.actor = None
            connection.close()
        here.actor = None
        if error and not isinstance(error, Killed):
            self.failed.append(error)
        if actor.kind == "write" or (actor.kind == "read" and not error):
            ended = math.inf if error else self.now - 0.5
            value = actor.writes if actor.kind == "write" else read
            self.history.append(Operation(f"T{number + 1}", actor.kind, value, actor.began, ended, actor.late))
        self.changes += actor.kind == "fault"
        actor.at, actor.holds_lock = None, False
        actor.back.release()

    def _wait_for(self, actor: Actor) -> None:
        """Wait until the actor stands before its next step, has ended, or waits for a database lock."""
        end = time.monotonic() + TIMEOUT
        while not actor.back.acquire(timeout=0.005):
            if actor.backend is not None and is_blocked(actor.backend):
                actor.blocked = True
                return
            if time.monotonic() > end:
                raise RuntimeError("\n".join([*self.lines, f"T{self.actors.index(actor) + 1} is stuck: no step and no lock within {TIMEOUT} s."]))
        actor.blocked = False
        if self.failed:
            raise self.failed.pop()

    # Where actors stop. Other threads do not.

    def _statement(self, execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        actor, verb = here.actor, "UPDATE" if sql.startswith("WITH freshness_") else sql.split(maxsplit=1)[0]
        if actor is None:  # the rest of its steps is one
            return execute(sql, *rest)
        if verb == BEGIN and "IMMEDIATE" in sql:
            actor.stand_before(BEGIN)
            actor.holds_lock = actor.fused = True  # its first write shows no more than its BEGIN
        elif not (actor.holds_lock and verb == "SELECT"):  # under SQLite's write lock it sees what the UPDATE after it sees
            self._stand_or_go_on(actor, verb)
        return execute(sql, *rest)

    def _stand_or_go_on(self, actor: Actor, step: str) -> None:
        if actor.fused:
            actor.fused, actor.result = False, "" if step == actor.at else step
        else:
            actor.stand_before(step)

    def _commit(self, commit: Callable[..., None]) -> Callable[..., None]:
        def stepwise(wrapper: Any) -> None:
            actor = getattr(here, "actor", None)
            if actor and wrapper.uncommitted:
                actor.stand_before("COMMIT")
            commit(wrapper)
            if actor:
                actor.holds_lock = False

        return stepwise

    def _script(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def stepwise(journal: Journal, verb: str, *args: Any, late: Any = None, **entry: Any) -> Any:  # a close is awaited, because a step ends
            actor = getattr(here, "actor", None)
            if not actor:
                return run(journal, verb, *args, late=late, **entry)
            if actor.cut_off:  # without a step, because nobody can see it
                raise Unreachable("Redis is unreachable for this actor.")
            self._stand_or_go_on(actor, OF_RACES.get(verb, verb))
            response = run(journal, verb, *args, **entry)
            verdict = (response[0] if isinstance(response, list) else response).decode() if verb in ("lookup", "store") else ""
            actor.result = f"{actor.result} {verdict}".strip()
            self.idle |= verdict == "filling" and actor.looked >= 0
            self.changes += verdict not in ("hit", "filling")
            return response

        return stepwise

    def _pause(self, seconds: float) -> None:
        here.actor.looked = self.changes
        here.actor.stand_before(WAITING)
        here.actor.fused = True

    def _clock(self) -> float:
        """Time passes only for an actor that stopped waiting. A thread that is no actor never waits, because the reader that it would wait for may be dead."""
        actor = getattr(here, "actor", None)
        return math.inf if actor is None or actor.timed_out else 0.0


def is_blocked(backend: int) -> bool:
    """Whether this backend process of PostgreSQL waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [backend])
        return bool(cursor.fetchone()[0])
