"""Which of the model's classes each image of a store is labelled with, whatever the dataset calls them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stores.activations import ActivationStore
from stores.errors import MismatchError


def image_classes(store: ActivationStore) -> np.ndarray:
    """(N,) int64 class of each image of a store among the model's K, −1 where it is not known.

    A dataset's class names that are all names of the model's classes are taken by name; if none is, as many classes as the model has
    are taken in order, as torchvision's folders and ImageNet's wnids are. Raises MismatchError where neither holds.
    """
    stored = store.labels[: store.n_images].astype(np.int64)
    dataset = store.provenance.get("dataset", {})
    number = class_numbers(dataset.get("class_names"), store.class_names, int(store.array("images/logits").shape[1]))
    if number is None:
        names = dataset.get("class_names") or []
        raise MismatchError(
            f"The class folders of '{dataset.get('path', store.path)}' ({_some(names)}) are not the classes of the model "
            f"({_some(store.class_names or [])}): name them alike, or give as many, in the model's order."
        )
    known = (stored >= 0) & (stored < len(number))
    return np.where(known, number[np.where(known, stored, 0)], -1) if len(number) else np.full(len(stored), -1)


def class_numbers(names: Sequence[str] | None, model: Sequence[str] | None, classes: int) -> np.ndarray | None:
    """(n,) numbers among the model's classes of a dataset's n classes, by name or by order; None where neither is sure."""
    if not names:
        return np.zeros(0, np.int64)
    places: dict[str, list[int]] = {}
    for k, name in enumerate(model or []):
        places.setdefault(_plain(name), []).append(k)
    known = [_plain(name) in places for name in names]
    # ImageNet has two cranes and two maillots: a folder of that name may be either
    if all(known) and all(len(places[_plain(name)]) == 1 for name in names):
        return np.array([places[_plain(name)][0] for name in names], np.int64)
    # one name that is known and one that is not: a class by another name, or misspelled, whose place nobody can tell
    return np.arange(classes, dtype=np.int64) if len(names) == classes and not any(known) else None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _some(names: Sequence[str]) -> str:
    return f"{len(names)}: " + ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "without names"
