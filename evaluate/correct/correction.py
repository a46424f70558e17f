"""Suppressing a concept that the model should not use, at one layer, without training (EDDP §"model correction").

Where the detector is on, the concept's signal is taken out of the activations::

    x'_p = relu(x_p − k · m_p · s),   m_p = sigmoid(w · x_p − b − t)

with k the strength and t a shift of the threshold: 0 in the paper; ours is chosen with k on held-out images, for a detector that also
fires a little elsewhere. The relu only where the layer's activations are never negative [ours: elsewhere it would change the
model whatever the concept]. Several directions are taken out together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta, Struct
from torch import nn

from evaluate.correct.hooks import Corrected, hooked_layer
from stores.documents import MOST_NUMBER, MOST_PER_IMAGE, Number, Text, brief
from stores.errors import MismatchError, MissingPathError, StoreError, UsageError
from stores.format import check_name
from stores.tensors import read_tensors, reading, write_tensors

log = logging.getLogger(__name__)


class CorrectionHeader(Struct, frozen=True):
    """The entries of a file's header."""

    strength: Annotated[float, Meta(ge=0, le=MOST_NUMBER)]
    shift: Number
    rectify: bool
    layer: Text
    layout: Text
    prefix: Annotated[int, Meta(ge=0, le=MOST_PER_IMAGE)]
    info: dict[str, Any]


class CorrectionError(StoreError):
    """A correction file is damaged or no correction file."""


@dataclass(frozen=True)
class Correction:
    """What is taken out of a layer's activations, and where.

    Parameters
    ----------
    filters : (C, J) float32, the decoding directions w of the concept's detectors.
    thresholds : (J,) float32 b.
    vectors : (C, J) float32, unit norm: what is taken out, the signal vectors s (or another vector, to compare).
    strength : k, in the activations' unit.
    shift : t, added to the thresholds, in logits.
    rectify : whether negative values of what is left become 0.
    layer, layout, prefix : the layer's name, its own tensor layout, and how many leading tokens are nowhere in the image: these stay.
    info : JSON-able: what it was made from, and what it did.
    """

    filters: np.ndarray
    thresholds: np.ndarray
    vectors: np.ndarray
    strength: float
    shift: float
    rectify: bool
    layer: str
    layout: str = "nchw"
    prefix: int = 0
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        c, j = self.filters.shape if self.filters.ndim == 2 else (0, 0)
        if not c or not j or self.vectors.shape != (c, j) or self.thresholds.shape != (j,):
            raise UsageError(
                f"'filters' and 'vectors' must be (C, J) and 'thresholds' (J,), got {self.filters.shape}, {self.vectors.shape} and "
                f"{self.thresholds.shape}."
            )
        if not all(np.isfinite(part).all() for part in (self.filters, self.vectors, self.thresholds)):
            raise UsageError("'filters', 'vectors' and 'thresholds' must be finite.")
        if not (np.isfinite(self.strength) and self.strength >= 0 and np.isfinite(self.shift)):
            raise UsageError(
                f"'strength' must be a number from 0, and 'shift' a number, got {self.strength} and {self.shift}."
            )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (…, C) with the concept taken out; ``x`` itself is not written into. Raises MismatchError for other C."""
        if x.shape[-1] != len(self.filters):
            raise self._refused(f"that layer has {x.shape[-1]} channels instead of {len(self.filters)}")
        w, b, v = (torch.from_numpy(part).to(x.device) for part in (self.filters, self.thresholds, self.vectors))
        wide = x.float()
        gate = torch.sigmoid(wide @ w - (b + self.shift))  # (…, J)
        out = wide - self.strength * (gate @ v.T)
        return (out.clamp_min(0) if self.rectify else out).to(x.dtype)

    def with_strength(self, strength: float, shift: float | None = None) -> Correction:
        """The same with another strength, and another shift if one is given."""
        return replace(self, strength=float(strength), shift=self.shift if shift is None else float(shift))

    def apply(self, model: nn.Module) -> Corrected:
        """A module that wraps a model: its layer is corrected whenever the wrapper runs, and only then.

        ``corrected.model`` is the model as it was: that is how to take it back. Raises MismatchError for another model (see ``check``).
        """
        self.check(model)
        return Corrected(model, self)

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block the model itself is corrected; afterwards, and after any exception, it is as it was."""
        self.check(model)
        with hooked_layer(model, self.layer, self, self.layout, self.prefix):
            yield model

    def check(self, model: nn.Module) -> None:
        """Raise MismatchError when a model has no layer of the correction's name, or other weights than the correction was made with."""
        made_with = self.info.get("weights_digest")
        if self.layer not in dict(model.named_modules()):
            raise self._refused(f"{type(model).__name__} has no such layer")
        if made_with is not None:
            from extract.models import weights_digest  # torchvision takes seconds to load

            if weights_digest(model) != made_with:
                raise self._refused(f"this {type(model).__name__} has other weights")

    def _refused(self, why: str) -> MismatchError:
        made = f" of {self.info['model']}" if self.info.get("model") else ""
        return MismatchError(
            f"The correction is for layer '{self.layer}'{made}, and {why}. Give the model it was made with."
        )

    def save(self, path: str | Path) -> None:
        """Write it as one small safetensors file, everything but the vectors as JSON in its header."""
        header = {
            "strength": self.strength,
            "shift": self.shift,
            "rectify": self.rectify,
            "layer": self.layer,
            "layout": self.layout,
            "prefix": self.prefix,
            "info": self.info,
        }
        tensors = {"filters": self.filters, "thresholds": self.thresholds, "vectors": self.vectors}
        write_tensors(Path(path), "eddp_correction", {k: v.astype(np.float32) for k, v in tensors.items()}, header)

    @classmethod
    def load(cls, path: str | Path) -> Correction:
        """Read a correction file. Raises MissingPathError, or CorrectionError when it is damaged or something else.

        Logs a warning where it failed its check on held-out images (``info["problem"]``).
        """
        path = Path(path)
        if not path.is_file():
            raise MissingPathError(f"There is no correction file at '{path}'. Make one with: eddp correct")
        with reading(path, "correction file", "Make it again.", CorrectionError):
            stored, header = read_tensors(path, "eddp_correction", CorrectionHeader)
            tensors = {name: value.astype(np.float32) for name, value in stored.items()}
            check_name(header["layer"])
            found = cls(
                filters=tensors["filters"],
                thresholds=tensors["thresholds"],
                vectors=tensors["vectors"],
                strength=float(header["strength"]),
                shift=float(header["shift"]),
                **{name: header[name] for name in ("rectify", "layer", "layout", "prefix", "info")},
            )
        if problem := found.info.get("problem"):
            log.warning("the correction '%s' failed its check: %s Do not use it unchecked.", path, brief(str(problem)))
        return found
