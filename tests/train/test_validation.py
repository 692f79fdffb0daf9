"""Validation of stage II: what its figures are of models that know everything, nothing, or no order."""

import numpy as np
import pytest
import torch

from patchifier.config import Config, update
from patchifier.datasets.splits import Splits
from patchifier.nn.model import Patchifier
from patchifier.train import references, validation
from patchifier.train.metrics import CSVLogger
from patchifier.train.validation import (
    equal_positions,
    in_order,
    shuffled_visible,
    training_statistics,
    validation_batches,
    validator,
)
from tests.log_mels import Clips

TINY = {
    "channels": [4, 4, 4, 8, 8],
    "embed_dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "mlp_dim": 64,
    "max_patches": 12,
}
PREDICTOR = {"n_predictor_layers": 1}
RELATIVE = {"position_embedding": "relative"}


FRAMES = (400, 390, 300, 320, 100, 500, 320, 64, 300, 30)
DATA = Clips(*FRAMES)


def splits(train: int, valid: int) -> Splits:
    """The first clips train, the next ones validate, in one slice."""
    everything = np.arange(train + valid)
    return Splits(
        everything[:train], everything[train:], everything[:0], everything, (everything[:train],)
    )


SPLITS = splits(5, 5)  # one clip of two patches, one shorter than a patch


def config_of(**model):
    return update(Config(), {"model": TINY | model, "pretrain": {"n_patches": 8}})


class Knowing(Patchifier):
    """Draws the original."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        return self.mel(patches).clone()


class Levelling(Patchifier):
    """Draws the mean of the visible patches."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        bands = references.visible_mean(
            references.band_means(patches[:, :, 0].numpy()), (valid & ~mask).numpy()
        )
        bands = np.where(
            np.isnan(bands),
            training_statistics(DATA, np.arange(5), config_of()).mean_patch[0, :, 0].numpy(),
            bands,
        )
        return torch.from_numpy(bands)[:, :, None, :, None].expand(patches.shape)


def figures(made, **model):
    config = config_of(**model)
    with torch.no_grad():
        return validator("two", DATA, SPLITS, config)(made(config).eval())


def that_uses_order(config):
    """Draw a model whose bottleneck weighs places as much as what is at them, and both a lot."""
    model, generator = Patchifier(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("bottleneck", "predictor")) and parameter.ndim == 2:
                parameter.normal_(
                    std=1.0 if name.endswith(("positions", "numbers")) else 0.5, generator=generator
                )
    return model


def test_a_model_that_knows_everything_has_no_error_and_draws_all_that_varies():
    found = figures(Knowing)
    assert found["masked_mse"] == 0
    assert (found["within_variance"], found["between_variance"], found["onset_f"]) == pytest.approx(
        (1, 1, 1)
    )


def test_a_model_that_knows_the_visible_mean_is_as_good_as_that_reference_and_blind_to_order():
    found = figures(Levelling)
    for name in ("masked_mse", "shuffled_mse", "equal_positions_mse"):
        assert found[name] == pytest.approx(found["visible_mean_mse"], rel=1e-6)
    assert found["within_variance"] < 1e-9
    assert found["onset_f"] == 0


def test_references_stand_in_the_order_that_their_knowledge_has():
    """Levels drift, so neighbours tell more than the mean over the clip; a patch has noise of variance 0.01 and, at any start, a step."""
    data, config = Clips(*[400] * 140), config_of()
    with torch.no_grad():
        found = validator("two", data, splits(100, 40), config)(Knowing(config).eval())
    assert found["band_means_mse"] == pytest.approx(0.0113, rel=0.02)
    assert (
        found["band_means_mse"]
        < found["kriging_mse"]
        < found["visible_mean_mse"]
        < found["mean_patch_mse"]
    )
    assert (
        len(
            {
                found[f"{name}_mse"]
                for name in ("visible_mean", "interpolation", "shrunk_interpolation", "kriging")
            }
        )
        == 4
    )


