"""How often counterfactuals come true on new images: ``python -m tests.benchmarks.counterfactuals EVALUATION IMAGES``.

EVALUATION is a folder that ``evaluate`` wrote, IMAGES a folder of images (``demo/world/folders/val``). Every image is turned into its
runner-up and into another class at random; the head is run with each change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evaluate.explain.trial import another, runner_up, try_counterfactuals
from extract.datasets import open_source
from extract.network import open_network
from pipeline.explained_inputs import open_inputs
from pipeline.explanation import make_explainer


def main(evaluation: str, images: str) -> None:
    inputs = open_inputs(None, None, Path(evaluation), None)
    network = open_network(inputs.store, inputs.layer)
    explainer = make_explainer(inputs.store, inputs.layer, inputs.directions, network)
    source = open_source(f"folder:{images}")

    def activations() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(len(source)):
            pixels = network.transform(source.image(i))[None]
            yield network.backbone(pixels)[0].numpy(), network.logits(pixels)[0].numpy()

    for name, choose in (("runner-up", runner_up), ("another class", another(0))):
        found = try_counterfactuals(explainer, activations(), choose)
        sys.stdout.write(f"{name}: {json.dumps(found.summary())}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
