"""The forward pass of an extraction: what the layers give, in the store's dtype, checked and on its way to the host.

On a GPU the copies to the host overlap with the next batch's pass. A batch that does not fit in memory is halved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from extract.config import ExtractConfig
from extract.image_io import KEPT
from extract.memory import is_out_of_memory, keep_freed_memory
from extract.network import Network, capture
from stores.errors import OutOfMemoryError

log = logging.getLogger(__name__)
MOST = 512  # images a pass: more keeps no GPU busier
SHARE = 0.6  # of a GPU's free memory that the passes may take


@dataclass
class Outcome:
    """What a pass over some images of a batch gave; call ``wait`` before reading.

    ``logits`` (n, K) float32 and ``activations`` {layer: (n, P, C)} are on the host, ``fit`` says for each layer which of
    the images have activations that are finite in the store's dtype; ``images`` are what went in.
    """

    images: torch.Tensor
    start: int
    logits: torch.Tensor
    activations: dict[str, torch.Tensor]
    fit: dict[str, torch.Tensor]
    event: torch.cuda.Event | None = field(default=None, repr=False)

    def wait(self) -> Outcome:
        if self.event is not None:
            self.event.synchronize()
        return self


class Forward:
    """A module with hooks on some of its layers; use it within ``with Forward(...) as forward``.

    Parameters
    ----------
    module : what is run, see ``extract.inference``.
    networks : {layer: Network} of its model; their layers are captured.
    config : device, dtype and precision.
    """

    def __init__(self, module: nn.Module, networks: Mapping[str, Network], config: ExtractConfig) -> None:
        self.module, self.output = module, next(iter(networks.values())).output
        self.layouts = {name: network.layout for name, network in networks.items()}
        self.device, self.precision = torch.device(config.device), config.precision
        self.dtype = torch.float16 if config.dtype == "float16" else torch.float32
        self.most: int | None = None  # images a pass, once more did not fit
        self._stack = ExitStack()

    def __enter__(self) -> Forward:
        if self.device.type == "cpu":
            self._stack.enter_context(keep_freed_memory())
        self._stack.enter_context(torch.inference_mode())
        self._stack.enter_context(computing_in(self.precision, self.device))
        self._taken = self._stack.enter_context(capture(self.module, self.layouts, self.dtype))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, images: torch.Tensor, positions: Mapping[str, np.ndarray]) -> Iterator[Outcome]:
        """Run preprocessed images (n, 3, h, w), in as few passes as memory allows.

        ``positions`` {layer: (n, P) int, those of the prefix counted} are what is stored of layers with sampled positions.
        Raises OutOfMemoryError when not even one image fits.
        """
        start, size = 0, min(len(images), self.most or len(images))
        while start < len(images):
            part = slice(start, start + size)
            try:
                yield self._once(images[part], start, {name: index[part] for name, index in positions.items()})
                start += size
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    lack = f"The device '{self.device}' has not enough memory for a single image"
                    raise OutOfMemoryError(f"{lack}. Free some, or use another --device. {KEPT}.") from error
            size = self.most = max(1, size // 2)
            log.warning("not enough memory on '%s' for a batch; continuing with %d images at a time", self.device, size)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Run the module: logits (n, K) of preprocessed images on its device; the layers' activations are captured."""
        return self.output(self.module(images))

    def _once(self, images: torch.Tensor, start: int, positions: Mapping[str, np.ndarray]) -> Outcome:
        logits = self.logits(images.to(self.device, non_blocking=True)).float()
        taken, fit = {}, {}
        for name, x in self._taken.items():
            fit[name] = torch.isfinite(x).flatten(1).all(1)  # (n, P, C) -> (n,)
            if name in positions:
                index = torch.from_numpy(positions[name]).to(x.device, torch.int64)
                x = torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))
            taken[name] = x
        event = None
        if self.device.type == "cuda":  # into pinned memory, without waiting
            logits = logits.to("cpu", non_blocking=True)
            taken = {name: x.to("cpu", non_blocking=True) for name, x in taken.items()}
            fit = {name: x.to("cpu", non_blocking=True) for name, x in fit.items()}
            event = torch.cuda.Event()
            event.record()
        return Outcome(images, start, logits, taken, fit, event)

    def peak(self, image: torch.Tensor, layer: str) -> float:
        """Largest absolute activation of one preprocessed image (3, h, w), in float32: NaN or infinite where it is."""
        with capture(self.module, {layer: self.layouts[layer]}) as taken:
            self.module(image[None].to(self.device))
            return float(taken[layer].abs().max())


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Have the network compute in a precision, the same from run to run."""
    exact = precision != "tf32"
    with ExitStack() as stack:
        if device.type == "cuda":
            # deterministic kernels: the same command gives the same bits
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=not exact)
            )
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = not exact
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", before)
        if precision in ("bfloat16", "float16"):
            stack.enter_context(torch.autocast(device.type, getattr(torch, precision)))
        yield


def fitting_batch_size(module: nn.Module, images: torch.Tensor, device: str) -> int:
    """Images per pass: what keeps a processor's caches busy, or what a GPU's memory takes, found by two small passes.

    ``images`` (n, 3, h, w) are any preprocessed ones.
    """
    where = torch.device(device)
    if where.type != "cuda":
        return 16 if images.ndim == 4 else 4  # a clip is as much work as all its frames
    needed = []
    few, more = 2, 16
    with torch.inference_mode():
        for n in (few, more):
            batch = images[:1].to(where).expand(n, *[-1] * (images.ndim - 1)).contiguous()
            torch.cuda.synchronize(where)
            torch.cuda.reset_peak_memory_stats(where)
            before = torch.cuda.memory_allocated(where)
            module(batch)
            torch.cuda.synchronize(where)
            needed.append(torch.cuda.max_memory_allocated(where) - before)
    per_image = max(1.0, (needed[1] - needed[0]) / (more - few))
    fits = int(SHARE * torch.cuda.mem_get_info(where)[0] / per_image)
    return max(1, min(MOST, 1 << max(0, fits.bit_length() - 1)))
