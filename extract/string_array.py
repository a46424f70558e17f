"""Names of millions of images in two flat arrays: what a source hands to each decoding process."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any

import numpy as np


class Names(Sequence[str]):
    """Strings in one blob of bytes: a million take their length and eight bytes each, and are decoded when asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        blob, ends = bytearray(), array("q", [0])
        for name in names:
            blob += name.encode("utf-8", "surrogateescape")  # names that are not UTF-8 on disk come back as they were
            ends.append(len(blob))
        self._blob, self._ends = bytes(blob), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = range(len(self))[index(i)]
        return self._blob[self._ends[k] : self._ends[k + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[k] for k in range(len(self)))
