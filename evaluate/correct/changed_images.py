"""Images and clips whose prediction a correction changes, with the region where the concept is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.correct.correction_study import Study
from evaluate.image_tiles import at_steps, jpeg, region_tile
from evaluate.top_images import on_grid, peak_step
from extract.store_images import StoreImages, open_store_images
from stores.errors import EDDPError
from stores.io import write_atomically
from stores.readers import LayerReader

SIZE = 150
MOST = 6  # pictures of each kind of change


def changed_pictures(out: Path, study: Study, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each set and kind of change (now right, now wrong): up to ``MOST`` pictures drawn into ``out/pictures``, and what they show.

    Images that are missing on the disk are left out.
    """
    groups = []
    for which, of in study.sets().items():
        before, after, scored = study.before[which], study.after[which], ~of.held
        try:
            seen = open_store_images(of.reader.store)
        except EDDPError:
            seen = None
        kinds = {
            "now right": scored & (before != of.classes) & (after == of.classes),
            "now wrong": scored & (before == of.classes) & (after != of.classes),
        }
        for kind, where in kinds.items():
            places = np.flatnonzero(where)
            chosen = (
                places[np.unique(np.linspace(0, len(places) - 1, MOST).round().astype(int))] if len(places) else places
            )
            tiles = [
                tile
                for place in chosen.tolist()
                if (tile := _draw(out, study, which, place, classes, seen)) is not None
            ]
            groups.append({"set": which, "kind": kind, "count": len(places), "of": int(scored.sum()), "tiles": tiles})
    return groups


def _draw(
    out: Path, study: Study, which: str, place: int, classes: Sequence[str], seen: StoreImages | None
) -> dict[str, Any] | None:
    if seen is None:
        return None
    of, correction = study.sets()[which], study.correction
    row = int(of.rows[place])
    reader = LayerReader(of.reader.store, of.reader.spec.name)
    try:
        frames = seen.frames(row)
    except EDDPError:
        return None
    x = reader.images([row])[0].astype(np.float32)
    logits = (x @ correction.filters - (correction.thresholds + correction.shift)).max(1)
    file = f"pictures/{which}-{row:06d}.jpg"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    peak = peak_step(reader, row, logits)
    tile = region_tile(at_steps(frames, reader.time)[peak], on_grid(reader, row, logits)[peak], SIZE)
    write_atomically(out / file, jpeg(tile, quality=85))
    return {
        "file": file,
        "name": of.reader.store.names[row],
        "class": classes[int(of.classes[place])],
        "before": classes[int(study.before[which][place])],
        "after": classes[int(study.after[which][place])],
    }
