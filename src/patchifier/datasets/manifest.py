r"""Manifests: tables of clips as CSV (or TSV) or JSONL, one row for each clip.

Known columns; only the path is required, and CSV may write them in upper case:

================  ==================================================================================
path, audio_path  of the file; relative paths start at the manifest's folder, or at one of the
                  folders above it
id                the path by default; of several parts of one file the path and the start, as in
                  ``a.wav@12.5``
start_s, end_s    part of the file, in seconds
split             train, valid (val, validation) or test
fold              a whole number
group             track, piece or artist; of several parts of one file the path by default
target, label     a name; several names, or several numbers, in a JSON list or (in CSV) with ``|``
                  between them; frame-wise labels: a ``.beats``, ``.lab`` or ``.jams`` file (found
                  where audio is), or JSON (:mod:`~patchifier.datasets.labels`)
task              multiclass, multilabel, regression or frame-wise, the same in every row; inferred
                  if not given
metric            of the task, the same in every row: it states the task too; of frame-wise labels
                  beats, chords or boundaries
================  ==================================================================================

Without ``task`` and ``metric``, targets that are all numbers are regression; in JSON, strings and
booleans are names. Names are in Unicode's form NFC. Targets and groups such as ``None``, ``nan``
and ``NA`` (:data:`patchifier.datasets.targets.MISSING`) are missing. Where ``;`` or a tab is
between the columns, ``0,5`` is a number.

Every other column is kept as text. Times in labels are relative to the file, as ``start_s`` is;
times in a clip's target are relative to its start.

MARBLE's JSONL (``audio_path, label, duration, sample_rate, num_samples, bit_depth, channels``) is
such a table; a split in the name of the file (``GTZANGenre.train.jsonl``) is used.
"""

import csv
import difflib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchifier.config import RequestError, naming
from patchifier.datasets import SPLITS, Clip, Dataset, labels
from patchifier.datasets.targets import METRIC_KINDS, Stated, is_missing, name_of, read_target
from patchifier.io import parse_json, read_text, require_file
from patchifier.tasks import KIND_NAMES, METRICS, infer

SUFFIXES = (".csv", ".tsv", ".jsonl")
SPLIT_NAMES = {split: split for split in SPLITS}
SPLIT_NAMES |= {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}
KNOWN = {
    "path", "audio_path", "file", "id", "start_s", "end_s", "split", "fold", "group", "target",
    "label", "task", "metric",
}  # fmt: skip
NEAR = 0.75  # least likeness of a misspelt column, by difflib
NUMERIC = ("start_s", "end_s", "fold", "target", "label")  # columns in which 0,5 may be a number
log = logging.getLogger(__name__)
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")


def load(path: Path) -> Dataset:
    """Read a manifest.

    Raises
    ------
    RequestError
        If a row cannot be read; with its number.
    """
    return load_all([path], path.stem)


def load_all(paths: Sequence[Path], name: str) -> Dataset:
    """Read several manifests as one data set: NAME.train.jsonl, NAME.val.jsonl, NAME.test.jsonl."""
    entries = [entry for path in paths for entry in list_entries(path)]
    if misspelt := near_columns({name for entry in entries for name in entry.row}):
        meant = [f"{name} (did you mean {known}?)" for name, known in misspelt.items()]
        log.warning("%s: columns not used: %s", ", ".join(map(str, paths)), ", ".join(meant))
    stated = _stated(entries)
    counts = Counter(path_of(entry.row, entry.where) for entry in entries)
    repeated = {path for path, count in counts.items() if count > 1}
    clips = [_clip(entry, stated, repeated) for entry in entries]
    if stated.kind == "per-frame" or any(
        isinstance(clip.target, labels.Annotation) for clip in clips
    ):
        return _per_frame(name, clips, [entry.where for entry in entries], stated)
    if any(isinstance(clip.target, list) for clip in clips):  # one tag has no bar in its cell
        clips = [
            replace(clip, target=[clip.target]) if isinstance(clip.target, str) else clip
            for clip in clips
        ]
    with naming(", ".join(map(str, paths))):
        task = infer([clip.target for clip in clips])
    if task and stated.metric:
        task = replace(task, metric=stated.metric)
    return Dataset(name, tuple(clips), task, reason=stated.reason_of(task))


def near_columns(names: Collection[str]) -> dict[str, str]:
    """Columns that are not used, but nearly called as one that is, which is not there.

    Examples
    --------
    >>> near_columns(["path", "Target", "grp", "artist", "duration"])
    {'grp': 'group', 'Target': 'target'}
    """
    absent = [known for known in KNOWN if known not in names and len(known) > 2]
    for same in (("path", "audio_path", "file"), ("target", "label")):
        if any(name in names for name in same):
            absent = [known for known in absent if known not in same]
    found = {}
    for name in sorted(set(names) - KNOWN, key=str.casefold):
        if near := difflib.get_close_matches(name.casefold(), sorted(absent), n=1, cutoff=NEAR):
            found[name] = near[0]
    return found


