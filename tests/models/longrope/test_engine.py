"""The engine against a straightforward Llama written here: full causal attention, repeated KV heads, all logits."""

import json
import math
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import BadInput, Cancelled, OutOfMemory, WeightsCorrupt
from models.longrope import engine as engine_module
from models.longrope.cache import KVCache
from models.longrope.engine import (
    Engine,
    Reading,
    check_memory,
    guarded,
    load_folder,
    memory_needed,
    plan,
)
from models.longrope.network import LlamaConfig, read_config
from models.longrope.rope import RopeScaling, scaling
from models.weights import write_safetensors

WINDOW = 32
CONFIG = LlamaConfig(
    layers=3,
    width=48,
    heads=6,
    kv_heads=2,
    head_dim=16,
    hidden=80,
    vocabulary=97,
    base=1e4,
    window=WINDOW,
    rotary_dim=16,
)


def random_weights(config: LlamaConfig, seed: int = 0, tied: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c, d = config, config.head_dim

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

    tensors = {"model.embed_tokens.weight": matrix(c.vocabulary, c.width) * 4, "model.norm.weight": matrix(c.width) + 1}
    for i in range(c.layers):
        p = f"model.layers.{i}."
        tensors |= {
            f"{p}self_attn.q_proj.weight": matrix(c.heads * d, c.width) * 1.5,
            f"{p}self_attn.k_proj.weight": matrix(c.kv_heads * d, c.width) * 1.5,
            f"{p}self_attn.v_proj.weight": matrix(c.kv_heads * d, c.width),
            f"{p}self_attn.o_proj.weight": matrix(c.width, c.heads * d),
            f"{p}mlp.gate_proj.weight": matrix(c.hidden, c.width),
            f"{p}mlp.up_proj.weight": matrix(c.hidden, c.width),
            f"{p}mlp.down_proj.weight": matrix(c.width, c.hidden),
            f"{p}input_layernorm.weight": matrix(c.width) + 1,
            f"{p}post_attention_layernorm.weight": matrix(c.width) + 1,
        }
    if not tied:
        tensors["lm_head.weight"] = matrix(c.vocabulary, c.width)
    return tensors


def reference(
    config: LlamaConfig, w: dict[str, Tensor], ids: Tensor, rope: RopeScaling, see=None, at=None, inside=None
) -> Tensor:
    """Logits (T, vocabulary) in float64. see: bool (T, T), which keys a query sees; None is causal. at: positions.

    inside: (rope, positions) of the first len(positions) tokens when it is they who look.
    """
    c, T = config, len(ids)
    w = {name: tensor.double() for name, tensor in w.items()}
    mask = torch.ones(T, T).tril().bool() if see is None else see
    everywhere = torch.arange(T).numpy() if at is None else at

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + c.eps).sqrt() * weight

    def turn(x, rope=rope, at=everywhere):  # (heads, T, head_dim)
        angles = torch.from_numpy(rope.angles(at))
        part, rest = x[..., : c.rotary_dim], x[..., c.rotary_dim :]
        half = c.rotary_dim // 2
        swapped = torch.cat((-part[..., half:], part[..., :half]), -1)
        cos, sin = (rope.magnitude * f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
        return torch.cat((part * cos + swapped * sin, rest), -1)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(c.layers):
        p = f"model.layers.{i}."
        h = norm(x, w[f"{p}input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"{p}self_attn.{n}_proj.weight"].T + w.get(f"{p}self_attn.{n}_proj.bias", 0))
            .view(T, -1, c.head_dim)
            .transpose(0, 1)
            for n in "qkv"
        )
        k, v = k.repeat_interleave(c.group, 0), v.repeat_interleave(c.group, 0)
        scores = turn(q) @ turn(k).transpose(-1, -2)
        if inside is not None and (n := len(inside[1])):
            scores[:, :n, :n] = turn(q[:, :n], *inside) @ turn(k[:, :n], *inside).transpose(-1, -2)
        scores = (scores / math.sqrt(c.head_dim)).masked_fill(~mask, -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(T, -1) @ w[f"{p}self_attn.o_proj.weight"].T
        h = norm(x, w[f"{p}post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ w[f"{p}mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w[f"{p}mlp.up_proj.weight"].T)) @ w[f"{p}mlp.down_proj.weight"].T
    return (norm(x, w["model.norm.weight"]) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T).float()


WEIGHTS = random_weights(CONFIG)
IDS = torch.randint(0, 97, (75,), generator=torch.Generator().manual_seed(1)).tolist()
YARN = scaling("yarn", 16, 1e4, WINDOW, 128)
PLAIN = scaling("none", 16, 1e4, WINDOW, WINDOW)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, WEIGHTS)


def last_logits(engine: Engine, ids, rope=YARN, **reading) -> Tensor:
    return engine.prefill(engine.open(rope, len(ids), Reading(**reading)), ids)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the size of the logits."""
    assert (a - b).abs().max() / b.abs().max() < tolerance


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 25, 32, 74, 75, 1000])
def test_prefill_in_any_chunks_is_the_reference(engine, chunk):
    close(last_logits(engine, IDS, chunk=chunk), reference(CONFIG, WEIGHTS, torch.tensor(IDS), YARN)[-1])


@pytest.mark.parametrize("flop", [1.0, 1e10])
def test_keys_in_many_blocks_merge_exactly(engine, monkeypatch, flop):
    monkeypatch.setattr(engine_module, "ATTENTION_FLOP", flop)
    ids = (IDS * 40)[:2600]  # blocks of 1024 keys
    whole = last_logits(engine, ids, chunk=2600)
    close(last_logits(engine, ids, chunk=300), whole)


@pytest.mark.parametrize(
    "change",
    [
        {"rotary_dim": 12},
        {"kv_heads": 6},
        {"kv_heads": 1},
        {"heads": 4, "kv_heads": 2, "width": 40},
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_other_shapes(change, tied):
    config = replace(CONFIG, **change)
    weights = random_weights(config, 3, tied)
    rope = scaling("pi", config.rotary_dim, 1e4, WINDOW, 96, "su")
    close(
        last_logits(Engine(config, weights), IDS, rope, chunk=20),
        reference(config, weights, torch.tensor(IDS), rope)[-1],
    )


def test_biases_and_fused_projections():
    weights = dict(WEIGHTS)
    for i in range(3):
        for n, count in (("q", 96), ("k", 32), ("v", 32)):
            weights[f"model.layers.{i}.self_attn.{n}_proj.bias"] = torch.linspace(-1, 1, count)
    close(last_logits(Engine(CONFIG, weights), IDS), reference(CONFIG, weights, torch.tensor(IDS), YARN)[-1])
    fused = {name: tensor for name, tensor in WEIGHTS.items() if not any(f".{n}_proj" in name for n in ("q", "k", "v"))}
    fused = {name: tensor for name, tensor in fused.items() if "gate_proj" not in name and "up_proj" not in name}
    for i in range(3):
        p = f"model.layers.{i}."
        fused[f"{p}self_attn.qkv_proj.weight"] = torch.cat([WEIGHTS[f"{p}self_attn.{n}_proj.weight"] for n in "qkv"])
        fused[f"{p}mlp.gate_up_proj.weight"] = torch.cat([WEIGHTS[f"{p}mlp.{n}_proj.weight"] for n in ("gate", "up")])
    close(last_logits(Engine(CONFIG, fused), IDS), last_logits(Engine(CONFIG, WEIGHTS), IDS), 1e-6)


def test_rows_of_factors_for_layers(engine):
    rows = torch.stack([torch.linspace(1, top, 8) for top in (1.5, 2, 3)]).numpy()
    rope = scaling("longrope", 16, 1e4, WINDOW, 96, 1.0, rows)
    close(last_logits(engine, IDS, rope, chunk=20), last_logits(engine, IDS, rope, chunk=75))
    same = scaling("longrope", 16, 1e4, WINDOW, 96, 1.0, rows[2])
    assert (last_logits(engine, IDS, rope) - last_logits(engine, IDS, same)).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["exact", "blockwise"])
def test_decoding_from_the_cache_is_full_recomputation(engine, mode):
    reading = Reading(mode=mode, chunk=20, block=16, anchor=8, question=9)
    session = engine.open(YARN, 90, reading)
    logits = engine.prefill(session, IDS)
    ids = list(IDS)
    for _ in range(8):
        ids.append(int(logits.argmax()))
        logits = engine.step(session, ids[-1])
        if mode == "exact":
            close(logits, reference(CONFIG, WEIGHTS, torch.tensor(ids), YARN)[-1])
        else:  # the context is cut as before; question and answer see everything
            see, at = blockwise_mask(len(ids), len(IDS) - 9, 16, 8), blockwise_positions(len(IDS) - 9, 16, 8)
            close(logits, reference(CONFIG, WEIGHTS, torch.tensor(ids), YARN, see, inside=(PLAIN, at))[-1])
    answer = engine.complete(IDS, 8, YARN, reading)
    assert answer.ids == ids[75:] and answer.prompt == 75 and answer.mode == mode and answer.method == "yarn"


def test_a_pinned_table_agrees_across_the_window(engine):
    """Prompt just inside the trained window, answer across it: cached and uncached are the same."""
    long = scaling("ntk", 16, 1e4, WINDOW, 128, "su")
    session = engine.open(long, 60, Reading(chunk=10))
    ids = IDS[: WINDOW - 2]
    logits = engine.prefill(session, ids)
    for _ in range(10):
        ids = [*ids, int(logits.argmax())]
        logits = engine.step(session, ids[-1])
        close(logits, last_logits(engine, ids, long))


def test_a_switch_of_tables_in_the_middle_differs(engine):
    """What runtimes without pinning do; it shows that the test above can fail."""
    short, long = PLAIN, scaling("ntk", 16, 1e4, WINDOW, 128, "su")
    session = engine.open(short, 60)
    logits = engine.prefill(session, IDS[:WINDOW])
    session.rope = long
    logits = engine.step(session, IDS[WINDOW])
    assert (logits - last_logits(engine, IDS[: WINDOW + 1], long)).abs().max() / logits.abs().max() > 0.01


def test_requests_beside_each_other_do_not_mix(engine):
    """A short and a long prompt, read in turns, are what they are alone."""
    short, long = engine.open(PLAIN, 40), engine.open(YARN, 80)
    first, second = engine.prefill(short, IDS[:20]), engine.prefill(long, IDS[:70])
    third, fourth = engine.step(short, 5), engine.step(long, 6)
    close(first, last_logits(engine, IDS[:20], PLAIN), 1e-6)
    close(second, last_logits(engine, IDS[:70], YARN), 1e-6)
    close(third, last_logits(engine, [*IDS[:20], 5], PLAIN))
    close(fourth, last_logits(engine, [*IDS[:70], 6], YARN))


def blockwise_mask(total: int, context: int, block: int, anchor: int) -> Tensor:
    see = torch.ones(total, total).tril().bool()
    for t in range(context):
        low = t // block * block
        see[t, min(anchor, low) : low] = False
    return see


def blockwise_positions(context: int, block: int, anchor: int) -> np.ndarray:
    """Of tokens of a context as they see each other: each block right after the anchor."""
    return np.array([t if t < block else anchor + t % block for t in range(context)])


@pytest.mark.parametrize("chunk", [3, 16, 1000])
@pytest.mark.parametrize(("block", "anchor", "question"), [(16, 8, 9), (16, 0, 1), (16, 16, 30), (10, 5, 75)])
def test_blockwise_is_the_reference_with_its_mask(engine, chunk, block, anchor, question):
    found = last_logits(engine, IDS, mode="blockwise", chunk=chunk, block=block, anchor=anchor, question=question)
    see, at = blockwise_mask(75, 75 - question, block, anchor), blockwise_positions(75 - question, block, anchor)
    close(found, reference(CONFIG, WEIGHTS, torch.tensor(IDS), YARN, see, inside=(PLAIN, at))[-1])


def test_blocks_beyond_the_window_have_the_methods_angles(engine):
    found = last_logits(engine, IDS, mode="blockwise", block=25, anchor=8, question=9)
    see, at = blockwise_mask(75, 66, 25, 8), blockwise_positions(66, 25, 8)
    close(found, reference(CONFIG, WEIGHTS, torch.tensor(IDS), YARN, see, inside=(YARN, at))[-1])


def test_blockwise_with_one_block_is_exact(engine):
    one = last_logits(engine, IDS, mode="blockwise", block=70, anchor=10, question=10, chunk=13)
    close(one, last_logits(engine, IDS))
    many = last_logits(engine, IDS, mode="blockwise", block=16, anchor=4, question=10)
    assert (many - one).abs().max() / one.abs().max() > 1e-3


def test_plans_cover_the_prompt_once():
    for mode in ("exact", "blockwise", "streaming"):
        for tokens in (1, 5, 63, 64, 65, 300):
            reading = Reading(mode=mode, chunk=16, block=40, anchor=8, recent=20)
            pieces = plan(tokens, reading)
            assert [p.start for p in pieces] == [0, *(p.stop for p in pieces[:-1])] and pieces[-1].stop == tokens
            if mode == "blockwise":  # linear: a context token sees at most the anchor and its block
                context = [p for p in pieces if p.stop <= tokens - 64]
                assert all(sum(b - a for a, b in p.visible) <= 8 + 40 for p in context)


def streaming_reference(config, weights, ids, rope, sinks, recent):
    """The last logits by StreamingLLM's definition, token by token, one layer at a time over kept tokens."""
    c = config
    w = {name: tensor.double() for name, tensor in weights.items()}
    caches = [[] for _ in range(c.layers)]

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + c.eps).sqrt() * weight

    def turn(x, position):
        angles = torch.from_numpy(rope.angles(torch.tensor([position]).numpy()))[0]
        half = c.rotary_dim // 2
        a, b = x[..., :half], x[..., half:]
        cos, sin = rope.magnitude * angles.cos(), rope.magnitude * angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    for token in ids:
        x = w["model.embed_tokens.weight"][token]
        for i in range(c.layers):
            p = f"model.layers.{i}."
            h = norm(x, w[f"{p}input_layernorm.weight"])
            q, k, v = ((w[f"{p}self_attn.{n}_proj.weight"] @ h).view(-1, c.head_dim) for n in "qkv")
            cache = caches[i]
            cache.append((k, v))
            if len(cache) > sinks + recent:
                del cache[sinks]
            keys = torch.stack([turn(k, j) for j, (k, _) in enumerate(cache)], 1).repeat_interleave(c.group, 0)
            values = torch.stack([v for _, v in cache], 1).repeat_interleave(c.group, 0)
            scores = (turn(q, len(cache) - 1)[:, None] @ keys.transpose(-1, -2)) / math.sqrt(c.head_dim)
            x = x + w[f"{p}self_attn.o_proj.weight"] @ (scores.softmax(-1) @ values).reshape(-1)
            h = norm(x, w[f"{p}post_attention_layernorm.weight"])
            gate = torch.nn.functional.silu(w[f"{p}mlp.gate_proj.weight"] @ h)
            x = x + w[f"{p}mlp.down_proj.weight"] @ (gate * (w[f"{p}mlp.up_proj.weight"] @ h))
    return (w["model.embed_tokens.weight"] @ norm(x, w["model.norm.weight"])).float()


@pytest.mark.parametrize(
    ("chunk", "sinks", "recent"), [(7, 4, 12), (12, 4, 12), (1, 2, 20), (30, 0, 20), (2, 4, 8), (50, 4, 100)]
)
def test_streaming_is_its_definition(engine, chunk, sinks, recent):
    session = engine.open(PLAIN, 100, Reading(mode="streaming", chunk=chunk, sinks=sinks, recent=recent))
    close(engine.prefill(session, IDS), streaming_reference(CONFIG, WEIGHTS, IDS, PLAIN, sinks, recent))
    close(engine.step(session, 5), streaming_reference(CONFIG, WEIGHTS, [*IDS, 5], PLAIN, sinks, recent))
    assert session.kept[0]["recent"][0].shape[1] <= recent


def test_streaming_forgets_what_is_evicted(engine):
    """One layer sees nothing beyond its window; three layers see three windows, so the change lies farther back."""
    other = list(IDS)
    other[10] = (other[10] + 1) % 97
    settings = {"mode": "streaming", "chunk": 4, "recent": 8, "rope": PLAIN}
    torch.testing.assert_close(last_logits(engine, IDS, **settings), last_logits(engine, other, **settings))
    assert (last_logits(engine, IDS) - last_logits(engine, other)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kv", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("float16", 0.005), ("int8", 0.03), ("int4", 0.4)]
)
def test_quantised_caches_are_close(engine, kv, tolerance):
    found = last_logits(engine, IDS, kv=kv, chunk=16)
    exact = last_logits(engine, IDS)
    close(found, exact, tolerance)
    assert kv == "float32" or (found != exact).any()


@pytest.mark.parametrize(("kv", "error", "bits"), [("int8", 1 / 254 + 1e-3, 8.25), ("int4", 1 / 15 + 2e-3, 5)])
def test_quantisation_error_is_half_a_step(kv, error, bits):
    x = torch.randn(2, 50, 64) * torch.logspace(-2, 2, 50)[:, None]
    cache = KVCache(1, 2, 64, 60, kv)
    cache.write(0, 3, x, -x)
    ((k, v),) = cache.read(0, 3, 53, 100, torch.float32)
    group = 64 if kv == "int8" else 32
    largest = x.unflatten(-1, (-1, group)).abs().amax(-1, keepdim=True).expand(-1, -1, -1, group).flatten(-2)
    assert ((k - x).abs() / largest).max() < error and ((v + x).abs() / largest).max() < error
    assert cache.nbytes == 2 * 2 * 60 * 64 * bits / 8
    parts = list(cache.read(0, 3, 53, 7, torch.float32))
    torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), k)


