"""From a file's bytes to an image, and from any mode to 8-bit RGB or grey.

Two kinds of failure are distinguished. What a decoder reports of completely read bytes is a bad image: ImageError, which
a run may skip. What the system reports when a file is opened or read, and lack of memory, is not the image's fault:
EDDPError, which ends the run, so that no image is dropped for good because a disk was away for a while.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from stores.errors import EDDPError, ImageError, OutOfMemoryError, UsageError

# Not read: what Pillow cannot decode itself (stubs, and EPS and WMF, for which it starts other programs), and what has no
# magic number, so that any file would do. TGA has none either: it is tried only for files with its endings.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IM", "IMT", "IPTC", "MCIDAS", "PCD", "SPIDER", "XVTHUMB"}
_BY_ENDING = {"TGA"}
Image.preinit()  # the common formats first: they are tried in this order
Image.init()  # all plugins now, not when the first file wants one: there may be no file handle left by then
FORMATS = tuple(name for name in Image.OPEN if name not in _NOT_READ | _BY_ENDING)
ENDINGS = tuple(
    sorted(e for e, name in Image.registered_extensions().items() if name in {"MPO", *FORMATS, *_BY_ENDING})
)
LARGEST = 2**30  # bytes of a file; the largest image that Pillow reads has half of that, uncompressed
# Resized to 512 pixels at its shorter side, a longer image would have more pixels than twice Pillow's limit (2 * 89478485).
LONGEST = 682  # times its shorter side
KEPT = "Completed chunks stay: run the same command again"
OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))

# Decided here: an image below twice MAX_IMAGE_PIXELS is read (above, Pillow raises), and broken metadata next to sound pixels,
# common in ImageNet, changes nothing that is read.
_QUIET = ((Image.DecompressionBombWarning, None), (UserWarning, re.compile(r"PIL\.\w+ImagePlugin")))


def quiet_pillow() -> None:
    """Silence Pillow's warnings about single images.

    ``warnings.catch_warnings`` swaps the filters of the process, so it is not for threads; these filters are added
    once and stay. Checking that they are still there costs a microsecond.
    """
    for category, module in _QUIET:
        if ("ignore", None, category, module, 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=category, module=module.pattern if module else "")


quiet_pillow()


def shown(name: str | Path) -> str:
    """A name for a message: line breaks, other control characters and bytes that are not UTF-8 are escaped."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(map(shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


class IrregularError(OSError):
    """What was opened is a pipe, a socket or a device."""


