"""Rows of a source with videos: single frames of each clip, or several views of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from extract.image_source import ImageSource
from extract.video import Clip, is_video
from stores.errors import ImageError

_KEPT = 3  # clips: two threads work on rows next to each other


def has_videos(source: ImageSource) -> bool:
    """Whether some of the rows are videos."""
    return any(is_video(source.name(i)) for i in range(len(source)))


def frame_rows(source: ImageSource, n: int) -> ImageSource:
    """Make each of ``n`` uniform frames of a clip a row: ``clip.mp4#k``. A still image is ``n`` equal frames."""
    return FrameRows(source, n)


def view_rows(source: ImageSource, m: int) -> ImageSource:
    """Make each of ``m`` views of a clip a row, ``clip.mp4#k``; the source itself for one view."""
    return source if m == 1 else ViewRows(source, m)


def expanded(source: ImageSource, rows: Mapping[str, int]) -> ImageSource:
    """Make each video as many rows as a store's provenance says: ``{"frames": N}`` or ``{"clips": M}``; {}: none is one."""
    if "frames" in rows:
        return frame_rows(source, int(rows["frames"]))
    return view_rows(source, int(rows.get("clips", 1)))


def video_of(name: str) -> str:
    """The video that a row is a frame or a view of: ``a.mp4`` of ``a.mp4#3``; any other name is given back."""
    video, mark, _ = name.rpartition("#")
    return video if mark and is_video(video) else name


class _RowsOfClips:
    """``per`` rows for each row of a source, next to each other, named ``NAME#k``."""

    what: str

    def __init__(self, source: ImageSource, per: int) -> None:
        self.source, self.per = source, per
        self.kind, self.root = source.kind, source.root
        self.class_names, self.left_out = source.class_names, source.left_out

    def __len__(self) -> int:
        return len(self.source) * self.per

    def name(self, i: int) -> str:
        clip, k = divmod(i, self.per)
        return f"{self.source.name(clip)}#{k:0{len(str(self.per - 1))}d}"

    def path(self, i: int) -> Path:
        return self.source.path(i // self.per)

    def label(self, i: int) -> int:
        return self.source.label(i // self.per)

    @property
    def digest(self) -> str:
        made = f"{self.source.digest} {self.what} {self.per}"
        return "sha256:" + hashlib.sha256(made.encode()).hexdigest()


class ViewRows(_RowsOfClips):
    """Views of the clips of a source."""

    what = "views"

    def image(self, i: int) -> Any:
        clip, k = divmod(i, self.per)
        found = self.source.image(clip)
        return Clip(found.path, found.name, (k, self.per), found.known_broken) if isinstance(found, Clip) else found


class FrameRows(_RowsOfClips):
    """Uniform frames of the clips of a source; those of the last clips stay in memory, so that each clip is decoded once."""

    what = "frames"

    def __init__(self, source: ImageSource, per: int) -> None:
        super().__init__(source, per)
        self._empty()

    def _empty(self) -> None:
        self._lock = Lock()
        self._last: OrderedDict[int, Future[list[Image.Image]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:  # a lock cannot be pickled
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_last")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._empty()

    def image(self, i: int) -> Image.Image:
        clip, k = divmod(i, self.per)
        with self._lock:
            found = self._last.get(clip)
            mine = found is None
            if found is None:
                found = self._last[clip] = Future()
                while len(self._last) > _KEPT:
                    self._last.popitem(last=False)
            else:
                self._last.move_to_end(clip)
        if mine:
            try:
                image: Any = self.source.image(clip)
                found.set_result(image.frames(self.per) if isinstance(image, Clip) else [image] * self.per)
            except BaseException as error:  # noqa: BLE001  (raised below, in each thread that waits for it)
                if not isinstance(error, ImageError):  # a disk may be back next time
                    with self._lock:
                        self._last.pop(clip, None)
                found.set_exception(error)
        return found.result()[k]
