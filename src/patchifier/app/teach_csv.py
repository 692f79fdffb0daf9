"""Train a head on a table of vectors and a CSV of labels."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from patchifier import heads, hub, weights
from patchifier.app.collection import Collection
from patchifier.app.teach import GROUPING, Taught, shared, teach
from patchifier.config import RequestError
from patchifier.heads import MOST_NAMES
from patchifier.library import labels as labels_csv
from patchifier.library.models import made_by

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
    joined : tuple of str
        Names of groups that are one group, for they differ in case or spaces alone: a text for each
        such group.
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
    joined: tuple[str, ...]
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
        song has two labels or two groups, no song is in the table, the table has a row for each
        window, or the model did not make it or is one that a head cannot name.

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
    require_whole_files(collection)
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
    songs = [place for some in enough.values() for place in some]
    groups, grouped_by, joined = _groups(songs, rows, collection, group)
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
        sum(not groups[place] for place in songs) if groups else 0,
        joined,
        shared(enough, tags),
        tuple(label for label in by_label if label not in enough),
        skipped,
    )


def require_whole_files(collection: Collection) -> None:
    """Refuse a table of windows: their mean is not the vector from which a head predicts."""
    table = collection.table
    if table and (table.metadata.get("window_s") or len(table) > len(collection)):
        raise RequestError(
            f"{collection.source} has a row for each window, expected one for each file, as "
            "'patchifier predict' computes it: embed without --window_s, into another table."
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
        place = collection.by_path[path]
        found[place] = _one(found[place], row, source) if place in found else row
    if skipped and not found:
        raise RequestError(
            f"{source}: none of its {len(skipped)} paths is in the table, whose first file is "
            f"{collection.paths[0]}: write whole paths, or begin at the folder of the music. The "
            f"first, {skipped[0][0]}: {skipped[0][1]}"
        )
    return found, tuple(skipped)


def _one(first: labels_csv.Row, second: labels_csv.Row, source: str | Path) -> labels_csv.Row:
    """Two rows of one song as one; refused if their labels or groups differ."""
    differ = []
    if first.label != second.label:
        differ = ["labels", first.label, second.label]
    elif first.group and second.group and _folded(first.group) != _folded(second.group):
        differ = ["groups", first.group, second.group]
    if differ:
        what, before, after = differ
        raise RequestError(
            f"{source}: {second.path} has the {what} {before!r} and {after!r}, expected one: keep "
            "one of the rows."
        )
    return first if first.group else second


def _groups(
    songs: Sequence[int], rows: dict[int, labels_csv.Row], collection: Collection, tag: str
) -> tuple[list[str] | None, str, tuple[str, ...]]:
    """Group of each song of the library, what groups them, and names that are one group.

    The group is None where none of the songs that are taught has one.
    """
    named = {place: rows[place].group for place in songs}
    if tag:
        values = collection.column(tag)
        named = {place: str(values[place] or "").strip() for place in songs}
    groups = [""] * len(collection)
    spellings = dict[str, dict[str, None]]()
    for place, name in named.items():
        groups[place] = _folded(name)
        spellings.setdefault(groups[place], {})[name] = None
    if not any(groups) and tag:
        raise RequestError(
            f"--group is {tag}, but none of the {len(songs)} labelled songs has that tag: leave "
            "it out, or add a column 'group' to the CSV."
        )
    if not any(groups):
        return None, "", ()
    joined = tuple(", ".join(map(repr, same)) for same in spellings.values() if len(same) > 1)
    return groups, ALIKE[tag] if tag else COLUMN, joined


def _folded(group: str) -> str:
    """Name of a group without what people write in several ways: case, spaces, composed accents."""
    return " ".join(unicodedata.normalize("NFC", group).casefold().split())


def _count(places: Sequence[int], groups: Sequence[str]) -> int:
    """Number of groups of some songs; a song without one is alone."""
    return len({groups[place] or place for place in places})


def _model(collection: Collection, model: str) -> tuple[str, str]:
    """Name and identity of the model that made the table."""
    identity = collection.table.identity
    _require_nameable(model)
    if found := made_by(identity, model):
        name, _ = found
        return name if name in weights.names() else os.path.abspath(name), identity
    what = f"--model {model}" if model else "no model of the package"
    raise RequestError(
        f"{what} made {collection.source}, or it had other settings: name the one that did with "
        "--model."
    )


def _require_nameable(model: str) -> None:
    """Refuse what the file of a head cannot name as its model."""
    place = weights.find_head(model) or model
    if model and heads.is_head(place):
        raise RequestError(
            f"--model is {model}, a head, expected the model that made the table: "
            f"{heads.read(place).model}."
        )
    if hub.is_name(model):
        raise RequestError(
            f"--model is {model}, but a head names a folder of this computer: download the model, "
            "and give its folder."
        )
