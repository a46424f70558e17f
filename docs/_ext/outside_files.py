"""Links to files outside docs/ that are pages here: they work in the repository and on the built pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PAGES = {
    "ARCHITECTURE.md": "contributing.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "stores/FORMAT.md": "store-format.md",
}


def _replaced(text: str) -> str:
    for file, page in PAGES.items():
        text = text.replace(f"](../{file}", f"]({page}").replace(f"]({file}", f"]({page}")
    return re.sub(r"\[[^]]+\]\(\.\./(examples/[^)]+)\)", r"`\1`", text)  # no page: its path


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    content[0] = _replaced(content[0])


def included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    content[0] = _replaced(content[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", read)
    app.connect("include-read", included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
