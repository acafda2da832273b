"""Trains a YOLOv9 (with PGI) or GELAN network; resumes by itself from the last checkpoint in `--out`.

    python -m models.yolov9.train --data embedded --init runs/yolov9/pretrain/detector.pt --out runs/yolov9/embedded
    python -m models.yolov9.train --data embedded --init runs/yolov9/embedded/last.pt --out runs/yolov9/more \\
        --epochs 9 --lr 8e-4 --seed 1                                             # the shipped weights: these two runs
    python -m models.yolov9.train --data my/data.yaml --out runs/yolov9/mine      # YOLO format
    python -m models.yolov9.train --data my/annotations.json --images my/images --out runs/yolov9/mine   # COCO

Loss, schedule and augmentation follow the specification, section 11 (the official repository's values are
the defaults of `Recipe`). The embedded recipe differs where two CPU cores ask for it; see `EMBEDDED`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models import weights
from models.errors import BadInput
from models.runtime import mixed_precision
from models.yolov9 import art
from models.yolov9.checkpoint import to_inference
from models.yolov9.compose import Composer
from models.yolov9.crops import restyled
from models.yolov9.data import Batches, CompositeBatches, FolderBatches, Stage
from models.yolov9.datasets import DataSet
from models.yolov9.loss import Losses, detection_loss
from models.yolov9.network import Network, build

NOMINAL_BATCH = 64
# Of t and s: the head's layer in either form, and the auxiliary neck's layers by those of the main one.
HEAD, TRAINING_HEAD = 22, 29
AUXILIARY_COPIES = {9: 22, 12: 25, 15: 28}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run; the defaults are the official ones."""

    network: str = "yolov9-t"
    class_width: int | None = None
    size: int = 640
    batch: int = 16
    epochs: int = 500
    optimiser: str = "sgd"  # or "adamw"
    lr: float = 0.01
    final_lr: float = 0.01  # share of lr at the end
    schedule: str = "linear"  # or "cosine"
    momentum: float = 0.937
    weight_decay: float = 5e-4
    warmup_epochs: float = 3
    warmup_steps: int = 100  # at least
    warmup_bias_lr: float = 0.1
    accumulate: bool = True  # gradients up to a batch of 64
    ema_decay: float = 0.9999
    ema_ramp: int = 2000
    clip: float = 10.0
    close_mosaic: int = 15  # epochs without mosaic at the end
    save_every: int = 200  # steps
    seed: int = 0


# AdamW instead of SGD, no accumulation and a shorter average, because these steps are less than one in a thousand
# of the official schedule. Small pictures filled by a few objects first: many more for the same time, so that the
# classes are learnt. The network starts from `models.yolov9.pretrain`.
EMBEDDED = Recipe(
    class_width=80,
    epochs=20,
    optimiser="adamw",
    lr=1e-3,
    schedule="cosine",
    weight_decay=0.05,
    warmup_epochs=1,
    warmup_bias_lr=0.0,
    accumulate=False,
    ema_decay=0.998,
    ema_ramp=300,
    save_every=100,
)
EMBEDDED_STAGES = (
    Stage(0.8, (96, 128, 160), most=3, extent=(0.2, 0.95)),
    Stage(1.0, (160, 192, 224), most=6, extent=(0.09, 0.85)),
)


