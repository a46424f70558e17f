"""Many files of equal size as one array in memory, without a copy: each is mapped where the one before it ends.

Uncompressed chunks lie on disk as they lie in memory, so a whole layer, however large, becomes one NumPy array: reading
random rows of it costs what it costs with a single file. Needs a system with POSIX's ``mmap`` and files of whole pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MOST_FILES = 32_768  # half of what Linux lets a process map by default
_FIXED, _NORESERVE = 0x10, 0x4000
_WILLNEED = 3
_FAILED = ctypes.c_void_p(-1).value


def can_map(size: int, count: int) -> bool:
    """Whether ``count`` files of ``size`` bytes can be mapped one behind the other."""
    return sys.platform == "linux" and size > 0 and size % mmap.PAGESIZE == 0 and 0 < count <= MOST_FILES


class Mapping:
    """``files`` mapped one behind the other: ``array`` (their bytes, uint8).

    It may be written to, as torch wants of what it shares; nothing written reaches the files. The mapping goes when the
    last view of the array does. Raises OSError when a file is missing or of another size.
    """

    def __init__(self, files: Sequence[Path], size: int) -> None:
        total = len(files) * size
        address = _mmap(None, total, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1)
        self.files, self.address, self.size = files, address, size
        buffer = (ctypes.c_uint8 * total).from_address(address)
        unmap = weakref.finalize(buffer, _libc().munmap, ctypes.c_void_p(address), ctypes.c_size_t(total))
        unmap.atexit = False  # the system does it then, when no thread can be reading any more
        for k, file in enumerate(files):
            handle = os.open(file, os.O_RDONLY)
            try:
                found = os.fstat(handle).st_size
                if found != size:
                    raise OSError(f"'{file}' has {found} bytes instead of {size}")
                flags = mmap.MAP_PRIVATE | _FIXED | _NORESERVE
                _mmap(address + k * size, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, handle)
            finally:
                os.close(handle)
        self.array: np.ndarray = np.frombuffer(memoryview(buffer), np.uint8)

    def will_need(self, file: int) -> None:
        """Have the system begin to read one file ahead."""
        _libc().madvise(
            ctypes.c_void_p(self.address + file * self.size), ctypes.c_size_t(self.size), ctypes.c_int(_WILLNEED)
        )


def _mmap(address: int | None, size: int, protection: int, flags: int, handle: int) -> int:
    found = _libc().mmap(ctypes.c_void_p(address), ctypes.c_size_t(size), protection, flags, handle, ctypes.c_int64(0))
    if found in (None, _FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    return libc
