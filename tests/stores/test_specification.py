"""FORMAT.md is enough: a reader written from it alone, with nothing of ours, finds a store sound and reads it."""

import hashlib
import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from kept import CONTENT, LAYERS, OPTIONS, VALID
from tiny import fill, open_writer

SPECIFICATION = Path(__file__).parents[2] / "stores" / "FORMAT.md"


def crc(path: Path) -> int:
    return int(google_crc32c.value(path.read_bytes()))


def canonical(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_reader_made_from_the_specification(tmp_path: Path, compress: str) -> None:
    root = tmp_path / "s"
    writer = open_writer(root, LAYERS, compress=compress, **OPTIONS)
    fill(writer, LAYERS, **CONTENT)
    writer.seal()
    writer.close()

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
    if compress == "none":  # as it lies in memory
        late = np.fromfile(root / "layers/late/activations/c.2.0.0", "<f2").reshape(2, 2, 2)
        assert np.array_equal(late[0], LAYERS["late"][4])
        assert np.isnan(late[1]).all()


def test_the_specification_names_every_key() -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    fixture = Path(__file__).parents[1] / "fixtures/format-3"
    plan = json.loads((fixture / "none.zarr/zarr.json").read_bytes())["attributes"]["eddp"]
    record = json.loads((fixture / "unfinished.zarr/commits/00000001.json").read_bytes())
    header = json.loads((fixture / "none.zarr/manifest.jsonl").read_bytes().splitlines()[0])
    for key in (*plan, *header, *plan["layers"]["late"], *record):
        assert f"`{key}`" in text, key
    assert f"format {plan['format']}" in text
