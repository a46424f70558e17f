"""Frames of videos: those shown at the times that were asked for, whatever the container; damaged files; rows of clips."""

import errno
import os
import pickle
import sys
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_folders import listed, put
from PIL import Image
from video_clips import FRAMES, LOSSLESS, numbered, put_clips, reds, write_clip, write_sound

from extract import video
from extract.datasets import open_source
from extract.video import Clip
from extract.video_rows import frame_rows, has_videos, view_rows
from stores.errors import EDDPError, ImageError, NoImagesError, UsageError


def clip(path: Path, view: tuple[int, int] = (0, 1)) -> Clip:
    return Clip(path, path.name, view)


@pytest.mark.parametrize("ending", sorted(LOSSLESS))
def test_frames_are_those_shown_at_even_times(tmp_path: Path, ending: str) -> None:
    path = write_clip(tmp_path / f"a.{ending}", numbered())
    frames = clip(path).frames(FRAMES)
    assert reds(frames) == list(range(FRAMES))
    assert all(np.array_equal(frame, wanted) for frame, wanted in zip(frames, numbered(), strict=True))
    assert reds(clip(path).frames(4)) == [3, 9, 15, 21]  # the middles of four equal parts
    assert reds(clip(path).frames(1)) == [12]
    assert reds(clip(path).frames(48)) == [k // 2 for k in range(48)]
    # 8 frames at the video's rate, from the middle; every second one; two windows at the ends; three over one another
    assert reds(clip(path).frames(8, 24)) == list(range(8, 16))
    assert reds(clip(path).frames(4, 12)) == [9, 11, 13, 15]
    assert [reds(clip(path, (k, 2)).frames(8, 24)) for k in (0, 1)] == [list(range(8)), list(range(16, 24))]
    assert [reds(clip(path, (k, 3)).frames(16, 24))[0] for k in range(3)] == [0, 4, 8]
    assert [reds(clip(path, (k, 2)).frames(2)) for k in (0, 1)] == [[3, 9], [15, 21]]
    assert reds(clip(path).frames(4, 3)) == [4, 12, 20, 23]  # it ends before the window does


def test_frame_rates_that_change(tmp_path: Path) -> None:
    """Against the definition: the last frame whose time has come."""
    times = [0, 100, 150, 420, 460, 900]
    path = write_clip(tmp_path / "a.mkv", numbered(6), times=times)
    end = 900 + 41  # the last frame is as long as one at the rate that the file gives
    wanted = [bisect_right(times, (2 * j + 1) * end / 40) - 1 for j in range(20)]
    assert reds(clip(path).frames(20)) == wanted
    assert reds(clip(path, (0, 2)).frames(10, 20)) == [bisect_right(times, 25 + 50 * j) - 1 for j in range(10)]


def test_frames_that_are_stored_out_of_order(tmp_path: Path) -> None:
    for ending in ("mp4", "avi"):  # AVI does not say when a frame is shown
        path = write_clip(tmp_path / f"a.{ending}", numbered(), codec="libx264", pixels="yuv444p", options={"qp": "1"})
        reordered = [round(int(np.asarray(frame)[24, 32, 0]) / 10) for frame in clip(path).frames(FRAMES)]
        assert reordered == list(range(FRAMES))


def test_one_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", numbered(1))
    assert reds(clip(path).frames(3)) == reds(clip(path).frames(3, 10)) == [0, 0, 0]


@pytest.mark.parametrize(("angle", "corner"), [(-90, (0, -1)), (180, (-1, -1)), (90, (-1, 0))])
def test_a_video_that_is_turned(tmp_path: Path, angle: int, corner: tuple[int, int]) -> None:
    """Phones write −90 for a video taken upright: it is shown turned clockwise."""
    frame = np.asarray(clip(write_clip(tmp_path / "a.mp4", numbered(2), rotation=angle)).frames(1)[0])
    assert frame.shape == ((48, 64, 3) if angle == 180 else (64, 48, 3))
    assert [place for place in ((0, 0), (0, -1), (-1, -1), (-1, 0)) if frame[place].min() == 255] == [corner]


def test_a_title_in_another_encoding(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", numbered(2), title="caf#")
    path.write_bytes(path.read_bytes().replace(b"caf#", b"caf\xe9"))
    assert reds(clip(path).frames(2)) == [0, 1]


@pytest.mark.parametrize("ending", [*sorted(LOSSLESS), "webm"])
@pytest.mark.parametrize("damage", ["cut short", "zeros"])
def test_a_file_that_is_not_complete(tmp_path: Path, ending: str, damage: str) -> None:
    lossy = {"codec": "libvpx-vp9", "pixels": "yuv420p"} if ending == "webm" else {}
    data = write_clip(tmp_path / f"a.{ending}", numbered(), **lossy).read_bytes()
    for share in (0.99, 0.6, 0.2) if damage == "cut short" else (0.6, 0.3):
        path, kept = tmp_path / f"b.{ending}", int(share * len(data))
        path.write_bytes(data[:kept] + bytes(len(data) - kept) * (damage == "zeros"))
        with pytest.raises(ImageError, match=rf"'b\.{ending}' (is cut short|is damaged|cannot be decoded|holds no)"):
            clip(path).frames(4)


def test_what_is_no_video(tmp_path: Path) -> None:
    put(tmp_path, "text.mp4", "playlist.mp4")
    (tmp_path / "empty.avi").touch()
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\na.mp4\n")
    write_clip(tmp_path / "a.mp4", numbered(2))
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nothing.mp4")
    write_sound(tmp_path / "sound.mp4")
    for name, message in (
        ("text.mp4", "cannot be decoded"),
        ("playlist.mp4", "cannot be decoded"),
        ("empty.avi", "is empty"),
        ("sound.mp4", "holds no video"),
        ("folder.mp4", "cannot be decoded"),
        ("link.mp4", "a link to nothing"),
    ):
        with pytest.raises(ImageError, match=f"'{name}' .*{message}"):
            clip(tmp_path / name).frames(2)
    with pytest.raises(EDDPError, match="once the disk is back") as missing:
        clip(tmp_path / "missing.mp4").frames(2)
    assert not isinstance(missing.value, ImageError)


def test_a_disk_that_fails_while_a_video_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg takes some errors for the end of the file: no clip may be dropped, or cut, for them."""
    path = write_clip(tmp_path / "a.mkv", numbered())
    size = path.stat().st_size

    class Failing(video.FileIO):
        def read(self, count: int | None = -1) -> bytes:
            if self.tell() + (count or 0) > size // 2 and (count or 0) > 64:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(count)

    monkeypatch.setattr(video, "open_regular", lambda path: Failing(path))
    with pytest.raises(EDDPError, match="cannot be read: Input/output error") as found:
        clip(path).frames(4)
    assert not isinstance(found.value, ImageError)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", numbered(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'eddp\[video\]'"):
        clip(path).frames(1)


def test_frames_as_rows(tmp_path: Path) -> None:
    put_clips(tmp_path, 1, classes=("left", "up"))
    source = open_source(tmp_path)
    rows = frame_rows(source, 12)
    assert listed(rows) == [
        (f"{n}/{n}_0.mp4#{k:02d}", label) for label, n in enumerate(("left", "up")) for k in range(12)
    ]
    assert (rows.class_names, rows.kind, rows.root, rows.path(13)) == (
        ["left", "up"],
        source.kind,
        tmp_path,
        source.path(1),
    )
    wanted = [np.asarray(frame) for row in range(2) for frame in source.image(row).frames(12)]
    unpickled = pickle.loads(pickle.dumps(rows))  # noqa: S301
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(unpickled.image, range(len(rows))))
    assert all(np.array_equal(frame, other) for frame, other in zip(found, wanted, strict=True))
    assert len({source.digest, rows.digest, frame_rows(source, 6).digest, view_rows(source, 12).digest}) == 4
    assert rows.digest == frame_rows(open_source(tmp_path), 12).digest


def test_a_clip_is_decoded_once_for_rows_next_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_clips(tmp_path, 1, classes=("left", "up"))
    decoded: list[str] = []
    frames = Clip.frames
    monkeypatch.setattr(Clip, "frames", lambda self, *given: decoded.append(self.name) or frames(self, *given))
    rows = frame_rows(open_source(tmp_path), 6)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rows.image, range(len(rows))))
    assert sorted(decoded) == ["left/left_0.mp4", "up/up_0.mp4"]


def test_a_bad_clip_is_bad_in_each_of_its_rows(tmp_path: Path) -> None:
    put(put_clips(tmp_path, 1, classes=("left",)), "left/a.mp4")
    rows = frame_rows(open_source(tmp_path), 2)
    for row in (0, 1):
        with pytest.raises(ImageError, match=r"'left/a\.mp4' cannot be decoded"):
            rows.image(row)
    assert rows.image(2).size == (64, 48)


def test_views_as_rows(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", numbered())
    source = open_source(tmp_path)
    assert view_rows(source, 1) is source
    rows = view_rows(source, 2)
    assert listed(rows) == [("a.mkv#0", -1), ("a.mkv#1", -1)]
    assert [reds(rows.image(k).frames(4, 24)) for k in (0, 1)] == [[0, 1, 2, 3], [20, 21, 22, 23]]


def test_images_in_rows_of_clips(tmp_path: Path) -> None:
    source = open_source(put(tmp_path, "a.png", "b.png"))
    assert not has_videos(source)
    rows = frame_rows(source, 3)
    assert [np.asarray(rows.image(i))[0, 0, 0] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert isinstance(view_rows(source, 2).image(3), Image.Image)


# Folders


def test_folders_of_videos(tmp_path: Path) -> None:
    """As Kinetics, UCF101 and HMDB51 unpack; nothing is decoded."""
    kinetics = put(
        tmp_path / "k", "train/dancing ballet/-3Kv_000001_000011.mp4", "val/abseiling/0347ZoDXyP0_000095_000105.mp4"
    )
    source = open_source(kinetics)
    assert source.class_names == ["abseiling", "dancing ballet"]
    assert listed(source) == [("train/dancing ballet/-3Kv_000001_000011.mp4", 1),
                              ("val/abseiling/0347ZoDXyP0_000095_000105.mp4", 0)]  # fmt: skip
    assert has_videos(source)
    ucf = put(
        tmp_path / "u",
        *(f"UCF-101/{c}/v_{c}_g01_c01.avi" for c in ("Archery", "YoYo")),
        "ucfTrainTestlist/classInd.txt",
    )
    assert (open_source(ucf / "UCF-101").class_names, open_source(ucf).left_out) == (["Archery", "YoYo"], {".txt": 1})
    hmdb = put(tmp_path / "h", "hmdb51_org/brush_hair/a_#20.avi", "hmdb51_org/cartwheel/b.AVI")
    assert listed(open_source(hmdb)) == [("hmdb51_org/brush_hair/a_#20.avi", 0), ("hmdb51_org/cartwheel/b.AVI", 1)]
    assert [label for _, label in listed(open_source(put(tmp_path / "f", "a.webm", "b.mov")))] == [-1, -1]
    split = put(tmp_path / "s", "train_videos/cat/a.mp4", "train_videos/dog/a.mp4", "videos_val/cat/b.mp4")
    assert open_source(split).class_names == ["cat", "dog"]


def test_videos_next_to_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(put(tmp_path, "cat/a.png", "cat/b.mp4", "dog/c.mp4"))
    assert listed(source) == [("cat/a.png", 0)]
    assert source.left_out == {".mp4": 2}
    assert "holds images and 2 videos" in caplog.text
    with pytest.raises(NoImagesError, match=r"There is no image"):
        open_source(put(tmp_path / "none", "a.txt"))
