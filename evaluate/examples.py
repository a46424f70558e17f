"""Examples of what directions stand for: their strongest images, cut to where they fire, as an image encoder sees them.

Next to them, what to expect by chance: examples of random directions, and parts of random images as large and in the same places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.crop_embeddings import Embeddings, Frames, embed_crops
from evaluate.detector_bank import Bank, slices_of
from evaluate.image_crops import crops_of
from evaluate.influence.steering import random_units
from evaluate.parallel import Scheduler
from evaluate.top_images import strongest
from extract.image_text import ImageTextEncoder
from stores.errors import ImageError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

IMAGES = 100  # of a direction, a tenth of all where these are fewer than 1000
LEAST_IMAGES = 10
RANDOMS = 200  # at least; as many as the largest file has directions
RANDOM_IMAGES = 1000  # of which a part is embedded
POSITIONS = 20_000  # that shares of positions are estimated on


@dataclass(frozen=True)
class Examples:
    """Embeddings of the examples of J detectors and of R random directions.

    Parameters
    ----------
    embedded : of U parts of images, of unit norm.
    number : (n, J + R) which of them are of a direction, strongest first; the random directions are last.
    by_chance : (M,) which of them are parts of random images.
    slices : of each set, its columns of ``number``.
    """

    embedded: Embeddings
    number: np.ndarray
    by_chance: np.ndarray
    slices: Mapping[str, slice]
    encoder: ImageTextEncoder

    @property
    def randoms(self) -> int:
        return self.number.shape[1] - max(part.stop for part in self.slices.values())


def random_count(slices: Mapping[str, slice]) -> int:
    """How many random directions sets are held against."""
    return max(RANDOMS, *(part.stop - part.start for part in slices.values()))


def random_detectors(reader: LayerReader, bank: Bank, count: int, seed: int) -> Bank:
    """Directions uniform on the sphere; each fires on as large a share of positions as one of the bank's detectors, which are spread evenly over them."""
    filters = random_units(reader.channels, count, seed).to(bank.filters)
    x = reader.sampled_rows(POSITIONS, seed)
    shares = (bank.logits(x[None])[0] > 0).float().mean(0)
    values = (torch.from_numpy(x).to(filters) @ filters).sort(0).values
    place = (len(x) * (1 - shares[torch.arange(count) * bank.count // count])).long().clamp(max=len(x) - 1)
    return Bank(filters, values.gather(0, place[None])[0], slices_of({"random": count}))


def embed_examples(
    reader: LayerReader,
    bank: Bank,
    frames: Frames,
    images: str,
    encoder: ImageTextEncoder,
    *,
    seed: int = 0,
    progress: Progress = silent,
    scheduler: Scheduler = None,
) -> Examples:
    """Find and embed the examples of a bank's detectors, in one pass over the store and one over the images wanted.

    Parameters
    ----------
    frames : from a row of the store to the image, or the frames of the clip. images : digest of where they are from.
    seed : of the random directions and images.

    Images that cannot be read are left out, with a warning. Raises ImageError where they are half of a direction's, UsageError for a store
    of few images.
    """
    if reader.n_images < 2 * LEAST_IMAGES:
        raise UsageError(
            f"--encoder compares the strongest images of a direction with others: the store has {reader.n_images} images, and {2 * LEAST_IMAGES} are the least."
        )
    count = max(LEAST_IMAGES, min(IMAGES, reader.n_images // 10))
    randoms = random_count(bank.slices)
    drawn = random_detectors(reader, bank, randoms, seed)
    joined = Bank(
        torch.cat([bank.filters, drawn.filters], 1),
        torch.cat([bank.thresholds, drawn.thresholds]),
        slices_of({"own": bank.count, "random": randoms}),
    )
    crops = crops_of(reader, joined, strongest(reader, joined, count, progress, scheduler).rows)
    own = crops.places[crops.number[:, : bank.count].ravel()]
    g = np.random.default_rng([seed, 0xE5])
    some = g.permutation(reader.image_indices)[:RANDOM_IMAGES]
    elsewhere = own[g.integers(len(own), size=len(some))]
    elsewhere[:, 0] = some
    places, at = np.unique(np.concatenate([crops.places, elsewhere]), axis=0, return_inverse=True)
    at = at.ravel()
    embedded = embed_crops(reader, places, frames, encoder, images, progress)
    number, by_chance = at[crops.number], at[len(crops.places) :]
    known = embedded.known
    if (2 * known[number].sum(0) <= count).any() or 2 * known[by_chance].sum() <= len(by_chance):
        raise ImageError(
            f"Half of the images that a direction fires on most cannot be read any more. Put the images of '{reader.store.path}' back where they were."
        )
    return Examples(embedded, number, by_chance, bank.slices, encoder)
