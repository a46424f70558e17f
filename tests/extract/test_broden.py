"""Broden folders: masks, cells and tables, sound and damaged."""

import csv
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from concept_folders import write_bomb, write_image
from PIL import Image
from tiny import LABELS, TinyBroden, write_mask

from extract.datasets import open_source
from extract.segmentation.base import ConceptLabel
from extract.segmentation.broden import BrodenSource
from stores.errors import DatasetError, MissingPathError, NoImagesError

Make = Callable[..., TinyBroden]


def rewrite(file: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change the rows of a table; ``change`` may return the rows to write."""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    rows = change(rows) or rows
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)


def set_cell(line: int, column: str, value: str) -> Callable[[list[dict[str, str]]], None]:
    return lambda rows: rows[line - 2].update({column: value})


def test_all_masks_and_facts(tiny_broden: Make) -> None:
    made = tiny_broden()
    source = BrodenSource(made.root)
    assert len(source) == 6
    assert source.categories == ["color", "object", "part", "scene", "texture"]
    assert source.labels[0] == ConceptLabel(1, "red", "color")
    assert {label.number: (label.name, label.category) for label in source.labels} == LABELS
    for i, truth in enumerate(made.masks):
        assert source.name(i) == f"sub/image {i}.jpg"
        assert source.label(i) == -1
        assert source.split(i) == ("val" if i % 3 == 2 else "train")
        assert (source.image_size(i), source.mask_size(i)) == ((24, 24), (12, 12))
        assert source.image(i).size == (24, 24)
        masks = source.masks(i)
        assert set(masks) == set(truth)  # an empty cell: not annotated in that category
        for category, layers in truth.items():
            assert masks[category].dtype == np.int32
            assert np.array_equal(masks[category], layers)
    assert made.masks[1]["object"].shape[0] == 2  # the cases are there at all
    assert made.masks[0]["part"].shape[0] == 2
    assert made.masks[1]["scene"].max() == 300


def test_a_byte_order_mark_spaces_and_trailing_commas_do_no_harm(tiny_broden: Make) -> None:
    made = tiny_broden()
    index = made.root / "index.csv"
    text = index.read_text(encoding="utf-8").replace(";", " ; ")
    index.write_text("\n".join(line + "," for line in text.splitlines()), encoding="utf-8-sig")
    source = BrodenSource(made.root)
    assert source.categories == ["color", "object", "part", "scene", "texture"]
    assert np.array_equal(source.masks(1)["part"], made.masks[1]["part"])


def test_the_main_category_is_the_most_frequent(tiny_broden: Make) -> None:
    made = tiny_broden()
    rewrite(made.root / "label.csv", set_cell(2, "category", "part(3);color(12) ; object(9)"))
    rewrite(made.root / "label.csv", set_cell(3, "category", "scene"))
    labels = BrodenSource(made.root).labels
    assert [label.category for label in labels[:2]] == ["color", "scene"]


@pytest.mark.parametrize("name", ["index.csv", "label.csv"])
def test_a_missing_table(tiny_broden: Make, name: str) -> None:
    root = tiny_broden().root
    (root / name).unlink()
    with pytest.raises(MissingPathError, match=rf"is no Broden folder: {name} is missing\. It must hold index.csv"):
        BrodenSource(root)
    if name == "label.csv":
        with pytest.raises(MissingPathError):
            open_source(root)


@pytest.mark.parametrize(("table", "column"), [("index.csv", "image"), ("index.csv", "sw"), ("label.csv", "category")])
def test_a_missing_column(tiny_broden: Make, table: str, column: str) -> None:
    root = tiny_broden().root
    rewrite(root / table, lambda rows: [{k: v for k, v in row.items() if k != column} for row in rows])
    with pytest.raises(DatasetError, match=rf"{table}' lacks the column {column}; its first line must name"):
        BrodenSource(root)


@pytest.mark.parametrize(
    ("table", "line", "column", "value", "wanted"),
    [
        ("index.csv", 3, "ih", "tall", "'ih' must be an integer, got 'tall'"),
        ("index.csv", 4, "sw", "11.5", "'sw' must be an integer, got '11.5'"),
        ("index.csv", 2, "iw", "", "'iw' must be an integer, got ''"),
        ("index.csv", 7, "sh", "0", "'sh' must be from 1 to 65536, got 0"),
        ("index.csv", 3, "ih", "1" * 30, "'ih' must be from 1 to 65536, got 111"),
        ("index.csv", 3, "ih", "9" * 5000, "'ih' must be an integer, got '9999"),
        ("index.csv", 3, "image", "", "image's name is missing"),
        ("index.csv", 3, "split", "", "the split is missing: it must be train or val"),
        ("index.csv", 5, "image", "../secret.jpg", r"'\.\./secret\.jpg' points outside the folder"),
        ("index.csv", 5, "image", "/etc/passwd", "'/etc/passwd' points outside"),
        ("index.csv", 6, "image", "sub/image 1.jpg", "the image 'sub/image 1.jpg' is already in line 3"),
        ("label.csv", 4, "number", "three", "'number' must be an integer, got 'three'"),
        ("label.csv", 4, "number", "1", "number 1 is already taken by line 2"),
        ("label.csv", 3, "number", "-7", "'number' must be from 0 to 2147483647, got -7"),
        ("label.csv", 3, "number", "9" * 20, "'number' must be from 0 to 2147483647, got 999"),
        ("label.csv", 5, "category", "", "the category is empty"),
        ("label.csv", 5, "category", "object(many)", r"must read name\(count\)"),
    ],
)
def test_a_bad_line_is_named(tiny_broden: Make, table: str, line: int, column: str, value: str, wanted: str) -> None:
    root = tiny_broden().root
    rewrite(root / table, set_cell(line, column, value))
    with pytest.raises(DatasetError, match=rf"{table}', line {line}: .*{wanted}") as caught:
        BrodenSource(root)
    assert len(str(caught.value)) < 300


def test_masks_that_would_fill_the_memory(tiny_broden: Make) -> None:
    root = tiny_broden().root
    rewrite(root / "index.csv", lambda rows: [row | {"sh": "60000", "sw": "60000"} for row in rows])
    with pytest.raises(DatasetError, match=r"line 2: masks of 60000 × 60000 points \(sh, sw\) are too large"):
        BrodenSource(root)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00image", b""])
def test_tables_that_are_none(tiny_broden: Make, data: bytes) -> None:
    root = tiny_broden().root
    (root / "index.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=r"index\.csv' (cannot be read|lacks the column)"):
        BrodenSource(root)


@pytest.mark.parametrize("table", ["index.csv", "label.csv"])
def test_a_table_that_is_cut_short(tiny_broden: Make, table: str) -> None:
    made = tiny_broden()
    file = made.root / table
    lines = file.read_bytes().rstrip().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:-1], lines[-1].rpartition(b",")[0]]))
    with pytest.raises(DatasetError, match=f"{table}', line {len(lines)} has fewer cells"):
        BrodenSource(made.root)


def test_empty_tables(tiny_broden: Make) -> None:
    root = tiny_broden().root
    for table, error in (("index.csv", NoImagesError), ("label.csv", DatasetError)):
        head = (root / table).read_text(encoding="utf-8").splitlines()[0]
        (root / table).write_text(head + "\n", encoding="utf-8")
        with pytest.raises(error, match=rf"{table}' lists no"):
            BrodenSource(root)


def cell(value: str) -> Callable[[Path], None]:
    return lambda root: rewrite(root / "index.csv", set_cell(3, "color", value))


MASK = "images/sub/1_color_0.png"


def jpeg(path: Path) -> None:
    write_image(path.with_suffix(".jpg"), 0, (12, 12))
    path.with_suffix(".jpg").replace(path)


def on_mask(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change(root / MASK)


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (on_mask(lambda path: write_mask(path, np.ones((11, 12), int))), r"is \(11, 12\), but .*line 3 says \(12, 12\) \(sh, sw\)"),
        (on_mask(lambda path: write_mask(path, np.full((12, 12), 257))), r"\(.*line 3\) holds label 257, which label.csv does not list"),
        (on_mask(lambda path: Image.new("RGB", (12, 12), (1, 0, 1)).save(path)), r"has the colour \(1, 0, 1\): RGB is read as label"),
        (on_mask(lambda path: path.write_bytes(path.read_bytes()[:60])), r"\(.*line 3\) cannot be read: "),
        (on_mask(lambda path: path.write_text("hello")), "cannot be read: cannot identify it as a PNG"),
        (on_mask(jpeg), "cannot be read: cannot identify it as a PNG"),
        (on_mask(Path.unlink), r"\(.*line 3\) cannot be read: No such file or directory"),
        (on_mask(write_bomb), "cannot be read: Image size .* exceeds limit"),
        (on_mask(lambda path: write_bomb(path, 9000)), r"is \(9000, 9000\), but .*line 3 says \(12, 12\)"),
        (cell("../../label.csv"), r"index.csv', line 3: '\.\./\.\./label\.csv' points outside the folder"),
        (cell("/etc/hostname"), r"line 3: '/etc/hostname' points outside"),
        (cell("99"), r"index.csv', line 3: label 99 is not in label.csv"),
        (cell("9" * 5000), f"line 3: label {'9' * 40} is not in label"),
        (cell("²"), r"line 3\) cannot be read: No such file"),
        (cell("sub"), r"line 3\) cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_a_bad_mask_names_file_and_line(tiny_broden: Make, harm: Callable[[Path], None], wanted: str) -> None:
    root = tiny_broden().root
    harm(root)
    source = BrodenSource(root)
    with pytest.raises(DatasetError, match=wanted):
        source.masks(1)
    source.masks(0)  # the others are as good as before


def test_links_and_other_modes_read_the_same(tiny_broden: Make, tmp_path: Path) -> None:
    made = tiny_broden()
    Image.open(made.root / MASK).convert("RGBA").save(tmp_path / "elsewhere.png")
    (made.root / MASK).unlink()
    (made.root / MASK).symlink_to(tmp_path / "elsewhere.png")
    np.testing.assert_array_equal(BrodenSource(made.root).masks(1)["color"], made.masks[1]["color"])


def test_unlabelled_is_zero_and_stays_zero(tiny_broden: Make) -> None:
    root = tiny_broden().root
    cell("0;0")(root)
    masks = BrodenSource(root).masks(1)
    assert masks["color"].shape == (2, 12, 12)
    assert not masks["color"].any()


def test_action_is_a_category_as_any_other(tiny_broden: Make) -> None:
    root = tiny_broden().root
    lines = (root / "index.csv").read_text(encoding="utf-8").splitlines()
    cells = ["action", "400;sub/act.png", "401", "", "", "", ""]
    (root / "index.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, cells, strict=True)), encoding="utf-8")
    with (root / "label.csv").open("a", encoding="utf-8") as file:
        file.write("400,riding,action(2),2,0.5\n401,eating,action(1),1,0.5\n")
    layer = np.zeros((12, 12), int)
    layer[3:] = 401
    write_mask(root / "images/sub/act.png", layer)
    source = BrodenSource(root)
    assert source.categories[-1] == "action"
    assert source.by_number[400].category == "action"
    np.testing.assert_array_equal(source.masks(0)["action"], [np.full((12, 12), 400), layer])
    assert (source.masks(1)["action"] == 401).all()
    assert "action" not in source.masks(2)


def test_images_that_are_listed_and_missing(tiny_broden: Make) -> None:
    root = tiny_broden().root
    for i in (2, 4):
        (root / f"images/sub/image {i}.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"line 4: there is no image '.*sub/image 2\.jpg' \(missing: 2 of 6 listed\)"
    ):
        BrodenSource(root)


def test_a_large_index_is_stored_in_little(tmp_path: Path) -> None:
    """A source is pickled to every decoding process."""
    (tmp_path / "images").mkdir()
    lines = ["image,split,ih,iw,sh,sw,color,object"]
    for k in range(3000):
        Image.new("L", (1, 1)).save(tmp_path / f"images/{k:05d}.png") if k == 0 else (
            tmp_path / f"images/{k:05d}.png"
        ).touch()
        lines.append(f"{k:05d}.png,{('train', 'val')[k % 2]},224,224,112,112,{k:05d}_color.png,1;1")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    (tmp_path / "label.csv").write_text("number,name,category\n1,sky,object(1)\n")
    source = BrodenSource(tmp_path)
    assert (len(source), source.split(2999), source.mask_size(7)) == (3000, "val", (112, 112))
    assert len(pickle.dumps(source)) < 3000 * 110
