"""Tags of audio files: read, and some of them written."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchifier.config import RequestError

TAGS = {  # name in the table -> names in files: mutagen's easy ones, ID3 in wav and aiff, ASF, APE
    "artist": ("artist", "TPE1", "Author"),
    "title": ("title", "TIT2", "Title"),
    "album": ("album", "TALB", "WM/AlbumTitle"),
    "genre": ("genre", "TCON", "WM/Genre"),
    "albumartist": ("albumartist", "TPE2", "WM/AlbumArtist", "album artist"),
    "year": ("date", "TDRC", "WM/Year", "year", "originaldate"),
    "track": ("tracknumber", "TRCK", "WM/TrackNumber", "track"),
    "mb_recording_id": (
        "musicbrainz_trackid",
        "UFID:http://musicbrainz.org",
        "MusicBrainz/Track Id",
    ),
    "mb_album_id": ("musicbrainz_albumid", "TXXX:MusicBrainz Album Id", "MusicBrainz/Album Id"),
    "mb_artist_id": ("musicbrainz_artistid", "TXXX:MusicBrainz Artist Id", "MusicBrainz/Artist Id"),
}
NUMBERS = {  # tags that are whole numbers, and where the number is in their text
    "year": re.compile(r"(?<!\d)([0-9]{4})(?:[0-9]{4})?(?!\d)"),  # 1984-05-01, 19840501
    "track": re.compile(r"\A\s*([0-9]{1,6})(?!\d)"),  # 3/12
}
FIRST_TAGS = ("artist", "title", "album", "genre")  # those that tables of every version have


def read_tags(path: str) -> dict[str, str | int | None]:
    """Tags of a file.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    dict
        A value for each name of :data:`TAGS`; None for what is missing or unreadable. `year` and
        `track` are whole numbers, the others strings; several values are joined by "; ".

    Examples
    --------
    >>> sorted(read_tags("music/one.ogg"))[:4]
    ['album', 'albumartist', 'artist', 'genre']
    """
    import mutagen

    try:
        found = mutagen.File(path, easy=True)
        tags: Any = {} if found is None or found.tags is None else found.tags
    except Exception:  # mutagen raises any error on damaged tags, which are optional
        tags = {}
    return {name: _value(name, _first(tags, places)) for name, places in TAGS.items()}


def _value(name: str, text: str | None) -> str | int | None:
    if text is None or name not in NUMBERS:
        return text
    match = NUMBERS[name].search(text)
    return int(match[1]) if match else None


def _first(tags: Any, places: Sequence[str]) -> str | None:
    for place in places:
        with contextlib.suppress(Exception):  # as above
            value = tags[place]
            value = getattr(value, "text", getattr(value, "data", value))  # data: of UFID
            values = value if isinstance(value, list | tuple) else [value]
            text = "; ".join(map(_text, values)).replace("\0", " ").strip()
            if text:
                return text.encode("utf-8", "replace").decode()
    return None


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


# --- tags that are written ---

WRITTEN = {  # name -> names in files: mutagen's easy ones, ID3, ASF
    "bpm": ("bpm", "TBPM", "WM/BeatsPerMinute"),
    "key": ("initialkey", "TKEY", "WM/InitialKey"),
    "label": ("patchifier", "TXXX:PATCHIFIER", "PATCHIFIER"),
}


def read_written(path: str | Path) -> dict[str, str | None]:
    """Values of the tags of :data:`WRITTEN` in a file; None for each that is missing.

    Refused if the file is damaged, or of a kind whose tags cannot be written.
    """
    file = _opened(path)
    tags: Any = {} if file.tags is None else file.tags
    return {name: _first(tags, places) for name, places in WRITTEN.items()}


def write_tags(path: str | Path, values: Mapping[str, str], *, like: str | Path) -> None:
    """Write tags into a file, and leave the others as they are.

    Parameters
    ----------
    path : str or Path
        The file; its name may say nothing about its kind.
    values : mapping of str to str
        Names of :data:`WRITTEN`, and their values.
    like : str or Path
        A file of the same kind, whose name says which.

    Raises
    ------
    RequestError
        As of :func:`read_written`.

    Examples
    --------
    >>> _ = Path("tagged.ogg").write_bytes(Path("music/one.ogg").read_bytes())
    >>> write_tags("tagged.ogg", {"bpm": "120"}, like="tagged.ogg")
    >>> read_written("tagged.ogg")["bpm"]
    '120'
    """
    kind = type(_opened(like))
    try:
        file = kind(str(path))
        if file.tags is None:
            file.add_tags()
        for name, value in values.items():
            _set(file.tags, WRITTEN[name], value)
        file.save()
    except Exception as error:  # as above
        raise _unwritable(like, error) from error


def _opened(path: str | Path) -> Any:
    """Open a file by mutagen, with names for all tags that are written."""
    import mutagen
    from mutagen.easyid3 import EasyID3
    from mutagen.easymp4 import EasyMP4Tags

    EasyID3.RegisterTextKey("initialkey", "TKEY")
    EasyID3.RegisterTXXXKey("patchifier", "PATCHIFIER")
    EasyMP4Tags.RegisterFreeformKey("initialkey", "initialkey")
    EasyMP4Tags.RegisterFreeformKey("patchifier", "PATCHIFIER")
    try:
        file = mutagen.File(str(path), easy=True)
    except Exception as error:  # as above
        raise _unwritable(path, error) from error
    if file is None:
        raise _unwritable(path, "its kind of file has no tags")
    return file


def _unwritable(path: str | Path, reason: object) -> RequestError:
    return RequestError(f"{path}: its tags cannot be written ({reason}).")


def _set(tags: Any, places: Sequence[str], value: str) -> None:
    from mutagen import id3
    from mutagen.asf import ASFTags

    easy, frame, asf = places
    if isinstance(tags, id3.ID3):  # of wav and AIFF
        name, _, about = frame.partition(":")
        tags.delall(frame)
        more = {"desc": about} if about else {}
        tags.add(getattr(id3, name)(encoding=id3.Encoding.UTF8, text=[value], **more))
    else:
        tags[asf if isinstance(tags, ASFTags) else easy] = [value]
