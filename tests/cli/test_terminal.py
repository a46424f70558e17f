"""Names from files of others on their way to a terminal and to a spreadsheet: nothing in them acts."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from command_line import Run, ok
from tiny import write_store

from stores.directions import Directions

EVIL = "\x1b[2J\u202eevil\x9b"
SHOWN = "\\x1b[2J\\u202eevil\\x9b"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).random((6, 2, 3)).astype(np.float32)
    made = {"model": f"tiny_net:{EVIL}", "weights": "none", "dataset": {"kind": "folder", "path": "gone", "images": 6}}
    head = {"conv": (np.eye(3, dtype=np.float32), np.zeros(3, np.float32))}
    names = [f"={EVIL}{k}.jpg" for k in range(6)]
    classes = [f"=1+{EVIL}", "-2", "@c"]
    return write_store(tmp_path / "s.zarr", {"conv": x}, names=names, provenance=made, class_names=classes, heads=head)


def directions(path: Path, layer: str = "conv") -> Path:
    w = np.eye(3, dtype=np.float32)
    info = {"model": EVIL, "store": {"path": EVIL}, "config": {EVIL: EVIL}}
    Directions(w, w, np.zeros(3, np.float32), None, f"toy{EVIL}", layer, info=info).save(path)
    return path


def test_no_control_character_reaches_the_terminal(run: Run, store: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[fit]\n"\\u001b[2J\\u202eevil\\u009b" = 1\n')
    fine, other = directions(tmp_path / "d.safetensors"), directions(tmp_path / "other.safetensors", f"conv{EVIL}")
    influence = ("--influence", "--null-directions", 0)
    for code, words in (
        (2, ("fit", "--store", store, "--config", config)),
        (2, ("fit", "--store", store, "--layer", EVIL, "--directions", 2)),
        (2, ("fit", "--store", store, "--directions", EVIL)),
        (2, ("evaluate", "--store", store, "--directions", other, *influence)),
        (0, ("evaluate", "--store", store, "--directions", fine, *influence)),
        (0, ("eddp", "inspect", store)),
        (0, ("eddp", "inspect", fine)),
        (0, ("eddp", "inspect", other)),
        (0, ("eddp", "inspect", tmp_path / "evaluation")),
        (0, ("eddp", "report", tmp_path / "evaluation", "--visualize", "none")),
    ):
        ended = run(*words)
        assert ended.code == code, ended.err
        raw = {c for c in ended.out + ended.err if not (c.isprintable() or c == "\n")}
        assert not raw, (words, raw)
        if code == 2 or words[-1] == other:
            assert SHOWN in ended.out + ended.err or ascii(EVIL)[1:-1] in ended.err, (words, ended)


def test_warnings_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.logging import logging_to_stderr

    monkeypatch.setattr(logging.root, "handlers", [])
    with logging_to_stderr("fit", as_json=False):
        for _ in range(2):  # shown once
            logging.getLogger("fit").warning("odd: %s", EVIL)
    assert capsys.readouterr().err == f"Warning: odd: {SHOWN}\n"


def test_texts_are_no_formulas_in_a_spreadsheet(run: Run, store: Path, tmp_path: Path) -> None:
    file = directions(tmp_path / "d.safetensors")
    ok(run("evaluate --store", store, "--directions", file, "--influence --null-directions 0"))
    with (tmp_path / "evaluation" / "influence.csv").open(newline="", encoding="utf-8") as opened:
        text = list(csv.DictReader(opened))
    exact = pyarrow.parquet.read_table(tmp_path / "evaluation" / "influence.parquet").to_pylist()
    assert {row["class_name"] for row in exact} == {f"=1+{EVIL}", "-2", "@c"}
    assert [row["class_name"] for row in text] == [f"'{row['class_name']}" for row in exact]
    numbers = [key for key, value in exact[0].items() if isinstance(value, float)]
    assert any(row[key].startswith("-") for row in text for key in numbers)  # a number is no text


def test_no_message_says_to_run_what_a_file_holds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_images: Callable[..., Path]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"garbage")
    header = bytearray(512)  # of a tar archive as before POSIX, which torch takes for its own oldest format
    header[0:1], header[100:107], header[124:135], header[148:156] = b"a", b"0000644", b"00000000000", b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "old.pth").write_bytes(bytes(header) + bytes(1024))
    for weights in ("DEFAULT", tmp_path / "old.pth"):
        ended = run("extract --model squeezenet1_1 --weights", weights, "--layer features --data", tiny_images(2),
                    "--out", tmp_path / "s.zarr")  # fmt: skip
        assert ended.code == 2, ended.err
        assert "tar format" in ended.err or "Cannot download" in ended.err
        for word in ("likely succeed", "In PyTorch 2", "unexpected"):
            assert word not in ended.err
