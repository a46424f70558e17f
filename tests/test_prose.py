"""Words that a reader stumbles over do not come back: in the documentation, docstrings and messages.

Each is ordinary English, and each was used here in an old sense for which the field has a plainer word.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTEAD = {
    "alone": "only",
    "begun": "started",
    "beside": "next to",
    "by itself|by themselves": "individually, separately",
    "goes on|go on|went on": "resumes, continues",
    "gone": "missing, removed",
    "kept": "stored",
    "lies": "is",
    "mend|mends|mended": "fix",
    "nobody": "no user, no process",
    "taken for": "predicted as, read as",
    "told|tells": "reported, says, distinguishes",
    "whole": "complete; integer",
}
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "BENCHMARKS.md", "ARCHITECTURE.md", "SECURITY.md", "stores/FORMAT.md")
    ),
]
SOURCE = [
    file for folder in ("evaluate", "extract", "fit", "pipeline", "stores") for file in (ROOT / folder).rglob("*.py")
]


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """The docstrings and messages of a module, or the lines of a page, with their line; names in code style are left out."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from enumerate(content.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize("files", [PAGES, SOURCE], ids=["pages", "source"])
def test_plain_words(files: list[Path]) -> None:
    avoided = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.I)
    found = [
        f"{file.relative_to(ROOT)}:{line}: '{word}'"
        for file in files
        if "_build" not in file.parts
        for line, text in texts(file)
        for word in avoided.findall(re.sub(r"`+[^`]*`+|^ *\w+(, \w+)* :", "", text, flags=re.M))
    ]
    assert found == [], f"Say instead: {INSTEAD}"


def test_links_have_a_text() -> None:
    """Sphinx fills in the title of an empty link; plain Markdown shows nothing."""
    empty = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in re.findall(r"\[\]\([^)]*\)", page.read_text(encoding="utf-8"))
    ]
    assert not empty


def test_plain_words_in_the_names_of_tests() -> None:
    avoided = re.compile(rf"(?:_)({'|'.join(INSTEAD).replace(' ', '_')})(?:_|$)")
    names = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
        if avoided.search(name)
    ]
    assert not names, INSTEAD
