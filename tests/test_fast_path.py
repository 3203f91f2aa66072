"""The fast path: hits are answered before Django, with the same status, headers and bytes."""

import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client

from housing.freshness.journal import Journal
from housing.freshness.metrics import counter_of
from housing.views import CachedPropertyListView
from tests.fixtures import fast_client
from tests.fixtures.hostile import METHODS, Answer, addresses, every, headers, send
from tests.fixtures.responses import VARIANTS, ask
from tests.fixtures.served import Served
from tests.stacks import TIMEOUT

LIST = VARIANTS["cached"]
HEADERS = headers()


MOVING = {"Set-Cookie": r"=[^;]+", "Server-Timing": r"dur=[\d.]+", "Expires": r".+"}
"""Header → the parts of its value that differ in each response: tokens and times."""


def compared(answer):
    """A response without what differs in each."""
    fields = {name: re.sub(MOVING[name], "…", value) if name in MOVING else value for name, value in answer.headers.items()}
    if is_a_page := fields.get("Content-Type", "").startswith("text/html"):
        fields["Content-Length"] = "…"
    return answer.status, list(fields.items()), is_a_page or answer.body


# The same response


def test_a_hit_is_answered_before_django_with_one_command_and_no_query(served, queries, redis_commands):
    """Middleware takes two thirds of the time of a hit."""
    by_django = send(served.django, LIST)
    served.learn()

    with queries.exactly(0, because="it is a hit"), redis_commands.exactly(1, because="the lookup is one script"):
        answer, is_before = served.get()

    assert (is_before, compared(answer)) == (True, compared(send(served.django, LIST)))
    assert (answer.status, answer.body, answer.headers["Cache-Status"]) == (200, by_django.body, "housing; hit")
    assert re.fullmatch(r'sql;desc="0 queries";dur=0.00, total;dur=\d+\.\d\d', answer.headers["Server-Timing"])
    assert {"X-Frame-Options", "X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy"} < answer.headers.keys()


def test_a_server_gets_the_fast_path(served):
    """gunicorn and runserver call this object."""
    assert isinstance(import_module("housing.wsgi").application, type(served.service))


