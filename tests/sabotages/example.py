"""Sabotages of the example: its query parameters, cursors, serializers and views, and `make run`."""

from tests.sabotages import Sabotage

EXAMPLE = (
    Sabotage(
        "the city and office filters do not use PostgreSQL's indexed columns",
        "filters.py",
        "    def as_postgresql(",
        "    def as_oracle(",
        "test_contract.py::test_a_filter_by_city_or_office_uses_the_column_that_postgresql_indexes",
    ),
    Sabotage(
        "`make run` exits when the code changes",
        "run.py",
        "CHANGED = 3",
        "CHANGED = None",
        "test_setup.py::test_one_command_serves_a_fresh_folder_and_a_second_terminal_shares_the_cache",
    ),
    Sabotage(
        "`make run` waits for a server that ignores SIGTERM",
        "run.py",
        "        server.kill()",
        "        server.terminate()",
        "test_setup.py::test_a_server_that_ignores_signals_is_killed",
    ),
    Sabotage(
        "rows with equal values have no order",
        "filters.py",
        'order_by(f"{sign}{column}", f"{sign}id")',
        'order_by(f"{sign}{column}")',
        "test_cursors.py::test_a_cursor_pages_through_a_filtered_list_without_loss_or_repeat",
    ),
    Sabotage(
        "the last page of the remaining rows is taken for the first page",
        "filters.py",
        "if rows else Cursor(self.ordering, backward=True)",  # plain-words: code
        "if rows else Cursor(self.ordering, backward=False)",  # plain-words: code
        "test_cursors.py::test_a_cursor_past_the_end_leads_back_to_the_last_page",
    ),
    Sabotage(
        "a page that `previous` leads to has no `next`",
        "filters.py",
        "following = cursor.after(rows[-1], backward=False, pick=pick) if rows else None",  # plain-words: code
        "following = None",
        "test_cursors.py::test_previous_leads_back_to_the_same_page",
    ),
    Sabotage(
        "parsed parameters are memoized without their encoding",
        "filters.py",
        'request.META.get("QUERY_STRING", ""), request.encoding',
        'request.META.get("QUERY_STRING", ""), None',
        "test_contract.py::test_the_same_query_string_in_another_charset_has_other_values",
    ),
    Sabotage(
        "the fast serializer differs from DRF: it does not escape U+2028",
        "serializers.py",
        r'.replace(b"\xe2\x80\xa9", rb"\u2029")',
        "",
        "test_contract.py::test_line_separators_are_escaped_as_in_drf",
    ),
    Sabotage(
        "the fast serializer differs from DRF: it formats datetimes as Python does",
        "serializers.py",
        "orjson.dumps(shown, option=orjson.OPT_UTC_Z)",
        "orjson.dumps(shown)",
        "test_contract.py::test_the_cached_variant_returns_the_same_bytes_as_the_serializer_of_drf_for_any_property",
    ),
    Sabotage(
        "a 404 is stored",
        "views.py",
        "get_object_or_404(queries.properties().none())",
        'return b"null"',
        "test_hits.py::test_a_404_is_never_cached",
    ),
    Sabotage(
        "a key contains the query string as it was sent",
        "views.py",
        'return "list", query.canonical, read',
        'return "list", request.META["QUERY_STRING"], read',
        "test_hits.py::test_equivalent_query_strings_share_an_entry",
    ),
    Sabotage(
        "a key leaves out the query parameters",
        "views.py",
        'return "list", query.canonical, read',
        'return "list", "", read',
        "test_hits.py::test_every_parameter_has_its_own_entries",
    ),
    Sabotage(
        "a key leaves out the id of the property",
        "views.py",
        'return "detail", str(key), read',
        'return "detail", "", read',
        "test_hits.py::test_every_property_has_its_own_entry",
    ),
    Sabotage(
        "a link contains the host",
        "views.py",
        "return rendered(page.body(",
        "object.__setattr__(page, 'next', request.build_absolute_uri(page.next)); return rendered(page.body(",
        "test_hits.py::test_the_response_does_not_depend_on_the_host",
    ),
    Sabotage(
        "the two SELECTs of a detail see two states of the database",
        "views.py",
        "with nullcontext() if ours().in_transaction else ours().snapshot():",  # plain-words: code
        "if True:",
        "test_races.py::test_a_detail_never_combines_two_states_of_the_database",
    ),
    Sabotage(
        "a page's SELECT is compiled for each request",
        "views.py",
        "@lru_cache(maxsize=KEPT)\ndef select_of(",
        "@lru_cache(maxsize=0)\ndef select_of(",
        "test_latency.py::test_a_request_makes_no_more_python_calls_than_recorded[a cold page-]",
    ),
    Sabotage(
        "the SELECTs of a detail are compiled for each request",
        "views.py",
        "@lru_cache\ndef selects_of_a_detail(",
        "@lru_cache(maxsize=0)\ndef selects_of_a_detail(",
        "test_latency.py::test_a_request_makes_no_more_python_calls_than_recorded[a cold detail-]",
    ),
    Sabotage(
        "the form of a later page sends its cursor with another order",
        "filters.py",
        'method="read_by_the_query", widget=EmptyInput',
        'method="read_by_the_query"',
        "test_home.py::test_the_form_on_a_later_page_starts_another_order_at_its_first_page",
    ),
    Sabotage(
        "a seed writes other prices than the last version",
        "management/commands/seed.py",
        "random.uniform(0.75, 1.4)",
        "random.uniform(0.75, 1.5)",
        "test_seed.py::test_a_seed_is_the_same_in_every_version",
    ),
    Sabotage(
        "the first link of a paragraph has no known tag",
        "home.py",
        'tag = "a"',
        'tag = "link-to"',
        "test_home.py::test_every_link_of_the_promises_leads_somewhere",
    ),
)
