"""What the published learning steps go by: the paper's table of weights, and which of its entries were set otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from fit.config import FitterConfig, check_numbers
from stores.errors import UsageError

RHO = {"b": 12.0, "d": 70.0}  # ρ = so many times τ / I (paper, table of hyper-parameters)
MOST = 0.9  # of ρ [I]: few directions would ask for more than 1
NOT_IN = {  # settings that a step has no use for
    "a": ("lambda_sb", "lambda_eac", "lambda_fso", "rho", "bound_eac", "bound_fso"),
    "b": ("lambda_fso", "bound_fso"),
}
NUMBERS = {"a": 1, "b": 2, "d": 4}  # of a learning step in the log; (c) learns nothing


@dataclass(frozen=True)
class StepSettings:
    """One row of the paper's table: λ of each loss (0: not in this step), epochs, learning rate, τ and ρ; None: the preset's.

    ``lambda_uncertainty`` weighs L_uur in (a) and (b), L_cur in (d). The preset's ``rho`` is 12 τ / I in (b), 70 τ / I in (d).
    ``bound_ma``, ...: what the Lagrangian form holds each loss below (paper: 0.8, 8, 0.1, 0.1, 0.1); there its λ counts for nothing.
    ``patience``: epochs without a lower loss after which the learning rate is halved, and how many pass before they count again.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    patience: int | None = None
    lambda_s: float | None = None
    lambda_ma: float | None = None
    lambda_mm: float | None = None
    lambda_ic: float | None = None
    lambda_uncertainty: float | None = None
    tau: float | None = None
    lambda_sb: float | None = None
    lambda_eac: float | None = None
    lambda_fso: float | None = None
    rho: float | None = None
    bound_ma: float | None = None
    bound_mm: float | None = None
    bound_ic: float | None = None
    bound_eac: float | None = None
    bound_fso: float | None = None

    def __post_init__(self) -> None:
        names = [entry.name for entry in fields(self)]
        positive = [name for name in names if name in ("learning_rate", "tau", "rho") or name.startswith("bound_")]
        check_numbers(self, positive, names, " of a step")
        if self.rho is not None and not self.rho < 1:
            raise UsageError(f"'rho' of a step must be between 0 and 1, got {self.rho}.")

    def entries(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Preset:
    """A set of hyper-parameters that belong together; names as in ``PaperConfig``."""

    form: Literal["weighted", "lagrangian"]
    batch_rows: int
    steps: dict[str, StepSettings]
    restarts: int = 1
    centre: bool = False


REST = StepSettings(lambda_sb=0.0, lambda_eac=0.0, lambda_fso=0.0, bound_ma=0.8, bound_mm=8.0, bound_ic=0.1, bound_eac=0.1, bound_fso=0.1)  # fmt: skip
A = replace(REST, epochs=800, learning_rate=1e-3, patience=10, lambda_s=2.6, lambda_ma=2.8, lambda_mm=0.6, lambda_ic=5, lambda_uncertainty=0.25, tau=0.9)  # fmt: skip
B = replace(A, epochs=2000, learning_rate=1e-4, patience=50, lambda_s=0.85, lambda_sb=2.6, lambda_ic=15, lambda_eac=15)
OURS = replace(B, learning_rate=1e-2, lambda_uncertainty=0.02, bound_ma=0.2)
PRESETS = {
    "resnet18-places365": Preset(
        form="weighted",
        batch_rows=4096,
        steps={"a": A, "b": B, "d": replace(B, learning_rate=5e-4, tau=0.2, lambda_fso=1)},
    ),
    "synthetic": Preset(
        form="lagrangian",
        batch_rows=0,
        steps={
            "a": replace(A, learning_rate=1e-2, patience=50, lambda_uncertainty=0.02),
            "b": OURS,
            "d": replace(OURS, learning_rate=3e-4, lambda_fso=1),
        },
        restarts=5,
        centre=True,
    ),
}


@dataclass(frozen=True)
class UIBEConfig(FitterConfig):
    """Hyper-parameters of ``UIBE``, and those that all published steps share.

    **Preset.** "resnet18-places365": the paper's table for ResNet18 on Places365 (I = 500). "synthetic": for small problems whose concepts
    are about equally frequent, by the augmented Lagrangian; its rates, τ, restarts and, in (b) and (d), L_ma < 0.2 are ours
    [I], chosen on four synthetic stores (the printed L_ma < 0.8 lets detectors shrink until they miss every tenth position). It is made for
    the paper's three concepts; sixteen are not found from random starts.
    ``a.epochs``, ``a.lambda_s``, ... replace single entries; ``form`` "preset" and ``batch_rows``, ``restarts`` None are the preset's.

    **Data.** ``batch_rows``: positions a step of the descent, drawn anew each epoch; 0: all. At most ``max_rows`` positions are
    used, a seeded sample of all; ``rows`` "memory" keeps them in memory, "store" uses every position and reads the store.

    **Descent.** Adam; the learning rate is halved when the epoch's mean loss has not fallen by 1e-4 for ``patience`` epochs. A step ends early
    when the rate has fallen below ``settled`` of its start [I: the paper gives only a number of epochs]; 0: never.

    **Start [I].** Random orthonormal filters, ``margin`` M in standard deviations, and the threshold above which a share τ / I of
    normally distributed values is. Of ``restarts`` random starts, that of least loss after ``restart_epochs`` epochs continues.

    **Augmented Lagrangian.** ``penalty`` [I]: of a violation as large as the bound itself; ρ_c = penalty / bound². Multipliers are renewed once
    an epoch. The learning rate then goes by f and the constraints' quadratic penalties, which unlike L_A mean the same in every epoch [I].
    """

    preset: Literal["resnet18-places365", "synthetic"] = "resnet18-places365"
    form: Literal["preset", "weighted", "lagrangian"] = "preset"
    batch_rows: int | None = None
    max_rows: int = 4_000_000
    rows: Literal["memory", "store"] = "memory"
    gamma: float = 1.1
    settled: float = 0.01
    margin: float = 0.5
    restarts: int | None = None
    restart_epochs: int = 200
    penalty: float = 1.0
    a: StepSettings = field(default_factory=StepSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("max_rows", "gamma", "margin", "penalty", "restarts", "restart_epochs")
        self.require(positive=positive, not_negative=("batch_rows",))
        for step, losses in NOT_IN.items():
            for name in losses:
                if getattr(getattr(self, step, None), name, None) is not None:
                    raise UsageError(f"'{step}.{name}': step ({step}) does not have this loss; leave the setting out.")
        if self.a.lambda_uncertainty is not None and not isinstance(self, CBEConfig):
            raise UsageError(
                "'a.lambda_uncertainty': UIBE has no such loss; leave the setting out, or take --method cbe."
            )
        if not 0 <= self.settled < 1:
            raise UsageError(f"'settled' must be between 0 and 1, got {self.settled}.")

    @property
    def in_force(self) -> Preset:
        """The preset, with what was set otherwise."""
        preset = PRESETS[self.preset]
        steps = {name: self._step(name, step) for name, step in preset.steps.items() if hasattr(self, name)}
        own: dict[str, Any] = {name: getattr(self, name, None) for name in ("batch_rows", "restarts", "centre")}
        own["form"] = None if self.form == "preset" else self.form
        return replace(preset, steps=steps, **{name: value for name, value in own.items() if value is not None})

    def _step(self, name: str, preset: StepSettings) -> StepSettings:
        own: StepSettings = getattr(self, name)
        values = preset.entries() | own.entries()
        if not isinstance(self, CBEConfig):
            values["lambda_uncertainty"] = 0.0
        if own.rho is None and name in RHO:
            values["rho"] = min(MOST, RHO[name] * values["tau"] / self.n_directions)
        return StepSettings(**values)


@dataclass(frozen=True)
class CBEConfig(UIBEConfig):
    """Hyper-parameters of ``CBE``: those of ``UIBEConfig``, and how uncertainty regions are aligned (``fit.uncertainty``).

    The objective and the absence of a ridge are the printed ones; ``uncertainty_objective`` "kl" and a ridge are ours.
    """

    uncertainty_objective: Literal["entropy", "kl"] = "entropy"
    uncertainty_ridge: float = 0.0
    uncertainty_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(not_negative=("uncertainty_ridge", "uncertainty_images"))


@dataclass(frozen=True)
class PaperConfig(CBEConfig):
    """Hyper-parameters of ``PaperEDDP``: those of ``CBEConfig``, and of the steps (b) and (d).

    ``centre`` [I]: whether (b) to (d) see activations less their mean; the same family of detectors, but thresholds do not have to
    follow every turn of a filter. None: the preset's; the paper's own descent is in plain activations.
    """

    b: StepSettings = field(default_factory=StepSettings)
    d: StepSettings = field(default_factory=StepSettings)
    centre: bool | None = None
