"""The commands as Python functions: the same results on disk, and what they return is shown by notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.correct import CorrectConfig, Correction
from evaluate.dissect import Resolution
from evaluate.explain.values import Values
from evaluate.influence.influence_study import InfluenceConfig
from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.stream import extract as run_extraction
from pipeline.environment import code_version
from pipeline.evaluation import EvaluationConfig, evaluate_directions, load_sets
from pipeline.evaluation_result import EvaluationResult
from pipeline.explain_inputs import open_inputs
from pipeline.explanation import ExplainConfig, explain_images
from pipeline.model_correction import choose_detector, correct_model
from pipeline.run import pick_device
from stores.errors import UsageError
from stores.notebook import html_table, picture
from stores.paths import as_path
from stores.progress import Progress, silent
from stores.store import ActivationStore

MOST_PICTURES = 5  # of an explanation in a notebook


def extract(
    model: str,
    layers: str | Sequence[str],
    data: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> ActivationStore:
    """Store the activations of one or more layers of a network, as the command ``extract`` does.

    Parameters
    ----------
    model : str
        A torchvision name, ``timm:NAME``, or ``module:callable`` for your own.
    layers : str or sequence of str
        Dotted module names.
    data : str or Path
        The images or videos, as for ``--data``.
    out : str or Path
        The store to write. An unfinished store of the same call is resumed; of a complete one nothing is computed again.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    overwrite : bool
        Replace another store at ``out``.
    progress : callable
        Called with ``(stage, done, total, note)``.
    **settings
        Fields of ``extract.config.ExtractConfig``, such as ``weights``, ``limit``, ``dtype``, ``batch_size``.

    Returns
    -------
    ActivationStore
        The store, open.

    Raises
    ------
    stores.errors.EDDPError
        One of its classes, with what to do: wrong use, damaged images, values that are not finite, a full disk.

    Examples
    --------
    >>> store = extract("resnet18", "layer4", "imagenet/val", "acts.zarr", limit=1000)  # doctest: +SKIP
    """
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    config = ExtractConfig(model=model, layers=names, device=pick_device(device), **settings)
    run_extraction(
        open_source(str(data)), out, config, overwrite=overwrite, code_version=code_version(), progress=progress
    )
    return ActivationStore.open(out, model=model)


def evaluate(
    store: ActivationStore | str | Path,
    directions: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    broden: str | Path | None = None,
    influence: bool | InfluenceConfig = False,
    classes: bool = False,
    vocabulary: str | None = None,
    encoder: str | None = None,
    monosemanticity: str | Path | None = None,
    pairs: str | Path | None = None,
    ground_truth: bool = False,
    untrained: bool = False,
    resolution: Resolution = "mask",
    seed: int = 0,
    model: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> EvaluationResult:
    """Score files of directions and write tables and pages to a folder, as the command ``evaluate`` does.

    Parameters
    ----------
    store : ActivationStore, str or Path
        The store that the directions were fitted on.
    directions : path or sequence of paths
        Files that ``fit`` or ``save`` wrote.
    out : str or Path
        Folder to write to; an evaluation there is replaced.
    broden : str or Path, optional
        A concept dataset with label maps.
    influence : bool or InfluenceConfig
        Measure what each direction does to each class; a configuration sets steps, images and null directions.
    classes : bool
        Label by the images' classes, without masks.
    encoder : str, optional
        An image encoder, to measure whether what each direction fires on is one thing.
    vocabulary : str, optional
        A word list (``default`` or a file), to name directions by words; ``encoder`` must take texts, too.
    monosemanticity : str or Path, optional
        ``own``, or a store of the same images made with another model.
    pairs : str or Path, optional
        Folder of pairs of images that differ in one thing.
    ground_truth : bool
        Compare with the truth of a synthetic store.
    untrained : bool
        With ``broden``: also evaluate an untrained network of the same architecture.
    resolution : {"mask", "feature"}
        At which resolution detectors and label maps are compared.
    seed : int
        Of what is drawn, except for ``influence`` with a configuration of its own.
    model : str, optional
        The store's model, where it is code of your own and ``store`` is a path. The result remembers it.
    device, progress
        As for ``extract``.

    Returns
    -------
    EvaluationResult
        The folder, read back.

    Raises
    ------
    stores.errors.EDDPError
        One of its classes, with what to do.

    Examples
    --------
    >>> result = evaluate(store, "eddp.safetensors", "evaluation", influence=True)  # doctest: +SKIP
    """
    if vocabulary is not None and encoder is None:
        raise UsageError("vocabulary needs encoder, which compares words with images: give an image-text encoder.")
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store, model=model)
    files = [directions] if isinstance(directions, str | Path) else list(directions)
    if isinstance(influence, bool):
        influence_config = InfluenceConfig(seed=seed) if influence else None
    else:
        influence_config = influence
    config = EvaluationConfig(
        broden=None if broden is None else Path(broden),
        resolution=resolution,
        influence=influence_config,
        classes=classes,
        monosemanticity=None if monosemanticity is None else as_path(monosemanticity),
        ground_truth=ground_truth,
        encoder=encoder,
        vocabulary=vocabulary,
        pairs=None if pairs is None else Path(pairs),
        untrained=untrained,
        seed=seed,
        device=pick_device(device),
    )
    evaluate_directions(opened, load_sets([Path(file) for file in files]), Path(out), config, progress=progress)
    return EvaluationResult(out, model=opened.trusted_model)


@dataclass(frozen=True)
class Explanation:
    """Explanations of predictions.

    Attributes
    ----------
    folder : Path
        Where ``index.html``, a picture and a JSON document for each image are.
    images : list of dict
        For each image its name, the predicted class, and the explanation in words (``sentence``).
    """

    folder: Path
    images: list[dict[str, Any]]

    def _repr_html_(self) -> str:
        parts = [
            html_table([[one["image"], one["sentence"]], ["", picture(self.folder / one["files"]["sheet"], 260)]])
            for one in self.images[:MOST_PICTURES]
        ]
        return "".join(parts) + html_table([["all images", str(self.folder / "index.html")]])


def explain(
    evaluation: EvaluationResult | str | Path,
    images: str | Path | Sequence[str | Path] = (),
    out: str | Path = "explanation",
    *,
    rows: Sequence[int] = (),
    directions: str | None = None,
    explained: str | None = None,
    to: str | None = None,
    top: int = 5,
    concepts_shown: int = 8,
    values: Values = "joint",
    model: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Explanation:
    """Explain predictions by their concepts, as the command ``eddp explain`` does.

    Parameters
    ----------
    evaluation : EvaluationResult, str or Path
        The evaluation that names the concepts; it knows store and directions.
    images : path or sequence of paths
        Image or video files, or folders of them.
    out : str or Path
        Folder to write to; an explanation there is replaced.
    rows : sequence of int
        Images of the store, by number.
    directions : str, optional
        Which of the evaluation's sets, by name; the first without it.
    explained, to : str, optional
        Explain this class, not the predicted one; the class of the counterfactual.
    top, concepts_shown : int
        Classes that are listed; concepts that are shown one by one.
    values : {"joint", "paper"}
        How signal values are read: by all filters jointly, or by each, as published.
    model : str, optional
        The store's model, where it is code of your own and ``evaluation`` does not remember it.
    device, progress
        As for ``extract``.

    Returns
    -------
    Explanation

    Raises
    ------
    stores.errors.EDDPError
        One of its classes, with what to do.
    """
    found = evaluation if isinstance(evaluation, EvaluationResult) else EvaluationResult(evaluation)
    name = None if directions is None else found.directions_path(directions)
    inputs = open_inputs(None, name, found.folder, None, model=model or found.model)
    config = ExplainConfig(explained, to, top, concepts_shown, values)
    files = [images] if isinstance(images, str | Path) else images
    result = explain_images(
        inputs, [Path(file) for file in files], rows, Path(out), config, device=pick_device(device), progress=progress
    )
    return Explanation(Path(out), result["images"])


def correct(
    evaluation: EvaluationResult | str | Path,
    clean: str | Path,
    out: str | Path = "correction",
    *,
    poisoned: str | Path | None = None,
    direction: int | Sequence[int] = (),
    label: str | None = None,
    directions: str | None = None,
    held_out: float = 0.5,
    tolerance: float = 0.01,
    strength: float | None = None,
    seed: int = 0,
    model: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Correction:
    """Suppress a concept that the model should not use, as the command ``eddp correct`` does.

    Parameters
    ----------
    evaluation : EvaluationResult, str or Path
        The evaluation that names the directions.
    clean, poisoned : str or Path
        Images without and with the concept, in class folders.
    out : str or Path
        Folder to write to; a correction there is replaced.
    direction : int or sequence of int
        Directions to suppress; without it and ``label`` the first of the evaluation's suspects.
    label : str, optional
        Suppress all directions that carry this label.
    directions : str, optional
        Which of the evaluation's sets, by name; the first without it.
    held_out : float
        Share of the images that the strength is chosen on; figures are of the others.
    tolerance : float
        Accuracy on clean images that may be lost, a share.
    strength : float, optional
        In the activations' unit; without it chosen.
    seed : int
        Of the halves and the random directions.
    model : str, optional
        The store's model, where it is code of your own and ``evaluation`` does not remember it.
    device, progress
        As for ``extract``.

    Returns
    -------
    Correction
        ``apply`` gives the corrected model; ``info`` holds the accuracies before and after.

    Raises
    ------
    stores.errors.EDDPError
        One of its classes, with what to do.
    """
    found = evaluation if isinstance(evaluation, EvaluationResult) else EvaluationResult(evaluation)
    name = found.one(directions)
    numbers = [direction] if isinstance(direction, int) else list(direction)
    suspect = choose_detector(found.labels(name), found.direction_names(name), found.suspects(name), numbers, label)
    correct_model(
        found, name, suspect, Path(out), clean=clean, poisoned=poisoned, held=held_out,
        config=CorrectConfig(tolerance, strength=strength, seed=seed), store=found.store(model=model or found.model),
        device=pick_device(device), progress=progress,
    )  # fmt: skip
    return Correction.load(Path(out) / "correction.safetensors")
