"""The shipped flash-card drawings."""

from pathlib import Path

import pytest
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
