"""k-means against FAISS, PCA, ICA and NMF against scikit-learn: the same rows of a store, the same number of iterations."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from fit import make_fitter
from fit.clustering import spherical_kmeans
from stores.readers import LayerReader
from tests.benchmarks.fitting import fit_like, status
from tests.benchmarks.measure import Row, best_in_turns
from tests.benchmarks.sae import activations

DIRECTIONS, ITERATIONS = 64, 30
SETTINGS: dict[str, dict[str, str]] = {
    "pca": {"signs": "largest"},
    "ica": {"signs": "skewed", "iterations": f"{ITERATIONS}", "tolerance": "1e-30"},  # all of them, on both sides
    "nmf": {"negative": "clip", "iterations": f"{ITERATIONS}"},
}


def ours(name: str, store: Path) -> np.ndarray:
    """Signal vectors (C, I)."""
    reader = LayerReader(store)
    (store / "layers" / "layer" / "statistics.safetensors").unlink(missing_ok=True)  # found again each time
    return make_fitter(name, n_directions=DIRECTIONS, refits=0, settings=SETTINGS[name]).fit(reader).signals_


def scikit(name: str, store: Path) -> np.ndarray:
    """The same by scikit-learn, on all rows in memory."""
    from sklearn.decomposition import NMF, PCA, FastICA

    reader = LayerReader(store)
    x = reader.rows(np.arange(reader.n_rows))
    if name == "pca":
        return PCA(DIRECTIONS).fit(x).components_.T
    if name == "nmf":
        x.clip(0, out=x)
        return NMF(DIRECTIONS, init="random", max_iter=ITERATIONS, random_state=0).fit(x).components_.T
    ica = FastICA(DIRECTIONS, whiten_solver="eigh", max_iter=ITERATIONS, tol=1e-30, random_state=0)
    ica.fit_transform(x)
    return ica.mixing_


SIDES: dict[str, Callable[[str, Path], np.ndarray]] = {"ours": ours, "scikit": scikit}


def memory(side: str, name: str, store: Path) -> float:
    """MB at the peak of a process that has fitted a few rows before, beyond what was there."""
    command = [sys.executable, "-m", "tests.benchmarks.baselines", side, name, str(store)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024


def kmeans() -> Row:
    rows = fit_like(65_536, 64, DIRECTIONS)[0]
    objectives = {}

    def clusters() -> None:
        objectives["ours"] = spherical_kmeans(rows, DIRECTIONS, seed=0).objective

    def plain() -> None:
        unit = F.normalize(rows, dim=1).numpy()
        it = faiss.Kmeans(64, DIRECTIONS, niter=25, nredo=3, spherical=True, seed=1, max_points_per_centroid=1024)
        it.train(unit)
        _, nearest = it.assign(unit)
        objectives["faiss"] = float((unit * it.centroids[nearest]).sum(1).mean())

    a, b = best_in_turns(clusters, plain)
    assert abs(objectives["ours"] - objectives["faiss"]) < 1e-4, objectives
    what = f"spherical k-means and assignment, 65 536 × 64, {DIRECTIONS} clusters"
    return Row(what, "faiss.Kmeans, objective equal", a.processor / b.processor, "lower", a.next_to(b))


def rows(folder: Path) -> Iterator[Row]:
    warnings.simplefilter("ignore")  # that 30 iterations do not converge
    yield kmeans()
    store, few = folder / "rows.zarr", folder / "few.zarr"
    activations(store, 400, 256)
    activations(few, 20, 256)
    for name in SETTINGS:
        peer = "scikit-learn, as many iterations"
        if name != "ica":  # components that have not converged depend on the start
            a, b = (F.normalize(torch.from_numpy(side(name, store)).double(), dim=0) for side in SIDES.values())
            assert float((a.T @ b).abs().amax(0).min()) > 0.999
            peer = "scikit-learn, same directions"
        x, y = best_in_turns(lambda name=name: ours(name, store), lambda name=name: scikit(name, store), 2)
        what = f"{name.upper()}, {DIRECTIONS} directions of 19 600 × 256"
        yield Row(what, peer, x.processor / y.processor, "lower", x.next_to(y))
        x, y = (memory(side, name, store) for side in SIDES)
        yield Row(f"its peak memory, {name.upper()}", "scikit-learn", x / y, "lower", f"{x:.0f} and {y:.0f} MB")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    side, name, store = SIDES[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
    side(name, store.with_name("few.zarr"))  # libraries loaded, threads started
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    side(name, store)
    print(status("VmHWM") - before)  # noqa: T201
