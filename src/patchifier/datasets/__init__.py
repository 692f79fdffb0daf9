"""Data sets: clips, their splits and targets. Nothing here opens audio.

A data set is a list of :class:`Clip` and a task; all other code works on these records alone.
"""

import difflib
import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.audio import name_fault, written_name
from patchifier.config import RequestError
from patchifier.lazy import attach
from patchifier.tasks import Task

if TYPE_CHECKING:
    from patchifier.datasets.sheet import Sheet

SPLITS = ("train", "valid", "test")
PUBLISHED = {  # name -> module with its SHEET, imported on demand
    "mtat": "mtat",
    "gtzan": "gtzan",
    "gtzan-beats": "gtzan_beats",
    "emomusic": "emomusic",
    "giantsteps-key": "giantsteps",
    "nsynth": "nsynth",
    "mtg-jamendo": "jamendo",
}
STAND_IN = "STAND-IN"  # a file in the root of made-up data: their name says so everywhere
log = logging.getLogger(__name__)
__getattr__, __dir__ = attach(__name__)


@dataclass(frozen=True)
class Clip:
    """One piece of audio.

    Parameters
    ----------
    id : str
        Unique within the data set.
    path : str
        Path of the file.
    start_s, end_s : float
        Part of the file, in seconds; to its end if `end_s` is None.
    split : "train", "valid", "test" or None
        Split, if the data set defines one.
    fold : int or None
        Fold, if the data set defines folds instead.
    group : str or None
        Track, piece or artist; clips of one group are always in one split.
    target : str, list of str, list of float, float, list of [start_s, end_s, label], or None
        Value that the task predicts.
    info : dict of str
        Artist, title, licence and other metadata.
    subsets : tuple of str
        Names of subsets of the test split that are also scored by themselves, such as
        "artist-clean".

    Examples
    --------
    >>> clip = Clip("one", "music/one.ogg", end_s=10.0, split="train", target="folk")
    >>> clip.target, clip.group is None
    ('folk', True)
    """

    id: str
    path: str
    start_s: float = 0.0
    end_s: float | None = None
    split: str | None = None
    fold: int | None = None
    group: str | None = None
    target: Any = None
    info: dict[str, str] = field(default_factory=dict)
    subsets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set: its clips, each a part of an audio file, and the task of their labels.

    Parameters
    ----------
    name : str
        Of the data set.
    clips : tuple of Clip
        With unique ids.
    task : Task or None
        None without targets.
    lost : tuple of (path, reason)
        Files that were left out of the list.
    reason : str
        Why the task is of its kind, if it was not stated by a published data set.

    Examples
    --------
    >>> data = Dataset("mine", (Clip("one", "music/one.ogg"), Clip("two", "music/two.ogg")))
    >>> len(data.clips), data.task is None
    (2, True)
    >>> load("demo").task.names[:3]
    ('hyperrogue', 'naev', 'singularity')
    """

    name: str
    clips: tuple[Clip, ...]
    task: Task | None = None
    lost: tuple[tuple[str, str], ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        """Check that ids are unique and splits are known."""
        if not self.clips:
            raise RequestError(f"data set {self.name!r} has no clips, expected at least one.")
        seen: set[str] = set()
        for clip in self.clips:
            if clip.id in seen:
                raise RequestError(
                    f"data set {self.name!r} has two clips with the id {clip.id!r}, expected "
                    "unique ids. Parts of one file need different starts, or ids in a column 'id'."
                )
            if clip.split not in (*SPLITS, None):
                raise RequestError(
                    f"clip {clip.id!r} has the split {clip.split!r}, expected train, valid or test."
                )
            seen.add(clip.id)


def load(source: str | Path, root: str | Path | None = None, *, partial: bool = False) -> Dataset:
    """Load a data set: "demo", a folder of audio, a CSV or JSONL manifest, or a published data set.

    Parameters
    ----------
    source : str or Path
        Name of a published data set, or NAME:VARIANT; see :data:`PUBLISHED`. A Path is always a
        file or a folder.
    root : str or Path
        Folder of the published data set.
    partial : bool
        Keep the clips of a published data set whose files exist; by default a missing file is an
        error.

    Raises
    ------
    RequestError
        If it is none of these, or files of a published data set are missing or empty beyond those
        known to be bad.

    Examples
    --------
    >>> from patchifier import datasets
    >>> demo = datasets.load("demo")
    >>> len(demo.clips), demo.clips[0].target
    (112, 'warzone2100')
    """
    from patchifier.datasets import demo, folder, manifest

    path = Path(source)
    if isinstance(source, str) and source.split(":")[0] in PUBLISHED:
        return _load_published(source, root, partial=partial)
    if root is not None or partial:
        raise RequestError(
            f"a root or a part is given for {source!s}, which is no published data set: expected "
            f"one of {', '.join(PUBLISHED)}."
        )
    if str(source) == "demo" and not path.exists():
        return demo.load()
    if path.is_dir():
        return folder.load(path)
    if path.suffix.lower() in manifest.SUFFIXES and path.is_file():
        dataset = manifest.load(path)
        good, lost = well_named(dataset.clips)
        if not good:
            raise RequestError(lost[0][1])
        return replace(dataset, clips=tuple(good), lost=tuple(lost))
    raise RequestError(
        f"{source!s} is no data set: expected 'demo', a folder of audio, or a manifest "
        f"({', '.join(manifest.SUFFIXES)}) that exists; or, with --root DIR, a published data set "
        f"({', '.join(PUBLISHED)}).{_nearest(str(source).split(':')[0], PUBLISHED)}"
    )


def well_named(clips: Sequence[Clip]) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Return the clips whose names a file can have, and (path, reason) of the others."""
    good: list[Clip] = []
    lost: list[tuple[str, str]] = []
    for clip in clips:
        fault = name_fault(clip.path) or name_fault(clip.id)
        if "\0" in clip.path:
            fault = "its name holds a zero byte: correct the list."
        if fault:
            path = written_name(clip.path).replace("\0", r"\x00")
            lost.append((path, f"{path}: {fault}"))
        else:
            good.append(clip)
    return good, lost


