"""In a real browser. A page never shows data that is older than the last saved change: after a refresh, after Back and in another tab.

The service is that of `make run`, and the browser is Debian's Chromium. `make test-browser` saves screenshots in `screenshots/`.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from django.urls import URLPattern, reverse

from housing.home import SPEC, SPEC_TOOLS
from housing.urls import urlpatterns
from tests import ROOT, stacks
from tests.fixtures.processes import Served, any_free_port, new_folder_in, served
from tests.fixtures.responses import VARIANTS
from tests.fixtures.visitors import visitors

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.only("embedded")]

PICTURES = ROOT / "screenshots"

TIMEOUT = 600
"""Seconds after which the service is killed and the rest of the chapter fails. A run takes less than a fifth of that."""

WIDE = {"width": 1200, "height": 900}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = new_folder_in(tmp_path_factory.mktemp("browser"))
    for promises in (SPEC, SPEC_TOOLS):
        shutil.copy(promises, folder)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Served]:
    """The service of `make run`, with its default number of listings."""
    with served(folder, any_free_port(), properties=1000, timeout=TIMEOUT) as service:
        reader = threading.Thread(target=list, args=[service.process.stdout])  # otherwise the service blocks when its output buffer is full
        reader.start()
        yield service
        service.process.terminate()
        reader.join()


@pytest.fixture(autouse=True)
def a_cold_cache(service: Served, folder: Path) -> None:
    """Delete every entry. The journal stays."""
    [url] = re.findall("^REDIS_URL=fake(.+)", (folder / ".env").read_text(), re.MULTILINE)
    with redis.Redis.from_url(url) as client:
        client.delete("an entry", *(key for key in client.scan_iter("housing:*") if not key.endswith(b":journal")))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Chromium with its back/forward cache, which Playwright's default arguments disable."""
    from playwright.sync_api import sync_playwright  # the import takes a quarter of a second, which other runs save

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=stacks.chromium(), ignore_default_args=["--disable-back-forward-cache"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium: Browser, service: Served) -> Iterator[Callable[..., BrowserContext]]:
    """Open a browser context without cookies or cache: `visitor(color_scheme="dark").new_page()`."""
    with visitors(chromium, base_url=service.url, viewport=WIDE, reduced_motion="reduce") as visitor:
        yield visitor


@pytest.fixture
def tab(visitor: Callable[..., BrowserContext]) -> Page:
    """A tab. `tab.context.new_page()` opens another one in the same browser."""
    return visitor().new_page()


@pytest.fixture(scope="module")
def admin(service: Served) -> tuple[str, str]:
    """The name and the password in the greeting of `make run`."""
    [password] = re.findall(r"log in as admin / (\S+) \(", service.greeting)
    return "admin", password


@pytest.fixture(scope="module")
def pages(chromium: Browser, service: Served) -> list[str]:
    """The path of each page: of the routes that send HTML to a browser, and of the admin."""
    [newest, *_] = service.get(VARIANTS["naive"])[1]["results"]
    routes = [route for route in urlpatterns if isinstance(route, URLPattern) and route.name]  # the one without a name answers with 404
    paths = [reverse(str(route.name), kwargs=dict.fromkeys(route.pattern.converters, newest["id"])) for route in routes]
    with chromium.new_context(base_url=service.url) as context:
        responses = [context.request.get(path, headers={"Accept": "text/html"}) for path in paths]
        found = [path for path, response in zip(paths, responses, strict=True) if response.ok and "text/html" in response.headers["content-type"]]
    return [*found, reverse("admin:index"), reverse("admin:freshness_cache") + f"?url={VARIANTS['cached']}"]


@pytest.fixture
def newest(service: Served) -> Any:
    """The newest listing, read without the cache."""
    return service.get(VARIANTS["naive"])[1]["results"][0]


@pytest.fixture
def change_in_the_admin(admin: tuple[str, str]) -> Callable[..., None]:
    """Log in to the admin in this tab, and change one field of one row."""

    def change_in_the_admin(tab: Page, model: str, row: Any, field: str, value: str) -> None:
        log_in(tab, admin, f"/admin/housing/{model}/{row['id']}/change/")
        tab.locator(f"#id_{field}").fill(value)
        picture(tab, f"admin-{model}")
        tab.get_by_role("button", name="Save", exact=True).click()
        expect(tab.locator(".messagelist")).to_contain_text("was changed successfully")

    return change_in_the_admin


