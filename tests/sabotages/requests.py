"""Sabotages of what becomes of hostile requests, and of the log."""

from tests.sabotages import Sabotage

REQUESTS = (
    Sabotage(
        "a charset that cannot be one of text reaches Django",
        "wsgi.py",
        'if "charset" in environ',
        'if "no charset" in environ',
        "test_requests.py::test_a_charset_that_cannot_be_one_of_text_is_refused_at_each_address[JSON-utf-7]",
    ),
    Sabotage(
        "a request that Django cannot read raises in the server",
        "wsgi.py",
        "except Exception as error:",
        "except ZeroDivisionError as error:",
        "test_requests.py::test_a_charset_that_cannot_be_one_of_text_is_refused_at_each_address[HTML-a\\x00b]",
    ),
    Sabotage(
        "a NUL in a session cookie reaches the database",
        "sessions.py",
        "key if key.isascii() and key.isalnum() else None",  # plain-words: code
        "key",
        "test_requests.py::test_a_session_cookie_with_a_nul_is_no_login",
        "real",
    ),
    Sabotage(
        "the docs render their response to OPTIONS without a template",
        "urls.py",
        ', http_method_names=["get", "head"]',
        "",
        "test_requests.py::test_the_docs_list_their_methods_to_options",
    ),
    Sabotage(
        "a page of the toolbar gets Django's 500",
        "outages.py",
        'if request.path_info.startswith("/__debug__/")',
        "if False",
        "test_requests.py::test_no_request_of_the_toolbar_gets_500",
    ),
    Sabotage(
        "an unexpected error gets Django's 500",
        "urls.py",
        'handler400, handler500 = "housing.refusals.bad_request", "housing.refusals.error"',
        "",
        "test_requests.py::test_an_unexpected_error_is_400_or_503_in_the_format_of_the_client[cached-JSON-error0-400]",
    ),
    Sabotage(
        "an error of a value is the service's",
        "refusals.py",
        "OF_A_VALUE = (ValueError, ArithmeticError, DataError)",
        "OF_A_VALUE = ()",
        "test_requests.py::test_an_unexpected_error_is_400_or_503_in_the_format_of_the_client[cached-JSON-error0-400]",
    ),
    Sabotage(
        "a client gets the words of an error",
        "refusals.py",
        '"This request has a value that cannot be used."',
        "str(exception)",
        "test_requests.py::test_an_unexpected_error_is_400_or_503_in_the_format_of_the_client[cached-JSON-error0-400]",
    ),
    Sabotage(
        "Django's own lines about refused writes are not shown",
        "logs.py",
        " or request.method not in SAFE",
        "",
        "test_requests.py::test_each_refused_write_and_each_refused_host_is_one_line[a write to the API]",
    ),
    Sabotage(
        "a HEAD request that is refused is a line",
        "logs.py",
        'SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")',
        'SAFE = ("GET", "OPTIONS", "TRACE")',
        "test_requests.py::test_a_read_that_is_refused_is_no_line[HEAD]",
    ),
    Sabotage(
        "a client chooses any id for the log",
        "logs.py",
        "if ID.fullmatch(sent)",  # plain-words: code
        "if sent",
        "test_requests.py::test_an_id_that_could_be_a_line_of_its_own_is_replaced",
    ),
    Sabotage(
        "a line break of a path is one in the log",
        "logs.py",
        "return line if line.isprintable()",  # plain-words: code
        "return line if True",  # plain-words: code
        "test_requests.py::test_an_id_that_could_be_a_line_of_its_own_is_replaced",
    ),
    Sabotage(
        "the weight of a format is ignored",
        "negotiation.py",
        "if most and found == most",  # plain-words: code
        "if True",
        "test_hits.py::test_an_unsupported_format_returns_406[cached-*/*;q=0]",
    ),
    Sabotage(
        "a weighted type bypasses the cache",
        "negotiation.py",
        'if name != "q" and',
        "if",
        "test_hits.py::test_all_requests_that_accept_plain_json_share_an_entry[application/json;q=0.9]",
    ),
    Sabotage(
        "If-Match is ignored",
        "freshness/views.py",
        "if wanted and found.etag",  # plain-words: code
        "if False and found.etag",
        "test_hits.py::test_if_match_is_compared_as_in_the_http_standard[W/{}-412]",
    ),
    Sabotage(
        "the schema has no 404",
        "schema.py",
        "responses[404] = ",
        "_ = ",
        "test_fuzz.py::test_every_response_is_as_the_schema_says[/api/properties/live/naive/{id}/-forbidden]",
    ),
    Sabotage(
        "pages that a client invents are kept without a limit",
        "views.py",
        "return Query.of(request).is_linked",
        "return True",
        "test_requests.py::test_pages_that_a_client_invents_delete_each_other_and_no_page_that_a_link_leads_to",
    ),
    Sabotage(
        "a page that a link leads to counts as invented",
        "filters.py",
        'LINKED = {"status", ',
        "LINKED = {",
        "test_requests.py::test_pages_that_a_client_invents_delete_each_other_and_no_page_that_a_link_leads_to",
    ),
    Sabotage(
        "the newest invented page is deleted, not the oldest",
        "freshness/journal.lua",
        "text(clock()), entry)",
        "text(-clock()), entry)",
        "test_requests.py::test_pages_that_a_client_invents_delete_each_other_and_no_page_that_a_link_leads_to",
    ),
    Sabotage(
        "check --deploy does not ask for a limit of memory",
        "freshness/checks.py",
        'if info.get("maxmemory", "0") == "0":',
        'if info.get("maxmemory", "1") == "1":',
        "test_servers.py::test_check_deploy_asks_for_a_limit_of_memory[0-1]",
    ),
    Sabotage(
        "a name is locked for every address",
        "settings.py",
        'AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]',
        'AXES_LOCKOUT_PARAMETERS = ["username"]',
        "test_admin.py::test_failed_logins_are_limited_for_the_name_and_the_address",
    ),
    Sabotage(
        "failed logins are not limited",
        "settings.py",
        "AXES_FAILURE_LIMIT = 5",
        "AXES_FAILURE_LIMIT = 500",
        "test_admin.py::test_failed_logins_are_limited_for_the_name_and_the_address",
    ),
    Sabotage(
        "pages have no policy",
        "policies.py",
        '.startswith("text/html") and',
        '.startswith("text/plain") and',
        "test_admin.py::test_each_page_has_a_policy_that_allows_only_files_of_this_service[GET]",
    ),
    Sabotage(
        "a refusal has no policy",
        "outages.py",
        ' | {"Content-Security-Policy": STRICT}',
        "",
        "test_admin.py::test_a_refusal_has_the_policy_too[parts1]",
    ),
    Sabotage(
        "a client chooses its address by a header",
        "settings.py",
        ', "NUM_PROXIES": 0',
        "",
        "test_admin.py::test_requests_to_the_api_are_limited_for_each_address_if_a_limit_is_set",
    ),
    Sabotage(
        "a form whose write is refused is lost",
        "admin.py",
        "except DatabaseError as error:",
        "except ZeroDivisionError as error:",
        "test_admin.py::test_a_form_whose_write_the_database_refuses_is_shown_again_with_the_reason[property-error0]",
    ),
    Sabotage(
        "a page about an error shows the passwords",
        "error_page.py",
        'text = text.replace(form, "********************")',
        "pass",
        "test_admin.py::test_the_page_about_an_error_in_debug_shows_no_password",
    ),
    Sabotage(
        "everybody may read the SQLite file",
        "run.py",
        "            file.chmod(0o600)\n",
        "",
        "test_admin.py::test_the_sqlite_file_of_make_run_is_readable_by_its_owner_alone",
    ),
)
