"""Directions named by words: which word of a list an image-text encoder sees in what a detector fires on, and whether that beats chance.

**Score.** soft-WPMI of CLIP-Dissect (Oikarinen & Weng 2023). ``p_t`` is the softmax over the words of 10 · cosine of an image's and a
word's embedding. The evidence of a word is the sum over the direction's strongest images of ``log(1 + w (p_t − 1) + 1e-7)``, w falling from
0.998 to 0.97 with the rank. What counts is how far it is above that in random directions [ours]: their mean is subtracted, and the difference
divided by their standard deviation plus the mean one of all words, so that no word wins by hardly varying. (CLIP-Dissect subtracts the log-mean over the directions
of a file, which is that of the best of them: where several show a thing none is called by it, but by a word for which nothing speaks.)

**Chance** [ours]. The word is chosen on every second of the images and scored on the others. Random directions, uniform on the sphere,
each with a threshold that as many positions exceed as one of the detectors', go the same way; p counts those with as large a score. The p of
a file's directions are corrected for their number (Benjamini & Hochberg 1995): where a file knows nothing, it gets any name at all with a
chance of at most 5 %. No p is below 1 / (N + 1), so that of a file's J directions any gets a name only where at least J / (0.05 (N + 1)) are
beyond all N random ones: two of twenty with N = 200.

Words are embedded as in SemanticLens (Dreyer et al. 2025): the mean over templates, less the templates' own embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluate.crop_embeddings import Embeddings
from evaluate.examples import Examples
from evaluate.influence.significance import bh_adjusted
from extract.image_text import ImageTextEncoder
from stores.attachments import read_cache, write_cache
from stores.errors import DatasetError, MissingPathError, UsageError
from stores.progress import Progress, silent

DEFAULT = "default"
TEMPLATES = ("{}", "a photo of {}", "a picture that shows {}")
SHARPNESS, FLOOR = 10.0, 1e-7  # of the softmax, and within the logarithm (CLIP-Dissect)
SURE, UNSURE = 0.998, 0.97  # w of the first image, and after the last
LEVEL = 0.05
TEXTS = 256  # at a time
LONGEST = 100  # characters of a word


@dataclass(frozen=True)
class WordLabel:
    """``words``: the best three, first the one that ``score``, mean ``cosine`` and ``p`` are of; ``q``: p corrected for the directions of the file."""

    words: tuple[str, ...]
    score: float
    cosine: float
    p: float
    q: float

    @property
    def significant(self) -> bool:
        return self.q <= LEVEL


@dataclass(frozen=True)
class WordStudy:
    """Labels of each set's directions; over how many ``images`` of each, how many ``words`` and against how many ``randoms``."""

    labels: dict[str, list[WordLabel]]
    images: int
    words: int
    randoms: int


def least_beyond(directions: int, randoms: int) -> int:
    """How many of a file's directions must be beyond all random ones, so that any is significant."""
    return math.ceil(directions / (LEVEL * (randoms + 1)))


def read_words(name: str) -> list[str]:
    """The words of a text file, one a line, each once; ``#`` begins a comment. ``default``: the list that is shipped.

    Raises MissingPathError without the file, DatasetError for one that is no such list.
    """
    path = Path(__file__).with_name("vocabulary.txt") if name == DEFAULT else Path(name).expanduser()
    if not path.is_file():
        raise MissingPathError(
            f"There is no word list '{path}' (--vocabulary). Give a text file with a word a line, or 'default'."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"The word list '{path}' is no UTF-8 text ({error.reason}). Save it as UTF-8, a word a line."
        ) from error
    words = list(dict.fromkeys(word for line in lines if (word := " ".join(line.partition("#")[0].split()))))
    if long := [word for word in words if len(word) > LONGEST or not word.isprintable()]:
        raise DatasetError(
            f"The word list '{path}' has {long[0][:LONGEST]!r} as a word. A word a line, of at most {LONGEST} characters."
        )
    if len(words) < 2:
        raise DatasetError(
            f"The word list '{path}' has {len(words)} words: there is nothing to choose from. Write a word a line."
        )
    return words


