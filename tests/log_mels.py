"""Log-mels that stand in for a cache."""

import numpy as np

from patchifier.cache import Cache
from patchifier.config import Config


class Clips:
    """Log-mels that stand in for a cache: levels that drift from patch to patch, and noise."""

    def __init__(self, *frames, bands=64, spectrogram=None):
        generator = np.random.default_rng(0)
        self.frames, self.clips = np.array(frames), frames
        self.spectrogram = spectrogram or Config().spectrogram
        drifts = [generator.normal(size=(count // 32 + 1, bands)).cumsum(0) for count in frames]
        levels = [
            0.1 * drift.repeat(32, 0)[:count] for drift, count in zip(drifts, frames, strict=True)
        ]
        self.log_mels = [
            (level - 0.5 + 0.1 * generator.normal(size=level.shape)).astype(np.float16)
            for level in levels
        ]

    def log_mel(self, index, first=0, last=None):
        return self.log_mels[index][first:last]

    array = Cache.array
    read = Cache.read
