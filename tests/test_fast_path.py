"""The fast path: hits are answered before Django, with the same status, headers and bytes."""

import itertools
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from types import ModuleType

import pytest
from django.contrib.auth.models import User
from django.core.signals import request_started
from django.db import transaction
from django.test import Client
from django.urls import path

from housing.freshness import fast_path
from housing.freshness.journal import Journal
from housing.freshness.metrics import counter_of
from housing.urls import urlpatterns as of_the_service
from housing.views import CachedPropertyListView
from housing.wsgi import Application, Service
from tests.fixtures import middleware
from tests.fixtures.hostile import METHODS, Answer, addresses, every, headers, send
from tests.fixtures.responses import VARIANTS
from tests.stacks import TIMEOUT

LIST = VARIANTS["cached"]
HEADERS = headers()


class Served:
    """The service as a server has it. `asked` counts the requests that Django answered."""

    def __init__(self):
        self.service, self.asked = Service(), 0
        self.fast_path = self.service.application
        self.django, self.fast_path.application = self.fast_path.application, self._ask

    def _ask(self, *request):
        self.asked += 1
        return self.django(*request)

    def get(self, address=LIST, method="GET", client=None, **parts):
        """Send a request. Returns the response, and whether it was answered before Django."""
        asked = self.asked
        answer = send(self.service, address, method, client, **parts)
        return answer, self.asked == asked

    def learn(self, address=LIST, method="GET", **parts):
        """Send a request until the service knows the answer, and check that it is given before Django."""
        for _ in range(4):
            self.get(address, method, **parts)
        answer, is_before = self.get(address, method, **parts)
        assert is_before, f"{method} {address} is answered by Django: {answer.status} {answer.headers}"
        return answer


@pytest.fixture
def served(twenty_properties):
    """The service with twenty properties."""
    return Served()


@pytest.fixture
def served_with(twenty_properties, settings):
    """`served_with(name)`: the service with one more middleware, which may be skipped."""

    def served_with(name):
        added = f"tests.fixtures.middleware.{name}"
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, added]
        settings.FRESHNESS_SKIPPED_MIDDLEWARE = [*settings.FRESHNESS_SKIPPED_MIDDLEWARE, added]
        return Served()

    return served_with


@pytest.fixture
def clock(monkeypatch):
    """The clock of the fast path, stopped: `clock.seconds += 1` advances it."""

    class Clock:
        seconds = fast_path.monotonic()

    monkeypatch.setattr(fast_path, "monotonic", lambda: Clock.seconds)
    return Clock


def compared(answer):
    """A response without what differs in each: times, and tokens in pages for people."""
    fields = {name: re.sub(r"dur=[\d.]+", "dur=…", value) for name, value in answer.headers.items()}
    fields = {name: re.sub(r"=[^;]+", "=…", value) if name == "Set-Cookie" else value for name, value in fields.items()}
    is_a_page = fields.get("Content-Type", "").startswith("text/html")
    return answer.status, list(fields.items()), len(answer.body) if is_a_page else answer.body


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
def test_each_request_for_a_cached_page_gets_the_response_of_django(home, served, settings):
    """Django alone decides about hosts, methods, formats, conditions and headers. The fast path repeats what it has seen."""
    settings.SECURE_HSTS_SECONDS = 3600
    before, turns = 0, itertools.cycle(METHODS)
    for address in (LIST, f"{LIST}{home.pk}/"):
        etag = served.learn(address).headers["ETag"]
        for name, parts in PARTS.items():
            filled = {part: value and value.replace("{etag}", etag) if part.startswith("HTTP_IF") else value for part, value in parts.items()}
            for method in ("GET", "HEAD", next(turns)):
                before += same(served, address, method, name, **filled)
    assert before > 50


def same(served, address, method="GET", name="", **parts):
    """Compare the answers to a request until it is known with Django's own. Returns whether the last one was given before Django."""
    settled = {part: value for part, value in parts.items() if part != "REMOTE_ADDR"}
    for _ in range(5):
        answer, is_before = served.get(address, method, **{"HTTP_X_REQUEST_ID": "an-id"} | parts)
    by_django = send(served.django, address, method, **{"HTTP_X_REQUEST_ID": "an-id"} | (parts if "REMOTE_ADDR" in parts else settled))
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
    """What is not cached is not remembered."""
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
    """The cookie is a part of the request that Django reads, so it is remembered for this reader alone."""
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


def test_without_redis_a_known_request_is_answered_from_the_database_and_redis_is_asked_once(served, redis_unreachable, settings, caplog):
    """The error of the lookup is passed on to Django's path. A second try would wait a second time for a server that does not reply."""
    served.learn()

    with redis_unreachable():
        answer, is_before = served.get()

    assert (is_before, answer.status, answer.headers["Cache-Status"]) == (False, 200, "housing; fwd=bypass; detail=unreachable")
    assert len([line for line in caplog.messages if line.startswith("Served from the database")]) == 1


