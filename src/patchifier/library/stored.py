"""Tables of embeddings as they are read: a file or a folder of parts, whole or in parts."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs, parquet

from patchifier.config import RequestError
from patchifier.io import require_file
from patchifier.library.models import OF_PATCHES, called, name_of, names_of_size
from patchifier.library.table import (
    ADDED,
    FACTS,
    LATER,
    STATED,
    STRINGS,
    columns_of,
    index,
    npy_rows,
    parse_facts,
    read_facts,
    require_memory,
    require_rows,
    text_bytes,
    unreadable,
    with_later,
)
from patchifier.library.tags import FIRST_TAGS, TAGS

REQUIRED = ("path", "start_s", "end_s", "embedding")
PART_ROWS = 10_000  # read at once: 20 MB of 512 numbers
BUFFER_B = 2**20  # of a column of a row group, which is otherwise in memory as a whole
TYPES = {
    "path": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "embedding": None,  # fixed-size list of float32, as long as the model makes it
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    **dict.fromkeys(FIRST_TAGS, pa.string()),
    **LATER["tracks"],
    **LATER["level"],
}
"""Columns that a search reads; some of them are not in tables of older versions."""
DECODING = LATER["decoding"]
"""Columns about decoding; tables of older versions do not have them."""
DESCRIBED = ("model", "size", "pooling", "window_s", "hop_s", "patches")
"""Facts in the description of a table."""
COLUMNS = {
    "path": "of the file",
    "start_s": "start of the row in the file, in seconds",
    "end_s": "end of the row in the file, in seconds",
    "embedding": "vector, float32",
    "size": "bytes of the file when it was read",
    "mtime_ns": "time of change of the file when it was read",
    "decoder": "what decoded the file",
    "length_s": "seconds that were decoded",
    **dict.fromkeys(FIRST_TAGS, "tag of the file"),
    "albumartist": "tag of the file: artist of the whole album",
    "year": "tag of the file: year of its date, a whole number",
    "track": "tag of the file: number on its album, a whole number",
    "mb_recording_id": "tag of the file: MusicBrainz id of the recording",
    "mb_album_id": "tag of the file: MusicBrainz id of the release",
    "mb_artist_id": "tag of the file: MusicBrainz id of the artist",
    "track_id": "digest of the file's audio without its tags: stays when it is moved or retagged",
    "level_db": "level of the loudest mel band in the row, in dB of the log-mel",
}
"""What the columns of a table hold."""


@dataclass(frozen=True)
class EmbeddingTable:
    """A table of embeddings in memory.

    Attributes
    ----------
    rows : pyarrow.Table
        The columns of :data:`COLUMNS`. Some are null in tables of older versions, until
        ``patchifier embed --changed`` fills them.
    metadata : dict
        Which model, pooling and windows.
    length : int
        Length E of a vector.

    Examples
    --------
    >>> table = read("music.parquet")
    >>> table.vectors.shape == (len(table), table.length)
    True
    >>> [Path(path).name for path in table.paths], table.end_s.round().tolist()
    (['one.ogg', 'three.ogg', 'two.ogg'], [20.0, 20.0, 20.0])
    """

    rows: pa.Table
    metadata: dict[str, Any]
    length: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each row's file; a file with several rows is repeated."""
        return tuple(self.rows["path"].to_pylist())

    @property
    def vectors(self) -> np.ndarray:
        """Embeddings (n, E), float32."""
        return vectors_of(self.rows, self.length)

    @property
    def start_s(self) -> np.ndarray:
        """Start of each row in its file, in seconds: (n,) float64."""
        return self.rows["start_s"].to_numpy()

    @property
    def end_s(self) -> np.ndarray:
        """End of each row in its file, in seconds: (n,) float64."""
        return self.rows["end_s"].to_numpy()

    @property
    def decoder(self) -> tuple[str | None, ...]:
        """What decoded each row's file: "libsndfile", "PyAV" or both."""
        return tuple(self.rows["decoder"].to_pylist())

    @property
    def length_s(self) -> np.ndarray:
        """Seconds that were decoded of each row's file, NaN if unknown: (n,) float64."""
        return self.rows["length_s"].to_numpy()

    @property
    def level_db(self) -> np.ndarray:
        """Level of each row's loudest mel band in dB of the log-mel, NaN if unknown: (n,) float64.

        Rows at or below :data:`patchifier.search.SILENCE_DB` are silent.
        """
        return self.rows["level_db"].to_numpy()

    @property
    def tags(self) -> dict[str, tuple[str | int | None, ...]]:
        """Tags of each row's file, by their names in :data:`patchifier.library.tags.TAGS`."""
        return {name: tuple(self.rows[name].to_pylist()) for name in TAGS}

    @property
    def track_ids(self) -> tuple[str, ...]:
        """An id of each row's file, as :func:`track_ids`."""
        return tuple(track_ids(self.rows))

    @property
    def identity(self) -> str:
        """Of the model and the settings that made the vectors."""
        return identity_of(self.metadata)