def log_in(tab: Page, admin: tuple[str, str], path: str) -> None:
    """Open a page of the admin, which asks for the name and the password first."""
    tab.goto(path)
    for label, text in zip(("Username:", "Password:"), admin, strict=True):
        tab.get_by_label(label).fill(text)
    tab.get_by_role("button", name="Log in").click()


def expect(what: Any) -> Any:
    """Playwright's `expect`, with a longer timeout."""
    from playwright.sync_api import expect

    expect.set_options(timeout=15_000)
    return expect(what)


def picture(tab: Page, name: str, **options: Any) -> None:
    tab.screenshot(path=PICTURES / f"{name}.png", **options)


def show(tab: Page, page: str) -> None:
    """Open a page, and wait for what its scripts add: the toolbar, and the whole content of the docs."""
    tab.goto(page, wait_until="networkidle")
    expect(tab.get_by_role("main")).to_be_visible()


def sql(tab: Page) -> Locator:
    """The toolbar's summary of the SQL."""
    return tab.locator("#djdt-SQLPanel small")


def body(tab: Page) -> Locator:
    """The JSON in a page of the browsable API."""
    return tab.locator(".response-info pre")


# The Debug Toolbar


@pytest.mark.parametrize(("variant", "counts"), [("naive", [61, 61]), ("optimized", [1, 1]), ("cached", [1, 0])])
def test_the_toolbar_shows_the_promised_query_counts(tab: Page, variant: str, counts: list[int]) -> None:
    """Developers check the promised counts in the toolbar, so it must agree with the specs."""
    for load, count in enumerate(counts, 1):
        tab.goto(VARIANTS[variant])
        expect(sql(tab)).to_have_text(re.compile(f"^{count} (query|queries) in "))
        picture(tab, f"toolbar-{variant}-{load}")


def test_the_toolbar_is_open_on_the_pages_of_the_api_and_collapsed_on_all_others(tab: Page, pages: list[str]) -> None:
    """The number of queries is the point of the API's pages. Elsewhere the toolbar only takes room, and `/` has none."""
    api = {page for page in pages if page.startswith("/api/properties/")}
    assert len(api) == 2 * len(VARIANTS)
    for page in [*pages, pages[0]]:
        tab.goto(page)
        expect(tab.locator("#djDebugToolbar:visible")).to_have_count(int(page in api))
        expect(tab.locator("#djDebugToolbarHandle:visible")).to_have_count(int(page not in api and page != "/"))


def test_a_collapsed_toolbar_stays_collapsed_on_the_other_pages_of_the_api(tab: Page) -> None:
    """A visitor who needs the room hides it once, not on every page."""
    tab.goto(VARIANTS["naive"])
    tab.get_by_role("link", name="Hide").click()
    for page in (VARIANTS["cached"], "/spec/", VARIANTS["optimized"]):
        tab.goto(page)
        expect(tab.locator("#djDebugToolbarHandle")).to_be_visible()
    tab.locator("#djShowToolBarButton").click()
    tab.goto(VARIANTS["cached"])
    expect(tab.locator("#djDebugToolbar")).to_be_visible()


UNDER_THE_TOOLBAR = """() => {
    const toolbar = document.getElementById("djDebugRoot");
    const controls = [...document.querySelectorAll("a, button, input, select, summary")].filter(control => control.checkVisibility({visibilityProperty: true}));
    const covered = controls.filter(control => {
        control.scrollIntoView({block: "nearest"});
        const {left, right, top, bottom} = control.getBoundingClientRect();
        const points = [[left + 1, top + 1], [right - 1, bottom - 1], [(left + right) / 2, (top + bottom) / 2]];
        return points.some(([x, y]) => document.elementFromPoint(x, y) === toolbar);
    });
    return [controls.length, covered.map(control => control.outerHTML)];
}"""
"""Counts the visible controls, scrolls each into view as little as possible, and returns those that the toolbar or its handle covers."""


