"""The demo page and the browsable API. The demo page shows the cost of each list, and the responses that a change invalidates."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection
from django.test import Client, RequestFactory
from django.urls import reverse

from housing import home as page_code
from housing.filters import Query
from housing.home import shows_toolbar
from housing.models import Property
from tests import ROOT
from tests.fixtures.responses import VARIANTS
from tests.fixtures.rows import a_property, saved

PROGRAM = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STATIC = Path(page_code.__file__).parent / "static" / "housing"


class Elements(HTMLParser):
    """The start tags of a page, as `(name, attributes)`."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(autouse=True)
def urls():
    """Load the URLs without debug. `urls.py` adds the toolbar's URLs on import, so a spec that sets DEBUG must not import it first."""
    reverse("home")


@pytest.fixture
def on_my_machine(settings):
    """The settings of `make run`: debug, embedded stack."""
    settings.DEBUG = settings.EMBEDDED = True


@pytest.fixture
def two_offices(transactional_db):
    """Three properties, newest first. The first two belong to one office."""
    first = a_property(0)
    return saved(first, a_property(1, agent=first.agent), a_property(2))


@pytest.fixture
def change(client):
    """POST a new value, as the page's script or as a browser without scripts."""

    def change(row, headers=PROGRAM, **value):
        return client.post(f"/change/{row._meta.model_name}/{row.pk}/", value, headers=headers)

    return change


# The demo page


def test_the_demo_page_links_lists_docs_admin_and_health(home, client):
    """A developer starts here after `make run`, and should not need to know any URL."""
    links = {attributes.get("href") for _, attributes in Elements(client.get("/").text).found}

    assert links >= {*VARIANTS.values(), "/api/docs/", "/api/schema/", "/spec/", "/admin/", "/health/"}


@pytest.mark.parametrize(("path", "file"), [("/spec/", "SPEC.md"), ("/spec/tools/", "SPEC-TOOLS.md")])
def test_the_promises_are_shown_as_a_page(transactional_db, client, path, file):
    """The page has every promise of the file. It says where each spec is, because the service does not serve its specs."""
    response = client.get(path)
    places = re.findall(r"\(tests/(test_\w+\.py)#L(\d+)\)", (ROOT / file).read_text(encoding="utf-8"))
    titles = [attributes["title"] for tag, attributes in Elements(response.text).found if tag == "span" and attributes["title"][-1].isdigit()]

    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert titles == [f"tests/{name}:{line}" for name, line in places]
    assert len(titles) > 50


@pytest.mark.parametrize("path", ["/spec/", "/spec/tools/"])
def test_every_link_of_the_promises_leads_somewhere(transactional_db, client, path):
    """The anchors are GitHub's, so the same links work there."""
    found = Elements(client.get(path).text).found
    anchors = [attributes["id"] for tag, attributes in found if tag in {"h1", "h2", "h3", "h4"}]
    links = {attributes["href"] for tag, attributes in found if tag == "a"}

    assert {tag for tag, attributes in found if "href" in attributes} == {"a", "link"}
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in links if link.startswith("#")} - set(anchors) == set()
    assert {link for link in links if not link.startswith("#")} == {"/", {"/spec/": "/spec/tools/", "/spec/tools/": "/spec/"}[path]}


def test_the_page_of_the_promises_loads_its_own_styles_alone(transactional_db, client):
    """It is the same without a network, and no style or script is written into it."""
    found = Elements(client.get("/spec/").text).found

    assert [attributes["href"] for tag, attributes in found if tag == "link"] == [f"/static/housing/{file}" for file in ("favicon.svg", "page.css", "spec.css")]
    assert not [tag for tag, attributes in found if tag in {"style", "script", "img"} or "style" in attributes]
    styles = (STATIC / "page.css").read_text() + (STATIC / "spec.css").read_text()
    assert "prefers-color-scheme: dark" in styles
    assert not re.search(r"//\w|url\(|@import", styles)


