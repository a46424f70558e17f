import json
from pathlib import Path

import pytest
import zarr

from stores.errors import CorruptStoreError
from stores.ledger import Ledger, Record, digest, gaps, in_words, ranges


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
    return Record(**{**values, **changes})


def test_records_come_back_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.records() == {}
    for k in (11, 2, 0):
        ledger.commit(record(k))
    assert list(ledger.records()) == [0, 2, 11]
    assert ledger.records()[2] == record(2)
    assert zarr.open_group(tmp_path / "00000002", mode="r").attrs["max_abs"] == {"a": 1.5}


def test_the_digest_sees_every_entry() -> None:
    plain = digest({0: record(0), 1: record(1)})
    assert plain == digest({1: record(1), 0: record(0)})
    changes = [
        {"rows": 3},
        {"arrays": {"images/labels": {"crc32c": 2, "bytes": 32}}},
        {"max_abs": {"a": 1.25}},
        {"nonfinite": {"a": 1}},
        {"skipped": []},
    ]
    others = {digest({0: record(0), 1: record(1, **change)}) for change in changes}
    assert len(others | {plain, digest({0: record(0)})}) == len(changes) + 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '{"attributes": {}}', '{"attributes": {"chunk": 1}}', "\udcff"],
)
def test_every_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path)
    for k in range(4):
        ledger.commit(record(k))
    for k in (1, 3):
        ledger.path(k).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptStoreError, match=r"00000001 \(.*00000003 \(.*Delete those record folders"):
        ledger.records()


@pytest.mark.parametrize("change", [{"chunk": 2}, {"chunk": "1"}, {"arrays": []}, {"extra": 1}])
def test_a_record_that_is_none_of_its_chunk(tmp_path: Path, change: dict) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit(record(1))
    document = json.loads(ledger.path(1).read_bytes())
    document["attributes"].update(change)
    ledger.path(1).write_text(json.dumps(document))
    with pytest.raises(CorruptStoreError, match="00000001"):
        ledger.records()


@pytest.mark.parametrize("name", ["1", "0000001", "0000_001", "00000001x"])
def test_a_record_in_a_folder_of_another_name(tmp_path: Path, name: str) -> None:
    Ledger(tmp_path).commit(record(1))
    (tmp_path / "00000001").rename(tmp_path / name)
    with pytest.raises(CorruptStoreError, match="another chunk's"):
        Ledger(tmp_path).records()


def test_sound_records_are_found_among_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, lambda found: "not ours" if found.chunk == 2 else None)
    for k in range(4):
        ledger.commit(record(k))
    ledger.path(1).write_text("[" * 100_000)
    found, bad = ledger.examine()
    assert list(found) == [0, 3]
    assert bad["00000002"] == "not ours"
    assert list(bad) == ["00000001", "00000002"]


def test_a_half_written_record_is_no_record(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit(record(0))
    (tmp_path / "00000001").mkdir()
    (tmp_path / "00000001" / ".zarr.json.abcdef12.partial").write_text("{")
    assert list(ledger.records()) == [0]


def test_ranges_of_numbers() -> None:
    assert ranges([]) == []
    assert ranges([4]) == [[4, 4]]
    assert ranges([0, 1, 2, 7, 9, 10]) == [[0, 2], [7, 7], [9, 10]]
    assert in_words([0, 1, 2, 7, 9, 10]) == "0-2, 7, 9-10"
    assert in_words(list(range(0, 20, 2)), 3) == "0, 2, 4 and 7 more ranges"


def test_gaps_between_numbers() -> None:
    assert gaps([], 0) == []
    assert gaps([], 3) == [[0, 2]]
    assert gaps([0, 1, 4], 6) == [[2, 3], [5, 5]]
    assert gaps([0, 1, 2], 3) == []
    assert gaps([5], 10**12) == [[0, 4], [6, 10**12 - 1]]
