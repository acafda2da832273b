"""The networks' activation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FastElu(nn.Module):
    """ELU, any shape: x above zero, exp(x) - 1 below.

    PyTorch's own computes `expm1` one number at a time on a CPU, which took most of a sampling step. Near zero
    this loses what float32 loses in exp(x) - 1: at most 1.2e-7 in absolute terms.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + x.clamp(max=0).exp() - 1
