"""From files to images: bad images, disks that are away, lack of memory, formats and modes."""

import errno
import io
import os
import socket
import stat
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from image_folders import put
from PIL import Image

from extract import image_io
from extract.datasets import open_folder
from extract.image_io import decode_image, orientation_of, read_image, read_range, shown, to_mode
from extract.image_source import PathSource
from stores.errors import EDDPError, ImageError


def failing(monkeypatch: pytest.MonkeyPatch, number: int, *, when: str = "open") -> None:
    """The system refuses every image, as it is opened or read, with an error number."""
    if when == "open":
        real = os.open

        def refuse(path: object, flags: int, *rest: object, **more: object) -> int:
            if str(path).endswith(".png"):
                raise OSError(number, os.strerror(number))
            return real(path, flags, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuse)
        return

    class Failing(io.FileIO):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(image_io, "FileIO", Failing)


@contextmanager
def stops(wanted: str) -> Iterator[None]:
    """The run stops with one line that says how to resume; the image is not skipped as a bad one."""
    with pytest.raises(EDDPError, match=wanted) as caught:
        yield
    assert not isinstance(caught.value, ImageError)
    assert "\n" not in str(caught.value)
    assert ".." not in str(caught.value)
    assert "Completed chunks stay: run the same command again" in str(caught.value)


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM],
)
def test_a_system_that_refuses_a_file_is_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: str
) -> None:
    source = open_folder(put(tmp_path, "a/1.png"))
    failing(monkeypatch, number, when=when)
    scarce = number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    then = "with fewer --workers" if scarce else "once the disk is back; if the file is really missing, remove it"
    with stops(f"^'{tmp_path}/a/1.png' cannot be read: {os.strerror(number)}\\. .*{then}"):
        source.image(0)


def test_a_link_to_nothing_is_a_bad_image_and_one_to_a_missing_disk_is_not(tmp_path: Path) -> None:
    put(tmp_path / "disk/deep", "1.png", "2.png")
    (tmp_path / "data").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "disk/deep" / name)
    (tmp_path / "disk/deep/2.png").unlink()
    fresh, source = open_folder(tmp_path / "data"), open_folder(tmp_path / "data")
    assert source.digest  # has looked at each file
    assert [known.image(0).size for known in (fresh, source)] == [(4, 3)] * 2
    for known in (fresh, source):
        with pytest.raises(
            ImageError, match=r"^'2\.png' cannot be read: No such file or directory \(it is a link to nothing\)\.$"
        ):
            known.image(1)
    (tmp_path / "disk/deep").rename(tmp_path / "away")
    for known, i in ((fresh, 0), (fresh, 1), (source, 0)):
        with stops("No such file or directory"):
            known.image(i)
    (tmp_path / "disk/deep").mkdir()  # where a disk is put in
    with stops(r"1\.png' cannot be read: No such file or directory"):
        source.image(0)
    (tmp_path / "data").rename(tmp_path / "links")
    with stops("cannot be read"):
        source.image(1)


def test_a_link_to_itself_and_a_name_no_disk_takes_are_bad_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    for name, wanted in (
        ("a.png", r"it is a link that leads to itself"),
        ("x" * 300 + ".png", r"no disk takes it"),
        ("nul\0.png", r"^'nul\\x00\.png' cannot be read: embedded null byte\.$"),
    ):
        with pytest.raises(ImageError, match=wanted):
            PathSource(tmp_path, [(name, 0)], None, "flat folder").image(0)


def test_a_file_that_may_not_be_read_next_to_others_is_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_folder(put(tmp_path, "a/1.png"))
    failing(monkeypatch, errno.EACCES)
    with pytest.raises(
        ImageError, match=r"^'a/1\.png' cannot be read: Permission denied \(others in its folder may be\)"
    ):
        source.image(0)

    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", refuse)
    with stops(r"^'.*a/1\.png' cannot be read: Permission denied\. "):
        source.image(0)


