"""The embedded model's pictures: Microsoft's flat Fluent emoji (MIT), recoloured, combined and captioned here.

A scene is a caption and the picture it describes: "apple", "blue apple", "cat with sunglasses", "two pears",
"car and tree", "fox on a pink background". Every combination (object x colour, face x accessory, pair) is held out
or not by a checksum of its name, so that held-out captions name combinations training never showed, of words it has.

    python -m models.sdxl_lightning.data --sheet scenes.png     # look at 48 scenes
"""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from models import clipart

VENDOR = "fluent-flat"
DOWNLOADS = Path("runs/yolov9/downloads")  # shared with models.yolov9.art: the same packages
SIDE = 256
HELD_OUT_IN = 6  # one combination in so many is never shown in training

# What people type -> the name of the drawing. A name that is its own caption stands alone.
FACES = (
    "bear cat=cat-face dog=dog-face fox frog koala lion monkey=monkey-face mouse=mouse-face panda pig=pig-face "
    "rabbit=rabbit-face tiger=tiger-face cow=cow-face robot alien ghost skull smiley=slightly-smiling-face "
    "chick=front-facing-baby-chick unicorn"
)
ANIMALS = (
    "bee=honeybee bird butterfly camel=two-hump-camel chicken crab crocodile deer dolphin duck elephant fish flamingo "
    "giraffe goat hedgehog jellyfish ladybug=lady-beetle octopus owl parrot penguin dinosaur=t-rex shark sheep=ewe "
    "snail snake spider swan turtle whale zebra"
)
PLANTS = (
    "blossom cactus tree=deciduous-tree pine=evergreen-tree clover=four-leaf-clover mushroom=brown-mushroom palm-tree "
    "rose sunflower tulip christmas-tree"
)
FOOD = (
    "apple=red-apple avocado banana bread broccoli carrot cheese=cheese-wedge cherries cookie corn=ear-of-corn "
    "croissant cupcake doughnut egg fries=french-fries grapes hamburger ice-cream=soft-ice-cream lemon lollipop peach "
    "pear pineapple pizza popcorn pumpkin=jack-o-lantern sandwich strawberry taco tomato watermelon "
    "coffee=hot-beverage teapot"
)
THINGS = (
    "backpack ball=soccer-ball balloon basketball bell book=green-book boot=hiking-boot bulb=light-bulb camera candle "
    "chair clock=alarm-clock computer=desktop-computer crown dice=game-die dress drum envelope feather fire gift="
    "wrapped-gift glasses guitar hammer hat=top-hat heart=red-heart key laptop lock=locked magnet phone=mobile-phone "
    "pencil piano=musical-keyboard ring scissors shirt=t-shirt shoe=running-shoe snowman sofa=couch-and-lamp star=star "
    "sunglasses sword=dagger teddy-bear television trophy trumpet umbrella violin"
)
PLACES = (
    "airplane truck=delivery-truck car=automobile bicycle boat=sailboat bus castle tent cloud flying-saucer helicopter "
    "house train=locomotive moon=crescent-moon motorcycle mountain=snow-capped-mountain planet=ringed-planet rainbow "
    "rocket ship snowflake sun taxi tractor volcano traffic-light=vertical-traffic-light "
    "earth=globe-showing-europe-africa"
)

COLOURS = {  # hue in degrees, factor on saturation, factor on value
    "red": (355, 1.1, 0.95), "orange": (25, 1.15, 1.08), "yellow": (48, 1.1, 1.15), "green": (125, 0.95, 0.85),
    "blue": (215, 1.05, 1.0), "purple": (275, 0.9, 0.9), "pink": (330, 0.6, 1.15), "black": (0, 0.0, 0.3),
    "grey": (0, 0.0, 0.8),
}  # fmt: skip
BACKGROUNDS = {
    "red": (235, 120, 115), "orange": (255, 190, 120), "yellow": (255, 236, 150), "green": (170, 222, 160),
    "blue": (160, 205, 250), "purple": (205, 180, 240), "pink": (255, 200, 220), "black": (38, 38, 44),
    "grey": (190, 190, 195),
}  # fmt: skip
ACCESSORIES = {  # drawing, share of the face's width, where its centre is in the face (x, y)
    "sunglasses": ("sunglasses", 0.82, (0.5, 0.46)),
    "a hat": ("top-hat", 0.52, (0.5, -0.02)),
    "a crown": ("crown", 0.52, (0.5, 0.0)),
    "a bow": ("ribbon", 0.42, (0.5, 0.97)),
}
NUMBERS = {"two": 2, "three": 3, "four": 4}
KINDS = {"plain": 0.24, "colour": 0.36, "background": 0.1, "accessory": 0.1, "pair": 0.14, "number": 0.06}


def _names(*groups: str) -> dict[str, str]:
    entries = (entry.partition("=") for group in groups for entry in group.split())
    return {caption.replace("-", " "): drawing or caption for caption, _, drawing in entries}


