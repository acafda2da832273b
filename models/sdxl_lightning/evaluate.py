"""The paper's measures on the embedded model, and the unpicked grid.

    python -m models.sdxl_lightning.evaluate quality [--count 1000]   # assets/sdxl_lightning/evidence/quality.json
    python -m models.sdxl_lightning.evaluate grid                      # .../grid.png: 24 held-out captions, first seed

Captions name combinations that training never showed. Pictures are compared with those captions' own drawings, in the
features of a network that took no part in training (`judge`).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from models.records import record
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.basis import to_tensor
from models.sdxl_lightning.data import Scene, Scenes
from models.sdxl_lightning.distil import SCALE
from models.sdxl_lightning.flow import sampled
from models.sdxl_lightning.judge import Judge, chosen, frechet_distance
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import LATENT, build_unet, read_unet
from models.sdxl_lightning.preview import tiled
from models.sdxl_lightning.recipe import RUNS
from models.sdxl_lightning.text import states, text_encoder, tokenizer
from models.weights import ASSETS, read_safetensors

SHIPPED = ASSETS / "sdxl_lightning"
OFFERED = 10  # captions to choose from
BATCH = 50


@dataclass(frozen=True)
class Model:
    """One way to draw: a network, its steps, what it predicts, and guidance (1: none).

    draws: latents from noise and words, for a network that is not sampled by Euler steps.
    """

    name: str
    steps: int
    network: nn.Module
    prediction: str = "v_prediction"
    guidance: float = 1.0
    draws: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def passes(self) -> int:
        """Of the network, for a picture."""
        return self.steps * (1 if self.guidance == 1 else 2)


@dataclass(frozen=True)
class Row:
    """fid, patch_fid: distances from the captions' drawings. match: share of pictures whose caption is found."""

    name: str
    steps: int
    guidance: float
    passes: int
    fid: float
    patch_fid: float
    match: float


class Words:
    """States of captions and of no words."""

    def __init__(self) -> None:
        self._words, self._encoder = tokenizer(), text_encoder()
        self.empty = self(("",))[0]

    def __call__(self, captions: tuple[str, ...] | list[str]) -> Tensor:
        return states(captions, self._words, self._encoder)


def models(folder: Path) -> Iterator[Model]:
    """The teacher at several step counts, and the students that the folder has."""
    teacher = read_unet(folder / "teacher_unet").eval()
    for steps in (32, 8, 4, 2, 1):
        yield Model("teacher", steps, teacher, guidance=SCALE)
    for steps in (8, 4, 2):
        path = folder / f"lightning_{steps}step_lora.safetensors"
        if path.exists():
            yield Model("student, LoRA", steps, LoraNetwork(teacher).load(path).fused().eval())
    path = folder / "lightning_1step_unet_x0.safetensors"
    if path.exists():
        yield one_step("student, full", path)


def progressive(folder: Path, runs: Path) -> Iterator[Model]:
    """The students as they were before their adversarial phases: `models.sdxl_lightning.distil` keeps them."""
    teacher = read_unet(folder / "teacher_unet").eval()
    for steps in (8, 4, 2):
        path = runs / f"{steps}-progressive.safetensors"
        if path.exists():
            yield Model("progressive only, LoRA", steps, LoraNetwork(teacher).load(path).fused().eval())
    path = runs / "1-progressive.safetensors"
    if path.exists():
        yield one_step("progressive only, full", path)


def one_step(name: str, path: Path) -> Model:
    network = build_unet().eval()
    network.load_state_dict(read_safetensors(path))
    return Model(name, 1, network, prediction="sample")


