"""SEED, unCLIP and EnCodec: published names and shapes, and parts against transformers' and torch's own code."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image
from torch import nn
from transformers import (
    BertConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    EncodecConfig,
    EncodecModel,
)
from transformers.models.bert import modeling_bert

from models.anygpt import encodec, images, seed, unclip
from models.anygpt.audio import Audio
from models.anygpt.codecs import Codecs, Encoded, Lazy, Missing, Rendering
from models.anygpt.seed import Seed
from models.errors import BadInput, WeightsCorrupt, WeightsNotFound

TINY = seed.Config(
    image=28, patch=14, vision_width=16, vision_depth=2, vision_heads=2, vision_mlp=24, width=24, depth=4, heads=3,
    mlp=32, queries=32, codes=50, code_width=8, decoder_depth=1, down=(8, 6, 4), embedding=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Seed:
    torch.manual_seed(0)
    return Seed(TINY).eval()


def published(state: dict[str, torch.Tensor], c: seed.Config) -> dict[str, torch.Tensor]:
    """The tensors of `seed_quantizer.pt`: without the vision encoder, with the text branch."""
    file = {key: tensor for key, tensor in state.items() if not key.startswith("visual_encoder.")}
    file |= {key.replace("blocks_image", "blocks"): file[key] for key in file if key.startswith("blocks_image")}
    extra = {"pos_embed": (1, c.queries, c.width), "Qformer.bert.embeddings.position_ids": (1, 512)}
    return file | {key: torch.zeros(shape, device=state["query_tokens"].device) for key, shape in extra.items()}


def test_seeds_full_size_names_and_values():
    with torch.device("meta"):
        state = Seed().state_dict()
    file = published(state, seed.Config())
    assert len(file) == 370
    assert sum(tensor.numel() for tensor in file.values()) == pytest.approx(164.1e6, abs=0.05e6)
    network, missing = seed.assemble(file | {"text_proj.weight": torch.zeros(1)}, "seed_quantizer.pt")
    assert len(missing) == 511 == 39 * 13 + 4
    assert all(key.startswith("visual_encoder.") for key in missing)
    assert sum(state[key].numel() for key in missing) == pytest.approx(985.9e6, abs=0.05e6)
    shapes = {
        "visual_encoder.pos_embed": (1, 257, 1408), "visual_encoder.blocks.38.attn.qkv.weight": (4224, 1408),
        "visual_encoder.blocks.0.attn.v_bias": (1408,), "visual_encoder.blocks.0.mlp.fc1.weight": (6144, 1408),
        "Qformer.bert.encoder.layer.10.crossattention.self.key.weight": (768, 1408), "query_tokens": (1, 32, 768),
        "Qformer.bert.encoder.layer.11.attention.output.LayerNorm.weight": (768,),
        "Qformer.bert.encoder.layer.3.intermediate_query.dense.weight": (3072, 768),
        "Qformer.bert.encoder.layer.3.output_query.LayerNorm.bias": (768,), "image_down.4.weight": (32, 128),
        "quantize.embedding.weight": (8192, 32), "encode_task_layer.2.weight": (32, 768),
        "distill_image_proj.weight": (1024, 1024), "blocks_image.3.attn.qkv.bias": (2304,),
    }  # fmt: skip
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert "Qformer.bert.encoder.layer.1.crossattention.self.key.weight" not in state


def test_another_missing_tensor_is_an_error(network):
    file = published(network.state_dict(), TINY)
    del file["ln_vision.weight"]
    with pytest.raises(WeightsCorrupt, match=r"1 tensors missing, such as ln_vision\.weight"):
        seed.assemble(file, "seed_quantizer.pt", TINY)
    file["ln_vision.weight"] = torch.zeros(3)
    with pytest.raises(WeightsCorrupt, match="another shape"):
        seed.assemble(file, "seed_quantizer.pt", TINY)


def test_two_files_make_one_network(network, tmp_path, monkeypatch):
    state = network.state_dict()
    eva = {key.removeprefix("visual_encoder."): t for key, t in state.items() if key.startswith("visual_encoder.")}
    torch.save(published(state, TINY), tmp_path / "seed_quantizer.pt")
    torch.save({key: t.half() for key, t in eva.items()} | {"head.weight": torch.zeros(2)}, tmp_path / "eva_vit_g.pth")
    torch.save({"cls_token": eva["cls_token"]}, tmp_path / "other.pth")
    monkeypatch.setattr(seed.assemble, "__defaults__", (TINY,))
    both = seed.load(tmp_path / "seed_quantizer.pt", tmp_path / "eva_vit_g.pth")
    x = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(both.features(x), network.features(x), atol=2e-2, rtol=0)  # half precision in between
    decoder = seed.load(tmp_path / "seed_quantizer.pt")
    codes = torch.randint(0, 50, (1, 32))
    torch.testing.assert_close(decoder.embed(codes), network.embed(codes))
    with pytest.raises(WeightsCorrupt, match="not EVA ViT-g"):
        seed.load(tmp_path / "seed_quantizer.pt", tmp_path / "other.pth")


def test_codes_are_the_nearest_and_embeddings_have_clips_size(network):
    x = torch.randn(3, 3, 28, 28)
    codes = network.encode(x)
    assert codes.shape == (3, 32)
    distances = torch.cdist(network.features(x), network.quantize["embedding"].weight[None])
    assert torch.equal(codes, distances.argmin(-1))
    assert network.embed(codes).shape == (3, 12)
    for wrong in (codes[:, :31], codes[:, :1], codes[0]):
        with pytest.raises(BadInput, match="32 codes"):
            network.embed(wrong)


def test_the_queries_are_causal(network):
    x = torch.randn(1, 3, 28, 28)
    before = network.features(x)
    with torch.no_grad():
        old = network.query_tokens[:, 20:].clone()
        network.query_tokens[:, 20:] = torch.randn(1, 12, 24)
        after = network.features(x)
        network.query_tokens[:, 20:] = old
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert (before[:, 20:] - after[:, 20:]).abs().min() > 0


def test_the_q_former_is_bert(network):
    """Query-only layers against transformers' BERT with the same weights; even layers also look at the picture."""
    config = BertConfig(
        hidden_size=24, num_attention_heads=3, intermediate_size=32, num_hidden_layers=1, hidden_act="gelu",
        attn_implementation="eager",
    )  # fmt: skip
    theirs = modeling_bert.BertLayer(config).eval()
    ours = network.Qformer["bert"].encoder["layer"][1]
    names = {"intermediate_query": "intermediate", "output_query": "output"}
    state = {}
    for key, tensor in ours.state_dict().items():
        first, _, rest = key.partition(".")
        state[f"{names.get(first, first)}.{rest}"] = tensor
    theirs.load_state_dict(state)
    x = torch.randn(2, 32, 24)
    mask = torch.full((32, 32), -torch.inf).triu(1)[None, None]
    out = theirs(x, attention_mask=mask)
    torch.testing.assert_close(ours(x, torch.zeros(0)), out[0] if isinstance(out, tuple) else out, atol=1e-5, rtol=1e-5)