def test_markdown_is_escaped_and_equal_headings_have_anchors_of_their_own():
    """A promise may contain `<` or a pipe, and two chapters may have a section of the same name."""
    page = page_code.as_html("## A & b\n\n## A & b\n\n| a | b |\n| --- | :-: |\n| <i> | `x\\|y` |\n")

    assert '<h2 id="a--b">A &amp; b</h2>\n<h2 id="a--b-1">' in page
    assert '<td>&lt;i&gt;</td>\n<td class="mark"><code>x|y</code></td>' in page


@pytest.mark.parametrize(("path", "missing"), [("/spec/", "SPEC"), ("/spec/tools/", "SPEC_TOOLS")])
def test_without_its_specs_the_service_has_no_link_to_them(home, client, monkeypatch, tmp_path, path, missing):
    """The image of the container has none, so `/spec/` returns 404 there."""
    monkeypatch.setattr(page_code, "SPEC", tmp_path / "SPEC.md")
    monkeypatch.setattr(page_code, missing, tmp_path / "missing.md")

    assert "/spec/" not in client.get("/").text
    assert client.get(path).status_code == 404


def test_the_demo_page_of_an_empty_database_says_how_to_seed_it(transactional_db, client):
    """Without this hint, three empty lists would look like a broken service."""
    assert "manage.py seed" in client.get("/").text


def test_the_demo_page_watches_responses_that_show_the_row_and_responses_that_do_not(two_offices, client):
    """With a single property there are only its own responses to watch."""
    home, neighbour, stranger = two_offices
    office, another = home.agent.office_id, stranger.agent.office_id
    cached = VARIANTS["cached"]
    watched = {cached, f"{cached}?office={office}", f"{cached}?office={another}", f"{cached}{home.pk}/", f"{cached}{neighbour.pk}/", f"{cached}{stranger.pk}/"}

    assert {address for _, address in client.get("/").context["entries"]} == watched

    neighbour.delete()
    stranger.delete()

    assert {address for _, address in client.get("/").context["entries"]} == {cached, f"{cached}?office={office}", f"{cached}{home.pk}/"}


def test_the_demo_page_states_the_promise(home, client):
    """The forms and bars make sense only to a visitor who knows what they demonstrate."""
    assert "every read after a saved change shows it" in client.get("/").text


# Files and policies


def test_the_demo_page_loads_only_files_of_this_service(on_my_machine, home, client):
    """The page works without a network, and tells no other server about its readers."""
    page = client.get("/").text
    loaded = [attributes["src"] for _, attributes in Elements(page).found if "src" in attributes]
    loaded += [attributes["href"] for tag, attributes in Elements(page).found if tag == "link"]

    assert sorted(loaded) == [f"/static/housing/{file}" for file in ("favicon.svg", "home.css", "home.js", "page.css")]
    for file in ("home.css", "home.js", "page.css"):
        assert not re.search(r"//\w|url\(|@import|\bimport\b", (STATIC / file).read_text())


def test_the_demo_page_has_no_inline_script_or_style(on_my_machine, home, client):
    """The policy refuses inline code, so a script in a listing's title cannot run."""
    home.title = "<script>alert(1)</script>"
    home.save()

    for tag, attributes in Elements(client.get("/").text).found:
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize(("value", "status"), [(None, 200), ("-1", 400)], ids=["page", "refused change"])
def test_the_content_security_policy_allows_only_files_of_this_service(on_my_machine, home, client, change, value, status):
    """A listing may contain foreign text. Even injected code could not load scripts from another site or send data to it."""
    response = client.get("/") if value is None else change(home, headers=BROWSER, price=value)
    policy = dict(directive.split(" ", 1) for directive in response.headers["Content-Security-Policy"].split("; "))

    assert response.status_code == status
    assert policy.pop("img-src") == "'self' data:"
    assert {name for name, sources in policy.items() if sources == "'none'"} == {"default-src", "base-uri", "frame-ancestors"}
    assert {name for name, sources in policy.items() if sources == "'self'"} == {"script-src", "style-src", "connect-src", "form-action"}


# The Back button


