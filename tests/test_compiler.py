"""Each statement of Django's compilers says which tags it touches or depends on."""

import types
from contextlib import contextmanager

import pytest
from django.db import connection, connections, transaction
from django.db.models import Exists, F, FilteredRelation, OuterRef, Q
from django.db.models.expressions import RawSQL
from django.db.models.sql.where import WhereNode
from django.http import Http404
from django.shortcuts import get_object_or_404

from housing.freshness import Select, SelectFor, tracking
from housing.freshness.checks import _models_on_path
from housing.freshness.dependencies import Unreadable, read_off, recorded
from housing.freshness.requests import Headers
from housing.freshness.tracking import MANY_ROWS, TRUST
from housing.models import Agent, Office, Property, PropertyImage
from housing.queries import joined, with_images
from housing.serializers import PropertyDetailSerializer, rendered
from housing.views import CachedPropertyDetailView

pytest_plugins = ["tests.fixtures.kinds"]


def touched(write):
    """The tags of a write, by which it invalidates; the write is rolled back."""
    with transaction.atomic():
        write()
        tags = connection._collapsed()
        transaction.set_rollback(True)
    return tags


def dependencies(read):
    """The tags on which a read depends, and why it is not stored if it is not."""
    with recorded() as recording:
        read()
    return recording.tags, recording.complaint


# Writes


def test_a_delete_whose_condition_matches_nothing_touches_nothing(home):
    """Django sends no SQL for it."""
    assert touched(lambda: Property.objects.filter(pk__in=[])._raw_delete("default")) == set()


@pytest.mark.parametrize(
    ("values", "of_its_own"),
    [({"title": "Other"}, set()), ({"title": "Other", "pools": 2}, {"housing_villa", "housing_villa:*", "housing_villa.pools", "housing_villa:{pk}"})],
    ids=["inherited columns", "both"],
)
def test_an_update_of_inherited_columns_touches_the_parents_table(furnished, values, of_its_own):
    """Django updates each table by itself; the rows of the parent are known by then.

    With columns of both tables, Django reads the rows between the announcement and the UPDATE, so that the text of the UPDATE is analysed too:
    it tags the whole table.
    """
    pk, parents = furnished.villa.pk, {"housing_property", "housing_property.title", "housing_property:{pk}"}

    tags = touched(lambda: furnished.Villa.objects.filter(pools=furnished.villa.pools).update(**values))

    assert {tag for tag in tags if "=" not in tag and not tag.startswith(TRUST)} - {"housing_villa:?"} == {tag.format(pk=pk) for tag in parents | of_its_own}


def test_an_insert_that_leaves_a_reference_to_the_database_touches_the_whole_table(it):
    """The database chooses the value, and the statement does not say which."""
    fields = [it.Node._meta.get_field(name) for name in ("word", "rank", "anywhere")]

    tags = touched(lambda: it.Node._base_manager._insert([it.Node(word="x", rank=1)], fields=fields, using="default"))

    assert tags == {"housing_node", "housing_node:*"}


@contextmanager
def cascading_by_the_database(*tracked, settings, monkeypatch):
    """Django's own cascades are taken for those of Django 6.1, which the database carries out; only these models are tracked."""
    monkeypatch.setattr(tracking, "WRITTEN_BY_THE_DATABASE", (types.FunctionType,))
    settings.FRESHNESS_MODELS = tracked
    tracking.forget()
    try:
        yield
    finally:
        monkeypatch.undo()
        tracking.forget()


def test_a_deletion_that_the_database_cascades_tags_the_tables_of_the_deleted_rows(home, settings, monkeypatch):
    """With ON DELETE CASCADE the database deletes rows without Django. If the parent's own table is not tracked, creating or changing a parent tags nothing."""
    image = home.images.first()
    with cascading_by_the_database("housing.PropertyImage", settings=settings, monkeypatch=monkeypatch):
        created = touched(lambda: Property.objects.create(title="New", price=1, location=home.location, agent=home.agent))
        changed = touched(lambda: Property.objects.filter(pk=home.pk).update(price=1))
        PropertyImage.objects.filter(property=home)._raw_delete("default")
        deleted = touched(lambda: Property.objects.filter(pk=home.pk)._raw_delete("default"))

    assert image.pk
    assert (created, changed, deleted) == (set(), set(), {"housing_propertyimage", "housing_propertyimage:*"})


