"""Commands about a table of vectors: similar, path, mix, duplicates, index."""

import contextlib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from patchifier.cli.command import Outcome
from patchifier.cli.opened import OpenedTable, conditions_of, require_count, require_outputs

if TYPE_CHECKING:
    from patchifier.library.search import Filter, Index, Table


def similar(
    table: str,
    *,
    to: tuple[str, ...],
    not_: tuple[str, ...] = (),
    model: str = "",
    count: int = 10,
    weights: list[str] | None = None,
    max_per_artist: int = 0,
    max_per_album: int = 0,
    discount_hubs: bool = False,
    exact: bool = False,
    artist: str = "",
    title: str = "",
    album: str = "",
    genre: str = "",
    below: str = "",
    m3u: str = "",
    out: str = "",
) -> Outcome:
    """List the files most similar to a file, or to several.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    to : str
        A file, in the table or outside; --to again for more of them.
    not_ : str
        A file that they should not sound like; --not again for more.
    model : str
        For a file outside and for --weights: the model that made the table; patchifier-base by
        default.
    count : int
        Number of files to list.
    weights : list of str
        NAME=FACTOR for slices of the vectors, such as 'harmony=2 pulse=0.5'; 1 by default.
    max_per_artist, max_per_album : int
        Most files of one artist, of one album; 0 is no limit.
    discount_hubs : bool
        Rank files lower that are near to everything.
    exact : bool
        Compare with every row, also where an approximate index exists.
    artist, title, album, genre : str
        Only rows with this tag, compared letter by letter.
    below : str
        Only files whose path begins with this.
    m3u : str
        NAME.m3u8: write them as a playlist.
    out : str
        NAME.csv or NAME.jsonl: write them as a table.
    """
    require_outputs(m3u, out)
    here = OpenedTable.of(table, model)
    conditions = {"artist": artist, "title": title, "album": album, "genre": genre, "below": below}
    found = here.store.similar(
        here.queries(to, "--to"),
        require_count(count),
        unlike=here.queries(not_, "--not"),
        where=conditions_of(**conditions),
        weights=here.weights(weights or []),
        max_per_artist=max_per_artist,
        max_per_album=max_per_album,
        discount_hubs=discount_hubs,
        exact=exact,
    )
    return here.outcome(found, conditions, m3u=m3u, out=out)


def path(
    table: str,
    *,
    from_: str,
    to: str,
    via: tuple[str, ...] = (),
    model: str = "",
    count: int = 10,
    weights: list[str] | None = None,
    max_per_artist: int = 0,
    max_per_album: int = 0,
    exact: bool = False,
    artist: str = "",
    title: str = "",
    album: str = "",
    genre: str = "",
    below: str = "",
    m3u: str = "",
    out: str = "",
) -> Outcome:
    """List files that lead from one to another in small steps.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    from_, to : str
        The first file and the last. For a file outside the table it is the nearest in it.
    via : str
        A file on the way; --via again for more, in their order.
    model : str
        As for 'similar'.
    count : int
        Number of files, the first and the last included.
    weights : list of str
        As for 'similar'.
    max_per_artist, max_per_album : int
        Most files of one artist, of one album; 0 is no limit.
    exact : bool
        Compare with every row, also where an approximate index exists.
    artist, title, album, genre : str
        Only rows with this tag, compared letter by letter.
    below : str
        Only files whose path begins with this.
    m3u : str
        NAME.m3u8: write them as a playlist.
    out : str
        NAME.csv or NAME.jsonl: write them as a table.
    """
    require_outputs(m3u, out)
    here = OpenedTable.of(table, model)
    conditions = {"artist": artist, "title": title, "album": album, "genre": genre, "below": below}
    found = here.store.path(
        here.query(from_, "--from"),
        here.query(to, "--to"),
        require_count(count),
        waypoints=here.queries(via, "--via"),
        where=conditions_of(**conditions),
        weights=here.weights(weights or []),
        max_per_artist=max_per_artist,
        max_per_album=max_per_album,
        exact=exact,
    )
    return here.outcome(found, conditions, m3u=m3u, out=out)


