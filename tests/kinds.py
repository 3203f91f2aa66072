"""Fixtures for the specs of dependencies: models of every kind that Django has, and cached views that read them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import connection, models, transaction
from django.db.models import F, Model
from django.urls import path
from rest_framework.generics import GenericAPIView
from rest_framework.response import Response

from housing import urls
from housing.freshness import CachedView, tracking
from housing.models import Agent, Office, Property

ADDRESSES = count(1)

THROUGH = "UPDATE housing_property SET title = NEW.title WHERE id = NEW.id"
"""The statement that a trigger runs instead of an UPDATE of the view."""


class Kind(models.Model):
    """The base class of these models. They belong to the app housing, so that the engine tracks them."""

    class Meta:
        abstract = True
        app_label = "housing"


@contextmanager
def registered(*made: type[Model]) -> Iterator[None]:
    """Create the tables of these new models, and afterwards drop them and forget the models."""
    with connection.schema_editor() as editor:
        for model in made:
            if model._meta.managed and not model._meta.proxy:
                editor.create_model(model)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            for model in reversed(made):
                if model._meta.managed and not model._meta.proxy:
                    editor.delete_model(model)
        for model in made:
            forget(model)


def forget(model: type[Model]) -> None:
    """Remove a model and its through models from Django's registry, and make the engine read the models again."""
    for each in (model, *(field.remote_field.through for field in model._meta.local_many_to_many)):
        apps.all_models[each._meta.app_label].pop(each._meta.model_name, None)
    apps.clear_cache()
    tracking.forget()


def zoo() -> list[type[Model]]:
    """Models with text keys, foreign keys to the same model, to text and without a constraint, one-to-one and many-to-many fields, and inheritance."""

    class Label(Kind):
        code = models.CharField(max_length=20, primary_key=True)
        word = models.CharField(max_length=20)

    class Node(Kind):
        word = models.CharField(max_length=20)
        rank = models.IntegerField()
        double = models.GeneratedField(expression=F("rank") * 2, output_field=models.IntegerField(), db_persist=True)
        parent = models.ForeignKey("self", models.SET_NULL, null=True, related_name="children")
        label = models.ForeignKey(Label, models.CASCADE, null=True, related_name="nodes")
        agent = models.ForeignKey(Agent, models.SET_NULL, null=True, related_name="nodes")
        anywhere = models.ForeignKey(Label, models.DO_NOTHING, db_constraint=False, default="a", related_name="from_anywhere")
        labels = models.ManyToManyField(Label, related_name="marked")
        friends = models.ManyToManyField("self")

    class Profile(Kind):
        node = models.OneToOneField(Node, models.CASCADE, related_name="profile")
        word = models.CharField(max_length=20)

        class Meta(Kind.Meta):
            ordering = ["node__label__word", "pk"]

    class Badge(Kind):
        node = models.OneToOneField(Node, models.CASCADE, primary_key=True, related_name="badge")
        rank = models.IntegerField()

    class Castle(Node):
        towers = models.IntegerField()
        keeper = models.ForeignKey(Agent, models.CASCADE, null=True, related_name="castles")

        class Meta:
            app_label = "housing"

    return [Label, Node, Profile, Badge, Castle]


def others() -> list[type[Model]]:
    """Models with a parent in the service, a through model, a composite key, a UUID, generic relations, DB_CASCADE, and a database view."""

    class Villa(Property):
        pools = models.IntegerField(default=1)

        class Meta:
            app_label = "housing"

    class Tour(Kind):
        name = models.CharField(max_length=20)
        stops = models.ManyToManyField(Property, through="housing.Stop", related_name="tours")

    class Stop(Kind):
        tour = models.ForeignKey(Tour, models.CASCADE)
        home = models.ForeignKey(Property, models.CASCADE)
        minutes = models.IntegerField(default=5)
        guide = models.ForeignKey("housing.Label", models.DO_NOTHING, db_constraint=False, db_default="good", related_name="guided")

    class Membership(Kind):
        pk = models.CompositePrimaryKey("agent_id", "number")
        agent = models.ForeignKey(Agent, models.CASCADE, related_name="+")
        office = models.ForeignKey(Office, models.CASCADE, related_name="+")
        number = models.IntegerField()
        note = models.CharField(max_length=20)

    class Remark(Kind):
        id = models.UUIDField(primary_key=True, default=uuid.uuid4)
        content_type = models.ForeignKey(ContentType, models.CASCADE, related_name="+")
        object_id = models.IntegerField()
        about = GenericForeignKey()
        text = models.CharField(max_length=20, default="")
        data = models.JSONField(default=dict)
        answered = models.ForeignKey("self", models.CASCADE, null=True, related_name="responses")

    class Notice(Kind):
        created_at = models.DateTimeField(null=True)
        remarks = GenericRelation(Remark)

    class Town(Kind):
        slug = models.SlugField(unique=True)

        class Meta(Kind.Meta):
            db_table = "Towns"

    class Street(Kind):
        town = models.ForeignKey(Town, models.CASCADE, to_field="slug", related_name="streets")
        name = models.CharField(max_length=20, default="")

    class Lodger(Kind):
        town = models.ForeignKey(Town, getattr(models, "DB_CASCADE", models.CASCADE), related_name="lodgers")

    class Pet(Kind):
        owner = models.ForeignKey(Lodger, getattr(models, "DB_CASCADE", models.CASCADE), related_name="pets")

    class Cheap(Kind):
        title = models.CharField(max_length=200)

        class Meta(Kind.Meta):
            managed = False
            db_table = "housing_cheap"

    return [Villa, Tour, Stop, Membership, Remark, Notice, Town, Street, Lodger, Pet, Cheap]


