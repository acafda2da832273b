"""Fitting, zoo files, and the shipped zoos through the pipeline."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from models import pdiff, weights
from models.errors import BadInput, Cancelled, WeightsCorrupt
from models.pdiff import measures, zoo
from models.pdiff.pipeline import Pipeline
from models.pdiff.train import Preset, fit

TINY = Preset(
    latent=8, channels=(4, 8, 8, 8, 4), widths=(4, 8, 8, 8), autoencoder_steps=300, diffusion_steps=30, batch=16
)


@pytest.fixture(scope="module")
def shipped():
    return pdiff.load()


@pytest.fixture(scope="module")
def fitted(small):
    return fit(small, TINY, seed=3)


# ---- fitting ------------------------------------------------------------------------------------------------


def test_the_autoencoder_learns_what_differs(small, fitted):
    decoded = fitted.decode(fitted.encode(small.vectors))
    left = (decoded - small.vectors).square().mean() / (small.vectors - small.vectors.mean(0)).square().mean()
    assert left < 0.5  # the constant mean would leave 1


def test_a_fit_that_is_interrupted_ends_as_one_that_is_not(small, fitted, tmp_path):
    class Stop(Exception):
        pass

    def stop_at(stage, step):
        def report(p):
            if (p.stage, p.step) == (stage, step):
                raise Stop

        return report

    for stage, step in (("autoencoder", 260), ("diffusion", 20)):
        with pytest.raises(Stop):
            fit(small, TINY, 3, stop_at(stage, step), tmp_path)
    seen = []
    resumed = fit(small, TINY, 3, seen.append, tmp_path)
    assert seen[0].stage == "diffusion"  # the autoencoder was finished
    for name, tensor in fitted.denoiser.state_dict().items():
        torch.testing.assert_close(resumed.denoiser.state_dict()[name], tensor)
    for name, tensor in fitted.autoencoder.state_dict().items():
        torch.testing.assert_close(resumed.autoencoder.state_dict()[name], tensor)


def test_nan_and_a_single_checkpoint_are_refused(small):
    broken = small.vectors.clone()
    broken[4, 0] = torch.inf
    with pytest.raises(BadInput, match="number 4"):
        fit(replace(small, vectors=broken), TINY)
    with pytest.raises(BadInput, match="At least two"):
        fit(replace(small, vectors=small.vectors[:1]), TINY)


# ---- the file -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(small, fitted, blobs, tmp_path):
    from dataclasses import asdict

    path = tmp_path / "small.safetensors"
    zoo.save(path, small, fitted, {"preset": asdict(TINY), "seed": 3})
    return path


def test_a_zoo_comes_back_from_its_file(file, small, fitted, blobs):
    back = zoo.read(file, blobs)
    torch.testing.assert_close(back.collection.vectors, small.vectors, atol=1e-3, rtol=1e-3)
    assert back.collection.layout == small.layout
    z = torch.randn(3, 8)
    torch.testing.assert_close(back.generator.decode(z), fitted.decode(z), atol=5e-3, rtol=5e-3)


def test_half_a_file_is_refused(file, blobs):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsCorrupt):
        zoo.read(file, blobs)


def change(file, tensors=lambda t: None, collection=lambda c: None):
    metadata = {k: v for k, v in weights.card(file).items() if k in ("format", "collection", "facts")}
    described = json.loads(metadata["collection"])
    collection(described)
    loaded = load_file(file)
    tensors(loaded)
    save_file(loaded, file, {**metadata, "collection": json.dumps(described)})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("originals"),
        lambda t: t.update(originals=t["originals"][:, :-1].contiguous()),
        lambda t: t.pop("denoiser.layers.0.weight"),
        lambda t: t.update({"normaliser.std": torch.ones(3)}),
        lambda t: t.update({"base.1.weight": torch.ones(2, 2)}),
    ],
)
def test_wrong_tensors_are_refused(file, blobs, spoil):
    change(file, tensors=spoil)
    with pytest.raises(WeightsCorrupt, match="does not fit"):
        zoo.read(file, blobs)


def test_a_wrong_description_is_refused(file, blobs):
    change(file, collection=lambda c: c["layout"].pop())
    with pytest.raises(WeightsCorrupt, match="does not fit"):
        zoo.read(file, blobs)


def test_nan_in_a_checkpoint_is_refused(file, blobs):
    change(file, tensors=lambda t: t["originals"][2].fill_(torch.nan))
    with pytest.raises(BadInput, match="checkpoint: number 2"):
        zoo.read(file, blobs)


def test_another_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsCorrupt, match="not a P-diff zoo"):
        zoo.read(path)


# ---- generating from what is shipped ------------------------------------------------------------------------


def test_shipped_files_are_listed_with_their_sums():
    shipped = {path.stem for path in (weights.ASSETS / "pdiff").glob("*.safetensors")}
    sums = (weights.ASSETS / "pdiff" / "SHA256SUMS").read_text().split()
    assert shipped == set(pdiff.zoos()) == {name.removesuffix(".safetensors") for name in sums[1::2]}


def test_generated_networks_are_as_good_as_the_originals(shipped):
    made = shipped.generate(100, seed=5, steps=50)
    accuracy = shipped.evaluate(made)
    originals = shipped.evaluate(shipped.originals)
    assert made.vectors.shape == (100, 512) and made.kind == "generated"
    assert accuracy.max() >= originals.max() - 0.3 and abs(accuracy.mean() - originals.mean()) < 0.6
    # They are not copies of originals with a little noise.
    own = measures.nearest(shipped.originals.vectors, shipped.originals.vectors, True)
    assert measures.nearest(made.vectors, shipped.originals.vectors).mean() > 3 * own.mean()


def test_the_same_seed_gives_the_same_networks(shipped):
    first, again, other = (shipped.generate(4, seed=seed, steps=5).vectors for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_latents_decode_to_the_same_network_alone(shipped):
    made = shipped.generate(6, steps=5)
    alone = shipped.decode(made.latents[3:4])
    torch.testing.assert_close(alone.vectors[0], made.vectors[3], atol=1e-5, rtol=1e-5)


def test_steps_are_reported_and_may_stop(shipped):
    seen = []
    shipped.generate(2, steps=7, on_step=lambda done, total, x: seen.append((done, total, tuple(x.shape))))
    assert seen == [(done, 7, (2, 64)) for done in range(8)]

    def stop(done, total, latents):
        if done == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        shipped.generate(2, steps=7, on_step=stop)


@pytest.mark.parametrize(("count", "steps"), [(0, 50), (1001, 50), (10**6, 50), (10, 0), (10, 1001)])
def test_impossible_orders_are_refused(shipped, count, steps):
    with pytest.raises(BadInput):
        shipped.generate(count, steps=steps)


def test_unknown_zoos_are_refused():
    with pytest.raises(BadInput, match="digits-q"):
        pdiff.load("nothing")


def test_a_drawn_one_is_read(shipped):
    picture = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(picture).line((110, 30, 100, 170), fill=0, width=26)
    ImageDraw.Draw(picture).line((110, 30, 70, 70), fill=0, width=26)
    made = shipped.generate(1, steps=20)
    probabilities = shipped.predict(made.vectors[0], picture)
    assert probabilities.shape == (10,) and float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert int(probabilities.argmax()) == 1


def test_a_saved_checkpoint_is_the_whole_network(shipped, tmp_path):
    made = shipped.generate(2, steps=20)
    path = tmp_path / "one.safetensors"
    shipped.save_checkpoint(made.vectors[1], path)
    shipped.network.load_state_dict(weights.read_safetensors(path))
    with torch.inference_mode():
        right = (shipped.network(shipped.data.test_x).argmax(1) == shipped.data.test_y).float().mean()
    shipped.network.load_state_dict(shipped.zoo.collection.base)
    assert float(right) * 100 == pytest.approx(float(shipped.evaluate(made)[1]), abs=0.05)
    assert weights.card(path)["zoo"] == "digits-q"


def test_separate_networks_cannot_be_learned():
    """The instructive failure: from different seeds, what is generated is near chance."""
    failing = pdiff.load("digits-x")
    assert failing.evaluate(failing.originals).mean() > 60
    assert failing.evaluate(failing.generate(20, steps=20)).mean() < 40
    assert failing.evaluate(failing.ensemble())[0] < 40


def test_a_pipeline_of_ones_own(small, fitted, blobs):
    own = Pipeline("own", zoo.Zoo(small, fitted, {}), blobs)
    made = own.generate(5, steps=10)
    assert own.evaluate(made).shape == (5,) and own.similarity(made, own.originals).shape == (5, 40)
    assert {group.vectors.shape for group in own.baselines(7).values()} == {(7, small.layout.size)}
