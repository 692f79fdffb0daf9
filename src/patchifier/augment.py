"""Augmentation of pre-training (paper 4.4): time scaling, cropping, intensity; pitch and levels.

Time scaling, cropping and cutting into patches are one resampling: frame w of patch n of clip b is
the source frame (starts[b, n] + w + 1/2) / scale[b] - 1/2, interpolated linearly. Frames outside
the crop are not computed. A pitch shift resamples the other axis in the same way
(:func:`source_rows`).

Beyond the paper, levels change as they do between recordings (:func:`change_levels`): noise, an
equaliser, a low-pass and a gain. They are sums in decibels, where random intensity is a product.

Parameters are drawn on the CPU and applied on the device of the log-mels. Factors of random
intensity are a hash of drawn keys and of the index of each element, so every device computes the
same numbers, also for a part of a batch.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from patchifier.config import PITCH_PER_OCTAVE, AugmentConfig, SpectrogramConfig
from patchifier.filters import mel_edges_hz
from patchifier.levels import LevelChanges, with_levels

Layout = Literal["independent", "one", "consecutive", "whole"]
NO_AUGMENTATION = AugmentConfig(
    time_stretch=(1.0, 1.0), intensity=(1.0, 1.0), intensity_per="spectrogram"
)


@dataclass(frozen=True)
class AugmentParameters:
    """Augmentation parameters of a batch of B clips, N patches each.

    Attributes
    ----------
    scale : ndarray, shape (B,)
        Factor by which time is stretched.
    starts : ndarray, shape (B, N), int
        First frame of each patch, in stretched time.
    valid : ndarray, shape (B, N), bool
        False for padding.
    lengths : ndarray, shape (B,), int
        Frames of each stretched clip.
    keys : ndarray, shape (B, 2), int32
        Seeds of each clip's random intensity.
    pitch : ndarray, shape (B,), or None
        Pitch shift of each clip in semitones; None without pitch shift.
    levels : LevelChanges or None
        None without changes of levels.
    """

    scale: np.ndarray
    starts: np.ndarray
    valid: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    pitch: np.ndarray | None = None
    levels: LevelChanges | None = None

    def __getitem__(self, part: slice) -> "AugmentParameters":
        """Return the parameters of some of the clips."""
        parts: dict[str, Any] = {
            name: None if each is None else each[part] for name, each in vars(self).items()
        }
        return AugmentParameters(**parts)


def draw(
    generator: np.random.Generator,
    frames: np.ndarray,
    *,
    config: AugmentConfig,
    patches: int = 25,
    width: int = 32,
    layout: Layout = "consecutive",
    most: int | None = None,
    pairs: bool = False,
) -> AugmentParameters:
    """Draw the augmentation parameters of a batch of clips with so many frames (B,).

    Where a clip is too short for the crop, its scale is raised until it fits, if the range allows.

    Parameters
    ----------
    patches, width : int
        N and W.
    layout : "consecutive", "independent", "one" or "whole"
        N consecutive patches from a random frame; N independent positions; a single one; all of the
        clip, cropped to `most` patches.
    pairs : bool
        Whether clips 2 i and 2 i + 1 share their scale and pitch shift; levels are each one's own.

    Examples
    --------
    >>> drawn = draw(np.random.default_rng(0), np.array([1249, 500]), config=AugmentConfig())
    >>> drawn.starts.shape, int(drawn.valid[0].sum())
    ((2, 25), 25)
    """
    B, (low, high) = len(frames), config.time_stretch
    first_of = np.arange(B) // 2 * 2 if pairs else np.arange(B)
    scale = generator.uniform(low, high, B)[first_of]
    placement = generator.random((B, patches if layout == "independent" else 1))
    if layout in ("consecutive", "whole"):
        fits = patches * width / frames if layout == "consecutive" else np.zeros(B)
        fits = np.where(fits <= high, fits, 0.0)
        scale = np.maximum(scale, np.maximum(fits, fits[np.arange(B) ^ 1]) if pairs else fits)
    lengths = np.maximum(np.rint(frames * scale), 1).astype(int)
    if layout in ("independent", "one"):
        # (B, N)
        starts = np.floor(placement * (np.maximum(lengths - width, 0) + 1)[:, None]).astype(int)
        valid = np.ones_like(starts, dtype=bool)
    else:
        whole = np.maximum(lengths // width, 1)  # a clip below one patch is padded to one
        counts = np.minimum(whole, patches if layout == "consecutive" else (most or whole.max()))
        spare = np.maximum(lengths - counts * width, 0)
        first = np.floor(placement[:, 0] * (spare + 1)).astype(int)
        order = np.arange(patches if layout == "consecutive" else counts.max())  # (N,)
        starts = first[:, None] + order * width
        valid = order < counts[:, None]
    keys = generator.integers(-(2**31), 2**31, (B, 2), dtype=np.int32)
    # last, so that nothing else changes with it
    pitch = generator.uniform(*config.pitch_shift, B)[first_of] if config.shifts_pitch else None
    levels = LevelChanges.draw(generator, B, config) if config.changes_levels else None
    return AugmentParameters(scale, starts, valid, lengths, keys, pitch, levels)


def source_rows(pitch: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Source row of each log-mel row, with a fraction, for pitch shifts (B,) in semitones.

    Rows beyond the outermost band repeat that band. Returns (B, M), float32.
    """
    centres = mel_edges_hz(config)[1:-1]
    # (B, mel bands)
    mel = np.interp(centres / 2 ** (pitch[:, None] / 12), centres, np.arange(len(centres)))
    # (B, pitch bands)
    higher = np.arange(config.n_pitch_bands) - pitch[:, None] * PITCH_PER_OCTAVE / 12
    return np.concatenate(
        [mel, config.n_mels + higher.clip(0, max(0, config.n_pitch_bands - 1))], axis=1
    ).astype(np.float32)


