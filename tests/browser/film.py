"""Moving pictures of what a browser test does, for the README: `python -m tests.pictures` asks for them."""

import base64
import io
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Error, Page

WIDTH, COLOURS = 760, 96
APART = 0.2  # seconds between two frames that are kept
LONGEST, SHOWN = 60, 0.2  # frames of a film, seconds that each is shown
HOLD = 2.0  # seconds of the last one


class Film:
    """Watches a page from now until `save`."""

    def __init__(self, page: Page) -> None:
        self._frames: list[bytes] = []
        self._seen = 0.0
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._keep)
        self._session.send("Page.startScreencast", {"format": "jpeg", "quality": 85, "maxWidth": 2 * WIDTH})

    def _keep(self, frame: dict) -> None:
        now = frame["metadata"]["timestamp"]
        if now - self._seen >= APART:
            self._seen = now
            self._frames.append(base64.b64decode(frame["data"]))
        with suppress(Error):  # the page may have been closed meanwhile
            self._session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    def save(self, path: Path) -> None:
        """As a GIF, from when the page was there; a long film is shown in fewer frames."""
        while len(self._frames) > 1 and _empty(self._frames[0]):
            del self._frames[0]
        step = max(1, -(-len(self._frames) // LONGEST))
        chosen = [*self._frames[:-1:step], self._frames[-1]]
        first, *others = [_small(Image.open(io.BytesIO(data))) for data in chosen]
        times = [int(1000 * SHOWN)] * len(others) + [int(1000 * HOLD)]
        first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)


def filmed() -> str | None:
    """The folder for films, where they were asked for."""
    return os.environ.get("FILM_FOLDER")


def watched(page: Page) -> None:
    """Films the page where that was asked for, under the name of the test that opened it."""
    folder = filmed()
    if not folder:
        return
    test = os.environ["PYTEST_CURRENT_TEST"].rsplit("::", 1)[-1].removesuffix(" (setup)").removesuffix(" (call)")
    film = Film(page)
    page.on("close", lambda _: film.save(Path(folder) / f"{re.sub(r'[^a-z0-9_]+', '-', test).strip('-')}.gif"))


def _empty(frame: bytes) -> bool:
    """Whether there is nothing, or one word, on the page."""
    shown = np.asarray(Image.open(io.BytesIO(frame)).convert("L"), np.int16)
    return bool((abs(shown - shown[0, 0]) > 16).mean() < 0.005)


def _small(image: Image.Image) -> Image.Image:
    height = round(image.height * WIDTH / image.width)
    return image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS).quantize(COLOURS)
