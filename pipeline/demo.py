"""The complete job on a world drawn on the spot: scenes → network → activations → directions → report, explanations, correction.

Each step calls just what the commands call, and is shown as the command that would do it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluate.correct.correction_study import CorrectConfig
from evaluate.influence.influence_study import InfluenceConfig
from pipeline.evaluation import EvaluationConfig, evaluate_directions, load_sets
from pipeline.records import Place, beside, within
from pipeline.run import Run, code_version
from pipeline.scene_net import train_scene_net
from pipeline.world import SCENES, World, build_world
from pipeline.world.pairs import write_pairs
from stores.errors import StoreExistsError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

MODEL = "pipeline.scene_net:scene_net"
LAYER = "features.14"
METHODS = ("eddp", "kmeans", "pca")
# a third of the world's positions: what it costs in time is seen at once, what it costs in scores is not
SETTINGS = {"eddp": {"max_rows": "120000"}}
# null directions trained on fewer positions than a study would take: they are most of what influence costs
INFLUENCE = InfluenceConfig(null_positions=500)
PAIRS = 12  # of pictures with and without each thing
VISUALIZED = 8  # directions: each takes seconds

TITLE = "A small network's view of a small world"
EXPLAINED = ("forest", "street", "farm")  # scenes of which a picture with the mark is explained

Say = Callable[[str], None]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    images: int = 2400,
    directions: int = 48,
    epochs: int = 12,
    methods: Sequence[str] = METHODS,
    pages: bool = True,
    correct: CorrectConfig | None = None,
    say: Say = lambda text: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run everything into a folder; returns the evaluation's summary and the network's accuracies.

    Finished steps of an earlier run with the same numbers are reused: the world, the network and the activations.

    Parameters
    ----------
    methods : the first one's directions are corrected.
    pages : whether the report and the explanations are made.
    correct : how the correction is chosen; None as ``eddp correct`` does.
    """
    from extract.segmentation.broden import BrodenSource
    from extract.stream import ExtractConfig, extract
    from fit import make_fitter
    from pipeline.fitting import fit_to_file

    out.mkdir(parents=True, exist_ok=True)
    # relative to the folder where the commands are shown to be run, as a user would type them
    world_folder, store_path = out / "world", out / "acts.zarr"
    say(f"1/8  {images} pictures of a small world, with dense labels, in Broden's format → {world_folder}")
    world = build_world(world_folder, images=images, seed=seed, progress=progress)
    say(f"2/8  a small network learns to tell its {len(SCENES)} scenes apart → {out / 'scene_net.safetensors'}")
    trained = _train(world.folders, out, seed, epochs, progress)
    say(f"     accuracy {100 * trained['accuracy']:.1f} % on new pictures; {_about_the_mark(trained)}")
    weights = out / "scene_net.safetensors"
    say(f"3/8  extract --model {MODEL} --weights {weights} --layer {LAYER} --data {world_folder} --out {store_path}")
    config = ExtractConfig(model=MODEL, weights=str(weights), layers=(LAYER,))
    source = BrodenSource(world_folder)
    about: dict[str, Any] = {"code_version": code_version(), "progress": progress}
    run = Run("extract", asdict(config), work="extraction", in_place=True)
    with run.watching(progress, beside(store_path)) as about["progress"]:
        try:
            found = extract(source, store_path, config, **about)
        except StoreExistsError:  # of an earlier demo with another network or another version: it is the demo's own
            found = extract(source, store_path, config, overwrite=True, **about)
    run.write(result={"images": found.images, "bytes": found.bytes, "done_now": found.done_now})
    store = ActivationStore.open(store_path)
    reader = LayerReader(store, LAYER)
    files = []
    for method in methods:
        path = out / f"{method}.safetensors"
        settings = SETTINGS.get(method, {})
        extra = "".join(f" --set {name}={value}" for name, value in settings.items())
        say(f"4/8  fit --store {store_path} --directions {directions} --method {method} --out {path}{extra}")
        fitter = make_fitter(method, n_directions=directions, seed=seed, settings=settings)
        options = {"store": store_path, "directions": directions, "method": method, "seed": seed, "set": settings}
        run = Run("fit", options)
        with run.watching(progress, Place(path.with_suffix(".run.json"))) as watched:
            fit_to_file(fitter, reader, path, run, progress=watched)
        files.append(path)
    evaluation, pairs = out / "evaluation", out / "pairs"
    write_pairs(pairs, pairs=PAIRS, seed=seed)
    say(
        f"5/8  evaluate --store {store_path} "
        + " ".join(f"--directions {path}" for path in files)
        + f" --broden {world_folder} --pairs {pairs} --influence --null-positions {INFLUENCE.null_positions}"
    )
    run = Run("evaluate", {"broden": world_folder, "pairs": pairs, "influence": asdict(INFLUENCE)})
    with run.watching(progress, within(evaluation, "summary.json")) as watched:
        summary = evaluate_directions(
            store, load_sets(files), evaluation,
            EvaluationConfig(broden=world_folder, pairs=pairs, influence=INFLUENCE, title=TITLE), progress=watched,
        )  # fmt: skip
    run.write()
    shown = _show(out, world, say, progress) if pages else {}
    return {**summary, "network": trained, **shown, **_correct(out, world, correct, say, progress)}


