"""What the miniature hears: Whisper's encoder, frozen, and a small network that names the phone of every frame.

CosyVoice's "supervised semantic tokens" (Du et al., arXiv 2407.05407, section 2.1) in the place of SpeechTokenizer's
distilled first layer: the codes keep what is said and drop who says it, so that a small language model has little more
to learn than spelling. Whisper (Radford et al., arXiv 2212.04356), tiny.en, gives 50 frames a second.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

RATE = 16_000
HOP = 320  # samples a frame: 50 a second
N_FFT, MEL_HOP, MELS = 400, 160, 80

_CONSONANTS = ("b", "d", "f", "h", "j", "k", "l", "m", "n", "p", "s", "t", "v", "w", "z", "ɡ", "ŋ", "ɹ", "ʃ", "ʒ", "ð",
               "θ", "ʤ", "ʧ")  # fmt: skip
_VOWELS = ("A", "I", "O", "W", "Y", "i", "u", "æ", "ɑ", "ɔ", "ɛ", "ɜ", "ɪ", "ʊ", "ʌ")  # A is the vowel of "day"
SILENCE = 0
QUIET = 13  # frames of silence put around a clip: a phone in mid-sentence is heard better than one at its edge
SWITCH = 0.4  # what a change of code costs, in nats: a flicker of one frame is no phone
# The meaning of each code: a pause, the consonants, the unstressed and the stressed vowels (the G2P's letters).
ALPHABET = ("_", *_CONSONANTS, "ə", *_VOWELS, *("ˈ" + vowel for vowel in _VOWELS))


class Ear(nn.Module):
    """Samples (B, T) at 16 kHz -> log-probabilities (B, ceil(T / 320), 56) of the alphabet, frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.whisper = whisper()
        self.adaptor = Adaptor()

    def forward(self, samples: Tensor) -> Tensor:
        return self.adaptor(features(self.whisper, log_mel(samples)))

    @torch.inference_mode()
    def path(self, samples: np.ndarray) -> np.ndarray:
        """Samples (T,) -> the code heard in each frame, (ceil(T / 320),) int64."""
        quiet = np.pad(samples, QUIET * HOP)
        scores = self(torch.from_numpy(quiet)[None])[0].float().numpy()
        return best_path(scores, SWITCH)[QUIET:-QUIET]


class Adaptor(nn.Module):
    """Whisper's features (B, n, 384) -> log-probabilities (B, n, 56); sees 13 frames, a quarter of a second."""

    def __init__(self, width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(384), nn.Linear(384, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(ALPHABET)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x).log_softmax(-1)


class _Block(nn.Module):
    """Residual: five frames are mixed, then the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 5, padding=2)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(self.out(F.gelu(y)))


def whisper() -> WhisperEncoder:
    """The encoder of tiny.en, weights not filled in."""
    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    return WhisperEncoder(config).eval().requires_grad_(False)


@cache
def mel_filters() -> Tensor:
    """(201, 80), those of Whisper."""
    bank = mel_filter_bank(1 + N_FFT // 2, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(np.asarray(bank, np.float32))


def log_mel(samples: Tensor) -> Tensor:
    """Samples (B, T) -> Whisper's log-mel spectrum (B, 80, 2 * ceil(T / 320)), relative to the loudest moment."""
    samples = F.pad(samples, (0, -samples.shape[-1] % HOP))
    spectrum = torch.stft(samples, N_FFT, MEL_HOP, window=torch.hann_window(N_FFT), return_complex=True)[..., :-1]
    mel = (spectrum.abs().square().transpose(1, 2) @ mel_filters()).transpose(1, 2).clamp_min(1e-10).log10()
    return (mel.maximum(mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def features(encoder: WhisperEncoder, mel: Tensor) -> Tensor:
    """Log-mel (B, 80, 2n) -> (B, n, 384). As the encoder's own forward, which insists on 30 seconds (n = 1500)."""
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for layer in encoder.layers:
        x = layer(x, None)
    return encoder.layer_norm(x)


def best_path(scores: np.ndarray, switch: float) -> np.ndarray:
    """Log-probabilities (n, K) -> labels (n,): the best path where each change of label costs `switch` (Viterbi)."""
    total = scores[0].astype(np.float64)
    stayed = np.ones(scores.shape, bool)
    source = np.zeros(len(scores), np.int64)
    for n in range(1, len(scores)):
        source[n] = total.argmax()
        change = total[source[n]] - switch
        stayed[n] = total >= change
        total = np.where(stayed[n], total, change) + scores[n]
    path = np.empty(len(scores), np.int64)
    path[-1] = total.argmax()
    for n in range(len(scores) - 1, 0, -1):
        path[n - 1] = path[n] if stayed[n, path[n]] else source[n]
    return path


def merged(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) -> codes and run lengths, both (m,): repeats are one code, silence at both ends is left out."""
    edges = np.flatnonzero(np.diff(path)) + 1
    starts = np.concatenate(([0], edges))
    codes, lengths = path[starts], np.diff(np.append(starts, len(path)))
    spoken = np.flatnonzero(codes != SILENCE)
    if not len(spoken):
        return codes[:0], lengths[:0]
    inside = slice(spoken[0], spoken[-1] + 1)
    return codes[inside], lengths[inside]
