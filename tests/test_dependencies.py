"""The dependencies of a response. The engine derives them from its queries, so a new view is fresh without any other edit."""

import os
from collections import Counter
from functools import partial

import django_filters
import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections, models, transaction
from django.db.models import Count, Exists, F, FilteredRelation, Func, OuterRef, Prefetch, Q, Subquery, Window
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now, RowNumber
from django_filters.rest_framework import DjangoFilterBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.generics import ListAPIView
from rest_framework.serializers import ModelSerializer

from housing.filters import PropertyFilter, Query
from housing.freshness import CachedView, Select
from housing.models import Agent, Office, Property, PropertyImage
from tests.exploration import random_queries
from tests.fixtures.rows import commit_outside, ids, image, office_renamed, put, renamed, retitled

pytest_plugins = ["tests.fixtures.kinds"]

STORED, HIT, STALE, NOT_VERIFIED = "fwd=miss; stored", "hit", "fwd=stale; stored", "fwd=bypass; detail=unverified"


# New filters


def test_a_new_filter_is_fresh_without_any_other_edit(it, page, read):
    """A property whose area grows enters the page, although no list of columns mentions `area`."""

    class AreaFilter(django_filters.FilterSet):
        min_area = django_filters.NumberFilter("area", "gte")

    class Titles(ModelSerializer):
        class Meta:
            model = Property
            fields = ["id", "title"]

    class Homes(CachedView, ListAPIView):
        queryset = Property.objects.order_by("id")
        serializer_class = Titles
        filter_backends = [DjangoFilterBackend]
        filterset_class = AreaFilter
        pagination_class = None

    large = partial(page.served(Homes), min_area=200)
    assert (large().json, large().came_from) == ([], HIT)

    put(it.home, description="This is not shown.")
    assert large().came_from == HIT

    put(it.home, area=250)
    assert [row["id"] for row in large().json] == [it.home.pk]


def test_a_new_filter_of_the_service_is_fresh_without_any_other_edit(it, read, warm, monkeypatch):
    """The service derives its tags from its queries, too."""

    class AreaFilter(PropertyFilter):
        min_area = django_filters.NumberFilter("area", "gte")

    filters = AreaFilter(queryset=Property.objects.none())
    monkeypatch.setattr(Query, "filters", filters)
    monkeypatch.setattr(Query, "form_class", filters.get_form_class())
    warm(min_area=123)

    put(it.home, description="This is not shown.")
    assert read("cached", min_area=123).came_from == HIT

    put(it.home, area=250)
    assert [row["id"] for row in read("cached", min_area=123).rows] == [it.home.pk]


BY_ID = Property.objects.order_by("id")


def grouped_by(name):
    """The sizes of the groups of equal properties. Django takes names in `group_by`, too."""
    found = Property.objects.order_by().annotate(many=Count("id")).values_list("many")
    found.query.group_by = (name,)
    return found


