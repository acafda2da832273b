"""How the miniature's picture codes are learnt, in steps that can be stopped and gone on with.

    python -m models.anygpt.embedded.image_train data               # fetch, render, recolour: about a minute
    python -m models.anygpt.embedded.image_train names --minutes 12    # the encoder learns to name 1 800 emoji
    python -m models.anygpt.embedded.image_train codes --minutes 25    # encoder and codebook; frozen afterwards
    python -m models.anygpt.embedded.image_train lines              # runs/anygpt/image.jsonl, for the language model
    python -m models.anygpt.embedded.image_train decoder --minutes 10  # from the frozen codes to 128 x 128 pixels
    python -m models.anygpt.embedded.image_train ship               # assets/anygpt/image.safetensors

`lines` takes the shipped codec where nothing was trained: all that the language model's recipe needs is `data` and it.

What SEED gets from its contrastive term, codes that carry meaning (AnyGPT, section 3.1), comes from heads: the
quantised vectors together and, weaker, each alone must tell the thing, and together its colour. Another head keeps
apart the vendors' drawings of one thing, so that the codes keep more than its name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.anygpt.embedded.image_augment import canonical, recoloured, varied
from models.anygpt.embedded.image_codec import (
    CODE_WIDTH,
    DRAWN_SIDE,
    RANK,
    READ_SIDE,
    STRIP,
    STROKES,
    WIDTH,
    Decoder,
    ImageCodec,
    Residual,
    convolution,
    load,
    mixer,
    nearest,
)  # fmt: skip
from models.anygpt.embedded.image_data import HELD_OUT_VENDOR, VENDORS, Drawings, corpus, domain, drawn_as
from models.anygpt.embedded.language import COLOURS, OBJECTS, a
from models.anygpt.embedded.layout import IMAGE_CODES, LAYOUT, SHIPPED
from models.runtime import mixed_precision
from models.shipping import ship

RUNS = Path("runs/anygpt/image")
STATE = RUNS / "state.pt"
LINES = RUNS.parent / "image.jsonl"
SHOWN = 2  # varied copies of each drawing for the language model to read
RATE = 1.5e-3
NAMING, CODING = (32, 64), (64, 32)  # things and other emoji in a batch of each stage
DRAWN_A_STEP = 256
MISTAKEN = 0.3  # up to this share of the codes the decoder reads are of another drawing
FORGET = 0.98  # of the codebook's running means
DEAD = 0.1  # a code used less than this share of its fair one is replaced
SETTLED = 0.8  # share of the time after which no code is replaced
WORDS = ("", *COLOURS)
EXAMPLES = (
    ("apple", "red"), ("cat", ""), ("car", "blue"), ("tree", ""), ("boat", "red"), ("house", ""),
    ("umbrella", "purple"), ("guitar", ""),
)  # fmt: skip


@dataclass
class Samples:
    """small (N, 4, 64, 64) uint8, what is varied and read; labels (N,) int64; colours (N,) int64, of `WORDS`."""

    drawings: Drawings
    small: Tensor
    labels: Tensor
    colours: Tensor

    @staticmethod
    def of(drawings: Drawings, names: tuple[str, ...]) -> Samples:
        pictures = torch.from_numpy(drawings.pictures).permute(0, 3, 1, 2)
        small = [
            F.interpolate(part.float(), size=(READ_SIDE, READ_SIDE), mode="bilinear", antialias=True).round().byte()
            for part in pictures.split(256)
        ]
        place = {name: i for i, name in enumerate(names)}
        labels = torch.tensor([place[label] for label in drawings.labels])
        return Samples(drawings, torch.cat(small), labels, torch.tensor([WORDS.index(c) for c in drawings.colours]))

    def __len__(self) -> int:
        return len(self.small)

    @property
    def sources(self) -> Tensor:
        """(N,) int64: which vendor's drawing each is a version of; the drawing as it is comes before its colours."""
        return (self.colours == 0).long().cumsum(0) - 1

    def targets(self, side: int) -> Tensor:
        """(N, 3, side, side) uint8: the drawings upright and centred on white."""
        pictures = torch.from_numpy(self.drawings.pictures).permute(0, 3, 1, 2)
        return torch.cat([((canonical(p, side) + 1) * 127.5).round().byte() for p in pictures.split(256)])


