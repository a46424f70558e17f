"""The state of a running fit on disk, from which the same command resumes after it was killed.

One safetensors file next to the result: tensors, and in its header the fit's identity and plain values, as JSON. It is
replaced atomically, and removed when the result is written. A resumed fit takes the same steps, to the bit on a CPU, as one that was
never interrupted.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct

from stores.documents import MOST_NUMBER, UNREADABLE, Whole, brief
from stores.errors import CheckpointError, MismatchError, StoreError
from stores.io import remove_abandoned
from stores.ranks import ALONE, Ranks
from stores.tensors import read_tensors, reading, write_tensors

log = logging.getLogger(__name__)
MINUTES = 10.0


class Values(Struct, frozen=True):
    """Numbers that a fit resumes from: which ones there are depends on the method. The best loss of a descent may be infinite."""

    step: Whole = 0
    epoch: Whole = 0
    reseeded: Whole = 0
    soft: bool = False
    rate: Annotated[float, Meta(ge=0, le=MOST_NUMBER)] = 0
    stage: str = ""
    epochs: dict[str, Whole] = {}
    log: list[dict[str, float | None]] = []
    plateau: tuple[float, Whole] = (0, 0)
    scheduler: dict[str, float] = {}
    multipliers: dict[str, float] | None = None


class CheckpointHeader(Struct, frozen=True):
    identity: dict[str, Any]
    values: Values


@dataclass(frozen=True)
class State:
    """What a fit resumes from: ``tensors`` by name, ``values`` of JSON kinds (step, log, ...)."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError where a tensor has another shape, KeyError where it is missing."""
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                raise ValueError(f"{name} must be {shape}, it is {tuple(self.tensors[name].shape)}")


class Checkpoint:
    """Where a fit stores its state, and how often.

    Parameters
    ----------
    path : the file; None: nothing is stored.
    minutes : between two writings, at least. 0: at every occasion.
    ranks : of several, only rank 0 reads, writes and looks at the clock. The file does not depend on their number.
    """

    def __init__(self, path: str | Path | None = None, minutes: float = MINUTES, ranks: Ranks = ALONE) -> None:
        self.path = None if path is None or ranks.rank else Path(path)
        self.minutes, self.ranks = minutes, ranks
        self.identity: dict[str, Any] = {}
        self._written = time.monotonic()

    def of(self, identity: dict[str, Any]) -> Checkpoint:
        """The same for a fit, which ``identity`` distinguishes from others, in JSON values."""
        own = Checkpoint(self.path, self.minutes, self.ranks)
        own.identity = json.loads(json.dumps(identity))
        return own

    def load(self) -> State | None:
        """The stored state, on all ranks, None if there is none.

        Raises MismatchError when the file is of another fit, CheckpointError when it is damaged.
        """
        state = self._load()
        if self.ranks.size == 1:
            return state
        given = None
        if state is not None:
            given = {
                **state.tensors,
                "values": torch.tensor(list(json.dumps(state.values).encode()), dtype=torch.uint8),
            }
        shared = self.ranks.share(given)
        if not shared:
            return None
        values = json.loads(shared.pop("values").numpy().tobytes())
        return State(shared, values)

    def _load(self) -> State | None:
        self._written = time.monotonic()
        if self.path is None or not self.path.exists():
            return None
        with reading(self.path, "checkpoint", "To start the fit again, remove it.", CheckpointError):
            if not self.path.is_file():
                raise ValueError("it is no file")
            stored, header = read_tensors(self.path, "eddp-checkpoint", CheckpointHeader)
            tensors = {name: torch.from_numpy(value) for name, value in stored.items()}
            kept, values = header["identity"], header["values"]
        if kept != self.identity:
            raise MismatchError(
                f"The checkpoint '{self.path}' is of another fit ({difference(kept, self.identity)}). Run that fit's command "
                "to resume it, choose another --out, or remove the file to start again."
            )
        return State(tensors, values)

    @contextmanager
    def resuming(self, state: State | None) -> Iterator[None]:
        """Within the block a fit takes over a state. Raises CheckpointError where entries are missing or shapes differ."""
        try:
            yield
        except (RuntimeError, *UNREADABLE) as error:
            if state is None:
                raise
            raise CheckpointError(
                f"The checkpoint '{self.path}' is damaged ({brief(error)}): remove it to start the fit again."
            ) from error

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written >= 60 * self.minutes

    def save(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Write the state, replacing the last one. On a full disk the last one stays, with a warning, and the fit continues."""
        if self.path is None:
            return
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        remove_abandoned(self.path)
        try:
            write_tensors(self.path, "eddp-checkpoint", arrays, {"identity": self.identity, "values": values})
        except StoreError as error:
            log.warning("the fit continues, but its state could not be stored: %s", error)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Once the result is written, the state is of no use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def difference(kept: Any, wanted: Any, name: str = "") -> str:
    """Which entry differs first, for people."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        for key in (*wanted, *kept):
            if kept.get(key) != wanted.get(key):
                return difference(kept.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
    return f"{brief(name)} was {brief(kept)}, is {brief(wanted)}"
