"""Invalidation. A committed write is in the next read, and the pages that it does not touch stay warm."""

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from housing.models import Property, PropertyImage
from tests.fixtures.responses import VARIANTS


def test_a_saved_price_is_in_the_next_read(twenty_properties, read_the_list, queries):
    """An entry is invalidated when the write commits. Nobody waits for a timeout to see the new price."""
    read_the_list()
    home = twenty_properties[0]

    home.price = 395_000
    home.save()

    with queries.exactly(1, because="the COMMIT invalidated the page"):
        assert read_the_list()[0]["price"] == "395000.00"
    with queries.exactly(0, because="the page with the new price is cached"):
        assert read_the_list()[0]["price"] == "395000.00"


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_of_ten_edits_is_in_the_next_read_of_every_variant(twenty_properties, edits_in_the_next_read, metric, variant):
    """The naive and the optimized variant cache nothing, so they show what a fresh read looks like."""
    fresh = edits_in_the_next_read(variant)

    metric("freshness", variant=variant, edits=10, fresh=fresh)
    assert fresh == 10


def test_a_page_cached_with_a_timeout_shows_none_of_ten_edits(twenty_properties, edits_in_the_next_read, settings, metric):
    """Django's `cache_page` shows every reader the old price until the timeout. This also proves that the spec above can fail."""
    settings.ROOT_URLCONF = "tests.measurements.baselines"
    fresh = edits_in_the_next_read("/baselines/cache-page/")

    metric("freshness", variant="cache_page", edits=10, fresh=fresh)
    assert fresh == 0


@pytest.fixture
def edits_in_the_next_read(twenty_properties, read):
    """`edits_in_the_next_read(variant)` saves ten prices, reads after each, and returns how many reads showed the new price."""

    def edits_in_the_next_read(variant):
        fresh, _ = 0, read(variant)
        for home in twenty_properties[:10]:
            home.price += 1
            home.save()
            fresh += {row["id"]: row["price"] for row in read(variant).rows}[home.pk] == f"{home.price:.2f}"
        return fresh

    return edits_in_the_next_read


def test_the_new_name_of_an_office_two_joins_away_is_in_the_next_read(home, warm, read_the_list, read):
    """Both pages show the name, so both depend on the office."""
    warm()
    warm(f"cached/{home.pk}")

    home.agent.office.name = "Harbour & Sons"
    home.agent.office.save()

    assert read_the_list()[0]["agent"]["office"]["name"] == "Harbour & Sons"
    assert read(f"cached/{home.pk}").json["agent"]["office"]["name"] == "Harbour & Sons"


@pytest.mark.parametrize("number", [0, 19], ids=["with images", "without"])
def test_a_deleted_property_is_gone_from_the_next_read(twenty_properties, warm, read_the_list, read, number):
    """The list and the detail both depend on the row."""
    home = twenty_properties[number]
    warm()
    warm(f"cached/{home.pk}")
    was = home.pk

    home.delete()

    assert was not in [row["id"] for row in read_the_list()]
    assert read(f"cached/{was}").status == 404


def test_a_created_property_is_first_in_the_next_read(home, warm, read_the_list):
    """A new row may belong on the page, so the page depends on creations."""
    warm()

    new = Property.objects.create(title="New", price=1, location=home.location, agent=home.agent)

    assert read_the_list()[0]["id"] == new.pk


# Filters, orderings and pages


@pytest.mark.parametrize(
    ("column", "value", "query"),
    [
        ("title", "A lighthouse", "search=lighthouse"),
        ("description", "By the lighthouse.", "search=lighthouse"),
        ("property_type", "land", "property_type=land"),
        ("status", "sold", "status=sold"),
        ("price", 9, "max_price=9"),
        ("price", 900_000, "min_price=900000"),
        ("bedrooms", 9, "min_bedrooms=9"),
    ],
)
def test_a_row_enters_and_leaves_a_filtered_page(home, warm, read_the_list, column, value, query):
    """The row was not on the page, so no tag of the row can invalidate the page. The tag of the column that it filters by does."""
    before = getattr(home, column)
    assert b'"results":[]' in warm(f"cached?{query}")

    setattr(home, column, value)
    home.save(update_fields=[column])
    assert [row["id"] for row in read_the_list(f"cached?{query}")] == [home.pk]

    setattr(home, column, before)
    home.save(update_fields=[column])
    assert read_the_list(f"cached?{query}") == []


@pytest.mark.parametrize(("ordering", "number", "price"), [("price", 19, 1), ("-price", 0, 999_999)])
def test_a_new_price_moves_a_row_to_another_page(twenty_properties, warm, read_the_list, ordering, number, price):
    """The first page did not show the row. It is ordered by price, so it depends on that column."""
    warm(ordering=ordering, page_size=5)

    twenty_properties[number].price = price
    twenty_properties[number].save(update_fields=["price"])

    assert read_the_list(ordering=ordering, page_size=5)[0]["id"] == twenty_properties[number].pk


