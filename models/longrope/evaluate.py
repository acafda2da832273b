"""Recorded evidence: searched tables, passkey accuracy, spread positions and perplexity against length.

    python -m models.longrope.evaluate search --lengths 16384 32768 65536
    python -m models.longrope.evaluate passkey --lengths 4096 12288 --methods none pi ntk yarn --trials 10
    python -m models.longrope.evaluate blockwise --lengths 16384 65536 --trials 20
    python -m models.longrope.evaluate spread --lengths 16384 65536 --trials 100
    python -m models.longrope.evaluate perplexity --text book.txt --lengths 2048 8192 16384

Every answer is appended to `runs/longrope/*.jsonl` at once, so a killed run goes on where it stopped; the summary
in `assets/longrope/evidence/` is rewritten after each. Scored seeds are far from those the search uses.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import longrope
from models.errors import BadInput, Cancelled
from models.longrope.engine import Mode, Reading
from models.longrope.evolution import Fitness, Individual, Seed, default_seeds, demo, read_log
from models.longrope.evolution import search as evolve
from models.longrope.fitness import HaystackFitness, NeedleFitness, Needles
from models.longrope.haystack import Haystack
from models.longrope.pipeline import Model
from models.longrope.retrieval import ANSWER_TOKENS, context, hide, is_right, make_prompt, run, wilson
from models.longrope.rope import METHODS, RopeScaling
from models.longrope.tables import SEARCHED, read_csv, searched_lengths, stretched, write_csv
from models.records import provenance, record
from models.tasks import ADVICE, workers

EVIDENCE = Path("assets/longrope/evidence")
SCORED_SEED = 5_000_000
TOGETHER = 20  # trials whose blocks are held at once
STREAMING = "streaming"
PLACE = ("method", "mode", "kv", "length", "block", "anchor")  # what tells rows of passkey.json apart


def method_scaling(model: Model, method: str, length: int, table: Path | None) -> tuple[str, RopeScaling]:
    """The label and the factors a method has at a length; for longrope the given table, the shipped one, or, beyond
    those, the longest of them stretched, which the label says; it says, too, that the model is fine-tuned."""
    label, rope = _method_scaling(model, method, length, table)
    return f"{label}, fine-tuned" if model.is_tuned else label, rope


def _method_scaling(model: Model, method: str, length: int, table: Path | None) -> tuple[str, RopeScaling]:
    if method == "longrope" and table is None and length > max(searched_lengths(model.tables), default=length):
        return "longrope stretched", model.scaling_at("longrope", length)
    if method == "longrope" and table is not None:
        factors, _ = read_csv(table.read_bytes(), model.config.rotary_dim // 2)
        return f"longrope {table.stem}", model.scaling("longrope", length, factors)
    return method, model.scaling_at("none" if method == STREAMING else method, length)


def passkey(model: Model, args: argparse.Namespace) -> None:
    """Trials spread evenly over depths; every method answers the same prompts."""
    log = _Log(args.runs / "passkey.jsonl")
    for length, trial, method in itertools.product(args.lengths, range(args.trials[0]), args.methods):
        label, rope = method_scaling(model, method, length, args.table)
        mode: Mode = "streaming" if method == STREAMING else args.mode
        place = {"method": label, "mode": mode, "kv": args.kv or model.engine.dtype, "target": length, "trial": trial}
        if not log.has(place):
            prompt = make_prompt(model, length, (trial + 0.5) / args.trials[0], SCORED_SEED + trial)
            done = run(model, prompt, rope, Reading(mode=mode, kv=args.kv))
            log.add({**asdict(done), **place})
            print(f"{label} {length} trial {trial}: {done.answer!r} {done.correct} {done.seconds:.0f} s", flush=True)
        path = args.out or EVIDENCE / "passkey.json"
        _record(path, {"model": model.name, "commands": log.commands(), **passkey_summary(log.rows)}, *PLACE)


def passkey_summary(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Cells by method, length and depth for the heat map, and accuracy with its interval by method and length."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    cells: dict[tuple[Any, ...], list[bool]] = {}
    for row in rows:
        key = (row["method"], row["mode"], row["kv"], row["target"], row.get("block"), row.get("anchor"))
        groups.setdefault(key, []).append(row)
        cells.setdefault((*key, round(row["depth"], 1)), []).append(row["correct"])
    summary = []
    for key, found in groups.items():
        correct = sum(row["correct"] for row in found)
        low, high = wilson(correct, len(found))
        seconds = statistics.median(row["seconds"] for row in found)
        summary.append(
            {**_named(key), "trials": len(found), "correct": correct,
             "interval": [low, high], "seconds_median": seconds}
        )  # fmt: skip
    heat = [{**_named(key), "depth": key[-1], "trials": len(hits), "correct": sum(hits)} for key, hits in cells.items()]
    return {"rows": summary, "cells": heat}


def _named(key: tuple[Any, ...]) -> dict[str, Any]:
    """What tells rows apart, by name; exact rows have no blocks."""
    return {name: value for name, value in zip(PLACE, key, strict=False) if value is not None}


def blockwise(model: Model, args: argparse.Namespace) -> None:
    """Whole prompts that share one haystack, read once: all methods, lengths and needles look at the same blocks.

    First the haystack is read up to each length in turn and one question answered, which is timed (a block that says
    what an earlier one says is not read again); lengths that `--minutes` do not suffice for are left out. Then come the
    trials. A key is right where each of its tokens is the likeliest after those before it: greedy decoding would say
    it.
    """
    log, lengths = _Log(args.runs / "blockwise.jsonl"), sorted(args.lengths)
    reading = Reading("blockwise", args.kv, chunk=512, block=args.block, anchor=args.anchor, folder=args.folder)
    text = context(model, lengths[-1])
    haystack = Haystack(model.engine, text, reading)
    setting = {"mode": "blockwise", "kv": haystack.reading.kv, "block": args.block, "anchor": args.anchor}
    counts = dict(itertools.zip_longest(args.lengths, args.trials, fillvalue=args.trials[-1]))
    for length in _read_on(model, haystack, lengths, args, setting):
        tokens = len(context(model, length))
        for low in range(0, counts[length], TOGETHER):
            trials = range(low, min(low + TOGETHER, counts[length]))
            prompts = {i: hide(model, text[:tokens], _spaced(i), SCORED_SEED + i, args.anchor) for i in trials}
            changes = {i: haystack.changed(prompt.ids[:tokens]) for i, prompt in prompts.items()}
            for method in args.methods:
                label, rope = method_scaling(model, method, length, args.table)
                table = round(rope.target_length) if method == "longrope" else None  # the length it was searched for
                place = {"method": label, "table": table, "target": length, **setting}
                left = [i for i in trials if not log.has({**place, "trial": i})]
                if not left:
                    continue
                started = time.perf_counter()
                answers = [model.encode(f" {prompts[i].key}") for i in left]
                question = prompts[left[0]].ids[tokens:]
                losses, likeliest = haystack.forced(rope, tokens, [changes[i] for i in left], question, answers)
                seconds = (time.perf_counter() - started) / len(left)
                for i, loss, hit in zip(left, losses.mean(1).tolist(), likeliest.all(1).tolist(), strict=True):
                    prompt = prompts[i]
                    log.add({**place, "trial": i, "depth": prompt.depth, "seed": prompt.seed, "key": prompt.key,
                             "tokens": prompt.length, "correct": hit, "loss": loss, "seconds": seconds})  # fmt: skip
                found = [row for row in log.rows if all(row[k] == v for k, v in place.items())]
                print(label, length, sum(row["correct"] for row in found), "of", len(found), flush=True)
                result = {"model": model.name, "commands": log.commands(), **passkey_summary(log.rows)}
                _record(args.out or EVIDENCE / "blockwise.json", result, *PLACE)


def _read_on(
    model: Model, haystack: Haystack, lengths: list[int], args: argparse.Namespace, setting: dict[str, Any]
) -> list[int]:
    """Reads up to each length, answers one question and records both in `reading.json`. Returns lengths reached."""
    path, reached = EVIDENCE / "reading.json", []
    seconds, deadline = 0.0, time.perf_counter() + 60 * args.minutes

    def in_time(read: int, speed: float) -> None:
        print(f"{read:,} tokens read, {speed:.0f} a second", flush=True) if read % 16384 == 0 else None
        if time.perf_counter() > deadline:
            raise Cancelled(f"{args.minutes:g} minutes were over")

    def note(**row: Any) -> None:
        same = {"threads": torch.get_num_threads(), **setting, "in_files": args.folder is not None}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        block, end = args.block, row["read"]
        copied = block * sum(start + block <= end for start in haystack.pages.same)
        row = {**row, **same, "copied": copied, "peak_gigabytes": peak, "load_average": os.getloadavg()[0]}
        result = {"model": model.name, "commands": [provenance()["command"]], "rows": [row]}
        _record(path, result, "length", "copied", *same)

    for length in lengths:
        tokens = len(context(model, length))
        prompt = hide(model, haystack.tokens[:tokens].tolist(), _spaced(0), SCORED_SEED, args.anchor)
        label, rope = method_scaling(model, args.methods[0], length, args.table)
        started = time.perf_counter()
        try:
            haystack.read_to(tokens, in_time)
        except Cancelled as stopped:
            seconds += time.perf_counter() - started
            note(length=length, read=haystack.read, read_seconds=seconds, stopped=str(stopped))
            break
        seconds += time.perf_counter() - started
        change = haystack.changed(prompt.ids[:tokens])
        started = time.perf_counter()
        count = ANSWER_TOKENS
        (ids,) = haystack.answers(rope, tokens, [change], prompt.ids[tokens:], count, model.tokenizer.stop)
        answer = model.decode(ids)
        note(length=length, read=tokens, read_seconds=seconds, answer_seconds=time.perf_counter() - started,
             method=label, key=prompt.key, answer=answer, correct=is_right(answer, prompt.key))  # fmt: skip
        reached.append(length)
        print(f"{length:,}: read in {seconds:.0f} s; {label}: {prompt.key}, {answer!r}", flush=True)
    return reached


def spread(model: Model, args: argparse.Namespace) -> None:
    """Many short prompts whose positions are spread over a length: whether far positions still work, and nothing else.

    Few tokens mean little for attention to be lost among, so these are no results at the full length. A key is right
    where each of its digits is the likeliest after those before it.
    """
    log = _Log(args.runs / "spread.jsonl")
    for length, method in itertools.product(args.lengths, args.methods):
        label, rope = method_scaling(model, method, length, args.table)
        for trial in range(args.trials[0]):
            place = {"method": label, "length": length, "trial": trial, "tokens": args.sparse}
            if log.has(place):
                continue
            prompt = make_prompt(model, args.sparse, (trial + 0.5) / args.trials[0], SCORED_SEED + trial)
            reading = Reading(jumps=prompt.spread(length))
            losses, likeliest = model.engine.forced(*prompt.answered(model), rope, reading)
            log.add({**place, "seed": prompt.seed, "correct": bool(likeliest.all()), "loss": float(losses.mean())})
        print(label, length, spread_summary(log.rows)[-1], flush=True)
        path = args.out or EVIDENCE / "spread.json"
        result = {"model": model.name, "commands": log.commands(), "rows": spread_summary(log.rows)}
        _record(path, result, "method", "length", "tokens")


def spread_summary(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy with its interval, and the key's mean loss (nats a token), by method, length and tokens read."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["length"], row["tokens"]), []).append(row)
    summary = []
    for (method, length, tokens), found in groups.items():
        correct = sum(row["correct"] for row in found)
        summary.append(
            {"method": method, "length": length, "tokens": tokens, "trials": len(found), "correct": correct,
             "interval": list(wilson(correct, len(found))), "loss": statistics.fmean(row["loss"] for row in found)}
        )  # fmt: skip
    return summary


def perplexity(model: Model, args: argparse.Namespace) -> None:
    """Perplexity of the same last tokens of a text, read with more and more of what stands before them.

    Every method has the factors of the longest length at all lengths: what these cost short texts is seen at the left.
    Readjustment for short inputs (paper section 3.3) means to use none there instead.
    """
    end, target = max(args.lengths), args.target or max(args.lengths)
    ids = model.encode(args.text.read_text(encoding="utf-8"))[args.skip : args.skip + end]
    if len(ids) < end:
        raise BadInput(f"The text has {len(ids):,} tokens, fewer than {end:,}. Choose a longer one.")
    log = _Log(args.runs / "perplexity.jsonl")
    for length, method in itertools.product(sorted(args.lengths), args.methods):
        label, rope = method_scaling(model, method, target, args.table)
        place = {"method": label, "mode": args.mode, "length": length, "target": target, "text": args.text.name,
                 "skip": args.skip, "scored": args.scored}  # fmt: skip
        if not log.has(place):
            window = ids[end - length :]
            losses = model.engine.losses(window, length - args.scored, rope, Reading(mode=args.mode, kv=args.kv))
            log.add({**place, "perplexity": math.exp(float(losses.mean()))})
            print(f"{label} {length}: {log.rows[-1]['perplexity']:.2f}", flush=True)
        path = args.out or EVIDENCE / "perplexity.json"
        result = {"model": model.name, "commands": log.commands(), "rows": log.rows}
        _record(path, result, "method", "mode", "length", "target", "text", "skip", "scored")


def search(model: Model, args: argparse.Namespace) -> None:
    """Searches a table for each length with the demo preset on sparse prompts; ships it as CSV."""
    for length in args.lengths:
        scale = length / model.window
        settings = replace(demo(model.config.rotary_dim // 2, scale, args.seed), iterations=args.iterations)
        if args.whole:
            reading = Reading("blockwise", args.kv, chunk=512, block=args.block, anchor=args.anchor)
            fitness: Fitness = HaystackFitness(model, length, args.prompts, reading=reading)
        else:
            fitness = NeedleFitness(model, length, args.prompts, sparse=args.sparse)
        c = model.config
        seeds = [*default_seeds(c.rotary_dim, c.base, c.window, scale), *_stretched(model, length)]
        log = _search_log(args, length)
        started, events = time.perf_counter(), []
        with workers(args.ray) as pool:
            path_there = args.path and args.path.resolve()
            needles = Needles(args.tier, path_there, args.device, length, args.prompts, args.sparse)
            measure = None if args.ray is None else functools.partial(pool.map, needles)
            for event in evolve(fitness, settings, seeds, log, measure):
                events.append(event)
                if event.evaluated % 20 == 0:
                    print(f"{length}: {event.evaluated}/{event.total} best {event.best.fitness:.3f}", flush=True)
        before = {seed.name: fitness(seed.factors, 0) for seed in seeds}
        tried = [event.latest for event in events]
        _ship(model, args, length, tried, before, time.perf_counter() - started)


def ship(model: Model, args: argparse.Namespace) -> None:
    """Ships the best table so far of a search that was stopped, from its log; the record counts the tables it tried."""
    for length in args.lengths:
        log = _search_log(args, length)
        _, tried = read_log(log)
        with log.open() as file:
            names = [seed["name"] for seed in json.loads(file.readline())["seeds"]]
        if len(tried) < len(names):
            raise BadInput(f"{log.name} ends before the tables it begins with were tried. Let the search run on.")
        _ship(model, args, length, tried, {name: one.fitness for name, one in zip(names, tried, strict=False)}, None)


def _search_log(args: argparse.Namespace, length: int) -> Path:
    return args.runs / f"search-{length}-{args.seed}.jsonl"


def _ship(
    model: Model,
    args: argparse.Namespace,
    length: int,
    tried: Sequence[Individual],
    before: dict[str, float],
    seconds: float | None,
) -> None:
    """Writes the best table with its card, and the search's row among those of other lengths."""
    best = min(tried, key=lambda one: one.fitness)
    whole = f"{args.prompts} whole prompts read blockwise ({args.anchor} + {args.block})"
    spread_out = f"{args.prompts} prompts of {args.sparse} tokens spread over the length"
    objective = f"loss of the key, {whole if args.whole else spread_out}"
    SEARCHED.mkdir(parents=True, exist_ok=True)
    name = f"{model.tables}-{length}"
    (SEARCHED / f"{name}.csv").write_text(write_csv(np.array(best.factors)))
    card = {"model": model.name, "original_length": model.window, "target_length": length, "magnitude": "su",
            "objective": objective, "fine_tuned": model.is_tuned, "licence": "same as this repository"}  # fmt: skip
    record(SEARCHED / f"{name}.json", card)
    path = args.out or EVIDENCE / "search.json"
    rows = json.loads(path.read_text())["result"]["runs"] if path.exists() else []
    rows = [row for row in rows if row["length"] != length]
    curve = list(itertools.accumulate((one.fitness for one in tried), min))
    rows.append(
        {"length": length, "command": provenance()["command"], "objective": objective, "before": before,
         "after": best.fitness, "evaluations": len(tried), "seconds": seconds,
         "factors": best.factors, "curve": curve}
    )  # fmt: skip
    rows.sort(key=lambda row: row["length"])
    record(path, {"model": model.name, "runs": rows})


