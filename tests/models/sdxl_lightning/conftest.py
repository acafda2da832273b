"""Tiny pipelines of the real classes with random weights; the tokenizers are made here, so nothing is fetched."""

import string
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.network import build_unet
from models.sdxl_lightning.schedule import scheduler_config
from models.sdxl_lightning.schedulers import SDXL_BASE
from tests.one_thread import one_thread

__all__ = ["one_thread"]

WORDS = ("a", "apple", "blue", "red", "cat", "dog", "with", "and", "two", "pears", "on", "background", "pink", "fox")


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Byte-level, without merges: every letter is a token of its own."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = letters + [f"{letter}</w>" for letter in letters]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    vocab.setdefault("!", 0)
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=77)


def bert_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    return BertTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, model_max_length=16)


def bert_encoder(width: int = 32) -> BertModel:
    config = BertConfig(
        vocab_size=128, hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
        max_position_embeddings=64, use_attention_mask=True,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def small_unet(seed: int = 0, channels: int = 4, cross: int = 32) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=channels, out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, attention_head_dim=8, norm_num_groups=8,
    ).eval()  # fmt: skip


def vae(channels: int = 4, factor_levels: int = 3) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8,) * factor_levels, in_channels=3, out_channels=3, latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * factor_levels, up_block_types=["UpDecoderBlock2D"] * factor_levels,
        norm_num_groups=4, layers_per_block=1, force_upcast=False, sample_size=32,
    ).eval()  # fmt: skip


@pytest.fixture
def small_pipe() -> StableDiffusionPipeline:
    """The embedded tier's classes, 32 x 32 pictures of 8 x 8 latents."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=bert_encoder(), tokenizer=bert_tokenizer(), unet=small_unet(),
        scheduler=EulerDiscreteScheduler.from_config(dict(SDXL_BASE)), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def xl_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), cross_attention_dim=64, norm_num_groups=8,
        projection_class_embeddings_input_dim=80,
    ).eval()  # fmt: skip


def xl_pipe() -> StableDiffusionXLPipeline:
    config = CLIPTextConfig(
        bos_token_id=188, eos_token_id=189, pad_token_id=1, hidden_size=32, intermediate_size=37, projection_dim=32,
        num_attention_heads=4, num_hidden_layers=3, vocab_size=256,
    )  # fmt: skip
    torch.manual_seed(0)
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=CLIPTextModel(config).eval(),
        text_encoder_2=CLIPTextModelWithProjection(config).eval(), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer("!"), unet=xl_unet(), scheduler=EulerDiscreteScheduler.from_config(dict(SDXL_BASE)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory) -> Path:
    """A `--weights-dir` with everything published, by its own name: base, UNets, LoRAs, VAE, tiny VAE."""
    folder = tmp_path_factory.mktemp("official")
    pipe = xl_pipe()
    pipe.save_pretrained(folder / "stable-diffusion-xl-base-1.0")
    for number, name in enumerate(("1step_unet_x0", "2step_unet", "4step_unet", "8step_unet"), 1):
        state = {key: tensor.half() for key, tensor in xl_unet(number).state_dict().items()}
        save_file(state, folder / f"sdxl_lightning_{name}.safetensors")
    for steps in (2, 4, 8):
        save_file(kohya_lora(pipe.unet, steps), folder / f"sdxl_lightning_{steps}step_lora.safetensors")
    vae().save_pretrained(folder / "sdxl-vae-fp16-fix")
    torch.manual_seed(2)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1), latent_channels=4,
    ).save_pretrained(folder / "taesdxl")  # fmt: skip
    return folder


def kohya_lora(network: torch.nn.Module, seed: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA on all attention projections and convolutions of the blocks, named as kohya's tools do."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or "block" not in name:
            continue
        key, weight = "lora_unet_" + name.replace(".", "_"), layer.weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.2
        up = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator) * 0.2
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    return tensors


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory) -> Path:
    """The shipped layout with random weights of the shipped architectures, students but the 8-step one."""
    folder = tmp_path_factory.mktemp("embedded")
    torch.manual_seed(0)
    own_vae = PatchAutoencoder()
    own_vae.components.normal_(std=0.1)
    own_vae.half().save_pretrained(folder / "vae")
    network = build_unet()
    save_file(
        {name: tensor.half() for name, tensor in build_unet().state_dict().items()},
        folder / "lightning_1step_unet_x0.safetensors",
    )
    for steps in (2, 4):
        save_file(kohya_lora(network, steps, 4), folder / f"lightning_{steps}step_lora.safetensors")
    network.half().save_pretrained(folder / "teacher_unet")
    EulerDiscreteScheduler.from_config(scheduler_config()).save_pretrained(folder / "scheduler")
    return folder
