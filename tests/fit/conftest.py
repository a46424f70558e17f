"""A store with known truth that the tests of fits share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fit.synthetic import SyntheticConfig, make_synthetic
from stores.readers import LayerReader


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's recipe: three concepts in 16 channels, at 900 × 2 positions."""
    path = tmp_path_factory.mktemp("truth") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=900))
    return path


@pytest.fixture(scope="session")
def reader(synthetic: Path) -> LayerReader:
    return LayerReader(synthetic)
