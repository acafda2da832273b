"""The embedded tier from its layout: with random weights of its architectures, and as it is shipped."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

from models import sdxl_lightning
from models.errors import BadInput, WeightsCorrupt, WeightsNotFound
from models.runtime import Device
from models.sdxl_lightning import text, tiers
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.pipeline import TEACHER, Network, Order
from models.sdxl_lightning.schedulers import STEPS, student_scheduler, teacher_scheduler
from models.weights import ASSETS

CPU = Device("cpu", None, "float32", False)
BF16 = Device("cpu", None, "bfloat16", True)
SHIPPED = ASSETS / "sdxl_lightning"
shipped = pytest.mark.skipif(not (SHIPPED / "teacher_unet").is_dir(), reason="the trained networks are not here yet")


def load(folder, device=CPU):
    return tiers.load(lambda *_: None, device, "embedded", folder)


@pytest.fixture(scope="module")
def loaded(embedded_folder):
    return load(embedded_folder)


def diffusers_pipe(folder, network):
    """The same files in a plain diffusers pipeline, without any code of ours but the text encoder's."""
    teacher = UNet2DConditionModel.from_pretrained(folder / "teacher_unet", torch_dtype=torch.float32)
    base = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler = teacher_scheduler(base) if network == TEACHER else student_scheduler(base, network.steps)
    pipe = StableDiffusionPipeline(
        vae=PatchAutoencoder.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        text_encoder=text.text_encoder(),
        tokenizer=text.tokenizer(), unet=teacher, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def difference(ours, theirs):
    return np.abs(np.asarray(ours, np.float32) - np.asarray(theirs, np.float32))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_teacher_is_a_plain_diffusers_pipeline(embedded_folder, loaded, guidance):
    pipe = diffusers_pipe(embedded_folder, TEACHER)
    theirs = pipe("a red fox", num_inference_steps=4, guidance_scale=guidance, generator=torch.manual_seed(1)).images[0]
    ours = loaded.model.generate(Order("a red fox", TEACHER, steps=4, seed=1, guidance=guidance)).images[0]
    assert ours.size == theirs.size == (256, 256)
    assert difference(ours, theirs).max() <= 1


def test_students_are_found_by_their_files(loaded):
    family = loaded.model
    assert set(family.sources) == {TEACHER, Network(1, "unet"), Network(2, "lora"), Network(4, "lora")}
    with pytest.raises(WeightsNotFound, match="8-step student is not shipped yet.*lightning_8step_lora"):
        family.student(8)
    with pytest.raises(WeightsNotFound, match="only the 1-step one ships as a full network"):
        family.generate(Order("a cat", Network(2, "unet")))
    with pytest.raises(WeightsNotFound, match="no 1-step LoRA"):
        family.generate(Order("a cat", Network(1, "lora")))
    for steps in (1, 2, 4):
        assert family.generate(Order("a cat", family.student(steps))).evaluations == steps


def test_the_facts(loaded):
    info = loaded.info
    assert info.tier == "embedded" and info.licence == "Apache-2.0" and info.weights == "VAE, teacher and 3 students"
    assert loaded.model.native == (256, 256) and loaded.model.grid == 16
    assert 20e6 < info.parameters < 60e6 and info.memory_bytes < 1e9


def test_bfloat16_stays_within_two_levels(embedded_folder, loaded):
    order = Order("a blue apple", Network(1, "unet"), seed=2)
    half = load(embedded_folder, BF16).model.generate(order).images[0]
    assert 0 < difference(half, loaded.model.generate(order).images[0]).mean() <= 2


def test_missing_and_damaged_parts_are_named(embedded_folder, tmp_path):
    with pytest.raises(WeightsNotFound, match="teacher_unet"):
        load(tmp_path)
    folder = shutil.copytree(embedded_folder, tmp_path / "broken")
    (folder / "lightning_1step_unet_x0.safetensors").write_bytes(b"cut")
    family = load(folder).model
    with pytest.raises(WeightsCorrupt, match="lightning_1step_unet_x0"):
        family.generate(Order("a cat", Network(1, "unet")))
    assert family.generate(Order("a cat", Network(2, "lora"))).images
    with pytest.raises(BadInput, match="embedded or official"):
        sdxl_lightning.load("huge")


def test_the_scheduler_on_disk_is_never_changed(embedded_folder, loaded):
    before = (embedded_folder / "scheduler" / "scheduler_config.json").read_text()
    for steps in (1, 4, 1, 2):
        loaded.model.generate(Order("a cat", loaded.model.student(steps)))
    config = EulerDiscreteScheduler.load_config(embedded_folder / "scheduler")
    assert (embedded_folder / "scheduler" / "scheduler_config.json").read_text() == before
    assert {k: v for k, v in loaded.model.base.items() if not k.startswith("_")}.items() <= config.items()


@shipped
def test_shipped_pictures_are_diffusers_own_within_two_levels():
    family = tiers.load(lambda *_: None, BF16, "embedded").model
    pipe = diffusers_pipe(SHIPPED, TEACHER)
    theirs = pipe("a blue apple", num_inference_steps=8, guidance_scale=family.guidance, generator=torch.manual_seed(1))
    made = family.generate(Order("a blue apple", TEACHER, steps=8, seed=1))
    assert difference(made.images[0], theirs.images[0]).mean() <= 2


@shipped
@pytest.mark.parametrize("steps", STEPS)
def test_shipped_students_draw_what_was_asked(steps):
    """A blue apple on white is bluer than a red apple; the background is white."""
    if not any((SHIPPED / name).is_file() for network, name in tiers.STUDENTS.items() if network.steps == steps):
        pytest.skip(f"the {steps}-step student is not here yet")
    student = sdxl_lightning.load("embedded", steps)
    blue, red = (
        np.stack(student.generate(f"{colour} apple", seed=0, count=4)).astype(float) for colour in ("blue", "red")
    )
    assert (blue[..., 2] - blue[..., 0]).mean() > (red[..., 2] - red[..., 0]).mean() + 10
    assert blue[:, :8, :8].mean() > 200
