"""The miniature AnyGPT, put together from its files; each medium works as far as its codec is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.anygpt import lean
from models.anygpt.audio import Audio, already_read, read_speech
from models.anygpt.codecs import Codecs, Encoded, Lazy, Make, Missing, Read, Rendering
from models.anygpt.embedded import image_codec, lm, music_codec
from models.anygpt.embedded.layout import RULES
from models.anygpt.pipeline import AnyGPT, Settings
from models.anygpt.vocabulary import Medium
from models.images import read_image
from models.runtime import Device
from models.weights import Source

WINDOW = 1024  # twice the length of its training sequences; SmolLM2 itself reads 8192
REPLY = 400  # tokens: a spoken answer of 20 s, two pictures and a piece of music
SETTINGS = Settings(sampling="embedded", tokens=REPLY)
CODECS: tuple[Medium, ...] = ("image", "speech", "music")
SPEECH_RATE = 16_000
LICENCE = "Apache-2.0 (SmolLM2, and what was trained here); sources in assets/LICENSES.md"
TRAINED_ON = "emoji, synthesised speech and music rendered from public-domain scores, with sentences made here"


def source(name: str) -> Source:
    """Where a file of the shipped tier is."""
    return Source(licence=LICENCE, trained_on=TRAINED_ON, asset=f"anygpt/{name}.safetensors")


def assemble(folder: Path, device: Device) -> tuple[AnyGPT, Any]:
    """The model of a folder with lm.safetensors and the codecs that are there, and the network behind it.

    Everything runs on the CPU whatever the device: it is small, and its 8-bit matrices are the CPU's. Prompts are read
    in bfloat16 where the CPU computes in it.

    Raises:
        WeightsNotFound: no language model, or no package with SmolLM2. WeightsCorrupt: another model's weights.
    """
    network = lm.quick(lm.load(folder / lm.FILE))
    return AnyGPT(lean.quantised(network, WINDOW), lm.words(), codecs(folder), RULES, SETTINGS), network


def codecs(folder: Path) -> Codecs:
    """Each codec as far as its file is there; it is read at its first use."""
    pictures = Lazy(lambda: image_codec.load(folder))
    music = Lazy(lambda: music_codec.load(folder))
    speech = Lazy(lambda: _speech(folder))

    def see(value: Any) -> Encoded:
        picture = read_image(value)
        return Encoded(pictures().encode(picture), picture)

    def hear(value: Any) -> Encoded:
        sound = already_read(value, read_speech, SPEECH_RATE)
        return Encoded(speech().encode(sound), sound, " ".join(sound.notes))

    def listen(value: Any) -> Encoded:
        sound = already_read(value, lambda given, _: music_codec.read(given), music_codec.RATE)
        return Encoded(music().encode(sound), sound, " ".join(sound.notes))

    def draw(codes: np.ndarray, how: Rendering) -> Any:
        return pictures().decode(codes)

    def speak(codes: np.ndarray, how: Rendering) -> Audio:
        return speech().decode(codes)

    def play(codes: np.ndarray, how: Rendering) -> Audio:
        return music().decode(codes)

    def keeps(codes: np.ndarray) -> float:
        return music().fit(codes)

    def there(medium: Medium, codec: Callable[..., Any]) -> Any:
        name = f"{medium}.safetensors"
        if (folder / name).exists():
            return codec
        return Missing(f"The codec for {medium} is not there: {name} is missing in {folder.name}. Restore it.")

    readers: dict[Medium, Read | Missing] = {
        medium: there(medium, read) for medium, read in zip(CODECS, (see, hear, listen), strict=True)
    }
    makers: dict[Medium, Make | Missing] = {
        medium: there(medium, make) for medium, make in zip(CODECS, (draw, speak, play), strict=True)
    }
    return Codecs(readers, makers, {"music": keeps})


def _speech(folder: Path) -> Any:
    from models.anygpt.embedded import speech_codec

    return speech_codec.load(folder)
