"""SmolLM2-135M-Instruct with the codes of the miniature's media as new tokens: how it is begun, kept and loaded.

Nothing of the language model is changed in place: what is shipped are the adapters and the new rows alone, in 16 bits,
and loading adds them to the packaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.anygpt.embedded.layout import LAYOUT
from models.anygpt.embedded.network import Network, change
from models.anygpt.embedded.speech_ear import ALPHABET
from models.anygpt.vocabulary import Vocabulary, Words, extend
from models.errors import WeightsCorrupt
from models.longrope import gguf, tokenizer
from models.longrope.network import LlamaConfig, prepare
from models.runtime import choose_device
from models.weights import read_safetensors, resolve, write_safetensors

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FILE = "lm.safetensors"
RANK = 32
SEED = 6
OWN = 0.15  # of a new row's variance; the rest it shares with the other codes of its medium, at first
# How phones are spelled that are no letters (`speech_ear.ALPHABET`).
LETTERS = {
    "_": ",", "j": "y", "ɡ": "g", "ŋ": "ng", "ɹ": "r", "ʃ": "sh", "ʒ": "zh", "ð": "th", "θ": "th", "ʤ": "j", "ʧ": "ch",
    "ə": "a", "A": "ay", "I": "eye", "O": "o", "W": "ow", "Y": "oy", "i": "ee", "u": "oo", "æ": "a", "ɑ": "ah",
    "ɔ": "aw", "ɛ": "e", "ɜ": "er", "ɪ": "i", "ʊ": "u", "ʌ": "uh",
}  # fmt: skip
EMBEDDING = "model.embed_tokens.weight"
# Which rows of which of transformers' matrices the adapters' four are, in order.
MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def fast() -> torch.dtype:
    """The dtype of matrix products on this CPU: bfloat16 where it computes in it, else float32."""
    return torch.bfloat16 if choose_device("cpu").native_bf16 else torch.float32


def quick(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model of `load` or `plain` in the numbers of `fast`."""
    return model.bfloat16() if fast() == torch.bfloat16 else model


@cache
def words() -> Words:
    """SmolLM2's own tokenizer with the new tokens behind its 49 152. It begins a stream with nothing."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.from_gguf(_package()).backend
    text = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    return Words(text, extend(text, layout=LAYOUT))


def begin(dtype: torch.dtype | None = None, rank: int = RANK, seed: int = SEED) -> Network:
    """The network before training: SmolLM2, adapters that change nothing, and new rows. dtype: `fast` if None."""
    config, tensors = gguf.read_llama(_package())
    rows = first_rows(tensors[EMBEDDING], words().vocabulary, seed)
    _as_letters(rows, tensors[EMBEDDING], seed)
    return Network(config, prepare(config, tensors, dtype or fast()), rows, rank, seed)


def first_rows(embedding: Tensor, vocabulary: Vocabulary, seed: int) -> Tensor:
    """New rows, as long as the words' are: (new tokens, width).

    Those of one medium begin near one another, so that at first none of them is likelier than the rest.
    """
    before, width = embedding.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((vocabulary.size - before, width), generator=generator)
    for units in vocabulary.media.values():
        mine = torch.tensor(units.ids) - before
        noise[mine] = OWN**0.5 * noise[mine] + (1 - OWN) ** 0.5 * torch.randn(width, generator=generator)
    return embedding.mean(0) + embedding.std(0) * noise


def _as_letters(rows: Tensor, embedding: Tensor, seed: int) -> None:
    """Codes of speech begin as the letters that they sound like, so that words are spelled from the first step on."""
    speech = words().vocabulary.units("speech")
    generator = torch.Generator().manual_seed(seed)
    for unit, phone in enumerate(ALPHABET):
        letters = LETTERS.get(phone.strip("ˈ"), phone.strip("ˈ"))
        ids = words().encode(" " + letters)
        noise = torch.randn(embedding.shape[1], generator=generator) * embedding.std(0)
        rows[speech.ids[unit] - len(embedding)] = embedding[ids].mean(0) + OWN**0.5 * noise


def write(network: Network, path: Path) -> None:
    """What is shipped: `rows`, `down.*` and `up.*`, in 16 bits."""
    write_safetensors(path, {name: tensor.half() for name, tensor in network.state_dict().items()})


def read_into(network: Network, path: Path) -> None:
    """Goes on from shipped weights. Raises `WeightsCorrupt` if they belong to another network."""
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in read_safetensors(path).items()})
    except RuntimeError as error:
        raise WeightsCorrupt(f"{path.name} holds other adapters than this network has. Train anew.") from error


def load(path: Path) -> LlamaForCausalLM:
    """SmolLM2 with the adapters added and the new rows behind its own, float32, for inference.

    Raises:
        WeightsNotFound: the file or the package is missing. WeightsCorrupt: the file is not of this model.
    """
    config, tensors = gguf.read_llama(_package())
    return merged(config, tensors, read_safetensors(path))


def plain() -> LlamaForCausalLM:
    """SmolLM2 as it is packaged, without the new tokens."""
    config, tensors = gguf.read_llama(_package())
    return _model(config, tensors)


def merged(config: LlamaConfig, tensors: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """A model of transformers from SmolLM2's tensors and what was trained (named as in `Network.state_dict`)."""
    tensors = dict(tensors)
    try:
        for i in range(config.layers):
            for part, names in MATRICES.items():
                added = change(trained, i, part)
                for name in names:
                    key = f"model.layers.{i}.{name}.weight"
                    mine, added = added[: len(tensors[key])], added[len(tensors[key]) :]
                    tensors[key] = tensors[key] + mine
        tensors[EMBEDDING] = torch.cat((tensors[EMBEDDING], trained["rows"].float()))
    except (KeyError, RuntimeError) as error:
        raise WeightsCorrupt(
            "The adapters are not those of this language model. Restore them from the repository."
        ) from error
    return _model(config, tensors)


def _model(config: LlamaConfig, tensors: Mapping[str, Tensor]) -> LlamaForCausalLM:
    import transformers

    shapes = transformers.LlamaConfig(
        vocab_size=len(tensors[EMBEDDING]),
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.window,
        rms_norm_eps=config.eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.base},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(shapes)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(shapes)  # its frequencies are in no file
    model.tie_weights()
    model.load_state_dict(dict(tensors) | {"lm_head.weight": tensors[EMBEDDING]})
    return model.eval().requires_grad_(False)


def _package() -> Path:
    return resolve(gguf.PACKAGED).path
