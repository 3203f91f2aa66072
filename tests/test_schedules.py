"""Every order of steps. No response is stale in any order of the steps of two or three processes, even if one is killed or Redis loses its data.

A write that the journal does not know may be missing in reads, but only within the bound. The watchman is a process, too.

Equivalent orders are run once. The long specs run with `make races`. Orders of more than three processes are drawn, because there are too many.
"""

import math
import re
from copy import copy
from functools import partial
from threading import Event

import pytest
from django.core.cache import cache
from django.db import connection, transaction
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from housing.freshness import entries
from housing.freshness.fingerprint import version
from housing.freshness.journal import SCRIPT, Filling, journal
from housing.freshness.settings import conf
from housing.models import Agent, Property
from tests.exploration.schedules import BEGIN, BOUND, TIME_PASSES, VERIFIES, WRITES_ALONE, Actor, Stage, here, stand_before
from tests.fixtures.cache import clear_the_cache, flush, verify
from tests.fixtures.responses import ask
from tests.fixtures.rows import a_property, saved

pytest_plugins = ["tests.fixtures.no_timeouts"]

READER, REDIS, WATCHMAN, TIME, FAILOVER = "a reader", "Redis", "a watchman", "time", "a failover"

LONG, EMBEDDED = pytest.mark.races, pytest.mark.only("embedded")


class Foreign(int):
    """A price that another program sets, with a row in the outbox, as a trigger leaves it."""


class CutOff(int):
    """A price that a writer sets that cannot reach Redis."""


def first(_, options):
    """The first option, so that each actor finishes before the next one begins."""
    return options[0]


LONGER = 1.001
"""Seconds, more than the bound of one second."""


def a_row(*tags):
    """The statement that writes a row of the outbox with these tags, which a watchman of this version can read."""
    return "INSERT INTO freshness_outbox (tags) VALUES ('{}')".format("\n".join([*tags, f"|version:{version()}"]))


@pytest.fixture
def clock(request, settings, no_timeouts):
    """Redis's clock, stopped, and a bound of one second. None on the real stack, whose bound is the 30 years of all specs."""
    if request.config.option.stack == "real":
        return None
    settings.FRESHNESS_MAX_STALENESS = 1.0
    return request.getfixturevalue("redis_clock")


class Cast:
    """The actions of the actors of a stage. They read and write the price of one property, which is 0 at first."""

    stage: Stage

    def __init__(self, handler, clock):
        saved(a_property())
        self.home, self.handler, self.clock = Property.objects.get(), handler, clock

    def actor(self, name):
        """The actor of this name. A number is the price that a writer sets."""
        if name in (READER, WATCHMAN):
            return Actor("read", self.read) if name == READER else Actor("verify", self.verify)
        if name in self.FAULTS:
            return Actor("fault", partial(self.FAULTS[name], self), killable=False)
        if isinstance(name, Foreign):
            return Actor("write", lambda: self.write_past_the_journal(name), writes=name, late=True, killable=False)
        without_redis = isinstance(name, CutOff)
        return Actor("write", lambda: self.write(name), writes=name, late=without_redis, cut_off=without_redis)

    def begin(self):
        """Let a schedule begin with the price 0 and a new journal."""
        for sql in ("UPDATE housing_property SET price = 0", "DELETE FROM freshness_outbox", a_row("another")):  # each watchman has something to delete
            connection.connection.execute(sql)  # past the journal
        clear_the_cache()

    def afterwards(self):
        """The prices that are read when all actors have ended: at once, after the bound, and after the next verification."""
        yield int(Property.objects.get().price)
        yield self.read()
        self.pass_time()
        if self.clock:  # on the real stack it stands still, so nothing would end the hits
            yield self.read()
        verify()
        yield self.read()

    def read(self):
        client = Client()
        client.handler = self.handler
        return int(float(ask(client).rows[0]["price"]))

    def write(self, price):
        mine = copy(self.home)
        mine.price = price
        mine.save(update_fields=["price"])

    def write_past_the_journal(self, price):
        stand_before(WRITES_ALONE)
        execute = connection.connection.execute  # the driver's
        execute("BEGIN")
        execute(f"UPDATE housing_property SET price = {int(price)}")
        execute(a_row("housing_property", f"housing_property:{self.home.pk}"))  # as a trigger does
        execute("COMMIT")

    def verify(self):
        stand_before(VERIFIES)
        here.actor.fused = True  # it is the first step of `verify`
        verify()

    def pass_time(self):
        self.stage.pass_time()
        if self.clock:
            self.clock.seconds += LONGER

    def let_time_pass(self):
        stand_before(TIME_PASSES)
        self.pass_time()

    def lose_everything(self):
        stand_before("loses all data")
        flush()

    def fail_over(self):
        """In one step, Redis is replaced by a server whose clock is behind, and the page is read. Nobody leases, so the new journal needs no lease."""
        stand_before("fails over to a server whose clock is behind")
        here.actor = None
        flush()
        self.clock.seconds -= LONGER
        journal.begin()
        self.read()

    FAULTS = {REDIS: lose_everything, TIME: let_time_pass, FAILOVER: fail_over}


