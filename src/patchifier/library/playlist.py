"""Playlists for players: M3U8, UTF-8 text with a line for each file."""

import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchifier.config import RequestError
from patchifier.io import write_text
from patchifier.library.search.rows import Filter, SearchResult
from patchifier.library.search.store import VectorStore

SUFFIXES = (".m3u8", ".m3u")
LINE_ENDS = "\x00-\x1f\x7f\x85\u2028\u2029"  # some reader takes one of these for the end of a line
UNKNOWN_S = -1  # duration


@dataclass(frozen=True)
class Entry:
    """A file of a playlist.

    Attributes
    ----------
    path : str
        Of the file, or a URL.
    title, artist : str
        What a player shows; without a title it is the name of the file.
    duration_s : float or None
        None if unknown.

    Examples
    --------
    >>> song = Entry("music/one.ogg", title="Air", artist="Bach", duration_s=61.7)
    >>> song.title, Entry("music/two.ogg").duration_s
    ('Air', None)
    """

    path: str
    title: str = ""
    artist: str = ""
    duration_s: float | None = None


def entries(store: VectorStore, rows: Iterable[SearchResult]) -> list[Entry]:
    """Entries of results of a search; a duration is the end of a file's last row.

    Examples
    --------
    >>> from patchifier.library import search
    >>> store = search.load("music.parquet")
    >>> songs = entries(store, store.filter(search.Filter()))
    >>> [round(song.duration_s) for song in songs]
    [20, 20, 20]
    """
    made = []
    for row in rows:
        ends_s = [other.end_s for other in store.filter(Filter(path=row.path))]
        title, artist = (str(row.tags.get(name) or "") for name in ("title", "artist"))
        made.append(Entry(row.path, title, artist, max([row.end_s, *ends_s])))
    return made


def m3u8_text(files: Sequence[Entry], folder: str | Path | None = None) -> str:
    """Text of a playlist.

    Parameters
    ----------
    files : sequence of Entry
        In playing order.
    folder : str or Path, optional
        Where the playlist lies. Paths are relative to it where they share a folder with it, below
        the root of the file system; else absolute.

    Returns
    -------
    str
        A name that would end its line, or is not Unicode, is written as a ``file://`` URL with
        escapes, so that no name can add a line.

    Examples
    --------
    >>> song = Entry("/music/a/song.mp3", "Song", "Artist", 61.7)
    >>> print(m3u8_text([song], "/music/lists"), end="")
    #EXTM3U
    #EXTINF:62,Artist - Song
    ../a/song.mp3
    """
    lines = ["#EXTM3U"]
    for file in files:
        seconds = UNKNOWN_S if file.duration_s is None else round(file.duration_s)
        lines += [f"#EXTINF:{seconds},{_shown(file)}", _line(file.path, folder)]
    return "".join(f"{line}\n" for line in lines)


def write_m3u8(files: Sequence[Entry], out: str | Path) -> None:
    """Write a playlist beside and rename; arguments as for :func:`m3u8_text`.

    Raises
    ------
    RequestError
        If the name of the file is not that of a playlist.

    Examples
    --------
    >>> write_m3u8([Entry("music/one.ogg")], "list.m3u8")
    >>> Path("list.m3u8").read_text().splitlines()
    ['#EXTM3U', '#EXTINF:-1,one', 'music/one.ogg']
    """
    require_m3u8(out)
    write_text(Path(out), m3u8_text(files, Path(out).parent))


def require_m3u8(out: str | Path) -> None:
    """Refuse a name that is not one of a playlist: it may be that of a song."""
    if Path(out).suffix.lower() not in SUFFIXES:
        raise RequestError(f"{out} is no playlist: name it NAME.m3u8.")


def _shown(file: Entry) -> str:
    text = " - ".join(part for part in (file.artist, file.title or Path(file.path).stem) if part)
    return re.sub(f"[{LINE_ENDS}]+", " ", text).strip().encode("utf-8", "replace").decode()


def _line(path: str, folder: str | Path | None) -> str:
    if "://" in path:
        return re.sub(f"[{LINE_ENDS} ]", lambda found: urllib.parse.quote(found[0]), path)
    whole = os.path.abspath(path)  # a link in a path stays, as the player reads it
    if re.search(f"[{LINE_ENDS}\ud800-\udfff]|\\s$", path):
        return f"file://{urllib.parse.quote(os.fsencode(Path(whole).as_posix()))}"
    return _readable(_relative(whole, folder)) if folder is not None else whole


def _relative(path: str, folder: str | Path) -> str:
    """`path` from `folder`, or as it is where they have nothing but the root in common."""
    place = os.path.realpath(folder)
    try:
        common = os.path.commonpath([path, place])
    except ValueError:  # other drives
        return path
    return path if os.path.dirname(common) == common else os.path.relpath(path, place)


def _readable(path: str) -> str:
    """Mark a relative path that could be taken for a comment or for a URL."""
    odd = path.startswith("#") or path[:1].isspace() or ":" in path
    return f"./{path}" if odd and not os.path.isabs(path) else path
