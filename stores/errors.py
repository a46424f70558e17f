"""Every error a user can meet, one tree: each names what was given, what is allowed and what to do next.

Leaves are also the builtin a Python user would catch. ``exit_code`` is what the command line ends with: 2 for wrong
use (nothing was started), 1 for work that failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What to do next, where several errors end alike
RESTORE = "Restore it from a copy, or extract again with --overwrite."
RESUME = "Run the same extract command again: it resumes."


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: those it may have been meant for, if any."""
    near = difflib.get_close_matches(name, list(names), n=5, cutoff=0.4)
    return f"; the nearest are {', '.join(near)}" if near else ""


class EDDPError(Exception):
    """Base of all errors raised on purpose by eddp; ``str(error)`` is a message for the user."""

    exit_code = 1


class UsageError(EDDPError, ValueError):
    """An option or an argument is wrong; nothing was started."""

    exit_code = 2


class MissingPathError(UsageError, FileNotFoundError):
    """A file or folder that was named does not exist, or is of the wrong kind."""


class NoImagesError(UsageError):
    """A folder exists but offers no image."""


class UnknownNameError(UsageError, LookupError):
    """A model, layer, method or option name is not known; the message lists the nearest ones."""


class NotACutError(UsageError):
    """The layer is no cut of the network's graph: some data bypasses it, so there is no head after it."""


class WeightsError(UsageError):
    """The weights do not belong to the model, or the file is no weights file."""


class MismatchError(UsageError):
    """Two artefacts do not belong together (directions of another layer, a store of another dataset, ...)."""


class DatasetError(UsageError):
    """A dataset's tables or masks contradict its format; the message names file and row."""


class StoreError(EDDPError, OSError):
    """Something is wrong with a store on disk."""


class StoreBusyError(StoreError):
    """Another process is writing to the same part of a store."""


class UnsealedStoreError(StoreError):
    """The store is unfinished; the message says what is missing and how to resume."""


class CorruptStoreError(StoreError):
    """The bytes on disk contradict the manifest or the metadata."""


class StoreExistsError(StoreError, FileExistsError):
    """A store is already there and was made from something else."""

    exit_code = 2


class ImageError(EDDPError, OSError):
    """An image cannot be read."""


class NonFiniteError(EDDPError, ArithmeticError):
    """Activations or losses are NaN or infinite; the message names the first image concerned."""


class OutOfMemoryError(EDDPError, MemoryError):
    """Memory does not suffice; the message says what needs less."""


class NotFittedError(UsageError, AttributeError):
    """An estimator was asked for what only a fit gives."""


class CheckpointError(EDDPError, OSError):
    """The stored state of a fit cannot be read."""


class FitError(EDDPError, ArithmeticError):
    """The data do not allow the fit that was asked for."""