def test_zeros_survive_quantisation():
    for kv in ("int8", "int4"):
        cache = KVCache(1, 1, 32, 4, kv)
        cache.write(0, 0, torch.zeros(1, 4, 32), torch.zeros(1, 4, 32))
        ((k, _),) = cache.read(0, 0, 4, 4, torch.float32)
        assert (k == 0).all()


def test_a_cache_in_files_is_the_same(engine, tmp_path):
    close(last_logits(engine, IDS, chunk=16, folder=tmp_path), last_logits(engine, IDS, chunk=16), 1e-7)
    assert list(tmp_path.iterdir()) == []


def test_losses(engine):
    logits = reference(CONFIG, WEIGHTS, torch.tensor(IDS), YARN)
    wanted = -logits.log_softmax(-1)[torch.arange(74), torch.tensor(IDS[1:])]
    for first, chunk in ((1, 1000), (1, 16), (40, 16), (74, 20)):
        found = engine.losses(IDS, first, YARN, Reading(chunk=chunk))
        torch.testing.assert_close(found, wanted[first - 1 :], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("chunk", [20, 75, 1000])
def test_bfloat16_is_close(chunk):
    half = Engine(CONFIG, WEIGHTS, "bfloat16")
    ids = IDS * 9  # several tiles of keys
    close(last_logits(half, ids, chunk=chunk), reference(CONFIG, WEIGHTS, torch.tensor(ids), YARN)[-1], 0.1)
    assert half.complete(ids, 1).kv == "bfloat16"  # the cache is the engine's own format unless another is asked for


def test_progress_counts_tokens(engine):
    seen = []
    engine.complete(IDS, 1, YARN, Reading(chunk=20), progress=lambda done, rate: seen.append((done, rate)))
    assert [done for done, _ in seen] == [20, 40, 60, 75] and all(rate > 0 for _, rate in seen)


def test_cancelled_within_a_second():
    config = replace(CONFIG, layers=30)
    engine = Engine(config, random_weights(config))
    ids = (IDS * 1000)[:60_000]

    def stop(done, rate):
        stop.when = time.perf_counter()
        if time.perf_counter() - started > 0.5:
            raise Cancelled("Stopped.")

    started = time.perf_counter()
    with pytest.raises(Cancelled):
        engine.complete(ids, 1, YARN, Reading(chunk=8192), progress=stop)
    assert time.perf_counter() - started < 3.0  # half a second, and slack for a busy machine
    assert time.perf_counter() - stop.when < 0.5


def test_answers_stop_and_stream(engine):
    whole = engine.complete(IDS, 6, YARN)
    stopped = engine.complete(IDS, 6, YARN, stop=[whole.ids[2]])
    assert stopped.ids == whole.ids[: whole.ids.index(whole.ids[2])]
    seen = []
    assert engine.complete(IDS, 6, YARN, on_token=seen.append).ids == seen == whole.ids


def test_memory_is_checked_before_loading():
    needed = memory_needed(CONFIG, 1_000_000, Reading())
    kv = 1_000_000 * 2 * 3 * 2 * 16 * 4
    assert kv < needed < kv * 1.1
    assert memory_needed(CONFIG, 10**6, Reading(kv="int4")) < kv / 5
    assert memory_needed(CONFIG, 10**6, Reading(mode="streaming")) < kv / 40
    with pytest.raises(OutOfMemory, match=r"needs about 12\.3 GB and 4\.0 GB are available"):
        check_memory(12_300_000_000, 4_000_000_000)
    check_memory(10, 10)
    assert engine_module.available_bytes() > 0


def test_a_text_that_does_not_fit_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "available_bytes", lambda device: 50_000_000)
    engine.open(YARN, 1000)
    with pytest.raises(OutOfMemory, match=r"needs about 1\.6 GB and 0\.1 GB are available.*on disk"):
        engine.open(YARN, 2_000_000)
    engine.open(YARN, 1_000_000, Reading(mode="streaming", recent=60, chunk=60))


