"""Validation of stage II: what its figures are of models that know everything, nothing, or no order."""

import numpy as np
import pytest
import torch

from patchifier import predictors
from patchifier.config import Config, update
from patchifier.datasets.splits import Splits
from patchifier.nn.model import Patchifier
from patchifier.train import validation
from patchifier.train.metrics import CSVLogger
from patchifier.train.validation import (
    equal_positions,
    in_order,
    shuffled_visible,
    training_statistics,
    validation_batches,
    validator,
)
from tests.builders import TINY, close
from tests.log_mels import Clips

MODELS = {"plain": {}, "predictor": {"n_predictor_layers": 1}}
FRAMES = (400, 390, 300, 320, 100, 500, 320, 64, 300, 30)  # one of two patches, one below a patch
DATA = Clips(*FRAMES)


def splits(train: int, valid: int) -> Splits:
    """The first clips train, the next ones validate, in one slice."""
    clips = np.arange(train + valid)
    return Splits(clips[:train], clips[train:], clips[:0], clips, (clips[:train],))


def config_of(**model) -> Config:
    sizes = TINY | {"channels": [4, 4, 4, 8, 8], "embed_dim": 32, "mlp_dim": 64, "max_patches": 12}
    return update(Config(), {"model": sizes | model, "pretrain": {"n_patches": 8}})


def statistics_of(data):
    return training_statistics(data, np.arange(5), config_of())


class Knowing(Patchifier):
    """Draws the original."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        return self.mel(patches).clone()


class Levelling(Patchifier):
    """Draws the mean of the visible patches."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        means = predictors.band_means(patches[:, :, 0].numpy())
        bands = predictors.visible_mean(means, (valid & ~mask).numpy())
        fallback = statistics_of(DATA).mean_patch[0, :, 0].numpy()
        bands = np.where(np.isnan(bands), fallback, bands)
        return torch.from_numpy(bands)[:, :, None, :, None].expand(patches.shape)


@torch.no_grad()
def figures(made, data=DATA, parts=(5, 5)):
    config = config_of()
    return validator("two", data, splits(*parts), config)(made(config).eval())


@torch.no_grad()
def that_uses_order(config) -> Patchifier:
    """A model whose bottleneck weighs positions as much as what is at them, and both a lot."""
    model, generator = Patchifier(config).eval(), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.startswith(("bottleneck", "predictor")) and parameter.ndim == 2:
            std = 1.0 if name.endswith("positions") else 0.5
            parameter.normal_(std=std, generator=generator)
    return model


def test_a_model_that_knows_everything_has_no_error_and_draws_all_that_varies():
    found = figures(Knowing)
    assert found["masked_mse"] == 0
    for name in ("within_variance", "between_variance", "onset_f"):
        assert found[name] == pytest.approx(1)


def test_a_model_that_knows_the_visible_mean_is_as_good_as_that_reference_and_blind_to_order(
    monkeypatch,
):
    found = figures(Levelling)
    for name in ("masked_mse", "shuffled_mse", "equal_positions_mse"):
        assert found[name] == pytest.approx(found["visible_mean_mse"], rel=1e-6)
    assert found["within_variance"] < 1e-9
    assert found["onset_f"] == 0
    monkeypatch.setattr(validation, "HEALTH_CLIPS", 2)  # of five: beside the error of all
    found = figures(Levelling)
    assert found["shuffled_mse"] == pytest.approx(found["masked_mse"], rel=1e-6)
    assert figures(Knowing)["onset_f"] == 1


def test_references_stand_in_the_order_that_their_knowledge_has():
    """Levels drift, so neighbours tell more than the mean over the clip.

    A patch has noise of variance 0.01 and, at any start, a step.
    """
    found = figures(Knowing, Clips(*[400] * 140), (100, 40))
    assert found["band_means_mse"] == pytest.approx(0.0113, rel=0.02)
    names = ("band_means", "kriging", "visible_mean", "mean_patch")
    errors = [found[f"{name}_mse"] for name in names]
    assert errors == sorted(set(errors))
    names = ("visible_mean", "interpolation", "shrunk_interpolation", "kriging")
    assert len({found[f"{name}_mse"] for name in names}) == 4


