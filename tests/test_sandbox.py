"""A decoder that dies, hangs, eats memory or writes to the terminal costs its file and no other."""

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from patchifier import audio, jobs
from patchifier.config import RequestError
from tests import audio_files as made


def attempt_all(shared: None, names: Sequence[str]) -> list[str]:
    return [jobs.attempt(name, decode, name) for name in names]


def decode(name: str) -> str:
    """Stand for a decoder that does what its file's name says."""
    if name == "hangs":
        ctypes.PyDLL(None).sleep(600)  # inside C, with Python's lock held
    if name == "eats":
        return str(np.ones(2**27).sum())
    if name in ("fails", "dies"):
        os.write(2, b"lost sync\nlost sync\n")
        ctypes.CDLL(None).puts(b"printed")
    if name == "dies":
        os._exit(139)
    if name == "fails":
        raise RequestError(f"{name}: no audio.")
    return f"{name} decoded"


@pytest.mark.skipif(os.name == "nt", reason="needs a C library with sleep and puts")
def test_each_bad_file_is_named_with_its_reason_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATCHIFIER_MAX_IDLE_S", "2")
    monkeypatch.setenv("PATCHIFIER_MAX_MEMORY_MB", "500")
    batches = [["a", "eats", "fails", "b"], ["c", "hangs", "d"], ["e", "dies", "f"]]
    a, eats, fails, b, c, hangs, d, e, dies, f = jobs.run(attempt_all, batches, workers=1)
    assert [a, b, c, d, e, f] == [f"{name} decoded" for name in "abcdef"]
    assert eats.startswith("eats: needs more memory than 500 MB")
    assert "PATCHIFIER_MAX_MEMORY_MB" in eats
    assert fails == "fails: no audio. Its decoder says: lost sync printed"
    assert hangs.startswith("hangs: no progress for 2 s")
    assert "PATCHIFIER_MAX_IDLE_S" in hangs
    assert dies.startswith("dies: the decoder crashed on this file (lost sync")
    shown = capfd.readouterr()
    assert "lost sync" not in shown.err + shown.out


def beat(shared: None, names: Sequence[str]) -> list[str]:
    return [jobs.attempt(name, slowly, name) for name in names]


def slowly(path: str) -> str:
    for _ in range(6):
        time.sleep(0.5)
        audio.load(path)
    return "decoded"


def test_slow_file_that_makes_progress_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHIFIER_MAX_IDLE_S", "2.5")
    path = made.wav(tmp_path / "a.wav", 1.0)
    assert list(jobs.run(beat, [[str(path)]], workers=1)) == ["decoded"]


def test_interrupted_job_ends_processes_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GRACE_S", 0.5)
    results = jobs.run(attempt_all, [["a"], ["hangs"]], workers=1)
    assert next(results) == "a decoded"
    started_s = time.monotonic()
    results.close()
    assert time.monotonic() - started_s < 60


def notes_of(shared: None, paths: Sequence[str]) -> list[list[str]]:
    return [jobs.attempt(path, _notes, path) for path in paths]


def _notes(path: str) -> list[str]:
    how = audio.Decoding()
    for _ in audio.blocks(path, how=how):
        pass
    return how.notes


def test_warnings_of_a_decoder_are_notes_about_its_file(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path = made.with_hole(tmp_path / "a.mp3", 6.0)
    (notes,) = jobs.run(notes_of, [[str(path)]], workers=1)
    assert any(note.startswith("its decoder says: ") and "header" in note.lower() for note in notes)
    assert "header" not in capfd.readouterr().err.lower()
