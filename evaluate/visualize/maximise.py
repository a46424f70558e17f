"""Activation maximisation: the pictures that make a layer's activations point along given directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from evaluate.visualize.fourier import Parametrisation, Pictures
from evaluate.visualize.natural import Natural
from evaluate.visualize.pixels import Normalisation
from evaluate.visualize.robust import draw_moves, moved
from extract.forward import computing_in
from stores.errors import NonFiniteError, UsageError
from stores.progress import Progress, silent

RATES: dict[Parametrisation, float] = {"fourier": 0.2, "magnitude": 0.25}
SMALLEST, LARGEST = 8, 1024  # sides of a picture, in pixels


@dataclass(frozen=True)
class VisualizeConfig:
    """How pictures are made.

    Parameters
    ----------
    parametrisation : "fourier", all of the spectrum is free (Olah et al. 2017); "magnitude", only its phase (MACO, Fel et
        al. 2023).
    steps : of gradient ascent (Adam). After 64 the response has covered 91 % of what it covers in 128 on a network of five
        convolutions; deeper networks gain from more.
    rate : Adam's; None: the parametrisation's own.
    size : height of the pictures in pixels, the width follows from the network's input; None: the network's input.
    transformations : whether each step sees the picture slightly shifted, scaled and turned.
    batch : pictures at a time; memory grows with it.
    seed : of the starts, the movements, the random directions and the sample of natural images.
    randoms : pictures along random directions, for comparison.
    """

    parametrisation: Parametrisation = "fourier"
    steps: int = 64
    rate: float | None = None
    size: int | None = None
    transformations: bool = True
    batch: int = 16
    seed: int = 0
    randoms: int = 8

    def __post_init__(self) -> None:
        if self.parametrisation not in get_args(Parametrisation):
            raise UsageError(
                f"'parametrisation' must be one of {', '.join(get_args(Parametrisation))}, got {self.parametrisation!r}."
            )
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0), ("randoms", 8)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"'{name}' must be at least {least}, got {value}.")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UsageError(f"'rate' must be a positive number, got {self.rate}.")
        if self.size is not None and not SMALLEST <= self.size <= LARGEST:
            raise UsageError(f"'size' must be between {SMALLEST} and {LARGEST} pixels, got {self.size}.")

    def picture_size(self, network_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the pictures for a network's input (h, w)."""
        height, width = network_size
        return network_size if self.size is None else (self.size, max(1, round(self.size * width / height)))


@dataclass(frozen=True)
class Target:
    """A direction to draw: ``vector`` (C,) of any length, its ``name`` for messages, and what seeds its picture together with the seed."""

    name: str
    vector: np.ndarray
    key: tuple[int, ...]

    def generator(self, seed: int) -> torch.Generator:
        """The target's own random numbers, whatever else is drawn."""
        state = np.random.SeedSequence([seed, *self.key]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def maximise(
    network: Any,
    normalise: Normalisation,
    natural: Natural,
    targets: Sequence[Target],
    config: VisualizeConfig,
    *,
    progress: Progress = silent,
) -> Iterator[tuple[Target, torch.Tensor]]:
    """Draw a picture for each direction: maximise the mean of x_p · v over the layer's positions p, v of unit norm.

    Parameters
    ----------
    network : ``extract.network.Network``, or what has its ``activations``, ``layout``, ``layer`` and ``device``. Positions
        that are nowhere in the image (class tokens) do not count. It runs in full float32.
    normalise : from RGB to the network's input; on any device.
    natural : statistics of natural images, of the pictures' size.
    targets : what to draw; each picture starts and moves by its own generator, and depends on no other.

    Yields
    ------
    (Target, tensor (3, h, w) in [0, 1] on the CPU), in order, a batch at a time.

    Raises
    ------
    NonFiniteError
        The network gives NaN or infinite values; the message names the direction.
    """
    device = torch.device(network.device)
    normalise = normalise.to(device)
    for start in range(0, len(targets), config.batch):
        some = targets[start : start + config.batch]
        told = _Told(progress, start, len(some), len(targets), config.steps)
        with computing_in("float32", device):  # not around the yield: what the caller computes is the caller's
            drawn = _batch(network, normalise, natural, some, config, told)
        yield from zip(some, drawn, strict=True)


@dataclass(frozen=True)
class _Told:
    """Progress of a batch in pictures: a step brings all of the batch forward."""

    progress: Progress
    before: int
    pictures: int
    total: int
    steps: int

    def __call__(self, step: int) -> None:
        self.progress("feature pictures", self.before + self.pictures * (step + 1) // self.steps, self.total)


def _batch(
    network: Any,
    normalise: Normalisation,
    natural: Natural,
    targets: Sequence[Target],
    config: VisualizeConfig,
    told: _Told,
) -> torch.Tensor:
    device = torch.device(network.device)
    generators = [target.generator(config.seed) for target in targets]
    pictures = Pictures(config.parametrisation, generators, natural, device)
    moves = draw_moves(generators, config.steps).to(device) if config.transformations else None
    v = torch.from_numpy(np.stack([_unit(target.vector) for target in targets])).to(device)  # (n, C)
    adam = torch.optim.Adam([pictures.free], lr=config.rate or RATES[config.parametrisation])
    for step in range(config.steps):
        with torch.enable_grad():
            rgb = pictures.rgb()
            if moves is not None:
                rgb = moved(rgb, moves[step])
            along = objective(network, normalise(resized(rgb, normalise.size)), v)  # (n,)
            _check(along, targets, network.layer)
            # asked for the pictures' gradients alone: none is left behind in the network, whoever owns its parameters
            (pictures.free.grad,) = torch.autograd.grad(-along.sum(), pictures.free)
        adam.step()
        told(step)
    with torch.no_grad():
        rgb = pictures.rgb()
    _check(rgb.flatten(1).sum(1), targets, network.layer)
    return rgb.cpu()


def objective(network: Any, images: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Mean of x_p · v over the image's positions (n,), of preprocessed images (n, 3, h, w) and a direction each, (n, C).

    Weighting by the cosine's square, as Olah et al. (2017) also do, was measured and left out: it made signal vectors' detectors
    respond a little more, filters' less, and the pictures look the same.
    """
    x = network.activations(images)[:, network.layout.prefix :]  # (n, P, C)
    return torch.einsum("nc,nc->n", x.mean(1), v)


def resized(rgb: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pictures (n, 3, h, w) at the size of the network's input, differentiably; the same tensor where it is theirs."""
    if rgb.shape[2:] == size:
        return rgb
    return torch.nn.functional.interpolate(rgb, size=size, mode="bilinear", antialias=True, align_corners=False)


def _unit(vector: np.ndarray) -> np.ndarray:
    """A direction's unit vector, float32; a vector of zeros (a dead detector's) stays."""
    norm = float(np.linalg.norm(vector))
    return np.asarray(vector / (norm or 1.0), np.float32)


def _check(values: torch.Tensor, targets: Sequence[Target], layer: str) -> None:
    if values.isfinite().all():
        return
    names = [target.name for target, good in zip(targets, values.isfinite().tolist(), strict=True) if not good]
    raise NonFiniteError(
        f"The network gives NaN or infinite values at {layer!r} while {', '.join(names)} is drawn. "
        "Its weights do not bear such pictures: lower 'rate', or draw a later or an earlier layer."
    )
