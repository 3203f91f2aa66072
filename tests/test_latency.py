"""How long a read takes. Counted work holds on any machine; ratios hold in one run; milliseconds come last, and are generous.

`pytest --benchmark-only` measures; without it each budget runs once, for its counts alone.
"""

import json
import math
from functools import partial
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django_redis import get_redis_connection

from conftest import VARIANTS, clear_the_cache, entries
from tests.baselines import PlainSave, baseline_key


@pytest.fixture
def serve(settings):
    """`serve(path)`: what a server does with a request for it, every time. The client of the other specs would be half of what is timed."""
    settings.ROOT_URLCONF = "tests.baselines"
    application = WSGIHandler()

    def serve(path, **headers):
        path, _, query = path.partition("?")
        environ = {"PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": "testserver", "HTTP_ACCEPT": "application/json"} | headers
        setup_testing_defaults(environ)

        def ask():
            headers = []
            response = application(dict(environ), lambda status, fields: headers.append((status, dict(fields))))
            body = b"".join(response)
            response.close()
            return *headers[0], body

        return ask

    return serve


CALLS = Path(__file__).with_name("calls.json")
"""How many calls of Python functions a request makes, with the versions in the lock: `make lock` writes it anew."""


@pytest.mark.only("embedded")
@pytest.mark.parametrize(
    ("request_", "because"),
    [
        ("a hit", "Django's middleware, one script, and six headers; no form, no serializer, no SQL"),
        ("a 304", "the same, and an ETag to compare"),
        ("a cold page", "the SELECT was compiled for whoever asked so before, and twenty rows are shown column by column"),
        ("an optimized page", "DRF makes twenty rows of instances, and asks each field of each"),
        ("a write", "Django's save, a handful of tags, a lease and a close"),
    ],
    ids=lambda value: value if " " in value and len(value) < 20 else "",
)
def test_a_request_makes_no_more_python_calls_than_are_written_down(twenty_properties, serve, python_calls, pytestconfig, request_, because):
    """A slow machine makes as many. (On the embedded stack, for drivers differ; what fakeredis does is not counted.)"""
    ask = serve(VARIANTS["cached"])
    prepare, act = {
        "a hit": (ask, ask),
        "a 304": (ask, serve(VARIANTS["cached"], HTTP_IF_NONE_MATCH=ask()[1]["ETag"])),
        "a cold page": (clear_the_cache, ask),
        "an optimized page": (bool, serve(VARIANTS["optimized"])),
        "a write": (bool, twenty_properties[0].save),
    }[request_]
    renewed = {request_: python_calls.of(act, prepare).total()} if pytestconfig.option.renew_calls else {}
    python_calls.at_most(written_down(CALLS, renewed)[request_], act, prepare=prepare, because=because)


def written_down(file, renewed):
    """How many calls each request may make, some of them renewed."""
    written = json.loads(file.read_text()) | renewed
    if renewed:
        file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    return written


def test_calls_are_written_down_anew_one_by_one(tmp_path):
    """By `make calls`."""
    file = tmp_path / "calls.json"
    file.write_text('{"a hit": 1, "a write": 2}')

    assert written_down(file, {"a hit": 3}) == json.loads(file.read_text()) == {"a hit": 3, "a write": 2}


@pytest.mark.parametrize(
    ("approach", "counted", "of_naive", "milliseconds", "because"),
    [
        ("naive", 61, None, None, "naive is 1 query for the page and 20 × (location, agent, office)"),
        ("optimized", 1, 0.6, None, "optimized is 1 query and serializing, so at most 0.6 × naive"),
        ("cold", 1, 0.4, 20, "cold is 1 query and two round trips to Redis, and serializes no instances, so at most 0.4 × naive, and 20 ms"),
        ("warm", 0, 0.2, 4, "warm is one round trip to Redis and serializes nothing, so at most 0.2 × naive, and 4 ms"),
    ],
    ids=["naive", "optimized", "cold", "warm"],
)
def test_a_page_of_twenty_stays_within_its_budget(
    twenty_properties, read, serve, benchmark, latency, queries, approach, counted, of_naive, milliseconds, because
):
    """Each round times the naive page and this one, so that a busy machine is busy for both."""
    variant = approach if approach in VARIANTS else "cached"
    ask = serve(VARIANTS[variant])
    prepare = {"cold": clear_the_cache, "warm": ask}.get(approach, bool)

    prepare()
    with queries.exactly(counted, because=because):
        assert len(read(variant).rows) == 20

    benchmark.name, benchmark.group = f"{approach} to naive", approach
    timings = latency.interleaved(benchmark, ask, to=serve(VARIANTS["naive"]), prepare=prepare)
    timings.at_most(of_naive or math.inf, because=because)
    timings.within(milliseconds or math.inf, because=because)


