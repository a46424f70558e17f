import errno
import io
import json
import os
from pathlib import Path

import pytest

from stores.errors import StoreError
from stores.files import write_atomically, write_json


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
        opened = Path.open

        class Full(io.BytesIO):
            write = full

        monkeypatch.setattr(
            Path, "open", lambda self, *a, **k: Full() if self.suffix == ".partial" else opened(self, *a, **k)
        )
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match=r"a\.json' could not be written: No space left on device\. .*free some space"):
        write_json(file, {"new": 2})
    monkeypatch.undo()
    assert json.loads(file.read_bytes()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


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
    monkeypatch.setattr("stores.files.sync_folder", lambda folder: synced.append(folder))
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
