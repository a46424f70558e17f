"""Concepts that a class may lean on without reason [ours]: small and of only one class, or in most images of a class; and the network's way to it.

Whether a concept belongs to a class only a person can say: a cow belongs to a farm, a photo agency's mark does not, and to a network both
are the same. What can be counted is what makes a shortcut possible: the concept hardly occurs outside images predicted as the class and
takes little of the image, or most images of the class show it and most others do not, of whatever size it is, as a background; and pushing
the activations along its signal vector raises the class more than random directions do. Such concepts are listed for a person to look at,
the small ones of one class first, those of largest effect first. A concept that several directions carry is one suspect with
all of those that raise the class: its effect is that of the direction that raises it most, so that finding a direction twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluate.influence.cavs import LabelUse
from evaluate.influence.influence_study import Influence
from evaluate.influence.influence_tables import claims_of

CONCENTRATED = 0.9  # share of the images that show the concept and are predicted as the class
SMALL = 0.1  # of an image's positions, on average over images that show the concept
DOMINANT = 0.8  # share of the images predicted as the class that show the concept
USUAL = 0.5  # share of all images: a class or a concept of more goes with everything
FEW = 5  # images that show a concept: fewer say nothing of where it occurs
OF_ONE_CLASS = "small, of one class"
IN_MOST = "in most images of the class"
LARGE = f"{IN_MOST}; large: may be a background"
NO_SUSPECTS = (
    f"No suspects: of the labels on at most {100 * SMALL:g} % of an image, none has {100 * CONCENTRATED:g} % of its images predicted as one class "
    "and a direction that raises this class more than random directions do."
)


def suspect_rows(
    found: Influence,
    name: str,
    labels: Sequence[tuple[str, str]],
    columns: np.ndarray,
    use: LabelUse,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """One row a suspicious (label, class): those small and of one class first, largest change of probability first, at the summary's step.

    ``kind``: ``OF_ONE_CLASS``, ``IN_MOST`` or ``LARGE``. ``indices``: its directions, the one that raises the class most first; the row's effects are of that one.

    Parameters
    ----------
    labels : (label, category) of each direction; columns : (I,) their places among the L labels of ``use``, −1 for none.
    """
    a, part = found.config.alphas.index(found.config.alpha), found.slices[name]
    _, of_logit = claims_of(found, name, a, 0)
    probability = found.probability[a, 0, part]
    shown, annotated = use.images.sum(1), use.annotated.sum(1)
    of_class = use.images / np.maximum(use.annotated, 1)  # (L, K): of the class's images these show the concept
    usual = shown / np.maximum(annotated, 1)
    # a class that nearly all images are predicted as concentrates every concept
    usual_class = use.images.sum(0) / max(use.images.sum(), 1)
    raised = (probability > 0) & (found.t_random[a, 0, part] > 0) & of_logit.random
    rows = []
    for column in dict.fromkeys(columns[columns >= 0].tolist()):
        if shown[column] < FEW:
            continue
        share = use.images[column] / shown[column]
        small = use.area[column] <= SMALL
        of_one = (share >= CONCENTRATED) & (usual_class <= USUAL) & small
        in_most = (of_class[column] >= DOMINANT) & (use.images[column] >= FEW) & (usual[column] <= USUAL)
        for k in np.flatnonzero(of_one | in_most).tolist():
            mine = np.flatnonzero(raised[:, k] & (columns == column)).tolist()
            if not mine:
                continue
            mine.sort(key=lambda i: -probability[i, k])
            most = mine[0]
            if not of_one[k] and labels[most][0] == classes[k]:  # a scene's own label is in most of its images
                continue
            rows.append(
                {
                    "directions": name,
                    "indices": mine,
                    "label": labels[most][0],
                    "category": labels[most][1],
                    "class": k,
                    "class_name": classes[k],
                    "kind": OF_ONE_CLASS if of_one[k] else IN_MOST if small else LARGE,
                    "share_of_class": round(float(share[k]), 4),
                    "images": int(shown[column]),
                    "share_of_images": round(float(of_class[column, k]), 4),
                    "usual_share": round(float(usual[column]), 4),
                    "area": round(float(use.area[column]), 4),
                    "probability_change": float(f"{probability[most, k]:.6g}"),
                    "t_random": round(float(found.t_random[a, 0, part][most, k]), 4),
                    "p_random": float(f"{of_logit.p_random[most, k]:.6g}"),
                }
            )
    return sorted(rows, key=lambda row: (row["kind"] != OF_ONE_CLASS, -row["probability_change"]))


def of_one_class(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The suspects that are small and of one class."""
    return [row for row in rows if row["kind"] == OF_ONE_CLASS]


def labels_tested(columns: np.ndarray, use: LabelUse) -> dict[str, int]:
    """How many ``labels`` directions carry (``columns`` as above), and how many of them are ``small`` enough to be of one class."""
    carried = np.unique(columns[columns >= 0])
    small = (use.area[carried] <= SMALL) & (use.images[carried].sum(1) >= FEW)
    return {"labels": len(carried), "small": int(small.sum())}


def no_suspects(tested: Mapping[str, int] | None) -> str:
    """That no small concept of one class was found, with how many labels were ``labels_tested``."""
    return f"{NO_SUSPECTS} {tested_words(tested)}".rstrip()


def tested_words(tested: Mapping[str, int] | None) -> str:
    """How many labels were looked at; empty where an older evaluation does not say."""
    if tested is None:
        return ""
    return f"{tested['small']} of {tested['labels']} labels are small enough to be tested (at most {100 * SMALL:g} % of an image, on {FEW} images or more)."
