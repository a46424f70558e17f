"""Which of the model's classes a dataset's labels are, whatever names either gives them: one answer for all commands."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from extract.image_io import reason, shown
from stores.errors import MismatchError, MissingPathError, UsageError
from stores.store import ActivationStore

WNID = re.compile(r"n\d{8}")
_WNID = re.compile(r"(n\d{8})(?:[ _-]+(.*))?")  # n02085620, "n01440764 tench", n02085620-Chihuahua
_NUMBERED = ("cifar10", "places365")  # whose classes have numbers of their own, not the order of their folders
_RENAME = "Rename them, or say which class each is: --classes FILE, a line 'folder,class' each"
_LISTED = 5
_DECIDE = "Say what the network's classes are by --class-names FILE (a name a line, in its order)"


@dataclass(frozen=True)
class ClassMapping:
    """``numbers`` (n,) among the model's classes of a dataset's n classes, None where they cannot be determined.

    ``how`` they were determined, or why not; ``doubt``: whether that deserves a warning; ``refused``: whether the user has to decide.
    """

    numbers: np.ndarray | None
    how: str
    doubt: bool = False
    refused: bool = False


def map_classes(
    names: Sequence[str] | None,
    model_names: Sequence[str] | None,
    n_classes: int,
    *,
    largest: int = -1,
    kind: str = "",
    model: str = "",
) -> ClassMapping:
    """Find the number among a model's classes of each of a dataset's classes.

    In this order: by name; by WordNet number (wnid), for the 1000 classes of ImageNet; class folders that are exactly the
    numbers 0 to K-1 are these. A model without class names is assumed to have been trained on the same folders, if there are K:
    in the order in which torchvision's ImageFolder (for ``timm:`` models timm) reads them, and only where the order of the
    text and of the numbers in it agree.

    Parameters
    ----------
    names : the dataset's classes, in the order of its labels; None or empty where its images have none.
    model_names : the model's K classes in order, None where they are not known.
    n_classes : K.
    largest : the largest label of an image: labels without names are class numbers.
    kind : of the dataset; some number their classes themselves.
    model : the model as ``--model`` has it.
    """
    if not names and largest < 0:
        return ClassMapping(np.zeros(0, np.int64), "the images have no classes")
    if not names:
        if largest == n_classes - 1:
            return ClassMapping(np.arange(n_classes), "by the labels' own numbers: they have no names", doubt=True)
        return ClassMapping(None, f"labels up to {largest} without names, and the network has {n_classes} classes")
    known = _by_name(names, model_names)
    if known is not None:
        return ClassMapping(known, "by name")
    known = _by_wnid(names, model_names, n_classes)
    if known is not None:
        assumed = ", as ImageNet's 1000 classes" * (model_names is None)
        return ClassMapping(known, f"by WordNet number{assumed}", doubt=bool(assumed))
    if _are_numbers(names, n_classes):
        as_text = model_names is None and sorted(names) != sorted(names, key=int)
        how = "the folders are the class numbers" + ", not their order as text, as ImageFolder has it" * as_text
        return ClassMapping(np.array([int(name) for name in names], np.int64), how, doubt=as_text)
    if model_names is not None:
        some = sum(_plain(name) in {_plain(other) for other in model_names} for name in names)
        what = f"{some or 'none'} of {len(names)} names are names of the network's {n_classes} classes"
        # other classes than the network's are nothing unusual; almost the same ones are
        return ClassMapping(None, f"{what} ({_some(model_names)})", doubt=some > 0 or len(names) == n_classes)
    if len(names) != n_classes:
        return ClassMapping(None, f"the network has {n_classes} classes without names")
    if kind in _NUMBERED:
        return ClassMapping(np.arange(n_classes), f"by the numbers that {kind} gives its classes", doubt=True)
    order = sorted(range(len(names)), key=lambda k: _natural(names[k]))
    if order != list(range(len(names))) and not model.startswith("timm:"):
        return ClassMapping(
            None,
            f"as many as the network has, but their order is not sure: {_some(sorted(names))} as text, "
            f"{_some([names[k] for k in order])} by number and without regard to case",
            refused=True,
        )
    return ClassMapping(np.argsort(order), "by their order: the network names none to compare", doubt=True)


def folder_numbers(
    names: Sequence[str] | None,
    store: ActivationStore,
    given: Mapping[str, str],
    *,
    place: str | Path,
    largest: int = -1,
    kind: str = "",
) -> np.ndarray:
    """(n,) numbers among the classes of a store's model of a dataset's n classes, as ``map_classes`` finds them.

    ``given``: names, or numbers, of the model's classes that are meant by some of ``names`` instead.

    Raises MismatchError that lists the names without a class, and the nearest that there are.
    """
    n_classes, known = int(store.array("images/logits").shape[1]), store.class_names
    meant = [given.get(name, name) for name in names or []]
    if known is None and meant and all(name.isdecimal() and int(name) < n_classes for name in meant):
        return np.array([int(name) for name in meant], np.int64)
    if known is not None:
        own = {_plain(name) for name in known}
        meant = [
            known[int(b)] if a != b and b.isdecimal() and int(b) < n_classes and _plain(b) not in own else b
            for a, b in zip(names or [], meant, strict=True)
        ]
    each = list(dict.fromkeys(meant))  # two folders may be given the same class
    model = str(store.provenance.get("model", ""))
    found = map_classes(each, known, n_classes, largest=largest, kind=kind, model=model)
    if found.numbers is not None:
        return found.numbers[[each.index(name) for name in meant]] if meant else found.numbers
    wrong = [name for name in each if known and map_classes([name], known, n_classes).numbers is None]
    if not known or not wrong:
        raise MismatchError(
            f"The class folders of '{shown(place)}' cannot be matched with the model's: {found.how}. {_RENAME}."
        )
    listed = ", ".join(f"'{shown(name)}'{_near(name, known)}" for name in wrong[:_LISTED]) + ", …" * (
        len(wrong) > _LISTED
    )
    raise MismatchError(
        f"{len(wrong)} of the {len(each)} class folders of '{shown(place)}' are no class of the model: {listed}. {_RENAME}."
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), [one.lower() for one in known], n=3, cutoff=0.4)
    found = [next(one for one in known if one.lower() == low) for low in near]
    return f" (nearest: {', '.join(map(shown, found))})" if found else ""


def read_folder_classes(path: Path) -> dict[str, str]:
    """Class by class folder, of a CSV file with a line ``folder,class`` for each, or a JSON object.

    Raises
    ------
    MissingPathError, UsageError
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = (
            list(json.loads(text).items())
            if text.lstrip()[:1] == "{"
            else [row for row in csv.reader(text.splitlines()) if row]
        )
    except FileNotFoundError as error:
        raise MissingPathError(f"There is no file '{shown(path)}' (--classes).") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"'{shown(path)}' (--classes) cannot be read: {reason(error)}.") from error
    wrong = next((k for k, pair in enumerate(pairs) if len(pair) != 2 or not isinstance(pair[1], str | int)), None)
    if wrong is not None or not pairs:
        raise UsageError(
            f"'{shown(path)}' (--classes) must give a folder and a class in each line; see line {1 + (wrong or 0)}."
        )
    return {str(folder).strip(): str(name).strip() for folder, name in pairs}