# Rows that move


@pytest.mark.parametrize("way", ["agent", "agent_id"])
def test_a_property_moved_to_another_agent_is_in_the_next_read_of_both_agents(twenty_properties, warm, read_the_list, way):
    """The lists of both agents and of both offices are invalidated."""
    home, other = twenty_properties[:2]
    pages = [{"agent": home.agent_id}, {"agent": other.agent_id}, {"office": home.agent.office_id}, {"office": other.agent.office_id}]
    for page in pages:
        warm(**page)

    home.agent = other.agent
    home.save(update_fields=[way])

    assert [len(read_the_list(**page)) for page in pages] == [0, 2, 0, 2]


def test_an_agent_moved_to_another_office_is_in_the_next_read_of_both_offices(twenty_properties, warm, read_the_list):
    """Both lists reach the office through the agent, so both depend on that foreign key."""
    home, other = twenty_properties[:2]
    pages = [{"office": home.agent.office_id}, {"office": other.agent.office_id}]
    for page in pages:
        warm(**page)

    home.agent.office = other.agent.office
    home.agent.save(update_fields=["office"])

    assert [len(read_the_list(**page)) for page in pages] == [0, 2]


def test_a_location_moved_to_another_city_is_in_the_next_read_of_both_cities(home, warm, read_the_list):
    """Both lists filter by the city, so both depend on that column."""
    warm(city="Springfield")
    warm(city="Shelbyville")

    home.location.city = "Shelbyville"
    home.location.save(update_fields=["city"])

    assert (len(read_the_list(city="Springfield")), len(read_the_list(city="Shelbyville"))) == (19, 1)


@pytest.mark.parametrize("loaded", ["before it was moved", "after"])
def test_a_moved_image_leaves_the_page_of_its_old_property(twenty_properties, warm, read, loaded):
    """The object in memory may be outdated, so the engine looks up the old property in the database."""
    first, second = twenty_properties[:2]
    image = first.images.first()
    if loaded == "before it was moved":
        PropertyImage.objects.filter(pk=image.pk).update(property=second)
        first, second = second, first
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    image.property = second
    image.save()

    assert image.pk not in [shown["id"] for shown in read(f"cached/{first.pk}").json["images"]]
    assert image.pk in [shown["id"] for shown in read(f"cached/{second.pk}").json["images"]]


def test_the_old_property_of_an_image_is_read_from_the_database_that_is_written(home):
    """`using=` chooses the database, here the same one under a second alias. Another connection might not see the rows that were written there."""
    image = home.images.first()
    connections.databases["another"] = connection.settings_dict
    try:
        with CaptureQueriesContext(connection) as queries:
            image.save(using="another")
    finally:
        connections["another"].close()
        del connections["another"], connections.databases["another"]

    assert len(queries) == 0


def test_an_image_moved_by_a_subquery_is_in_the_next_read_of_its_new_property(twenty_properties, warm, read):
    """The subquery runs in the database, so the new property is unknown before. Its SQL reads properties, so all of them are tagged."""
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    image = first.images.first()
    image.property_id = Property.objects.filter(pk=second.pk).values("pk")
    image.save()

    assert len(read(f"cached/{second.pk}").json["images"]) == 3


def test_deleting_an_outdated_copy_of_an_image_is_in_the_next_read_of_its_current_property(twenty_properties, warm, read):
    """The object in memory still has the property that the image had when it was loaded."""
    first, second = twenty_properties[:2]
    image = first.images.first()
    PropertyImage.objects.filter(pk=image.pk).update(property=second)
    warm(f"cached/{second.pk}")

    image.delete()

    assert len(read(f"cached/{second.pk}").json["images"]) == 2


# Later pages


def test_a_page_loses_its_next_link_when_the_row_after_it_is_deleted(twenty_properties, warm, read):
    """The deleted row was on no cached page, but the link depends on it."""
    warm(page_size=19)

    twenty_properties[19].delete()

    assert read("cached", page_size=19).json["next"] is None


def test_a_deletion_is_in_the_next_read_of_later_pages_too(twenty_properties, warm, read):
    """A deletion pulls a row over every page boundary behind it. A cursor marks a position, so later pages begin where they began."""
    second = read("cached", page_size=5).json["next"]
    third = read(f"cached{second}").json["next"]
    for page in (second, third):
        warm(f"cached{page}")

    twenty_properties[7].delete()

    for page in (second, third):
        assert read(f"cached{page}").body == read(f"optimized{page}").body


def test_an_update_never_changes_created_at(home, read):
    """Pages are ordered by it without depending on a tag of that column, so no update may write it."""
    before = read(f"optimized/{home.pk}").json["created_at"]

    home.created_at = timezone.now()
    home.save()

    assert read(f"optimized/{home.pk}").json["created_at"] == before
    assert read(f"cached/{home.pk}").json["created_at"] == before
