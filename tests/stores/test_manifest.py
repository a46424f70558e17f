"""Which chunks there are: commits of an unfinished store, and the manifest of a complete one."""

import json
from pathlib import Path

import pytest

from stores.errors import CorruptStoreError
from stores.io import checksum
from stores.manifest import (
    MANIFEST,
    Record,
    commit,
    commit_file,
    forget,
    gaps,
    in_words,
    parse_manifest,
    ranges,
    read_commits,
    read_manifest,
    write_manifest,
)


def record(chunk: int, **changes: object) -> Record:
    values = {
        "chunk": chunk,
        "first": chunk * 4,
        "rows": 4,
        "arrays": {"images/labels": {"crc32c": 1, "bytes": 32}},
        "max_abs": {"a": 1.5},
        "nonfinite": {"a": 0},
        "skipped": [{"row": 1, "name": "caf\udce9 猫.jpg", "reason": "bad"}],
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def test_commits_come_back_in_order_and_can_be_undone(tmp_path: Path) -> None:
    assert read_commits(tmp_path) == ({}, {})
    for k in (11, 2, 0):
        commit(tmp_path, record(k))
    found, bad = read_commits(tmp_path)
    assert list(found) == [0, 2, 11]
    assert found[2] == record(2)
    assert bad == {}
    forget(tmp_path, 2)
    forget(tmp_path, 2)
    assert list(read_commits(tmp_path)[0]) == [0, 11]


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"chunk": 1}', "[" * 100_000, "\udcff", record(2).line().decode()]
)
def test_every_damaged_commit_is_named(tmp_path: Path, text: str) -> None:
    for k in range(4):
        commit(tmp_path, record(k))
    for k in (1, 3):
        commit_file(tmp_path, k).write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "commits" / ".00000004.json.abcdef12.partial").write_text("{")  # what a kill leaves
    found, bad = read_commits(tmp_path)
    assert list(found) == [0, 2]
    assert list(bad) == ["00000001.json", "00000003.json"]


@pytest.mark.parametrize("key", ["chunk", "first", "rows", "arrays", "max_abs", "nonfinite", "skipped"])
def test_a_record_is_validated(tmp_path: Path, key: str) -> None:
    for wrong in (None, True, -1, "x", [1], {"a": "x"}, {"a": {"crc32c": 2**32, "bytes": 0}}, float("nan")):
        commit(tmp_path, record(0))
        values = {**json.loads(record(0).line()), key: wrong}
        commit_file(tmp_path, 0).write_text(json.dumps(values))
        (reason,) = read_commits(tmp_path)[1].values()
        assert f"$.{key}" in reason


def test_every_changed_byte_of_a_manifest_is_found(tmp_path: Path) -> None:
    records = {k: record(k) for k in (1, 0)}
    write_manifest(tmp_path, records, checksum(b"root"))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.records == records
    assert manifest.header.root == checksum(b"root")
    data = (tmp_path / MANIFEST).read_bytes()
    for i in range(len(data)):
        try:
            found = parse_manifest(tmp_path, data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        except CorruptStoreError:
            continue
        assert found.header.root != manifest.header.root  # and the root, which has another checksum, is refused
    for harmed in (data[:-1], data + b"\n", b"", data.partition(b"\n")[0]):
        with pytest.raises(CorruptStoreError):
            parse_manifest(tmp_path, harmed)


def test_the_fingerprint_sees_every_entry(tmp_path: Path) -> None:
    changes = [
        {},
        {"rows": 3},
        {"arrays": {"images/labels": {"crc32c": 2, "bytes": 32}}},
        {"max_abs": {"a": 1.25}},
        {"nonfinite": {"a": 1}},
        {"skipped": []},
    ]
    found = set()
    for change in changes:
        write_manifest(tmp_path, {0: record(0), 1: record(1, **change)}, 0)
        manifest = read_manifest(tmp_path)
        assert manifest is not None
        found.add(manifest.header.fingerprint)
    assert len(found) == len(changes)


def test_ranges_of_numbers() -> None:
    assert ranges([]) == []
    assert ranges([0, 1, 2, 7, 9, 10]) == [[0, 2], [7, 7], [9, 10]]
    assert in_words(ranges([0, 1, 2, 7, 9, 10])) == "0-2, 7, 9-10"
    assert in_words(ranges(range(0, 20, 2)), 3) == "0, 2, 4 and 7 more ranges"
    assert gaps([], 3) == [[0, 2]]
    assert gaps([0, 1, 4], 6) == [[2, 3], [5, 5]]
    assert gaps([0, 1, 2], 3) == []
