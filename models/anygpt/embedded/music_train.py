"""How the music codec is made: `python -m models.anygpt.embedded.music_train data|train|refine|colours|codes|judge`.

data: tunes, arrangements, sounds (`music_data`). train: everything, end to end. refine: decoder and synthesiser only,
so that codes already written stay what they are; a few codes are replaced at random, since a language model errs too.
colours: the means of latents that a clip's first frame names, of the shipped codec; so after `train` or `refine`.
codes: runs/anygpt/music.jsonl, what the language model learns from (where nothing was trained, the shipped codec's).
judge: evidence (`music_judge`).
`train` and `refine` go on from where they were stopped; everything is in runs/anygpt/music.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import shipping
from models.anygpt.audio import Audio
from models.anygpt.embedded import music_data, music_judge
from models.anygpt.embedded.layout import MUSIC_FRAMES, MUSIC_LEAD, SHIPPED
from models.anygpt.embedded.music_codec import (
    FLOOR,
    HOP,
    LOWEST,
    PITCHES,
    RATE,
    SECONDS,
    SIZE,
    STEPS,
    MusicCodec,
    Quantiser,
    load,
    overall,
    spectra,
)
from models.records import record
from models.runtime import mixed_precision

logger = logging.getLogger(__name__)
FOLDER = Path("runs/anygpt/music")
LENGTH = MUSIC_FRAMES * STEPS  # steps of a clip
RELEASE = 10  # steps after a note's end in which it may still ring
FAMILIES = tuple(music_data.FAMILIES)


CARD = {
    "network": "MusicCodec of music_codec.py: two codes of 256, 12.5 times a second, after two of 32 about the whole; "
    "an additive synthesiser; float16",
    "data": "2 160 clips of 5.2 s: Bach's chorales and Ryan's Mammoth Collection (1883), both in the public domain, "
    "from music21 10.5.1's corpus, arranged by music_data.py, rendered by FluidSynth 2.3.1 with the sound fonts "
    "FluidR3_GM (MIT) and TimGM6mb (GPL-2), which are not shipped; 288 clips of other tunes held out",
    "licence": "Apache-2.0; sources in assets/LICENSES.md",
    "commands": [
        f"python -m models.anygpt.embedded.music_train {stage}"
        for stage in ("data", "train --minutes 16", "refine --minutes 30", "colours", "codes", "judge")
    ],
    "seed": [0, 1],
    "note": "The first 900 steps of training were made without the loss on how bands change (`moves`), and planned for "
    "13 minutes; a re-run will differ a little.",
    "quality": "see evidence/music_codec.json",
}


@dataclass(frozen=True)
class Recipe:
    """batch: clips. rate: of AdamW, falling to a tenth along a cosine. free: share of the time before codes are used.
    wrong: share of codes replaced at random while refining."""

    batch: int = 24
    rate: float = 1.5e-3
    free: float = 0.06
    wrong: float = 0.03
    held: float = 0.5
    onset: float = 0.5
    family: float = 0.2
    moves: float = 1.0
    hiss: float = 0.02
    commitment: float = 0.25
    keep: float = 0.98  # of the codebooks' moving averages
    starved: float = 0.02  # of a fair share of use; a code below starts anew


@dataclass
class Progress:
    seconds: float = 0.0
    steps: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)


class Helpers(nn.Module):
    """Heads that only training needs: where notes start, and which family plays."""

    def __init__(self, codec: MusicCodec) -> None:
        super().__init__()
        self.onset = nn.Conv1d(codec.decoder.last.in_channels, STEPS * PITCHES, 1)
        self.family = nn.Linear(codec.quantiser.books.shape[-1], len(FAMILIES))


class Averages:
    """Codebooks as moving averages of what fell to each code; codes that starve move to random vectors."""

    def __init__(self, books: Tensor, recipe: Recipe) -> None:
        self.books, self.recipe = books, recipe
        self.counts = torch.zeros(books.shape[:2])
        self.sums = torch.zeros_like(books)

    @property
    def started(self) -> bool:
        return bool(self.counts.any())

    def start(self, latent: Tensor) -> None:
        """Codes from vectors (n, dim) by a few rounds of k-means, layer by layer."""
        rest = latent
        for layer, book in enumerate(self.books):
            centres = rest[torch.randperm(len(rest))[: len(book)]].clone()
            for _ in range(8):
                nearest = torch.cdist(rest, centres).argmin(1)
                counts = torch.bincount(nearest, minlength=len(book))
                sums = torch.zeros_like(centres).index_add_(0, nearest, rest)
                centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
            book.copy_(centres)
            self.counts[layer] = len(rest) / len(book) * 0.05
            self.sums[layer] = centres * self.counts[layer][:, None]
            rest = rest - centres[torch.cdist(rest, centres).argmin(1)]

    def learn(self, latent: Tensor, codes: Tensor) -> None:
        """latent (n, dim), codes (n, layers)."""
        rest, keep = latent, self.recipe.keep
        for layer, book in enumerate(self.books):
            used = codes[:, layer]
            left = rest - book[used]
            self.counts[layer].mul_(keep).add_(torch.bincount(used, minlength=len(book)), alpha=1 - keep)
            self.sums[layer].mul_(keep).index_add_(0, used, rest, alpha=1 - keep)
            poor = (self.counts[layer] < self.recipe.starved * self.counts[layer].mean()).nonzero()[:, 0]
            if len(poor):
                # A new code stands for one vector, but is given the weight of half a fair share to survive.
                weight = self.counts[layer].mean() / 2
                self.counts[layer][poor] = weight
                self.sums[layer][poor] = weight * rest[torch.randint(len(rest), (len(poor),))]
            book.copy_(self.sums[layer] / self.counts[layer][:, None])
            rest = left

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


class Clips:
    """A split in memory. found: (clips, steps, bands), log10 of power. held, onset: (clips, steps, PITCHES)."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.clips, sounds = music_data.read(folder, name)
        self.found = _cached(folder / f"{name}.spectra.npy", sounds)
        count, steps = self.found.shape[:2]
        self.held = torch.zeros(count, steps, PITCHES, dtype=torch.int8)  # -1: do not look
        self.onset = torch.zeros(count, steps, PITCHES, dtype=torch.int8)
        for index, clip in enumerate(self.clips):
            for start, length, pitch, _ in sorted(music_data.notes(clip)):
                low, high = round(start * RATE / HOP), round((start + length) * RATE / HOP)
                ringing = self.held[index, high : high + RELEASE, pitch - LOWEST]
                ringing[ringing == 0] = -1
                self.held[index, low:high, pitch - LOWEST] = 1
                self.onset[index, low : low + 2, pitch - LOWEST] = 1
        self.family = torch.tensor([FAMILIES.index(clip.family) for clip in self.clips])

    def batch(self, places: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps = starts[:, None] + torch.arange(LENGTH)
        pick = places[:, None], steps
        return self.found[pick].float(), self.held[pick].float(), self.onset[pick].float(), self.family[places]


def train(minutes: float, recipe: Recipe, seed: int = 0) -> None:
    """Encoder, codebooks, decoder and timbres together."""
    torch.manual_seed(seed)
    codec = MusicCodec()
    helpers, averages = Helpers(codec), Averages(codec.quantiser.books, recipe)
    state, progress = FOLDER / "train.pt", Progress()
    optimiser = _optimiser([*codec.parameters(), *helpers.parameters()], recipe)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        codec.load_state_dict(saved["codec"])
        helpers.load_state_dict(saved["helpers"])
        averages.restore(saved["averages"])
        optimiser.load_state_dict(saved["optimiser"])
        progress = Progress(**saved["progress"])
        torch.manual_seed(seed + progress.steps)
    data, test = Clips("train"), Clips("held_out")
    pool: deque[Tensor] = deque(maxlen=40)
    for share in _clock(minutes, progress, optimiser, recipe):
        found, held, onset, family = _drawn(data, recipe)
        with mixed_precision("cpu"):
            latent = codec.latent(found).float()
            if not averages.started:
                pool.append(latent.detach().flatten(0, 1))
                if share > recipe.free:
                    averages.start(torch.cat(list(pool)))
            through, commitment = _coded(latent, codec.quantiser, averages) if averages.started else _free(latent)
            losses = _losses(codec, helpers, through, found, held, onset)
            named = functional.cross_entropy(
                helpers.family(through).flatten(0, 1), family.repeat_interleave(MUSIC_FRAMES)
            )
        total = _total(losses, recipe) + recipe.family * named + recipe.commitment * commitment
        _step(total, optimiser, codec, helpers)
        if progress.steps % 100 == 0:
            _report(progress, codec, test, {**_plain(losses), "family": named.item(), "fit": commitment.item()})
            _save(state, codec, helpers, averages, optimiser, progress)
    _save(state, codec, helpers, averages, optimiser, progress)


def _free(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Before there are codes. Weak noise keeps the latents from growing fine detail that codes cannot hold."""
    return latent + 0.1 * torch.randn_like(latent), 0.01 * latent.pow(2).mean()


def _coded(latent: Tensor, quantiser: Quantiser, averages: Averages) -> tuple[Tensor, Tensor]:
    """The vectors of the codes, with gradients as if they were the latents; how far off they are."""
    codes = quantiser.codes(latent.detach())
    vectors = quantiser.vectors(codes)
    averages.learn(latent.detach().flatten(0, 1), codes.flatten(0, 1))
    return latent + (vectors - latent).detach(), functional.mse_loss(latent, vectors)


def refine(minutes: float, recipe: Recipe, seed: int = 1) -> None:
    """Decoder and timbres go on; encoder and codebooks, and so all codes, stay."""
    torch.manual_seed(seed)
    codec = MusicCodec()
    helpers, state, progress = Helpers(codec), FOLDER / "refine.pt", Progress()
    saved = torch.load(state if state.exists() else FOLDER / "train.pt", weights_only=True)
    codec.load_state_dict(saved["codec"])
    helpers.load_state_dict(saved["helpers"])
    learning = [*codec.decoder.parameters(), *codec.synthesiser.parameters(), *helpers.onset.parameters()]
    optimiser = _optimiser(learning, recipe)
    if state.exists():
        optimiser.load_state_dict(saved["optimiser"])
        progress = Progress(**saved["progress"])
        torch.manual_seed(seed + progress.steps)
    codec.encoder.requires_grad_(False)
    data, test = Clips("train"), Clips("held_out")
    for _ in _clock(minutes, progress, optimiser, recipe):
        found, held, onset, _ = _drawn(data, recipe)
        with torch.no_grad():  # in float32, as it is used
            codes = codec.quantiser.codes(codec.latent(found))
            wrong = torch.rand(codes.shape) < recipe.wrong
            codes = torch.where(wrong, torch.randint(SIZE, codes.shape), codes)
            vectors = codec.quantiser.vectors(codes)
        with mixed_precision("cpu"):
            losses = _losses(codec, helpers, vectors, found, held, onset)
        _step(_total(losses, recipe), optimiser, codec, helpers)
        if progress.steps % 100 == 0:
            _report(progress, codec, test, _plain(losses))
            _save(state, codec, helpers, None, optimiser, progress)
    _save(state, codec, helpers, None, optimiser, progress)


def fit_colours(codec: MusicCodec, data: Clips) -> None:
    """Puts k-means of `overall` of training clips, from wherever they may be cut, into the codec."""
    from sklearn.cluster import KMeans

    torch.manual_seed(0)
    found = []
    with torch.inference_mode():
        for low in range(0, len(data.clips), 64):
            places = torch.arange(low, min(low + 64, len(data.clips)))
            for starts in (torch.zeros_like(places), torch.randint(data.found.shape[1] - LENGTH + 1, (len(places),))):
                found.append(overall(codec.latent(data.batch(places, starts)[0])))
        means = KMeans(MUSIC_LEAD, n_init=4, random_state=0).fit(torch.cat(found).numpy()).cluster_centers_
        codec.colours.copy_(torch.from_numpy(means))


def rows(split: music_data.Split, codec: MusicCodec) -> Iterator[dict[str, Any]]:
    """Rows of runs/anygpt/music.jsonl.

    use: "out" where clips start on a beat and the beat fits the frames, so that they can be composed; "in" where they
    start anywhere and are only to be heard.
    """
    pick = np.random.default_rng(0)
    clips, sounds = music_data.read(FOLDER, split)
    latest = sounds.shape[1] - round(SECONDS * RATE)
    for clip, sound in zip(clips, sounds, strict=True):
        beat = round(60 / clip.bpm * RATE)
        starts = [(int(pick.integers(latest + 1)), "in")]
        if clip.steady:
            starts += [(0, "out"), (beat * int(pick.integers(1, latest // beat + 1)), "out")]
        for start, use in starts:
            heard = Audio(sound[start : start + round(SECONDS * RATE)].astype(np.float32) / 32768, RATE)
            yield {
                "text": clip.text, "family": clip.family, "bpm": clip.bpm, "tempo": clip.tempo, "mood": clip.mood,
                "use": use, "codes": codec.encode(heard).tolist(), "split": split, "work": clip.excerpt.work,
            }  # fmt: skip


def ship(*stages: str) -> None:
    """assets/anygpt/music.safetensors with its card; the weights are those of the last of `stages`."""
    saved = {stage: torch.load(FOLDER / f"{stage}.pt", weights_only=True) for stage in stages}
    costs = []
    for stage, state in saved.items():
        spent = Progress(**state["progress"])
        costs.append(f"{stage}: {spent.steps} steps of {Recipe.batch} clips in {spent.seconds / 60:.0f} minutes")
    cost = f"{', '.join(costs)}, of a small share of two busy EPYC cores; a step takes 0.22 s of one"
    _ship(saved[stages[-1]]["codec"], cost)


def _ship(state: dict[str, Tensor], cost: str) -> None:
    shipping.ship("music", state, {**CARD, "cost": cost}, SHIPPED)


def _losses(
    codec: MusicCodec, helpers: Helpers, latent: Tensor, found: Tensor, held: Tensor, onset: Tensor
) -> dict[str, Tensor]:
    """bands: mean error in log10 of power. loud: the same where it matters most, in amplitude."""
    state = codec.decoder.state(latent)
    score = codec.decoder.score(state)
    made = codec.synthesiser.expected(score).float().clamp(min=FLOOR)
    starts = helpers.onset(state).transpose(1, 2).reshape(onset.shape).float()
    seen = (held >= 0).float()
    weight = seen * (1 + 4 * (held > 0))
    return {
        "bands": (made.log10() - found).abs().mean(),
        "loud": 20 * (made.sqrt() - (10**found).sqrt()).abs().mean(),
        # How each band changes from step to step: without it levels flutter, and a plucked string does not die away.
        "moves": (made.log10().diff(dim=1) - found.diff(dim=1)).abs().mean(),
        # Noise is the last resort: sines first.
        "hiss": (score.noise.log10() - math.log10(FLOOR)).clamp(min=0).mean(),
        "held": 10 * functional.binary_cross_entropy_with_logits(score.sounding, held.clamp(min=0), weight),
        "onset": 10 * functional.binary_cross_entropy_with_logits(starts, onset, 1 + 4 * onset),
    }


def _total(losses: dict[str, Tensor], recipe: Recipe) -> Tensor:
    weights = {
        "bands": 1.0,
        "loud": 1.0,
        "moves": recipe.moves,
        "hiss": recipe.hiss,
        "held": recipe.held,
        "onset": recipe.onset,
    }
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _drawn(data: Clips, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch: any start within the first 1.2 s (a fifth on the beat), a third up to 5 dB louder or softer."""
    count = recipe.batch
    starts = torch.randint(data.found.shape[1] - LENGTH + 1, (count,)) * (torch.rand(count) > 0.2)
    found, held, onset, family = data.batch(torch.randint(len(data.clips), (count,)), starts)
    louder = torch.empty(count, 1, 1).uniform_(-0.5, 0.5) * (torch.rand(count, 1, 1) < 0.3)
    return (found + louder).clamp(min=math.log10(FLOOR)), held, onset, family


def _clock(minutes: float, progress: Progress, optimiser: torch.optim.Optimizer, recipe: Recipe) -> Iterator[float]:
    """Steps until `minutes` of training are over, counting those before an interruption; the share of time so far."""
    last = time.monotonic()
    while (share := progress.seconds / (60 * minutes)) < 1:
        rate = recipe.rate * min(1, (progress.steps + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        progress.steps += 1
        yield share
        now = time.monotonic()
        progress.seconds += now - last
        last = now


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, recipe.rate, betas=(0.9, 0.98), weight_decay=1e-3)


def _step(loss: Tensor, optimiser: torch.optim.Optimizer, *modules: nn.Module) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for module in modules:
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()


def _plain(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


@torch.inference_mode()
def _report(progress: Progress, codec: MusicCodec, test: Clips, losses: dict[str, float]) -> None:
    """Held-out clips through the codes: error in dB, how many codes are in use."""
    places = torch.arange(0, len(test.clips), 3)
    found = test.batch(places, torch.zeros_like(places))[0]
    codes = codec.quantiser.codes(codec.latent(found))
    made = codec.synthesiser.expected(codec.decoder(codec.quantiser.vectors(codes))).clamp(min=FLOOR).log10()
    used = [len(layer.unique()) for layer in codes.flatten(0, 1).T]
    entry = {"held_out_dB": 10 * (made - found).abs().mean().item(), **losses}
    progress.losses.append(entry)
    values = " ".join(f"{name} {value:.3f}" for name, value in entry.items())
    logger.info("%.1f min, step %d: %s, codes used %s", progress.seconds / 60, progress.steps, values, used)


def _save(
    path: Path, codec: MusicCodec, helpers: Helpers, averages: Averages | None, optimiser: Any, progress: Progress
) -> None:
    state = {
        "codec": codec.state_dict(),
        "helpers": helpers.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": vars(progress),
    }
    if averages is not None:
        state["averages"] = averages.state()
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _cached(path: Path, sounds: np.ndarray) -> Tensor:
    """Spectra of all sounds, float16, made once."""
    if not path.exists():
        blocks = [
            spectra(torch.from_numpy(sounds[low : low + 64].astype(np.float32) / 32768)).half()
            for low in range(0, len(sounds), 64)
        ]
        np.save(path, torch.cat(blocks).numpy())
    return torch.from_numpy(np.load(path))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("data", "train", "refine", "colours", "codes", "judge"))
    parser.add_argument("--minutes", type=float, default=20)
    arguments = parser.parse_args()
    match arguments.what:
        case "data":
            music_data.make(FOLDER)
        case "train":
            train(arguments.minutes, Recipe())
            ship("train")
        case "colours":
            codec = load(SHIPPED)
            fit_colours(codec, Clips("train"))
            card = json.loads((SHIPPED / "music.safetensors.json").read_text())
            _ship(codec.state_dict(), card["cost"])
        case "codes":
            codec = load(SHIPPED)
            lines = [json.dumps(row) + "\n" for split in music_data.PER_CELL for row in rows(split, codec)]
            (FOLDER.parent / "music.jsonl").write_text("".join(lines))
        case "refine":
            refine(arguments.minutes, Recipe(rate=1e-3))
            ship("train", "refine")
        case "judge":
            judge = music_judge.fit_family(FOLDER)
            judge.save(SHIPPED / "evidence" / "music_family_judge.json")
            record(SHIPPED / "evidence" / "music_codec.json", music_judge.measure(load(SHIPPED), judge, FOLDER))


if __name__ == "__main__":
    main()
