"""The byte-level BPE tokenizer stored in a GGUF file, and that of a model folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from models.errors import BadInput, WeightsCorrupt
from models.longrope.gguf import GGUF


class Tokenizer:
    """Text to token ids and back. Names of special tokens in a text are text, not commands."""

    def __init__(self, backend: Backend, stop: Sequence[int] = ()) -> None:
        self.backend = backend
        self.stop = tuple(stop)  # ids that end an answer

    def encode(self, text: str) -> list[int]:
        """Ids without any special token. Raises `BadInput` for text with a zero byte: a binary file."""
        if "\x00" in text:
            raise BadInput("This is not text: it holds zero bytes. Paste text, or upload a UTF-8 .txt file.")
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)


def from_gguf(path: str | Path) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata (GPT-2's kind, digits one by one, as SmolLM2's is).

    Raises:
        WeightsCorrupt: the file has none, or one of another kind.
    """
    metadata = GGUF(path).metadata
    kind, flavour = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if kind != "gpt2" or flavour != "smollm" or not tokens or not merges:
        raise WeightsCorrupt(f"{Path(path).name} has no tokenizer of SmolLM2's kind (it says {kind}, {flavour}).")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, [int(metadata["tokenizer.ggml.eos_token_id"]), 0])


def from_folder(path: str | Path) -> Tokenizer:
    """The `tokenizer.json` of a model folder; answers end at `eos_token_id` of its `config.json`, where it has one.

    Raises:
        WeightsCorrupt: it is missing or cannot be read.
    """
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise WeightsCorrupt(f"The folder {Path(path).name} has no tokenizer.json. Choose a complete model folder.")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise WeightsCorrupt(f"tokenizer.json of {Path(path).name} cannot be read. Copy it again.") from error
    config = Path(path) / "config.json"
    end = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id") if config.is_file() else None
    return Tokenizer(backend, [] if end is None else [end] if isinstance(end, int) else end)
