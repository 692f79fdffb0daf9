"""Commands about a table of vectors: similar, path, mix, duplicates, index."""

import contextlib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from patchifier.cli.command import Outcome
from patchifier.cli.opened import (
    Conditions,
    OpenedTable,
    Outputs,
    Ranking,
    require_outputs,
    wide_step,
)
from patchifier.cli.progress import progress

if TYPE_CHECKING:
    from patchifier.library.search import Filter, Index, Table
    from patchifier.library.search.duplicates import Duplicate

UNCHECKED_COSINE = 0.95  # of pairs that are listed by their vectors alone; see docs/search.md


def similar(
    table: str,
    *,
    to: tuple[str, ...],
    not_: tuple[str, ...] = (),
    model: str = "",
    count: int = 10,
    ranking: Ranking,
    discount_hubs: bool = False,
    conditions: Conditions,
    outputs: Outputs,
) -> Outcome:
    """List the files most similar to a file, or to several.

    A line is the similarity, the file, its artist and its title. In a table of windows the part of
    the file that was compared stands behind the file. The similarity is a cosine: 1 is the same, 0
    is unrelated. A sentence behind the list, on standard error, says if nothing is close. With
    --not the order follows the difference of both similarities, and the similarity to the files of
    --to is printed.

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
    discount_hubs : bool
        Rank files lower that are near to everything.
    ranking, conditions, outputs
        Flags of their fields.

    Examples
    --------
    The ten files that sound most like a song:
        $ patchifier similar music.parquet --to song.mp3

    Like two songs, unlike a third, as a playlist:
        $ patchifier similar music.parquet --to a.mp3 --to b.mp3 --not c.mp3 --m3u list.m3u8
    """
    from patchifier.library.search.closeness import not_close

    here = OpenedTable.of(table, model)
    queries = here.queries(to, "--to")
    options = here.options(ranking, conditions)
    found = here.store.similar(
        queries,
        count,
        unlike=here.queries(not_, "--not"),
        discount_hubs=discount_hubs,
        **options,
    )
    judged = {name: options[name] for name in ("weights", "where")}
    note = not_close(here.store, queries, found, **judged) if found else ""
    return here.outcome(found, conditions, outputs, count=count, notes=[note])


def path(
    table: str,
    *,
    from_: str,
    to: str,
    via: tuple[str, ...] = (),
    model: str = "",
    count: int = 10,
    ranking: Ranking,
    conditions: Conditions,
    outputs: Outputs,
) -> Outcome:
    """List files that lead from one to another in small steps.

    A line is the similarity to the file before it (a cosine: 1 is the same, 0 is unrelated), the
    file, its artist and its title. In a table of windows the part of the file that was compared
    stands behind the file.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    from_ : str
        The first file. For a file outside the table, the nearest one in it.
    to : str
        The last file, likewise.
    via : str
        A file on the way; --via again for more, in their order.
    model : str
        As for 'similar'.
    count : int
        Number of files, the first and the last included.
    ranking, conditions, outputs
        Flags of their fields.

    Examples
    --------
    Ten files from a calm song to a loud one:
        $ patchifier path music.parquet --from calm.mp3 --to loud.mp3

    The same by way of a third, as a playlist:
        $ patchifier path music.parquet --from calm.mp3 --to loud.mp3 --via b.mp3 --m3u path.m3u8
    """
    here = OpenedTable.of(table, model)
    files = [from_, *via, to]
    stops = [here.query(from_, "--from"), *here.queries(via, "--via"), here.query(to, "--to")]
    options = here.options(ranking, conditions)
    found = here.store.path(stops[0], stops[-1], count, waypoints=stops[1:-1], **options)
    places = [(found[:1], "begins at"), *[(found[1:-1], "leads through")] * len(via)]
    notes = [
        here.stand_in(file, stop, rows, does, options["weights"])
        for file, stop, (rows, does) in zip(
            files, stops, [*places, (found[-1:], "ends at")], strict=True
        )
    ]
    notes.append(wide_step(found[1:], f"of {len(found)} files between these"))
    return here.outcome(found, conditions, outputs, count=count, n_given=len(stops), notes=notes)


