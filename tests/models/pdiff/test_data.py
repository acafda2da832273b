"""The data sets from their packages, and anybody's pictures made like them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models.errors import BadInput
from models.pdiff import data


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [("digits", (1, 8, 8), (17_960, 1_611, 6_471)), ("mnist", (1, 32, 32), (3_000, 1_000, 1_000)),
     ("emoji", (3, 32, 32), (6_000, 600, 1_000))],
)  # fmt: skip
def test_shapes_and_labels(name, shape, sizes):
    d = data.load(name)
    assert d.shape == shape
    parts = (d.train_x, d.train_y), (d.validation_x, d.validation_y), (d.test_x, d.test_y)
    for (x, y), size in zip(parts, sizes, strict=True):
        assert abs(len(x) - size) <= 0.02 * size and len(x) == len(y)
        assert x.dtype == torch.float32 and x.isfinite().all()
        counts = torch.bincount(y, minlength=10)
        assert len(d.classes) == 10 and counts.min() > 0.7 * counts.float().mean()  # no class is missing


def test_no_picture_is_in_two_parts():
    d = data.load("mnist")
    rows = [{tuple(row) for row in x.flatten(1).mul(255).round().int().tolist()} for x in (d.train_x, d.test_x)]
    assert len(rows[0] & rows[1]) <= 1  # the source itself holds a double


def test_the_same_pictures_every_time():
    assert torch.equal(data._digits().test_x, data.load("digits").test_x)


def test_an_unknown_set_lists_the_known_ones():
    with pytest.raises(BadInput, match="digits, mnist, emoji"):
        data.load("cifar")


def digit(mode: str, ground, ink, size=(300, 200), offset=(0, 0)) -> Image.Image:
    """A thick vertical stroke, off centre."""
    picture = Image.new(mode, size, ground)
    x, y = 120 + offset[0], 30 + offset[1]
    ImageDraw.Draw(picture).rectangle((x, y, x + 20, y + 120), fill=ink)
    return picture


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_drawing_looks_the_same_wherever_and_however_it_is_drawn(name):
    wanted = data.prepare(name, digit("L", 255, 0))
    assert wanted.shape == (1, *data.load(name).shape) and wanted.max() == 1 and wanted.min() == 0
    for other in (
        digit("L", 0, 255),  # light on dark
        digit("RGB", "white", "black", offset=(60, 20)),
        digit("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),  # on nothing
        digit("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)),
        digit("L", 255, 0).resize((900, 600), Image.Resampling.NEAREST),
    ):
        assert (data.prepare(name, other) - wanted).abs().max() < 0.1


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_an_empty_drawing_is_refused(name):
    for picture in (Image.new("RGBA", (50, 50)), Image.new("L", (1, 1), 255)):
        with pytest.raises(BadInput, match="empty"):
            data.prepare(name, picture)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 20)])
def test_any_picture_becomes_a_small_square(size):
    prepared = data.prepare("emoji", Image.new("RGB", size, "red"))
    assert prepared.shape == (1, 3, 32, 32) and prepared.min() >= 0 and prepared.max() <= 1


def test_a_folder_of_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    d = data.folder(tmp_path, 16)
    assert d.classes == ("cat", "dog") and d.shape == (3, 16, 16)
    assert (len(d.train_x), len(d.validation_x), len(d.test_x)) == (28, 4, 8)
    (tmp_path / "dog" / "0.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="dog/0.png"):
        data.folder(tmp_path, 16)


def test_a_folder_of_one_class_is_refused(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(BadInput, match="at least two"):
        data.folder(tmp_path)
