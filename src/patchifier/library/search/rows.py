"""A table of embeddings: how it is read, and the results of a search."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset, parquet

from patchifier.config import RequestError
from patchifier.io import require_file
from patchifier.library.table import parse_facts
from patchifier.library.tags import TAGS

FACTS = b"patchifier"  # schema metadata: facts in JSON, among them which model made the vectors
REQUIRED = ("path", "start_s", "end_s", "embedding")
PART_ROWS = 10_000  # read at once: 20 MB of 512 numbers
TYPES = {
    "path": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "embedding": None,  # fixed-size list of float32, as long as the model makes it
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    **dict.fromkeys(TAGS, pa.string()),
}


@dataclass(frozen=True)
class Rows:
    """Rows of a table of embeddings, with the model they come from.

    Attributes
    ----------
    table : pyarrow.Table
        Columns path, start_s, end_s, embedding, size, mtime_ns, artist, title, album, genre.
    identity : str
        Of the model and the settings that made the vectors.
    size : int
        Length E of a vector.
    window_s : float or None
        Seconds that a row is about; None for a whole file.
    """

    table: pa.Table
    identity: str
    size: int
    window_s: float | None = None

    def vectors(self) -> np.ndarray:
        """All vectors: (n, E) float32."""
        return vectors_of(self.table, self.size)


@dataclass(frozen=True)
class SearchResult:
    """A section of a file that a search returns.

    Attributes
    ----------
    path : str
        The file.
    start_s, end_s : float
        The section, in seconds.
    score : float or None
        Cosine with the query, from -1 to 1; None where nothing was compared.
    tags : mapping
        Those of artist, title, album and genre that the file has.
    """

    path: str
    start_s: float
    end_s: float
    score: float | None
    tags: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return {
            "path": self.path,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "score": self.score,
            "tags": dict(self.tags),
        }


@dataclass(frozen=True)
class Changes:
    """Files that a change of an index touched: how many were added, replaced, removed, and left as they were."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    kept: int = 0

    def facts(self) -> dict[str, int]:
        """Plain values, as ``--json`` prints them."""
        return {
            "added": self.added,
            "replaced": self.replaced,
            "removed": self.removed,
            "kept": self.kept,
        }


def read(path: str | Path) -> Rows:
    """Read a table of embeddings into memory.

    Parameters
    ----------
    path : str or Path
        A Parquet file, or a folder of parts of one.

    Returns
    -------
    Rows
        Columns for size, time of change and tags are empty where the file has none.

    Raises
    ------
    RequestError
        If it is not such a table, if it does not say which model made it, or if a vector is not finite or all zeros.
    """
    stored = Stored(path)
    parts = list(stored.parts())
    return Rows(
        pa.concat_tables(parts) if parts else stored.nothing(),
        stored.identity,
        stored.size,
        stored.window_s,
    )


