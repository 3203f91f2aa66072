"""In a real browser. What a person sees is never older than what was saved: after a refresh, after Back, in another tab.

The service is what `make run` serves, and the browser Debian's Chromium. `make test-browser` leaves pictures in `screenshots/`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from conftest import ROOT, VARIANTS
from tests import stacks
from tests.test_setup import Served, any_free_port, new_folder_in, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.only("embedded")]

PICTURES = ROOT / "screenshots"

TIMEOUT = 600
"""Seconds after which the service is killed, and what is left of the chapter fails. It takes less than a fifth of it."""

WIDE = {"width": 1200, "height": 900}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_folder_in(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Served]:
    """`make run`, with as many listings as it makes by itself."""
    with served(folder, any_free_port(), properties=1000, timeout=TIMEOUT) as service:
        reader = threading.Thread(target=list, args=[service.process.stdout])  # else it stops when nobody reads what it says
        reader.start()
        yield service
        service.process.terminate()
        reader.join()


@pytest.fixture(autouse=True)
def a_cold_cache(service: Served, folder: Path) -> None:
    """Nothing is remembered; the journal of what was written stays."""
    [url] = re.findall("^REDIS_URL=fake(.+)", (folder / ".env").read_text(), re.MULTILINE)
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter("housing:*"):
            if not key.endswith(b":journal"):
                client.delete(key)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser as people have it: it keeps pages for Back, which Playwright's own arguments switch off."""
    from playwright.sync_api import sync_playwright  # a quarter of a second, for which a run without a browser need not wait

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=stacks.chromium(), ignore_default_args=["--disable-back-forward-cache"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium: Browser, service: Served) -> Iterator[Callable[..., BrowserContext]]:
    """Somebody new, with a browser that knows nothing: `visitor(color_scheme="dark").new_page()`."""
    contexts = []

    def visitor(**options: Any) -> BrowserContext:
        contexts.append(chromium.new_context(base_url=service.url, **{"viewport": WIDE, "reduced_motion": "reduce"} | options))
        return contexts[-1]

    yield visitor
    for context in contexts:
        context.close()


@pytest.fixture
def tab(visitor: Callable[..., BrowserContext]) -> Page:
    """A tab of somebody's browser; `tab.context.new_page()` is another."""
    return visitor().new_page()


@pytest.fixture(scope="module")
def admin(service: Served) -> tuple[str, str]:
    """A name and a password, as the greeting has them."""
    [password] = re.findall(r"as admin, password (\S+),", service.greeting)
    return "admin", password


@pytest.fixture
def newest(service: Served) -> Any:
    """The newest listing, read past the cache."""
    return service.get(VARIANTS["naive"])[1]["results"][0]


@pytest.fixture
def change_in_the_admin(admin: tuple[str, str]) -> Callable[..., None]:
    """Log in and change one field of one row as staff do, in this tab."""

    def change_in_the_admin(tab: Page, model: str, row: Any, field: str, value: str) -> None:
        name, password = admin
        tab.goto(f"/admin/housing/{model}/{row['id']}/change/")
        tab.get_by_label("Username:").fill(name)
        tab.get_by_label("Password:").fill(password)
        tab.get_by_role("button", name="Log in").click()
        tab.locator(f"#id_{field}").fill(value)
        picture(tab, f"admin-{model}")
        tab.get_by_role("button", name="Save", exact=True).click()
        expect(tab.locator(".messagelist")).to_contain_text("was changed successfully")

    return change_in_the_admin


def expect(what: Any) -> Any:
    """Playwright's, which waits, but not for ever."""
    from playwright.sync_api import expect

    expect.set_options(timeout=15_000)
    return expect(what)


def picture(tab: Page, name: str, **options: Any) -> None:
    tab.screenshot(path=PICTURES / f"{name}.png", **options)


def sql(tab: Page) -> Locator:
    """What the toolbar says of the SQL of the page."""
    return tab.locator("#djdt-SQLPanel small")


def body(tab: Page) -> Locator:
    """The answer that the page is around."""
    return tab.locator(".response-info pre")


# What the toolbar counts


@pytest.mark.parametrize(("variant", "counts"), [("naive", [61, 61]), ("optimized", [1, 1]), ("cached", [1, 0])])
def test_the_toolbar_counts_on_the_page_what_is_promised_of_the_answer(tab: Page, variant: str, counts: list[int]) -> None:
    for load, count in enumerate(counts, 1):
        tab.goto(VARIANTS[variant])

        expect(sql(tab)).to_have_text(re.compile(f"^{count} (query|queries) in "))
        picture(tab, f"toolbar-{variant}-{load}")


# The walk: prime, change, refresh


