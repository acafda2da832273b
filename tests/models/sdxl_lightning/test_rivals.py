"""The other methods' losses and samplers on cases whose answers are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import LCMScheduler
from torch import Tensor, nn

from models.errors import BadInput
from models.sdxl_lightning import consistency, turbo
from models.sdxl_lightning.distil import STAGES
from models.sdxl_lightning.recipe import Run
from models.sdxl_lightning.rivals import ADVERSARIAL_ONLY, SHIPPED, Cost, budget, train_stage
from models.sdxl_lightning.schedule import LAST, Schedule


class Point(nn.Module):
    """The exact v of data that is one point: every step of the flow leads there."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> SimpleNamespace:
        schedule = Schedule()
        a, s = schedule.a(t), schedule.s(t)
        return SimpleNamespace(sample=(a * x - self.value) / s)


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 16, 16, 16), torch.randn(count, 20, 384)


def test_the_boundary_condition_is_the_published_one() -> None:
    published = LCMScheduler()
    for t in (0, 1, 19, 499, 999):
        skip, out = (float(part) for part in consistency.boundary(torch.tensor([t])))
        assert (skip, out) == pytest.approx(
            [float(x) for x in published.get_scalings_for_boundary_condition_discrete(t)], rel=1e-5
        )
    assert [float(part) for part in consistency.boundary(torch.tensor([0]))] == [1, 0]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_timesteps_are_those_of_the_published_sampler(steps: int) -> None:
    published = LCMScheduler()
    published.set_timesteps(steps)
    assert consistency.sampling_times(steps) == published.timesteps.tolist()


def test_the_solver_steps_from_the_end_to_the_start() -> None:
    times = consistency.solver_times()
    assert times[[0, -1]].tolist() == [19, LAST]
    assert set(times.diff().tolist()) == {20}


def test_a_consistent_student_has_no_loss_and_a_wrong_one_its_distance() -> None:
    """On data of one point every time gives the same picture; a student off by 1 is 1 away from the target's."""
    torch.manual_seed(0)
    (_, words), empty = batch(64), torch.zeros(20, 384)
    clean, right = torch.full((64, 16, 16, 16), 0.5), Point(0.5)

    def loss(student: float, target: float) -> float:
        found = consistency.consistency_loss(
            Point(student), Point(target), right, Schedule(), clean, words, empty, 3.0
        )  # fmt: skip
        return found.item()

    assert loss(0.5, 0.5) < 0.02  # the first step's c_skip, and bfloat16
    assert loss(1.5, 0.5) == pytest.approx(1, abs=0.03)


def test_only_the_student_learns() -> None:
    (clean, words), empty = batch(2), torch.zeros(20, 384)
    student, target, teacher = Point(0.0), Point(0.0), Point(0.0)
    consistency.consistency_loss(student, target, teacher, Schedule(), clean, words, empty, 3.0).backward()
    assert student.value.grad is not None and target.value.grad is None and teacher.value.grad is None


def test_pseudo_huber_is_a_distance_far_off_and_a_parabola_near() -> None:
    zero = torch.zeros(3)
    assert consistency.pseudo_huber(zero, zero).item() == 0
    assert consistency.pseudo_huber(zero, zero + 2).item() == pytest.approx(2, abs=2e-3)
    assert consistency.pseudo_huber(zero, zero + 1e-4).item() == pytest.approx(1e-8 / 2e-3, rel=0.01)


def test_the_target_keeps_95_of_100() -> None:
    target, student = Point(0.0), Point(1.0)
    consistency.follow(target, student)
    assert target.value.item() == pytest.approx(0.05)


def test_the_multistep_sampler_adds_fresh_noise_and_ends_clean() -> None:
    noise, words = batch(2)
    for steps in (1, 4):
        torch.testing.assert_close(
            consistency.restarted(Point(0.3), steps, noise, words), torch.full_like(noise, 0.3), atol=2e-3, rtol=0
        )
    seen: list[float] = []

    class Watching(Point):
        def forward(self, x: Tensor, t: Tensor, words: Tensor) -> SimpleNamespace:
            seen.append(x.std().item())
            return super().forward(x, t, words)

    consistency.restarted(Watching(0.0), 2, noise, words, times=[999, 499], bounded=False)
    s = Schedule().s(torch.tensor([499])).item()
    assert seen[1] == pytest.approx(s, rel=0.05)  # noise of the second time around the estimate, which is 0