def open_regular(path: Path) -> FileIO:
    """Open a file for reading without waiting for a pipe or a device. Raises OSError, IrregularError, IsADirectoryError."""
    try:
        handle = os.open(path, OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP) and not (path.is_file() or path.is_dir()):
            raise IrregularError("it is no regular file") from error  # a socket, say
        raise
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise IrregularError("it is no regular file")
        return FileIO(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_image(path: Path, name: str | None = None, *, known_broken: bool | None = None) -> Image.Image:
    """Decode an image file: PIL image of the file's own mode, its first frame.

    Parameters
    ----------
    name : str, optional
        What ImageError calls the file (its path where none is given).
    known_broken : bool, optional
        For a broken link: whether it already was one when the images were listed. Then it is a bad image; if it was none,
        the disk that it leads to is away. Where that is not known, the folder that it leads to must still be there.

    Raises
    ------
    ImageError
        For bytes that cannot be decoded completely, and for what is no readable file and never was.
    EDDPError
        For a file that cannot be opened or read, and for lack of memory: that is not the image's fault.
    """
    name = shown(path if name is None else name)
    with reading(path, name, known_broken=known_broken), open_regular(path) as file:
        data = _bytes_of(file, 0, os.fstat(file.fileno()).st_size, name, f"'{shown(path)}'")
    return decode_image(data, name)


def read_range(path: Path, offset: int, size: int, name: str) -> bytes:
    """Bytes from within a file, opened only for this: nothing to share between threads or to pickle. Raises as ``read_image``."""
    with reading(path, name, inside=True), open_regular(path) as file:
        return _bytes_of(file, offset, size, name, f"'{name}' in '{shown(path)}'")


def _bytes_of(file: FileIO, offset: int, size: int, name: str, what: str) -> bytes:
    if size > LARGEST:
        raise ImageError(f"'{name}' is refused: {size} bytes are too many for an image (at most {LARGEST}).")
    file.seek(offset)
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    if len(data) < size:
        raise EDDPError(f"{what} ends {size - len(data)} bytes too early; has it changed? {KEPT} once it is complete.")
    return data


@contextmanager
def reading(path: Path, name: str, *, inside: bool = False, known_broken: bool | None = None) -> Iterator[None]:
    """Turn what the system reports of a file into ImageError or EDDPError, as ``read_image`` says; ``inside``: of a part of it."""
    try:
        yield
    except EDDPError:
        raise
    except MemoryError as error:
        raise out_of_memory(name) from error
    except ValueError as error:  # a name, from a list, that no disk takes
        raise ImageError(f"'{name}' cannot be read: {reason(error)}.") from error
    except OSError as error:
        if not inside and (fault := _own_fault(path, error, known_broken)):
            raise ImageError(f"'{name}' {fault}.") from error
        raise _lost(f"'{name}' in '{shown(path)}'" if inside else f"'{shown(path)}'", error) from error


def _own_fault(path: Path, error: OSError, known_broken: bool | None) -> str:
    """Why a file that cannot be opened is a bad image and always was; nothing where the disk may be away."""
    if isinstance(error, IrregularError):
        return "is no regular file"
    if isinstance(error, IsADirectoryError):
        return f"cannot be decoded: {reason(error)}"
    why = {errno.ELOOP: "it is a link that leads to itself", errno.ENAMETOOLONG: "no disk takes it"}.get(
        error.errno or 0
    )
    try:
        if error.errno == errno.ENOENT and stat.S_ISLNK(path.lstat().st_mode):
            if known_broken is None:
                known_broken = os.path.isdir(os.path.dirname(os.path.realpath(path)))  # noqa: PTH112, PTH120
            why = "it is a link to nothing" if known_broken else ""
        elif error.errno == errno.EACCES and stat.S_ISREG(path.stat().st_mode):
            with os.scandir(path.parent) as entries:  # asks the disk
                next(entries, None)
            why = "others in its folder may be"
    except OSError:
        return ""
    return f"cannot be read: {reason(error)} ({why})" if why else ""


def _lost(what: str, error: OSError) -> EDDPError:
    """The error for a file that the system does not give now."""
    then = "once the disk is back; if the file is really missing, remove it from the dataset, or from the list."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        then = "with fewer --workers, or after raising the limit (ulimit -n)."
    if error.errno == errno.ENOMEM:
        then = "with fewer --workers or a smaller --batch-size."
    kind = OutOfMemoryError if error.errno == errno.ENOMEM else EDDPError
    return kind(f"{what} cannot be read: {reason(error)}. {KEPT} {then}")


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode a file's bytes; ``name`` is what ImageError calls it. Raises EDDPError for lack of memory."""
    quiet_pillow()
    try:
        with Image.open(BytesIO(data), formats=formats_of(name)) as image:
            check_shape(image.size, name)
            image.load()
            return image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"'{name}' is no image file (its content is of no known format).") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"'{name}' is refused: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        if isinstance(error, MemoryError) or "out of memory" in str(error):  # Pillow's decoders do either
            raise out_of_memory(name) from error
        if isinstance(error, OSError) and error.errno:  # decoders leave it out: this is the system's
            raise _lost(f"'{name}'", error) from error
        raise ImageError(f"'{name}' cannot be decoded: {reason(error)}.") from error


def check_shape(size: tuple[int, int], name: str) -> None:
    """Raise ImageError for an image, or a video, that is far longer at one side than at the other."""
    if max(size) > LONGEST * min(size):
        raise ImageError(
            f"'{name}' is refused: it is {size[0]} × {size[1]} pixels, more than {LONGEST} times as long at one side as at the "
            "other; resized for a network it could fill the memory."
        )


def formats_of(name: str) -> tuple[str, ...]:
    """The formats that a file of this name may be in, whatever its ending promises."""
    by_ending = Image.registered_extensions().get(os.path.splitext(name)[1].lower())  # noqa: PTH122
    return (*FORMATS, by_ending) if by_ending in _BY_ENDING else FORMATS


