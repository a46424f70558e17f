"""What descents share: Adam's state for a checkpoint, when to stop, and refusal of losses that are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from stores.errors import NonFiniteError


def adam_tensors(optimiser: torch.optim.Adam) -> dict[str, torch.Tensor]:
    """Adam's moments and step counts, by the parameters' order."""
    state = optimiser.state_dict()["state"]
    return {
        f"adam.{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
    }


def load_adam(optimiser: torch.optim.Adam, tensors: dict[str, torch.Tensor]) -> None:
    """Restore what ``adam_tensors`` gave. Raises ValueError where it is of other parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, entry = name.split(".")
            state.setdefault(int(index), {})[entry] = tensor
    parameters = [tensor for group in optimiser.param_groups for tensor in group["params"]]
    for number, moments in state.items():
        shapes = {name: tensor.shape for name, tensor in moments.items()}
        if not 0 <= number < len(parameters) or shapes != {
            "step": (),
            **dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[number].shape),
        }:
            raise ValueError(f"the moments of parameter {number} have other shapes")
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def forget_columns(optimiser: torch.optim.Adam, columns: torch.Tensor) -> None:
    """Zero Adam's moments in the columns (the last axis) of detectors that start again."""
    for entry in optimiser.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name][..., columns] = 0


@dataclass
class Plateau:
    """Whether a loss has stopped falling: ``patience`` values in a row none of which was lower than the best by a share
    ``tolerance`` of it. ``patience`` 0: never."""

    patience: int
    tolerance: float
    best: float = math.inf
    waited: int = field(default=0)

    def reached(self, value: float) -> bool:
        """Take in the next value."""
        if value < self.best - self.tolerance * abs(self.best) or math.isinf(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return bool(self.patience) and self.waited >= self.patience


def refuse_non_finite(total: float, step: int, learning_rate: float, setting: str = "learning_rate") -> None:
    """Raise NonFiniteError for a loss that is NaN or infinite."""
    if not math.isfinite(total):
        raise NonFiniteError(
            f"The loss became {total} at step {step}: lower the learning rate (--set {setting}={learning_rate / 10:g})."
        )


def refuse_non_finite_result(*tensors: torch.Tensor) -> None:
    """Raise NonFiniteError where a fit ended with NaN or infinite numbers: its last step may have been the one too far."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NonFiniteError(
            "The fit ended with directions that are NaN or infinite: lower the learning rate (--set learning_rate=…), and look at the "
            "layer's values with `eddp inspect`."
        )
