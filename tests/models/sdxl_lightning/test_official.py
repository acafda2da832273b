"""The published layout: tiny random SDXL pipelines under the published file names, saved to and loaded from disk."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from models.errors import BadInput, OfflineError, WeightsCorrupt, WeightsNotFound
from models.runtime import Device
from models.sdxl_lightning import official
from models.sdxl_lightning.pipeline import TEACHER, Network, Order
from models.sdxl_lightning.schedulers import SDXL_BASE, student_scheduler, teacher_scheduler
from tests.models.sdxl_lightning.conftest import kohya_lora, small_unet, xl_pipe, xl_unet

CPU = Device("cpu", None, "float32", False)
BASE = "stable-diffusion-xl-base-1.0"


def load(folder, device=CPU):
    return official.load(lambda *_: None, device, folder, hub=False).model


@pytest.fixture(scope="module")
def family(official_folder):
    return load(official_folder)


@pytest.fixture
def folder(official_folder, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(official_folder, tmp_path / "weights")


def test_the_table_is_the_published_one():
    names = {network: file.name for network, file in official.FILES.items()}
    assert names == {
        Network(1, "unet"): "sdxl_lightning_1step_unet_x0.safetensors",
        **{Network(n, "unet"): f"sdxl_lightning_{n}step_unet.safetensors" for n in (2, 4, 8)},
        **{Network(n, "lora"): f"sdxl_lightning_{n}step_lora.safetensors" for n in (2, 4, 8)},
    }
    assert official.published(Network(1, "unet")).bytes == 5_135_149_736
    with pytest.raises(BadInput, match="no 1-step LoRA.*3.7.3"):
        official.published(Network(1, "lora"))
    with pytest.raises(BadInput, match="No 3-step network was published"):
        official.published(Network(3, "unet"))


def test_sdxl_s_own_unet_has_the_published_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, cross_attention_dim=2048, block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816, transformer_layers_per_block=(1, 2, 10),
        )  # fmt: skip
    parameters = sum(p.numel() for p in unet.parameters())
    assert parameters == 2_567_463_684
    assert abs(2 * parameters - official.UNET_BYTES) < 300_000  # the rest is the header


@pytest.mark.parametrize("network", [*official.FILES, TEACHER], ids=lambda n: n.name)
def test_every_published_network_draws_what_diffusers_draws(family, official_folder, network):
    """Independent path: diffusers' own loading of the folder, and a LoRA multiplied out by hand."""
    pipe = StableDiffusionXLPipeline.from_pretrained(official_folder / BASE, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    steps = network.steps or 3
    if network.form == "unet":
        state = load_file(official_folder / official.FILES[network].name)
        pipe.unet.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    elif network.form == "lora":
        tensors = load_file(official_folder / official.FILES[network].name)
        for name, layer in pipe.unet.named_modules():
            key = "lora_unet_" + name.replace(".", "_")
            if f"{key}.alpha" in tensors:
                down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
                delta = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)) * tensors[f"{key}.alpha"] / len(down)
                layer.weight.data += delta.view_as(layer.weight)
    pipe.scheduler = teacher_scheduler(SDXL_BASE) if network == TEACHER else student_scheduler(SDXL_BASE, steps)
    theirs = pipe(
        "a blue apple", num_inference_steps=steps, guidance_scale=2.0 if network == TEACHER else 0, height=64, width=64,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    order = Order("a blue apple", network, seed=3)
    if network == TEACHER:
        order = replace(order, steps=steps, guidance=2.0)
    ours = family.generate(order).images[0]
    assert ours.size == theirs.size == (64, 64)
    assert np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).max() <= 1


def test_all_sizes_and_image_to_image(family):
    assert family.grid == 4 and family.native == (64, 64)
    made = family.generate(Order("a cat", Network(2, "unet"), size=(72, 48), count=2))
    assert [image.size for image in made.images] == [(72, 48)] * 2
    picture = Image.new("RGB", (300, 200), "red")
    made = family.generate(Order("a cat", Network(4, "lora"), picture=picture, strength=1))
    assert made.evaluations == 1


def test_students_prefer_the_full_network(family):
    assert [family.student(n).form for n in (1, 2, 4, 8)] == ["unet"] * 4
    with pytest.raises(WeightsNotFound, match="no 1-step LoRA"):
        family.generate(Order("a cat", Network(1, "lora")))


def test_loras_stand_in_where_a_full_network_is_missing(folder):
    (folder / "sdxl_lightning_4step_unet.safetensors").unlink()
    (folder / "sdxl_lightning_8step_unet.safetensors").unlink()
    (folder / "sdxl_lightning_8step_lora.safetensors").unlink()
    ours = load(folder)
    assert ours.student(4) == Network(4, "lora")
    with pytest.raises(WeightsNotFound, match="8step_unet.safetensors .5.14 GB. is not in the weights folder"):
        ours.student(8)


