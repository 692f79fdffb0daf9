"""Which files a library job is about: folders, files, globs and manifests, each clip once, in the order of the sources."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from patchifier.audio import SUFFIXES
from patchifier.config import RequestError
from patchifier.datasets import Clip, folder, manifest

Key = tuple[str, float, float | None]  # path, start and end of a clip: what makes it one


def find(sources: str | Path | Sequence[str | Path]) -> tuple[list[Clip], list[tuple[str, str]]]:
    """List the clips that sources stand for.

    Parameters
    ----------
    sources : str, Path or sequence of these
        Folders (searched as :mod:`patchifier.datasets.folder` does), audio files, globs, manifests (CSV, TSV, JSONL).

    Returns
    -------
    clips : list of Clip
        With real paths, each once, in the order of the sources; sorted within a folder or a glob.
    lost : list of (path, reason)
        Sources with nothing in them, and files whose names are not Unicode.

    Raises
    ------
    RequestError
        If there is no clip at all, or a manifest cannot be read.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise RequestError("no sources, expected folders, files, globs or manifests of audio.")
    clips: dict[Key, Clip] = {}
    lost: dict[str, str] = {}
    for source in given:
        try:
            for clip in _clips(str(source)):
                if reason := _bad_name(clip.path):
                    lost[clip.path] = reason
                else:
                    clips.setdefault(key(clip), clip)
        except _NothingError as error:
            lost[str(source)] = str(error)
    if not clips:
        raise RequestError(f"nothing to embed: {next(iter(lost.values()))}")
    return list(clips.values()), list(lost.items())


def key(clip: Clip) -> Key:
    """Return what makes a clip one: two with the same key are the same audio."""
    return clip.path, clip.start_s, clip.end_s


class _NothingError(RequestError):
    """A source that holds no audio."""


def _clips(source: str) -> Iterator[Clip]:
    if "\0" in source:
        raise _NothingError(f"{source!r}: a name with a zero byte, expected one path a line.")
    if os.path.isdir(source):
        yield from _in_folder(source)
    elif os.path.isfile(source) and source.lower().endswith(manifest.SUFFIXES):
        yield from (replace(clip, path=os.path.realpath(clip.path)) for clip in manifest.load(Path(source)).clips)
    elif os.path.lexists(source):
        yield _file(source)
    elif glob.has_magic(source):
        yield from _matching(source)
    else:
        raise _NothingError(f"{source}: no such file or folder.")


def _in_folder(source: str) -> Iterable[Clip]:
    try:
        return folder.load(Path(source)).clips
    except RequestError as error:
        raise _NothingError(str(error)) from None


def _matching(pattern: str) -> Iterator[Clip]:
    """Audio files that a glob matches, and all in the folders that it matches."""
    none = True
    for match in sorted(glob.glob(pattern, recursive=True)):
        found: Iterable[Clip] = []
        if os.path.isfile(match) and os.path.splitext(match)[1].lower() in SUFFIXES:
            found = [_file(match)]
        elif os.path.isdir(match):
            try:
                found = _in_folder(match)
            except _NothingError:  # the other matches may hold some
                continue
        for clip in found:
            none = False
            yield clip
    if none:
        raise _NothingError(f"{pattern}: matches no audio file, expected names that end in {', '.join(sorted(SUFFIXES))}.")


def _file(path: str) -> Clip:
    real = os.path.realpath(path)
    return Clip(id=real, path=real)


def _bad_name(path: str) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return f"{path.encode('utf-8', 'backslashreplace').decode()}: its name is not Unicode, which a table cannot hold: rename it."
    return ""
