"""How long a read takes. Counts hold on any machine, and ratios hold within one run. Budgets in milliseconds come last and are generous.

`pytest --benchmark-only` measures. Without it each spec runs once and only checks its counts.
"""

import json
from functools import partial
from hashlib import sha256
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import django
import pytest
from django_redis import get_redis_connection

from housing.filters import PropertyFilter
from housing.freshness import fast_path
from housing.models import Property
from housing.wsgi import Application, Service
from tests.fixtures.cache import clear_the_cache, entries
from tests.fixtures.responses import VARIANTS
from tests.measurements.baselines import PlainSave, bare, bare_get, baseline_key
from tests.measurements.peers import CACHEOPS, cacheops


@pytest.fixture
def serve(settings):
    """`serve(path)`: a function that handles a request as a WSGI server does. The test client of the other specs would take half of the measured time."""
    settings.ROOT_URLCONF = "tests.measurements.baselines"
    return serving(Application())


@pytest.fixture
def serve_before(settings, monkeypatch):
    """The same with the fast path before Django, without a comparison that is due while a spec measures."""
    settings.ROOT_URLCONF = "tests.measurements.baselines"
    for name in ("CHECK", "LIFETIME"):
        monkeypatch.setattr(fast_path, name, 1e9)
    return serving(Service())


def serving(application):
    """`serving(application)(path)`: a function that handles a request."""

    def serve(path, **headers):
        path, _, query = path.partition("?")
        environ = {"PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": "testserver", "HTTP_ACCEPT": "application/json"} | headers
        setup_testing_defaults(environ)

        def request():
            headers = []
            response = application(dict(environ), lambda status, fields: headers.append((status, dict(fields))))
            body = b"".join(response)
            getattr(response, "close", bool)()
            return *headers[0], body

        return request

    return serve


CALLS = Path(__file__).with_name("measurements") / "calls.json"
"""The number of Python function calls of each request, with the versions in the lock. `make calls` updates it. Another Django may have its own row."""


@pytest.mark.only("embedded")
@pytest.mark.parametrize(
    ("request_", "because"),
    [
        ("a hit before Django", "it is the look at the journal, and headers that Django has made before"),
        ("a 304 before Django", "it is a hit that also compares an ETag"),
        ("a known cold page", "it is a cold page whose lookup was made before Django"),
        ("a hit", "it is Django's middleware, one script and six headers, without a form, a serializer or SQL"),
        ("a 304", "it is a hit that also compares an ETag"),
        ("a cold page", "the SELECT is already compiled, and twenty rows are serialized column by column"),
        ("a cold detail", "its two SELECTs are already compiled, and read in one snapshot"),
        ("an optimized page", "DRF makes an instance of each of twenty rows, and serializes each of its fields"),
        ("a write", "it is Django's save and a SELECT of the old values, a handful of tags, a lease and a close"),
    ],
    ids=lambda value: value if " " in value and len(value) < 20 else "",
)
def test_a_request_makes_no_more_python_calls_than_recorded(twenty_properties, serve, serve_before, python_calls, metric, pytestconfig, request_, because):
    """The count is the same on a slow machine. Calls within fakeredis are not counted. (Embedded only, because the drivers make different calls.)"""
    read, read_before = serve(VARIANTS["cached"]), serve_before(VARIANTS["cached"])
    unchanged = serve_before(VARIANTS["cached"], HTTP_IF_NONE_MATCH=read()[1]["ETag"])
    for _ in range(3):
        read_before()
    for filter_ in PropertyFilter.base_filters.values():
        assert filter_.field  # django-filter makes it at the first access and keeps it; another spec may have read the schema
    prepare, act = {
        "a hit before Django": (read_before, read_before),
        "a 304 before Django": (unchanged, unchanged),
        "a known cold page": (clear_the_cache, read_before),
        "a hit": (read, read),
        "a 304": (read, serve(VARIANTS["cached"], HTTP_IF_NONE_MATCH=read()[1]["ETag"])),
        "a cold page": (clear_the_cache, read),
        "a cold detail": (clear_the_cache, serve(f"{VARIANTS['cached']}{twenty_properties[0].pk}/")),
        "an optimized page": (make_the_form_fields, serve(VARIANTS["optimized"])),
        "a write": (bool, twenty_properties[0].save),
    }[request_]
    calls = python_calls.of(act, prepare).total()
    counts = recorded(CALLS, {request_: calls} if pytestconfig.option.renew_calls else {})
    budget = counts.get(f"{request_}, Django {django.VERSION[0]}.{django.VERSION[1]}", counts[request_])  # 6.1 calls a function more for each decimal
    metric("calls", request=request_, calls=calls, budget=budget)
    python_calls.at_most(budget, act, prepare=prepare, because=because)


