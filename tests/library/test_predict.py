"""A fine-tuned model's answers about files: the rows are its answers, nothing is lost, a kill costs one file."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from pyarrow import parquet

from patchifier import audio, jobs
from patchifier.config import Config, RequestError, update
from patchifier.embed import Embedder
from patchifier.library import predict
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task

pytestmark = pytest.mark.usefixtures("threads")  # tests/cli/test_library.py has it in processes

TINY = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 32,
    }
}


def model(kind: str = "one-of", names=("calm", "loud", "odd"), seed: int = 0) -> Embedder:
    config = update(Config(), TINY)
    torch.manual_seed(seed)
    head = Head(16, len(names))
    torch.nn.init.normal_(head.linear.weight, std=4.0)
    return Embedder(Patchifier(config, seed=0), config, head=head, task=Task(kind, names))


@pytest.fixture
def songs(tmp_path, noise):
    """Five files, one of them no audio, one called in Greek."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for number, name in enumerate(("a", "b", "Χορός", "d")):
        audio.save(folder / f"{name}.wav", noise(2.0 + number, seed=number))
    (folder / "broken.mp3").write_bytes(b"no audio" * 100)
    return folder


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_rows_are_the_models_answers(songs, tmp_path):
    asked = model()
    done = predict.predict(songs, tmp_path / "out.csv", model=asked)
    rows = read_csv(tmp_path / "out.csv")
    assert (done.rows, done.files, done.kept) == (4, 4, 0)
    for row in rows:
        answer = asked.predict(row["path"])
        assert row["label"] == ("calm", "loud", "odd")[int(answer.argmax())]
        assert float(row["probability"]) == pytest.approx(answer.max(), abs=1e-5)
        assert [float(row[name]) for name in ("calm", "loud", "odd")] == pytest.approx(
            answer.tolist(), abs=1e-5
        )
        assert float(row["end_s"]) > 1.9
    ((path, reason),) = done.skipped
    assert path.endswith("broken.mp3")
    assert reason
    (named,) = read_csv(tmp_path / "out.skipped.csv")
    assert named["path"] == path


def test_a_name_that_is_not_utf8_costs_only_itself(songs, tmp_path):
    shutil.copy(songs / "a.wav", os.path.join(os.fsencode(songs), b"a\xff.wav"))
    done = predict.predict(songs, tmp_path / "out.csv", model=model())
    assert done.files == 4
    assert {row["path"].rpartition("/")[2] for row in read_csv(tmp_path / "out.skipped.csv")} == {
        "broken.mp3",
        r"a\xff.wav",
    }
    with pytest.raises(RequestError, match=r"a\\xff.wav: its name is not UTF-8: rename it"):
        predict.predict(songs / os.fsdecode(b"a\xff.wav"), tmp_path / "out.csv", model=model())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_form_holds_the_same_rows(suffix, songs, tmp_path):
    path = tmp_path / f"out{suffix}"
    predict.predict(
        [songs / "a.wav", songs / "Χορός.wav"], path, model=model("numbers", ("arousal", "valence"))
    )
    if suffix == ".csv":
        rows = read_csv(path)
    else:
        rows = (
            parquet.read_table(path).to_pylist()
            if suffix == ".parquet"
            else [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        )
    assert [row["path"].rpartition("/")[2] for row in rows] == ["a.wav", "Χορός.wav"]
    expected = model("numbers", ("arousal", "valence")).predict([row["path"] for row in rows])
    np.testing.assert_allclose(
        [[float(row[name]) for name in ("arousal", "valence")] for row in rows], expected, atol=1e-5
    )


def test_a_curve_over_time(songs, tmp_path):
    predict.predict(songs / "d.wav", tmp_path / "out.csv", model=model(), window_s=2.0, hop_s=1.0)
    rows = read_csv(tmp_path / "out.csv")
    starts = [float(row["start_s"]) for row in rows]
    assert starts == sorted(starts)
    assert len(rows) >= 4
    assert starts[1] == pytest.approx(1.0, abs=0.02)
    assert len({row["calm"] for row in rows}) > 1


def test_tags_above_a_half_are_named(songs, tmp_path):
    predict.predict(songs / "a.wav", tmp_path / "out.csv", model=model("many-of"))
    (row,) = read_csv(tmp_path / "out.csv")
    assert row["label"] == "|".join(
        name for name in ("calm", "loud", "odd") if float(row[name]) >= 0.5
    )


def test_an_interrupted_job_goes_on(songs, tmp_path):
    predict.predict(songs, tmp_path / "whole.csv", model=model())

    def stop_after_two(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict.predict(songs, tmp_path / "parts.csv", model=model(), progress=stop_after_two)
    (unfinished,) = tmp_path.glob(".parts.csv.unfinished.jsonl")
    unfinished.write_bytes(
        unfinished.read_bytes() + b'{"key": "torn'
    )  # as a kill in the middle of a line leaves it
    done = predict.predict(songs, tmp_path / "parts.csv", model=model())
    assert done.kept == 2
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_another_models_half_is_not_taken_over(songs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            predict, "_write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            predict.predict(songs / "a.wav", tmp_path / "out.csv", model=model())
    done = predict.predict(
        songs / "a.wav",
        tmp_path / "out.csv",
        model=model("numbers", ("arousal", "valence", "tempo")),
    )
    assert done.kept == 0
    assert "tempo" in read_csv(tmp_path / "out.csv")[0]


def test_a_model_without_a_head_is_refused(songs, tmp_path):
    config = update(Config(), TINY)
    with pytest.raises(RequestError, match="patchifier finetune"):
        predict.predict(songs, tmp_path / "out.csv", model=Embedder(Patchifier(config), config))


def test_other_endings_and_nothing_readable_are_refused(songs, tmp_path):
    with pytest.raises(RequestError, match=r"\.csv, \.jsonl, \.parquet"):
        predict.predict(songs, tmp_path / "out.txt", model=model())
    with pytest.raises(RequestError, match="none of the 1 files"):
        predict.predict(songs / "broken.mp3", tmp_path / "out.csv", model=model())
    assert not (tmp_path / "out.csv").exists()


def test_a_second_job_with_the_same_output_is_refused(songs, tmp_path):
    out = tmp_path / "out.csv"
    with jobs.file_lock(out, "predict"), pytest.raises(RequestError, match="another predict"):
        predict.predict(songs, out, model=model())
    assert predict.predict(songs, out, model=model()).rows == 4
