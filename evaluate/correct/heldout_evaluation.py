"""Labelled images that a correction is judged on: their activations in a store, and what the head makes of them under many corrections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
    stores: Mapping[str, ActivationStore],
    layer: str,
    classes: Mapping[str, np.ndarray] | None = None,
    *,
    held: float = 0.5,
    seed: int = 0,
) -> dict[str, Judged]:
    """Take the labelled images of stores, and hold out the same share of each class.

    A picture and its copy of the same name in another store are both held out, or neither.

    Parameters
    ----------
    stores : by what they are called. classes : (N,) of each one's images, −1 for none, where they are known.
    held : share to hold out; of each class to within one image. seed : of which these are.

    Raises
    ------
    UsageError
        A store has no labelled images, or all or none of them are held out.
    MismatchError
        Their classes are not the model's.
    """
    known = {which: image_classes(store) if classes is None else classes[which] for which, store in stores.items()}
    readers = {which: LayerReader(store, layer, prefix=True) for which, store in stores.items()}
    rows, keys = {}, {}
    for which, store in stores.items():
        of = known[which]
        rows[which] = np.array([row for row in readers[which].image_indices.tolist() if of[row] >= 0], np.int64)
        if not len(rows[which]):
            raise UsageError(
                f"None of the images of '{store.path}' has a class: a correction is judged on images in class folders (--data, --poisoned)."
            )
        names = store.names
        keys[which] = [_key(names[row]) for row in rows[which].tolist()]
    class_of: dict[str, int] = {}
    for which in stores:
        for key, row in zip(keys[which], rows[which].tolist(), strict=True):
            class_of.setdefault(key, int(known[which][row]))
    chosen = _held_out(class_of, held, seed)
    found = {}
    for which, store in stores.items():
        mine = np.array([key in chosen for key in keys[which]])
        if mine.all() or not mine.any():
            raise UsageError(
                f"Of the {len(mine)} labelled images of '{store.path}' {int(mine.sum())} are held out: at least one must be, to choose on, and at "
                "least one must be left, to judge by. Give more images, or another --held-out."
            )
        logits = store.rows("logits", rows[which]).astype(np.float32)
        found[which] = Judged(readers[which], rows[which], known[which][rows[which]], logits, mine)
    return found


def _key(name: str) -> str:
    """What a picture and its poisoned copy have in common: folder and name, without the ending."""
    path = PurePosixPath(name)
    return f"{path.parent.name}/{path.stem}"


def _held_out(class_of: Mapping[str, int], share: float, seed: int) -> set[str]:
    """A share of the keys, of each class to within one."""

    def draw(key: str) -> bytes:
        return hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()

    ordered = sorted(class_of, key=lambda key: (class_of[key], draw(key)))
    ends = np.floor(share * np.arange(len(ordered) + 1) + 0.5)
    return {key for key, taken in zip(ordered, np.diff(ends) > 0, strict=True) if taken}


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
