import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import LABELS, TinyBroden, write_mask

from extract.datasets import open_source
from extract.segmentation.base import ConceptLabel
from extract.segmentation.broden import BrodenSource
from stores.errors import DatasetError, MissingPathError, NoImagesError, UsageError

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


@pytest.mark.parametrize(
    ("table", "column"),
    [("index.csv", c) for c in ("image", "split", "ih", "sw")]
    + [("label.csv", c) for c in ("number", "name", "category")],
)
def test_a_missing_column(tiny_broden: Make, table: str, column: str) -> None:
    root = tiny_broden().root
    rewrite(root / table, lambda rows: [{k: v for k, v in row.items() if k != column} for row in rows])
    with pytest.raises(DatasetError, match=rf"{table}' lacks the column {column}; its first line must name"):
        BrodenSource(root)


@pytest.mark.parametrize(
    ("table", "line", "column", "value", "wanted"),
    [
        ("index.csv", 3, "ih", "tall", "'ih' must be a whole number, got 'tall'"),
        ("index.csv", 4, "sw", "11.5", "'sw' must be a whole number, got '11.5'"),
        ("index.csv", 2, "iw", "", "'iw' must be a whole number, got ''"),
        ("index.csv", 7, "sh", "0", "must be at least 1"),
        ("index.csv", 7, "sh", "-4", "must be at least 1"),
        ("index.csv", 3, "image", "", "image's name is missing"),
        ("index.csv", 5, "image", "../secret.jpg", r"'\.\./secret\.jpg' points outside the folder images/"),
        ("index.csv", 5, "image", "/etc/passwd", "'/etc/passwd' points outside"),
        ("label.csv", 4, "number", "three", "'number' must be a whole number, got 'three'"),
        ("label.csv", 4, "number", "1", "number 1 is already taken by line 2"),
        ("label.csv", 5, "category", "", "the category is empty"),
        ("label.csv", 5, "category", "object(many)", r"must read name\(count\)"),
    ],
)
def test_a_bad_line_is_named(tiny_broden: Make, table: str, line: int, column: str, value: str, wanted: str) -> None:
    root = tiny_broden().root
    rewrite(root / table, set_cell(line, column, value))
    with pytest.raises(DatasetError, match=rf"{table}', line {line}: .*{wanted}") as caught:
        BrodenSource(root)
    assert isinstance(caught.value, UsageError)


def test_a_line_that_is_too_short(tiny_broden: Make) -> None:
    root = tiny_broden().root
    with (root / "index.csv").open("a", encoding="utf-8") as file:
        file.write("sub/last.jpg,train\n")
    with pytest.raises(DatasetError, match=r"index.csv', line 8: 'ih' must be a whole number, got ''"):
        BrodenSource(root)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00image", b""])
def test_tables_that_are_none(tiny_broden: Make, data: bytes) -> None:
    root = tiny_broden().root
    (root / "index.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=r"index\.csv' (cannot be read|lacks the column)"):
        BrodenSource(root)


def test_empty_tables(tiny_broden: Make) -> None:
    root = tiny_broden().root
    for table, error in (("index.csv", NoImagesError), ("label.csv", DatasetError)):
        head = (root / table).read_text(encoding="utf-8").splitlines()[0]
        (root / table).write_text(head + "\n", encoding="utf-8")
        with pytest.raises(error, match=rf"{table}' lists no"):
            BrodenSource(root)


def mask_of_another_size(root: Path) -> None:
    write_mask(root / "images/sub/1_color_0.png", np.ones((11, 12), int))


def unknown_in_mask(root: Path) -> None:
    write_mask(root / "images/sub/1_color_0.png", np.full((12, 12), 257))


def colours_in_mask(root: Path) -> None:
    Image.new("RGB", (12, 12), (1, 0, 1)).save(root / "images/sub/1_color_0.png")


def truncated_mask(root: Path) -> None:
    file = root / "images/sub/1_color_0.png"
    file.write_bytes(file.read_bytes()[:60])


def text_for_a_mask(root: Path) -> None:
    (root / "images/sub/1_color_0.png").write_text("hello")


def mask_gone(root: Path) -> None:
    (root / "images/sub/1_color_0.png").unlink()


def cell(value: str) -> Callable[[Path], None]:
    return lambda root: rewrite(root / "index.csv", set_cell(3, "color", value))


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (mask_of_another_size, r"1_color_0\.png' is \(11, 12\), but .*index.csv', line 3 says \(12, 12\) \(sh, sw\)"),
        (unknown_in_mask, r"1_color_0\.png' \(.*line 3\) holds label 257, which label.csv does not list"),
        (
            colours_in_mask,
            r"1_color_0\.png' \(.*line 3\) has the colour \(1, 0, 1\): RGB is read as label = R \+ 256·G, and B must",
        ),
        (truncated_mask, r"1_color_0\.png' \(.*line 3\) cannot be read: "),
        (text_for_a_mask, r"1_color_0\.png' \(.*line 3\) cannot be read: cannot identify"),
        (mask_gone, r"1_color_0\.png' \(.*line 3\) cannot be read: No such file or directory"),
        (cell("../../label.csv"), r"index.csv', line 3: '\.\./\.\./label\.csv' points outside the folder images/"),
        (cell("/etc/hostname"), r"line 3: '/etc/hostname' points outside"),
        (cell("99"), r"index.csv', line 3: label 99 is not listed in label.csv"),
        (cell("²"), r"line 3\) cannot be read: No such file"),
        (cell("sub"), r"line 3\) cannot be read: Is a directory"),
    ],
)
def test_a_bad_mask_names_file_and_line(tiny_broden: Make, harm: Callable[[Path], None], wanted: str) -> None:
    root = tiny_broden().root
    harm(root)
    source = BrodenSource(root)
    with pytest.raises(DatasetError, match=wanted):
        source.masks(1)
    source.masks(0)  # the others are as good as before


def test_unlabelled_is_zero_and_stays_zero(tiny_broden: Make) -> None:
    root = tiny_broden().root
    cell("0;0")(root)
    masks = BrodenSource(root).masks(1)
    assert masks["color"].shape == (2, 12, 12)
    assert not masks["color"].any()


def test_a_mask_in_another_png_mode_reads_the_same(tiny_broden: Make) -> None:
    made = tiny_broden()
    file = made.root / "images/sub/0_color_0.png"
    Image.open(file).convert("RGBA").save(file)
    assert np.array_equal(BrodenSource(made.root).masks(0)["color"], made.masks[0]["color"])


def test_the_digest_sees_the_images(tiny_broden: Make) -> None:
    one, two, three = (tiny_broden(name=f"{k}", seed=k // 2) for k in range(3))
    for file in (file for made in (one, two, three) for file in (made.root / "images").rglob("*.jpg")):
        os.utime(file, (0, 0))
    digests = [BrodenSource(made.root).digest for made in (one, two, three)]
    assert digests[0] == digests[1] != digests[2]
