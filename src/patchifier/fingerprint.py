"""Audio fingerprint of a log-mel (Haitsma and Kalker 2002): signs of changes between bands."""

import functools

import numpy as np

from patchifier.config import RequestError, SpectrogramConfig
from patchifier.filters import mel_edges_hz

LOW_HZ, HIGH_HZ = 200.0, 5000.0  # below, codecs and rooms differ; above, mp3 and noise do
BITS = 32
# 9 and 4 frames of the paper's setting: half a frame of misalignment turns 4 % of the bits over
SMOOTH_S, LAG_S = (0.21, 0.093)
RELIABLE_DB = 1.0


def fingerprint(log_mel: np.ndarray, config: SpectrogramConfig | None = None) -> np.ndarray:
    """Fingerprint of a log-mel, unchanged by its level and little by its encoding.

    Parameters
    ----------
    log_mel : ndarray, shape (T, M)
        As a cache gives it, frames first.
    config : SpectrogramConfig
        It was made with; the paper's setting by default.

    Returns
    -------
    ndarray, shape (T', 2), uint32
        32 signs of each frame, and which of these are reliable. T' = T - 12 in the paper's setting,
        at least 0.

    Raises
    ------
    RequestError
        If the shape is another, or there are fewer than 16 bands between 200 and 5,000 Hz.

    Examples
    --------
    >>> log_mel = np.random.default_rng(0).normal(size=(100, 64))
    >>> fingerprint(log_mel).shape
    (88, 2)
    """
    config = config or SpectrogramConfig()
    if log_mel.ndim != 2 or log_mel.shape[1] != config.n_bands:
        raise RequestError(
            f"log_mel has shape {log_mel.shape}, expected (T, {config.n_bands}), frames first."
        )
    return pack(differences(log_mel, config))


def pack(changes: np.ndarray) -> np.ndarray:
    """Signs and reliability of changes (T', 32) as bits: (T', 2)."""
    bits = np.stack([changes > 0, np.abs(changes) > RELIABLE_DB], axis=1)  # (T', 2, 32)
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4")[..., 0].astype(np.uint32)


def differences(log_mel: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Change of each band against that of the next, in dB: (T', 32)."""
    smooth, lag = (max(1, round(seconds / config.frame_s)) for seconds in (SMOOTH_S, LAG_S))
    frames = len(log_mel) - smooth + 1
    if frames <= lag:
        return np.zeros((0, BITS), np.float32)
    # (T, 32): differences of neighbours first, as all of this is linear
    bands = log_mel.astype(np.float32) @ _neighbours(config)
    taps = np.hanning(smooth + 2)[1:-1].astype(np.float32)
    smoothed = functools.reduce(
        np.add, (tap * bands[at : at + frames] for at, tap in enumerate(taps / taps.sum()))
    )
    return smoothed[lag:] - smoothed[:-lag]


@functools.lru_cache(maxsize=8)
def _neighbours(config: SpectrogramConfig) -> np.ndarray:
    """Matrix from a log-mel to differences of neighbouring bands in dB: (M, 32)."""
    centres = mel_edges_hz(config)[1:-1]
    used = np.flatnonzero((centres >= LOW_HZ) & (centres <= HIGH_HZ))
    if len(used) < BITS // 2:
        raise RequestError(
            f"the cache has {len(used)} mel bands between {LOW_HZ:g} and {HIGH_HZ:g} Hz, expected "
            f"at least {BITS // 2}: prepare it with more."
        )
    edges = np.linspace(0, len(used), BITS + 2)  # of 33 bands, in units of mel bands
    bands = np.arange(len(used))[:, None]
    # (used, 33)
    shares = np.clip(np.minimum(edges[1:], bands + 1) - np.maximum(edges[:-1], bands), 0, None)
    matrix = np.zeros((config.n_bands, BITS), np.float32)
    matrix[used] = np.diff(shares / shares.sum(axis=0), axis=1) / config.db_scale
    return matrix
