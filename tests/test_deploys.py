"""Rolling deploys: two versions of the code, libraries and settings share one Redis. Each may tag differently, and knows nothing of the tags of the other.

Therefore a write by one version makes all entries of the other one stale. T1 is a process of the old version, and T2 of the new one.
"""

import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import override_settings
from django_redis import get_redis_connection

from housing.freshness.connection import ConnectionMixin, ours
from housing.freshness.fingerprint import version
from housing.freshness.journal import Journal, journal
from housing.freshness.settings import conf
from housing.models import Property
from tests import ROOT
from tests.fixtures.cache import another_version
from tests.fixtures.processes import clean
from tests.stacks import wait_for

PAGE, ANOTHER = cache.make_key("page"), cache.make_key("another page")


@contextmanager
def other_tags(monkeypatch):
    """Be a process whose version has other tags, of writes and of entries: the next release of the engine may write them in another form."""
    tag, store = ConnectionMixin.tag, Journal.store
    with another_version(), monkeypatch.context() as patched:
        patched.setattr(ConnectionMixin, "tag", lambda self, table, tags, *more: tag(self, table, {f"v2/{each}" for each in tags}, *more))
        patched.setattr(Journal, "store", lambda self, entry, miss, tags, *more: store(self, entry, miss, {f"v2/{each}" for each in tags}, *more))
        yield


def set_the_price(home, price):
    Property.objects.filter(pk=home.pk).update(price=price)


# Writes by the other version


def test_a_write_by_the_new_version_is_in_the_next_read_of_the_old_one(home, price, monkeypatch):
    """The old version does not know the new version's tags."""
    price()
    with other_tags(monkeypatch):
        price()  # it serves readers, too
        set_the_price(home, 1)
    assert price() == ("1.00", "fwd=stale; stored")
    assert price() == ("1.00", "hit")


def test_a_write_by_the_old_version_is_in_the_next_read_of_the_new_one(home, price, monkeypatch):
    """The old version does not know the tags of the new version's entry."""
    price()
    with other_tags(monkeypatch):
        price()
        assert price() == ("300000.00", "hit")
    set_the_price(home, 1)
    with other_tags(monkeypatch):
        assert price() == ("1.00", "fwd=stale; stored")


def test_a_process_that_only_writes_invalidates_the_entries_of_the_other_version(home, price, monkeypatch):
    """A command of the next release, such as an import, may run before any of its servers."""
    price()
    with other_tags(monkeypatch):
        set_the_price(home, 1)
    assert price() == ("1.00", "fwd=stale; stored")


def test_each_version_stays_warm_while_nobody_writes(price):
    """Their entries are separate, because the version is part of every key."""
    for step in ("fwd=miss; stored", "hit"):
        assert price()[1] == step
        with another_version():
            assert price()[1] == step


def test_a_write_leaves_the_other_pages_of_its_own_version_warm(home, warm, read):
    """Only the entries of the other version are invalidated as a whole."""
    warm("cached", min_price=319_000)
    with another_version():
        warm("cached", min_price=319_000)
    Property.objects.filter(pk=home.pk).update(title="Renamed")
    assert read("cached", min_price=319_000).came_from == "hit"
    with another_version():
        assert read("cached", min_price=319_000).came_from == "fwd=stale; stored"


@pytest.mark.only("embedded")
def test_a_write_that_is_killed_after_its_commit_is_in_the_reads_of_the_other_version(home, price, redis_clock, monkeypatch):
    """The lease has the tag of the other version's entries, too. (Embedded only: the spec sets Redis's clock.)"""
    price()
    with other_tags(monkeypatch):
        price()
        journal.lease({"v2/housing_property"})
    assert price() == ("300000.00", "fwd=miss; detail=leased")
    redis_clock.seconds += conf.LEASE + 1
    assert price() == ("300000.00", "fwd=stale; stored")


def test_a_write_without_redis_is_in_the_reads_of_the_other_version(home, price, redis_unreachable, verify, monkeypatch):
    """The row in the outbox names the version of its writer."""
    price()
    with other_tags(monkeypatch):
        price()
        with redis_unreachable():
            set_the_price(home, 1)
    verify()
    assert price() == ("1.00", "fwd=stale; stored")


# Writes by other programs, while two versions run


@pytest.fixture
def row():
    """`row(form)`: a trigger that writes this form of tags has written a row that concerns no page of this version."""

    def row(form):
        connection.connection.execute(f"INSERT INTO freshness_outbox (tags) VALUES ('unrelated\n|trigger:{form}')")

    return row


def test_a_row_of_a_trigger_invalidates_the_entries_of_the_other_version(home, price, row, verify, monkeypatch):
    """The version that verifies knows the tags of its own triggers. The other version may have other tags."""
    monkeypatch.setattr(type(ours()), "trigger_forms", lambda _: frozenset({"known"}))
    price()
    with another_version():
        price()
    row("known")
    verify()
    assert price()[1] == "hit"
    with another_version():
        assert price()[1] == "fwd=stale; stored"


@pytest.mark.parametrize("form", ["of another version", ""])
def test_a_row_of_a_trigger_of_another_version_invalidates_everything(home, price, row, verify, form):
    """`migrate` installs the new triggers while the old version runs. A version that goes back, or that runs before `migrate`, has the triggers of another."""
    price()
    row(form)
    verify()
    assert price()[1] == "fwd=stale; stored"