PARTS = {
    **HEADERS,
    **{f"Accept: {accept}": {"HTTP_ACCEPT": accept} for accept in ("application/json", "*/*", "text/html", "application/json; indent=4", "image/png", "")},
    **{f"If-None-Match: {known}": {"HTTP_IF_NONE_MATCH": known} for known in ("{etag}", "W/{etag}", "*", '"another"', '"another", {etag}', "{etag")},
    **{f"If-Match: {wanted}": {"HTTP_IF_MATCH": wanted} for wanted in ("{etag}", "W/{etag}", "*", '"another"', "")},
    "both": {"HTTP_IF_MATCH": "{etag}", "HTTP_IF_NONE_MATCH": "{etag}"},
    "a cookie": {"HTTP_COOKIE": "theme=dark"},
    "a session that does not exist": {"HTTP_COOKIE": "sessionid=abcdefgh"},
    "a language": {"HTTP_ACCEPT_LANGUAGE": "de"},
    "a browser": {"HTTP_USER_AGENT": "Mozilla/5.0", "HTTP_REFERER": "http://example.com/"},
    "HTTPS": {"wsgi.url_scheme": "https"},
    "a proxy": {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_FOR": "10.0.0.1", "HTTP_X_FORWARDED_HOST": "unknown.example"},
    "a stranger": {"HTTP_X_FORWARDED_PROTO": "https", "REMOTE_ADDR": "10.0.0.1"},
    "no client": {"REMOTE_ADDR": None},
    "a port": {"HTTP_HOST": "testserver:8000"},
    "another method": {"HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE"},
    "a chunked body": {"HTTP_TRANSFER_ENCODING": "chunked"},
}
"""A name and the parts of a request. `{etag}` is the current one."""


@pytest.mark.slow
def test_each_request_for_a_cached_page_gets_the_response_of_django(home, settings, fast_path_clock):
    """Django alone decides about hosts, methods, formats, conditions and headers. The fast path repeats what it has seen."""
    settings.SECURE_HSTS_SECONDS = 3600
    served, before, turns = Served(), 0, itertools.cycle(METHODS)
    for address in (LIST, f"{LIST}{home.pk}/"):
        etag = served.learn(address).headers["ETag"]
        for name, parts in PARTS.items():
            filled = {part: value and value.replace("{etag}", etag) if part.startswith("HTTP_IF") else value for part, value in parts.items()}
            for method in ("GET", "HEAD", next(turns)):
                before += same(served, address, method, name, **filled)
    assert before > 50


def same(served, address, method="GET", name="", **parts):
    """Compare the answers to a request until it is known with Django's own. Returns whether the last one was given before Django."""
    for _ in range(5):
        answer, is_before = served.get(address, method, **{"HTTP_X_REQUEST_ID": "an-id"} | parts)
    by_django = send(served.django, address, method, **{"HTTP_X_REQUEST_ID": "an-id"} | parts)
    assert compared(answer) == compared(by_django), (method, address, name)
    return is_before


@pytest.mark.slow
def test_each_parameter_gets_the_response_of_django(served):
    """Values that are right, empty, wrong, repeated or unknown."""
    valid = {"city": "Springfield", "status": "available", "property_type": "house", "ordering": "price"}
    before = 0
    for name in [*CachedPropertyListView.filterset_class.base_filters, "unknown"]:
        for value in (valid.get(name, "1"), "", "%00", "x", "9" * 400):
            before += same(served, LIST, QUERY_STRING=f"{name}={value}")
            before += same(served, LIST, QUERY_STRING=f"{name}={value}&{name}={value}")
    assert before > 20
    assert same(served, LIST, QUERY_STRING=every("1")) is False


@pytest.mark.slow
def test_each_other_address_gets_the_response_of_django(home, served):
    """Only hits are learned."""
    for address in addresses(home.pk):
        if address not in (LIST, f"{LIST}{home.pk}/") and not address.startswith("/health/"):  # whose body has a time
            assert same(served, address, HTTP_ACCEPT="text/html" if address.startswith("/admin/") else "application/json") is False, address


def test_a_client_that_has_the_page_gets_304_before_django(served):
    """A browser revalidates each time, and the ETag is compared in the same lookup."""
    etag = served.learn().headers["ETag"]

    answer = served.learn(HTTP_IF_NONE_MATCH=etag)

    assert compared(answer) == compared(send(served.django, LIST, HTTP_IF_NONE_MATCH=etag))
    assert (answer.status, answer.body) == (304, b"")
    assert served.get(HTTP_IF_NONE_MATCH='"another"')[0].status == 200


def test_a_logged_in_reader_gets_the_page_of_everybody_before_django(served):
    """The cookie is a part of the request that Django reads, so it is learned for this reader alone."""
    client = Client()
    client.force_login(User.objects.create_user("editor", is_staff=True))
    body = served.learn().body

    answers = [served.get(client=client) for _ in range(4)]

    assert [is_before for _, is_before in answers] == [False, False, True, True]
    assert {answer.body for answer, _ in answers} == {body}
    assert "Set-Cookie" not in answers[-1][0].headers


# As fresh


def test_a_saved_price_is_in_the_next_read(served, reprice, redis_commands):
    """The journal decides in both ways. A miss that was found before Django is not looked up again."""
    served.learn()
    reprice(1)

    with redis_commands.exactly(2, because="a miss is a lookup and a store"):
        answer, is_before = served.get()

    assert (is_before, answer.headers["Cache-Status"]) == (False, "housing; fwd=stale; stored")
    assert b'"price":"1.00"' in answer.body
    again, is_before = served.get()
    assert (is_before, again.body, again.headers["ETag"]) == (True, answer.body, answer.headers["ETag"])


def test_a_read_inside_a_transaction_goes_on_to_django(served, redis_commands):
    """Its snapshot may be older than a committed write. Django itself would end the transaction before it answers, so nothing stands in for its answer."""
    served.learn()
    served.django = lambda environ, start_response: start_response("200 OK", []) or []

    with transaction.atomic(), redis_commands.exactly(0, because="a transaction must see its own state, which the cache does not have"):
        assert served.get() == (Answer(200, {}, b""), False)


def test_without_redis_a_known_request_looks_up_once_and_is_answered_from_the_database(served, redis_unreachable, monkeypatch, caplog):
    """The error of the lookup is passed on to Django's path. A second try would wait a second time for a server that does not reply."""
    served.learn()
    asked, lookup = [], Journal.lookup
    monkeypatch.setattr(Journal, "lookup", lambda *args, **options: asked.append(args) or lookup(*args, **options))

    with redis_unreachable():
        answer, is_before = served.get()

    assert (is_before, answer.status, answer.headers["Cache-Status"]) == (False, 200, "housing; fwd=bypass; detail=unreachable")
    assert (len(asked), [line.partition(":")[0] for line in caplog.messages]) == (1, ["Served from the database"])


def test_a_miss_that_no_view_takes_is_abandoned(served, reprice, monkeypatch):
    """Otherwise the next reader would wait for a fill that nobody has begun."""
    served.learn()
    reprice(1)
    django, served.django = served.django, lambda environ, start_response: start_response("503 Service Unavailable", []) or []

    assert served.get()[0].status == 503

    served.django = django
    monkeypatch.setattr("housing.freshness.entries.sleep", pytest.fail)  # with which a reader waits
    assert send(served.django, LIST).headers["Cache-Status"] == "housing; fwd=stale; stored"


def test_a_look_that_is_taken_once_is_not_taken_again(served, reprice, meanwhile):
    """A fill that a write races is read again, after another look."""
    served.learn()
    reprice(1)

    with meanwhile(lambda: reprice(2)):
        answer, _ = served.get()

    assert b'"price":"2.00"' in answer.body
    assert answer.headers["Cache-Status"].endswith("; stored")
    assert send(served.django, LIST).body == answer.body


def test_a_look_before_django_waits_no_longer_than_that_of_a_view(served, settings, reprice, monkeypatch):
    """Nobody waits for another's fill if FRESHNESS_WAIT_TIMEOUT is 0."""
    settings.FRESHNESS_WAIT_TIMEOUT = 0
    served.learn()
    reprice(1)
    asked, lookup = [], Journal.lookup
    monkeypatch.setattr(Journal, "lookup", lambda *args, may_wait, **options: asked.append(may_wait) or lookup(*args, may_wait=may_wait, **options))

    assert served.get()[0].status == 200
    assert send(served.django, LIST).status == 200

    assert asked == [False, False]


def test_hits_before_django_are_counted(served, settings):
    """The metrics are those of all responses."""
    settings.FRESHNESS_METRICS_TOKEN = "a token"
    served.learn()
    counted = counter_of("housing; hit")._value.get()

    assert served.get()[1] is True

    assert counter_of("housing; hit")._value.get() == counted + 1


def test_threads_get_their_own_pages(served):
    """The memory belongs to all threads of a process, and each has its own connections."""
    pages = {f"page_size={size}": served.learn(QUERY_STRING=f"page_size={size}").body for size in (1, 2, 3, 4)}
    barrier = threading.Barrier(4)

    def read(query):
        barrier.wait(TIMEOUT)
        return {served.get(QUERY_STRING=query)[0].body for _ in range(20)}

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read, pages)) == [{body} for body in pages.values()]


