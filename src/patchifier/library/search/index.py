"""An index of embeddings in LanceDB, changed in place, with exact or approximate search."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from patchifier.config import RequestError
from patchifier.extras import need
from patchifier.io import parse_json, replaced_folder, require_file, restore_folder
from patchifier.jobs import file_lock
from patchifier.library.search.ranking import Candidates, Target
from patchifier.library.search.rows import Changes, Filter, digests, quoted_list
from patchifier.library.search.store import VectorStore
from patchifier.library.stored import TYPES, Stored, require_same_model, slices_of, vectors_of
from patchifier.library.table import with_later

NAME = "embeddings"  # of the LanceDB table
FACTS = b"patchifier.index"  # schema metadata: facts in JSON
# From so many rows on, the approximate index is faster; see benchmarks/search.py.
ANN_ROWS = 20_000
LEAST_ANN_ROWS = 256  # fewer are not worth learning from
PARTITION_ROWS = 2000  # rows in a partition of the approximate index
PROBES = 20  # partitions that are searched
REFINE = 4  # factor of candidates that are compared exactly
GROWTH = 4  # growth of the rows after which partitions are computed again
WEIGHTED_FACTOR = 10  # growth of the candidates where weights change their order
AT_ONCE = 1000  # values named in one condition


def is_index(path: str | Path) -> bool:
    """Whether `path` is a URI, or a folder with an index."""
    if is_uri(path):
        return True
    restore_folder(Path(path))
    return (Path(path) / f"{NAME}.lance").is_dir()


def is_uri(path: str | Path) -> bool:
    """Whether `path` names a place on an object store; one that lost a slash is refused."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", str(path)):
        scheme, place = str(path).split(":/", 1)
        raise RequestError(
            f"{path} is no place: write it as a string with two slashes, {scheme}://{place}."
        )
    return isinstance(path, str) and "://" in path


class UnreadableIndexError(RequestError):
    """An index whose files are damaged. It holds nothing that is not in its table."""