def test_a_file_that_ends_while_it_is_read_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending(io.FileIO):
        def read(self, size: int = -1, /) -> bytes:
            return super().read(size)[:-9]

    monkeypatch.setattr(image_io, "FileIO", Ending)
    with stops(r"a\.png' ends \d bytes too early; has it changed"):
        read_image(put(tmp_path, "a.png") / "a.png")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), "fewer --workers or a smaller --batch-size"),
        (OSError("out of memory error when reading image file"), "fewer --workers or a smaller --batch-size"),
        (OSError(errno.ENOMEM, "no memory"), "fewer --workers or a smaller --batch-size"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "once the disk is back"),
    ],
)
def test_what_the_system_says_to_a_decoder_is_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: str
) -> None:
    def load(_: object) -> None:
        raise error

    source = open_folder(put(tmp_path, "a.png"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with stops(rf"'a\.png'.*{wanted}"):
        source.image(0)


def test_a_range_that_cannot_be_read_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_range(tmp_path / "a", 3, 4, "x") == b"3456"
    with stops(r"^'x' in '.*a' ends 2 bytes too early; has it changed"):
        read_range(tmp_path / "a", 8, 4, "x")
    with stops(r"^'x' in '.*b' cannot be read: No such file"):
        read_range(tmp_path / "b", 0, 1, "x")
    failing(monkeypatch, errno.EIO, when="read")
    with stops(r"^'x' in '.*a' cannot be read: Input/output error"):
        read_range(tmp_path / "a", 0, 1, "x")


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes of that kind")
def test_what_is_no_regular_file_is_a_bad_image_and_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    os.mkfifo("fifo.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.png")
    Path("device.png").symlink_to("/dev/zero")
    source = open_folder(Path())
    assert [source.name(i) for i in range(3)] == ["device.png", "fifo.png", "socket.png"]
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for i, name in enumerate(("device", "fifo", "socket")):  # waiting for one of them is ended by the test's time limit
        with pytest.raises(ImageError, match=rf"^'{name}\.png' is no regular file\.$"):
            source.image(i)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        ImageError, match=r"^'a\.png' is refused: 1099511627776 bytes are too many for an image \(at most"
    ):
        open_folder(tmp_path).image(0)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA"])
def test_formats_that_are_not_wanted_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from PIL import EpsImagePlugin

    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "a.jpg", kind)
    with pytest.raises(ImageError, match=r"^'a\.jpg' is no image file"):
        open_folder(tmp_path).image(0)
    assert not started


def test_oddities_of_real_datasets_are_opened(tmp_path: Path) -> None:
    """ImageNet holds a PNG called .JPEG and JPEGs in CMYK; cameras write several pictures into one."""
    red = Image.new("RGB", (40, 30), (200, 0, 0))
    red.save(tmp_path / "png.JPEG", "PNG")
    red.convert("CMYK").save(tmp_path / "cmyk.JPEG", "JPEG")
    red.save(tmp_path / "mpo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    red.save(tmp_path / "webp.png", "WEBP", lossless=True)
    red.save(tmp_path / "bmp.tif", "BMP")
    red.save(tmp_path / "tiff.jpg", "TIFF", compression="tiff_lzw")
    red.convert("L").save(tmp_path / "grey.pgm", "PPM")
    red.save(tmp_path / "progressive.jpg", "JPEG", progressive=True)
    # imported at the start: what Pillow imports later would be missing if no file could be opened then
    assert {"JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000"} <= set(image_io.FORMATS)
    source = open_folder(tmp_path)
    assert len(source) == 8
    for i in range(len(source)):
        image = to_mode(source.image(i))
        assert (image.mode, image.size) == ("RGB", (40, 30))
        if not source.name(i).startswith("grey"):
            np.testing.assert_allclose(np.asarray(image)[5, 5], [200, 0, 0], atol=3)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 683), (3000, 4)])
