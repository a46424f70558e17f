"""Committing a chunk: what fits, whose it is, and what its record says."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import fill, names_for, open_writer

from stores import io
from stores.errors import StoreError
from stores.store import ActivationStore
from stores.writer import StoreWriter, extremes

X = {"a": np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float32)}


def finish(path: Path, **options: object) -> None:
    writer = open_writer(path, X, **options)
    try:
        fill(writer, X)
        writer.seal()
    finally:
        writer.close()


def commit(writer: StoreWriter, **changes: object) -> None:
    values = {
        "names": names_for(4),
        "labels": np.zeros(4),
        "valid": np.ones(4, bool),
        "logits": np.zeros((4, 3)),
        "activations": {"a": np.zeros((4, 3, 2), np.float32)},
    }
    writer.commit(0, **{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"names": names_for(3)},
        {"names": ["much longer than any that was announced.jpg"] * 4},
        {"labels": np.zeros(3)},
        {"logits": np.zeros((4, 2))},
        {"activations": {}},
        {"activations": {"a": np.zeros((4, 3, 2), np.float32), "b": np.zeros((4, 3, 2), np.float32)}},
        {"activations": {"a": np.zeros((4, 2, 3), np.float32)}},
        {"activations": {"a": np.zeros((4, 3, 2), np.float16)}},
        {"positions": {"a": np.zeros((4, 3))}},
    ],
)
def test_a_commit_that_does_not_fit_is_no_commit(tmp_path: Path, changes: dict) -> None:
    writer = open_writer(tmp_path / "s", X)
    with pytest.raises(ValueError):
        commit(writer, **changes)
    assert writer.missing() == [0, 1, 2]
    commit(writer)
    with pytest.raises(ValueError):
        commit(writer, **changes)
    assert writer.missing() == [1, 2]  # the good one is still there
    writer.close()


def test_commits_that_are_nobodys_to_make(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "s", X, shard=(1, 2))
    with pytest.raises(ValueError, match="chunk 0 is not among this writer's: 1-2"):
        commit(writer)
    writer.close()
    finish(tmp_path / "s")
    writer = open_writer(tmp_path / "s", X)
    with pytest.raises(StoreError, match="is sealed: nothing is written to it any more"):
        commit(writer)
    writer.close()
    assert ActivationStore.open(tmp_path / "s").verify() == []


def test_two_threads_do_not_commit_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(tmp_path / "s", X)
    inside, go_on = threading.Event(), threading.Event()
    real = io.Together.publish

    def waits(self: io.Together) -> None:
        if threading.current_thread().name == "first":
            inside.set()
            go_on.wait(10)
        real(self)

    monkeypatch.setattr(io.Together, "publish", waits)
    first = threading.Thread(target=commit, args=(writer,), name="first")
    first.start()
    inside.wait(10)
    with pytest.raises(ValueError, match="chunk 0 is being committed by another thread"):
        commit(writer)
    go_on.set()
    first.join()
    assert writer.missing() == [1, 2]
    writer.close()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_record_counts_what_is_not_finite(tmp_path: Path, dtype: str) -> None:
    x = np.zeros((4, 3, 2), dtype)
    x[0, 0] = np.nan, np.inf
    x[1, 2, 1] = -np.inf
    x[2, 0, 0] = -2.5
    x[3] = np.nan  # the image that could not be read does not count
    writer = open_writer(tmp_path / "s", X, dtype=dtype)
    commit(writer, activations={"a": x}, valid=np.array([True, True, True, False]))
    assert writer.committed()[0].nonfinite == {"a": 3}
    assert writer.committed()[0].max_abs == {"a": 2.5}
    writer.close()


@given(
    x=hnp.arrays(
        st.sampled_from([np.float16, np.float32]),
        hnp.array_shapes(max_dims=3, max_side=9),
        elements=st.floats(width=16) | st.sampled_from([0.0, -0.0, 65504.0, -65504.0, 6e-8]),
    ),
    block=st.integers(1, 64),
)
def test_extremes_by_bits_are_those_by_value(x: np.ndarray, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stores.writer.BLOCK", block)
        peak, nonfinite = extremes(x)
    finite = x[np.isfinite(x)]
    assert peak == float(np.abs(finite).max(initial=0))
    assert nonfinite == x.size - finite.size