class Heads(nn.Module):
    """What only training has: readers of the encoder's features and of the codes, and a small quick decoder."""

    def __init__(self, names: int, drawings: int) -> None:
        super().__init__()
        assert LAYOUT.image is not None
        self.name = nn.Linear(WIDTH, names)
        self.thing, self.colour = nn.Linear(WIDTH, len(OBJECTS)), nn.Linear(WIDTH, len(WORDS))
        self.thing_of_codes = nn.Linear(IMAGE_CODES * CODE_WIDTH, len(OBJECTS))
        self.colour_of_codes = nn.Linear(IMAGE_CODES * CODE_WIDTH, len(WORDS))
        self.thing_of_each = nn.Parameter(0.02 * torch.randn(IMAGE_CODES, CODE_WIDTH, len(OBJECTS)))
        self.drawing_of_codes = nn.Linear(IMAGE_CODES * CODE_WIDTH, drawings)
        self.sketch = Sketch()
        self.uses = nn.Buffer(torch.ones(LAYOUT.image.size))  # running mean of how often each code is taken in a step


class Run:
    """Codec, heads, samples and what they cost so far."""

    def __init__(self) -> None:
        torch.manual_seed(time.time_ns())  # going on does not repeat the batches
        things, emoji = Drawings.load(RUNS / "domain.npz"), Drawings.load(RUNS / "corpus.npz")
        names = tuple(sorted(set(emoji.labels)))
        self.things, self.corpus = Samples.of(things, OBJECTS), Samples.of(emoji, names)
        self.codec = ImageCodec().to(memory_format=torch.channels_last)
        self.heads = Heads(len(names), int(self.things.sources[-1]) + 1).to(memory_format=torch.channels_last)
        self.spent: dict[str, float] = {}
        if STATE.exists():
            state = torch.load(STATE, weights_only=True)
            self.codec.load_state_dict(state["codec"])
            self.heads.load_state_dict(state["heads"])
            self.spent = state["spent"]

    def save(self) -> None:
        temporary = STATE.with_suffix(".tmp")
        state = {"codec": self.codec.state_dict(), "heads": self.heads.state_dict(), "spent": self.spent}
        torch.save(state, temporary)
        temporary.replace(STATE)

    def train(self, stage: str, minutes: float, step: Callable[[float], dict[str, Tensor]], *parts: nn.Module) -> None:
        """Repeats `step(progress) -> losses` for the minutes that the stage has left, and saves now and then."""
        parameters = [p for part in parts for p in part.parameters()]
        optimiser = torch.optim.AdamW(parameters, RATE, weight_decay=0.02)
        began = saved = told = time.monotonic()
        before, steps = self.spent.get(stage, 0.0), 0
        means: dict[str, float] = {}
        self.codec.train()
        while (progress := (before + (time.monotonic() - began) / 60) / minutes) < 1:
            warm = min(1.0, (steps + 1) / 50)
            optimiser.param_groups[0]["lr"] = RATE * warm * max(0.02, 0.5 * (1 + np.cos(np.pi * progress)))
            losses = step(progress)
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            steps += 1
            for name, loss in losses.items():
                means[name] = 0.95 * means.get(name, loss.item()) + 0.05 * loss.item()
            if time.monotonic() - told > 20:
                told, shown = time.monotonic(), " ".join(f"{name} {value:.4f}" for name, value in means.items())
                print(f"{stage} {100 * progress:.0f} % step {steps} {shown}", flush=True)
            if time.monotonic() - saved > 60:
                self.spent[stage], saved = before + (time.monotonic() - began) / 60, time.monotonic()
                self.save()
        self.spent[stage] = minutes
        self.save()
        print(f"{stage}: {steps} steps in {(time.monotonic() - began) / 60:.1f} minutes of one core", flush=True)


