"""A zoo that is ready to generate, evaluate and compare: what a tab or a script uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models import weights
from models.errors import BadInput
from models.pdiff import data as datasets
from models.pdiff import diffusion, measures
from models.pdiff.collect import network_of, state_dict
from models.pdiff.diffusion import STEPS
from models.pdiff.measures import Evaluator
from models.pdiff.zoo import Zoo

MOST = 1000
NOISE_SCALES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
OnStep = Callable[[int, int, Tensor], None]  # steps done, of how many, latents (N, d)


@dataclass(frozen=True)
class Checkpoints:
    """vectors: (N, D) float32, the generated parameters. kind: where they come from. latents: (N, d) or None."""

    vectors: Tensor
    kind: str
    latents: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)


class Pipeline:
    """One zoo: originals, generator, test pictures.

    Args:
        name: of the zoo.
        zoo: as `zoo.read` gives it.
        data: its data set.
    """

    def __init__(self, name: str, zoo: Zoo, data: datasets.Data) -> None:
        self.name, self.zoo, self.data = name, zoo, data
        self.network = network_of(zoo.collection, data)
        self.originals = Checkpoints(zoo.collection.vectors, "originals")
        self._original_wrong: Tensor | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """What the networks tell apart."""
        return self.data.classes

    @cached_property
    def evaluator(self) -> Evaluator:
        """On the test pictures."""
        return Evaluator(self.network, self.zoo.collection.layout, self.data.test_x, self.data.test_y)

    @property
    def original_wrong(self) -> Tensor:
        """(K, n) bool: what the originals get wrong. Tested at the first use."""
        return self.wrong(self.originals)

    @cached_property
    def original_latents(self) -> Tensor:
        """(K, d): the originals as the denoiser sees them."""
        return self.zoo.generator.encode(self.originals.vectors)

    @cached_property
    def _axes(self) -> Tensor:
        """(d, 2): the two directions in which the originals' latents differ most."""
        centred = self.original_latents - self.original_latents.mean(0)
        return torch.linalg.svd(centred, full_matrices=False).Vh[:2].T

    def project(self, latents: Tensor) -> Tensor:
        """(N, d) -> (N, 2), for pictures: the principal components of the originals' latents."""
        return latents @ self._axes

    def generate(
        self,
        count: int = 100,
        seed: int = 0,
        steps: int = 50,
        ancestral: bool = False,
        on_step: OnStep = lambda done, total, latents: None,
    ) -> Checkpoints:
        """New checkpoints from noise.

        Args:
            count: 1 to 1000.
            steps: 1 to 1000. With `ancestral` and 1000 steps this is the paper's sampler; otherwise DDIM.
            on_step: sees the latents after each step, and may raise to stop.

        Raises:
            BadInput: a count or a number of steps outside its range.
        """
        if not 1 <= count <= MOST:
            raise BadInput(f"Generate between 1 and {MOST} checkpoints; got {count}.")
        generator = torch.Generator().manual_seed(seed % 2**63)
        noise = torch.randn((count, len(self.zoo.generator.latent_mean)), generator=generator)
        total = len(diffusion.timesteps(steps, STEPS))
        x = noise
        with torch.inference_mode():
            on_step(0, total, x)
            sampling = diffusion.sample(self.zoo.generator.denoiser, noise, steps, float(ancestral), generator)
            for done, (_, x) in enumerate(sampling, 1):
                on_step(done, total, x)
        return self.decode(x)

    def decode(self, latents: Tensor) -> Checkpoints:
        """(N, d) latents as checkpoints; a row comes out the same whatever stands beside it."""
        return Checkpoints(self.zoo.generator.decode(latents), "generated", latents.clone())

    def wrong(self, checkpoints: Checkpoints, report: measures.Report = lambda done, total: None) -> Tensor:
        """(N, n) bool: which test pictures each checkpoint gets wrong. The originals are tested once.

        report: sees (checkpoints tested, of how many) after each, and may raise to stop.
        """
        if checkpoints is not self.originals:
            return self.evaluator.wrong(checkpoints.vectors, report)
        if self._original_wrong is None:
            self._original_wrong = self.evaluator.wrong(checkpoints.vectors, report)
        return self._original_wrong

    def evaluate(self, checkpoints: Checkpoints) -> Tensor:
        """(N,) percent right on the test pictures, float32."""
        return measures.accuracies(self.wrong(checkpoints))

    def similarity(self, a: Checkpoints, b: Checkpoints) -> Tensor:
        """(N, M): IoU of wrong predictions (specification D.4)."""
        return measures.similarity(self.wrong(a), self.wrong(b))

    def ensemble(self) -> Checkpoints:
        """The mean of all originals' parameters, as the paper's "ensemble" column has it."""
        return Checkpoints(self.originals.vectors.mean(0, keepdim=True), "ensemble")

    def baselines(self, count: int = 100, seed: int = 0, noise_scale: float = 0.5) -> dict[str, Checkpoints]:
        """What needs no generative model (Zeng et al. 2025): noise, interpolation, means of 16, a Gaussian."""
        o = self.originals.vectors
        return {
            "noise": Checkpoints(measures.noised(o, count, noise_scale, seed), "noise"),
            "interpolation": Checkpoints(measures.interpolated(o, count, seed), "interpolation"),
            "mean of 16": Checkpoints(measures.averages(o, count, 16, seed), "mean of 16"),
            "gaussian": Checkpoints(measures.gaussian(o, count, seed), "gaussian"),
        }

    def noise_as_good(self, accuracy: float, count: int = 20, seed: int = 0) -> float:
        """The largest noise scale whose networks still reach `accuracy` on average; 0 if none does."""
        found = 0.0
        for scale in NOISE_SCALES:
            noised = Checkpoints(measures.noised(self.originals.vectors, count, scale, seed), "noise")
            if float(self.evaluate(noised).mean()) < accuracy:
                break
            found = scale
        return found

    def predict(self, vector: Tensor, picture: Image.Image) -> Tensor:
        """Probabilities (classes,) that one checkpoint, (D,), gives for any picture or drawing."""
        return self.predict_prepared(vector, datasets.prepare(self.data.name, picture))

    @torch.inference_mode()
    def predict_prepared(self, vector: Tensor, x: Tensor) -> Tensor:
        """The same for a picture that is prepared already, (1, C, H, W)."""
        evaluator = Evaluator(self.network, self.zoo.collection.layout, x, torch.zeros(1, dtype=torch.int64))
        return evaluator.logits(vector[None])[0, 0].softmax(0)

    def save_checkpoint(self, vector: Tensor, path: Path) -> None:
        """Writes one checkpoint, (D,), as the whole network's state dict in safetensors."""
        c = self.zoo.collection
        facts = {"network": c.network, "data": c.data, "generated": ", ".join(c.layout.names), "zoo": self.name}
        weights.write_safetensors(path, state_dict(c, vector), facts)
