"""Which tensor that a model returns are its logits."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from extract.model_output import find_output
from stores.errors import UsageError

FEATURES, LOGITS, OTHER = torch.zeros(2, 24), torch.ones(2, 5), torch.full((2, 5), 2.0)
Pair = namedtuple("Pair", "embedding prediction")


@dataclass(slots=True)
class Slots:
    embedding: torch.Tensor
    prediction: torch.Tensor


@pytest.mark.parametrize(
    ("returned", "options", "key"),
    [
        (LOGITS, {}, ""),
        (LOGITS[:, :, None, None], {}, ""),
        ((LOGITS, None), {}, "0"),
        ((FEATURES, LOGITS), {"named": 5}, "1"),
        ((FEATURES, LOGITS), {"folders": 5}, "1"),
        ((FEATURES, LOGITS), {"named": 24, "folders": 5}, "0"),  # names are surer than folders
        ((FEATURES, LOGITS), {"asked": "1"}, "1"),
        (Pair(FEATURES, LOGITS), {"named": 5}, "prediction"),
        (Slots(FEATURES, LOGITS), {"named": 5}, "prediction"),
        ({"loss": torch.tensor(1.0), "pred": LOGITS}, {}, "pred"),
        ({"head.cls": LOGITS, "head": {"aux": FEATURES}}, {"named": 5}, "head.cls"),
        ({"": LOGITS}, {}, ""),
        ({"embedding": FEATURES, "prediction": LOGITS}, {"named": 5}, "prediction"),
        ({"logits": LOGITS, "embedding": FEATURES}, {"folders": 24}, "logits"),
        ({"probabilities": OTHER, "logits": LOGITS}, {"named": 5}, "logits"),
        ({"map": torch.zeros(2, 5, 8, 8), "out": LOGITS}, {}, "out"),
        ({"a": {"b": (FEATURES, LOGITS)}}, {"named": 5}, "a.b.1"),
        (SimpleNamespace(logits=LOGITS, hidden=(FEATURES, FEATURES)), {}, "logits"),
        ({"index": torch.zeros(2, 5, dtype=torch.int64), "out": LOGITS}, {"named": 5}, "out"),
    ],
)
def test_what_decides(returned: Any, options: dict[str, Any], key: str) -> None:
    found = find_output(returned, 2, **options)
    assert found.key == key
    assert torch.equal(found(returned), LOGITS if options.get("named") != 24 else FEATURES)
    assert found.classes == found(returned).shape[1]


@pytest.mark.parametrize(
    ("returned", "options", "message"),
    [
        ((FEATURES, LOGITS), {}, r"several tensors.*0 \(2, 24\), 1 \(2, 5\).*--output KEY \(one of 0, 1\)"),
        ((FEATURES, LOGITS), {"folders": 7}, "none of them with as many columns as class folders"),
        ((OTHER, LOGITS), {"named": 5}, "2 of them with as many columns as class names"),
        ((FEATURES, LOGITS), {"named": 3, "folders": 5}, "none of them .* class names"),
        (LOGITS, {"named": 3}, "3 class names for 5 logits"),
        ((FEATURES, LOGITS), {"asked": "1", "named": 3}, "3 class names for 5 logits"),
        ({"a": LOGITS}, {"asked": "b"}, "--output b: .* a "),
        ({"out": torch.zeros(2, 5, 8, 8)}, {}, "a map of logits for every pixel.*mean over the pixels"),
        (torch.zeros(3, 5), {}, "no logits"),
        (None, {}, "NoneType, no tensor"),
    ],
)
def test_what_is_refused(returned: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_output(returned, 2, **options)


def test_a_batch_of_one_that_is_squeezed_away() -> None:
    found = find_output(LOGITS, 2)
    assert torch.equal(found(LOGITS[0]), LOGITS[:1])
    assert found(LOGITS.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), ""),
        (torch.softmax(torch.arange(10.0).reshape(2, 5), 1), "like the probabilities of a softmax"),
        (torch.sigmoid(torch.arange(10.0).reshape(2, 5)), "like those of a sigmoid"),
    ],
)
def test_probabilities_are_doubtful(values: torch.Tensor, said: str) -> None:
    doubt = find_output(values, 2).doubt
    assert said in doubt
    assert bool(doubt) == bool(said)