FACE_NAMES = _names(FACES)
OBJECTS = _names(FACES, ANIMALS, PLANTS, FOOD, THINGS, PLACES)


@dataclass(frozen=True)
class Scene:
    """caption: what the picture shows. kind: of KINDS. parts: the words that make it, object first."""

    caption: str
    kind: str
    parts: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """True for a combination that training never shows; single objects are never held out."""
        key = "|".join((self.kind, *self.parts)).encode()
        return self.kind != "plain" and zlib.crc32(key) % HELD_OUT_IN == 0


class Scenes:
    """Draws scenes. The drawings are fetched and rendered once, to `runs/sdxl_lightning/art`.

    Args:
        downloads: where the npm package is, or is fetched to.
        art: folder of the rendered drawings.
    """

    def __init__(self, downloads: Path = DOWNLOADS, art: Path = Path("runs/sdxl_lightning/art")) -> None:
        self.art = art
        if not (art / "done").exists():
            _render(downloads, art)
        self.colourable = [name for name in OBJECTS if main_hue(self._drawing(name)) is not None]

    def sample(self, rng: random.Random, held_out: bool) -> Scene:
        """A random scene: one that training may show, or with `held_out` one that it never shows."""
        while True:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            names, qualities = self._choices(kind)
            name = rng.choice(names)
            scene = self.scene(kind, name, rng.choice([q for q in qualities if q != name] or [""]))
            if scene.held_out == held_out:
                return scene

    def draw(self, scene: Scene) -> Image.Image:
        """The scene as an RGB picture, SIDE x SIDE."""
        ground = (255, 255, 255)
        layers: list[tuple[np.ndarray, float, tuple[float, float]]] = []  # drawing, size, centre
        name = scene.parts[0]
        if scene.kind == "plain":
            layers = [(self._drawing(name), 0.84, (0.5, 0.5))]
        elif scene.kind == "colour":
            layers = [(recoloured(self._drawing(name), scene.parts[1]), 0.84, (0.5, 0.5))]
        elif scene.kind == "background":
            layers, ground = [(self._drawing(name), 0.74, (0.5, 0.5))], BACKGROUNDS[scene.parts[1]]
        elif scene.kind == "accessory":
            drawing, share, (x, y) = ACCESSORIES[scene.parts[1]]
            size, left, top = 0.68, 0.16, 0.22
            layers = [(self._drawing(name), size, (left + size / 2, top + size / 2))]
            layers.append((self._file(drawing), size * share, (left + x * size, top + y * size)))
        elif scene.kind == "pair":
            layers = [(self._drawing(name), 0.46, (0.26, 0.5)), (self._drawing(scene.parts[1]), 0.46, (0.74, 0.5))]
        else:
            places = {
                2: [(0.26, 0.5), (0.74, 0.5)],
                3: [(0.5, 0.27), (0.26, 0.73), (0.74, 0.73)],
                4: [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)],
            }
            layers = [(self._drawing(name), 0.44, place) for place in places[NUMBERS[scene.parts[1]]]]
        picture = Image.new("RGBA", (SIDE, SIDE), (*ground, 255))
        for drawing_, size_, (cx, cy) in layers:
            side = round(size_ * SIDE)
            tile = Image.fromarray(drawing_).resize((side, side), Image.Resampling.LANCZOS)
            picture.alpha_composite(_on_canvas(tile, round(cx * SIDE - side / 2), round(cy * SIDE - side / 2)))
        return picture.convert("RGB")

    def scene(self, kind: str, name: str, quality: str = "") -> Scene:
        """The scene of a kind: `quality` is the colour, what is worn, the number or the other object of a pair."""
        if kind == "plain":
            return Scene(name, kind, (name,))
        caption = {
            "colour": f"{quality} {name}",
            "background": f"{name} on a {quality} background",
            "accessory": f"{name} with {quality}",
            "pair": f"{name} and {quality}",
            "number": f"{quality} {name if name.endswith('s') else name + 's'}",
        }[kind]
        return Scene(caption, kind, (name, quality))

    def _choices(self, kind: str) -> tuple[list[str], list[str]]:
        """What a kind can be made of: objects, and qualities."""
        return {
            "plain": (list(OBJECTS), []),
            "colour": (self.colourable, list(COLOURS)),
            "background": (list(OBJECTS), list(BACKGROUNDS)),
            "accessory": (list(FACE_NAMES), list(ACCESSORIES)),
            "pair": (list(OBJECTS), list(OBJECTS)),
            "number": (list(OBJECTS), list(NUMBERS)),
        }[kind]

    def every(self, kind: str) -> list[Scene]:
        """All scenes of a kind, held out or not."""
        names, qualities = self._choices(kind)
        return [self.scene(kind, name, q) for name in names for q in qualities or [""] if q != name]

    def _drawing(self, name: str) -> np.ndarray:
        return self._file(OBJECTS[name])

    def _file(self, drawing: str) -> np.ndarray:
        return _read(self.art / f"{drawing}.png")


