"""The API contract. Clients may rely on the URLs, the responses, the query parameters and the errors."""

import datetime
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from decimal import Decimal

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command, get_commands, load_command_class
from django.db import connection
from django.http import QueryDict
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings
from rest_framework.exceptions import ValidationError
from rest_framework.serializers import ModelSerializer, SerializerMethodField

from housing.filters import Query
from housing.freshness.postgresql.base import DatabaseWrapper
from housing.models import Agent, Location, Office, Property
from housing.queries import joined
from housing.serializers import Columns
from tests.fixtures.processes import python
from tests.fixtures.responses import VARIANTS
from tests.fixtures.rows import NEW_YEAR, a_property, saved

variants = pytest.mark.parametrize("variant", VARIANTS)


# Responses


@variants
def test_a_list_has_twenty_rows_newest_first(transactional_db, read, variant):
    """A response stays small however large the table is, and visitors look for new listings first."""
    saved(*map(a_property, range(25)))

    rows = read(variant).rows

    assert [row["title"] for row in rows] == [f"Home {number}" for number in range(20)]


@variants
def test_a_row_is_a_whole_property_with_location_agent_and_office(home, read, variant):
    """Decimals are strings, so that no client rounds a price."""
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
def test_a_detail_is_the_row_with_its_images_in_order_of_position(home, read, variant):
    """A client can read both with the same code, and shows the images in their intended order."""
    detail = read(f"{variant}/{home.pk}").json

    images = detail.pop("images")
    assert detail == read(variant).rows[0]
    assert [(set(image), image["position"]) for image in images] == [({"id", "url", "caption", "position"}, position) for position in range(2)]


@variants
def test_an_unknown_id_returns_404(transactional_db, read, variant):
    """This includes ids that no database column can hold."""
    for key in (1, 10**30):
        missing = read(f"{variant}/{key}")
        assert (missing.status, missing.json) == (404, {"detail": "No Property matches the given query."})


@variants
def test_an_empty_database_returns_an_empty_page(transactional_db, read, variant):
    """A new installation is not an error."""
    assert read(variant).json == {"next": None, "previous": None, "results": []}


@variants
def test_every_writing_method_returns_405(home, client, variant):
    """The API is read-only. Data changes in the admin and through imports."""
    for method in ("post", "put", "patch", "delete"):
        assert getattr(client, method)(VARIANTS[variant]).status_code == 405
        assert getattr(client, method)(f"{VARIANTS[variant]}{home.pk}/").status_code == 405


@pytest.mark.parametrize("known", [{}, {"headers": {"If-None-Match": "*"}}], ids=["without an ETag", "with an ETag"])
@pytest.mark.parametrize("path", ["", "{pk}/", "0/", "?city=Springfield", "?page_size=x"])
@variants
def test_head_returns_the_status_and_every_header_of_a_get_without_a_body(home, client, variant, path, known):
    """Monitors, proxies and link checkers send HEAD, and rely on its ETag and length as on those of a GET (RFC 9110, section 9.3.2)."""
    url = VARIANTS[variant] + path.format(pk=home.pk)
    client.get(url)  # afterwards both find the same cache
    get, head = client.get(url, **known), client.head(url, **known)

    assert head.content == b""
    assert head.status_code == get.status_code
    assert {**head.headers, "Server-Timing": ""} == {**get.headers, "Server-Timing": ""}


@variants
def test_options_returns_the_allowed_methods(home, client, variant):
    """API tools send OPTIONS to find out whether they can write. This API is read-only."""
    assert client.options(VARIANTS[variant]).headers["Allow"] == "GET, HEAD, OPTIONS"


# Query parameters


@pytest.fixture
def a_mixed_portal(transactional_db):
    """Two properties that differ in every field with a filter or an ordering."""
    plain = a_property(0, status="available", property_type="house", price=100, bedrooms=1, title="A barn", description="By a brook.")
    fancy = a_property(1, status="sold", property_type="land", price=200, bedrooms=5, title="A castle", description="On a hill.")
    fancy.location.city = "Shelbyville"
    return saved(plain, fancy)


@variants
@pytest.mark.parametrize(
    ("query", "found"),
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
        ("unknown=1&utm_source=mail", "plain fancy"),
        ("ordering=price", "plain fancy"),
        ("ordering=-price", "fancy plain"),
        ("ordering=created_at", "fancy plain"),
        ("ordering=-created_at", "plain fancy"),
        ("page_size=1&ordering=-price", "fancy"),
    ],
)
def test_a_list_returns_the_rows_that_match_its_parameters(a_mixed_portal, read, variant, query, found):
    """Empty and unknown parameters are ignored."""
    names = dict(zip(("plain", "fancy"), a_mixed_portal, strict=True))

    rows = read(f"{variant}?{query.format(**names)}").rows

    assert [row["id"] for row in rows] == [names[name].pk for name in found.split()]