# Equal requests


def test_requests_that_differ_in_unread_headers_are_equal(served):
    """Otherwise each browser and each client behind a proxy would be answered by Django."""
    served.learn(HTTP_X_FORWARDED_FOR="10.0.0.1")

    for parts in ({"HTTP_USER_AGENT": "Mozilla/5.0"}, {"HTTP_REFERER": "http://a"}, {"HTTP_X_FORWARDED_FOR": "10.0.0.2"}, {"REMOTE_PORT": "7"}):
        assert served.get(**{"HTTP_X_FORWARDED_FOR": "10.0.0.1"} | parts)[1] is True, parts


def test_a_refused_host_is_refused_after_an_accepted_one(served):
    """ALLOWED_HOSTS is Django's decision for each host."""
    served.learn()

    answer, is_before = served.get(HTTP_HOST="unknown.example")

    assert (answer.status, is_before) == (400, False)


def test_a_header_that_a_middleware_reads_is_part_of_the_request(served_with):
    """A response that depends on it is given to requests with the same value only."""
    served = served_with("tenant")
    assert served.learn(HTTP_X_TENANT="a").headers["X-Tenant"] == "tenant a"

    assert served.get(HTTP_X_TENANT="b")[0].headers["X-Tenant"] == "tenant b"
    assert served.get()[0].headers["X-Tenant"] == "tenant None"
    assert served.learn(HTTP_X_TENANT="b").headers["X-Tenant"] == "tenant b"