def _per_frame(name: str, clips: Sequence[Clip], places: Sequence[str], stated: Stated) -> Dataset:
    """Data set with frame-wise labels.

    A clip without events has an empty list, a clip that is not annotated None.
    """
    annotations = []
    for clip, where in zip(clips, places, strict=True):
        if isinstance(clip.target, labels.Annotation):
            annotations.append((where, clip.target))
        elif clip.target not in (None, []):
            raise RequestError(
                f"{where}: label is {clip.target!r}, expected frame-wise labels as in "
                f"{annotations[0][0] if annotations else 'other rows'}."
            )
    task = None
    if annotations or stated.metric:
        task = labels.infer_task(annotations, stated.metric)
    settled = [
        replace(clip, target=clip.target.rows)
        if isinstance(clip.target, labels.Annotation)
        else clip
        for clip in clips
    ]
    return Dataset(name, tuple(settled), task, reason=stated.reason_of(task))


@dataclass(frozen=True)
class Entry:
    """One row of a manifest: its cells, file and row for messages, split in the name of the file.

    Relative paths start at `root`. `is_text` is whether all cells are text, as in CSV.
    """

    row: dict[str, Any]
    where: str
    split: str | None
    root: Path
    is_text: bool


def list_entries(path: Path) -> list[Entry]:
    """Read the rows of one manifest."""
    is_text = path.suffix.lower() != ".jsonl"
    with labels.reading(path):
        rows = _read_csv(path) if is_text else _read_jsonl(path)
    if not rows:
        raise RequestError(f"{path}: no rows, expected one for each clip.")
    words = [word for word in path.stem.lower().split(".")[1:] if word in SPLIT_NAMES]
    split = SPLIT_NAMES[words[0]] if words else None
    root = _root(path, path_of(rows[0], f"{path}, row 1"))
    return [
        Entry(row, f"{path}, row {number}", split, root, is_text)
        for number, row in enumerate(rows, 1)
    ]


def _stated(entries: Sequence[Entry]) -> Stated:
    """Read the columns ``task`` and ``metric``; refuse what contradicts the other or the labels."""
    word, place = _only(entries, "task")
    metric, where = _only(entries, "metric")
    if word and word not in KIND_NAMES:
        raise RequestError(f"{place}: task is {word!r}, expected {', '.join(KIND_NAMES)}.")
    written = any(labels.is_file(_label(e.row)) or labels.is_value(_value(e)) for e in entries)
    if written and word in ("", "frame-wise"):
        expected = METRICS["per-frame"]
    else:
        expected = METRICS[KIND_NAMES[word]] if word else tuple(METRIC_KINDS)
    if metric and metric not in expected:
        raise RequestError(f"{where}: metric is {metric!r}, expected {', '.join(expected)}.")
    kind = KIND_NAMES[word] if word else METRIC_KINDS.get(metric)
    return Stated(kind, metric, "task" if word else "metric" if metric else "")


def _only(entries: Sequence[Entry], column: str) -> tuple[str, str]:
    """Return the value that a column has in every row, and a row with it; empty without one."""
    given = [entry for entry in entries if not is_missing(entry.row.get(column))]
    found = {str(entry.row[column]): entry.where for entry in given}
    if len(found) > 1:
        one, two = list(found)[:2]
        raise RequestError(
            f"{found[two]}: {column} is {two!r}, but {one!r} in {found[one]}, "
            "expected the same in every row."
        )
    return next(iter(found.items()), ("", ""))


def _root(manifest: Path, first: str) -> Path:
    """Folder at which relative paths start.

    The manifest's own, or the nearest above it where the first file exists.
    """
    folders = [manifest.resolve().parent, *manifest.resolve().parent.parents]
    return next((folder for folder in folders if os.path.exists(folder / first)), folders[0])


def _read_csv(path: Path) -> list[dict[str, Any]]:
    require_file(path)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
        reader = csv.DictReader(stream, delimiter=delimiter)
        rows = list[dict[str, Any]]()
        try:
            reader.fieldnames = _columns(reader.fieldnames or (), path)
            for row in reader:
                rows.append(_cells(row, f"{path}, row {len(rows) + 1}"))
        except csv.Error as error:  # a field above 128 kB, or an unfinished one
            raise RequestError(
                f"{path}, row {len(rows) + 1}: cannot be read ({error}): "
                "name files of labels (.beats, .lab, .jams), or write JSONL."
            ) from error
    if delimiter == ",":
        return rows
    points = ({name: _with_point(row[name]) for name in NUMERIC if name in row} for row in rows)
    return [row | with_points for row, with_points in zip(rows, points)]


