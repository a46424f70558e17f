"""Imports point one way down: pipeline → evaluate, fit → extract → stores; fit and evaluate never import each other."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("floor", sorted(ALLOWED))
def test_no_import_cycle_inside_a_folder(floor: str) -> None:
    """Imports inside functions count."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / floor).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names += [node.module] if not modules.keys() >= set(names) else []
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            graph.setdefault(name, set()).update(set(names) & modules.keys() - {name})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_name_has_two_meanings() -> None:
    """Neither a module's nor a class's. Commands are called what they do; a folder may have a ``base`` and a ``config``."""
    files = [file for floor in ALLOWED for file in (ROOT / floor).rglob("*.py")]
    named = [file.stem for file in files if file.parent.name != "commands"]
    modules = Counter(name for name in named if name not in ("__init__", "base", "config"))
    nodes = (node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body)
    classes = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in (modules + classes).items() if count > 1] == []


def test_modules_are_nouns() -> None:
    participles = ("_seen", "listed", "mapped", "refined", "recorded", "judged", "evaluated", "wrapped", "speaking")
    named = [file.stem for floor in ALLOWED for file in (ROOT / floor).rglob("*.py")]
    assert [name for name in named if name.endswith(participles)] == []


def test_every_version_is_pinned_once() -> None:
    lines = [
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert len(lines) == len(set(lines))
    for needed in ("torch", "torchvision", "zarr", "numpy", "faiss-cpu", "numcodecs", "dask", "click", "pytest"):
        assert needed in lines
