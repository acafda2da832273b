"""Reading a prompt and answering: this engine against `transformers.generate`, same weights, same prompt, one run.

    pip install transformers==5.23.0
    python tests/benchmarks/bench_longrope.py --lengths 2048 8192 --out assets/longrope/evidence/speed.json

Each measurement is a process of its own, so that peak memory is its own; they alternate, and the best of `--repeats`
counts. Greedy answers are compared.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

NEW_TOKENS = 8


def ours(length: int) -> dict:
    from models import longrope
    from models.longrope.retrieval import make_prompt

    model = longrope.load(device="cpu")
    ids = make_prompt(model, length, 0.5, 0).ids
    model.complete(ids[:256], 2)  # warm-up
    started = time.perf_counter()
    answer = model.complete(ids, NEW_TOKENS)
    seconds = time.perf_counter() - started
    return {"tokens": len(ids), "seconds": seconds, "dtype": model.engine.dtype, "answer": answer.completion.ids}


def theirs(length: int) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from models import longrope
    from models.longrope import gguf
    from models.longrope.retrieval import make_prompt
    from models.runtime import choose_device
    from models.weights import resolve

    words = longrope.load(device="cpu")
    ids = torch.tensor([make_prompt(words, length, 0.5, 0).ids])
    del words
    c, tensors = gguf.read_llama(resolve(gguf.PACKAGED).path)
    config = LlamaConfig(
        vocab_size=c.vocabulary, hidden_size=c.width, intermediate_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, max_position_embeddings=c.window,
        rope_parameters={"rope_type": "default", "rope_theta": c.base}, rms_norm_eps=c.eps, tie_word_embeddings=True,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(tensors, strict=False)
    dtype = choose_device("cpu").dtype
    model = model.to(getattr(torch, dtype))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.generate(ids[:, :256], max_new_tokens=2, **options)  # warm-up
    started = time.perf_counter()
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, **options)
    seconds = time.perf_counter() - started
    return {"tokens": ids.shape[1], "seconds": seconds, "dtype": dtype, "answer": out[0, ids.shape[1] :].tolist()}


def measured(which: str, length: int) -> dict:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--one", which, "--lengths", str(length)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        result = {"ours": ours, "theirs": theirs}[args.one](args.lengths[0])
        result["peak_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(result))
        return
    from models.records import record

    rows = []
    for length in args.lengths:
        runs = [(measured("ours", length), measured("theirs", length)) for _ in range(args.repeats)]
        best = [min((pair[i] for pair in runs), key=lambda r: r["seconds"]) for i in (0, 1)]
        ratio = best[1]["seconds"] / best[0]["seconds"]
        rows.append(
            {"tokens": best[0]["tokens"], "dtype": best[0]["dtype"], "ours_seconds": best[0]["seconds"],
             "transformers_seconds": best[1]["seconds"], "ratio": ratio,
             "same_answer": best[0]["answer"] == best[1]["answer"],
             "ours_peak_gigabytes": best[0]["peak_gigabytes"], "transformers_peak_gigabytes": best[1]["peak_gigabytes"]}
        )  # fmt: skip
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    if args.out:
        record(args.out, {"new_tokens": NEW_TOKENS, "rows": rows})


if __name__ == "__main__":
    main()
