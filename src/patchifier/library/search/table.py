"""A Parquet file of embeddings, searched exactly in memory."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchifier.library.search.metric import Metric
from patchifier.library.search.ranking import Candidates, Target
from patchifier.library.search.rows import Filter
from patchifier.library.search.store import VectorStore
from patchifier.library.stored import EmbeddingTable, read, slices_of, vectors_of

MOST_EDGES = 64  # of columns between which sums of squares are kept, a number for each row
LEAST = 1e-12  # square of a length that is not zero


class Table(VectorStore):
    """A table of embeddings in memory; every search compares with every row.

    Parameters
    ----------
    rows : EmbeddingTable
        What :func:`patchifier.library.search.read` gives.
    name : str
        For messages.
    """

    def __init__(self, rows: EmbeddingTable, *, name: str = "the table") -> None:
        self.name, self.identity, self.size = name, rows.identity, rows.length
        self.slices = slices_of(rows.metadata, rows.length)
        ids = pa.array(rows.track_ids, pa.string())
        self._table = rows.rows.set_column(
            rows.rows.column_names.index("track_id"), "track_id", ids
        )
        self._facts = self._table.drop_columns(["embedding"])
        # (n of it, E), not copied
        self._parts = [
            vectors_of(pa.Table.from_batches([batch]), rows.length)
            for batch in rows.rows.to_batches()
            if len(batch)
        ]
        self._starts = np.cumsum([0, *map(len, self._parts)])  # of each part, and the end
        self._lengths = self._over_parts(lambda part: np.linalg.norm(part, axis=1))  # (n,)
        # columns between which squares are summed, and the sums (n,) between each two edges
        self._edges, self._squares = [0, self.size], [self._lengths**2]

    @classmethod
    def open(cls, path: str | Path) -> "Table":
        """Read a Parquet file; refused as by :func:`patchifier.library.search.read`."""
        return cls(read(path), name=str(path))

    def __len__(self) -> int:
        return len(self._table)

    def _over_parts(self, count: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A number of each row (n,), computed part by part."""
        return np.concatenate([np.zeros(0, np.float32), *map(count, self._parts)])

    def _select(self, where: Filter, *, vectors: bool = True) -> pa.Table:
        table = self._table if vectors else self._facts
        return table.filter(pa.array(where.mask(self._facts)))

    def _candidates(
        self, targets: Sequence[Target], first: int, *, where: Filter, exact: bool
    ) -> list[Iterator[Candidates]]:
        metric = targets[0].metric
        queries = np.stack([metric.query(target.direction) for target in targets])
        queries = queries.astype(np.float32)  # (k, E)
        # each row is read once for all targets
        parts = [queries @ part.T for part in self._parts]
        scores = np.concatenate([np.zeros((len(targets), 0), np.float32), *parts], axis=1)
        scores /= self._lengths_in(metric)
        scores[:, ~where.mask(self._facts)] = -np.inf
        return [self._nearest(of_rows, first) for of_rows in scores]

    def _nearest(self, scores: np.ndarray, limit: int) -> Iterator[Candidates]:
        """Rows with the highest of some scores (n,), four times as many each time."""
        while True:
            complete = limit >= len(scores)
            nearest = slice(None) if complete else np.argpartition(-scores, limit - 1)[:limit]
            chosen = np.arange(len(scores))[nearest]
            chosen = chosen[np.isfinite(scores[chosen])]
            yield Candidates(
                self._facts.take(pa.array(chosen)),
                self._vectors(chosen),
                complete or len(chosen) < limit,
            )
            limit *= 4

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of some rows: (k, E)."""
        found = np.empty((len(rows), self.size), np.float32)
        for start, part in zip(self._starts, self._parts, strict=False):
            here = (rows >= start) & (rows < start + len(part))
            found[here] = part[rows[here] - start]
        return found

    def _sample(self, count: int) -> np.ndarray:
        return self._vectors(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))

    def _lengths_in(self, metric: Metric) -> np.ndarray:
        """Lengths of all rows in a metric: (n,)."""
        weights = metric.weights
        if weights is None:
            return self._lengths
        edges = np.flatnonzero(np.diff(weights)) + 1
        if len(edges) > MOST_EDGES:
            squares = self._over_parts(lambda part: np.einsum("ij,ij,j->i", part, part, weights))
        else:
            self._split(edges.tolist())
            squares = weights[self._edges[:-1]] @ np.stack(self._squares)
        return np.sqrt(np.maximum(squares, LEAST)).astype(np.float32)

    def _split(self, edges: Sequence[int]) -> None:
        """Sum the squares of the columns between edges, and keep the sums for other weights."""
        if len({*self._edges, *edges}) > MOST_EDGES + 2:
            self._edges, self._squares = [0, self.size], [self._lengths**2]
        for edge in edges:
            at = bisect.bisect_left(self._edges, edge)
            if self._edges[at] != edge:
                start, end = self._edges[at - 1], self._edges[at]
                halves = [self._squares_of(start, edge), self._squares_of(edge, end)]
                self._squares[at - 1 : at] = halves
                self._edges.insert(at, edge)

    def _squares_of(self, start: int, end: int) -> np.ndarray:
        """Sums of squares of the columns from `start` to `end`: (n,)."""
        return self._over_parts(
            lambda part: np.einsum("ij,ij->i", part[:, start:end], part[:, start:end])
        )
