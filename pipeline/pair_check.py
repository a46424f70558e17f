"""``evaluate --pairs``: a folder of pairs of images that differ in one thing, through the network, against the directions' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.attribute_pairs import agreement_of, moves_of
from evaluate.concepts import activations_on
from evaluate.direction_names import DirectionName
from extract.image_io import ENDINGS
from extract.image_source import PathSource
from pipeline.evaluation_parts import Findings, Subject
from stores.errors import DatasetError, MismatchError, MissingPathError
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import rows_to_columns

FEWEST = 6  # pairs of an attribute: of fewer, no sign flips reach a level of 5 %


def read_pairs(store: ActivationStore, folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Attribute → pairs of files without and with it, relative to the folder: ``ATTRIBUTE/NAME_a.png`` and ``ATTRIBUTE/NAME_b.png``.

    Raises MissingPathError without a folder, DatasetError for a file without its other one, and for fewer than six pairs, MismatchError for a
    synthetic store.
    """
    if "synthetic" in store.provenance:
        raise MismatchError(
            f"The store '{store.path}' is synthetic: it has no network to run over pairs of images. Leave --pairs out."
        )
    if not folder.is_dir():
        raise MissingPathError(f"There is no folder of pairs at '{folder}' (--pairs).")
    found: dict[str, list[tuple[str, str]]] = {}
    for attribute in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        sides: dict[str, dict[str, str]] = {"_a": {}, "_b": {}}
        for file in sorted(attribute.iterdir()):
            if file.suffix.lower() in ENDINGS and file.stem[-2:] in sides:
                sides[file.stem[-2:]][file.stem[:-2]] = f"{attribute.name}/{file.name}"
        if single := sorted(sides["_a"].keys() ^ sides["_b"].keys()):
            raise DatasetError(
                f"'{attribute}' (--pairs) has only one image of the pair '{single[0]}': add the other, _a without and _b with the attribute."
            )
        if len(sides["_a"]) < FEWEST:
            raise DatasetError(
                f"'{attribute}' (--pairs) has {len(sides['_a'])} pairs NAME_a.png, NAME_b.png, and a test needs {FEWEST}: add some, or remove the folder."
            )
        found[attribute.name] = [(sides["_a"][name], sides["_b"][name]) for name in sides["_a"]]
    if not found:
        raise DatasetError(
            f"'{folder}' (--pairs) has no folders: it takes ATTRIBUTE/NAME_a.png (without) and ATTRIBUTE/NAME_b.png (with)."
        )
    return found


def check_pairs_of(subject: Subject, folder: Path, names: Mapping[str, Sequence[DirectionName]], seed: int) -> Findings:
    """Compare what directions move with to what they are called (``names``, by set)."""
    pairs = read_pairs(subject.store, folder)
    files = [file for some in pairs.values() for pair in some for file in pair]
    source = PathSource(folder, [(file, -1) for file in files], kind="pairs")
    store = activations_on(
        subject.store, subject.layer, source, device=subject.device, progress=subject.progress,
        mend="Replace that image, or remove its pair, and run evaluate again.",
    )  # fmt: skip
    place = {name: i for i, name in enumerate(store.names)}
    first, last = (np.array([place[pair[k]] for some in pairs.values() for pair in some]) for k in (0, 1))
    ends = np.cumsum([len(some) for some in pairs.values()])[:-1]
    pooled = np.zeros((store.n_images, subject.store.layer(subject.layer).channels))
    for index, block in LayerReader(store, subject.layer).blocks():
        pooled[index] = block.mean(1, dtype=np.float64)
    change = pooled[last] - pooled[first]
    wanted = [attribute.replace("_", " ").casefold() for attribute in pairs]
    entries: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for name, directions in subject.sets.items():
        found = moves_of(np.split(change @ directions.filters.astype(np.float64), ends), seed)
        called = [one.short.replace("_", " ").casefold() for one in names[name]]
        named = np.array([wanted.index(one) if one in wanted else -1 for one in called])
        entries[name] = {
            "pairs": {"attributes": len(pairs), "count": len(first), **agreement_of(found.moves, named, seed).summary()}
        }
        rows += [
            {
                "directions": name, "index": i, "name": names[name][i].full, "attribute": attribute, "pairs": len(some),
                "change": float(f"{found.change[i, t]:.6g}"), "t": float(f"{found.t[i, t]:.6g}"), "p": round(float(found.p[i, t]), 4),
                "moves": bool(found.moves[i] == t), "named": bool(named[i] == t),
            }
            for i in range(directions.count)
            for t, (attribute, some) in enumerate(pairs.items())
        ]  # fmt: skip
    return Findings(entries, {"pairs": [rows_to_columns(rows)]})
