"""What others may rely on: the addresses, what they answer, what may be asked, and how a refusal looks."""

import datetime
from decimal import Decimal
from itertools import chain

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.signing import Signer
from django.db import connection
from django.http import QueryDict
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings
from rest_framework.exceptions import ValidationError
from rest_framework.serializers import ModelSerializer, SerializerMethodField

from conftest import NEW_YEAR, VARIANTS, a_property, saved
from housing.filters import Query
from housing.freshness.postgresql.base import DatabaseWrapper
from housing.models import Agent, Location, Office, Property
from housing.queries import joined
from housing.serializers import Columns

variants = pytest.mark.parametrize("variant", VARIANTS)


# What a list answers


@variants
def test_a_list_is_twenty_rows_newest_first(transactional_db, read, variant):
    saved(*map(a_property, range(25)))

    rows = read(variant).rows

    assert [row["title"] for row in rows] == [f"Home {number}" for number in range(20)]


@variants
def test_a_row_is_all_of_a_property_with_what_it_refers_to(home, read, variant):
    """Decimals are strings, so that no reader rounds a price."""
    row = read(variant).rows[0]

    assert datetime.datetime.fromisoformat(row.pop("updated_at")).tzinfo
    assert row == {
        "id": home.pk,
        "title": "Home 0",
        "description": "Two floors, one garden.",
        "property_type": "house",
        "status": "available",
        "price": "300000.00",
        "bedrooms": 3,
        "bathrooms": "1.75",
        "area": None,
        "created_at": "2026-01-01T00:00:00Z",
        "location": {
            "id": home.location_id,
            "city": "Springfield",
            "state": "IL",
            "zip_code": "62700",
            "latitude": "39.781700",
            "longitude": "-89.650100",
        },
        "agent": {
            "id": home.agent_id,
            "name": "Agent 0",
            "email": "agent0@example.com",
            "office": {"id": home.agent.office_id, "name": "Office 0", "city": "Springfield"},
        },
    }


@variants
def test_a_detail_is_the_row_with_its_images_by_position(home, read, variant):
    detail = read(f"{variant}/{home.pk}").json

    images = detail.pop("images")
    assert detail == read(variant).rows[0]
    assert [(set(image), image["position"]) for image in images] == [({"id", "url", "caption", "position"}, position) for position in range(2)]


@variants
def test_an_id_that_is_not_there_is_404(transactional_db, read, variant):
    for key in (1, 10**30):
        missing = read(f"{variant}/{key}")
        assert (missing.status, missing.json) == (404, {"detail": "No Property matches the given query."})


@variants
def test_an_empty_database_is_an_empty_page(transactional_db, read, variant):
    assert read(variant).json == {"next": None, "previous": None, "results": []}


@variants
def test_only_reading_is_allowed(home, client, variant):
    for method in ("post", "put", "patch", "delete"):
        assert getattr(client, method)(VARIANTS[variant]).status_code == 405
        assert getattr(client, method)(f"{VARIANTS[variant]}{home.pk}/").status_code == 405


@variants
def test_head_says_what_get_would(home, client, variant):
    head, get = client.head(VARIANTS[variant]), client.get(VARIANTS[variant])

    assert head.content == b""
    assert head.status_code == get.status_code == 200
    assert head.headers["Content-Type"] == get.headers["Content-Type"] == "application/json"


@variants
def test_options_says_what_may_be_done(home, client, variant):
    assert client.options(VARIANTS[variant]).headers["Allow"] == "GET, HEAD, OPTIONS"


# What may be asked


@pytest.fixture
def a_mixed_portal(transactional_db):
    """Two properties that differ in everything by which one may ask."""
    plain = a_property(0, status="available", property_type="house", price=100, bedrooms=1, title="A barn", description="By a brook.")
    fancy = a_property(1, status="sold", property_type="land", price=200, bedrooms=5, title="A castle", description="On a hill.")
    fancy.location.city = "Shelbyville"
    return saved(plain, fancy)


