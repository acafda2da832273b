"""What becomes of freed memory.

glibc keeps what many threads freed, which grows for as long as people come. Of what is large it keeps nothing, so that
training, which asks for the same sizes at every step, waits for empty pages.
"""

from __future__ import annotations

import ctypes
from functools import cache

ARENAS = 2  # heaps that threads share; by default glibc makes eight for each core
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def share_heaps() -> bool:
    """Lets all threads share few heaps. To be called before there are threads. False where there is no glibc."""
    libc = _glibc()
    return libc is not None and libc.mallopt(_M_ARENA_MAX, ARENAS) == 1


def give_back() -> bool:
    """Gives free pages back to the system. False where there is no glibc, or nothing to give."""
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


def keep() -> bool:
    """Keeps freed memory for what is asked for next. To be called before there are threads. False where there is no
    glibc. For a process that does one thing for long, such as training.
    """
    libc = _glibc()
    limits = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
    return libc is not None and all(libc.mallopt(name, value) == 1 for name, value in limits.items())


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except TypeError:  # Windows
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
