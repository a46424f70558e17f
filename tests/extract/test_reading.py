import errno
import io
import os
import socket
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract import image_io as reading
from extract.datasets import open_folder
from extract.image_io import decode_image, read_image, read_range, to_mode
from extract.image_source import PathSource
from stores.errors import EDDPError, ImageError


def put(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (k, 10, 20)).save(root / name, "PNG")
    return root


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
        def readall(self) -> bytes:
            raise OSError(number, os.strerror(number))

        def read(self, size: int = -1, /) -> bytes:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reading, "FileIO", Failing)


def stopped(caught: pytest.ExceptionInfo[EDDPError]) -> str:
    """The sentence of an error that is nothing to skip."""
    assert not isinstance(caught.value, ImageError)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ".." not in sentence
    assert "What is done so far is kept: run the same command again" in sentence
    return sentence


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
    with pytest.raises(EDDPError) as caught:
        source.image(0)
    sentence = stopped(caught)
    assert sentence.startswith(f"'{tmp_path}/a/1.png' cannot be read: {os.strerror(number)}. ")
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        assert "with fewer --workers" in sentence
    else:
        assert "once the disk is back; if the file is really gone, remove it" in sentence


def test_a_file_that_was_listed_and_is_gone_is_no_bad_image(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path / "data", "a/1.png", "2.png"))
    source.path(0).unlink()
    with pytest.raises(EDDPError, match=r"^'.*2\.png' cannot be read: No such file or directory\. What is") as caught:
        source.image(0)
    stopped(caught)
    (tmp_path / "data").rename(tmp_path / "gone")
    for i in range(2):
        with pytest.raises(EDDPError) as caught:
            source.image(i)
        stopped(caught)


def test_a_link_to_nothing_is_a_bad_image_and_one_to_a_disk_that_is_away_is_not(tmp_path: Path) -> None:
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
        with pytest.raises(EDDPError, match="No such file or directory") as caught:
            known.image(i)
        stopped(caught)
    (tmp_path / "disk/deep").mkdir()  # where a disk is put in
    with pytest.raises(EDDPError, match=r"1\.png' cannot be read: No such file or directory") as caught:
        source.image(0)
    stopped(caught)
    (tmp_path / "data").rename(tmp_path / "links")
    with pytest.raises(EDDPError) as caught:
        source.image(1)
    stopped(caught)


def test_a_link_to_itself_and_a_name_no_disk_takes_are_bad_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    for name, wanted in (
        ("a.png", r"it is a link that leads to itself"),
        ("x" * 300 + ".png", r"no disk takes it"),
        ("nul\0.png", r"^'nul\\x00\.png' cannot be read: embedded null byte\.$"),
    ):
        with pytest.raises(ImageError, match=wanted):
            PathSource(tmp_path, [(name, 0)], None, "flat folder").image(0)


def test_a_file_that_may_not_be_read_beside_others_is_a_bad_image(
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
    with pytest.raises(EDDPError, match=r"^'.*a/1\.png' cannot be read: Permission denied\. ") as caught:
        source.image(0)
    stopped(caught)


def test_a_file_that_ends_while_it_is_read_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending(io.FileIO):
        def readall(self) -> bytes:
            return super().readall()[:-9]

    monkeypatch.setattr(reading, "FileIO", Ending)
    with pytest.raises(EDDPError, match="it ended 9 bytes too early while it was read") as caught:
        read_image(put(tmp_path, "a.png") / "a.png")
    stopped(caught)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("out of memory error when reading image file"), OSError(errno.ENOMEM, "no memory")]
)
def test_want_of_memory_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(_: object) -> None:
        raise error

    source = open_folder(put(tmp_path, "a.png"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(EDDPError, match=r"'a\.png'.*with fewer --workers or a smaller --batch-size") as caught:
        source.image(0)
    stopped(caught)


def test_what_the_system_says_to_a_decoder_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(EDDPError) as caught:
        read_image(put(tmp_path, "a.png") / "a.png")
    stopped(caught)


def test_a_range_that_cannot_be_read_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_range(tmp_path / "a", 3, 4, "x") == b"3456"
    with pytest.raises(EDDPError, match=r"^'x' cannot be read: '.*a' ends 2 bytes too early; has it changed") as caught:
        read_range(tmp_path / "a", 8, 4, "x")
    stopped(caught)
    with pytest.raises(EDDPError, match=r"^'x' in '.*b' cannot be read: No such file") as caught:
        read_range(tmp_path / "b", 0, 1, "x")
    stopped(caught)
    failing(monkeypatch, errno.EIO, when="read")
    with pytest.raises(EDDPError, match=r"^'x' in '.*a' cannot be read: Input/output error") as caught:
        read_range(tmp_path / "a", 0, 1, "x")
    stopped(caught)


def within(seconds: float, call: object, *arguments: object) -> BaseException | None:
    """What a call raises; fails where it waits."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call(*arguments)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits"
    return raised[0] if raised else None


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
    for i, name in enumerate(("device", "fifo", "socket")):
        error = within(20, source.image, i)
        assert isinstance(error, ImageError)
        assert str(error) == f"'{name}.png' is no regular file."
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
def test_formats_that_nobody_asked_for_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
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
    source = open_folder(tmp_path)
    assert len(source) == 8
    for i in range(len(source)):
        image = to_mode(source.image(i))
        assert (image.mode, image.size) == ("RGB", (40, 30))
        if not source.name(i).startswith("grey"):
            np.testing.assert_allclose(np.asarray(image)[5, 5], [200, 0, 0], atol=3)


def test_formats_need_no_file_handle_once_the_first_image_is_read() -> None:
    """What Pillow imports only when it is wanted would be missing for good if no file could be opened then."""
    assert {"JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000"} <= set(reading.FORMATS)
    assert set(reading.FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 683), (3000, 4)])
def test_a_line_is_refused_before_it_is_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=rf"^'a\.png' is refused: it is {size[0]} × {size[1]} pixels, more than 682 times"
    ):
        open_folder(tmp_path).image(0)


def test_a_long_image_is_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (682, 1)).save(file, "PNG")
    assert decode_image(file.getvalue(), "x").size == (682, 1)
    assert 512 * 512 * reading.LONGEST <= 2 * 89478485 < 512 * 512 * (reading.LONGEST + 1)


def test_reasons_are_the_same_wherever_a_dataset_lies(tmp_path: Path) -> None:
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
            reading.open_regular(tmp_path)
        with reading.open_regular(tmp_path / "a.png") as file:
            assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    assert len(os.listdir("/proc/self/fd")) == before
