"""Songs as Navidrome describes them are found in the table, and tracks are described so that Navidrome finds them."""

from concurrent.futures import ThreadPoolExecutor

import mutagen.flac
import pytest
import soundfile

from patchifier import jobs
from patchifier.app.navidrome import credits
from patchifier.library import embed_library
from tests.app.conftest import RATE, song

SONGS = {  # name of the file: seconds and tags
    "studio": (3, {"title": "Untitled", "artist": "Nina", "album": "First"}),
    "live": (12, {"title": "Untitled", "artist": "Nina", "album": "Live"}),
    "cover": (3, {"title": "Untitled", "artist": "Somebody Else", "album": "First"}),
    "duet": (4, {"title": "Duet", "artist": ["Nina", "Miles"], "album": "First"}),
    "guest": (4, {"title": "Guest", "artist": "Nina feat. Miles", "album": "First"}),
    "single": (4, {"title": "Hit", "artist": "Nina", "musicbrainz_trackid": "AB-1"}),
    "album": (
        4,
        {"title": "Hit", "artist": "Nina", "album": "First", "musicbrainz_trackid": "ab-1"},
    ),
    "02 no tags": (5, {}),
}


@pytest.fixture(scope="module")
def client(serve, tmp_path_factory):
    folder = tmp_path_factory.mktemp("navidrome")
    for number, (name, (seconds, tags)) in enumerate(SONGS.items()):
        path = folder / f"{name}.flac"
        soundfile.write(path, song(200 + 40 * number, seconds), RATE)
        file = mutagen.flac.FLAC(path)
        file.update(tags)
        file.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        embed_library(folder, folder.parent / "navidrome.parquet", workers=1)
    return serve(folder.parent / "navidrome.parquet")


def ask(client, what, **given):
    answer = client.post(f"/api/navidrome/{what}", json=given)
    return answer.status_code, answer.json()


def found(client, **described):
    """Name of the file that a path to itself is made of."""
    status, answer = ask(client, "path", startSong=described, endSong=described)
    assert status == 200, answer
    (match,) = answer["matches"]
    assert match["similarity"] == 1.0
    return match["song"]


@pytest.mark.parametrize(
    ("described", "album", "seconds"),
    [
        ({"name": "Untitled", "artist": "Nina", "durationMs": 3000}, "First", 3),
        ({"name": "UNTITLED ", "artist": "nina", "durationMs": 12400}, "Live", 12),
        ({"name": "Untitled", "artist": "Nina", "duration": 12.5}, "Live", 12),
        ({"name": "Untitled", "artist": "Nina", "album": "Live"}, "Live", 12),
        ({"name": "Duet", "artist": "Nina • Miles", "durationMs": 4000}, "First", 4),
        ({"name": "Duet", "artists": [{"name": "Miles"}], "durationMs": 4000}, "First", 4),
        ({"name": "Guest", "artist": "Nina", "durationMs": 4000}, "First", 4),
        ({"name": "another title", "mbid": "AB-1", "album": "first"}, "First", 4),
        ({"name": "another title", "mbid": "ab-1"}, None, 4),
        ({"name": "Hit", "artist": "Nina", "mbid": "unknown", "album": "First"}, "First", 4),
        ({"name": "02 no tags", "artist": "[Unknown Artist]", "durationMs": 5000}, None, 5),
    ],
)
def test_a_song_is_found_by_its_description(client, described, album, seconds):
    song = found(client, **described)
    assert (song.get("album"), song["durationMs"]) == (album, seconds * 1000)


@pytest.mark.parametrize(
    "described",
    [
        {"name": "nothing", "artist": "Nina"},
        {"name": "Untitled", "artist": "A third"},
        {"name": "Untitled", "artist": "Nina", "durationMs": 60_000},
        {"name": "02 no tags", "artist": "[Unknown Artist]"},  # a title alone says too little
        {"name": "nothing", "mbid": "unknown"},
    ],
)
def test_a_song_that_is_not_there_is_said_to_be_unknown(client, described):
    status, answer = ask(client, "similar", song=described, count=3)
    assert status == 422
    assert repr(described["name"]) in answer["error"]
    known = {"name": "Duet", "artist": "Nina"}
    assert ask(client, "path", startSong=known, endSong=described)[0] == 422
    assert ask(client, "songs", name="nothing", artist="Nina")[0] == 422


def test_similar_songs_have_what_navidrome_looks_for(client):
    described = {"name": "Untitled", "artist": "Nina", "durationMs": 3000}
    status, answer = ask(client, "similar", song=described, count=500)
    assert status == 200
    scores = [match["similarity"] for match in answer["matches"]]
    assert len(scores) == len(SONGS) - 1
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    songs = {match["song"]["name"]: match["song"] for match in answer["matches"]}
    assert songs["Duet"] == {
        "name": "Duet",
        "artist": "Nina",
        "artists": [{"name": "Nina; Miles"}, {"name": "Nina"}, {"name": "Miles"}],
        "album": "First",
        "duration": 4.0,
        "durationMs": 4000,
    }
    assert songs["Hit"]["mbid"].lower() == "ab-1"
    assert songs["02 no tags"]["artist"] == "[Unknown Artist]"


def test_songs_of_a_mix_are_the_similar_ones(client):
    similar = ask(client, "similar", song={"name": "Guest", "artist": "Nina"}, count=4)[1]
    status, answer = ask(client, "songs", id="x", name="Guest", artist="Nina", mbid="", count=4)
    assert status == 200
    assert answer["songs"] == [match["song"] for match in similar["matches"]]


def test_a_path_has_its_ends_and_at_most_so_many_songs(client):
    start, end = ({"name": name, "artist": "Nina"} for name in ("Duet", "Guest"))
    matches = ask(client, "path", startSong=start, endSong=end, count=4)[1]["matches"]
    names = [match["song"]["name"] for match in matches]
    assert (names[0], names[-1], len(names)) == ("Duet", "Guest", 4)
    assert matches[0]["similarity"] == 1.0


@pytest.mark.parametrize(("count", "n_songs"), [(2, 2), (0, 1), (-5, 1), (2**31 - 1, 7)])
def test_every_count_of_a_client_is_met_as_far_as_it_goes(client, count, n_songs):
    answer = ask(client, "similar", song={"name": "Duet", "artist": "Nina"}, count=count)[1]
    assert len(answer["matches"]) == n_songs


def test_what_later_versions_add_is_ignored_and_what_is_wrong_is_refused(client):
    artist = {"id": "a", "name": "Nina", "role": "artist", "new": 1}
    song = {"id": "s", "name": "Duet", "artists": [artist], "isrc": "x", "new": {"a": 1}}
    assert ask(client, "similar", song=song, count=1, new=True)[0] == 200
    assert ask(client, "similar", count=1)[0] == 400
    assert ask(client, "similar", song={"name": 5}, count=1)[0] == 400
    assert ask(client, "similar", song="Duet")[0] == 400


def test_an_empty_library_says_so(serve, tmp_path):
    (tmp_path / "music").mkdir()
    empty = serve(tmp_path / "music")
    assert ask(empty, "similar", song={"name": "Duet", "artist": "Nina"})[0] == 409


def test_artists_are_compared_whole_and_in_parts():
    assert credits(["AC/DC", None]) == {"ac/dc", "ac", "dc"}
    assert credits(["Daft Punk"]) == {"daft punk"}
    assert credits(["Nina Ft. Miles & Co; Zoë"]) >= {"nina", "miles", "co", "zoe"}
