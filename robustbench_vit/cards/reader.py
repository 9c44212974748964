"""One YAML file -> a mapping, with errors that name the file and the line."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from robustbench_vit.errors import CardError


class _CardLoader(yaml.SafeLoader):
    """SafeLoader that refuses a field written twice (YAML would silently keep the last) and reads dates as text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(f"field names are text, got {key!r}", key_node)
            if key in seen:
                raise _fault(f"field '{key}' is written twice; keep one", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Fault(yaml.MarkedYAMLError):
    """What this loader refuses beyond YAML's own rules."""


def _fault(problem: str, node: yaml.Node) -> _Fault:
    return _Fault(None, None, problem, node.start_mark)


_IN_WORDS = {type(None): "an empty file", list: "a list", str: "text"}


def read_mapping(path: Path, shown: str) -> dict[str, Any]:
    """The fields of the card at `path`; `shown` is the name used in errors. Raises CardError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{shown}: cannot be read: {error}") from error
    return copy.deepcopy(_parsed(text, shown))


@lru_cache(maxsize=256)
def _parsed(text: str, shown: str) -> dict[str, Any]:
    """The fields in a card's text; a plan asks for the same cards again and again."""
    try:
        value = yaml.load(text, Loader=_CardLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise CardError(_yaml_fault(error, shown)) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: values like !!int x
        raise CardError(f"{shown}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise CardError(f"{shown}: expected fields such as 'version: 1', got {_IN_WORDS.get(type(value), 'a value')}")
    return value


def _yaml_fault(error: yaml.MarkedYAMLError, shown: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{shown}, line {mark.line + 1}" if mark else shown
    problem = error.problem or "not valid YAML"
    if "could not determine a constructor for the tag" in problem:
        tag = problem.split("'")[1].replace("tag:yaml.org,2002:", "!!") if "'" in problem else "?"
        return f"{where}: YAML tag '{tag}' is not allowed: cards hold settings, never code"
    if isinstance(error, _Fault):
        return f"{where}: {problem}"
    return f"{where}: not valid YAML: {problem}"