@pytest.mark.parametrize(("query", "column", "value"), [("city=Springfield", "city", "Springfield"), ("office=3", "office_id", 3)])
def test_a_filter_by_city_or_office_uses_the_column_that_postgresql_indexes(query, column, value):
    """PostgreSQL has copies of city and office in the property's own row (tests/test_faults.py). The compiled SQL shows it without a server."""
    found = Query(QueryDict(query)).filter(joined())
    sql, parameters = found.query.get_compiler(connection=DatabaseWrapper(connection.settings_dict)).as_sql()

    assert sql.endswith(f' WHERE "housing_property".{column} = %s')
    assert parameters == (value,)


TOO_LARGE = 2**63
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
    f"office={TOO_LARGE}": f"Ensure this value is less than or equal to {TOO_LARGE - 1}.",
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
@pytest.mark.parametrize(("query", "error"), REFUSED.items(), ids=[query[:40] for query in REFUSED])
def test_an_invalid_value_is_refused_with_its_parameter(read, variant, query, error):
    """Ignoring it would return rows that the client did not ask for."""
    refused = read(f"{variant}?{query}")

    assert (refused.status, refused.json) == (400, {query.partition("=")[0]: [error]})


@variants
def test_all_invalid_parameters_are_reported_together(read, variant):
    """A client can then correct all of them at once."""
    refused = read(f"{variant}?min_price=abc&page_size=1000&status=haunted")

    assert (refused.status, set(refused.json)) == (400, {"min_price", "page_size", "status"})


@variants
def test_a_browser_gets_a_refusal_as_a_page(read, variant):
    """A developer in a browser sees the error in DRF's own page."""
    refused = read(f"{variant}?min_price=abc", headers={"Accept": "text/html"})

    assert refused.status == 400
    assert b"Enter a number." in refused.body


@given(strategies.text(max_size=30), strategies.sampled_from(["city", "search", "min_price", "agent", "cursor", "page_size", "ordering", "status"]))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_parameter_value_is_accepted_or_refused(value, name):
    """Every value is accepted or refused with 400. The canonical form of accepted parameters is its own canonical form."""
    parameters = QueryDict(mutable=True)
    parameters[name] = value
    try:
        canonical = Query(parameters).canonical
    except ValidationError as refused:
        assert set(refused.detail) == {name}
    else:
        assert Query(QueryDict(canonical)).canonical == canonical


def test_the_same_query_string_in_another_charset_has_other_values(twenty_properties, client):
    """Validated parameters are reused for equal query strings. The same bytes in another charset are other values."""
    twenty_properties[0].location.city = "Orléans"
    twenty_properties[0].location.save()

    found = [
        len(client.get(VARIANTS["cached"], QUERY_STRING="city=Orl%E9ans", headers={"Content-Type": f"text/plain; charset={charset}"}).json()["results"])
        for charset in ("utf-8", "latin-1")
    ]
    assert found == [0, 1]


def test_a_missing_query_string_is_the_same_as_an_empty_one():
    """`QUERY_STRING` may be empty or absent (PEP 3333)."""
    empty, absent = RequestFactory().get(VARIANTS["cached"]), RequestFactory().get(VARIANTS["cached"])
    del absent.META["QUERY_STRING"]

    assert Query.of(absent) is Query.of(empty)


NOT_PROMISED = {
    "A search ignores the case of non-ASCII letters on SQLite": "SQLite's LIKE folds only ASCII letters (https://www.sqlite.org/lang_expr.html#like).",
}


# The bytes of the cached variant

texts = strategies.text(strategies.characters(codec="utf-8", exclude_characters="\0"), max_size=40)  # PostgreSQL cannot store NUL
instants = strategies.datetimes(NEW_YEAR.replace(year=2, tzinfo=None), NEW_YEAR.replace(year=9998, tzinfo=None), timezones=strategies.just(datetime.UTC))


def decimals(digits, places):
    """The values of a decimal column with this many digits and decimal places."""
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
def test_the_cached_variant_returns_the_same_bytes_as_the_serializer_of_drf_for_any_property(transactional_db, read, homes):
    """The cached variant builds its bytes from columns, without model instances and without calling the serializer for each row."""
    Office.objects.all().delete()
    Location.objects.all().delete()
    saved(*homes)

    assert read("cached").body == read("optimized").body
    assert read("cached", ordering="price", page_size=2).body == read("optimized", ordering="price", page_size=2).body
    assert read(f"cached/{homes[0].pk}").body == read(f"optimized/{homes[0].pk}").body


def test_line_separators_are_escaped_as_in_drf(home, read):
    """DRF escapes U+2028 and U+2029, because JavaScript once read them as line ends. Hypothesis rarely draws them."""
    home.title = "one\u2028two\u2029three"
    home.save()

    assert rb"one\u2028two\u2029three" in read("cached").body
    assert read("cached").body == read("optimized").body


def test_a_computed_field_in_a_cached_list_raises_an_error_at_the_start():
    """The service does not start, so a page without the field is never served."""

    class Computed(ModelSerializer):
        more = SerializerMethodField()

        class Meta:
            model = Office
            fields = ["id", "more"]

    with pytest.raises(TypeError, match=r"The field more \(SerializerMethodField\) is not a plain column"):
        Columns(Computed())


