"""Labelled images that a correction is judged on: their activations in a store, and what the head makes of them under many corrections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch

from evaluate.correct.correction import Correction
from extract.classes import image_classes
from extract.forward import computing_in
from extract.network import Head
from stores.errors import UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

FLOOR = (
    1e-3  # gates below are predicted as shut while strengths are tried; what is reported is computed with every gate
)
_NUMBERS = 2**24  # of float32 at once


@dataclass(frozen=True)
class Judged:
    """n labelled images of a store: ``rows`` (n,), ``classes`` (n,) among the model's K, ``logits`` (n, K) before any correction,
    ``held`` (n,) whether an image is held out to choose the strength on: the others are what is reported."""

    reader: LayerReader
    rows: np.ndarray
    classes: np.ndarray
    logits: np.ndarray
    held: np.ndarray

    @property
    def names(self) -> list[str]:
        every = self.reader.store.names
        return [every[row] for row in self.rows.tolist()]


def judged(
    store: ActivationStore, layer: str, classes: np.ndarray | None = None, *, held: float = 0.5, seed: int = 0
) -> Judged:
    """Take the labelled images of a store; ``classes`` (N,) of its images, −1 for none, where they are known.

    Raises UsageError when there are none, MismatchError when their classes are not the model's.
    """
    reader = LayerReader(store, layer, prefix=True)
    classes = image_classes(store) if classes is None else classes
    rows = np.array([row for row in reader.image_indices.tolist() if classes[row] >= 0], np.int64)
    if not len(rows):
        raise UsageError(
            f"None of the images of '{store.path}' has a class: a correction is judged on images in class folders (--data, --poisoned)."
        )
    logits = store.rows("logits", rows)
    names = store.names
    chosen = np.array([_draw(names[row], seed) < held for row in rows.tolist()])
    if chosen.all() or not chosen.any():
        raise UsageError(
            f"Of the {len(rows)} labelled images of '{store.path}' {int(chosen.sum())} are held out: at least one must be, to choose on, and at "
            "least one must be left, to judge by. Give more images, or another --held-out."
        )
    return Judged(reader, rows, classes[rows], logits.astype(np.float32), chosen)


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) by a file's name alone: a picture and its poisoned copy fall into the same part."""
    path = PurePosixPath(name)
    digest = hashlib.sha256(f"{seed}:{path.parent.name}/{path.stem}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def predict(
    of: Judged,
    head: Head,
    corrections: Sequence[Correction],
    *,
    where: np.ndarray | None = None,
    floor: float = 0.0,
    device: str = "cpu",
    progress: Progress = silent,
    stage: str = "correcting",
) -> np.ndarray:
    """The classes (R, n) that n images are predicted as under each of R corrections, by one pass over the activations for all of them.

    Parameters
    ----------
    where : (n,) bool, the images wanted; −1 for the others.
    floor : gates (J of each position) that are all below are predicted as 0; 0 computes every one. Behind pooling and an affine map only
        open gates then cost anything: ``logits' = logits + A mean_p(x'_p − x_p)``.
    """
    wanted = np.ones(len(of.rows), bool) if where is None else where
    places = np.flatnonzero(wanted)
    found = np.full((len(corrections), len(of.rows)), -1, np.int64)
    done = 0
    for at, logits in _logits(of, head, corrections, places, floor, device):
        for r, z in enumerate(logits):
            found[r, at] = z.argmax(1).cpu().numpy()
        done += len(at)
        progress(stage, done, len(places))
    return found


def probabilities(
    of: Judged, head: Head, correction: Correction, places: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """Class probabilities (n, K) under a correction, of the images at some places."""
    parts = [
        torch.softmax(z.double(), 1)
        for _, logits in _logits(of, head, [correction], places, 0.0, device)
        for z in logits
    ]
    return torch.cat(parts).cpu().numpy()


def _logits(
    of: Judged, head: Head, corrections: Sequence[Correction], places: np.ndarray, floor: float, device: str
) -> Iterator[tuple[np.ndarray, Iterator[torch.Tensor]]]:
    """Places of a few images, and their logits under each correction."""
    for at, x in _blocks(of, places, device):
        if head.affine is not None:
            base = torch.from_numpy(of.logits[at]).to(device)
            yield at, _pooled(x, base, head.affine[0], corrections, floor)
        else:
            prefix = of.reader.spec.prefix
            yield at, (_through(head, _corrected(x, c, prefix)) for c in corrections)


def _blocks(of: Judged, places: np.ndarray, device: str) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    each = max(1, _NUMBERS // (of.reader.spec.positions * of.reader.channels))
    for start in range(0, len(places), each):
        at = places[start : start + each]
        yield at, torch.from_numpy(of.reader.images(of.rows[at])).to(device).float()


@torch.inference_mode()
def _through(head: Head, x: torch.Tensor) -> torch.Tensor:
    with computing_in(
        "float32", x.device
    ):  # as the logits before any correction were: what differs is the correction's doing
        return head(x)


@torch.inference_mode()
def _corrected(x: torch.Tensor, correction: Correction, prefix: int) -> torch.Tensor:
    return torch.cat([x[:, :prefix], correction(x[:, prefix:])], 1) if prefix else correction(x)


@torch.inference_mode()
def _pooled(
    x: torch.Tensor, logits: torch.Tensor, weight: torch.Tensor, corrections: Sequence[Correction], floor: float
) -> Iterator[torch.Tensor]:
    """Logits (n, K) under each correction, from the sum of what changes at positions whose gate is open."""
    n, p, c = x.shape
    flat = x.reshape(n * p, c)
    image = torch.arange(n, device=x.device).repeat_interleave(p)
    gates: dict[tuple[int, float], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for one in corrections:
        key = (id(one.filters), one.shift)  # many corrections share their detectors
        if key not in gates:
            w, b = (torch.from_numpy(part).to(x.device) for part in (one.filters, one.thresholds))
            gate = torch.sigmoid(flat @ w - (b + one.shift))
            open_ = (gate >= floor).any(1).nonzero()[:, 0]
            gates[key] = (gate[open_], flat[open_], image[open_])
        gate, here, whose = gates[key]
        after = here - one.strength * (gate @ torch.from_numpy(one.vectors).to(x.device).T)
        change = (after.clamp_min(0) if one.rectify else after) - here
        pooled = torch.zeros(n, c, device=x.device).index_add_(0, whose, change) / p
        yield logits + pooled @ weight.T
