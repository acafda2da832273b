"""Constrained generation here against `transformers.generate` with a masking processor: same model, prompt and rules.

    python tests/benchmarks/bench_anygpt.py --shape 135m --tokens 128

A random model of SmolLM2-135M's shape with AnyGPT's chat vocabulary, or the miniature that is shipped, in bfloat16 as
its tier runs it (--shape shipped --dtype bfloat16); the rounds alternate and the best of each counts.
Greedy replies are compared, so that speed is not bought with another answer. The last line is about candidates: as
many pieces of guided music as the "embedded" preset allows, of which none is good enough.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import LogitsProcessorList

from models.anygpt import lean
from models.anygpt.decoding import LanguageModel, Reader, generate
from models.anygpt.embedded import lm
from models.anygpt.embedded.layout import RULES
from models.anygpt.grammar import OFFICIAL_RULES, Grammar
from models.anygpt.sampling import PRESETS
from models.anygpt.vocabulary import extend, stop_ids
from models.runtime import choose_device
from models.weights import ASSETS
from tests.models.anygpt.tiny import MaskingProcessor, llama_tokenizer, tiny_llama

SHAPES: dict[str, dict[str, object]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
    "135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
}  # fmt: skip


SHIPPED = "shipped"


def timed(work: Callable[[], list[int]]) -> tuple[float, list[int]]:
    started = time.perf_counter()
    ids = work()
    return time.perf_counter() - started, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, SHIPPED], default="135m")
    parser.add_argument("--tokens", type=int, default=128, help="of each reply")
    parser.add_argument("--prompt", type=int, default=100, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default=choose_device("cpu").dtype)
    args = parser.parse_args()

    if args.shape == SHIPPED:
        words, rules = lm.words(), RULES
        tokenizer, vocabulary = words.tokenizer, words.vocabulary
        model = lm.load(ASSETS / "anygpt" / lm.FILE)
    else:
        tokenizer, rules = llama_tokenizer(32_000), OFFICIAL_RULES
        vocabulary = extend(tokenizer)
        model = tiny_llama(vocabulary.size, **SHAPES[args.shape], max_position_embeddings=4096)
    model = model.to(getattr(torch, args.dtype))
    stop = stop_ids(tokenizer, vocabulary)
    eight = lean.quantised(model)
    readers = {"any model": LanguageModel(model), "lean": lean.exact(model), "8 bits": eight}
    print(f"{model.num_parameters() / 1e6:.0f} M parameters, {args.dtype}, {torch.get_num_threads()} threads")
    for medium in ("text", "image", "speech", "music"):
        start = [] if medium == "text" else [vocabulary.media[medium].start]
        prompt = [1, *range(3, 3 + args.prompt - 2), *start]
        # Without stop ids all replies of text have the same length.
        grammar = Grammar(vocabulary, rules if start else {}, stop if start else [], args.tokens)

        def ours(reader: Reader, prompt: list[int] = prompt, grammar: Grammar = grammar) -> list[int]:
            return list(generate(reader, prompt, grammar))

        def theirs(prompt: list[int] = prompt, grammar: Grammar = grammar) -> list[int]:
            mask = LogitsProcessorList([MaskingProcessor(grammar, prompt)])
            out = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), logits_processor=mask,
                max_new_tokens=args.tokens, do_sample=False, pad_token_id=0, eos_token_id=list(stop),
            )  # fmt: skip
            return out[0, len(prompt) :].tolist()

        works = {"generate": theirs} | {name: partial(ours, reader) for name, reader in readers.items()}
        best: dict[str, tuple[float, list[int]]] = {}
        for _ in range(args.rounds):
            for name, work in works.items():
                run = timed(work)
                best[name] = min(best.get(name, run), run, key=lambda run: run[0])
        base = best["generate"]
        speed = {name: len(ids) / seconds for name, (seconds, ids) in best.items()}
        print(
            f"{medium:6} {len(base[1])} tokens, generate {speed['generate']:.1f} a second; "
            + "; ".join(
                f"{name} {speed[name] / speed['generate']:.2f} times, first {same(base[1], best[name][1])} ids the same"
                for name in readers
            )
        )

    music = Grammar(vocabulary, rules, stop, args.tokens)
    prompt = [1, *range(3, 3 + args.prompt - 2), vocabulary.media["music"].start]
    preset = PRESETS["embedded"]
    seconds: dict[int, list[float]] = {1: [], lean.TOGETHER: []}
    for _ in range(args.rounds):
        for together, found in seconds.items():
            eight.together = together
            written = generate(eight, prompt, music, preset, 0, without=[1], fit=lambda ids: 0.0)
            found.append(timed(partial(list, written))[0])
    one, pairs = (min(found) for found in seconds.values())
    count = preset["music"].candidates
    print(f"{count} candidates, 8 bits: {one:.1f} s one after another, in pairs {one / pairs:.2f} times as fast")


def same(a: list[int], b: list[int]) -> int:
    """How many ids two replies have in common before they part."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


if __name__ == "__main__":
    main()
