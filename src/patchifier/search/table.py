"""A Parquet file of embeddings, searched exactly in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from patchifier.search.rows import Rows, Where, read, unit
from patchifier.search.searchable import Searchable


class Table(Searchable):
    """A table of embeddings in memory; every search compares with every row.

    Parameters
    ----------
    rows : Rows
        What :func:`patchifier.search.read` gives.
    name : str
        For messages.
    """

    def __init__(self, rows: Rows, *, name: str = "the table") -> None:
        self.name, self.identity, self.size = name, rows.identity, rows.size
        self._table = rows.table
        self._units = unit(rows.vectors()).astype(np.float32)  # (n, E)

    @classmethod
    def open(cls, path: str | Path) -> "Table":
        """Read a Parquet file; refused as by :func:`patchifier.search.read`."""
        return cls(read(path), name=str(path))

    def __len__(self) -> int:
        return len(self._table)

    def _select(self, where: Where) -> pa.Table:
        return self._table.filter(pa.array(where.mask(self._table)))

    def _nearest(self, vector: np.ndarray, limit: int, *, where: Where, exact: bool) -> pa.Table:
        scores = self._units @ vector.astype(np.float32)
        scores[~where.mask(self._table)] = -np.inf
        chosen = np.argpartition(-scores, limit - 1)[:limit] if limit < len(scores) else np.arange(len(scores))
        return self._table.take(pa.array(chosen[np.isfinite(scores[chosen])]))
