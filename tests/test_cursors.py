"""Cursors. A page links to the next and the previous one, and no row is lost or repeated on the way."""

import datetime
from decimal import Decimal
from itertools import chain

import pytest
from django.core.signing import Signer
from django.db import connection

from housing.filters import ORDERINGS
from housing.models import Agent, Property
from tests.fixtures.responses import VARIANTS
from tests.fixtures.rows import NEW_YEAR, a_property, saved

variants = pytest.mark.parametrize("variant", VARIANTS)


def follow_links(read, variant, first="", direction="next"):
    """The ids of every page from `first` on, and the link to the last one."""
    pages, link = [], first
    while True:
        page = read(f"{variant}{link}")
        pages.append([row["id"] for row in page.rows])
        if page.json[direction] is None or (direction == "previous" and not page.rows):
            return pages, link
        link = page.json[direction]


def multiply_the_properties(count):
    """Copy properties until there are `count`. The database does it, because it is faster than the ORM."""
    columns = ", ".join(field.column for field in Property._meta.concrete_fields if not field.primary_key and not field.unique)
    with connection.cursor() as cursor:
        while (there := Property.objects.count()) < count:
            cursor.execute(f"INSERT INTO housing_property ({columns}) SELECT {columns} FROM housing_property LIMIT %s", [count - there])


@pytest.mark.slow
@pytest.mark.parametrize("ordering", ["-created_at", "price"])
def test_a_cursor_pages_through_5000_rows_of_one_date_in_both_directions_without_loss_or_repeat(transactional_db, read, ordering):
    """Thousands of real listings share a date. DRF's CursorPagination counts equal values with an offset of at most 1,000."""
    saved(a_property(0))
    multiply_the_properties(5_000)
    everything = sorted(Property.objects.values_list("pk", flat=True), reverse=ordering.startswith("-"))

    forward, last = follow_links(read, "cached", f"?ordering={ordering}&page_size=100")
    backward, _ = follow_links(read, "cached", last, direction="previous")

    assert list(chain.from_iterable(forward)) == everything
    assert len(forward) == 50
    assert list(chain.from_iterable(reversed(backward))) == everything


def test_a_cursor_pages_through_a_filtered_list_without_loss_or_repeat(transactional_db, read):
    """With a filter, the database may read another index than that of the ordering, which leaves rows with equal values unordered."""
    office = saved(a_property())[0].agent.office
    agents = [Agent(name=name, office=office) for name in ("Ann", "Bob")]
    homes = saved(*(a_property(number, created_at=NEW_YEAR, agent=agents[number % 2]) for number in range(6)))

    pages, _ = follow_links(read, "optimized", f"?office={office.pk}&min_price=300001&page_size=2")

    assert list(chain.from_iterable(pages)) == sorted((home.pk for home in homes[1:]), reverse=True)


@variants
def test_the_first_page_has_no_previous_link_and_the_last_no_next(twenty_properties, read, variant):
    """Clients stop at a missing link."""
    first = read(f"{variant}?page_size=10").json
    last = read(f"{variant}{first['next']}").json

    assert first["previous"] is None
    assert last["previous"] is not None
    assert last["next"] is None


def test_previous_leads_back_to_the_same_page(twenty_properties, read):
    """Its links are the same, too."""
    first = read("optimized?page_size=3").json
    second = read(f"optimized{first['next']}").json
    third = read(f"optimized{second['next']}").json

    back = read(f"optimized{third['previous']}").json

    assert (back["results"], back["next"]) == (second["results"], second["next"])
    assert read(f"optimized{back['next']}").json["results"] == third["results"]
    assert read(f"optimized{back['previous']}").json["results"] == first["results"]


def test_a_last_page_that_is_full_has_no_next_link(twenty_properties, read):
    """A link to an empty page would cost one more request."""
    assert read("optimized").json["next"] is None


def test_previous_may_lead_to_an_empty_page_whose_next_link_leads_back(twenty_properties, read):
    """Every page with a cursor has a previous link. Checking whether earlier rows exist would cost one more query."""
    second = read("optimized", page_size=10).json["next"]
    first = read(f"optimized{second}").json["previous"]
    before = read("optimized" + read(f"optimized{first}").json["previous"])

    assert before.rows == []
    assert [row["id"] for row in read("optimized" + before.json["next"]).rows] == [home.pk for home in twenty_properties[:10]]
    assert read("optimized" + before.json["previous"]).rows == []


