"""Essentia's MusicExtractor: hand-made descriptors of timbre, rhythm and tonality, and their statistics.

    python benchmarks/outsiders/from_essentia.py CACHE --out features/essentia

Needs essentia==2.1b6.dev1389, which is AGPL-3. It decodes files by itself, at 44,100 Hz.
"""

import sys

import essentia
import essentia.standard
import features
import numpy as np

from patchifier.cache import Cache
from patchifier.evaluate.encoders import Encoder, each_clip

LEFT_OUT = (
    "rhythm.beats_position",
    ".cov",
    ".icov",
)  # as long as there are beats; covariances, which no other encoder here has
STATISTICS = [
    "mean",
    "stdev",
]  # of frames, as of every hand-made feature here; its default has seven more
NO_END = 1e6  # its own default for the end of a clip, in seconds


def encoder() -> Encoder:
    """Every descriptor that is a number or an array of fixed size, in the order of their names."""
    essentia.log.infoActive = False  # a line for every clip

    def vector(data: Cache, index: int) -> np.ndarray:
        clip = data.clips[index]
        statistics = dict.fromkeys(("lowlevelStats", "tonalStats", "rhythmStats"), STATISTICS)
        extractor = essentia.standard.MusicExtractor(
            startTime=clip.start_s,
            endTime=NO_END if clip.end_s is None else clip.end_s,
            **statistics,
        )
        pool, _ = extractor(clip.path)
        names = [
            name
            for name in sorted(pool.descriptorNames())
            if not name.startswith("metadata.") and not name.endswith(LEFT_OUT)
        ]
        values = [np.asarray(pool[name]) for name in names]
        return np.concatenate(
            [value.ravel() for value in values if np.issubdtype(value.dtype, np.number)]
        )

    return Encoder("essentia", each_clip("essentia", vector))


if __name__ == "__main__":
    asked = features.parser(__doc__).parse_args()
    sys.exit(features.write(encoder(), asked.cache, asked.out))
