"""Parameters of a request: values of its path, query and JSON body, checked against a dataclass."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from patchifier.config import RequestError

KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
LONGEST = 100_000  # items of a list


class RefusedError(RequestError):
    """A request that is refused with an HTTP status, and may be met after `retry_s` seconds."""

    def __init__(self, status: int, sentence: str, *, retry_s: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.retry_s = status, retry_s


@dataclasses.dataclass(frozen=True)
class NoParams:
    """Nothing."""


@dataclasses.dataclass(frozen=True)
class SongParams:
    """A song."""

    id: str


def checked(kind: Any, given: Mapping[str, Any], *, texts: bool = False, what: str = "") -> Any:
    """Make an object of a dataclass from values by name; refused if one is missing or wrong.

    Its annotations say what is expected, its defaults what may be left out. A field's metadata may
    have another "name". Names that are not its fields are refused, unless it has an
    `others_ignored` that is true. Of the `texts` of a query, numbers are read. `what` is where the
    values stand, for messages, such as "filters.".

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True)
    ... class Params:
    ...     id: str
    ...     count: int = 10
    >>> checked(Params, {"id": "a", "count": "3"}, texts=True)
    Params(id='a', count=3)
    """
    fields = {field.metadata.get("name", field.name): field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(given) - set(fields))
    if unknown and not getattr(kind, "others_ignored", False):
        raise RequestError(
            f"{what}{unknown[0]} is not known here, expected {', '.join(fields) or 'nothing'}."
        )
    values = {}
    for name, field in fields.items():
        if name in given:
            wanted = hints[field.name]
            value = _read_text(wanted, given[name]) if texts else given[name]
            values[field.name] = value_of(wanted, value, what + name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise RequestError(f"{what}{name} is missing, expected {expected(hints[field.name])}.")
    return kind(**values)


def value_of(kind: Any, value: Any, name: str) -> Any:
    """Return a value of JSON as `kind`, or raise a RequestError that names it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else value_of(parts[0], value, name)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return checked(kind, value, what=f"{name}.")
    if origin is list and isinstance(value, list) and len(value) <= LONGEST:
        return [value_of(parts[0], one, f"{name}[{place}]") for place, one in enumerate(value)]
    if origin is dict and isinstance(value, Mapping) and len(value) <= LONGEST:
        return {key: value_of(parts[1], one, f"{name}.{key}") for key, one in value.items()}
    if origin is Literal and value in parts:
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if kind in KINDS and type(value) is kind and not (kind is float and not math.isfinite(value)):
        return value
    raise RequestError(f"{name} is {_shown(value)}, expected {expected(kind)}.")


def expected(kind: Any) -> str:
    """Say in words what values a kind has."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return f"{expected(parts[0])} or nothing"
    if origin is list:
        return f"a list of at most {LONGEST:,}, each {expected(parts[0])}"
    if origin is dict:
        return f"an object whose values are each {expected(parts[1])}"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    return KINDS.get(kind, "an object")


def require_range(name: str, value: float, least: float, most: float) -> None:
    """Refuse a number out of a range."""
    if not least <= value <= most:
        raise RequestError(f"{name} is {value:g}, expected {least:g} to {most:g}.")


def _read_text(kind: Any, text: str) -> Any:
    """Value of a query's text; the text itself if it is not of that kind."""
    kind = next(iter(typing.get_args(kind) or [kind]), kind)
    try:
        if kind in (int, float):
            return kind(text)
    except ValueError:
        return text
    return {"true": True, "false": False}.get(text, text) if kind is bool else text


def _shown(value: Any) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
