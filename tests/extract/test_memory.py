"""What a forward pass frees is used again while an extraction lasts, and handed back after it."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource
import numpy as np
from extract.memory import keep_freed_memory

SIZE = 100 * 2**20

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(SIZE, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

usual, before = faults(10), resident()
with keep_freed_memory():
    faults(1)
    again, kept = faults(10), resident() - before
print(usual, again, kept / SIZE, (resident() - before) / SIZE, faults(10))
"""


def test_pages_are_fetched_once_and_handed_back() -> None:
    """In a process of its own: how full the heap of this one is depends on the tests before."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    usual, again, kept, left, after = map(float, ended.stdout.split())
    assert again < usual / 5
    assert kept > 0.5
    assert left < 0.5
    assert after > again  # as it was