@contextmanager
def every_kind() -> Iterator[SimpleNamespace]:
    """All of these models by name. Random queries use those in `zoo`."""
    random, further = zoo(), others()
    view = further[-1]
    with registered(*random, *further):
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE VIEW {view._meta.db_table} AS SELECT id, title FROM housing_property WHERE price < 100")
            if connection.vendor == "sqlite":  # PostgreSQL needs no trigger to write through a view of one table
                cursor.execute(f"CREATE TRIGGER through_cheap INSTEAD OF UPDATE ON {view._meta.db_table} BEGIN {THROUGH}; END")
        yield SimpleNamespace(zoo=random, **{model.__name__: model for model in (*random, *further)})
        with connection.cursor() as cursor:
            cursor.execute(f"DROP VIEW {view._meta.db_table}")


@pytest.fixture(scope="module")
def kinds(django_db_setup, django_db_blocker):
    """Models of every kind, with tables that exist during one chapter."""
    with django_db_blocker.unblock():
        with every_kind() as made:
            yield made
        connection.close()


@pytest.fixture
def it(kinds, twenty_properties, settings):
    """The models, and twenty properties: `it.home`, `it.other`, `it.homes`."""
    settings.FRESHNESS_MODELS = ["housing", "contenttypes", "auth.User"]
    ContentType.objects.get_for_models(Property, kinds.Notice)  # Django caches these in memory
    return SimpleNamespace(homes=twenty_properties, home=twenty_properties[0], other=twenty_properties[1], **vars(kinds))


@pytest.fixture
def page(settings, read):
    """`page(look)`: a cached view whose response is the result of `look()`. Call the returned function to read it."""

    def page(look):
        class Looking(GenericAPIView):
            def get(self, request, **_):
                return Response(look())

        return served(type("Look", (CachedView, Looking), {}))

    def served(view):
        address = f"look/{next(ADDRESSES)}/"
        views.append(path(address, view.as_view()))
        settings.ROOT_URLCONF = (*views, *urls.urlpatterns)
        return partial(read, f"/{address}")

    views = []
    page.served = served
    return page


@pytest.fixture
def fresh(page):
    """`fresh(look, write, untouched)`: the write `untouched()` leaves the page of `look()` warm, and `write()` is in its next read."""

    def fresh(look, write, untouched=None):
        response = page(look)
        before = response()
        assert (before.came_from, response().came_from) == ("fwd=miss; stored", "hit")
        if untouched:
            untouched()
            assert response().came_from == "hit", "The page is stale after a write that does not touch it."
        write()
        after = response()
        with transaction.atomic():
            truth = response()
        assert truth.body != before.body, "The write did not change the page, so this example proves nothing."
        assert (after.body, after.came_from) == (truth.body, "fwd=stale; stored")

    return fresh


@pytest.fixture
def furnished(it, settings):
    """A few rows of each kind."""
    settings.FRESHNESS_MODELS = [*settings.FRESHNESS_MODELS, "housing.Cheap"]
    it.label, it.strange = it.Label.objects.create(pk="good", word="good"), it.Label.objects.create(pk="a*|\n'\"", word="odd")
    root = it.Node.objects.create(word="root", rank=1, agent=it.home.agent, label=it.strange, anywhere_id="nowhere")
    it.node = it.Node.objects.create(word="child", rank=2, parent=root)
    it.Profile.objects.create(node=it.node)
    it.remark = it.Remark.objects.create(about=it.home, data={"a": 1})
    it.notice = it.Notice.objects.create()
    it.another_remark = it.Remark.objects.create(content_type=it.remark.content_type, object_id=it.notice.pk, text="home")
    it.town = it.Town.objects.create(slug="a")
    it.Pet.objects.create(owner=it.Lodger.objects.create(town=it.town))
    it.Membership.objects.create(agent=it.home.agent, number=1, office=it.other.agent.office, note="x")
    it.villa = it.Villa.objects.create(title="Villa", price=1_000_000, location=it.home.location, agent=it.home.agent)
    it.tour = it.Tour.objects.create(name="A")
    it.tour.stops.add(it.home, through_defaults={"minutes": 1})
    it.tour.stops.add(it.other)
    return it
