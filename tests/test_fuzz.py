"""Requests that the schema allows, and requests that it forbids: schemathesis draws them, and judges each response by the schema."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_headers_conformance, response_schema_conformance, status_code_conformance

from housing.wsgi import Application
from tests.fixtures.responses import VARIANTS

EXAMPLES = 40
"""Requests for each operation and kind in the suite. `make fuzz` sends a hundred times as many."""

JUDGED_BY = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]


@pytest.fixture
def operations(home, settings):
    """The operations of the schema as schemathesis reads it, by path."""
    settings.ALLOWED_HOSTS = ["localhost"]  # schemathesis's own
    schema = schemathesis.openapi.from_wsgi("/api/schema/", Application(), headers={"Accept": "application/vnd.oai.openapi+json"})
    return {found.ok().path: found.ok() for found in schema.get_all_operations()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("path", [f"{path}{kind}" for path in VARIANTS.values() for kind in ("", "{id}/")])
def test_every_response_is_as_the_schema_says(home, operations, path, mode, pytestconfig, record_property):
    """It has a status, headers and a body that the schema describes, and no status is 500. The seed is fixed, so that a failure is the same in each run.

    No drawn id is that of a property, so each second allowed request has the id of one.
    """
    statuses = Counter()

    @hypothesis_settings(
        max_examples=EXAMPLES * (100 if pytestconfig.option.fuzz else 1),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operations[path].as_strategy(generation_mode=mode))
    def judged(case):
        if mode is GenerationMode.POSITIVE and "{id}" in path and statuses.total() % 2:
            case.path_parameters["id"] = home.pk
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=JUDGED_BY)

    judged()

    listed = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    record_property("counted", f"{statuses.total()} requests: {listed}")
    assert statuses
    assert mode is GenerationMode.NEGATIVE or statuses[200] > 0, "no allowed request got a page, so no body was judged"
