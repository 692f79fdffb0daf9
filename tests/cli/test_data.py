"""Commands about data: what prepare says about the task and about skipped files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from patchifier import cli


@pytest.fixture
def songs(tmp_path: Path, threads: None) -> Path:
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.full(11_025, 0.1 * number), 22_050)
    return tmp_path


def prepare(folder: Path, *rows: str, as_json: bool = False) -> int:
    (folder / "t.csv").write_text("".join(f"{row}\n" for row in rows))
    words = ["prepare", str(folder / "t.csv"), "--out", str(folder / "cache"), "--workers", "1"]
    return cli.main(words + ["--json"] * as_json)


def test_prepare_prints_the_task_it_inferred_and_why(songs: Path, capsys) -> None:
    assert prepare(songs, "path,label", "0.wav,0", "1.wav,1", "2.wav,NA") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("task: regression (1: value), metric r2; every target is a number")
    assert "column 'task' with multiclass" in line
    assert line.endswith("1 of 3 clips without target")


def test_prepare_prints_the_task_that_the_manifest_states(songs: Path, capsys) -> None:
    rows = ["path,label,metric", "0.wav,0,accuracy", "1.wav,1,accuracy", "2.wav,2,accuracy"]
    assert prepare(songs, *rows, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["task"] == {
        "kind": "one-of",
        "names": ["0", "1", "2"],
        "metric": "accuracy",
        "reason": "column 'metric' says so",
    }


def test_labels_that_differ_in_case_alone_are_named_and_stay_different(songs: Path, capsys) -> None:
    rows = ["path,label", "0.wav,Calm", "1.wav,calm", "2.wav,loud"]
    assert prepare(songs, *rows) == 0
    shown = capsys.readouterr()
    assert "spaces alone are different labels: 'Calm', 'calm'\n" in shown.err
    assert "task: multiclass (3: Calm, calm, loud)" in shown.out


def test_prepare_names_each_skipped_file_once_and_ends_with_count_and_list(
    songs: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("a.m4a", "b.m4a"):
        (songs / name).write_bytes(b"no audio\0" * 99)
    (songs / "dead.wav").symlink_to("nowhere.wav")
    words = ["prepare", str(songs), "--out", str(songs / "cache"), "--workers", "1"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("skipped")]
    for line, name in zip(lines, ("a.m4a", "b.m4a", "dead.wav"), strict=True):
        assert line.count(str(songs / name)) == 1
    assert err.count("pip install") == 1
    assert out.endswith(f"; 3 skipped, named in {songs / 'cache' / 'skipped.csv'}\n")
