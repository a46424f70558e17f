"""What to extract and how: checked once, recorded with the store."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from stores.errors import UsageError


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract and how.

    Parameters
    ----------
    model, weights : str
        As for ``extract.models.load_model``.
    layers : tuple of str
        Dotted module names.
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``; with dask also ``auto``, what each worker has.
    dtype : {"float16", "float32"}
        Of the stored activations.
    precision : {"float32", "tf32", "bfloat16", "float16"}
        What the network computes in. ``float32`` is exact; ``tf32`` (CUDA) rounds the factors of its products, ``bfloat16`` and
        ``float16`` run it under autocast. Recorded with the store.
    exact : bool
        Run the untouched network; else a form of it that gives the same up to rounding (``extract.inference``).
    positions : int, optional
        As many positions of each image, drawn by a seed of the image's own; all by default.
    compress : {"none", "zstd"}
        Chunks without compression are memory-mapped.
    batch_size : int, optional
        Images per forward pass; by default that of the unfinished store, else what the device takes. It changes the last bits of
        values at most, and what no longer fits is halved.
    workers : int, optional
        Decoding processes, 0 for threads; by default chosen for the machine. Changes nothing in the store.
    limit : int, optional
        Take the first so many images only.
    seed : int
        Of sampled positions, and of random weights.
    on_bad_image : {"fail", "skip"}
        Whether an image that cannot be read ends the run, or is skipped and listed.
    chunk_images : int, optional
        Images of a chunk of the store; by default chosen from the size of an image's activations.
    shard : (int, int), optional
        (i, n) fills the i-th of n parts of the store.
    output : str, optional
        Where in what the model returns its logits are; by default found (``extract.model_output``).
    layouts : tuple of (str, str)
        (layer, layout as ``--layout`` has it) of layers whose layout is not to be found; "" stands for every layer.
    grey_range : (float, float), optional
        The values that are black and white in grey images of more than 8 bits; by default from the depth of their file.
    class_names : tuple of str, optional
        Of the network's classes, in place of what the model says.
    frames : int, optional
        Of videos, for a network that takes images: as many frames of each, spread evenly, are a row each.
    clip_frames, clip_rate : int and float, optional
        For a network that takes clips: frames a clip, and how many a second; by default what is known of it.
    clips : int
        For a network that takes clips: as many of each video, spread evenly, are a row each.
    resize : {"squash"}, optional
        Resize to the network's input without regard to the aspect, where its transform would crop.

    Raises UsageError for values that are not allowed.
    """

    model: str
    layers: tuple[str, ...]
    weights: str = "DEFAULT"
    device: str = "cpu"
    dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    exact: bool = False
    positions: int | None = None
    compress: Literal["none", "zstd"] = "none"
    batch_size: int | None = None
    workers: int | None = None
    limit: int | None = None
    seed: int = 0
    on_bad_image: Literal["skip", "fail"] = "fail"
    chunk_images: int | None = None
    shard: tuple[int, int] | None = None
    output: str | None = None
    layouts: tuple[tuple[str, str], ...] = ()
    grey_range: tuple[float, float] | None = None
    class_names: tuple[str, ...] | None = None
    frames: int | None = None
    clip_frames: int | None = None
    clip_rate: float | None = None
    clips: int = 1
    resize: Literal["squash"] | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise UsageError("No layer was named: give --layer NAME (--layer ? lists a model's layers).")
        if len(set(self.layers)) != len(self.layers):
            raise UsageError(f"A layer is named twice: {', '.join(self.layers)}.")
        for name in ("positions", "batch_size", "limit", "chunk_images", "frames", "clip_frames", "clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"'{name}' must be at least 1, got {value}.")
        if self.clip_rate is not None and not 0 < self.clip_rate < math.inf:
            raise UsageError(f"'clip_rate' must be above 0, got {self.clip_rate}.")
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise UsageError(f"'{name}' must be one of {', '.join(get_args(kind))}, got '{getattr(self, name)}'.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"'seed' must not be negative, nor 2^63 or more, got {self.seed}.")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"'workers' must not be negative, got {self.workers}.")
        low, high = self.grey_range or (0, 1)
        if low == high or not math.isfinite(low) or not math.isfinite(high):
            raise UsageError(f"'grey_range' must be two different numbers, got {self.grey_range}.")
        if unknown := {layer for layer, _ in self.layouts if layer} - set(self.layers):
            raise UsageError(f"--layout names {', '.join(sorted(unknown))}, which no --layer does.")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise UsageError(f"'shard' must be i/n with 0 <= i < n, got {self.shard[0]}/{self.shard[1]}.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got '{self.device}'.")
        if self.precision == "tf32" and not self.device.startswith("cuda") and self.device != "auto":
            raise UsageError(f"'precision' tf32 needs a CUDA device, got '{self.device}'.")
