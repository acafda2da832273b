"""Webcam speed as a visitor sees it: frames drawn a second, and delay from camera frame to drawn boxes.

    python tests/benchmarks/bench_yolov9_webcam.py --out assets/yolov9/evidence/webcam.json

Starts the app, opens it in Chromium with a fake camera, and watches the page. The camera shows one still of each card
of `examples/cards.mp4` in turn, so that its picture only changes when the card does: there the clock starts. It stops
when boxes with another label are drawn.
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

import av
from playwright.sync_api import sync_playwright

from models.records import record
from tests.browser.conftest import CHROMIUM, EXAMPLES, QUIET
from tests.conftest import free_port

CARDS, SHOWN, RATE = 6, 2, 25  # cards in the example video, seconds each, frames a second
HELD = 1.5  # seconds of each still
LISTEN = """() => {
    window.drawn = []; window.changes = [];
    document.addEventListener('yolov9-drawn', e => {
        const best = e.detail.detections[0];
        window.drawn.push([performance.now(), best ? best.name : '', e.detail.times.network]);
    });
}"""
WATCH = """() => {
    const video = document.querySelector('#yolov9-webcam video'), small = document.createElement('canvas');
    small.width = 32; small.height = 24;
    const context = small.getContext('2d', {willReadFrequently: true});
    let before = null;
    setInterval(() => {
        context.drawImage(video, 0, 0, 32, 24);
        const now = context.getImageData(0, 0, 32, 24).data;
        if (before) {
            let sum = 0;
            for (let i = 0; i < now.length; i++) sum += Math.abs(now[i] - before[i]);
            window.changes.push([performance.now(), sum / now.length]);
        }
        before = now;
    }, 20);
}"""
JUMP = 1.0  # mean grey levels between two looks; stills differ by nothing else


def stills_file(target: Path) -> Path:
    """Raw YUV4MPEG of the cards' stills, which Chromium's fake camera plays in a loop."""
    with av.open(str(EXAMPLES / "cards.mp4")) as source, open(target, "wb") as out:
        frames = [f for k, f in enumerate(source.decode(video=0)) if k % (SHOWN * RATE) == SHOWN * RATE // 2]
        out.write(f"YUV4MPEG2 W{frames[0].width} H{frames[0].height} F{RATE}:1 Ip\n".encode())
        for frame in frames[:CARDS]:
            out.write((b"FRAME\n" + frame.reformat(format="yuv420p").to_ndarray().tobytes()) * int(HELD * RATE))
    return target


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
        page.evaluate(WATCH)
        skip = page.evaluate("() => window.drawn.length")
        page.wait_for_timeout(seconds * 1000)
        changes, drawn = page.evaluate(
            "jump => [window.changes.filter(c => c[1] > jump).map(c => c[0]), window.drawn]", JUMP
        )
        browser.close()
    drawn = drawn[skip:]
    lasted = (drawn[-1][0] - drawn[0][0]) / 1000
    jumps = [b for a, b in zip([0.0, *changes], changes, strict=False) if b - a > HELD * 500]
    switched = [b[0] for a, b in zip(drawn, drawn[1:], strict=False) if a[1] != b[1] and b[1]]
    delays = [min((s - at for s in switched if s > at), default=float("inf")) for at in jumps]
    delays = [d for d in delays if d < HELD * 1000]  # later ones answer the next card
    if not delays:
        raise RuntimeError(f"none of {len(jumps)} card changes was followed by a new label")
    return {
        "size": size,
        "frames_per_s": (len(drawn) - 1) / lasted,
        "card_changes": len(jumps),
        "answered": len(delays),
        "delay_ms_median": statistics.median(delays),
        "delay_ms_p95": sorted(delays)[int(0.95 * len(delays))],
        "network_ms_median": statistics.median(d[2] for d in drawn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 640])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        camera = stills_file(Path(folder) / "cards.y4m")
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
        record(args.out, {"camera": "640x480, 25 frames/s, stills of cards.mp4", "rows": rows})


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
