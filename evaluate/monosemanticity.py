"""Monosemanticity score: do the images that activate a direction look alike to an encoder? (Pach et al. 2025, arXiv 2504.02821)

With a_n ∈ [0, 1] a direction's activation on image n, min-max scaled over the images, and e_n the image's embedding::

    MS = Σ_{n≠m} a_n a_m cos(e_n, e_m) / Σ_{n≠m} a_n a_m

Embeddings are of unit norm and not centred, as in the authors' code. No N × N matrix is needed: the numerator is
‖Σ a_n e_n‖² − Σ a_n² ‖e_n‖², the denominator (Σ a_n)² − Σ a_n².

The paper scores units with one activation an image; a layer with positions has P of them, of which the largest (or the
mean) counts [ours]. It is the logit as it is, not cut off at the threshold: images without the concept get weight too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from evaluate.detector_bank import Bank, block_images
from stores.errors import MismatchError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

log = logging.getLogger(__name__)

Activation = Literal["max", "mean"]
PIECE = 2**24  # activations of the encoder held at a time


@dataclass(frozen=True)
class Monosemanticity:
    """Scores of J directions, and what to compare them with.

    Parameters
    ----------
    scores : (J,) float64 in [−1, 1]; NaN for a direction with the same activation on all images, or active on one only.
    baseline : mean cosine over all pairs of images: what a direction scores that activates alike everywhere.
    encoder : whose embeddings they are, in words.
    independent : False where the embeddings are of the model that the directions belong to: it then agrees with itself.
    images : N, the images scored on.
    """

    scores: np.ndarray
    baseline: float
    encoder: str
    independent: bool
    images: int

    def summary(self, columns: slice) -> dict[str, Any]:
        """Entries of ``summary.json`` for the directions of one file: the mean score over those that have one."""
        found = self.scores[columns]
        found = found[np.isfinite(found)]
        return {
            "monosemanticity": round(float(found.mean()), 4) if len(found) else None,
            "monosemanticity_baseline": round(self.baseline, 4) if np.isfinite(self.baseline) else None,
            "monosemanticity_encoder": self.encoder,
        }


def monosemanticity(
    reader: LayerReader,
    bank: Bank,
    embeddings: LayerReader | None = None,
    *,
    activation: Activation = "max",
    progress: Progress = silent,
) -> Monosemanticity:
    """Score all directions of a bank in two passes over the store; memory does not grow with its images.

    Parameters
    ----------
    reader : the layer the directions belong to.
    bank : J detectors.
    embeddings : a layer of an independent encoder, from a store of the same images, matched by name, whose activations
        are averaged over positions. None: the layer's own, where no other encoder is at hand.
    activation : what an image's activation is, the largest logit of all positions or their mean.

    Images that either of the models could not read are left out. Raises MismatchError when the other store has not all
    of the images, or one of these names twice; UsageError for an unknown ``activation``.
    """
    if activation not in get_args(Activation):
        raise UsageError(f"'activation' must be one of {', '.join(get_args(Activation))}, got '{activation}'.")
    partner = None if embeddings is None else _partners(reader, embeddings)
    device = bank.filters.device
    low = torch.full((bank.count,), torch.inf, dtype=torch.float64, device=device)
    high = -low
    for _, _, a in _activations(reader, bank, partner, activation, "monosemanticity: range", progress):
        low, high = torch.minimum(low, a.amin(0)), torch.maximum(high, a.amax(0))
    span = torch.where(high > low, high - low, torch.nan)

    width = (embeddings or reader).channels
    weighted = torch.zeros(bank.count, width, dtype=torch.float64, device=device)  # Σ a_n e_n
    plain = torch.zeros(width, dtype=torch.float64, device=device)  # Σ e_n
    own = torch.zeros(bank.count, dtype=torch.float64, device=device)  # Σ a_n² ‖e_n‖²
    total, squares, units = torch.zeros_like(own), torch.zeros_like(own), 0.0
    images = 0
    for index, block, a in _activations(reader, bank, partner, activation, "monosemanticity", progress):
        if embeddings is None or partner is None:
            e = _unit(_pooled(block, device))
        else:
            e = _unit(_pooled_images(embeddings, partner[index], device))
        norm = e.square().sum(1)  # (n,): 1, or 0 for an image of zeros, which is like no other
        a = (a - low) / span  # (n, J)
        weighted += a.T @ e
        plain += e.sum(0)
        own += a.square().T @ norm
        total += a.sum(0)
        squares += a.square().sum(0)
        units += float(norm.sum())
        images += len(index)

    pairs = total.square() - squares
    scores = torch.where(pairs > 0, (weighted.square().sum(1) - own) / pairs, torch.nan)
    baseline = (float(plain.square().sum()) - units) / (images * (images - 1)) if images > 1 else float("nan")
    independent = embeddings is not None and not _same_model(reader, embeddings)
    return Monosemanticity(
        scores.cpu().numpy(), baseline, _encoder(embeddings or reader, independent), independent, images
    )


def _activations(
    reader: LayerReader,
    bank: Bank,
    partner: np.ndarray | None,
    activation: Activation,
    stage: str,
    progress: Progress,
) -> Iterator[tuple[np.ndarray, np.ndarray, torch.Tensor]]:
    """One pass: image numbers (n,), activations (n, P, C), and each image's activation (n, J), float64."""
    done = 0
    for index, block in reader.blocks(images=block_images(reader, bank.count)):
        done += len(index)
        if partner is not None and (partner[index] < 0).any():
            index, block = index[partner[index] >= 0], block[partner[index] >= 0]
        if len(index):
            z = bank.logits(block)
            yield index, block, (z.amax(1) if activation == "max" else z.mean(1)).double()
        progress(stage, done, reader.n_images)


