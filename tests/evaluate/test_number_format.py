"""How numbers and links look: a dash for what is unknown, no link out of the folder."""

from __future__ import annotations

import numpy as np

from evaluate.number_format import name, number, percent, points, probability, short, signed, url

NAN = float("nan")


def test_numbers_and_names() -> None:
    values = (3, 0.12345, 0.0004567, 0.0, 12.0, -123.456, 1250.0, None, True, NAN, "x", np.float32(0.5), np.int64(4))
    texts = ["3", "0.123", "0.00046", "0.000", "12.000", "-123.5", "1250", "–", "–", "–", "–", "0.500", "4"]
    assert [number(v) for v in values] == texts
    assert [short(v) for v in (4.8, 12.34, 123.4, -0.5, float("inf"))] == ["4.80", "12.3", "123", "−0.500", "–"]
    assert [signed(v) for v in (2.104, -0.4, 12.34, -0.0012, 9.996)] == ["+2.10", "−0.40", "+12.3", "−1e-03", "+10.0"]
    assert [name(k) for k in ("average_precision", "iou_train", "f1")] == ["average precision", "IoU train", "F1"]


def test_shares_and_probabilities() -> None:
    assert [percent(v) for v in (0, 1, 0.123, 0.0123, 0.000001, NAN)] == [
        "0 %", "100 %", "12 %", "1.2 %", "below 0.01 %", "–",
    ]  # fmt: skip
    assert [percent(v, 1) for v in (0.1234, 1.0, None)] == ["12.3 %", "100.0 %", "–"]
    assert [points(v) for v in (0.2, -0.0012, 0.0)] == ["+20.0 pp", "−0.12 pp", "±0 pp"]
    assert [probability(p) for p in (0.934, 0.9999, 0.001)] == ["0.93", "> 0.99", "< 0.01"]


def test_file_names_are_quoted_and_stay_in_the_folder() -> None:
    assert url("pictures/a b#1?%.jpg") == "pictures/a%20b%231%3F%25.jpg"
    assert url("javascript:alert(1)") == "javascript%3Aalert%281%29"
    assert url("//host/a.jpg") == "host/a.jpg"
    assert url("pictures/\udcff.jpg") == "pictures/%FF.jpg"
