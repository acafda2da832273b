"""The SDXL-Lightning tab in a real browser: type, compare, live, from a picture, download, reuse, walk.

What needs no trained weights runs on tiny random networks in the published layout; screenshots are of the shipped ones.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest
from PIL import Image
from playwright.sync_api import expect

from demos.sdxl_lightning import EXAMPLES
from models.sdxl_lightning import metadata
from models.sdxl_lightning.tiers import STUDENTS
from models.weights import ASSETS
from tests.browser.conftest import OUTPUT, screenshot
from tests.models.sdxl_lightning.conftest import official_folder  # noqa: F401

RUN = 180_000  # ms: the first picture loads the model
SHIPPED = ASSETS / "sdxl_lightning"
trained = pytest.mark.skipif(not (SHIPPED / "teacher_unet").is_dir(), reason="the trained networks are not here yet")
complete = pytest.mark.skipif(
    not all((SHIPPED / name).is_file() for name in STUDENTS.values()), reason="not all students are trained yet"
)


def local_only(page):
    hosts = {urlparse(url).hostname for url in page.requested if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    assert hosts <= {"127.0.0.1", "localhost"}
    assert page.problems == []


@pytest.fixture(scope="module")
def tiny_server(start_server, official_folder):  # noqa: F811
    command = [sys.executable, "app.py", "--demos", "yolov9,sdxl_lightning", "--tier", "official", "--device", "cpu"]
    with start_server([*command, "--weights-dir", str(official_folder)]) as server:
        yield server


@pytest.fixture
def tiny(open_page, tiny_server):
    page = open_page(f"{tiny_server.url}/?tab=sdxl_lightning")
    size = page.get_by_label("Size")
    size.fill("64 x 64")
    size.press("Enter")
    yield page
    local_only(page)
    page.close()


@pytest.fixture(params=[False, True], ids=["light", "dark"])
def page(request, open_page, app_server):
    page = open_page(f"{app_server.url}/?tab=sdxl_lightning", dark=request.param)
    page.locator("#sdxl_lightning-run").wait_for()
    page.shade = "dark" if request.param else "light"
    yield page
    local_only(page)
    page.close()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).locator("visible=true").click()


def prompt(page, place, text):
    box = page.locator(f"#sdxl_lightning-{place} textarea")
    box.fill(text)
    return box


def type_live(page, text):
    """Types into the Live panel, once it is there: before its first picture it may still put its own words back."""
    page.locator("#sdxl_lightning-live-run").click()
    expect(page.locator("#sdxl_lightning-live-picture img")).to_be_visible(timeout=RUN)
    box = prompt(page, "live-prompt", "")
    box.press_sequentially(text, delay=30)
    return box


def more(page):
    page.get_by_role("button", name="More").locator("visible=true").click()


def download(page, button):
    expect(button).to_be_enabled()
    with page.expect_download() as found:
        button.click()
    return found.value


def test_type_draw_download_and_reuse(tiny):
    box = prompt(tiny, "prompt", "two red pears")
    tiny.get_by_label("2 steps", exact=True).locator("visible=true").check()
    box.press("Enter")  # the keyboard is enough
    said = tiny.locator("#sdxl_lightning-said")
    expect(said).to_contain_text("2 network evaluations", timeout=RUN)
    expect(tiny.locator("#sdxl_lightning-picture img")).to_be_visible()
    expect(tiny.locator("#sdxl_lightning-gallery img")).to_have_count(1)
    file = download(tiny, tiny.locator("#sdxl_lightning-download"))
    assert file.suggested_filename == "two-red-pears-2-step-0.png"
    settings = metadata.read(file.path().rename(Path(file.path()).with_suffix(".png")))
    assert (settings.prompt, settings.steps, settings.seed) == ("two red pears", 2, 0)
    saved = Path(file.path()).with_suffix(".png")
    prompt(tiny, "prompt", "something else")
    tiny.get_by_text("Reuse a picture's settings").click()
    tiny.locator("#sdxl_lightning-reuse input[type=file]").set_input_files(saved)
    expect(tiny.locator("#sdxl_lightning-prompt textarea")).to_have_value("two red pears")
    expect(said).to_contain_text("Settings of")


def test_from_a_picture_with_strengths_that_can_be_run(tiny, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "start.png")
    tiny.get_by_label("8 steps", exact=True).locator("visible=true").check()
    tiny.get_by_text("Start from a picture").click()
    strength = tiny.locator("#sdxl_lightning-strength")
    expect(strength.get_by_role("radio")).to_have_count(8)
    tiny.get_by_label("4 steps", exact=True).locator("visible=true").check()
    expect(strength.get_by_role("radio")).to_have_count(4)
    tiny.locator("#sdxl_lightning-start input[type=file]").set_input_files(tmp_path / "start.png")
    expect(tiny.locator("#sdxl_lightning-start img")).to_be_visible()
    strength.get_by_label("1 of 4 (25%)").check()
    tiny.locator("#sdxl_lightning-run").click()
    expect(tiny.locator("#sdxl_lightning-said")).to_contain_text("1 network evaluation", timeout=RUN)


def test_guidance_and_negative_prompt_say_why_they_are_off(tiny):
    more(tiny)
    expect(tiny.locator("#sdxl_lightning-negative textarea")).to_be_disabled()
    expect(tiny.locator("#sdxl_lightning-negative")).to_contain_text("distilled into it")
    guidance = tiny.get_by_label("number input for Guidance of the teacher")
    expect(guidance).to_be_disabled()
    tiny.get_by_label("Teacher, not distilled").check()
    expect(guidance).to_be_enabled()


def test_a_mistake_is_said_and_the_next_press_works(tiny):
    prompt(tiny, "prompt", " ")
    tiny.locator("#sdxl_lightning-run").click()
    expect(tiny.get_by_text("The prompt is empty")).to_be_visible(timeout=RUN)
    prompt(tiny, "prompt", "a cat")
    tiny.locator("#sdxl_lightning-run").click()
    expect(tiny.locator("#sdxl_lightning-said")).to_contain_text("network evaluations", timeout=RUN)


def test_a_long_job_is_cancelled(tiny):
    tiny.get_by_label("Teacher, not distilled").check()
    tiny.get_by_label("number input for Pictures", exact=True).locator("visible=true").fill("16")
    more(tiny)
    tiny.get_by_label("number input for Steps of the teacher").fill("64")
    tiny.locator("#sdxl_lightning-run").click()
    expect(tiny.locator("#sdxl_lightning-said progress")).to_be_visible(timeout=RUN)
    tiny.locator("#sdxl_lightning-cancel").click()
    expect(tiny.locator("#sdxl_lightning-said")).to_contain_text("Cancelled", timeout=30_000)


def test_typing_live_the_newest_words_win(tiny):
    tab(tiny, "Live")
    picture, said = tiny.locator("#sdxl_lightning-live-picture img"), tiny.locator("#sdxl_lightning-live-said")
    box = type_live(tiny, "a blue apple")
    expect(picture).to_have_attribute("src", re.compile("a-blue-apple-1-step-0"), timeout=RUN)
    expect(said).to_contain_text("1 network evaluation")
    box.fill("x" * 1001)
    expect(said).to_contain_text("at most 1,000", timeout=RUN)


def test_compare_shows_all_and_slides(tiny):
    tab(tiny, "Compare")
    tiny.locator("#sdxl_lightning-compare").click()
    expect(tiny.locator("#sdxl_lightning-compare-progress")).to_contain_text("Students need one", timeout=RUN)
    expect(tiny.locator("#sdxl_lightning-compare-grid img")).to_have_count(9)
    expect(tiny.locator("#sdxl_lightning-slider img").first).to_be_visible()


def test_seeds_and_a_walk(tiny):
    tab(tiny, "Seeds and walks")
    tiny.locator("#sdxl_lightning-seeds-run").click()
    expect(tiny.locator("#sdxl_lightning-seeds-grid img")).to_have_count(16, timeout=RUN)
    tiny.locator("#sdxl_lightning-walk-run").click()
    expect(tiny.locator("#sdxl_lightning-walk-film video")).to_be_visible(timeout=RUN)
    file = download(tiny, tiny.locator("#sdxl_lightning-walk-gif"))
    with Image.open(file.path()) as moving:
        assert moving.n_frames == 48  # 25 pictures there, and back without the two ends


def test_the_policy_is_on_the_page(tiny):
    expect(tiny.locator("#sdxl_lightning-policy")).to_contain_text("safety filter")


@trained
def test_the_shipped_networks_draw(page):
    teacher = page.get_by_label("Teacher, not distilled")
    if not any((SHIPPED / name).is_file() for network, name in STUDENTS.items() if network.steps == 4):
        teacher.check()
    prompt(page, "prompt", "a blue apple")
    page.locator("#sdxl_lightning-run").click()
    expect(page.locator("#sdxl_lightning-said")).to_contain_text("network evaluations", timeout=RUN)
    expect(page.locator("#sdxl_lightning-picture img")).to_be_visible()
    screenshot(page, f"sdxl_lightning-generate-{page.shade}")
    page.get_by_role("button", name=EXAMPLES["embedded"][0], exact=True).click()
    expect(page.locator("#sdxl_lightning-gallery img")).to_have_count(2, timeout=RUN)  # it joins the others
    tab(page, "Compare")
    page.locator("#sdxl_lightning-compare").click()
    expect(page.locator("#sdxl_lightning-compare-progress")).to_contain_text("Students need one", timeout=RUN)
    page.screenshot(path=OUTPUT / f"sdxl_lightning-compare-{page.shade}.png", full_page=True)


@complete
def test_the_shipped_students_follow_typing(page):
    tab(page, "Live")
    type_live(page, "fox on a pink background")
    expect(page.locator("#sdxl_lightning-live-picture img")).to_have_attribute("src", re.compile("fox-on-a-pink"))
    expect(page.locator("#sdxl_lightning-live-said")).to_contain_text("1 network evaluation", timeout=RUN)
    screenshot(page, f"sdxl_lightning-live-{page.shade}")


@pytest.mark.parametrize(("name", "text"), [("Evidence", "How to read it."), ("How it works", "Guidance")])
def test_the_other_panels_open(page, name, text):
    tab(page, name)
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()
    page.screenshot(path=OUTPUT / f"sdxl_lightning-{name.lower().replace(' ', '-')}-{page.shade}.png", full_page=True)
