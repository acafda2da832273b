"""LoRA files: three spellings, closed forms, and everything that does not fit."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from models.errors import BadInput, UnsafeCheckpoint, WeightsCorrupt
from models.sdxl_lightning import adapters
from tests.models.sdxl_lightning.conftest import kohya_lora, small_unet, xl_unet

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "up_blocks.0.resnets.1.conv1"


@pytest.fixture(scope="module")
def unet():
    return xl_unet()


def pair(unet, module, rank=2):
    weight = unet.get_submodule(module).weight
    torch.manual_seed(3)
    return torch.randn(rank, *weight.shape[1:]), torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2))


@pytest.mark.parametrize("module", [LINEAR, CONV])
def test_fusing_adds_alpha_over_rank_times_the_product(unet, module):
    down, up = pair(unet, module)
    adapter = adapters.from_tensors(
        "x", {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up,
              f"unet.{module}.alpha": torch.tensor(3.0)}, unet
    )  # fmt: skip
    changed = xl_unet()
    adapters.fuse(changed, adapter, 0.5)
    expected = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(
        changed.get_submodule(module).weight.shape
    )
    delta = changed.get_submodule(module).weight - unet.get_submodule(module).weight
    torch.testing.assert_close(delta, 0.5 * 3 / 2 * expected, atol=1e-5, rtol=1e-4)
    others = [name for name, p in unet.named_parameters() if not torch.equal(p, changed.get_parameter(name))]
    assert others == [f"{module}.weight"]


def test_a_fused_network_answers_like_one_with_the_lora_beside_it(unet):
    """Independent computation: the layer's output plus scale * up(down(input)), by a forward hook."""
    down, up = pair(unet, LINEAR)
    beside, fused = xl_unet(), xl_unet()
    layer = beside.get_submodule(LINEAR)
    layer.register_forward_hook(lambda _, args, out: out + 0.7 * (args[0] @ down.T) @ up.T)
    adapters.fuse(
        fused, adapters.from_tensors("x", {f"{LINEAR}.lora_A.weight": down, f"{LINEAR}.lora_B.weight": up}, unet), 0.7
    )
    extra = {"text_embeds": torch.randn(1, 32), "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16.0]])}
    call = (torch.randn(1, 4, 16, 16), torch.tensor(499.0), torch.randn(1, 7, 64))
    with torch.inference_mode():
        a, b = (net(*call, added_cond_kwargs=extra).sample for net in (beside, fused))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


SPELLINGS = (
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", "{}"),
    ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", "{}"),
    ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight", "{}"),
    ("{}.lora_A.weight", "{}.lora_B.weight", "{}"),
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_diffusers_and_peft(unet, spelling):
    down, up = pair(unet, LINEAR)
    tensors = {spelling[0].format(LINEAR): down, spelling[1].format(LINEAR): up}
    assert list(adapters.from_tensors("x", tensors, unet).layers) == [LINEAR]


# diffusers name -> name in the original SDXL code, for blocks of one layer and two levels, worked out by hand
ORIGINAL = {
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_2_0_op",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks_3_0_emb_layers_1",
    "down_blocks.1.attentions.0.proj_in": "input_blocks_3_1_proj_in",
    "mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
    "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
    "up_blocks.0.attentions.1.proj_in": "output_blocks_1_1_proj_in",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_1_2_conv",
    "up_blocks.1.resnets.0.conv_shortcut": "output_blocks_2_0_skip_connection",
}


@pytest.mark.parametrize(("module", "original"), ORIGINAL.items())
@pytest.mark.parametrize("original_names", [False, True])
def test_spellings_of_kohya(unet, module, original, original_names):
    down, up = pair(unet, module)
    key = "lora_unet_" + (original if original_names else module.replace(".", "_"))
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    adapter = adapters.from_tensors("x", tensors, unet)
    assert list(adapter.layers) == [module] and adapter.layers[module].alpha == 1


def test_a_whole_lora_from_disk(unet, tmp_path):
    save_file(kohya_lora(unet, 4), tmp_path / "mine.safetensors")
    adapter = adapters.read(tmp_path / "mine.safetensors", unet)
    assert len(adapter.layers) > 40 and adapter.unused == 0


def test_a_text_encoder_s_part_is_counted_not_hidden(unet):
    down, up = pair(unet, LINEAR)
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up,
               "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": down,
               "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": down}  # fmt: skip
    assert adapters.from_tensors("x", tensors, unet).unused == 2


def test_of_another_network(unet, tmp_path):
    save_file(kohya_lora(small_unet(), 4), tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="other.safetensors.*another"):
        adapters.read(tmp_path / "other.safetensors", unet)


def test_half_a_layer_no_lora_and_a_whole_network_are_named(unet):
    down, _ = pair(unet, LINEAR)
    for tensors, says in (
        ({f"unet.{LINEAR}.lora_A.weight": down}, "only half"),
        ({}, "holds no LoRA"),
        (dict(unet.state_dict()), "not part of a LoRA"),
        ({f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": down}, "does not fit"),
        ({"unet.nowhere.lora_A.weight": down, "unet.nowhere.lora_B.weight": down}, "does not have"),
    ):
        with pytest.raises(BadInput, match=says):
            adapters.from_tensors("x", tensors, unet)


def test_a_pickle_is_refused_unopened(unet, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('opened')",))

    for name in ("evil.pt", "evil.bin", "evil.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UnsafeCheckpoint, match="not a safetensors file"):
            adapters.read(tmp_path / name, unet)
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsCorrupt):
        adapters.read(tmp_path / "evil.safetensors", unet)
