"""Null directions: what the same procedure finds where there is nothing to find (RCAV; Pfau et al. 2021, EDDP §5).

The labels of a detector's balanced sample are permuted, a logistic classifier is trained on each permutation, and its signal
vector estimated over its own positives, ``cov[x, z] / var[z]``. All permutations of a detector, and several detectors, are one
training problem: two products an epoch. What the paper leaves open [ours]: full-batch Adam from zero weights, on activations about the
sample's mean. (About the origin a large common activation keeps a classifier on one side of it: a quarter had no positives.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from evaluate.influence.sampling import Sample, rows_of
from stores.readers import LayerReader

_BYTES = {"cpu": 2**27, "cuda": 2**32}  # of a group's samples and logits


@dataclass(frozen=True)
class NullTraining:
    """``count`` permutations a detector, ``epochs`` of Adam at ``learning_rate``.

    ``precision`` of the products while training: "float32", "bfloat16" or "auto", which is bfloat16 where the device computes in it: three
    times as fast, and what comes out differs less from float32 than two draws of permutations do (BENCHMARKS.md).
    """

    count: int = 100
    epochs: int = 100
    learning_rate: float = 1e-2
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True)
class Nulls:
    """Null directions of a few of a file's ``detectors`` (g,): unit ``filters`` and ``signals`` (g, C, B), ``valid`` (g, B): those with a signal."""

    detectors: np.ndarray
    filters: torch.Tensor
    signals: torch.Tensor
    valid: torch.Tensor


def permuted_labels(n: int, training: NullTraining, detector: int) -> np.ndarray:
    """(n, B) float32: B permutations of n/2 ones and n/2 zeros, the same for a file's detector whatever it is computed with."""
    random = np.random.default_rng([training.seed, detector, 0x0CAF])
    ones = np.tile((np.arange(n) < n // 2).astype(np.float32), (training.count, 1))
    return random.permuted(ones, axis=1).T


def null_directions(
    reader: LayerReader, samples: list[Sample], training: NullTraining, *, device: str = "cpu"
) -> Iterator[Nulls]:
    """Null directions of all detectors of one file that have a sample, a few detectors at a time, those of like size together."""
    where = torch.device(device)
    sizes = np.array([len(sample.rows) for sample in samples])
    waiting = [int(d) for d in np.argsort(-sizes, kind="stable") if sizes[d] >= 4]
    while waiting:
        n = int(sizes[waiting[0]])
        # samples, also turned, with labels and logits; weights with gradients, Adam's two moments, signal vectors
        each = 4 * (n * (2 * reader.channels + 4 * training.count) + 6 * reader.channels * training.count)
        together = max(1, _BYTES.get(where.type, 2**27) // each)
        group, waiting = waiting[:together], waiting[together:]
        x = torch.zeros(len(group), n, reader.channels, device=where)
        y = torch.zeros(len(group), n, training.count, device=where)
        weight = torch.zeros(len(group), n, 1, device=where)
        for k, d in enumerate(group):
            here = int(sizes[d])
            rows = rows_of(reader, samples[d], where)
            x[k, :here] = rows - rows.mean(0)
            y[k, :here] = torch.from_numpy(permuted_labels(here, training, d)).to(where)
            weight[k, :here] = 1
        w, b = train(x, y, weight, training)
        yield Nulls(np.array(group), *unit_directions(x, w, b, weight))


def precision_on(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """In which precision null directions are trained on a device."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    ask = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.12 and later
    able: dict[str, bool] = ask()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def train(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, training: NullTraining
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic classifiers: weights (g, C, B) and biases (g, 1, B).

    Parameters
    ----------
    x : (g, n, C); y : (g, n, B) zeros and ones; weight : (g, n, 1), 0 for rows that only fill up.
    """
    g, _, c = x.shape
    w = torch.zeros(g, c, y.shape[2], device=x.device, dtype=x.dtype, requires_grad=True)
    b = torch.zeros(g, 1, y.shape[2], device=x.device, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([w, b], lr=training.learning_rate, fused=x.dtype == torch.float32)
    share = weight / weight.sum(1, keepdim=True)
    precision = precision_on(x.device, training.precision) if x.dtype == torch.float32 else x.dtype
    rows = x.to(precision)
    columns = rows.transpose(1, 2).contiguous()
    with torch.no_grad():
        for _ in range(training.epochs):
            z = torch.bmm(rows, w.to(precision)).to(x.dtype)
            error = z.add_(b).sigmoid_().sub_(y).mul_(share)  # the loss's gradient by the logits
            w.grad = torch.bmm(columns, error.to(precision)).to(x.dtype)
            b.grad = error.sum(1, keepdim=True)
            optimiser.step()
    return w.detach(), b.detach()


def unit_directions(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit filters and signal vectors (g, C, B), and which have one (g, B).

    A classifier with fewer than two positives, or the same logit at all of them, has no signal vector.
    """
    z = torch.baddbmm(b, x, w)
    on = ((z > 0) & (weight > 0)).to(x.dtype)
    count = on.sum(1, keepdim=True)
    safe = count.clamp_min(1)
    mean_z = (on * z).sum(1, keepdim=True) / safe
    off = on * (z - mean_z)  # centred, so that a large common activation costs no digits
    variance = (off * off).sum(1, keepdim=True) / safe
    signal = torch.bmm(x.transpose(1, 2), off) / safe / variance.clamp_min(1e-30)
    norm = signal.norm(dim=1, keepdim=True)
    spread = variance > 1e-10 * (mean_z * mean_z).clamp_min(1e-30)
    valid = ((count >= 2) & spread & torch.isfinite(norm) & (norm > 0))[:, 0]
    signal = torch.where(valid[:, None, :], signal / norm.clamp_min(1e-30), torch.zeros_like(signal))
    return w / w.norm(dim=1, keepdim=True).clamp_min(1e-30), signal, valid
