"""Methods that find directions, by name. Adding one: a file with a config and a class, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fit.base import Fitter
from fit.baselines.ica import ICA, ICAConfig
from fit.baselines.kmeans import KMeans, KMeansConfig
from fit.baselines.neurons import Neurons, NeuronsConfig
from fit.baselines.nmf import NMF, NMFConfig
from fit.baselines.pca import PCA, PCAConfig
from fit.baselines.sae import SAE, SAEConfig
from fit.config import EDDPConfig, with_settings
from fit.eddp import EDDP
from fit.paper import CBE, UIBE, CBEConfig, PaperConfig, PaperEDDP, UIBEConfig
from fit.supervised.base import Supervised
from fit.supervised.logistic_probe import Probe, ProbeConfig
from fit.supervised.pattern_cav import PatternCAV, PatternCAVConfig
from fit.supervised.position_labels import Labels
from stores.errors import UnknownNameError, UsageError

METHODS: dict[str, tuple[Any, Any]] = {
    "eddp": (EDDP, EDDPConfig),
    "kmeans": (KMeans, KMeansConfig),
    "pca": (PCA, PCAConfig),
    "neurons": (Neurons, NeuronsConfig),
    "ica": (ICA, ICAConfig),
    "nmf": (NMF, NMFConfig),
    "sae": (SAE, SAEConfig),
    "uibe": (UIBE, UIBEConfig),
    "cbe": (CBE, CBEConfig),
    "probe": (Probe, ProbeConfig),
    "pattern-cav": (PatternCAV, PatternCAVConfig),
}
PUBLISHED: tuple[Any, Any] = (PaperEDDP, PaperConfig)  # of ``--steps paper``
SUPERVISED = tuple(name for name, (fitter, _) in METHODS.items() if issubclass(fitter, Supervised))


def make_fitter(
    method: str,
    *,
    n_directions: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    settings: Mapping[str, str] | None = None,
    refits: int | None = None,
    labels: Labels | None = None,
    steps: Literal["fast", "paper"] = "fast",
) -> Fitter[Any]:
    """A method by name with its configuration; ``settings`` are ``--set`` texts, ``refits`` None leaves the method's own.

    Supervised methods find a direction a label: they take ``labels`` (None: the truth of a synthetic store) and no
    ``n_directions``; all others the other way round. ``steps``: "eddp" by our fast steps or by the published ones.

    Raises UnknownNameError for an unknown method or setting, UsageError for a value that is not allowed.
    """
    if method not in METHODS:
        raise UnknownNameError(f"There is no method '{method}'. Methods: {', '.join(METHODS)}.")
    if steps != "fast" and (steps != "paper" or method != "eddp"):
        raise UsageError(f"--steps {steps} is not for '{method}': leave it out, or take --method eddp --steps paper.")
    fitter, config = METHODS[method] if steps == "fast" else PUBLISHED
    common: dict[str, Any] = {"seed": seed, "device": device}
    if refits is not None:
        common["refits"] = refits
    if method in SUPERVISED:
        if n_directions is not None:
            raise UsageError(
                f"'{method}' finds a direction for each label, however many there are: leave --directions {n_directions} "
                "out (--set min_positives=N leaves out rare labels)."
            )
        return fitter(with_settings(config(**common), settings or {}), labels)
    if n_directions is None:
        raise UsageError(f"Say how many directions '{method}' is to find: --directions N.")
    if labels is not None:
        raise UsageError(
            f"'{method}' learns without labels: leave --concepts out, or take --method {' or '.join(SUPERVISED)}."
        )
    return fitter(with_settings(config(n_directions=n_directions, **common), settings or {}))


__all__ = [
    "CBE",
    "EDDP",
    "METHODS",
    "PCA",
    "SUPERVISED",
    "UIBE",
    "EDDPConfig",
    "Fitter",
    "KMeans",
    "Neurons",
    "PaperEDDP",
    "PatternCAV",
    "Probe",
    "make_fitter",
]
