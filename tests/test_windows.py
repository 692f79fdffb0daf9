"""Every kind of writing, where the system refuses what Windows refuses; the fixture `windows` says what that is."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from patchifier import cache, checkpoint, datasets, io, jobs
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, update
from patchifier.datasets import transfer
from patchifier.embed import Embedder
from patchifier.io import replaced_file, replaced_folder, write_text
from patchifier.library import build
from patchifier.library.search import Index
from patchifier.nn.encode import model_hash
from patchifier.nn.model import Patchifier
from patchifier.train.checkpointer import Checkpointer, State
from tests import builders

pytestmark = pytest.mark.usefixtures("windows", "threads")

TINY = update(
    Config(),
    {
        "model": {
            "channels": [4, 4, 4, 4, 8],
            "embed_dim": 16,
            "n_layers": 1,
            "n_heads": 2,
            "mlp_dim": 32,
        }
    },
)


@pytest.fixture
def embedder() -> Embedder:
    return builders.embedder(Patchifier(TINY), TINY)


@pytest.fixture
def music(audio_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audio_folder, tmp_path / "library"))


def test_the_emulation_refuses_what_windows_refuses(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    with one.open("rb") as stream:
        for refused in (lambda: os.fsync(stream.fileno()), lambda: two.replace(one), one.unlink):
            with pytest.raises(OSError, match=r"used by another|Bad file"):
                refused()
    with pytest.raises(FileExistsError):
        one.rename(two)
    mapped = np.memmap(one, np.uint8)
    with pytest.raises(PermissionError):
        two.replace(one)
    del mapped
    two.replace(one)
    assert one.read_text() == "2"


def test_files_and_folders_are_replaced_and_nothing_is_left_beside_them(tmp_path):
    for text in ("1", "2"):
        write_text(tmp_path / "file", text)
        with replaced_folder(tmp_path / "folder") as new:
            (new / "part").write_text(text)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "part").read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_error_while_the_file_is_open_is_the_error_that_is_seen(tmp_path):
    streams = []

    def fail():
        with replaced_file(tmp_path / "file") as new:
            streams.append(new.open("wb"))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    streams[0].close()


def test_a_file_that_a_scanner_holds_for_a_moment_is_replaced(tmp_path, monkeypatch):
    path, attempts = tmp_path / "file", []
    path.write_text("old")
    replace = Path.replace

    def held_twice(self, target):
        attempts.append(target)
        if len(attempts) < 3:
            raise PermissionError("a scanner has it")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held_twice)
    monkeypatch.setattr(io, "RENAME_WAITS_S", (0.0, 0.0, 0.0))
    write_text(path, "new")
    assert path.read_text() == "new"


def test_texts_have_the_same_bytes_on_every_system(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(tmp_path / "file", "one\ntwo\n")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"


def test_a_model_is_saved_over_one_that_is_in_use(tmp_path):
    folder = tmp_path / "model"
    checkpoint.save(folder, Checkpoint(Patchifier(TINY, seed=0), TINY))
    used = checkpoint.load(folder)
    checkpoint.save(folder, Checkpoint(Patchifier(TINY, seed=1), TINY))
    assert model_hash(checkpoint.load(folder).model) != model_hash(used.model)


def test_a_resumed_training_saves_over_the_state_that_it_read(tmp_path):
    def keeper() -> Checkpointer:
        model = torch.nn.Linear(3, 3)
        optimiser = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 3)).sum().backward()
        optimiser.step()
        return Checkpointer(tmp_path, model, optimiser, settings=["same"])

    first, second = keeper(), keeper()
    first.keep_best()
    first.save(State(step=1))
    assert second.load().step == 1
    second.save(State(step=2))
    assert keeper().load().step == 2


def test_a_cache_grows_while_it_is_read(music, tmp_path, noise):
    out = tmp_path / "cache"
    cache.prepare(datasets.load(music), out, workers=1)
    reader = cache.Cache(out)
    before = np.array(reader.log_mel(0))
    soundfile.write(music / "new.wav", noise(2.0), 22_050)
    assert cache.prepare(datasets.load(music), out, workers=1).decoded == 1
    np.testing.assert_array_equal(reader.log_mel(0), before)


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
def test_a_table_is_brought_up_to_date(name, music, tmp_path, noise, embedder):
    out = tmp_path / name
    build.embed_library(music, out, embedder=embedder, workers=1)
    soundfile.write(music / "new.wav", noise(2.0), 22_050)
    done = build.embed_library(music, out, embedder=embedder, workers=1, changed=True)
    assert (done.embedded, done.kept, len(build.read(out))) == (1, 6, 7)


def test_an_index_is_replaced(music, tmp_path, embedder):
    pytest.importorskip("lancedb")
    table = tmp_path / "x.parquet"
    build.embed_library(music, table, embedder=embedder, workers=1)
    for _ in range(2):
        assert len(Index.build(table, tmp_path / "index")) == 6


def test_a_download_is_put_in_its_place(tmp_path):
    part, path = tmp_path / "a.zip.part", tmp_path / "a.zip"
    part.write_bytes(b"new")
    path.write_bytes(b"old")
    transfer.finish(part, path)
    assert path.read_bytes() == b"new"
    assert not part.exists()


def test_more_processes_than_windows_can_wait_for_are_not_started(monkeypatch):
    monkeypatch.undo()  # real pools, of which no process is started
    monkeypatch.setattr(sys, "platform", "win32")
    with jobs.process_pool(200) as pool:
        assert not isinstance(pool, ThreadPoolExecutor)
