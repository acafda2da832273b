"""What every training stage shares: a folder that remembers where it stopped, a log, an average of the weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RUNS = Path("runs/sdxl_lightning")


class Run:
    """A resumable run in `folder`: `last.pt` holds every state and the step, `log.jsonl` what was reported.

    Its cost is known twice: `seconds` by the clock, and `cpu`, seconds of processor time, whatever else was running.

    Args:
        folder: made if need be.
        parts: modules, optimisers, averages: anything with `state_dict` and `load_state_dict`.
        steps: where the run ends.
        save_every: seconds between two saves.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Any], steps: int, save_every: float = 120.0) -> None:
        self.folder, self.parts, self.steps, self.save_every = folder, parts, steps, save_every
        folder.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds, self.cpu = 0, 0.0, 0.0
        self._started, self._worked = time.monotonic(), time.process_time()
        self._saved = self._started
        if (folder / "last.pt").exists():
            state = torch.load(folder / "last.pt", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.step, self.seconds, self.cpu = state["step"], state["seconds"], state.get("cpu", 0.0)
            print(f"{folder.name}: goes on at step {self.step} of {steps}", flush=True)

    def remaining(self) -> Iterator[int]:
        """The steps that are left. The state is saved on the way and at the end.

        A step's random numbers depend on the step only (`torch.manual_seed` with it), so that an interrupted run
        goes on as if it had not been interrupted.
        """
        self._started, self._worked = time.monotonic(), time.process_time()
        self._saved = self._started
        while self.step < self.steps:
            torch.manual_seed(self.step)
            yield self.step
            self.step += 1
            if time.monotonic() - self._saved > self.save_every:
                self.save()
        self.save()

    @property
    def minutes(self) -> float:
        """Minutes of training so far, over all sessions."""
        return (self.seconds + time.monotonic() - self._started) / 60

    def save(self) -> None:
        """Writes `last.pt` whole or not at all."""
        now, worked = time.monotonic(), time.process_time()
        self.cpu, self._worked = self.cpu + worked - self._worked, worked
        self.seconds, self._started, self._saved = self.seconds + now - self._started, now, now
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(state | {"step": self.step, "seconds": self.seconds, "cpu": self.cpu}, self.folder / "last.tmp")
        os.replace(self.folder / "last.tmp", self.folder / "last.pt")

    def log(self, **figures: float) -> None:
        """One line in the log and on the screen."""
        line = {"step": self.step, "minutes": round(self.minutes, 2)} | {k: round(v, 5) for k, v in figures.items()}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(self.folder.name, *(f"{name} {value}" for name, value in line.items()), flush=True)


class Average:
    """Exponential moving average of a module's parameters, with the usual slow start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes the module's present parameters in."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, p in module.named_parameters():
            self.values[name].lerp_(p, 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int]:
        """The averages and how many updates they saw."""
        return {"count": self.count, **self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.count = int(state["count"])
        self.values = {name: value for name, value in state.items() if name != "count"}

    def copy_to(self, module: nn.Module) -> None:
        """Puts the averages into the module."""
        module.load_state_dict(self.values, strict=False)


def rate_at(highest: float, step: int, steps: int, warm: int = 100, settle: float = 0.3) -> float:
    """The learning rate: rises over `warm` steps, stays, and falls to nothing over the last `settle` of the run."""
    return highest * min(1.0, (step + 1) / warm, (steps - step) / (settle * steps))
