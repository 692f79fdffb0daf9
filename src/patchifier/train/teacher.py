"""Features of another model as the target of distillation (`pretrain.teacher_features`)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchifier.cache import Cache
from patchifier.config import Config
from patchifier.datasets.features import load_features
from patchifier.train.note_labels import NoteLabels

# Deviation over mean of a teacher's feature; a smaller one is rounding error.
LEAST_VARIATION = 1e-6


def teacher_features(
    data: Cache, parts: Sequence[np.ndarray], config: Config, labels: NoteLabels | None = None
) -> Tensor | None:
    """Return another model's features (clips, E), standardised by the training clips.

    None without `pretrain.teacher_features`. Rows of clips that have notes but no features are NaN.
    """
    folder = config.pretrain.teacher_features
    if not folder:
        return None
    rendered = labels.rendered if labels else frozenset()
    features = load_features(folder, data.clips, name=f"features:{folder}", optional=rendered)
    training = features[np.concatenate(parts)].astype(np.float64)
    mean, deviation = np.nanmean(training, axis=0), np.nanstd(training, axis=0)
    varies = deviation > LEAST_VARIATION * np.abs(mean)
    return torch.from_numpy((features - mean) / np.where(varies, deviation, 1.0)).float()
