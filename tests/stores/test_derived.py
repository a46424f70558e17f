"""Groups of derived arrays: what any Zarr reader sees, whole or absent, every flipped byte found."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stores.derived
from stores.derived import check_derived, is_unchecked, keep_cache, read_cache, read_derived, write_derived
from stores.errors import CorruptStoreError, StoreError

ARRAYS = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "zeros": np.zeros((3, 2), np.int64),  # nothing but Zarr's fill value
    "empty": np.zeros((4, 0), np.float64),
    "scalar": np.array(7, np.uint8),
    "flags": np.array([True, False]),
}
ATTRIBUTES = {"version": 1, "share": 0.1, "names": ["ü", "b\udcff"], "nothing": None}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[k].dtype == wanted[k].dtype and np.array_equal(found[k], wanted[k]) for k in wanted
    )


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "stats"
    write_derived(folder, ARRAYS, ATTRIBUTES)
    found = read_derived(folder)
    assert found is not None
    assert same(found[0], ARRAYS)
    assert found[1] == ATTRIBUTES
    found[0]["plain"][0] = 1  # one's own copy
    assert check_derived(folder) == []
    assert not is_unchecked(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["stats"]


def test_any_zarr_reader_sees_plain_arrays(tmp_path: Path) -> None:
    write_derived(tmp_path / "g", ARRAYS, ATTRIBUTES)
    group = zarr.open_group(tmp_path / "g", mode="r")
    assert same({name: np.asarray(group[name][...]) for name in ARRAYS}, ARRAYS)  # type: ignore[index]
    assert set(group.array_keys()) == set(ARRAYS)
    assert (tmp_path / "g/zeros/c/0/0").stat().st_size == 48
    listed = group.attrs["eddp"]["files"]  # type: ignore[call-overload, index]
    assert set(listed) == {p.relative_to(tmp_path / "g").as_posix() for p in files_of(tmp_path / "g")} - {"zarr.json"}


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(name) for name in ("int32", ">i8", "<f2", "float64", "bool", "uint16")]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_arrays_of_all_kinds_come_back(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("any") / "g"
    write_derived(folder, {"x": array.T}, {})
    found = read_derived(folder)
    assert found is not None
    np.testing.assert_array_equal(found[0]["x"], array.T)
    assert found[0]["x"].dtype == array.dtype.newbyteorder("=")


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    write_derived(folder, {"x": np.arange(3.0), "n": np.zeros(2, np.int64)}, {"key": {"store": "sha256:1f", "n": 3}})
    flips = 0
    for path in files_of(folder):
        data = path.read_bytes()
        for at in range(len(data)):
            for bits in (1 << at % 8, 0x20):
                path.write_bytes(data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :])
                (problem,) = check_derived(folder)
                assert f"'{path}'" in problem
                with pytest.raises(CorruptStoreError, match=path.name):
                    read_derived(folder)
                flips += 1
        path.write_bytes(data)
    assert flips > 2000
    assert check_derived(folder) == []


@pytest.mark.parametrize("harm", ["gone", "longer", "shorter", "empty", "a folder"])
def test_files_that_are_gone_or_of_another_size(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "g"
    write_derived(folder, ARRAYS, ATTRIBUTES)
    for path in files_of(folder):
        data = path.read_bytes()
        path.unlink()
        if harm == "a folder":
            path.mkdir()
        elif harm != "gone":
            path.write_bytes({"longer": data + b" ", "shorter": data[:-1], "empty": b""}[harm])
        (problem,) = check_derived(folder)
        assert f"'{path}'" in problem
        with pytest.raises(CorruptStoreError, match="Restore .* from a copy, or make it anew"):
            read_derived(folder)
        if harm == "a folder":
            path.rmdir()
        path.write_bytes(data)


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "{}", "null", '{"attributes": {"eddp": 3}}', '{"attributes": {"eddp": {"files": 3}}}']
)
def test_other_text_in_the_groups_metadata(tmp_path: Path, text: str) -> None:
    write_derived(tmp_path / "g", ARRAYS, {})
    (tmp_path / "g/zarr.json").write_text(text)
    assert not is_unchecked(tmp_path / "g")
    assert len(check_derived(tmp_path / "g")) == 1


def test_a_group_that_says_other_than_its_arrays_hold(tmp_path: Path) -> None:
    """Consistent in itself, but nothing that is written here: an error all the same."""
    write_derived(tmp_path / "g", {"x": np.arange(3)}, {})
    document = json.loads((tmp_path / "g/zarr.json").read_bytes())
    entry = document["attributes"]["eddp"]
    del entry["files"]["x/c/0"]
    del entry["crc32c"]
    entry["crc32c"] = stores.derived.checksum(memoryview(stores.derived.json_bytes(document)))
    (tmp_path / "g/zarr.json").write_bytes(stores.derived.json_bytes(document))
    with pytest.raises(CorruptStoreError, match="cannot be read .*x/c/0"):
        read_derived(tmp_path / "g")


def test_nothing_there(tmp_path: Path) -> None:
    assert read_derived(tmp_path / "g") is None
    assert check_derived(tmp_path / "g") == []
    assert not is_unchecked(tmp_path / "g")
    assert read_cache(tmp_path / "g", {}) is None


def test_a_group_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    write_derived(folder, ARRAYS, ATTRIBUTES)
    write_derived(folder, {"other": np.ones(2)}, {})
    found = read_derived(folder)
    assert found is not None
    assert same(found[0], {"other": np.ones(2)})
    assert not (folder / "plain").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    # also one of another kind: Zarr's own, with files of which nothing is listed
    zarr.open_group(folder, mode="w").create_array("foreign", data=np.ones(3))
    write_derived(folder, ARRAYS, ATTRIBUTES)
    assert check_derived(folder) == []
    assert not (folder / "foreign").exists()


def test_stopped_at_any_file_the_old_group_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "g"
    write_derived(folder, {"x": np.ones(2)}, {})
    real, left = stores.derived.write_atomically, 0

    def write(path: Path, data: Any) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        real(path, data)

    monkeypatch.setattr(stores.derived, "write_atomically", write)
    for stop in range(5):
        left = stop
        with pytest.raises(StoreError, match=f"'{folder}' could not be written: No space left on device"):
            write_derived(folder, {"x": np.zeros(2), "y": np.zeros(2)}, {})
        found = read_derived(folder)
        assert found is not None
        assert same(found[0], {"x": np.ones(2)})
        assert [path.name for path in tmp_path.iterdir()] == ["g"]
    left = 5
    write_derived(folder, {"x": np.zeros(2), "y": np.zeros(2)}, {})


def test_writers_of_the_same_group_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process puts its group there between any two steps of ours: one of them stays, and it is whole."""
    folder, other = tmp_path / "g", {"x": np.full(3, 2.0)}
    real, steps, at = Path.rename, 0, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal steps
        steps += 1
        if steps == at:
            monkeypatch.setattr(Path, "rename", real)
            write_derived(folder, other, {})
            monkeypatch.setattr(Path, "rename", rename)
        return real(self, target)

    for at in (1, 2, 3, 4):
        steps = 0
        monkeypatch.setattr(Path, "rename", rename)
        write_derived(folder, {"x": np.full(3, float(-at))}, {})
        monkeypatch.setattr(Path, "rename", real)
        found = read_derived(folder)
        assert found is not None
        assert same(found[0], {"x": np.full(3, float(-at))})
        assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_what_a_killed_writer_left_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    young, old, other = (
        tmp_path / f".{name}.{digits * 10}.partial" for name, digits in (("g", "1a"), ("g", "2b"), ("h", "3c"))
    )
    for folder in (young, old, other):
        (folder / "x").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (time.time() - 9999,) * 2)
    write_derived(tmp_path / "g", ARRAYS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, other.name, "g"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("mine")
    with pytest.raises(StoreError, match="'.*/g' could not be written: Not a directory"):
        write_derived(tmp_path / "g", ARRAYS, {})
    assert (tmp_path / "g").read_text() == "mine"


@pytest.mark.parametrize("attributes", [{}, {"key": "{}", "count": "3", "crc32c": 1}])
def test_groups_from_before_checksums_are_known_as_such(tmp_path: Path, attributes: dict[str, Any]) -> None:
    group = zarr.open_group(tmp_path / "g", mode="w")
    group.create_array("x", data=np.ones(3))
    group.attrs.update(attributes)
    assert is_unchecked(tmp_path / "g")
    assert check_derived(tmp_path / "g") == []
    assert read_cache(tmp_path / "g", {}) is None
    with pytest.raises(CorruptStoreError, match="it has no entry 'eddp'"):
        read_derived(tmp_path / "g")
    group.attrs["eddq"] = {}  # a flipped bit in the entry's name leads to no group of before
    assert not is_unchecked(tmp_path / "g")


def test_a_cache_is_used_for_its_key_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = {"store": "sha256:1", "version": 1}
    keep_cache(tmp_path / "g", key, {"x": np.ones(2)}, {"count": 3})
    found = read_cache(tmp_path / "g", dict(key))
    assert found is not None
    assert same(found[0], {"x": np.ones(2)})
    assert found[1]["count"] == 3
    assert read_cache(tmp_path / "g", {**key, "version": 2}) is None
    assert not caplog.text
    (tmp_path / "g/x/c/0").unlink()
    assert read_cache(tmp_path / "g", key) is None
    assert "computed anew" in caplog.text


def test_a_cache_that_cannot_be_kept_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "g").write_text("in the way")
    with caplog.at_level("INFO"):
        keep_cache(tmp_path / "g", {}, {}, {})
    assert "g' is not kept with the store" in caplog.text


