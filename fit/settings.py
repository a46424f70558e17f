"""``--set name=value``: texts turned into the fields of a method's configuration, each checked."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from stores.errors import UnknownNameError, UsageError

T = TypeVar("T")


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
    if typing.get_origin(kind) is typing.Literal:
        if text in options:
            return text
        raise UsageError(f"--set {name}={text}: must be one of {', '.join(map(str, options))}.")
    for option in options:
        try:
            if option is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
                return text.lower() in ("true", "yes", "1")
            if option is int or (option is float and math.isfinite(float(text))):
                return option(text)
            if option is str:
                return text
        except ValueError:
            continue
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    raise UsageError(f"--set {name}={text}: must be a number of kind {names}.")
