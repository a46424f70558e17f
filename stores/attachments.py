"""Arrays stored next to a store's activations, each set in one safetensors file with a digest: statistics, sketches, a synthetic store's truth.

The manifest does not cover them: they come later, or in addition. A file is complete or absent, also when several processes write it at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stores.errors import CorruptStoreError, MismatchError, StoreError
from stores.tensors import read_tensors, reading, write_tensors

log = logging.getLogger(__name__)
KEY = "eddp_attachment"


def write_attachment(file: Path, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Write arrays, of any shape and numeric or boolean dtype, and JSON values. Raises StoreError when the disk is full or read-only."""
    write_tensors(file, KEY, arrays, attributes)


def read_attachment(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays by name and the attributes; None when there is no such file. Raises CorruptStoreError when it is damaged."""
    if not file.exists():
        return None
    with reading(file, "attachment of a store", "Restore it from a copy, or make it again.", CorruptStoreError):
        return read_tensors(file, KEY)


def attachment_problem(file: Path) -> str | None:
    """What is wrong with a file that is there, without a full stop, or None."""
    try:
        read_attachment(file)
    except StoreError as error:
        return str(error).rstrip(".")
    return None


def read_cache(file: Path, key: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """What ``write_cache`` wrote with the same key, or None: never an error, for it can be computed again."""
    try:
        found = read_attachment(file)
    except StoreError as error:
        log.warning("Computed again: %s", error)
        return None
    return found if found and found[1].get("key") == key else None


def write_cache(file: Path, key: dict[str, Any], arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Write what can be computed again; a failure to write is only logged."""
    try:
        write_attachment(file, arrays, {**attributes, "key": key})
    except (StoreError, OSError) as error:
        log.info("'%s' is not stored: %s", file, error)


@dataclass(frozen=True)
class Truth:
    """``signals`` (C, I*) of unit norm, ``values`` α (N·P, I*), ``present`` (N·P, I*) bool."""

    signals: np.ndarray
    values: np.ndarray
    present: np.ndarray


def read_truth(path: Path) -> Truth:
    """The truth stored with the synthetic store at ``path``.

    Raises MismatchError for a store without one, CorruptStoreError when it is damaged.
    """
    found = read_attachment(path / "truth.safetensors")
    if found is None:
        raise MismatchError(f"'{path}' has no ground truth: --ground-truth is for stores of `eddp synthetic`.")
    signals, values, present = (found[0][name] for name in ("signals", "values", "present"))
    concepts = signals.shape[1]
    return Truth(signals, values.reshape(-1, concepts), present.reshape(-1, concepts).astype(bool))
