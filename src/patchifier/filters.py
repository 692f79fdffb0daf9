"""Windows and filters of a spectrogram: mel bands, and bands of equal steps in pitch."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from patchifier.config import PITCH_F_MIN_HZ, PITCH_N_FFT, PITCH_PER_OCTAVE, SpectrogramConfig


def filter_banks(config: SpectrogramConfig) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Step, window (n_fft / step,) and filters (M', F), float64, of mel bands and pitch bands."""
    banks = [(1, analysis_window(config), mel_filters(config))]
    if config.n_pitch_bands:
        step = pitch_step(config)
        size = PITCH_N_FFT // step
        longer = analysis_window(dataclasses.replace(config, n_fft=size))
        # a tone is as loud as in the mel bands
        banks.append(
            (step, longer * (config.n_fft / size), pitch_filters(config)[:, : 1 + size // 2])
        )
    return banks


# Half the rate: a low-pass of 47 taps that changes what lies below PASSED by less than 0.00004 dB,
# and keeps 0.0003 % of what would fold there.
PASSED, TAPS, KAISER_BETA = 0.163, 47, 11.16
MARGIN = 1 + TAPS // 4  # samples of half the rate beyond a waveform's end that are not zero
PINK_FROM_HZ = 20.0  # of pink noise
BLOCK = 32  # samples that one product of matrices makes


def pitch_step(config: SpectrogramConfig) -> int:
    """2 if every second sample suffices for the pitch bands, which halves the cost; else 1.

    And where the window ends in zeros: within half the filter's length of a block's ends,
    low-passed samples are not those of the whole.
    """
    low = config.pitch_f_max_hz <= PASSED * config.sample_rate and config.window == "hann"
    return 2 if low and config.hop_length % 2 == 0 and config.frame_samples % 4 == 0 else 1


@functools.cache
def low_pass() -> np.ndarray:
    """Low-pass filter (47,) at a quarter of the rate: a Kaiser-windowed sinc, float64."""
    taps = np.sinc((np.arange(TAPS) - TAPS // 2) / 2) * np.kaiser(TAPS, KAISER_BETA)
    return taps / taps.sum()


@functools.lru_cache(maxsize=8)
def half_rate_matrix(dtype: np.dtype) -> np.ndarray:
    """From BLOCK + TAPS // 2 of every other sample to BLOCK of half the rate.

    Every other tap of the low-pass is zero, but for the one in the middle, which is left out.
    """
    matrix = np.zeros((BLOCK + TAPS // 2, BLOCK), dtype)
    for place in range(BLOCK):
        matrix[place : place + TAPS // 2 + 1, place] = low_pass()[::2]
    return matrix


def at_half_rate(waveform: np.ndarray, *, margin: int = 0) -> np.ndarray:
    """Every other sample of a waveform (S,), low-passed: (S / 2,), rounded up.

    Beyond its ends are zeros. `margin` is how many more are given before and behind, where the
    filter still sees the ends.
    """
    count, dtype = -(-len(waveform) // 2) + 2 * margin, waveform.dtype
    blocks, start = -(-count // BLOCK), TAPS // 2 + 2 * margin
    padded = np.zeros(2 * BLOCK * (blocks + 1), dtype)
    padded[start : start + len(waveform)] = waveform
    others = padded[::2].reshape(-1, BLOCK)
    rows = np.empty((blocks, BLOCK + TAPS // 2), dtype)
    rows[:, :BLOCK], rows[:, BLOCK:] = others[:-1], others[1:, : TAPS // 2]
    found = (rows @ half_rate_matrix(dtype)).reshape(-1)[:count]
    found += low_pass()[TAPS // 2].astype(dtype) * padded[TAPS // 2 :: 2][:count]
    return found


def analysis_window(config: SpectrogramConfig) -> np.ndarray:
    """Periodic window (n_fft,) that each frame is multiplied by, float64."""
    constant = {"hann": 0.5, "hamming": 0.54}[config.window]
    turns = np.arange(config.n_fft) / config.n_fft
    return constant - (1 - constant) * np.cos(2 * np.pi * turns)


def pitch_filters(config: SpectrogramConfig) -> np.ndarray:
    """Triangular filters of equal steps in pitch and unit area, at least one FFT bin wide.

    Returns
    -------
    numpy.ndarray, shape (P, F), float64
    """
    centres = pitch_centres_hz(config)  # (P,)
    bins = np.linspace(0, config.sample_rate / 2, 1 + PITCH_N_FFT // 2)  # (F,)
    widths = np.maximum(centres * (2 ** (1 / PITCH_PER_OCTAVE) - 1), bins[1])[:, None]
    return np.maximum(0, 1 - np.abs(bins - centres[:, None]) / widths) / widths


def pitch_centres_hz(config: SpectrogramConfig) -> np.ndarray:
    """Centres of the pitch bands in Hz: (P,)."""
    return PITCH_F_MIN_HZ * 2 ** (np.arange(config.n_pitch_bands) / PITCH_PER_OCTAVE)


def centres_hz(config: SpectrogramConfig) -> np.ndarray:
    """Centres of the mel bands, then of the pitch bands, in Hz: (M,)."""
    return np.concatenate([mel_edges_hz(config)[1:-1], pitch_centres_hz(config)])


def mel_shares(config: SpectrogramConfig) -> np.ndarray:
    """Width of each mel band as a share of all: weights (mel bands,) of a mean over frequency."""
    edges = mel_edges_hz(config)
    widths = edges[2:] - edges[:-2]
    return widths / widths.sum()


@functools.lru_cache(maxsize=8)
def noise_power(config: SpectrogramConfig, *, pink: bool) -> np.ndarray:
    """Expected power (M,) of stationary noise in each band, of mean 1 over the mel bands' range.

    White noise, or pink: power falls by 3 dB an octave, and there is none below 20 Hz. Windows of
    another length make pitch bands differ from mel bands.
    """
    rows = []
    for step, window, filters in filter_banks(config):
        hertz = np.linspace(0, config.sample_rate / 2 / step, filters.shape[1])
        spectrum = 1 / np.maximum(hertz, PINK_FROM_HZ) if pink else np.ones_like(hertz)
        audible = spectrum * (hertz >= PINK_FROM_HZ) if pink else spectrum
        rows.append(filters @ audible * (window**2).sum() / step)
    power = np.concatenate(rows)
    return power / (mel_shares(config) @ power[: config.n_mels])


def mel_filters(config: SpectrogramConfig) -> np.ndarray:
    """Triangular mel filters of unit area (Slaney's Auditory Toolbox).

    Returns
    -------
    numpy.ndarray, shape (mel bands, F), float64
    """
    hertz = mel_edges_hz(config)  # (M + 2,)
    bins = np.linspace(0, config.sample_rate / 2, 1 + config.n_fft // 2)  # (F,)
    ramps = hertz[:, None] - bins[None, :]  # (M + 2, F)
    widths = np.diff(hertz)[:, None]
    rising, falling = -ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (hertz[2:] - hertz[:-2]))[:, None]


def mel_edges_hz(config: SpectrogramConfig) -> np.ndarray:
    """Lower edge of the first band, centres of all, upper edge of the last in Hz: (M + 2,)."""
    low, high = _hz_to_mel(np.array([config.f_min_hz, config.f_max_hz]), config.mel_scale)
    return _mel_to_hz(np.linspace(low, high, config.n_mels + 2), config.mel_scale)


# Slaney's scale: linear below 1 kHz (15 mels), 27 equal steps per factor 6.4 above.
SLANEY_HZ, SLANEY_MEL, SLANEY_STEP = 1000.0, 15.0, np.log(6.4) / 27


def _hz_to_mel(hertz: np.ndarray, scale: Literal["slaney", "htk"]) -> np.ndarray:
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    logarithmic = SLANEY_MEL + np.log(np.maximum(hertz, SLANEY_HZ) / SLANEY_HZ) / SLANEY_STEP
    return np.where(hertz < SLANEY_HZ, hertz * SLANEY_MEL / SLANEY_HZ, logarithmic)


def _mel_to_hz(mel: np.ndarray, scale: Literal["slaney", "htk"]) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    logarithmic = SLANEY_HZ * np.exp(SLANEY_STEP * (mel - SLANEY_MEL))
    return np.where(mel < SLANEY_MEL, mel * SLANEY_HZ / SLANEY_MEL, logarithmic)
