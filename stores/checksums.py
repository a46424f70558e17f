"""CRC-32C, at the speed of the memory: of bytes, of bytes as they come, of files."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np

BLOCK_BYTES = 2**20  # what is read at a time to be checked: stays in the processor's cache


def checksum(data: memoryview | bytes | bytearray, begun: int = 0) -> int:
    """CRC-32C of bytes; ``begun`` is that of the bytes before them."""
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False  # the C implementation takes read-only buffers alone
    return int(google_crc32c.extend(begun, view))


def file_checksum(path: Path) -> int:
    """CRC-32C of a file's bytes, a few at a time. Raises OSError."""
    crc = 0
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = checksum(memoryview(buffer)[:count], crc)
    return crc
