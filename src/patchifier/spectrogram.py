"""From a waveform to a log-mel, from a log-mel to patches, and back.

Shapes: S samples, T frames, M rows, W frames in a patch, N patches, F = 1 + n_fft // 2 frequencies.
The rows are mel bands; a setting beyond the paper puts pitch bands behind them, which are of equal
width in semitones and come from a longer FFT.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from patchifier.config import RequestError, SpectrogramConfig
from patchifier.filters import analysis_window, at_half_rate, filter_banks, mel_filters

CHUNK = 256  # frames transformed at once: 2 MB of float32; fewer cost calls, more leave the cache
# bands multiplied at once, lower and upper half: a group needs only its own stretch of frequencies,
# wider further up
BAND_GROUPS = (16, 8)


def log_mel(waveform: Tensor | np.ndarray, config: SpectrogramConfig | None = None) -> Tensor:
    """Log-mel of a waveform (paper 4.3, 4.4).

    Power spectrogram of centred, zero-padded frames, mel filter bank with unit area per band,
    decibels x 0.01.

    Parameters
    ----------
    waveform : Tensor or ndarray, shape (..., S), float
        Samples in [-1, 1] at ``config.sample_rate``. A tensor keeps its device and its gradient.
    config : SpectrogramConfig
        The paper's setting by default.

    Returns
    -------
    Tensor, shape (..., M, T), T = 1 + S // hop
        About [-1, 0.4]; silence is -1.

    Raises
    ------
    RequestError
        If there is no sample at all, or samples are no floats.

    Examples
    --------
    >>> import numpy as np
    >>> log_mel(np.zeros(22_050, np.float32)).shape  # one second
    torch.Size([64, 44])
    """
    config = config or SpectrogramConfig()
    waveform = torch.as_tensor(waveform)
    if waveform.ndim < 1 or waveform.shape[-1] == 0:
        raise RequestError(
            f"waveform has shape {tuple(waveform.shape)}, expected (..., S) with S of at least 1."
        )
    if not waveform.is_floating_point():
        raise RequestError(
            f"waveform is {waveform.dtype}, expected floats in [-1, 1]: for 16-bit integers "
            "divide by 32768."
        )
    return _relative(
        torch.cat([_decibels(part, config) for part in _centred(waveform, config)], dim=-1), config
    )


def log_mel_of_blocks(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig | None = None
) -> Tensor:
    """Log-mel (M, T) of consecutive blocks (S,) of one waveform, equal to that of the whole.

    Memory is bounded by a block and the result.
    """
    config = config or SpectrogramConfig()
    return _relative(torch.cat(list(_decibels_of_blocks(blocks, config)), dim=-1), config)


def stream_log_mel(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig | None = None
) -> Iterator[Tensor]:
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
) -> Iterator[Tensor]:
    length, hop = config.frame_samples, config.hop_length
    half = length // 2
    rest, samples, done = np.zeros(half, np.float32), 0, 0
    for block in blocks:
        samples += len(block)
        rest = np.concatenate([rest, block])
        ready = max(0, 1 + (len(rest) - length) // hop)
        if ready:
            yield _decibels(torch.from_numpy(rest[: (ready - 1) * hop + length]), config)
            rest, done = rest[ready * hop :], done + ready
    missing = 1 + samples // hop - done
    if samples == 0:
        raise RequestError("the waveform is empty, expected at least 1 sample.")
    if missing:  # none are, if hop > n_fft / 2 and the last frame ends before the waveform does
        tail = np.concatenate([rest, np.zeros(half, np.float32)])
        yield _decibels(torch.from_numpy(tail[: (missing - 1) * hop + length]), config)


def _centred(waveform: Tensor, config: SpectrogramConfig) -> list[Tensor]:
    """Overlapping parts of a zero-padded waveform; only the edges are copied."""
    half, hop, samples = config.frame_samples // 2, config.hop_length, waveform.shape[-1]
    first, last = -(-half // hop), (samples - half) // hop  # frames that need no padding
    if last - first < CHUNK:
        return [torch.nn.functional.pad(waveform, (half, half))]
    start = torch.nn.functional.pad(waveform[..., : (first - 1) * hop + half], (half, 0))
    between = waveform[..., first * hop - half : last * hop + half]
    end = torch.nn.functional.pad(waveform[..., (last + 1) * hop - half :], (0, half))
    return [start, between, end] if end.shape[-1] >= config.frame_samples else [start, between]


def _decibels(padded: Tensor, config: SpectrogramConfig) -> Tensor:
    """Decibels re full scale of a waveform (..., S) that is padded already: (..., M, T)."""
    length, count = (
        config.frame_samples,
        1 + (padded.shape[-1] - config.frame_samples) // config.hop_length,
    )
    rows = []
    for bank in _banks(config, padded.device, padded.dtype):
        samples = padded if bank.step == 1 else at_half_rate(padded)
        # (..., T, length / step), a view
        frames = samples.unfold(-1, length // bank.step, config.hop_length // bank.step)[
            ..., :count, :
        ]
        # (..., M', T)
        rows.append(
            torch.cat([_bank_power(chunk, bank) for chunk in frames.split(CHUNK, dim=-2)], dim=-1)
        )
    return 10 * torch.log10(torch.cat(rows, dim=-2).clamp(min=10 ** (config.min_db / 10)))


def _bank_power(frames: Tensor, bank: "Bank") -> Tensor:
    """Power (..., M', T') in each band of a bank."""
    middle = (frames.shape[-1] - len(bank.window)) // 2
    windowed = frames[..., middle : middle + len(bank.window)] * bank.window
    # (..., T', 2F), real and imaginary parts
    parts = torch.view_as_real(torch.fft.rfft(windowed)).flatten(-2)
    # (..., 2F, T')
    squares = (parts.square() if parts.requires_grad else parts.square_()).transpose(-1, -2)
    return torch.cat(
        [filters @ squares[..., first:last, :] for first, last, filters in bank.groups], dim=-2
    )


def _relative(decibels: Tensor, config: SpectrogramConfig) -> Tensor:
    """Apply reference, top_db and scale to decibels (..., M, T)."""
    if config.reference == "max" or config.top_db is not None:
        # pitch bands change nothing about mel bands
        loudest = decibels[..., : config.n_mels, :].amax(dim=(-1, -2), keepdim=True)
        if config.top_db is not None:
            decibels = torch.maximum(decibels, loudest - config.top_db)
        if config.reference == "max":
            decibels = torch.where(
                loudest > config.min_db, decibels - loudest, -(config.top_db or 0.0)
            )
    return decibels * config.db_scale


@dataclass(frozen=True)
class Bank:
    """Bands that share an FFT.

    Attributes
    ----------
    step : int
        1, or 2 for an FFT of every other sample (:func:`at_half_rate`).
    window : Tensor
        As long as the FFT.
    groups : list of (int, int, Tensor)
        For each group of bands, the stretch of interleaved parts it needs and its filters: real^2
        and imag^2 are added by the product with them itself, so each weight stands there twice.
    """

    step: int
    window: Tensor
    groups: list[tuple[int, int, Tensor]]


@functools.lru_cache(maxsize=8)
def _banks(config: SpectrogramConfig, device: torch.device, dtype: torch.dtype) -> list[Bank]:
    banks = []
    for step, window, filters in filter_banks(config):
        half = len(filters) // 2
        cuts = [
            *range(BAND_GROUPS[0], half, BAND_GROUPS[0]),
            *range(half, len(filters), BAND_GROUPS[1]),
        ]
        groups = []
        for some in np.split(filters, cuts):
            used = np.flatnonzero(some.any(axis=0))
            first, last = (used[0], used[-1] + 1) if len(used) else (0, 1)
            twice = torch.from_numpy(some[:, first:last].repeat(2, axis=1))  # (M', 2F')
            groups.append((2 * int(first), 2 * int(last), twice.to(device, dtype)))
        banks.append(Bank(step, window.to(device, dtype), groups))
    return banks


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
    log_mel: Tensor,
    *,
    length: int = 32,
    hop: int | None = None,
    tail: Tail = "drop",
    silence: float = -1.0,
) -> Tensor:
    """Cut a log-mel into patches (paper 4.1).

    Parameters
    ----------
    log_mel : Tensor, shape (..., M, T)
        As :func:`log_mel` gives it.
    length, hop, tail
        As for :func:`patch_starts`.
    silence : float
        Value of padding: ``config.silence``, never 0.

    Returns
    -------
    Tensor, shape (..., N, 1, M, W)

    Raises
    ------
    RequestError
        If not a single patch fits and the tail is dropped, or an argument makes no sense.

    Examples
    --------
    >>> import torch
    >>> cut(torch.zeros(64, 100), length=32).shape  # 4 frames are left over
    torch.Size([3, 1, 64, 32])
    >>> cut(torch.zeros(64, 100), length=32, tail="anchor").shape
    torch.Size([4, 1, 64, 32])
    """
    _require_shape("log_mel", log_mel, "(..., M, T)", least=2)
    starts = patch_starts(log_mel.shape[-1], length=length, hop=hop, tail=tail)
    if not starts:
        raise RequestError(
            f"{log_mel.shape[-1]} frames are less than one patch of {length}: use tail='pad' or "
            "'anchor'."
        )
    missing = max(0, starts[-1] + length - log_mel.shape[-1])
    padded = torch.nn.functional.pad(log_mel, (0, missing), value=silence)
    # (N, W)
    index = torch.tensor(starts, device=log_mel.device)[:, None] + torch.arange(
        length, device=log_mel.device
    )
    return padded[..., index].movedim(-2, -3).unsqueeze(-3)  # (..., M, N, W) -> (..., N, 1, M, W)


def join(patches: Tensor, frames: int, *, hop: int | None = None, tail: Tail = "drop") -> Tensor:
    """Join patches into a log-mel: the inverse of :func:`cut`, means where patches overlap.

    Parameters
    ----------
    patches : Tensor, shape (..., N, 1, M, W)
        As :func:`cut` gives them.
    frames : int
        Frames of the log-mel they were cut from.
    hop, tail
        As they were cut.

    Returns
    -------
    Tensor, shape (..., M, T)
        T is `frames`; with tail "drop", only as far as patches reach.

    Raises
    ------
    RequestError
        If so many patches do not cover so many frames, or an argument makes no sense.

    Examples
    --------
    >>> import torch
    >>> patches = cut(torch.rand(64, 96), length=32)
    >>> join(patches, 96).shape
    torch.Size([64, 96])
    """
    _require_shape("patches", patches, "(..., N, 1, M, W)", least=4)
    length = patches.shape[-1]
    starts = patch_starts(frames, length=length, hop=hop, tail=tail)
    if len(starts) != patches.shape[-4] or (hop or length) > length:
        raise RequestError(
            f"{patches.shape[-4]} patches of {length} frames, hop {hop or length}, do not cover "
            f"{frames} frames: expected {len(starts)} that touch."
        )
    total = torch.zeros(
        *patches.shape[:-4],
        patches.shape[-2],
        max(frames, starts[-1] + length),
        dtype=patches.dtype,
        device=patches.device,
    )
    count = torch.zeros(total.shape[-1], dtype=patches.dtype, device=patches.device)
    for n, start in enumerate(starts):
        total[..., start : start + length] += patches[..., n, 0, :, :]
        count[start : start + length] += 1
    reach = min(frames, starts[-1] + length)
    return total[..., :reach] / count[:reach]


def _require_shape(name: str, given: Tensor, expected: str, *, least: int) -> None:
    """Refuse what is no tensor of so many dimensions."""
    if not isinstance(given, Tensor) or given.ndim < least:
        seen = (
            f"has shape {tuple(given.shape)}"
            if isinstance(given, Tensor)
            else f"is of type {type(given).__name__}"
        )
        raise RequestError(f"{name} {seen}, expected a tensor {expected}.")


# --- and back to sound ---


def to_waveform(
    log_mel: Tensor, config: SpectrogramConfig | None = None, *, iterations: int = 32, seed: int = 0
) -> Tensor:
    """Approximate waveform of a log-mel (Griffin-Lim).

    Mel power is spread over frequencies by the filters' non-negative pseudo-inverse, phases are
    found by the fast Griffin-Lim algorithm (Perraudin, Balazs, Sondergaard 2013).

    Parameters
    ----------
    log_mel : Tensor, shape (M, T)
        As :func:`log_mel` gives it; its mel bands are listened to.
    config : SpectrogramConfig
        The one it was made with.
    iterations : int
        Rounds of Griffin-Lim.
    seed : int
        Of the first, random phases.

    Returns
    -------
    Tensor, shape (S,), float32, S = (T - 1) * hop

    Raises
    ------
    RequestError
        If that is not the log-mel's shape.
    """
    config = config or SpectrogramConfig()
    _require_shape("log_mel", log_mel, f"({config.n_bands}, T)", least=2)
    if log_mel.ndim != 2 or log_mel.shape[0] < config.n_mels or log_mel.shape[1] < 2:
        raise RequestError(
            f"log_mel has shape {tuple(log_mel.shape)}, expected ({config.n_bands}, T) with T of "
            "at least 2: give a single one."
        )
    window = analysis_window(config).to(log_mel.device, torch.float32)
    filters = torch.from_numpy(mel_filters(config).T).to(log_mel.device, torch.float32)  # (F, M)
    log_mel = log_mel[: config.n_mels]
    power = 10 ** (log_mel.float() / config.db_scale / 10)  # (M, T)
    power = torch.where(log_mel > config.silence + 1e-4, power, 0.0)
    # (F, T)
    magnitude = (filters @ torch.linalg.pinv(filters.T @ filters) @ power).clamp(min=0).sqrt()
    stft = functools.partial(
        torch.stft,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    istft = functools.partial(
        torch.istft, n_fft=config.n_fft, hop_length=config.hop_length, window=window
    )
    phases = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(seed)).to(
        log_mel.device
    )
    spectrum = torch.polar(magnitude, 2 * torch.pi * phases)
    previous = torch.zeros_like(spectrum)
    for _ in range(iterations):
        consistent = stft(istft(spectrum))[:, : magnitude.shape[1]]
        guess = consistent + 0.99 * (consistent - previous)  # momentum of the fast variant
        spectrum, previous = torch.polar(magnitude, guess.angle()), consistent
    return istft(spectrum)
