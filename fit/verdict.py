"""Is a fit any good, what is wrong with it, and what to try next: in words, from the numbers in a directions file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fit.config import CONTAINED, DUPLICATE, KAPPA, SUPERVISED
from stores.directions import Directions

ENOUGH = 300  # positions a direction; with fewer, known directions were not recovered (64 concepts, BENCHMARKS.md)
AGAIN = 0.5  # share of the directions: fits of 1200 images have 0.56 to 0.73, of 200 images 0.42, of 48 images 0
# bits above the loss of seen images: at features.18 of MobileNetV2 at most 0.3 with 1200 images, 0.7 with 300, 1.1 with 200, 2.4 and more with
# 100 and fewer; at features.13, with four times the positions, at most 0.1 with 300 and more, 0.3 with 100, which find as many directions again
UNSEEN = 0.7
TWINS = 0.25  # share of the directions: fits of 1200 images have at most a tenth
COVERED = 0.5  # share of positions; fits of 1200 images have 0.98
BLOCK = 1024  # directions compared with all at once
PAIRS = 5  # of signal vectors that are named
NOT_LEARNED = ("neurons", *SUPERVISED)  # how many positions each direction has does not decide what they find
FEWER, MORE_IMAGES = "Take fewer --directions.", "Take more images, or fewer --directions."


@dataclass(frozen=True)
class Verdict:
    """``lines``: how often directions are found again, what detectors cover, what the fit had to learn from; ``problems``: what is wrong,
    each with the next thing to try."""

    lines: list[str]
    problems: list[str]


def verdict(directions: Directions) -> Verdict:
    """The verdict on one fit; what its method does not measure is left out."""
    numbers = directions.info.get("diagnosis", {})
    lines = [_again(directions, numbers), _detectors(directions, numbers), _data(directions, numbers)]
    return Verdict([line for line in lines if line], list(_problems(directions, numbers)))


def twins(numbers: dict[str, Any]) -> int:
    """How many directions are nearly the same as another one."""
    return len({index for pair in numbers.get("duplicates", ()) for index in pair})


def _again(directions: Directions, numbers: dict[str, Any]) -> str:
    share = directions.share_found_again
    if share is None:
        return ""
    refits = f"{directions.refits} refits" if directions.refits else "the refits"
    found = f"found again: {round(share * directions.count)} of {directions.count} directions, by at least half of {refits} on random halves of the images"
    if alike := numbers.get("too_alike"):
        found += f"; {alike} cannot be counted: too like another direction of this fit (|correlation| of logits above {CONTAINED:g})"
    kappa = _kappa(directions)
    return (
        found
        if kappa is None
        else f"{found}; halves of the images are {'' if kappa >= KAPPA else 'not '}alike (κ = {kappa:.2f}, alike from {KAPPA:g})"
    )


def signal_twins(directions: Directions) -> np.ndarray:
    """(n, 2) pairs of directions whose signal vectors are nearly parallel in activation space, by number."""
    s, found = directions.signals, []  # of unit norm
    for start in range(0, directions.count, BLOCK):
        pairs = np.argwhere(np.abs(s[:, start : start + BLOCK].T @ s) > DUPLICATE)
        pairs[:, 0] += start
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def _detectors(directions: Directions, numbers: dict[str, Any]) -> str:
    parts = []
    if "coverage" in numbers:
        some = [f"{100 * numbers['coverage']:.3g} % of positions have an active one"]
        some.append(f"{twins(numbers)} of {directions.count} have a twin")
        some += [f"{len(numbers[key])} {key}" for key in ("dead", "overfull") if numbers.get(key)]
        parts.append("detectors: " + ", ".join(some))
    if len(pairs := signal_twins(directions)):
        named = ", ".join(f"{i} and {j}" for i, j in pairs[:PAIRS].tolist())
        more = f" and {len(pairs) - PAIRS} more pairs" if len(pairs) > PAIRS else ""
        parts.append(f"signal vectors almost the same (|cos| above {DUPLICATE:g}): {named}{more}")
    return "; ".join(parts)


def _data(directions: Directions, numbers: dict[str, Any]) -> str:
    images, each = directions.info.get("images"), numbers.get("positions_per_direction")
    some = [f"{images / directions.count:.{0 if images >= 10 * directions.count else 1}f} images"] if images else []
    some += [f"{each:.0f} positions"] if each else []
    parts = [f"{' and '.join(some)} for each direction"] if some else []
    seen, unseen = numbers.get("loss_seen"), numbers.get("loss_unseen")
    if seen is not None and unseen is not None:
        parts.append(f"loss of refits {unseen:.3g} on images that they did not see, {seen:.3g} on those that they saw")
    return "data: " + "; ".join(parts) if parts else ""


def _kappa(directions: Directions) -> float | None:
    """How alike halves of the images are at this number of directions; None where it was not measured (fewer than two refits)."""
    rows = directions.info.get("selection", {}).get("rows", ())
    measured: float | None = directions.info.get("diagnosis", {}).get("kappa")
    return next((row["kappa"] for row in rows if row["directions"] == directions.count), measured)


def _problems(directions: Directions, numbers: dict[str, Any]) -> Iterator[str]:
    each, share = numbers.get("positions_per_direction"), directions.share_found_again
    seen, unseen = numbers.get("loss_seen"), numbers.get("loss_unseen")
    few = each is not None and each < ENOUGH and directions.method not in NOT_LEARNED
    own = seen is not None and unseen is not None and unseen - seen > UNSEEN
    if few:
        yield f"{each:.0f} positions for each direction; with fewer than about {ENOUGH} directions depend on luck. {MORE_IMAGES}"
    if own:
        yield f"The loss is {unseen:.3g} on images that refits did not see and {seen:.3g} on those that they saw: they fit their own images. {MORE_IMAGES}"
    kappa = _kappa(directions)
    if kappa is not None and kappa < KAPPA:
        yield (
            f"Two halves of the images do not give these {directions.count} directions alike (κ = {kappa:.2f}, less than {KAPPA:g}). "
            f"Take more images, or another layer{'' if 'selection' in directions.info else '; --directions auto looks for a number at which they are'}."
        )
    if share is not None and share < AGAIN:
        tried = "selection" in directions.info or directions.method in SUPERVISED
        following = "more images, or another layer" if tried or few or own else "--directions auto, or another layer"
        chance = (
            f"{round(100 * share)} % of the directions are found again; the others may be chance"
            if share
            else "No direction is found again: all may be chance"
        )
        yield f"{chance}. Try {following}."
    if (number := twins(numbers)) > TWINS * directions.count:
        yield f"{number} of {directions.count} directions have a twin that is active at the same positions. {FEWER}"
    if numbers.get("coverage", 1) < COVERED:
        yield f"No detector is active at {100 * (1 - numbers['coverage']):.0f} % of the positions. Take more --directions."
    for key, text in (("dead", "positive almost nowhere"), ("overfull", "positive on more than half of all positions")):
        if found := numbers.get(key):
            yield f"{len(found)} detectors are {text}. Take fewer --directions, or another --seed."
