"""The same evaluation of an untrained network of the same architecture: what do labels and scores owe to training?

Directions of a network with drawn weights get labels too: colours, edges and the layout of images pass through any network (Ulyanov et al. 2018,
"Deep image prior"; sanity checks of Adebayo et al. 2018). A set whose scores are no better does not show what the network learned.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from evaluate.concepts import config_of
from evaluate.dissect import Resolution
from evaluate.parallel import Scheduler
from extract.segmentation.base import ConceptSource
from extract.stream import extract
from fit import METHODS, make_fitter
from fit.config import SUPERVISED
from pipeline.evaluation_parts import Findings, Subject, dissect
from pipeline.logging import say
from stores.directions import Directions
from stores.errors import UsageError
from stores.format import read_attributes
from stores.readers import LayerReader
from stores.store import ActivationStore, StoreBase

SCORES = (
    "s1",
    "s2",
    "interpretable",
    "distinct",
    "coverage",
    "precision",
    "recall",
    "f1",
    "average_precision",
    "intervals",
)


def evaluate_untrained(
    subject: Subject, source: ConceptSource, resolution: Resolution, scheduler: Scheduler, seed: int
) -> Findings:
    """Extract the concept dataset through the network with drawn weights, fit as many directions by each set's method, and score them."""
    store = untrained_store(subject, source, seed)
    sets: dict[str, Directions] = {}
    for name, directions in subject.sets.items():
        if directions.method not in METHODS or directions.method in SUPERVISED:
            say(f"{name}: no untrained control for {directions.method}, which needs labels or settings of its own")
            continue
        fitter = make_fitter(
            directions.method, n_directions=directions.count, seed=seed, device=subject.device, refits=0
        )
        sets[name] = fitter.fit(LayerReader(store, subject.layer), progress=subject.progress).directions_
    if not sets:
        return Findings()
    control = Subject(store, subject.layer, sets, subject.device, subject.progress)
    found = dissect(control, source, resolution, scheduler).findings.entries
    return Findings({name: {"untrained": {key: entry[key] for key in SCORES}} for name, entry in found.items()})


def check_drawable(store: ActivationStore) -> None:
    """Raise UsageError unless the network's weights can be drawn anew."""
    made = store.provenance
    model, weights = str(made.get("model")), str(made.get("weights", "none")).lower()
    own = ":" in model and not model.startswith("timm:")  # whatever weights its code gives it
    if "synthetic" in made or weights == "none" or (own and weights == "default"):
        raise UsageError(
            f"--control untrained draws weights anew, and those of '{model}' are its own, or drawn already: only networks of torchvision and "
            "timm, and those that were given --weights FILE, can be without them. Leave --control out."
        )


def untrained_store(subject: Subject, source: ConceptSource, seed: int) -> ActivationStore:
    """Activations of the concept dataset in the network with drawn weights, stored next to the store: the second time they are there."""
    store, layer = subject.store, subject.layer
    # float32: without trained BatchNorm statistics activations may shrink from layer to layer
    config = replace(config_of(store, layer), weights="none", seed=seed, dtype="float32")
    key = hashlib.sha256(json.dumps([source.digest, repr(config)]).encode()).hexdigest()[:8]
    path = store.path.with_name(f"{store.path.stem}.{layer}.untrained-{key}.zarr")
    if not (path / "zarr.json").is_file() or not StoreBase(path, read_attributes(path)).sealed:
        extract(source, path, replace(config, device=subject.device), progress=subject.progress)
    return ActivationStore.open(path, model=store.trusted_model)
