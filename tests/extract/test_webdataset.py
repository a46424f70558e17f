"""WebDataset: which shards, which labels, and shards that are damaged or hostile."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_folders import listed, png, put, reds, shards, tar
from PIL import Image

from extract.datasets import open_source
from extract.datasets.webdataset import open_webdataset
from stores.errors import DatasetError, EDDPError, ImageError, MissingPathError, NoImagesError, UsageError

WANTED = [(f"shard-{k // 3:06d}.tar/{k:06d}.png", k % 4) for k in range(6)]


@pytest.mark.parametrize(
    "data", ["{0}", "{0}/shard-{{000000..000001}}.tar", "webdataset:{0}/shard-{{000000..000001}}.tar"]
)
def test_shards(tmp_path: Path, data: str) -> None:
    source = open_source(data.format(shards(tmp_path)))
    assert listed(source) == WANTED
    assert reds(source) == list(range(6))
    assert [source.path(i) for i in (2, 3)] == [tmp_path / f"shard-00000{s}.tar" for s in (0, 1)]
    one = open_source(tmp_path / "shard-000001.tar")
    assert (listed(one), one.root, reds(one)) == (WANTED[3:], tmp_path, [3, 4, 5])


def test_shards_in_subfolders(tmp_path: Path) -> None:
    for k, name in enumerate(("val/0.tar", "train/1.tar", "train/0.tar", "notes/x.txt")):
        tar(tmp_path / name, [("a.png", png(k))])
    (tmp_path / "notes" / "x.txt").write_text("x")
    source = open_source(tmp_path)
    assert [name for name, _ in listed(source)] == ["train/0.tar/a.png", "train/1.tar/a.png", "val/0.tar/a.png"]
    assert reds(source) == [2, 1, 0]


def test_a_folder_with_an_image_is_no_webdataset(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.png").write_bytes(png(7))
    assert open_source(tmp_path).kind == "class folders"
    assert listed(open_source(f"webdataset:{tmp_path}")) == WANTED


def test_numbers_in_braces(tmp_path: Path) -> None:
    for k in range(8, 12):
        tar(tmp_path / f"part{k % 2}" / f"{k}.tar", [("a.png", png(k))])
        tar(tmp_path / f"{k:02d}" / f"{k:03d}.tar", [("a.png", png(k))])
    assert reds(open_source(f"{tmp_path}/part0/{{8..8}}.tar")) == [8]
    assert listed(open_source(f"{tmp_path}/{{08..09}}/008.tar".replace("{08..09}", "{08..08}"))) == [
        ("08/008.tar/a.png", -1)
    ]
    source = open_source(f"{tmp_path}/10/{{010..010}}.tar")
    assert (listed(source), source.root) == ([("010.tar/a.png", -1)], tmp_path / "10")
    for k in range(2):
        for j in range(9, 11):
            tar(tmp_path / f"{k}-{j}.tar", [("a.png", png(10 * k + j))])
    assert reds(open_source(f"{tmp_path}/{{0..1}}-{{9..10}}.tar")) == [10, 9, 20, 19]  # sorted as names are


def test_braces_that_stand_for_too_little_or_too_much(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(
        MissingPathError, match=r"no file '.*shard-000002\.tar' \(--data\); 2 of the 4 that '.*' stands for are missing"
    ):
        open_source(f"{tmp_path}/shard-{{000000..000003}}.tar")
    for wrong in ("{3..1}", "{0..99999999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(UsageError, match=r"\(--data\) must count upwards, to at most 1000000 files"):
            open_source(f"{tmp_path}/{wrong}.tar")
    with pytest.raises(MissingPathError, match=r"There is no file '.*gone\.tar' \(--data\)\. Give a folder with"):
        open_source(f"webdataset:{tmp_path}/gone.tar")
    with pytest.raises(MissingPathError, match=r"There is no folder '.*gone\{1\.\.x\}\.tar'"):
        open_source(f"{tmp_path}/gone{{1..x}}.tar")
    (tmp_path / "a{1..2}.tar").mkdir()  # a name that is there is no pattern
    with pytest.raises(NoImagesError):
        open_source(tmp_path / "a{1..2}.tar")


def test_where_labels_come_from(tmp_path: Path) -> None:
    def js(value: object) -> bytes:
        return json.dumps(value).encode()

    image = png(0)
    path = tar(
        tmp_path / "s.tar",
        [
            ("before.cls", b" 12\n"), ("before.png", image),
            ("after.png", image), ("after.cls", b"+3"),
            ("both.json", js({"label": 1})), ("both.png", image), ("both.CLS", b"2"),
            ("json.png", image), ("json.json", js({"label": 5, "cls": 6})),
            ("cls.png", image), ("cls.json", js({"cls": 7, "label": "seven"})),
            ("caption.png", image), ("caption.json", js({"label": None, "caption": "cat", "width": 4})),
            ("whole.png", image), ("whole.json", js({"label": 3.0})),
            ("over.png", image), ("over.json", js({"label": "cat"})), ("over.cls", b"8"),
            ("list.png", image), ("list.json", js([1])),
            ("none.png", image), ("none.txt", b"a cat"),
            ("minus.png", image), ("minus.cls", b"-1"),
            ("lonely.cls", b"9"),
            ("deep/a.b/x.png", image), ("deep/a.b/x.cls", b"4"), ("deep/a.b/y.png", image),
        ],
    )  # fmt: skip
    wanted = {"before.png": 12, "after.png": 3, "both.png": 2, "json.png": 5, "cls.png": 7, "caption.png": -1, "whole.png": 3, "over.png": 8,
              "list.png": -1, "none.png": -1, "minus.png": -1, "deep/a.b/x.png": 4, "deep/a.b/y.png": -1}  # fmt: skip
    assert listed(open_source(path)) == [(f"s.tar/{name}", label) for name, label in wanted.items()]


# members (an image, or a label and its content), the images' labels, what is logged
LAYOUTS = {
    "labels after all images": (["a.png", "b.png", ("a.cls", 1), ("b.cls", 2)], [1, 2], ""),
    "labels before all images": ([("a.cls", 1), ("b.json", {"label": 2}), "a.png", "b.png"], [1, 2], ""),
    "dots in names": (["photo.0.png", ("photo.0.cls", 1), "photo.1.PNG", ("photo.1.CLS", 2), "v1.2.x/c.png", ("v1.2.x/c.cls", 3)], [1, 2, 3], ""),
    "several views of a sample": (["a.left.png", "a.right.png", ("a.right.json", {"cls": 2}), ("a.cls", 1)], [1, 2], ""),
    "other json files": (["a.png", ("a.boxes.json", {"label": "many"}), ("a.cls", 1), ("stats.json", {"label": "all"})], [1], ""),
    "other keys": (["a_img.png", ("a_cls.cls", 1), "b_img.png", ("b_cls.cls", 2)], [-1, -1], r"2 label files have no image, such as 's\.tar/a_cls\.cls'"),
    "other folders": (["img/a.png", ("cls/a.cls", 1)], [-1], r"1 label files .*'s\.tar/cls/a\.cls'"),
    "other compound names": (["photo.0.png", ("photo.label.cls", 1), ("photo.meta.json", {"label": 3})], [-1], "2 label files"),
    "images that are not read": (["a.png", ("a.cls", 1), ("b.heic", 0), ("b.cls", 2)], [1], r"1 label files .*b\.cls"),
    "label maps": (["a.png", "a.seg.png", ("a.cls", 1)], [1], "1 image files left out as label maps .* 's.tar/a.seg.png'"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_found_by_key_or_reported(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    members, labels, warned = LAYOUTS[layout]
    named = [(m, png(0)) if isinstance(m, str) else (m[0], json.dumps(m[1]).encode()) for m in members]
    source = open_source(tar(tmp_path / "s.tar", named))
    assert [label for _, label in listed(source)] == labels
    assert len(caplog.messages) == bool(warned)
    assert re.search(warned, caplog.text)


def test_keys_and_endings(tmp_path: Path) -> None:
    """A key ends at the first dot of the last part of the name; an image's ending is what follows the last one."""
    labels = {"a.cls": b"1", "./b.cls": b"2"}
    images = ["a.left.png", "a.right.PNG", "./b.jpeg", "c.seg.txt", ".hidden.png", "plain", "d/.png", "e.webp"]
    path = tar(tmp_path / "s.tar", [*((name, png(0)) for name in images), *labels.items()])
    wanted = [("a.left.png", 1), ("a.right.PNG", 1), ("b.jpeg", 2), ("e.webp", -1)]
    assert listed(open_source(path)) == [(f"s.tar/{name}", label) for name, label in wanted]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms_of_tar_files(tmp_path: Path, form: int) -> None:
    long = "d" * 60 + "/" + "x" * 80
    path = tar(tmp_path / "s.tar", [(f"{long}.png", png(3)), (f"{long}.cls", b"8")], form=form)
    source = open_source(path)
    assert listed(source) == [(f"s.tar/{long}.png", 8)]
    assert reds(source) == [3]