class Movers(Cast):
    """Readers read the list of one agent. Writers move the property into that list with a price, or out of it with the price 0."""

    def __init__(self, handler, clock):
        super().__init__(handler, clock)
        self.outside, self.inside = self.home.agent_id, Agent.objects.create(name="Inside", office=self.home.agent.office).pk

    def begin(self):
        """Let a schedule begin with the property outside."""
        connection.connection.execute(f"UPDATE housing_property SET agent_id = {self.outside}")  # past the journal
        super().begin()

    def read(self):
        client = Client()
        client.handler = self.handler
        return sum(int(float(row["price"])) for row in ask(client, agent=self.inside).rows)

    def write(self, price):
        mine = copy(self.home)
        mine.price, mine.agent_id = price, self.inside if price else self.outside
        mine.save()


class Undoers(Movers):
    """These move it the other way first, under a savepoint that is rolled back."""

    def write(self, price):
        with transaction.atomic():
            with transaction.atomic():
                super().write(0 if price else 9)
                transaction.set_rollback(True)
            super().write(price)


@pytest.fixture
def new_stage(transactional_db, handler, clock):
    """`new_stage("a reader", 1, 2, warm=True, …)` returns a stage for a reader of the list and two writers, who set the price of its property to 1 and 2."""
    casts = {}

    def new_stage(*names, warm=False, kind=Cast, **bounds):
        cast = casts.get(kind) or casts.setdefault(kind, kind(handler, clock))

        def new_actors():
            cast.begin()
            if warm:
                cast.read()
            return list(map(cast.actor, names))

        cast.stage = Stage(new_actors, cast.afterwards, **bounds)
        return cast.stage

    return new_stage


@pytest.fixture
def is_linearizable(request):
    """Assert that a schedule is linearizable. Otherwise the failure shows its steps, and how to replay it."""

    def is_linearizable(schedule):
        if wrong := schedule.violation(initial=0):
            pytest.fail(f"{wrong}\n\nReplay it: pytest '{request.node.nodeid}' --schedule={schedule.name}", pytrace=False)
        return True

    return is_linearizable


@pytest.fixture
def try_every_order(new_stage, is_linearizable, pytestconfig, record_property):
    """`try_every_order(actors, schedules, bounds)`: assert that all schedules of these actors are linearizable, and that their number is `schedules`."""

    def try_every_order(actors, schedules, bounds):
        with new_stage(*actors, **bounds) as stage:
            name = pytestconfig.option.schedule
            tried = sum(map(is_linearizable, [stage.replay(name)] if name else stage.every()))
        record_property("counted", f"{tried:,} schedules")
        assert name or tried == (schedules if isinstance(schedules, int) else schedules[pytestconfig.option.stack])

    return try_every_order