def _stretched(model: Model, length: int) -> list[Seed]:
    """Tables to start from (`tables.stretched`)."""
    found = stretched(model.tables, model.window, length, model.config.rotary_dim // 2)
    return [Seed(f"table for {shorter}", tuple(float(x) for x in factors)) for shorter, factors in found]


def _spaced(trial: int) -> float:
    """Depths of trials, 0 to 1, evenly spread however many there are (steps of the golden ratio)."""
    return (0.5 + trial * 0.6180339887) % 1


def _record(path: Path, result: dict[str, Any], *names: str) -> None:
    """Records `result` with what an earlier run recorded and this one does not have: rows that differ in `names`."""
    before = json.loads(path.read_text())["result"] if path.exists() else {}
    for part, kept in (("rows", names), ("cells", (*names, "depth"))):
        if part in result:
            mine = {tuple(row.get(name) for name in kept) for row in result[part]}
            old = [row for row in before.get(part, []) if tuple(row.get(name) for name in kept) not in mine]
            result = {**result, part: old + result[part]}
    commands = list(dict.fromkeys([*before.get("commands", []), *result["commands"]]))
    record(path, {**result, "commands": commands})


class _Log:
    """JSON lines; a cut-off last line is dropped and done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = [line for line in (path.read_text().splitlines(True) if path.exists() else []) if line.endswith("\n")]
        path.write_text("".join(whole))
        self.rows = [json.loads(line) for line in whole]

    def has(self, place: dict[str, Any]) -> bool:
        return any(all(row.get(k) == v for k, v in place.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        row = {**row, "command": provenance()["command"]}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def commands(self) -> list[str]:
        """Those that wrote the rows, in order."""
        return list(dict.fromkeys(row["command"] for row in self.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="tokens")
    parser.add_argument("--methods", nargs="+", default=["none", "pi", "ntk", "yarn"], choices=(*METHODS, STREAMING))
    parser.add_argument("--table", type=Path, help="CSV for the method longrope, instead of the shipped tables")
    parser.add_argument("--trials", type=int, nargs="+", default=[10], help="for all lengths, or for each (blockwise)")
    parser.add_argument("--mode", default="exact", choices=("exact", "blockwise"))
    parser.add_argument("--kv", help="cache format; the engine's own if not given")
    parser.add_argument("--minutes", type=float, default=math.inf, help="to read the haystack in (blockwise)")
    parser.add_argument("--folder", type=Path, help="keep the haystack's cache in files there (blockwise)")
    parser.add_argument("--text", type=Path, help="a long text for perplexity")
    parser.add_argument("--target", type=int, help="length of the factors (perplexity); the longest if not given")
    parser.add_argument("--skip", type=int, default=20_000, help="tokens of the text left out at its beginning")
    parser.add_argument("--scored", type=int, default=1024, help="last tokens whose perplexity is measured")
    parser.add_argument("--prompts", type=int, default=6, help="prompts the search reads for each table")
    parser.add_argument("--sparse", type=int, default=256, help="tokens of each sparse prompt (search, spread)")
    parser.add_argument("--whole", action="store_true", help="search on whole prompts, read blockwise")
    parser.add_argument("--iterations", type=int, default=8, help="of the search, 16 tables each, after the first 24")
    parser.add_argument(
        "--block", type=int, default=Reading.block, help="tokens of a block (blockwise, search --whole)"
    )
    parser.add_argument(
        "--anchor", type=int, default=Reading.anchor, help="tokens all blocks see (blockwise, search --whole)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the search")
    parser.add_argument("--ray", metavar="ADDRESS", help=f"score the search's tables as Ray tasks at: {ADVICE}")
    parser.add_argument("--tuned", action="store_true", help="the embedded model after the second stage")
    parser.add_argument("--tier", default="embedded")
    parser.add_argument("--path", type=Path, help="model folder (official tier)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/longrope"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.ray and args.what != "search":
        parser.error("--ray is for search; the other measures are one run")
    if len(args.trials) not in (1, len(args.lengths) if args.what == "blockwise" else 1):
        parser.error("--trials takes one number, or with blockwise one for each of --lengths")
    if args.whole and args.ray is not None:
        parser.error("--whole searches in this process: leave out --ray")
    if args.tuned and args.ray is not None:
        parser.error("--tuned searches in this process: leave out --ray")
    if args.what == "perplexity" and args.text is None:
        parser.error("perplexity needs --text FILE")
    model = longrope.load(args.tier, args.path, args.device)
    if args.tuned:
        if model.tuned is None:
            parser.error("--tuned is for the embedded tier: no other model has been fine-tuned here")
        model = model.tuned
    COMMANDS[args.what](model, args)


COMMANDS = {
    "search": search,
    "ship": ship,
    "passkey": passkey,
    "blockwise": blockwise,
    "spread": spread,
    "perplexity": perplexity,
}


if __name__ == "__main__":
    main()
