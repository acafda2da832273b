"""The shipped flash-card drawings; one thread for tests of many tiny tensors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

CARDS = Path(__file__).resolve().parents[3] / "assets" / "yolov9" / "cards"


@pytest.fixture(scope="session")
def flash_card_pictures() -> list[tuple[str, Image.Image]]:
    """(class name, drawing on white) of every card."""
    found = []
    for path in sorted(CARDS.glob("*.png")):
        drawing = Image.open(path).convert("RGBA")
        side = max(drawing.size)
        card = Image.new("RGB", (side, side), "white")
        card.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2), drawing)
        found.append((path.stem, card))
    return found


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Many tiny tensors: threads only wait for one another, for minutes where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