class Stored:
    """A table of embeddings on disk, read a part at a time: memory does not grow with its rows.

    Parameters
    ----------
    path : str or Path
        A Parquet file, or a folder of parts of one.

    Attributes
    ----------
    identity, size, window_s
        As of :class:`Rows`.

    Raises
    ------
    RequestError
        If it is not such a table, or does not say which model made it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        if str(path).lower().endswith(".npy"):
            raise RequestError(
                f"{path} is a bare matrix, expected a table that names its files and model: 'patchifier embed ... --out NAME.parquet' writes it."
            )
        with _readable(path):
            require_file(Path(path))
            self._data = dataset.dataset(path, format="parquet")
            self.identity, self.size, self.window_s = self._kind(self._data.schema, path)

    @staticmethod
    def _kind(schema: pa.Schema, path: str | Path) -> tuple[str, int, float | None]:
        size, facts = _require_columns(schema, path), _facts(schema, path)
        return (
            f"{facts['model']}{' of patches' if facts.get('patches') else ''}",
            size,
            facts.get("window_s"),
        )

    def parts(self, *, rows: int = PART_ROWS) -> Iterator[pa.Table]:
        """Yield tables of up to `rows` rows, in order.

        Raises
        ------
        RequestError
            If the file is damaged, if its parts are of several models, or if a vector is not finite or all zeros.
        """
        with _readable(self.path):
            for fragment in self._data.get_fragments():
                # buffering ahead would keep the whole file in memory as it is read
                with parquet.ParquetFile(
                    fragment.path,
                    filesystem=self._data.filesystem,
                    pre_buffer=False,
                    page_checksum_verification=True,
                ) as file:
                    identity, size, _ = self._kind(file.schema_arrow, fragment.path)
                    require_same_model(
                        (self.identity, self.size),
                        (identity, size),
                        names=(str(self.path), fragment.path),
                    )
                    names = [name for name in TYPES if name in file.schema_arrow.names]
                    for batch in file.iter_batches(rows, columns=names):
                        yield self._checked(pa.Table.from_batches([batch]))

    def nothing(self) -> pa.Table:
        """No rows, in the same columns."""
        return pa.table(
            {
                name: pa.array([], kind or pa.list_(pa.float32(), self.size))
                for name, kind in TYPES.items()
            }
        )

    def _checked(self, table: pa.Table) -> pa.Table:
        for name in REQUIRED:
            if table[name].null_count:
                raise RequestError(
                    f"{self.path}: column {name} is empty in {table[name].null_count} rows: write the table again."
                )
        table = _in_order(table, self.size)
        _require_directions(table, self.size, self.path)
        return table


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except RequestError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RequestError(
            f"{path} cannot be read as Parquet ({_first_line(error)}): give a table that 'patchifier embed' wrote."
        ) from error


def _facts(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    try:
        facts = parse_facts((schema.metadata or {})[FACTS])
        newer, model = int(facts["format"]) > 1, facts["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path} does not say which model made its vectors (schema metadata {FACTS.decode()!r}): write it with 'patchifier embed'."
        ) from error
    if newer or not isinstance(model, str):
        raise RequestError(
            f"{path} has format {facts['format']}, this version reads up to 1: pip install -U patchifier."
        )
    return facts


def _require_columns(schema: pa.Schema, path: str | Path) -> int:
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise RequestError(
            f"{path} lacks the columns {', '.join(missing)}: give a table that 'patchifier embed' wrote."
        )
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise RequestError(
            f"{path}: column embedding is {kind}, expected fixed-size lists of float32: give a table that 'patchifier embed' wrote."
        )
    return int(kind.list_size)


def _in_order(table: pa.Table, size: int) -> pa.Table:
    columns = {}
    for name, kind in TYPES.items():
        if name not in table.column_names:
            columns[name] = pa.nulls(len(table), kind)
        else:
            columns[name] = table[name] if kind is None else table[name].cast(kind)
    columns["embedding"] = columns["embedding"].cast(
        pa.list_(pa.float32(), size)
    )  # one name for the items, whoever wrote them
    return pa.table(columns)


def _require_directions(table: pa.Table, size: int, path: str | Path) -> None:
    lengths = np.linalg.norm(vectors_of(table, size), axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        file = table["path"][int(bad[0])].as_py()
        what = "all zeros" if lengths[bad[0]] == 0 else "not finite"
        raise RequestError(
            f"{path}: the vector of {file} is {what}, the first of {len(bad)}: a cosine needs a direction. Embed these files again or drop the rows."
        )


def require_same_model(
    mine: tuple[str, int], other: tuple[str, int], *, names: tuple[str, str]
) -> None:
    """Refuse vectors of another model, given (identity, size) of both.

    Raises
    ------
    RequestError
        If identities or sizes differ; the message says which.
    """
    differ = [
        f"{what} {a} against {b}"
        for what, a, b in zip(("model", "vector size"), mine, other)
        if a != b
    ]
    if differ:
        raise RequestError(
            f"{names[0]} and {names[1]} do not go together: {' and '.join(differ)}. Embed both with the same model and settings."
        )


def vectors_of(table: pa.Table, size: int) -> np.ndarray:
    """Vectors of a table: (n, E) float32."""
    if not len(table):
        return np.zeros((0, size), np.float32)
    chunks = [
        chunk.flatten().to_numpy().reshape(-1, size)
        for chunk in table["embedding"].chunks
        if len(chunk)
    ]
    return (
        chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    )  # not copied where they lie together


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., E) of length 1, in double precision."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def found(table: pa.Table, scores: Sequence[float | None]) -> list[SearchResult]:
    """Rows with their scores, as results."""
    rows = table.select(["path", "start_s", "end_s", *TAGS]).to_pylist()
    return [
        SearchResult(
            row["path"],
            row["start_s"],
            row["end_s"],
            score,
            {tag: row[tag] for tag in TAGS if row[tag] is not None},
        )
        for row, score in zip(rows, scores)
    ]


def digests(table: pa.Table) -> list[str]:
    """A digest of every row's content, whatever file it was read from."""
    rest = table.drop_columns(["embedding"]).to_pylist()
    vectors = vectors_of(table, table.schema.field("embedding").type.list_size)
    return [
        hashlib.blake2b(
            repr(list(row.values())).encode() + vector.tobytes(), digest_size=16
        ).hexdigest()
        for row, vector in zip(rest, vectors)
    ]


def _first_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if "magic bytes" in str(
        error
    ):  # of its first and last four; the rest of the message is about the library
        return "it is not a Parquet file"
    return str(error).strip().split("\n")[0][:200]