def test_running_out_of_memory_is_a_message(engine, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(engine_module, "mlp", fail)
    caches = []
    monkeypatch.setattr(engine_module, "KVCache", lambda *a: caches.append(weakref.ref(made := KVCache(*a))) or made)
    for run in (lambda: engine.complete(IDS, 1), lambda: engine.losses(IDS)):
        with pytest.raises(OutOfMemory, match="shorter text") as caught:
            run()
        assert caches[-1]() is None and caught.value.title == "Not enough memory"  # freed while the error is held
    monkeypatch.setattr(engine_module, "mlp", lambda *_: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(lambda: engine.prefill(engine.open(YARN, 80), IDS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ids": []}, "empty"),
        ({"ids": [97]}, "Token 97 is outside the vocabulary of 97"),
        ({"ids": [-1, 3]}, "Token -1"),
        ({"max_new_tokens": 0}, "new tokens"),
        ({"max_new_tokens": 2_097_152}, "too many"),
        ({"rope": scaling("pi", 64, 1e4, 32, 64)}, r"32 numbers; this model needs 8 \(rotary_dim/2\)"),
        ({"rope": scaling("longrope", 16, 1e4, 32, 64, table=[[1] * 8, [2] * 8])}, "2 rows; this model has 3"),
        ({"reading": Reading(mode="sparse")}, "Unknown mode"),
        ({"reading": Reading(kv="int2")}, "int4"),
        ({"reading": Reading(chunk=0)}, "at least 1"),
        ({"reading": Reading(mode="blockwise", anchor=99, block=9)}, "anchor"),
        ({"reading": Reading(mode="streaming", kv="int8")}, "float32"),
    ],
)
def test_bad_requests(engine, arguments, words):
    with pytest.raises(BadInput, match=words):
        engine.complete(**({"ids": IDS} | arguments))


def test_full_and_used_sessions(engine):
    session = engine.open(YARN, 4)
    engine.prefill(session, IDS[:4])
    with pytest.raises(BadInput, match="full"):
        engine.step(session, 1)
    with pytest.raises(BadInput, match="already"):
        engine.prefill(session, IDS[:4])
    with pytest.raises(BadInput, match="holds 4"):
        engine.prefill(engine.open(YARN, 4), IDS[:5])
    with pytest.raises(BadInput, match="first token"):
        engine.losses(IDS, 75)


def test_weights_that_do_not_fit():
    with pytest.raises(WeightsCorrupt, match=r"no 'model\.norm\.weight'"):
        Engine(CONFIG, {name: tensor for name, tensor in WEIGHTS.items() if name != "model.norm.weight"})
    with pytest.raises(WeightsCorrupt, match="97 x 48; expected 98 x 48"):
        Engine(replace(CONFIG, vocabulary=98), WEIGHTS)


def test_folders(tmp_path):
    config = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 80,
        "vocab_size": 97,
        "max_position_embeddings": WINDOW,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = sorted(WEIGHTS)
    for part in (0, 1):
        write_safetensors(tmp_path / f"model-{part}.safetensors", {name: WEIGHTS[name] for name in names[part::2]})
    found = load_folder(tmp_path)
    assert found.config == CONFIG
    close(last_logits(found, IDS), last_logits(Engine(CONFIG, WEIGHTS), IDS), 1e-6)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(BadInput, match="gelu"):
        load_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    with pytest.raises(BadInput, match="6 heads and 4"):
        load_folder(tmp_path)
    for content, words in (("{}", "model type"), ('{"model_type": "llama"}', "has no"), ("{", "not JSON")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BadInput, match=words):
            load_folder(tmp_path)
    with pytest.raises(BadInput, match="no model folder"):
        load_folder(tmp_path / "nothing")


def test_phi_4_minis_configuration():
    """Partial rotary: 0.75 of 128 dimensions, so tables have 48 numbers; the trained window is the original one."""
    config = read_config(
        {
            "model_type": "phi3",
            "num_hidden_layers": 32,
            "hidden_size": 3072,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "vocab_size": 200_064,
            "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-5,
        }
    )
    assert (config.head_dim, config.rotary_dim, config.window, config.group) == (128, 96, 4096, 3)
    assert config.parameters == pytest.approx(3.84e9, rel=0.01)


@pytest.mark.parametrize("chunk", [4, 16, 64])
def test_jumps_spread_a_short_text_over_a_long_one(chunk):
    jumps = ((10, 300), (40, 1000))
    at = torch.arange(75) + 300 * (torch.arange(75) >= 10) + 1000 * (torch.arange(75) >= 40)
    expected = reference(CONFIG, WEIGHTS, torch.tensor(IDS), YARN, at=at.numpy())
    engine = Engine(CONFIG, WEIGHTS)
    session = engine.open(YARN, 80, Reading(chunk=chunk, jumps=jumps))
    torch.testing.assert_close(engine.prefill(session, IDS[:-1]), expected[-2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine.step(session, IDS[-1]), expected[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "reading",
    [Reading(jumps=((5, 0),)), Reading(jumps=((9, 3), (5, 3))), Reading(mode="blockwise", jumps=((5, 3),))],
)
def test_bad_jumps_are_refused(reading):
    with pytest.raises(BadInput):
        Engine(CONFIG, WEIGHTS).open(PLAIN, 40, reading)