def test_the_references_know_training_clips_alone():
    changed = Clips(*FRAMES)
    for index in (5, 8):
        changed.log_mels[index] = changed.log_mels[index] + np.float16(0.5)
    one, other = (training_statistics(data, np.arange(5), config_of()) for data in (DATA, changed))
    np.testing.assert_array_equal(one.kriging.correlation_by_lag, other.kriging.correlation_by_lag)
    assert one.kriging.correlation_by_lag.shape == (64, 400 // 32)
    assert torch.equal(one.mean_patch, other.mean_patch)


def test_pitch_bands_do_not_count():
    config = config_of()
    wide = Clips(*FRAMES, bands=76)
    narrow = training_statistics(wide, np.arange(5), config)
    for index, log_mel in enumerate(wide.log_mels):
        wide.log_mels[index] = log_mel[:, :64]
    np.testing.assert_array_equal(
        narrow.kriging.mean, training_statistics(wide, np.arange(5), config).kriging.mean
    )


# --- Order ---


def test_shuffling_moves_every_visible_patch_to_the_place_of_another_and_nothing_else():
    (batch,) = validation_batches(
        DATA, np.arange(10), update(config_of(), {"pretrain": {"mask_ratio": 0.4}})
    )
    order, again, other = (
        shuffled_visible(batch, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(order, again)
    assert not torch.equal(order, other)
    index = torch.arange(order.shape[1])
    counts = (batch.valid & ~batch.mask).sum(1)
    assert {0, 1, 5} <= set(counts.tolist())  # one patch alone, one of two, five of eight
    for row, visible, count in zip(order, batch.valid & ~batch.mask, counts, strict=True):
        assert torch.equal(row[~visible], index[~visible])
        assert torch.equal(row.sort().values, index)
        assert (row[visible] != index[visible]).all() or count == 1


def test_patches_are_put_in_order_clip_by_clip():
    patches = torch.arange(6).view(2, 3)
    assert in_order(patches, torch.tensor([[2, 0, 1], [0, 2, 1]])).tolist() == [
        [2, 0, 1],
        [3, 5, 4],
    ]


@pytest.mark.parametrize(
    "model", [{}, PREDICTOR, RELATIVE], ids=["absolute", "predictor", "relative"]
)
def test_with_equal_positions_the_order_of_visible_patches_is_of_no_use(model):
    config = config_of(**model)
    (batch,) = validation_batches(DATA, np.array([0, 1, 5, 8]), config)
    shuffled = in_order(batch.patches, shuffled_visible(batch, np.random.default_rng(0)))
    network = that_uses_order(config)
    where = {"mask": batch.mask, "valid": batch.valid}

    def difference():
        plain, moved = (
            network.reconstruct(batch.patches, **where),
            network.reconstruct(shuffled, **where),
        )
        return float((plain - moved)[batch.mask].abs().max().detach())

    assert difference() > 1e-3
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with equal_positions(network, config.pretrain.n_patches):
        assert difference() < 1e-5
        if not model:
            np.testing.assert_allclose(
                network.bottleneck.positions[1:9].detach(),
                before["bottleneck.positions"][1:9].mean(0).expand(8, -1),
                rtol=1e-5,
                atol=1e-6,
            )
            assert torch.equal(network.bottleneck.positions[0], before["bottleneck.positions"][0])
            assert torch.equal(network.bottleneck.positions[9:], before["bottleneck.positions"][9:])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_positions_come_back_when_something_fails():
    network = that_uses_order(config_of())
    before = network.bottleneck.positions.detach().clone()
    with pytest.raises(ZeroDivisionError), equal_positions(network, 8):
        raise ZeroDivisionError
    assert torch.equal(network.bottleneck.positions, before)


@pytest.mark.parametrize("model", [{}, RELATIVE], ids=["absolute", "relative"])
def test_figures_tell_a_model_that_uses_order_from_one_that_cannot(model):
    config = config_of(**model)
    network = that_uses_order(config)
    validate = validator("two", DATA, SPLITS, config)
    with torch.no_grad():
        using = validate(network)
        with equal_positions(network, 8):
            blind = validate(network)
    assert abs(using["shuffled_mse"] - using["masked_mse"]) > 1e-4 * using["masked_mse"]
    assert blind["shuffled_mse"] == pytest.approx(blind["masked_mse"], rel=1e-6)
    assert using["equal_positions_mse"] == pytest.approx(blind["masked_mse"], rel=1e-6)


def test_figures_of_a_few_clips_are_beside_the_error_of_all(monkeypatch):
    monkeypatch.setattr(validation, "HEALTH_CLIPS", 2)  # of five
    found = figures(Levelling)
    assert found["shuffled_mse"] == pytest.approx(found["masked_mse"], rel=1e-6)
    assert figures(Knowing)["onset_f"] == 1


def test_a_table_that_an_older_version_began_keeps_its_columns(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text("step,masked_mse,old\n10,0.3,0.2\n")
    with CSVLogger(path, 10) as table:
        table.write(20, {"new": 0.5, "masked_mse": 0.25})
    assert path.read_text().split() == ["step,masked_mse,old", "10,0.3,0.2", "20,0.25,nan"]
