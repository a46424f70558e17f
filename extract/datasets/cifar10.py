"""CIFAR-10 (Krizhevsky 2009) as it is distributed: six batch files of 32 × 32 pixels, binary or for Python.

The binary version's files are records of one byte, the class, and 3072, the pixels. Those for Python are pickles, read
by an unpickler that imports and calls nothing: stand-ins take the place of NumPy's array and type.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from extract.file_list import lines_of
from extract.image_io import reason, shown
from extract.image_source import PackedSource, register
from stores.errors import DatasetError, MissingPathError

log = logging.getLogger(__name__)

PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
IN_ORIGINAL = 10_000  # images in each of the files as distributed
STEMS = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
BATCHES = (*(f"{stem}.bin" for stem in STEMS), *STEMS)
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")


class Cifar10Source(PackedSource):
    """Images within batch files, read one by one."""

    kind = "cifar10"

    def image(self, i: int) -> Image.Image:
        pixels_chw = np.frombuffer(self.read(i), np.uint8).reshape(3, 32, 32)
        return Image.fromarray(np.ascontiguousarray(pixels_chw.transpose(1, 2, 0)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names, labels and the files' content: all images are of one size."""
        hasher = hashlib.sha256()
        for name, label in self.items:
            hasher.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
        for name in self.files:
            with (self.root / name).open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
        return "sha256:" + hasher.hexdigest()


def is_cifar10(root: Path) -> bool:
    """Whether a path is a folder of CIFAR-10's batch files, the folder above it, or one such file."""
    return (root.name in BATCHES and root.is_file()) or _folder(root) is not None


@register("cifar10", is_cifar10, files=True)
def open_cifar10(root: Path) -> Cifar10Source:
    """Open CIFAR-10's batch files, or a single one: training batches 1 to 5, then the test batch.

    ``root`` is a folder with the files, the folder that ``cifar-10-batches-bin`` or ``-py`` is in (the binary version wins),
    or one file, such as ``test_batch.bin``. Classes are numbered as in the files, and named by ``batches.meta.txt`` or
    ``batches.meta``. Images are called ``train/00000`` ... and ``test/00000`` ... in the binary version,
    ``data_batch_1/FILENAME`` in the one for Python. Raises MissingPathError, and DatasetError naming file and sizes.
    """
    if root.is_file():
        if root.name not in BATCHES:
            raise DatasetError(f"'{shown(root)}' (--data) is no batch file of CIFAR-10, called {STEMS[0]}.bin, say.")
        root, files = root.parent, [root.name]
    else:
        found = _folder(root)
        if found is None:
            raise MissingPathError(
                f"There is no CIFAR-10 in '{shown(root)}' (--data). Give the folder with data_batch_1.bin or data_batch_1."
            )
        root = found
        ending = ".bin" if any((root / f"{stem}.bin").is_file() for stem in STEMS) else ""
        files = [stem + ending for stem in STEMS]
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            raise DatasetError(f"'{shown(root)}' lacks {', '.join(missing)} of CIFAR-10. Unpack the complete archive.")
    class_names = _class_names(root, binary=files[0].endswith(".bin"))
    source = Cifar10Source(root, files, _entries(root, files, len(class_names or range(10))))
    source.class_names = class_names
    return source


def _entries(root: Path, files: list[str], n_classes: int) -> Iterator[tuple[str, int, int, int, int]]:
    for number, file in enumerate(files):
        offset, step, labels, names = (_binary if file.endswith(".bin") else _python)(root / file)
        wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
        if len(wrong):
            raise DatasetError(
                f"'{shown(root / file)}', image {wrong[0]}: class {labels[wrong[0]]} is not one of 0 to {n_classes - 1}."
            )
        if len(labels) != IN_ORIGINAL:
            message = f"'{shown(root / file)}' holds {len(labels)} images, CIFAR-10's own {IN_ORIGINAL}"
            if len(labels) > IN_ORIGINAL:
                raise DatasetError(f"{message}.")
            log.warning(message)
        for k, (name, label) in enumerate(zip(names, labels.tolist(), strict=True)):
            yield name, label, number, offset + k * step, PIXELS


def _folder(root: Path) -> Path | None:
    inner = (root / folder for folder in FOLDERS)
    return next((folder for folder in inner if any((folder / name).is_file() for name in BATCHES)), None)


