"""The paper's recipe on SDXL itself: the same code as for the embedded model, on a GPU (or, to see it run, on a CPU).

    python -m models.sdxl_lightning.train --sdxl FOLDER --pictures PICTURES [--out runs/sdxl_lightning/sdxl]

FOLDER is a diffusers SDXL pipeline, such as stable-diffusion-xl-base-1.0. PICTURES holds pictures with a text file of
the same name beside each, its caption: `cat.jpg`, `cat.txt`. Each is cut to a square and encoded once, with its caption
in the states of both text encoders. Then the stages 128 -> 32 -> 8 -> 4 -> 2 -> 1 of the paper with its guidance (6)
and its learning rates: squared error for the first stage and to turn the last one to predicting x_0; for every other
the adversarial objectives, with x_t and without, on a LoRA, which is merged, then without x_t on the whole network.
Written as published: `sdxl_lightning_{8,4,2}step_lora.safetensors`, `..._unet.safetensors` and, for one step,
`sdxl_lightning_1step_unet_x0.safetensors`; and the folders `hub/{8,4,2,1}step`, see `models.sdxl_lightning.hub`.

Numbers of steps are not in the paper; those here are ours. The skip-level teacher of its 2- and 1-step stages is left
out. Resumable: each phase has its folder, pictures are encoded only once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from torch import Tensor, nn

from models.errors import BadInput
from models.images import read_image
from models.sdxl_lightning import hub
from models.sdxl_lightning.distil import Distiller, Stage, Teacher, save_student
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import pack
from models.sdxl_lightning.pipeline import scaled
from models.sdxl_lightning.schedule import Schedule
from models.weights import read_safetensors, write_safetensors

GUIDANCE = 6.0
FOLLOW_RATE, LORA_RATE, WHOLE_RATE = 1e-5, 1e-6, 5e-7  # the paper's, for batches of 512
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Steps:
    """Training steps of each phase: squared error; LoRA with x_t shown, and without; the whole network."""

    follow: int = 3000
    judged: int = 1000
    free: int = 1000
    whole: int = 1000


def stages(steps: Steps) -> list[Stage]:
    """The paper's, in order. Each lands on the grid of the one before it."""
    judged, free = steps.judged, steps.free
    one = dict.fromkeys(range(4), 1.0)  # starts at 1000, 750, 500 and 250
    return [
        Stage("32", 32, 128, dict.fromkeys(range(0, 128, 4), 1.0), 1, 4, steps.follow, prediction="epsilon"),
        Stage("8", 8, 32, dict.fromkeys(range(0, 32, 4), 1.0), 1, 4, 0, judged, free, "epsilon"),
        Stage("4", 4, 8, dict.fromkeys(range(0, 8, 2), 1.0), 1, 2, 0, judged, free, "epsilon"),
        Stage("2", 2, 4, one, 1, 2, 0, judged, free, "epsilon"),
        Stage("1", 1, 4, one, 2, 2, steps.follow, judged, free, "sample"),
    ]


class Pictures:
    """Captioned pictures as latents and packed words, one file each in `folder`, read when they are drawn.

    Args:
        files: what `encode` wrote. empty: (1 + L, D) packed, of no words. device: where batches go.
    """

    def __init__(self, files: list[Path], empty: Tensor, device: torch.device) -> None:
        self.files, self.empty, self.device = files, empty, device

    def draw(self, count: int, no_words: float) -> tuple[Tensor, Tensor]:
        """Latents (count, C, h, w) and packed words (count, 1 + L, D), a share of them empty, float32."""
        read = [read_safetensors(self.files[i]) for i in torch.randint(len(self.files), (count,)).tolist()]
        latents = torch.stack([each["latents"].float() for each in read])
        words = torch.stack([each["words"].float() for each in read])
        words[torch.rand(count) < no_words] = self.empty
        return latents.to(self.device), words.to(self.device)


def pictures_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Pictures and their captions. Raises `BadInput` if there is none, or one without a caption."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise BadInput(f"No picture is in {folder}. Put pictures ({', '.join(SUFFIXES)}) there, each with a .txt.")
    for path in found:
        if not path.with_suffix(".txt").is_file():
            raise BadInput(f"{path.name} has no caption. Write it into {path.with_suffix('.txt').name} beside it.")
        yield path, path.with_suffix(".txt").read_text().strip()


@torch.inference_mode()
def encode(pipe: StableDiffusionXLPipeline, folder: Path, to: Path, device: torch.device) -> Pictures:
    """Encodes what is not encoded yet. The VAE runs in float32, in which SDXL's does not overflow."""
    to.mkdir(parents=True, exist_ok=True)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    ids = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32)
    nn.Module.to(pipe.vae, device=device, dtype=torch.float32)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        nn.Module.to(encoder, device=device)
    files = []
    for path, caption in pictures_in(folder):
        files.append(to / f"{path.relative_to(folder).as_posix().replace('/', '~')}.safetensors")
        if not files[-1].exists():
            square = ImageOps.fit(read_image(path), (side, side), Image.Resampling.LANCZOS)
            pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3)
            x = pixels.permute(2, 0, 1)[None].to(device, torch.float32) / 127.5 - 1
            latents = scaled(pipe.vae.encode(x).latent_dist.mode(), pipe.vae.config)[0]
            words = _words(pipe, caption, ids, device)
            write_safetensors(files[-1], {"latents": latents.half().cpu(), "words": words.half().cpu()})
    empty = _words(pipe, "", ids, device).cpu()
    if pipe.config.force_zeros_for_empty_prompt:
        empty = pack(torch.zeros_like(empty[None, 1:]), torch.zeros(1, 0), ids[None])[0]
    return Pictures(files, empty, device)


