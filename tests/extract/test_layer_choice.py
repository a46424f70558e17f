"""Which layers are shown of a network, which of them to begin with, and what follows each."""

from __future__ import annotations

import pytest

from extract.layer_choice import list_layers, list_stages
from extract.models import load_model
from extract.network import Network

# model, the last layer of each stage from the end, those to begin with, whether pooling and an affine map follow the last
STAGES = [
    ("mobilenet_v2", ("features.18", "features.13", "features.6"), ("features.13", "features.18"), True),
    ("alexnet", ("features.12", "features.11", "features.4"), ("features.11", "features.12"), False),
    ("timm:mixer_s32_224", ("norm", "blocks.7", "blocks.6"), ("blocks.5", "norm"), True),  # its head begins as zeros
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model", "last", "begin", "affine"), STAGES, ids=[row[0] for row in STAGES])
def test_stages(model: str, last: tuple[str, ...], begin: tuple[str, ...], affine: bool) -> None:
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    loaded = load_model(model, shapes_only=True)
    mapped = [stage for stage in list_stages(loaded, list_layers(loaded)) if stage.layer.grid != (1, 1)]
    assert tuple(stage.layer.name for stage in mapped[::-1])[: len(last)] == last
    assert tuple(stage.layer.name for stage in mapped if stage.begin) == begin
    assert mapped[-1].head.affine == affine
    network = Network.from_loaded(loaded, mapped[-1].layer.name)
    assert (network.pooled_affine is not None) == affine
