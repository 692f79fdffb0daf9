"""Teaching over the API: a head from a few songs, applied, predicted with, and saved."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest

import patchifier
from patchifier import heads
from patchifier.app import Settings
from patchifier.app.teach_csv import teach_csv


@pytest.fixture(scope="module")
def taught(client, ids):
    labels = {"=low": ids[:3], "high": ids[3:5]}
    answer = client.post("/api/teach", json={"name": "pitch", "labels": labels})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_is_known_of_a_head_is_said(taught, ids):
    assert taught["head"] == "pitch"
    assert taught["names"] == ["=low", "high"]
    assert (taught["n"], taught["enough"]) == (5, False)
    low, high = taught["interval"]
    assert 0 <= low <= taught["accuracy"] <= high <= 1
    assert [one["track"]["id"] for one in taught["doubtful"]] == [ids[5]]


def test_what_the_accuracy_is_compared_with_is_said(taught):
    assert taught["majority"] == {"label": "=low", "accuracy": 0.6}
    right = [row[place] for place, row in enumerate(taught["confusion"])]
    assert taught["never_right"] == [n for n, count in zip(taught["names"], right) if not count]
    assert {"tag": "artist", "n": 2, "most": "Grieg"} in taught["shared"]
    assert {"tag": "album", "n": 4, "most": "Peer Gynt"} in taught["shared"]


def test_a_csv_teaches_the_same_and_a_tag_groups_its_songs(taught, table, music, tmp_path):
    rows = [f"{number} song.flac,{'high' if number > 2 else '=low'}" for number in range(5)]
    (tmp_path / "pitch.csv").write_text(
        "\n".join(["path,target", *rows]).replace("\n", f"\n{music}/")
    )
    found = teach_csv(table, tmp_path / "pitch.csv")
    assert found.taught.accuracy == taught["accuracy"]
    assert found.shared["artist"] == (2, "Grieg")
    grouped = teach_csv(table, tmp_path / "pitch.csv", group="album")
    assert grouped.taught.method == "leave one group out"
    assert grouped.groups == {"=low": 2, "high": 2}
    assert (grouped.grouped_by, grouped.ungrouped, grouped.shared) == ("album", 0, {})
    assert grouped.taught.confusion.sum() == 5


def test_a_head_labels_the_whole_library(client, taught, ids):
    labels = client.post("/api/teach/apply", json={"head": "pitch"}).json()["labels"]
    assert set(labels) == set(ids)
    assert [labels[one]["label"] for one in ids[:5]] == ["=low"] * 3 + ["high"] * 2


def test_a_head_predicts_for_one_song(client, taught, ids):
    found = client.post("/api/predict", json={"id": ids[4], "head": "pitch"}).json()
    assert found["names"] == ["=low", "high"]
    assert sum(found["values"]) == pytest.approx(1, abs=1e-3)
    assert found["values"][1] > 0.5


def test_heads_are_listed(client, taught):
    rows = client.get("/api/heads").json()
    assert [row["name"] for row in rows] == ["pitch"]
    assert rows[0]["labels"] == ["=low", "high"]


def test_labels_are_saved_as_csv_that_no_spreadsheet_computes(client, taught):
    answer = client.post("/api/teach/save", json={"head": "pitch", "what": "csv"})
    rows = answer.text.splitlines()
    assert rows[0] == "path,label,probability,given"
    assert len(rows) == 7
    assert ",'=low," in rows[1]
    assert [row.rpartition(",")[2] for row in rows[1:]] == [*["'=low"] * 3, "high", "high", ""]
    name = answer.headers["content-disposition"]
    assert name == 'attachment; filename="pitch-predicted.csv"'


def test_a_saved_head_predicts_what_the_page_does(client, taught, ids, music, tmp_path):
    answer = client.post("/api/teach/save", json={"head": "pitch", "what": "head"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    head = heads.read(tmp_path / "pitch")
    assert head.names == ("=low", "high")
    params = {"id": ids[0], "head": "pitch"}
    values = client.post("/api/predict", json=params).json()["values"]
    vector = patchifier.load().embed(music / "0 song.flac")
    assert head.probabilities(vector).tolist() == pytest.approx(values, abs=2e-4)
    assert head.identity == client.get("/api/status").json()["identity"]


@pytest.mark.parametrize(
    ("labels", "status"),
    [
        ({"one": [0, 1]}, 400),
        ({"one": [0], "two": [1, 2]}, 400),
        ({"one": [0, 1], "two": [1, 2]}, 400),
        ({"one": [0, 1], "two": [2, 99]}, 404),
        ({}, 400),
    ],
)
def test_what_cannot_be_taught_is_refused(client, ids, labels, status):
    named = {
        name: [ids[n] if n < 6 else "no-such-id" for n in some] for name, some in labels.items()
    }
    answer = client.post("/api/teach", json={"labels": named})
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize("name", ["../x", "", "a" * 100, "a\nb", "/etc"])
def test_a_name_that_is_no_name_is_refused(client, ids, name):
    params = {"name": name, "labels": {"a": ids[:2], "b": ids[2:4]}}
    assert client.post("/api/teach", json=params).status_code == 400


def test_a_head_that_was_not_taught_is_unknown(client, ids):
    for address, params in (("apply", {}), ("save", {})):
        answer = client.post(f"/api/teach/{address}", json={"head": "none"} | params)
        assert answer.status_code == 404
    assert client.post("/api/predict", json={"id": ids[0], "head": "none"}).status_code == 404


def test_saved_heads_are_read_and_one_that_cannot_be_used_is_named_and_left_out(
    client, serve, table, taught, ids, tmp_path, capsys
):
    answer = client.post("/api/teach/save", json={"head": "pitch", "what": "head"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    again = serve(table, Settings(heads=tmp_path))
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "pitch.zip").write_bytes(answer.content)
    of_zip = serve(table, Settings(heads=tmp_path / "zipped"))
    assert of_zip.get("/api/heads").json() == again.get("/api/heads").json()
    before = client.get("/api/heads").json()[0]
    assert again.get("/api/heads").json() == [before]
    assert before["accuracy"]["n"] == 5
    params = {"id": ids[0], "head": "pitch"}
    assert (
        again.post("/api/predict", json=params).json()
        == client.post("/api/predict", json=params).json()
    )
    head = heads.read(tmp_path / "pitch")
    dataclasses.replace(head, identity="another").save(tmp_path / "other")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "head.json").write_text("{")
    text = (head.save(tmp_path / "endless") / "head.json").read_text()
    (tmp_path / "endless" / "head.json").write_text(
        text.replace('"facts": {', '"facts": {"x": NaN,')
    )
    header = b'{"weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(2)
    (head.save(tmp_path / "eighths") / "head.safetensors").write_bytes(content)
    head.save(tmp_path / ".pitch.new")
    found = serve(table, Settings(heads=tmp_path)).get("/api/heads").json()
    assert [row["name"] for row in found] == ["pitch"]
    said = capsys.readouterr().err
    for name in ("other", "damaged", "endless", "eighths"):
        assert f"left out: {tmp_path / name} " in said
    assert ".pitch.new" not in said


def test_a_head_that_doubts_says_so_in_place_of_a_label(client, serve, table, taught, tmp_path):
    answer = client.post("/api/teach/save", json={"head": "pitch", "what": "head"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    head = heads.read(tmp_path / "pitch")
    ones = np.ones(head.size, np.float32)
    known = heads.Known(ones, ones, ones, furthest=0.0, beyond=0.0)
    dataclasses.replace(head, known=known).save(tmp_path / "pitch")
    again = serve(table, Settings(heads=tmp_path))
    labels = again.post("/api/teach/apply", json={"head": "pitch"}).json()["labels"]
    assert {one["label"] for one in labels.values()} == {"not sure"}
