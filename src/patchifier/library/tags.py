"""Tags of audio files."""

import contextlib
from collections.abc import Sequence
from typing import Any

TAGS = {  # name in the table -> names in files: mutagen's easy ones, ID3 in wav and aiff, ASF
    "artist": ("artist", "TPE1", "Author"),
    "title": ("title", "TIT2", "Title"),
    "album": ("album", "TALB", "WM/AlbumTitle"),
    "genre": ("genre", "TCON", "WM/Genre"),
}


def read_tags(path: str) -> dict[str, str | None]:
    """Artist, title, album and genre of a file; None for each that is missing or unreadable."""
    import mutagen

    try:
        found = mutagen.File(path, easy=True)
        tags: Any = {} if found is None or found.tags is None else found.tags
    except Exception:  # mutagen raises any error on damaged tags, which are optional
        tags = {}
    return {name: _first(tags, places) for name, places in TAGS.items()}


def _first(tags: Any, places: Sequence[str]) -> str | None:
    for place in places:
        with contextlib.suppress(Exception):  # as above
            value = tags[place]
            value = getattr(value, "text", value)
            values = value if isinstance(value, list | tuple) else [value]
            text = "; ".join(str(one) for one in values).replace("\0", " ").strip()
            if text:
                return text.encode("utf-8", "replace").decode()
    return None
