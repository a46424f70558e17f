"""Small drawn videos, written with PyAV: numbered colours without loss, and squares that move as their class says."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (64, 48)  # width, height
FRAMES, RATE = 24, 24
MOVES = {"down": (0, 1), "left": (-1, 0), "right": (1, 0), "up": (0, -1)}  # classes of ``moving``
# Lossless, in containers that differ in how they tell times
LOSSLESS: dict[str, dict[str, Any]] = {
    "avi": {"codec": "ffv1", "pixels": "bgr0"},
    "mkv": {"codec": "ffv1", "pixels": "bgr0"},
    "mp4": {"codec": "libx264rgb", "pixels": "rgb24", "options": {"qp": "0"}},
}


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "",
    pixels: str = "",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: int | None = None,
    title: str = "",
) -> Path:
    """A video of RGB frames, lossless unless a codec is given. ``times`` of the frames are in milliseconds."""
    chosen = LOSSLESS.get(path.suffix[1:], {}) if not codec else {"codec": codec, "pixels": pixels, "options": options}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as file:
        if title:
            file.metadata["title"] = title
        stream: Any = file.add_stream(chosen["codec"], rate=RATE, options=chosen.get("options") or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = chosen["pixels"]
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for k, pixels_of in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of, "rgb24")
            if times:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def numbered(count: int = FRAMES) -> list[np.ndarray]:
    """Frames whose red is ten times their number, with a white corner at the top left."""
    frames = [np.full((SIZE[1], SIZE[0], 3), (10 * k, 100, 50), np.uint8) for k in range(count)]
    for frame in frames:
        frame[:8, :8] = 255
    return frames


def moving(name: str, number: int, count: int = FRAMES) -> list[np.ndarray]:
    """A square of a colour of its class (of ``MOVES``) that moves as the class is called, from a place of its number."""
    (dx, dy), colour = MOVES[name], 255 * np.eye(4, 3, dtype=np.uint8)[sorted(MOVES).index(name)]
    frames = np.full((count, SIZE[1], SIZE[0], 3), 60 + 10 * (number % 5), np.uint8)
    for k, frame in enumerate(frames):
        left, top = (7 * number + 2 * k * dx) % (SIZE[0] - 12), (5 * number + 2 * k * dy) % (SIZE[1] - 12)
        frame[top : top + 12, left : left + 12] = colour
    return list(frames)


def put_clips(root: Path, per: int = 2, *, ending: str = "mp4", classes: Sequence[str] = tuple(MOVES)) -> Path:
    """Class folders of moving squares: ``down/down_0.mp4``, ..."""
    for name in classes:
        for k in range(per):
            write_clip(root / name / f"{name}_{k}.{ending}", moving(name, k))
    return root


def write_sound(path: Path) -> Path:
    """A file with sound and no video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as file:
        stream: Any = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def reds(frames: Sequence[Any]) -> list[int]:
    """Numbers of the frames of a numbered video, by their colour."""
    return [int(np.asarray(frame)[24, 32, 0]) // 10 for frame in frames]
