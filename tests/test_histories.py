"""Histories that nobody thought of. Whatever is written, in whatever order: the cached answer is the database's, byte for byte."""

from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import transaction
from django.test import Client
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from conftest import DOORS, a_property, ask, forget_everything, saved
from housing.models import Agent, Location, Office, Property, PropertyImage

CITIES, PRICES = ["Springfield", "Shelbyville"], [100, 200, 300]
MODELS = st.sampled_from([Property, Agent, Office, Location, PropertyImage])
COLUMNS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    Property: {
        "title": st.sampled_from(["A barn", "A castle"]),
        "status": st.sampled_from(Property.Status.values),
        "property_type": st.sampled_from(Property.Type.values),
        "price": st.sampled_from(PRICES),
        "bedrooms": st.sampled_from([None, 1, 4]),
    },
    Agent: {"name": st.sampled_from(["Ann", "Bob"])},
    Office: {"name": st.sampled_from(["Harbour", "Hill"])},
    Location: {"city": st.sampled_from(CITIES), "zip_code": st.sampled_from(["1", "2"])},
    PropertyImage: {"caption": st.sampled_from(["front", "back"])},
}
OWNERS = {Property: ["agent", "location"], Agent: ["office"], PropertyImage: ["property"]}
FILTERS = st.fixed_dictionaries(
    {"page_size": st.sampled_from([1, 2, 20])},
    optional={
        "city": st.sampled_from(CITIES),
        "status": st.sampled_from(Property.Status.values),
        "property_type": st.sampled_from(Property.Type.values),
        "agent": st.integers(1, 4),
        "office": st.integers(1, 4),
        "min_price": st.sampled_from(PRICES),
        "max_price": st.sampled_from(PRICES),
        "min_bedrooms": st.sampled_from([0, 2]),
        "search": st.sampled_from(["barn", "garden"]),
        "ordering": st.sampled_from(["created_at", "-created_at", "price", "-price"]),
    },
)


class History(RuleBasedStateMachine):
    """Writes of every kind, inside transactions and out, and readers in between."""

    warm: set[str]

    @initialize()
    def a_small_portal(self):
        """Three properties, and nothing remembered."""
        for model in (PropertyImage, Property, Agent, Office, Location):
            model.objects.all().delete()
        homes = saved(*(a_property(number, price=PRICES[number], location=Location(city=CITIES[number % 2])) for number in range(3)))
        PropertyImage.objects.create(property=homes[0], url="https://images.example.com/0.jpg")
        forget_everything()
        self.client, self.warm = Client(), set()

    def some(self, model, choice):
        """One of the rows there are; a new one where there is none."""
        rows = list(model.objects.order_by("pk")) or [self.anew()[model]]
        return rows[choice % len(rows)]

    def anew(self):
        """A property with all that hangs on it, by model."""
        [home] = saved(a_property(price=PRICES[0]))
        image = PropertyImage.objects.create(property=home, url="https://images.example.com/0.jpg")
        return {Property: home, Agent: home.agent, Office: home.agent.office, Location: home.location, PropertyImage: image}

    def saves(self, data):
        """A save that Hypothesis draws: which row, which column or owner, blind or not, after a locked read or not."""
        model, choice = data.draw(MODELS), data.draw(st.integers(0, 9))
        row = self.some(model, choice)
        locked = data.draw(st.booleans())
        with transaction.atomic():
            if locked:
                row = model.objects.select_for_update().get(pk=row.pk)
            column = data.draw(st.sampled_from([*COLUMNS[model], *OWNERS.get(model, [])]))
            if column in COLUMNS[model]:
                setattr(row, column, data.draw(COLUMNS[model][column]))
            else:
                setattr(row, column, self.some(model._meta.get_field(column).related_model, data.draw(st.integers(0, 9))))
            row.save(update_fields=data.draw(st.sampled_from([None, [column]])))

    def creates_an_image(self, data):
        """A new image of some property."""
        PropertyImage.objects.create(property=self.some(Property, data.draw(st.integers(0, 9))), url="https://images.example.com/new.jpg")

    def creates_a_property(self, data):
        """A new property, by a save."""
        some = a_property(data.draw(st.integers(0, 3)), price=data.draw(st.sampled_from(PRICES)), agent=self.some(Agent, 0), location=self.some(Location, 0))
        some.save()

    def deletes(self, data):
        """A row, with what hangs on it."""
        self.some(data.draw(MODELS), data.draw(st.integers(0, 9))).delete()

    def updates(self, data):
        """Rows at once, of which no signal speaks."""
        Property.objects.filter(price=data.draw(st.sampled_from(PRICES))).update(price=data.draw(st.sampled_from(PRICES)))

    WRITES = ("saves", "saves", "saves", "creates_an_image", "creates_a_property", "deletes", "updates")

    @rule(data=st.data())
    def write(self, data):
        """One write, committed by itself."""
        getattr(self, data.draw(st.sampled_from(self.WRITES)))(data)

    @rule(data=st.data(), fates=st.lists(st.booleans(), min_size=1, max_size=3), commits=st.booleans())
    def write_in_a_transaction(self, data, fates, commits):
        """Several, each under a savepoint with a fate of its own."""
        with transaction.atomic():
            for released in fates:
                with transaction.atomic():
                    getattr(self, data.draw(st.sampled_from(self.WRITES)))(data)
                    transaction.set_rollback(not released)
            transaction.set_rollback(not commits)

    @rule(asked=FILTERS, steps=st.lists(st.sampled_from(["next", "next", "previous"]), max_size=3))
    def read_a_list(self, asked, steps):
        """A page, and pages beside it; where there is none, the same again."""
        link = f"?{urlencode(asked)}"
        for step in steps:
            link = self.read(link).json[step] or link
        self.read(link)

    @rule(choice=st.integers(0, 9))
    def read_a_detail(self, choice):
        """One property."""
        self.read(f"/{self.some(Property, choice).pk}")

    @precondition(lambda self: self.warm)
    @rule(choice=st.integers(0, 99))
    def read_again(self, choice):
        """What was read before: most likely to be remembered, and so to be stale."""
        self.read(sorted(self.warm)[choice % len(self.warm)])

    def read(self, what):
        """The promise."""
        cached, truth = ask(self.client, f"cached{what}"), ask(self.client, f"optimized{what}")
        assert (cached.status, cached.body) == (truth.status, truth.body)
        self.warm.add(what)
        return cached


@pytest.mark.usefixtures("transactional_db")
def test_no_history_of_writes_makes_an_answer_stale():
    """Drawn by Hypothesis, the same in every run; a failing history shrinks to its shortest."""
    assert set(DOORS) >= {"cached", "optimized"}
    run_state_machine_as_test(
        History,
        settings=settings(max_examples=25, stateful_step_count=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)),
    )
