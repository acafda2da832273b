"""Measures the rivals (`models.sdxl_lightning.rivals`) beside the shipped students, on the same held-out captions.

    python -m models.sdxl_lightning.compare [--count 1000]       # assets/sdxl_lightning/evidence/rivals.json

What each draws is kept as features under `runs/sdxl_lightning/rivals/features`, so that it goes on where it stopped and
only new students are drawn. Each row says what the student cost, and how far its distances are from those of the
shipped student of its step count, with the middle 95 % of resampled captions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.records import record
from models.sdxl_lightning import turbo
from models.sdxl_lightning.consistency import restarted
from models.sdxl_lightning.evaluate import OFFERED, SHIPPED, Model, Ruler, models, one_step
from models.sdxl_lightning.judge import frechet_distance
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import build_unet, read_unet
from models.sdxl_lightning.rivals import FOLDER, Cost, budget
from models.weights import read_safetensors, sha256_of, write_safetensors

RESAMPLED = 50  # times, of the captions


@dataclass(frozen=True)
class Entry:
    """A model to measure, the file that holds it, and what its training took (None: not known as processor time)."""

    model: Model
    path: Path
    cost: Cost | None
    share: float | None = None  # of the shipped student's training steps, where those are the budget


def shipped(folder: Path) -> Iterator[Entry]:
    """The students in `folder`, fewest steps last."""
    for model in models(folder):
        if model.name == "teacher":
            continue
        name = f"lightning_{model.steps}step_lora" if model.steps > 1 else "lightning_1step_unet_x0"
        yield Entry(model, folder / f"{name}.safetensors", None)


def rivals(folder: Path, runs: Path) -> Iterator[Entry]:
    """The rivals that have been trained. LCM and Turbo are taken where they had the shipped student's training steps,
    or else where they are."""
    for kind, name in (("lcm", "LCM-style"), ("turbo", "Turbo-style")):
        found = sorted(int(path.stem) for path in (runs / kind).glob("[0-9]*.safetensors"))
        for steps in (8, 4, 2, 1) if found else ():
            if kind == "turbo" and steps == 8:
                continue  # it starts at four times only
            taken = max((n for n in found if n <= budget(steps)), default=found[0])
            path = runs / kind / f"{taken}.safetensors"
            network = _whole(path)
            draws = partial(_restarted, network, kind, steps)
            share = taken / budget(steps)
            yield Entry(Model(f"{name}, full", steps, network, draws=draws), path, _part(runs / kind, taken), share)
    for path in sorted(runs.glob("*-[0-9]/student.safetensors")):
        kind, _, name = path.parent.name.partition("-")
        costs = [run for run in path.parent.iterdir() if (run / "last.pt").exists()]
        yield Entry(_changed(kind, name, path, folder), path, Cost.of(*costs))


def _changed(kind: str, name: str, path: Path, folder: Path) -> Model:
    said = {
        "adversarial": "adversarial only", "progressive": "progressive only", "full": "merged and trained whole",
        "longer": "longer adversarial phases",
    }[kind]  # fmt: skip
    if name == "1":
        return one_step(f"{said}, full", path)
    state = read_safetensors(path)
    if any(key.startswith("unet.") for key in state):
        fused = LoraNetwork(read_unet(folder / "teacher_unet")).load(path).fused().eval()
        return Model(f"{said}, LoRA", int(name), fused)
    return Model(f"{said}, full", int(name), _whole(path))


def _whole(path: Path) -> nn.Module:
    network = build_unet().eval()
    network.load_state_dict(read_safetensors(path))
    return network


def _restarted(network: nn.Module, kind: str, steps: int, noise: Tensor, words: Tensor) -> Tensor:
    """Both are sampled by estimating and adding noise again; Turbo at the times it was trained for."""
    if kind == "lcm":
        return restarted(network, steps, noise, words)
    return restarted(network, steps, noise, words, times=turbo.TIMES[:: 4 // steps], bounded=False)


def _part(run: Path, steps: int) -> Cost:
    """What a run had cost when it had made so many steps, in proportion."""
    whole = Cost.of(run)
    return Cost(steps, whole.cpu * steps / whole.steps)


def interval(ruler: Ruler, mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> dict[str, list[float]]:
    """How much larger my distances and match are than theirs: the middle 95 % over resampled captions.

    The same captions are drawn again for both, so that what resampling adds to a distance cancels.
    """
    generator, found = torch.Generator().manual_seed(0), []
    hits = [ruler.matched(side[0]).float() for side in (mine, theirs)]
    for _ in range(RESAMPLED):
        at = torch.randint(len(mine[0]), (len(mine[0]),), generator=generator)
        distances = [
            [frechet_distance(side[k][at], ruler.real[k][at]) for k in (0, 1)] for side in (mine, theirs)
        ]  # fmt: skip
        (whole, patch), (their_whole, their_patch) = distances
        found.append([whole - their_whole, patch - their_patch, float((hits[0][at] - hits[1][at]).mean())])
    low, high = torch.tensor(found).quantile(torch.tensor([0.025, 0.975]), dim=0).tolist()
    return {name: [low[i], high[i]] for i, name in enumerate(("fid", "patch_fid", "match"))}


def compared(folder: Path, runs: Path, count: int, steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What is to be recorded after each rival: step counts in the order given, the shipped student first."""
    ruler, rows = Ruler(folder, count), []
    mine, others = list(shipped(folder)), list(rivals(folder, runs))
    for n in steps:
        base: tuple[Tensor, Tensor] | None = None
        for entry in [entry for entry in [*mine, *others] if entry.model.steps == n]:
            features = _features(ruler, entry, runs / "features", count)
            row: dict[str, object] = asdict(ruler.row(entry.model, *features))
            if entry.cost is None:
                base = features
                row["training_steps"] = budget(n)
            else:
                row |= {"training_steps": entry.cost.steps, "share": entry.share, "cpu_minutes": entry.cost.cpu / 60}
                if base is not None:
                    row["against_shipped"] = interval(ruler, features, base)
            rows.append(row)
            yield {"captions": count, "offered": OFFERED, "resampled": RESAMPLED, "rows": rows}


def _features(ruler: Ruler, entry: Entry, folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """From the folder if this very file was drawn before."""
    kept = folder / f"{sha256_of(entry.path)[:16]}-{entry.model.steps}-{count}.safetensors"
    if not kept.exists():
        whole, patch = ruler.of(entry.model)
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(kept, {"whole": whole, "patch": patch})
    found = read_safetensors(kept)
    return found["whole"], found["patch"]


def merged(before: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A result with the rows of an earlier record, of as many captions, that it does not have: rivals whose runs are no
    longer there."""
    if any(before.get(name) != result[name] for name in ("captions", "offered", "resampled")):
        return result
    mine = {(row["name"], row["steps"]) for row in result["rows"]}
    return {**result, "rows": [*result["rows"], *(r for r in before["rows"] if (r["name"], r["steps"]) not in mine)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--runs", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=SHIPPED / "evidence" / "rivals.json")
    parser.add_argument("--count", type=int, default=1000, help="held-out captions")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 1, 2, 8], help="step counts, in this order")
    args = parser.parse_args()
    before = json.loads(args.out.read_text())["result"] if args.out.exists() else {}
    for result in compared(args.weights, args.runs, args.count, args.steps):
        record(args.out, merged(before, result))


if __name__ == "__main__":
    main()
