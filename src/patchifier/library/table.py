"""A table of embeddings on disk: Parquet, or a .npy matrix with a .csv of rows and a .json of facts beside it.

==================================  ===============================================================================
path                                of the file
start_s, end_s                      what part of it the row is about, in seconds
embedding                           E numbers, float32
size, mtime_ns                      of the file when it was read: how a modified one is known
decoder, length_s                   what decoded the file, and how many seconds of it; null in tables of older versions
artist, title, album, genre         its tags; null where it has none
==================================  ===============================================================================

The schema's metadata has one key, ``patchifier``, with facts in JSON: the model's identity, its config's hash, pooling, layers, window and hop.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchifier.config import RequestError
from patchifier.io import from_cell, parse_json, put_in_place, read_text, replaced_file, to_cell
from patchifier.library.sources import Key
from patchifier.library.tags import TAGS

FORMAT = 1
GROUP_ROWS = 8192  # rows written at once: 16 MB of 512 numbers
STRINGS = ("path", "decoder", *TAGS)
ADDED = ("decoder", "length_s")  # columns that tables of older versions do not have
# Facts that rows of one table share.
SAME = ("model", "pooling", "layers", "window_s", "hop_s", "patches", "size")


@dataclass(frozen=True)
class EmbeddingTable:
    """A table of embeddings in memory.

    Attributes
    ----------
    paths : tuple of str, length n
        Of the files; a file with several rows is repeated.
    start_s, end_s : ndarray, shape (n,), float64
        Part of the file, in seconds.
    vectors : ndarray, shape (n, E), float32
        Embeddings.
    size, mtime_ns : ndarray, shape (n,), int64
        Bytes and time of change of the file when it was embedded.
    decoder : tuple of str or None, length n
        What decoded the file: "libsndfile", "PyAV" or both; None in tables of older versions.
    length_s : ndarray, shape (n,), float64
        Seconds that were decoded of the file, or of its part that a manifest names; NaN in tables of older versions.
    tags : dict of str to tuple of str or None, length n
        ``artist``, ``title``, ``album``, ``genre``.
    metadata : dict
        Which model, pooling and windows.
    """

    paths: tuple[str, ...]
    start_s: np.ndarray
    end_s: np.ndarray
    vectors: np.ndarray
    size: np.ndarray
    mtime_ns: np.ndarray
    decoder: tuple[str | None, ...]
    length_s: np.ndarray
    tags: dict[str, tuple[str | None, ...]]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.paths)


def read(path: str | Path) -> EmbeddingTable:
    """Read a table that ``patchifier embed`` made.

    Parameters
    ----------
    path : str or Path
        A .parquet, or a .npy with its .csv and .json beside it.

    Raises
    ------
    RequestError
        If there is none, it is damaged, or it comes from elsewhere.
    """
    path = Path(path)
    facts = read_facts(path)
    rows = _npy_rows(path) if path.suffix == ".npy" else _parquet_rows(path)
    return from_arrow(rows, facts)


def from_arrow(rows: pa.Table, facts: Mapping[str, Any]) -> EmbeddingTable:
    """Rows in memory as arrays."""
    rows = completed(rows, schema(facts, facts["size"]))
    flat = rows["embedding"].combine_chunks().flatten().to_numpy()
    names = ("start_s", "end_s", "size", "mtime_ns", "length_s")
    numbers = {name: rows[name].to_numpy() for name in names}
    tags = {name: tuple(rows[name].to_pylist()) for name in TAGS}
    own = ("stretches", "skipped", "sha256")
    known = {name: value for name, value in facts.items() if name not in own}
    return EmbeddingTable(
        tuple(rows["path"].to_pylist()),
        vectors=flat.reshape(len(rows), facts["size"]),
        decoder=tuple(rows["decoder"].to_pylist()),
        tags=tags,
        metadata=known,
        **numbers,
    )


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a table, or a RequestError if it is none of ours."""
    expected = f"expected a table from 'patchifier embed ... --out {path.name}'"
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file, {expected}.")
    try:
        beside = path.with_suffix(".json") if path.suffix == ".npy" else None
        text = read_text(beside) if beside else (pq.read_schema(path).metadata or {})[b"patchifier"]
        facts = parse_facts(text)
        newer, _ = facts["format"] > FORMAT, [facts[name] for name in SAME]
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error}), {expected}.") from error
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path}: is not a table of embeddings, or one from elsewhere, {expected}."
        ) from error
    if newer:
        raise RequestError(
            f"{path} has format {facts['format']}, this version reads up to {FORMAT}: pip install -U patchifier."
        )
    return facts


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse a table whose rows cannot be compared with those that are wanted, naming each fact that differs."""
    differ = [
        f"{name} is {found[name]!r}, not {wanted[name]!r}"
        for name in SAME
        if found[name] != wanted[name]
    ]
    if differ:
        raise RequestError(
            f"{path} was made by another model or with other settings: {'; '.join(differ)}. "
            "Use those, or choose another --out; a table that an older patchifier made of the same model is embedded anew."
        )


def schema(facts: Mapping[str, Any], size: int) -> pa.Schema:
    """Columns of a table, with its facts."""
    numbers = [pa.field("size", pa.int64(), False), pa.field("mtime_ns", pa.int64(), False)]
    decoding = [pa.field("decoder", pa.string()), pa.field("length_s", pa.float64())]
    first = [
        pa.field("path", pa.string(), False),
        pa.field("start_s", pa.float64(), False),
        pa.field("end_s", pa.float64(), False),
    ]
    vector = pa.field("embedding", pa.list_(pa.field("element", pa.float32(), False), size), False)
    return pa.schema(
        [*first, vector, *numbers, *decoding, *(pa.field(name, pa.string()) for name in TAGS)],
        {"patchifier": json.dumps({**facts, "crc32": _checksum(facts)})},
    )


def parse_facts(text: str | bytes) -> dict[str, Any]:
    """Parse the facts of a table; a ValueError if they are damaged. Parquet has checksums of its pages, but not of its metadata."""
    facts = dict(parse_json(text))
    found, newer = facts.pop("crc32", None), facts.get("format", 0) > FORMAT
    if not newer and found not in (None, _checksum(facts)):  # older tables have none
        raise ValueError("the facts do not have their checksum")
    return facts


def _checksum(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts).encode())


def completed(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Rows of an older version with the columns that it did not have, null."""
    if ADDED[0] in rows.column_names:
        return rows
    for name in ADDED:
        rows = rows.append_column(wanted.field(name), pa.nulls(len(rows), wanted.field(name).type))
    return rows.select(wanted.names)


