"""Sabotages of the schema, of what a client of the API gets, and of `make run`."""

from tests.sabotages import Sabotage

SCHEMA = (
    Sabotage(
        "the schema has no highest number",
        "schema.py",
        '"maximum": field.max_value',
        '"x-maximum": field.max_value',
        "test_schema.py::test_the_schema_accepts_a_value_of_a_parameter_exactly_when_the_service_does[cached]",
    ),
    Sabotage(
        "the schema allows a longer text than the service",
        "schema.py",
        '"maxLength": field.max_length',
        '"maxLength": field.max_length + 1',
        "test_schema.py::test_the_schema_accepts_a_value_of_a_parameter_exactly_when_the_service_does[cached]",
    ),
    Sabotage(
        "the schema does not describe a response",
        "schema.py",
        '"The property."',
        '""',
        "test_schema.py::test_the_schema_has_every_status_code_with_its_body_and_headers[cached-detail]",
    ),
    Sabotage(
        "the schema promises Retry-After in every response",
        "schema.py",
        "[503], int)",
        "ALL, int)",
        "test_schema.py::test_the_schema_has_every_status_code_with_its_body_and_headers[cached-list]",
    ),
    Sabotage(
        "the values of a parameter have no names for a client",
        "schema.py",
        '"x-enum-varnames"',
        '"x-names"',
        "test_schema.py::test_a_generated_client_filters_a_list_and_follows_next[cached]",
    ),
    Sabotage(
        "an error has no class of its own",
        "schema.py",
        'ERROR = inline_serializer("Error", {"detail": CharField()})',
        'ERROR = {"type": "object"}',
        "test_schema.py::test_a_generated_client_parses_every_error[cached]",
    ),
    Sabotage(
        "the schema lets a field of a response be absent",
        "serializers.py",
        'read_only_fields = fields = ["id", "name", "city"]',
        'fields = ["id", "name", "city"]',
        "test_schema.py::test_the_schema_has_every_field_of_a_response[cached]",
    ),
    Sabotage(
        "an unknown path of the API gets Django's HTML",
        "urls.py",
        '    re_path(r"^api/(?:[\\s\\S]*/)?\\Z", views.unknown_path),\n',
        "",
        "test_schema.py::test_an_unknown_path_of_the_api_is_404_as_json",
    ),
    Sabotage(
        "an unknown path with a line break gets Django's HTML",
        "urls.py",
        r"[\s\S]*",
        ".*",
        "test_schema.py::test_an_unknown_path_of_the_api_is_404_as_json",
    ),
    Sabotage(
        "an unknown path of the API hides the redirect to the path with a slash",
        "urls.py",
        'r"^api/(?:[\\s\\S]*/)?\\Z"',
        '"^api/"',
        "test_schema.py::test_a_path_without_its_last_slash_is_still_redirected",
    ),
    Sabotage(
        "the response to too many parameters lacks the headers of the API",
        "views.py",
        "except TooManyFieldsSent:",
        "except ZeroDivisionError:",
        "test_schema.py::test_the_schema_has_every_status_code_with_its_body_and_headers[cached-list]",
    ),
    Sabotage(
        "a description in the schema is no sentence",
        "schema.py",
        'description="The response has another ETag',
        'description="the response has another ETag',
        "test_schema.py::test_every_description_in_the_schema_is_a_sentence",
    ),
)

RUN = (
    Sabotage(
        "`make run` needs a package that it does not install",
        "run.py",
        "import django\n",
        "import django, packaging\n",
        "test_setup.py::test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_the_cache",
    ),
)
