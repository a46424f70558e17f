"""What a plain pickle says, read from its opcodes: lists, dictionaries, numbers, texts and where its arrays lie.

Nothing is unpickled: no opcode is carried out, nothing that a file names is imported or called. Only what CIFAR-10's own
files are made of is understood; anything else is refused.

CIFAR-10 (Krizhevsky 2009) as it is distributed: six batch files of 32 × 32 pixels, binary or for Python.

The binary version's files are records of one byte, the class, and 3072, the pixels. Those for Python are pickles, which
``extract.datasets.cifar10`` reads without unpickling them: only where their pixels lie, their labels and their filenames.
"""

from __future__ import annotations

import hashlib
import logging
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from extract.file_list import lines_of
from extract.image_io import read_range, reason, shown
from extract.image_source import register
from extract.string_array import Items
from stores.errors import DatasetError, MissingPathError

LONG = 3072  # bytes from which a text is data: remembered by its place, not its content
_PREFIX = {
    "SHORT_BINSTRING": 2,
    "BINSTRING": 5,
    "SHORT_BINBYTES": 2,
    "BINBYTES": 5,
    "BINBYTES8": 9,
}  # opcode and length
_TEXTS = {*_PREFIX, "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}
_PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NOTHING = {"PROTO", "FRAME", "STOP"}
_NDARRAY = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}


@dataclass
class Data:
    """Bytes within the file."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class Array:
    """An array of NumPy: its shape, its type (such as ``u1``), its bytes, and whether the last axis is the fastest."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    data: Data | None = None
    c_order: bool = False


@dataclass
class _Type:
    name: str


class _Mark: ...


def read_pickled(path: Path) -> Any:
    """The value a pickle describes, with ``Array`` for arrays, text for bytes (as Latin-1), ``Data`` for long ones.

    Raises DatasetError naming the file for one that is damaged, cut short, or holds anything else.
    """
    size = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _walk(file)
    except _RefusedError as error:
        raise DatasetError(
            f"'{shown(path)}' is refused: {error}, which no file of CIFAR-10 does, and nothing is unpickled here. Take "
            "the files as they are distributed (cifar-10-python.tar.gz or cifar-10-binary.tar.gz)."
        ) from error
    except OSError as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error
    except Exception as error:  # damaged bytes fail wherever they like
        raise DatasetError(
            f"'{shown(path)}' ({size} bytes) is cut short or damaged: {reason(error)}. Unpack or download it again."
        ) from error


class _RefusedError(Exception): ...


