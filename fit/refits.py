"""Which directions are found again: short fits of random halves of the images, and how many of them contain each direction [ours].

A direction that another half of the images does not give is no finding. Refits come in pairs, on two halves that share no image,
each with a seed of its own. A refit contains a direction when it has a partner whose logits correlate above ``CONTAINED`` over the data,
every direction of the refit being the partner of one at most.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from stores.errors import FitError, UsageError
from stores.progress import Progress, silent
from stores.ranks import Ranks
from stores.readers import LayerReader, Part
from stores.similarity import logit_correlation
from stores.statistics import statistics

log = logging.getLogger(__name__)
CONTAINED = 0.9  # correlation of logits
ROWS = 65536  # positions of a part, at least, or 1024 a direction: of more than twice as many, parts are smaller than halves


class Refittable(Protocol):
    """What of a fitted ``fit.base.Fitter`` is used here."""

    config: Any
    ranks: Ranks

    @property
    def filters_(self) -> np.ndarray: ...

    def brief(self, seed: int) -> Any: ...


def found_again(fitter: Refittable, reader: LayerReader, progress: Progress = silent) -> np.ndarray | None:
    """Share of ``fitter.config.refits`` refits that contain each of its directions.

    Of several ranks each does some of the refits, alone; all of them end with the same numbers.

    Parameters
    ----------
    fitter : fitted.
    reader : what it was fitted on.

    Returns
    -------
    (I,) float32 in [0, 1]; None, with a warning, where a half of the images is too little to fit.
    """
    ranks, refits, filters = fitter.ranks, fitter.config.refits, fitter.filters_
    moments = statistics(reader, device=fitter.config.device, ranks=ranks)
    found = torch.zeros(refits, filters.shape[1], dtype=torch.float64, device=fitter.config.device)
    failed = torch.zeros(1, dtype=torch.float64, device=fitter.config.device)
    for k in range(ranks.rank, refits, ranks.size):
        progress("refits", k, refits)
        try:
            again = fitter.brief(fitter.config.seed + 1 + k).fit(reader.only(part_of_refit(fitter, reader, k)), None)
        except (FitError, UsageError) as error:
            log.warning("found_again is left out: a part of the images cannot be fitted (%s)", error)
            failed += 1
            break
        alike = np.abs(logit_correlation(filters, again.filters_, moments))
        first, second = linear_sum_assignment(alike, maximize=True)
        found[k, first] = torch.from_numpy(alike[first, second] > CONTAINED).to(found)
        progress("refits", k + 1, refits)
    ranks.sum(found, failed)
    return None if failed.any() else found.mean(0).cpu().numpy().astype(np.float32)


def part_of_refit(fitter: Refittable, reader: LayerReader, k: int) -> Part:
    """The images of refit ``k``: of numbers 2j and 2j + 1 no image is in both."""
    config = fitter.config
    halves = max(2, reader.n_rows // max(ROWS, 1024 * config.n_directions))
    return Part(k % 2, halves, config.seed + k // 2)
