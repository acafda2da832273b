"""The drawings the miniature's picture codes are learnt from: emoji of eight vendors, cropped, squared, recoloured.

Two collections, both fetched by `models.clipart` at exact versions:

- the domain: the things of `language.OBJECTS`, as each vendor draws them and in each of `language.COLOURS`;
- the corpus: every emoji that at least three training vendors draw, from which the encoder learns what stays the
  same from vendor to vendor.

    noto, noto-v1            Google, Apache-2.0
    fluent, -flat, -3d       Microsoft, MIT
    fxemoji                  Mozilla, Apache-2.0
    emojione 2, streamline   CC-BY 4.0
    twemoji                  Twitter, CC-BY 4.0: held out of everything, judged on only

The things were chosen among about a hundred by asking, for each training vendor, whether an ImageNet network's
features of its drawing are nearest to the other training vendors' drawings of the same thing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models import clipart
from models.anygpt.embedded.language import COLOURS, OBJECTS
from models.sdxl_lightning.data import COLOURS as HUES
from models.sdxl_lightning.data import main_hue, turned

VENDORS = ("noto", "noto-v1", "fluent", "fluent-flat", "fluent-3d", "fxemoji", "emojione", "streamline")
HELD_OUT_VENDOR = "twemoji"
DOWNLOADS = Path("runs/yolov9/downloads")  # shared with models.yolov9.art: the same packages
SIDE = 120  # of a domain drawing
CORPUS_SIDE = 64
AGREEING = 3  # vendors that must draw an emoji for the corpus to have it

# Emoji that show each thing, by iconify's names, where those are not the thing's own name.
NAMES = {
    "apple": "red-apple green-apple", "cherry": "cherries", "mushroom": "mushroom brown-mushroom",
    "tree": "deciduous-tree", "flower": "tulip", "cat": "cat-face cat", "dog": "dog-face", "rabbit": "rabbit-face",
    "whale": "spouting-whale whale", "car": "automobile", "boat": "sailboat", "house": "house house-with-garden",
    "ball": "soccer-ball", "heart": "red-heart", "moon": "crescent-moon", "hat": "top-hat",
    "umbrella": "umbrella umbrella-with-rain-drops", "book": "closed-book",
}  # fmt: skip
# Firefox OS spells without hyphens, and some names its own way.
FXEMOJI = {
    "cat": "cat-face", "dog": "dog-face", "housebuilding": "house", "whitemediumstar": "star",
    "housewithgarden": "house-with-garden", "umbrellawithraindrops": "umbrella-with-rain-drops",
    "closedbook": "closed-book", "heartred": "red-heart", "redheart": "red-heart", "earofmaize": "ear-of-corn",
    "blackscissors": "scissors", "manltepiececlock": "mantelpiece-clock",
}  # fmt: skip
# Whose drawing the decoder makes of a thing, and where a vendor has two, which; Noto's first if not said otherwise.
DRAWN_BY = {"apple": ("noto", 1), "cat": ("noto", 1), "mushroom": ("noto", 1), "hat": ("fluent-flat", 0)}
BROWN = (22.0, 0.95, 0.55)  # hue, saturation, value; the other colours are those of the SDXL-Lightning tab
CHANGED = 0.25  # share of what is visible that must have the colour
TINT = 0.62  # saturation given to what is grey
_PEOPLE = ("skin-tone", "flag-", "keycap", "-hair", "man-", "woman-", "person", "couple", "family")


@dataclass(frozen=True)
class Drawings:
    """pictures (N, S, S, 4) uint8 RGBA; labels (N,), what is drawn; colours (N,), "" for the vendor's own; vendors."""

    pictures: np.ndarray
    labels: np.ndarray
    colours: np.ndarray
    vendors: np.ndarray

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **vars(self))

    @staticmethod
    def load(path: Path) -> Drawings:
        with np.load(path) as file:
            return Drawings(**file)


def domain(vendors: tuple[str, ...], downloads: Path = DOWNLOADS) -> Drawings:
    """The things of `OBJECTS` as these vendors draw them, as they are and in every colour."""
    thing = {name: word for word in OBJECTS for name in NAMES.get(word, word).split()}
    rows = []
    for vendor in vendors:
        for name, picture in _emoji(vendor, set(thing), downloads, SIDE):
            rows.append((picture, thing[name], "", vendor))
            versions = ((colour, coloured(picture, colour)) for colour in COLOURS)
            rows += [(version, thing[name], colour, vendor) for colour, version in versions if version is not None]
    return _stacked(rows)


def corpus(downloads: Path = DOWNLOADS) -> Drawings:
    """Every emoji that enough training vendors draw, without people, flags and skin tones."""
    rows = []
    for vendor in VENDORS:
        rows += [(p, name, "", vendor) for name, p in _emoji(vendor, None, downloads, CORPUS_SIDE)]
    drawn_by: dict[str, set[str]] = {}
    for _, name, _, vendor in rows:
        drawn_by.setdefault(name, set()).add(vendor)
    return _stacked([row for row in rows if len(drawn_by[row[1]]) >= AGREEING])


