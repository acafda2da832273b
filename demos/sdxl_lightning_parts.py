"""What the panels of the SDXL-Lightning tab share: choices, checked values, pictures on disk, words under them."""

from __future__ import annotations

import base64
import io
import random
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from models.errors import BadInput
from models.runtime import ModelHandle

if TYPE_CHECKING:
    from PIL import Image

    from models.sdxl_lightning.pipeline import Family, Network, Order, Pictures

STEPS = (1, 2, 4, 8)
STEP_CHOICES = [("1 step", 1), ("2 steps", 2), ("4 steps", 4), ("8 steps", 8)]
DEFAULT_STEPS = 4
TEACHER_STEPS = 32
MOST_TEACHER_STEPS = 64
MOST_SEED = 2**32 - 1
SIZES = {
    "embedded": ("256 x 256", "384 x 256", "256 x 384", "320 x 320"),
    "official": ("1024 x 1024", "1152 x 896", "896 x 1152", "1216 x 832", "832 x 1216", "1344 x 768", "720 x 1440"),
}
EXAMPLES = {
    "embedded": ("a blue apple", "cat with sunglasses", "two pears", "fox on a pink background", "car and tree"),
    "official": (
        "a girl smiling, soft light, 35 mm photograph",
        "an owl on a branch at night, detailed feathers",
        "a lighthouse in a storm, oil painting",
    ),
}
FORMS = [("The best there is", "best"), ("Full network", "unet"), ("LoRA on the teacher", "lora")]
# One heavy job at a time: two would only slow each other down. Typing has a lane of its own.
JOBS: dict[str, Any] = {"concurrency_id": "sdxl_lightning", "concurrency_limit": 1}
SHORT: dict[str, Any] = {"concurrency_id": "sdxl_lightning_live", "concurrency_limit": 2}


@dataclass(frozen=True)
class Studio:
    """What a panel needs: the networks' handle and which tier it is."""

    handle: ModelHandle[Family]
    tier: str

    @property
    def example(self) -> str:
        return EXAMPLES[self.tier][0]


def number(what: str, value: Any, low: float, high: float) -> float:
    """A number in a range. Raises `BadInput` naming `what`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadInput(f"{what} must be a number from {low:g} to {high:g}; got {value}.")
    return float(value)


def seed_of(value: Any) -> int:
    return parts.whole("The seed", value, 0, MOST_SEED)


def steps_of(value: Any) -> int:
    """A student's step count. Raises `BadInput` for others."""
    if value not in STEPS or isinstance(value, bool):
        raise BadInput(f"There is no student of {value} steps. Choose {', '.join(map(str, STEPS))}.")
    return int(value)


def size_of(value: Any) -> tuple[int, int]:
    """Width and height of "256 x 384". Raises `BadInput` for anything else."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", str(value))  # noqa: RUF001
    if match is None:
        raise BadInput(f"{str(value)[:40]!r} is not a size. Write it like 256 x 384.")
    return int(match[1]), int(match[2])


def new_seed() -> int:
    return random.randrange(MOST_SEED + 1)


def student(family: Family, steps: int, form: str = "best") -> Network:
    """The student of so many steps in the form asked for. Raises as `Family.student` does."""
    from models.sdxl_lightning.pipeline import Network

    if form == "best":
        return family.student(steps)
    if form not in ("unet", "lora"):
        raise BadInput(f"Choose a network of: {', '.join(label for label, _ in FORMS)}.")
    return Network(steps, form)  # type: ignore[arg-type]


def keep(label: str, order: Order, made: Pictures) -> list[str]:
    """Writes the pictures as PNG files with their settings inside; the files' paths. label: the model's name."""
    from models.sdxl_lightning import metadata

    folder, paths = parts.private_folder(), []
    for image, seed in zip(made.images, made.seeds, strict=True):
        steps = order.steps if order.steps is not None else order.network.steps
        settings = metadata.Settings(
            order.prompt, seed, steps, order.network.name, *image.size, label, made.guidance,
            f"{order.strength}/{steps}" if order.strength else None, order.lora.name if order.lora else None,
        )  # fmt: skip
        words = re.sub(r"[^a-z0-9]+", "-", order.prompt.lower()).strip("-")[:40] or "picture"
        path = folder / f"{words}-{order.network.name.split()[0]}-{seed}.png"
        path.write_bytes(metadata.to_png(image, settings))
        paths.append(str(path))
    return paths


def caption(made: Pictures) -> str:
    """Time and network evaluations, in words."""
    seconds = made.seconds
    count = len(made.images)
    evaluations = f"{made.evaluations} network evaluation{'s' * (made.evaluations > 1)}"
    each = f" for {count} pictures" if count > 1 else ""
    said = (
        f"{milliseconds(seconds.total)}{each}: text {milliseconds(seconds.text)}, "
        f"network {milliseconds(seconds.network)}, decoding {milliseconds(seconds.decode)} · {evaluations}"
    )
    return said + (" a picture" if count > 1 else "")


def milliseconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def said(*lines: str) -> str:
    """Lines of text as HTML paragraphs."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines if line)


def inline(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def lora_path(file: Any) -> Path | None:
    """The uploaded LoRA; the name is checked where it is read."""
    return Path(file) if isinstance(file, str) and file else None


def prompt_box(studio: Studio, elem_id: str, label: str = "Prompt", value: str | None = None) -> gr.Textbox:
    text = studio.example if value is None else value
    return gr.Textbox(text, label=label, lines=1, max_lines=4, elem_id=elem_id)
