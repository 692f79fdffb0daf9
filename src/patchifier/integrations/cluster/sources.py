"""Clips of a job: what a library job on one machine finds, and URLs, in manifests or by themselves."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from patchifier.audio import SUFFIXES, written_name
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset, manifest, well_named
from patchifier.integrations import need
from patchifier.integrations.cluster.store import filesystem, is_url
from patchifier.library import sources
from patchifier.library.sources import Key, key


def find(given: str | Path | Sequence[str | Path]) -> tuple[list[Clip], list[tuple[str, str]]]:
    """List the clips that sources stand for.

    Parameters
    ----------
    given : str, Path or sequence of these
        As :func:`patchifier.library.sources.find` takes them; manifests may hold URLs, and lie at one. A URL may also be an audio file,
        a glob, or a folder if it ends in ``/``.

    Returns
    -------
    clips : list of Clip
        Each once, in the order of the sources: real paths, URLs as they are given.
    lost : list of (path, reason)
        Sources with nothing in them, folders that cannot be listed, and files whose names are not UTF-8.

    Raises
    ------
    RequestError
        If there is no clip at all, a manifest cannot be read, or a scheme cannot be opened.
    """
    clips: dict[Key, Clip] = {}
    lost: dict[str, str] = {}
    for source in [given] if isinstance(given, str | Path) else given:
        found, without = _found(str(source))
        for clip in found:
            clips.setdefault(key(clip), clip)
        lost.update(without)
    if not clips:
        raise RequestError(
            f"nothing to embed: {next(iter(lost.values()), 'no sources, expected folders, files, globs, manifests or URLs of audio.')}"
        )
    for url in {
        clip.path.partition("://")[0]: clip.path for clip in clips.values() if is_url(clip.path)
    }.values():
        filesystem(url)  # one of each scheme, before any worker starts
    return list(clips.values()), list(lost.items())


def _found(source: str) -> tuple[list[Clip], list[tuple[str, str]]]:
    listed = source.lower().endswith(manifest.SUFFIXES)
    if listed and (is_url(source) or os.path.isfile(source)):
        return well_named(Dataset(source, tuple(_listed(source))).clips)
    if is_url(source):
        found = _behind(source)
        return found, [] if found else [
            (
                source,
                f"{source}: no audio there, expected names that end in {', '.join(sorted(SUFFIXES))}.",
            )
        ]
    try:
        return sources.find(source)
    except RequestError as error:
        return [], [(written_name(source), str(error).removeprefix("nothing to embed: "))]


def _listed(source: str) -> Iterator[Clip]:
    """Clips of a manifest. Relative paths start where it lies."""
    for entry in _entries(source):
        name = given = manifest.path_of(entry.row, entry.where)
        start_s, end_s = (
            manifest.number_of(entry.row, "start_s", entry.where) or 0.0,
            manifest.number_of(entry.row, "end_s", entry.where),
        )
        if is_url(source) and not is_url(name) and not os.path.isabs(name):
            name = f"{source.rpartition('/')[0]}/{name}"
        path = name if is_url(name) else os.path.realpath(entry.root / name)
        yield Clip(str(entry.row.get("id") or given), path, start_s, end_s)


def _entries(source: str) -> list[manifest.Entry]:
    if not is_url(source):
        return manifest.list_entries(Path(source))
    files, path = _opened(source)
    with tempfile.TemporaryDirectory(prefix="patchifier-") as folder:
        local = Path(folder) / source.rpartition("/")[2]
        try:
            files.get_file(path, str(local))
        except Exception as error:  # each file system has its own
            raise RequestError(f"{source}: cannot be fetched ({_said(error)}).") from error
        try:
            return manifest.list_entries(local)
        except RequestError as error:
            raise RequestError(str(error).replace(str(local), source)) from None


def _behind(url: str) -> list[Clip]:
    """Audio that a URL stands for: itself, what a glob matches, or all below a folder."""
    if not url.endswith("/") and "*" not in url:
        return [Clip(url, url)]
    files, path = filesystem(url)
    try:
        found = sorted(files.glob(path) if "*" in url else files.find(path))
    except Exception as error:  # as above
        raise RequestError(f"{url}: cannot be listed ({_said(error)}).") from error
    names = [
        files.unstrip_protocol(name)
        for name in found
        if os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    return [Clip(name, name) for name in names]


def _opened(source: str) -> tuple[Any, str]:
    """File system and path of a manifest, which this process alone reads: memory:// will do."""
    if source.lower().startswith("memory://"):
        return need("fsspec", "cluster").core.url_to_fs(source)  # type: ignore[no-any-return]
    return filesystem(source)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
