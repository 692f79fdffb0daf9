"""Patches that overlapping windows share, so that each is described once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchifier.config import Config


@dataclass(frozen=True)
class SharedPatches:
    """Patches (B, N, M, T) of windows that share them, so that each is described once.

    Attributes
    ----------
    patches : Tensor, shape (P, M, T)
    index : Tensor, shape (B, N)
        Patch at each place of a window.
    """

    patches: Tensor
    index: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, N, M, T."""
        (B, N), (_, M, T) = self.index.shape, self.patches.shape
        return B, N, M, T

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the patches."""
        return self.patches.dtype

    @property
    def device(self) -> torch.device:
        """Where the patches are."""
        return self.patches.device

    def double(self) -> "SharedPatches":
        """Return them in float64."""
        return SharedPatches(self.patches.double(), self.index)


Patches = Tensor | SharedPatches


def by_patch(compute: Callable[..., Tensor], patches: Patches, config: Config) -> Tensor:
    """Function of each patch alone, (B, N, M, T) -> (B, N, ...), of patches that may be shared."""
    if isinstance(patches, Tensor):
        return compute(patches, config)
    return compute(patches.patches[None], config)[0][patches.index]
