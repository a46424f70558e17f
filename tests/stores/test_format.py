"""Stores of this format stay readable: small ones, stored as they were written."""

import hashlib
import json
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from kept import ALL, LAYERS, NAMES, OPTIONS, POSITIONS, VALID
from tiny import open_writer, write_store

from stores.errors import StoreError
from stores.format import FORMAT
from stores.readers import LayerReader
from stores.shuffle import shuffled
from stores.store import ActivationStore

SPECIFICATION = Path(__file__).parents[2] / "stores" / "FORMAT.md"
FIXTURE = Path(__file__).parents[1] / f"fixtures/format-{FORMAT}"


def check(path: Path) -> None:
    """The store holds what it was made from."""
    store = ActivationStore.open(path)
    assert store.verify() == []
    assert store.names == NAMES
    assert store.labels.tolist() == [0, 1, 2, 0, 1]
    assert store.valid.tolist() == VALID.tolist()
    assert np.array_equal(store.logits, np.arange(15, dtype=np.float32).reshape(5, 3))
    assert store.class_names == ["ant", "bee", "cat"]
    assert store.provenance == {"model": "by hand"}
    assert store.layers == OPTIONS["specs"]
    assert [entry["name"] for record in store.records.values() for entry in record.skipped] == ["b/broken.jpg"]
    for name, x in LAYERS.items():
        reader = LayerReader(store, name)
        good = x[VALID].astype(np.float16)
        assert np.array_equal(reader.images(reader.image_indices), good)
        assert np.array_equal(reader.rows(range(reader.n_rows)), good.reshape(-1, x.shape[2]))
        assert sorted(row for b in shuffled(reader) for row in b.x.tolist()) == sorted(
            good.reshape(-1, x.shape[2]).tolist()
        )
        whole = np.where(VALID[:, None, None], x, np.nan).astype(np.float16)
        assert np.array_equal(store.dask(name).compute(scheduler="synchronous"), whole, equal_nan=True)
        assert np.array_equal(
            zarr.open_array(path / "layers" / name / "activations", mode="r")[:], whole, equal_nan=True
        )
    assert np.array_equal(zarr.open_array(path / "layers/late/positions", mode="r")[:], POSITIONS)
    head = store.affine_head("block.1")
    assert head is not None
    assert np.array_equal(head[0], OPTIONS["heads"]["block.1"][0])


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_store_is_read(tmp_path: Path, codec: str) -> None:
    check(shutil.copytree(FIXTURE / f"{codec}.zarr", tmp_path / "s"))


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = shutil.copytree(FIXTURE / "none.zarr", tmp_path / "s")
    text = (path / "zarr.json").read_text()
    for number, remedy in ((1, "Extract it again"), (2, "Extract it again"), (FORMAT + 1, "Update eddp")):
        (path / "zarr.json").write_text(text.replace(f'"format": {FORMAT}', f'"format": {number}'))
        with pytest.raises(StoreError, match=f"has format {number}.*{remedy}"):
            ActivationStore.open(path)


def test_an_unfinished_store_is_resumed(tmp_path: Path) -> None:
    path = shutil.copytree(FIXTURE / "unfinished.zarr", tmp_path / "s")
    writer = open_writer(path, LAYERS, **OPTIONS)
    assert writer.missing() == [0, 2]
    writer.close()
    check(write_store(path, LAYERS, **ALL))


def test_what_is_written_now_is_to_the_byte_what_was_written_then(tmp_path: Path) -> None:
    """Whoever changes the format gives it another number, and keeps a store of the old one here."""
    write_store(tmp_path / "s", LAYERS, **ALL)
    kept = FIXTURE / "none.zarr"
    files = {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path / "s").as_posix() for p in (tmp_path / "s").rglob("*") if p.is_file()} == files
    for name in files:
        ours, theirs = (tmp_path / "s" / name).read_bytes(), (kept / name).read_bytes()
        assert ours == theirs, name


def crc(path: Path) -> int:
    return int(google_crc32c.value(path.read_bytes()))


def canonical(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_reader_made_from_the_specification(tmp_path: Path, compress: str) -> None:
    root = write_store(tmp_path / "s", LAYERS, compress=compress, **ALL)
    head, *lines = (root / "manifest.jsonl").read_bytes().removesuffix(b"\n").split(b"\n")
    header, records = json.loads(head), [json.loads(line) for line in lines]
    assert header["chunks"] == len(records)
    assert header["fingerprint"] == "sha256:" + hashlib.sha256(b"\n".join(lines)).hexdigest()
    assert header["root"] == crc(root / "zarr.json")
    document = json.loads((root / "zarr.json").read_bytes())
    plan, nodes = document["attributes"]["eddp"], document["consolidated_metadata"]["metadata"]
    groups = {str(p.parent.relative_to(root)) for p in root.rglob("zarr.json")} - {"."}
    assert groups == nodes.keys()
    for path, node in nodes.items():
        assert (root / path / "zarr.json").read_bytes() == canonical(node)
    n, rows = plan["n_images"], plan["chunk_images"]
    for k, record in enumerate(records):
        assert (record["chunk"], record["first"], record["rows"]) == (k, k * rows, min(rows, n - k * rows))
        for path, entry in record["arrays"].items():
            key = ".".join(["c", str(k), *["0"] * (len(nodes[path]["shape"]) - 1)])
            assert crc(root / path / key) == entry["crc32c"]
            assert (root / path / key).stat().st_size == entry["bytes"]
            assert nodes[path]["chunk_grid"]["configuration"]["chunk_shape"] == [rows, *nodes[path]["shape"][1:]]

    for name, x in LAYERS.items():
        found = zarr.open_array(root / "layers" / name / "activations", mode="r")[:]
        assert np.array_equal(found, np.where(VALID[:, None, None], x, np.nan).astype(np.float16), equal_nan=True)
        peaks = [np.abs(found[k * rows : (k + 1) * rows][VALID[k * rows : (k + 1) * rows]]).max() for k in range(3)]
        assert [record["max_abs"][name] for record in records] == pytest.approx(peaks)
    if compress == "none":  # as it is in memory
        late = np.fromfile(root / "layers/late/activations/c.2.0.0", "<f2").reshape(2, 2, 2)
        assert np.array_equal(late[0], LAYERS["late"][4])
        assert np.isnan(late[1]).all()


def test_the_specification_names_every_key() -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    plan = json.loads((FIXTURE / "none.zarr/zarr.json").read_bytes())["attributes"]["eddp"]
    record = json.loads((FIXTURE / "unfinished.zarr/commits/00000001.json").read_bytes())
    header = json.loads((FIXTURE / "none.zarr/manifest.jsonl").read_bytes().splitlines()[0])
    for key in (*plan, *header, *plan["layers"]["late"], *record):
        assert f"`{key}`" in text, key
    assert f"format {plan['format']}" in text
