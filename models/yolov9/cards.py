"""Printable flash cards, the tab's examples, and the network drawing's data: everything shipped that is not weights.

    python -m models.yolov9.cards --out assets/yolov9

Writes `cards/<class>.png` (one drawing a class), `flash_cards.pdf` (A6 landscape, one class a card) and
`examples/*.jpg` and `examples/cards.mp4` (the cards before a simulated camera). Needs `models.yolov9.art`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models import video
from models.yolov9 import art
from models.yolov9.classes import COCO_NAMES
from models.yolov9.compose import Composer, camera

# Drawings that may be redistributed without conditions beyond a notice; see assets/LICENSES.md.
CARD_VENDORS = ("noto", "fluent-flat", "openclipart")
CARD_PIXELS = 512
PAGE, DPI = (1240, 874), 212  # A6 landscape
EXAMPLE_SEEDS = (11, 23, 31, 47)
VIDEO_CARDS, VIDEO_SEED = 6, 0


def card_pictures(art_folder: Path, downloads: Path) -> dict[str, Image.Image]:
    """Class name -> its drawing, RGBA, longer side 512 px, by the first vendor that has one."""
    pictures = {}
    for name in COCO_NAMES:
        for vendor in CARD_VENDORS:
            found = {path.stem: path for path in sorted((art_folder / vendor / name).glob("*.png"))}
            if found:
                # The first code point listed is the plainest drawing.
                ordered = [p for p in art.EMOJI.get(name, "").split() if p in found] or list(found)
                sharp = dict(art.large_pictures(vendor, name, ordered[0], downloads, CARD_PIXELS))
                picture = sharp.get(ordered[0]) or Image.open(found[ordered[0]]).convert("RGBA")
                scale = CARD_PIXELS / max(picture.size)
                size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                pictures[name] = picture.resize(size, Image.Resampling.LANCZOS)
                break
    return pictures


def page(name: str, picture: Image.Image) -> Image.Image:
    """One card: the drawing on white with its class name below."""
    sheet = Image.new("RGB", PAGE, "white")
    scale = min(PAGE[0] * 0.8 / picture.width, PAGE[1] * 0.76 / picture.height)
    drawing = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    sheet.paste(drawing, ((PAGE[0] - drawing.width) // 2, round(PAGE[1] * 0.42 - drawing.height / 2)), drawing)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAGE[0] / 2, PAGE[1] * 0.9), name, fill=(60, 60, 60), anchor="mm", font=ImageFont.load_default(64))
    draw.rounded_rectangle((8, 8, PAGE[0] - 9, PAGE[1] - 9), 40, outline=(200, 200, 200), width=3)
    return sheet


def video_cards(names: Iterable[str]) -> list[str]:
    """The cards of the example video: drawn by lot, so that it shows what the network does, not its best."""
    lot = np.random.default_rng(VIDEO_SEED).choice(sorted(names), VIDEO_CARDS, replace=False)
    return [str(name) for name in lot]


def card_video(pictures: dict[str, Image.Image], size: tuple[int, int] = (640, 480)) -> Iterator[np.ndarray]:
    """A hand-held card after another, drifting and tilting before a wall. Yields (H, W, 3) uint8 RGB, 25 a second."""
    rng = np.random.default_rng(7)
    wall = Image.linear_gradient("L").resize(size).point(lambda v: 90 + v // 3).convert("RGB")
    for name in video_cards(pictures):
        card = page(name, pictures[name]).resize((360, 254), Image.Resampling.LANCZOS).convert("RGBA")
        for k in range(50):
            at = k / 50
            turned = card.rotate(8 * np.sin(2 * np.pi * at), expand=True, resample=Image.Resampling.BICUBIC)
            x = round((size[0] - turned.width) / 2 + 70 * np.sin(2 * np.pi * at))
            y = round((size[1] - turned.height) / 2 + 30 * np.cos(4 * np.pi * at))
            frame = wall.copy()
            frame.paste(turned, (x, y), turned)
            noise = rng.normal(0, 3, (size[1], size[0], 1))
            yield np.clip(np.asarray(frame) + noise, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, default=Path("runs/yolov9/art"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/yolov9/downloads"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for folder in ("cards", "examples"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    pictures = card_pictures(args.art, args.downloads)
    for name, picture in pictures.items():
        picture.quantize(128).save(args.out / "cards" / f"{name}.png", optimize=True)
    first, *rest = (page(name, picture) for name, picture in pictures.items())
    first.save(args.out / "flash_cards.pdf", save_all=True, append_images=rest, resolution=DPI, quality=85)
    composer = Composer.from_art(args.art, CARD_VENDORS)
    composer.photos = []  # their licences ask for more than a notice
    for seed in EXAMPLE_SEEDS:
        sample = composer.scene(seed, 640)
        Image.fromarray(sample.image).save(args.out / "examples" / f"composite-{seed}.jpg", quality=88)
    table = [np.asarray(p.resize((200, 200 * p.height // p.width))) for p in list(pictures.values())[10:40:6]]
    Image.fromarray(camera(_row(table), np.random.default_rng(3))).save(args.out / "examples" / "row.jpg", quality=88)
    with video.Writer(args.out / "examples" / "cards.mp4", 640, 480, Fraction(25)) as writer:
        for frame in card_video(pictures):
            writer.write(frame)
    print(f"{len(pictures)} cards")


def _row(pictures: list[np.ndarray]) -> np.ndarray:
    """Drawings side by side on a table-coloured square."""
    side = 220 * len(pictures)
    canvas = Image.new("RGB", (side, side), (205, 196, 180))
    for k, picture in enumerate(pictures):
        drawing = Image.fromarray(picture)
        canvas.paste(drawing, (10 + 220 * k, (side - drawing.height) // 2), drawing)
    return np.asarray(canvas.resize((640, 640)))


if __name__ == "__main__":
    main()
