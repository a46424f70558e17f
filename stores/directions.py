"""Direction pairs on disk: what every method yields and every evaluation reads, as one safetensors file.

The tensors are ``filters`` W (C, I), ``signals`` S (C, I), ``mean`` (C,) and, where there are any, ``thresholds`` b (I,) and
``found_again`` (I,); everything else (method, layer, store, configuration, seed, diagnosis) is JSON in the file's header. No pickle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from stores.documents import MOST_NUMBER, Text, Whole, check
from stores.errors import MismatchError, MissingPathError, StoreError
from stores.format import check_name
from stores.io import write_json
from stores.notebook import html_table
from stores.tensors import FORMAT, read_tensors, reading, write_tensors

HEADER = ("digest", "format", "method", "layer", "channels", "directions", "quantile")  # ``info`` cannot replace these

FOUND = 0.5  # share of the refits from which on a direction counts as found again

Measure = Annotated[float, Meta(ge=0, le=MOST_NUMBER)]


class Config(Struct, frozen=True):
    """The entry of ``config`` that is read."""

    refits: Whole = 0


class Diagnosis(Struct, frozen=True):
    """The entries of ``diagnosis`` that are read: numbers of directions, and measures."""

    dead: list[Whole] = []
    overfull: list[Whole] = []
    duplicates: list[tuple[Whole, Whole]] = []
    coverage: Annotated[float, Meta(ge=0, le=1)] = 0
    positions_per_direction: Measure = 0
    too_alike: Whole = 0
    kappa: float = 0
    loss_seen: Measure = 0
    loss_unseen: Measure = 0


class TriedNumber(Struct, frozen=True):
    """The entries of a number of directions that was tried that are read."""

    directions: Whole
    kappa: float


class SelectedNumber(Struct, frozen=True):
    """The entries of ``selection`` (``--directions auto``) that are read."""

    why: str = ""
    rows: list[TriedNumber] = []


class InForce(Struct, frozen=True):
    """The entry of ``in_force``, the preset of the published steps, that is read."""

    steps: dict[str, Any] = {}


class FittedPart(Struct, frozen=True):
    index: Whole
    of: Whole
    seed: int = 0


class FittedStore(Struct, frozen=True):
    """The entries of ``store``, what the fit read: the store, and which part of its images."""

    path: str = ""
    fingerprint: str = ""
    part: FittedPart | None = None


class DirectionsHeader(Struct, frozen=True):
    """The entries of a file's header that are read; others may be anything."""

    method: Text
    layer: Text
    quantile: Annotated[float, Meta(ge=0, le=1)]
    config: Config = Config()
    diagnosis: Diagnosis = Diagnosis()
    images: Whole = 0
    selection: SelectedNumber = SelectedNumber()
    in_force: InForce = InForce()
    store: FittedStore = FittedStore()
    run: dict[str, Any] = {}


class DirectionsError(StoreError):
    """A directions file is damaged or no directions file."""


