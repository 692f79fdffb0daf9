"""Vectors and results of a search as CSV or JSONL, for spreadsheets and other programs."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from patchifier.config import RequestError
from patchifier.io import replaced_file, require_file, to_cell, write_text
from patchifier.library.search.duplicates import Duplicate
from patchifier.library.search.rows import SearchResult
from patchifier.library.stored import REQUIRED, TYPES, Stored, vectors_of
from patchifier.library.tags import TAGS


def require_csv(path: Path, size: int) -> None:
    """Refuse to write over a file that is no CSV of embeddings of this length."""
    if not path.exists():
        return
    require_file(path)
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        header = ",".join(_csv_names(size))
        if stream.readline(len(header) + 2).replace('"', "").rstrip("\r\n") != header:
            raise RequestError(
                f"--out is {path}, which exists and holds something else than vectors of {size} "
                "numbers: choose another name."
            )


def write_csv(table: Path, out: Path) -> None:
    """Write a table as CSV: path, start_s, end_s, and a column for each number of a vector."""
    stored = Stored(table, columns={name: TYPES[name] for name in REQUIRED})
    kinds = [pa.string(), pa.float64(), pa.float64(), *[pa.float32()] * stored.size]
    names = _csv_names(stored.size)
    with (
        replaced_file(out) as new,
        arrow_csv.CSVWriter(new, pa.schema(zip(names, kinds, strict=True))) as writer,
    ):
        for part in stored.parts():
            paths = pa.array(map(to_cell, part["path"].to_pylist()), pa.string())
            numbers = [pa.array(column) for column in vectors_of(part, stored.size).T]
            writer.write_table(pa.table([paths, part["start_s"], part["end_s"], *numbers], names))


def _csv_names(size: int) -> list[str]:
    return ["path", "start_s", "end_s", *(f"embedding_{number}" for number in range(size))]


def require_results(out: str | Path) -> None:
    """Refuse a name that is neither .csv nor .jsonl."""
    if Path(out).suffix.lower() not in (".csv", ".jsonl"):
        raise RequestError(f"--out is {out}, expected NAME.csv or NAME.jsonl.")


def write_results(rows: Sequence[SearchResult], out: str | Path) -> None:
    """Write path, start_s, end_s, score and tags of results to NAME.csv or NAME.jsonl."""
    names = ["path", "start_s", "end_s", "score", "track_id", *TAGS]
    _write([_values(row, names) for row in rows], names, Path(out))


def write_pairs(pairs: Sequence[Duplicate], out: str | Path) -> None:
    """Write pairs of files as :func:`write_results` does, a pair in each row."""
    facts = ["score", "kind", "agreement", "offset_s", "reason"]
    sides = ["path", "start_s", "end_s", "track_id", "artist", "title", "album"]
    names = [*facts, *(f"{side}_{name}" for side in ("first", "second") for name in sides)]
    rows = []
    for pair in pairs:
        row = {name: getattr(pair, name) for name in facts}
        for side, result in (("first", pair.first), ("second", pair.second)):
            row |= {f"{side}_{name}": value for name, value in _values(result, sides).items()}
        rows.append(row)
    _write(rows, names, Path(out))


def _values(row: SearchResult, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name, row.tags.get(name)) for name in names}


def _write(rows: Sequence[Mapping[str, Any]], names: Sequence[str], out: Path) -> None:
    require_results(out)
    if out.suffix.lower() == ".jsonl":
        write_text(out, "".join(f"{json.dumps(row)}\n" for row in rows))
        return
    with (
        replaced_file(out) as new,
        new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(names)
        table.writerows([to_cell(row[name]) for name in names] for row in rows)
