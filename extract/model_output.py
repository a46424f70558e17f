"""Which of the tensors that a model returns are its logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from stores.errors import UsageError

_WRAP = "Wrap the model so that it returns logits (n, K), and give that by --model module:callable"


@dataclass(frozen=True)
class ModelOutput:
    """Where the logits (n, K) are in what a model returns.

    ``key`` is "" where it returns a tensor, else the key or number to look up, dotted where one is inside another; ``classes``
    is K, ``how`` what decided, ``doubt`` what to warn of.
    """

    key: str
    classes: int
    how: str
    doubt: str = ""

    def __call__(self, returned: Any) -> torch.Tensor:
        """Give the logits (n, K) of what the model returned for n images, float32 or float64."""
        logits = returned if isinstance(returned, torch.Tensor) else dict(tensors_of(returned))[self.key]
        logits = logits.reshape(-1, self.classes)  # also where the model squeezes away a batch of one
        return logits if logits.dtype == torch.float64 else logits.float()


def find_output(
    returned: Any, n: int, asked: str | None = None, named: int | None = None, folders: int | None = None
) -> ModelOutput:
    """Decide which tensor of what a model returned for n images are the logits.

    A model that returns one tensor leaves no choice. Of several, the key that was asked for decides, then the number of class
    names, the key "logits", and the number of class folders.

    Parameters
    ----------
    asked : ``--output``: a key, or a number for the n-th of a tuple; dotted where one is inside another.
    named : how many class names the model, or the user, gives.
    folders : how many class folders the images have.

    Raises
    ------
    UsageError
        No tensor is (n, K), none or several fit, or the number of class names is not K.
    """
    found = _find(returned, n, asked, named, folders)
    values = found(returned)
    if found.classes <= 2 or not bool(((values >= 0) & (values <= 1)).all()):
        return found
    probable = bool(((values.sum(1) - 1).abs() < 1e-3).all())
    what = "sum to 1 like the probabilities of a softmax" if probable else "are between 0 and 1 like those of a sigmoid"
    doubt = f"the model's outputs {what}, but they are read as logits: return what the softmax or sigmoid is given"
    return replace(found, doubt=doubt)


def _find(returned: Any, n: int, asked: str | None, named: int | None, folders: int | None) -> ModelOutput:
    tensors = dict(tensors_of(returned))
    if not tensors:
        raise UsageError(f"The model must return logits (n, K), got {type(returned).__name__}, no tensor. {_WRAP}.")
    fitting = {key: t.flatten(1).shape[1] for key, t in tensors.items() if _is_logits(t, n)}
    offered = ", ".join(f"{key or 'a tensor'} {tuple(t.shape)}" for key, t in tensors.items())
    if asked is not None:
        if asked not in fitting:
            raise UsageError(f"--output {asked}: no logits (n, K) of that name. For {n} images it returns {offered}.")
        return _checked(ModelOutput(asked, fitting[asked], "--output"), named)
    if not fitting:
        maps = any(t.ndim == 4 and t.shape[0] == n for t in tensors.values())
        what = "a map of logits for every pixel, as segmentation networks do" if maps else "no logits (n, K)"
        average = ", such as the mean over the pixels (out.mean((2, 3)))" if maps else ""
        raise UsageError(f"The model returns {what}: for {n} images {offered}. {_WRAP}{average}.")
    first = next(iter(fitting))
    if len(tensors) == 1:
        return _checked(ModelOutput(first, fitting[first], "the only tensor that the model returns"), named)
    count, whose = (folders, "class folders") if named is None else (named, "class names")
    wanted = [key for key, classes in fitting.items() if classes == count]
    if "logits" in (fitting if named is None else wanted):
        return ModelOutput("logits", fitting["logits"], "called logits")
    if len(wanted) == 1:
        return ModelOutput(wanted[0], fitting[wanted[0]], f"{count} columns, as many as {whose}")
    if named is None and len(fitting) == 1:
        return ModelOutput(first, fitting[first], "the only tensor (n, K) of several")
    reason = "" if count is None else f", and {len(wanted) or 'none'} of them with as many columns as {whose} ({count})"
    which = f"Give --output KEY (one of {', '.join(fitting)}) for its logits"
    raise UsageError(f"The model returns several tensors{reason}: for {n} images {offered}. {which}.")


def tensors_of(value: Any, key: str = "", depth: int = 5) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in what a model returned, by its key (see ``ModelOutput``)."""
    if isinstance(value, torch.Tensor):
        yield key, value
    elif depth and not isinstance(value, str | bytes | torch.nn.Module):
        for name, part in _parts(value).items():
            yield from tensors_of(part, f"{key}.{name}" if key else name, depth - 1)


def _checked(output: ModelOutput, named: int | None) -> ModelOutput:
    if named is not None and named != output.classes:
        counts = f"There are {named} class names for {output.classes} logits of the model"
        raise UsageError(f"{counts}. Correct its class_names, or give --class-names FILE with one name a line.")
    return output


def _is_logits(t: torch.Tensor, n: int) -> bool:
    return t.ndim >= 2 and t.shape[0] == n and t.shape[2:].numel() == 1 and t.is_floating_point()


def _parts(value: Any) -> dict[str, Any]:
    """What a dictionary, list, tuple or object of fields holds, by name or number."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return {str(number): part for number, part in enumerate(value)}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    return dict(vars(value)) if hasattr(value, "__dict__") else {}
