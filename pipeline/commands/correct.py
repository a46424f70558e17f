"""``eddp correct``: suppress a concept that the model should not use."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.logging import echo
from pipeline.options import class_names_option, common, given, model_option, names_in
from pipeline.progress_display import format_seconds, showing
from pipeline.records import within
from pipeline.result_paths import LOCAL, STORE
from pipeline.run import Run, pick_device


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("evaluation", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    help="Images without the concept: the model should stay as it is on them. In class folders, or in one folder: then changes of "
    "probabilities are reported instead of accuracies, and without --poisoned the detector decides which of the images show the concept.",
)
@click.option("--poisoned", default=None, help="Images with the concept, in class folders: the model should become right on them. "
              "Without these the strength is the largest that keeps to --tolerance, up to the concept's typical signal value.")  # fmt: skip
@click.option("--classes", "given_classes", type=LOCAL, default=None, metavar="FILE",
              help="Which class of the model a folder of images is, where their names differ: CSV with a line 'folder,class' each, or JSON.")  # fmt: skip
@click.option("--directions", "name", default=None, metavar="NAME", help="Which of the evaluation's directions files, by its name without ending.  [default: the first]")  # fmt: skip
@click.option("--direction", "numbers", type=int, multiple=True, metavar="N", help="Suppress this direction; may be given several times, for all of them together.")  # fmt: skip
@click.option("--label", default=None, help="Suppress all directions that carry this label.  [default: the first of the evaluation's suspects]")  # fmt: skip
@click.option("--strength", type=float, default=None, help="How strongly, in the activations' unit.  [default: chosen on held-out images]")  # fmt: skip
@click.option("--shift", type=float, default=None, help="Raise the detector's threshold, in logits.  [default: chosen with the strength]")  # fmt: skip
@click.option("--held-out", "held", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.5, show_default=True,
              help="Share of the images to choose on; figures are of the others.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0, 100), default=1.0, show_default=True, metavar="POINTS",
              help="Accuracy on clean images that may be lost; without classes, share of their predictions that may change. With --poisoned, a loss on held-out ones counts as more only where it is so significantly.")  # fmt: skip
@click.option(
    "--random",
    "randoms",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Random directions to compare with.",
)
@click.option("--store", type=STORE, default=None, help="The activation store, if it was moved.")
@click.option("--out", type=LOCAL, default=None, help="Folder to write to.  [default: correction/ next to the evaluation]")  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the held-out images and the random directions.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@model_option
@class_names_option
@common
def correct(
    evaluation: Path,
    data: str,
    poisoned: str | None,
    given_classes: Path | None,
    name: str | None,
    numbers: tuple[int, ...],
    label: str | None,
    strength: float | None,
    shift: float | None,
    held: float,
    tolerance: float,
    randoms: int,
    store: Path | None,
    out: Path | None,
    seed: int,
    device: str,
    model: str | None,
    class_names: Path | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Take a concept out of the model, as strongly as helps, and show what comes of it.

    EVALUATION is the folder that evaluate wrote, with --broden and --influence unless a direction is named: without one the first of its
    suspects is taken, with all its directions. Writes correction.safetensors (applied by evaluate.correct.Correction), tables and index.html.

    \b
    Example:
      eddp correct evaluation --data clean --poisoned poisoned
    """
    from evaluate.correct.correction_study import CorrectConfig
    from pipeline.evaluation_result import EvaluationResult
    from pipeline.model_correction import choose_detector, correct_model, correction_lines

    run = Run("correct", given())
    names = names_in(class_names)
    config = CorrectConfig(tolerance / 100, randoms, strength=strength, shift=shift, seed=seed)
    chosen = pick_device(device)
    evaluated = EvaluationResult(evaluation)
    which = evaluated.one(name)
    suspect = choose_detector(
        evaluated.labels(which), evaluated.direction_names(which), evaluated.suspects(which), numbers, label
    )
    target = out or evaluation.resolve().parent / "correction"
    with showing(quiet) as shown, run.watching(shown, within(target, "summary.json"), device=chosen) as progress:
        summary = correct_model(
            evaluated, which, suspect, target, clean=data, poisoned=poisoned, given_classes=given_classes, held=held, config=config,
            store=evaluated.store(store, model=model, class_names=names), device=chosen, progress=progress,
        )  # fmt: skip
    record = run.write()
    if as_json:
        echo(json.dumps({**summary, "out": str(target)}))
        return
    for line in correction_lines(summary):
        echo(line)
    echo(f"{format_seconds(run.seconds)}, peak memory {record['peak_memory_mib']} MiB")
    echo(str(target / "index.html"))
