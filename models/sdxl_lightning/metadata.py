"""How a picture was made, inside its PNG: text chunks that survive a download and are read back as settings."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from models.errors import BadInput

CHUNK = "live-papers"
READABLE = "parameters"  # where other tools look
MOST_TEXT = 10_000


@dataclass(frozen=True)
class Settings:
    """Everything that is needed to draw the picture again."""

    prompt: str
    seed: int
    steps: int
    network: str
    width: int
    height: int
    model: str
    guidance: float | None = None
    strength: str | None = None
    lora: str | None = None

    def describe(self) -> str:
        """One line for people and other tools."""
        more = {
            "Steps": self.steps, "Sampler": "Euler, trailing", "CFG scale": self.guidance, "Seed": self.seed,
            "Size": f"{self.width}x{self.height}", "Model": self.model, "Network": self.network,
            "Denoising strength": self.strength, "LoRA": self.lora,
        }  # fmt: skip
        return f"{self.prompt}\n" + ", ".join(f"{name}: {value}" for name, value in more.items() if value is not None)


def to_png(image: Image.Image, settings: Settings) -> bytes:
    """The picture as PNG with its settings; compressed lightly, because somebody waits for it."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, json.dumps(asdict(settings)))
    info.add_itxt(READABLE, settings.describe())
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=info, compress_level=1)
    return stream.getvalue()


def read(path: str | Path) -> Settings:
    """The settings inside a PNG that this app made.

    Raises `BadInput` for other files, and for settings that are not what `to_png` writes.
    """
    name = Path(path).name
    try:
        with Image.open(path) as picture:
            if picture.format != "PNG":
                raise BadInput(f"{name} is not a PNG. Settings are kept in the PNG that was downloaded here.")
            text = getattr(picture, "text", {}).get(CHUNK)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{name} is not a picture, or it is damaged. Drop a PNG that was downloaded here.") from error
    if text is None or len(text) > MOST_TEXT:
        raise BadInput(
            f"{name} carries no settings of this app. Drop a PNG that was downloaded here; editors and messengers "
            "often remove them."
        )
    return _parsed(name, text)


_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,), "seed": (int,), "steps": (int,), "network": (str,), "width": (int,), "height": (int,),
    "model": (str,), "guidance": (float, int, type(None)), "strength": (str, type(None)), "lora": (str, type(None)),
}  # fmt: skip


def _parsed(name: str, text: str) -> Settings:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    known = {each.name for each in fields(Settings)}
    good = isinstance(values, dict) and set(values) == known
    if not good or any(type(values[key]) not in kinds for key, kinds in _TYPES.items()):
        raise BadInput(f"The settings in {name} are not in this app's form. Drop a PNG that was downloaded here.")
    return Settings(**values)
