"""Frame-wise labels, read from text: beats, chords, segments.

A row is ``[start_s, end_s, label]``; of an event, start and end are equal. Sources:

=============================  =====================================================================
``.beats``                     ``time [position in the bar]`` on each line
``.lab``                       ``start end label`` on each line: chords (Harte's syntax) or segments
``.jams``                      the first annotation of the namespace ``beat``, ``beat_position``,
                               ``chord``, ``chord_harte`` or ``segment_*``
JSON: ``{"beat": [...]}``      MARBLE's beats: times, and ``"downbeat"``: the times that begin a bar
JSON: list of objects          MARBLE's chords: ``start_time``, ``end_time``, ``chord_str``; or
                               ``start_s``, ``end_s``, ``label``
JSON: list of lists            ``[time]``, ``[time, position]`` or ``[start, end, label]``
=============================  =====================================================================

Blank lines and lines that begin with ``#`` are skipped. :func:`infer_task` finds the task.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patchifier.audio import written_name
from patchifier.config import RequestError
from patchifier.io import parse_json, read_text
from patchifier.tasks import Task

SUFFIXES = (".beats", ".lab", ".jams")
Row = list[Any]  # [start_s, end_s, label]
Kind = Literal["beats", "chords", "boundaries", "intervals"]
NAMESPACES: dict[str, Kind] = {  # of JAMS; and segment_*
    "beat": "beats", "beat_position": "beats", "chord": "chords", "chord_harte": "chords",
}  # fmt: skip

TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
CHORDS = ("N", *(f"{tonic}:maj" for tonic in TONICS), *(f"{tonic}:min" for tonic in TONICS))
BOUNDARY = ("boundary",)

# Harte's grammar (2005) as far as mir_eval reads it.
_DEGREE = r"\*?(?:b*|#*)(?:1[0-3]|[1-9])"
_SHORTHAND = (
    "maj|min|dim|aug|1|5|sus2|sus4|maj6|min6|7|maj7|min7|dim7|hdim7|minmaj7|aug7|"
    "9|maj9|min9|11|maj11|min11|13|maj13|min13"
)
_DEGREES = rf"\({_DEGREE}(?:,{_DEGREE})*\)"
CHORD = re.compile(
    rf"N|X|[A-G](?:b*|#*)(?::(?:(?:{_SHORTHAND})(?:{_DEGREES})?|{_DEGREES}))?"
    r"(?:/(?:b*|#*)(?:1[0-3]|[1-9]))?"
)
LETTER = re.compile("[A-GX]")  # a chord, or a segment named by a letter: ambiguous

OVERLAP_S = 0.05  # less is rounding or imprecise; MARBLE's own chords overlap by 1e-9 s
SAME_BEAT_S = 0.07  # a downbeat this near a beat is that beat; the tolerance of the F-measure


@dataclass(frozen=True)
class Annotation:
    """Rows of one clip and their kind; "intervals" are chords or segments."""

    kind: Kind
    rows: list[Row]


def read(path: Path, metric: str = "") -> Annotation:
    """Read a label file: ``.beats``, ``.lab`` or ``.jams``; of several kinds that of the metric.

    Raises
    ------
    RequestError
        If the file cannot be read; with file and line.
    """
    try:
        with reading(path, "labels "):
            text = read_text(path, encoding="utf-8-sig")
    except RequestError:
        raise
    except ValueError as error:  # a zero byte or half a character in the name
        reason = f"labels cannot be read ({error}): correct their name."
        raise RequestError(f"{written_name(path)}: {reason}") from error
    if path.suffix.lower() == ".jams":
        return _jams(text, str(path), metric)
    return _parse_lines(text, str(path), events=path.suffix.lower() == ".beats")


@contextlib.contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """Name a text file in errors about reading it."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path}: {what}cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}), expected UTF-8: save "
            "it so."
        ) from error


def is_file(value: Any) -> bool:
    """Whether a target names a label file."""
    return isinstance(value, str) and value.lower().endswith(SUFFIXES)


def is_value(value: Any) -> bool:
    """Whether a JSON target holds frame-wise labels: an object, or a list of objects or lists."""
    if not isinstance(value, list):
        return isinstance(value, dict)
    return bool(value) and all(isinstance(item, dict | list) for item in value)


def from_value(value: Any, where: str) -> Annotation:
    """Read labels in one of the JSON forms above; errors name `where` and the row."""
    if isinstance(value, dict):
        return _marble_beats(value, where)
    parts = [_fields(item, f"{where}, label {number}") for number, item in enumerate(value, 1)]
    lengths = {len(fields) for _, fields in parts}
    if lengths == {3}:
        return Annotation("intervals", _intervals((place, *fields) for place, fields in parts))
    if lengths <= {1, 2}:
        return Annotation("beats", _events((place, *fields, "")[:3] for place, fields in parts))
    raise RequestError(
        f"{where}: labels have {sorted(lengths)} fields, expected [time], [time, position] or "
        "[start, end, label], all alike."
    )