@variants
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", "plain fancy"),
        ("city=Springfield", "plain"),
        ("city=springfield", ""),
        ("city=Spring", ""),
        ("status=sold", "fancy"),
        ("property_type=land", "fancy"),
        ("agent={fancy.agent_id}", "fancy"),
        ("office={plain.agent.office_id}", "plain"),
        ("agent=999999", ""),
        ("min_price=100", "plain fancy"),
        ("min_price=100.01", "fancy"),
        ("max_price=100", "plain"),
        ("min_price=100&max_price=199.99", "plain"),
        ("min_bedrooms=2", "fancy"),
        ("search=castle", "fancy"),
        ("search=BROOK", "plain"),
        ("search=%25", ""),
        ("status=sold&city=Springfield", ""),
        ("city=&status=&agent=&min_price=&search=&ordering=&page_size=&cursor=", "plain fancy"),
        ("somebody=else&utm_source=mail", "plain fancy"),
        ("ordering=price", "plain fancy"),
        ("ordering=-price", "fancy plain"),
        ("ordering=created_at", "fancy plain"),
        ("ordering=-created_at", "plain fancy"),
        ("page_size=1&ordering=-price", "fancy"),
    ],
)
def test_a_list_gives_what_is_asked_for(a_mixed_portal, read, variant, asked, found):
    names = dict(zip(("plain", "fancy"), a_mixed_portal, strict=True))

    rows = read(f"{variant}?{asked.format(**names)}").rows

    assert [row["id"] for row in rows] == [names[name].pk for name in found.split()]


@pytest.mark.parametrize(("asked", "column", "value"), [("city=Springfield", "city", "Springfield"), ("office=3", "office_id", 3)])
def test_a_city_or_an_office_is_looked_for_where_postgresql_has_its_index(asked, column, value):
    """In the property's own row (tests/test_faults.py). That it is SQL for PostgreSQL can be seen without a server."""
    found = Query(QueryDict(asked)).filter(joined())
    sql, parameters = found.query.get_compiler(connection=DatabaseWrapper(connection.settings_dict)).as_sql()

    assert sql.endswith(f' WHERE "housing_property".{column} = %s')
    assert parameters == (value,)


ENOUGH = 2**63
REFUSED = {
    "min_price=abc": "Enter a number.",
    "max_price=NaN": "Enter a number.",
    "min_price=Infinity": "Enter a number.",
    "min_price=1e20": "Ensure that there are no more than 12 digits in total.",
    "min_price=0.001": "Ensure that there are no more than 2 decimal places.",
    "min_bedrooms=many": "Enter a whole number.",
    "min_bedrooms=1.5": "Enter a whole number.",
    "min_bedrooms=-1": "Ensure this value is greater than or equal to 0.",
    "agent=me": "Enter a whole number.",
    "agent=0": "Ensure this value is greater than or equal to 1.",
    f"office={ENOUGH}": f"Ensure this value is less than or equal to {ENOUGH - 1}.",
    "status=haunted": "Select a valid choice. haunted is not one of the available choices.",
    "property_type=castle": "Select a valid choice. castle is not one of the available choices.",
    "ordering=area": "Select a valid choice. area is not one of the available choices.",
    "ordering=price,created_at": "Select a valid choice. price,created_at is not one of the available choices.",
    "page_size=0": "Ensure this value is greater than or equal to 1.",
    "page_size=101": "Ensure this value is less than or equal to 100.",
    "page_size=abc": "Enter a whole number.",
    "city=%00": "Null characters are not allowed.",
    f"search={'x' * 201}": "Ensure this value has at most 200 characters (it has 201).",
    "city=Springfield&city=Springfield": "This parameter may be given only once.",
    "cursor=a&cursor=b": "This parameter may be given only once.",
    "cursor=zzz": "This is not a cursor from `next` or `previous`.",
}


@variants
@pytest.mark.parametrize(("asked", "wrong"), REFUSED.items(), ids=[asked[:40] for asked in REFUSED])
def test_a_bad_value_is_refused_and_named(read, variant, asked, wrong):
    refused = read(f"{variant}?{asked}")

    assert (refused.status, refused.json) == (400, {asked.partition("=")[0]: [wrong]})


