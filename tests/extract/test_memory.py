"""What a forward pass frees is used again while an extraction lasts, and handed back after it."""

import ctypes
import resource
import sys

import numpy as np
import pytest

from extract.memory import memory_used_again

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
SIZE = 100 * 2**20


def faults(times: int) -> int:
    """Pages that had to be fetched for arrays of 100 MB that come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(SIZE, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def test_pages_are_fetched_once_and_handed_back() -> None:
    usual = faults(10)
    before = resident()
    with memory_used_again():
        faults(1)
        again = faults(10)
    assert again < usual / 5
    assert resident() - before < SIZE / 2
    assert faults(10) > again  # as it was


def test_it_ends_with_an_exception() -> None:
    with pytest.raises(RuntimeError), memory_used_again():
        raise RuntimeError