def test_a_vision_block_is_torchs_own(network):
    ours = network.visual_encoder.blocks[0]
    theirs = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    nn.init.normal_(ours.attn.q_bias)
    nn.init.normal_(ours.attn.v_bias)
    bias = torch.cat([ours.attn.q_bias, torch.zeros(16), ours.attn.v_bias])
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.attn.qkv.weight, "self_attn.in_proj_bias": bias,
            "self_attn.out_proj.weight": ours.attn.proj.weight, "self_attn.out_proj.bias": ours.attn.proj.bias,
            "linear1.weight": ours.mlp["fc1"].weight, "linear1.bias": ours.mlp["fc1"].bias,
            "linear2.weight": ours.mlp["fc2"].weight, "linear2.bias": ours.mlp["fc2"].bias,
            "norm1.weight": ours.norm1.weight, "norm1.bias": ours.norm1.bias,
            "norm2.weight": ours.norm2.weight, "norm2.bias": ours.norm2.bias,
        }
    )  # fmt: skip
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_pictures_are_stretched_or_letterboxed():
    picture = Image.new("RGB", (40, 10), (255, 0, 0))
    stretched, boxed = images.stretched(picture, 28), images.letterboxed(picture, 28)
    assert stretched.size == boxed.size == (28, 28)
    assert stretched.getpixel((14, 1)) == (255, 0, 0)
    assert boxed.getpixel((14, 14)) == (255, 0, 0)
    assert boxed.getpixel((14, 1)) == (123, 117, 104)
    x = images.normalised(Image.new("RGB", (2, 2), (123, 117, 104)))
    assert x.shape == (1, 3, 2, 2)
    assert x.abs().max() < 0.02


# unCLIP


