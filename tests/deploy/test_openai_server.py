"""The official language models behind an OpenAI-compatible server: a real one, with tiny real models."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from gradio_client import Client
from gradio_client.exceptions import AppError
from transformers import LlamaForCausalLM

import app
from models import anygpt, longrope
from models.anygpt import served as served_anygpt
from models.anygpt.decoding import LanguageModel, generate
from models.anygpt.grammar import Free, Grammar, Rule, steady
from models.anygpt.pipeline import AnyGPT, Settings
from models.anygpt.sampling import Sampler
from models.anygpt.served import ServedModel
from models.anygpt.vocabulary import extend, stop_ids
from models.completions import Address, Completions, Request
from models.errors import BadInput, Cancelled, ServerUnavailable
from models.longrope.engine import Reading
from models.longrope.fitness import NeedleFitness
from models.longrope.pipeline import Model
from models.longrope.retrieval import make_prompt, run
from models.longrope.served import factors_note
from tests.conftest import free_port
from tests.demos.test_longrope import SETTINGS
from tests.demos.tiny_anygpt import tiny_model
from tests.deploy.completions_server import NAME, CompletionsServer, serving
from tests.models.anygpt.tiny import llama_tokenizer, tiny_llama
from tests.models.longrope.tiny import tiny_folder
from tests.one_thread import one_thread

__all__ = ["one_thread"]

TEXT = "The grass is green. The sky is blue. The sun is yellow."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def here(folder) -> Model:
    return longrope.load("official", folder, "cpu")


@pytest.fixture(scope="module")
def running(folder, here) -> Iterator[CompletionsServer]:
    with serving(LlamaForCausalLM.from_pretrained(folder).eval(), here.decode) as server:
        yield server


@pytest.fixture
def server(running) -> Iterator[CompletionsServer]:
    running.requests.clear()
    running.keys.clear()
    yield running
    running.names, running.key, running.fault, running.longest = [NAME], "", "", 2048


@pytest.fixture(scope="module")
def there(folder, running) -> Model:
    return longrope.load("official", folder, "cpu", Address.parse(running.url))


# LongRoPE


@pytest.mark.parametrize("text", [TEXT, "What is the pass key?", "a"])
def test_an_answer_is_the_one_of_the_engine_here(here, there, text):
    ours, theirs = here.complete(text, 12), there.complete(text, 12)
    assert theirs.completion.ids == ours.completion.ids and len(ours.completion.ids) == 12
    assert theirs.text == ours.text


def test_an_answer_ends_where_the_engine_ends_it(here, there, server):
    ids = here.encode(TEXT)
    whole = here.engine.complete(ids, 12).ids
    stop = [whole[5]]
    ours = here.engine.complete(ids, 12, stop=stop)
    for fault in ("", "end left out"):
        server.fault = fault
        assert there.engine.complete(ids, 12, stop=stop).ids == ours.ids
    assert len(ours.ids) == whole.index(whole[5])


def test_a_passkey_is_asked_in_token_ids_and_answered_piece_by_piece(here, there, server):
    prompt = make_prompt(here, 512, 0.5, seed=3)
    said: dict[str, list[str]] = {"here": [], "there": []}
    ours = run(here, prompt, here.scaling_at("none", 512), Reading(), on_token=said["here"].append)
    theirs = run(there, prompt, there.scaling_at("server", 512), Reading(), on_token=said["there"].append)
    assert theirs.answer == ours.answer and theirs.correct == ours.correct
    assert said["there"] == said["here"] and len(said["here"]) > 5
    assert (theirs.method, theirs.mode, theirs.kv, theirs.kv_bytes) == ("server", "server", "server", 0)
    (body,) = server.requests
    assert body["prompt"] == list(prompt.ids) and body["stream"] is True and body["model"] == NAME
    assert (body["temperature"], body["repetition_penalty"], body["top_p"]) == (
        0.0,
        1.0,
        1.0,
    )  # not the model's defaults
    assert body["stop_token_ids"] == list(here.tokenizer.stop) and body["ignore_eos"] is True


@pytest.mark.parametrize("method", ["none", "pi", "ntk", "yarn", "longrope", "streaming"])
def test_methods_are_refused_with_the_reason(there, server, method):
    with pytest.raises(
        BadInput, match=f"{method} cannot be chosen here: a server turns positions by the factors it was"
    ):
        there.scaling_at(method, 4096)
    with pytest.raises(BadInput, match="Choose 'server'"):
        there.complete(TEXT, 4, there.scaling("pi", 4096))
    assert server.requests == []


def test_ways_of_reading_and_looks_inside_are_refused(there, server):
    with pytest.raises(BadInput, match="reads in its own way, not blockwise"):
        there.complete(TEXT, 4, reading=Reading(mode="blockwise"))
    with pytest.raises(BadInput, match="not spread out"):
        there.complete(TEXT, 4, reading=Reading(jumps=((3, 100),)))
    with pytest.raises(BadInput, match="a server has one table"):
        NeedleFitness(there, 4096, 1, sparse=448)([1.0] * 4)
    with pytest.raises(BadInput, match="from 0 to 256"):
        there.complete([300], 4)
    assert server.requests == []


@pytest.mark.parametrize(
    ("rope", "longest", "words"),
    [
        (
            {"rope_type": "longrope"},
            131_072,
            "Started for 131,072 tokens, more than the first 4,096, vLLM uses the long",
        ),
        ({"type": "su"}, 4096, "not more than the first 4,096, vLLM uses the short ones"),
        ({"rope_type": "longrope"}, None, "does not say for how many"),
        ({"rope_type": "yarn"}, 131_072, "'yarn', unless it was started with others"),
        ({}, 131_072, "'default', unless"),
    ],
)
def test_what_is_known_of_the_servers_factors(rope, longest, words):
    assert words in factors_note({"rope_scaling": rope}, 4096, longest)


def test_the_facts_say_which_server_and_which_model(folder, server):
    facts = longrope.loader("official", folder, Address.parse(server.url))(lambda *_: None, _cpu()).info
    assert facts.weights == f"{NAME} on the server at {server.url[7:-3]}" and facts.memory_bytes == 0
    assert "Factors: the server's own" in facts.device


def test_more_than_the_server_reads_is_said_before_it_is_asked(folder, server):
    server.longest = 512
    model = longrope.load("official", folder, "cpu", Address.parse(server.url))
    asked = len(server.requests)
    with pytest.raises(BadInput, match="520 tokens are needed and the server was started for 512"):
        model.complete([5] * 510, 10)
    assert len(server.requests) == asked


def test_the_embedded_tier_has_no_server(server):
    with pytest.raises(BadInput, match="Choose --tier official"):
        longrope.load("embedded", None, "cpu", Address.parse(server.url))
    with pytest.raises(BadInput, match="Choose --tier official"):
        anygpt.load("embedded", None, "cpu", Address.parse(server.url))


# What goes wrong


def _cpu():
    from models.runtime import choose_device

    return choose_device("cpu")


FAULTS = (
    ("500", "failed \\(500: EngineCore encountered an issue\\). Look at its log"),
    ("503", "is busy"),
    ("redirect", "no such API or model at 127.0.0.1.*http://HOST:8000/v1"),
    ("html", "does not answer in JSON"),
    ("list", "its list of models is not one"),
    ("no ids", "sends no token ids.*vLLM 0.10.2"),
    ("not allowed", "answered \\[1\\] where only .* was allowed"),
    ("other model", "'somebody else' answers in the place of 'tiny'"),
    ("abort", "gave up \\(abort\\)"),
    ("not JSON", "what it sends is not JSON"),
)


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_a_server_that_misbehaves_is_refused_when_the_model_is_loaded(folder, server, fault, words):
    server.fault = fault
    with pytest.raises(ServerUnavailable, match=words):
        longrope.load("official", folder, "cpu", Address.parse(server.url))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("cut", "broke off in the middle"),
        ("error", "failed: CUDA error: an illegal memory access. Look at its log"),
        ("html", "no stream of completions"),
        ("too many", "more than the 4 tokens asked for"),
        ("500", "failed"),
    ],
)
def test_a_server_that_misbehaves_later_ends_the_answer_with_a_message(there, server, fault, words):
    server.fault = fault
    said: list[str] = []
    with pytest.raises(ServerUnavailable, match=words):
        there.complete(TEXT, 4, on_token=said.append)
    server.fault = ""
    assert len(there.complete(TEXT, 4).completion.ids) == 4  # and the next answer is whole


def test_a_server_that_is_away_is_said_with_what_to_do(folder):
    with pytest.raises(ServerUnavailable, match="does not answer as it should.*Start it, or check its address"):
        longrope.load("official", folder, "cpu", Address.parse(f"http://127.0.0.1:{free_port()}/v1"))


def test_a_silent_server_is_not_waited_for_for_ever(there, server):
    server.fault = "silent"
    hasty = Completions(replace(Address.parse(server.url), silence_seconds=0.3))
    with pytest.raises(ServerUnavailable, match="silent for too long"):
        list(hasty.stream(Request([1, 2], 4)))


def test_whoever_cancels_does_not_wait_and_the_server_is_told(there, server):
    server.fault = "silent"

    def leave(tokens: int, rate: float) -> None:
        assert tokens == 0
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        there.complete(TEXT, 4, progress=leave)
    assert server.gone.wait(60)


def test_the_key_is_sent_and_asked_for(folder, server):
    server.key = "s3cret"
    with pytest.raises(ServerUnavailable, match="does not accept the key.*--lm-key") as caught:
        longrope.load("official", folder, "cpu", Address.parse(server.url, "wr0ng"))
    assert "wr0ng" not in str(caught.value)
    address = Address.parse(server.url, "s3cret")
    assert longrope.load("official", folder, "cpu", address).name == NAME
    assert server.keys[-1] == "Bearer s3cret" and "s3cret" not in repr(address)


def test_several_models_need_a_name(folder, server):
    server.names = ["base", NAME]
    with pytest.raises(ServerUnavailable, match="has 2 models \\(base, tiny\\). Name one behind the address: URL#NAME"):
        longrope.load("official", folder, "cpu", Address.parse(server.url))
    with pytest.raises(ServerUnavailable, match="has no model 'chat'; it has base, tiny"):
        longrope.load("official", folder, "cpu", Address.parse(server.url + "#chat"))
    assert longrope.load("official", folder, "cpu", Address.parse(f"{server.url}#{NAME}")).name == NAME


def test_another_model_than_the_folders_is_noticed(folder, server, monkeypatch):
    monkeypatch.setattr(server, "decode", lambda ids: "".join(chr(65 + i % 26) for i in ids))
    with pytest.raises(ServerUnavailable, match="runs another model: its token .* in the folder here"):
        longrope.load("official", folder, "cpu", Address.parse(server.url))


@pytest.mark.parametrize(
    "text",
    ["", "gpu:8000", "file:///etc/passwd", "ftp://gpu/v1", "http://", "http://gpu:99999/v1", "http://gpu:x/v1",
     "http://gpu/v1?key=1", "http://me:secret@gpu/v1", "http://gpu/v 1", "http://gpu/v1\r\nHost: x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BadInput, match="address"):
        Address.parse(text)


def test_addresses():
    address = Address.parse("https://gpu.local/serve/v1/#microsoft/Phi-3", "key")
    assert (address.url, address.model, address.place) == ("https://gpu.local/serve/v1", "microsoft/Phi-3", "gpu.local")


# AnyGPT

RULES = {"image": Rule(6, 6, 2), "speech": Rule(1, 9, 2), "music": Rule(4, 16, 1)}


@pytest.fixture(scope="module")
def small():
    from tests.models.anygpt.tiny import SMALL

    tokenizer = llama_tokenizer(400)
    return tokenizer, extend(tokenizer, layout=SMALL)


@pytest.fixture(scope="module")
def random_server(small) -> Iterator[CompletionsServer]:
    tokenizer, vocabulary = small
    with serving(tiny_llama(vocabulary.size), tokenizer.decode, 512) as server:
        yield server


@pytest.mark.parametrize("medium", [None, "image", "speech", "music"])
@pytest.mark.parametrize("repetition", [1.0, 1.3])
def test_a_constrained_stream_is_the_one_of_the_model_here(small, random_server, medium, repetition):
    tokenizer, vocabulary = small
    prompt = [1, 40, 300, 7, 9, 260, *([vocabulary.media[medium].start] if medium else [])]
    grammar = Grammar(vocabulary, RULES, stop_ids(tokenizer, vocabulary), 60)
    preset = dict.fromkeys(("text", "image", "speech", "music"), Sampler(temperature=0, repetition=repetition))
    ours = list(generate(LanguageModel(random_server.model), prompt, grammar, preset))
    random_server.requests.clear()
    there = ServedModel(Completions(Address.parse(random_server.url)), 512)
    assert list(generate(there, prompt, grammar, preset)) == ours
    assert len(ours) > 8
    if medium == "image":
        assert [len(body["allowed_token_ids"]) for body in random_server.requests[:1]] == [16]
        assert random_server.requests[0]["max_tokens"] == 6  # the whole picture at once
        assert len(random_server.requests[1]["prompt"]) == len(prompt) + 7  # its end is not asked for


def test_a_whole_reply_is_the_one_of_the_model_here():
    model = tiny_model()  # answers with what it heard, text, a picture, music and speech
    greedy = Settings(sampling=dict.fromkeys(("text", "image", "speech", "music", "audio"), Sampler(0.0)), tokens=128)
    network = model.lm.model
    with serving(network, model.words.decode, 2048) as server:
        lm = served_anygpt.connect(model.words, Address.parse(server.url), 4096)
        assert lm.window == 2048  # the server was started for fewer
        there = AnyGPT(lm, model.words, model.codecs, model.rules, greedy)
        for turns in (["Draw and play something."], ["Sing", "la", "And now?"]):
            ours, theirs = model.chat(turns, greedy), there.chat(turns, greedy)
            parts = list(ours)
            assert [(part.kind, part.token_ids) for part in theirs] == [(part.kind, part.token_ids) for part in parts]
            assert theirs.turn.ids == ours.turn.ids
        assert {"text", "image", "music", "speech"} <= {part.kind for part in parts}


def test_stopping_a_reply_stops_its_request(random_server, small):
    lm = ServedModel(Completions(Address.parse(random_server.url)), 512)
    ids = generate(lm, [1, 40], Free(400, [2], 100))
    first = [next(ids) for _ in range(3)]
    ids.close()
    assert first == list(generate(LanguageModel(random_server.model), [1, 40], Free(400, [2], 3)))
    assert list(ids) == []


def test_a_model_behind_a_server_cannot_be_guided(random_server):
    lm = ServedModel(Completions(Address.parse(random_server.url)), 512)
    with pytest.raises(BadInput, match="cannot be guided"):
        generate(lm, [1, 40], Free(400, [2], 5), {"text": Sampler(guidance=2.0)}, without=[1])


def test_an_id_that_was_not_allowed_ends_the_reply(random_server, small):
    tokenizer, vocabulary = small
    lm = served_anygpt.ServedModel(Completions(Address.parse(random_server.url)), 512)
    grammar = Grammar(vocabulary, RULES, stop_ids(tokenizer, vocabulary), 60)
    random_server.fault = "not allowed"
    try:
        with pytest.raises(ServerUnavailable, match="token 1 came, which was not allowed"):
            list(generate(lm, [5, vocabulary.media["image"].start], grammar))
    finally:
        random_server.fault = ""


def test_the_rules_stay_as_long_as_is_said(small):
    tokenizer, vocabulary = small
    stop = stop_ids(tokenizer, vocabulary)
    grammar = Grammar(vocabulary, RULES, stop, 60)
    state = grammar.begin([1])
    while not state.done:
        allowed = grammar.allowed(state)
        if len(allowed) > 1:
            steps, turning = steady(grammar, state)
            others = [i for low, high in allowed.spans for i in range(low, high) if i not in turning]
            after = state
            for step in range(steps):
                assert grammar.allowed(after) == allowed
                after = grammar.advance(after, others[(7 * step) % len(others)])
            assert after.done or grammar.allowed(after) != allowed
        start = vocabulary.media["music"].start
        state = grammar.advance(state, start if start in allowed else allowed.spans[0][0])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """AnyGPT's folder with a tiny network of the published vocabulary."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = llama_tokenizer(32_000)
    vocabulary = extend(tokenizer)
    torch.manual_seed(0)
    tiny_llama(vocabulary.size).save_pretrained(folder / "anygpt/chat")
    tokenizer.save_pretrained(folder / "anygpt/chat")
    return folder


