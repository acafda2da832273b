"""Teaches a GELAN network to tell drawings apart before it learns to find them.

    python -m models.yolov9.pretrain --out runs/yolov9/pretrain

One drawing a picture, 64 then 96 px, 1 300 kinds: the COCO classes the art has, and every other emoji. The head is
left out; the three maps it would read are averaged and classified. A detection step sees far fewer objects a
second, so this is where two CPU cores learn most. Resumes from `last.pt`; `--init` of `models.yolov9.train`
takes the result.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.yolov9 import art
from models.yolov9.classes import COCO_NAMES
from models.yolov9.network import Network, build
from models.yolov9.scenes import Scenes
from models.yolov9.train import mixed_precision

SMALL, LARGE = 64, 96  # px
SMALL_UNTIL = 0.7  # share of the steps


class Classifier(nn.Module):
    """A network's three output maps, averaged over their positions, and one linear layer."""

    def __init__(self, network: Network, classes: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.LazyLinear(classes)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, S, S)` float in 0..1 to logits `(B, classes)`."""
        maps = self.network.features(images)
        return self.linear(torch.cat([m.mean((2, 3)) for m in maps], 1))


class Crops(Dataset):
    """One batch of single drawings a step."""

    def __init__(self, scenes: Scenes, start: int, steps: int, batch: int) -> None:
        self.scenes, self.start, self.steps, self.batch = scenes, start, steps, batch

    def __len__(self) -> int:
        return self.steps - self.start

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        size = SMALL if self.start + i < SMALL_UNTIL * self.steps else LARGE
        images, targets = self.scenes.make(self.start + i, self.batch, size)
        labels = torch.full((self.batch,), -100)  # a drawing that is out of the picture has no label
        labels[targets[:, 0].long()] = targets[:, 1].long()
        return images, labels


def load_scenes(folder: Path) -> tuple[Scenes, int]:
    """Every training drawing, and the number of kinds: COCO's 80 first, then the other emoji."""
    cutouts = art.load_cutouts(folder, art.TRAINING_VENDORS)
    others = [p for p in sorted((folder / art.OTHERS).iterdir()) if p.is_dir()]
    named = [(picture, label) for label, group in cutouts.items() for picture in group]
    for i, path in enumerate(others):
        named += [(picture, len(COCO_NAMES) + i) for picture in art.load_pictures_in(path, "RGBA")]
    pictures, labels = zip(*named, strict=True)
    scenes = Scenes(pictures, labels, art.load_pictures(folder / "photos", "RGB"), tuple(cutouts))
    return scenes, len(COCO_NAMES) + len(others)


def pretrain(folder: Path, out: Path, name: str, steps: int, batch: int, lr: float) -> None:
    """AdamW, one-cycle cosine, bf16; writes `last.pt` (resumable) with the network's state dict as `network`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    scenes, classes = load_scenes(folder)
    model = Classifier(build(name, len(COCO_NAMES)), classes).train()
    with torch.no_grad():
        model(torch.zeros(2, 3, SMALL, SMALL))  # gives the linear layer its width
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    start, last = 0, out / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        start = saved["step"]
    began, right, seen, total = time.monotonic(), 0, 0, 0.0
    loader = DataLoader(Crops(scenes, start, steps, batch), batch_size=None, num_workers=1, prefetch_factor=4)
    for step, (images, labels) in enumerate(loader, start=start):
        warm = min((step + 1) / 200, 1)
        optimiser.param_groups[0]["lr"] = lr * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        with mixed_precision("cpu"):
            logits = model(images.to(memory_format=torch.channels_last).float() / 255)
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        right += int((logits.argmax(1) == labels).sum())
        seen, total = seen + batch, total + loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            took = (time.monotonic() - began) / (step + 1 - start)
            print(
                f"{step + 1}/{steps} loss {total * batch / seen:.3f} right {right / seen:.3f} {took:.2f} s", flush=True
            )
            right, seen, total = 0, 0, 0.0
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save({**state, "network": model.network.state_dict()}, last.with_suffix(".tmp"))
            last.with_suffix(".tmp").replace(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, default=Path("runs/yolov9/art"))
    parser.add_argument("--out", type=Path, default=Path("runs/yolov9/pretrain"))
    parser.add_argument("--network", default="gelan-t")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    pretrain(args.art, args.out, args.network, args.steps, args.batch, args.lr)


if __name__ == "__main__":
    main()
