"""The page of a correction: accuracies before and after, along which vector, at which strength, what is confused with what, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.correct.changed_images import changed_pictures
from evaluate.correct.correction_study import Study, confusion
from evaluate.correct.correction_tables import problem_of
from evaluate.correct.heldout_evaluation import Judged
from evaluate.correct.trade_off import strengths, trade_off
from evaluate.number_format import minus
from evaluate.report.svg_shapes import bar
from evaluate.web_page import render_page
from extract.store_images import rows_called
from stores.io import write_atomically
from stores.store import ActivationStore

SHOWN = 12  # classes up to which a confusion matrix is drawn whole; of more, those that change most


@dataclass(frozen=True)
class Bar:
    """One accuracy of the comparison."""

    name: str
    value: float
    kind: str = ""


def write_page(
    out: Path, study: Study, summary: dict[str, Any], classes: Sequence[str], store: ActivationStore
) -> Path:
    """Write ``index.html`` and its pictures into the folder of a correction."""
    page = {
        "summary": summary,
        "made": facts_of(summary, store),
        "bar": bar,
        "bars": {which: bars(summary[which]) for which in study.sets()},
        "strengths": strengths(study),
        "trade": trade_off(study),
        "kinds": list(dict.fromkeys(name.partition(" ")[0] for name in study.tried)),
        "problem": problem_of(summary),
        "confusions": [_confusion(study, which, classes) for which in study.sets()],
        "pictures": changed_pictures(out, study, classes),
        "rows": rows_called(store),
    }
    path = out / "index.html"
    text = render_page("correct.html", page, styles="correct.css", change=change_of)
    write_atomically(path, text.encode("utf-8", "replace"))
    return path


def bars(found: dict[str, Any]) -> list[Bar]:
    """The comparison of one set of images: without correction, and along each vector at the strength that suits it best."""
    own = found["own_strength"]
    listed = [Bar("no correction", found["before"]), Bar("signal vector", found["after"], kind="signal")]
    if own["filter"] is not None:
        listed.append(Bar("filter", own["filter"], kind="filter"))
    if own["random_mean"] is not None:
        spread = (("mean", "random_mean"), ("95th percentile", "random_percentile_95"), ("best", "random_best"))
        listed += [Bar(f"random: {name}", own[key], kind="random") for name, key in spread]
    return listed


def change_of(found: dict[str, Any]) -> str:
    """The change of accuracy of one set of images in points, with its interval."""
    gain, low, high = (minus(f"{100 * found[key]:+.1f}") for key in ("gain", "gain_low", "gain_high"))
    return f"{gain} ({low} to {high})"


def _confusion(study: Study, which: str, classes: Sequence[str]) -> dict[str, Any]:
    of: Judged = study.sets()[which]
    scored = ~of.held
    tables = [
        confusion(of.classes[scored], found[scored], len(classes))
        for found in (study.before[which], study.after[which])
    ]
    moved = np.abs(tables[0] - tables[1]).sum(0) + np.abs(tables[0] - tables[1]).sum(1)
    there = np.flatnonzero(tables[0].sum(1) + tables[0].sum(0) + tables[1].sum(0))
    shown = np.sort(there if len(there) <= SHOWN else there[np.argsort(-moved[there], kind="stable")[:SHOWN]])
    return {
        "set": which,
        "classes": [classes[k] for k in shown],
        "left_out": len(there) - len(shown),
        "tables": [
            {
                "when": when,
                "rows": [
                    {
                        "name": classes[k],
                        "cells": [(int(table[k, j]), j == k) for j in shown],
                    }
                    for k in shown
                ],
            }
            for when, table in zip(("before", "after"), tables, strict=True)
        ],
    }


def facts_of(summary: dict[str, Any], store: ActivationStore) -> dict[str, str]:
    """What a correction is about, for its page."""
    made = store.provenance
    inside = f"x − {summary['strength']:.4g} · σ(w·x − b{'' if not summary['shift'] else ' − ' + format(summary['shift'], '.3g')}) · s"
    return {
        "Model": f"{made.get('model')}, layer {summary['layer']}",
        "Direction": f"{summary['title']} of {summary['directions']}",
        "Correction": f"x ← relu({inside})" if summary["rectify"] else f"x ← {inside}",
        "Typical signal value": f"{summary['typical_signal_value']:.4g}",
        "Held out": f"{summary['held_out']} of {summary['images']} {rows_called(store)}, to choose the correction on; figures are of the others",
    }