def names(run: Run, minutes: float) -> None:
    """The encoder's features name emoji of all kinds, and the things and their colours."""
    heads = run.heads

    def step(_: float) -> dict[str, Tensor]:
        things, emoji = _batch(run, *NAMING)[1:]
        with mixed_precision("cpu"):
            seen = run.codec.encoder.features(_channels_last(torch.cat([things[0], emoji[0]]))).mean(1)
        known, other = seen.float().split((len(things[0]), len(emoji[0])))
        return {
            "name": F.cross_entropy(heads.name(other), emoji[1], label_smoothing=0.1),
            "thing": F.cross_entropy(heads.thing(known), things[1], label_smoothing=0.05),
            "colour": 0.5 * F.cross_entropy(heads.colour(known), things[2], label_smoothing=0.05),
        }

    run.train("names", minutes, step, run.codec.encoder, run.heads)


def codes(run: Run, minutes: float) -> None:
    """Encoder and codebook: the codes must tell the thing and its colour, and draw it."""
    targets, sources = run.things.targets(64), run.things.sources
    encoder, heads, codec = run.codec.encoder, run.heads, run.codec
    if "codes" not in run.spent:
        codec.codebook.copy_(_some_vectors(run))

    def step(progress: float) -> dict[str, Tensor]:
        chosen, things, emoji = _batch(run, *CODING)
        with mixed_precision("cpu"):
            features = encoder.features(_channels_last(torch.cat([things[0], emoji[0]])))
        features = features.float()
        vectors = F.normalize(encoder.project(features[: len(chosen)]), dim=-1)
        index = nearest(vectors.detach(), codec.codebook)
        quantised = codec.codebook[index]
        _follow(codec.codebook, heads.uses, vectors.detach(), index, replace=progress < SETTLED)
        through = vectors + (quantised - vectors).detach()
        with mixed_precision("cpu"):
            drawn = heads.sketch(through)
        wanted = targets[chosen].float() / 127.5 - 1
        each = torch.einsum("bpc,pct->bpt", through, heads.thing_of_each) * 4
        thing, colour, told = things[1], things[2], 4 * through.flatten(1)
        return {
            "pixels": 5 * (drawn.float() - wanted).abs().mean(),
            "commit": 0.5 * (vectors - quantised).square().sum(-1).mean(),
            "thing": F.cross_entropy(heads.thing_of_codes(told), thing, label_smoothing=0.05),
            "colour": 0.5 * F.cross_entropy(heads.colour_of_codes(told), colour, label_smoothing=0.05),
            "drawing": 0.3 * F.cross_entropy(heads.drawing_of_codes(told), sources[chosen]),
            "each": 0.3 * F.cross_entropy(each.flatten(0, 1), thing.repeat_interleave(IMAGE_CODES)),
            "name": 0.3 * F.cross_entropy(heads.name(features[len(chosen) :].mean(1)), emoji[1], label_smoothing=0.1),
        }

    run.train("codes", minutes, step, encoder, heads)


