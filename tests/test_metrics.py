"""Metrics. Prometheus reads how many responses were hits, and why others were not, with the open leases and the lag of the verification.

They need prometheus-client and a token. Without either there is no endpoint, and a response is not counted.
"""

import re

import pytest
from django.db import connection

from housing.freshness import metrics as module
from housing.freshness import outbox
from housing.freshness.journal import journal
from housing.freshness.settings import SETTINGS, conf
from tests.fixtures.processes import python

TOKEN = "a long random text"

STATUSES = {
    "hit": ("hit", ""),
    "fwd=miss; stored": ("miss", ""),
    "fwd=stale; stored": ("stale", ""),
    "fwd=miss; collapsed": ("collapsed", ""),
    "fwd=miss; detail=leased": ("miss", "leased"),
    "fwd=miss; detail=recovering": ("miss", "recovering"),
    "fwd=miss; detail=raced": ("miss", "raced"),
    "fwd=bypass; detail=transaction": ("bypass", "transaction"),
    "fwd=bypass; detail=accept": ("bypass", "accept"),
    "fwd=bypass; detail=unreachable": ("bypass", "unreachable"),
    "fwd=bypass; detail=unverified": ("bypass", "unverified"),
}
"""Each value of Cache-Status, and the labels with which it is counted."""


@pytest.fixture
def counted(settings):
    """The service with metrics, and a counter that begins at zero."""
    settings.FRESHNESS_METRICS_TOKEN = TOKEN
    module.responses.cache_clear()
    module.counter_of.cache_clear()


@pytest.fixture
def scrape(counted, client, transactional_db):
    """`scrape()`: the metrics as Prometheus reads them, by name with labels."""

    def scrape():
        response = client.get("/metrics/", headers={"Authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        return {name: float(value) for name, value in re.findall(r"^([^# ].*) (\S+)$", response.content.decode(), re.MULTILINE)}

    return scrape


def responses(outcome, detail=""):
    """The name of a counter."""
    return f'freshness_responses_total{{detail="{detail}",outcome="{outcome}"}}'


# The counters


def test_hits_misses_and_stale_reads_are_counted(home, read, scrape):
    """An operator computes the hit rate from them, and sees whether misses come from writes or from missing entries."""
    read("cached")
    read("cached")
    read("cached", headers={"If-None-Match": "*"})
    home.save()
    read("cached")

    found = scrape()
    assert [found[responses(outcome)] for outcome in ("miss", "hit", "stale")] == [1, 2, 1]


def test_a_bypass_is_counted_with_its_reason(home, read, scrape, redis_unreachable):
    """An operator has to act if Redis is unreachable, but not if a client sends an unusual Accept header."""
    read("cached", headers={"Accept": "application/json; indent=4"})
    with redis_unreachable():
        read("cached")

    found = scrape()
    assert found[responses("bypass", "accept")] == found[responses("bypass", "unreachable")] == 1


def test_a_browsable_page_is_counted_as_the_entry_that_it_shows(home, warm, read, scrape):
    """The page is rendered from the same entry, so it must not appear as a miss or a bypass in the hit rate."""
    warm()
    read("cached", headers={"Accept": "text/html"})

    assert scrape()[responses("hit")] == 2


def test_a_response_without_cache_status_is_not_counted(home, read, scrape):
    """A refused request and a 404 have nothing to do with the cache."""
    read("cached/1000000")
    read("cached?min_price=abc")
    read("optimized")

    assert not [name for name in scrape() if name.startswith("freshness_responses")]


def test_a_process_with_metrics_shares_the_entries_of_one_without(home, warm, read, counted, settings):
    """Whether responses are counted does not change their bytes."""
    warm()
    settings.FRESHNESS_METRICS_TOKEN = ""

    assert read("cached").came_from == "hit"


@pytest.mark.parametrize("status", STATUSES)
def test_every_cache_status_has_labels_of_its_own(status, scrape):
    """Their number is fixed, so the metrics do not grow."""
    module.count(f"{conf.NAME}; {status}")

    assert scrape()[responses(*STATUSES[status])] == 1


# The state


def test_the_state_is_read_at_each_scrape(home, scrape, verify):
    """A value from an earlier scrape could hide an open lease or a verification that has stopped."""
    verify()
    lease = journal.lease({"t"})
    outbox.write(connection, {"t"})
    found = scrape()

    assert found["freshness_redis_up"] == found["freshness_leases_open"] == found['freshness_outbox_rows{database="default"}'] == 1
    assert 0 <= found['freshness_verification_lag_seconds{database="default"}'] < 60
    journal.close(lease)
    verify()
    found = scrape()
    assert found["freshness_leases_open"] == found['freshness_outbox_rows{database="default"}'] == 0


def test_without_redis_the_metrics_say_so(scrape, redis_unreachable):
    """A scrape that fails would look like a service that is down."""
    with redis_unreachable():
        assert scrape()["freshness_redis_up"] == 0


# The endpoint


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer another", f"Basic {TOKEN}", TOKEN])
def test_without_the_token_there_is_no_endpoint(client, counted, authorization):
    """A stranger does not even learn that there are metrics."""
    headers = {} if authorization is None else {"Authorization": authorization}

    assert client.get("/metrics/", headers=headers).status_code == 404


@pytest.mark.parametrize("authorization", ["Bearer ", "Bearer", ""])
def test_without_a_token_in_the_settings_there_is_no_endpoint_and_nothing_is_counted(client, home, read, settings, monkeypatch, authorization):
    """It is off by default, and then the library is not even imported."""
    settings.FRESHNESS_METRICS_TOKEN = SETTINGS["METRICS_TOKEN"].default
    monkeypatch.setattr("housing.freshness.views.count", pytest.fail)

    assert read("cached").came_from == "fwd=miss; stored"
    assert client.get("/metrics/", headers={"Authorization": authorization}).status_code == 404


def test_without_the_library_there_is_no_endpoint_and_reads_work(client, home, read, counted, monkeypatch):
    """prometheus-client is optional."""
    monkeypatch.setattr(module, "is_installed", lambda: False)
    monkeypatch.setattr(module, "counter_of", pytest.fail)

    assert read("cached").came_from == "fwd=miss; stored"
    assert client.get("/metrics/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 404


def test_only_get_and_head_are_allowed(client, counted):
    """The endpoint only reads, so a POST is a mistake that its client should notice."""
    assert client.post("/metrics/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 405


SCRIPT = """
import django
django.setup()
from django.test import Client
from housing.freshness import metrics
metrics.count("housing; hit")
print(Client(SERVER_NAME="localhost").get("/metrics/", headers={"Authorization": "Bearer secret"}).content.decode())
"""


def test_the_counts_of_several_processes_are_added_up(tmp_path):
    """With PROMETHEUS_MULTIPROC_DIR each process keeps its counts in a file, and each scrape reads all of them."""
    for _ in range(2):
        printed = python(
            "-c",
            SCRIPT,
            PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
            DJANGO_SETTINGS_MODULE="housing.settings",
            DJANGO_DEBUG="true",
            DATABASE_URL=f"sqlite:///{tmp_path}/db.sqlite3",
            REDIS_URL="fakeredis://",
            FRESHNESS_METRICS_TOKEN="secret",
        )

    assert f"{responses('hit')} 2.0\n" in printed.stdout, printed
