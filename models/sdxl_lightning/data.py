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
    "bear cat=cat-face dog=dog-face fox frog hamster koala lion monkey=monkey-face mouse=mouse-face panda pig=pig-face "
    "rabbit=rabbit-face tiger=tiger-face wolf cow=cow-face raccoon polar-bear robot alien ghost skull "
    "smiley=slightly-smiling-face chick=front-facing-baby-chick horse=horse-face unicorn"
)
ANIMALS = (
    "ant badger bat beaver beetle bird bison bug butterfly camel=two-hump-camel chicken chipmunk crab cricket "
    "crocodile deer dolphin donkey dove dragon=dragon-face duck eagle elephant fish flamingo giraffe goat goose "
    "gorilla hedgehog hippo=hippopotamus bee=honeybee jellyfish kangaroo ladybug=lady-beetle leopard lizard llama "
    "lobster mammoth moose octopus orangutan otter owl ox parrot peacock penguin poodle ram rat rhino=rhinoceros "
    "rooster dinosaur=t-rex scorpion seal shark sheep=ewe shrimp skunk sloth snail snake spider squid swan turkey "
    "turtle tropical-fish whale worm zebra pufferfish=blowfish"
)
PLANTS = (
    "blossom bouquet cactus tree=deciduous-tree pine=evergreen-tree clover=four-leaf-clover hibiscus leaf=herb lotus "
    "maple-leaf mushroom palm-tree potted-plant rose seedling sunflower tulip shell=spiral-shell coral christmas-tree"
)
FOOD = (
    "apple=red-apple green-apple avocado bacon bagel banana beer=beer-mug bell-pepper blueberries bread broccoli "
    "birthday-cake burrito butter candy carrot cheese=cheese-wedge cherries chestnut chocolate=chocolate-bar coconut "
    "cookie corn=ear-of-corn croissant cucumber cup=teacup-without-handle cupcake doughnut dumpling egg eggplant "
    "fries=french-fries garlic grapes hamburger honey=honey-pot coffee=hot-beverage hot-dog chili=hot-pepper "
    "ice-cream=soft-ice-cream jar kiwi=kiwi-fruit lemon lime lollipop mango milk=glass-of-milk olive onion pancakes "
    "peach peanuts pear pie pineapple pizza popcorn potato pretzel pumpkin=jack-o-lantern rice=cooked-rice salad="
    "green-salad sandwich cake=shortcake spaghetti strawberry sushi taco orange=tangerine teapot tomato waffle "
    "watermelon wine=wine-glass cocktail=cocktail-glass spoon fork=fork-and-knife knife=kitchen-knife"
)
THINGS = (
    "axe backpack ball=soccer-ball balloon banjo baseball basket basketball bathtub battery bed bell book=green-book "
    "boot=hiking-boot broom bucket calendar camera candle cap=billed-cap chair clipboard coat coin compass "
    "computer=desktop-computer sofa=couch-and-lamp crayon crown dice=game-die door dress drum drop=droplet "
    "envelope eye fan=folding-hand-fan feather fire flashlight flower=white-flower flute gem=gem-stone gift="
    "wrapped-gift glasses gloves guitar hammer handbag hat=top-hat headphones=headphone heart=red-heart helmet="
    "rescue-workers-helmet jeans joystick key keyboard kimono kite ladder lamp=diya-lamp laptop bulb=light-bulb "
    "lipstick lock=locked magnet megaphone microphone=studio-microphone microscope mirror money-bag phone=mobile-phone "
    "mushroom=brown-mushroom necktie newspaper notebook paintbrush paperclip pen pencil piano=musical-keyboard pill "
    "puzzle=puzzle-piece radio razor ribbon ring saxophone scarf scissors screwdriver scroll shield shirt=t-shirt "
    "shoe=running-shoe shopping-cart shorts skateboard snowman soap socks sponge star=star sunglasses sword=dagger "
    "syringe teddy-bear telephone telescope television tennis toilet toolbox toothbrush trophy trumpet umbrella="
    "umbrella video-game=video-game violin volleyball watch wrench yarn yo-yo purse crystal-ball "
    "party-hat=party-popper hourglass=hourglass-done clock=alarm-clock"
)
PLACES = (
    "airplane ambulance anchor truck=delivery-truck car=automobile bicycle boat=sailboat bus castle church tent "
    "cloud factory ferris-wheel fire-engine flying-saucer fountain helicopter house lighthouse=tokyo-tower train="
    "locomotive moon=crescent-moon motorcycle scooter=motor-scooter mountain=snow-capped-mountain planet=ringed-planet "
    "police-car racing-car rainbow rocket roller-skate satellite ship snowflake speedboat stop-sign sun taxi tractor "
    "tram=tram-car volcano canoe traffic-light=vertical-traffic-light school bank hut earth=globe-showing-europe-africa"
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
        self.colourable = [name for name in OBJECTS if _dominant(self._drawing(name)) is not None]

    def sample(self, rng: random.Random, held_out: bool) -> Scene:
        """A random scene: one that training may show, or with `held_out` one that it never shows."""
        while True:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            scene = getattr(self, f"_{kind}")(rng)
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

    def _plain(self, rng: random.Random) -> Scene:
        name = rng.choice(list(OBJECTS))
        return Scene(name, "plain", (name,))

    def _colour(self, rng: random.Random) -> Scene:
        name, colour = rng.choice(self.colourable), rng.choice(list(COLOURS))
        return Scene(f"{colour} {name}", "colour", (name, colour))

    def _background(self, rng: random.Random) -> Scene:
        name, colour = rng.choice(list(OBJECTS)), rng.choice(list(BACKGROUNDS))
        return Scene(f"{name} on a {colour} background", "background", (name, colour))

    def _accessory(self, rng: random.Random) -> Scene:
        name, worn = rng.choice(list(FACE_NAMES)), rng.choice(list(ACCESSORIES))
        return Scene(f"{name} with {worn}", "accessory", (name, worn))

    def _pair(self, rng: random.Random) -> Scene:
        a, b = rng.sample(list(OBJECTS), 2)
        return Scene(f"{a} and {b}", "pair", (a, b))

    def _number(self, rng: random.Random) -> Scene:
        name, number = rng.choice(list(OBJECTS)), rng.choice(list(NUMBERS))
        plural = name if name.endswith("s") else f"{name}s"
        return Scene(f"{number} {plural}", "number", (name, number))

    def _drawing(self, name: str) -> np.ndarray:
        return self._file(OBJECTS[name])

    def _file(self, drawing: str) -> np.ndarray:
        return _read(self.art / f"{drawing}.png")


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
    hue = _dominant(drawing)
    assert hue is not None, "only drawings with a main hue are recoloured"
    target, saturation, value = COLOURS[colour]
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


def _dominant(drawing: np.ndarray) -> float | None:
    """The main hue in degrees, or None where no hue covers a third of what is visible."""
    hsv = np.asarray(Image.fromarray(drawing[..., :3]).convert("HSV")).astype(np.float32)
    seen = drawing[..., 3] > 127
    vivid = seen & (hsv[..., 1] > 70) & (hsv[..., 2] > 60)
    counts, _ = np.histogram(hsv[..., 0][vivid] * 360 / 255, bins=36, range=(0, 360))
    spread = counts + np.roll(counts, 1) + np.roll(counts, -1)
    best = int(spread.argmax())
    return None if spread[best] < seen.sum() / 3 else best * 10 + 5.0


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
