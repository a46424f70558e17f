"""Which of the model's classes a dataset's classes are."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.classes import as_class_names, image_classes, imagenet_classes, map_classes, read_class_names
from stores.errors import MismatchError, UsageError
from stores.store import ActivationStore

WORDS = list(imagenet_classes().values())


@pytest.mark.parametrize(
    ("names", "model", "classes", "wanted"),
    [
        (["dog", "cat"], ["cat", "cow", "dog"], 3, [2, 0]),  # by name, some of them
        (["Night City"], ["beach", "night_city"], 2, [1]),  # however it is spelled
        (["n01440764 tench"], ["goldfish, Carassius auratus", "tench, Tinca tinca"], 2, [1]),  # by the first of several
        (["n01443537", "n01440764"], ["n01440764 tench", "n01443537 goldfish"], 2, [1, 0]),  # by WordNet number
        (["n02085620-Chihuahua", "n01440764"], WORDS, 1000, [151, 0]),
        (["n02085620-Chihuahua"], None, 1000, [151]),
        (["n01440764", "n99999999"], WORDS, 1000, None),
        (["0", "1", "2"], ["tench", "goldfish", "shark"], 3, [0, 1, 2]),  # by number
        (["2", "0", "1"], None, 3, [2, 0, 1]),
        (["00", "01", "02"], None, 3, [0, 1, 2]),
        (["1", "0"], ["1", "0"], 2, [0, 1]),  # names that are digits are names
        (["0", "1"], ["tench", "goldfish", "shark"], 3, None),  # not all of them
        (["n01", "n02"], None, 2, [0, 1]),  # by order
        (["Bee", "ant"], None, 2, None),  # as text Bee is first, without regard to case it is not
        (["a", "b"], ["x", "y"], 2, None),  # by order would be a guess
        (["n01", "n02"], ["tench", "goldfish", "shark"], 3, None),
        (["beach", "city", "farn"], ["farm", "city", "beach"], 3, None),  # misspelled: by order would be wrong
        (["dog"], ["crane", "dog", "crane"], 3, [1]),
        (["crane", "dog"], ["crane", "dog", "crane"], 3, None),
        (["a"], ["a", "A"], 2, None),  # two classes of one name tell nothing
        ([], ["a"], 1, []),
        (None, ["a"], 1, []),
    ],
)
def test_what_decides(names: list[str] | None, model: list[str] | None, classes: int, wanted: list[int] | None) -> None:
    found = map_classes(names, model, classes)
    assert (None if found.numbers is None else found.numbers.tolist()) == wanted


def test_folders_in_an_order_of_their_own() -> None:
    names = ["g1", "g10", "g2"]  # as torchvision reads them
    assert map_classes(names, None, 3).refused
    assert "g1, g10, g2 as text, g1, g2, g10 by number" in map_classes(names, None, 3).how
    assert map_classes(names, None, 3, model="timm:resnet18").numbers.tolist() == [0, 2, 1]
    assert map_classes(names, None, 3, kind="places365").numbers.tolist() == [0, 1, 2]
    assert not map_classes(names, None, 4).refused  # not the network's classes


@pytest.mark.parametrize(("largest", "wanted"), [(2, [0, 1, 2]), (1, None), (3, None), (-1, [])])
def test_labels_without_names_are_numbers_if_there_are_as_many(largest: int, wanted: list[int] | None) -> None:
    found = map_classes(None, ["a", "b", "c"], 3, largest=largest)
    assert (None if found.numbers is None else found.numbers.tolist()) == wanted
    assert found.doubt == (largest == 2)


@pytest.mark.parametrize(
    "named",
    [
        ["a", "b"], ("a", "b"), np.array(["a", "b"]), {0: "a", 1: "b"}, {"1": "b", "0": "a"}, {"b": 1, "a": 0},
        OrderedDict(b=np.int64(1), a=np.int64(0)), iter(["a", "b"]),
    ],
)  # fmt: skip
def test_class_names_in_any_form(named: Any) -> None:
    assert as_class_names(named, "it") == ["a", "b"]


@pytest.mark.parametrize("named", ["ab", {"a", "b"}, {"a": 1, "b": 2}, {0: "a", 2: "b"}, {}, 3, {"a": 0, "b": 0}])
def test_class_names_in_no_order_are_refused(named: Any) -> None:
    with pytest.raises(UsageError, match=r"^it must"):
        as_class_names(named, "it")


def test_numbers_as_names_and_as_numbers_are_distinguished() -> None:
    text_order = {name: k for k, name in enumerate(sorted(map(str, range(12))))}  # class_to_idx of ImageFolder
    assert as_class_names(text_order, "it") == ["0", "1", "10", "11", *map(str, range(2, 10))]
    assert as_class_names({k: name for name, k in text_order.items()}, "it")[2] == "10"
    with pytest.raises(UsageError):
        as_class_names({"0": "1", "1": "0"}, "it")
    assert as_class_names({"names": ["a", "b"]}, "it") == ["a", "b"]
    assert as_class_names([b"a", "b"], "it") == ["a", "b"]
    with pytest.raises(UsageError, match="texts, got dict"):
        as_class_names([{"id": 0}], "it")


def test_class_names_of_files(tmp_path: Path) -> None:
    file = tmp_path / "names"
    for text in (
        "a\nb c\n",
        "\ufeffa\r\nb c\r\n\r\n",
        '["a", "b c"]',
        '{"0": ["a"], "1": ["b", "c"]}',
        '{"b c": 1, "a": 0}',
    ):
        file.write_bytes(text.encode())
        assert read_class_names(file) == ["a", "b c"]
    for data in (b"", b"\n", b"a\n\nb", b"\xff\xfe", b"{", b"[]", b"[1, 2"):
        file.write_bytes(data)
        with pytest.raises(UsageError, match="--class-names"):
            read_class_names(file)


def test_classes_of_a_store(make_store, tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = np.zeros((3, 1, 2), np.float32)
    dataset = {"path": "d", "class_names": ["p", "q", "r"]}
    store = make_store(
        tmp_path / "a.zarr", x, grid=(1, 1), class_names=["p", "q"], provenance={"model": "m", "dataset": dataset}
    )
    with pytest.raises(
        MismatchError, match=r"2 of 3 names are names of the network's 2 classes \(p, q\).*--class-names"
    ):
        image_classes(store)
    dataset = {"path": "d", "class_names": None}
    store = make_store(tmp_path / "b.zarr", x, grid=(1, 1), provenance={"model": "m", "dataset": dataset})
    assert image_classes(ActivationStore.open(store.path)).tolist() == [-1, -1, -1]
