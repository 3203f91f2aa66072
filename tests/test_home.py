"""The page to look at. Anybody sees what a list costs; who may change something sees at once what that makes stale."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection
from django.test import Client, RequestFactory
from django.urls import reverse

from conftest import ROOT, VARIANTS, a_property, saved
from housing import home as page_code
from housing.home import shows_toolbar
from housing.models import Property

PROGRAM = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STATIC = Path(page_code.__file__).parent / "static" / "housing"


class Elements(HTMLParser):
    """The start tags of a page: `(name, attributes)`."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(autouse=True)
def addresses():
    """As they are without debug, whatever a spec says of it later: `urls.py` adds the toolbar's when it is read."""
    reverse("home")


@pytest.fixture
def on_my_machine(settings):
    """As `make run` serves: in debug, on the embedded stack."""
    settings.DEBUG = settings.EMBEDDED = True


@pytest.fixture
def two_offices(transactional_db):
    """Three properties, newest first; the first two are one office's."""
    first = a_property(0)
    return saved(first, a_property(1, agent=first.agent), a_property(2))


@pytest.fixture
def change(client):
    """POST a new value as the page's script does, or as a browser does without."""

    def change(row, headers=PROGRAM, **value):
        return client.post(f"/change/{row._meta.model_name}/{row.pk}/", value, headers=headers)

    return change


# What it shows


def test_the_page_leads_to_everything(home, client):
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
    anchors = [attributes["id"] for tag, attributes in found if tag in {"h1", "h2", "h3"}]
    links = {attributes["href"] for tag, attributes in found if tag == "a"}

    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in links if link.startswith("#")} - set(anchors) == set()
    assert {link for link in links if not link.startswith("#")} == {"/", {"/spec/": "/spec/tools/", "/spec/tools/": "/spec/"}[path]}


def test_the_page_of_the_promises_loads_its_own_styles_alone(transactional_db, client):
    """It is the same without a network, and no style or script is written into it."""
    found = Elements(client.get("/spec/").text).found

    assert [attributes["href"] for tag, attributes in found if tag == "link"] == ["data:,", "/static/housing/spec.css"]
    assert not [tag for tag, attributes in found if tag in {"style", "script", "img"} or "style" in attributes]
    styles = (STATIC / "spec.css").read_text()
    assert "prefers-color-scheme: dark" in styles
    assert not re.search(r"//\w|url\(|@import", styles)


def test_markdown_is_escaped_and_equal_headings_have_anchors_of_their_own():
    """A promise may contain `<` or a pipe, and two chapters may have a section of the same name."""
    page = page_code.as_html("## A & b\n\n## A & b\n\n| a | b |\n| --- | :-: |\n| <i> | `x\\|y` |\n")

    assert '<h2 id="a--b">A &amp; b</h2>\n<h2 id="a--b-1">' in page
    assert '<td>&lt;i&gt;</td>\n<td class="mark"><code>x|y</code></td>' in page


@pytest.mark.parametrize(("path", "missing"), [("/spec/", "SPEC"), ("/spec/tools/", "SPEC_TOOLS")])
def test_without_its_specs_the_service_does_not_speak_of_them(home, client, monkeypatch, tmp_path, path, missing):
    """As in a container, whose image has none."""
    monkeypatch.setattr(page_code, "SPEC", tmp_path / "SPEC.md")
    monkeypatch.setattr(page_code, missing, tmp_path / "missing.md")

    assert "/spec/" not in client.get("/").text
    assert client.get(path).status_code == 404


def test_the_page_without_a_listing_says_how_to_make_some(transactional_db, client):
    assert "manage.py seed" in client.get("/").text


def test_the_page_watches_both_sides_of_a_change(two_offices, client):
    """What shows the row and what does not; where there is nothing else yet, what there is."""
    home, neighbour, stranger = two_offices
    office, another = home.agent.office_id, stranger.agent.office_id
    cached = VARIANTS["cached"]
    watched = {cached, f"{cached}?office={office}", f"{cached}?office={another}", f"{cached}{home.pk}/", f"{cached}{neighbour.pk}/", f"{cached}{stranger.pk}/"}

    assert {address for _, address in client.get("/").context["entries"]} == watched

    neighbour.delete()
    stranger.delete()

    assert {address for _, address in client.get("/").context["entries"]} == {cached, f"{cached}?office={office}", f"{cached}{home.pk}/"}


# What it loads


