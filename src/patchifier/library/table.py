"""A table of embeddings on disk.

Parquet, or a .npy matrix with a .csv of rows and a .json of facts beside it.

==================================  ================================================================
path                                of the file
start_s, end_s                      what part of it the row is about, in seconds
embedding                           E numbers, float32
size, mtime_ns                      of the file when it was read: how a modified one is known
decoder, length_s                   what decoded the file, and how many seconds of it; null in
                                    tables of older versions
artist, title, album, genre         its tags; null where it has none
albumartist, year, track, mb_*_id   more tags, year and track as whole numbers; null in tables of
                                    older versions
track_id                            digest of the file's audio without its tags: two copies have the
                                    same; null in tables of older versions
level_db                            of the loudest mel band in the row, in dB: how silence
                                    is known; null in tables of older versions
==================================  ================================================================

The schema's metadata has one key, ``patchifier``, with facts in JSON: the model's identity, its
config's hash, pooling, layers, window and hop.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from patchifier.config import RequestError
from patchifier.io import (
    from_cell,
    parse_json,
    put_in_place,
    read_text,
    replaced_file,
    require_file,
    to_cell,
)
from patchifier.library.models import called, how_to_match
from patchifier.library.tags import FIRST_TAGS, NUMBERS, TAGS

if TYPE_CHECKING:
    from patchifier.library.sources import Key

FORMAT = 1
FACTS = b"patchifier"  # schema metadata: facts in JSON, among them which model made the vectors
GROUP_ROWS = 8192  # rows written at once: 16 MB of 512 numbers
TAG_TYPES = {name: pa.int64() if name in NUMBERS else pa.string() for name in TAGS}
LATER = {  # columns that tables of older versions do not have, those of a version together
    "decoding": {"decoder": pa.string(), "length_s": pa.float64()},
    "tracks": {
        **{name: kind for name, kind in TAG_TYPES.items() if name not in FIRST_TAGS},
        "track_id": pa.string(),
    },
    "level": {"level_db": pa.float64()},
}
STATED = ("level",)  # groups of these that a table says it has
ADDED = {name: kind for columns in LATER.values() for name, kind in columns.items()}
STRINGS = (
    "path",
    *FIRST_TAGS,
    *(name for name, kind in ADDED.items() if kind == pa.string()),
)
# rows take at most so much more memory than their file: snappy compresses by 20 at most
MOST_EXPANSION, LEAST_MEMORY_B = 100, 2**28
NUMBERS_B = 64  # of a row, beside its vector and its text
# facts that rows of one table share
SAME = ("model", "pooling", "layers", "window_s", "hop_s", "patches", "size")


def read_facts(path: Path) -> dict[str, Any]:
    """Metadata of a table of this package; refused if the file is none."""
    try:
        text = _stored_facts(path)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise unreadable(path, error) from error
    return parse_facts(text, path, required=SAME)


def _stored_facts(path: Path) -> str | bytes:
    if path.suffix == ".npy":
        return read_text(path.with_suffix(".json"))
    require_file(path)
    return (pq.read_schema(path).metadata or {}).get(FACTS, b"")


def parse_facts(
    text: str | bytes, path: str | Path, *, required: Sequence[str] = ("model",)
) -> dict[str, Any]:
    """Parse the metadata of a table; check its format, its checksum and the `required` names."""
    try:
        facts = dict(parse_json(text))
        _require_checksum(facts)
        newer, _ = int(facts["format"]) > FORMAT, [facts[name] for name in required]
        if not isinstance(facts["model"], str):
            raise TypeError("the model is not a string")
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path} is not a table of embeddings, or is damaged: it does not say which "
            "model made its vectors. Write it with 'patchifier embed'."
        ) from error
    if newer:
        raise RequestError(
            f"{path} has format {facts['format']}, this version reads up to {FORMAT}: "
            "pip install -U patchifier."
        )
    return facts


def unreadable(path: str | Path, error: Exception) -> RequestError:
    """Make the error about a file that is missing, damaged or of another kind."""
    if isinstance(error, FileNotFoundError) and os.path.isdir(f"{path}.parts"):
        return RequestError(
            f"{path} is not finished: its 'patchifier embed' still runs, or was interrupted. Run "
            "that command again, and it goes on."
        )
    reason = str(error).strip().partition("\n")[0][:200]
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    elif re.search("magic bytes|minimum file footer", str(error)):
        reason = "it is not a Parquet file"
    return RequestError(
        f"{path} cannot be read as a table ({reason}): give one that 'patchifier embed' wrote."
    )


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse a table of another model or other settings; the message names what differs."""
    differ = [
        f"{name} is {_shown(name, found)}, not {_shown(name, wanted)}"
        for name in SAME
        if found[name] != wanted[name]
    ]
    if differ:
        match = f"{how_to_match(found['model'], path)} Or" * (found["model"] != wanted["model"])
        raise RequestError(
            f"{path} was made by another model or with other settings: {'; '.join(differ)}. "
            f"{match or 'Use those, or'} choose another --out."
        )


