"""What only labels give: Pattern-CAVs, the difference of class means (Pahde et al. 2025), S3, and where each label occurs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from extract.labels import Alignment, labels_ahead
from stores.progress import Progress, silent
from stores.readers import LayerReader


@dataclass(frozen=True)
class LabelUse:
    """Of L labels: ``cavs`` (C, L) ``E[x | label] − E[x | no label]`` of unit norm over the positions of images annotated in the label's
    category, ``known`` (L,) which labels have one (the others' columns are zero), ``images`` (L, K) how many of the images that show the
    label are predicted as each class, ``annotated`` (L, K) how many of those annotated in its category, ``area`` (L,) the mean share of
    positions it has there."""

    cavs: np.ndarray
    known: np.ndarray
    images: np.ndarray
    annotated: np.ndarray
    area: np.ndarray


def label_use(
    reader: LayerReader,
    alignment: Alignment,
    predicted: np.ndarray,
    n_classes: int,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> LabelUse:
    """One pass over a concept dataset.

    Parameters
    ----------
    predicted : (N,) the class that each row of the store is predicted as.
    """
    source, rows = alignment.source, alignment.rows
    column = {label.number: k for k, label in enumerate(source.labels)}
    category = {
        name: [k for k, label in enumerate(source.labels) if label.category == name] for name in source.categories
    }
    where = torch.device(device)
    on_sum = torch.zeros(len(source.labels), reader.channels, dtype=torch.float64, device=where)
    off_sum = torch.zeros_like(on_sum)
    on, off, area = (np.zeros(len(source.labels)) for _ in range(3))
    images, with_category = (np.zeros((len(source.labels), n_classes), np.int64) for _ in range(2))
    order = [row for row in reader.image_indices.tolist() if row in rows]
    done = 0
    numbers = [rows[row] for row in order]
    with closing(labels_ahead(source, numbers, reader.grid, alignment.box_of, reader.time)) as ahead:
        for index, block in reader.blocks(images=max(1, 2**24 // (reader.positions * reader.channels))):
            for k, row in enumerate(index.tolist()):
                if row not in rows:
                    continue
                labels = next(ahead)
                maps = torch.from_numpy(labels.maps).to(where)
                if reader.spec.sampled:
                    maps = maps[:, torch.from_numpy(reader.places(row)).to(where)]
                x = torch.from_numpy(block[k]).to(where).float()
                total = x.sum(0).double()
                annotated = [c for name in labels.categories for c in category.get(name, ())]
                off_sum[annotated] += total
                off[annotated] += len(x)
                with_category[annotated, predicted[row]] += 1
                here = [column[int(number)] for number in labels.numbers]
                inside = (maps.float() @ x).double()
                count = maps.sum(1).double().cpu().numpy()
                on_sum[here] += inside
                off_sum[here] -= inside
                on[here] += count
                images[here, predicted[row]] += count > 0
                area[here] += count / len(x)
                off[here] -= count
                done += 1
            progress("class means", done, len(order))
    known = (on > 0) & (off > 0)
    difference = on_sum.cpu().numpy() / np.maximum(on, 1)[:, None] - off_sum.cpu().numpy() / np.maximum(off, 1)[:, None]
    norm = np.linalg.norm(difference, axis=1)
    known &= norm > 0
    unit = np.where(known[:, None], difference / np.maximum(norm, 1e-30)[:, None], 0)
    return LabelUse(unit.T.astype(np.float32), known, images, with_category, area / np.maximum(images.sum(1), 1))


def s3(label: np.ndarray, signals: np.ndarray, cavs: np.ndarray, known: np.ndarray) -> float | None:
    """S3: share of (label, class) pairs at which the Pattern-CAV beats every signal vector of that label; below 0.5 the signal
    vectors are more influential. None where no direction has a label with a Pattern-CAV.

    Parameters
    ----------
    label : (I,) column of each direction's label, −1 for none.
    signals, cavs : (I, K) and (L, K) influence, of which the absolute value counts; a tie does not beat.
    known : (L,) labels that have a Pattern-CAV.
    """
    pairs = [
        np.abs(cavs[c]) > np.abs(signals[label == c]).max(0) for c in np.unique(label[label >= 0]).tolist() if known[c]
    ]
    return float(np.mean(pairs)) if pairs else None
