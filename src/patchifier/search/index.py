"""An index of embeddings: a LanceDB table in a folder or on an object store, changed in place, searched exactly or approximately."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from patchifier.config import RequestError
from patchifier.search.rows import Changes, Rows, Where, digests, quoted_list, read, require_same_model
from patchifier.search.searchable import Searchable

NAME = "embeddings"  # of the LanceDB table
FACTS = b"patchifier.index"  # schema metadata: facts in JSON
ANN_ROWS = 20_000  # where comparing with every row starts to take longer than the approximate index; see benchmarks/search.py
LEAST_ANN_ROWS = 256  # a product quantizer of 8 bits learns from no fewer
NPROBES = 20  # parts of the approximate index that are looked into
REFINE = 10  # as many times more candidates are compared exactly
AT_ONCE = 1000  # paths named in one condition


def is_index(path: str | Path) -> bool:
    """Whether `path` is a URI or a folder that holds an index."""
    return is_uri(path) or (Path(path) / f"{NAME}.lance").is_dir()


def is_uri(path: str | Path) -> bool:
    """Whether `path` names a place on an object store."""
    return isinstance(path, str) and "://" in path


class Index(Searchable):
    """A table of embeddings on disk; make one with :meth:`build`, or :meth:`open` it.

    Changes are seen by whoever made them and whoever opens the index afterwards. The approximate index takes new rows in, but keeps what
    it learned from the first: after most of a library has changed, build it again.

    Attributes
    ----------
    ann_rows : int
        From how many rows on an approximate index is kept; below, every search compares with every row.
    """

    def __init__(self, table: Any, *, name: str) -> None:
        self._table, self.name = table, name
        try:
            facts = json.loads(table.schema.metadata[FACTS])
            self.identity, self.size, self.ann_rows, form = str(facts["model"]), int(facts["size"]), int(facts["ann_rows"]), int(facts["format"])
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{name} is a LanceDB table, but not an index of embeddings: build one from a table that 'patchifier embed' wrote.") from error
        if form > 1:
            raise RequestError(f"{name} has format {form}, this version reads up to 1: pip install -U patchifier.")

    @classmethod
    def build(cls, table_path: str | Path, index_path: str | Path, *, ann_rows: int = ANN_ROWS) -> "Index":
        """Make an index of a table of embeddings; one that is there already is replaced, when the new one is whole.

        Parameters
        ----------
        table_path : str or Path
            Parquet, as ``patchifier embed`` writes it.
        index_path : str or Path
            A folder, or a URI such as ``s3://bucket/index``, which is passed to LanceDB as it is.
        ann_rows : int
            From how many rows on to keep an approximate index, at least 256.

        Returns
        -------
        Index

        Raises
        ------
        RequestError
            If the table is refused, or if the folder holds anything but an index.
        """
        if ann_rows < LEAST_ANN_ROWS:
            raise RequestError(f"ann_rows is {ann_rows}, expected at least {LEAST_ANN_ROWS}: fewer rows are compared one by one in no time.")
        rows = read(table_path)
        _connect_module()
        if is_uri(index_path):
            _create(str(index_path), rows, ann_rows, mode="overwrite")
        else:
            from patchifier.checkpoint import replaced_folder  # imports torch

            folder = Path(index_path)
            if folder.exists() and not is_index(folder) and (not folder.is_dir() or any(folder.iterdir())):
                raise RequestError(f"{folder} holds something that is not an index: name a new folder, or an index to replace.")
            with replaced_folder(folder) as new:
                _create(str(new), rows, ann_rows, mode="create")
        return cls.open(index_path)

    @classmethod
    def open(cls, index_path: str | Path) -> "Index":
        """Open an index; refused if there is none."""
        lancedb = _connect_module()
        if not is_index(index_path):
            raise RequestError(f"{index_path} is not an index: build one from a table that 'patchifier embed' wrote.")
        try:
            table = lancedb.connect(str(index_path)).open_table(NAME)
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(f"{index_path} cannot be opened as an index ({str(error).splitlines()[0][:200]}): build it again.") from error
        return cls(table, name=str(index_path))

    def __len__(self) -> int:
        return int(self._table.count_rows())

    @property
    def approximate(self) -> bool:
        """Whether an approximate index exists."""
        return bool(list(self._table.list_indices()))

    def add(self, table_path: str | Path) -> Changes:
        """Add the files of a table of embeddings.

        Raises
        ------
        RequestError
            If the table is of another model, or has a file that is in here already (that is what :meth:`update` is for).
        """
        rows = self._read(table_path)
        here, new = set(self._digests()), set(rows.table["path"].to_pylist())
        if here & new:
            raise RequestError(f"{self.name} has {len(here & new)} of the {len(new)} files already, among them {min(here & new)}: use update, or remove them.")
        self._append(rows.table)
        return Changes(added=len(new), kept=len(here))

    def remove(self, paths: Iterable[str | Path]) -> Changes:
        """Remove files.

        Raises
        ------
        RequestError
            If one of them is not in here; then nothing is removed.
        """
        gone, here = {str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)}, set(self._digests())
        if gone - here:
            raise RequestError(f"{len(gone - here)} of {len(gone)} files are not in {self.name}, among them {min(gone - here)}: nothing was removed.")
        self._delete(sorted(gone))
        return Changes(removed=len(gone), kept=len(here - gone))

    def update(self, table_path: str | Path) -> Changes:
        """Make the index hold what a table holds: new files are added, changed ones replaced, those no longer there removed.

        What did not change is not touched. If it is interrupted, files may be missing until it is run again.

        Raises
        ------
        RequestError
            If the table is of another model.
        """
        rows = self._read(table_path)
        here, there = self._digests(), _digests_by_path(rows.table["path"].to_pylist(), digests(rows.table))
        added, removed = there.keys() - here.keys(), here.keys() - there.keys()
        replaced = {path for path in there.keys() & here.keys() if there[path] != here[path]}
        self._delete(sorted(removed | replaced))
        wanted = added | replaced
        self._append(rows.table.filter(pa.array([path in wanted for path in rows.table["path"].to_pylist()], pa.bool_())))
        return Changes(len(added), len(replaced), len(removed), len(there) - len(wanted))

    def _read(self, table_path: str | Path) -> Rows:
        rows = read(table_path)
        require_same_model((self.identity, self.size), (rows.identity, rows.size), names=(self.name, str(table_path)))
        return rows

    def _digests(self) -> dict[str, list[str]]:
        """Digests of the rows of every file."""
        table = self._table.search().select(["path", "digest"]).limit(None).to_arrow()
        return _digests_by_path(table["path"].to_pylist(), table["digest"].to_pylist())

    def _append(self, table: pa.Table) -> None:
        if len(table):
            self._table.add(_with_digests(table))
        _tend(self._table, self.ann_rows)

    def _delete(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), AT_ONCE):
            self._table.delete(f"path IN {quoted_list(paths[start : start + AT_ONCE])}")

    def _select(self, where: Where) -> pa.Table:
        query = self._table.search()
        query = query.where(where.sql()) if where.sql() else query
        return query.limit(None).to_arrow()

    def _nearest(self, vector: np.ndarray, limit: int, *, where: Where, exact: bool) -> pa.Table:
        query = self._table.search(vector.astype(np.float32), vector_column_name="embedding").distance_type("cosine")
        query = query.bypass_vector_index() if exact else query.nprobes(NPROBES).refine_factor(REFINE)
        query = query.where(where.sql()) if where.sql() else query
        return query.limit(limit).to_arrow()


def _connect_module() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise RequestError("an index needs LanceDB: pip install 'patchifier[search]'. A Parquet table is searched without it.") from error
    return lancedb


def _create(uri: str, rows: Rows, ann_rows: int, *, mode: str) -> None:
    facts = {"format": 1, "model": rows.identity, "size": rows.size, "ann_rows": ann_rows}
    data = _with_digests(rows.table).replace_schema_metadata({FACTS: json.dumps(facts).encode()})
    try:
        table = _connect_module().connect(uri).create_table(NAME, data=data, schema=data.schema, mode=mode)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"an index cannot be written to {uri} ({str(error).splitlines()[0][:200]}): check the place, and that you may write there."
        ) from error
    _tend(table, ann_rows)


def _tend(table: Any, ann_rows: int) -> None:
    """Take new rows into the approximate index, or make it once there are enough of them."""
    from lancedb.index import IvfPq

    table.optimize()
    if table.count_rows() >= ann_rows and not list(table.list_indices()):
        size = table.schema.field("embedding").type.list_size
        parts = max(count for count in range(1, max(1, size // 16) + 1) if size % count == 0)
        table.create_index("embedding", config=IvfPq(distance_type="cosine", num_sub_vectors=parts))


def _with_digests(table: pa.Table) -> pa.Table:
    return table.append_column("digest", pa.array(digests(table), pa.string()))


def _digests_by_path(paths: Iterable[str], values: Iterable[str]) -> dict[str, list[str]]:
    by_path: dict[str, list[str]] = {}
    for path, value in sorted(zip(paths, values)):
        by_path.setdefault(path, []).append(value)
    return by_path
