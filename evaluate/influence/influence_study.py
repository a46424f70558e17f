"""One study of influence: all directions of several files on all classes, at several steps, against their null directions."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.detector_bank import Bank, make_bank
from evaluate.influence.interventions import Effect, HeadEffect, PooledEffect
from evaluate.influence.permutation_nulls import NullTraining, null_directions
from evaluate.influence.sampling import balanced_samples
from evaluate.influence.significance import deviations, rounds, standardised
from evaluate.influence.steering import random_units
from extract.forward import computing_in
from extract.network import open_head
from stores.directions import Directions
from stores.errors import UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

log = logging.getLogger(__name__)

IMAGES, IMAGES_THROUGH = 1000, 100
LONGEST = 1e6  # step: float32 heads overflow somewhere beyond
LONG = 600  # seconds ahead that are worth a word
ROLES = ("signal", "filter")
_BLOCK = 2**28  # bytes of activations at once


@dataclass(frozen=True)
class InfluenceConfig:
    """How influence is measured.

    Parameters
    ----------
    alphas : lengths of the step along a unit vector, in the activations' own unit.
    alpha : the one of ``alphas`` that the summary is about.
    images : how many images are moved, drawn by the seed; all if the store has fewer. None: 1000 behind pooling and an affine map, where
        they cost next to nothing, and 100 through any other head.
    nulls, null_positions, null_epochs, learning_rate : null directions a detector, and how each is trained.
    randoms : random directions, uniform on the sphere, that all are held against as well; as many as ``nulls`` at most where each takes
        passes through a head.
    level : of significance, after correction for the number of tests.
    """

    alphas: tuple[float, ...] = (0.5, 2.0, 5.0)
    alpha: float = 2.0
    images: int | None = None
    nulls: int = 100
    null_positions: int = 5000
    null_epochs: int = 100
    learning_rate: float = 1e-2
    randoms: int = 1000
    level: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.alphas or not all(0 < a <= LONGEST for a in self.alphas):
            raise UsageError(
                f"The steps of --influence must be positive numbers up to {LONGEST:g}, got {', '.join(map(str, self.alphas))}."
            )
        if len({f"{a:g}" for a in self.alphas}) < len(self.alphas):
            raise UsageError(
                f"The steps of --influence must differ in six digits, got {', '.join(map(str, self.alphas))}."
            )
        if self.alpha not in self.alphas:
            raise UsageError(f"The step that the summary is about ({self.alpha:g}) must be one of {self.alphas}.")
        for name, least in (
            ("images", 1),
            ("nulls", 0),
            ("null_positions", 4),
            ("null_epochs", 1),
            ("randoms", 0),
            ("seed", 0),
        ):
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}.")

    @property
    def training(self) -> NullTraining:
        return NullTraining(self.nulls, self.null_epochs, self.learning_rate, self.seed)


@dataclass(frozen=True)
class Influence:
    """What was measured, A steps × 2 roles × J directions × K classes; role 0 is the signal vectors, 1 the filters.

    ``score`` (``Effects.influence``), ``probability``, ``logit``: see ``Effects``. ``reached``: null directions of the detector whose |score| is at least as large.
    ``t``, ``t_random``: the change of the logit against the mean of all classes' (what they share, softmax ignores), standardised by
    that of the detector's null directions, of ``randoms`` random ones; ``extremes`` (A, 2, files, B): the
    largest |t| of any null direction of a file on any class in each round of permutations. ``nulls`` (J,): how many each detector has. ``base`` (K,): mean
    probabilities of the images unmoved. ``through``: what kind of head, in words.
    """

    config: InfluenceConfig
    slices: dict[str, slice]
    score: np.ndarray
    probability: np.ndarray
    logit: np.ndarray
    reached: np.ndarray
    t: np.ndarray
    t_random: np.ndarray
    randoms: int
    extremes: np.ndarray
    nulls: np.ndarray
    base: np.ndarray
    images: int
    through: str


def unit_columns(directions: torch.Tensor) -> torch.Tensor:
    """Columns of unit norm; a zero column stays zero."""
    largest = directions.abs().amax(0, keepdim=True)
    scaled = directions / torch.where(largest > 0, largest, 1)  # so that squares neither vanish nor overflow
    norm = scaled.norm(dim=0, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)


@dataclass(frozen=True)
class Moving:
    """What moves ``images`` images of a store, and through which kind of ``head``, in words."""

    effect: Effect
    images: int
    head: str


def effect_of(store: ActivationStore, layer: str, *, images: int | None, seed: int, device: str = "cpu") -> Moving:
    """Draw ``images`` images of a store by the seed, and get what moves them ready.

    Raises UsageError where the head needs all positions and the store holds a sample of them.
    """
    reader = LayerReader(store, layer, prefix=True)
    rows = reader.image_indices
    if not len(rows):
        raise UsageError(f"The store '{store.path}' has no readable image.")
    head = open_head(store, layer, device=device)
    images = images or (IMAGES if head.affine is not None else IMAGES_THROUGH)
    if len(rows) > images:
        rows = np.sort(np.random.default_rng([seed, 0x1A]).choice(rows, images, replace=False))
    if head.affine is not None:
        return Moving(
            PooledEffect(_logits(store, rows).to(device), head.affine[0]), len(rows), "pooling and an affine map"
        )
    if reader.spec.sampled:
        raise UsageError(
            f"The store '{store.path}' holds a sample of each image's positions, and the head after '{layer}' needs all of them. "
            "Extract with --positions all to measure influence."
        )
    each = max(1, min(256, _BLOCK // (4 * reader.positions * reader.channels)))

    def blocks() -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), each):
            yield torch.from_numpy(reader.images(rows[start : start + each])).to(device)

    def exact(x: torch.Tensor) -> torch.Tensor:
        with computing_in("float32", x.device):  # a GPU's shortened products would decide what small steps do
            return head(x)

    return Moving(HeadEffect(blocks, exact), len(rows), "the model's own head")


def _logits(store: ActivationStore, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(store.rows("logits", rows).astype(np.float32))


def measure_influence(
    store: ActivationStore,
    layer: str,
    sets: Mapping[str, Directions],
    config: InfluenceConfig | None = None,
    *,
    through: Moving | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Influence:
    """Move the store's images along every signal vector and filter, and along every detector's null directions.

    ``through``: what moves them, if ``effect_of`` made it already.

    Raises MismatchError for directions of another layer, UsageError where the head cannot be run.
    """
    config = config or InfluenceConfig()
    moving = through or effect_of(store, layer, images=config.images, seed=config.seed, device=device)
    effect = moving.effect
    reader = LayerReader(store, layer)
    bank = make_bank(sets, reader, device=device, progress=progress)
    signals = torch.cat([torch.from_numpy(d.signals) for d in sets.values()], 1).to(device)
    vectors = (unit_columns(signals), unit_columns(bank.filters))
    shape = (len(config.alphas), len(ROLES), bank.count, len(effect.base))
    score, probability, logit = (np.zeros(shape) for _ in range(3))
    start = time.perf_counter()
    for a, alpha in enumerate(config.alphas):
        for r, directions in enumerate(vectors):
            moved = effect(directions, alpha)
            score[a, r], probability[a, r], logit[a, r] = (
                part.cpu().numpy() for part in (moved.influence, moved.probability, moved.logit)
            )
            progress("influence", a * len(ROLES) + r + 1, len(config.alphas) * len(ROLES))
    if isinstance(effect, HeadEffect):
        _tell_what_lies_ahead(config, (time.perf_counter() - start) * config.nulls)
    t_random, randoms = _against_random(effect, config, logit, reader.channels, device)
    reached, t, extremes, nulls = _against_nulls(reader, bank, effect, config, score, logit, device, progress)
    return Influence(
        config, dict(bank.slices), score, probability, logit, reached, t, t_random, randoms, extremes, nulls,
        effect.base.cpu().numpy(), moving.images, moving.head,
    )  # fmt: skip


def _tell_what_lies_ahead(config: InfluenceConfig, seconds: float) -> None:
    if seconds > LONG:
        log.warning(
            "Each null direction is a pass of all images through the model's own head: that will take about %.1f hours. Fewer "
            "--influence-images or --null-directions (now %d), or a GPU, take less.",
            seconds / 3600,
            config.nulls,
        )


def _centred(logit: np.ndarray) -> np.ndarray:
    return logit - logit.mean(-1, keepdims=True)


def _against_random(
    effect: Effect, config: InfluenceConfig, logit: np.ndarray, channels: int, device: str
) -> tuple[np.ndarray, int]:
    """``t_random`` of an ``Influence``, and how many random directions it was."""
    count = config.randoms if isinstance(effect, PooledEffect) else min(config.randoms, config.nulls)
    t = np.zeros(logit.shape)
    if count < 3:
        return t, 0
    directions = random_units(channels, count, config.seed).to(device)
    for a, alpha in enumerate(config.alphas):
        changes = _centred(effect(directions, alpha).logit.cpu().numpy())
        for r in range(len(ROLES)):
            t[a, r] = deviations(_centred(logit[a, r]), changes)
    return t, count


def _against_nulls(
    reader: LayerReader,
    bank: Bank,
    effect: Effect,
    config: InfluenceConfig,
    score: np.ndarray,
    logit: np.ndarray,
    device: str,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``reached``, ``t``, ``extremes`` and ``nulls`` of an ``Influence``."""
    reached, t = np.zeros(score.shape, np.int32), np.zeros(score.shape)
    extremes = np.zeros((*score.shape[:2], len(bank.slices), config.nulls))
    valid = np.zeros(bank.count, np.int64)
    if not config.nulls:
        return reached, t, extremes, valid
    samples = balanced_samples(reader, bank, positions=config.null_positions, seed=config.seed, progress=progress)
    done = 0
    for file, part in enumerate(bank.slices.values()):  # apart, so that a file's numbers do not depend on the others
        for nulls in null_directions(reader, samples[part], config.training, device=device):
            counted = nulls.valid.cpu().numpy()
            valid[part][nulls.detectors] = counted.sum(1)
            for r, vectors in enumerate((nulls.signals, nulls.filters)):
                for a, alpha in enumerate(config.alphas):
                    for k, d in enumerate((part.start + nulls.detectors).tolist()):
                        moved = effect(vectors[k][:, nulls.valid[k]], alpha)
                        strength = moved.influence.abs().cpu().numpy()
                        reached[a, r, d] = (strength >= np.abs(score[a, r, d])).sum(0)
                        changes = _centred(moved.logit.cpu().numpy())
                        t[a, r, d], each = standardised(_centred(logit[a, r, d]), changes)
                        extreme = rounds(np.abs(each).max(1), config.nulls)
                        extremes[a, r, file] = np.maximum(extremes[a, r, file], extreme)
            done += len(nulls.detectors)
            progress("null directions", done, bank.count)
    return reached, t, extremes, valid
