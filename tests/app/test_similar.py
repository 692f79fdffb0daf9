"""Similar songs and why, paths, mixes, duplicates, playlists."""

import shutil
import time

import pyarrow.parquet as pq
import pytest

import patchifier
from patchifier.app import Settings
from patchifier.app import duplicates as app_duplicates
from patchifier.library import embed_library, search


def post(client, address, **params):
    answer = client.post(address, json=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def found(answer):
    return [row["track"]["id"] for row in answer["results"]]


def test_similar_songs_come_first_and_the_seed_is_not_among_them(client, ids):
    answer = post(client, "/api/similar", like=[ids[0]], count=5)
    assert sorted(found(answer)) == sorted(ids[1:])
    scores = [row["similarity"] for row in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert set(answer["results"][0]["slices"]) >= {"layers", "harmony", "rhythm"}


def test_several_seeds_and_one_that_is_not_meant(client, ids):
    answer = post(client, "/api/similar", like=ids[:2], unlike=ids[5:], count=10)
    assert sorted(found(answer)) == sorted(ids[2:5])


def test_a_weight_changes_the_similarity_to_that_of_its_part(client, ids):
    parts = [part["name"] for part in client.get("/api/status").json()["slices"]]
    weights = {name: float(name == "harmony") for name in parts}
    for row in post(client, "/api/similar", like=[ids[0]], weights=weights)["results"]:
        assert row["similarity"] == pytest.approx(row["slices"]["harmony"], abs=2e-3)


def test_filters_and_limits_hold(client, ids):
    grieg = post(client, "/api/similar", like=[ids[5]], filters={"artist": "Grieg"})
    assert sorted(found(grieg)) == sorted(ids[:2])
    capped = post(client, "/api/similar", like=[ids[5]], max_per_artist=1)
    assert len(set(ids[:2]) & set(found(capped))) == 1


def test_nothing_that_passes_the_filters_is_said(client, ids):
    answer = post(client, "/api/similar", like=[ids[0]], filters={"artist": "Ligeti"})
    assert (answer["results"], answer["close"]) == ([], False)
    assert "filters" in answer["note"]


def test_what_is_not_close_is_said_with_its_similarity(client, ids):
    answers = [post(client, "/api/similar", like=[one], count=1) for one in ids]
    for answer in answers:
        best = answer["results"][0]["similarity"]
        assert answer["close"] is (answer["note"] == "")
        assert answer["close"] or f"{best:.2f}" in answer["note"]
        assert answer["close"] or best < 0.95


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"like": []}, "like"),
        ({"like": "x"}, "like"),
        ({}, "like"),
        ({"like": [3]}, "like[0]"),
        ({"like": ["{id}"], "count": 0}, "count"),
        ({"like": ["{id}"], "count": 1.5}, "count"),
        ({"like": ["{id}"], "weights": {"harmony": 9}}, "harmony"),
        ({"like": ["{id}"], "weights": {"colour": 1}}, "colour"),
        ({"like": ["{id}"], "filters": {"colour": "red"}}, "filters.colour"),
        ({"like": ["{id}"], "filters": [1]}, "filters"),
        ({"like": ["{id}"], "max_per_artist": -1}, "max_per_artist"),
        ({"like": ["{id}"], "weights": {"harmony": None}}, "weights.harmony"),
    ],
)
def test_a_bad_request_names_what_is_wrong(client, ids, params, word):
    params = {name: [ids[0]] if value == ["{id}"] else value for name, value in params.items()}
    answer = client.post("/api/similar", json=params)
    assert answer.status_code == 400
    assert word in answer.json()["error"]


