"""Named things, registered by a decorator or found through entry points."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from robustbench_vit.errors import InputError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to values of one kind; registering a name twice is an error.

    `modules` are imported before the first look-up, so that a decorator in them *is* the registration.
    Installed packages add values by entry points of the group `group` (loaded on first use).
    """

    def __init__(self, kind: str, group: str | None = None, modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._group = group
        self._modules = modules
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str, value: T | None = None) -> Callable[[T], T]:
        """A decorator that registers its argument as `name` and returns it unchanged."""

        def add(item: T) -> T:
            origin = f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', item)}"
            if name in self._values:
                raise InputError(
                    f"{self.kind} '{name}' is registered twice: by {self._origins[name]} and by {origin};"
                    " rename one of them"
                )
            self._values[name] = item
            self._origins[name] = origin
            return item

        if value is not None:
            add(value)
        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._modules:
            importlib.import_module(module)
        if self._group is not None:
            for point in entry_points(group=self._group):
                self.register(point.name, point.load())

    def get(self, name: str, where: str | None = None) -> T:
        """The value registered as `name`; raises UnknownNameError naming the nearest one."""
        self._load()
        if name not in self._values:
            raise UnknownNameError(self.kind, name, self._values, where)
        return self._values[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._values)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._values
