"""From bytes to an RGB image, and how a file's name is put into a sentence."""

from __future__ import annotations

import re
import threading
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from extract.vision import to_rgb
from stores.errors import ImageError

# What Pillow warns of is decided here: an image below twice MAX_IMAGE_PIXELS is read (above, Pillow raises), and broken
# metadata beside sound pixels, common in ImageNet, changes nothing that is read.
_QUIET: tuple[tuple[type[Warning], str], ...] = (
    (Image.DecompressionBombWarning, ""),
    (UserWarning, r"PIL\.\w+ImagePlugin"),
)
_quieting = threading.Lock()


def quiet_pillow() -> None:
    """Keep Pillow's warnings about single images from the user's terminal.

    ``warnings.catch_warnings`` swaps the filters of the whole process and so is not for threads; these filters are put in
    once and stay. Looking whether they are still there costs a microsecond.
    """
    for category, module in _QUIET:
        entry = ("ignore", None, category, re.compile(module) if module else None, 0)
        if entry not in warnings.filters:
            with _quieting:
                warnings.filterwarnings("ignore", category=category, module=module)


quiet_pillow()


def shown(name: str | Path) -> str:
    """A name for a sentence: line breaks, other control characters and bytes that are not UTF-8 are escaped."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def read_image(path: Path) -> Image.Image:
    """Decode an image file to RGB. Raises ImageError with one sentence for anything that cannot be decoded whole."""
    return decode_image(path, shown(path))


def decode_image(file: Path | BytesIO, name: str) -> Image.Image:
    """Decode a file, or bytes that were read from one, to RGB; ``name`` is what ImageError calls it."""
    quiet_pillow()
    try:
        with Image.open(file) as image:
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(f"'{name}' is no image file (its content is of no known format).") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"'{name}' is refused: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise ImageError(f"'{name}' cannot be decoded: {reason(error)}.") from error


def read_range(path: Path, offset: int, size: int, name: str) -> bytes:
    """Bytes from within a file, opened for this alone: nothing to share between threads or to pickle.

    Raises ImageError when the file is gone or has become shorter.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ImageError(f"'{name}' cannot be read: {reason(error)}.") from error
    if len(data) != size:
        raise ImageError(
            f"'{name}' cannot be read: '{shown(path)}' ends {size - len(data)} bytes too early; has it changed?"
        )
    return data


def reason(error: BaseException) -> str:
    """What went wrong, in one line without a full stop."""
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return shown(" ".join(text.split())).rstrip(".")
