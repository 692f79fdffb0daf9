"""Labels of moments within a clip, read from text: beats, chords, segments.

A row is ``[start_s, end_s, label]``; an event has start and end alike. Sources:

=============================  ========================================================================================
``.beats``                     ``time [position in the bar]`` on each line
``.lab``                       ``start end label`` on each line: chords (Harte's syntax) or segments
``.jams``                      the first annotation whose namespace is ``beat``, ``beat_position``, ``chord``,
                               ``chord_harte`` or ``segment_*``
JSON: ``{"beat": [...]}``      MARBLE's beats: times, and ``"downbeat"``: those of them that begin a bar
JSON: list of objects          MARBLE's chords: ``start_time``, ``end_time``, ``chord_str``; or ``start_s``, ``end_s``, ``label``
JSON: list of lists            ``[time]``, ``[time, position]`` or ``[start, end, label]``
=============================  ========================================================================================

Blank lines and lines that begin with ``#`` are passed over. What a table of such labels asks for is decided by :func:`settle`.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patchifier.config import RequestError
from patchifier.tasks import Task

SUFFIXES = (".beats", ".lab", ".jams")
Row = list[Any]  # [start_s, end_s, label]
Kind = Literal["beats", "chords", "boundaries", "intervals"]

TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
CHORDS = ("N", *(f"{tonic}:maj" for tonic in TONICS), *(f"{tonic}:min" for tonic in TONICS))
BOUNDARY = ("boundary",)

# Harte's grammar (2005) as far as mir_eval reads it.
_DEGREE = r"\*?(?:b*|#*)(?:1[0-3]|[1-9])"
_SHORTHAND = "maj|min|dim|aug|1|5|sus2|sus4|maj6|min6|7|maj7|min7|dim7|hdim7|minmaj7|aug7|9|maj9|min9|11|maj11|min11|13|maj13|min13"
_DEGREES = rf"\({_DEGREE}(?:,{_DEGREE})*\)"
CHORD = re.compile(
    rf"N|X|[A-G](?:b*|#*)(?::(?:(?:{_SHORTHAND})(?:{_DEGREES})?|{_DEGREES}))?(?:/(?:b*|#*)(?:1[0-3]|[1-9]))?"
)
LETTER = re.compile("[A-GX]")  # a chord, or a segment named by a letter: nobody can tell

OVERLAP_S = 0.05  # less is rounding or a slip of the hand; MARBLE's own chords overlap by 1e-9 s
SAME_BEAT_S = 0.07  # a downbeat this near a beat is that beat; the tolerance of the F-measure


@dataclass(frozen=True)
class Annotation:
    """Rows of one clip and what they are; "intervals" where only their labels can tell chords from segments."""

    kind: Kind
    rows: list[Row]


def read(path: Path, metric: str = "") -> Annotation:
    """Read a label file.

    Parameters
    ----------
    path : Path
        ``.beats``, ``.lab`` or ``.jams``.
    metric : "beats", "chords", "boundaries" or ""
        What is wanted, where a .jams holds several kinds.

    Raises
    ------
    RequestError
        With file and line, for one that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path}: labels cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}), expected UTF-8: save it so."
        ) from error
    if path.suffix.lower() == ".jams":
        return _jams(text, str(path), metric)
    lines = [
        (f"{path}, line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1)
    ]
    lines = [(where, line) for where, line in lines if line and not line.startswith("#")]
    return _beats_lines(lines) if path.suffix.lower() == ".beats" else _lab_lines(lines)


def is_file(value: Any) -> bool:
    """Whether a target names a label file."""
    return isinstance(value, str) and value.lower().endswith(SUFFIXES)


def is_value(value: Any) -> bool:
    """Whether a JSON target holds labels of moments: an object, or a list of objects or lists."""
    return isinstance(value, dict) or (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict | list) for item in value)
    )


def from_value(value: Any, where: str) -> Annotation:
    """Labels in one of the JSON forms above.

    Raises
    ------
    RequestError
        With `where` and the number of the row.
    """
    if isinstance(value, dict):
        return _marble_beats(value, where)
    parts = [_fields(item, f"{where}, label {number}") for number, item in enumerate(value, 1)]
    lengths = {len(fields) for _, fields in parts}
    if lengths == {3}:
        return Annotation("intervals", _intervals((place, *fields) for place, fields in parts))
    if lengths <= {1, 2}:
        return Annotation("beats", _events((place, *fields, "")[:3] for place, fields in parts))
    raise RequestError(
        f"{where}: labels have {sorted(lengths)} fields, expected [time], [time, position] or [start, end, label], all alike."
    )


