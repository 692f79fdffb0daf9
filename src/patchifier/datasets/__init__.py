"""Who the clips are, their splits and targets. Nothing here opens audio.

A data set is a list of :class:`Clip` and a task; everything behind it works on these records alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.tasks import Task

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Clip:
    """One piece of audio.

    Parameters
    ----------
    id : str
        Unique within the data set.
    path : str
        Of the file.
    start_s, end_s : float
        Part of the file, in seconds; to its end if `end_s` is None.
    split : "train", "valid", "test" or None
        Where the data set defines one.
    fold : int or None
        Where the data set defines folds instead.
    group : str or None
        Clips of one track, piece or artist: never on two sides of a split.
    target : str, list of str, list of float, float, list of [start_s, end_s, label], or None
        What the task asks.
    info : dict of str
        Artist, title, licence and whatever else there is to know.
    subsets : tuple of str
        Names of parts of the test side that are also scored by themselves, such as "artist-clean".
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
    """A name, its clips and, where they have targets, the task."""

    name: str
    clips: tuple[Clip, ...]
    task: Task | None = None

    def __post_init__(self) -> None:
        """Check that ids are unique and splits are known."""
        if not self.clips:
            raise RequestError(f"data set {self.name!r} has no clips, expected at least one.")
        seen: set[str] = set()
        for clip in self.clips:
            if clip.id in seen:
                raise RequestError(f"data set {self.name!r} has two clips with the id {clip.id!r}, expected unique ids.")
            if clip.split not in (*SPLITS, None):
                raise RequestError(f"clip {clip.id!r} has the split {clip.split!r}, expected train, valid or test.")
            seen.add(clip.id)


def load(source: str | Path) -> Dataset:
    """Find a data set: a built-in name ("demo"), a folder of audio, or a CSV or JSONL manifest.

    Raises
    ------
    RequestError
        If it is none of these.
    """
    from patchifier.datasets import demo, folder, manifest

    path = Path(source)
    if str(source) == "demo" and not path.exists():
        return demo.load()
    if path.is_dir():
        return folder.load(path)
    if path.suffix.lower() in manifest.SUFFIXES and path.is_file():
        return manifest.load(path)
    raise RequestError(f"{source!s} is no data set: expected 'demo', a folder of audio, or a manifest ({', '.join(manifest.SUFFIXES)}) that exists.")


def partition(clips: Sequence[Clip], *, test_fold: int | None = None, seed: int = 0) -> list[str]:
    """Side of each clip: "train", "valid" or "test", as long as `clips`.

    The data set's own split if it has one ("valid" is taken from train by group where it has none); else its folds: one is tested,
    the one before it validates; else a tenth of the groups each, by a hash of their names.
    """
    if any(clip.split for clip in clips):
        sides = [clip.split or "train" for clip in clips]
        if "valid" not in sides:
            sides = _take_valid(clips, sides, seed=seed)
        return sides
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    if len(folds) >= 3:
        test = folds[-1] if test_fold is None else test_fold
        if test not in folds:
            raise RequestError(f"there is no fold {test}, expected one of {folds}.")
        valid = folds[folds.index(test) - 1]
        return ["test" if clip.fold == test else "valid" if clip.fold == valid else "train" for clip in clips]
    test_out = hold_out(clips, fraction=0.1, seed=seed)
    return _take_valid(clips, ["test" if out else "train" for out in test_out], seed=seed + 1)


def _take_valid(clips: Sequence[Clip], sides: Sequence[str], *, seed: int) -> list[str]:
    """Move a tenth of the training groups to validation: drawn from those alone, so that there is always one."""
    held = iter(hold_out([clip for clip, side in zip(clips, sides, strict=True) if side == "train"], fraction=0.1, seed=seed))
    return ["valid" if side == "train" and next(held) else side for side in sides]


def hold_out(clips: Sequence[Clip], *, fraction: float, seed: int = 0) -> list[bool]:
    """Choose a share of the groups (at least one, if the share is above 0 and there are two) by a hash of their names."""
    names = [clip.group or clip.id for clip in clips]
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    count = max(1, round(fraction * len(ranked))) if fraction > 0 and len(ranked) > 1 else 0
    chosen = set(ranked[:count])
    return [name in chosen for name in names]


def relocate(clips: Sequence[Clip], root: Path) -> tuple[Clip, ...]:
    """Clips with relative paths made absolute below a folder."""
    return tuple(replace(clip, path=str(root / clip.path)) for clip in clips)
