"""Baselines: hand-made features exactly as described, and a random network that is a fair opponent."""

import librosa
import numpy as np
import pytest
import torch
from torch import nn

from patchifier import audio, cache, spectrogram
from patchifier.baselines import CALIBRATION_CLIPS, ENCODERS, calibrate, mel_stats, mfcc, random_checkpoint
from patchifier.cache import Cache
from patchifier.config import Config, update
from patchifier.datasets import Clip, Dataset
from patchifier.embed import Embedder
from patchifier.model import Patchifier

RATE = audio.SAMPLE_RATE
CONFIG = update(Config(), {"model": {"channels": [4, 4, 4, 4, 8], "width": 16, "layers": 2, "heads": 2, "feed_forward": 32}})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Cache:
    """Twelve clips of 1 to 3 s, then one of a single sample; the third is a part of a longer file."""
    folder = tmp_path_factory.mktemp("baselines")
    clips = []
    for number in range(12):
        time_s = np.arange(int((1 + 2 * number / 11) * RATE)) / RATE
        noise = np.random.default_rng(number).uniform(-1, 1, len(time_s))
        audio.save(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * 200 * (1 + number) * time_s) + 0.02 * (1 + number) * noise)
        part = {"start_s": 0.25, "end_s": 1.0} if number == 2 else {}
        clips.append(Clip(str(number), str(folder / f"{number}.wav"), **part))
    audio.save(folder / "click.wav", np.array([0.5], np.float32))
    clips.append(Clip("click", str(folder / "click.wav")))
    cache.prepare(Dataset("tones", tuple(clips)), folder / "cache", workers=1)
    return Cache(folder / "cache")


def patches_of(data: Cache, indices) -> torch.Tensor:
    """All patches of these clips (P, 1, M, W)."""
    log_mels = [torch.from_numpy(np.array(data.log_mel(index), np.float32).T) for index in indices]
    return torch.cat([spectrogram.cut(log_mel, tail="anchor") for log_mel in log_mels])


# --- features without a model ---


def test_mel_statistics_are_the_mean_and_deviation_of_each_band_over_time(data):
    indices = [5, 0, 12]
    found = mel_stats(data, indices)
    assert found.shape == (3, 128)
    for row, index in zip(found, indices, strict=True):
        log_mel = spectrogram.log_mel(audio.load(data.clips[index].path)).half().double().numpy()  # (M, T), rounded as the cache is
        np.testing.assert_allclose(row[:64], log_mel.mean(1), atol=1e-6)
        np.testing.assert_allclose(row[64:], log_mel.std(1), atol=1e-6)
    assert (found[2, 64:] < 1e-6).all()  # a single frame does not deviate


def test_mel_statistics_of_part_of_a_file_are_those_of_the_part(data):
    part = audio.load(data.clips[2].path, start_s=0.25, end_s=1.0)
    np.testing.assert_allclose(mel_stats(data, [2])[0, :64], spectrogram.log_mel(part).mean(1), atol=1e-3)


def test_mfcc_are_librosas_means_and_deviations_with_first_and_second_differences(data):
    indices = [3, 11]
    found = mfcc(data, indices)
    assert found.shape == (2, 120)
    for row, index in zip(found, indices, strict=True):
        waveform, _ = librosa.load(data.clips[index].path, sr=None)
        coefficients = librosa.feature.mfcc(y=waveform, sr=RATE, n_mfcc=20)
        parts = [coefficients, librosa.feature.delta(coefficients), librosa.feature.delta(coefficients, order=2)]
        wanted = np.concatenate([part for each in parts for part in (each.mean(1), each.std(1))])
        np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-4)


def test_mfcc_hear_only_the_clips_part_of_its_file(data):
    waveform = audio.load(data.clips[2].path, start_s=0.25, end_s=1.0)
    wanted = librosa.feature.mfcc(y=waveform, sr=RATE, n_mfcc=20).mean(1)
    np.testing.assert_allclose(mfcc(data, [2])[0, :20], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.00005, 0.02, 0.03, 0.05, 0.1, 0.16, 0.2])
