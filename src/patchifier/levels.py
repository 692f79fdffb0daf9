"""Levels that change as they do between recordings: noise, an equaliser, a low-pass and a gain.

A log-mel is decibels times a factor, so a filter or a gain is one number added to each row. Noise
is added to the power. All is drawn for each clip alone, on the CPU, and applied on the device of
the log-mels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchifier.config import AugmentConfig, SpectrogramConfig
from patchifier.filters import centres_hz, mel_shares, noise_power

CURVE_HZ = (40.0, 11_000.0)  # an equaliser's control points are evenly spaced in pitch
CURVE_POINTS = 4
LOW_PASS_SHARE = 0.25  # of clips
LOW_PASS_DB = 24.0  # an octave
NOISE_SHARE = 0.25  # of clips
PINK_SHARE = 0.5  # of clips with noise; the others' is white
HALF_PRECISION = 2**-11  # relative error of a value of a cache


@dataclass(frozen=True)
class LevelChanges:
    """Changes of the levels of B clips.

    Attributes
    ----------
    gain_db : ndarray, shape (B,)
        Added to all rows.
    curve_db : ndarray, shape (B, 4)
        Boost or cut at each control point of the equaliser.
    cutoff_hz : ndarray, shape (B,)
        Of the low-pass; infinite for a clip without.
    noise_db : ndarray, shape (B,)
        Level of the noise relative to the clip's mean power; -infinite for a clip without.
    pink : ndarray, shape (B,), bool
        Whether the noise is pink, not white.
    """

    gain_db: np.ndarray
    curve_db: np.ndarray
    cutoff_hz: np.ndarray
    noise_db: np.ndarray
    pink: np.ndarray

    @classmethod
    def draw(cls, generator: np.random.Generator, B: int, config: AugmentConfig) -> "LevelChanges":
        """Draw the same count of numbers for each clip, whatever is on."""
        numbers = generator.random((B, 6 + CURVE_POINTS)).T
        gain, low_passed, cutoff, noisy, noise, colour, *curve = numbers
        lowest_hz, highest_hz = config.low_pass_hz or (1.0, 1.0)
        lowest_db, highest_db = config.noise_db or (0.0, 0.0)
        has_low_pass = (low_passed < LOW_PASS_SHARE) & (config.low_pass_hz is not None)
        has_noise = (noisy < NOISE_SHARE) & (config.noise_db is not None)
        return cls(
            gain_db=_between(*config.gain_db, gain),
            curve_db=_between(-config.equaliser_db, config.equaliser_db, np.stack(curve, axis=1)),
            cutoff_hz=np.where(
                has_low_pass, lowest_hz * (highest_hz / lowest_hz) ** cutoff, np.inf
            ),
            noise_db=np.where(has_noise, _between(lowest_db, highest_db, noise), -np.inf),
            pink=colour < PINK_SHARE,
        )

    def __getitem__(self, part: slice) -> "LevelChanges":
        """Return the changes of some of the clips."""
        return LevelChanges(**{name: values[part] for name, values in vars(self).items()})

    def offsets_db(self, config: SpectrogramConfig) -> np.ndarray:
        """Sum of gain, equaliser and low-pass in each row: (B, M)."""
        octaves = np.log2(centres_hz(config)) - np.log2(self.cutoff_hz[:, None])  # (B, M)
        curve = self.curve_db @ curve_weights(config).T
        return self.gain_db[:, None] + curve - LOW_PASS_DB * np.maximum(0, octaves)

    def noise_power(self, config: SpectrogramConfig) -> np.ndarray:
        """Power of the noise in each row, relative to the clip's mean power: (B, M)."""
        white, pink = (noise_power(config, pink=each) for each in (False, True))
        return np.where(self.pink[:, None], pink, white) * 10 ** (self.noise_db[:, None] / 10)

    def tensors(self, config: SpectrogramConfig) -> dict[str, Tensor]:
        """Values to add to each row, "offsets" (B, M); if any clip has noise, which: "noisy" (K,).

        And "noise" (K, M): the power of the noise in each row, relative to the clip's mean power.
        """
        offsets = torch.from_numpy((config.db_scale * self.offsets_db(config)).astype(np.float32))
        noisy = np.flatnonzero(np.isfinite(self.noise_db))
        if not len(noisy):
            return {"offsets": offsets}
        noise = torch.from_numpy(self.noise_power(config)[noisy].astype(np.float32))
        return {"offsets": offsets, "noisy": torch.from_numpy(noisy), "noise": noise}


def _between(low: float, high: float, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * share


def curve_weights(config: SpectrogramConfig) -> np.ndarray:
    """Weight of each control point of an equaliser in each row, (M, 4); each row's sum is 1.

    Between two points the curve is half a cosine wave; beyond the outermost it is level.
    """
    low, high = np.log(CURVE_HZ)
    pitch = np.log(centres_hz(config)).clip(low, high)
    place = (CURVE_POINTS - 1) * (pitch - low) / (high - low)  # (M,)
    distance = np.abs(place[:, None] - np.arange(CURVE_POINTS)).clip(max=1)
    return (1 + np.cos(np.pi * distance)) / 2


def with_levels(
    patches: Tensor,
    offsets: Tensor,
    *,
    noise: tuple[Tensor, Tensor, Tensor] | None,
    config: SpectrogramConfig,
) -> Tensor:
    """Add noise, then offsets (B, M), to patches (B, N, 1, M, W) that are silent where padded.

    Noise is of the clips (K,), with its power (K, M) in each row and their frames (K,) without
    padding. Values do not fall below silence, but padding may be raised. A value that is silence
    counts as no power at all: noise can raise it, and a gain cannot.
    """
    floor = config.silence * (1 - HALF_PRECISION)  # and what a cache makes of silence
    levelled = functional.threshold(patches, floor, -math.inf)
    if noise is not None:
        noisy, power, frames = noise
        levelled[noisy] = with_noise(levelled[noisy], power, frames, config=config)
    return levelled.add_(offsets[:, None, None, :, None]).clamp_(min=config.silence)


def with_noise(
    levelled: Tensor, noise: Tensor, frames: Tensor, *, config: SpectrogramConfig
) -> Tensor:
    """Add stationary noise (K, M) to patches (K, N, 1, M, W), in which silence is -infinite.

    The noise is relative to the clip's mean power: the mean over the `frames` (K,) that are no
    padding, and over mel bands by their widths, so that its level is minus the signal-to-noise
    ratio.
    """
    nepers = math.log(10) / 10 / config.db_scale  # from a value to the logarithm of its power
    power = (levelled * nepers).exp_()  # (K, N, 1, M, W)
    shares = torch.from_numpy(mel_shares(config)).to(power.device)
    # float64, so that the order of a sum, which depends on K, changes nothing
    of_bands = power[:, :, 0, : config.n_mels].sum(dim=(1, 3), dtype=torch.float64)
    mean = (of_bands * shares).sum(dim=1) / frames  # (K,)
    power.add_((noise * mean[:, None]).float()[:, None, None, :, None])
    return power.log_().div_(nepers)
