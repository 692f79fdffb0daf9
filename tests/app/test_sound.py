"""The sound of a track: whole, in ranges, transcoded; and nothing but what the table names."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from patchifier.app import Settings


def test_the_whole_file_is_sent_with_its_type(client, ids, music):
    answer = client.get(f"/api/audio/{ids[0]}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.content == (music / "0 song.flac").read_bytes()


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ("bytes=10-19", slice(10, 20)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=100-", slice(100, None)),
    ],
)
def test_a_range_of_bytes_is_sent(client, ids, music, params, part):
    whole = (music / "0 song.flac").read_bytes()
    answer = client.get(f"/api/audio/{ids[0]}", headers={"range": params})
    assert answer.status_code == 206
    assert answer.content == whole[part]
    start = part.indices(len(whole))[0]
    assert answer.headers["content-range"].startswith(f"bytes {start}-")


def test_a_range_beyond_the_end_is_refused(client, ids):
    answer = client.get(f"/api/audio/{ids[0]}", headers={"range": "bytes=99999999-"})
    assert answer.status_code == 416


@pytest.mark.parametrize(("form", "rate"), [("wav", 44_100), ("ogg", 48_000)])
def test_a_file_is_transcoded_and_keeps_its_length(client, ids, form, rate):
    answer = client.get(f"/api/audio/{ids[1]}", params={"as": form})
    assert answer.headers["content-type"] == f"audio/{form}"
    sound, found = soundfile.read(io.BytesIO(answer.content))
    assert found == rate
    assert len(sound) / rate == pytest.approx(3.0, abs=0.05)


def test_a_transcoded_file_has_ranges_too(client, ids):
    whole = client.get(f"/api/audio/{ids[1]}", params={"as": "wav"}).content
    part = client.get(
        f"/api/audio/{ids[1]}", params={"as": "wav"}, headers={"range": "bytes=50-99"}
    )
    assert (part.status_code, part.content) == (206, whole[50:100])


def test_a_file_that_is_no_music_any_more_is_named_when_it_is_transcoded(serve, own):
    client = serve(own)
    track = client.get("/api/tracks").json()["tracks"][0]
    with open(track["path"], "w") as file:
        file.write("this is text\n" * 100)
    answer = client.get(f"/api/audio/{track['id']}", params={"as": "wav"})
    assert answer.status_code == 422
    assert track["path"] in answer.json()["error"]


@pytest.mark.parametrize(
    "name", ["../library.parquet", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "0 song.flac"]
)
def test_no_path_is_taken_for_an_id(client, name):
    assert client.get(f"/api/audio/{name}").status_code == 404


def test_the_page_gives_no_file_beyond_its_folder(client):
    for path in (
        "/../server.py",
        "/%2e%2e/server.py",
        "/..%2fserver.py",
        "/vendor/../../server.py",
    ):
        assert client.get(path).status_code == 404, path


def with_paths(table, out, paths):
    """Write a table whose files have other paths."""
    rows = pq.read_table(table)
    place = rows.column_names.index("path")
    rows = rows.slice(0, len(paths)).set_column(place, rows.schema.field("path"), pa.array(paths))
    pq.write_table(rows, out)
    return out


def strip_checksum(path):
    """Remove the checksum from a table that was changed."""
    import json

    rows = pq.read_table(path)
    facts = json.loads(rows.schema.metadata[b"patchifier"])
    facts.pop("crc32", None)
    facts["stretches"] = []
    pq.write_table(rows.replace_schema_metadata({b"patchifier": json.dumps(facts)}), path)
    return path


def test_relative_paths_count_from_the_music_and_none_leaves_it(serve, table, music, tmp_path):
    outside = tmp_path / "secret.flac"
    outside.write_bytes((music / "1 song.flac").read_bytes())
    link = music.parent / "linked"
    link.mkdir(exist_ok=True)
    for path in link.iterdir():
        path.unlink()
    (link / "a.flac").write_bytes((music / "0 song.flac").read_bytes())
    (link / "out.flac").symlink_to(outside)
    paths = ["a.flac", f"../{music.name}/0 song.flac", str(outside), "out.flac"]
    own = strip_checksum(with_paths(table, tmp_path / "paths.parquet", paths))
    client = serve(own, Settings(music=link))
    found = client.get("/api/tracks", params={"sort": "path", "limit": 10}).json()["tracks"]
    by_path = {track["path"]: track for track in found}
    statuses = {path: client.get(f"/api/audio/{by_path[path]['id']}").status_code for path in paths}
    assert statuses == {paths[0]: 200, paths[1]: 410, paths[2]: 410, paths[3]: 410}


def test_a_file_without_the_name_of_audio_is_not_sent_as_it_is(serve, table, tmp_path):
    secret = tmp_path / "passwords.txt"
    secret.write_text("secret")
    own = strip_checksum(with_paths(table, tmp_path / "secret.parquet", [str(secret)]))
    client = serve(own)
    one = client.get("/api/tracks").json()["tracks"][0]["id"]
    answers = [client.get(f"/api/audio/{one}", params=params) for params in ({}, {"as": "wav"})]
    assert [answer.status_code for answer in answers] == [415, 422]
    assert not any(answer.content == b"secret" for answer in answers)
