"""Latents as components, and the decoder that starts from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.sdxl_lightning.autoencoder import PatchAutoencoder, crops, psnr, reconstruction_loss
from models.sdxl_lightning.basis import FACTOR, LATENT_CHANNELS, Basis, to_tensor
from models.weights import ASSETS


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Every 16 x 16 patch is a mix of 16 fixed patterns: what 16 components can hold without loss."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn((LATENT_CHANNELS, 3 * FACTOR**2), generator=generator)
    mixes = torch.randn((8, 4, 4, LATENT_CHANNELS), generator=generator) * torch.linspace(2, 0.2, LATENT_CHANNELS)
    flat = (mixes @ patterns).movedim(-1, 1)
    return 0.05 * torch.nn.functional.pixel_shuffle(flat, FACTOR)


@pytest.fixture(scope="module")
def basis(pictures: Tensor) -> Basis:
    return Basis.fit(pictures)


def test_what_the_components_span_comes_back(basis: Basis, pictures: Tensor) -> None:
    torch.testing.assert_close(basis.decode(basis.encode(pictures)), pictures, atol=1e-4, rtol=0)


def test_latents_are_centred_uncorrelated_and_of_variance_one_together(basis: Basis, pictures: Tensor) -> None:
    z = basis.encode(pictures)
    assert z.shape == (8, LATENT_CHANNELS, 4, 4)
    flat = z.movedim(1, -1).flatten(0, -2)
    covariance = flat.T @ flat / len(flat)
    torch.testing.assert_close(flat.mean(0), torch.zeros(LATENT_CHANNELS), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=1e-3, rtol=0)
    assert covariance.trace().item() == pytest.approx(LATENT_CHANNELS, rel=1e-3)


def test_latents_are_half_way_to_white(basis: Basis, pictures: Tensor) -> None:
    """Deviations of latents are the roots of the components' own, up to one factor."""
    z = basis.encode(pictures).movedim(1, -1).flatten(0, -2)
    coefficients = z / basis.scale
    ratio = z.std(0) / coefficients.std(0).sqrt()
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


def test_a_fresh_decoder_is_the_linear_one(basis: Basis, pictures: Tensor) -> None:
    vae = PatchAutoencoder()
    vae.set_basis(basis)
    z = vae.encode(pictures).latents
    assert torch.equal(z, basis.encode(pictures))
    torch.testing.assert_close(vae.decode(z).sample, basis.decode(z))


def test_it_is_saved_and_loaded_whole(basis: Basis, pictures: Tensor, tmp_path: Path) -> None:
    vae = PatchAutoencoder()
    vae.set_basis(basis)
    for parameter in vae.residual.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    vae.save_pretrained(tmp_path)
    loaded = PatchAutoencoder.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.forward(pictures), vae.forward(pictures))
    assert loaded.config["scaling_factor"] == 1.0
    assert 2 ** (len(loaded.config["block_out_channels"]) - 1) == FACTOR  # how pipelines find the factor


def test_the_loss_counts_edges() -> None:
    flat = torch.zeros(1, 3, 8, 8)
    shifted, striped = flat + 0.5, flat.clone()
    striped[..., ::2] = 0.5
    assert reconstruction_loss(flat, flat) == 0
    assert reconstruction_loss(shifted, flat).item() == pytest.approx(0.5)
    assert reconstruction_loss(striped, flat).item() == pytest.approx(0.25 + 0.5)


def test_crops_lie_on_the_grid_of_patches() -> None:
    row, column = np.mgrid[0:256, 0:256].astype(np.uint8)
    picture = np.stack([row, column, np.zeros_like(row)], -1)[None]
    found = crops(picture, 96, 20, np.random.default_rng(0))
    assert found.shape == (20, 96, 96, 3)
    assert not (found[:, 0, 0, :2] % FACTOR).any()


def test_decibels_of_a_known_error(basis: Basis) -> None:
    """A white picture through components of all zeros comes back as the mean: here grey, an error of 1 in -1..1."""
    vae = PatchAutoencoder()
    assert psnr(vae, np.full((2, 256, 256, 3), 255, np.uint8)) == pytest.approx(10 * np.log10(4))


def test_values_span_minus_one_to_one() -> None:
    x = to_tensor(np.array([[[[0, 127, 255]]]], np.uint8))
    assert x.flatten().tolist() == pytest.approx([-1, 127 / 127.5 - 1, 1])


def test_the_shipped_one_redraws_flat_shapes() -> None:
    """Shapes it has not seen, at places off the patches' grid."""
    picture = np.full((1, 256, 256, 3), 255, np.uint8)
    row, column = np.mgrid[0:256, 0:256]
    picture[0, (row - 131) ** 2 + (column - 93) ** 2 < 70**2] = (230, 60, 40)
    picture[0, 37:90, 150:229] = (40, 90, 220)
    vae = PatchAutoencoder.from_pretrained(ASSETS / "sdxl_lightning" / "vae").float().eval()
    assert psnr(vae, picture) > 28
