"""EMA teacher of stage II, for the objectives "latent" and "contrast"."""

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
        self.contrast: nn.Module | None = None
        if "contrast" in objectives.heads:
            self.contrast = copy.deepcopy(objectives.heads["contrast"])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, objectives: "Objectives", decay: float) -> None:
        """Average the weights with those of the student; copy its batch statistics."""
        model = objectives.model
        pairs: list[tuple[nn.Module, nn.Module]]
        pairs = [(self.extractor, model.extractor), (self.bottleneck, model.bottleneck)]
        if self.contrast:
            pairs.append((self.contrast, objectives.heads["contrast"]))
        for own, student in pairs:
            torch._foreach_lerp_(list(own.parameters()), list(student.parameters()), 1 - decay)
            for buffer, source in zip(own.buffers(), student.buffers(), strict=True):
                buffer.copy_(source)

    @torch.no_grad()
    def forward(self, patches: Tensor, valid: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of masked patches (P, D) and of clips (B, 128).

        The former are the normalised mean of all normalised layers, the latter of unit length.
        """
        vectors = masked_scatter(self.extractor(masked_select(patches, mask)), mask)  # (B, N, D)
        ids_mask, valid_mask = pack(mask)  # (B, K)
        layers = self.bottleneck(vectors, valid=valid, ids_keep=ids_mask, valid_keep=valid_mask)
        N, size = vectors.shape[1], vectors.shape[-1:]
        normalised = [functional.layer_norm(layer[:, 1:].float(), size) for layer in layers]
        mean = scatter(torch.stack(normalised).mean(0), ids_mask, valid_mask, N)  # (B, N, D)
        last = scatter(layers[-1][:, 1:].float(), ids_mask, valid_mask, N)
        clips = last.sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        if self.contrast:
            clips = functional.normalize(self.contrast(clips).float(), dim=1)
        return masked_select(functional.layer_norm(mean, size), mask), clips
