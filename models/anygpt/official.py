"""The published AnyGPT, put together from files on this machine; each medium works as far as its files are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.anygpt import encodec, images, seed, served, soundstorm, speechtokenizer, unclip, vocabulary
from models.anygpt.audio import Audio, already_read, read_music, read_speech
from models.anygpt.codecs import Codecs, Encoded, Lazy, Make, Missing, Read, Rendering
from models.anygpt.decoding import LanguageModel
from models.anygpt.grammar import OFFICIAL_RULES, Rule
from models.anygpt.pipeline import AnyGPT, Settings
from models.anygpt.vocabulary import Medium, Words
from models.completions import Address
from models.errors import WeightsCorrupt, WeightsNotFound
from models.images import read_image
from models.runtime import Device

WINDOW = 4096  # the tokenizer's limit; config.json says 2048, training used 4096 to 4500 (specification 1.1)
# Where each file is inside the weights folder, as AnyGPT's own documentation has it, and where it comes from.
FILES = {
    "lm": ("anygpt/chat", "fnlp/AnyGPT-chat"),
    "seed": ("seed-tokenizer-2/seed_quantizer.pt", "AILab-CVC/seed-tokenizer-2"),
    "eva": ("seed-tokenizer-2/eva_vit_g.pth", "LAVIS's download page (EVA ViT-g)"),
    "unclip": ("stable-diffusion-2-1-unclip", "stabilityai/stable-diffusion-2-1-unclip"),
    "speechtokenizer": ("speechtokenizer/ckpt.dev", "fnlp/AnyGPT-speech-modules"),
    "speech_config": ("speechtokenizer/config.json", "fnlp/AnyGPT-speech-modules"),
    "soundstorm": ("soundstorm/speechtokenizer_soundstorm_mls.pt", "fnlp/AnyGPT-speech-modules"),
    "encodec": ("encodec_32khz", "facebook/encodec_32khz"),
}


@dataclass(frozen=True)
class Paths:
    """Files and folders of this machine, by the names of `FILES`; one that is not named is not there."""

    files: Mapping[str, Path]

    @classmethod
    def inside(cls, folder: str | Path) -> Paths:
        """What a folder in the documented layout has."""
        found = {name: Path(folder) / place for name, (place, _) in FILES.items()}
        return cls({name: path for name, path in found.items() if path.exists()})

    def missing(self, what: str, *names: str) -> Missing | None:
        """Why something cannot work, naming the first file it lacks; None if all are there."""
        for name in names:
            if name not in self.files:
                place, origin = FILES[name]
                return Missing(f"{what} needs {place} in the weights folder; it is part of {origin}.")
        return None


def assemble(paths: Paths, device: Device) -> tuple[AnyGPT, Any]:
    """The model with the codecs that are there, which are loaded when they are first needed; and its network.

    Raises:
        WeightsNotFound: no language model. WeightsCorrupt, UnsafeCheckpoint: files that cannot be used.
    """
    absent = paths.missing("AnyGPT", "lm")
    if absent is not None:
        raise WeightsNotFound(absent.reason)
    tokenizer, model = load_language_model(paths.files["lm"], device)
    words = Words(tokenizer, vocabulary.read(tokenizer))
    vocabulary.check_rows(words.vocabulary, model.get_input_embeddings().weight.shape[0])
    return AnyGPT(LanguageModel(model, WINDOW), words, codecs(paths, device), _rules(words), Settings()), model


def assemble_served(paths: Paths, device: Device, server: Address) -> AnyGPT:
    """The same with its language model behind a server; of the model's folder only the tokenizer is read.

    Raises:
        WeightsNotFound: no tokenizer, or no reader for it. WeightsCorrupt. ServerUnavailable: see `served.connect`.
    """
    absent = paths.missing("AnyGPT's tokenizer", "lm")
    if absent is not None:
        raise WeightsNotFound(absent.reason)
    tokenizer = load_tokenizer(paths.files["lm"])
    words = Words(tokenizer, vocabulary.read(tokenizer))
    lm = served.connect(words, server, WINDOW)
    return AnyGPT(lm, words, codecs(paths, device), _rules(words), Settings())


def _rules(words: Words) -> dict[Medium, Rule]:
    return {medium: rule for medium, rule in OFFICIAL_RULES.items() if medium in words.vocabulary.media}


def load_tokenizer(folder: Path) -> Any:
    """Of a Hugging Face folder; nothing is downloaded and no code of the folder is run.

    Raises:
        WeightsNotFound: it is SentencePiece's and that package is not installed. WeightsCorrupt.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists() and importlib.util.find_spec("sentencepiece") is None:
        raise WeightsNotFound(
            f"The tokenizer of {folder.name} is a SentencePiece file. Install the reader: "
            "pip install sentencepiece protobuf"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsCorrupt(f"{folder.name} has no complete tokenizer. Copy it again.") from error


def load_language_model(folder: Path, device: Device) -> tuple[Any, Any]:
    """Tokenizer and model of a folder; see `load_tokenizer`."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=getattr(torch, device.dtype), weights_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsCorrupt(f"{folder.name} is no complete model folder. Copy it again.") from error
    return tokenizer, model.to(device.name).eval().requires_grad_(False)


def codecs(paths: Paths, device: Device) -> Codecs:
    """Each codec as far as its files are there."""
    place = torch.device(device.name)
    with_eyes = Lazy(lambda: seed.load(paths.files["seed"], paths.files["eva"]).to(place))
    # Without EVA the vision network is empty, and cannot be moved as a whole.
    blind = Lazy(lambda: seed.load(paths.files["seed"]))
    drawing = Lazy(
        lambda: unclip.load(
            paths.files["unclip"], torch.float16 if device.type == "cuda" else torch.float32
        ).to(place)
    )  # fmt: skip
    speech = Lazy(lambda: speechtokenizer.load(paths.files["speechtokenizer"], paths.files["speech_config"]).to(place))
    storm = Lazy(lambda: soundstorm.load(paths.files["soundstorm"]).to(place))
    music = Lazy(lambda: encodec.load(paths.files["encodec"]).to(place))

    def see(value: Any) -> Encoded:
        network, picture = with_eyes(), read_image(value)
        x = images.normalised(images.stretched(picture, network.config.image))
        return Encoded(network.encode(x.to(place)).cpu().numpy(), picture)

    def draw(codes: np.ndarray, how: Rendering) -> Any:
        network = with_eyes() if "eva" in paths.files else blind()
        table = network.quantize["embedding"].weight
        embedding = network.embed(torch.from_numpy(codes).to(table.device))  # type: ignore[arg-type]
        return unclip.draw(drawing(), embedding, how.seed, how.image_steps, how.guidance)

    def layers(sound: Audio) -> torch.Tensor:
        x = torch.from_numpy(sound.samples)[None, None].to(place)
        return speech().encode(x)[:, 0]  # (8, n)

    def hear(value: Any) -> Encoded:
        sound = already_read(value, read_speech, speech().config.sample_rate)
        return Encoded(layers(sound)[:1].cpu().numpy(), sound, " ".join(sound.notes))

    def speak(codes: np.ndarray, how: Rendering) -> Audio:
        semantic = torch.from_numpy(codes[0]).to(place)
        rate = speech().config.sample_rate
        voice = None if how.voice is None else layers(already_read(how.voice, read_speech, rate)).T
        whole = storm().generate(semantic, voice, how.speech_steps, how.seed)
        samples = speech().decode(whole.T[:, None])[0, 0]
        return Audio(samples.float().cpu().numpy(), rate)

    def listen(value: Any) -> Encoded:
        sound = already_read(value, read_music, encodec.RATE)
        return Encoded(encodec.encode(music(), sound), sound, " ".join(sound.notes))

    def play(codes: np.ndarray, how: Rendering) -> Audio:
        return encodec.decode(music(), codes)

    spoken = ("speechtokenizer", "speech_config")
    readers: dict[Medium, Read | Missing] = {
        "image": paths.missing("Reading pictures", "seed", "eva") or see,
        "speech": paths.missing("Understanding speech", *spoken) or hear,
        "music": paths.missing("Music", "encodec") or listen,
    }
    makers: dict[Medium, Make | Missing] = {
        "image": paths.missing("Drawing", "seed", "unclip") or draw,
        "speech": paths.missing("Speaking", *spoken, "soundstorm") or speak,
        "music": paths.missing("Music", "encodec") or play,
    }
    return Codecs(readers, makers)