def decoder(run: Run, minutes: float) -> None:
    """From the codes of varied drawings of all vendors, which stay as they are, to one vendor's drawing, full size."""
    goals = torch.from_numpy(drawn_as(run.things.drawings, run.things.drawings))
    drawn, place = torch.unique(goals, return_inverse=True)
    wanted, weights = _fit(run.codec.decoder, run.things.targets(DRAWN_SIDE)[drawn].float() / 127.5 - 1)
    rows = torch.tensor([line["codes"] for line in map(json.loads, LINES.open()) if line["split"] == "train"])
    place = place.repeat(len(rows) // len(place))
    read = run.codec.decoder.read

    def step(_: float) -> dict[str, Tensor]:
        chosen = torch.randint(len(rows), (DRAWN_A_STEP,))
        codes, wrong = rows[chosen], rows[torch.randint(len(rows), (DRAWN_A_STEP,))]
        codes = torch.where(torch.rand(codes.shape) < MISTAKEN * torch.rand(len(codes), 1), wrong, codes)
        found = read(run.codec.codebook[codes].flatten(1))
        return {"pixels": ((found - wanted[place[chosen]]).square() * weights).sum(1).mean()}

    run.train("decoder", minutes, step, read)


@torch.no_grad()
def _fit(decoder: Decoder, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the decoder the principal patches and pictures of `pictures` (N, 3, 128, 128).

    Returns the pictures' shares (N, RANK), of mean 0 and variance 1, and what an error in each costs in squared pixels.
    """
    patches = F.unfold(pictures, STRIP, stride=STRIP).transpose(1, 2)
    mean = patches.mean((0, 1))
    centred = (patches - mean).flatten(0, 1)
    strokes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :STROKES]
    written = ((patches - mean) @ strokes).flatten(1)
    left, sizes, right = torch.linalg.svd(written - written.mean(0), full_matrices=False)
    count = len(pictures) ** 0.5
    decoder.strokes.weight.copy_(strokes)
    decoder.strokes.bias.copy_(mean)
    decoder.pictures.weight.copy_((sizes[:RANK, None] / count * right[:RANK]).T)
    decoder.pictures.bias.copy_(written.mean(0))
    return left[:, :RANK] * count, sizes[:RANK].square() / len(pictures) / pictures[0].numel()


class Sketch(nn.Module):
    """The quick decoder of the codes' training: 16 code vectors to (B, 3, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(CODE_WIDTH, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(IMAGE_CODES, WIDTH))
        self.mix = nn.Sequential(mixer(), mixer())
        layers: list[nn.Module] = []
        for before, after in ((WIDTH, 96), (96, 48), (48, 24)):
            layers += [nn.Upsample(scale_factor=2), convolution(before, after, 3, 1)]
            if after == 96:
                layers.append(Residual(after))
        self.convolutions = nn.Sequential(*layers, nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, vectors: Tensor) -> Tensor:
        mixed = self.mix(self.expand(vectors) + self.place)
        return self.convolutions(mixed.transpose(1, 2).unflatten(2, (4, 4)))


@torch.inference_mode()
def coded(codec: ImageCodec, samples: Samples, copies: int) -> Tensor:
    """(copies, N, 16) int16: the codes of every drawing as it is, then varied again and again."""
    before = codec.training
    codec.eval()
    found = []
    for copy in range(copies):
        parts = []
        for i in torch.arange(len(samples)).split(128):
            pictures = canonical(samples.small[i], READ_SIDE) if copy == 0 else varied(samples.small[i])
            parts.append(codec.codes(_channels_last(pictures)).short())
        found.append(torch.cat(parts))
    codec.train(before)
    return torch.stack(found)


def _batch(
    run: Run, things_count: int, other_count: int
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Which things were chosen; their varied pictures, labels and colours; other emoji and their labels."""
    chosen = torch.randint(len(run.things), (things_count,))
    other = torch.randint(len(run.corpus), (other_count,))
    things = varied(run.things.small[chosen]), run.things.labels[chosen], run.things.colours[chosen]
    return chosen, things, (varied(recoloured(run.corpus.small[other])), run.corpus.labels[other])


@torch.no_grad()
def _some_vectors(run: Run) -> Tensor:
    """A first codebook: vectors the encoder gives now."""
    vectors = torch.cat([run.codec.encoder(_channels_last(_batch(run, *CODING)[1][0])).flatten(0, 1) for _ in range(8)])
    return vectors[torch.randperm(len(vectors))[: len(run.codec.codebook)]]


@torch.no_grad()
def _follow(codebook: Tensor, uses: Tensor, vectors: Tensor, index: Tensor, replace: bool) -> None:
    """Moves each code towards the mean of the vectors it stands for; a code that stands for few becomes one of them."""
    flat, index = vectors.flatten(0, 1), index.flatten()
    counts = torch.bincount(index, minlength=len(codebook)).float()
    sums = torch.zeros_like(codebook).index_add_(0, index, flat)
    new = codebook * uses[:, None] * FORGET + sums * (1 - FORGET)
    uses.mul_(FORGET).add_(counts, alpha=1 - FORGET)
    codebook.copy_(F.normalize(new, dim=1))
    dead = torch.nonzero(uses < DEAD * len(flat) / len(codebook)).flatten()[:32] if replace else index[:0]
    if len(dead):
        codebook[dead] = flat[torch.randint(len(flat), (len(dead),))]
        uses[dead] = len(flat) / len(codebook)


def _channels_last(pictures: Tensor) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last)


def heads_of_state() -> Heads:
    """The readers that were trained along with the codec."""
    saved = torch.load(STATE, weights_only=True)["heads"]
    heads = Heads(len(saved["name.bias"]), len(saved["drawing_of_codes.bias"]))
    heads.load_state_dict(saved)
    return heads.eval()


def lines(codec: ImageCodec) -> Iterator[dict[str, object]]:
    """What the language model learns from, one picture each.

    "use" is "out" for a drawing as it is, which is what it should draw, and "in" for a varied one that it may be shown.
    """
    torch.manual_seed(0)
    for name, copies in (("domain.npz", 1 + SHOWN), ("held_out.npz", 1)):
        samples = Samples.of(Drawings.load(RUNS / name), OBJECTS)
        drawings = samples.drawings
        for copy, found in enumerate(coded(codec, samples, copies).tolist()):
            rows = zip(
                drawings.labels.tolist(), drawings.colours.tolist(), drawings.vendors.tolist(), found, strict=True
            )
            for thing, colour, vendor, row in rows:
                yield {
                    "text": a(f"{colour} {thing}".strip()),
                    "object": thing,
                    "color": colour,
                    "vendor": vendor,
                    "use": "in" if copy else "out",
                    "codes": row,
                    "split": "held_out" if vendor == HELD_OUT_VENDOR else "train",
                }


def shipped(run: Run) -> Path:
    """Writes the codec with its card."""
    commands = [
        f"python -m models.anygpt.embedded.image_train {stage} --minutes {m:g}" for stage, m in run.spent.items()
    ]
    card = {
        "network": "picture tokenizer: 64 x 64 pixels to 4 x 4 codes of 512 to 128 x 128 pixels, float16",
        "data": "Noto (new and before 2017), Fluent (flat, shaded, 3D), Firefox OS, EmojiOne 2 and Streamline emoji of "
        f"{len(OBJECTS)} things, recoloured; the encoder also named other emoji of these vendors; Twitter's held out",
        "licence": "Apache-2.0; sources in assets/LICENSES.md",
        "commands": ["python -m models.anygpt.embedded.image_train data", *commands],
        "seed": "of the clock",
        "note": "the codes were trained in two runs, the head of drawings in the second only; the lines were written "
        "before the decoder was trained and are what it learnt from",
        "cost": f"{sum(run.spent.values()):.0f} minutes of about half of one busy core",
        "quality": "evidence/image_codes.json",
    }
    _examples(run.things, SHIPPED / "examples")
    return ship("image", run.codec.state_dict(), card, SHIPPED)


def _examples(things: Samples, folder: Path) -> None:
    """Drawings to try the codec with, as PNG: the ones that the decoder makes of `EXAMPLES`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = things.drawings
    made = drawn_as(drawings, drawings)
    for thing, colour in EXAMPLES:
        row = made[np.flatnonzero((drawings.labels == thing) & (drawings.colours == colour))[0]]
        picture = Image.new("RGBA", (DRAWN_SIDE, DRAWN_SIDE), "white")
        picture.alpha_composite(Image.fromarray(drawings.pictures[row]), (DRAWN_SIDE // 32,) * 2)
        picture.convert("RGB").save(folder / f"image_{f'{colour}_{thing}'.strip('_')}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "names", "codes", "lines", "decoder", "ship"))
    parser.add_argument("--minutes", type=float, default=20, help="of a training step, counted over all its runs")
    args = parser.parse_args()
    if args.what == "data":
        RUNS.mkdir(parents=True, exist_ok=True)
        domain(VENDORS).save(RUNS / "domain.npz")
        domain((HELD_OUT_VENDOR,)).save(RUNS / "held_out.npz")
        corpus().save(RUNS / "corpus.npz")
    elif args.what == "lines":
        with LINES.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(Run().codec if STATE.exists() else load(SHIPPED)))
    elif args.what == "ship":
        print(shipped(Run()))
    else:
        {"names": names, "codes": codes, "decoder": decoder}[args.what](Run(), args.minutes)


if __name__ == "__main__":
    main()
