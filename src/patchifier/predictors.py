"""Predictors of masked patches that need no training.

The mean of the visible patches and interpolation between them: what a model's reconstruction is
compared with.

Shapes: B clips, N patches, M mel bands, W frames in a patch. ``bands`` (B, N, M) holds the mean of
each mel band over the frames of a patch; ``visible`` (B, N) bool is False for masked patches and
for padding. Everything is NumPy in float64; log-mels are in dB x 0.01, errors in their squares.
"""

from collections.abc import Callable

import numpy as np


def band_means(patches: np.ndarray) -> np.ndarray:
    """Means over time (..., M) of the mel bands of patches (..., M, W), in float64."""
    return np.asarray(patches).mean(-1, dtype=np.float64)


def visible_mean(bands: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Mean over the visible patches of a clip, the same for each of its patches: (B, N, M).

    NaN for a clip without a visible patch.
    """
    count = visible.sum(1)[:, None, None]  # (B, 1, 1)
    total = (bands * visible[..., None]).sum(1, keepdims=True, dtype=np.float64)  # (B, 1, M)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.broadcast_to(mean, bands.shape).copy()


def interpolation(bands: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Interpolate linearly over the patch index between visible patches, constant beyond."""
    B, N = visible.shape
    index = np.broadcast_to(np.arange(N), (B, N))
    before = np.maximum.accumulate(np.where(visible, index, -1), axis=1)
    after = np.minimum.accumulate(np.where(visible, index, N)[:, ::-1], axis=1)[:, ::-1]
    before, after = np.where(before < 0, after, before), np.where(after >= N, before, after)
    before, after = before.clip(0, N - 1), after.clip(0, N - 1)  # unused where none is visible
    part = ((index - before) / np.maximum(after - before, 1)).clip(0, 1)[..., None]
    clip = np.arange(B)[:, None]
    between = (1 - part) * bands[clip, before] + part * bands[clip, after]
    return np.where(visible.sum(1)[:, None, None] > 0, between, np.nan)


def shrunk_interpolation(bands: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Mean of :func:`interpolation` and :func:`visible_mean`."""
    return 0.5 * interpolation(bands, visible) + 0.5 * visible_mean(bands, visible)


UNTRAINED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "visible_mean": visible_mean,
    "interpolation": interpolation,
    "shrunk_interpolation": shrunk_interpolation,
}


def untrained_mse(patches: np.ndarray, masked: np.ndarray) -> dict[str, float]:
    """Mean squared error of each predictor of :data:`UNTRAINED` on the masked patches of one clip.

    Patches are (N, M, W), their mask is (N,). Empty if no patch is masked or all are.
    """
    if masked.all() or not masked.any():
        return {}
    bands = band_means(patches)[None]  # (1, N, M)
    guesses = {name: predict(bands, ~masked[None])[0] for name, predict in UNTRAINED.items()}
    return {
        name: float(np.square(patches - guess[..., None])[masked].mean())
        for name, guess in guesses.items()
    }