def drawn_as(drawings: Drawings, shown: Drawings) -> np.ndarray:
    """For each of `shown`, which of `drawings` the decoder makes of it, (N,) int64: one vendor's drawing of the thing.

    In the colour of `shown`; where that has its own colours or there is none such, in what is nearest to its mean.
    """
    sources = (drawings.colours == "").cumsum() - 1
    versions: dict[str, np.ndarray] = {}
    for thing in OBJECTS:
        vendor, number = DRAWN_BY.get(thing, ("noto", 0))
        own = (drawings.labels == thing) & (drawings.vendors == vendor)
        versions[thing] = np.flatnonzero(own & (sources == np.unique(sources[own])[number]))
    means, shown_means = (np.stack([_mean_colour(p) for p in d.pictures]) for d in (drawings, shown))
    found = []
    for label, colour, mean in zip(shown.labels, shown.colours, shown_means, strict=True):
        candidates = versions[label]
        same = candidates[drawings.colours[candidates] == colour] if colour else candidates[:0]
        among = same if len(same) else candidates
        found.append(among[np.abs(means[among] - mean).sum(1).argmin()])
    return np.array(found)


def _mean_colour(drawing: np.ndarray) -> np.ndarray:
    return drawing[..., :3][drawing[..., 3] > 127].mean(0)


def coloured(drawing: np.ndarray, colour: str) -> np.ndarray | None:
    """The drawing (H, W, 4) with its main hue or its greys, whichever covers more, in `colour` (of `COLOURS`).

    None where that is too little of the drawing for it to be called red, blue, ...
    """
    target, saturation, value = BROWN if colour == "brown" else HUES[colour]
    hue = main_hue(drawing, share=0)
    assert hue is not None, "a share of 0 is always reached"
    tried = [turned(drawing, hue, target, saturation, value), _tinted(drawing, target, saturation, value)]
    seen = drawing[..., 3] > 127
    hues = [main_hue(picture, CHANGED) for picture in tried]
    good = [
        (_changed(drawing, picture)[seen].mean(), i)
        for i, (picture, found) in enumerate(zip(tried, hues, strict=True))
        if found is not None and abs((found - target + 180) % 360 - 180) < 30
    ]
    return tried[max(good)[1]] if good else None


def _tinted(drawing: np.ndarray, target: float, saturation: float, value: float) -> np.ndarray:
    """Gives the drawing's greys a hue."""
    hsv = np.asarray(Image.fromarray(drawing[..., :3]).convert("HSV")).astype(np.float32)
    grey = (hsv[..., 1] < 110) & (hsv[..., 2] > 70)
    hue, strength = np.full_like(hsv[..., 0], target * 255 / 360), np.full_like(hsv[..., 0], 255 * TINT * saturation)
    tinted = np.stack([hue, strength, np.clip(hsv[..., 2] * value, 0, 255)], axis=-1)
    rgb = Image.fromarray(np.where(grey[..., None], tinted, hsv).astype(np.uint8), "HSV").convert("RGB")
    return np.dstack([np.asarray(rgb), drawing[..., 3]])


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(after[..., :3].astype(int) - before[..., :3]).max(-1) > 12


def _emoji(vendor: str, wanted: set[str] | None, downloads: Path, side: int) -> Iterator[tuple[str, np.ndarray]]:
    """A vendor's emoji by iconify's name, cropped and squared to (side, side, 4); all but people if none is wanted."""

    def keep(name: str) -> bool:
        return name in wanted if wanted is not None else not any(part in name for part in _PEOPLE)

    if vendor == "fluent-3d":
        folder = clipart.npm(vendor, downloads) / "assets"
        for name, files in _code_points(downloads).items():
            path = next((folder / f for f in files if (folder / f).exists()), None)
            if keep(name) and path is not None:
                with Image.open(path) as picture:
                    yield name, _squared(picture.convert("RGBA"), side)
        return
    icons, width, height = clipart.iconify(vendor, downloads)
    spelled = {name.replace("-", ""): name for name in _code_points(downloads)}
    for icon, content in icons.items():
        if vendor == "fxemoji":
            name = FXEMOJI.get(icon, spelled.get(icon, icon))
        else:
            name = icon.rstrip("0123456789").rstrip("-") if vendor == "streamline" else icon  # some are drawn twice
        if keep(name):
            w, h = content.get("width", width), content.get("height", height)
            yield name, _squared(clipart.svg(content["body"], w, h, side), side)


def _code_points(downloads: Path) -> dict[str, list[str]]:
    """The files of the 3D package that may show each name."""
    names: dict[str, list[str]] = {}
    for vendor in ("noto", "fluent-flat"):
        chars = json.loads((clipart.npm(vendor, downloads) / "chars.json").read_text())
        for point, name in chars.items():
            names.setdefault(name, []).extend((f"{point}.webp", f"{point}-fe0f.webp"))
    return names


def _squared(picture: Image.Image, side: int) -> np.ndarray:
    """What is visible of an RGBA picture, centred in a square that it fills."""
    seen = clipart.cropped(picture, max(picture.size))
    square = Image.new("RGBA", (max(seen.size),) * 2)
    square.paste(seen, ((square.width - seen.width) // 2, (square.height - seen.height) // 2))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def _stacked(rows: list[tuple[np.ndarray, str, str, str]]) -> Drawings:
    pictures, labels, colours, vendors = zip(*rows, strict=True)
    return Drawings(np.stack(pictures), np.array(labels), np.array(colours), np.array(vendors))