def test_names_that_are_hostile_stay_names(tmp_path: Path) -> None:
    names = ["/etc/passwd.png", "../../up.png", "a/../../b.png", "two\nlines.png", "caf\udce9.png", "C:\\x.png"]
    path = tar(tmp_path / "deep" / "s.tar", [(name, png(k)) for k, name in enumerate(names)])
    before = sorted(tmp_path.rglob("*"))
    source = open_source(path)
    assert [name for name, _ in listed(source)] == [f"s.tar/{name}" for name in names]
    assert reds(source) == list(range(6))
    assert source.digest.startswith("sha256:")
    assert sorted(tmp_path.rglob("*")) == before


def test_only_regular_members_count(tmp_path: Path) -> None:
    def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, link
        return info

    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    members = [(f"{k}.png", special(kind, "a.png")) for k, kind in enumerate(kinds)]
    path = tar(tmp_path / "s.tar", [*members, ("a.png", png(1)), ("a.cls", special(tarfile.SYMTYPE, "/etc/hostname"))])
    assert listed(open_source(path)) == [("s.tar/a.png", -1)]


NUMBER = "must be an integer from 0 (or -1), got"


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("a.cls", b"cat", f"the label {NUMBER} 'cat'."),
        ("a.cls", b"", "got ''."),
        ("a.cls", b"1.5", "got '1.5'."),
        ("a.cls", b"-2", "got '-2'."),
        ("a.cls", b"1 2", "got '1 2'."),
        ("a.cls", b"\xff\n\x00" + b"9" * 60, "got '\ufffd\\n\\x00" + "9" * 37 + "...'."),
        ("a.cls", b"99999999999", "got '99999999999'."),
        ("a.json", b"{", "this is no JSON: "),
        ("a.json", b"[" * 100_000, "this is no JSON: "),
        ("a.json", b"\xff\xfe\x00", "this is no JSON: "),
        ("a.json", b'{"label": -2}', f"'label' {NUMBER} -2."),
        ("a.json", b'{"cls": 2147483648}', f"'cls' {NUMBER}"),
        ("a.json", b'{"label": "cat"}', f"'label' {NUMBER} \"cat\". Write the class's number"),
        ("a.json", b'{"label": "7"}', 'got "7".'),
        ("a.json", b'{"label": true}', "got true."),
        ("a.json", b'{"cls": 1.5}', f"'cls' {NUMBER} 1.5."),
        ("a.json", b'{"cls": [0, 1]}', "got [0, 1]."),
        ("a.json", b'{"cls": NaN}', "got NaN."),
        ("a.json", b'{"label": 1e400}', "got Infinity."),
        ("a.json", bytes(2**24 + 1), "16777217 bytes are no label"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, name: str, data: bytes, wanted: str) -> None:
    path = tar(tmp_path / "s.tar", [("x/a.png", png(0)), (f"x/{name}", data)])
    with pytest.raises(DatasetError) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"'{path}', member 'x/{name}': ")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", [("a.png", png(0)), ("b.png", png(1)), ("./a.png", png(2))])
    with pytest.raises(DatasetError, match=r"s\.tar' holds 'a\.png' twice, again at byte 2048"):
        open_source(path)


