"""The second stage: a short fine-tune at far positions (paper section 3.3, step 2).

    python -m models.longrope.finetune --minutes 60 --text FOLDER     # resumable, in runs/longrope/finetune
    python -m models.longrope.finetune ship                           # assets/longrope/adapter.safetensors and its card

Low-rank additions (arXiv 2106.09685) to the attention of every layer learn to read with the factors searched for the
target length. A text of that length is not affordable here, so short ones are read as if spread over it: positions are
skipped (PoSE, arXiv 2309.10400), and each token of the haystack weighs as many as it stands for, for attention is lost
among many. Some prompts are read as in blockwise mode, the context at near positions with the model's own angles, the
others as in exact mode.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import longrope, shipping
from models.longrope import adapter
from models.longrope.network import LlamaConfig, Weights, rms_norm
from models.longrope.pipeline import Model
from models.longrope.retrieval import ANSWER_TOKENS, Prompt, make_prompt
from models.longrope.rope import RopeScaling, scaling
from models.longrope.tables import SEARCHED, write_csv
from models.records import provenance, record
from models.weights import ASSETS

logger = logging.getLogger(__name__)

FOLDER = Path("runs/longrope/finetune")
STARTS = "starts.jsonl"  # in the folder of a run: each time it was started, from which step and how
RANK = 16
UNIT = 24  # tokens of filler that stay together
NEAR_NEEDLE = 24  # tokens on both sides of the needle that stand for themselves only
SAVE_SECONDS = 120


@dataclass(frozen=True)
class Recipe:
    """length: the target, tokens. shortest: of the lengths prompts are spread over, log-uniform up to the target.
    tokens: really read of a prompt, from the first to the second number. batch: prompts a step. rate: at its highest;
    it falls in a line in the last part of the time. own: share of prompts in a text instead of the usual filler.
    blockwise: share of prompts read as in that mode. text_weight: of the loss on the text itself."""

    length: int = 65_536
    shortest: int = 4_096
    tokens: tuple[int, int] = (256, 448)
    batch: int = 4
    rate: float = 1e-3
    warm_up: int = 10
    cooling: float = 0.6
    own: float = 0.5
    blockwise: float = 0.7
    text_weight: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """A prompt with its answer. ids (T,): `context` tokens, then the question, from `answer` on the answer.

    near, far: positions of the context as it is read, and of everything as the question sees it, (T,) int64.
    weight: how many tokens each key stands for where the question looks, (T,) float32.
    plain: whether the context is read with the model's own angles at `near`, or with the table's at `far`.
    """

    ids: Tensor
    context: int
    answer: int
    near: np.ndarray
    far: np.ndarray
    weight: Tensor
    plain: bool
    text: bool  # whether the haystack is text, from which to learn, too


def lesson(model: Model, recipe: Recipe, rng: random.Random, text: str) -> Lesson:
    """A prompt with a key, spread over a length."""
    length = round(math.exp(rng.uniform(math.log(recipe.shortest), math.log(recipe.length))))
    own = bool(text) and rng.random() < recipe.own
    haystack = None
    if own:
        start = rng.randrange(max(len(text) - 4000, 1))
        haystack = text[start : start + 4000].partition(" ")[2]
    size = rng.randint(*recipe.tokens)
    prompt = make_prompt(model, size, rng.random(), rng.randrange(2**30), haystack)
    ids, first = prompt.answered(model)
    context = prompt.length - prompt.question_tokens
    far = scattered(prompt, length, rng)[: len(ids)]
    low, high = max(prompt.needle[0] - NEAR_NEEDLE, 0), prompt.needle[1] + NEAR_NEEDLE
    filler = torch.ones(len(ids), dtype=torch.bool)
    filler[low:high] = filler[context:] = False
    weight = torch.ones(len(ids))
    weight[filler] = max((length - int((~filler).sum())) / max(int(filler.sum()), 1), 1.0)
    plain = rng.random() < recipe.blockwise
    return Lesson(torch.tensor(ids), context, first, np.arange(len(ids)), far, weight, plain, own)


def scattered(prompt: Prompt, length: int, rng: random.Random) -> np.ndarray:
    """Positions of a prompt in a text of `length` tokens, with room for an answer, int64: the filler stands at many
    random places, `UNIT` tokens at each, those next to the needle beside it; the needle at its depth, the question at
    the end.
    """
    missing, (first, last), end = length - prompt.length, prompt.needle, prompt.length - prompt.question_tokens
    skipped = np.zeros(prompt.length + 2 * ANSWER_TOKENS, dtype=np.int64)
    before = round(missing * prompt.depth)
    left = list(range(UNIT, first - NEAR_NEEDLE + 1, UNIT)) or [first]
    right = list(range(last + NEAR_NEEDLE, end + 1, UNIT)) or [end]
    for places, total in ((left, before), (right, missing - before)):
        drawn = sorted(rng.random() for _ in places[1:])
        shares = np.diff([0.0, *drawn, 1.0]) * total
        gaps = np.diff([0, *np.round(np.cumsum(shares)).astype(np.int64)])
        np.add.at(skipped, places, gaps)
    return np.arange(len(skipped)) + np.cumsum(skipped)


class Adapted(nn.Module):
    """A frozen model whose attention matrices have additions of low rank: `down.*` (rank, in), `up.*` (out, rank)."""

    def __init__(self, config: LlamaConfig, weights: Weights, rank: int = RANK, seed: int = 0) -> None:
        super().__init__()
        self.config, self.weights = config, weights
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for i, layer in enumerate(weights.layers):
            for part in adapter.PARTS:
                out, into = getattr(layer, part).shape
                self.down[f"{i}_{part}"] = nn.Parameter(torch.randn((rank, into), generator=generator) / into**0.5)
                self.up[f"{i}_{part}"] = nn.Parameter(torch.zeros(out, rank))

    def forward(self, given: Lesson, rope: RopeScaling) -> Tensor:
        """Final hidden states (T, width), normalised, of a lesson without its last token."""
        c, w, end = self.config, self.weights, len(given.ids) - 1
        far = _turns(rope, given.far[:end])
        plain = scaling("none", c.rotary_dim, c.base, c.window, c.window)
        near = _turns(plain, given.near[:end]) if given.plain else far
        heavy = given.weight[:end].log()
        x = F.embedding(given.ids[:end], w.embedding)
        for i in range(c.layers):
            x = self._layer(i, x, given.context, near, far, heavy)
        return rms_norm(x, w.norm, c.eps)

    def _layer(
        self, i: int, x: Tensor, context: int, near: tuple[Tensor, Tensor], far: tuple[Tensor, Tensor], heavy: Tensor
    ) -> Tensor:
        c, layer = self.config, self.weights.layers[i]
        heads = self._linear(i, "qkv", rms_norm(x, layer.attention_norm, c.eps), layer.qkv_bias)
        heads = heads.unflatten(-1, (-1, c.head_dim)).transpose(0, 1)  # (heads + 2 KV heads, T, head_dim)
        turning, v = heads.split((c.heads + c.kv_heads, c.kv_heads))
        beginning = _turned(turning[:, :context], near)
        whole = _turned(turning, far)
        seen = torch.cat(
            (
                self._attend(beginning[: c.heads], beginning[c.heads :], v[:, :context], None),
                self._attend(whole[: c.heads, context:], whole[c.heads :], v, heavy),
            )
        )
        return _mlp(self, i, x + self._linear(i, "output", seen, None))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, heavy: Tensor | None) -> Tensor:
        """Causal attention of the last rows: q (heads, R, d), k and v (KV heads, T, d) -> (R, heads * d)."""
        c, rows, keys = self.config, q.shape[1], k.shape[1]
        unseen = torch.full((rows, keys), -torch.inf, dtype=q.dtype).triu(keys - rows + 1)
        if heavy is not None:
            unseen = unseen + heavy.to(q.dtype)
        q = q.unflatten(0, (c.kv_heads, c.group)).flatten(1, 2)
        scores = torch.baddbmm(unseen.repeat(c.group, 1), q, k.transpose(1, 2), alpha=c.head_dim**-0.5)
        return (scores.softmax(-1) @ v).unflatten(1, (c.group, rows)).permute(2, 0, 1, 3).flatten(1)

    def _linear(self, i: int, part: str, x: Tensor, bias: Tensor | None) -> Tensor:
        key = f"{i}_{part}"
        low = F.linear(x, self.down[key].to(x.dtype))
        return F.linear(x, getattr(self.weights.layers[i], part), bias) + F.linear(low, self.up[key].to(x.dtype))


def _mlp(network: Adapted, i: int, x: Tensor) -> Tensor:
    """`network.mlp` without writing in place, for gradients."""
    layer = network.weights.layers[i]
    gate, up = F.linear(rms_norm(x, layer.mlp_norm, network.config.eps), layer.gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, layer.down)


def losses(network: Adapted, given: Lesson, rope: RopeScaling) -> tuple[Tensor, Tensor, bool]:
    """Mean loss of the answer's tokens, of the text's (0 for filler), and whether each token of the answer was the
    likeliest."""
    hidden, head = network(given, rope), network.weights.head
    logits = F.linear(hidden[given.answer - 1 :], head).float()
    wanted = given.ids[given.answer :]
    text = torch.zeros(())
    if given.text:
        text = F.cross_entropy(F.linear(hidden[: given.context - 1], head).float(), given.ids[1 : given.context])
    return F.cross_entropy(logits, wanted), text, bool((logits.argmax(-1) == wanted).all())


def _turns(rope: RopeScaling, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    cos, sin = rope.cos_sin(positions)
    return torch.from_numpy(cos), torch.from_numpy(sin)


def _turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x (heads, T, head_dim), all of it rotated."""
    cos, sin = (angle[: x.shape[1]].to(x.dtype) for angle in angles)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Training:
    """An adapter on its way, in a folder from where it is taken up."""

    def __init__(self, model: Model, recipe: Recipe, out: Path) -> None:
        engine = model.engine
        self.model, self.recipe, self.out = model, recipe, out
        self.network = Adapted(model.config, engine.weights, seed=recipe.seed)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0)
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        if self.state.exists():
            content = torch.load(self.state, weights_only=True)
            self.network.load_state_dict(content["network"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.step, self.seconds, self.log = content["step"], content["seconds"], content["log"]

    @property
    def state(self) -> Path:
        return self.out / "state.pt"

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        content = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
                   "seconds": self.seconds, "log": self.log}  # fmt: skip
        torch.save(content, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)

    def advance(self, rope: RopeScaling, text: str, progress: float) -> dict[str, float]:
        """One step; means over its prompts. The same lessons for the same step, whatever came before."""
        recipe, rng = self.recipe, random.Random(f"{self.recipe.seed} {self.step}")
        cooled = min(1.0, (1 - progress) / (1 - recipe.cooling))
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (self.step + 1) / recipe.warm_up) * max(cooled, 0.02)
        means = {"answer": 0.0, "text": 0.0, "found": 0.0}
        for _ in range(recipe.batch):
            answer, told, found = losses(self.network, lesson(self.model, recipe, rng, text), rope)
            ((answer + recipe.text_weight * told) / recipe.batch).backward()
            for name, value in (("answer", answer.detach()), ("text", told.detach()), ("found", found)):
                means[name] += float(value) / recipe.batch
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return means