def _shown(name: str, facts: Mapping[str, Any]) -> str:
    """Fact of a table as a message shows it; a model of the package by its name."""
    return repr(called(facts[name]) if name == "model" else facts[name])


def schema(facts: Mapping[str, Any], size: int) -> pa.Schema:
    """Columns of a table, with its facts, which say what groups of later columns there are."""
    facts = {**facts, "later_columns": list(STATED)}
    numbers = [pa.field("size", pa.int64(), False), pa.field("mtime_ns", pa.int64(), False)]
    decoding, tracks, level = LATER.values()
    first = [
        pa.field("path", pa.string(), False),
        pa.field("start_s", pa.float64(), False),
        pa.field("end_s", pa.float64(), False),
    ]
    vector = pa.field("embedding", pa.list_(pa.field("element", pa.float32(), False), size), False)
    rest = {**decoding, **dict.fromkeys(FIRST_TAGS, pa.string()), **tracks, **level}
    return pa.schema(
        [*first, vector, *numbers, *itertools.starmap(pa.field, rest.items())],
        {FACTS: json.dumps({**facts, "crc32": _checksum(facts)})},
    )


def _require_checksum(facts: dict[str, Any]) -> None:
    """Take out the checksum, which must fit; Parquet has checksums of pages, not of metadata."""
    found, newer = facts.pop("crc32", None), facts.get("format", 0) > FORMAT
    if not newer and found not in (None, _checksum(facts)):  # older tables have none
        raise ValueError("the facts do not have their checksum")


def _checksum(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts).encode())


def with_later(rows: pa.Table, kinds: Mapping[str, pa.DataType | None] = ADDED) -> pa.Table:
    """Rows with those columns that they do not have, null; a kind of None is not added."""
    for name, kind in kinds.items():
        if kind is not None and name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), kind))
    return rows