def test_a_line_is_refused_before_it_is_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=rf"^'a\.png' is refused: it is {size[0]} × {size[1]} pixels, more than 682 times"
    ):
        open_folder(tmp_path).image(0)
    file = io.BytesIO()
    Image.new("L", (682, 1)).save(file, "PNG")
    assert decode_image(file.getvalue(), "x").size == (682, 1)
    assert 512 * 512 * image_io.LONGEST <= 2 * 89478485 < 512 * 512 * (image_io.LONGEST + 1)


def test_reasons_are_the_same_wherever_a_dataset_is(tmp_path: Path) -> None:
    sentences = []
    for place in ("here", "there/deep"):
        root = put(tmp_path / place, "a/1.png", "a/2.png", "a/3.png", "a/new\nline.png")
        (root / "a/1.png").write_text("no picture")
        (root / "a/2.png").write_bytes((root / "a/2.png").read_bytes()[:-30])
        (root / "a/3.png").unlink()
        (root / "a/3.png").symlink_to(root / "nothing")
        (root / "a/new\nline.png").write_bytes(b"")
        source = open_folder(root)
        found = []
        for i in range(len(source)):
            with pytest.raises(ImageError) as caught:
                source.image(i)
            found.append(str(caught.value))
            assert "\n" not in found[-1]
        sentences.append(found)
    assert sentences[0] == sentences[1]
    assert sentences[0][0].startswith("'a/1.png' is no image file")
    assert sentences[0][3].startswith("'a/new\\nline.png' is no image file")


def test_an_open_file_is_closed_when_it_is_refused(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("nothing here lists what is open")
    put(tmp_path, "a.png")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            image_io.open_regular(tmp_path)
        with image_io.open_regular(tmp_path / "a.png") as file:
            assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_as_they_are_shown() -> None:
    assert shown("grün/猫 1.png") == "grün/猫 1.png"
    assert shown(Path("a\x1b[31m\udce9\u2028")) == "a\\x1b[31m\\udce9\\u2028"


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-900])


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: path.write_bytes(b""), "is no image file"),
        (lambda path: path.write_text("I am no picture"), "is no image file"),
        (truncated, "cannot be decoded: image file is truncated"),
        (lambda path: Image.new("L", (400, 400)).save(path, "PNG"), "is refused: Image size .* exceeds limit"),
        (Path.mkdir, "cannot be decoded: Is a directory"),
    ],
)
def test_bad_images_end_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], wanted: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(ImageError, match=wanted) as caught:
        read_image(path)
    assert f"'{path}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_image_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between once and twice the limit Pillow warns; threads must not undo each other's filters."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    Image.new("L", (120, 120)).save(tmp_path / "large.png")
    Image.new("L", (150, 150)).save(tmp_path / "bomb.png")
    raw: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # undoes whatever was filtered before
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: raw.append(str(message)))
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(read_image, [tmp_path / "large.png"] * 200))
        with pytest.raises(ImageError, match="is refused: Image size"):
            read_image(tmp_path / "bomb.png")
        filters = len(warnings.filters)
        read_image(tmp_path / "large.png")
        assert len(warnings.filters) == filters
        warnings.warn("others are still heard", UserWarning, stacklevel=1)
    assert {image.size for image in images} == {(120, 120)}
    assert raw == ["others are still heard"]


def test_broken_metadata_next_to_sound_pixels_gives_no_warning(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\x00\x01\0\0\x12\x01\x03\0\x01"
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 20)
    with Image.open(tmp_path / "a.jpg") as image:
        assert orientation_of(image) == 1


def test_any_flipped_bytes_give_an_image_or_an_image_error(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    pixels = Image.fromarray(g.integers(0, 256, (16, 16, 3), np.uint8))
    for ending in ("png", "jpg", "bmp", "ppm", "webp"):
        file = tmp_path / f"a.{ending}"
        pixels.save(file)
        data = bytearray(file.read_bytes())
        for _ in range(60):
            harmed = bytearray(data)
            for i in g.integers(0, min(len(data), 80), 3):
                harmed[i] = g.integers(256)
            file.write_bytes(harmed[: g.integers(len(data) // 2, len(data) + 1)])
            with suppress(ImageError):
                assert read_image(file).mode == "RGB"
