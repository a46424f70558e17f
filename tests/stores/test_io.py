import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from stores.errors import StoreError
from stores.io import Together, write_atomically, write_json


def test_writes_into_folders_that_are_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "c.bin"
    write_atomically(file, b"one")
    write_atomically(file, memoryview(b"two"))
    assert file.read_bytes() == b"two"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        monkeypatch.setattr(os, "write", full)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match=r"a\.json' could not be written: No space left on device\. .*free some space"):
        write_json(file, {"new": 2})
    monkeypatch.undo()
    assert json.loads(file.read_bytes()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_system_that_takes_little_at_a_time_and_one_that_loses_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    write_atomically(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"

    def lies(handle: int, data: memoryview) -> int:
        write(handle, data[:3])
        return len(data)

    monkeypatch.setattr(os, "write", lies)
    with pytest.raises(StoreError, match="only 3 of 10 bytes arrived on the disk"):
        write_atomically(tmp_path / "b", b"0123456789")
    monkeypatch.setattr(os, "write", lambda handle, data: 0)
    with pytest.raises(StoreError, match="takes no more bytes"):
        write_atomically(tmp_path / "b", b"0123456789")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("threads", [0, 2])
def test_files_together_are_there_together_or_not_at_all(tmp_path: Path, threads: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        executor = pool if threads else None
        with Together(executor) as files:
            for name in "abc":
                files.add(tmp_path / name / "x", name.encode())
            assert not list(tmp_path.glob("*/x"))
            files.publish()
        assert [file.read_text() for file in sorted(tmp_path.glob("*/x"))] == ["a", "b", "c"]
        with suppress(RuntimeError), Together(executor) as files:
            files.add(tmp_path / "a" / "x", b"new")
            raise RuntimeError
        assert (tmp_path / "a" / "x").read_text() == "a"
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 3


def test_a_failure_in_the_background_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("stores.io.sync", full)
    with ThreadPoolExecutor(1) as pool, Together(pool) as files:
        files.add(tmp_path / "a", b"x")
        with pytest.raises(StoreError, match="'.*a' could not be written: Input/output"):
            files.publish()
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"x")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(StoreError, match="could not be written"):
        write_atomically(tmp_path / "a" / "b", b"x")
    assert (tmp_path / "a").read_text() == "a file"


def test_folders_are_synced_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("stores.io.sync_folder", lambda folder: synced.append(folder))
    write_atomically(tmp_path / "c" / "0" / "0", b"x")
    assert set(synced) == {tmp_path, tmp_path / "c", tmp_path / "c" / "0"}
    synced.clear()
    write_atomically(tmp_path / "c" / "0" / "0", b"y")
    assert synced == [tmp_path / "c" / "0"]


@pytest.mark.parametrize("text", ["plain", "grün 猫", "caf\udce9.jpg", 'quote " and \\', "\x7f\n"])
def test_any_file_name_comes_back_from_json(tmp_path: Path, text: str) -> None:
    write_json(tmp_path / "a.json", {"name": text})
    data = (tmp_path / "a.json").read_bytes()
    assert json.loads(data.decode("utf-8")) == {"name": text}  # valid UTF-8, whatever the name's bytes
    if text.startswith("gr"):
        assert text.encode() in data
