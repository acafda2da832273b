"""A real Chromium, with a camera that plays a real video file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.film import filmed, watched

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "assets" / "yolov9" / "examples"
OUTPUT = ROOT / "tests" / "output"
CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def camera_file(video: Path, target: Path, seconds: float = 4.0, every: int = 1, slower: int = 1) -> Path:
    """The video as raw YUV4MPEG, which Chromium's fake camera plays in a loop; one frame in `every`, so much slower."""
    with av.open(str(video)) as source, open(target, "wb") as out:
        stream = source.streams.video[0]
        rate = stream.average_rate
        pace = f"F{rate.numerator}:{rate.denominator * every * slower}"
        out.write(f"YUV4MPEG2 W{stream.width} H{stream.height} {pace} Ip\n".encode())
        for k, frame in enumerate(source.decode(video=0)):
            if k / rate > seconds:
                break
            if k % every:
                continue
            out.write(b"FRAME\n" + frame.reformat(format="yuv420p").to_ndarray().tobytes())
    return target


@pytest.fixture(scope="session")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Page]]:
    """`open_page(url)`: a new page; `page.requested` and `page.problems` list what it fetched and complained of."""
    if not Path(CHROMIUM).exists():
        pytest.fail("These tests drive Debian's Chromium: apt-get install chromium (make test does).")
    # A film has five frames a second. To film all that a camera has would leave no time for the detector.
    pace = {"every": 3, "slower": 2} if filmed() else {}
    camera = camera_file(EXAMPLES / "cards.mp4", tmp_path_factory.mktemp("camera") / "cards.y4m", **pace)
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *fake, f"--use-file-for-fake-video-capture={camera}"]
        )

        def open_one(url: str, dark: bool = False) -> Page:
            page = browser.new_page(viewport={"width": 1400, "height": 1050}, color_scheme="dark" if dark else "light")
            page.set_default_timeout(60_000)
            watched(page)
            page.requested, page.problems = [], []
            page.on("request", lambda request: page.requested.append(request.url))
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
            page.goto(url)
            page.wait_for_selector("#yolov9-card", state="attached")  # another tab may be open already
            return page

        yield open_one
        browser.close()


def screenshot(page: Page, name: str) -> None:
    """Saved to `tests/output/`, to be looked at."""
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT / f"{name}.png")
