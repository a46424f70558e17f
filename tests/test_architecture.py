"""Imports point one way down: pipeline → evaluate, fit → extract → stores; fit and evaluate never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "stores": set(),
    "extract": {"stores"},
    "fit": {"stores", "extract"},
    "evaluate": {"stores", "extract"},
    "pipeline": {"stores", "extract", "fit", "evaluate"},
}
COMMAND_LINE_ONLY = {"click", "rich"}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_imports_point_down() -> None:
    wrong = []
    for floor, allowed in ALLOWED.items():
        for file in (ROOT / floor).rglob("*.py"):
            found = imported(file)
            wrong += [f"{file.relative_to(ROOT)} imports {n}" for n in found & (set(ALLOWED) - allowed - {floor})]
            if floor != "pipeline":
                wrong += [f"{file.relative_to(ROOT)} imports {n}" for n in found & COMMAND_LINE_ONLY]
            if "pickle" in found and floor != "extract":  # extract names its error, to refuse what it finds
                wrong.append(f"{file.relative_to(ROOT)} imports pickle")
    assert not wrong, "\n".join(wrong)


def test_every_version_is_pinned_once() -> None:
    lines = [
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert len(lines) == len(set(lines))
    for needed in ("torch", "torchvision", "zarr", "numpy", "faiss-cpu", "numcodecs", "dask", "click", "pytest"):
        assert needed in lines
