"""One study of influence: all directions of several files on all classes, at several steps, against their null directions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from evaluate.detector_bank import Bank, make_bank
from evaluate.influence.interventions import Effect, HeadEffect, PooledEffect
from evaluate.influence.permutation_nulls import NullTraining, null_directions
from evaluate.influence.sampling import balanced_samples
from evaluate.influence.significance import deviations, rounds, standardised
from evaluate.influence.steering import CONTROLS, SWEEP, random_units
from extract.network import open_network
from extract.stepped_head import stepped_head
from stores.directions import Directions
from stores.errors import UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

IMAGES, NULLS = 1000, 100  # behind pooling and an affine map
LONGEST = 1e6  # step: float32 heads overflow somewhere beyond
ROLES = ("signal", "filter")
FEW = 20  # null directions that are the least to trust
# images and null directions through a model's own head: the first that fit into LIMIT seconds
SIZES = (
    (100, 100),
    (100, 50),
    (64, 50),
    (64, 20),
    (32, 20),
    (16, 20),
    (8, 20),
    (100, 0),
    (64, 0),
    (32, 0),
    (16, 0),
    (8, 0),
)
LIMIT, LONG = 480, 600  # seconds: what is chosen to fit, and what is worth a warning
_BATCH = 16  # images a pass: what keeps a processor's caches busy
_BLOCK = 2**28  # bytes of activations at once on a GPU


@dataclass(frozen=True)
class InfluenceConfig:
    """How influence is measured.

    Parameters
    ----------
    alphas : tuple of float
        Lengths of the step along a unit vector, in the activations' own unit.
    alpha : float
        The one of ``alphas`` that the summary is about.
    images : int, optional
        How many images are moved, drawn by the seed; all if the store has fewer. By default 1000 behind pooling and an affine map, through
        any other head what takes about ten minutes, at most 100 (``effect_of``).
    nulls : int, optional
        Null directions a detector. By default 100, through any other head what takes about ten minutes, at most 100.
    null_positions, null_epochs, learning_rate : int, int and float
        How each null direction is trained.
    randoms : int
        Random directions, uniform on the sphere, that all are held against as well; as many as ``nulls``, or 20, at most where each takes
        passes through a head.
    level : float
        Of significance, after correction for the number of tests.
    seed : int
        Of the images, permutations and directions drawn.
    """

    alphas: tuple[float, ...] = (0.5, 2.0, 5.0)
    alpha: float = 2.0
    images: int | None = None
    nulls: int | None = None
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
        return NullTraining(
            NULLS if self.nulls is None else self.nulls, self.null_epochs, self.learning_rate, self.seed
        )


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
    """What moves ``images`` images of a store, and through which kind of ``head``, in words; ``config`` with sizes that are decided, the
    steps that curves of steering have, ``sweep``, and how long all will take, ``forecast``."""

    effect: Effect
    images: int
    head: str
    config: InfluenceConfig
    sweep: tuple[float, ...] = SWEEP
    forecast: InfluenceForecast | None = None


@dataclass(frozen=True)
class InfluenceForecast:
    """``text``: sizes, why they were chosen, and how long it takes; ``seconds``."""

    text: str
    seconds: float


def effect_of(
    store: ActivationStore, layer: str, config: InfluenceConfig, directions: int, *, device: str = "cpu"
) -> Moving:
    """Draw images of a store by the seed, and get what moves them along so many directions ready.

    Through a model's own head a few passes are timed, and decide how many images and null directions there are where ``config`` does not.

    Raises UsageError where the head needs all positions and the store holds a sample of them.
    """
    reader = LayerReader(store, layer, prefix=True)
    rows = reader.image_indices
    if not len(rows):
        raise UsageError(f"The store '{store.path}' has no readable image.")

    def drawn(count: int) -> np.ndarray:
        random = np.random.default_rng([config.seed, 0x1A])
        return rows if len(rows) <= count else np.sort(random.choice(rows, count, replace=False))

    affine = store.affine_head(layer)
    if affine is not None:
        chosen = drawn(config.images or IMAGES)
        effect = PooledEffect(_logits(store, chosen).to(device), torch.from_numpy(affine[0]).to(device))
        decided = replace(config, images=len(chosen), nulls=config.training.count)
        return Moving(effect, len(chosen), "pooling and an affine map", decided)
    if reader.spec.sampled:
        raise UsageError(
            f"The store '{store.path}' holds a sample of each image's positions, and the head after '{layer}' needs all of them. "
            "Extract with --positions all to measure influence."
        )
    each = (
        _BATCH
        if torch.device(device).type == "cpu"
        else max(1, min(256, _BLOCK // (4 * reader.positions * reader.channels)))
    )

    def read(some: np.ndarray) -> Iterator[torch.Tensor]:
        for part in np.array_split(some, -(-len(some) // each)):
            yield torch.from_numpy(reader.images(part)).to(device)

    first = drawn(each)
    head = stepped_head(open_network(store, layer, device=device), next(read(first[:2])).float())
    seconds = _seconds_a_pass(HeadEffect(lambda: read(first), head), len(first), reader.channels, config.seed, device)
    decided, sweep, forecast = _decide(config, directions, len(rows), seconds)
    chosen = drawn(decided.images or 0)
    return Moving(HeadEffect(lambda: read(chosen), head), len(chosen), "the model's own head", decided, sweep, forecast)


def _seconds_a_pass(effect: HeadEffect, images: int, channels: int, seed: int, device: str) -> float:
    """What one image takes through the head, from passes as there will be."""
    count = 4 * torch.get_num_threads()
    units = random_units(channels, count, seed).to(device)
    effect(units[:, :1], 1.0)  # the first takes longer
    start = time.perf_counter()
    float(effect(units, 1.0).score.sum())  # a GPU is waited for
    return (time.perf_counter() - start) / (count * images)


def _passes(config: InfluenceConfig, directions: int, images: int, nulls: int, sweep: tuple[float, ...]) -> int:
    """How many passes of one image through the head there will be."""
    of_steps = len(config.alphas) * (len(ROLES) * directions * (1 + nulls) + min(config.randoms, max(nulls, FEW)))
    of_curves = sum(CONTROLS + len(ROLES) * directions * (a not in config.alphas) for a in sweep if a)
    return images * (of_steps + of_curves)


def _decide(
    config: InfluenceConfig, directions: int, available: int, seconds: float
) -> tuple[InfluenceConfig, tuple[float, ...], InfluenceForecast]:
    """Sizes that fit where none are given, the steps of curves, and how long it takes if a pass takes so many seconds."""
    sizes = [
        (
            min(images, available) if config.images is None else min(config.images, available),
            nulls if config.nulls is None else config.nulls,
        )
        for images, nulls in SIZES
    ]

    def steps(nulls: int) -> tuple[float, ...]:
        return SWEEP if nulls or config.nulls is not None else (0.0, *sorted(config.alphas))

    passes = [_passes(config, directions, images, nulls, steps(nulls)) for images, nulls in sizes]
    at = next((k for k, count in enumerate(passes) if count * seconds <= LIMIT), len(sizes) - 1)
    images, nulls = sizes[at]
    total = passes[at] * seconds
    text = (
        f"Through the model's own head ({1000 * seconds:.2g} ms a pass): {directions} directions, {images} images, {nulls} null directions each: "
        f"{passes[at]} passes, about {_minutes(total)}."
    )
    if sizes[at] != sizes[0]:
        text += f" Chosen for the time: {sizes[0][0]} images with {sizes[0][1]} null directions take {_minutes(passes[0] * seconds)}."
    if not nulls and config.nulls is None:
        text += " Directions are compared with random ones only, and curves of steering have few steps."
    if total > LONG:
        text += " Fewer directions, --influence-images or --null-directions, or a GPU, take less."
    return replace(config, images=images, nulls=nulls), steps(nulls), InfluenceForecast(text, total)


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


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
    count = sum(d.count for d in sets.values())
    moving = through or effect_of(store, layer, config or InfluenceConfig(), count, device=device)
    effect, config = moving.effect, moving.config
    reader = LayerReader(store, layer)
    bank = make_bank(sets, reader, device=device, progress=progress)
    signals = torch.cat([torch.from_numpy(d.signals) for d in sets.values()], 1).to(device)
    vectors = (unit_columns(signals), unit_columns(bank.filters))
    shape = (len(config.alphas), len(ROLES), bank.count, len(effect.base))
    score, probability, logit = (np.zeros(shape) for _ in range(3))
    for a, alpha in enumerate(config.alphas):
        for r, directions in enumerate(vectors):
            moved = effect(directions, alpha)
            score[a, r], probability[a, r], logit[a, r] = (
                part.cpu().numpy() for part in (moved.influence, moved.probability, moved.logit)
            )
            progress("influence", a * len(ROLES) + r + 1, len(config.alphas) * len(ROLES))
    t_random, randoms = _against_random(effect, config, logit, reader.channels, device)
    reached, t, extremes, nulls = _against_nulls(reader, bank, effect, config, score, logit, device, progress)
    return Influence(
        config, dict(bank.slices), score, probability, logit, reached, t, t_random, randoms, extremes, nulls,
        effect.base.cpu().numpy(), moving.images, moving.head,
    )  # fmt: skip


def _centred(logit: np.ndarray) -> np.ndarray:
    return logit - logit.mean(-1, keepdims=True)


def _against_random(
    effect: Effect, config: InfluenceConfig, logit: np.ndarray, channels: int, device: str
) -> tuple[np.ndarray, int]:
    """``t_random`` of an ``Influence``, and how many random directions it was."""
    pooled = isinstance(effect, PooledEffect)
    count = config.randoms if pooled else min(config.randoms, max(config.training.count, FEW))
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
    count = config.training.count
    extremes = np.zeros((*score.shape[:2], len(bank.slices), count))
    valid = np.zeros(bank.count, np.int64)
    if not count:
        return reached, t, extremes, valid
    samples = balanced_samples(reader, bank, positions=config.null_positions, seed=config.seed, progress=progress)
    done = 0
    for file, part in enumerate(bank.slices.values()):  # apart, so that a file's numbers do not depend on the others
        for nulls in null_directions(reader, samples[part], config.training, device=device):
            counted = nulls.valid.cpu().numpy()
            valid[part][nulls.detectors] = counted.sum(1)
            for k, d in enumerate((part.start + nulls.detectors).tolist()):
                for r, vectors in enumerate((nulls.signals, nulls.filters)):
                    for a, alpha in enumerate(config.alphas):
                        moved = effect(vectors[k][:, nulls.valid[k]], alpha)
                        strength = moved.influence.abs().cpu().numpy()
                        reached[a, r, d] = (strength >= np.abs(score[a, r, d])).sum(0)
                        changes = _centred(moved.logit.cpu().numpy())
                        t[a, r, d], each = standardised(_centred(logit[a, r, d]), changes)
                        extreme = rounds(np.abs(each).max(1), count)
                        extremes[a, r, file] = np.maximum(extremes[a, r, file], extreme)
                done += 1
                progress("null directions", done, bank.count)
    return reached, t, extremes, valid
