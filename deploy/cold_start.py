"""How long a visitor waits on an app that was just started: process, page, first result of each tab, second result.

    python -m deploy.cold_start --times 3 --out assets/hosting/cold_start.json

Every tab gets a fresh process each time. The embedded tier, on whatever device the app chooses. The first result holds
importing PyTorch, reading the weights and the work; the second, the work alone.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file

from models.records import record

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "assets" / "yolov9" / "cards" / "bus.png"
PATIENCE = 300.0  # seconds for the page


@dataclass(frozen=True)
class Request:
    """What is asked of a tab: in words, its endpoint, and the inputs that have no value on the page."""

    words: str
    endpoint: str
    inputs: Callable[[], dict[str, Any]]


REQUESTS = {
    "yolov9": Request("boxes in a picture", "/yolov9_image", lambda: {"path": handle_file(CARD)}),
    "pdiff": Request("100 networks, generated and tested", "/pdiff_generate", dict),
    "longrope": Request("a key in 1 024 tokens", "/longrope_passkey", lambda: {"param_13": None}),
    "sdxl_lightning": Request(
        "a picture in 4 steps", "/sdxl_lightning_generate", lambda: {"param_8": None, "param_13": None}
    ),
    "anygpt": Request(
        "a drawing and its words", "/anygpt_chat", lambda: {"message": {"text": "Draw a red apple.", "files": []}}
    ),
}


@contextmanager
def fresh() -> Iterator[tuple[str, float]]:
    """`python app.py` on a free port: its address, and the seconds from the process's start to its first page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIVE_PAPERS_")}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        app = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL,
            env=environment | {"TMPDIR": folder},
        )  # fmt: skip
        try:
            _wait_for_page(url, app, started + PATIENCE)
            yield url, time.perf_counter() - started
        finally:
            app.terminate()
            app.wait(timeout=60)


def _wait_for_page(url: str, app: subprocess.Popen, deadline: float) -> None:
    while time.perf_counter() < deadline and app.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                page.read()
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.01)
    raise RuntimeError(f"There is no page at {url}. Start `python app.py` by hand to see why.")


def once(request: Request) -> dict[str, float]:
    """Seconds to the page, then to the first and the second result, each from asking for it."""
    with fresh() as (url, page):
        client = Client(url, verbose=False)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            client.predict(**request.inputs(), api_name=request.endpoint)
            seconds.append(time.perf_counter() - started)
        client.close()
    return {"page_s": page, "first_s": seconds[0], "second_s": seconds[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the result is recorded")
    args = parser.parse_args()
    with fresh():  # fills the caches of byte code and disk, as any second start finds them
        pass
    before, tabs = os.getloadavg(), {}
    for slug, request in REQUESTS.items():
        runs = [once(request) for _ in range(args.times)]
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        tabs[slug] = {"asked": request.words, **middle, "runs": runs}
        print(f"{slug}: page {middle['page_s']:.1f} s, first result {middle['first_s']:.1f} s later ({request.words}), "
              f"second {middle['second_s']:.1f} s", flush=True)  # fmt: skip
    if args.out:
        record(args.out, {"tabs": tabs, "load_average_before": before, "load_average": os.getloadavg()})


if __name__ == "__main__":
    main()
