"""Encoder "features:DIR": vectors computed by another program."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchifier.cache import Cache
from patchifier.datasets.features import FeatureFiles, read
from patchifier.evaluate.encoders.interface import Encoder, EncoderOptions, each_clip
from patchifier.io import Progress, silent


def folder(name: str, argument: str, options: EncoderOptions) -> list[Encoder]:
    """Row "features": DIR with an .npy or .npz file for each clip; see :class:`FeatureFiles`.

    Raises
    ------
    RequestError
        For a clip without a file or with several, a file for several clips, and what is not such an
        array; each names the clips.
    """
    files = FeatureFiles(name, Path(argument))
    if options.data is not None:
        files.match(options.data.clips, range(len(options.data.clips)))

    def encode(data: Cache, indices: Sequence[int], *, progress: Progress = silent) -> np.ndarray:
        matched = files.match(data.clips, indices)
        by_clip = each_clip(name, lambda data, index: read(matched[index]))
        return by_clip(data, indices, progress=progress)

    return [
        Encoder(
            name,
            encode,
            parameters=None,
            note="computed elsewhere; mean over time where a file has a time axis",
            precomputed=True,
        )
    ]
