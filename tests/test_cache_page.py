"""The cache's page in the admin. A superuser finds an entry by its URL, sees its tags, its age and whether it is fresh, and can invalidate it."""

import re
from html import unescape

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection, transaction
from django.test import Client
from django_redis import get_redis_connection

from housing.freshness.admin import FRESHNESS, CacheAdmin
from housing.freshness.connection import ours
from housing.freshness.journal import SCRIPT, journal
from housing.models import Property
from tests.fixtures.cache import entries

PAGE = "/admin/freshness/cache/"
LIST = "/api/properties/cached/"


@pytest.fixture
def operator(client, transactional_db):
    """The client of a superuser."""
    client.force_login(User.objects.create_superuser("operator"))
    return client


@pytest.fixture
def find(operator):
    """`find("/api/…")`: the page about this URL, as text."""

    def find(url):
        response = operator.get(PAGE, {"url": url})
        assert response.status_code == 200
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", response.content.decode())).split())

    return find


# Permissions


def test_the_index_of_the_admin_links_the_page(operator):
    """An operator finds the page without knowing its URL."""
    assert f'<a href="{PAGE}"' in operator.get("/admin/").content.decode()
    assert operator.get(PAGE).status_code == 200


def test_staff_without_all_permissions_see_neither_link_nor_page(client, transactional_db):
    """Tags contain primary keys, and an invalidation costs the database time."""
    client.force_login(User.objects.create_user("editor", is_staff=True))

    assert PAGE not in client.get("/admin/").content.decode()
    for response in (client.get(PAGE), client.post(PAGE, {"url": LIST})):
        assert response.status_code == 403
        assert b"Only a superuser may see this page." in response.content
        assert b"State" not in response.content


def test_a_stranger_is_sent_to_the_login(client, transactional_db):
    """An operator whose session has expired returns to this page after the login. Anonymous visitors see no tags."""
    assert client.get(PAGE).headers["Location"] == f"/admin/login/?next={PAGE}"


def test_another_method_than_get_head_and_post_is_not_allowed(operator):
    """It gets 405, as from every other page."""
    assert operator.put(PAGE).status_code == 405
    assert operator.head(PAGE).status_code == 200


def test_the_pages_of_single_apps_are_as_without_it(operator):
    """Django asks for one app's models there."""
    assert operator.get("/admin/housing/").status_code == 200
    assert [app["app_label"] for app in admin.site.get_app_list(operator.get("/admin/").wsgi_request, "housing")] == ["housing"]


def test_a_site_of_the_project_can_have_the_page_too(operator, settings):
    """One line adds it: `CacheAdmin(site)`."""
    site = admin.AdminSite(name="another")
    CacheAdmin(site)

    assert "freshness_cache" in [url.name for url in site.get_urls() if hasattr(url, "name")]


# Finding an entry


def test_an_entry_is_found_by_its_path_with_its_tags_and_age(home, warm, find):
    """The parameters may be in any order, as in a request."""
    warm("cached?agent=1&page_size=3")
    page = find(f"{LIST}?page_size=3&agent=1&utm_source=mail")

    assert "Freshness fresh: a read is a hit" in page
    assert re.search(r"Age \d\.\d s; it expires in \d+ h", page)
    assert f"Key {entries()[0].decode()}" in page
    assert "housing_property.agent_id=1" in page


def test_a_detail_shows_the_tags_of_its_rows(home, warm, find):
    """The tags show an operator which writes invalidate the response."""
    warm(f"cached/{home.pk}")
    page = find(f"{LIST}{home.pk}/")

    for tag in (f"housing_property:{home.pk}", f"housing_agent:{home.agent_id}", f"housing_propertyimage.property_id={home.pk}"):
        assert tag in page


@pytest.fixture
def in_every_state(home, warm, redis_clock):
    """Bring the entry of the list into a state, by the name of its verdict."""

    def write():
        journal.close(journal.lease({"housing_property.created_at"}))

    def in_every_state(verdict):
        warm()
        act = {
            "fresh": bool,
            "unverified": lambda: get_redis_connection("default").zrem(cache.make_key("journal"), f"|verified:{ours().identity}"),
            "raced": write,
            "leased": lambda: journal.lease({"housing_property.created_at", "another"}),
            "recovering": lambda: journal.lease({"*"}),
            "dropped": journal.invalidate_everything,
            "lost": journal.begin,
        }[verdict]
        act()

    return in_every_state


@pytest.mark.only("embedded")
@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("fresh", "fresh: a read is a hit"),
        ("unverified", "not verified within the last 1e+09 s: reads use the database until it is"),
        ("raced", "stale: a write of housing_property.created_at was committed after it was read"),
        ("leased", "stale: a transaction that writes another, housing_property.created_at is being committed, or died during COMMIT"),
        ("recovering", "stale: the journal is new, and a running writer may not know it"),
        ("dropped", "stale: everything was invalidated, or it is older than the journal's records"),
        ("lost", "stale: it was read with another journal, which Redis has lost"),
    ],
)
def test_the_page_says_why_an_entry_is_not_served(find, in_every_state, verdict, sentence, read):
    """The next read confirms it. (Embedded only: the spec stops Redis's clock.)"""
    in_every_state(verdict)
    page = find(LIST)

    assert sentence in page
    assert (read("cached").came_from == "hit") is (verdict == "fresh")