def listing(folder: Path, path: str, entry: list[int]) -> None:
    """Make a group list one more file, consistently."""
    document = json.loads((folder / "zarr.json").read_bytes())
    attributes = document["attributes"]["eddp"]
    attributes["files"][path] = entry
    del attributes["crc32c"]
    attributes["crc32c"] = stores.derived.checksum(memoryview(stores.derived.json_bytes(document)))
    (folder / "zarr.json").write_bytes(stores.derived.json_bytes(document))


@pytest.mark.parametrize(
    "path",
    [
        "/dev/zero",
        "../victim",
        "x/../../victim",
        "./x/zarr.json",
        "x//zarr.json",
        "",
        ".",
        "x\\y",
        "x\0",
        "link",
        "pipe",
    ],
)
def test_no_file_but_the_groups_own_is_read(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "g"
    write_derived(folder, {"x": np.arange(3)}, {})
    (tmp_path / "victim").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(folder / "pipe")
    listing(folder, path, [stores.derived.checksum(b"secret"), 0 if path in ("/dev/zero", "pipe") else 6])
    real = Path.open

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        assert self.resolve().is_relative_to(folder.resolve())
        assert self.name != "pipe"
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    assert len(check_derived(folder)) == 1
    with pytest.raises(CorruptStoreError):
        read_derived(folder)
    assert read_cache(folder, {}) is None


def test_a_link_within_a_group_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    write_derived(folder, {"x": np.arange(3)}, {})
    (folder / "x/c/0").rename(folder / "elsewhere")
    (folder / "x/c/0").symlink_to(folder / "elsewhere")
    assert check_derived(folder) == []


@pytest.mark.parametrize("text", ["[" * 100_000, '{"attributes": {"eddp": {"files": {"x": [1e400, 2]}}}}'])
def test_documents_that_no_reader_bears(tmp_path: Path, text: str) -> None:
    write_derived(tmp_path / "g", {"x": np.arange(3)}, {})
    (tmp_path / "g/zarr.json").write_text(text)
    assert not is_unchecked(tmp_path / "g")
    assert len(check_derived(tmp_path / "g")) == 1
    assert read_cache(tmp_path / "g", {}) is None