READS = {
    "an ordering": (
        lambda it: ids(Property.objects.order_by("bedrooms", "id")[:5]),
        lambda it: put(it.homes[15], bedrooms=1),
        lambda it: put(it.homes[15], area=1),
    ),
    "a join": (
        lambda it: list(BY_ID.values_list("id", "location__zip_code")),
        lambda it: put(it.home.location, zip_code="1"),
        lambda it: put(it.home.location, state="X"),
    ),
    "a filter through two joins": (
        lambda it: ids(BY_ID.filter(agent__office__name="Harbour")),
        lambda it: put(it.home.agent.office, name="Harbour"),
        lambda it: put(it.home.agent.office, city="Harbour"),
    ),
    "a foreign key that leads to the filtered column": (
        lambda it: ids(BY_ID.filter(agent__name="Agent 1")),
        lambda it: put(it.home, agent=it.other.agent),
        lambda it: put(it.home, location=it.other.location),
    ),
    "a prefetch": (
        lambda it: [[one.url for one in home.images.all()] for home in BY_ID.filter(pk=it.home.pk).prefetch_related("images")],
        lambda it: put(image(it.home), url="https://x/"),
        lambda it: put(image(it.other), url="https://x/"),
    ),
    "a prefetch with a queryset": (
        lambda it: [
            ids(home.images.all()) for home in BY_ID.filter(pk=it.home.pk).prefetch_related(Prefetch("images", PropertyImage.objects.filter(position=7)))
        ],
        lambda it: put(image(it.home), position=7),
        lambda it: it.other.images.create(url="https://x/", position=6),
    ),
    "a prefetch with a slice": (
        lambda it: [
            ids(home.some) for home in BY_ID.filter(pk=it.home.pk).prefetch_related(Prefetch("images", PropertyImage.objects.order_by("id")[1:2], "some"))
        ],
        lambda it: put(image(it.home), property=it.other),
        lambda it: it.other.images.create(url="https://x/"),
    ),
    "a Subquery": (
        lambda it: list(BY_ID.annotate(first=Subquery(PropertyImage.objects.filter(property=OuterRef("pk")).values("url")[:1])).values_list("first")),
        lambda it: put(image(it.home), url="https://x/"),
        renamed,
    ),
    "Exists": (
        lambda it: list(BY_ID.annotate(has=Exists(PropertyImage.objects.filter(property=OuterRef("pk")))).values_list("id", "has")),
        lambda it: it.homes[9].images.create(url="https://x/"),
        renamed,
    ),
    "a subquery in a filter": (
        lambda it: ids(BY_ID.filter(agent__in=Agent.objects.filter(office__city="Harbour"))),
        lambda it: put(it.home.agent.office, city="Harbour"),
        lambda it: put(image(it.home), url="https://x/"),
    ),
    "Count": (
        lambda it: list(BY_ID.annotate(many=Count("images")).values_list("id", "many")),
        lambda it: image(it.home).delete(),
        lambda it: put(image(it.home), caption="Other"),
    ),
    "a filter by Count": (
        lambda it: ids(BY_ID.annotate(many=Count("images")).filter(many__gte=1)),
        lambda it: it.homes[9].images.create(url="https://x/"),
        None,
    ),
    "GROUP BY": (
        lambda it: list(Property.objects.order_by("status").values("status").annotate(many=Count("id"))),
        lambda it: put(it.home, status="sold"),
        retitled,
    ),
    "GROUP BY a column that is not shown": (
        lambda it: sorted(Property.objects.order_by().values("status").annotate(many=Count("id")).values_list("many")),
        lambda it: put(it.home, status="sold"),
        retitled,
    ),
    "GROUP BY the name of a column": (
        lambda it: sorted(grouped_by("status")),
        lambda it: put(it.home, status="sold"),
        retitled,
    ),
    "a list with a column": (
        lambda it: ids(BY_ID.filter(bedrooms__in=[F("area"), 7])),
        lambda it: put(it.home, area=3),
        retitled,
    ),
    "a join without a primary key": (
        lambda it: sorted(Property.objects.values_list("agent__office__name").order_by()),
        lambda it: put(it.home.agent, office=it.other.agent.office),
        renamed,
    ),
    "a window function": (
        lambda it: list(BY_ID.annotate(of=Window(Count("pk"))).values_list("id", "of")[:2]),
        lambda it: it.homes[9].delete(),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "a filter by a window function": (
        lambda it: ids(it.homes[2].agent.properties.annotate(place=Window(RowNumber(), order_by="-price")).filter(place=1)),
        lambda it: put(it.homes[2], agent=it.other.agent),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "a FilteredRelation": (
        lambda it: list(BY_ID.annotate(front=FilteredRelation("images", condition=Q(images__caption="front"))).values_list("id", "front__url")),
        lambda it: put(image(it.home), caption="front"),
        lambda it: put(image(it.home), position=9),
    ),
    "values()": (lambda it: list(BY_ID.values("id", "status")), lambda it: put(it.home, status="sold"), renamed),
    "values_list() without a primary key": (lambda it: list(BY_ID.values_list("status")), lambda it: put(it.home, status="sold"), retitled),
    "values_list() of a joined row and its foreign key": (
        lambda it: list(BY_ID.values_list("agent_id", "agent__name")[:2]),
        renamed,
        lambda it: put(it.homes[9].agent, name="Other"),
    ),
    "union()": (
        lambda it: sorted(Property.objects.filter(status="sold").values_list("title").union(Agent.objects.values_list("name"))),
        renamed,
        office_renamed,
    ),
    "a join of a union()": (
        lambda it: sorted(BY_ID.order_by().filter(pk=it.home.pk).union(BY_ID.order_by().filter(pk=it.other.pk)).values_list("agent__office__name")),
        office_renamed,
        lambda it: put(image(it.home), url="https://x/"),
    ),
    "a slice with an offset": (lambda it: ids(BY_ID[5:10]), lambda it: it.home.delete(), retitled),
    "a slice of related rows, one of which is moved away": (
        lambda it: ids(it.home.images.order_by("id")[1:]),
        lambda it: put(image(it.home), property=it.other),
        lambda it: it.other.images.create(url="https://x/"),
    ),
    "a slice of rows by id, one of which is deleted": (
        lambda it: ids(BY_ID.filter(pk__in=[it.home.pk, it.other.pk])[1:]),
        lambda it: it.home.delete(),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "related rows, one of which is read and not shown": (
        lambda it: len(list(Select(it.home.images.order_by("id").values_list("id")).rows(shown=1))),
        lambda it: put(image(it.home, 1), property=it.other),
        lambda it: it.other.images.create(url="https://x/"),
    ),
    "rows by id, one of which is read and not shown": (
        lambda it: len(list(Select(BY_ID.filter(pk__in=[it.home.pk, it.other.pk]).values_list("id")).rows(shown=1))),
        lambda it: it.other.delete(),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "the first row shown of many that are read": (
        lambda it: [row[0] for row in Select(Property.objects.order_by("price").values_list("id")).rows(shown=1)],
        lambda it: put(it.homes[9], price=1),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "a row by an id that another row takes": (
        lambda it: sorted(Property.objects.in_bulk([it.home.pk, 10**6])),
        lambda it: put(it.homes[9], id=10**6),
        lambda it: put(it.homes[9], title="Other"),
    ),
    "exists()": (lambda it: Property.objects.filter(area__gt=1).exists(), lambda it: put(it.home, area=2), retitled),
    "count()": (lambda it: it.home.agent.properties.count(), lambda it: put(it.other, agent=it.home.agent), lambda it: put(it.other, title="Other")),
    "count() of a slice": (lambda it: it.home.images.all()[:1].count(), lambda it: it.home.images.all().delete(), renamed),
    "aggregate()": (lambda it: Property.objects.aggregate(most=models.Max("price")), lambda it: put(it.home, price=10**7), retitled),
    "dates()": (
        lambda it: list(Property.objects.dates("created_at", "year")),
        lambda it: put(it.home, created_at="2001-01-01T00:00Z"),
        lambda it: put(it.home, title="X"),
    ),
    "first()": (lambda it: BY_ID.first().title, retitled, lambda it: put(it.other, title="Other")),
    "in_bulk()": (
        lambda it: {key: home.title for key, home in Property.objects.in_bulk([it.home.pk, 10**6]).items()},
        lambda it: Property.objects.create(pk=10**6, title="New", price=1, location=it.home.location, agent=it.home.agent),
        lambda it: put(it.other, title="Other"),
    ),
    "iterator()": (lambda it: [home.title for home in BY_ID.iterator()], lambda it: put(it.other, title="Other"), renamed),
    "relations that are loaded lazily": (
        lambda it: [[home.agent.office.name, [one.url for one in home.images.all()]] for home in BY_ID[:2]],
        office_renamed,
        lambda it: put(it.homes[9].agent.office, name="Other"),
    ),
}
"""Shape of query → a function that runs it for a page, a write that changes the page, and one that does not."""


def test_a_new_row_of_a_joined_table_leaves_the_page_warm(it, page):
    """No property refers to the new row yet. A write that makes one refer to it invalidates the page."""
    response = page(lambda: list(BY_ID.values_list("id", "agent__office__name", "location__city")))
    response()

    Agent.objects.create(name="New", office=Office.objects.create(name="New"))

    assert response().came_from == HIT


def test_a_response_whose_query_can_match_no_row_is_cached(it, page):
    """Django sends no SQL for such a query, and no write can change its result."""
    response = page(lambda: ids(BY_ID.filter(pk__in=[])))

    assert [response().came_from, response().came_from] == [STORED, HIT]


@pytest.mark.parametrize("shape", READS)
def test_a_write_is_in_the_next_read_for_every_shape_of_query(it, fresh, shape):
    """A write that does not touch the page leaves it warm."""
    look, write, untouched = READS[shape]

    fresh(partial(look, it), partial(write, it), untouched and partial(untouched, it))


def test_an_invalidated_row_is_in_the_next_read_of_a_page_that_another_column_of_it_selects(it, page):
    """Another program has changed an agent, and the page shows no property of that agent yet. Only the key is passed to `manage.py cache invalidate`."""
    agent, other = it.home.agent, it.other.agent
    response = page(lambda: ids(BY_ID.filter(agent__email="new@example.com")))
    assert [response().json, response().came_from] == [[], HIT]
    put(other, name="Other")
    assert response().came_from == HIT

    commit_outside(f"UPDATE housing_agent SET email = 'new@example.com' WHERE id = {agent.pk}")
    call_command("cache", "invalidate", "housing.Agent", str(agent.pk), verbosity=0)

    assert response().json == [it.home.pk]


# Responses that are never cached

UNKNOWN = {
    "a model that is not tracked": (lambda: ids(Permission.objects.filter(group__name="x")), "is not tracked. Add auth.Permission to FRESHNESS_MODELS."),
    "a join to a model that is not tracked": (lambda: ids(User.objects.filter(groups__name="x")), "is not tracked. Add auth.Group to FRESHNESS_MODELS."),
    "an unmanaged model that is not tracked": (lambda: ids(apps.get_model("housing.Cheap").objects.all()), "housing_cheap, which is not tracked"),
    "RawSQL": (lambda: list(BY_ID.annotate(x=RawSQL("SELECT 1", [])).values_list("x")), "It has raw SQL (RawSQL, extra()), whose tables are unknown."),
    "RawSQL in a subquery": (
        lambda: ids(BY_ID.filter(agent__in=Agent.objects.annotate(x=RawSQL("1", [])).filter(x=1))),
        "It has raw SQL (RawSQL, extra()), whose tables are unknown.",
    ),
    "extra(select)": (lambda: list(BY_ID.extra(select={"x": "1"}).values_list("x")), "whose tables are unknown. Use expressions instead."),
    "extra(where)": (lambda: ids(BY_ID.extra(where=["1 = 1"])), "It has raw SQL (RawSQL, extra()), whose tables are unknown."),
    "extra(tables)": (lambda: Property.objects.extra(tables=["housing_office"]).exists(), "It uses extra(), whose tables are unknown."),
    "extra(order_by)": (lambda: ids(BY_ID.extra(order_by=["title"])), "It uses extra(), whose tables are unknown."),
    "a function whose template is a query": (
        lambda: list(BY_ID.annotate(x=Func(template="(SELECT MAX(id) FROM housing_office)", output_field=models.IntegerField())).values_list("x")),
        "It has a SELECT in the template of Func, whose tables are unknown.",
    ),
    "a function without a column": (
        lambda: len(BY_ID.annotate(x=Func(function="RANDOM", output_field=models.FloatField()))),
        "It calls RANDOM() without arguments, so its dependencies are unknown.",
    ),
    "Now()": (lambda: ids(BY_ID.filter(created_at__lt=Now())), "It depends on the time of day (Now), which changes without a write."),
    "Now() in a subquery": (
        lambda: ids(BY_ID.filter(agent__in=Agent.objects.filter(properties__created_at__lt=Now()))),
        "It depends on the time of day",
    ),
    "raw()": (lambda: ids(Property.objects.raw("SELECT * FROM housing_property")), "It runs raw SQL, whose tables are unknown: SELECT *"),
    "a cursor": (lambda: by_cursor("SELECT 1"), "It runs raw SQL, whose tables are unknown: SELECT 1"),
    "a union() whose parts have select_related()": (
        lambda: ids(Property.objects.select_related("agent").union(Property.objects.select_related("agent"))),
        "It is a union() whose parts have select_related()",
    ),
    "another database": (lambda: by_cursor("SELECT 1", "elsewhere"), "It reads the database 'elsewhere', but the view is cached for 'default'."),
    "another database of the engine": (lambda: ids(BY_ID.using("twin")), "It reads the database 'twin', but the view is cached for 'default'."),
    "no query": (lambda: "Hello", "It runs no query, so it would never be invalidated."),
}
"""Query whose dependencies the engine cannot know → a function that runs it for a page, and the reason in the log."""


def by_cursor(text, alias="default"):
    """The rows of a statement in SQL."""
    with connections[alias].cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall()


@pytest.fixture
def elsewhere_too(tmp_path):
    """A second database, with Django's own backend, and a third one, with the engine's."""
    connections.databases["twin"] = connection.settings_dict
    connections.databases["elsewhere"] = connection.settings_dict | {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "elsewhere", "OPTIONS": {}}
    yield
    for alias in ("elsewhere", "twin"):
        connections[alias].close()
        del connections[alias], connections.databases[alias]


@pytest.mark.parametrize("query", UNKNOWN)
def test_a_response_whose_dependencies_are_unknown_is_served_and_never_cached(it, page, caplog, elsewhere_too, query):
    """A log line says why, and what to do about it. Other pages are still cached."""
    look, why = UNKNOWN[query]
    response, other_page = page(look), page(lambda: ids(BY_ID.all()))
    other_page()

    for _ in range(2):
        caplog.clear()
        assert (response().status, response().came_from) == (200, NOT_VERIFIED)
        assert [(record.levelname, why in record.message) for record in caplog.records] == [("ERROR", True)] * 2
    assert other_page().came_from == HIT


def test_a_raw_queryset_is_refused_when_its_view_is_loaded(it):
    """The error says which view it is, and what to do."""

    class Raw(CachedView, ListAPIView):
        queryset = Property.objects.raw("SELECT * FROM housing_property")

    with pytest.raises(
        ImproperlyConfigured, match=r"^Raw is cached, and the tables that a RawQuerySet reads are not known. Write its query with Django's models.$"
    ):
        Raw.as_view()


NOT_PROMISED = {
    "A response that compares with the view's own clock is fresh": (
        "`filter(created_at__lte=timezone.now())` is a constant in its query. With `Now()` the response is not cached."
    ),
    "A response that depends on a file, a setting or another service is fresh": "The engine sees only queries.",
    "A response that shows rows kept in memory is fresh": "A queryset that was evaluated before the request sends no query. Call `all()` on it.",
    "A slice without an order is always the same": "The database may choose other rows after any write. Add an `order_by()`.",
}


# Random querysets and writes


EXAMPLES = int(os.environ.get("DEPENDENCIES_EXAMPLES", "200"))
"""The number of random queries. If DEPENDENCIES_EXAMPLES is set, every run draws other ones."""


@pytest.fixture
def filled_tables(kinds, transactional_db, monkeypatch):
    """A few rows of the models that random queries use."""
    monkeypatch.setattr(random_queries, "POOL", [*kinds.zoo, *random_queries.HOUSING])
    with transaction.atomic():
        random_queries.fill(kinds.zoo)


def test_a_response_changes_only_if_a_write_tags_what_it_depends_on(filled_tables, caplog):
    """Queries and writes are random. Every row that a write changes must be tagged, too."""
    caplog.set_level("CRITICAL")
    counted = Counter()

    @settings(
        max_examples=EXAMPLES, derandomize="DEPENDENCIES_EXAMPLES" not in os.environ, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def explore(data):
        counted[random_queries.example(lambda options: options[data.draw(st.integers(0, len(options) - 1))])] += 1

    explore()

    assert counted["apart, the same"] > EXAMPLES / 5, counted
    assert counted["met, changed"] > EXAMPLES / 25, counted
    assert counted["not possible"] < EXAMPLES / 2, counted