# Around the lists


def test_the_docs_page_loads_nothing_from_other_servers(client):
    """The page works offline, and no other server learns of its visitors."""
    page = client.get("/api/docs/").content.decode()

    assert "/static/drf_spectacular_sidecar/" in page
    assert "https://" not in page.replace("https://github.com", "")


def test_static_files_are_served_without_debug(client):
    """WhiteNoise serves them, so no web server is needed in front."""
    served = client.get("/static/admin/css/base.css")

    assert served.status_code == 200
    assert b"".join(served.streaming_content)


# The admin


@pytest.fixture
def editor(client, transactional_db):
    """A client that is logged in as a superuser."""
    client.force_login(User.objects.create_superuser("editor"))
    return client


@pytest.mark.parametrize("model", ["property", "agent", "office", "location", "propertyimage"])
def test_the_admin_lists_and_searches_every_model(twenty_properties, editor, model):
    """All data can be edited without a shell."""
    page = editor.get(f"/admin/housing/{model}/", {"q": "home"})

    assert page.status_code == 200
    assert b'id="searchbar"' in page.content
    assert editor.get(f"/admin/housing/{model}/add/").status_code == 200


@pytest.mark.parametrize("model", ["property", "agent", "propertyimage"])
def test_a_longer_list_in_the_admin_costs_no_more_queries(twenty_properties, editor, model):
    """An N+1 in the admin would slow down its users, too."""
    costs = []
    for found in ("zzz", ""):
        with CaptureQueriesContext(connection) as captured:
            editor.get(f"/admin/housing/{model}/", {"q": found})
        costs.append(len(captured))

    assert costs[0] == costs[1]


def test_a_price_can_be_changed_in_the_list_of_the_admin(twenty_properties, editor, read, warm):
    """The new price is in the next read."""
    warm()
    homes = sorted(twenty_properties, key=lambda home: home.created_at, reverse=True)
    form = {"form-TOTAL_FORMS": "20", "form-INITIAL_FORMS": "20", "_save": "Save"}
    for number, home in enumerate(homes):
        form |= {f"form-{number}-id": str(home.pk), f"form-{number}-price": str(home.price)}

    saved_page = editor.post("/admin/housing/property/", form | {"form-0-price": "395000"})

    assert saved_page.status_code == 302
    assert read("cached").rows[0]["price"] == "395000.00"


def test_images_can_be_edited_with_their_property(home, editor, read, warm):
    """The new order is in the next read, although only image rows were written."""
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


def test_the_admin_lists_dependent_rows_before_it_deletes_them(home, editor):
    """Deleting an office also deletes its agents' properties."""
    confirmation = editor.post(f"/admin/housing/office/{home.agent.office_id}/delete/").content.decode()

    assert "Home 0" in confirmation
    assert Property.objects.filter(pk=home.pk).exists()


# Migrations


def test_the_migrations_create_the_tables_of_the_models(transactional_db, capsys):
    """This includes every field and index."""
    call_command("makemigrations", "--check", "--dry-run")

    assert "No changes detected" in capsys.readouterr().out


def test_migrate_logs_no_line_per_table(tmp_path):
    """On an empty database these were more than a hundred lines."""
    migrated = python("manage.py", "migrate", DJANGO_SECRET_KEY="any", DATABASE_URL=f"sqlite:///{tmp_path}/db.sqlite3", REDIS_URL="fakeredis://")

    assert (migrated.code, migrated.stderr) == (0, "")
    assert "Applying housing.0001_initial... OK" in migrated.stdout


# Commands

COMMANDS = {name: app for name, app in get_commands().items() if app.startswith("housing")}


def parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield a parser, and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_each_argument(name):
    """`--help` is always at hand, also where nobody can read the documents."""
    command = load_command_class(COMMANDS[name], name)
    unexplained = [
        action.dest
        for parser in parsers(command.create_parser("manage.py", name))
        for action in parser._actions
        if not (action.help or isinstance(action, _SubParsersAction))
    ]

    assert command.help
    assert unexplained == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_explanation_of_an_argument_is_a_phrase_like_argparses_own(name):
    """It begins with a small letter, and has no full stop."""
    command = load_command_class(COMMANDS[name], name)
    djangos = next(each for each in type(command).__mro__ if each.__module__.startswith("django."))
    inherited = {action.dest for action in djangos().create_parser("manage.py", name)._actions}
    ours = [
        explained.help
        for parser in parsers(command.create_parser("manage.py", name))
        for action in parser._actions
        for explained in (action, *getattr(action, "_choices_actions", ()))
        if explained.dest not in inherited and explained.help
    ]

    assert [text for text in ours if text[0].isupper() or text.endswith(".")] == []


# Names


def test_every_model_has_a_readable_text(twenty_properties):
    """The admin shows these texts."""
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