def slices_of(metadata: Mapping[str, Any], size: int) -> dict[str, int] | None:
    """Sizes of the slices of a vector that metadata states, in their order.

    None in tables of older versions, in those of patches, and where the sizes do not add up.
    """
    stated = metadata.get("slices")
    if not isinstance(stated, dict) or not all(type(part) is int for part in stated.values()):
        return None
    sizes = {str(name): part for name, part in stated.items()}
    return sizes if min(sizes.values(), default=0) > 0 and sum(sizes.values()) == size else None


def identity_of(metadata: dict[str, Any]) -> str:
    """Identity of the model in metadata; vectors of patches are not comparable with others."""
    return f"{metadata['model']}{OF_PATCHES if metadata.get('patches') else ''}"


def track_ids(table: pa.Table) -> list[str]:
    """Ids of the files of a table, which stay when a file is moved, renamed or retagged.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with the columns path and track_id; tables of older versions may lack the second.

    Returns
    -------
    list of str
        16 hexadecimal digits for each row. Rows of one path share an id, two paths never do: the
        first path with some audio has the digest of the audio, a further one the digest of that
        digest and its path. Without a digest the id is a digest of the path.

    Examples
    --------
    >>> table = read("music.parquet")
    >>> ids = track_ids(table.rows)
    >>> len(set(ids)) == len(set(table.paths))
    True
    """
    paths = table["path"].to_pylist()
    known = "track_id" in table.column_names
    audio = table["track_id"].to_pylist() if known else [None] * len(paths)
    ids, taken = dict[str, str](), set[str]()
    for path, found in zip(paths, audio, strict=True):
        if path not in ids:
            free = found is not None and found not in taken
            ids[path] = found if free else _digest(found or "", path)
            taken.add(ids[path])
    return [ids[path] for path in paths]


def _digest(*texts: str) -> str:
    content = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def read(path: str | Path) -> EmbeddingTable:
    """Read a table that ``patchifier embed`` made into memory.

    Parameters
    ----------
    path : str or Path
        A .parquet file, a folder of parts of one, or a .npy with its .csv and .json beside it.

    Returns
    -------
    EmbeddingTable
        Columns for size, time of change and tags are empty where the file has none.

    Raises
    ------
    RequestError
        If there is none, it is damaged or comes from elsewhere, or a vector is not finite or all
        zeros.

    Examples
    --------
    >>> table = read("music.parquet")
    >>> len(table), len(table.vectors), table.vectors.dtype
    (3, 3, dtype('float32'))
    """
    if str(path).lower().endswith(".npy"):
        rows, facts = npy_rows(Path(path)), read_facts(Path(path))
        _require_directions(rows, facts["size"], path)
        return from_arrow(rows, facts)
    stored = Stored(path, columns=TYPES | DECODING)
    return from_arrow(pa.concat_tables([stored.nothing(), *stored.parts()]), stored.metadata)


def describe(path: str | Path) -> dict[str, Any]:
    """Rows, files, hours of music, model and length of a vector of a table, and its columns.

    Returns
    -------
    dict
        Vectors are not read. A clip of which the table does not say how long it is, as tables of
        older versions do not, counts from its first row to its last.

    Examples
    --------
    >>> facts = describe("music.parquet")
    >>> facts["rows"], facts["files"], list(facts["columns"])[:3]
    (3, 3, ['path', 'start_s', 'end_s'])
    """
    path = Path(path)
    facts, clips = read_facts(path), index(path)
    rows = columns_of(path, ("path", "start_s", "end_s", "length_s"))
    lengths = rows["length_s"]
    ends_s = [rows["end_s"][clip.first + clip.count - 1] for clip in clips]
    seconds = [
        end_s - rows["start_s"][clip.first] if lengths[clip.first] is None else lengths[clip.first]
        for clip, end_s in zip(clips, ends_s, strict=True)
    ]
    return {
        "rows": len(rows["path"]),
        "files": len({clip.clip[0] for clip in clips}),
        "hours": round(sum(seconds) / 3600, 3),
        **{name: facts[name] for name in DESCRIBED},
        "columns": COLUMNS,
    }


