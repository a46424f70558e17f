"""Tables and summary of a correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluate.correct.choice import SENTENCES, TOO_COSTLY, TOO_FEW, AccuracyChange
from evaluate.correct.correction_study import Study, accuracy, confusion


def correction_rows(study: Study) -> list[dict[str, Any]]:
    """One row a vector, setting and set of images: accuracy on the images that were not held out; the first rows are of no correction."""
    rows = [
        {"vector": "none", "draw": None, "setting": "", "strength": 0.0, "shift": 0.0, "set": which, "images": int((~of.held).sum()),
         "accuracy": _rounded(study.accuracy(which, study.before[which]))}
        for which, of in study.sets().items()
    ]  # fmt: skip
    for (vector, draw, setting), found in study.others.items():
        name = vector if draw < 0 else f"{vector} {draw}"
        chosen = study.tried[name].chosen if setting == "own" else study.correction
        rows += [
            {"vector": vector, "draw": None if draw < 0 else draw, "setting": setting, "strength": _rounded(chosen.strength),
             "shift": _rounded(chosen.shift), "set": which, "images": int((~of.held).sum()),
             "accuracy": _rounded(study.accuracy(which, found[which]))}
            for which, of in study.sets().items()
        ]  # fmt: skip
    return rows


def strength_rows(study: Study) -> list[dict[str, Any]]:
    """One row a vector and setting that was tried: its accuracies on the held-out images, with intervals, and whether it was taken."""
    rows = []
    for name, tried in study.tried.items():
        vector, _, draw = name.partition(" ")
        for r, one in enumerate(tried.settings):
            rows.append(
                {
                    "vector": vector,
                    "draw": int(draw) if draw else None,
                    "strength": _rounded(one.strength),
                    "shift": _rounded(one.shift),
                    **_accuracies("clean", tried.clean, r),
                    **_accuracies("poisoned", tried.poisoned, r),
                    "chosen": r == tried.best,
                }
            )
    return rows


def _accuracies(which: str, found: AccuracyChange | None, r: int) -> dict[str, float | None]:
    """Columns of one setting's accuracy on a set, with the ends of its interval; empty without the set."""
    ends = {"": None, "_low": None, "_high": None} if found is None else {
        "": found.after[r], "_low": found.before + found.low[r], "_high": found.before + found.high[r]}  # fmt: skip
    return {f"accuracy_{which}{end}": None if value is None else _rounded(float(value)) for end, value in ends.items()}


def class_rows(study: Study, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set of images and class: how many of its images are right before and after, of those that were not held out."""
    rows = []
    for which, of in study.sets().items():
        for k, name in enumerate(classes):
            mine = ~of.held & (of.classes == k)
            if mine.any():
                rows.append(
                    {
                        "set": which,
                        "class": k,
                        "class_name": name,
                        "images": int(mine.sum()),
                        "before": _rounded(accuracy(of, study.before[which], mine)),
                        "after": _rounded(accuracy(of, study.after[which], mine)),
                    }
                )
    return rows


def confusion_rows(study: Study, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set, before or after, class and prediction that occurs together, of the images that were not held out."""
    rows = []
    for which, of in study.sets().items():
        for when, found in (("before", study.before[which]), ("after", study.after[which])):
            table = confusion(of.classes[~of.held], found[~of.held], len(classes))
            rows += [
                {"set": which, "when": when, "class": int(k), "class_name": classes[k], "predicted": int(j),
                 "predicted_name": classes[j], "images": int(table[k, j])}
                for k, j in zip(*np.nonzero(table), strict=True)
            ]  # fmt: skip
    return rows


def correction_summary(study: Study) -> dict[str, Any]:
    """What ``summary.json`` says: the setting, and accuracies (on images not held out) before, after, and along other vectors.

    ``problem``: of ``choose``, for the signal vector; ``tried_on``: clean held-out images, ``lost``: so many fewer of them are right. ``gain_low``, ``gain_high``: 95 % interval of the paired ``gain``.
    """
    found: dict[str, Any] = {
        "strength": _rounded(study.correction.strength),
        "shift": _rounded(study.correction.shift),
        "typical_signal_value": _rounded(study.typical),
        "rectify": study.correction.rectify,
        "tolerance": study.tolerance,
        "problem": study.tried["signal"].problem,
        "tried_on": study.tried["signal"].clean.images,
        "lost": int(study.tried["signal"].clean.lost[study.tried["signal"].best]),
    }
    for which, of in study.sets().items():
        right = {
            "before": study.accuracy(which, study.before[which]),
            "after": study.accuracy(which, study.after[which]),
        }
        entry: dict[str, Any] = {"images": int((~of.held).sum()), **{k: _rounded(v) for k, v in right.items()}}
        change = study.change(which)
        entry |= {
            k: _rounded(float(v[0]))
            for k, v in (("gain", change.change), ("gain_low", change.low), ("gain_high", change.high))
        }
        for setting in ("own", "signal"):
            filtered = study.others.get(("filter", -1, setting))
            drawn = [
                study.accuracy(which, f[which])
                for (v, _, s), f in study.others.items()
                if v == "random" and s == setting
            ]
            key = "own_strength" if setting == "own" else "same_strength"
            entry[key] = {
                "filter": None if filtered is None else _rounded(study.accuracy(which, filtered[which])),
                "random_mean": _rounded(float(np.mean(drawn))) if drawn else None,
                "random_sd": _rounded(float(np.std(drawn))) if drawn else None,
                "random_percentile_95": _rounded(float(np.percentile(drawn, 95))) if drawn else None,
                "random_best": _rounded(max(drawn)) if drawn else None,
            }
        found[which] = entry
    return found


def problem_of(summary: Mapping[str, Any]) -> str:
    """What is wrong with a correction, for people; empty where nothing is."""
    problem, labelled = summary["problem"], summary.get("labelled", True)
    if problem == TOO_FEW and not summary["tried_on"]:
        return "Too few images to tell what it costs: no held-out image is without the concept. Give more images."
    if problem == TOO_FEW:
        return (
            f"Too few images to tell what it costs: {held_out_words(summary)}. That is more than the tolerance ({100 * summary['tolerance']:g} %), but may "
            "be chance. Give more images."
        )
    if problem == TOO_COSTLY and not labelled and "lost" in summary:  # an older eddp's has no counts
        return f"Every strength that was tried changes more predictions than the tolerance ({100 * summary['tolerance']:g} %) allows: {held_out_words(summary)}."
    return SENTENCES.get(problem, "")


def held_out_words(summary: Mapping[str, Any]) -> str:
    """What the chosen setting costs on the held-out images without the concept."""
    lost, images = summary["lost"], summary["tried_on"]
    if summary.get("labelled", True):
        return f"{lost} fewer of {images} held-out images without the concept are right"
    which = "of --data" if "clean" in summary else "where the concept is not detected"
    return f"{lost} of {images} held-out images {which} are predicted as another class"


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
