"""Settings under which the promises cannot be kept: `manage.py check` names each, and what to do."""

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections


@pytest.fixture
def a_plain_database(monkeypatch):
    """A second database, with Django's own engine."""
    monkeypatch.setitem(connections.settings, "plain", connections.settings["default"] | {"ENGINE": "django.db.backends.sqlite3"})
    yield connections["plain"]
    del connections["plain"]


class Elsewhere:
    """A router that keeps our tables away from it."""

    def allow_migrate(self, db, app_label, **hints):
        return db != "plain" or app_label != "housing"


def test_the_settings_of_the_specs_keep_every_promise():
    assert run_checks() == []


def test_our_tables_on_an_engine_that_is_not_ours_are_refused(a_plain_database):
    """Its COMMIT would pass the lease by, and no read would know of the write."""
    with pytest.raises(SystemCheckError) as refused:
        call_command("check")

    assert "(housing.E001) The database 'plain' commits past the cache: its engine is django.db.backends.sqlite3." in str(refused.value)
    assert "Use housing.db.postgresql or housing.db.sqlite3, or keep the tables of `housing` away from it with a database router." in str(refused.value)
    assert "'default'" not in str(refused.value)


def test_a_database_without_our_tables_may_have_any_engine(a_plain_database, settings):
    settings.DATABASE_ROUTERS = ["tests.test_checks.Elsewhere"]

    assert run_checks() == []


def test_a_cache_that_is_not_redis_is_refused(settings):
    """The journal is a script that runs there."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

    with pytest.raises(SystemCheckError) as refused:
        call_command("check")

    assert "(housing.E002) The default cache is not django-redis's." in str(refused.value)
    assert "Set BACKEND to django_redis.cache.RedisCache." in str(refused.value)
