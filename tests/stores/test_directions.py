import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from stores.directions import Directions, DirectionsError
from stores.errors import MismatchError, MissingPathError, StoreError, UsageError
from stores.tensors import write_tensors


def some(c: int = 5, i: int = 3, *, own: bool = True, **changes: object) -> Directions:
    g = np.random.default_rng(0)
    signals = g.normal(size=(c, i))
    values = {
        "filters": g.normal(size=(c, i)).astype(np.float32),
        "signals": (signals / np.linalg.norm(signals, axis=0)).astype(np.float32),
        "mean": g.normal(size=c).astype(np.float32),
        "thresholds": g.normal(size=i).astype(np.float32) if own else None,
        "method": "eddp",
        "layer": "features.18",
        "info": {"seed": 3, "store": {"path": "/data/caf\udce9"}, "config": {"steps": "paper"}},
    }
    return Directions(**{**values, **changes})


@pytest.mark.parametrize("thresholds", [True, False])
def test_all_comes_back(tmp_path: Path, thresholds: bool) -> None:
    made = some(own=thresholds, quantile=0.01)
    made.save(tmp_path / "a" / "d.safetensors")
    found = Directions.load(tmp_path / "a" / "d.safetensors")
    for name in ("filters", "signals", "mean", "thresholds"):
        left, right = getattr(made, name), getattr(found, name)
        assert (left is None and right is None) or (np.array_equal(left, right) and right.dtype == np.float32)
    assert (found.method, found.layer, found.quantile, found.info) == (made.method, made.layer, 0.01, made.info)
    assert (found.channels, found.count) == (5, 3)
    header = json.loads((tmp_path / "a" / "d.json").read_text(encoding="utf-8"))
    assert (header["channels"], header["directions"], header["seed"]) == (5, 3, 3)
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "a" / "d.safetensors").read_bytes()


def test_how_often_they_are_found_again_comes_back(tmp_path: Path) -> None:
    some(found_again=np.array([1, 0.375, 0.5], np.float32), info={"config": {"refits": 8}}).save(
        tmp_path / "d.safetensors"
    )
    found = Directions.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(found.found_again, [1, 0.375, 0.5])
    assert (found.refits, found.share_found_again) == (8, 0.6667)
    assert (some().found_again, some().refits, some().share_found_again) == (None, 0, None)


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    some().save(tmp_path / "d.safetensors")
    with safe_open(str(tmp_path / "d.safetensors"), framework="np") as file:
        assert set(file.keys()) == {"filters", "signals", "mean", "thresholds"}
        assert json.loads(file.metadata()["eddp"])["method"] == "eddp"


def test_what_made_them_cannot_replace_what_they_are(tmp_path: Path) -> None:
    some(info={"quantile": 9, "directions": 99, "layer": "x", "seed": 1}).save(tmp_path / "d.safetensors")
    found = Directions.load(tmp_path / "d.safetensors")
    assert (found.quantile, found.layer, found.info) == (0.005, "features.18", {"seed": 1})


def test_the_readable_copy_never_replaces_the_file_itself(tmp_path: Path) -> None:
    some().save(tmp_path / "d.json")
    assert Directions.load(tmp_path / "d.json").count == 3
    assert json.loads((tmp_path / "d.json.json").read_text(encoding="utf-8"))["directions"] == 3


def test_logits_and_signal_values_of_a_toy() -> None:
    toy = Directions(
        filters=np.array([[2.0, 0.0], [0.0, 1.0]], np.float32),
        signals=np.array([[1.0, 1.0], [0.0, 0.0]], np.float32),  # the second pair is orthogonal
        mean=np.array([1.0, 1.0], np.float32),
        thresholds=np.array([0.5, 0.25], np.float32),
        method="toy",
        layer="a",
    )
    x = np.array([[3.0, 4.0], [1.0, 1.0]], np.float16)
    assert toy.logits(x).tolist() == [[5.5, 3.75], [1.5, 0.75]]
    assert toy.logits(x).dtype == np.float32
    assert toy.signal_values(x).tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert toy.signal_values(x[None]).shape == (1, 2, 2)
    assert some(own=False).logits(np.ones((2, 4, 5))).shape == (2, 4, 3)


