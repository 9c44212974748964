"""Imports go one way, and what must answer at once imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustbench_vit

PACKAGE = Path(robustbench_vit.__file__).parent
NAME = "robustbench_vit"

BELOW = {
    "errors": set(),
    "registry": {"errors"},
    "statistics": {"errors"},
    "storage": {"errors"},
    "differences": set(),
    "cards": {"errors", "registry", "differences"},
    "data": {"errors", "registry"},
    "records": {"errors", "statistics", "storage"},
    "plan": {"errors", "cards", "data", "records"},
    "boards": {"errors", "cards", "plan", "records", "statistics", "storage", "differences"},
    "comparing": {"errors", "cards", "records", "statistics", "storage", "differences", "boards"},
    "attacks": {"errors", "registry", "cards"},
    "models": {"errors", "registry", "storage"},
    "diagnostics": {"errors", "models", "attacks", "engine", "records"},
    "pictures": {"errors", "storage", "data", "records", "models", "attacks", "engine"},
    "engine": {"errors", "registry", "attacks", "plan", "records"},
    "defenses": {
        "errors",
        "registry",
        "cards",
        "data",
        "records",
        "attacks",
        "engine",
        "models",
        "diagnostics",
        "progress",
        "storage",
    },
}
"""What a part of the package may import; parts that are not listed stand at the top and may import all of these."""

LIGHT = [
    "cards",
    "plan",
    "records",
    "statistics",
    "boards",
    "comparing",
    "data",
    "cli",
    "cli.app",
    "testing.plugin",
    "models.catalogue",
    "registry",
    "errors",
]
HEAVY = ("torch", "timm", "scipy", "pandas", "sklearn")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_workspace" not in path.parts)


def part(path: Path) -> str:
    """The part of the package a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts a module imports anywhere in it, except for types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {inner for node in ast.walk(tree) if _type_checking(node) for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith(f"{NAME}.")}
    parts = {part(module) for module in modules()}
    return (found & parts) - {part(path)}


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    if part(path) in BELOW:
        assert imported_parts(path) <= BELOW[part(path)]


def test_the_parts_listed_here_exist() -> None:
    assert {*BELOW} <= {part(path) for path in modules()}


def test_the_parts_listed_here_form_no_circle() -> None:
    def reachable(name: str, seen: frozenset[str]) -> set[str]:
        assert name not in seen
        return set().union(*(reachable(below, seen | {name}) for below in BELOW.get(name, ()))) | {name}

    for name in BELOW:
        reachable(name, frozenset())


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys; import {NAME}.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_is_light_and_its_names_exist() -> None:
    code = (
        f"import sys, {NAME} as rbv; print([n for n in {HEAVY!r} if n in sys.modules]);"
        "print(all(hasattr(rbv, n) for n in rbv.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        _ = robustbench_vit.evalute  # type: ignore[attr-defined]
