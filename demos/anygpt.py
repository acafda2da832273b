"""The AnyGPT tab: a chat in text, pictures, speech and music, and the one stream of tokens behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import anygpt_tokens as tokens
from demos import parts
from demos.anygpt_chat import START, Talk, answer, cleared, forget, said
from demos.anygpt_evidence import explanation, show_evidence
from demos.anygpt_parts import (
    JOBS,
    LONGEST,
    MIXED,
    MOST_TOKENS,
    OUTPUTS,
    OWN,
    PRESETS,
    SAMPLINGS,
    SOUNDS,
    SPEECH,
    TEMPLATES,
    Choices,
)
from demos.registry import AppOptions, demo
from models import anygpt
from models.completions import Address
from models.runtime import ModelHandle, ModelRuntime

if TYPE_CHECKING:
    from models.anygpt.pipeline import AnyGPT

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "anygpt"
BYTES = {"embedded": 900_000_000, "official": 22_000_000_000}
SERVED_BYTES = 8_000_000_000  # tokenizers and decoders; the language model is elsewhere
DESCRIPTIONS = {
    "embedded": "A small language model with tokens for pictures, speech and music",
    "official": "AnyGPT-chat, 7 billion parameters",
}
KNOWS = {
    "embedded": "The embedded model knows English only: about 300 spoken words, some thirty things to draw in eight "
    "colours, and slow or fast, calm or lively music for piano, guitar, violin and flute.",
    "official": "The published model was trained on English.",
}
PLACEHOLDER = "Write; drop or paste pictures and sounds; or record"

# On a phone the chat comes before its controls. In the chat, lines of text are kept, but players are laid out as ever;
# its buttons to share over a network and to empty the page alone (the model would still remember) are left out.
STYLE = """
#anygpt-chat .minimal-audio-player { white-space: normal; width: min(20rem, 100vw - 9rem); }
#anygpt-chat .message-buttons .icon-button-wrapper > button { display: none; }
#anygpt-chat > .wrapper > .icon-button-wrapper { display: none; }
#anygpt-chat .message-row { margin-top: .3rem; margin-bottom: .3rem; }
#anygpt-box .submit-button { background: var(--button-primary-background-fill); color: white; }
#anygpt-chat .message-buttons { margin: 0; }
#anygpt-chat img { min-width: 160px; max-height: 260px; }
#anygpt-chat .user img { max-height: 120px; object-fit: contain; }
#anygpt-chat .placeholder-content { padding: 0 2rem; }
@media (max-width: 800px) { #anygpt-panel { flex-direction: column; } #anygpt-controls { order: 2; } }
"""


@dataclass(frozen=True)
class Example:
    """One click: what is sent, and how its sound files are to be heard. files: names in assets/anygpt/examples."""

    title: str
    text: str
    files: tuple[str, ...] = ()
    sounds: str = SPEECH


# The first three are the paper's own: what goes in, and what comes back.
EXAMPLES = (
    Example("Text and picture to text and music", "Play music that goes with this picture.", ("picture.png",)),
    Example("Speech to text, picture, music, speech", "", ("draw_a_red_apple_and_play_something_calm.wav",)),
    Example(
        "Speech and music to text, picture, speech",
        "",
        ("draw_a_picture_that_goes_with_this_music.wav", "music_slow_calm_piano.wav"),
        MIXED,
    ),
    Example("Picture and spoken question to text and speech", "", ("picture.png", "what_is_in_this_picture.wav")),
    Example("Draw a red apple and play something calm", "Draw a red apple and play something calm."),
)


def build(options: AppOptions, runtime: ModelRuntime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    folder = options.weights_dir if options.tier == "official" else None
    server = Address.parse(options.anygpt_url, options.lm_key) if options.anygpt_url else None
    handle: ModelHandle[AnyGPT] = runtime.register(
        "anygpt",
        anygpt.loader(options.tier, folder, server),
        estimate_bytes=SERVED_BYTES if server else BYTES[options.tier],
        description=DESCRIPTIONS[options.tier] + (f", on the server at {server.place}" if server else ""),
    )
    parts.paper_card(demo("anygpt"))
    with gr.Tabs():
        with gr.Tab("Chat"):
            _chat_tab(handle, options.tier)
        with gr.Tab("Evidence") as evidence:
            show_evidence(ASSETS / "evidence", evidence)
        with gr.Tab("How it works"):
            explanation(ASSETS)
    parts.status_line(handle)


def _chat_tab(handle: ModelHandle[AnyGPT], tier: str) -> None:
    with gr.Row(equal_height=False, elem_id="anygpt-panel"):
        with gr.Column(scale=1, min_width=280, elem_id="anygpt-controls") as controls:
            output = gr.Radio(OUTPUTS, value="auto", label="The reply is", elem_id="anygpt-output")
            preset = gr.Dropdown(
                [(entry.label, name) for name, entry in PRESETS.items()], value="chat", label="Task",
                elem_id="anygpt-task",
            )  # fmt: skip
            sounds = gr.Radio(
                SOUNDS, value=SPEECH, label="Sound files are", info="What you record is always speech.",
                elem_id="anygpt-sounds",
            )  # fmt: skip
            with gr.Accordion("More", open=False):
                template = gr.Dropdown(TEMPLATES, value=OWN, label="Template")
                sampling = gr.Dropdown(SAMPLINGS, value=OWN, label="Sampling")
                seed = gr.Number(0, precision=0, label="Seed", elem_id="anygpt-seed")
                longest = gr.Slider(16, MOST_TOKENS[tier], LONGEST[tier], step=1, label="Longest reply, in tokens")
                rendering = _rendering() if tier == "official" else []
        with gr.Column(scale=3, min_width=280):
            chat = gr.Chatbot(
                label="Conversation", show_label=False, height=560, buttons=[], render_markdown=False,
                latex_delimiters=[], group_consecutive_messages=False, placeholder=KNOWS[tier], elem_id="anygpt-chat",
            )  # fmt: skip
            box = gr.MultimodalTextbox(
                label="Your turn", show_label=False, placeholder=PLACEHOLDER, sources=["upload", "microphone"],
                file_types=["image", "audio"], file_count="multiple", submit_btn="Send", max_plain_text_length=20_000,
                elem_id="anygpt-box",
            )  # fmt: skip
            with gr.Row():
                stop = gr.Button("Stop", variant="stop", size="sm", elem_id="anygpt-cancel")
                clear = gr.Button("New conversation", size="sm", elem_id="anygpt-clear")
                save = gr.DownloadButton(
                    "Save conversation", size="sm", interactive=False, elem_id="anygpt-save"
                )  # fmt: skip
            under = gr.HTML(said(START), elem_id="anygpt-said", padding=False)
            view = gr.HTML(tokens.EMPTY, css_template=tokens.CSS, elem_id="anygpt-tokens", padding=False)
            gr.HTML(f"<style>{STYLE}</style>", padding=False)
    with controls:
        filled = _examples(box, sounds, output, preset)
    talk = gr.State(Talk(), time_to_live=3600, delete_callback=forget)
    cancel = parts.cancel_by(stop, "anygpt_cancel", under, [box.submit], [filled])
    outputs: list[Any] = [chat, box, view, under, save, talk]
    inputs = [cancel, talk, box, sounds, output, preset, template, sampling, seed, longest, *rendering]

    @parts.user_errors
    def send_turn(cancel: parts.Cancel, talk: Talk, message: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            yield from answer(handle, talk, message, Choices(*values), cancel)

    job: dict[str, Any] = JOBS | {"show_progress": "minimal", "show_progress_on": under}
    box.submit(send_turn, inputs, outputs, api_name="anygpt_chat", **job)
    filled.then(send_turn, inputs, outputs, api_visibility="undocumented", api_name="anygpt_example_run", **job)

    def new_conversation(cancel: parts.Cancel, talk: Talk) -> tuple[Any, ...]:
        cancel.update(asked=True, cleared=True)
        forget(talk)
        return cleared()

    clear.click(new_conversation, [cancel, talk], outputs, queue=False, show_progress="hidden", api_name="anygpt_clear")


def _rendering() -> list[Any]:
    """Controls of the published decoders."""
    return [
        gr.Audio(label="Voice to speak with, 3 to 10 seconds", type="filepath", elem_id="anygpt-voice"),
        gr.Slider(1, 64, 3, step=1, label="Steps of the voice"),
        gr.Slider(1, 100, 20, step=1, label="Steps of a picture"),
        gr.Slider(1, 50, 10, step=1, label="Guidance of a picture"),
    ]


def _examples(box: Any, sounds: Any, output: Any, preset: Any) -> Any:
    """Buttons that fill the controls, where their files are there; the event after which the turn can be sent."""
    folder = ASSETS / "examples"
    offered = [e for e in EXAMPLES if all((folder / name).is_file() for name in e.files)]
    rows = [
        [{"text": e.text, "files": [str(folder / name) for name in e.files]}, e.sounds, "auto", "chat"] for e in offered
    ]
    examples = gr.Examples(
        rows, [box, sounds, output, preset], example_labels=[e.title for e in offered], cache_examples=False,
        label="Examples: click one to send it", api_name="anygpt_example",
    )  # fmt: skip
    return examples.load_input_event
