"""Music to learn from: public-domain tunes, arranged so that their beat is plain, rendered by a synthesiser.

Tunes are Bach's chorales and Ryan's Mammoth Collection (1883), from music21's corpus; only those in a major key whose
beat is a quarter note. Each is moved to C major and set simply: the melody once a beat, one chord for two beats. What
a clip sounds like is then fully told by three words, each of which can be heard and measured:

- tempo: slow, medium, fast. The beats of clips to be composed last 12, 8 and 5 frames of the codec (62.5, 93.75 and
  150 a minute), so that a language model can count them; clips to be heard only ("use": "in") are up to 8 % off.
- family: piano, violin, flute, guitar; up to two General MIDI instruments each, from two sound fonts.
- mood: calm (soft, notes held, chords held, too) or lively (loud, notes short, chords on every beat).

Needs music21, FluidSynth and the sound fonts FluidR3_GM and TimGM6mb (Debian's fluid-soundfont-gm, timgm6mb-soundfont).
"""

from __future__ import annotations

import json
import logging
import math
import random
import struct
import subprocess
import tempfile
import wave
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.anygpt.embedded.language import music_captions
from models.anygpt.embedded.music_codec import RATE

logger = logging.getLogger(__name__)

FAMILIES: dict[str, tuple[int, ...]] = {"piano": (0, 1), "violin": (40, 40), "flute": (73, 73), "guitar": (24, 25)}
TEMPI = {"slow": 62.5, "medium": 93.75, "fast": 150.0}  # beats a minute
MOODS = ("calm", "lively")
FONTS = ("FluidR3_GM.sf2", "TimGM6mb.sf2")
FONT_FOLDER = Path("/usr/share/sounds/sf2")
SECONDS = 5.2  # rendered; a clip of 4 s can then start up to a beat late
GAP = 6.2  # seconds from one clip to the next in a rendering, so that nothing of a clip rings into another
JITTER = 0.08
BEATS = 14  # of an excerpt: more than SECONDS of the fastest tempo
CHORDS = {"C": (48, 52, 55), "F": (53, 57, 60), "G": (55, 59, 62), "Am": (57, 60, 64), "Dm": (50, 53, 57)}
TICKS = 960  # a second

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Excerpt:
    """work: where it is from. melody: a MIDI pitch for every beat. between: one for the half beat, or None.
    chords: a name of `CHORDS` for every two beats. All in C major."""

    work: str
    split: Split
    melody: tuple[int, ...]
    between: tuple[int | None, ...]
    chords: tuple[str, ...]


@dataclass(frozen=True)
class Clip:
    """What is rendered. bpm: beats a minute. steady: the beat fits the codec's frames. transpose: semitones."""

    excerpt: Excerpt
    family: str
    program: int
    font: str
    tempo: str
    bpm: float
    mood: str
    steady: bool
    transpose: int = 0

    @property
    def text(self) -> str:
        return music_captions(self.family, self.tempo, self.mood)[0]


PER_CELL: dict[Split, int] = {"train": 90, "held_out": 12}  # clips for each family, tempo and mood


def make(folder: Path) -> None:
    """Tunes, arrangements and sounds of both splits, into `folder`."""
    found = excerpts()
    for seed, (split, count) in enumerate(PER_CELL.items()):
        todo = clips([excerpt for excerpt in found if excerpt.split == split], count, seed)
        quarter = math.ceil(len(todo) / 4)
        with ProcessPoolExecutor(2) as pool:
            sounds = list(pool.map(render, [todo[low : low + quarter] for low in range(0, len(todo), quarter)]))
        write(folder, split, todo, np.concatenate(sounds))
        logger.info("%s: %d clips", split, len(todo))


Note = tuple[float, float, int, int]  # start and length in seconds, MIDI pitch, velocity


