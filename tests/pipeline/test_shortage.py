"""A GPU or a machine whose memory does not suffice is said to be one, with what would need less."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from pipeline.out_of_memory import LESS, shortage, shortage_in
from stores.errors import CorruptStoreError

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.10 GiB is free. "
    "Process 4711 has 6.69 GiB memory in use."
)


def test_a_gpu() -> None:
    error = torch.OutOfMemoryError(CUDA)
    assert shortage_in(error) is error
    assert shortage(error, "fit") == (
        "there is not enough memory on the GPU (2.50 GiB more were asked for). Use fewer --directions, or (method eddp) --set "
        "rows=store, which keeps no positions in memory, or --device cpu."
    )


def test_a_machine() -> None:
    assert shortage(MemoryError("Unable to allocate 1.00 TiB for an array"), "evaluate") == (
        "there is not enough memory (Unable to allocate 1.00 TiB for an array). "
        "Give fewer --directions files at once, or a smaller --influence-images, or give the process more memory."
    )


def test_only_shortages_are_called_so() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert shortage_in(raised.value)
    assert not shortage_in(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not shortage_in(ValueError("out of memory"))


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("libfaiss.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_an_error_that_memory_caused_says_so(cause: Exception) -> None:
    error = CorruptStoreError("Run `eddp verify` on the store.")
    error.__cause__ = cause
    assert shortage_in(error) is cause
    assert shortage(cause, "explain").startswith("there is not enough memory (")


def test_what_is_advised_exists() -> None:
    from pipeline.main import load

    for name, advice in LESS.items():
        options = {option for parameter in load(name).params for option in parameter.opts}
        assert {word.strip(",.") for word in advice.split() if word.startswith("--")} <= options