def test_no_browser_keeps_the_demo_page(home, client):
    """Back would show the old price in the form."""
    assert "no-store" in client.get("/").headers["Cache-Control"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_browser_keeps_a_page_of_the_browsable_api(home, read, variant):
    """On Back, a browser shows a page that it kept without a request, even with `no-cache`."""
    assert read(variant, headers=BROWSER).headers["Cache-Control"] == "no-cache, no-store"
    assert read(f"{variant}/{home.pk}", headers=BROWSER).headers["Cache-Control"] == "no-cache, no-store"


# Changes


def test_a_price_changed_on_the_demo_page_is_in_the_next_read(on_my_machine, home, change, warm, read):
    """Visitors judge the cache by this change, and an old price would refute its promise."""
    warm()

    assert change(home, price="395000").status_code == 204

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=stale; stored", "395000.00")


def test_an_office_name_changed_on_the_demo_page_is_in_the_next_read(on_my_machine, home, change, warm, read):
    """An office is two joins away from a listing, so a cache that only watches listings would miss this write."""
    warm()

    assert change(home.agent.office, name="Harbor & Oak").status_code == 204

    response = read("cached")
    assert (response.came_from, response.rows[0]["agent"]["office"]["name"]) == ("fwd=stale; stored", "Harbor & Oak")


@pytest.mark.parametrize(
    ("what", "value", "stale"),
    [
        ("price", {"price": "395000"}, ["The first page", "Listings of its office", "This listing"]),
        ("name", {"name": "Harbor & Oak"}, ["The first page", "Listings of its office", "This listing", "Another listing of its office"]),
    ],
)
def test_responses_without_the_old_value_stay_warm(on_my_machine, two_offices, client, change, warm, read, what, value, stale):
    """A cache that drops everything at each write is fresh, too. The demo page shows the difference."""
    [home, *_] = two_offices
    entries = client.get("/").context["entries"]
    for _, address in entries:
        warm(address)

    change(home if what == "price" else home.agent.office, **value)

    assert {shows for shows, address in entries if read(address).came_from == "fwd=stale; stored"} == set(stale)


def test_a_change_writes_only_its_own_column(on_my_machine, home, change, meanwhile):
    """A save of all columns would undo a change that another program made in the meantime."""
    with meanwhile(lambda: Property.objects.filter(pk=home.pk).update(title="Sold at once")):
        change(home, price="395000")

    home.refresh_from_db()
    assert (home.title, home.price) == ("Sold at once", 395_000)


def test_a_change_sets_updated_at(on_my_machine, home, change):
    """A save of one column does not include `updated_at`, and the response would show the time of an earlier change."""
    before = Property.objects.get(pk=home.pk).updated_at

    change(home, price="395000")

    assert Property.objects.get(pk=home.pk).updated_at > before


def test_without_javascript_a_change_redirects_to_the_demo_page_and_is_confirmed_once(on_my_machine, home, client, change):
    """A reload after the POST would send the change again, and a repeated message would confirm a change that was not made."""
    response = change(home, headers=BROWSER, price="395000")

    assert (response.status_code, response.headers["Location"]) == (302, "/")
    page = client.get("/").text
    assert "Saved." in page
    assert 'value="395000.00"' in page
    assert "Saved." not in client.get("/").text


# Refused changes


WRONG = [
    ({"price": "-1"}, "greater than or equal to 0"),
    ({"price": "1e12"}, "no more than"),
    ({"price": "abc"}, "Enter a number."),
    ({}, "This field is required."),
]


@pytest.mark.parametrize(("value", "wrong"), WRONG)
def test_an_invalid_price_is_refused_with_400_and_invalidates_nothing(on_my_machine, home, change, warm, read, value, wrong):
    """Nothing was saved, so the cached pages are still correct and need no new queries."""
    body = warm()

    response = change(home, **value)

    assert response.status_code == 400
    assert wrong in response.json()["price"][0]
    assert (read("cached").came_from, read("cached").body) == ("hit", body)


@pytest.mark.parametrize(("value", "wrong"), WRONG)
def test_without_javascript_the_demo_page_shows_the_error_beside_the_invalid_price(on_my_machine, home, change, value, wrong):
    """The response is all that the visitor sees. It shows what to correct, and keeps what was typed."""
    response = change(home, headers=BROWSER, **value)
    [field] = [attributes for _, attributes in Elements(response.text).found if attributes.get("name") == "price"]

    assert response.status_code == 400
    assert wrong in response.text
    assert field["aria-invalid"] == "true"
    assert field.get("value") == value.get("price")


def test_an_office_without_a_name_is_refused(on_my_machine, home, change):
    """A nameless office would appear in every listing of its agents."""
    assert change(home.agent.office, name=" ").json() == {"name": ["This field is required."]}


@pytest.mark.parametrize("headers", [PROGRAM, BROWSER], ids=["script", "no script"])
def test_a_change_that_the_database_refuses_is_answered_with_503(on_my_machine, home, change, headers):
    """The reader must not believe that the change was saved."""

    def refuse(execute, sql, *rest):
        if sql.startswith("UPDATE"):
            raise OperationalError("the disk is full")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse):
        response = change(home, headers=headers, price="395000")

    assert response.status_code == 503
    assert "The database refused the change: the disk is full" in response.text


