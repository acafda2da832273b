"""Students by other methods, to be measured beside the shipped ones. They start from what is shipped; none is shipped.

    python -m models.sdxl_lightning.pool --vae assets/sdxl_lightning/vae     # once: the training pictures
    python -m models.sdxl_lightning.rivals lcm turbo adversarial-4           # resumable, in runs/sdxl_lightning/rivals
    python -m models.sdxl_lightning.compare                                  # measures those that are there

| name | what it is | budget |
|---|---|---|
| `lcm` | consistency distillation, one network for all step counts (`consistency`) | as many training steps of as many pictures as the shipped student of the step count, counted from the teacher |
| `turbo` | adversarial diffusion distillation in pixels (`turbo`) | the same |
| `adversarial-N` | stage N without its squared error: adversarial only, the published objective | the processor time of the shipped stage N |
| `progressive-N` | stage N, squared error only, the whole network instead of a LoRA | the steps of that part of the stage |
| `full-N` | the shipped LoRA merged, then the whole network by the unconditional objective: the paper's last step | in addition |
| `longer-N` | the shipped student with 300 adversarial steps more | in addition |
"""  # noqa: E501

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.errors import BadInput
from models.runtime import mixed_precision
from models.sdxl_lightning import consistency, turbo
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.distil import (
    BATCH,
    SCALE,
    STAGES,
    Distiller,
    Rates,
    Stage,
    Teacher,
    descend,
    save_student,
    turned_to_sample,
)
from models.sdxl_lightning.flow import estimate
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import build_unet, read_unet
from models.sdxl_lightning.pool import Pool
from models.sdxl_lightning.preview import Preview
from models.sdxl_lightning.recipe import RUNS, Average, Run
from models.sdxl_lightning.schedule import Schedule
from models.weights import ASSETS, read_safetensors

SHIPPED = ASSETS / "sdxl_lightning"
FOLDER = RUNS / "rivals"
RATE = 2e-4  # of the one-network rivals; heads of the Turbo-style one learn five times as fast

# Adversarial steps, with x_t shown and without, that take the processor time of the stage they replace.
ADVERSARIAL_ONLY = {"4": (105, 50), "2": (135, 65), "1": (175, 85)}
WHOLE = 60  # steps of the unconditional objective on the whole network; in the first 20 only the critic learns
LONGER = (200, 100)


def budget(steps: int) -> int:
    """Training steps of the shipped student of a step count, from the teacher on: its stage and those before it."""
    stages = [stage for stage in STAGES.values() if stage.steps >= steps]
    return sum(stage.follow + stage.judged + stage.free for stage in stages)


@dataclass(frozen=True)
class Cost:
    """What a student took beside or instead of what is shipped: training steps and seconds of processor time."""

    steps: int
    cpu: float

    @staticmethod
    def of(*folders: Path) -> Cost:
        """The sum over runs. Raises `FileNotFoundError` for one that has not begun."""
        states = [
            torch.load(folder / "last.pt", map_location="cpu", weights_only=True, mmap=True) for folder in folders
        ]
        return Cost(sum(state["step"] for state in states), sum(state.get("cpu", 0.0) for state in states))


def train_consistency(folder: Path, shipped: Path, steps: int) -> None:
    """The LCM-style student; leaves the target network on the way as `<training steps>.safetensors`."""
    teacher, pool, schedule = read_unet(shipped / "teacher_unet").eval(), Pool.load(), Schedule()
    torch.manual_seed(0)
    student = copy.deepcopy(teacher).train()
    target = copy.deepcopy(teacher).requires_grad_(False)
    teacher.requires_grad_(False)
    optimiser = torch.optim.Adam(student.parameters(), lr=RATE, fused=True)
    run = Run(folder, {"student": student, "target": target, "optimiser": optimiser}, steps)
    empty = pool.empty.float()

    def step() -> dict[str, float]:
        clean, words = pool.draw(BATCH, 0.0)
        loss = partial(
            consistency.consistency_loss, student, target, teacher, schedule, clean, words, empty, SCALE
        )  # fmt: skip
        mean = descend([loss], optimiser)
        consistency.follow(target, student)
        return {"loss": mean}

    _go(run, step, {"optimiser": (optimiser, RATE)}, lambda: target)


def train_turbo(folder: Path, shipped: Path, steps: int) -> None:
    """The Turbo-style student; leaves its average on the way as `<training steps>.safetensors`."""
    teacher, pool, schedule = read_unet(shipped / "teacher_unet").eval(), Pool.load(), Schedule()
    vae = PatchAutoencoder.from_pretrained(shipped / "vae").float().eval().requires_grad_(False)
    torch.manual_seed(0)
    features = turbo.Features()
    heads = turbo.Heads([64, 96, 128])
    student = copy.deepcopy(teacher).train()
    teacher.requires_grad_(False)
    optimiser = torch.optim.Adam(student.parameters(), lr=RATE, betas=(0.0, 0.99), fused=True)
    judges = torch.optim.Adam(heads.parameters(), lr=5 * RATE, betas=(0.0, 0.99), fused=True)
    average = Average(student, 0.98)
    parts = {"student": student, "heads": heads, "optimiser": optimiser, "judges": judges, "average": average}
    run = Run(folder, parts, steps)
    empty, times = pool.empty.float(), torch.tensor(turbo.TIMES)

    def seen(latents: torch.Tensor) -> list[torch.Tensor]:
        """What the frozen features say of latents' pictures."""
        with mixed_precision("cpu"):
            maps = features(vae.decode(latents, return_dict=False)[0])
        return [x.float() for x in maps]

    def step() -> dict[str, float]:
        clean, words = pool.draw(BATCH, 0.0)
        t = times[torch.randint(len(times), (len(clean),))]
        x = schedule.shown(clean, torch.randn_like(clean), t)
        found = estimate(student, "v_prediction", schedule, x, t, words)
        rows, columns = turbo.cut(clean)
        fake = seen(found[..., rows, columns])
        with torch.no_grad():
            real = seen(clean[..., rows, columns])
        heads.requires_grad_(True)
        judged = turbo.heads_loss(heads(real, words), heads([x.detach() for x in fake], words))
        penalty = turbo.gradient_penalty(heads, real, words)
        descend([lambda: judged + turbo.PENALTY * penalty], judges)
        heads.requires_grad_(False)
        adversarial = turbo.student_loss(heads(fake, words))
        distilled = turbo.distillation_loss(teacher, schedule, found, words, empty, SCALE)
        descend([lambda: adversarial + turbo.DISTILL * distilled], optimiser)
        average.update(student)
        return {"heads": judged.item(), "adversarial": adversarial.item(), "distilled": distilled.item()}

    def smooth() -> nn.Module:
        found = build_unet()
        average.copy_to(found)
        return found

    _go(run, step, {"optimiser": (optimiser, RATE), "judges": (judges, 5 * RATE)}, smooth)


