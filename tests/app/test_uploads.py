"""Uploads: a file from elsewhere becomes a song; what is no music, too large or too long is refused."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile

from patchifier.app import Settings
from patchifier.app.state import UploadLimits
from tests.app.conftest import RATE, song


def wav(hz=440.0, seconds=3.0):
    stream = io.BytesIO()
    soundfile.write(stream, song(hz, seconds), RATE, format="WAV")
    return stream.getvalue()


def upload(client, content, name="song.wav"):
    return client.post("/api/upload", params={"name": name}, content=content)


@pytest.fixture(scope="module")
def uploaded(client):
    answer = upload(client, wav(), "<b>mine.wav")
    assert answer.status_code == 200, answer.text
    return answer.json()["track"]


def left_behind(client):
    return list(client.app.state.served.folder.glob("upload-*"))


def test_an_upload_is_a_song_with_its_name_as_text(uploaded):
    assert uploaded["id"].startswith("upload-")
    assert uploaded["title"] == "<b>mine"
    assert uploaded["duration_s"] == pytest.approx(3.0, abs=0.1)


def test_an_upload_finds_the_same_sound_in_the_library(client, uploaded, ids):
    answer = client.post("/api/similar", json={"like": [uploaded["id"]], "count": 1}).json()
    assert answer["results"][0]["track"]["id"] == ids[3]
    assert answer["results"][0]["similarity"] > 0.95
    assert answer["close"] is True


def test_an_upload_plays_and_can_be_explained(client, uploaded, ids):
    assert client.get(f"/api/audio/{uploaded['id']}").content == wav()
    why = client.get("/api/why", params={"first": uploaded["id"], "second": ids[3]})
    assert why.json()["similarity"] > 0.95


def test_the_same_bytes_are_one_upload(client, uploaded):
    before = left_behind(client)
    assert upload(client, wav(), "again.wav").json()["track"]["id"] == uploaded["id"]
    assert left_behind(client) == before


def test_an_upload_cannot_stand_in_a_path_or_a_playlist(client, uploaded, ids):
    path = client.post("/api/path", json={"start": uploaded["id"], "end": ids[0]})
    playlist = client.post("/api/playlist", json={"ids": [uploaded["id"]]})
    assert path.status_code == playlist.status_code == 422


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"this is text\n" * 100, "song.mp3"), (b"", "song.mp3"), (wav()[:60], "song.wav")],
)
def test_what_is_no_music_is_refused_with_its_name_and_leaves_nothing(client, content, name):
    before = left_behind(client)
    answer = upload(client, content, name)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"{name}: ")
    assert "/" not in answer.json()["error"].split(":")[0]
    assert left_behind(client) == before


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\x.wav", "/etc/cron.d/x.wav", "a\n.wav", "\ud800.wav", ""]
)
def test_no_name_leads_out_of_the_folder_of_uploads(client, name):
    upload(client, wav(seconds=1.0), name.encode("utf-8", "surrogatepass").decode("latin-1"))
    folder = client.app.state.served.folder
    assert all(path.parent == folder for path in left_behind(client))


@pytest.fixture(scope="module")
def small(serve, table):
    return serve(table, Settings(limits=UploadLimits(bytes_mb=0.3, length_s=5.0)))


def test_an_upload_with_too_many_bytes_is_refused(small):
    for content in (wav(seconds=8.0), iter([wav(seconds=4.0)] * 2)):
        answer = upload(small, content)
        assert answer.status_code == 413
        assert "0.3 MB" in answer.json()["error"]
    assert left_behind(small) == []


def test_an_upload_that_is_too_long_is_refused(small):
    stream = io.BytesIO()
    soundfile.write(stream, song(220, 8.0), RATE, format="OGG", subtype="VORBIS")
    answer = upload(small, stream.getvalue(), "long.ogg")
    assert answer.status_code == 422
    assert "minutes" in answer.json()["error"]
    assert left_behind(small) == []


def test_the_oldest_upload_is_removed_for_a_further_one(client, monkeypatch):
    monkeypatch.setattr("patchifier.app.uploads.KEPT", 2)
    tracks = [upload(client, wav(hz, 1.0)).json()["track"]["id"] for hz in (300, 400, 500)]
    assert client.get(f"/api/audio/{tracks[0]}").status_code == 404
    assert [client.get(f"/api/audio/{one}").status_code for one in tracks[1:]] == [200, 200]


def test_a_library_of_another_model_takes_no_upload(serve, table):
    client = serve(table)
    client.app.state.served.embedder = None
    answer = upload(client, wav())
    assert answer.status_code == 409
    assert "--model" in answer.json()["error"]


def test_further_work_is_asked_to_wait(client, monkeypatch):
    served = client.app.state.served
    monkeypatch.setattr("patchifier.app.state.WAIT_S", 0.01)
    with served.turn(), served.turn():
        answer = upload(client, wav(250, 1.0))
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_many_uploads_at_once_are_bounded(client):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda hz: upload(client, wav(hz, 1.0)), range(300, 308)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert any(answer.status_code == 200 for answer in answers)