def find_sheet(source: str) -> "tuple[Sheet, str]":
    """Find the sheet and the variant ("" if not named) of NAME or NAME:VARIANT."""
    name, colon, variant = source.partition(":")
    if name not in PUBLISHED:
        raise RequestError(
            f"there is no published data set {name!r}, expected one of "
            f"{', '.join(PUBLISHED)}.{_nearest(name, PUBLISHED)}"
        )
    sheet: Sheet = importlib.import_module(f"patchifier.datasets.{PUBLISHED[name]}").SHEET
    if colon and variant not in sheet.variants:
        listed = "; ".join(
            f"{name}:{known} ({facts.what})" for known, facts in sheet.variants.items()
        )
        raise RequestError(
            f"{name} has no variant {variant!r}, expected one of "
            f"{listed}.{_nearest(variant, sheet.variants)}"
        )
    return sheet, variant


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _load_published(source: str, root: str | Path | None, *, partial: bool) -> Dataset:
    """Read a variant of a sheet and compare it with the files."""
    sheet, variant = find_sheet(source)
    variant = variant or sheet.default
    if root is None:
        also = f" For the folder of that name, write ./{source}." if Path(source).exists() else ""
        raise RequestError(
            f"{sheet.name} needs its folder: --root DIR. 'patchifier check {sheet.name} --root "
            f"DIR' lists what is there.{also}"
        )
    if not Path(root).is_dir():
        raise RequestError(
            f"--root {root} is no folder, expected the folder of {sheet.title}. "
            f"{sheet.how_to_get(root)}"
        )
    name = sheet.name if variant == sheet.default else f"{sheet.name}:{variant}"
    name += " (stand-in)" if (Path(root) / STAND_IN).exists() else ""
    try:
        dataset = replace(sheet.read(Path(root), variant), name=name)
    except RequestError as error:
        raise RequestError(
            f"{error} 'patchifier check {sheet.name} --root {root}' says what is there and how to "
            "get the rest."
        ) from error
    return _require_files(dataset, sheet, partial=partial)


def _require_files(dataset: Dataset, sheet: "Sheet", *, partial: bool) -> Dataset:
    """Refuse a data set with missing or empty files, or leave their clips out if `partial`.

    Files known to be bad are excused.
    """
    without = [clip for clip in dataset.clips if not _has_content(clip.path)]
    missing = [clip for clip in without if not sheet.excuse(clip.path)]
    if not missing:
        return dataset
    found = len(dataset.clips) - len(without)
    names = "; ".join(clip.path for clip in missing[:3]) + ("; ..." if len(missing) > 3 else "")
    found_text = (
        f"{dataset.name}: {found} of {len(dataset.clips)} clips used, "
        f"{len(missing)} files are missing or empty: {names}."
    )
    if not partial or not found:
        also = "" if partial else " To use the files that are there: --partial."
        raise RequestError(
            f"{found_text} 'patchifier check {sheet.name} --root DIR' names all of them.{also}"
        )
    log.warning(found_text)
    gone = {clip.id for clip in missing}
    return replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.id not in gone))


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False