def embed_words(
    encoder: ImageTextEncoder, words: Sequence[str], file: Path | None = None, progress: Progress = silent
) -> np.ndarray:
    """(M, D) embeddings of unit norm: the mean over templates of a word's less the empty template's. ``file`` : where they are stored."""
    listed = hashlib.sha256("\n".join(words).encode()).hexdigest()
    key = {"encoder": encoder.digest, "words": listed, "templates": list(TEMPLATES), "version": 1}
    kept = read_cache(file, key) if file is not None else None
    found = None if kept is None else kept[0].get("embeddings")
    if found is not None and found.ndim == 2 and len(found) == len(words) and found.dtype == np.float32:
        return found
    parts, empty = [], [encoder.texts([t.format("")]) for t in TEMPLATES]
    for start in range(0, len(words), TEXTS):
        some = words[start : start + TEXTS]
        parts.append(
            np.mean(
                [encoder.texts([t.format(w) for w in some]) - none for t, none in zip(TEMPLATES, empty, strict=True)], 0
            )
        )
        progress("words", start + len(some), len(words))
    found = np.concatenate(parts)
    found = np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12), np.float32)
    if file is not None:
        write_cache(file, key, {"embeddings": found}, {})
    return found


def evidence(images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """(2, M) float64: of every word its evidence in a direction's images (n, D), best first, in every second one from the first and from the second."""
    n = len(images)
    weight = SURE - (SURE - UNSURE) * torch.arange(n, dtype=torch.float32, device=images.device)[:, None] / n
    p = torch.softmax(SHARPNESS * images @ words.T, 1)
    terms = torch.addcmul(1 - weight + FLOOR, weight, p).log_()
    return torch.stack([terms[half::2].sum(0, dtype=torch.float64) for half in (0, 1)])


def beyond(e: torch.Tensor, total: torch.Tensor, squares: torch.Tensor, count: int) -> torch.Tensor:
    """(2, M) how far evidence (2, M) is above that of ``count`` directions, given by its sums and sums of squares, in standard deviations."""
    mean = total / count
    deviation = (squares / count - mean**2).clamp(min=0).sqrt()
    return (e - mean) / (deviation + deviation.mean(1, keepdim=True)).clamp(min=1e-9)


def name_by_words(
    images: Embeddings, number: np.ndarray, words: np.ndarray, randoms: int, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Choose and score a word for each of J directions, the last ``randoms`` of which are random.

    Parameters
    ----------
    images : embeddings of U parts of images. number : (n, J) which of them are of a direction, strongest first. words : (M, D).

    Returns
    -------
    dict
        ``word`` (J − randoms, k) the best of the first half, ``score`` (J − randoms,) and ``cosine`` of the first of them on the other half, ``p``.
        One direction is worked on at a time.
    """
    listed = torch.from_numpy(words).to(device)
    own = number.shape[1] - randoms

    def found(columns: range) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for j in columns:
            mine = torch.from_numpy(images[number[:, j]]).to(device)
            yield j, mine, evidence(mine, listed)

    total, squares = (torch.zeros(2, len(words), dtype=torch.float64, device=device) for _ in range(2))
    for _, _, e in found(range(own, own + randoms)):
        total += e
        squares += e**2
    best, score, cosine = (
        np.zeros((own + randoms, *more), kind)
        for more, kind in (((min(3, len(words)),), np.int64), ((), float), ((), float))
    )
    for j, mine, e in found(range(own + randoms)):
        scores = beyond(e, total, squares, randoms)
        if j >= own:  # a random direction is held against the others
            scores = beyond(e, total - e, squares - e**2, randoms - 1)
        best[j] = scores[0].topk(best.shape[1]).indices.cpu().numpy()
        score[j] = float(scores[1, best[j, 0]])
        cosine[j] = float((mine[1::2] @ listed[best[j, 0]]).mean())
    reached = randoms - np.searchsorted(np.sort(score[own:]), score[:own], side="left")
    return {"word": best[:own], "score": score[:own], "cosine": cosine[:own], "p": (reached + 1) / (randoms + 1)}


def study_words(
    examples: Examples,
    words: Sequence[str],
    *,
    file: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> WordStudy:
    """Name directions by words, from their examples. ``file`` : where embeddings of the words are stored."""
    listed = embed_words(examples.encoder, words, file, progress)
    if examples.embedded.width != listed.shape[1]:
        raise UsageError(
            f"The encoder {examples.encoder.name} gives {examples.embedded.width} numbers for an image and {listed.shape[1]} for a text: these are not one space."
        )
    found = name_by_words(examples.embedded, examples.number, listed, examples.randoms, device)
    labels = {}
    for name, part in examples.slices.items():
        q = bh_adjusted(found["p"][part])
        labels[name] = [
            WordLabel(tuple(words[k] for k in chosen), float(score), float(cosine), float(p), float(corrected))
            for chosen, score, cosine, p, corrected in zip(found["word"][part].tolist(), found["score"][part], found["cosine"][part], found["p"][part], q, strict=True)
        ]  # fmt: skip
    return WordStudy(labels, len(examples.number), len(words), examples.randoms)
