"""A Parquet file of embeddings, searched exactly in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from patchifier.library.search.rows import Filter
from patchifier.library.search.store import VectorStore
from patchifier.library.stored import EmbeddingTable, read, vectors_of


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
        ids = pa.array(rows.track_ids, pa.string())
        self._table = rows.rows.set_column(
            rows.rows.column_names.index("track_id"), "track_id", ids
        )
        # (n of it, E), not copied
        self._parts = [
            vectors_of(pa.Table.from_batches([batch]), rows.length)
            for batch in rows.rows.to_batches()
            if len(batch)
        ]
        # (n,)
        self._lengths = np.concatenate(
            [np.zeros(0, np.float32), *(np.linalg.norm(part, axis=1) for part in self._parts)]
        )

    @classmethod
    def open(cls, path: str | Path) -> "Table":
        """Read a Parquet file; refused as by :func:`patchifier.library.search.read`."""
        return cls(read(path), name=str(path))

    def __len__(self) -> int:
        return len(self._table)

    def _select(self, where: Filter, *, vectors: bool = True) -> pa.Table:
        return self._table.filter(pa.array(where.mask(self._table)))

    def _nearest(self, vector: np.ndarray, limit: int, *, where: Filter, exact: bool) -> pa.Table:
        vector = vector.astype(np.float32)
        scores = (
            np.concatenate([np.zeros(0, np.float32), *(part @ vector for part in self._parts)])
            / self._lengths
        )
        scores[~where.mask(self._table)] = -np.inf
        chosen = (
            np.argpartition(-scores, limit - 1)[:limit]
            if limit < len(scores)
            else np.arange(len(scores))
        )
        return self._table.take(pa.array(chosen[np.isfinite(scores[chosen])]))