PACKED = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": lambda d: b"\x28\xb5\x2f\xfd" + d}


@pytest.mark.parametrize("how", PACKED)
def test_a_compressed_shard(tmp_path: Path, how: str) -> None:
    data = PACKED[how](tar(tmp_path / "x", [("a.png", png(0))]).read_bytes())
    for name in ("a.tar", "b/a.tar.gz"):
        put(tmp_path, name)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DatasetError, match=rf"{name}' is compressed by {how}\. Decompress it"):
            open_source(tmp_path / name)
    with pytest.raises(DatasetError, match=r"tar files in '.*' \(--data\) are compressed \('a\.tar\.gz'\)"):
        open_source(tmp_path / "b")


def test_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError, match=r"There is no \.tar file in '.*empty'"):
        open_source(f"webdataset:{tmp_path / 'empty'}")
    tar(tmp_path / "some" / "s.tar", [("a.txt", b"x")])
    tar(tmp_path / "some" / "t.tar", [])
    with pytest.raises(
        NoImagesError, match=r"no image in the 2 tar files of '.*some' \(--data\), 's\.tar' the first.*\.jpg"
    ):
        open_source(tmp_path / "some")


def test_a_shard_that_is_cut_short(tmp_path: Path) -> None:
    """Wherever it ends, the error says where."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    path = tar(tmp_path / "s.tar", [("a.png", png(0)), ("a.cls", b"1"), ("b.png", file.getvalue()), ("b.cls", b"2")])
    whole = path.read_bytes()
    end = whole.rindex(b"2" + bytes(511)) + 512  # behind the last member
    for size in [*range(0, end + 512, 128), end + 511]:
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"s\.tar' is (no tar file, or is damaged or )?cut short at byte \d+: "):
            open_source(path)
    path.write_bytes(whole[: end + 512])
    assert len(open_source(path)) == 2


def test_a_shard_that_is_damaged(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", [("a.png", png(0)), ("b.png", png(1)), ("c.png", png(2))])
    whole = bytearray(path.read_bytes())
    for offset in (0, 1024, 2048):
        harmed = whole.copy()
        harmed[offset + 3] ^= 1
        path.write_bytes(harmed)
        with pytest.raises(DatasetError, match=rf"s\.tar' is .*damaged .*at byte {offset}: "):
            open_source(path)
    path.write_text("I am no tar file" * 100)
    with pytest.raises(DatasetError, match=r"s\.tar' is no tar file, or is damaged or cut short at byte 0"):
        open_source(path)


def test_any_flipped_bytes_of_headers_are_read_or_reported(tmp_path: Path) -> None:
    long = "x" * 120
    path = tar(tmp_path / "s.tar", [(f"{long}.png", png(0)), ("b.png", png(1)), ("b.cls", b"1")])
    whole = path.read_bytes()
    g = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(600):
        harmed = bytearray(whole)
        k = int(g.integers(0, len(whole) - 9000)) // 512 * 512
        harmed[k + int(g.integers(512))] = g.integers(256)
        head = harmed[k : k + 512]  # with a sum that is right again, so that more than the sum is tried
        head[148:156] = b" " * 8
        harmed[k + 148 : k + 156] = b"%06o\0 " % sum(head)
        path.write_bytes(harmed)
        try:
            open_webdataset(path)
        except (DatasetError, NoImagesError) as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not [message for message in refused if "\n" in message or "s.tar" not in message]


@pytest.mark.parametrize(("size", "sparse"), [(-512, False), (-1, False), (-512, True)])
def test_a_header_that_leads_back_is_not_followed_for_ever(tmp_path: Path, size: int, sparse: bool) -> None:
    info = tarfile.TarInfo("a.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if sparse:  # its size in the tar file leads back, the size it says it has does not
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[483:495] = b"%011o\0" % 512
    header[124:136] = size.to_bytes(12, "big", signed=True)  # as large numbers are written
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "s.tar").write_bytes(bytes(header) * 2 + bytes(1024))
    with pytest.raises(DatasetError, match=r"damaged or cut short at byte 0: the header of 'a\.png' makes no sense"):
        open_source(tmp_path)


def test_files_that_were_joined(tmp_path: Path) -> None:
    one = tar(tmp_path / "s.tar", [("a.png", png(0))])
    data = one.read_bytes()
    one.write_bytes(data + tar(tmp_path / "t.tar", [("b.png", png(1))]).read_bytes())
    with pytest.raises(DatasetError, match=r"s\.tar' continues after its end at byte 1024\. Give"):
        open_source(one)


def test_images_that_are_none(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", [("a.png", b""), ("b.png", b"text"), ("c.png", png(1)[:45]), ("d.png", png(2))])
    source = open_source(path)
    for i, wanted in enumerate(["a.png' is no image file", "b.png' is no image file", "c.png' cannot be decoded"]):
        with pytest.raises(ImageError, match=f"^'s.tar/{wanted}"):
            source.image(i)
    assert source.image(3).size == (4, 3)
    os.truncate(path, 100)
    with pytest.raises(
        EDDPError, match=r"s\.tar/d\.png' in '.*s\.tar' ends \d+ bytes too early; has it changed"
    ) as caught:
        source.image(3)
    assert not isinstance(caught.value, ImageError)  # nothing to skip: all images that follow would be
    path.unlink()
    with pytest.raises(EDDPError, match=r"s\.tar/d\.png' in '.*s\.tar' cannot be read: No such file") as caught:
        source.image(3)
    assert not isinstance(caught.value, ImageError)


def test_the_digest_sees_names_labels_and_sizes(tmp_path: Path) -> None:
    def digest(*members: tuple[str, bytes]) -> str:
        return open_source(tar(tmp_path / "s.tar", members)).digest

    a, b, one = ("a.png", png(1)), ("b.png", png(2)), ("a.cls", b"1")
    base = digest(a, one, b)
    assert base == digest(("a.cls", b" 1 "), a, b)
    others = [(a, ("a.cls", b"2"), b), (b, a, one), (("a.png", png(1) + b"x"), one, b), (a, one, ("c.png", png(2)))]
    assert len({digest(*members) for members in others} | {base}) == 5


def test_the_digest_sees_members_written_again(tmp_path: Path) -> None:
    def digest(name: str, pixel: int, changed: int) -> str:
        info = tarfile.TarInfo()
        info.size, info.mtime = 5000, changed
        path = tar(tmp_path / name / "s.tar", [("a.png", info)])
        with path.open("r+b") as file:
            file.seek(512 + 2500)
            file.write(bytes([pixel]))
            file.truncate(10240)
        return open_source(path).digest

    assert digest("0", 1, 1) == digest("1", 1, 1)
    assert len({digest("0", 1, 1), digest("1", 2, 1), digest("2", 1, 2)}) == 3


def test_label_maps_and_other_members_are_left_out(tmp_path: Path) -> None:
    members = ["a.jpg", "a.seg.png", "a.cls", "a.npy", "b.jpg", "b_mask.png", "b.txt", "b.npy", "README", "c.mask.png"]
    source = open_source(tar(tmp_path / "s.tar", [(name, b"1") for name in members]))
    assert [source.name(i) for i in range(len(source))] == ["s.tar/a.jpg", "s.tar/b.jpg", "s.tar/c.mask.png"]
    assert source.left_out == {".npy": 2, ".txt": 1, "no ending": 1, ".seg.png": 1, "_mask.png": 1}


def test_a_source_of_many_images_is_small_for_every_worker(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("00000000.png").tobuf(tarfile.USTAR_FORMAT))
    blocks = []
    for k in range(2_000):
        header[:8] = b"%08d" % k
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        blocks.append(bytes(header))
    for s in range(5):
        (tmp_path / f"{s}.tar").write_bytes(b"".join(blocks) + bytes(1024))
    source = open_source(tmp_path)
    assert len(source) == 10_000
    assert source.name(9_999) == "4.tar/00001999.png"
    assert len(pickle.dumps(source)) < 600_000


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes of that kind")
def test_a_pipe_that_is_called_like_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(shards(tmp_path) / "pipe.tar")
    with pytest.raises(DatasetError, match=r"pipe\.tar' cannot be read: it is no regular file"):
        open_source(tmp_path)
