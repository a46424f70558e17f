"""Which of the model's classes a dataset's class folders are."""

from __future__ import annotations

import numpy as np
import pytest

from extract.classes import class_numbers, image_classes
from stores.activations import ActivationStore
from stores.errors import MismatchError


@pytest.mark.parametrize(
    ("names", "model", "classes", "wanted"),
    [
        (["dog", "cat"], ["cat", "cow", "dog"], 3, [2, 0]),  # by name, some of them
        (["Night City"], ["beach", "night_city"], 2, [1]),  # however it is spelled
        (["n01", "n02", "n03"], ["tench", "goldfish", "shark"], 3, [0, 1, 2]),  # by order
        (["n01", "n02"], None, 2, [0, 1]),
        (["n01", "n02"], ["tench", "goldfish", "shark"], 3, None),
        (["beach", "city", "farn"], ["farm", "city", "beach"], 3, None),  # misspelled: by order would be wrong
        (["dog"], ["crane", "dog", "crane"], 3, [1]),  # as ImageNet has it
        (["crane", "dog"], ["crane", "dog", "crane"], 3, None),
        (["a"], ["a", "A"], 2, None),  # two classes of one name tell nothing
        ([], ["a"], 1, []),
        (None, ["a"], 1, []),
    ],
)
def test_by_name_or_by_order(names: list[str], model: list[str], classes: int, wanted: list[int] | None) -> None:
    found = class_numbers(names, model, classes)
    assert (None if found is None else found.tolist()) == wanted


def test_classes_of_a_store(make_store, tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = np.zeros((3, 1, 2), np.float32)
    dataset = {"path": "d", "class_names": ["p", "q", "r"]}
    store = make_store(
        tmp_path / "a.zarr", x, grid=(1, 1), class_names=["p", "q"], provenance={"model": "m", "dataset": dataset}
    )
    with pytest.raises(MismatchError, match="3: p, q, r.*2: p, q"):
        image_classes(store)
    dataset = {"path": "d", "class_names": None}
    store = make_store(tmp_path / "b.zarr", x, grid=(1, 1), provenance={"model": "m", "dataset": dataset})
    assert image_classes(ActivationStore.open(store.path)).tolist() == [-1, -1, -1]
