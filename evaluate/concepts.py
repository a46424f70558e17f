"""Which activations a concept dataset is scored on: those of the store, or the store's model run over it, as over any other images."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from extract.dask import extract_on
from extract.image_source import ImageSource
from extract.network import layout_of, open_model
from extract.plan import rows_of
from extract.segmentation.base import ConceptSource
from extract.stream import ExtractConfig, extract
from extract.video_rows import expanded, has_videos
from stores.errors import ImageError, MismatchError
from stores.format import read_attributes
from stores.progress import Progress, silent
from stores.store import ActivationStore, StoreBase

log = logging.getLogger(__name__)


def concept_store(
    store: ActivationStore,
    layer: str,
    source: ConceptSource,
    *,
    device: str = "cpu",
    cache: Path | None = None,
    progress: Progress = silent,
    client: Any = None,
) -> ActivationStore:
    """The store itself if it was made from this concept dataset; else the model's activations on it, stored next to the store.

    Raises MismatchError for synthetic stores, which have no backbone to run, and, before anything is run, when the model
    now loads with other weights than the store was made with.
    """
    made = store.provenance
    dataset = made.get("dataset", {})
    same = expanded(source, dataset.get("rows") or {}).digest
    if dataset.get("kind") == source.kind and dataset.get("digest") == same:
        return store
    if "synthetic" in made:
        raise MismatchError(
            f"The store '{store.path}' is synthetic: it has no network to run over '{source.root}'. Use --ground-truth."
        )
    mend = f"Fix it or take it out of {source.listing}, then run evaluate again: it resumes where it stopped."
    return activations_on(store, layer, source, mend=mend, device=device, cache=cache, progress=progress, client=client)


def activations_on(
    store: ActivationStore,
    layer: str,
    source: ImageSource,
    *,
    mend: str,
    device: str = "cpu",
    cache: Path | None = None,
    progress: Progress = silent,
    client: Any = None,
) -> ActivationStore:
    """A store's own model run over other images, stored next to the store: the second time it is there.

    ``mend`` says what to do about a bad image; ``client``, a ``distributed.Client``, has its workers run the model, each on the device
    that it has. Raises MismatchError, before anything is run, when the model now loads with other weights
    than the store was made with.
    """
    transform, made = open_model(store).transform, store.provenance
    config = replace(config_of(store, layer), device=device)
    if has_videos(source):  # as many rows of each as in the store, if that is of videos
        rows = made["dataset"].get("rows") or {}
        config = replace(config, frames=rows.get("frames"), clips=int(rows.get("clips", 1)))
    digest = expanded(source, rows_of(source, config, transform)).digest
    # all that the activations depend on is in the name: another model, or other images, get another store
    key = json.dumps(
        [
            digest,
            made["weights_digest"],
            made.get("transform"),
            made.get("grey_range"),
            store.attributes["dtype"],
        ]
    )
    kind = source.kind.replace(" ", "-")
    name = f"{store.path.stem}.{layer}.{kind}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.zarr"
    beside = cache or store.path.with_name(name)
    if _holds(beside, layer, digest, made["weights_digest"]):
        return ActivationStore.open(beside, model=store.trusted_model)
    log.info("the store was made from other images; running its model over '%s' into '%s'", source.root, beside)
    try:
        if client is None:
            extract(source, beside, config, progress=progress)
        else:
            data = f"{source.kind}:{source.root}"
            extract_on(client, source, data, beside, replace(config, device="auto"), progress=progress)
    except ImageError as error:
        what = str(error).partition(" It is image ")[0]
        raise ImageError(f"{what} {mend}") from error
    return ActivationStore.open(beside, model=store.trusted_model)


def config_of(store: ActivationStore, layer: str) -> ExtractConfig:
    """How to extract the same layer of other images as a store was made."""
    made = store.provenance
    grey, clip = made.get("grey_range"), made.get("clip") or {}
    return ExtractConfig(
        model=made["model"],
        weights=made["weights"],
        layers=(layer,),
        dtype=store.attributes["dtype"],
        seed=int(made.get("seed", 0)),
        output=made.get("output"),
        layouts=((layer, layout_of(store, layer).option),),
        grey_range=None if grey is None else (grey[0], grey[1]),
        clip_frames=clip.get("frames"),
        clip_rate=clip.get("rate"),
        resize=made.get("resize"),
        class_names=None if (names := store.attributes.get("class_names")) is None else tuple(names),
    )


def _holds(path: Path, layer: str, digest: str, weights_digest: str) -> bool:
    """Whether a complete store of just these activations is there, wherever its images lay when it was made."""
    if not (path / "zarr.json").is_file():
        return False
    found = read_attributes(path)
    made = found["provenance"]
    return (
        StoreBase(path, found).sealed
        and layer in found["layers"]
        and made.get("dataset", {}).get("digest") == digest
        and made.get("dataset", {}).get("limit") is None
        and made.get("positions") is None
        and made.get("weights_digest") == weights_digest
    )