def _walk(file: Any) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        k = len(stack) - 1  # from the top: what is looked at is taken
        while k >= 0 and not isinstance(stack[k], _Mark):
            k -= 1
        if k < 0:
            raise ValueError("a mark is missing")
        taken = stack[k + 1 :]
        del stack[k:]
        return taken

    def take(n: int) -> list[Any]:
        taken = stack[-n:]
        if len(taken) < n:
            raise ValueError("a value is missing")
        del stack[-n:]
        return taken

    given: Any  # of each opcode's own type
    for opcode, given, at in pickletools.genops(file):
        name, position = opcode.name, int(at or 0)
        if name in _TEXTS:
            stack.append(_text(name, given, position))
        elif name in _NUMBERS:
            stack.append(given)
        elif name in _PLAIN:
            stack.append(_PLAIN[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[given] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[given])
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(take(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = take(1) if name == "APPEND" else since_mark()
            stack[-1].extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = take(2) if name == "SETITEM" else since_mark()
            if not all(isinstance(key, str) for key in values[::2]):  # to hash nested tuples may never end
                raise ValueError("a key is no text")
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Global(given))
        elif name == "STACK_GLOBAL":
            stack.append(_Global(" ".join(take(2))))
        elif name == "REDUCE":
            stack.append(_made(*take(2)))
        elif name == "BUILD":
            (state,) = take(1)
            _fill(stack[-1], state)
        elif name not in _NOTHING:
            raise _RefusedError(f"at byte {position} it holds {name}")
    (value,) = stack
    return value


def _text(name: str, given: Any, position: int) -> str | Data:
    """A text, or the place of one that is long; Python 2 wrote texts and data alike as bytes."""
    if name in _PREFIX and len(given) >= LONG:
        return Data(position + _PREFIX[name], len(given))
    return given.decode("latin-1") if isinstance(given, bytes) else given


def _made(called: Any, given: Any) -> Any:
    """What the two calls in NumPy's pickles of arrays stand for; they are recognised, not made."""
    if isinstance(called, _Global):
        if called.name in _NDARRAY and given[0] == _Global("numpy ndarray"):
            return Array()
        if called.name == "numpy dtype" and isinstance(given[0], str):
            return _Type(given[0])
        raise _RefusedError(f"it calls '{shown(called.name)}'")
    raise _RefusedError("it calls something")


def _fill(value: Any, state: Any) -> None:
    if isinstance(value, Array):
        _, shape, kind, fortran, data = state
        value.shape, value.dtype, value.data, value.c_order = shape, kind.name, data, not fortran
    elif not isinstance(value, _Type):  # a type's state is its byte order, of which single bytes have none
        raise _RefusedError("it fills something that is no array")


log = logging.getLogger(__name__)

PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
IN_ORIGINAL = 10_000  # images in each of the files as distributed
STEMS = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
BATCHES = (*(f"{stem}.bin" for stem in STEMS), *STEMS)
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")


@dataclass(frozen=True)
class _Batch:
    """Where the pixels of a file's images are: image k begins at byte ``offset + k * step``."""

    file: str
    offset: int
    step: int


class Cifar10Source:
    """Images within batch files, read one by one; made by ``open_cifar10``."""

    kind = "cifar10"

    def __init__(
        self, root: Path, batches: list[_Batch], counts: list[int], items: Items, class_names: list[str] | None
    ) -> None:
        self.root = root
        self.items = items
        self.class_names = class_names
        self.left_out: dict[str, int] = {}
        self._batches = batches
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        return self.items.names[i]

    def path(self, i: int) -> Path:
        """The batch file that holds the image."""
        return self.root / self._place(i)[0].file

    def label(self, i: int) -> int:
        return int(self.items.labels[i])

    def image(self, i: int) -> Image.Image:
        """The image as RGB. Raises EDDPError when its file is gone or has become shorter."""
        batch, k = self._place(i)
        data = read_range(self.root / batch.file, batch.offset + k * batch.step, PIXELS, shown(self.name(i)))
        pixels_chw = np.frombuffer(data, np.uint8).reshape(3, 32, 32)
        return Image.fromarray(np.ascontiguousarray(pixels_chw.transpose(1, 2, 0)))

    def _place(self, i: int) -> tuple[_Batch, int]:
        i = range(len(self))[i]
        k = int(np.searchsorted(self._starts, i, "right")) - 1
        return self._batches[k], i - int(self._starts[k])

    @property
    def digest(self) -> str:
        """SHA-256 over the names, labels and the files' content: all images are of one size."""
        if self._digest is None:
            hasher = hashlib.sha256()
            for name, label in self.items:
                hasher.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
            for batch in self._batches:
                with (self.root / batch.file).open("rb") as file:
                    hasher.update(hashlib.file_digest(file, "sha256").digest())
            self._digest = "sha256:" + hasher.hexdigest()
        return self._digest


def is_cifar10(root: Path) -> bool:
    """Whether a place is a folder of CIFAR-10's batch files, the folder above it, or one such file."""
    if root.name in BATCHES and root.is_file():
        return True
    return _folder(root) is not None


@register("cifar10", is_cifar10, files=True)
def open_cifar10(root: Path) -> Cifar10Source:
    """Open CIFAR-10's batch files, or a single one: training batches 1 to 5, then the test batch.

    Given are a folder with the files, the folder that ``cifar-10-batches-bin`` or ``-py`` is in (the binary version wins),
    or one file, such as ``test_batch.bin``. Classes are numbered as in the files; their names are those of
    ``batches.meta.txt`` or ``batches.meta``. Images are called ``train/00000`` ... and ``test/00000`` ... in the binary
    version, ``data_batch_1/FILENAME`` in the one for Python.

    Raises MissingPathError where there is no batch file, DatasetError (naming file and sizes) for files that are missing,
    cut short, damaged or hold something else.
    """
    if root.is_file():
        if root.name not in BATCHES:
            raise DatasetError(
                f"'{shown(root)}' (--data) is no batch file of CIFAR-10: it must be called {STEMS[0]}.bin, say."
            )
        root, files = root.parent, [root.name]
        binary = files[0].endswith(".bin")
    else:
        found = _folder(root)
        if found is None:
            raise MissingPathError(
                f"There is no CIFAR-10 in '{shown(root)}' (--data). Give the folder with data_batch_1.bin ... "
                "test_batch.bin, or with data_batch_1 ... test_batch (the version for Python), or one of these files."
            )
        root = found
        binary = any((root / f"{stem}.bin").is_file() for stem in STEMS)
        files = [f"{stem}.bin" if binary else stem for stem in STEMS]
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            raise DatasetError(
                f"'{shown(root)}' lacks {', '.join(missing)} of CIFAR-10. Unpack the whole archive, or give one batch file."
            )
    class_names = _class_names(root, binary=binary)
    batches: list[_Batch] = []
    counts: list[int] = []

    def entries() -> Iterator[tuple[str, int]]:
        for file in files:
            batch, labels, names = _binary(root / file) if binary else _python(root / file)
            wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names or range(10))))
            if len(wrong):
                raise DatasetError(
                    f"'{shown(root / file)}', image {wrong[0]}: there is no class {labels[wrong[0]]}; the classes are 0 to "
                    f"{len(class_names or range(10)) - 1}."
                )
            if len(labels) > IN_ORIGINAL:
                raise DatasetError(f"'{shown(root / file)}' holds {len(labels)} images, CIFAR-10's own {IN_ORIGINAL}.")
            if len(labels) < IN_ORIGINAL:
                log.warning("'%s' holds %d images, CIFAR-10's own %d", shown(root / file), len(labels), IN_ORIGINAL)
            batches.append(batch)
            counts.append(len(labels))
            yield from zip(names or _numbered(file, len(labels)), labels.tolist(), strict=True)

    items = Items(entries())
    return Cifar10Source(root, batches, counts, items, class_names)