def out_of_memory(name: str) -> OutOfMemoryError:
    """The error for an image that there is no memory for."""
    return OutOfMemoryError(
        f"There is not enough memory for the image '{name}'. {KEPT}, with fewer --workers or a smaller --batch-size; if it "
        "is always this image, remove it."
    )


def reason(error: BaseException) -> str:
    """What went wrong, in one line without a full stop."""
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return shown(" ".join(text.split())).rstrip(".")


GreyRange = tuple[float, float]  # the values that stand for black and for white
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_MIN_IS_WHITE, _UNSIGNED, _SIGNED = 0, 1, 2
_BAND = 2**20  # pixels of deep grey that are converted at a time


def _tag(image: Image.Image, number: int) -> int | None:
    """A tag of a TIFF, the first of several values."""
    value: Any = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def grey_values(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """(h, w) float64 values of a deep grey image, or of a part of it, as they are in its file."""
    values = np.asarray(image if box is None else image.crop(box))
    if image.mode == "I" and _tag(image, _BITS) == 32 and _tag(image, _SAMPLE_FORMAT) in (None, _UNSIGNED):
        values = values.view(np.uint32)  # Pillow has no mode for them
    return values.astype(np.float64)


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits, or of floating point."""
    return image.mode.startswith(("I", "F"))


def range_of_depth(image: Image.Image) -> GreyRange | None:
    """Black and white of a deep grey image by the depth of its file; None where the file does not say: 32 bits, signed, float."""
    if image.mode.startswith("I;16"):
        white = 2 ** (_tag(image, _BITS) or 16) - 1
        return (white, 0) if _tag(image, _PHOTOMETRIC) == _MIN_IS_WHITE else (0, white)
    # Pillow scales portable grey maps to 16 bits, and some versions open PNGs of 16 bits as I
    return (0, 65535) if image.mode == "I" and image.format in ("PNG", "PPM") else None


def to_mode(image: Image.Image, mode: str = "RGB", grey_range: GreyRange | None = None) -> Image.Image:
    """Turn a PIL image of any mode into 8-bit "RGB" or "L".

    Alpha is dropped, not blended. Grey of more than 8 bits is scaled by ``grey_range``, else by the depth of its file: by the
    same rule for every image, whatever values it holds.

    Raises
    ------
    UsageError
        The file's depth does not say which values are black and white, and no range is given.
    """
    if _tag(image, _SAMPLE_FORMAT) == _SIGNED and not is_deep(image):
        raise UsageError("a TIFF of signed values of 8 bits is not read: save it as unsigned, or as floating point")
    if image.mode == mode:
        return image
    if is_deep(image):
        if grey_range is not None and _tag(image, _PHOTOMETRIC) == _MIN_IS_WHITE:
            grey_range = grey_range[::-1]
        grey_range = grey_range or range_of_depth(image)
        if grey_range is None:
            raise UsageError(
                f"a {image.format or 'grey'} image of mode {image.mode} does not say which values are black and white. Give "
                "--grey-range LOW,HIGH (such as 0,1 or 0,255)"
            )
        image = _scaled(image, *grey_range)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _scaled(image: Image.Image, black: float, white: float) -> Image.Image:
    """Deep grey as "L", in bands of rows: as float64 a large image would take eight bytes a pixel several times over."""
    width, height = image.size
    rows = max(1, _BAND // max(1, width))
    grey = Image.new("L", image.size)
    for top in range(0, height, rows):
        band = np.nan_to_num(grey_values(image, (0, top, width, min(top + rows, height))), nan=black)
        levels = np.clip(np.rint((band - black) * (255 / (white - black))), 0, 255)
        grey.paste(Image.fromarray(levels.astype(np.uint8)), (0, top))
    return grey


ORIENTATION = 0x0112


def orientation_of(image: Image.Image) -> int:
    """1 to 8 from an image that is opened and not decoded; 1 where its pixels are read as viewers show them."""
    # Pillow turns a TIFF when it opens it; of a PNG it would decode all to look behind the pixels
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  (broken metadata next to sound pixels changes nothing that is read)
        return 1
    return value if value in range(1, 9) else 1
