"""Music as 102 codes: a frame about the whole, then 4 seconds in 50 frames, two layers each; additive synthesis.

In AnyGPT's music codec (EnCodec) a network writes the waveform. A network small enough to be trained here would hiss;
so this one writes a score that a synthesiser plays, as in DDSP (Engel et al., 2020): fifty times a second, how loud
each of 60 pitches is, which mixture of learned timbres they have, and a little filtered noise.

    16 kHz -> spectra (50 a second) -> encoder -> 12.5 frames a second -> two codes each -> decoder -> score -> sines

The first frame holds how long a beat is, found by autocorrelation, and the clip's colour, the nearest of 32 means of
its latents (so MusicLM, Agostinelli et al., 2023, writes tokens of the whole before those of the sound). The decoder
needs neither: they are for the language model, which cannot count what it has not been told.

What the synthesiser will sound like on average over phases is a closed form (`Synthesiser.expected`), so training
needs no waveform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.anygpt import checkpoint
from models.anygpt.audio import SHORTEST, SILENCE, Audio, Source, read_music
from models.anygpt.embedded.layout import LAYOUT, MUSIC_CODES, MUSIC_FRAMES, MUSIC_LEAD, NO_BEAT
from models.errors import BadInput
from models.weights import read_safetensors

assert LAYOUT.music is not None
LAYERS, SIZE = LAYOUT.music.layers, MUSIC_CODES

FILE = "music.safetensors"
RATE = 16_000
HOP = 320  # samples between spectra: 20 ms
STEPS = 4  # spectra a frame of codes
SECONDS = MUSIC_FRAMES * STEPS * HOP / RATE  # 4
LOWEST = 36  # MIDI pitch of the first of `PITCHES`
PITCHES = 60
HARMONICS = 32
TIMBRES = 16
NOISES = 12
FLOOR = 1e-7  # power, -70 dB of full scale: what is softer is not looked at

# Beats a minute that a first frame can tell, evenly spaced in pitch; one more code is for "none".
BEATS = np.geomspace(50, 180, NO_BEAT)
# What `fit` takes as kept: 9 % of the tempo; the nearest colour or the next, as 99 in 100 rendered clips have it.
NEAR_BEATS, NEAR_COLOURS = 2, 2
ENOUGH = 0.6  # of the highest peak: the fastest pulse that reaches it is the beat
FAINT = -6.5  # log10 of power; rises below it start no note

WINDOWS = (2048, 512)  # the long one tells pitches apart, the short one tells when
BANDS = (166, 40)


@dataclass(frozen=True)
class Score:
    """What the synthesiser plays, at 50 steps a second.

    power: (B, T, PITCHES), squared amplitude of a pitch. timbres: (B, T, TIMBRES), shares, summing to 1.
    noise: (B, T, NOISES), power of each band of noise. sounding: (B, T, PITCHES), logits of "this note is held".
    """

    power: Tensor
    timbres: Tensor
    noise: Tensor
    sounding: Tensor


class MusicCodec(nn.Module):
    """Encoder, quantiser, decoder and synthesiser."""

    colours: Tensor

    def __init__(self, width: int = 256, dim: int = 32) -> None:
        super().__init__()
        self.register_buffer("colours", torch.zeros(MUSIC_LEAD, 2 * dim))
        self.encoder = nn.Sequential(
            nn.Conv1d(STEPS * sum(BANDS), width, 1), *[Block(width, 1) for _ in range(4)], nn.Conv1d(width, dim, 1)
        )
        self.quantiser = Quantiser(dim)
        self.decoder = Decoder(width, dim)
        self.synthesiser = Synthesiser()

    def latent(self, spectra: Tensor) -> Tensor:
        """(B, T, sum(BANDS)), log10 of power, T a multiple of `STEPS` -> (B, T / STEPS, dim)."""
        batch, steps, bands = spectra.shape
        folded = (spectra / 2 + 2).reshape(batch, steps // STEPS, STEPS * bands)
        return self.encoder(folded.transpose(1, 2)).transpose(1, 2)

    @torch.inference_mode()
    def encode(self, audio: Audio) -> np.ndarray:
        """int64 (2, 51) of the first 4 seconds; a shorter sound is followed by silence.

        The first frame's are `SIZE` and above: the place of its tempo among `BEATS` (the last: no beat), its colour.

        Raises `BadInput`: not 16 kHz, shorter than a tenth of a second, silent.
        """
        if audio.rate != RATE:
            raise BadInput(f"The sound has {audio.rate} samples a second; music is read at {RATE}.")
        if audio.seconds < SHORTEST:
            raise BadInput(f"The sound is {audio.seconds:.2f} seconds long; at least {SHORTEST:g} are needed.")
        length = round(SECONDS * RATE)
        samples = torch.zeros(1, length)
        heard = torch.from_numpy(np.asarray(audio.samples[:length], np.float32))
        samples[0, : len(heard)] = heard
        if heard.abs().max() < SILENCE:
            raise BadInput("The music is silent in its first 4 seconds. Cut the start off, or choose another file.")
        found = spectra(samples)
        latent = self.latent(found)
        colour = int(self._from_colours(latent).argmin())
        codes = self.quantiser.codes(latent)[0].T.numpy()
        return np.concatenate([[[SIZE + beat(found[0])], [SIZE + colour]], codes], 1)

    @torch.inference_mode()
    def fit(self, codes: np.ndarray) -> float:
        """How well the sound of codes (2, 1 + n) keeps to their first frame, 0 to 1: half for its beat, half for its
        colour. 1: the beat is within `NEAR_BEATS` places, and fewer than `NEAR_COLOURS` colours are nearer.

        Raises `BadInput` as `decode`.
        """
        told_beat, told_colour = (int(code) - SIZE for code in np.asarray(codes)[:, 0])
        found = spectra(torch.from_numpy(self.decode(codes).samples)[None])
        heard = beat(found[0])
        away = abs(heard - told_beat) if NO_BEAT not in (heard, told_beat) else len(BEATS) * (heard != told_beat)
        distances = self._from_colours(self.latent(found))
        nearer = int((distances < distances[told_colour]).sum())
        beats = 1.0 if away <= NEAR_BEATS else 1 - away / len(BEATS)
        colours = 1.0 if nearer < NEAR_COLOURS else 1 - nearer / MUSIC_LEAD
        return (beats + colours) / 2

    def _from_colours(self, latent: Tensor) -> Tensor:
        """How far latents (1, n, dim) are from each colour: (MUSIC_LEAD,)."""
        return torch.cdist(overall(latent), self.colours)[0]

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> Audio:
        """A sound of n * 80 ms from codes (2, 1 + n), n at least 1. Raises `BadInput`: another shape or range."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[0] != LAYERS or codes.shape[1] < 2:
            raise BadInput(f"Music codes of shape {codes.shape} cannot be played; (2, 1 + n) is needed.")
        lead, codes = codes[:, 0], codes[:, 1:]
        if lead.min() < SIZE or lead.max() >= SIZE + MUSIC_LEAD or codes.min() < 0 or codes.max() >= SIZE:
            raise BadInput(
                f"Music begins with a frame of codes from {SIZE} to {SIZE + MUSIC_LEAD - 1}; all others are from 0 to "
                f"{SIZE - 1}."
            )
        latent = self.quantiser.vectors(torch.from_numpy(codes.astype(np.int64)).T[None])
        return Audio(self.synthesiser.play(self.decoder(latent))[0].numpy(), RATE)


