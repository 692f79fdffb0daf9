r"""A table of clips: CSV (or TSV) or JSONL, one row a clip.

Known columns; only the path is needed:

================  ======================================================================================================
path, audio_path  of the file; relative paths start at the manifest's folder, or at one of the folders above it
id                the path, if there is none
start_s, end_s    part of the file, in seconds
split             train, valid (val, validation) or test
fold              a whole number
group             track, piece or artist
target, label     a name; several names, or several numbers, in a JSON list or (in CSV) with ``|`` between them
================  ======================================================================================================

Every other column is kept as text. MARBLE's JSONL (``audio_path, label, duration, sample_rate, num_samples, bit_depth,
channels``) is such a table; where its split stands in the file's name (``GTZANGenre.train.jsonl``), it is read from there.
"""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset, relocate
from patchifier.tasks import infer

SUFFIXES = (".csv", ".tsv", ".jsonl")
SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test", "testing": "test"}
KNOWN = {"path", "audio_path", "file", "id", "start_s", "end_s", "split", "fold", "group", "target", "label"}


def load(path: Path) -> Dataset:
    """Read a manifest.

    Raises
    ------
    RequestError
        With the row's number, for a row that cannot be read.
    """
    try:
        rows = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}), expected UTF-8: save it so.") from error
    named = next((SPLIT_NAMES[part] for part in path.stem.lower().split(".")[1:] if part in SPLIT_NAMES), None)
    clips = [_clip(row, f"{path}, row {number}", named) for number, row in enumerate(rows, 1)]
    if not clips:
        raise RequestError(f"{path}: no rows, expected one for each clip.")
    if any(isinstance(clip.target, list) for clip in clips):  # in a table, a clip with one tag among several has no bar
        clips = [replace(clip, target=[clip.target]) if isinstance(clip.target, str) else clip for clip in clips]
    return Dataset(path.stem, relocate(clips, _root(path, clips[0].path)), infer([clip.target for clip in clips]))


def _root(manifest: Path, first: str) -> Path:
    """Folder at which relative paths start: the manifest's own, or the nearest above it where the first file exists."""
    folders = [manifest.resolve().parent, *manifest.resolve().parent.parents]
    return next((folder for folder in folders if (folder / first).exists()), folders[0])


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
        reader = csv.DictReader(stream, delimiter=delimiter)
        rows = []
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise RequestError(f"{path}, row {number}: has another number of fields than the header.")
            rows.append({name.strip(): value.strip() for name, value in row.items()})
        return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{path}, line {number}: is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {number}: holds {type(row).__name__}, expected a JSON object.")
        rows.append(row)
    return rows


def _clip(row: dict[str, Any], where: str, named_split: str | None) -> Clip:
    name = row.get("path") or row.get("audio_path") or row.get("file")
    if not name:
        raise RequestError(f"{where}: has no path, expected a column 'path' or 'audio_path' (found: {', '.join(row)}).")
    split = row.get("split") or named_split
    if split and str(split).lower() not in SPLIT_NAMES:
        raise RequestError(f"{where}: split is {split!r}, expected train, valid or test.")
    return Clip(
        id=str(name if row.get("id") in (None, "") else row["id"]),
        path=str(name),
        start_s=_number(row, "start_s", where) or 0.0,
        end_s=_number(row, "end_s", where),
        split=SPLIT_NAMES[split.lower()] if split else None,
        fold=_fold(row, where),
        group=str(row["group"]) if row.get("group") not in (None, "") else None,
        target=_target(row.get("target", row.get("label"))),
        info={key: str(value) for key, value in row.items() if key not in KNOWN and value not in (None, "")},
    )


def _number(row: dict[str, Any], key: str, where: str) -> float | None:
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
    value = _number(row, "fold", where)
    if value is not None and not value.is_integer():
        raise RequestError(f"{where}: fold is {row['fold']!r}, expected a whole number.")
    return None if value is None else int(value)


def _target(value: Any) -> Any:
    """A name, a list of names, a number or a list of numbers; None for nothing."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else value
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value  # a name that starts with a bracket
    parts = [part.strip() for part in value.split("|")]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return parts if len(parts) > 1 else value
    return numbers if len(numbers) > 1 else numbers[0]
