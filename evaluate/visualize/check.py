"""The paper's check of direction pairs: what a signal vector writes into a picture, does the pair's filter read it there?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from evaluate.visualize.maximise import Target, VisualizeConfig, maximise
from evaluate.visualize.natural import Natural
from evaluate.visualize.pixels import Eyes, to_jpeg
from extract.forward import computing_in
from stores.directions import Directions
from stores.errors import MismatchError, UsageError
from stores.progress import Progress, silent

Role = Literal["random", "signal", "filter"]
DIGITS = 4
_ROLES: tuple[Role, ...] = ("random", "signal", "filter")


@dataclass(frozen=True)
class Check:
    """What M detectors make of the pictures of their own directions, and of others'.

    The response of a detector to a picture is the mean of its logit z over the layer's positions within the image: of what
    was maximised along the direction, the same mean along the filter, less the threshold. ``fires``: the share of these
    positions where z > 0. All pictures are measured as saved: 8 bits, JPEG, through the network's own transform.

    Attributes
    ----------
    indices : which directions of the set, M of them.
    signals, filters, flats : (M, M), response of detector j to the picture along signal vector i, along filter i, and to the
        mean colour of the signal vector's picture only.
    randoms : (R, M), to the pictures along random directions.
    fires_signal, fires_filter, fires_flat : (M,), each detector on its own pair's picture.
    fires_random : (R, M).
    """

    indices: tuple[int, ...]
    signals: np.ndarray
    filters: np.ndarray
    flats: np.ndarray
    randoms: np.ndarray
    fires_signal: np.ndarray
    fires_filter: np.ndarray
    fires_flat: np.ndarray
    fires_random: np.ndarray

    @property
    def beyond_random(self) -> np.ndarray:
        """(M,) share of the random directions' pictures to which the detector responds less than to its signal vector's."""
        return (np.diag(self.signals) > self.randoms).mean(0)

    @property
    def beyond_others(self) -> np.ndarray:
        """(M,) the same share of the other pairs' signal pictures; NaN where there are none."""
        others = len(self.indices) - 1
        wins = (np.diag(self.signals) > self.signals).sum(0)  # never more than itself: the diagonal adds nothing
        return wins / others if others else np.full(1, np.nan)


def check_pairs(
    network: Any,
    directions: Directions,
    thresholds: np.ndarray,
    indices: Sequence[int],
    natural: Natural,
    config: VisualizeConfig,
    *,
    keep: Callable[[Role, int, bytes], None] | None = None,
    progress: Progress = silent,
) -> Check:
    """Draw pictures along signal vectors, filters and random directions alike, and let the pairs' own detectors look at them.

    Parameters
    ----------
    network : as ``maximise`` takes it, with its ``transform`` and ``input_size``.
    thresholds : (I,), of all detectors of the set.
    indices : of the pairs to check.
    natural : see ``maximise``.
    keep : called with each picture as a JPEG file's bytes; a random direction's index is its number.

    Random directions are uniform on the sphere, the same for all detectors; they depend only on the seed.

    Raises
    ------
    UsageError, MismatchError
        An index that the set does not have, or twice; directions of another layer.
    NonFiniteError
        See ``maximise``.

    Source: EDDP (arXiv 2509.23926) draws pictures along signal vectors and asks whether they show what the filter detects;
    the measure and its comparisons are [ours].
    """
    if thresholds.shape != (directions.count,):
        raise MismatchError(f"'thresholds' must be ({directions.count},), one a direction, got {thresholds.shape}.")
    chosen = checked(network, directions, indices)
    eyes = Eyes(network.transform, network.input_size)
    detectors = torch.from_numpy(directions.filters[:, chosen]), torch.from_numpy(thresholds[chosen]).float()
    results: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {role: [] for role in (*_ROLES, "flat")}
    targets = _targets(directions, chosen, config)
    drawn = maximise(network, eyes.normalise, natural, targets, config, progress=progress)
    for target, rgb in drawn:
        role, index = _ROLES[target.key[0]], target.key[1]
        file = to_jpeg(rgb)
        if keep is not None:
            keep(role, index, file)
        results[role].append(_measure(network, eyes.see(file), *detectors))
        if role == "signal":
            flat = to_jpeg(rgb.mean((1, 2), keepdim=True).expand_as(rgb))
            results["flat"].append(_measure(network, eyes.see(flat), *detectors))
    response = {role: np.stack([mean for mean, _ in found]) for role, found in results.items()}
    fires = {role: np.stack([share for _, share in found]) for role, found in results.items()}
    return Check(
        tuple(chosen),
        response["signal"],
        response["filter"],
        response["flat"],
        response["random"],
        np.diag(fires["signal"]),
        np.diag(fires["filter"]),
        np.diag(fires["flat"]),
        fires["random"],
    )


