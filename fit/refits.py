"""Short fits of parts of the images: which directions are found again, and how many directions to find [ours].

A direction that another half of the images does not give is no finding. Refits come in pairs, on two halves that share no image,
each with a seed of its own. A refit contains a direction when it has a partner whose logits correlate above ``CONTAINED`` over the data,
every direction of the refit being the partner of one at most. A direction whose logits correlate as much with another one of its own set
finds such a partner by chance: no refit contains it.

Too few directions mix concepts; too many share concepts out among near-twins, otherwise in each half. So for several numbers I two halves
are compared by κ: how much better their logits correlate, matched one to one, than those of different directions of one set do
(``stores.similarity``). Of the numbers with κ of at least ``KAPPA`` the one of largest I·κ is taken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from fit.checkpoint import Checkpoint
from fit.config import CONTAINED, KAPPA, FitterConfig
from stores.errors import FitError, UsageError
from stores.progress import Progress, silent
from stores.ranks import ALONE, Ranks
from stores.readers import LayerReader, Part
from stores.similarity import Matching, logit_correlation, match
from stores.statistics import Statistics, statistics

log = logging.getLogger(__name__)
ROWS = 65536  # positions of a part, at least, or 1024 a direction: of more than twice as many, parts are smaller than halves
NUMBERS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MEANING = (
    "κ: by the correlation of their logits, how much more alike the matched directions of two halves are than different directions of one "
    "half; 1: the same, 0: no more."
)
POSITIONS = 100  # of a half, for each direction
PAIRS = 2  # of halves a number
COLUMNS = ("directions", "kappa", "kappa_low", "kappa_high", "logit_correlation", "coverage", "loss")

Method = Any  # a ``fit.base.Fitter``, whose module uses this one


@dataclass(frozen=True)
class Refits:
    """``found_again``: (I,) float32 in [0, 1], the share of refits that contain each direction; None, with a warning, where a half of the
    images is too little to fit. ``diagnosis``: ``too_alike``, how many directions correlate above ``CONTAINED`` with another one of the set;
    ``kappa``, how alike pairs of refits are whose images are halves of all (mean of at most two pairs; not there for one refit or one direction);
    ``loss_seen`` and ``loss_unseen``, mean ``row_loss`` of the first two refits over images that they were fitted on and over those of the
    other half, not there for methods without one.
    """

    found_again: np.ndarray | None
    diagnosis: dict[str, float]


def refit(fitter: Method, reader: LayerReader, progress: Progress = silent) -> Refits:
    """Fit ``fitter.config.refits`` parts of the images, and compare with what was found in all.

    Of several ranks each does some of the refits in one process; all of them end with the same numbers.

    Parameters
    ----------
    fitter : fitted.
    reader : what it was fitted on.
    """
    ranks, refits, filters = fitter.ranks, fitter.config.refits, fitter.filters_
    moments = statistics(reader, device=fitter.config.device, ranks=ranks)
    others = np.abs(logit_correlation(filters, filters, moments))
    np.fill_diagonal(others, 0)
    distinct = others.max(0) <= CONTAINED
    found = torch.zeros(refits, filters.shape[1], dtype=torch.float64, device=fitter.config.device)
    losses = torch.zeros(
        2, 2, dtype=torch.float64, device=fitter.config.device
    )  # of two refits: seen and unseen images
    pairs = np.zeros((min(refits // 2, PAIRS), 2, *filters.shape), np.float32)  # the filters of refits 2j and 2j + 1
    failed = torch.zeros(1, dtype=torch.float64, device=fitter.config.device)
    for k in range(ranks.rank, refits, ranks.size):
        progress("refits", k, refits)
        try:
            again = _refit(fitter, reader, k)
            if k < len(losses):
                halves = (reader.only(part_of_refit(fitter.config, reader.n_rows, j)) for j in (k, 1 - k))
                both = [again.row_loss(half) for half in halves]
                losses[k] = torch.tensor([math.nan if loss is None else loss for loss in both])
        except (FitError, UsageError) as error:
            log.warning("found_again is left out: a part of the images cannot be fitted (%s)", error)
            failed += 1
            break
        alike = np.abs(logit_correlation(filters, again.filters_, moments))
        first, second = linear_sum_assignment(alike, maximize=True)
        if k < 2 * len(pairs):
            pairs[k // 2, k % 2] = again.filters_
        found[k, first] = torch.from_numpy((alike[first, second] > CONTAINED) & distinct[first]).to(found)
        progress("refits", k + 1, refits)
    filters_of_pairs = torch.from_numpy(pairs).to(found.device)
    ranks.sum(found, losses, failed, filters_of_pairs)
    if failed.any():
        return Refits(None, {})
    kappas = [alike_halves(pair[0], pair[1], moments).kappa for pair in filters_of_pairs.cpu().numpy()]
    seen, unseen = losses[:refits].mean(0).tolist()
    named = {} if math.isnan(seen) else {"loss_seen": round(seen, 4), "loss_unseen": round(unseen, 4)}
    if kappas and not math.isnan(kappa := float(np.mean(kappas))):
        named["kappa"] = round(kappa, 4)
    named = {"too_alike": int((~distinct).sum()), **named}
    return Refits(found.mean(0).cpu().numpy().astype(np.float32), named)


def alike_halves(a: np.ndarray, b: np.ndarray, moments: Statistics) -> Matching:
    """How alike the filters (C, I) of two halves are, by the correlation of their logits."""
    return match(*(np.abs(logit_correlation(left, right, moments)) for left, right in ((a, b), (a, a), (b, b))))


def part_of_refit(config: FitterConfig, rows: int, k: int) -> Part:
    """The images of refit ``k``, of a reader with so many rows: of numbers 2j and 2j + 1 no image is in both."""
    halves = max(2, rows // max(ROWS, 1024 * config.n_directions))
    return Part(k % 2, halves, config.seed + k // 2)


def _refit(fitter: Method, reader: LayerReader, k: int) -> Method:
    half = reader.only(part_of_refit(fitter.config, reader.n_rows, k))
    return fitter.brief(fitter.config.seed + 1 + k).fit(half, None)


@dataclass(frozen=True)
class Selection:
    """``number`` of directions, ``why`` in words, and a row for each number tried: ``directions``, ``kappa`` (mean over pairs of
    halves), ``kappa_low`` and ``kappa_high`` (of the pairs), ``logit_correlation``, ``coverage`` and ``loss`` (None for methods without)."""

    number: int
    why: str
    rows: list[dict[str, Any]]


def select_number(
    make: Callable[..., Method],
    reader: LayerReader,
    *,
    numbers: Sequence[int] = NUMBERS,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> Selection:
    """Fit halves with more and more directions; once two were alike, until two numbers in a row are not.

    Parameters
    ----------
    make : gives an estimator, called with ``n_directions``.
    numbers : ascending; those above the layer's channels, or with fewer than ``POSITIONS`` each in a half, are left out.
    checkpoint : where each number that was tried is stored, and resumed from; by default nowhere.

    Of several ranks the first does it, and all take its number.

    Raises FitError when half of the images cannot be fitted, and as ``Checkpoint.load``.
    """
    selection = _select(make, reader, numbers, progress, checkpoint or Checkpoint()) if ranks.rank == 0 else None
    if ranks.size == 1 and selection is not None:
        return selection
    number = int(ranks.share({"number": torch.tensor(selection.number)} if selection else None)["number"])
    return selection or Selection(number, "", [])


def _select(
    make: Callable[..., Method], reader: LayerReader, numbers: Sequence[int], progress: Progress, checkpoint: Checkpoint
) -> Selection:
    moments = statistics(reader)
    most = min(reader.channels, reader.n_rows // (2 * POSITIONS))
    tried = [number for number in numbers if number <= most] or [numbers[0]]
    identity = make(n_directions=tried[0]).identity(reader)
    own = checkpoint.of({**identity, "config": {**identity["config"], "n_directions": "auto"}, "numbers": tried})
    rows = _resumed(own, tried)
    while len(rows) < len(tried) and not _enough(rows):
        number = tried[len(rows)]
        progress("numbers of directions", len(rows), len(tried), f"{number} directions")
        rows.append(_row(make(n_directions=number), reader, moments))
        own.save({}, {"log": rows})
    alike = [row for row in rows if row["kappa"] >= KAPPA]
    if alike:
        best = max(alike, key=lambda row: row["directions"] * row["kappa"])
        said = "the largest number × κ of those at which two halves of the images are alike"
    else:
        best = max(rows, key=lambda row: row["kappa"])
        said = "what two halves of the images give most alike, though they are not"
    seen = ", ".join(f"{row['directions']}: {row['kappa']:.2f}" for row in rows)
    left = ", ".join(str(number) for number in tried[len(rows) :])
    stopped = f" Not tried, as two numbers in a row were not alike: {left}." if left else ""
    why = f"{said} (κ of each number tried: {seen}; alike from {KAPPA:g}).{stopped} {MEANING}"
    return Selection(best["directions"], why, rows)


def _resumed(checkpoint: Checkpoint, tried: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the numbers that an earlier run has tried."""
    state = checkpoint.load()
    rows: list[dict[str, Any]] = [] if state is None else state.values["log"]
    with checkpoint.resuming(state):
        if [row["directions"] for row in rows] != tried[: len(rows)] or any(set(row) != set(COLUMNS) for row in rows):
            raise ValueError("its rows are not of these numbers")
    return rows