def test_the_toolbar_covers_no_control_of_any_page(tab: Page, admin: tuple[str, str], pages: list[str]) -> None:
    """Neither open nor collapsed, neither on a wide screen nor on a phone. A list of the admin is longer than a screen, unlike its first page."""
    log_in(tab, admin, "/admin/")
    for page in [*pages, reverse("admin:housing_property_changelist")]:
        show(tab, page)
        for look, switch in product(("light", "phone"), ("hide_toolbar", "show_toolbar")):
            tab.set_viewport_size(LOOKS[look]["viewport"])
            tab.evaluate(f"() => {{ globalThis.djdt?.{switch}(); return new Promise(requestAnimationFrame); }}")
            controls, covered = tab.evaluate(UNDER_THE_TOOLBAR)
            assert controls, page
            assert not covered, f"{page}, {look}, {switch}: {covered}"


# The browsable API


def test_the_browsable_api_leads_to_pages_rows_variants_docs_and_admin(tab: Page, newest: Any) -> None:
    """Developers explore the API by clicking, and only a browser shows whether the links and the filters work together."""
    tab.goto(VARIANTS["cached"])
    expect(body(tab)).to_contain_text(newest["title"])
    tab.get_by_role("link", name="Next page").click()
    expect(body(tab)).not_to_contain_text(newest["title"])
    tab.get_by_role("link", name="Previous page").click()
    expect(body(tab)).to_contain_text(newest["title"])

    tab.get_by_text("Filters", exact=True).click()
    tab.get_by_label("City").fill(newest["location"]["city"])
    tab.get_by_label("Page size").fill("1")
    tab.get_by_role("button", name="Submit").click()
    for variant in reversed(VARIANTS):
        tab.get_by_role("link", name=variant.title(), exact=True).click()
        expect(tab.locator(".request-info")).to_contain_text(VARIANTS[variant])
        expect(body(tab)).to_contain_text(re.compile(rf'"city": "{newest["location"]["city"]}"'))

    tab.get_by_text("Properties on this page").click()
    tab.get_by_role("link", name=newest["title"]).click()
    expect(body(tab)).to_contain_text('"images": [')
    for link, there in (("Docs", "/api/docs/"), ("Admin", "/admin/login/?next=/admin/"), ("Housing", "/")):
        tab.get_by_role("navigation").or_(tab.get_by_role("banner")).get_by_role("link", name=link, exact=True).first.click()
        expect(tab).to_have_url(re.compile(re.escape(there) + "$"))
        tab.go_back(wait_until="commit")  # the next step waits for its link; the event "load" may have come before anyone waits for it


# Every page

END_TRANSITIONS = """async () => {
    const running = () => document.getAnimations().filter(each => each instanceof CSSTransition);
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
    while (running().length) running().forEach(each => each.finish());
}"""
"""Gives everything its last colour. A script learns of a colour scheme in the next frame, and an inherited colour follows after a transition."""


def test_every_page_is_accessible(tab: Page, admin: tuple[str, str], pages: list[str], complaints: list[str]) -> None:
    """In light mode, in dark mode and at a phone's width, axe-core finds no violation, the console is empty, and nothing overflows."""
    from axe_playwright_python.sync_playwright import Axe

    log_in(heard(tab, complaints), admin, "/admin/")
    for page in pages:
        show(tab, page)
        for name, look in LOOKS.items():
            tab.emulate_media(color_scheme=look["color_scheme"])
            tab.set_viewport_size(look["viewport"])
            tab.evaluate(END_TRANSITIONS)
            picture(tab, f"{page.strip('/').replace('/', '-') or 'home'}-{name}")
            tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            found = Axe().run(tab)
            assert not found.violations_count, f"{page}, {name}: {found.generate_report()}"
            assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), f"{page}, {name}"
            tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = false)")
    assert complaints == []


# The walkthrough: warm, change, refresh


@pytest.mark.parametrize(("model", "field"), [("property", "price"), ("agent", "name")])
def test_a_change_in_the_admin_is_on_the_screen_after_a_refresh(
    tab: Page, newest: Any, change_in_the_admin: Callable[..., None], model: str, field: str
) -> None:
    """The walkthrough of the blog posts. The first refresh after a change costs one query, and every other refresh costs none."""
    row = newest if model == "property" else newest["agent"]
    new = another(row[field])
    tab.goto(VARIANTS["cached"])
    tab.reload()
    expect(sql(tab)).to_have_text(re.compile("^0 queries in "))
    expect(body(tab)).to_contain_text(shown(field, row[field]))
    change_in_the_admin(tab.context.new_page(), model, row, field, new)
    tab.reload()
    expect(sql(tab)).to_have_text(re.compile("^1 query in "))
    expect(body(tab)).to_contain_text(shown(field, new))
    tab.reload()
    expect(sql(tab)).to_have_text(re.compile("^0 queries in "))
    expect(body(tab)).to_contain_text(shown(field, new))
    picture(tab, f"walk-{model}")


