"""A talk: keys, prepared examples, help, models loaded ahead, the run of show. In Japanese, which is checked by it."""

import sys
from urllib.parse import urlparse

import pytest
from playwright.sync_api import expect

from demos.registry import DEMOS
from tests.browser.conftest import screenshot

RUN = 180_000  # ms: a model is loaded, perhaps after others
SLUGS = [demo.slug for demo in DEMOS]


@pytest.fixture(scope="module")
def stage(start_server):
    with start_server([sys.executable, "app.py", "--present", "--lang", "ja"]) as server:
        yield server


@pytest.fixture
def page(open_page, stage):
    page = open_page(stage.url)
    page.set_viewport_size({"width": 1920, "height": 1080})
    opened(page, SLUGS[0])
    yield page
    hosts = {urlparse(url).hostname for url in page.requested if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    page.close()
    assert hosts <= {"127.0.0.1", "localhost"}
    assert page.problems == []


def opened(page, slug):
    expect(page.locator(f"#{slug}-tab-button")).to_have_attribute("aria-selected", "true")


def test_keys_move_between_the_demos_but_not_while_typing(page):
    for key, slug in [("PageDown", SLUGS[1]), ("PageDown", SLUGS[2]), ("PageUp", SLUGS[1]), ("4", SLUGS[3])]:
        page.keyboard.press(key)
        opened(page, slug)
        expect(page.locator(f"#{slug}-tab-button")).to_be_focused()
    screenshot(page, "present-ja")
    prompt = page.locator("#sdxl_lightning-prompt textarea")
    prompt.fill("")
    prompt.press_sequentially("1 rn?")
    expect(prompt).to_have_value("1 rn?")
    opened(page, "sdxl_lightning")
    for _ in range(len(SLUGS)):  # all the way round
        page.locator("body").press("PageDown")
    opened(page, "sdxl_lightning")


def test_help_says_the_keys_and_what_is_shown(page):
    page.keyboard.press("?")
    help = page.get_by_role("dialog")
    expect(help).to_contain_text("PageDown")
    for demo in DEMOS:
        expect(help).to_contain_text(demo.title)
    expect(help).to_contain_text("進行表")
    screenshot(page, "present-help")
    page.keyboard.press("2")  # the page behind stays
    opened(page, SLUGS[0])
    page.keyboard.press("Escape")
    expect(help).to_be_hidden()


def test_r_runs_the_prepared_example(page):
    page.keyboard.press("r")
    expect(page.locator("#yolov9-image-summary")).to_contain_text("ms", timeout=RUN)
    expect(page.locator("#yolov9-image-result img")).to_be_visible()
    screenshot(page, "present-example")


def test_the_models_of_this_demo_and_the_next_are_loaded_ahead(page):
    expect(page.locator("#yolov9-status [data-state=ready]")).to_be_attached(timeout=RUN)
    page.keyboard.press("PageDown")
    expect(page.locator("#pdiff-status [data-state=ready]")).to_be_attached(timeout=RUN)


def test_type_can_be_read_from_the_back_of_a_room(page):
    sizes = page.evaluate("""() => {
        const texts = [...document.querySelectorAll('#yolov9-tab span, #yolov9-tab label, #yolov9-tab button')]
            .filter(e => e.getClientRects().length && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
        return texts.map(e => [parseFloat(getComputedStyle(e).fontSize), e.textContent.trim().slice(0, 40)]); }""")
    small = [text for size, text in sizes if size < 1080 / 54]  # 20 px of 1080; reading text has 30
    assert len(sizes) > 10 and not small
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_a_mistake_shows_a_sentence_and_no_trace(page, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG broken")
    page.locator("#yolov9-tab [role=tab]").nth(1).click()
    page.locator("#yolov9-image input[type=file]").first.set_input_files(tmp_path / "bad.png")
    toast = page.locator(".toast-body")
    expect(toast).to_contain_text("画像")
    assert "Traceback" not in page.content()
    page.problems.clear()  # the browser itself could not show the file


def test_the_run_of_show_is_a_page(page):
    with page.context.expect_page() as opened_page:
        page.keyboard.press("n")
    show = opened_page.value.locator("#run-of-show")
    for demo in DEMOS:
        expect(show).to_contain_text(demo.paper)
    expect(show).to_contain_text("論文の主張")
    screenshot(opened_page.value, "present-run-of-show")