def make_the_form_fields():
    """Make those of the class, which each request copies. Otherwise it makes its own, until something reads the schema of the API."""
    for parameter in PropertyFilter.base_filters.values():
        assert parameter.field


@pytest.mark.only("embedded")
def test_a_hit_that_is_counted_makes_at_most_8_python_calls_more(twenty_properties, serve, settings, python_calls):
    """Counting is the increment of one number. (Embedded only, as the count of a hit itself.)"""
    settings.FRESHNESS_METRICS_TOKEN = "a token"
    read = serve(VARIANTS["cached"])
    python_calls.at_most(recorded(CALLS, {})["a hit"] + 8, read, prepare=read, because="it is a hit, and an increment under a lock")


def recorded(file, updates):
    """The number of calls that each request may make. `updates` are written to the file."""
    calls = json.loads(file.read_text()) | updates
    if updates:
        file.write_text(json.dumps(calls, indent=2, sort_keys=True) + "\n")
    return calls


def test_a_recorded_count_is_updated_without_changing_the_others(tmp_path):
    """`make calls` updates them one by one."""
    file = tmp_path / "calls.json"
    file.write_text('{"a hit": 1, "a write": 2}')

    assert recorded(file, {"a hit": 3}) == json.loads(file.read_text()) == {"a hit": 3, "a write": 2}


@pytest.mark.parametrize(
    ("page", "counted", "of_naive", "milliseconds", "because"),
    [
        ("naive", 61, None, None, "naive sends 1 query for the page and 20 × 3 for location, agent and office"),
        ("optimized", 1, 0.6, None, "optimized sends 1 query and serializes the rows, which takes at most 0.6 × naive"),
        ("cold", 1, 0.4, 20, "cold sends 1 query, makes two round trips to Redis and serializes no instances, which takes at most 0.4 × naive, and 20 ms"),
        ("warm", 0, 0.2, 4, "warm makes one round trip to Redis and serializes nothing, which takes at most 0.2 × naive, and 4 ms"),
    ],
    ids=["naive", "optimized", "cold", "warm"],
)
def test_a_page_of_twenty_stays_within_its_budget(twenty_properties, read, serve, benchmark, latency, queries, page, counted, of_naive, milliseconds, because):
    """Each round times the naive page and this page, so that a busy machine slows down both."""
    variant = page if page in VARIANTS else "cached"
    request = serve(VARIANTS[variant])
    prepare = {"cold": clear_the_cache, "warm": request}.get(page, bool)

    prepare()
    with queries.exactly(counted, because=because):
        assert len(read(variant).rows) == 20

    benchmark.name, benchmark.group = f"{page} to naive", page
    timings = latency.interleaved(benchmark, request, baseline=serve(VARIANTS["naive"]), prepare=prepare)
    if of_naive:
        timings.at_most(of_naive, because=because)
    if milliseconds:
        timings.within(milliseconds, because=because)