def within(rows: Sequence[Row], start_s: float = 0.0, end_s: float | None = None) -> list[Row]:
    """Return the rows of a part of the file, in seconds from its start; intervals are cropped."""
    end_s = math.inf if end_s is None else end_s
    kept = []
    for first, last, label in rows:
        if first == last and start_s <= first < end_s:
            kept.append([first - start_s, last - start_s, label])
        elif min(last, end_s) > max(first, start_s):
            kept.append([max(first, start_s) - start_s, min(last, end_s) - start_s, label])
    return kept


def infer_task(annotations: Sequence[tuple[str, Annotation]], metric: str = "") -> Task:
    """Find the task of (place, labels) of every clip that has labels.

    Without a metric, events are beats; intervals are chords if every label is one and some label is
    more than a letter, which a segment could have too; else boundaries. Beats have the names
    "beat", and "downbeat" where a position is 1; chords N, 12 major and 12 minor; boundaries
    "boundary".

    Raises
    ------
    RequestError
        If clips have different kinds, or if the kind is ambiguous.
    """
    kinds: dict[str, str] = {}
    for where, annotation in annotations:
        kinds.setdefault(_kind(annotation, metric, where), where)
    definite = [kind for kind in kinds if kind not in ("letters", "nothing")]
    if len(definite) > 1:
        one, two = definite[:2]
        raise RequestError(
            f"labels are a mixture: {kinds[one]} has {one}, {kinds[two]} has {two}. Expected one "
            "kind; a column 'metric' says which."
        )
    if not definite and not metric:
        letters = "are single letters, which may be chords or segments"
        what = letters if "letters" in kinds else "are empty for every clip"
        raise RequestError(
            f"{annotations[0][0]}: labels {what}. Add a column 'metric' with beats, chords or "
            "boundaries."
        )
    found = metric or definite[0]
    if found != "beats":
        return Task("per-frame", CHORDS if found == "chords" else BOUNDARY, found)
    positions = {row[2] for _, annotation in annotations for row in annotation.rows}
    return Task("per-frame", ("beat", "downbeat") if "1" in positions else ("beat",), found)


def _kind(annotation: Annotation, metric: str, where: str) -> str:
    """Kind of one clip's labels, checked against `metric`."""
    rows, found = annotation.rows, "events" if annotation.kind == "beats" else "intervals"
    if not rows:
        return "nothing"
    wanted = "events" if metric == "beats" else "intervals"
    if metric and found != wanted:
        raise RequestError(f"{where}: labels are {found}, expected {wanted} for {metric}.")
    kind = metric or annotation.kind
    others = [row for row in rows if not CHORD.fullmatch(row[2])]
    if kind == "chords" and others:
        raise RequestError(
            f"{where}: label {others[0][2]!r} at {others[0][0]:g} s is no chord, expected Harte's "
            "syntax such as 'C:min7/b3', 'G' or 'N'."
        )
    if kind != "intervals":
        return kind
    if others:
        return "boundaries"
    return "letters" if all(LETTER.fullmatch(label) for *_, label in rows) else "chords"


# --- the formats ---


def _parse_lines(text: str, path: str, *, events: bool) -> Annotation:
    """Rows of the lines of a .beats or a .lab file."""
    counts, expected = (
        ((1, 2), "'time' or 'time position'") if events else ((3,), "'start end label'")
    )
    parts = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        fields = line.split() if events else line.split(None, 2)
        if len(fields) not in counts:
            raise RequestError(f"{where}: has {len(fields)} fields, expected {expected}.")
        parts.append((where, *fields, "")[: 3 if events else 4])
    if events:
        return Annotation("beats", _events(parts))
    return Annotation("intervals", _intervals(parts))


def _jams(text: str, path: str, metric: str) -> Annotation:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise RequestError(f"{path}: is not JSON ({error}).") from error
    given = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(given, list) or not all(isinstance(annotation, dict) for annotation in given):
        raise RequestError(f"{path}: has no list of 'annotations', expected a JAMS file.")
    found: dict[str, dict[str, Any]] = {}
    for annotation in given:
        namespace = str(annotation.get("namespace"))
        kind = "boundaries" if namespace.startswith("segment_") else NAMESPACES.get(namespace)
        if kind:
            found.setdefault(kind, annotation)
    wanted = metric or (next(iter(found)) if len(found) == 1 else "")
    if wanted not in found:
        holds = ", ".join(found) or "no beats, chords or segments"
        raise RequestError(
            f"{path}: holds {holds}, expected {metric or 'one of them'}: a column 'metric' says "
            "which is meant."
        )
    return _jams_annotation(wanted, found[wanted], path)


