"""What the pages show, as plain data: everything is computed before the first line of HTML is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evaluate.compare import Comparison
from evaluate.direction_names import DirectionName
from evaluate.report.logit_histograms import Histogram

Row = dict[str, Any]  # of a table of the evaluation
MOVED = 0.001  # change of a class's probability that makes a page of it


@dataclass(frozen=True)
class Mark:
    """Something that the diagnosis says of a direction, and the direction that it names (−1: none)."""

    text: str
    other: int = -1


@dataclass(frozen=True)
class Tile:
    """An image: its picture's file (relative to the site; empty where the image is missing), its name, the largest logit at any
    position (or the probability of its class, among a class's examples), and the class that it is predicted as (−1: unknown).
    ``frames``: of a clip, the file that shows a frame for each step of the layer."""

    file: str
    name: str
    value: float
    prediction: int = -1
    frames: str = ""


@dataclass(frozen=True)
class Push:
    """What a step along a direction does to a class: mean change of probability. ``other`` is the class on a direction's page,
    the direction on a class's."""

    other: int
    change: float
    significant: bool


@dataclass(frozen=True)
class Steer:
    """Probability of a class gained over lengths of the step: ``curves`` by role, ``monotone`` the length up to which it never falls."""

    target: int
    alphas: list[float]
    curves: dict[str, list[float]]
    monotone: dict[str, float]


@dataclass(frozen=True)
class Features:
    """The two pictures of a direction pair, and what the pair's own detector makes of them (see ``evaluate.visualize.check``).

    ``signal``, ``filter``: file names of the JPEGs in ``v/``. ``response_signal``, ``response_filter``: mean logit z of the detector over
    the layer's positions in each picture; ``response_random``: the median of the same over pictures synthesised along random
    directions. ``fires_*``: share of positions where z > 0 (random: the median). ``beyond_random``: share of the random directions'
    pictures to which the detector responds less than to the signal vector's.
    """

    signal: str
    filter: str
    response_signal: float
    response_filter: float
    response_random: float
    fires_signal: float
    fires_filter: float
    fires_random: float
    beyond_random: float


@dataclass(frozen=True)
class Direction:
    """One direction pair. ``tiles``: its strongest images; ``middle``, ``weakest``: of those where it fires. ``strip``: the file of its first
    images side by side, as many of them as ``STRIP`` says and are there.
    ``category``: of a label that fits. ``problem``: what stands against the label, in words. ``images``, ``positions``: of val, that show the label. ``as_good``: candidates whose
    IoU reaches the label's interval.
    ``measures``: precision, recall, F1, average precision, by name; NaN and absent ones are not shown.

    ``found_again``: share of refits that contain it. ``pushes``: by role, classes raised and then classes lowered; ``up`` and ``down``: all classes that the signal vector moves
    significantly; ``strongest``: those of them that it moves most. ``classes``, ``words``, ``meaning``: its rows of the tables ``class_labels``, ``vocabulary_labels`` and ``meaning``. ``near``: by ``signal`` and ``filter``.
    """

    index: int
    name: DirectionName
    label: str
    category: str
    interpretable: bool
    problem: str
    iou: float
    iou_low: float
    iou_high: float
    share: float
    agreement: float
    histogram: Histogram
    tiles: list[Tile]
    middle: list[Tile] = field(default_factory=list)
    weakest: list[Tile] = field(default_factory=list)
    strip: str = ""
    images: int = 0
    positions: int = 0
    as_good: list[Row] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    candidates: list[Row] = field(default_factory=list)
    pushes: dict[str, list[Push]] = field(default_factory=dict)
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    strongest: list[Push] = field(default_factory=list)
    classes: Row | None = None
    words: Row | None = None
    meaning: Row | None = None
    steer: Steer | None = None
    near: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    features: Features | None = None
    found_again: float = float("nan")

    @property
    def influence(self) -> float:
        """The largest change of probability that is significant, without sign; 0 for none."""
        return max((abs(push.change) for push in self.strongest), default=0.0)

    @property
    def heading(self) -> str:
        """What pages call it, next to its number: its name, else why it has none."""
        return self.name.full if self.name.full != f"direction {self.index}" else self.problem or "direction"


@dataclass(frozen=True)
class ClassPage:
    """One class of the network: images predicted as it; of those that carry its label how many there are and how many are predicted
    for it (−1: no labels that are classes); a few images predicted as it, surest first; its concept influence diagram; what raises and what
    lowers it most of what does so significantly."""

    number: int
    name: str
    predicted: int
    labelled: int = -1
    right: int = -1
    tiles: list[Tile] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    raised: Push | None = None
    lowered: Push | None = None

    @property
    def influence(self) -> float:
        """The largest change of its probability that is significant, without sign; 0 for none."""
        return max((abs(push.change) for push in (self.raised, self.lowered) if push), default=0.0)

    @property
    def shown(self) -> bool:
        """Whether it has a page: it has images, or a direction moves it by ``MOVED``."""
        return max(self.predicted, self.labelled) > 0 or any(abs(push.change) >= MOVED for push in self.pushes)


@dataclass(frozen=True)
class Site:
    """A report on one set of directions, named ``name``.

    Parameters
    ----------
    facts : what was fitted; settings : how; both shown as they are.
    notes : sentences on what is missing and why.
    comparison : all sets of the evaluation; per_category : (category, distinct concepts, directions) of this one.
    places : (I, 2) of the map. meaning : the summary's entry on examples. suspects : rows of the table; no_suspects : what was looked for, where it was in vain. random : steering of random directions; steering : the median of the
        directions, each on its own class.
    truth : true concepts, where they are known. diagnosis : numbers and lists of the fit's diagnosis. log : term -> points (step, value).
    rows : what the pictures are of: images, clips or frames. steps : in time, of the layer.
    definitions : term -> text. refits : of how many ``found_again`` is a share, 0 where that is unknown.
    key : of the browser's notes on this set, from the digest of the directions file.
    selection : the number of directions that was taken, ``why``, and ``rows`` of those tried; empty for a number that was given.
    stability : rows of the table about this set. verdict : on the fit, a line each; problems : what is wrong with it. start : the page about all sets, from this one's folder; empty for none.
    """

    title: str
    name: str
    method: str
    facts: dict[str, str]
    settings: dict[str, str]
    notes: list[str]
    comparison: Comparison
    per_category: list[tuple[str, int, int]]
    directions: list[Direction]
    classes: list[ClassPage]
    places: list[tuple[float, float]]
    definitions: dict[str, str]
    influence: Row | None = None
    meaning: Row | None = None
    random: Steer | None = None
    steering: Steer | None = None
    suspects: list[Row] = field(default_factory=list)
    no_suspects: str = ""
    truth: list[Row] = field(default_factory=list)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    log: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    refits: int = 0
    selection: dict[str, Any] = field(default_factory=dict)
    stability: list[Row] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    start: str = ""
    key: str = ""
    rows: str = "images"
    steps: int = 1

    @property
    def refitted(self) -> bool:
        """Whether the directions say how often they are found again."""
        return any(d.found_again == d.found_again for d in self.directions)

    @property
    def labelled(self) -> bool:
        """Whether any direction has a label."""
        return any(direction.label for direction in self.directions)
