"""A model with one layer corrected: a hook that is there while the model runs, and removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stores.errors import UsageError

_CHANNELS = {"nchw": 1, "ncp": 1, "ncthw": 1, "ntchw": 2}  # dimension; the last of other layouts
Change = Callable[[torch.Tensor], torch.Tensor]


class Corrected(nn.Module):
    """Wraps a model; every forward pass through the wrapper is corrected, the model without it is not.

    Attributes
    ----------
    model : the model as it was given: untouched, and in use by whoever else holds it.
    correction : the ``Correction``.
    """

    def __init__(self, model: nn.Module, correction: Any) -> None:
        super().__init__()
        self.model = model
        self.correction = correction

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        of = self.correction
        with hooked_layer(self.model, of.layer, of, of.layout, of.prefix):
            return self.model(*arguments, **keywords)


@contextmanager
def hooked_layer(model: nn.Module, layer: str, change: Change, layout: str, prefix: int = 0) -> Iterator[None]:
    """Within the block the layer's output is changed: ``change`` maps (n, P, C) to (n, P, C), prefix positions stay.

    ``layout`` is one of those of ``extract.tensor_layout.LayerLayout``; height and width may differ from those of the extraction.
    """

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise UsageError(f"Layer '{layer}' must give a tensor to be corrected, got {type(output).__name__}.")
        return changed(output, change, layout, prefix)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def changed(output: torch.Tensor, change: Change, layout: str, prefix: int = 0) -> torch.Tensor:
    """A layer's own tensor with ``change`` applied to its positions (…, C)."""
    channels = _CHANNELS.get(layout, -1)
    x = output.movedim(channels, -1)
    x = torch.cat([x[:, :prefix], change(x[:, prefix:])], 1) if prefix else change(x)
    return x.movedim(-1, channels).contiguous()
