"""The list of tracks: search by words, order, pages; what is said of one track and of the library."""

import os

import pytest

import patchifier
from patchifier.library import embed_library
from tests.app.conftest import MARKUP


def titles(client, **params):
    answer = client.get("/api/tracks", params=params)
    assert answer.status_code == 200, answer.text
    return [track["title"] for track in answer.json()["tracks"]]


def test_status_names_the_model_and_the_parts_of_its_vectors(client):
    status = client.get("/api/status").json()
    assert (status["name"], status["model"], status["n_tracks"]) == (
        "library",
        "patchifier-base",
        6,
    )
    assert [part["name"] for part in status["slices"]] == list(patchifier.load().slices)
    assert all(part["title"] and part["group"] for part in status["slices"])
    assert status["job"] is None
    assert status["message"] is None


def test_files_that_were_skipped_when_the_table_was_made_are_in_the_status(serve, own):
    assert serve(own).get("/api/status").json()["n_skipped"] == 0
    (own.parent / "music" / "text.mp3").write_text("text" * 100)
    embed_library(own.parent / "music", own, workers=1, changed=True)
    status = serve(own).get("/api/status").json()
    assert (status["n_tracks"], status["n_skipped"]) == (6, 1)
    ((path, reason),) = status["skipped"]
    assert path.endswith("text.mp3")
    assert "not an audio file" in reason


@pytest.mark.parametrize("content", [b"", b'path,reason\n"a', b"path\none\n"])
def test_a_damaged_list_of_skipped_files_is_left_out(serve, own, content):
    own.with_suffix(".skipped.csv").write_bytes(content)
    assert serve(own).get("/api/status").json()["n_skipped"] == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ase DEATH", ["Åse's Death"]),
        ("fur", ["Für Elise"]),
        ("grieg mood", ["Morning Mood"]),
        ("bagatelles grieg", []),
        ("song 1810", ["Für Elise"]),
    ],
)
def test_search_takes_every_word_without_case_and_accents(client, words, found):
    assert titles(client, search=words) == found


def test_a_track_without_a_title_has_its_file_name_and_no_other_tags(client):
    track = client.get("/api/tracks", params={"sort": "path"}).json()["tracks"][-1]
    assert track["title"] == "5 song"
    assert track["artist"] is track["album"] is None
    assert track["duration_s"] == pytest.approx(3.0, abs=0.1)
    assert track["missing"] is False


def test_markup_in_a_tag_is_text_in_json(client):
    answer = client.get("/api/tracks", params={"search": "onerror"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["tracks"][0]["title"] == MARKUP


def test_tracks_without_a_value_are_last_in_both_orders(client):
    up = titles(client, sort="artist")
    down = titles(client, sort="artist", order="desc")
    assert up[0] == "Für Elise"
    assert down[0] == MARKUP
    assert up[-1] == down[-1] == "5 song"


def test_pages_have_all_tracks_once(client):
    pages = [
        client.get("/api/tracks", params={"offset": offset, "limit": 4}).json() for offset in (0, 4)
    ]
    assert [page["total"] for page in pages] == [6, 6]
    assert len({track["id"] for page in pages for track in page["tracks"]}) == 6


def test_one_track_is_found_by_its_id(client, ids):
    assert client.get(f"/api/tracks/{ids[0]}").json()["title"] == "Åse's Death"


@pytest.mark.parametrize(
    ("address", "status", "word"),
    [
        ("/api/tracks/0000000000000000", 404, "0000000000000000"),
        ("/api/tracks?sort=colour", 400, "sort"),
        ("/api/tracks?limit=many", 400, "limit"),
        ("/api/tracks?limit=100000", 400, "limit"),
        ("/api/tracks?colour=red", 400, "colour"),
        ("/api/nothing", 404, "address"),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(client, address, status, word):
    answer = client.get(address)
    assert answer.status_code == status
    assert word in answer.json()["error"]


def test_a_file_that_vanished_is_missing_and_its_sound_is_gone(serve, own):
    client = serve(own)
    track = client.get("/api/tracks", params={"sort": "path"}).json()["tracks"][0]
    os.unlink(track["path"])
    assert client.get(f"/api/tracks/{track['id']}").json()["missing"] is True
    answer = client.get(f"/api/audio/{track['id']}")
    assert answer.status_code == 410
    assert track["path"] in answer.json()["error"]


def test_a_folder_in_place_of_a_file_is_missing(serve, own):
    client = serve(own)
    track = client.get("/api/tracks").json()["tracks"][0]
    os.unlink(track["path"])
    os.mkdir(track["path"])
    assert client.get(f"/api/audio/{track['id']}").status_code == 410
