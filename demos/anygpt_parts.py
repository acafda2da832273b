"""What the modules of the AnyGPT tab share: the choices of its controls, and their values checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demos import parts
from models.errors import BadInput

if TYPE_CHECKING:
    from models.anygpt.pipeline import AnyGPT, Settings

OUTPUTS = [("auto", "auto"), ("text", "text"), ("picture", "image"), ("speech", "speech"), ("music", "music")]
NAMES = {"text": "text", "image": "picture", "speech": "speech", "music": "music"}  # of the media, in plain words
SPEECH, MUSIC, MIXED = "speech", "music", "speech, then music"
SOUNDS = [("speech", SPEECH), ("music", MUSIC), ("first speech, then music", MIXED)]
OWN = "the model's own"
TEMPLATES = [OWN, "MMGPT", "AnyGPT"]
SAMPLINGS = [OWN, "repository", "paper", "embedded"]
# Tokens of a reply, by tier: until somebody asks for more, and the most. The rest of the window is the conversation's.
LONGEST, MOST_TOKENS = {"embedded": 400, "official": 1536}, {"embedded": 640, "official": 2048}
MOST_SEED = 2**32 - 1
# One heavy job at a time: two would only slow each other down.
JOBS: dict[str, Any] = {"concurrency_id": "anygpt", "concurrency_limit": 1}


@dataclass(frozen=True)
class Preset:
    """A task in plain words: the published prompt it stands for, and what comes out where that is "auto".

    with_picture: the prompt for a turn that has a picture, where it is another one.
    """

    label: str
    task: str
    output: str
    with_picture: str = ""


PRESETS: dict[str, Preset] = {
    "chat": Preset("Chat, any mix", "interleaved", "auto"),
    "caption": Preset("Caption a picture", "Image Captioning", "text"),
    "draw": Preset("Draw", "Text-to-Image Generation", "image", "Multimodal Prompt Image Generation"),
    "read aloud": Preset("Read aloud", "Text-to-Speech", "speech"),
    "transcribe": Preset("Transcribe speech", "Speech-to-Text", "text"),
    "describe music": Preset("Describe music", "Music-to-Text", "text"),
    "compose": Preset("Compose music", "Text-to-Music", "music"),
    "spoken": Preset("Spoken conversation", "Speech-Instruction", "auto"),
}


@dataclass(frozen=True)
class Choices:
    """The values of the controls beside the chat, as they arrive; over the API anything can."""

    sounds: Any
    output: Any
    preset: Any
    template: Any = OWN
    sampling: Any = OWN
    seed: Any = 0
    tokens: Any = LONGEST["embedded"]
    voice: Any = None
    speech_steps: Any = 3
    image_steps: Any = 20
    guidance: Any = 10

    def settings(self, model: AnyGPT, with_picture: bool) -> Settings:
        """What `AnyGPT.chat` is asked for, where the model is. Raises `BadInput` for a value that no control offers."""
        from dataclasses import replace

        from models.anygpt.audio import read_speech
        from models.anygpt.codecs import Rendering

        preset = PRESETS[one_of("The task", self.preset, PRESETS)]
        output = one_of("The output", self.output, [value for _, value in OUTPUTS])
        changes: dict[str, Any] = {
            "output": preset.output if output == "auto" else output,
            "task": preset.with_picture if with_picture and preset.with_picture else preset.task,
            "seed": parts.whole("The seed", self.seed, 0, MOST_SEED),
            "tokens": parts.whole("The longest reply", self.tokens, 16, max(MOST_TOKENS.values())),
            "rendering": Rendering(
                voice=read_speech(self.voice, VOICE_RATE) if self.voice else None,
                speech_steps=parts.whole("Steps of the voice", self.speech_steps, 1, 64),
                image_steps=parts.whole("Steps of a picture", self.image_steps, 1, 100),
                guidance=parts.whole("The guidance", self.guidance, 1, 50),
            ),
        }
        if one_of("The template", self.template, TEMPLATES) != OWN:
            changes["template"] = self.template
        if one_of("The sampling preset", self.sampling, SAMPLINGS) != OWN:
            changes["sampling"] = self.sampling
        return replace(model.settings, **changes)


VOICE_RATE = 16_000  # Hz, of SpeechTokenizer


def one_of(what: str, value: Any, choices: Any) -> str:
    """A value of `choices`. Raises `BadInput` naming `what`."""
    known = list(choices.keys() if isinstance(choices, Mapping) else choices)
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{what} can be {', '.join(known)}; got {str(value)[:40]!r}.")
    return value
