"""Tables and summary of a study of influence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evaluate.influence.influence_study import ROLES, Influence
from evaluate.influence.significance import Counted, Standardised, by_deviations, counted
from evaluate.influence.steering import Steering

DIGITS = 6
Columns = dict[str, np.ndarray]


def claims_of(found: Influence, name: str, a: int, role: int) -> tuple[Counted, Standardised]:
    """Significance of one file's directions × classes at one step: of the score by counting, of the change of the logit by deviations."""
    part, level = found.slices[name], found.config.level
    return (
        counted(found.reached[a, role, part], found.nulls[part], level),
        by_deviations(
            found.t[a, role, part],
            found.nulls[part],
            found.extremes[a, role, list(found.slices).index(name)],
            found.t_random[a, role, part],
            found.randoms,
            level,
        ),
    )


def influence_parts(
    found: Influence, name: str, labels: Sequence[str], classes: Sequence[str], names: Sequence[str] | None = None
) -> Iterator[Columns]:
    """One row a direction, role, step and class; a part for each role and step, for there may be millions. ``names``: the labels if None."""
    part, config = found.slices[name], found.config
    j, k = part.stop - part.start, len(found.base)
    for role, role_name in enumerate(ROLES):
        for a, alpha in enumerate(config.alphas):
            score, logit = claims_of(found, name, a, role)
            yield {
                "directions": np.full(j * k, name, object),
                "index": np.repeat(np.arange(j), k),
                "name": np.repeat(np.array(labels if names is None else names, object), k),
                "label": np.repeat(np.array(labels, object), k),
                "role": np.full(j * k, role_name, object),
                "alpha": np.full(j * k, alpha),
                "class": np.tile(np.arange(k), j),
                "class_name": np.tile(np.array(classes, object), j),
                "score": found.score[a, role, part].ravel().round(DIGITS),
                "logit_change": _short(found.logit[a, role, part]),
                "probability_change": _short(found.probability[a, role, part]),
                "significant": logit.significant.ravel(),
                "p_paper": score.p_paper.ravel().round(DIGITS),
                "p": score.p.ravel().round(DIGITS),
                "p_holm": score.p_holm.ravel().round(DIGITS),
                "q_bh": score.q_bh.ravel().round(DIGITS),
                "significant_paper": score.paper.ravel(),
                "significant_holm": score.holm.ravel(),
                "significant_bh": score.bh.ravel(),
                "t": found.t[a, role, part].ravel().round(4),
                "q_t": _short(logit.q_t),
                "p_max": logit.p_max.ravel().round(DIGITS),
                "t_random": found.t_random[a, role, part].ravel().round(4),
                "p_random": _short(logit.p_random),
                "significant_t": logit.t.ravel(),
                "significant_max": logit.max.ravel(),
                "significant_random": logit.random.ravel(),
            }


def _short(values: np.ndarray) -> np.ndarray:
    """Six significant digits: changes of probability may be tiny, and are no zeros."""
    size = np.abs(values).clip(1e-15)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(size)))
    return (np.round(values * scale) / scale).ravel()  # divided, so that 0.1 is read as 0.1


