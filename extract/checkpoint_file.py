"""Read a checkpoint file into dictionaries of tensors, without running anything in it; other files are named by their bytes."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from stores.errors import WeightsError

_SAVE = "save only the tensors, torch.save(model.state_dict(), FILE)"
_AGAIN = "download or save it again"
_KINDS = (  # how a file begins, what it is, what to do
    (rb"\Z", "empty", _AGAIN),
    (rb"(?i)\s*<(!doctype html|html|\?xml)", "a web page (a failed download)", "open the address in a browser"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (rb"\s*\{", "a JSON file, perhaps an index of several", f"load the model with its own library, and {_SAVE}"),
)


class _Inert:
    """Stands for an object that holds data only and is not needed: its own type is neither imported nor called."""

    def __init__(self, *_: Any) -> None: ...

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class _Dictionary:
    """Stands for a kind of dictionary: a plain one is made."""

    def __new__(cls, *_: Any) -> Any:
        return {}


_HARMLESS = {  # module: names of types, or of functions that make them
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "typing": "Any",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
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


def read_checkpoint(path: Path) -> Any:
    """Give what a checkpoint holds: tensors in (nested) dictionaries.

    Objects that hold data only (``argparse.Namespace``, NumPy values, paths, dates, settings) are replaced by empty ones.
    Raises WeightsError for a file that is no checkpoint, or holds an object of another type, with what to do.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    for beginning, what, remedy in _KINDS:
        if re.match(beginning, start):
            raise WeightsError(f"{path} is not a weights file, it is {what}: {remedy}.")
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is not a weights file, it is incomplete (cut off at its end): {_AGAIN}.")
    try:
        if path.suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file's own pickle protocol, and old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise WeightsError(f"{path} is no weights file as torch.save writes it, or damaged: {_AGAIN}.") from error
        held = f"{path} holds an object of type {found[1]}; only tensors and plain values are read, and no code is run"
        raise WeightsError(f"{held}. If you trust the file, load it in Python and {_SAVE}.") from error
    except Exception as error:
        if "TorchScript" in str(error):
            remedy = "save only its tensors, torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
            raise WeightsError(f"{path} is not a weights file, it is a TorchScript archive: {remedy}.") from error
        raise WeightsError(f"{path} cannot be read as a weights file ({reason_of(error)}): {_AGAIN}.") from error


def reason_of(error: Exception) -> str:
    """The first line of an error, without torch's advice to run whatever code a file holds."""
    text = re.split("\n|In PyTorch 2|This file can still be loaded", str(error).strip(), maxsplit=1)[0]
    return text.rstrip(" .") or type(error).__name__
