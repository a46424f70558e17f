import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_net import Scaled, Unresized

from extract.datasets import open_folder
from extract.loader import Batch, Decode, decoded
from stores.errors import EDDPError, ImageError, UsageError

Images = Callable[..., Path]


@pytest.mark.parametrize("batches", [[[0, 1, 2], [3, 4, 5, 6], [7]], [[9], [2, 0]], [[k] for k in range(10)], []])
def test_every_row_once_and_in_order(tiny_images: Images, batches: list[list[int]]) -> None:
    source = open_folder(tiny_images())
    found = list(decoded(Decode(source, Scaled(), batches), workers=0))
    assert [batch.rows for batch in found] == batches
    for batch in found:
        assert batch.good == batch.rows
        assert batch.reasons == {}
        wanted = torch.stack([Scaled()(source.image(row)) for row in batch.rows])
        assert batch.images is not None
        assert torch.equal(batch.images, wanted)


def test_bad_images_never_shift_their_neighbours(tiny_images: Images) -> None:
    root = tiny_images()
    source = open_folder(root)
    for row in (1, 3, 4, 5):
        source.path(row).write_text("no picture")
    first, second, third = decoded(Decode(source, Scaled(), [[0, 1, 2], [3, 4, 5], [6]]), workers=0)
    assert (first.good, list(first.reasons)) == ([0, 2], [1])
    assert first.images is not None
    assert torch.equal(first.images[1], Scaled()(source.image(2)))
    assert (second.good, second.images, list(second.reasons)) == ([], None, [3, 4, 5])
    assert source.name(4) in second.reasons[4]
    assert third.good == [6]


def test_a_disk_that_disappears_ends_the_run_and_is_no_row_of_bad_images(tiny_images: Images) -> None:
    root = tiny_images()
    source = open_folder(root)
    source.path(1).write_text("no picture")
    decode = Decode(source, Scaled(), [[k, k + 1] for k in range(0, 10, 2)])
    stream = decoded(decode, workers=0)
    assert list(next(stream).reasons) == [1]
    root.rename(root.with_name("away"))
    with pytest.raises(EDDPError, match=r"No such file or directory\. Completed chunks stay: run the same") as caught:
        list(stream)
    assert not isinstance(caught.value, ImageError)
    batch = pickle.loads(pickle.dumps(decode[4]))  # noqa: S301  (as a worker does)
    assert (batch.reasons, batch.good) == ({}, [])
    assert isinstance(batch.failure, EDDPError)
    assert not isinstance(batch.failure, ImageError)


def test_lack_of_memory_in_a_transform_or_for_a_batch(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_folder(tiny_images())

    def fails(_: object) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(EDDPError, match=r"not enough memory for the image 'cat/000\.png'\. Completed .*--batch-size"):
        next(decoded(Decode(source, fails, [[0]]), workers=0))
    monkeypatch.setattr("extract.loader.torch.stack", fails)
    decode = Decode(source, Scaled(), [[0, 1]])
    assert "not enough memory for the image 'cat/000.png'" in str(decode[0].failure)


def test_a_transform_that_fails_names_the_images_in_one_line(tiny_images: Images) -> None:
    root = tiny_images(4)
    for file in sorted((root / "cat").iterdir()):
        file.rename(file.with_name(f"two\nlines {file.name}"))
    source = open_folder(root)
    Image.new("RGB", (9, 7)).save(source.path(1))

    def fails(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("first\nsecond")

    name = r"'cat/two\\nlines 00{}\.png'"
    for transform, wanted in (
        (fails, f"transform fails on image {name.format(0)}: RuntimeError: first second"),
        (Unresized(), rf"{name.format(0)} becomes \(3, 20, 20\), {name.format(1)} becomes \(3, 7, 9\)"),
    ):
        with pytest.raises(UsageError, match=wanted) as caught:
            next(decoded(Decode(source, transform, [[0, 1]]), workers=0))
        assert "\n" not in str(caught.value)


def test_the_window_is_bounded(tiny_images: Images) -> None:
    source = open_folder(tiny_images())
    started: list[int] = []

    class Counting(Decode):
        def one(self, row: int) -> torch.Tensor | str:
            started.append(row)
            return super().one(row)

    stream = decoded(Counting(source, Scaled(), [[k] for k in range(10)]), workers=0)
    next(stream)
    assert len(started) <= 4
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert len(started) <= 5


def test_an_error_travels_from_a_worker_as_a_value(tiny_images: Images) -> None:
    """What a spawned worker does, without the second it takes to start one."""
    source = open_folder(tiny_images())
    Image.new("RGB", (9, 7)).save(source.path(2))
    decode = pickle.loads(pickle.dumps(Decode(source, Unresized(), [[0, 1, 2], [0]])))  # noqa: S301
    batch: Batch = pickle.loads(pickle.dumps(decode[0]))  # noqa: S301
    assert isinstance(batch.failure, UsageError)
    assert "becomes (3, 20, 20)" in str(batch.failure)
    assert decode[1].failure is None


def test_a_worker_that_dies_is_reported_in_one_message(tiny_images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __iter__(self) -> None:
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    monkeypatch.setattr("extract.loader.DataLoader", Dying)
    source = open_folder(tiny_images())
    with pytest.raises(EDDPError, match=r"A decoding process ended unexpectedly.*--workers 0"):
        next(decoded(Decode(source, Scaled(), [[0]]), workers=1))
