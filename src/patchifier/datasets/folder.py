"""A folder of audio, searched recursively.

A clip is named by its path below the folder; its group is its sub-folder, so that an album is not
divided between splits. Hidden files and folders (among them the ``._`` files that macOS leaves in
archives) are skipped.

Links are followed, also to folders. A file is listed once, under a name without a link if it has
one. A link to a folder above this one would be a loop, and is skipped. A link to a missing file is
named by its own path.
"""

import errno
import os
from pathlib import Path

from patchifier.audio import SUFFIXES, written_name
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset, well_named


def load(root: Path) -> Dataset:
    """List every audio file below a folder, in sorted order.

    Raises
    ------
    RequestError
        If there is none.
    """
    clips, lost = find(root)
    if not clips:
        raise RequestError(lost[0][1] if lost else none_in(root))
    return Dataset(root.resolve().name, tuple(clips), lost=tuple(lost))


def find(root: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """List the clips of a folder, and (path, reason) of what cannot be listed or named."""
    search = _Search(root)
    clips = [
        Clip(
            id=name.as_posix(),
            path=path,
            group=name.parent.as_posix() if name.parent.parts else name.as_posix(),
        )
        for path, name in sorted(search.names.items(), key=lambda found: found[1])
    ]
    good, bad = well_named(clips)
    return good, sorted([*search.lost.items(), *bad])


def dead_link(path: str) -> tuple[str, str] | None:
    """(path, reason) of a link to a missing file; None for anything else.

    The path has no links but this one.
    """
    if not os.path.islink(path) or os.path.exists(path):
        return None
    folder, name = os.path.split(path)
    link = written_name(os.path.join(os.path.realpath(folder), name))
    target = written_name(os.path.realpath(path))
    return link, f"{link}: is a link to a missing file, {target}: mend or delete it."


def none_in(root: str | Path) -> str:
    """Return the message about a folder without audio."""
    suffixes = ", ".join(sorted(SUFFIXES))
    return (
        f"{root}: no audio files in this folder or below it, expected names that end in {suffixes}."
    )


class _Search:
    """Search below a folder.

    `names` has the name of each audio file by real path, `lost` the reason for each path that
    cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        real = os.path.realpath(root)
        self.names: dict[str, Path] = {}
        self.lost: dict[str, str] = {}
        self.seen = {str(above) for above in Path(real).parents}  # real paths of folders
        self.folders = [(Path(), real)]
        self.files: list[tuple[Path, str]] = []  # behind links: they are added last
        while self.folders:
            self._walk(*self.folders.pop(0))
        for name, path in self.files:
            self.names.setdefault(path, name)

    def _walk(self, name: Path, start: str) -> None:
        for place, folders, files in os.walk(start, onerror=self._lose):
            if place in self.seen:
                folders.clear()
                continue
            self.seen.add(place)
            if not os.access(place, os.X_OK):  # names can be listed, but nothing opened
                self._lose(PermissionError(errno.EACCES, os.strerror(errno.EACCES), place))
                folders.clear()
                continue
            below = name / os.path.relpath(place, start)
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            self.folders += [
                (below / folder, os.path.realpath(path))
                for folder in folders
                if os.path.islink(path := os.path.join(place, folder))
            ]
            for file in sorted(file for file in files if not file.startswith(".")):
                self._take(below / file, os.path.join(place, file))

    def _take(self, name: Path, path: str) -> None:
        if fault := dead_link(path):
            self.lost.update([fault])
        elif name.suffix.lower() in SUFFIXES and (os.path.isfile(path) or not os.path.exists(path)):
            if os.path.islink(path):
                self.files.append((name, os.path.realpath(path)))
            else:
                self.names[path] = name

    def _lose(self, error: OSError) -> None:
        place = written_name(error.filename)
        self.lost[place] = (
            f"{place}: this folder cannot be listed ({error.strerror}): change its rights, or "
            "mount it again."
        )
