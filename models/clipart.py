"""Drawings from npm packages at exact versions: fetched, rendered from SVG, cropped. For recipes, not for the app."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

PIXELS = 256

NPM_PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
}


def iconify(vendor: str, downloads: Path) -> tuple[dict[str, dict[str, Any]], int, int]:
    """The icons of one vendor by name, each with its SVG "body" and its size where that differs; the common size."""
    data = json.loads((npm(vendor, downloads) / "icons.json").read_text())
    return data["icons"], data.get("width", 16), data.get("height", 16)


def svg(body: str, width: int, height: int, pixels: int = PIXELS) -> Image.Image:
    """An icon's body as an RGBA picture, `pixels` wide."""
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def cropped(picture: Image.Image, pixels: int = PIXELS) -> Image.Image:
    """What is visible of an RGBA picture, at most `pixels` on its longer side."""
    box = picture.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
    picture = picture.crop(box) if box else picture
    picture.thumbnail((pixels, pixels))
    return picture


def npm(vendor: str, downloads: Path) -> Path:
    """The unpacked folder of a vendor's npm package."""
    package = NPM_PACKAGES[vendor]
    folder = downloads / package.replace("/", "-").strip("@")
    if not folder.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "-s", package], cwd=downloads, check=True, capture_output=True, text=True
        )
        with tarfile.open(downloads / packed.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"
