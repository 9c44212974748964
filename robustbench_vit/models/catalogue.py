"""This package's own models by name, read from the source: listing them needs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent


def model_catalogue() -> dict[str, str]:
    """The models this package adds to timm's registry: name -> first line of its description, sorted by name."""
    found: dict[str, str] = {}
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(_is_registration(d) for d in node.decorator_list):
                found[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def model_modules() -> list[str]:
    """The modules whose import registers those models."""
    modules = []
    for path in sorted(FOLDER.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(n, ast.FunctionDef) and any(map(_is_registration, n.decorator_list)) for n in body):
            modules.append(f"robustbench_vit.models.{path.stem}")
    return modules


def _is_registration(decorator: ast.expr) -> bool:
    """Whether this is `@register_model` or `@….register_model`."""
    return getattr(decorator, "id", getattr(decorator, "attr", "")) == "register_model"