@pytest.mark.only("real")
def test_a_write_of_another_program_is_in_the_reads_of_both_versions(home, price, verify, monkeypatch):
    """Only one of the versions has installed the triggers. (Real only: SQLite has none.)"""
    price()
    with other_tags(monkeypatch):
        price()
    connection.connection.execute("UPDATE housing_property SET price = 1 WHERE id = %s", [home.pk])  # the raw driver is another program
    verify()
    assert price() == ("1.00", "fwd=stale; stored")
    with other_tags(monkeypatch):
        assert price() == ("1.00", "fwd=stale; stored")


# Versions that come and go


@pytest.mark.only("embedded")
def test_a_new_version_stores_nothing_until_the_open_leases_of_others_have_run_out(redis_clock):
    """Such a lease does not have the tag of the new version's entries, and its process may be killed before the close. (Embedded only: the spec
    sets Redis's clock.)
    """
    miss = journal.lookup(ANOTHER)
    journal.store(ANOTHER, miss, {"t"}, '"e"', b"e")
    journal.lease({"t"})
    with another_version():
        miss = journal.lookup(PAGE)
        assert journal.store(PAGE, miss, {"v2/t"}, '"e"', b"e") == "leased"
        redis_clock.seconds += conf.LEASE + 1
        miss = journal.lookup(PAGE)
        assert journal.store(PAGE, miss, {"v2/t"}, '"e"', b"e") == "stored"


def test_a_new_version_stores_at_once_if_nobody_writes(transactional_db):
    """A deploy of a service at rest begins warm."""
    journal.lookup(ANOTHER)
    with another_version():
        miss = journal.lookup(PAGE)
        assert journal.store(PAGE, miss, {"v2/t"}, '"e"', b"e") == "stored"


@pytest.mark.only("embedded")
def test_a_version_that_nobody_has_used_for_a_ttl_is_forgotten(redis_clock):
    """Its entries have expired. Otherwise each deploy would add a tag to every write for ever. (Embedded only: the spec sets Redis's clock.)"""
    journal.lookup(PAGE)
    old = version()
    with another_version():
        journal.lookup(PAGE)
        assert f"|others:{old}" in journal.lease({"t"}).tags
    redis_clock.seconds += conf.TTL + 2_000
    with override_settings(A_NEW_SETTING="of the release after that"):
        assert journal.lease({"t"}).tags[:1] == ("t",)
        assert f"|others:{old}" not in journal.lease({"t"}).tags
    assert get_redis_connection("default").zscore(cache.make_key("journal"), f"|version:{old}") is None


# Two processes

PROCESS = """
import json, sys
from wsgiref.util import setup_testing_defaults
from django.conf import settings

settings.FRESHNESS_LEASE, settings.LOGGING["loggers"]["housing"]["level"] = 0.5, "CRITICAL"
if sys.argv[1] == "new":
    settings.A_NEW_SETTING = "of the next release"
from housing.wsgi import application
from housing.freshness.connection import ConnectionMixin
from housing.models import Property

if sys.argv[1] == "new":
    tag = ConnectionMixin.tag
    ConnectionMixin.tag = lambda self, table, tags, *more: tag(self, table, {f"v2/{each}" for each in tags}, *more)

def read():
    environ = {"PATH_INFO": "/api/properties/cached/"}
    setup_testing_defaults(environ)
    response = application(environ, lambda *_: None)
    response.close()
    return json.loads(response.content)["results"][0]["price"], response.headers["Cache-Status"].removeprefix("housing; ")

def write(price):
    return Property.objects.update(price=price)

for line in sys.stdin:
    action, *arguments = line.split()
    print(json.dumps({"read": read, "write": write}[action](*arguments)), flush=True)
"""
"""A process of the old or the new version, which reads and writes on request. The new one tags its writes in another form."""


@pytest.fixture
def started(new_redis):
    """`started("old")`: start a process of a version, and return a function that sends it an action. All share one Redis."""
    database = "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(connection.settings_dict)
    environment = {"DATABASE_URL": database, "REDIS_URL": new_redis().url, "DJANGO_SECRET_KEY": "any", "DJANGO_ALLOWED_HOSTS": "127.0.0.1"}
    environment |= {"DJANGO_SETTINGS_MODULE": "housing.settings"}
    with ExitStack() as processes:

        def started(which):
            command = [sys.executable, "-c", PROCESS, which]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = processes.enter_context(subprocess.Popen(command, cwd=ROOT, env=clean() | environment, text=True, bufsize=1, **pipes))
            processes.callback(process.kill)

            def send(*action):
                process.stdin.write(" ".join(map(str, action)) + "\n")
                return json.loads(process.stdout.readline())

            return send

        yield started


@pytest.mark.only("real")
@pytest.mark.slow
def test_processes_of_two_versions_see_each_others_writes(twenty_properties, started):
    """Each has its own watchman, its own entries and its own tags, as during a deploy. (Real only: processes cannot share the embedded Redis.)"""
    old, new = started("old"), started("new")

    def until_it_hits(process):
        def attempt():
            if process("read")[1] != "hit":
                raise LookupError

        wait_for(attempt, LookupError)

    for price, (writer, reader) in enumerate([(new, old), (old, new), (new, old)], 1):
        until_it_hits(reader)
        writer("write", price)
        assert reader("read")[0] == f"{price}.00"
