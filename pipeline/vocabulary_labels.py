"""Words for directions: a word list, an image-text encoder and a store's images → a table, and names for directions without a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.direction_names import Maskless
from evaluate.parallel import Scheduler
from evaluate.vocabulary import LEVEL, WordLabel, read_words, study_words
from extract.image_text import open_encoder
from extract.store_images import open_store_images
from pipeline.evaluation_parts import Findings, Subject
from stores.tables import rows_to_columns

KIND = "word"


@dataclass(frozen=True)
class WordConfig:
    """``vocabulary``: a text file or ``default``; ``encoder``: as ``extract.image_text.open_encoder`` takes it."""

    vocabulary: str
    encoder: str


@dataclass(frozen=True)
class Worded:
    """What was found, and what each direction of a set may be called: its significant word."""

    findings: Findings
    names: dict[str, list[Maskless]]


def find_words(subject: Subject, config: WordConfig, seed: int, scheduler: Scheduler = None) -> Worded:
    """The word of each direction. Raises UsageError for a list or an encoder that is none, and the errors of opening the store's images."""
    words = read_words(config.vocabulary)
    images = open_store_images(subject.store)
    encoder = open_encoder(config.encoder, subject.device)
    found = study_words(
        subject.reader, subject.bank, images.frames, images.source.digest, encoder, words,
        seed=seed, progress=subject.progress, scheduler=scheduler,
    )  # fmt: skip
    about = {"encoder": config.encoder, "words": found.words, "images": found.images, "randoms": found.randoms, "seed": seed, "level": LEVEL}  # fmt: skip
    entries = {
        name: {"vocabulary": {"significant": sum(one.significant for one in labels), **about}}
        for name, labels in found.labels.items()
    }
    rows = [_row(name, i, one) for name, labels in found.labels.items() for i, one in enumerate(labels)]
    names = {
        name: [(one.words[0], KIND) if one.significant else ("", "") for one in labels]
        for name, labels in found.labels.items()
    }
    return Worded(Findings(entries, {"vocabulary_labels": [rows_to_columns(rows)]}), names)


def _row(name: str, index: int, one: WordLabel) -> dict[str, Any]:
    word, second, third = (*one.words, "")[:3]
    return {
        "directions": name, "index": index, "word": word, "score": round(one.score, 6), "cosine": round(one.cosine, 6),
        "p": round(one.p, 6), "q_bh": round(one.q, 6), "significant": one.significant, "second": second, "third": third,
    }  # fmt: skip


def first_found(first: Sequence[Maskless] | None, then: Sequence[Maskless]) -> list[Maskless]:
    """Of each direction the label of ``first``, where it has none that of ``then``."""
    return [one if one[0] else other for one, other in zip(first or [("", "")] * len(then), then, strict=True)]


def word_lines(summary: Mapping[str, Any]) -> list[str]:
    """How many directions of each file have a word, for people."""
    return [
        f"{name}: {entry['vocabulary']['significant']} of {entry['directions']} directions have a word beyond chance (of {entry['vocabulary']['words']}; at 5 %, against "
        f"{entry['vocabulary']['randoms']} random directions)"
        for name, entry in summary["directions"].items()
        if "vocabulary" in entry
    ]
