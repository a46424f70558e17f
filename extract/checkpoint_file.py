"""Read a checkpoint file into dictionaries of tensors, without running anything in it; other files are named by their bytes."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from stores.errors import MissingPathError, WeightsError

_SAVE = "save the tensors alone, torch.save(model.state_dict(), FILE)"
_BEGINNINGS = (  # first bytes of a file, what it is, what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", f"convert it to PyTorch and {_SAVE}"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give the file inside"),
    (b"GGUF", "a GGUF file", f"load it in PyTorch and {_SAVE}"),
    (b"\x93NUMPY", "a NumPy array", f"load it into the model and {_SAVE}"),
)
ARRAYS = "convert them by torch.from_numpy, and save the tensors by name with torch.save"
_NPZ = "torch.save({k: torch.from_numpy(v) for k, v in numpy.load(FILE).items()}, NEW_FILE)"
_SHARDS = "an index of several weight files"
_MERGE = f"load the model with its own library, which merges them, and {_SAVE}"


class _Inert:
    """Stands for an object that holds data only and is not needed: its own type is neither imported nor called."""

    def __init__(self, *_: Any) -> None: ...

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class Array(_Inert):
    """Stands for a NumPy array."""


class _Dictionary:
    """Stands for a kind of dictionary: a plain one is made."""

    def __new__(cls, *_: Any) -> Any:
        return {}


_HARMLESS = {  # module: names of types, or of functions that make them
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "typing": "Any",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar",
    "numpy._core.multiarray": "scalar",
    "pathlib": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "datetime": "datetime date time timedelta timezone",
    "builtins": "int float str bool list dict tuple",  # as what a defaultdict begins with
    "torch.torch_version": "TorchVersion",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.nodes": "AnyNode IntegerNode FloatNode StringNode BooleanNode",
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",  # as keys, before Lightning 1.5
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
}
_DICTIONARIES = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
_STAND_INS: list[Any] = [(_Inert, f"{home}.{name}") for home, names in _HARMLESS.items() for name in names.split()]
_STAND_INS += [(_Dictionary, name) for name in _DICTIONARIES]
_STAND_INS += [(Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]


def read_checkpoint(path: Path) -> Any:
    """Give what a checkpoint holds: tensors in (nested) dictionaries.

    Objects that hold data only (``argparse.Namespace``, NumPy scalars, paths, dates, settings) are replaced by empty ones.

    Raises
    ------
    WeightsError
        The file is no checkpoint, or holds an object of another type; the message says which and what to do.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    kind = _foreign_kind(path, start)
    if kind is not None:
        what, remedy = kind
        raise WeightsError(f"{path} is not a weights file, it is {what}: {remedy}.")
    try:
        if path.suffix == ".safetensors" or _is_safetensors(start):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file's own pickle protocol, and old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if (found is None or found[1].startswith("numpy.")) and _pickles_arrays(path, start):
            raise _of_arrays(path) from error
        if found is None:
            raise WeightsError(
                f"{path} is not a weights file as torch.save writes it, or it is damaged: download or save it again."
            ) from error
        raise WeightsError(
            f"{path} holds an object of type {found[1]}; only tensors and plain values are read, so that no code in a file "
            f"is ever run. If you trust the file, load it in Python and {_SAVE}."
        ) from error
    except Exception as error:
        if _pickles_arrays(path, start):
            raise _of_arrays(path) from error
        raise WeightsError(
            f"{path} cannot be read as a weights file ({reason_of(error)}): download or save it again."
        ) from error


def reason_of(error: Exception) -> str:
    """The first line of an error, without torch's advice to run whatever code a file holds."""
    text = re.split("\n|In PyTorch 2|This file can still be loaded", str(error).strip(), maxsplit=1)[0]
    return text.rstrip(" .") or type(error).__name__


def _of_arrays(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is a pickle of NumPy arrays, not of tensors. If you trust it, load it in Python, {ARRAYS}."
    )


def _pickles_arrays(path: Path, start: bytes) -> bool:
    """Tell whether what could not be read is a pickle with NumPy arrays."""
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                start = file.read(2**16)
    return b"numpy" in start and any(word in start for word in (b"_reconstruct", b"_frombuffer"))


def weights_in_folder(folder: Path) -> MissingPathError:
    """Say which file of a folder holds the weights."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    index = next((n for n in names if n.endswith(".index.json")), None)
    files = [n for n in names if n.endswith((".safetensors", ".bin", ".pth", ".pt", ".ckpt"))]
    if index is not None:
        return MissingPathError(f"The weights {folder} are a folder with {_SHARDS} ({index}), not one file: {_MERGE}.")
    hint = f" Give one of its files: {', '.join(str(folder / n) for n in files[:5])}." if files else ""
    return MissingPathError(f"The weights {folder} are a folder, not a file.{hint}")


def _is_safetensors(start: bytes) -> bool:
    """Tell whether a file begins with a header's length and the JSON header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _foreign_kind(path: Path, start: bytes) -> tuple[str, str] | None:
    """Give what a file is and what to do about it, where it is no weights file."""
    text = start.lstrip().lower()
    if not start:
        return "empty", "download or save it again"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page (a download that failed)", "open the address in a browser, and download the file itself"
    if text.startswith(b"{"):
        return (_SHARDS, _MERGE) if b'"weight_map"' in start or "index" in path.name else ("a JSON file", _SAVE)
    for beginning, what, remedy in _BEGINNINGS:
        if start.startswith(beginning):
            return what, remedy
    if start[257:262] == b"ustar":
        return "a tar archive", "unpack it and give the file inside"
    if start[4:8] == b"TFL3" or path.suffix == ".pb" or path.name.endswith((".index", ".data-00000-of-00001")):
        return "a TensorFlow file", f"convert it to PyTorch and {_SAVE}"
    if (start[:1] == b"\x08" and start[2:3] == b"\x12") or path.suffix == ".onnx":  # ir_version, then producer_name
        return "an ONNX file", f"give the PyTorch model that it was made from, and {_SAVE}"
    return _zip_kind(path) if start.startswith(b"PK\x03\x04") else None


def _zip_kind(path: Path) -> tuple[str, str] | None:
    """The same of a zip archive: None for what torch.save writes."""
    if not zipfile.is_zipfile(path):
        return "incomplete (cut off at its end)", "download or save it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript archive",
            "save its tensors alone: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
        )
    if any(name.endswith("model.weights.h5") for name in names):
        return "a Keras model", f"convert it to PyTorch and {_SAVE}"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)", f"convert it, {_NPZ}"
    if not any(name.endswith("/data.pkl") for name in names):
        return "a zip archive", "unpack it and give the file inside"
    return None
