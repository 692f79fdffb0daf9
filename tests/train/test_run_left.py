"""What a kill leaves while the first file of a run is written does not refuse the same command."""

import pytest

from patchifier.config import Config, RequestError
from patchifier.train.run import Run


@pytest.mark.parametrize(
    "name", [".config.json.new", ".config.json.new.lock", ".config.json.new-12", ".run.json.new"]
)
def test_a_run_begins_beside_what_a_killed_one_left(tmp_path, name):
    (tmp_path / name).write_text("{")
    Run(tmp_path, Config(), facts={"kind": "pretrain"})
    assert (tmp_path / "config.json").exists()


def test_a_folder_with_other_files_is_still_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RequestError):
        Run(tmp_path, Config(), facts={"kind": "pretrain"})
