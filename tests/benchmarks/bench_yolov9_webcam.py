"""Webcam speed as a visitor sees it: frames drawn a second, and delay from camera frame to drawn boxes.

    python tests/benchmarks/bench_yolov9_webcam.py --out assets/yolov9/evidence/webcam.json

Starts the app, opens it in Chromium with a fake camera that plays `examples/cards.mp4`, and listens in the page:
a frame's clock starts when the page sends it (it is grabbed in the same step), and stops when its boxes are drawn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import sync_playwright

from models.records import record
from tests.browser.conftest import CHROMIUM, EXAMPLES, QUIET, camera_file
from tests.conftest import free_port

LISTEN = """() => {
    window.sent = []; window.drawn = [];
    const plain = window.fetch;
    window.fetch = (...args) => {
        const url = String(args[0] && args[0].url || args[0]);
        if (/\\/stream\\/[^/]+$/.test(url)) window.sent.push(performance.now());
        return plain(...args);
    };
    document.addEventListener('yolov9-drawn', e => window.drawn.push([performance.now(), e.detail.times.network]));
}"""


def measure(url: str, camera: Path, size: int, seconds: float) -> dict:
    """One visitor's stream for `seconds` after a warm-up."""
    with sync_playwright() as playwright:
        fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *fake, f"--use-file-for-fake-video-capture={camera}"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector("#yolov9-card")
        page.evaluate(LISTEN)
        page.get_by_label(str(size), exact=True).check()
        page.get_by_text("Click to Access Webcam").click()
        page.locator("#yolov9-webcam").get_by_text("Record", exact=True).click()
        page.wait_for_function("() => window.drawn.length >= 20")
        skip = page.evaluate("() => window.drawn.length")
        page.wait_for_timeout(seconds * 1000)
        sent, drawn = page.evaluate("() => [window.sent, window.drawn]")
        browser.close()
    # The page sends one frame at a time and the answers come in order: the k-th answer is the k-th frame's.
    # The first frame travels with the event that opens the stream, not as a /stream/ request.
    offset = 1 if len(drawn) > len(sent) else 0
    pairs = [(d[0] - sent[k - offset]) for k, d in enumerate(drawn) if k >= skip and k - offset < len(sent)]
    lasted = (drawn[-1][0] - drawn[skip][0]) / 1000
    return {
        "size": size,
        "frames": len(pairs),
        "frames_per_s": (len(drawn) - 1 - skip) / lasted,
        "delay_ms_median": statistics.median(pairs),
        "delay_ms_p95": sorted(pairs)[int(0.95 * len(pairs))],
        "network_ms_median": statistics.median(d[1] for d in drawn[skip:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 416, 640])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        camera = camera_file(EXAMPLES / "cards.mp4", Path(folder) / "cards.y4m")
        port = free_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIVE_PAPERS_")}
        app = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url)
            rows = [measure(url, camera, size, args.seconds) for size in args.sizes]
        finally:
            app.terminate()
            app.wait()
    for row in rows:
        print({k: round(v, 1) for k, v in row.items()})
    if args.out:
        record(args.out, {"camera": "640x480, 25 frames/s, cards.mp4", "rows": rows})


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError(f"no page at {url}")


if __name__ == "__main__":
    main()
