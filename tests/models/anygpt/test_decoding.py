"""Generation against `transformers.generate`: same model, same ids."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.anygpt import decoding, lean, sampling
from models.anygpt.decoding import LanguageModel, generate
from models.anygpt.grammar import Free, Grammar, Rule
from models.anygpt.sampling import PRESETS, Sampler
from models.anygpt.vocabulary import stop_ids
from models.errors import BadInput
from tests.models.anygpt.tiny import MaskingProcessor, kept, tiny_llama

PROMPT = [1, 40, 300, 7, 9, 260]


def others() -> list:
    """Other architectures: one with scaled logits, one with a layer norm and learned positions."""
    torch.manual_seed(0)
    cohere = CohereConfig(
        vocab_size=480, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        logit_scale=0.25, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=480, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2)
    return [CohereForCausalLM(cohere).eval(), GPT2LMHeadModel(gpt2).eval()]


def reference(model, prompt: list[int], tokens: int, **settings: object) -> list[int]:
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 2, "max_new_tokens": tokens} | settings
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **options)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("repetition", [1.0, 1.3])
def test_unconstrained_greedy_is_transformers_own(tied, repetition):
    model = tiny_llama(480, seed=4, tie_word_embeddings=tied)
    preset = {"text": Sampler(temperature=0, repetition=repetition)}
    ours = list(generate(LanguageModel(model), PROMPT, Free(480, [2], 300), preset))
    assert ours == reference(model, PROMPT, 300, repetition_penalty=repetition)
    assert len(ours) > 20  # 300 tokens outgrow the first cache buffer


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_transformers_own(guidance):
    """Away from what the stream would be without the request; without any of it the request counts for nothing."""
    model, without = tiny_llama(480, seed=4), [1, 7, 9]
    preset = {"text": Sampler(temperature=0, guidance=guidance)}
    found = list(generate(LanguageModel(model), PROMPT, Free(480, [2], 60), preset, without=without))
    if guidance == 0:
        assert found == reference(model, without, 60)
    else:
        negative = torch.tensor([without])
        assert found == reference(model, PROMPT, 60, guidance_scale=guidance, negative_prompt_ids=negative)
    assert (found == list(generate(LanguageModel(model), PROMPT, Free(480, [2], 60)))) == (guidance == 1)
    assert found != list(generate(LanguageModel(model), PROMPT, Free(480, [2], 60), preset)) or guidance == 1


@pytest.mark.parametrize("which", [0, 1])
def test_other_architectures_plug_in(which):
    model = others()[which]
    lm = LanguageModel(model)
    assert (lm._head is None) == (which == 0)  # scaled logits are noticed
    assert list(generate(lm, PROMPT, Free(480, [2], 40))) == reference(model, PROMPT, 40)


def test_constrained_greedy_is_generate_with_a_mask(small, model):
    tokenizer, vocabulary = small
    rules = {"image": Rule(6, 6, 2), "speech": Rule(1, 9, 2), "music": Rule(4, 16, 1)}
    stop = stop_ids(tokenizer, vocabulary)
    for medium in ("image", "speech", "music"):
        prompt = [*PROMPT, vocabulary.media[medium].start]
        grammar = Grammar(vocabulary, rules, stop, 60)
        ours = list(generate(LanguageModel(model), prompt, grammar))
        mask = LogitsProcessorList([MaskingProcessor(grammar, prompt)])
        assert ours == reference(model, prompt, 60, logits_processor=mask, eos_token_id=list(stop))
        assert len(ours) > 8


def test_a_long_prompt_is_read_in_pieces_without_a_difference(model, monkeypatch):
    prompt = [(7 * i) % 300 + 3 for i in range(400)]
    whole = reference(model, prompt, 5)
    monkeypatch.setattr(decoding, "PREFILL", 96)
    assert list(generate(LanguageModel(model), prompt, Free(400, [2], 5))) == whole


def test_seeds_repeat_and_differ(model, vocabulary, small):
    lm = LanguageModel(model)
    grammar = Grammar(vocabulary, {"speech": Rule(1, 9, 2)}, stop_ids(*small), 40)
    sampled = {seed: list(generate(lm, PROMPT, grammar, PRESETS["repository"], seed)) for seed in (1, 2)}
    assert sampled[1] == list(generate(lm, PROMPT, grammar, PRESETS["repository"], 1))
    assert sampled[1] != sampled[2]


def test_two_streams_at_once_do_not_meet(model):
    lm = LanguageModel(model)
    alone = [list(generate(lm, prompt, Free(400, [2], 20))) for prompt in (PROMPT, PROMPT[::-1])]
    together = [generate(lm, prompt, Free(400, [2], 20)) for prompt in (PROMPT, PROMPT[::-1])]
    pairs = list(zip(*together, strict=True))
    assert [list(ids) for ids in zip(*pairs, strict=True)] == alone


def test_closing_the_iterator_stops_the_work(model):
    calls = []
    lm = LanguageModel(model)
    hook = model.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        ids = generate(lm, PROMPT, Free(400, [2], 100))
        assert len(list(islice(ids, 3))) == 3
        ids.close()
        assert len(calls) == 3
        assert list(ids) == []
    finally:
        hook.remove()


def test_the_only_allowed_id_costs_no_pass(model, vocabulary, small):
    lm = LanguageModel(model)
    calls = []
    hook = model.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        grammar = Grammar(vocabulary, {"image": Rule(6, 6, 1)}, stop_ids(*small), 7)
        ids = list(generate(lm, [*PROMPT, vocabulary.media["image"].start], grammar))
        assert (len(ids), len(calls)) == (7, 6)
    finally:
        hook.remove()


def test_windows_and_empty_prompts(model):
    lm = LanguageModel(model)
    with pytest.raises(BadInput, match="513 tokens and the model reads 512"):
        list(generate(lm, [5] * 513, Free(400, [2], 5)))
    with pytest.raises(BadInput, match="empty"):
        next(generate(lm, [], Free(400, [2], 5)))


@given(st.floats(0.1, 3), st.floats(0.05, 1), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_the_distribution_is_transformers_own(temperature, top_p, top_k, seed):
    scores = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
    sampler = Sampler(temperature, top_p, top_k)
    chances, indices = sampling.distribution(scores, sampler)
    ours = torch.zeros(50).index_put((indices,), chances)
    sums = (scores / temperature).softmax(0).sort(descending=True).values.cumsum(0)
    assume(top_k > 0 or float((sums - top_p).abs().min()) > 1e-4)  # both would be right
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    theirs = scores[None]
    for warper in warpers:
        theirs = warper(None, theirs)
    torch.testing.assert_close(ours, theirs.softmax(-1)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"repetition": 0}, {"candidates": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput, match="it can be"):
        Sampler(**wrong)


def test_candidates_that_would_be_the_same_are_refused():
    with pytest.raises(BadInput, match="all the same"):
        Sampler(temperature=0, candidates=2)


def test_guidance_goes_away_from_a_first_frame_that_says_nothing(small, model):
    tokenizer, vocabulary = small
    units, without = vocabulary.units("music"), PROMPT[:2]
    rule = Rule(12, 12, 1, codes=6, lead=2, unsaid=7)
    grammar = Grammar(vocabulary, {"music": rule}, stop_ids(tokenizer, vocabulary), 13)
    preset = {"text": Sampler(temperature=0), "music": Sampler(temperature=0, guidance=2.5)}
    found = list(
        generate(LanguageModel(model), [*PROMPT, units.start], grammar, preset, without=[*without, units.start])
    )
    streams = [[*PROMPT, units.start], [*without, units.start]]
    state = grammar.begin([units.start])
    for token in found[:-1]:
        with torch.inference_mode():
            asked, plain = (model(input_ids=torch.tensor([stream])).logits[0, -1] for stream in streams)
        scores = plain + 2.5 * (asked - plain)
        assert token == max((token for token in units.ids if token in grammar.allowed(state)), key=lambda i: scores[i])
        streams = [[*streams[0], token], [*streams[1], token if state.count else units.layer(0)[7]]]
        state = grammar.advance(state, token)
    assert len(found) == 13


# Candidates

MUSIC = Sampler(temperature=2.0)  # a random model's choices differ
TALK = {"text": Sampler(temperature=0), "music": MUSIC}
SEVERAL = TALK | {"music": replace(MUSIC, candidates=3)}


def composing(small) -> tuple[Grammar, list[int]]:
    tokenizer, vocabulary = small
    grammar = Grammar(vocabulary, {"music": Rule(8, 8, 1)}, stop_ids(tokenizer, vocabulary), 30)
    return grammar, [*PROMPT, vocabulary.media["music"].start]


def test_a_candidate_that_fits_is_the_only_one(small, model):
    grammar, prompt = composing(small)
    events = list(generate(LanguageModel(model), prompt, grammar, SEVERAL, 3, fit=lambda ids: 1.0))
    assert events == list(generate(LanguageModel(model), prompt, grammar, TALK, 3))


@pytest.mark.parametrize(
    ("fits", "best"), [((0.2, 0.9, 0.5), 1), ((0.2, 0.5, 0.9), 2), ((0.2, 1.0), 1), ((0.4,) * 3, 0)]
)
@pytest.mark.parametrize(("guidance", "without"), [(1.0, 2), (2.5, 2), (2.5, 1)])
def test_the_best_candidate_is_kept_and_the_reply_goes_on_from_it(small, model, fits, best, guidance, without):
    grammar, prompt = composing(small)
    preset = SEVERAL | {"music": replace(SEVERAL["music"], guidance=guidance)}
    for lm in (LanguageModel(model), lean.exact(model)):
        seen: list[list[int]] = []

        def fit(ids, seen=seen):
            start, *run, end = ids  # the reply so far begins with the marker that the prompt ends with
            assert (start, end) == (prompt[-1], grammar.vocabulary.media["music"].end)
            seen.append(run)
            return fits[len(seen) - 1]

        events = list(generate(lm, prompt, grammar, preset, 3, without=PROMPT[:without], fit=fit))
        reply = kept(events)
        assert len(seen) == len(fits) and len({tuple(run) for run in seen}) == len(fits)
        assert all(len(run) == 8 for run in seen)
        assert reply[:8] == seen[best]
        # What follows is what a model says that has read the best run and nothing of the others.
        end = reply[8]
        follow = generate(lm, [*prompt, *seen[best], end], Free(lm.rows, [2], 30), {"text": Sampler(temperature=0)})
        assert grammar.vocabulary.ends(end) == "music"
        text = next(follow)
        assert reply[9] == text or text not in grammar.after(reply[:9], prompt)


def test_candidates_are_the_same_for_the_same_seed(small, model):
    grammar, prompt = composing(small)
    once, again, other = (
        list(generate(LanguageModel(model), prompt, grammar, SEVERAL, seed, fit=lambda ids: 0.5)) for seed in (3, 3, 4)
    )
    assert once == again != other


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(
    ("fits", "numbers"),
    [((0.2, 0.9, 0.5, 0.4, 0.1), [2, 3, 4, 5, 2]), ((0.2, 0.5, 0.6, 1.0), [2, 3, 4]), ((1.0,), [])],
)
def test_candidates_that_are_written_side_by_side_are_those_written_one_after_another(
    small, model, fits, numbers, guidance
):
    """Speech, whose candidates end at different places."""
    tokenizer, vocabulary = small
    grammar = Grammar(vocabulary, {"speech": Rule(1, 30, 1)}, stop_ids(tokenizer, vocabulary), 60)
    prompt = [*PROMPT, vocabulary.media["speech"].start]
    preset = TALK | {"speech": replace(MUSIC, guidance=guidance, candidates=5)}
    found = []
    for together in (1, 2, 3, 4, 16):
        lm, told = lean.exact(model), iter(fits)
        lm.together = together
        found.append(
            list(generate(lm, prompt, grammar, preset, 3, without=PROMPT[:2], fit=lambda ids, t=told: next(t)))
        )
        assert next(told, None) is None
    assert len(found[0]) > 3 and all(events == found[0] for events in found)
    back = [event for event in found[0] if isinstance(event, decoding.Retract)]
    assert [event.candidate for event in back] == numbers
    assert not back or len({event.count for event in back}) > 1


def test_candidates_of_a_model_with_a_sliding_window_do_not_meet(small):
    grammar, prompt = composing(small)
    config = MistralConfig(
        vocab_size=grammar.vocabulary.size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    torch.manual_seed(0)
    sliding = LanguageModel(MistralForCausalLM(config).eval())
    first = kept(generate(sliding, prompt, grammar, TALK, 3))
    told = iter((0.9, 0.5, 0.1))
    assert kept(generate(sliding, prompt, grammar, SEVERAL, 3, fit=lambda ids: next(told))) == first


# Lean Llama


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, [(7 * i) % 300 + 3 for i in range(300)], [5]])
def test_lean_llama_computes_what_transformers_computes(tied, prompt, monkeypatch):
    monkeypatch.setattr(lean, "PREFILL", 130)
    model = tiny_llama(480, seed=4, tie_word_embeddings=tied)
    ours = list(generate(lean.exact(model), prompt, Free(480, [2], 200)))
    assert ours == reference(model, prompt, 200)


@pytest.mark.parametrize("prompt", [PROMPT, [(7 * i) % 300 + 3 for i in range(200)]])
def test_guided_streams_of_lean_llama_are_read_together_without_a_difference(prompt, monkeypatch):
    monkeypatch.setattr(lean, "PREFILL", 130)
    model, preset = tiny_llama(480, seed=4), {"text": Sampler(temperature=0, guidance=2.5)}
    ours, theirs = (
        list(generate(lm, prompt, Free(480, [2], 60), preset, without=[1, 7, 9]))
        for lm in (lean.exact(model), LanguageModel(model))
    )
    assert ours == theirs


def test_streams_read_together_are_what_each_is_alone():
    for made, tolerance in ((lean.exact, 1e-5), (lean.quantised, 2e-2)):
        lm = made(tiny_llama(480, seed=4))
        alone, together = [lm.open(), lm.open()], [lm.open(), lm.open()]
        for ids in ((PROMPT, PROMPT[:3]), ([5], [6]), ([7], [8, 9]), ([10], [11])):
            one = [session.read(piece) for session, piece in zip(alone, ids, strict=True)]
            both = lm.read(list(zip(together, ids, strict=True)))
            torch.testing.assert_close(one, both, atol=tolerance, rtol=0)
        assert [session.length for session in together] == [len(PROMPT) + 3, 7]


def test_eight_bits_are_close(monkeypatch):
    monkeypatch.setattr(lean, "PREFILL", 1)  # every token alone
    model = tiny_llama(480, seed=4)
    everything = Free(480, [], 1).allowed(Free(480, [], 1).begin([]))
    whole, small = lean.exact(model), lean.quantised(model)
    a, b = (lm.scores(lm.open().read(PROMPT), everything) for lm in (whole, small))
    assert (a - b).norm() < 0.03 * a.norm()
    assert not torch.equal(a, b)


def test_lean_llama_obeys_the_same_rules(small):
    tokenizer, vocabulary = small
    model = tiny_llama(vocabulary.size)
    grammar = Grammar(vocabulary, {"music": Rule(4, 16, 1)}, stop_ids(tokenizer, vocabulary), 40)
    prompt = [*PROMPT, vocabulary.media["music"].start]
    exact, generic, small_ids = (
        list(generate(lm, prompt, grammar, PRESETS["repository"], 3))
        for lm in (lean.exact(model), LanguageModel(model), lean.quantised(model))
    )
    assert exact == generic
    state = grammar.begin(prompt)
    for token in small_ids:
        state = grammar.advance(state, token)  # raises for an id that may not follow
    assert state.done


def test_lean_llama_refuses_what_it_does_not_compute():
    with pytest.raises(BadInput, match="'cohere'"):
        lean.exact(others()[0])
    with pytest.raises(BadInput, match="biases"):
        lean.exact(tiny_llama(480, attention_bias=True))
    with pytest.raises(BadInput, match="'linear'"):
        lean.exact(tiny_llama(480, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}))
    with pytest.raises(BadInput, match="reads 512"):
        lean.exact(tiny_llama(480)).open().read([5] * 513)