def test_a_refused_browser_is_refused_after_an_accepted_one(served, settings):
    """Django's middleware reads the name of the browser for this setting alone."""
    settings.DISALLOWED_USER_AGENTS = [re.compile("bad")]
    served.learn(HTTP_USER_AGENT="good")

    answer, is_before = served.get(HTTP_USER_AGENT="bad")

    assert (answer.status, is_before) == (403, False)


@pytest.mark.parametrize("parts", [{"CONTENT_LENGTH": "2", "body": "{}"}, {"HTTP_TRANSFER_ENCODING": "chunked"}, {"HTTP_IF_MATCH": "*"}])
def test_a_request_with_a_body_or_if_match_is_answered_by_django(served, parts):
    """The stream of a body is not a value that could be compared, and If-Match is a condition of the entry."""
    for _ in range(5):
        assert served.get(**parts)[1] is False


def test_a_setting_that_changes_empties_the_memory(served, settings):
    """Tests and shells change settings. A served process does not."""
    served.learn()

    settings.ALLOWED_HOSTS = ["another.example"]

    assert served.get()[0].status == 400


# In other chapters


def test_the_test_client_may_send_the_requests_of_all_chapters_through_it(twenty_properties, reprice, fast_path_clock):
    """Their promises hold for a server, too. `pytest --fast-path` learns from one response, so that most of their hits are answered before Django."""
    client, handler = Client(), fast_client.Handler()
    client.handler = handler

    seen = [ask(client).came_from for _ in range(5)]
    reprice(1)
    seen += [ask(client).came_from for _ in range(2)]

    assert seen == ["fwd=miss; stored", *["hit"] * 4, "fwd=stale; stored", "hit"]
    assert handler.before == 3  # it learns from two hits


# In another project


def test_a_project_that_has_copied_the_engine_answers_hits_before_django(blog):
    """Its lists, details, paginations and viewsets need no declaration."""
    pages = ["/posts/", "/posts/1/", "/other/paged/?page=2", "/other/set/1/", "/other/labels/", "/other/by-parameter/?author=grace"]
    found = blog.run(f"""
        def before_django():
            from django.core.wsgi import get_wsgi_application
            from django.test.utils import override_settings
            from freshness import FastPath, fast_path
            from wsgiref.util import setup_testing_defaults

            fast_path.CHECK = fast_path.LIFETIME = 1e9  # no comparison becomes due
            whole, asked = get_wsgi_application(), []

            def counted(environ, start_response):
                asked.append(1)
                return whole(environ, start_response)

            def answer(application, page):
                path, _, query = page.partition("?")
                environ = {{"PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": "localhost", "HTTP_ACCEPT": "application/json"}}
                setup_testing_defaults(environ)
                sent = []
                response = application(environ, lambda *parts: sent.extend(parts))
                body = b"".join(response)
                getattr(response, "close", bool)()
                return [sent, body.decode(), len(asked)]

            def compare(page):
                for _ in range(4):
                    answer(fast, page)
                *_, before = answer(fast, page)
                *known, after = answer(fast, page)
                *true, _ = answer(whole, page)
                return known == true, before == after

            with override_settings(DEBUG=False):
                fast = FastPath(counted)
                compared = {{page: compare(page) for page in {pages}}}
                Post.objects.filter(id=1).update(title="Zeal")
                return compared, answer(fast, "/posts/1/")[1]

        before_django()
    """)

    assert found[0] == {page: [True, True] for page in pages}
    assert '"title":"Zeal"' in found[1]
