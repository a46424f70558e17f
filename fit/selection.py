"""How many directions: the largest number that two halves of the images give alike [ours].

Too few directions mix concepts; too many share concepts out among near-twins, otherwise in each half. So short fits of two halves that
share no image are compared for several numbers, by κ: how much better their logits correlate, matched one to one, than those of
different directions of one set do (``stores.similarity``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fit.fitter import Fitter
from fit.refits import part_of_refit
from stores.errors import FitError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.similarity import agreement, logit_correlation
from stores.statistics import statistics

log = logging.getLogger(__name__)
NUMBERS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
KAPPA = 0.5  # from where two halves count as alike
PAIRS = 3  # of halves a number


@dataclass(frozen=True)
class Selection:
    """``number`` of directions, ``why`` in words, and a row for each number tried: ``directions``, ``kappa`` (mean over pairs of
    halves), ``kappa_low`` and ``kappa_high`` (of the pairs), ``logit_correlation``, ``coverage`` and ``loss`` (None for methods without)."""

    number: int
    why: str
    rows: list[dict[str, Any]]


def select_number(
    make: Callable[[int], Fitter[Any]],
    reader: LayerReader,
    *,
    numbers: Sequence[int] = NUMBERS,
    progress: Progress = silent,
) -> Selection:
    """Fit halves with more and more directions, until two numbers in a row are no longer found alike.

    Parameters
    ----------
    make : gives an estimator for a number of directions.
    numbers : ascending; those above the layer's channels are left out.

    Raises FitError when not even the smallest number can be fitted to half of the images.
    """
    moments = statistics(reader)
    rows: list[dict[str, Any]] = []
    tried = [number for number in numbers if number <= reader.channels] or [reader.channels]
    for done, number in enumerate(tried):
        progress("numbers of directions", done, len(tried), f"{number} directions")
        try:
            rows.append(_row(make(number), reader, moments))
        except FitError as error:
            if not rows:
                raise
            log.warning("More than %d directions cannot be fitted to half of the images (%s)", tried[done - 1], error)
            break
        if len(rows) > 1 and all(row["kappa"] < KAPPA for row in rows[-2:]):
            break
    alike = [row for row in rows if row["kappa"] >= KAPPA]
    best = alike[-1] if alike else max(rows, key=lambda row: row["kappa"])
    reached = (
        f"the largest of {', '.join(str(row['directions']) for row in rows)} that two halves of the images give alike"
    )
    missed = "the number that two halves of the images give most alike, though none reaches"
    why = f"{reached if alike else missed} (κ {best['kappa']:.2f}, {'' if alike else 'not '}at least {KAPPA:g})"
    return Selection(best["directions"], why, rows)


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
