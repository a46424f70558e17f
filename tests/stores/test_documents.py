"""A store of which any one value is something else: opened, verified, inspected, read and gone on with, or refused in words."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import fill, open_writer, write_store

from pipeline.commands.inspect import _check
from pipeline.inspection import Inspection
from stores.documents import plan_problem, read_small, record_problem
from stores.errors import EDDPError, UsageError
from stores.io import checksum, json_bytes
from stores.layers import check_name
from stores.progress import silent
from stores.readers import LayerReader
from stores.seal import seal_document
from stores.store import ActivationStore

X = {"a": np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)}
HEAD = {"a": (np.ones((3, 2), np.float32), np.ones(3, np.float32))}
MADE = {"model": "by hand", "weights": "none", "seed": 1, "batch_size": 2, "dataset": {"path": "x", "digest": "y"}}
NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 7, 10**12, 10**30, 1e400, -1e400, float("nan"), 0.5, "", "x", "../../x", "\ud800",
    [], [1], [[1]], [1, "x"], {}, {"a": 1}, {"a": {"a": []}}, {"x": None}, [None] * 2, "x" * 300, "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store, and one that is unfinished."""
    folder = tmp_path_factory.mktemp("validate")
    write_store(folder / "sealed", X, heads=HEAD, provenance=MADE)
    writer = open_writer(folder / "open", X, heads=HEAD, provenance=MADE)
    fill(writer, X, chunks=[0])
    writer.close()
    return folder


def places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a document lies, from the outermost in."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        document = document[key]
    document[place[-1]] = value


def reseal(path: Path) -> None:
    """A seal over whatever is there, as an attacker would make it."""
    import hashlib

    document = json.loads((path / "zarr.json").read_bytes())
    sealed = document["attributes"]["eddp"].pop("sealed")
    records = [json.loads(file.read_bytes())["attributes"] for file in sorted((path / "ledger").glob("*/zarr.json"))]
    lines = "\n".join(json.dumps(record, sort_keys=True) for record in records)
    names = sealed["metadata"]
    found = {
        "ledger": "sha256:" + hashlib.sha256(lines.encode()).hexdigest(),
        "metadata": {name: checksum((path / name / "zarr.json").read_bytes()) for name in names},
    }
    (path / "zarr.json").write_bytes(json_bytes(seal_document(document, found)))


def use(path: Path) -> None:
    """All that can be done with a store, each of which works or is refused in words."""

    def inspect() -> None:
        found = Inspection(path)
        json.dumps(found.facts())
        for name in found.store.layers:
            found.values(name)

    def read() -> None:
        store = ActivationStore.open(path)
        for name in store.layers:
            reader = LayerReader(store, name)
            assert len(list(reader.blocks())) == 2
            reader.rows([0, reader.n_rows - 1])
        assert len(store.names) == 6
        store.affine_head("a")
        assert store.class_names is None or len(store.class_names) >= 0

    def resume() -> None:
        writer = open_writer(path, X, heads=HEAD, provenance=MADE)
        try:
            writer.missing()
        finally:
            writer.close()

    for step in (lambda: ActivationStore.open(path), lambda: _check(path, silent), inspect, read, resume):
        try:
            step()
        except EDDPError as error:
            assert str(error).strip()  # noqa: PT017


