"""Names and labels of millions of images in a few flat arrays: what a source hands to each decoding process."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import overload

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

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = range(len(self))[index(i)]
        return self._blob[self._ends[k] : self._ends[k + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[k] for k in range(len(self)))


class Items(Sequence[tuple[str, int]]):
    """Pairs of name and label: ``names`` as ``Names``, ``labels`` (N,) int32 with -1 for none."""

    def __init__(self, items: Iterable[tuple[str, int]]) -> None:
        labels = array("i")

        def names() -> Iterator[str]:
            for name, label in items:
                labels.append(label)
                yield name

        self.names = Names(names())
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, i: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, i: slice) -> list[tuple[str, int]]: ...
    def __getitem__(self, i: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return self.names[i], int(self.labels[i])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self.names, self.labels.tolist(), strict=True)
