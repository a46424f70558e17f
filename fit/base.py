"""The contract of every method: a frozen configuration, and an estimator with ``fit``, ``transform``, ``detect``.

A method is a file with a config and a class that says how directions are found (``find``); the rest is the same for all.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch

from extract.network import Head, open_head
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig, refuse_unknown
from fit.optim import refuse_non_finite_result
from fit.refits import refit
from fit.verdict import verdict
from stores.directions import Directions
from stores.errors import MismatchError, NotFittedError, UsageError
from stores.notebook import html_table
from stores.progress import Progress, silent
from stores.ranks import ALONE, Ranks
from stores.readers import LayerReader
from stores.store import ActivationStore


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves: the directions, and a table of what was minimised over the steps (may be empty)."""

    directions: Directions
    log: list[dict[str, float]] = field(default_factory=list)


Config = TypeVar("Config", bound=FitterConfig)


class Fitter(ABC, Generic[Config]):
    """A method. The same store, configuration and device give the same directions.

    Parameters
    ----------
    config : the method's configuration; settings by name replace its entries, or the defaults where it is left out:
        ``EDDP(n_directions=500, seed=1)``.

    Attributes, once fitted
    -----------------------
    directions_ : Directions, all that ``save`` writes.
    filters_, signals_ : (C, I) float32; column i is detector i's decoding direction w_i, and its encoding direction s_i of unit norm.
    thresholds_ : (I,) float32, or None.
    found_again_ : (I,) float32, the share of refits that contain each direction, or None where there were none.
    mean_ : (C,) E[x].
    log_ : one mapping a step of what was minimised.
    diagnosis_ : mapping; of methods without a diagnosis of their own, what any fit has.
    """

    name: ClassVar[str]
    configuration: ClassVar[type[Any]]
    uses_head: ClassVar[bool] = False
    resumes: ClassVar[bool] = False  # whether ``find`` resumes from a checkpoint
    spreads: ClassVar[bool] = False  # whether ``find`` works on several ranks, ``self.ranks``
    ranks: Ranks = ALONE

    def __init__(self, config: Config | None = None, **settings: Any) -> None:
        refuse_unknown(type(self).__name__, settings, self.configuration)
        self.config: Config = dataclasses.replace(config or self.configuration(), **settings)

    def __repr__(self) -> str:
        """As it was made: the settings that are not the defaults."""
        default = self.configuration()
        values = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        given = (f"{name}={value!r}" for name, value in values.items() if value != getattr(default, name))
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: before the fit its settings, afterwards the directions and the verdict on the fit."""
        if not hasattr(self, "_fitted"):
            return html_table([(repr(self),)])
        judged = verdict(self.directions_)
        lines = [*judged.lines, *(f"Problem: {text}" for text in judged.problems)]
        return self.directions_._repr_html_() + html_table([(line,) for line in lines], ["verdict"])

    @abstractmethod
    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Find directions in a layer's activations; ``head`` is the network after the layer, where there is one."""

    def fit(
        self,
        store: LayerReader | ActivationStore | str | Path,
        head: Head | Literal["store"] | None = "store",
        progress: Progress = silent,
        *,
        layer: str | None = None,
        checkpoint: Checkpoint | None = None,
        ranks: Ranks = ALONE,
    ) -> Self:
        """Find directions in one layer of a store.

        Parameters
        ----------
        store : a layer's reader, or an open store or its path; then ``layer`` names the layer, if it holds several.
        head : the network after the layer; "store": the store's own, for methods that use one; None: do without.
        checkpoint : where the state is stored while the fit runs, and resumed from; by default nowhere.
        ranks : the processes that fit together, each calling this with the same arguments (``fit.process_group.Group``); all of them end
            with the same directions.

        Raises UsageError, FitError, NonFiniteError and the store's errors.
        """
        if ranks.size > 1 and not self.spreads:
            raise UsageError(f"'{self.name}' is fitted by one process, not by {ranks.size}: start it without torchrun.")
        reader = store if isinstance(store, LayerReader) else LayerReader(store, layer)
        if head == "store":
            head = open_head(reader.store, reader.spec.name, device=self.config.device) if self.uses_head else None
        self.ranks = ranks
        own = (checkpoint or Checkpoint(ranks=ranks)).of({**self.identity(reader), "head": head is not None})
        self._fitted: Fitted = self.find(reader, head, progress, own)
        if self.config.refits:
            again = refit(self, reader, progress)
            diagnosis = {"diagnosis": {**self.diagnosis_, **again.diagnosis}} if again.diagnosis else {}
            info = {**self.directions_.info, **diagnosis}
            directions = dataclasses.replace(self.directions_, found_again=again.found_again, info=info)
            self._fitted = dataclasses.replace(self._fitted, directions=directions)
        return self

    def fitted(
        self,
        reader: LayerReader,
        filters: torch.Tensor,
        signals: torch.Tensor,
        thresholds: torch.Tensor | None = None,
        *,
        mean: np.ndarray,
        log: Sequence[dict[str, float]] = (),
        config: FitterConfig | None = None,
        **info: object,
    ) -> Fitted:
        """Directions of this method; without thresholds its detectors are positive on the top quantile (Network Dissection)."""
        refuse_non_finite_result(filters, signals, *(() if thresholds is None else (thresholds,)))
        made = reader.store.provenance
        store = {
            "path": str(reader.store.path),
            "fingerprint": reader.store.fingerprint,
            "part": reader.part and dataclasses.asdict(reader.part),
        }
        about = {
            "store": store,
            "model": made.get("model"),
            "weights_digest": made.get("weights_digest"),
            "grid": list(reader.grid),
            "images": reader.n_images,
            "config": recorded(config or self.config),
            "diagnosis": {"positions_per_direction": round(reader.n_images * reader.positions / filters.shape[1], 1)},
        }
        directions = Directions(
            filters=filters.cpu().numpy().astype(np.float32),
            signals=torch.nn.functional.normalize(signals, dim=0).cpu().numpy().astype(np.float32),
            mean=mean.astype(np.float32),
            thresholds=None if thresholds is None else thresholds.cpu().numpy().astype(np.float32),
            method=self.name,
            layer=reader.spec.name,
            info={**about, **info},
        )
        return Fitted(directions, list(log))

    def identity(self, reader: LayerReader) -> dict[str, Any]:
        """What decides what a fit finds: the method, the layer, the store and the part of its images, the settings."""
        about = {"method": self.name, "layer": reader.spec.name, "store": reader.identity}
        return {**about, "config": recorded(self.config)}

    def row_loss(self, reader: LayerReader) -> float | None:
        """Mean over a reader's positions of what the fitted method minimises at each; None for methods without such a loss."""
        return None

    def brief(self, seed: int) -> Fitter[Config]:
        """The same method with another seed, not fitted, as short a fit as a refit may be."""
        again = copy.copy(self)
        again.config = dataclasses.replace(self.config, seed=seed, refits=0)
        return again

    @property
    def directions_(self) -> Directions:
        return self._found().directions

    @property
    def filters_(self) -> np.ndarray:
        return self.directions_.filters

    @property
    def signals_(self) -> np.ndarray:
        return self.directions_.signals

    @property
    def thresholds_(self) -> np.ndarray | None:
        return self.directions_.thresholds

    @property
    def found_again_(self) -> np.ndarray | None:
        return self.directions_.found_again

    @property
    def mean_(self) -> np.ndarray:
        return self.directions_.mean

    @property
    def log_(self) -> list[dict[str, float]]:
        return self._found().log

    @property
    def diagnosis_(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.directions_.info.get("diagnosis", {})
        return found

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Signal values α̂ (…, I) float32 of activations (…, C): how much of each concept is there (paper, §3.3)."""
        return self.directions_.signal_values(self._activations(x))

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Logits z (…, I) of activations (…, C)."""
        return self.directions_.logits(self._activations(x))

    def detect(self, x: np.ndarray) -> np.ndarray:
        """Whether each concept is there: z > 0, (…, I) bool, of activations (…, C).

        Raises UsageError for a method without thresholds: its detectors are a share of a data set's positions, and what
        is positive depends on the data set.
        """
        if self.thresholds_ is None:
            raise UsageError(
                f"Directions by '{self.name}' have no thresholds: take the largest {100 * self.directions_.quantile:g} % of "
                "`decision_function` over your data, or fit a method that has them."
            )
        return self.decision_function(x) > 0

    def save(self, path: str | Path) -> None:
        """Write the directions (safetensors), and next to them their header as JSON."""
        self.directions_.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A fitted estimator from a file that ``save`` or the command ``fit`` wrote. The log is not in it.

        Raises MismatchError when the file holds directions of another method.
        """
        directions = Directions.load(path)
        if directions.method != cls.name:
            raise MismatchError(
                f"'{path}' holds directions by '{directions.method}', not by '{cls.name}'. Read it with "
                "stores.directions.Directions.load, or with that method's class."
            )
        known = {f.name for f in dataclasses.fields(cls.configuration)}
        settings = {
            k: v for k, v in directions.info.get("config", {}).items() if k in known and not isinstance(v, dict)
        }
        made = cls(cls.configuration(**settings))
        made._fitted = Fitted(directions)
        return made

    def _found(self) -> Fitted:
        if not hasattr(self, "_fitted"):
            raise NotFittedError(f"This {type(self).__name__} has found nothing yet: call fit(store) first.")
        return self._fitted

    def _activations(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim < 1 or x.shape[-1] != self.directions_.channels:
            raise UsageError(
                f"'x' must be activations of shape (…, {self.directions_.channels}), channels last, got {x.shape}."
            )
        return x


def recorded(config: FitterConfig) -> dict[str, Any]:
    """The settings that decide what a fit finds."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k != "device"}