def _go(
    run: Run, step: Callable[[], dict[str, float]], rates: Mapping[str, tuple[torch.optim.Optimizer, float]],
    result: Callable[[], nn.Module],
) -> None:  # fmt: skip
    """Runs the steps with a slow start, logs means, and saves the result after each 50 and after each budget."""
    kept = {budget(n) for n in (8, 4, 2, 1)} | {run.steps} | set(range(50, run.steps, 50))
    sums: dict[str, float] = {}
    for i in run.remaining():
        for optimiser, rate in rates.values():
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (i + 1) / 50)
        for name, value in step().items():
            sums[name] = sums.get(name, 0.0) + value / 20
        if (i + 1) % 20 == 0:
            run.log(**sums)
            sums.clear()
        if i + 1 in kept:
            save_student(result(), run.folder / f"{i + 1}.safetensors")


def shipped_student(name: str, shipped: Path) -> tuple[nn.Module, LoraNetwork | nn.Module]:
    """The teacher and a shipped student, as it was trained: over the teacher, or for one step whole."""
    base = read_unet(shipped / "teacher_unet")
    if name != "1":
        return base, LoraNetwork(base).load(shipped / f"lightning_{name}step_lora.safetensors")
    whole = build_unet()
    whole.load_state_dict(read_safetensors(shipped / "lightning_1step_unet_x0.safetensors"))
    return base, whole.train()


def train_stage(kind: str, name: str, folder: Path, shipped: Path) -> None:
    """A stage changed; its student is `student.safetensors` in the folder.

    Args:
        kind: adversarial, progressive, full or longer. name: of STAGES; it follows the shipped student before it.
    """
    stage, rates = STAGES[name], Rates()
    before = {"4": "8", "2": "4", "1": "2"}.get(name)
    if before is None and kind != "full":
        raise BadInput(f"{kind}-{name} would follow the 32-step student, which is not shipped. Choose 4, 2 or 1.")
    base, followed = shipped_student(before, shipped) if before else shipped_student(name, shipped)
    assert isinstance(followed, LoraNetwork)
    teacher = Teacher(followed.fused().eval().requires_grad_(False))
    student: nn.Module = followed
    if kind in ("full", "longer"):
        base, student = shipped_student(name, shipped)
    elif name == "1" or kind == "progressive":
        student = turned_to_sample(followed.fused()) if name == "1" else followed.fused()
    if kind == "full":
        assert isinstance(student, LoraNetwork)
        student = student.fused()
    distiller = Distiller(
        _changed(kind, stage), teacher, student, base, folder, Pool.load(), look=Preview().student
    )  # fmt: skip
    whole = not isinstance(student, LoraNetwork)
    if kind == "progressive":
        distiller.follow(rates.follow_whole)
    else:
        anchor = 0.0 if kind == "adversarial" else rates.anchor
        for pairs in (False,) if kind == "full" else (True, False):
            distiller.judged(pairs, rates.judged_whole if whole else rates.judged, rates.judge, anchor)
    save_student(student, folder / "student.safetensors")


def _changed(kind: str, stage: Stage) -> Stage:
    if kind == "adversarial":
        judged, free = ADVERSARIAL_ONLY[stage.name]
    else:
        judged, free = {"progressive": (0, 0), "full": (0, WHOLE), "longer": LONGER}[kind]
    return replace(stage, follow=stage.follow if kind == "progressive" else 0, judged=judged, free=free)


NAMES = (
    "lcm", "turbo", *(f"adversarial-{n}" for n in "421"), *(f"progressive-{n}" for n in "42"),
    *(f"full-{n}" for n in "842"), *(f"longer-{n}" for n in "21"),
)  # fmt: skip


def train(name: str, folder: Path = FOLDER, shipped: Path = SHIPPED, steps: int | None = None) -> None:
    """Trains one of NAMES in `folder / name`. `steps`: for lcm and turbo, by default the 1-step student's budget."""
    if name in ("lcm", "turbo"):
        (train_consistency if name == "lcm" else train_turbo)(folder / name, shipped, steps or budget(1))
        return
    kind, _, stage = name.partition("-")
    train_stage(kind, stage, folder / name, shipped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=NAMES)
    parser.add_argument("--steps", type=int, help="of lcm and turbo; they go on from where they are")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    for name in args.names:
        train(name, args.out, steps=args.steps)


if __name__ == "__main__":
    main()
