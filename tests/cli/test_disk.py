"""Full and read-only disks: one line, exit code 2, and what was there stays; then the same command goes on."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from patchifier import checkpoint, cli, io
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, update
from patchifier.nn.model import Patchifier

TINY = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "mlp_dim": 32,
    },
    "pretrain": {
        "validation_fraction": 0.4,
        "stage_one": {"steps": 2, "batch_size": 2},
        "stage_two": {"steps": 2, "batch_size": 2},
    },
}
SIZES_B = (0, 500, 5_000, 50_000)  # of the largest file that there is room for


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Config of a small model, beside a folder of that model."""
    config = update(Config(), TINY)
    checkpoint.save(tmp_path / "model", Checkpoint(Patchifier(config), config))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path / "tiny.json"


def command(name: str, audio: Path, cache: Path, tiny: Path) -> list[str]:
    model, out = ["--model", str(tiny.parent / "model")], tiny.parent / "out"
    words = {
        "prepare": ["prepare", audio, "--out", out, "--workers", "1"],
        "embed": ["embed", audio, "--out", f"{out}.parquet", "--workers", "1", *model],
        "embed npy": ["embed", audio, "--out", f"{out}.npy", "--workers", "1", *model],
        "pretrain": ["pretrain", cache, "--out", out, "--config", tiny, "--resume"],
        "export": ["export", tiny.parent / "model", "--onnx", f"{out}.onnx"],
    }
    return [str(word) for word in words[name]]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code of a command, and the lines that say why it failed."""
    code = cli.main(words)
    said = capsys.readouterr().err.splitlines()
    return code, [line for line in said if line.startswith(("patchifier", "Traceback"))]


@pytest.mark.parametrize("name", ["prepare", "embed", "embed npy", "pretrain"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    name, audio_folder, small_cache, tiny, threads, small_files, capsys
):
    words, codes = command(name, audio_folder, small_cache, tiny), []
    for size_b in SIZES_B:
        small_files(size_b)
        code, said = run(words, capsys)
        small_files(-1)
        assert code in (0, 2)
        assert len(said) == (code == 2), said
        codes.append(code)
    assert 2 in codes
    assert run(words, capsys) == (0, [])


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["prepare", "embed", "embed npy", "pretrain"])
def test_a_disk_that_is_full_at_the_last_moment_is_one_line(
    name, audio_folder, small_cache, tiny, threads, monkeypatch, capsys
):
    words = command(name, audio_folder, small_cache, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(io.os, "fsync", full)
        code, said = run(words, capsys)
    assert code == 2
    assert len(said) == 1
    assert "make room" in said[0]
    assert str(tiny.parent) in said[0]  # the file that there is no room for
    assert run(words, capsys) == (0, [])


def test_no_room_for_a_checkpoint_is_one_line_and_the_run_goes_on(
    small_cache, tiny, monkeypatch, capsys
):
    words = command("pretrain", small_cache, small_cache, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        code, said = run(words, capsys)
    assert (code, len(said)) == (2, 1)
    assert "make room" in said[0]
    assert run(words, capsys) == (0, [])
    weights = checkpoint.load(tiny.parent / "out" / "model").model.state_dict()
    assert all(np.isfinite(values.numpy()).all() for values in weights.values())