@pytest.mark.parametrize(("model", "field"), [("property", "price"), ("agent", "name")])
def test_what_is_saved_in_the_admin_is_on_the_screen_at_the_next_refresh(
    tab: Page, newest: Any, change_in_the_admin: Callable[..., None], model: str, field: str
) -> None:
    """The series' whole walk. A refresh costs one query after a change, and none before it and ever after."""
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
    """A price or a name that nothing has yet."""
    return f"{float(value) + 1000:.2f}" if value[0].isdigit() else f"{value} II"


def shown(field: str, value: str) -> str:
    return f'"{field}": "{value}"'


@pytest.mark.parametrize("variant", VARIANTS)
def test_back_shows_the_new_price(tab: Page, newest: Any, change_in_the_admin: Callable[..., None], variant: str) -> None:
    """A browser keeps whole pages for Back and shows them without a question. Ours it must not keep."""
    new = another(newest["price"])
    tab.goto(VARIANTS[variant])
    expect(body(tab)).to_contain_text(shown("price", newest["price"]))
    tab.goto("/api/docs/")
    change_in_the_admin(tab.context.new_page(), "property", newest, "price", new)

    tab.go_back(wait_until="commit")

    expect(body(tab)).to_contain_text(shown("price", new))


def test_back_to_the_first_page_offers_the_new_price(tab: Page, newest: Any, change_in_the_admin: Callable[..., None]) -> None:
    new = another(newest["price"])
    tab.goto("/")
    expect(tab.get_by_label("Price", exact=True)).to_have_value(newest["price"])
    tab.goto("/api/docs/")
    change_in_the_admin(tab.context.new_page(), "property", newest, "price", new)

    tab.go_back(wait_until="commit")

    expect(tab.get_by_label("Price", exact=True)).to_have_value(new)


def test_no_second_tab_shows_the_old_price_again(tab: Page, newest: Any, change_in_the_admin: Callable[..., None]) -> None:
    """Each has asked before and keeps what it was told; all three share what the browser remembers."""
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


# The page to look at


@pytest.fixture
def complaints() -> list[str]:
    """What a browser wrote into its console about the pages that `heard` was told of."""
    return []


def heard(tab: Page, complaints: list[str]) -> Page:
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    return tab


def card(tab: Page, variant: str) -> Locator:
    return tab.locator(f'[data-list="{VARIANTS[variant]}"]')


def entry(tab: Page, name: str) -> Locator:
    return tab.get_by_role("row").filter(has=tab.get_by_role("rowheader", name=name, exact=True))


def asked(tab: Page, *, times: int = 1) -> None:
    """Wait until each list has been asked so often."""
    for variant in VARIANTS:
        expect(card(tab, variant).locator("[data-asked]")).to_have_text(re.compile(rf"^Queries so far: \d+(, \d+){{{times - 1}}}$"))


def change_on_the_page(tab: Page, label: str, value: str) -> None:
    tab.get_by_label(label, exact=True).fill(value)
    tab.get_by_label(label, exact=True).press("Enter")
    expect(tab.get_by_role("status").filter(has_text="The very next read says")).to_have_count(1)


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_is_for_everybody(visitor: Callable[..., BrowserContext], newest: Any, complaints: list[str], look: str) -> None:
    """In light, dark and at a phone's width: nothing that axe-core finds, nothing in the console, nothing beyond the edge."""
    from axe_playwright_python.sync_playwright import Axe

    tab = heard(visitor(**LOOKS[look]).new_page(), complaints)
    tab.goto("/")
    asked(tab)
    found = Axe().run(tab)
    assert not found.violations_count, found.generate_report()

    tab.get_by_role("button", name="Ask again").click()
    asked(tab, times=2)
    change_on_the_page(tab, "Price", another(newest["price"]))

    picture(tab, look, full_page=True)
    found = Axe().run(tab)
    assert not found.violations_count, found.generate_report()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


def test_the_page_asks_for_whole_answers(tab: Page) -> None:
    """A 304 is cheaper, and not what the other two lists are compared with."""
    requests = []
    tab.on("request", lambda request: requests.append(request) if request.url.endswith(VARIANTS["cached"]) else None)
    tab.goto("/")
    tab.get_by_role("button", name="Ask again").click()
    asked(tab, times=2)

    assert ["if-none-match" in request.all_headers() for request in requests] == [False, False]


def test_the_page_shows_what_each_list_costs_with_bars_to_scale(tab: Page) -> None:
    tab.goto("/")
    asked(tab)
    for variant, count in (("naive", 61), ("optimized", 1), ("cached", 1)):
        expect(card(tab, variant).locator("[data-sql]")).to_have_text(re.compile(f"^{count}\\s"))
        assert length(card(tab, variant), "queries") == pytest.approx(count / 61, abs=0.005)
    assert max(length(card(tab, variant), "time") for variant in VARIANTS) == pytest.approx(1, abs=0.005)
    expect(card(tab, "cached").locator("[data-status]")).to_have_text("fwd=miss; stored")

    tab.get_by_role("button", name="Ask again").click()
    asked(tab, times=2)

    expect(card(tab, "cached").locator("[data-sql]")).to_have_text(re.compile(r"^0\s"))
    expect(card(tab, "cached").locator("[data-status]")).to_have_text("hit")
    assert length(card(tab, "cached"), "queries") == 0
    expect(tab.get_by_role("status").filter(has_text="the same bytes three times")).to_have_count(1)


