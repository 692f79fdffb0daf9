"""Results of a search, and what a store needs of its rows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from patchifier.library.stored import vectors_of
from patchifier.library.tags import TAGS


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
    """Files that a change of an index touched: how many were added, replaced, removed, and left as they were."""

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
