"""The pages for people against strangers and outages: failed logins are limited, each page has a policy, the API can be throttled, no form is lost."""

import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, connection
from django.test import Client

from housing.logs import Line
from housing.models import Property
from housing.policies import STRICT
from housing.wsgi import Application
from tests.fixtures.hostile import addresses, send
from tests.fixtures.processes import python


@pytest.fixture
def root(transactional_db):
    """A superuser with a password."""
    return User.objects.create_superuser("root", password="correct horse")


@pytest.fixture
def editor(root):
    """A client of this superuser."""
    client = Client()
    client.force_login(root)
    return client


# Logins


def login(password, address="10.0.0.1", username="root"):
    """The response to a login from this address."""
    return Client(REMOTE_ADDR=address).post("/admin/login/", {"username": username, "password": password, "next": "/admin/"})


def test_failed_logins_are_limited_for_the_name_and_the_address(root, settings):
    """A program that tries passwords gets five in a quarter of an hour. The administrator, who is elsewhere, is not locked out."""
    statuses = [login(f"wrong {number}").status_code for number in range(6)]

    assert statuses == [200] * 4 + [429] * 2
    refused = login("correct horse")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "900")
    assert b"Try again in 15 minutes" in refused.content
    assert login("correct horse", address="10.0.0.2").status_code == 302
    settings.AXES_COOLOFF_TIME = None
    User.objects.create_superuser("another", password="battery staple")
    assert login("battery staple", username="another").status_code == 302


def test_a_successful_login_ends_the_count(root):
    """Somebody who mistypes now and then is never locked out."""
    for _ in range(3):
        assert [login("wrong").status_code for _ in range(3)] == [200] * 3
        assert login("correct horse").status_code == 302


