"""The specification's deterministic numbers (Appendix A)."""

import numpy as np


def pseudo_random(count: int, j: int) -> np.ndarray:
    """u(i, j) in [-1, 1) for i = 0 ... count - 1, integer arithmetic modulo 2^32."""
    mask = np.uint64(0xFFFFFFFF)
    h = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(j * 40503)) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(2246822519)) & mask
    h ^= h >> np.uint64(13)
    return h.astype(np.float64) / 2**31 - 1
