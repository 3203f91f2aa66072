"""Hostile requests: no request gets 500, whatever its address, its method and its headers are. A refusal has the client's format, and a line in the log."""

import itertools
import json
import logging
import re
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from unittest.mock import Mock

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import DataError, OperationalError, connection
from django.test import Client
from django.urls import Resolver404, resolve
from django_redis import get_redis_connection

from housing.freshness.keys import LONG
from housing.freshness.settings import SETTINGS
from housing.logs import JSONLine, Line, Operators
from housing.wsgi import Application
from tests import ROOT
from tests.fixtures.cache import clear_the_cache, entries
from tests.fixtures.hostile import METHODS, addresses, filters, headers, send
from tests.fixtures.processes import any_free_port, clean, python
from tests.fixtures.responses import VARIANTS
from tests.fixtures.rows import make_properties
from tests.stacks import wait_for

HEADERS = headers()
JSON, HTML = {"HTTP_ACCEPT": "application/json"}, {"HTTP_ACCEPT": "text/html"}


@pytest.fixture(scope="module")
def application():
    """The service as a WSGI server has it."""
    return Application()


@pytest.fixture
def superuser(transactional_db):
    """A client that may see every page."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


# No request gets 500


@pytest.fixture
def statuses(record_property):
    """Counts the responses by their status, for the summary of `make fuzz`."""
    statuses = Counter()
    yield statuses
    listed = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    record_property("counted", f"{statuses.total()} requests: {listed}")


def kind_of(path):
    """The app and the view of an address of a model in the admin, or the address itself."""
    with suppress(Resolver404):
        view = resolve(path).func
        if hasattr(view, "model_admin"):
            return view.model_admin.opts.app_label, getattr(view.__wrapped__, "__func__", "the redirect to the form")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("of_the_admin", [False, True], ids=["of the service", "of the admin"])
def test_no_request_gets_500(home, superuser, application, of_the_admin, statuses, pytestconfig, monkeypatch):
    """Each address gets each hostile header, and each list of the admin gets each hostile filter. The methods take turns. On SQLite, the models of an app take
    turns, too, because they share the views of the admin. `make fuzz` sends all combinations, with and without a login.
    """
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)  # as on PostgreSQL, because thousands of connections take a second
    every = pytestconfig.option.fuzz
    paths = [path for path in addresses(home.pk) if path.startswith("/admin/") == of_the_admin and "logout" not in path]
    kinds = defaultdict(list)
    for path in paths:
        kinds[kind_of(path) if connection.vendor == "sqlite" and not every else path].append(path)
    turns = itertools.cycle(METHODS)
    hostile = [(path, *header, next(turns)) for kind in kinds.values() for path, header in zip(itertools.cycle(kind), HEADERS.items(), strict=False)]
    lists = [path for path in paths if every or re.fullmatch(r"/admin/\w+/\w+/", path)]
    hostile += [(path, *each, "GET" if kind_of(path) == path else next(turns)) for path in lists for each in filters().items()]
    for path, name, parts, turn in hostile:
        for method, client in itertools.product(METHODS, (None, superuser)) if every else [(turn, superuser if of_the_admin else None)]:
            answer = send(application, path, method, client, **parts)
            statuses[answer.status] += 1
            assert answer.status < 500, (method, path, name)
    assert {path for path, *_ in hostile} == set(paths)
    assert len(paths) > 20


IN_DEBUG = """
import django
django.setup()
import logging
logging.disable()
from tests.fixtures.cache import clear_the_cache, entries
from tests.fixtures.hostile import addresses, headers, send
from housing.wsgi import application
paths = [path for path in addresses(1) if path.startswith("/__debug__/")]
some = {name: parts for name, parts in headers().items() if "1,001" not in name}  # Django's page for them takes ten seconds in debug
found = {(path, name): send(application, path, **parts).status for path in paths for name, parts in some.items()}
for name in ("request_id", "panel_id", "signed", "template", "template_origin"):
    for path in paths:
        found[path, name] = send(application, path, QUERY_STRING=f"{name}=%00&request_id=1&template=a&template_origin=b:c:d&signed=x").status
