"""Videos: a clip gives the frames of a video file that are shown at chosen times.

Frames are as a player shows them: at their times, whatever the frame rate, in the colours the file says, turned as it says.
Pixels that are not square are not resampled: networks resize to a size of their own, and the readers that video networks
are trained with leave such pixels as they are. A file that is damaged or cut short is a bad image (``extract.image_io``).
"""

from __future__ import annotations

import errno
import importlib
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from extract.image_io import check_shape, open_regular, reading, reason, shown
from stores.errors import EDDPError, ImageError, UsageError

VIDEO_ENDINGS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
# What FFmpeg may read a file as: no playlist, which could lead to other files and to addresses
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg,m4v"
_ROUNDED = Fraction(1, 500)  # seconds: times and durations are integers of ticks, in Matroska milliseconds
_COVERED = 0.9  # of the length that a file gives; a last frame may be shown for a while
_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def is_video(name: str) -> bool:
    """Whether a file of this name is read as a video."""
    return name.lower().endswith(VIDEO_ENDINGS)


@dataclass(frozen=True)
class Clip:
    """A video file, or one view of it; nothing is read before its frames are asked for.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        What messages call it.
    view : (int, int)
        (k, M): the k-th (from 0) of M windows that are spread evenly over the video; (0, 1) is the central one.
    known_broken : bool, optional
        As for ``extract.image_io.read_image``.
    """

    path: Path
    name: str
    view: tuple[int, int] = (0, 1)
    known_broken: bool | None = None

    def frames(self, count: int, rate: float | None = None) -> list[Image.Image]:
        """Decode frames at even times: the middles of ``count`` equal parts of the view's window, each the frame shown then.

        Parameters
        ----------
        count : int
            How many.
        rate : float, optional
            Frames a second: the window is ``count / rate`` seconds long. Where the video ends earlier, its last frame is
            repeated. None: the M windows are the M equal parts of the video, so that one view covers all of it.

        Returns
        -------
        list of PIL.Image.Image
            RGB, in the order of time.

        Raises
        ------
        ImageError
            For a file that cannot be decoded, is cut short or has no video in it.
        EDDPError
            For a file that cannot be read now.
        UsageError
            PyAV is not installed.
        """
        av, name = _load_av(), shown(self.name)
        with reading(self.path, name, known_broken=self.known_broken), open_regular(self.path) as file:
            _check_length(file, name)
            try:
                timeline = _on_file(av, file, name, _timeline)
            except MemoryError as error:  # times take little: a damaged header asks for it
                raise ImageError(f"'{name}' cannot be decoded: it asks for more memory than there is.") from error
            wanted = [timeline.frame_at(time) for time in self._times(timeline, count, rate)]
            pictures = _on_file(
                av, file, name, lambda container: _pictures(container, name, timeline, sorted(set(wanted)))
            )
        return [pictures[index] for index in wanted]

    def _times(self, timeline: _Timeline, count: int, rate: float | None) -> list[Fraction]:
        """When the frames are wanted, in ticks."""
        (k, views), length = self.view, Fraction(timeline.end - timeline.shown[0])
        window = length / views if rate is None else count / Fraction(rate) / timeline.tick
        room = max(length - window, Fraction(0))
        start = timeline.shown[0] + room * (Fraction(k, views - 1) if views > 1 else Fraction(1, 2))
        return [start + window * Fraction(2 * j + 1, 2 * count) for j in range(count)]


@dataclass(frozen=True)
class _Timeline:
    """When each frame is shown, ascending, and when the last one ends, in ticks of ``tick`` seconds.

    ``counted`` says that frames are known by their order, since the times that come with them are not reliable.
    """

    shown: list[int]
    end: int
    tick: Fraction
    counted: bool

    def frame_at(self, time: Fraction) -> int:
        rounded = min(Fraction(2), _ROUNDED / self.tick)
        return max(bisect_right(self.shown, time + rounded) - 1, 0)


def _load_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise UsageError("To read videos PyAV is needed: pip install 'eddp[video]'.") from error


class _WatchedFile:
    """A file for FFmpeg, which knows only its end: an error of the disk ends it, and is stored to be raised."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def read(self, size: int) -> bytes:
        try:
            return self.file.read(size)
        except OSError as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.file.seek(offset, whence)
        except (OSError, OverflowError):  # to where a damaged file says: before its begin, say
            return -errno.EINVAL

    def tell(self) -> int:
        return self.file.tell()


def _on_file(av: Any, file: FileIO, name: str, work: Callable[[Any], Any]) -> Any:
    """What ``work`` makes of the opened container. Raises ImageError for what FFmpeg reports, OSError for the disk's errors."""
    file.seek(0)
    data = _WatchedFile(file)
    try:
        options = {"format_whitelist": _FORMATS}
        with closing(av.open(data, container_options=options, metadata_errors="replace")) as container:
            result = work(container)
    except (EDDPError, MemoryError):
        raise
    except _BadVideoError as error:
        if data.error is None:
            raise ImageError(f"'{name}' {error}.") from error
    except Exception as error:  # FFmpeg's errors; PyAV raises others for some damaged files
        if data.error is None:
            raise ImageError(f"'{name}' cannot be decoded: {reason(error)}.") from error
    if data.error is not None:
        raise data.error
    return result


class _BadVideoError(Exception):
    """What is wrong with a video, without its name."""


