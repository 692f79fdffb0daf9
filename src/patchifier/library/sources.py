"""Clips of a library job: folders, files, globs and manifests, each clip once, in order."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchifier import jobs
from patchifier.audio import SUFFIXES, written_name
from patchifier.config import RequestError
from patchifier.datasets import Clip, folder, manifest, well_named
from patchifier.io import expanded

TABLES = (".parquet", ".npy")  # endings of tables of embeddings
Key = tuple[str, float, float | None]  # path, start and end of a clip: what makes it one
# clips, and (path, reason) of what is lost
Listing = tuple[Iterable[Clip], Iterable[tuple[str, str]]]


def find(
    sources: str | Path | Sequence[str | Path],
    *,
    remote: Callable[[str], Listing | None] = lambda source: None,
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """List the clips of folders, audio files, globs and manifests, and what is lost.

    Clips have real paths, each once, in the order of the sources; sorted within a folder or a glob.
    Lost are sources with nothing in them, folders that cannot be listed, and files whose names are
    not UTF-8. `remote` lists a source that is not on this machine, and returns None for others. No
    clip at all, or a manifest that cannot be read, is refused.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise RequestError(
            "there is no music: no sources, expected folders, files, globs or manifests of audio."
        )
    clips: dict[Key, Clip] = {}
    lost: dict[str, str] = {}
    for source in given:
        found, without = remote(str(source)) or _local(str(source))
        good, bad = well_named(list(found))
        for clip in good:
            clips.setdefault(key(clip), clip)
        lost.update([*without, *bad])
    if not clips:
        raise RequestError(f"there is no music: {next(iter(lost.values()))}")
    return list(clips.values()), list(lost.items())


def each(shared: tuple[Any, ...], batch: Sequence[Any]) -> list[Any]:
    """Do the work on each item of a batch of :func:`patchifier.jobs.run`, or say why not.

    `shared` is a function, called with the item behind the other objects of `shared`. An item is
    the path of a file, or has one.
    """
    work, *first = shared
    return [jobs.attempt(getattr(item, "path", item), work, *first, item) for item in batch]


def key(clip: Clip) -> Key:
    """Return what makes a clip one: two with the same key are the same audio."""
    return clip.path, clip.start_s, clip.end_s


def _local(source: str) -> Listing:
    source = str(expanded(source))
    name = written_name(source)
    if "\0" in source:
        return [], [(name, f"{source!r}: a name with a zero byte, expected one path a line.")]
    if os.path.isdir(source):
        clips, lost = folder.find(Path(source))
        return clips, lost or ([] if clips else [(name, folder.none_in(name))])
    if os.path.isfile(source) and source.lower().endswith(manifest.SUFFIXES):
        return _listed(manifest.load(Path(source)).clips)
    if os.path.isfile(source) and source.lower().endswith(TABLES):
        return [], [(name, f"{name}: is a table, not music: give the folder of the music.")]
    if fault := folder.dead_link(source):
        return [], [fault]
    if os.path.lexists(source):
        return [_file(source)], []
    if glob.has_magic(source):
        return _matching(source)
    return [], [(name, f"{name}: no such file or folder.")]


def _listed(clips: Iterable[Clip]) -> Listing:
    """Clips of a manifest with real paths, and its links to missing files."""
    good, lost = well_named(list(clips))
    found = list[Clip]()
    for clip in good:
        if fault := folder.dead_link(clip.path):
            lost.append(fault)
        else:
            found.append(replace(clip, path=os.path.realpath(clip.path)))
    return found, lost


def _matching(pattern: str) -> Listing:
    """Audio files that a glob matches, and all in the folders that it matches."""
    clips, lost = list[Clip](), list[tuple[str, str]]()
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isfile(match) and os.path.splitext(match)[1].lower() in SUFFIXES:
            clips.append(_file(match))
        elif fault := folder.dead_link(match):
            lost.append(fault)
        elif os.path.isdir(match):
            found, without = folder.find(Path(match))
            clips += found
            lost += without
    if clips or lost:
        return clips, lost
    name = written_name(pattern)
    return [], [
        (
            name,
            f"{name}: matches no audio file, expected names that end in "
            f"{', '.join(sorted(SUFFIXES))}.",
        )
    ]


def _file(path: str) -> Clip:
    real = os.path.realpath(path)
    return Clip(id=real, path=real)
