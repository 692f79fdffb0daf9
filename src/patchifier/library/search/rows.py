"""Conditions on the rows of a table of embeddings, results of a search, and digests of rows."""

import dataclasses
import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchifier.config import RequestError
from patchifier.library.stored import vectors_of
from patchifier.library.tags import TAGS


@dataclass(frozen=True)
class Filter:
    """Which rows take part; every condition that is given must hold.

    Strings are compared as they are, case included.

    Attributes
    ----------
    artist, title, album, genre, path : str or None
        The whole value.
    path_prefix : str or None
        How the path begins; end it with "/" to mean a folder.
    without_paths, without_artists : tuple of str
        Left out; a file without an artist is not left out by an artist.

    Examples
    --------
    >>> Filter(artist="Bach", path_prefix="/music/").sql()
    "artist = 'Bach' AND starts_with(path, '/music/')"
    """

    artist: str | None = None
    title: str | None = None
    album: str | None = None
    genre: str | None = None
    path: str | None = None
    path_prefix: str | None = None
    without_paths: tuple[str, ...] = ()
    without_artists: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = [
            *(getattr(self, name) for name in (*TAGS, "path", "path_prefix")),
            *self.without_paths,
            *self.without_artists,
        ]
        wrong = [value for value in values if value is not None and not isinstance(value, str)]
        if wrong:
            raise RequestError(f"a condition compares with {wrong[0]!r}, expected a string.")

    def equal(self) -> dict[str, str]:
        """Columns whose value is prescribed."""
        return {
            name: value for name in (*TAGS, "path") if (value := getattr(self, name)) is not None
        }

    def sql(self) -> str:
        """As a condition of SQL; empty if everything takes part."""
        parts = [f"{name} = {quoted(value)}" for name, value in self.equal().items()]
        if self.path_prefix is not None:
            parts.append(f"starts_with(path, {quoted(self.path_prefix)})")
        if self.without_paths:
            parts.append(f"path NOT IN {quoted_list(self.without_paths)}")
        if self.without_artists:
            artists = quoted_list(self.without_artists)
            parts.append(f"(artist IS NULL OR artist NOT IN {artists})")
        return " AND ".join(parts)

    def mask(self, table: pa.Table) -> np.ndarray:
        """Rows of `table` that match: (n,) bool."""
        parts = [pc.equal(table[name], value) for name, value in self.equal().items()]
        if self.path_prefix is not None:
            parts.append(pc.starts_with(table["path"], self.path_prefix))
        for name, values in (("path", self.without_paths), ("artist", self.without_artists)):
            if values:
                parts.append(pc.invert(pc.is_in(table[name], pa.array(values))))
        arrays = [np.asarray(pc.fill_null(part, False)) for part in parts]
        return reduce(operator.and_, arrays, np.ones(len(table), bool))


def without(where: Filter, paths: Iterable[str]) -> Filter:
    """The same conditions, some files left out."""
    return dataclasses.replace(where, without_paths=(*where.without_paths, *paths))


def quoted(value: str) -> str:
    """`value` as a string of SQL."""
    return "'" + value.replace("'", "''") + "'"


def quoted_list(values: Sequence[str]) -> str:
    """`values` as a list of SQL."""
    return "(" + ", ".join(quoted(value) for value in values) + ")"


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


@dataclass(frozen=True)
class Changes:
    """Numbers of files that were added, replaced, removed and not changed in an index."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    kept: int = 0


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
