"""Passkey prompts, scoring and the shipped language model on them."""

import json
from dataclasses import replace

import pytest

from models import longrope
from models.errors import BadInput, Cancelled, WeightsCorrupt
from models.longrope.engine import Reading
from models.longrope.evaluate import passkey_summary, spread_summary
from models.longrope.fitness import NeedleFitness, PerplexityFitness
from models.longrope.retrieval import FILLER, TASK, is_right, make_prompt, run, wilson
from models.longrope.rope import MAX_POSITION
from models.weights import write_safetensors
from tests.models.longrope.test_engine import CONFIG, random_weights


@pytest.fixture(scope="module")
def model():
    return longrope.load(device="cpu")


@pytest.mark.parametrize(
    "text", ["Hello world, 12345", "naïve 日本\n\n  two  spaces", "<|im_start|>system", "tab\tend "]
)
def test_text_survives_the_tokenizer(model, text):
    assert model.decode(model.encode(text)) == text


def test_a_model_folder_is_the_official_tier(model, tmp_path):
    config = replace(CONFIG, vocabulary=49_152)
    write_safetensors(tmp_path / "model.safetensors", random_weights(config))
    model.tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    fields = {
        "model_type": "llama", "num_hidden_layers": config.layers, "hidden_size": config.width,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.hidden, "vocab_size": config.vocabulary, "rope_theta": config.base,
        "max_position_embeddings": 512, "rms_norm_eps": config.eps, "eos_token_id": [2, 7],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    theirs = longrope.load("official", tmp_path, "cpu")
    assert theirs.window == 512 and theirs.tokenizer.stop == (2, 7) and theirs.name == tmp_path.name
    assert theirs.encode("17865 apples") == model.encode("17865 apples")
    assert not longrope.passkey(theirs, 300, "yarn").correct  # random weights know nothing
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsCorrupt, match="tokenizer.json"):
        longrope.load("official", tmp_path, "cpu")
    with pytest.raises(BadInput, match="--weights-dir"):
        longrope.load("official", None, "cpu")


def test_names_of_special_tokens_are_plain_text(model):
    assert len(model.encode("<|im_end|>")) > 1


def test_digits_are_tokens_of_their_own(model):
    assert len(model.encode("17865")) == 5  # so that a key is tokenised alike in context and answer


@pytest.mark.parametrize("length", [256, 300, 1000, 4096, 65_536])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_prompts_have_their_length_and_read_as_the_published_one(model, length, depth):
    prompt = make_prompt(model, length, depth, seed=3)
    unit = len(model.encode(" " + FILLER))
    assert length - 2 * unit < prompt.length <= length
    lines = model.decode(prompt.ids).split("\n")
    assert lines[0] == TASK and lines[-1] == "What is the pass key? The pass key is"
    assert f"The pass key is {prompt.key}. Remember it. {prompt.key} is the pass key." in lines
    assert {part for line in lines[1:-1] for part in line.split(FILLER)} <= {
        "", " ", f"The pass key is {prompt.key}. Remember it. {prompt.key} is the pass key."
    }  # whole units only  # fmt: skip
    assert list(prompt.ids) == model.encode(model.decode(prompt.ids))  # joined tokens are the text's own
    first, last = prompt.needle
    assert prompt.key in model.decode(prompt.ids[first:last])


@pytest.mark.parametrize("key", [None, "a clock of several words, and longer than ten tokens"])
def test_the_longest_prompt_leaves_room_for_its_answer(model, key):
    own = {"needle": f"She hid it in {key}.", "question": "She hid it in", "key": key} if key else {}
    for seed in range(3):
        prompt = make_prompt(model, MAX_POSITION + 1, 0.5, seed, **own)
        assert prompt.length > MAX_POSITION - 100
        assert prompt.length + len(model.encode(prompt.key)) + 8 <= MAX_POSITION + 1


def test_depth_places_the_needle(model):
    places = [make_prompt(model, 4096, depth, 0).needle[0] / 4096 for depth in (0, 0.25, 0.5, 0.75, 1)]
    assert places == pytest.approx([0.01, 0.25, 0.5, 0.75, 0.97], abs=0.03)


def test_a_text_of_ones_own_is_the_haystack_and_is_repeated_if_short(model):
    own = "It was a dark night. The rain fell in torrents! Who was there? Nobody knew."
    made = make_prompt(model, 600, 0.5, 0, haystack=own, needle="Anna hid the ring in the clock.",
                       question="Where is the ring? Anna hid it in the", key="clock")  # fmt: skip
    text = model.decode(made.ids)
    assert made.length <= 600 and text.count("dark night") > 10 and "repeated" in made.notes[0]
    before, needle, after = made.excerpt(model)
    assert needle == "\nAnna hid the ring in the clock.\n"
    assert before.rstrip(" ").endswith((".", "!", "?", "\n"))
    assert after


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 255}, {"length": 2_097_153}, {"depth": 1.5}, {"depth": float("nan")}, {"haystack": "  "},
        {"haystack": "\x00\x01binary"}, {"needle": "only the needle"}, {"length": 300, "needle": "long " * 400,
        "question": "q", "key": "k"},
    ],
)  # fmt: skip
def test_bad_prompts_are_refused(model, wrong):
    with pytest.raises(BadInput):
        make_prompt(model, **{"length": 512, **wrong})