def from_arrow(rows: pa.Table, metadata: dict[str, Any]) -> EmbeddingTable:
    """Rows in memory, with what their metadata says about all of them."""
    # about rows and files of one part
    own = ("stretches", "skipped", "reused", "sha256", "later_columns")
    kept = {name: value for name, value in metadata.items() if name not in own}
    length = rows.schema.field("embedding").type.list_size
    return EmbeddingTable(with_later(rows), kept, length)


class Stored:
    """A table of embeddings on disk, read a part at a time: memory does not grow with its rows.

    Parameters
    ----------
    path : str or Path
        A Parquet file, or a folder of parts of one.
    columns : mapping of str to pyarrow.DataType
        Columns to read, with their types.

    Attributes
    ----------
    identity, metadata
        As of :class:`EmbeddingTable`.
    size : int
        Length E of a vector.

    Raises
    ------
    RequestError
        If it is not such a table, or does not say which model made it.
    """

    def __init__(
        self, path: str | Path, *, columns: Mapping[str, pa.DataType | None] = TYPES
    ) -> None:
        self.path, self.columns = path, columns
        with _readable(path):
            require_file(Path(path))
            self._system, self._files = _files_of(path)
            schema = parquet.read_schema(self._files[0], filesystem=self._system)
            self.size, self.metadata = _described(schema, path)
        self.identity = identity_of(self.metadata)

    def parts(self) -> Iterator[pa.Table]:
        """Yield tables of up to 10,000 rows, in order.

        Raises
        ------
        RequestError
            If the file is damaged, if its parts are of several models, or if a vector is not finite
            or all zeros.
        """
        with _readable(self.path):
            for path in self._files:
                schema = parquet.read_schema(path, filesystem=self._system)
                # buffering ahead would keep the whole file in memory as it is read
                with parquet.ParquetFile(
                    path,
                    filesystem=self._system,
                    pre_buffer=False,
                    buffer_size=BUFFER_B,
                    page_checksum_verification=True,
                    read_dictionary=[name for name in STRINGS if name in schema.names],
                ) as file:
                    size, metadata = _described(file.schema_arrow, path)
                    require_same_model(
                        (self.identity, self.size),
                        (identity_of(metadata), size),
                        names=(str(self.path), path),
                    )
                    names = [name for name in self.columns if name in file.schema_arrow.names]
                    size_b = int(self._system.get_file_info(path).size or 0)
                    yield from self._batches(file, size_b, names)

    def _batches(
        self, file: parquet.ParquetFile, size_b: int, names: list[str]
    ) -> Iterator[pa.Table]:
        """Checked tables of an open file of `size_b` bytes."""
        found, text_b = 0, 0
        require_memory(file, size_b)
        for batch in file.iter_batches(PART_ROWS, columns=names):
            found, text_b = found + len(batch), text_b + text_bytes(batch)
            require_memory(file, size_b, text_b=text_b)
            yield self._checked(pa.Table.from_batches([batch]))
        require_rows(found, file.metadata.num_rows)

    def nothing(self) -> pa.Table:
        """No rows, in the same columns."""
        return pa.table(
            {
                name: pa.array([], kind or pa.list_(pa.float32(), self.size))
                for name, kind in self.columns.items()
            }
        )

    def _checked(self, table: pa.Table) -> pa.Table:
        for name in REQUIRED:
            if table[name].null_count:
                raise RequestError(
                    f"{self.path}: column {name} is empty in {table[name].null_count} rows: write "
                    "the table again."
                )
        table = _in_order(table, self.size, self.columns)
        _require_directions(table, self.size, self.path)
        return table