def test_the_official_tier_takes_only_the_tokenizer_from_the_folder(published):
    ours = anygpt.load("official", published, "cpu")
    for weights in (published / "anygpt/chat").glob("*.safetensors"):
        weights.unlink()
    settings = Settings(sampling={"text": Sampler(0.0)}, tokens=8)
    with serving(ours.lm.model, ours.words.decode, 1024) as server:
        loaded = anygpt.loader("official", published, Address.parse(server.url))(lambda *_: None, _cpu())
        assert loaded.info.weights.startswith(f"{NAME} on the server at 127.0.0.1:")
        here, there = ours.chat(["Hello"], settings), loaded.model.chat(["Hello"], settings)
        assert list(there) == list(here)
        assert there.turn.ids == here.turn.ids
        assert len(server.requests[-1]["allowed_token_ids"]) > 32_000


# The tab


@pytest.fixture(scope="module")
def tab(folder, running) -> Iterator[Client]:
    port = free_port()
    options = app.parse_options(
        ["--demos", "longrope", "--tier", "official", "--weights-dir", str(folder), "--longrope-url", running.url,
         "--port", str(port), "--device", "cpu"]
    )  # fmt: skip
    known = inspect.signature(gr.mount_gradio_app).parameters
    arguments = {name: value for name, value in app.launch_arguments(options).items() if name in known}
    mounted = gr.mount_gradio_app(FastAPI(), app.build_app(options), path="", **arguments)
    web = uvicorn.Server(uvicorn.Config(mounted, port=port, log_level="error"))
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started and thread.is_alive():
        thread.join(0.05)
    yield Client(f"http://127.0.0.1:{port}", verbose=False)
    web.should_exit = web.force_exit = True
    thread.join()