def test_each_failed_login_is_a_line_with_the_address_and_without_what_was_typed(root, caplog):
    """An operator sees an attack while it goes on. Some people type their password as the name."""
    for number in range(5):
        caplog.clear()
        login(f"secret {number}", address="10.0.0.3")
        lines = [Line().format(record) for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
        assert [line for line in lines if "10.0.0.3" in line and "login failure" in line], lines
        assert not any("secret" in line or "root" in line for line in lines)
    assert any("429 for /admin/login/" in line for line in lines)


# The policy of each page


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_each_page_has_a_policy_that_allows_only_files_of_this_service(home, editor, method):
    """A script that somebody has put into a title or a name is not run. Pages about errors have the policy, too."""
    application, pages = Application(), 0
    for path in addresses(home.pk):
        for client in (None, editor):
            answer = send(application, path, method, client, HTTP_ACCEPT="text/html")
            if answer.headers.get("Content-Type", "").startswith("text/html") and answer.body:
                pages += 1
                assert answer.headers["Content-Security-Policy"] == STRICT, path
    assert pages > 40


@pytest.mark.parametrize("parts", [{"HTTP_HOST": "unknown.example"}, {"CONTENT_TYPE": "a/b; charset=hex"}])
def test_a_refusal_has_the_policy_too(transactional_db, parts):
    """No middleware sees some of them."""
    assert send(Application(), "/", HTTP_ACCEPT="text/html", **parts).headers["Content-Security-Policy"] == STRICT


def test_no_template_of_the_service_has_inline_scripts_or_styles(editor, home):
    """The policy would refuse them."""
    application = Application()
    for path in addresses(home.pk):
        page = send(application, path, client=editor, HTTP_ACCEPT="text/html").body.decode(errors="replace")
        inline = re.findall(r"<script(?![^>]*(?:src=|application/json))[^>]*>|<style[^>]*>| on(?:click|load|submit)=|href=\"javascript:", page)
        assert inline == [], path


# Throttling

THROTTLED = """
import django
django.setup()
from django_redis import get_redis_connection
from housing.wsgi import application
from tests.fixtures.hostile import send
from tests.fixtures.responses import VARIANTS
first = [send(application, path, REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=path) for path in VARIANTS.values()]
print([answer.status for answer in first], [send(application, path, REMOTE_ADDR="10.0.0.1").status for path in VARIANTS.values()])
refused = send(application, path := VARIANTS["cached"], REMOTE_ADDR="10.0.0.1")
print(0 < int(refused.headers["Retry-After"]) <= 86400, send(application, path, REMOTE_ADDR="10.0.0.2").status)
invented = [f"192.0.2.{number}, 10.0.0.3" for number in range(4)]
print([send(application, path, REMOTE_ADDR="127.0.0.1", HTTP_X_FORWARDED_FOR=addresses).status for addresses in invented])
redis = get_redis_connection("default")
print([redis.get(key) for key in redis.scan_iter("*throttle*10.0.0.1*")])
import redis as driver
from unittest.mock import patch
with patch("django.core.cache.cache.incr", side_effect=driver.ConnectionError):
    print(send(application, path, REMOTE_ADDR="10.0.0.1").status)
"""


def throttled(database, script, limit):
    """Run a script with a limit of the API."""
    environment = {"DATABASE_URL": database, "REDIS_URL": "fakeredis://", "DJANGO_SETTINGS_MODULE": "housing.settings"}
    return python("-c", script, DJANGO_SECRET_KEY="any", DJANGO_ALLOWED_HOSTS="testserver", DJANGO_API_THROTTLE=limit, **environment)


def test_requests_to_the_api_are_limited_for_each_address_if_a_limit_is_set(own_database):
    """They are counted in Redis for all processes, as numbers, since a pickle could run code. A client cannot choose its address by a header,
    with a proxy or without. Without Redis there is no limit.
    """
    ended = throttled(own_database, THROTTLED, "3/day")

    assert ended.stdout.splitlines() == [
        "[200, 200, 200] [429, 429, 429]",
        "True 200",
        "[200, 200, 200, 429]",
        "[b'7']",
        "200",
    ], ended.stderr


def test_an_unknown_limit_is_refused_at_the_start():
    """Otherwise each request would fail."""
    ended = throttled("", "import housing.settings", "many")

    assert ended.stderr.endswith("DJANGO_API_THROTTLE is not a rate. Write a number of requests and a unit, such as 100/minute.\n")


# Secrets

SHOWN = """
import django
django.setup()
from django.test import Client, RequestFactory
from django.views.debug import technical_500_response
import sys
from django.conf import settings
from housing.environment import text_of

def fail(url, secret):
    raise ValueError(f"{url} {secret!r}")

for accept in ("text/html", "text/plain"):
    try:
        fail(text_of("DATABASE_URL"), settings.DATABASES["default"]["PASSWORD"] + settings.SECRET_KEY)
    except ValueError:
        request = RequestFactory(headers={"Accept": accept}, **__import__("os").environ).post("/", {"a": "b"})
        page = technical_500_response(request, *sys.exc_info()).content.decode()
    print("ValueError" in page, [secret for secret in ("p%40ss", "p@ss", "r3dis", "s3cret", "t0ken") if secret in page])
"""


def test_the_page_about_an_error_in_debug_shows_no_password():
    """It shows settings, variables, the error and the environment of the process, and is often pasted into an issue."""
    urls = {"DATABASE_URL": "postgres://housing:p%40ss<'1@127.0.0.1/housing", "REDIS_URL": "redis://:r3dis@127.0.0.1/0"}
    ended = python(
        "-c", SHOWN, DJANGO_DEBUG="true", DJANGO_SECRET_KEY="s3cret", FRESHNESS_METRICS_TOKEN="t0ken", DJANGO_SETTINGS_MODULE="housing.settings", **urls
    )

    assert ended.stdout == "True []\n" * 2, ended.stderr


def test_the_sqlite_file_of_make_run_is_readable_by_its_owner_alone(tmp_path):
    """It has the sessions and the hashes of passwords. A file of an earlier release gets the mode, too."""
    file = tmp_path / "db.sqlite3"
    environment = {"DATABASE_URL": f"sqlite:///{file}", "REDIS_URL": "fakeredis://", "DJANGO_DEBUG": "true", "DJANGO_SETTINGS_MODULE": "housing.settings"}
    for _ in range(2):
        ended = python("-c", "import os; os.umask(0); from housing.run import prepare; prepare(20)", **environment)
        assert ended.code == 0, ended.stderr
        assert {each.stat().st_mode & 0o077 for each in tmp_path.iterdir()} == {0}
        file.chmod(0o644)


# Writes that the database refuses


def refusing(error):
    """Let each write of a listing fail with this error."""

    def refuse(execute, sql, *rest):
        if sql.startswith(("UPDATE", "INSERT")) and "housing_" in sql:
            raise error
        return execute(sql, *rest)

    return connection.execute_wrapper(refuse)


@pytest.mark.parametrize("error", [OperationalError("canceling statement due to lock timeout"), IntegrityError("a constraint")])
@pytest.mark.parametrize("model", ["property", "agent", "office", "location", "propertyimage"])
def test_a_form_whose_write_the_database_refuses_is_shown_again_with_the_reason(home, editor, model, error, caplog):
    """Its user has typed for minutes, and can try again. An operator finds one line."""
    [registered] = [each for each in admin.site._registry if each._meta.label_lower == f"housing.{model}"]
    row = registered.objects.first()
    page = editor.get(f"/admin/housing/{model}/{row.pk}/change/")
    form = {name: value for name, value in page.context["adminform"].form.initial.items() if value is not None}
    form |= {"images-TOTAL_FORMS": "0", "images-INITIAL_FORMS": "0"}
    text = next(name for name in ("description", "name", "city", "caption") if name in page.context["adminform"].form.fields)
    caplog.clear()

    with refusing(error):
        answer = editor.post(f"/admin/housing/{model}/{row.pk}/change/", form | {text: "typed for minutes"})

    assert answer.status_code == 503
    assert f"The database refused the change: {error}" in answer.content.decode()
    assert "typed for minutes" in answer.content.decode()
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == f"503 for /admin/housing/{model}/{row.pk}/change/: The database refused the change: {error}"
    assert f"/admin/housing/{model}/{row.pk}/change/" in Line().format(record)
    assert editor.post(f"/admin/housing/{model}/{row.pk}/change/", form | {text: "typed for minutes"}).status_code == 302


def test_a_list_whose_write_the_database_refuses_is_shown_again_with_the_reason(home, editor):
    """Prices can be changed in the list."""
    homes = sorted(Property.objects.all(), key=lambda home: home.created_at, reverse=True)
    form = {"form-TOTAL_FORMS": "20", "form-INITIAL_FORMS": "20", "_save": "Save"}
    for number, each in enumerate(homes):
        form |= {f"form-{number}-id": str(each.pk), f"form-{number}-price": str(each.price)}

    with refusing(OperationalError("canceling statement due to lock timeout")):
        answer = editor.post("/admin/housing/property/", form | {"form-3-price": "12345.67"})

    assert answer.status_code == 503
    assert "The database refused the change: canceling statement due to lock timeout" in answer.content.decode()
    assert "12345.67" in answer.content.decode()
    assert not Property.objects.filter(price="12345.67").exists()