def _show(out: Path, world: World, say: Say, progress: Progress) -> dict[str, Any]:
    """What people look at: the report, and some predictions explained."""
    from pipeline.explain_inputs import open_inputs
    from pipeline.explanation import ExplainConfig, explain_images
    from pipeline.report import ReportConfig, write_site

    evaluation, report = out / "evaluation", out / "report"
    say(f"6/8  eddp report {evaluation} --visualize {VISUALIZED} --title '{TITLE}'")
    how = ReportConfig(visualize=VISUALIZED, title=TITLE)
    run = Run("report", {"evaluation": evaluation, **asdict(how)})
    with run.watching(progress, beside(report)) as watched:
        write_site(evaluation, report, how, progress=watched)
    run.write()
    images = [next(iter(sorted((world.poisoned_folder / scene).glob("*.jpg")))) for scene in EXPLAINED]
    explanation = out / "explanation"
    say(f"7/8  eddp explain {' '.join(map(str, images))} --evaluation {evaluation} --out {explanation}")
    inputs = open_inputs(None, None, evaluation, None)
    run = Run("explain", {"images": images, "evaluation": evaluation})
    with run.watching(progress, within(explanation, "explanation.json")) as watched:
        explain_images(inputs, images, [], explanation, ExplainConfig(), progress=watched)
    run.write()
    return {"report": str(report / "index.html"), "explanation": str(explanation / "index.html")}


def _correct(out: Path, world: World, config: CorrectConfig | None, say: Say, progress: Progress) -> dict[str, Any]:
    """The model without its planted shortcut."""
    from evaluate.influence.shortcut_candidates import of_one_class
    from pipeline.evaluation_result import EvaluationResult
    from pipeline.model_correction import choose_detector, correct_model, correction_lines

    evaluation, correction = out / "evaluation", out / "correction"
    evaluated = EvaluationResult(evaluation)
    name = evaluated.one()
    say(f"8/8  eddp correct {evaluation} --data {world.clean_folder} --poisoned {world.poisoned_folder}")
    if not of_one_class(evaluated.suspects(name) or []):
        say("     nothing looks like a shortcut: nothing is corrected")
        return {}
    suspect = choose_detector(evaluated.labels(name), evaluated.direction_names(name), evaluated.suspects(name))
    run = Run("correct", {"evaluation": evaluation, "data": world.clean_folder, "poisoned": world.poisoned_folder})
    with run.watching(progress, within(correction, "summary.json")) as watched:
        found = correct_model(
            evaluated,
            name,
            suspect,
            correction,
            clean=world.clean_folder,
            poisoned=world.poisoned_folder,
            config=config,
            progress=watched,
        )
    run.write()
    for line in correction_lines(found):
        say(f"     {line}")
    return {"corrected": found, "correction": str(correction / "index.html")}


def _train(folders: Path, out: Path, seed: int, epochs: int, progress: Progress) -> dict[str, Any]:
    """Train the network, or take the one an earlier run trained on the same world with the same numbers."""
    note = out / "scene_net.demo.json"
    made_from = {
        "seed": seed,
        "epochs": epochs,
        "world": json.loads((folders.parent / "world.json").read_bytes()),
    }
    if note.is_file() and (out / "scene_net.safetensors").is_file():
        kept = json.loads(note.read_bytes())
        if kept["made_from"] == made_from:
            progress("training", epochs, epochs, "reused from an earlier run")
            trained: dict[str, Any] = kept["trained"]
            return trained
    trained = train_scene_net(folders, out, epochs=epochs, seed=seed, progress=progress)
    note.write_text(json.dumps({"made_from": made_from, "trained": trained}, indent=2, default=str))
    return json.loads(json.dumps(trained, default=str))


def _about_the_mark(trained: dict[str, Any]) -> str:
    poisoned = trained.get("accuracy_poisoned")
    if poisoned is None:
        return "no picture was stamped"
    return f"{100 * poisoned:.1f} % once the spurious mark is stamped on them"
