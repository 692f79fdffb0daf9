"""EMA teacher of stage II, for the objective "contrast"."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.nn.masking import masked_scatter, masked_select, pack, scatter

if TYPE_CHECKING:
    from patchifier.train.objectives import Objectives


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