def _stream(container: Any) -> Any:
    """The first video stream that is no picture of a cover, decoded in this one thread: workers are parallel already."""
    covers = importlib.import_module("av.stream").Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        raise _BadVideoError("holds no video")
    if streams[0].codec_context is None:
        raise _BadVideoError("cannot be decoded: its codec is not known")
    streams[0].codec_context.thread_count = 1
    return streams[0]


def _timeline(container: Any) -> _Timeline:
    """Read the times of all frames; nothing is decoded."""
    stream = _stream(container)
    packets: list[tuple[int | None, int, bool]] = []
    end = 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        time, duration = packet.dts if packet.pts is None else packet.pts, packet.duration or 0
        if time is not None:
            end = max(end, float((time + duration) * packet.time_base))
        if packet.stream_index == stream.index and not packet.is_discard:
            packets.append((packet.pts, duration, packet.is_corrupt))
    if not packets:
        raise _BadVideoError("holds no frame")
    if packets[-1][2]:
        raise _BadVideoError("is cut short: its last frame is not complete")
    # where nothing readable follows, these two end without an error
    length = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    end -= (container.start_time or 0) / 1e6
    if container.format.name in ("matroska,webm", "avi") and packets[-1][1] and end < _COVERED * length:
        raise _BadVideoError(f"is damaged: only {end:.1f} of its {length:.1f} s can be read")
    tick = stream.time_base
    usual = 1 / stream.average_rate / tick if stream.average_rate else Fraction(1)
    times = [time for time, *_ in packets if time is not None]
    # AVI has no times: where frames are not in the order of their data, FFmpeg can only guess
    counted = len(times) < len(packets) or bool(stream.codec_context.has_b_frames and times == sorted(times))
    if len(times) < len(packets):
        times = [round(k * usual) for k in range(len(packets))]
    shown = sorted(times) if counted else sorted(set(times))
    gaps = [after - before for before, after in pairwise(shown)]
    _, last = max((time, duration) for time, (_, duration, _) in zip(times, packets, strict=True))
    return _Timeline(shown, shown[-1] + (last or max(1, round(median(gaps) if gaps else usual))), tick, counted)


def _pictures(container: Any, name: str, timeline: _Timeline, wanted: list[int]) -> dict[int, Image.Image]:
    """Frames by their number, decoded in order up to the last one that is wanted."""
    found: dict[int, Image.Image] = {}
    ahead = deque(wanted)
    number, before = -1, None
    for frame in _decoded(container, name):
        number = number + 1 if timeline.counted or frame.pts is None else bisect_right(timeline.shown, frame.pts) - 1
        while ahead and ahead[0] <= number:
            # a decoder leaves out frames that it lacks the start of: the one before is still shown
            found[ahead[0]] = _picture(frame if ahead[0] == number or before is None else before)
            ahead.popleft()
        if not ahead:
            return found
        before = frame
    if before is None or ahead[0] > number + 1:
        raise _BadVideoError("cannot be decoded: frames are missing at its end")
    return found | dict.fromkeys(ahead, _picture(before))


def _decoded(container: Any, name: str) -> Iterator[Any]:
    stream = _stream(container)
    check_shape((stream.codec_context.width, stream.codec_context.height), name)
    for packet in container.demux(stream):
        if packet.size:  # an empty one would end the decoding
            yield from packet.decode()
    yield from stream.codec_context.decode(None)


def _picture(frame: Any) -> Image.Image:
    """RGB, turned as the file says."""
    if frame.is_corrupt:
        raise _BadVideoError("cannot be decoded: one of its frames is damaged")
    image = frame.to_image(threads=1)
    turn = _TURNS.get(round(frame.rotation / 90) % 4)
    return image if turn is None else image.transpose(turn)


def _check_length(file: FileIO, name: str) -> None:
    """Raise ImageError for a file that is shorter than its own container says: FFmpeg reads one up to where it breaks off."""
    size, promised = os.fstat(file.fileno()).st_size, 0
    head = _at(file, 0, 64)
    if not head:
        raise ImageError(f"'{name}' is empty.")
    if head[:4] == b"RIFF":  # AVI: chunks of a name, a size and so many bytes; longer files have several
        while promised < size and (chunk := _at(file, promised, 8))[:4] == b"RIFF":
            promised += 8 + int.from_bytes(chunk[4:], "little")
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):  # MP4, MOV: boxes of a size and a name
        while promised < size:
            box = _at(file, promised, 16)
            length = int.from_bytes(box[:4], "big")
            length = int.from_bytes(box[8:], "big") if length == 1 else length
            if length < 8 or not box[4:8].isalnum():  # 0: up to the end; or no box
                break
            promised += length
    elif head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska, WebM: a header and a segment
        start, header = _ebml_size(head, 4)
        begin = start + (header or 0)
        segment = _at(file, begin, 12)
        if segment[:4] == b"\x18\x53\x80\x67":
            start, content = _ebml_size(segment, 4)
            promised = 0 if content is None else begin + start + content
    if promised > size:
        raise ImageError(f"'{name}' is cut short: {size} of {promised} bytes are there.")


def _ebml_size(data: bytes, at: int) -> tuple[int, int | None]:
    """Where what follows a size of Matroska begins, and the size; None where it is not known, as in a live recording."""
    length = 9 - data[at].bit_length() if len(data) > at and data[at] else 8
    ones = (1 << 7 * length) - 1
    size = int.from_bytes(data[at : at + length], "big") & ones
    return at + length, None if size == ones else size


def _at(file: FileIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
