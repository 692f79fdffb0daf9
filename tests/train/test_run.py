"""Run folders: what a resumed run must have in common with the one that began."""

from pathlib import Path

import pytest

from patchifier.config import Config, RequestError, update
from patchifier.train.run import Run


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
