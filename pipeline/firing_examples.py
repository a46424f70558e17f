"""What directions fire on, as an image encoder sees it: the examples of an evaluation, and how much they are of one thing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evaluate.examples import Examples, embed_examples
from evaluate.meaning import MEASURES, Meaning, measure_examples
from evaluate.parallel import Scheduler
from extract.image_text import open_encoder
from extract.store_images import open_store_images
from pipeline.evaluation_parts import Findings, Subject
from stores.tables import rows_to_columns


def find_examples(subject: Subject, encoder: str, seed: int, *, texts: bool, scheduler: Scheduler = None) -> Examples:
    """The embedded examples of all sets; ``texts``: the encoder must take words, too. Raises the errors of opening it and the store's images."""
    opened = open_encoder(encoder, subject.device, texts)
    images = open_store_images(subject.store)
    return embed_examples(
        subject.reader, subject.bank, images.frames, images.source.digest, opened,
        seed=seed, progress=subject.progress, scheduler=scheduler,
    )  # fmt: skip


def measure_meaning(subject: Subject, examples: Examples, seed: int) -> Findings:
    """The table ``meaning``, a row a direction, and its summary."""
    about = {
        "encoder": examples.encoder.name,
        "images": len(examples.number),
        "randoms": examples.randoms,
        "seed": seed,
    }
    entries, rows = {}, []
    for name, found in measure_examples(examples, seed=seed, device=subject.device, progress=subject.progress).items():
        entry = found.summary()
        entries[name] = {**entry, "meaning": {**about, **entry["meaning"]}}
        rows += [_row(name, i, found) for i in range(len(found.nearest))]
    return Findings(entries, {"meaning": [rows_to_columns(rows)]})


def _row(name: str, index: int, found: Meaning) -> dict[str, Any]:
    nearest = int(found.nearest[index])
    return {
        "directions": name,
        "index": index,
        **{key: _rounded(found.own[key][index]) for key in MEASURES},
        "nearest": nearest if nearest >= 0 else None,
    }


def _rounded(value: np.floating[Any]) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