@variants
def test_everything_wrong_is_named_at_once(read, variant):
    refused = read(f"{variant}?min_price=abc&page_size=1000&status=haunted")

    assert (refused.status, set(refused.json)) == (400, {"min_price", "page_size", "status"})


@variants
def test_a_refusal_is_a_page_for_who_asks_for_pages(read, variant):
    refused = read(f"{variant}?min_price=abc", headers={"Accept": "text/html"})

    assert refused.status == 400
    assert b"Enter a number." in refused.body


NOT_PROMISED = {
    "A search ignores case beyond ASCII on SQLite": "SQLite's LIKE folds ASCII letters only (https://www.sqlite.org/lang_expr.html#like).",
}


# Cursors


def walk(read, variant, first="", way="next"):
    """The ids of every page from `first` on, and the link of the last."""
    pages, link = [], first
    while True:
        page = read(f"{variant}{link}")
        pages.append([row["id"] for row in page.rows])
        if page.json[way] is None or (way == "previous" and not page.rows):
            return pages, link
        link = page.json[way]


def multiply_the_properties(count):
    """Until there are so many, all alike; by the database, which is quicker at it than the ORM."""
    columns = ", ".join(field.column for field in Property._meta.concrete_fields if not field.primary_key and not field.unique)
    with connection.cursor() as cursor:
        while (there := Property.objects.count()) < count:
            cursor.execute(f"INSERT INTO housing_property ({columns}) SELECT {columns} FROM housing_property LIMIT %s", [count - there])


@pytest.mark.slow
@pytest.mark.parametrize("ordering", ["-created_at", "price"])
def test_a_cursor_walks_5000_rows_of_one_date_without_loss_or_repeat_in_both_directions(transactional_db, read, ordering):
    """Real listings share dates by the thousand. DRF's CursorPagination counts equal values by an offset, and no further than 1,000."""
    saved(a_property(0))
    multiply_the_properties(5_000)
    everything = sorted(Property.objects.values_list("pk", flat=True), reverse=ordering.startswith("-"))

    forward, last = walk(read, "cached", f"?ordering={ordering}&page_size=100")
    backward, _ = walk(read, "cached", last, way="previous")

    assert list(chain.from_iterable(forward)) == everything
    assert len(forward) == 50
    assert list(chain.from_iterable(reversed(backward))) == everything


def test_a_cursor_walks_what_a_filter_left_without_loss_or_repeat(transactional_db, read):
    """The database may then come to the rows by another way than the index of the ordering: equal values are in no order of their own."""
    office = saved(a_property())[0].agent.office
    agents = [Agent(name=name, office=office) for name in ("Ann", "Bob")]
    homes = saved(*(a_property(number, created_at=NEW_YEAR, agent=agents[number % 2]) for number in range(6)))

    pages, _ = walk(read, "optimized", f"?office={office.pk}&min_price=300001&page_size=2")

    assert list(chain.from_iterable(pages)) == sorted((home.pk for home in homes[1:]), reverse=True)


@variants
def test_the_first_page_has_no_previous_and_the_last_no_next(twenty_properties, read, variant):
    first = read(f"{variant}?page_size=10").json
    last = read(f"{variant}{first['next']}").json

    assert first["previous"] is None
    assert last["previous"] is not None
    assert last["next"] is None


def test_a_page_walked_back_to_is_the_page_that_was_left(twenty_properties, read):
    """With the same links on."""
    first = read("optimized?page_size=3").json
    second = read(f"optimized{first['next']}").json
    third = read(f"optimized{second['next']}").json

    back = read(f"optimized{third['previous']}").json

    assert (back["results"], back["next"]) == (second["results"], second["next"])
    assert read(f"optimized{back['next']}").json["results"] == third["results"]
    assert read(f"optimized{back['previous']}").json["results"] == first["results"]


def test_a_page_exactly_full_has_no_next(twenty_properties, read):
    assert read("optimized").json["next"] is None


