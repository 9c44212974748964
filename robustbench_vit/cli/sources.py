"""The source of this package's models, read without importing it (and so without torch)."""

from __future__ import annotations

import ast

from robustbench_vit.errors import InputError, suggestion
from robustbench_vit.models.catalogue import FOLDER, model_catalogue


def model_source(name: str) -> str:
    """What `rbvit show model NAME` prints: file, description and source. Raises InputError for other names."""
    known = model_catalogue()
    if name not in known:
        raise InputError(
            f"unknown model '{name}'{suggestion(name, known, 'model')} "
            "(timm's classifiers can be evaluated by name, but are documented by timm)"
        )
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                source = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
                return f"model {name}\nfile: {path}\n\n{ast.get_docstring(node) or ''}\n\n{source}"
    raise InputError(f"model '{name}' has no source in {FOLDER}")
