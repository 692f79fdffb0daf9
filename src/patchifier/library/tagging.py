"""Tempo, key and predicted labels as tags of the files of a table: proposed, written, undone."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchifier import estimates, jobs
from patchifier.config import RequestError
from patchifier.embed import Embedder, load
from patchifier.io import Progress, silent
from patchifier.library import labels as labels_csv
from patchifier.library import table
from patchifier.library.journal import Journal
from patchifier.library.sources import each
from patchifier.library.tags import read_written

ESTIMATES = ("bpm", "key")
LABEL_SHARE = 0.5  # of a file's rows that have a label, for the file to have it


@dataclass(frozen=True)
class TagChange:
    """A tag of a file, what it is, and what it would be.

    Attributes
    ----------
    path : str
        The file.
    tag : str
        "bpm", "key" or "label".
    before : str or None
        None if the file has no such tag.
    after : str
        The estimate or prediction.

    Examples
    --------
    >>> change = TagChange("music/one.ogg", "bpm", before=None, after="120")
    >>> f"{change.tag} of {change.path}: {change.after}"
    'bpm of music/one.ogg: 120'
    """

    path: str
    tag: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Proposal:
    """Changes of tags, and files without any because they could not be read.

    Examples
    --------
    >>> found = propose("music.parquet", ["bpm"], workers=1)
    >>> len(found.files), {change.tag for change in found.changes}
    (3, {'bpm'})
    """

    changes: tuple[TagChange, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Files with changes, in the order of the table."""
        return tuple(dict.fromkeys(change.path for change in self.changes))


