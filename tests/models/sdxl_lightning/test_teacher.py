"""The teacher's recipe, and that it is told what the pipeline tells the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from torch import nn

from models.sdxl_lightning import teacher, text
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.network import LATENT, build_unet, read_unet
from models.sdxl_lightning.pool import PHRASINGS, Pool
from models.sdxl_lightning.recipe import Average, rate_at
from models.sdxl_lightning.schedule import Schedule, scheduler_config


def test_states_are_the_pipelines_own() -> None:
    words, encoder = text.tokenizer(), text.text_encoder()
    pipe: Any = StableDiffusionPipeline(
        vae=PatchAutoencoder(), text_encoder=encoder, tokenizer=words, unet=build_unet(),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config()), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    prompts = ["blue apple", "a picture of a cat with sunglasses"]
    told, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    torch.testing.assert_close(told, text.states(prompts, words, encoder), atol=1e-5, rtol=0)
    torch.testing.assert_close(empty, text.states(["", ""], words, encoder), atol=1e-5, rtol=0)
    assert told.shape == (2, text.LENGTH, text.WIDTH)
    assert pipe.vae_scale_factor == 16


def pool_of(latents: torch.Tensor, weights: list[float]) -> Pool:
    """Words are constant: the place in the pool plus 1; no words are 0."""
    count = len(latents)
    words = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, PHRASINGS, text.LENGTH, text.WIDTH)
    return Pool(latents.half(), words.half(), torch.zeros(text.LENGTH, text.WIDTH).half(), torch.tensor(weights))


def test_the_pool_keeps_pictures_and_captions_together() -> None:
    places = torch.arange(1.0, 4)[:, None, None, None]
    pool = pool_of(places.expand(3, *LATENT), [0.7, 0.3, 0.0])
    torch.manual_seed(0)
    latents, words = pool.draw(2000, 0.25)
    seen, told = latents[:, 0, 0, 0], words[:, 0, 0]
    assert set(seen.tolist()) == {1.0, 2.0}
    assert (seen == 1).float().mean().item() == pytest.approx(0.7, abs=0.04)
    assert (told == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(told[told > 0], seen[told > 0])


class Still(nn.Module):
    """Predicts nothing."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, words: torch.Tensor) -> nn.Module:
        self.sample = torch.zeros_like(x)
        return self


def test_the_loss_of_predicting_nothing() -> None:
    """v has variance 1 for clean latents of variance 1, and the weight is min(1, GAMMA / snr)."""
    schedule = Schedule()
    torch.manual_seed(0)
    clean = torch.randn(400, *LATENT)
    found = teacher.loss_of(Still(), schedule, clean, torch.zeros(400, text.LENGTH, text.WIDTH)).item()
    weights = (teacher.GAMMA / schedule.snr(torch.arange(1000))).clamp(max=1)
    assert found == pytest.approx(weights.mean().item(), abs=0.05)


def test_a_training_that_is_interrupted_goes_on_as_if_it_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(torch.randn(4, *LATENT), [0.25] * 4)
    monkeypatch.setattr(teacher.Pool, "load", staticmethod(lambda: pool))
    monkeypatch.setattr(teacher, "Preview", lambda: None)
    monkeypatch.setattr(teacher, "look", lambda *_: None)
    monkeypatch.setattr(teacher, "PIPELINE", tmp_path / "pipeline")
    for name, stops in (("whole", (4,)), ("parted", (2, 4))):
        for steps in stops:
            monkeypatch.setattr(teacher, "rate_at", lambda rate, *_: rate)
            teacher.train(tmp_path / name, steps, 2, 1e-3, None)
    whole, parted = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["network"] for name in ("whole", "parted")
    )
    assert all(torch.equal(whole[key], parted[key]) for key in whole)
    assert read_unet(tmp_path / "pipeline" / "unet").dtype == torch.float32


def test_the_rate_rises_stays_and_falls() -> None:
    assert rate_at(1.0, 0, 1000) == pytest.approx(0.01)
    assert rate_at(1.0, 500, 1000) == 1.0
    assert rate_at(1.0, 850, 1000) == pytest.approx(0.5)
    assert rate_at(1.0, 1000, 1000) == 0.0


def test_the_average_follows() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = Average(layer, 0.5)
    nn.init.ones_(layer.weight)
    average.update(layer)  # a slow start: 2 / 11 of the old value is kept
    assert average.values["weight"].item() == pytest.approx(1 - 2 / 11)
    for _ in range(8):
        average.update(layer)
    assert average.values["weight"].item() == pytest.approx(1, abs=0.01)
