"""Text of ``--help``: a short synopsis, flags with their units, examples. No markup."""

import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Literal, get_args, get_origin

import jsonargparse

UNITS = {"_s": "SECONDS", "_hz": "HZ", "_db": "DB", "_length": "SAMPLES"}
WORDS = {  # of a flag's value, where its own name does not say what it is
    "FILE": ("to", "not", "from", "via", "seeds", "m3u", "onnx", "labels"),
    "FOLDER": ("root", "music", "heads", "hf", "below"),
    "PATH": ("out",),
    "MODEL": ("init",),
    "FILE_OR_RECIPE": ("config",),
    "NAME=FACTOR": ("weights",),
    "YEAR": ("year_from", "year_to"),
    "HOST:PORT": ("address",),
}
KINDS: dict[object, str] = {int: "N", float: "NUMBER", bool: "{true,false}", tuple: "LIST"}
_MARKUP = re.compile(r":\w+:`~?([^`]+)`|``([^`]+)``|`([^`]+)`")
_EXAMPLES = re.compile(r"^Examples\n-{8}\n(.*?)(?=^\S+\n-+\n|\Z)", re.MULTILINE | re.DOTALL)


def plain(text: str) -> str:
    """Return a docstring's text without the markup of reStructuredText.

    Examples
    --------
    >>> plain("``a`` of :mod:`patchifier.io`, see `b`.")
    'a of patchifier.io, see b.'
    """
    return _MARKUP.sub(lambda found: found[1] or found[2] or found[3], text)


def examples(command: Callable[..., object]) -> str:
    """Return the examples of a command's docstring: sentences and command lines."""
    found = _EXAMPLES.search(inspect.getdoc(command) or "")
    return found[1].strip() if found else ""


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Flags with a word for their value, and defaults where there is one to state."""

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], *args: object, **more: object
    ) -> str:
        """Lay out the synopsis: what is required, and [options] for the rest."""
        words = []
        for action in sorted(actions, key=lambda action: bool(action.option_strings)):
            if action.option_strings and action.required:
                words.append(f"{action.option_strings[0]} {self._value(action)}")
            elif not action.option_strings:
                name = f"{action.dest.upper()}{' ...' * (action.nargs == '+')}"
                words.append(name if action.required else f"[{name}]")
        line = " ".join([f"usage: {self._prog}", *words, "[options]"])
        return f"{textwrap.fill(line, self._width, subsequent_indent=' ' * 7)}\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return action.dest.upper()
        return f"{', '.join(action.option_strings)} {self._value(action)}".rstrip()

    def _value(self, action: argparse.Action) -> str:
        """Word for the value of a flag: its choices, its unit or its kind."""
        kind = getattr(action, "_typehint", None) or action.type
        choices = action.choices or (get_args(kind) if get_origin(kind) is Literal else ())
        name = action.dest.rpartition(".")[2]
        word = next((word for word, names in WORDS.items() if name in names), "")
        word = word or str(action.metavar or "")
        if action.nargs == 0:
            word = ""
        elif choices:
            word = f"{{{','.join(map(str, choices))}}}"
        elif not word:
            unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
            word = unit or KINDS.get(get_origin(kind) or kind, name.upper())
        return f"{word} ..." if action.nargs == "+" else word

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._HelpAction):
            return "Show this text."
        text = plain(action.help or "")
        if not action.option_strings:
            return text
        if action.required:
            return f"{text} Required."
        default = action.default
        if action.nargs == 0 or default in ((), "", None, argparse.SUPPRESS):
            return text
        if not default and "." not in action.dest:  # 0, which the text explains
            return text
        if isinstance(default, bool | tuple | list):
            return f"{text} (default: {json.dumps(default)})"
        return f"{text} (default: {default})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Keep paragraphs apart."""
        parts = plain(text).split("\n\n")
        return "\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in parts)