def _enough(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether two numbers in a row are not alike, after one that was."""
    kappas = [row["kappa"] for row in rows]
    return len(rows) > 2 and max(kappas) >= KAPPA > max(kappas[-2:])


def _row(fitter: Method, reader: LayerReader, moments: Statistics) -> dict[str, Any]:
    found, fits = [], []
    for pair in range(PAIRS):
        first, second = (_refit(fitter, reader, k) for k in (2 * pair, 2 * pair + 1))
        fits += [first, second]
        found.append(alike_halves(first.filters_, second.filters_, moments))
    kappas = [one.kappa for one in found]
    coverages = [fit.diagnosis_["coverage"] for fit in fits if "coverage" in fit.diagnosis_]
    losses = [fit.log_[-1]["total"] for fit in fits if fit.log_ and "total" in fit.log_[-1]]
    return {
        "directions": fitter.config.n_directions,
        "kappa": round(float(np.mean(kappas)), 4),
        "kappa_low": round(min(kappas), 4),
        "kappa_high": round(max(kappas), 4),
        "logit_correlation": round(float(np.mean([one.matched for one in found])), 4),
        "coverage": round(float(np.mean(coverages)), 4) if coverages else None,
        "loss": round(float(np.mean(losses)), 4) if losses else None,
    }
