"""Rows screened on one small unit."""

import itertools
from pathlib import Path

import pytest
import screen
import torch
from tests import small

from patchifier.cache import Cache
from patchifier.config import Config, RequestError, update
from patchifier.nn.model import Patchifier

STAGE = {"steps": 2, "batch_size": 2}
PRETRAIN = {"n_patches": 4, "validation_fraction": 0.2, "stage_one": STAGE, "stage_two": STAGE}
TINY = small.config({**small.NARROW, "max_patches": 4}, pretrain={**PRETRAIN, "precision": "32"})


@pytest.mark.parametrize("recipe", screen.ROWS)
def test_a_row_keeps_what_it_is_and_takes_the_units_size(recipe):
    given = update(Config(), screen.read_changes(screen.RECIPES / f"{recipe}.json"))
    config = screen.unit(recipe, 3, Path("root"))
    model, pretrain = config.model, config.pretrain
    assert (model.embed_dim, model.n_layers, config.embed.whiten) == (192, 4, False)
    assert pretrain.seed == 3
    seconds = pretrain.n_patches * model.patch_frames * config.spectrogram.frame_s
    assert seconds == pytest.approx(10.0, abs=0.5)
    for name in ("objectives", "mask_ratio", "visible_span_ratio", "stage_two_patches"):
        assert getattr(pretrain, name) == getattr(given.pretrain, name)
    assert (config.spectrogram, config.augment) == (given.spectrogram, given.augment)
    assert Patchifier(config).parameter_count() < 6_000_000


def test_time_is_shared_by_the_stages_and_buys_steps(small_cache, monkeypatch):
    step_s = {"one": 0.5, "two": 0.1}
    monkeypatch.setattr(screen, "seconds_per_step", lambda stage, data, config: step_s[stage])

    def planned(recipe):
        return screen.with_steps(
            screen.unit(recipe, 0, Path("root")), Cache(small_cache), 60
        ).pretrain

    both, alone = planned("base-paper"), planned("paper")
    assert (both.stage_one.steps, both.stage_two.steps) == (60, 300)
    assert (alone.stage_two.steps, alone.stage_two.warmup_steps) == (600, 30)
    assert (alone.validate_every, alone.stages) == (600, "two")


def test_a_row_is_trained_once(small_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(screen, "unit", lambda recipe, seed, root: TINY)
    monkeypatch.setattr(screen, "with_steps", lambda config, data, seconds: config)
    (tmp_path / "cache-all").symlink_to(small_cache)
    model = screen.train("base-paper", tmp_path, tmp_path / "out", 1, 0)
    assert "base-paper: steps {'one': 2, 'two': 2}" in capsys.readouterr().out
    made = (model / "model.safetensors").stat().st_mtime_ns
    assert screen.train("base-paper", tmp_path, tmp_path / "out", 1, 0) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == made


def test_runs_of_another_budget_are_not_put_beside_those_that_are_there(tmp_path):
    for minutes in (2.5, 2.5):
        screen.require_budget(tmp_path / "out", minutes)
    said = r"holds runs of 2\.5 minutes, expected 1: give another --out"
    with pytest.raises(RequestError, match=said):
        screen.require_budget(tmp_path / "out", 1.0)


def test_a_step_is_timed(small_cache, monkeypatch):
    # a second later each time the clock is read: after the first step, and after the last
    monkeypatch.setattr(screen.time, "process_time", itertools.count(10.0).__next__)
    torch.set_num_threads(1)
    seconds = screen.seconds_per_step("two", Cache(small_cache), TINY)
    assert seconds == 1 / screen.TIMED_STEPS
