"""From a waveform to a log-mel, from a log-mel to patches, and back.

Shapes: S samples, T frames, M rows, W frames in a patch, N patches, F = 1 + n_fft // 2 frequencies.
The rows are mel bands; a setting beyond the paper puts pitch bands behind them, which are of equal
width in semitones and come from a longer FFT.
"""

import functools
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import threadpoolctl

from patchifier.config import RequestError, SpectrogramConfig
from patchifier.filters import (
    MARGIN,
    analysis_window,
    at_half_rate,
    filter_banks,
    mel_filters,
)
from patchifier.power import PowerSpectrum

CHUNK = 224  # frames transformed at once; fewer cost calls, more leave the cache
# products of matrices round each frame alike if there are a multiple of so many; with AVX2 the last
# bit may differ
ALIKE = 16
BAND_GROUP = 8  # bands multiplied at once, over their own stretch of frequencies


def log_mel(waveform: np.ndarray, config: SpectrogramConfig | None = None) -> np.ndarray:
    """Log-mel of a waveform (paper 4.3, 4.4).

    Power spectrogram of centred, zero-padded frames, mel filter bank with unit area per band,
    decibels x 0.01.

    Parameters
    ----------
    waveform : array_like, shape (..., S), float32 or float64
        Samples in [-1, 1] at ``config.sample_rate``. The result is computed in their precision.
    config : SpectrogramConfig
        The paper's setting by default.

    Returns
    -------
    numpy.ndarray, shape (..., M, T), T = 1 + S // hop
        About [-1, 0.4]; silence is -1.

    Raises
    ------
    RequestError
        If there is no sample at all, or samples are no floats.

    Examples
    --------
    >>> import numpy as np
    >>> log_mel(np.zeros(22_050, np.float32)).shape  # one second
    (64, 44)
    """
    config = config or SpectrogramConfig()
    waveform = np.asarray(waveform)
    if waveform.ndim < 1 or waveform.size == 0:
        raise RequestError(
            f"waveform has shape {tuple(waveform.shape)}, expected (..., S) with S of at least 1."
        )
    if waveform.dtype.kind != "f":
        raise RequestError(
            f"waveform is {waveform.dtype}, expected floats in [-1, 1]: for 16-bit integers "
            "divide by 32768."
        )
    rows = [_whole(row, config) for row in waveform.reshape(-1, waveform.shape[-1])]
    return np.stack(rows).reshape(*waveform.shape[:-1], *rows[0].shape)


