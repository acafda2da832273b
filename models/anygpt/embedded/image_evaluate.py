"""What the picture codes keep, measured: likeness, use of the codebook, and whether they name things of another vendor.

    python -m models.anygpt.embedded.image_evaluate          # assets/anygpt/evidence/image_codes.json
    python -m models.anygpt.embedded.image_evaluate --grid GRID.png

The probes see nothing but the 16 codes, and learn from the training vendors only: one is the linear head trained along
with the encoder; the other counts, for each place and code, which things the training drawings had there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.anygpt.embedded.image_codec import DRAWN_SIDE, ImageCodec, load
from models.anygpt.embedded.image_data import HELD_OUT_VENDOR, Drawings, drawn_as
from models.anygpt.embedded.image_train import RUNS, Heads, Samples, coded, heads_of_state
from models.anygpt.embedded.language import OBJECTS
from models.anygpt.embedded.layout import IMAGE_CODES, SHIPPED
from models.records import record

COPIES = 1  # varied copies of each drawing: some for the counts, as many others for the accuracies
LIKENESSES = 200  # drawings of each vendor group whose PSNR is averaged


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 pictures, in dB."""
    error = np.square(first.astype(np.float64) - second).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def evaluate(codec: ImageCodec, heads: Heads) -> dict[str, object]:
    """All figures of the training drawings and of the held-out vendor's."""
    known, unknown = (Samples.of(Drawings.load(RUNS / name), OBJECTS) for name in ("domain.npz", "held_out.npz"))
    torch.manual_seed(0)
    seen, new = coded(codec, known, 1 + COPIES), coded(codec, known, 1 + COPIES)[1:]
    other = coded(codec, unknown, 1 + COPIES)
    counts = _counts(seen, known.labels, len(codec.codebook))
    natural = unknown.colours == 0
    used = np.bincount(seen.flatten().numpy(), minlength=len(codec.codebook)) / seen.numel()
    used = used[used > 0]
    return {
        "things": len(OBJECTS),
        "drawings": {"training": len(known), HELD_OUT_VENDOR: len(unknown)},
        "psnr_db": {
            "training": _likeness(codec, known, known),
            HELD_OUT_VENDOR: _likeness(codec, known, unknown),
        },
        "codes_used": len(used),
        "perplexity_of_codes": round(float(np.exp(-(used * np.log(used)).sum())), 1),
        "named_by_linear_head": {
            "training, new variations": _linear(codec, heads, new, known.labels),
            f"{HELD_OUT_VENDOR}, as drawn": _linear(codec, heads, other[:1, natural], unknown.labels[natural]),
            f"{HELD_OUT_VENDOR}, all colours": _linear(codec, heads, other[:1], unknown.labels),
            f"{HELD_OUT_VENDOR}, varied": _linear(codec, heads, other[1:], unknown.labels),
        },
        "named_by_counting": {
            "training, new variations": _accuracy(_votes(counts, new), known.labels),
            f"{HELD_OUT_VENDOR}, as drawn": _accuracy(_votes(counts, other[:1, natural]), unknown.labels[natural]),
            f"{HELD_OUT_VENDOR}, all colours": _accuracy(_votes(counts, other[:1]), unknown.labels),
        },
        "colour_by_linear_head": {
            "training, new variations": _accuracy(_colour(codec, heads, new), known.colours),
            HELD_OUT_VENDOR: _accuracy(_colour(codec, heads, other[:1]), unknown.colours),
        },
        "missed": _missed(codec, heads, other[0], unknown.labels),
    }


