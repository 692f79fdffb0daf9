"""Every recipe parses, states only what differs, says why, and takes two steps."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from patchifier.config import (
    AugmentConfig,
    Config,
    TrainingConfig,
    read_changes,
    to_dict,
    update,
)
from patchifier.datasets import Clip
from patchifier.nn.equivariant import ESTIMATORS
from patchifier.nn.model import Patchifier
from patchifier.spectrogram import log_mel
from patchifier.train.objectives import frozen_modules, trained_estimators
from patchifier.train.pretrain import Batches, stage_loss, stage_module
from tests import ROOT
from tests.builders import normal

RECIPES = sorted((ROOT / "recipes").glob("*.json"))


@functools.cache
class Clips:
    """Log-mels of noise that stand in for a cache: clips of several lengths."""

    def __init__(self, spectrogram):
        lengths = [int(22_050 * seconds) for seconds in (12, 20, 22, 31)]
        self.log_mels = [log_mel(0.1 * normal(each), spectrogram).T for each in lengths]
        self.frames = np.array([len(log_mel) for log_mel in self.log_mels])
        self.silence = spectrogram.silence
        self.clips = [Clip(f"noise-{number}", f"noise-{number}.wav") for number in range(4)]

    def read(self, indices, spans):
        bands, length = self.log_mels[0].shape[1], int(np.diff(spans).max())
        batch = np.full((len(indices), length, bands), self.silence, np.float32)
        for row, index, (first, last) in zip(batch, indices, spans, strict=True):
            row[: last - first] = self.log_mels[index][first:last]
        return batch


def differences(changes, defaults):
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from differences(value, defaults[name])
        else:
            yield name, value, defaults[name]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_states_only_what_differs_and_why(path):
    assert len(json.loads(path.read_text(encoding="utf-8"))["why"]) > 10
    update(Config(), read_changes(path))
    if path.stem != "demo":
        for name, value, default in differences(read_changes(path), to_dict(Config())):
            assert value != default, f"{name} is {value} by default"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_takes_two_steps_in_each_stage(path, tmp_path):
    config = update(Config(), read_changes(path))
    if config.pretrain.teacher_features:
        for number in range(4):
            np.save(tmp_path / f"noise-{number}.npy", normal(64, seed=number).numpy())
        config = update(config, {"pretrain": {"teacher_features": str(tmp_path)}})
    if config.pretrain.note_labels:
        notes = {"notes": [[0, 40, 60, 0], [1, 40, 36, 128]], "beats": [[2, 1], [3, 2]]}
        notes |= {"chords": [[0, 40, "C:maj"]], "key": "C:maj", "bpm": 90, "metre": 4}
        for number in range(4):
            (tmp_path / f"noise-{number}.json").write_text(json.dumps(notes))
        config = update(config, {"pretrain": {"note_labels": str(tmp_path)}})
    # recipes are neither about the bottleneck's depth nor about the width of convolutions
    *inner, last = config.model.channels
    narrow = (*(max(2, width // 4) for width in inner), last)
    config = replace(config, model=replace(config.model, n_layers=1, channels=narrow))
    data = Clips(config.spectrogram)
    training = TrainingConfig(batch_size=4 if config.pretrain.pairs else 2)
    model, moved = Patchifier(config), set()
    for stage in ("one", "two"):
        batches = Batches(data, [np.arange(4)], config, stage, training)
        module = stage_module(stage, model, batches, config).train()
        trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
        before = {name: parameter.detach().clone() for name, parameter in trained.items()}
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-3)
        for step in range(2):
            loss = stage_loss(stage, config.pretrain)(module, batches(step))
            assert torch.isfinite(loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert not [name for name in trained if torch.equal(trained[name], before[name])], stage
        moved |= {name.removeprefix("model.") for name in trained}
    # estimators that come from the model to start from; all else, where they alone are trained
    learnt = trained_estimators(config)
    still = [f"estimators.{name}." for name in config.model.estimators if name not in learnt]
    still += frozen_modules(config) if set(config.pretrain.objectives) <= ESTIMATORS.keys() else ()
    names = {name for name, _ in model.named_parameters() if not name.startswith(tuple(still))}
    assert names <= moved


def test_there_is_a_recipe_for_every_alternative_of_design():
    changes = [differences(read_changes(path), to_dict(Config())) for path in RECIPES]
    stated = {name for each in changes for name, _, _ in each}
    gaps = "n_fft mel_scale f_max_hz reference top_db channels map_pooling position_embedding align decoder_channels decoder_norm stage_one_patches stage_two_patches"
    gaps += " precision reconstruction_target mask_ratio loss_patches extracted_patches intensity_per stages whole_clip pooling learning_rate"
    gaps += " n_pitch_bands n_predictor_layers norm_first objectives pitch_shift extractor contrast_positives optimiser"  # beyond the paper
    assert set(gaps.split()) <= stated


def test_defaults_are_those_of_the_paper():
    config = Config()
    sound, model = config.spectrogram, config.model
    assert (sound.sample_rate, sound.n_bands, sound.hop_length) == (22_050, 64, 512)
    assert (sound.db_scale, sound.silence) == (0.01, -1.0)
    assert (model.patch_frames, config.pretrain.n_patches) == (32, 25)
    augmentation = AugmentConfig(
        time_stretch=(0.9, 1.2), intensity=(0.8, 1.2), intensity_per="element"
    )
    assert config.augment == augmentation
    assert (model.n_layers, model.n_heads, model.embed_dim) == (8, 4, 256)
    assert (len(model.channels), model.channels[0]) == (5, 16)
    for stage in (config.pretrain.stage_one, config.pretrain.stage_two):
        assert (stage.epochs, stage.batch_size, stage.learning_rate) == (1000, 32, 1e-4)
    assert config.finetune.training.learning_rate == 1e-5