class Index(VectorStore):
    """A table of embeddings on disk; make one with :meth:`build`, or :meth:`open` it.

    Changes are seen by whoever made them and whoever opens the index afterwards; others go on
    reading what they opened, for a week. The approximate index takes new rows in, and is learned
    anew when four times as many have come.

    Attributes
    ----------
    ann_rows : int
        From how many rows on an approximate index is kept; below, every search compares with every
        row.

    Examples
    --------
    >>> index = Index.build("music.parquet", "music.lance")
    >>> (found,) = index.similar(patchifier.load().embed("music/one.ogg"), 1)
    >>> round(found.score, 3)
    1.0
    >>> index.remove([found.path]), len(Index.open("music.lance"))
    (Changes(added=0, replaced=0, removed=1, kept=2), 2)
    >>> index.update("music.parquet")
    Changes(added=1, replaced=0, removed=0, kept=2)
    """

    def __init__(self, table: Any, *, name: str) -> None:
        self._table, self.name = table, name
        with self._read():
            metadata = table.schema.metadata
        try:
            facts = parse_json(metadata[FACTS])
            self.identity, self.size, self.ann_rows, form = (
                str(facts["model"]),
                int(facts["size"]),
                int(facts["ann_rows"]),
                int(facts["format"]),
            )
            self.slices = slices_of(facts, self.size)
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"{name} is a LanceDB table, but not an index of embeddings: build one from a "
                "table that 'patchifier embed' wrote."
            ) from error
        if form > 1:
            raise RequestError(
                f"{name} has format {form}, this version reads up to 1: pip install -U patchifier."
            )

    @classmethod
    def build(
        cls, table_path: str | Path, index_path: str | Path, *, ann_rows: int = ANN_ROWS
    ) -> "Index":
        """Make an index of a table of embeddings.

        An existing index is replaced when the new one is whole.

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
            If the table is refused, or if the folder holds anything but an index of embeddings.
        """
        if ann_rows < LEAST_ANN_ROWS:
            raise RequestError(
                f"ann_rows is {ann_rows}, expected at least {LEAST_ANN_ROWS}: fewer rows are "
                "compared one by one in no time."
            )
        stored = Stored(table_path)
        for _ in stored.parts():  # a table that is refused is refused before anything is written
            pass
        if is_uri(index_path):
            table = _create(str(index_path), stored, ann_rows)
            return cls(table, name=str(index_path))

        _connect_module()
        folder = Path(index_path)
        if (
            folder.exists()
            and not is_index(folder)
            and (not folder.is_dir() or any(folder.iterdir()))
        ):
            raise RequestError(
                f"{folder} holds something that is not an index: name a new folder, or an index "
                "to replace."
            )
        if is_index(folder):
            _require_ours(_connect_module().connect(str(folder)), str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder), replaced_folder(folder) as new:
            _create(str(new), stored, ann_rows)
        return cls.open(folder)

    @classmethod
    def open(cls, index_path: str | Path) -> "Index":
        """Open an index; refused if there is none."""
        lancedb = _connect_module()
        if not is_index(index_path):
            raise RequestError(
                f"{index_path} is not an index: build one from a table that 'patchifier embed' "
                "wrote."
            )
        with _reached(f"{index_path} cannot be opened as an index", index_path, "build it again"):
            for file in [] if is_uri(index_path) else Path(index_path).rglob("*"):
                require_file(file)
            table = lancedb.connect(str(index_path)).open_table(NAME)
        return cls(table, name=str(index_path))

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        try:
            with _reached(f"{self.name} cannot be read", self.name, "build it again"):
                yield
        except RequestError as error:
            raise UnreadableIndexError(str(error)) from error

    def __len__(self) -> int:
        with self._read():
            return int(self._table.count_rows())

    @property
    def approximate(self) -> bool:
        """Whether an approximate index exists."""
        return "embedding" in _indexed(self._table)

    def add(self, table_path: str | Path) -> Changes:
        """Add the files of a table of embeddings.

        Raises
        ------
        RequestError
            If the table is of another model, or has a file that is in here already (that is what
            :meth:`update` is for).
        """
        with _alone(self.name), self._copied() as copy:
            return copy._add(copy._stored(table_path))

    def _add(self, stored: Stored) -> Changes:
        here, new = self._digests(), _digests_of(stored)
        if here.keys() & new.keys():
            both = here.keys() & new.keys()
            raise RequestError(
                f"{self.name} has {len(both)} of the {len(new)} files already, among them "
                f"{min(both)}: use update, or remove them."
            )
        before = len(self)
        self._append(stored)
        _tend(self._table, self.ann_rows, before=before)
        return Changes(added=len(new), kept=len(here))

    def remove(self, paths: Iterable[str | Path]) -> Changes:
        """Remove files.

        Raises
        ------
        RequestError
            If one of them is not in here; then nothing is removed.
        """
        gone = {str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)}
        with _alone(self.name), self._copied() as copy:
            return copy._remove(gone)

    def _remove(self, gone: Set[str]) -> Changes:
        here = set(self._digests())
        if gone - here:
            raise RequestError(
                f"{len(gone - here)} of {len(gone)} files are not in {self.name}, among them "
                f"{min(gone - here)}: nothing was removed."
            )
        self._delete("path", sorted(gone))
        return Changes(removed=len(gone), kept=len(here - gone))

    def update(self, table_path: str | Path) -> Changes:
        """Bring the index up to date with a table.

        Add new files, replace changed ones, remove missing ones.

        What did not change is not touched. New rows come before old ones go: if it is interrupted,
        no file is missing, and some may have their old rows next to the new, until it is run again.

        Raises
        ------
        RequestError
            If the table is of another model.
        """
        with _alone(self.name), self._copied() as copy:
            return copy._update(copy._stored(table_path))

    def _update(self, stored: Stored) -> Changes:
        indexed, listed = self._digests(), _digests_of(stored)
        old, new = set().union(*indexed.values()), set().union(*listed.values())
        before = len(self)
        self._append(stored, only=new - old)
        self._delete("digest", sorted(old - new))
        _tend(self._table, self.ann_rows, before=before)
        replaced = sum(listed[path] != indexed[path] for path in listed.keys() & indexed.keys())
        return Changes(
            len(listed.keys() - indexed.keys()),
            replaced,
            len(indexed.keys() - listed.keys()),
            len(listed.keys() & indexed.keys()) - replaced,
        )

    @contextlib.contextmanager
    def _copied(self) -> Iterator["Index"]:
        """A copy to change, by hard links, which takes the folder's place when the change is whole.

        LanceDB changes no file that it has written.
        """
        if is_uri(self.name):
            yield self
            return
        lancedb, folder = _connect_module(), Path(self.name)
        with replaced_folder(folder) as new:
            _link(folder, new)
            yield type(self)(lancedb.connect(str(new)).open_table(NAME), name=self.name)
        self._table = lancedb.connect(str(folder)).open_table(NAME)

    @property
    def _columns(self) -> dict[str, pa.DataType | None]:
        """Columns of the table that are in here; an index that an older version made lacks some."""
        return {name: kind for name, kind in TYPES.items() if name in self._table.schema.names}

    def _stored(self, table_path: str | Path) -> Stored:
        stored = Stored(table_path, columns=self._columns)
        require_same_model(
            (self.identity, self.size),
            (stored.identity, stored.size),
            names=(self.name, str(table_path)),
        )
        return stored

    def _digests(self) -> dict[str, set[str]]:
        """Digests of the rows of every file, as the index is now, whoever changed it."""
        with self._read():
            self._table.checkout_latest()
            table = self._table.search().select(["path", "digest"]).limit(None).to_arrow()
        return _by_path(table["path"].to_pylist(), table["digest"].to_pylist(), {})

    def _append(self, stored: Stored, *, only: Set[str] | None = None) -> None:
        """Add rows of a table in one commit: all, or those with one of some digests."""
        if only is None or only:
            self._table.add(_reader(stored, self._table.schema, only))

    def _delete(self, column: str, values: Sequence[str]) -> None:
        for start in range(0, len(values), AT_ONCE):
            self._table.delete(f"{column} IN {quoted_list(values[start : start + AT_ONCE])}")

    def _select(self, where: Filter, *, vectors: bool = True) -> pa.Table:
        query = self._table.search().select(
            [name for name in self._columns if vectors or name != "embedding"]
        )
        query = self._limited(query, where)
        with self._read():
            return with_later(query.limit(None).to_arrow(), TYPES)

    def audible(self, where: Filter) -> Filter:
        """The same conditions, and silence left out; an index of an older version has no levels."""
        return super().audible(where) if "level_db" in self._columns else where

    def _limited(self, query: Any, where: Filter) -> Any:
        """Query about the rows where the conditions hold."""
        if missing := sorted(where.columns() - self._columns.keys()):
            raise RequestError(
                f"{self.name} has no {' and no '.join(missing)}, since an older version made it: "
                "bring its table up to date with 'patchifier embed --changed', delete the index, "
                "and make it again with 'patchifier index'."
            )
        return query.where(where.sql()) if where.sql() else query

    def _candidates(
        self, targets: Sequence[Target], first: int, *, where: Filter, exact: bool
    ) -> list[Iterator[Candidates]]:
        return [self._near(target, first, where=where, exact=exact) for target in targets]

    def _near(
        self, target: Target, first: int, *, where: Filter, exact: bool
    ) -> Iterator[Candidates]:
        weighted = target.metric.weights is not None
        vector = target.metric.query(target.direction)
        # without weights, the nearest are found; with them, they are among many: the index knows
        # the lengths of rows without weights alone
        limit = first * WEIGHTED_FACTOR if weighted else first
        if weighted and exact:
            limit = max(1, len(self))
        while True:
            table = self._nearest(vector, limit, where=where, exact=exact)
            yield Candidates(
                table.drop_columns(["embedding"]),
                vectors_of(table, self.size),
                len(table) < limit,
            )
            limit *= 4

    def _sample(self, count: int) -> np.ndarray:
        with self._read():
            rows = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist()
            table = self._table.take_offsets(rows).select(["embedding"]).to_arrow()
        return vectors_of(table, self.size)

    def _nearest(self, vector: np.ndarray, limit: int, *, where: Filter, exact: bool) -> pa.Table:
        query = (
            self._table.search(vector.astype(np.float32), vector_column_name="embedding")
            .distance_type("cosine")
            .select(list(self._columns))
            .limit(limit)
        )
        query = self._limited(query, where)
        with self._read():
            return with_later(self._run(query, limit, exact=exact), TYPES)

    def _run(self, query: Any, limit: int, *, exact: bool) -> pa.Table:
        """Rows of a query by similarity."""
        if exact:
            return query.bypass_vector_index().to_arrow()
        table = query.nprobes(PROBES).refine_factor(REFINE).to_arrow()
        if len(table) == limit or not self.approximate:
            return table
        # search all partitions: few rows pass the filter, or many are requested
        return query.maximum_nprobes(0).to_arrow()