def drawn(count: int, held_out: bool = False, seed: int = 0) -> np.ndarray:
    """Random scenes (count, SIDE, SIDE, 3) uint8."""
    scenes, rng = Scenes(), random.Random(seed)
    return np.stack([np.asarray(scenes.draw(scenes.sample(rng, held_out))) for _ in range(count)])


def phrased(caption: str, rng: random.Random) -> str:
    """The caption as people vary it: with or without an article or "a picture of"."""
    article = "" if caption.split(maxsplit=1)[0] in NUMBERS or caption.endswith("s") else "a "
    start = rng.choices(("", article, f"a picture of {article}"), (0.6, 0.3, 0.1))[0]
    return start + caption


def recoloured(drawing: np.ndarray, colour: str) -> np.ndarray:
    """Turns the drawing's main hue into `colour`; other hues (a leaf, an eye) stay.

    Args:
        drawing: (H, W, 4) uint8 with one main hue.
        colour: a key of COLOURS.
    """
    hue = main_hue(drawing)
    assert hue is not None, "only drawings with a main hue are recoloured"
    return turned(drawing, hue, *COLOURS[colour])


def turned(drawing: np.ndarray, hue: float, target: float, saturation: float, value: float) -> np.ndarray:
    """Turns hues near `hue` to near `target`, both in degrees, and multiplies their saturation and value.

    Args:
        drawing: (H, W, 4) uint8.
    """
    hsv = np.asarray(Image.fromarray(drawing[..., :3]).convert("HSV")).astype(np.float32)
    distance = np.abs((hsv[..., 0] * 360 / 255 - hue + 180) % 360 - 180)
    main = (distance < 40) & (hsv[..., 1] > 50)
    shift = (hsv[..., 0] * 360 / 255 - hue + 180) % 360 - 180
    new = hsv.copy()
    new[..., 0] = (target + 0.5 * shift) % 360 * 255 / 360
    new[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    new[..., 2] = np.clip(hsv[..., 2] * value, 0, 255)
    rgb = np.asarray(Image.fromarray(np.where(main[..., None], new, hsv).astype(np.uint8), "HSV").convert("RGB"))
    return np.dstack([rgb, drawing[..., 3]])


def main_hue(drawing: np.ndarray, share: float = 1 / 3) -> float | None:
    """The main hue in degrees, or None where no hue covers this share of what is visible."""
    hsv = np.asarray(Image.fromarray(drawing[..., :3]).convert("HSV")).astype(np.float32)
    seen = drawing[..., 3] > 127
    vivid = seen & (hsv[..., 1] > 70) & (hsv[..., 2] > 60)
    counts, _ = np.histogram(hsv[..., 0][vivid] * 360 / 255, bins=36, range=(0, 360))
    spread = counts + np.roll(counts, 1) + np.roll(counts, -1)
    best = int(spread.argmax())
    return None if spread[best] < seen.sum() * share else best * 10 + 5.0


def _on_canvas(tile: Image.Image, left: int, top: int) -> Image.Image:
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(tile, (left, top))
    return canvas


@cache
def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGBA"))


def _render(downloads: Path, art: Path) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    art.mkdir(parents=True, exist_ok=True)
    icons, width, height = clipart.iconify(VENDOR, downloads)
    worn = {drawing for drawing, _, _ in ACCESSORIES.values()}
    for name in {*OBJECTS.values(), *worn}:
        tile = clipart.cropped(clipart.svg(icons[name]["body"], width, height, SIDE), SIDE)
        square = Image.new("RGBA", (max(tile.size),) * 2)
        square.paste(tile, ((square.width - tile.width) // 2, (square.height - tile.height) // 2))
        square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(art / f"{name}.png")
    (art / "done").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--held-out", action="store_true")
    args = parser.parse_args()
    scenes, rng = Scenes(), random.Random(args.seed)
    chosen = [scenes.sample(rng, args.held_out) for _ in range(args.count)]
    sheet(scenes.draw, chosen).save(args.sheet)
    print(*(scene.caption for scene in chosen), sep="\n")
    print(len(OBJECTS), "objects,", len(scenes.colourable), "colourable")


def sheet(draw: Callable[[Scene], Image.Image], scenes: list[Scene], columns: int = 8, side: int = 160) -> Image.Image:
    """Scenes as a contact sheet."""
    rows = -(-len(scenes) // columns)
    out = Image.new("RGB", (columns * side, rows * side), "white")
    for i, scene in enumerate(scenes):
        out.paste(draw(scene).resize((side, side)), (i % columns * side, i // columns * side))
    return out


if __name__ == "__main__":
    main()
