"""Compiled loops: how numba is used here.

Importing this module takes a moment (numba), so a module of kernels is imported where the first of them is about to be called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import njit

# These flags keep NaN and infinity, others would not. Division by 0 is no exception: it would not vectorise.
OPTIONS: Any = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled on its first call, or taken from numba's cache on disk; no cache is never a reason to fail."""
    uncached = njit(**OPTIONS)(function)  # not compiled before it is called
    try:
        ready = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder to write to
        return uncached

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal ready
        try:
            return ready(*arguments)
        except Exception:  # noqa: BLE001  # whatever a full disk or a damaged cache gives; a kernel's own errors come again
            ready = uncached
            return ready(*arguments)

    return call