@pytest.mark.parametrize(
    ("address", "params", "word"),
    [
        ("/api/similar", {"like": [0, 1], "unlike": [1]}, "should not"),
        ("/api/similar", {"like": [], "unlike": [1]}, "like has 0 songs"),
        ("/api/mix", {"seeds": [0], "unlike": [0]}, "should not"),
        ("/api/path", {"start": 0, "end": 0}, "twice"),
        ("/api/path", {"start": 0, "end": 1, "waypoints": [1]}, "twice"),
    ],
)
def test_a_request_that_contradicts_itself_says_so(client, ids, address, params, word):
    named = {
        name: [ids[one] for one in value] if isinstance(value, list) else ids[value]
        for name, value in params.items()
    }
    answer = client.post(address, json=named)
    assert answer.status_code == 400
    assert word in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"like": ["x"]}', "text/plain", 415),
        (b"[" * 100_000, "application/json", 400),
        (b" " * (5 * 2**20), "application/json", 413),
        (b'{"like": ["\\ud800"], "count": 1e400}', "application/json", 400),
    ],
)
def test_a_body_that_is_no_object_is_refused(client, body, kind, status):
    answer = client.post("/api/similar", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]


def test_why_gives_the_most_similar_stretches(client, ids):
    answer = client.get("/api/why", params={"first": ids[0], "second": ids[1]}).json()
    assert set(answer["slices"]) >= {"layers", "rhythm"}
    stretch = answer["stretches"][0]
    assert 0 <= stretch["first_start_s"] < stretch["first_end_s"] <= 3.1
    assert 0 <= stretch["second_start_s"] < stretch["second_end_s"] <= 3.1
    assert answer["similarity"] == pytest.approx(stretch["similarity"], abs=0.02)


@pytest.mark.parametrize("weights", [{}, {"harmony": 4.0, "layers": 0.0}])
def test_what_the_parts_add_is_the_similarity(client, ids, weights):
    rows = post(client, "/api/similar", like=[ids[0]], weights=weights)["results"]
    row = next(one for one in rows if one["track"]["id"] == ids[1])
    answer = post(client, "/api/why", first=ids[0], second=ids[1], weights=weights)
    assert answer["similarity"] == pytest.approx(row["similarity"], abs=2e-3)
    assert sum(answer["shares"].values()) == pytest.approx(answer["similarity"], abs=1e-3)
    model = patchifier.load()
    expected = search.slice_weights(model.config, weights)
    means = {name: expected[part].mean() for name, part in model.slices.items()}
    assert answer["weights"] == pytest.approx(means, abs=1e-4)
    assert (answer["weights"]["harmony"] > 4.0) is bool(weights)


def test_what_a_part_counts_and_its_cosine_give_what_it_adds(client, ids):
    for weights, least, most in (({}, 0.0, 0.01), ({"rhythm": 4.0}, 0.3, 0.9)):
        answer = post(client, "/api/why", first=ids[0], second=ids[1], weights=weights)
        assert least <= answer["counts"]["rhythm"] <= most
        assert sum(answer["counts"].values()) == pytest.approx(1.0, abs=0.02)
        for name, cosine in answer["slices"].items():
            assert answer["counts"][name] * cosine == pytest.approx(
                answer["shares"][name], abs=2e-4
            )


def test_why_ranks_each_part_among_the_songs_of_the_library(client, ids):
    listed = post(client, "/api/similar", like=[ids[0]])["results"]
    order = [row["track"]["id"] for row in listed]
    cosines = {row["track"]["id"]: row["slices"] for row in listed}
    for place, second in enumerate(order):
        answer = post(client, "/api/why", first=ids[0], second=second)
        assert answer["closer_than"] == (4 - place) / 4
        for name, share in answer["slices_closer_than"].items():
            own = cosines[second][name]
            behind = [row[name] < own - 1e-4 for row in cosines.values()]
            maybe = [row[name] < own + 1e-4 for row in cosines.values()]
            assert sum(behind) / 4 <= share <= (sum(maybe) - 1) / 4, name


