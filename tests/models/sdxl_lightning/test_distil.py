"""The distillation on cases whose answers are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn

from models.sdxl_lightning.adapters import fuse, read
from models.sdxl_lightning.discriminator import Discriminator, discriminator_loss, generator_loss
from models.sdxl_lightning.distil import (
    STAGES,
    Leap,
    Stage,
    Teacher,
    clean_that_lands,
    following_loss,
    leap,
    turned_to_sample,
)
from models.sdxl_lightning.flow import estimate, sampled
from models.sdxl_lightning.lora import LoraNetwork, targets
from models.sdxl_lightning.network import build_unet
from models.sdxl_lightning.schedule import LAST, Schedule, scheduler_config, trailing

VARIANCE = 0.25


class Gaussian(nn.Module):
    """The exact v of data that is normal with mean 0 and variance VARIANCE, in the network's place."""

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> SimpleNamespace:
        schedule = Schedule()
        a, s = schedule.a(t), schedule.s(t)
        clean = a * VARIANCE / (a**2 * VARIANCE + s**2) * x  # E[x_0 | x_t]
        return SimpleNamespace(sample=(a * x - clean) / s)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return build_unet().eval()


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 16, 16, 16), torch.randn(count, 20, 384)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 32, 64, 128])
def test_timesteps_are_the_samplers(steps: int) -> None:
    scheduler = EulerDiscreteScheduler.from_config(scheduler_config(), timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert trailing(steps)[:-1] == scheduler.timesteps.tolist()


def test_published_timesteps() -> None:
    assert trailing(4) == [999, 749, 499, 249, -1]
    assert trailing(8) == [999, 874, 749, 624, 499, 374, 249, 124, -1]
    assert Schedule().alphas[LAST].item() == pytest.approx(0.00466, abs=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_students_start_and_land_on_their_own_grid(name: str) -> None:
    """Every one of the sampler's steps is among the steps that a stage trains."""
    stage = STAGES[name]
    times, end = trailing(stage.grid), stage.grid
    trained = {(times[i], times[min(i + stage.stride * stage.count, end)]) for i in stage.starts}
    mine = trailing(stage.steps)
    assert set(zip(mine[:-1], mine[1:], strict=True)) <= trained


def test_v_and_the_picture_are_two_names_of_one_thing() -> None:
    schedule, (clean, _), t = Schedule(), batch(), torch.tensor([0, 300, 700, 999])
    noise = torch.randn_like(clean)
    x = schedule.noised(clean, noise, t)
    torch.testing.assert_close(schedule.clean_of(x, schedule.v(clean, noise, t), t), clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.noise_of(x, clean, t), noise, atol=1e-4, rtol=0)


def test_the_network_is_shown_pure_noise_at_the_end() -> None:
    schedule, (clean, _) = Schedule(), batch(2)
    noise = torch.randn_like(clean)
    shown = schedule.shown(clean, noise, torch.tensor([LAST, LAST - 1]))
    assert torch.equal(shown[0], noise[0])
    assert not torch.equal(shown[1], noise[1])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_our_steps_are_diffusers_euler_steps(steps: int) -> None:
    """From x / sqrt(sigma^2 + 1) in one convention to x_t in the other, for an exact network."""
    network, (noise, words) = Gaussian(), batch(2)
    ours = sampled(network, "v_prediction", steps, noise, words)
    scheduler = EulerDiscreteScheduler.from_config(scheduler_config(), timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = noise * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        v = network(given, t.long().repeat(2), words).sample
        x = scheduler.step(v, t, x).prev_sample
    torch.testing.assert_close(ours, x, atol=2e-4, rtol=1e-3)


def test_a_leap_ends_where_many_steps_of_the_exact_flow_end() -> None:
    """Normal data has a linear flow: 256 steps multiply the noise by the deviation's ratio."""
    stage = Stage("exact", 1, 256, {0: 1.0}, 1, 256, follow=0)
    way = leap(stage, Teacher(Gaussian()), Schedule(), *batch())
    assert way.to.tolist() == [-1] * 4
    a, s = (f(torch.tensor([LAST])).item() for f in (Schedule().a, Schedule().s))
    exact = math.sqrt(VARIANCE / (a**2 * VARIANCE + s**2))
    torch.testing.assert_close(way.target, exact * way.x, atol=0.03, rtol=0.03)


def test_a_leap_stops_when_clean() -> None:
    stage = Stage("late", 1, 4, {3: 1.0}, 2, 2, follow=0)
    schedule, teacher = Schedule(), Teacher(Gaussian())
    way = leap(stage, teacher, schedule, *batch())
    expected = estimate(teacher.network, "v_prediction", schedule, way.x, way.t, way.words)
    torch.testing.assert_close(way.target, expected)


@pytest.mark.parametrize("t, to", [(999, 749), (749, 249), (249, -1), (999, -1)])
def test_the_target_is_reached_by_the_picture_that_it_stands_for(t: int, to: int) -> None:
    schedule, (clean, words) = Schedule(), batch()
    times, ends = torch.full((4,), t), torch.full((4,), to)
    x = schedule.noised(clean, torch.randn_like(clean), times)
    way = Leap(x, times, ends, words, schedule.moved(x, clean, times, ends))
    torch.testing.assert_close(clean_that_lands(schedule, way), clean, atol=1e-3, rtol=1e-3)
    for prediction in ("v_prediction", "sample"):
        if prediction == "sample" and to != -1:
            continue
        stage = Stage("any", 1, 4, {0: 1.0}, 1, 1, follow=0, prediction=prediction)
        assert following_loss(stage, schedule, clean, way) < 1e-5
        assert following_loss(stage, schedule, clean + 1, way) > 0.5


def test_guidance_is_a_line_through_both_estimates(unet: nn.Module) -> None:
    schedule, (x, words), t = Schedule(), batch(2), torch.tensor([999, 300])
    empty = torch.randn(20, 384)
    with torch.inference_mode():
        told = estimate(unet, "v_prediction", schedule, x, t, words)
        without = estimate(unet, "v_prediction", schedule, x, t, empty.expand_as(words))
        both = estimate(unet, "v_prediction", schedule, x, t, words, empty, 3.0)
    torch.testing.assert_close(both, without + 3 * (told - without), atol=0.1, rtol=0.05)  # bfloat16


def test_losses_of_known_logits() -> None:
    zero, sure = torch.zeros(3), torch.full((3,), 20.0)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert discriminator_loss(sure, -sure).item() == pytest.approx(0, abs=1e-6)
    assert discriminator_loss(-sure, sure).item() == pytest.approx(40)
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    logits = torch.tensor([-8.0], requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad is not None and logits.grad.item() == pytest.approx(-1, abs=1e-3)  # it does not saturate


def test_the_discriminator_sees_x_only_with_pairs(unet: nn.Module) -> None:
    (landed, words), (x, _) = batch(2), batch(2)
    t = torch.tensor([999, 499])
    to = torch.tensor([499, -1])
    for pairs in (True, False):
        judge = Discriminator(unet, pairs).eval()
        first, second = judge(landed, to, words, x, t), judge(landed, to, words, x + 1, t)
        assert first.shape == (2,)
        assert torch.equal(first, second) != pairs


def test_the_discriminator_is_a_copy(unet: nn.Module) -> None:
    judge = Discriminator(unet, True)
    judge.backbone.conv_in.weight.data.add_(1)  # type: ignore[union-attr,operator]
    assert not torch.equal(judge.backbone.conv_in.weight, unet.conv_in.weight)  # type: ignore[union-attr,arg-type]


def test_a_fresh_addition_changes_nothing(unet: nn.Module) -> None:
    x, words = batch(2)
    t = torch.tensor([999, 10])
    with torch.inference_mode():
        torch.testing.assert_close(LoraNetwork(unet)(x, t, words).sample, unet(x, t, words).sample)


def test_additions_leave_the_first_and_last_layers_and_the_time_embedding_alone(unet: nn.Module) -> None:
    names = set(targets(unet))
    assert not any(name.startswith(("conv_in", "conv_out", "time_embedding")) for name in names)
    assert "mid_block.resnets.0.time_emb_proj" in names
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k" in names


def test_the_saved_addition_is_read_by_the_pipelines_reader(unet: nn.Module, tmp_path: object) -> None:
    torch.manual_seed(1)
    lora = LoraNetwork(unet, rank=4)
    for up in lora.up.values():
        nn.init.normal_(up, std=0.02)
    path = tmp_path / "lora.safetensors"  # type: ignore[operator]
    lora.save(path)
    plain = build_unet()
    plain.load_state_dict(unet.state_dict())
    fuse(plain, read(path, plain), 1.0)
    x, words = batch(2)
    t = torch.tensor([999, 499])
    with torch.inference_mode():
        expected = lora(x, t, words).sample
        torch.testing.assert_close(lora.fused()(x, t, words).sample, expected)
        torch.testing.assert_close(plain(x, t, words).sample, expected, atol=2e-3, rtol=2e-2)  # half precision
        torch.testing.assert_close(LoraNetwork(unet, 4).load(path)(x, t, words).sample, expected, atol=2e-3, rtol=2e-2)


def test_turning_to_sample_keeps_the_picture_at_the_end_of_the_schedule(unet: nn.Module) -> None:
    schedule, (x, words) = Schedule(), batch(2)
    t = torch.tensor([LAST, LAST])
    with torch.inference_mode():
        before = estimate(unet, "v_prediction", schedule, x, t, words)
        network = build_unet()
        network.load_state_dict(unet.state_dict())
        after = estimate(turned_to_sample(network), "sample", schedule, x, t, words)
    torch.testing.assert_close(before - after, schedule.a(t) * x, atol=0.02, rtol=0)
