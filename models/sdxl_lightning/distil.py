"""Distils the teacher into students of 8, 4, 2 and 1 steps by the method of the paper (section 3).

    python -m models.sdxl_lightning.distil [--stages guided 8 4 2 1] [--teacher runs/sdxl_lightning/pipeline/unet]

Each stage's student learns to land in one step where the stage before it lands in several. `guided` is the paper's
128 -> 32 stage (here 64 -> 32): squared error, and only there classifier-free guidance. Every later stage first follows
its teacher by squared error, then by the adversarial objective with x_t shown to the discriminator, then without.
One addition of low rank over the frozen teacher is trained through all stages, so that what is saved after a stage is
that student's LoRA; for one step it is fused, turned to predict x_0 and trained whole.

Resumable: each phase has its state and log under `runs/sdxl_lightning/distil`; what a stage made is beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.sdxl_lightning.discriminator import Discriminator, discriminator_loss, generator_loss
from models.sdxl_lightning.flow import estimate
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import read_unet
from models.sdxl_lightning.pool import Pool
from models.sdxl_lightning.preview import Preview
from models.sdxl_lightning.recipe import RUNS, Average, Run, rate_at
from models.sdxl_lightning.schedule import LAST, Schedule, trailing
from models.weights import write_safetensors

SCALE = 3.0  # guidance of the first stage; the paper's 6 is SDXL's
BATCH = 32
RENOISED = (10, 250, 500, 750)  # one-step students are judged at these times (paper, 3.6)


@dataclass(frozen=True)
class Stage:
    """What one stage does.

    grid: its teacher takes the steps of trailing(grid). starts: positions on it, with weights, where steps begin.
    stride, count: the teacher's way: `count` steps, each over `stride` positions, or until clean.
    follow, judged, free: training steps of squared error, of the adversarial objective with x_t, and without.
    """

    name: str
    steps: int
    grid: int
    starts: dict[int, float]
    stride: int
    count: int
    follow: int
    judged: int = 0
    free: int = 0
    prediction: str = "v_prediction"


STAGES = {
    stage.name: stage
    for stage in (
        Stage("guided", 32, 64, dict.fromkeys(range(0, 64, 2), 1.0), 1, 2, follow=250),
        Stage("8", 8, 32, dict.fromkeys(range(0, 32, 4), 1.0), 1, 4, follow=120, judged=50, free=25),
        Stage("4", 4, 8, dict.fromkeys(range(0, 8, 2), 1.0), 1, 2, follow=160, judged=60, free=30),
        # Students of 2 and 1 steps also start at 750 and 250 (paper, 3.6: stability).
        Stage("2", 2, 4, {0: 4.0, 1: 1.0, 2: 4.0, 3: 1.0}, 1, 2, follow=200, judged=80, free=30),
        Stage("1", 1, 4, {0: 7.0, 1: 1.0, 2: 1.0, 3: 1.0}, 2, 2, follow=300, judged=100, free=30, prediction="sample"),
    )
}


@dataclass
class Teacher:
    """Whom a stage follows: the network, in the first stage only the empty prompt's states for guidance with a scale,
    and what it predicts."""

    network: nn.Module
    empty: Tensor | None = None
    scale: float = SCALE
    prediction: str = "v_prediction"


@dataclass(frozen=True)
class Leap:
    """A batch of steps to learn: from x at t (B,) to `target` at `to` (B,), -1 for clean; words (B, L, 384)."""

    x: Tensor
    t: Tensor
    to: Tensor
    words: Tensor
    target: Tensor


def leap(stage: Stage, teacher: Teacher, schedule: Schedule, clean: Tensor, words: Tensor) -> Leap:
    """Noised data and where the teacher lands from there. At T the start is pure noise (paper, 3.5)."""
    times = torch.tensor(trailing(stage.grid), device=clean.device)
    end = len(times) - 1
    places, weights = torch.tensor(list(stage.starts)), torch.tensor(list(stage.starts.values()))
    at = places[torch.multinomial(weights, len(clean), replacement=True)].to(clean.device)
    t = times[at]
    x = start = schedule.shown(clean, torch.randn_like(clean), t)
    with torch.no_grad():
        for _ in range(stage.count):
            following = (at + stage.stride).clamp(max=end)
            now = times[at].clamp(min=0)
            guess = estimate(
                teacher.network, teacher.prediction, schedule, x, now, words, teacher.empty, teacher.scale
            )  # fmt: skip
            there = schedule.moved(x, guess, now, times[following])
            x = torch.where((at == end)[:, None, None, None], x, there)
            at = following
    return Leap(start, t, times[at], words, x)


def following_loss(stage: Stage, schedule: Schedule, guess: Tensor, way: Leap) -> Tensor:
    """Squared error of the network's own prediction.

    The landing point is linear in it, so that this is the error of x_landed with a weight that depends on the times
    and keeps all of them equally hard.
    """
    if stage.prediction == "sample":
        return F.mse_loss(guess, way.target)
    clean = clean_that_lands(schedule, way)
    return F.mse_loss(
        (schedule.a(way.t) * way.x - guess) / schedule.s(way.t),
        (schedule.a(way.t) * way.x - clean) / schedule.s(way.t),
    )


def clean_that_lands(schedule: Schedule, way: Leap) -> Tensor:
    """The x_0 with which equation 3 leads from x_t to the target."""
    inside = way.to.clamp(min=0)
    end = (way.to < 0)[:, None, None, None]
    a_to = torch.where(end, 1.0, schedule.a(inside))
    ratio = torch.where(end, 0.0, schedule.s(inside)) / schedule.s(way.t)
    return (way.target - ratio * way.x) / (a_to - ratio * schedule.a(way.t))


def judged_at(stage: Stage, schedule: Schedule, way: Leap) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """How landing points are shown to the discriminator, and the time it is told.

    As they are; those of the one-step student get the same noise, at a random time of RENOISED.
    """
    if stage.prediction != "sample":
        return lambda landed: landed, way.to
    t = torch.tensor(RENOISED)[torch.randint(len(RENOISED), way.t.shape)].to(way.x.device)
    noise = torch.randn_like(way.x)
    return lambda landed: schedule.noised(landed, noise, t), t


class Source(Protocol):
    """Where pictures come from: `draw` gives latents (count, C, h, w) and words, a share of them empty, float32."""

    def draw(self, count: int, no_words: float) -> tuple[Tensor, Tensor]: ...


class Distiller:
    """Runs a stage's phases on a student, each resumable.

    Args:
        stage: of STAGES. teacher: whom to follow. student: the network to train (changed in place).
        judge: the network whose encoder the discriminators start as.
        folder: for states, logs and grids.
        source: of pictures. schedule: on their device.
        look: draws a student's grid with fixed noise, or None.
        batch: pictures that go through a network at once. gathered: how many such batches make a step.
    """

    def __init__(
        self, stage: Stage, teacher: Teacher, student: nn.Module, judge: nn.Module, folder: Path, source: Source,
        schedule: Schedule | None = None, look: Callable[[nn.Module, str, int], Image] | None = None,
        batch: int = BATCH, gathered: int = 1,
    ) -> None:  # fmt: skip
        self.stage, self.teacher, self.student, self.judge, self.folder = stage, teacher, student, judge, folder
        self.schedule, self.source, self.look = schedule or Schedule(), source, look
        self.batch, self.gathered = batch, gathered
        self.no_words = 0.1 if teacher.empty is None else 0.0  # guidance has no meaning without words

    def follow(self, rate: float) -> None:
        """Squared error."""
        optimiser = torch.optim.Adam(self._trained(), lr=rate, betas=(0.9, 0.999), fused=True)
        average = Average(self.student, 0.99)
        parts = {"student": self.student, "optimiser": optimiser, "average": average}
        run = Run(self.folder / f"{self.stage.name}-follow", parts, self.stage.follow)
        total = 0.0
        for step in run.remaining():
            _set_rate(optimiser, rate_at(rate, step, run.steps, warm=20))

            def loss() -> Tensor:
                way = self._leap()
                return following_loss(self.stage, self.schedule, self._estimate(way), way)

            total += descend([loss] * self.gathered, optimiser)
            average.update(self.student)
            if (step + 1) % 25 == 0:
                run.log(loss=total / 25)
                total = 0.0
        self._finish(average, run)

    def judged(self, pairs: bool, rate: float, judge_rate: float, anchor: float, normed: bool = True) -> None:
        """The adversarial objective; `pairs`: the discriminator sees x_t. A fresh discriminator each time.

        anchor: weight of the squared error that is kept beside it (the paper keeps none; runs this short need it).
        normed: whether the discriminator's head is spectrally normalised.
        """
        phase, steps = ("judged", self.stage.judged) if pairs else ("free", self.stage.free)
        torch.manual_seed(0)
        critic = Discriminator(self.judge, pairs, normed).to(self.schedule.alphas.device)
        optimiser = torch.optim.Adam(self._trained(), lr=rate, betas=(0.0, 0.99), fused=True)
        critics = torch.optim.Adam(critic.parameters(), lr=judge_rate, betas=(0.0, 0.99), fused=True)
        average = Average(self.student, 0.98)
        parts = {
            "student": self.student, "critic": critic, "optimiser": optimiser, "critics": critics, "average": average
        }  # fmt: skip
        run = Run(self.folder / f"{self.stage.name}-{phase}", parts, steps)
        sums = torch.zeros(4)
        for step in run.remaining():
            _set_rate(critics, judge_rate * min(1.0, (step + 1) / 10))
            _set_rate(optimiser, rate * min(1.0, max(0.0, (step - 20) / 10)))  # the critic learns first
            turns = [self._turn(critic) for _ in range(self.gathered)]
            critic.requires_grad_(True)
            descend([turn.critic_loss for turn in turns], critics)
            critic.requires_grad_(False)
            descend([partial(turn.student_loss, anchor) for turn in turns], optimiser)
            average.update(self.student)
            sums += torch.tensor([turn.figures for turn in turns]).mean(0)
            if (step + 1) % 20 == 0:
                critic_mean, adversarial_mean, near_mean, right = (sums / 20).tolist()
                run.log(critic=critic_mean, adversarial=adversarial_mean, near=near_mean, right=right)
                sums.zero_()
        self._finish(average, run)

    def _turn(self, critic: nn.Module) -> Turn:
        way = self._leap()
        guess = partial(self._estimate, way)
        return Turn(self.stage, self.schedule, critic, way, guess, *judged_at(self.stage, self.schedule, way))

    def _leap(self) -> Leap:
        return leap(self.stage, self.teacher, self.schedule, *self.source.draw(self.batch, self.no_words))

    def _estimate(self, way: Leap) -> Tensor:
        return estimate(self.student, self.stage.prediction, self.schedule, way.x, way.t, way.words)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.student.parameters() if p.requires_grad]

    def _finish(self, average: Average, run: Run) -> None:
        average.copy_to(self.student)
        if self.look is not None:
            self.look(self.student, self.stage.prediction, self.stage.steps).save(run.folder / "grid.png")


@dataclass
class Turn:
    """One batch of the adversarial game: first the critic learns from it, then the student.

    guess: computes the student's estimate; twice, so that no batch's graph waits for the others' turn.
    show, t: how landing points are shown, see `judged_at`.
    """

    stage: Stage
    schedule: Schedule
    critic: nn.Module
    way: Leap
    guess: Callable[[], Tensor]
    show: Callable[[Tensor], Tensor]
    t: Tensor
    figures: list[float] = field(default_factory=lambda: [0.0] * 4)  # the critic's, the student's, near; share right

    def critic_loss(self) -> Tensor:
        with torch.no_grad():
            landed = self._landed(self.guess())
        real, fake = self._logits(self.way.target), self._logits(landed)
        loss = discriminator_loss(real, fake)
        self.figures[0] = loss.item()
        self.figures[3] = ((real > 0).sum() + (fake < 0).sum()).item() / (2 * len(real))
        return loss

    def student_loss(self, anchor: float) -> Tensor:
        guess = self.guess()
        adversarial = generator_loss(self._logits(self._landed(guess)))
        near = following_loss(self.stage, self.schedule, guess, self.way)
        self.figures[1], self.figures[2] = adversarial.item(), near.item()
        return adversarial + anchor * near

    def _landed(self, guess: Tensor) -> Tensor:
        return self.schedule.moved(self.way.x, guess, self.way.t, self.way.to)

    def _logits(self, points: Tensor) -> Tensor:
        return self.critic(self.show(points), self.t, self.way.words, self.way.x, self.way.t)


def turned_to_sample(network: Any) -> Any:
    """Makes a v-predicting network predict x_0, in place: at T, x_0 = a x - s v is -v but for 7 % of x."""
    with torch.no_grad():
        last = Schedule().s(torch.tensor([LAST])).item()
        for parameter in network.conv_out.parameters():
            parameter.mul_(-last)
    return network


def run_stage(name: str, base: nn.Module, empty: Tensor, folder: Path, rates: Rates) -> None:
    """One stage; the stage before it must have been run. Leaves `<name>.safetensors` in the folder."""
    stage = STAGES[name]
    before = list(STAGES)[list(STAGES).index(name) - 1] if name != "guided" else None
    if before is None:
        student: nn.Module = LoraNetwork(base)
        teacher = Teacher(base, empty)
    else:
        followed = LoraNetwork(base).load(folder / f"{before}.safetensors")
        teacher = Teacher(followed.fused().eval().requires_grad_(False))
        student = turned_to_sample(followed.fused()) if name == "1" else followed
    # Discriminators start as the teacher: they judge what it makes.
    distiller = Distiller(stage, teacher, student, base, folder, Pool.load(), look=Preview().student)
    whole = name == "1"
    distiller.follow(rates.follow_whole if whole else rates.follow)
    save_student(student, folder / f"{name}-progressive.safetensors")
    if stage.judged:
        for pairs in (True, False):
            distiller.judged(pairs, rates.judged_whole if whole else rates.judged, rates.judge, rates.anchor)
    save_student(student, folder / f"{name}.safetensors")


@dataclass(frozen=True)
class Rates:
    """Learning rates; the paper's 1e-5 and 1e-6 are for batches of 512 and SDXL's 2.6 billion weights."""

    follow: float = 1e-3
    follow_whole: float = 3e-4
    judged: float = 1e-4
    judged_whole: float = 3e-5
    judge: float = 3e-4
    anchor: float = 0.5


def save_student(student: nn.Module, path: Path) -> None:
    if isinstance(student, LoraNetwork):
        student.save(path)
    else:
        write_safetensors(path, {name: value.half() for name, value in student.state_dict().items()})


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def descend(losses: Sequence[Callable[[], Tensor]], optimiser: torch.optim.Optimizer) -> float:
    """One step down the mean of losses, each computed and taken back on its own; gives the mean."""
    optimiser.zero_grad()
    total = 0.0
    for compute in losses:
        loss = compute() / len(losses)
        loss.backward()
        total += loss.item()
    for group in optimiser.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimiser.step()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--teacher", type=Path, default=RUNS / "pipeline" / "unet")
    parser.add_argument("--out", type=Path, default=RUNS / "distil")
    args = parser.parse_args()
    base = read_unet(args.teacher)
    empty = Pool.load().empty
    for name in args.stages:
        if not (args.out / f"{name}.safetensors").exists():
            run_stage(name, base, empty, args.out, Rates())


if __name__ == "__main__":
    main()
