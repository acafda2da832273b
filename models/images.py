"""Reads pictures from people: any format Pillow knows, checked, upright, 8-bit RGB."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.errors import BadInput
from models.files import check_given

MAX_PIXELS = 64_000_000  # a 64-megapixel phone picture; beyond is refused before it is decoded


def read_image(source: str | Path | bytes | Image.Image | np.ndarray) -> Image.Image:
    """An upright 8-bit RGB picture.

    EXIF rotation is applied; CMYK, palette and 16-bit pictures are converted; transparency is laid on white;
    of an animation the first frame is taken.

    Args:
        source: a path, the file's bytes, a Pillow picture, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8.

    Raises:
        BadInput: empty, damaged, not a picture, or more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _rgb(_checked(source))
    check_given(source, "picture")
    stream = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb limit is checked below, against ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = _checked(Image.open(stream))
            picture.load()
    except UnidentifiedImageError as error:
        raise BadInput("This file is not a picture. Use JPEG, PNG, WebP, BMP, GIF or TIFF.") from error
    except Image.DecompressionBombError as error:
        raise BadInput(_too_large("far too many")) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadInput("The picture is damaged or cut off. Save it again, or choose another file.") from error
    return _rgb(picture)


def _checked(picture: Image.Image) -> Image.Image:
    w, h = picture.size
    if w * h > MAX_PIXELS:
        raise BadInput(_too_large(f"{w} x {h} = {w * h / 1e6:.0f} million"))
    return picture


def _too_large(pixels: str) -> str:
    return f"The picture has {pixels} pixels; at most {MAX_PIXELS // 1_000_000} million are read. Make it smaller."


def _rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        values = np.asarray(picture).astype(np.int64)
        top = 255 if values.max(initial=0) <= 255 else 65535
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise BadInput("The picture has more than 16 bits a pixel. Save it as 8 or 16 bits.")
        picture = Image.fromarray((values * 255 // top).astype(np.uint8))
    if picture.mode == "F":
        raise BadInput("The picture holds floating-point values. Save it as 8 or 16 bits.")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not good or 0 in array.shape:
        raise BadInput(
            f"An array of shape {array.shape} and type {array.dtype} is not a picture. "
            "Use uint8, (H, W), (H, W, 3) or (H, W, 4)."
        )
    return _checked(Image.fromarray(array))