assert len(paths) > 2
print([each for each, status in found.items() if status >= 500])
"""


def test_no_request_of_the_toolbar_gets_500(own_database):
    """Its pages exist in debug only."""
    environment = {"DATABASE_URL": own_database, "REDIS_URL": "fakeredis://", "DJANGO_SETTINGS_MODULE": "housing.settings"}
    ended = python("-c", IN_DEBUG, DJANGO_DEBUG="true", DJANGO_ALLOWED_HOSTS="testserver", **environment)

    assert (ended.stdout, ended.code) == ("[]\n", 0), ended.stderr


@pytest.mark.parametrize("charset", ["utf-7", "hex", "idna", "a\0b", "\xff"])
@pytest.mark.parametrize("accept", [JSON, HTML], ids=["JSON", "HTML"])
def test_a_charset_that_cannot_be_one_of_text_is_refused_at_each_address(home, application, accept, charset):
    """Django reads the query string in it before any middleware runs. In UTF-7 a `+` has another meaning."""
    for path in addresses(home.pk):
        refused = send(application, path, CONTENT_TYPE=f"a/b; charset={charset}", **accept)
        assert (refused.status, refused.headers["Content-Type"].partition(";")[0]) == (400, accept["HTTP_ACCEPT"]), path


def test_the_charsets_of_forms_are_still_read(home, application):
    """ASCII, ISO 8859 and those of Windows have no other meaning of the ASCII characters. Django ignores a charset that Python does not know."""
    for charset in ("utf-8", "UTF8", "us-ascii", "latin-1", "iso-8859-15", "windows-1252", "unknown", '"utf-8"'):
        assert send(application, VARIANTS["cached"], CONTENT_TYPE=f"a/b; charset={charset}").status == 200, charset


def test_too_many_parameters_are_refused_as_json_at_each_address_of_the_api(home, application):
    """Some addresses read no parameters, and need not refuse them."""
    for path in [path for path in addresses(home.pk) if path.startswith("/api/")]:
        for parts in (HEADERS["1,001 parameters"], HEADERS["1,001 parameters in UTF-8"]):
            answer = send(application, path, **parts, **JSON)
            if answer.status != 200 or path in VARIANTS.values():
                assert answer.status in (400, 404), path
                assert isinstance(json.loads(answer.body), dict), path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("price", ["0e1073741823", "-0e1073741823", "0E+999999999"])
def test_a_number_reaches_the_database_in_the_form_of_its_column(home, read, variant, price):
    """PostgreSQL 15 does not read an exponent of that size, although the number is zero."""
    sent = []

    def note(execute, sql, params, *rest):
        sent.extend(params or ())
        return execute(sql, params, *rest)

    with connection.execute_wrapper(note):
        response = read(variant, min_price=price)
    assert (response.status, len(response.rows)) == (200, 20)
    assert {"0.00", "-0.00"} & set(map(str, sent))


def test_a_session_cookie_with_a_nul_is_no_login(home, superuser, application):
    """PostgreSQL raises an error for it. The browser gets the page for everybody, and may log in."""
    for cookie in (HEADERS["a NUL in cookies"], HEADERS["a quoted NUL in cookies"]):
        assert send(application, "/admin/", **cookie).status == 302
        assert send(application, "/", **cookie).status == 200
    assert send(application, "/admin/", client=superuser).status == 200


def test_the_docs_list_their_methods_to_options(transactional_db, application):
    """API tools send OPTIONS to every address."""
    answer = send(application, "/api/docs/", "OPTIONS")

    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


# The last resort


@pytest.fixture
def broken(monkeypatch, transactional_db):
    """`broken(error)`: let each list raise this error."""

    def broken(error):
        def fail(*_):
            raise error

        monkeypatch.setattr("housing.filters.Query.__init__", fail)

    return broken


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a wrong value"), 400), (OverflowError("too large"), 400), (DataError("numeric"), 400), (TypeError("a bug"), 503)]
)
@pytest.mark.parametrize("accept", [JSON, HTML], ids=["JSON", "HTML"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_unexpected_error_is_400_or_503_in_the_format_of_the_client(broken, application, variant, accept, error, status, caplog):
    """An error of a value is the client's, and any other one is the service's. Neither response shows the error, and the log has it with its calls."""
    broken(error)

    answer = send(application, VARIANTS[variant], QUERY_STRING=f"search={status}{type(error).__name__}", **accept)

    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (status, accept["HTTP_ACCEPT"])
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert str(error).encode() not in answer.body
    [record] = caplog.records
    line = Line().format(record)
    assert line.startswith(f"ERROR {status} for {VARIANTS[variant]}: ")
    assert f"[GET {VARIANTS[variant]} {answer.headers['X-Request-ID']}] {type(error).__name__}: " in line
    assert re.search(r" < [^<]*test_requests\.py:\d+ fail", line)


@pytest.mark.parametrize("error", [TypeError("None"), OperationalError("the server closed the connection")])
def test_an_error_of_a_middleware_is_503_too(home, application, monkeypatch, caplog, error):
    """Not only views may fail."""
    monkeypatch.setattr("django.middleware.common.CommonMiddleware.process_request", Mock(side_effect=error))

    answer = send(application, "/", **HTML)

    assert (answer.status, b"Unavailable" in answer.body, len(caplog.records)) == (503, True, 1)


# Nobody fills Redis


def test_pages_that_a_client_invents_delete_each_other_and_no_page_that_a_link_leads_to(home, read, settings):
    """Otherwise 4,500 of them fill Redis, and the first page is evicted."""
    read("cached", min_price=0)
    settings.FRESHNESS_UNLINKED = int(5.5 * bytes_of_the_unlinked())
    clear_the_cache()
    linked = ["cached", f"cached/{home.pk}", "cached?ordering=price&status=available", "cached?property_type=house"]
    for target in (*linked, *(f"cached?page_size={size}" for size in range(21, 41)), *(f"cached?min_price={price}" for price in range(10, 30))):
        assert read(target).came_from == "fwd=miss; stored"

    assert len(entries()) == len(linked) + 5
    assert bytes_of_the_unlinked() <= settings.FRESHNESS_UNLINKED
    assert {read(target).came_from for target in (*linked, "cached?min_price=29", "cached?min_price=25")} == {"hit"}
    assert read("cached?min_price=24").came_from == "fwd=miss; stored"


def test_a_page_that_is_stored_again_is_the_newest_of_the_invented_ones(home, read, settings):
    """A page that is read and changed often stays, and counts once."""
    for size in (1, 2):
        read("cached", page_size=size)
    settings.FRESHNESS_UNLINKED = int(1.2 * bytes_of_the_unlinked())  # which gives every entry another key
    clear_the_cache()
    for size in (1, 2):
        read("cached", page_size=size)
    home.save()
    assert read("cached", page_size=1).came_from == "fwd=stale; stored"
    assert read("cached", page_size=3).came_from == "fwd=miss; stored"

    assert [read("cached", page_size=size).came_from for size in (1, 3, 2)] == ["hit", "hit", "fwd=miss; stored"]


def test_a_large_page_deletes_many_small_ones_and_itself_stays(home, read, settings):
    """The bytes count, and not the number. A page that is larger than all the others together may take is stored alone."""
    small = [f"cached?min_price={price}" for price in range(10)]
    for target in small:
        read(target)
    settings.FRESHNESS_UNLINKED = 1000

    assert read("cached?search=a").came_from == "fwd=miss; stored"
    assert read("cached?search=a").came_from == "hit"
    assert len(entries()) == 1
    assert bytes_of_the_unlinked() > settings.FRESHNESS_UNLINKED  # it counts


def test_pages_that_a_client_invents_take_at_most_a_quarter_of_redis():
    """Compose gives Redis 256 MB."""
    [limit] = re.findall(r"--maxmemory, (\d+)mb", (ROOT / "docker-compose.yml").read_text())

    assert SETTINGS["UNLINKED"].default <= int(limit) * 1_000_000 / 4


@pytest.mark.only("real")
@pytest.mark.parametrize("properties", [0, 1, 10, 100])
@pytest.mark.parametrize("search", ["", "a" * (LONG - len("page_size=100&search="))], ids=["a short key", "the longest key"])
def test_the_counted_bytes_are_those_that_redis_needs_and_at_most_twice_as_many(transactional_db, read, properties, search):
    """An operator plans with them. (Real only: fakeredis has no memory of its own.)

    Without `samples=0`, Redis measures five fields in an order of its own and multiplies. The body may be among them or not.
    """
    make_properties(properties)
    read("cached", page_size=99)
    client, [first], members = get_redis_connection("default"), entries(), f"{cache.make_key('journal')}:unlinked"
    before, counted = client.memory_usage(members, samples=0), bytes_of_the_unlinked()

    read("cached", page_size=100, search=search)
    [entry] = [key for key in entries() if key != first]

    needed = client.memory_usage(entry, samples=0) + client.memory_usage(members, samples=0) - before
    assert needed <= bytes_of_the_unlinked() - counted <= 2 * needed


def bytes_of_the_unlinked():
    """How many bytes the entries have to which no link leads, as the journal counts them."""
    client, members = get_redis_connection("default"), f"{cache.make_key('journal')}:unlinked"
    total = -int(client.zscore(members, "|bytes"))
    assert total == sum(int(member.partition(b"|")[0]) for member in client.zrangebyscore(members, 0, "+inf"))
    return total


# The log


def test_a_line_of_runserver_is_kept_in_debug_only(settings):
    """Its records have a socket as the request. An error in the filter would end the connection."""
    line = logging.makeLogRecord({"request": socket.socket, "status_code": 200, "levelno": logging.INFO})
    for debug in (True, False):
        settings.DEBUG = debug
        assert Operators().filter(line) is debug


def record(caplog, application, path, method="GET", **parts):
    """The records of a request that Django or the service has written for an operator."""
    caplog.clear()
    answer = send(application, path, method, **parts)
    [kept] = [handler for handler in logging.getLogger("django").handlers if handler.filters]
    return answer, [each for each in caplog.records if each.name.startswith("housing") or all(part.filter(each) for part in kept.filters)]


REFUSED = {
    "an unknown host": ("/", "GET", {"HTTP_HOST": "unknown.example"}, 400),
    "an unknown host of the API": (VARIANTS["cached"], "GET", {"HTTP_HOST": "unknown.example"}, 400),
    "a write to the API": (VARIANTS["cached"], "POST", {}, 405),
    "a DELETE of the demo page": ("/", "DELETE", {}, 403),
    "a change without a token": ("/change/property/1/", "POST", {}, 403),
    "a login without a token": ("/admin/login/", "POST", {}, 403),
}


@pytest.mark.parametrize(("path", "method", "parts", "status"), REFUSED.values(), ids=REFUSED)
def test_each_refused_write_and_each_refused_host_is_one_line(transactional_db, application, caplog, path, method, parts, status):
    """It has the method, the path and the id of the request. An operator who sees many of them knows where they come from."""
    answer, records = record(caplog, application, path, method, HTTP_X_REQUEST_ID="from-a-proxy.7", **parts)

    assert answer.status == status
    [line] = map(Line().format, records)
    assert line.endswith(f" [{method} {path} from-a-proxy.7]"), line


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_read_that_is_refused_is_no_line(transactional_db, application, caplog, method):
    """Link checkers and crawlers send thousands of them, also HEAD to addresses that take POST only."""
    for path in ("/change/property/1/", "/unknown/", "/api/unknown/", f"{VARIANTS['cached']}0/", "/admin/"):
        answer, records = record(caplog, application, path, method)
        assert (answer.status < 500, records) == (True, []), path


def test_a_request_that_waits_too_long_for_the_database_is_one_line(home, application, caplog, monkeypatch):
    """Each 503 is one, whoever has refused the request."""
    from housing.freshness.slots import Busy, cold_reads

    def busy():
        raise Busy

    monkeypatch.setattr(cold_reads, "enter", busy)
    for path in (*VARIANTS.values(), "/"):
        answer, records = record(caplog, application, path)
        assert (answer.status, len(records)) == (503, 1), path
        assert f"[GET {path} " in Line().format(records[0])


def test_an_id_that_could_be_a_line_of_its_own_is_replaced(transactional_db, application, caplog):
    """A client may send any `X-Request-ID`, and could otherwise write into the log. A path may have line breaks, too."""
    answer, records = record(caplog, application, "/a\r\nERROR b/", "POST", HTTP_X_REQUEST_ID="a\r\nERROR b")

    assert answer.status == 404
    [line] = map(Line().format, records)
    assert re.search(r" \[POST /a\\r\\nERROR b/ [0-9a-f]{32}\]$", line)


def test_a_line_as_json_has_the_same_facts(transactional_db, application, caplog):
    """DJANGO_LOG_FORMAT=json is for programs that collect logs."""
    _, [refused] = record(caplog, application, "/", "GET", HTTP_HOST="unknown.example", HTTP_X_REQUEST_ID="7")

    said = json.loads(JSONLine().format(refused))
    assert said.pop("time")
    assert said == {
        "level": "WARNING",
        "logger": "housing.outages",
        "message": "400 for /: Invalid HTTP_HOST header: 'unknown.example'. You may need to add 'unknown.example' to ALLOWED_HOSTS.",
        "method": "GET",
        "path": "/",
        "id": "7",
        "status": 400,
    }


def test_an_unknown_format_of_the_log_is_refused_at_the_start():
    """A misspelt one would otherwise be noticed when the log is needed."""
    ended = python("manage.py", "check", DJANGO_DEBUG="true", REDIS_URL="fakeredis://", DJANGO_LOG_FORMAT="xml")

    assert ended.stderr.endswith("DJANGO_LOG_FORMAT is neither line nor json.\n")


# As it is deployed


@contextmanager
def gunicorn(folder, database, **environment):
    """The service behind gunicorn, with an empty database. Yields a function that sends a request, and the file with its output."""
    port, output = any_free_port(), folder / "output"
    settings = {"DATABASE_URL": database, "REDIS_URL": "fakeredis://", "DJANGO_SECRET_KEY": "any", "DJANGO_ALLOWED_HOSTS": "127.0.0.1"}
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "housing.wsgi", "--bind", f"127.0.0.1:{port}"],
            cwd=ROOT,
            env=clean() | settings | {"WEB_CONCURRENCY": "1"} | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close(), ConnectionRefusedError)

        def request(method, path, **headers):
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request(method, path, headers={name.replace("__", "-"): value for name, value in headers.items()})
            with closing(connection), connection.getresponse() as response:
                response.read()
                return response

        yield request, output
    finally:
        process.terminate()
        process.wait(30)


def until(output, text):
    """The lines of the log, as soon as the last one has this text. Gunicorn writes a line after it has sent the response."""

    def check():
        assert text in output.read_text().splitlines()[-1]

    wait_for(check, AssertionError)
    return output.read_text().splitlines()


@pytest.mark.slow
def test_gunicorn_logs_each_request_and_takes_no_path_from_a_header(tmp_path, own_database):
    """A client that sends `SCRIPT_NAME` could get a 500 of the server otherwise. The access log has the id of the request, as the service's own lines have."""
    with gunicorn(tmp_path, own_database) as (request, output):
        assert request("GET", "/health/live/", SCRIPT_NAME="/x", PATH_INFO="/y").status == 200
        assert request("POST", VARIANTS["cached"], X__Request__ID="seven").status == 405
        lines = until(output, "405")

    assert any('"GET /health/live/ HTTP/1.1" 200' in line for line in lines)
    refused = [line for line in lines if "seven" in line]
    assert [line.startswith("WARNING Method Not Allowed") for line in refused] == [True, False]
    assert f'"POST {VARIANTS["cached"]} HTTP/1.1" 405' in refused[1]


@pytest.mark.slow
def test_every_line_of_gunicorn_is_json_if_the_log_is(tmp_path, own_database):
    """A path with quotes, backslashes or bytes is escaped."""
    with gunicorn(tmp_path, own_database, DJANGO_LOG_FORMAT="json") as (request, output):
        assert request("GET", '/a"\\b%00/', X__Request__ID='"', User__Agent='a"\\x\xff').status == 404
        lines = until(output, "404")

    logged = [json.loads(line) for line in lines]
    [access] = [line for line in logged if line.get("status") == 404]
    assert (access["method"], access["path"], access["client"], access["id"]) == ("GET", '/a"\\b\0/', "127.0.0.1", '"')