def test_previous_may_lead_to_an_empty_page_and_that_leads_back(twenty_properties, read):
    """It is given whenever a cursor was: to know that nothing is before would cost a query more."""
    second = read("optimized", page_size=10).json["next"]
    first = read(f"optimized{second}").json["previous"]
    before = read("optimized" + read(f"optimized{first}").json["previous"])

    assert before.rows == []
    assert [row["id"] for row in read("optimized" + before.json["next"]).rows] == [home.pk for home in twenty_properties[:10]]
    assert read("optimized" + before.json["previous"]).rows == []


def test_a_cursor_beyond_the_end_leads_back_to_the_last_page(twenty_properties, read):
    """The rows behind it were deleted after it was given; the last of those that are left must not be lost."""
    second = read("optimized", page_size=8).json["next"]
    beyond = read(f"optimized{second}").json["next"]
    Property.objects.filter(pk__in=[home.pk for home in twenty_properties[16:]]).delete()

    empty = read(f"optimized{beyond}").json

    assert (empty["results"], empty["next"]) == ([], None)
    assert [row["id"] for row in read("optimized" + empty["previous"]).rows] == [home.pk for home in twenty_properties[8:16]]


def test_links_are_relative_and_hold_what_was_asked_and_nothing_else(twenty_properties, read):
    """`unknown` is dropped, defaults and empty values too: one page, one address."""
    page = read("optimized?page_size=5&unknown=1&city=Springfield&status=&ordering=-created_at&min_price=1.00&max_price=1e6")

    link = page.json["next"]
    assert link.startswith("?city=Springfield&min_price=1&max_price=1000000&page_size=5&cursor=")
    assert link.count("=") == 5


def test_a_cursor_of_another_ordering_is_refused(twenty_properties, read):
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
    ids=["shortened", "lengthened", "altered", "signed for something else"],
)
def test_a_forged_cursor_is_refused(twenty_properties, read, forge):
    """Each position has one text: nobody can fill the cache with others."""
    link = read("optimized", page_size=5).json["next"]
    cursor = link.rpartition("cursor=")[2]

    refused = read("optimized", page_size=5, cursor=forge(cursor))

    assert (refused.status, refused.json) == (400, {"cursor": ["This is not a cursor from `next` or `previous`."]})


@pytest.mark.parametrize("ordering", ["price", "-price"])
def test_homes_that_cost_nothing_are_walked_too(transactional_db, read, ordering):
    """A price may be 0, and 0 is a position like any other."""
    saved(*(a_property(number, price=0) for number in range(3)))

    page = read("optimized", ordering=ordering, page_size=2)

    assert len(read("optimized" + page.json["next"]).rows) == 1


def test_a_cursor_holds_its_place_while_rows_come_and_go(twenty_properties, read):
    """An offset would show a row twice, or never."""
    link = read("optimized", page_size=10).json["next"]
    twenty_properties[3].delete()
    saved(a_property(-5))

    assert [row["id"] for row in read(f"optimized{link}").rows] == [home.pk for home in twenty_properties[10:]]


@given(strategies.text(max_size=30), strategies.sampled_from(["city", "search", "min_price", "agent", "cursor", "page_size", "ordering", "status"]))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_no_value_breaks_the_parameters(value, name):
    """Whatever is asked is understood or refused, and what is understood has one text that means the same."""
    asked = QueryDict(mutable=True)
    asked[name] = value
    try:
        canonical = Query(asked).canonical
    except ValidationError as refused:
        assert set(refused.detail) == {name}
    else:
        assert Query(QueryDict(canonical)).canonical == canonical


def test_the_same_text_in_another_encoding_asks_for_something_else(twenty_properties, client):
    """Parameters are validated once for all who ask alike; who says another charset does not ask alike."""
    twenty_properties[0].location.city = "Orléans"
    twenty_properties[0].location.save()

    found = [
        len(client.get(VARIANTS["cached"], QUERY_STRING="city=Orl%E9ans", headers={"Content-Type": f"text/plain; charset={charset}"}).json()["results"])
        for charset in ("utf-8", "latin-1")
    ]
    assert found == [0, 1]


def test_a_server_that_leaves_out_an_empty_query_string_asks_for_the_same():
    """PEP 3333: `QUERY_STRING` may be empty or absent."""
    empty, absent = RequestFactory().get(VARIANTS["cached"]), RequestFactory().get(VARIANTS["cached"])
    del absent.META["QUERY_STRING"]

    assert Query.of(absent) is Query.of(empty)


