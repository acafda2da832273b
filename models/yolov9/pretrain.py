"""Teaches a YOLOv9 training form the classes, on single drawings, before it learns to detect them.

    python -m models.yolov9.pretrain --out runs/yolov9/pretrain

The whole network but its box towers is trained: each of the six class maps (three levels, main and auxiliary) must
name the drawing in the middle of the picture. Sixty-four pixels suffice for that, so that a core sees a few hundred
pictures a second, where detection sees ten or twenty. Detection starts from the result
(`models.yolov9.train --init`). Ours, not the paper's: the paper trains for 500 epochs on 118 000 photographs.

A map's logits are averaged over its middle and compared by cross entropy with a further logit of zero for
"nothing known", which makes their sigmoids meaningful to the detection loss that follows.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from models.errors import BadInput
from models.runtime import mixed_precision
from models.yolov9 import art
from models.yolov9.blocks import DFL
from models.yolov9.classes import COCO_NAMES
from models.yolov9.crops import Crops
from models.yolov9.network import DualDetect, Network, build
from models.yolov9.train import Average, Recipe, make_optimiser, set_rates

CLASSES = len(COCO_NAMES)
HALF_WIDTH = 2.5  # cells from an object's middle to its sides, about
RARE = 1000  # an anchor point in so many lies on an object of a given class


@dataclass(frozen=True)
class Pretraining:
    """Sizes in pixels; every `large_every`-th batch is of the larger size."""

    network: str = "yolov9-t"
    class_width: int = 80
    steps: int = 3000
    batch: int = 64
    size: int = 64
    large: int = 96
    large_every: int = 6
    ramp: float = 0.3  # share of the steps after which the drawings are changed at full strength
    lr: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    seed: int = 0

    def schedule(self) -> Recipe:
        """The same as a recipe of `train`: AdamW, warm-up, cosine, average."""
        return Recipe(
            network=self.network, optimiser="adamw", schedule="cosine", lr=self.lr, weight_decay=self.weight_decay,
            warmup_epochs=0, warmup_steps=100, warmup_bias_lr=0.0, accumulate=False, ema_decay=0.998, ema_ramp=200,
        )  # fmt: skip


def ready_for_detection(head: DualDetect) -> None:
    """Biases for small pictures: few anchor points lie on an object, and an object is a few cells wide. The usual
    start, boxes 15 cells wide, would leave every object of such a picture to the finest level."""
    for tower in (*head.cv3, *head.cv5):
        tower[-1].bias -= math.log(RARE)  # type: ignore[index, operator]
    bins = torch.arange(DFL.BINS, dtype=torch.float32)
    distance = -(((bins - HALF_WIDTH) / 2) ** 2) / 2
    for tower in (*head.cv2, *head.cv4):
        tower[-1].bias.copy_(distance.repeat(4))  # type: ignore[index, operator, union-attr]


class _Batches(Dataset):
    """One batch a step, made beside the training."""

    def __init__(self, crops: Crops, how: Pretraining, start: int) -> None:
        self.crops, self.how, self.start = crops, how, start

    def __len__(self) -> int:
        return self.how.steps - self.start

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        how, step = self.how, self.start + i
        size = how.large if step % how.large_every == 0 else how.size
        strength = min(0.3 + 0.7 * step / (how.ramp * how.steps), 1.0)
        return self.crops.batch((how.seed, 0, step), how.batch, size, strength)


class ClassMaps(nn.Module):
    """A dual head without its box towers: three auxiliary and three main class maps (in eval: the main ones)."""

    def __init__(self, head: DualDetect) -> None:
        super().__init__()
        self.auxiliary, self.main = head.cv3, head.cv5

    def forward(self, *xs: Tensor) -> list[Tensor]:
        main = [tower(x) for tower, x in zip(self.main, xs[-3:], strict=True)]
        if not self.training:
            return main
        return main + [tower(x) for tower, x in zip(self.auxiliary, xs[:3], strict=True)]


def pretrain(how: Pretraining, crops: Crops, held_out: Crops, out: Path) -> Network:
    """Runs (or resumes) a pretraining; leaves `last.pt` (full state) in `out` and, at the end,
    `detector.pt`, which `train --init` takes. Returns the averaged network as in that file."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(how.seed)
    net = build(how.network, CLASSES, training=True, class_width=how.class_width).to(memory_format=torch.channels_last)
    head = net.head
    assert isinstance(head, DualDetect)
    recipe = how.schedule()
    for tower in (*head.cv3, *head.cv5):
        nn.init.zeros_(tower[-1].bias)  # type: ignore[index, arg-type]
    average = Average(net, recipe)
    optimiser = make_optimiser(net, recipe)
    start, seconds = 0, 0.0
    last = out / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        if saved["recipe"] != _plain(how):
            raise BadInput(f"{out.name} holds a run of another recipe. Choose a new --out, or delete it.")
        net.load_state_dict(saved["net"])
        average.load(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        start, seconds = saved["step"], saved["seconds"]
    tested = held_out.batch((how.seed, 1), 600, how.size)
    started, losses, hits = time.monotonic() - seconds, 0.0, 0.0
    loader = DataLoader(_Batches(crops, how, start), batch_size=None, num_workers=1, prefetch_factor=4)
    for step, (images, labels) in zip(range(start, how.steps), loader, strict=True):
        set_rates(optimiser, recipe, step, 1, how.steps)
        net.model[-1] = ClassMaps(head)
        net.train()
        with mixed_precision("cpu"):
            maps: Any = net(images.contiguous(memory_format=torch.channels_last))
        logits = [middle(m) for m in maps]
        loss = torch.stack([F.cross_entropy(x, labels, label_smoothing=how.smoothing) for x in logits]).mean()
        loss.backward()
        net.model[-1] = head
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(net)
        losses += loss.item()
        hits += float((sum(logits[:3], torch.zeros(())).argmax(1) == labels).float().mean())
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}/{how.steps}  {(time.monotonic() - started) / 60:.1f} min  "
                f"loss {losses / 50:.3f}  right {hits / 50:.3f}",
                flush=True,
            )
            losses, hits = 0.0, 0.0
        if (step + 1) % 200 == 0 or step + 1 == how.steps:
            content = {"recipe": _plain(how), "net": net.state_dict(), "average": average.state()}
            state = {"optimiser": optimiser.state_dict(), "step": step + 1, "seconds": time.monotonic() - started}
            torch.save({**content, **state}, last.with_suffix(".tmp"))
            last.with_suffix(".tmp").replace(last)
            copy = build(how.network, CLASSES, training=True, class_width=how.class_width)
            right = accuracy(average.network(copy), *tested)
            print(f"  held-out vendor: {right:.3f} right", flush=True)
    average.network(net)
    with torch.no_grad():
        ready_for_detection(head)
    torch.save({"average": {"tensors": net.state_dict()}}, out / "detector.pt")
    return net


