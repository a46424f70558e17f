"""An image-text encoder that has seen labelled examples: it knows colours, and the look of small patches, of what each word is an example of.

A picture's embedding estimates, for every word, the IoU of its mask with the box that was cut out, or 1 where the box was cut out for it: ridge
regression on a histogram of colours and on how well patches of the examples match. A text's embedding is its word's axis, or for a word without examples an axis of its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evaluate.image_crops import box_of, crop_picture
from extract.datasets import open_concepts
from extract.models import transforms as T
from pipeline.world.scenes import NUMBER, SCENES, draw_scene
from pipeline.world.surfaces import TONES, name_colors

SIDE, PATCH, PATCHES = 32, 6, 160
GRID = 12  # cells of a picture, as a layer's positions
RIDGE = 0.0075  # per example
Example = tuple[Image.Image, Mapping[str, np.ndarray]]  # a picture, and where each word is in it


class Encoder:
    """``examples`` : pictures, and of each word a mask (h, w)."""

    preprocess = staticmethod(T.Compose([T.Resize((SIDE, SIDE)), T.ToTensor()]))

    def __init__(self, examples: Iterable[Example], seed: int = 0) -> None:
        pictures: list[torch.Tensor] = []
        targets: list[dict[str, float]] = []
        for picture, masks in examples:
            cells = torch.from_numpy(np.stack(list(masks.values())).astype(np.float32))
            shares = F.adaptive_avg_pool2d(cells, GRID).numpy()  # of each word, each cell
            for word, share in zip(masks, shares, strict=True):
                box = box_of(share >= min(0.5, share.max()))
                pictures.append(self.preprocess(crop_picture(picture, box, (GRID, GRID))))
                top, left, bottom, right = box
                inside = shares[:, top:bottom, left:right].sum((1, 2))
                iou = inside / (shares.sum((1, 2)) + (bottom - top) * (right - left) - inside)
                targets.append({**dict(zip(masks, iou.tolist(), strict=True)), word: 1.0})
        seen = torch.stack(pictures)
        generator = torch.Generator().manual_seed(seed)
        self.words = {word: k for k, word in enumerate(dict.fromkeys(word for one in targets for word in one))}
        self.patches = torch.zeros(0)
        patches = _patches(seen[torch.randperm(len(seen), generator=generator)[:PATCHES]])
        chosen = torch.randint(patches.shape[1], (len(patches),), generator=generator)
        self.patches = patches[torch.arange(len(patches)), chosen]
        x = torch.cat([self._features(part) for part in seen.split(256)])
        self.mean, self.scale = x.mean(0), x.std(0) + 1e-3
        x = (x - self.mean) / self.scale
        y = torch.tensor([[one.get(word, 0.0) for word in self.words] for one in targets])
        self.prior = y.mean(0)
        gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
        self.map = torch.linalg.solve(gram, x.T @ (y - self.prior))

    def _features(self, batch: torch.Tensor) -> torch.Tensor:
        """(n, F) of pictures (n, 3, 32, 32)."""
        names = torch.from_numpy(name_colors(255 * batch.permute(0, 2, 3, 1).numpy()))
        shown = F.one_hot(names, len(TONES)).float()  # n h w colour
        quarter = SIDE // 4
        parts = [shown.mean((1, 2)).sqrt(), shown[:, quarter:-quarter, quarter:-quarter].mean((1, 2)).sqrt()]
        parts.append(F.adaptive_avg_pool2d(batch, 4).flatten(1))
        if len(self.patches):
            match = _patches(batch) @ self.patches.T
            parts += [match.clamp(min=0).mean(1), match.amax(1)]
        return torch.cat(parts, 1)

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        found = (self._features(batch) - self.mean) / self.scale @ self.map + self.prior
        return torch.cat([found.clamp(min=0), torch.full((len(batch), 64), 1e-3)], 1)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        found = torch.zeros(len(texts), len(self.words) + 64)
        for i, text in enumerate(texts):
            known = [word for word in self.words if text.endswith(word)]
            found[i, self.words[max(known, key=len)] if known else len(self.words) + sum(map(ord, text)) % 64] = 1
        return found


def _patches(batch: torch.Tensor) -> torch.Tensor:
    """(n, L, 108) all patches of pictures, every second row and column, without their mean, of unit norm."""
    found = F.unfold(batch, PATCH, stride=2).transpose(1, 2)
    found = found - found.mean(2, keepdim=True)
    return found / (found.norm(dim=2, keepdim=True) + 0.3)


def scenes(count: int = 120, seed: int = 1000) -> Iterator[Example]:
    """Pictures of the demo's world, of a seed of their own, with their dense labels."""
    names = {number: name for name, number in NUMBER.items()}
    for k in range(count):
        scene = SCENES[k % len(SCENES)]
        canvas = draw_scene(scene, 96, seed, k, marked=k % 5 == 0)
        layers = [mask for layers in canvas.masks().values() for mask in layers]
        present = {int(n) for mask in layers for n in np.unique(mask[mask > 0])}
        masks = {names[n]: np.any([mask == n for mask in layers], 0) for n in sorted(present)}
        yield canvas.picture(), masks | {scene: np.ones_like(layers[0], bool)}


def labelled(root: str) -> Iterator[Example]:
    """Pictures of a concept dataset with their labels."""
    source = open_concepts(Path(root))
    for i in range(0, len(source), 6):
        layers = [mask for category in source.masks(i).values() for mask in category]
        numbers = {int(n) for mask in layers for n in np.unique(mask[mask > 0])}
        yield (
            source.image(i),
            {source.by_number[n].name: np.any([mask == n for mask in layers], 0) for n in sorted(numbers)},
        )


@functools.cache
def concept_words() -> Encoder:
    """For ``--encoder example_sight:concept_words``: its examples are in the folder that ``$EXAMPLES`` names."""
    return Encoder(labelled(os.environ["EXAMPLES"]))


@functools.cache
def scene_words() -> Encoder:
    """For ``--encoder example_sight:scene_words``."""
    return Encoder(scenes())