def image_classes(store: ActivationStore, numbers: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64 class of each image of a store among the model's K, -1 where it has none (see ``map_classes``).

    ``numbers`` (n,): those of the dataset's n classes, where they are known. Raises MismatchError where the dataset's classes cannot be
    matched with the model's.
    """
    stored = store.labels[: store.n_images].astype(np.int64)
    if numbers is not None:
        return _numbers_of(stored, numbers)
    made = store.provenance
    dataset = made.get("dataset", {})
    n_classes = int(store.array("images/logits").shape[1])
    found = map_classes(
        dataset.get("class_names"), store.class_names, n_classes, largest=int(stored.max(initial=-1)),
        kind=str(dataset.get("kind", "")), model=str(made.get("model", "")),
    )  # fmt: skip
    if found.numbers is None:
        folders = f"The class folders of '{dataset.get('path', store.path)}' cannot be matched with the model's classes"
        raise MismatchError(f"{folders}: {found.how}. {_DECIDE}.")
    return _numbers_of(stored, found.numbers)


def _numbers_of(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Class numbers of labels, -1 of images without one."""
    return np.append(numbers, -1)[np.where((labels >= 0) & (labels < len(numbers)), labels, -1)]


def require_decided(found: ClassMapping, place: str | Path) -> None:
    """Raise UsageError where which classes the images have is for the user to decide."""
    if found.refused:
        raise UsageError(f"The classes of '{shown(place)}' cannot be matched with the model's: {found.how}. {_DECIDE}.")


def as_class_names(named: Any, what: str) -> list[str] | None:
    """Class names in the order of the classes, of a sequence, or of a mapping from numbers to names or from names to numbers.

    Raises
    ------
    UsageError
        ``named`` is something else, or its numbers are not 0 to K-1; ``what`` says where it is from.
    """
    if named is None:
        return None
    if isinstance(named, Mapping) and len(named) == 1 and isinstance(next(iter(named.values())), list | tuple):
        named = next(iter(named.values()))  # {"names": [...]}, as YOLO has it
    if isinstance(named, Mapping):
        keys, values = list(named), list(named.values())
        by_key, by_value = _are_numbers(keys, len(named)), _are_numbers(values, len(named))
        if by_key and by_value:  # class_to_idx of folders that are numbers: those that are no text count
            by_key, by_value = (not all(isinstance(one, str) for one in side) for side in (keys, values))
        if by_key == by_value:
            raise UsageError(f"{what} must map the numbers 0 to {len(named) - 1} to names, or names to these numbers.")
        numbers, names = (keys, values) if by_key else (values, keys)
        ordered = [name for _, name in sorted(zip(map(int, numbers), names, strict=True), key=lambda pair: pair[0])]
    elif isinstance(named, str | bytes | set | frozenset) or not isinstance(named, Iterable):
        raise UsageError(f"{what} must be names in the order of the classes, or a mapping, got {type(named).__name__}.")
    else:
        ordered = list(named)
    return [_as_text(name, what) for name in ordered]


def _as_text(name: Any, what: str) -> str:
    if isinstance(name, list | tuple):  # {"0": ["n01440764", "tench"], …}, as Keras has ImageNet's
        return " ".join(_as_text(part, what) for part in name)
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    if not isinstance(name, str | int | np.integer) or isinstance(name, bool):
        raise UsageError(f"{what} must be texts, got {type(name).__name__}.")
    return str(name)


def read_class_names(path: Path) -> list[str]:
    """Class names of a file: a name a line in the order of the classes, or JSON (see ``as_class_names``).

    Raises
    ------
    MissingPathError, UsageError
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if text.lstrip()[:1] in ("{", "[") else _lines(text)
    except FileNotFoundError as error:
        raise MissingPathError(f"There is no file '{shown(path)}' (--class-names).") from error
    except (OSError, ValueError) as error:
        what = "begins like JSON and is none" if isinstance(error, json.JSONDecodeError) else "cannot be read as text"
        raise UsageError(f"'{shown(path)}' (--class-names) {what}: {reason(error)}.") from error
    names = as_class_names(content, f"'{shown(path)}' (--class-names)") or []
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        line = names.index("") + 1 if names else 1
        raise UsageError(f"'{shown(path)}' (--class-names) must hold a name for every class: line {line} is empty.")
    return names


def _lines(text: str) -> Any:
    """A name a line; where every line begins with a number, as in ``0,night``, ``0 night`` and ``0: night``, the numbers count."""
    lines = [line.strip() for line in text.splitlines()]
    parts = [re.fullmatch(r"(\d+)(?:\s*[,;:\t]\s*|\s+)(.+)", line) for line in lines if line]
    numbered = [(part[1], part[2]) for part in parts if part]
    if numbered and len(numbered) == len(parts) and len(dict(numbered)) == len(parts):
        return dict(numbered)
    return lines


def _by_name(names: Sequence[str], model_names: Sequence[str] | None) -> np.ndarray | None:
    """The numbers of names that are all names of exactly one class of the model."""
    for key in (_plain, lambda name: _plain(_WNID.sub(r"\2", name).split(",")[0])):
        places: dict[str, list[int]] = {}
        for k, name in enumerate(model_names or []):
            places.setdefault(key(name), []).append(k)
        found = [places.get(key(name), []) for name in names]
        # lists of ImageNet's names have two cranes and two maillots: a folder of that name may be either
        if all(len(place) == 1 for place in found) and len({place[0] for place in found}) == len(names):
            return np.array([place[0] for place in found], np.int64)
    return None


def _by_wnid(names: Sequence[str], model_names: Sequence[str] | None, n_classes: int) -> np.ndarray | None:
    """The numbers of WordNet numbers: among the model's own, or of ImageNet's 1000 where the model's classes are these."""
    wnids = [match[1] for name in names if (match := _WNID.fullmatch(name))]
    if len(wnids) < len(names) or len(set(wnids)) < len(wnids):
        return None
    own = [match[1] if (match := _WNID.fullmatch(name)) else name for name in model_names or []]
    if own and set(wnids) <= set(own):
        return np.array([own.index(wnid) for wnid in wnids], np.int64)
    known = imagenet_classes()
    if n_classes != len(known) or not set(wnids) <= set(known):
        return None
    if model_names is not None:
        pairs = zip(model_names, known.values(), strict=True)
        if sum(_plain(a.split(",")[0]) == _plain(b) for a, b in pairs) < 900:
            return None
    order = list(known)
    return np.array([order.index(wnid) for wnid in wnids], np.int64)


@cache
def imagenet_classes() -> dict[str, str]:
    """WordNet number -> name of ImageNet's 1000 classes (ILSVRC2012), in the order in which models number them."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _are_numbers(values: Sequence[Any], count: int) -> bool:
    """Whether values, as text or not, are the numbers 0 to count-1, in any order, with or without leading zeros."""
    names = list(map(str, values))
    return all(name.isdecimal() for name in names) and sorted(map(int, names)) == list(range(count))


def _natural(name: str) -> list[Any]:
    """A key that sorts numbers within names by their value, and letters without regard to case: as timm reads folders."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.lower()) if part
    ]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