@pytest.mark.only("real")
@pytest.mark.benchmark(group="warm")
@pytest.mark.parametrize(("page", "query"), [("the first page", ""), ("a filtered page", "?city=Springfield&status=available&ordering=-price")])
def test_a_hit_takes_little_more_than_one_get(twenty_properties, serve, benchmark, latency, page, query):
    """One script checks the freshness of the entry, and confirms the ETag of the copy. (Real only: on fakeredis a script takes ten times as long as a GET.)"""
    hit, get = serve(VARIANTS["cached"] + query), serve("/baselines/one-get/")
    get_redis_connection("default").set(baseline_key(), hit()[2])
    status, headers, body = hit()
    assert (status, headers["Cache-Status"], body) == ("200 OK", "housing; hit", get()[2])

    benchmark.name = f"warm, {page} to one GET"
    timings = latency.interleaved(benchmark, hit, baseline=get, rounds=600)
    timings.at_most(1.15, because="the script compares instants, and Python adds six headers, but Redis sends no body")


@pytest.mark.only("real")
@pytest.mark.benchmark(group="warm")
@pytest.mark.parametrize(
    ("baseline", "budget", "because"),
    [
        ("a view with one GET", 0.65, "it passes no middleware, and makes neither a request nor a response of Django's"),
        ("one GET without Django", 1.43, "a bare server compares no instants, and knows neither a request nor a header, but it transfers the body from Redis"),
    ],
)
def test_a_hit_before_django_takes_less_than_a_view_with_one_get(twenty_properties, serve, serve_before, benchmark, latency, baseline, budget, because):
    """It is between that view and a server without Django. (Real only: on fakeredis a script takes ten times as long as a GET.)"""
    hit = serve_before(VARIANTS["cached"])
    get = serving(bare_get)("/") if baseline == "one GET without Django" else serve("/baselines/one-get/")
    get_redis_connection("default").set(baseline_key(), hit()[2])
    for _ in range(4):
        status, headers, body = hit()
    assert (status, headers["Cache-Status"], body) == ("200 OK", "housing; hit", get()[2])

    benchmark.name = f"warm before Django to {baseline}"
    timings = latency.interleaved(benchmark, hit, baseline=get, rounds=600)
    timings.at_most(budget, because=because)


@pytest.mark.benchmark(group="baselines")
@pytest.mark.parametrize(
    ("view", "path", "because"),
    [
        ("an empty view", "/baselines/nothing/", "no view is faster than an empty one"),
        ("cache_page", "/baselines/cache-page/", "it makes two round trips to Redis"),
    ],
)
def test_an_empty_view_and_cache_page_are_measured_with_the_same_baseline_as_a_hit(twenty_properties, serve, benchmark, latency, view, path, because):
    """They have no budget. They show how a hit compares with Django itself and with `cache_page()`."""
    request, get = serve(path), serve("/baselines/one-get/")
    get_redis_connection("default").set(baseline_key(), b"{}")
    assert request()[0] == "200 OK", because

    benchmark.name = f"{view} to one GET"
    latency.interleaved(benchmark, request, baseline=get, rounds=200)


@pytest.mark.benchmark(group="baselines")
@pytest.mark.parametrize(("name", "application"), [("constant bytes without Django", bare), ("one GET without Django", bare_get)])
def test_applications_without_django_are_measured_with_the_same_baseline_as_a_hit(twenty_properties, serve, benchmark, latency, name, application):
    """They have no budget. No Django is quicker than a server that runs none."""
    body = b"{}"
    get_redis_connection("default").set(baseline_key(), body)

    def request():
        return application({}, lambda status, headers: (status, headers))

    assert request() == [body]
    benchmark.name = f"{name} to one GET"
    latency.interleaved(benchmark, request, baseline=serve("/baselines/one-get/"), rounds=200)