def load(folder: Path) -> MusicCodec:
    """The codec in `<folder>/music.safetensors`. Raises `WeightsNotFound`, `WeightsCorrupt`."""
    state = {name: tensor.float() for name, tensor in read_safetensors(folder / FILE).items()}
    codec, _ = checkpoint.fill(MusicCodec(), state, FILE)
    return codec


def read(source: Source) -> Audio:
    """The first 4 seconds of a piece, at 16 kHz; a note says so if it is longer. Raises `BadInput` as `read_music`."""
    audio = read_music(source, RATE)
    length = round(SECONDS * RATE)
    if len(audio.samples) <= length:
        return audio
    return Audio(audio.samples[:length], RATE, (f"Only the first {SECONDS:g} seconds are heard.",))


class Block(nn.Module):
    """A residual block over time: norm, convolution of 3 frames, GELU, mixing."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.near = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(functional.gelu(self.near(self.norm(x))))


class Quantiser(nn.Module):
    """Residual vector quantisation: the second codebook holds what the first leaves over."""

    books: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("books", torch.randn(LAYERS, SIZE, dim))

    def codes(self, latent: Tensor) -> Tensor:
        """(B, n, dim) -> int64 (B, n, layers)."""
        rest, codes = latent.float(), []
        for book in self.books:
            nearest = torch.cdist(rest, book[None]).argmin(-1)
            rest = rest - book[nearest]
            codes.append(nearest)
        return torch.stack(codes, -1)

    def vectors(self, codes: Tensor) -> Tensor:
        """int64 (B, n, layers) -> (B, n, dim)."""
        return torch.stack([book[codes[..., layer]] for layer, book in enumerate(self.books)]).sum(0)


class Decoder(nn.Module):
    """Quantised frames to a score. A clip is played by one instrument: its mean colours every frame."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(dim, width, 1)
        self.whole = nn.Linear(dim, width)
        self.blocks = nn.Sequential(*[Block(width, dilation) for dilation in (1, 2, 4, 1, 2, 1)])
        self.sizes = (PITCHES, PITCHES, TIMBRES, NOISES)
        self.last = nn.Conv1d(width, STEPS * sum(self.sizes), 1)

    def state(self, latent: Tensor) -> Tensor:
        """(B, n, dim) -> (B, width, n)."""
        whole = self.whole(latent.mean(1))[..., None]
        return self.blocks(self.first(latent.transpose(1, 2)) + whole)

    def score(self, state: Tensor) -> Score:
        """(B, width, n) -> 4 n steps."""
        batch, _, frames = state.shape
        out = self.last(state).transpose(1, 2).reshape(batch, frames * STEPS, sum(self.sizes)).float()
        sounding, loud, timbres, noise = out.split(self.sizes, -1)
        # exp(-7) is about -30 dB: where amplitudes start.
        power = torch.exp(2 * functional.logsigmoid(sounding) + (loud - 7).clamp(max=2))
        return Score(power, timbres.softmax(-1), torch.exp((noise - 14).clamp(max=0)), sounding)

    def forward(self, latent: Tensor) -> Score:
        return self.score(self.state(latent))