def direction_influence_rows(
    found: Influence, name: str, labels: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a direction, role and step: on how many classes it acts significantly, and on which of them most; the largest significant change first."""
    part = found.slices[name]
    rows = []
    for role, role_name in enumerate(ROLES):
        for a, alpha in enumerate(found.config.alphas):
            score, probability = found.score[a, role, part], found.probability[a, role, part]
            significant = claims_of(found, name, a, role)[1].significant
            size = np.abs(probability)
            sure = np.where(significant, size, -1)
            for i in np.lexsort((-size.max(1), -sure.max(1))).tolist():
                most = int(sure[i].argmax()) if significant[i].any() else None
                rows.append(
                    {
                        "directions": name,
                        "index": i,
                        "label": labels[i],
                        "role": role_name,
                        "alpha": alpha,
                        "nulls": int(found.nulls[part][i]),
                        "significant": int(significant[i].sum()),
                        "significant_raised": int((significant[i] & (probability[i] > 0)).sum()),
                        "significant_lowered": int((significant[i] & (probability[i] < 0)).sum()),
                        "largest_probability_change": float(_short(size[i].max(keepdims=True))[0]),
                        "strongest_class": most,
                        "strongest_class_name": "" if most is None else classes[most],
                        "strongest_score": None if most is None else round(float(score[i, most]), DIGITS),
                        "strongest_probability_change": None
                        if most is None
                        else float(_short(probability[i, [most]])[0]),
                    }
                )
    return rows


def class_influence_rows(
    found: Influence, name: str, labels: Sequence[str], classes: Sequence[str], *, most: int = 10
) -> list[dict[str, Any]]:
    """The concept influence diagram of each class, at the summary's step: its ``most`` most positive and most negative signal vectors."""
    a, part = found.config.alphas.index(found.config.alpha), found.slices[name]
    score, probability = found.score[a, 0, part], found.probability[a, 0, part]
    significant = claims_of(found, name, a, 0)[1].significant
    rows = []
    for k, class_name in enumerate(classes):
        order = np.argsort(-probability[:, k], kind="stable")
        positive = [i for i in order[:most] if probability[i, k] > 0]
        negative = [i for i in order[::-1][:most] if probability[i, k] < 0]
        for sign, chosen in (("positive", positive), ("negative", negative)):
            rows += [
                {
                    "directions": name,
                    "class": k,
                    "class_name": class_name,
                    "sign": sign,
                    "rank": rank + 1,
                    "index": int(i),
                    "label": labels[i],
                    "score": round(float(score[i, k]), DIGITS),
                    "probability_change": float(_short(probability[i, k : k + 1])[0]),
                    "significant": bool(significant[i, k]),
                }
                for rank, i in enumerate(chosen)
            ]
    return rows


def influence_summary(found: Influence, name: str) -> dict[str, Any]:
    """What ``summary.json`` says of one file's influence.

    ``significant`` (pairs), ``significant_directions``, and by other rules ``sdc``, ``scdp`` (paper's) and ``significant_bh``: of the signal
    vectors at the summary's step. ``influence``: the same for every role and step, by all rules, with the masked table: directions that raise
    and that lower classes, significant classes a direction and directions a class (mean, min, max), classes with at least one.
    """
    config = found.config
    every = {
        role_name: {f"{alpha:g}": _one(found, name, a, role) for a, alpha in enumerate(config.alphas)}
        for role, role_name in enumerate(ROLES)
    }
    main = every["signal"][f"{config.alpha:g}"]
    part = found.slices[name]
    return {
        **{key: main[key] for key in ("significant", "significant_directions", "sdc", "scdp", "significant_bh")},
        "influence": {
            "alpha": config.alpha,
            "images": found.images,
            "through": found.through,
            "classes": len(found.base),
            "nulls": config.nulls,
            "randoms": found.randoms,
            "directions_without_nulls": int((found.nulls[part] == 0).sum()),
            "level": config.level,
            **every,
        },
    }


def _one(found: Influence, name: str, a: int, role: int) -> dict[str, Any]:
    part = found.slices[name]
    probability = found.probability[a, role, part]
    of_score, of_logit = claims_of(found, name, a, role)
    masked = of_logit.significant
    raised, lowered = masked & (probability > 0), masked & (probability < 0)
    return {
        "significant": int(masked.sum()),
        "significant_directions": int(masked.any(1).sum()),
        "sdc": int(of_score.paper.any(1).sum()),
        "scdp": int(of_score.paper.sum()),
        "sdc_bh": int(of_score.bh.any(1).sum()),
        "significant_bh": int(of_score.bh.sum()),
        "significant_holm": int(of_score.holm.sum()),
        "sdc_t": int(of_logit.t.any(1).sum()),
        "significant_t": int(of_logit.t.sum()),
        "sdc_max": int(of_logit.max.any(1).sum()),
        "significant_max": int(of_logit.max.sum()),
        "sdc_random": int(of_logit.random.any(1).sum()),
        "significant_random": int(of_logit.random.sum()),
        "mean_absolute_probability_change": float(_short(np.abs(probability).mean(keepdims=True))[0]),
        "largest_probability_change": float(_short(np.abs(probability).max(1).mean(keepdims=True))[0]),
        "directions_raising": int(raised.any(1).sum()),
        "directions_lowering": int(lowered.any(1).sum()),
        "classes_raised": int(raised.any(0).sum()),
        "classes_lowered": int(lowered.any(0).sum()),
        "classes_per_direction": _spread(masked.sum(1)),
        "directions_per_class": _spread(masked.sum(0)),
    }


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {"mean": round(float(counts.mean()), 3), "min": int(counts.min()), "max": int(counts.max())}


def steering_rows(
    name: str, labels: Sequence[str], names: Sequence[str], classes: Sequence[str], curves: Mapping[str, Steering]
) -> list[dict[str, Any]]:
    """One row a direction, role and step of the sweep; random directions have no name and no label, and the same rows for every file."""
    rows = []
    for role, found in curves.items():
        for i, target in enumerate(found.target.tolist()):
            rows += [
                {
                    "directions": name,
                    "index": i,
                    "name": "" if role == "random" else names[i],
                    "label": "" if role == "random" else labels[i],
                    "role": role,
                    "class": target,
                    "class_name": classes[target],
                    "alpha": float(alpha),
                    "probability": float(_short(probability[None])[0]),
                    "monotone_up_to": float(found.monotone[i]),
                }
                for alpha, probability in zip(found.alphas, found.probability[:, i], strict=True)
            ]
    return rows


def steering_summary(curves: Mapping[str, Steering]) -> dict[str, dict[str, float]]:
    """By role: the median of the largest α up to which the class's probability never falls, and the mean probability gained at best."""
    return {
        role: {
            "monotone_up_to": float(np.quantile(found.monotone, 0.5, method="lower")),  # a step that was taken
            "probability_gained": float(
                _short((found.probability.max(0) - found.probability[0]).mean(keepdims=True))[0]
            ),
        }
        for role, found in curves.items()
    }