# The quick way to the bytes

texts = strategies.text(strategies.characters(codec="utf-8", exclude_characters="\0"), max_size=40)  # NUL is what PostgreSQL cannot hold
instants = strategies.datetimes(NEW_YEAR.replace(year=2, tzinfo=None), NEW_YEAR.replace(year=9998, tzinfo=None), timezones=strategies.just(datetime.UTC))


def decimals(digits, places):
    """What a column of so many digits holds."""
    return strategies.integers(1 - 10**digits, 10**digits - 1).map(lambda whole: Decimal(whole).scaleb(-places))


offices = strategies.builds(Office, name=texts, city=strategies.none() | texts)
agents = strategies.builds(Agent, name=texts, email=strategies.none() | texts, office=offices)
locations = strategies.builds(
    Location,
    city=texts,
    state=strategies.none() | texts,
    zip_code=strategies.none() | texts.map(lambda text: text[:20]),
    latitude=strategies.none() | decimals(9, 6),
    longitude=strategies.none() | decimals(9, 6),
)
properties = strategies.builds(
    Property,
    title=texts,
    description=strategies.none() | texts,
    property_type=strategies.sampled_from(Property.Type.values) | texts.map(lambda text: text[:20]),
    status=strategies.sampled_from(Property.Status.values),
    price=decimals(12, 2),
    bedrooms=strategies.none() | strategies.integers(0, 32767),
    bathrooms=strategies.none() | decimals(4, 2),
    area=strategies.none() | decimals(10, 2),
    created_at=instants,
    location=locations,
    agent=agents,
)


@given(strategies.lists(properties, min_size=1, max_size=4))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_cached_bytes_are_drfs_own_for_any_property(transactional_db, read, homes):
    """The cached door makes them from columns, without instances and without asking the serializer row by row."""
    Office.objects.all().delete()
    Location.objects.all().delete()
    saved(*homes)

    assert read("cached").body == read("optimized").body
    assert read("cached", ordering="price", page_size=2).body == read("optimized", ordering="price", page_size=2).body
    assert read(f"cached/{homes[0].pk}").body == read(f"optimized/{homes[0].pk}").body


def test_what_javascript_once_took_for_the_end_of_a_line_is_escaped_as_drf_does(home, read):
    """U+2028 and U+2029, which Hypothesis draws in a blue moon."""
    home.title = "one\u2028two\u2029three"
    home.save()

    assert rb"one\u2028two\u2029three" in read("cached").body
    assert read("cached").body == read("optimized").body


def test_a_field_that_is_no_column_cannot_be_shown_the_quick_way():
    """Said when the service starts, not by a page that lacks it."""

    class Computed(ModelSerializer):
        more = SerializerMethodField()

        class Meta:
            model = Office
            fields = ["id", "more"]

    with pytest.raises(TypeError, match=r"The field more \(SerializerMethodField\) is not a plain column"):
        Columns(Computed())


# Around the lists


def test_the_schema_describes_the_lists_and_their_parameters(client):
    """Made by the code itself; a client can be generated from it."""
    schema = client.get("/api/schema/", headers={"Accept": "application/vnd.oai.openapi+json"}).json()

    listed = schema["paths"]["/api/properties/cached/"]["get"]
    assert {parameter["name"] for parameter in listed["parameters"]} == set(Query.form_class.base_fields)
    page = schema["components"]["schemas"]["PaginatedPropertyList"]
    link = {"type": "string", "nullable": True, "example": "?cursor=…"}
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Property"}}
    assert page == {"type": "object", "required": ["next", "previous", "results"], "properties": {"next": link, "previous": link, "results": rows}}
    detail = schema["components"]["schemas"]["PropertyDetail"]
    assert {"images", "location", "agent", "price"} <= set(detail["properties"])
    assert all(f"{path}{suffix}" in schema["paths"] for path in VARIANTS.values() for suffix in ("", "{id}/"))


