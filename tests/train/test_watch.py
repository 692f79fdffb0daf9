"""Curves of a run that goes on: new rows are read, torn and replaced ones do not matter."""

import json
import os
import subprocess
import sys
import time

import pytest

from patchifier.cli import main
from patchifier.config import RequestError
from patchifier.jobs import LOCK, STATE_FILE, folder_lock
from patchifier.train.watch import Watched, sparkline


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"state": "running", "seconds": 12.0}))
    (tmp_path / "stage_two").mkdir()
    (tmp_path / "stage_two" / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.4\n3,0.")
    return tmp_path


@pytest.fixture
def alive(run):
    """The run, while a job holds its lock."""
    with folder_lock(run, "run"):
        yield run


def test_whole_rows_are_read_and_later_ones_added(run):
    watched = Watched(run)
    watched.update()
    assert watched.latest() == {"stage_two/metrics.csv": {"step": 2, "loss": 0.4}}
    with (run / "stage_two" / "metrics.csv").open("a") as stream:
        stream.write("3\n4,nan\n")
    (run / "stage_two" / "validation.csv").write_text("step,mse\n4,0.2\n")
    watched.update()
    (curve,) = [one for one in watched.curves.values() if one.path.name == "metrics.csv"]
    assert curve.columns["loss"][:3] == [0.5, 0.4, 0.3]
    assert watched.latest()["stage_two/validation.csv"] == {"step": 4, "mse": 0.2}


def test_a_file_that_a_resumed_run_wrote_anew_is_read_anew(run):
    watched = Watched(run)
    watched.update()
    (run / "stage_two" / "metrics.csv").write_text("step,loss\n1,9\n")
    watched.update()
    assert watched.latest()["stage_two/metrics.csv"]["loss"] == 9


def test_a_run_that_wrote_no_step_says_so(alive):
    run = alive
    (run / "stage_two" / "metrics.csv").unlink()
    watched = Watched(run)
    watched.update()
    assert "no step" in watched.text()
    assert not watched.ended


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no row yet"),
        ("step,loss\n", "no row yet"),
        ("step,loss\n1,0.5\n", "1 row to step 1"),
        ("step,loss\n1,0.5\n2,0.4\n", "2 rows to step 2"),
    ],
)
def test_a_file_without_a_row_has_no_step(content, said, run):
    (run / "stage_two" / "metrics.csv").write_text(content)
    watched = Watched(run)
    watched.update()
    assert f"stage_two/metrics.csv, {said}" in watched.text().splitlines()


def test_a_run_that_was_killed_has_stopped(run, capsys, monkeypatch):
    watched = Watched(run)
    assert watched.ended
    assert watched.text().startswith(f"{run}: stopped without an end, no state saved yet")
    (run / "stage_two" / STATE_FILE).touch()
    assert watched.text().startswith(f"{run}: stopped without an end: go on with --resume, 12 s")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # where it would watch on
    assert main(["watch", str(run)]) == 0
    assert not (run / LOCK).exists()
    capsys.readouterr()
    assert main(["watch", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["state"] == "stopped"


def test_a_run_whose_process_was_killed_has_stopped_and_one_that_works_has_not(tmp_path):
    code = """
import sys, time
from patchifier.config import Config
from patchifier.train.run import Run
with Run(sys.argv[1], Config()):
    print("begun", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        watched = Watched(tmp_path / "run")
        assert (watched.state, watched.ended) == ("running", False)
        process.kill()
        process.wait()
    assert (watched.state, watched.ended) == ("stopped", True)


def test_the_time_of_a_run_goes_on_while_it_works(alive):
    before_s = time.time() - 100
    os.utime(alive / "run.json", (before_s, before_s))
    assert Watched(alive).seconds("running") == pytest.approx(112, abs=5)
    assert Watched(alive).seconds("stopped") == 12


def test_where_there_are_no_locks_a_run_is_what_it_says(run, monkeypatch):
    monkeypatch.setattr("patchifier.train.watch.is_worked_on", lambda folder: None)
    assert not Watched(run).ended


def test_in_a_pipe_the_command_prints_once_and_ends(alive, capsys):
    run = alive
    assert main(["watch", str(run)]) == 0
    text = capsys.readouterr().out
    assert "running" in text
    assert "loss" in text
    assert main(["watch", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["latest"]["stage_two/metrics.csv"]["step"] == 2


@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_a_damaged_run_json_is_refused(run, damage):
    (run / "run.json").write_text(damage)
    with pytest.raises(RequestError):
        Watched(run).text()


def test_a_sparkline_has_one_block_for_each_part_and_keeps_the_extremes():
    assert sparkline([], 10) == ""
    assert sparkline([3.0] * 5, 10) == "▁▁▁▁▁"
    assert sparkline(list(range(1000)), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, float("inf"), 1.0]) == "▁ █"
