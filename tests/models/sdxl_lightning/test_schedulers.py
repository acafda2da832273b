"""Sampler settings against the specification's numbers (1.2)."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from models.errors import BadInput
from models.sdxl_lightning.schedulers import SDXL_BASE, STEPS, plan, student_scheduler, teacher_scheduler

TABLE = {
    1: ([999], [14.615, 0]),
    2: ([999, 499], [14.615, 1.613, 0]),
    4: ([999, 749, 499, 249], [14.615, 4.082, 1.613, 0.693, 0]),
    8: ([999, 874, 749, 624, 499, 374, 249, 124], [14.615, 7.297, 4.082, 2.493, 1.613, 1.069, 0.693, 0.398, 0]),
}


@pytest.mark.parametrize("steps", STEPS)
def test_timesteps_and_sigmas_are_the_published_ones(steps):
    scheduler = student_scheduler(SDXL_BASE, steps)
    made = plan(scheduler, steps)
    timesteps, sigmas = TABLE[steps]
    assert made.timesteps.tolist() == timesteps
    assert made.sigmas.tolist() == pytest.approx(sigmas, abs=5e-4)
    assert made.prediction == ("sample" if steps == 1 else "epsilon")
    assert float(scheduler.init_noise_sigma) == pytest.approx(14.615, abs=5e-4)


def test_the_base_default_would_start_at_the_wrong_timestep():
    leading = EulerDiscreteScheduler.from_config(dict(SDXL_BASE))
    leading.set_timesteps(4)
    assert leading.timesteps.tolist() == [751, 501, 251, 1]


def test_one_step_then_four_equals_a_fresh_four():
    base = dict(SDXL_BASE)
    fresh = plan(student_scheduler(base, 4), 4)
    plan(student_scheduler(base, 1), 1)
    after = plan(student_scheduler(base, 4), 4)
    assert after.prediction == fresh.prediction == "epsilon"
    assert torch.equal(after.sigmas, fresh.sigmas) and base == SDXL_BASE


def test_the_trap_is_real():
    """Rebuilding from a scheduler in use keeps its prediction type; that is why ours never does."""
    one = student_scheduler(SDXL_BASE, 1)
    assert (
        EulerDiscreteScheduler.from_config(one.config, timestep_spacing="trailing").config.prediction_type == "sample"
    )


def test_with_one_step_the_network_s_output_is_the_picture():
    scheduler = student_scheduler(SDXL_BASE, 1)
    scheduler.set_timesteps(1)
    noise, output = torch.randn(2, 1, 4, 8, 8) * torch.tensor([14.6, 1.0]).view(2, 1, 1, 1, 1)
    scheduler.scale_model_input(noise, scheduler.timesteps[0])
    assert torch.allclose(scheduler.step(output, scheduler.timesteps[0], noise).prev_sample, output, atol=1e-5)


def test_a_velocity_teacher_keeps_its_prediction():
    base = dict(SDXL_BASE, prediction_type="v_prediction")
    assert (
        plan(teacher_scheduler(base), 32).prediction == plan(student_scheduler(base, 2), 2).prediction == "v_prediction"
    )
    assert plan(student_scheduler(base, 1), 1).prediction == "sample"


@pytest.mark.parametrize("steps", [0, 3, 16, -1])
def test_other_student_step_counts_are_refused(steps):
    with pytest.raises(BadInput, match="1, 2, 4, 8"):
        student_scheduler(SDXL_BASE, steps)


@pytest.mark.parametrize("steps", [0, -1, 65, 10**9])
def test_teacher_step_counts_are_bounded(steps):
    with pytest.raises(BadInput, match="1 to 64"):
        plan(teacher_scheduler(SDXL_BASE), steps)


def test_the_end_of_a_plan_is_where_image_to_image_starts():
    made = plan(student_scheduler(SDXL_BASE, 4), 4).last(1)
    assert made.timesteps.tolist() == [249] and made.sigmas.tolist() == pytest.approx([0.693, 0], abs=5e-4)
