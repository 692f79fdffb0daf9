"""Which clips train and which validate."""

from dataclasses import dataclass

import numpy as np

from patchifier.cache import Cache
from patchifier.config import PretrainConfig, RequestError
from patchifier.datasets import hold_out

VALIDATION_CLIPS = 256  # at most: a validation must stay cheap beside an epoch of 16,000 clips


@dataclass(frozen=True)
class Sides:
    """Indices of the clips that train, as a whole and by part of the cache, and of those that validate."""

    train: np.ndarray
    validation: np.ndarray
    parts: tuple[np.ndarray, ...]


def split(data: Cache, config: PretrainConfig) -> Sides:
    """Choose the clips that train and validate; clips of a test split do neither."""
    clips = data.clips
    if any(clip.split for clip in clips):
        held = [clip.split == "valid" for clip in clips]
        used = [clip.split != "test" for clip in clips]
    else:
        used = [True] * len(clips)
        if config.validation_fold is not None:
            held = [clip.fold == config.validation_fold for clip in clips]
            if not any(held):
                raise RequestError(
                    f"pretrain.validation_fold is {config.validation_fold}, but no clip of {data.path} is in that fold: "
                    "with '--pretrain.validation_fold null' a share of the clips is held out instead."
                )
        else:
            held = hold_out(clips, fraction=config.validation_fraction, seed=config.seed)
    train = np.array([index for index in range(len(clips)) if used[index] and not held[index]], int)
    validation = np.array(
        [index for index in range(len(clips)) if used[index] and held[index]], int
    )
    if not len(train):
        raise RequestError(
            f"cache {data.path} has no clip left to train on ({len(clips)} in all, {len(validation)} held out)."
        )
    parts = tuple(np.intersect1d(train, part) for part in data.parts(config.parts))
    if not all(map(len, parts)):
        raise RequestError(
            f"pretrain.parts is {config.parts}, but a part of cache {data.path} has no clip to train on: choose a smaller number."
        )
    validation = np.intersect1d(
        validation, data.parts(config.parts)[0]
    )  # the first process validates, and may have the first part alone
    # The same few, evenly spread, at every validation.
    return Sides(
        train,
        validation[
            np.linspace(0, len(validation) - 1, min(len(validation), VALIDATION_CLIPS)).astype(int)
        ],
        parts,
    )