def test_the_page_loads_nothing_from_elsewhere(on_my_machine, home, client):
    """It is the same without a network, and tells nobody who looks."""
    page = client.get("/").text
    loaded = [attributes["src"] for _, attributes in Elements(page).found if "src" in attributes]
    loaded += [attributes["href"] for tag, attributes in Elements(page).found if tag == "link"]

    assert sorted(loaded) == ["/static/housing/home.css", "/static/housing/home.js", "data:,"]
    for file in ("home.css", "home.js"):
        assert not re.search(r"//\w|url\(|@import|\bimport\b", (STATIC / file).read_text())


def test_no_script_and_no_style_is_written_into_the_page(on_my_machine, home, client):
    """Its policy refuses them, and so what a listing's title may try."""
    home.title = "<script>alert(1)</script>"
    home.save()

    for tag, attributes in Elements(client.get("/").text).found:
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize(("value", "status"), [(None, 200), ("-1", 400)], ids=["the page", "a refusal"])
def test_a_policy_lets_in_what_this_service_serves_and_nothing_else(on_my_machine, home, client, change, value, status):
    response = client.get("/") if value is None else change(home, headers=BROWSER, price=value)
    policy = dict(directive.split(" ", 1) for directive in response.headers["Content-Security-Policy"].split("; "))

    assert response.status_code == status
    assert policy.pop("img-src") == "'self' data:"
    assert {name for name, sources in policy.items() if sources == "'none'"} == {"default-src", "base-uri", "frame-ancestors"}
    assert {name for name, sources in policy.items() if sources == "'self'"} == {"script-src", "style-src", "connect-src", "form-action"}


# What Back shows


def test_no_browser_keeps_the_page(home, client):
    """Its form would offer the old price on Back."""
    assert "no-store" in client.get("/").headers["Cache-Control"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_browser_keeps_a_page_around_a_response(home, read, variant):
    """Back shows what a browser kept as it was, without a question, whatever `no-cache` says."""
    assert read(variant, headers=BROWSER).headers["Cache-Control"] == "no-cache, no-store"
    assert read(f"{variant}/{home.pk}", headers=BROWSER).headers["Cache-Control"] == "no-cache, no-store"


# What it changes


def test_a_changed_price_is_in_the_very_next_read(on_my_machine, home, change, warm, read):
    warm()

    assert change(home, price="395000").status_code == 204

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=stale; stored", "395000.00")


def test_a_changed_name_of_an_office_is_in_the_very_next_read(on_my_machine, home, change, warm, read):
    warm()

    assert change(home.agent.office, name="Harbor & Oak").status_code == 204

    response = read("cached")
    assert (response.came_from, response.rows[0]["agent"]["office"]["name"]) == ("fwd=stale; stored", "Harbor & Oak")


@pytest.mark.parametrize(
    ("what", "value", "stale"),
    [
        ("price", {"price": "395000"}, ["The first page", "All of its office", "This listing"]),
        ("name", {"name": "Harbor & Oak"}, ["The first page", "All of its office", "This listing", "Another of its office"]),
    ],
)
def test_what_does_not_show_the_old_value_stays_warm(on_my_machine, two_offices, client, change, warm, read, what, value, stale):
    [home, *_] = two_offices
    entries = client.get("/").context["entries"]
    for _, address in entries:
        warm(address)

    change(home if what == "price" else home.agent.office, **value)

    assert {shows for shows, address in entries if read(address).came_from == "fwd=stale; stored"} == set(stale)


def test_a_change_writes_no_column_that_somebody_else_changed_meanwhile(on_my_machine, home, change, meanwhile):
    with meanwhile(lambda: Property.objects.filter(pk=home.pk).update(title="Sold at once")):
        change(home, price="395000")

    home.refresh_from_db()
    assert (home.title, home.price) == ("Sold at once", 395_000)


def test_a_change_says_when_it_was(on_my_machine, home, change):
    before = Property.objects.get(pk=home.pk).updated_at

    change(home, price="395000")

    assert Property.objects.get(pk=home.pk).updated_at > before


def test_without_a_script_a_change_leads_back_to_the_page_which_says_so_once(on_my_machine, home, client, change):
    response = change(home, headers=BROWSER, price="395000")

    assert (response.status_code, response.headers["Location"]) == (302, "/")
    page = client.get("/").text
    assert "Saved." in page
    assert 'value="395000.00"' in page
    assert "Saved." not in client.get("/").text


# What it refuses


WRONG = [
    ({"price": "-1"}, "greater than or equal to 0"),
    ({"price": "1e12"}, "no more than"),
    ({"price": "abc"}, "Enter a number."),
    ({}, "This field is required."),
]


@pytest.mark.parametrize(("value", "wrong"), WRONG)
def test_what_is_no_price_is_refused_with_what_is_wrong_and_nothing_goes_stale(on_my_machine, home, change, warm, read, value, wrong):
    body = warm()

    response = change(home, **value)

    assert response.status_code == 400
    assert wrong in response.json()["price"][0]
    assert (read("cached").came_from, read("cached").body) == ("hit", body)


@pytest.mark.parametrize(("value", "wrong"), WRONG)
def test_without_a_script_the_page_says_what_is_wrong_beside_what_was_typed(on_my_machine, home, change, value, wrong):
    response = change(home, headers=BROWSER, **value)
    [field] = [attributes for _, attributes in Elements(response.text).found if attributes.get("name") == "price"]

    assert response.status_code == 400
    assert wrong in response.text
    assert field["aria-invalid"] == "true"
    assert field.get("value") == value.get("price")


def test_an_office_without_a_name_is_refused(on_my_machine, home, change):
    assert change(home.agent.office, name=" ").json() == {"name": ["This field is required."]}


@pytest.mark.parametrize("headers", [PROGRAM, BROWSER], ids=["script", "no script"])
def test_what_the_database_refuses_is_said(on_my_machine, home, change, headers):
    """Nobody is left to believe that it was saved."""

    def refuse(execute, sql, *rest):
        if sql.startswith("UPDATE"):
            raise OperationalError("the disk is full")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse):
        response = change(home, headers=headers, price="395000")

    assert response.status_code == 503
    assert "The database says: the disk is full" in response.text


