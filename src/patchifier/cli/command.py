"""A command's function makes its parser: the signature is its flags, the docstring their help."""

import difflib
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import docstring_parser
import jsonargparse

from patchifier.cli.help import HelpFormatter, examples
from patchifier.config import Config, RequestError, read_changes, recipes, update
from patchifier.config_names import new_name, with_new_names
from patchifier.io import skipped_lines

RENAMED_RECIPES = {"base": "self-supervised"}  # accepted until 1.0


@dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    results: Any  # what --json prints
    text: str  # what is printed otherwise
    code: int = 0  # 1 if inputs were skipped or a check failed
    notes: tuple[str, ...] = ()  # lines for standard error behind the results


@dataclass(frozen=True)
class Overrides:
    """Overrides of a config: a file, and fields given as flags, which override the file."""

    file: str  # a JSON file or the name of a recipe; empty for none
    sections: dict[str, Any]  # {"pretrain": {"seed": 3}}

    def apply(self, base: Config) -> Config:
        """Return a copy of a config with these changes."""
        if self.file:
            base = update(base, read_config(self.file))
        return update(base, self.sections)


def read_config(name: str) -> dict[str, Any]:
    """Read a JSON config file, or a recipe by name, as a dict of the fields that it changes.

    The error about a misspelt recipe suggests the nearest one.
    """
    if name in RENAMED_RECIPES and not Path(name).exists():
        say(f"patchifier: the recipe {name!r} is now {RENAMED_RECIPES[name]!r}.")
        name = RENAMED_RECIPES[name]
    near = difflib.get_close_matches(name, recipes(), n=1)
    try:
        return read_changes(name)
    except RequestError as error:
        if not near:
            raise
        raise RequestError(f"{error} Did you mean {near[0]!r}?") from error


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def counted(count: int, noun: str) -> str:
    """Number with its noun: "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def print_skipped(skipped: Sequence[tuple[str, str]], listed: str | Path) -> str:
    """Say why each file was skipped; return the end of a command's text about all of them."""
    for line in skipped_lines(skipped):
        say(line)
    return f"; {len(skipped)} skipped, named in {listed}" if skipped else ""


def print_alike(names: Iterable[str]) -> None:
    """Name on standard error the labels that may be meant to be one."""
    from patchifier.tasks import alike

    for same in alike(names):
        say(f"note: labels that differ in case or spaces alone are different labels: {same}")


Command = Callable[..., Outcome | None]
SECTIONS = {field.type: field.name for field in fields(Config)}


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line, and whose help ends with examples."""

    examples = ""

    def format_help(self, formatter: Any = None) -> str:
        """Return the text of ``--help``."""
        end = f"\nexamples:\n{textwrap.indent(self.examples, '  ')}\n" if self.examples else ""
        return f"{super().format_help(formatter)}{end}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and leave with exit code 2."""
        missing = re.search(r"the following arguments are required: (.+)", message)
        if missing:
            flags = self._option_string_actions
            names = missing[1].split(", ")
            named = [f"--{name}" if f"--{name}" in flags else name.upper() for name in names]
            are = "are" if len(names) > 1 else "is"
            message = f"{' and '.join(named)} {are} missing: see '{self.prog} --help'."
        if left := re.match("unrecognized arguments: (.+)", message, re.IGNORECASE):
            message = f"{message}{_file_hint(left[1], self._option_string_actions)}"
        message = re.sub(r'^Parser key "(.+?)":', r"--\1:", message.removeprefix("argument "))
        message = re.sub(r"<class '(\w+)'>", r"\1", message)
        message = re.sub(r":\s+Expected a (\w+)\.\s+Got value: (.*)", _expected_kind, message)
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def with_new_flags(self, words: Sequence[str]) -> list[str]:
        """Replace flags that bear the old name of a config field, and print the new name.

        Old names are accepted until 1.0.
        """
        kept, old = _old_flags(words)
        for name in old:
            new = new_name(name)
            works = f"an old name of --{new}; it works until 1.0" if new else "a constant now"
            say(f"{self.prog}: --{name} is {works}.")
        nested: dict[str, Any] = {}
        for name, value in old.items():
            *sections, field = name.split(".")
            inside = nested
            for section in sections:
                inside = inside.setdefault(section, {})
            inside[field] = value
        try:
            return [*_flags(with_new_names(nested)), *kept]
        except ValueError as error:
            self.error(str(error))

    def require_known(self, words: Sequence[str]) -> None:
        """Refuse a flag that does not exist and suggest the nearest one."""
        for word in words:
            if word == "--":
                return
            flag = word.partition("=")[0]
            if re.fullmatch("--?[a-z][^ ]*", flag) and flag not in self._option_string_actions:
                names = [known.removeprefix("--") for known in self._option_string_actions]
                near = difflib.get_close_matches(flag.lstrip("-"), names, n=1)
                hint = f"did you mean --{near[0]}?" if near else f"see '{self.prog} --help'."
                self.error(f"there is no flag {flag}: {hint}")


def _file_hint(left: str, flags: Iterable[str]) -> str:
    """Text about the flags that name a file, where a word stands alone; else empty."""
    known = [flag for flag in ("--from", "--to", "--seeds") if flag in flags]
    if not known or left.startswith("-"):
        return ""
    if len(known) == 1:
        return f": did you mean {known[0]} {left}?"
    return f": a file is named by {' or '.join(known)}."


