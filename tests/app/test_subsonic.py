"""OpenSubsonic: the forms of its answers in JSON and XML, its errors, and how a client signs in."""

import hashlib
from xml.etree import ElementTree

import pytest

from patchifier.app import Settings
from patchifier.app.security import Access
from tests.app.conftest import MARKUP

SECRET = "sesame-sesame"
SPACE = "{http://subsonic.org/restapi}"


def ask(client, name, **given):
    answer = client.get(
        f"/rest/{name}", params={"u": "me", "v": "1.16.1", "c": "test", "f": "json"} | given
    )
    assert answer.status_code == 200
    return answer.json()["subsonic-response"]


def test_ping_is_answered_with_and_without_view(client):
    for name in ("ping", "ping.view"):
        found = ask(client, name)
        assert (found["status"], found["version"], found["openSubsonic"]) == ("ok", "1.16.1", True)
        assert found["type"] == "patchifier"
        assert found["serverVersion"]


def test_the_default_form_is_xml(client):
    answer = client.get("/rest/ping.view", params={"u": "me"})
    assert answer.headers["content-type"] == "application/xml"
    root = ElementTree.fromstring(answer.content)
    assert root.tag == f"{SPACE}subsonic-response"
    assert root.attrib["status"] == "ok"
    assert root.attrib["openSubsonic"] == "true"


def test_extensions_name_sonic_similarity(client):
    found = ask(client, "getOpenSubsonicExtensions")["openSubsonicExtensions"]
    assert {"name": "sonicSimilarity", "versions": [1]} in found
    answer = client.get("/rest/getOpenSubsonicExtensions.view")
    names = {
        element.attrib["name"]: [one.text for one in element]
        for element in ElementTree.fromstring(answer.content)
    }
    assert names["sonicSimilarity"] == ["1"]


def test_similar_songs_are_children_with_a_similarity(client, ids):
    matches = ask(client, "getSonicSimilarTracks", id=ids[0], count="3")["sonicMatch"]
    assert len(matches) == 3
    assert ids[0] not in {match["entry"]["id"] for match in matches}
    scores = [match["similarity"] for match in matches]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    morning = next(match["entry"] for match in matches if match["entry"]["id"] == ids[1])
    assert {
        name: morning[name]
        for name in (
            "title",
            "artist",
            "album",
            "isDir",
            "duration",
            "suffix",
            "contentType",
            "type",
            "isVideo",
        )
    } == {
        "title": "Morning Mood",
        "artist": "Grieg",
        "album": "Peer Gynt",
        "isDir": False,
        "duration": 3,
        "suffix": "flac",
        "contentType": "audio/flac",
        "type": "music",
        "isVideo": False,
    }
    assert morning["parent"]
    assert morning["size"] > 0
    assert morning["path"].endswith("1 song.flac")


def test_songs_of_an_album_share_a_parent(client, ids):
    parents = [ask(client, "getSong", id=one)["song"]["parent"] for one in ids[:3]]
    assert parents[0] == parents[1] != parents[2]


def test_the_default_count_is_ten_at_most_what_there_is(client, ids):
    assert len(ask(client, "getSonicSimilarTracks", id=ids[0])["sonicMatch"]) == 5
    assert len(ask(client, "getSonicSimilarTracks", id=ids[0], count="many")["sonicMatch"]) == 5


def test_xml_has_an_entry_and_a_similarity_in_each_match_and_markup_as_text(client, ids):
    answer = client.get("/rest/getSonicSimilarTracks", params={"id": ids[0], "u": "me"})
    matches = ElementTree.fromstring(answer.content).findall(f"{SPACE}sonicMatch")
    assert len(matches) == 5
    for match in matches:
        assert [element.tag for element in match] == [f"{SPACE}entry", f"{SPACE}similarity"]
        assert 0 <= float(match[1].text) <= 1
        assert match[0].attrib["isDir"] == "false"
    assert MARKUP in {match[0].attrib["title"] for match in matches}