def test_what_is_not_there_cannot_be_changed(on_my_machine, home, change):
    home.pk += 10**6

    assert change(home, price="1").status_code == 404


def test_a_change_is_not_a_link(on_my_machine, home, client):
    assert client.get(f"/change/property/{home.pk}/").status_code == 405


def test_another_site_cannot_change_anything(on_my_machine, home, read):
    """Not even on a machine where anybody may: a page elsewhere can send a form here, but has no token."""
    stranger = Client(enforce_csrf_checks=True)

    assert stranger.post(f"/change/property/{home.pk}/", {"price": "1"}).status_code == 403
    assert read("naive").rows[0]["price"] == "300000.00"

    fields = [attributes for tag, attributes in Elements(stranger.get("/").text).found if tag == "input"]
    token = next(field["value"] for field in fields if field["name"] == "csrfmiddlewaretoken")
    assert stranger.post(f"/change/property/{home.pk}/", {"price": "1", "csrfmiddlewaretoken": token}).status_code == 302


# Who may


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
    ids=["nobody in particular", "staff without permission", "no staff", "staff for properties", "staff for offices"],
)
def test_only_staff_may_change_and_what_they_may_in_the_admin(home, client, change, who, what):
    if who:
        client.force_login(user(**who))

    page = client.get("/").text
    assert re.findall(r'action="/change/(\w+)/', page) == what
    assert ('href="/admin/login/?next=/"' in page) == (not what)
    assert [
        row for row, response in (("property", change(home, price="1")), ("office", change(home.agent.office, name="Mine"))) if response.status_code == 204
    ] == what


def test_who_may_not_is_refused_with_the_way_to_log_in(home, change, read):
    response = change(home, headers=BROWSER, price="1")

    assert response.status_code == 403
    assert 'href="/admin/login/?next=/"' in response.text
    assert read("naive").rows[0]["price"] == "300000.00"


@pytest.mark.parametrize(("debug", "embedded", "status"), [(True, True, 204), (True, False, 403), (False, True, 403)])
def test_anybody_may_where_it_is_debugged_on_the_embedded_stack_alone(home, change, settings, debug, embedded, status):
    """That is one person's own machine: it answers at loopback, and holds invented data."""
    settings.DEBUG, settings.EMBEDDED = debug, embedded

    assert change(home, price="1").status_code == status


# Where the Debug Toolbar is


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
def test_the_toolbar_stands_on_pages_and_costs_no_program_its_time(settings, path, accept, shown):
    """Counting 61 queries with a stack trace for each takes longer than asking them. `/` has a policy that it does not keep."""
    request = RequestFactory().get(path, headers={"Accept": accept})

    assert not shows_toolbar(request)
    settings.DEBUG = True
    assert shows_toolbar(request) == shown
    request.META["REMOTE_ADDR"] = "192.0.2.1"
    assert not shows_toolbar(request)
