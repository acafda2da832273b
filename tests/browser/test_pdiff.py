"""The P-diff tab in a real browser: generate, pick one, draw a digit, download it, compare, run the pipeline."""

from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file

from tests.browser.conftest import screenshot

RUN = 180_000  # ms: training on a busy CPU


def opened(open_page, app_server):
    page = open_page(app_server.url)
    page.get_by_role("tab", name="P-diff", exact=True).click()
    page.locator("#pdiff-run").wait_for()
    return page


@pytest.fixture
def page(open_page, app_server):
    page = opened(open_page, app_server)
    yield page
    hosts = {urlparse(url).hostname for url in page.requested if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    page.close()
    assert hosts <= {"127.0.0.1", "localhost"}
    assert page.problems == []


@pytest.fixture
def other(open_page, app_server):
    """The page of another visitor."""
    other = opened(open_page, app_server)
    yield other
    other.close()


def test_generate_pick_draw_and_download(page):
    page.locator("#pdiff-run").click()
    expect(page.locator("#pdiff-progress")).to_contain_text("Done", timeout=RUN)
    expect(page.locator("#pdiff-accuracy img")).to_be_visible()
    expect(page.locator("#pdiff-summary")).to_contain_text("generated")
    number = page.locator("#pdiff-number").get_by_role("spinbutton")
    number.fill("7")
    number.press("Enter")
    sketch = page.locator("#pdiff-sketch canvas").last
    sketch.scroll_into_view_if_needed()
    box = sketch.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 100)  # a one
    page.mouse.down()
    page.mouse.move(x, y + 100, steps=15)
    page.mouse.up()
    expect(page.locator("#pdiff-said")).to_contain_text("Network 7", timeout=RUN)
    expect(page.locator("#pdiff-ours")).to_contain_text("1")
    screenshot(page, "pdiff-generate")
    with page.expect_download() as download:
        page.locator("#pdiff-download").click()
    assert download.value.suggested_filename == "digits-q-generated-7.safetensors"
    assert load_file(Path(download.value.path()))["2.weight"].shape == (128,)
    page.get_by_role("tab", name="How new is it?").click()
    page.locator("#pdiff-compare").click()
    expect(page.locator("#pdiff-novelty img")).to_be_visible(timeout=RUN)
    expect(page.locator("#pdiff-novelty-table")).to_contain_text("mean of 16")
    screenshot(page, "pdiff-novelty")


def test_a_long_generation_is_cancelled(page):
    page.get_by_label("DDPM, 1 000 steps, as in the paper").check()
    page.locator("#pdiff-run").click()
    expect(page.locator("#pdiff-progress")).to_contain_text("Denoising", timeout=RUN)
    expect(page.locator("#pdiff-latents img")).to_be_visible(timeout=RUN)
    page.locator("#pdiff-cancel").click()
    expect(page.locator("#pdiff-progress")).to_contain_text("Cancelled", timeout=10_000)


def test_a_generation_that_waits_in_the_queue_can_be_cancelled(page, other):
    """Another visitor holds the only place."""
    other.get_by_label("DDPM, 1 000 steps, as in the paper").check()
    other.locator("#pdiff-run").click()
    expect(other.locator("#pdiff-progress")).to_contain_text("Denoising", timeout=RUN)
    said = page.locator("#pdiff-progress")
    page.locator("#pdiff-run").click()
    expect(said).to_contain_text("queue")
    page.locator("#pdiff-cancel").click()
    expect(said).to_contain_text("It has not begun")
    other.locator("#pdiff-cancel").click()
    expect(said).to_contain_text("Cancelled. Nothing was kept.", timeout=RUN)
    page.locator("#pdiff-run").click()
    expect(said).to_contain_text("Done", timeout=RUN)


def test_the_live_pipeline_runs_to_its_end(page):
    page.get_by_role("tab", name="Live pipeline").click()
    page.locator("#pdiff-live").click()
    expect(page.locator("#pdiff-live-progress")).to_contain_text("Autoencoder", timeout=RUN)
    expect(page.locator("#pdiff-curves img")).to_be_visible()
    page.locator("#pdiff-live-cancel").click()
    expect(page.locator("#pdiff-live-progress")).to_contain_text("Cancelled", timeout=10_000)
    page.locator("#pdiff-live").click()
    expect(page.locator("#pdiff-live-progress")).to_contain_text("Done in", timeout=2 * RUN)
    expect(page.locator("#pdiff-live-summary")).to_contain_text("generated")
    screenshot(page, "pdiff-live")


@pytest.mark.parametrize(("name", "text"), [("Evidence", "best test accuracy"), ("How it works", "The idea.")])
def test_the_other_panels_open(page, name, text):
    page.get_by_role("tab", name=name, exact=True).click()
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()
    screenshot(page, f"pdiff-{name.lower().replace(' ', '-')}")