def test_there_is_a_sentence_for_every_verdict_of_the_script():
    """A verdict without one would be a 500."""
    doubts = re.findall(r"(?:return|and|or) '(\w+)'", SCRIPT.partition("  local is_compared = false")[2].partition("-- may_wait")[0])
    inspected = re.findall(r"(?:why =|and|or) '(\w+)'", SCRIPT.partition("function verbs.inspect(")[2].partition("\nend\n")[0])

    assert FRESHNESS.keys() == {*doubts, *inspected, "fresh"}


def test_a_response_that_is_not_cached_is_reported_with_its_key(home, find):
    """An operator can look for the key in Redis, and does not mistake a missing entry for an error of the page."""
    assert re.search(r"This response is not cached. Its key is \S+:list:\S+page_size=7 \.", find(f"{LIST}?page_size=7"))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("/nowhere/", "There is no such URL or time zone."),
        ("/admin/", "/admin/: its view is not a CachedView."),
        (f"{LIST}?min_price=abc", "the view refuses it. min_price: Enter a number."),
        (f"{LIST}?search=<script>", "This response is not cached."),
        ("http://[", "is not a URL"),
    ],
)
def test_a_url_without_an_entry_is_explained_on_the_page(find, url, problem):
    """An operator may mistype a URL. A server error would not show whether the URL or the cache is wrong."""
    assert problem in find(url)


def test_the_state_is_on_the_page(home, find, verify):
    """It is that of `manage.py cache status`, without the number of entries."""
    verify()
    journal.lease({"t"})
    page = find("")

    assert "leases 1 open" in page
    assert re.search(r"database default: verified [\d.]+ s ago, 0 rows in the outbox", page)
    assert "entries" not in page


def test_without_redis_the_page_says_so(operator, find, redis_unreachable):
    """Operators open this page during an outage, and a server error would hide its cause."""
    with redis_unreachable():
        assert find(LIST).count("is unreachable (connection refused).") == 2  # above the form, and in the state
        assert "is unreachable (connection refused)." in operator.post(PAGE, {"url": LIST}).content.decode()


# Invalidating it


def test_a_click_invalidates_the_entry(home, warm, read, operator):
    """The next read is from the database. Other entries stay warm."""
    warm()
    warm("cached?page_size=3")
    response = operator.post(f"{PAGE}?url={LIST}", {"url": LIST}, follow=True)

    assert response.redirect_chain == [(f"{PAGE}?url=%2Fapi%2Fproperties%2Fcached%2F", 302)]
    assert "Invalidated. The next read uses the database." in response.content.decode()
    assert "This response is not cached." in response.content.decode()
    assert read("cached").came_from == "fwd=miss; stored"
    assert read("cached?page_size=3").came_from == "hit"


def test_a_fill_that_began_before_the_click_is_not_stored(home, read, operator, meanwhile, queries):
    """T1 misses, SELECTs · T2 invalidates the entry · T1 may not store what it has read, and reads again."""
    operator.get(PAGE)
    with meanwhile(lambda: journal.invalidate_entry(key_on(operator))), queries.exactly(2, because="the first read was raced", threads=False):
        assert read("cached").came_from == "fwd=miss; stored"


def key_on(operator):
    """The key of the list's entry, which the page shows."""
    [key] = set(re.findall(r"<code>(\S+:list:[^<]*)</code>", operator.get(PAGE, {"url": LIST}).content.decode()))
    return key


def test_an_invalidation_needs_the_token_of_the_form(home, warm, read, handler):
    """Otherwise any site could empty the cache through an operator's browser."""
    warm()
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("operator"))

    assert client.post(PAGE, {"url": LIST}).status_code == 403
    assert read("cached").came_from == "hit"
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', client.get(PAGE, {"url": LIST}).content.decode())[1]
    assert client.post(PAGE, {"url": LIST, "csrfmiddlewaretoken": token}).status_code == 302
    assert read("cached").came_from == "fwd=miss; stored"


def test_a_get_invalidates_nothing(home, warm, read, find):
    """Browsers prefetch and repeat a GET, so a look at the page must not remove an entry."""
    warm()
    find(LIST)

    assert read("cached").came_from == "hit"


def test_the_page_has_no_inline_scripts_and_styles(home, warm, operator):
    """A strict Content-Security-Policy would refuse them."""
    warm()
    [content] = re.findall(r'<div id="content-main".*</div>', operator.get(PAGE, {"url": LIST}).content.decode(), re.DOTALL)

    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", content)


def test_the_page_works_inside_a_transaction(home, warm, operator):
    """A project may have ATOMIC_REQUESTS. The error of a missing outbox must not end the transaction of the request."""
    warm()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE freshness_outbox RENAME TO freshness_outbox_elsewhere")
        assert "run `manage.py migrate`" in operator.get(PAGE, {"url": LIST}).content.decode()
        assert Property.objects.exists()
        transaction.set_rollback(True)