def notes(clip: Clip) -> list[Note]:
    """The arrangement: melody, chords, accents."""
    beat = 60 / clip.bpm
    lively = clip.mood == "lively"
    result: list[Note] = []
    # Held notes of violins and flutes melt together; a gap lets every beat be heard.
    held = 0.85 if clip.family in ("violin", "flute") else 0.97
    for index, pitch in enumerate(clip.excerpt.melody):
        start = index * beat
        if start >= SECONDS:
            break
        between = clip.excerpt.between[index] if lively and clip.tempo != "fast" and index % 4 == 3 else None
        length = beat * (0.5 if lively else held)
        result.append((start, length, pitch + clip.transpose, 108 if lively else 70))
        if between is not None:
            result.append((start + beat / 2, beat * 0.3, between + clip.transpose, 72))
        # Root, then the rest: on every beat something starts, so that two beats are not taken for one.
        chord = CHORDS[clip.excerpt.chords[index // 2]]
        voices = chord[:1] if index % 2 == 0 else chord[1:]
        length = beat * (0.4 if lively else 1.0)
        result += [(start, length, tone + clip.transpose, 84 if lively else 48) for tone in voices]
    return result


def excerpts(workers: int = 2) -> list[Excerpt]:
    """Every usable excerpt of `BEATS` beats, from the first beat of a bar."""
    from music21 import corpus

    chorales = [str(path) for path in corpus.getComposer("bach") if "bwv" in Path(path).name]
    tunes = [str(path) for path in corpus.getComposer("ryansMammoth")]
    with ProcessPoolExecutor(workers) as pool:
        found = [excerpt for part in pool.map(_excerpts_of, chorales + tunes, chunksize=16) for excerpt in part]
    return list({excerpt.melody: excerpt for excerpt in found}.values())


def clips(sources: Sequence[Excerpt], a_cell: int, seed: int = 0) -> list[Clip]:
    """`a_cell` clips for each family, tempo and mood; a third off the grid, of which some in another key."""
    pick = random.Random(seed)
    result = []
    for family, programs in FAMILIES.items():
        for tempo, bpm in TEMPI.items():
            for mood in MOODS:
                for index, excerpt in enumerate(pick.sample(list(sources), a_cell)):
                    steady = index % 3 != 0
                    result.append(
                        Clip(
                            excerpt,
                            family,
                            programs[int(pick.random() < 0.4)],
                            FONTS[int(pick.random() < 0.3)],
                            tempo,
                            bpm if steady else round(bpm * pick.uniform(1 - JITTER, 1 + JITTER), 2),
                            mood,
                            steady,
                            0 if steady else pick.choice((0, 0, -3, -2, 2, 3)),
                        )
                    )
    pick.shuffle(result)
    return result


def render(todo: Sequence[Clip], folder: Path = FONT_FOLDER) -> np.ndarray:
    """int16 (clips, SECONDS * RATE), mono. FluidSynth plays all clips of a sound font in one go."""
    sounds = np.zeros((len(todo), round(SECONDS * RATE)), np.int16)
    for font in FONTS:
        places = [index for index, clip in enumerate(todo) if clip.font == font]
        if not places:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            score, sound = Path(temporary, "clips.mid"), Path(temporary, "clips.wav")
            score.write_bytes(_midi([todo[index] for index in places]))
            command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "1.2", "-r", str(RATE)]
            subprocess.run([*command, "-F", str(sound), str(folder / font), str(score)], check=True)
            with wave.open(str(sound)) as file:
                stereo = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        mono = stereo.astype(np.int32).sum(1) // stereo.shape[1]
        for slot, index in enumerate(places):
            start = round(slot * GAP * RATE)
            piece = mono[start : start + sounds.shape[1]]
            sounds[index, : len(piece)] = piece
    return sounds


def write(folder: Path, name: str, todo: Sequence[Clip], sounds: np.ndarray) -> None:
    """`<name>.npy` and, line by line, `<name>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", sounds)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(asdict(clip)) + "\n" for clip in todo))


def read(folder: Path, name: str) -> tuple[list[Clip], np.ndarray]:
    """What `write` wrote; the sounds stay on disk."""
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [_clip(line) for line in lines], np.load(folder / f"{name}.npy", mmap_mode="r")


def _clip(line: dict[str, Any]) -> Clip:
    excerpt: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in line["excerpt"].items()
    }
    return Clip(**{**line, "excerpt": Excerpt(**excerpt)})


def _excerpts_of(path: str) -> list[Excerpt]:
    """Those of one score; none where it is in minor, has no quarter-note beat or cannot be read."""
    from music21 import converter, exceptions21

    try:
        return list(_cut(converter.parse(path), Path(path).parent.name + "/" + Path(path).stem))
    except (exceptions21.Music21Exception, AttributeError, IndexError, ValueError) as error:
        logger.info("%s left out: %s", path, error)
        return []


def _cut(score, work: str) -> Iterator[Excerpt]:
    parts = list(score.parts)
    signatures = list(parts[0].recurse().getElementsByClass("TimeSignature"))
    if len(signatures) != 1 or signatures[0].denominator != 4 or len(parts) not in (1, 4):
        return
    key = score.analyze("key")
    if key.mode != "major":
        return
    up = (6 - key.tonic.pitchClass) % 12 - 6  # -6 to 5 semitones, to C
    voices = [_sounding(part) for part in parts]
    length = min(len(voice) for voice in voices) // 2
    bar = signatures[0].numerator
    pickup = parts[0].getElementsByClass("Measure")[0].duration.quarterLength % bar
    split: Split = "held_out" if zlib.crc32(repr(_contour(voices[0])).encode()) % 8 == 0 else "train"
    for first in range(int(pickup), length - BEATS, 2 * bar):
        steps = [
            [voice[2 * beat + half] for voice in voices] for beat in range(first, first + BEATS) for half in (0, 1)
        ]
        melody = [step[0] for step in steps]
        if None in melody[::2]:
            continue
        raised = [None if pitch is None else pitch + up for pitch in melody]
        # By whole octaves, so that all tunes lie in the same part of the keyboard.
        octave = 12 * round((69 - np.mean([pitch for pitch in raised if pitch is not None])) / 12)
        folded = [None if pitch is None else _fold(pitch + octave) for pitch in raised]
        chords = [
            _chord([(p + up) % 12 for step in steps[4 * pair : 4 * pair + 4] for p in step if p is not None])
            for pair in range(BEATS // 2)
        ]
        yield Excerpt(work, split, tuple(p for p in folded[::2] if p is not None), tuple(folded[1::2]), tuple(chords))


def _sounding(part) -> list[int | None]:
    """The pitch at every half of a quarter note."""
    flat = part.flatten().notes
    end = max(float(note.offset + note.duration.quarterLength) for note in flat)
    result: list[int | None] = [None] * round(2 * end)
    for note in flat:
        pitch = max(tone.midi for tone in note.pitches)
        low, high = float(note.offset), float(note.offset + note.duration.quarterLength)
        for index in range(int(np.ceil(2 * low)), min(len(result), int(np.ceil(2 * high)))):
            result[index] = pitch
    return result


def _contour(voice: list[int | None]) -> list[int]:
    """The same for a tune in any key and setting, so that one tune is never on both sides of the split."""
    tones = [pitch for pitch in voice[:32:2] if pitch is not None][:7]
    return [b - a for a, b in zip(tones, tones[1:], strict=False)]


def _fold(pitch: int) -> int:
    while pitch > 81:
        pitch -= 12
    while pitch < 60:
        pitch += 12
    return pitch


def _chord(tones: list[int]) -> str:
    """The triad that most of the tones are in; the tonic where it is a draw."""
    return max(CHORDS, key=lambda name: (sum(tone in {t % 12 for t in CHORDS[name]} for tone in tones), name == "C"))


def _midi(todo: Sequence[Clip]) -> bytes:
    """A MIDI file, one track, one clip after another, every `GAP` seconds."""
    events: list[tuple[int, int, bytes]] = []
    for slot, clip in enumerate(todo):
        origin = slot * GAP
        # Half a second early: a program change must not fall into a note.
        events.append((max(0, round((origin - 0.5) * TICKS)), 0, bytes([0xB0, 120, 0])))
        events.append((max(0, round((origin - 0.5) * TICKS)), 1, bytes([0xC0, clip.program])))
        for start, length, pitch, velocity in notes(clip):
            stop = min(start + length, SECONDS)
            events.append((round((origin + start) * TICKS), 3, bytes([0x90, pitch, velocity])))
            events.append((round((origin + stop) * TICKS), 2, bytes([0x80, pitch, 0])))
    events.append((round(len(todo) * GAP * TICKS), 4, b"\xff\x2f\x00"))
    events.sort(key=lambda event: event[:2])
    track, now = bytearray(b"\x00\xff\x51\x03\x07\xa1\x20"), 0  # 500 000 us a quarter
    for tick, _, message in events:
        track += _length(tick - now) + message
        now = tick
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS // 2)
    return header + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _length(value: int) -> bytes:
    """MIDI's numbers of 7 bits a byte."""
    result = [value & 0x7F]
    while value := value >> 7:
        result.append(0x80 | value & 0x7F)
    return bytes(reversed(result))
