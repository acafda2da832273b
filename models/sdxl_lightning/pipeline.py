"""Words to pictures in few steps, the same for the embedded model and for SDXL.

    family = load the tier (models.sdxl_lightning.tiers)
    made = family.generate(Order("a blue apple", Network(4, "lora"), seed=1, count=4))
    made.images, made.seconds.network, made.evaluations

A `Family` is an ordinary diffusers pipeline object without a scheduler that changes: each order gets its own plan, and
every student its own network, so that visitors with different step counts cannot disturb each other.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from torch import Tensor, nn

from models.errors import BadInput, WeightsNotFound
from models.sdxl_lightning import adapters, sampling, schedulers
from models.sdxl_lightning.prompts import Conditioning, Encoder, checked

Form = Literal["teacher", "unet", "lora"]
Seed = int
Place = Callable[[nn.Module], nn.Module]
OnStep = Callable[[int, int, Callable[[], Image.Image]], None]

BATCH = 8  # pictures in one network pass
MOST_PICTURES = 64
MOST_AREA = 4  # of one picture, in native pictures
MOST_SEED = 2**32 - 1


@dataclass(frozen=True, order=True)
class Network:
    """Which network draws: a student of `steps` steps as a full network or as a LoRA, or the undistilled teacher."""

    steps: int
    form: Form

    @property
    def name(self) -> str:
        """ "4-step LoRA", "1-step network", "teacher"."""
        if self.form == "teacher":
            return "teacher"
        return f"{self.steps}-step {'LoRA' if self.form == 'lora' else 'network'}"


TEACHER = Network(0, "teacher")


@dataclass(frozen=True)
class Order:
    """One wish.

    network: a student or the teacher. steps: for the teacher only; a student has its own number.
    seed: of the first picture; the next ones take the following numbers.
    size: (width, height) in pixels; None for the size the model was trained at.
    guidance: the teacher's; None takes the family's. Students have none: it is distilled in.
    picture, strength: start from a picture and run the last `strength` of the steps on it.
    lora, lora_scale: a LoRA file of your own on top.
    """

    prompt: str
    network: Network
    steps: int | None = None
    seed: int = 0
    count: int = 1
    size: tuple[int, int] | None = None
    guidance: float | None = None
    picture: Image.Image | None = None
    strength: int | None = None
    lora: Path | None = None
    lora_scale: float = 1.0


@dataclass
class Seconds:
    """Where the time went; previews are not part of the total."""

    text: float = 0.0
    network: float = 0.0
    decode: float = 0.0
    previews: float = 0.0

    @property
    def total(self) -> float:
        return self.text + self.network + self.decode


@dataclass(frozen=True)
class Pictures:
    """What an order made. `evaluations`: network evaluations a picture; guidance counts twice."""

    images: list[Image.Image]
    seeds: list[int]
    steps: int
    evaluations: int
    guidance: float | None
    seconds: Seconds
    notes: tuple[str, ...] = ()


@dataclass
class Family:
    """The networks of a tier and what they share.

    pipe: a StableDiffusionPipeline or StableDiffusionXLPipeline; gives text encoders, tokenizers and VAE.
    base: the pristine scheduler config.
    sources: how each network is read. absent: why others are not here.
    place: puts a network where it computes, in the type it computes in.
    dtype: of the network's computations. resident: how many networks stay in memory.
    guidance: the teacher's, by default. tiny: a small decoder for previews.
    label: the model's name in a picture's settings.
    activate: called with a network before each use. turn: held while an order is drawn, where others must wait.
    """

    pipe: Any
    base: Mapping[str, Any]
    sources: Mapping[Network, Callable[[], UNet2DConditionModel]]
    absent: Mapping[Network, str]
    place: Place
    dtype: torch.dtype
    native: tuple[int, int]
    resident: int = 8
    guidance: float = 6.0
    tiny: AutoencoderTiny | None = None
    label: str = ""
    activate: Callable[[UNet2DConditionModel], None] | None = None
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.pipe)
        self._networks: OrderedDict[tuple[Any, ...], tuple[UNet2DConditionModel, tuple[str, ...]]] = OrderedDict()
        self._plans: dict[tuple[Network, int], schedulers.Plan] = {}
        self._loading = threading.Lock()

    @property
    def grid(self) -> int:
        """Sides are multiples of this many pixels."""
        return int(self.pipe.vae_scale_factor)

    def student(self, steps: int) -> Network:
        """The student of so many steps, as a full network where there is one, else as a LoRA.

        Raises `BadInput` for a step count that no student has, `WeightsNotFound` for one that is not here.
        """
        schedulers.student_scheduler(self.base, steps)
        for form in ("unet", "lora"):
            network = Network(steps, form)  # type: ignore[arg-type]
            if network in self.sources:
                return network
        raise WeightsNotFound(self.absent.get(Network(steps, "unet"), f"The {steps}-step student is not here."))

    def generate(self, order: Order, on_step: OnStep | None = None) -> Pictures:
        """Draws the pictures of an order.

        Args:
            on_step: gets (passes done, passes in all, a function that draws the present estimate of the first
                picture); may raise to stop, which takes effect before the next pass.

        Raises:
            BadInput: a prompt, size, count, seed, step count, strength or LoRA that cannot be used.
        """
        order = self.checked(order)
        with self.turn:
            return self._generate(order, on_step)

    def walk(self, order: Order, towards: str, frames: int, on_step: OnStep | None = None) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8 on the way from the order's prompt to another one; one seed for all.

        `on_step` may raise to stop. Raises `BadInput` as `generate` does.
        """
        if not 2 <= frames <= MOST_PICTURES:
            raise BadInput(f"A walk has 2 to {MOST_PICTURES} frames; got {frames}.")
        order, towards = self.checked(replace(order, count=1)), checked(towards)
        with self.turn:
            start, end = self.encoder.encode(order.prompt), self.encoder.encode(towards)
            shares = torch.linspace(0, 1, frames)
            for i, part in enumerate(shares.split(BATCH // 2)):
                seeds = [order.seed] * len(part)
                mixed = start.mixed(end, part)
                seconds = Seconds()
                report = self._report(on_step, i, -(-frames // (BATCH // 2)), seconds)
                clean = self._denoise(order, seeds, mixed, seconds, report)
                yield from self.decode(clean)

    def checked(self, order: Order) -> Order:
        """The order with every default filled in. Raises `BadInput` for what cannot be drawn."""
        prompt = checked(order.prompt)
        if order.network not in self.sources:
            why = self.absent.get(order.network, f"There is no {order.network.name} in this tier.")
            raise WeightsNotFound(why)
        is_teacher = order.network == TEACHER
        steps = order.steps if is_teacher else order.network.steps
        if steps is None:
            raise BadInput("Say how many steps the teacher shall run.")
        if order.steps not in (None, steps):
            raise BadInput(f"The {order.network.name} runs {steps} steps, not {order.steps}: each student has its own.")
        if not is_teacher and order.guidance is not None:
            raise BadInput("Students take no guidance: it was distilled into them. Leave it out.")
        guidance = (self.guidance if order.guidance is None else float(order.guidance)) if is_teacher else None
        if guidance is not None and not 1 <= guidance <= 30:
            raise BadInput(f"Guidance goes from 1 (none) to 30; got {guidance}.")
        if not 0 <= order.seed <= MOST_SEED:
            raise BadInput(f"Seeds go from 0 to {MOST_SEED}; got {order.seed}.")
        size = self._checked_size(order.size or self.native, order.count)
        if (order.picture is None) != (order.strength is None):
            raise BadInput("Image-to-image needs a picture and a strength.")
        if order.strength is not None and not 1 <= order.strength <= steps:
            raise BadInput(f"Of {steps} steps, 1 to {steps} can be run on a picture; got {order.strength}.")
        return replace(order, prompt=prompt, steps=steps, guidance=guidance, size=size)

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) latents as (B, H, W, 3) uint8 pictures."""
        vae = self.pipe.vae
        z = _unscaled(latents, vae.config)
        with torch.inference_mode():
            parts = [
                vae.decode(part.to(vae.dtype, memory_format=torch.channels_last), return_dict=False)[0].float()
                for part in z.split(BATCH // 2)
            ]
        return _to_pixels(torch.cat(parts))

    def preview(self, latents: Tensor) -> Image.Image:
        """A quick look at (1, C, h, w) latents, through the tiny decoder where there is one."""
        if self.tiny is None:
            return Image.fromarray(self.decode(latents)[0])
        with torch.inference_mode():
            out = self.tiny.decode(latents.to(self.tiny.device, self.tiny.dtype), return_dict=False)[0]
        return Image.fromarray(_to_pixels(out.float())[0])

    def encode(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """A picture, cut to `size`, as latents (1, C, h, w) float32."""
        vae = self.pipe.vae
        fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
        x = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            x = x.to(self.pipe._execution_device, vae.dtype, memory_format=torch.channels_last)
            found = vae.encode(x)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return scaled(latents.float(), vae.config)

    def read(self, network: Network) -> UNet2DConditionModel:
        """A network without a LoRA of the user's, ready to use."""
        return self.network(Order("", network))[0]

    def network(self, order: Order) -> tuple[UNet2DConditionModel, tuple[str, ...]]:
        """The order's network, read at its first use, and what is to be said of its LoRA.

        The ones used last stay in memory.
        """
        key: tuple[Any, ...] = (order.network,)
        if order.lora is not None:
            key += (order.lora, order.lora.stat().st_mtime_ns, order.lora_scale)
        with self._loading:
            if key in self._networks:
                self._networks.move_to_end(key)
                return self._networks[key]
            while len(self._networks) >= self.resident:
                self._networks.popitem(last=False)
            network = self.sources[order.network]()
            notes: tuple[str, ...] = ()
            if order.lora is not None:
                adapter = adapters.read(order.lora, network)
                adapters.fuse(network, adapter, order.lora_scale)
                notes = (adapter.summary,)
            self._networks[key] = self.place(network), notes
            return self._networks[key]

    def _generate(self, order: Order, on_step: OnStep | None) -> Pictures:
        assert order.steps is not None and order.size is not None
        seconds, started = Seconds(), time.perf_counter()
        condition = self.encoder.encode(order.prompt)
        seconds.text = time.perf_counter() - started
        seeds = [order.seed + i for i in range(order.count)]
        batches = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
        images: list[Image.Image] = []
        for i, batch in enumerate(batches):
            report = self._report(on_step, i, len(batches), seconds)
            clean = self._denoise(order, batch, condition.repeated(len(batch)), seconds, report)
            started = time.perf_counter()
            images += [Image.fromarray(pixels) for pixels in self.decode(clean)]
            seconds.decode += time.perf_counter() - started
        notes = condition.notes + self.network(order)[1]
        run = order.strength or order.steps
        guided = order.guidance is not None and order.guidance > 1
        return Pictures(images, seeds, run, run * (1 + guided), order.guidance, seconds, notes)

    def _denoise(
        self, order: Order, seeds: Sequence[Seed], condition: Conditioning, seconds: Seconds, on_step: Any
    ) -> Tensor:
        """Latents (B, C, h, w) of finished pictures, one a seed."""
        assert order.steps is not None and order.size is not None
        network, _ = self.network(order)
        if self.activate is not None:
            self.activate(network)
        started, previews = time.perf_counter(), seconds.previews
        plan = self._plan(order.network, order.steps)
        w, h = (side // self.grid for side in order.size)
        device = self.pipe._execution_device
        x = sampling.noise(seeds, (network.config.in_channels, h, w)).to(device)
        if order.picture is None:
            x = x * float(plan.sigmas[0])
        else:
            assert order.strength is not None
            plan = plan.last(order.strength)
            x = self.encode(order.picture, order.size) + x * float(plan.sigmas[0])
        guidance = None
        if order.guidance is not None and order.guidance > 1:
            empty = self.encoder.empty().repeated(len(seeds))
            guidance = (order.guidance, empty, self._extra(empty, order.size))
        clean = sampling.sample(
            network, plan, x, condition, extra=self._extra(condition, order.size), guidance=guidance, dtype=self.dtype,
            on_step=on_step,
        )  # fmt: skip
        seconds.network += time.perf_counter() - started - (seconds.previews - previews)
        return clean

    def _plan(self, network: Network, steps: int) -> schedulers.Plan:
        """The network's plan, from a fresh scheduler of the pristine config the first time."""
        if (network, steps) not in self._plans:
            fresh = (
                schedulers.teacher_scheduler(self.base)
                if network == TEACHER
                else schedulers.student_scheduler(self.base, steps)
            )
            self._plans[network, steps] = schedulers.plan(fresh, steps)
        return self._plans[network, steps]

    def _extra(self, condition: Conditioning, size: tuple[int, int]) -> dict[str, Tensor] | None:
        """SDXL's added conditioning: pooled text; original size, crop corner and target size."""
        if not isinstance(self.pipe, StableDiffusionXLPipeline):
            return None
        assert condition.pooled is not None
        ids = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]], device=condition.pooled.device)
        return {"text_embeds": condition.pooled, "time_ids": ids.float().repeat(len(condition.pooled), 1)}

    def _report(self, on_step: OnStep | None, batch: int, batches: int, seconds: Seconds) -> sampling.OnStep | None:
        if on_step is None:
            return None

        def report(done: int, steps: int, clean: Tensor) -> None:
            started = time.perf_counter()
            on_step(batch * steps + done, batches * steps, lambda: self.preview(clean[:1]))
            seconds.previews += time.perf_counter() - started

        return report

    def _checked_size(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        w, h = size
        native = self.native[0] * self.native[1]
        if w < 2 * self.grid or h < 2 * self.grid or w % self.grid or h % self.grid:
            raise BadInput(
                f"{w} x {h} is off the latent grid: sides are multiples of {self.grid}, from {2 * self.grid}."
            )
        if w * h > MOST_AREA * native:
            raise BadInput(
                f"{w} x {h} is more than {MOST_AREA} times {self.native[0]} x {self.native[1]}, which the model was "
                "made for. Choose a smaller size."
            )
        if not 1 <= count <= MOST_PICTURES or w * h * count > MOST_PICTURES * native:
            most = min(MOST_PICTURES, MOST_PICTURES * native // (w * h))
            raise BadInput(f"Of {w} x {h}, 1 to {most} pictures are drawn at once; got {count}.")
        return size


@dataclass(frozen=True)
class Student:
    """One student of a family: the short way from a script."""

    family: Family
    network: Network

    def generate(
        self, prompt: str, seed: int = 0, size: tuple[int, int] | None = None, count: int = 1
    ) -> list[Image.Image]:
        """`count` pictures of the prompt; the first from `seed`, the next ones from the following numbers.

        Raises `BadInput`.
        """
        return self.family.generate(Order(prompt, self.network, seed=seed, size=size, count=count)).images


def placed(device: str, dtype: torch.dtype) -> Place:
    """Puts a network on a device in a type, channels last, which is the fast layout for convolutions."""

    def place(network: nn.Module) -> nn.Module:
        # diffusers' own `to` warns about layers to be kept in float32, of which there are none.
        nn.Module.to(network, device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.eval().requires_grad_(False)

    return place


def scaled(latents: Tensor, config: Any) -> Tensor:
    """A VAE's latents as its pipeline's network takes them."""
    mean, std = _statistics(config, latents)
    if mean is None or std is None:
        return latents * config.scaling_factor
    return (latents - mean) / std * config.scaling_factor


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    mean, std = _statistics(config, latents)
    if mean is None or std is None:
        return latents / config.scaling_factor
    return latents * std / config.scaling_factor + mean


def _statistics(config: Any, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Mean and spread a channel, (1, C, 1, 1), where the VAE's config has them (SDXL's newer ones)."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return None, None
    return tuple(torch.tensor(v, device=like.device, dtype=like.dtype).view(1, -1, 1, 1) for v in (mean, std))  # type: ignore[return-value]


def _to_pixels(y: Tensor) -> np.ndarray:
    """(B, 3, H, W) in -1..1 as (B, H, W, 3) uint8."""
    pixels = (y / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
