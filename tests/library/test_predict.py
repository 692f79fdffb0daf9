"""A fine-tuned model's answers about files: nothing is lost, and a kill costs one file."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from patchifier import audio, checkpoint, jobs
from patchifier.config import RequestError
from patchifier.embed import Embedder, load
from patchifier.library import predict
from patchifier.model_folder import OnnxNetwork
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from tests import builders, small

pytestmark = pytest.mark.usefixtures("threads")  # tests/cli/test_library.py has it in processes

CONFIG, NAMES = small.config(), ("calm", "loud", "odd")
MOOD = ("numbers", ("arousal", "valence"))


def model(kind="one-of", names=NAMES, config=CONFIG):
    torch.manual_seed(0)
    head = Head(16, len(names))
    torch.nn.init.normal_(head.linear.weight, std=4.0)
    return builders.embedder(Patchifier(config, seed=0), config, head=head, task=Task(kind, names))


@pytest.fixture
def ask(songs, tmp_path):
    """Predict about songs, by default about all."""

    def run(name="out.csv", *, of=songs, asked=None, **how):
        return predict.predict(of, tmp_path / name, model=asked or model(), **how)

    return run


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
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "pooling"), [("one-of", "cls"), ("many-of", "mean"), ("numbers", "mean")]
)
def test_the_graph_of_a_saved_model_gives_the_answers_of_torch(kind, pooling, songs, tmp_path):
    by_torch = model(kind, config=small.config(finetune={"pooling": pooling}))
    files = [songs / "a.wav", songs / "d.wav"]
    checkpoint.save(tmp_path / "model", checkpoint.checkpoint_of(by_torch))
    by_graph = load(tmp_path / "model")
    assert isinstance(by_graph.network, OnnxNetwork)
    np.testing.assert_allclose(by_graph.predict(files), by_torch.predict(files), atol=1e-5)


def test_rows_are_the_models_answers(ask, tmp_path):
    done, rows = ask(), read_csv(tmp_path / "out.csv")
    assert (done.rows, done.files, done.kept) == (4, 4, 0)
    for row in rows:
        answer = model().predict(row["path"])
        assert row["label"] == NAMES[int(answer.argmax())]
        assert float(row["probability"]) == pytest.approx(answer.max(), abs=1e-5)
        assert [float(row[name]) for name in NAMES] == pytest.approx(answer.tolist(), abs=1e-5)
        assert float(row["end_s"]) > 1.9
    ((path, reason),) = done.skipped
    assert path.endswith("broken.mp3")
    assert reason
    (named,) = read_csv(tmp_path / "out.skipped.csv")
    assert named["path"] == path


def test_a_list_of_skipped_files_is_written_for_some_and_emptied_for_none(ask, songs, tmp_path):
    listed = tmp_path / "out.skipped.csv"
    ask(of=songs / "a.wav")
    assert not listed.exists()
    ask()
    assert len(read_csv(listed)) == 1
    ask(of=songs / "a.wav")
    assert read_csv(listed) == []


def test_a_name_that_is_not_utf8_costs_only_itself(ask, songs, tmp_path):
    shutil.copy(songs / "a.wav", os.path.join(os.fsencode(songs), b"a\xff.wav"))
    assert ask().files == 4
    skipped = {Path(row["path"]).name for row in read_csv(tmp_path / "out.skipped.csv")}
    assert skipped == {"broken.mp3", r"a\xff.wav"}
    with pytest.raises(RequestError, match=r"a\\xff.wav: its name is not UTF-8: rename it"):
        ask(of=songs / os.fsdecode(b"a\xff.wav"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_form_holds_the_same_rows(suffix, ask, songs, tmp_path):
    path, asked = tmp_path / f"out{suffix}", model(*MOOD)
    ask(path.name, of=[songs / "a.wav", songs / "Χορός.wav"], asked=asked)
    rows = {
        ".csv": read_csv,
        ".parquet": lambda path: parquet.read_table(path).to_pylist(),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text("utf-8").splitlines()],
    }[suffix](path)
    assert [Path(row["path"]).name for row in rows] == ["a.wav", "Χορός.wav"]
    found = [[float(row[name]) for name in MOOD[1]] for row in rows]
    np.testing.assert_allclose(found, asked.predict([row["path"] for row in rows]), atol=1e-5)


def test_a_curve_over_time(ask, songs, tmp_path):
    ask(of=songs / "d.wav", window_s=2.0, hop_s=1.0)
    rows = read_csv(tmp_path / "out.csv")
    starts = [float(row["start_s"]) for row in rows]
    assert starts == sorted(starts)
    assert len(rows) >= 4
    assert starts[1] == pytest.approx(1.0, abs=0.02)
    assert len({row["calm"] for row in rows}) > 1


def test_tags_above_a_half_are_named(ask, songs, tmp_path):
    ask(of=songs / "a.wav", asked=model("many-of"))
    (row,) = read_csv(tmp_path / "out.csv")
    assert row["label"] == "|".join(name for name in NAMES if float(row[name]) >= 0.5)


def test_an_interrupted_job_goes_on(ask, tmp_path):
    ask("whole.csv")
    with pytest.raises(KeyboardInterrupt):
        ask("parts.csv", progress=lambda done, *_: done == 2 and interrupt())
    (unfinished,) = tmp_path.glob(".parts.csv.unfinished.jsonl")
    with unfinished.open("ab") as stream:
        stream.write(b'{"key": "torn')  # as a kill in the middle of a line leaves it
    shown = []
    assert ask("parts.csv", progress=lambda *call: shown.append(call)).kept == 2
    assert shown[0] == (2, shown[0][1], "")  # it says at once where it begins
    assert [done for done, *_ in shown] == list(range(2, shown[0][1] + 1))
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_another_models_half_is_not_taken_over(ask, songs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(predict, "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(of=songs / "a.wav")
    other = model("numbers", ("arousal", "valence", "tempo"))
    assert ask(of=songs / "a.wav", asked=other).kept == 0
    assert "tempo" in read_csv(tmp_path / "out.csv")[0]


def test_requests_that_cannot_be_met_are_refused(ask, songs, tmp_path):
    headless = builders.embedder(Patchifier(CONFIG), CONFIG)
    for said, how in {
        "patchifier finetune": {"asked": headless},
        r"\.csv, \.jsonl, \.parquet": {"name": "out.txt"},
        "none of the 1 files": {"of": songs / "broken.mp3"},
    }.items():
        with pytest.raises(RequestError, match=said):
            ask(**how)
    assert not (tmp_path / "out.csv").exists()


def test_a_second_job_with_the_same_output_is_refused(ask, tmp_path):
    lock = jobs.file_lock(tmp_path / "out.csv", "predict")
    with lock, pytest.raises(RequestError, match="another predict"):
        ask()
    assert ask().rows == 4


ALLOCATOR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [MemoryError(), ALLOCATOR])
def test_a_file_that_takes_more_memory_than_there_is_is_named(ask, monkeypatch, error):
    predict_windows = Embedder.predict_windows

    def predicted(self, path, **options):
        if path.endswith("b.wav"):
            raise error
        return predict_windows(self, path, **options)

    monkeypatch.setattr(Embedder, "predict_windows", predicted)
    done = ask()
    assert done.files == 3
    assert "memory" in {Path(path).name: reason for path, reason in done.skipped}["b.wav"]


def test_a_prediction_that_is_not_finite_is_not_written(ask, tmp_path):
    broken = model("numbers", ("arousal",))
    torch.nn.init.constant_(broken.network.head.linear.bias, float("nan"))
    with pytest.raises(RequestError, match="not finite"):
        ask(asked=broken)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("line", ["[]", "{}", "torn", "[" * 100_000])
def test_a_damaged_list_of_an_interrupted_job_is_begun_again(ask, tmp_path, line):
    (tmp_path / ".out.csv.unfinished.jsonl").write_text(f"{line}\n{line}\n")
    assert ask().rows == 4