def _columns(header: Sequence[str], path: Path) -> list[str]:
    """Names of columns, known ones in lower case; none of these may be there twice."""
    names = [name.strip() for name in header]
    names = [name.lower() if name.lower() in KNOWN else name for name in names]
    if twice := sorted(name for name in set(names) & KNOWN if names.count(name) > 1):
        given = [repr(cell) for cell, name in zip(header, names, strict=True) if name == twice[0]]
        raise RequestError(
            f"{path}: the columns {' and '.join(given)} are all {twice[0]!r}: keep one of them."
        )
    return names


def _cells(row: dict[Any, Any], where: str) -> dict[str, str]:
    if None in row or None in row.values():
        raise RequestError(f"{where}: has another number of fields than the header.")
    return {name: value.strip() for name, value in row.items()}


def _with_point(cell: str) -> str:
    """Write decimal commas as points."""
    parts = [part.strip() for part in cell.split("|")]
    return "|".join(
        part.replace(",", ".") if DECIMAL_COMMA.fullmatch(part) else part for part in parts
    )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path, encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise RequestError(f"{path}, line {number}: is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise RequestError(
                f"{path}, line {number}: holds {type(row).__name__}, expected a JSON object."
            )
        rows.append(row)
    return rows


def path_of(row: dict[str, Any], where: str) -> str:
    """Return the file of a row."""
    name = row.get("path") or row.get("audio_path") or row.get("file")
    if not name:
        raise RequestError(
            f"{where}: has no path, expected a column 'path' or 'audio_path' (found: "
            f"{', '.join(map(repr, row))})."
        )
    return str(name)


def _clip(entry: Entry, stated: Stated, repeated: Collection[str]) -> Clip:
    """Make the clip of a row; `repeated` are the paths of several rows."""
    row, where = entry.row, entry.where
    name = path_of(row, where)
    split = None if is_missing(row.get("split")) else row["split"]
    split = split or entry.split
    if split and str(split).lower() not in SPLIT_NAMES:
        raise RequestError(f"{where}: split is {split!r}, expected train, valid or test.")
    start_s, end_s = number_of(row, "start_s", where) or 0.0, number_of(row, "end_s", where)
    target = _target(entry, stated)
    if isinstance(target, labels.Annotation):
        target = replace(target, rows=labels.within(target.rows, start_s, end_s))
    part_name = f"{name}@{start_s:.12g}" if name in repeated and start_s else name
    group = name if name in repeated else None  # parts of one file are not independent
    return Clip(
        id=str(part_name if row.get("id") in (None, "") else row["id"]),
        path=str(entry.root / name),
        start_s=start_s,
        end_s=end_s,
        split=SPLIT_NAMES[split.lower()] if split else None,
        fold=_fold(row, where),
        group=group if is_missing(row.get("group")) else name_of(row["group"], where, "group"),
        target=target,
        info={key: str(value) for key, value in _other(row).items() if value not in (None, "")},
    )


def _label(row: dict[str, Any]) -> Any:
    return row.get("target", row.get("label"))


def _other(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that are only kept, among them tempo and meter of MARBLE's beats."""
    label = _label(row)
    rest = label if isinstance(label, dict) else {}
    kept = {key: value for key, value in rest.items() if key not in ("beat", "downbeat")}
    return kept | {key: value for key, value in row.items() if key not in KNOWN}


def number_of(row: dict[str, Any], key: str, where: str) -> float | None:
    """Return the number in a cell, None if the cell is empty."""
    if row.get(key) in (None, ""):
        return None
    try:
        value = float(row[key])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(f"{where}: {key} is {row[key]!r}, expected a number.")
    return value


def _fold(row: dict[str, Any], where: str) -> int | None:
    value = number_of(row, "fold", where)
    if value is not None and not value.is_integer():
        raise RequestError(f"{where}: fold is {row['fold']!r}, expected a whole number.")
    return None if value is None else int(value)


def _value(entry: Entry) -> Any:
    """Return the label of a row, with JSON in text decoded.

    In JSONL, strings are names: one is decoded only if it holds frame-wise labels.
    """
    value = _label(entry.row)
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            decoded = parse_json(value)
        except ValueError:
            return value  # a name that starts with a bracket
        return decoded if entry.is_text or labels.is_value(decoded) else value
    return value


def _target(entry: Entry, stated: Stated) -> Any:
    """Read the target of a row: of the whole clip, or frame-wise labels; None if it is missing."""
    value = _value(entry)
    if is_missing(value):
        return None
    if stated.kind in (None, "per-frame") and labels.is_file(value):
        return labels.read(entry.root / value, stated.metric)
    if stated.kind in (None, "per-frame") and labels.is_value(value):
        return labels.from_value(value, entry.where)
    if stated.kind == "per-frame" and value != []:
        raise RequestError(f"{entry.where}: label is {value!r}, expected frame-wise labels.")
    return read_target(value, stated.kind, is_text=entry.is_text, where=entry.where)
