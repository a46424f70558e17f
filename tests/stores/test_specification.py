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

    document = json.loads((root / "zarr.json").read_bytes())
    assert canonical(document) == (root / "zarr.json").read_bytes()
    plan = document["attributes"]["eddp"]
    sealed = plan["sealed"]
    expected = sealed.pop("crc32c")
    assert google_crc32c.value(canonical(document)) == expected
    assert {path: crc(root / path / "zarr.json") for path in sealed["metadata"]} == sealed["metadata"]
    groups = {str(p.parent.relative_to(root)) for p in root.rglob("zarr.json")} - {"."}
    assert {g for g in groups if not g.startswith("ledger/")} == set(sealed["metadata"])

    n, rows = plan["n_images"], plan["chunk_images"]
    records = []
    for k in range(-(-n // rows)):
        file = root / f"ledger/{k:08d}/zarr.json"
        record = json.loads(file.read_bytes())
        assert canonical(record) == file.read_bytes()
        records.append(record["attributes"])
        assert (records[k]["chunk"], records[k]["first"], records[k]["rows"]) == (k, k * rows, min(rows, n - k * rows))
        for path, entry in records[k]["arrays"].items():
            metadata = json.loads((root / path / "zarr.json").read_bytes())
            key = ".".join(["c", str(k), *["0"] * (len(metadata["shape"]) - 1)])
            assert crc(root / path / key) == entry["crc32c"]
            assert (root / path / key).stat().st_size == entry["bytes"]
            assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [rows, *metadata["shape"][1:]]
    lines = "\n".join(json.dumps(record, sort_keys=True) for record in records)
    assert sealed["ledger"] == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()

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
    fixture = Path(__file__).parents[1] / "fixtures/format-2/none.zarr"
    plan = json.loads((fixture / "zarr.json").read_bytes())["attributes"]["eddp"]
    record = json.loads((fixture / "ledger/00000000/zarr.json").read_bytes())["attributes"]
    for key in (*plan, *plan["sealed"], *plan["layers"]["late"], *record):
        assert key in text, key
    assert f"format {plan['format']}" in text
