import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from tiny import edit_attributes, noise, reseal, write_store

from stores.errors import CorruptStoreError, MissingPathError, StoreError, UnknownNameError, UnsealedStoreError
from stores.store import ActivationStore, StoreBase

Make = Callable[..., Path]


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_all_comes_back_exactly(tiny_store: Make, n: int, dtype: str, compress: str) -> None:
    layers = {"features.1": noise(n), "late": noise(n, 5, 4, 1)}
    labels, logits = np.arange(n)[::-1] - 1, noise(n)[:, :, 0]
    path = tiny_store(layers, labels=labels, logits=logits, dtype=dtype, compress=compress, class_names=["a", "b", "c"])
    store = ActivationStore.open(path)
    assert (store.n_images, store.n_chunks, list(store.layers)) == (n, -(-n // 4), list(layers))
    assert np.array_equal(store.labels, labels)
    assert np.array_equal(store.logits, logits)
    assert store.valid.all()
    assert store.class_names == ["a", "b", "c"]
    assert store.provenance == {"model": "by hand"}
    assert store.verify() == []
    for name, x in layers.items():
        read = [np.asarray(store.array(f"layers/{name}/activations").read(k)) for k in range(store.n_chunks)]
        assert np.array_equal(np.concatenate(read), x.astype(dtype))


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_another_zarr_reader_sees_the_same(tiny_store: Make, compress: str) -> None:
    x = noise(9).astype(np.float16)
    head = (np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    path = tiny_store({"a.b": x}, dtype="float16", compress=compress, heads={"a.b": head})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        found = dict(group.members(max_depth=None))
    assert np.array_equal(found["layers/a.b/activations"][:], x)
    assert np.array_equal(found["layers/a.b/head_weight"][:], head[0])
    assert found["images/labels"][:].tolist() == [i % 3 for i in range(9)]
    assert bytes(found["images/names"][8]).rstrip(b"\0") == b"c0/image 8.jpg"
    assert np.array_equal(ActivationStore.open(path).dask("a.b").compute(scheduler="synchronous"), x)


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_missing_chunk_is_nan_to_others_and_refused_by_us(tiny_store: Make, compress: str) -> None:
    path = tiny_store({"a": noise(9)}, compress=compress)
    (path / "layers/a/activations/c.1.0.0").unlink()
    foreign = zarr.open_array(path / "layers" / "a" / "activations", mode="r")[:]
    assert np.isnan(foreign[4:8]).all()
    assert np.isfinite(foreign[[0, 3, 8]]).all()
    with pytest.raises(CorruptStoreError, match=r"damaged: chunk 1 of layers/a/activations: No such file"):
        ActivationStore.open(path)


def test_zeros_are_written_and_not_left_out(tiny_store: Make) -> None:
    path = tiny_store({"a": np.zeros((5, 2, 2), np.float32)}, labels=np.full(5, -1))
    assert len(list((path / "layers/a/activations").glob("c.*"))) == 2
    assert not zarr.open_array(path / "layers/a/activations", mode="r")[:].any()


NAMES = ["a.jpg", "", "dir/b c.jpg", "grün/猫.png", "caf\udce9.jpg", "x" * 300, "trailing ", "quote'\".png"]


def test_names_of_any_bytes(tiny_store: Make) -> None:
    store = ActivationStore.open(tiny_store({"a": noise(len(NAMES))}, names=NAMES, chunk_images=3))
    assert store.names == NAMES


def test_a_layer_by_name(tiny_store: Make) -> None:
    one = ActivationStore.open(tiny_store({"a": noise(2)}, name="one"))
    two = ActivationStore.open(tiny_store({"a": noise(2), "b": noise(2)}, name="two"))
    assert one.layer().name == "a"
    assert two.layer("b").name == "b"
    with pytest.raises(UnknownNameError, match=r"several layers \(a, b\): name one by --layer"):
        two.layer()
    with pytest.raises(UnknownNameError, match=r"no layer 'c'\. It holds: a, b"):
        two.layer("c")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_head_is_refused(tiny_store: Make, harm: str) -> None:
    path = tiny_store({"a": noise(4)}, heads={"a": (np.ones((3, 2), np.float32), np.zeros(3, np.float32))})
    store = ActivationStore.open(path)
    chunk = path / "layers/a/head_weight/c.0.0"
    if harm == "flip":
        chunk.write_bytes(b"\x01" + chunk.read_bytes()[1:])
    elif harm == "truncate":
        chunk.write_bytes(chunk.read_bytes()[:-2])
    else:
        chunk.unlink()
    with pytest.raises(CorruptStoreError, match="head"):
        store.affine_head("a")
    assert any("head" in problem for problem in store.verify())


def test_the_fingerprint_is_the_contents(tiny_store: Make) -> None:
    x = noise(6)
    same = [ActivationStore.open(tiny_store({"a": x}, name=name)).fingerprint for name in ("one", "two")]
    x[5, 2, 1] += 1
    other = ActivationStore.open(tiny_store({"a": x}, name="three")).fingerprint
    assert same[0] == same[1] != other


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"There is no store at '.*x'\. Make one with: extract"):
        ActivationStore.open(tmp_path / "x")
    with pytest.raises(MissingPathError, match=r"holds no zarr\.json"):
        ActivationStore.open(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(MissingPathError, match=r"holds no zarr\.json"):
        ActivationStore.open(tmp_path / "file")


def test_an_unfinished_store_says_how_much_is_missing(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"a": noise(9)}, chunks=[])
    with pytest.raises(
        UnsealedStoreError, match=r"0 of 3 chunks are committed, 0-2 are missing\. Run the same extract command again"
    ):
        ActivationStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"attributes": {}}',
        '{"attributes": {"eddp": 3}}',
        '{"attributes": {"eddp": {}}}',
        "\udcff",
    ],
)
def test_a_damaged_or_foreign_root(tiny_store: Make, text: str) -> None:
    path = tiny_store({"a": noise(4)})
    (path / "zarr.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptStoreError, match="damaged or belongs to another program's Zarr store"):
        ActivationStore.open(path)


def test_the_first_problems_are_listed_and_the_rest_counted(tiny_store: Make) -> None:
    path = tiny_store({"a": noise(28)})
    for file in (path / "layers/a/activations").glob("c.*"):
        file.write_bytes(b"short")
    with pytest.raises(CorruptStoreError, match=r"chunk 0 .* 5 bytes instead of 96; .*; and 2 more\. .*eddp verify"):
        ActivationStore.open(path)


def test_dask_sees_every_chunk_as_it_is(tiny_store: Make) -> None:
    x = noise(10).astype(np.float16)
    lazy = ActivationStore.open(tiny_store({"a": x}, dtype="float16")).dask()
    assert (lazy.shape, lazy.dtype, lazy.chunks) == (x.shape, np.float32, ((4, 4, 2), (3,), (2,)))
    assert np.array_equal(lazy[5:9, 1].compute(scheduler="threads"), x[5:9, 1])
    np.testing.assert_allclose(lazy.mean((0, 1)).compute(scheduler="processes"), x.mean((0, 1), np.float64), rtol=1e-6)


def test_dask_means_of_more_values_than_float16_counts(tiny_store: Make) -> None:
    x = np.full((300, 240, 1), 0.5, np.float16)  # 72 000 values a channel
    lazy = ActivationStore.open(tiny_store({"a": x}, dtype="float16")).dask()
    assert lazy.mean((0, 1)).compute(scheduler="synchronous").tolist() == [0.5]


def test_chosen_rows_equal_the_complete_column(tiny_store: Callable[..., Path]) -> None:
    store = ActivationStore.open(tiny_store({"a": np.zeros((11, 2, 3), np.float32)}))
    wanted = np.array([10, 0, 4, 4, 7])
    for name in ("logits", "labels", "names"):
        np.testing.assert_array_equal(store.rows(name, wanted), store.column(name)[wanted])
    assert store.rows("logits", np.array([], np.int64)).shape == (0, store.attributes["n_classes"])


@pytest.mark.parametrize(
    "name", ["../../../victim", "..", ".", "", "a/b", "a\\b", "a\0", "zarr.json", "b", 3, "x" * 300]
)
@pytest.mark.parametrize("both", [False, True])
def test_a_layer_is_nowhere_but_in_its_store(tiny_store: Make, name: object, both: bool) -> None:
    """Neither by its key in the plan nor by what its entry calls it."""
    path = tiny_store({"a": noise(4)})
    if both and name == "b":
        return

    def rename(plan: dict) -> None:
        plan["layers"]["a"]["name"] = name
        if both:
            plan["layers"][str(name)] = plan["layers"].pop("a")

    edit_attributes(path, rename)
    with pytest.raises(CorruptStoreError, match="layer"):
        StoreBase(path, json.loads((path / "zarr.json").read_bytes())["attributes"]["eddp"])
    with pytest.raises(CorruptStoreError, match="layer"):
        ActivationStore.open(path)


def test_dask_after_the_store_was_replaced(tiny_store: Make) -> None:
    x = noise(8, 4, 6)
    path = tiny_store({"a": x})
    old = ActivationStore.open(path).dask()
    assert np.array_equal(old.compute(scheduler="synchronous"), x)
    y = (x + 0.5).reshape(8, 6, 4)
    write_store(path, {"a": y}, overwrite=True)
    assert np.array_equal(ActivationStore.open(path).dask().compute(scheduler="synchronous"), y)
    with pytest.raises(CorruptStoreError, match="was replaced after it was opened"):
        old.compute(scheduler="synchronous")
    shutil.rmtree(path)
    with pytest.raises(CorruptStoreError, match="cannot be read any more"):
        old.compute(scheduler="synchronous")


def test_dask_from_another_folder(tiny_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(4)
    tiny_store({"a": x}, name="s.zarr")
    monkeypatch.chdir(tmp_path)
    lazy = ActivationStore.open("s.zarr").dask()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert np.array_equal(lazy.compute(scheduler="synchronous"), x)


def test_an_unfinished_store_of_very_many_chunks(tmp_path: Path) -> None:
    """What is missing is said without counting it one by one."""
    write_store(tmp_path / "s", {"a": noise(9)}, chunks=[1])
    edit_attributes(tmp_path / "s", lambda plan: plan.update(n_images=4 * 10**6))
    with pytest.raises(UnsealedStoreError, match="1 of 1000000 chunks are committed, 0, 2-999999 are missing"):
        ActivationStore.open(tmp_path / "s")
    edit_attributes(tmp_path / "s", lambda plan: plan.update(n_images=10**12))
    with pytest.raises(CorruptStoreError, match="more than 1000000 chunks"):
        ActivationStore.open(tmp_path / "s")


def test_a_pipe_in_a_stores_place_is_not_waited_for(tiny_store: Make) -> None:
    for name in ("zarr.json", "manifest.jsonl", "layers/a/activations/c.0.0.0"):
        path = tiny_store({"a": noise(4)}, name=name.replace("/", "-"))
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(StoreError):
            ActivationStore.open(path)


def test_opening_reads_two_files_however_many_chunks_there_are(
    tiny_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tiny_store({"a": noise(50)}, chunk_images=1), []
    real = os.open
    monkeypatch.setattr(os, "open", lambda file, *more: (opened.append(Path(file).name), real(file, *more))[1])
    ActivationStore.open(path)
    assert opened == ["zarr.json", "manifest.jsonl"]


@pytest.mark.parametrize("change", [{"chunk": 2}, {"first": 3}, {"rows": 3}, {"arrays": {}}, {"max_abs": {"b": 1.0}}])
def test_a_manifest_of_another_store_is_refused(tiny_store: Make, change: dict) -> None:
    path = tiny_store({"a": noise(6)})
    head, one, two = (path / "manifest.jsonl").read_bytes().splitlines()
    changed = json.dumps({**json.loads(two), **change}).encode()
    (path / "manifest.jsonl").write_bytes(b"\n".join([head, one, changed, b""]))
    with pytest.raises(CorruptStoreError, match="manifest .* changed"):
        ActivationStore.open(path)
    reseal(path)
    with pytest.raises(CorruptStoreError, match="is damaged: chunk"):
        ActivationStore.open(path)
