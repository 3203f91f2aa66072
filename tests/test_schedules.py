"""Every order. What `test_races.py` tells one by one holds in each order of the steps of two or three processes, also if one is killed, or Redis forgets.

Of orders that nobody could tell apart one is run. The long ones run with `make races`; of more than three processes they are drawn, for they are too many.
"""

import math
from copy import copy
from threading import Event

import pytest
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import a_property, ask, clear_the_cache, flush, saved
from housing.freshness import entries
from housing.freshness.journal import Filling, journal
from housing.models import Property
from tests.schedules import BEGIN, Actor, Stage, here, stand_before

READER, REDIS = "a reader", "Redis"


def first(_, options):
    """Whoever comes first, until it is done."""
    return options[0]


LONG = pytest.mark.races


def forget():
    """What it knew is gone between two steps of others."""
    stand_before("forgets everything")
    flush()


@pytest.fixture
def timeless(settings):
    """No lease runs out, and nobody's patience, because the machine is slow."""
    settings.FRESHNESS_LEASE = settings.FRESHNESS_WAIT_TIMEOUT = 3600.0
    journal.forget_server()  # the settings are in the script's text
    yield
    journal.forget_server()


@pytest.fixture
def perform(transactional_db, handler, timeless):
    """`perform("reader", 1, 2, warm=True, …)`: a stage for a reader of the list and two writers of its one property's price, which is 0 at first."""
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

    def actor(what):
        if what == READER:
            return Actor("read", read)
        if what == REDIS:
            return Actor("fault", forget, killable=False)
        return Actor("write", lambda: write(what), writes=what)

    def perform(*who, warm=False, **bounds):
        def cast():
            connection.connection.execute("UPDATE housing_property SET price = 0")  # past the journal, for a new one begins
            clear_the_cache()
            if warm:
                read()
            return list(map(actor, who))

        return Stage(cast, lambda: [int(Property.objects.get().price), read()], **bounds)

    return perform


@pytest.fixture
def holds(request):
    """See a schedule to be linearizable. Where it is not, the failure is its story, and how it is told again."""

    def holds(schedule):
        if wrong := schedule.violation(initial=0):
            pytest.fail(f"{wrong}\n\nAgain, alone: pytest '{request.node.nodeid}' --schedule={schedule.name}", pytrace=False)
        return True

    return holds


@pytest.mark.parametrize(
    ("who", "schedules", "bounds"),
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
        pytest.param([READER, READER, 1, 2], 1640, {"preemptions": 1}, id="two readers and two writers, one of them made to wait", marks=LONG),
        pytest.param([READER, 1, REDIS], 323, {}, id="a reader and a writer, Redis forgets", marks=LONG),
    ],
)
def test_in_every_order_the_answers_are_linearizable(perform, holds, pytestconfig, record_property, who, schedules, bounds):
    """How many orders there are is promised, too: none was left out."""
    with perform(*who, **bounds) as stage:
        name = pytestconfig.option.schedule
        tried = sum(map(holds, [stage.replay(name)] if name else stage.every()))
    record_property("counted", f"{tried:,} schedules")
    assert name or tried == (schedules if isinstance(schedules, int) else schedules[pytestconfig.option.stack])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], print_blob=True)
@given(data=st.data())
def test_in_any_order_of_many_the_answers_are_linearizable(perform, holds, data):
    """Three readers, two writers, a kill, and Redis forgets: too many orders for all. They are drawn as data, so that one that fails shrinks."""
    with perform(READER, READER, READER, 1, 2, REDIS, kills=1) as stage:
        assert holds(stage.run(lambda _, options: data.draw(st.sampled_from(options))))


# The scheduler itself


def outcome(schedule):
    """What the judgement looks at, whoever is called T1 of those who are alike: what was read and written, and how many had ended before who began."""

    def told(prices):
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

    return str(min(told({0: 0, 1: 1, 2: 2}), told({0: 0, 1: 2, 2: 1})))