def test_without_the_base_s_unet_there_are_full_networks_only(folder):
    (folder / BASE / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    ours = load(folder)
    assert {network.form for network in ours.sources} == {"unet"}
    assert "base's own unet/" in ours.absent[TEACHER] and "is a LoRA on the base's" in ours.absent[Network(2, "lora")]
    assert len(ours.generate(Order("a cat", Network(2, "unet"))).images) == 1


LAYOUTS = {
    "by owner": {BASE: f"stabilityai/{BASE}", "*.safetensors": "ByteDance/SDXL-Lightning"},
    "beside the base": {BASE: BASE, "*.safetensors": "SDXL-Lightning"},
    "the Hub's cache": {
        BASE: f"models--stabilityai--{BASE}/snapshots/abc",
        "*.safetensors": "models--ByteDance--SDXL-Lightning/snapshots/def",
    },
    "the base itself": {BASE: ".", "*.safetensors": "."},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts(official_folder, tmp_path, layout):
    shutil.copytree(official_folder / BASE, tmp_path / layout[BASE], dirs_exist_ok=True)
    (tmp_path / layout["*.safetensors"]).mkdir(parents=True, exist_ok=True)
    for file in official_folder.glob("*.safetensors"):
        shutil.copy(file, tmp_path / layout["*.safetensors"])
    ours = load(tmp_path)
    assert len(ours.sources) == 8
    assert len(ours.generate(Order("a cat", Network(1, "unet"))).images) == 1


def test_half_precision_files(folder):
    """The base as published has an fp16 variant; its VAE overflows there, so the fixed one is taken."""
    shutil.rmtree(folder / BASE)
    pipe = xl_pipe()
    pipe.vae.register_to_config(force_upcast=True)
    pipe.to(torch.float16).save_pretrained(folder / BASE, variant="fp16")
    half = Device("cpu", None, "float16", False)
    ours = load(folder, half)
    assert ours.pipe.text_encoder.dtype == ours.pipe.vae.dtype == torch.float16
    assert ours.network(Order("x", TEACHER, steps=1))[0].dtype == torch.float16
    assert not ours.pipe.vae.config.force_upcast  # the fixed one's config
    shutil.rmtree(folder / "sdxl-vae-fp16-fix")
    assert load(folder, half).pipe.vae.dtype == torch.float32


def test_previews_use_the_tiny_decoder(family):
    seen = []
    family.generate(Order("a cat", Network(2, "unet")), lambda done, total, draw: seen.append(draw()))
    assert family.tiny is not None and [image.size for image in seen] == [(64, 64)] * 2


def test_a_missing_base_says_what_to_get(folder):
    shutil.rmtree(folder / BASE)
    with pytest.raises(WeightsNotFound, match="stabilityai/stable-diffusion-xl-base-1.0"):
        load(folder)


def test_the_hub_out_of_reach_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="model_index.json of stabilityai.*cannot be reached"):
        official.load(lambda *_: None, CPU, tmp_path, hub=True)


def test_another_network_under_a_published_name(folder):
    save_file(small_unet().state_dict(), folder / "sdxl_lightning_2step_unet.safetensors")
    save_file(kohya_lora(small_unet(), 1), folder / "sdxl_lightning_4step_lora.safetensors")
    (folder / "sdxl_lightning_8step_unet.safetensors").write_bytes(b"not weights")
    ours = load(folder)
    with pytest.raises(BadInput, match="2step_unet.safetensors is not a UNet of this base"):
        ours.generate(Order("a cat", Network(2, "unet")))
    with pytest.raises(BadInput, match="made for another"):
        ours.generate(Order("a cat", Network(4, "lora")))
    with pytest.raises(WeightsCorrupt):
        ours.generate(Order("a cat", Network(8, "unet")))
    assert len(ours.generate(Order("a cat", Network(1, "unet"))).images) == 1


def test_a_lora_of_your_own_on_top_of_a_published_one(family, tmp_path):
    save_file(kohya_lora(xl_unet(), 77), tmp_path / "style.safetensors")
    order = Order("a cat", Network(4, "lora"), seed=1)
    styled = family.generate(replace(order, lora=tmp_path / "style.safetensors", lora_scale=0.8))
    assert styled.images[0].tobytes() != family.generate(order).images[0].tobytes()


@pytest.mark.parametrize(
    ("gigabytes", "mode", "tiled", "resident"),
    [(80, "none", False, 14), (24, "none", False, 3), (16, "none", False, 1), (12, "model", False, 2),
     (8, "model", True, 1), (6, "sequential", True, 1)],
)  # fmt: skip
def test_offload_choices(gigabytes, mode, tiled, resident):
    assert official.offload_for(int(gigabytes * 1e9)) == official.Offload(mode, tiled, resident)


def test_model_offload_moves_networks_in_turn(official_folder):
    """With the CPU in the role of the card: the hooks run, and switching networks keeps the pictures."""
    ours = official.load(
        lambda *_: None, CPU, official_folder, hub=False, offload=official.Offload("model", False, 2)
    ).model
    plain = load(official_folder)
    for network in (Network(1, "unet"), Network(2, "unet"), Network(1, "unet")):
        order = Order("a cat", network, seed=2)
        made, expected = ours.generate(order).images[0], plain.generate(order).images[0]
        assert np.abs(np.asarray(made, float) - np.asarray(expected, float)).max() <= 1
        assert ours.pipe.unet is ours.network(order)[0]
    assert ours.base == plain.base
