"""Scenes: what they are called, what is held out, what they look like. No drawing is fetched."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.sdxl_lightning import data
from models.sdxl_lightning.data import COLOURS, KINDS, OBJECTS, SIDE, Scene, Scenes, phrased, recoloured
from models.sdxl_lightning.pool import shown


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Every drawing is a red disc with a small green leaf."""
    art = tmp_path_factory.mktemp("art")
    disc = Image.new("RGBA", (SIDE, SIDE))
    draw = ImageDraw.Draw(disc)
    draw.ellipse((16, 16, SIDE - 16, SIDE - 16), fill=(220, 30, 40, 255))
    draw.rectangle((110, 20, 150, 50), fill=(40, 180, 60, 255))
    for name in {*OBJECTS.values(), *(drawing for drawing, _, _ in data.ACCESSORIES.values())}:
        disc.save(art / f"{name}.png")
    (art / "done").touch()
    return Scenes(downloads=Path("nowhere"), art=art)


def test_captions(scenes: Scenes) -> None:
    assert scenes.scene("plain", "apple").caption == "apple"
    assert scenes.scene("colour", "apple", "blue").caption == "blue apple"
    assert scenes.scene("background", "fox", "pink").caption == "fox on a pink background"
    assert scenes.scene("accessory", "cat", "sunglasses").caption == "cat with sunglasses"
    assert scenes.scene("pair", "car", "tree").caption == "car and tree"
    assert scenes.scene("number", "pear", "two").caption == "two pears"
    assert scenes.scene("number", "grapes", "two").caption == "two grapes"


def test_held_out_or_not_is_a_matter_of_the_name() -> None:
    """The checksum is part of the data's definition: weights shipped before a change of it would be judged wrongly."""
    assert not Scene("apple", "plain", ("apple",)).held_out
    names = [Scene("", "colour", (name, colour)) for name in OBJECTS for colour in COLOURS]
    share = sum(scene.held_out for scene in names) / len(names)
    assert share == pytest.approx(1 / data.HELD_OUT_IN, abs=0.03)
    assert [c for c in COLOURS if Scene("", "colour", ("pear", c)).held_out] == ["red", "orange", "grey"]


def test_training_and_test_never_meet(scenes: Scenes) -> None:
    rng = random.Random(0)
    trained = {scene.caption for scene in shown(scenes, 50, rng)}
    asked = {scenes.sample(rng, True).caption for _ in range(500)}
    assert not trained & asked
    assert {scene.kind for scene in shown(scenes, 50, rng)} == set(KINDS)


def test_no_caption_means_two_pictures(scenes: Scenes) -> None:
    every = [scene for kind in KINDS for scene in scenes.every(kind)]
    assert len({scene.caption for scene in every}) == len(every)


def test_a_pair_is_of_two_things(scenes: Scenes) -> None:
    assert all(scene.parts[0] != scene.parts[1] for scene in scenes.every("pair"))


@pytest.mark.parametrize("kind, quality, count", [("number", "three", 3), ("pair", "dog", 2), ("plain", "", 1)])
def test_things_are_counted(scenes: Scenes, kind: str, quality: str, count: int) -> None:
    picture = np.asarray(scenes.draw(scenes.scene(kind, "cat", quality))).astype(int)
    red = (picture[..., 0] - picture[..., 1]) > 100
    assert _islands(red[::4, ::4]) == count


def test_a_background_fills_the_corners(scenes: Scenes) -> None:
    picture = np.asarray(scenes.draw(scenes.scene("background", "cat", "black")))
    assert picture[0, 0].tolist() == list(data.BACKGROUNDS["black"])
    assert picture.shape == (SIDE, SIDE, 3)


def test_recolouring_turns_the_main_hue_only(scenes: Scenes) -> None:
    drawing = np.asarray(Image.open(scenes.art / "red-apple.png"))
    blue = recoloured(drawing, "blue")
    r, g, b, alpha = blue[128, 128].tolist()
    assert b > 150 and b > r + 80 and alpha == 255
    assert blue[35, 130].tolist() == pytest.approx(drawing[35, 130].tolist(), abs=3)  # the leaf
    assert np.array_equal(blue[..., 3], drawing[..., 3])


def test_phrases_keep_the_caption() -> None:
    rng = random.Random(0)
    assert {phrased("apple", rng) for _ in range(100)} == {"apple", "a apple", "a picture of a apple"}
    assert {phrased("two pears", rng) for _ in range(100)} == {"two pears", "a picture of two pears"}


def _islands(mask: np.ndarray) -> int:
    """Connected regions of more than a few pixels."""
    left, found = mask.copy(), 0
    while left.any():
        stack, size = [tuple(np.argwhere(left)[0])], 0
        while stack:
            y, x = stack.pop()
            if 0 <= y < left.shape[0] and 0 <= x < left.shape[1] and left[y, x]:
                left[y, x] = False
                size += 1
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        found += size > 20
    return found
