"""An explanation as a JSON document: what is written for one image, and what its page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.explain.counterfactual_search import Turned
from evaluate.explain.explainer import Explained, softmax
from evaluate.explain.heat_maps import Step
from evaluate.explain.phrases import Concept, cautions, change_words, contribution_words
from evaluate.explain.values import Usual
from evaluate.number_format import probability

UNREAD = "the prediction does not depend on the positions of this layer; choose an earlier layer"


@dataclass(frozen=True)
class Terms:
    """What numbers are called: ``classes`` by number, ``concepts`` by direction; ``top`` classes are listed; ``rows``: what the
    store's are."""

    classes: Sequence[str]
    concepts: Sequence[Concept]
    top: int = 5
    rows: str = "images"


def listed_classes(found: Explained, top: int) -> list[int]:
    """The most probable classes, and those the explanation is about."""
    order = np.argsort(-found.contributions.logits, kind="stable")[:top].tolist()
    return list(dict.fromkeys([*order, *(k for k in (found.explained, found.against, found.target) if k is not None)]))


def describe(found: Explained, usual: Usual, terms: Terms) -> dict[str, Any]:
    """The document of one image; contributions to each of the ``classes`` listed, strongest for the explained class first."""
    classes = listed_classes(found, terms.top)
    p, parts = found.probabilities, found.contributions
    order = np.argsort(-np.abs(parts.parts[:, found.explained]), kind="stable")
    return {
        "predicted": _class(found.predicted, p, terms),
        "explained": _class(found.explained, p, terms),
        "against": None if found.against is None else _class(found.against, p, terms),
        "classes": [{**_class(k, p, terms), "logit": _round(parts.logits[k])} for k in classes],
        "exact": parts.exact,
        "reads_positions": not found.unread,
        "read_with_care": cautions_of(found, terms),
        "base": [_round(parts.base[k]) for k in classes],
        "residual": [_round(parts.residual[k]) for k in classes],
        "contributions": [_contribution(int(i), found, usual, terms, classes) for i in order],
        "counterfactual": _counterfactual(found, usual, terms),
    }


def _class(k: int, p: np.ndarray, terms: Terms) -> dict[str, Any]:
    return {"number": k, "name": terms.classes[k], "probability": _round(p[k])}


def _contribution(i: int, found: Explained, usual: Usual, terms: Terms, classes: Sequence[int]) -> dict[str, Any]:
    concept = terms.concepts[i]
    fired = np.flatnonzero(found.fires[:, i] > 0)
    return {
        "direction": i,
        "name": concept.name,
        "label": concept.label,
        "category": concept.category,
        "found_again": _share(concept),
        "value": _round(found.pooled[i]),
        "spreads": _round(found.pooled[i] / usual.spread[i]),
        "fires_at": fired.tolist(),
        "to": [_round(found.contributions.parts[i, k]) for k in classes],
    }


def _share(concept: Concept) -> float | None:
    return None if concept.found_again is None else _round(concept.found_again)


def _counterfactual(found: Explained, usual: Usual, terms: Terms) -> dict[str, Any] | None:
    """What would turn the prediction; only the target where nothing was found, and whether there is nothing; None where it is the target."""
    if found.target is None or found.target == found.predicted:
        return None
    target = {"number": found.target, "name": terms.classes[found.target]}
    turned = found.turned
    if turned is None:
        return {"target": target, "found": False, "none_exists": none_exists(found, usual)}
    delta = turned.change.delta
    order = sorted(turned.change.changed.tolist(), key=lambda i: -abs(delta[i]) / usual.spread[i])
    return {
        "target": target,
        "found": True,
        "words": change_words(terms.concepts, delta, usual.spread),
        "changes": [
            {
                "direction": i,
                "name": terms.concepts[i].name,
                "from": _round(found.pooled[i]),
                "to": _round(found.pooled[i] + delta[i]),
                "spreads": _round(delta[i] / usual.spread[i]),
                "usual": [_round(usual.low[i]), _round(usual.high[i])],
                "found_again": _share(terms.concepts[i]),
            }
            for i in order
        ],
        "cost": _round(turned.change.cost),
        "beyond_usual": turned.change.beyond,
        "probability": _round(softmax(turned.after)[found.target]),
        "flips": turned.flips,
        "probability_kept": _kept(turned, found.target),
        "flips_kept": turned.flips_kept,
    }