def completed(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Rows with all columns of a schema, in its order."""
    return with_later(rows).select(wanted.names).replace_schema_metadata(wanted.metadata)


def rows_table(
    columns: Mapping[str, Sequence[Any]], vectors: np.ndarray, facts: Mapping[str, Any]
) -> pa.Table:
    """Rows whose embeddings are a matrix (n, E)."""
    wanted = schema(facts, vectors.shape[1])
    embedding = pa.FixedSizeListArray.from_arrays(
        _array(vectors.reshape(-1), pa.float32()), type=wanted.field("embedding").type
    )
    return pa.Table.from_arrays(
        [
            embedding if name == "embedding" else _array(columns[name], wanted.field(name).type)
            for name in wanted.names
        ],
        schema=wanted,
    )


def _array(values: Sequence[Any] | np.ndarray, kind: pa.DataType) -> pa.Array:
    """Array of values, null where they are None. pa.array imports pandas, which takes 0.3 s."""
    absent = np.zeros(len(values), bool)
    if not isinstance(values, np.ndarray):
        absent = np.array([value is None for value in values], bool)
    buffers = [pa.py_buffer(np.packbits(~absent, bitorder="little"))]
    if kind == pa.string():
        texts = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        buffers += [pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    else:
        numbers = np.where(absent, 0, values) if absent.any() else values
        buffers.append(pa.py_buffer(np.ascontiguousarray(numbers, kind.to_pandas_dtype())))
    return pa.Array.from_buffers(kind, len(values), buffers, int(absent.sum()))


def write(path: Path, tables: Iterator[pa.Table], wanted: pa.Schema) -> None:
    """Write rows in groups of fixed size, so the same rows give the same file."""
    with (
        replaced_file(path) as new,
        pq.ParquetWriter(
            new, wanted, use_dictionary=list(STRINGS), write_page_checksum=True
        ) as writer,
    ):
        pending: list[pa.Table] = []
        for table in tables:
            pending.append(completed(table, wanted))
            while sum(map(len, pending)) >= GROUP_ROWS:
                whole = pa.concat_tables(pending)
                writer.write_table(whole.slice(0, GROUP_ROWS), row_group_size=GROUP_ROWS)
                pending = [whole.slice(GROUP_ROWS)]
        if pending and sum(map(len, pending)):
            writer.write_table(pa.concat_tables(pending), row_group_size=GROUP_ROWS)


class Origin:
    """A Parquet table of ours from which rows are taken, a row group in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.file = pq.ParquetFile(path, page_checksum_verification=True)
        require_memory(self.file, path.stat().st_size)
        groups = range(self.file.num_row_groups)
        counts = [self.file.metadata.row_group(group).num_rows for group in groups]
        self.starts = np.cumsum([0, *counts])
        self.group, self.rows = -1, pa.Table.from_batches([], self.file.schema_arrow)

    def close(self) -> None:
        """Close the file, which Windows does not replace while it is open."""
        self.file.close()

    def take(self, first: int, count: int) -> Iterator[pa.Table]:
        """Yield rows `first` to `first + count`, in parts."""
        while count:
            group = int(np.searchsorted(self.starts, first, side="right")) - 1
            if self.group != group:
                self.group, self.rows = group, self.file.read_row_group(group)
                require_rows(len(self.rows), self.file.metadata.row_group(group).num_rows)
            part = self.rows.slice(first - int(self.starts[group]), count)
            yield part
            first, count = first + len(part), count - len(part)


@dataclass(frozen=True)
class RowRange:
    """Rows of one clip in a table, and size, time of change and digest of its file."""

    clip: "Key"
    size: int
    mtime_ns: int
    first: int
    count: int
    track_id: str | None = None


def index(path: Path) -> list[RowRange]:
    """Clips of a table of ours, in its order."""
    facts = read_facts(path)
    names = ["path", "size", "mtime_ns", "track_id"]
    try:
        stretches = {first: (start_s, end_s) for first, start_s, end_s in facts["stretches"]}
        rows = columns_of(path, names)
        paths, sizes, times = (rows[name] for name in names[:3])
    except RequestError:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, MemoryError) as error:
        raise RequestError(f"{path}: damaged ({error}): delete it and embed again.") from error
    starts = [
        row
        for row in range(len(paths))
        if row in stretches or row == 0 or paths[row] != paths[row - 1]
    ]
    return [
        RowRange(
            (paths[row], *stretches.get(row, (0.0, None))),
            sizes[row],
            times[row],
            row,
            end - row,
            rows["track_id"][row],
        )
        for row, end in zip(starts, [*starts[1:], len(paths)])
    ]


