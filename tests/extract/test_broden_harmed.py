"""Broden folders that a copy, a hand or a stranger has harmed, beyond what ``test_broden`` holds; and Broden Action."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from concept_folders import write_bomb, write_image
from PIL import Image
from tiny import TinyBroden, write_mask

from extract.segmentation.broden import BrodenSource
from stores.errors import DatasetError

Make = Callable[..., TinyBroden]


def change(table: Path, line: int, column: str, value: str) -> None:
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[line - 1][rows[0].index(column)] = value
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


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


@pytest.mark.parametrize(
    ("table", "line", "column", "value", "wanted"),
    [
        ("index.csv", 3, "split", "", "the split is missing: it must be train or val"),
        ("index.csv", 3, "ih", "1" * 30, "'ih' must be at most 65536"),
        ("index.csv", 3, "sw", "99999", "'sw' must be at most 65536"),
        ("index.csv", 3, "ih", "9" * 5000, "'ih' must be a whole number, got '9999"),
        ("label.csv", 3, "number", "-7", "'number' must be at least 0, got -7"),
        ("label.csv", 3, "number", "1e3", "'number' must be a whole number, got '1e3'"),
        ("label.csv", 3, "number", "9" * 20, "'number' must be at most 2147483647"),
    ],
)
def test_malformed_cells(tiny_broden: Make, table: str, line: int, column: str, value: str, wanted: str) -> None:
    root = tiny_broden().root
    change(root / table, line, column, value)
    with pytest.raises(DatasetError) as caught:
        BrodenSource(root)
    assert f"'{root / table}', line {line}: {wanted}" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_masks_that_would_fill_the_memory(tiny_broden: Make) -> None:
    root = tiny_broden().root
    for column in ("sh", "sw"):
        change(root / "index.csv", 4, column, "60000")
    with pytest.raises(DatasetError, match=r"line 4: masks of 60000 × 60000 points \(sh, sw\) are too large"):
        BrodenSource(root)


def test_images_that_are_listed_and_missing(tiny_broden: Make) -> None:
    root = tiny_broden().root
    for i in (2, 4):
        (root / f"images/sub/image {i}.jpg").unlink()
    with pytest.raises(DatasetError) as caught:
        BrodenSource(root)
    assert str(caught.value) == (
        f"'{root}/index.csv', line 4: there is no image '{root}/images/sub/image 2.jpg' (missing: 2 of 6 listed). Unpack "
        "them all, or take the lines out."
    )


def test_a_folder_of_images_that_is_not_there(tiny_broden: Make) -> None:
    root = tiny_broden().root
    (root / "images").rename(root / "pictures")
    with pytest.raises(DatasetError, match=r"line 2: there is no image .*missing: 6 of 6 listed"):
        BrodenSource(root)


def test_an_image_that_is_listed_twice(tiny_broden: Make) -> None:
    root = tiny_broden().root
    change(root / "index.csv", 6, "image", "sub/image 1.jpg")
    with pytest.raises(DatasetError, match=r"line 6: the image 'sub/image 1\.jpg' is already in line 3"):
        BrodenSource(root)


@pytest.mark.parametrize(("cell", "wanted"), [("9" * 11, "9" * 11), ("9" * 5000, "9" * 40 + " ")])
def test_a_label_of_many_digits(tiny_broden: Make, cell: str, wanted: str) -> None:
    root = tiny_broden().root
    change(root / "index.csv", 3, "scene", cell)
    with pytest.raises(DatasetError, match=rf"line 3: label {wanted}.*not listed in label\.csv"):
        BrodenSource(root).masks(1)


def test_a_bomb_is_refused_before_it_is_decoded(tiny_broden: Make) -> None:
    root = tiny_broden().root
    write_bomb(root / "images/sub/1_color_0.png")
    with pytest.raises(DatasetError, match=r"1_color_0\.png' \(.*line 3\) cannot be read: Image size .* exceeds limit"):
        BrodenSource(root).masks(1)
    write_bomb(root / "images/sub/1_color_0.png", 9000)  # below Pillow's limit
    with pytest.raises(DatasetError, match=r"is \(9000, 9000\), but .*line 3 says \(12, 12\)"):
        BrodenSource(root).masks(1)


def test_a_mask_of_another_format_is_none(tiny_broden: Make) -> None:
    root = tiny_broden().root
    write_image(root / "images/sub/x.jpg", 0, (12, 12))
    (root / "images/sub/x.jpg").replace(root / "images/sub/1_color_0.png")
    with pytest.raises(DatasetError, match="cannot be read: cannot identify it as a PNG"):
        BrodenSource(root).masks(1)


def test_links_are_followed_though_names_may_not_lead_out(tiny_broden: Make, tmp_path: Path) -> None:
    made = tiny_broden()
    mask = made.root / "images/sub/1_color_0.png"
    mask.rename(tmp_path / "elsewhere.png")
    mask.symlink_to(tmp_path / "elsewhere.png")
    np.testing.assert_array_equal(BrodenSource(made.root).masks(1)["color"], made.masks[1]["color"])
    change(made.root / "index.csv", 3, "color", str(tmp_path / "elsewhere.png"))
    with pytest.raises(DatasetError, match=r"points outside the folder images/\. Name a file in it, without"):
        BrodenSource(made.root).masks(1)


def test_a_large_index_is_kept_in_little(tmp_path: Path) -> None:
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
