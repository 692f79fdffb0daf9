"""Targets of whole clips, from what a manifest holds.

Names, numbers, and which of both they are.
"""

import contextlib
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patchifier.config import RequestError
from patchifier.tasks import METRICS, Kind, Task

MISSING = {  # what pandas and R write for a missing value
    "", "None", "nan", "NaN", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "#N/A",
}  # fmt: skip
METRIC_KINDS: dict[str, Kind] = {
    metric: kind for kind, metrics in METRICS.items() for metric in metrics
}
INFERRED: dict[Kind, str] = {
    "one-of": "every target is one name",
    "many-of": "targets are several names",
    "numbers": "every target is a number; a column 'task' with multiclass makes them classes",
    "per-frame": "targets are labels with times",
}


@dataclass(frozen=True)
class Stated:
    """What the columns ``task`` and ``metric`` say.

    Attributes
    ----------
    kind : kind of task or None
        None if neither is there.
    metric : str
        Empty if it is not there.
    column : str
        The column that decides; empty without one.
    """

    kind: Kind | None
    metric: str
    column: str

    def reason_of(self, task: Task | None) -> str:
        """Why the task is of its kind; empty without a task."""
        if task is None:
            return ""
        return f"column {self.column!r} says so" if self.column else INFERRED[task.kind]


def is_missing(value: Any) -> bool:
    """Whether a cell or JSON value stands for a missing one."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_target(value: Any, kind: Kind | None, *, is_text: bool, where: str) -> Any:
    """Read a target of a whole clip: str, list of str, float or list of float.

    Its kind is inferred from the value where `kind` is None. `is_text` is whether the value is from
    a table of text, in which ``1`` is a number and ``|`` is between several names. A value of
    another kind is refused; `where` names the row.
    """
    several, parts = isinstance(value, list), value if isinstance(value, list) else [value]
    if is_text and isinstance(value, str) and kind != "one-of":
        several, parts = "|" in value, [part.strip() for part in value.split("|")]
    numeric_text = kind == "numbers" or (is_text and isinstance(value, str))
    numbers = [_number(part, is_text=numeric_text) for part in parts]
    fault = f"{where}: label is {value!r}, expected"
    kind = kind or _kind_of(parts, numbers, several, fault)
    if kind == "numbers":
        if None in numbers:
            raise RequestError(f"{fault} a number, or several.")
        return numbers if several else numbers[0]
    if kind == "one-of" and several:
        raise RequestError(f"{fault} one name.")
    names = [name_of(part, where, "label") for part in parts if not is_missing(part)]
    return names[0] if kind == "one-of" else names


def _kind_of(
    parts: Sequence[Any], numbers: Sequence[float | None], several: bool, fault: str
) -> Kind:
    """Infer the kind of one target from its parts, each with its value if it is a number."""
    if numbers and None not in numbers:
        return "numbers"
    others = [part for part, number in zip(parts, numbers, strict=True) if number is None]
    names = all(isinstance(part, str | bool) or is_missing(part) for part in parts)
    if not names or (len(others) < len(parts) and all(map(is_missing, others))):
        raise RequestError(f"{fault} names alone, or numbers of which none is missing.")
    return "many-of" if several else "one-of"


def _number(part: Any, *, is_text: bool) -> float | None:
    """Return a finite number, or None; a number in text counts if `is_text`."""
    if is_text and isinstance(part, str) and "_" not in part:
        with contextlib.suppress(ValueError):
            part = float(part)
    if isinstance(part, bool) or not isinstance(part, int | float) or not abs(part) < math.inf:
        return None
    return part


def name_of(part: Any, where: str, column: str) -> str:
    """Return a name in form NFC; numbers and booleans are written as in JSON."""
    text = json.dumps(part) if isinstance(part, bool | int | float) else part
    if not isinstance(text, str):
        raise RequestError(f"{where}: {column} holds {part!r}, expected a name.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where}: {column} is {part!r}, which is not Unicode text ({error.reason})."
        ) from error
    return unicodedata.normalize("NFC", text.strip())
