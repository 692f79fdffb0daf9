"""A trained reference predictor of masked patches, and statistics of reconstructions.

:mod:`patchifier.predictors` has the references that need no training.

Shapes: B clips, N patches, M mel bands, W frames in a patch, T frames. ``bands`` (B, N, M) holds
the mean of each mel band over the frames of a patch; ``visible`` (B, N) bool is False for masked
patches and for padding. Everything is NumPy in float64; log-mels are in dB x 0.01, errors in their
squares.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from patchifier.predictors import band_means, visible_mean

RIDGE = 1e-6  # relative to the variance of a component
# Variance of a component relative to the largest; a smaller one is rounding error.
LEAST_VARIANCE = 1e-12

ONSET_DB = 1.0  # least difference of an onset's strength from its local mean
ONSET_PEAK_FRAMES = 3  # frames on both sides (70 ms) of which an onset is the largest value
ONSET_MEAN_FRAMES = 10  # frames on both sides (232 ms) of the local mean
ONSET_TOLERANCE_FRAMES = 2  # 46 ms at the paper's hop of 23.2 ms


@dataclass(frozen=True)
class Kriging:
    """Simple kriging: the best linear prediction of band means from those of the visible patches.

    Band means are projected on the principal components of the training clips. The covariance of
    two patches in a component depends on their distance only. With the training mean m, the
    prediction of the masked patches h from the visible patches v is
    m + K_hv (K_vv + ridge I)^-1 (x_v - m).

    Attributes
    ----------
    mean : ndarray, shape (M,)
        Mean of the training patches' band means.
    components : ndarray, shape (M, M)
        Principal components, one a column.
    correlation_by_lag : ndarray, shape (M, L)
        Correlation of each component at distances of 0 to L - 1 patches; 1 at distance 0.

    Notes
    -----
    The covariance at a lag is the mean product over all pairs of patches of a training clip at that
    distance. It is unbiased: division by the length of the clip would halve the covariance at half
    that length. The matrix of these covariances need not be positive semidefinite, so negative
    eigenvalues are set to 0. Beyond the longest lag in training, the last correlation is used. The
    ridge is 1e-6 of a component's variance. A component that is constant in training is predicted
    by its mean.
    """

    mean: np.ndarray
    components: np.ndarray
    correlation_by_lag: np.ndarray

    @classmethod
    def fit(cls, sequences: Iterable[np.ndarray]) -> "Kriging":
        """Fit to the band means (N, M) of consecutive patches of each training clip.

        N may differ.
        """
        clips = [np.asarray(sequence, np.float64) for sequence in sequences if len(sequence)]
        patches = np.concatenate(clips)  # (P, M)
        mean = patches.mean(0)
        centred = patches - mean
        _, components = np.linalg.eigh(centred.T @ centred / len(centred))
        covariance = covariance_by_lag([(clip - mean) @ components for clip in clips])  # (M, L)
        variance = covariance[:, :1]
        varies = variance > LEAST_VARIANCE * variance.max()
        identity = (np.arange(covariance.shape[1]) == 0).astype(np.float64)
        correlation = covariance / np.where(varies, variance, 1.0)
        return cls(mean, components, np.where(varies, correlation, identity))

    def correlation(self, n_patches: int) -> np.ndarray:
        """Correlation of patches in each principal component, positive semidefinite: (M, N, N)."""
        longest = self.correlation_by_lag.shape[1] - 1
        index = np.arange(n_patches)
        lags = np.abs(index[:, None] - index).clip(max=longest)
        values, vectors = np.linalg.eigh(self.correlation_by_lag[:, lags])
        return (vectors * values.clip(min=0.0)[:, None, :]) @ vectors.transpose(0, 2, 1)

    def predict(self, bands: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Predict the band means (B, N, M) of all patches from those of the visible ones (B, N).

        The training mean for a clip without a visible patch.
        """
        seen = visible.astype(np.float64)  # (B, N)
        scores = ((bands - self.mean) @ self.components) * seen[..., None]  # (B, N, C)
        both = seen[:, :, None] * seen[:, None, :]  # (B, N, N)
        # a patch that is not visible gets weight 0
        diagonal = np.eye(visible.shape[1]) * np.where(visible, RIDGE, 1.0)[:, None, :]
        predicted = np.empty_like(scores)
        for component, correlation in enumerate(self.correlation(visible.shape[1])):
            system, values = correlation * both + diagonal, scores[..., component, None]
            predicted[..., component] = np.linalg.solve(system, values)[..., 0] @ correlation
        return self.mean + predicted @ self.components.T