def train(recipe: Recipe, data: Batches, out: Path, device: str = "cpu", network: Network | None = None) -> Network:
    """Runs (or resumes) a recipe; leaves `last.pt` (full state), `best.safetensors` (average, inference form)
    and `log.csv` in `out`. Returns the averaged network in its training form, in eval mode.

    `network` replaces the one that the recipe names (an ablation's variant of it).
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    net = network or build(recipe.network, data.classes, training=True, class_width=recipe.class_width)
    net = net.to(device).to(memory_format=torch.channels_last)
    average = Average(net, recipe)
    optimiser = make_optimiser(net, recipe)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0}
    last = out / "last.pt"
    if last.exists():
        saved = torch.load(last, map_location=device, weights_only=True)
        if saved["recipe"] != _plain(recipe):
            raise BadInput(f"{out.name} holds a run of another recipe. Choose a new --out, or delete it.")
        net.load_state_dict(saved["net"])
        average.load(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        state = saved["state"]
    total = recipe.epochs * data.steps_per_epoch
    accumulate = max(round(NOMINAL_BATCH / recipe.batch), 1) if recipe.accumulate else 1
    log = out / "log.csv"
    _cut_log(log, state["step"])
    started = time.monotonic() - state["seconds"]
    reported = _Mean()
    for step, (images, targets) in _resumed(data, state["step"], total):
        set_rates(optimiser, recipe, step, data.steps_per_epoch, total)
        losses = _step(net, images.to(device), targets.to(device))
        (losses.total / images.shape[0] if recipe.optimiser == "adamw" else losses.total).backward()
        if (step + 1) % accumulate == 0 or step + 1 == total:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(net)
        reported.add(losses)
        if (step + 1) % 20 == 0:
            seconds = time.monotonic() - started
            with log.open("a") as file:
                file.write(f"{step + 1},{seconds:.1f},{images.shape[-1]},{reported.take()}\n")
        if (step + 1) % recipe.save_every == 0 or step + 1 == total:
            state = {"step": step + 1, "seconds": time.monotonic() - started}
            _save(last, recipe, net, average, optimiser, state)
            weights.write_safetensors(
                out / "best.safetensors",
                {k: v.half() if v.is_floating_point() else v for k, v in average.inference_form().items()},
                {"recipe": json.dumps(asdict(recipe)), "state": json.dumps(state)},
            )
            print(f"step {step + 1}/{total}  {state['seconds'] / 60:.1f} min", flush=True)
    return average.network(net)


def started_from(path: Path, recipe: Recipe, classes: int) -> Network:
    """The recipe's network with the averaged weights of another run's `last.pt`, or of an inference-form
    safetensors file of t or s; what such a file lacks, PGI's auxiliary branch, starts as a copy of the main one."""
    net = build(recipe.network, classes, training=True, class_width=recipe.class_width)
    if path.suffix != ".safetensors":
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["average"]["tensors"])
        return net
    state = net.state_dict()
    for name, value in weights.read_safetensors(path).items():
        main, copy = _training_names(name)
        if main not in state or state[main].shape != value.shape:
            raise BadInput(f"{path.name} is no {recipe.network} with {classes} classes in its inference form.")
        for target in (main, copy):
            if target in state and state[target].shape == value.shape:  # the class towers may differ in width
                state[target] = value.to(state[target].dtype)
    net.load_state_dict(state)
    return net


def _training_names(name: str) -> tuple[str, str]:
    """Where a tensor of gelan-t or gelan-s goes in the training form: in the main branch, and as an auxiliary copy."""
    layer, _, rest = name.removeprefix("model.").partition(".")
    if int(layer) == HEAD:
        part, _, place = rest.partition(".")
        main = {"cv2": "cv4", "cv3": "cv5", "dfl": "dfl2"}[part]
        return f"model.{TRAINING_HEAD}.{main}.{place}", f"model.{TRAINING_HEAD}.{rest}"
    return name, f"model.{AUXILIARY_COPIES.get(int(layer), layer)}.{rest}"


class Average:
    """Exponential moving average of every float tensor of the state dict (decay ramps up)."""

    def __init__(self, net: Network, recipe: Recipe) -> None:
        self.tensors = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.updates = 0
        self.dual = recipe.network.startswith("yolov9")
        self.decay, self.ramp = recipe.ema_decay, recipe.ema_ramp

    @torch.no_grad()
    def update(self, net: Network) -> None:
        self.updates += 1
        keep = self.decay * (1 - math.exp(-self.updates / self.ramp))
        for k, v in net.state_dict().items():
            if v.is_floating_point():
                self.tensors[k].lerp_(v, 1 - keep)
            else:
                self.tensors[k].copy_(v)

    def load(self, saved: dict[str, Any]) -> None:
        self.updates = saved["updates"]
        self.tensors = saved["tensors"]

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "tensors": self.tensors}

    def network(self, net: Network) -> Network:
        net.load_state_dict(self.tensors)
        return net.eval()

    def inference_form(self) -> dict[str, Tensor]:
        """What inference needs: the main branch. A `gelan-*` has nothing else."""
        return to_inference(self.tensors) if self.dual else self.tensors


