"""The sampler's settings (specification 1.2): Euler, trailing timesteps, always built from the pristine base config.

A scheduler rebuilt from one that is in use inherits its prediction type: after one 1-step run every 2-, 4- and 8-step
picture would be broken. So each is built from the base's own config, and both arguments are passed every time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from models.errors import BadInput

STEPS = (1, 2, 4, 8)
MOST_TEACHER_STEPS = 64
SDXL_BASE: Mapping[str, Any] = {  # scheduler/scheduler_config.json of stable-diffusion-xl-base-1.0
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Plan:
    """Where the sampler looks: `timesteps` (N,) and `sigmas` (N + 1,), float32, and what the network predicts."""

    timesteps: Tensor
    sigmas: Tensor
    prediction: str

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def last(self, steps: int) -> Plan:
        """The end of this plan: its last `steps` steps, which is where image-to-image starts."""
        start = self.steps - steps
        return Plan(self.timesteps[start:], self.sigmas[start:], self.prediction)


def student_scheduler(base: Mapping[str, Any], steps: int) -> EulerDiscreteScheduler:
    """The scheduler of the student of `steps` steps: it predicts the picture for one step, else as the base does.

    Raises `BadInput` for a number of steps that no student has.
    """
    if steps not in STEPS:
        raise BadInput(
            f"There is no student of {steps} steps. Choose {', '.join(map(str, STEPS))}: each has its own network."
        )
    return scheduler(base, "sample" if steps == 1 else base["prediction_type"])


def teacher_scheduler(base: Mapping[str, Any]) -> EulerDiscreteScheduler:
    """The undistilled network's scheduler, for any number of steps."""
    return scheduler(base, base["prediction_type"])


def scheduler(base: Mapping[str, Any], prediction_type: str) -> EulerDiscreteScheduler:
    """A fresh scheduler; `base` is the pristine config and stays as it is."""
    return EulerDiscreteScheduler.from_config(dict(base), timestep_spacing="trailing", prediction_type=prediction_type)


def plan(fresh: EulerDiscreteScheduler, steps: int) -> Plan:
    """Timesteps and noise levels of a fresh scheduler for a number of steps."""
    if not 1 <= steps <= MOST_TEACHER_STEPS:
        raise BadInput(f"{steps} steps cannot be run. Choose 1 to {MOST_TEACHER_STEPS}.")
    fresh.set_timesteps(steps)
    return Plan(fresh.timesteps.to(torch.float32), fresh.sigmas.to(torch.float32), fresh.config.prediction_type)
