"""Reading a prompt and answering: this engine against `transformers.generate`, same weights, same prompt, one run.

    pip install transformers==5.23.0
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_longrope.py --lengths 8192 --out assets/longrope/evidence/speed.json
    python tests/benchmarks/bench_longrope.py --alone --lengths 32768 --out assets/longrope/evidence/speed.json
    python tests/benchmarks/bench_longrope.py --alone --mode blockwise --kv int8 --lengths 131072 262144

Each measurement is a process of its own, so that peak memory is its own; they alternate, and the best of `--repeats`
counts. transformers runs in float32 and in the number format this engine takes here. Ratios are of processor seconds:
on one thread they hold on a busy machine too. Greedy answers are compared. What was measured before is kept.
`--alone` times this engine only, in any mode: seconds from the prompt to the answer's end.
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


def ours(length: int, mode: str = "exact", kv: str | None = None) -> dict:
    from models import longrope
    from models.longrope.engine import Reading
    from models.longrope.retrieval import make_prompt

    model = longrope.load(device="cpu")
    ids = make_prompt(model, length, 0.5, 0).ids
    model.complete(ids[:256], 2)  # warm-up
    with Clock() as clock:
        answer = model.complete(ids, NEW_TOKENS, reading=Reading(mode=mode, kv=kv))
    done = answer.completion
    return {"tokens": len(ids), **clock.read, "dtype": model.engine.dtype, "copied": done.copied, "answer": done.ids}


def theirs(length: int, dtype: str) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from models import longrope
    from models.longrope import gguf
    from models.longrope.retrieval import make_prompt
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
    model = model.to(getattr(torch, dtype))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.generate(ids[:, :256], max_new_tokens=2, **options)  # warm-up
    with Clock() as clock:
        out = model.generate(ids, max_new_tokens=NEW_TOKENS, **options)
    return {"tokens": ids.shape[1], **clock.read, "dtype": dtype, "answer": out[0, ids.shape[1] :].tolist()}


class Clock:
    """Seconds and processor seconds of a block."""

    def __enter__(self) -> "Clock":
        self.started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, processor = self.started
        self.read = {
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor,
        }


def tokens_of(row: dict) -> int:
    return row["tokens"]


def measured(which: str, length: int, *options: str) -> dict:
    """One run in a process of its own; `which` is ours or a dtype of transformers."""
    command = [sys.executable, __file__, "--one", which, "--lengths", str(length), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="of transformers")
    parser.add_argument("--alone", action="store_true", help="time this engine only")
    parser.add_argument("--mode", default="exact", choices=("exact", "blockwise"), help="of this engine, with --alone")
    parser.add_argument("--kv", default="bfloat16", help="its cache's number format, with --alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        length = args.lengths[0]
        result = ours(length, args.mode, args.kv) if args.one == "ours" else theirs(length, args.one)
        result["peak_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(result))
        return
    from models.records import record

    before = json.loads(args.out.read_text())["result"] if args.out and args.out.exists() else {}
    kept, alone = before.get("rows", []), before.get("alone", [])
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))

    def save() -> None:
        if args.out:
            parts = {"rows": sorted(kept, key=tokens_of), "alone": sorted(alone, key=tokens_of)}
            record(args.out, {"new_tokens": NEW_TOKENS, **parts})

    for length in args.lengths if args.alone else ():
        options = ("--mode", args.mode, "--kv", args.kv)
        runs = [measured("ours", length, *options) for _ in range(args.repeats)]
        row = {**min(runs, key=lambda r: r["seconds"]), "mode": args.mode, "kv": args.kv, "threads": threads,
               "load_average": os.getloadavg()[0]}  # fmt: skip
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        same = ("tokens", "mode", "kv", "threads")
        alone = [old for old in alone if any(old[k] != row[k] for k in same)] + [row]
        save()
    for length in () if args.alone else args.lengths:
        rounds = [[measured(which, length) for which in ("ours", *args.dtypes)] for _ in range(args.repeats)]
        mine, *others = [min(runs, key=lambda r: r["processor_seconds"]) for runs in zip(*rounds, strict=True)]
        for other in others:
            row = {
                "tokens": mine["tokens"],
                "threads": threads,
                "load_average": os.getloadavg()[0],
                "ratio": other["processor_seconds"] / mine["processor_seconds"],
                "same_answer": mine["answer"] == other["answer"],
                **{f"ours_{k}": v for k, v in mine.items() if k not in ("tokens", "answer")},
                **{f"transformers_{k}": v for k, v in other.items() if k not in ("tokens", "answer")},
            }
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            same = ("tokens", "transformers_dtype", "threads")
            kept = [old for old in kept if any(old.get(k) != row[k] for k in same)] + [row]
        save()


if __name__ == "__main__":
    main()