@pytest.mark.only("embedded")
@pytest.mark.parametrize(("row", "statements"), [(0, 1), (MANY_ROWS, 2)])
def test_only_the_first_hundred_locked_rows_are_held(transactional_db, queries, row, statements):
    """The values of further rows are read again, so that a transaction that locks many rows keeps few. (PostgreSQL returns them with the UPDATE.)"""
    Office.objects.bulk_create(Office(name=f"Branch {number}") for number in range(MANY_ROWS + 1))
    with transaction.atomic():
        locked = list(Office.objects.select_for_update().order_by("pk"))
        with queries.exactly(statements, because="an UPDATE, and a SELECT of the old values if the lock does not tell them"):
            locked[row].save()


def test_a_write_on_a_connection_under_an_alias_of_its_own_is_in_the_next_read(home, warm, read):
    """A copy of a connection may have an alias that the settings do not know. It commits by itself all the same."""
    warm()
    stray = connection.copy(alias="stray")
    try:
        stray.cursor().execute("UPDATE housing_office SET name = 'Renamed'")
    finally:
        stray.close()

    assert "stray" not in connections.settings
    assert read("cached").rows[0]["agent"]["office"]["name"] == "Renamed"


# Reads


def test_a_condition_on_many_keys_depends_on_which_rows_there_are(home):
    """Up to a hundred keys are tags of their own."""
    few, _ = dependencies(lambda: list(Property.objects.filter(agent_id__in=range(MANY_ROWS)).only("pk")))
    many, _ = dependencies(lambda: list(Property.objects.filter(agent_id__in=range(MANY_ROWS + 1)).only("pk")))

    assert ("housing_property:+" in few, "housing_property.agent_id=0" in few) == (False, True)
    assert ("housing_property:+" in many, "housing_property.agent_id=0" in many) == (True, False)


def test_a_condition_on_a_list_of_expressions_depends_on_their_columns(home):
    """A change of either column decides which rows match. If one of them were missing, the response could become stale unnoticed."""
    tags, complaint = dependencies(lambda: list(Property.objects.filter(bedrooms__in=[F("bathrooms"), 3])))

    assert complaint is None
    assert {"housing_property.bathrooms", "housing_property.bedrooms", "housing_property:+"} <= tags


def test_a_condition_on_two_columns_at_once_depends_on_both(it):
    """A composite primary key has two columns, and a change of either decides which rows match."""
    tags, complaint = dependencies(lambda: list(it.Membership.objects.filter(pk__in=[(it.home.agent_id, 1)])))

    assert complaint is None
    assert {"housing_membership:+", "housing_membership:-", "housing_membership.agent_id", "housing_membership.number"} <= tags


def test_an_inner_query_with_a_filtered_relation_is_taken_whole(home):
    """The columns of an inner query are not analysed. Depending on all of both tables invalidates more, but a stale response is never served."""
    inner = Agent.objects.alias(mine=FilteredRelation("properties", condition=Q(properties__price__gt=1))).filter(mine__isnull=False, office=OuterRef("pk"))
    tags, complaint = dependencies(lambda: list(Office.objects.filter(Exists(inner))))

    assert complaint is None
    assert {"housing_agent", "housing_property"} <= tags


def test_a_compiled_select_that_cannot_be_read_keeps_its_response_out_of_the_cache(home):
    """It is compiled once and read many times, and each read is refused."""
    select = Select(Property.objects.annotate(one=RawSQL("1", ())).values_list("pk", "one"))

    for _ in range(2):
        _, complaint = dependencies(select.rows)
        assert complaint == ("A query on housing.Property cannot be read: It has raw SQL (RawSQL, extra()), whose tables are unknown. Use expressions instead.")


def test_a_compiled_select_may_be_read_outside_a_fill(home):
    """A shell or a command has no response to cache, so there are no dependencies to record."""
    assert Select(Property.objects.filter(pk=home.pk).values_list("pk")).rows() == [[home.pk]]


# A SELECT that is compiled once for all numbers

NUMBERS = (0, 1, 10**6, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30, SelectFor.SAMPLE)
"""Ids of which two are too large for the column. The first specs of a process may have a property 1."""


def detail(number):
    """The bytes of a cached detail, or the text of its 404."""
    view = CachedPropertyDetailView(kwargs={"id": number})
    try:
        return view.asked(None)[2]()
    except Http404 as error:
        return str(error)


def uncompiled(number):
    """The same from Django's own query, with DRF's serializer."""
    try:
        return rendered(PropertyDetailSerializer().to_representation(get_object_or_404(with_images(joined()), pk=number)))
    except Http404 as error:
        return str(error)


