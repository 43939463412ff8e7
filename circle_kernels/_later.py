"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def load_later(
    package: str, modules: Mapping[str, tuple[str, ...]], subpackages: tuple[str, ...] = ()
) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package: which of its modules has which names, and subpackages.

    Where checkers do not see it, for to them a package that has one has every name.
    """
    places = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name in subpackages:
            return importlib.import_module(f"{package}.{name}")  # which sets the attribute
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
