"""For everybody: axe's WCAG 2.1 AA rules in light and dark, the keyboard alone, the width of a phone."""

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from demos.registry import DEMOS
from tests.browser.conftest import screenshot

SLUGS = [demo.slug for demo in DEMOS]
AXE = Axe()
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
RUN = 180_000
# What Gradio 6.31 itself writes, by axe's rule and a part of the element's HTML.
GRADIOS_OWN = (
    ("aria-prohibited-attr", 'aria-label="Empty value"'),  # the placeholder of an empty picture or plot
    ("button-name", 'class="gallery-item'),  # thumbnails of example pictures
)


def panels(page: Page, slug: str) -> list[str]:
    """Names of the demo's own tabs."""
    return page.locator(f"#{slug}-tab .tab-wrapper").first.locator("[aria-hidden=true] button").all_text_contents()


def open_panel(page: Page, slug: str, name: str) -> None:
    """Opens one of them, from the menu of those that do not fit if need be."""
    tabs = page.locator(f"#{slug}-tab .tab-wrapper").first
    press(tabs.locator("[role=tab], .overflow-dropdown button").filter(has_text=re.compile(f"^{re.escape(name)}$")))
    expect(tabs.get_by_role("tab", selected=True)).to_have_text(name)


def press(target: Locator) -> None:
    """Without waiting for animations to end, which takes long on a busy machine."""
    target.evaluate("element => element.click()")


def open_demo(page: Page, slug: str) -> None:
    press(page.locator(f"#{slug}-tab-button"))
    expect(page.locator(f"#{slug}-card")).to_be_visible()


def problems(page: Page, slug: str, rules: dict) -> list[str]:
    found = AXE.run(page, context=f"#{slug}-tab", options=rules).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]} ({node['failureSummary'][:200]})"
        for rule in found
        for node in rule["nodes"]
        if not any(rule["id"] == known and part in node["html"] for known, part in GRADIOS_OWN)
    ]


@pytest.fixture(scope="module")
def light(open_page, app_server):
    yield from still(open_page(app_server.url))


@pytest.fixture(scope="module")
def dark(open_page, app_server):
    yield from still(open_page(app_server.url, dark=True))


def still(page: Page) -> Iterator[Page]:
    """The page without fades, since text that is just fading out has less contrast; closed afterwards."""
    page.emulate_media(reduced_motion="reduce")
    yield page
    page.close()


@pytest.mark.parametrize("slug", SLUGS)
def test_every_panel_keeps_the_rules(light, slug):
    open_demo(light, slug)
    for name in panels(light, slug):
        open_panel(light, slug, name)
        assert problems(light, slug, RULES) == [], name


def test_the_frame_of_the_page_keeps_the_rules(light):
    outside = {"exclude": [["[role=tabpanel]"]]}
    assert AXE.run(light, context=outside, options=RULES).response["violations"] == []
    assert light.evaluate("() => document.documentElement.lang") != "" and light.title() == "Live Papers"


@pytest.mark.parametrize("slug", SLUGS)
def test_contrast_in_dark(dark, slug):
    open_demo(dark, slug)
    for name in (panels(dark, slug)[0], "Evidence"):
        open_panel(dark, slug, name)
        assert problems(dark, slug, CONTRAST) == [], name


def tab_to(page: Page, target: Locator, limit: int = 60) -> None:
    """Presses Tab until the target has the focus."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    pytest.fail(f"Tab did not reach {target} in {limit} presses")


def test_the_keyboard_alone_draws_a_picture(open_page, app_server):
    page = open_page(app_server.url)
    tab_to(page, page.locator("#sdxl_lightning-tab-button"))
    page.keyboard.press("Enter")
    box = page.locator("#sdxl_lightning-prompt textarea")
    expect(box).to_be_visible()
    tab_to(page, box)
    outline = box.evaluate("element => getComputedStyle(element).outlineStyle")
    page.keyboard.press("Control+A")
    page.keyboard.type("two pears")
    page.keyboard.press("Enter")
    expect(page.locator("#sdxl_lightning-said")).to_contain_text("network evaluations", timeout=RUN)
    expect(page.locator("#sdxl_lightning-picture img")).to_have_attribute("alt", "The picture that was drawn last")
    assert outline != "none"  # where the focus is can be seen
    page.close()


@pytest.mark.parametrize("slug", SLUGS)
def test_a_phone_needs_no_sideways_scrolling(open_page, app_server, slug):
    page = open_page(f"{app_server.url}/?tab={slug}")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(f"#{slug}-card")).to_be_visible()
    for name in panels(page, slug):
        open_panel(page, slug, name)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, name
    screenshot(page, f"{slug}-phone")
    page.close()
