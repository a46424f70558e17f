"""Methods that find directions, by name. Adding one: a file with a config and a class, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fit.config import SUPERVISED, with_settings
from stores.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from fit.base import Fitter
    from fit.baselines.ica import ICA
    from fit.baselines.kmeans import KMeans
    from fit.baselines.neurons import Neurons
    from fit.baselines.nmf import NMF
    from fit.baselines.pca import PCA
    from fit.baselines.sae import SAE
    from fit.eddp import EDDP
    from fit.paper import CBE, UIBE
    from fit.supervised.logistic_probe import Probe
    from fit.supervised.pattern_cav import PatternCAV
    from fit.supervised.position_labels import Labels

METHODS: dict[str, tuple[str, str]] = {  # module and class
    "eddp": ("fit.eddp", "EDDP"),
    "kmeans": ("fit.baselines.kmeans", "KMeans"),
    "pca": ("fit.baselines.pca", "PCA"),
    "neurons": ("fit.baselines.neurons", "Neurons"),
    "ica": ("fit.baselines.ica", "ICA"),
    "nmf": ("fit.baselines.nmf", "NMF"),
    "sae": ("fit.baselines.sae", "SAE"),
    "uibe": ("fit.paper", "UIBE"),
    "cbe": ("fit.paper", "CBE"),
    "probe": ("fit.supervised.logistic_probe", "Probe"),
    "pattern-cav": ("fit.supervised.pattern_cav", "PatternCAV"),
}
PUBLISHED = ("fit.paper", "PaperEDDP")  # of ``--steps paper``
__all__ = ["CBE", "EDDP", "ICA", "NMF", "PCA", "SAE", "UIBE", "KMeans", "Neurons", "PatternCAV", "Probe"]


def __getattr__(name: str) -> Any:
    """The classes of methods as attributes (``from fit import EDDP``). They are loaded when asked for: with torch that takes seconds."""
    classes = {cls: module for module, cls in (*METHODS.values(), PUBLISHED)} | {"Fitter": "fit.base"}
    module = classes.get(name) or classes.get(name.removesuffix("Config"))
    if module is None:
        raise AttributeError(f"module 'fit' has no attribute {name!r}")
    return getattr(import_module(module), name)


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
    module, name = METHODS[method] if steps == "fast" else PUBLISHED
    fitter = getattr(import_module(module), name)
    config = fitter.configuration
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
