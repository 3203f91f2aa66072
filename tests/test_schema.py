"""The OpenAPI schema at `/api/schema/`, and a client that is generated from it. The schema describes exactly what the service validates and returns."""

import json
import re
import sys
from datetime import UTC
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlencode

import httpx
import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import OperationalError, connection
from django.forms import Field
from django.test import Client
from jsonschema import Draft4Validator
from openapi_python_client import generate
from openapi_python_client.config import Config, ConfigFile, MetaType

from housing.filters import MAX_ID, Query
from housing.schema import values_of
from tests.fixtures.cache import clear_the_cache
from tests.fixtures.responses import VARIANTS


def schema():
    """The schema, as a client gets it."""
    return Client().get("/api/schema/", headers={"Accept": "application/vnd.oai.openapi+json"}).json()


@pytest.fixture(scope="module")
def paths():
    """The operations of the schema, by path."""
    return schema()["paths"]


@pytest.fixture
def no_database():
    """Every statement fails, as it does while the database is shutting down."""

    def refuse(execute, sql, *rest):
        raise OperationalError("the database is shutting down")

    with connection.execute_wrapper(refuse):
        yield


def described(operation, place):
    """The parameters of an operation in the query, in the path or in a header, by name."""
    return {parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == place}


# Its content


def test_the_schema_is_generated_without_a_warning(transactional_db, capsys):
    """A warning means that part of the schema was guessed."""
    call_command("spectacular", "--validate", "--fail-on-warn")
    assert "openapi: 3" in capsys.readouterr().out


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_schema_has_every_field_of_a_response(home, read, variant):
    """A client need not expect a field to be absent. The schema says which may be null."""
    components = schema()["components"]["schemas"]

    def check(name, shown):
        assert set(components[name]["required"]) == set(components[name]["properties"]) == set(shown), name
        for key in ("location", "agent", "office"):
            if key in shown:
                check(key.title(), shown[key])

    check("PaginatedPropertyList", read(variant).json)
    check("Property", read(variant).rows[0])
    check("PropertyDetail", read(f"{variant}/{home.pk}").json)
    check("PropertyImage", read(f"{variant}/{home.pk}").json["images"][0])


def values_around(schema):
    """The bounds of what a parameter accepts, and the values next to them."""
    around = {
        "minimum": lambda least: [least - 1, least],
        "maximum": lambda most: [most, most + 1],
        "enum": lambda values: [*values, "".join(values)],
        "maxLength": lambda length: ["x" * length, "x" * (length + 1)],
    }
    return [value for bound, values in around.items() if bound in schema for value in values(schema[bound])]


FAR_OUTSIDE = (-(10**20), 2.5, 10**20, "\0", "x" * 1000)
"""Values that a parameter without a bound would accept."""


def accepts(schema, value):
    """Whether the schema allows this value."""
    return Draft4Validator(schema).is_valid(value)


