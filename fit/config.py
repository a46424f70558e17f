"""The configuration of a method: what all have in common, EDDP's own, and ``--set name=value``."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeVar

import msgspec

from stores.errors import UnknownNameError, UsageError

T = TypeVar("T")

POSITIVE = (
    "rank",
    "kmeans_iterations", "kmeans_points", "max_rows", "learning_rate", "tau", "gamma", "max_inverse_margin", "max_correlation", "sharpness",
    "restarts", "restart_rows", "power", "direction_rate",
)  # fmt: skip
NOT_NEGATIVE = (
    "refine_steps", "restart_steps", "patience", "shrinkage", "batch_rows", "lambda_s", "lambda_sb", "lambda_ma", "lambda_ic",
    "lambda_eac", "lambda_mm", "lambda_fso", "lambda_cl", "lambda_uncertainty", "uncertainty_ridge", "uncertainty_images",
)  # fmt: skip
SHARP = {"sharpness": 5.0, "learning_rate": 2e-2, "lambda_ma": 2.0, "tau": 0.2}
SOFT = {"sharpness": 1.0, "learning_rate": 1e-2, "lambda_ma": 3.0, "tau": 0.9}
CONTAINED = 0.9  # correlation of the logits of a direction and its partner in a refit
DUPLICATE = 0.95  # |cos| of two filters, or of two signal vectors, above which they count as one
SUPERVISED = ("probe", "pattern-cav")  # methods that learn from labels
KAPPA = 0.5  # from where two halves of the images count as alike
BRIEF = {"refine_steps": 200, "max_rows": 10_000}  # of refits
PARTIAL = {"power": 0.5, "direction_rate": 0.1}  # of soft detectors on layers without a gap in their eigenvalues


@dataclass(frozen=True)
class FitterConfig:
    """What all methods share. Every field can be set by ``--set name=value``.

    ``refits``: short fits of random halves of the images, which show which directions are found again (``fit.refits``); 0: none.
    """

    n_directions: int = 64
    seed: int = 0
    device: str = "cpu"
    refits: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.n_directions, Integral) or self.n_directions < 1:
            raise UsageError(f"'n_directions' (--directions) must be at least 1, got {self.n_directions}.")
        if self.seed < 0:
            raise UsageError(f"'seed' must not be negative, got {self.seed}.")
        if self.refits < 0:
            raise UsageError(f"'refits' (--refits) must not be negative, got {self.refits}.")

    def require(self, *, positive: Iterable[str] = (), not_negative: Iterable[str] = ()) -> None:
        """Raise UsageError for the first of the named numbers that is not what it must be, or not finite; None is allowed."""
        check_numbers(self, positive, not_negative)


def check_numbers(config: Any, positive: Iterable[str], not_negative: Iterable[str] = (), of: str = "") -> None:
    """``FitterConfig.require`` of any configuration; ``of``: which part of one it is, for the message."""
    positive = tuple(positive)
    for name in (*positive, *not_negative):
        value = getattr(config, name)
        if value is None or (math.isfinite(value) and (value > 0 or (value == 0 and name not in positive))):
            continue
        raise UsageError(f"'{name}'{of} must {'be positive' if name in positive else 'not be negative'}, got {value}.")


@dataclass(frozen=True)
class Regime:
    """What of ``EDDPConfig`` depends on whether detectors are sharp or soft, with every entry set."""

    sharpness: float
    learning_rate: float
    lambda_ma: float
    tau: float
    rho: float
    direction_rate: float


@dataclass(frozen=True)
class EDDPConfig(FitterConfig):
    """Hyper-parameters of ``EDDP``; the λ are the weights of the losses with the paper's names.

    **Coordinates.** ``rank`` None: as many axes as are in front of a gap in the covariance's eigenvalues, where there is one, else the
    larger of 64 and n_directions. ``power`` of the whitening, Λ^(−power/2): None takes 0.5 for soft detectors on layers without such a
    gap, and 1 otherwise; ``direction_rate``, the share of the learning rate that directions move by, 0.1 and 1. On real layers half
    whitening and slow directions make fits of two halves of the images more alike, and score higher; where the truth is known they would
    lose concepts (BENCHMARKS.md). At most ``max_rows`` positions are used, a seeded sample of
    all; ``rows`` "memory" keeps them whitened in memory, "store" uses every position and reads the store at each step.

    **Start.** ``restarts`` runs of k-means, and independent components by skewness where there are 32 positions a direction, each refined for ``restart_steps`` on ``restart_rows`` positions; the one of least loss
    is taken.

    **Regime.** "sharp": margins start at a fifteenth of the mean distance from the threshold's plane, the learning rate at 2e-2, with
    ``lambda_ma`` 2 and ``tau`` 0.2; "soft": a third, 1e-2, 3 and 0.9: detectors end overlapping, several positive at a position. "auto"
    decides by the best start: if sharp detectors share no more than ``crisp`` bits of a position on average (L_s), the data hold
    one concept a position and sharp detectors recover it, rare ones too; real layers hold several at once, and soft detectors
    leave them undivided where sharp ones split them (BENCHMARKS.md). ``sharpness`` (5, or 1 for up to 64 directions and more above), ``learning_rate``, ``lambda_ma`` and
    ``tau`` overrule the regime's where they are given.

    **Losses.** The balance of ``lambda_ma`` and ``lambda_s`` matters most: 3 to 1, near the paper's own (2.8 to 0.85 in step d), finds
    more than 1 to 1 on every real layer tried. ``rho`` None: 12 τ / I, at most 0.9 (paper, step b). ``max_inverse_margin``: the mean of
    1/M_i, in whitened units, above which sharper margins cost. ``lambda_cl`` keeps detectors apart whose logits correlate above
    ``max_correlation`` over the data (``fit.losses.correlated_logits``). ``signals``: how signal vectors are estimated at every step:
    "pooled" and "positives" are explained in ``fit.signals``; "free": learnt like the filters, as the paper does.

    **Steps.** ``batch_rows`` 0: every step sees all positions; else so many, drawn anew each epoch (signal vectors are then
    re-estimated once an epoch, on all). The learning rate falls along a cosine; ``patience`` steps without a lower loss end the fit.
    """

    refits: int = 8
    rank: int | None = None
    shrinkage: float = 0.0
    max_rows: int = 4_000_000
    rows: Literal["memory", "store"] = "memory"
    kmeans_iterations: int = 25
    kmeans_points: int = 1024
    restarts: int = 4
    restart_steps: int = 150
    restart_rows: int = 16384
    regime: Literal["auto", "sharp", "soft"] = "auto"
    crisp: float = 0.15
    sharpness: float | None = None
    refine_steps: int = 400
    learning_rate: float | None = None
    batch_rows: int = 0
    patience: int = 100
    reseed: bool = True
    signals: Literal["pooled", "positives", "free"] = "pooled"
    whiten: bool = True
    power: float | None = None
    direction_rate: float | None = None
    lambda_s: float = 1.0
    lambda_sb: float = 0.0
    lambda_ma: float | None = None
    lambda_ic: float = 5.0
    lambda_eac: float = 5.0
    lambda_mm: float = 1.0
    lambda_fso: float = 2.0
    lambda_cl: float = 5.0
    lambda_uncertainty: float = 0.05
    tau: float | None = None
    rho: float | None = None
    gamma: float = 1.1
    max_inverse_margin: float = 64.0
    max_correlation: float = 0.8
    uncertainty_step: Literal["constrained", "unconstrained"] = "constrained"
    uncertainty_objective: Literal["kl", "entropy"] = "kl"
    uncertainty_ridge: float = 0.03
    uncertainty_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=POSITIVE, not_negative=NOT_NEGATIVE)
        if self.rho is not None and not 0 < self.rho < 1:
            raise UsageError(f"'rho' must be between 0 and 1, got {self.rho}.")

    def regime_settings(self, soft: bool, partial: bool = False) -> Regime:
        """The entries that depend on the regime, and on whether coordinates are ``partial``ly whitened.

        Soft detectors that are off still add up: what sigmoid leaves of each, times I. Above 64 directions they start sharper
        with the logarithm of I, or all of them would stay active everywhere (measured at 128: S2 5.2 without, 6.5 with).
        """
        crowd = 1 + 0.45 * max(0.0, math.log(self.n_directions / 64)) if soft else 1.0
        usual = SOFT if soft else SHARP
        usual = {**usual, "sharpness": crowd * usual["sharpness"]}
        usual["direction_rate"] = PARTIAL["direction_rate"] if partial else 1.0
        found = {name: value if getattr(self, name) is None else getattr(self, name) for name, value in usual.items()}
        rho = min(0.9, 12 * found["tau"] / self.n_directions) if self.rho is None else self.rho
        return Regime(**found, rho=rho)


def with_settings(config: T, settings: Mapping[str, str], within: str = "") -> T:
    """A configuration with some fields replaced by ``name=value`` texts, converted to the fields' types.

    A dot leads into a part: ``b.lambda_s=1``; ``within`` is where this one is, for errors. Raises UnknownNameError for a name that is no field (listing all),
    UsageError for a value that does not convert or is not allowed.
    """
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    parts: dict[str, dict[str, str]] = {}
    for name, text in settings.items():
        part, dot, rest = name.partition(".")
        if dot and dataclasses.is_dataclass(hints.get(part)):
            parts.setdefault(part, {})[rest] = text
            continue
        if name not in hints or name == "device" or dataclasses.is_dataclass(hints[name]):
            raise _unknown(f"--set {within}{name}", name, setting_names(type(config)))
        changes[name] = _convert(within + name, text, hints[name])
    for part, inner in parts.items():
        changes[part] = with_settings(getattr(config, part), inner, f"{within}{part}.")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def setting_names(kind: type[Any]) -> list[str]:
    """Every name that ``--set`` takes for a configuration of this kind."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += [f"{name}.{inner}" for inner in setting_names(typing.cast("type[Any]", hint))]
        elif name != "device":
            names.append(name)
    return names


def refuse_unknown(who: str, given: Iterable[str], kind: type[Any]) -> None:
    """Raise UnknownNameError for the first name that is no field of the configuration ``kind``."""
    known = [f.name for f in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise _unknown(f"{who}({name}=…)", name, known)


def _unknown(given: str, name: str, known: Sequence[str]) -> UnknownNameError:
    near = difflib.get_close_matches(name, known, n=3)
    return UnknownNameError(
        f"{given}: there is no such setting. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + f"Settings: {', '.join(known)}."
    )


def _convert(name: str, text: str, kind: Any) -> Any:
    options: Sequence[Any] = typing.get_args(kind) or (kind,)
    if type(None) in options and text.lower() in ("none", "auto"):
        return None
    try:
        value = msgspec.convert({"yes": "true", "no": "false"}.get(text.lower(), text), kind, strict=False)
        if isinstance(value, float) and not math.isfinite(value):
            raise msgspec.ValidationError
    except msgspec.ValidationError as error:
        names = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
        wanted = f"a number of kind {names}"
        if typing.get_origin(kind) is Literal:
            wanted = f"one of {', '.join(map(str, options))}"
        raise UsageError(f"--set {name}={text}: must be {wanted}.") from error
    return value
