"""``eddp inspect`` and ``eddp verify`` as users run them: on sound, odd, unfinished and damaged stores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from hypothesis import given
from hypothesis import strategies as st
from tiny import fill, open_writer, write_store

from fit.synthetic import SyntheticConfig, make_synthetic
from pipeline.inspection import BARS, QUANTILES, distribution, histogram
from stores.format import LayerSpec
from stores.sketch import Sketch

Make = Callable[..., Path]
SPECS = {"a": LayerSpec("a", (2, 2), 6, prefix=1, layout="tokens")}


def odd_layer() -> np.ndarray:
    """(40, 5, 6) with a dead channel, a constant one, NaN and infinities; the first position is a prefix."""
    x = np.random.default_rng(0).normal(size=(40, 5, 6)).astype(np.float32)
    x[:, 0] = 1000
    x[:, 1:, 2], x[:, 1:, 4] = 0, 2.5
    x[7, 2, 0], x[7, 3, 0], x[9, 1, 5] = np.nan, np.inf, -np.inf
    return x


def test_all_there_is_to_know_of_a_store(run: Run, tiny_store: Make) -> None:
    x = odd_layer()
    path = tiny_store(
        {"a": x, "b": np.abs(x)}, specs=SPECS, provenance={"model": "tiny", "weights_digest": "sha256:1f"}
    )
    facts = json.loads(ok(run("eddp inspect", path, "--json")).out)
    assert facts["model"] == "tiny"
    assert facts["weights digest"] == "sha256:1f"
    assert facts["images"] == 40
    assert facts["chunks"] == "10 of 4 images"
    assert facts["layers"]["a"].startswith("40 × 5 × 6, grid 2 × 2, prefix 1, largest |x| 1000")
    assert facts["sealed"]
    assert "unfinished" not in facts
    a = facts["values"]["a"]
    inside = x[:, 1:]
    finite = inside[np.isfinite(inside)].astype(np.float64)
    assert a["shape"] == [40, 5, 6]
    assert a["bytes"] == x.nbytes
    assert (a["images"], a["of images"], a["values"], a["channels"]) == (40, 40, 40 * 4 * 6, 6)
    assert (a["nan"], a["infinite"], a["not finite in ledger"]) == (1, 2, 3)
    assert a["channels not finite"] == [0, 5]
    assert a["dead channels"] == [2]
    assert a["constant channels"] == [4]
    assert a["zeros"] == 160
    assert (a["minimum"], a["maximum"]) == (finite.min(), finite.max())
    assert a["largest |x| in ledger"] == 1000  # the prefix counts there
    for name, value in a["quantiles"].items():
        exact = np.quantile(finite, QUANTILES[name], method="inverted_cdf")
        assert value == pytest.approx(exact, rel=1 / 64)
    edges, counts = a["histogram"]["edges"], a["histogram"]["counts"]
    assert counts == np.histogram(finite[finite != 0], edges)[0].tolist()
    assert facts["values"]["b"]["minimum"] == 0


def test_what_people_read(run: Run, tiny_store: Make) -> None:
    path = tiny_store({"a": odd_layer()}, specs=SPECS)
    lines = ok(run("eddp inspect", path)).out.splitlines()
    text = "\n".join(lines)
    assert "values of a, without its prefix, from all 40 images:" in lines
    assert "  exactly zero          16.72 %" in lines
    assert "  dead channels         1 of 6 (always 0 in what was looked at): 2" in lines
    assert "  constant channels     1 of 6 (one value, not 0 in what was looked at): 4" in lines
    assert "1 NaN and 2 infinite among these, 3 in the complete store" in text
    assert "in channels 2 of 6: 0, 5" in text
    header = next(i for i, line in enumerate(lines) if "1 %     25 %" in line)
    assert len(lines[header + 1].split()) == len(QUANTILES)
    bars = [line for line in lines if line.endswith(tuple("█▏▎▍▌▋▊▉"))]
    assert 5 <= len(bars) <= BARS + 2
    assert max(line.count("█") for line in bars) == 40
    assert all(len(line) < 100 for line in lines)


def test_many_dead_channels_are_listed_in_part(run: Run, tiny_store: Make) -> None:
    x = np.zeros((8, 2, 30), np.float32)
    x[:, :, 3] = np.arange(16).reshape(8, 2)
    path = tiny_store({"a": x})
    text = ok(run("eddp inspect", path)).out
    assert "29 of 30 (always 0 in what was looked at): 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, ..." in text
    facts = json.loads(ok(run("eddp inspect", path, "--json")).out)
    assert facts["values"]["a"]["dead channels"] == [k for k in range(30) if k != 3]


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf, 1e-30, 1e30])
def test_a_layer_of_one_value(run: Run, tiny_store: Make, value: float) -> None:
    path = tiny_store({"a": np.full((5, 2, 3), value, np.float32)})
    ok(run("eddp inspect", path))
    found = json.loads(ok(run("eddp inspect", path, "--json")).out, parse_constant=pytest.fail)["values"]["a"]
    assert found["values"] == 30
    assert found["dead channels"] == ([0, 1, 2] if value == 0 else [])
    assert found["constant channels"] == ([0, 1, 2] if value and np.isfinite(value) else [])
    assert (found["histogram"] or {}).get("counts") == ([30] if value and np.isfinite(value) else None)
    assert found["maximum"] == (float(np.float32(value)) if np.isfinite(value) else None)


def test_some_images_of_a_large_store_or_all_of_them(run: Run, tiny_store: Make) -> None:
    x = np.random.default_rng(0).normal(size=(1500, 1, 2)).astype(np.float32)
    path = tiny_store({"a": x}, chunk_images=100)
    assert "values of a, from 256 of 1 500 images:" in ok(run("eddp inspect", path)).out
    assert not (path / "layers/a/sketch.safetensors").exists()
    assert "values of a, from all 1 500 images:" in ok(run("eddp inspect", path, "--all")).out
    assert (path / "layers/a/sketch.safetensors").exists()
    facts = json.loads(ok(run("eddp inspect", path, "--json")).out)  # from what was kept
    assert facts["values"]["a"]["images"] == 1500
    assert "sound" in ok(run("eddp verify", path)).out


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    path, x = tmp_path / "part.zarr", odd_layer()
    writer = open_writer(path, {"a": x}, specs=SPECS)
    fill(writer, {"a": x}, chunks=[0, 1, 4, 9], valid=np.arange(40) != 5)
    writer.close()
    return path


def test_an_unfinished_store(run: Run, unfinished: Path) -> None:
    text = ok(run("eddp inspect", unfinished)).out
    assert "  missing chunks        2 to 3, 5 to 8" in text
    assert "  missing images        8 to 15, 20 to 35" in text
    assert "Run the same extract command again" in text
    assert "from all 15 images" in text
    facts = json.loads(ok(run("eddp inspect", unfinished, "--json --all")).out)
    assert facts["sealed"] is False
    assert (facts["images"], facts["skipped"]) == (15, 1)
    assert facts["unfinished"]["committed chunks"] == 4
    assert facts["unfinished"]["missing chunks"] == [[2, 3], [5, 8]]
    assert facts["unfinished"]["missing images"] == [[8, 15], [20, 35]]
    inside = odd_layer()[[0, 1, 2, 3, 4, 6, 7, 16, 17, 18, 19, 36, 37, 38, 39], 1:]
    found = facts["values"]["a"]
    assert found["values"] == inside.size
    assert found["maximum"] == inside[np.isfinite(inside)].max()
    assert not (unfinished / "layers/a/sketch").exists()
    ended = run("eddp verify", unfinished)  # which is of sealed stores alone
    assert ended.code == 1
    assert "unfinished" in ended.err


def test_an_unfinished_store_of_which_files_are_missing(run: Run, unfinished: Path) -> None:
    folder = unfinished / "layers/a/activations"
    file = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "zarr.json")
    file.unlink()
    facts = json.loads(ok(run("eddp inspect", unfinished, "--json")).out)
    assert facts["unfinished"]["committed chunks"] == 3
    assert facts["unfinished"]["missing chunks"][0] == [0, 0]


def test_a_store_with_nothing_in_it_yet(run: Run, tmp_path: Path) -> None:
    open_writer(tmp_path / "s.zarr", {"a": odd_layer()}, specs=SPECS).close()
    facts = json.loads(ok(run("eddp inspect", tmp_path / "s.zarr", "--json")).out)
    assert facts["values"] == {"a": None}
    assert facts["unfinished"]["missing images"] == [[0, 39]]
    assert "missing images        0 to 39" in ok(run("eddp inspect", tmp_path / "s.zarr")).out


@pytest.fixture(scope="module")
def made_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=60))
    return path


@pytest.fixture
def synthetic(made_synthetic: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_synthetic, tmp_path / "s.zarr"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_verify_reads_what_is_stored_with_a_store_too(run: Run, synthetic: Path) -> None:
    out = synthetic.with_name("d.safetensors")
    ok(run("fit --store", synthetic, "--directions 2 --method pca --out", out))
    ok(run("eddp inspect", synthetic, "--all"))
    assert "sound" in ok(run("eddp verify", synthetic)).out
    layer = synthetic / "layers/synthetic"
    harmed = [synthetic / "truth.safetensors", layer / "statistics.safetensors", layer / "sketch.safetensors"]
    for file in harmed:
        flip(file)
    ended = run("eddp verify", synthetic, "--json")
    assert ended.code == 1
    problems = json.loads(ended.out)["problems"]
    assert len(problems) == 3
    for file in harmed:
        assert sum(problem.startswith(f"'{file}'") for problem in problems) == 1
    ok(run("eddp inspect", synthetic, "--all"))  # rewrites the damaged cache
    assert len(json.loads(run("eddp verify", synthetic, "--json").out)["problems"]) == 2


def test_a_damaged_truth_is_refused(run: Run, synthetic: Path) -> None:
    out, file = synthetic.with_name("d.safetensors"), synthetic / "truth.safetensors"
    ok(run("fit --store", synthetic, "--directions 3 --method pca --out", out))
    evaluate = ("evaluate", "--store", synthetic, "--directions", out, "--ground-truth", "--json")
    flip(file)
    fails(run(*evaluate), 1, f"'{file}' is damaged")
    file.unlink()
    fails(run(*evaluate), 2, "no ground truth")


@given(st.integers(0, 2**32), st.sampled_from(["normal", "cauchy", "exponential", "lognormal", "offset", "one"]))
def test_histograms_count_exactly_between_their_edges(seed: int, kind: str) -> None:
    g = np.random.default_rng(seed)
    scale = np.exp2(g.integers(-10, 10))
    x = {
        "normal": lambda: g.normal(size=500),
        "cauchy": lambda: g.standard_cauchy(500),
        "exponential": lambda: np.maximum(g.exponential(size=500) - 0.5, 0),
        "lognormal": lambda: np.exp(g.normal(0, 2, 500)),
        "offset": lambda: g.normal(size=500) - 1000,
        "one": lambda: np.full(3, g.normal()),
    }[kind]()
    x = (scale * x).astype(np.float32)
    sketch = Sketch(1)
    sketch.update(x[:, None])
    found = histogram(sketch)
    edges, counts = np.array(found["edges"]), found["counts"]
    assert len(counts) == len(edges) - 1 <= BARS + 2
    assert (edges[0], edges[-1]) == (x.min(), x.max())
    if kind != "one":
        assert (np.diff(edges) > 0).all()
        rest = x[x != 0]
        inner = edges[1:-1]
        # an edge belongs to the values farther from 0
        below = [int(((rest < e) | ((rest == e) & (e < 0))).sum()) for e in inner]
        assert np.diff([0, *below, len(rest)]).tolist() == counts
    assert distribution(sketch)["histogram"] == found


def test_scales_suit_the_values() -> None:
    g = np.random.default_rng(0)

    def scale(x: np.ndarray) -> str:
        sketch = Sketch(1)
        sketch.update(x.astype(np.float32)[:, None])
        return str(histogram(sketch)["scale"])

    for linear in (g.normal(size=5000), g.exponential(size=5000), g.laplace(size=5000), g.normal(10, 1, 5000)):
        assert scale(linear) == "linear"
    for heavy in (np.exp(3 * g.normal(size=5000)), g.standard_cauchy(5000)):
        assert scale(heavy) == "logarithmic"


def test_skipped_images_are_left_out(run: Run, tmp_path: Path) -> None:
    valid = np.arange(12) != 3
    path = write_store(tmp_path / "s.zarr", {"a": np.ones((12, 2, 3), np.float32)}, valid=valid)
    facts = json.loads(ok(run("eddp inspect", path, "--json")).out)
    assert (facts["images"], facts["skipped"]) == (11, 1)
    found = facts["values"]["a"]
    assert (found["images"], found["of images"], found["nan"], found["values"]) == (11, 11, 0, 66)


def test_histograms_of_extreme_values() -> None:
    g = np.random.default_rng(0)
    for trial in range(300):
        scale = 10.0 ** g.integers(-44, 39, () if trial % 2 else (40, 1))
        x = np.clip(g.normal(size=(40, 3)) * scale, -3e38, 3e38).astype(np.float32)
        if trial % 5 == 0:
            x = np.abs(x)
        if trial % 7 == 0:
            x = -np.abs(x)
        x[g.random(x.shape) < trial % 3 / 4] = 0
        if trial % 11 == 0:
            x[0, 0], x[1, 1], x[2, 2] = np.nan, np.inf, -np.inf
        sketch = Sketch(3)
        sketch.update(x)
        found = distribution(sketch)["histogram"]
        rest = x[np.isfinite(x) & (x != 0)].astype(np.float64)
        assert (found is None) == (not len(rest))
        if found is None:
            continue
        edges = np.array(found["edges"])
        assert sum(found["counts"]) == len(rest)
        assert (edges[0], edges[-1]) == (x[np.isfinite(x)].min(), x[np.isfinite(x)].max())
        inner = edges[1:-1]
        small = np.abs(rest) < 2.0**-24  # whose sign the sketch does not know
        below = [int(((rest < e) | ((rest == e) & (e < 0)) | (small & (e == 0))).sum()) for e in inner]
        assert np.diff([0, *below, len(rest)]).tolist() == found["counts"]


def test_inspect_a_store_of_huge_values(run: Run, tiny_store: Make) -> None:
    x = np.random.default_rng(1).normal(size=(8, 4, 3)).astype(np.float32) * 1e13
    path = tiny_store({"a": x})
    ok(run("eddp inspect", path))
    found = json.loads(ok(run("eddp inspect", path, "--json --all")).out)["values"]["a"]
    assert sum(found["histogram"]["counts"]) == x.size


def test_verify_lists_all_that_is_wrong(run: Run, tiny_store: Make) -> None:
    path = tiny_store({"a": odd_layer()}, specs=SPECS)
    files = sorted((path / "layers/a/activations").glob("c.*"))
    for file in files[:7]:
        file.unlink()
    files[7].write_bytes(b"short")
    flip(files[8])
    ended = run("eddp verify", path, "--json")
    assert ended.code == 1
    assert len(json.loads(ended.out)["problems"]) == 9
    ended = run("eddp verify", path)
    assert ended.code == 1
    for k in range(9):
        assert f"chunk {k} of layers/a/activations" in ended.err
    assert "damaged in 9 places, listed above" in ended.err
    assert "eddp verify" not in ended.err
    (path / "zarr.json").write_text("[" * 100_000)
    ended = run("eddp verify", path, "--json")
    assert ended.code == 1
    assert len(json.loads(ended.out)["problems"]) == 1


def test_verify_lists_all_that_is_wrong_with_what_is_there(run: Run, unfinished: Path) -> None:
    flip(unfinished / "layers/a/activations/c.1.0.0")
    (unfinished / "layers/a/activations/c.4.0.0").unlink()
    (unfinished / "commits/00000009.json").write_text("{}")
    problems = json.loads(run("eddp verify", unfinished, "--json").out)["problems"]
    assert len(problems) == 3


def test_verify_misses_a_truth(run: Run, synthetic: Path) -> None:
    (synthetic / "truth.safetensors").unlink()
    fails(run("eddp verify", synthetic), 1, "truth: missing")


def test_an_unfinished_store_of_very_many_chunks(run: Run, unfinished: Path) -> None:
    document = json.loads((unfinished / "zarr.json").read_bytes())
    for n, code in ((4 * 10**8, 1), (10**12, 1)):
        document["attributes"]["eddp"]["n_images"] = n
        (unfinished / "zarr.json").write_text(json.dumps(document))
        assert run("eddp inspect", unfinished).code == code


def test_a_terminal_that_lacks_the_bars(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", {"a": np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)})
    command = [sys.executable, "-m", "pipeline.main", "inspect", str(store), "--quiet"]
    ended = subprocess.run(
        command, capture_output=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"?" in ended.stdout
