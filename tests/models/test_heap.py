"""In a process of its own: what glibc does with memory depends on all that happened before."""

import subprocess
import sys

import pytest

from models import heap

SCRIPT = """
import ctypes, psutil
from models import heap
assert heap.share_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
megabytes = lambda: psutil.Process().memory_info().rss / 1e6
blocks = [libc.malloc(100_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
full = megabytes()
for block in blocks[:-1]:  # the last one holds the rest below it
    libc.free(block)
assert megabytes() > full - 50, "the C library gave it back by itself"
assert heap.give_back()
print(full - megabytes())
"""

KEEPING = """
import ctypes, resource
from models import heap
assert heap.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(100_000_000)
    ctypes.memset(block, 1, 100_000_000)
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not heap.share_heaps(), reason="needs glibc")
def test_freed_memory_goes_back_to_the_system():
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert float(told.stdout) > 180


@pytest.mark.skipif(not heap.share_heaps(), reason="needs glibc")
def test_kept_memory_is_used_again_without_new_pages():
    told = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    first, second = map(int, told.stdout.split())
    assert second < 10 < first
