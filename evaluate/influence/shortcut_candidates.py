"""Concepts that a class may lean on without reason [ours]: small, of only one class, and the network's way to it.

Whether a concept belongs to a class only a person can say: a cow belongs to a farm, a photo agency's mark does not, and to a network both
are the same. What can be counted is what makes a shortcut possible: the concept hardly occurs outside images predicted as the class,
takes little of the image, and pushing the activations along its signal vector raises the class more than random directions do. Such
concepts are listed for a person to look at, those of largest effect first. A concept that several directions carry is one suspect with
all of those that raise the class: its effect is that of the direction that raises it most, so that finding a direction twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluate.influence.cavs import LabelUse
from evaluate.influence.influence_study import Influence
from evaluate.influence.influence_tables import claims_of

CONCENTRATED = 0.9  # share of the images that show the concept and are predicted as the class
SMALL = 0.1  # of an image's positions, on average over images that show the concept
FEW = 5  # images that show a concept: fewer say nothing of where it occurs
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
    """One row a suspicious (label, class), largest change of probability first, at the summary's step.

    ``indices``: its directions, the one that raises the class most first; the row's effects are of that one.

    Parameters
    ----------
    labels : (label, category) of each direction; columns : (I,) their places among the L labels of ``use``, −1 for none.
    """
    a, part = found.config.alphas.index(found.config.alpha), found.slices[name]
    _, of_logit = claims_of(found, name, a, 0)
    probability = found.probability[a, 0, part]
    shown = use.images.sum(1)
    rows = []
    for column in dict.fromkeys(columns[columns >= 0].tolist()):
        if shown[column] < FEW or use.area[column] > SMALL:
            continue
        k = int(use.images[column].argmax())
        share = use.images[column, k] / shown[column]
        # a class that nearly all images are predicted as concentrates every concept
        usual = use.images[:, k].sum() / max(use.images.sum(), 1)
        if share < CONCENTRATED or usual > 0.5:
            continue
        raised = (probability[:, k] > 0) & (found.t_random[a, 0, part][:, k] > 0) & of_logit.random[:, k]
        mine = sorted(np.flatnonzero(raised & (columns == column)).tolist(), key=lambda i: -probability[i, k])
        if not mine:
            continue
        most = mine[0]
        rows.append(
            {
                "directions": name,
                "indices": mine,
                "label": labels[most][0],
                "category": labels[most][1],
                "class": k,
                "class_name": classes[k],
                "share_of_class": round(float(share), 4),
                "images": int(shown[column]),
                "area": round(float(use.area[column]), 4),
                "probability_change": float(f"{probability[most, k]:.6g}"),
                "t_random": round(float(found.t_random[a, 0, part][most, k]), 4),
                "p_random": float(f"{of_logit.p_random[most, k]:.6g}"),
            }
        )
    return sorted(rows, key=lambda row: -row["probability_change"])
