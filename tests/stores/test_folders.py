"""A folder that is whole or as it was: replaced by the next run, left by an interrupted one, put back after a killed one."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from stores.errors import StoreError, StoreExistsError, UsageError
from stores.folders import MANIFEST, Ours, check_replaceable, folder_problems, replacing
from stores.io import checksum, json_bytes

OURS = Ours("report.json", "eddp report", "a report")


def fill(folder: Path, text: str) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "page.html").write_text(text)
    (folder / OURS.file).write_text(json.dumps({"made_by": OURS.made_by}))


def test_a_report_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    for text in ("one", "two"):
        with replacing(out, OURS) as folder:
            fill(folder, text)
            assert folder.parent == out.parent
        assert (out / "d" / "page.html").read_text() == text
    assert [p.name for p in out.parent.iterdir()] == ["report"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("no")])
def test_an_interrupted_report_leaves_the_old_one(tmp_path: Path, error: Any) -> None:
    out = tmp_path / "report"
    with replacing(out, OURS) as folder:
        fill(folder, "old")

    def stopped() -> None:
        with replacing(out, OURS) as folder:
            (folder / "half.html").write_text("half")
            raise error

    with pytest.raises(type(error)):
        stopped()
    assert (out / "d" / "page.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_rename_that_fails_gives_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    with replacing(out, OURS) as folder:
        fill(folder, "old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StoreError, match="No space left"), replacing(out, OURS) as folder:
        fill(folder, "new")
    assert (out / "d" / "page.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_a_run_still_fills_is_left_and_one_of_a_killed_run_is_not(tmp_path: Path) -> None:
    out, long_ago = tmp_path / "report", time.time() - 3 * 86400
    for name in ("a" * 20, "b" * 20):
        (tmp_path / f".report.{name}.partial" / "t").mkdir(parents=True)
        for part in (f".report.{name}.partial/t", f".report.{name}.partial"):
            os.utime(tmp_path / part, (long_ago, long_ago))
    (tmp_path / f".report.{'a' * 20}.partial" / "t" / "new.webp").write_bytes(b"x")
    os.utime(tmp_path / f".report.{'a' * 20}.partial" / "t", (long_ago, long_ago))
    with replacing(out, OURS) as folder:
        fill(folder, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".report.{'a' * 20}.partial", "report"]


def test_what_a_run_killed_between_its_renames_left_is_put_back(tmp_path: Path) -> None:
    out = tmp_path / "report"
    with replacing(out, OURS) as folder:
        fill(folder, "old")
    out.rename(tmp_path / ".report.12345678901234567890.old")
    (tmp_path / ".report.09876543210987654321.old").mkdir()  # somebody else's

    def stopped() -> None:
        with replacing(out, OURS):
            assert (out / "d" / "page.html").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (out / "d" / "page.html").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".report.09876543210987654321.old", "report"]


def test_an_error_of_reading_is_not_reported_as_one_of_writing(tmp_path: Path) -> None:
    def read(where: Path, number: int = errno.ENOENT) -> None:
        with replacing(tmp_path / "report", OURS) as folder:
            raise OSError(number, os.strerror(number), str(where if where.is_absolute() else folder / where))

    with pytest.raises(FileNotFoundError) as found:
        read(tmp_path / "image.jpg")
    assert found.value.filename == str(tmp_path / "image.jpg")
    with pytest.raises(StoreError, match="could not be written"):
        read(Path("t/1.webp"))
    with pytest.raises(StoreError, match="could not be written: No space"):
        read(tmp_path / "elsewhere", errno.ENOSPC)
    assert not list(tmp_path.iterdir())


def test_a_link_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StoreExistsError, match="is a link"):
        check_replaceable(tmp_path / "link", OURS)


def test_what_is_no_report_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", OURS)
    check_replaceable(tmp_path / "new", OURS)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / OURS.file).write_text('{"made_by": "someone else"}')
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("thesis", "file", "other", "link"):
        with pytest.raises(StoreExistsError, match="not changed"), replacing(tmp_path / name, OURS):
            pass
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("path", ["/dev/zero", "../victim", "x/../../victim", "./x", "", ".", "x\0", "link", "pipe"])
def test_a_manifest_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    (tmp_path / "victim").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(folder / "pipe")
    files = {path: [checksum(b"secret"), 0 if path in ("/dev/zero", "pipe") else 6]}
    (folder / MANIFEST).write_bytes(json_bytes({"crc32c": checksum(json_bytes(files)), "files": files}))
    assert len(folder_problems(folder)) == 1