def test_the_schema_is_made_without_a_warning(transactional_db, capsys):
    call_command("spectacular", "--validate", "--fail-on-warn")
    assert "openapi: 3" in capsys.readouterr().out


def test_the_docs_page_needs_no_other_server(client):
    page = client.get("/api/docs/").content.decode()

    assert "/static/drf_spectacular_sidecar/" in page
    assert "https://" not in page.replace("https://github.com", "")


def test_static_files_are_served_without_debug(client):
    """By the service itself, behind any server."""
    served = client.get("/static/admin/css/base.css")

    assert served.status_code == 200
    assert b"".join(served.streaming_content)


# The admin


@pytest.fixture
def editor(client, transactional_db):
    """Somebody who may edit everything, logged in."""
    client.force_login(User.objects.create_superuser("editor"))
    return client


@pytest.mark.parametrize("model", ["property", "agent", "office", "location", "propertyimage"])
def test_the_admin_lists_and_searches_every_model(twenty_properties, editor, model):
    page = editor.get(f"/admin/housing/{model}/", {"q": "home"})

    assert page.status_code == 200
    assert b'id="searchbar"' in page.content
    assert editor.get(f"/admin/housing/{model}/add/").status_code == 200


@pytest.mark.parametrize("model", ["property", "agent", "propertyimage"])
def test_a_longer_list_of_the_admin_costs_no_more(twenty_properties, editor, model):
    """Whoever edits deserves no N+1 either."""
    costs = []
    for found in ("zzz", ""):
        with CaptureQueriesContext(connection) as captured:
            editor.get(f"/admin/housing/{model}/", {"q": found})
        costs.append(len(captured))

    assert costs[0] == costs[1]


def test_a_price_is_changed_in_the_list_of_the_admin(twenty_properties, editor, read, warm):
    """And is in the very next read."""
    warm()
    homes = sorted(twenty_properties, key=lambda home: home.created_at, reverse=True)
    form = {"form-TOTAL_FORMS": "20", "form-INITIAL_FORMS": "20", "_save": "Save"}
    for number, home in enumerate(homes):
        form |= {f"form-{number}-id": str(home.pk), f"form-{number}-price": str(home.price)}

    saved_page = editor.post("/admin/housing/property/", form | {"form-0-price": "395000"})

    assert saved_page.status_code == 302
    assert read("cached").rows[0]["price"] == "395000.00"


def test_images_are_edited_beside_their_property(home, editor, read, warm):
    warm(f"cached/{home.pk}")
    page = editor.get(f"/admin/housing/property/{home.pk}/change/")
    form = {name: value for name, value in page.context["adminform"].form.initial.items() if value is not None}
    images = page.context["inline_admin_formsets"][0].formset
    form |= {"images-TOTAL_FORMS": "2", "images-INITIAL_FORMS": "2"}
    for number, image in enumerate(images.queryset):
        form |= {
            f"images-{number}-id": image.pk,
            f"images-{number}-property": home.pk,
            f"images-{number}-url": image.url,
            f"images-{number}-position": 5 - number,
        }

    assert editor.post(f"/admin/housing/property/{home.pk}/change/", form).status_code == 302
    assert [image["position"] for image in read(f"cached/{home.pk}").json["images"]] == [4, 5]


def test_the_admin_asks_before_it_deletes_what_hangs_on_a_row(home, editor):
    asked = editor.post(f"/admin/housing/office/{home.agent.office_id}/delete/").content.decode()

    assert "Home 0" in asked
    assert Property.objects.filter(pk=home.pk).exists()


# The tables


def test_the_migrations_make_the_tables_of_the_models(transactional_db, capsys):
    """Fields and indexes, all of them."""
    call_command("makemigrations", "--check", "--dry-run")

    assert "No changes detected" in capsys.readouterr().out


# Names


def test_rows_name_themselves(twenty_properties):
    home = twenty_properties[0]
    image = home.images.first()

    assert [str(row) for row in (home, home.agent, home.agent.office, home.location, image)] == [
        "Home 0",
        "Agent 0",
        "Office 0",
        "Springfield, IL, 62700",
        image.url,
    ]
    assert home.price == Decimal(300_000)