SERVED = SETTINGS | {"methods": ["server"], "mode": "server", "kv": "server"}


def test_the_tab_asks_the_server_and_says_so(tab, server, here):
    assert f"on the server at {server.url[7:-3]}" in tab.predict(api_name="/longrope_status")
    prompt, progress, table, summary, _ = tab.predict(*SERVED.values(), api_name="/longrope_passkey")
    row = dict(zip(table["headers"], table["data"][0], strict=True))
    wanted = make_prompt(here, 512, 0.5, 0)
    assert row["key"] == wanted.key and row["answer"] == here.complete(wanted.ids, 13).text.strip()
    assert (row["method"], row["mode"]) == ("The server's own factors", "server")
    assert "Factors: the server" in prompt and "Done" in progress and "server" in summary
    status = tab.predict(api_name="/longrope_status")
    assert f"{NAME} on the server at" in status and "0 MB" not in status


@pytest.mark.parametrize(
    "changes",
    [{"methods": ["pi"]}, {"methods": ["none", "server"]}, {"mode": "blockwise"}, {"mode": "exact"}, {"kv": "int8"},
     {"table": "1\n" * 4}, {"magnitude": "su"}, {"n_hat": 4}],
    ids=str,
)  # fmt: skip
def test_what_only_a_model_here_can_do_is_refused_by_the_tab(tab, server, changes):
    asked = len(server.requests)
    with pytest.raises((AppError, ValueError)):
        tab.predict(*(SERVED | changes).values(), api_name="/longrope_passkey")
    assert len(server.requests) == asked


def test_the_tab_has_no_search(tab):
    assert "/longrope_search" not in tab.view_api(return_format="dict", print_info=False)["named_endpoints"]
