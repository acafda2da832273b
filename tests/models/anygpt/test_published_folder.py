"""A language model folder as it was published: SentencePiece, added_tokens.json, one torch file."""

import json

import numpy as np
import pytest
import torch

from models.anygpt import templates as t
from models.anygpt.official import load_language_model
from models.anygpt.streams import Part, flatten
from models.anygpt.vocabulary import Codes, Layout, Words, additions, read
from models.runtime import choose_device
from tests.models.anygpt.tiny import tiny_llama

LAYOUT = Layout(Codes(16), Codes(12), Codes(8, 4), Codes(4, 4))
MM = t.TEMPLATES["MMGPT"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path_factory.mktemp("chat")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["draw a red apple and play something calm", "the quick brown fox"] * 20),
        model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True, unk_id=0,
        bos_id=1, eos_id=2, pad_id=-1, remove_extra_whitespaces=False, normalization_rule_name="identity",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    size = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    added = {token: size + i for i, token in enumerate(additions(LAYOUT))}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    plain = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}
    config = {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "use_fast": False, "add_bos_token": True,
        "add_eos_token": False, "model_max_length": 4096, "padding_side": "left", "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
        "added_tokens_decoder": {str(i): plain | {"content": token} for token, i in added.items()},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = tiny_llama(size + len(added))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer, found = load_language_model(folder, choose_device("cpu"))
    return size, tokenizer, model, found


def test_ids_follow_the_sentencepiece_ones(loaded):
    size, tokenizer, _, _ = loaded
    assert len(tokenizer) == size + len(additions(LAYOUT))
    vocabulary = read(tokenizer, LAYOUT)
    assert vocabulary.id("[Human]") == size
    for medium, units in vocabulary.media.items():
        ids = flatten(vocabulary, medium, np.zeros((units.codes.layers, 1), int))
        spelled = t.spell([Part(medium, None, ids)], vocabulary)
        assert tokenizer.encode(spelled, add_special_tokens=False) == list(ids)


def test_prompts_have_the_ids_of_the_whole_string(loaded):
    _, tokenizer, _, _ = loaded
    words = Words(tokenizer, read(tokenizer, LAYOUT))
    picture = Part("image", None, flatten(words.vocabulary, "image", np.array([[3, 4]])))
    pieces = [
        *t.system(MM), *t.user(MM, t.message("interleaved", [picture, Part("text", "draw it")])),
        *t.assistant(MM, ["Look: ", picture]), *t.user(MM, ["and now?"]), *t.opening(MM, "speech"),
    ]  # fmt: skip
    whole = tokenizer.encode(t.spell(pieces, words.vocabulary), add_special_tokens=False)
    assert list(t.encode(pieces, words)) == whole
    assert words.begin == (1,)


def test_the_torch_file_is_read(loaded):
    _, _, model, found = loaded
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name].float(), tensor, atol=1e-3, rtol=1e-2)
