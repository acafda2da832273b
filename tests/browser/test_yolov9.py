"""The YOLOv9 tab in a real browser: webcam, picture, video, bad input; no request leaves this machine."""

import json
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Page, expect

from models.yolov9.cards import video_cards
from tests.browser.conftest import EXAMPLES, ROOT, screenshot
from tests.browser.film import filmed

CARDS = ROOT / "assets" / "yolov9" / "cards"


@pytest.fixture
def page(open_page, app_server):
    page = open_page(app_server.url)
    yield page
    hosts = {urlparse(url).hostname for url in page.requested if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    page.close()
    assert hosts <= {"127.0.0.1", "localhost"}
    assert page.problems == []


def select_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def upload(page: Page, component: str, path: Path) -> None:
    page.locator(f"#{component} input[type=file]").first.set_input_files(path)


def test_picture_gives_labels_counts_and_a_file(page):
    select_tab(page, "Image")
    upload(page, "yolov9-image", CARDS / "bus.png")
    expect(page.locator("#yolov9-image-summary")).to_contain_text("bus", timeout=60_000)
    expect(page.locator("#yolov9-image-result img")).to_be_visible()
    screenshot(page, "yolov9-image")
    page.get_by_text("Table and export").click()
    page.get_by_role("button", name="Make the file").first.click()
    link = page.locator('a[download^="detections"]')
    link.wait_for()
    rows = json.loads(page.request.get(link.get_attribute("href")).text())
    assert "bus" in [d["name"] for d in rows[0]["detections"]]


def test_webcam_draws_boxes_over_the_live_picture(page):
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#yolov9-webcam").get_by_text("Record", exact=True).click()
    page.evaluate("""() => { window.drawn = [];
        document.addEventListener('yolov9-drawn', e => window.drawn.push(e.detail)); }""")
    least = 30 if filmed() else 5
    page.wait_for_function(f"() => window.drawn.filter(d => d.detections.length).length >= {least}", timeout=120_000)
    drawn = page.evaluate("() => window.drawn")
    names = {d["name"] for frame in drawn for d in frame["detections"]}
    assert names & set(video_cards(path.stem for path in CARDS.glob("*.png")))
    assert all(frame["width"] == 640 and frame["height"] == 480 for frame in drawn)
    painted = page.evaluate("""() => { const c = document.querySelector('.yolov9-canvas');
        const v = document.querySelector('#yolov9-webcam video').getBoundingClientRect(), r = c.getBoundingClientRect();
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return {inside: r.left >= v.left - 1 && r.right <= v.right + 1 && r.top >= v.top - 1,
                ratio: r.width / r.height, some: data.some(x => x > 0)}; }""")
    assert painted["inside"] and abs(painted["ratio"] - 640 / 480) < 0.02
    expect(page.locator("#yolov9-overlay .yolov9-times")).to_contain_text("frames/s")
    page.wait_for_timeout(700)  # for the picture only: past the change from one card to the next
    screenshot(page, "yolov9-webcam")
    page.locator("#yolov9-webcam").get_by_text("Stop", exact=True).click()
    count = page.evaluate("() => window.drawn.length")
    page.wait_for_timeout(1500)
    assert page.evaluate("() => window.drawn.length") <= count + 2  # the stream has ended


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken"], ids=["empty", "broken"])
def test_bad_picture_says_what_to_do_and_the_app_lives(page, tmp_path, content):
    select_tab(page, "Image")
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    upload(page, "yolov9-image", bad)
    expect(page.locator(".toast-body")).to_contain_text("picture")
    screenshot(page, "yolov9-bad-picture")
    page.reload()
    page.problems.clear()  # the browser itself could not show the file
    select_tab(page, "Image")
    upload(page, "yolov9-image", CARDS / "laptop.png")
    expect(page.locator("#yolov9-image-summary")).to_contain_text("laptop")


def test_video_is_annotated_and_can_be_cancelled(page):
    select_tab(page, "Video")
    upload(page, "yolov9-video", EXAMPLES / "cards.mp4")
    page.locator("#yolov9-video video").wait_for()
    run, cancel = page.locator("#yolov9-video-run"), page.locator("#yolov9-video-cancel")
    run.click()
    expect(page.locator("#yolov9-video-progress progress")).to_be_visible(timeout=60_000)
    screenshot(page, "yolov9-video-progress")
    cancel.click()
    expect(page.locator("#yolov9-video-progress")).to_contain_text("Cancelled")
    run.click()
    expect(page.locator("#yolov9-video-result video")).to_be_visible(timeout=240_000)
    expect(page.locator("#yolov9-video-progress")).to_contain_text("300 frames")
    source = page.locator("#yolov9-video-result video").get_attribute("src")
    assert page.request.get(source).body()[4:8] == b"ftyp"
    screenshot(page, "yolov9-video")


def test_evidence_and_explanation_open(page):
    select_tab(page, "Evidence")
    expect(page.locator(".lp-evidence").first).to_be_visible()
    screenshot(page, "yolov9-evidence")
    select_tab(page, "How it works")
    expect(page.get_by_text("The problem.")).to_be_visible()
    screenshot(page, "yolov9-how-it-works")


def test_dark_and_present_look(open_page, app_server, start_server):
    import sys

    dark = open_page(app_server.url, dark=True)
    screenshot(dark, "yolov9-dark")
    dark.close()
    with start_server([sys.executable, "app.py", "--present"]) as server:
        page = open_page(server.url)
        size = page.evaluate("() => parseFloat(getComputedStyle(document.querySelector('#yolov9-card p')).fontSize)")
        screenshot(page, "yolov9-present")
        page.close()
    assert size >= 18
