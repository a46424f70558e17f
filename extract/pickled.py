"""What a plain pickle says, read from its opcodes: lists, dictionaries, numbers, texts and where its arrays lie.

Nothing is unpickled: no opcode is carried out, nothing that a file names is imported or called. Only what CIFAR-10's own
files are made of is understood; anything else is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.reading import reason, shown
from stores.errors import DatasetError

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
