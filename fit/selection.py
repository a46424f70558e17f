"""How many directions: as many as two halves of the images give alike [ours].

Too few directions mix concepts; too many share concepts out among near-twins, otherwise in each half. So short fits of two halves that
share no image are compared for several numbers I, by κ: how much better their logits correlate, matched one to one, than those of
different directions of one set do (``stores.similarity``). Of the numbers with κ of at least ``KAPPA`` the one of largest I·κ is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fit.base import Fitter
from fit.refits import part_of_refit
from stores.progress import Progress, silent
from stores.ranks import ALONE, Ranks
from stores.readers import LayerReader
from stores.similarity import agreement, logit_correlation
from stores.statistics import statistics

NUMBERS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
KAPPA = 0.5  # from where two halves count as alike
POSITIONS = 100
PAIRS = 2  # of halves a number


@dataclass(frozen=True)
class Selection:
    """``number`` of directions, ``why`` in words, and a row for each number tried: ``directions``, ``kappa`` (mean over pairs of
    halves), ``kappa_low`` and ``kappa_high`` (of the pairs), ``logit_correlation``, ``coverage`` and ``loss`` (None for methods without)."""

    number: int
    why: str
    rows: list[dict[str, Any]]


def select_number(
    make: Callable[..., Fitter[Any]],
    reader: LayerReader,
    *,
    numbers: Sequence[int] = NUMBERS,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Selection:
    """Fit halves with more and more directions; once two were alike, until two numbers in a row are not.

    Parameters
    ----------
    make : gives an estimator, called with ``n_directions``.
    numbers : ascending; those above the layer's channels, or with fewer than ``POSITIONS`` each in a half, are left out.

    Of several ranks the first does it, and all take its number.

    Raises FitError when half of the images cannot be fitted.
    """
    selection = _select(make, reader, numbers, progress) if ranks.rank == 0 else None
    if ranks.size == 1 and selection is not None:
        return selection
    number = int(ranks.share({"number": torch.tensor(selection.number)} if selection else None)["number"])
    return selection or Selection(number, "", [])


def _select(
    make: Callable[..., Fitter[Any]], reader: LayerReader, numbers: Sequence[int], progress: Progress
) -> Selection:
    moments = statistics(reader)
    rows: list[dict[str, Any]] = []
    most = min(reader.channels, reader.n_rows // (2 * POSITIONS))
    tried = [number for number in numbers if number <= most] or [numbers[0]]
    for done, number in enumerate(tried):
        progress("numbers of directions", done, len(tried), f"{number} directions")
        rows.append(_row(make(n_directions=number), reader, moments))
        if len(rows) > 2 and max(row["kappa"] for row in rows) >= KAPPA > max(row["kappa"] for row in rows[-2:]):
            break
    alike = [row for row in rows if row["kappa"] >= KAPPA]
    best = (
        max(alike, key=lambda row: row["directions"] * row["kappa"])
        if alike
        else max(rows, key=lambda row: row["kappa"])
    )
    said = (
        "as many as two halves of the images give alike"
        if alike
        else "what two halves of the images give most alike, though they are not"
    )
    seen = ", ".join(f"{row['directions']}: {row['kappa']:.2f}" for row in rows)
    return Selection(best["directions"], f"{said} (κ of each number tried: {seen}; alike from {KAPPA:g})", rows)


def _row(fitter: Fitter[Any], reader: LayerReader, moments: Any) -> dict[str, Any]:
    found, fits = [], []
    for pair in range(PAIRS):
        first, second = (
            fitter.brief(fitter.config.seed + 1 + k).fit(reader.only(part_of_refit(fitter, reader, k)), None)
            for k in (2 * pair, 2 * pair + 1)
        )
        fits += [first, second]
        a, b = first.filters_, second.filters_
        alike = (np.abs(logit_correlation(left, right, moments)) for left, right in ((a, b), (a, a), (b, b)))
        found.append(agreement(*alike))
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