@pytest.mark.parametrize(
    ("actors", "schedules", "bounds"),
    [
        pytest.param([READER, 1], 16, {}, id="a reader and a writer"),
        pytest.param([READER, 1], 7, {"warm": True}, id="a reader and a writer; warm"),
        pytest.param([READER, 1], 2, {"preemptions": 0}, id="a reader and a writer, one after the other"),
        pytest.param([READER, 1], 63, {"kills": 1}, id="a reader and a writer, one of them killed"),
        pytest.param([READER, 1], 27, {"warm": True, "kills": 1}, id="a reader and a writer, one of them killed; warm"),
        pytest.param([READER, READER], 5, {}, id="two readers"),
        pytest.param([READER, READER], 11, {"kills": 1}, id="two readers, one of them killed"),
        pytest.param([1, 2], {"embedded": 4, "real": 10}, {"warm": True}, id="two writers; warm"),
        pytest.param([READER, READER, 1], 5383, {"kills": 1}, id="two readers and a writer, one of them killed", marks=LONG),
        pytest.param([READER, READER, 1], 546, {"warm": True, "kills": 1}, id="two readers and a writer, one of them killed; warm", marks=LONG),
        pytest.param([READER, 1, 2], {"embedded": 2297, "real": 5102}, {"kills": 1}, id="a reader and two writers, one of them killed", marks=LONG),
        pytest.param(
            [READER, 1, 2], {"embedded": 1052, "real": 2311}, {"warm": True, "kills": 1}, id="a reader and two writers, one of them killed; warm", marks=LONG
        ),
        pytest.param([READER, READER, 1, 2], 1640, {"preemptions": 1}, id="two readers and two writers, one of them preempted", marks=LONG),
        pytest.param([READER, 1, REDIS], 323, {}, id="a reader and a writer, Redis loses its data", marks=LONG),
    ],
)
def test_responses_are_linearizable_in_every_order_of_steps(try_every_order, actors, schedules, bounds):
    """The number of schedules is promised, too, so none was left out."""
    try_every_order(actors, schedules, bounds)


@pytest.mark.parametrize(
    ("actors", "schedules", "bounds"),
    [
        pytest.param([CutOff(1)], 3, {"warm": True, "kills": 1}, id="a writer without Redis, killed"),
        pytest.param([Foreign(1), WATCHMAN], 14, {"warm": True, "kills": 1}, id="another program and a watchman, killed"),
        pytest.param([Foreign(1), WATCHMAN, TIME], 30, {"warm": True}, id="another program and a watchman, while time passes", marks=EMBEDDED),
        pytest.param([Foreign(1), WATCHMAN, FAILOVER], 28, {"warm": True}, id="another program and a watchman, at a failover", marks=EMBEDDED),
        pytest.param([READER, Foreign(1)], 4, {}, id="a reader and another program"),
        pytest.param([READER, CutOff(1)], 8, {}, id="a reader and a writer without Redis"),
        pytest.param([1, CutOff(2)], {"embedded": 4, "real": 10}, {"warm": True}, id="a writer and one without Redis"),
        pytest.param([READER, Foreign(1), WATCHMAN, TIME], 1124, {}, id="a reader, another program and a watchman, while time passes", marks=[LONG, EMBEDDED]),
        pytest.param([READER, Foreign(1), WATCHMAN, WATCHMAN], 847, {"warm": True}, id="a reader, another program and two watchmen", marks=LONG),
        pytest.param(
            [READER, CutOff(1), WATCHMAN],
            {"embedded": 187, "real": 229},
            {"warm": True, "kills": 1},
            id="a reader, a writer without Redis and a watchman, one of them killed",
            marks=LONG,
        ),
        pytest.param(
            [READER, CutOff(1), WATCHMAN, REDIS],
            {"embedded": 1083, "real": 1542},
            {"warm": True},
            id="a reader, a writer without Redis and a watchman, Redis loses its data",
            marks=LONG,
        ),
        pytest.param(
            [READER, 1, Foreign(2), WATCHMAN],
            {"embedded": 288, "real": 312},
            {"preemptions": 1},
            id="a reader, a writer, another program and a watchman, one preempted",
            marks=LONG,
        ),
    ],
)
def test_reads_miss_no_write_longer_than_the_bound_in_any_order_of_steps(try_every_order, actors, schedules, bounds):
    """The journal learns of them from the outbox: writes by another program, and of ours without Redis. Reads miss no other write. (Orders in which time
    passes are embedded only, because the spec sets Redis's clock.)
    """
    try_every_order(actors, schedules, bounds)


