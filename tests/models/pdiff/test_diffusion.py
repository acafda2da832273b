"""Parameter counts of the published networks, normalisation, and sampling against a closed form."""

import pytest
import torch

from models.errors import BadInput
from models.pdiff import diffusion, normalise
from models.pdiff.activation import FastElu
from models.pdiff.autoencoder import Autoencoder
from models.pdiff.diffusion import Denoiser
from models.pdiff.vectors import Layout

LAYOUT = Layout(("a", "b", "c"), ((40,), (5, 5), (1,)))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_published_sizes():
    assert parameters(Autoencoder(2048, 128)) == 2_199_201
    assert parameters(Denoiser(128)) == 2_462_977


@pytest.mark.parametrize("length", [64, 512, 10_880])
def test_autoencoder_shapes(length):
    autoencoder = Autoencoder(length, 16, (4, 8, 8, 8, 4)).eval()
    x = torch.randn(2, length)
    z = autoencoder.encode(x)
    assert z.shape == (2, 16) and autoencoder.decode(z).shape == (2, length)


def test_decoding_one_by_one_equals_decoding_together():
    autoencoder = Autoencoder(128, 8, (4, 8, 8, 8, 4)).eval()
    z = torch.randn(5, 8)
    together = autoencoder.decode(z)
    alone = torch.cat([autoencoder.decode(row[None]) for row in z])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_length_that_does_not_halve_five_times_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        Autoencoder(100, 8)


def some_vectors(n=50):
    generator = torch.Generator().manual_seed(0)
    vectors = 3 + torch.randn((n, LAYOUT.size), generator=generator) * torch.linspace(0.1, 4, LAYOUT.size)
    vectors[:, 7] = 2.5  # never changes
    return vectors


@pytest.mark.parametrize("kind", normalise.KINDS)
def test_normalising_round_trips_and_pads(kind):
    vectors = some_vectors()
    n = normalise.fit(vectors, LAYOUT, kind)
    normalised = n.forward(vectors)
    assert normalised.shape == (50, 128) and n.length == 128
    assert (normalised[:, LAYOUT.size :] == 0).all()
    torch.testing.assert_close(n.inverse(normalised), vectors, atol=1e-4, rtol=1e-4)


def test_coordinates_get_unit_spread_and_constants_stay():
    vectors = some_vectors()
    n = normalise.fit(vectors, LAYOUT, "coordinate")
    spread = n.forward(vectors)[:, : LAYOUT.size].std(0, correction=0)
    moving = torch.arange(LAYOUT.size) != 7
    torch.testing.assert_close(spread[moving], torch.ones(LAYOUT.size - 1), atol=1e-3, rtol=1e-3)
    generated = n.inverse(torch.randn(3, 128))
    torch.testing.assert_close(generated[:, 7], torch.full((3,), 2.5), atol=1e-3, rtol=1e-3)


def test_tensor_scheme_is_the_specification_s():
    vectors = some_vectors()
    n = normalise.fit(vectors, LAYOUT, "tensor")
    first = vectors[:, :40]
    assert float(n.mean[0]) == pytest.approx(float(first.mean(1).mean()), rel=1e-5)
    assert float(n.std[39]) == pytest.approx(float(first.std(1).mean()), rel=1e-5)
    assert n.mean[:40].unique().numel() == 1
    with pytest.raises(BadInput, match="coordinate or tensor"):
        normalise.fit(vectors, LAYOUT, "none")


# ---- sampling: for Gaussian data the best possible noise prediction is known --------------------------------

MEAN, STD = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])


def exact_epsilon(x, t):
    bar = diffusion.alphas_bar()[t][:, None].float()
    variance = bar * STD**2 + 1 - bar
    return (1 - bar).sqrt() * (x - bar.sqrt() * MEAN) / variance


@pytest.mark.parametrize(
    ("steps", "eta", "off"), [(1000, 1.0, 0.04), (1000, 0.0, 0.04), (100, 0.0, 0.06), (50, 0.0, 0.1)]
)
def test_samples_of_a_gaussian_have_its_mean_and_spread(steps, eta, off):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((4000, 2), generator=generator)
    *_, (t, x) = diffusion.sample(exact_epsilon, noise, steps, eta, generator)
    assert t == 0
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.08, rtol=0)
    torch.testing.assert_close(x.std(0), STD, atol=0.0, rtol=off)


def test_ancestral_sampling_is_the_published_formula():
    bars = diffusion.alphas_bar()
    x = torch.randn((3, 2), generator=torch.Generator().manual_seed(1))
    ours = dict(diffusion.sample(exact_epsilon, x, 1000, 1.0, torch.Generator().manual_seed(2)))[998]
    generator = torch.Generator().manual_seed(2)
    for t in (999, 998):
        alpha, bar, before = float(bars[t] / bars[t - 1]), float(bars[t]), float(bars[t - 1])
        beta = 1 - alpha
        e = exact_epsilon(x, torch.full((3,), t))
        x = (x - beta / (1 - bar) ** 0.5 * e) / alpha**0.5
        x = x + (beta * (1 - before) / (1 - bar)) ** 0.5 * torch.randn(x.shape, generator=generator)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_noise_and_its_removal_are_inverse():
    bars = diffusion.alphas_bar()
    x, noise = torch.randn(6, 4), torch.randn(6, 4)
    t = torch.tensor([0, 10, 200, 500, 900, 999])
    noisy = diffusion.add_noise(x, noise, t, bars)
    bar = bars[t][:, None].float()
    torch.testing.assert_close((noisy - (1 - bar).sqrt() * noise) / bar.sqrt(), x, atol=1e-3, rtol=1e-3)
    assert float(bars[0]) == pytest.approx(1 - 1e-4)
    assert float(bars[-1]) == pytest.approx(4.04e-5, rel=0.01)  # linear betas, T = 1000


def test_timesteps_start_at_the_noisiest():
    assert diffusion.timesteps(1000) == list(range(999, -1, -1))
    assert diffusion.timesteps(1) == [999]
    fifty = diffusion.timesteps(50)
    assert fifty[0] == 999 and fifty[-1] == 0 and len(set(fifty)) == 50
    for bad in (0, 1001):
        with pytest.raises(BadInput):
            diffusion.timesteps(bad)


def test_one_row_is_denoised_alike_whatever_stands_beside_it():
    denoiser = Denoiser(16, (4, 8, 8, 8)).eval()
    noise = torch.randn((4, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        *_, (_, together) = diffusion.sample(denoiser, noise, 10)
        *_, (_, alone) = diffusion.sample(denoiser, noise[2:3], 10)
    torch.testing.assert_close(together[2:3], alone, atol=1e-4, rtol=1e-4)


def test_the_fast_activation_is_elu_and_so_is_its_gradient():
    ours, theirs = (torch.linspace(-30, 30, 4001).requires_grad_() for _ in range(2))
    fast, plain = FastElu()(ours), torch.nn.functional.elu(theirs)
    torch.testing.assert_close(fast, plain, atol=2.4e-7, rtol=1e-6)
    fast.sum().backward()
    plain.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)