class Synthesiser(nn.Module):
    """Sines at the harmonics of 60 pitches, and noise.

    tables: (TIMBRES, KNOTS, HARMONICS), logits of how a timbre shares its power among harmonics, at pitches an octave
    apart; those between are interpolated.
    """

    between: Tensor
    audible: Tensor
    partials: Tensor

    def __init__(self) -> None:
        super().__init__()
        slope = -torch.arange(HARMONICS) * torch.linspace(0.1, 1.2, TIMBRES)[:, None]
        self.tables = nn.Parameter(slope[:, None].repeat(1, PITCHES // 12 + 1, 1))
        place = torch.arange(PITCHES) / 12
        knots = torch.arange(PITCHES // 12 + 1)
        self.register_buffer("between", (1 - (place[:, None] - knots).abs()).clamp(min=0), persistent=False)
        frequencies = 440 * 2 ** ((LOWEST + torch.arange(PITCHES) - 69) / 12)
        partials = frequencies[:, None].double() * torch.arange(1, HARMONICS + 1)
        self.register_buffer("audible", partials < 0.47 * RATE, persistent=False)
        self.register_buffer("partials", partials, persistent=False)
        edges = noise_edges()
        for index, window in enumerate(WINDOWS):
            bins = torch.arange(window // 2 + 1) * (RATE / window)
            bank = filterbank(window, BANDS[index]).double()
            offset = (bins - partials.reshape(-1, 1)) * (window / RATE)
            tones = _hann_power(offset) @ bank  # a sine of amplitude 1 -> its power in every band
            inside = ((bins[None] >= edges[:-1, None]) & (bins[None] < edges[1:, None])).double()
            # Noise of power 1 in a band: spread evenly over its bins, as `spectra` scales it.
            hiss = (inside / inside.sum(1, keepdim=True).clamp(min=1)) @ bank
            self.register_buffer(f"tones{window}", tones.float().reshape(PITCHES, HARMONICS, -1), persistent=False)
            self.register_buffer(f"hiss{window}", hiss.float(), persistent=False)
            # A window sees the steps around it, weighted by its square.
            reach = window // 2 // HOP
            at = torch.arange(-reach, reach + 1) * HOP / window
            kernel = torch.cos(math.pi * at) ** 4 if reach else torch.ones(1)
            self.register_buffer(f"seen{window}", (kernel / kernel.sum())[None, None], persistent=False)

    def shares(self) -> Tensor:
        """(TIMBRES, PITCHES, HARMONICS): power of each harmonic, summing to 1; none above what 16 kHz can hold."""
        logits = torch.einsum("pk,tkh->tph", self.between, self.tables)
        return logits.masked_fill(~self.audible, -torch.inf).softmax(-1)

    def expected(self, score: Score) -> Tensor:
        """(B, T, sum(BANDS)): the power `spectra` will find, on average over phases."""
        shares, result = self.shares(), []
        for window in WINDOWS:
            bands = torch.einsum("tph,phb->tpb", shares, getattr(self, f"tones{window}"))
            # (B, T, timbre x pitch) @ (timbre x pitch, bands)
            mixed = torch.einsum("btk,btp->btkp", score.timbres, score.power).flatten(2)
            power = mixed @ bands.flatten(0, 1) + score.noise @ getattr(self, f"hiss{window}")
            kernel = getattr(self, f"seen{window}")
            padded = functional.pad(power.transpose(1, 2), [kernel.shape[-1] // 2] * 2, mode="replicate")
            result.append(
                functional.conv1d(padded.flatten(0, 1)[:, None], kernel)[:, 0].view(len(power), -1, power.shape[1])
            )
        return torch.cat(result, 1).transpose(1, 2)

    def play(self, score: Score) -> Tensor:
        """(B, T * HOP) samples. Amplitudes go in straight lines from the middle of a step to the next."""
        shared = torch.einsum("btk,kph->btph", score.timbres, self.shares())
        amplitude = (score.power[..., None] * shared).flatten(2).clamp(min=1e-12).sqrt()  # (B, T, partials)
        # Line segments run from middle to middle; half a step of the first and last value at the ends.
        amplitude = torch.cat([amplitude[:, :1], amplitude, amplitude[:, -1:]], 1)
        turns = self.partials.flatten() * HOP / RATE
        # Phases that differ, so that harmonics do not add up to a click; the same ones every time.
        start = torch.arange(len(turns), dtype=torch.float64) * 0.618
        angle = 2 * math.pi * ((torch.arange(amplitude.shape[1] - 1)[:, None] * turns + start) % 1)
        within = torch.arange(HOP, dtype=torch.float64) / HOP
        wave = 2 * math.pi * turns[:, None] * within
        rise = torch.stack([1 - within, within])  # how much of the left and the right end of a segment
        # sin(a + w) = sin a cos w + cos a sin w: a matrix product for each segment instead of a sine for each sample.
        basis = torch.stack([torch.cos(wave), torch.sin(wave)])[:, None] * rise[None, :, None]  # (2, 2, partials, HOP)
        ends = torch.stack([amplitude[:, :-1], amplitude[:, 1:]])  # (2, B, segments, partials)
        turned = torch.stack([torch.sin(angle), torch.cos(angle)]).float()[:, None, None] * ends[None]
        tones = torch.einsum("cebsp,cepn->bsn", turned, basis.float()).flatten(1)
        whole = score.power.shape[1] * HOP
        return tones[:, HOP // 2 : HOP // 2 + whole] + self._hiss(score.noise, whole)

    def _hiss(self, noise: Tensor, length: int) -> Tensor:
        """(B, length): the same random numbers every time, shaped by the bands."""
        window = torch.hann_window(2 * HOP)
        source = torch.randn(length, generator=torch.Generator().manual_seed(0))
        spectrum = torch.stft(source, 2 * HOP, HOP, window=window, return_complex=True)
        bins = torch.arange(HOP + 1) * (RATE / 2 / HOP)
        band = torch.bucketize(bins, noise_edges(), right=True) - 1
        inside = (band >= 0) & (band < NOISES)
        band = band.clamp(0, NOISES - 1)
        share = torch.bincount(band, weights=inside.float(), minlength=NOISES).clamp(min=1) / (HOP + 1)
        # A Hann window makes noise of variance v look like power 3 v, in the scale of `spectra`.
        gain = (noise / (3 * share)).sqrt()
        gain = (torch.cat([gain[:, :1], gain], 1) + torch.cat([gain, gain[:, -1:]], 1)) / 2  # at the steps' edges
        shaped = spectrum * (gain[..., band] * inside).transpose(1, 2)
        return torch.istft(shaped, 2 * HOP, HOP, window=window, length=length)


def overall(latent: Tensor) -> Tensor:
    """What a clip's colour is told from, (B, 2 * dim): mean and spread of its latents (B, n, dim)."""
    return torch.cat([latent.mean(1), latent.std(1, correction=0)], 1)


def tempo(found: Tensor) -> float:
    """Beats a minute of spectra (T, sum(BANDS)), 50 to 180; NaN where nothing starts.

    The autocorrelation of how much louder the bands of the short window get; the fastest regular pulse counts, since a
    beat and two of them look alike.
    """
    rise = found[:, BANDS[0] :].clamp(min=FAINT).diff(dim=0).clamp(min=0).mean(1).double().numpy()
    rise = rise - rise.mean()
    longest = math.ceil(60 * RATE / HOP / BEATS[0])
    whole = np.correlate(rise, rise, "full")[len(rise) - 1 :][: longest + 2]
    whole = whole / (len(rise) - np.arange(len(whole)))
    whole = np.convolve(np.pad(whole, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    lags = range(math.floor(60 * RATE / HOP / BEATS[-1]), longest + 1)
    peaks = [lag for lag in lags if whole[lag] > 0 and whole[lag] >= max(whole[lag - 1], whole[lag + 1])]
    if not peaks:
        return math.nan
    highest = max(whole[lag] for lag in peaks)
    lag = next(lag for lag in peaks if whole[lag] >= ENOUGH * highest)
    left, middle, right = whole[lag - 1 : lag + 2]
    curve = left - 2 * middle + right
    return float(60 * RATE / HOP / (lag + (0.5 * (left - right) / curve if curve < 0 else 0.0)))


def beat(found: Tensor) -> int:
    """The place of a sound's `tempo` among `BEATS`; `NO_BEAT` where nothing starts."""
    beats = tempo(found)
    return NO_BEAT if math.isnan(beats) else int(np.abs(np.log(BEATS / beats)).argmin())


def noise_edges() -> Tensor:
    """(NOISES + 1,): borders of the noise bands, Hz."""
    return torch.from_numpy(np.geomspace(60, RATE / 2, NOISES + 1)).float()


def spectra(samples: Tensor) -> Tensor:
    """(B, n * HOP) -> (B, n, sum(BANDS)): log10 of power, at least log10 FLOOR; one every `HOP`, in its middle."""
    count, result = samples.shape[1] // HOP, []
    for window, bands in zip(WINDOWS, BANDS, strict=True):
        padded = functional.pad(samples, [(window - HOP) // 2, (window - HOP) // 2])
        shape = torch.hann_window(window)
        found = torch.stft(padded, window, HOP, window=shape, center=False, return_complex=True)[..., :count]
        # Scaled so that a sine of amplitude 1 has power 1 at its frequency.
        power = (found.abs() * (2 / shape.sum())) ** 2
        result.append(power.transpose(1, 2) @ filterbank(window, bands))
    return torch.cat(result, -1).clamp(min=FLOOR).log10()


def filterbank(window: int, bands: int) -> Tensor:
    """(window / 2 + 1, bands): triangles, evenly spaced in pitch from 65 Hz up, never narrower than a bin."""
    bins = torch.arange(window // 2 + 1) * (RATE / window)
    centres = torch.from_numpy(np.geomspace(65.4, 0.47 * RATE, bands)).float()
    ratio = (0.47 * RATE / 65.4) ** (1 / (bands - 1))
    width = (centres * (ratio - 1)).clamp(min=RATE / window)
    return (1 - (bins[:, None] - centres).abs() / width).clamp(min=0)


def _hann_power(offset: Tensor) -> Tensor:
    """Power of a Hann window's transform, 1 in its middle, `offset` bins away."""
    near = (offset.abs() - 1).abs() < 1e-6
    safe = torch.where(near, torch.full_like(offset, 0.5), offset)
    return torch.where(near, torch.full_like(offset, 0.25), (torch.sinc(safe) / (1 - safe**2)) ** 2)