def _old_flags(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separate flags with old names of config fields, by dotted name, from all other words."""
    kept, old = [], {}
    left = iter(words)
    for word in left:
        flag, equals, text = word.partition("=")
        if word == "--":
            kept += [word, *left]
        elif flag.startswith("--") and new_name(flag[2:]) is not None:
            old[flag[2:]] = _value(text if equals else next(left, ""))
        else:
            kept.append(word)
    return kept, old


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flags(values: dict[str, Any], path: str = "--") -> list[str]:
    """Words of a nested config: {"model": {"n_layers": 4}} is ["--model.n_layers=4"]."""
    words = []
    for name, value in values.items():
        if isinstance(value, dict):
            words += _flags(value, f"{path}{name}.")
        else:
            words.append(f"{path}{name}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def parser(command: Command) -> Parser:
    """Build the parser of a command.

    A positional parameter is an argument, a keyword-only one a flag; of `from_`, a word of Python,
    the flag is ``--from``. A flag of type list takes several words, one of type tuple is repeated.
    A parameter that is a dataclass stands for a flag for each of its fields.
    The parameter `changes`, annotated with sections of the config, stands for ``--config`` and all
    fields of these sections.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    description, text = _documented(command)
    name = command.__name__
    built = Parser(
        prog=f"patchifier {name}",
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    built.examples = examples(command)
    built._positionals.title = "arguments"
    parameters = dict(inspect.signature(command).parameters)
    changes = parameters.pop("changes", None)
    for parameter in parameters.values():
        if _is_group(parameter):
            _, about = _documented(parameter.annotation)
            for one in inspect.signature(parameter.annotation).parameters.values():
                _add_argument(built, one.replace(kind=one.KEYWORD_ONLY), about[one.name])
        else:
            _add_argument(built, parameter, text.get(parameter.name, ""))
    built.add_argument("--json", action="store_true", help="Print results as JSON, nothing else.")
    if changes:
        built.add_argument("--config", type=str, default="", help=text.get("changes", ""))
        for section in typing.get_args(changes.annotation)[1:]:
            built.add_class_arguments(section, SECTIONS[section])
            whole = built._option_string_actions[f"--{SECTIONS[section]}"]
            whole.help, whole.metavar = "A JSON file of the fields below.", "FILE"
    return built


def _is_group(parameter: inspect.Parameter) -> bool:
    """Whether a parameter stands for several flags."""
    kind = parameter.annotation
    return parameter.name != "changes" and isinstance(kind, type) and is_dataclass(kind)


def _documented(thing: Any) -> tuple[str | None, dict[str, str]]:
    """Description of a function or a class, and text about each of its parameters."""
    doc = docstring_parser.parse(thing.__doc__ or "", docstring_parser.DocstringStyle.NUMPYDOC)
    return doc.description, {
        name: entry.description or "" for entry in doc.params for name in entry.arg_name.split(", ")
    }


def _expected_kind(found: re.Match[str]) -> str:
    """Text about a value of another kind than its flag takes."""
    kinds = {"int": "a whole number", "float": "a number"}
    return f" is {found[2]!r}, expected {kinds.get(found[1], found[1])}."


def _add_argument(built: Parser, parameter: inspect.Parameter, text: str) -> None:
    required = parameter.default is parameter.empty
    kind = parameter.annotation
    if types.NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    options: dict[str, Any] = {"help": text}
    if not required:
        options["default"] = parameter.default
    elif not positional:
        options["required"] = True
    if kind is bool:
        options["action"] = "store_true"
    elif typing.get_origin(kind) is Literal:
        options["choices"] = typing.get_args(kind)
    elif kind == list[str]:
        options |= {"type": str, "nargs": "+"} | ({} if positional else {"action": "extend"})
    elif kind == tuple[str, ...]:
        options |= {"type": str, "action": "append"}
    else:
        options["type"] = kind
    if positional and not required:
        options["nargs"] = "?"
    built.add_argument(f"{'' if positional else '--'}{_flag(parameter)}", **options)


def _flag(parameter: inspect.Parameter) -> str:
    return parameter.name.rstrip("_")


def parse(command: Command, words: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Read the words after a command's name: given flags by parameter, and whether --json was."""
    built = parser(command)
    words = built.with_new_flags(words)
    built.require_known(words)
    given = built.parse_args(words, defaults=False).as_dict()
    as_json = given.pop("json", False)
    for name, value in given.items():
        if isinstance(value, int) and value < 0 and name != "seed":
            built.error(f"--{name} is {value}, expected at least 0.")
    parameters = inspect.signature(command).parameters
    if "changes" in parameters:
        names = [name for name in SECTIONS.values() if isinstance(given.get(name), dict)]
        sections = {name: given.pop(name) for name in names}
        given["changes"] = Overrides(given.pop("config", ""), sections)
    for group in filter(_is_group, parameters.values()):
        own = [field.name for field in fields(group.annotation) if field.name in given]
        given[group.name] = group.annotation(**{name: given.pop(name) for name in own})
    names_of = {_flag(parameter): name for name, parameter in parameters.items()}
    return {names_of[flag]: value for flag, value in given.items()}, as_json