def _binary(path: Path) -> tuple[int, int, np.ndarray, list[str]]:
    """(offset, step, labels, names); the names are the same whether or not the others are read."""
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise DatasetError(f"'{shown(path)}' has {size} bytes, no multiple of {RECORD}. Unpack or download it again.")
    labels = np.fromfile(path, np.uint8).reshape(-1, RECORD)[:, 0].astype(np.int32)
    split, first = ("test", 0) if path.stem == "test_batch" else ("train", (int(path.stem[-1]) - 1) * IN_ORIGINAL)
    return 1, RECORD, labels, [f"{split}/{first + k:05d}" for k in range(len(labels))]


def _python(path: Path) -> tuple[int, int, np.ndarray, list[str]]:
    content, value = _unpickled(path)
    labels: Any = value.get("labels")
    names = _texts(value.get("filenames"))
    try:
        _, shape, dtype, fortran, data = value["data"].state
        pixels = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        valid = (shape, dtype.given[0], fortran, len(pixels)) == ((len(labels), PIXELS), "u1", False, shape[0] * PIXELS)
        valid = valid and len(labels) > 0 and all(type(label) is int and abs(label) < 2**31 for label in labels)
    except Exception:  # noqa: BLE001  (anything may be in these places)
        valid = False
    if not valid:
        must = f"it must hold 'data', bytes in rows of {PIXELS}, and a list 'labels' with as many numbers"
        raise DatasetError(f"'{shown(path)}' is no batch of CIFAR-10: {must}.")
    if not names or len(set(names)) != len(labels):
        names = [f"{k:05d}" for k in range(len(labels))]  # without names, or not one for each image
    return content.index(pixels), PIXELS, np.array(labels, np.int32), [f"{path.name}/{name}" for name in names]


def _class_names(root: Path, *, binary: bool) -> list[str] | None:
    path = root / ("batches.meta.txt" if binary else "batches.meta")
    if not path.is_file():
        return None
    if binary:
        return [name for _, name in lines_of(path)] or None
    names = _texts(_unpickled(path)[1].get("label_names"))
    if not names:
        raise DatasetError(f"'{shown(path)}' must hold a list 'label_names' of texts.")
    return names


def _texts(value: Any) -> list[str] | None:
    """A list of texts, which Python 2 wrote as bytes; None for anything else."""
    # the types first: a list may hold itself, or another so often that comparing it never ends
    if not isinstance(value, list) or not all(isinstance(item, str | bytes) for item in value):
        return None
    return [item.decode("latin-1") if isinstance(item, bytes) else item for item in value]


class _RefusedError(Exception): ...


class _StandIn:
    """Stands for NumPy's array, its type and the function that makes it: keeps what it is given."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TextKeys(dict[str, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | bytes):  # hashing nested tuples may never end
            raise ValueError("a key is no text")
        super().__setitem__(key.decode("latin-1") if isinstance(key, bytes) else key, value)


def _refuse(_: Any) -> None:
    raise _RefusedError("it holds a set, a bytearray or a dictionary in an old format")


class _Unpickler(pickle._Unpickler):  # in Python: the one in C allocates whatever a damaged file asks for
    """Makes only plain values; every name but NumPy's own is refused."""

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.EMPTY_DICT[0]: lambda self: self.append(_TextKeys()),  # type: ignore[attr-defined]
        **{code[0]: _refuse for code in (pickle.DICT, pickle.EMPTY_SET, pickle.FROZENSET, pickle.BYTEARRAY8)},
    }

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        known = {"numpy": ("ndarray", "dtype"), "numpy.core.multiarray": ("_reconstruct",)}
        if name not in known.get(module.replace("._core", ".core"), ()):
            raise _RefusedError(f"it calls '{shown(module)} {shown(name)}'")
        return _StandIn


def _unpickled(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a pickle and the dictionary it holds, {} for another value. Raises DatasetError naming the file."""
    content = b""
    try:
        content = path.read_bytes()
        value = _Unpickler(BytesIO(content), encoding="latin-1").load()
    except _RefusedError as error:
        then = "Take the files as they are distributed (cifar-10-python.tar.gz or cifar-10-binary.tar.gz)"
        raise DatasetError(f"'{shown(path)}' is refused: {error}, and nothing is unpickled here. {then}.") from error
    except OSError as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error
    except Exception as error:  # damaged bytes fail wherever they like
        what = f"'{shown(path)}' ({len(content)} bytes) is cut short or damaged: {reason(error)}"
        raise DatasetError(f"{what}. Unpack or download it again.") from error
    return content, value if isinstance(value, dict) else {}
