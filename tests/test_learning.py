"""How the fast path learns from Django's responses, and when it forgets."""

import json
import logging
from functools import wraps
from types import ModuleType

import pytest
from django.core.signals import request_started
from django.urls import path
from rest_framework.generics import ListAPIView

from housing.freshness import CachedView, fast_path
from housing.freshness.journal import Journal
from housing.models import Office, Property
from housing.serializers import OfficeSerializer
from housing.urls import urlpatterns as of_the_service
from housing.views import CachedPropertyListView
from housing.wsgi import Application
from tests.fixtures import middleware
from tests.fixtures.hostile import send
from tests.fixtures.served import LIST, Served

# Responses that are not learned


@pytest.mark.parametrize("name", ["nonce", "headers", "session", "cookie", "longer", "weaker"])
def test_a_response_that_may_differ_next_time_is_answered_by_django(served_with, name):
    """A value for each response, a decision by all headers, a session and a cookie have no template, and the body and the ETag are compared with the entry."""
    served = served_with(name)

    assert not any(served.are_before())


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

    assert not any(served.are_before())
    assert len(calls) == 6


def test_a_view_that_overrides_a_hook_is_called_for_each_hit_unless_it_says_otherwise(served, urls):
    """Its text may depend on the time of day, which no part of the request shows."""

    class Daily(CachedPropertyListView):
        skippable = False

    class Skippable(Daily):
        skippable = True

    urls(Daily.as_view())
    assert not any(served.are_before())
    urls(Skippable.as_view())
    served.learn()


def test_a_view_that_overrides_no_hook_is_answered_before_django(twenty_properties, served, urls):
    """DRF's attributes are all that most views have."""

    class Offices(CachedView, ListAPIView):
        queryset = Office.objects.order_by("id")
        serializer_class = OfficeSerializer

    urls(Offices.as_view())
    assert len(json.loads(served.learn().body)) == len(twenty_properties)


def test_a_receiver_of_the_signals_of_a_request_is_called_for_each_hit(served):
    """Tools that measure requests listen to them."""
    called = []

    def receive(**_):
        called.append(True)

    request_started.connect(receive)
    try:
        assert not any(served.are_before())
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


def test_few_paths_are_expected_to_have_hits(served, monkeypatch):
    """Each property has a path of its own, and there may be millions."""
    monkeypatch.setattr(fast_path, "KEPT", 4)

    for home in Property.objects.all():
        served.learn(PATH_INFO=f"{LIST}{home.pk}/")

    assert 0 < len(served.fast_path.memory.paths) <= 4


def test_few_lists_of_parts_are_kept(served, monkeypatch):
    """Each is compared with every request."""
    monkeypatch.setattr(fast_path, "KINDS", 1)
    served.learn()
    served.fast_path.memory.parts["HTTP_A",] = served.fast_path.memory.parts.popitem()[1]

    served.learn()

    assert len(served.fast_path.memory.parts) == 1


# Changes


def test_a_middleware_that_answers_differently_is_noticed_within_a_second(served_with, fast_path_clock, monkeypatch, caplog):
    """One request in each second is answered by Django and compared. A difference empties the memory, and is one line in the log."""
    served = served_with("maintenance")
    served.learn()
    monkeypatch.setattr(middleware, "closed", ["now"])
    assert served.get()[0].status == 200

    fast_path_clock.seconds += fast_path.CHECK
    caplog.clear()

    assert [served.get()[0].status for _ in range(3)] == [503] * 3
    assert [record.levelno for record in caplog.records if record.name.endswith("fast_path")] == [logging.WARNING]


def test_after_a_difference_django_answers_for_a_minute(served_with, fast_path_clock, monkeypatch):
    """A header with the time would be learned and found to be another one each second, and each time in the log."""
    served = served_with("maintenance")
    served.learn()
    fast_path_clock.seconds += fast_path.CHECK
    with monkeypatch.context() as patched:
        patched.setattr(middleware, "closed", ["now"])
        served.get()

    assert not any(served.are_before())
    fast_path_clock.seconds += fast_path.LIFETIME
    served.learn()


def test_a_check_that_finds_no_difference_leaves_the_memory_as_it_is(served, fast_path_clock):
    """Otherwise a busy service would learn everything again each second."""
    served.learn()

    fast_path_clock.seconds += fast_path.CHECK

    assert [served.get()[1] for _ in range(3)] == [False, True, True]


def test_each_request_is_compared_again_after_its_lifetime(served, fast_path_clock):
    """The check of another request does not show a difference that concerns one path."""
    served.learn(QUERY_STRING="a=1")
    served.learn()
    for _ in range(int(fast_path.LIFETIME / fast_path.CHECK)):
        fast_path_clock.seconds += fast_path.CHECK
        served.get()
    assert served.get()[1] is True

    assert [served.get(QUERY_STRING="a=1")[1] for _ in range(2)] == [False, True]


def test_a_miss_is_no_difference(served, fast_path_clock, reprice):
    """Its Cache-Status is another one."""
    served.learn()
    fast_path_clock.seconds += fast_path.CHECK
    reprice(1)

    assert [served.get()[1] for _ in range(3)] == [False, False, True]


# Off


@pytest.mark.parametrize("changed", [{"FRESHNESS_FAST_PATH": False}, {"DEBUG": True}, {"FRESHNESS_SKIPPED_MIDDLEWARE": []}])
def test_it_is_off_if_a_setting_or_debug_or_an_unknown_middleware_says_so(twenty_properties, settings, changed):
    """The toolbar shows each request, and a middleware may have to see each."""
    for name, value in changed.items():
        setattr(settings, name, value)
    served = Served()

    assert not any(served.are_before())


def test_a_middleware_that_turns_it_off_is_a_line_in_the_log(twenty_properties, settings, caplog):
    """Otherwise nobody would know why it is off."""
    settings.FRESHNESS_SKIPPED_MIDDLEWARE = settings.FRESHNESS_SKIPPED_MIDDLEWARE[1:]
    served = Served()

    assert not any(served.are_before())

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
    "iter": lambda environ: next(iter(environ)),
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


def test_the_lookup_before_django_is_the_same_as_that_of_a_view(served, monkeypatch):
    """A second copy of a rule would become another rule."""
    looks = []
    lookup = Journal.lookup
    served.learn()
    monkeypatch.setattr(Journal, "lookup", lambda self, *args, **options: looks.append((args, options.keys())) or lookup(self, *args, **options))

    assert served.get()[1] is True
    assert send(Application(), LIST).status == 200
    assert len(looks) == 2
    assert looks[0] == looks[1]


NOT_PROMISED = {
    "A middleware that answers an equal request differently than before changes the next hit": "Its own state is no part of the request, so one request in "
    "each second is answered by Django and compared.",
}