def make_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Three groups: biases and norm weights without decay, convolution weights with it."""
    norms = {id(p) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in (m.weight,)}
    trainable = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    bias = [p for n, p in trainable if n.endswith(".bias")]
    norm = [p for n, p in trainable if id(p) in norms]
    weight = [p for n, p in trainable if not n.endswith(".bias") and id(p) not in norms]
    decay = recipe.weight_decay
    if recipe.accumulate:
        decay *= recipe.batch * max(round(NOMINAL_BATCH / recipe.batch), 1) / NOMINAL_BATCH
    groups: list[dict[str, Any]] = [
        {"params": bias, "weight_decay": 0.0, "name": "bias"},
        {"params": weight, "weight_decay": decay, "name": "weight"},
        {"params": norm, "weight_decay": 0.0, "name": "norm"},
    ]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=True)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, betas=(0.9, 0.999))
    raise BadInput(f"Unknown optimiser {recipe.optimiser!r}. Choose sgd or adamw.")


def set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int, per_epoch: int, total: int) -> None:
    """Learning rates and momentum of this step: warm-up, then linear or cosine decay."""
    at = step / max(total - 1, 1)
    if recipe.schedule == "cosine":
        share = recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * at)) / 2
    else:
        share = 1 - at * (1 - recipe.final_lr)
    warm = min(step / max(recipe.warmup_epochs * per_epoch, recipe.warmup_steps), 1)
    for group in optimiser.param_groups:
        start = recipe.warmup_bias_lr if group["name"] == "bias" else 0.0
        group["lr"] = start + warm * (recipe.lr * share - start)
        if "momentum" in group:
            group["momentum"] = 0.8 + warm * (recipe.momentum - 0.8)


def _step(net: Network, images: Tensor, targets: Tensor) -> Losses:
    images = images.to(memory_format=torch.channels_last).float() / 255
    with mixed_precision(images.device.type):
        outputs = net(images)
    assert not isinstance(outputs, Tensor)
    return detection_loss(outputs, targets)


def _resumed(data: Batches, start: int, total: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    loader = DataLoader(data.from_step(start, total), batch_size=None, num_workers=1, prefetch_factor=8)
    return zip(range(start, total), loader, strict=True)


def _save(path: Path, recipe: Recipe, net: Network, average: Average, optimiser: Any, state: dict[str, Any]) -> None:
    """Writes the whole state beside `path`, then renames: a kill leaves the previous file intact."""
    temporary = path.with_suffix(".tmp")
    content = {"recipe": _plain(recipe), "net": net.state_dict(), "average": average.state()}
    torch.save({**content, "optimiser": optimiser.state_dict(), "state": state}, temporary)
    temporary.replace(path)


def _cut_log(log: Path, step: int) -> None:
    """Starts the log, or drops the lines of steps that were lost and will be made again."""
    lines = log.read_text().splitlines() if log.exists() else []
    kept = [line for line in lines[1:] if int(line.split(",")[0]) <= step]
    log.write_text("\n".join(["step,seconds,size,total,box,class,dfl", *kept]) + "\n")


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that a resumed run must share: it may be cut short or made longer."""
    return {k: v for k, v in asdict(recipe).items() if k not in ("save_every", "epochs")}


class _Mean:
    """Running means between two log lines."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def add(self, losses: Losses) -> None:
        terms = (losses.box + losses.cls + losses.dfl, losses.box, losses.cls, losses.dfl)
        self.rows.append(tuple(t.item() for t in terms))

    def take(self) -> str:
        columns = zip(*self.rows, strict=True)
        text = ",".join(f"{sum(c) / len(self.rows):.4f}" for c in columns)
        self.rows = []
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="'embedded', a YOLO data.yaml, or a COCO annotation file")
    parser.add_argument("--images", type=Path, help="image folder of a COCO annotation file")
    parser.add_argument("--art", type=Path, default=Path("runs/yolov9/art"), help="cut-outs of models.yolov9.art")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from this run's last.pt, or from a safetensors file")
    parser.add_argument("--device", default="cpu")
    for name, kind in (
        ("network", str), ("class-width", int), ("size", int), ("batch", int), ("epochs", int),
        ("optimiser", str), ("lr", float), ("seed", int),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind)
    args = parser.parse_args()
    recipe = EMBEDDED if args.data == "embedded" else Recipe()
    given = {k: v for k, v in vars(args).items() if v is not None and hasattr(recipe, k)}
    recipe = replace(recipe, **given)
    data: Batches
    if args.data == "embedded":
        plain = Composer.from_art(args.art)
        composer = Composer(restyled(args.art, art.TRAINING_VENDORS), plain.distractors, plain.photos)
        data = CompositeBatches(composer, EMBEDDED_STAGES, recipe.batch, recipe.epochs, recipe.seed)
    else:
        found = DataSet.read(Path(args.data), args.images)
        mosaic_until = recipe.epochs - recipe.close_mosaic
        data = FolderBatches(found, recipe.size, recipe.batch, recipe.seed, mosaic_until)
    train(recipe, data, args.out, args.device, started_from(args.init, recipe, data.classes) if args.init else None)


if __name__ == "__main__":
    main()
