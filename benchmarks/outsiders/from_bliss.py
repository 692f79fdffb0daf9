"""bliss-audio's 23 numbers, which players use for playlists: tempo, loudness, timbre and chroma statistics.

    python benchmarks/outsiders/from_bliss.py CACHE --out features/bliss

Needs bliss-audio==0.2.0 (MIT). It has its own decoder and takes whole files only.
"""

import sys
from collections.abc import Sequence

import bliss_audio
import features
import numpy as np

from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.evaluate.encoders import Encoder
from patchifier.io import Progress, silent


def encoder() -> Encoder:
    """The analysis of each clip's file."""
    return Encoder("bliss-audio", _encode)


def _encode(data: Cache, indices: Sequence[int], progress: Progress = silent) -> np.ndarray:
    vectors = []
    for done, index in enumerate(indices, 1):
        clip = data.clips[index]
        if (clip.start_s, clip.end_s) != (0.0, None):
            raise RequestError(f"{clip.id} is a part of a file, expected whole files.")
        vectors.append(bliss_audio.Song(clip.path).analysis)
        progress(done, len(indices), clip.id)
    return np.array(vectors, np.float32)


if __name__ == "__main__":
    arguments = features.parser(__doc__)
    asked = arguments.parse_args()
    sys.exit(features.write(encoder(), asked.cache, asked.out))
