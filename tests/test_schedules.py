"""Every order. What `test_races.py` tells one by one holds in each order of the steps of readers and writers, and with a kill at each of them.

The long ones run with `make races`.
"""

from copy import copy

import pytest
from django.core.cache import cache
from django.test import Client
from django_redis import get_redis_connection

from conftest import a_property, ask, forget_everything, saved
from housing.cache.journal import journal
from housing.models import Property
from tests.schedules import Actor, Stage, stand_before

READER, FLUSH = "a reader", "Redis"


def forget():
    """FLUSHALL, as far as we are concerned: the server may be somebody else's too."""
    stand_before("forgets everything")
    client = get_redis_connection("default")
    client.delete(*client.scan_iter(cache.make_key("*")))


@pytest.fixture
def timeless(settings):
    """No lease runs out, and nobody's patience, because the machine is slow."""
    settings.HOUSING_LEASE = settings.HOUSING_PATIENCE = 3600.0
    journal.forget_server()  # the settings are in the script's text
    yield
    journal.forget_server()


@pytest.fixture
def perform(transactional_db, handler, timeless):
    """`perform("reader", 1, 2, warm=True, …)`: a stage for a reader of the list and two writers of its one property's price, which is 0 at first."""
    [home] = saved(a_property())
    home = Property.objects.get()

    def read(door="cached"):
        client = Client()
        client.handler = handler
        return int(float(ask(client, door).rows[0]["price"]))

    def write(price):
        mine = copy(home)
        mine.price = price
        mine.save(update_fields=["price"])

    def actor(what, kills):
        if what == READER:
            return Actor("read", read, kills=kills)
        if what == FLUSH:
            return Actor("fault", forget)
        return Actor("write", lambda: write(what), writes=what, kills=kills)

    def perform(*who, warm=False, kills=False, **bounds):
        def cast():
            Property.objects.update(price=0)
            forget_everything()
            if warm:
                read()
            return [actor(what, kills) for what in who]

        return Stage(cast, lambda: [read(), read("optimized"), read()], **bounds)

    return perform


def complete(stage):
    """See every schedule of a stage to be linearizable; how many there are."""
    with stage:
        return sum(holds(schedule) for schedule in stage.every())


def holds(schedule):
    """True, or else the story."""
    if wrong := schedule.violation(initial=0):
        pytest.fail(wrong, pytrace=False)
    return True


SHORT = {
    "one reader, one writer": ([READER, 1], {}, 35),
    "one reader, one writer, warm": ([READER, 1], {"warm": True}, 20),
    "one reader, one writer, kills": ([READER, 1], {"kills": True}, 0),
    "two readers": ([READER, READER], {"kills": True}, 0),
    "one reader, one writer, Redis forgets": ([READER, 1, FLUSH], {}, 0),
}


@pytest.mark.parametrize("story", SHORT)
def test_in_every_order_a_reader_sees_the_last_write(perform, story):
    who, how, count = SHORT[story]
    assert complete(perform(*who, **how)) == count