def source_span(drawn: AugmentParameters, frames: np.ndarray, width: int = 32) -> np.ndarray:
    """Frames of each clip that its patches are made of: first and last + 1, shape (B, 2), int."""
    first = np.where(drawn.valid, drawn.starts, np.iinfo(int).max).min(axis=1)
    last = np.where(drawn.valid, drawn.starts, 0).max(axis=1) + width
    low = np.clip(np.floor((first + 0.5) / drawn.scale - 0.5).astype(int), 0, frames - 1)
    high = np.clip(np.ceil((last - 0.5) / drawn.scale - 0.5).astype(int) + 1, low + 1, frames)
    return np.stack([low, high], axis=1)


@dataclass(frozen=True)
class Resampling:
    """Augmentation parameters as tensors, with the indices of the clips in a table of frames.

    Attributes
    ----------
    first : Tensor, shape (B,), int64
        Row of the table that holds each clip's first frame; negative if that frame was not read.
    frames, lengths : Tensor, shape (B,), int64
        Frames of each clip before and after time scaling.
    scale : Tensor, shape (B,), float64
    starts : Tensor, shape (B, N), int64
    keys : Tensor, shape (B, 2), int32
    valid : Tensor, shape (B, N), bool, or None
        False for padding; None if no frame is padding.
    rows : Tensor, shape (B, M), float32, or None
        Source row of each row; None without pitch shift.
    offsets : Tensor, shape (B, M), float32, or None
        Added to each row's values; None without changes of levels.
    noisy : Tensor, shape (K,), int64, or None
        Clips with noise; None if there are none.
    noise : Tensor, shape (K, M), float32, or None
        Power of their noise in each row, relative to the clip's mean power.
    """

    first: Tensor
    frames: Tensor
    lengths: Tensor
    scale: Tensor
    starts: Tensor
    keys: Tensor
    valid: Tensor | None
    rows: Tensor | None
    offsets: Tensor | None = None
    noisy: Tensor | None = None
    noise: Tensor | None = None

    @classmethod
    def of(
        cls,
        drawn: AugmentParameters,
        *,
        first: np.ndarray,
        frames: np.ndarray,
        width: int = 32,
        config: SpectrogramConfig | None = None,
    ) -> "Resampling":
        """Make one of augmentation parameters and the position and length of each clip."""
        whole = drawn.valid.all() and (drawn.starts + width <= drawn.lengths[:, None]).all()
        lengths, scale, starts, keys = map(
            torch.from_numpy, (drawn.lengths, drawn.scale, drawn.starts, drawn.keys)
        )
        valid = None if whole else torch.from_numpy(drawn.valid)
        config = config or SpectrogramConfig()
        rows = None if drawn.pitch is None else torch.from_numpy(source_rows(drawn.pitch, config))
        return cls(
            torch.from_numpy(np.asarray(first)),
            torch.from_numpy(np.asarray(frames)),
            lengths,
            scale,
            starts,
            keys,
            valid,
            rows,
            **(drawn.levels.tensors(config) if drawn.levels else {}),
        )