def test_mfcc_of_the_shortest_clips_are_numbers(seconds, data, tmp_path):
    audio.save(tmp_path / "short.wav", np.random.default_rng(0).uniform(-0.5, 0.5, max(1, int(seconds * RATE))).astype(np.float32))

    class One:
        clips = (Clip("short", str(tmp_path / "short.wav")),)

    found = mfcc(One(), [0])
    assert found.shape == (1, 120)
    assert np.isfinite(found).all()


def test_encoders_take_clips_of_a_cache_in_any_order(data):
    assert set(ENCODERS) == {"mel-stats", "mfcc"}
    for encode in ENCODERS.values():
        found = encode(data, [4, 1, 4])
        assert np.array_equal(found[0], found[2])
        assert not np.array_equal(found[0], found[1])
        assert np.array_equal(found[1], encode(data, [1])[0])


# --- the random network ---


def batch_statistics(model: Patchifier, patches: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of what each of the extractor's batch norms is given, when they use the batch's own statistics."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    norms = [module for module in model.extractor.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda _, given: found.append((given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))))) for norm in norms]
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    with torch.no_grad():
        model.extractor.train()
        model.extractor(patches)
    model.eval()
    for norm, hook, (mean, variance) in zip(norms, hooks, kept, strict=True):
        hook.remove()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return found


def test_after_calibration_each_batch_norm_holds_the_statistics_of_what_it_is_given(data):
    indices = list(range(10))
    model = random_checkpoint(CONFIG, data, indices, seed=0).model
    norms = [module for module in model.extractor.modules() if isinstance(module, nn.BatchNorm2d)]
    found = batch_statistics(model, patches_of(data, indices))
    assert len(found) == len(norms) == 10
    for norm, (mean, variance) in zip(norms, found, strict=True):
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-6)
        assert not torch.equal(norm.running_var, torch.ones_like(variance))
        assert norm.momentum == 0.1


def test_calibrated_features_are_neither_dead_nor_exploding(data):
    model = random_checkpoint(CONFIG, data, range(10), seed=0).model
    outputs = []
    for norm in (module for module in model.extractor.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    with torch.no_grad():
        model.extractor(patches_of(data, range(10)))
    for output in outputs:
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(output.shape[1]), atol=0.02, rtol=0)
        torch.testing.assert_close(output.var((0, 2, 3)), torch.ones(output.shape[1]), atol=0.05, rtol=0)


def test_calibration_moves_the_extractors_statistics_and_nothing_else(data):
    model, before = Patchifier(CONFIG.model, seed=1), Patchifier(CONFIG.model, seed=1).state_dict()
    calibrate(model.train(), patches_of(data, range(4)))
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    buffers = {name for name, _ in model.named_buffers() if name.startswith("extractor")}
    assert changed == buffers
    assert not any(module.training for module in model.modules())


def test_the_random_network_is_a_function_of_its_seed(data):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = random_checkpoint(CONFIG, data, range(6), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = random_checkpoint(CONFIG, data, range(6), seed=5), random_checkpoint(CONFIG, data, range(6), seed=6)
    first, second = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(one.model.bottleneck.positions, other.model.bottleneck.positions)
    assert one.facts["seed"] == 5
    assert one.config == CONFIG


def test_the_random_network_has_the_weights_of_a_new_model_of_its_seed(data):
    made = random_checkpoint(CONFIG, data, range(6), seed=5).model
    for (name, one), two in zip(Patchifier(CONFIG.model, seed=5).named_parameters(), made.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_calibration_sees_the_given_clips_alone_and_at_most_so_many(data):
    one = random_checkpoint(CONFIG, data, [0, 1], seed=0).model
    two = random_checkpoint(CONFIG, data, [8, 9], seed=0).model
    assert not torch.equal(one.extractor.down[0][1].running_mean, two.extractor.down[0][1].running_mean)
    seen = []

    class Spy:
        def log_mel(self, index):
            seen.append(index)
            return data.log_mel(index % 10)

    random_checkpoint(CONFIG, Spy(), range(500, 1000), seed=0)
    assert len(seen) == len(set(seen)) == CALIBRATION_CLIPS
    assert (min(seen), max(seen)) == (500, 999)


def test_the_random_network_embeds_as_any_model_does(data):
    made = random_checkpoint(CONFIG, data, range(6), seed=0)
    vector = Embedder(made.model, made.config).embed(data.clips[0].path)
    assert vector.shape == (32,)
    assert np.isfinite(vector).all()
