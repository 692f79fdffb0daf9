"""A table of embeddings as CSV, for spreadsheets and other programs; nothing here reads it back."""

from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from patchifier.config import RequestError
from patchifier.io import replaced_file, require_file, to_cell
from patchifier.library.stored import REQUIRED, TYPES, Stored, vectors_of


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