def rows_table(
    columns: Mapping[str, Sequence[Any]], vectors: np.ndarray, facts: Mapping[str, Any]
) -> pa.Table:
    """Rows whose embeddings are a matrix (n, E)."""
    wanted = schema(facts, vectors.shape[1])
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), type=wanted.field("embedding").type
    )
    return pa.Table.from_arrays(
        [
            embedding if name == "embedding" else pa.array(columns[name], wanted.field(name).type)
            for name in wanted.names
        ],
        schema=wanted,
    )


def write(path: Path, tables: Iterator[pa.Table], wanted: pa.Schema) -> None:
    """Write rows in groups of fixed size: the same rows give the same file, whatever tables they come in."""
    with (
        replaced_file(path) as new,
        pq.ParquetWriter(
            new, wanted, use_dictionary=list(STRINGS), write_page_checksum=True
        ) as writer,
    ):
        pending: list[pa.Table] = []
        for table in tables:
            pending.append(completed(table, wanted).replace_schema_metadata(wanted.metadata))
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
        groups = range(self.file.num_row_groups)
        counts = [self.file.metadata.row_group(group).num_rows for group in groups]
        self.starts = np.cumsum([0, *counts])
        self.group, self.rows = -1, self.file.schema_arrow.empty_table()

    def close(self) -> None:
        """Close the file, which Windows does not replace while it is open."""
        self.file.close()

    def take(self, first: int, count: int) -> Iterator[pa.Table]:
        """Yield rows `first` to `first + count`, in parts."""
        while count:
            group = int(np.searchsorted(self.starts, first, side="right")) - 1
            if self.group != group:
                self.group, self.rows = group, self.file.read_row_group(group)
            part = self.rows.slice(first - int(self.starts[group]), count)
            yield part
            first, count = first + len(part), count - len(part)


@dataclass(frozen=True)
class Lines:
    """Where the rows of one clip lie in a table, and the state of its file then."""

    clip: Key
    size: int
    mtime_ns: int
    first: int
    count: int


def index(path: Path) -> list[Lines]:
    """Clips of a table of ours, in its order."""
    facts = read_facts(path)
    names = ["path", "size", "mtime_ns"]
    try:
        stretches = {first: (start_s, end_s) for first, start_s, end_s in facts["stretches"]}
        rows = (
            _npy_columns(path)
            if path.suffix == ".npy"
            else {
                name: column.to_pylist()
                for name, column in zip(names, _read_parquet(path, columns=names))
            }
        )
    except RequestError:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{path}: damaged ({error}): delete it and embed again.") from error
    paths, sizes, times = (rows[name] for name in names)
    starts = [
        row
        for row in range(len(paths))
        if row in stretches or row == 0 or paths[row] != paths[row - 1]
    ]
    return [
        Lines(
            (paths[row], *stretches.get(row, (0.0, None))), sizes[row], times[row], row, end - row
        )
        for row, end in zip(starts, [*starts[1:], len(paths)])
    ]