def _files_of(path: str | Path) -> tuple[fs.FileSystem, list[str]]:
    """Parquet files of a table, in order, and the file system that they are on.

    Below a folder, names that begin with "." or "_" are left out. (pyarrow.dataset does the same,
    but its import takes as long as reading 10,000 rows.)
    """
    if "://" in str(path):
        system, place = fs.FileSystem.from_uri(str(path))
    else:
        system, place = fs.LocalFileSystem(), os.path.abspath(path).replace(os.sep, "/")
    kind = system.get_file_info(place).type
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(str(path))
    if kind != fs.FileType.Directory:
        return system, [place]
    below = system.get_file_info(fs.FileSelector(place, recursive=True))
    files = sorted(
        one.path
        for one in below
        if one.type == fs.FileType.File and not re.search("(^|/)[._]", one.path[len(place) :])
    )
    if not files:
        raise FileNotFoundError(str(path))
    return system, files


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except RequestError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise unreadable(path, error) from error


def _described(schema: pa.Schema, path: str | Path) -> tuple[int, dict[str, Any]]:
    """Length of a vector, and metadata."""
    text = (schema.metadata or {}).get(FACTS, b"")
    # a table with a checksum was written with every column: one that is missing is damage
    first = tuple(name for name in TYPES if name not in ADDED)
    size = _require_columns(schema, path, first if b'"crc32"' in text else REQUIRED)
    for columns in LATER.values():
        if columns.keys() & set(schema.names):
            _require_columns(schema, path, tuple(columns))
    facts = parse_facts(text, path)
    stated = facts.get("later_columns")
    for name in STATED:  # a column that was written and is missing is damage
        if isinstance(stated, list) and name in stated:
            _require_columns(schema, path, tuple(LATER[name]))
    return size, facts


def _require_columns(schema: pa.Schema, path: str | Path, names: Sequence[str]) -> int:
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise RequestError(
            f"{path} lacks the columns {', '.join(missing)}: give a table that 'patchifier embed' "
            "wrote."
        )
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise RequestError(
            f"{path}: column embedding is {kind}, expected fixed-size lists of float32: give a "
            "table that 'patchifier embed' wrote."
        )
    return int(kind.list_size)


def _in_order(table: pa.Table, size: int, types: Mapping[str, pa.DataType | None]) -> pa.Table:
    # one name for the items, whoever wrote them
    kinds = {name: kind or pa.list_(pa.float32(), size) for name, kind in types.items()}
    return with_later(table, kinds).select(list(kinds)).cast(pa.schema(kinds))


def _require_directions(table: pa.Table, size: int, path: str | Path) -> None:
    lengths = lengths_of(vectors_of(table, size))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        file = table["path"][int(bad[0])].as_py()
        what = "all zeros" if lengths[bad[0]] == 0 else "not finite"
        raise RequestError(
            f"{path}: the vector of {file} is {what}, the first of {len(bad)}: a cosine needs a "
            "direction. Embed these files again or drop the rows."
        )


def lengths_of(vectors: np.ndarray) -> np.ndarray:
    """Lengths (n,) float32 of vectors (n, E), without a copy of them."""
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def require_same_model(
    mine: tuple[str, int], other: tuple[str, int], *, names: tuple[str, str]
) -> None:
    """Refuse vectors of another model, given (identity, size) of both."""
    differ = []
    if mine[0] != other[0]:
        differ.append(f"model {called(mine[0])} against {called(other[0])}")
    if mine[1] != other[1]:
        differ.append(f"vector size {mine[1]} against {other[1]}")
    if differ:
        raise RequestError(
            f"{names[0]} and {names[1]} do not go together: {' and '.join(differ)}. "
            f"{_made_by(mine, other)}Embed both with the same model and settings."
        )


def _made_by(mine: tuple[str, int], other: tuple[str, int]) -> str:
    """Sentence about which models of the package make vectors of two sizes, if their names help.

    A vector does not say which model made it: models of the package are known by its size.
    """
    if mine[0] != other[0] or not (name := name_of(mine[0])):
        return ""
    made = " or ".join(names_of_size(other[1]))
    another = f"; {made} makes vectors of {other[1]} numbers" if made else ""
    return f"{name} made the {mine[1]} numbers{another}. "


def vectors_of(table: pa.Table, size: int) -> np.ndarray:
    """Vectors of a table: (n, E) float32."""
    if not len(table):
        return np.zeros((0, size), np.float32)
    chunks = [
        chunk.flatten().to_numpy().reshape(-1, size)
        for chunk in table["embedding"].chunks
        if len(chunk)
    ]
    # not copied where they lie together
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
