"""Words for directions: a word list and examples of directions → a table, and names for directions without a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.crop_embeddings import layer_folder
from evaluate.direction_names import Maskless
from evaluate.examples import Examples, random_count
from evaluate.vocabulary import LEVEL, WordLabel, least_beyond, study_words
from pipeline.evaluation_parts import Findings, Subject
from pipeline.logging import say
from stores.tables import rows_to_columns

KIND = "word"


@dataclass(frozen=True)
class Worded:
    """What was found, and what each direction of a set may be called: its significant word."""

    findings: Findings
    names: dict[str, list[Maskless]]


def say_what_words_need(slices: Mapping[str, slice]) -> None:
    """Of each file with many directions: how many must stand out before any gets a word."""
    randoms = random_count(slices)
    for name, part in slices.items():
        count = part.stop - part.start
        if (least := least_beyond(count, randoms)) > 1:
            say(
                f"{name}: any of its {count} directions gets a word only where at least {least} have a better one than all {randoms} random directions"
            )


def find_words(subject: Subject, examples: Examples, words: Sequence[str], seed: int) -> Worded:
    """The word of each direction."""
    file = layer_folder(subject.reader) / "words.safetensors"
    found = study_words(examples, words, file=file, device=subject.device, progress=subject.progress)
    about = {"encoder": examples.encoder.name, "words": found.words, "images": found.images, "randoms": found.randoms, "seed": seed, "level": LEVEL}  # fmt: skip
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
