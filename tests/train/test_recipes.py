"""Every recipe parses, states only what differs, says why, and takes two steps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from patchifier.config import (
    AugmentConfig,
    Config,
    RequestError,
    TrainingConfig,
    read_changes,
    to_dict,
    update,
)
from patchifier.datasets import Clip
from patchifier.nn.model import Patchifier
from patchifier.spectrogram import log_mel
from patchifier.train.pretrain import Batches, stage_loss, stage_module
from tests import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.json"))


class Clips:
    """Log-mels of noise that stand in for a cache: clips of several lengths."""

    def __init__(self, config):
        generator = torch.Generator().manual_seed(0)
        waves = [
            0.1 * torch.randn(int(22_050 * seconds), generator=generator)
            for seconds in (12, 20, 22, 31)
        ]
        self.log_mels = [log_mel(wave, config.spectrogram).T for wave in waves]
        self.frames = np.array([len(log_mel) for log_mel in self.log_mels])
        self.silence = config.spectrogram.silence
        self.clips = [
            Clip(f"noise-{number}", f"noise-{number}.wav") for number in range(len(waves))
        ]

    def read(self, indices, spans):
        parts = [
            self.log_mels[index][first:last]
            for index, (first, last) in zip(indices, spans, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=self.silence)


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
            np.save(
                tmp_path / f"noise-{number}.npy",
                np.random.default_rng(number).random(7, np.float32),
            )
        config = update(config, {"pretrain": {"teacher_features": str(tmp_path)}})
    config = replace(
        config, model=replace(config.model, n_layers=1)
    )  # the bottleneck's depth is not what recipes are about
    data, clips = Clips(config), np.arange(4)
    model = Patchifier(config)
    moved = set()
    for stage in ("one", "two"):
        batches = Batches(
            data,
            [clips],
            config,
            stage,
            TrainingConfig(batch_size=4 if config.pretrain.pairs else 2),
        )
        module = stage_module(stage, model, batches, config).train()
        trained = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        before = {name: parameter.detach().clone() for name, parameter in trained.items()}
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-3)
        for step in range(2):
            loss = stage_loss(stage, config.pretrain)(module, batches(step))
            assert torch.isfinite(loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        still = [
            name for name, parameter in trained.items() if torch.equal(parameter, before[name])
        ]
        assert not still, f"not trained in stage {stage}: {still}"
        moved |= {name.removeprefix("model.") for name in trained}
    assert {name for name, _ in model.named_parameters()} <= moved


def test_there_is_a_recipe_for_every_alternative_of_design():
    stated = [
        name
        for path in RECIPES
        for name, _, _ in differences(read_changes(path), to_dict(Config()))
    ]
    gaps = "n_fft mel_scale f_max_hz reference top_db channels map_pooling position_embedding align decoder_channels decoder_norm stage_one_patches stage_two_patches"
    gaps += " precision reconstruction_target mask_ratio loss_patches extracted_patches intensity_per stages whole_clip pooling learning_rate"
    gaps += " n_pitch_bands n_predictor_layers norm_first objectives patch_frames pitch_shift extractor contrast_positives"  # beyond the paper
    assert not set(gaps.split()) - set(stated)


def test_a_misspelt_key_is_refused_with_the_nearest_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"pretrain": {"mask_ration": 0.5}}')
    with pytest.raises(RequestError, match=r"pretrain\.mask_ration.*mask_ratio"):
        update(Config(), read_changes(path))


def test_defaults_are_those_of_the_paper():
    config = Config()
    assert (
        config.spectrogram.sample_rate,
        config.spectrogram.n_bands,
        config.spectrogram.hop_length,
        config.spectrogram.db_scale,
    ) == (22_050, 64, 512, 0.01)
    assert (config.spectrogram.n_bands, config.model.patch_frames, config.pretrain.n_patches) == (
        64,
        32,
        25,
    )
    assert config.augment == AugmentConfig(
        time_stretch=(0.9, 1.2), intensity=(0.8, 1.2), intensity_per="element"
    )
    assert (
        config.model.n_layers,
        config.model.n_heads,
        config.model.embed_dim,
        len(config.model.channels),
        config.model.channels[0],
    ) == (8, 4, 256, 5, 16)
    for stage in (config.pretrain.stage_one, config.pretrain.stage_two):
        assert (stage.epochs, stage.batch_size, stage.learning_rate) == (1000, 32, 1e-4)
    assert config.finetune.training.learning_rate == 1e-5
