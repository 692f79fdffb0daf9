"""Train a head on a table of vectors and a CSV of labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from patchifier import weights
from patchifier.app.collection import Collection
from patchifier.app.teach import GROUPING, Taught, shared, teach
from patchifier.config import RequestError
from patchifier.embed import load
from patchifier.heads import MOST_NAMES
from patchifier.library import labels as labels_csv

ALIKE = {"artist": "artist", "album": "album", "albumartist": "artist of the album"}
COLUMN = "group"  # of the CSV


@dataclass(frozen=True)
class TaughtByCsv:
    """A head that a CSV has taught.

    Attributes
    ----------
    taught : Taught
        The head and its cross-validation.
    songs : dict of str to int
        Number of songs of each label.
    grouped_by : str
        "group", the column of the CSV, or a tag; empty where each song stands alone.
    groups : dict of str to int
        Number of groups of each label; a song without one counts as one. Empty where each song
        stands alone.
    ungrouped : int
        Number of songs without a group, where others have one; each stands alone.
    shared : dict of str to (int, str)
        Where each song stands alone, as :func:`patchifier.app.teach.shared`; else empty.
    too_few : tuple of str
        Labels that were left out, because they have one song.
    skipped : tuple of (path, reason)
        Rows of the CSV whose file is not in the table.
    """

    taught: Taught
    songs: dict[str, int]
    grouped_by: str
    groups: dict[str, int]
    ungrouped: int
    shared: dict[str, tuple[int, str]]
    too_few: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def teach_csv(
    table: str | Path, labels: str | Path, *, group: str = "", model: str = ""
) -> TaughtByCsv:
    r"""Train a head on the stored vectors of the songs that a CSV labels.

    Parameters
    ----------
    table : str or Path
        From ``patchifier embed``.
    labels : str or Path
        CSV with the columns path, and label or target; a column group may be missing. Of the file
        that the page saves, the column given teaches. Paths are found as by
        :class:`patchifier.library.labels.Finder`. Rows without a label are ignored.
    group : str
        Songs with the same value are held out together: "artist", "album" or "albumartist", a tag
        of the table. By default the column group of the CSV, if it has one.
    model : str
        That made the table; the models of the package are tried by default.

    Returns
    -------
    TaughtByCsv

    Raises
    ------
    RequestError
        As of :func:`patchifier.app.teach.teach` and :func:`patchifier.library.labels.read`; if a
        song has two labels, no song is in the table, or the model did not make it.

    Examples
    --------
    >>> rows = ["path,label", "music/one.ogg,calm", "music/two.ogg,loud"]
    >>> _ = Path("moods.csv").write_text("\n".join(rows))
    >>> teach_csv("music.parquet", "moods.csv")
    Traceback (most recent call last):
    patchifier.config.RequestError: moods.csv: 0 labels have two songs or more, expected 2 ...
    """
    if group and group not in ALIKE:
        raise RequestError(f"--group is {group!r}, expected {', '.join(ALIKE)}.")
    collection = Collection.open(Path(table))
    rows, skipped = _found(labels_csv.read(labels, own=True), collection, labels)
    by_label: dict[str, list[int]] = {}
    for place, row in rows.items():
        by_label.setdefault(row.label, []).append(place)
    enough = {label: places for label, places in by_label.items() if len(places) > 1}
    if len(enough) < 2:
        raise RequestError(
            f"{labels}: {len(enough)} labels have two songs or more, expected 2 such labels: label "
            "more songs. (Numbers, and several labels of a song, are taught by 'patchifier "
            "compare' and 'finetune'.)"
        )
    groups, grouped_by = _groups(rows, collection, group)
    name, identity = _model(collection, model)
    taught = teach(
        collection.directions,
        enough,
        identity=identity,
        model=name,
        groups=groups,
        most=MOST_NAMES,
    )
    tags = {} if groups else {tag: collection.column(tag) for tag in GROUPING}
    return TaughtByCsv(
        taught,
        {label: len(places) for label, places in enough.items()},
        grouped_by,
        {label: _count(places, groups) for label, places in enough.items()} if groups else {},
        sum(not groups[place] for some in enough.values() for place in some) if groups else 0,
        shared(enough, tags),
        tuple(label for label in by_label if label not in enough),
        skipped,
    )


def _found(
    rows: Sequence[labels_csv.Row], collection: Collection, source: str | Path
) -> tuple[dict[int, labels_csv.Row], tuple[tuple[str, str], ...]]:
    """Labelled rows by the place of their song, and rows of no song."""
    finder = labels_csv.Finder(collection.paths, source)
    found, skipped = dict[int, labels_csv.Row](), list[tuple[str, str]]()
    for row in rows:
        path = finder.find(row.path)
        if not row.label:
            continue
        if path is None:
            skipped.append((row.path, finder.why(row.path)))
            continue
        before = found.setdefault(collection.by_path[path], row)
        if before.label != row.label:
            raise RequestError(
                f"{source}: {row.path} has the labels {before.label!r} and {row.label!r}, expected "
                "one: keep one of the rows."
            )
    if skipped and not found:
        raise RequestError(
            f"{source}: none of its {len(skipped)} paths is in the table, whose first file is "
            f"{collection.paths[0]}: write whole paths, or begin at the folder of the music. The "
            f"first, {skipped[0][0]}: {skipped[0][1]}"
        )
    return found, tuple(skipped)


def _groups(
    rows: dict[int, labels_csv.Row], collection: Collection, tag: str
) -> tuple[list[str] | None, str]:
    """Group of each song of the library, and what groups them; None if nothing does."""
    if tag:
        groups = [str(value or "") for value in collection.column(tag)]
        if not any(groups[place] for place in rows):
            raise RequestError(
                f"--group is {tag}, but none of the {len(rows)} labelled songs has that tag: leave "
                "it out, or add a column 'group' to the CSV."
            )
        return groups, ALIKE[tag]
    if not any(row.group for row in rows.values()):
        return None, ""
    groups = [""] * len(collection)
    for place, row in rows.items():
        groups[place] = row.group
    return groups, COLUMN


def _count(places: Sequence[int], groups: Sequence[str]) -> int:
    """Number of groups of some songs; a song without one is alone."""
    return len({groups[place] or place for place in places})


def _model(collection: Collection, model: str) -> tuple[str, str]:
    """Name and identity of the model that made the table."""
    assert collection.table is not None
    identity = collection.table.identity
    for name in [model] if model else weights.names():
        if load(name).identity == identity:
            return name if name in weights.names() or "://" in name else os.path.abspath(
                name
            ), identity
    what = f"--model {model}" if model else "no model of the package"
    raise RequestError(
        f"{what} made {collection.source}, or it had other settings: name the one that did with "
        "--model."
    )
