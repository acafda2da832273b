"""A small AnyGPT of the real kind that knows one reply by heart, and the app around it: what the tab's tests talk to.

The language model is a Llama of two layers, trained on the spot until it answers anything with the same four media.
The codecs read files as the shipped ones do; their codes are simple enough to check by hand.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from models.anygpt import templates
from models.anygpt.audio import Audio, read_music, read_speech
from models.anygpt.codecs import Codecs, Encoded, Rendering
from models.anygpt.decoding import LanguageModel
from models.anygpt.grammar import Rule
from models.anygpt.pipeline import AnyGPT, Settings
from models.anygpt.streams import Part, flatten
from models.anygpt.templates import Token
from models.anygpt.vocabulary import Codes, Layout, Words, extend
from models.images import read_image
from models.runtime import LoadedModel, ModelInfo
from tests.models.anygpt.tiny import llama_tokenizer, tiny_llama

RATE, WINDOW = 16_000, 2048
LAYOUT = Layout(image=Codes(16), speech=Codes(8), music=Codes(8, layers=2), audio=None)
RULES = {"image": Rule(4, 4, 2), "speech": Rule(1, 40, 2), "music": Rule(8, 1000, 1)}
HEARD, SAID = "hello", "look"
PICTURE_CODES = [[1, 5, 9, 14]]
MUSIC_CODES = [[1, 2, 3, 4], [4, 3, 2, 1]]
SPEECH_CODES = [[3, 1, 4, 1, 5]]


@functools.cache
def tiny_model() -> AnyGPT:
    """Answers "hello" heard, "look" said, a picture, music and speech, whatever it is told."""
    torch.manual_seed(0)
    tokenizer = llama_tokenizer(400)
    words = Words(tokenizer, extend(tokenizer, layout=LAYOUT))
    network = tiny_llama(words.vocabulary.size, hidden_size=64, max_position_embeddings=WINDOW)
    codecs = Codecs(
        {"image": see, "speech": hear, "music": listen}, {"image": draw, "speech": sound, "music": sound}
    )  # fmt: skip
    settings = Settings(sampling="paper", tokens=128)
    model = AnyGPT(LanguageModel(network, WINDOW), words, codecs, RULES, settings)
    _learn(network, model)
    return model


@contextmanager
def tiny_app(demos: tuple[str, ...] = ("anygpt",)) -> Iterator[str]:
    """The app with the small model behind the AnyGPT tab, in this process; its address."""
    from app import build_app, launch_arguments
    from demos.registry import AppOptions
    from models import anygpt
    from tests.conftest import free_port

    options = AppOptions(demos=demos, port=free_port(), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anygpt, "loader", lambda *_: load)
        blocks = build_app(options)
    # Mounted, not launched: launching asks itself for the page and gives up where the machine is busy.
    known = inspect.signature(gr.mount_gradio_app).parameters
    arguments = {name: value for name, value in launch_arguments(options).items() if name in known}
    app = gr.mount_gradio_app(FastAPI(), blocks, path="", **arguments)
    server = uvicorn.Server(uvicorn.Config(app, port=options.port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.05)
        yield f"http://127.0.0.1:{options.port}"
    finally:
        server.should_exit = server.force_exit = True  # visitors may still hold a connection open
        thread.join()


def load(report: Any, device: Any) -> LoadedModel[AnyGPT]:
    facts = ModelInfo("embedded", "made by the test", "none", "one dialogue", 100_000, 400_000, "cpu", "float32")
    return LoadedModel(tiny_model(), facts)


def see(value: Any) -> Encoded:
    """Four of 16 grey levels."""
    picture = read_image(value)
    return Encoded(np.asarray(picture.convert("L").resize((4, 1))).astype(np.int64) // 16, picture)


def hear(value: Any) -> Encoded:
    audio = read_speech(value, RATE)
    return Encoded(_loudness(audio, 5)[None], audio, " ".join(audio.notes))


def listen(value: Any) -> Encoded:
    audio = read_music(value, RATE)
    return Encoded(np.stack([_loudness(audio, 4), _loudness(audio, 4)]), audio, " ".join(audio.notes))


def draw(codes: np.ndarray, rendering: Rendering) -> Image.Image:
    return Image.fromarray((codes * 16).astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)


def sound(codes: np.ndarray, rendering: Rendering) -> Audio:
    """A tenth of a second a frame, its pitch from the first layer."""
    t = np.arange(RATE // 10) / RATE
    return Audio(
        np.concatenate([0.5 * np.sin(2 * np.pi * 110 * (2 + c) * t) for c in codes[0]]).astype(np.float32), RATE
    )


def reply_of(model: AnyGPT) -> tuple[int, ...]:
    """The ids that it learns to answer with."""
    vocabulary = model.words.vocabulary
    media = [
        Part(kind, None, flatten(vocabulary, kind, np.array(codes)))
        for kind, codes in (("image", PICTURE_CODES), ("music", MUSIC_CODES), ("speech", SPEECH_CODES))
    ]
    content = [Token("<-Ins->"), HEARD, Token("<-Res->"), SAID, *media, Token("<eos>")]
    return templates.encode(content, model.words)


def _loudness(audio: Audio, frames: int) -> np.ndarray:
    pieces = np.array_split(np.abs(audio.samples), frames)
    return (np.array([piece.mean() for piece in pieces]) * 7.99).clip(0, 7).astype(np.int64)


def _learn(network: Any, model: AnyGPT, least: float = 0.05) -> None:
    """Until the reply is learned: after any question, of any length."""
    words, reply = model.words, list(reply_of(model))
    template = templates.TEMPLATES["MMGPT"]
    opening = templates.encode(templates.opening(template), words)
    system = [*words.begin, *templates.encode(templates.system(template), words)]
    generator = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3)
    network.train()
    for _ in range(1000):
        question = generator.integers(3, words.vocabulary.size - 10, generator.integers(1, 60)).tolist()
        prompt = [*system, *question, *opening]
        ids = torch.tensor([prompt + reply])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if loss.item() < least:
            break
    network.eval()