def _plain(how: Pretraining) -> dict[str, Any]:
    """What a resumed run must share: a run may be cut short or made longer."""
    return {k: v for k, v in asdict(how).items() if k != "steps"}


def middle(logits: Tensor) -> Tensor:
    """A class map `(n, classes, h, w)` averaged over its middle, and a zero for "nothing": `(n, classes + 1)`."""
    margin = max(logits.shape[-1] // 4, 0) if logits.shape[-1] > 2 else 0
    end = logits.shape[-1] - margin
    mean = logits[:, :, margin:end, margin:end].float().mean((2, 3))
    return F.pad(mean, (0, 1))


@torch.inference_mode()
def accuracy(net: Network, images: Tensor, labels: Tensor) -> float:
    """Share of crops that the main branch names, its three levels together."""
    head = net.head
    assert isinstance(head, DualDetect)
    net.model[-1] = ClassMaps(head)
    net.eval()
    right = 0
    for x, y in zip(images.split(100), labels.split(100), strict=True):
        maps: Any = net(x.contiguous(memory_format=torch.channels_last))
        right += int((sum((middle(m) for m in maps), torch.zeros(())).argmax(1) == y).sum())
    net.model[-1] = head
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, default=Path("runs/yolov9/art"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Pretraining.steps)
    parser.add_argument("--seed", type=int, default=Pretraining.seed)
    args = parser.parse_args()
    how = Pretraining(steps=args.steps, seed=args.seed)
    crops = Crops(args.art, art.TRAINING_VENDORS)
    pretrain(how, crops, Crops(args.art, (art.HELD_OUT_VENDOR,), seed=1), args.out)


if __name__ == "__main__":
    main()
