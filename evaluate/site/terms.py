"""What the pages' own words mean, beside those of ``evaluate.report.definitions``."""

from __future__ import annotations

from collections.abc import Mapping

from evaluate.report.columns import COLUMNS
from evaluate.report.definitions import DEFINITIONS, INFLUENCE, REFITS

ELSEWHERE = ("supervised_thresholds", "union", "resolution")  # of report.html: no page here speaks of them
ALWAYS = ("decoding direction", "encoding direction", "agreement", "share", "coverage", "redundancy")
SITE = {
    "logit": "How far a position is beyond a detector's threshold: w·x − b. The detector is positive where it is above 0. Methods without "
    "thresholds of their own are given one that their largest logits exceed (the top 0.5 % of the store's positions, unless they say otherwise).",
    "top images": "The images of the store on which a detector has its largest logit at any position. The region where it is positive is bright "
    "and outlined; logits between the layer's positions are interpolated.",
    "distribution": "How many positions of the whole store have a logit in each bin, on a logarithmic scale.",
    "neighbours": "The directions of largest cosine between signal vectors, and between filters, in activation space.",
    "map": "Directions whose signal vectors have a large cosine lie together: t-SNE of 1 − cosine, classical scaling for fewer than ten. Only "
    "nearness means something; the axes do not.",
    "interval": "95 % interval of the IoU: its label is held, the val images are drawn anew (bootstrap).",
    "taken for": "The class of the network's largest logit for an image.",
}
MARKED = {
    "dead": "A detector that hardly ever fires on the positions it was fitted on.",
    "duplicate": "A filter that is almost the same as another one of the set.",
    "overfull": "A detector that fires at most positions.",
}
TRUE = {
    "true concept": "A concept that the synthetic store was made with, matched one to one with a direction so that the sum of the IoUs is largest.",
    "found": "A true concept is found where the IoU of its direction's positive positions and those where it is present is above 0.5.",
    "distinct matches": "Share of true concepts whose direction of largest IoU is no other concept's.",
    "RMSE": "Root mean square difference of a direction pair's signal values and the true ones, about their means, over matched concepts "
    "and all positions.",
}
MOVED = {
    "paper's rule": "Of one direction and one class, as published: the share of images whose probability of the class does not fall is compared "
    "with those of the direction's null directions, classifiers trained on permuted labels. p is the share of null directions that are at least "
    "as far from one half, and the pair is significant where p < 0.05 divided by the number of pairs: in practice, where no null direction is.",
    "concept influence diagram": "Of one class, the at most ten signal vectors that raise its probability most and the ten that lower it most.",
    "steering": "What becomes of the probability of one class, the one that small steps along the signal vector raise most, as all images are "
    "pushed further and further; the same along the filter and along random directions (each followed on the class that it raises most).",
    "suspects": "Concepts that make a shortcut possible: at least 90 % of the images that show them are taken for one class, they take at most "
    "a tenth of the image on average, and signal vectors with their label raise that class beyond random directions. Whether such a concept belongs to its "
    "class only a person can say (our definition).",
}
STABLE = {
    "matched": "The directions of two fits are matched one to one, for each measure anew, so that its mean over the pairs is largest.",
    "by chance": "The same of this fit and of the other one with themselves, no direction with itself: what any two directions of a fit have.",
    "kappa": "(matched − by chance) / (1 − by chance): 0 is no better than chance, 1 the same directions.",
    "mutual": "Share of the first fit's directions whose nearest of the other fit, by the correlation of logits, has them as its nearest.",
    "nearest in the set": "Mean |correlation| of logits of this set's directions with the nearest other one of the set: near 1, it holds twins.",
}
DRAWN = {
    "feature visualisation": "A picture synthesised so that the layer's activations go as far as possible along a direction. Beside it stands what "
    "the pair's own detector makes of the picture (its mean logit over the layer's positions), and of pictures synthesised along random "
    "directions: if the signal vector is what the filter reads, it fires on the first and not on the others (EDDP's check).",
}


def definitions(
    *,
    labelled: bool,
    moved: bool,
    drawn: bool,
    truth: bool = False,
    marked: bool = True,
    refitted: bool = False,
    stable: bool = False,
) -> dict[str, str]:
    """Term -> text of what a report shows, those of every column of its comparison included.

    Parameters
    ----------
    labelled, moved, drawn, truth : whether there are labels, influence, synthesised pictures, and a truth to compare with.
    marked : whether the diagnosis names any direction. refitted, stable : whether there were refits, and other fits of the method.
    """
    found = {key: text for key, text in DEFINITIONS.items() if (key not in ELSEWHERE if labelled else key in ALWAYS)}
    found |= SITE if labelled else {key: text for key, text in SITE.items() if key != "interval"}
    parts = (
        (marked, MARKED), (refitted, REFITS), (stable, STABLE), (truth, TRUE), (moved, INFLUENCE | MOVED), (drawn, DRAWN),
    )  # fmt: skip
    return found | {key: text for wanted, part in parts if wanted for key, text in part.items()}


def column_terms(found: Mapping[str, str]) -> dict[str, str]:
    """Column of the comparison -> its text: the definition of the same name, else the column's own sentence."""
    own = {_plain(term): text for term, text in found.items()}
    return {c.key: own.get(_plain(c.title)) or own.get(_plain(c.key)) or c.text for c in COLUMNS}


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())
