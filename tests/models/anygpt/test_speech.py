"""SpeechTokenizer and SoundStorm: published names and shapes, and parts against independent code."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EncodecConfig
from transformers.models.encodec import modeling_encodec as reference

from models.anygpt import checkpoint, soundstorm, speechtokenizer
from models.anygpt.soundstorm import SoundStorm
from models.anygpt.speechtokenizer import SpeechTokenizer
from models.errors import BadInput, UnsafeCheckpoint, WeightsCorrupt
from models.weights import write_safetensors

SMALL = speechtokenizer.Config(n_filters=2, strides=(8, 5, 4, 2), dimension=12, codebook_size=9, n_q=3)
TINY = soundstorm.Config(width=16, depth=2, heads=2, head_width=8, conv_kernel=5, codes=9, levels=3, semantic_codes=9)
PUBLISHED = {  # config.json, its fields for training included
    "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768, "bidirectional": True,
    "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "activation": "Snake",
    "sample_rate": 16000, "codebook_size": 1024, "n_q": 8, "codebook_dim": 512,
}  # fmt: skip


def with_training_tensors(state: dict, c: speechtokenizer.Config, device: str = "cpu") -> dict:
    """What the published file holds besides."""
    extra = {"transform.weight": (768, c.dimension), "transform.bias": (768,)}
    for i in range(c.n_q):
        book = f"quantizer.vq.layers.{i}._codebook."
        extra |= {book + "inited": (1,), book + "cluster_size": (c.codebook_size,)}
        extra |= {book + "embed_avg": (c.codebook_size, c.dimension)}
    return state | {key: torch.zeros(shape, device=device) for key, shape in extra.items()}


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    torch.manual_seed(0)
    return SpeechTokenizer(SMALL).eval()


@pytest.fixture(scope="module")
def storm() -> SoundStorm:
    torch.manual_seed(0)
    return SoundStorm(TINY).eval()


def test_full_size_names_and_values_are_the_published_ones():
    settings = speechtokenizer.read_config(PUBLISHED)
    assert settings == speechtokenizer.Config()
    with torch.device("meta"):
        state = with_training_tensors(SpeechTokenizer(settings).state_dict(), settings, "meta")
    assert len(state) == 192
    assert sum(tensor.numel() for tensor in state.values()) == 120_468_874  # 481.9 MB of float32
    names = set(state)
    assert {
        "encoder.model.0.conv.conv.weight_g", "encoder.model.1.block.0.alpha", "encoder.model.1.block.1.conv.conv.bias",
        "encoder.model.1.shortcut.conv.conv.weight_v", "encoder.model.13.lstm.weight_ih_l1_reverse",
        "encoder.model.15.conv.conv.weight_v", "quantizer.vq.layers.7._codebook.embed",
        "decoder.model.1.lstm.weight_hh_l0", "decoder.model.3.convtr.convtr.weight_g",
        "decoder.model.15.conv.conv.bias",
    } <= names  # fmt: skip
    network, missing = checkpoint.load(SpeechTokenizer, state, "ckpt.dev", unused=speechtokenizer.unused)
    assert missing == []


@pytest.mark.parametrize(("samples", "frames"), [(16000, 50), (16001, 51), (1, 1), (319, 1), (321, 2), (3200, 10)])
def test_a_second_is_fifty_tokens(tokenizer, samples, frames):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, samples)).astype(np.float32))
    codes = tokenizer.encode(x)
    assert codes.shape == (3, 1, frames)
    assert codes.dtype == torch.int64
    assert tokenizer.decode(codes).shape == (1, 1, 320 * frames)
    assert tokenizer.decode(codes[:1]).shape == (1, 1, 320 * frames)  # a preview without the acoustic layers


@pytest.mark.parametrize("length", [1, 2, 7, 40, 41])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 1), (1, 1), (16, 8), (10, 5), (4, 2)])
def test_convolutions_are_encodecs(length, kernel, stride):
    config = EncodecConfig(use_causal_conv=False, pad_mode="reflect", norm_type="weight_norm")
    torch.manual_seed(1)
    x = torch.randn(2, 3, length)
    theirs = reference.EncodecConv1d(config, 3, 5, kernel, stride)
    ours = speechtokenizer._Conv(3, 5, kernel, stride)
    copy_weight_norm(ours.conv["conv"], theirs.conv)
    torch.testing.assert_close(ours(x), theirs(x))
    if stride > 1:
        theirs = reference.EncodecConvTranspose1d(config, 3, 5, kernel, stride)
        ours = speechtokenizer._TransposedConv(3, 5, stride)
        copy_weight_norm(ours.convtr["convtr"], theirs.conv)
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours(x).shape[-1] == stride * length


def copy_weight_norm(ours: nn.Module, theirs: nn.Module) -> None:
    weights = theirs.parametrizations.weight
    ours.load_state_dict({"weight_g": weights.original0, "weight_v": weights.original1, "bias": theirs.bias})


def test_quantisation_is_encodecs(tokenizer):
    config = EncodecConfig(codebook_size=9, codebook_dim=12, target_bandwidths=[1.5])
    theirs = [reference.EncodecEuclideanCodebook(config) for _ in range(3)]
    x = torch.randn(2, 12, 20)
    rest, expected = x.transpose(1, 2), []
    for book, layer in zip(theirs, tokenizer.quantizer.vq["layers"], strict=True):
        book.embed.copy_(layer._codebook.embed)
        expected.append(book.encode(rest))
        rest = rest - book.decode(expected[-1])
    codes = tokenizer.quantizer.encode(x)
    assert torch.equal(codes, torch.stack(expected))
    torch.testing.assert_close(tokenizer.quantizer.decode(codes).transpose(1, 2), x.transpose(1, 2) - rest)


def test_snake():
    snake = speechtokenizer._Snake(2)
    snake.alpha.data = torch.tensor([[[0.5], [2.0]]])
    x = torch.tensor([[[0.3], [-1.2]]])
    expected = [0.3 + np.sin(0.15) ** 2 / 0.5, -1.2 + np.sin(-2.4) ** 2 / 2.0]
    np.testing.assert_allclose(snake(x).detach().flatten(), expected, rtol=1e-6)


def test_files_load_by_name_and_wrong_ones_are_named(tokenizer, tmp_path):
    config = tmp_path / "config.json"
    fields = {"n_filters": 2, "dimension": 12, "codebook_size": 9, "n_q": 3}
    config.write_text(json.dumps(PUBLISHED | fields))
    state = with_training_tensors(tokenizer.state_dict(), SMALL)
    torch.save(state, tmp_path / "ckpt.dev")
    write_safetensors(tmp_path / "ckpt.safetensors", {key: tensor.half() for key, tensor in state.items()})
    x = torch.randn(1, 1, 4000)
    loaded = speechtokenizer.load(tmp_path / "ckpt.dev", config)
    assert torch.equal(loaded.encode(x), tokenizer.encode(x))
    assert speechtokenizer.load(tmp_path / "ckpt.safetensors", config).encode(x).dtype == torch.int64

    del state["encoder.model.0.conv.conv.weight_g"]
    state["encoder.model.0.conv.conv.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "new_names.pt")
    with pytest.raises(WeightsCorrupt, match=r"1 tensors missing.*weight_g; 1 tensors unknown"):
        speechtokenizer.load(tmp_path / "new_names.pt", config)
    config.write_text(json.dumps(PUBLISHED | fields | {"activation": "ELU"}))
    with pytest.raises(WeightsCorrupt, match="activation 'ELU'"):
        speechtokenizer.load(tmp_path / "ckpt.dev", config)
    torch.save({"model": SMALL}, tmp_path / "pickle.pt")
    config.write_text(json.dumps(PUBLISHED))
    with pytest.raises(UnsafeCheckpoint):
        speechtokenizer.load(tmp_path / "pickle.pt", config)


# SoundStorm


def test_soundstorms_full_size_names_and_values():
    with torch.device("meta"):
        state = SoundStorm().state_dict()
    assert len(state) == 356
    assert sum(tensor.numel() for tensor in state.values()) == 351_378_432
    shapes = {
        "net.code_embeds.weight": (7 * 1025, 1024), "net.to_logits.2.weight": (7, 1024, 1024),
        "net.to_logits.2.bias": (1, 1, 7, 1024), "semantic_token_emb.weight": (1024, 1024),
        "net.conformer.layers.11.ff1.fn.fn.net.3.weight": (1024, 4096), "net.heads.0.bias": (7168,),
        "net.conformer.layers.0.attn.fn.to_kv.weight": (2048, 1024), "net.to_logits.0.bias": (1024,),
        "net.conformer.layers.0.conv.ds_conv.conv.weight": (2048, 1, 31),
        "net.conformer.layers.0.conv.net2.1.gamma": (1, 2048, 1),
        "net.conformer.layers.0.ff2.fn.norm.weight": (1024,), "net.conformer.layers.0.post_norm.bias": (1024,),
    }  # fmt: skip
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    # Upstream's naming of the same tensors.
    names = {"net1.0": "net.0", "net1.2": "net.2", "ds_conv": "net.4", "net2.1": "net.6", "net2.2": "net.7"}
    upstream = {}
    for key, tensor in state.items():
        part = next((part for part in names if f".conv.{part}." in key), None)
        upstream[key if part is None else key.replace(f".conv.{part}.", f".conv.{names[part]}.")] = tensor
    assert sum(".conv.net." in key for key in upstream) == 12 * 9
    for variant in (state, upstream):
        _, missing = checkpoint.load(SoundStorm, soundstorm.renamed(variant), "soundstorm.pt")
        assert missing == []


def test_one_conformer_block_by_hand(storm):
    """The same arithmetic, written with sums over single frames."""
    block = storm.net.conformer.layers[0]
    torch.manual_seed(3)
    x = torch.randn(1, 6, 16)
    attention = block.attn.fn
    h = block.attn.norm(x)
    q, (k, v) = attention.to_q(h), attention.to_kv(h).chunk(2, -1)
    out = torch.zeros(6, 16)
    for head in range(2):
        columns = slice(8 * head, 8 * head + 8)

        def turned(t: torch.Tensor, columns: slice = columns) -> torch.Tensor:
            pairs = torch.complex(t[0, :, columns][:, :4], t[0, :, columns][:, 4:])
            turn = torch.outer(torch.arange(6.0), 10000 ** (-torch.arange(0, 8, 2) / 8))
            pairs = pairs * torch.polar(torch.ones_like(turn), turn)
            return torch.cat([pairs.real, pairs.imag], 1)

        weights = (turned(q) @ turned(k).T / 8**0.5).softmax(-1)
        out[:, columns] = weights @ v[0, :, columns]
    angles = torch.outer(torch.arange(6), 10000.0 ** (-torch.arange(0, 8, 2) / 8)).repeat(1, 2)
    torch.testing.assert_close(block.attn(x, angles)[0], attention.to_out(out), atol=1e-5, rtol=1e-5)

    conv = block.conv
    y = conv.net1[2](conv.net1[0](x).transpose(1, 2))
    y = y[:, :32] * y[:, 32:].sigmoid()
    kernel, bias = conv.ds_conv["conv"].weight[:, 0], conv.ds_conv["conv"].bias
    z = torch.stack(
        [
            sum(y[0, :, t + i - 2] * kernel[:, i] for i in range(5) if 0 <= t + i - 2 < 6) + bias
            for t in range(6)
        ],
        1,
    )  # fmt: skip
    z = z * z.sigmoid()
    z = (z - z.mean(0)) / z.var(0, correction=0).clamp(min=1e-6).sqrt() * conv.net2[1].gamma[0]
    torch.testing.assert_close(conv(x)[0], conv.net2[2](z[None])[0].T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("prompted", [False, True])
def test_speech_is_filled_in_a_known_number_of_passes(storm, steps, prompted):
    semantic = torch.arange(9).repeat(3)
    prompt = torch.randint(0, 9, (5, 4), generator=torch.Generator().manual_seed(1)) if prompted else None
    passes, seen = [], []
    hook = storm.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].clone()))
    try:
        codes = storm.generate(semantic, prompt, steps, 7, on_pass=lambda done, total: passes.append((done, total)))
    finally:
        hook.remove()
    assert codes.shape == (27, 4)
    assert torch.equal(codes[:, 0], semantic)
    assert codes.min() >= 0 and codes.max() < 9
    assert passes == [(i + 1, steps + 3) for i in range(steps + 3)]
    context = 0 if prompt is None else 5
    for i, acoustic in enumerate(seen):
        if prompt is not None:
            assert torch.equal(acoustic[:5], prompt[:, 1:])  # the prompt is never changed
        level = max(0, i - steps)
        assert (acoustic[context:, :level] < 9).all()  # known below the open level, masked above
        assert (acoustic[context:, level + 1 :] == storm.mask).all()
    masked = [int((acoustic[context:, 0] == storm.mask).sum()) for acoustic in seen[: steps + 1]]
    assert masked == [27] + [int(27 * np.cos(np.pi / 2 * i / steps)) for i in range(steps)]


def test_speech_repeats_with_its_seed_and_stops_when_told(storm):
    semantic = torch.arange(9).repeat(4)
    assert torch.equal(storm.generate(semantic, seed=1), storm.generate(semantic, seed=1))
    assert not torch.equal(storm.generate(semantic, seed=1, steps=8), storm.generate(semantic, seed=2, steps=8))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storm.generate(semantic, on_pass=stop)
    with pytest.raises(BadInput, match="no speech codes"):
        storm.generate(semantic[:0])
    with pytest.raises(BadInput, match="at least 1 step"):
        storm.generate(semantic, steps=0)