def test_a_compiled_detail_has_the_bytes_and_the_dependencies_of_djangos_own_queries(twenty_properties, queries):
    """Its two SELECTs are compiled once for all ids. A wrong number in a tag would make it stale, and an id that is too large for the column is an error of
    the database.
    """
    existing = {home.pk for home in twenty_properties}
    for number in {*NUMBERS, *existing}:
        with queries.exactly(0 if number >= 2**63 else 2 if number in existing else 1, because="there are no images of a property that does not exist"):
            body = detail(number)
        assert body == uncompiled(number)
        assert dependencies(lambda number=number: detail(number)) == dependencies(lambda number=number: uncompiled(number)), number


@pytest.mark.parametrize(
    "queryset_for",
    [
        lambda number: Property.objects.order_by("pk").values_list("pk")[: number + 1],
        lambda number: Property.objects.filter(title=f"Home {number}").values_list("pk"),
        lambda number: Property.objects.filter(pk=number).values_list("pk") if number < 10**6 else Property.objects.none().values_list("pk"),
        lambda number: PropertyImage.objects.filter(position=number).values_list("pk"),
    ],
    ids=["in the SQL", "in a text", "of no row", "of 16 bits"],
)
def test_a_select_that_differs_in_more_than_its_number_is_compiled_for_each_number(twenty_properties, queryset_for):
    """Two numbers are compiled and compared at first. A slice is part of the SQL, for example, and a small column cannot have the two numbers."""
    select = SelectFor(queryset_for)

    for number in (0, 1, 2, *(home.pk for home in twenty_properties)):
        own = Select(queryset_for(number))
        assert dependencies(select.number(number).rows) == dependencies(own.rows)
        assert select.number(number).rows() == own.rows()


def test_a_compiled_select_has_the_further_scopes_of_its_number(home):
    """Its tags are those of the location. The agent is in its interval."""

    def queryset(number):
        return Property.objects.filter(location=home.location, agent=number).values_list("pk")

    found = []
    for select in (SelectFor(queryset).number(home.agent_id), Select(queryset(home.agent_id))):
        with recorded() as recording:
            select.rows()
        found.append(recording.within)
    assert found[0] == found[1]
    assert f"|and:housing_property.agent_id={home.agent_id}|housing_property:?" in "".join(found[0]).splitlines()


def test_a_select_is_compiled_again_after_the_tracked_models_have_changed(home, settings):
    """The tags that a write has follow from the tracked models, too."""
    page, one = Select(Property.objects.values_list("pk")), SelectFor(lambda key: Property.objects.filter(pk=key).values_list("pk"))
    assert dependencies(page.rows)[1] is dependencies(one.number(home.pk).rows)[1] is None

    settings.FRESHNESS_MODELS = ["housing.Office"]

    for read in (page.rows, lambda: one.number(home.pk).rows()):
        assert dependencies(read)[1] == (
            "A query on housing.Property cannot be read: It reads housing_property, which is not tracked. Add housing.Property to FRESHNESS_MODELS."
        )


def compiled(queryset):
    """The compiler of a queryset, after it has made its SQL."""
    compiler = queryset.query.get_compiler("default")
    compiler.as_sql()
    return compiler


def test_a_column_of_a_table_that_is_not_joined_is_refused(transactional_db):
    """Django makes no such query. If it ever does, nothing is overlooked."""
    compiler = compiled(Property.objects.filter(agent__name="x"))
    compiler.joined = [compiler.query.get_initial_alias()]

    with pytest.raises(Unreadable, match="It has a column of housing_agent, which it does not join"):
        read_off(compiler)


def test_a_condition_of_an_unknown_kind_is_refused(transactional_db):
    """It may read columns that the entry would not be tagged with."""
    compiler = compiled(Property.objects.all())
    compiler.query.where = WhereNode([object()])

    with pytest.raises(Unreadable, match="It has a object, whose columns cannot be read"):
        read_off(compiler)


def test_a_prefetch_of_something_that_is_no_relation_leads_to_no_model():
    """A check looks at metadata alone; what it cannot follow shows when it is read."""
    assert list(_models_on_path(Property, ["neighbours"])) == []


def test_a_view_may_read_headers_that_do_not_change_its_response(rf_noted):
    """Reading `Accept` or `Host` keeps the response cached: only JSON is cached, and the key has the host. A cookie or another header would not."""
    headers, noted = rf_noted
    assert headers["Accept"] == "text/html"
    assert noted == []


@pytest.fixture
def rf_noted(monkeypatch):
    """Headers of a request, and what was noted of them."""
    noted = []
    monkeypatch.setattr("housing.freshness.requests.note", noted.append)
    return Headers({"HTTP_ACCEPT": "text/html"}), noted