def attack(clean: Path, work: Path, kind: str, file: str, place: tuple[Any, ...], value: Any) -> None:
    path = work / "s"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(clean / kind, path)
    document = json.loads((path / file).read_bytes())
    put(document, place, copy.deepcopy(value))
    (path / file).write_bytes(json_bytes(document))
    if kind == "sealed" and "sealed" not in place and place[:2] != ("attributes",) + ("eddp",) * (len(place) < 3):
        try:
            reseal(path)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # nothing that could be sealed
    try:
        use(path)
    except Exception as error:
        raise AssertionError(f"{kind} {file} {place} = {value!r:.30}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("kind", ["sealed", "open"])
@pytest.mark.parametrize("file", ["zarr.json", "ledger/00000000/zarr.json"])
def test_each_value_as_something_else(clean: Path, tmp_path: Path, kind: str, file: str) -> None:
    """Every value by a few of the list, another few for each; the next test takes any."""
    document = json.loads((clean / kind / file).read_bytes())
    for k, place in enumerate(places(document)):
        for value in NASTY[k % 4 :: 4]:
            attack(clean, tmp_path, kind, file, place, value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_as_anything_else(clean: Path, tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["sealed", "open"]))
    file = data.draw(
        st.sampled_from(
            ["zarr.json", "ledger/00000000/zarr.json", "layers/a/activations/zarr.json", "images/names/zarr.json"]
        )
    )
    document = json.loads((clean / kind / file).read_bytes())
    place = data.draw(st.sampled_from(list(places(document))))
    value = data.draw(
        st.sampled_from(NASTY) | st.recursive(st.integers() | st.text() | st.floats(), st.lists, max_leaves=4)
    )
    attack(clean, tmp_path, kind, file, place, value)


@pytest.mark.parametrize("kind", ["sealed", "open"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"attributes":' * 50_000, "1" * 10_000, '{"attributes": {"eddp": 1e400}}', "null", ""]
)
@pytest.mark.parametrize(
    "file",
    [
        "zarr.json",
        "ledger/00000000/zarr.json",
        "layers/a/activations/zarr.json",
        "ledger/zarr.json",
        "layers/a/zarr.json",
    ],
)
def test_documents_that_no_reader_bears(clean: Path, tmp_path: Path, kind: str, file: str, text: str) -> None:
    shutil.copytree(clean / kind, tmp_path / "s")
    (tmp_path / "s" / file).write_text(text)
    use(tmp_path / "s")


def plan() -> dict[str, Any]:
    layer = {"name": "a", "grid": [2, 2], "channels": 2, "prefix": 0, "stored_positions": None, "layout": "nchw"}
    return {
        "format": 2, "n_images": 6, "n_classes": 3, "chunk_images": 4, "dtype": "float16", "compress": "none",
        "layers": {"a": layer}, "class_names": None, "heads": {"a": 5}, "provenance": {}, "files": {},
    }  # fmt: skip


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("it has no entry dtype, heads", lambda p: [p.pop("dtype"), p.pop("heads")]),
    ("n_images must be a whole number", lambda p: p.update(n_images=True)),
    ("n_images must be a whole number", lambda p: p.update(n_images=2**41)),
    ("more than 100000000 chunks", lambda p: p.update(n_images=2**40)),
    ("is too large", lambda p: p.update(n_images=2**40, chunk_images=2**40, n_classes=9)),
    ("dtype must be float16 or float32, it is 'int8'", lambda p: p.update(dtype="int8")),
    ("compress must be none or zstd, it is a list of 0", lambda p: p.update(compress=[])),
    ("layers must name at least one", lambda p: p.update(layers={})),
    ("channels must be a positive number, it is -1", lambda p: p["layers"]["a"].update(channels=-1)),
    ("it calls itself 'b'", lambda p: p["layers"]["a"].update(name="b")),
    ("its entries must be", lambda p: p["layers"]["a"].update(more=1)),
    ("stored_positions must be null or a number from 1 to 4", lambda p: p["layers"]["a"].update(stored_positions=5)),
    ("are too many", lambda p: p["layers"]["a"].update(channels=2**30)),
    ("grid must be two positive numbers", lambda p: p["layers"]["a"].update(grid=[2, 0])),
    ("prefix must be", lambda p: p["layers"]["a"].update(prefix=-1)),
    ("heads must map layers", lambda p: p.update(heads={"b": 1})),
    ("class_names must be", lambda p: p.update(class_names=["a", 1])),
    ("provenance.dataset must be an object, it is null", lambda p: p.update(provenance={"dataset": None})),
    ("files must map paths", lambda p: p.update(files={"../x": 1})),
    ("files must map paths", lambda p: p.update(files={"x": "1"})),
    ("provenance.seed must be", lambda p: p.update(provenance={"seed": "x"})),
    ("sealed must hold the ledger's digest", lambda p: p.update(sealed={})),
    ("sealed.metadata must map", lambda p: p.update(sealed={"ledger": "x", "crc32c": 1})),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "change"), CHANGES)
def test_a_plan_is_told_what_is_wrong_with_it(wanted: str, change: Callable[[dict[str, Any]], Any]) -> None:
    found = plan()
    assert plan_problem(found) is None
    change(found)
    problem = plan_problem(found)
    assert problem is not None
    assert wanted in problem


def test_a_record_is_told_what_is_wrong_with_it() -> None:
    values = {
        "chunk": 0, "first": 0, "rows": 4, "arrays": {"x": {"crc32c": 1, "bytes": 2}}, "max_abs": {"a": 1.5},
        "nonfinite": {"a": 0}, "skipped": [{"row": 1, "name": "x", "reason": "bad"}],
    }  # fmt: skip
    assert record_problem(values) is None
    for key in values:
        for wrong in (None, True, -1, "x", [1], {"a": "x"}):
            problem = record_problem({**values, key: wrong})
            assert problem is not None
            assert key in problem
    for entry in (
        {},
        {"crc32c": 1},
        {"crc32c": 2**32, "bytes": 1},
        {"crc32c": 1, "bytes": 0},
        {"crc32c": 1, "bytes": 1.5},
    ):
        assert record_problem({**values, "arrays": {"x": entry}})


@pytest.mark.parametrize("name", ["features.18", "a b", "grün", ".hidden", "x" * 255])
def test_names_of_layers(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b", "zarr.json", "ü" * 128, "\ud800", None, 3]
)
def test_names_that_no_layer_can_have(name: object) -> None:
    with pytest.raises(UsageError, match="A layer's name must"):
        check_name(name)


def test_only_small_regular_files_are_read_as_documents(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"text")
    assert read_small(tmp_path / "f") == b"text"
    with pytest.raises(OSError, match="no regular file"):
        read_small(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read_small(tmp_path)
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="too many for a document"):
        read_small(tmp_path / "f")
