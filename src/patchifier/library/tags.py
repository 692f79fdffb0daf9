"""Tags of audio files."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

TAGS = {  # name in the table -> names in files: mutagen's easy ones, ID3 in wav and aiff, ASF
    "artist": ("artist", "TPE1", "Author"),
    "title": ("title", "TIT2", "Title"),
    "album": ("album", "TALB", "WM/AlbumTitle"),
    "genre": ("genre", "TCON", "WM/Genre"),
    "albumartist": ("albumartist", "TPE2", "WM/AlbumArtist"),
    "year": ("date", "TDRC", "WM/Year", "year", "originaldate"),
    "track": ("tracknumber", "TRCK", "WM/TrackNumber"),
    "mb_recording_id": (
        "musicbrainz_trackid",
        "UFID:http://musicbrainz.org",
        "MusicBrainz/Track Id",
    ),
    "mb_album_id": ("musicbrainz_albumid", "TXXX:MusicBrainz Album Id", "MusicBrainz/Album Id"),
    "mb_artist_id": ("musicbrainz_artistid", "TXXX:MusicBrainz Artist Id", "MusicBrainz/Artist Id"),
}
NUMBERS = {  # tags that are whole numbers, and where the number is in their text
    "year": re.compile(r"(?<!\d)([0-9]{4})(?!\d)"),  # 1984-05-01
    "track": re.compile(r"\s*([0-9]{1,6})(?!\d)"),  # 3/12
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
    >>> read_tags("song.wav")["artist"] is None
    True
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
    match = NUMBERS[name].search(text) if name == "year" else NUMBERS[name].match(text)
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