def test_hinge_losses_of_known_logits() -> None:
    assert turbo.heads_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])).item() == 0
    assert turbo.heads_loss(torch.zeros(2), torch.zeros(2)).item() == 2
    assert turbo.heads_loss(torch.tensor([-1.0]), torch.tensor([1.0])).item() == 4
    assert turbo.student_loss(torch.tensor([1.0, 3.0])).item() == -2


def test_the_gradient_penalty_of_a_known_slope() -> None:
    """Logits 3 x summed over 4 places: the gradient is 3 at each, its square 9, four of them 36."""

    class Slope(nn.Module):
        def forward(self, maps: list[Tensor], words: Tensor) -> Tensor:
            return 3 * maps[0].flatten(1)

    penalty = turbo.gradient_penalty(Slope(), [torch.randn(5, 1, 2, 2)], torch.zeros(5, 20, 384))  # type: ignore[arg-type]
    assert penalty.item() == pytest.approx(36)


def test_distillation_is_nothing_where_the_teacher_agrees_and_counts_noisy_looks_less() -> None:
    torch.manual_seed(0)
    schedule, empty, (_, words) = Schedule(), torch.zeros(20, 384), batch(256)
    here = torch.full((256, 16, 16, 16), 0.5)
    agrees = turbo.distillation_loss(Point(0.5), schedule, here, words, empty, 3.0)
    differs = turbo.distillation_loss(Point(1.5), schedule, here, words, empty, 3.0)
    assert agrees.item() < 2e-3
    assert differs.item() == pytest.approx(schedule.alphas.sqrt().mean().item(), rel=0.1)  # E[a_t] times 1


def test_distillation_teaches_the_student_only() -> None:
    found, teacher = torch.randn(2, 16, 16, 16, requires_grad=True), Point(0.0)
    turbo.distillation_loss(teacher, Schedule(), found, torch.zeros(2, 20, 384), torch.zeros(20, 384), 3.0).backward()
    assert found.grad is not None and teacher.value.grad is None


def test_heads_are_told_the_words_and_the_features_stay_frozen() -> None:
    torch.manual_seed(0)
    features = turbo.Features()
    pictures = torch.rand(2, 3, 128, 128, requires_grad=True)
    maps = features(pictures)
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 16, 16), (96, 8, 8), (128, 4, 4)]
    heads = turbo.Heads([64, 96, 128]).eval()
    first, second = (heads(maps, torch.full((2, 20, 384), value)) for value in (0.0, 1.0))
    assert first.shape == (2, 16 * 16 + 8 * 8 + 4 * 4)
    assert not torch.allclose(first, second)
    first.sum().backward()
    assert pictures.grad is not None and not any(p.requires_grad for p in features.parameters())


def test_cuts_are_inside_and_square() -> None:
    latents = torch.arange(256.0).view(1, 1, 16, 16)
    for seed in range(20):
        torch.manual_seed(seed)
        rows, columns = turbo.cut(latents)
        assert latents[..., rows, columns].shape == (1, 1, 8, 8)


def test_budgets_count_every_stage_from_the_teacher_on() -> None:
    assert budget(8) == 250 + 120 + 50 + 25
    assert budget(1) == sum(stage.follow + stage.judged + stage.free for stage in STAGES.values())
    assert set(ADVERSARIAL_ONLY) < set(STAGES)


def test_a_stage_whose_start_is_not_shipped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="32-step student"):
        train_stage("adversarial", "8", tmp_path, SHIPPED)


def test_a_runs_processor_time_adds_up_over_sessions_and_old_states_have_none(tmp_path: Path) -> None:
    def work(steps: int) -> float:
        run = Run(tmp_path, {}, steps)
        for _ in run.remaining():
            sum(i * i for i in range(100_000))
        return Cost.of(tmp_path).cpu

    first = work(2)
    assert 0 < first < work(4)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["cpu"]
    torch.save(state, tmp_path / "last.pt")
    assert Run(tmp_path, {}, 4).cpu == 0
    assert (Cost.of(tmp_path, tmp_path).steps, state["step"]) == (8, 4)
