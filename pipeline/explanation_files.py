"""One image's explanation drawn: its pictures, sheet and document, and what the page shows of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluate.explain.explainer import Explained
from evaluate.explain.explanation_document import UNREAD, Terms, brief, describe, sentence, steps_of, turning_words
from evaluate.explain.explanation_page import Map, Shown
from evaluate.explain.heat_maps import Step, heat, sheet
from evaluate.explain.values import Usual
from evaluate.image_tiles import jpeg, outline, square
from evaluate.number_format import percent, probability, signed
from pipeline.explain_inputs import Item
from pipeline.explanation_folder import Folder
from stores.io import json_bytes

TILE = 240  # pixels of a picture's side
PALE = 0.25  # maps that reach less than this share of the strongest are paler


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
        """Write its pictures, sheet and document; give what the page shows of it, and the document in brief."""
        found, terms = self.found, self.terms
        stem = f"{number:04d}-{file_stem(item.name)}"
        seen = square(picture, TILE)
        cam = None if found.unread else heat(seen, found.cam.reshape(self.grid), both=False)
        tiles = [] if found.unread else self._tiles(seen)
        maps = [
            Map(
                ("little " if found.pooled[i] < 0 else "") + terms.concepts[i].name,
                float(found.contributions.parts[i, found.explained]),
                float((found.fires[:, i] > 0).mean()),
                folder.add(f"pictures/{stem}.{i:04d}.jpg", jpeg(tile)),
            )
            for i, tile in tiles
        ]
        sums = [] if found.unread else self._sums()
        line = sentence(found, self.usual, terms)
        document = {
            "image": item.name,
            "row": item.row,
            "sentence": line,
            **describe(found, self.usual, terms),
            "files": {"sheet": f"{stem}.png", "document": f"{stem}.json"},
        }
        whole = self._sheet(seen, cam, list(zip(maps, (tile for _, tile in tiles), strict=True)))
        page = Shown(
            item.name,
            _upper(line),
            document["predicted"],
            document["explained"],
            document["classes"],
            document["counterfactual"],
            sums,
            maps,
            folder.add(f"pictures/{stem}.seen.jpg", jpeg(seen)),
            None if cam is None else folder.add(f"pictures/{stem}.cam.jpg", jpeg(cam)),
            folder.add(f"{stem}.png", whole),
            folder.add(f"{stem}.json", json_bytes(document)),
        )
        return page, brief(document)

    def _tiles(self, seen: Image.Image) -> list[tuple[int, Image.Image]]:
        """The directions that add most, and their maps over the image."""
        found = self.found
        parts = found.contributions.parts[:, found.explained]
        chosen = np.argsort(-np.abs(parts), kind="stable")[: self.shown].tolist()
        largest = np.abs(found.maps[:, chosen]).max(0)  # (shown,)
        scale = np.maximum(largest, PALE * largest.max(initial=0))
        return [
            (
                i,
                outline(
                    heat(seen, found.maps[:, i].reshape(self.grid), largest=float(top)),
                    found.fires[:, i].reshape(self.grid),
                ),
            )
            for i, top in zip(chosen, scale, strict=True)
        ]

    def _sums(self) -> list[tuple[str, list[Step]]]:
        found, terms = self.found, self.terms
        name = terms.classes[found.explained]
        sums = [(f"The logit of {name}", steps_of(found, terms, self.shown))]
        if found.against is not None:
            title = f"{name} against {terms.classes[found.against]}"
            sums.append((title, steps_of(found, terms, self.shown, found.against)))
        return sums

    def _sheet(self, seen: Image.Image, cam: Image.Image | None, maps: list[tuple[Map, Image.Image]]) -> bytes:
        found, terms = self.found, self.terms
        name = terms.classes[found.explained]
        return sheet(
            seen,
            cam,
            [
                (f"{m.name} {signed(m.value)}" + (f", on {percent(m.fires)}" if m.fires else ""), tile)
                for m, tile in maps
            ],
            [] if found.unread else steps_of(found, terms, self.shown),
            title=f"{name} ({probability(float(found.probabilities[found.explained]))})",
            subtitle=_upper(UNREAD if found.unread else turning_words(found, self.usual, terms)),
            what=f"what makes the logit of {name}",
            cam_title=f"Grad-CAM for {name}",
        )


def file_stem(name: str) -> str:
    """A file name's stem in letters that every disk and address takes, at most 60 of them."""
    stem = Path(name).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "image"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
