"""Every order of steps. No response is stale in any order of the steps of two or three processes, even if one is killed or Redis loses its data.

Equivalent orders are run once. The long specs run with `make races`. Orders of more than three processes are drawn, because there are too many.
"""

import math
from copy import copy
from threading import Event

import pytest
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from housing.freshness import entries
from housing.freshness.journal import Filling, journal
from housing.models import Property
from tests.exploration.schedules import BEGIN, Actor, Stage, here, stand_before
from tests.fixtures.cache import clear_the_cache, flush
from tests.fixtures.responses import ask
from tests.fixtures.rows import a_property, saved

READER, REDIS = "a reader", "Redis"


def first(_, options):
    """The first option, so that each actor finishes before the next one begins."""
    return options[0]


LONG = pytest.mark.races


def lose_everything():
    """Redis loses all its data between two steps of other actors."""
    stand_before("loses all data")
    flush()


@pytest.fixture
def no_timeouts(settings):
    """Let no lease run out and no reader stop waiting because the machine is slow."""
    settings.FRESHNESS_LEASE = settings.FRESHNESS_WAIT_TIMEOUT = 3600.0
    journal.forget_server()  # the settings are in the script's text
    yield
    journal.forget_server()


@pytest.fixture
def new_stage(transactional_db, handler, no_timeouts):
    """`new_stage("a reader", 1, 2, warm=True, …)` returns a stage for a reader of the list and two writers, who set the price of its one property from
    0 to 1 and 2.
    """
    [home] = saved(a_property())
    home = Property.objects.get()

    def read():
        client = Client()
        client.handler = handler
        return int(float(ask(client).rows[0]["price"]))

    def write(price):
        mine = copy(home)
        mine.price = price
        mine.save(update_fields=["price"])

    def actor(name):
        if name == READER:
            return Actor("read", read)
        if name == REDIS:
            return Actor("fault", lose_everything, killable=False)
        return Actor("write", lambda: write(name), writes=name)

    def new_stage(*names, warm=False, **bounds):

        def new_actors():
            connection.connection.execute("UPDATE housing_property SET price = 0")  # past the journal, which is new in each schedule
            clear_the_cache()
            if warm:
                read()
            return list(map(actor, names))

        return Stage(new_actors, lambda: [int(Property.objects.get().price), read()], **bounds)

    return new_stage


@pytest.fixture
def is_linearizable(request):
    """Assert that a schedule is linearizable. Otherwise the failure shows its steps, and how to replay it."""

    def is_linearizable(schedule):
        if wrong := schedule.violation(initial=0):
            pytest.fail(f"{wrong}\n\nReplay it: pytest '{request.node.nodeid}' --schedule={schedule.name}", pytrace=False)
        return True

    return is_linearizable


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
def test_responses_are_linearizable_in_every_order_of_steps(new_stage, is_linearizable, pytestconfig, record_property, actors, schedules, bounds):
    """The number of schedules is promised, too, so none was left out."""
    with new_stage(*actors, **bounds) as stage:
        name = pytestconfig.option.schedule
        tried = sum(map(is_linearizable, [stage.replay(name)] if name else stage.every()))
    record_property("counted", f"{tried:,} schedules")
    assert name or tried == (schedules if isinstance(schedules, int) else schedules[pytestconfig.option.stack])


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
    """All that the check of a history depends on, whichever of two equal actors is T1: values, and which operations ended before others began."""

    def renamed(prices):
        done = schedule.history
        return sorted(
            (
                one.kind,
                prices[one.value],
                one.ended == math.inf,
                sum(other.ended < one.began for other in done),
                sum(one.ended < other.began for other in done),
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
    monkeypatch.setattr(journal, "close", journal.withdraw)


def test_a_schedule_with_a_look_that_finds_nothing_new_is_left_out(transactional_db, no_timeouts):
    """It leads to the same as the schedule without this look, because a reader that must go on waiting has changed nothing."""

    def fill():
        journal.lookup("an entry")

    def wait():
        while isinstance(journal.lookup("an entry", may_wait=entries.monotonic() < 1), Filling):
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
    assert counts == [30, 78]


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
