"""Predictions of masked patches without a model, on values worked out by hand; kriging on a process whose best error is known."""

import numpy as np
import pytest

from patchifier import predictors
from patchifier.train import references
from patchifier.train.references import (
    Kriging,
    OnsetCounts,
    count_matches,
    count_onsets,
    onsets,
    sums_of_squares,
)

# One clip of six patches and two bands; patches 1 and 4 are visible.
BANDS = np.array([[[9.0, 9.0], [1.0, -2.0], [9.0, 9.0], [9.0, 9.0], [4.0, 10.0], [9.0, 9.0]]])
VISIBLE = np.array([[False, True, False, False, True, False]])
AR = 0.8  # correlation of neighbours


def autoregressive(clips: int, patches: int, seed: int) -> np.ndarray:
    """Draw a stationary first-order process of variance 4 around 3 and of variance 1 around -1, mixed into two bands."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(clips, patches, 2))
    for index in range(1, patches):
        values[:, index] = AR * values[:, index - 1] + (1 - AR**2) ** 0.5 * values[:, index]
    mixed = values @ np.diag([2.0, 1.0]) @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    return mixed + np.array([3.0, -1.0])


def known_error(visible: np.ndarray) -> np.ndarray:
    """Least mean squared error of a patch by any linear prediction, in units of the variance (N,)."""
    index = np.arange(len(visible))
    covariance = AR ** np.abs(index[:, None] - index)
    known, inverse = covariance[:, visible], np.linalg.inv(covariance[np.ix_(visible, visible)])
    return 1 - np.einsum("nv,vw,nw->n", known, inverse, known)


def test_kriging_reaches_the_least_error_of_a_known_process_and_beats_interpolation():
    training, held_out = autoregressive(2000, 12, 0), autoregressive(2000, 12, 1)
    visible = np.isin(np.arange(12), [0, 3, 8])
    masks = np.tile(visible, (len(held_out), 1))

    def errors(found):
        return np.square(found - held_out).mean((0, 2)) / 2.5  # mean variance of a band

    kriged = errors(Kriging.fit(training).predict(held_out, masks))
    np.testing.assert_allclose(kriged[~visible], known_error(visible)[~visible], rtol=0.06)
    assert kriged[visible].max() < 1e-5
    interpolated = errors(predictors.shrunk_interpolation(held_out, masks))
    assert kriged[~visible].mean() < 0.9 * interpolated[~visible].mean()


def test_the_covariance_by_lag_is_the_mean_product_of_patches_that_are_so_far_apart():
    sequences = [np.array([[1.0], [2.0], [3.0]]), np.array([[-1.0], [4.0]])]
    expected = [[(1 + 4 + 9 + 1 + 16) / 5, (2 + 6 - 4) / 3, 3.0]]
    np.testing.assert_allclose(references.covariance_by_lag(sequences), expected, rtol=1e-12)


def test_kriging_of_two_patches_is_a_regression_on_the_visible_one():
    """Worked by hand: one band, mean 0, variance 1, covariance of neighbours 0.5."""
    pairs = [(1.5, 1, 1), (1.5, -1, -1), (0.5, 1, -1), (0.5, -1, 1)]
    sequences = [np.array([[one], [two]]) * np.sqrt(square) for square, one, two in pairs]
    found = Kriging.fit(sequences).predict(np.array([[[7.0], [99.0]]]), np.array([[True, False]]))
    np.testing.assert_allclose(found[0, 1, 0], 7.0 * 0.5 / (1 + references.RIDGE), rtol=1e-9)


def test_each_component_has_a_memory_of_its_own():
    """A band that keeps its level for a whole clip is carried on; one that is drawn anew at every patch falls back to its mean."""
    generator = np.random.default_rng(0)
    held, drawn = generator.normal(size=(4000, 1)), generator.normal(size=(4000, 4))
    training = np.stack([np.repeat(held, 4, axis=1), 5.0 + 0.5 * drawn], axis=-1)  # (4000, 4, 2)
    bands, visible = np.full((1, 4, 2), 99.0), np.array([[True, False, False, False]])
    bands[0, 0] = 2.0, 8.0
    found = Kriging.fit(training).predict(bands, visible)[0]
    np.testing.assert_allclose(found[1:, 0], 2.0, atol=0.15)
    np.testing.assert_allclose(found[1:, 1], 5.0, atol=0.25)


def test_kriging_fills_the_only_gap_of_a_ramp():
    generator = np.random.default_rng(0)
    slopes, starts = generator.normal(size=(2, 500, 1, 1))
    ramps = starts + slopes * np.arange(9.0)[:, None] / 8  # (500, 9, 1)
    visible = np.ones((500, 9), bool)
    visible[:, 4] = False
    found = Kriging.fit(ramps).predict(ramps, visible)
    assert np.abs(found - ramps)[:, 4].mean() < 0.02
    assert np.isfinite(found).all()


def test_kriging_looks_at_visible_patches_of_its_own_clip_alone():
    training, bands = autoregressive(50, 10, 0), autoregressive(4, 6, 1)
    visible = np.random.default_rng(0).random((4, 6)) < 0.5
    visible[3] = False
    kriging = Kriging.fit(training)
    found, changed = kriging.predict(bands, visible), np.where(visible[..., None], bands, 99.0)
    np.testing.assert_array_equal(found, kriging.predict(changed, visible))
    np.testing.assert_allclose(found[1], kriging.predict(bands[1:2], visible[1:2])[0], rtol=1e-9)
    np.testing.assert_allclose(found[3], np.broadcast_to(training.mean((0, 1)), (6, 2)), rtol=1e-9)


def test_padding_behind_a_clip_changes_nothing():
    kriging = Kriging.fit(autoregressive(50, 10, 0))
    bands, visible = autoregressive(1, 5, 1), np.array([[True, False, True, False, False]])
    padded = np.pad(bands, [(0, 0), (0, 3), (0, 0)], constant_values=-1.0)
    shown = np.pad(visible, [(0, 0), (0, 3)])
    # Raising negative eigenvalues to 0 depends on the length a little.
    ways = {kriging.predict: 0.02} | dict.fromkeys(predictors.UNTRAINED.values(), 0.0)
    for predict, atol in ways.items():
        found = predict(padded, shown)[:, :5]
        np.testing.assert_allclose(found, predict(bands, visible), rtol=1e-12, atol=atol)


def test_kriging_is_sound_where_covariances_are_not():
    """Few clips of unequal length, longer sequences than in training, a band that never changes, one clip of one patch."""
    generator = np.random.default_rng(0)
    training = [generator.normal(size=(length, 3)) * [1.0, 1e-3, 0.0] for length in (1, 4, 6)]
    kriging = Kriging.fit(training)
    assert (np.linalg.eigvalsh(kriging.correlation(20)) > -1e-9).all()
    raw = kriging.correlation_by_lag[:, np.abs(np.arange(6)[:, None] - np.arange(6))]
    assert np.linalg.eigvalsh(raw).min() < -0.01  # so that something had to be done
    visible = generator.random((2, 20)) < 0.3
    found = kriging.predict(generator.normal(size=(2, 20, 3)), visible)
    assert np.abs(found).max() < 10
    np.testing.assert_allclose(found[~visible][:, 2], 0.0, atol=1e-9)


def patches_of(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    masked = np.array([[True, True, False, True, False], [False, True, True, False, False]])
    return generator.normal(size=(2, 5, 3, 4)), masked


def shares(drawn: np.ndarray) -> tuple[float, float]:
    original, masked = patches_of()
    found, whole = sums_of_squares(drawn, masked), sums_of_squares(original, masked)
    return tuple(float(part.sum() / all_.sum()) for part, all_ in zip(found, whole, strict=True))


def test_shares_of_variance_tell_levels_from_change_inside_patches():
    original, masked = patches_of()
    bands = np.broadcast_to(original.mean(-1, keepdims=True), original.shape)
    means = [clip[mask].mean((0, 2)) for clip, mask in zip(original, masked, strict=True)]
    level = np.broadcast_to(np.stack(means)[:, None, :, None], original.shape)
    assert shares(original) == pytest.approx((1, 1))
    assert shares(bands) == pytest.approx((0, 1))
    assert shares(level) == pytest.approx((0, 0))
    assert shares(original - bands) == pytest.approx((1, 0), abs=1e-12)
    assert shares(0.5 * original) == pytest.approx((0.25, 0.25))


def test_variance_within_and_between_add_up_and_visible_patches_do_not_count():
    original, masked = patches_of()
    within, between = sums_of_squares(original, masked)
    for clip, mask, total in zip(original, masked, within + between, strict=True):
        hidden = clip[mask].transpose(1, 0, 2).reshape(3, -1)
        assert total == pytest.approx(np.square(hidden - hidden.mean(1, keepdims=True)).sum())
    changed = np.where(masked[..., None, None], original, 99.0)
    np.testing.assert_array_equal(sums_of_squares(changed, masked), (within, between))


def strokes(frames: list[int], *, length: int = 128, rise: float = 0.2) -> np.ndarray:
    """Log-mel (4, T) in which all bands rise at some frames and fall back slowly."""
    level = np.full(length, -0.6)
    for frame in frames:
        level[frame:] = np.maximum(
            level[frame:], -0.6 + rise * np.exp(-np.arange(length - frame) / 4)
        )
    return np.tile(level, (4, 1)).astype(np.float32)


def cut(log_mel: np.ndarray, width: int = 32) -> np.ndarray:
    return log_mel.reshape(len(log_mel), -1, width).transpose(1, 0, 2)


def test_onsets_are_found_where_bands_rise():
    assert onsets(strokes([10, 40, 75])).tolist() == [10, 40, 75]
    falling = np.repeat(np.float32([[0.0, -0.2, -0.4, -0.6]]), 16, axis=1)
    assert onsets(falling).tolist() == []
    assert onsets(falling[:, ::-1]).tolist() == [16, 32, 48]
    assert onsets(np.full((4, 64), -1.0)).tolist() == []


def test_an_onset_rises_by_a_decibel_over_the_local_mean():
    one_frame = 21 / 20  # its own part of the local mean of 21 frames
    assert onsets(strokes([40], rise=0.0102 * one_frame)).tolist() == [40]
    assert onsets(strokes([40], rise=0.0098 * one_frame)).tolist() == []
    assert onsets(10 * strokes([40], rise=0.0098 * one_frame), scale=0.1).tolist() == []


def test_of_onsets_within_three_frames_the_stronger_counts():
    log_mel = strokes([40], rise=0.1)
    log_mel[:, 43:] += 0.2
    assert onsets(log_mel).tolist() == [43]
    apart = strokes([40], rise=0.1)
    apart[:, 44:] += 0.2
    assert onsets(apart).tolist() == [40, 44]


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [
        ([10, 20, 30], [12, 17, 33], 1),
        ([10], [8], 1),
        ([10], [9, 11], 1),
        ([9, 11], [10], 1),
        ([10, 12], [8, 10, 14], 2),
        ([], [5], 0),
    ],
)
def test_pairs_are_at_most_two_frames_apart_and_nothing_is_paired_twice(one, other, count):
    assert count_matches(np.array(one), np.array(other)) == count


def test_onsets_of_the_original_score_one_and_of_a_constant_none():
    original, everything = cut(strokes([10, 40, 75])), np.ones(4, bool)
    assert count_onsets(original, original, everything) == OnsetCounts(3, 3, 3)
    assert count_onsets(original, original, everything).f == 1
    silent = count_onsets(original, np.full_like(original, -1.0), everything)
    assert (silent, silent.f) == (OnsetCounts(3, 0, 0), 0)
    assert OnsetCounts().f == 0
    assert (OnsetCounts(3, 5, 2) + OnsetCounts(1, 0, 0)).f == pytest.approx(4 / 9)


@pytest.mark.parametrize(("late", "matched"), [(-3, 0), (-2, 1), (2, 1), (3, 0)])
def test_the_tolerance_is_two_frames(late, matched):
    found = count_onsets(cut(strokes([40])), cut(strokes([40 + late])), np.ones(4, bool))
    assert found == OnsetCounts(1, 1, matched)


def test_onsets_count_inside_runs_of_masked_patches_alone():
    """There are strokes in visible patches, and a step at the seam between a visible and a masked one."""
    log_mel = strokes([10, 40, 75, 110])
    log_mel[:, 64:] += 0.2
    for masked, count in [((1, 3), 2), ((2, 3), 2), ((1, 2), 3)]:
        mask = np.isin(np.arange(4), masked)
        assert count_onsets(cut(log_mel), cut(log_mel), mask) == OnsetCounts(count, count, count)