def test_a_miss_that_no_view_takes_is_abandoned(served, reprice):
    """Otherwise the next reader would wait for a fill that nobody has begun."""
    served.learn()
    reprice(1)
    django, served.django = served.django, lambda environ, start_response: start_response("503 Service Unavailable", []) or []

    assert served.get()[0].status == 503

    served.django = django
    assert send(served.django, LIST).headers["Cache-Status"] == "housing; fwd=stale; stored"


def test_a_look_that_is_taken_once_is_not_taken_again(served, reprice, meanwhile):
    """A fill that a write races is read again, after another look."""
    served.learn()
    reprice(1)

    with meanwhile(lambda: reprice(2)):
        answer, _ = served.get()

    assert b'"price":"2.00"' in answer.body
    assert send(served.django, LIST).body == answer.body


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


# What is equal


def test_what_django_does_not_read_makes_no_other_request(served):
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


# What is not learned


@pytest.mark.parametrize("name", ["nonce", "headers", "session", "cookie", "longer"])
def test_a_response_that_may_differ_next_time_is_answered_by_django(served_with, name):
    """A value for each response, a decision by all headers, a session and a cookie have no template, and a body is compared with the entry."""
    served = served_with(name)

    assert [served.get()[1] for _ in range(6)] == [False] * 6


@pytest.fixture
def urls(settings):
    """`urls(view)`: serve this view in place of the cached list."""

    def urls(view):
        module = ModuleType("urls_of_a_spec")
        module.urlpatterns = [path(LIST.removeprefix("/"), view), *of_the_service]
        settings.ROOT_URLCONF = module

    return urls


def test_a_decorated_view_is_called_for_each_hit(served, urls):
    """A decorator may count or limit requests."""
    calls = []
    view = CachedPropertyListView.as_view()

    @wraps(view)
    def counted(request):
        calls.append(request)
        return view(request)

    urls(counted)

    assert [served.get()[1] for _ in range(6)] == [False] * 6
    assert len(calls) == 6


def test_a_view_that_overrides_a_hook_is_called_for_each_hit_unless_it_says_otherwise(served, urls):
    """Its text may depend on the time of day, which no part of the request shows."""

    class Daily(CachedPropertyListView):
        skippable = False

    class Skippable(Daily):
        skippable = True

    urls(Daily.as_view())
    assert [served.get()[1] for _ in range(6)] == [False] * 6
    urls(Skippable.as_view())
    served.learn()


def test_a_receiver_of_the_signals_of_a_request_is_called_for_each_hit(served):
    """Tools that measure requests listen to them."""
    called = []

    def receive(**_):
        called.append(True)

    request_started.connect(receive)
    try:
        assert [served.get()[1] for _ in range(6)] == [False] * 6
    finally:
        request_started.disconnect(receive)
    assert len(called) == 6


def test_a_long_request_is_not_kept(served, monkeypatch):
    """A client may send headers of many kilobytes."""
    assert [served.get(HTTP_COOKIE="a" * fast_path.LONGEST)[1] for _ in range(6)] == [False] * 6


def test_invented_requests_forget_only_what_nobody_uses(served, monkeypatch):
    """The memory is bounded, and a client can invent any number of requests."""
    monkeypatch.setattr(fast_path, "KEPT", 4)
    served.learn()

    for number in range(20):
        served.learn(QUERY_STRING=f"a={number}")
        assert served.get()[1] is True

    assert sum(len(recent.newer) + len(recent.older) for recent in served.fast_path.memory.parts.values()) <= 8
    assert served.get(QUERY_STRING="a=1")[1] is False


def test_few_lists_of_parts_are_kept(served, monkeypatch):
    """Each is compared with every request."""
    monkeypatch.setattr(fast_path, "KINDS", 1)
    served.learn()
    served.fast_path.memory.parts["HTTP_A",] = served.fast_path.memory.parts.popitem()[1]

    served.learn()

    assert len(served.fast_path.memory.parts) == 1


# What changes later


def test_a_middleware_that_answers_differently_is_noticed_within_a_second(served_with, clock, monkeypatch, caplog):
    """One request in each second is answered by Django and compared. A difference empties the memory, and is one line in the log."""
    served = served_with("maintenance")
    served.learn()
    monkeypatch.setattr(middleware, "closed", ["now"])
    assert served.get()[0].status == 200

    clock.seconds += fast_path.CHECK
    caplog.clear()

    assert [served.get()[0].status for _ in range(3)] == [503] * 3
    assert [record.levelno for record in caplog.records if record.name.endswith("fast_path")] == [logging.WARNING]


def test_a_check_that_finds_no_difference_leaves_the_memory_as_it_is(served, clock):
    """Otherwise a busy service would learn everything again each second."""
    served.learn()

    clock.seconds += fast_path.CHECK

    assert [served.get()[1] for _ in range(3)] == [False, True, True]