def run(training: Training, rope: RopeScaling, text: str, minutes: float) -> None:
    """Trains until `minutes` are spent, those of earlier runs included; saves every two minutes and at the end."""
    began = saved = time.monotonic()
    before, sums = training.seconds, dict.fromkeys(("answer", "text", "found"), 0.0)
    while training.seconds < 60 * minutes:
        means = training.advance(rope, text, training.seconds / (60 * minutes))
        training.seconds = before + time.monotonic() - began
        sums = {name: sums[name] + means[name] / 10 for name in sums}
        if training.step % 10 == 0:
            row = {"step": training.step, "seconds": round(training.seconds)}
            training.log.append(row | {name: round(value, 3) for name, value in sums.items()})
            logger.info("%s", training.log[-1])
            sums = dict.fromkeys(sums, 0.0)
        if time.monotonic() - saved > SAVE_SECONDS:
            training.save()
            saved = time.monotonic()
    training.save()


def ship(out: Path) -> Path:
    """The adapter into assets/longrope with its card, and the table it was trained with last as its own."""
    content = torch.load(out / "state.pt", weights_only=True)
    starts = [json.loads(line) for line in (out / STARTS).read_text().splitlines()]
    recipe = starts[-1]["recipe"]
    card = {
        "network": f"additions of rank {RANK} to the attention of SmolLM2-135M-Instruct, float16",
        "data": "prompts with a hidden key, in the usual filler and in State of the Union addresses (public domain)",
        "licence": adapter.SOURCE.licence,
        "starts": starts,
        "cost": f"{content['step']} steps of {recipe['batch']} prompts, {content['seconds'] / 60:.0f} minutes",
        "log": content["log"],
    }
    model, length = longrope.load(device="cpu"), recipe["length"]
    factors = model.scaling_at("longrope", length).rescale_factors
    (SEARCHED / f"{adapter.TABLES}-{length}.csv").write_text(write_csv(factors))
    table = {"model": model.name, "original_length": model.window, "target_length": length, "magnitude": "su",
             "objective": "the longest searched table, stretched to this length; the model was fine-tuned with it",
             "fine_tuned": True, "licence": "same as this repository"}  # fmt: skip
    record(SEARCHED / f"{adapter.TABLES}-{length}.json", table)
    return shipping.ship(Path(adapter.FILE).stem, content["network"], card, ASSETS / "longrope")


def read_text(folder: Path | None, seed: int, characters: int = 2_000_000) -> str:
    """The .txt files of a folder, shuffled and joined; nothing without a folder."""
    files = sorted(folder.rglob("*.txt")) if folder is not None else []
    random.Random(seed).shuffle(files)
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files)[:characters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("train", "ship"), default="train")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--length", type=int, default=Recipe.length, help="target, tokens")
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--text", type=Path, help="a folder with .txt files")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.command == "ship":
        print(ship(args.out))
        return
    recipe = Recipe(length=args.length, rate=args.rate, seed=args.seed)
    model = longrope.load(device="cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    training, text = Training(model, recipe, args.out), read_text(args.text, recipe.seed)
    with (args.out / STARTS).open("a") as file:
        start = {"step": training.step, "command": provenance()["command"], "recipe": vars(recipe)}
        file.write(json.dumps(start) + "\n")
    run(training, model.scaling_at("longrope", recipe.length), text, args.minutes)


if __name__ == "__main__":
    main()
