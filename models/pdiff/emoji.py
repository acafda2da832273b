"""Makes the emoji data set's sheet from the drawings `python -m models.yolov9.art` has rendered.

python -m models.pdiff.emoji
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image

from models.pdiff.data import EMOJI_FACTS, EMOJI_SHEET

ART = Path("runs/yolov9/art")
CLASSES = ("airplane", "apple", "bird", "bus", "cake", "car", "cat", "cup", "dog", "horse")
VENDORS = ("noto", "fluent-3d", "fluent-flat", "fxemoji", "openclipart", "twemoji")
TEST_VENDOR = "twemoji"
SIDE, COLUMNS = 40, 20


def main() -> None:
    """Writes assets/pdiff/emoji.png, one drawing a tile, and emoji.json with each tile's class and vendor."""
    tiles, facts = [], []
    for vendor in VENDORS:
        for label, name in enumerate(CLASSES):
            for file in sorted((ART / vendor / name).glob("*.png")):
                tiles.append(_square(file))
                facts.append((label, vendor))
    if not tiles:
        raise SystemExit(f"No drawings in {ART}. Run `python -m models.yolov9.art` first.")
    sheet = Image.new("RGBA", (COLUMNS * SIDE, math.ceil(len(tiles) / COLUMNS) * SIDE))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    EMOJI_SHEET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(EMOJI_SHEET, optimize=True)
    EMOJI_FACTS.write_text(
        json.dumps({"side": SIDE, "classes": CLASSES, "test_vendor": TEST_VENDOR, "tiles": facts}) + "\n"
    )
    print(f"{len(tiles)} drawings, {EMOJI_SHEET.stat().st_size / 1000:.0f} kB")


def _square(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        picture = opened.convert("RGBA")
    picture = picture.crop(picture.getbbox())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    tile = Image.new("RGBA", (SIDE, SIDE))
    tile.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return tile


if __name__ == "__main__":
    main()