def test_a_cursor_past_the_end_leads_back_to_the_last_page(twenty_properties, read):
    """The rows after the cursor were deleted, and the client must still reach the last remaining ones."""
    second = read("optimized", page_size=8).json["next"]
    beyond = read(f"optimized{second}").json["next"]
    Property.objects.filter(pk__in=[home.pk for home in twenty_properties[16:]]).delete()

    empty = read(f"optimized{beyond}").json

    assert (empty["results"], empty["next"]) == ([], None)
    assert [row["id"] for row in read("optimized" + empty["previous"]).rows] == [home.pk for home in twenty_properties[8:16]]


@variants
def test_links_are_relative_and_contain_only_the_parameters_that_matter(twenty_properties, read, variant):
    """Unknown parameters, defaults and empty values are dropped, so that each page has one URL. On a hit, they are those of another reader."""
    parameters = "page_size=5&city=Springfield&status=&ordering=-created_at&min_price=1.00&max_price=1e6"
    page = read(f"{variant}?unknown=1&{parameters}&utm_source=a&min_price_=2")
    other = read(f"{variant}?{parameters}")

    for link in (page.json["next"], read(variant + page.json["next"] + "&unknown=1").json["previous"]):
        assert link.startswith("?city=Springfield&min_price=1&max_price=1000000&page_size=5&cursor=")
        assert link.count("&") == 4
    assert other.body == page.body


LEAST = {"created_at": datetime.timedelta(microseconds=1), "price": Decimal("0.01")}
"""The smallest difference between two values of each column that orders."""


@pytest.mark.parametrize("ordering", [ordering for ordering, _ in ORDERINGS])
def test_a_cursor_keeps_the_smallest_difference_between_two_rows(transactional_db, read, ordering):
    """A real file has instants in microseconds. If a link rounded its position, a page would repeat rows or leave some out."""
    column = ordering.removeprefix("-")
    start = getattr(a_property(), column)
    homes = saved(*(a_property(number, **{column: start + number * LEAST[column]}) for number in range(7)))
    expected = sorted((home.pk for home in homes), reverse=ordering.startswith("-"))

    seen, page = [], read("cached", ordering=ordering, page_size=2).json
    while page["next"] is not None and len(seen) <= len(homes):
        seen += [row["id"] for row in page["results"]]
        page = read("cached" + page["next"]).json

    assert seen + [row["id"] for row in page["results"]] == expected


def test_a_cursor_of_another_ordering_is_refused(twenty_properties, read):
    """Its position has no meaning in the other ordering."""
    link = read("optimized", page_size=5, ordering="price").json["next"]

    refused = read("optimized" + link.replace("ordering=price", "ordering=-price"))

    assert (refused.status, refused.json) == (400, {"cursor": ["This cursor is for ordering=price, not for ordering=-price."]})


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: text[:-1],
        lambda text: "x" + text,
        lambda text: text.swapcase(),
        lambda text: Signer(sep=".").sign_object(["-created_at", False, None, None]),
    ],
    ids=["shortened", "lengthened", "altered", "signed for another purpose"],
)
def test_a_forged_cursor_is_refused(twenty_properties, read, forge):
    """Each position has one valid cursor, so forged ones cannot fill the cache."""
    link = read("optimized", page_size=5).json["next"]
    cursor = link.rpartition("cursor=")[2]

    refused = read("optimized", page_size=5, cursor=forge(cursor))

    assert (refused.status, refused.json) == (400, {"cursor": ["This is not a cursor from `next` or `previous`."]})


@pytest.mark.parametrize("ordering", ["price", "-price"])
def test_a_cursor_works_on_prices_of_0(transactional_db, read, ordering):
    """A price may be 0, which must not be mistaken for a missing position."""
    saved(*(a_property(number, price=0) for number in range(3)))

    page = read("optimized", ordering=ordering, page_size=2)

    assert len(read("optimized" + page.json["next"]).rows) == 1


def test_a_cursor_keeps_its_place_while_rows_are_created_and_deleted(twenty_properties, read):
    """With an offset, a row would appear twice or never."""
    link = read("optimized", page_size=10).json["next"]
    twenty_properties[3].delete()
    saved(a_property(-5))

    assert [row["id"] for row in read(f"optimized{link}").rows] == [home.pk for home in twenty_properties[10:]]
