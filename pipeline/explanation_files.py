"""The files of an explanation: pictures, sheet and document of each image, in a folder of which nothing earlier is left."""

from __future__ import annotations

import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluate.explain.document import Terms, describe, sentence, steps_of, turning_words
from evaluate.explain.explainer import Explained
from evaluate.explain.page import Map, Shown, percent
from evaluate.explain.pictures import heat, jpeg, outline, sheet, square
from evaluate.explain.values import Usual
from evaluate.explain.words import probability, signed
from pipeline.explained_inputs import Item
from stores.errors import StoreError
from stores.files import json_bytes, write_atomically

TILE = 240  # pixels of a picture's side
PALE = 0.25  # maps that reach less than this share of the strongest are paler
OURS = re.compile(r"\d{4,}-.*\.(json|png|jpg)")


class Folder:
    """The folder that is written; a context manager. Files get their places in it all at once, by ``publish``.

    Left without, nothing stays of them; what an earlier explanation left there is there until then, and goes with it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._aside = out / f".{uuid.uuid4().hex[:8]}.partial"
        self._names: list[str] = []
        self._made = not out.exists()

    def add(self, name: str, data: bytes) -> str:
        """Write one file, of that name relative to the folder; gives the name."""
        write_atomically(self._aside / name, data)
        self._names.append(name)
        return name

    def publish(self) -> None:
        """Give all files their names, the page last, and take away what is left of an earlier explanation."""
        earlier = (self.out / "explanation.json").is_file()
        try:
            (self.out / "pictures").mkdir(parents=True, exist_ok=True)
            (self.out / "index.html").unlink(missing_ok=True)  # it would tell of other images
            for name in self._names:
                (self._aside / name).replace(self.out / name)
            for folder in (self.out, self.out / "pictures") if earlier else ():
                for path in folder.iterdir():
                    if OURS.fullmatch(path.name) and path.relative_to(self.out).as_posix() not in self._names:
                        path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"'{self.out}' could not be written: {error.strerror or error}.") from error

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)
        if self._made:
            with suppress(OSError):  # something is in it: it stays
                self.out.rmdir()


class Drawn:
    """One image's explanation, drawn and written."""

    def __init__(
        self,
        found: Explained,
        usual: Usual,
        terms: Terms,
        shown: int,
        grid: tuple[int, int],
    ) -> None:
        self.found, self.usual, self.terms, self.shown, self.grid = found, usual, terms, shown, grid

    def write(self, folder: Folder, number: int, item: Item, picture: Image.Image) -> tuple[Shown, dict[str, Any]]:
        """Write its pictures, sheet and document; give what the page shows of it, and the document."""
        found, terms, shown = self.found, self.terms, self.shown
        stem = f"{number:04d}-{file_stem(item.name)}"
        seen = square(picture, TILE)
        cam = heat(seen, found.cam.reshape(self.grid), both=False)
        k, parts = found.explained, found.contributions.parts[:, found.explained]
        chosen = np.argsort(-np.abs(parts), kind="stable")[:shown].tolist()
        largest = np.abs(found.maps[:, chosen]).max(0)  # (shown,)
        scale = np.maximum(largest, PALE * largest.max(initial=0))
        tiles = [
            outline(
                heat(seen, found.maps[:, i].reshape(self.grid), largest=float(top)),
                found.fires[:, i].reshape(self.grid),
            )
            for i, top in zip(chosen, scale, strict=True)
        ]
        names = [("little " if found.pooled[i] < 0 else "") + terms.concepts[i].name for i in chosen]
        maps = [
            Map(
                name,
                float(parts[i]),
                float((found.fires[:, i] > 0).mean()),
                folder.add(f"pictures/{stem}.{i:04d}.jpg", jpeg(tile)),
            )
            for i, name, tile in zip(chosen, names, tiles, strict=True)
        ]
        sums = [(f"The logit of {terms.classes[k]}", steps_of(found, terms, shown))]
        if found.against is not None:
            title = f"{terms.classes[k]} against {terms.classes[found.against]}"
            sums.append((title, steps_of(found, terms, shown, found.against)))
        p = found.probabilities
        whole = sheet(
            seen,
            cam,
            [
                (f"{name} {signed(m.value)}" + (f", on {percent(m.fires)}" if m.fires else ""), tile)
                for name, m, tile in zip(names, maps, tiles, strict=True)
            ],
            sums[0][1],
            title=f"{terms.classes[k]} ({probability(float(p[k]))})",
            subtitle=_upper(turning_words(found, self.usual, terms)),
            what=f"what makes the logit of {terms.classes[k]}",
            cam_title=f"Grad-CAM for {terms.classes[k]}",
        )
        line = sentence(found, self.usual, terms)
        document = {
            "image": item.name,
            "row": item.row,
            "sentence": line,
            **describe(found, self.usual, terms),
            "files": {"sheet": f"{stem}.png", "document": f"{stem}.json"},
        }
        folder.add(f"{stem}.json", json_bytes(document))
        page = Shown(
            item.name,
            _upper(line),
            document,
            sums,
            maps,
            folder.add(f"pictures/{stem}.seen.jpg", jpeg(seen)),
            folder.add(f"pictures/{stem}.cam.jpg", jpeg(cam)),
            folder.add(f"{stem}.png", whole),
            f"{stem}.json",
        )
        return page, document


def file_stem(name: str) -> str:
    """A file name's stem in letters that every disk and address takes, at most 60 of them."""
    stem = Path(name).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "image"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