def _link(folder: Path, new: Path) -> None:
    """Fill a new folder with hard links to the files of another one, or copies where it must be."""
    for path in sorted(folder.rglob("*")):
        beside = new / path.relative_to(folder)
        if path.is_dir():
            beside.mkdir()
            continue
        try:
            os.link(path, beside)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.copy2(path, beside)


@contextlib.contextmanager
def _alone(place: str | Path) -> Iterator[None]:
    """Hold an index in a folder against a second change; an object store has no locks.

    LanceDB's RuntimeError about a full disk becomes an OSError, one about a file that was cut short
    a RequestError.
    """
    lock = contextlib.nullcontext() if is_uri(place) else file_lock(Path(place), "index job")
    with lock:
        try:
            yield
        except RuntimeError as error:
            found = re.search(r"\(os error (\d+)\)", str(error))
            if not found and "LanceError(IO)" in str(error):
                raise RequestError(
                    f"{place} could not be written whole: make room, or raise the limit of file "
                    "sizes (ulimit -f), and run this again."
                ) from error
            if not found:
                raise
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(place)) from error


def _connect_module() -> Any:
    # else it warns on standard error of every new table that there was none before
    os.environ.setdefault("LANCEDB_LOG", "error")
    return need("lancedb")


@contextlib.contextmanager
def _reached(what: str, place: str | Path, advice: str) -> Iterator[None]:
    """Turn errors of LanceDB, which are of many kinds, into requests that make no sense."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # a panic in Rust has a class of its own
        store = "the address and the credentials (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on)"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise RequestError(
            f"{what} ({reason}): {advice}{f', or check {store}' if is_uri(place) else ''}."
        ) from error


def _create(uri: str, stored: Stored, ann_rows: int) -> Any:
    """Write a table in one commit, in place of one of ours if there is one."""
    facts: dict[str, Any] = {"format": 1, "model": stored.identity, "size": stored.size}
    facts |= {"ann_rows": ann_rows, "slices": slices_of(stored.metadata, stored.size)}
    schema = _with_digests(stored.nothing()).schema.with_metadata(
        {FACTS: json.dumps(facts).encode()}
    )
    with _reached(
        f"an index cannot be written to {uri}", uri, "check the place, and that you may write there"
    ):
        connection = _connect_module().connect(uri)
        _require_ours(connection, uri)
        table = connection.create_table(
            NAME, data=_reader(stored, schema), schema=schema, mode="overwrite"
        )
    _tend(table, ann_rows, before=0)
    return table


def _require_ours(connection: Any, uri: str) -> None:
    """Refuse to write over a table of that name that is no index of embeddings."""
    try:
        table = connection.open_table(NAME)
    except (OSError, ValueError, RuntimeError):
        return  # there is none, or the place cannot be reached, which writing will say
    Index(table, name=uri)


def _reader(
    stored: Stored, schema: pa.Schema, only: Set[str] | None = None
) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(schema, _batches(stored, schema, only))


def _batches(stored: Stored, schema: pa.Schema, only: Set[str] | None) -> Iterator[pa.RecordBatch]:
    for part in stored.parts():
        table = _with_digests(part)
        if only is not None:
            table = table.filter(
                pa.array([digest in only for digest in table["digest"].to_pylist()], pa.bool_())
            )
        yield from table.cast(schema).to_batches()


def _tend(table: Any, ann_rows: int, *, before: int) -> None:
    """Take new rows into the indices.

    Make those once there are enough rows, and learn again when many more than `before` have come.
    """
    from lancedb.index import BTree, IvfSq

    table.optimize()
    rows = table.count_rows()
    if rows < ann_rows:
        return
    if "path" not in _indexed(table):
        table.create_index("path", config=BTree())
    if (
        "embedding" not in _indexed(table)
        or math.log(rows / ann_rows, GROWTH) // 1 > math.log(max(before, 1) / ann_rows, GROWTH) // 1
    ):
        table.create_index(
            "embedding",
            config=IvfSq(distance_type="cosine", num_partitions=max(1, rows // PARTITION_ROWS)),
        )


def _indexed(table: Any) -> set[str]:
    """Columns that have an index."""
    return {column for index in table.list_indices() for column in index.columns}


def _with_digests(table: pa.Table) -> pa.Table:
    return table.append_column("digest", pa.array(digests(table), pa.string()))


def _digests_of(stored: Stored) -> dict[str, set[str]]:
    """Digests of the rows of every file of a table; all vectors are checked."""
    found: dict[str, set[str]] = {}
    for part in stored.parts():
        _by_path(part["path"].to_pylist(), digests(part), found)
    return found


def _by_path(
    paths: Iterable[str], values: Iterable[str], found: dict[str, set[str]]
) -> dict[str, set[str]]:
    for path, value in zip(paths, values):
        found.setdefault(path, set()).add(value)
    return found