def _jams_annotation(kind: str, annotation: dict[str, Any], path: str) -> Annotation:
    """Rows of one annotation.

    Data is a list of observations or, in files of early versions, an object of columns.
    """
    data = annotation.get("data")
    if isinstance(data, dict):
        data = [
            dict(zip(data, values, strict=False)) for values in zip(*data.values(), strict=False)
        ]
    if not isinstance(data, list):
        raise RequestError(
            f"{path}: annotation {annotation.get('namespace')!r} has no data, expected a list of "
            "observations."
        )
    parts = []
    for number, item in enumerate(data, 1):
        where = f"{path}, {annotation['namespace']}, observation {number}"
        if not isinstance(item, dict) or "time" not in item:
            raise RequestError(
                f"{where}: has no time, expected an object with 'time', 'duration' and 'value'."
            )
        parts.append((where, item["time"], item.get("duration"), item.get("value")))
    if kind == "beats":
        return Annotation("beats", _events((where, time, value) for where, time, _, value in parts))
    rows = _intervals(
        (where, time, _number(time, where) + _number(length, where), value)
        for where, time, length, value in parts
    )
    return Annotation("chords" if kind == "chords" else "boundaries", rows)


def _marble_beats(value: dict[str, Any], where: str) -> Annotation:
    """MARBLE's object: positions count on from each downbeat.

    A downbeat without a beat within 70 ms is a beat by itself.
    """
    if not isinstance(value.get("beat"), list) or not isinstance(value.get("downbeat", []), list):
        raise RequestError(
            f"{where}: label is an object without lists of times under 'beat' and 'downbeat' "
            f"(found: {', '.join(value)})."
        )
    beats, firsts = (
        _times(value.get(name, []), f"{where}, {name}") for name in ("beat", "downbeat")
    )
    for first in firsts:
        if not beats or abs(_nearest(beats, first) - first) > SAME_BEAT_S:
            beats.append(first)
    downbeats = {_nearest(beats, first) for first in firsts}
    rows: list[Row] = []
    position = 0  # not known before the first downbeat
    for time in sorted(beats):
        position = 1 if time in downbeats else position + (position > 0)
        rows.append([time, time, str(position or "")])
    return Annotation("beats", rows)


def _times(values: list[Any], where: str) -> list[float]:
    parts = ((f"{where} {number}", time, "") for number, time in enumerate(values, 1))
    return [row[0] for row in _events(parts)]


def _nearest(times: list[float], time: float) -> float:
    return min(times, key=lambda each: abs(each - time))


def _fields(item: Any, where: str) -> tuple[str, list[Any]]:
    """Read the fields of one object or list."""
    if isinstance(item, list):
        return where, item
    for names in (("start_time", "end_time", "chord_str"), ("start_s", "end_s", "label")):
        if all(name in item for name in names):
            return where, [item[name] for name in names]
    raise RequestError(
        f"{where}: has {', '.join(item) or 'nothing'}, expected start_time, end_time and "
        "chord_str, or start_s, end_s and label."
    )


# --- checks of all formats ---


def _events(parts: Iterable[Sequence[Any]]) -> list[Row]:
    """Check (where, time, position) and return the rows."""
    rows: list[Row] = []
    for where, time, position in parts:
        time_s = _number(time, where)
        if rows and time_s < rows[-1][0]:
            raise RequestError(
                f"{where}: {time_s:g} s comes before the line above ({rows[-1][0]:g} s), expected "
                "times in order."
            )
        rows.append([time_s, time_s, _position(position, where)])
    return rows


def _intervals(parts: Iterable[Sequence[Any]]) -> list[Row]:
    """Check (where, start, end, label) and return the rows."""
    rows: list[Row] = []
    for where, start, end, label in parts:
        first, last = _number(start, where), _number(end, where)
        before = rows[-1][1] if rows else 0.0
        if first < before - OVERLAP_S:
            raise RequestError(
                f"{where}: starts at {first:g} s, before {before:g} s, expected intervals in "
                "order that do not overlap."
            )
        first = max(first, before)
        if last <= first:
            raise RequestError(
                f"{where}: runs from {first:g} to {last:g} s, expected an end after the start: "
                "correct or delete it."
            )
        if not isinstance(label, str):
            raise RequestError(f"{where}: label is {label!r}, expected text.")
        rows.append([first, last, label.strip()])
    return rows


def _number(value: Any, where: str) -> float:
    number = _float(value)
    if not math.isfinite(number):
        raise RequestError(f"{where}: time is {value!r}, expected seconds.")
    return number


def _position(value: Any, where: str) -> str:
    """Position in the bar as text, "" if it is not known."""
    value = value.get("position") if isinstance(value, dict) else value
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    number = _float(value)
    if not number.is_integer():
        raise RequestError(f"{where}: position in the bar is {value!r}, expected a whole number.")
    return str(int(number))


def _float(value: Any) -> float:
    """Value as a number; NaN if it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