def _pooled(block: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, P, C) -> (n, C) means over positions, float64."""
    return torch.from_numpy(block).to(device).float().mean(1).double()


def _pooled_images(reader: LayerReader, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, C) means over positions of chosen images, a few at a time."""
    step = max(1, PIECE // (reader.positions * reader.channels))
    parts = [_pooled(reader.images(images[i : i + step]), device) for i in range(0, len(images), step)]
    return torch.cat(parts)


def _unit(e: torch.Tensor) -> torch.Tensor:
    norms = e.norm(dim=1, keepdim=True)
    return e / torch.where(norms > 0, norms, 1)


def _partners(reader: LayerReader, other: LayerReader) -> np.ndarray:
    """(N,) number in the other store of each image of the reader's; −1 where one of the two could not be read."""
    mine, theirs = reader.store.names, other.store.names
    number = {name: i for i, name in enumerate(theirs)}
    if len(number) < len(theirs):
        twice = next(name for i, name in enumerate(theirs) if number[name] != i)
        raise MismatchError(
            f"The store '{other.store.path}' holds several images named '{twice}', so their names do not identify "
            "images. Extract from a folder where names differ."
        )
    missing = [mine[i] for i in reader.image_indices if mine[i] not in number]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:3]) + (", …" if len(missing) > 3 else "")
        raise MismatchError(
            f"{len(missing)} of {reader.n_images} images of the store '{reader.store.path}' are not in '{other.store.path}', "
            f"which is to give their embeddings: {shown}. Extract both from the same folder, without --limit."
        )
    partner = np.full(len(mine), -1)
    for i in reader.image_indices:
        k = number[mine[i]]
        partner[i] = k if other.valid[k] else -1
    if left_out := int((partner[reader.image_indices] < 0).sum()):
        log.info("%d images without embeddings in '%s' are left out", left_out, other.store.path)
    return partner


def _same_model(reader: LayerReader, other: LayerReader) -> bool:
    mine, theirs = reader.store.provenance, other.store.provenance
    digests = [made["weights_digest"] for made in (mine, theirs) if made.get("weights_digest")]
    if len(digests) == 2:
        return bool(digests[0] == digests[1])
    return all(mine.get(key) == theirs.get(key) for key in ("model", "weights"))


def _encoder(reader: LayerReader, independent: bool) -> str:
    """Model and layer of the embeddings, in words."""
    made = reader.store.provenance
    whose = "an independent encoder" if independent else "the model itself"
    return f"{made.get('model')} ({made.get('weights')}), layer '{reader.spec.name}', mean over positions: {whose}"
