"""Two examples of the tab: a drawing and a spoken request, by a vendor and a voice that no training had.

    python -m models.anygpt.embedded.examples        # assets/anygpt/examples

Needs requirements-recipes.txt, and what the codecs' recipes left in runs/anygpt.
"""

from __future__ import annotations

from pathlib import Path

from models.anygpt.audio import Audio, wav
from models.anygpt.embedded import speech_data
from models.anygpt.embedded.evaluate import RUNS
from models.anygpt.embedded.image_data import Drawings
from models.images import read_image
from models.weights import ASSETS

RATE = 16_000
VOICE = "slt"  # flite's, which no training heard
THING = "boat"
SPOKEN = "draw a picture that goes with this music"


def write(folder: Path) -> None:
    """picture.png, and one sentence as a WAV file named by its words."""
    drawings = Drawings.load(RUNS / "image" / "held_out.npz")
    first = next(i for i, label in enumerate(drawings.labels) if label == THING)
    read_image(drawings.pictures[first]).resize((256, 256)).save(folder / "picture.png", optimize=True)
    said = Audio(speech_data.flite(SPOKEN, VOICE), RATE)
    (folder / f"{SPOKEN.replace(' ', '_')}.wav").write_bytes(wav(said))


if __name__ == "__main__":
    write(ASSETS / "anygpt" / "examples")