def propose(
    path: str | Path,
    tags: Sequence[str] = ESTIMATES,
    *,
    labels: str | Path | None = None,
    overwrite: bool = False,
    embedder: Embedder | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Proposal:
    """Estimate tags of the files of a table; nothing is written.

    Parameters
    ----------
    path : str or Path
        The table.
    tags : sequence of str
        Of "bpm" and "key". Where the music does not say, none is proposed.
    labels : str or Path
        CSV of ``patchifier predict``, or with the columns path and label or target: the labels
        that at least half of a file's rows have become its tag "label", which players show as
        "PATCHIFIER". Paths are found as by :class:`patchifier.library.labels.Finder`.
    overwrite : bool
        Propose also what replaces a tag; by default only what a file lacks.
    embedder : Embedder
        Its spectrogram is what tempo and key are estimated from; the bundled model's by default.
    workers : int
        Processes; one for each core by default.
    progress : callable
        Called with files done, files in all, and a note.

    Returns
    -------
    Proposal

    Raises
    ------
    RequestError
        If a tag is not known, the table or the labels cannot be read, or the model has no pitch
        bands and a key was requested.

    Examples
    --------
    >>> propose("music.parquet", ["bpm"], workers=1).skipped
    ()
    """
    wrong = [tag for tag in tags if tag not in ESTIMATES]
    if wrong:
        raise RequestError(f"{wrong[0]!r} cannot be estimated, expected of {', '.join(ESTIMATES)}.")
    predicted = {} if labels is None else read_labels(labels)
    model = load() if embedder is None and tags else embedder
    if model is not None and "key" in tags:
        estimates.require_pitch_bands(model.config.spectrogram)
    table.read_facts(Path(path))
    paths = dict.fromkeys(table.columns_of(Path(path), ["path"])["path"])
    predicted = _of_table(predicted, paths, labels)
    clips = [one for one in paths if tags or one in predicted]
    meter, found = jobs.Meter(progress, len(clips)), list[_Found | str]()
    meter.begin()
    shared = (_estimate, model, tuple(tags), overwrite)
    batches, workers = [[path] for path in clips], workers or os.cpu_count() or 1
    estimated = jobs.run(each, batches, workers=workers, shared=shared)
    with contextlib.closing(estimated):
        for one in estimated:
            found.append(one)
            meter.add(skipped=isinstance(one, str))
    pairs = list(zip(clips, found, strict=True))
    return Proposal(
        tuple(_changes(pairs, predicted, overwrite=overwrite)),
        tuple((file, one) for file, one in pairs if isinstance(one, str)),
    )


def write(
    path: str | Path, changes: Iterable[TagChange], *, progress: Progress = silent
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Write changes into files; :func:`undo` restores them.

    Parameters
    ----------
    path : str or Path
        The table, beside which the journal lies.
    changes : iterable of TagChange
        As of :func:`propose`.
    progress : callable
        Called with files done, files in all, and a note.

    Returns
    -------
    written : int
        Number of files.
    skipped : tuple of (path, reason)
        Files that stay as they are.

    Examples
    --------
    >>> write("music.parquet", [TagChange("music/two.ogg", "bpm", None, "120")])
    (1, ())
    >>> undo("music.parquet")
    (1, ())
    """
    values: dict[str, dict[str, str]] = {}
    for change in changes:
        values.setdefault(change.path, {})[change.tag] = change.after
    skipped, folder = list[tuple[str, str]](), journal_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    with jobs.folder_lock(folder, "tag"):
        journal, meter = Journal(folder), jobs.Meter(progress, len(values))
        meter.begin()
        for file, tags in values.items():
            try:
                journal.write(file, tags)
            except (RequestError, OSError) as error:
                skipped.append((file, jobs.skip_reason(file, error)))
            meter.add(skipped=int(bool(skipped) and skipped[-1][0] == file))
    _remove_if_done(folder)
    return len(values) - len(skipped), tuple(skipped)


def undo(path: str | Path) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Restore every byte of the files whose tags were written.

    Parameters
    ----------
    path : str or Path
        The table that they were written for.

    Returns
    -------
    restored : int
        Number of files.
    skipped : tuple of (path, reason)
        Files that stay as they are: they were changed since, or are missing.

    Raises
    ------
    RequestError
        If no tags were written for this table.

    Examples
    --------
    >>> before = Path("music/three.ogg").read_bytes()
    >>> _ = write("music.parquet", [TagChange("music/three.ogg", "bpm", None, "90")])
    >>> undo("music.parquet"), Path("music/three.ogg").read_bytes() == before
    ((1, ()), True)
    """
    folder = journal_folder(path)
    if not len(Journal(folder)):
        raise RequestError(f"no tags were written for {path}: there is nothing to undo.")
    with jobs.folder_lock(folder, "tag"):
        done = list(Journal(folder).restore())
    _remove_if_done(folder)
    skipped = tuple((file, reason) for file, reason in done if reason)
    left = {file for file, _ in skipped}
    return len({file for file, _ in done} - left), skipped


def clean(path: str | Path) -> str:
    """Remove what a killed :func:`write` or :func:`undo` left beside a file.

    Returns the hidden file; empty if there was none, or another job is at work.
    """
    folder = journal_folder(path)
    try:
        with jobs.folder_lock(folder, "tag"):
            removed = Journal(folder).clean() if folder.is_dir() else ""
            if folder.is_dir():
                _remove_if_done(folder)
        return removed
    except (RequestError, OSError):  # it is tried again by the next one
        return ""


def journal_folder(path: str | Path) -> Path:
    """Folder of the journal of a table: NAME.tags beside NAME.parquet."""
    return Path(path).with_suffix(".tags")


def _remove_if_done(folder: Path) -> None:
    """Remove a journal without entries, with what a killed process left in it."""
    if not len(Journal(folder)):
        shutil.rmtree(folder, ignore_errors=True)


def read_labels(path: str | Path) -> dict[str, str]:
    """Labels of files in a CSV of ``patchifier predict`` or of your own, several joined by "; "."""
    of_file: dict[str, list[str]] = {}
    for row in labels_csv.read(path):
        of_file.setdefault(row.path, []).append(row.label)
    return {file: text for file, labels in of_file.items() if (text := _common(labels))}


def _of_table(
    predicted: Mapping[str, str], paths: Collection[str], source: str | Path | None
) -> dict[str, str]:
    """Labels by the table's own paths; refused if there are some, and none is of its files."""
    finder = labels_csv.Finder(paths, source or "")
    found = {place: text for file, text in predicted.items() if (place := finder.find(file))}
    if predicted and not found:
        raise RequestError(
            f"{source}: none of its {len(predicted)} paths is in the table, whose first file is "
            f"{next(iter(paths), 'missing')}: write whole paths, or begin at the folder of the "
            "music."
        )
    return found


def _common(labels: Sequence[str]) -> str:
    """Labels that at least half of the rows have, in the order of their first row."""
    counts = Counter(label for row in labels for label in dict.fromkeys(row.split("|")) if label)
    least = LABEL_SHARE * len(labels)
    return "; ".join(label for label, count in counts.items() if count >= least)


# --- one file ---

_Found = tuple[dict[str, str | None], dict[str, str]]  # tags that are there, estimates


def _estimate(model: Embedder | None, tags: tuple[str, ...], overwrite: bool, path: str) -> _Found:
    here = read_written(path)
    wanted = [tag for tag in tags if overwrite or here[tag] is None]
    if model is None or not wanted:
        return here, {}
    found = estimates.features(model.pieces(path), model.config.spectrogram)
    values = {"bpm": _bpm, "key": _key}
    made = {tag: values[tag](found) for tag in wanted}
    return here, {tag: value for tag, value in made.items() if value is not None}


def _bpm(found: estimates.Features) -> str | None:
    bpm = estimates.tempo(found).bpm
    return None if bpm is None else str(round(bpm))


def _key(found: estimates.Features) -> str | None:
    """Key as ID3 writes it: "Bbm" for B flat minor."""
    name = estimates.key(found).name
    if name is None:
        return None
    tonic, mode = name.split()
    return tonic + ("m" if mode == "minor" else "")


def _changes(
    pairs: Sequence[tuple[str, _Found | str]], labels: Mapping[str, str], *, overwrite: bool
) -> Iterator[TagChange]:
    for path, found in pairs:
        if isinstance(found, str):
            continue
        here, estimated = found
        label = {"label": labels[path]} if path in labels else {}
        for tag, after in (estimated | label).items():
            before = here[tag]
            if after != before and (overwrite or before is None):
                yield TagChange(path, tag, before, after)