def length(card: Locator, what: str) -> float:
    """Of a bar, as it is drawn: 1 is the whole of it."""
    measure = "bar => parseFloat(getComputedStyle(bar, '::before').width) / bar.clientWidth"
    return float(card.locator(f"[data-bar={what}]").evaluate(measure))


@pytest.mark.parametrize(
    ("label", "stale", "warm"),
    [
        ("Price", ["The first page", "All of its office", "This listing"], ["All of another office", "Another of its office", "One of another office"]),
        (
            "Name of its office",
            ["The first page", "All of its office", "This listing", "Another of its office"],
            ["All of another office", "One of another office"],
        ),
    ],
)
def test_the_page_shows_what_a_change_made_stale_and_the_new_value(tab: Page, label: str, stale: list[str], warm: list[str]) -> None:
    tab.goto("/")
    new = another(tab.get_by_label(label, exact=True).input_value())

    change_on_the_page(tab, label, new)

    expect(tab.locator("#said")).to_have_text(f"The very next read says {new}. {len(stale)} went stale, {len(warm)} stayed warm.")
    for name in stale + warm:
        expect(entry(tab, name)).to_contain_text("warm")
        expect(entry(tab, name)).to_contain_text("went stale" if name in stale else re.compile(r"stayed warm\s+0\squeries"))
    expect(card(tab, "cached").locator("[data-status]")).to_have_text("fwd=stale; stored")


def test_the_page_is_worked_with_the_keyboard_alone(tab: Page, newest: Any) -> None:
    """Whatever has the focus shows it, and a result takes it from nobody."""
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

    expect(tab.locator("#said")).to_contain_text(f"The very next read says {new}.")
    expect(price).to_be_focused()


def test_a_refusal_stands_at_its_field(tab: Page, newest: Any, complaints: list[str]) -> None:
    """Whoever cannot see it is told, and is led to the field."""
    heard(tab, complaints).goto("/")
    price = tab.get_by_label("Price", exact=True)
    price.fill("-1")
    tab.get_by_role("button", name="Change").first.click()

    expect(tab.get_by_role("alert").filter(has_text="greater than or equal to 0")).to_have_count(1)
    expect(price).to_be_focused()
    expect(price).to_have_attribute("aria-invalid", "true")
    expect(price).to_have_accessible_description("Ensure this value is greater than or equal to 0.")
    expect(tab.locator("#said")).to_be_empty()
    assert complaints == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]

    change_on_the_page(tab, "Price", newest["price"])
    expect(price).to_have_attribute("aria-invalid", "false")
    expect(tab.get_by_role("alert").filter(has_text="greater")).to_have_count(0)


def test_a_change_that_is_no_longer_allowed_is_said(tab: Page, newest: Any) -> None:
    """Logged out in another tab, say: the token of the form is nobody's."""
    tab.goto("/")
    tab.context.clear_cookies()
    tab.get_by_label("Price", exact=True).fill(another(newest["price"]))
    tab.get_by_role("button", name="Change").first.click()

    expect(tab.get_by_role("alert").filter(has_text="Load the page again and log in.")).to_have_count(1)
    expect(tab.locator("#said")).to_be_empty()


def test_a_service_out_of_reach_is_said(tab: Page) -> None:
    tab.goto("/")
    asked(tab)
    tab.context.set_offline(True)
    tab.get_by_role("button", name="Ask again").click()

    expect(tab.get_by_role("status").filter(has_text="Not finished")).to_have_count(1)


def test_the_page_needs_no_script(visitor: Callable[..., BrowserContext], newest: Any) -> None:
    new, tab = another(newest["price"]), visitor(java_script_enabled=False).new_page()
    tab.goto("/")
    expect(tab.get_by_role("button", name="Ask again")).to_be_hidden()

    tab.get_by_label("Price", exact=True).fill(new)
    tab.get_by_role("button", name="Change").first.click()

    expect(tab.get_by_role("status").filter(has_text="Saved.")).to_be_visible()
    expect(tab.get_by_label("Price", exact=True)).to_have_value(new)


@pytest.mark.parametrize(("wanted", "seconds"), [("reduce", "0s"), ("no-preference", "0.4s")])
def test_nothing_moves_for_whom_it_is_better_so(visitor: Callable[..., BrowserContext], wanted: str, seconds: str) -> None:
    tab = visitor(reduced_motion=wanted).new_page()
    tab.goto("/")

    assert tab.locator(".bar").first.evaluate("bar => getComputedStyle(bar, '::before').transitionDuration") == seconds
