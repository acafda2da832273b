"""The demos of the suite, in the order of their tabs. Imports neither Gradio nor any model."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Tier = Literal["embedded", "official"]
Language = Literal["en", "ja"]


@dataclass(frozen=True)
class Example:
    """What is shown on a stage, and how it is started.

    press: CSS selectors inside the demo's tab, pressed in turn, each once it is there; one after "see " is waited for.
    """

    says: str
    press: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """One paper, one tab.

    slug: name in addresses, options and API names.
    paper: authors, year and identifier, in one line.
    claims: what the paper claims, five short lines.
    build: "module:function"; the function gets `(AppOptions, Runtime)` inside the demo's `gr.Tab`.
    example: for a talk; None if nothing is prepared.
    """

    slug: str
    title: str
    paper: str
    url: str
    claims: tuple[str, ...]
    build: str
    example: Example | None = None

    def load_build(self) -> "Callable[[AppOptions, Any], None]":
        """Imports the tab's module and returns its build function."""
        module, function = self.build.split(":")
        return getattr(importlib.import_module(module), function)


DEMOS: tuple[Demo, ...] = (
    Demo(
        slug="yolov9",
        title="YOLOv9",
        paper=(
            "Wang, Yeh, Liao: YOLOv9: Learning What You Want to Learn Using Programmable Gradient "
            "Information. 2024, arXiv 2402.13616"
        ),
        url="https://arxiv.org/abs/2402.13616",
        claims=(
            "Deep layers lose information about their input, and with it their gradients become unreliable.",
            "Programmable gradient information (PGI) adds a reversible branch that keeps the information "
            "in training and costs nothing at inference.",
            "GELAN, the network, lets any block stand inside an ELAN layout: few parameters, few operations.",
            "Against YOLOv8: 49 % fewer parameters, 43 % less computation, and 0.6 AP more on COCO.",
            "YOLOv9-C reaches 53.0 AP, as YOLOv7-AF does, with 42 % fewer parameters, trained from scratch.",
        ),
        build="demos.yolov9:build",
        example=Example(
            "A drawing goes through the detector: boxes, counts, and where the time went.",
            ("[role=tab]:nth-of-type(2)", ".gallery-item", "see #yolov9-image img", "#yolov9-image-run"),
        ),
    ),
    Demo(
        slug="pdiff",
        title="P-diff",
        paper="Wang et al.: Neural Network Diffusion. 2024, arXiv 2402.13144",
        url="https://arxiv.org/abs/2402.13144",
        claims=(
            "Diffusion models can generate the parameters of neural networks.",
            "An autoencoder turns checkpoints into latents; a diffusion model learns the latents.",
            "Generated networks do as well as trained ones, or better, over many architectures and data sets.",
            "They are said not to be copies: their mistakes differ from those of the networks they were learned from.",
            "Noise added to parameters and latents while training matters for it.",
        ),
        build="demos.pdiff:build",
        example=Example(
            "A hundred networks come out of noise, and every one is tested.",
            ("[role=tab]:nth-of-type(1)", "#pdiff-run"),
        ),
    ),
    Demo(
        slug="longrope",
        title="LongRoPE",
        paper="Ding et al.: LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens. 2024, arXiv 2402.13753",
        url="https://arxiv.org/abs/2402.13753",
        claims=(
            "Rotary dimensions and token positions are not alike: stretching all by one factor loses information.",
            "A search over a factor for each dimension extends a window eightfold without any fine-tuning.",
            "Two steps, 256k with fine-tuning and then a second search, reach 2 048k tokens.",
            "Readjusted factors for short inputs give back what a long window costs there.",
            "The network stays as it is: only the rotary table changes.",
        ),
        build="demos.longrope:build",
        example=Example(
            "A key hidden in a thousand tokens is found; then try 2 048k, 256 times the trained window.",
            ("[role=tab]:nth-of-type(1)", "#longrope-run"),
        ),
    ),
    Demo(
        slug="sdxl_lightning",
        title="SDXL-Lightning",
        paper="Lin, Wang, Yang: SDXL-Lightning: Progressive Adversarial Diffusion Distillation. 2024, arXiv 2402.13929",
        url="https://arxiv.org/abs/2402.13929",
        claims=(
            "A text-to-image diffusion model can be distilled to draw 1024-pixel pictures in 1, 2, 4 or 8 steps.",
            "Students learned with squared error alone blur; an adversarial loss in latent space keeps them sharp.",
            "The discriminator is the diffusion network's own encoder, and knows the start of the jump it judges.",
            "Progressive and adversarial together balance quality and variety.",
            "Students come as full networks, and for 2, 4 and 8 steps as LoRAs that work on other base models.",
        ),
        build="demos.sdxl_lightning:build",
        example=Example(
            "One prompt at 1, 2, 4 and 8 steps beside the teacher, each with its time.",
            ("[role=tab]:nth-of-type(3)", "#sdxl_lightning-compare"),
        ),
    ),
    Demo(
        slug="anygpt",
        title="AnyGPT",
        paper=(
            "Zhan et al.: AnyGPT: Unified Multimodal LLM with Discrete Sequence Modeling. ACL 2024, arXiv 2402.12226"
        ),
        url="https://arxiv.org/abs/2402.12226",
        claims=(
            "Speech, text, pictures and music can be one sequence of discrete tokens.",
            "A language model learns them as it learns words: same network, same training, only a larger vocabulary.",
            "Tokenizers turn media into few meaningful tokens; separate decoders add the detail back.",
            "108 000 synthesised dialogues that mix all media in both directions teach it to converse in them.",
            "Without training for one task it comes close to specialised models in each medium.",
        ),
        build="demos.anygpt:build",
        example=Example(
            "“Draw a red apple and play something calm”: one model answers with a picture and music.",
            ("[role=tab]:nth-of-type(1)", ".gallery-item"),
        ),
    ),
)


def demo(slug: str) -> Demo:
    """The demo with that slug; KeyError if there is none."""
    return {entry.slug: entry for entry in DEMOS}[slug]


@dataclass(frozen=True)
class AppOptions:
    """What the person who starts the app decides; `app.py --help` explains each.

    memory_limit: bytes over all models; None takes 80 % of the device's memory.
    rate_limit: requests a second from one address; 0 for no limit.
    proxies: trusted ones in front of the app.
    mcp: offer the API to language models as tools.
    longrope_url, anygpt_url: OpenAI-compatible servers with these language models (official tier); lm_key: their key.
    """

    demos: tuple[str, ...] = field(default_factory=lambda: tuple(entry.slug for entry in DEMOS))
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    auth: tuple[str, str] | None = None
    tier: Tier = "embedded"
    weights_dir: str | None = None
    device: str = "auto"
    memory_limit: int | None = None
    present: bool = False
    lang: Language = "en"
    rate_limit: float = 100.0
    proxies: int = 0
    mcp: bool = False
    longrope_url: str | None = None
    anygpt_url: str | None = None
    lm_key: str | None = field(default=None, repr=False)
