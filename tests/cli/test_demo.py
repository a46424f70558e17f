"""The demo, small: every artefact is there, its report opens without a complaint, and a second run keeps what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import fails, ok

from evaluate.influence.influence_study import InfluenceConfig
from pipeline import demo

METHODS = ("eddp", "kmeans", "pca")


@pytest.mark.slow
def test_demo(run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "VISUALIZED", 1)
    monkeypatch.setattr(demo, "PAIRS", 6)
    monkeypatch.setattr(demo, "SETTINGS", {"eddp": {"restarts": "1", "refine_steps": "50"}})
    monkeypatch.setattr(demo, "INFLUENCE", InfluenceConfig(nulls=8, null_positions=100))
    small = ("eddp", "demo", "--out", tmp_path / "demo", "--images", 160, "--epochs", 1, "--directions", 8)
    ended = ok(run(*small))
    report = Path(ended.out.splitlines()[-1])
    assert report.is_file()
    evaluation = tmp_path / "demo" / "evaluation"
    summary = json.loads((evaluation / "summary.json").read_bytes())["directions"]
    assert set(summary) == set(METHODS)
    for method in METHODS:
        assert summary[method]["directions"] == 8
        assert summary[method]["pairs"]["count"] == 6 * summary[method]["pairs"]["attributes"]
        assert len(list((evaluation / "report" / method / "s").glob("*.webp"))) == 8
    for shown in ("extract --model", "fit --store", "evaluate --store", "eddp report", "eddp explain", "eddp correct"):
        assert shown in ended.err
    assert len(list((tmp_path / "demo" / "report" / "d").glob("*.html"))) == 8
    assert len(list((tmp_path / "demo" / "report" / "c").glob("*.html"))) == 8
    assert (tmp_path / "demo" / "explanation" / "index.html").is_file()
    page = (evaluation / "report" / "eddp" / "classes.html").read_text(encoding="utf-8")
    assert "snow_mountain" in page  # classes go by their names
    before = (tmp_path / "demo" / "acts.zarr" / "zarr.json").stat().st_mtime_ns
    again = ok(run(*small, "--json"))
    assert json.loads(again.out)["directions"] == summary
    assert (tmp_path / "demo" / "acts.zarr" / "zarr.json").stat().st_mtime_ns == before
    fails(run(*small[:4], "--images", 192, "--epochs", 1), 2, "world")