@pytest.mark.parametrize(
    ("actors", "schedules", "bounds"),
    [
        pytest.param([READER, 1], 16, {"kind": Movers}, id="a reader and a mover"),
        pytest.param([READER, 1], 27, {"kind": Movers, "warm": True, "kills": 1}, id="a reader and a mover, one of them killed; warm"),
        pytest.param([1, 0], {"embedded": 4, "real": 10}, {"kind": Movers, "warm": True}, id="one moves it in, one moves it out; warm"),
        pytest.param(
            [READER, 1, 0],
            {"embedded": 28, "real": 48},
            {"kind": Movers, "warm": True, "preemptions": 1},
            id="a reader, one moves it in, one moves it out, one preempted",
        ),
        pytest.param([READER, 1], 9, {"kind": Undoers, "warm": True}, id="a reader and one who also moves it out and back; warm"),
    ],
)
def test_a_row_that_moves_between_scopes_is_linearizable_in_every_order_of_steps(try_every_order, actors, schedules, bounds):
    """A page of the scope that it enters or leaves shows it, or does not, as in the database. The page is full or empty before anybody moves the row."""
    try_every_order(actors, schedules, bounds)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], print_blob=True)
@given(data=st.data())
def test_responses_are_linearizable_in_drawn_orders_of_six_actors(new_stage, is_linearizable, data):
    """Three readers, two writers, a kill and the loss of all of Redis's data have too many schedules to run each. They are drawn as Hypothesis's data, so
    that a failing one shrinks.
    """
    with new_stage(READER, READER, READER, 1, 2, REDIS, kills=1) as stage:
        assert is_linearizable(stage.run(lambda _, options: data.draw(st.sampled_from(options))))


# The scheduler itself


def outcome(schedule):
    """All that the check of a history depends on, whichever of two equal actors is T1: values, and which operations ended before others began, and how long."""

    def renamed(prices):
        done = schedule.history
        return sorted(
            (
                one.kind,
                prices[one.value],
                one.ended == math.inf,
                sum(other.ended < one.began for other in done),
                sum(one.ended < other.began for other in done),
                sum(one.ended + BOUND < other.began for other in done),
            )
            for one in done
        )

    return str(min(renamed({0: 0, 1: 1, 2: 2}), renamed({0: 0, 1: 2, 2: 1})))


@pytest.mark.parametrize(
    ("actors", "bounds"),
    [
        pytest.param([READER, 1], {"warm": True, "kills": 1}, id="a reader and a writer, one of them killed; warm"),
        pytest.param([READER, READER], {}, id="two readers"),
        pytest.param([1, 2], {"warm": True}, id="two writers; warm"),
        pytest.param([READER, CutOff(1)], {"kills": 1}, id="a reader and a writer without Redis, one of them killed", marks=LONG),
        pytest.param([READER, Foreign(1), WATCHMAN], {"warm": True}, id="a reader, another program and a watchman", marks=LONG),
        pytest.param([READER, 1], {"kills": 1}, id="a reader and a writer, one of them killed", marks=LONG),
        pytest.param([READER, READER], {"kills": 1}, id="two readers, one of them killed", marks=LONG),
        pytest.param([READER, 1, REDIS], {}, id="a reader and a writer, Redis loses its data", marks=LONG),
    ],
)
def test_every_schedule_that_is_left_out_ends_like_one_that_runs(new_stage, actors, bounds):
    """Otherwise the reduction could hide a stale response."""
    with new_stage(*actors, **bounds) as stage:
        run = list(stage.every())
    with new_stage(*actors, reduced=False, **bounds) as stage:
        all_of_them = list(stage.every())

    assert len(run) < len(all_of_them)
    assert set(map(outcome, run)) == set(map(outcome, all_of_them))


@pytest.fixture
def no_close(monkeypatch):
    """Break the service: it withdraws each lease and never closes it, so no write makes an entry stale."""
    monkeypatch.setattr(journal, "close", lambda lease, late: journal.withdraw(lease))


def test_a_schedule_with_a_look_that_finds_nothing_new_is_left_out(transactional_db, no_timeouts):
    """It leads to the same as the schedule without this look, because a reader that must go on waiting has changed nothing."""
    entry = cache.make_key("an entry")  # which each schedule begins without

    def fill():
        journal.lookup(entry)

    def wait():
        while isinstance(journal.lookup(entry, may_wait=entries.monotonic() < 1), Filling):
            entries.sleep(0)

    def write():
        journal.close(journal.lease({"another's tag"}))

    def new_actors():
        clear_the_cache()
        return [Actor("fault", act, killable=False) for act in (fill, wait, write)]

    counts = []
    for reduced in (True, False):
        with Stage(new_actors, reduced=reduced) as stage:
            counts.append(sum(1 for _ in stage.every()))
    assert counts == [16, 22]