def another(value: str) -> str:
    """Return a price or a name that no row has yet."""
    return f"{float(value) + 1000:.2f}" if value[0].isdigit() else f"{value} II"


def shown(field: str, value: str) -> str:
    return f'"{field}": "{value}"'


@pytest.mark.parametrize("variant", VARIANTS)
def test_back_shows_the_new_price(tab: Page, newest: Any, change_in_the_admin: Callable[..., None], variant: str) -> None:
    """Browsers keep whole pages in memory and show them on Back without a request. They must not keep these."""
    new = another(newest["price"])
    tab.goto(VARIANTS[variant])
    expect(body(tab)).to_contain_text(shown("price", newest["price"]))
    tab.goto("/api/docs/")
    change_in_the_admin(tab.context.new_page(), "property", newest, "price", new)

    tab.go_back(wait_until="commit")

    expect(body(tab)).to_contain_text(shown("price", new))


def test_back_to_the_demo_page_shows_the_new_price_in_the_form(tab: Page, newest: Any, change_in_the_admin: Callable[..., None]) -> None:
    """Browsers may restore form fields on Back. The visitor could then save the old price over the new one."""
    new = another(newest["price"])
    tab.goto("/")
    expect(tab.get_by_label("Price", exact=True)).to_have_value(newest["price"])
    tab.goto("/api/docs/")
    change_in_the_admin(tab.context.new_page(), "property", newest, "price", new)

    tab.go_back(wait_until="commit")

    expect(tab.get_by_label("Price", exact=True)).to_have_value(new)


def test_no_other_tab_shows_the_old_price_again(tab: Page, newest: Any, change_in_the_admin: Callable[..., None]) -> None:
    """Each tab has its own page, and all three share the browser's cache."""
    new = another(newest["price"])
    second, third = tab.context.new_page(), tab.context.new_page()
    for each in (tab, second):
        each.goto(VARIANTS["cached"])
        expect(body(each)).to_contain_text(shown("price", newest["price"]))

    change_in_the_admin(tab, "property", newest, "price", new)

    second.reload()
    third.goto(VARIANTS["cached"])
    tab.goto(VARIANTS["cached"])
    for each in (tab, second, third):
        expect(body(each)).to_contain_text(shown("price", new))


# The cache's page in the admin


def test_an_entry_is_found_and_invalidated_in_the_admin(tab: Page, admin: tuple[str, str], service: Served) -> None:
    """Operators do this during an incident, and only a browser shows whether the form and its messages work."""
    service.get(VARIANTS["cached"])
    log_in(tab, admin, "/admin/")
    tab.locator("#content").get_by_role("link", name="Cache", exact=True).click()
    tab.get_by_label("URL or path of a cached response").fill(VARIANTS["cached"])
    tab.get_by_role("button", name="Find").click()
    expect(tab.get_by_text("fresh: a read is a hit")).to_be_visible()

    tab.get_by_role("button", name="Invalidate").click()
    expect(tab.locator(".messagelist")).to_contain_text("Invalidated. The next read uses the database.")
    expect(tab.get_by_text("This response is not cached.")).to_be_visible()


# The demo page


@pytest.fixture
def complaints() -> list[str]:
    """Errors and warnings in the console of the tabs passed to `heard`."""
    return []


def heard(tab: Page, complaints: list[str]) -> Page:
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    return tab


def card(tab: Page, variant: str) -> Locator:
    return tab.locator(f'[data-list="{VARIANTS[variant]}"]')


def entry(tab: Page, name: str) -> Locator:
    return tab.get_by_role("row").filter(has=tab.get_by_role("rowheader", name=name, exact=True))


def was_read(tab: Page, *, times: int = 1) -> None:
    """Wait until each list was read this often. A cached list that was not cached is read once more."""
    for variant in VARIANTS:
        most = times - 1 + (variant == "cached")
        expect(card(tab, variant).locator("[data-history]")).to_have_text(re.compile(rf"^Queries so far: \d+(, \d+){{{times - 1},{most}}}$"))