def test_without_other_songs_there_is_no_rank(serve, table, tmp_path):
    rows = pq.read_table(table)
    pq.write_table(rows.slice(0, 2), tmp_path / "two.parquet")
    two = serve(tmp_path / "two.parquet")
    ids = [one["id"] for one in two.get("/api/tracks").json()["tracks"]]
    answer = post(two, "/api/why", first=ids[0], second=ids[1])
    assert (answer["closer_than"], answer["slices_closer_than"]) == (None, {})


def test_why_needs_two_songs(client, ids):
    answer = client.get("/api/why", params={"first": ids[0], "second": ids[0]})
    assert answer.status_code == 400


def test_a_path_goes_from_one_song_to_another_without_repeats(client, ids):
    answer = post(client, "/api/path", start=ids[0], end=ids[4], waypoints=[ids[2]], count=5)
    songs = found(answer)
    assert (songs[0], songs[-1]) == (ids[0], ids[4])
    assert ids[2] in songs
    assert len(set(songs)) == len(songs) == 5
    assert answer["results"][0]["similarity"] == 1.0


def test_a_mix_begins_with_its_seeds(client, ids):
    songs = found(post(client, "/api/mix", seeds=ids[:2], count=4, drift=1.0))
    assert songs[:2] == ids[:2]
    assert len(set(songs)) == 4


def test_pairs_are_checked_in_the_background(serve, own):
    copy = own.parent / "music" / "9 copy.flac"
    shutil.copy(own.parent / "music" / "0 song.flac", copy)
    embed_library(own.parent / "music", own, workers=1, changed=True)
    client = serve(own)
    pairs = client.get("/api/duplicates", params={"threshold": 0.99}).json()
    assert pairs["check"]["state"] == "missing"
    assert pairs["compared"]
    assert {pair["kind"] for pair in pairs["pairs"]} == {"not checked"}
    assert client.get("/api/duplicates", params={"threshold": 2}).status_code == 400
    assert client.post("/api/duplicates").json()["state"] in ("running", "done")
    end = time.monotonic() + 30
    while (found := client.get("/api/duplicates").json())["check"]["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert found["check"]["state"] == "done", found
    same = [pair for pair in found["pairs"] if pair["kind"] == "same recording"]
    assert {one["path"] for pair in same for one in (pair["first"], pair["second"])} >= {
        str(copy),
        str(copy.with_name("0 song.flac")),
    }


def test_a_large_library_is_not_compared_before_the_check(client, monkeypatch):
    monkeypatch.setattr(app_duplicates, "MOST_AT_ONCE", 3)
    assert not client.get("/api/duplicates").json()["compared"]


def test_a_check_that_failed_says_why_until_it_is_started_again(serve, own, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    client = serve(own)
    with monkeypatch.context() as patch:
        patch.setattr(app_duplicates, "duplicates", fails)
        client.post("/api/duplicates")
        client.app.state.served.check._thread.join(10)
    for _ in range(2):
        check = client.get("/api/duplicates").json()["check"]
        assert check["state"] == "failed"
        assert "No space left" in check["error"]
    assert client.post("/api/duplicates").json()["state"] in ("running", "done")


def test_paths_of_a_playlist_are_relative_to_the_folder_of_the_music(serve, table, music):
    client = serve(table, Settings(music=music))
    ids = [one["id"] for one in client.get("/api/tracks?sort=path").json()["tracks"]]
    lines = client.post("/api/playlist", json={"ids": ids[:1]}).text.splitlines()
    assert lines[-1] == "0 song.flac"


def test_a_playlist_is_m3u8_with_the_files_in_order(client, ids, music):
    answer = client.post("/api/playlist", json={"ids": [ids[2], ids[5]], "name": 'a"/../b\n'})
    lines = answer.text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert lines[1] == "#EXTINF:3,Beethoven - Für Elise"
    assert [line for line in lines if not line.startswith("#")] == [
        str(music / "2 song.flac"),
        str(music / "5 song.flac"),
    ]
    assert answer.headers["content-disposition"] == 'attachment; filename="a-..-b.m3u8"'
