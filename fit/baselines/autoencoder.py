"""A sparse autoencoder's codes and its gradient, by hand: nothing is computed for codes that are 0.

``z = x Eᵀ + b``, codes ``c`` are some of z (k largest of a row, or all positive ones), ``x̃ = c D + o``. A row has k codes of I, so
of the five dense products of autograd only the first, ``x Eᵀ``, is left: decoding and both gradients by weights are sums of a few
rows (``embedding_bag``: each sum in a fixed order by one thread, so that results do not depend on the number of threads), and the
gradient by the codes is a product sampled where codes are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from fit.tile_backends import in_pieces

PIECE = 128  # rows that one thread takes at a time
SPARSE_GAIN = 12  # a dense product costs as much as a sparse one with every twelfth code (measured, float32)


@dataclass
class Autoencoder:
    """Parameters, as rows of units: ``encoder`` E (I, C), ``bias`` b (I,), ``decoder`` D (I, C), ``offset`` o (C,)."""

    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def random(cls, units: int, channels: int, generator: torch.Generator, device: str = "cpu") -> Autoencoder:
        """Random unit signal vectors, and encoders equal to them (Gao et al. 2024, appendix A.1)."""
        decoder = F.normalize(torch.randn(units, channels, generator=generator), dim=1).to(device)
        return cls(decoder.clone(), decoder.new_zeros(units), decoder, decoder.new_zeros(channels))

    def parameters(self) -> list[torch.Tensor]:
        return [self.encoder, self.bias, self.decoder, self.offset]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C) -> z (B, I)."""
        return torch.addmm(self.bias, x, self.encoder.T)

    def project(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient by D without what would only change lengths (Bricken et al. 2023)."""
        along = (gradient * self.decoder).sum(1, keepdim=True)
        return gradient.addcmul_(along, self.decoder, value=-1)

    def normalise(self) -> None:
        """Signal vectors back to length 1."""
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True).clamp_min_(1e-12))


@dataclass(frozen=True)
class Codes:
    """Codes, row by row: ``unit`` (m,) int64, ``value`` (m,) ≥ 0, ``start`` (B + 1,): row p's are start[p] to
    start[p + 1]; ``units`` is I."""

    unit: torch.Tensor
    value: torch.Tensor
    start: torch.Tensor
    units: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.start) - 1

    def row(self) -> torch.Tensor:
        """(m,) the row that each code is of."""
        return torch.repeat_interleave(torch.arange(self.rows, device=self.start.device), self.start.diff())

    def dense(self) -> torch.Tensor:
        """(B, I)."""
        out = self.value.new_zeros(self.rows, self.units)
        out[self.row(), self.unit] = self.value
        return out

    def fired(self) -> torch.Tensor:
        """(I,) in how many rows each unit's code is positive."""
        return torch.bincount(self.unit[self.value > 0], minlength=self.units)


def top_codes(z: torch.Tensor, k: int) -> Codes:
    """The k largest of each row of z (B, I), negative ones as 0 (Gao et al. 2024)."""
    rows, units = z.shape
    if z.device.type == "cpu":
        from fit.baselines.code_kernels import largest  # slow to import, and only needed here

        unit, value = torch.empty(rows, k, dtype=torch.int64), torch.empty(rows, k, dtype=z.dtype)
        arrays = z.contiguous().numpy(), unit.numpy(), value.numpy()
        in_pieces(lambda n: largest(*(a[n * PIECE : (n + 1) * PIECE] for a in arrays)), -(-rows // PIECE))
    else:
        value, unit = z.topk(k, dim=1, sorted=False)
        value.clamp_min_(0)
    start = torch.arange(0, rows * k + 1, k, device=z.device)
    return Codes(unit.reshape(-1), value.reshape(-1), start, units)


def positive_codes(z: torch.Tensor) -> Codes:
    """All positive entries of z (B, I)."""
    on = z > 0
    start = F.pad(on.sum(1).cumsum(0), (1, 0))
    return Codes(on.nonzero()[:, 1], z[on], start, z.shape[1])


@dataclass
class Gradients:
    """Of the mean over rows of ``|c D + o − target|² + penalty Σ c``; ``residual`` (B, C) is ``c D + o − target``."""

    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor
    offset: torch.Tensor
    residual: torch.Tensor


def gradients(
    x: torch.Tensor,
    target: torch.Tensor,
    codes: Codes,
    decoder: torch.Tensor,
    offset: torch.Tensor,
    *,
    penalty: float = 0.0,
) -> Gradients:
    """The exact gradient by E, b, D and o, by dense or sparse products, whichever cost less for this many codes.

    Parameters
    ----------
    x, target : (B, C) what is encoded, and what is to be decoded (the same, but for units that are revived).
    codes : of x.
    penalty : weight of the sum of a row's codes.
    """
    if len(codes.unit) * SPARSE_GAIN > codes.rows * codes.units:
        c = codes.dense()
        residual = torch.addmm(offset, c, decoder).sub_(target)
        slope = residual * (2 / len(x))
        by_code = (slope @ decoder.T).add_(penalty / len(x)).mul_(c > 0)
        return Gradients(by_code.T @ x, by_code.sum(0), c.T @ slope, slope.sum(0), residual)
    residual = _sums(codes.unit, codes.value, codes.start, decoder).add_(offset).sub_(target)
    slope = residual * (2 / len(x))
    by_code = _sampled(slope, decoder, codes).add_(penalty / len(x)).mul_(codes.value > 0)
    order = _grouped(codes)
    row, start = codes.row()[order], F.pad(torch.bincount(codes.unit, minlength=codes.units).cumsum(0), (1, 0))
    return Gradients(
        encoder=_sums(row, by_code[order], start, x),
        bias=by_code.new_zeros(codes.units).index_add_(0, codes.unit, by_code),
        decoder=_sums(row, codes.value[order], start, slope),
        offset=slope.sum(0),
        residual=residual,
    )


def _sums(index: torch.Tensor, weight: torch.Tensor, start: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Weighted sums of chosen rows: out[j] is the sum of ``weight[m] rows[index[m]]`` over m from start[j] to start[j + 1]."""
    return F.embedding_bag(index, rows, start, per_sample_weights=weight, mode="sum", include_last_offset=True)


def _sampled(slope: torch.Tensor, decoder: torch.Tensor, codes: Codes) -> torch.Tensor:
    """(m,) the entries of ``slope Dᵀ`` at which there are codes."""
    if slope.device.type != "cpu":
        return (slope @ decoder.T)[codes.row(), codes.unit]
    _first_sparse_tensor()
    places = torch.sparse_csr_tensor(codes.start, codes.unit, torch.zeros_like(codes.value), (codes.rows, codes.units))
    return torch.sparse.sampled_addmm(places, slope, decoder.T).values()


def _grouped(codes: Codes) -> torch.Tensor:
    """(m,) the order that puts codes of the same unit next to each other, rows ascending."""
    if codes.unit.device.type == "cpu" and codes.units <= 2**16:  # numpy sorts 16 bits by radix
        return torch.from_numpy(np.argsort(codes.unit.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(codes.unit, stable=True)


@cache
def _first_sparse_tensor() -> None:
    """torch says once a process that its sparse tensors are young; not to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
