"""Encoder "features:DIR": vectors computed by another program."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchifier.cache import Cache
from patchifier.datasets.features import FeatureFiles, read
from patchifier.evaluate.encoders.interface import Asked, Encoder, each_clip


def folder(name: str, argument: str, asked: Asked) -> list[Encoder]:
    """Row "features": DIR with an .npy or .npz file for each clip; see :class:`FeatureFiles`.

    Raises
    ------
    RequestError
        For a clip without a file or with several, a file for several clips, and what is not such an array; each names the clips.
    """
    files = FeatureFiles(name, Path(argument))
    if asked.data is not None:
        files.match(asked.data.clips, range(len(asked.data.clips)))

    def encode(data: Cache, indices: Sequence[int]) -> np.ndarray:
        matched = files.match(data.clips, indices)
        return each_clip(name, lambda data, index: read(matched[index]))(data, indices)

    return [
        Encoder(
            name,
            encode,
            parameters=None,
            note="computed elsewhere; mean over time where a file has a time axis",
            precomputed=True,
        )
    ]