def stretches_of(clips: Sequence[tuple[Key, int]]) -> list[list[Any]]:
    """For clips and their numbers of rows: first row, start and end of each that :func:`index` could not tell from the paths alone."""
    listed, row, before = [], 0, None
    for (path, start_s, end_s), count in clips:
        if path == before or (start_s, end_s) != (0.0, None):
            listed.append([row, start_s, end_s])
        row, before = row + count, path
    return listed


def merge(path: Path, places: Sequence[tuple[Path, Lines]], facts: Mapping[str, Any]) -> None:
    """Write one table of clips in order, each given by a table and its rows in that table."""
    counted = [(lines.clip, lines.count) for _, lines in places]
    facts = {**facts, "stretches": stretches_of(counted)}
    write(path, _taken(places), schema(facts, facts["size"]))


def _taken(places: Sequence[tuple[Path, Lines]]) -> Iterator[pa.Table]:
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
    """Write a Parquet table as .npy, .csv and .json; the facts hold checksums of the other two. Working files lie beside the Parquet."""
    facts = read_facts(parquet)
    matrix, rows, beside = (
        parquet.with_name(f"export{suffix}") for suffix in (".npy", ".csv", ".json")
    )  # none of these is left beside `out` by a kill
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
    beside.write_text(
        json.dumps({**facts, "sha256": [_sha256(matrix), _sha256(rows)]}, indent=1) + "\n",
        encoding="utf-8",
    )
    for made, place in (
        (rows, out.with_suffix(".csv")),
        (beside, out.with_suffix(".json")),
        (matrix, out),
    ):
        put_in_place(made, place)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _npy_columns(path: Path) -> dict[str, list[Any]]:
    """Columns of the .csv of a .npy table, which must be the two that belong together."""
    facts, lines = read_facts(path), path.with_suffix(".csv")
    kinds: dict[str, Any] = {"path": from_cell, "start_s": float, "end_s": float}
    kinds |= {"size": int, "mtime_ns": int}
    try:
        if facts["sha256"] != [_sha256(path), _sha256(lines)]:
            raise ValueError(f"they are not those that {path.with_suffix('.json').name} describes")
        with lines.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        columns = {name: [kind(row[name]) for row in rows] for name, kind in kinds.items()}
        columns["decoder"] = [row.get("decoder") or None for row in rows]
        columns["length_s"] = [
            float(row["length_s"]) if row.get("length_s") else None for row in rows
        ]
        return columns | {name: [from_cell(row[name]) or None for row in rows] for name in TAGS}
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{path} and {lines.name} cannot be read ({error}): copy them again with their .json, or delete them and embed again."
        ) from error


def _npy_rows(path: Path) -> pa.Table:
    columns, facts = _npy_columns(path), read_facts(path)
    try:
        with path.open("rb") as stream:
            vectors = np.lib.format.read_array(stream, allow_pickle=False)
        expected = (len(columns["path"]), facts["size"])
        if vectors.dtype != np.float32 or vectors.shape != expected:
            raise ValueError(
                f"it holds {vectors.dtype} of shape {vectors.shape}, expected float32 of shape {expected}"
            )
    except (OSError, ValueError, MemoryError) as error:
        raise RequestError(f"{path}: damaged ({error}): copy it again, or embed again.") from error
    return rows_table(columns, vectors, facts)


def npy_to_parquet(path: Path, out: Path) -> None:
    """Write a .npy table as Parquet."""
    rows = _npy_rows(path)
    write(out, iter([rows]), rows.schema)


def _parquet_rows(path: Path) -> pa.Table:
    try:
        rows = _read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"{path}: damaged ({error}): embed again, or copy it again.") from error
    facts = read_facts(path)
    wanted = schema(facts, facts["size"])
    if not set(wanted.names) - set(rows.column_names) - set(ADDED):
        rows = completed(rows, wanted)
    if not rows.schema.equals(wanted):
        raise RequestError(
            f"{path}: its columns are {', '.join(rows.schema.names)}, expected those of a table from 'patchifier embed'."
        )
    return rows


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(path, columns=columns, page_checksum_verification=True)
