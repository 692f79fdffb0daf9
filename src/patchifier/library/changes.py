"""What has changed between a table and its files: what waits, and what an update lost."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from patchifier.datasets import Clip
from patchifier.library import table
from patchifier.library.sources import Key, key

SHORTER = 0.9  # of the length that a file had: one that has less now is named


def state(path: str) -> list[int]:
    """Size and time of change of a file; zeros if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def is_current(clip: Clip | None, lines: table.RowRange | None) -> bool:
    """Whether rows are still those of their file."""
    return (
        clip is not None and lines is not None and state(clip.path) == [lines.size, lines.mtime_ns]
    )


def is_gone(path: str) -> bool:
    """Whether a file is missing; one that cannot be examined may exist."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def unlisted(lines: Sequence[table.RowRange], current: Set[Key]) -> tuple[str, ...]:
    """Files of rows that exist and are not among the current ones, sorted."""
    paths = {path for path, *_ in current}
    found = {line.clip[0] for line in lines} - paths
    return tuple(sorted(path for path in found if not is_gone(path)))


def unlisted_text(paths: Sequence[str]) -> str:
    """Say of a table, behind its name, that most likely a source was forgotten."""
    count = len(paths)
    found = "1 file that exists but is" if count == 1 else f"{count} files that exist but are"
    return (
        f"has {found} not among the sources, the first {paths[0]}: "
        "name every source that it was made from, or choose another --out."
    )


@dataclass(frozen=True)
class Waiting:
    """Clips that a finished table does not have as they are now.

    A moved file is known by its size and time of change alone, for nothing is read.
    """

    new: int = 0  # without rows
    changed: int = 0  # the file was modified
    moved: int = 0  # the file lies in another place
    gone: int = 0  # the file is missing

    @property
    def count(self) -> int:
        """Number of clips."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in vars(self).items() if count)


def waiting(
    clips: Sequence[Clip],
    lines: Mapping[Key, table.RowRange],
    *,
    passed: Collection[str],
    kept: Set[Key],
) -> Waiting:
    """Count the clips that an update of a table would embed, move or drop.

    Files in `passed` could not be read; an update keeps the rows in `kept` whatever it finds.
    """
    stale = [
        clip
        for clip in clips
        if clip.path not in passed and not is_current(clip, lines.get(key(clip)))
    ]
    new = [clip for clip in stale if key(clip) not in lines]
    gone = lines.keys() - {key(clip) for clip in clips} - kept
    there = Counter(_mark(key(clip), *state(clip.path)) for clip in new)
    left = Counter(_mark(which, lines[which].size, lines[which].mtime_ns) for which in gone)
    moved = (there & left).total()
    return Waiting(len(new) - moved, len(stale) - len(new), moved, len(gone) - moved)


def _mark(which: Key, size: int, mtime_ns: int) -> tuple[int, int, float, float | None]:
    """What a clip keeps when its file is moved."""
    return size, mtime_ns, which[1], which[2]


def shorter(
    before: tuple[Path, Sequence[table.RowRange]],
    now: Mapping[Key, tuple[Path, table.RowRange]],
) -> tuple[tuple[str, float, float], ...]:
    """Files that lost more than a tenth of their length: path, seconds before and now.

    Of a table and its rows before, and of where each clip's rows are now; those that are still in
    the table before are left out.
    """
    base, lines = before
    old = {line.clip: line.first for line in lines if line.clip in now}
    new = {which: now[which] for which in old if now[which][0] != base}
    if not new:
        return ()
    files = {base, *(path for path, _ in new.values())}
    lengths = {path: table.columns_of(path, ["length_s"])["length_s"] for path in files}
    pairs = [
        (which[0], lengths[base][old[which]], lengths[path][rows.first])
        for which, (path, rows) in new.items()
    ]
    return tuple(
        (path, was_s, is_s)
        for path, was_s, is_s in pairs
        if was_s is not None and is_s is not None and is_s < SHORTER * was_s
    )
