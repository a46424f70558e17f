"""What natural images have in common: their mean colour, how their colours vary together, how much of each frequency.

All of it is measured before the logistic function, on the log-odds of RGB values, for that is where pictures are made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from evaluate.visualize.spectra import falling
from extract.store_images import StoreImages
from stores.errors import EDDPError

log = logging.getLogger(__name__)
MARGIN = 0.02  # values are kept this far from 0 and 1, whose log-odds are infinite
FLOOR = 1e-4  # least variance of a colour axis, of the largest one's: grey images have no others
SAMPLE = 128  # images that the statistics are measured on
_OPPONENT = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])  # brightness, red-blue, magenta-green (Ohta 1980)
_DEVIATIONS = torch.tensor([1.6, 0.5, 0.2])  # of the three, in log-odds, in everyday photographs [ours]


@dataclass(frozen=True)
class Natural:
    """Statistics of images of one size.

    Parameters
    ----------
    mean : (3,) float32, mean log-odds of red, green, blue.
    mix : (3, 3) float32, from three uncorrelated planes of unit variance to the colours' log-odds less their mean.
    magnitude : (3, h, w // 2 + 1) float32, mean magnitude of the planes' spectra (orthonormal transform); 0 at frequency 0,
        so that the mean stays.
    size : (h, w) in pixels.
    images : how many were measured; 0 for those that are assumed.
    """

    mean: torch.Tensor
    mix: torch.Tensor
    magnitude: torch.Tensor
    size: tuple[int, int]
    images: int


def assumed(size: tuple[int, int]) -> Natural:
    """Statistics where there are no images to measure: grey on average, opponent colours, magnitudes that fall as 1/f [ours]."""
    axes = _OPPONENT / _OPPONENT.norm(dim=1, keepdim=True)
    magnitude = falling(*size).expand(3, -1, -1).clone()
    magnitude[:, 0, 0] = 0
    return Natural(torch.zeros(3), axes.T * _DEVIATIONS, magnitude, size, 0)


def measured(images: Iterable[Image.Image], size: tuple[int, int]) -> Natural:
    """Measure the statistics of some images, each resized to ``size`` (h, w); without any, those assumed.

    The mixing matrix is the square root of the covariance of the colours, by its axes; the magnitudes are means over the
    images (Fel et al. 2023, §4), of planes unmixed by it, an image at a time.
    """
    height, width = size
    pixels = [np.asarray(i.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)) for i in images]
    if not pixels:
        return assumed(size)
    total, products = torch.zeros(3).double(), torch.zeros(3, 3).double()
    for value in pixels:
        odds = _log_odds(value).flatten(1).double()  # (3, h·w)
        total += odds.mean(1) / len(pixels)
        products += odds @ odds.T / (odds.shape[1] * len(pixels))
    variance, axes = torch.linalg.eigh(products - torch.outer(total, total))
    if not variance[-1] > 1e-9:  # one flat colour: no axes, no frequencies
        return assumed(size)
    deviation = variance.clamp(min=FLOOR * float(variance[-1])).sqrt()
    mean, unmix = total.float(), (axes / deviation).T.float()
    magnitude = torch.zeros(3, height, width // 2 + 1)
    for value in pixels:
        planes = torch.einsum("cr,rhw->chw", unmix, _log_odds(value) - mean[:, None, None])
        magnitude += torch.fft.rfft2(planes, norm="ortho").abs() / len(pixels)
    magnitude[:, 0, 0] = 0
    return Natural(mean, (axes * deviation).float(), magnitude, size, len(pixels))


def sampled(seen: StoreImages, size: tuple[int, int], *, images: int = SAMPLE, seed: int = 0) -> Natural:
    """Measure the statistics on a random sample of a store's own images, as the network saw them.

    An image that cannot be read any more is left out.
    """
    rows = [row for row in range(seen.store.n_images) if row in seen]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:images]
    found = []
    for row in sorted(rows[k] for k in drawn):
        try:
            found += seen.frames(row)
        except EDDPError as error:
            log.warning("an image is left out of the statistics of natural images: %s", error)
    return measured(found, size)


def _log_odds(pixels: np.ndarray) -> torch.Tensor:
    """RGB bytes (h, w, 3) -> log-odds (3, h, w) float32."""
    value = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    return torch.logit(value.clamp(MARGIN, 1 - MARGIN))
