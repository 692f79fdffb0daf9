"""A folder that is embedded while it is served: progress, what was skipped, cancelling, going on."""

import shutil
import threading
import time

import pytest

from patchifier.app import Settings
from patchifier.app import job as app_job
from patchifier.library import job as library_job
from patchifier.library import worker


def ended(client):
    end = time.monotonic() + 60
    while (job := client.get("/api/status").json()["job"])["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return job


def test_a_folder_is_embedded_and_what_is_no_music_is_named(serve, music, tmp_path):
    folder = shutil.copytree(music, tmp_path / "mine")
    (folder / "text.mp3").write_text("text" * 100)
    client = serve(folder, Settings(out=tmp_path / "t.parquet", workers=1))
    job = ended(client)
    assert (job["state"], job["done"], job["total"], job["n_skipped"]) == ("done", 7, 7, 1)
    assert job["skipped"][0][0].endswith("text.mp3")
    status = client.get("/api/status").json()
    assert (status["name"], status["n_tracks"]) == ("mine", 6)
    assert (tmp_path / "t.parquet").exists()


def test_the_first_songs_are_listed_while_others_are_embedded(serve, music, tmp_path, monkeypatch):
    monkeypatch.setattr(app_job, "LOOK_S", 0.05)
    go_on, decode, count = threading.Event(), worker.embed_clips, 0

    def slow(embedder, cut, clips):
        nonlocal count
        count += len(clips)
        if count > library_job.FIRST_FILES:
            go_on.wait(30)
        return decode(embedder, cut, clips)

    monkeypatch.setattr(worker, "embed_clips", slow)
    client = serve(music, Settings(out=tmp_path / "t.parquet", workers=1))
    end = time.monotonic() + 30
    while (status := client.get("/api/status").json())["n_tracks"] == 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert (status["n_tracks"], status["job"]["state"]) == (4, "running")
    assert client.get("/api/tracks").json()["total"] == 4
    go_on.set()
    assert ended(client)["state"] == "done"
    assert client.get("/api/status").json()["n_tracks"] == 6


def test_a_table_in_the_cache_is_brought_up_to_date(serve, music, tmp_path):
    folder = shutil.copytree(music, tmp_path / "mine")
    assert ended(serve(folder, Settings(workers=1)))["state"] == "done"
    (folder / "0 song.flac").unlink()
    client = serve(folder, Settings(workers=1))
    assert ended(client)["state"] == "done"
    assert client.get("/api/status").json()["n_tracks"] == 5


@pytest.mark.parametrize("content", [None, "text" * 100])
def test_a_folder_without_music_is_said_and_asks_for_nothing(serve, tmp_path, content):
    folder = tmp_path / "empty"
    folder.mkdir()
    if content:
        (folder / "song.mp3").write_text(content)
    client = serve(folder, Settings(out=tmp_path / "t.parquet", workers=1))
    assert ended(client)["state"] == "failed"
    assert "song.mp3" in client.get("/api/status").json()["message"] or not content
    assert client.get("/api/status").json()["message"]
    assert client.get("/api/tracks").json() == {"total": 0, "tracks": []}
    assert client.post("/api/map").status_code == 409
    assert client.get("/api/duplicates").status_code == 409
    assert client.post("/api/similar", json={"like": ["x"]}).status_code == 404


def test_a_cancelled_job_keeps_its_finished_parts_and_goes_on_later(
    serve, music, tmp_path, monkeypatch
):
    monkeypatch.setattr(library_job, "PART_FILES", 1)
    monkeypatch.setattr(library_job, "TASK_FILES", 1)
    third, go_on, count = threading.Event(), threading.Event(), 0
    decode = worker.embed_clips

    def slow(*args):
        nonlocal count
        count += 1
        if count == 4:
            third.set()
            go_on.wait(20)
        return decode(*args)

    monkeypatch.setattr(worker, "embed_clips", slow)
    settings = Settings(out=tmp_path / "t.parquet", workers=1)
    client = serve(music, settings)
    assert third.wait(20)
    threading.Timer(0.3, go_on.set).start()
    client.post("/api/job/cancel")
    assert ended(client)["state"] == "cancelled"
    kept = client.get("/api/status").json()["n_tracks"]
    assert 1 <= kept < 6
    assert len(client.get("/api/tracks").json()["tracks"]) == kept
    again = serve(music, settings)
    assert ended(again)["state"] == "done"
    assert again.get("/api/status").json()["n_tracks"] == 6