def test_a_path_begins_and_ends_with_the_given_songs(client, ids):
    matches = ask(client, "findSonicPath.view", startSongId=ids[0], endSongId=ids[4], count="4")[
        "sonicMatch"
    ]
    songs = [match["entry"]["id"] for match in matches]
    assert (songs[0], songs[-1]) == (ids[0], ids[4])
    assert len(set(songs)) == 4
    assert matches[0]["similarity"] == 1.0
    assert (
        len(ask(client, "findSonicPath", startSongId=ids[0], endSongId=ids[4])["sonicMatch"]) == 6
    )


def test_a_path_to_the_same_song_is_that_song(client, ids):
    matches = ask(client, "findSonicPath", startSongId=ids[0], endSongId=ids[0])["sonicMatch"]
    assert [match["entry"]["id"] for match in matches] == [ids[0]]


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("getSonicSimilarTracks", {}, 10),
        ("getSonicSimilarTracks", {"id": "nothing"}, 70),
        ("findSonicPath", {"startSongId": "nothing"}, 70),
        ("findSonicPath", {"endSongId": "nothing"}, 10),
        ("getMoods", {}, 0),
    ],
)
def test_errors_have_the_codes_of_the_protocol(client, name, given, code):
    found = ask(client, name, **given)
    assert found["status"] == "failed"
    assert found["error"]["code"] == code
    assert found["error"]["message"]
    answer = client.get(f"/rest/{name}", params={"u": "me"} | given)
    root = ElementTree.fromstring(answer.content)
    assert (root.attrib["status"], root[0].attrib["code"]) == ("failed", str(code))


def test_a_song_is_streamed(client, ids, music):
    answer = client.get("/rest/stream.view", params={"id": ids[0]}, headers={"range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (206, b"fLaC")


def test_a_form_is_read_as_a_query_is(client, ids):
    answer = client.post("/rest/getSong", data={"id": ids[0], "f": "json"})
    assert answer.json()["subsonic-response"]["song"]["id"] == ids[0]
    long = client.post("/rest/getSong", data={"id": "x" * 100_000, "f": "json"})
    assert b"failed" in long.content


@pytest.fixture(scope="module")
def guarded(serve, table):
    return serve(table, Settings(access=Access("0.0.0.0", SECRET)))


def signed(salt="abcdef", password=SECRET):
    return {"t": hashlib.md5((password + salt).encode()).hexdigest(), "s": salt}


@pytest.mark.parametrize(
    "given", [{"p": SECRET}, {"p": "enc:" + SECRET.encode().hex()}, signed(), signed("other-salt")]
)
def test_the_password_passes_in_each_form(guarded, given):
    assert ask(guarded, "ping", **given)["status"] == "ok"


def test_the_key_passes_without_a_user(guarded):
    answer = guarded.get("/rest/ping", params={"apiKey": SECRET, "f": "json"})
    assert answer.json()["subsonic-response"]["status"] == "ok"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"p": "wrong"}, 40),
        ({"p": "enc:zz"}, 40),
        (signed(password="wrong"), 40),
        ({"t": signed()["t"]}, 10),
        ({}, 10),
        ({"apiKey": SECRET}, 43),
    ],
)
def test_a_wrong_password_is_refused_with_its_code(guarded, given, code):
    found = ask(guarded, "ping", **given)
    assert (found["status"], found["error"]["code"]) == ("failed", code)


def test_a_wrong_key_is_refused(guarded):
    answer = guarded.get("/rest/ping", params={"apiKey": "wrong", "f": "json"})
    assert answer.json()["subsonic-response"]["error"]["code"] == 44


def test_extensions_are_public(guarded):
    assert ask(guarded, "getOpenSubsonicExtensions")["status"] == "ok"
    assert ask(guarded, "getSong", id="x")["error"]["code"] == 10
