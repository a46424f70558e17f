"""What is installed: the wheel's contents, extras, and other distributions with packages of the same names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import command

from fit import clustering
from stores.directions import Directions

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("evaluate", "extract", "fit", "pipeline", "stores")


def tracked() -> list[str]:
    return subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]


@pytest.mark.slow
def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ours = [name for name in tracked() if (ROOT / name).is_file()]
    for name in ours:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("eddp-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert inside == {name for name in ours if name.split("/")[0] in PACKAGES}
    assert {f"{package}/py.typed" for package in PACKAGES} < inside
    assert "Provides-Extra: cpu" in metadata
    assert "Provides-Extra: gpu" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert len(required) > 15
    assert not any("faiss" in line for line in required)  # the two of them exclude each other


def test_a_package_of_the_same_name_is_reported_and_not_run(tmp_path: Path) -> None:
    other = tmp_path / "evaluate"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('this was run')\n")
    command = [sys.executable, "-c", "from pipeline.entry import fit; fit()", "--help"]
    ended = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert str(other) in ended.stderr
    assert "environment of its own" in ended.stderr
    assert "this was run" not in ended.stderr + ended.stdout


def test_a_fit_without_faiss_runs_in_torch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not command("eddp synthetic", "--out", tmp_path / "truth.zarr", "--concepts", "3", "--images", "30")
    for engine in ("faiss", "torch"):
        clustering._faiss.cache_clear()
        if engine == "torch":
            monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
        for method in ("eddp", "kmeans"):
            out = tmp_path / f"{method}-{engine}.safetensors"
            assert not command(
                f"fit --store {tmp_path / 'truth.zarr'} --directions 3 --refits 0", "--method", method, "--out", out
            )
            assert Directions.load(out).info["engine"] == engine
    clustering._faiss.cache_clear()