@dataclass(frozen=True)
class Directions:
    """I decoding and encoding directions of one layer.

    Parameters
    ----------
    filters : (C, I) float32, the decoding directions W; detector i's logit is ``w_i · x − b_i`` (paper, eq. of §3).
    signals : (C, I) float32, the encoding directions S, of unit norm.
    mean : (C,) float32, E[x] over the data of the fit.
    thresholds : (I,) float32 b, or None when the method has none: detectors are then positive on the top ``quantile``.
    quantile : share of positions that count as positive when ``thresholds`` is None (Network Dissection's 0.005).
    method : name of the fitter.
    layer : layer the directions belong to.
    found_again : (I,) float32, share of refits on random halves of the images that contain each direction (``fit.refits``), or None
        where there were no refits.
    info : JSON-able provenance: store fingerprint, model, configuration, seed, diagnosis.
    """

    filters: np.ndarray
    signals: np.ndarray
    mean: np.ndarray
    thresholds: np.ndarray | None
    method: str
    layer: str
    quantile: float = 0.005
    found_again: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.filters.ndim != 2 or 0 in self.filters.shape:
            raise ValueError(f"filters must be (C, I), at least (1, 1), got {self.filters.shape}")
        c, i = self.filters.shape
        if self.signals.shape != (c, i) or self.mean.shape != (c,):
            raise ValueError(
                f"filters {self.filters.shape}, signals {self.signals.shape} and mean {self.mean.shape} do not agree"
            )
        for name in ("thresholds", "found_again"):
            value = getattr(self, name)
            if value is not None and value.shape != (i,):
                raise ValueError(f"{name} must be ({i},), got {value.shape}")
        for name in ("filters", "signals", "mean", "thresholds", "found_again"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite values")

    @property
    def channels(self) -> int:
        return int(self.filters.shape[0])

    @property
    def count(self) -> int:
        """I."""
        return int(self.filters.shape[1])

    @property
    def agreement(self) -> np.ndarray:
        """(I,) cosine of each filter with its own signal vector; 0 where one of them is 0."""
        norms = np.linalg.norm(self.filters, axis=0) * np.linalg.norm(self.signals, axis=0)
        cosine: np.ndarray = (self.filters * self.signals).sum(0) / np.maximum(norms, 1e-12)
        return cosine

    @property
    def fitted_on(self) -> str:
        """The store of the fit, which part of its images, and how many; "unknown" where the file does not say it."""
        store, images = self.info.get("store", {}), self.info.get("images")
        if not store.get("path"):
            return "unknown"
        part = "part {index}/{of} (seed {seed}) of ".format(**{"seed": 0, **store["part"]}) if store.get("part") else ""
        return f"{part}{store['path']}" + (f", {images} images" if images else "")

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of the fit; what it left to the method ("auto", "preset", None) is what the method chose."""
        preset = self.info.get("in_force", {})
        chosen = {**self.info, **preset, **preset.get("steps", {})}
        config = self.info.get("config", {})
        left = (k for k, v in config.items() if v in (None, "auto", "preset") or isinstance(v, dict))
        return {**config, **{name: chosen[name] for name in left if name in chosen}}

    @property
    def refits(self) -> int:
        """How many refits ``found_again`` is a share of; 0 where that is unknown or there were none."""
        return 0 if self.found_again is None else int(self.info.get("config", {}).get("refits", 0))

    @property
    def share_found_again(self) -> float | None:
        """Share of the directions that at least half of the refits contain; None where there were no refits."""
        return None if self.found_again is None else round(float((self.found_again >= FOUND).mean()), 4)

    def __repr__(self) -> str:
        return f"Directions({self.count} by {self.method!r} of layer {self.layer!r}, {self.channels} channels)"

    def _repr_html_(self) -> str:
        """What a notebook shows: where the directions come from, and what the fit says of them."""
        diagnosis = self.info.get("diagnosis", {})
        again, coverage = self.share_found_again, diagnosis.get("coverage")
        rows: list[tuple[str, str]] = [
            ("directions", f"{self.count} by {self.method}, {self.channels} channels"),
            ("layer", self.layer),
            ("fitted on", self.fitted_on),
            ("thresholds", "of the method" if self.thresholds is not None else f"the top {100 * self.quantile:g} % of positions"),
        ]  # fmt: skip
        if again is not None:
            rows.append(
                ("found again", f"{100 * again:.0f} % of the directions, by at least half of {self.refits} refits")
            )
        if coverage is not None:
            rows.append(("coverage", f"{100 * coverage:.3g} % of positions have an active detector"))
        return html_table(rows)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Detector logits ``z = x W − b``, (…, I), of activations (…, C); b is 0 for methods without thresholds."""
        z = x.astype(np.float32, copy=False) @ self.filters
        return z if self.thresholds is None else z - self.thresholds

    def signal_values(self, x: np.ndarray) -> np.ndarray:
        """Signal values ``α̂_i = w_i·(x − E[x]) / (w_i·s_i)`` [paper], (…, I). Where w_i ⟂ s_i the value is 0."""
        gain = (self.filters * self.signals).sum(0)
        z = (x.astype(np.float32, copy=False) - self.mean) @ self.filters
        usable = np.abs(gain) > 1e-12
        return np.where(usable, z / np.where(usable, gain, 1), 0).astype(np.float32)

    def check_store(self, layer: str, channels: int, weights_digest: str | None = None) -> None:
        """Raise MismatchError when the directions belong to another layer, or to other weights where both digests are known."""
        if layer != self.layer or channels != self.channels:
            raise MismatchError(
                f"The directions were fitted on layer '{self.layer}' ({self.channels} channels), not on '{layer}' "
                f"({channels} channels). Evaluate them on a store of '{self.layer}'."
            )
        own = self.info.get("weights_digest")
        if own and weights_digest and own != weights_digest:
            raise MismatchError(
                f"The directions were fitted on another network than the store's: its weights are {own[:19]}…, not "
                f"{weights_digest[:19]}…. Fit on this store, or give a store of those weights (fitted on {self.fitted_on})."
            )

    def save(self, path: str | Path) -> None:
        """Write the safetensors file, and next to it ``<stem>.json`` with the header for people to read.

        What ``info`` holds under the names of the header's own entries (``HEADER``) is not stored.
        """
        path = Path(path)
        header = {
            "format": FORMAT,
            "method": self.method,
            "layer": self.layer,
            "channels": self.channels,
            "directions": self.count,
            "quantile": self.quantile,
            **{k: v for k, v in self.info.items() if k not in HEADER},
        }
        tensors = {"filters": self.filters, "signals": self.signals, "mean": self.mean}
        for name in ("thresholds", "found_again"):
            if (value := getattr(self, name)) is not None:
                tensors[name] = value
        write_tensors(path, "eddp", {k: v.astype(np.float32) for k, v in tensors.items()}, header)
        readable = path.with_suffix(".json")
        write_json(readable if readable != path else path.with_name(f"{path.name}.json"), header)

    @classmethod
    def load(cls, path: str | Path) -> Directions:
        """Read a directions file. Raises MissingPathError, or DirectionsError when it is damaged or something else."""
        path = Path(path)
        if not path.is_file():
            raise MissingPathError(f"There is no directions file at '{path}'. Make one: fit --store … --out {path}")
        with reading(path, "directions file", "Fit it again.", DirectionsError):
            stored, header = read_tensors(path, "eddp", DirectionsHeader)
            tensors = {name: value.astype(np.float32) for name, value in stored.items()}
            check_name(header["layer"])
            found = cls(
                filters=tensors["filters"],
                signals=tensors["signals"],
                mean=tensors["mean"],
                thresholds=tensors.get("thresholds"),
                method=header["method"],
                layer=header["layer"],
                quantile=float(header["quantile"]),
                found_again=tensors.get("found_again"),
                info={k: v for k, v in header.items() if k not in HEADER},
            )
            listed = check(header, DirectionsHeader).diagnosis
            numbers = [*listed.dead, *listed.overfull, *chain.from_iterable(listed.duplicates)]
            if numbers and max(numbers) >= found.count:
                raise ValueError(f"diagnosis must list directions from 0 to {found.count - 1}")
        return found