def test_signal_values_recover_what_was_put_in() -> None:
    made = some()
    alpha = np.array([1.5, -2.0, 0.25], np.float32)
    for k in range(3):
        x = made.mean + alpha[k] * made.signals[:, k]
        np.testing.assert_allclose(made.signal_values(x)[k], alpha[k], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"filters": np.zeros(5, np.float32)}, r"filters must be \(C, I\)"),
        ({"filters": np.zeros((5, 0), np.float32), "signals": np.zeros((5, 0), np.float32)}, "at least"),
        ({"signals": np.zeros((5, 2), np.float32)}, "do not agree"),
        ({"mean": np.zeros(4, np.float32)}, "do not agree"),
        ({"thresholds": np.zeros(5, np.float32)}, r"thresholds must be \(3,\)"),
        ({"mean": np.full(5, np.nan, np.float32)}, "mean holds NaN"),
        ({"thresholds": np.full(3, np.inf, np.float32)}, "thresholds holds NaN or infinite"),
    ],
)
def test_impossible_directions(tmp_path: Path, changes: dict, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        some(**changes)
    made = some()
    tensors = {name: getattr(made, name) for name in ("filters", "signals", "mean", "thresholds")}
    header = {"method": "eddp", "layer": "a", "quantile": 0.005}
    write_tensors(tmp_path / "d.safetensors", "eddp", {**tensors, **changes}, header)
    with pytest.raises(DirectionsError, match=rf"d\.safetensors' is damaged or no directions file .*{wanted}.*Fit it"):
        Directions.load(tmp_path / "d.safetensors")


class Explodes:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize(
    "kind", ["empty", "text", "truncated", "pickle", "huge header", "no metadata", "no json", "list"]
)
def test_hostile_files_end_in_one_message(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "d.safetensors"
    some().save(file)
    data = file.read_bytes()
    tensors = {"filters": np.eye(2, dtype=np.float32)}
    if kind == "no metadata":
        save_file(tensors, file)
    elif kind in ("no json", "list"):
        save_file(tensors, file, {"eddp": "hello" if kind == "no json" else "[]"})
    else:
        harmed = {
            "empty": b"",
            "text": b"these are no directions, but a poem",
            "truncated": data[:-5],
            "pickle": pickle.dumps(Explodes()),
            "huge header": b"\xff" * 8 + data[8:],
        }
        file.write_bytes(harmed[kind])
    with pytest.raises(DirectionsError, match="is damaged or no directions file") as caught:
        Directions.load(file)
    assert isinstance(caught.value, StoreError)
    assert capsys.readouterr().out == ""


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    some().save(file)
    data = file.read_bytes()
    for i in range(len(data)):
        file.write_bytes(data[:i] + bytes([data[i] ^ 0x11]) + data[i + 1 :])
        with pytest.raises(StoreError):
            Directions.load(file)


def test_a_newer_format(tmp_path: Path) -> None:
    made = some()
    tensors = {"filters": made.filters}
    save_file(tensors, tmp_path / "d.safetensors", {"eddp": json.dumps({"format": 2})})
    with pytest.raises(StoreError, match=r"has format 2; this eddp reads up to 1\. Update eddp"):
        Directions.load(tmp_path / "d.safetensors")


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(MissingPathError, match=r"There is no directions file at .*fit --store"):
            Directions.load(path)


def test_another_layer_is_refused() -> None:
    some().check_store("features.18", 5)
    for layer, channels in (("features.17", 5), ("features.18", 6)):
        with pytest.raises(MismatchError, match=r"fitted on layer 'features.18' \(5 channels\), not on"):
            some().check_store(layer, channels)
    assert issubclass(MismatchError, UsageError)