def covariance_by_lag(sequences: list[np.ndarray]) -> np.ndarray:
    """Autocovariance of sequences (N, C) of zero mean: (C, L), L the length of the longest.

    The value at a lag is the mean over all pairs of values at that distance in all sequences.
    """
    longest = max(map(len, sequences))
    # (longest + 1, C)
    power = sum(np.abs(np.fft.rfft(sequence, 2 * longest, axis=0)) ** 2 for sequence in sequences)
    lengths = np.array([len(sequence) for sequence in sequences])
    pairs = np.maximum(lengths[:, None] - np.arange(longest), 0).sum(0)  # (L,)
    return np.fft.irfft(power, axis=0)[:longest].T / pairs


# --- Variance of reconstructions ---


def sums_of_squares(patches: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split the variance of masked (B, N) patches (B, N, M, W) of each clip: within, between (B,).

    Within: sum of squares around the band means of each patch, change over time inside patches.
    Between: sum of squares of these band means around their mean over the clip's masked patches,
    change of level between patches. The two add up to the sum of squares around that mean.
    """
    patches = np.asarray(patches, np.float64)
    bands = band_means(patches)  # (B, N, M)
    level = visible_mean(bands, masked)  # mean over the masked patches
    within = (np.square(patches - bands[..., None]).sum((2, 3)) * masked).sum(1)
    between = np.where(masked, np.square(bands - level).sum(2), 0.0).sum(1) * patches.shape[-1]
    return within, between


# --- Onsets of reconstructions ---


@dataclass(frozen=True)
class OnsetCounts:
    """Numbers of onsets in the original and in the reconstruction, and of matched pairs."""

    original: int = 0
    drawn: int = 0
    matched: int = 0

    def __add__(self, other: "OnsetCounts") -> "OnsetCounts":
        pairs = zip(vars(self).values(), vars(other).values())
        return OnsetCounts(*(one + two for one, two in pairs))

    @property
    def f(self) -> float:
        """Harmonic mean of precision and recall; 0 where there is no onset at all."""
        return 2 * self.matched / max(1, self.original + self.drawn)


def onset_strength(log_mel: np.ndarray) -> np.ndarray:
    """Spectral flux (T,) of a log-mel (M, T): mean over bands of the increase since the last frame.

    It is 0 at the first frame.
    """
    rise = np.maximum(np.diff(np.asarray(log_mel, np.float64), axis=1), 0.0)
    return np.concatenate([[0.0], rise.mean(0)])


def onsets(log_mel: np.ndarray, *, scale: float = 0.01) -> np.ndarray:
    """Detect onsets in a log-mel (M, T), in which one decibel is `scale`.

    They are the frames whose onset strength is the largest within 3 frames on both sides (the first
    of equal values) and exceeds its mean over 10 frames on both sides by 1 dB.
    """
    strength = onset_strength(log_mel)
    near, wide = ONSET_PEAK_FRAMES, ONSET_MEAN_FRAMES
    # (T, 7)
    neighbours = np.lib.stride_tricks.sliding_window_view(
        np.pad(strength, near, constant_values=-np.inf), 2 * near + 1
    )
    peak = (strength > neighbours[:, :near].max(1)) & (strength >= neighbours[:, near:].max(1))
    sums, counts = (
        np.convolve(np.pad(each, wide), np.ones(2 * wide + 1), "valid")
        for each in (strength, np.ones(len(strength)))
    )
    mean = sums / counts
    return np.flatnonzero(peak & (strength > mean + ONSET_DB * scale))


def count_matches(one: np.ndarray, other: np.ndarray) -> int:
    """Largest number of pairs of frames of both lists, at most two frames (46 ms) apart."""
    first = second = matched = 0
    while first < len(one) and second < len(other):
        apart = one[first] - other[second]
        if abs(apart) <= ONSET_TOLERANCE_FRAMES:
            matched += 1
        first += apart <= ONSET_TOLERANCE_FRAMES
        second += apart >= -ONSET_TOLERANCE_FRAMES
    return matched


def count_onsets(
    original: np.ndarray, drawn: np.ndarray, masked: np.ndarray, *, scale: float = 0.01
) -> OnsetCounts:
    """Compare the onsets of reconstructed patches (N, M, W) of a clip with those of the original.

    Onsets are detected in each run of masked (N,) patches alone, so the boundary to a visible patch
    is not one.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(np.int8), [0]])))
    total = OnsetCounts()
    for start, end in edges.reshape(-1, 2):
        expected, found = (
            onsets(np.concatenate(list(patches[start:end]), axis=-1), scale=scale)
            for patches in (original, drawn)
        )
        total += OnsetCounts(len(expected), len(found), count_matches(expected, found))
    return total
