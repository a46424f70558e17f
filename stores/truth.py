"""The truth kept with a synthetic store: which concepts are where, how much of each, and along which directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from stores.derived import is_unchecked, read_derived
from stores.errors import CorruptStoreError, MismatchError
from stores.readers import LayerReader


@dataclass(frozen=True)
class Truth:
    """``signals`` (C, I*) of unit norm, ``values`` α (N·P, I*), ``present`` (N·P, I*) bool."""

    signals: np.ndarray
    values: np.ndarray
    present: np.ndarray


def read_truth(reader: LayerReader) -> Truth:
    """The truth kept with a synthetic store.

    Raises MismatchError for a store without one, CorruptStoreError naming a file of it that is damaged.
    """
    folder = reader.store.path / "truth"
    found = (_without_checksums(folder), {}) if is_unchecked(folder) else read_derived(folder)
    if found is None:
        raise MismatchError(
            f"The store '{reader.store.path}' has no ground truth: --ground-truth is for stores made by `eddp synthetic`."
        )
    signals, values, present = (found[0][name] for name in ("signals", "values", "present"))
    concepts = signals.shape[1]
    return Truth(signals, values.reshape(-1, concepts), present.reshape(-1, concepts).astype(bool))


def _without_checksums(folder: Path) -> dict[str, np.ndarray]:
    """The truth as stores of earlier versions hold it: plain arrays of which nothing more is known."""
    try:
        group = zarr.open_group(str(folder), mode="r")
        return {name: np.asarray(group[name][:]) for name in ("signals", "values", "present")}  # type: ignore[index]
    except Exception as error:
        raise CorruptStoreError(
            f"The truth in '{folder}' cannot be read ({error}). Make the store again with `eddp synthetic --overwrite`."
        ) from error
