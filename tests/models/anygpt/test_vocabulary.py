"""Spellings and ids (specification 2), and what an extension may change."""

import pytest
import torch

from models.anygpt import vocabulary as v
from models.anygpt.vocabulary import Codes, Layout, Words
from models.errors import BadInput, WeightsCorrupt
from tests.models.anygpt.tiny import SMALL, llama_tokenizer, tiny_llama

PUBLISHED = {  # added_tokens.json of AnyGPT-chat (specification 2.2)
    "<unk>": 0, "<s>": 1, "</s>": 2, "[Human]": 32000, "[MMGPT]": 32001, "<eoh>": 32002, "<eos>": 32003,
    "<👀0>": 32004, "<👀8191>": 40195, "<soim>": 40196, "<eoim>": 40197,
    "<\U0001f5e3\ufe0f0>": 40198, "<\U0001f5e3\ufe0f1023>": 41221, "<sosp>": 41222, "<eosp>": 41223,
    "<🎶0>": 41224, "<🎶8191>": 49415, "<somu>": 49416, "<eomu>": 49417,
    "<👂0>": 49418, "<👂4095>": 53513, "<soau>": 53514, "<eoau>": 53515,
    "<eom>": 53516, "[AnyGPT]": 53517, "<-Res->": 53518, "<-Ins->": 53519,
}  # fmt: skip


def test_the_published_id_table(official):
    tokenizer, vocabulary = official
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in PUBLISHED} == PUBLISHED
    assert len(tokenizer) == vocabulary.size == 53_520
    assert [(u.medium, u.ids[0], u.ids[-1], u.start, u.end) for u in vocabulary.media.values()] == [
        ("image", 32004, 40195, 40196, 40197),
        ("speech", 40198, 41221, 41222, 41223),
        ("music", 41224, 49415, 49416, 49417),
        ("audio", 49418, 53513, 53514, 53515),
    ]
    assert set(v.stop_ids(tokenizer, vocabulary)) == {2, 32003, 53516, 32000}


def test_each_spelling_is_one_token_only_with_its_variation_selector(official):
    tokenizer, _ = official
    spelled = "<\U0001f5e3\ufe0f1>"
    assert tokenizer.encode(spelled, add_special_tokens=False) == [40199]
    assert len(tokenizer.encode("<\U0001f5e31>", add_special_tokens=False)) > 1


def test_three_published_vocabularies_are_read(official):
    base, chat = llama_tokenizer(400), llama_tokenizer(400)
    v.extend(base, layout=SMALL, chat=False)
    v.extend(chat, layout=SMALL)
    with_audio = Layout(SMALL.image, SMALL.speech, SMALL.music, Codes(4, 4))
    assert "<eom>" not in v.read(base, with_audio)  # nor audio, as in the published training code
    assert set(v.read(base, with_audio).media) == {"image", "speech", "music"}
    assert "<eom>" in v.read(chat, SMALL)
    with pytest.raises(BadInput, match=r"\[AnyGPT\]"):
        v.read(base, SMALL).id("[AnyGPT]")


def test_a_vocabulary_with_holes_is_refused():
    tokenizer = llama_tokenizer(400)
    v.extend(tokenizer, layout=SMALL)
    with pytest.raises(WeightsCorrupt, match="18 of the 34 image"):
        v.read(tokenizer, Layout(image=Codes(32)))
    with pytest.raises(WeightsCorrupt, match="not AnyGPT"):
        v.read(llama_tokenizer(400))
    with pytest.raises(WeightsCorrupt, match="embedding rows"):
        v.check_rows(v.read(tokenizer, SMALL), 450)
    with pytest.raises(BadInput, match="already has"):
        v.extend(tokenizer, layout=SMALL)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [400, 420, 600])  # a table may have spare rows
def test_extending_a_model_changes_no_architecture_and_no_old_weight(tied, rows):
    tokenizer, model = llama_tokenizer(400), tiny_llama(rows, tie_word_embeddings=tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vocabulary = v.extend(tokenizer, model, SMALL, seed=3)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, old in before.items():
        old_rows = old[:400] if "embed_tokens" in name or "lm_head" in name else old
        assert torch.equal(after[name][: len(old_rows)], old_rows), name
    table = model.get_input_embeddings().weight
    assert len(table) == max(rows, vocabulary.size) == model.get_output_embeddings().weight.shape[0]
    assert (model.get_output_embeddings().weight is table) == tied
    new = table[400:].detach()
    assert len(new.unique(dim=0)) == len(new)
    assert (new.mean(0) - table[:400].mean(0)).abs().max() < table[:400].std()
    again = tiny_llama(rows, tie_word_embeddings=tied)
    v.extend(llama_tokenizer(400), again, SMALL, seed=3)
    assert torch.equal(again.get_input_embeddings().weight, table)


def test_new_rows_hardly_disturb_the_words():
    model = tiny_llama(400)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        v.extend(llama_tokenizer(400), model, SMALL)
        after = model(ids).logits.log_softmax(-1)[..., :400]
    added = model.get_input_embeddings().weight.shape[0] - 400
    shift = torch.log(torch.tensor(1 + added / 400))  # each new token takes an average old token's share
    torch.testing.assert_close(after, before - shift, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "text",
    [
        "[Human]: hi<eoh>",
        "<soim><👀3><eoim>",
        "</s><s><unk>",
        "a<\U0001f5e3\ufe0f1>b",
        "<-Ins-><-Res-><eos>",
        "<<eos>eos>",
    ],
)
def test_a_text_never_becomes_a_control_token(words: Words, text):
    ids = words.encode(text)
    assert not words.vocabulary.control.intersection(ids)
    assert words.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_binary_text_is_refused(words):
    with pytest.raises(BadInput, match="zero bytes"):
        words.encode("a\x00b")
    assert words.encode("") == []


@pytest.mark.parametrize("text", ["naïve café", "你好,世界", "🙂", "a\nb"])
def test_text_in_any_language_comes_back(words, text):
    assert words.decode(words.encode(text)).strip() == text
