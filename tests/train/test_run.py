"""Run folders: what a resumed run must have in common with the one that began."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchifier.config import Config, RequestError, update
from patchifier.train import run as run_module
from patchifier.train.run import Interrupted, Run, continued


def test_each_changed_field_is_named_with_both_values(tmp_path: Path) -> None:
    changes = {
        "augment": {"time_stretch": [1, 1]},
        "pretrain": {"seed": 3, "stage_one": {"steps": 7}},
    }
    with Run(tmp_path / "run", Config()):
        pass
    with pytest.raises(RequestError) as refused:
        Run(tmp_path / "run", update(Config(), changes), resume=True)
    assert (
        ": augment.time_stretch was [0.9, 1.2], now [1.0, 1.0]; pretrain.seed was 0, now 3. "
        f"Resume with --config {tmp_path / 'run' / 'config.json'}"
    ) in str(refused.value)


def test_a_run_of_another_length_is_resumed(tmp_path: Path) -> None:
    with Run(tmp_path / "run", Config()):
        pass
    Run(tmp_path / "run", update(Config(), {"pretrain": {"stage_one": {"steps": 7}}}), resume=True)


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_killed_run_keeps_the_seconds_up_to_its_last_checkpoint(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from patchifier.config import Config
from patchifier.train.run import Run
with Run(sys.argv[1], Config()) as run:
    time.sleep(0.5)
    run.keep_time()
    os.kill(os.getpid(), signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    killed = facts_of(tmp_path / "run")
    assert killed["state"] == "running"
    assert killed["seconds"] >= 0.5
    with Run(tmp_path / "run", Config(), resume=True):
        pass
    assert facts_of(tmp_path / "run")["seconds"] >= killed["seconds"]


def test_a_resumed_run_keeps_command_and_time_of_its_first_start(tmp_path, monkeypatch) -> None:
    starts = []
    for number in range(3):
        monkeypatch.setattr(run_module, "command", lambda number=number: f"command {number}")
        with Run(tmp_path / "run", Config(), resume=number > 0):
            pass
        facts = facts_of(tmp_path / "run")
        starts.append((facts["command"], facts["started"]))
    assert set(starts) == {("command 0", starts[0][1])}
    assert [later["command"] for later in facts["resumed"]] == ["command 1", "command 2"]


def test_a_comparison_that_is_made_anew_is_told_by_its_own_command(tmp_path, monkeypatch) -> None:
    for number in range(2):
        monkeypatch.setattr(run_module, "command", lambda number=number: f"command {number}")
        with Run(tmp_path / "run", None, resume=True):
            pass
    assert facts_of(tmp_path / "run")["command"] == "command 1"


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "finished"), (ValueError("x"), "failed"), (Interrupted("x"), "interrupted")],
)
def test_a_further_part_of_a_run_decides_how_it_ended(error, state, tmp_path: Path) -> None:
    with Run(tmp_path / "run", Config(), facts={"kind": "finetune"}):
        pass
    try:
        with continued(tmp_path / "run", "controls") as keep_time:
            time.sleep(0.2)
            keep_time()
            assert facts_of(tmp_path / "run")["state"] == "running"
            assert facts_of(tmp_path / "run")["seconds"] >= 0.2
            if error:
                raise error
    except (ValueError, Interrupted):
        pass
    facts = facts_of(tmp_path / "run")
    assert (facts["state"], facts["kind"]) == (state, "finetune")
    assert facts.get("error") == ("controls: ValueError: x" if state == "failed" else None)
