"""Attributes of a package that are imported when they are first used."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from patchifier.config import RequestError

NONE: Mapping[str, str] = MappingProxyType({})


def attach(
    package: str, exports: Mapping[str, str] = NONE
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Parameters
    ----------
    package : str
        Its ``__name__``. All its submodules become attributes.
    exports : mapping of str to str
        Further attributes: name to module, such as ``{"load": "patchifier.embed"}``. A module's
        own last name, such as ``{"search": "patchifier.library.search"}``, exports the module.

    Examples
    --------
    >>> get, _ = attach("json", {"PurePath": "pathlib"})
    >>> get("tool").__name__, get("PurePath").__name__
    ('json.tool', 'PurePath')
    """

    def get(name: str) -> Any:
        home = exports.get(name, f"{package}.{name}")
        if name in exports and home.rpartition(".")[2] != name:
            return getattr(importlib.import_module(home), name)
        if not name.startswith("_") and importlib.util.find_spec(home):
            try:
                return importlib.import_module(home)
            except RequestError as error:  # an optional package is missing
                raise AttributeError(str(error)) from error
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        module = sys.modules[package]
        submodules = [found.name for found in pkgutil.iter_modules(module.__path__)]
        public = [name for name in submodules if not name.startswith("_")]
        return sorted({*vars(module).get("__all__", vars(module)), *exports, *public})

    return get, names