def test_changing_a_missing_row_returns_404(on_my_machine, home, change):
    """The row may have been deleted while the form was open. That is not a server error."""
    home.pk += 10**6

    assert change(home, price="1").status_code == 404


def test_a_change_requires_post(on_my_machine, home, client):
    """A crawler or a browser that prefetches links must never change a row."""
    assert client.get(f"/change/property/{home.pk}/").status_code == 405


def test_a_change_requires_a_csrf_token(on_my_machine, home, read):
    """A page of another site can send a form to this service, but it has no token. This holds in debug, too, where anyone may change rows."""
    stranger = Client(enforce_csrf_checks=True)

    assert stranger.post(f"/change/property/{home.pk}/", {"price": "1"}).status_code == 403
    assert read("naive").rows[0]["price"] == "300000.00"

    fields = [attributes for tag, attributes in Elements(stranger.get("/").text).found if tag == "input"]
    token = next(field["value"] for field in fields if field["name"] == "csrfmiddlewaretoken")
    assert stranger.post(f"/change/property/{home.pk}/", {"price": "1", "csrfmiddlewaretoken": token}).status_code == 302


# Permissions


def user(*, staff, permissions):
    someone = User.objects.create(username="someone", is_staff=staff)
    someone.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return someone


@pytest.mark.parametrize(
    ("who", "what"),
    [
        (None, []),
        ({"staff": True, "permissions": []}, []),
        ({"staff": False, "permissions": ["change_property", "change_office"]}, []),
        ({"staff": True, "permissions": ["change_property"]}, ["property"]),
        ({"staff": True, "permissions": ["change_office"]}, ["office"]),
    ],
    ids=["anonymous", "staff without permission", "not staff", "staff for properties", "staff for offices"],
)
def test_only_staff_with_the_admin_permission_may_change_a_row(home, client, change, who, what):
    """Permissions are managed in the admin, and the demo page must not be a way around them."""
    if who:
        client.force_login(user(**who))

    page = client.get("/").text
    assert re.findall(r'action="/change/(\w+)/', page) == what
    assert ('href="/admin/login/?next=/"' in page) == (not what)
    assert [
        row for row, response in (("property", change(home, price="1")), ("office", change(home.agent.office, name="Mine"))) if response.status_code == 204
    ] == what


def test_a_change_without_permission_is_refused_with_a_login_link(home, change, read):
    """A bare 403 would leave the visitor without a next step."""
    response = change(home, headers=BROWSER, price="1")

    assert response.status_code == 403
    assert 'href="/admin/login/?next=/"' in response.text
    assert read("naive").rows[0]["price"] == "300000.00"


@pytest.mark.parametrize(("debug", "embedded", "status"), [(True, True, 204), (True, False, 403), (False, True, 403)])
def test_anyone_may_change_rows_in_debug_on_the_embedded_stack(home, change, settings, debug, embedded, status):
    """`make run` serves only on loopback, with generated data."""
    settings.DEBUG, settings.EMBEDDED = debug, embedded

    assert change(home, price="1").status_code == status


# The browsable API


