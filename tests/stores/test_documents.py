"""A store of which any one value is something else: opened, verified, inspected, read and resumed, or refused with a message."""

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
from tiny import contents, open_writer, reseal, write_store

from pipeline.commands.inspect import _check
from pipeline.inspection import Inspection
from stores.documents import read_small
from stores.errors import EDDPError, UsageError
from stores.format import check_name, parse_attributes, read_attributes
from stores.progress import silent
from stores.readers import LayerReader
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
    write_store(folder / "open", X, heads=HEAD, provenance=MADE, chunks=[0])
    return folder


def places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value of a document, from the outermost in."""
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


def use(path: Path) -> None:
    """All that can be done with a store, each of which works or is refused in words."""

    def inspect() -> None:
        found = Inspection(path)
        json.dumps(found.facts())
        for name in found.store.layers:
            found.values(name, images=4)

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
    path = work / kind
    if not path.exists():
        shutil.copytree(clean / kind, path)
    sound = contents(path)
    lines = (path / file).read_bytes().split(b"\n") if file == "manifest.jsonl" else [(path / file).read_bytes()]
    document = json.loads(lines[-2 if len(lines) > 1 else 0])
    put(document, place, copy.deepcopy(value))
    lines[-2 if len(lines) > 1 else 0] = json.dumps(document).encode()
    (path / file).write_bytes(b"\n".join(lines))
    reseal(path)
    try:
        use(path)
    except Exception as error:
        raise AssertionError(f"{kind} {file} {place} = {value!r:.30}: {type(error).__name__}: {error}") from error
    for name in {file, "manifest.jsonl"} & sound.keys():
        (path / name).write_bytes(sound[name])
    if contents(path) != sound:  # it was resumed
        shutil.rmtree(path)


FILES = [
    ("sealed", "zarr.json"),
    ("sealed", "manifest.jsonl"),
    ("open", "zarr.json"),
    ("open", "commits/00000000.json"),
]


def document_of(path: Path) -> Any:
    lines = path.read_bytes().split(b"\n")
    return json.loads(lines[1] if path.name == "manifest.jsonl" else b"\n".join(lines))


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_each_value_as_something_else(clean: Path, tmp_path: Path, kind: str, file: str) -> None:
    """Every value by a few of the list, another few for each; the next test takes any."""
    for k, place in enumerate(p for p in places(document_of(clean / kind / file)) if "metadata" not in p):
        for value in NASTY[k % 7 :: 7]:
            attack(clean, tmp_path, kind, file, place, value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_as_anything_else(clean: Path, tmp_path: Path, data: st.DataObject) -> None:
    kind, file = data.draw(st.sampled_from(FILES))
    place = data.draw(st.sampled_from(list(places(document_of(clean / kind / file)))))
    value = data.draw(
        st.sampled_from(NASTY) | st.recursive(st.integers() | st.text() | st.floats(), st.lists, max_leaves=4)
    )
    attack(clean, tmp_path, kind, file, place, value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"attributes":' * 50_000, "1" * 10_000, '{"attributes": {"eddp": 1e400}}', "null", ""]
)
@pytest.mark.parametrize(("kind", "file"), [*FILES, ("open", "layers/a/zarr.json"), ("sealed", "eddp.lock")])
def test_documents_that_no_reader_bears(clean: Path, tmp_path: Path, kind: str, file: str, text: str) -> None:
    shutil.copytree(clean / kind, tmp_path / "s")
    (tmp_path / "s" / file).write_text(text)
    use(tmp_path / "s")


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("missing required field `dtype`", lambda p: p.pop("dtype")),
    ("$.n_images", lambda p: p.update(n_images=True)),
    ("$.n_images", lambda p: p.update(n_images=2**41)),
    ("more than 1000000 chunks", lambda p: p.update(n_images=2**40)),
    ("are too many", lambda p: p.update(n_images=2**40, chunk_images=2**40, n_classes=9)),
    ("'int8' - at `$.dtype`", lambda p: p.update(dtype="int8")),
    ("'\\x1b[2J' - at `$.dtype`", lambda p: p.update(dtype="\x1b[2J")),
    ("$.compress", lambda p: p.update(compress=[])),
    ("$.layers", lambda p: p.update(layers={})),
    ("$.layers[...].channels", lambda p: p["layers"]["a"].update(channels=-1)),
    ("layer 'a': its name is 'b'", lambda p: p["layers"]["a"].update(name="b")),
    ("5 of 4 positions", lambda p: p["layers"]["a"].update(stored_positions=5)),
    ("are too many", lambda p: p["layers"]["a"].update(channels=2**30)),
    ("$.layers[...].grid", lambda p: p["layers"]["a"].update(grid=[2, 0])),
    ("$.layers[...].prefix", lambda p: p["layers"]["a"].update(prefix=-1)),
    ("heads: each must be of a layer", lambda p: p.update(heads={"b": 1})),
    ("$.class_names[1]", lambda p: p.update(class_names=["a", 1])),
    ("$.provenance.dataset", lambda p: p.update(provenance={"dataset": None})),
    ("$.provenance.seed", lambda p: p.update(provenance={"seed": "x"})),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "change"), CHANGES)
def test_the_entry_that_is_wrong_is_named(clean: Path, wanted: str, change: Callable[[dict[str, Any]], Any]) -> None:
    found = dict(read_attributes(clean / "sealed"))
    change(found)
    with pytest.raises(ValueError) as caught:
        parse_attributes(found)
    assert wanted in str(caught.value)


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
    with pytest.raises(OSError, match="no regular file"):
        read_small(tmp_path)
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="too many for a document"):
        read_small(tmp_path / "f")
