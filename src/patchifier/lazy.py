"""Attributes of a package that are imported when they are first used.

Every import of the package begins here, so this file imports little: until more is imported, the
command handles no Ctrl-C.
"""

import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def attach(
    package: str, exports: "Mapping[str, str] | None" = None
) -> "tuple[Callable[[str], Any], Callable[[], list[str]]]":
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
    exports = exports or {}

    def get(name: str) -> "Any":
        from importlib.util import find_spec

        home = exports.get(name, f"{package}.{name}")
        if name in exports and home.rpartition(".")[2] != name:
            return getattr(importlib.import_module(home), name)
        if not name.startswith("_") and find_spec(home):
            from patchifier.config import RequestError

            try:
                return importlib.import_module(home)
            except RequestError as error:  # an optional package is missing
                raise AttributeError(str(error)) from error
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        import pkgutil

        module = sys.modules[package]
        submodules = [found.name for found in pkgutil.iter_modules(module.__path__)]
        public = [name for name in submodules if not name.startswith("_")]
        return sorted({*vars(module).get("__all__", vars(module)), *exports, *public})

    return get, names
