"""The miniature's picture tokenizer, with the weights it ships."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models import shipping
from models.anygpt.embedded import image_augment, image_codec, image_data
from models.anygpt.embedded.image_codec import DRAWN_SIDE, READ_SIDE, framed
from models.anygpt.embedded.language import COLOURS
from models.anygpt.embedded.layout import IMAGE_CODES, LAYOUT
from models.errors import BadInput, WeightsCorrupt, WeightsNotFound
from models.weights import ASSETS, Source, resolve

FOLDER = ASSETS / "anygpt"


@pytest.fixture(scope="module")
def codec():
    return image_codec.load(FOLDER)


def drawing(colour=(220, 40, 40), size=120, ground=None):
    """A ball with a leaf, RGBA."""
    picture = Image.new("RGBA", (size, size), ground or (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((size * 0.2, size * 0.3, size * 0.8, size * 0.9), fill=colour)
    pen.ellipse((size * 0.5, size * 0.1, size * 0.7, size * 0.3), fill=(60, 160, 60))
    return picture


class TestCodec:
    def test_codes_are_one_row_of_sixteen_in_range(self, codec):
        codes = codec.encode(drawing())
        assert codes.shape == (1, IMAGE_CODES) and codes.dtype == np.int64
        assert codes.min() >= 0 and codes.max() < LAYOUT.image.size

    def test_decodes_to_a_picture(self, codec):
        picture = codec.decode(codec.encode(drawing()))
        assert picture.mode == "RGB" and picture.size == (DRAWN_SIDE, DRAWN_SIDE)

    def test_same_picture_same_codes_same_pixels(self, codec):
        first, second = codec.encode(drawing()), codec.encode(drawing())
        assert np.array_equal(first, second)
        assert np.array_equal(np.asarray(codec.decode(first)), np.asarray(codec.decode(second)))

    def test_every_code_can_be_drawn(self, codec):
        for start in range(0, LAYOUT.image.size, IMAGE_CODES):
            picture = np.asarray(codec.decode(np.arange(start, start + IMAGE_CODES)[None]))
            assert picture.std() > 1

    def test_transparent_is_white(self, codec):
        on_white = Image.new("RGBA", (120, 120), "white")
        on_white.alpha_composite(drawing())
        stored = io.BytesIO()
        drawing().save(stored, "png")
        assert np.array_equal(codec.encode(stored.getvalue()), codec.encode(on_white.convert("RGB")))

    @pytest.mark.parametrize("colour, strongest", [((220, 30, 30), 0), ((40, 60, 220), 2)])
    def test_colours_survive(self, codec, colour, strongest):
        drawn = np.asarray(codec.decode(codec.encode(drawing(colour))), dtype=float)
        seen = drawn[drawn.min(-1) < 200]
        assert seen.mean(0).argmax() == strongest

    def test_place_in_the_frame_does_not_matter(self, codec):
        wide = Image.new("RGB", (400, 300), "white")
        wide.paste(drawing(ground=(255, 255, 255, 255)).convert("RGB"), (250, 20))
        assert np.array_equal(codec.encode(wide), codec.encode(drawing()))

    @pytest.mark.parametrize(
        "codes",
        [
            np.zeros((1, 15), np.int64),
            np.zeros(16, np.int64),
            np.full((1, 16), 512),
            np.full((1, 16), -1),
            np.zeros((1, 16), np.float32),
        ],
    )
    def test_wrong_codes_are_named(self, codec, codes):
        with pytest.raises(BadInput, match="Picture codes|A picture is"):
            codec.decode(codes)

    @pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut off"])
    def test_damaged_files_are_named(self, codec, content):
        with pytest.raises(BadInput):
            codec.encode(content)

    def test_one_pixel_and_one_colour(self, codec):
        for picture in (Image.new("RGB", (1, 1), "red"), Image.new("RGB", (300, 20), "white")):
            assert codec.encode(picture).shape == (1, IMAGE_CODES)


class TestShippedWeights:
    def test_listed_and_small(self):
        found = resolve(Source("Apache-2.0", "emoji", asset="anygpt/image.safetensors"))
        assert found.path.stat().st_size <= 10_000_000

    def test_redraws_real_drawings(self, codec):
        """Examples kept with the weights: drawings of the vendor in whose hand the decoder draws."""
        paths = sorted((FOLDER / "examples").glob("image_*.png"))
        assert len(paths) >= 6
        likeness = []
        for path in paths:
            wanted = np.asarray(framed(Image.open(path).convert("RGB"), DRAWN_SIDE), dtype=float)
            drawn = np.asarray(codec.decode(codec.encode(path)), dtype=float)
            likeness.append(10 * np.log10(255**2 / np.square(wanted - drawn).mean()))
        assert np.mean(likeness) > 24

    def test_missing_and_damaged_files_are_named(self, tmp_path):
        with pytest.raises(WeightsNotFound):
            image_codec.load(tmp_path)
        (tmp_path / "image.safetensors").write_bytes((FOLDER / "image.safetensors").read_bytes()[:1000])
        with pytest.raises(WeightsCorrupt):
            image_codec.load(tmp_path)


def test_shipping_keeps_the_other_files_lines(tmp_path):
    for name in ("image", "music", "image"):
        shipping.ship(name, {"x": torch.ones(2)}, {"network": name}, tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert [line[66:] for line in lines] == ["image.safetensors", "music.safetensors"]


class TestFrame:
    def test_fills_the_square_and_keeps_its_shape(self):
        picture = Image.new("RGB", (200, 100), "white")
        ImageDraw.Draw(picture).rectangle((20, 40, 79, 69), fill="black")  # 60 x 30
        dark = np.asarray(framed(picture, 64).convert("L")) < 128
        rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
        assert abs(len(columns) - 60) <= 2 and abs(len(rows) - 30) <= 2
        assert abs(rows.mean() - 31.5) <= 1 and abs(columns.mean() - 31.5) <= 1


class TestColours:
    @pytest.mark.parametrize("colour", COLOURS)
    def test_main_hue_is_turned_and_the_leaf_stays(self, colour):
        before = np.asarray(drawing())
        after = image_data.coloured(before, colour)
        assert after is not None and np.array_equal(after[..., 3], before[..., 3])
        leaf = (slice(20, 30), slice(68, 76))
        assert np.abs(after[leaf].astype(int) - before[leaf]).max() <= 3

    def test_what_is_nearly_black_has_no_colour(self):
        assert image_data.coloured(np.asarray(drawing((10, 10, 10))), "red") is None

    def test_grey_is_tinted(self):
        picture = np.zeros((32, 32, 4), np.uint8)
        picture[4:28, 4:28] = (180, 180, 180, 255)
        after = image_data.coloured(picture, "blue")
        assert after is not None and after[16, 16, 2] > after[16, 16, 0] + 60


class TestVariations:
    def test_shapes_ranges_and_difference(self):
        torch.manual_seed(0)
        small = np.asarray(drawing(size=READ_SIDE))
        batch = torch.from_numpy(np.stack([small] * 8)).permute(0, 3, 1, 2)
        varied = image_augment.varied(image_augment.recoloured(batch))
        assert varied.shape == (8, 3, READ_SIDE, READ_SIDE)
        assert varied.min() >= -1 and varied.max() <= 1 and torch.isfinite(varied).all()
        assert (varied[1:] - varied[:1]).abs().mean((1, 2, 3)).min() > 0.02

    def test_canonical_is_on_white_with_a_margin(self):
        solid = torch.full((1, 4, 120, 120), 255, dtype=torch.uint8)
        solid[:, :3] = 0
        target = image_augment.canonical(solid)
        assert (target[:, :, :4] == 1).all() and target[:, :, 10:-10, 10:-10].max() == -1
