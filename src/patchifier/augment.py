"""The three augmentations of pre-training (paper 4.4): draw parameters from a generator, then apply them.

Scaling, cropping and cutting into patches are one look-up: patch n, frame w of clip b shows the source frame
(starts[b, n] + w + 1/2) / scale[b] - 1/2, interpolated linearly. Nothing is resized that is not looked at.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from patchifier.config import AugmentConfig

Layout = Literal["independent", "one", "consecutive", "whole"]
NO_AUGMENTATION = AugmentConfig(scale=(1.0, 1.0), intensity=(1.0, 1.0), intensity_per="spectrogram")


@dataclass(frozen=True)
class Draw:
    """What was drawn for a batch of B clips, N patches each.

    Attributes
    ----------
    scale : ndarray, shape (B,)
        Factor by which time is stretched.
    starts : ndarray, shape (B, N), int
        First frame of each patch, in stretched time.
    present : ndarray, shape (B, N), bool
        Where there is a patch; False is padding.
    lengths : ndarray, shape (B,), int
        Frames of each stretched clip.
    intensity : ndarray, float32, shape (B, N, 1, M, W), (B, 1, 1, M, 1) or (B, 1, 1, 1, 1)
        Factor on log-mel values.
    """

    scale: np.ndarray
    starts: np.ndarray
    present: np.ndarray
    lengths: np.ndarray
    intensity: np.ndarray


def draw(
    generator: np.random.Generator,
    frames: np.ndarray,
    *,
    config: AugmentConfig,
    patches: int = 25,
    bands: int = 64,
    width: int = 32,
    layout: Layout = "consecutive",
    most: int | None = None,
) -> Draw:
    """Draw scaling, crop and intensity for a batch.

    Parameters
    ----------
    generator : numpy.random.Generator
        The only source of chance.
    frames : ndarray, shape (B,), int
        Frames of each clip.
    config : AugmentConfig
        Ranges. Where a clip is too short for the crop, its scale is raised until it fits, if the range allows.
    patches, bands, width : int
        N, M and W.
    layout : "consecutive", "independent", "one" or "whole"
        N consecutive patches from a random frame; N independent positions; a single one; all of the clip.
    most : int
        With "whole", the longest sequence that the model has positions for; longer clips are cropped to it.

    Returns
    -------
    Draw
    """
    B, (low, high) = len(frames), config.scale
    scale = generator.uniform(low, high, B)
    placement = generator.random((B, patches if layout == "independent" else 1))
    if layout in ("consecutive", "whole"):
        fits = patches * width / frames if layout == "consecutive" else np.zeros(B)
        scale = np.where((fits > scale) & (fits <= high), fits, scale)
    lengths = np.maximum(np.rint(frames * scale), 1).astype(int)
    if layout in ("independent", "one"):
        starts = np.floor(placement * (np.maximum(lengths - width, 0) + 1)[:, None]).astype(int)  # (B, N)
        present = np.ones_like(starts, dtype=bool)
    else:
        whole = np.maximum(lengths // width, 1)  # a clip below one patch is padded to one
        counts = np.minimum(whole, patches if layout == "consecutive" else (most or whole.max()))
        spare = np.maximum(lengths - counts * width, 0)
        first = np.floor(placement[:, 0] * (spare + 1)).astype(int)
        order = np.arange(patches if layout == "consecutive" else counts.max())  # (N,)
        starts = first[:, None] + order * width
        present = order < counts[:, None]
    shape = {"element": (B, starts.shape[1], 1, bands, width), "band": (B, 1, 1, bands, 1), "spectrogram": (B, 1, 1, 1, 1)}
    low, high = config.intensity
    intensity = generator.random(shape[config.intensity_per], dtype=np.float32) * np.float32(high - low) + np.float32(low)
    return Draw(scale, starts, present, lengths, intensity)


def span(drawn: Draw, frames: np.ndarray, width: int = 32) -> np.ndarray:
    """First and last + 1 source frame that each clip's patches look at: shape (B, 2), int."""
    first = np.where(drawn.present, drawn.starts, np.iinfo(int).max).min(axis=1)
    last = np.where(drawn.present, drawn.starts, 0).max(axis=1) + width
    low = np.clip(np.floor((first + 0.5) / drawn.scale - 0.5).astype(int), 0, frames - 1)
    high = np.clip(np.ceil((last - 0.5) / drawn.scale - 0.5).astype(int) + 1, low + 1, frames)
    return np.stack([low, high], axis=1)


def apply(drawn: Draw, log_mels: Tensor, *, offsets: np.ndarray, frames: np.ndarray, silence: float, width: int = 32) -> tuple[Tensor, Tensor]:
    """Scale, crop, cut into patches and vary intensity.

    Parameters
    ----------
    drawn : Draw
        From :func:`draw`.
    log_mels : Tensor, shape (B, T, M)
        The part of each clip that is needed (:func:`span`), frames first; what lies behind a clip's end is never looked at.
    offsets, frames : ndarray, shape (B,), int
        Source frame at which each of `log_mels` starts, and frames of the whole clip.
    silence : float
        Value of padding, put in after intensity has been varied.
    width : int
        W.

    Returns
    -------
    augmented, clean : Tensor, shape (B, N, 1, M, W)
        With and without random intensity.
    """
    device = log_mels.device
    inside = drawn.starts[:, :, None] + np.arange(width)  # (B, N, W), in stretched time
    source = (inside + 0.5) / drawn.scale[:, None, None] - 0.5
    source = np.clip(source, 0, (frames - 1)[:, None, None]) - offsets[:, None, None]
    source = np.clip(source, 0, log_mels.shape[1] - 1)  # padding patches may point anywhere
    below = np.floor(source).astype(np.int64)
    above = np.minimum(below + 1, np.minimum(log_mels.shape[1], frames - offsets)[:, None, None] - 1)
    above = np.maximum(above, below)
    part = torch.from_numpy((source - below).astype(np.float32)).to(device)[..., None]  # (B, N, W, 1)
    rows = np.arange(len(log_mels))[:, None, None] * log_mels.shape[1]  # first frame of each clip in one long log-mel
    low, high = (frames_at(log_mels.flatten(0, 1), rows + index) for index in (below, above))  # (B, N, W, M)
    clean = torch.lerp(low, high, part).transpose(-1, -2).unsqueeze(2).contiguous()  # (B, N, 1, M, W)
    augmented = clean * torch.from_numpy(drawn.intensity).to(device)
    padding = (inside >= drawn.lengths[:, None, None]) | ~drawn.present[:, :, None]  # (B, N, W)
    if padding.any():
        behind = torch.from_numpy(padding).to(device)[:, :, None, None, :]  # (B, N, 1, 1, W)
        clean, augmented = clean.masked_fill(behind, silence), augmented.masked_fill(behind, silence)
    return augmented, clean


def frames_at(log_mel: Tensor, index: np.ndarray) -> Tensor:
    """Frames of a log-mel (T, M) at an index of any shape, as float32; whole rows, which is faster than an index for each axis."""
    chosen = log_mel.index_select(0, torch.from_numpy(index.ravel()).to(log_mel.device))
    return chosen.float().view(*index.shape, -1)
