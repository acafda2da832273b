"""Speech as codes, a dozen a second: the phones a sentence is made of, each once, however long it lasts.

    16 kHz -> Whisper's encoder -> the phone of each frame (50 a second) -> repeats merged -> codes
    codes -> durations -> frames of a spectrum and a pitch (80 a second) -> pulses and noise -> 16 kHz

Who speaks, how fast and with what melody is not in the codes, as in the paper's first layer of SpeechTokenizer
(specification 1); the decoder has one voice, so a voice prompt is not offered.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.anygpt import checkpoint
from models.anygpt.audio import SHORTEST, SILENCE, SPEECH_SECONDS, Audio
from models.anygpt.embedded import speech_ear, speech_source
from models.anygpt.embedded.speech_ear import ALPHABET, RATE, Ear, merged
from models.anygpt.embedded.speech_mouth import Mouth
from models.errors import BadInput, WeightsNotFound

FILE = "speech.safetensors"
LONGEST = 1000  # codes; more than a minute
LOUDNESS = 0.5  # the peak of what is spoken


class SpeechCodec(nn.Module):
    """An ear and a mouth that share nothing but the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.ear = Ear()
        self.mouth = Mouth()

    def encode(self, audio: Audio) -> np.ndarray:
        """Codes (1, n), int64, 0 to 55; pauses at both ends are left out.

        Raises `BadInput`: not 16 kHz, shorter than a tenth of a second, longer than 20, silent, or no speech in it.
        """
        if audio.rate != RATE:
            raise BadInput(f"The speech has {audio.rate} samples a second; the codec wants {RATE}. Use `read_speech`.")
        if not SHORTEST <= audio.seconds <= SPEECH_SECONDS:
            raise BadInput(
                f"The speech is {audio.seconds:.2f} seconds long; {SHORTEST:g} to {SPEECH_SECONDS:g} can be heard."
            )
        if np.abs(audio.samples).max() < SILENCE:
            raise BadInput("The sound is silent. Check the microphone, or choose another file.")
        codes, _ = merged(self.ear.path(audio.samples))
        if not len(codes):
            raise BadInput("No speech was heard in the sound. Speak closer to the microphone.")
        return codes[None]

    def decode(self, codes: np.ndarray) -> Audio:
        """Codes (1, n) in the one voice, 16 kHz; the same for the same codes.

        Raises `BadInput`: another shape, no codes or more than 1000, codes that are not in the alphabet.
        """
        if codes.ndim != 2 or codes.shape[0] != 1 or not 1 <= codes.shape[1] <= LONGEST:
            raise BadInput(f"Speech codes of shape {codes.shape} cannot be spoken; (1, 1 to {LONGEST}) can.")
        if codes.min() < 0 or codes.max() >= len(ALPHABET):
            raise BadInput(
                f"Speech codes go from 0 to {len(ALPHABET) - 1}; these go from {codes.min()} to {codes.max()}."
            )
        row = torch.from_numpy(np.pad(codes[0].astype(np.int64), 1, constant_values=speech_ear.SILENCE))
        samples = speech_source.synthesise(*self.mouth.speak(row)).numpy()
        return Audio(samples * (LOUDNESS / max(float(np.abs(samples).max()), 1e-3)), RATE)


def load(folder: Path) -> SpeechCodec:
    """`speech.safetensors` of a folder, float32, on the CPU. Raises `WeightsNotFound`, `WeightsCorrupt`."""
    path = folder / FILE
    if not path.is_file():
        raise WeightsNotFound(f"There is no {FILE} in the folder of the weights. Restore it from the repository.")
    codec, _ = checkpoint.load(SpeechCodec, checkpoint.read(path), FILE)
    return codec