def mix(
    table: str,
    *,
    seeds: list[str],
    not_: tuple[str, ...] = (),
    model: str = "",
    count: int = 25,
    drift: float = 0.5,
    weights: list[str] | None = None,
    artist_gap: int = 0,
    max_per_artist: int = 0,
    max_per_album: int = 0,
    discount_hubs: bool = False,
    exact: bool = False,
    artist: str = "",
    title: str = "",
    album: str = "",
    genre: str = "",
    below: str = "",
    m3u: str = "",
    out: str = "",
) -> Outcome:
    """Make a playlist that begins with some files and goes on from neighbour to neighbour.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    seeds : list of str
        The first files, in the table; or files outside, to begin near.
    not_ : str
        A file that they should not sound like; --not again for more.
    model : str
        As for 'similar'.
    count : int
        Number of files, the seeds included.
    drift : float
        From 0, every file near the seeds, to 1, every file near the one before.
    weights : list of str
        As for 'similar'.
    artist_gap : int
        How many files lie at least between two of the same artist.
    max_per_artist, max_per_album : int
        Most files of one artist, of one album; 0 is no limit.
    discount_hubs : bool
        Rank files lower that are near to everything.
    exact : bool
        Compare with every row, also where an approximate index exists.
    artist, title, album, genre : str
        Only rows with this tag, compared letter by letter.
    below : str
        Only files whose path begins with this.
    m3u : str
        NAME.m3u8: write them as a playlist.
    out : str
        NAME.csv or NAME.jsonl: write them as a table.
    """
    require_outputs(m3u, out)
    here = OpenedTable.of(table, model)
    conditions = {"artist": artist, "title": title, "album": album, "genre": genre, "below": below}
    found = here.store.mix(
        here.queries(seeds, "--seeds"),
        require_count(count),
        unlike=here.queries(not_, "--not"),
        where=conditions_of(**conditions),
        weights=here.weights(weights or []),
        drift=drift,
        artist_gap=artist_gap,
        max_per_artist=max_per_artist,
        max_per_album=max_per_album,
        discount_hubs=discount_hubs,
        exact=exact,
    )
    return here.outcome(found, conditions, m3u=m3u, out=out)


def duplicates(
    table: str,
    *,
    threshold: float = 0.95,
    artist: str = "",
    title: str = "",
    album: str = "",
    genre: str = "",
    below: str = "",
) -> Outcome:
    """List pairs of files that sound nearly the same.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    threshold : float
        Least cosine of a pair.
    artist, title, album, genre : str
        Only rows with this tag, compared letter by letter.
    below : str
        Only files whose path begins with this.
    """
    from patchifier.library import search

    store = search.load(table)
    where = conditions_of(below=below, artist=artist, title=title, album=album, genre=genre)
    pairs = store.near_duplicates(threshold, where=where)
    lines = [f"{pair.score:.4f}  {pair.first.path}  {pair.second.path}" for pair in pairs]
    text = "\n".join(lines) or f"no two files reach {threshold}.{_nearest(store, where)}"
    return Outcome([{"score": pair.score} | asdict(pair) for pair in pairs], text)


def _nearest(store: "Table | Index", where: "Filter") -> str:
    """Sentence about the nearest pair, and which threshold lists it."""
    if (pair := store.nearest_pair(where=where)) is None:
        return ""
    names = f"{pair.first.path} and {pair.second.path}"
    lists = f": --threshold {math.floor(100 * pair.score) / 100} lists them" * (pair.score >= 0.01)
    return f" The nearest are {names}, with a cosine of {pair.score:.4f}{lists}."


def index(table: str, *, out: str) -> Outcome:
    """Make or update an index of a table, for libraries of a million rows.

    A damaged index is made again.

    Parameters
    ----------
    table : str
        From 'patchifier embed'.
    out : str
        Folder of the index, or a place on an object store.
    """
    from patchifier.library import search

    changes: dict[str, Any] | None = None
    if search.is_index(out):
        with contextlib.suppress(search.UnreadableIndexError):
            changes = asdict(search.Index.open(out).update(table))
    if changes is None:
        search.Index.build(table, out)
        changes = {"built": True}
    listed = ", ".join(f"{name} {value}" for name, value in changes.items())
    return Outcome({"index": out, **changes}, f"index in {out}: {listed}")