def resample(crops: Resampling, table: Tensor, *, silence: float, width: int = 32) -> Tensor:
    """Scale in time, crop, cut into patches (B, N, 1, M, W), float32, and shift pitch.

    `table` (F, M) holds the frames of :func:`span` of all clips, consecutive for each clip.
    """
    # (B, N, W), in stretched time
    inside = crops.starts[:, :, None] + torch.arange(width, device=table.device)
    source = ((inside + 0.5) / crops.scale[:, None, None] - 0.5).clamp_(min=0)
    source = torch.minimum(source, (crops.frames - 1)[:, None, None])
    below = source.floor()
    part = (source - below).float()[..., None]  # (B, N, W, 1)
    rows = below.long() + crops.first[:, None, None]
    last = (crops.first + crops.frames - 1).clamp(max=len(table) - 1)[:, None, None]
    low = torch.minimum(rows, last).clamp_(min=0)  # padding patches may point anywhere
    high = torch.minimum(rows + 1, last).clamp_(min=0)
    shown = torch.lerp(gather_frames(table, low), gather_frames(table, high), part)  # (B, N, W, M)
    shown = shown if crops.rows is None else shift(shown, crops.rows)
    patches = shown.transpose(-1, -2).unsqueeze(2).contiguous()  # (B, N, 1, M, W)
    return patches if crops.valid is None else pad(patches, crops, silence=silence)


def gather_frames(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table (F, M) at indices of any shape, float32.

    On a CPU this is ten times as fast as an index for each axis.
    """
    return table.index_select(0, rows.flatten()).float().view(*rows.shape, -1)


def shift(values: Tensor, rows: Tensor) -> Tensor:
    """Replace each row by its source row (B, M), interpolated linearly; values (B, N, W, M)."""
    below = rows.long()[:, None, None]  # (B, 1, 1, M)
    # of weight 0, where the row is its part's last
    above = (below + 1).clamp_(max=rows.shape[1] - 1)
    part = (rows - rows.floor())[:, None, None]
    return torch.lerp(
        values.gather(-1, below.expand_as(values)), values.gather(-1, above.expand_as(values)), part
    )


def pad(patches: Tensor, crops: Resampling, *, silence: float) -> Tensor:
    """Fill padding and what lies behind the end of a clip with silence; patches (B, N, 1, M, W)."""
    if crops.valid is None:
        return patches
    padding = is_padding(crops, crops.valid, patches.shape[-1])
    return patches.masked_fill(padding[:, :, None, None, :], silence)


def is_padding(crops: Resampling, valid: Tensor, width: int) -> Tensor:
    """Whether a frame is in a patch of padding or behind the end of its clip: (B, N, W)."""
    inside = crops.starts[:, :, None] + torch.arange(width, device=crops.starts.device)
    return (inside >= crops.lengths[:, None, None]) | ~valid[:, :, None]


def change_levels(patches: Tensor, crops: Resampling, *, config: SpectrogramConfig) -> Tensor:
    """Add noise, equaliser, low-pass and gain to patches (B, N, 1, M, W); padding stays silence."""
    if crops.offsets is None:
        return patches
    noise = None
    if crops.noisy is not None and crops.noise is not None:
        noise = (crops.noisy, crops.noise, count_valid_frames(patches, crops)[crops.noisy])
    changed = with_levels(patches, crops.offsets, noise=noise, config=config)
    return pad(changed, crops, silence=config.silence)


def count_valid_frames(patches: Tensor, crops: Resampling) -> Tensor:
    """Frames of each clip's patches that are no padding, at least 1: (B,)."""
    B, N, _, _, W = patches.shape
    if crops.valid is None:
        return torch.full((B,), N * W, device=patches.device)
    return (~is_padding(crops, crops.valid, W)).sum(dim=(1, 2)).clamp(min=1)


def vary_intensity(
    patches: Tensor, crops: Resampling, *, config: AugmentConfig, silence: float
) -> Tensor:
    """Multiply patches (B, N, 1, M, W) by random factors: one per element, band or spectrogram.

    Padding is not changed.
    """
    low, high = config.intensity
    if low == high == 1.0:
        return patches
    B, N, _, M, W = patches.shape
    shape = {"element": (N, 1, M, W), "band": (1, 1, M, 1), "spectrogram": (1, 1, 1, 1)}[
        config.intensity_per
    ]
    factors = uniform(crops.keys, int(np.prod(shape)), low, high).view(B, *shape)
    return pad(patches * factors, crops, silence=silence)


def uniform(keys: Tensor, count: int, low: float, high: float) -> Tensor:
    """Pseudo-random numbers (B, count) in (low, high) from int32 keys (B, 2), as on every device.

    Each 32-bit hash (Wellons' "lowbias32") of an index gives two numbers of 16 bits. The first key
    multiplies the index, the second is added.
    """
    places = torch.arange((count + 1) // 2, dtype=torch.int32, device=keys.device)
    x = places * (keys[:, :1] | 1) + keys[:, 1:]  # (B, count / 2); products wrap around
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        # >> keeps the sign, & takes it away
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (32 - shift) - 1))
        x.mul_(factor)
    step = (high - low) / 2**16
    return x.view(torch.int16)[:, :count].float().mul_(step).add_((low + high + step) / 2)