def mix(
    table: str,
    *,
    seeds: list[str],
    not_: tuple[str, ...] = (),
    model: str = "",
    count: int = 25,
    drift: float = 0.5,
    artist_gap: int = 0,
    ranking: Ranking,
    discount_hubs: bool = False,
    conditions: Conditions,
    outputs: Outputs,
) -> Outcome:
    """Make a playlist that begins with some files and goes on from neighbour to neighbour.

    A line is the similarity to the file before it (a cosine: 1 is the same, 0 is unrelated), the
    file, its artist and its title. In a table of windows the part of the file that was compared
    stands behind the file.

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
    artist_gap : int
        How many files lie at least between two of the same artist.
    discount_hubs : bool
        Rank files lower that are near to everything.
    ranking, conditions, outputs
        Flags of their fields.

    Examples
    --------
    A playlist of 25 files that begins with one:
        $ patchifier mix music.parquet --seeds song.mp3 --m3u mix.m3u8

    Stay near two songs, with two files between songs of the same artist:
        $ patchifier mix music.parquet --seeds a.mp3 b.mp3 --drift 0.2 --artist_gap 2
    """
    here = OpenedTable.of(table, model)
    first = here.queries(seeds, "--seeds")
    found = here.store.mix(
        first,
        count,
        unlike=here.queries(not_, "--not"),
        drift=drift,
        artist_gap=artist_gap,
        discount_hubs=discount_hubs,
        **here.options(ranking, conditions),
    )
    n_inside = len({seed for seed in first if isinstance(seed, str)})
    note = wide_step(found[n_inside:], "on from these")
    return here.outcome(found, conditions, outputs, count=count, n_given=len(seeds), notes=[note])


def duplicates(
    table: str,
    *,
    threshold: float = 0.0,
    unchecked: bool = False,
    workers: int = 0,
    conditions: Conditions,
    out: str = "",
) -> Outcome:
    """List files with the same recording, and nearly the same music.

    The files are decoded and their audio fingerprints compared. These are kept in TABLE.prints.
    A line is the similarity of the vectors (a cosine), what was found, and both files. The audio
    fingerprints decide what was found, so a pair of a low similarity may be the same recording.
    --json also gives the share of bits that agree in the fingerprints.

    Parameters
    ----------
    table : str
        From 'patchifier embed', or 'patchifier index'.
    threshold : float
        Least cosine of a pair that is compared; 0.4 by default, 0.95 with --unchecked.
    unchecked : bool
        List all pairs of vectors that reach the threshold, without the files.
    workers : int
        Number of processes; 0 is one for each core.
    conditions
        Flags of its fields.
    out : str
        NAME.csv or NAME.jsonl: write the pairs as a table.

    Examples
    --------
    Files with the same recording, confirmed by audio fingerprints:
        $ patchifier duplicates music.parquet

    Pairs of close vectors, without a look at the files:
        $ patchifier duplicates music.parquet --unchecked --threshold 0.97
    """
    from patchifier.library import export, search
    from patchifier.library.search import duplicates

    require_outputs("", out)
    store = search.load(table)
    where = conditions.where(store)
    least = threshold or (UNCHECKED_COSINE if unchecked else duplicates.CANDIDATE)
    if unchecked:
        pairs = store.near_duplicates(least, where=where)
        found = [duplicates.not_checked(pair) for pair in pairs]
    else:
        options: dict[str, Any] = {"workers": workers or None, "progress": progress("duplicates")}
        found = list(duplicates.duplicates(store, least, where=where, **options))
    if out:
        export.write_pairs(found, out)
    text = "\n".join(map(_line, found))
    if not found:
        what = "reach" if unchecked else "are the same recording, of those that reach"
        text = f"no two files {what} {least}.{_nearest(store, where)}"
    return Outcome([asdict(pair) for pair in found], text, int(any(pair.reason for pair in found)))


def _line(pair: "Duplicate") -> str:
    reason = f"  ({pair.reason})" if pair.reason else ""
    return f"{pair.score:.4f}  {pair.kind}  {pair.first.path}  {pair.second.path}{reason}"


def _nearest(store: "Table | Index", where: "Filter") -> str:
    """Sentence about the nearest pair, and which threshold lists it."""
    if (pair := store.nearest_pair(where=where)) is None:
        return ""
    names = f"{pair.first.path} and {pair.second.path}"
    lists = f": --unchecked --threshold {math.floor(100 * pair.score) / 100} lists them"
    lists *= pair.score >= 0.01
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

    Examples
    --------
    An index of a table; search it like the table:
        $ patchifier index music.parquet --out music.index
        $ patchifier similar music.index --to song.mp3

    The same on an object store:
        $ patchifier index music.parquet --out s3://bucket/music
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
