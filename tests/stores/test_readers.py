"""Readers against the plainest possible oracle: a list of images, each a list of positions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_store

from stores.errors import CorruptStoreError, UsageError
from stores.format import LayerSpec
from stores.readers import LayerReader, Part
from stores.shuffle import Shuffle, shuffled
from stores.statistics import statistics
from stores.store import ActivationStore

Make = Callable[..., Path]


@dataclass
class Case:
    path: Path
    x: np.ndarray  # (N, P, C) as given, prefix included
    valid: np.ndarray
    prefix: int
    chunk: int


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, list[bool], str, str]:
    n = draw(st.integers(1, 13))
    valid = draw(st.one_of(st.just([True] * n), st.lists(st.booleans(), min_size=n, max_size=n)))
    return (
        draw(st.integers(1, 5)),  # chunk
        draw(st.integers(1, 4)),  # grid positions
        draw(st.integers(0, 2)),  # prefix
        valid,
        draw(st.sampled_from(["float16", "float32"])),
        draw(st.sampled_from(["none", "zstd"])),
    )


def make(folder: Path, case: tuple) -> Case:
    chunk, grid, prefix, valid, dtype, compress = case
    n, p, c = len(valid), prefix + grid, 3
    x = np.arange(n * p * c).reshape(n, p, c).astype(dtype)  # every number once
    spec = LayerSpec("a", (1, grid), c, prefix)
    mask = np.array(valid)
    path = write_store(
        folder / "s", {"a": x}, specs={"a": spec}, valid=mask, chunk_images=chunk, dtype=dtype, compress=compress
    )
    return Case(path, x, mask, prefix, chunk)


@settings(max_examples=30)
@given(case=cases(), step=st.one_of(st.none(), st.integers(1, 15)), keep_prefix=st.booleans(), data=st.data())
def test_every_view_agrees_with_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, case: tuple, step: int | None, keep_prefix: bool, data: st.DataObject
) -> None:
    made = make(tmp_path_factory.mktemp("r"), case)
    reader = LayerReader(made.path, prefix=keep_prefix)
    first = 0 if keep_prefix else made.prefix
    expected = {i: made.x[i, first:] for i in range(len(made.x)) if made.valid[i]}
    assert reader.n_images == len(expected)
    assert reader.positions == made.x.shape[1] - first
    assert reader.n_rows == reader.n_images * reader.positions
    assert reader.image_indices.tolist() == list(expected)

    seen: list[int] = []
    for index, block in reader.blocks(step):
        assert len(index) == len(block) <= (step or made.chunk)
        for i, x in zip(index, block, strict=True):
            assert np.array_equal(x, expected[int(i)])
            seen.append(int(i))
    assert seen == list(expected)  # in order, none twice, no tail dropped

    if expected:
        chosen = data.draw(st.lists(st.sampled_from(list(expected)), max_size=8))  # any order, also twice
        got = reader.images(chosen)
        assert got.shape == (len(chosen), reader.positions, 3)
        assert all(np.array_equal(x, expected[i]) for i, x in zip(chosen, got, strict=True))
    invalid = np.flatnonzero(~made.valid)
    for wrong in (*invalid[:1], -1, len(made.x)):
        with pytest.raises(UsageError, match=f"no activations of image {wrong} "):
            reader.images([*list(expected)[:1], wrong])


@settings(max_examples=30)
@given(case=cases(), other_chunk=st.integers(1, 6), count=st.integers(1, 60), seed=st.integers(0, 3))
def test_sampled_rows_do_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, case: tuple, other_chunk: int, count: int, seed: int
) -> None:
    made = make(tmp_path_factory.mktemp("r"), case)
    other = make(tmp_path_factory.mktemp("r"), (other_chunk, *case[1:]))
    reader = LayerReader(made.path)
    rows = reader.sampled_rows(count, seed)
    naive = made.x[made.valid][:, made.prefix :].reshape(-1, 3)
    assert rows.shape == (min(count, len(naive)), 3)
    assert rows.dtype == made.x.dtype
    numbers = rows[:, 0].tolist()
    assert set(numbers) <= set(naive[:, 0].tolist())
    assert len(set(numbers)) == len(numbers)  # without replacement
    assert np.array_equal(rows, LayerReader(other.path).sampled_rows(count, seed))
    if count >= len(naive):
        assert np.array_equal(rows, naive)


def test_sampled_rows_are_spread_over_all_and_differ_by_seed(tiny_store: Make) -> None:
    x = np.arange(400, dtype=np.float32).reshape(100, 4, 1)
    reader = LayerReader(tiny_store({"a": x}, chunk_images=7))
    rows = reader.sampled_rows(100, 0)[:, 0]
    assert rows.tolist() == sorted(rows)
    assert all(20 <= np.sum((rows >= k) & (rows < k + 100)) <= 32 for k in range(0, 400, 100))
    assert not np.array_equal(rows, reader.sampled_rows(100, 1)[:, 0])


def test_sampled_positions_have_no_prefix_left_to_drop(tiny_store: Make) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    spec = LayerSpec("a", (3, 3), 2, prefix=1, stored_positions=3, layout="tokens")
    path = tiny_store({"a": x}, specs={"a": spec}, positions={"a": np.tile([0, 4, 8], (4, 1))})
    for prefix in (False, True):
        reader = LayerReader(path, prefix=prefix)
        assert reader.positions == 3
        assert np.array_equal(np.concatenate([block for _, block in reader.blocks()]), x)


def test_an_open_store_or_a_path(tiny_store: Make) -> None:
    x = np.ones((5, 2, 3), np.float32)
    path = tiny_store({"a": x, "b": 2 * x})
    for store in (path, str(path), ActivationStore.open(path)):
        reader = LayerReader(store, "b")
        assert (reader.channels, reader.grid, reader.spec.name) == (3, (1, 2), "b")
        assert reader.images([0]).tolist() == (2 * x[:1]).tolist()


def test_uncompressed_chunks_are_mapped_and_not_copied(tiny_store: Make) -> None:
    path = tiny_store({"a": np.ones((5, 2, 3), np.float32)})
    file = path / "layers/a/activations/c.0.0.0"
    _, block = LayerReader(path).chunk(0)
    assert str(file) in Path("/proc/self/maps").read_text()
    before = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(block).fill_(7)  # it may be written to, and nothing of that reaches the file
    assert (block == 7).all()
    assert file.read_bytes() == before


def test_a_chunk_that_disappears_while_reading_is_reported(tiny_store: Make) -> None:
    path = tiny_store({"a": np.ones((9, 2, 3), np.float32)})
    reader = LayerReader(path)
    (path / "layers/a/activations/c.1.0.0").unlink()
    with pytest.raises(CorruptStoreError, match=r"Chunk 1 of 'layers/a/activations' cannot be read .*No such file"):
        list(reader.blocks())
    with pytest.raises(CorruptStoreError):
        reader.images([5])
    with pytest.raises(CorruptStoreError):
        reader.sampled_rows(3, 0)


def test_places_of_sampled_positions(tmp_path: Path, make_store: Callable[..., ActivationStore]) -> None:
    positions = np.random.default_rng(4).integers(0, 16, (7, 3)).astype(np.int32)
    x = np.zeros((7, 3, 2), np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(4, 4), positions=positions, chunk_images=3))
    for image in range(7):
        assert reader.places(image).tolist() == positions[image].tolist()


def test_parts_are_disjoint_and_hold_everything(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((11, 3, 2)).astype(np.float32)
    valid = np.ones(11, bool)
    valid[4] = False
    store = ActivationStore.open(write_store(tmp_path / "s.zarr", {"a": x}, valid=valid))
    parts = [LayerReader(store, part=Part(i, 2)) for i in range(2)]
    assert sorted(k for p in parts for k in p.image_indices.tolist()) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    for part in parts:
        seen = {int(k): image for index, block in part.blocks(2) for k, image in zip(index, block, strict=True)}
        assert sorted(seen) == part.image_indices.tolist()
        for k, image in seen.items():
            np.testing.assert_array_equal(image, x[k])
        np.testing.assert_array_equal(part.rows(np.arange(part.n_rows)), x[part.image_indices].reshape(-1, 2))
        drawn = torch.cat([batch.x for batch in shuffled(part, Shuffle(batch_rows=4))])
        np.testing.assert_array_equal(np.sort(drawn.numpy(), 0), np.sort(x[part.image_indices].reshape(-1, 2), 0))
        moments = statistics(part)
        np.testing.assert_allclose(moments.mean, x[part.image_indices].mean((0, 1)), rtol=1e-5)
    assert parts[0].identity != parts[1].identity != LayerReader(store).identity
    np.testing.assert_allclose(statistics(LayerReader(store)).mean, x[valid].mean((0, 1)), rtol=1e-5)
    with pytest.raises(UsageError, match="Part 10/11 of seed 0"):
        LayerReader(store, part=Part(10, 11))


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_changed_chunk_is_found_however_it_is_read(tiny_store: Make, compress: str) -> None:
    x = np.random.default_rng(0).random((64, 16, 16)).astype(np.float32)
    path = tiny_store({"a": x}, chunk_images=16, compress=compress)
    file = path / "layers/a/activations/c.1.0.0"
    data = bytearray(file.read_bytes())
    data[700] ^= 4
    file.write_bytes(data)
    ways: list[Callable[[LayerReader], object]] = [
        lambda r: list(r.blocks()),
        lambda r: r.images([20]),
        lambda r: r.rows([16 * 20]),
        lambda r: list(shuffled(r)),
        lambda r: r.sampled_rows(10, 0),
        lambda r: r.store.dask().compute(),
    ]
    for way in ways:
        with pytest.raises(CorruptStoreError, match=r"Chunk 1 of 'layers/a/activations' .* was changed after"):
            way(LayerReader(path))
    reader = LayerReader(path)  # what is sound can be read, and nothing else is read for it
    assert np.array_equal(reader.rows([0]), x[0, :1])
    assert np.array_equal(reader.images([40]), x[40:41])


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=60),
    gone=st.sets(st.integers(0, 59)),
    of=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_parts_are_alike(labels: list[int], gone: set[int], of: int, seed: int) -> None:
    classes = np.array(labels)
    valid = np.array([k not in gone for k in range(len(labels))])
    parts = [Part(i, of, seed).choose(classes, valid) for i in range(of)]
    assert np.array_equal(np.sum(parts, 0), valid)  # every valid image is in exactly one
    sizes = [part.sum() for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for k in set(labels):
        counts = [int((part & (classes == k)).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_classes_in_turn_are_in_both_halves() -> None:
    """By number modulo 2, halves of images whose eight classes come in turn share no class."""
    classes = np.arange(80) % 8
    half = Part(0, 2).choose(classes, np.ones(80, bool))
    assert np.bincount(classes[half]).tolist() == [5] * 8


def test_seeds_draw_other_parts() -> None:
    classes, valid = np.arange(40) // 10, np.ones(40, bool)
    first, again, other = (Part(0, 2, seed).choose(classes, valid) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
