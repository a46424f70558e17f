"""What pages of directions have in common: order, colours, the scale of bars, complaints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluate.report.page_layout import KNOWN, category_colours, complaints, iou_scale, marks, ordered
from evaluate.report.report_data import Mark

NAN = float("nan")


@dataclass(frozen=True)
class Direction:
    index: int
    iou: float
    interpretable: bool = True


def test_interpretable_directions_come_first_then_the_larger_iou() -> None:
    found: Any = [Direction(0, 0.1), Direction(1, 0.5, False), Direction(2, 0.3), Direction(3, NAN, False)]
    assert [d.index for d in ordered(found)] == [2, 0, 1, 3]


def test_bars_share_one_scale() -> None:
    assert [iou_scale(values) for values in ([0.31, NAN], [0.3], [], [1.0])] == [0.4, 0.3, 0.1, 1.0]


def test_every_category_has_its_own_colour() -> None:
    colours = category_colours({*KNOWN, "x", "y", "z", ""})
    assert sorted(colours.values()) == list(range(10))
    assert colours["object"] == category_colours({"object"})["object"]  # the same in every report
    assert set(category_colours({f"k{i}" for i in range(30)}, 9).values()) == set(range(9))


def test_the_diagnosis_in_words() -> None:
    diagnosis = {"dead": list(range(30)), "duplicates": [[1, 2]], "overfull": [], "coverage": 0.5}
    found = complaints(diagnosis)
    assert [one["text"] for one in found] == ["30 directions hardly ever fire", "1 pair is almost the same filter"]
    assert (len(found[0]["groups"]), found[0]["more"], found[1]["groups"]) == (24, 6, [[1, 2]])
    assert marks(diagnosis)[1] == [Mark("dead"), Mark("duplicate of", 2)]
    assert marks(diagnosis, [(40, 41)])[41] == [Mark("signal vector like", 40)]
