"""SDXL's own recipe on a tiny random pipeline of the published layout: every phase of every stage, two steps each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image

from models.errors import BadInput
from models.sdxl_lightning import hub, official, train
from models.sdxl_lightning.adapters import fuse, read
from models.sdxl_lightning.discriminator import Discriminator
from models.sdxl_lightning.network import pack, told
from models.sdxl_lightning.pipeline import Network
from models.sdxl_lightning.schedule import Schedule, trailing
from models.sdxl_lightning.sdxl import Steps, pictures_in, stages
from models.weights import read_safetensors, sha256_of
from tests.models.sdxl_lightning.conftest import xl_pipe, xl_unet

OPTIONS = ["--device", "cpu", "--batch", "2", "--gathered", "2", "--follow", "2", "--judged", "2", "--free", "2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    xl_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("apple", "red"), ("sky", "blue")):
        Image.new("RGB", (90, 70), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {colour} {name}\n")
    return folder


@pytest.fixture(scope="module")
def trained(base, pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    run(base, pictures, out)
    return out


def run(base: Path, pictures: Path, out: Path) -> None:
    given = ["train", "--sdxl", str(base), "--pictures", str(pictures), "--out", str(out), *OPTIONS, "--whole", "2"]
    before, sys.argv = sys.argv, given
    try:
        train.main()
    finally:
        sys.argv = before


def test_every_published_file_is_written_and_fits_the_base(trained) -> None:
    base = xl_unet()
    for network, file in official.FILES.items():
        if network.form == "lora":
            plain = xl_unet()
            fuse(plain, read(trained / file.name, plain), 1.0)
        else:
            base.load_state_dict(read_safetensors(trained / file.name))
            assert all(torch.isfinite(tensor).all() for tensor in base.state_dict().values())
    assert len(official.FILES) == 7


def test_every_phase_made_its_steps(trained) -> None:
    phases = {path.name for path in (trained / "phases").iterdir()}
    expected = {"32-follow", "1-follow", "1-judged", "1-free"}
    expected |= {f"{n}-{phase}" for n in "842" for phase in ("judged", "free", "whole-free")}
    assert phases == expected
    for phase in phases:
        assert torch.load(trained / "phases" / phase / "last.pt", weights_only=True)["step"] == 2, phase


def test_the_first_stage_learns_and_its_student_is_not_the_base(trained) -> None:
    changed = read_safetensors(trained / "sdxl_lightning_32step_lora.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in changed.items() if name.endswith("lora_B.weight"))


def test_a_second_run_makes_nothing_again(base, pictures, trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    run(base, pictures, trained)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")} == before


def test_hub_folders_are_read_by_diffusers_and_carry_their_scheduler(trained) -> None:
    for steps, prediction in ((8, "epsilon"), (1, "sample")):
        folder = trained / "hub" / f"{steps}step"
        network = UNet2DConditionModel.from_pretrained(folder)
        file = trained / official.FILES[Network(steps, "unet")].name
        for name, tensor in read_safetensors(file).items():
            assert torch.equal(network.state_dict()[name].half(), tensor)
        scheduler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        assert scheduler.config["prediction_type"] == prediction
        assert scheduler.config["timestep_spacing"] == "trailing"
        assert sha256_of(folder / hub.WEIGHTS) in (folder / "README.md").read_text()


def test_packed_words_reach_the_network_as_diffusers_passes_them() -> None:
    network, generator = xl_unet(), torch.Generator().manual_seed(0)
    x, embeds, pooled = (torch.randn(size, generator=generator) for size in ((2, 4, 16, 16), (2, 7, 64), (2, 32)))
    ids, t = torch.tensor([[64, 64, 0, 0, 64, 64], [32, 64, 5, 0, 64, 64]]).float(), torch.tensor([999, 10])
    states, added = told(network, pack(embeds, pooled, ids))
    with torch.inference_mode():
        mine = network(x, t, states, **added).sample
        theirs = network(x, t, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
    assert torch.equal(mine, theirs)


def test_the_discriminator_reads_the_pooled_words_and_sizes() -> None:
    judge = Discriminator(xl_unet(), pairs=True, normed=False).eval()
    x, t, embeds = torch.randn(1, 4, 16, 16), torch.tensor([499]), torch.randn(1, 7, 64)
    ids = torch.full((1, 6), 64.0)
    first = judge(x, t, pack(embeds, torch.zeros(1, 32), ids), x, t)
    assert not torch.equal(first, judge(x, t, pack(embeds, torch.ones(1, 32), ids), x, t))
    assert not torch.equal(first, judge(x, t, pack(embeds, torch.zeros(1, 32), ids / 2), x, t))


def test_noise_stands_for_the_picture() -> None:
    schedule, t = Schedule(), torch.tensor([0, 400, 999])
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    x = schedule.noised(clean, noise, t)
    torch.testing.assert_close(schedule.clean_without(x, noise, t), clean, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", stages(Steps()), ids=lambda stage: stage.name)
def test_the_papers_students_start_and_land_on_their_own_grid(stage) -> None:
    times, end = trailing(stage.grid), stage.grid
    trained = {(times[i], times[min(i + stage.stride * stage.count, end)]) for i in stage.starts}
    mine = trailing(stage.steps)
    assert set(zip(mine[:-1], mine[1:], strict=True)) <= trained
    if stage.steps <= 2:
        assert {times[i] for i in stage.starts} == {999, 749, 499, 249}  # the paper, 3.6


def test_only_the_first_stage_is_guided_and_only_it_and_the_last_follow() -> None:
    found = stages(Steps())
    assert [(stage.name, bool(stage.follow), bool(stage.judged)) for stage in found] == [
        ("32", True, False), ("8", False, True), ("4", False, True), ("2", False, True), ("1", True, True)
    ]  # fmt: skip
    assert (found[0].grid, found[-1].prediction) == (128, "sample")


@pytest.mark.parametrize(
    "make, said",
    [(lambda folder: None, "No picture"), (lambda folder: Image.new("RGB", (8, 8)).save(folder / "a.png"), "caption")],
)
def test_pictures_without_captions_are_refused(tmp_path, make, said) -> None:
    make(tmp_path)
    with pytest.raises(BadInput, match=said):
        list(pictures_in(tmp_path))


def test_a_folder_of_pictures_is_needed(base, capsys) -> None:
    before, sys.argv = sys.argv, ["train", "--sdxl", str(base)]
    try:
        with pytest.raises(SystemExit):
            train.main()
    finally:
        sys.argv = before
    assert "--pictures" in capsys.readouterr().err