@pytest.fixture(scope="module")
def unclip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unclip")
    torch.manual_seed(0)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    pipe = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=12, projection_dim=12, num_hidden_layers=1, num_attention_heads=2, image_size=32,
                intermediate_size=16, patch_size=16,
            )
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=12),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=16),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=3, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
            )
        ),
        unet=UNet2DConditionModel(
            sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4,
            attention_head_dim=(2, 4), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            class_embed_type="projection", projection_class_embeddings_input_dim=24, cross_attention_dim=16,
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1),
        vae=AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def test_embeddings_become_pictures(unclip_folder):
    pipe = unclip.load(unclip_folder)
    steps = []
    a, b, c = (
        unclip.draw(pipe, torch.full((1, 12), level), s, 2, on_step=lambda done, total: steps.append((done, total)))
        for level, s in ((0.0, 1), (0.0, 1), (3.0, 1))
    )
    assert a.size == (16, 16)
    assert steps[:2] == [(1, 2), (2, 2)]
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not np.array_equal(a, unclip.draw(pipe, torch.zeros((1, 12)), 2, 2))


def test_an_incomplete_unclip_folder_is_named(unclip_folder, tmp_path):
    with pytest.raises(WeightsCorrupt, match="no complete unCLIP folder"):
        unclip.load(tmp_path)


# EnCodec


def small_encodec(folder, shortcut: bool = True, layers: float = 2.2, rate: int = 32000) -> EncodecModel:
    """`facebook/encodec_32khz` with fewer filters."""
    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=rate, audio_channels=1, codebook_size=2048, codebook_dim=128, hidden_size=128, num_filters=2,
        upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[layers], use_causal_conv=False, normalize=False,
        chunk_length_s=None, num_lstm_layers=2, num_residual_layers=1, use_conv_shortcut=shortcut,
    )  # fmt: skip
    model = EncodecModel(config).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("samples", "frames"), [(160_000, 250), (158_720, 248), (640, 1), (641, 2)])
def test_five_seconds_are_a_thousand_tokens(tmp_path, samples, frames):
    small_encodec(tmp_path)
    model = encodec.load(tmp_path)
    rng = np.random.default_rng(0)
    codes = encodec.encode(model, Audio(rng.normal(size=samples).astype(np.float32), 32000))
    assert codes.shape == (4, frames)
    assert codes.size == 4 * frames
    assert codes.min() >= 0 and codes.max() < 2048
    sound = encodec.decode(model, codes)
    assert (len(sound.samples), sound.rate) == (640 * frames, 32000)
    again = model.decode(torch.from_numpy(codes)[None, None], [None]).audio_values[0, 0].detach().numpy()
    np.testing.assert_allclose(sound.samples, again, atol=1e-5)


def test_the_configuration_is_believed_and_checked(tmp_path):
    small_encodec(tmp_path / "a", shortcut=False)
    assert encodec.load(tmp_path / "a").config.use_conv_shortcut is False
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"use_conv_shortcut": True}))
    with pytest.raises(WeightsCorrupt, match="differ in 24 tensors"):
        encodec.load(tmp_path / "a")
    small_encodec(tmp_path / "b", layers=1.1)
    with pytest.raises(WeightsCorrupt, match="with 2 layers"):
        encodec.load(tmp_path / "b")
    with pytest.raises(WeightsCorrupt, match="no complete EnCodec"):
        encodec.load(tmp_path / "nothing")


# Routing


def test_a_missing_codec_says_which_file_it_needs():
    codecs = Codecs(
        {"image": lambda value: Encoded(np.zeros((1, 32), int), value), "speech": Missing("Needs ckpt.dev.")},
        {"image": lambda codes, rendering: (codes.shape, rendering.seed)},
    )
    assert codecs.reason("read", "image") is None
    assert codecs.reason("read", "speech") == "Needs ckpt.dev."
    assert codecs.make("image", codecs.read("image", None).codes, Rendering(seed=3)) == ((1, 32), 3)
    with pytest.raises(WeightsNotFound, match=r"ckpt\.dev"):
        codecs.read("speech", None)
    with pytest.raises(WeightsNotFound, match="cannot make music"):
        codecs.make("music", np.zeros((4, 1), int), Rendering())
    with pytest.raises(BadInput, match="steps"):
        Rendering(speech_steps=0)
    with pytest.raises(BadInput, match="guidance"):
        Rendering(guidance=0)


def test_lazy_loads_once_and_tries_again_after_a_failure():
    calls = []

    def load() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise WeightsCorrupt("damaged")

    lazy = Lazy(load)
    with pytest.raises(WeightsCorrupt):
        lazy()
    assert lazy() is None is lazy()
    assert len(calls) == 2
