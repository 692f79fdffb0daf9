"""Rows screened on one small unit."""

import itertools

import pytest
import screen
import torch

from patchifier.cache import Cache
from patchifier.config import Config, RequestError, update
from patchifier.nn.model import Patchifier


@pytest.mark.parametrize("recipe", screen.ROWS)
def test_a_row_keeps_what_it_is_and_takes_the_units_size(recipe):
    given, config = (
        update(Config(), screen.read_changes(screen.RECIPES / f"{recipe}.json")),
        screen.unit(recipe, 3),
    )
    assert (
        config.model.embed_dim,
        config.model.n_layers,
        config.embed.whiten,
        config.pretrain.seed,
    ) == (192, 4, False, 3)
    assert (
        config.pretrain.n_patches * config.model.patch_frames * config.spectrogram.frame_s
        == pytest.approx(10.0, abs=0.5)
    )
    for name in ("objectives", "mask_ratio", "visible_span_ratio", "stage_two_patches"):
        assert getattr(config.pretrain, name) == getattr(given.pretrain, name)
    assert (config.spectrogram, config.augment) == (given.spectrogram, given.augment)
    assert Patchifier(config).parameter_count() < 6_000_000


def test_time_is_shared_by_the_stages_and_buys_steps(small_cache, monkeypatch):
    data = Cache(small_cache)
    monkeypatch.setattr(
        screen, "seconds_per_step", lambda stage, data, config: {"one": 0.5, "two": 0.1}[stage]
    )
    both = screen.with_steps(screen.unit("base-paper", 0), data, 60)
    assert (both.pretrain.stage_one.steps, both.pretrain.stage_two.steps) == (60, 300)
    alone = screen.with_steps(screen.unit("workers", 0), data, 60).pretrain
    assert (alone.stage_two.steps, alone.stage_two.warmup_steps, alone.validate_every) == (
        600,
        30,
        600,
    )
    assert alone.stages == "two"


def test_a_row_is_trained_once(small_cache, tmp_path, monkeypatch, capsys):
    tiny = {
        "model": {
            "channels": [4, 4, 4, 4, 8],
            "embed_dim": 16,
            "n_layers": 1,
            "n_heads": 2,
            "mlp_dim": 16,
            "max_patches": 4,
        }
    }
    stage = {"steps": 2, "batch_size": 2}
    pretrain = {
        "n_patches": 4,
        "validation_fraction": 0.2,
        "precision": "32",
        "stage_one": stage,
        "stage_two": stage,
    }
    monkeypatch.setattr(
        screen, "unit", lambda recipe, seed: update(Config(), tiny | {"pretrain": pretrain})
    )
    monkeypatch.setattr(screen, "with_steps", lambda config, data, seconds: config)
    (tmp_path / "cache-all").symlink_to(small_cache)
    model = screen.train("base-paper", tmp_path, tmp_path / "out", 1, 0)
    assert (model / "model.safetensors").exists()
    assert "base-paper: steps {'one': 2, 'two': 2}" in capsys.readouterr().out
    made = (model / "model.safetensors").stat().st_mtime_ns
    assert screen.train("base-paper", tmp_path, tmp_path / "out", 1, 0) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == made


def test_runs_of_another_budget_are_not_put_beside_those_that_are_there(tmp_path):
    for minutes in (2.5, 2.5):
        screen.require_budget(tmp_path / "out", minutes)
    with pytest.raises(
        RequestError, match=r"holds runs of 2\.5 minutes, expected 1: give another --out"
    ):
        screen.require_budget(tmp_path / "out", 1.0)


def test_a_step_is_timed(small_cache, monkeypatch):
    clock = itertools.count(
        10.0
    )  # a second later each time it is asked: after the first step, and after the last
    monkeypatch.setattr(screen.time, "process_time", lambda: next(clock))
    torch.set_num_threads(1)
    model = {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "mlp_dim": 16,
        "max_patches": 4,
    }
    config = update(
        Config(),
        {
            "model": model,
            "pretrain": {
                "n_patches": 4,
                "validation_fraction": 0.2,
                "stage_two": {"batch_size": 2},
            },
        },
    )
    assert screen.seconds_per_step("two", Cache(small_cache), config) == 1 / screen.TIMED_STEPS