def links_of(response):
    return [attributes["href"] for tag, attributes in Elements(response.body.decode()).found if tag == "a" and "href" in attributes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_filter_of_the_form_has_a_label(home, read, variant):
    """Otherwise the form shows `[invalid name]`, and a screen reader cannot name the field."""
    page = read(variant, headers=BROWSER).body.decode()

    labels = dict(re.findall(r'<label for="id_(\w+)">([^<]+):</label>', page))
    assert labels == {name: filter_.label for name, filter_ in Query.filters.filters.items()}
    assert "[invalid name]" not in page


def test_the_form_on_a_later_page_starts_another_order_at_its_first_page(twenty_properties, read):
    """A cursor belongs to one order, so with another one it would be refused."""
    second = read(f"cached{read('cached?page_size=5').json['next']}", headers=BROWSER)
    fields = {attributes["name"]: attributes.get("value") for tag, attributes in Elements(second.body.decode()).found if tag == "input"}

    assert fields["page_size"] == "5"
    assert fields["cursor"] is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_page_links_the_next_and_the_previous_page(twenty_properties, client, read, variant):
    """Cursors are signed, so a visitor cannot type the address of another page."""
    first = read(f"{variant}?page_size=5")

    page = read(f"{variant}?page_size=5", headers=BROWSER)
    assert first.json["next"] in links_of(page)
    assert 'rel="prev"' not in page.body.decode()

    second = read(f"{variant}{first.json['next']}")
    links = links_of(read(f"{variant}{first.json['next']}", headers=BROWSER))
    assert second.json["previous"] in links
    assert second.json["next"] in links
    assert read(f"{variant}{second.json['previous']}").rows == first.rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_row_links_its_detail(twenty_properties, read, variant):
    """A visitor opens a detail with a click, without copying its id into the address bar."""
    links = links_of(read(variant, headers=BROWSER))

    assert [link for link in links if re.search(r"/\d+/$", link)] == [f"{VARIANTS[variant]}{home.pk}/" for home in twenty_properties]
    assert read(f"{variant}/{twenty_properties[0].pk}").status == 200


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_page_links_to_the_other_variants_and_to_the_demo_page_docs_and_admin(home, read, variant):
    """A filter is kept, so the same rows can be compared."""
    listed = links_of(read(f"{variant}?city=Springfield", headers=BROWSER))
    assert {*(f"{url}?city=Springfield" for url in VARIANTS.values()), "/", "/api/docs/", "/admin/"} <= set(listed)

    detailed = links_of(read(f"{variant}/{home.pk}", headers=BROWSER))
    assert {f"{url}{home.pk}/" for url in VARIANTS.values()} <= set(detailed)


def test_a_page_of_an_error_has_the_same_links(home, read):
    """After an invalid filter, a visitor can still compare the three endpoints."""
    refused = read("cached?min_price=abc", headers=BROWSER)

    assert refused.status == 400
    assert {f"{url}?min_price=abc" for url in VARIANTS.values()} <= set(links_of(refused))


def test_a_browser_finds_a_favicon_on_every_page(home, client, read):
    """The admin links none, so its browsers request `/favicon.ico`."""
    assert 'href="/static/housing/favicon.svg"' in read("cached", headers=BROWSER).body.decode()
    response = client.get("/favicon.ico")

    assert (response.status_code, response.headers["Location"]) == (302, "/static/housing/favicon.svg")
    assert b"<svg" in b"".join(client.get(response.headers["Location"]).streaming_content)


# The Debug Toolbar


@pytest.mark.parametrize(
    ("path", "accept", "shown"),
    [
        ("/api/properties/cached/", BROWSER["Accept"], True),
        ("/admin/", BROWSER["Accept"], True),
        ("/__debug__/render_panel/", "*/*", True),
        ("/", BROWSER["Accept"], False),
        ("/change/property/1/", BROWSER["Accept"], False),
        ("/api/properties/live/naive/", "application/json", False),
    ],
)
def test_the_toolbar_is_only_on_html_pages(settings, path, accept, shown):
    """The toolbar takes a stack trace for each query, which takes longer than the query. The policy of `/` refuses its inline styles."""
    request = RequestFactory().get(path, headers={"Accept": accept})

    assert not shows_toolbar(request)
    settings.DEBUG = True
    assert shows_toolbar(request) == shown
    request.META["REMOTE_ADDR"] = "192.0.2.1"
    assert not shows_toolbar(request)
