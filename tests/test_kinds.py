"""Every kind of model. A write to any kind of relation, key or parent is in the next read, and other pages stay warm."""

from functools import partial

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection, models, transaction
from django.db.models.signals import class_prepared

from housing.freshness.statements import written_tables
from housing.freshness.tracking import tables, text_of
from housing.models import Property
from tests.fixtures.rows import ids, locked_save, put, relabelled, renamed, retitled, save

pytest_plugins = ["tests.fixtures.kinds"]

STORED, HIT, STALE = "fwd=miss; stored", "hit", "fwd=stale; stored"

BY_ID = Property.objects.order_by("id")

READS = {
    "a many-to-many filter with distinct()": (
        lambda it: ids(it.Node.objects.filter(labels__word="good").distinct()),
        lambda it: it.node.labels.add(it.label),
        lambda it: put(it.node, word="Other"),
    ),
    "a text primary key": (
        lambda it: [one.word for one in it.Label.objects.filter(pk="a*|\n'\"")],
        lambda it: put(it.strange, word="Other"),
        relabelled,
    ),
    "rows that refer to a text primary key": (
        lambda it: ids(it.strange.nodes.all()),
        lambda it: put(it.node, label=it.strange),
        lambda it: put(it.node, label=it.label),
    ),
    "a UUID primary key": (
        lambda it: [[one.text, ids(one.responses.all())] for one in it.Remark.objects.filter(pk=it.remark.pk)],
        lambda it: it.Remark.objects.create(about=it.home, answered=it.remark),
        lambda it: it.Remark.objects.create(about=it.home),
    ),
    "a foreign key with to_field": (
        lambda it: ids(it.town.streets.all()),
        lambda it: it.Street.objects.create(town=it.town),
        lambda it: it.Street.objects.create(town=it.Town.objects.create(slug="b")),
    ),
    "a composite primary key": (
        lambda it: list(it.Membership.objects.values_list("pk", "note", "office_id", "office__name")),
        lambda it: put(it.other.agent.office, name="Other"),
        lambda it: put(it.homes[9].agent.office, name="Other"),
    ),
    "a row by its composite primary key": (
        lambda it: it.Membership.objects.get(pk=(it.home.agent_id, 1)).note,
        lambda it: it.Membership.objects.filter(number=1).update(note="Other"),
        lambda it: put(it.other, title="Other"),
    ),
    "an inherited model": (
        lambda it: [[one.title, one.pools] for one in it.Villa.objects.all()],
        lambda it: put(Property.objects.get(pk=it.villa.pk), title="Other"),
        retitled,
    ),
    "the parent of an inherited model": (
        lambda it: [home.title for home in BY_ID.all()],
        lambda it: put(it.villa, title="Other"),
        lambda it: put(it.villa, pools=9),
    ),
    "a child row, reached from its parent": (
        lambda it: [home.villa.pools if hasattr(home, "villa") else None for home in BY_ID.select_related("villa")],
        lambda it: put(it.villa, pools=9),
        renamed,
    ),
    "a generated column": (
        lambda it: ids(it.Node.objects.filter(double=8)),
        lambda it: put(it.node, rank=4),
        lambda it: it.Label.objects.create(pk="new"),
    ),
    "a foreign key to the same model": (
        lambda it: [one.parent and one.parent.word for one in it.Node.objects.select_related("parent")],
        lambda it: it.Node.objects.filter(word="child").update(parent=it.Node.objects.create(word="late", rank=1)),
        relabelled,
    ),
    "a filter through a foreign key to the same model, whose target changes": (
        lambda it: ids(it.Node.objects.filter(parent__label=it.label)),
        lambda it: put(it.node.parent, label=it.label),
        lambda it: put(it.node.parent, word="Other"),
    ),
    "a filter through a foreign key to the same model, which gets another target": (
        lambda it: ids(it.Node.objects.filter(parent__label=it.label)),
        lambda it: put(it.node, parent=it.Node.objects.create(word="late", rank=1, label=it.label)),
        lambda it: put(it.node, word="Other"),
    ),
    "a filter through a foreign key to the same model, which leads to the row itself": (
        lambda it: ids(it.Node.objects.filter(parent__label=it.label)),
        lambda it: put(it.node, parent=it.node, label=it.label),
        lambda it: put(it.node, word="Other"),
    ),
    "a nullable foreign key": (
        lambda it: [one.agent and one.agent.name for one in it.Node.objects.select_related("agent")],
        lambda it: it.home.agent.delete(),
        lambda it: put(it.other.agent, name="Other"),
    ),
    "a foreign key without a constraint": (
        lambda it: list(it.Node.objects.order_by("id").values_list("id", "anywhere__word")),
        lambda it: it.Label.objects.create(pk="nowhere", word="Here"),
        lambda it: put(it.node, word="Other"),
    ),
    "a foreign key without a constraint whose target appears": (
        lambda it: list(it.Node.objects.order_by("id").values_list("id", "anywhere__word")),
        lambda it: put(it.node.parent, anywhere_id="good"),
        lambda it: put(it.node.parent, word="Other"),
    ),
    "a row created again under the key of one deleted in the same transaction": (
        lambda it: ids(it.Node.objects.filter(label__word="Again")),
        lambda it: replaced(it.strange, word="Again"),
        lambda it: put(it.node, word="Other"),
    ),
    "a one-to-one field": (
        lambda it: it.Profile.objects.select_related("node").get().node.word,
        lambda it: put(it.node, word="Other"),
        lambda it: put(it.node.parent, word="Other"),
    ),
    "the reverse of a one-to-one field, created later": (
        lambda it: [hasattr(one, "badge") for one in it.Node.objects.order_by("id").select_related("badge")],
        lambda it: it.Badge.objects.create(node=it.node, rank=1),
        relabelled,
    ),
    "the reverse of a one-to-one field, loaded separately": (
        lambda it: hasattr(it.Node.objects.get(pk=it.node.pk), "badge"),
        lambda it: it.Badge.objects.create(node=it.node, rank=1),
        relabelled,
    ),
    "the reverse of a one-to-one field, moved from another row": (
        lambda it: [hasattr(one, "profile") for one in it.Node.objects.filter(word="root").select_related("profile")],
        lambda it: put(it.node.profile, node=it.node.parent),
        lambda it: put(it.node.profile, word="Other"),
    ),
    "a foreign key with a db_default": (
        lambda it: it.label.guided.count(),
        lambda it: it.Stop.objects.create(tour=it.tour, home=it.home),
        lambda it: it.Stop.objects.create(tour=it.tour, home=it.home, guide=it.strange),
    ),
    "an indexed column with a db_default": (
        lambda it: it.Stop.objects.filter(fee="7.50").count(),
        lambda it: it.Stop.objects.create(tour=it.tour, home=it.home),
        lambda it: it.Label.objects.create(pk="new"),
    ),
    "the last row of a table whose name has a |": (
        lambda it: ids(it.Street.objects.order_by("-id")[:1]),
        lambda it: it.Street.objects.create(town=it.town),
        lambda it: it.Label.objects.create(pk="new"),
    ),
    "rows that the database deletes by cascade, where Django has DB_CASCADE": (
        lambda it: ids(it.Pet.objects.all()),
        lambda it: it.town.delete(),
        lambda it: it.Town.objects.create(slug="b"),
    ),
    "a generic foreign key": (
        lambda it: [one.about.title for one in it.Remark.objects.filter(pk=it.remark.pk).prefetch_related("about")],
        retitled,
        lambda it: put(it.other, title="Other"),
    ),
    "a generic relation": (
        lambda it: [[one.text for one in notice.remarks.all()] for notice in it.Notice.objects.prefetch_related("remarks")],
        lambda it: it.notice.remarks.create(text="New"),
        retitled,
    ),
    "a filter through a generic relation": (
        lambda it: ids(it.Notice.objects.filter(remarks__text="New")),
        lambda it: it.notice.remarks.create(text="New"),
        lambda it: put(it.remark, data={"a": 2}),
    ),
    "a generic relation that gains a row of another one": (
        lambda it: ids(it.Notice.objects.filter(remarks__text="home")),
        lambda it: put(it.another_remark, content_type=ContentType.objects.get_for_model(it.Notice)),
        retitled,
    ),
    "a many-to-many field with a through model": (
        lambda it: [[tour.name, ids(tour.stops.order_by("stop__minutes"))] for tour in it.Tour.objects.all()],
        lambda it: it.Stop.objects.filter(home=it.home).update(minutes=9),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "an unmanaged model over a view": (lambda it: [one.title for one in it.Cheap.objects.all()], lambda it: put(it.home, price=1), None),
    "a model of another app": (lambda it: [user.username for user in User.objects.all()], lambda it: User.objects.create_user("somebody"), retitled),
    "a column that another app calls created_at": (
        lambda it: [one.created_at for one in it.Notice.objects.all()],
        lambda it: save(it.notice, created_at="2001-01-01T00:00:00Z"),
        retitled,
    ),
    "JSON whose number becomes true": (
        lambda it: ids(it.Remark.objects.filter(data={"a": True})),
        lambda it: locked_save(it.remark, data={"a": True}),
        retitled,
    ),
}
"""Kind of model → a function that reads it for a page, a write that changes the page, and one that does not."""


@pytest.mark.parametrize("kind", READS)
def test_a_write_is_in_the_next_read_for_every_kind_of_model(furnished, fresh, kind):
    """A write that does not touch the page leaves it warm."""
    look, write, untouched = READS[kind]

    fresh(partial(look, furnished), partial(write, furnished), untouched and partial(untouched, furnished))


@transaction.atomic
def replaced(row, **fields):
    """Delete a row and create another one under its key. The database checks the foreign keys at COMMIT and finds them intact."""
    type(row)._base_manager.filter(pk=row.pk)._raw_delete("default")
    type(row)._base_manager.create(pk=row.pk, **fields)


MANY_TO_MANY = {
    "add()": lambda node, label, other: node.labels.add(other),
    "remove()": lambda node, label, other: node.labels.remove(label),
    "set()": lambda node, label, other: node.labels.set([other]),
    "clear()": lambda node, label, other: node.labels.clear(),
    "create()": lambda node, label, other: node.labels.create(pk="new"),
    "add() from the reverse side": lambda node, label, other: other.marked.add(node),
    "remove() from the reverse side": lambda node, label, other: label.marked.remove(node),
    "a row of the through model": lambda node, label, other: type(node).labels.through.objects.create(node=node, label=other),
    "deletion of the related row": lambda node, label, other: label.delete(),
}
"""Name of a way to change a many-to-many field → a function that does it."""


@pytest.mark.parametrize("way", MANY_TO_MANY)
def test_a_change_to_a_many_to_many_field_is_in_the_next_read(furnished, page, way):
    """The page of another row stays warm."""
    it = furnished
    it.node.labels.add(it.label)
    mine, another = (page(partial(labels_of, it, key)) for key in (it.node.pk, it.node.parent_id))
    before = mine().json
    assert [response().came_from for response in (mine, another, mine, another)] == [HIT, STORED, HIT, HIT]

    MANY_TO_MANY[way](it.node, it.label, it.strange)

    after = mine()
    assert (after.json, after.came_from, another().came_from) == (labels_of(it, it.node.pk), STALE, HIT)
    assert after.json != before


def labels_of(it, key):
    """The labels of a node, as a detail shows them."""
    return [[one.word, sorted(ids(one.labels.all()))] for one in it.Node.objects.filter(pk=key).prefetch_related("labels")]


def test_sql_that_writes_a_database_view_invalidates_every_table(furnished):
    """A view may be updatable. Its statement does not show which tables it writes."""
    every = written_tables("UPDATE legacy_view SET x = 1")
    assert {"housing_property", "housing_cheap"} <= every

    assert written_tables("UPDATE housing_cheap SET title = 'x'") == every


@pytest.mark.parametrize("rows", ["it", "furnished"], ids=["untracked", "tracked"])
def test_a_write_to_an_unmanaged_model_over_a_view_is_in_the_next_read(request, rows, page):
    """The model may be a view of any table, whether it is tracked or not."""
    it = request.getfixturevalue(rows)
    put(it.home, price=1)
    response = page(lambda: [home.title for home in BY_ID.all()])
    response()
    it.Cheap.objects.filter(pk=it.home.pk).update(title="Other")
    assert response().json[0] == "Other"


def test_sql_that_writes_a_table_with_capital_letters_invalidates_it(it, page):
    """PostgreSQL folds unquoted names to lower case, and both servers keep the case of quoted ones."""
    town = it.Town.objects.create(slug="a")
    response, other_page = page(lambda: [one.slug for one in it.Town.objects.all()]), page(lambda: ids(BY_ID.all()))
    response(), other_page()

    with connection.cursor() as cursor:
        cursor.execute("""UPDATE "Towns" SET slug = 'b' WHERE id = %s""", [town.pk])

    assert (response().json, other_page().came_from) == (["b"], HIT)


def test_sql_that_writes_a_table_whose_name_is_quoted_in_the_model_invalidates_it(furnished, page):
    """Django takes the name as it is, with its quotes."""
    it = furnished
    response, other_page = page(lambda: [one.name for one in it.Pet.objects.all()]), page(lambda: ids(BY_ID.all()))
    response(), other_page()

    with connection.cursor() as cursor:
        cursor.execute("""UPDATE "All Pets" SET name = 'Rex'""")

    assert (response().json, other_page().came_from) == (["Rex"], HIT)


def test_tracking_a_model_also_tracks_its_parents_and_many_to_many_tables(kinds, settings):
    """A row of the model is in the tables of its parents, too."""
    settings.FRESHNESS_MODELS = ["housing.Castle"]

    assert tables().keys() == {"housing_castle", "housing_node", "housing_node_labels", "housing_node_friends"}


@pytest.mark.parametrize(
    "field",
    [models.CharField(db_collation="nocase"), models.EmailField(), models.DecimalField(), models.DateTimeField()],
    ids=lambda field: type(field).__name__,
)
def test_values_that_a_database_may_treat_as_equal_are_never_compared_as_text(field):
    """Examples are `a` and `A` under a collation, 1.0 and 1.00, and one instant in two time zones. EmailField stands for unknown fields."""
    assert text_of(field) is None


def test_two_models_of_one_table_are_tracked_as_one(kinds, settings):
    """The engine relies only on columns that both models define alike."""

    class Legacy(models.Model):
        agent_id = models.IntegerField()

        class Meta:
            app_label = "housing"
            db_table = "housing_property"
            managed = False

    try:
        settings.FRESHNESS_MODELS = ["housing", "housing.Legacy"]
        table = tables()["housing_property"]
        assert (table.pk, table.managed, table.references.keys()) == ("id", True, set())
    finally:
        del apps.all_models["housing"]["legacy"]
        apps.clear_cache()
        class_prepared.send(Legacy)  # the engine reads the models again