def test_each_request_is_compared_again_after_its_lifetime(served, clock):
    """The check of another request does not show a difference that concerns one path."""
    served.learn(QUERY_STRING="a=1")
    served.learn()
    for _ in range(int(fast_path.LIFETIME / fast_path.CHECK)):
        clock.seconds += fast_path.CHECK
        served.get()
    assert served.get()[1] is True

    assert [served.get(QUERY_STRING="a=1")[1] for _ in range(2)] == [False, True]


def test_a_miss_is_no_difference(served, clock, reprice):
    """Its Cache-Status is another one."""
    served.learn()
    clock.seconds += fast_path.CHECK
    reprice(1)

    assert [served.get()[1] for _ in range(3)] == [False, False, True]


# Off


@pytest.mark.parametrize("changed", [{"FRESHNESS_FAST_PATH": False}, {"DEBUG": True}, {"FRESHNESS_SKIPPED_MIDDLEWARE": []}])
def test_it_is_off_if_a_setting_or_debug_or_an_unknown_middleware_says_so(twenty_properties, settings, changed):
    """The toolbar shows each request, and a middleware may have to see each."""
    for name, value in changed.items():
        setattr(settings, name, value)
    served = Served()

    assert [served.get()[1] for _ in range(6)] == [False] * 6


def test_a_middleware_that_turns_it_off_is_a_line_in_the_log(twenty_properties, settings, caplog):
    """Otherwise nobody would know why it is off."""
    settings.FRESHNESS_SKIPPED_MIDDLEWARE = settings.FRESHNESS_SKIPPED_MIDDLEWARE[1:]
    served = Served()

    assert [served.get()[1] for _ in range(6)] == [False] * 6

    [line] = [line for line in caplog.messages if "FRESHNESS_SKIPPED_MIDDLEWARE" in line]
    assert "housing.outages.Outages" in line


def test_an_error_of_the_fast_path_is_logged_and_django_answers(served, monkeypatch, caplog):
    """It saves time, and must not cost a response."""
    served.learn()

    def fail(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(fast_path.FastPath, "_value", fail)

    answer, is_before = served.get()
    assert (answer.status, is_before) == (200, False)
    monkeypatch.setattr(fast_path.FastPath, "_compare", fail)
    assert served.get()[0].status == 200
    assert caplog.messages.count("A request could not be answered before Django, so Django answers it.") == 2


def test_a_hit_that_has_no_template_is_not_looked_up_again(served, redis_commands):
    """Its result is passed on, too."""
    etag = served.learn().headers["ETag"]

    with redis_commands.exactly(1, because="the first 304 has no template, and Django's path takes the lookup"):
        answer, is_before = served.get(HTTP_IF_NONE_MATCH=etag)

    assert (answer.status, is_before) == (304, False)


def test_the_server_sees_what_django_has_changed_in_the_environment(served):
    """gunicorn logs the address that the proxy forwards."""
    served.learn()
    environ = {"REQUEST_METHOD": "GET"}

    def django(given, start_response):
        given["ADDED"] = given.pop("REMOVED", "")
        start_response("200 OK", [])
        return []

    served.django = django
    served.fast_path.memory.paths.add("/")
    environ |= {"PATH_INFO": "/", "REMOVED": "a"}
    served.fast_path(environ, lambda *_: None)

    assert (environ["ADDED"], "REMOVED" in environ) == ("a", False)


WHOLE = {
    "iter": list,
    "dict": dict,
    "**": lambda environ: {**environ},
    "|": lambda environ: environ | {},
    "| of another": lambda environ: {} | environ,
    "copy": lambda environ: environ.copy(),
    "items": lambda environ: environ.items(),
    "len": len,
    "==": lambda environ: environ == {},
}
ONE = {
    "[]": lambda environ: environ["A"],
    "in": lambda environ: "A" in environ,
    "get": lambda environ: environ.get("A"),
    "setdefault": lambda environ: environ.setdefault("A", ""),
    "pop": lambda environ: environ.pop("A"),
}


@pytest.mark.parametrize("read", WHOLE.values(), ids=WHOLE)
def test_a_read_of_the_whole_environment_is_noticed(read):
    """Which headers are absent may decide, too."""
    environ = fast_path.Environ({"A": "1"})
    read(environ)

    assert environ.is_read_whole


@pytest.mark.parametrize("read", ONE.values(), ids=ONE)
def test_a_read_of_one_name_is_noticed(read):
    """It is a part of the request."""
    environ = fast_path.Environ({"A": "1"})
    read(environ)

    assert (environ.names, environ.is_read_whole) == ({"A"}, False)


def test_the_verbs_of_the_journal_are_asked_by_one_function(served, monkeypatch):
    """A second copy of a rule would be another rule some day."""
    looks = []
    lookup = Journal.lookup
    monkeypatch.setattr(Journal, "lookup", lambda self, *args, **options: looks.append((args, options.keys())) or lookup(self, *args, **options))
    served.learn()

    assert send(Application(), LIST).status == 200
    assert len({str(look) for look in looks}) == 1