def _whole(waveform: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Log-mel (M, T) of one waveform (S,)."""
    waveform = waveform.astype(np.result_type(waveform, np.float32), copy=False)
    count = 1 + len(waveform) // config.hop_length
    return _relative(_decibels(waveform, config, -(config.frame_samples // 2), count), config)


def log_mel_of_blocks(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig | None = None
) -> np.ndarray:
    """Log-mel (M, T) of consecutive blocks (S,) of one waveform, equal to that of the whole.

    Memory is bounded by a block and the result.
    """
    config = config or SpectrogramConfig()
    return _relative(np.concatenate(list(_decibels_of_blocks(blocks, config)), axis=-1), config)


def stream_log_mel(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig | None = None
) -> Iterator[np.ndarray]:
    """Log-mel of a waveform that arrives in blocks, piece by piece.

    (M, T') each, in memory bounded by a block.

    Where the reference or the floor is the clip's own maximum, which is known at the end only,
    there is one piece.
    """
    config = config or SpectrogramConfig()
    if config.reference == "max" or config.top_db is not None:
        yield log_mel_of_blocks(blocks, config)
        return
    yield from (_relative(piece, config) for piece in _decibels_of_blocks(blocks, config))


def _decibels_of_blocks(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig
) -> Iterator[np.ndarray]:
    length, hop = config.frame_samples, config.hop_length
    half = length // 2
    least = ALIKE * config.pitch_hop
    rest, samples, done = np.zeros(half, np.float32), 0, 0
    for block in blocks:
        samples += len(block)
        rest = np.concatenate([rest, block])
        ready = max(0, 1 + (len(rest) - length) // hop)
        ready -= ready % config.pitch_hop  # whole groups of frames
        if ready >= least:  # fewer cost nearly as much, and come with the next
            yield _decibels(rest[: (ready - 1) * hop + length], config, 0, ready)
            rest, done = rest[ready * hop :], done + ready
    missing = 1 + samples // hop - done
    if samples == 0:
        raise RequestError("the waveform is empty, expected at least 1 sample.")
    if missing:  # none are, if hop > n_fft / 2 and the last frame ends before the waveform does
        yield _decibels(rest, config, 0, missing)


def _decibels(
    waveform: np.ndarray, config: SpectrogramConfig, start: int, count: int
) -> np.ndarray:
    """Decibels re full scale of `count` frames of a waveform (S,), the first at `start`: (M, T).

    Beyond the waveform's ends are zeros.
    """
    decibels = np.empty((config.n_bands, count), waveform.dtype)
    last = 0
    for bank in banks(config, waveform.dtype):
        with _one_thread:  # more are slower: products are small
            power = _bank_power(waveform, bank, config, start, count)
        found, first, last = _in_decibels(power, config), last, last + len(power)
        for place in range(bank.every):  # frames that share a transform
            frames = decibels[first:last, place :: bank.every]
            frames[:] = found[:, : frames.shape[1]]
    return decibels


def _in_decibels(power: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Decibels re full scale of powers, in their memory; the least are exactly ``min_db``."""
    power *= 10 ** (-config.min_db / 10)
    np.maximum(power, 1, out=power)
    np.log(power, out=power)  # numpy's log10 takes four times as long
    power *= 10 / math.log(10)
    power += config.min_db
    return power


class _OneThread:
    """Let numpy's products use one thread while any thread of this process is inside."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0

    @functools.cached_property
    def library(self) -> threadpoolctl.ThreadpoolController:
        return threadpoolctl.ThreadpoolController()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.limit = self.library.limit(limits=1, user_api="blas")
            self.inside += 1

    def __exit__(self, *reason: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.limit.restore_original_limits()


_one_thread = _OneThread()


def _bank_power(
    samples: np.ndarray, bank: "Bank", config: SpectrogramConfig, start: int, count: int
) -> np.ndarray:
    """Power (M', T / every) in each band of a bank, for `count` frames."""
    count = -(-count // bank.every)
    start += (config.frame_samples - bank.step * bank.power.n) // 2
    start = (start + (bank.every - 1) * config.hop_length // 2) // bank.step
    if bank.step == 2:
        samples, start = at_half_rate(samples, margin=MARGIN), start + MARGIN
    hop, whole = bank.every * config.hop_length // bank.step, count + -count % ALIKE
    found = np.empty((sum(len(filters) for _, filters in bank.groups), whole), samples.dtype)
    chunk = ALIKE * -(-whole // (ALIKE * -(-whole // CHUNK)))  # of about equal lengths
    for first in range(0, whole, chunk):
        last, row = min(first + chunk, whole), 0
        power = bank.power(samples, start=start + first * hop, hop=hop, count=last - first)
        for lowest, filters in bank.groups:
            used = power[lowest : lowest + filters.shape[1]]
            np.matmul(filters, used, out=found[row : row + len(filters), first:last])
            row += len(filters)
    return found[:, :count]


def _relative(decibels: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Apply reference, top_db and scale to decibels (M, T)."""
    if config.reference == "max" or config.top_db is not None:
        loudest = decibels[: config.n_mels].max()  # pitch bands change nothing about mel bands
        if config.top_db is not None:
            decibels = np.maximum(decibels, loudest - config.top_db)
        if config.reference == "max" and loudest > config.min_db:
            decibels = decibels - loudest
        elif config.reference == "max":
            decibels = np.full_like(decibels, -(config.top_db or 0.0))
    return decibels * decibels.dtype.type(config.db_scale)


@dataclass(frozen=True)
class Bank:
    """Bands that share a Fourier transform.

    Attributes
    ----------
    step : int
        1, or 2 for a transform of every other sample (:func:`at_half_rate`).
    every : int
        Frames that one transform, at their middle, stands for.
    power : PowerSpectrum
        The transform.
    groups : list of (int, ndarray)
        For each group of bands, the first frequency that it needs, and its filters from there on.
    """

    step: int
    every: int
    power: PowerSpectrum
    groups: list[tuple[int, np.ndarray]]


@functools.lru_cache(maxsize=8)
def banks(config: SpectrogramConfig, dtype: np.dtype) -> list[Bank]:
    """Banks of mel bands and of pitch bands, for samples of a precision."""
    found = []
    for (step, window, filters), every in zip(
        filter_banks(config), (1, config.pitch_hop), strict=False
    ):
        cuts = range(0, len(filters), BAND_GROUP)
        groups = [_group(filters[first : first + BAND_GROUP].astype(dtype)) for first in cuts]
        highest = max(lowest + part.shape[1] for lowest, part in groups)
        found.append(Bank(step, every, PowerSpectrum(window, highest, dtype), groups))
    return found


def _group(filters: np.ndarray) -> tuple[int, np.ndarray]:
    """First frequency that filters (M', F) need, and the filters from there to the last."""
    used = np.flatnonzero(filters.any(axis=0))
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    return first, np.ascontiguousarray(filters[:, first:last])


# --- patches ---

Tail = Literal["drop", "pad", "anchor"]


def patch_starts(
    frames: int, *, length: int = 32, hop: int | None = None, tail: Tail = "drop"
) -> list[int]:
    """First frame of each patch that :func:`cut` takes from a log-mel.

    Parameters
    ----------
    frames : int
        Frames T of the log-mel, at least 1.
    length, hop : int
        Frames in a patch, and between the starts of patches; they touch by default.
    tail : "drop", "pad" or "anchor"
        What becomes of frames after the last whole patch: dropped, padded with silence, or covered
        by one more patch that ends with the last frame. Below one patch, "pad" and "anchor" pad and
        "drop" gives no patch.

    Returns
    -------
    list of int
        In rising order, evenly spaced but for an anchored last one.

    Raises
    ------
    RequestError
        If a length or the tail makes no sense.
    """
    hop = length if hop is None else hop
    if not all(isinstance(value, Integral) and value >= 1 for value in (length, hop)):
        raise RequestError(
            f"patch length ({length!r}) and hop ({hop!r}) must be at least 1 frame, and whole."
        )
    if tail not in get_args(Tail):
        raise RequestError(f"tail is {tail!r}, expected one of {', '.join(get_args(Tail))}.")
    starts = list(range(0, frames - length + 1, hop))
    if tail == "drop" or (starts and starts[-1] + length == frames):
        return starts
    if tail == "pad":
        return (
            [*starts, starts[-1] + hop if starts else 0]
            if not starts or starts[-1] + hop < frames
            else starts
        )
    return [*starts, max(0, frames - length)]


def cut(
    log_mel: np.ndarray,
    *,
    length: int = 32,
    hop: int | None = None,
    tail: Tail = "drop",
    silence: float = -1.0,
) -> np.ndarray:
    """Cut a log-mel into patches (paper 4.1).

    Parameters
    ----------
    log_mel : numpy.ndarray, shape (..., M, T)
        As :func:`log_mel` gives it.
    length, hop, tail
        As for :func:`patch_starts`.
    silence : float
        Value of padding: ``config.silence``, never 0.

    Returns
    -------
    numpy.ndarray, shape (..., N, 1, M, W)

    Raises
    ------
    RequestError
        If not a single patch fits and the tail is dropped, or an argument makes no sense.

    Examples
    --------
    >>> import numpy as np
    >>> cut(np.zeros((64, 100)), length=32).shape  # 4 frames are left over
    (3, 1, 64, 32)
    >>> cut(np.zeros((64, 100)), length=32, tail="anchor").shape
    (4, 1, 64, 32)
    """
    log_mel = _array("log_mel", log_mel, "(..., M, T)", least=2)
    starts = patch_starts(log_mel.shape[-1], length=length, hop=hop, tail=tail)
    if not starts:
        raise RequestError(
            f"{log_mel.shape[-1]} frames are less than one patch of {length}: use tail='pad' or "
            "'anchor'."
        )
    missing = max(0, starts[-1] + length - log_mel.shape[-1])
    edges = [(0, 0)] * (log_mel.ndim - 1) + [(0, missing)]
    padded = np.pad(log_mel, edges, constant_values=silence)
    index = np.array(starts)[:, None] + np.arange(length)  # (N, W)
    patches = np.moveaxis(padded[..., index], -2, -3)  # (..., M, N, W) -> (..., N, M, W)
    return np.ascontiguousarray(patches[..., None, :, :])


def join(
    patches: np.ndarray, frames: int, *, hop: int | None = None, tail: Tail = "drop"
) -> np.ndarray:
    """Join patches into a log-mel: the inverse of :func:`cut`, means where patches overlap.

    Parameters
    ----------
    patches : numpy.ndarray, shape (..., N, 1, M, W)
        As :func:`cut` gives them.
    frames : int
        Frames of the log-mel they were cut from.
    hop, tail
        As they were cut.

    Returns
    -------
    numpy.ndarray, shape (..., M, T)
        T is `frames`; with tail "drop", only as far as patches reach.

    Raises
    ------
    RequestError
        If so many patches do not cover so many frames, or an argument makes no sense.

    Examples
    --------
    >>> import numpy as np
    >>> patches = cut(np.zeros((64, 96)), length=32)
    >>> join(patches, 96).shape
    (64, 96)
    """
    patches = _array("patches", patches, "(..., N, 1, M, W)", least=4)
    length = patches.shape[-1]
    starts = patch_starts(frames, length=length, hop=hop, tail=tail)
    if len(starts) != patches.shape[-4] or (hop or length) > length:
        raise RequestError(
            f"{patches.shape[-4]} patches of {length} frames, hop {hop or length}, do not cover "
            f"{frames} frames: expected {len(starts)} that touch."
        )
    reach = max(frames, starts[-1] + length)
    total = np.zeros((*patches.shape[:-4], patches.shape[-2], reach), patches.dtype)
    count = np.zeros(reach, patches.dtype)
    for n, start in enumerate(starts):
        total[..., start : start + length] += patches[..., n, 0, :, :]
        count[start : start + length] += 1
    reach = min(frames, starts[-1] + length)
    return total[..., :reach] / count[:reach]


def _array(name: str, given: Any, expected: str, *, least: int) -> np.ndarray:
    """Return an array of at least so many dimensions; refuse anything else."""
    array = np.asarray(given) if hasattr(given, "__array__") else None
    if array is not None and array.ndim >= least:
        return array
    seen = f"is of type {type(given).__name__}" if array is None else f"has shape {array.shape}"
    raise RequestError(f"{name} {seen}, expected an array {expected}.")


# --- and back to sound ---


def to_waveform(
    log_mel: np.ndarray,
    config: SpectrogramConfig | None = None,
    *,
    iterations: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """Approximate waveform of a log-mel (Griffin-Lim).

    Mel power is spread over frequencies by the filters' non-negative pseudo-inverse, phases are
    found by the fast Griffin-Lim algorithm (Perraudin, Balazs, Sondergaard 2013).

    Parameters
    ----------
    log_mel : numpy.ndarray, shape (M, T)
        As :func:`log_mel` gives it; its mel bands are listened to.
    config : SpectrogramConfig
        The one it was made with.
    iterations : int
        Rounds of Griffin-Lim.
    seed : int
        Of the first, random phases.

    Returns
    -------
    numpy.ndarray, shape (S,), float32, S = (T - 1) * hop

    Raises
    ------
    RequestError
        If that is not the log-mel's shape.

    Examples
    --------
    >>> silence = log_mel(np.zeros(22_050, np.float32))
    >>> to_waveform(silence, iterations=2).shape
    (22016,)
    """
    config = config or SpectrogramConfig()
    log_mel = _array("log_mel", log_mel, f"({config.n_bands}, T)", least=2)
    if log_mel.ndim != 2 or log_mel.shape[0] < config.n_mels or log_mel.shape[1] < 2:
        raise RequestError(
            f"log_mel has shape {tuple(log_mel.shape)}, expected ({config.n_bands}, T) with T of "
            "at least 2: give a single one."
        )
    filters = mel_filters(config).T  # (F, M)
    log_mel = log_mel[: config.n_mels].astype(np.float64)
    power = 10 ** (log_mel / config.db_scale / 10)  # (M, T)
    power = np.where(log_mel > config.silence + 1e-4, power, 0.0)
    spread = filters @ np.linalg.pinv(filters.T @ filters) @ power  # (F, T)
    magnitude = np.sqrt(np.maximum(spread, 0)).astype(np.float32)
    turns = np.random.default_rng(seed).random(magnitude.shape, np.float32)
    spectrum = magnitude * np.exp(2j * np.pi * turns)
    previous = np.zeros_like(spectrum)
    for _ in range(iterations):
        consistent = _stft(_istft(spectrum, config), config)
        guess = consistent + 0.99 * (consistent - previous)  # momentum of the fast variant
        spectrum, previous = magnitude * np.exp(1j * np.angle(guess)), consistent
    return _istft(spectrum, config).astype(np.float32)


def _stft(waveform: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Spectrum (F, T) of centred frames of a waveform (S,)."""
    padded = np.pad(waveform, config.n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    return np.fft.rfft(frames * analysis_window(config)).T


def _istft(spectrum: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Waveform (S,), S = (T - 1) * hop, whose spectrum is nearest to the given one (F, T)."""
    n_fft, hop, window = config.n_fft, config.hop_length, analysis_window(config)
    frames = np.fft.irfft(spectrum.T, n_fft) * window  # (T, n_fft)
    total = np.zeros((len(frames) - 1) * hop + n_fft)
    weight = np.zeros_like(total)
    for number, frame in enumerate(frames):
        total[number * hop : number * hop + n_fft] += frame
        weight[number * hop : number * hop + n_fft] += window**2
    half = n_fft // 2
    inside = slice(half, half + (len(frames) - 1) * hop)
    return total[inside] / np.maximum(weight[inside], 1e-8)
