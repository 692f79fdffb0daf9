r"""Manifests: tables of clips as CSV (or TSV) or JSONL, one row for each clip.

Known columns; only the path is required:

================  ==================================================================================
path, audio_path  of the file; relative paths start at the manifest's folder, or at one of the
                  folders above it
id                the path by default
start_s, end_s    part of the file, in seconds
split             train, valid (val, validation) or test
fold              a whole number
group             track, piece or artist
target, label     a name; several names, or several numbers, in a JSON list or (in CSV) with ``|``
                  between them; frame-wise
                  labels: a ``.beats``, ``.lab`` or ``.jams`` file (found where audio is), or JSON
                  (:mod:`~patchifier.datasets.labels`)
metric            of the task, the same in every row; of frame-wise labels beats, chords or
                  boundaries, inferred if not given
================  ==================================================================================

Every other column is kept as text. Times in labels are relative to the file, as ``start_s`` is;
times in a clip's target are relative to its start.

MARBLE's JSONL (``audio_path, label, duration, sample_rate, num_samples, bit_depth, channels``) is
such a table; a split in the name of the file (``GTZANGenre.train.jsonl``) is used.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.datasets import SPLITS, Clip, Dataset, labels
from patchifier.io import parse_json, read_text, require_file
from patchifier.tasks import METRICS, infer

SUFFIXES = (".csv", ".tsv", ".jsonl")
SPLIT_NAMES = {split: split for split in SPLITS}
SPLIT_NAMES |= {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}
KNOWN = {
    "path", "audio_path", "file", "id", "start_s", "end_s", "split", "fold", "group", "target",
    "label", "metric",
}  # fmt: skip


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
    metric = _metric(entries)
    clips = [_clip(entry, metric) for entry in entries]
    if any(isinstance(clip.target, labels.Annotation) for clip in clips):
        return _per_frame(name, clips, [entry.where for entry in entries], metric)
    if any(isinstance(clip.target, list) for clip in clips):  # one tag has no bar in its cell
        clips = [
            replace(clip, target=[clip.target]) if isinstance(clip.target, str) else clip
            for clip in clips
        ]
    task = infer([clip.target for clip in clips])
    return Dataset(name, tuple(clips), replace(task, metric=metric) if task and metric else task)


def _per_frame(name: str, clips: Sequence[Clip], places: Sequence[str], metric: str) -> Dataset:
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
    task = labels.infer_task(annotations, metric)
    settled = [
        replace(clip, target=clip.target.rows)
        if isinstance(clip.target, labels.Annotation)
        else clip
        for clip in clips
    ]
    return Dataset(name, tuple(settled), task)


@dataclass(frozen=True)
class Entry:
    """One row, its position for messages, the split in the file's name, root of its paths."""

    row: dict[str, Any]
    where: str
    split: str | None
    root: Path


def list_entries(path: Path) -> list[Entry]:
    """Read the rows of one manifest."""
    try:
        rows = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}), expected UTF-8: save "
            "it so."
        ) from error
    if not rows:
        raise RequestError(f"{path}: no rows, expected one for each clip.")
    words = [word for word in path.stem.lower().split(".")[1:] if word in SPLIT_NAMES]
    split = SPLIT_NAMES[words[0]] if words else None
    root = _root(path, path_of(rows[0], f"{path}, row 1"))
    return [Entry(row, f"{path}, row {number}", split, root) for number, row in enumerate(rows, 1)]


def _metric(entries: Sequence[Entry]) -> str:
    """Return the metric of the table, if it has one."""
    given = [entry for entry in entries if entry.row.get("metric") not in (None, "")]
    found = {str(entry.row["metric"]): entry.where for entry in given}
    if len(found) > 1:
        one, two = list(found)[:2]
        raise RequestError(
            f"{found[two]}: metric is {two!r}, but {one!r} in {found[one]}, expected the same in "
            "every row."
        )
    known = METRICS["per-frame"]
    metric = next(iter(found), "")
    frame_wise = any(_is_frame_wise(_label(entry.row)) for entry in entries)
    if metric and frame_wise and metric not in known:
        raise RequestError(f"{found[metric]}: metric is {metric!r}, expected {', '.join(known)}.")
    return metric


def _root(manifest: Path, first: str) -> Path:
    """Folder at which relative paths start.

    The manifest's own, or the nearest above it where the first file exists.
    """
    folders = [manifest.resolve().parent, *manifest.resolve().parent.parents]
    return next((folder for folder in folders if (folder / first).exists()), folders[0])


def _read_csv(path: Path) -> list[dict[str, Any]]:
    require_file(path)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
        reader = csv.DictReader(stream, delimiter=delimiter)
        rows = []
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise RequestError(
                    f"{path}, row {number}: has another number of fields than the header."
                )
            rows.append({name.strip(): value.strip() for name, value in row.items()})
        return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path, encoding="utf-8-sig").splitlines(), 1):
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
            f"{', '.join(row)})."
        )
    return str(name)


def _clip(entry: Entry, metric: str) -> Clip:
    row, where = entry.row, entry.where
    name = path_of(row, where)
    split = row.get("split") or entry.split
    if split and str(split).lower() not in SPLIT_NAMES:
        raise RequestError(f"{where}: split is {split!r}, expected train, valid or test.")
    start_s, end_s = number_of(row, "start_s", where) or 0.0, number_of(row, "end_s", where)
    target = _target(_label(row), entry, metric)
    if isinstance(target, labels.Annotation):
        target = replace(target, rows=labels.within(target.rows, start_s, end_s))
    return Clip(
        id=str(name if row.get("id") in (None, "") else row["id"]),
        path=str(entry.root / name),
        start_s=start_s,
        end_s=end_s,
        split=SPLIT_NAMES[split.lower()] if split else None,
        fold=_fold(row, where),
        group=str(row["group"]) if row.get("group") not in (None, "") else None,
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


def _is_frame_wise(value: Any) -> bool:
    """Whether a label, as it is written, is frame-wise."""
    return labels.is_file(value) or labels.is_value(_unpacked(value))


def _unpacked(value: Any) -> Any:
    """Decode a JSON list or object in a cell; other values stay as they are."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            return parse_json(value)
        except ValueError:
            return value  # a name that starts with a bracket
    return value


def _target(value: Any, entry: Entry, metric: str) -> Any:
    """Read a name, a list of names, a number, a list of numbers or frame-wise labels.

    None for an empty cell.
    """
    if value is None or value == "":
        return None
    if labels.is_file(value):
        return labels.read(entry.root / value, metric)
    value = _unpacked(value)
    if labels.is_value(value):
        return labels.from_value(value, entry.where)
    if not isinstance(value, str) or value.startswith("["):
        return value
    parts = [part.strip() for part in value.split("|")]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return parts if len(parts) > 1 else value
    return numbers if len(numbers) > 1 else numbers[0]