def none_exists(found: Explained, usual: Usual) -> bool:
    """Whether finding no change shows that there is none: along straight paths only, and where the head reads nothing here."""
    return found.unread or (found.contributions.exact and not usual.nonnegative)


def brief(document: dict[str, Any]) -> dict[str, Any]:
    """What the document of all images keeps of one: what it is predicted as, and what would turn it.

    ``document``: of ``describe``, with its ``image``, ``row``, ``sentence`` and ``files``, which stay as they are.
    """
    turned = document["counterfactual"]
    kept = ("target", "found", "none_exists", "words", "flips", "flips_kept", "beyond_usual")
    return {
        **{
            key: document[key]
            for key in ("image", "row", "predicted", "explained", "sentence", "read_with_care", "files")
        },
        "counterfactual": turned
        and {**{key: turned[key] for key in kept if key in turned}, "changed": len(turned.get("changes", ()))},
    }


def _kept(turned: Turned, target: int) -> float | None:
    return None if turned.after_kept is None else _round(softmax(turned.after_kept)[target])


def steps_of(found: Explained, terms: Terms, shown: int, other: int | None = None) -> list[Step]:
    """The sum that ends at the explained logit, or at its difference to another's: base, concepts, the others, the total.

    The residual stands among the concepts by its size; after the others where it is smaller than all that are shown.
    """
    total, base, parts, residual = found.contributions.between(found.explained, other)
    order = np.argsort(-np.abs(parts), kind="stable")
    first, rest = order[:shown], order[shown:]
    steps = [Step(_named(int(i), found, terms), float(parts[i])) for i in first]
    larger = int((np.abs(parts[first]) >= abs(residual)).sum())
    if len(rest):
        steps.append(Step(f"{len(rest)} other{'' if len(rest) == 1 else 's'}", float(parts[rest].sum()), "rest"))
    left = Step("no concept" if found.contributions.exact else "interaction", residual, "rest")
    steps.insert(larger if larger < len(first) else len(steps), left)
    steps.insert(0, Step("average image", base, "base"))
    steps.append(Step(terms.classes[found.explained] if other is None else "difference", total, "total"))
    return steps


def _named(i: int, found: Explained, terms: Terms) -> str:
    return ("little " if found.pooled[i] < 0 else "") + terms.concepts[i].name


def cautions_of(found: Explained, terms: Terms) -> list[str]:
    """Why this explanation is to be read with care."""
    if found.unread:
        return []
    sums = {"the logit": found.contributions.between(found.explained, None)[2:]}
    if found.against is not None:
        name = terms.classes[found.against]
        sums[f"the difference to {name}"] = found.contributions.between(found.explained, found.against)[2:]
    changed = [] if found.turned is None else found.turned.change.changed.tolist()
    return cautions(terms.concepts, sums, changed)


def sentence(found: Explained, usual: Usual, terms: Terms) -> str:
    """``predicted as farm (0.93): watermark (12) +2.10, little sea (7) +0.43; would be beach with less barn, more sand``."""
    p, k = found.probabilities, found.predicted
    names = terms.classes
    parts = found.contributions.parts[:, found.explained]
    residual = float(found.contributions.residual[found.explained])
    text = f"predicted as {names[k]} ({probability(float(p[k]))})"
    if found.explained != k:
        text += f"; {names[found.explained]} ({probability(float(p[found.explained]))})"
    if found.unread:
        return f"{text}: {UNREAD}"
    text += f": {contribution_words(terms.concepts, parts, found.pooled, residual)}"
    return f"{text}; {turning_words(found, usual, terms)}" if found.target is not None else text


def turning_words(found: Explained, usual: Usual, terms: Terms) -> str:
    """``would be beach with less barn, more sand``, and what is not right about it."""
    if found.target is None:
        return ""
    name = terms.classes[found.target]
    if found.target == found.predicted:
        return f"is {name} already"
    turned = found.turned
    if turned is None:
        if none_exists(found, usual):
            return f"no change of these concepts makes it {name}"
        return f"no change of these concepts was found that makes it {name}"
    words = change_words(terms.concepts, turned.change.delta, usual.spread)
    if not (turned.flips or turned.flips_kept):
        return f"not even {words} make it {name}"
    text = f"would be {name} with {words}"
    if turned.change.beyond:
        text += f" (beyond what {terms.rows} have)"
    elif turned.flips_kept is False:
        text += " (not with activations limited to 0 and more)"
    return text


def _round(value: float) -> float:
    return float(f"{float(value):.8g}")
