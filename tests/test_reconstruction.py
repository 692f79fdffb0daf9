"""What is filled in, beside guesses that need no model: errors of known size, paired over groups."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "open"))

import reconstruction

from patchifier.cache import Cache
from patchifier.config import Config, update
from patchifier.model import Patchifier

TINY = {"channels": [4, 4, 4, 4, 8], "width": 16, "layers": 1, "heads": 2, "feed_forward": 32}


class Knowing(Patchifier):
    """Fills in what there was, and a tenth more."""

    def reconstruct(self, patches, *, masked=None, present=None):
        return self.mel(patches) + 0.1


def errors(made: type[Patchifier], data: Cache, config: Config) -> dict[str, torch.Tensor]:
    parts = list(reconstruction.errors_of(made(config.model).eval(), data, np.arange(5), config))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_errors_are_those_of_masked_patches_and_the_same_crops_for_every_model(small_cache):
    config, data = update(Config(), {"model": TINY, "pretrain": {"patches": 8}}), Cache(small_cache)
    knowing, untrained = (errors(made, data, config) for made in (Knowing, Patchifier))
    assert list(knowing) == ["the model", "visible mean", "interpolation"]
    torch.testing.assert_close(knowing["the model"], torch.full((5,), 0.01))
    assert (untrained["the model"] > 0.02).all()
    for guess in ("visible mean", "interpolation"):
        assert torch.equal(knowing[guess], untrained[guess])
        assert (knowing[guess] > 1e-5).all()


def test_a_table_has_means_over_clips_and_paired_differences_over_groups():
    better = np.array([0.10, 0.20, 0.30, 0.40])
    errors = reconstruction.Errors(
        {"the model": better, "visible mean": better + 0.05, "interpolation": better - np.array([0.1, -0.1, 0.1, -0.1])},
        np.array(["scores", "scores", "grooves", "grooves"]),
        np.array(["scores/a", "scores/b", "grooves/a", "grooves/b"]),
    )
    rows = reconstruction.table(errors)
    assert [(row["clips"], row["number"]) for row in rows] == [("all", "4"), ("scores", "2"), ("grooves", "2")]
    assert [row["the model"] for row in rows] == ["0.25000", "0.15000", "0.35000"]
    assert {row["model - visible mean"] for row in rows} == {"-0.05000 [-0.05000, -0.05000]"}  # paired: groups differ, the difference does not
    value, low, high = (float(part.strip("[],")) for part in rows[0]["model - interpolation"].split())
    assert value == pytest.approx(0)
    assert low < -0.04 < 0.04 < high


def test_pieces_of_one_group_are_drawn_together():
    values = np.array([0.0, 0.0, 1.0, 1.0])
    wide, narrow = (
        reconstruction.table(reconstruction.Errors({"the model": values, "interpolation": np.zeros(4)}, np.array(["scores"] * 4), np.array(groups)))[0]
        for groups in (["a", "a", "b", "b"], ["a", "b", "a", "b"])
    )
    assert wide["model - interpolation"] == "+0.50000 [+0.00000, +1.00000]"
    assert narrow["model - interpolation"] == "+0.50000 [+0.50000, +0.50000]"


def test_a_root_without_the_benchmark_is_refused_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reconstruction.py", str(tmp_path), "--out", str(tmp_path / "out")])
    assert reconstruction.main() == 2
    assert "run 'python benchmarks/open/build.py" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
