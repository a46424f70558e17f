"""Compiled functions have no need of a cache."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from stores.jit import compiled


def double(x: np.ndarray) -> float:
    return 2 * x.sum()


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("CacheImpl._locator_classes", []),  # no folder can be written to
        ("IndexDataCacheFile._load_index", mock.Mock(side_effect=EOFError)),  # a file cut short
        ("IndexDataCacheFile.save", mock.Mock(side_effect=OSError(28, "No space left on device"))),
    ],
)
def test_no_cache_is_no_reason_to_fail(where: str, what: object) -> None:
    with mock.patch(f"numba.core.caching.{where}", what):
        kernel = compiled(double)
        assert kernel(np.ones(3)) == 6
        assert kernel(np.ones(4, np.float32)) == 8
