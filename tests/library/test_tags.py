"""Tags of every kind of file, as numbers and ids."""

from pathlib import Path

import mutagen
import mutagen.id3 as id3
import pytest

from patchifier.library.tags import TAGS, read_tags
from tests.test_payload import KINDS, file_of

WANTED = {
    "artist": "Artist",
    "title": "Title",
    "album": "Album",
    "genre": "Jazz",
    "albumartist": "Various",
    "year": 1993,
    "track": 3,
    "mb_recording_id": "11111111-2222-3333-4444-555555555555",
    "mb_album_id": "a1111111-2222-3333-4444-555555555555",
    "mb_artist_id": "b1111111-2222-3333-4444-555555555555",
}
EASY = dict(
    zip(
        "artist title album genre albumartist date tracknumber musicbrainz_trackid "
        "musicbrainz_albumid musicbrainz_artistid".split(),
        WANTED,
        strict=True,
    )
)
ASF = dict(
    zip(
        "Author|Title|WM/AlbumTitle|WM/Genre|WM/AlbumArtist|WM/Year|WM/TrackNumber|"
        "MusicBrainz/Track Id|MusicBrainz/Album Id|MusicBrainz/Artist Id".split("|"),
        WANTED,
        strict=True,
    )
)


def text_of(name: str) -> str:
    return {"year": "1993-07-05", "track": "3/11"}.get(name, str(WANTED[name]))


def frames() -> list[id3.Frame]:
    texts = {"TPE1": "artist", "TIT2": "title", "TALB": "album", "TCON": "genre"}
    texts |= {"TPE2": "albumartist", "TDRC": "year", "TRCK": "track"}
    made = [getattr(id3, frame)(text=[text_of(name)]) for frame, name in texts.items()]
    made.append(id3.UFID("http://musicbrainz.org", WANTED["mb_recording_id"].encode()))
    made.append(id3.TXXX(desc="MusicBrainz Album Id", text=[WANTED["mb_album_id"]]))
    return [*made, id3.TXXX(desc="MusicBrainz Artist Id", text=[WANTED["mb_artist_id"]])]


def tag(path: Path) -> None:
    file = mutagen.File(path, easy=True)
    if file.tags is None:
        file.add_tags()
    if isinstance(file.tags, id3.ID3):
        for frame in frames():
            file.tags.add(frame)
    else:
        names = ASF if path.suffix == ".wma" else EASY
        if path.suffix == ".wv":  # APE has no easy names
            names = {"album artist" if n == "albumartist" else n: w for n, w in names.items()}
            names = {
                {"date": "year", "tracknumber": "track"}.get(n, n): w for n, w in names.items()
            }
        for name, wanted in names.items():
            file.tags[name] = [text_of(wanted)]
    file.save()


@pytest.mark.parametrize("name", KINDS)
def test_all_tags_are_read_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / name)
    assert read_tags(str(path)) == dict.fromkeys(TAGS)
    tag(path)
    assert read_tags(str(path)) == WANTED


@pytest.mark.parametrize(
    ("date", "track", "year", "number"),
    [
        ("05/1993", "03", 1993, 3),
        ("1993", "A3", 1993, None),
        ("93", "", None, None),
        ("199312", "1234567", None, None),
        ("19931201", "0", 1993, 0),
        ("unknown", " 7 ", None, 7),
    ],
)
def test_a_year_and_a_number_are_found_in_their_text_or_null(
    date: str, track: str, year: int | None, number: int | None, tmp_path: Path
) -> None:
    path = file_of(tmp_path / "a.flac")
    file = mutagen.File(path)
    file["date"], file["tracknumber"] = date, track
    file.save()
    read = read_tags(str(path))
    assert (read["year"], read["track"]) == (year, number)
