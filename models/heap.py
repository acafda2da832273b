"""Freed memory goes back to the system. glibc keeps what many threads freed, which grows for as long as people come."""

from __future__ import annotations

import ctypes
from functools import cache

ARENAS = 2  # heaps that threads share; by default glibc makes eight for each core
_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_heaps() -> bool:
    """Lets all threads share few heaps. To be called before there are threads. False where there is no glibc."""
    libc = _glibc()
    return libc is not None and libc.mallopt(_M_ARENA_MAX, ARENAS) == 1


def give_back() -> bool:
    """Gives free pages back to the system. False where there is no glibc, or nothing to give."""
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except TypeError:  # Windows
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
