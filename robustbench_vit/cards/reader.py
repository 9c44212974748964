"""One YAML file -> a mapping, with errors that name the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from robustbench_vit.errors import CardError


class _CardLoader(yaml.SafeLoader):
    """SafeLoader that also refuses a field written twice (YAML would silently keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"field '{key}' is written twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, shown: str) -> dict[str, Any]:
    """The fields of the card at `path`; `shown` is the name used in errors. Raises CardError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{shown}: cannot be read: {error}") from error
    try:
        value = yaml.load(text, Loader=_CardLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise CardError(_yaml_fault(error, shown)) from error
    except yaml.YAMLError as error:
        raise CardError(f"{shown}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise CardError(f"{shown}: expected fields such as 'version: 1', got {type(value).__name__}")
    if bad := [key for key in value if not isinstance(key, str)]:
        raise CardError(f"{shown}: field names are text, got {bad[0]!r}")
    return value


def _yaml_fault(error: yaml.MarkedYAMLError, shown: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{shown}, line {mark.line + 1}" if mark else shown
    problem = error.problem or "not valid YAML"
    if "could not determine a constructor for the tag" in problem:
        tag = problem.split("'")[1] if "'" in problem else "?"
        return f"{where}: YAML tag '{tag}' is not allowed: cards hold settings, never code"
    if "written twice" in problem:
        return f"{where}: {problem}; keep one"
    return f"{where}: not valid YAML: {problem}"
