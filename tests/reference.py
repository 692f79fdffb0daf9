"""The names that the reference lists: those of its pages in docs/api, at the level of a module."""

import importlib
import re
from typing import Any, NamedTuple

from tests import ROOT

MODULE = re.compile(r"^\.\. automodule:: (\S+)\n   :members:((?:.|\n )+)", re.MULTILINE)
CLASS = re.compile(r"^\.\. autoclass:: (\S+)\.(\w+)", re.MULTILINE)


class Name(NamedTuple):
    """A name in a module as the reference lists it, and what it stands for."""

    module: str
    key: str
    value: Any

    @property
    def place(self) -> str:
        """Where the source has it: several modules may list one name."""
        return f"{getattr(self.value, '__module__', self.module)}.{self.key}"


def names() -> list[Name]:
    """Names that the reference lists."""
    found = []
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name, members in (*MODULE.findall(text), *CLASS.findall(text)):
            module = importlib.import_module(name)
            keys = map(str.strip, members.split(","))
            found += [Name(name, key, getattr(module, key)) for key in keys]
    return found