def columns_of(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a table of ours, without its vectors; null where an older version wrote it."""
    if path.suffix == ".npy":
        return _npy_columns(path)
    here = [name for name in names if name in pq.read_schema(path).names]
    rows = with_later(_read_parquet(path, here))
    return {name: rows[name].to_pylist() for name in names}


def stretches_of(clips: Sequence[tuple["Key", int]]) -> list[list[Any]]:
    """First row, start and end of each clip that :func:`index` cannot tell from the paths."""
    listed, row, before = [], 0, None
    for (path, start_s, end_s), count in clips:
        if path == before or (start_s, end_s) != (0.0, None):
            listed.append([row, start_s, end_s])
        row, before = row + count, path
    return listed


def merge(path: Path, places: Sequence[tuple[Path, RowRange]], facts: Mapping[str, Any]) -> None:
    """Write one table of clips in order, each given by a table and its rows in that table."""
    counted = [(lines.clip, lines.count) for _, lines in places]
    facts = {**facts, "stretches": stretches_of(counted)}
    write(path, _taken(places), schema(facts, facts["size"]))


def _taken(places: Sequence[tuple[Path, RowRange]]) -> Iterator[pa.Table]:
    """Rows of clips in order, from their tables; consecutive rows are read together."""
    for path, run in itertools.groupby(places, lambda place: place[0]):
        first, count = 0, 0
        with contextlib.closing(Origin(path)) as origin:
            for _, lines in run:
                if count and lines.first != first + count:
                    yield from origin.take(first, count)
                    count = 0
                first = first if count else lines.first
                count += lines.count
            yield from origin.take(first, count)


# --- .npy ---


def export_npy(parquet: Path, out: Path) -> None:
    """Write a Parquet table as .npy, .csv and .json; the facts hold checksums of the other two.

    Working files lie beside the Parquet.
    """
    facts = read_facts(parquet)
    # none of these is left beside `out` by a kill
    matrix, rows, beside = (
        parquet.with_name(f"export{suffix}") for suffix in (".npy", ".csv", ".json")
    )
    with (
        contextlib.closing(Origin(parquet)) as origin,
        matrix.open("wb") as vectors,  # not memory-mapped: a full disk would be a crash
        rows.open("w", newline="", encoding="utf-8") as stream,
    ):
        count, names = int(origin.starts[-1]), origin.file.schema_arrow.names
        names.remove("embedding")
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, facts["size"])}
        np.lib.format.write_array_header_1_0(vectors, header)
        lines = csv.writer(stream)
        lines.writerow(names)
        for part in origin.take(0, count):
            vectors.write(part["embedding"].combine_chunks().flatten().to_numpy().tobytes())
            columns = (map(to_cell, part[name].to_pylist()) for name in names)
            lines.writerows(zip(*columns, strict=True))
    facts["sha256"] = [sha256(matrix), sha256(rows)]
    beside.write_text(
        json.dumps({**facts, "crc32": _checksum(facts)}, indent=1) + "\n", encoding="utf-8"
    )
    for made, place in (
        (rows, out.with_suffix(".csv")),
        (beside, out.with_suffix(".json")),
        (matrix, out),
    ):
        put_in_place(made, place)


def sha256(path: Path) -> str:
    """Digest of a file."""
    require_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _npy_columns(path: Path) -> dict[str, list[Any]]:
    """Columns of the .csv of a .npy table, which must be the two that belong together."""
    facts, lines = read_facts(path), path.with_suffix(".csv")
    try:
        if facts["sha256"] != [sha256(path), sha256(lines)]:
            raise ValueError(f"they are not those that {path.with_suffix('.json').name} describes")
        with lines.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return {
            field.name: [_from_csv(row, field) for row in rows]
            for field in schema(facts, facts["size"])
            if field.name != "embedding"
        }
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{path} and {lines.name} cannot be read ({error}): copy them again with their .json, "
            "or delete them and embed again."
        ) from error


def _from_csv(row: Mapping[str, str], field: pa.Field) -> str | float | None:
    """Value of a cell; None where it is empty, or its column is not in tables of older versions."""
    cell = (row.get(field.name) if field.name in ADDED else row[field.name]) or ""
    if not cell and field.nullable:
        return None
    if field.type == pa.string():
        return from_cell(cell)
    return int(cell) if field.type == pa.int64() else float(cell)


def npy_rows(path: Path) -> pa.Table:
    """Rows of a .npy table."""
    columns, facts = _npy_columns(path), read_facts(path)
    try:
        with path.open("rb") as stream:
            vectors = np.lib.format.read_array(stream, allow_pickle=False)
        expected = (len(columns["path"]), facts["size"])
        if vectors.dtype != np.float32 or vectors.shape != expected:
            raise ValueError(
                f"it holds {vectors.dtype} of shape {vectors.shape}, expected float32 of shape "
                f"{expected}"
            )
    except Exception as error:  # numpy raises a dozen kinds on a damaged header
        raise RequestError(f"{path}: damaged ({error}): copy it again, or embed again.") from error
    return rows_table(columns, vectors, facts)


def npy_to_parquet(path: Path, out: Path) -> None:
    """Write a .npy table as Parquet."""
    rows = npy_rows(path)
    write(out, iter([rows]), rows.schema)


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    text = [name for name in columns if name in STRINGS]
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=text) as file:
        require_memory(file, path.stat().st_size)
        rows = file.read(columns)
        text_b = sum(map(text_bytes, rows.to_batches()))
        require_memory(file, path.stat().st_size, text_b=text_b)
        require_rows(len(rows), file.metadata.num_rows)
    return rows


def require_memory(file: pq.ParquetFile, size_b: int, *, text_b: int = 0) -> None:
    """Refuse a table that takes far more memory than its file of `size_b` bytes can hold.

    Runs of equal rows take no room in Parquet.
    """
    kind = file.schema_arrow.field("embedding").type
    row_b = NUMBERS_B + 4 * getattr(kind, "list_size", 0)
    memory_b = file.metadata.num_rows * row_b + text_b
    if memory_b > max(LEAST_MEMORY_B, MOST_EXPANSION * size_b):
        raise ValueError(f"its rows take {memory_b:,} bytes of memory, the file has {size_b:,}")


def text_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the text of rows, before each row gets its own copy."""
    columns = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
    lengths = [compute.binary_length(column.dictionary).take(column.indices) for column in columns]
    return sum(compute.sum(each).as_py() or 0 for each in lengths)


def require_rows(found: int, stated: int) -> None:
    """Refuse rows that are fewer than a Parquet footer states: damage may hide pages."""
    if found != stated:
        raise ValueError(f"{found} of {stated} rows are there")