def test_every_description_in_the_schema_is_a_sentence():
    """A reader of the documents sees them all. Lists of choices have no sentences."""
    found, left = [], [schema()]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found.append(part.get("description"))
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    texts = [text for text in found if isinstance(text, str) and not text.startswith("* ")]

    assert len(texts) > 40
    assert [text for text in texts if not re.fullmatch(r"(`|[A-Z][a-z]*[ '`]).*\.", text, re.DOTALL)] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_schema_accepts_a_value_of_a_parameter_exactly_when_the_service_does(transactional_db, paths, read, variant):
    """Each parameter gets the bounds of all of them, and the values next to these. Only the service can judge a cursor."""
    parameters = described(paths[VARIANTS[variant]]["get"], "query")
    several = [*FAR_OUTSIDE, *(value for parameter in parameters.values() for value in values_around(parameter["schema"]))]
    values = list({repr(value): value for value in several}.values())  # 1 is not 1.0

    assert set(parameters) == set(Query.filters.filters)
    assert list(read(variant, cursor="x").json) == ["cursor"]
    for name, parameter in parameters.items():
        schema = parameter["schema"]
        assert parameter["description"].endswith("."), name
        assert accepts(schema, schema.get("default", next(filter(partial(accepts, schema), values)))), name
        for value in [] if name == "cursor" else map(str, values) if schema["type"] == "string" else values:
            response = read(variant, **{name: value})
            assert (response.status == 200) == accepts(schema, value), (name, value)
            assert response.status == 200 or list(response.json) == [name], (name, value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_id_outside_of_the_bounds_in_the_schema_is_not_found(home, paths, read, variant):
    """It is 404 and not 400, because the id is part of the path."""
    [(name, parameter)] = described(paths[f"{VARIANTS[variant]}{{id}}/"]["get"], "path").items()

    assert (name, parameter["description"]) == ("id", "Id of the property.")
    assert parameter["schema"] == {"type": "integer", "minimum": 1, "maximum": MAX_ID}
    for pk in (home.pk + 10**6, 0, MAX_ID + 1, "x"):
        response = read(f"{variant}/{pk}")
        assert (response.status, list(response.json)) == (404, ["detail"]), pk


def test_a_field_of_an_unknown_kind_has_no_description():
    """A new filter without its bounds in the schema would be a guess."""
    with pytest.raises(TypeError, match="The schema cannot describe a Field"):
        values_of(Field())


TOO_MANY = urlencode({f"unknown{number}": "" for number in range(settings.DATA_UPLOAD_MAX_NUMBER_FIELDS + 1)})

OF_A_CACHE = {"Cache-Status", "Cache-Control", "ETag", "Vary", "Server-Timing"}
"""The headers that the schema must have if a successful response has them."""

OF_AN_ERROR = {405: {"Allow"}, 503: {"Retry-After"}}
"""Status → the headers that the schema must have."""


@pytest.mark.parametrize("kind", ["list", "detail"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_schema_has_every_status_code_with_its_body_and_headers(home, paths, client, request, variant, kind):
    """Each is provoked, and has the described headers."""
    template = VARIANTS[variant] + {"list": "", "detail": "{id}/"}[kind]
    path, missing = (template.replace("{id}", str(pk)) for pk in (home.pk, 0))
    html, etag = {"Accept": "text/html"}, client.get(path).headers.get("ETag")
    provoked = [client.get(path), client.post(path), client.get(path, headers={"Accept": "text/csv"}), client.get(path, headers=html, QUERY_STRING=TOO_MANY)]
    provoked += [client.get(missing)] if kind == "detail" else []
    provoked += [client.get(path, headers={"If-None-Match": etag}), client.get(path, headers={"If-Match": '"another"'})] if etag else []
    request.getfixturevalue("no_database")
    clear_the_cache()
    provoked.append(client.get(path))

    documented = paths[template]["get"]["responses"]
    assert sorted(documented) == sorted(str(response.status_code) for response in provoked)
    for response in provoked:
        said = documented[str(response.status_code)]
        assert said["description"].endswith(".")
        assert ("content" in said) == bool(response.content)
        assert set(said["headers"]) <= set(response.headers), response.status_code
        told = set(response.headers) & OF_A_CACHE if response.status_code < 400 else OF_AN_ERROR.get(response.status_code, set())
        assert told <= set(said["headers"]), response.status_code


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_unavailable_database_is_answered_with_503_and_retry_after(home, read, no_database, variant):
    """A client knows when to try again."""
    response = read(variant)

    assert (response.status, response.json) == (503, {"detail": "The database is unavailable. Try again later."})
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_too_many_parameters_are_refused_with_400_as_json(client, variant):
    """Django limits them, because each costs memory. Its own response is HTML."""
    response = client.get(VARIANTS[variant], QUERY_STRING=TOO_MANY)

    assert (response.status_code, response.json()) == (400, {"non_field_errors": ["There are more than 1000 parameters."]})


@pytest.mark.parametrize(
    "path",
    [
        "/api/",
        "/api/nothing/",
        "/api/properties/cached/-1/",
        "/api/properties/cached/x/",
        "/api/properties/cached/%0A/",
        "/api/a%0D%0Ab/",
        "/api/%00%E2%80%A8/",
    ],
)
def test_an_unknown_path_of_the_api_is_404_as_json(client, path):
    """A client that expects JSON cannot parse Django's HTML page."""
    response = client.get(path, headers={"Accept": "application/json"})

    assert (response.status_code, list(response.json())) == (404, ["detail"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_path_without_its_last_slash_is_still_redirected(client, variant):
    """The response to unknown paths does not match it."""
    path = VARIANTS[variant]

    assert client.get(path.rstrip("/")).headers["Location"] == path


# A client that is generated from it


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """The generated package: `models`, and the functions of each operation by its path."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "schema.json").write_text(json.dumps(schema()))
    config = ConfigFile(post_hooks=[])  # without formatting the code
    found = generate(config=Config.from_sources(config, MetaType.NONE, folder / "schema.json", "utf-8", overwrite=True, output_path=folder / "housing_client"))
    assert [f"{problem.header} {problem.detail}" for problem in found] == [], "the generator left something out"
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        operations = {path: import_module(f"housing_client.api.properties.{named['get']['operationId']}") for path, named in schema()["paths"].items()}
        yield SimpleNamespace(Client=import_module("housing_client").Client, models=import_module("housing_client.models"), operations=operations)
    for name in [name for name in sys.modules if name.partition(".")[0] == "housing_client"]:
        del sys.modules[name]


@pytest.fixture
def call(package):
    """`call(path, …)`: send the request with the generated client. The service answers in this process, as any WSGI server would let it."""

    def call(path, headers=None, **parameters):
        sent = {"headers": {"Accept": "application/json"} | (headers or {}), "httpx_args": {"transport": httpx.WSGITransport(app=WSGIHandler())}}
        with package.Client(base_url="http://testserver", raise_on_unexpected_status=True, **sent) as client:
            return package.operations[path].sync_detailed(client=client, **parameters)

    return call


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_generated_client_filters_a_list_and_follows_next(twenty_properties, package, call, variant):
    """Its user sees typed rows, and reads every page with the parameters of `next`."""
    path = VARIANTS[variant]
    ordering = next(kind for name, kind in vars(package.operations[path]).items() if name.endswith("Ordering"))
    status = next(kind for name, kind in vars(package.operations[path]).items() if name.endswith("Status") and name != "HTTPStatus")
    asked = {"city": "Springfield", "min_price": 305_000.0, "status": status.AVAILABLE, "ordering": ordering.LOWEST_PRICE_FIRST, "page_size": 6}

    pages = [call(path, **asked).parsed]
    while pages[-1].next_:
        pages.append(call(path, **asked, cursor=dict(parse_qsl(pages[-1].next_.removeprefix("?")))["cursor"]).parsed)

    assert [len(page.results) for page in pages] == [6, 6, 3]
    assert [row.title for page in pages for row in page.results] == [f"Home {number}" for number in range(5, 20)]
    first, home = pages[0].results[0], twenty_properties[5]
    assert (first.price, first.bedrooms, first.area, first.status.value) == ("305000.00", 3, None, "available")
    assert (first.created_at, first.created_at.tzinfo is not None) == (home.created_at.astimezone(UTC), True)
    assert (first.location.city, first.agent.office.name) == ("Springfield", "Office 5")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_generated_client_gets_one_property_with_its_images(home, call, variant):
    """A field that is null in the database is None, and every field is there."""
    shown = call(f"{VARIANTS[variant]}{{id}}/", id=home.pk).parsed

    assert (shown.id, shown.title) == (home.pk, "Home 0")
    assert [(image.position, image.caption, image.url) for image in shown.images] == [(image.position, image.caption, image.url) for image in home.images.all()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_generated_client_parses_every_error(home, package, call, request, variant):
    """Each error has a class of its own, with the attributes that the service fills."""
    path, error = VARIANTS[variant], package.models.Error

    refused = call(path, min_price=0.001, page_size=0)
    assert (refused.status_code, type(refused.parsed)) == (400, package.models.ParameterErrors)
    assert refused.parsed.min_price == ["Ensure that there are no more than 2 decimal places."]
    assert refused.parsed.page_size == ["Ensure this value is greater than or equal to 1."]
    assert not refused.parsed.city

    for pk in (home.pk + 10**6, -1):
        missing = call(f"{path}{{id}}/", id=pk)
        assert (missing.status_code, type(missing.parsed)) == (404, error)

    unacceptable = call(path, headers={"Accept": "text/csv"})
    assert (unacceptable.status_code, unacceptable.parsed) == (406, error("Could not satisfy the request Accept header."))

    request.getfixturevalue("no_database")
    unavailable = call(path, city="not cached")
    assert (unavailable.status_code, unavailable.parsed) == (503, error("The database is unavailable. Try again later."))
    assert unavailable.headers["Retry-After"] == "5"


def test_a_generated_client_can_ask_whether_a_response_has_changed(home, call):
    """It gets 304 until a write changes the response."""
    path = VARIANTS["cached"]
    etag = call(path).headers["ETag"]

    same = call(path, if_none_match=etag)
    assert (same.status_code, same.parsed, same.headers["Cache-Status"]) == (304, None, "housing; hit")

    home.price += 1
    home.save()
    assert call(path, if_none_match=etag).status_code == 200
