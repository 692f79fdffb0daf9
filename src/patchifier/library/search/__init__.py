"""What sounds alike in a library.

Neighbours, near-duplicates, paths and mixes, in a table of embeddings or an index of it.

A :class:`Table` is the Parquet file that ``patchifier embed`` writes, searched exactly in memory,
with the core dependencies alone. An :class:`Index` is a LanceDB table made from such a file (extra
``search``): a folder, or a place on an object store, to which files are added and from which they
are removed. Both answer the same questions in the same way; scores are cosines, computed in double
precision from the stored vectors, also where an approximate index chose the candidates.
"""

from pathlib import Path

from patchifier.library.search.alike import Stretches, agreement, closer_than, matching_stretches
from patchifier.library.search.index import Index, UnreadableIndexError, is_index
from patchifier.library.search.metric import default_weights, slice_weights
from patchifier.library.search.rows import SILENCE_DB, Changes, Filter, SearchResult
from patchifier.library.search.store import Pair, VectorStore
from patchifier.library.search.table import Table
from patchifier.library.stored import EmbeddingTable, Stored, read

__all__ = [
    "SILENCE_DB",
    "Changes",
    "EmbeddingTable",
    "Filter",
    "Index",
    "Pair",
    "SearchResult",
    "Stored",
    "Stretches",
    "Table",
    "UnreadableIndexError",
    "VectorStore",
    "agreement",
    "closer_than",
    "default_weights",
    "load",
    "matching_stretches",
    "read",
    "slice_weights",
]


def load(path: str | Path) -> Table | Index:
    """Open what can be searched.

    Parameters
    ----------
    path : str or Path
        A Parquet file of embeddings (or a folder of its parts), an index folder, or the URI of an
        index, for example ``s3://bucket/index``, or of a Parquet file, which ends with ".parquet".

    Returns
    -------
    Table or Index

    Raises
    ------
    RequestError
        If it is neither.

    Examples
    --------
    >>> len(load("music.parquet"))
    3
    """
    parquet = str(path).lower().endswith(".parquet")  # which may lie on an object store, too
    return Index.open(path) if is_index(path) and not parquet else Table.open(path)