def test_the_references_know_training_clips_alone():
    changed = Clips(*FRAMES)
    for index in (5, 8):
        changed.log_mels[index] = changed.log_mels[index] + np.float16(0.5)
    one, other = statistics_of(DATA), statistics_of(changed)
    np.testing.assert_array_equal(one.kriging.correlation_by_lag, other.kriging.correlation_by_lag)
    assert one.kriging.correlation_by_lag.shape == (64, 400 // 32)
    assert torch.equal(one.mean_patch, other.mean_patch)


def test_pitch_bands_do_not_count():
    wide = Clips(*FRAMES, bands=76)
    before = statistics_of(wide).kriging.mean
    wide.log_mels = [log_mel[:, :64] for log_mel in wide.log_mels]
    np.testing.assert_array_equal(before, statistics_of(wide).kriging.mean)


def test_shuffling_moves_every_visible_patch_to_the_place_of_another_and_nothing_else():
    config = update(config_of(), {"pretrain": {"mask_ratio": 0.4}})
    (batch,) = validation_batches(DATA, np.arange(10), config)
    order, again, other = (
        shuffled_visible(batch, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(order, again)
    assert not torch.equal(order, other)
    index, shown = torch.arange(order.shape[1]), batch.valid & ~batch.mask
    assert {0, 1, 5} <= set(shown.sum(1).tolist())  # one patch alone, one of two, five of eight
    for row, visible in zip(order, shown, strict=True):
        assert torch.equal(row[~visible], index[~visible])
        assert torch.equal(row.sort().values, index)
        assert (row[visible] != index[visible]).all() or visible.sum() == 1


def test_patches_are_put_in_order_clip_by_clip():
    ordered = in_order(torch.arange(6).view(2, 3), torch.tensor([[2, 0, 1], [0, 2, 1]]))
    assert ordered.tolist() == [[2, 0, 1], [3, 5, 4]]


@pytest.mark.parametrize("name", MODELS)
def test_with_equal_positions_the_order_of_visible_patches_is_of_no_use(name):
    config = config_of(**MODELS[name])
    (batch,) = validation_batches(DATA, np.array([0, 1, 5, 8]), config)
    shuffled = in_order(batch.patches, shuffled_visible(batch, np.random.default_rng(0)))
    network = that_uses_order(config)

    @torch.no_grad()
    def difference():
        plain, moved = (
            network.reconstruct(each, mask=batch.mask, valid=batch.valid)
            for each in (batch.patches, shuffled)
        )
        return float((plain - moved)[batch.mask].abs().max())

    assert difference() > 1e-3
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with equal_positions(network, config.pretrain.n_patches):
        assert difference() < 1e-5
        wanted = before["bottleneck.positions"].clone()
        wanted[1:9] = wanted[1:9].mean(0)
        close(network.bottleneck.positions.detach(), wanted, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_positions_come_back_when_something_fails():
    network = that_uses_order(config_of())
    before = network.bottleneck.positions.detach().clone()
    with pytest.raises(ZeroDivisionError), equal_positions(network, 8):
        raise ZeroDivisionError
    assert torch.equal(network.bottleneck.positions, before)


@torch.no_grad()
def test_figures_tell_a_model_that_uses_order_from_one_that_cannot():
    config = config_of()
    network, validate = (
        that_uses_order(config),
        validator("two", DATA, splits(5, 5), config),
    )
    using = validate(network)
    with equal_positions(network, 8):
        blind = validate(network)
    assert abs(using["shuffled_mse"] - using["masked_mse"]) > 1e-4 * using["masked_mse"]
    assert blind["shuffled_mse"] == pytest.approx(blind["masked_mse"], rel=1e-6)
    assert using["equal_positions_mse"] == pytest.approx(blind["masked_mse"], rel=1e-6)


def test_a_table_that_an_older_version_began_keeps_its_columns(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text("step,masked_mse,old\n10,0.3,0.2\n")
    with CSVLogger(path, 10) as table:
        table.write(20, {"new": 0.5, "masked_mse": 0.25})
    assert path.read_text().split() == ["step,masked_mse,old", "10,0.3,0.2", "20,0.25,nan"]
