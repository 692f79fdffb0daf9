"""Teachers of stage II: an average of the student, and features of another model."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.datasets.features import load_features
from patchifier.nn.masking import masked_scatter, masked_select, pack, scatter
from patchifier.train.note_labels import NoteLabels

if TYPE_CHECKING:
    from patchifier.train.objectives import Objectives

# Deviation over mean of a teacher's feature; a smaller one is rounding error.
LEAST_VARIATION = 1e-6


def teacher_features(
    data: Cache, parts: Sequence[np.ndarray], config: Config, labels: NoteLabels | None = None
) -> Tensor | None:
    """Return another model's features (clips, E), standardised by the training clips.

    None without `pretrain.teacher_features`. Rows of clips that have notes but no features are NaN.
    Refused: another clip without any, or fewer numbers than ``embed.n_similarity``.
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


class EMATeacher(nn.Module):
    """An exponential moving average of extractor, bottleneck and contrast head.

    It encodes only masked patches, so that targets do not contain the visible ones (M2D).
    """

    def __init__(self, objectives: "Objectives") -> None:
        super().__init__()
        self.extractor = copy.deepcopy(objectives.model.extractor)
        self.bottleneck = copy.deepcopy(objectives.model.bottleneck)
        self.contrast = copy.deepcopy(objectives.heads["contrast"])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, objectives: "Objectives", decay: float) -> None:
        """Average the weights with those of the student; copy its batch statistics."""
        model = objectives.model
        for own, student in (
            (self.extractor, model.extractor),
            (self.bottleneck, model.bottleneck),
            (self.contrast, objectives.heads["contrast"]),
        ):
            torch._foreach_lerp_(list(own.parameters()), list(student.parameters()), 1 - decay)
            for buffer, source in zip(own.buffers(), student.buffers(), strict=True):
                buffer.copy_(source)

    @torch.no_grad()
    def forward(self, patches: Tensor, valid: Tensor | None, mask: Tensor) -> Tensor:
        """Targets (B, 128) of clips, of unit length, from their masked patches."""
        vectors = masked_scatter(self.extractor(masked_select(patches, mask)), mask)  # (B, N, D)
        ids_mask, valid_mask = pack(mask)  # (B, K)
        layers = self.bottleneck(vectors, valid=valid, ids_keep=ids_mask, valid_keep=valid_mask)
        last = scatter(layers[-1][:, 1:].float(), ids_mask, valid_mask, vectors.shape[1])
        clips = last.sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        return functional.normalize(self.contrast(clips).float(), dim=1)