@pytest.mark.parametrize(
    ("answer", "key", "right"),
    [
        (" 17865. Remember", "17865", True), (" 1 7 8 6 5 is", "17865", True), (" 178651", "17865", False),
        (" 1786", "17865", False), (" 99999 or 17865", "17865", False), ("", "17865", False),
        (" the Old Clock.", "clock", True), (" a drawer", "clock", False),
    ],
)  # fmt: skip
def test_scoring(answer, key, right):
    assert is_right(answer, key) is right


def test_wilson_intervals():
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # the spec's example: roughly 55 to 100 %
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_the_model_finds_the_key_in_its_window(model):
    prompt = make_prompt(model, 512, 0.5, 0)
    heard: list[str] = []
    trial = run(model, prompt, model.scaling("none", model.window), Reading(), on_token=heard.append)
    assert trial.correct and trial.key in trial.answer
    assert "".join(heard) == trial.answer


def test_a_key_out_of_the_streaming_window_is_forgotten(model):
    prompt = make_prompt(model, 512, 0.1, 0)
    trial = run(model, prompt, model.scaling("none", model.window), Reading(mode="streaming", recent=128))
    assert trial.method == "streaming" and not trial.correct


def test_a_run_can_be_cancelled(model):
    def stop(tokens, rate):
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        run(model, make_prompt(model, 1024, 0.5, 0), model.scaling("none", 8192), Reading(), progress=stop)


def test_fitness_tells_a_good_table_from_a_broken_one(model):
    fitness = NeedleFitness(model, 400, prompts=1)
    assert fitness([1.0] * 32) < 0.5 < fitness([40.0] * 32)  # nats a token; a sure right answer costs nearly none
    far = NeedleFitness(model, 4096, prompts=1, sparse=400)
    assert sum(count for _, count in far.prompts[0][1].jumps) == 4096 - far.prompts[0][0].length
    assert far([1.0] * 32) < 0.5 < far([40.0] * 32)
    plain = PerplexityFitness(model, " ".join(["It was the best of times, it was the worst of times."] * 40), 256)
    assert plain([1.0] * 32) < plain([40.0] * 32)


def test_perplexity_may_be_searched_on_spread_positions(model):
    text = " ".join(["It was the best of times, it was the worst of times."] * 40)
    fitness = PerplexityFitness(model, text, 8192, windows=2, sparse=128)
    assert [len(window) for window in fitness.windows] == [128, 128]
    assert fitness.reading.positions(0, 128).tolist() == [*range(64), *range(8128, 8192)]
    assert fitness([1.0] * 32) < fitness([40.0] * 32)
    with pytest.raises(BadInput, match="2 windows need"):
        PerplexityFitness(model, "Short.", 8192, windows=2, sparse=128)


def test_a_spread_prompt_stands_as_in_a_long_text(model):
    prompt = make_prompt(model, 400, 0.25, 3)
    at = Reading(jumps=prompt.spread(65_536)).positions(0, prompt.length)
    assert at[-1] == 65_535 and abs(at[prompt.needle[0]] / 65_536 - 0.25) < 0.01
    assert (at[-prompt.question_tokens :] == range(65_536 - prompt.question_tokens, 65_536)).all()
    assert prompt.spread(prompt.length) == ()


def test_the_key_begins_after_the_space(model):
    prompt = make_prompt(model, 300, 0.5, 2)
    ids, first = prompt.answered(model)
    assert model.decode(ids[first:]) == prompt.key and model.decode(ids[prompt.length : first]) == " "
    own = make_prompt(model, 300, 0.5, 2, needle="Anna hid it in the clock.", question="It is in the", key="clock")
    ids, first = own.answered(model)
    assert model.decode(ids[first:]) == " clock"


def test_forced_decoding_is_greedy_decoding(model):
    prompt = make_prompt(model, 300, 0.5, 2)
    said = model.complete(prompt.ids, 6).completion.ids
    losses, likeliest = model.engine.forced([*prompt.ids, *said], prompt.length)
    assert likeliest.all() and len(losses) == 6
    wrong = [*prompt.ids, *said[:-1], (said[-1] + 1) % model.config.vocabulary]
    assert model.engine.forced(wrong, prompt.length)[1].tolist() == [True] * 5 + [False]


def test_spread_summary_has_accuracy_and_loss():
    rows = [{"method": "pi", "length": 9, "tokens": 4, "correct": c, "loss": x} for c, x in ((True, 1.0), (False, 2.0))]
    (row,) = spread_summary(rows)
    assert row["correct"] == 1 and row["trials"] == 2 and row["loss"] == 1.5 and row["interval"][0] > 0


def test_summary_counts_every_trial_once():
    row = {"method": "yarn", "mode": "exact", "kv": "float32", "target": 4096, "seconds": 2.0}
    rows = [{**row, "depth": d, "correct": c} for d, c in ((0.1, True), (0.1, False), (0.9, True))]
    made = passkey_summary(rows)
    assert made["rows"][0] | {"interval": None} == {
        "method": "yarn", "mode": "exact", "kv": "float32", "length": 4096, "trials": 3, "correct": 2,
        "interval": None, "seconds_median": 2.0,
    }  # fmt: skip
    assert [(c["depth"], c["trials"], c["correct"]) for c in made["cells"]] == [(0.1, 2, 1), (0.9, 1, 1)]
