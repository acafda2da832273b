"""Pictures as 16 codes of 512: the miniature's part of SEED's tokenizer (AnyGPT, section 3.1; specification 5.1).

As SEED's codes do, these say what is drawn and in which colours, not where in the frame: the encoder is trained to
ignore place, size, tilt and mirroring, and the decoder draws the thing upright and centred on white, in one vendor's
hand whoever drew what was read. Unlike SEED's 32 codes they are read in a 4 x 4 grid, and a plain decoder makes the
picture, without diffusion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor, nn
from torch.nn import functional as F

from models.anygpt import checkpoint
from models.anygpt.embedded.layout import IMAGE_CODES, LAYOUT
from models.errors import BadInput
from models.images import read_image
from models.weights import read_safetensors

FILE = "image.safetensors"
READ_SIDE, DRAWN_SIDE = 64, 128
WIDTH = 256  # channels at 4 x 4
CODE_WIDTH = 16  # few, so that all codes are used (ViT-VQGAN, section 3.2)
HEADS = 4
STRIP, STROKES = 8, 64  # side of a patch of the decoder, principal patches
PATCHES = (DRAWN_SIDE // STRIP) ** 2
RANK, HIDDEN = 112, 512  # principal pictures, hidden units of the decoder
MARGIN = 1 / 32  # of the frame, around what is drawn
BACKGROUND = 24  # how far from the corner's colour a pixel still counts as background


class ImageCodec(nn.Module):
    """Encoder, codebook and decoder; in evaluation mode everything is deterministic."""

    def __init__(self) -> None:
        super().__init__()
        assert LAYOUT.image is not None
        self.encoder = Encoder()
        self.codebook = nn.Buffer(F.normalize(torch.randn(LAYOUT.image.size, CODE_WIDTH), dim=1))
        self.decoder = Decoder()

    @torch.inference_mode()
    def encode(self, picture: str | Path | bytes | Image.Image | np.ndarray) -> np.ndarray:
        """Codes int64 (1, 16), row by row, of anything `models.images.read_image` takes; it raises `BadInput`."""
        pixels = torch.from_numpy(np.asarray(framed(read_image(picture), READ_SIDE)).copy())
        return self.codes(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1).numpy()

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> Image.Image:
        """The 128 x 128 RGB picture of codes (1, 16). Raises `BadInput` for another shape or codes out of range."""
        codes = np.asarray(codes)
        if codes.shape != (1, IMAGE_CODES) or codes.dtype.kind not in "iu":
            raise BadInput(f"A picture is {IMAGE_CODES} whole numbers in one row; these have shape {codes.shape}.")
        if codes.min() < 0 or codes.max() >= len(self.codebook):
            raise BadInput(f"Picture codes are 0 to {len(self.codebook) - 1}; one of these is not.")
        drawn = self.decoder(self.codebook[torch.from_numpy(codes.astype(np.int64))])[0]
        pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def codes(self, pictures: Tensor) -> Tensor:
        """(B, 3, 64, 64) in -1..1 to codes (B, 16) int64."""
        return nearest(self.encoder(pictures), self.codebook)


def load(folder: Path) -> ImageCodec:
    """The codec of `folder/image.safetensors`, float32. Raises `WeightsNotFound` and `WeightsCorrupt`."""
    state = {name: tensor.float() for name, tensor in read_safetensors(folder / FILE).items()}
    codec, _ = checkpoint.load(ImageCodec, state, FILE)
    return codec


def framed(picture: Image.Image, side: int) -> Image.Image:
    """What stands out from the background, centred in a square of the background's colour.

    picture: RGB. The background's colour is that of the corner; a picture without any is only squared.
    """
    ground = picture.getpixel((0, 0))
    assert isinstance(ground, tuple), "RGB"
    flat = Image.new("RGB", picture.size, ground)
    stands_out = ImageChops.difference(picture, flat).convert("L").point(lambda v: 255 * (v > BACKGROUND))
    content = picture.crop(stands_out.getbbox() or (0, 0, *picture.size))
    edge = max(content.size)
    square = Image.new("RGB", (round(edge * (1 + 2 * MARGIN)),) * 2, ground)
    square.paste(content, ((square.width - content.width) // 2, (square.height - content.height) // 2))
    return square.resize((side, side), Image.Resampling.BOX if edge > 4 * side else Image.Resampling.LANCZOS)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the largest cosine: (..., C) and (N, C), both of length 1, to (...) int64."""
    return (vectors.float() @ codebook.T).argmax(-1)


class Encoder(nn.Module):
    """(B, 3, 64, 64) in -1..1 to 16 vectors of length 1, (B, 16, CODE_WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            convolution(3, 32, 5, 2), convolution(32, 64, 3, 2), Residual(64), convolution(64, 128, 3, 2),
            Residual(128), Residual(128), convolution(128, WIDTH, 3, 2), Residual(WIDTH),
        )  # fmt: skip
        self.place = nn.Parameter(0.02 * torch.randn(IMAGE_CODES, WIDTH))
        self.mix = mixer()
        self.project = nn.Linear(WIDTH, CODE_WIDTH)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, 64, 64) to (B, 16, WIDTH)."""
        return self.mix(self.convolutions(pictures).flatten(2).transpose(1, 2) + self.place)

    def forward(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.project(self.features(pictures)).float(), dim=-1)


class Decoder(nn.Module):
    """16 code vectors (B, 16, CODE_WIDTH) to (B, 3, 128, 128), about -1..1.

    A perceptron says how much of each of RANK principal pictures there is; their sum is written in PATCHES patches of
    STRIP x STRIP pixels, each a mixture of STROKES principal patches. That is far quicker to train than convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(IMAGE_CODES * CODE_WIDTH, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, RANK))
        self.pictures = nn.Linear(RANK, PATCHES * STROKES)
        self.strokes = nn.Linear(STROKES, 3 * STRIP**2)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.drawn(self.read(vectors.flatten(1)))

    def drawn(self, shares: Tensor) -> Tensor:
        """Shares of the principal pictures (B, RANK) to (B, 3, 128, 128)."""
        patches = self.strokes(self.pictures(shares).unflatten(1, (PATCHES, STROKES)))
        return F.fold(patches.transpose(1, 2), DRAWN_SIDE, STRIP, stride=STRIP)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a straight path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.inner = nn.Sequential(convolution(channels, channels, 3, 1), last, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.inner(x))


def convolution(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    """With normalisation and SiLU."""
    weights = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(weights, nn.BatchNorm2d(after), nn.SiLU())


def mixer() -> nn.TransformerEncoderLayer:
    """Attention among the 16 places."""
    return nn.TransformerEncoderLayer(
        WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation=F.silu, batch_first=True, norm_first=True
    )
