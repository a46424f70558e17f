import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from extract.checkpoint_file import read_checkpoint
from stores.errors import WeightsError


class _Evil:
    ran = False

    def __reduce__(self):
        return _run_evil, ()


def _run_evil() -> None:
    _Evil.ran = True


def saved(content: object, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "nothing")
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **ARRAYS)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


ARRAYS = {"fc.weight": np.ones((3, 4), np.float32)}
TENSORS = {"a": torch.ones(1000), "b": torch.zeros(2)}
REFUSED = {
    "empty": (b"", "it is empty: download"),
    "text": (b"these are no weights", "cannot be read as a weights file"),
    "page": (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "web page.*browser"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "index": (
        b'{\n"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        "a JSON file, perhaps an index of several",
    ),
    "json": (b'{"error": "Not Found"}', "JSON"),
    "zip": (zipped("readme.txt"), "w.pth cannot be read"),
    "npz": (npz(), "w.pth"),
    "arrays pickled": (pickle.dumps(ARRAYS), "w.pth"),
    "evil with arrays": (saved({**ARRAYS, "x": _Evil()}), "type .*_run_evil"),
    "cut": (saved(TENSORS)[:3000], "cut off at its end"),
    "cut old": (saved(TENSORS, old=True)[:3000], "cannot be read .*EOF"),
    "cut safetensors": (save(TENSORS)[:3000], "cannot be read"),
    "scripted": (scripted(), r"TorchScript archive: .*torch\.jit\.load\(FILE\)\.state_dict"),
    "pickle": (pickle.dumps({"state_dict": _Evil()}), "no weights file as torch.save writes it"),
    "evil": (saved({"state_dict": _Evil(), "w": torch.ones(1)}), r"type .*_run_evil;.*save only the tensors"),
    "module": (saved(nn.Linear(2, 2)), r"type torch\.nn\.modules\.linear\.Linear;.*save only the tensors"),
    "old module": (saved(nn.Linear(2, 2), old=True), r"type torch\.nn\.modules\.linear\.Linear;"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_is_no_weights_file_is_named_and_never_run(kind: str, tmp_path: Path) -> None:
    content, pattern = REFUSED[kind]
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=pattern) as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value)
    assert not _Evil.ran


@pytest.mark.parametrize(
    "content", [saved(TENSORS), saved(TENSORS, old=True), save(TENSORS)], ids=["zip", "old", "safe"]
)
def test_files_are_read_by_their_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    read = read_checkpoint(tmp_path / "w.bin")
    assert all(torch.equal(tensor, read[name]) for name, tensor in TENSORS.items())
