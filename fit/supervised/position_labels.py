"""Labels of positions: from the concept dataset that a store was made from, or from a synthetic store's own truth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from extract.datasets import open_concepts
from extract.labels import Alignment, ImageLabels, align, labels_ahead
from extract.video_rows import expanded
from stores.attachments import read_truth
from stores.errors import DatasetError, MismatchError, UsageError
from stores.readers import LayerReader


class LabelledImages(Protocol):
    """Labels of the images of one store that a method may learn from; L of them, ``names`` and ``numbers`` in order.

    ``images`` (n,): their rows in the store, ascending. ``of(images)``: for some of them, ``present`` (n, P, L) bool,
    whether a label is at a position, and ``annotated`` (n, L) bool, whether the image is annotated in its category:
    where it is not, the label's absence means nothing.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def numbers(self) -> Sequence[int]: ...
    @property
    def images(self) -> np.ndarray: ...

    def of(self, images: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Labels(Protocol):
    """A source of labels for a store's positions, which a user passes to a method."""

    def at(self, reader: LayerReader) -> LabelledImages:
        """The labels at the positions of a layer. Raises MismatchError when they do not belong to the store."""
        ...


class ConceptLabels:
    """The label maps of a concept dataset, brought to a layer's grid; only images of the split ``train`` are given.

    Parameters
    ----------
    data : its folder, of any kind that ``extract.datasets.open_concepts`` reads.

    Raises what ``open_concepts`` raises.
    """

    def __init__(self, data: str | Path) -> None:
        self.source = open_concepts(data)

    def at(self, reader: LayerReader) -> LabelledImages:
        dataset = reader.store.provenance.get("dataset", {})
        if dataset.get("digest") != expanded(self.source, dataset.get("rows") or {}).digest:
            raise MismatchError(
                f"The store '{reader.store.path}' was not made from the images in '{self.source.root}', so they say nothing "
                f"of its positions. Make one that is: extract --data {self.source.root} …"
            )
        return _ConceptImages(reader, align(reader.store, self.source))


class _Packed(NamedTuple):
    """An image's labels: columns (l,), bits (l, ⌈P / 8⌉), annotated (L,)."""

    columns: np.ndarray
    bits: np.ndarray
    annotated: np.ndarray


class _ConceptImages:
    """Each label map is decoded once, and stored as bits of the l labels that the image shows: l · P / 8 bytes."""

    def __init__(self, reader: LayerReader, alignment: Alignment) -> None:
        self.reader, self.alignment = reader, alignment
        source, rows = alignment.source, alignment.rows
        self.names = [label.name for label in source.labels]
        self.numbers = [label.number for label in source.labels]
        of_train = (r for r in reader.image_indices.tolist() if r in rows and source.split(rows[r]) == "train")
        self.images = np.array(list(of_train), np.int64)
        if not len(self.images):
            raise DatasetError(
                f"{source.listing} has no image of the split 'train' in the store '{reader.store.path}': "
                "labels are learnt on train. Extract more images, or set their split."
            )
        if not reader.spec.sampled and reader.positions != reader.spec.grid_positions:
            raise UsageError("Positions outside the image's grid have no labels: open the layer without its prefix.")
        self._column = {number: k for k, number in enumerate(self.numbers)}
        self._category = [label.category for label in source.labels]
        self._packed: dict[int, _Packed] = {}

    def of(self, images: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = [int(row) for row in images]
        source, new = self.alignment.source, [row for row in rows if row not in self._packed]
        numbers = [self.alignment.rows[row] for row in new]
        found = labels_ahead(source, numbers, self.reader.grid, self.alignment.box_of, self.reader.time)
        with closing(found) as ahead:
            self._packed |= {row: self._pack(row, labels) for row, labels in zip(new, ahead, strict=True)}
        p = self.reader.positions
        present = np.zeros((len(rows), p, len(self.names)), bool)
        annotated = np.zeros((len(rows), len(self.names)), bool)
        for k, row in enumerate(rows):
            packed = self._packed[row]
            present[k][:, packed.columns] = np.unpackbits(packed.bits, axis=1, count=p).astype(bool).T
            annotated[k] = packed.annotated
        return present, annotated

    def _pack(self, row: int, labels: ImageLabels) -> _Packed:
        maps = labels.maps[:, self.reader.places(row)] if self.reader.spec.sampled else labels.maps
        columns = np.array([self._column[int(n)] for n in labels.numbers], np.int64)
        annotated = np.array([category in labels.categories for category in self._category])
        return _Packed(columns, np.packbits(maps, axis=1), annotated)


class TruthImages:
    """The concepts of a synthetic store, present or not at each position; every image is annotated in all of them.

    Raises UsageError for a store without such a truth; ``method`` is for the message.
    """

    def __init__(self, reader: LayerReader, method: str) -> None:
        try:
            present = read_truth(reader.store.path).present
        except MismatchError as error:
            raise UsageError(
                f"The method '{method}' learns from labels, and the store '{reader.store.path}' brings none: only stores made by "
                "`eddp synthetic` do. Give the concept dataset that the store was made from: --concepts DIR "
                "(in Python labels=ConceptLabels(DIR))."
            ) from error
        concepts = present.shape[1]
        self.names = [f"concept {i}" for i in range(concepts)]
        self.numbers = list(range(concepts))
        self.images = reader.image_indices
        self._present = present.reshape(-1, reader.spec.positions, concepts)

    def of(self, images: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        present = self._present[np.asarray(images, np.int64)]
        return present, np.ones((len(present), len(self.names)), bool)
