"""A Parquet file of embeddings, searched exactly in memory."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchifier.library.search.metric import SLACK, Metric
from patchifier.library.search.ranking import Candidates, Target
from patchifier.library.search.rows import Filter
from patchifier.library.search.store import VectorStore
from patchifier.library.stored import EmbeddingTable, lengths_of, read, slices_of, vectors_of

MOST_EDGES = 64  # of columns between which sums of squares are kept, a number for each row
FEW_COLUMNS = 4  # a quarter of the columns are few: reading them alone saves most of the time
MORE = 10  # times as many rows are compared to learn which cosine the best ones reach
MOST_PICKED = 1 / 8  # of the rows; more are compared faster by reading all of them in order
BLOCK = 1024  # rows picked at once
LEAST = 1e-12  # square of a length that is not zero


class Table(VectorStore):
    """A table of embeddings in memory; every search compares with every row.

    Parameters
    ----------
    rows : EmbeddingTable
        What :func:`patchifier.library.search.read` gives.
    name : str
        For messages.

    Examples
    --------
    >>> table = Table.open("music.parquet")
    >>> (found,) = table.similar(patchifier.load().embed("music/one.ogg"), 1)
    >>> len(table), round(found.score, 3)
    (3, 1.0)
    """

    def __init__(self, rows: EmbeddingTable, *, name: str = "the table") -> None:
        self.name, self.identity, self.size = name, rows.identity, rows.length
        self.slices = slices_of(rows.metadata, rows.length)
        self.track_ids = rows.track_ids  # of each row
        self._table = rows.rows.set_column(
            rows.rows.column_names.index("track_id"),
            "track_id",
            pa.array(self.track_ids, pa.string()),
        )
        # together: a row is found faster in one chunk than in many
        self._facts = self._table.drop_columns(["embedding"]).combine_chunks()
        # (n of it, E), not copied
        self._parts = [
            vectors_of(pa.Table.from_batches([batch]), rows.length)
            for batch in rows.rows.to_batches()
            if len(batch)
        ]
        self._starts = np.cumsum([0, *map(len, self._parts)])  # of each part, and the end
        self._lengths = self._over_parts(lengths_of)  # (n,)
        self._copied: tuple[slice, list[np.ndarray]] = slice(0, 0), []
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

    @functools.cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        """Rows of each path."""
        rows: dict[str, list[int]] = {}
        for row, path in enumerate(self._facts["path"].to_pylist()):
            rows.setdefault(path, []).append(row)
        return rows

    def _mask(self, where: Filter) -> np.ndarray:
        """Rows where the conditions hold: (n,) bool. Whole paths are looked up, not compared."""
        mask = dataclasses.replace(where, path=None, without_paths=()).mask(self._facts)
        for path in where.without_paths:
            mask[self._rows_of.get(path, [])] = False
        if where.path is not None:
            own = np.zeros(len(self), bool)
            own[self._rows_of.get(where.path, [])] = True
            mask &= own
        return mask

    def _select(self, where: Filter, *, vectors: bool = True) -> pa.Table:
        table = self._table if vectors else self._facts
        return table.filter(pa.array(self._mask(where)))

    @functools.cached_property
    def _is_audible(self) -> np.ndarray:
        """Rows that are not silent: (n,) bool."""
        return self.audible(Filter()).mask(self._facts)

    def _vectors_of_path(self, path: str) -> np.ndarray:
        rows = np.array(self._rows_of.get(path, []), int)
        return self._vectors(rows[self._is_audible[rows]])

    def _candidates(
        self, targets: Sequence[Target], first: int, *, where: Filter, exact: bool
    ) -> list[Iterator[Candidates]]:
        metric = targets[0].metric
        directions = np.stack([target.direction for target in targets])
        queries = metric.query(directions).astype(np.float32)  # (k, E)
        heavy, lengths = _heavy(metric.weights), self._lengths_in(metric)
        # each row is read once for all targets
        parts = [queries[:, heavy] @ part.T for part in self._columns(heavy)]
        near = np.concatenate([np.zeros((len(targets), 0), np.float32), *parts], axis=1)  # (k, n)
        near /= lengths
        near[:, ~self._mask(where)] = -np.inf
        beyond = self._beyond(metric, directions, heavy)  # (k, n), or nothing
        return [
            self._nearest(near[row], None if beyond is None else beyond[row], cosines, first)
            for row, cosines in enumerate(self._cosines(query, lengths) for query in queries)
        ]

    def _columns(self, columns: slice) -> list[np.ndarray]:
        """Some columns of all rows; a copy, kept for the next search, where they are not all."""
        if columns == slice(None):
            return self._parts
        if self._copied[0] != columns:
            copies = [np.ascontiguousarray(part[:, columns]) for part in self._parts]
            self._copied = columns, copies
        return self._copied[1]

    def _beyond(self, metric: Metric, directions: np.ndarray, heavy: slice) -> np.ndarray | None:
        """The most that columns outside of some can add to a cosine (k, n), by Cauchy-Schwarz."""
        if metric.weights is None or heavy == slice(None):
            return None
        rest = metric.weights.copy()
        rest[heavy] = 0.0
        queries = np.linalg.norm(directions * (rest > 0), axis=1)
        rows = self._lengths_in(Metric(rest)) / self._lengths_in(metric)
        return queries.astype(np.float32)[:, None] * rows

    def _cosines(
        self, query: np.ndarray, lengths: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Function that gives cosines of a query with some rows."""

        def cosines(rows: np.ndarray) -> np.ndarray:
            if len(rows) > MOST_PICKED * len(self):
                return self._over_parts(lambda part: part @ query)[rows] / lengths[rows]
            blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
            products = [self._vectors(block) @ query for block in blocks]
            return np.asarray(np.concatenate(products) / lengths[rows])

        return cosines

    def _nearest(
        self,
        near: np.ndarray,
        beyond: np.ndarray | None,
        cosines: Callable[[np.ndarray], np.ndarray],
        limit: int,
    ) -> Iterator[Candidates]:
        """Rows with the highest cosines, four times as many each time.

        `near` (n,) is what some columns contribute, `beyond` the most that the others do.
        """
        taking = np.flatnonzero(np.isfinite(near))
        while True:
            complete = limit >= len(taking)
            chosen = taking if complete else _highest(near, beyond, cosines, limit)
            yield Candidates(self._facts.take(pa.array(chosen)), self._vectors(chosen), complete)
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


def _heavy(weights: np.ndarray | None) -> slice:
    """Columns that make most of a cosine, those of the largest weight, if they are few; or all."""
    if weights is None:
        return slice(None)
    columns = np.flatnonzero(weights == weights.max())
    together = slice(int(columns[0]), int(columns[-1]) + 1)
    few = len(columns) * FEW_COLUMNS <= len(weights)
    return together if few and together.stop - together.start == len(columns) else slice(None)


def _highest(
    near: np.ndarray,
    beyond: np.ndarray | None,
    cosines: Callable[[np.ndarray], np.ndarray],
    count: int,
) -> np.ndarray:
    """The `count` rows with the highest cosines, of more rows: those that can be are compared."""
    some = min(len(near), (1 if beyond is None else MORE) * count)
    best = np.argpartition(-near, some - 1)[:some]
    if beyond is None:
        return best
    best = best[np.isfinite(near[best])]  # those that take part
    least = float(np.sort(cosines(best))[-count]) - SLACK
    rows = np.flatnonzero(near + beyond >= least)
    return rows[np.argpartition(-cosines(rows), count - 1)[:count]]