def grid(codec: ImageCodec, columns: int = 16) -> Image.Image:
    """Drawings above, what their codes give below: two rows of training vendors, the last two the held-out one."""
    rows = []
    for name, count in (("domain.npz", 6 * columns), ("held_out.npz", 4 * columns)):
        drawings = Drawings.load(RUNS / name)
        chosen = np.random.default_rng(0).permutation(len(drawings.pictures))[:count]
        shown = [_on_white(drawings.pictures[i]) for i in sorted(chosen, key=lambda i: drawings.labels[i])]
        rows += [shown[i : i + columns] for i in range(0, count, columns)]
    sheet = Image.new("RGB", (columns * DRAWN_SIDE, 2 * len(rows) * DRAWN_SIDE))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet.paste(picture.resize((DRAWN_SIDE, DRAWN_SIDE)), (c * DRAWN_SIDE, 2 * r * DRAWN_SIDE))
            sheet.paste(codec.decode(codec.encode(picture)), (c * DRAWN_SIDE, (2 * r + 1) * DRAWN_SIDE))
    return sheet


def _on_white(drawing: np.ndarray) -> Image.Image:
    picture = Image.new("RGBA", (DRAWN_SIDE, DRAWN_SIDE), "white")
    picture.alpha_composite(Image.fromarray(drawing), ((DRAWN_SIDE - drawing.shape[1]) // 2,) * 2)
    return picture.convert("RGB")


def _likeness(codec: ImageCodec, known: Samples, shown: Samples) -> dict[str, float]:
    """Mean PSNR of what is made of drawings, read as a picture from a person is."""
    made_of, own = known.targets(DRAWN_SIDE), shown.targets(DRAWN_SIDE)
    goals = drawn_as(known.drawings, shown.drawings)
    chosen = np.random.default_rng(0).permutation(len(own))[:LIKENESSES]
    found = []
    for i in chosen:
        wanted = [picture.permute(1, 2, 0).numpy() for picture in (made_of[goals[i]], own[i])]
        drawn = np.asarray(codec.decode(codec.encode(wanted[1])))
        found.append([psnr(picture, drawn) for picture in wanted])
    means = np.mean(found, axis=0).round(2).tolist()
    return {"of the drawing it should make": means[0], "of the drawing it read": means[1]}


def _counts(codes: Tensor, labels: Tensor, size: int) -> Tensor:
    """Logarithm of how likely each thing makes each code at each place: (16, size, things)."""
    counts = torch.full((IMAGE_CODES, size, len(OBJECTS)), 0.05)
    for copy in codes.long():
        for place in range(IMAGE_CODES):
            counts[place].index_put_((copy[:, place], labels), torch.ones(()), accumulate=True)
    return (counts / counts.sum(1, keepdim=True)).log()


def _votes(counts: Tensor, codes: Tensor) -> Tensor:
    """(copies, N, things) for codes (copies, N, 16)."""
    return sum((counts[place][codes[..., place].long()] for place in range(IMAGE_CODES)), torch.zeros(()))


def _linear(codec: ImageCodec, heads: Heads, codes: Tensor, labels: Tensor) -> float:
    return _accuracy(heads.thing_of_codes(_vectors(codec, codes)), labels)


def _colour(codec: ImageCodec, heads: Heads, codes: Tensor) -> Tensor:
    return heads.colour_of_codes(_vectors(codec, codes))


def _vectors(codec: ImageCodec, codes: Tensor) -> Tensor:
    return 4 * codec.codebook[codes.long()].flatten(2)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return round(float((scores.argmax(-1) == labels).float().mean()), 3)


def _missed(codec: ImageCodec, heads: Heads, codes: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of the held-out vendor's drawings of a thing that the linear head names otherwise, where there are any."""
    wrong = heads.thing_of_codes(_vectors(codec, codes[None]))[0].argmax(-1) != labels
    shares = {OBJECTS[i]: round(float(wrong[labels == i].float().mean()), 2) for i in range(len(OBJECTS))}
    return {thing: share for thing, share in shares.items() if share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, help="only draw this")
    args = parser.parse_args()
    if args.grid:
        grid(load(SHIPPED)).save(args.grid)
        return
    with torch.inference_mode():
        found = evaluate(load(SHIPPED), heads_of_state())
    record(SHIPPED / "evidence" / "image_codes.json", found)
    print(found)


if __name__ == "__main__":
    main()