def change_on_the_page(tab: Page, label: str, value: str) -> None:
    tab.get_by_label(label, exact=True).fill(value)
    tab.get_by_label(label, exact=True).press("Enter")
    expect(tab.get_by_role("status").filter(has_text="The next read shows")).to_have_count(1)


@pytest.mark.parametrize("look", LOOKS)
def test_the_demo_page_is_accessible(visitor: Callable[..., BrowserContext], newest: Any, complaints: list[str], look: str) -> None:
    """In light mode, in dark mode and at a phone's width, axe-core finds no violation, the console is empty, and nothing overflows."""
    from axe_playwright_python.sync_playwright import Axe

    tab = heard(visitor(**LOOKS[look]).new_page(), complaints)
    tab.goto("/")
    was_read(tab)
    found = Axe().run(tab)
    assert not found.violations_count, found.generate_report()

    tab.get_by_role("button", name="Read again").click()
    was_read(tab, times=2)
    change_on_the_page(tab, "Price", another(newest["price"]))

    picture(tab, look, full_page=True)
    found = Axe().run(tab)
    assert not found.violations_count, found.generate_report()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


def test_the_demo_page_states_the_promise_in_one_line(tab: Page) -> None:
    """It is the first thing to read on the page, and a visitor should take it in at a glance."""
    tab.goto("/")
    promise = tab.get_by_text("every read after a saved change shows it")

    assert promise.evaluate("line => line.offsetHeight / parseFloat(getComputedStyle(line).lineHeight)") == pytest.approx(1, abs=0.1)


def test_the_demo_page_sends_no_if_none_match(tab: Page) -> None:
    """A 304 is cheaper, so it would be no fair comparison with the other two lists."""
    requests = []
    tab.on("request", lambda request: requests.append(request) if request.url.endswith(VARIANTS["cached"]) else None)
    tab.goto("/")
    tab.get_by_role("button", name="Read again").click()
    was_read(tab, times=2)

    assert ["if-none-match" in request.all_headers() for request in requests] == [False, False, False]


def test_the_demo_page_shows_the_cost_of_each_list_with_bars_to_scale(tab: Page) -> None:
    """Visitors compare the lists by the length of the bars, so a wrong scale would mislead them."""
    tab.goto("/")
    was_read(tab)
    for variant, count in (("naive", 61), ("optimized", 1), ("cached", 0)):
        expect(card(tab, variant).locator("[data-sql]")).to_have_text(re.compile(f"^{count}\\s"))
        assert length(card(tab, variant), "queries") == pytest.approx(count / 61, abs=0.005)
    assert max(length(card(tab, variant), "time") for variant in VARIANTS) == pytest.approx(1, abs=0.005)
    expect(card(tab, "cached").locator("[data-history]")).to_have_text("Queries so far: 1, 0")
    expect(card(tab, "cached").locator("[data-status]")).to_have_text("hit")

    tab.get_by_role("button", name="Read again").click()
    was_read(tab, times=2)

    expect(card(tab, "cached").locator("[data-sql]")).to_have_text(re.compile(r"^0\s"))
    expect(card(tab, "cached").locator("[data-status]")).to_have_text("hit")
    assert length(card(tab, "cached"), "queries") == 0
    expect(tab.get_by_role("status").filter(has_text="the same bytes in all variants")).to_have_count(1)


def length(card: Locator, what: str) -> float:
    """Return the drawn length of a bar, as a part of the whole."""
    measure = "bar => parseFloat(getComputedStyle(bar, '::before').width) / bar.clientWidth"
    return float(card.locator(f"[data-bar={what}]").evaluate(measure))


@pytest.mark.parametrize(
    ("label", "stale", "warm"),
    [
        (
            "Price",
            ["The first page", "Listings of its office", "This listing"],
            ["Listings of another office", "Another listing of its office", "A listing of another office"],
        ),
        (
            "Office name",
            ["The first page", "Listings of its office", "This listing", "Another listing of its office"],
            ["Listings of another office", "A listing of another office"],
        ),
    ],
)
def test_the_demo_page_shows_the_new_value_and_the_stale_responses(tab: Page, label: str, stale: list[str], warm: list[str]) -> None:
    """The visitor sees that a change invalidates each response that shows it, and no other."""
    tab.goto("/")
    new = another(tab.get_by_label(label, exact=True).input_value())

    change_on_the_page(tab, label, new)

    expect(tab.locator("#result")).to_have_text(f"The next read shows {new}. {len(stale)} became stale, {len(warm)} stayed warm.")
    for name in stale + warm:
        expect(entry(tab, name)).to_contain_text("warm")
        expect(entry(tab, name)).to_contain_text("became stale" if name in stale else re.compile(r"stayed warm\s+0\squeries"))
    expect(card(tab, "cached").locator("[data-status]")).to_have_text("fwd=stale; stored")