def _numbered(file: str, count: int) -> Iterator[str]:
    """Names of a binary file's images, the same whether it is read alone or with the others."""
    stem = file.removesuffix(".bin")
    split, first = ("test", 0) if stem == "test_batch" else ("train", (int(stem[-1]) - 1) * IN_ORIGINAL)
    return (f"{split}/{first + k:05d}" for k in range(count))


def _folder(root: Path) -> Path | None:
    for inner in FOLDERS:
        if any((root / inner / name).is_file() for name in BATCHES):
            return root / inner
    return None


def _binary(path: Path) -> tuple[_Batch, np.ndarray, None]:
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise DatasetError(
            f"'{shown(path)}' has {size} bytes, which is no whole number of records of {RECORD} (CIFAR-10's own files have "
            f"{RECORD * IN_ORIGINAL}): it is cut short or something else. Unpack or download it again."
        )
    try:
        labels = np.fromfile(path, np.uint8).reshape(-1, RECORD)[:, 0].astype(np.int32)
    except OSError as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error
    return _Batch(path.name, 1, RECORD), labels, None


def _python(path: Path) -> tuple[_Batch, np.ndarray, list[str]]:
    value = read_pickled(path)
    value = value if isinstance(value, dict) else {}
    array, labels, names = value.get("data"), value.get("labels"), value.get("filenames")
    count = len(labels) if isinstance(labels, list) else -1
    if not (
        isinstance(array, Array)
        and isinstance(array.data, Data)
        and (array.shape, array.dtype, array.c_order) == ((count, PIXELS), "u1", True)
        and array.data.size == count * PIXELS
        and all(type(label) is int and abs(label) < 2**31 for label in labels or [])
    ):
        raise DatasetError(
            f"'{shown(path)}' is no batch of CIFAR-10: it must hold 'data', bytes in rows of {PIXELS}, and a list "
            "'labels' with as many numbers."
        )
    # first that they are texts: a list may hold itself, or another so often that looking into it never ends
    if not (isinstance(names, list) and all(isinstance(n, str) for n in names) and len(set(names)) == count):
        names = [f"{k:05d}" for k in range(count)]  # without names, or not one for each image
    return (
        _Batch(path.name, array.data.offset, PIXELS),
        np.array(labels, np.int32),
        [f"{path.name}/{name}" for name in names],
    )


def _class_names(root: Path, *, binary: bool) -> list[str] | None:
    path = root / ("batches.meta.txt" if binary else "batches.meta")
    if not path.is_file():
        return None
    if binary:
        return [name for _, name in lines_of(path)] or None
    value = read_pickled(path)
    names = value.get("label_names") if isinstance(value, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise DatasetError(f"'{shown(path)}' must hold a list 'label_names' of texts.")
    return names
