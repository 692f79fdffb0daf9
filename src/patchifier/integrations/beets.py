"""A beets library and its table of embeddings; `beetsplug.patchifier` makes commands of this.

Nothing here imports beets: an item is anything with a path in bytes.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from patchifier.config import RequestError
from patchifier.embed import Embedder
from patchifier.io import Progress, silent
from patchifier.library import search
from patchifier.library.build import embed_library
from patchifier.library.job import Embedded
from patchifier.library.search import Filter


class Item(Protocol):
    """What is needed of an item of a beets library."""

    path: bytes


Track = TypeVar("Track", bound=Item)


class Neighbour(NamedTuple, Generic[Track]):
    """An item, and the cosine of its nearest section with the query.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> one, two = SimpleNamespace(path=b"music/one.ogg"), SimpleNamespace(path=b"music/two.ogg")
    >>> (found,) = similar([one, two], [one], "music.parquet")
    >>> found.item.path, found.similarity < 1
    (b'music/two.ogg', True)
    """

    item: Track
    similarity: float


class SoundPair(NamedTuple, Generic[Track]):
    """Two items that sound nearly the same, and the cosine of their nearest sections.

    Examples
    --------
    >>> pair = SoundPair("one", "two", 0.99)
    >>> pair.first, pair.similarity
    ('one', 0.99)
    """

    first: Track
    second: Track
    similarity: float


def embed(
    items: Iterable[Item],
    table: str | Path,
    *,
    embedder: Embedder | str | Path | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Embedded:
    """Bring the table of a beets library up to date.

    Parameters
    ----------
    items : iterable of Item
        The whole library; rows of files that are no longer in it are dropped.
    table : str or Path
        As `out` of :func:`patchifier.library.embed_library`.
    embedder, workers, progress
        As for :func:`patchifier.library.embed_library`.

    Returns
    -------
    Embedded

    Raises
    ------
    RequestError
        As for :func:`patchifier.library.embed_library`; or if no file of the library exists, as
        when its drive is not mounted.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> done = embed([SimpleNamespace(path=b"music/one.ogg")], "beets.parquet")
    >>> done.files, done.embedded
    (1, 1)
    """
    paths = [os.fsdecode(item.path) for item in items]
    if not paths:
        raise RequestError("the beets library is empty: import music first (beet import).")
    if not any(map(os.path.exists, paths)):
        raise RequestError(
            f"none of the {len(paths)} files of the beets library exists, the first {paths[0]}: "
            "mount its drive, or mend the library (beet update)."
        )
    return embed_library(
        paths,
        table,
        embedder=embedder,
        changed=True,
        drop_unlisted=True,
        workers=workers,
        progress=progress,
    )


def similar(
    library: Iterable[Track], seeds: Sequence[Item], table: str | Path, *, count: int = 10
) -> list[Neighbour[Track]]:
    """Items of a library that sound like some of them.

    Parameters
    ----------
    library : iterable of Item
        Every item that may be a result.
    seeds : sequence of Item
        Items to search with; none of them is a result.
    table : str or Path
        The table of the library, or an index of it.
    count : int
        How many, at least 1.

    Returns
    -------
    list of Neighbour
        By similarity, the highest first.

    Raises
    ------
    RequestError
        If there is no seed, or one is not in the table.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> one, two = SimpleNamespace(path=b"music/one.ogg"), SimpleNamespace(path=b"music/two.ogg")
    >>> [found.item.path for found in similar([one, two], [one], "music.parquet")]
    [b'music/two.ogg']
    """
    if not seeds:
        raise RequestError("no item matches the query: expected at least one to search with.")
    store, items = _open(table), _by_path(library)
    found = store.similar([_real(seed) for seed in seeds], count, where=_where(store, items))
    return [Neighbour(items[row.path], row.score or 0.0) for row in found]


def duplicates(
    library: Iterable[Track], table: str | Path, *, threshold: float = 0.95
) -> list[SoundPair[Track]]:
    """Pairs of items whose vectors are nearly the same.

    Parameters
    ----------
    library : iterable of Item
        Every item that may be one of a pair.
    table : str or Path
        The table of the library, or an index of it.
    threshold : float
        The least cosine, above 0 and at most 1.

    Returns
    -------
    list of SoundPair
        By similarity, the highest first.

    Examples
    --------
    >>> import shutil
    >>> from types import SimpleNamespace
    >>> _ = shutil.copy("music/one.ogg", "copy.ogg")
    >>> library = [SimpleNamespace(path=path) for path in (b"music/one.ogg", b"copy.ogg")]
    >>> _ = embed(library, "copy.parquet", workers=1)
    >>> [(pair.first.path, pair.second.path) for pair in duplicates(library, "copy.parquet")]
    [(b'copy.ogg', b'music/one.ogg')]
    """
    store, items = _open(table), _by_path(library)
    pairs = store.near_duplicates(threshold, where=_where(store, items))
    return [
        SoundPair(items[pair.first.path], items[pair.second.path], pair.score) for pair in pairs
    ]


def _open(table: str | Path) -> search.Table | search.Index:
    """Open a table or an index; refused with the command that makes it if there is none."""
    if "://" not in str(table) and not Path(table).exists():
        raise RequestError(f"there is no table {table} yet: make it with 'beet patchifier'.")
    return search.load(table)


def _by_path(library: Iterable[Track]) -> dict[str, Track]:
    return {_real(item): item for item in library}


def _real(item: Item) -> str:
    """Path of an item as a table has it."""
    return os.path.realpath(os.fsdecode(item.path))


def _where(store: search.Table | search.Index, items: dict[str, Track]) -> Filter:
    """Leave out rows of files that are not in the library."""
    paths = {row.path for row in store.filter(Filter())}
    return Filter(without_paths=tuple(sorted(paths - items.keys())))
