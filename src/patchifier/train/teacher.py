"""Features of another model as the target of distillation (`pretrain.teacher_features`)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.datasets.features import load_features
from patchifier.train.note_labels import NoteLabels

# Deviation over mean of a teacher's feature; a smaller one is rounding error.
LEAST_VARIATION = 1e-6


def teacher_features(
    data: Cache, parts: Sequence[np.ndarray], config: Config, labels: NoteLabels | None = None
) -> Tensor | None:
    """Return another model's features (clips, E), standardised by the training clips.

    None without `pretrain.teacher_features`. Rows of clips that have notes but no features are NaN.

    Raises
    ------
    RequestError
        If a clip has none, or they have fewer numbers than ``embed.n_similarity``.
    """
    folder = config.pretrain.teacher_features
    if not folder:
        return None
    rendered = labels.rendered if labels else frozenset()
    features = load_features(folder, data.clips, name=f"features:{folder}", optional=rendered)
    wanted, size = config.embed.n_similarity, features.shape[1]
    if wanted > size:
        raise RequestError(
            f"embed.n_similarity is {wanted}, but the vectors in {folder} have {size} numbers: "
            "expected no more."
        )
    training = features[np.concatenate(parts)].astype(np.float64)
    mean, deviation = np.nanmean(training, axis=0), np.nanstd(training, axis=0)
    varies = deviation > LEAST_VARIATION * np.abs(mean)
    return torch.from_numpy((features - mean) / np.where(varies, deviation, 1.0)).float()
