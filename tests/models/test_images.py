"""Every kind of picture a person may bring, good and bad."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from models.errors import BadInput
from models.images import read_image


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


RED = Image.new("RGB", (40, 20), (255, 0, 0))


def test_jpeg_path_bytes_picture_and_array_agree(tmp_path):
    data = encoded(RED, "PNG")
    path = tmp_path / "red.png"
    path.write_bytes(data)
    for source in (path, str(path), data, RED, np.asarray(RED)):
        assert np.array_equal(np.asarray(read_image(source)), np.asarray(RED))


def test_cmyk_becomes_rgb():
    picture = read_image(encoded(RED.convert("CMYK"), "JPEG", quality=95))
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int) - (255, 0, 0)).max() < 8


def test_16_bit_keeps_its_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    picture = np.asarray(read_image(encoded(Image.fromarray(ramp), "PNG")))
    assert picture.shape == (4, 256, 3)
    assert picture[0, 0, 0] == 0 and picture[0, -1, 0] == 255 and abs(int(picture[0, 128, 0]) - 128) <= 1


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[274] = 6  # turn right
    assert read_image(encoded(RED, "JPEG", exif=exif)).size == (20, 40)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_transparency_is_laid_on_white():
    assert read_image(encoded(Image.new("RGBA", (3, 3), (9, 9, 9, 0)), "PNG")).getpixel((1, 1)) == (
        255,
        255,
        255,
    )


def test_one_pixel():
    assert read_image(encoded(Image.new("RGB", (1, 1)), "PNG")).size == (1, 1)


def png_of(width: int, height: int) -> bytes:
    """A tiny file that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")[:2000],
        encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "PNG")[:2000],
        png_of(10_000, 10_000),
        png_of(60_000, 60_000),
        encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "100 megapixels", "bomb", "floats"],
)
def test_bad_files_are_refused_with_advice(data):
    with pytest.raises(BadInput) as caught:
        read_image(data)
    assert len(str(caught.value)) > 20 and "/" not in str(caught.value).replace(" / ", "")


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_bad_arrays_are_refused(array):
    with pytest.raises(BadInput):
        read_image(array)
