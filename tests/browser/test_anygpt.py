"""The AnyGPT tab in a real browser: text, a picture and a spoken file go in, parts that play come back.

What needs no trained weights talks to a small real model that knows one reply by heart; the rest to the shipped one.
"""

import zipfile
from pathlib import Path
from urllib.parse import urlparse

import pytest
from PIL import Image
from playwright.sync_api import expect

from models.weights import ASSETS
from tests.browser.conftest import OUTPUT, screenshot
from tests.demos.tiny_anygpt import tiny_app, tiny_model

RUN = 180_000  # ms: the first reply loads the model
SHIPPED = ASSETS / "anygpt"
EXAMPLES = SHIPPED / "examples"
SPOKEN = EXAMPLES / "draw_a_red_apple_and_play_something_calm.wav"
trained = pytest.mark.skipif(
    not all((SHIPPED / f"{name}.safetensors").is_file() for name in ("lm", "image", "speech", "music")),
    reason="the trained weights are not here yet",
)


GRADIOS_OWN = "signal is aborted without reason"  # its recorder says so when it is closed


def local_only(page):
    hosts = {urlparse(url).hostname for url in page.requested if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    assert hosts <= {"127.0.0.1", "localhost"}
    assert [problem for problem in page.problems if problem != GRADIOS_OWN] == []


@pytest.fixture(scope="module")
def tiny_url():
    tiny_model()
    with tiny_app(("yolov9", "anygpt")) as url:
        yield url


@pytest.fixture
def tiny(open_page, tiny_url):
    page = open_page(f"{tiny_url}/?tab=anygpt")
    page.locator("#anygpt-box textarea").wait_for()
    yield page
    local_only(page)
    page.close()


@pytest.fixture(params=[False, True], ids=["light", "dark"])
def page(request, open_page, app_server):
    page = open_page(f"{app_server.url}/?tab=anygpt", dark=request.param)
    page.locator("#anygpt-box textarea").wait_for()
    page.shade = "dark" if request.param else "light"
    yield page
    local_only(page)
    page.close()


def attach(page, *files):
    page.locator("#anygpt-box input[type=file]").first.set_input_files([str(file) for file in files])
    expect(page.locator("#anygpt-box .thumbnail-item")).to_have_count(len(files))


def write(page, text):
    box = page.locator("#anygpt-box textarea")
    box.fill(text)
    return box


def finished(page):
    expect(page.locator("#anygpt-said")).to_contain_text("tokens in", timeout=RUN)


def plays(page):
    """Starts every player of the reply; each has a length and moves on."""
    players = page.locator("#anygpt-chat .bot .minimal-audio-player")
    for i in range(players.count()):
        players.nth(i).get_by_role("button").click()
        page.wait_for_function(
            """i => {
              const player = document.querySelectorAll('#anygpt-chat .bot .minimal-audio-player')[i];
              const host = [...player.querySelectorAll('*')].find(e => e.shadowRoot);
              const sound = host.shadowRoot.querySelector('audio');
              return sound.duration > 0.3 && sound.currentTime > 0;
            }""",
            arg=i,
        )
    return players.count()


def test_text_a_picture_and_speech_go_in_and_parts_that_play_come_back(tiny, tmp_path):
    Image.new("RGB", (90, 60), "red").save(tmp_path / "red.png")
    attach(tiny, tmp_path / "red.png", SPOKEN)
    write(tiny, "What is this?").press("Enter")  # the keyboard is enough
    finished(tiny)
    expect(tiny.locator("#anygpt-chat .user img")).to_have_count(1)
    expect(tiny.locator("#anygpt-chat .bot img")).to_have_attribute("alt", "Picture, made by the model")
    expect(tiny.locator("#anygpt-chat .bot").get_by_text("look")).to_be_visible()
    expect(tiny.locator("#anygpt-box textarea")).to_have_value("")
    expect(tiny.locator("#anygpt-box .thumbnail-item")).to_have_count(0)
    assert plays(tiny) == 2
    view = tiny.locator("#anygpt-tokens")
    for colour in ("text", "image", "speech", "music", "role"):
        expect(view.locator(f".stream i.{colour}").first).to_be_attached()
    screenshot(tiny, "anygpt-tiny")


def test_every_part_can_be_saved_and_the_whole_conversation(tiny):
    text = "<b>hi</b> <img src=x onerror=alert(1)>"
    write(tiny, text).press("Enter")
    finished(tiny)
    expect(tiny.locator("#anygpt-chat .user").get_by_text(text)).to_be_visible()  # as it was written
    links = tiny.locator("#anygpt-chat a.download-link")
    expect(links).to_have_count(3)
    with tiny.expect_download() as found:
        links.nth(1).click()
    assert found.value.suggested_filename == "turn-2-music-1.wav"
    with tiny.expect_download() as found:
        tiny.locator("#anygpt-save").click()
    with zipfile.ZipFile(Path(found.value.path())) as archive:
        assert {"conversation.json", "turn-2-picture-1.png"} <= set(archive.namelist())


def test_a_recording_is_sent_as_speech(tiny):
    tiny.get_by_label("music", exact=True).last.check()  # of sound files; a recording is speech all the same
    box = tiny.locator("#anygpt-box")
    box.get_by_label("Record audio").click()
    box.get_by_label("Start recording").click()
    expect(box.get_by_label("Stop recording")).to_be_visible()
    tiny.wait_for_function("document.querySelector('#anygpt-box').innerText.match(/0:0[1-9]/)")  # a second is recorded
    box.get_by_label("Stop recording").click()
    box.get_by_label("Attach audio").click()
    expect(box.locator(".thumbnail-item")).to_have_count(1)
    write(tiny, "").press("Enter")
    finished(tiny)
    expect(tiny.locator("#anygpt-tokens .stream i.speech.mark")).to_have_count(4)  # the recording's and the reply's


def test_what_cannot_be_read_is_said_and_stays_in_the_box(tiny, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF0000WAVEnothing")
    attach(tiny, tmp_path / "broken.wav")
    write(tiny, "listen").press("Enter")
    expect(tiny.get_by_text("The sound is damaged")).to_be_visible(timeout=RUN)
    expect(tiny.locator("#anygpt-box .thumbnail-item")).to_have_count(1)
    tiny.locator("#anygpt-clear").click()
    expect(tiny.locator("#anygpt-box .thumbnail-item")).to_have_count(0)
    write(tiny, "hi").press("Enter")
    finished(tiny)


def test_on_a_phone_the_chat_comes_first(tiny):
    tiny.set_viewport_size({"width": 390, "height": 844})
    write(tiny, "hi").press("Enter")
    finished(tiny)
    chat, controls = tiny.locator("#anygpt-chat").bounding_box(), tiny.locator("#anygpt-controls").bounding_box()
    assert chat["y"] < controls["y"] and chat["x"] + chat["width"] <= 390
    assert tiny.evaluate("document.documentElement.scrollWidth") <= 390


@trained
def test_the_shipped_model_answers_a_spoken_request_in_all_media(page):
    attach(page, SPOKEN)
    page.locator("#anygpt-box .submit-button").click()
    finished(page)
    expect(page.locator("#anygpt-chat .bot img")).to_be_visible()
    assert plays(page) == 2
    screenshot(page, f"anygpt-chat-{page.shade}")


@trained
def test_an_example_is_one_click(page):
    page.get_by_text("Picture and spoken question").click()
    finished(page)
    expect(page.locator("#anygpt-chat .user img")).to_be_visible()
    page.screenshot(path=OUTPUT / f"anygpt-example-{page.shade}.png", full_page=True)


@pytest.mark.parametrize(("name", "text"), [("Evidence", "The paper's own figures"), ("How it works", "The idea.")])
def test_the_other_panels_open(page, name, text):
    page.get_by_role("tab", name=name, exact=True).locator("visible=true").click()
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()
    page.screenshot(path=OUTPUT / f"anygpt-{name.lower().replace(' ', '-')}-{page.shade}.png", full_page=True)
