"""The one-dimensional convolutional autoencoder of the 2025 code (specification B, right column).

Two of its faults are mended (E.2): the target is the clean vector, and decoding happens in eval mode, so a
vector decodes to the same network whichever others are decoded beside it. The second head (log-variance), which
the published loss multiplies by zero, is built so that the parameter count is the published one, and is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.pdiff.activation import FastElu

CHANNELS = (64, 128, 256, 256, 32)
KERNEL = 7


class Autoencoder(nn.Module):
    """(B, L) <-> (B, d). At L = 2048, d = 128 and the published channels: 2 199 201 parameters.

    Args:
        length: L, a multiple of 32.
        latent: d.
        channels: of the five halving convolutions; the decoder mirrors them.
    """

    def __init__(self, length: int, latent: int = 128, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        if length % 32 or len(channels) != 5:
            raise ValueError(f"length must be a multiple of 32 with five channel counts; got {length}, {channels}")
        first, *_, last = channels
        flat = last * length // 32
        down: list[nn.Module] = []
        for i, o in zip((1, *channels), channels, strict=False):
            down += [nn.Conv1d(i, o, KERNEL, 2, 3), nn.BatchNorm1d(o), nn.LeakyReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, latent))
        self.mean, self.log_variance = nn.Linear(latent, latent), nn.Linear(latent, latent)
        self.unfold = nn.Sequential(nn.Linear(latent, flat), nn.Unflatten(1, (last, length // 32)))
        widths = (last, *channels[3:0:-1], first, first)  # 32 256 256 128 64 64
        up: list[nn.Module] = []
        for i, o in zip(widths, widths[1:], strict=False):
            up += [nn.ConvTranspose1d(i, o, KERNEL, 2, 3, 1), nn.BatchNorm1d(o), FastElu()]
        self.decoder = nn.Sequential(*up, nn.Conv1d(first, 1, KERNEL, 1, 3))

    def encode(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, d): the mean, without noise."""
        return self.mean(self.encoder(x[:, None]))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, d) -> (B, L)."""
        return self.decoder(self.unfold(latents))[:, 0]