def within(rows: Sequence[Row], start_s: float = 0.0, end_s: float | None = None) -> list[Row]:
    """Rows of a part of the file, in seconds from its start; what lies outside is no part of it, intervals are cropped."""
    end_s = math.inf if end_s is None else end_s
    kept = []
    for first, last, label in rows:
        if first == last and start_s <= first < end_s:
            kept.append([first - start_s, last - start_s, label])
        elif min(last, end_s) > max(first, start_s):
            kept.append([max(first, start_s) - start_s, min(last, end_s) - start_s, label])
    return kept


def settle(annotations: Sequence[tuple[str, Annotation]], metric: str = "") -> Task:
    """Find the task of a whole table of labels.

    Parameters
    ----------
    annotations : sequence of (where, Annotation)
        Of every clip that has labels; `where` names it in messages.
    metric : str
        If given, all labels must fit it. Else events are beats; intervals are chords if every label is one and some label is more
        than a letter, which a segment could have too; else boundaries.

    Returns
    -------
    Task
        Beats: "beat", and "downbeat" where a position is 1. Chords: N, 12 major, 12 minor. Boundaries: "boundary".

    Raises
    ------
    RequestError
        If clips are of different kinds, or if nobody can tell.
    """
    kinds: dict[str, str] = {}
    for where, annotation in annotations:
        kinds.setdefault(_kind(annotation, metric, where), where)
    definite = [kind for kind in kinds if kind not in ("letters", "nothing")]
    if len(definite) > 1:
        one, two = definite[:2]
        raise RequestError(
            f"labels are a mixture: {kinds[one]} has {one}, {kinds[two]} has {two}. Expected one kind; a column 'metric' says which."
        )
    if not definite and not metric:
        what = (
            "are single letters, which may be chords or segments"
            if "letters" in kinds
            else "are empty for every clip"
        )
        raise RequestError(
            f"{annotations[0][0]}: labels {what}. Add a column 'metric' with beats, chords or boundaries."
        )
    found = metric or definite[0]
    if found == "beats":
        downbeats = any(
            label == "1" for _, annotation in annotations for *_, label in annotation.rows
        )
        return Task("per-frame", ("beat", "downbeat") if downbeats else ("beat",), found)
    return Task("per-frame", CHORDS if found == "chords" else BOUNDARY, found)


def _kind(annotation: Annotation, metric: str, where: str) -> str:
    """What one clip's labels are, checked against what is wanted."""
    rows = annotation.rows
    if not rows:
        return "nothing"
    events = annotation.kind == "beats"
    if metric and events != (metric == "beats"):
        raise RequestError(
            f"{where}: labels are {'events' if events else 'intervals'}, expected {'events' if metric == 'beats' else 'intervals'} for {metric}."
        )
    kind = metric or annotation.kind
    if kind == "chords":
        wrong = next((row for row in rows if not CHORD.fullmatch(row[2])), None)
        if wrong is not None:
            raise RequestError(
                f"{where}: label {wrong[2]!r} at {wrong[0]:g} s is no chord, expected Harte's syntax such as 'C:min7/b3', 'G' or 'N'."
            )
    if kind != "intervals":
        return kind
    if not all(CHORD.fullmatch(label) for *_, label in rows):
        return "boundaries"
    return "letters" if all(LETTER.fullmatch(label) for *_, label in rows) else "chords"


# --- the formats ---


def _beats_lines(lines: Iterable[tuple[str, str]]) -> Annotation:
    parts = []
    for where, line in lines:
        fields = line.split()
        if len(fields) > 2:
            raise RequestError(
                f"{where}: has {len(fields)} fields, expected 'time' or 'time position'."
            )
        parts.append((where, fields[0], fields[1] if len(fields) == 2 else ""))
    return Annotation("beats", _events(parts))


def _lab_lines(lines: Iterable[tuple[str, str]]) -> Annotation:
    parts = []
    for where, line in lines:
        fields = line.split(None, 2)
        if len(fields) != 3:
            raise RequestError(f"{where}: has {len(fields)} fields, expected 'start end label'.")
        parts.append((where, *fields))
    return Annotation("intervals", _intervals(parts))


def _jams(text: str, path: str, metric: str) -> Annotation:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RequestError(f"{path}: is not JSON ({error}).") from error
    given = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(given, list) or not all(isinstance(annotation, dict) for annotation in given):
        raise RequestError(f"{path}: has no list of 'annotations', expected a JAMS file.")
    found: dict[str, dict[str, Any]] = {}
    for annotation in given:
        kind = _namespace_kind(str(annotation.get("namespace")))
        if kind:
            found.setdefault(kind, annotation)
    wanted = [metric] if metric in found else [] if metric else list(found)
    if len(wanted) != 1:
        holds = ", ".join(found) or "no beats, chords or segments"
        raise RequestError(
            f"{path}: holds {holds}, expected {metric or 'one of them'}: a column 'metric' says which is meant."
        )
    return _jams_annotation(wanted[0], found[wanted[0]], path)


def _namespace_kind(namespace: str) -> Kind | None:
    if namespace in ("beat", "beat_position"):
        return "beats"
    if namespace in ("chord", "chord_harte"):
        return "chords"
    return "boundaries" if namespace.startswith("segment_") else None


