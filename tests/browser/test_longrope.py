"""The LongRoPE tab in a real browser: a short passkey, a long run cancelled, a search stopped and exported."""

from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import screenshot

RUN = 120_000  # ms: a language model on a busy CPU


@pytest.fixture
def page(open_page, app_server):
    page = open_page(app_server.url)
    page.get_by_role("tab", name="LongRoPE", exact=True).click()
    page.locator("#longrope-run").wait_for()
    yield page
    hosts = {urlparse(url).hostname for url in page.requested if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    page.close()
    assert hosts <= {"127.0.0.1", "localhost"}
    assert page.problems == []


def test_a_short_passkey_is_answered_and_a_long_one_cancelled(page):
    length = page.get_by_role("spinbutton", name="Context length, as a power of two").first
    length.fill("9")
    length.press("Enter")
    expect(page.locator("#longrope-length")).to_contain_text("512 tokens")
    page.locator("#longrope-run").click()
    expect(page.locator("#longrope-prompt mark")).to_contain_text("The pass key is", timeout=RUN)
    expect(page.locator("#longrope-progress")).to_contain_text("Done", timeout=RUN)
    expect(page.locator("#longrope-summary")).to_contain_text("1 of 1")
    expect(page.locator("#longrope-heat img")).to_be_visible()
    screenshot(page, "longrope-passkey")
    length.fill("16")
    length.press("Enter")
    expect(page.locator("#longrope-length")).to_contain_text("64k tokens")
    page.locator("#longrope-run").click()
    expect(page.locator("#longrope-progress progress")).to_be_visible(timeout=RUN)
    screenshot(page, "longrope-progress")
    page.locator("#longrope-cancel").click()
    expect(page.locator("#longrope-progress")).to_contain_text("Cancelled", timeout=10_000)
    expect(page.locator("#longrope-summary")).to_contain_text("1 of 1")  # what was answered is kept


def test_a_search_can_be_stopped_continued_and_exported(page):
    page.get_by_role("tab", name="Search", exact=True).click()
    page.locator("#longrope-search").click()
    expect(page.locator("#longrope-found")).to_contain_text("5 of 152", timeout=RUN)
    page.locator("#longrope-search-stop").click()
    expect(page.locator("#longrope-found")).to_contain_text("Stopped", timeout=RUN)
    expect(page.locator("#longrope-search-plot img")).to_be_visible()
    screenshot(page, "longrope-search")
    with page.expect_download() as download:
        page.locator("#longrope-csv").click()
    rows = Path(download.value.path()).read_text().split()
    assert len(rows) == 32 and all(float(value) >= 1 for value in rows)
    page.locator("#longrope-use").click()
    page.get_by_role("tab", name="Passkey", exact=True).click()
    page.get_by_role("button", name="More").click()
    expect(page.get_by_label("Factor table for LongRoPE (CSV or JSON)")).to_have_value("\n".join(rows) + "\n")


@pytest.mark.parametrize("name", ["Cost", "Evidence", "How it works"])
def test_the_other_panels_open(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
    text = {"Cost": "Key-value cache", "Evidence": "The paper's own figures", "How it works": "The problem."}[name]
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()
    if name == "Evidence":
        expect(page.locator("#longrope-evidence-passkey img")).to_be_visible(timeout=RUN)
    screenshot(page, f"longrope-{name.lower().replace(' ', '-')}")
