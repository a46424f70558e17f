"""Methods that find directions, by name. Adding one: a file with a config and a class, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fit.baselines.kmeans import KMeans, KMeansConfig
from fit.baselines.neurons import Neurons, NeuronsConfig
from fit.baselines.pca import PCA, PCAConfig
from fit.eddp import EDDP, EDDPConfig
from fit.fitter import Fitter, with_settings
from stores.errors import UnknownNameError

METHODS: dict[str, tuple[Any, Any]] = {
    "eddp": (EDDP, EDDPConfig),
    "kmeans": (KMeans, KMeansConfig),
    "pca": (PCA, PCAConfig),
    "neurons": (Neurons, NeuronsConfig),
}


def make_fitter(
    method: str, *, n_directions: int, seed: int = 0, device: str = "cpu", settings: Mapping[str, str] | None = None
) -> Fitter:
    """A method by name with its configuration; ``settings`` are ``--set`` texts.

    Raises UnknownNameError for an unknown method or setting, UsageError for a value that is not allowed.
    """
    if method not in METHODS:
        raise UnknownNameError(f"There is no method '{method}'. Methods: {', '.join(METHODS)}.")
    fitter, config = METHODS[method]
    made: Fitter = fitter(with_settings(config(n_directions=n_directions, seed=seed, device=device), settings or {}))
    return made


__all__ = ["EDDP", "METHODS", "PCA", "EDDPConfig", "Fitter", "KMeans", "Neurons", "make_fitter"]
