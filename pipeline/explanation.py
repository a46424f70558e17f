"""Explanations of predictions, from files to a folder: a page, a sheet and a JSON document an image, a short document of all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from evaluate.detector_bank import make_bank
from evaluate.explain.explainer import Explained, Explainer
from evaluate.explain.explanation_document import Terms, brief
from evaluate.explain.explanation_page import ExplainedImage, PageData, draw_image, render
from evaluate.explain.values import Values, readout, usual_values
from evaluate.glossary import definitions
from extract.crop_geometry import visible_box
from extract.forward import computing_in
from extract.image_io import reason
from extract.network import Network, open_network
from extract.store_images import crop, rows_called
from pipeline.explain_inputs import ImageInput, Inputs, class_number, find_images
from pipeline.influence import class_names
from stores.directions import Directions
from stores.errors import EDDPError, ImageError, NonFiniteError, UsageError
from stores.folders import Ours, check_replaceable, replacing
from stores.io import write_json
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

log = logging.getLogger(__name__)
OURS = Ours("explanation.json", "eddp explain", "an explanation")
MOST = 500  # images on a page


@dataclass(frozen=True)
class ExplainConfig:
    """``explained``, ``to``: classes by name or number; ``top`` classes listed, ``shown`` concepts with pictures; ``values`` see ``readout``."""

    explained: str | None = None
    to: str | None = None
    top: int = 5
    shown: int = 8
    values: Values = "joint"


def make_explainer(
    store: ActivationStore,
    layer: str,
    directions: Directions,
    network: Network,
    *,
    values: Values = "joint",
    device: str = "cpu",
    progress: Progress = silent,
) -> Explainer:
    """What explains images of a store's network by a set of directions."""
    reader = LayerReader(store, layer)
    usual = usual_values(reader, directions, readout(directions, values), progress=progress)
    bank = make_bank({"": directions}, reader, device=device, progress=progress)
    affine = network.pooled_affine
    return Explainer(
        network.head,
        directions,
        bank.thresholds.cpu().numpy(),
        usual,
        affine=None if affine is None else (affine.A.cpu().numpy(), affine.c.cpu().numpy()),
        prefix=network.layout.prefix,
        values=values,
        device=device,
    )


def explain_images(
    inputs: Inputs,
    paths: Sequence[Path],
    rows: Sequence[int],
    out: Path,
    config: ExplainConfig,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Explain the predictions for some images, at most 500, and write everything into ``out``; returns what ``explanation.json`` holds.

    That is a few words an image. All numbers of an image are only in its own document: they are not held in memory. An earlier
    explanation in ``out`` is replaced when all is written.

    Raises UsageError and its kin before anything is written, ImageError for an image that was named and cannot be read,
    NonFiniteError, and the errors of ``replacing``.
    """
    check_replaceable(out, OURS, paths)
    store = inputs.store
    items = find_images(paths, rows, store, out)
    if not items:
        raise UsageError("Name images or folders to explain, or --row N for images of the store.")
    if len(items) > MOST:
        raise UsageError(
            f"{len(items)} images are more than a page can show, which is {MOST}. Explain the others into another --out."
        )
    classes = class_names(store, int(store.array("images/logits").shape[1]))
    explained, to = class_number(config.explained, classes, "--class"), class_number(config.to, classes, "--to")
    network = open_network(store, inputs.layer, device=device)
    for item in items:
        if item.named:
            network.transform.taken(item.read())  # a bad one is reported before the work starts
    explainer = make_explainer(
        store, inputs.layer, inputs.directions, network, values=config.values, device=device, progress=progress
    )
    terms = Terms(classes, inputs.concepts, config.top, rows_called(store))
    box = lru_cache(maxsize=4096)(lambda size: visible_box(network.transform, size))
    shown: list[ExplainedImage] = []
    briefs: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    with replacing(out, OURS) as folder:
        (folder / "pictures").mkdir()
        for done, item in enumerate(items, 1):
            try:
                frames = network.transform.taken(item.read())
            except ImageError as error:
                if item.named:
                    raise
                log.warning("left out: %s", error)
                skipped.append({"name": item.name, "reason": str(error)})
                continue
            with computing_in("float32", network.device):
                found = _explain(explainer, network, item, frames, explained, to)
            seen = box((frames[0].height, frames[0].width))
            pictures = [crop(network.transform.picture(frame), seen) for frame in frames]
            page = draw_image(
                len(shown) + 1, item.name, item.row, pictures, found, explainer.usual, terms,
                grid=(network.layout.time, *network.layout.grid), most=config.shown,
            )  # fmt: skip
            for name, data in page.files.items():
                (folder / name).write_bytes(data)
            shown.append(page.shown)
            briefs.append(brief(page.document))
            progress("explaining", done, len(items))
        if not shown:
            raise ImageError(f"None of the {len(items)} images can be read; the first: {skipped[0]['reason']}")
        about = {"made_by": OURS.made_by, **_about(inputs, explainer, config)}
        result = {**about, "images": briefs, "skipped": skipped}
        write_json(folder / OURS.file, result)
        (folder / "index.html").write_bytes(
            render(_page(inputs, explainer, shown, network.layout.time)).encode("utf-8", "replace")
        )
    return result


def _page(inputs: Inputs, explainer: Explainer, shown: Sequence[ExplainedImage], steps: int) -> PageData:
    title = PurePath(shown[0].name).name if len(shown) == 1 else f"{len(shown)} predictions explained"
    head = "affine head" if explainer.affine is not None else "other head"
    more = [part for part, there in {"clips": steps > 1, "tokens": explainer.prefix}.items() if there]
    terms = definitions("explanation", head, f"{explainer.values} values", *more)
    rows, refits = rows_called(inputs.store), inputs.directions.refits
    return PageData(title, _facts(inputs, explainer), shown, terms, rows, refits, inputs.fidelity)


def _explain(
    explainer: Explainer,
    network: Network,
    item: ImageInput,
    frames: Sequence[Image.Image],
    explained: int | None,
    to: int | None,
) -> Explained:
    try:
        pixels = network.transform(frames if network.transform.frames else frames[0])
    except EDDPError:
        raise
    except Exception as error:
        raise ImageError(f"The model's transform fails on '{item.name}': {reason(error)}.") from error
    x = network.backbone(pixels[None])[0].cpu().numpy()
    try:
        return explainer.explain(x, explained=explained, target=to)
    except NonFiniteError as error:
        raise NonFiniteError(f"'{item.name}' cannot be explained: {error}. Look at the image and the model.") from error


def _about(inputs: Inputs, explainer: Explainer, config: ExplainConfig) -> dict[str, Any]:
    return {
        "store": str(inputs.store.path),
        "fingerprint": inputs.store.fingerprint,
        "layer": inputs.layer,
        "directions": inputs.name,
        "method": inputs.directions.method,
        "values": config.values,
        "exact": explainer.affine is not None,
        "read_with_care": [inputs.fidelity] if inputs.fidelity else [],
        "usual_of_images": explainer.usual.images,
        "nonnegative": explainer.usual.nonnegative,
    }


def _facts(inputs: Inputs, explainer: Explainer) -> dict[str, str]:
    head = "pooling and an affine map" if explainer.affine is not None else "the model's own"
    return {
        "Model": str(inputs.store.provenance.get("model", "")),
        "Layer": inputs.layer,
        "Directions": f"{inputs.name}: {inputs.directions.count} by {inputs.directions.method}",
        "Head": head,
        "Signal values": explainer.values,
    }