@pytest.mark.parametrize(
    ("who", "bounds"),
    [
        pytest.param([READER, 1], {"warm": True, "kills": 1}, id="a reader and a writer, one of them killed; warm"),
        pytest.param([READER, READER], {}, id="two readers"),
        pytest.param([1, 2], {"warm": True}, id="two writers; warm"),
        pytest.param([READER, 1], {"kills": 1}, id="a reader and a writer, one of them killed", marks=LONG),
        pytest.param([READER, READER], {"kills": 1}, id="two readers, one of them killed", marks=LONG),
        pytest.param([READER, 1, REDIS], {}, id="a reader and a writer, Redis forgets", marks=LONG),
    ],
)
def test_the_schedules_that_are_left_out_end_as_others_do(perform, who, bounds):
    """Else the reduction would hide something."""
    with perform(*who, **bounds) as stage:
        tried = list(stage.every())
    with perform(*who, reduced=False, **bounds) as stage:
        all_of_them = list(stage.every())

    assert len(tried) < len(all_of_them)
    assert set(map(outcome, tried)) == set(map(outcome, all_of_them))


@pytest.fixture
def no_close(monkeypatch):
    """A service that forgets to say that something was written."""
    monkeypatch.setattr(journal, "close", journal.withdraw)


def test_a_look_that_finds_nothing_new_leads_nowhere(transactional_db, timeless):
    """Whoever looked again, and was told to wait on, could as well not have looked."""

    def fill():
        journal.lookup("an entry")

    def wait():
        while isinstance(journal.lookup("an entry", may_wait=entries.monotonic() < 1), Filling):
            entries.sleep(0)

    def write():
        journal.close(journal.lease({"another's tag"}))

    def cast():
        clear_the_cache()
        return [Actor("fault", act, killable=False) for act in (fill, wait, write)]

    counts = []
    for reduced in (True, False):
        with Stage(cast, reduced=reduced) as stage:
            counts.append(sum(1 for _ in stage.every()))
    assert counts == [30, 78]


def test_a_schedule_with_a_stale_response_is_a_story_that_can_be_told_again(perform, no_close):
    """Its name is who took each step."""
    with perform(READER, 1, warm=True) as stage:
        story = next(schedule for schedule in stage.every() if schedule.violation(initial=0))
        again = stage.replay(story.name)

    assert story.name == "12222"
    assert (again.lines, again.history) == (story.lines, story.history)
    assert story.violation(initial=0).startswith("Schedule 12222:\nT1 lookup: hit\nT2 UPDATE\nT2 lease\nT2 COMMIT\nT2 withdraw\n\n")


def test_a_stale_response_fails_with_its_story(perform, no_close, holds):
    """And says how it is told again."""
    with (
        perform(READER, 1, warm=True) as stage,
        pytest.raises(pytest.fail.Exception, match=r"Schedule 12222:(.|\n)*Again, alone: pytest '.*' --schedule=12222"),
    ):
        holds(stage.replay("12222"))


def test_a_schedule_that_the_code_does_not_follow_any_longer_says_where(perform):
    with perform(READER, 1) as stage:
        for name in ("11", "2222222"):
            with pytest.raises(ValueError, match=f"and there schedule {name} cannot be followed"):
                stage.replay(name)


def test_who_is_no_actor_passes(perform):
    """The spec itself may write, and waits for nobody's turn."""
    with perform(READER) as stage:
        Property.objects.update(price=7)
        assert stage.run(first).violation(initial=0) is None


def test_what_an_actor_raises_is_raised(perform):
    def act():
        raise LookupError("no such property")

    with Stage(lambda: [Actor("read", act)]) as stage, pytest.raises(LookupError, match="no such property"):
        stage.run(first)


def test_actors_that_all_wait_for_each_other_are_named(perform):
    def act():
        here.actor.holds_lock = True
        stand_before(BEGIN)

    with Stage(lambda: [Actor("fault", act), Actor("fault", act)]) as stage, pytest.raises(RuntimeError, match="nobody can go on"):
        stage.run(first)


def test_an_actor_that_does_not_come_back_is_named(monkeypatch, transactional_db):
    monkeypatch.setattr("tests.schedules.TIMEOUT", 0.01)
    forever = Event()
    stage = Stage(lambda: [Actor("fault", forever.wait)])
    with pytest.raises(RuntimeError, match="and there T1 does not come back"):
        stage.run(first)
    forever.set()
    monkeypatch.undo()
    with stage:
        pass