@torch.inference_mode()
def drawn_by(model: Model, words: Words, vae: PatchAutoencoder, captions: list[str], seed: int = 0) -> Tensor:
    """(N, 3, 256, 256) in -1..1; the noise depends on the seed and the caption's place only."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(captions), *LATENT), generator=generator)
    empty = None if model.guidance == 1 else words.empty
    pictures = []
    for i in range(0, len(captions), BATCH):
        told = words(captions[i : i + BATCH])
        start = noise[i : i + BATCH]
        if model.draws is not None:
            z = model.draws(start, told)
        else:
            z = sampled(model.network, model.prediction, model.steps, start, told, empty, model.guidance)
        pictures.append(vae.decode(z, return_dict=False)[0].clamp(-1, 1))
    return torch.cat(pictures)


def held_out(count: int, seed: int = 0) -> list[Scene]:
    """Distinct scenes that training never shows, in the shares of the kinds (single objects are shown, so left out)."""
    scenes, rng = Scenes(), random.Random(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = scenes.sample(rng, True)
        found[scene.caption] = scene
    return list(found.values())


class Ruler:
    """What pictures are measured against: held-out captions, their drawings' features, nine other captions for each.

    Args:
        folder: with the autoencoder that turns latents into pictures.
        count: of captions.
    """

    def __init__(self, folder: Path, count: int) -> None:
        scenes, found = Scenes(), held_out(count)
        self.captions = [scene.caption for scene in found]
        self.judge, self.words = Judge(), Words()
        vae: Any = PatchAutoencoder.from_pretrained(folder / "vae")
        self.vae = vae.float().eval().to(memory_format=torch.channels_last)
        self.truth = torch.cat(
            [
                to_tensor(np.stack([np.asarray(scenes.draw(scene)) for scene in found[i : i + BATCH]]))
                for i in range(0, count, BATCH)
            ]
        )
        self.real = self.features(self.truth)
        rng = np.random.default_rng(0)
        self.others = torch.from_numpy(np.stack([_others(rng, i, count) for i in range(count)]))

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Of whole pictures and of their centres, (N, 320) each."""
        found = ((self.judge.whole(x), self.judge.patch(x)) for x in pictures.split(BATCH))
        whole, patch = zip(*found, strict=True)
        return torch.cat(whole), torch.cat(patch)

    def of(self, model: Model) -> tuple[Tensor, Tensor]:
        """Features of what a model draws for the captions."""
        return self.features(drawn_by(model, self.words, self.vae, self.captions))

    def row(self, model: Model, whole: Tensor, patch: Tensor) -> Row:
        """The measures of features; printed."""
        found = Row(
            model.name, model.steps, model.guidance, model.passes, frechet_distance(whole, self.real[0]),
            frechet_distance(patch, self.real[1]), float(self.matched(whole).float().mean()),
        )  # fmt: skip
        print(found, flush=True)
        return found

    def matched(self, whole: Tensor) -> Tensor:
        """(N,) bool: whether the right caption was found."""
        return chosen(whole, self.real[0], self.others)


def quality(folder: Path, count: int, runs: Path) -> dict[str, object]:
    """All models on `count` held-out captions; printed as it goes."""
    ruler = Ruler(folder, count)
    with torch.inference_mode():
        through = torch.cat([ruler.vae.forward(x).clamp(-1, 1) for x in ruler.truth.split(BATCH)])
    drawings = Model("drawings through the autoencoder", 0, torch.nn.Identity())
    rows = [ruler.row(drawings, *ruler.features(through))]
    rows += [ruler.row(model, *ruler.of(model)) for model in chain(models(folder), progressive(folder, runs))]
    return {"captions": count, "offered": OFFERED, "chance": 1 / OFFERED, "rows": [asdict(r) for r in rows]}


def grid(folder: Path, side: int = 96, label: int = 210, top: int = 24) -> Image.Image:
    """The first 24 held-out captions at 1, 2, 4 and 8 steps and the teacher's 32, first seed, nothing chosen."""
    prompts = [scene.caption for scene in held_out(24)]
    words, vae = Words(), PatchAutoencoder.from_pretrained(folder / "vae").float().eval()
    shown = [m for m in models(folder) if m.name != "teacher" or m.steps == 32]
    shown.sort(key=lambda m: m.steps)
    half, width = len(prompts) // 2, label + len(shown) * side
    sheet = Image.new("RGB", (2 * width, half * side + top), "white")
    write = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(prompts):
        write.text((i // half * width + 8, i % half * side + top + side // 2), prompt, fill="black")
    for column, model in enumerate(shown):
        pictures = drawn_by(model, words, vae, prompts)
        left = label + column * side
        for part in (0, 1):
            write.text((part * width + left + 4, top - 16), f"{model.steps} {model.name[:7]}", fill="black")
            strip = tiled(pictures[part * half : (part + 1) * half], 1)
            sheet.paste(strip.resize((side, half * side), Image.Resampling.LANCZOS), (part * width + left, top))
    return sheet


def _others(rng: np.random.Generator, i: int, count: int) -> np.ndarray:
    """OFFERED - 1 different places, none of them i."""
    picked = rng.choice(count - 1, OFFERED - 1, replace=False)
    return picked + (picked >= i)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "grid"))
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=SHIPPED / "evidence")
    parser.add_argument("--count", type=int, default=1000, help="held-out captions")
    parser.add_argument("--runs", type=Path, default=RUNS / "distil", help="where progressive-only students are")
    args = parser.parse_args()
    if args.what == "quality":
        record(args.out / "quality.json", quality(args.weights, args.count, args.runs))
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        grid(args.weights).save(args.out / "grid.png")


if __name__ == "__main__":
    main()