def test_a_schedule_with_a_stale_response_can_be_replayed(new_stage, no_close):
    """The name of a schedule says which actor took each step."""
    with new_stage(READER, 1, warm=True) as stage:
        stale = next(schedule for schedule in stage.every() if schedule.violation(initial=0))
        again = stage.replay(stale.name)

    assert stale.name == "12222"
    assert (again.lines, again.history) == (stale.lines, stale.history)
    assert stale.violation(initial=0).startswith("Schedule 12222:\nT1 lookup: hit\nT2 UPDATE\nT2 lease\nT2 COMMIT\nT2 withdraw\n\n")


def test_a_stale_response_fails_with_its_schedule(new_stage, no_close, is_linearizable):
    """The failure also says how to replay it."""
    with (
        new_stage(READER, 1, warm=True) as stage,
        pytest.raises(pytest.fail.Exception, match=r"Schedule 12222:(.|\n)*Replay it: pytest '.*' --schedule=12222"),
    ):
        is_linearizable(stage.replay("12222"))


def test_a_schedule_that_the_code_no_longer_follows_fails_at_the_step(new_stage):
    """The error shows the steps up to there."""
    with new_stage(READER, 1) as stage:
        for name in ("11", "2222222"):
            with pytest.raises(ValueError, match=f"schedule {name} cannot be followed from here"):
                stage.replay(name)


def test_a_thread_that_is_no_actor_never_waits_for_its_turn(new_stage):
    """The spec itself may write between two schedules."""
    with new_stage(READER) as stage:
        Property.objects.update(price=7)
        assert stage.run(first).violation(initial=0) is None


def test_an_error_in_an_actor_is_raised_in_the_spec(new_stage):
    """It would otherwise be lost with the actor's thread."""

    def act():
        raise LookupError("no such property")

    with Stage(lambda: [Actor("read", act)]) as stage, pytest.raises(LookupError, match="no such property"):
        stage.run(first)


def test_no_duration_of_the_script_ends_during_a_schedule(no_timeouts):
    """On a slow machine a schedule takes seconds. If a lease or a wait ended meanwhile, the next schedule could not repeat its steps."""
    durations = set(re.findall(r"@(\w+)@", SCRIPT)) - {"RUN"}

    assert "LONGEST_WAIT" in durations
    assert {name for name in durations if getattr(conf, name) < 3600} == set()


def test_an_actor_of_a_schedule_that_ends_early_takes_no_part_in_the_next_one(transactional_db):
    """Its thread still has to end, in which an actor changes what the next schedule counts."""
    ended = []

    def act():
        try:
            stand_before("a step")
        finally:
            sum(range(1_000_000))  # long enough for the next schedule to begin
            ended.append(True)

    with Stage(lambda: [Actor("fault", act)]) as stage:
        assert stage.run(lambda *_: None) is None
        assert (ended, stage.changes) == ([True], 1)


def test_an_actor_that_does_not_end_after_its_schedule_raises_an_error(monkeypatch, transactional_db):
    """The next schedule would begin in the middle of this one."""
    forever = Event()

    def act():
        try:
            stand_before("a step")
        finally:
            forever.wait()

    def end_early(*_):
        monkeypatch.setattr("tests.exploration.schedules.TIMEOUT", 0.01)

    stage = Stage(lambda: [Actor("fault", act)])
    with pytest.raises(RuntimeError, match="1 of the actors did not end"):
        stage.run(end_early)
    forever.set()
    monkeypatch.undo()
    with stage:
        pass


def test_actors_that_all_wait_for_each_other_raise_an_error(new_stage):
    """The error shows the steps that led to the deadlock."""

    def act():
        here.actor.holds_lock = True
        stand_before(BEGIN)

    with Stage(lambda: [Actor("fault", act), Actor("fault", act)]) as stage, pytest.raises(RuntimeError, match="no actor can take a step"):
        stage.run(first)


def test_an_actor_that_is_stuck_raises_an_error(monkeypatch, transactional_db):
    """The spec would otherwise hang without saying why."""
    monkeypatch.setattr("tests.exploration.schedules.TIMEOUT", 0.01)
    forever = Event()
    stage = Stage(lambda: [Actor("fault", forever.wait)])
    with pytest.raises(RuntimeError, match="T1 is stuck"):
        stage.run(first)
    forever.set()
    monkeypatch.undo()
    with stage:
        pass
