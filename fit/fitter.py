"""The contract of every method: a frozen configuration, and ``fit(reader, head) -> Fitted``."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from extract.head import Head
from stores.directions import Directions
from stores.errors import UnknownNameError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader


@dataclass(frozen=True)
class FitterConfig:
    """What all methods share. Every field can be set by ``--set name=value``."""

    n_directions: int = 64
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.n_directions < 1:
            raise UsageError(f"'n_directions' (--directions) must be at least 1, got {self.n_directions}.")


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves: the directions, and a table of what was minimised over the steps (may be empty)."""

    directions: Directions
    log: list[dict[str, float]] = field(default_factory=list)


class Fitter(Protocol):
    """A method. Streaming, seeded: the same store, configuration and device give the same directions."""

    name: ClassVar[str]
    config: Any

    def __init__(self, config: Any) -> None: ...

    def fit(self, reader: LayerReader, head: Head | None = None, progress: Progress = silent) -> Fitted:
        """Find directions in a layer's activations; ``head`` is the network after the layer, where there is one."""
        ...


Config = TypeVar("Config", bound=FitterConfig)


def with_settings(config: Config, settings: Mapping[str, str]) -> Config:
    """A configuration with some fields replaced by ``name=value`` texts, converted to the fields' types.

    Raises UnknownNameError for a name that is no field (listing all), UsageError for a value that does not convert.
    """
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in hints or name in ("device",):
            near = difflib.get_close_matches(name, hints, n=3)
            raise UnknownNameError(
                f"--set {name}: there is no such setting. "
                + (f"Did you mean {' or '.join(near)}? " if near else "")
                + f"Settings: {', '.join(n for n in hints if n != 'device')}."
            )
        changes[name] = _convert(name, text, hints[name])
    return dataclasses.replace(config, **changes)


def _convert(name: str, text: str, kind: Any) -> Any:
    options: Sequence[Any] = typing.get_args(kind) or (kind,)
    if type(None) in options and text.lower() in ("none", "auto"):
        return None
    if typing.get_origin(kind) is typing.Literal:
        if text in options:
            return text
        raise UsageError(f"--set {name}={text}: must be one of {', '.join(map(str, options))}.")
    for option in options:
        try:
            if option is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
                return text.lower() in ("true", "yes", "1")
            if option in (int, float):
                return option(text)
            if option is str:
                return text
        except ValueError:
            continue
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    raise UsageError(f"--set {name}={text}: must be a number of kind {names}.")


def provenance(reader: LayerReader, config: FitterConfig) -> dict[str, Any]:
    """What goes into every directions file: the store's identity, and the configuration in force."""
    made = reader.store.provenance
    return {
        "store": {"path": str(reader.store.path), "fingerprint": reader.store.fingerprint},
        "model": made.get("model"),
        "weights_digest": made.get("weights_digest"),
        "grid": list(reader.grid),
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k != "device"},
    }
