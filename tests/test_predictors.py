"""Predictions of masked patches that need no training, on values worked out by hand."""

import numpy as np
import pytest

from patchifier import predictors
from patchifier.predictors import band_means

# One clip of six patches and two bands; patches 1 and 4 are visible.
BANDS = np.array([[[9.0, 9.0], [1.0, -2.0], [9.0, 9.0], [9.0, 9.0], [4.0, 10.0], [9.0, 9.0]]])
VISIBLE = np.array([[False, True, False, False, True, False]])


def test_band_means_are_over_the_frames_of_a_patch():
    patches = np.arange(12.0, dtype=np.float32).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(band_means(patches), [[[1, 4], [7, 10]]])


def test_visible_mean_is_the_mean_over_visible_patches_at_every_patch():
    np.testing.assert_array_equal(predictors.visible_mean(BANDS, VISIBLE), [[[2.5, 4.0]] * 6])
    alone = VISIBLE & [True, True, True, False, False, False]
    np.testing.assert_array_equal(predictors.visible_mean(BANDS, alone), [[[1.0, -2.0]] * 6])


def test_interpolation_is_linear_between_visible_patches_and_held_beyond():
    expected = [[[1, -2], [1, -2], [2, 2], [3, 6], [4, 10], [4, 10]]]
    np.testing.assert_allclose(predictors.interpolation(BANDS, VISIBLE), expected, rtol=1e-12)


def test_shrunk_interpolation_is_half_interpolation_and_half_visible_mean():
    expected = [[[1.75, 1], [1.75, 1], [2.25, 3], [2.75, 5], [3.25, 7], [3.25, 7]]]
    np.testing.assert_allclose(
        predictors.shrunk_interpolation(BANDS, VISIBLE), expected, rtol=1e-12
    )


@pytest.mark.parametrize("name", predictors.UNTRAINED)
def test_a_predictor_looks_at_visible_patches_of_its_own_clip_alone(name):
    generator = np.random.default_rng(0)
    bands, visible = generator.normal(size=(3, 7, 2)), generator.random((3, 7)) < 0.4
    visible[:, 3], visible[2] = True, False  # the last clip shows nothing
    changed = np.where(visible[..., None], bands, 99.0)  # padding and masked patches hold anything
    predict = predictors.UNTRAINED[name]
    np.testing.assert_array_equal(predict(bands, visible), predict(changed, visible))
    np.testing.assert_array_equal(predict(bands, visible)[1], predict(bands[1:2], visible[1:2])[0])
    assert np.isnan(predict(bands, visible)[2]).all()
    assert np.isfinite(predict(bands, visible)[:2]).all()


def test_errors_of_predictors_without_training_are_those_of_masked_patches():
    patches = np.repeat(BANDS[0][:, :, None], 4, axis=2)
    found = predictors.untrained_mse(patches, ~VISIBLE[0])
    assert list(found) == ["visible_mean", "interpolation", "shrunk_interpolation"]
    for name, predict in predictors.UNTRAINED.items():
        wanted = np.square(predict(BANDS, VISIBLE) - 9.0)[~VISIBLE].mean()
        assert found[name] == pytest.approx(wanted)
    for mask in (np.ones(6, bool), np.zeros(6, bool)):
        assert predictors.untrained_mse(patches, mask) == {}
