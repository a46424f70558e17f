"""Random rows and shuffled batches: every row once, the right vector with the right number, well mixed."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_store

from stores.chunks import Mapping, can_map
from stores.errors import CorruptStoreError, UsageError
from stores.format import LayerSpec
from stores.prefetch import prefetch
from stores.readers import LayerReader
from stores.shuffle import Shuffle, shuffled

P, C = 4, 256  # a chunk of 4 images is 16 kB in float32: whole pages, so that it can be mapped


def make(path: Path, n: int = 37, *, p: int = P, c: int = C, **options: object) -> tuple[LayerReader, np.ndarray]:
    """A reader, and the rows that it must give."""
    x = np.arange(n * p * c, dtype=np.float32).reshape(n, p, c)
    valid = np.ones(n, bool)
    valid[[3, n - 1]] = False
    write_store(path, {"a": x}, valid=valid, **options)
    return LayerReader(path), x[valid].reshape(-1, c)


KINDS = {"mapped": {}, "of odd pages": {"c": 3}, "zstd": {"compress": "zstd"}}
Made = tuple[LayerReader, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return {kind: make(tmp_path_factory.mktemp("shuffle") / "s", **options) for kind, options in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_any_rows_in_any_order(made: dict[str, Made], kind: str) -> None:
    reader, truth = made[kind]
    assert (reader.mapping is not None) == (kind == "mapped")
    g = np.random.default_rng(0)
    for wanted in (g.integers(0, reader.n_rows, 500), np.arange(reader.n_rows), np.array([], int), [7, 7, 0]):
        assert np.array_equal(reader.rows(wanted), truth[wanted])
    out = np.empty((2, reader.channels), np.float32)
    assert reader.rows([1, reader.n_rows - 1], out=out) is out
    assert np.array_equal(out, truth[[1, -1]])
    for wrong in (-1, reader.n_rows):
        with pytest.raises(UsageError, match=f"rows 0 to {reader.n_rows - 1}, got {wrong}"):
            reader.rows([0, wrong])


def test_rows_leave_out_the_prefix(tmp_path: Path) -> None:
    x = np.arange(6 * 5 * 2, dtype=np.float32).reshape(6, 5, 2)
    spec = LayerSpec("a", (2, 2), 2, prefix=1, layout="tokens")
    write_store(tmp_path / "s", {"a": x}, specs={"a": spec})
    truth = x[:, 1:].reshape(-1, 2)
    reader = LayerReader(tmp_path / "s")
    assert np.array_equal(reader.rows(range(24)), truth)
    assert np.array_equal(LayerReader(tmp_path / "s", prefix=True).rows(range(30)), x.reshape(-1, 2))
    assert sorted(row[0] for batch in shuffled(reader) for row in batch.x.tolist()) == sorted(truth[:, 0].tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 70_000, 2**30])
@pytest.mark.parametrize("batch", [1, 10, 64, 1000])
def test_every_row_once_with_its_number(made: dict[str, Made], kind: str, window: int, batch: int) -> None:
    reader, truth = made[kind]
    found = list(shuffled(reader, Shuffle(batch_rows=batch, window_bytes=window, seed=1)))
    numbers = np.concatenate([b.rows for b in found])
    assert np.array_equal(np.sort(numbers), np.arange(reader.n_rows))
    assert [len(b.rows) for b in found[:-1]] == [batch] * (len(found) - 1)  # no short batch but the last
    for b in found:
        assert np.array_equal(b.x.numpy(), truth[b.rows])
    dropped = list(shuffled(reader, Shuffle(batch_rows=batch, window_bytes=window, seed=1, drop_last=True)))
    assert [len(b.rows) for b in dropped] == [batch] * (reader.n_rows // batch)


def test_the_order_is_the_seeds_and_another_each_epoch(made: dict[str, Made]) -> None:
    (reader, _), (zstd, _) = made["mapped"], made["zstd"]

    def order(reader: LayerReader, **options: int) -> list[int]:
        return [int(r) for b in shuffled(reader, Shuffle(window_bytes=100_000, **options)) for r in b.rows]

    first = order(reader)
    assert first == order(reader) == order(zstd)
    assert len({tuple(first), tuple(order(reader, seed=1)), tuple(order(reader, epoch=1)), tuple(sorted(first))}) == 4


def test_a_window_mixes_like_a_perfect_shuffle_and_a_small_one_its_chunks(tmp_path: Path) -> None:
    n, batch = 400, 100
    reader, _ = make(tmp_path / "s", n, p=4, c=2, chunk_images=20)

    def distinct(window: int) -> float:
        """Different images in a batch, of those that 100 rows drawn from all of them hit on average."""
        found = [len(np.unique(b.rows // 4)) for b in shuffled(reader, Shuffle(batch, window_bytes=window))]
        images = reader.n_images
        return float(np.mean(found)) / (images * (1 - (1 - 1 / images) ** batch))

    assert distinct(2**30) == pytest.approx(1, abs=0.05)
    assert 0.2 < distinct(1) < distinct(10 * 20 * 4 * 2 * 4) < 1.1
    numbers = np.concatenate([b.rows for b in shuffled(reader, Shuffle(batch))])
    ranks = np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]
    assert abs(ranks) < 0.1  # no trace of the order on disk


def test_tensors_of_another_dtype(tmp_path: Path) -> None:
    reader, truth = make(tmp_path / "s", dtype="float16")
    batch = next(iter(shuffled(reader, Shuffle(dtype=torch.float32))))
    assert batch.x.dtype == torch.float32
    assert np.array_equal(batch.x.numpy(), truth[batch.rows].astype(np.float16))
    assert next(iter(shuffled(reader))).x.dtype == torch.float16


@pytest.mark.gpu
def test_batches_on_a_gpu(made: dict[str, Made]) -> None:
    reader, truth = made["mapped"]
    for batch in shuffled(reader, Shuffle(batch_rows=10, device="cuda")):
        assert batch.x.is_cuda
        assert np.array_equal(batch.x.cpu().numpy(), truth[batch.rows])


@pytest.mark.parametrize("options", [{"batch_rows": 0}, {"seed": -1}, {"epoch": -1}, {"window_bytes": 0}])
def test_impossible_shuffles(options: dict) -> None:
    with pytest.raises(UsageError, match=f"'{next(iter(options))}' must be at least"):
        Shuffle(**options)


def test_a_mapping_is_the_files_and_never_writes_to_them(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}" for k in range(3)]
    for k, file in enumerate(files):
        file.write_bytes(bytes([k]) * 8192)
    mapping = Mapping(files, 8192)
    assert bytes(mapping.array) == b"".join(file.read_bytes() for file in files)
    view = mapping.array[8000:8400]
    mapping.array[8192] = 77
    mapping.will_need(2)
    del mapping
    assert view.tolist() == [0] * 192 + [77] + [1] * 207  # it lives as long as a view of it
    assert files[1].read_bytes() == b"\1" * 8192
    assert not can_map(8191, 3)
    assert not can_map(8192, 0)
    assert not can_map(8192, 10**6)
    files[1].write_bytes(b"short")
    with pytest.raises(OSError, match="5 bytes instead of 8192"):
        Mapping(files, 8192)


def test_a_chunk_that_is_missing_is_never_read_as_zeros(tmp_path: Path) -> None:
    reader, _ = make(tmp_path / "s")
    (tmp_path / "s/layers/a/activations/c.1.0.0").unlink()
    with pytest.raises(CorruptStoreError, match=r"cannot be mapped.*eddp verify"):
        reader.rows([0])


@given(st.lists(st.integers()), st.integers(1, 5), st.integers(1, 5))
def test_ahead_is_map(items: list[int], threads: int, depth: int) -> None:
    assert list(prefetch(lambda i: i * 2, items, threads=threads, depth=depth)) == [i * 2 for i in items]


def test_errors_ahead_are_raised_in_their_turn() -> None:
    values = prefetch(lambda i: 1 // i, [1, 1, 0, 1])
    assert [next(values), next(values)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_where_the_system_has_no_mappings_left_rows_come_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, truth = make(tmp_path / "s")

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("stores.chunks.Mapping", refuses)
    assert np.array_equal(reader.rows([5, 0]), truth[[5, 0]])
    assert reader.mapping is None


def test_what_is_read_while_the_process_ends_is_still_mapped(tmp_path: Path) -> None:
    make(tmp_path / "s")
    code = (
        "import atexit, sys; kept = []; atexit.register(lambda: print(kept[0].sum()));"
        "from stores.readers import LayerReader; kept.append(LayerReader(sys.argv[1]).whole)"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], cwd=root, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