@pytest.mark.only("real")
@pytest.mark.benchmark(group="baselines")
def test_cacheops_is_measured_with_the_same_baseline_as_a_hit(twenty_properties, serve, benchmark, latency):
    """It has no budget. It caches DRF's response until a write to one of the models that it names. (Real only: its scripts need a Redis server.)"""
    get_redis_connection("default").set(baseline_key(), serve("/baselines/plain/")()[2])
    with cacheops() as peer:
        plain = peer.get("/baselines/plain/")
        assert plain == {"status": "200 OK", "digest": sha256(serve("/baselines/plain/")()[2]).hexdigest(), "queries": 1}
        assert peer.get(CACHEOPS) == plain | {"queries": 0}

        benchmark.name = "cacheops to one GET"
        benchmark._timer = latency.clock = lambda: peer.seconds  # the time that it measures itself, because a pipe takes as long as a hit
        latency.interleaved(benchmark, partial(peer.get, CACHEOPS), baseline=partial(peer.get, "/baselines/one-get/"), rounds=200)


@pytest.mark.only("real")
@pytest.mark.benchmark(group="cold")
def test_a_cold_page_takes_about_a_third_of_the_time_of_plain_drf(twenty_properties, serve, benchmark, latency):
    """That includes two round trips to Redis, for the lookup and the store. (Real only: fakeredis takes most of the time.)"""
    cold, plain = serve(VARIANTS["cached"]), serve("/baselines/plain/")
    assert cold()[2] == plain()[2]

    benchmark.name = "cold to plain DRF"
    timings = latency.interleaved(benchmark, cold, baseline=plain, prepare=clear_the_cache, rounds=200)
    timings.at_most(0.35, because="the SELECT is compiled and prepared, and there are neither model instances nor a serializer for each row")


@pytest.mark.only("real")
@pytest.mark.benchmark(group="cold")
def test_a_cold_detail_takes_at_most_two_thirds_of_the_time_of_an_optimized_one(twenty_properties, serve, benchmark, latency):
    """Both send the same two SELECTs. The cached one also sends them in a snapshot, and stores the response. (Real only: fakeredis is slow.)"""
    cold, optimized = [serve(f"{VARIANTS[variant]}{twenty_properties[0].pk}/") for variant in ("cached", "optimized")]
    assert cold()[2] == optimized()[2]

    benchmark.name = "cold detail to optimized detail"
    timings = latency.interleaved(benchmark, cold, baseline=optimized, prepare=clear_the_cache, rounds=200)
    timings.at_most(0.67, because="its SELECTs are compiled, and there are no model instances")


@pytest.mark.only("real")
@pytest.mark.benchmark(group="write")
@pytest.mark.usefixtures("twenty_properties")
def test_a_write_takes_little_longer_than_a_plain_save_and_two_round_trips(benchmark, latency):
    """The lease and the close are short scripts for a handful of tags, and the close is not awaited. (Real only: fakeredis's scripts are slow.)"""
    home = Property.objects.latest("id")  # without the related objects with which it was created, as the baseline's row

    benchmark.name = "write to a write and two PINGs"
    with PlainSave() as plain:
        timings = latency.interleaved(benchmark, home.save, baseline=plain.save, rounds=300)
    timings.at_most(1.2, because="finding the tags is a few set operations in Python, and both sides send two commands to Redis")


@pytest.mark.only("real")
@pytest.mark.benchmark(group="write")
def test_a_write_takes_as_long_with_100_000_cached_pages_as_with_ten(home, warm, new_redis, as_the_cache, benchmark, latency):
    """A write searches for no entries and deletes none."""
    few, many = new_redis(), new_redis()
    for server, pages in ((few, 10), (many, 100_000)):
        as_the_cache(server)
        clear_the_cache()
        warm()
        fill(pages)

    def on(server):
        as_the_cache(server)
        home.save()

    benchmark.name = "write at 100,000 pages to a write at 10"
    timings = latency.interleaved(benchmark, home.save, baseline=home.save, before=partial(on, few), prepare=partial(on, many), rounds=200)
    timings.at_most(1.1, because="a write records its tags, and each read finds out whether its entry is stale")


def fill(pages):
    """Copy the only entry until there are this many."""
    client, [entry] = get_redis_connection("default"), entries()
    with client.pipeline(transaction=False) as pipeline:
        for number in range(1, pages):
            pipeline.copy(entry, f"{entry.decode()}:{number}")
        pipeline.execute()