@pytest.mark.only("real")
@pytest.mark.benchmark(group="warm")
@pytest.mark.parametrize(("page", "query"), [("the first page", ""), ("a filtered page", "?city=Springfield&status=available&ordering=-price")])
def test_a_hit_takes_little_more_than_one_get(twenty_properties, serve, benchmark, latency, page, query):
    """Entry, freshness and validated parameters in one script. (On fakeredis a script takes ten times as long as a GET.)"""
    hit, get = serve(VARIANTS["cached"] + query), serve("/baselines/one-get/")
    get_redis_connection("default").set(baseline_key(), hit()[2])
    status, headers, body = hit()
    assert (status, headers["Cache-Status"], body) == ("200 OK", "housing; hit", get()[2])

    benchmark.name = f"warm, {page} to one GET"
    timings = latency.interleaved(benchmark, hit, to=get, rounds=600)
    timings.at_most(1.25, because="beside the GET of the same bytes, one script compares instants, and Python wraps them in six headers")


@pytest.mark.benchmark(group="baselines")
@pytest.mark.parametrize(
    ("what", "path", "because"),
    [("an empty view", "/baselines/nothing/", "nothing is less than Django itself"), ("cache_page", "/baselines/cache-page/", "cache_page asks twice")],
)
def test_what_others_take_is_measured_beside_one_get(twenty_properties, serve, benchmark, latency, what, path, because):
    """Never judged: what a hit can be compared with."""
    ask, get = serve(path), serve("/baselines/one-get/")
    get_redis_connection("default").set(baseline_key(), b"{}")
    assert ask()[0] == "200 OK", because

    benchmark.name = f"{what} to one GET"
    latency.interleaved(benchmark, ask, to=get, rounds=200)


@pytest.mark.only("real")
@pytest.mark.benchmark(group="cold")
def test_a_cold_page_takes_at_most_half_of_what_drf_takes(twenty_properties, serve, benchmark, latency):
    """The lookup and the store are two round trips more. (On the embedded stack they are fakeredis's, and most of it.)"""
    cold, plain = serve(VARIANTS["cached"]), serve("/baselines/plain/")
    assert cold()[2] == plain()[2]

    benchmark.name = "cold to plain DRF"
    timings = latency.interleaved(benchmark, cold, to=plain, prepare=clear_the_cache, rounds=200)
    timings.at_most(0.5, because="the same SELECT, but no instances of models, no serializer asked row by row, and orjson")


@pytest.mark.only("real")
@pytest.mark.benchmark(group="write")
def test_a_write_takes_little_more_than_itself_and_two_round_trips(twenty_properties, benchmark, latency):
    """A lease and a close are scripts that look at a handful of tags. (SQLite has one writer at a time, and fakeredis's scripts are slow.)"""
    home = twenty_properties[0]

    benchmark.name = "write to a write and two PINGs"
    with PlainSave() as plain:
        timings = latency.interleaved(benchmark, home.save, to=plain.save, rounds=300)
    timings.at_most(1.2, because="naming tags is Python's set arithmetic, and the two round trips are there on both sides")


@pytest.mark.only("real")
@pytest.mark.benchmark(group="write")
def test_a_write_takes_as_long_at_100_000_cached_pages_as_at_ten(home, warm, new_redis, as_the_cache, benchmark, latency):
    """Nothing is looked for, and nothing deleted."""
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
    timings = latency.interleaved(benchmark, home.save, to=home.save, before=partial(on, few), prepare=partial(on, many), rounds=200)
    timings.at_most(1.1, because="a write says what it wrote, not what that makes stale")


def fill(pages):
    """So many entries, copies of the one that is there."""
    client, [entry] = get_redis_connection("default"), entries()
    with client.pipeline(transaction=False) as pipeline:
        for number in range(1, pages):
            pipeline.copy(entry, f"{entry.decode()}:{number}")
        pipeline.execute()