def _words(pipe: StableDiffusionXLPipeline, caption: str, ids: Tensor, device: torch.device) -> Tensor:
    """(1 + L, D) float32; see `pack`."""
    embeds, _, pooled, _ = pipe.encode_prompt(
        caption, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )  # fmt: skip
    return pack(embeds.float(), pooled.float(), ids[None].to(device))[0]


def train(
    folder: Path, pictures: Path, out: Path, steps: Steps, device: torch.device, batch: int, gathered: int
) -> None:  # fmt: skip
    """All stages; what is already there is not made again.

    Args:
        folder: the diffusers pipeline.
        batch, gathered: pictures at once, and how many such batches make a step; the paper's product is 512.

    Raises:
        BadInput: no pictures, or a pipeline that is not SDXL's or does not predict noise.
    """
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    scheduler = EulerDiscreteScheduler.load_config(folder / "scheduler")
    assert isinstance(scheduler, dict)
    if scheduler.get("prediction_type", "epsilon") != "epsilon":
        raise BadInput("This recipe starts from a base that predicts noise (epsilon), as SDXL does.")
    source = encode(pipe, pictures, out / "encoded", device)
    base: Any = pipe.unet
    del pipe  # the encoders' memory
    base.to(device).requires_grad_(False)
    recipe = Recipe(base, source, out, steps, device, batch, gathered)
    for stage in stages(steps):
        recipe.stage(stage, scheduler)


class Recipe:
    """One stage after the other: each call of `stage` follows what the one before it made.

    Args:
        base: SDXL's UNet, which is frozen. The other arguments are those of `train`.
    """

    def __init__(
        self, base: Any, source: Pictures, out: Path, steps: Steps, device: torch.device, batch: int, gathered: int
    ) -> None:  # fmt: skip
        self.base, self.source, self.out, self.steps = base, source, out, steps
        self.device, self.batch, self.gathered = device, batch, gathered
        # Like the embedded model's, one addition to the base goes through all stages: what is saved is a LoRA on it.
        self.lora = LoraNetwork(base).to(device)
        self.teacher = Teacher(base, source.empty.to(device), GUIDANCE, "epsilon")

    def stage(self, stage: Stage, scheduler: dict[str, Any]) -> None:
        """Trains a stage's student and writes its files, or reads them; it becomes the next stage's teacher."""
        whole, lora = self.out / whole_name(stage), self.out / f"sdxl_lightning_{stage.name}step_lora.safetensors"
        if stage.prediction == "sample":
            if not whole.exists():
                turned = self._copy(self.teacher.network).requires_grad_(True)
                self._distiller(stage, turned).follow(FOLLOW_RATE)
                for pairs in (True, False):
                    self._judged(stage, turned, WHOLE_RATE, pairs)
                self._write(turned, whole, stage, scheduler)
            return
        if not lora.exists():
            if stage.follow:
                self._distiller(stage, self.lora).follow(FOLLOW_RATE)
            for pairs in (True, False) if stage.judged else ():
                self._judged(stage, self.lora, LORA_RATE, pairs)
            save_student(self.lora, lora)
        self.lora.load(lora)
        student: Any = self.lora.fused()
        # Not the LoRA: its weights are put in for a call only, and would be gone when layers are computed again.
        student.enable_gradient_checkpointing()
        if stage.judged and not whole.exists():
            merged = replace(stage, name=f"{stage.name}-whole", free=self.steps.whole)
            self._judged(merged, student, WHOLE_RATE, False)
            self._write(student, whole, stage, scheduler)
        if whole.exists():
            student.load_state_dict(read_safetensors(whole))
        self.teacher = Teacher(student.eval().requires_grad_(False), prediction="epsilon")

    def _judged(self, stage: Stage, student: nn.Module, rate: float, pairs: bool) -> None:
        self._distiller(stage, student).judged(pairs, rate, rate, anchor=0.0, normed=False)

    def _distiller(self, stage: Stage, student: nn.Module) -> Distiller:
        return Distiller(
            stage, self.teacher, student, self.base, self.out / "phases", self.source,
            Schedule().on(self.device), batch=self.batch, gathered=self.gathered,
        )  # fmt: skip

    def _write(self, student: nn.Module, path: Path, stage: Stage, scheduler: dict[str, Any]) -> None:
        save_student(student, path)
        made = f"Trained by `python -m models.sdxl_lightning.train --sdxl`: {self.steps}."
        (self.out / "hub").mkdir(exist_ok=True)
        hub.write(student, self.out / "hub" / f"{stage.name}step", stage.steps, made, scheduler, "openrail++")

    def _copy(self, network: Any) -> nn.Module:
        fresh: Any = UNet2DConditionModel.from_config(self.base.config)
        fresh.load_state_dict(network.state_dict())
        fresh.enable_gradient_checkpointing()
        return fresh.to(self.device)


def whole_name(stage: Stage) -> str:
    """A whole student's file, as published."""
    return f"sdxl_lightning_{stage.name}step_unet{'_x0' * (stage.prediction == 'sample')}.safetensors"