def test_the_demo_page_works_with_the_keyboard_alone(tab: Page, newest: Any) -> None:
    """The focused element is always visible, and a result does not move the focus."""
    tab.goto("/")
    new, price = another(newest["price"]), tab.get_by_label("Price", exact=True)
    for _ in range(tab.locator("a, button, input:not([type=hidden])").count()):
        if price.evaluate("field => field === document.activeElement"):
            break
        tab.keyboard.press("Tab")
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("ControlOrMeta+a")
    tab.keyboard.type(new)
    tab.keyboard.press("Enter")

    expect(tab.locator("#result")).to_contain_text(f"The next read shows {new}.")
    expect(price).to_be_focused()


def test_an_error_is_shown_at_its_field(tab: Page, newest: Any, complaints: list[str]) -> None:
    """A screen reader announces the error, and the focus moves to the field."""
    heard(tab, complaints).goto("/")
    price = tab.get_by_label("Price", exact=True)
    price.fill("-1")
    tab.get_by_role("button", name="Change").first.click()

    expect(tab.get_by_role("alert").filter(has_text="greater than or equal to 0")).to_have_count(1)
    expect(price).to_be_focused()
    expect(price).to_have_attribute("aria-invalid", "true")
    expect(price).to_have_accessible_description("Ensure this value is greater than or equal to 0.")
    expect(tab.locator("#result")).to_be_empty()
    assert complaints == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]

    change_on_the_page(tab, "Price", newest["price"])
    expect(price).to_have_attribute("aria-invalid", "false")
    expect(tab.get_by_role("alert").filter(has_text="greater")).to_have_count(0)


def test_a_change_after_logging_out_is_refused_on_the_page(tab: Page, newest: Any) -> None:
    """After logging out in another tab, the token of the form is invalid."""
    tab.goto("/")
    tab.context.clear_cookies()
    tab.get_by_label("Price", exact=True).fill(another(newest["price"]))
    tab.get_by_role("button", name="Change").first.click()

    expect(tab.get_by_role("alert").filter(has_text="Reload the page and log in.")).to_have_count(1)
    expect(tab.locator("#result")).to_be_empty()


def test_an_unreachable_service_is_reported_on_the_page(tab: Page) -> None:
    """Otherwise the old numbers would look like the result of the new read."""
    tab.goto("/")
    was_read(tab)
    tab.context.set_offline(True)
    tab.get_by_role("button", name="Read again").click()

    expect(tab.get_by_role("status").filter(has_text="Failed")).to_have_count(1)


def test_the_demo_page_works_without_scripts(visitor: Callable[..., BrowserContext], newest: Any) -> None:
    """Scripts may be blocked or fail to load, and a change must still be possible."""
    new, tab = another(newest["price"]), visitor(java_script_enabled=False).new_page()
    tab.goto("/")
    expect(tab.get_by_role("button", name="Read again")).to_be_hidden()

    tab.get_by_label("Price", exact=True).fill(new)
    tab.get_by_role("button", name="Change").first.click()

    expect(tab.get_by_role("status").filter(has_text="Saved.")).to_be_visible()
    expect(tab.get_by_label("Price", exact=True)).to_have_value(new)


@pytest.mark.parametrize(("wanted", "seconds"), [("reduce", "0s"), ("no-preference", "0.4s")])
def test_animations_respect_prefers_reduced_motion(visitor: Callable[..., BrowserContext], wanted: str, seconds: str) -> None:
    """Movement makes some people dizzy, so they turn it off in their system settings."""
    tab = visitor(reduced_motion=wanted).new_page()
    tab.goto("/")

    assert tab.locator(".bar").first.evaluate("bar => getComputedStyle(bar, '::before').transitionDuration") == seconds
