"""Pictures of what direction pairs stand for, drawn by activation maximisation into a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.detector_bank import make_bank
from evaluate.report.report_data import Features
from evaluate.visualize.check import Check, Role, check_pairs, check_rows, checked, seconds_a_picture
from evaluate.visualize.maximise import VisualizeConfig
from evaluate.visualize.natural import Natural, assumed, sampled
from extract.network import open_network
from extract.store_images import open_store_images
from pipeline.logging import say
from pipeline.progress_display import format_seconds
from stores.directions import Directions
from stores.errors import EDDPError, UsageError
from stores.io import Together
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

log = logging.getLogger(__name__)


def draw_features(
    store: ActivationStore,
    directions: Directions,
    indices: Sequence[int],
    folder: Path,
    *,
    config: VisualizeConfig | None = None,
    thresholds: np.ndarray | None = None,
    limit: float | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[int, Features]:
    """Draw the signal vector and the filter of some pairs; tell what the pairs' own detectors make of the pictures.

    Parameters
    ----------
    store : whose network is opened again; its images, where they still are, tell what natural images look like.
    indices : which pairs, the most important first.
    limit : seconds; of the pairs the first ones that fit are drawn, at least one. None: all.
    folder : gets ``signal-00012.jpg`` and ``filter-00012.jpg``, all together or, when something fails, none; made where it is missing.
    thresholds : (I,), for sets without their own; read off the store where not given.
    device : where the network runs.

    Raises
    ------
    MismatchError
        The store is synthetic, its model has other weights now, or the directions are another layer's.
    UsageError
        The network takes clips.
    UsageError, NonFiniteError
        See ``evaluate.visualize.check.check_pairs``.
    """
    check = check_features(
        store, directions, indices, folder,
        config=config, thresholds=thresholds, limit=limit, device=device, progress=progress,
    )  # fmt: skip
    rows = check_rows(check, "", [""] * directions.count)
    return {
        row["index"]: Features(
            _file("signal", row["index"]),
            _file("filter", row["index"]),
            **{key: row[key] for key in Features.__dataclass_fields__ if key not in ("signal", "filter")},
        )
        for row in rows
    }


def check_features(
    store: ActivationStore,
    directions: Directions,
    indices: Sequence[int],
    folder: Path,
    *,
    config: VisualizeConfig | None = None,
    thresholds: np.ndarray | None = None,
    limit: float | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Check:
    """Draw the same pictures as ``draw_features``; give all that was measured, for ``check_rows`` and ``check_summary``."""
    if "clip" in store.provenance:
        model = store.provenance["model"]
        raise UsageError(f"Pictures are synthesised for networks that take images only, and {model} takes clips.")
    config = config or VisualizeConfig()
    network = open_network(store, directions.layer, device=device)
    if directions.thresholds is not None:
        thresholds = directions.thresholds
    elif thresholds is None:
        reader = LayerReader(store, directions.layer)
        thresholds = make_bank({"": directions}, reader, device=device, progress=progress).thresholds.cpu().numpy()

    natural = _natural(store, network, config)
    indices = _affordable(network, directions, indices, natural, config, limit)
    pictures: dict[str, bytes] = {}

    def keep(role: Role, index: int, file: bytes) -> None:
        if role != "random":
            pictures[_file(role, index)] = file

    check = check_pairs(network, directions, thresholds, indices, natural, config, keep=keep, progress=progress)
    with Together() as files:
        for name, file in pictures.items():
            files.add(folder / name, file)
        files.publish()
    return check


def _affordable(
    network: Any,
    directions: Directions,
    indices: Sequence[int],
    natural: Natural,
    config: VisualizeConfig,
    limit: float | None,
) -> Sequence[int]:
    """The pairs that fit into ``limit`` seconds; says how many, and how long they take."""
    seconds = seconds_a_picture(network, directions, checked(network, directions, indices), natural, config)
    fit = len(indices) if limit is None else max(1, int((limit / seconds - config.randoms) / 2))
    some = indices[:fit]
    text = f"Synthesised pictures: {len(some)} of {len(indices)} pairs, about {format_seconds((config.randoms + 2 * len(some)) * seconds)}."
    if len(some) < len(indices):
        text += f" All take {format_seconds((config.randoms + 2 * len(indices)) * seconds)}: --visualize all."
    say(text, "info")
    return some


def _natural(store: ActivationStore, network: Any, config: VisualizeConfig) -> Natural:
    """Statistics of the store's own images; of images at large where none can be read any more."""
    size = config.picture_size(network.input_size)
    try:
        return sampled(open_store_images(store), size, seed=config.seed)
    except EDDPError as error:
        log.warning("pictures are drawn with the colours of everyday photographs, not of the store's images: %s", error)
        return assumed(size)


def _file(role: Role, index: int) -> str:
    return f"{role}-{index:05d}.jpg"