def seconds_a_picture(
    network: Any, directions: Directions, indices: Sequence[int], natural: Natural, config: VisualizeConfig
) -> float:
    """How long a picture of ``check_pairs`` takes, from two steps on a batch."""
    eyes = Eyes(network.transform, network.input_size)
    targets = _targets(directions, list(indices), config)[: config.batch]
    for steps in (1, 2):  # the first takes longer
        start = time.perf_counter()
        for _ in maximise(network, eyes.normalise, natural, targets, replace(config, steps=steps)):
            pass
    return (time.perf_counter() - start) / (steps * len(targets)) * config.steps


def check_rows(check: Check, name: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One row a pair, for the table ``visualization``; ``labels``: of all directions of the set called ``name``.

    ``response_random``, ``fires_random``: medians over the random directions' pictures. See ``Check`` for what is measured.
    """
    columns = _columns(check)
    return [
        {"directions": name, "index": index, "label": labels[index], **{key: _cell(v[m]) for key, v in columns.items()}}
        for m, index in enumerate(check.indices)
    ]


def _columns(check: Check) -> dict[str, np.ndarray]:
    """The table's numbers, (M,) each."""
    return {
        "response_signal": np.diag(check.signals),
        "response_filter": np.diag(check.filters),
        "response_random": np.median(check.randoms, axis=0),
        "response_flat": np.diag(check.flats),
        "fires_signal": check.fires_signal,
        "fires_filter": check.fires_filter,
        "fires_random": np.median(check.fires_random, axis=0),
        "fires_flat": check.fires_flat,
        "beyond_random": check.beyond_random,
        "beyond_others": check.beyond_others,
    }


def checked(network: Any, directions: Directions, indices: Sequence[int]) -> list[int]:
    """The indices, once everything belongs together; raises UsageError and MismatchError as ``check_pairs`` does."""
    directions.check_store(network.layer, network.layout.channels)
    wrong = [index for index in indices if not 0 <= index < directions.count]
    if wrong or not len(indices) or len(set(indices)) < len(indices):
        got = ", ".join(map(str, wrong or indices)) or "none"
        raise UsageError(
            f"The directions to draw must be different numbers from 0 to {directions.count - 1}, got {got}."
        )
    return [int(index) for index in indices]


def _targets(directions: Directions, chosen: list[int], config: VisualizeConfig) -> list[Target]:
    """Random directions first, then the pairs, each signal vector next to its filter: what is ready is complete."""
    made = []
    for r in range(config.randoms):
        generator = np.random.default_rng([config.seed, r])
        made.append(Target(f"random direction {r}", generator.standard_normal(directions.channels), (0, r)))
    for index in chosen:
        made.append(Target(f"signal vector {index}", directions.signals[:, index], (1, index)))
        made.append(Target(f"filter {index}", directions.filters[:, index], (2, index)))
    return made


def _measure(
    network: Any, image: torch.Tensor, filters: torch.Tensor, thresholds: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Response of each detector to one preprocessed image (3, h, w), and the share of positions where it fires: (M,) each."""
    with torch.no_grad(), computing_in("float32", torch.device(network.device)):
        x = network.activations(image[None].to(network.device))[0, network.layout.prefix :].cpu()  # (P, C)
    z = x @ filters - thresholds
    return z.mean(0).double().numpy(), (z > 0).double().mean(0).numpy()


def _cell(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), DIGITS)