def _jams_annotation(kind: str, annotation: dict[str, Any], path: str) -> Annotation:
    """Rows of one annotation; data is a list of observations or, in files of early versions, an object of columns."""
    data = annotation.get("data")
    if isinstance(data, dict):
        data = [
            dict(zip(data, values, strict=False)) for values in zip(*data.values(), strict=False)
        ]
    if not isinstance(data, list):
        raise RequestError(
            f"{path}: annotation {annotation.get('namespace')!r} has no data, expected a list of observations."
        )
    places = [
        (f"{path}, {annotation['namespace']}, observation {number}", item)
        for number, item in enumerate(data, 1)
    ]
    for place, item in places:
        if not isinstance(item, dict) or "time" not in item:
            raise RequestError(
                f"{place}: has no time, expected an object with 'time', 'duration' and 'value'."
            )
    if kind == "beats":
        values = [(place, item["time"], item.get("value")) for place, item in places]
        return Annotation(
            "beats",
            _events(
                (place, time, value.get("position") if isinstance(value, dict) else value)
                for place, time, value in values
            ),
        )
    spans = [
        (
            place,
            _number(item["time"], place),
            _number(item.get("duration"), place),
            item.get("value"),
        )
        for place, item in places
    ]
    rows = _intervals(
        (place, first, first + duration, value) for place, first, duration, value in spans
    )
    return Annotation("chords" if kind == "chords" else "boundaries", rows)


def _marble_beats(value: dict[str, Any], where: str) -> Annotation:
    """MARBLE's object: positions count on from each downbeat; one without a beat within 70 ms is a beat by itself."""
    if not isinstance(value.get("beat"), list) or not isinstance(value.get("downbeat", []), list):
        raise RequestError(
            f"{where}: label is an object without lists of times under 'beat' and 'downbeat' (found: {', '.join(value)})."
        )
    beats = [
        row[0]
        for row in _events(
            (f"{where}, beat {number}", time, "") for number, time in enumerate(value["beat"], 1)
        )
    ]
    for first, *_ in _events(
        (f"{where}, downbeat {number}", time, "")
        for number, time in enumerate(value.get("downbeat", []), 1)
    ):
        nearest = min(beats, key=lambda time: abs(time - first), default=math.inf)
        if abs(nearest - first) > SAME_BEAT_S:
            beats.append(first)
    downbeats = {
        min(beats, key=lambda time: abs(time - first))
        for first in map(float, value.get("downbeat", []))
    }
    rows: list[Row] = []
    position = 0  # not known before the first downbeat
    for time in sorted(beats):
        position = 1 if time in downbeats else position + (position > 0)
        rows.append([time, time, str(position or "")])
    return Annotation("beats", rows)


def _fields(item: Any, where: str) -> tuple[str, list[Any]]:
    """Fields of one object or list."""
    if isinstance(item, list):
        return where, item
    for names in (("start_time", "end_time", "chord_str"), ("start_s", "end_s", "label")):
        if all(name in item for name in names):
            return where, [item[name] for name in names]
    raise RequestError(
        f"{where}: has {', '.join(item) or 'nothing'}, expected start_time, end_time and chord_str, or start_s, end_s and label."
    )


# --- checks that all formats share ---


def _events(parts: Iterable[Sequence[Any]]) -> list[Row]:
    """Rows of (where, time, position)."""
    rows: list[Row] = []
    for where, time, position in parts:
        time_s = _number(time, where)
        if rows and time_s < rows[-1][0]:
            raise RequestError(
                f"{where}: {time_s:g} s comes before the line above ({rows[-1][0]:g} s), expected times in order."
            )
        rows.append([time_s, time_s, _position(position, where)])
    return rows


def _intervals(parts: Iterable[Sequence[Any]]) -> list[Row]:
    """Rows of (where, start, end, label)."""
    rows: list[Row] = []
    for where, start, end, label in parts:
        first, last = _number(start, where), _number(end, where)
        before = rows[-1][1] if rows else 0.0
        if first < before - OVERLAP_S:
            raise RequestError(
                f"{where}: starts at {first:g} s, before {before:g} s, expected intervals in order that do not overlap."
            )
        first = max(first, before)
        if last <= first:
            raise RequestError(
                f"{where}: runs from {first:g} to {last:g} s, expected an end after the start: correct or delete it."
            )
        if not isinstance(label, str):
            raise RequestError(f"{where}: label is {label!r}, expected text.")
        rows.append([first, last, label.strip()])
    return rows


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{where}: time is {value!r}, expected seconds.")
    return number


def _position(value: Any, where: str) -> str:
    """Place in the bar as text, "" if it is not known."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise RequestError(f"{where}: position in the bar is {value!r}, expected a whole number.")
    return str(int(number))
