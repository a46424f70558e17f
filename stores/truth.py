"""The truth kept with a synthetic store: which concepts are where, how much of each, and along which directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stores.attachments import read_attachment
from stores.errors import MismatchError
from stores.readers import LayerReader


@dataclass(frozen=True)
class Truth:
    """``signals`` (C, I*) of unit norm, ``values`` α (N·P, I*), ``present`` (N·P, I*) bool."""

    signals: np.ndarray
    values: np.ndarray
    present: np.ndarray


def read_truth(reader: LayerReader) -> Truth:
    """The truth kept with a synthetic store.

    Raises MismatchError for a store without one, CorruptStoreError when it is damaged.
    """
    found = read_attachment(reader.store.path / "truth.safetensors")
    if found is None:
        raise MismatchError(
            f"The store '{reader.store.path}' has no ground truth: --ground-truth is for stores made by `eddp synthetic`."
        )
    signals, values, present = (found[0][name] for name in ("signals", "values", "present"))
    concepts = signals.shape[1]
    return Truth(signals, values.reshape(-1, concepts), present.reshape(-1, concepts).astype(bool))
