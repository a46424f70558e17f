"""The demo, small: every artefact is there, its report opens without a complaint, and a second run keeps what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

METHODS = ("eddp", "kmeans", "pca")


@pytest.mark.slow
def test_demo(run: Callable[..., object], tmp_path: Path) -> None:
    small = ("eddp", "demo", "--out", tmp_path / "demo", "--images", 160, "--epochs", 1, "--directions", 8)
    ended = run(*small)
    assert ended.code == 0, ended.err
    report = Path(ended.out.splitlines()[-1])
    assert report.is_file()
    evaluation = tmp_path / "demo" / "evaluation"
    summary = json.loads((evaluation / "summary.json").read_bytes())["directions"]
    assert set(summary) == set(METHODS)
    for method in METHODS:
        assert summary[method]["directions"] == 8
        assert len(list((evaluation / "report" / method / "s").glob("*.webp"))) == 8
    for command in (
        "extract --model",
        "fit --store",
        "evaluate --store",
        "eddp report",
        "eddp explain",
        "eddp correct",
    ):
        assert command in ended.err
    assert len(list((tmp_path / "demo" / "report" / "d").glob("*.html"))) == 8
    assert len(list((tmp_path / "demo" / "report" / "c").glob("*.html"))) == 8
    assert (tmp_path / "demo" / "explanation" / "index.html").is_file()
    page = (evaluation / "report" / "eddp" / "classes.html").read_text(encoding="utf-8")
    assert "snow_mountain" in page  # classes go by their names
    before = (tmp_path / "demo" / "acts.zarr" / "zarr.json").stat().st_mtime_ns
    again = run(*small, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["directions"] == summary
    assert (tmp_path / "demo" / "acts.zarr" / "zarr.json").stat().st_mtime_ns == before
    ended = run(*small[:4], "--images", 192, "--epochs", 1)
    assert ended.code == 2
    assert "world" in ended.err
