"""What a user reads when memory, of the machine or of a GPU, does not suffice: how much was asked for, and what needs less."""

from __future__ import annotations

import ctypes
import os
import re

from stores.errors import EDDPError

GIB = 2**30

LESS = {
    "extract": "Use a smaller --batch-size",
    "fit": "Use fewer --directions, or (method eddp) --set rows=store, which keeps no positions in memory",
    "evaluate": "Give fewer --directions files at once, or a smaller --influence-images",
    "report": "Use --visualize none",
    "correct": "Use fewer images in --data and --poisoned",
    "explain": "Explain fewer images at once",
}


# Address space (ulimit -v) that a command needs for its libraries, and each core for its threads. With less, native code
# crashes or hangs while it is loaded.
LEAST = {"extract": 0.75 * GIB, "inspect": 0.75 * GIB, "verify": 0.75 * GIB}
LEAST_OTHER, LEAST_PER_CORE = 2 * GIB, GIB / 16
_ARENA_MAX = -8  # parameter of mallopt(3)
# How else the system and libraries say it: a thread, a shared library or a decoder that got none.
_TEXTS = re.compile(
    "can't start new thread|failed to map segment|launch worker thread|cannot allocate memory|not enough memory|bad_alloc",
    re.IGNORECASE,
)


def limited_address_space(command: str) -> str | None:
    """Prepare for a limit on this process's address space, if there is one; gives a message where it is too small for ``command``."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    from extract.worker_processes import cores  # not loaded for nothing: most processes have no limit

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, 1)  # else glibc reserves 64 MB for each thread
    threads = os.environ.get("OMP_NUM_THREADS", "")
    least = LEAST.get(command, LEAST_OTHER) + (int(threads) if threads.isdecimal() else cores()) * LEAST_PER_CORE
    if limit >= least:
        return None
    return (
        f"there is not enough memory: this process may use {limit / GIB:.1f} GiB (ulimit -v), and {command} needs {least / GIB:.1f} "
        "GiB at least. Raise the limit, or use fewer threads (OMP_NUM_THREADS=1)."
    )


def shortage_in(error: BaseException | None) -> BaseException | None:
    """The error that says that memory did not suffice: this one, or what it was raised for."""
    while error is not None and not _is_shortage(error):
        error = error.__cause__ or error.__context__
    return error


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, EDDPError):
        return False
    if not isinstance(error, RuntimeError):
        return bool(_TEXTS.search(str(error)))
    from extract.memory import is_out_of_memory  # torch, which a command that is only asked for its help does without

    return bool(_TEXTS.search(str(error))) or is_out_of_memory(error)


def shortage(error: BaseException, command: str) -> str:
    """One sentence for an error that ``shortage_in`` found, and what to do about it when running ``command``."""
    text = str(error)
    gpu = "CUDA" in text
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
    what = f"{asked[1]} more were asked for" if asked else text.strip().split("\n")[0] or "allocation failed"
    advice = LESS.get(command, "Use smaller inputs")
    where, other = (" on the GPU", "--device cpu") if gpu else ("", "give the process more memory")
    return f"there is not enough memory{where} ({what}). {advice}, or {other}."
